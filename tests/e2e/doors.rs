//! Who gets in, where they are put, and what those hear who have to come back.

use crate::client::{Client, request_head};
use crate::http::{self, Reply};
use crate::node::Node;
use crate::redis::wait_until;
use campanile::sys;
use std::io::{Read, Write};
use std::net::TcpStream;

const SHARDS: usize = 4;
const CLIENTS: usize = 6_000;

/// A client, and the shard that it is on: its connection is called `node-shard-…`.
fn come(node: &Node) -> (Client, usize) {
    let (client, welcome) = Client::greeted(node.addr, &[], "");
    let name = welcome["connection_id"].as_str().expect("it has a name").to_owned();
    let shard = name.split('-').nth(1).expect("node, shard, place, generation");
    (client, usize::from_str_radix(shard, 16).expect("a number"))
}

/// Connections of each shard, once there are so many in all.
fn held(node: &Node, all: usize) -> Vec<u64> {
    node.wait_for("campanile_connections", all as u64);
    node.samples("campanile_connections").into_iter().map(|(_, held)| held).collect()
}

fn assert_even(held: &[u64]) {
    let mean = held.iter().sum::<u64>() / held.len() as u64;
    for shard in held {
        assert!(shard.abs_diff(mean) * 100 <= 3 * mean, "more than 3 % off the mean: {held:?}");
    }
}

#[test]
fn connections_are_spread_evenly_also_after_one_shard_has_lost_all_of_its_own() {
    sys::raise_nofile().expect("the hard limit may be reached for");
    let node = Node::start_ready(&["--shards", &SHARDS.to_string()]);
    let mut clients: Vec<(Client, usize)> = (0..CLIENTS).map(|_| come(&node)).collect();
    assert_even(&held(&node, CLIENTS));
    clients.retain(|(_, shard)| *shard != 2);
    let left = clients.len();
    assert_eq!(held(&node, left)[2], 0);
    clients.extend((left..CLIENTS).map(|_| come(&node)));
    assert_even(&held(&node, CLIENTS));
}

#[test]
fn steered_by_core_a_client_lands_on_the_shard_of_the_core_that_received_it() {
    let cores = sys::available_cores().expect("Linux says so");
    let node = Node::start_ready(&["--steering", "cpu"]);
    // Over loopback a packet is received on the core that sent it.
    for (shard, core) in cores.into_iter().enumerate() {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                sys::pin_to_core(core).expect("one of ours");
                for _ in 0..40 {
                    let (_client, on) = come(&node);
                    assert_eq!(on, shard, "received on core {core}");
                }
            });
        });
    }
    node.wait_for_fresh_metrics();
    assert_eq!(node.metric("campanile_connections_off_core_total"), 0);
}

#[test]
fn the_kernels_own_choice_is_left_to_it_where_that_is_asked_for() {
    let node = Node::start_ready(&["--shards", "2", "--steering", "kernel"]);
    let on: Vec<usize> = (0..64).map(|_| come(&node).1).collect();
    assert!(on.contains(&0) && on.contains(&1), "{on:?}");
}

/// The answer's head, and not a byte behind it.
fn read_head(mut stream: &TcpStream) -> Reply {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("an answer for everyone");
        head.extend(byte);
    }
    Reply::parse(&head).expect("a head")
}

const BURST: usize = 5;
const HERD: usize = 60;

#[test]
fn whoever_comes_too_fast_is_told_when_to_come_back_and_then_gets_in() {
    let burst = BURST.to_string();
    let node = Node::start_ready(&[
        "--shards",
        "1",
        "--limits-accepts-per-s-max",
        "1",
        "--limits-accepts-burst-max",
        &burst,
    ]);
    let mut here = Client::join(node.addr, &["tower"]);
    let herd: Vec<_> = (0..HERD)
        .map(|_| {
            let mut stream = http::connect(node.addr);
            // It may be refused already, and its reading half is gone.
            let _ = stream.write_all(request_head(node.addr, "/ws?room_id=tower", "").as_bytes());
            stream
        })
        .collect();
    let mut let_in = Vec::new();
    let mut refused = 0;
    for stream in herd {
        let reply = read_head(&stream);
        match reply.status {
            101 => let_in.push(stream),
            503 => {
                let after_s = reply.header("Retry-After").expect("when to come back");
                assert!((1..=30).contains(&after_s.parse::<u64>().expect("seconds")), "{after_s}");
                refused += 1;
            }
            other => panic!("{other}"),
        }
    }
    assert!(let_in.len() >= BURST - 1, "{} of a burst of {BURST} came in", let_in.len());
    assert!(refused > HERD / 2, "{refused} of {HERD} were refused");
    here.say(r#"{"room_id":"tower","payload":"still here"}"#);
    assert_eq!(here.hear_payload(), "still here");
    let counted =
        || node.metric_where("campanile_connections_rejected_total", r#"reason="accept_rate""#);
    wait_until("each refusal is counted", || counted() == refused as u64);
    wait_until("a later retry gets in", || Client::try_open(node.addr, "/ws", "").is_ok());
}
