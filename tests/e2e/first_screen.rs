//! What a person sees who starts the server for the first time.

use crate::http;
use crate::node::Node;
use crate::redis::wait_until;
use std::fs::File;
use std::net::SocketAddr;
use std::path::PathBuf;

/// What is printed and logged by a node that is started without a configuration.
fn screen_of(node: &Node, stdout: &PathBuf) -> String {
    let printed = || std::fs::read_to_string(stdout).expect("it is there");
    wait_until("the last line is printed", || printed().contains("API http://"));
    printed() + &node.logged()
}

/// The URL behind a word.
fn url_behind<'a>(word: &str, screen: &'a str) -> &'a str {
    let (_, rest) = screen.split_once(&format!("{word} http://")).expect("the screen names it");
    rest.split([',', '\n', ' ']).next().expect("it has an end")
}

/// Status and body of a GET.
fn get(url: &str) -> http::Reply {
    let (addr, path) = url.split_once('/').expect("a URL has a path");
    http::request(
        addr.parse::<SocketAddr>().expect("an address"),
        "GET",
        &format!("/{path}"),
        &[],
        "",
    )
}

#[test]
fn the_first_screen_has_five_lines_at_most_and_names_urls_that_answer() {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("first-screen-{}", std::process::id()));
    let node = Node::start_with_stdout(File::create(&path).expect("a file"), &[]);
    let screen = screen_of(&node, &path);
    assert!(screen.lines().count() <= 5, "{screen}");
    assert!(screen.contains("WARN"), "anybody may connect:\n{screen}");
    let page = get(url_behind("page", &screen));
    assert!(page.status == 200 && page.body.contains("<html"), "{}", page.body);
    let api = get(url_behind("API", &screen));
    assert!(api.status == 200 && api.body.contains("\"connections\""), "{}", api.body);
    std::fs::remove_file(path).expect("it is ours");
}

#[test]
fn a_node_without_a_page_names_none() {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("first-screen-no-page-{}", std::process::id()));
    let args = ["--page", "false", "--auth-hmac-secret", "0123456789abcdef0123456789abcdef"];
    let node = Node::start_with_stdout(File::create(&path).expect("a file"), &args);
    let screen = screen_of(&node, &path);
    assert!(!screen.contains("WARN") && screen.lines().count() <= 5, "{screen}");
    assert!(!screen.contains("page http"), "{screen}");
    assert_eq!(get(url_behind("API", &screen)).status, 200);
    std::fs::remove_file(path).expect("it is ours");
}
