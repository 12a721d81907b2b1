//! How a node ends: it sends its clients away first, unless it is told twice.

use crate::client::{CLOSE, Client, FIN};
use crate::node::Node;
use crate::redis::{Redis, wait_until};
use serde_json::json;

/// The closing handshake, begun by the server.
fn say_goodbye(client: &mut Client) {
    let (code, reason) = client.close_frame();
    assert_eq!(code, 1001);
    assert!(!reason.is_empty());
    client.send(FIN | CLOSE, &1001u16.to_be_bytes());
    assert_eq!(client.next_frame(), None);
}

fn drains_on(signal: &str) {
    let mut node = Node::start_ready(&["--shards", "2", "--drain-ms", "300"]);
    let mut clients: Vec<Client> = (0..30).map(|_| Client::join(node.addr, &["tower"])).collect();
    node.signal(signal);
    for client in &mut clients {
        let goodbye = client.hear();
        assert_eq!(goodbye["type"], "reconnect");
        assert!(goodbye["after_ms"].is_u64());
        say_goodbye(client);
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

/// A deadline that nobody should have to wait for: a node that ends by it, and not because its work
/// is done, is told from one that ends in time however slow this machine is.
const CLOSE_TIMEOUT: [&str; 2] = ["--limits-close-timeout-ms", "120000"];
/// Far longer than the work takes, far shorter than that deadline.
const AT_ONCE_S: f64 = 20.0;

fn ends_well_and_at_once(node: &mut Node) {
    node.signal("-TERM");
    let status = node.ended();
    let (took_s, last) = node.drained_in_s();
    assert_eq!(status.code(), Some(0), "{}", node.logged());
    assert!(last.ends_with(" drained"), "its last line is: {last}");
    assert!(took_s < AT_ONCE_S, "it took {took_s} s by its own clock");
}

fn args<'a>(of: &[&'a str]) -> Vec<&'a str> {
    [&CLOSE_TIMEOUT[..], of].concat()
}

#[test]
fn a_node_without_clients_ends_at_once() {
    for shards in ["1", "2"] {
        let mut node = Node::start_ready(&args(&["--shards", shards]));
        ends_well_and_at_once(&mut node);
    }
}

#[test]
fn a_node_over_redis_ends_at_once_whether_redis_is_there_or_not() {
    for shards in ["1", "2"] {
        let mut redis = Redis::start();
        let url = redis.url();
        let mut node = Node::start_ready(&args(&["--shards", shards, "--backplane", &url]));
        ends_well_and_at_once(&mut node);
        let mut node = Node::start_ready(&args(&["--shards", shards, "--backplane", &url]));
        redis.kill();
        wait_until("the node knows", || !node.is_ready());
        ends_well_and_at_once(&mut node);
        let mut node = Node::start(&args(&["--shards", shards, "--backplane", &url]));
        ends_well_and_at_once(&mut node);
    }
}

#[test]
fn a_node_ends_when_its_clients_have_left_and_not_at_a_deadline() {
    let redis = Redis::start();
    let url = redis.url();
    for backplane in ["memory", &url] {
        let args = args(&["--shards", "2", "--drain-ms", "300", "--backplane", backplane]);
        let mut node = Node::start_ready(&args);
        let mut clients: Vec<Client> =
            (0..10).map(|_| Client::join(node.addr, &["tower"])).collect();
        clients[0].say(r#"{"room_id":"tower","payload":"the last word"}"#);
        node.signal("-TERM");
        for client in &mut clients {
            assert_eq!(client.hear_payload(), "the last word");
            say_goodbye(client);
        }
        assert_eq!(node.ended().code(), Some(0));
        let (took_s, last) = node.drained_in_s();
        assert!(last.ends_with(" drained"), "its last line is: {last}");
        assert!(took_s < AT_ONCE_S, "it took {took_s} s by its own clock");
    }
}

/// Their deadline is the one thing that is waited for, once.
#[test]
fn clients_that_never_answer_their_close_are_cut_at_its_deadline() {
    let args = ["--shards", "2", "--drain-ms", "100", "--limits-close-timeout-ms", "3000"];
    let mut node = Node::start_ready(&args);
    let deaf: Vec<Client> = (0..5).map(|_| Client::join(node.addr, &["tower"])).collect();
    node.signal("-TERM");
    assert_eq!(node.ended().code(), Some(0));
    let (took_s, last) = node.drained_in_s();
    assert!(last.ends_with(" drained"), "its last line is: {last}");
    assert!((3.0..6.0).contains(&took_s), "it took {took_s} s by its own clock");
    drop(deaf);
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

#[test]
fn a_signal_that_means_something_to_other_servers_ends_no_node() {
    let mut node = Node::start_ready(&["--shards", "1", "--drain-ms", "0"]);
    let mut client = Client::join(node.addr, &["tower"]);
    for signal in ["-QUIT", "-USR1"] {
        node.signal(signal);
        wait_until("it says so", || node.logged().contains("this signal does nothing"));
    }
    client.say(r#"{"room_id":"tower","payload":1}"#);
    assert_eq!(client.hear_payload(), 1);
    node.signal("-TERM");
    assert_eq!(node.ended().code(), Some(0), "{}", node.logged());
}
