//! Keys that vanish under a running system: evicted, deleted by hand, flushed. Members receive
//! every message that was accepted, or `lost` in its place, and no join has an invented position.

use crate::redis::{Redis, wait_until};
use crate::world::{Build, Received, Shard, World, payload_of};
use campanile::backplane::redis::names::{HistoryKeys, Names};
use campanile::ids::{NodeId, Position, TopicName};
use campanile::link::PublishOutcome;
use campanile::protocol::{Recovery, Unrecovered};

type Fault = (&'static str, fn(&Redis, &HistoryKeys));

/// What vanishes.
const FAULTS: [Fault; 6] = [
    ("the position", |redis, keys| _ = redis.command(&["DEL", &keys.meta])),
    ("the stream", |redis, keys| _ = redis.command(&["DEL", &keys.stream])),
    ("position and stream", |redis, keys| _ = redis.command(&["DEL", &keys.meta, &keys.stream])),
    ("everything", |redis, _| _ = redis.command(&["FLUSHALL"])),
    ("everything, and the scripts", |redis, _| {
        redis.command(&["FLUSHALL"]);
        redis.command(&["SCRIPT", "FLUSH"]);
    }),
    ("the keys of retries", delete_retry_keys),
];

fn delete_retry_keys(redis: &Redis, keys: &HistoryKeys) {
    let code =
        "for _, key in ipairs(redis.call('KEYS', ARGV[1])) do redis.call('DEL', key) end return 1";
    redis.command(&["EVAL", code, "0", &format!("{}:*", keys.retry)]);
}

fn world(nodes: u64) -> World {
    let namespaces = "kept: history_size=100; @users: history_size=100";
    // No link may break because the host is slow: it would hide what is tested here.
    let (canary_timeout_ms, timeout_ms) = (60_000, 30_000);
    let build =
        Build { nodes, shards: 2, namespaces, canary_timeout_ms, timeout_ms, ..Build::usual() };
    World::redis(build)
}

fn redis(world: &World) -> &Redis {
    world.redis.as_ref().expect("a world with Redis")
}

fn keys(topic: &TopicName) -> HistoryKeys {
    Names::new("test", NodeId(1)).history_keys(topic.as_str())
}

/// A room and a user for each fault.
fn topics(number: usize) -> [TopicName; 2] {
    [TopicName::room(&format!("kept:{number}")), TopicName::user(&format!("ann-{number}"))]
}

fn enter(shard: &Shard, topic: &TopicName) -> Position {
    shard.join_and_receive(topic, 5);
    shard.recover_and_receive(topic, 5, None).0
}

/// Sends numbers under keys, without waiting for replies.
fn send(shard: &Shard, topic: &TopicName, numbers: std::ops::RangeInclusive<u64>) {
    for number in numbers {
        shard.publish_keyed(topic, &number.to_string(), number, Some(&number.to_string()));
    }
}

/// Waits until so many publishes are accepted. Returns the position of the last one.
fn wait_for_replies(shard: &Shard, count: usize) -> Position {
    let next = || match shard.receive() {
        Received::Ack { outcome: PublishOutcome::Accepted(Some(at)), .. } => at,
        other => panic!("not accepted: {other:?}"),
    };
    let mut last = next();
    for _ in 1..count {
        last = next();
    }
    last
}

/// What a member receives up to this number: numbers, and `None` for a loss.
fn received_up_to(shard: &Shard, last: u64) -> Vec<Option<u64>> {
    let mut all = Vec::new();
    while all.last() != Some(&Some(last)) {
        let state = format!("something arrives after {all:?}");
        let mut next = None;
        wait_until(&state, || {
            next = shard.try_receive();
            next.is_some()
        });
        all.push(match next.expect("it has just arrived") {
            Received::Frame { to: 5, json, .. } => {
                Some(payload_of(&json).parse().expect("a number"))
            }
            Received::Lost { to: 5, .. } => None,
            other => panic!("neither a message nor a loss: {other:?}"),
        });
    }
    all
}

/// Publishes go on while keys vanish, several times on the same link: each message that is accepted
/// is delivered once and in order, with a loss before it or not.
fn keys_vanish_between_publishes(world: &World) {
    let speaker = &world.nodes[0].shards[0];
    let receivers: Vec<&Shard> = world.nodes.iter().map(|node| &node.shards[1]).collect();
    for (number, (what, vanish)) in FAULTS.into_iter().enumerate() {
        for topic in topics(number) {
            for receiver in &receivers {
                enter(receiver, &topic);
            }
            for round in 0..4 {
                let numbers = 10 * round + 1..=10 * round + 10;
                for number in numbers.clone() {
                    send(speaker, &topic, number..=number);
                    wait_for_replies(speaker, 1);
                }
                for receiver in &receivers {
                    let received = received_up_to(receiver, *numbers.end());
                    let delivered = received.iter().copied().flatten();
                    assert!(delivered.eq(numbers.clone()), "{what} of {topic:?}: {received:?}");
                }
                vanish(redis(world), &keys(&topic));
            }
            receivers.iter().for_each(|receiver| receiver.leave(&topic, 5));
        }
    }
    let reconnects = world.nodes.iter().map(|node| node.counters().reconnects).sum::<u64>();
    assert_eq!(reconnects, 0, "no fault of a key costs a link");
}

#[test]
fn a_node_delivers_every_accepted_message_though_keys_vanish() {
    keys_vanish_between_publishes(&world(1));
}

#[test]
fn two_nodes_deliver_every_accepted_message_though_keys_vanish() {
    keys_vanish_between_publishes(&world(2));
}

/// Keys vanish while many publishes are on their way. A history may vanish before a node has read
/// it: then its messages are lost, and that is reported.
#[test]
fn messages_that_vanish_before_they_are_read_are_delivered_or_reported() {
    let world = world(1);
    let (speaker, receiver) = world.two_shards();
    for (number, (what, vanish)) in FAULTS[..3].iter().enumerate() {
        for topic in topics(number) {
            enter(receiver, &topic);
            for numbers in [1..=50, 51..=100, 101..=150] {
                send(speaker, &topic, numbers);
                vanish(redis(&world), &keys(&topic));
            }
            wait_for_replies(speaker, 150);
            send(speaker, &topic, 151..=151);
            wait_for_replies(speaker, 1);
            let received = received_up_to(receiver, 151);
            let (mut last, mut is_lost) = (0, false);
            for item in &received {
                match item {
                    None => is_lost = true,
                    Some(number) => {
                        let is_next = *number == last + 1 || is_lost;
                        assert!(
                            is_next,
                            "{number} after {last}, {what} of {topic:?}: {received:?}"
                        );
                        (last, is_lost) = (*number, false);
                    }
                }
            }
            receiver.leave(&topic, 5);
        }
    }
}

#[test]
fn a_join_after_keys_have_vanished_has_the_position_that_is_stored() {
    let world = world(2);
    let (speaker, receiver) = world.two_shards();
    let newcomer = &world.nodes[0].shards[1];
    for (number, (what, vanish)) in FAULTS.into_iter().enumerate() {
        for topic in topics(number) {
            enter(receiver, &topic);
            send(speaker, &topic, 1..=3);
            let before = wait_for_replies(speaker, 3);
            assert_eq!(received_up_to(receiver, 3), [1, 2, 3].map(Some));
            vanish(redis(&world), &keys(&topic));
            let position = enter(newcomer, &topic);
            let stored = |field| redis(&world).command(&["HGET", &keys(&topic).meta, field]);
            let why = format!("{what} of {topic:?}");
            assert_eq!(stored("e"), position.epoch.to_string(), "{why}");
            assert_eq!(stored("s"), position.offset.to_string(), "{why}");
            assert!(position == before || position.epoch > before.epoch, "{why}");
            // And both members receive what comes next.
            send(speaker, &topic, 4..=4);
            let after = wait_for_replies(speaker, 1);
            assert!(after.epoch > position.epoch || after.offset == position.offset + 1, "{why}");
            for member in [receiver, newcomer] {
                let received = received_up_to(member, 4);
                assert_eq!(received.iter().flatten().count(), 1, "{why}: {received:?}");
                member.leave(&topic, 5);
            }
        }
    }
}

#[test]
fn a_client_that_was_away_when_keys_vanished_is_not_recovered_from_another_history() {
    let world = world(2);
    let (speaker, receiver) = world.two_shards();
    for (number, (what, vanish)) in FAULTS.into_iter().enumerate() {
        let [topic, _] = topics(number);
        // No node has a copy.
        send(speaker, &topic, 1..=3);
        let before = wait_for_replies(speaker, 3);
        vanish(redis(&world), &keys(&topic));
        send(speaker, &topic, 4..=6);
        wait_for_replies(speaker, 3);
        receiver.join_and_receive(&topic, 5);
        let since = Some(Position { offset: 1, ..before });
        let (position, recovery, missed) = receiver.recover_and_receive(&topic, 5, since);
        match (what, recovery) {
            ("the keys of retries", Recovery::Recovered { messages: 5 }) => {
                assert_eq!(missed, ["2", "3", "4", "5", "6"]);
            }
            ("the stream", Recovery::NotRecovered(Unrecovered::Trimmed)) => {
                assert_eq!(position, Position { offset: 6, ..before });
            }
            (_, Recovery::NotRecovered(Unrecovered::Epoch)) => {
                assert_eq!((position.epoch > before.epoch, position.offset), (true, 3), "{what}");
            }
            other => panic!("{other:?}: {missed:?}"),
        }
        receiver.leave(&topic, 5);
    }
}

#[test]
fn a_retry_whose_key_has_vanished_is_stored_and_delivered_where_its_reply_says() {
    let world = world(2);
    let (speaker, receiver) = world.two_shards();
    let [topic, _] = topics(0);
    let at = enter(receiver, &topic);
    send(speaker, &topic, 1..=1);
    assert_eq!(wait_for_replies(speaker, 1), Position { offset: 1, ..at });
    delete_retry_keys(redis(&world), &keys(&topic));
    for _ in 0..2 {
        send(speaker, &topic, 1..=1);
        assert_eq!(wait_for_replies(speaker, 1), Position { offset: 2, ..at }, "stored once more");
    }
    send(speaker, &topic, 2..=2);
    wait_for_replies(speaker, 1);
    assert_eq!(received_up_to(receiver, 2), [1, 1, 2].map(Some));
}
