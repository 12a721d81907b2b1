//! Faults of a server with histories: data loss, an empty restart, a lost tail, a cut connection.
//! No message may be missing without a report.

use crate::proxy::Proxy;
use crate::redis::{Redis, wait_until};
use crate::world::{Build, Received, Shard, World, payload_of};
use campanile::ids::{Position, TopicName};
use campanile::link::PublishOutcome;
use campanile::policy::limits::Limits;
use campanile::protocol::{Recovery, Unrecovered};

const META: &str = "test:{p32}:h:r:kept:a";
const STREAM: &str = "test:{p32}:s:r:kept:a";
/// The fence of their partition: which generation of the server has had its repair window.
const FENCE: &str = "test:{p32}:g";

pub fn topic() -> TopicName {
    TopicName::room("kept:a")
}

fn world() -> World {
    World::redis(Build { nodes: 1, shards: 2, ..Build::usual() })
}

/// Publishes numbers under keys, each until it is accepted.
pub fn publish(shard: &Shard, numbers: std::ops::RangeInclusive<u64>) -> Position {
    let mut last = None;
    for number in numbers {
        shard.publish_keyed(&topic(), &number.to_string(), number, Some(&number.to_string()));
        last = Some(outcome_of(shard, number));
    }
    match last.expect("at least one") {
        PublishOutcome::Accepted(Some(at)) => at,
        other => panic!("it was not accepted: {other:?}"),
    }
}

pub fn outcome_of(shard: &Shard, wanted: u64) -> PublishOutcome {
    loop {
        match shard.receive() {
            Received::Ack { id, outcome, .. } if id == Some(wanted) => return outcome,
            Received::Ack { .. } | Received::Frame { .. } => {}
            other => panic!("not the answer: {other:?}"),
        }
    }
}

/// Joins as a member does.
fn enter(shard: &Shard) -> Position {
    shard.join_and_receive(&topic(), 5);
    shard.recover_and_receive(&topic(), 5, None).0
}

/// The payloads of the next messages; nothing else may come between.
pub fn receive(shard: &Shard, count: usize) -> Vec<u64> {
    let next = || match shard.receive() {
        Received::Frame { json, .. } => payload_of(&json).parse().expect("a number"),
        other => panic!("not a message: {other:?}"),
    };
    (0..count).map(|_| next()).collect()
}

pub fn numbers(range: std::ops::RangeInclusive<u64>) -> Vec<u64> {
    range.collect()
}

/// Cuts this node off and waits until it is back.
fn cut(world: &World) {
    let before = world.nodes[0].counters().reconnects;
    world.redis.as_ref().unwrap().command(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    wait_until("the cut is noticed", || world.nodes[0].counters().reconnects > before);
    world.wait_until_up(true);
}

#[test]
fn messages_published_while_this_node_was_cut_off_are_read() {
    let world = world();
    let (speaker, receiver) = world.two_shards();
    enter(receiver);
    publish(speaker, 1..=3);
    assert_eq!(receive(receiver, 3), numbers(1..=3));
    let redis = world.redis.as_ref().unwrap();
    // Another node has published and this one received nothing of it: entries without messages.
    for number in 4..=6 {
        let id = format!("{number}-0");
        redis.command_bytes(&[b"XADD", STREAM.as_bytes(), id.as_bytes(), b"d", &envelope(number)]);
    }
    redis.command(&["HSET", META, "s", "6"]);
    cut(&world);
    assert_eq!(receive(receiver, 3), numbers(4..=6));
    publish(speaker, 7..=7);
    assert_eq!(receive(receiver, 1), [7]);
    assert_eq!(world.nodes[0].counters().holes_lost, 0);
}

/// A message without sender as one node writes it for another.
pub fn envelope(number: u64) -> Vec<u8> {
    [&[1, 0][..], number.to_string().as_bytes()].concat()
}

#[test]
fn a_gap_is_closed_before_anything_else_is_delivered() {
    let world = world();
    let (_, receiver) = world.two_shards();
    let at = enter(receiver);
    let redis = world.redis.as_ref().unwrap();
    let channel = b"test:{p32}:m:r:kept:a";
    for number in 1..=3 {
        let id = format!("{number}-0");
        redis.command_bytes(&[b"XADD", STREAM.as_bytes(), id.as_bytes(), b"d", &envelope(number)]);
    }
    redis.command(&["HSET", META, "s", "3"]);
    // Of three messages only the last arrives.
    let said = [format!("{}:3:", at.epoch).as_bytes(), &envelope(3)[..]].concat();
    redis.command_bytes(&[b"PUBLISH", channel, &said]);
    assert_eq!(receive(receiver, 3), numbers(1..=3));
    redis.command_bytes(&[b"PUBLISH", channel, &said]);
    let answer = receiver.recover_and_receive(&topic(), 5, None);
    assert_eq!(answer.0.offset, 3, "what was told twice was heard once");
}

#[test]
fn a_server_that_restarts_empty_is_repaired_and_no_member_notices() {
    let mut world = world();
    let before = {
        let (speaker, receiver) = world.two_shards();
        enter(receiver);
        let at = publish(speaker, 1..=10);
        assert_eq!(receive(receiver, 10), numbers(1..=10));
        at
    };
    world.server().kill();
    world.wait_until_up(false);
    world.server().restart();
    world.wait_until_up(true);
    let (speaker, receiver) = world.two_shards();
    let after = publish(speaker, 11..=12);
    assert_eq!(after.offset, 12, "offsets go on");
    assert!(after.epoch > before.epoch, "under an epoch of the new server");
    assert_eq!(receive(receiver, 2), numbers(11..=12));
    let since = Some(Position { offset: 4, ..before });
    let (_, recovery, missed) = receiver.recover_and_receive(&topic(), 5, since);
    assert_eq!(recovery, Recovery::Recovered { messages: 8 });
    assert_eq!(missed, (5..=12).map(|number| number.to_string()).collect::<Vec<_>>());
}

#[test]
fn a_server_that_lost_the_tail_is_repaired_before_it_accepts_new_messages() {
    let world = world();
    let (speaker, receiver) = world.two_shards();
    enter(receiver);
    let before = publish(speaker, 1..=10);
    assert_eq!(receive(receiver, 10), numbers(1..=10));
    // As after the promotion of a replica that had not received the last three.
    let redis = world.redis.as_ref().unwrap();
    redis.command(&["XDEL", STREAM, "8-0", "9-0", "10-0"]);
    redis.command(&["XSETID", STREAM, "7-0"]);
    redis.command(&["HSET", META, "s", "7", "g", "another"]);
    redis.command(&["HSET", FENCE, "g", "another"]);
    cut(&world);
    let after = publish(speaker, 11..=11);
    assert_eq!((after.offset, after.epoch > before.epoch), (11, true));
    assert_eq!(receive(receiver, 1), [11]);
    let since = Some(Position { offset: 6, ..before });
    let (_, recovery, missed) = receiver.recover_and_receive(&topic(), 5, since);
    assert_eq!((recovery, missed.len()), (Recovery::Recovered { messages: 5 }, 5));
    assert_eq!(world.nodes[0].counters().holes_lost, 0);
}

#[test]
fn messages_that_no_node_has_any_more_are_reported_as_lost() {
    let world = world();
    let (speaker, receiver) = world.two_shards();
    let before = publish(speaker, 1..=5);
    enter(receiver);
    world.redis.as_ref().unwrap().command(&["FLUSHALL"]);
    cut(&world);
    assert_eq!(receiver.receive(), Received::Lost { to: 5, count: 0 });
    let (position, recovery, _) = receiver.recover_and_receive(&topic(), 5, Some(before));
    assert_eq!(recovery, Recovery::NotRecovered(Unrecovered::Epoch));
    assert_eq!(position.offset, 0);
    publish(speaker, 6..=6);
    assert_eq!(receive(receiver, 1), [6]);
}

#[test]
fn a_server_that_lost_its_scripts_loads_them_again() {
    let world = world();
    let (speaker, receiver) = world.two_shards();
    enter(receiver);
    for number in 1..=50 {
        if number % 10 == 0 {
            world.redis.as_ref().unwrap().command(&["SCRIPT", "FLUSH"]);
        }
        speaker.publish_keyed(&topic(), &number.to_string(), number, None);
    }
    for number in 1..=50 {
        assert!(
            matches!(outcome_of(speaker, number), PublishOutcome::Accepted(Some(_))),
            "{number}"
        );
    }
    let mut received = receive(receiver, 50);
    received.sort_unstable();
    assert_eq!(received, numbers(1..=50));
    assert_eq!(world.nodes[0].counters().reconnects, 0);
}

#[test]
fn a_publish_in_flight_when_the_server_froze_is_stored_once() {
    let world = world();
    let (speaker, receiver) = world.two_shards();
    enter(receiver);
    publish(speaker, 1..=1);
    let redis = world.redis.as_ref().unwrap();
    redis.freeze();
    for number in 2..=20 {
        speaker.publish_keyed(&topic(), &number.to_string(), number, Some(&number.to_string()));
    }
    world.wait_until_up(false);
    redis.thaw();
    for number in 2..=20 {
        assert!(
            matches!(outcome_of(speaker, number), PublishOutcome::Accepted(Some(_))),
            "{number}"
        );
    }
    let received = receive(receiver, 20);
    let distinct: std::collections::HashSet<_> = received.iter().collect();
    assert_eq!(distinct.len(), 20, "{received:?}");
    let (position, ..) = receiver.recover_and_receive(&topic(), 5, None);
    assert_eq!(position.offset, 20, "each once");
}

#[test]
fn another_history_is_read_from_its_own_beginning() {
    let world = world();
    let (speaker, receiver) = world.two_shards();
    let redis = world.redis.as_ref().unwrap();
    let before = publish(speaker, 1..=20);
    redis.command(&["XTRIM", STREAM, "MAXLEN", "2"]);
    enter(receiver);
    let since = Some(Position { offset: 5, ..before });
    let (_, recovery, _) = receiver.recover_and_receive(&topic(), 5, since);
    assert_eq!(recovery, Recovery::NotRecovered(Unrecovered::Trimmed), "19 is the first one left");
    // The server has another history by now, with three messages.
    redis.command(&["DEL", STREAM]);
    for number in 1..=3 {
        let id = format!("{number}-0");
        redis.command_bytes(&[b"XADD", STREAM.as_bytes(), id.as_bytes(), b"d", &envelope(number)]);
    }
    redis.command(&["HSET", META, "e", "777", "s", "3"]);
    cut(&world);
    assert_eq!(receiver.receive(), Received::Lost { to: 5, count: 0 });
    let beginning = Some(Position { epoch: 777, offset: 0 });
    let (position, recovery, missed) = receiver.recover_and_receive(&topic(), 5, beginning);
    assert_eq!(position, Position { epoch: 777, offset: 3 });
    assert_eq!(recovery, Recovery::Recovered { messages: 3 }, "{missed:?}");
}

#[test]
fn messages_that_replaced_those_of_a_dead_master_are_delivered() {
    let world = world();
    let (speaker, receiver) = world.two_shards();
    enter(receiver);
    let at = publish(speaker, 1..=5);
    assert_eq!(receive(receiver, 5), numbers(1..=5));
    let redis = world.redis.as_ref().unwrap();
    // The new master had three of them when it was promoted, and has stored others since.
    let (epoch, chain) = ((at.epoch + 1).to_string(), format!("{}:3 ", at.epoch));
    redis.command(&["DEL", STREAM]);
    for number in 1..=6 {
        let (id, payload) = (format!("{number}-0"), if number > 3 { 10 * number } else { number });
        redis.command_bytes(&[b"XADD", STREAM.as_bytes(), id.as_bytes(), b"d", &envelope(payload)]);
    }
    redis.command(&["HSET", META, "e", &epoch, "s", "6", "l", &chain]);
    cut(&world);
    assert_eq!(receiver.receive(), Received::Lost { to: 5, count: 0 });
    assert_eq!(receive(receiver, 3), [40, 50, 60]);
    let since = |offset| Some(Position { offset, ..at });
    let (now, recovery, missed) = receiver.recover_and_receive(&topic(), 5, since(2));
    assert_eq!((now.offset, recovery), (6, Recovery::Recovered { messages: 4 }));
    assert_eq!(missed, ["3", "40", "50", "60"]);
    let (now, recovery, missed) = receiver.recover_and_receive(&topic(), 5, since(5));
    assert_eq!((now.offset, recovery), (6, Recovery::Replaced { messages: 3 }));
    assert_eq!(missed, ["40", "50", "60"]);
    // And a client that was away all the time recovers from a node that has none of it.
    let other = World::over(Build { nodes: 1, shards: 1, ..Build::usual() }, &redis.url(), "test");
    let stranger = &other.nodes[0].shards[0];
    enter(stranger);
    let (now, recovery, missed) = stranger.recover_and_receive(&topic(), 5, since(5));
    assert_eq!((now.offset, recovery), (6, Recovery::Replaced { messages: 3 }));
    assert_eq!(missed, ["40", "50", "60"]);
}

#[test]
fn a_request_during_a_shorter_read_is_answered_from_the_next_one() {
    let redis = Redis::start();
    let proxy = Proxy::start(redis.port);
    let world = World::over(
        Build { nodes: 2, shards: 1, ..Build::usual() },
        &format!("redis://127.0.0.1:{}", proxy.port),
        "test",
    );
    let (speaker, receiver) = world.two_shards();
    let at = publish(speaker, 1..=10);
    // The channel is subscribed, and a read on its way that asks for the end only.
    proxy.delay(50);
    receiver.join_and_receive(&topic(), 5);
    let answer = receiver.recover_and_receive(&topic(), 5, Some(Position { offset: 4, ..at }));
    let missed: Vec<String> = (5..=10).map(|number| number.to_string()).collect();
    assert_eq!(answer, (at, Recovery::Recovered { messages: 6 }, missed));
}

#[test]
fn a_position_beyond_all_numbers_is_answered_like_any_other() {
    let world = world();
    let (speaker, receiver) = world.two_shards();
    let at = publish(speaker, 1..=2);
    receiver.join_and_receive(&topic(), 5);
    for epoch in [at.epoch, 7] {
        let since = Some(Position { epoch, offset: u64::MAX });
        let (_, recovery, _) = receiver.recover_and_receive(&topic(), 5, since);
        let why = if epoch == 7 { Unrecovered::Epoch } else { Unrecovered::TailLost };
        assert_eq!(recovery, Recovery::NotRecovered(why));
    }
}

#[test]
fn histories_are_read_no_faster_than_the_operator_allows_and_all_are_read() {
    let limits = Limits { history_reads_per_s_max: 20, ..Limits::PRODUCTION };
    let world = World::redis(Build { nodes: 1, shards: 2, limits, ..Build::usual() });
    let (_, receiver) = world.two_shards();
    // Sixty-four at once, and then twenty a second.
    let rooms = 100;
    for room in 0..rooms {
        receiver.join_and_receive(&TopicName::room(&format!("kept:{room}")), room);
    }
    for room in 0..rooms {
        let at = TopicName::room(&format!("kept:{room}"));
        receiver.recover(&at, room, u64::from(room), None);
    }
    wait_until("some wait for their turn", || world.nodes[0].counters().history_reads_waiting > 0);
    let mut answered: Vec<u32> = (0..rooms)
        .map(|_| match receiver.receive() {
            Received::Recovered { to, recovery: Recovery::NotAsked, .. } => to,
            other => panic!("not an answer: {other:?}"),
        })
        .collect();
    answered.sort_unstable();
    assert!(answered.into_iter().eq(0..rooms), "each once");
    wait_until("nobody waits", || world.nodes[0].counters().history_reads_waiting == 0);
}

#[test]
fn a_repair_restores_idempotency_keys_and_a_retry_is_stored_once() {
    let mut world = world();
    let (speaker, receiver) = world.two_shards();
    let before = enter(receiver);
    publish(speaker, 1..=3);
    assert_eq!(receive(receiver, 3), numbers(1..=3));
    world.server().kill();
    world.wait_until_up(false);
    world.server().restart();
    world.wait_until_up(true);
    let (speaker, receiver) = world.two_shards();
    // Its publisher never received the reply, and retries.
    speaker.publish_keyed(&topic(), "3", 30, Some("3"));
    let PublishOutcome::Accepted(Some(at)) = outcome_of(speaker, 30) else {
        panic!("it was said before")
    };
    assert_eq!(at.offset, 3, "where it stood");
    assert_eq!(publish(speaker, 4..=4).offset, 4);
    assert_eq!(receive(receiver, 1), [4], "and not 3 once more");
    let (_, recovery, _) = receiver.recover_and_receive(&topic(), 5, Some(before));
    assert_eq!(recovery, Recovery::Recovered { messages: 4 });
}

#[test]
fn a_client_that_received_more_than_this_node_is_not_denied_before_another_read() {
    let world = world();
    let (speaker, receiver) = world.two_shards();
    let at = enter(receiver);
    publish(speaker, 1..=2);
    assert_eq!(receive(receiver, 2), numbers(1..=2));
    // A third is published, and does not arrive on this node's connection.
    let redis = world.redis.as_ref().unwrap();
    redis.command_bytes(&[b"XADD", STREAM.as_bytes(), b"3-0", b"d", &envelope(3)]);
    redis.command(&["HSET", META, "s", "3"]);
    let since = Some(Position { offset: 3, ..at });
    receiver.recover(&topic(), 5, 9, since);
    assert_eq!(receive(receiver, 1), [3]);
    let Received::Recovered { recovery, .. } = receiver.receive() else { panic!("not the answer") };
    assert_eq!(recovery, Recovery::Recovered { messages: 0 });
}

#[test]
fn a_message_of_an_epoch_that_is_over_is_not_waited_for() {
    let world = world();
    let (speaker, receiver) = world.two_shards();
    let at = enter(receiver);
    publish(speaker, 1..=2);
    assert_eq!(receive(receiver, 2), numbers(1..=2));
    // A repair arrives at a node that knows that the history has gone on.
    let redis = world.redis.as_ref().unwrap();
    let channel = b"test:{p32}:m:r:kept:a";
    let said = [format!("{}:7:", at.epoch - 1).as_bytes(), &envelope(7)[..]].concat();
    redis.command_bytes(&[b"PUBLISH", channel, &said]);
    publish(speaker, 3..=3);
    assert_eq!(receive(receiver, 1), [3]);
    // Gauges are published at every tick: those of one tick, and those of a later one.
    let reads_when = |publishes: u64| {
        let counted = || world.nodes[0].counters();
        wait_until("a tick has come", || counted().publishes == publishes);
        counted().history_reads
    };
    let before = reads_when(3);
    publish(speaker, 4..=4);
    assert_eq!(receive(receiver, 1), [4]);
    let after = reads_when(4);
    assert!(after <= before + 1, "it is read again and again: {before}, {after}");
}

#[test]
fn unconfirmed_publishes_are_repaired_too() {
    let redis = Redis::start_with(&["--enable-debug-command", "yes"]);
    let build = Build { nodes: 1, shards: 2, ..Build::usual() }.without_canaries();
    let world = World::over(build, &redis.url(), "test");
    let (speaker, receiver) = world.two_shards();
    // There are no subscribers, and three are acknowledged.
    let before = publish(speaker, 1..=3);
    // The next server has the first two, and another generation.
    redis.command(&["XDEL", STREAM, "3-0"]);
    redis.command(&["XSETID", STREAM, "2-0"]);
    redis.command(&["HSET", META, "s", "2"]);
    let reconnects = world.nodes[0].counters().reconnects;
    redis.command(&["DEBUG", "CHANGE-REPL-ID"]);
    redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    wait_until("it is noticed", || world.nodes[0].counters().reconnects > reconnects);
    world.wait_until_up(true);
    let after = publish(speaker, 4..=4);
    assert_eq!((after.offset, after.epoch > before.epoch), (4, true), "behind the third");
    receiver.join_and_receive(&topic(), 5);
    let since = Some(Position { offset: 0, ..before });
    let (_, recovery, missed) = receiver.recover_and_receive(&topic(), 5, since);
    assert_eq!(recovery, Recovery::Recovered { messages: 4 }, "{missed:?}");
}

#[test]
fn a_server_that_missed_a_whole_epoch_is_repaired() {
    let world = world();
    let (speaker, receiver) = world.two_shards();
    enter(receiver);
    let first = publish(speaker, 1..=2);
    assert_eq!(receive(receiver, 2), numbers(1..=2));
    // One server follows on the other, and stores two more under an epoch of its own.
    let redis = world.redis.as_ref().unwrap();
    redis.command(&["HSET", META, "g", "another"]);
    let second = publish(speaker, 3..=4);
    assert!(second.epoch > first.epoch);
    assert_eq!(receive(receiver, 2), numbers(3..=4));
    // The third one has what the first one had, and nothing of the second.
    redis.command(&["XDEL", STREAM, "3-0", "4-0"]);
    redis.command(&["XSETID", STREAM, "2-0"]);
    let epoch = first.epoch.to_string();
    redis.command(&["HSET", META, "e", &epoch, "s", "2", "l", "", "g", "a third"]);
    redis.command(&["HSET", FENCE, "g", "a third"]);
    cut(&world);
    let third = publish(speaker, 5..=5);
    assert_eq!((third.offset, third.epoch > second.epoch), (5, true));
    assert_eq!(receive(receiver, 1), [5], "and nobody is told of a loss");
    for since in [first, second] {
        let (_, recovery, _) = receiver.recover_and_receive(&topic(), 5, Some(since));
        assert_eq!(recovery, Recovery::Recovered { messages: 5 - since.offset });
    }
}

#[test]
fn unconfirmed_publishes_of_an_epoch_that_only_their_node_knows_are_repaired_too() {
    let redis = Redis::start_with(&["--enable-debug-command", "yes"]);
    let build = Build { nodes: 1, shards: 2, ..Build::usual() }.without_canaries();
    let world = World::over(build, &redis.url(), "test");
    let (speaker, receiver) = world.two_shards();
    // There are no subscribers. One server follows on the other, and two are acknowledged under an
    // epoch of its own.
    let first = publish(speaker, 1..=2);
    redis.command(&["HSET", META, "g", "another"]);
    let second = publish(speaker, 3..=4);
    assert!(second.epoch > first.epoch);
    // The next server has what the first one had, and another generation.
    redis.command(&["XDEL", STREAM, "3-0", "4-0"]);
    redis.command(&["XSETID", STREAM, "2-0"]);
    let epoch = first.epoch.to_string();
    redis.command(&["HSET", META, "e", &epoch, "s", "2", "l", "", "g", "a third"]);
    let reconnects = world.nodes[0].counters().reconnects;
    redis.command(&["DEBUG", "CHANGE-REPL-ID"]);
    redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    wait_until("it is noticed", || world.nodes[0].counters().reconnects > reconnects);
    world.wait_until_up(true);
    let third = publish(speaker, 5..=5);
    assert_eq!((third.offset, third.epoch > second.epoch), (5, true), "behind the fourth");
    receiver.join_and_receive(&topic(), 5);
    for since in [first, second] {
        let (_, recovery, missed) = receiver.recover_and_receive(&topic(), 5, Some(since));
        let messages = 5 - since.offset;
        assert_eq!(recovery, Recovery::Recovered { messages }, "{missed:?}");
    }
}
