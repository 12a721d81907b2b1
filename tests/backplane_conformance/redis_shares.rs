//! What clients of a node may leave behind in Redis: their shares of histories and keys.

use crate::redis::wait_until;
use crate::world::{Build, Received, Shard, World, conn_id};
use bytes::Bytes;
use campanile::ids::{Position, TopicName};
use campanile::link::{FullShare, Publish, PublishOutcome, ReplyTo, Uplink};
use campanile::policy::limits::Limits;
use campanile::protocol::RequestId;

const FULL: PublishOutcome = PublishOutcome::Full(FullShare::Histories);

fn world() -> World {
    let (redis_histories_begun_max, redis_keys_begun_max) = (64, 64);
    let limits = Limits { redis_histories_begun_max, redis_keys_begun_max, ..Limits::PRODUCTION };
    World::redis(Build { nodes: 2, shards: 1, limits, ..Build::usual() })
}

/// Publishes as a user, or as a service, and waits for the outcome.
fn publish(shard: &Shard, room: &str, from: Option<&str>, key: Option<&str>) -> PublishOutcome {
    let id = Some(RequestId::Number(1));
    shard.send(Uplink::Publish(Publish {
        topic: TopicName::room(room),
        payload: Bytes::from_static(b"1"),
        from: from.map(TopicName::user),
        info: None,
        except: None,
        key: key.map(Into::into),
        conflate_key: None,
        done: ReplyTo::Conn { shard: shard.end.id, conn: conn_id(7), id, turn: false },
    }));
    loop {
        if let Received::Ack { outcome, .. } = shard.receive() {
            return outcome;
        }
    }
}

fn position(outcome: PublishOutcome) -> Position {
    let PublishOutcome::Accepted(Some(at)) = outcome else { panic!("{outcome:?}") };
    at
}

/// Begins histories until the share is full.
fn fill(shard: &Shard, from: &str) -> usize {
    (0..)
        .take_while(|n| publish(shard, &format!("kept:{from}-{n}"), Some(from), None) != FULL)
        .count()
}

#[test]
fn who_has_begun_its_share_of_histories_in_redis_begins_no_more_and_evicts_nobody() {
    let world = world();
    let shard = &world.nodes[0].shards[0];
    let first = position(publish(shard, "kept:of-a-service", None, None));
    assert_eq!((fill(shard, "anon-1"), fill(shard, "ann")), (1, 8));
    // What exists can be published to, whoever has begun it; what others may begin they do.
    assert_eq!(
        position(publish(shard, "kept:of-a-service", Some("ann"), None)).offset,
        first.offset + 1
    );
    assert_eq!(position(publish(shard, "kept:ann-0", Some("ann"), None)).offset, 2);
    assert_eq!(position(publish(shard, "kept:of-bob", Some("bob"), None)).offset, 1);
    assert_eq!(position(publish(shard, "kept:of-another-service", None, None)).offset, 1);
    // A history that was only asked for has no message yet.
    shard.join_and_receive(&TopicName::room("kept:joined"), 5);
    shard.recover_and_receive(&TopicName::room("kept:joined"), 5, None);
    assert_eq!(publish(shard, "kept:joined", Some("ann"), None), FULL);
    // Nothing of what was refused is there, and another node has shares of its own.
    let other = &world.nodes[1].shards[0];
    assert_eq!(position(publish(other, "kept:ann-8", Some("ann"), None)).offset, 1);
    wait_until("refusals are counted", || world.nodes[0].counters().publishes_without_room == 3);
}

#[test]
fn all_strangers_together_begin_half_of_the_histories_in_redis() {
    let world = world();
    let shard = &world.nodes[0].shards[0];
    let strangers = (0..40).map(|n| fill(shard, &format!("anon-{n}")));
    assert_eq!(strangers.sum::<usize>(), 32);
    assert_eq!(fill(shard, "ann"), 8, "users have theirs");
}

#[test]
fn who_has_used_its_share_of_keys_in_redis_may_retry_and_use_no_more() {
    let world = world();
    let shard = &world.nodes[0].shards[0];
    let keyed = |n: u32| publish(shard, "kept:a", Some("ann"), Some(&n.to_string()));
    let first = position(keyed(0));
    (1..8).for_each(|n| _ = position(keyed(n)));
    assert_eq!(keyed(8), PublishOutcome::Full(FullShare::IdempotencyKeys));
    assert_eq!(position(keyed(0)), first, "a retry is what it was");
    assert_eq!(position(publish(shard, "kept:a", Some("ann"), None)).offset, 9);
    assert_eq!(position(publish(shard, "kept:a", None, Some("of a service"))).offset, 10);
    wait_until("refusals are counted", || world.nodes[0].counters().publishes_overloaded == 1);
}
