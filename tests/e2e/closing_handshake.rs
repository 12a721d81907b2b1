//! How one connection ends when the peer begins it: RFC 6455 §5.5.1, §7.1.5.

use crate::client::{CLOSE, Client, FIN, PING, TEXT, frame, request_head};
use crate::http::{self, Reply};
use crate::node::Node;
use crate::other_clients::node_js;
use serde_json::{Value, json};
use std::io::Write;
use std::net::Shutdown;

/// Often enough that each order in which a shard may see the frame and the end comes.
const ROUNDS: usize = 100;

#[test]
fn a_close_frame_with_fin_right_behind_it_is_answered_with_its_own_code() {
    let node = Node::start_ready(&["--shards", "2"]);
    let codes: [&[u8]; 4] = [b"\x03\xe8", b"\x0b\xb8 why", b"\x13\x87", b""];
    for round in 0..ROUNDS {
        for payload in codes {
            let mut client = Client::join(node.addr, &["tower"]);
            let bytes = match round % 2 {
                0 => frame(FIN | CLOSE, payload),
                // What it asked for before that is answered as well, or at least done.
                _ => {
                    [frame(FIN | TEXT, br#"{"type":"ping"}"#), frame(FIN | CLOSE, payload)].concat()
                }
            };
            client.send_raw(&bytes);
            client.stream.shutdown(Shutdown::Write).expect("it is connected");
            let code = payload.first_chunk().map_or(0, |code| u16::from_be_bytes(*code));
            assert_eq!(client.closed_with(), (code, String::new()), "in round {round}");
        }
    }
    node.wait_until_empty();
    let closes = |reason: &str| {
        node.metric_where("campanile_connections_closed_total", &format!("reason=\"{reason}\""))
    };
    assert_eq!(closes("client") as usize, ROUNDS * codes.len());
}

#[test]
fn what_was_said_before_a_fin_is_answered_to_its_end() {
    let node = Node::start_ready(&["--shards", "1"]);
    for _ in 0..ROUNDS {
        let mut client = Client::join(node.addr, &[]);
        let pings = frame(FIN | TEXT, br#"{"type":"ping"}"#).repeat(50);
        client.send_raw(&pings);
        client.stream.shutdown(Shutdown::Write).expect("it is connected");
        let mut answers = 0;
        while let Some(frame) = client.next_frame() {
            // Its own half is closed, so a ping of the server cannot be answered.
            assert!(matches!(frame.opcode(), TEXT | PING), "it sent no close frame: {frame:?}");
            answers += usize::from(frame.payload == br#"{"type":"pong"}"#);
        }
        assert_eq!(answers, 50);
    }
    node.wait_until_empty();
    assert_eq!(
        node.metric_where("campanile_connections_closed_total", "reason=\"connection_lost\"")
            as usize,
        ROUNDS
    );
}

#[test]
fn a_request_for_the_page_with_fin_right_behind_it_is_answered() {
    let node = Node::start_ready(&["--shards", "1"]);
    for _ in 0..ROUNDS {
        let mut stream = http::connect(node.addr);
        stream.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").expect("it reads");
        stream.shutdown(Shutdown::Write).expect("it is connected");
        let reply = Reply::read(stream).expect("an answer");
        assert_eq!(reply.status, 200);
    }
    let half = request_head(node.addr, "/ws", "").split_off(20);
    let mut stream = http::connect(node.addr);
    stream.write_all(half.as_bytes()).expect("it reads");
    stream.shutdown(Shutdown::Write).expect("it is connected");
    node.wait_until_empty();
}

#[test]
fn clients_of_the_ws_library_that_half_close_hear_their_own_code() {
    let node = Node::start_ready(&["--shards", "2"]);
    for code in ["1000", "4001"] {
        let url = format!("ws://{}/ws", node.addr);
        let output =
            node_js("clients/half_close.js").args([&url, "200", code]).output().expect("Node runs");
        let heard: Value = serde_json::from_slice(&output.stdout).expect("one line of JSON");
        assert_eq!(heard, json!({code: 200}), "{}", String::from_utf8_lossy(&output.stderr));
    }
    node.wait_until_empty();
}
