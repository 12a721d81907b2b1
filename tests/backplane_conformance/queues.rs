//! User queues, in process and through Redis; and what only a server can do to acknowledgements.

use crate::redis::wait_until;
use crate::world::{Build, Received, Shard, World, payload_of};
use campanile::ids::{Position, TopicName};
use campanile::link::PublishOutcome;
use campanile::protocol::{Recovery, Unrecovered};

const META: &str = "test:{p821}:h:u:ann";
const STREAM: &str = "test:{p821}:s:u:ann";

fn ann() -> TopicName {
    TopicName::user("ann")
}

/// Sends so many numbers and waits for each; returns the position of the last one.
fn send(shard: &Shard, numbers: std::ops::RangeInclusive<u64>) -> Position {
    let mut last = None;
    for number in numbers {
        shard.publish_keyed(&ann(), &number.to_string(), number, Some(&number.to_string()));
        last = Some(accepted(shard, number));
    }
    last.expect("at least one")
}

fn accepted(shard: &Shard, wanted: u64) -> Position {
    loop {
        match shard.receive() {
            Received::Ack { id, outcome: PublishOutcome::Accepted(Some(at)), .. }
                if id == Some(wanted) =>
            {
                return at;
            }
            Received::Frame { .. } => {}
            other => panic!("not the answer: {other:?}"),
        }
    }
}

/// A connection of the user joins: what it receives.
fn join_presence(shard: &Shard) -> (Recovery, Vec<u64>) {
    shard.recover(&ann(), 5, 99, None);
    loop {
        match shard.receive() {
            Received::Recovered { ticket: 99, position, recovery, missed, .. } => {
                let number = |json: &String| payload_of(json).parse().expect("a number");
                let missed: Vec<u64> = missed.iter().map(number).collect();
                assert!(missed.is_empty() || missed.is_sorted());
                assert!(missed.last().is_none_or(|last| *last == position.offset));
                return (recovery, missed);
            }
            Received::Frame { .. } => {}
            other => panic!("not the answer: {other:?}"),
        }
    }
}

/// The first connection of a shard joins.
fn enter(shard: &Shard) -> (Recovery, Vec<u64>) {
    shard.join(&ann(), 5);
    loop {
        match shard.receive() {
            Received::Joined(5) => return join_presence(shard),
            Received::Frame { .. } => {}
            other => panic!("not the answer: {other:?}"),
        }
    }
}

/// As the shard does after the first connection has its answer.
fn mark(shard: &Shard, at: Position) {
    shard.acknowledge(&ann(), Some(at.epoch), 0);
}

fn stored(world: &World) -> u64 {
    world.nodes.iter().map(|node| node.counters().acks_stored).sum()
}

/// Waits until so many acknowledgements are stored.
fn wait_for_stored(world: &World, count: u64) {
    wait_until("acknowledgements are stored", || stored(world) >= count);
}

fn all(messages: u64) -> Recovery {
    Recovery::Recovered { messages }
}

fn not(why: Unrecovered) -> Recovery {
    Recovery::NotRecovered(why)
}

fn numbers(range: std::ops::RangeInclusive<u64>) -> Vec<u64> {
    range.collect()
}

pub fn unacknowledged_messages_are_delivered_wherever_the_user_returns(world: World) {
    let (speaker, receiver) = world.two_shards();
    let at = send(speaker, 1..=5);
    assert_eq!(
        enter(receiver),
        (Recovery::NotAsked, numbers(1..=5)),
        "the user was never here: nothing is to be recovered"
    );
    mark(receiver, at);
    assert_eq!(
        join_presence(receiver),
        (all(5), numbers(1..=5)),
        "no acknowledgement, all of it again"
    );
    receiver.acknowledge(&ann(), Some(at.epoch), 3);
    assert_eq!(join_presence(receiver), (all(2), numbers(4..=5)), "known here at once");
    wait_for_stored(&world, 1);
    assert_eq!(enter(speaker), (all(2), numbers(4..=5)), "and elsewhere soon");
    speaker.acknowledge(&ann(), None, 4);
    wait_until("it is known on the other side", || {
        join_presence(receiver) == (all(1), numbers(5..=5))
    });
    send(speaker, 6..=7);
    assert_eq!(join_presence(speaker), (all(3), numbers(5..=7)));
    assert_eq!(join_presence(receiver), (all(3), numbers(5..=7)));
}

pub fn acknowledgements_only_rise_and_only_for_what_was_sent(world: World) {
    let (speaker, receiver) = world.two_shards();
    let at = send(speaker, 1..=5);
    enter(receiver);
    receiver.acknowledge(&ann(), Some(at.epoch), 3);
    assert_eq!(join_presence(receiver), (all(2), numbers(4..=5)));
    for (epoch, offset) in
        [(Some(at.epoch), 1), (Some(at.epoch - 1), 5), (Some(at.epoch + 1), 5), (None, 6)]
    {
        receiver.acknowledge(&ann(), epoch, offset);
        assert_eq!(join_presence(receiver), (all(2), numbers(4..=5)), "{epoch:?} {offset}");
    }
    let ended = || world.nodes.iter().map(|node| node.counters().acks_ignored).sum::<u64>();
    wait_until("those that are wrong are counted", || ended() >= 1);
    assert_eq!(enter(speaker), (all(2), numbers(4..=5)));
}

pub fn trimmed_messages_are_reported_and_the_rest_is_delivered(world: World) {
    let (speaker, receiver) = world.two_shards();
    let at = send(speaker, 1..=25);
    enter(receiver);
    receiver.acknowledge(&ann(), Some(at.epoch), 5);
    assert_eq!(join_presence(receiver), (not(Unrecovered::Trimmed), numbers(16..=25)));
    receiver.acknowledge(&ann(), Some(at.epoch), 15);
    assert_eq!(
        join_presence(receiver),
        (all(10), numbers(16..=25)),
        "the one before is acknowledged"
    );
}

pub fn a_retry_to_a_user_is_sent_once(world: World) {
    let (speaker, receiver) = world.two_shards();
    let mut offsets = Vec::new();
    for (id, key) in [(1, "a"), (2, "a"), (3, "b")] {
        speaker.publish_keyed(&ann(), &id.to_string(), id, Some(key));
        offsets.push(accepted(speaker, id).offset);
    }
    assert_eq!(offsets, [1, 1, 2]);
    receiver.join_and_receive(&ann(), 5);
    receiver.recover(&ann(), 5, 1, None);
    let Received::Recovered { missed, .. } = receiver.receive() else { panic!("not the answer") };
    let missed: Vec<_> = missed.iter().map(|json| payload_of(json)).collect();
    assert_eq!(missed, ["1", "3"]);
}

pub fn queued_messages_are_ordered_between_earlier_and_later_ones(world: World) {
    let (speaker, receiver) = world.two_shards();
    enter(receiver);
    receiver.acknowledge(&ann(), None, 0);
    for number in 1..=100 {
        speaker.publish(&ann(), &number.to_string());
        if number % 20 == 0 {
            receiver.recover(&ann(), 5, number, None);
        }
    }
    let (mut last, mut answers) = (0, 0);
    while last < 100 || answers < 5 {
        match receiver.receive() {
            Received::Frame { json, .. } => {
                last += 1;
                assert_eq!(payload_of(&json), last.to_string());
            }
            Received::Recovered { position, missed, .. } => {
                answers += 1;
                assert_eq!(position.offset, last, "up to the last frame before it");
                assert_eq!(missed.len() as u64, last.min(10), "as many as are kept");
            }
            other => panic!("neither: {other:?}"),
        }
    }
}

// --- what only a server does ---

fn through_redis() -> World {
    World::redis(Build { nodes: 1, ..crate::queued() })
}

fn redis(world: &World, command: &[&str]) -> String {
    format!("{:?}", world.redis.as_ref().unwrap().command(command))
}

fn cut(world: &World) {
    let before = world.nodes[0].counters().reconnects;
    redis(world, &["CLIENT", "KILL", "TYPE", "pubsub"]);
    wait_until("the cut is noticed", || world.nodes[0].counters().reconnects > before);
    world.wait_until_up(true);
}

#[test]
fn an_acknowledgement_waits_for_the_server_and_only_the_latest_is_sent() {
    let world = through_redis();
    let (speaker, receiver) = world.two_shards();
    let at = send(speaker, 1..=9);
    enter(receiver);
    let server = world.redis.as_ref().unwrap();
    server.freeze();
    world.wait_until_up(false);
    (1..=7).for_each(|offset| receiver.acknowledge(&ann(), Some(at.epoch), offset));
    server.thaw();
    world.wait_until_up(true);
    wait_for_stored(&world, 1);
    assert!(redis(&world, &["HGET", META, "a"]).contains('7'));
    assert_eq!(stored(&world), 1, "seven in one");
    assert_eq!(world.nodes[0].counters().acks_waiting, 0);
}

#[test]
fn a_server_that_lost_its_scripts_loads_the_one_for_acknowledgements_again() {
    let world = through_redis();
    let (speaker, receiver) = world.two_shards();
    let at = send(speaker, 1..=3);
    enter(receiver);
    redis(&world, &["SCRIPT", "FLUSH"]);
    receiver.acknowledge(&ann(), Some(at.epoch), 2);
    wait_for_stored(&world, 1);
    assert_eq!(enter(speaker), (all(1), numbers(3..=3)));
    assert_eq!(world.nodes[0].counters().reconnects, 0);
}

#[test]
fn an_acknowledgement_survives_a_failover() {
    let world = through_redis();
    let (speaker, receiver) = world.two_shards();
    let before = send(speaker, 1..=4);
    enter(receiver);
    // The server has another generation now, and the same messages.
    redis(&world, &["HSET", META, "g", "another"]);
    let after = send(speaker, 5..=6);
    assert!(after.epoch > before.epoch && after.offset == 6);
    receiver.acknowledge(&ann(), Some(before.epoch), 3);
    wait_for_stored(&world, 1);
    receiver.acknowledge(&ann(), Some(before.epoch), 5);
    wait_until("it is none of that epoch", || world.nodes[0].counters().acks_ignored == 1);
    assert_eq!(enter(speaker), (all(3), numbers(4..=6)));
    receiver.acknowledge(&ann(), Some(after.epoch), 5);
    assert_eq!(join_presence(receiver), (all(1), numbers(6..=6)));
}

#[test]
fn messages_that_expired_or_were_lost_with_the_server_are_reported() {
    let world = through_redis();
    let (speaker, receiver) = world.two_shards();
    let at = send(speaker, 1..=4);
    // Its messages are gone, and it is known that there were some.
    redis(&world, &["DEL", STREAM]);
    redis(&world, &["HSET", META, "a", "1"]);
    assert_eq!(enter(receiver), (not(Unrecovered::Trimmed), vec![]));
    receiver.acknowledge(&ann(), Some(at.epoch), 4);
    wait_for_stored(&world, 1);
    assert_eq!(join_presence(receiver), (all(0), vec![]));
    redis(&world, &["FLUSHALL"]);
    cut(&world);
    assert_eq!(receiver.receive(), Received::Lost { to: 5, count: 0 });
    send(speaker, 5..=5);
    let (recovery, missed) = {
        receiver.recover(&ann(), 5, 98, None);
        let mut answer = None;
        while answer.is_none() {
            match receiver.receive() {
                Received::Recovered { recovery, missed, .. } => answer = Some((recovery, missed)),
                Received::Frame { .. } => {}
                other => panic!("not the answer: {other:?}"),
            }
        }
        answer.unwrap()
    };
    assert_eq!((recovery, missed.len()), (not(Unrecovered::Epoch), 1));
}

#[test]
fn a_repaired_queue_is_acknowledged_as_far_as_it_was() {
    let mut world = World::redis(crate::queued());
    {
        let (speaker, receiver) = world.two_shards();
        let at = send(speaker, 1..=5);
        enter(receiver);
        receiver.acknowledge(&ann(), Some(at.epoch), 3);
        wait_for_stored(&world, 1);
    }
    // It restarts empty, and gets the messages from the node that has them.
    world.server().kill();
    world.wait_until_up(false);
    world.server().restart();
    world.wait_until_up(true);
    let (speaker, _) = world.two_shards();
    assert_eq!(enter(speaker), (all(2), numbers(4..=5)));
}
