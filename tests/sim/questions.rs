//! Questions with long answers: one at a time for a connection, and none that is lost.

use crate::peer::Frame;
use crate::world::World;
use campanile::link::Downlink;
use campanile::policy::limits::Limits;
use campanile::policy::namespaces::Namespaces;
use campanile::protocol::dialect::{Dialect, Encoding};
use serde_json::Value;
use std::sync::Arc;

const SPACES: &str = "kept: history_size=100, presence=true; \
                      drops: slow_consumer=drop_oldest, slow_bytes_max=32768";
const ROOM: &str = "kept:a";
const LIMITS: Limits = Limits {
    connections_per_shard_max: 100,
    handshakes_max: 100,
    accepts_burst_max: 1000,
    topics_per_shard_max: 100,
    uplink_items_max: 64,
    downlink_items_max: 64,
    rooms_per_connection_max: 20,
    questions_waiting_max: 8,
    message_bytes_max: 1 << 12,
    outbox_bytes_max: 1 << 16,
    history_bytes_max: 1 << 20,
    recovery_bytes_max: 1 << 15,
    downlink_backlog_bytes_max: 1 << 20,
    ping_interval_ms: 600_000,
    ..Limits::TINY
};
/// What `history` answers in a room of [`filled`] is longer than this.
const ANSWER_BYTES: usize = 20 * 1000;

/// A shard with twenty messages of a kilobyte in a room, and two connections: somebody in that room,
/// and its speaker.
fn filled() -> (World, usize, usize) {
    let spaces = Arc::new(Namespaces::read(SPACES).unwrap());
    let mut world = World::kept(1, 1, LIMITS, spaces);
    world.run();
    let ann = world.connect_to(0, "ann", &[ROOM]);
    let bob = world.connect_to(0, "bob", &[ROOM]);
    world.run();
    (0..20).for_each(|number| say(&mut world, bob, ROOM, number));
    world.run();
    world.heard(ann);
    world.heard(bob);
    (world, ann, bob)
}

fn say(world: &mut World, who: usize, room: &str, number: u64) {
    let pad = "x".repeat(1000);
    let payload = format!(r#"{{"by":{who},"n":{number},"pad":"{pad}"}}"#);
    world.send_text(who, &format!(r#"{{"room_id":"{room}","payload":{payload}}}"#));
    world.run();
}

fn ask(world: &mut World, who: usize, id: u64) {
    let kind = if id.is_multiple_of(2) { "history" } else { "presence" };
    world.send_text(who, &format!(r#"{{"type":"{kind}","room_id":"{ROOM}","id":{id}}}"#));
}

/// The socket takes no more than this until it is let go.
fn stall(world: &mut World, who: usize, bytes: usize) {
    world.clients[who].down_max = bytes;
    world.clients[who].pace = 0;
}

fn go_on(world: &mut World, who: usize) {
    world.clients[who].down_max = usize::MAX;
    world.clients[who].pace = usize::MAX;
    world.run();
}

/// `history 3`, `overloaded 9`: the answers heard since the last call, with what they answer.
fn answers(world: &mut World, who: usize) -> Vec<String> {
    let brief = |frame: &Frame| {
        let Frame::Text(json) = frame else { return None };
        let kind = if json["type"] == "error" { &json["code"] } else { &json["type"] };
        let id = json.get("id").filter(|id| **id != Value::Null)?;
        Some(format!("{} {id}", kind.as_str()?))
    };
    world.heard(who).iter().filter_map(brief).collect()
}

fn outbox_bytes(world: &World) -> usize {
    world.towers[0].shard.counters.outbox_bytes as usize
}

fn topics(world: &mut World) -> u64 {
    let shard = &mut world.towers[0].shard;
    shard.measure();
    shard.counters.topics
}

fn waiting(world: &mut World) -> u64 {
    let shard = &mut world.towers[0].shard;
    shard.measure();
    shard.counters.questions_waiting
}

#[test]
fn one_answer_is_made_at_a_time_and_the_next_when_the_socket_has_taken_it() {
    let (mut world, ann, _) = filled();
    stall(&mut world, ann, 100);
    (0..8).for_each(|id| ask(&mut world, ann, 2 * id));
    world.run();
    let one = outbox_bytes(&world);
    assert!(one > ANSWER_BYTES && one < 2 * ANSWER_BYTES, "{one} bytes wait");
    assert_eq!(waiting(&mut world), 7);
    go_on(&mut world, ann);
    let wanted: Vec<String> = (0..8).map(|id| format!("history {}", 2 * id)).collect();
    assert_eq!(answers(&mut world, ann), wanted);
    assert_eq!((waiting(&mut world), outbox_bytes(&world)), (0, 0));
}

#[test]
fn a_connection_that_asks_more_than_may_wait_is_not_read_until_half_of_it_is_asked() {
    let (mut world, ann, bob) = filled();
    stall(&mut world, ann, 100);
    (0..20).for_each(|id| ask(&mut world, ann, id));
    publish_from(&mut world, ann);
    world.run();
    assert_eq!((waiting(&mut world), paused(&mut world)), (8, 1));
    let unused = world.clients[ann].up.len() + paused_bytes(&mut world);
    assert!(unused > 10 * 40, "{unused} bytes of it are not used");
    ask(&mut world, bob, 50);
    world.run();
    assert_eq!(answers(&mut world, bob), ["history 50"], "others ask as before");
    go_on(&mut world, ann);
    let kind = |id: u64| if id.is_multiple_of(2) { "history" } else { "presence" };
    let all = (0..20).map(|id| format!("{} {id}", kind(id))).chain(["ok 99".to_owned()]);
    let mut wanted: Vec<String> = all.collect();
    let mut heard = answers(&mut world, ann);
    assert_eq!(heard.iter().filter(|answer| answer.starts_with("ok")).count(), 1);
    heard.retain(|answer| !answer.starts_with("ok"));
    wanted.pop();
    assert_eq!(heard, wanted, "in their order, and none is refused");
    assert_eq!((waiting(&mut world), paused(&mut world), paused_bytes(&mut world)), (0, 0, 0));
}

fn publish_from(world: &mut World, who: usize) {
    let payload = format!(r#"{{"by":{who},"n":1000}}"#);
    world.send_text(who, &format!(r#"{{"room_id":"{ROOM}","payload":{payload},"id":99}}"#));
}

fn paused(world: &mut World) -> u64 {
    let shard = &mut world.towers[0].shard;
    shard.measure();
    shard.counters.connections_paused
}

fn paused_bytes(world: &mut World) -> usize {
    let shard = &mut world.towers[0].shard;
    shard.measure();
    shard.counters.input_paused_bytes as usize
}

/// Ann is paused: nine questions of hers wait, and she takes nothing.
fn with_ann_paused() -> (World, usize, usize) {
    let (mut world, ann, bob) = filled();
    stall(&mut world, ann, 100);
    (0..12).for_each(|id| ask(&mut world, ann, 2 * id));
    world.run();
    assert_eq!(paused(&mut world), 1);
    (world, ann, bob)
}

#[test]
fn a_paused_connection_that_takes_nothing_ends_as_a_silent_one_does() {
    let (mut world, ann, bob) = with_ann_paused();
    world.pass(2 * LIMITS.ping_interval_ms + 1000);
    assert!(!world.clients[bob].gone, "it answers its pings");
    assert!(world.clients[ann].gone);
    assert_eq!(world.towers[0].shard.counters.closed_silent, 1);
    assert_eq!((waiting(&mut world), paused(&mut world), paused_bytes(&mut world)), (0, 0, 0));
}

#[test]
fn a_paused_connection_that_takes_a_little_now_and_then_is_not_silent() {
    let (mut world, ann, _) = with_ann_paused();
    for _ in 0..8 {
        world.clients[ann].down_max += 10;
        world.pass(LIMITS.ping_interval_ms / 2);
    }
    assert!(!world.clients[ann].gone);
    assert_eq!(paused(&mut world), 1);
}

#[test]
fn a_connection_that_is_paused_for_an_answer_of_ours_is_not_silent() {
    let (mut world, ann, _) = filled();
    world.backplane_sleeps = true;
    (0..12).for_each(|id| ask(&mut world, ann, 2 * id));
    world.run();
    assert_eq!(paused(&mut world), 1);
    world.clients[ann].answers_pings = false;
    world.pass(4 * LIMITS.ping_interval_ms);
    assert!(!world.clients[ann].gone, "its pongs could not have been read");
    world.clients[ann].answers_pings = true;
    world.backplane_sleeps = false;
    world.run();
    assert_eq!(answers(&mut world, ann).len(), 12);
}

#[test]
fn a_paused_connection_whose_socket_fails_is_gone_at_once() {
    let (mut world, ann, _) = with_ann_paused();
    world.vanish(ann);
    world.run();
    assert!(world.clients[ann].gone);
    assert_eq!((waiting(&mut world), paused(&mut world), paused_bytes(&mut world)), (0, 0, 0));
}

#[test]
fn what_a_paused_connection_said_before_it_ended_is_carried_out() {
    let (mut world, ann, bob) = with_ann_paused();
    publish_from(&mut world, ann);
    world.end_up(ann);
    world.run();
    assert!(!world.clients[ann].gone);
    go_on(&mut world, ann);
    assert!(world.clients[ann].gone);
    let heard = world.heard(bob);
    let is_it = |frame: &Frame| matches!(frame, Frame::Text(json) if json["payload"]["n"] == 1000);
    assert_eq!(heard.iter().filter(|frame| is_it(frame)).count(), 1);
}

#[test]
fn a_paused_connection_that_is_closed_hears_the_close_and_answers_it() {
    let (mut world, ann, _) = with_ann_paused();
    world.visit(0, |shard| shard.handle_downlink(Downlink::Drain { over_ms: 0 }, 0));
    go_on(&mut world, ann);
    world.run();
    assert_eq!(world.close_code(ann), Some(1001));
    assert!(world.clients[ann].gone && world.clients[ann].said_goodbye);
    assert_eq!((paused(&mut world), paused_bytes(&mut world)), (0, 0));
}

#[test]
fn one_message_that_asks_more_than_may_wait_is_answered_for_what_may() {
    let (mut world, ann, _) = filled();
    let who = world.knock(0);
    world.open(who, Some("lin"), &[ROOM], Encoding::of(Dialect::Lines));
    world.run();
    world.heard(who);
    let lines: Vec<String> = (0..20).map(|id| format!("#{id} history {ROOM} 1")).collect();
    world.send_frame(who, true, 2, lines.join("\n").as_bytes());
    world.run();
    let heard = world.heard(who);
    let kind = |frame: &Frame| match frame {
        Frame::Binary(bytes) => String::from_utf8_lossy(bytes).split(' ').next().map(str::to_owned),
        _ => None,
    };
    let kinds: Vec<String> = heard.iter().filter_map(kind).collect();
    let count = |wanted: &str| kinds.iter().filter(|kind| *kind == wanted).count();
    assert_eq!((count("history"), count("error")), (9, 11), "{kinds:?}");
    ask(&mut world, ann, 2);
    world.run();
    assert_eq!(answers(&mut world, ann), ["history 2"]);
}

#[test]
fn joins_with_since_take_their_turns_too_and_one_that_is_left_before_its_turn_is_not_made() {
    let (mut world, ann, bob) = filled();
    for room in ["kept:b", "kept:c", "kept:d"] {
        world.send_join(bob, room);
        world.run();
        (0..20).for_each(|number| say(&mut world, bob, room, number));
    }
    stall(&mut world, ann, 100);
    let join = |world: &mut World, room: &str, id: u64| {
        let since = r#"{"epoch":"1","offset":0}"#;
        let text = format!(r#"{{"type":"join","room_id":"{room}","since":{since},"id":{id}}}"#);
        world.send_text(ann, &text);
    };
    ask(&mut world, ann, 0);
    join(&mut world, "kept:b", 1);
    join(&mut world, "kept:c", 2);
    join(&mut world, "kept:d", 3);
    world.send_text(ann, r#"{"type":"leave","room_id":"kept:c","id":4}"#);
    world.run();
    assert_eq!(waiting(&mut world), 3);
    go_on(&mut world, ann);
    let wanted = ["history 0", "not_joined 2", "ok 4", "ok 1", "ok 3"];
    assert_eq!(answers(&mut world, ann), wanted);
    assert_eq!(waiting(&mut world), 0);
    assert_eq!(topics(&mut world), 6, "four rooms and two users");
    world.send_close(bob);
    world.run();
    assert_eq!(topics(&mut world), 4, "the room that was left is let go of");
}

#[test]
fn whoever_goes_while_questions_wait_leaves_nothing_behind() {
    let (mut world, ann, bob) = filled();
    stall(&mut world, ann, 100);
    ask(&mut world, ann, 0);
    for room in ["kept:x", "kept:y"] {
        let since = r#"{"epoch":"1","offset":0}"#;
        let text = format!(r#"{{"type":"join","room_id":"{room}","since":{since},"id":7}}"#);
        world.send_text(ann, &text);
    }
    world.run();
    assert_eq!(waiting(&mut world), 2);
    world.vanish(ann);
    world.run();
    assert!(world.clients[ann].gone);
    assert_eq!((waiting(&mut world), topics(&mut world)), (0, 2));
    world.send_close(bob);
    world.run();
    assert_eq!(topics(&mut world), 0);
}

/// Something of a room that lets messages give way may always wait for a slow member.
#[test]
fn a_slow_member_of_a_busy_room_is_answered_while_messages_give_way() {
    let (mut world, ann, bob) = filled();
    for who in [ann, bob] {
        world.send_join(who, "drops:a");
    }
    world.run();
    world.heard(ann);
    stall(&mut world, ann, 100);
    (0..60).for_each(|number| say(&mut world, bob, "drops:a", number));
    let loose = outbox_bytes(&world);
    assert!(loose > LIMITS.outbox_bytes_max / 4, "{loose} bytes wait, and may give way");
    ask(&mut world, ann, 0);
    ask(&mut world, ann, 2);
    world.run();
    assert_eq!(waiting(&mut world), 1, "the first is answered, though much waits");
    assert!(outbox_bytes(&world) > loose + ANSWER_BYTES / 2);
    go_on(&mut world, ann);
    assert_eq!(answers(&mut world, ann), ["history 0", "history 2"]);
}
