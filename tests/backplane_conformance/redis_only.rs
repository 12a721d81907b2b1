//! What only a server can do: die, freeze, restart, relay other services, send garbage.

use crate::history_faults::outcome_of;
use crate::proxy::{Proxy, Wire};
use crate::redis::{Redis, wait_until, wait_within};
use crate::world::{Build, EVERYBODY, Received, World, payload};
use campanile::ids::TopicName;
use campanile::link::PublishOutcome;
use campanile::policy::limits::Limits;
use std::time::{Duration, Instant};

const CHANNEL_OF_ROOM: &[u8] = b"test:{p34}:m:r:room";

fn world() -> World {
    World::redis(Build::usual())
}

/// What every member of a room without a history receives when Redis is back.
fn outage(to: u32) -> Received {
    Received::Lost { to, count: 0 }
}

fn rooms(count: u32) -> Vec<TopicName> {
    (0..count).map(|n| TopicName::room(&n.to_string())).collect()
}

#[test]
fn ten_thousand_topics_deliver_again_after_redis_was_killed() {
    let mut world = World::redis(Build { nodes: 1, shards: 1, ..Build::usual() });
    let rooms = rooms(10_000);
    let mut world_is_killed = 0;
    {
        let shard = &world.nodes[0].shards[0];
        let mut joined = 0;
        for (at, room) in rooms.iter().enumerate() {
            shard.join(room, at as u32);
            joined += std::iter::from_fn(|| shard.try_receive()).count();
        }
        for _ in joined..rooms.len() {
            assert!(matches!(shard.receive(), Received::Joined(_)));
        }
    }
    while world_is_killed < 2 {
        world_is_killed += 1;
        world.server().kill();
        wait_until("the loss is noticed", || world.nodes[0].health.ready(0).is_err());
        world.server().restart();
        wait_until("it is up again", || world.nodes[0].health.ready(0).is_ok());
        let shard = &world.nodes[0].shards[0];
        for at in 0..rooms.len() {
            assert_eq!(shard.receive(), outage(at as u32), "each room is told");
        }
        for (at, room) in rooms.iter().enumerate() {
            shard.publish(room, &at.to_string());
        }
        for at in 0..rooms.len() {
            assert_eq!(payload(shard.receive(), at as u32), at.to_string());
        }
    }
    wait_until("the numbers say so", || {
        let counters = world.nodes[0].counters();
        counters.subscriptions == 10_001 && counters.reconnects == 2
    });
}

#[test]
fn a_frozen_redis_is_noticed_by_the_canary_and_used_again_when_it_thaws() {
    let mut world = world();
    let room = TopicName::room("room");
    for shard in world.shards() {
        shard.join_and_receive(&room, 1);
    }
    world.server().freeze();
    for node in &world.nodes {
        wait_until("the frost is noticed", || node.health.ready(0).is_err());
    }
    world.server().thaw();
    for node in &world.nodes {
        wait_until("it is up again", || node.health.ready(0).is_ok());
    }
    for shard in world.shards() {
        assert_eq!(shard.receive(), outage(1));
    }
    world.nodes[0].shards[0].publish(&room, "1");
    for shard in world.shards() {
        assert_eq!(payload(shard.receive(), 1), "1");
    }
}

#[test]
fn a_publish_in_flight_when_redis_freezes_has_an_unknown_outcome() {
    let mut world = world();
    let room = TopicName::room("room");
    world.server().freeze();
    let shard = &world.nodes[0].shards[0];
    shard.publish_as(&room, "1", None, None);
    shard.publish_as(&room, "2", Some(5), None);
    let ack = |id| Received::Ack { conn: 7, id, outcome: PublishOutcome::Unknown };
    assert_eq!(shard.receive(), ack(None), "a failure is told to those who did not ask, too");
    assert_eq!(shard.receive(), ack(Some(5)));
    world.redis.as_ref().unwrap().thaw();
    world.wait_until_up(true);
    let node = &world.nodes[0];
    wait_until("both are counted", || node.counters().publishes_unknown == 2);
}

#[test]
fn a_publish_while_redis_is_down_is_delivered_when_it_is_back() {
    let mut world = world();
    let room = TopicName::room("room");
    for shard in world.shards() {
        shard.join_and_receive(&room, 1);
    }
    world.server().kill();
    world.wait_until_up(false);
    let publisher = &world.nodes[0].shards[0];
    for n in 0..100 {
        publisher.publish(&room, &n.to_string());
    }
    wait_until("they wait", || world.nodes[0].counters().publish_queue_bytes > 0);
    // A join during the outage is answered after it.
    publisher.join(&TopicName::room("new"), 2);
    // The other node must be subscribed before this one publishes: without a history the message is
    // not kept.
    let (first, second) = (world.nodes.remove(0), world.nodes.remove(0));
    drop(second);
    world.nodes.push(first);
    world.server().restart();
    world.wait_until_up(true);
    let node = &world.nodes[0];
    let mut received: Vec<Received> = (0..103).map(|_| node.shards[0].receive()).collect();
    received.retain(|received| ![Received::Joined(2), outage(1), outage(2)].contains(received));
    let payloads: Vec<String> = received.into_iter().map(|received| payload(received, 1)).collect();
    let expected: Vec<String> = (0..100).map(|n| n.to_string()).collect();
    assert_eq!(payloads, expected);
    assert_eq!(node.shards[1].receive(), outage(1), "something may be missing");
    assert_eq!(node.shards[1].receive_payloads(1, 100), expected);
}

#[test]
fn a_queue_that_is_full_or_too_old_answers_unavailable() {
    let limits =
        Limits { publish_queue_bytes_max: 4000, publish_queue_ms_max: 700, ..Limits::TINY };
    let mut world = World::redis(Build { limits, nodes: 1, ..Build::usual() });
    world.server().kill();
    world.wait_until_up(false);
    let shard = &world.nodes[0].shards[0];
    let payload = format!("\"{}\"", "x".repeat(1000));
    let published = Instant::now();
    for id in 0..8 {
        shard.publish_as(&TopicName::room("room"), &payload, Some(id), None);
    }
    let mut ids = Vec::new();
    for _ in 0..8 {
        let Received::Ack { id: Some(id), outcome: PublishOutcome::Unavailable, .. } =
            shard.receive()
        else {
            panic!("some other end");
        };
        ids.push((id, published.elapsed()));
    }
    // What did not fit is answered at once, before what waited in vain.
    let waited: Vec<u64> = ids.iter().rev().take(3).map(|(id, _)| *id).collect();
    assert_eq!(waited, [2, 1, 0]);
    assert!(ids[7].1 >= Duration::from_millis(700), "not given up before its time");
    wait_until("all are counted", || world.nodes[0].counters().publishes_failed == 8);
    assert_eq!(world.nodes[0].counters().publish_queue_bytes, 0);
}

#[test]
fn other_services_publish_with_nothing_but_redis() {
    let mut world = world();
    let topics = [TopicName::room("room"), TopicName::user("bob")];
    for shard in world.shards() {
        for (at, topic) in topics.iter().enumerate() {
            shard.join_and_receive(topic, at as u32);
        }
        shard.has_connections();
    }
    for json in [
        r#"{"room_id":"room","payload":{"a" : 1.0}}"#,
        r#"{"target_user_id":"bob","payload":1e400}"#,
        r#"nonsense"#,
        r#"{"room_id":"room","payload":1"#,
        r#"{"payload":3}"#,
        r#"{"broadcast":true,"payload":"é"}"#,
    ] {
        assert_eq!(world.server().command(&["PUBLISH", "test:publish", json]), "2");
    }
    for shard in world.shards() {
        for (at, json) in [
            (0, r#"{"type":"message","room_id":"room","payload":{"a" : 1.0}}"#),
            (1, r#"{"type":"message","target_user_id":"bob","payload":1e400}"#),
            (EVERYBODY, r#"{"type":"message","broadcast":true,"payload":"é"}"#),
        ] {
            let expected = Received::Frame { to: at, json: json.into(), except: None };
            assert_eq!(shard.receive(), expected, "exactly once");
        }
    }
    for node in &world.nodes {
        wait_until("nonsense is counted", || node.counters().publishes_malformed == 3);
    }
}

#[test]
fn garbage_on_a_topic_reaches_nobody_and_breaks_nothing() {
    let mut world = world();
    let room = TopicName::room("room");
    for shard in world.shards() {
        shard.join_and_receive(&room, 1);
    }
    let garbage: [&[u8]; 6] =
        [b"", b"hello", b"\x02", b"\x01", b"\x01\x03\x00", b"\x01\x00\xFF\xFE"];
    for bytes in garbage {
        let reply = world.server().command_bytes(&[b"PUBLISH", CHANNEL_OF_ROOM, bytes]);
        assert_eq!(reply.as_deref(), Some("2"), "it is the right channel");
    }
    world.nodes[0].shards[0].publish(&room, "1");
    for shard in world.shards() {
        assert_eq!(payload(shard.receive(), 1), "1");
    }
    for node in &world.nodes {
        wait_until("garbage is counted", || node.counters().publishes_malformed == 6);
        assert_eq!(node.counters().reconnects, 0);
    }
}

#[test]
fn a_topic_without_members_lingers_and_is_then_unsubscribed() {
    let mut world = World::redis(Build { linger_ms: 300, nodes: 1, ..Build::usual() });
    let room = TopicName::room("room");
    let channel = std::str::from_utf8(CHANNEL_OF_ROOM).unwrap();
    world.nodes[0].shards[0].join_and_receive(&room, 1);
    let subscribers = world.server().command(&["PUBSUB", "NUMSUB", channel]);
    assert_eq!(subscribers, format!("{channel} 1"));
    let left = Instant::now();
    world.nodes[0].shards[0].leave(&room, 1);
    let redis = world.server();
    wait_until("it is unsubscribed", || {
        redis.command(&["PUBSUB", "NUMSUB", channel]) == format!("{channel} 0")
    });
    assert!(left.elapsed() >= Duration::from_millis(300));
    let shard = &world.nodes[0].shards[0];
    shard.join_and_receive(&room, 2);
    shard.publish(&room, "1");
    assert_eq!(payload(shard.receive(), 2), "1");
}

#[test]
fn a_member_who_returns_in_time_costs_redis_nothing() {
    let mut world = World::redis(Build { nodes: 1, ..Build::usual() });
    let room = TopicName::room("room");
    for at in 0..20 {
        let shard = &world.nodes[0].shards[at as usize % 2];
        shard.join_and_receive(&room, at);
        shard.leave(&room, at);
    }
    let stats = world.server().command(&["INFO", "commandstats"]);
    let calls = |command: &str| {
        let line = stats.lines().find(|line| line.starts_with(&format!("cmdstat_{command}:")));
        line.map(|line| line.split(['=', ',']).nth(1).unwrap().parse::<u32>().unwrap())
    };
    let subscribed = "what was tried, our own channels, everybody, and the room";
    assert_eq!(calls("subscribe"), Some(4), "{subscribed}");
    assert_eq!(calls("unsubscribe"), Some(1), "what was tried");
}

#[test]
fn a_cut_connection_is_made_again_and_everything_delivers() {
    let mut world = world();
    let room = TopicName::room("room");
    for shard in world.shards() {
        shard.join_and_receive(&room, 1);
    }
    for (kind, reconnects) in [("pubsub", 1), ("normal", 2)] {
        world.server().command(&["CLIENT", "KILL", "TYPE", kind]);
        for node in &world.nodes {
            wait_until("the cut is noticed", || node.counters().reconnects == reconnects);
        }
        world.wait_until_up(true);
        for shard in world.shards() {
            assert_eq!(shard.receive(), outage(1));
        }
        world.nodes[1].shards[1].publish(&room, "1");
        for shard in world.shards() {
            assert_eq!(payload(shard.receive(), 1), "1");
        }
    }
}

#[test]
fn a_replica_is_not_taken_for_a_master() {
    let mut world = World::redis(Build { nodes: 1, ..Build::usual() });
    let nobody = ["REPLICAOF", "127.0.0.1", "1"];
    world.server().command(&nobody);
    // It still answers and delivers; only a new link asks for its role.
    world.server().command(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    world.wait_until_up(false);
    let node = &world.nodes[0];
    assert!(node.shards[0].receives_nothing_for(Duration::from_millis(300)));
    assert!(node.health.ready(0).is_err());
    world.server().command(&["REPLICAOF", "NO", "ONE"]);
    world.wait_until_up(true);
}

#[test]
fn a_user_without_info_rights_notices_a_demotion_all_the_same() {
    let mut world = World::redis(Build { nodes: 1, namespaces: "", ..Build::usual() });
    world.server().command(&["ACL", "SETUSER", "default", "-info"]);
    world.server().command(&["REPLICAOF", "127.0.0.1", "1"]);
    wait_within(Duration::from_secs(3), "it is noticed", || {
        world.nodes[0].health.ready(0).is_err()
    });
    world.redis.as_ref().unwrap().command(&["REPLICAOF", "NO", "ONE"]);
    world.wait_until_up(true);
}

#[test]
fn a_link_that_takes_no_more_subscriptions_and_still_delivers_is_given_up() {
    let redis = Redis::start();
    let proxy = Proxy::start(redis.port);
    let url = format!("redis://127.0.0.1:{}", proxy.port);
    let world = World::over(Build { nodes: 1, ..Build::usual() }, &url, "test");
    let (node, shard) = (&world.nodes[0], &world.nodes[0].shards[0]);
    shard.join_and_receive(&TopicName::room("room"), 1);
    proxy.set(Wire::DeadUpOfSubscribers);
    // The canary goes on: it is sent on the other connection, and comes back on this one.
    shard.join(&TopicName::room("new"), 2);
    wait_within(Duration::from_secs(3), "it is noticed", || node.health.ready(0).is_err());
    proxy.heal();
    world.wait_until_up(true);
    let mut received = vec![shard.receive(), shard.receive(), shard.receive()];
    received.retain(|received| ![outage(1), outage(2)].contains(received));
    assert_eq!(received, [Received::Joined(2)]);
}

#[test]
fn a_transient_refusal_delays_no_other_publish() {
    let mut world = World::redis(Build { nodes: 1, ..Build::usual() });
    world.server().command(&["CONFIG", "SET", "min-replicas-to-write", "1"]);
    let [flood, other] = [0, 1].map(|at| &world.nodes[0].shards[at]);
    let (room, began) = (TopicName::room("room"), Instant::now());
    (0..10_000).for_each(|_| flood.publish(&TopicName::room("kept:a"), "0"));
    other.join_and_receive(&room, 1);
    other.publish(&room, "1");
    assert_eq!(payload(other.receive(), 1), "1");
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}

#[test]
fn a_server_that_refused_something_long_ago_is_waited_for_again() {
    let (publish_queue_ms_max, publish_queue_bytes_max) = (1_500, 16 * 1024);
    let limits = Limits { publish_queue_ms_max, publish_queue_bytes_max, ..Limits::PRODUCTION };
    let mut world = World::redis(Build { nodes: 1, limits, ..Build::usual() });
    world.server().command(&["CONFIG", "SET", "min-replicas-to-write", "1"]);
    let speaker = &world.nodes[0].shards[0];
    speaker.publish_as(&TopicName::room("kept:a"), "0", Some(0), None);
    assert_eq!(outcome_of(speaker, 0), PublishOutcome::Unavailable);
    let redis = world.redis.as_ref().unwrap();
    redis.command(&["CONFIG", "SET", "min-replicas-to-write", "0"]);
    std::thread::sleep(Duration::from_millis(300)); // some turns
    // More at once than may wait for a server that is down.
    let (room, text) = (TopicName::room("room"), format!("\"{}\"", "x".repeat(1024)));
    (1..=100).for_each(|id| speaker.publish_as(&room, &text, Some(id), None));
    for _ in 1..=100 {
        let Received::Ack { outcome, .. } = speaker.receive() else { panic!("not an answer") };
        assert_eq!(outcome, PublishOutcome::Accepted(None));
    }
}

#[test]
fn a_refused_subscription_breaks_the_link_and_is_tried_again() {
    let mut world = World::redis(Build { nodes: 1, ..Build::usual() });
    let rights = ["ACL", "SETUSER", "default", "resetchannels", "&test:canary:*", "&test:publish"];
    world.server().command(&rights);
    world.nodes[0].shards[0].join(&TopicName::room("room"), 1);
    world.wait_until_up(false);
    world.server().command(&["ACL", "SETUSER", "default", "allchannels"]);
    assert_eq!(world.nodes[0].shards[0].receive(), Received::Joined(1));
    world.wait_until_up(true);
}

#[test]
fn members_who_joined_before_the_first_canary_are_told_of_the_gap_too() {
    let redis = Redis::start();
    // Everything is allowed but to publish to the canary's channel.
    let channels = ["resetchannels", "&test:{p*", "&test:publish"];
    let canary = "(+subscribe +unsubscribe &test:canary:*)";
    let rules = [&["ACL", "SETUSER", "default"][..], &channels, &[canary]].concat();
    assert_eq!(redis.command(&rules), "OK");
    let world = World::begin(Build { nodes: 1, ..Build::usual() }, &redis.url(), "test");
    let (node, room) = (&world.nodes[0], TopicName::room("room"));
    // Subscribed, and answered; but the link is given up, because no canary is sent on it.
    node.shards[0].join_and_receive(&room, 1);
    let before = node.counters().reconnects;
    wait_until("that link is lost", || node.counters().reconnects > before + 1);
    assert!(node.health.ready(0).is_err());
    redis.command(&["ACL", "SETUSER", "default", "clearselectors", "allchannels"]);
    world.wait_until_up(true);
    assert_eq!(node.shards[0].receive(), outage(1), "between two links nobody listened");
    node.shards[0].publish(&room, "1");
    assert_eq!(payload(node.shards[0].receive(), 1), "1");
}
