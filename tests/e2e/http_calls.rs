//! HTTP requests on the public port that the ops thread answers: who may ask, in which order answers
//! come, and what large, slow and many requests cost.

use crate::client::Client;
use crate::http::{self, Reply};
use crate::node::Node;
use crate::redis::{Redis, wait_until};
use std::io::{Read, Write};
use std::net::TcpStream;

const KEY: &str = "0123456789abcdef";
const PUBLIC: [&str; 6] =
    ["--shards", "1", "--ops-api-key", KEY, "--ops-public-paths", "/v1/publish,/v1/rooms"];

fn node(more: &[&str]) -> Node {
    Node::start_ready(&[&PUBLIC[..], more].concat())
}

/// A request of whoever has the key, without what ends the head.
fn head(method: &str, path: &str) -> String {
    format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n\
         Content-Type: application/json\r\n"
    )
}

fn publish(payload: &str) -> String {
    publish_to("tower", payload)
}

/// A publish to a room.
fn publish_to(room: &str, payload: &str) -> String {
    let body = format!(r#"{{"room_id":"{room}","payload":{payload}}}"#);
    format!("{}Content-Length: {}\r\n\r\n{body}", head("POST", "/v1/publish"), body.len())
}

/// The next answer of a connection that goes on.
fn next_reply(stream: &mut TcpStream) -> Reply {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("an answer");
        bytes.push(byte[0]);
    }
    let reply = Reply::parse(&bytes).expect("a head");
    let length = reply.header("Content-Length").map_or(0, |text| text.parse().expect("a number"));
    let mut body = vec![0; length];
    stream.read_exact(&mut body).expect("a body");
    Reply { body: String::from_utf8(body).expect("UTF-8"), ..reply }
}

fn ask(node: &Node, request: &str) -> Reply {
    let mut stream = http::connect(node.addr);
    stream.write_all(request.as_bytes()).expect("it reads");
    next_reply(&mut stream)
}

fn refused(node: &Node, reason: &str) -> u64 {
    node.metric_where("campanile_connections_rejected_total", &format!("reason=\"{reason}\""))
}

#[test]
fn the_api_is_there_for_whoever_shows_the_key_and_for_nobody_else() {
    let node = node(&[]);
    assert_eq!(ask(&node, &publish("1")).status, 200);
    assert_eq!(ask(&node, &(head("GET", "/v1/rooms") + "\r\n")).status, 200);
    assert_eq!(ask(&node, &(head("GET", "/v1/rooms/none/presence") + "\r\n")).status, 404);
    for request in [
        publish("1").replace(KEY, "0123456780"),
        publish("1").replace("Authorization", "X-Authorization"),
        head("GET", "/v1/stats") + "\r\n",
        head("GET", "/metrics") + "\r\n",
        head("GET", "/readyz") + "\r\n",
        head("GET", "/healthz") + "\r\n",
        head("GET", "/v1/roomsy") + "\r\n",
        head("GET", "/v1/rooms/../stats") + "\r\n",
        head("GET", "/v1/rooms/..%2fstats") + "\r\n",
    ] {
        let reply = ask(&node, &request);
        assert_eq!(reply.status, 404, "{request}\n{reply:?}");
    }
    let closed = Node::start_ready(&["--shards", "1", "--ops-api-key", KEY]);
    let reply = ask(&closed, &publish("1"));
    assert_eq!((reply.status, reply.header("Connection")), (404, Some("close")));
    assert!(reply.body.contains("/ws"), "as for every other path: {reply:?}");
}

#[test]
fn requests_of_one_connection_are_answered_in_their_order() {
    const COUNT: usize = 40;
    let node = node(&[]);
    let mut member = Client::join(node.addr, &["tower"]);
    let mut stream = http::connect(node.addr);
    for n in 0..3 {
        stream.write_all(publish(&n.to_string()).as_bytes()).expect("it reads");
        assert_eq!(next_reply(&mut stream).header("Connection"), Some("keep-alive"));
        assert_eq!(member.hear_payload(), n);
    }
    // Publishes and questions in turn, all at once.
    let request = |n: usize| match n % 2 {
        0 => publish(&n.to_string()),
        _ => head("GET", &format!("/v1/rooms/{n}")) + "\r\n",
    };
    let all: String = (0..COUNT).map(request).collect();
    stream.write_all(all.as_bytes()).expect("it reads");
    for n in 0..COUNT {
        let reply = next_reply(&mut stream);
        assert_eq!(reply.status, if n % 2 == 0 { 200 } else { 404 }, "{n}: {reply:?}");
    }
    for n in (0..COUNT).step_by(2) {
        assert_eq!(member.hear_payload(), n);
    }
    // It may still become a WebSocket, or end with its last request.
    let mut client = Client::over(stream, node.addr, "/ws", "").expect("it is opened");
    client.hear_type("welcome");
    let mut last = http::connect(node.addr);
    let closing = publish("1").replace("Host: x\r\n", "Host: x\r\nConnection: close\r\n");
    last.write_all((publish("0") + &closing + &publish("2")).as_bytes()).expect("it reads");
    assert_eq!(next_reply(&mut last).status, 200);
    let reply = Reply::read(last).expect("an answer, and the end");
    assert_eq!((reply.status, reply.header("Connection")), (200, Some("close")));
    assert_eq!((member.hear_payload(), member.hear_payload()), (0.into(), 1.into()));
    member.nothing_more();
}

#[test]
fn a_client_that_closes_its_half_hears_its_answer() {
    let node = node(&[]);
    for _ in 0..50 {
        let mut stream = http::connect(node.addr);
        stream.write_all(publish("1").as_bytes()).expect("it reads");
        stream.shutdown(std::net::Shutdown::Write).expect("a live socket");
        assert_eq!(Reply::read(stream).expect("an answer").status, 200);
    }
    node.wait_until_empty();
    assert_eq!(node.metric("campanile_connections_rejected_total"), 0);
    assert_eq!(node.metric("campanile_connection_probes_total"), 0);
}

#[test]
fn a_connection_that_asks_nothing_more_ends_without_a_word() {
    let node = node(&["--limits-handshake-timeout-ms", "500"]);
    let mut stream = http::connect(node.addr);
    stream.write_all(publish("1").as_bytes()).expect("it reads");
    assert_eq!(next_reply(&mut stream).status, 200);
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).expect("it is closed");
    assert_eq!(rest, b"");
    node.wait_until_empty();
    assert_eq!(node.metric("campanile_connections_rejected_total"), 0);
}

const BODY: [&str; 6] = [
    "--limits-message-bytes-max",
    "1048576",
    "--limits-outbox-bytes-max",
    "8388608",
    "--limits-http-body-bytes-max",
    "1100000",
];

#[test]
fn a_body_of_a_mebibyte_arrives_whole_and_a_larger_one_is_refused() {
    let node = node(&BODY);
    let mut member = Client::join(node.addr, &["tower"]);
    let payload = format!("{:?}", "x".repeat((1 << 20) - 2));
    assert_eq!(ask(&node, &publish(&payload)).status, 200);
    assert_eq!(member.hear_payload().as_str().map(str::len), Some(payload.len() - 2));
    // A client that asks first whether it may send its body (curl does).
    let request = publish(&payload).replace("Host: x\r\n", "Host: x\r\nExpect: 100-continue\r\n");
    let (head_text, body) = request.split_once("\r\n\r\n").expect("a head and a body");
    let mut stream = http::connect(node.addr);
    stream.write_all(format!("{head_text}\r\n\r\n").as_bytes()).expect("it reads");
    assert_eq!(next_reply(&mut stream).status, 100);
    stream.write_all(body.as_bytes()).expect("it reads");
    assert_eq!(next_reply(&mut stream).status, 200);
    assert_eq!(member.hear_payload().as_str().map(str::len), Some(payload.len() - 2));
    let too_large = head("POST", "/v1/publish") + "Content-Length: 1100001\r\n\r\n";
    assert_eq!(ask(&node, &too_large).status, 413);
    let chunked = head("POST", "/v1/publish") + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    assert_eq!(ask(&node, &chunked).status, 411);
    node.wait_for("campanile_http_calls", 0);
    node.wait_for("campanile_handshake_bytes", 0);
    wait_until("the bodies are counted", || {
        node.metric("campanile_http_body_bytes_total") > 2 << 20
    });
}

#[test]
fn a_body_that_drips_is_cut_off_when_its_time_is_over() {
    let node =
        node(&["--limits-http-body-timeout-ms", "600", "--limits-handshake-timeout-ms", "300"]);
    let request = publish(&"1".repeat(100));
    let (first, rest) = request.split_at(request.len() - 50);
    let mut stream = http::connect(node.addr);
    stream.write_all(first.as_bytes()).expect("it reads");
    node.wait_for("campanile_http_calls", 1);
    let mut rest = rest.bytes();
    wait_until("its time is over", || {
        // So slowly that the body is never whole.
        if rest.len() > 1 && node.is_ready() {
            let _ = stream.write_all(&[rest.next().expect("some are left")]);
        }
        refused(&node, "body_timeout") == 1
    });
    assert_eq!(Reply::read(stream).expect("an answer").status, 408);
    node.wait_for("campanile_http_calls", 0);
}

const ASKED: usize = 24;

/// The largest answer to them.
const ANSWER_BYTES_MAX: u64 = 12 * 61_000;

/// Large answers: one of them waits at a time, in the order of the questions.
#[test]
fn a_client_that_asks_much_and_reads_late_has_one_answer_made_at_a_time() {
    let node = node(&["--namespaces", "tower: history_size=100"]);
    let payload = format!("{:?}", "x".repeat(60_000));
    for _ in 0..12 {
        assert_eq!(ask(&node, &publish_to("tower:1", &payload)).status, 200);
    }
    let limit = |n: usize| 12 - n % 8;
    let path = |n: usize| format!("/v1/rooms/tower:1/history?limit={}", limit(n));
    let question = |n: usize| head("GET", &path(n)) + "\r\n";
    let mut stream = http::connect(node.addr);
    let all: String = (0..ASKED).map(question).collect();
    stream.write_all(all.as_bytes()).expect("it reads");
    let outbox_bytes = || node.metric("campanile_outbox_bytes");
    wait_until("the socket takes no more", || outbox_bytes() > 0);
    for n in 0..ASKED {
        assert!(outbox_bytes() <= 2 * ANSWER_BYTES_MAX, "{} bytes wait", outbox_bytes());
        let reply = next_reply(&mut stream);
        assert_eq!(reply.status, 200);
        let messages = reply.json()["messages"].as_array().expect("a list").len();
        assert_eq!(messages, limit(n), "in their order");
    }
    drop(stream);
    node.wait_until_empty();
}

#[test]
fn a_client_that_never_reads_its_answers_is_cut_off() {
    let more = ["--namespaces", "tower: history_size=100", "--limits-handshake-timeout-ms", "300"];
    let node = node(&more);
    let payload = format!("{:?}", "x".repeat(60_000));
    for _ in 0..12 {
        assert_eq!(ask(&node, &publish_to("tower:1", &payload)).status, 200);
    }
    let question = head("GET", "/v1/rooms/tower:1/history?limit=100") + "\r\n";
    let mut stream = http::connect(node.addr);
    stream.write_all(question.repeat(ASKED).as_bytes()).expect("it reads");
    wait_until("the socket takes no more", || node.metric("campanile_outbox_bytes") > 0);
    node.wait_until_empty();
    drop(stream);
}

#[test]
fn a_request_that_is_carried_out_while_the_node_drains_is_answered() {
    let redis = Redis::start();
    let url = redis.url();
    let mut node = node(&["--backplane", &url, "--drain-ms", "0"]);
    redis.freeze();
    let mut stream = http::connect(node.addr);
    stream.write_all(publish("1").as_bytes()).expect("it reads");
    node.wait_for("campanile_http_calls", 1);
    let mut idle = http::connect(node.addr);
    node.wait_for("campanile_connections_handshaking", 2);
    node.signal("-TERM");
    let mut rest = Vec::new();
    idle.read_to_end(&mut rest).expect("it is ended");
    redis.thaw();
    assert!([200, 503].contains(&Reply::read(stream).expect("an answer").status));
    assert!(node.ended().success());
}

const CROWD: usize = 1000;
const PLACES: usize = 8;

#[test]
fn of_a_thousand_requests_at_once_as_many_as_may_be_are_served_and_the_others_come_back() {
    let places = PLACES.to_string();
    let node = node(&["--limits-http-calls-max", &places, "--limits-http-body-bytes-max", "65536"]);
    let mut here = Client::join(node.addr, &["tower"]);
    let payload = "1".repeat(50_000);
    let request = publish(&format!("\"{payload}\""));
    let (most, end) = request.split_at(request.len() - 1);
    let mut crowd: Vec<TcpStream> = (0..CROWD)
        .map(|_| {
            let mut stream = http::connect(node.addr);
            // It may be refused already.
            let _ = stream.write_all(most.as_bytes());
            stream
        })
        .collect();
    wait_until("the others are refused", || {
        refused(&node, "http_calls") == (CROWD - PLACES) as u64
    });
    node.wait_for("campanile_http_calls", PLACES as u64);
    let held = node.metric("campanile_handshake_bytes");
    assert!(held <= 2 * (PLACES * 65536) as u64, "{held} bytes are held");
    here.say(r#"{"room_id":"tower","payload":"still here"}"#);
    assert_eq!(here.hear_payload(), "still here");
    let mut statuses = [0, 0];
    for stream in &mut crowd {
        let _ = stream.write_all(end.as_bytes());
        let reply = next_reply(stream);
        match reply.status {
            200 => statuses[0] += 1,
            503 => {
                assert_eq!(reply.header("Retry-After"), Some("1"));
                statuses[1] += 1;
            }
            other => panic!("{other}: {reply:?}"),
        }
    }
    assert_eq!(statuses, [PLACES, CROWD - PLACES]);
    for _ in 0..PLACES {
        assert_eq!(here.hear_payload().as_str(), Some(&payload[..]));
    }
    drop(crowd);
    assert_eq!(ask(&node, &publish("1")).status, 200, "there are places again");
    node.wait_for("campanile_http_calls", 0);
}

#[test]
fn bodies_of_strangers_take_no_place() {
    let node = node(&["--limits-http-calls-max", "1"]);
    let stranger = publish("1").replace(KEY, "a guessed key");
    let (most, _) = stranger.split_at(stranger.len() - 1);
    let mut crowd: Vec<TcpStream> = (0..50).map(|_| http::connect(node.addr)).collect();
    for stream in &mut crowd {
        stream.write_all(most.as_bytes()).expect("it reads");
    }
    assert!(crowd.iter_mut().all(|stream| next_reply(stream).status == 404));
    assert_eq!(ask(&node, &publish("1")).status, 200);
}
