//! Members who acknowledge what they hear: who lags, and when.

use crate::bare::{Bare, limits};
use crate::peer::Frame;
use crate::world::{Say, World};
use campanile::ids::Position;
use campanile::link::{
    AckReport, Delivery, Downlink, Inspect, RecoveryReply, ReplyTo, RoomReport, Uplink,
};
use campanile::policy::limits::Limits;
use campanile::policy::namespaces::Namespaces;
use campanile::protocol::run::Run;
use campanile::protocol::{Recovery, Unrecovered};
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
    let reply = ReplyTo::Call(Box::new(move |report| tell.send(report).expect("it is waited for")));
    let question = Downlink::Inspect(Box::new(Inspect::Room { room: ROOM.to_owned(), reply }));
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

/// One shard, whose backplane says what a story wants it to.
struct Told {
    bare: Bare,
}

impl Told {
    fn new() -> Told {
        Told { bare: Bare::with(limits(), Arc::new(Namespaces::read(SPACES).unwrap())) }
    }

    /// Somebody who acknowledges comes in; the backplane answers so.
    fn joins(&mut self, user: &str, since: &str, position: Position, recovery: Recovery) -> usize {
        let socket_key = self.bare.open(user, &[]);
        let join = format!(r#"{{"type":"join","room_id":"{ROOM}","ack":true{since}}}"#);
        self.bare.read(socket_key, 1, join.as_bytes());
        while let Some(item) = self.bare.shard.poll_uplink() {
            if let Uplink::Recover(ask) = item {
                let (at, conn, ticket) = (ask.at, ask.conn, ask.ticket);
                let missed = Run::default();
                let answer = RecoveryReply { at, conn, ticket, position, recovery, missed };
                self.bare.topics.insert(ROOM.to_owned(), at);
                let answer = Downlink::Recovered(Box::new(answer));
                self.bare.shard.handle_downlink(answer, self.bare.now_ms);
            }
        }
        self.bare.settle();
        socket_key
    }

    /// A message, as the backplane hands it out.
    fn hears(&mut self, Position { epoch, offset }: Position) {
        let text = format!(
            r#"{{"type":"message","room_id":"{ROOM}","payload":1,"epoch":"{epoch}","offset":{offset}}}"#
        );
        let frame = crate::peer::server_frame(&text).into();
        let (to, position) = (self.bare.topics[ROOM], Some(Position { epoch, offset }));
        let delivery = Delivery { to, frame, except: None, position, conflate_key: None };
        self.bare.shard.handle_downlink(Downlink::DeliverWith(Box::new(delivery)), 0);
        self.bare.settle();
    }

    fn acks(&mut self, socket_key: usize, Position { epoch, offset }: Position) {
        let ack =
            format!(r#"{{"type":"ack","room_id":"{ROOM}","epoch":"{epoch}","offset":{offset}}}"#);
        self.bare.read(socket_key, 1, ack.as_bytes());
        self.bare.settle();
    }

    fn passes(&mut self, ms: u64) {
        self.bare.now_ms += ms;
        self.bare.shard.handle_timeout(self.bare.now_ms);
        self.bare.settle();
    }

    /// How many lag, and what all have acknowledged.
    fn report(&mut self) -> (usize, Option<u64>) {
        let (tell, told) = mpsc::channel();
        let reply =
            ReplyTo::Call(Box::new(move |report| tell.send(report).expect("it is waited for")));
        let question = Downlink::Inspect(Box::new(Inspect::Room { room: ROOM.to_owned(), reply }));
        self.bare.shard.handle_downlink(question, self.bare.now_ms);
        let acks = told.recv().expect("it answers at once").expect("it is there").acks;
        (acks.lagging, acks.lowest_offset)
    }
}

fn at(epoch: u64, offset: u64) -> Position {
    Position { epoch, offset }
}

/// After a failover a history goes on under another epoch, and what is brought back of it says the
/// one under which it was said.
#[test]
fn what_was_said_before_a_failover_is_brought_back_after_it_and_can_be_acknowledged() {
    let mut told = Told::new();
    let since = r#","since":{"epoch":"7","offset":4}"#;
    let brought = Recovery::Recovered { messages: 3 };
    let ann = told.joins("ann", since, at(9, 7), brought);
    assert_eq!(told.report(), (0, Some(4)));
    told.acks(ann, at(7, 6));
    assert_eq!(told.report(), (0, Some(6)));
    told.acks(ann, at(7, 7));
    told.passes(1600 + LATE_MS);
    assert_eq!(told.report(), (0, Some(7)));
    // Who was brought nothing of the earlier one has nothing of it to acknowledge.
    let bob = told.joins("bob", "", at(9, 7), Recovery::NotAsked);
    told.hears(at(9, 8));
    told.acks(bob, at(7, 8));
    told.acks(ann, at(9, 8));
    assert_eq!(told.report(), (0, Some(7)));
}

#[test]
fn who_could_not_be_told_where_the_history_is_does_not_lag_behind_what_was_said_before() {
    let mut told = Told::new();
    let ann = told.joins("ann", "", at(9, 7), Recovery::NotAsked);
    told.hears(at(9, 8));
    told.acks(ann, at(9, 8));
    told.passes(1600 + LATE_MS);
    let unknown = Recovery::NotRecovered(Unrecovered::Overload);
    let since = r#","since":{"epoch":"9","offset":4}"#;
    let bob = told.joins("bob", since, at(0, 0), unknown);
    told.passes(1600 + LATE_MS);
    assert_eq!(told.report(), (0, Some(8)), "bob was handed nothing");
    told.hears(at(9, 9));
    told.acks(ann, at(9, 9));
    told.passes(1600 + LATE_MS);
    assert_eq!(told.report(), (1, Some(8)));
    told.acks(bob, at(9, 9));
    assert_eq!(told.report(), (0, Some(9)));
}
