//! Values that other programs, operators and faults may write into Redis under our prefix: one
//! topic is unavailable until it is corrected, no position in it is invented, and everything else
//! works.

use crate::redis::{Redis, wait_until};
use crate::world::{Build, Received, Shard, World, conn_id, payload_of};
use campanile::backplane::redis::names::{HistoryKeys, Names};
use campanile::ids::{NodeId, Position, TopicName};
use campanile::link::{HistoryError, HistoryRequest, PublishOutcome, ReplyTo, Uplink};
use campanile::protocol::dialect::Encoding;
use campanile::protocol::{Page, Recovery, RequestId, Unrecovered};
use std::time::Duration;

/// Beyond the last possible offset and epoch.
const TOO_HIGH: [&str; 4] =
    ["9007199254740992", "9223372036854775807", "9223372036854775808", "18446744073709551615"];

fn world(namespaces: &'static str) -> World {
    World::redis(Build { nodes: 1, shards: 2, namespaces, ..Build::usual() })
}

fn kept() -> World {
    world("kept: history_size=100")
}

fn room(name: &str) -> TopicName {
    TopicName::room(&format!("kept:{name}"))
}

fn keys(topic: &TopicName) -> HistoryKeys {
    Names::new("test", NodeId(1)).history_keys(topic.as_str())
}

fn redis(world: &World) -> &Redis {
    world.redis.as_ref().expect("a world with Redis")
}

/// Publishes a number: the outcome.
fn publish(shard: &Shard, topic: &TopicName, number: u64, key: Option<&str>) -> PublishOutcome {
    shard.publish_keyed(topic, &number.to_string(), number, key);
    loop {
        match shard.receive() {
            Received::Ack { id, outcome, .. } if id == Some(number) => return outcome,
            Received::Frame { .. } | Received::Lost { .. } => {}
            other => panic!("not the answer: {other:?}"),
        }
    }
}

fn accepted(outcome: PublishOutcome) -> Position {
    let PublishOutcome::Accepted(Some(at)) = outcome else { panic!("not accepted: {outcome:?}") };
    at
}

/// Asks for all of a history; the reply must come next.
fn history(shard: &Shard, topic: &TopicName) -> Result<(Position, Vec<u64>), HistoryError> {
    let id = Some(RequestId::Number(1));
    let to = ReplyTo::Conn { shard: shard.end.id, conn: conn_id(7), id, turn: false };
    let page = Page { since: None, limit: 100, reverse: false };
    shard.send(Uplink::History(Box::new(HistoryRequest {
        topic: topic.clone(),
        page,
        to,
        encoding: Encoding::NATIVE,
    })));
    loop {
        match shard.receive() {
            Received::History { said, .. } => {
                let number = |json: &String| payload_of(json).parse().expect("a number");
                return said.map(|(at, texts)| (at, texts.iter().map(number).collect()));
            }
            Received::Frame { .. } | Received::Lost { .. } => {}
            other => panic!("not the answer: {other:?}"),
        }
    }
}

/// Joins as a member does; `None`: the history is unreadable.
fn recover(shard: &Shard, topic: &TopicName, since: Option<Position>) -> Option<Position> {
    shard.recover(topic, 5, 9, since);
    loop {
        match shard.receive() {
            Received::Recovered { ticket: 9, position, recovery, .. } => {
                let overload = Recovery::NotRecovered(Unrecovered::Overload);
                assert_ne!(recovery, overload, "nobody waits for what may take for ever");
                return Some(position);
            }
            Received::Unrecoverable { to: 5, ticket: 9 } => return None,
            Received::Frame { .. } | Received::Lost { .. } => {}
            other => panic!("not the answer: {other:?}"),
        }
    }
}

/// A room with two messages and a member.
fn room_with_two(world: &World, topic: &TopicName) -> Position {
    let (speaker, receiver) = world.two_shards();
    publish(speaker, topic, 1, None);
    let at = accepted(publish(speaker, topic, 2, None));
    receiver.join_and_receive(topic, 5);
    assert_eq!(recover(receiver, topic, None), Some(at));
    at
}

/// Joins, requests and publishes are refused.
fn cannot_be_used(world: &World, topic: &TopicName, why: &str) {
    let (speaker, receiver) = world.two_shards();
    assert_eq!(history(receiver, topic), Err(HistoryError::Unreadable), "{why}");
    let since = Some(Position { epoch: 1, offset: 1 });
    assert_eq!([None, since].map(|since| recover(receiver, topic, since)), [None; 2], "{why}");
    assert_eq!(publish(speaker, topic, 3, None), PublishOutcome::Unavailable, "{why}");
}

/// Corrected to what it was, it works as before.
fn goes_on(world: &World, topic: &TopicName, at: Position, why: &str) {
    let (speaker, receiver) = world.two_shards();
    wait_until("it is noticed", || recover(receiver, topic, None) == Some(at));
    let next = accepted(publish(speaker, topic, 4, None));
    assert_eq!(next, Position { offset: 3, ..at }, "nothing was counted meanwhile: {why}");
    let Received::Frame { json, .. } = receiver.receive() else { panic!("no message: {why}") };
    assert_eq!(payload_of(&json), "4");
    assert_eq!(history(receiver, topic), Ok((next, vec![1, 2, 4])), "{why}");
}

#[test]
fn a_history_with_an_impossible_field_is_unavailable_until_it_is_corrected() {
    let world = kept();
    let (good, redis) = (room("good"), redis(&world));
    for (row, (field, value)) in [("s", "-1"), ("s", "1.5"), ("s", "abc"), ("s", ""), ("s", "02")]
        .into_iter()
        .chain([("e", "-1"), ("e", "0"), ("e", "abc"), ("e", ""), ("e", "1e15")])
        .chain(TOO_HIGH.into_iter().flat_map(|high| [("s", high), ("e", high)]))
        .enumerate()
    {
        let (topic, why) = (room(&row.to_string()), format!("{field} = {value:?}"));
        let at = room_with_two(&world, &topic);
        let meta = keys(&topic).meta;
        let before = redis.command(&["HGET", &meta, field]);
        redis.command(&["HSET", &meta, field, value]);
        cannot_be_used(&world, &topic, &why);
        let there = redis.command(&["XLEN", &keys(&topic).stream]);
        assert_eq!(there, "2", "what is refused is not kept: {why}");
        assert_eq!(redis.command(&["HGET", &meta, field]), value, "nobody counts on: {why}");
        accepted(publish(world.two_shards().0, &good, 1, None));
        redis.command(&["HSET", &meta, field, &before]);
        goes_on(&world, &topic, at, &why);
        world.two_shards().1.leave(&topic, 5);
    }
    wait_until("it is counted", || world.nodes[0].counters().histories_unreadable >= 36);
    assert_eq!(world.nodes[0].counters().reconnects, 0);
    assert!(world.nodes[0].health.ready(0).is_ok());
}

/// How a history is spoiled, and how it is corrected.
type Spoilt = (&'static str, fn(&Redis, &HistoryKeys), fn(&Redis, &HistoryKeys));

const SPOILT: [Spoilt; 6] = [
    (
        "bytes and 100 KB of digits",
        |redis, keys| {
            redis.command_bytes(&[b"HSET", keys.meta.as_bytes(), b"s", &[0xFF, 0xFE]]);
            redis.command_bytes(&[b"HSET", keys.meta.as_bytes(), b"l", &[b'7'; 100_000]]);
        },
        |redis, keys| {
            redis.command(&["HSET", &keys.meta, "s", "2"]);
        },
    ),
    (
        "no last offset",
        |redis, keys| _ = redis.command(&["HDEL", &keys.meta, "s"]),
        |redis, keys| _ = redis.command(&["HSET", &keys.meta, "s", "2"]),
    ),
    (
        "the hash is a list",
        |redis, keys| {
            redis.command(&["RENAME", &keys.meta, "aside"]);
            redis.command(&["RPUSH", &keys.meta, "1"]);
        },
        |redis, keys| _ = redis.command(&["RENAME", "aside", &keys.meta]),
    ),
    (
        "the stream is a string",
        |redis, keys| {
            redis.command(&["RENAME", &keys.stream, "aside"]);
            redis.command(&["SET", &keys.stream, "1"]);
        },
        |redis, keys| _ = redis.command(&["RENAME", "aside", &keys.stream]),
    ),
    (
        "somebody has added to the stream",
        |redis, keys| _ = redis.command(&["XADD", &keys.stream, "1796026177423-0", "d", "x"]),
        |redis, keys| {
            redis.command(&["XDEL", &keys.stream, "1796026177423-0"]);
            redis.command(&["XSETID", &keys.stream, "2-0"]);
        },
    ),
    (
        "the stream has the last id that there is",
        |redis, keys| {
            let last = "18446744073709551615-18446744073709551615";
            redis.command(&["XADD", &keys.stream, last, "d", "x"]);
        },
        |redis, keys| {
            redis.command(&["XDEL", &keys.stream, "18446744073709551615-18446744073709551615"]);
            redis.command(&["XSETID", &keys.stream, "2-0"]);
        },
    ),
];

#[test]
fn a_history_of_another_type_is_unavailable_until_it_is_corrected() {
    let world = kept();
    for (row, (what, spoil, mend)) in SPOILT.into_iter().enumerate() {
        let topic = room(&row.to_string());
        let at = room_with_two(&world, &topic);
        spoil(redis(&world), &keys(&topic));
        cannot_be_used(&world, &topic, what);
        mend(redis(&world), &keys(&topic));
        goes_on(&world, &topic, at, what);
        world.two_shards().1.leave(&topic, 5);
    }
}

#[test]
fn what_the_warning_says_to_do_begins_a_new_history() {
    let world = kept();
    let (topic, (_, receiver)) = (room("a"), world.two_shards());
    let before = room_with_two(&world, &topic);
    let HistoryKeys { meta, stream, .. } = keys(&topic);
    redis(&world).command(&["HSET", &meta, "s", TOO_HIGH[3], "a", "7", "l", "1:2 "]);
    cannot_be_used(&world, &topic, "too high");
    redis(&world).command(&["DEL", &meta, &stream]);
    wait_until("it is noticed", || recover(receiver, &topic, None).is_some());
    let after = recover(receiver, &topic, None).expect("it was there a moment ago");
    assert!(after.offset == 0 || after == before, "empty, or put back by who had heard it");
    let next = accepted(publish(world.two_shards().0, &topic, 3, None));
    assert_eq!(next.offset, after.offset + 1);
}

#[test]
fn the_last_possible_offset_is_delivered_and_nothing_after_it() {
    let world = kept();
    let (topic, (speaker, receiver)) = (room("a"), world.two_shards());
    let at = room_with_two(&world, &topic);
    let (meta, last) = (keys(&topic).meta, Position::NUMBER_MAX);
    redis(&world).command(&["HSET", &meta, "s", &(last - 1).to_string()]);
    redis(&world).command(&["XSETID", &keys(&topic).stream, &format!("{}-0", last - 1)]);
    assert_eq!(accepted(publish(speaker, &topic, 3, None)).offset, last, "exactly");
    assert_eq!(publish(speaker, &topic, 4, None), PublishOutcome::Unavailable);
    assert_eq!(redis(&world).command(&["HGET", &meta, "s"]), last.to_string());
    // What is between is lost, which is reported once.
    let mut lost = Vec::new();
    wait_until("the end is reached", || {
        receiver.recover(&topic, 5, 9, None);
        loop {
            match receiver.receive() {
                Received::Recovered { position, .. } => return position.offset == last,
                Received::Lost { count, .. } => lost.push(count),
                Received::Frame { .. } => {}
                other => panic!("not the answer: {other:?}"),
            }
        }
    });
    assert_eq!(lost, [last - 1 - at.offset]);
    let (told, messages) = history(receiver, &topic).expect("it can be read");
    assert_eq!((told.offset, messages), (last, vec![3]));
}

#[test]
fn a_message_at_an_impossible_position_delays_nobody() {
    let world = kept();
    let (topic, (speaker, receiver)) = (room("a"), world.two_shards());
    let at = room_with_two(&world, &topic);
    let channel = Names::new("test", NodeId(1)).channel(topic.as_str());
    let channel = channel.as_bytes();
    let places = ["9", "9007199254740991", "18446744073709551615", "-1", ""]
        .map(|offset| format!("{}:{offset}:", at.epoch));
    let epochs = ["9007199254740991:1:", "0:3:", "18446744073709551615:1:"].map(str::to_owned);
    for place in places.iter().chain(&epochs) {
        let said = [place.as_bytes(), &[1, 0], b"66"].concat();
        redis(&world).command_bytes(&[b"PUBLISH", channel, &said]);
        assert_eq!(recover(receiver, &topic, None), Some(at), "{place}");
    }
    let malformed = || world.nodes[0].counters().publishes_malformed;
    wait_until("all of them are counted", || malformed() == 8);
    let before = world.nodes[0].counters().history_reads;
    assert!(receiver.receives_nothing_for(Duration::from_millis(300)));
    accepted(publish(speaker, &topic, 3, None));
    assert!(matches!(receiver.receive(), Received::Frame { .. }), "what is said is heard");
    wait_until("a tick has come", || world.nodes[0].counters().publishes == 3);
    let reads = world.nodes[0].counters().history_reads - before;
    assert!(reads < 10, "it is not read again and again: {reads}");
}

#[test]
fn a_history_that_was_reset_is_reported_as_lost_and_continues_from_there() {
    let world = kept();
    let (topic, (speaker, receiver)) = (room("a"), world.two_shards());
    let at = room_with_two(&world, &topic);
    redis(&world).command(&["DEL", &keys(&topic).stream]);
    redis(&world).command(&["HSET", &keys(&topic).meta, "s", "0"]);
    receiver.recover(&topic, 5, 9, Some(Position { offset: 99, ..at })); // makes this node read it again
    assert_eq!(receiver.receive(), Received::Lost { to: 5, count: 0 });
    assert!(matches!(receiver.receive(), Received::Recovered { .. }));
    assert_eq!(accepted(publish(speaker, &topic, 3, None)), Position { offset: 1, ..at });
    assert!(matches!(receiver.receive(), Received::Frame { .. }));
}

#[test]
fn the_value_of_an_idempotency_key_is_a_position_or_refused() {
    let world = kept();
    let (topic, (speaker, _)) = (room("a"), world.two_shards());
    let at = room_with_two(&world, &topic);
    let retry = format!("{}:k", keys(&topic).retry);
    for wrong in ["", "x", "1", "0:1", "7:18446744073709551615", "9007199254740992:1", "7:-1"] {
        redis(&world).command(&["SET", &retry, wrong]);
        assert_eq!(
            publish(speaker, &topic, 3, Some("k")),
            PublishOutcome::Unavailable,
            "{wrong:?}"
        );
    }
    redis(&world).command(&["DEL", &retry]);
    redis(&world).command(&["RPUSH", &retry, "1"]);
    assert_eq!(publish(speaker, &topic, 3, Some("k")), PublishOutcome::Unavailable, "a list");
    redis(&world).command(&["DEL", &retry]);
    assert_eq!(accepted(publish(speaker, &topic, 3, Some("k"))).offset, at.offset + 1);
    assert_eq!(accepted(publish(speaker, &topic, 3, Some("k"))).offset, at.offset + 1);
}

#[test]
fn a_repair_window_that_ends_in_a_thousand_years_delays_nobody() {
    let world = kept();
    let (topic, (speaker, _)) = (room("a"), world.two_shards());
    let at = room_with_two(&world, &topic);
    let HistoryKeys { meta, partition, .. } = keys(&topic);
    let generation = redis(&world).command(&["HGET", &partition, "g"]);
    for till in ["33000000000000", "9007199254740993", &"9".repeat(400), "x", "-1", ""] {
        // As if the server had another generation than last time.
        redis(&world).command(&["HSET", &meta, "g", "another"]);
        redis(&world).command(&["HSET", &partition, "g", "another"]);
        redis(&world).command(&["HSET", &partition, "w", &format!("{generation} {till}")]);
        let next = accepted(publish(speaker, &topic, 3, None));
        assert!(next.epoch > at.epoch, "{till}");
    }
}

#[test]
fn an_impossible_acknowledgement_makes_one_user_wait_and_no_other() {
    let world = world("@users: history_size=10");
    let (speaker, receiver) = world.two_shards();
    let [ann, bob] = ["ann", "bob"].map(TopicName::user);
    let at = room_with_two(&world, &ann);
    accepted(publish(speaker, &bob, 1, None));
    let counters = || world.nodes[0].counters();
    for wrong in ["3", "18446744073709551615", "-1", "abc", "", "01"] {
        redis(&world).command(&["HSET", &keys(&ann).meta, "a", wrong]);
        assert_eq!(recover(receiver, &ann, None), None, "{wrong:?}: it would hide messages");
        let (given_up, stored) = (counters().acks_given_up, counters().acks_stored);
        receiver.acknowledge(&ann, Some(at.epoch), 1);
        receiver.acknowledge(&bob, None, 1);
        speaker.acknowledge(&bob, Some(at.epoch), u64::MAX);
        wait_until("it is given up", || counters().acks_given_up == given_up + 1);
        redis(&world).command(&["HDEL", &keys(&ann).meta, "a"]);
        wait_until("it is mended", || recover(receiver, &ann, None) == Some(at));
        receiver.acknowledge(&ann, Some(at.epoch), 1);
        wait_until("it is stored", || counters().acks_stored > stored);
    }
}

/// It is longer than any message may be, and the connection for commands does not store it.
#[test]
fn an_entry_that_is_too_long_makes_one_room_unavailable_and_costs_no_connection() {
    let first = kept();
    let (topic, other) = (room("long"), room("other"));
    publish(first.two_shards().0, &topic, 1, None);
    let at = accepted(publish(first.two_shards().0, &topic, 2, None));
    let stream = keys(&topic).stream;
    let long = vec![b'7'; 5 << 20];
    redis(&first).command_bytes(&[b"XADD", stream.as_bytes(), b"3-0", b"d", &long]);
    // Nodes that have no copy of it.
    let build = Build { nodes: 1, namespaces: "kept: history_size=100", ..Build::usual() };
    let world = World::over(build, &redis(&first).url(), "test");
    let (speaker, receiver) = world.two_shards();
    receiver.join_and_receive(&topic, 5);
    assert_eq!(history(receiver, &topic), Err(HistoryError::Unreadable));
    assert_eq!(recover(receiver, &topic, None), None);
    accepted(publish(speaker, &other, 1, None));
    redis(&first).command(&["XDEL", &stream, "3-0"]);
    wait_until("it is read again", || recover(receiver, &topic, None) == Some(at));
    for node in &world.nodes {
        assert_eq!(node.counters().reconnects, 0);
    }
}
