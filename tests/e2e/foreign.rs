//! Histories over which somebody else has written in Redis: an operator, another program, a fault.
//!
//! One room cannot be used until that is mended. Its clients and operators are told so, and everything
//! else goes on.

use crate::client::Client;
use crate::node::Node;
use crate::redis::{Redis, wait_until};
use serde_json::{Value, json};

const KEPT: &str = "chat: history_size=10";

fn node(redis: &Redis) -> Node {
    Node::start_ready(&["--namespaces", KEPT, "--backplane", &redis.url()])
}

/// The hash that says where a room's history is.
fn meta(redis: &Redis, room: &str) -> String {
    redis.command(&["KEYS", &format!("campanile:*:h:r:{room}")])
}

fn publish(node: &Node, room: &str, payload: u64) -> (u16, Value) {
    let body = json!({"room_id": room, "payload": payload});
    let reply = node.post("/v1/publish", &body.to_string());
    (reply.status, reply.json())
}

fn history(node: &Node, room: &str) -> (u16, Value) {
    let reply = node.get(&format!("/v1/rooms/{room}/history"));
    (reply.status, reply.json())
}

/// What is answered to a request for room `chat:a`: the code of the error, or the offset.
fn answer(client: &mut Client, kind: &str) -> Value {
    let request = json!({"type": kind, "room_id": "chat:a", "payload": 0, "id": 7});
    client.say(request.to_string());
    loop {
        let answer = client.hear();
        if answer["id"] == 7 {
            return answer;
        }
    }
}

#[test]
fn an_offset_that_nobody_can_count_from_costs_one_room_and_nobody_else() {
    let redis = Redis::start();
    let mut nodes = vec![node(&redis)];
    assert_eq!(publish(&nodes[0], "chat:a", 1).1["offset"], 1);
    let meta = meta(&redis, "chat:a");
    for offset in ["18446744073709551615", "9223372036854775808", "9007199254740992", "-1", "1.5"] {
        redis.command(&["HSET", &meta, "s", offset]);
        // One that knows the room as it was, and one that begins with what is there now.
        nodes.push(node(&redis));
        for node in &nodes {
            let (status, body) = history(node, "chat:a");
            assert_eq!((status, &body["error"]["code"]), (503, &json!("backplane_unavailable")));
            let (status, body) = publish(node, "chat:a", 2);
            assert_eq!((status, &body["error"]["code"]), (503, &json!("backplane_unavailable")));
            let mut client = Client::join(node.addr, &[]);
            let refused = answer(&mut client, "join");
            assert_eq!(refused["code"], "backplane_unavailable", "s = {offset}: {refused}");
            assert!(refused["offset"].is_null(), "no position is made up: {refused}");
            assert_eq!(answer(&mut client, "history")["code"], "not_joined");
            client.say(r#"{"type":"join","room_id":"chat:b","id":8}"#);
            assert_eq!(client.hear_type("ok")["room_id"], "chat:b");
            assert_eq!(publish(node, "chat:b", 3).0, 200);
            assert_eq!(client.hear_payload(), 3);
            wait_until("it is counted", || {
                node.metric("campanile_backplane_invalid_replies_total") > 2
            });
            wait_until("the log names the room", || node.logged().contains("r:chat:a"));
            assert!(node.logged().contains(&meta), "and what to look at:\n{}", node.logged());
            assert!(node.is_ready());
        }
        nodes.truncate(1);
        redis.command(&["HSET", &meta, "s", "1"]);
        wait_until("it is noticed that it is mended", || {
            history(&nodes[0], "chat:a").1["offset"] == 1
        });
    }
    let mut client = Client::join(nodes[0].addr, &[]);
    wait_until("the room is back", || answer(&mut client, "join")["offset"] == 1);
    assert_eq!(publish(&nodes[0], "chat:a", 4).1["offset"], 2);
    assert_eq!(client.hear_payload(), 4);
}

#[test]
fn numbers_at_the_edges_from_clients_are_answered_like_any_others() {
    let redis = Redis::start();
    let spaces = "chat: history_size=10, acks=true";
    let here = Node::start_ready(&["--namespaces", spaces]);
    let there = Node::start_ready(&["--namespaces", spaces, "--backplane", &redis.url()]);
    for node in [&here, &there] {
        let at = publish(node, "chat:a", 1).1;
        let epoch = at["epoch"].as_str().expect("it is kept").to_owned();
        let mut client = Client::join(node.addr, &[]);
        for offset in ["9007199254740992", "9223372036854775808", "18446744073709551615"] {
            for epoch in [&epoch[..], offset, "0", "abc"] {
                let since = format!(r#""since":{{"epoch":"{epoch}","offset":{offset}}}"#);
                let join =
                    format!(r#"{{"type":"join","room_id":"chat:a","ack":true,"id":7,{since}}}"#);
                client.say(join);
                let told = client.hear_type("ok");
                assert_eq!(
                    (&told["recovered"], &told["offset"]),
                    (&json!(false), &json!(1)),
                    "{told}"
                );
                for reverse in [false, true] {
                    let page = format!(r#""limit":3,"reverse":{reverse},{since}"#);
                    client.say(format!(r#"{{"type":"history","room_id":"chat:a","id":7,{page}}}"#));
                    let told = client.hear();
                    assert!(told["type"] == "history" || told["code"] == "bad_request", "{told}");
                    let page = format!("epoch={epoch}&offset={offset}&reverse={reverse}");
                    let told = node.get(&format!("/v1/rooms/chat:a/history?{page}"));
                    assert!([200, 410].contains(&told.status), "{page}: {}", told.body);
                }
            }
            let ack = format!(r#"{{"type":"ack","room_id":"chat:a","offset":{offset},"id":7}}"#);
            client.say(ack);
            assert_eq!(client.hear()["code"], "bad_request", "beyond all that was sent");
        }
        for wrong in ["18446744073709551616", "-1", "1.5", "1e3"] {
            client.say(format!(r#"{{"type":"ack","room_id":"chat:a","offset":{wrong},"id":7}}"#));
            assert_eq!(client.hear()["code"], "bad_request", "{wrong}");
            let page = format!("epoch={epoch}&offset={wrong}");
            assert_eq!(
                node.get(&format!("/v1/rooms/chat:a/history?{page}")).status,
                400,
                "{wrong}"
            );
        }
        assert_eq!(publish(node, "chat:a", 2).1["offset"], 2);
    }
}
