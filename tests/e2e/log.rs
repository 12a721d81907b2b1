//! What the log looks like to a program that reads it, and what becomes of the node when none does.

use crate::client::{CLOSE, Client, FIN, TEXT};
use crate::node::Node;
use crate::redis::wait_until;
use serde_json::Value;
use std::fs::File;
use std::io::{PipeWriter, Write};
use std::net::{SocketAddr, TcpStream};

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
    assert!(has("DEBUG", "all limits together"), "{log}");
    assert!(has("DEBUG", "Plan {"), "{log}");
    assert!(has("WARN", "auth.hmac_secret is not set"), "{log}");
}

const CLIENTS: usize = 50;
/// At debug, each connection that says something is a line. Nothing says how many fit into a queue,
/// so they come until one does not.
const LINES_AT_ONCE: usize = 500;

/// A connection that goes in the middle of its request. It may be refused.
fn half_a_request(addr: SocketAddr) {
    if let Ok(mut stream) = TcpStream::connect(addr) {
        let _ = stream.write_all(b"G");
    }
}

/// Asserts that a node whose lines go nowhere serves its clients, counts the lines as dropped for
/// `reason`, and drains. `spoil` is called once it serves.
fn serves_whatever_becomes_of_its_log(mut node: Node, reason: &str, spoil: impl FnOnce()) {
    let mut clients: Vec<Client> =
        (0..CLIENTS).map(|_| Client::join(node.addr, &["tower"])).collect();
    spoil();
    let label = format!("reason=\"{reason}\"");
    let dropped = || node.metric_where("campanile_log_lines_dropped_total", &label);
    let before = dropped();
    wait_until("a line is dropped", || {
        (0..LINES_AT_ONCE).for_each(|_| half_a_request(node.addr));
        dropped() > before
    });
    clients[0].say(r#"{"room_id":"tower","payload":"still here"}"#);
    for client in &mut clients {
        assert_eq!(client.hear_payload(), "still here");
    }
    drop(Client::join(node.addr, &["tower"]));
    assert_eq!(node.get("/healthz").status, 200);
    node.signal("-TERM");
    for client in &mut clients {
        assert_eq!(client.hear_type("reconnect")["type"], "reconnect");
        assert_eq!(client.close_frame().0, 1001);
        client.send(FIN | CLOSE, &1001u16.to_be_bytes());
    }
    assert_eq!(node.ended().code(), Some(0));
}

const LOUD: [&str; 8] = [
    "--shards",
    "2",
    "--log-level",
    "debug",
    "--drain-ms",
    "300",
    "--limits-close-timeout-ms",
    "500",
];

#[test]
fn a_log_on_a_full_disk_costs_lines_and_nothing_else() {
    let full = File::options().write(true).open("/dev/full").expect("Linux has one");
    serves_whatever_becomes_of_its_log(Node::start_with_stderr(full, &LOUD), "write_failed", || {});
}

#[test]
fn a_log_whose_reader_has_gone_costs_lines_and_nothing_else() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let node = Node::start_with_stderr(writer, &LOUD);
    serves_whatever_becomes_of_its_log(node, "write_failed", || {});
    // As `… 2>&1 | head -1` does it.
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let node = Node::start_with_stderr(writer, &LOUD);
    serves_whatever_becomes_of_its_log(node, "write_failed", || drop(reader));
}

/// Ends at once.
const QUICK: [&str; 6] = ["--shards", "1", "--drain-ms", "0", "--limits-close-timeout-ms", "200"];

/// Fills a pipe until nothing fits any more, whatever it holds; ends when the reader goes.
fn fill(mut writer: PipeWriter) {
    std::thread::spawn(move || while writer.write_all(&[b'.'; 4096]).is_ok() {});
}

#[test]
fn a_log_that_nobody_reads_keeps_no_thread_waiting() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    fill(writer.try_clone().expect("descriptors"));
    let node = Node::start_with_stderr(writer, &LOUD);
    serves_whatever_becomes_of_its_log(node, "queue_full", || {});
    drop(reader);
}

#[test]
fn a_node_says_where_it_listens_and_goes_on_whether_or_not_anybody_reads_it() {
    let (full_reader, full) = std::io::pipe().expect("a pipe");
    fill(full.try_clone().expect("descriptors"));
    let (gone_reader, gone) = std::io::pipe().expect("a pipe");
    drop(gone_reader);
    for stdout in [full, gone] {
        let mut node = Node::start_with_stdout(stdout, &QUICK);
        let mut client = Client::join(node.addr, &["tower"]);
        client.say(r#"{"room_id":"tower","payload":"heard"}"#);
        assert_eq!(client.hear_payload(), "heard");
        drop(client);
        node.signal("-TERM");
        assert_eq!(node.ended().code(), Some(0), "{}", node.logged());
    }
    drop(full_reader);
}

#[test]
fn the_last_line_of_a_node_that_ends_is_in_its_log() {
    for _ in 0..5 {
        let mut node = Node::start_ready(&QUICK);
        node.signal("-TERM");
        assert_eq!(node.ended().code(), Some(0));
        let log = node.logged();
        let last = log.lines().last().expect("it logs");
        assert!(last.contains("drained"), "{log}");
    }
}
