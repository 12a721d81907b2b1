//! What a WebSocket client can do wrong on the native path, and that only it suffers.

use crate::client::{BINARY, CONTINUATION, Client, FIN, PING, TEXT, frame, header};
use crate::node::Node;
use std::io::Write;

#[test]
fn every_violation_ends_with_its_code_and_nobody_else_notices() {
    let node = Node::start_ready(&["--shards", "2"]);
    let mut watcher = Client::join(node.addr, &["tower"]);
    let cases: [(&str, u16, Vec<u8>); 6] = [
        ("unmasked", 1002, [&header(FIN | TEXT, 2)[..], b"{}"].concat()),
        ("reserved bit", 1002, frame(FIN | 0x40 | TEXT, b"{}")),
        ("a ping of 126 bytes", 1002, frame(FIN | PING, &[0; 126])),
        ("binary", 1003, frame(FIN | BINARY, b"{}")),
        ("not UTF-8", 1007, frame(FIN | TEXT, b"{\"type\":\"\xff\"}")),
        ("too big", 1009, frame(FIN | TEXT, &[b' '; 65_537])),
    ];
    for (what, code, bytes) in &cases {
        let mut client = Client::join(node.addr, &["tower"]);
        let _ = client.stream.write_all(bytes);
        let (heard, reason) = client.close_frame();
        assert_eq!(heard, *code, "{what}: {reason}");
        client.send_raw(&frame(FIN | 8, &code.to_be_bytes()));
    }
    watcher.say(r#"{"room_id":"tower","payload":"all well"}"#);
    assert_eq!(watcher.hear_payload(), "all well");
    node.wait_for("campanile_connections", 1);
    node.wait_for("campanile_members", 2);
    let closes = |reason: &str| {
        node.metric_where("campanile_connections_closed_total", &format!("reason=\"{reason}\""))
    };
    node.wait_for_fresh_metrics();
    node.wait_for("campanile_connections_closing", 0);
    assert_eq!((closes("protocol"), closes("unsupported"), closes("too_big")), (4, 1, 1));
}

#[test]
fn text_that_breaks_off_inside_a_character_is_found_wherever_it_was_cut() {
    let node = Node::start_ready(&["--shards", "1"]);
    let text = r#"{"type":"ping","x":"é€😀"}"#.as_bytes();
    let mut whole = Client::join(node.addr, &[]);
    for cut in 0..=text.len() {
        whole.send(TEXT, &text[..cut]);
        whole.send(FIN | CONTINUATION, &text[cut..]);
        assert_eq!(whole.hear()["type"], "pong", "a cut at {cut} is no fault");
        let broken = std::str::from_utf8(&text[..cut]).is_err();
        if broken {
            let mut client = Client::join(node.addr, &[]);
            client.send(FIN | TEXT, &text[..cut]);
            assert_eq!(client.closed_with().0, 1007, "cut at {cut}");
        }
    }
}

#[test]
fn a_message_of_endless_fragments_is_refused_when_it_is_too_long() {
    let node = Node::start_ready(&["--shards", "1", "--limits-message-bytes-max", "1000"]);
    let mut client = Client::join(node.addr, &[]);
    client.send(TEXT, b"");
    let mut fragments = 0;
    // Also fragments without a byte do not make it immortal: they are simply not a message yet.
    for _ in 0..10_000 {
        client.send(CONTINUATION, b"");
    }
    while client.stream.write_all(&frame(CONTINUATION, &[b' '; 100])).is_ok() && fragments < 10 {
        fragments += 1;
    }
    assert_eq!(client.closed_with().0, 1009);
}

#[test]
fn exactly_the_longest_message_is_understood() {
    let node = Node::start_ready(&["--shards", "1"]);
    let mut client = Client::join(node.addr, &["tower"]);
    let around = r#"{"room_id":"tower","payload":""}"#;
    let payload = "x".repeat(65_536 - around.len());
    client.say(format!(r#"{{"room_id":"tower","payload":"{payload}"}}"#));
    assert_eq!(client.hear_payload(), payload.as_str());
}
