//! A client that does not read, and the others who do.

use crate::client::Client;
use crate::http;
use crate::node::Node;
use serde_json::json;

#[test]
fn a_slow_client_is_closed_with_1013_while_the_others_hear_everything() {
    let args = [
        "--shards",
        "1",
        "--limits-outbox-bytes-max",
        "200000",
        "--limits-recovery-bytes-max",
        "200000",
        "--limits-close-timeout-ms",
        "30000",
    ];
    let node = Node::start_ready(&args);
    let mut quick: Vec<Client> = (0..3).map(|_| Client::join(node.addr, &["tower"])).collect();
    let mut slow = Client::join(node.addr, &["tower"]);
    let filling = "x".repeat(50_000);
    let mut rounds = 0;
    let closed =
        || node.metric_where("campanile_connections_closed_total", r#"reason="slow_consumer""#);
    let being_closed = || node.metric("campanile_connections_closing") + closed();
    // The kernel's buffers take some, then ours up to its limit.
    while being_closed() == 0 {
        quick[0].say(format!(r#"{{"room_id":"tower","payload":[{rounds},"{filling}"]}}"#));
        for client in &mut quick {
            assert_eq!(client.hear_payload()[0], rounds, "in order, and none is missing");
        }
        rounds += 1;
        assert!(rounds < 2000, "100 MB wait for one client and nobody minds");
    }
    node.wait_for("campanile_connections", 3);
    for heard in 0.. {
        let frame = slow.next_frame().expect("it ended without a close frame");
        if frame.opcode() == 8 {
            assert_eq!(frame.payload[..2], 1013u16.to_be_bytes());
            break;
        }
        let message: serde_json::Value = serde_json::from_slice(&frame.payload).expect("whole");
        assert_eq!(message["payload"][0], json!(heard), "what it did hear is a beginning");
    }
    drop(slow);
    node.wait_for_fresh_metrics();
    node.wait_for("campanile_connections_closing", 0);
    assert_eq!(closed(), 1);
    node.wait_for("campanile_outbox_bytes", 0);
    quick[0].say(r#"{"room_id":"tower","payload":["after",0]}"#);
    for client in &mut quick {
        assert_eq!(client.hear_payload()[0], "after");
    }
}

/// Its receive buffer is small, and so is what the kernel takes for it: the rest waits in the node,
/// where the room's policy applies to it.
#[test]
fn the_kernel_takes_little_for_a_client_that_does_not_read_and_ends_it_in_time() {
    let args = ["--shards", "1", "--limits-stall-timeout-ms", "1000"];
    let node = Node::start_ready(&args);
    let mut quick = Client::join(node.addr, &["r"]);
    let stalled = Client::join(node.addr, &["r"]);
    let socket = socket2::SockRef::from(&stalled.stream);
    socket.set_recv_buffer_size(4096).expect("a size that the kernel rounds up");
    let filling = "x".repeat(8_000);
    let mut sent_bytes = 0;
    let is_waiting = || {
        node.wait_for_fresh_metrics();
        // Or it has ended already, on a machine that was busy for a second.
        node.metric("campanile_outbox_bytes") > 0 || node.metric("campanile_connections") < 2
    };
    while !is_waiting() {
        assert!(sent_bytes < 400_000, "the kernel holds {sent_bytes} bytes for one client");
        for _ in 0..5 {
            quick.say(format!(r#"{{"room_id":"r","payload":"{filling}"}}"#));
            quick.hear_payload();
            sent_bytes += filling.len();
        }
    }
    node.wait_for("campanile_connections", 1);
    node.wait_for("campanile_outbox_bytes", 0);
    let ended = |reason: &str| {
        node.metric_where("campanile_connections_closed_total", &format!("reason={reason:?}"))
    };
    assert_eq!(ended("io_error") + ended("connection_lost") + ended("stalled"), 1);
    drop(stalled);
}

const POLICIES: &str = "drop: slow_consumer=drop_oldest; tick: slow_consumer=conflate";

/// A node, somebody who reads and somebody who does not, both in one room.
fn quick_and_slow(room: &str) -> (Node, Client, Client) {
    let node = Node::start_ready(&["--shards", "1", "--namespaces", POLICIES]);
    let quick = Client::join(node.addr, &[room]);
    let slow = Client::join(node.addr, &[room, "other"]);
    (node, quick, slow)
}

#[test]
fn a_slow_client_of_a_drop_oldest_room_is_told_how_many_it_missed_and_goes_on() {
    let (node, mut quick, mut slow) = quick_and_slow("drop:x");
    let filling = "x".repeat(30_000);
    let given_up =
        || node.metric_where("campanile_slow_consumer_dropped_messages_total", "drop_oldest");
    let mut sent = 0;
    while given_up() < 10 {
        quick.say(format!(r#"{{"room_id":"drop:x","payload":[{sent},"{filling}"]}}"#));
        assert_eq!(quick.hear_payload()[0], sent, "nobody waits for the slow one");
        sent += 1;
        assert!(sent < 4000, "120 MB were sent and nothing gave way");
    }
    let mut next = 0;
    let mut notices = 0;
    while next < sent {
        let heard = slow.hear();
        assert_eq!(heard["room_id"], "drop:x");
        if heard["type"] == "lost" {
            next += heard["count"].as_i64().expect("a number");
            notices += 1;
        } else {
            assert_eq!(heard["payload"][0], next, "in order, and holes are as large as told");
            next += 1;
        }
    }
    assert_eq!((next, notices), (sent, 1));
    slow.nothing_more();
    quick.say(r#"{"room_id":"drop:x","payload":["after",0]}"#);
    assert_eq!(slow.hear_payload()[0], "after", "it was never closed");
    node.wait_for("campanile_outbox_bytes", 0);
    assert_eq!(
        node.metric_where("campanile_connections_closed_total", r#"reason="slow_consumer""#),
        0
    );
}

#[test]
fn a_slow_client_of_a_conflating_room_hears_the_newest_of_each_key() {
    let (node, mut quick, mut slow) = quick_and_slow("tick:x");
    let filling = "x".repeat(30_000);
    let json_body = [("Content-Type", "application/json")];
    let conflated = || node.metric("campanile_slow_consumer_conflated_messages_total");
    let mut sent = 0;
    while conflated() < 10 {
        let key = ["AAPL", "MSFT"][sent % 2];
        let message = format!(
            r#"{{"room_id":"tick:x","payload":[{sent},"{filling}"],"conflate_key":"{key}"}}"#
        );
        // Clients and the HTTP API may both say what a message is about.
        if sent % 3 == 0 {
            let reply = http::request(node.ops, "POST", "/v1/publish", &json_body, &message);
            assert_eq!(reply.status, 200, "{reply:?}");
        } else {
            quick.say(message);
        }
        assert_eq!(quick.hear_payload()[0], sent);
        sent += 1;
        assert!(sent < 4000, "120 MB were sent and nothing was conflated");
    }
    let mut heard = Vec::new();
    while heard.last() != Some(&(sent as u64 - 1)) {
        heard.push(slow.hear_payload()[0].as_u64().expect("a number"));
    }
    slow.nothing_more();
    assert!(heard.is_sorted(), "{heard:?}");
    assert_eq!(heard[heard.len() - 2], sent as u64 - 2, "the other key's newest");
    assert!(heard.len() <= sent - 10, "{} of {sent}", heard.len());
    node.wait_for_fresh_metrics();
    assert_eq!(conflated() + heard.len() as u64, sent as u64);
}
