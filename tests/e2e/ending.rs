//! How a node ends: it sends its clients away first, unless it is told twice.

use crate::client::{CLOSE, Client, FIN};
use crate::node::Node;
use crate::redis::wait_until;
use serde_json::json;

fn drains_on(signal: &str) {
    let mut node = Node::start_ready(&["--shards", "2", "--drain-ms", "300"]);
    let mut clients: Vec<Client> = (0..30).map(|_| Client::join(node.addr, &["tower"])).collect();
    node.signal(signal);
    for client in &mut clients {
        let goodbye = client.hear();
        assert_eq!(goodbye["type"], "reconnect");
        assert!(goodbye["after_ms"].is_u64());
        let (code, reason) = client.close_frame();
        assert_eq!(code, 1001);
        assert!(!reason.is_empty());
        client.send(FIN | CLOSE, &1001u16.to_be_bytes());
        assert_eq!(client.next_frame(), None);
    }
    assert_eq!(node.ended().code(), Some(0), "{}", node.logged());
}

#[test]
fn sigterm_sends_everybody_away_and_ends_well() {
    drains_on("-TERM");
}

#[test]
fn sigint_does_the_same() {
    drains_on("-INT");
}

#[test]
fn a_node_without_clients_ends_at_once() {
    let mut node = Node::start_ready(&["--shards", "2"]);
    node.signal("-TERM");
    assert_eq!(node.ended().code(), Some(0));
}

#[test]
fn clients_that_do_not_listen_do_not_keep_a_node_alive() {
    let args = ["--shards", "1", "--drain-ms", "100", "--limits-close-timeout-ms", "500"];
    let mut node = Node::start_ready(&args);
    let _deaf: Vec<Client> = (0..5).map(|_| Client::join(node.addr, &["tower"])).collect();
    node.signal("-TERM");
    assert_eq!(node.ended().code(), Some(0));
}

#[test]
fn a_node_that_drains_says_so_and_a_second_signal_ends_it_at_once() {
    let mut node = Node::start_ready(&["--shards", "1", "--drain-ms", "3600000"]);
    let mut clients: Vec<Client> = (0..4).map(|_| Client::join(node.addr, &["tower"])).collect();
    node.signal("-TERM");
    wait_until("the node says that it drains", || {
        node.get("/readyz").json()["reason"] == "draining"
    });
    assert_eq!(node.get("/healthz").status, 200, "it lives, it only takes nobody new");
    let last = clients.last_mut().expect("four of them");
    last.say(r#"{"room_id":"tower","payload":"still here"}"#);
    assert_eq!(last.hear_payload(), json!("still here"), "whose turn has not come is served");
    node.signal("-TERM");
    assert_eq!(node.ended().code(), Some(128 + 15), "as if the signal had ended it");
}
