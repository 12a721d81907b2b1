//! Connections that are taken out of one slot and put into another, of their shard or another one.
//! Nobody may notice: the random days move people too, and their checkers know nothing of it.

use crate::peer::Frame;
use crate::world::World;
use campanile::ids::TopicId;
use campanile::link::Downlink;
use campanile::policy::limits::Limits;
use campanile::policy::namespaces::Namespaces;
use campanile::protocol::dialect::{Dialect, Encoding};
use campanile::shard::{NotNow, Session};
use serde_json::Value;
use std::sync::Arc;

type Refused = (Box<Session>, NotNow);

impl World {
    /// Moves a client as a process does that hands its connections on. Where it is not possible as
    /// things are, nothing has changed but what it takes to try again later.
    pub fn move_session(&mut self, who: usize, to: usize) -> Result<(), NotNow> {
        let from = self.clients[who].tower;
        if from != to {
            self.listen_for(who, to)?;
        }
        if self.node.is_some() {
            self.bring_level(&[from, to]);
        }
        let conn = self.clients[who].conn.ok_or(NotNow::Gone)?;
        let tower = &mut self.towers[from];
        let session = match tower.shard.take_session(conn, &tower.batch) {
            Ok(session) => Box::new(session),
            Err(why) => {
                if why == NotNow::NotSettled {
                    self.visit(from, |shard| shard.settle());
                }
                return Err(why);
            }
        };
        self.clients[who].conn = None;
        let put = self.put(who, to, session);
        let put = put.map_err(|(session, why)| {
            self.put(who, from, session).expect("it was there a moment ago");
            why
        });
        for at in [from, to] {
            self.visit(at, |shard| shard.release_held());
        }
        put
    }

    fn put(&mut self, who: usize, to: usize, session: Box<Session>) -> Result<(), Refused> {
        let mut session = session;
        let conn = loop {
            match self.towers[to].shard.put_session(session, who as u32, self.now_ms) {
                Ok(conn) => break conn,
                Err((back, NotNow::RoundUnderWay)) => {
                    session = back;
                    assert!(self.write_on(to), "a round that nobody has to write");
                }
                Err(refused) => return Err(refused),
            }
        };
        let client = &mut self.clients[who];
        // A write that was begun there is kept whole here.
        let biggest = self.towers[client.tower].biggest_write_bytes;
        let here = &mut self.towers[to].biggest_write_bytes;
        *here = biggest.max(*here);
        (client.tower, client.conn) = (to, Some(conn));
        self.lives[who].tower = to;
        Ok(())
    }

    /// Lets a shard listen for the topics of a client of another one.
    fn listen_for(&mut self, who: usize, to: usize) -> Result<(), NotNow> {
        let client = &self.clients[who];
        let conn = client.conn.ok_or(NotNow::Gone)?;
        let names = self.towers[client.tower].shard.session_topics(conn);
        let hold = |shard: &mut campanile::shard::Shard| -> Option<Vec<TopicId>> {
            names.iter().map(|name| shard.hold_topic(name, Encoding::NATIVE)).collect()
        };
        let held = self.visit(to, hold).ok_or(NotNow::Full)?;
        let shard = &self.towers[to].shard;
        let is_ready = held.iter().all(|at| shard.is_topic_ready(*at));
        if is_ready { Ok(()) } else { Err(NotNow::NotHeld) }
    }

    /// All that the backplane has for these shards reaches them, and nothing newer.
    fn bring_level(&mut self, shards: &[usize]) {
        loop {
            let mut moved = false;
            self.node.as_mut().expect("it is real here").local.flush();
            for at in shards {
                let items: Vec<_> = std::iter::from_fn(|| self.pop_downlink(*at)).collect();
                moved |= !items.is_empty();
                let now_ms = self.now_ms;
                self.visit(*at, |shard| {
                    items.into_iter().for_each(|(item, _)| shard.handle_downlink(item, now_ms));
                });
            }
            if !moved {
                return;
            }
        }
    }

    /// Moves a client as soon as it can be moved.
    pub fn surely_move(&mut self, who: usize, to: usize) {
        for _ in 0..20 {
            match self.move_session(who, to) {
                Ok(()) => return,
                Err(NotNow::NotSettled | NotNow::NotHeld | NotNow::QuestionUnderWay) => {
                    self.run();
                }
                Err(why) => panic!("{why:?}"),
            }
        }
        panic!("it cannot be moved")
    }
}

// --- stories ---

const SPACES: &str = "kept: history_size=100, presence=true, acks=true, ack_timeout_ms=2000; \
                      drops: slow_consumer=drop_oldest, slow_bytes_max=4096";
const ROOM: &str = "kept:a";
const LIMITS: Limits = Limits {
    connections_per_shard_max: 20,
    handshakes_max: 20,
    accepts_burst_max: 100,
    topics_per_shard_max: 20,
    rooms_per_connection_max: 10,
    uplink_items_max: 64,
    downlink_items_max: 64,
    message_bytes_max: 1 << 12,
    outbox_bytes_max: 1 << 16,
    history_bytes_max: 1 << 20,
    recovery_bytes_max: 1 << 15,
    downlink_backlog_bytes_max: 1 << 20,
    ping_interval_ms: 600_000,
    ..Limits::TINY
};

/// Two shards; Ann, who will move, and Bob, who stays, in some rooms of the first one.
fn two_shards(rooms: &[&str]) -> (World, usize, usize) {
    let spaces = Arc::new(Namespaces::read(SPACES).unwrap());
    let mut world = World::kept(1, 2, LIMITS, spaces);
    world.run();
    let ann = world.connect_to(0, "ann", rooms);
    let bob = world.connect_to(0, "bob", rooms);
    world.run();
    world.heard(ann);
    world.heard(bob);
    (world, ann, bob)
}

fn say(world: &mut World, who: usize, room: &str, number: u64) {
    let pad = "x".repeat(500);
    let payload = format!(r#"{{"by":{who},"n":{number},"pad":"{pad}"}}"#);
    world.send_text(who, &format!(r#"{{"room_id":"{room}","payload":{payload}}}"#));
    world.run();
}

/// Its socket takes no more than so many bytes.
fn stall(world: &mut World, who: usize, bytes: usize) {
    world.clients[who].down_max = bytes;
    world.clients[who].pace = 0;
}

fn go_on(world: &mut World, who: usize) {
    world.clients[who].down_max = usize::MAX;
    world.clients[who].pace = usize::MAX;
    world.run();
    assert!(!world.clients[who].is_torn());
}

/// What was heard since the last call: numbers of messages, and types with what they answer.
fn heard(world: &mut World, who: usize) -> Vec<String> {
    let brief = |frame: &Frame| {
        let Frame::Text(json) = frame else { return format!("{frame:?}") };
        match json["type"].as_str().unwrap_or("?") {
            "message" => format!("message {}", json["payload"]["n"]),
            "lost" => format!("lost {}", json["count"]),
            kind => match &json["id"] {
                Value::Null => kind.to_owned(),
                id => format!("{kind} {id}"),
            },
        }
    };
    world.heard(who).iter().map(brief).collect()
}

fn connections(world: &mut World) -> Vec<(u64, u64)> {
    let of = |tower: &mut crate::world::Tower| {
        tower.shard.measure();
        (tower.shard.counters.connections, tower.shard.counters.topics)
    };
    world.towers.iter_mut().map(of).collect()
}

#[test]
fn a_connection_moves_to_another_shard_and_hears_and_says_all_that_it_would_have() {
    let (mut world, ann, bob) = two_shards(&[ROOM, "plain"]);
    world.surely_move(ann, 1);
    assert_eq!(connections(&mut world), [(1, 3), (1, 3)], "with its user and its rooms");
    say(&mut world, bob, ROOM, 1);
    say(&mut world, bob, "plain", 2);
    say(&mut world, ann, ROOM, 3);
    let all = ["message 1", "message 2", "message 3"];
    assert_eq!(heard(&mut world, ann), all);
    assert_eq!(heard(&mut world, bob), all, "nobody left, and nobody came");
    world.surely_move(ann, 0);
    say(&mut world, bob, ROOM, 4);
    assert_eq!(heard(&mut world, ann), ["message 4"]);
    assert_eq!(connections(&mut world), [(2, 4), (0, 0)], "the other shard listens no more");
    world.send_close(ann);
    world.send_close(bob);
    world.run();
    assert_eq!(connections(&mut world), [(0, 0), (0, 0)]);
}

#[test]
fn half_a_frame_and_half_a_message_move_with_the_connection_that_sent_them() {
    let (mut world, ann, bob) = two_shards(&["plain"]);
    let text = r#"{"room_id":"plain","payload":{"by":0,"n":7}}"#;
    let (first, rest) = text.split_at(20);
    world.send_frame(ann, false, 1, first.as_bytes());
    world.run();
    world.surely_move(ann, 1);
    world.send_frame(ann, true, 0, rest.as_bytes());
    let end = world.clients[ann].up.split_off(3);
    world.run();
    world.surely_move(ann, 0);
    world.clients[ann].up.extend(end);
    world.run();
    assert_eq!(heard(&mut world, bob), ["message 7"]);
}

#[test]
fn a_frame_of_which_the_socket_has_taken_half_goes_on_where_it_stopped() {
    let (mut world, ann, bob) = two_shards(&["plain"]);
    stall(&mut world, ann, 700);
    (1..4).for_each(|number| say(&mut world, bob, "plain", number));
    let waiting = world.towers[0].shard.counters.outbox_bytes;
    assert!(waiting > 500, "{waiting} bytes wait");
    world.surely_move(ann, 1);
    say(&mut world, bob, "plain", 4);
    assert_eq!(world.towers[0].shard.counters.outbox_bytes, 0);
    go_on(&mut world, ann);
    assert_eq!(heard(&mut world, ann), ["message 1", "message 2", "message 3", "message 4"]);
}

#[test]
fn what_gave_way_before_the_move_and_after_it_is_told_in_one_sum() {
    let (mut world, ann, bob) = two_shards(&["drops:a"]);
    stall(&mut world, ann, 100);
    (1..21).for_each(|number| say(&mut world, bob, "drops:a", number));
    world.surely_move(ann, 1);
    (21..31).for_each(|number| say(&mut world, bob, "drops:a", number));
    go_on(&mut world, ann);
    let all = heard(&mut world, ann);
    let numbers: Vec<u64> =
        all.iter().filter_map(|it| it.strip_prefix("message ")?.parse().ok()).collect();
    let lost: Vec<u64> =
        all.iter().filter_map(|it| it.strip_prefix("lost ")?.parse().ok()).collect();
    assert_eq!(numbers.len() as u64 + lost.iter().sum::<u64>(), 30, "{all:?}");
    assert!(numbers.is_sorted() && lost.len() == 1 && numbers.last() == Some(&30), "{all:?}");
}

#[test]
fn a_join_under_way_is_asked_again_and_answered_once() {
    let (mut world, ann, bob) = two_shards(&["plain"]);
    (1..4).for_each(|number| say(&mut world, bob, "kept:b", number));
    world.send_text(bob, r#"{"type":"join","room_id":"kept:b","id":1}"#);
    world.run();
    (1..4).for_each(|number| say(&mut world, bob, "kept:b", number));
    heard(&mut world, bob);
    world.listen_for(ann, 1).unwrap_err();
    world.run();
    world.backplane_sleeps = true;
    let since = r#"{"epoch":"1","offset":0}"#;
    let text = format!(r#"{{"type":"join","room_id":"kept:b","since":{since},"id":9}}"#);
    world.send_text(ann, &text);
    world.send_text(ann, r#"{"type":"join","room_id":"fresh","id":10}"#);
    world.run();
    assert_eq!(heard(&mut world, ann), [""; 0]);
    let held = world.move_session(ann, 1);
    world.backplane_sleeps = false;
    if held == Err(NotNow::NotHeld) {
        // The room that it just joined has to be listened for over there.
        world.surely_move(ann, 1);
    }
    world.run();
    let all = heard(&mut world, ann);
    let count = |what: &str| all.iter().filter(|it| it.starts_with(what)).count();
    assert_eq!((count("ok 9"), count("ok 10"), count("error")), (1, 1, 0), "{all:?}");
    say(&mut world, bob, "kept:b", 4);
    assert_eq!(heard(&mut world, ann), ["message 4"]);
}

#[test]
fn what_a_paused_connection_said_is_used_where_it_has_moved_to() {
    let (mut world, ann, bob) = two_shards(&[ROOM]);
    (0..30).for_each(|number| say(&mut world, bob, ROOM, number));
    heard(&mut world, ann);
    stall(&mut world, ann, 100);
    let ask = |world: &mut World, id: u64| {
        let text = format!(r#"{{"type":"history","room_id":"{ROOM}","id":{id}}}"#);
        world.send_text(ann, &text);
    };
    (0..40).for_each(|id| ask(&mut world, id));
    world.run();
    world.towers[0].shard.measure();
    assert_eq!(world.towers[0].shard.counters.connections_paused, 1);
    for why in [NotNow::NotHeld, NotNow::NotSettled, NotNow::QuestionUnderWay] {
        assert_eq!(world.move_session(ann, 1), Err(why));
        world.run();
    }
    world.clients[ann].down_max = usize::MAX;
    world.clients[ann].pace = usize::MAX;
    // All its questions are answered, but nobody has come to what it said behind them.
    for _ in 0..100 {
        world.backplane_turn(0);
        world.take_downlink(0);
        world.write_on(0);
        world.flush(ann);
        world.client_turn(ann);
    }
    world.towers[0].shard.measure();
    let unused = world.towers[0].shard.counters.input_paused_bytes;
    assert!(unused > 0);
    assert_eq!(world.move_session(ann, 1), Ok(()));
    (40..42).for_each(|id| ask(&mut world, id));
    world.run();
    let wanted: Vec<String> = (0..42).map(|id| format!("history {id}")).collect();
    assert_eq!(heard(&mut world, ann), wanted);
}

#[test]
fn who_acknowledges_goes_on_where_it_was_and_who_is_there_is_there_still() {
    let (mut world, ann, bob) = two_shards(&[]);
    for (who, ack) in [(ann, true), (bob, false)] {
        let text =
            format!(r#"{{"type":"join","room_id":"{ROOM}","ack":{ack},"info":{who},"id":1}}"#);
        world.send_text(who, &text);
        world.run();
    }
    (1..4).for_each(|number| say(&mut world, bob, ROOM, number));
    world.send_text(ann, &format!(r#"{{"type":"ack","room_id":"{ROOM}","offset":2,"id":2}}"#));
    world.run();
    heard(&mut world, ann);
    heard(&mut world, bob);
    world.surely_move(ann, 1);
    world.send_text(bob, &format!(r#"{{"type":"presence","room_id":"{ROOM}","id":2}}"#));
    world.run();
    let list = world.heard(bob);
    let [Frame::Text(list)] = &list[..] else { panic!("{list:?}: nobody came or left") };
    assert_eq!(list["users"].as_array().map(Vec::len), Some(2), "{list}");
    world.send_text(ann, &format!(r#"{{"type":"ack","room_id":"{ROOM}","offset":3,"id":3}}"#));
    world.run();
    assert_eq!(heard(&mut world, ann), ["ok 3"], "it is a member that acknowledges");
    world.send_close(ann);
    world.pass(60_000);
    assert_eq!(heard(&mut world, bob), ["left"]);
}

#[test]
fn a_connection_of_another_dialect_moves_as_one_of_it() {
    let (mut world, _, bob) = two_shards(&["plain"]);
    let who = world.knock(0);
    world.open(who, Some("lin"), &["plain"], Encoding::of(Dialect::Lines));
    world.run();
    world.heard(who);
    world.surely_move(who, 0);
    say(&mut world, bob, "plain", 1);
    let all = world.heard(who);
    assert!(matches!(&all[..], [Frame::Binary(_)]), "{all:?}");
}

#[test]
fn whoever_cannot_be_moved_now_stays_what_it_is() {
    let (mut world, ann, bob) = two_shards(&["plain"]);
    let knocks = world.knock(0);
    assert_eq!(world.move_session(knocks, 0), Err(NotNow::Handshaking));
    world.backplane_sleeps = true;
    world.send_text(ann, r#"{"room_id":"plain","payload":{"by":0,"n":1},"id":1}"#);
    world.run();
    assert_eq!(world.move_session(ann, 0), Err(NotNow::NotSettled));
    world.run();
    assert_eq!(world.move_session(ann, 0), Err(NotNow::NotSettled), "nothing has ended it");
    world.backplane_sleeps = false;
    world.run();
    assert_eq!(world.move_session(ann, 0), Ok(()));
    assert_eq!(heard(&mut world, ann), ["message 1", "ok 1"]);
    world.visit(0, |shard| shard.handle_downlink(Downlink::Drain { over_ms: 60_000 }, 0));
    assert_eq!(world.move_session(ann, 0), Err(NotNow::Draining));
    world.send_close(bob);
    world.clients[bob].answers_close = false;
    world.run();
    assert_eq!(world.move_session(bob, 0), Err(NotNow::Gone));
}
