//! The load generator against the floor: an independent server that shares no code with either.
//!
//! The floor runs on a thread of this process; its connections live in its ring's own table.

#[allow(dead_code)] // its command line belongs to the example
#[path = "../benches/floor/floor.rs"]
mod floor;

use base64::Engine;
use campanile::load::{self, LoadArgs, report::LoadReport};
use clap::Parser;
use sha1::{Digest, Sha1};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    load: LoadArgs,
}

/// A floor on a free port.
fn floor(mode: &str) -> SocketAddr {
    let args = floor::Args::parse_from(["floor", "--mode", mode, "--members", "4000"]);
    let any = "127.0.0.1:0".parse().expect("an address");
    let listener = floor::listen(any).expect("a free port");
    let addr = listener.local_addr().expect("it is bound");
    std::thread::spawn(move || floor::serve(&args, listener).expect("io_uring works here"));
    addr
}

/// One run at a time: each takes what the machine has, and beside nine others a run of a third of a
/// second may get nothing at all.
#[allow(clippy::disallowed_types)] // the law is about deliveries; these are tests taking turns
static TURN: std::sync::Mutex<()> = std::sync::Mutex::new(());

/// `campanile load` with `line` against `addr`.
fn measure(addr: SocketAddr, line: &str) -> LoadReport {
    // A run that failed its test has had its turn.
    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let url = format!("ws://{addr}/ws");
    let words = ["load"].into_iter().chain(line.split(' ')).chain(["--url", &url]);
    let cli = Cli::try_parse_from(words).expect("a valid command line");
    load::measure(cli.load).expect("a run that can be carried out")
}

fn json(report: &LoadReport) -> serde_json::Value {
    serde_json::to_value(report).expect("a report is JSON")
}

#[test]
fn idle_connections_all_join_and_hear_one_message() {
    let json = json(&measure(floor("each"), "idle --conns 700 --threads 3 --broadcast"));
    assert_eq!(json["ok"], true, "{json}");
    assert_eq!(json["connect"]["joined"], 700);
    assert_eq!(json["connect"]["threads"], 3);
    assert_eq!(json["connect"]["failed"], serde_json::json!({}));
    assert_eq!(json["broadcast"]["received"], 700);
    assert_eq!(json["broadcast"]["latency"]["count"], 700);
}

#[test]
fn a_window_of_messages_reaches_every_member_in_order() {
    for (mode, threads) in [("each", 1), ("joined", 1), ("each", 2), ("joined", 3)] {
        let line = format!(
            "fanout --members 50 --window 16 --duration-s 1 --warmup-s 0.1 --threads {threads}"
        );
        let json = json(&measure(floor(mode), &line));
        assert_eq!(json["ok"], true, "{mode}: {json}");
        let fanout = &json["fanout"];
        assert_eq!(fanout["expected"], fanout["received"]);
        assert!(fanout["deliveries"].as_u64() > Some(0));
        assert_eq!(fanout["out_of_order"], 0);
        assert_eq!(fanout["given_up"], 0);
        // 120 characters in quotes, inside the envelope, behind a header of four bytes.
        let envelope = r#"{"type":"message","room_id":"load-0","from":"floor","payload":}"#.len();
        assert_eq!(fanout["bytes_per_delivery"], (122 + envelope + 4) as f64);
    }
}

#[test]
fn paced_messages_go_out_at_their_rate_from_several_publishers() {
    let line = "fanout --members 20 --publishers 4 --rate 200 --duration-s 0.5 --warmup-s 0";
    let json = json(&measure(floor("each"), line));
    assert_eq!(json["ok"], true, "{json}");
    assert_eq!(json["fanout"]["lost"], 0);
    let messages = json["fanout"]["expected"].as_u64().expect("a count") / 20;
    let seconds = json["fanout"]["seconds"].as_f64().expect("seconds");
    assert!(messages as f64 >= (seconds - 0.1) * 200.0, "{messages} in {seconds} s");
}

#[test]
fn big_payloads_that_fill_sockets_lose_nothing() {
    for mode in ["each", "joined"] {
        let line = "fanout --members 8 --window 32 --payload-bytes 300000 --duration-s 0.5 \
                    --warmup-s 0";
        let json = json(&measure(floor(mode), line));
        assert_eq!(json["ok"], true, "{mode}: {json}");
        assert_eq!(json["fanout"]["lost"], 0);
    }
}

#[test]
fn who_is_in_several_rooms_hears_each_of_them() {
    for mode in ["each", "joined"] {
        let line = "fanout --rooms 20 --members 4 --rooms-per-member 5 --window 3 --duration-s 0.3 \
                    --warmup-s 0";
        let json = json(&measure(floor(mode), line));
        assert_eq!(json["ok"], true, "{mode}: {json}");
        assert_eq!(json["connect"]["joined"], 16, "four rooms of four, five times over");
        assert_eq!(json["fanout"]["rooms_per_member"], 5);
        let copies = json["fanout"]["received"].as_u64().expect("a number");
        assert!(copies > 0 && copies.is_multiple_of(4), "every message has four copies: {copies}");
    }
}

#[test]
fn silent_members_are_not_waited_for() {
    // So few messages that the kernel keeps them for those who do not read.
    let line = "fanout --members 5 --non-reading 2 --rate 50 --duration-s 0.3 --warmup-s 0";
    let json = json(&measure(floor("each"), line));
    assert_eq!(json["ok"], true, "{json}");
    assert_eq!(json["connect"]["joined"], 7);
    let sent = json["fanout"]["expected"].as_u64().expect("a number") / 5;
    assert_eq!(json["fanout"]["received"], sent * 5);
}

#[test]
fn what_is_only_talk_counts_once_the_question_behind_it_is_answered() {
    for how in ["--burst 1", "--burst 16", "--burst 3 --cut-bytes 11"] {
        let line = format!("ingest --conns 20 {how} --duration-s 0.3 --warmup-s 0.05");
        let json = json(&measure(floor("receive"), &line));
        assert_eq!(json["ok"], true, "{how}: {json}");
        let messages = json["ingest"]["messages"].as_u64().expect("a number");
        let burst = json["ingest"]["burst"].as_u64().expect("a number");
        assert!(messages > 0 && messages.is_multiple_of(burst), "{how}: {messages}");
    }
    let mute = measure(floor("accept"), "ingest --conns 1 --duration-s 0.1 --warmup-s 0");
    assert!(!mute.ok, "a server that answers nothing has taken nothing");
}

#[test]
fn pings_while_nothing_happens_are_counted_and_answered() {
    let json = json(&measure(floor("heartbeat"), "idle --conns 30 --hold-s 1"));
    assert_eq!(json["ok"], true, "{json}");
    assert!(json["hold"]["seconds"].as_f64() >= Some(1.0));
    // The floor of this test pings every 25 s, a few of thirty in a second.
    assert!(json["hold"]["pings"].as_u64() <= Some(30), "{json}");
}

#[test]
fn after_a_storm_everybody_is_back_and_bystanders_lost_nothing() {
    // The floor knows rooms by their number, so some of the crowd hear the bystanders' messages
    // too; they count only their own.
    for how in ["", " --plain-close"] {
        let line = format!("storm --conns 300 --bystanders 5 --before-s 0.2{how}");
        let json = json(&measure(floor("each"), &line));
        assert_eq!(json["ok"], true, "{json}");
        assert_eq!(json["storm"]["cut"], 300);
        assert_eq!(json["storm"]["rejoined"], 300);
        assert_eq!(json["storm"]["bystanders_lost"], 0);
        assert!(json["storm"]["bystanders_before"]["count"].as_u64() > Some(0));
    }
}

#[test]
fn the_cost_of_a_process_is_in_the_report() {
    let pid = std::process::id();
    let line = format!("fanout --members 10 --window 1 --duration-s 0.3 --warmup-s 0 --pid {pid}");
    let json = json(&measure(floor("each"), &line));
    assert!(json["fanout"]["server_cpu_us_per_delivery"].as_f64() > Some(0.0), "{json}");
    assert!(json["memory"]["after"]["rss"].as_u64() > Some(0));
}

#[test]
fn nobody_listening_is_said_clearly() {
    let port = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let addr = port.local_addr().expect("it is bound");
    drop(port);
    let report = measure(addr, "idle --conns 3 --retries 1");
    assert!(!report.ok);
    assert_eq!(report.connect.failed["connection_refused"], 3);
    assert_eq!(report.connect.retried["connection_refused"], 3);
    assert!(report.first_failure.expect("a reason").contains("refused"));
}

/// A server that reads a head and answers `reply`, again and again.
fn answering(reply: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let addr = listener.local_addr().expect("it is bound");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("accepted");
            let mut head = [0; 4096];
            // A client that has gone away meanwhile is no concern of this server.
            let _ = stream.read(&mut head).and_then(|_| stream.write_all(reply.as_bytes()));
        }
    });
    addr
}

#[test]
fn a_wrong_path_shows_the_servers_status_line_and_is_not_tried_again() {
    let addr = answering("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
    let report = measure(addr, "idle --conns 2");
    assert_eq!(report.connect.failed["http_status"], 2);
    assert!(report.connect.retried.is_empty());
    assert!(report.first_failure.expect("a reason").contains("404 Not Found"));
}

#[test]
fn a_busy_server_is_tried_again_when_it_says() {
    let addr = answering("HTTP/1.1 503 Busy\r\nRetry-After: 0\r\n\r\n");
    let report = measure(addr, "idle --conns 2 --retries 2");
    assert_eq!(report.connect.retried["http_503"], 4);
    assert_eq!(report.connect.failed["http_503"], 2);
}

#[test]
fn a_connection_that_waits_for_its_next_try_does_not_time_out_as_well() {
    let addr = answering("HTTP/1.1 503 Busy\r\nRetry-After: 2\r\n\r\n");
    let report = measure(addr, "idle --conns 1 --retries 1 --handshake-timeout-s 1");
    assert_eq!(report.connect.retried.into_iter().collect::<Vec<_>>(), [("http_503", 1)]);
    assert_eq!(report.connect.failed.into_iter().collect::<Vec<_>>(), [("http_503", 1)]);
}

#[test]
fn a_server_that_never_says_joined_is_a_timeout_that_names_the_flag() {
    let line = "idle --conns 2 --ready never --handshake-timeout-s 1 --retries 0";
    let report = measure(floor("each"), line);
    assert_eq!(report.connect.failed["handshake_timeout"], 2);
    assert!(report.first_failure.expect("a reason").contains("--ready"));
}

/// The 101 to the head that a client sends first.
fn welcome(stream: &mut TcpStream) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("a whole head");
        head.extend(byte);
    }
    let head = String::from_utf8(head).expect("ASCII");
    let key =
        head.lines().find_map(|line| line.strip_prefix("Sec-WebSocket-Key: ")).expect("a key");
    let digest = Sha1::digest(format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11"));
    let accept = base64::engine::general_purpose::STANDARD.encode(digest);
    let reply = format!("HTTP/1.1 101 Yes\r\nSec-WebSocket-Accept: {accept}\r\n\r\n");
    stream.write_all(reply.as_bytes()).expect("the client is there");
}

/// Sends a text of at most 125 bytes.
fn tell(stream: &mut TcpStream, text: &str) {
    let length = u8::try_from(text.len()).expect("short");
    assert!(length < 126);
    let frame = [&[0x81, length], text.as_bytes()].concat();
    stream.write_all(&frame).expect("the client is there");
}

/// The next text of a client, of at most 125 bytes; `None` once it has gone.
fn hear(stream: &mut TcpStream) -> Option<String> {
    let mut header = [0; 6];
    stream.read_exact(&mut header).ok()?;
    let [first, second, mask @ ..] = header;
    assert_eq!((first, second & 0x80), (0x81, 0x80), "a whole masked text");
    assert!(second & 0x7f < 126);
    let mut payload = vec![0; usize::from(second & 0x7f)];
    stream.read_exact(&mut payload).ok()?;
    payload.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, key)| *byte ^= key);
    Some(String::from_utf8(payload).expect("text"))
}

/// A server for three that speaks first, wants an answer to every step, and sends what the
/// connection 0 publishes to the two others.
fn speaking_first() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let addr = listener.local_addr().expect("it is bound");
    std::thread::spawn(move || {
        let mut members = Vec::new();
        for _ in 0..3 {
            let mut stream = listener.accept().expect("a client").0;
            welcome(&mut stream);
            tell(&mut stream, r#"hello {\"socket_id\":\"1234.1234\"}"#);
            let answer = hear(&mut stream).expect("an answer");
            let signed = "58df8b0c36d6982b82c3ecf6b4662e34fe8c25bba48f5369f135bf843651c3a4";
            let number = answer.strip_prefix(signed).expect("the right signature").to_owned();
            tell(&mut stream, "2");
            assert_eq!(hear(&mut stream).as_deref(), Some("3"));
            tell(&mut stream, "welcome to load-0");
            members.push((number, stream));
        }
        members.sort_by(|(one, _), (other, _)| one.cmp(other));
        while let Some(message) = hear(&mut members[0].1) {
            members[1..].iter_mut().for_each(|(_, stream)| tell(stream, &message));
        }
    });
    addr
}

#[test]
fn a_server_that_speaks_first_and_never_echoes_is_answered_and_counted_right() {
    let line = "fanout --members 3 --window 2 --duration-s 0.3 --warmup-s 0 --no-echo \
                --answer hello={signature}-{n} --answer 2=3 --ready welcome --message {payload} \
                --sign 7ad3773142a6692b25b8={field:socket_id}:private-foobar";
    let json = json(&measure(speaking_first(), line));
    assert_eq!(json["ok"], true, "{json}");
    assert_eq!(json["fanout"]["lost"], 0);
    assert!(json["fanout"]["deliveries"].as_u64() > Some(0));
    assert_eq!(json["fanout"]["expected"].as_u64().expect("a count") % 2, 0, "two hear each");
}
