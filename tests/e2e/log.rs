//! What the log looks like to a program that reads it.

use crate::client::{Client, FIN, TEXT};
use crate::node::Node;
use serde_json::Value;

#[test]
fn a_log_in_json_is_one_object_a_line_whatever_happens() {
    let mut node =
        Node::start_ready(&["--shards", "2", "--log-format", "json", "--log-level", "debug"]);
    let mut client = Client::join(node.addr, &["tower"]);
    client.say(r#"{"type":"join","room_id":"\"of\" 🔔","id":1}"#);
    assert_eq!(client.hear_type("ok")["id"], 1);
    let mut violator = Client::join(node.addr, &[]);
    violator.send(FIN | 0x40 | TEXT, b"{}");
    assert_eq!(violator.closed_with().0, 1002);
    drop((client, violator));
    node.wait_until_empty();
    node.signal("-TERM");
    assert!(node.ended().success());
    let log = node.logged();
    let lines: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    assert!(lines.iter().all(|line| line["level"].is_string()), "{log}");
    let has = |level: &str, text: &str| {
        let mut at_level = lines.iter().filter(|line| line["level"] == level);
        at_level.any(|line| line.to_string().contains(text))
    };
    assert!(has("INFO", "all limits together"), "{log}");
    assert!(has("WARN", "auth.hmac_secret is not set"), "{log}");
}
