//! Members who read too slowly, in rooms that do not close them for it.

use crate::backplane::Window;
use crate::peer::{Frame, server_frame};
use crate::world::{Say, World};
use bytes::Bytes;
use campanile::ids::{ConflateKey, ConnId};
use campanile::link::{Delivery, Downlink, Uplink};
use campanile::policy::limits::Limits;
use std::collections::HashMap;

const POLICIES: &str = "drop: slow_consumer=drop_oldest, slow_bytes_max=1000; \
                        tick: slow_consumer=conflate, slow_bytes_max=1000";

fn world() -> World {
    let mut world = World::ruled(1, 1, 1, Limits::TINY, POLICIES);
    world.run();
    world
}

/// A member of these rooms, at rest, and nothing heard yet.
fn member(world: &mut World, user: &str, rooms: &[&str]) -> usize {
    let who = world.connect_to(0, user, rooms);
    world.heard(who);
    who
}

/// Its socket takes so many bytes and no more, until it reads.
fn stops_reading(world: &mut World, who: usize, bytes: usize) {
    world.clients[who].down_max = bytes;
    world.clients[who].pace = 0;
}

/// It reads everything. What it hears: numbers of messages, `lost` with counts, and types.
fn reads(world: &mut World, who: usize) -> Vec<String> {
    world.clients[who].pace = usize::MAX;
    world.run();
    assert!(!world.clients[who].is_torn());
    world.heard(who).iter().map(brief).collect()
}

fn brief(frame: &Frame) -> String {
    let Frame::Text(json) = frame else { return format!("{frame:?}") };
    match json["type"].as_str() {
        Some("message") => format!("{} {}", json["room_id"], json["payload"]["n"]).replace('"', ""),
        Some("lost") => format!("lost {} {}", json["count"], json["room_id"]).replace('"', ""),
        _ => json["type"].as_str().unwrap_or("?").to_owned(),
    }
}

/// A message of about 300 bytes; its number.
fn says(world: &mut World, who: usize, room: &str) -> u64 {
    let number = world.send_message(who, room, Say { bytes: 200, ..Say::default() });
    world.run();
    number
}

fn frame(text: &str) -> Bytes {
    Bytes::from(server_frame(text))
}

fn server_json(room: &str, n: u32) -> String {
    let pad = "x".repeat(100);
    format!(
        r#"{{"type":"message","room_id":"{room}","from":"ann","payload":{{"by":0,"n":{n},"pad":"{pad}"}}}}"#
    )
}

/// A message straight into the shard's window.
fn delivers(world: &mut World, room: &str, n: u32, about: Option<&str>, except: Option<ConnId>) {
    let to = world.topic_id(0, &format!("r:{room}"));
    let json = server_json(room, n);
    let frame = frame(&json);
    let item = match about.map(|about| ConflateKey::of(about).expect("a short key")) {
        None => Downlink::Deliver { to, frame, except },
        conflate_key => {
            let position = None;
            let delivery = Delivery { to, frame, except, position, conflate_key };
            Downlink::DeliverWith(Box::new(delivery))
        }
    };
    world.say_down(0, item);
}

#[test]
fn a_slow_member_hears_how_many_gave_way_and_then_the_newest() {
    let mut world = world();
    let (ann, bob) =
        (member(&mut world, "ann", &["drop:r"]), member(&mut world, "bob", &["drop:r"]));
    stops_reading(&mut world, bob, 100);
    let sent: Vec<u64> = (0..12).map(|_| says(&mut world, ann, "r:drop:r")).collect();
    assert_eq!(world.heard_numbers(ann), sent, "nobody waits for bob");
    let heard = reads(&mut world, bob);
    // The first had begun to leave; three fit into a thousand bytes.
    let newest = sent[9..].iter().map(|n| format!("drop:r {n}"));
    let wanted: Vec<String> =
        [format!("drop:r {}", sent[0]), "lost 8 drop:r".into()].into_iter().chain(newest).collect();
    assert_eq!(heard, wanted);
    let counters = &world.towers[0].shard.counters;
    assert_eq!((counters.slow_dropped, counters.slow_notices, counters.closed_slow), (8, 1, 0));
    assert_eq!(counters.outbox_bytes, 0);
    let after = says(&mut world, ann, "r:drop:r");
    assert_eq!(reads(&mut world, bob), [format!("drop:r {after}")], "and is no longer slow");
}

#[test]
fn a_slow_member_of_a_conflating_room_hears_only_the_newest() {
    let mut world = world();
    let (ann, bob) =
        (member(&mut world, "ann", &["tick:r"]), member(&mut world, "bob", &["tick:r"]));
    stops_reading(&mut world, bob, 100);
    let sent: Vec<u64> = (0..12).map(|_| says(&mut world, ann, "r:tick:r")).collect();
    assert_eq!(world.heard_numbers(ann), sent);
    let heard = reads(&mut world, bob);
    assert_eq!(heard, [format!("tick:r {}", sent[0]), format!("tick:r {}", sent[11])]);
    let counters = &world.towers[0].shard.counters;
    assert_eq!((counters.slow_conflated, counters.slow_notices), (10, 0));
}

#[test]
fn only_the_newest_of_each_key_waits_however_messages_were_joined() {
    // One visit each, and all in one visit.
    for at_once in [false, true] {
        let mut world = world();
        let bob = member(&mut world, "bob", &["tick:r"]);
        stops_reading(&mut world, bob, 10);
        for n in 0..20 {
            let about = [Some("AAPL"), Some("MSFT"), None, Some("MSFT")][n as usize % 4];
            delivers(&mut world, "tick:r", n, about, None);
            if !at_once {
                world.run();
            }
        }
        world.take_downlinks(0);
        let heard = reads(&mut world, bob);
        assert_eq!(heard, ["tick:r 0", "tick:r 16", "tick:r 18", "tick:r 19"], "{at_once}");
    }
}

#[test]
fn a_conflate_key_goes_up_only_where_the_room_conflates() {
    let mut world = world();
    let ann = member(&mut world, "ann", &["tick:r", "drop:r"]);
    world.backplane_sleeps = true;
    for room in ["tick:r", "drop:r"] {
        world.send_text(
            ann,
            &format!(r#"{{"room_id":"{room}","payload":1,"conflate_key":"AAPL"}}"#),
        );
    }
    world.run();
    let key = |item: Option<Uplink>| match item {
        Some(Uplink::Publish(publish)) => publish.conflate_key,
        _ => panic!("two publishes went up"),
    };
    let Window { up, .. } = &mut world.windows[0];
    assert_eq!(key(up.pop_front()), ConflateKey::of("AAPL"));
    assert_eq!(key(up.pop_front()), None);
}

#[test]
fn a_frame_in_the_middle_of_a_join_that_was_half_written_is_completed() {
    let one = server_frame(&server_json("drop:r", 10)).len();
    // Cut before, inside and behind the second frame of twenty.
    for cut in [0, 1, one - 1, one, one + 1, one + 50, 2 * one - 1, 2 * one] {
        let mut world = world();
        let bob = member(&mut world, "bob", &["drop:r"]);
        stops_reading(&mut world, bob, cut);
        for n in 0..20 {
            delivers(&mut world, "drop:r", 10 + n, None, None);
        }
        world.take_downlinks(0);
        world.run();
        world.clients[bob].down_max = 1 << 20;
        let heard = reads(&mut world, bob);
        let begun = cut.div_ceil(one);
        let kept = heard.len() - begun - 1;
        let numbers = (0..begun).chain(20 - kept..20).map(|n| format!("drop:r {}", 10 + n));
        let mut wanted: Vec<String> = numbers.collect();
        wanted.insert(begun, format!("lost {} drop:r", 20 - kept - begun));
        assert_eq!(heard, wanted, "cut at {cut}");
        assert!(kept >= 5, "{kept} of about 170 bytes fit into a thousand");
    }
}

#[test]
fn other_rooms_of_the_same_member_miss_nothing() {
    let mut world = world();
    let rooms = ["drop:r", "drop:s", "plain"];
    let (ann, bob) = (member(&mut world, "ann", &rooms), member(&mut world, "bob", &rooms));
    stops_reading(&mut world, bob, 100);
    let begun = says(&mut world, ann, "r:drop:r");
    let (plain, other) = (says(&mut world, ann, "r:plain"), says(&mut world, ann, "r:drop:s"));
    let flood: Vec<u64> = (0..30).map(|_| says(&mut world, ann, "r:drop:r")).collect();
    let heard = reads(&mut world, bob);
    let of = |room: &str| -> Vec<String> {
        heard.iter().filter(|text| text.contains(room)).cloned().collect()
    };
    assert_eq!(of("plain"), [format!("plain {plain}")]);
    assert_eq!(of("drop:s"), [format!("drop:s {other}")]);
    let kept = of("drop:r").len() - 2;
    assert_eq!(of("drop:r")[0], format!("drop:r {begun}"));
    assert_eq!(of("drop:r")[1], format!("lost {} drop:r", 30 - kept));
    assert_eq!(of("drop:r")[2], format!("drop:r {}", flood[30 - kept]));
    assert_eq!(world.towers[0].shard.counters.closed_slow, 0);
}

#[test]
fn a_member_who_takes_nothing_is_closed_though_it_answers_pings() {
    let mut world = world();
    let members = ["ann", "bob", "cid"].map(|user| member(&mut world, user, &["drop:r"]));
    let [ann, stalled, slow] = members;
    stops_reading(&mut world, stalled, 100);
    stops_reading(&mut world, slow, 100);
    for _ in 0..10 {
        says(&mut world, ann, "r:drop:r");
    }
    let pass = |world: &mut World| {
        for who in members {
            world.send_frame(who, true, 10, b"");
        }
        // This one takes a little each time: it is slow, which its room allows.
        world.clients[slow].pace = 1;
        world.client_turn(slow);
        world.flush(slow);
        world.clients[slow].pace = 0;
        world.pass(Limits::TINY.ping_interval_ms / 2);
        world.run();
    };
    let closed = |world: &World| world.towers[0].shard.counters.closed_stalled;
    for _ in 0..2 {
        pass(&mut world);
        assert_eq!(closed(&world), 0, "not before its time is over");
    }
    (0..20).for_each(|_| pass(&mut world));
    let counters = &world.towers[0].shard.counters;
    assert_eq!((counters.closed_stalled, counters.closed_silent, counters.connections), (1, 0, 2));
    assert!(world.clients[slow].is_here());
}

#[test]
fn replies_and_control_frames_are_never_given_up_and_alone_close_a_slow_member() {
    let mut world = world();
    let (ann, bob) =
        (member(&mut world, "ann", &["drop:r"]), member(&mut world, "bob", &["drop:r"]));
    stops_reading(&mut world, bob, 100);
    for n in 0..20 {
        says(&mut world, ann, "r:drop:r");
        world.send_frame(bob, true, 9, format!("ping {n}").as_bytes());
        world.send_other(bob, r#""type":"ping""#);
        world.run();
    }
    let heard = reads(&mut world, bob);
    let count = |what: &str| heard.iter().filter(|text| text.starts_with(what)).count();
    assert_eq!((count("Pong"), count("pong")), (20, 20));
    assert_eq!(count("lost"), 1);
    let lost: usize = heard
        .iter()
        .find_map(|text| text.split(' ').nth(1)?.parse().ok().filter(|_| text.starts_with("lost")))
        .unwrap();
    assert_eq!(count("drop:r") + lost, 20);
    // Twice as many bytes of answers as may wait.
    stops_reading(&mut world, bob, 10);
    says(&mut world, ann, "r:drop:r");
    for _ in 0..60 {
        world.send_frame(bob, true, 9, &[b'?'; 100]);
    }
    world.run();
    reads(&mut world, bob);
    assert_eq!(world.towers[0].shard.counters.closed_slow, 1);
}

#[test]
fn what_a_slow_member_did_not_want_to_hear_is_not_lost_to_it() {
    let mut world = world();
    let bob = member(&mut world, "bob", &["drop:r"]);
    let except = world.clients[bob].conn;
    stops_reading(&mut world, bob, 10);
    for n in 0..20 {
        delivers(&mut world, "drop:r", n, None, except.filter(|_| n % 2 == 1));
    }
    world.take_downlinks(0);
    let heard = reads(&mut world, bob);
    let kept = heard.len() - 2;
    let even = (0..10).map(|n| format!("drop:r {}", 2 * n));
    let mut wanted: Vec<String> = even.collect();
    wanted.splice(1..10 - kept, [format!("lost {} drop:r", 9 - kept)]);
    assert_eq!(heard, wanted);
}

#[test]
fn a_member_who_leaves_while_its_messages_wait_hears_them_and_then_that_it_left() {
    let mut world = world();
    let (ann, bob) =
        (member(&mut world, "ann", &["drop:r"]), member(&mut world, "bob", &["drop:r"]));
    stops_reading(&mut world, bob, 100);
    (0..12).for_each(|_| _ = says(&mut world, ann, "r:drop:r"));
    world.send_leave(bob, "drop:r");
    world.run();
    (0..12).for_each(|_| _ = says(&mut world, ann, "r:drop:r"));
    let heard = reads(&mut world, bob);
    assert_eq!(heard.last().unwrap(), "ok");
    assert_eq!(heard[1], "lost 8 drop:r");
}

#[test]
fn who_comes_back_is_not_told_of_what_was_lost_before_they_left() {
    let mut world = world();
    let (ann, bob) =
        (member(&mut world, "ann", &["drop:r"]), member(&mut world, "bob", &["drop:r"]));
    stops_reading(&mut world, bob, 100);
    (0..12).for_each(|_| _ = says(&mut world, ann, "r:drop:r"));
    world.leave(bob, "drop:r");
    world.join(bob, "drop:r");
    (0..12).for_each(|_| _ = says(&mut world, ann, "r:drop:r"));
    let heard = reads(&mut world, bob);
    let stays: Vec<_> = heard.split(|text| text == "ok").collect();
    assert_eq!((stays.len(), stays[1].len()), (3, 0), "{heard:?}");
    for stay in [stays[0], stays[2]] {
        let messages = stay.iter().map(|text| match text.strip_prefix("lost ") {
            Some(lost) => lost.split(' ').next().unwrap().parse().unwrap(),
            None => 1,
        });
        assert_eq!(messages.sum::<u64>(), 12, "{heard:?}");
    }
}

/// One random day: rooms of each policy, members of all paces; then everybody reads.
fn day(seed: u64) -> World {
    // The backplane drops nothing here: it would count what somebody did not want to hear.
    let limits = Limits { downlink_items_max: 1000, ..Limits::TINY };
    let mut world = World::ruled(seed, 1, 2, limits, POLICIES);
    world.run();
    let rooms = ["drop:r", "tick:r", "drop:s"];
    for n in 0..6 {
        world.connect_to(n % 2, &format!("user{n}"), &rooms);
    }
    for step in 0..300u32 {
        let who = world.rng.below(6);
        match world.rng.below(8) {
            0 => world.clients[who].pace = world.rng.below(200),
            1 => world.clients[who].down_max = 20 + world.rng.below(300),
            2 => _ = world.send_other(who, r#""type":"ping""#),
            _ => {
                let room = rooms[world.rng.below(3)];
                let bytes = world.rng.below(250);
                let echo = !step.is_multiple_of(5);
                let say = Say { bytes, echo, ..Say::default() };
                world.send_message(who, &format!("r:{room}"), say);
            }
        }
        if world.rng.below(3) == 0 {
            world.run();
        }
    }
    for client in &mut world.clients {
        (client.pace, client.down_max) = (usize::MAX, 1 << 20);
    }
    world.run();
    world
}

/// What a member heard of a room agrees with the log: in order, and every hole told with its size.
fn agrees(world: &mut World, who: usize, room: &str, is_exact: bool) -> Result<u64, String> {
    let log = &world.backplane.said;
    let topic = format!("r:{room}");
    let of_room = log.iter().filter(|said| said.topic == topic && (said.echo || said.by != who));
    let place: HashMap<(usize, u64), u64> =
        of_room.enumerate().map(|(at, said)| ((said.by, said.number), at as u64)).collect();
    let (mut next, mut lost) = (0, 0);
    for frame in &world.clients[who].frames {
        let Frame::Text(json) = frame else { continue };
        if json["room_id"] != room {
            continue;
        }
        if json["type"] == "lost" {
            next += json["count"].as_u64().expect("a number");
            lost += json["count"].as_u64().expect("a number");
        } else if json["type"] == "message" {
            let number = json["payload"]["n"].as_u64().expect("a number");
            let by = json["payload"]["by"].as_u64().expect("a number") as usize;
            let at = *place.get(&(by, number)).ok_or(format!("{by} {number} was not for it"))?;
            if at < next || (is_exact && at != next) {
                return Err(format!("expected {next}, heard {at} of {room}"));
            }
            next = at + 1;
        }
    }
    let all = place.len() as u64;
    let is_whole = if is_exact { next == all } else { next <= all };
    if is_whole { Ok(lost) } else { Err(format!("{all} were said in {room}, told of {next}")) }
}

#[test]
fn on_any_day_every_hole_is_told_in_its_place_and_with_its_size() {
    let (mut given_up, mut told, mut conflated) = (0, 0, 0);
    for seed in 0..150 {
        let mut world = day(seed);
        for who in 0..world.clients.len() {
            if world.clients[who].conn.is_none() || world.close_code(who).is_some() {
                continue; // Closed as slow by its answers alone.
            }
            for (room, is_exact) in [("drop:r", true), ("tick:r", false), ("drop:s", true)] {
                told += agrees(&mut world, who, room, is_exact)
                    .unwrap_or_else(|why| panic!("seed {seed}, client {who}: {why}"));
            }
        }
        for tower in &world.towers {
            assert_eq!(tower.shard.counters.outbox_bytes, 0, "seed {seed}");
            given_up += tower.shard.counters.slow_dropped;
            conflated += tower.shard.counters.slow_conflated;
        }
    }
    assert!(given_up > 100 && told > 100 && conflated > 100, "{given_up} {told} {conflated}");
}
