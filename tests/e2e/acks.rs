//! Clients that say what they have dealt with: members of rooms, and users whose messages are kept.

use crate::client::Client;
use crate::node::Node;
use crate::redis::{Redis, wait_until};
use campanile::auth::{TokenRequest, mint};
use serde_json::{Value, json};
use std::time::{SystemTime, UNIX_EPOCH};

const ROOMS: &str = "jobs: history_size=100, acks=true, ack_timeout_ms=300";

fn say(node: &Node, number: u64) {
    let body = json!({"room_id": "jobs:mail", "payload": number}).to_string();
    assert_eq!(node.post("/v1/publish", &body).status, 200);
}

fn room(node: &Node) -> Value {
    node.get("/v1/rooms/jobs:mail").json()["acks"].take()
}

#[test]
fn an_operator_sees_how_far_the_members_of_a_room_have_come() {
    let redis = Redis::start();
    let spaces = ["--namespaces", ROOMS, "--shards", "2"];
    let url = redis.url();
    let with_redis = [&spaces[..], &["--backplane", &url]].concat();
    for args in [&spaces[..], &with_redis] {
        let node = Node::start_ready(args);
        let mut members: Vec<Client> = (0..3).map(|_| Client::join(node.addr, &[])).collect();
        for (number, member) in members.iter_mut().enumerate() {
            let ack = number < 2;
            let join = json!({"type": "join", "room_id": "jobs:mail", "ack": ack, "id": 1});
            member.say(join.to_string());
            member.hear_type("ok");
        }
        assert_eq!(room(&node), json!({"members": 2, "lagging": 0, "lowest_offset": 0}));
        (1..=3).for_each(|number| say(&node, number));
        let mut position = Value::Null;
        for number in 1..=3 {
            position = members[0].hear_type("message");
            assert_eq!(position["payload"], number);
        }
        let (epoch, offset) = (&position["epoch"], &position["offset"]);
        let ack = json!({"type": "ack", "room_id": "jobs:mail", "epoch": epoch, "offset": offset});
        members[0].say(ack.to_string());
        let wanted = json!({"members": 2, "lagging": 1, "lowest_offset": 0});
        wait_until("the one that says nothing lags", || room(&node) == wanted);
        node.wait_for("campanile_acks_lagging", 1);
        node.wait_for("campanile_acks_members", 2);
        members[1].say(r#"{"type":"ack","room_id":"jobs:mail","offset":3,"id":2}"#);
        members[1].hear_type("ok");
        assert_eq!(room(&node), json!({"members": 2, "lagging": 0, "lowest_offset": 3}));
        node.wait_for("campanile_acks_lagging", 0);
        node.wait_for("campanile_acks_total", 2);
        members[1].say(r#"{"type":"ack","room_id":"jobs:mail","offset":4}"#);
        assert_eq!(members[1].hear_type("error")["code"], "bad_request");
        members[2].say(r#"{"type":"ack","room_id":"jobs:mail","offset":3}"#);
        assert_eq!(members[2].hear_type("error")["code"], "not_joined");
        members.drain(..2).for_each(Client::close);
        assert_eq!(room(&node), json!({"members": 0, "lagging": 0, "lowest_offset": null}));
    }
}

pub const SECRET: &str = "a secret of the tests";
const USERS: &str = "@users: history_size=100, history_ttl_s=600";

pub fn token(user: &str) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is past 1970").as_secs();
    let wish = TokenRequest {
        user: user.to_owned(),
        rights: None,
        rooms: Vec::new(),
        send: Vec::new(),
        info: None,
        issued_unix_s: now,
        expires_unix_s: now + 600,
    };
    mint(&wish, SECRET).expect("a good wish")
}

fn node_with_users(more: &[&str]) -> Node {
    let args = ["--namespaces", USERS, "--auth-hmac-secret", SECRET, "--shards", "2"];
    let rights = ["--auth-user-rights", "publish,send"];
    Node::start_ready(&[&args[..], &rights, more].concat())
}

/// A connection of the user, and what it is told of what is kept.
fn come(node: &Node, user: &str) -> (Client, Value) {
    let (mut client, welcome) = Client::greeted(node.addr, &[], &token(user));
    assert_eq!(welcome["user_id"], user);
    let told = client.hear();
    assert_eq!((&told["type"], &told["target_user_id"]), (&json!("ok"), &json!(user)), "{told}");
    (client, told)
}

/// What the next messages to the user say.
fn hears(client: &mut Client, count: usize) -> Vec<u64> {
    let mut next = || {
        let message = client.hear();
        assert_eq!(message["target_user_id"], "ann", "{message}");
        message["payload"].as_u64().expect("a number")
    };
    (0..count).map(|_| next()).collect()
}

fn stored(node: &Node) -> u64 {
    node.metric_where("campanile_user_acks_total", r#"result="stored""#)
}

/// Acknowledges, and waits until that is where it is kept.
fn acknowledge(node: &Node, client: &mut Client, position: &Value, offset: u64) {
    let before = stored(node);
    let ack = json!({"type": "ack", "offset": offset, "epoch": position["epoch"], "id": 9});
    client.say(ack.to_string());
    assert_eq!(client.hear_type("ok")["id"], 9);
    wait_until("it is kept", || stored(node) > before);
}

/// Five messages to somebody who is not there, said by a client and by HTTP.
fn send_five(node: &Node) {
    let (mut bob, _) = come(node, "bob");
    for number in 1..=3 {
        let send = json!({"target_user_id": "ann", "payload": number, "key": number.to_string()});
        for id in [1, 2] {
            let mut send = send.clone();
            send["id"] = json!(id); // once more, as after an answer that was lost
            bob.say(send.to_string());
            assert_eq!(bob.hear_type("ok")["offset"], number);
        }
    }
    for number in 4..=5 {
        let body = json!({"target_user_id": "ann", "payload": number, "key": number.to_string()});
        let reply = node.post("/v1/publish", &body.to_string());
        assert_eq!((reply.status, reply.json()["offset"].as_u64()), (200, Some(number)));
    }
}

#[test]
fn what_was_sent_to_a_user_who_was_away_is_there_on_return_until_it_is_acknowledged() {
    let redis = Redis::start();
    let url = redis.url();
    for more in [&[][..], &["--backplane", &url]] {
        let node = node_with_users(more);
        let (ann, told) = come(&node, "ann");
        assert_eq!((&told["offset"], &told["recovered"]), (&json!(0), &json!(null)), "{told}");
        // That somebody was told is itself noted.
        wait_until("it is noted", || stored(&node) >= 1);
        ann.close();
        send_five(&node);
        let (mut ann, told) = come(&node, "ann");
        let wanted = (&json!(5), &json!(true), &json!(5));
        assert_eq!((&told["offset"], &told["recovered"], &told["messages"]), wanted, "{told}");
        assert_eq!(hears(&mut ann, 5), [1, 2, 3, 4, 5]);
        acknowledge(&node, &mut ann, &told, 3);
        ann.close();
        let (mut ann, told) = come(&node, "ann");
        assert_eq!((&told["recovered"], &told["messages"]), (&json!(true), &json!(2)));
        assert_eq!(hears(&mut ann, 2), [4, 5]);
        let reply = node.post("/v1/publish", r#"{"target_user_id":"ann","payload":6}"#);
        assert_eq!(reply.status, 200);
        assert_eq!(hears(&mut ann, 1), [6]);
        acknowledge(&node, &mut ann, &told, 6);
        let (mut other, told) = come(&node, "ann");
        assert_eq!((&told["offset"], &told["messages"]), (&json!(6), &json!(0)), "{told}");
        other.nothing_more();
        ann.say(r#"{"type":"ack","offset":1,"target_user_id":"bob"}"#);
        assert_eq!(ann.hear_type("error")["code"], "forbidden");
    }
}

#[test]
fn what_a_node_had_when_it_was_killed_is_there_on_another_one() {
    let redis = Redis::start();
    let url = redis.url();
    let mut first = node_with_users(&["--backplane", &url]);
    let second = node_with_users(&["--backplane", &url]);
    let (ann, _) = come(&first, "ann");
    wait_until("it is noted", || stored(&first) >= 1);
    ann.close();
    send_five(&first);
    let (mut ann, told) = come(&first, "ann");
    assert_eq!(hears(&mut ann, 5), [1, 2, 3, 4, 5]);
    acknowledge(&first, &mut ann, &told, 3);
    first.kill();
    let (mut ann, told) = come(&second, "ann");
    assert_eq!((&told["recovered"], &told["messages"]), (&json!(true), &json!(2)), "{told}");
    assert_eq!(hears(&mut ann, 2), [4, 5]);
    acknowledge(&second, &mut ann, &told, 5);
    drop(ann);
    let third = node_with_users(&["--backplane", &url]);
    let (mut ann, told) = come(&third, "ann");
    assert_eq!((&told["recovered"], &told["messages"]), (&json!(true), &json!(0)), "{told}");
    let body = json!({"target_user_id": "ann", "payload": 7}).to_string();
    assert_eq!(second.post("/v1/publish", &body).json()["offset"], 6);
    assert_eq!(hears(&mut ann, 1), [7], "from whichever instance it is sent");
}

#[test]
fn a_user_whose_queue_cannot_be_read_is_told_so_and_hears_what_comes_once_it_is_mended() {
    let redis = Redis::start();
    let node = node_with_users(&["--backplane", &redis.url()]);
    let send = |number: u64| {
        let body = json!({"target_user_id": "ann", "payload": number});
        node.post("/v1/publish", &body.to_string()).status
    };
    assert_eq!(send(1), 200);
    let meta = redis.command(&["KEYS", "campanile:*:h:u:ann"]);
    redis.command(&["HSET", &meta, "s", "18446744073709551615"]);
    let (mut ann, _) = Client::greeted(node.addr, &[], &token("ann"));
    let told = ann.hear();
    assert_eq!((&told["code"], &told["offset"]), (&json!("backplane_unavailable"), &Value::Null));
    ann.say(r#"{"type":"join","room_id":"lobby","id":2}"#);
    assert_eq!(ann.hear_type("ok")["room_id"], "lobby", "everything else goes on");
    assert_eq!(send(2), 503);
    redis.command(&["HSET", &meta, "s", "1"]);
    assert_eq!(send(3), 200);
    // Before anything it may hear that something may be missing.
    assert_eq!(ann.hear_type("message")["payload"], 3);
    wait_until("what is kept is brought", || {
        let (mut ann, _) = Client::greeted(node.addr, &[], &token("ann"));
        ann.hear()["offset"] == 2
    });
}
