//! `campanile load` against the floor, a server that shares no code with the generator or with
//! Campanile.
//!
//! The floor runs on a thread of this process; its connections are in the table of its ring.

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

/// One run at a time: with nine others at once, a run of a third of a second may get no CPU time.
#[allow(clippy::disallowed_types)] // the law is about deliveries; these are tests taking turns
static TURN: std::sync::Mutex<()> = std::sync::Mutex::new(());

/// Runs `campanile load` with the arguments in `line` against `addr`.
fn measure(addr: SocketAddr, line: &str) -> LoadReport {
    // A test that failed has ended its run.
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
fn all_idle_connections_join_and_receive_a_broadcast() {
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
        // A header of four bytes, the envelope, and in it 120 characters in quotes.
        let envelope = r#"{"type":"message","room_id":"load-0","from":"floor","payload":}"#.len();
        assert_eq!(fanout["bytes_per_delivery"], (122 + envelope + 4) as f64);
    }
}

#[test]
fn several_publishers_together_keep_the_rate() {
    let line = "fanout --members 20 --publishers 4 --rate 200 --duration-s 0.5 --warmup-s 0";
    let json = json(&measure(floor("each"), line));
    assert_eq!(json["ok"], true, "{json}");
    assert_eq!(json["fanout"]["lost"], 0);
    let messages = json["fanout"]["expected"].as_u64().expect("a count") / 20;
    let seconds = json["fanout"]["seconds"].as_f64().expect("seconds");
    assert!(messages as f64 >= (seconds - 0.1) * 200.0, "{messages} in {seconds} s");
}

#[test]
fn no_delivery_is_lost_when_large_payloads_fill_sockets() {
    for mode in ["each", "joined"] {
        let line = "fanout --members 8 --window 32 --payload-bytes 300000 --duration-s 0.5 \
                    --warmup-s 0";
        let json = json(&measure(floor(mode), line));
        assert_eq!(json["ok"], true, "{mode}: {json}");
        assert_eq!(json["fanout"]["lost"], 0);
    }
}

#[test]
fn a_member_of_several_rooms_receives_the_messages_of_each() {
    for mode in ["each", "joined"] {
        let line = "fanout --rooms 20 --members 4 --rooms-per-member 5 --window 3 --duration-s 0.3 \
                    --warmup-s 0";
        let json = json(&measure(floor(mode), line));
        assert_eq!(json["ok"], true, "{mode}: {json}");
        assert_eq!(json["connect"]["joined"], 16, "four rooms of four, five times over");
        assert_eq!(json["fanout"]["rooms_per_member"], 5);
        let deliveries = json["fanout"]["received"].as_u64().expect("a number");
        assert!(
            deliveries > 0 && deliveries.is_multiple_of(4),
            "four for each message: {deliveries}"
        );
    }
}

#[test]
fn deliveries_to_non_reading_members_are_not_expected() {
    // Few enough messages to fit into the socket buffers of members that do not read.
    let line = "fanout --members 5 --non-reading 2 --rate 50 --duration-s 0.3 --warmup-s 0";
    let json = json(&measure(floor("each"), line));
    assert_eq!(json["ok"], true, "{json}");
    assert_eq!(json["connect"]["joined"], 7);
    let sent = json["fanout"]["expected"].as_u64().expect("a number") / 5;
    assert_eq!(json["fanout"]["received"], sent * 5);
}

#[test]
fn ingested_messages_count_when_the_question_after_them_is_answered() {
    for how in ["--burst 1", "--burst 16", "--burst 3 --cut-bytes 11"] {
        let line = format!("ingest --conns 20 {how} --duration-s 0.3 --warmup-s 0.05");
        let json = json(&measure(floor("receive"), &line));
        assert_eq!(json["ok"], true, "{how}: {json}");
        let messages = json["ingest"]["messages"].as_u64().expect("a number");
        let burst = json["ingest"]["burst"].as_u64().expect("a number");
        assert!(messages > 0 && messages.is_multiple_of(burst), "{how}: {messages}");
    }
    let unanswered = measure(floor("accept"), "ingest --conns 1 --duration-s 0.1 --warmup-s 0");
    assert!(!unanswered.ok, "without answers no message is known to be taken in");
}

#[test]
fn pings_to_held_connections_are_counted_and_answered() {
    let json = json(&measure(floor("heartbeat"), "idle --conns 30 --hold-s 1"));
    assert_eq!(json["ok"], true, "{json}");
    assert!(json["hold"]["seconds"].as_f64() >= Some(1.0));
    // The floor of this test pings every 25 s, a few of thirty in a second.
    assert!(json["hold"]["pings"].as_u64() <= Some(30), "{json}");
}

#[test]
fn after_a_storm_all_have_joined_again_and_bystanders_lost_nothing() {
    // The floor knows rooms by their number only, so some of those that were cut receive the
    // bystanders' messages too; they count only messages of their own run.
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
fn cpu_time_and_memory_of_a_process_are_in_the_report() {
    let pid = std::process::id();
    let line = format!("fanout --members 10 --window 1 --duration-s 0.3 --warmup-s 0 --pid {pid}");
    let json = json(&measure(floor("each"), &line));
    assert!(json["fanout"]["server_cpu_us_per_delivery"].as_f64() > Some(0.0), "{json}");
    assert!(json["memory"]["after"]["rss"].as_u64() > Some(0));
}

#[test]
fn a_refused_connect_is_reported_as_refused() {
    let port = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let addr = port.local_addr().expect("it is bound");
    drop(port);
    let report = measure(addr, "idle --conns 3 --retries 1");
    assert!(!report.ok);
    assert_eq!(report.connect.failed["connection_refused"], 3);
    assert_eq!(report.connect.retried["connection_refused"], 3);
    assert!(report.first_failure.expect("a reason").contains("refused"));
}

/// A server that answers `reply` to every request.
fn answering(reply: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let addr = listener.local_addr().expect("it is bound");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("accepted");
            let mut head = [0; 4096];
            // A client that has closed its connection needs no answer.
            let _ = stream.read(&mut head).and_then(|_| stream.write_all(reply.as_bytes()));
        }
    });
    addr
}

#[test]
fn a_wrong_path_is_reported_with_the_status_line_and_not_retried() {
    let addr = answering("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
    let report = measure(addr, "idle --conns 2");
    assert_eq!(report.connect.failed["http_status"], 2);
    assert!(report.connect.retried.is_empty());
    assert!(report.first_failure.expect("a reason").contains("404 Not Found"));
}

#[test]
fn a_busy_server_is_retried_after_the_time_in_retry_after() {
    let addr = answering("HTTP/1.1 503 Busy\r\nRetry-After: 0\r\n\r\n");
    let report = measure(addr, "idle --conns 2 --retries 2");
    assert_eq!(report.connect.retried["http_503"], 4);
    assert_eq!(report.connect.failed["http_503"], 2);
}

#[test]
fn a_connection_that_waits_for_a_retry_does_not_time_out_as_well() {
    let addr = answering("HTTP/1.1 503 Busy\r\nRetry-After: 2\r\n\r\n");
    let report = measure(addr, "idle --conns 1 --retries 1 --handshake-timeout-s 1");
    assert_eq!(report.connect.retried.into_iter().collect::<Vec<_>>(), [("http_503", 1)]);
    assert_eq!(report.connect.failed.into_iter().collect::<Vec<_>>(), [("http_503", 1)]);
}

#[test]
fn a_join_without_confirmation_is_a_timeout_that_names_the_flag() {
    let line = "idle --conns 2 --ready never --handshake-timeout-s 1 --retries 0";
    let report = measure(floor("each"), line);
    assert_eq!(report.connect.failed["handshake_timeout"], 2);
    assert!(report.first_failure.expect("a reason").contains("--ready"));
}

/// Reads a request and answers 101.
fn upgrade(stream: &mut TcpStream) {
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
    stream.write_all(reply.as_bytes()).expect("the client is connected");
}

/// Sends a text of at most 125 bytes.
fn send_text(stream: &mut TcpStream, text: &str) {
    let length = u8::try_from(text.len()).expect("short");
    assert!(length < 126);
    let frame = [&[0x81, length], text.as_bytes()].concat();
    stream.write_all(&frame).expect("the client is connected");
}

/// The next text of a client, of at most 125 bytes; `None` if it has closed the connection.
fn read_text(stream: &mut TcpStream) -> Option<String> {
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

/// A server for three clients. It speaks first, checks the reply to every step, and delivers what
/// connection 0 publishes to the two others.
fn server_that_speaks_first() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let addr = listener.local_addr().expect("it is bound");
    std::thread::spawn(move || {
        let mut members = Vec::new();
        for _ in 0..3 {
            let mut stream = listener.accept().expect("a client").0;
            upgrade(&mut stream);
            send_text(&mut stream, r#"hello {\"socket_id\":\"1234.1234\"}"#);
            let answer = read_text(&mut stream).expect("an answer");
            let signed = "58df8b0c36d6982b82c3ecf6b4662e34fe8c25bba48f5369f135bf843651c3a4";
            let number = answer.strip_prefix(signed).expect("the right signature").to_owned();
            send_text(&mut stream, "2");
            assert_eq!(read_text(&mut stream).as_deref(), Some("3"));
            send_text(&mut stream, "welcome to load-0");
            members.push((number, stream));
        }
        members.sort_by(|(one, _), (other, _)| one.cmp(other));
        while let Some(message) = read_text(&mut members[0].1) {
            members[1..].iter_mut().for_each(|(_, stream)| send_text(stream, &message));
        }
    });
    addr
}

#[test]
fn a_server_that_speaks_first_and_does_not_echo_is_replied_to_and_counted_right() {
    let line = "fanout --members 3 --window 2 --duration-s 0.3 --warmup-s 0 --no-echo \
                --answer hello={signature}-{n} --answer 2=3 --ready welcome --message {payload} \
                --sign 7ad3773142a6692b25b8={field:socket_id}:private-foobar";
    let json = json(&measure(server_that_speaks_first(), line));
    assert_eq!(json["ok"], true, "{json}");
    assert_eq!(json["fanout"]["lost"], 0);
    assert!(json["fanout"]["deliveries"].as_u64() > Some(0));
    assert_eq!(
        json["fanout"]["expected"].as_u64().expect("a count") % 2,
        0,
        "two deliveries for each message"
    );
}
