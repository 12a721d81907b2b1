//! Tokens inside the protocol: among the subprotocols, as first message, as another one on an open
//! connection, and for one room.

use crate::client::{CLOSE, Client, FIN, PING, PONG, TEXT, frame, request_head};
use crate::http;
use crate::node::Node;
use crate::redis::wait_until;
use campanile::auth::{RoomTokenRequest, mint_for_room};
use campanile::policy::grants::RoomActions;
use jsonwebtoken::{EncodingKey, Header, encode};
use serde_json::json;
use std::io::{Read as _, Write as _};
use std::time::{SystemTime, UNIX_EPOCH};

const SECRET: &str = "a secret of the tests";

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("it is past 1970").as_secs()
}

fn room_token(user: &str, room: &str, expires_in_s: u64) -> String {
    let (user, room, actions) = (user.to_owned(), room.to_owned(), RoomActions::ALL);
    let expires_unix_s = now_s() + expires_in_s;
    let request = RoomTokenRequest { user, room, actions, expires_unix_s };
    mint_for_room(&request, SECRET).expect("good claims")
}

fn signed(claims: serde_json::Value) -> String {
    room_token("whoever", "a", 1); // It installs what tokens are signed with.
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    encode(&Header::default(), &claims, &key).expect("JSON")
}

fn token(user: &str, expires_in_s: u64) -> String {
    signed(json!({"sub": user, "exp": now_s() + expires_in_s}))
}

fn node(args: &[&str]) -> Node {
    Node::start_ready(&[&["--auth-hmac-secret", SECRET], args].concat())
}

fn offers(token: &str) -> String {
    format!("Sec-WebSocket-Protocol: campanile.v1, campanile.token.{token}\r\n")
}

fn auth(token: &str) -> String {
    json!({"type": "auth", "token": token, "id": 1}).to_string()
}

#[test]
fn a_token_among_the_subprotocols_is_taken_and_never_repeated() {
    let node = node(&["--log-level", "trace"]);
    let good = token("ann", 60);
    let mut ann = Client::try_open(node.addr, "/ws", &offers(&good)).expect("it is good");
    assert!(ann.head.contains("Sec-WebSocket-Protocol: campanile.v1\r\n"), "{}", ann.head);
    assert!(!ann.head.contains("campanile.token"), "{}", ann.head);
    assert_eq!(ann.hear_type("welcome")["user_id"], "ann");
    let other = token("bob", 60);
    let refused = |path: &str, headers: &str| {
        let reply = Client::try_open(node.addr, path, headers).err().expect("it is refused");
        assert!(!reply.body.contains(&good) && !reply.body.contains(&other), "{}", reply.body);
        (reply.status, reply.body)
    };
    assert_eq!(refused("/ws", &offers("a.b.c")).0, 401);
    for (path, headers) in [
        (format!("/ws?token={other}"), offers(&good)),
        (format!("/ws?token={good}&token={other}"), String::new()),
        ("/ws".to_owned(), format!("{}Authorization: Bearer {other}\r\n", offers(&good))),
        ("/ws".to_owned(), format!("{}{}", offers(&good), offers(&other))),
    ] {
        let (status, body) = refused(&path, &headers);
        assert!(status == 400 && body.contains("two different tokens"), "{status} {body}");
    }
    let same = format!("{}Authorization: Bearer {good}\r\n", offers(&good));
    assert!(Client::try_open(node.addr, "/ws", &same).is_ok(), "the same one twice is one");
    let log = node.logged();
    assert!(!log.contains(&good) && !log.contains(&other), "{log}");
}

#[test]
fn a_client_that_comes_without_a_token_sends_one_first_and_is_in_its_rooms_then() {
    let node = node(&["--auth-first-message-timeout-ms", "60000"]);
    let mut ann = Client::open(node.addr, "/ws?room_id=tower&room_id=hall");
    node.wait_for("campanile_connections_handshaking", 1);
    ann.send(FIN | PING, b"?");
    assert_eq!(ann.next_frame().map(|frame| frame.opcode()), Some(PONG));
    ann.say(auth(&token("ann", 60)));
    assert_eq!(ann.hear()["user_id"], "ann", "the welcome is the first message");
    for _ in 0..3 {
        let ok = ann.hear_type("ok");
        assert!(ok["id"] == 1 || ok["room_id"] == "tower" || ok["room_id"] == "hall", "{ok}");
    }
    ann.say(r#"{"room_id":"tower","payload":1}"#);
    assert_eq!(ann.hear_payload(), 1);
    // With its request, and with what follows.
    let mut stream = http::connect(node.addr);
    let ping = frame(FIN | TEXT, br#"{"type":"ping"}"#);
    let first = frame(FIN | TEXT, auth(&token("bob", 60)).as_bytes());
    let head = request_head(node.addr, "/ws", "");
    stream.write_all(&[head.as_bytes(), &first, &ping].concat()).expect("it reads");
    let mut answer = Vec::new();
    while !String::from_utf8_lossy(&answer).contains(r#"{"type":"pong"}"#) {
        let mut part = [0; 4096];
        let n = stream.read(&mut part).expect("an answer");
        assert!(n > 0, "{}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&part[..n]);
    }
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(
        answer.starts_with("HTTP/1.1 101") && answer.contains(r#""user_id":"bob""#),
        "{answer}"
    );
    // A token in the request is still judged there.
    let refused = Client::try_open(node.addr, "/ws?token=a.b.c", "").err();
    assert_eq!(refused.expect("it is no token").status, 401);
}

#[test]
fn whoever_sends_something_else_first_or_a_bad_token_is_closed_with_4401() {
    let node = node(&["--auth-first-message-timeout-ms", "60000"]);
    for said in [
        r#"{"type":"join","room_id":"tower","id":1}"#.to_owned(),
        auth("a.b.c"),
        auth(&room_token("ann", "tower", 60)),
        "nonsense".to_owned(),
    ] {
        let mut client = Client::open(node.addr, "/ws?room_id=tower");
        client.say(&said);
        assert_eq!(client.hear_type("error")["code"], "unauthorized", "{said}");
        assert_eq!(client.close_frame().0, 4401, "{said}");
        client.send(FIN | CLOSE, &4401u16.to_be_bytes());
    }
    node.wait_for("campanile_connections_upgraded_total", 0);
    let refused = || node.metric_where("campanile_connections_rejected_total", r#"reason="auth""#);
    wait_until("they are counted", || refused() == 4);
    node.wait_until_empty();
}

#[test]
fn a_client_that_sends_no_token_in_time_is_closed_with_4401_and_takes_a_place_of_a_handshake() {
    let args = ["--auth-first-message-timeout-ms", "300", "--limits-handshakes-max", "2"];
    let node = node(&[&args[..], &["--shards", "1"]].concat());
    let mut silent: Vec<Client> = (0..2).map(|_| Client::open(node.addr, "/ws")).collect();
    for client in &mut silent {
        assert_eq!(client.hear_type("error")["code"], "unauthorized");
        assert_eq!(client.close_frame().0, 4401);
    }
    let counted =
        || node.metric_where("campanile_connections_rejected_total", r#"reason="auth_timeout""#);
    wait_until("they are counted", || counted() == 2);
    drop(silent);
    node.wait_until_empty();
    let mut late = Client::open(node.addr, "/ws");
    late.say(auth(&token("ann", 60)));
    assert_eq!(late.hear()["type"], "welcome", "the places are free again");
}

#[test]
fn no_more_clients_wait_for_their_token_than_handshakes_may_be_under_way() {
    let args = ["--auth-first-message-timeout-ms", "60000", "--limits-handshakes-max", "2"];
    let node = node(&[&args[..], &["--shards", "1"]].concat());
    let _silent: Vec<Client> = (0..2).map(|_| Client::open(node.addr, "/ws")).collect();
    let refused = Client::try_open(node.addr, "/ws", "").err().expect("it is one too many");
    assert_eq!(refused.status, 503);
}

#[test]
fn another_token_replaces_the_first_and_the_end_of_each_is_announced() {
    let node = node(&["--auth-expiry-notice-s", "600", "--auth-leeway-s", "0"]);
    let (mut ann, _) = Client::greeted(node.addr, &["tower"], &token("ann", 500));
    let notice = ann.hear_type("token_expires");
    assert!(notice["in_ms"].as_u64().expect("a number") > 100_000, "{notice}");
    ann.say(auth(&token("bob", 60)));
    assert_eq!(ann.hear_type("error")["code"], "forbidden");
    ann.say(auth("a.b.c"));
    assert_eq!(ann.hear_type("error")["code"], "unauthorized");
    ann.say(auth(&token("ann", 3)));
    assert_eq!(ann.hear_type("ok")["id"], 1);
    let notice = ann.hear_type("token_expires");
    assert!(notice["in_ms"].as_u64().expect("a number") < 5000, "{notice}");
    assert_eq!(ann.close_frame(), (4401, "token_expired".to_owned()));
    let told = || node.metric("campanile_token_expiry_notices_total");
    wait_until("they are counted", || told() == 2);
    let refused = || node.metric_where("campanile_token_checks_total", r#"result="refused""#);
    wait_until("they are counted", || refused() == 2);
}

#[test]
fn a_new_token_takes_rooms_and_rights_away_at_once() {
    let node = node(&[]);
    let (mut ann, _) = Client::greeted(node.addr, &["tower", "hall"], &token("ann", 60));
    let narrow = json!({"sub": "ann", "exp": now_s() + 60, "rooms": {"join": ["hall"]}});
    ann.say(auth(&signed(narrow)));
    assert_eq!(ann.hear_type("ok")["id"], 1);
    let removed = ann.hear_type("removed");
    assert_eq!((&removed["room_id"], &removed["reason"]), (&json!("tower"), &json!("forbidden")));
    let (mut bob, _) = Client::greeted(node.addr, &["tower", "hall"], &token("bob", 60));
    bob.say(r#"{"room_id":"tower","payload":"not for ann"}"#);
    bob.say(r#"{"room_id":"hall","payload":"for ann"}"#);
    assert_eq!(ann.hear_payload(), "for ann");
    ann.say(r#"{"type":"publish","room_id":"hall","payload":1,"id":2}"#);
    assert_eq!(ann.hear_type("error")["code"], "forbidden");
}

#[test]
fn a_token_for_a_room_opens_it_until_it_expires() {
    let node = node(&["--auth-leeway-s", "0", "--namespaces", "vip: join=token, publish=token"]);
    let (mut ann, _) = Client::greeted(node.addr, &[], &token("ann", 60));
    let join = |room: &str, token: &str| {
        json!({"type": "join", "room_id": room, "token": token, "id": 1}).to_string()
    };
    for (token, code) in [
        (room_token("ann", "vip:b", 60), "forbidden"),
        (room_token("bob", "vip:a", 60), "forbidden"),
        (token("ann", 60), "unauthorized"),
        ("a.b.c".to_owned(), "unauthorized"),
    ] {
        ann.say(join("vip:a", &token));
        assert_eq!(ann.hear_type("error")["code"], code, "{token}");
    }
    ann.say(join("vip:a", &room_token("ann", "vip:a", 2)));
    assert_eq!(ann.hear_type("ok")["room_id"], "vip:a");
    ann.say(r#"{"room_id":"vip:a","payload":1}"#);
    assert_eq!(ann.hear_payload(), 1);
    let removed = ann.hear_type("removed");
    assert_eq!(
        (&removed["room_id"], &removed["reason"]),
        (&json!("vip:a"), &json!("token_expired"))
    );
    ann.say(r#"{"type":"publish","room_id":"vip:a","payload":2,"id":2}"#);
    assert_eq!(ann.hear_type("error")["code"], "forbidden");
    let counted =
        || node.metric_where("campanile_rooms_removed_total", r#"reason="token_expired""#);
    wait_until("it is counted", || counted() == 1);
}

#[test]
fn a_client_without_a_token_is_let_into_a_room_by_its_name() {
    let node = node(&["--auth-anonymous", "true", "--namespaces", "vip: join=token"]);
    let mut guest = Client::open(node.addr, "/ws");
    let name = guest.hear_type("welcome")["user_id"].as_str().expect("a name").to_owned();
    let token = room_token(&name, "vip:a", 60);
    let join = json!({"type": "join", "room_id": "vip:a", "token": token, "id": 1}).to_string();
    guest.say(&join);
    assert_eq!(guest.hear_type("ok")["room_id"], "vip:a");
    let mut other = Client::open(node.addr, "/ws");
    other.hear_type("welcome");
    other.say(&join);
    assert_eq!(other.hear_type("error")["code"], "forbidden", "it is for another one");
}
