//! One bound for the memory of a node, whatever strangers send.

use crate::client::{Client, frame, header};
use crate::http;
use crate::node::Node;
use crate::redis::wait_until;
use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};

const MIB: u64 = 1024 * 1024;
/// The smallest bound that there may be.
const BOUND_BYTES: u64 = 64 * MIB;
/// What the process may have beyond its bound, for a moment.
const BEYOND_BYTES: u64 = 64 * MIB;

const HALF_BYTES: usize = 60_000;

fn node(more: &[&str]) -> Node {
    let bound = BOUND_BYTES.to_string();
    let args = ["--shards", "1", "--limits-memory-bytes-max", &bound];
    Node::start_ready(&[&args[..], more].concat())
}

fn closed_for_memory(node: &Node) -> u64 {
    node.metric_where("campanile_connections_closed_total", r#"reason="memory""#)
}

fn refused_for_memory(node: &Node) -> u64 {
    node.metric_where("campanile_connections_rejected_total", r#"reason="memory""#)
}

/// Half a message: its header promises more than comes.
fn half_message(half_bytes: usize) -> Vec<u8> {
    let mut bytes = header(0x81, half_bytes as u64 + 1);
    bytes[1] |= 0x80;
    bytes.extend([0; 4]);
    bytes.extend(std::iter::repeat_n(b'x', half_bytes));
    bytes
}

/// A publish that is heard by its publisher: it was not lost.
fn is_served(node: &Node, honest: &mut Client, number: u64) {
    let text = format!(r#"{{"type":"publish","room_id":"honest","payload":{number}}}"#);
    honest.say(&text);
    loop {
        let value = honest.hear();
        match value["type"].as_str() {
            Some("message") => return assert_eq!(value["payload"], number),
            // It was told, and tries again when there is a chance.
            Some("error") if value["code"] == "overloaded" => {
                wait_until("publishes are taken", || node.metric("campanile_memory_pressure") < 3);
                honest.say(&text);
            }
            _ => panic!("{value}"),
        }
    }
}

#[test]
fn half_messages_beyond_the_bound_end_those_who_hold_most_and_nobody_else() {
    let node = node(&[]);
    let mut honest = Client::join(node.addr, &["honest"]);
    let half = half_message(HALF_BYTES);
    let mut hostile: Vec<TcpStream> = Vec::new();
    for number in 0.. {
        if closed_for_memory(&node) > 0 {
            break;
        }
        assert!(number < 200, "{} connections, and memory is not short", hostile.len());
        for _ in 0..50 {
            let Ok(client) = Client::try_open(node.addr, "/ws", "") else { continue };
            let mut stream = client.stream;
            // It may have been closed for what others hold.
            let _ = stream.write_all(&half);
            hostile.push(stream);
        }
        is_served(&node, &mut honest, number);
    }
    let peak = node.resident_peak_bytes();
    assert!(peak <= BOUND_BYTES + BEYOND_BYTES, "{} MiB", peak / MIB);
    drop(hostile);
    node.wait_for("campanile_connections", 1);
    is_served(&node, &mut honest, 1_000_000);
    node.wait_for("campanile_memory_pressure", 0);
    wait_until("memory has gone back", || node.resident_bytes() < BOUND_BYTES);
    assert!(node.logged().contains("memory is short"), "{}", node.logged());
}

/// Faster than anybody can be closed: then those who come are refused, until enough were.
#[test]
fn who_comes_while_the_bound_is_near_is_refused_and_the_node_stays_ready() {
    let node = node(&[]);
    let half = half_message(HALF_BYTES / 3);
    let (addr, is_over) = (node.addr, AtomicBool::new(false));
    std::thread::scope(|scope| {
        let visitor = scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                if let Err(reply) = Client::try_open(addr, "/ws", "") {
                    return Some(reply);
                }
            }
            None
        });
        for _ in 0..20 {
            let open = |_| Client::try_open(addr, "/ws", "").ok().map(|client| client.stream);
            let mut hostile: Vec<TcpStream> = (0..3000).filter_map(open).collect();
            for stream in &mut hostile {
                let _ = stream.write_all(&half); // It may have been closed.
            }
            if visitor.is_finished() {
                break;
            }
        }
        is_over.store(true, Ordering::Relaxed);
        let refusal = visitor.join().expect("it only asks").expect("nobody was refused");
        assert_eq!(refusal.status, 503);
        assert!(refusal.header("Retry-After").is_some());
        assert!(
            refusal.body.contains("memory"),
            "{} {:?}",
            refusal.body,
            node.samples("campanile_connections_rejected_total")
        );
    });
    wait_until("it is counted", || refused_for_memory(&node) > 0);
    assert_eq!(node.get("/readyz").status, 200, "one address does not make a node unready");
    let peak = node.resident_peak_bytes();
    assert!(peak <= BOUND_BYTES + BEYOND_BYTES, "{} MiB", peak / MIB);
    node.wait_for("campanile_memory_pressure", 0);
    assert!(Client::try_open(addr, "/ws", "").is_ok());
}

#[test]
fn answers_that_nobody_takes_stay_within_the_bound() {
    let history = "default: history_size=1000, history_ttl_s=600";
    let node = node(&["--namespaces", history, "--limits-stall-timeout-ms", "600000"]);
    let mut honest = Client::join(node.addr, &["honest"]);
    let filling = "x".repeat(700);
    for _ in 0..1000 {
        honest.say(format!(r#"{{"type":"publish","room_id":"honest","payload":"{filling}"}}"#));
        honest.hear_payload();
    }
    let history = frame(0x81, br#"{"type":"history","room_id":"honest","limit":1000}"#);
    let mut hostile: Vec<Client> = Vec::new();
    while hostile.len() < 400 {
        let Ok(mut client) = Client::try_open(node.addr, "/ws?room_id=honest", "") else {
            continue;
        };
        for _ in 0..20 {
            let _ = client.stream.write_all(&history);
        }
        hostile.push(client);
        if hostile.len().is_multiple_of(20) {
            is_served(&node, &mut honest, hostile.len() as u64);
        }
    }
    is_served(&node, &mut honest, 1_000_000);
    let peak = node.resident_peak_bytes();
    assert!(peak <= BOUND_BYTES + BEYOND_BYTES, "{} MiB", peak / MIB);
    let asked = node.metric("campanile_memory_refused_answers_total") + closed_for_memory(&node);
    let refused = node.metric("campanile_request_errors_total");
    assert!(asked + refused > 0, "400 answers of 700 kB fitted into {} MiB", BOUND_BYTES / MIB);
}

#[test]
fn joins_beyond_the_bound_are_refused_and_the_joined_go_on() {
    let node = node(&[]);
    let mut honest = Client::join(node.addr, &["honest"]);
    let mut hostile = Vec::new();
    let is_refused = || node.metric("campanile_request_errors_total") > 0;
    let mut rooms = 0_u64;
    while !is_refused() {
        assert!(hostile.len() < 4000, "{rooms} rooms, and memory is not short");
        let mut stream = Client::open(node.addr, "/ws").stream;
        let mut joins = Vec::new();
        for _ in 0..120 {
            let room = format!("{rooms:0>200}");
            let join = format!(r#"{{"type":"join","room_id":"{room}"}}"#);
            joins.extend(frame(0x81, join.as_bytes()));
            rooms += 1;
        }
        stream.write_all(&joins).expect("it is read");
        hostile.push(stream);
        is_served(&node, &mut honest, rooms);
    }
    let mut late = Client::join(node.addr, &[]);
    late.say(r#"{"type":"join","room_id":"another","id":1}"#);
    let answer = late.hear();
    let is_short = node.metric("campanile_memory_pressure") >= 2;
    assert!(answer["code"] == "overloaded" || !is_short, "{answer}");
    let peak = node.resident_peak_bytes();
    assert!(peak <= BOUND_BYTES + BEYOND_BYTES, "{} MiB", peak / MIB);
    drop(hostile);
    node.wait_for("campanile_memory_pressure", 0);
    let reply = http::request(node.ops, "GET", "/readyz", &[], "");
    assert_eq!(reply.status, 200);
}
