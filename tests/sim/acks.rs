//! Members who acknowledge what they hear: who lags, and when.

use crate::peer::Frame;
use crate::world::{Say, World};
use campanile::limits::Limits;
use campanile::link::{AckReport, Downlink, Inspect, RoomReport};
use campanile::namespaces::Namespaces;
use std::sync::{Arc, mpsc};

const SPACES: &str = "kept: history_size=100, acks=true, ack_timeout_ms=1600; mute: history_size=9";
const ROOM: &str = "kept:a";
/// How late it may be known that somebody lags: a sixteenth of the timeout, and a tick.
const LATE_MS: u64 = 200;

fn world(shards: usize) -> World {
    let limits = Limits {
        connections_per_shard_max: 20,
        handshakes_max: 20,
        accepts_burst_max: 20,
        topics_per_shard_max: 40,
        history_bytes_max: 1 << 20,
        downlink_items_max: 64,
        downlink_backlog_bytes_max: 1 << 20,
        ping_interval_ms: 60_000,
        ..Limits::TINY
    };
    let mut world = World::kept(1, shards, limits, Arc::new(Namespaces::read(SPACES).unwrap()));
    world.run();
    world
}

/// What somebody is answered to a request.
fn ask(world: &mut World, who: usize, request: &str) -> String {
    world.heard(who);
    world.send_text(who, &format!(r#"{{"id":1,{request}}}"#));
    world.run();
    let answer = |frame: &Frame| match frame {
        Frame::Text(json) if json["id"] == 1 => Some(match json["code"].as_str() {
            Some(code) => code.to_owned(),
            None => json["type"].to_string().replace('"', ""),
        }),
        _ => None,
    };
    let heard = world.heard(who);
    let answers: Vec<_> = heard.iter().filter_map(answer).collect();
    assert_eq!(answers.len(), 1, "{request}: {heard:?}");
    answers.concat()
}

/// A member who acknowledges.
fn member(world: &mut World, tower: usize, user: &str) -> usize {
    let who = world.connect_to(tower, user, &[]);
    let joined = ask(world, who, &format!(r#""type":"join","room_id":"{ROOM}","ack":true"#));
    assert_eq!(joined, "ok");
    who
}

fn acks(world: &mut World, who: usize, offset: u64) -> String {
    ask(world, who, &format!(r#""type":"ack","room_id":"{ROOM}","offset":{offset}"#))
}

/// Members that acknowledge on a shard, those that lag, and what all have acknowledged.
fn report(world: &mut World, tower: usize) -> (usize, usize, Option<u64>) {
    let (tell, told) = mpsc::channel();
    let reply: Box<dyn FnOnce(Option<RoomReport>) + Send> =
        Box::new(move |report| tell.send(report).expect("it is waited for"));
    let question = Downlink::Inspect(Inspect::Room { room: ROOM.to_owned(), reply });
    let now_ms = world.now_ms;
    world.visit(tower, |shard| shard.handle_downlink(question, now_ms));
    let report = told.recv().expect("it answers at once");
    let AckReport { members, lagging, lowest_offset } = report.unwrap_or_else(nobody).acks;
    (members, lagging, lowest_offset)
}

fn nobody() -> RoomReport {
    RoomReport { room: String::new(), members: 0, acks: AckReport::default() }
}

fn counters(world: &mut World) -> (u64, u64, u64) {
    let shard = &mut world.towers[0].shard;
    shard.measure();
    let counters = &shard.counters;
    (counters.acks, counters.acks_members, counters.acks_lagging)
}

#[test]
fn who_acknowledges_in_time_never_lags_and_who_does_not_does() {
    let mut world = world(1);
    let (ann, bob) = (member(&mut world, 0, "ann"), member(&mut world, 0, "bob"));
    assert_eq!(report(&mut world, 0), (2, 0, Some(0)));
    for offset in 1..=20 {
        world.send_message(ann, &format!("r:{ROOM}"), Say::default());
        world.run();
        assert_eq!(acks(&mut world, ann, offset), "ok");
        world.pass(200);
        let is_late = offset * 200 > 1600 + LATE_MS;
        let is_early = offset * 200 < 1600;
        let (members, lagging, lowest) = report(&mut world, 0);
        assert_eq!((members, lowest), (2, Some(0)), "bob has acknowledged nothing");
        assert!(is_early || lagging <= 1);
        assert!(!is_early || lagging == 0, "{offset}");
        assert!(!is_late || lagging == 1, "{offset}");
    }
    assert_eq!(counters(&mut world), (20, 2, 1));
    assert_eq!(acks(&mut world, bob, 20), "ok");
    world.pass(100);
    assert_eq!(report(&mut world, 0), (2, 0, Some(20)));
    assert_eq!(counters(&mut world), (21, 2, 0));
}

#[test]
fn what_is_wrong_with_an_acknowledgement_is_said() {
    let mut world = world(1);
    let ann = member(&mut world, 0, "ann");
    let bob = world.connect_to(0, "bob", &[ROOM, "mute:a", "lobby"]);
    world.send_message(ann, &format!("r:{ROOM}"), Say::default());
    world.run();
    for (who, request, answer) in [
        (ann, r#""type":"ack","room_id":"kept:a","offset":2"#, "bad_request"),
        (ann, r#""type":"ack","room_id":"kept:a","offset":1"#, "ok"),
        (ann, r#""type":"ack","room_id":"kept:a","offset":0"#, "ok"),
        (ann, r#""type":"ack","room_id":"kept:a","offset":9,"epoch":"7""#, "ok"),
        (ann, r#""type":"ack","room_id":"kept:b","offset":0"#, "not_joined"),
        (bob, r#""type":"ack","room_id":"kept:a","offset":0"#, "not_joined"),
        (bob, r#""type":"ack","room_id":"mute:a","offset":0"#, "not_enabled"),
        (bob, r#""type":"ack","room_id":"lobby","offset":0"#, "not_enabled"),
        (bob, r#""type":"join","room_id":"mute:a","ack":true"#, "not_enabled"),
        (bob, r#""type":"join","room_id":"lobby","ack":true"#, "not_enabled"),
        (bob, r#""type":"ack","offset":0"#, "not_enabled"),
        (bob, r#""type":"join","room_id":"kept:a","ack":true"#, "ok"),
        (bob, r#""type":"ack","room_id":"kept:a","offset":1"#, "ok"),
    ] {
        assert_eq!(ask(&mut world, who, request), answer, "{request}");
    }
    assert_eq!(report(&mut world, 0), (2, 0, Some(1)));
    // Without an id nobody is answered, unless something is wrong.
    world.send_text(ann, r#"{"type":"ack","room_id":"kept:a","offset":1}"#);
    world.run();
    assert_eq!(world.heard_texts(ann), [""; 0]);
    world.send_text(ann, r#"{"type":"ack","room_id":"kept:a","offset":7}"#);
    world.run();
    assert_eq!(world.heard(ann).len(), 1);
}

#[test]
fn who_leaves_or_vanishes_is_no_longer_counted() {
    let mut world = world(2);
    let here: Vec<usize> = (0..6).map(|n| member(&mut world, n % 2, &format!("u{n}"))).collect();
    assert_eq!(report(&mut world, 0).0 + report(&mut world, 1).0, 6);
    world.send_message(here[0], &format!("r:{ROOM}"), Say::default());
    world.pass(1600 + LATE_MS);
    assert_eq!(report(&mut world, 0), (3, 3, Some(0)));
    assert_eq!(report(&mut world, 1), (3, 3, Some(0)));
    world.vanish(here[0]);
    world.leave(here[2], ROOM);
    world.run();
    assert_eq!(report(&mut world, 0), (1, 1, Some(0)));
    assert_eq!(acks(&mut world, here[2], 1), "not_joined");
    world.send_close(here[4]);
    world.run();
    world.pass(200);
    assert_eq!(report(&mut world, 0), (0, 0, None));
    assert_eq!(counters(&mut world), (0, 0, 0));
    assert_eq!(report(&mut world, 1), (3, 3, Some(0)));
    // Who joins without saying so does not acknowledge; who comes back and says so does.
    world.join(here[2], ROOM);
    world.run();
    assert_eq!(report(&mut world, 0).0, 0);
    let joined = ask(&mut world, here[2], r#""type":"join","room_id":"kept:a","ack":true"#);
    assert_eq!((&joined[..], report(&mut world, 0)), ("ok", (1, 0, Some(1))));
}

#[test]
fn what_is_brought_back_is_to_be_acknowledged_too() {
    let mut world = world(1);
    let ann = member(&mut world, 0, "ann");
    for _ in 0..5 {
        world.send_message(ann, &format!("r:{ROOM}"), Say::default());
        world.run();
    }
    let heard = world.heard(ann);
    let Some(Frame::Text(json)) = heard.last() else { panic!("five messages: {heard:?}") };
    let epoch = json["epoch"].as_str().expect("it has a place").to_owned();
    acks(&mut world, ann, 5);
    let bob = world.connect_to(0, "bob", &[]);
    let since = format!(r#""since":{{"epoch":"{epoch}","offset":2}}"#);
    let join = format!(r#""type":"join","room_id":"{ROOM}","ack":true,{since}"#);
    assert_eq!(ask(&mut world, bob, &join), "ok");
    assert_eq!(report(&mut world, 0), (2, 0, Some(2)));
    world.pass(1600 + LATE_MS);
    assert_eq!(report(&mut world, 0), (2, 1, Some(2)));
    // As if it left and came back at once, and no longer acknowledges.
    let join = format!(r#""type":"join","room_id":"{ROOM}",{since}"#);
    assert_eq!(ask(&mut world, bob, &join), "ok");
    assert_eq!(report(&mut world, 0), (1, 0, Some(5)));
}
