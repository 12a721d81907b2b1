//! What other programs may publish in each kind of channel: it is skipped, counted, and delays
//! nothing that comes behind it.

use crate::redis::{Redis, wait_until};
use crate::world::{Build, EVERYBODY, Received, World, payload};
use campanile::backplane::partition::partition;
use campanile::ids::TopicName;

fn redis(world: &World) -> &Redis {
    world.redis.as_ref().expect("a world with Redis")
}

fn channel(topic: &TopicName) -> String {
    format!("test:{{p{}}}:m:{}", partition(topic.as_str()), topic.as_str())
}

/// Publishes all of them, and waits until each node has counted each.
fn all_are_skipped(world: &World, channel: &str, bodies: &[&[u8]]) {
    let counted = |node: usize| world.nodes[node].counters().publishes_malformed;
    let before = [counted(0), counted(1)];
    for body in bodies {
        let sent = redis(world).command_bytes(&[b"PUBLISH", channel.as_bytes(), body]);
        assert_eq!(sent.as_deref(), Some("2"), "both nodes listen on {channel}");
    }
    for (node, before) in before.into_iter().enumerate() {
        let all = before + bodies.len() as u64;
        wait_until("each is counted", || counted(node) >= all);
        assert_eq!(counted(node), all, "in {channel}");
        assert_eq!(world.nodes[node].counters().reconnects, 0);
    }
}

/// Two nodes with a member of the topic each.
fn world(topic: &TopicName) -> World {
    let world = World::redis(Build { shards: 1, ..Build::usual() });
    world.shards().for_each(|shard| shard.join_and_receive(topic, 1));
    world
}

/// A publish arrives on both nodes, and nothing before it.
fn goes_on(world: &World, topic: &TopicName) {
    world.nodes[0].shards[0].publish(topic, "\"last\"");
    for shard in world.shards() {
        assert_eq!(payload(shard.receive(), 1), "\"last\"");
    }
}

#[test]
fn messages_that_are_no_envelope_are_skipped() {
    let room = TopicName::room("room");
    let world = world(&room);
    let long = [&b"\x01\x00"[..], &vec![b'7'; 200_000]].concat();
    let bodies: [&[u8]; 12] = [
        b"",
        b"hello",
        b"\x00",
        b"\x02",
        b"\x01",
        b"\x01\x02",
        b"\x01\x02\x05ab",
        b"\x01\x02\x00{}",
        b"\x01\x00\xFF\xFE",
        b"9007199254740993:1:\x01\x00{}",
        b"1:x:\x01\x00{}",
        &long,
    ];
    all_are_skipped(&world, &channel(&room), &bodies);
    goes_on(&world, &room);
}

#[test]
fn presence_events_that_no_node_writes_are_skipped() {
    let room = TopicName::room("here:a");
    let world = world(&room);
    let long_info = [&b"P\x01\x03ann"[..], &vec![b'7'; 10_000]].concat();
    let bodies: [&[u8]; 9] = [
        b"P",
        b"P\x04\x03ann",
        b"P\x00",
        b"P\x00\x00",
        b"P\x00\x09ann",
        b"P\x00\x03\xFF\xFE\xFD",
        b"P\x00\x03ann7",
        b"P\x01\x03ann{",
        &long_info,
    ];
    all_are_skipped(&world, &channel(&room), &bodies);
    goes_on(&world, &room);
}

#[test]
fn disconnects_that_no_node_writes_are_skipped() {
    let user = TopicName::user("ann");
    let world = world(&user);
    let long_reason = [&b"D\x01\xA1\x0F"[..], &[b'x'; 124]].concat();
    let bodies: [&[u8]; 7] = [
        b"D",
        b"D\x01",
        b"D\x01\xA1",
        b"D\x02\xA1\x0F",
        b"D\x01\x00\x00",
        b"D\x01\xA1\x0F\xFF\xFE",
        &long_reason,
    ];
    all_are_skipped(&world, &channel(&user), &bodies);
    goes_on(&world, &user);
    let good =
        redis(&world).command_bytes(&[b"PUBLISH", channel(&user).as_bytes(), b"D\x01\xA1\x0F"]);
    assert_eq!(good.as_deref(), Some("2"));
    for shard in world.shards() {
        assert!(matches!(shard.receive(), Received::Disconnect { at: 1, .. }));
    }
}

#[test]
fn publishes_of_other_services_that_are_not_what_they_must_be_are_skipped() {
    let room = TopicName::room("room");
    let world = world(&room);
    world.shards().for_each(|shard| shard.has_connections());
    let big = |bytes: usize| format!(r#"{{"room_id":"room","payload":"{}"}}"#, "x".repeat(bytes));
    let (long, longer) = (big(70_000), big(200_000));
    let deep = format!(r#"{{"room_id":"room","payload":{}}}"#, "[".repeat(5_000));
    let bodies: [&[u8]; 14] = [
        b"",
        b"\xFF\xFE",
        b"nonsense",
        b"[]",
        br#"{"room_id":"room"}"#,
        br#"{"payload":1}"#,
        br#"{"room_id":"","payload":1}"#,
        br#"{"room_id":"a\u0000b","payload":1}"#,
        br#"{"room_id":"room","target_user_id":"ann","payload":1}"#,
        br#"{"room_id":"kept:a","payload":1}"#,
        br#"{"room_id":"room","payload":1} x"#,
        deep.as_bytes(),
        long.as_bytes(),
        longer.as_bytes(),
    ];
    all_are_skipped(&world, "test:publish", &bodies);
    goes_on(&world, &room);
    redis(&world).command(&["PUBLISH", "test:publish", r#"{"broadcast":true,"payload":1}"#]);
    for shard in world.shards() {
        assert!(matches!(shard.receive(), Received::Frame { to: EVERYBODY, .. }));
    }
}

#[test]
fn what_is_no_canary_is_skipped_and_the_canary_goes_on() {
    let room = TopicName::room("room");
    let world = world(&room);
    let canary = "test:canary:0000000000000001";
    let long = vec![b'7'; 200_000];
    let bodies: [&[u8]; 4] = [b"", b"hello", b"\xFF", &long];
    for body in bodies {
        let sent = redis(&world).command_bytes(&[b"PUBLISH", canary.as_bytes(), body]);
        assert_eq!(sent.as_deref(), Some("1"), "the node itself listens");
    }
    wait_until("each is counted", || world.nodes[0].counters().publishes_malformed == 4);
    // A number that was never sent is no answer.
    redis(&world).command(&["PUBLISH", canary, "18446744073709551615"]);
    goes_on(&world, &room);
    assert_eq!(world.nodes[0].counters().reconnects, 0);
    assert_eq!(world.nodes[1].counters().publishes_malformed, 0);
}
