//! Whoever reaches the operators' port may be anybody; who asks there whether the node lives is
//! answered.
//!
//! A load balancer that is not answered takes the node for dead. "In time" is here far less than
//! the 90 seconds for which a connection may be silent, and no measurement.

use crate::http::{self, Reply};
use crate::node::Node;
use crate::redis::wait_until;
use socket2::{Domain, Socket, Type};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long a load balancer waits for an answer.
const PROBE_MAX: Duration = Duration::from_secs(5);
/// A head may take 5 seconds, a body 15, and a machine that is busy is granted some more.
const ENDED_MAX: Duration = Duration::from_secs(40);
/// As many as the port has places.
const PLACES: usize = 64;
/// Requests that are carried out at a time.
const TURNS: usize = 48;
const HALF: &str = "GET /healthz HTTP/1.1\r\nHost: x\r\n";
const KEY: &str = "0123456789abcdef";

/// Connects and says this.
fn say(addr: SocketAddr, text: &str) -> TcpStream {
    let mut stream = TcpStream::connect(addr).expect("it listens");
    // Its place may have been taken already.
    let _ = stream.write_all(text.as_bytes());
    stream
}

/// Asserts that the node says how it is to somebody who comes now.
fn is_answered(node: &Node) {
    for path in ["/healthz", "/readyz"] {
        let mut probe = say(
            node.ops,
            &format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", node.ops),
        );
        probe.set_read_timeout(Some(PROBE_MAX)).expect("not zero");
        let mut first = [0; 12];
        probe.read_exact(&mut first).unwrap_or_else(|error| panic!("{path}: {error}"));
        assert_eq!(&first, b"HTTP/1.1 200", "{path}");
    }
}

/// Reads what came; whether that was all, because the node has ended the connection.
fn has_ended(stream: &mut TcpStream) -> bool {
    stream.set_nonblocking(true).expect("a live socket");
    let mut bytes = [0; 65_536];
    loop {
        match stream.read(&mut bytes) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
            Err(_) => return true,
        }
    }
}

/// Asserts that the node ends each of these, and answers others meanwhile.
fn all_end(node: &Node, streams: &mut Vec<TcpStream>, mut meanwhile: impl FnMut(&mut TcpStream)) {
    let deadline = Instant::now() + ENDED_MAX;
    while !streams.is_empty() {
        assert!(Instant::now() < deadline, "{} connections are never ended", streams.len());
        streams.retain_mut(|stream| !has_ended(stream));
        streams.iter_mut().for_each(&mut meanwhile);
        is_answered(node);
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn closed_for(node: &Node, reason: &str) -> u64 {
    node.metric_where("campanile_ops_connections_closed_total", &format!("reason=\"{reason}\""))
}

#[test]
fn half_a_head_keeps_nobody_from_asking_and_is_given_up_in_time() {
    let node = Node::start_ready(&["--shards", "1"]);
    for text in ["", "G", HALF] {
        let mut held: Vec<_> = (0..PLACES).map(|_| say(node.ops, text)).collect();
        is_answered(&node);
        all_end(&node, &mut held, |_| {});
    }
    assert!(closed_for(&node, "evicted") > 0);
    // Nobody else wants its place; its time is up all the same.
    let before = closed_for(&node, "slow_head");
    let held = say(node.ops, HALF);
    wait_until("it is given up", || closed_for(&node, "slow_head") > before);
    drop(held);
}

#[test]
fn a_head_that_drips_buys_no_time() {
    let node = Node::start_ready(&["--shards", "1"]);
    let mut held: Vec<_> = (0..PLACES).map(|_| say(node.ops, HALF)).collect();
    all_end(&node, &mut held, |stream| {
        let _ = stream.write_all(b"X");
    });
}

const WORDS: [&str; 4] = ["", "G", HALF, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"];

#[test]
fn far_more_connections_than_places_keep_nobody_from_asking() {
    let node = Node::start_ready(&["--shards", "1"]);
    for _ in 0..10 {
        let crowd = (0..4 * PLACES).map(|n| say(node.ops, WORDS[n % WORDS.len()]));
        let crowd: Vec<_> = crowd.collect();
        is_answered(&node);
        assert!(node.metric("campanile_ops_connections") <= PLACES as u64);
        drop(crowd);
    }
    assert!(closed_for(&node, "evicted") > PLACES as u64);
}

/// The same from another address of this machine.
fn say_from_elsewhere(addr: SocketAddr, text: &str) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from(([127, 0, 0, 2], 0)).into()).expect("all of 127/8 is ours");
    socket.connect(&addr.into()).expect("it listens");
    let mut stream = TcpStream::from(socket);
    // Its place may have been taken already.
    let _ = stream.write_all(text.as_bytes());
    stream
}

/// However fast they come: in the time that it takes to ask, hundreds of others may have connected.
#[test]
fn one_host_that_connects_as_fast_as_it_can_evicts_only_its_own() {
    let node = Node::start_ready(&["--shards", "1"]);
    let mut scraper = say(node.ops, WORDS[3]);
    for _ in 0..10 {
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let crowd = scope.spawn(|| {
                let words = |n| WORDS[n % WORDS.len()];
                let crowd = (0..4 * PLACES).map(|n| say_from_elsewhere(node.ops, words(n)));
                let crowd: Vec<_> = crowd.collect();
                is_over.store(true, Ordering::Relaxed);
                crowd
            });
            while !is_over.load(Ordering::Relaxed) {
                is_answered(&node);
            }
            drop(crowd.join().expect("it only connects"));
        });
        let mut answer = [0; 4096];
        assert!(scraper.read(&mut answer).expect("it is still there") > 0);
        assert!(answer.starts_with(b"HTTP/1.1 200"));
        scraper.write_all(WORDS[3].as_bytes()).expect("it is still there");
    }
    assert!(closed_for(&node, "evicted") > PLACES as u64);
}

/// A request with a body that does not come.
fn bodiless(key: &str) -> String {
    format!(
        "POST /v1/publish/batch HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n\
         Authorization: Bearer {key}\r\nContent-Length: 1000000\r\n\r\n"
    )
}

#[test]
fn who_has_no_key_is_refused_before_the_body_is_waited_for() {
    let node = Node::start_ready(&["--shards", "1", "--ops-api-key", KEY]);
    let mut held: Vec<_> = (0..2 * TURNS).map(|_| say(node.ops, &bodiless("guessed"))).collect();
    is_answered(&node);
    for stream in held.iter_mut().rev().take(TURNS) {
        stream.set_read_timeout(Some(http::PATIENCE)).expect("not zero");
        let mut first = [0; 12];
        stream.read_exact(&mut first).expect("an answer");
        assert_eq!(&first, b"HTTP/1.1 401");
    }
    // Whoever has a key has a turn: none of those has one.
    let mut owner = say(node.ops, &bodiless(KEY));
    owner.write_all(br#"{"messages":[]}"#).expect("it takes bodies");
    owner.write_all(&[b' '; 1_000_000 - 15]).expect("it takes bodies");
    owner.set_read_timeout(Some(http::PATIENCE)).expect("not zero");
    let mut first = [0; 12];
    owner.read_exact(&mut first).expect("an answer");
    assert_eq!(&first, b"HTTP/1.1 200");
    all_end(&node, &mut held, |stream| {
        let _ = stream.write_all(b" ");
    });
}

#[test]
fn callers_with_a_key_whose_bodies_drip_keep_nobody_from_asking_and_are_given_up() {
    let node = Node::start_ready(&["--shards", "1", "--ops-api-key", KEY]);
    let mut held: Vec<_> = (0..TURNS).map(|_| say(node.ops, &bodiless(KEY))).collect();
    let stats = || {
        let bearer = format!("Bearer {KEY}");
        http::request(node.ops, "GET", "/v1/stats", &[("Authorization", &bearer)], "").status
    };
    wait_until("there is no turn left", || stats() == 503);
    let mut crowd: Vec<_> = (0..PLACES).map(|_| say(node.ops, HALF)).collect();
    is_answered(&node);
    let answered = held.iter().map(|stream| stream.try_clone().expect("descriptors"));
    let mut answered: Vec<TcpStream> = answered.collect();
    all_end(&node, &mut crowd, |_| {});
    all_end(&node, &mut held, |stream| {
        let _ = stream.write_all(b" ");
    });
    assert!(answered.iter_mut().all(has_ended));
    wait_until("there are turns again", || stats() == 200);
    let refused = |reason: &str| {
        node.metric_where("campanile_ops_requests_refused_total", &format!("reason=\"{reason}\""))
    };
    assert!(refused("too_many") > 0 && refused("slow_body") > 0, "both are counted");
}

#[test]
fn clients_that_ask_and_never_read_keep_nobody_from_asking() {
    let node = Node::start_ready(&["--shards", "1"]);
    let mut held: Vec<_> = (0..PLACES).map(|_| say(node.ops, HALF)).collect();
    // As many questions as the kernel takes: the answers do not fit into its buffers.
    for stream in &mut held {
        stream.set_nonblocking(true).expect("a live socket");
        let _ = stream.write_all(b"\r\n");
        let many = "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n".repeat(10_000);
        let _ = stream.write_all(many.as_bytes());
    }
    (0..20).for_each(|_| is_answered(&node));
    drop(held);
    (0..PLACES / 2).for_each(|_| is_answered(&node));
}

#[test]
fn a_wrong_key_is_answered_late_counted_and_logged_once() {
    let node = Node::start_ready(&["--shards", "1", "--ops-api-key", KEY]);
    let ask = |key: &str| {
        let head = format!(
            "GET /v1/rooms HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {key}\r\nConnection: close\r\n\r\n"
        );
        let mut stream = http::connect(node.ops);
        stream.write_all(head.as_bytes()).expect("it reads heads");
        Reply::read(stream).expect("an answer").status
    };
    assert_eq!(ask(KEY), 200);
    for _ in 0..3 {
        assert_eq!(ask("0123456789abcdeF"), 401);
    }
    let refused = || node.metric("campanile_ops_requests_refused_total");
    assert_eq!(refused(), 3);
    assert_eq!(node.logged().matches("no key or a wrong one").count(), 1, "{}", node.logged());
}

#[test]
fn pages_proxies_and_codings_are_refused_in_our_own_words() {
    let node = Node::start_ready(&["--shards", "1"]);
    let ask = |request: &str, headers: &str, body: &str| {
        let text = format!(
            "{request} HTTP/1.1\r\nHost: {}\r\n{headers}Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            node.ops,
            body.len()
        );
        let mut stream = http::connect(node.ops);
        stream.write_all(text.as_bytes()).expect("it reads");
        let reply = Reply::read(stream).expect("an answer");
        let body: serde_json::Value = serde_json::from_str(&reply.body).expect("JSON");
        (reply.status, body["error"]["message"].as_str().unwrap_or("").to_owned())
    };
    let rooms = "GET /v1/rooms";
    assert_eq!(ask(rooms, "", "").0, 200);
    for header in
        ["X-Real-IP: 192.0.2.1", "Via: 1.1 a", "CF-Connecting-IP: a", "X-Forwarded-Host: a"]
    {
        assert_eq!(ask(rooms, &format!("{header}\r\n"), "").0, 403, "{header}");
    }
    for header in ["Origin: https://evil.example", "Sec-Fetch-Site: cross-site"] {
        assert_eq!(ask(rooms, &format!("{header}\r\n"), "").0, 403, "{header}");
    }
    let json = "Content-Type: application/json\r\n";
    let publish = r#"{"room_id":"a","payload":1}"#;
    assert_eq!(ask("POST /v1/publish", json, publish).0, 200);
    let (status, message) =
        ask("POST /v1/publish", &format!("{json}Content-Encoding: gzip\r\n"), publish);
    assert!(status == 415 && message.contains("Content-Encoding"), "{status} {message}");
    let (status, message) = ask("POST /v1/publish", json, &"x".repeat(200_000));
    assert!(status == 413 && message.contains("limits.message_bytes_max"), "{status} {message}");
    for (path, wanted) in [
        ("GET /v1/rooms?limit=many", "the query: "),
        ("GET /v1/rooms?prefix=%FF", "not UTF-8"),
        ("GET /v1/rooms/%FF", "not UTF-8"),
        ("GET /v1/users/a%E2%80%8Bb", "invisible"),
    ] {
        let (status, message) = ask(path, "", "");
        assert!(status == 400 && message.contains(wanted), "{path}: {status} {message}");
    }
}
