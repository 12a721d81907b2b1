//! More clients than there are descriptors for.

use crate::client::{Client, request_head};
use crate::http;
use crate::node::Node;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;

/// Our own process has a limit too, and all stories share it.
const FLOOD: usize = 150;
/// Descriptors that are left when clients begin to come.
const FILES_LEFT: usize = 30;

/// Everyone comes at once and asks; answers how many were let in, after all have left.
fn flood(node: &Node) -> usize {
    let mut streams: Vec<TcpStream> = (0..FLOOD).map(|_| http::connect(node.addr)).collect();
    for stream in &mut streams {
        // It may be refused already, and its reading half is gone.
        let _ = stream.write_all(request_head(node.addr, "/ws", "").as_bytes());
    }
    let let_in = streams.iter().filter(|stream| {
        let mut first = [0; 12];
        (&mut &**stream).read_exact(&mut first).expect("an answer for everyone");
        match &first {
            b"HTTP/1.1 101" => true,
            b"HTTP/1.1 503" => false,
            other => panic!("{}", String::from_utf8_lossy(other)),
        }
    });
    let_in.count()
}

fn refused(node: &Node, reason: &str) -> usize {
    let label = format!("reason=\"{reason}\"");
    node.metric_where("campanile_connections_rejected_total", &label) as usize
}

/// Afterwards it is as if nothing had happened.
fn serves_again(node: &Node) {
    node.wait_until_empty();
    let mut fresh = Client::join(node.addr, &["tower"]);
    fresh.say(r#"{"room_id":"tower","payload":"in"}"#);
    assert_eq!(fresh.hear_payload(), "in");
    drop(fresh);
    node.wait_for("campanile_connections", 0);
}

/// Leaves a running node only so many descriptors more than it has in use. The limit is on
/// numbers, and whoever runs the tests may have left it one with a high number: the free ones count.
fn leave_files(node: &Node, left: usize) {
    let folder = format!("/proc/{}/fd", node.pid());
    let in_use: Vec<u64> = std::fs::read_dir(folder)
        .expect("it runs")
        .map(|entry| entry.expect("our own child").file_name())
        .map(|name| name.to_string_lossy().parse().expect("a number"))
        .collect();
    let most = (0..).filter(|number| !in_use.contains(number)).nth(left).expect("it is endless");
    let (pid, files) = (node.pid().to_string(), format!("--nofile={most}:{most}"));
    let status = Command::new("prlimit").args(["--pid", &pid, &files]).status();
    assert!(status.expect("prlimit(1) of util-linux").success());
}

#[test]
fn whoever_comes_when_descriptors_have_run_out_is_told_so() {
    let node = Node::start_ready(&["--shards", "1"]);
    leave_files(&node, FILES_LEFT);
    for _ in 0..3 {
        let before = refused(&node, "no_files");
        let let_in = flood(&node);
        assert!(0 < let_in && let_in < FLOOD, "{let_in} of {FLOOD} were let in");
        serves_again(&node);
        assert!(refused(&node, "no_files") - before >= FLOOD - let_in);
    }
}

#[test]
fn a_node_started_with_few_descriptors_takes_what_fits_and_refuses_the_rest() {
    let node = Node::start_with_files(170, &["--shards", "1"]);
    let let_in = flood(&node);
    assert!(0 < let_in && let_in < FLOOD, "{let_in} of {FLOOD} were let in");
    serves_again(&node);
    assert!(refused(&node, "limit") + refused(&node, "no_files") >= FLOOD - let_in);
}
