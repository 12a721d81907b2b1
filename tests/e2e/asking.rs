//! Clients that ask for far more than they read: short questions with long answers.
//!
//! What the process has held at most is the kernel's own number (`VmHWM`), not a sample.

use crate::client::{Client, FIN, TEXT, frame};
use crate::node::Node;
use crate::redis::{Redis, wait_until};
use serde_json::json;
use std::io::Write;

const MIB: u64 = 1 << 20;
const SPACES: &str = "chat: history_size=1000, history_ttl_s=600, presence=true";
/// So much is asked in one go by each of them: 191 KiB of it became 2.4 GB of answers once.
const ASKED_BYTES: usize = 191 * 1024;
const CONNECTIONS: usize = 6;
/// An outbox and one answer for each, twice over, and what the allocator keeps.
const GROWTH_MAX: u64 = CONNECTIONS as u64 * 2 * 2 * MIB + 48 * MIB;

fn node(backplane: &str) -> Node {
    Node::start_ready(&["--shards", "1", "--namespaces", SPACES, "--backplane", backplane])
}

/// A room of `messages` messages of so many bytes.
fn fill(node: &Node, room: &str, messages: usize, bytes: usize) {
    let payload = "x".repeat(bytes);
    for _ in 0..messages {
        let body = json!({"room_id": room, "payload": payload});
        let reply = node.post("/v1/publish", &body.to_string());
        assert_eq!(reply.status, 200, "{reply:?}");
    }
}

/// Asks the same again and again, and reads nothing.
fn ask_and_do_not_read(client: &mut Client, question: &str) {
    let one = frame(FIN | TEXT, question.as_bytes());
    let many = one.repeat(ASKED_BYTES / one.len());
    // It may be closed as slow in the middle of this.
    let _ = client.stream.write_all(&many);
}

/// Six connections ask; somebody else is served meanwhile; then they go, and so does what they took.
fn attack(node: &Node, room: &str, question: &str) {
    let mut bystander = Client::join(node.addr, &[room]);
    bystander.say(question);
    bystander.hear_type(if question.contains("history") { "history" } else { "presence" });
    let (before, held_before) = (node.resident_bytes(), node.resident_peak_bytes());
    let mut askers: Vec<Client> =
        (0..CONNECTIONS).map(|_| Client::join(node.addr, &[room])).collect();
    for _ in 0..8 {
        askers.iter_mut().for_each(|client| ask_and_do_not_read(client, question));
        bystander.say(r#"{"type":"ping","id":"still here"}"#);
        while bystander.hear_type("pong")["id"] != "still here" {}
    }
    node.wait_for_fresh_metrics();
    let most = node.resident_peak_bytes().max(held_before);
    assert!(most < before + GROWTH_MAX, "{room}: from {} to {} MiB", before / MIB, most / MIB);
    drop(askers);
    wait_until("what they took is given back", || node.resident_bytes() < before + GROWTH_MAX / 2);
    node.wait_for("campanile_requests_waiting", 0);
}

fn nobody_makes_the_node_hold_more_than_it_may(backplane: &str) {
    let node = node(backplane);
    fill(&node, "chat:large", 100, 7000);
    fill(&node, "chat:small", 300, 60);
    let mut crowd: Vec<Client> =
        (0..300).map(|_| Client::join(node.addr, &["chat:crowd"])).collect();
    attack(&node, "chat:large", r#"{"type":"history","room_id":"chat:large"}"#);
    attack(&node, "chat:small", r#"{"type":"history","room_id":"chat:small","limit":1000}"#);
    attack(&node, "chat:crowd", r#"{"type":"presence","room_id":"chat:crowd"}"#);
    let asked_again = r#"{"type":"join","room_id":"chat:large","since":{"epoch":"1","offset":0}}"#;
    let mut client = Client::join(node.addr, &["chat:large"]);
    ask_and_do_not_read(&mut client, asked_again);
    crowd[0].say(r#"{"room_id":"chat:crowd","payload":"all well"}"#);
    crowd.iter_mut().for_each(|member| assert_eq!(member.hear_payload(), "all well"));
}

#[test]
fn questions_with_long_answers_do_not_fill_the_memory() {
    nobody_makes_the_node_hold_more_than_it_may("memory");
}

#[test]
fn questions_with_long_answers_do_not_fill_the_memory_over_redis_either() {
    let redis = Redis::start();
    nobody_makes_the_node_hold_more_than_it_may(&redis.url());
}

/// It is paused most of the time: no more than sixteen wait.
#[test]
fn a_thousand_questions_in_one_go_are_all_answered_in_order_to_a_client_that_reads() {
    let node = node("memory");
    fill(&node, "chat:a", 10, 100);
    let mut client = Client::join(node.addr, &["chat:a"]);
    let asked: Vec<u8> = (0..1000).flat_map(|id| question(id, 10)).collect();
    client.stream.write_all(&asked).unwrap();
    for id in 0..1000 {
        let answer = client.hear_type("history");
        assert_eq!((&answer["id"], answer["messages"].as_array().unwrap().len()), (&json!(id), 10));
    }
    assert!(node.metric("campanile_connection_pauses_total") > 0);
    node.wait_for("campanile_connections_paused", 0);
}

fn question(id: usize, limit: usize) -> Vec<u8> {
    let text = json!({"type": "history", "room_id": "chat:a", "limit": limit, "id": id});
    frame(FIN | TEXT, text.to_string().as_bytes())
}

#[test]
fn a_paused_connection_that_is_reset_is_gone_at_once_and_so_is_what_it_took() {
    let node = node("memory");
    fill(&node, "chat:a", 100, 7000);
    let mut client = Client::join(node.addr, &["chat:a"]);
    let asked: Vec<u8> = (0..1000).flat_map(|id| question(id, 100)).collect();
    client.stream.write_all(&asked).unwrap();
    node.wait_for("campanile_connections_paused", 1);
    drop(client); // With bytes unread in its socket: a reset.
    node.wait_for("campanile_connections", 0);
    for gauge in ["campanile_connections_paused", "campanile_input_paused_bytes"] {
        node.wait_for(gauge, 0);
    }
    node.wait_for("campanile_requests_waiting", 0);
}
