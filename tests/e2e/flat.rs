//! Memory after all kinds of bad behaviour.

use crate::client::{CONTINUATION, Client, FIN, PING, TEXT, frame, header, request_head};
use crate::http::{self, Reply};
use crate::node::Node;
use std::io::Write;
use std::net::TcpStream;

/// What the process may have grown by, after the first round has warmed it up. An allocator does
/// not give everything back at once; what leaks grows with every round.
const GROWTH_BYTES_MAX: u64 = 2 << 20;
const PEERS: usize = 50;
/// Connections that there may be: the peers of one round.
const ROOM_FOR: usize = 4 * PEERS;

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

/// Breaks RFC 6455, hears so, and does not answer the close frame.
fn violate(node: &Node, kind: usize) -> Client {
    let mut client = Client::join(node.addr, &["a", "b"]);
    client.send_raw(&match kind % 3 {
        0 => frame(FIN | 0x40 | TEXT, &[b' '; 5000]),
        1 => [&header(FIN | TEXT, 5000)[..], &[b' '; 5000]].concat(),
        _ => frame(FIN | PING, &[b' '; 5000]),
    });
    assert_eq!(client.close_frame().0, 1002);
    client
}

/// Says what is no JSON, is told so, and stays.
fn babble(node: &Node, kind: usize) -> Client {
    let mut client = Client::join(node.addr, &["a", "b"]);
    client.say(match kind % 3 {
        0 => "[".repeat(30_000),
        1 => format!(r#"{{"type":"join","room_id":"{}"#, "x".repeat(30_000)),
        _ => format!(r#"{{"{}":1}} trailing"#, r"\u0041".repeat(4000)),
    });
    assert_eq!(client.hear_type("error")["code"], "bad_json");
    client
}

/// Takes all the room there is, and sends more peers against the full house.
fn flood(node: &Node) {
    let here: Vec<TcpStream> = (0..ROOM_FOR).map(|_| http::connect(node.addr)).collect();
    node.wait_for("campanile_connections_handshaking", ROOM_FOR as u64);
    let mut refused: Vec<TcpStream> = (0..PEERS).map(|_| http::connect(node.addr)).collect();
    for stream in &mut refused {
        // It may be refused already, and its reading half is gone.
        let _ = stream.write_all(request_head(node.addr, "/ws", "").as_bytes());
    }
    for stream in refused {
        assert_eq!(Reply::read(stream).expect("an answer for everyone").status, 503);
    }
    drop(here);
    node.wait_until_empty();
}

#[test]
fn memory_is_flat_after_bad_peers_have_gone() {
    let limit = ROOM_FOR.to_string();
    let node = Node::start_ready(&["--shards", "1", "--limits-connections-per-shard-max", &limit]);
    let round = || {
        let strangers: Vec<TcpStream> = (0..PEERS).map(|kind| misbehave(&node, kind)).collect();
        let clients: Vec<Client> = (0..PEERS).map(|_| half_a_message(&node)).collect();
        let babblers: Vec<Client> = (0..PEERS).map(|kind| babble(&node, kind)).collect();
        let violators: Vec<Client> = (0..PEERS).map(|kind| violate(&node, kind)).collect();
        // One kind of stranger is only verbose, and is let in.
        node.wait_for("campanile_connections", (2 * PEERS + PEERS / 5) as u64);
        drop((strangers, clients, babblers, violators));
        node.wait_until_empty();
        flood(&node);
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
