//! Rooms that keep what was said: whoever was away hears it, on whichever instance they come back.

use crate::client::Client;
use crate::node::Node;
use crate::redis::{Redis, wait_until};
use serde_json::{Value, json};

const KEPT: &str = "chat: history_size=2000, history_ttl_s=600";

/// An instance that keeps what is said in `chat:…`.
fn node(more: &[&str]) -> Node {
    Node::start_ready(&[&["--namespaces", KEPT], more].concat())
}

/// Joins `chat:a`, from a position if there is one, and answers what `ok` says.
fn join(client: &mut Client, since: Option<&Value>) -> Value {
    let mut join = json!({"type": "join", "room_id": "chat:a", "id": 1});
    if let Some(position) = since {
        join["since"] = json!({"epoch": position["epoch"], "offset": position["offset"]});
    }
    client.say(join.to_string());
    client.hear_type("ok")
}

fn publish(node: &Node, numbers: std::ops::RangeInclusive<u64>) -> Value {
    let mut last = Value::Null;
    for number in numbers {
        let body = json!({"room_id": "chat:a", "payload": number, "key": number.to_string()});
        wait_until("the publish is taken", || {
            let reply = node.post("/v1/publish", &body.to_string());
            last = reply.json();
            reply.status == 200
        });
    }
    last
}

/// The numbers of the next messages, which must stand one behind the other in the history.
fn numbers(client: &mut Client, count: u64) -> Vec<u64> {
    let mut last: Option<u64> = None;
    let mut next = || {
        let message = client.hear_type("message");
        let offset = message["offset"].as_u64().expect("it has a place");
        assert!(last.is_none_or(|last| offset == last + 1), "{last:?}, then {message}");
        last = Some(offset);
        message["payload"].as_u64().expect("a number")
    };
    (0..count).map(|_| next()).collect()
}

#[test]
fn a_client_comes_back_to_what_it_missed_and_goes_on_from_there() {
    let node = node(&[]);
    let mut client = Client::join(node.addr, &[]);
    let joined = join(&mut client, None);
    assert_eq!(joined["offset"], 0, "{joined}");
    publish(&node, 1..=5);
    assert_eq!(numbers(&mut client, 5), [1, 2, 3, 4, 5]);
    client.close();
    publish(&node, 6..=20);
    let mut client = Client::join(node.addr, &[]);
    let position = json!({"epoch": joined["epoch"], "offset": 5});
    let back = join(&mut client, Some(&position));
    assert_eq!((&back["recovered"], &back["messages"]), (&json!(true), &json!(15)), "{back}");
    publish(&node, 21..=22);
    assert_eq!(numbers(&mut client, 17), (6..=22).collect::<Vec<_>>());
}

#[test]
fn who_died_before_their_first_message_comes_back_to_it_all() {
    let node = node(&[]);
    let mut client = Client::join(node.addr, &[]);
    let joined = join(&mut client, None);
    drop(client);
    publish(&node, 1..=3);
    let mut client = Client::join(node.addr, &[]);
    join(&mut client, Some(&joined));
    assert_eq!(numbers(&mut client, 3), [1, 2, 3]);
}

#[test]
fn a_client_whose_node_was_killed_and_whose_redis_came_back_empty_misses_nothing() {
    let mut redis = Redis::start();
    let mut first = node(&["--backplane", &redis.url()]);
    let second = node(&["--backplane", &redis.url()]);
    let mut client = Client::join(first.addr, &[]);
    // Somebody else is in the room on the other instance, as in a room that lives.
    let mut other = Client::join(second.addr, &[]);
    join(&mut other, None);
    let joined = join(&mut client, None);
    publish(&second, 1..=10);
    assert_eq!(numbers(&mut client, 10), (1..=10).collect::<Vec<_>>());
    first.kill();
    publish(&second, 11..=500);
    redis.kill();
    wait_until("the second notices", || !second.is_ready());
    redis.restart();
    wait_until("the second is ready again", || second.is_ready());
    publish(&second, 501..=1010);
    let mut client = Client::join(second.addr, &[]);
    let position = json!({"epoch": joined["epoch"], "offset": 10});
    let back = join(&mut client, Some(&position));
    assert_eq!((&back["recovered"], &back["messages"]), (&json!(true), &json!(1000)), "{back}");
    assert_eq!(numbers(&mut client, 1000), (11..=1010).collect::<Vec<_>>());
    assert_eq!(numbers(&mut other, 1010), (1..=1010).collect::<Vec<_>>());
}

#[test]
fn what_cannot_be_brought_back_is_said_and_the_client_is_in_the_room_all_the_same() {
    let node = Node::start_ready(&["--namespaces", "chat: history_size=3"]);
    let mut client = Client::join(node.addr, &[]);
    let joined = join(&mut client, None);
    client.close();
    publish(&node, 1..=10);
    let mut client = Client::join(node.addr, &[]);
    let back = join(&mut client, Some(&joined));
    assert_eq!((&back["recovered"], &back["reason"]), (&json!(false), &json!("trimmed")), "{back}");
    let back = join(&mut client, Some(&json!({"epoch": "1", "offset": 10})));
    assert_eq!((&back["recovered"], &back["reason"]), (&json!(false), &json!("epoch")), "{back}");
    publish(&node, 11..=11);
    assert_eq!(numbers(&mut client, 1), [11]);
}

#[test]
fn history_is_read_over_websocket_and_http_alike() {
    let redis = Redis::start();
    for node in [node(&[]), node(&["--backplane", &redis.url()])] {
        publish(&node, 1..=5);
        let mut client = Client::join(node.addr, &[]);
        client.say(r#"{"type":"history","room_id":"chat:a","id":2}"#);
        assert_eq!(client.hear_type("error")["code"], "not_joined");
        join(&mut client, None);
        client.say(r#"{"type":"history","room_id":"chat:a","id":3,"limit":2,"reverse":true}"#);
        let told = client.hear_type("history");
        let http = node.get("/v1/rooms/chat:a/history?limit=2&reverse=true").json();
        for page in [&told, &http] {
            assert_eq!(page["offset"], 5, "{page}");
            let payloads: Vec<_> =
                page["messages"].as_array().unwrap().iter().map(|m| &m["payload"]).collect();
            assert_eq!(payloads, [&json!(5), &json!(4)]);
        }
        assert_eq!(told["epoch"], http["epoch"]);
        assert_eq!(told["messages"], http["messages"]);
        let other = node.get("/v1/rooms/chat:b/history").json();
        assert_eq!((&other["offset"], &other["messages"]), (&json!(0), &json!([])), "{other}");
        assert_eq!(node.get("/v1/rooms/lobby/history").status, 404);
        let bad = node.get("/v1/rooms/chat:a/history?limit=5000");
        assert_eq!(bad.status, 400);
    }
}

#[test]
fn a_publish_that_comes_twice_under_its_key_is_said_once_whoever_says_it() {
    let redis = Redis::start();
    for node in [node(&[]), node(&["--backplane", &redis.url()])] {
        let mut client = Client::join(node.addr, &[]);
        join(&mut client, None);
        let say = r#"{"type":"publish","room_id":"chat:a","payload":1,"key":"k","id":7}"#;
        client.say(say);
        let first = client.hear_type("ok");
        client.say(say);
        let second = client.hear_type("ok");
        assert_eq!((&first["offset"], &second["offset"]), (&json!(1), &json!(1)));
        let http = r#"{"room_id":"chat:a","payload":1,"key":"k"}"#;
        assert_eq!(node.post("/v1/publish", http).json()["offset"], 1);
        publish(&node, 2..=2);
        let page = node.get("/v1/rooms/chat:a/history").json();
        assert_eq!(page["messages"].as_array().map(Vec::len), Some(2), "{page}");
        client.say(r#"{"type":"publish","room_id":"lobby","payload":1,"key":"k","id":8}"#);
        assert_eq!(client.hear_type("error")["code"], "not_enabled");
    }
}

#[test]
fn who_may_join_and_publish_is_the_namespaces_word() {
    let spaces = "staff: join=users, publish=users; news: publish=nobody";
    let node = Node::start_ready(&["--namespaces", spaces]);
    let mut client = Client::join(node.addr, &[]);
    let mut refused = |say: &str| {
        client.say(say);
        client.hear_type("error")["code"].take()
    };
    assert_eq!(refused(r#"{"type":"join","room_id":"staff:a"}"#), "forbidden");
    client.say(r#"{"type":"join","room_id":"news:a"}"#);
    client.hear_type("ok");
    client.say(r#"{"room_id":"news:a","payload":1}"#);
    assert_eq!(client.hear_type("error")["code"], "forbidden");
    let reply = node.post("/v1/publish", r#"{"room_id":"news:a","payload":2}"#);
    assert_eq!(reply.status, 200);
    assert_eq!(client.hear_payload(), 2);
}
