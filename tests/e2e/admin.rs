//! What operators ask of users and connections, with real clients: where they are, and that they go.

use crate::client::{CLOSE, Client, FIN};
use crate::node::Node;
use crate::redis::{Redis, wait_until};
use campanile::auth::{TokenRequest, mint};
use serde_json::{Value, json};
use std::collections::BTreeSet;

const SECRET: &str = "a secret of the tests";
const YEAR_2100_UNIX_S: u64 = 4_102_444_800;

fn token(user: &str) -> String {
    let request = TokenRequest {
        user: user.to_owned(),
        rights: None,
        rooms: Vec::new(),
        send: Vec::new(),
        info: None,
        issued_unix_s: 1_000_000_000,
        expires_unix_s: YEAR_2100_UNIX_S,
    };
    mint(&request, SECRET).expect("a good request")
}

fn enter(node: &Node, user: &str, rooms: &[&str]) -> Client {
    Client::greeted(node.addr, rooms, &token(user)).0
}

/// All pages of at most `limit` connections.
fn pages(node: &Node, limit: usize) -> Vec<Vec<Value>> {
    let (mut pages, mut cursor) = (Vec::new(), String::new());
    while pages.len() < 1000 {
        let reply = node.get(&format!("/v1/connections?limit={limit}{cursor}"));
        assert_eq!(reply.status, 200, "{}", reply.body);
        let page = reply.json();
        pages.push(page["connections"].as_array().expect("a list").clone());
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return pages,
        }
    }
    panic!("the list has no end");
}

#[test]
fn every_connection_is_listed_once_however_small_the_pages_are() {
    let node = Node::start_ready(&["--shards", "3"]);
    let clients: Vec<(Client, Value)> =
        (0..150).map(|_| Client::greeted(node.addr, &["lobby"], "")).collect();
    let expected: BTreeSet<(String, String, String)> = clients
        .iter()
        .map(|(client, welcome)| {
            let text = |key: &str| welcome[key].as_str().expect("a name").to_owned();
            let address = client.stream.local_addr().expect("it is connected").to_string();
            (text("connection_id"), text("user_id"), address)
        })
        .collect();
    for limit in [7, 100, 1000] {
        let pages = pages(&node, limit);
        assert!(pages.iter().all(|page| page.len() <= limit));
        let listed: Vec<(String, String, String)> = pages
            .iter()
            .flatten()
            .map(|it| {
                let text = |key: &str| it[key].as_str().expect("a name").to_owned();
                (text("connection_id"), text("user_id"), text("address"))
            })
            .collect();
        assert_eq!(listed.len(), expected.len(), "each once");
        assert_eq!(listed.into_iter().collect::<BTreeSet<_>>(), expected);
    }
    let all = pages(&node, 1000).concat();
    for it in &all {
        assert_eq!((&it["rooms"], &it["rooms_count"]), (&json!(["lobby"]), &json!(1)));
        assert_eq!((&it["protocol"], &it["queued_bytes"]), (&json!("campanile.v1"), &json!(0)));
    }
    wait_until("they grow older", || {
        pages(&node, 1000).concat().iter().all(|it| it["age_ms"].as_u64() > Some(0))
    });
    drop(clients);
    wait_until("nobody is listed who has gone", || pages(&node, 10).concat().is_empty());
}

#[test]
fn a_question_that_makes_no_sense_is_refused_with_the_reason() {
    let node = Node::start_ready(&["--shards", "1"]);
    for (query, word) in [
        ("limit=0", "limit"),
        ("limit=1001", "1000"),
        ("limit=x", "limit"),
        ("cursor=", "cursor"),
        ("cursor=nonsense", "next_cursor"),
        ("cursor=1.0", "next_cursor"),
        ("cursr=0.0", "cursr"),
    ] {
        let reply = node.get(&format!("/v1/connections?{query}"));
        assert_eq!((reply.status, &reply.json()["error"]["code"]), (400, &json!("bad_request")));
        let message = reply.json()["error"]["message"].to_string();
        assert!(message.contains(word), "{query}: {message}");
    }
    let beyond = node.get("/v1/connections?cursor=0.4294967295");
    let empty = json!({"connections": [], "next_cursor": null});
    assert_eq!((beyond.status, beyond.json()), (200, empty));
    for (path, body) in [
        ("/v1/users/ann/disconnect", r#"{"code":1006}"#),
        ("/v1/users/ann/disconnect", r#"{"cod":4000}"#),
        ("/v1/users/ann/disconnect", "nonsense"),
        ("/v1/users/%0A/disconnect", "{}"),
    ] {
        assert_eq!(node.post(path, body).status, 400, "{path} {body}");
    }
    let long = format!(r#"{{"reason":"{}"}}"#, "x".repeat(5000));
    assert_eq!(node.post("/v1/users/ann/disconnect", &long).status, 413);
    assert_eq!(node.get("/v1/users/%FF").status, 400);
    assert_eq!(node.get("/v1/users/ann/disconnect").status, 405);
}

#[test]
fn a_user_that_is_disconnected_leaves_every_node_with_the_code_and_nobody_else_does() {
    let redis = Redis::start();
    let url = redis.url();
    let start =
        || Node::start_ready(&["--shards", "2", "--backplane", &url, "--auth-hmac-secret", SECRET]);
    let (one, two) = (start(), start());
    let mut anns = [
        enter(&one, "ann", &["kitchen", "attic"]),
        enter(&one, "ann", &["kitchen"]),
        enter(&two, "ann", &["cellar"]),
    ];
    let mut bob = enter(&two, "bob", &["cellar"]);
    let here = |connections: u64, rooms: &[&str]| {
        json!({
            "user_id": "ann", "scope": "node", "online": connections > 0,
            "connections": connections, "rooms": rooms, "truncated": false,
        })
    };
    assert_eq!(one.get("/v1/users/ann").json(), here(2, &["attic", "kitchen"]));
    assert_eq!(two.get("/v1/users/ann").json(), here(1, &["cellar"]));
    let said = r#"{"code":4001,"reason":"your account is closed"}"#;
    let reply = one.post("/v1/users/ann/disconnect", said);
    let told = json!({"user_id": "ann", "scope": "all_nodes", "code": 4001});
    assert_eq!((reply.status, reply.json()), (200, told));
    for ann in &mut anns {
        assert_eq!(ann.close_frame(), (4001, "your account is closed".to_owned()));
        ann.send(FIN | CLOSE, &4001u16.to_be_bytes());
        assert_eq!(ann.next_frame(), None);
    }
    for node in [&one, &two] {
        wait_until("she is gone", || node.get("/v1/users/ann").json() == here(0, &[]));
    }
    let closed = |node: &Node| {
        node.metric_where("campanile_connections_closed_total", r#"reason="disconnected""#)
    };
    wait_until("it is counted", || (closed(&one), closed(&two)) == (2, 1));
    bob.say(r#"{"room_id":"cellar","payload":"still here"}"#);
    assert_eq!(bob.hear_payload(), "still here");
    // Without a body, and for somebody who is not there.
    assert_eq!(two.post("/v1/users/bob/disconnect", "").status, 200);
    assert_eq!(bob.close_frame(), (1008, "disconnected by an operator".to_owned()));
    assert_eq!(two.post("/v1/users/nobody/disconnect", "").status, 200);
}

#[test]
fn nobody_is_said_to_be_disconnected_while_redis_is_away() {
    let mut redis = Redis::start();
    let node = Node::start_ready(&["--shards", "1", "--backplane", &redis.url()]);
    redis.kill();
    wait_until("the node knows", || !node.is_ready());
    let reply = node.post("/v1/users/ann/disconnect", "");
    let error = &reply.json()["error"]["code"];
    assert_eq!((reply.status, error), (503, &json!("backplane_unavailable")));
}
