//! What the README shows works as it stands there.

use crate::instances::nodes;
use crate::node::Node;
use crate::other_clients::installed;
use crate::redis::{Redis, wait_until};
use std::process::{Command, Stdio};

/// The first block of this language, with the addresses of real nodes in it.
fn snippet(language: &str, nodes: &[Node; 2]) -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
    let readme = std::fs::read_to_string(path).expect("there is a README");
    let (_, after) = readme.split_once(&format!("```{language}\n")).expect("such a block");
    let (code, _) = after.split_once("```").expect("the block ends");
    let [a, b] = nodes;
    let code = code.replace("127.0.0.1:8081", &a.addr.to_string());
    code.replace("127.0.0.1:8082", &b.addr.to_string())
}

#[test]
fn the_two_clients_of_the_readme_greet_each_other() {
    let redis = Redis::start();
    let nodes = nodes(&redis, &[]);
    let python = Command::new(installed("venv/bin/python"))
        .args(["-c", &snippet("python", &nodes)])
        .stdout(Stdio::piped())
        .spawn()
        .expect("python starts");
    wait_until("Python is in the room", || nodes[0].get("/v1/rooms/tower").status == 200);
    let js = Command::new("node")
        .env("NODE_PATH", installed("node/node_modules"))
        .args(["-e", &snippet("js", &nodes)])
        .output()
        .expect("node starts");
    let python = python.wait_with_output().expect("our own child");
    assert!(js.status.success() && python.status.success());
    assert_eq!(String::from_utf8_lossy(&python.stdout), "hello from Node\n");
    assert_eq!(String::from_utf8_lossy(&js.stdout), "hello from Node\nhello from Python\n");
}
