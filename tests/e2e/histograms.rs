//! Histograms count what happens, once each; how long it took is not asserted.

use crate::client::Client;
use crate::node::Node;
use crate::redis::{Redis, wait_until};

/// How many durations a histogram has, over all shards.
fn count(node: &Node, name: &str) -> u64 {
    let samples = node.samples(&format!("campanile_{name}_count"));
    samples.iter().map(|(_, value)| value).sum()
}

/// Asserts that each series of a histogram ends with a bucket for all of its durations.
fn is_whole(node: &Node, name: &str) {
    let buckets = node.samples(&format!("campanile_{name}_bucket"));
    let counts = node.samples(&format!("campanile_{name}_count"));
    let all: u64 = buckets.iter().filter(|(le, _)| le.contains("+Inf")).map(|(_, n)| n).sum();
    assert!(buckets.windows(2).all(|two| two[0].1 <= two[1].1 || two[0].0.contains("+Inf")));
    // Shards go on counting between two answers.
    assert!(all <= counts.iter().map(|(_, n)| n).sum());
}

#[test]
fn handshakes_visits_deliveries_and_round_trips_are_counted() {
    let redis = Redis::start();
    let url = redis.url();
    let rights = ["--auth-user-rights", "publish,send"];
    let node = Node::start_ready(&[&["--shards", "1", "--backplane", &url], &rights[..]].concat());
    let mut clients: Vec<Client> = (0..3).map(|_| Client::join(node.addr, &["tower"])).collect();
    node.wait_for("campanile_websocket_handshake_seconds_count", 3);
    assert!(count(&node, "shard_visit_seconds") > 0);
    let before = count(&node, "backplane_publish_round_trip_seconds");
    clients[0].say(r#"{"room_id":"tower","payload":1}"#);
    for client in &mut clients {
        assert_eq!(client.hear_payload(), 1);
    }
    wait_until("the delivery is measured", || count(&node, "publish_delivery_seconds") == 1);
    let trips = || count(&node, "backplane_publish_round_trip_seconds");
    wait_until("the round trip is measured", || trips() == before + 1);
    // Nobody here is in that room: it is published, and not delivered.
    clients[0].say(r#"{"type":"send","target_user_id":"nobody","payload":2}"#);
    wait_until("it has reached Redis", || trips() == before + 2);
    assert_eq!(count(&node, "publish_delivery_seconds"), 1);
    for name in ["websocket_handshake_seconds", "shard_visit_seconds", "publish_delivery_seconds"] {
        is_whole(&node, name);
    }
}

#[test]
fn without_redis_deliveries_are_measured_and_no_round_trip_is() {
    let node = Node::start_ready(&["--shards", "2"]);
    let mut client = Client::join(node.addr, &["tower"]);
    client.say(r#"{"room_id":"tower","payload":1}"#);
    assert_eq!(client.hear_payload(), 1);
    wait_until("the delivery is measured", || count(&node, "publish_delivery_seconds") == 1);
    assert_eq!(count(&node, "backplane_publish_round_trip_seconds"), 0);
}
