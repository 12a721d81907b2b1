//! A Python client that was away while its instance was killed and a replica became master.

use crate::cluster::Cluster;
use crate::node::Node;
use crate::other_clients::{Piped, python};
use crate::redis::wait_until;
use crate::sentinel::{Care, Sentinel};
use serde_json::{Value, json};

const ROOM: &str = "chat:tower";

fn node(backplane: &str) -> Node {
    let kept = "chat: history_size=2000, history_ttl_s=600";
    Node::start_ready(&["--backplane", backplane, "--namespaces", kept])
}

/// A Python client in the room, from a position if there is one, and what `ok` said.
fn enter(node: &Node, since: Option<Value>) -> (Piped, Value) {
    let mut client = Piped::start(python("clients/pipe.py"), node, "");
    assert_eq!(client.hear()["type"], "welcome");
    let mut join = json!({"type": "join", "room_id": ROOM, "id": 1});
    since.into_iter().for_each(|since| join["since"] = since);
    client.say(&join.to_string());
    let ok = client.hear();
    assert_eq!(ok["type"], "ok", "{ok}");
    (client, ok)
}

/// Publishes numbers by HTTP, each under its key until it is taken.
fn publish(node: &Node, numbers: std::ops::RangeInclusive<u64>) {
    for number in numbers {
        let body = json!({"room_id": ROOM, "payload": number, "key": number.to_string()});
        wait_until("the publish is taken", || {
            node.post("/v1/publish", &body.to_string()).status == 200
        });
    }
}

/// The numbers of the next messages of the room. That something sent to the user or to everybody may
/// be missing is said in between, and true: neither has a history here.
fn numbers(client: &mut Piped, count: u64) -> Vec<u64> {
    let mut next = || {
        let mut message = client.hear();
        while message["type"] == "lost" && message["room_id"].is_null() {
            message = client.hear();
        }
        message["payload"].as_u64().unwrap_or_else(|| panic!("no number: {message}"))
    };
    (0..count).map(|_| next()).collect()
}

/// The client was on the first instance and heard ten. While it is away its instance is killed, a
/// thousand are said, and in the middle of them `fail_over` happens to the masters.
fn comes_back_to_a_thousand(url: &str, fail_over: impl FnOnce()) {
    let (mut first, second, third) = (node(url), node(url), node(url));
    // The room lives: somebody is there on another instance.
    let (mut other, _) = enter(&second, None);
    let (mut client, joined) = enter(&first, None);
    publish(&third, 1..=10);
    assert_eq!(numbers(&mut client, 10), (1..=10).collect::<Vec<_>>());
    first.kill();
    drop(client);
    publish(&third, 11..=500);
    fail_over();
    publish(&third, 501..=1010);
    wait_until("all are ready again", || second.is_ready() && third.is_ready());
    let since = json!({"epoch": joined["epoch"], "offset": 10});
    let (mut client, back) = enter(&third, Some(since));
    assert_eq!((&back["recovered"], &back["messages"]), (&json!(true), &json!(1000)), "{back}");
    assert_eq!(numbers(&mut client, 1000), (11..=1010).collect::<Vec<_>>());
    assert_eq!(numbers(&mut other, 1010), (1..=1010).collect::<Vec<_>>());
}

#[test]
fn who_was_away_during_a_failover_of_sentinel_gets_all_thousand_in_order() {
    let mut redis = Sentinel::start(Care::default());
    let url = redis.url();
    comes_back_to_a_thousand(&url, || {
        let master = redis.master().expect("there is a master");
        redis.servers[master].kill();
        wait_until("another one is master", || redis.master().is_some_and(|now| now != master));
    });
}

#[test]
fn who_was_away_while_every_master_of_a_cluster_was_replaced_gets_all_thousand_in_order() {
    let mut redis = Cluster::start(0);
    let url = redis.url();
    comes_back_to_a_thousand(&url, || {
        let before = redis.masters();
        // Two of three need each other's votes, so one after the other, each time with its replica.
        for master in &before {
            redis.servers[*master].kill();
            wait_until("its replica is master", || {
                let now = redis.masters();
                now.len() == 3 && !now.contains(master)
            });
            redis.servers[*master].restart();
            wait_until("it is back as a replica", || redis.is_whole());
        }
    });
}
