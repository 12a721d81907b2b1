//! Races between a read of a history and what happens meanwhile: other requests, new messages,
//! leaves and joins, lost links. A reply holds for the time at which it was asked for.

use crate::history_faults::{envelope, numbers, outcome_of, publish, receive, topic};
use crate::proxy::{Proxy, Wire};
use crate::redis::{Redis, wait_until};
use crate::world::{Build, Received, Shard, World, conn_id, payload_of};
use campanile::ids::{Position, TopicName};
use campanile::link::{HistoryError, HistoryRequest, PublishOutcome, ReplyTo, Uplink};
use campanile::policy::limits::Limits;
use campanile::protocol::dialect::Encoding;
use campanile::protocol::{Page, Recovery, RequestId, Unrecovered};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

const META: &str = "test:{p32}:h:r:kept:a";
const STREAM: &str = "test:{p32}:s:r:kept:a";
const CHANNEL: &str = "test:{p32}:m:r:kept:a";

/// A node over a connection that a test can slow down.
fn through_proxy(build: Build, settings: &[&str]) -> (Redis, Proxy, World) {
    let redis = Redis::start_with(settings);
    let proxy = Proxy::start(redis.port);
    let world = World::over(build, &format!("redis://127.0.0.1:{}", proxy.port), "test");
    (redis, proxy, world)
}

fn one_shard() -> Build {
    Build { nodes: 1, shards: 1, ..Build::usual() }
}

/// Nothing proves that what is acknowledged was sent to subscribers.
fn unproven() -> Build {
    one_shard().without_canaries()
}

/// Joins as a member does.
fn enter(shard: &Shard) -> Position {
    shard.join_and_receive(&topic(), 5);
    shard.recover_and_receive(&topic(), 5, None).0
}

/// Asks for all of a history.
fn ask(shard: &Shard, topic: &TopicName, id: u64) {
    let id = Some(RequestId::Number(id));
    let to = ReplyTo::Conn { shard: shard.end.id, conn: conn_id(7), id, turn: false };
    let page = Page { since: None, limit: 100, reverse: false };
    shard.send(Uplink::History(Box::new(HistoryRequest {
        topic: topic.clone(),
        page,
        encoding: Encoding::NATIVE,
        to,
    })));
}

/// The reply to that, which must come next.
fn told(shard: &Shard) -> Result<(Position, Vec<u64>), HistoryError> {
    let Received::History { said, .. } = shard.receive() else { panic!("not the answer") };
    let number = |json: &String| payload_of(json).parse().expect("a number");
    said.map(|(at, texts)| (at, texts.iter().map(number).collect()))
}

/// How often streams were read.
fn reads(redis: &Redis) -> u64 {
    let stats = redis.command(&["INFO", "commandstats"]);
    let line = stats.lines().find_map(|line| line.strip_prefix("cmdstat_xrevrange:calls="));
    line.and_then(|line| line.split(',').next()?.parse().ok()).unwrap_or(0)
}

/// Publishes so many on the server at once, as another node would, and keeps `kept` of them.
fn say(redis: &Redis, epoch: u64, numbers: std::ops::RangeInclusive<u64>, kept: u64) {
    let code = "for o = ARGV[2], ARGV[3] do \
                  local message = '\\1\\0' .. string.format('%.0f', o) \
                  redis.call('XADD', KEYS[2], 'MAXLEN', ARGV[4], o .. '-0', 'd', message) \
                  redis.call('PUBLISH', ARGV[5], ARGV[1] .. ':' .. o .. ':' .. message) \
                end \
                redis.call('HSET', KEYS[1], 's', ARGV[3]) \
                return 1";
    let text = [epoch, *numbers.start(), *numbers.end(), kept].map(|number| number.to_string());
    let [epoch, first, last, kept] = &text;
    redis.command(&["EVAL", code, "2", META, STREAM, epoch, first, last, kept, CHANNEL]);
}

#[test]
fn unconfirmed_publishes_are_verified_again_when_a_link_breaks_meanwhile() {
    let (redis, proxy, world) = through_proxy(unproven(), &["--enable-debug-command", "yes"]);
    let speaker = &world.nodes[0].shards[0];
    publish(speaker, 1..=3);
    // Another server, without any of it, which accepts nothing yet.
    redis.command(&["DEL", META, STREAM]);
    redis.command(&["CONFIG", "SET", "min-replicas-to-write", "1"]);
    redis.command(&["DEBUG", "CHANGE-REPL-ID"]);
    let cut = |which: &str| {
        let before = world.nodes[0].counters().reconnects;
        redis.command(&["CLIENT", "KILL", "TYPE", which]);
        wait_until("the cut is noticed", || world.nodes[0].counters().reconnects > before);
        proxy.delay(0);
        world.wait_until_up(true);
    };
    cut("pubsub");
    for _ in 0..4 {
        proxy.delay(60);
        std::thread::sleep(Duration::from_millis(150));
        cut("normal");
    }
    redis.command(&["CONFIG", "SET", "min-replicas-to-write", "0"]);
    let stored = || redis.try_command(&["HGET", META, "s"]);
    wait_until("all are put back", || stored().as_deref() == Some("3"));
}

/// The next master lacks the third message, and refuses for a reason.
fn replace_master(redis: &Redis, world: &World, refusing: &[&str]) {
    redis.command(&["XDEL", STREAM, "3-0"]);
    redis.command(&["XSETID", STREAM, "2-0"]);
    redis.command(&["HSET", META, "s", "2"]);
    redis.command(refusing);
    let before = world.nodes[0].counters().reconnects;
    redis.command(&["DEBUG", "CHANGE-REPL-ID"]);
    redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    wait_until("the cut is noticed", || world.nodes[0].counters().reconnects > before);
    world.wait_until_up(true);
}

#[test]
fn unconfirmed_publishes_wait_for_a_master_that_waits_for_its_replicas() {
    let (redis, _wire, world) = through_proxy(unproven(), &["--enable-debug-command", "yes"]);
    publish(&world.nodes[0].shards[0], 1..=3);
    // The next master lacks the third, and accepts nothing before a replica has come.
    replace_master(&redis, &world, &["CONFIG", "SET", "min-replicas-to-write", "1"]);
    std::thread::sleep(Duration::from_secs(5));
    redis.command(&["CONFIG", "SET", "min-replicas-to-write", "0"]);
    wait_until("it is put back", || redis.command(&["HGET", META, "s"]) == "3");
}

#[test]
fn unconfirmed_publishes_wait_for_a_master_without_memory() {
    let (redis, _wire, world) = through_proxy(unproven(), &["--enable-debug-command", "yes"]);
    publish(&world.nodes[0].shards[0], 1..=3);
    // The next master lacks the third, and has no room for it yet.
    replace_master(&redis, &world, &["CONFIG", "SET", "maxmemory", "1"]);
    std::thread::sleep(Duration::from_secs(1));
    redis.command(&["SCRIPT", "FLUSH"]);
    redis.command(&["CONFIG", "SET", "maxmemory", "0"]);
    wait_until("it is put back", || redis.command(&["HGET", META, "s"]) == "3");
}

#[test]
fn a_server_without_memory_for_a_history_does_not_cost_the_link() {
    let redis = Redis::start();
    let world = World::over(one_shard(), &redis.url(), "test");
    let (speaker, plain) = (&world.nodes[0].shards[0], TopicName::room("plain"));
    speaker.join_and_receive(&plain, 6);
    redis.command(&["CONFIG", "SET", "maxmemory", "1"]);
    speaker.join_and_receive(&topic(), 5);
    speaker.recover(&topic(), 5, 9, None);
    for number in 1..=10 {
        std::thread::sleep(Duration::from_millis(50));
        speaker.publish(&plain, &number.to_string());
        assert_eq!(speaker.receive_payloads(6, 1), [number.to_string()]);
    }
    redis.command(&["CONFIG", "SET", "maxmemory", "0"]);
    let Received::Recovered { position, recovery, .. } = speaker.receive() else {
        panic!("no answer")
    };
    assert_eq!((position.offset, recovery), (0, Recovery::NotAsked));
    assert!(position.epoch > 0, "it began when there was room");
    assert_eq!(world.nodes[0].counters().reconnects, 0);
}

#[test]
fn a_server_that_lost_its_scripts_creates_a_history_all_the_same() {
    let redis = Redis::start();
    let world = World::over(one_shard(), &redis.url(), "test");
    let receiver = &world.nodes[0].shards[0];
    redis.command(&["SCRIPT", "FLUSH"]);
    assert_eq!(enter(receiver).offset, 0);
    std::thread::sleep(Duration::from_millis(300)); // gauges are published at every tick
    assert_eq!(world.nodes[0].counters().reconnects, 0);
}

#[test]
fn a_request_for_a_history_is_answered_though_the_last_member_has_left() {
    let build = Build { linger_ms: 0, ..one_shard() };
    let (_redis, proxy, world) = through_proxy(build, &[]);
    let speaker = &world.nodes[0].shards[0];
    let at = publish(speaker, 1..=3);
    enter(speaker);
    proxy.delay(50);
    ask(speaker, &topic(), 1);
    speaker.leave(&topic(), 5);
    assert_eq!(told(speaker), Ok((at, numbers(1..=3))));
    wait_until("it is followed no more", || world.nodes[0].counters().histories == 0);
}

#[test]
fn a_history_read_too_late_for_its_request_is_not_followed() {
    let limits = Limits { history_reads_per_s_max: 1, ..Limits::PRODUCTION };
    let world = World::redis(Build { limits, ..one_shard() });
    let asker = &world.nodes[0].shards[0];
    std::thread::sleep(Duration::from_millis(700)); // the repair window of a new server
    // Sixty-four at once and then one a second: the last ones have to wait for too long.
    for room in 1..=76 {
        ask(asker, &TopicName::room(&format!("kept:{room}")), room);
    }
    let late = (1..=76).filter(|_| told(asker) == Err(HistoryError::Unavailable)).count();
    assert!(late > 0);
    // As long as it takes to read what they asked for.
    std::thread::sleep(Duration::from_millis(2_500));
    wait_until("a tick has come", || world.nodes[0].counters().history_reads_waiting == 0);
    assert_eq!(world.nodes[0].counters().histories, 0);
}

#[test]
fn a_room_that_is_left_and_joined_repeatedly_takes_no_turn_of_others() {
    let limits = Limits { history_reads_per_s_max: 1, ..Limits::PRODUCTION };
    let world = World::redis(Build { limits, linger_ms: 0, ..one_shard() });
    let asker = &world.nodes[0].shards[0];
    std::thread::sleep(Duration::from_millis(700)); // the repair window of a new server
    for room in 1..=64 {
        ask(asker, &TopicName::room(&format!("kept:{room}")), room);
    }
    (1..=64).for_each(|_| assert!(told(asker).is_ok()));
    for _ in 0..30 {
        asker.join_and_receive(&topic(), 5);
        asker.leave(&topic(), 5);
        std::thread::sleep(Duration::from_millis(10)); // a turn of its own
    }
    asker.join_and_receive(&topic(), 5);
    ask(asker, &TopicName::room("kept:b"), 99);
    assert!(told(asker).is_ok(), "it is the second, and waits for two seconds");
}

#[test]
fn more_than_is_held_during_a_read_is_read_too_though_nothing_follows() {
    let build = Build { namespaces: "kept: history_size=1000", ..one_shard() };
    let (redis, proxy, world) = through_proxy(build, &[]);
    let receiver = &world.nodes[0].shards[0];
    let at = enter(receiver);
    // Every topic is audited in its turn. Here that is a minute away.
    (10..300).for_each(|at| receiver.join_and_receive(&TopicName::room(&format!("kept:{at}")), at));
    std::thread::sleep(Duration::from_millis(1_500));
    let before = reads(&redis);
    redis.command_bytes(&[b"XADD", STREAM.as_bytes(), b"1-0", b"d", &envelope(1)]);
    proxy.delay(200);
    say(&redis, at.epoch, 2..=2, 1000);
    wait_until("the hole is read", || reads(&redis) > before);
    // What was read is on the wire; what arrives now overtakes it.
    std::thread::sleep(Duration::from_millis(50));
    proxy.delay(0);
    say(&redis, at.epoch, 3..=600, 1000);
    assert_eq!(receive(receiver, 600), numbers(1..=600));
}

#[test]
fn messages_that_arrived_during_a_read_are_not_offered_to_a_server_that_has_them() {
    let (redis, proxy, world) = through_proxy(one_shard(), &[]);
    let receiver = &world.nodes[0].shards[0];
    let at = enter(receiver);
    say(&redis, at.epoch, 1..=1, 100);
    assert_eq!(receive(receiver, 1), [1]);
    let before = reads(&redis);
    proxy.delay(200);
    ask(receiver, &topic(), 1);
    wait_until("it is read", || reads(&redis) > before);
    std::thread::sleep(Duration::from_millis(50));
    proxy.delay(0);
    say(&redis, at.epoch, 2..=2, 100);
    assert_eq!(receive(receiver, 1), [2]);
    assert_eq!(told(receiver), Ok((Position { offset: 2, ..at }, numbers(1..=2))));
    // The one repair of this link may still be made.
    redis.command(&["DEL", META, STREAM]);
    ask(receiver, &topic(), 2);
    assert_eq!(told(receiver), Ok((Position { offset: 2, ..at }, numbers(1..=2))));
}

#[test]
fn a_busy_room_with_a_short_history_is_read_once_for_a_request() {
    let build = Build { namespaces: "kept: history_size=3", ..one_shard() };
    let (redis, proxy, world) = through_proxy(build, &[]);
    let receiver = &world.nodes[0].shards[0];
    let at = enter(receiver);
    say(&redis, at.epoch, 1..=5, 3);
    assert_eq!(receive(receiver, 5), numbers(1..=5));
    let before = reads(&redis);
    proxy.delay(200);
    receiver.recover(&topic(), 5, 9, Some(at));
    wait_until("it is read", || reads(&redis) > before);
    std::thread::sleep(Duration::from_millis(50));
    proxy.delay(0);
    say(&redis, at.epoch, 6..=15, 3);
    assert_eq!(receive(receiver, 10), numbers(6..=15));
    // Every later request goes unanswered.
    proxy.set(Wire::DeadUp);
    let Received::Recovered { recovery, .. } = receiver.receive() else { panic!("not the answer") };
    assert_eq!(recovery, Recovery::NotRecovered(Unrecovered::Trimmed));
    proxy.heal();
}

#[test]
fn messages_on_their_way_are_not_lost_because_a_read_came_first() {
    let build = Build { namespaces: "kept: history_size=3", ..one_shard() };
    let (redis, proxy, world) = through_proxy(build, &[]);
    let receiver = &world.nodes[0].shards[0];
    let at = enter(receiver);
    say(&redis, at.epoch, 1..=5, 3);
    assert_eq!(receive(receiver, 5), numbers(1..=5));
    // Messages are long on their way, and a reply is not.
    proxy.delay(300);
    say(&redis, at.epoch, 6..=15, 3);
    std::thread::sleep(Duration::from_millis(50));
    proxy.delay(0);
    // What is lost for sure is not waited for.
    let (position, recovery, _) = receiver.recover_and_receive(&topic(), 5, Some(at));
    assert_eq!(position.offset, 5);
    assert_eq!(recovery, Recovery::NotRecovered(Unrecovered::Trimmed));
    ask(receiver, &topic(), 1);
    assert_eq!(receive(receiver, 10), numbers(6..=15));
    assert_eq!(told(receiver).map(|(_, said)| said), Ok(numbers(13..=15)));
}

#[test]
fn a_request_in_a_busy_room_whose_messages_are_late_is_answered() {
    let build = Build { namespaces: "kept: history_size=3", ..one_shard() };
    let (redis, _wire, world) = through_proxy(build, &[]);
    let receiver = &world.nodes[0].shards[0];
    let at = enter(receiver);
    // At any time the server has published more than it keeps that is still on its way.
    let code = "redis.call('XADD', KEYS[2], 'MAXLEN', 3, ARGV[2] + 20 .. '-0', 'd', ARGV[4]) \
                redis.call('HSET', KEYS[1], 's', ARGV[2] + 20) \
                return redis.call('PUBLISH', ARGV[3], ARGV[1] .. ':' .. ARGV[2] .. ':' .. ARGV[4])";
    let (epoch, is_over) = (at.epoch.to_string(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in (1..=10_000).take_while(|_| !is_over.load(SeqCst)) {
                let number = number.to_string();
                let one = "\u{1}\u{0}1";
                let said = [&epoch, &number, CHANNEL, one];
                redis.command(&[&["EVAL", code, "2", META, STREAM], &said[..]].concat());
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        std::thread::sleep(Duration::from_millis(200));
        let began = Instant::now();
        ask(receiver, &topic(), 1);
        let said = loop {
            match receiver.receive() {
                Received::Frame { .. } => {}
                Received::History { said, .. } => break said,
                other => panic!("not the answer: {other:?}"),
            }
        };
        let took = began.elapsed();
        // No request is pending any more.
        std::thread::sleep(Duration::from_millis(300));
        let before = reads(&redis);
        std::thread::sleep(Duration::from_millis(500));
        let after = reads(&redis);
        is_over.store(true, SeqCst);
        assert_eq!(said.map(|(_, said)| said.len()), Ok(3));
        assert!(took < Duration::from_secs(2), "{took:?}");
        assert!(after - before < 5, "it is read {} times for nobody", after - before);
    });
}

#[test]
fn a_silent_loss_is_reported_though_messages_might_be_on_their_way() {
    let build = Build { namespaces: "kept: history_size=3", ..one_shard() };
    let (redis, _wire, world) = through_proxy(build, &[]);
    let receiver = &world.nodes[0].shards[0];
    let at = enter(receiver);
    say(&redis, at.epoch, 1..=1, 3);
    assert_eq!(receive(receiver, 1), [1]);
    // Ten are published, of which three are kept, and none arrives on this node's connection.
    redis.command(&["DEL", STREAM]);
    for number in 9..=11 {
        let id = format!("{number}-0");
        redis.command_bytes(&[b"XADD", STREAM.as_bytes(), id.as_bytes(), b"d", &envelope(number)]);
    }
    redis.command(&["HSET", META, "s", "11"]);
    ask(receiver, &topic(), 1);
    assert_eq!(receiver.receive(), Received::Lost { to: 5, count: 7 });
    assert_eq!(receive(receiver, 3), numbers(9..=11));
    assert_eq!(told(receiver).map(|(_, said)| said), Ok(numbers(9..=11)));
}

#[test]
fn a_publish_in_flight_when_the_link_broke_is_never_reported_as_not_sent() {
    let limits = Limits { publish_queue_ms_max: 1_500, ..Limits::PRODUCTION };
    let world = World::redis(Build { limits, ..one_shard() });
    let speaker = &world.nodes[0].shards[0];
    publish(speaker, 1..=1);
    let redis = world.redis.as_ref().unwrap();
    redis.freeze();
    speaker.publish_keyed(&topic(), "2", 2, Some("2"));
    world.wait_until_up(false);
    // Longer than it may wait. When the server goes on, it executes the command.
    let outcome = outcome_of(speaker, 2);
    redis.thaw();
    assert_eq!(outcome, PublishOutcome::Unknown);
}
