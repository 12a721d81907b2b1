//! What does not become a WebSocket: slow, oversized, wrong and foreign requests.

use crate::client::request_head;
use crate::http::{self, Reply};
use crate::node::Node;
use std::io::Write;
use std::net::TcpStream;

fn answer(node: &Node, request: impl AsRef<[u8]>) -> Reply {
    let mut stream = http::connect(node.addr);
    // The server may have answered and closed before it took all of it.
    let _ = stream.write_all(request.as_ref());
    Reply::read(stream).unwrap_or_else(|| {
        panic!("no answer to {:?}", String::from_utf8_lossy(&request.as_ref()[..40]))
    })
}

#[test]
fn each_wrong_request_is_told_what_is_wrong() {
    let node = Node::start_ready(&["--shards", "2"]);
    let good = request_head(node.addr, "/ws", "");
    let without = |name: &str| {
        let lines = good.split_inclusive("\r\n").filter(|line| !line.starts_with(name));
        lines.collect::<String>()
    };
    let with = |line: &str| {
        good.replace("Upgrade: websocket\r\n", &format!("Upgrade: websocket\r\n{line}\r\n"))
    };
    let twice = |name: &str| {
        let line = good.lines().find(|line| line.starts_with(name)).expect("it is there");
        with(line)
    };
    let cases = [
        (405, good.replacen("GET", "POST", 1)),
        (405, good.replacen("GET", "DELETE", 1)),
        (505, good.replace("HTTP/1.1", "HTTP/1.0")),
        (400, good.replace("HTTP/1.1", "HTTP/9.9")),
        (404, good.replace("/ws", "/nowhere")),
        (400, without("Host")),
        (426, without("Upgrade")),
        (400, without("Connection")),
        (426, without("Sec-WebSocket-Version")),
        (400, without("Sec-WebSocket-Key")),
        (426, good.replace("Version: 13", "Version: 8")),
        (426, good.replace("Version: 13", "Version: 14")),
        (426, good.replace("Upgrade: websocket", "Upgrade: h2c")),
        (400, good.replace("Connection: Upgrade", "Connection: close")),
        (400, good.replace("dGhlIHNhbXBsZSBub25jZQ==", "dG9vIHNob3J0")),
        (400, good.replace("dGhlIHNhbXBsZSBub25jZQ==", "!!!!!!!!!!!!!!!!!!!!!!==")),
        (400, twice("Host")),
        (400, twice("Sec-WebSocket-Key")),
        (426, twice("Sec-WebSocket-Version")),
        (400, with("Content-Length: 5")),
        (400, with("Transfer-Encoding: chunked")),
        (400, good.replace("/ws", "/ws?room_id=")),
        (400, good.replace("/ws", "/ws?room_id=a%0Ab")),
        (400, good.replace("/ws", "/ws?room_id=a%E2%80%8Bb")),
        (400, good.replace("/ws", "/ws?room_id=%20a")),
        (400, good.replace("/ws", "/ws?room_id=a%FF")),
        (400, good.replace("/ws", "/ws#room_id=a")),
        (400, good.replace(&format!("Host: {}", node.addr), "Host: ")),
        (400, with("Origin: http://localhost\r\nOrigin: http://localhost")),
        (400, with("A: 1\nB: 2")),
        (400, format!("\r\n\r\n{good}")),
        (403, with("Origin: https://elsewhere.example")),
        (431, with("A: 1\r\n".repeat(96).trim_end())),
        (400, "GET /ws\r\n\r\n".to_owned()),
        (400, "NONSENSE\r\n\r\n".to_owned()),
        (400, "GET /ws HTTP/1.1\r\nno colon\r\n\r\n".to_owned()),
        (400, "get / http/1.1\r\n\r\n".to_owned()),
    ];
    for (status, request) in cases {
        let reply = answer(&node, &request);
        assert_eq!(reply.status, status, "{request}\n{reply:?}");
        assert!(reply.head.contains("Connection: close"), "{reply:?}");
        assert!(!reply.body.is_empty());
        match status {
            426 => assert_eq!(reply.header("Sec-WebSocket-Version"), Some("13")),
            405 => assert_eq!(reply.header("Allow"), Some("GET")),
            _ => {}
        }
    }
    node.wait_until_empty();
}

#[test]
fn what_is_not_http_is_told_so_and_closed() {
    let node = Node::start_ready(&["--shards", "2"]);
    let tls_hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";
    // Two empty lines alone may become a PROXY header, which is named in its refusal.
    for garbage in
        [&tls_hello[..], b"\0\0\0\0", b"\xff\xfe\xfd", b"*1\r\n$4\r\nPING\r\n", b"\r\n\r\nG"]
    {
        let reply = answer(&node, garbage);
        assert_eq!(reply.status, 400, "{garbage:?}");
    }
    node.wait_until_empty();
}

#[test]
fn a_head_without_end_is_cut_off_at_its_limit() {
    let node = Node::start_ready(&["--limits-head-bytes-max", "2048"]);
    let good = request_head(node.addr, "/ws", "");
    let padded = |bytes: usize| {
        let padding = format!("X-Padding: {}\r\n", "x".repeat(bytes - good.len() - 13));
        request_head(node.addr, "/ws", &padding)
    };
    assert_eq!(padded(2048).len(), 2048);
    let mut stream = http::connect(node.addr);
    stream.write_all(padded(2048).as_bytes()).expect("it reads heads");
    let mut first = [0; 12];
    std::io::Read::read_exact(&mut stream, &mut first).expect("it answers");
    assert_eq!(&first, b"HTTP/1.1 101", "exactly the limit is allowed");
    assert_eq!(answer(&node, padded(2049)).status, 431);
    assert_eq!(answer(&node, format!("GET /{} HTTP/1.1\r\n", "a".repeat(4096))).status, 431);
    assert_eq!(answer(&node, [b'A'; 100_000]).status, 431, "a name without a colon");
    let mut many = "GET /ws HTTP/1.1\r\n".to_owned();
    (0..500).for_each(|n| many += &format!("H{n}: x\r\n"));
    assert_eq!(answer(&node, many).status, 431);
}

#[test]
fn a_head_that_drips_is_answered_when_its_time_is_over() {
    let node = Node::start_ready(&["--shards", "1", "--limits-handshake-timeout-ms", "1000"]);
    let head = request_head(node.addr, "/ws", "");
    let mut drippers: Vec<TcpStream> = (0..20).map(|_| http::connect(node.addr)).collect();
    let mut silent = http::connect(node.addr);
    node.wait_for("campanile_connections_handshaking", 21);
    // One byte each at a time, until the server has had enough of all of them.
    let mut bytes = head.bytes().filter(|byte| *byte != b'\n').cycle();
    while node.metric("campanile_connections_handshaking") > 0 {
        let byte = bytes.next().expect("it is a cycle");
        drippers.iter_mut().for_each(|stream| drop(stream.write_all(&[byte])));
    }
    for stream in drippers.iter_mut().chain([&mut silent]) {
        let reply = Reply::read(stream).expect("an answer, whatever it was sent meanwhile");
        assert_eq!(reply.status, 408);
    }
    assert_eq!(
        node.metric_where("campanile_connections_rejected_total", r#"reason="timeout""#),
        21
    );
    drop((drippers, silent));
    node.wait_until_empty();
}

#[test]
fn a_request_in_single_bytes_is_still_a_request() {
    let node = Node::start_ready(&["--shards", "1"]);
    let mut stream = http::connect(node.addr);
    for byte in request_head(node.addr, "/ws", "").bytes() {
        stream.write_all(&[byte]).expect("it reads");
    }
    let mut first = [0; 12];
    std::io::Read::read_exact(&mut stream, &mut first).expect("it answers");
    assert_eq!(&first, b"HTTP/1.1 101");
}
