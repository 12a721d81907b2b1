//! The echo path against RFC 6455, paragraph by paragraph, with a client of our own that can be
//! impolite. Outside suites can be pointed at the same path.

use crate::client::{BINARY, CLOSE, CONTINUATION, Client, FIN, PING, PONG, TEXT, frame};
use crate::node::Node;

fn node() -> Node {
    Node::start_ready(&["--shards", "1", "--echo-path", "/echo"])
}

fn open(node: &Node) -> Client {
    Client::open(node.addr, "/echo")
}

/// Some bytes that are text.
fn text(bytes: usize) -> Vec<u8> {
    (b'a'..=b'z').cycle().take(bytes).collect()
}

fn echoes(client: &mut Client, first: u8, payload: &[u8]) {
    client.send(first, payload);
    let heard = client.next_data();
    assert_eq!(heard.first, first);
    assert!(heard.payload == payload, "{} bytes came back different", payload.len());
}

#[test]
fn messages_of_every_size_come_back_as_they_went() {
    let node = node();
    let mut client = open(&node);
    // RFC 6455 §5.2: the three forms of the length, and their edges.
    for bytes in [0, 1, 125, 126, 127, 128, 65_535, 65_536, 65_537, 1 << 20] {
        echoes(&mut client, FIN | TEXT, &text(bytes));
        let binary: Vec<u8> = (0..bytes).map(|n| n as u8).collect();
        echoes(&mut client, FIN | BINARY, &binary);
    }
    client.close();
}

#[test]
fn sixteen_mebibytes_come_back_and_one_byte_more_is_refused() {
    let node = node();
    let mut client = open(&node);
    echoes(&mut client, FIN | BINARY, &vec![7; 16 << 20]);
    let mut head = frame(FIN | BINARY, &[]);
    head.truncate(1);
    head.extend([0x80 | 127]);
    head.extend(((16u64 << 20) + 1).to_be_bytes());
    head.extend([0; 4]);
    // Known from the header: not one byte of it need be sent.
    client.send_raw(&head);
    assert_eq!(client.closed_with().0, 1009);
}

#[test]
fn a_message_in_fragments_comes_back_whole_with_control_frames_in_between() {
    let node = node();
    let mut client = open(&node);
    client.send(TEXT, b"one ");
    client.send(FIN | PING, b"still there?");
    assert_eq!(client.next_data().payload, b"still there?", "at once, not after the message");
    client.send(CONTINUATION, b"");
    client.send(FIN | PONG, b"nobody asked");
    client.send(CONTINUATION, b"two ");
    client.send(FIN | CONTINUATION, "drei €".as_bytes());
    assert_eq!(client.next_data().payload, "one two drei €".as_bytes());
    for byte in frame(FIN | TEXT, "byte for byte €".as_bytes()) {
        client.send_raw(&[byte]);
    }
    assert_eq!(client.next_data().payload, "byte for byte €".as_bytes());
    client.close();
}

#[test]
fn every_ping_is_answered_with_its_own_bytes() {
    let node = node();
    let mut client = open(&node);
    for bytes in [0, 1, 124, 125] {
        let payload: Vec<u8> = (0..bytes).map(|n| 255 - n as u8).collect();
        client.send(FIN | PING, &payload);
        let pong = client.next_frame().expect("it lives");
        assert_eq!((pong.first, pong.payload), (FIN | PONG, payload));
    }
    client.send_raw(&[frame(FIN | PING, b"a"), frame(FIN | PING, b"b")].concat());
    for payload in [b"a", b"b"] {
        assert_eq!(client.next_frame().expect("it lives").payload, payload);
    }
}

#[test]
fn text_is_valid_utf_8_or_ends_the_connection() {
    let node = node();
    let good = ["κόσμε", "\u{7f}\u{80}\u{7ff}\u{800}\u{ffff}\u{10000}\u{10ffff}", "\u{feff}", "\0"];
    let mut client = open(&node);
    for text in good {
        echoes(&mut client, FIN | TEXT, text.as_bytes());
        for cut in 0..=text.len() {
            client.send(TEXT, &text.as_bytes()[..cut]);
            client.send(FIN | CONTINUATION, &text.as_bytes()[cut..]);
            assert_eq!(client.next_data().payload, text.as_bytes(), "cut at {cut}");
        }
    }
    let bad: [&[u8]; 9] = [
        b"\x80",
        b"\xc0\xaf",
        b"ok \xff",
        b"\xed\xa0\x80",
        b"\xf4\x90\x80\x80",
        b"\xe2\x82",
        b"\xf0\x80\x80\x80",
        b"\xc3(",
        b"\xfe",
    ];
    for bytes in bad {
        for cut in 0..=bytes.len() {
            let mut client = open(&node);
            client.send(TEXT, &bytes[..cut]);
            // It may have been refused already.
            let rest = frame(FIN | CONTINUATION, &bytes[cut..]);
            let _ = std::io::Write::write_all(&mut client.stream, &rest);
            assert_eq!(client.closed_with().0, 1007, "{bytes:x?} cut at {cut}");
        }
    }
}

#[test]
fn every_violation_has_its_close_code() {
    let node = node();
    let unmasked = |first: u8, payload: &[u8]| [&[first, payload.len() as u8], payload].concat();
    let mut rsv: Vec<(String, Vec<u8>)> = [0x40, 0x20, 0x10, 0x70]
        .iter()
        .map(|bits| (format!("reserved bits {bits:#x}"), frame(FIN | bits | TEXT, b"x")))
        .collect();
    rsv.extend(
        [3, 4, 5, 6, 7, 11, 12, 13, 14, 15]
            .iter()
            .map(|opcode| (format!("opcode {opcode}"), frame(FIN | opcode, b"x"))),
    );
    let long = |opcode: u8| [&frame(FIN | opcode, &[0; 126])[..]].concat();
    let cases = [
        ("unmasked", unmasked(FIN | TEXT, b"x")),
        ("a fragmented ping", frame(PING, b"")),
        ("a long ping", long(PING)),
        ("a long close", long(CLOSE)),
        ("a continuation of nothing", frame(FIN | CONTINUATION, b"x")),
        ("a message in a message", [frame(TEXT, b"a"), frame(FIN | TEXT, b"b")].concat()),
        ("a long form for a short length", vec![FIN | TEXT, 0xfe, 0, 5, 0, 0, 0, 0]),
        ("the top bit of a length", vec![FIN | BINARY, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 1]),
        ("half a close code", frame(FIN | CLOSE, &[3])),
    ];
    let cases = cases.into_iter().map(|(what, bytes)| (what.to_owned(), bytes));
    for (what, bytes) in cases.chain(rsv) {
        let mut client = open(&node);
        client.send_raw(&bytes);
        let (code, reason) = client.closed_with();
        assert_eq!(code, 1002, "{what}: {reason}");
        assert!(!reason.is_empty());
    }
}

#[test]
fn a_close_is_answered_and_a_wrong_close_code_is_a_violation() {
    let node = node();
    for code in (0..=1016).chain([1100, 2000, 2999, 3000, 3999, 4000, 4999, 5000, 65_535u16]) {
        let may_be_sent = matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999);
        // All of 0..=999 is one case; three of it are enough.
        if (2..998).contains(&code) {
            continue;
        }
        let mut client = open(&node);
        client.send(FIN | CLOSE, &[&code.to_be_bytes()[..], b"why"].concat());
        let heard = client.closed_with().0;
        assert_eq!(heard, if may_be_sent { code } else { 1002 }, "its own code is the answer");
    }
    let mut client = open(&node);
    client.send(FIN | CLOSE, b"");
    assert_eq!(client.closed_with().0, 0, "no code is answered with none");
    let mut client = open(&node);
    client.send(FIN | CLOSE, &[&1000u16.to_be_bytes()[..], b"\xff"].concat());
    assert_eq!(client.closed_with().0, 1007);
}

#[test]
fn what_follows_a_close_is_not_read() {
    let node = node();
    let mut client = open(&node);
    let after = [frame(FIN | CLOSE, &1000u16.to_be_bytes()), frame(FIN | TEXT, b"late")].concat();
    client.send_raw(&after);
    assert_eq!(client.closed_with().0, 1000);
}

#[test]
fn frames_that_come_with_the_request_are_answered_too() {
    let node = node();
    let head = crate::client::request_head(node.addr, "/echo", "");
    let mut stream = crate::http::connect(node.addr);
    let both = [head.as_bytes(), &frame(FIN | TEXT, b"early")].concat();
    std::io::Write::write_all(&mut stream, &both).expect("it reads");
    let mut heard = Vec::new();
    while !heard.ends_with(b"early") {
        let mut bytes = [0; 1024];
        let n = std::io::Read::read(&mut stream, &mut bytes).expect("it answers");
        assert_ne!(n, 0, "{}", String::from_utf8_lossy(&heard));
        heard.extend_from_slice(&bytes[..n]);
    }
    assert!(heard.starts_with(b"HTTP/1.1 101 "));
}

#[test]
fn compression_is_declined_by_saying_nothing_of_it() {
    let node = node();
    let offer = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n";
    let mut client = Client::try_open(node.addr, "/echo", offer).expect("an offer is no demand");
    echoes(&mut client, FIN | TEXT, b"plain");
}
