//! Coming and going, and that nothing of it stays.
//!
//! `CAMPANILE_CHURN=100000` asks for the long run.

use crate::client::{Client, request_head};
use crate::http::PATIENCE;
use crate::node::Node;
use socket2::{Domain, SockAddr, Socket, Type};
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

const CHURN_IN_CI: usize = 5_000;
const THREADS: usize = 4;

fn churn() -> usize {
    let said = std::env::var("CAMPANILE_CHURN").ok();
    said.map_or(CHURN_IN_CI, |said| said.parse().expect("CAMPANILE_CHURN is a number"))
}

/// A connection from one of many addresses, so that the ports of one do not run out.
fn connect_from(number: usize, to: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    let from = Ipv4Addr::new(127, 0, 1, (1 + number % 200) as u8);
    socket.bind(&SockAddr::from(SocketAddr::from((from, 0)))).expect("all of 127/8 is ours");
    socket.connect(&to.into()).expect("the node listens");
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).expect("not zero");
    stream
}

/// One visit, ended in one of five ways.
fn visit(number: usize, to: SocketAddr) {
    let mut stream = connect_from(number, to);
    let path = format!("/ws?room_id=own-{number}&room_id=shared-{}", number % 7);
    if number.is_multiple_of(5) {
        // Gone in the middle of the head.
        let head = request_head(to, &path, "");
        stream.write_all(&head.as_bytes()[..head.len() / 2]).expect("it reads");
        return;
    }
    let client = Client::over(stream, to, &path, "");
    let mut client = client.unwrap_or_else(|reply| panic!("{reply:?}"));
    assert_eq!(client.hear()["type"], "welcome");
    if number % 5 == 1 {
        return; // Gone while its joins are under way.
    }
    (0..2).for_each(|_| drop(client.hear_type("ok")));
    match number % 5 {
        2 => client.close(),
        3 => {
            // Reset: nothing is said at all.
            let socket = Socket::from(client.stream);
            socket.set_linger(Some(Duration::ZERO)).expect("a live socket");
        }
        _ => {}
    }
}

fn visits(numbers: std::ops::Range<usize>, to: SocketAddr) {
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let numbers = numbers.clone();
            scope.spawn(move || {
                numbers.filter(|n| n % THREADS == thread).for_each(|n| visit(n, to));
            });
        }
    });
}

#[test]
fn after_many_have_come_and_gone_nothing_of_them_is_left() {
    let node = Node::start_ready(&["--shards", "2"]);
    let churn = churn();
    visits(0..churn / 10, node.addr);
    node.wait_until_empty();
    let early = node.resident_bytes();
    visits(churn / 10..churn, node.addr);
    node.wait_until_empty();
    let late = node.resident_bytes();
    assert_eq!(node.metric("campanile_connections_accepted_total"), churn as u64);
    assert_eq!(node.get("/v1/stats").json()["connections"], 0);
    println!("{churn} connects: {early} bytes after the first tenth, {late} after all");
    assert!(late <= early + early / 20, "memory grew from {early} to {late} bytes");
}
