//! A server that changes its generation under living nodes, and what only a publisher's node knows
//! when one dies.

use crate::history_faults::{envelope, numbers, outcome_of, publish, receive, topic};
use crate::proxy::{Proxy, Wire};
use crate::redis::{Redis, wait_until};
use crate::world::{Build, Shard, World};
use campanile::ids::Position;
use campanile::link::PublishOutcome;
use campanile::protocol::Recovery;
use std::time::Duration;

const META: &str = "test:{p32}:h:r:kept:a";
const STREAM: &str = "test:{p32}:s:r:kept:a";
const FENCE: &str = "test:{p32}:g";

fn enter(shard: &Shard) -> Position {
    shard.join_and_receive(&topic(), 5);
    shard.recover_and_receive(&topic(), 5, None).0
}

/// A server whose replication id a test may change, and two nodes.
fn world_of(build: Build) -> (Redis, World) {
    let redis = Redis::start_with(&["--enable-debug-command", "yes"]);
    let world = World::over(build, &redis.url(), "test");
    (redis, world)
}

/// The same, and no canary finds anything out or proves anything.
fn world_without_canaries() -> (Redis, World) {
    world_of(Build::usual().without_canaries())
}

fn reconnects(world: &World) -> Vec<u64> {
    world.nodes.iter().map(|node| node.counters().reconnects).collect()
}

/// The end of the generation of a server.
fn replication(redis: &Redis) -> String {
    let info = redis.command(&["INFO", "replication"]);
    let id = info.split("master_replid:").nth(1).expect("it reports one");
    id[..16].to_owned()
}

fn accepted(shard: &Shard, number: u64) -> Position {
    match outcome_of(shard, number) {
        PublishOutcome::Accepted(Some(at)) => at,
        other => panic!("{number} was not accepted: {other:?}"),
    }
}

#[test]
fn a_server_that_chooses_another_replication_id_for_its_data_is_not_left() {
    let (redis, world) = world_of(Build::usual());
    let (speaker, receiver) = world.two_shards();
    enter(receiver);
    let before = publish(speaker, 1..=3);
    let window_over = redis.command(&["HGET", FENCE, "g"]);
    // As Redis does when the first replica attaches.
    redis.command(&["DEBUG", "CHANGE-REPL-ID"]);
    let is_followed = || {
        let now = redis.command(&["HGET", FENCE, "g"]);
        now != window_over && now.ends_with(&replication(&redis))
    };
    wait_until("the window that is over is over under the new id, too", is_followed);
    let after = publish(speaker, 4..=4);
    assert_eq!((after.offset, after.epoch >= before.epoch), (4, true));
    assert_eq!(receive(receiver, 4), numbers(1..=4));
    assert_eq!(publish(receiver, 5..=5).offset, 5, "nothing is lost, whichever node follows first");
    assert_eq!(reconnects(&world), [0, 0]);
}

#[test]
fn nodes_that_believe_an_old_generation_neither_begin_nor_end_a_repair_window() {
    let (redis, world) = world_without_canaries();
    let (speaker, receiver) = world.two_shards();
    enter(speaker);
    publish(speaker, 1..=1);
    for round in 0..5 {
        redis.command(&["HSET", META, "g", "another"]);
        redis.command(&["DEL", FENCE]);
        redis.command(&["DEBUG", "CHANGE-REPL-ID"]);
        let current = replication(&redis);
        let (one, two) = (10 + 2 * round, 11 + 2 * round);
        speaker.publish_keyed(&topic(), &one.to_string(), one, None);
        receiver.publish_keyed(&topic(), &two.to_string(), two, None);
        let places = [accepted(speaker, one), accepted(receiver, two)];
        assert_eq!(places[0].epoch, places[1].epoch, "one window, and one epoch");
        assert!(redis.command(&["HGET", FENCE, "g"]).ends_with(&current));
    }
    assert_eq!(reconnects(&world), [0, 0]);
}

#[test]
fn a_master_that_is_back_empty_is_repaired_although_its_replica_attaches_later() {
    let settings = ["--min-replicas-to-write", "1", "--repl-diskless-sync-delay", "0"];
    let mut master = Redis::start_with(&settings);
    let follow = format!("127.0.0.1 {}", master.port);
    let replica = Redis::start_with(&["--replicaof", &follow]);
    let world = World::over(Build::usual(), &master.url(), "test");
    let (speaker, receiver) = world.two_shards();
    wait_until("it takes writes", || master.command(&["SET", "written", "1"]) == "OK");
    enter(receiver);
    let before = publish(speaker, 1..=10);
    assert_eq!(receive(receiver, 10), numbers(1..=10));
    for round in 0..3 {
        let (first, last) = (11 + 2 * round, 12 + 2 * round);
        master.kill();
        world.wait_until_up(false);
        // Nodes are linked before the replica is: that one gives the server another id.
        replica.freeze();
        master.restart();
        world.wait_until_up(true);
        let alone = replication(&master);
        replica.thaw();
        let after = publish(speaker, first..=last);
        assert_ne!(replication(&master), alone, "it has another id now");
        assert_eq!(after.offset, last);
        assert_eq!(receive(receiver, 2), numbers(first..=last), "and nobody is told of a loss");
        assert_eq!(reconnects(&world), [round + 1; 2], "the link of the restart went on");
    }
    let (_, recovery, _) = receiver.recover_and_receive(&topic(), 5, Some(before));
    assert_eq!(recovery, Recovery::Recovered { messages: 6 });
}

#[test]
fn a_window_that_ended_while_the_server_stood_still_begins_again_for_who_connects() {
    let (redis, world) = world_without_canaries();
    publish(world.two_shards().0, 1..=1);
    redis.command(&["DEBUG", "CHANGE-REPL-ID"]);
    let info = redis.command(&["INFO", "server"]);
    let run = &info.split("run_id:").nth(1).expect("it has one")[..16];
    let generation = format!("{run}{}", replication(&redis));
    redis.command(&["DEL", FENCE]);
    // It waited for a node that had connected.
    let nodes = format!("{generation} 1 0 00000000000000ff=1");
    redis.command(&["HSET", FENCE, "w", &format!("{generation} 1"), "n", &nodes]);
    redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    // The node that does not report keeps it open for seconds after the two others have connected.
    let mut window = String::new();
    wait_until("it begins again", || {
        window = redis.try_command(&["HGET", FENCE, "w"]).unwrap_or_default();
        !window.ends_with(" 1")
    });
    assert!(window.starts_with(&generation), "{window}, and it is not over");
    assert_eq!(redis.command(&["HEXISTS", FENCE, "g"]), "0");
}

/// How long a node is held up in the tests of that: longer than 600 ms, for which a window was open
/// that went by time alone, and shorter than the 5 s of one that waits.
const HELD_UP: Duration = Duration::from_secs(3);

/// Two nodes that know of each other, the second one over a wire of its own.
fn world_with_wire(build: Build) -> (Redis, Proxy, World) {
    let redis = Redis::start_with(&["--enable-debug-command", "yes"]);
    let proxy = Proxy::start(redis.port);
    let urls = [redis.url(), format!("redis://127.0.0.1:{}", proxy.port)];
    let world = World::begin_each(build, &[&urls[0], &urls[1]], "test");
    world.wait_until_up(true);
    wait_until_nodes_know(&world, 2);
    (redis, proxy, world)
}

fn wait_until_nodes_know(world: &World, count: u64) {
    let know = || world.nodes.iter().all(|node| node.counters().nodes == count);
    wait_until("the nodes know of each other", know);
}

/// The node of the wire cannot connect.
fn hold_up(proxy: &Proxy) {
    proxy.set(Wire::Refusing);
    proxy.reset();
}

fn restart_empty(redis: &mut Redis, world: &World, node: usize) {
    redis.kill();
    wait_until("it is noticed", || world.nodes.iter().all(|it| it.health.ready(0).is_err()));
    redis.restart();
    wait_until("a node is up", || world.nodes[node].health.ready(0).is_ok());
}

/// Which nodes the window waits for, and how far each is; empty: there is no window.
fn awaited(redis: &Redis) -> String {
    let nodes = redis.command(&["HGET", FENCE, "n"]);
    nodes.split(' ').skip(3).collect::<Vec<_>>().join(" ")
}

#[test]
fn a_window_ends_with_the_last_report_and_waits_for_no_publish() {
    let (mut redis, world) = world_of(Build::usual());
    let (speaker, receiver) = world.two_shards();
    enter(receiver);
    publish(speaker, 1..=3);
    wait_until_nodes_know(&world, 2);
    for round in 0..3 {
        redis.kill();
        world.wait_until_up(false);
        redis.restart();
        world.wait_until_up(true);
        let is_over = || {
            let over = redis.try_command(&["HGET", FENCE, "g"]);
            over.is_some_and(|generation| generation.ends_with(&replication(&redis)))
        };
        wait_until("nobody publishes, and it is over", is_over);
        let left = ["w", "n"].map(|field| redis.command(&["HEXISTS", FENCE, field]));
        assert_eq!(left, ["0", "0"], "nothing is left of it");
        assert_eq!(redis.command(&["HGET", META, "s"]), (3 + round).to_string(), "repaired before");
        assert_eq!(publish(speaker, 4 + round..=4 + round).offset, 4 + round);
    }
}

#[test]
fn what_a_node_alone_has_is_kept_although_it_is_held_up_for_seconds() {
    let (mut redis, proxy, world) = world_with_wire(Build::usual());
    let (speaker, holder) = world.two_shards();
    enter(holder);
    let before = publish(&world.nodes[1].shards[0], 1..=10);
    assert_eq!(receive(holder, 10), numbers(1..=10));
    hold_up(&proxy);
    restart_empty(&mut redis, &world, 0);
    assert!(awaited(&redis).contains("0000000000000002=0"), "{}", awaited(&redis));
    speaker.publish_keyed(&topic(), "11", 11, None);
    std::thread::sleep(HELD_UP);
    proxy.heal();
    let after = accepted(speaker, 11);
    assert_eq!((after.offset, after.epoch > before.epoch), (11, true), "behind all of them");
    assert_eq!(receive(holder, 1), [11], "and nobody is told of a loss");
}

#[test]
fn what_a_held_up_node_was_acknowledged_is_kept_behind_what_died_with_the_server() {
    let (redis, proxy, world) = world_with_wire(Build::usual().without_canaries());
    let (one, two) = world.two_shards();
    let first = publish(one, 1..=1);
    store_unseen(&redis, 2);
    assert_eq!(publish(two, 3..=3).offset, 3);
    hold_up(&proxy);
    redis.command(&["DEL", STREAM, FENCE]);
    store_unseen(&redis, 1);
    redis.command(&["HSET", META, "g", "another"]);
    redis.command(&["DEBUG", "CHANGE-REPL-ID"]);
    let before = reconnects(&world)[0];
    redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    wait_until("it is noticed", || reconnects(&world)[0] > before);
    wait_until("a node is up", || world.nodes[0].health.ready(0).is_ok());
    one.publish_keyed(&topic(), "4", 4, None);
    std::thread::sleep(HELD_UP);
    proxy.heal();
    assert_eq!(accepted(one, 4).offset, 4, "behind all of them");
    one.join_and_receive(&topic(), 5);
    let since = Some(Position { offset: 0, ..first });
    let (_, recovery, missed) = one.recover_and_receive(&topic(), 5, since);
    assert_eq!(recovery, Recovery::Recovered { messages: 4 }, "{missed:?}");
    assert_eq!(missed, ["901", "null", "3", "4"]);
}

#[test]
fn a_node_that_died_with_the_server_is_not_waited_for_beyond_the_longest_window() {
    let (mut redis, mut world) = world_of(Build::usual());
    wait_until_nodes_know(&world, 2);
    enter(&world.nodes[0].shards[0]);
    publish(&world.nodes[0].shards[0], 1..=3);
    world.nodes.pop();
    restart_empty(&mut redis, &world, 0);
    let window = redis.command(&["HGET", FENCE, "w"]);
    let end: u64 = window.split(' ').nth(1).expect("it has an end").parse().unwrap();
    let time = redis.command(&["TIME"]);
    let now: u64 = time.split_whitespace().next().expect("seconds").parse().unwrap();
    assert!(awaited(&redis).contains("0000000000000002=0"), "{}", awaited(&redis));
    assert!(end <= (now + 1) * 1000 + 5_000, "{end} at {now} s");
    assert_eq!(publish(&world.nodes[0].shards[0], 4..=4).offset, 4, "then it goes on");
}

#[test]
fn a_node_of_a_version_that_does_not_report_has_600_ms_as_before() {
    let (mut redis, world) = world_of(Build { nodes: 1, ..Build::usual() });
    let shard = &world.nodes[0].shards[0];
    enter(shard);
    publish(shard, 1..=1);
    redis.command(&["SADD", "test:{p637}:nodes", "00000000000000aa"]);
    redis.command(&["SET", "test:{p637}:node:00000000000000aa", "1-2"]);
    wait_until_nodes_know(&world, 2);
    restart_empty(&mut redis, &world, 0);
    let nodes = redis.command(&["HGET", FENCE, "n"]);
    // It may be over already on a loaded host.
    if !nodes.is_empty() {
        let words: Vec<&str> = nodes.split(' ').collect();
        let [till, floor] = [1, 2].map(|at| words[at].parse::<u64>().expect("a time"));
        assert_eq!(till - floor, 5_000 - 600, "{nodes}");
        assert!(nodes.contains("00000000000000aa=o"), "{nodes}");
    }
    assert_eq!(publish(shard, 2..=2).offset, 2);
    assert_eq!(redis.command(&["HEXISTS", FENCE, "n"]), "0");
}

#[test]
fn a_node_of_a_version_that_does_not_report_ends_a_window_as_it_always_did() {
    let (mut redis, mut world) = world_of(Build::usual());
    wait_until_nodes_know(&world, 2);
    enter(&world.nodes[0].shards[0]);
    publish(&world.nodes[0].shards[0], 1..=1);
    world.nodes.pop();
    restart_empty(&mut redis, &world, 0);
    let window = redis.command(&["HGET", FENCE, "w"]);
    let generation = window.split(' ').next().expect("it has one").to_owned();
    // What the older version of the script writes, and then reads: the end of its own 600 ms.
    redis.command(&["HSET", FENCE, "w", &format!("{generation} 1")]);
    assert_eq!(publish(&world.nodes[0].shards[0], 2..=2).offset, 2);
    assert_eq!(redis.command(&["HGET", FENCE, "g"]), generation);
    assert_eq!(redis.command(&["HEXISTS", FENCE, "n"]), "0", "nothing of it is left");
}

/// A message that the server has stored and sent to nobody before it died.
fn store_unseen(redis: &Redis, offset: u64) {
    let id = format!("{offset}-0");
    redis.command_bytes(&[
        b"XADD",
        STREAM.as_bytes(),
        id.as_bytes(),
        b"d",
        &envelope(900 + offset),
    ]);
    redis.command(&["HSET", META, "s", &offset.to_string()]);
}

/// The server is followed by another one that has the first messages alone.
fn fail_over(redis: &Redis, world: &World, epoch: u64, kept: u64) {
    if kept == 0 {
        redis.command(&["DEL", META, STREAM]);
    } else {
        redis.command(&["DEL", STREAM]);
        (1..=kept).for_each(|offset| store_unseen(redis, offset));
        redis.command(&["HSET", META, "e", &epoch.to_string(), "l", "", "g", "another"]);
    }
    redis.command(&["DEL", FENCE]);
    let before = reconnects(world);
    redis.command(&["DEBUG", "CHANGE-REPL-ID"]);
    redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    wait_until("it is noticed", || {
        reconnects(world).iter().zip(&before).all(|(now, before)| now > before)
    });
    world.wait_until_up(true);
}

/// Two nodes publish in turns, and between each two messages is one that nobody was sent before the
/// server died.
fn publish_with_gaps(redis: &Redis, world: &World) -> Position {
    let (one, two) = world.two_shards();
    let at = publish(one, 1..=1);
    for (shard, offset) in [(two, 3), (one, 5), (two, 7)] {
        store_unseen(redis, offset - 1);
        assert_eq!(publish(shard, offset..=offset).offset, offset);
    }
    at
}

fn everything(world: &World, epoch: u64) -> Vec<String> {
    let (_, receiver) = world.two_shards();
    receiver.join_and_receive(&topic(), 5);
    let since = Some(Position { epoch, offset: 0 });
    let (_, recovery, missed) = receiver.recover_and_receive(&topic(), 5, since);
    assert_eq!(recovery, Recovery::Recovered { messages: 8 }, "{missed:?}");
    missed
}

#[test]
fn an_acknowledged_message_is_kept_where_those_before_it_died_with_the_server() {
    let (redis, world) = world_without_canaries();
    let first = publish_with_gaps(&redis, &world);
    fail_over(&redis, &world, first.epoch, 1);
    let (speaker, _) = world.two_shards();
    let after = publish(speaker, 8..=8);
    assert_eq!((after.offset, after.epoch > first.epoch), (8, true), "behind all of them");
    // In the places of the others everybody is told of a loss.
    let missed = everything(&world, first.epoch);
    assert_eq!(missed, ["901", "null", "3", "null", "5", "null", "7", "8"]);
    assert_eq!(redis.command(&["HEXISTS", META, "c"]), "0", "nothing of it is left");
}

#[test]
fn acknowledged_messages_of_a_history_that_nobody_follows_are_kept_by_their_nodes() {
    let (redis, world) = world_without_canaries();
    let first = publish_with_gaps(&redis, &world);
    fail_over(&redis, &world, first.epoch, 0);
    let (speaker, _) = world.two_shards();
    assert_eq!(publish(speaker, 8..=8).offset, 8, "behind all of them");
    let missed = everything(&world, first.epoch);
    assert_eq!(missed, ["1", "null", "3", "null", "5", "null", "7", "8"]);
}
