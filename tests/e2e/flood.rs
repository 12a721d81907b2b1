//! More connections than there may be.

use crate::client::{Client, request_head};
use crate::http::{self, Reply};
use crate::node::Node;
use crate::redis::wait_until;
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;

fn retry_after_s(reply: &Reply) -> u64 {
    let text = reply.header("Retry-After").expect("it says when to come back");
    text.parse().expect("seconds")
}

const ROOM_FOR: usize = 40;
const FLOOD: usize = 300;

#[test]
fn whoever_is_too_many_gets_503_and_who_is_here_notices_nothing() {
    let limit = ROOM_FOR.to_string();
    let node = Node::start_ready(&["--shards", "1", "--limits-connections-per-shard-max", &limit]);
    let mut here: Vec<Client> =
        (0..ROOM_FOR).map(|_| Client::join(node.addr, &["tower"])).collect();
    let mut seconds = BTreeSet::new();
    for round in 0..3 {
        let mut flood: Vec<_> = (0..FLOOD).map(|_| http::connect(node.addr)).collect();
        for stream in &mut flood {
            // It may be refused already, and its reading half is gone.
            let _ = stream.write_all(request_head(node.addr, "/ws", "").as_bytes());
        }
        here[round].say(format!(r#"{{"room_id":"tower","payload":{round}}}"#));
        for member in &mut here {
            assert_eq!(member.hear_payload(), round);
        }
        for stream in flood {
            let reply = Reply::read(stream).expect("an answer for everyone");
            assert_eq!(reply.status, 503);
            seconds.insert(retry_after_s(&reply));
        }
    }
    assert!(seconds.len() >= 4, "the herd is asked to come back at {seconds:?}");
    let refused = || node.metric_where("campanile_connections_rejected_total", r#"reason="limit""#);
    wait_until("each refusal is counted", || refused() == 3 * FLOOD as u64);
    assert_eq!(node.metric("campanile_connections"), ROOM_FOR as u64);
    drop(here.pop());
    node.wait_for("campanile_connections", ROOM_FOR as u64 - 1);
    let mut next = Client::join(node.addr, &["tower"]);
    next.say(r#"{"room_id":"tower","payload":"in"}"#);
    assert_eq!(next.hear_payload(), "in", "where one leaves there is room for one");
}

const HANDSHAKES_MAX: usize = 5;

#[test]
fn whoever_dawdles_over_the_handshake_keeps_others_out_and_may_still_come_in() {
    let limit = HANDSHAKES_MAX.to_string();
    // The dawdlers are never too late here: only how many there are is at stake.
    let node = Node::start_ready(&[
        "--shards",
        "1",
        "--limits-handshakes-max",
        &limit,
        "--limits-handshake-timeout-ms",
        "600000",
    ]);
    let head = request_head(node.addr, "/ws", "");
    let (half, rest) = head.split_at(head.len() / 2);
    let mut dawdlers: Vec<TcpStream> =
        (0..HANDSHAKES_MAX).map(|_| http::connect(node.addr)).collect();
    dawdlers.iter_mut().for_each(|stream| stream.write_all(half.as_bytes()).expect("it reads"));
    node.wait_for("campanile_connections_handshaking", HANDSHAKES_MAX as u64);
    for _ in 0..FLOOD {
        let reply = Reply::read(http::connect(node.addr)).expect("an answer for everyone");
        assert_eq!(reply.status, 503);
        assert!((1..=30).contains(&retry_after_s(&reply)));
    }
    let refused =
        || node.metric_where("campanile_connections_rejected_total", r#"reason="handshakes""#);
    wait_until("each refusal is counted", || refused() == FLOOD as u64);
    for stream in &mut dawdlers {
        stream.write_all(rest.as_bytes()).expect("it still reads");
        let mut first = [0; 12];
        stream.read_exact(&mut first).expect("it answers");
        assert_eq!(&first, b"HTTP/1.1 101");
    }
    node.wait_for("campanile_connections", HANDSHAKES_MAX as u64);
    let mut next = Client::join(node.addr, &["tower"]);
    next.say(r#"{"room_id":"tower","payload":"in"}"#);
    assert_eq!(next.hear_payload(), "in", "an open connection is no handshake");
    drop((dawdlers, next));
    node.wait_until_empty();
}
