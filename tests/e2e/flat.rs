//! Memory after all kinds of bad behaviour.

use crate::client::{CONTINUATION, Client, FIN, TEXT, frame, request_head};
use crate::http;
use crate::node::Node;
use std::io::Write;
use std::net::TcpStream;

/// What the process may have grown by, after the first round has warmed it up. An allocator does
/// not give everything back at once; what leaks grows with every round.
const GROWTH_BYTES_MAX: u64 = 2 << 20;
const PEERS: usize = 50;

/// Begins something that costs the server memory, and does not end it.
fn misbehave(node: &Node, kind: usize) -> TcpStream {
    let mut stream = http::connect(node.addr);
    let bytes = match kind % 5 {
        0 => vec![b'A'; 8000],
        1 => request_head(node.addr, "/ws", &format!("X: {}\r\n", "x".repeat(7000))).into_bytes(),
        2 => [0x16, 3, 1].to_vec(),
        3 => b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        _ => b"POST /ws HTTP/1.1\r\nContent-Length: 99999\r\n\r\n".to_vec(),
    };
    let _ = stream.write_all(&bytes);
    stream
}

/// Leaves half a message with the server.
fn half_a_message(node: &Node) -> Client {
    let mut client = Client::join(node.addr, &["a", "b", "c", "d"]);
    client.send(TEXT, &[b' '; 30_000]);
    client.send(CONTINUATION, &[b' '; 30_000]);
    let cut = &frame(FIN | CONTINUATION, &[b' '; 5000])[..4000];
    client.send_raw(cut);
    client
}

#[test]
fn memory_is_flat_after_bad_peers_have_gone() {
    let node = Node::start_ready(&["--shards", "1"]);
    let round = || {
        let strangers: Vec<TcpStream> = (0..PEERS).map(|kind| misbehave(&node, kind)).collect();
        let clients: Vec<Client> = (0..PEERS).map(|_| half_a_message(&node)).collect();
        // One kind of stranger is only verbose, and is let in.
        node.wait_for("campanile_connections", (PEERS + PEERS / 5) as u64);
        drop((strangers, clients));
        node.wait_until_empty();
        node.resident_bytes()
    };
    let first = round();
    let later: Vec<u64> = (0..10).map(|_| round()).collect();
    let last = later[later.len() - 1];
    assert!(
        last <= first + GROWTH_BYTES_MAX,
        "memory grew from {first} to {last} bytes in ten rounds"
    );
}
