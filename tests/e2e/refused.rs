//! Clients that are not admitted: what they see of the reason, and what the log says of them.

use crate::acks::{SECRET, token};
use crate::client::{CLOSE, Client, FIN};
use crate::node::Node;
use crate::other_clients::node_js;
use crate::redis::wait_until;
use campanile::auth::{TokenRequest, mint};
use serde_json::{Value, json};

const CLOSING: [&str; 8] = [
    "--rejected-handshakes",
    "close",
    "--auth-hmac-secret",
    SECRET,
    "--origins",
    "https://a.example",
    "--log-level",
    "debug",
];

/// A token that was good until 2001.
fn expired(user: &str) -> String {
    let request = TokenRequest {
        user: user.to_owned(),
        rights: None,
        rooms: Vec::new(),
        send: Vec::new(),
        info: None,
        issued_unix_s: 1_000_000_000,
        expires_unix_s: 1_000_000_000,
    };
    mint(&request, SECRET).expect("a good request")
}

#[test]
fn a_refused_client_receives_an_error_and_a_close_code_where_that_is_wanted() {
    let node = Node::start_ready(&CLOSING);
    let stranger = "Origin: https://b.example\r\n";
    let good = format!("/ws?token={}", token("ann"));
    for (path, headers, code, close) in [
        ("/ws?token=wrong", "", "unauthorized", 4401),
        ("/ws", "", "unauthorized", 4401),
        (good.as_str(), stranger, "forbidden", 4403),
    ] {
        let mut client = Client::try_open(node.addr, path, headers).expect("it is accepted");
        let error = client.hear();
        assert_eq!((&error["type"], &error["code"]), (&json!("error"), &json!(code)), "{error}");
        let (closed, reason) = client.close_frame();
        assert_eq!((closed, Some(reason.as_str())), (close, error["message"].as_str()));
        // What it says is ignored, and nothing keeps the connection.
        client.say(r#"{"type":"broadcast","payload":1}"#);
        client.send(FIN | CLOSE, &close.to_be_bytes());
        assert_eq!(client.next_frame(), None);
    }
    let rejected = || node.metric_where("campanile_connections_rejected_total", r#"reason="auth""#);
    wait_until("each is counted as a refused one", || rejected() == 3);
    node.wait_until_empty();
    // What no client may be helped with is answered as ever.
    let bad_room = format!("{good}&room_id=%20x");
    let reply = Client::try_open(node.addr, &bad_room, "").err().expect("no WebSocket");
    assert_eq!(reply.status, 400);
}

#[test]
fn a_refused_client_that_stays_is_closed_in_time() {
    let quick = [&CLOSING[..], &["--limits-close-timeout-ms", "200"]].concat();
    let node = Node::start_ready(&quick);
    let mut clients: Vec<Client> =
        (0..20).map(|_| Client::open(node.addr, "/ws?token=wrong")).collect();
    node.wait_until_empty();
    for client in &mut clients {
        assert_eq!(client.hear_type("error")["code"], "unauthorized");
    }
}

#[test]
fn a_client_of_others_sees_the_reason() {
    let node = Node::start_ready(&CLOSING);
    let url = format!("ws://{}/ws?token={}", node.addr, expired("ann"));
    let output = node_js("clients/refused.js").arg(url).output().expect("node starts");
    let text = String::from_utf8_lossy(&output.stdout);
    let seen: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    assert_eq!(seen["messages"][0]["code"], "unauthorized");
    assert_eq!((&seen["code"], &seen["reason"]), (&json!(4401), &json!("this token has expired")));
}

#[test]
fn the_log_names_user_address_and_reason_of_a_refused_client() {
    let args = ["--auth-hmac-secret", SECRET, "--log-level", "debug"];
    let node = Node::start_ready(&args);
    let path = format!("/ws?token={}", expired("ann"));
    assert_eq!(Client::try_open(node.addr, &path, "").err().map(|reply| reply.status), Some(401));
    let log = node.logged();
    let line = log.lines().find(|line| line.contains("connection refused")).expect("a line");
    for word in ["DEBUG", "peer=\"127.0.0.1:", "user=\"ann\"", "Expired"] {
        assert!(line.contains(word), "{word}: {line}");
    }
    assert!(!log.contains(&path), "no token is logged");
    // A token that is signed with another key names nobody.
    let _ = Client::try_open(node.addr, "/ws?token=a.b.c", "");
    let log = node.logged();
    let line = log.lines().rfind(|line| line.contains("connection refused")).expect("a line");
    assert!(line.contains("Invalid") && !line.contains("user="), "{line}");
}
