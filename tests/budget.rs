//! What a delivery and an idle connection cost, counted: writes, buffers, allocations, bytes. A
//! timing would not notice one allocation more; these do.
//!
//! What an idle connection with a user of its own and one room holds, on the shard's thread and on
//! the backplane's, stands in [`ledger`], line by line; `benches/README.md` shows it beside the
//! memory that a server really grows by.

#[path = "common/counting.rs"]
mod counting;

use bytes::Bytes;
use campanile::auth::{AnonymousSecret, Identity};
use campanile::backplane::local::Local;
use campanile::ids::{ConflateKey, ConnId, NodeId, Position, ShardId, TopicId};
use campanile::link::channel::{ShardEnd, window};
use campanile::link::health::Health;
use campanile::link::{Delivery, Downlink, Uplink};
use campanile::policy::grants::{GrantTexts, Grants, RoomTexts};
use campanile::policy::limits::Limits;
use campanile::policy::namespaces::Namespaces;
use campanile::policy::rights::Rights;
use campanile::protocol::dialect::Encoding;
use campanile::shard::conn::{CloseReason, Conn};
use campanile::shard::delivery::batch::SendBatch;
use campanile::shard::{Opening, Shard, ShardConfig};
use counting::{allocations_of, bytes_held};
use std::sync::Arc;
use std::time::Duration;

const NOW_MS: u64 = 1;

fn shard() -> Shard {
    shard_with(Limits::PRODUCTION)
}

fn shard_with(limits: Limits) -> Shard {
    let limits = Limits { handshakes_max: 100_000, ..limits };
    let (id, node) = (ShardId(0), NodeId(1));
    Shard::new(ShardConfig {
        id,
        node,
        node_name: "n".into(),
        limits,
        namespaces: Default::default(),
        anonymous_secret: AnonymousSecret::new([0; 16]),
    })
}

/// Opens a connection of `user` in `room`; everything it causes is carried out.
fn open(shard: &mut Shard, socket_key: u32, user: &str, room: &str) -> ConnId {
    let conn = shard.handle_accept(socket_key, NOW_MS).expect("far from every limit");
    let rights = Rights { publish: true, publish_unjoined: false, send: true, broadcast: true };
    let opening = Opening {
        identity: Identity {
            user: Some(user.into()),
            rights,
            expires_unix_s: None,
            grants: None,
            info: None,
            mark: None,
        },
        response: Bytes::from_static(b"101"),
        rooms: vec![room.to_owned()],
        encoding: Encoding::NATIVE,
    };
    shard.handle_open(conn, opening);
    conn
}

/// Confirms every join and throws every write away. Answers the key of the last topic joined.
fn settle(shard: &mut Shard, batch: &mut SendBatch) -> Option<TopicId> {
    let mut joined = None;
    while let Some(item) = shard.poll_uplink() {
        if let Uplink::Join { at, .. } = item {
            joined = Some(at);
            shard.handle_downlink(Downlink::Joined { at }, NOW_MS);
        }
    }
    while shard.has_sends() {
        shard.take_batch(batch);
    }
    while shard.poll_closed().is_some() {}
    batch.finish();
    joined
}

/// A shard with `members` in one room.
fn crowd(members: u32, batch: &mut SendBatch) -> (Shard, TopicId) {
    let mut shard = shard();
    open(&mut shard, 0, "first", "r");
    let room = settle(&mut shard, batch).expect("the room was joined last");
    for socket_key in 1..members {
        open(&mut shard, socket_key, &format!("user{socket_key}"), "r");
    }
    settle(&mut shard, batch);
    (shard, room)
}

fn deliver(shard: &mut Shard, to: TopicId, frame: &Bytes) {
    let frame = frame.clone();
    shard.handle_downlink(Downlink::Deliver { to, frame, except: None }, NOW_MS);
}

#[test]
fn one_delivery_is_one_write_a_member_of_the_very_same_bytes_and_nothing_else() {
    let mut batch = SendBatch::default();
    let (mut shard, room) = crowd(1000, &mut batch);
    let frame = Bytes::from_static(&[0x81, 2, b'h', b'i']);
    for round in 0..3 {
        let (allocations, ()) = allocations_of(|| {
            deliver(&mut shard, room, &frame);
            shard.take_batch(&mut batch);
        });
        assert_eq!(batch.ops().len(), 1000);
        assert!(!shard.has_sends());
        assert!(
            batch.ops().iter().all(|op| batch.only_buf(op).unwrap().as_ptr() == frame.as_ptr())
        );
        let buffers: std::collections::HashSet<_> =
            batch.ops().iter().map(|op| batch.only_buf(op).unwrap().as_ptr()).collect();
        assert_eq!(buffers.len(), 1);
        // The first round makes the round, its queue, and the batch's lists.
        assert!(round == 0 || allocations == 0, "{allocations} allocations in round {round}");
    }
}

#[test]
fn sixty_four_deliveries_in_one_visit_are_still_one_write_a_member() {
    let mut batch = SendBatch::default();
    let (mut shard, room) = crowd(1000, &mut batch);
    let frames: Vec<Bytes> =
        (0..64u8).map(|n| Bytes::copy_from_slice(&[0x81, 1, b'0' + n])).collect();
    let wanted = frames.concat();
    for round in 0..3 {
        let (allocations, ()) = allocations_of(|| {
            for frame in &frames {
                deliver(&mut shard, room, frame);
            }
            shard.take_batch(&mut batch);
        });
        assert_eq!(batch.ops().len(), 1000);
        assert!(!shard.has_sends());
        let joined = batch.only_buf(&batch.ops()[0]).unwrap().clone();
        assert_eq!(joined, wanted);
        assert!(
            batch.ops().iter().all(|op| batch.only_buf(op).unwrap().as_ptr() == joined.as_ptr())
        );
        // The joined bytes, and the count that its many owners share.
        assert!(round == 0 || allocations <= 2, "{allocations} allocations in round {round}");
    }
}

/// A masked ping of a client.
fn ping(payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x89, 0x80 | payload.len() as u8, 0, 0, 0, 0];
    frame.extend_from_slice(payload);
    frame
}

/// Writes everything, but for one socket that takes nothing.
fn write_but_for(shard: &mut Shard, batch: &mut SendBatch, slow: u32) {
    while shard.has_sends() {
        shard.take_batch(batch);
        let shorts: Vec<_> =
            batch.ops().iter().copied().filter(|op| op.socket_key == slow).collect();
        shorts.iter().for_each(|op| shard.handle_short_write(batch, op, 0));
    }
    batch.finish();
}

/// Small replies are cut from one buffer: what a slow peer has still to hear must not keep alive what
/// was said to others.
#[test]
fn a_slow_connection_holds_what_waits_for_it_and_not_the_buffers_that_it_came_in() {
    let mut batch = SendBatch::default();
    // Two hundred thousand pings come at one moment of the shard's clock.
    let limits =
        Limits { messages_per_s_max: 0, received_bytes_per_s_max: 0, ..Limits::PRODUCTION };
    let mut shard = shard_with(limits);
    let slow = open(&mut shard, 0, "slow", "r");
    let quick = open(&mut shard, 1, "quick", "r");
    settle(&mut shard, &mut batch);
    let others = ping(&[b'x'; 125]).repeat(200);
    let mut round = |shard: &mut Shard| {
        shard.handle_read(slow, &mut ping(b""));
        shard.handle_read(quick, &mut others.clone());
        write_but_for(shard, &mut batch, 0);
    };
    (0..8).for_each(|_| round(&mut shard));
    let before = bytes_held();
    (0..1000).for_each(|_| round(&mut shard));
    let waits = shard.counters.outbox_bytes as isize;
    assert_eq!(waits, 2 * 1008, "an empty pong each");
    let held = bytes_held() - before;
    assert!(held <= 2 * waits + 1024, "{held} bytes are held for {waits}");
}

/// A join is shared by all members; who has taken most of it keeps the rest.
#[test]
fn what_is_left_of_a_large_write_does_not_keep_all_of_it() {
    let mut batch = SendBatch::default();
    let (mut shard, room) = crowd(2, &mut batch);
    let frame = Bytes::from(vec![7; 100 * 1024]);
    // The first makes the round, its queue, and the outbox's list.
    for (round, left) in [1, 1, 5000, 60 * 1024].into_iter().enumerate() {
        let before = bytes_held();
        deliver(&mut shard, room, &Bytes::copy_from_slice(&frame));
        shard.take_batch(&mut batch);
        let op = batch.ops()[0];
        shard.handle_short_write(&batch, &op, frame.len() - left);
        batch.finish();
        let held = bytes_held() - before;
        let most = 2 * left as isize + 1024;
        assert!(round == 0 || held <= most, "{held} bytes are held for {left}");
        shard.handle_flushed(op.conn, left);
        assert_eq!(shard.counters.outbox_bytes, 0);
    }
}

#[test]
fn an_exception_costs_one_join_of_its_own_and_no_write_more() {
    let mut batch = SendBatch::default();
    let (mut shard, room) = crowd(1000, &mut batch);
    let excepted = shard_conn(&mut shard, &mut batch, "somebody");
    let frame = Bytes::from_static(&[0x81, 2, b'h', b'i']);
    for round in 0..3 {
        let (allocations, ()) = allocations_of(|| {
            for except in [None, Some(excepted), None] {
                let frame = frame.clone();
                shard.handle_downlink(Downlink::Deliver { to: room, frame, except }, NOW_MS);
            }
            shard.take_batch(&mut batch);
        });
        assert_eq!(batch.ops().len(), 1001);
        let short = batch
            .ops()
            .iter()
            .filter(|op| batch.bufs(op).map(|buf| buf.len()).sum::<usize>() == 8)
            .count();
        assert_eq!(short, 1);
        // Two joins with their counts, the list of exceptions, and where they stand.
        assert!(round == 0 || allocations <= 6, "{allocations} allocations in round {round}");
    }
}

#[test]
fn many_exceptions_in_one_visit_do_not_multiply() {
    let mut batch = SendBatch::default();
    let (mut shard, room) = crowd(2, &mut batch);
    let talkers: Vec<ConnId> =
        (0..500).map(|n| open(&mut shard, 10 + n, &format!("talker{n}"), "r")).collect();
    settle(&mut shard, &mut batch);
    let frame = Bytes::from(vec![b'x'; 122]);
    for conn in &talkers {
        let frame = frame.clone();
        let except = Some(*conn);
        shard.handle_downlink(Downlink::Deliver { to: room, frame, except }, NOW_MS);
    }
    let before = bytes_held();
    let (mut writes, mut bytes, mut held_max) = (0, 0, 0);
    while shard.has_sends() {
        shard.take_batch(&mut batch);
        held_max = held_max.max(bytes_held() - before);
        writes += batch.ops().len();
        bytes += batch
            .ops()
            .iter()
            .map(|op| batch.bufs(op).map(|buf| buf.len()).sum::<usize>())
            .sum::<usize>();
    }
    // Everybody hears 500 messages, the talkers one less; and in few writes.
    assert_eq!(bytes, (2 * 500 + 500 * 499) * frame.len());
    assert!(writes <= 502 * 7, "{writes} writes");
    // The joins of one round, and those that the batch still holds of the one before.
    assert!(held_max <= 3 * 1024 * 1024, "{held_max} bytes held at once");
}

/// One more member of the room.
fn shard_conn(shard: &mut Shard, batch: &mut SendBatch, user: &str) -> ConnId {
    let conn = open(shard, 5000, user, "r");
    settle(shard, batch);
    conn
}

#[test]
fn reading_a_publish_allocates_its_payload_and_nothing_else() {
    let mut batch = SendBatch::default();
    let (mut shard, _) = crowd(2, &mut batch);
    let conn = shard_conn(&mut shard, &mut batch, "ann");
    let text = br#"{"type":"publish","room_id":"r","payload":{"some":"thing to say"}}"#;
    let mut frame = vec![0x81, 0x80 | text.len() as u8, 0, 0, 0, 0];
    frame.extend_from_slice(text);
    for round in 0..3 {
        let mut input = frame.clone();
        let (allocations, _) = allocations_of(|| shard.handle_read(conn, &mut input));
        assert!(matches!(shard.poll_uplink(), Some(Uplink::Publish(_))));
        assert!(round == 0 || allocations == 1, "{allocations} allocations in round {round}");
    }
    let mut ping = vec![0x89, 0x80 | 4, 0, 0, 0, 0, b'p', b'i', b'n', b'g'];
    let (allocations, _) = allocations_of(|| shard.handle_read(conn, &mut ping));
    assert_eq!(allocations, 0, "a pong is cut from the arena");
}

/// What an idle connection may hold in its shard. Measured: 187.
const BYTES_PER_CONNECTION_MAX: isize = 195;
const CONNECTIONS: u32 = 20_000;

fn fill(shard: &mut Shard, batch: &mut SendBatch) -> Vec<ConnId> {
    let mut conns = Vec::with_capacity(CONNECTIONS as usize);
    for socket_key in 0..CONNECTIONS {
        let (user, room) = (format!("user{socket_key:08}"), format!("room{}", socket_key / 1000));
        conns.push(open(shard, socket_key, &user, &room));
        settle(shard, batch);
    }
    conns
}

fn empty(shard: &mut Shard, batch: &mut SendBatch, conns: Vec<ConnId>) {
    for conn in conns {
        shard.handle_peer_gone(conn, CloseReason::Gone);
        settle(shard, batch);
    }
}

#[test]
fn an_idle_connection_costs_few_bytes_and_gives_them_back() {
    let mut batch = SendBatch::default();
    let mut shard = shard();
    settle(&mut shard, &mut batch);
    let before = bytes_held();
    let mut conns = fill(&mut shard, &mut batch);
    let list = (conns.capacity() * size_of::<ConnId>()) as isize;
    let each = (bytes_held() - before - list) / CONNECTIONS as isize;
    println!("{each} bytes a connection");
    assert!(each <= BYTES_PER_CONNECTION_MAX, "{each} bytes a connection");
    assert!(each > 140, "{each}: something is not counted");

    empty(&mut shard, &mut batch, std::mem::take(&mut conns));
    shard.handle_timeout(NOW_MS + 1_000_000); // Old handshakes are forgotten.
    shard.measure();
    assert_eq!((shard.counters.topics, shard.counters.members, shard.connections()), (0, 0, 0));
    let emptied = bytes_held();
    for _ in 0..2 {
        let conns = fill(&mut shard, &mut batch);
        empty(&mut shard, &mut batch, conns);
        shard.handle_timeout(NOW_MS + 2_000_000);
        let grown = bytes_held() - emptied;
        assert!(grown <= 0, "{grown} bytes more than after the first time");
    }
}

/// The connections of the ledger, and how many are in each room: as `benches/idle_bytes.sh` measures.
const HELD: usize = 15_000;
const ROOM: usize = 100;

/// What [`HELD`] idle connections hold: by owner, in bytes.
fn ledger() -> Vec<(&'static str, usize)> {
    let rooms = HELD / ROOM;
    let topics = HELD + rooms;
    // Slabs come in pages of 1024; an entry has its generation beside it.
    let slab = |entries: usize, entry: usize| entries.next_multiple_of(1024) * entry;
    // Tables are a power of two, at most seven eighths full; a control byte an entry.
    let table = |entries: usize, entry: usize| {
        (entries * 8).div_ceil(7).next_power_of_two() * (entry + 1) + 16
    };
    // Two counts before the text, and all of it in whole words.
    let name = |text: &str| (16 + text.len()).next_multiple_of(8);
    vec![
        ("task, future, timer, read buffer, heartbeat: none; a bit of its slot", 0),
        (
            "shard: its slot, both memberships and rights in it",
            slab(HELD, size_of::<Option<Conn>>() + 8),
        ),
        ("shard: the slot of its user's topic, itself the one member", slab(topics, 56)),
        ("shard: the user index, a hash and a number", table(topics, 8)),
        ("shard: its entry in the room's list of members", rooms * ROOM.next_power_of_two() * 8),
        ("both: the user's name", HELD * name("u:anon-0123456789abcdef-0-3a97-0")),
        ("both: the rooms' names", rooms * 2 * name("r:load-100")),
        ("backplane: the slot of the user's topic, its one shard in it", slab(topics + 1, 48)),
        ("backplane: the index of topics", table(topics + 1, 8)),
    ]
}

/// Lets the backplane confirm every join.
fn confirm(local: &mut Local, end: &ShardEnd, shard: &mut Shard, batch: &mut SendBatch) {
    while let Some(item) = shard.poll_uplink() {
        let Uplink::Join { topic, at, encoding } = item else {
            panic!("nobody leaves or publishes")
        };
        if let Some(key) = local.join(topic, ShardId(0), encoding, at) {
            local.confirm_subscription(key, 0);
        }
    }
    local.flush();
    while let Some(item) = end.try_recv() {
        shard.handle_downlink(item, NOW_MS);
    }
    while shard.has_sends() {
        shard.take_batch(batch);
    }
    batch.finish();
}

#[test]
fn what_idle_connections_hold_on_both_threads_adds_up() {
    let (ends, end, _ops) = window(1, 16, 16).unwrap();
    let mut batch = SendBatch::default();
    let mut local = Local::new(NodeId(1), end, Arc::new(Health::default()), Duration::ZERO, 0);
    let (id, node) = (ShardId(0), NodeId(0x0123_4567_89ab_cdef));
    let limits = Limits::PRODUCTION;
    let mut shard = Shard::new(ShardConfig {
        id,
        node,
        node_name: "n".into(),
        limits,
        namespaces: Default::default(),
        anonymous_secret: AnonymousSecret::new([0; 16]),
    });
    confirm(&mut local, &ends[0], &mut shard, &mut batch);
    let before = bytes_held();
    for socket_key in 0..HELD {
        let conn = shard.handle_accept(socket_key as u32, NOW_MS).expect("far from every limit");
        let none = Rights { publish: true, publish_unjoined: false, send: true, broadcast: true };
        let opening = Opening {
            identity: Identity {
                user: None,
                rights: none,
                expires_unix_s: None,
                grants: None,
                info: None,
                mark: None,
            },
            response: Bytes::from_static(b"101"),
            rooms: vec![format!("load-{}", socket_key / ROOM)],
            encoding: Encoding::NATIVE,
        };
        shard.handle_open(conn, opening);
        confirm(&mut local, &ends[0], &mut shard, &mut batch);
    }
    let held = (bytes_held() - before) as f64 / HELD as f64;
    let ledger = ledger();
    let mut sum = 0.0;
    for (who, bytes) in &ledger {
        let each = *bytes as f64 / HELD as f64;
        println!("{each:6.1}  {who}");
        sum += each;
    }
    println!("{sum:6.1}  together; counted: {held:.1}");
    assert!((held - sum).abs() <= 0.03 * held, "{held:.1} counted, {sum:.1} accounted for");
}

/// What so many connections hold on the shard's thread, in bytes: each with a token, and what that
/// says beside its user.
fn held_with(connections: usize, grants: Option<&Arc<Grants>>, expires_ms: Option<u64>) -> isize {
    let mut shard = shard();
    let mut batch = SendBatch::default();
    let before = bytes_held();
    for socket_key in 0..connections {
        let conn = shard.handle_accept(socket_key as u32, NOW_MS).expect("far from every limit");
        let opening = Opening {
            identity: Identity {
                user: Some(format!("user-{socket_key:020}").into()),
                rights: Rights::NONE,
                expires_unix_s: None,
                grants: grants.cloned(),
                info: None,
                mark: None,
            },
            response: Bytes::from_static(b"101"),
            rooms: Vec::new(),
            encoding: Encoding::NATIVE,
        };
        shard.handle_open(conn, opening);
        if let Some(at_ms) = expires_ms {
            shard.handle_expiry(conn, at_ms);
        }
        settle(&mut shard, &mut batch);
    }
    let held = bytes_held() - before;
    drop(shard);
    held
}

#[test]
fn a_shared_set_of_grants_and_an_expiry_cost_sixteen_bytes_at_most() {
    let rooms = Some(RoomTexts::for_all(vec!["load-*".to_owned()]));
    let grants = Grants::new(&GrantTexts { rooms, send: Vec::new() }).expect("a small one");
    let grants = Arc::new(grants);
    for connections in [10_000, 15_000, 16_385] {
        let plain = held_with(connections, None, None);
        let more = |grants, expires| {
            (held_with(connections, grants, expires) - plain) as f64 / connections as f64
        };
        let [of_grants, of_both] =
            [more(Some(&grants), None), more(Some(&grants), Some(3_600_000))];
        println!("{connections:6}  grants {of_grants:4.1}, with an expiry {of_both:4.1}");
        assert!(of_grants > 0.0 && of_grants < of_both, "{of_grants} {of_both}");
        assert!(of_both <= 16.0, "{of_both:.1} with {connections}");
    }
}

#[test]
fn connections_that_come_and_go_within_every_deadline_leave_nothing_behind() {
    let mut batch = SendBatch::default();
    let mut shard = shard();
    let mut churn = |times: u32| {
        for socket_key in 0..times {
            let conn = open(&mut shard, socket_key, "ann", "r");
            settle(&mut shard, &mut batch);
            // The half that says goodbye has a deadline for that, too.
            if socket_key % 2 == 0 {
                shard.handle_read(conn, &mut [0x88, 0x80, 0, 0, 0, 0]);
            } else {
                shard.handle_peer_gone(conn, CloseReason::Gone);
            }
            settle(&mut shard, &mut batch);
        }
        assert_eq!(shard.connections(), 0);
    };
    churn(3_000);
    let before = bytes_held();
    churn(30_000);
    let grown = bytes_held() - before;
    assert!(grown <= 16 * 1024, "{grown} bytes more after ten times as many");
}

/// Where messages may give way, what a buffer is made from is noted: once for each round, however
/// many members it is for, and nothing for any of them.
#[test]
fn a_room_that_lets_messages_give_way_costs_its_quick_members_nothing_more() {
    let mut batch = SendBatch::default();
    let policies = "default: slow_consumer=drop_oldest";
    let mut allocations_of_rounds = Vec::new();
    for members in [10, 3000] {
        let namespaces = Arc::new(Namespaces::read(policies).unwrap());
        let limits = Limits { handshakes_max: 100_000, send_batch_max: 4096, ..Limits::PRODUCTION };
        let (id, node, node_name) = (ShardId(0), NodeId(1), "n".into());
        let mut shard = Shard::new(ShardConfig {
            id,
            node,
            node_name,
            limits,
            namespaces,
            anonymous_secret: AnonymousSecret::new([0; 16]),
        });
        open(&mut shard, 0, "first", "r");
        let room = settle(&mut shard, &mut batch).expect("the room was joined last");
        for socket_key in 1..members {
            open(&mut shard, socket_key, &format!("user{socket_key}"), "r");
        }
        settle(&mut shard, &mut batch);
        let frame = Bytes::from_static(&[0x81, 2, b'h', b'i']);
        for _ in 0..3 {
            deliver(&mut shard, room, &frame);
            settle(&mut shard, &mut batch);
        }
        let (allocations, ()) = allocations_of(|| {
            deliver(&mut shard, room, &frame);
            shard.take_batch(&mut batch);
        });
        assert_eq!(batch.ops().len(), members as usize);
        let is_shared = |op| batch.only_buf(op).unwrap().as_ptr() == frame.as_ptr();
        assert!(batch.ops().iter().all(is_shared));
        batch.finish();
        allocations_of_rounds.push(allocations);
    }
    assert_eq!(allocations_of_rounds[0], allocations_of_rounds[1]);
    assert!(allocations_of_rounds[1] <= 2, "{allocations_of_rounds:?}");
}

/// A place in a history and a key by which it may be replaced travel in one box for the whole room.
#[test]
fn what_only_some_deliveries_need_costs_a_room_the_same_whatever_its_size() {
    let mut batch = SendBatch::default();
    let mut allocations_of_rooms = Vec::new();
    for members in [10, 1000] {
        let (mut shard, room) = crowd(members, &mut batch);
        let frame = Bytes::from_static(&[0x81, 2, b'h', b'i']);
        let delivery = |offset| {
            let (frame, position) = (frame.clone(), Some(Position { epoch: 1, offset }));
            let conflate_key = ConflateKey::of("EURUSD");
            let delivery = Delivery { to: room, frame, except: None, position, conflate_key };
            Downlink::DeliverWith(Box::new(delivery))
        };
        for offset in 1..4 {
            shard.handle_downlink(delivery(offset), NOW_MS);
            settle(&mut shard, &mut batch);
        }
        let (allocations, ()) = allocations_of(|| {
            shard.handle_downlink(delivery(4), NOW_MS);
            shard.take_batch(&mut batch);
        });
        assert_eq!(batch.ops().len(), members as usize);
        batch.finish();
        allocations_of_rooms.push(allocations);
    }
    assert_eq!(allocations_of_rooms, [1, 1], "the box");
}
