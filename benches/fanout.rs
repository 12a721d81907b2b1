//! What does a delivery cost in the shard itself: by members, and by messages in one visit?
//!
//! Whole shard, no socket: a visit's deliveries go in by `handle_downlink`, batches come out by
//! `take_batch` and are thrown away. The numbers are per *delivery* (message times member), so a row
//! that stays flat scales, and one that falls shows what joining frames saves. What this leaves out
//! (the kernel's part) is in `end_to_end`.

#![allow(missing_docs)] // criterion's macros make public items

use bytes::Bytes;
use campanile::auth::{AnonymousSecret, Identity};
use campanile::ids::{ConnId, NodeId, ShardId, TopicId};
use campanile::link::{Downlink, Uplink};
use campanile::policy::limits::Limits;
use campanile::policy::namespaces::Namespaces;
use campanile::policy::rights::Rights;
use campanile::protocol::dialect::Encoding;
use campanile::shard::delivery::batch::SendBatch;
use campanile::shard::{Opening, Shard, ShardConfig};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use std::sync::Arc;

const NOW_MS: u64 = 1;
/// A message of 120 bytes, as in every comparison of this project.
const FRAME: [u8; 122] = [b'x'; 122];

fn open(shard: &mut Shard, socket_key: u32, rooms: &[&str]) -> ConnId {
    let conn = shard.handle_accept(socket_key, NOW_MS).expect("far from every limit");
    let rights = Rights { publish: true, publish_unjoined: false, send: true, broadcast: true };
    let opening = Opening {
        identity: Identity {
            user: Some(format!("user{socket_key}").into()),
            rights,
            expires_unix_s: None,
            grants: None,
            info: None,
            mark: None,
        },
        response: Bytes::from_static(b"101"),
        rooms: rooms.iter().map(|room| room.to_string()).collect(),
        encoding: Encoding::NATIVE,
    };
    shard.handle_open(conn, opening);
    conn
}

/// Confirms every join, throws every write away; answers the key of the last topic joined.
fn settle(shard: &mut Shard, batch: &mut SendBatch) -> Option<TopicId> {
    let mut joined = None;
    while let Some(item) = shard.poll_uplink() {
        if let Uplink::Join { at, .. } = item {
            joined = Some(at);
            shard.handle_downlink(Downlink::Joined { at }, NOW_MS);
        }
    }
    drain(shard, batch);
    joined
}

/// Takes every batch, as the caller does that writes them.
fn drain(shard: &mut Shard, batch: &mut SendBatch) -> usize {
    let mut writes = 0;
    while shard.has_sends() {
        shard.take_batch(batch);
        writes += black_box(batch.ops()).len();
    }
    writes
}

/// A shard with `members` in one room.
fn crowd(members: u32, batch: &mut SendBatch) -> (Shard, TopicId) {
    ruled(members, "", batch)
}

/// The same in a room of these namespaces.
fn ruled(members: u32, namespaces: &str, batch: &mut SendBatch) -> (Shard, TopicId) {
    let limits = Limits { handshakes_max: 1_000_000, ..Limits::PRODUCTION };
    let (id, node) = (ShardId(0), NodeId(1));
    let mut shard = Shard::new(ShardConfig {
        id,
        node,
        node_name: "n".into(),
        limits,
        namespaces: Arc::new(Namespaces::read(namespaces).expect("as they are written")),
        anonymous_secret: AnonymousSecret::new([0; 16]),
    });
    open(&mut shard, 0, &["r"]);
    let room = settle(&mut shard, batch).expect("the room was joined last");
    for socket_key in 1..members {
        open(&mut shard, socket_key, &["r"]);
        settle(&mut shard, batch);
    }
    (shard, room)
}

fn visit(shard: &mut Shard, room: TopicId, frame: &Bytes, messages: u64, batch: &mut SendBatch) {
    for _ in 0..messages {
        let frame = frame.clone();
        shard.handle_downlink(Downlink::Deliver { to: room, frame, except: None }, NOW_MS);
    }
    black_box(drain(shard, batch));
}

fn by_members(c: &mut Criterion) {
    let mut group = c.benchmark_group("fanout/members");
    let mut batch = SendBatch::default();
    for members in [1, 10, 100, 1_000, 100_000] {
        let (mut shard, room) = crowd(members, &mut batch);
        let frame = Bytes::from_static(&FRAME);
        group.throughput(Throughput::Elements(u64::from(members)));
        group.bench_function(BenchmarkId::from_parameter(members), |b| {
            b.iter(|| visit(&mut shard, room, &frame, 1, &mut batch));
        });
    }
    group.finish();
}

fn by_messages(c: &mut Criterion) {
    let mut group = c.benchmark_group("fanout/messages");
    let mut batch = SendBatch::default();
    for messages in [1, 8, 64, 256] {
        let (mut shard, room) = crowd(1_000, &mut batch);
        let frame = Bytes::from_static(&FRAME);
        group.throughput(Throughput::Elements(1_000 * messages));
        group.bench_function(BenchmarkId::from_parameter(messages), |b| {
            b.iter(|| visit(&mut shard, room, &frame, messages, &mut batch));
        });
    }
    group.finish();
}

/// What a policy for slow members costs while there are none: something a round, nothing a member.
fn by_policy(c: &mut Criterion) {
    let mut group = c.benchmark_group("fanout/slow_consumer");
    let mut batch = SendBatch::default();
    for policy in ["close", "drop_oldest"] {
        for (members, messages) in [(1, 1), (1_000, 1), (1_000, 64)] {
            let namespaces = format!("default: slow_consumer={policy}");
            let (mut shard, room) = ruled(members, &namespaces, &mut batch);
            let frame = Bytes::from_static(&FRAME);
            group.throughput(Throughput::Elements(u64::from(members) * messages));
            let shape = format!("{members} members, {messages} messages");
            group.bench_function(BenchmarkId::new(policy, shape), |b| {
                b.iter(|| visit(&mut shard, room, &frame, messages, &mut batch));
            });
        }
    }
    group.finish();
}

/// A client's frame with a mask of zeros, so that it can be read again and again.
fn request(text: &str) -> Vec<u8> {
    let mut frame = vec![0x81, 0x80 | text.len() as u8, 0, 0, 0, 0];
    frame.extend_from_slice(text.as_bytes());
    frame
}

fn join_and_leave(c: &mut Criterion) {
    let mut group = c.benchmark_group("fanout/join_and_leave");
    let mut batch = SendBatch::default();
    for members in [1, 1_000, 100_000] {
        let (mut shard, _) = crowd(members, &mut batch);
        let conn = open(&mut shard, members, &[]);
        settle(&mut shard, &mut batch);
        let mut join = request(r#"{"type":"join","room_id":"r"}"#);
        let mut leave = request(r#"{"type":"leave","room_id":"r"}"#);
        group.bench_function(BenchmarkId::new("room of", members), |b| {
            b.iter(|| {
                shard.handle_read(conn, &mut join);
                shard.handle_read(conn, &mut leave);
                drain(&mut shard, &mut batch)
            });
        });
    }
    group.finish();
}

criterion_group!(benches, by_members, by_messages, by_policy, join_and_leave);
criterion_main!(benches);
