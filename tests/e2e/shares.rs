//! What one client, one address and one user may have of a node, over real sockets.

use crate::client::Client;
use crate::http::{self, Reply};
use crate::node::Node;
use crate::redis::wait_until;
use campanile::auth::{TokenRequest, mint};
use serde_json::json;
use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

const TRUSTING: [&str; 2] = ["--trusted-proxies", "127.0.0.1"];

fn forwarded(node: &Node, address: &str) -> Result<Client, Reply> {
    Client::try_open(node.addr, "/ws", &format!("X-Forwarded-For: {address}\r\n"))
}

/// Behind a PROXY header.
fn proxied(node: &Node, address: &str) -> Result<Client, Reply> {
    let mut stream = http::connect(node.addr);
    let header = format!("PROXY TCP4 {address} 192.0.2.99 5000 80\r\n");
    stream.write_all(header.as_bytes()).expect("it reads");
    Client::over(stream, node.addr, "/ws", "")
}

fn refused(node: &Node, reason: &str) -> u64 {
    node.metric_where("campanile_connections_rejected_total", &format!(r#"reason="{reason}""#))
}

#[test]
fn an_address_that_a_proxy_has_named_has_so_many_connections() {
    type Open = fn(&Node, &str) -> Result<Client, Reply>;
    for (open, protocol) in [(forwarded as Open, "off"), (proxied as Open, "required")] {
        let limits = ["--limits-connections-per-address-max", "2", "--proxy-protocol", protocol];
        let node = Node::start_ready(&[&TRUSTING[..], &limits].concat());
        let first = open(&node, "192.0.2.7").expect("there is room");
        let _second = open(&node, "192.0.2.7").expect("there is room");
        let Err(reply) = open(&node, "192.0.2.7") else { panic!("{protocol}: a third one") };
        assert_eq!((reply.status, reply.header("Retry-After")), (429, Some("30")));
        assert_eq!(open(&node, "192.0.2.8").map(|_| ()).map_err(|reply| reply.status), Ok(()));
        wait_until("it is counted", || refused(&node, "address_limit") == 1);
        first.close();
        let mut again = None;
        wait_until("its place is free again", || {
            again = open(&node, "192.0.2.7").ok();
            again.is_some()
        });
    }
}

#[test]
fn an_address_that_connects_too_fast_is_refused_and_another_one_is_not() {
    let limits = [
        "--limits-connects-per-address-per-s-max",
        "1",
        "--limits-connects-per-address-burst-max",
        "3",
    ];
    let node = Node::start_ready(&[&TRUSTING[..], &limits].concat());
    let statuses: Vec<u16> = (0..20)
        .map(|_| forwarded(&node, "192.0.2.7").map_or_else(|reply| reply.status, |_| 101))
        .collect();
    assert!(statuses.iter().filter(|status| **status == 429).count() >= 10, "{statuses:?}");
    assert!(forwarded(&node, "192.0.2.8").is_ok());
    wait_until("they are counted", || refused(&node, "address_rate") >= 10);
}

#[test]
fn behind_a_hop_that_is_not_trusted_no_address_is_limited() {
    let node = Node::start_ready(&["--limits-connections-per-address-max", "1"]);
    let clients: Vec<Client> =
        (0..5).map(|_| forwarded(&node, "192.0.2.7").expect("it is open")).collect();
    assert_eq!((clients.len(), refused(&node, "address_limit")), (5, 0));
}

#[test]
fn a_user_has_so_many_connections_where_that_is_limited() {
    const SECRET: &str = "a secret of the tests";
    let node = Node::start_ready(&[
        "--shards",
        "2",
        "--auth-hmac-secret",
        SECRET,
        "--limits-connections-per-user-max",
        "2",
    ]);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is past 1970").as_secs();
    let open = |user: &str| {
        let user = user.to_owned();
        let asked = TokenRequest {
            user,
            rights: None,
            rooms: Vec::new(),
            send: Vec::new(),
            info: None,
            issued_unix_s: now,
            expires_unix_s: now + 600,
        };
        let token = mint(&asked, SECRET).expect("a good wish");
        Client::try_open(node.addr, &format!("/ws?token={token}"), "")
    };
    let first = open("ann").expect("there is room");
    let _second = open("ann").expect("there is room");
    assert_eq!(open("ann").map(|_| ()).map_err(|reply| reply.status), Err(429));
    assert!(open("bob").is_ok());
    first.close();
    let mut again = None;
    wait_until("her place is free again", || {
        again = open("ann").ok();
        again.is_some()
    });
    wait_until("it is counted", || refused(&node, "user_limit") > 0);
}

#[test]
fn a_client_that_never_stops_sending_is_closed_and_listed_as_the_worst_before() {
    let node = Node::start_ready(&[
        "--shards",
        "1",
        "--limits-messages-per-s-max",
        "20",
        "--limits-messages-burst-max",
        "20",
        "--limits-rate-limited-timeout-ms",
        "3000",
    ]);
    let (mut flooder, welcome) = Client::greeted(node.addr, &[], "");
    let mut quiet = Client::join(node.addr, &["tower"]);
    (0..400).for_each(|_| flooder.say(r#"{"type":"ping"}"#));
    quiet.say(r#"{"room_id":"tower","payload":"I am served"}"#);
    assert_eq!(quiet.hear_payload(), "I am served");
    wait_until("it is the worst", || {
        let listed = node.get("/v1/connections?sort=limited_ms&limit=1").json();
        let worst = &listed["connections"][0];
        worst["connection_id"] == welcome["connection_id"]
            && worst["messages"].as_u64() >= Some(20)
            && listed["connections"].as_array().map(Vec::len) == Some(1)
    });
    assert_eq!(node.get("/v1/connections?sort=age").status, 400);
    assert_eq!(node.get("/v1/connections?sort=rooms&cursor=0.0").status, 400);
    let rooms = node.get("/v1/connections?sort=rooms").json();
    assert_eq!(rooms["connections"].as_array().map(Vec::len), Some(1), "one is in a room");
    assert_eq!(flooder.hear_type("error")["code"], json!("rate_limited"));
    assert_eq!(flooder.close_frame(), (1008, "rate_limited".to_owned()));
    quiet.say(r#"{"room_id":"tower","payload":"still"}"#);
    assert_eq!(quiet.hear_payload(), "still");
}
