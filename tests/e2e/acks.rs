//! Clients that say what they have dealt with: members of rooms.

use crate::client::Client;
use crate::node::Node;
use crate::redis::{Redis, wait_until};
use serde_json::{Value, json};

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
