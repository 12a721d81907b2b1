//! Who is there, through real sockets: alone, and over several instances of which one is killed.

use crate::client::Client;
use crate::instances::nodes;
use crate::node::Node;
use crate::redis::{Redis, wait_until};
use serde_json::{Value, json};

const HERE: &str = "here: presence=true, presence_grace_ms=100; kept: presence=true, \
                    presence_grace_ms=100, history_size=10";

/// Joins with info; answers the name that the client was given.
fn join_as(node: &Node, room: &str, info: &str) -> (Client, String) {
    let (mut client, welcome) = Client::greeted(node.addr, &[], "");
    client.say(format!(r#"{{"type":"join","room_id":"{room}","info":{info},"id":1}}"#));
    assert_eq!(client.hear_type("ok")["id"], 1);
    (client, welcome["user_id"].as_str().expect("a name").to_owned())
}

/// Asks until so many are there; answers the users.
fn wait_for_users(client: &mut Client, room: &str, count: usize) -> Vec<Value> {
    let mut users = Vec::new();
    wait_until("the users are there", || {
        client.say(format!(r#"{{"type":"presence","room_id":"{room}","id":"p"}}"#));
        let answer = client.hear_type("presence");
        assert_eq!((&answer["id"], &answer["room_id"]), (&json!("p"), &json!(room)));
        users = answer["users"].as_array().expect("a list").clone();
        answer["count"] == count && users.len() == count
    });
    users
}

#[test]
fn one_instance_tells_who_is_there_who_comes_and_who_goes() {
    let node = Node::start_ready(&["--shards", "2", "--namespaces", HERE]);
    for room in ["here:a", "kept:a"] {
        let (mut ann, ann_id) = join_as(&node, room, "{\"name\":\"Ann\"}");
        let (bob, bob_id) = join_as(&node, room, "7");
        let news = json!({"type":"joined","room_id":room,"user_id":bob_id,"info":7});
        assert_eq!(ann.hear_type("joined"), news, "and nothing of herself before");
        let users = wait_for_users(&mut ann, room, 2);
        let ann_there = json!({"user_id":ann_id,"connections":1,"info":{"name":"Ann"}});
        assert!(users.contains(&ann_there), "{users:?}");
        let body = node.get(&format!("/v1/rooms/{room}/presence")).body;
        let listed: Value = serde_json::from_str(&body).expect("JSON");
        let wanted = json!({"type":"presence","room_id":room,"users":users,"count":2});
        assert_eq!(listed, wanted);
        bob.close();
        assert_eq!(ann.hear_type("left"), json!({"type":"left","room_id":room,"user_id":bob_id}));
        wait_for_users(&mut ann, room, 1);
        ann.close();
    }
    node.wait_for("campanile_presence_users", 0);
    node.wait_until_empty();
}

#[test]
fn a_room_without_presence_has_none_and_one_that_was_not_joined_tells_nothing() {
    let node = Node::start_ready(&["--namespaces", HERE]);
    let (mut ann, _) = join_as(&node, "plain", "1");
    for (room, code) in [("plain", "not_enabled"), ("here:a", "not_joined")] {
        ann.say(format!(r#"{{"type":"presence","room_id":"{room}","id":5}}"#));
        let error = ann.hear_type("error");
        assert_eq!((&error["id"], &error["code"]), (&json!(5), &json!(code)));
    }
    let long = "x".repeat(600);
    ann.say(format!(r#"{{"type":"join","room_id":"here:a","info":"{long}","id":6}}"#));
    assert_eq!(ann.hear_type("error")["code"], "bad_request");
    assert_eq!(node.get("/v1/rooms/plain/presence").status, 404);
    assert_eq!(node.get("/v1/rooms/here:nobody/presence").status, 200);
    ann.nothing_more();
}

#[test]
fn the_users_of_an_instance_that_is_killed_leave_on_the_others() {
    let redis = Redis::start();
    let namespaces = "here: presence=true, presence_grace_ms=100";
    let [mut a, b, c] = nodes(&redis, &["--namespaces", namespaces]);
    let (mut ann, _) = join_as(&b, "here:a", "1");
    let (_bob, bob_id) = join_as(&a, "here:a", "2");
    let bob_came = json!({"type":"joined","room_id":"here:a","user_id":bob_id,"info":2});
    assert_eq!(ann.hear_type("joined"), bob_came);
    let (mut cid, cid_id) = join_as(&c, "here:a", "3");
    assert_eq!(ann.hear_type("joined")["user_id"], cid_id);
    wait_for_users(&mut cid, "here:a", 3);
    a.kill();
    for member in [&mut ann, &mut cid] {
        let bob_left = json!({"type":"left","room_id":"here:a","user_id":bob_id});
        assert_eq!(member.hear_type("left"), bob_left);
        wait_for_users(member, "here:a", 2);
    }
    cid.close();
    assert_eq!(ann.hear_type("left")["user_id"], cid_id);
    ann.nothing_more();
}
