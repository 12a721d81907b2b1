//! Clients of two dialects in the same rooms, on a real backplane: each message is written once for
//! each encoding that has members, and what differs between dialects differs for nobody else.

use crate::peer::Frame;
use crate::world::World;
use campanile::link::{Downlink, Inspect, ReplyTo, RoomReport};
use campanile::policy::limits::Limits;
use campanile::policy::namespaces::Namespaces;
use campanile::protocol::dialect::{Dialect, Encoding};
use std::sync::Arc;
use std::sync::mpsc::channel;

const SPACES: &str = "kept: history_size=100, presence=true; \
                      leave: slow_consumer=drop_oldest, slow_bytes_max=1000; \
                      close: slow_consumer=conflate, slow_bytes_max=1000; \
                      plain: slow_consumer=drop_oldest, slow_bytes_max=1000";
const LINES: Encoding = Encoding::of(Dialect::Lines);
const LIMITS: Limits = Limits {
    connections_per_shard_max: 100,
    handshakes_max: 100,
    accepts_burst_max: 1000,
    topics_per_shard_max: 100,
    uplink_items_max: 64,
    downlink_items_max: 64,
    rooms_per_connection_max: 20,
    outbox_bytes_max: 1 << 16,
    history_bytes_max: 1 << 20,
    recovery_bytes_max: 1 << 15,
    downlink_backlog_bytes_max: 1 << 20,
    ..Limits::TINY
};

fn world(shards: usize) -> World {
    let spaces = Arc::new(Namespaces::read(SPACES).unwrap());
    let mut world = World::kept(1, shards, LIMITS, spaces);
    world.run();
    world
}

/// A client at rest that has received its welcome.
fn connect(
    world: &mut World,
    shard: usize,
    user: &str,
    rooms: &[&str],
    encoding: Encoding,
) -> usize {
    let who = world.knock(shard);
    world.open(who, Some(user), rooms, encoding);
    world.run();
    world.heard(who);
    who
}

fn native(world: &mut World, shard: usize, user: &str, rooms: &[&str]) -> usize {
    connect(world, shard, user, rooms, Encoding::NATIVE)
}

fn lines(world: &mut World, shard: usize, user: &str, rooms: &[&str]) -> usize {
    connect(world, shard, user, rooms, LINES)
}

fn say(world: &mut World, who: usize, text: &str) {
    match text.starts_with('{') {
        true => world.send_text(who, text),
        false => world.send_frame(who, true, 2, text.as_bytes()),
    }
    world.run();
}

/// What a client received since the last call, each frame as its text.
fn heard(world: &mut World, who: usize) -> Vec<String> {
    let text = |frame: &Frame| match frame {
        Frame::Text(json) => json.to_string(),
        Frame::Binary(bytes) => String::from_utf8(bytes.clone()).expect("lines are text"),
        Frame::Close(code, _) => format!("close {code}"),
        other => format!("{other:?}"),
    };
    world.heard(who).iter().map(text).collect()
}

/// Lets time pass until a client that must receive a frame within a minute has received it. It
/// answers heartbeats meanwhile.
fn pass_until_heard(world: &mut World, who: usize, text: &str) {
    for _ in 0..600 {
        world.pass(100);
        let heard = heard(world, who);
        if heard.iter().any(|heard| heard == text) {
            return;
        }
        if heard.iter().any(|heard| heard == "heartbeat") {
            say(world, who, "heartbeat");
        }
    }
    panic!("no {text} within a minute");
}

/// Of native frames: `type`, or `type payload`.
fn brief(texts: &[String]) -> Vec<String> {
    let brief = |text: &String| {
        let json: serde_json::Value = serde_json::from_str(text).expect("JSON");
        let (kind, payload) = (json["type"].as_str().unwrap_or("?").to_owned(), &json["payload"]);
        if payload.is_null() { kind } else { format!("{kind} {payload}") }
    };
    texts.iter().map(brief).collect()
}

fn frames_made(world: &mut World) -> u64 {
    let now_ms = world.now_ms;
    world.node.as_mut().expect("it is real here").counters(now_ms).frames_made
}

/// Frames that were made while something happened.
fn made_by(world: &mut World, act: impl FnOnce(&mut World)) -> u64 {
    let before = frames_made(world);
    act(world);
    frames_made(world) - before
}

fn inspect(world: &mut World, shard: usize, room: &str) -> Option<RoomReport> {
    let (tell, told) = channel();
    let reply = ReplyTo::Call(Box::new(move |report| tell.send(report).expect("the test waits")));
    let question = Inspect::Room { room: room.to_owned(), reply };
    let now_ms = world.now_ms;
    world
        .visit(shard, |shard| shard.handle_downlink(Downlink::Inspect(Box::new(question)), now_ms));
    told.recv().expect("it is answered at once")
}

#[test]
fn a_message_is_written_once_for_each_encoding_that_has_members() {
    let mut world = world(2);
    let ann = native(&mut world, 0, "ann", &["r"]);
    let bob = lines(&mut world, 0, "bob", &["r"]);
    let eve = native(&mut world, 1, "eve", &["r"]);
    let both = made_by(&mut world, |world| say(world, ann, r#"{"room_id":"r","payload":1}"#));
    assert_eq!(both, 2);
    let from_bob = made_by(&mut world, |world| say(world, bob, "publish r [2]"));
    assert_eq!(from_bob, 2);
    for who in [ann, eve] {
        assert_eq!(brief(&heard(&mut world, who)), ["message 1", "message [2]"]);
    }
    assert_eq!(heard(&mut world, bob), ["message r ann 1", "message r bob [2]"]);
    say(&mut world, bob, "leave r");
    let native_alone =
        made_by(&mut world, |world| say(world, ann, r#"{"room_id":"r","payload":3}"#));
    assert_eq!(native_alone, 1);
    assert_eq!(heard(&mut world, bob), ["ok r"]);
    let nobody = made_by(&mut world, |world| say(world, ann, r#"{"room_id":"other","payload":4}"#));
    assert_eq!(nobody, 0, "nobody is in that room");
}

#[test]
fn what_a_native_client_does_not_want_to_receive_others_do() {
    let mut world = world(1);
    let ann = native(&mut world, 0, "ann", &["r"]);
    let eve = native(&mut world, 0, "eve", &["r"]);
    let bob = lines(&mut world, 0, "bob", &["r"]);
    say(&mut world, ann, r#"{"type":"publish","room_id":"r","payload":1,"echo":false}"#);
    assert_eq!(heard(&mut world, ann), [""; 0]);
    assert_eq!(brief(&heard(&mut world, eve)), ["message 1"]);
    assert_eq!(heard(&mut world, bob), ["message r ann 1"]);
}

#[test]
fn a_broadcast_is_one_walk_and_one_frame_for_each_encoding_that_has_connections() {
    let mut world = world(2);
    let ann = native(&mut world, 0, "ann", &[]);
    let broadcast = r#"{"type":"broadcast","payload":1}"#;
    assert_eq!(made_by(&mut world, |world| say(world, ann, broadcast)), 1);
    let bobs: Vec<usize> = (0..2).map(|shard| lines(&mut world, shard, "bob", &[])).collect();
    let echo = connect(&mut world, 0, "echo", &[], Encoding::of(Dialect::Echo));
    heard(&mut world, ann);
    world.towers.iter_mut().for_each(|tower| tower.writes.clear());
    assert_eq!(made_by(&mut world, |world| say(world, ann, broadcast)), 2);
    assert_eq!(brief(&heard(&mut world, ann)), ["message 1"]);
    bobs.iter().for_each(|bob| assert_eq!(heard(&mut world, *bob), ["message * ann 1"]));
    assert_eq!(heard(&mut world, echo), [""; 0]);
    assert_eq!(world.towers[0].writes, [1, 1], "a batch for each encoding");
    assert_eq!(world.towers[1].writes, [1]);
    for bob in bobs {
        world.vanish(bob);
    }
    world.run();
    assert_eq!(made_by(&mut world, |world| say(world, ann, broadcast)), 1, "nobody else is here");
}

#[test]
fn what_was_missed_stands_inside_the_reply_or_follows_it_as_the_dialect_wants_it() {
    let mut world = world(2);
    let ann = native(&mut world, 0, "ann", &["kept:a"]);
    (1..=3).for_each(|n| say(&mut world, ann, &format!(r#"{{"room_id":"kept:a","payload":{n}}}"#)));
    let text = heard(&mut world, ann).pop().expect("its own messages");
    let epoch = serde_json::from_str::<serde_json::Value>(&text).unwrap()["epoch"].clone();
    let epoch = epoch.as_str().expect("a string").to_owned();
    let bob = lines(&mut world, 1, "bob", &[]);
    let eve = native(&mut world, 1, "eve", &[]);
    say(&mut world, bob, &format!("#7 join kept:a {epoch} 1"));
    let since = format!(r#"{{"epoch":"{epoch}","offset":1}}"#);
    say(&mut world, eve, &format!(r#"{{"type":"join","room_id":"kept:a","since":{since}}}"#));
    let reply = format!(
        "ok #7 kept:a {epoch}:3 recovered 2\nmessage kept:a ann {epoch}:2 2\n\
         message kept:a ann {epoch}:3 3"
    );
    let bob_heard = heard(&mut world, bob);
    assert_eq!(bob_heard[0], reply);
    assert_eq!(brief(&heard(&mut world, eve))[..3], ["ok", "message 2", "message 3"]);
    say(&mut world, bob, "#8 history kept:a 2");
    let page = format!(
        "history #8 kept:a {epoch}:3\nmessage kept:a ann {epoch}:1 1\n\
         message kept:a ann {epoch}:2 2"
    );
    assert_eq!(heard(&mut world, bob).last(), Some(&page));
    say(&mut world, ann, r#"{"room_id":"kept:a","payload":4}"#);
    assert_eq!(heard(&mut world, bob), [format!("message kept:a ann {epoch}:4 4")]);
}

#[test]
fn one_message_may_hold_several_requests_and_they_are_answered_in_order() {
    let mut world = world(1);
    let bob = lines(&mut world, 0, "bob", &[]);
    say(&mut world, bob, "#1 join r\n#2 publish r 1\nnonsense\n#3 ping\n#4 leave r");
    let mut answers = heard(&mut world, bob);
    answers.retain(|answer| !answer.starts_with("message"));
    // A join and a publish are answered when the backplane has answered.
    answers.sort();
    let wanted = ["error #1 not_joined", "error bad_request", "ok #2 -", "ok #4 r", "pong #3"];
    assert_eq!(answers, wanted);
    world.send_text(bob, "{}");
    world.run();
    assert_eq!(heard(&mut world, bob), ["close 4000"], "its own code for what it does not speak");
}

#[test]
fn a_room_is_one_room_for_whoever_counts_its_members() {
    let mut world = world(1);
    (0..3).for_each(|n| _ = native(&mut world, 0, &format!("n{n}"), &["r"]));
    (0..2).for_each(|n| _ = lines(&mut world, 0, &format!("l{n}"), &["r"]));
    let report = inspect(&mut world, 0, "r").expect("it has members");
    assert_eq!((report.room.as_str(), report.members), ("r", 5));
    assert_eq!(inspect(&mut world, 0, "empty"), None);
}

/// The key under which a shard knows a room in an encoding.
fn lose(world: &mut World, room: &str, count: u64) {
    let topic = campanile::ids::TopicName::room(room);
    let node = world.node.as_mut().expect("it is real here");
    node.local.notify_lost(&topic, count);
    node.local.flush();
    world.run();
}

#[test]
fn a_loss_is_told_or_ends_the_membership_or_the_connection_as_the_dialect_says() {
    let mut world = world(1);
    let rooms = ["plain:r", "leave:r", "close:r"];
    let ann = native(&mut world, 0, "ann", &rooms);
    let bobs: Vec<usize> = rooms.iter().map(|room| lines(&mut world, 0, "bob", &[room])).collect();
    for room in rooms {
        say(&mut world, ann, &format!(r#"{{"room_id":"{room}","payload":"before"}}"#));
        lose(&mut world, room, 3);
        say(&mut world, ann, &format!(r#"{{"room_id":"{room}","payload":"after"}}"#));
    }
    let [before, after] = [r#"message "before""#, r#"message "after""#];
    assert_eq!(brief(&heard(&mut world, ann)), [before, "lost", after].repeat(3));
    let told =
        ["message plain:r ann \"before\"", "lost plain:r 3", "message plain:r ann \"after\""];
    assert_eq!(heard(&mut world, bobs[0]), told);
    let left = ["message leave:r ann \"before\"", "unsubscribed leave:r"];
    assert_eq!(heard(&mut world, bobs[1]), left);
    let closed = ["message close:r ann \"before\"", "close 4006"];
    assert_eq!(heard(&mut world, bobs[2]), closed);
    assert_eq!(inspect(&mut world, 0, "leave:r").map(|report| report.members), Some(1));
    assert_eq!(world.towers[0].shard.counters.removed_for_loss, 2);
    say(&mut world, bobs[1], "join leave:r");
    say(&mut world, ann, r#"{"room_id":"leave:r","payload":"again"}"#);
    assert_eq!(heard(&mut world, bobs[1]), ["ok leave:r", "message leave:r ann \"again\""]);
}

#[test]
fn a_slow_member_that_cannot_be_told_of_a_loss_leaves_instead() {
    let mut world = world(1);
    let (ann, room) = (native(&mut world, 0, "ann", &["leave:r"]), "leave:r");
    let bob = lines(&mut world, 0, "bob", &[room]);
    let eve = native(&mut world, 0, "eve", &[room]);
    for who in [bob, eve] {
        world.clients[who].down_max = 10;
        world.clients[who].pace = 0;
    }
    let pad = "x".repeat(200);
    for n in 0..20 {
        say(&mut world, ann, &format!(r#"{{"room_id":"{room}","payload":["{pad}",{n}]}}"#));
    }
    for who in [bob, eve] {
        world.clients[who].down_max = usize::MAX;
        world.clients[who].pace = usize::MAX;
    }
    world.run();
    let eve_heard = brief(&heard(&mut world, eve));
    assert_eq!(eve_heard.iter().filter(|text| *text == "lost").count(), 1, "{eve_heard:?}");
    let bob_heard = heard(&mut world, bob);
    let last = bob_heard.len() - 1;
    assert_eq!(bob_heard[last], "unsubscribed leave:r", "{bob_heard:?}");
    assert!(bob_heard[..last].iter().all(|text| text.starts_with("message")), "{bob_heard:?}");
    assert!(bob_heard.len() < 20, "what came after the loss is not brought");
    assert_eq!(inspect(&mut world, 0, room).map(|report| report.members), Some(2));
}

#[test]
fn a_dialect_is_kept_alive_in_its_own_manner() {
    let mut world = world(1);
    let bob = lines(&mut world, 0, "bob", &[]);
    pass_until_heard(&mut world, bob, "heartbeat");
    say(&mut world, bob, "heartbeat");
    assert_eq!(heard(&mut world, bob), [""; 0], "an answer is not answered");
    world.pass(3 * LIMITS.ping_interval_ms);
    assert_eq!(heard(&mut world, bob).last().map(String::as_str), Some("close 4003"));
}

#[test]
fn presence_is_one_list_for_all_dialects() {
    let mut world = world(1);
    let ann = native(&mut world, 0, "ann", &["kept:a"]);
    let bob = lines(&mut world, 0, "bob", &["kept:a"]);
    assert_eq!(brief(&heard(&mut world, ann)), ["joined"]);
    say(&mut world, bob, "#1 presence kept:a");
    assert_eq!(heard(&mut world, bob), ["presence #1 kept:a 2"]);
    world.vanish(ann);
    pass_until_heard(&mut world, bob, "left kept:a ann");
}
