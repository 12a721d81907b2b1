//! Nodes of several versions in one system: their records, and what they cannot read of each other.
//! `tests/versions` has the same with two real binaries.

use crate::presences::room;
use crate::redis::{Redis, wait_until};
use crate::world::{Build, Received, World, payload};
use campanile::backplane::redis::names::Names;
use campanile::backplane::wire;
use campanile::ids::{NodeId, Position};
use campanile::link::PublishOutcome;
use campanile::protocol::Recovery;

/// A node made by hand.
const OTHER: &str = "00000000000000ff";

fn redis(world: &World) -> &Redis {
    world.redis.as_ref().expect("a world with Redis")
}

fn record(node: &str) -> String {
    format!("test:{{p637}}:node:{node}")
}

#[test]
fn every_node_has_a_record_of_what_it_reads_with_presence_or_without() {
    let cases = [
        ("", "no-history"),
        ("here: presence=true", "no-history"),
        ("a: history_size=9", "reports"),
    ];
    for (namespaces, repairs) in cases {
        let world = World::redis(Build { namespaces, ..Build::usual() });
        for node in ["0000000000000001", "0000000000000002"] {
            wait_until("it has a record", || {
                redis(&world).command(&["GET", &record(node)])
                    == format!("{} {repairs}", wire::READS)
            });
            let ttl_ms: i64 = redis(&world).command(&["PTTL", &record(node)]).parse().unwrap();
            assert!((1..=5_000).contains(&ttl_ms), "{ttl_ms}");
        }
        let know_each_other = |world: &World| world.nodes.iter().all(|it| it.counters().nodes == 2);
        wait_until("the nodes know each other", || know_each_other(&world));
        let version = world.nodes[0].counters().wire_version;
        assert_eq!(version, u64::from(wire::WRITES_MAX), "what both of them read");
    }
}

#[test]
fn a_node_of_the_first_version_is_a_node_and_is_removed_when_it_dies() {
    let world = World::redis(Build { namespaces: "", ..Build::usual() });
    let nodes = || world.nodes[0].counters().nodes;
    wait_until("the nodes know each other", || nodes() == 2);
    redis(&world).command(&["SET", &record(OTHER), "1", "PX", "8000"]);
    redis(&world).command(&["SADD", "test:{p637}:nodes", OTHER]);
    wait_until("it is known", || nodes() == 3);
    assert_eq!(world.nodes[0].counters().wire_version, 1);
    wait_until("it is dead and removed", || {
        nodes() == 2 && redis(&world).command(&["SISMEMBER", "test:{p637}:nodes", OTHER]) == "0"
    });
}

#[test]
fn a_message_with_unknown_additions_is_delivered_and_one_of_an_unknown_version_is_lost() {
    let world = World::redis(Build { nodes: 1, ..Build::usual() });
    let (topic, other) = (room("plain:a"), room("plain:b"));
    let shard = &world.nodes[0].shards[0];
    shard.join_and_receive(&topic, 5);
    shard.join_and_receive(&other, 6);
    let channel = Names::new("test", NodeId(1)).channel(topic.as_str());
    let publish = |body: &[u8]| {
        redis(&world).command_bytes(&[b"PUBLISH", channel.as_bytes(), body]);
    };
    publish(b"\x02\x10\x05\x00\x07\x02\x00ab[1]");
    assert_eq!(payload(shard.receive(), 5), "[1]");
    publish(b"\x03\x00[2]");
    assert_eq!(shard.receive(), Received::Lost { to: 5, count: 1 });
    publish(b"\x02\x80[3]");
    assert_eq!(shard.receive(), Received::Lost { to: 5, count: 1 }, "an unknown flag");
    publish(b"hello");
    shard.publish(&other, "4");
    assert_eq!(payload(shard.receive(), 6), "4", "text is no message, and nobody has lost one");
    wait_until("all are counted", || {
        let counters = world.nodes[0].counters();
        (counters.unknown_versions, counters.publishes_malformed) == (2, 1)
    });
}

#[test]
fn a_stored_message_of_an_unknown_version_is_lost_in_its_place() {
    let world = World::redis(Build { nodes: 1, ..Build::usual() });
    let topic = room("kept:a");
    let shard = &world.nodes[0].shards[0];
    let publish = |number: u64| {
        shard.publish_keyed(&topic, &number.to_string(), number, None);
        match shard.receive() {
            Received::Ack { outcome: PublishOutcome::Accepted(Some(at)), .. } => at,
            other => panic!("not accepted: {other:?}"),
        }
    };
    let Position { epoch, offset: 1 } = publish(1) else {
        panic!("the first message is the first")
    };
    // As a newer node stores it.
    let keys = Names::new("test", NodeId(1)).history_keys(topic.as_str());
    redis(&world).command(&["HINCRBY", &keys.meta, "s", "1"]);
    redis(&world).command_bytes(&[b"XADD", keys.stream.as_bytes(), b"2-0", b"d", b"\x03\x00[2]"]);
    assert_eq!(publish(3), Position { epoch, offset: 3 });
    shard.join_and_receive(&topic, 5);
    let before = Some(Position { epoch, offset: 0 });
    let (position, recovery, missed) = shard.recover_and_receive(&topic, 5, before);
    assert_eq!(position.offset, 3);
    assert!(matches!(recovery, Recovery::Recovered { .. }), "{recovery:?}");
    assert_eq!(missed, ["1", "null", "3"], "the middle one is a loss, without a payload");
}
