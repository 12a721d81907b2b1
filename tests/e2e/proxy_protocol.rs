//! Clients that come through a load balancer: whose address the node sees, and what the balancer's
//! health checks cost.

use crate::balancer::Balancer;
use crate::client::{Client, request_head};
use crate::http::{self, Reply};
use crate::instances::nodes;
use crate::node::Node;
use crate::redis::{Redis, free_port, wait_until};
use serde_json::Value;
use socket2::{Domain, SockRef, Socket, Type};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

const BEHIND: [&str; 6] =
    ["--proxy-protocol", "required", "--trusted-proxies", "127.0.0.1", "--log-level", "debug"];
const OPTIONAL: [&str; 8] = [
    "--proxy-protocol",
    "optional",
    "--trusted-proxies",
    "127.0.0.1",
    "--log-level",
    "debug",
    "--shards",
    "1",
];

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// Connects from another address of this machine than a balancer's.
fn connect_from(own: [u8; 4], to: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from((own, 0)).into()).expect("all of 127/8 is ours");
    socket.connect(&to.into()).expect("it listens");
    socket.set_read_timeout(Some(http::PATIENCE)).expect("not zero");
    TcpStream::from(socket)
}

/// A WebSocket from this address, and its name.
fn join_from(own: [u8; 4], to: SocketAddr, headers: &str) -> (Client, SocketAddr, String) {
    let stream = connect_from(own, to);
    let address = stream.local_addr().expect("it is connected");
    let mut client = Client::over(stream, to, "/ws?room_id=tower", headers).expect("it is opened");
    let welcome = client.hear();
    let name = welcome["connection_id"].as_str().expect("it has a name").to_owned();
    client.hear_type("ok");
    (client, address, name)
}

/// The address that one of the nodes has logged for a connection.
fn logged_peer(nodes: &[&Node], name: &str) -> String {
    let log: String = nodes.iter().map(|node| node.logged()).collect();
    let line = log.lines().find(|line| line.contains("connection opened") && line.contains(name));
    let line = line.unwrap_or_else(|| panic!("{name} was not logged as opened:\n{log}"));
    let (_, peer) = line.split_once("peer=\"").expect("with its peer");
    peer.split('"').next().expect("quoted").to_owned()
}

/// The address that one of the nodes lists for a connection.
fn listed_address(nodes: &[&Node], name: &str) -> String {
    let lists = nodes.iter().map(|node| node.get("/v1/connections?limit=100").json());
    let all: Vec<serde_json::Value> =
        lists.flat_map(|list| list["connections"].as_array().cloned().expect("a list")).collect();
    let is_it = |it: &&serde_json::Value| it["connection_id"] == name;
    let found = all.iter().find(is_it).unwrap_or_else(|| panic!("{name} is not in {all:?}"));
    found["address"].as_str().expect("it is known").to_owned()
}

fn refused(node: &Node, reason: &str) -> u64 {
    node.metric_where("campanile_connections_rejected_total", &format!("reason=\"{reason}\""))
}

/// Clients from several addresses reach each other over both nodes, and each is seen as it is.
fn speak_through(front: SocketAddr, nodes: &[&Node]) {
    let mut members: Vec<_> = (1..=4).map(|n| join_from([127, 9, 0, n], front, "")).collect();
    for from in 0..members.len() {
        members[from].0.say(format!(r#"{{"room_id":"tower","payload":{from}}}"#));
        for (client, ..) in &mut members {
            assert_eq!(client.hear_payload(), from);
        }
    }
    for (_, address, name) in &members {
        assert_eq!(logged_peer(nodes, name), address.to_string());
        assert_eq!(listed_address(nodes, name), address.to_string());
    }
    for (client, ..) in members {
        client.close();
    }
}

#[test]
fn through_haproxy_the_node_sees_the_client_and_health_checks_cost_nothing() {
    for version in ["send-proxy", "send-proxy-v2"] {
        let redis = Redis::start();
        let [one, two] = nodes(&redis, &BEHIND);
        let tcp = loopback(free_port());
        let _haproxy = Balancer::haproxy(
            &format!(
                "global\n  maxconn 200\n\
                 defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 75s\n\
                 \x20 timeout server 75s\n  default-server check inter 50ms\n\
                 frontend tcp_in\n  bind {tcp}\n  default_backend nodes\n\
                 backend nodes\n  balance roundrobin\n\
                 \x20 server one {one} {version} check-send-proxy\n\
                 \x20 server two {two} {version} check-send-proxy\n\
                 backend checked_without_a_header\n  server one {one}\n  server two {two}\n",
                one = one.addr,
                two = two.addr,
            ),
            &[tcp],
        );
        for node in [&one, &two] {
            wait_until("HAProxy has checked often", || {
                node.metric("campanile_connection_probes_total") > 5
            });
        }
        speak_through(tcp, &[&one, &two]);
        for node in [&one, &two] {
            wait_until("both have clients", || {
                node.metric("campanile_connections_upgraded_total") > 0
            });
            assert_eq!(node.metric("campanile_connections_rejected_total"), 0);
            let log = node.logged();
            let noise = log.lines().find(|line| {
                line.contains("connection ended") && !line.contains("client")
                    || line.contains("refused")
            });
            assert_eq!(noise, None, "health checks are not logged");
        }
    }
}

#[test]
fn through_nginx_as_a_tcp_balancer_the_node_sees_the_client() {
    let redis = Redis::start();
    let [one, two] = nodes(&redis, &BEHIND);
    let front = loopback(free_port());
    let _nginx = Balancer::nginx_stream(
        &format!(
            "upstream nodes {{ server {}; server {}; }}\n\
             server {{ listen {front}; proxy_pass nodes; proxy_protocol on; proxy_timeout 75s; }}",
            one.addr, two.addr
        ),
        &[front],
    );
    speak_through(front, &[&one, &two]);
    for node in [&one, &two] {
        wait_until("both have clients", || node.metric("campanile_connections_upgraded_total") > 0);
        assert_eq!(node.metric("campanile_connections_rejected_total"), 0);
    }
}

/// What clients write of their own address is not believed, and what the balancer writes is.
fn speak_over_http_through(front: SocketAddr, node: &Node) {
    let forged = "X-Forwarded-For: 6.6.6.6\r\nForwarded: for=7.7.7.7\r\n";
    let (through, address, name) = join_from([127, 9, 0, 1], front, forged);
    assert_eq!(logged_peer(&[node], &name), format!("{}:0", address.ip()));
    let (straight, address, name) = join_from([127, 9, 0, 2], node.addr, forged);
    assert_eq!(logged_peer(&[node], &name), address.to_string());
    through.close();
    straight.close();
}

const TRUSTING: [&str; 4] = ["--trusted-proxies", "127.0.0.1", "--log-level", "debug"];

#[test]
fn through_nginx_as_an_http_balancer_the_node_sees_the_client_and_believes_nobody_else() {
    let node = Node::start_ready(&TRUSTING);
    let front = loopback(free_port());
    let _nginx = Balancer::nginx_http(
        &format!(
            "server {{ listen {front}; location / {{ proxy_pass http://{}; proxy_http_version 1.1;\n\
             proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection Upgrade;\n\
             proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; }} }}",
            node.addr
        ),
        &[front],
    );
    speak_over_http_through(front, &node);
}

#[test]
fn through_haproxy_as_an_http_balancer_the_node_sees_the_client_and_believes_nobody_else() {
    let node = Node::start_ready(&TRUSTING);
    let front = loopback(free_port());
    let _haproxy = Balancer::haproxy(
        &format!(
            "global\n  maxconn 200\n\
             defaults\n  mode http\n  timeout connect 5s\n  timeout client 75s\n\
             \x20 timeout server 75s\n  timeout tunnel 75s\n\
             frontend http_in\n  bind {front}\n  option forwardfor\n  default_backend nodes\n\
             backend nodes\n  option httpchk GET /\n  server one {} check inter 50ms\n",
            node.addr
        ),
        &[front],
    );
    speak_over_http_through(front, &node);
    wait_until("HAProxy has checked often", || node.metric("campanile_http_requests_total") > 5);
    assert_eq!(node.metric("campanile_connections_rejected_total"), 0);
}

#[test]
fn a_proxy_in_front_of_a_proxy_is_seen_through() {
    let proxies = ["--trusted-proxies", "127.0.0.1,10.0.0.0/8", "--log-level", "debug"];
    let node = Node::start_ready(&[&["--proxy-protocol", "optional"], &proxies[..]].concat());
    let open = |header: &str, forwarded: &str| {
        let mut stream = http::connect(node.addr);
        stream.write_all(header.as_bytes()).expect("it reads");
        let mut client = Client::over(stream, node.addr, "/ws", forwarded).expect("it is opened");
        let welcome: Value = client.hear();
        let name = welcome["connection_id"].as_str().expect("it has a name").to_owned();
        (client, logged_peer(&[&node], &name))
    };
    let behind = "PROXY TCP4 10.1.1.1 10.0.0.1 5000 80\r\n";
    assert_eq!(open(behind, "").1, "10.1.1.1:5000");
    assert_eq!(open(behind, "X-Forwarded-For: 6.6.6.6, 192.0.2.7\r\n").1, "192.0.2.7:0");
    assert_eq!(open(behind, "Forwarded: for=\"[2001:db8::7]:9\"\r\n").1, "[2001:db8::7]:9");
    let client = "PROXY TCP6 2001:db8::9 2001:db8::1 5000 80\r\n";
    assert_eq!(open(client, "X-Forwarded-For: 6.6.6.6\r\n").1, "[2001:db8::9]:5000");
    assert!(open("PROXY UNKNOWN\r\n", "").1.starts_with("127.0.0.1:"));
    assert!(open("", "").1.starts_with("127.0.0.1:"));
}

/// What the node answers to these bytes from this address.
fn answer_from(own: [u8; 4], node: &Node, bytes: &[u8]) -> u16 {
    let mut stream = connect_from(own, node.addr);
    let _ = stream.write_all(bytes);
    Reply::read(stream).expect("an answer").status
}

#[test]
fn headers_that_are_not_to_be_believed_never_reach_http() {
    let good = b"PROXY TCP4 192.0.2.7 192.0.2.1 5000 80\r\n";
    let request = |node: &Node| request_head(node.addr, "/nowhere", "").into_bytes();
    let cases = [
        ("required", [127, 0, 0, 1], &b"GET / HTTP/1.1\r\n"[..], 400, "proxy_missing"),
        ("required", [127, 0, 0, 2], good, 403, "proxy_untrusted"),
        ("optional", [127, 0, 0, 2], good, 403, "proxy_untrusted"),
        ("optional", [127, 0, 0, 1], b"PROXY TCP4 1.2.3.4\r\n", 400, "proxy_malformed"),
        ("optional", [127, 0, 0, 1], b"\r\n\r\n\0\r\nQUIT\n\x31\x11", 400, "proxy_malformed"),
        ("off", [127, 0, 0, 1], good, 400, "proxy_unexpected"),
        ("off", [127, 0, 0, 1], b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0", 400, "proxy_unexpected"),
    ];
    for (setting, from, bytes, status, reason) in cases {
        let node = Node::start_ready(&[
            "--proxy-protocol",
            setting,
            "--trusted-proxies",
            "127.0.0.1",
            "--shards",
            "1",
        ]);
        let bytes = [bytes, &request(&node)].concat();
        assert_eq!(answer_from(from, &node, &bytes), status, "{setting} {reason}");
        wait_until("it is counted", || refused(&node, reason) == 1);
        assert_eq!(node.metric("campanile_connections_rejected_total"), 1, "{setting} {reason}");
        assert_eq!(node.metric("campanile_http_requests_total"), 0);
    }
}

#[test]
fn where_a_header_is_optional_a_request_without_one_is_served() {
    let node = Node::start_ready(&OPTIONAL);
    for from in [[127, 0, 0, 1], [127, 0, 0, 2]] {
        let request = request_head(node.addr, "/nowhere", "");
        assert_eq!(answer_from(from, &node, request.as_bytes()), 404);
        assert_eq!(answer_from(from, &node, b"PUT /x HTTP/1.1\r\n\r\n"), 404, "it begins as PROXY");
    }
    assert_eq!(node.metric("campanile_connections_rejected_total"), 0);
}

#[test]
fn connections_that_ask_nothing_are_health_checks() {
    let node = Node::start_ready(&OPTIONAL);
    let headers: [&[u8]; 4] = [
        b"",
        b"PROXY UNKNOWN\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1 1\r\n",
    ];
    for (at, header) in headers.into_iter().enumerate() {
        for ends_with_reset in [false, true] {
            let mut stream = http::connect(node.addr);
            stream.write_all(header).expect("it reads");
            if ends_with_reset {
                node.wait_for("campanile_connections_handshaking", 1);
                SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("a live socket");
            }
            drop(stream);
            let count = 2 * at as u64 + u64::from(ends_with_reset) + 1;
            node.wait_for("campanile_connection_probes_total", count);
        }
    }
    assert_eq!(node.metric("campanile_connections_rejected_total"), 0);
    assert!(!node.logged().contains("connection "), "{}", node.logged());
    let mut half = http::connect(node.addr);
    half.write_all(b"PROXY TCP4 1.2.").expect("it reads");
    node.wait_for("campanile_connections_handshaking", 1);
    drop(half);
    wait_until("half a header is no health check", || refused(&node, "connection_lost") == 1);
}

#[test]
fn a_balancer_that_sends_nothing_is_let_go_without_an_answer() {
    let node =
        Node::start_ready(&[&BEHIND[..], &["--limits-handshake-timeout-ms", "300"]].concat());
    let mut silent = http::connect(node.addr);
    let mut bytes = Vec::new();
    silent.read_to_end(&mut bytes).expect("it is closed");
    assert_eq!(bytes, b"");
    wait_until("it is counted", || refused(&node, "timeout") == 1);
}

/// Where every connection comes through a balancer, nobody else takes a place in front of it.
#[test]
fn strangers_in_front_of_a_balancer_keep_it_from_nothing() {
    let node = Node::start_ready(&[
        "--proxy-protocol",
        "required",
        "--trusted-proxies",
        "127.0.0.1",
        "--shards",
        "1",
        "--limits-handshakes-max",
        "8",
        "--limits-accepts-per-s-max",
        "1",
        "--limits-accepts-burst-max",
        "8",
    ]);
    let crowd: Vec<TcpStream> =
        (0..CROWD).map(|_| connect_from([127, 0, 0, 2], node.addr)).collect();
    wait_until("all are refused", || refused(&node, "proxy_untrusted") == CROWD as u64);
    assert_eq!(node.metric("campanile_connections_handshaking"), 0);
    let mut stream = http::connect(node.addr);
    stream.write_all(b"PROXY TCP4 192.0.2.7 192.0.2.1 1 1\r\n").expect("it reads");
    Client::over(stream, node.addr, "/ws", "").expect("it is opened").hear_type("welcome");
    let statuses = crowd.into_iter().filter_map(Reply::read).map(|reply| reply.status);
    assert!(statuses.into_iter().all(|status| status == 403));
}

const CROWD: usize = 1000;
const PLACES: usize = 600;

/// What half headers and half heads of strangers cost: no more than their limits say.
#[test]
fn a_thousand_half_headers_and_heads_hold_what_the_limits_allow_and_end_in_time() {
    let places = PLACES.to_string();
    let node = Node::start_ready(&[
        "--proxy-protocol",
        "optional",
        "--trusted-proxies",
        "127.0.0.1",
        "--shards",
        "1",
        "--limits-handshakes-max",
        &places,
        "--limits-head-bytes-max",
        "2048",
        "--limits-handshake-timeout-ms",
        "3000",
    ]);
    let half_head = format!(
        "PROXY TCP4 192.0.2.7 192.0.2.1 1 1\r\nGET /ws HTTP/1.1\r\nX: {}",
        "x".repeat(1990)
    );
    let half_header = [b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x02\x08".as_slice(), &[7; 500]].concat();
    let mut crowd: Vec<TcpStream> = (0..CROWD)
        .map(|n| {
            let mut stream = http::connect(node.addr);
            let half = if n % 2 == 0 { half_head.as_bytes() } else { &half_header };
            // It may be refused already.
            let _ = stream.write_all(half);
            stream
        })
        .collect();
    wait_until("as many as may be are in their handshake, and the others are refused", || {
        refused(&node, "handshakes") == (CROWD - PLACES) as u64
            && node.metric("campanile_connections_handshaking") == PLACES as u64
    });
    node.wait_for_fresh_metrics();
    let held = node.metric("campanile_handshake_bytes");
    assert!(held > 0 && held <= (PLACES * 2 * 2048) as u64, "{held} bytes are held");
    wait_until("their time is over", || refused(&node, "timeout") == PLACES as u64);
    let statuses = crowd.iter_mut().filter_map(Reply::read).map(|reply| reply.status);
    assert!(statuses.into_iter().all(|status| [408, 503].contains(&status)));
    drop(crowd);
    node.wait_until_empty();
    node.wait_for("campanile_handshake_bytes", 0);
    Client::join(node.addr, &["tower"]).close();
}
