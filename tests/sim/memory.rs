//! What a shard does step by step when the node comes near its memory bound.

use crate::bare::{Bare, limits};
use crate::peer::client_frame;
use bytes::Bytes;
use campanile::link::ledger::Pressure;
use campanile::policy::limits::Limits;
use campanile::shard::ReadOutcome;

const MIB: usize = 1024 * 1024;
const TEXT: u8 = 1;
const JOIN: &[u8] = br#"{"type":"join","room_id":"another"}"#;
const PUBLISH: &[u8] = br#"{"type":"publish","room_id":"r","payload":1}"#;
const PING: &[u8] = br#"{"type":"ping"}"#;

fn bare() -> Bare {
    Bare::new(Limits { memory_bytes_max: 64 * MIB, ..limits() })
}

/// Sends so many bytes of a longer message.
fn send_half(bare: &mut Bare, socket_key: usize, bytes: usize) -> ReadOutcome {
    let whole = client_frame(true, TEXT, &vec![b'x'; bytes + 1], [0; 4]);
    let end = whole.len() - 1;
    bare.shard.handle_read(bare.conns[socket_key], &mut whole[..end].to_vec())
}

/// Everything that is written to a connection.
fn written(bare: &mut Bare, socket_key: usize) -> Vec<u8> {
    let mut all = Vec::new();
    let mut note = |to: usize, bytes: &Bytes| {
        if to == socket_key {
            all.extend_from_slice(bytes);
        }
    };
    while bare.write(&mut note) > 0 {}
    all
}

fn answer(bare: &mut Bare, socket_key: usize, request: &[u8]) -> String {
    bare.read(socket_key, TEXT, request);
    bare.confirm();
    String::from_utf8_lossy(&written(bare, socket_key)).into_owned()
}

#[test]
fn who_holds_much_is_not_read_until_memory_is_no_longer_short() {
    let mut bare = bare();
    let [large, small] = ["ann", "bob"].map(|user| bare.open(user, &["r"]));
    bare.settle();
    assert!(!send_half(&mut bare, large, 20_000).is_paused, "memory is not short");
    bare.shard.set_pressure(Pressure::PauseLargest);
    let conn = bare.conns[large];
    assert!(bare.shard.handle_read(conn, &mut []).is_paused);
    assert!(bare.shard.is_paused(conn));
    assert!(answer(&mut bare, small, PING).contains("pong"));
    bare.shard.set_pressure(Pressure::PauseLargest);
    assert_eq!(bare.shard.poll_resumed(), None);
    bare.shard.set_pressure(Pressure::None);
    assert_eq!(bare.shard.poll_resumed(), Some(conn));
}

/// It is not read: that it sends nothing is not its fault.
#[test]
fn who_is_not_read_for_want_of_memory_is_not_silent() {
    let mut bare = bare();
    let large = bare.open("ann", &["r"]);
    bare.settle();
    bare.shard.set_pressure(Pressure::PauseLargest);
    assert!(send_half(&mut bare, large, 20_000).is_paused);
    let interval_ms = limits().ping_interval_ms;
    for now_ms in (0..10 * interval_ms).step_by(100) {
        bare.shard.handle_timeout(now_ms);
        bare.settle();
    }
    assert_eq!(bare.shard.connections(), 1);
}

#[test]
fn each_step_refuses_what_it_says_and_nothing_else() {
    let mut bare = bare();
    let ann = bare.open("ann", &["r"]);
    bare.settle();
    let steps = [
        (Pressure::PauseLargest, false, false),
        (Pressure::RefuseRequests, true, false),
        (Pressure::CloseLargest, true, true),
        (Pressure::RefuseConnections, true, true),
        (Pressure::None, false, false),
    ];
    for (step, refuses_joins, refuses_publishes) in steps {
        bare.shard.set_pressure(step);
        let is_refused = |text: &str| text.contains("overloaded");
        assert_eq!(is_refused(&answer(&mut bare, ann, JOIN)), refuses_joins, "{step:?}");
        let leave = br#"{"type":"leave","room_id":"another"}"#;
        assert!(!is_refused(&answer(&mut bare, ann, leave)), "{step:?}");
        assert_eq!(is_refused(&answer(&mut bare, ann, PUBLISH)), refuses_publishes, "{step:?}");
        assert!(answer(&mut bare, ann, PING).contains("pong"), "{step:?}");
    }
}

#[test]
fn those_who_hold_most_are_closed_first_and_what_they_held_is_free() {
    let mut bare = bare();
    let users = ["ann", "bob", "cid", "dan"].map(|user| bare.open(user, &["r"]));
    bare.settle();
    let before = bare.shard.held_bytes();
    for (user, bytes) in users.into_iter().zip([20_000, 60_000, 40_000, 100]) {
        send_half(&mut bare, user, bytes);
    }
    bare.shard.set_pressure(Pressure::CloseLargest);
    let holders = bare.shard.holders();
    let order: Vec<_> = holders.iter().map(|holder| holder.conn).collect();
    assert_eq!(order, [1, 2, 0].map(|place| bare.conns[users[place]]), "the small one is none");
    let held = bare.shard.held_bytes();
    assert_eq!(bare.shard.close_largest(&holders, 70_000), 2);
    assert!(held - bare.shard.held_bytes() >= 99_000);
    let goodbye = written(&mut bare, users[1]);
    assert_eq!((goodbye[0], &goodbye[2..4]), (0x88, &1013_u16.to_be_bytes()[..]));
    let all = bare.shard.holders();
    assert_eq!(bare.shard.close_largest(&all, usize::MAX), 1);
    for user in users {
        bare.cut(user);
    }
    assert!(bare.shard.held_bytes() < before);
    assert_eq!(bare.shard.counters.closed_memory, 3);
}
