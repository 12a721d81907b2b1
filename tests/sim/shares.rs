//! Strangers who fill what a node shares among all: they are refused, and nobody else loses anything.

use crate::peer::Frame;
use crate::world::World;
use campanile::policy::limits::Limits;
use campanile::policy::namespaces::Namespaces;
use std::sync::Arc;

const SPACES: &str = "kept: history_size=100; small: members_per_shard_max=2, message_bytes_max=40; \
                      slow: publishes_per_s_max=3; both: history_size=10, members_per_shard_max=2";
const LIMITS: Limits = Limits {
    connections_per_shard_max: 100,
    handshakes_max: 100,
    topics_per_shard_max: 2000,
    uplink_items_max: 64,
    downlink_items_max: 64,
    rooms_per_connection_max: 200,
    outbox_bytes_max: 1 << 16,
    history_bytes_max: 16 * 1024,
    recovery_bytes_max: 1 << 15,
    downlink_backlog_bytes_max: 1 << 20,
    message_bytes_max: 4096,
    idempotency_keys_max: 16,
    ping_interval_ms: 600_000,
    ..Limits::TINY
};

fn world() -> World {
    let spaces = Arc::new(Namespaces::read(SPACES).unwrap());
    let mut world = World::kept(1, 1, LIMITS, spaces);
    world.run();
    world.pass(100);
    world
}

/// `ok`, or the code of the error, of every answer since the last call; `message` for a message.
fn heard(world: &mut World, who: usize) -> Vec<String> {
    let word = |frame: &Frame| {
        let Frame::Text(json) = frame else { return None };
        let kind = if json["type"] == "error" { &json["code"] } else { &json["type"] };
        kind.as_str().map(str::to_owned)
    };
    world.heard(who).iter().filter_map(word).collect()
}

fn count(words: &[String], wanted: &str) -> usize {
    words.iter().filter(|word| *word == wanted).count()
}

fn publish(world: &mut World, who: usize, room: &str, key: &str, payload: &str) {
    let key = if key.is_empty() { String::new() } else { format!(r#","key":"{key}""#) };
    let text =
        format!(r#"{{"type":"publish","id":1,"room_id":"{room}","payload":"{payload}"{key}}}"#);
    world.send_text(who, &text);
    world.run();
}

#[test]
fn the_keys_of_strangers_push_no_key_of_a_publisher_out() {
    let mut world = world();
    let ann = world.connect_to(0, "ann", &["kept:a"]);
    heard(&mut world, ann);
    publish(&mut world, ann, "kept:a", "mine", "once");
    assert_eq!(count(&heard(&mut world, ann), "message"), 1);
    let mut refused = 0;
    for _ in 0..4 {
        let stranger = world.connect_to(0, "", &["kept:b"]);
        heard(&mut world, stranger);
        (0..10).for_each(|n| {
            publish(&mut world, stranger, "kept:b", &format!("{stranger}-{n}"), "x");
        });
        refused += count(&heard(&mut world, stranger), "overloaded");
    }
    assert_eq!(refused, 4 * 9, "each has a 64th, and one at least");
    publish(&mut world, ann, "kept:a", "mine", "once");
    assert_eq!(heard(&mut world, ann), ["ok"], "the retry was not delivered again");
    publish(&mut world, ann, "kept:a", "other", "twice");
    assert_eq!(count(&heard(&mut world, ann), "message"), 1, "she has room of her own");
}

#[test]
fn joins_of_new_rooms_take_no_history_with_messages_away() {
    let mut world = world();
    let ann = world.connect_to(0, "ann", &["kept:a"]);
    let pad = "x".repeat(1000);
    (0..6).for_each(|_| publish(&mut world, ann, "kept:a", "", &pad));
    assert_eq!(count(&heard(&mut world, ann), "message"), 6);
    let stranger = world.connect("mallory");
    (0..120).for_each(|n| _ = world.send_join(stranger, &format!("kept:room{n}")));
    world.run();
    world.send_text(ann, r#"{"type":"history","room_id":"kept:a","limit":100}"#);
    world.run();
    let frames = world.heard(ann);
    let page = frames.iter().find_map(|frame| match frame {
        Frame::Text(json) if json["type"] == "history" => json["messages"].as_array(),
        _ => None,
    });
    assert_eq!(page.map(Vec::len), Some(6), "{frames:?}");
}

#[test]
fn publishes_to_thousands_of_new_rooms_evict_nobody_elses_history() {
    let limits = Limits { history_bytes_max: 1 << 20, ..LIMITS };
    let spaces = Arc::new(Namespaces::read(SPACES).unwrap());
    let mut world = World::kept(1, 1, limits, spaces);
    world.run();
    world.pass(100);
    let ann = world.connect_to(0, "ann", &["kept:a"]);
    (0..20).for_each(|n| publish(&mut world, ann, "kept:a", "", &n.to_string()));
    heard(&mut world, ann);
    let pad = "x".repeat(200);
    let (mut accepted, mut refused) = (0, 0);
    for _ in 0..8 {
        let stranger = world.connect_to(0, "", &[]);
        let room = |n: usize| format!("kept:{stranger}-{n}");
        (0..120).for_each(|n| _ = world.send_join(stranger, &room(n)));
        world.run();
        heard(&mut world, stranger);
        (0..120).for_each(|n| publish(&mut world, stranger, &room(n), "", &pad));
        let words = heard(&mut world, stranger);
        accepted += count(&words, "ok");
        refused += count(&words, "overloaded");
    }
    assert!(accepted > 100 && refused > 100, "{accepted} accepted, {refused} refused");
    world.send_text(ann, r#"{"type":"history","room_id":"kept:a","limit":100}"#);
    world.run();
    let frames = world.heard(ann);
    let page = frames.iter().find_map(|frame| match frame {
        Frame::Text(json) if json["type"] == "history" => json["messages"].as_array(),
        _ => None,
    });
    assert_eq!(page.map(Vec::len), Some(20), "{frames:?}");
    world.join(ann, "kept:another");
    heard(&mut world, ann);
    publish(&mut world, ann, "kept:another", "", "room for her");
    assert_eq!(count(&heard(&mut world, ann), "ok"), 1);
    publish(&mut world, ann, "kept:a", "", "and here");
    assert_eq!(count(&heard(&mut world, ann), "message"), 1);
}

#[test]
fn a_full_room_refuses_new_members_and_takes_one_when_another_has_left() {
    for room in ["small:a", "both:a"] {
        let mut world = world();
        let people: Vec<usize> = (0..4).map(|n| world.connect(&format!("user{n}"))).collect();
        people.iter().for_each(|who| _ = world.send_join(*who, room));
        world.run();
        let answers: Vec<String> = people.iter().flat_map(|who| heard(&mut world, *who)).collect();
        assert_eq!((count(&answers, "ok"), count(&answers, "room_full")), (2, 2), "{room}");
        world.join(people[0], room);
        assert_eq!(heard(&mut world, people[0]), ["ok"], "{room}: who is in it may ask again");
        world.leave(people[0], room);
        world.join(people[3], room);
        assert_eq!(heard(&mut world, people[3]), ["ok"], "{room}");
    }
}

#[test]
fn a_large_message_of_a_namespace_is_refused_and_the_connection_stays() {
    let mut world = world();
    let ann = world.connect_to(0, "ann", &["small:a"]);
    heard(&mut world, ann);
    publish(&mut world, ann, "small:a", "", &"x".repeat(38));
    assert_eq!(count(&heard(&mut world, ann), "message"), 1);
    publish(&mut world, ann, "small:a", "", &"x".repeat(39));
    assert_eq!(heard(&mut world, ann), ["too_big"]);
    assert!(world.clients[ann].is_here());
}

#[test]
fn a_room_has_a_rate_whoever_publishes_and_another_room_its_own() {
    let mut world = world();
    let people: Vec<usize> =
        (0..3).map(|n| world.connect_to(0, &format!("user{n}"), &["slow:a", "slow:b"])).collect();
    people.iter().for_each(|who| _ = heard(&mut world, *who));
    let publish_all = |world: &mut World, room: &str| {
        people.iter().for_each(|who| (0..2).for_each(|_| publish(world, *who, room, "", "x")));
        let answers: Vec<String> = people.iter().flat_map(|who| heard(world, *who)).collect();
        (count(&answers, "ok"), count(&answers, "rate_limited"))
    };
    assert_eq!(publish_all(&mut world, "slow:a"), (3, 3));
    assert_eq!(publish_all(&mut world, "slow:b"), (3, 3));
    world.pass(1_100);
    assert_eq!(publish_all(&mut world, "slow:a"), (3, 3));
    assert_eq!(world.towers[0].shard.counters.limited_rooms, 9);
}
