//! Connections that send faster than their rates allow: first read more slowly, then notified, then
//! closed; and nobody else notices it.

use crate::peer::Frame;
use crate::world::World;
use campanile::link::Downlink;
use campanile::policy::limits::Limits;
use campanile::policy::namespaces::Namespaces;
use campanile::protocol::dialect::{Dialect, Encoding};
use std::sync::Arc;

const SPACES: &str = "kept: history_size=100, presence=true";
const TIMEOUT_MS: u64 = 5_000;
/// Ten of everything in a second and five at once; a thousand bytes.
const LIMITS: Limits = Limits {
    connections_per_shard_max: 100,
    handshakes_max: 100,
    topics_per_shard_max: 100,
    uplink_items_max: 64,
    downlink_items_max: 64,
    rooms_per_connection_max: 20,
    questions_waiting_max: 8,
    outbox_bytes_max: 1 << 16,
    history_bytes_max: 1 << 20,
    recovery_bytes_max: 1 << 15,
    downlink_backlog_bytes_max: 1 << 20,
    ping_interval_ms: 600_000,
    messages_per_s_max: 0,
    received_bytes_per_s_max: 0,
    joins_per_s_max: 0,
    requests_per_s_max: 0,
    messages_burst_max: 5,
    received_bytes_burst_max: 500,
    joins_burst_max: 5,
    requests_burst_max: 5,
    rate_limited_timeout_ms: TIMEOUT_MS,
    ..Limits::TINY
};
const MESSAGES: Limits = Limits { messages_per_s_max: 10, ..LIMITS };

fn world(limits: Limits) -> World {
    let spaces = Arc::new(Namespaces::read(SPACES).unwrap());
    let mut world = World::kept(1, 1, limits, spaces);
    world.run();
    world.pass(100);
    world
}

/// Error `rate_limited` without a request's number, since the last call.
fn notices(frames: &[Frame]) -> usize {
    let is_notice = |frame: &&Frame| matches!(frame, Frame::Text(json) if json["code"] == "rate_limited" && json.get("id").is_none());
    frames.iter().filter(is_notice).count()
}

/// How many frames of a kind a client has received since the last call.
fn count(world: &mut World, who: usize, kind: &str) -> usize {
    let is_it = |frame: &&Frame| matches!(frame, Frame::Text(json) if json["type"] == kind);
    world.heard(who).iter().filter(is_it).count()
}

fn ask(world: &mut World, who: usize, times: usize) {
    (0..times).for_each(|_| world.send_text(who, r#"{"type":"ping"}"#));
    world.run();
}

fn shard_counter(world: &mut World, read: fn(&campanile::metrics::ShardCounters) -> u64) -> u64 {
    let shard = &mut world.towers[0].shard;
    shard.measure();
    read(&shard.counters)
}

#[test]
fn beyond_its_burst_a_connection_is_read_at_its_rate_and_nothing_is_lost() {
    let mut world = world(MESSAGES);
    let [ann, bob] = ["ann", "bob"].map(|user| world.connect(user));
    ask(&mut world, ann, 30);
    assert_eq!(count(&mut world, ann, "pong"), 5, "the burst");
    assert_eq!(shard_counter(&mut world, |c| c.connections_paused), 1);
    world.pass(1000);
    assert_eq!(count(&mut world, ann, "pong"), 10, "what a second brings");
    ask(&mut world, bob, 3);
    assert_eq!(count(&mut world, bob, "pong"), 3, "others are answered at once");
    world.pass(1500);
    assert_eq!(count(&mut world, ann, "pong"), 15, "and the rest");
    assert_eq!(shard_counter(&mut world, |c| c.limited_messages), 26);
    assert!(world.close_code(ann).is_none());
}

#[test]
fn an_idle_connection_has_no_entry() {
    let mut world = world(MESSAGES);
    let people: Vec<usize> = (0..5).map(|n| world.connect(&format!("user{n}"))).collect();
    assert_eq!(shard_counter(&mut world, |c| c.rated_connections), 0, "nothing was sent yet");
    people.iter().for_each(|who| ask(&mut world, *who, 7));
    world.pass(100);
    assert_eq!(shard_counter(&mut world, |c| c.rated_connections), 5);
    world.vanish(people[1]);
    world.pass(300);
    assert_eq!(shard_counter(&mut world, |c| c.rated_connections), 4, "it has gone");
    world.pass(3_000);
    assert_eq!(shard_counter(&mut world, |c| c.rated_connections), 0);
    ask(&mut world, people[0], 6);
    world.heard(people[0]);
    world.pass(1000);
    assert_eq!(count(&mut world, people[0], "pong"), 1, "a full burst was there again");
}

#[test]
fn one_that_goes_on_is_notified_once_a_second_and_then_closed() {
    let mut world = world(MESSAGES);
    let [ann, bob] = ["ann", "bob"].map(|user| world.connect(user));
    ask(&mut world, ann, 500);
    world.pass(900);
    assert_eq!(notices(&world.heard(ann)), 0, "a short burst is only slowed down");
    world.pass(1_000);
    assert_eq!(notices(&world.heard(ann)), 1);
    world.pass(2_000);
    assert_eq!(notices(&world.heard(ann)), 2);
    world.pass(TIMEOUT_MS - 3_900);
    assert_eq!(world.close_code(ann), Some(1008));
    assert!(world.clients[ann].gone);
    assert_eq!(shard_counter(&mut world, |c| c.closed_rate_limited), 1);
    assert_eq!(shard_counter(&mut world, |c| c.connections_paused), 0);
    ask(&mut world, bob, 1);
    assert_eq!(count(&mut world, bob, "pong"), 1);
}

#[test]
fn one_that_rests_for_a_second_now_and_then_stays() {
    let mut world = world(MESSAGES);
    let ann = world.connect("ann");
    for _ in 0..20 {
        ask(&mut world, ann, 20);
        world.pass(3_500);
        assert_eq!(count(&mut world, ann, "pong"), 20);
    }
    assert!(world.clients[ann].is_here());
}

#[test]
fn without_a_timeout_nobody_is_closed_and_at_rate_zero_nobody_is_slowed_down() {
    let mut slow = world(Limits { rate_limited_timeout_ms: 0, ..MESSAGES });
    let ann = slow.connect("ann");
    ask(&mut slow, ann, 400);
    slow.pass(30_000);
    assert_eq!(count(&mut slow, ann, "pong"), 305);
    let mut free = world(LIMITS);
    let ann = free.connect("ann");
    ask(&mut free, ann, 400);
    assert_eq!(count(&mut free, ann, "pong"), 400);
}

#[test]
fn bytes_are_counted_as_they_are_read() {
    let mut world = world(Limits { received_bytes_per_s_max: 1000, ..LIMITS });
    let ann = world.connect("ann");
    let request = format!(r#"{{"type":"ping","pad":"{}"}}"#, "x".repeat(467));
    (0..10).for_each(|_| world.send_text(ann, &request));
    world.pass(100);
    let at_once = count(&mut world, ann, "pong");
    assert!(at_once <= 2, "{at_once} of ten requests of 500 bytes");
    let mut all = at_once;
    for second in 1..=5 {
        world.pass(1000);
        all += count(&mut world, ann, "pong");
        assert!(all <= 2 + 2 * second, "{all} after {second} s");
    }
    assert_eq!(all, 10);
    assert!(shard_counter(&mut world, |c| c.limited_bytes) > 0);
}

#[test]
fn control_frames_count_as_messages() {
    let mut world = world(MESSAGES);
    let ann = world.connect("ann");
    (0..20).for_each(|_| world.send_frame(ann, true, 9, b""));
    world.run();
    let is_pong = |frame: &&Frame| matches!(frame, Frame::Pong(_));
    assert_eq!(world.heard(ann).iter().filter(is_pong).count(), 5);
}

#[test]
fn joins_have_a_rate_of_their_own() {
    let mut world = world(Limits { joins_per_s_max: 10, ..LIMITS });
    let ann = world.connect("ann");
    (0..12).for_each(|n| _ = world.send_join(ann, &format!("room{n}")));
    world.run();
    assert_eq!(count(&mut world, ann, "ok"), 5);
    world.pass(1000);
    assert_eq!(count(&mut world, ann, "ok"), 7);
    assert!(shard_counter(&mut world, |c| c.limited_joins) > 0);
}

#[test]
fn requests_for_history_and_presence_have_a_rate_of_their_own() {
    let mut world = world(Limits { requests_per_s_max: 10, ..LIMITS });
    let ann = world.connect_to(0, "ann", &["kept:a"]);
    world.heard(ann);
    for n in 0..12 {
        let kind = if n % 2 == 0 { "history" } else { "presence" };
        world.send_text(ann, &format!(r#"{{"type":"{kind}","room_id":"kept:a"}}"#));
    }
    world.run();
    let answers = |world: &mut World| {
        let is_answer = |frame: &&Frame| matches!(frame, Frame::Text(json) if ["history", "presence"].iter().any(|k| json["type"] == *k));
        world.heard(ann).iter().filter(is_answer).count()
    };
    assert_eq!(answers(&mut world), 5);
    world.pass(1000);
    assert_eq!(answers(&mut world), 7);
    assert!(shard_counter(&mut world, |c| c.limited_requests) > 0);
}

fn lines(world: &mut World, text: &str) -> Vec<String> {
    let who = world.knock(0);
    world.open(who, Some("lin"), &[], Encoding::of(Dialect::Lines));
    world.run();
    world.heard(who);
    world.send_frame(who, true, 2, text.as_bytes());
    world.run();
    let text = |frame: &Frame| match frame {
        Frame::Binary(bytes) => String::from_utf8(bytes.clone()).expect("lines are text"),
        other => format!("{other:?}"),
    };
    world.heard(who).iter().map(text).collect()
}

#[test]
fn what_one_message_asks_beyond_the_last_token_is_refused() {
    let mut world = world(Limits { joins_per_s_max: 10, ..LIMITS });
    let joins: Vec<String> = (0..9).map(|n| format!("#{n} join room{n}")).collect();
    let heard = lines(&mut world, &joins.join("\n"));
    let refused = heard.iter().filter(|line| line.contains("rate_limited")).count();
    assert_eq!((heard.len(), refused), (9, 4), "{heard:?}");
}

#[test]
fn every_request_of_a_message_counts_as_a_message() {
    let mut world = world(MESSAGES);
    let heard = lines(&mut world, &["ping"; 20].join("\n"));
    assert_eq!(heard.len(), 20, "{heard:?}");
    assert_eq!(shard_counter(&mut world, |c| c.connections_paused), 1);
    world.pass(1_500);
    assert_eq!(shard_counter(&mut world, |c| c.connections_paused), 1, "fifteen are owed");
    world.pass(200);
    assert_eq!(shard_counter(&mut world, |c| c.connections_paused), 0);
}

#[test]
fn a_connection_that_is_paused_for_its_rate_is_not_silent() {
    let slow = Limits { messages_per_s_max: 1, rate_limited_timeout_ms: 0, ..MESSAGES };
    let mut world = world(Limits { ping_interval_ms: 2_000, ..slow });
    let ann = world.connect("ann");
    world.clients[ann].answers_pings = false;
    ask(&mut world, ann, 40);
    world.pass(20_000);
    assert!(world.clients[ann].is_here(), "it has sent more than was read");
}

#[test]
fn one_that_waits_for_answers_and_for_its_rate_waits_for_both() {
    let mut world = world(Limits { requests_per_s_max: 1, ..LIMITS });
    let ann = world.connect_to(0, "ann", &["kept:a"]);
    world.heard(ann);
    world.clients[ann].pace = 0;
    world.clients[ann].down_max = 1;
    (0..8).for_each(|_| world.send_text(ann, r#"{"type":"history","room_id":"kept:a"}"#));
    ask(&mut world, ann, 1);
    world.pass(500);
    assert_eq!(shard_counter(&mut world, |c| c.connections_paused), 1);
    world.clients[ann].pace = usize::MAX;
    world.clients[ann].down_max = usize::MAX;
    world.run();
    assert_eq!(count(&mut world, ann, "pong"), 0, "answered, and beyond its rate");
    world.pass(4_000);
    assert_eq!(count(&mut world, ann, "pong"), 1);
}

#[test]
fn one_that_is_paused_for_its_rate_receives_the_close_of_a_drain() {
    let mut world = world(MESSAGES);
    let ann = world.connect("ann");
    ask(&mut world, ann, 50);
    world.visit(0, |shard| shard.handle_downlink(Downlink::Drain { over_ms: 0 }, 0));
    world.run();
    assert_eq!(world.close_code(ann), Some(1001));
    assert!(world.clients[ann].gone);
}
