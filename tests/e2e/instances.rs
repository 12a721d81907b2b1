//! Several instances and one Redis between them: they act as one.

use crate::client::Client;
use crate::node::Node;
use crate::redis::{Redis, wait_until};
use serde_json::json;

/// So many instances that share a Redis, whose clients may send to users and to everybody.
pub fn nodes<const N: usize>(redis: &Redis, more: &[&str]) -> [Node; N] {
    let url = redis.url();
    let rights = ["--auth-user-rights", "publish,send,broadcast"];
    let args = [&["--shards", "2", "--backplane", &url], &rights[..], more].concat();
    std::array::from_fn(|_| Node::start_ready(&args))
}

#[test]
fn rooms_users_and_broadcasts_reach_their_members_on_any_instance() {
    let redis = Redis::start();
    let [a, b, c] = nodes(&redis, &[]);
    let mut members: Vec<Client> =
        [&a, &b, &c, &a, &b, &c].map(|node| Client::join(node.addr, &["tower"])).into();
    let (mut ann, welcome) = Client::greeted(c.addr, &["elsewhere"], "");
    let user = welcome["user_id"].as_str().expect("a name").to_owned();
    for from in 0..members.len() {
        let request = json!({"room_id":"tower","payload":{"from":from},"id":from});
        members[from].say(request.to_string());
        for member in &mut members {
            let heard = member.hear_type("message");
            let expected = (json!("tower"), json!({"from":from}));
            assert_eq!((&heard["room_id"], &heard["payload"]), (&expected.0, &expected.1));
        }
        assert_eq!(members[from].hear_type("ok")["id"], from);
    }
    members[0].say(json!({"target_user_id":user,"payload":"for ann"}).to_string());
    assert_eq!(ann.hear_payload(), "for ann", "and nothing of the tower");
    members[1].say(r#"{"type":"broadcast","payload":"for all"}"#);
    for client in members.iter_mut().chain([&mut ann]) {
        assert_eq!(client.hear_payload(), "for all");
        client.nothing_more();
    }
}

#[test]
fn one_order_for_a_room_on_every_instance() {
    const EACH: usize = 200;
    let redis = Redis::start();
    let [a, b, c] = nodes(&redis, &[]);
    let mut members: Vec<Client> =
        [&a, &b, &c, &a].map(|node| Client::join(node.addr, &["tower"])).into();
    let publishers = members.len();
    for n in 0..EACH {
        for (who, member) in members.iter_mut().enumerate() {
            member.say(format!(r#"{{"room_id":"tower","payload":[{who},{n}]}}"#));
        }
    }
    let heard: Vec<Vec<_>> = members
        .iter_mut()
        .map(|member| (0..EACH * publishers).map(|_| member.hear_payload()).collect())
        .collect();
    for other in &heard[1..] {
        assert!(*other == heard[0], "two members heard two orders");
    }
    for who in 0..publishers {
        let own: Vec<_> = heard[0].iter().filter(|payload| payload[0] == who).collect();
        assert!((0..EACH).all(|n| own[n][1] == n), "a publisher's own order is kept");
    }
}

#[test]
fn a_sender_that_does_not_want_to_hear_itself_does_not_and_everybody_else_does() {
    let redis = Redis::start();
    let [a, b] = nodes(&redis, &[]);
    let mut ann = Client::join(a.addr, &["tower"]);
    let mut others = [&a, &b].map(|node| Client::join(node.addr, &["tower"]));
    ann.say(r#"{"type":"publish","room_id":"tower","payload":"unheard","echo":false}"#);
    ann.say(r#"{"type":"publish","room_id":"tower","payload":"heard"}"#);
    assert_eq!(ann.hear_payload(), "heard");
    for other in &mut others {
        assert_eq!(
            (other.hear_payload(), other.hear_payload()),
            (json!("unheard"), json!("heard"))
        );
    }
}

#[test]
fn an_instance_that_is_killed_takes_its_own_clients_and_nobody_elses() {
    let redis = Redis::start();
    let [a, mut b, c] = nodes(&redis, &[]);
    let mut left = [&a, &c, &c].map(|node| Client::join(node.addr, &["tower"]));
    let _gone: Vec<Client> = (0..20).map(|_| Client::join(b.addr, &["tower"])).collect();
    b.kill();
    left[0].say(r#"{"room_id":"tower","payload":"who is left?"}"#);
    for client in &mut left {
        assert_eq!(client.hear_payload(), "who is left?");
        client.say(r#"{"type":"ping","id":1}"#);
    }
    assert!(a.is_ready() && c.is_ready());
    assert_eq!(a.get("/v1/rooms/tower").json()["members"], 1);
    assert_eq!(c.get("/v1/rooms/tower").json()["members"], 2);
    let channel = redis.command(&["PUBSUB", "CHANNELS", "*r:tower"]);
    wait_until("Redis counts the two that are left", || {
        redis.command(&["PUBSUB", "NUMSUB", &channel]) == format!("{channel} 2")
    });
}

#[test]
fn other_services_publish_with_nothing_but_redis_and_are_heard_once() {
    let redis = Redis::start();
    let [a, b] = nodes(&redis, &[]);
    let mut members = [&a, &b, &a, &b].map(|node| Client::join(node.addr, &["tower"]));
    let (mut ann, welcome) = Client::greeted(b.addr, &[], "");
    let publish = |message: &str| redis.command(&["PUBLISH", "campanile:publish", message]);
    assert_eq!(publish(r#"{"room_id":"tower","payload":{"n": 1.0}}"#), "2", "both listen");
    for member in &mut members {
        let expected = r#"{"type":"message","room_id":"tower","payload":{"n": 1.0}}"#;
        assert_eq!(member.hear_text(), expected);
    }
    publish(&json!({"target_user_id":welcome["user_id"],"payload":"for ann"}).to_string());
    assert_eq!(ann.hear_payload(), "for ann");
    publish("nonsense");
    publish(r#"{"room_id":"tower"}"#);
    publish(r#"{"broadcast":true,"payload":"for all"}"#);
    for member in members.iter_mut().chain([&mut ann]) {
        assert_eq!(member.hear_payload(), "for all", "once, and nothing came of the nonsense");
        member.nothing_more();
    }
    let malformed = || {
        let reason = r#"reason="malformed""#;
        a.metric_where("campanile_backplane_publishes_failed_total", reason)
    };
    wait_until("nonsense is counted", || malformed() == 2);
}

#[test]
fn what_is_posted_to_one_instance_is_heard_on_the_other() {
    let redis = Redis::start();
    let [a, b] = nodes(&redis, &[]);
    let mut member = Client::join(b.addr, &["tower"]);
    assert_eq!(a.post("/v1/publish", r#"{"room_id":"tower","payload":[]}"#).status, 200);
    assert_eq!(member.hear_payload(), json!([]));
}

#[test]
fn systems_with_different_prefixes_share_a_redis_and_nothing_else() {
    let redis = Redis::start();
    let [a] = nodes(&redis, &["--redis-prefix", "one"]);
    let [b] = nodes(&redis, &["--redis-prefix", "two"]);
    let mut ann = Client::join(a.addr, &["tower"]);
    let mut bob = Client::join(b.addr, &["tower"]);
    ann.say(r#"{"room_id":"tower","payload":1,"id":1}"#);
    assert_eq!(ann.hear_type("ok")["id"], 1);
    bob.say(r#"{"room_id":"tower","payload":2}"#);
    assert_eq!(bob.hear_payload(), 2);
}

#[test]
fn a_topic_nobody_is_in_any_more_is_given_back_to_redis() {
    let redis = Redis::start();
    let [a] = nodes(&redis, &["--redis-linger-ms", "0"]);
    let channels = || redis.command(&["PUBSUB", "CHANNELS", "*r:tower"]);
    let ann = Client::join(a.addr, &["tower"]);
    assert!(channels().ends_with("r:tower"), "a join that is answered is subscribed");
    drop(ann);
    wait_until("the channel is given back", || channels().is_empty());
}
