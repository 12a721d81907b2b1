//! Tokens that are revoked while their clients are connected, over three instances.

use crate::client::Client;
use crate::node::Node;
use crate::redis::{Redis, wait_until};
use jsonwebtoken::{EncodingKey, Header, encode};
use serde_json::{Value, json};
use std::time::{SystemTime, UNIX_EPOCH};

const SECRET: &str = "a secret of the tests";

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("it is past 1970").as_secs()
}

fn token(user: &str, id: &str, issued_s: u64) -> String {
    let request = campanile::auth::TokenRequest {
        user: user.to_owned(),
        rights: None,
        rooms: Vec::new(),
        send: Vec::new(),
        info: None,
        issued_unix_s: issued_s,
        expires_unix_s: now_s() + 600,
    };
    // It installs what tokens are signed with.
    campanile::auth::mint(&request, SECRET).expect("a good request");
    let claims = json!({"sub": user, "jti": id, "iat": issued_s, "exp": now_s() + 600});
    encode(&Header::default(), &claims, &EncodingKey::from_secret(SECRET.as_bytes())).expect("JSON")
}

fn start(redis: Option<&Redis>) -> Node {
    let url = redis.map(Redis::url);
    let backplane: &[&str] = match &url {
        Some(url) => &["--backplane", url],
        None => &[],
    };
    Node::start_ready(&[&["--shards", "2", "--auth-hmac-secret", SECRET], backplane].concat())
}

fn revoke(node: &Node, order: &Value) -> Value {
    let reply = node.post("/v1/revocations", &order.to_string());
    assert_eq!(reply.status, 200, "{}", reply.body);
    reply.json()
}

fn enter(node: &Node, token: &str) -> Client {
    Client::greeted(node.addr, &["hall"], token).0
}

fn status(node: &Node, token: &str) -> u16 {
    match Client::try_open(node.addr, &format!("/ws?token={token}"), "") {
        Ok(_) => 101,
        Err(reply) => reply.status,
    }
}

const REVOKED: (u16, &str) = (4401, "token_revoked");

fn is_closed(client: &mut Client) {
    let (code, reason) = client.close_frame();
    assert_eq!((code, &reason[..]), REVOKED);
}

#[test]
fn a_revoked_token_ends_on_three_instances_also_on_the_one_that_was_down() {
    let redis = Redis::start();
    let [one, two] = [start(Some(&redis)), start(Some(&redis))];
    let then = now_s() - 60;
    let (old, lost) = (token("ann", "old", then), token("bob", "lost", then));
    let mut anns = [enter(&one, &old), enter(&two, &old)];
    let mut bob = enter(&two, &lost);
    let mut carol = enter(&two, &token("carol", "c", then));
    let answer = revoke(&one, &json!({"user_id": "ann"}));
    assert!(answer["issued_before"].as_u64() > Some(then), "{answer}");
    anns.iter_mut().for_each(is_closed);
    revoke(&one, &json!({"token_id": "lost", "until": now_s() + 600}));
    is_closed(&mut bob);
    // The third was down meanwhile.
    let three = start(Some(&redis));
    for node in [&one, &two, &three] {
        for token in [&old, &lost] {
            let refused = Client::try_open(node.addr, &format!("/ws?token={token}"), "");
            let refused = refused.err().expect("it is revoked");
            assert_eq!(refused.status, 401);
            assert!(refused.body.contains("this token was revoked"), "{}", refused.body);
        }
        assert_eq!(status(node, &token("ann", "new", now_s() + 2)), 101, "ann signs in again");
    }
    carol.say(r#"{"room_id":"hall","payload":"still here"}"#);
    assert_eq!(carol.hear_payload(), "still here");
    let mut visitor = enter(&three, &token("dora", "d", then));
    revoke(&two, &json!({"all": true}));
    is_closed(&mut carol);
    is_closed(&mut visitor);
    assert_eq!(status(&one, &token("erin", "e", then)), 401);
    let label = r#"reason="token_revoked""#;
    let closes = || {
        [&one, &two, &three]
            .map(|node| node.metric_where("campanile_connections_closed_total", label))
    };
    wait_until("they are counted", || closes().iter().sum::<u64>() >= 5);
    assert_eq!(three.metric("campanile_revocations"), 3);
}

#[test]
fn a_single_instance_without_redis_revokes_too_and_refuses_orders_that_make_no_sense() {
    let node = start(None);
    let then = now_s() - 60;
    let mut ann = enter(&node, &token("ann", "a", then));
    let mut stays = enter(&node, &token("ann", "b", now_s() + 60));
    let mut anonymous_like = enter(&node, &token("bob", "c", then));
    revoke(&node, &json!({"user_id": "ann"}));
    is_closed(&mut ann);
    stays.say(r#"{"room_id":"hall","payload":"newer"}"#);
    assert_eq!([stays.hear_payload(), anonymous_like.hear_payload()], ["newer", "newer"]);
    for (order, word) in [
        (json!({}), "send one of"),
        (json!({"user_id": "ann", "all": true}), "send one of"),
        (json!({"all": true, "until": 5}), "has passed"),
    ] {
        let reply = node.post("/v1/revocations", &order.to_string());
        assert_eq!(reply.status, 400, "{order}");
        assert!(reply.body.contains(word), "{}", reply.body);
    }
}

#[test]
fn beyond_the_limit_an_order_is_refused_and_says_so() {
    let args = ["--shards", "1", "--auth-hmac-secret", SECRET, "--limits-revocations-max", "2"];
    let node = Node::start_ready(&args);
    for id in ["a", "b", "a"] {
        revoke(&node, &json!({"token_id": id}));
    }
    let reply = node.post("/v1/revocations", r#"{"token_id":"c"}"#);
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (507, &json!("revocations_full")));
    wait_until("it is counted", || node.metric("campanile_revocations_refused_total") == 1);
    assert_eq!(status(&node, &token("ann", "a", now_s())), 401);
    assert_eq!(status(&node, &token("ann", "c", now_s())), 101);
}
