//! Broken requests are answered and never end the connection.

use crate::client::Client;
use crate::node::Node;
use serde_json::json;

#[test]
fn broken_json_of_every_kind_is_answered_and_the_connection_stays() {
    let node = Node::start_ready(&["--shards", "1"]);
    let mut client = Client::join(node.addr, &["tower"]);
    let deep = |levels: usize| {
        let (open, shut) = ("[".repeat(levels), "]".repeat(levels));
        format!(r#"{{"room_id":"tower","payload":{open}{shut}}}"#)
    };
    let broken = [
        "",
        " ",
        "{",
        "}",
        "nonsense",
        "null",
        "[]",
        "1",
        r#""text""#,
        r#"{"type":"ping""#,
        r#"{"type":"ping"}}"#,
        r#"{"type":"ping"} {"type":"ping"}"#,
        r#"{"type":"ping",}"#,
        r#"{,"type":"ping"}"#,
        r#"{"type" "ping"}"#,
        r#"{type:"ping"}"#,
        r#"{'type':'ping'}"#,
        r#"{"type":"ping","a":01}"#,
        r#"{"type":"ping","a":1.}"#,
        r#"{"type":"ping","a":.5}"#,
        r#"{"type":"ping","a":+1}"#,
        r#"{"type":"ping","a":1e}"#,
        r#"{"type":"ping","a":NaN}"#,
        r#"{"type":"ping","a":tru}"#,
        r#"{"type":"ping","a":"\x"}"#,
        r#"{"type":"ping","a":"\u12"}"#,
        "{\"type\":\"ping\",\"a\":\"\n\"}",
        "{\"type\":\"ping\",\"a\":\"",
        r#"{"type":"ping","a":[1,]}"#,
        r#"{"type":"ping","a":[1}"#,
        r#"{"type":"ping"} // comment"#,
        "\u{feff}{\"type\":\"ping\"}",
        &deep(64),
        &deep(30_000),
        &"[".repeat(60_000),
        &r#"{"a":"#.repeat(10_000),
    ];
    for request in broken {
        let shown: String = request.chars().take(60).collect();
        client.say(request);
        let answer = client.hear();
        assert_eq!(
            (&answer["type"], &answer["code"]),
            (&json!("error"), &json!("bad_json")),
            "{shown}"
        );
        assert!(answer["message"].as_str().is_some_and(|text| !text.is_empty()), "{shown}");
    }
    client.say(deep(63));
    assert_eq!(client.hear()["type"], "message", "as deep as it may be");
    client.say(r#"{"type":"ping","id":1}"#);
    assert_eq!(client.hear(), json!({"type":"pong","id":1}));
    let rejected = broken.len() as u64;
    node.wait_for("campanile_request_errors_total", rejected);
}

#[test]
fn requests_that_make_no_sense_say_which_key_and_keep_their_id() {
    let node = Node::start_ready(&["--shards", "1"]);
    let mut client = Client::join(node.addr, &["tower"]);
    let long = "x".repeat(256);
    let cases = [
        ("bad_request", json!({"id":1})),
        ("bad_request", json!({"id":1,"type":"join"})),
        ("bad_request", json!({"id":1,"type":"join","room_id":""})),
        ("bad_request", json!({"id":1,"type":"join","room_id":7})),
        ("bad_request", json!({"id":1,"type":"join","room_id":"a\u{0}b"})),
        ("bad_request", json!({"id":1,"type":"join","room_id":long})),
        ("bad_request", json!({"id":1,"type":"publish","room_id":"tower"})),
        ("bad_request", json!({"id":1,"type":"publish","room_id":"tower","payload":1,"echo":"no"})),
        ("bad_request", json!({"id":1,"type":"send","payload":1})),
        ("bad_request", json!({"id":1,"type":7})),
        ("bad_request", json!({"id":1,"room_id":"tower","target_user_id":"u","payload":1})),
        ("unknown_type", json!({"id":1,"type":"dance"})),
        ("not_joined", json!({"id":1,"type":"leave","room_id":"elsewhere"})),
    ];
    for (code, request) in cases {
        client.say(request.to_string());
        let answer = client.hear();
        assert_eq!((&answer["code"], &answer["id"]), (&json!(code), &json!(1)), "{request}");
    }
    client.say(r#"{"id":1,"type":"leave","type":"join","room_id":"tower"}"#);
    assert_eq!(client.hear()["code"], "bad_request", "a key that comes twice is not picked");
    client.nothing_more();
}

#[test]
fn a_client_may_be_in_so_many_rooms_and_no_more() {
    let node = Node::start_ready(&["--shards", "1", "--limits-rooms-per-connection-max", "3"]);
    let mut client = Client::join(node.addr, &["a", "b", "c"]);
    client.say(r#"{"type":"join","room_id":"d","id":1}"#);
    assert_eq!(client.hear()["code"], "too_many_rooms");
    client.say(r#"{"type":"join","room_id":"a","id":2}"#);
    assert_eq!(client.hear()["type"], "ok", "joining again is no further room");
    client.say(r#"{"type":"leave","room_id":"b","id":3}"#);
    assert_eq!(client.hear()["type"], "ok");
    client.say(r#"{"type":"join","room_id":"d","id":4}"#);
    assert_eq!(client.hear()["type"], "ok");
    let too_many = Client::try_open(node.addr, "/ws?room_id=a&room_id=b&room_id=c&room_id=d", "");
    assert_eq!(too_many.err().map(|reply| reply.status), Some(400));
}
