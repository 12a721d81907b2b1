//! One instance without any set-up: the embedded backplane, several shards.

use crate::client::Client;
use crate::http;
use crate::node::Node;
use crate::redis::wait_until;
use serde_json::json;

const SHARDS: usize = 3;

fn node() -> Node {
    Node::start_ready(&["--shards", "3", "--auth-user-rights", "publish,send,broadcast"])
}

/// Connects until every shard has somebody in the room; the kernel decides who goes where.
fn members_on_every_shard(node: &Node, room: &str) -> Vec<Client> {
    let mut clients = Vec::new();
    wait_until("every shard has a member", || {
        clients.push(Client::join(node.addr, &[room]));
        let accepted = node.samples("campanile_connections_accepted_total");
        accepted.iter().filter(|(_, n)| *n > 0).count() == SHARDS
    });
    clients
}

#[test]
fn a_message_to_a_room_reaches_its_members_on_every_shard_and_nobody_else() {
    let node = node();
    let mut members = members_on_every_shard(&node, "tower");
    let mut stranger = Client::join(node.addr, &["elsewhere"]);
    members[0].say(r#"{"type":"publish","room_id":"tower","payload":{"n": 1.0},"id":7}"#);
    assert_eq!(members[0].hear_type("ok")["id"], 7);
    for member in &mut members {
        let message = member.hear_type("message");
        assert_eq!(message["room_id"], "tower");
        assert_eq!(message["payload"], json!({"n": 1.0}));
    }
    stranger.nothing_more();
}

#[test]
fn the_order_of_a_publisher_is_the_order_that_everyone_hears() {
    let node = node();
    let mut members = members_on_every_shard(&node, "tower");
    for n in 0..500 {
        members[0].say(format!(r#"{{"room_id":"tower","payload":{n}}}"#));
    }
    for member in &mut members {
        for n in 0..500 {
            assert_eq!(member.hear_payload(), n);
        }
    }
}

#[test]
fn several_publishers_are_heard_in_one_order_by_everyone() {
    let node = node();
    let mut members = members_on_every_shard(&node, "tower");
    let publishers = members.len();
    for n in 0..100 {
        for (who, member) in members.iter_mut().enumerate() {
            member.say(format!(r#"{{"room_id":"tower","payload":[{who},{n}]}}"#));
        }
    }
    let mut heard = members
        .iter_mut()
        .map(|member| -> Vec<_> { (0..100 * publishers).map(|_| member.hear_payload()).collect() });
    let first = heard.next().expect("there are members");
    assert!(heard.all(|other| other == first), "two members heard two orders");
}

#[test]
fn a_user_hears_on_every_connection_and_a_broadcast_reaches_everybody() {
    let node = node();
    let (mut ann, welcome) = Client::greeted(node.addr, &[], "");
    let mut others: Vec<Client> = (0..8).map(|_| Client::join(node.addr, &[])).collect();
    let user = welcome["user_id"].as_str().expect("a name").to_owned();
    others[0].say(json!({"type":"send","target_user_id":user,"payload":"for ann"}).to_string());
    let message = ann.hear_type("message");
    assert_eq!(
        (&message["target_user_id"], &message["payload"]),
        (&json!(user), &json!("for ann"))
    );
    others[1].say(r#"{"type":"broadcast","payload":"for all"}"#);
    for client in others.iter_mut().chain([&mut ann]) {
        let message = client.hear_type("message");
        assert_eq!(message["payload"], "for all", "and nobody else heard what was for Ann");
        assert_eq!(message["broadcast"], true);
    }
}

#[test]
fn a_sender_may_ask_not_to_hear_itself() {
    let node = node();
    let mut members = members_on_every_shard(&node, "tower");
    members[0].say(r#"{"type":"publish","room_id":"tower","payload":"unheard","echo":false}"#);
    members[0].say(r#"{"type":"publish","room_id":"tower","payload":"heard"}"#);
    assert_eq!(members[0].hear_payload(), "heard");
    for member in &mut members[1..] {
        assert_eq!(member.hear_payload(), "unheard");
        assert_eq!(member.hear_payload(), "heard");
    }
}

#[test]
fn who_leaves_hears_no_more_and_may_not_publish() {
    let node = node();
    let mut ann = Client::join(node.addr, &["tower"]);
    let mut bob = Client::join(node.addr, &["tower"]);
    ann.say(r#"{"type":"leave","room_id":"tower","id":1}"#);
    assert_eq!(ann.hear(), json!({"type":"ok","id":1,"room_id":"tower"}));
    ann.say(r#"{"type":"publish","room_id":"tower","payload":0,"id":2}"#);
    assert_eq!(ann.hear()["code"], "not_joined");
    bob.say(r#"{"type":"publish","room_id":"tower","payload":1}"#);
    assert_eq!(bob.hear_payload(), 1);
    ann.say(r#"{"type":"join","room_id":"tower","id":3}"#);
    assert_eq!(ann.hear(), json!({"type":"ok","id":3,"room_id":"tower"}));
    bob.say(r#"{"type":"publish","room_id":"tower","payload":2}"#);
    assert_eq!(ann.hear_payload(), 2);
}

#[test]
fn payloads_travel_byte_for_byte() {
    let node = node();
    let mut ann = Client::join(node.addr, &["tower"]);
    for payload in [
        "1.0",
        "1e400",
        "123456789012345678901234567890",
        "-0",
        r#""\u00e9 é \ud83d\ude00 😀 \/""#,
        r#"{"a":1,"a":2,  "b" : [ ] }"#,
        "null",
    ] {
        ann.say(format!(r#"{{"room_id":"tower","payload":{payload}}}"#));
        let heard = ann.hear_text();
        assert!(heard.contains(&format!(r#""payload":{payload}}}"#)), "{payload} came as {heard}");
    }
}

#[test]
fn what_is_not_enabled_says_so() {
    let node = node();
    let mut ann = Client::join(node.addr, &["tower"]);
    for request in [
        r#"{"type":"presence","room_id":"tower","id":1}"#,
        r#"{"type":"history","room_id":"tower","id":1}"#,
        r#"{"type":"publish","room_id":"tower","payload":0,"key":"k","id":1}"#,
    ] {
        ann.say(request);
        let answer = ann.hear();
        assert_eq!((&answer["code"], &answer["id"]), (&json!("not_enabled"), &json!(1)));
    }
    ann.say(r#"{"type":"join","room_id":"x","id":2,"since":{"epoch":"e","offset":1}}"#);
    let joined = json!({"type":"ok","id":2,"room_id":"x","recovered":false,"reason":"not_enabled"});
    assert_eq!(ann.hear(), joined);
}

#[test]
fn other_services_publish_through_http() {
    let node = node();
    let mut members = members_on_every_shard(&node, "tower");
    let sent = node.post("/v1/publish", r#"{"room_id":"tower","payload":{"a":1.0}}"#);
    assert_eq!((sent.status, sent.json()), (200, json!({"ok":true})));
    let batch = json!({"messages":[
        {"room_id":"tower","payload":1},
        {"room_id":"","payload":2},
        {"broadcast":true,"payload":3},
    ]});
    let results = node.post("/v1/publish/batch", &batch.to_string()).json()["results"].take();
    assert_eq!((&results[0], &results[2]), (&json!({"ok":true}), &json!({"ok":true})));
    assert_eq!(results[1]["error"]["code"], "bad_request");
    for member in &mut members {
        let first = member.hear_text();
        assert_eq!(first, r#"{"type":"message","room_id":"tower","payload":{"a":1.0}}"#);
        assert_eq!((member.hear_payload(), member.hear_payload()), (json!(1), json!(3)));
    }
    for wrong in ["", "{", r#"{"room_id":"a"}"#, r#"{"room_id":"a","payload":1,"nonsense":1}"#] {
        assert_eq!(node.post("/v1/publish", wrong).status, 400, "{wrong}");
    }
}

#[test]
fn operators_see_rooms_members_and_numbers() {
    let node = node();
    let _here = [
        Client::join(node.addr, &["a", "b"]),
        Client::join(node.addr, &["a"]),
        Client::join(node.addr, &["c"]),
    ];
    let rooms = node.get("/v1/rooms").json();
    let expected = json!([
        {"room_id":"a","members":2}, {"room_id":"b","members":1}, {"room_id":"c","members":1},
    ]);
    assert_eq!(rooms["rooms"], expected);
    assert_eq!(node.get("/v1/rooms?prefix=b").json()["rooms"][0]["room_id"], "b");
    assert_eq!(node.get("/v1/rooms/a").json(), json!({"room_id":"a","members":2}));
    assert_eq!(node.get("/v1/rooms/nobody").status, 404);
    node.wait_for("campanile_connections", 3);
    assert_eq!(node.metric("campanile_connections_upgraded_total"), 3);
    assert_eq!(node.get("/v1/stats").json()["connections"], 3);
    assert_eq!((node.get("/healthz").status, node.get("/healthz").body), (200, "ok".to_owned()));
    assert_eq!(node.get("/readyz").json(), json!({"ready":true}));
    assert_eq!(node.get("/nowhere").status, 404);
}

#[test]
fn the_page_is_served_and_nothing_else_is() {
    let node = node();
    let page = http::request(node.addr, "GET", "/", &[], "");
    assert_eq!(page.status, 200);
    assert_eq!(page.header("Content-Type"), Some("text/html; charset=utf-8"));
    assert_eq!(page.header("Content-Length"), Some(page.body.len().to_string().as_str()));
    assert!(page.body.contains("<title>Campanile</title>"));
    assert_eq!(http::request(node.addr, "HEAD", "/", &[], "").body, "");
    assert_eq!(http::request(node.addr, "POST", "/", &[], "").status, 405);
    assert_eq!(http::request(node.addr, "GET", "/favicon.ico", &[], "").status, 404);
    let without = Node::start_ready(&["--page", "false"]);
    assert_eq!(http::request(without.addr, "GET", "/", &[], "").status, 404);
}

#[test]
fn more_shards_than_cores_and_a_file_table_for_each() {
    let node = Node::start_ready(&["--shards", "4", "--private-fd-tables", "true"]);
    let mut clients: Vec<Client> = (0..40).map(|_| Client::join(node.addr, &["tower"])).collect();
    clients[0].say(r#"{"room_id":"tower","payload":"hello"}"#);
    for client in &mut clients {
        assert_eq!(client.hear_payload(), "hello");
    }
    drop(clients);
    node.wait_until_empty();
}
