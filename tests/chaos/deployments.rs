//! The deployments themselves, without a node of ours: they come up, fail over and move slots. When a
//! run fails, it is good to know that it was not the stage.

use crate::Turn;
use crate::cluster::Cluster;
use crate::proxy::{Proxy, Wire};
use crate::redis::{Redis, wait_until, wait_within};
use crate::rng::Rng;
use crate::run_state::RunState;
use crate::sentinel::{Care, Sentinel};
use crate::system::{Fault, Kind, NODES, System};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A vote may be split, and is repeated only seconds later; twice is rare, and no mistake.
fn wait_long(state: &str, is_there: impl FnMut() -> bool) {
    wait_within(Duration::from_secs(60), state, is_there);
}

/// Every fault of a deployment once, without nodes of ours.
pub fn run_each_fault(kind: Kind) {
    let mut system = System::without_nodes(kind, Arc::new(RunState::new(NODES, 0, 0)));
    let mut rng = Rng::new(1);
    // Those that need somebody who has subscribed, or keys.
    let cannot = [Fault::Node, Fault::Buffers, Fault::Migrate];
    for fault in system.faults().into_iter().filter(|fault| !cannot.contains(fault)) {
        let began = Instant::now();
        let mut open = None;
        wait_long(&format!("{fault:?} can begin"), || {
            open = system.begin(fault, &mut rng);
            open.is_some()
        });
        let open = open.expect("it has begun");
        std::thread::sleep(system.lasts(fault, &mut rng).min(Duration::from_secs(1)));
        wait_long(&format!("{fault:?} may end"), || system.may_end(&open));
        let lasted = began.elapsed();
        system.end(&open);
        wait_long(&format!("Redis is whole after {fault:?}"), || system.is_whole());
        let (kind, fault, took) = (kind.name(), fault.name(), began.elapsed());
        println!("  {kind} alone: {fault} lasted {lasted:.1?}, whole after {took:.1?}");
    }
}

#[test]
fn sentinels_make_another_server_master_when_one_dies_and_take_it_back_as_a_replica() {
    let _turn = Turn::wait();
    let mut all = Sentinel::start(Care::default());
    let first = all.master().expect("they agree");
    all.servers[first].command(&["SET", "kept", "1"]);
    assert_eq!(all.servers[first].command(&["WAIT", "2", "2000"]), "2");
    all.servers[first].kill();
    wait_long("somebody else leads", || all.master().is_some_and(|master| master != first));
    all.restart_as_replica(first);
    wait_long("all are well", || all.is_whole());
    let second = all.master().expect("they agree");
    assert_eq!(all.servers[second].command(&["GET", "kept"]), "1");
    assert!(all.failover());
    wait_long("it is somebody else again", || all.master().is_some_and(|at| at != second));
}

#[test]
fn a_replica_of_a_cluster_takes_over_and_slots_move_with_their_keys() {
    let _turn = Turn::wait();
    let mut all = Cluster::start(1);
    let first = all.masters()[0];
    assert!(all.failover(first));
    let leads = |all: &Cluster| all.masters().len() == 3 && !all.masters().contains(&first);
    wait_long("the replica leads", || leads(&all));
    wait_long("all are well", || all.is_whole());

    let from = all.masters()[1];
    let keys: Vec<String> = (0..200).map(|n| format!("key-{n}")).collect();
    let set = |key: &String| all.servers[from].command(&["SET", key, "1"]) == "OK";
    let count = keys.iter().filter(|key| set(key)).count();
    let slots = all.slots_with_keys(from, 5);
    assert!(count >= 5 && slots.len() == 5, "{count} keys, {slots:?}");
    let to = *all.masters().iter().find(|&&at| at != from).expect("three lead");
    for slot in slots {
        assert!(all.migrate(slot, from, to).expect("it moves") >= 1);
    }
    wait_long("all see where the slots are", || all.is_whole());

    all.servers[from].kill();
    wait_long("its replica leads", || !all.masters().contains(&from) && all.masters().len() == 3);
    all.servers[from].restart();
    wait_long("it is back as a replica", || all.is_whole());
}

#[test]
fn a_connection_can_be_dead_in_one_direction_and_recover() {
    let server = Redis::start();
    let socket_key = Proxy::start(server.port);
    let mut stream = TcpStream::connect(("127.0.0.1", socket_key.port)).expect("it accepts");
    stream.set_read_timeout(Some(Duration::from_millis(100))).expect("not zero");
    let mut ask = |answer: Option<&[u8]>| {
        stream.write_all(b"PING\r\n").expect("it takes bytes");
        let mut bytes = [0; 64];
        match (answer, stream.read(&mut bytes)) {
            (Some(answer), Ok(read)) => assert_eq!(&bytes[..read], answer),
            (None, Err(_)) => {}
            (_, read) => panic!("expected {answer:?}, got {read:?} {bytes:?}"),
        }
    };
    ask(Some(b"+PONG\r\n"));
    let commands = || {
        let info = server.command(&["INFO", "commandstats"]);
        let line = info.lines().find(|line| line.starts_with("cmdstat_ping:")).expect("asked");
        line.split(['=', ',']).nth(1).expect("calls").parse::<u64>().expect("a number")
    };
    let before = commands();
    socket_key.set(Wire::DeadDown);
    ask(None);
    wait_until("the question arrives all the same", || commands() == before + 1);
    socket_key.set(Wire::Dead);
    ask(None);
    assert_eq!(commands(), before + 1, "this one does not");
    socket_key.set(Wire::Good);
    wait_until("it arrives when the socket_key is good again", || commands() == before + 2);
    let mut answers = [0; 14];
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("not zero");
    stream.read_exact(&mut answers).expect("what was held back comes");
    assert_eq!(&answers, b"+PONG\r\n+PONG\r\n");
    socket_key.reset();
    assert!(stream.read(&mut answers).is_err(), "a reset, and no polite end");
    socket_key.set(Wire::Refusing);
    let refused =
        TcpStream::connect(("127.0.0.1", socket_key.port)).and_then(|mut s| s.read(&mut [0]));
    assert!(!matches!(refused, Ok(1..)));
}
