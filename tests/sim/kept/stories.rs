//! Small days with a title: one behaviour each, of rooms that keep what is said.

use super::checker::{Day, Promise};
use super::people::{How, People};
use super::tape::At;
use crate::bare::{Bare, limits};
use campanile::backplane::envelope;
use campanile::backplane::history::log::{MessageLog, Retention, RunRequest};
use campanile::backplane::history::recent_runs::RecentRuns;
use campanile::backplane::message::Message;
use campanile::ids::{Position, TopicName};
use campanile::link::{Downlink, HistoryError, RecoveryReply, Unrecoverable, Uplink};
use campanile::policy::limits::Limits;
use campanile::policy::namespaces::Namespaces;
use campanile::protocol::Recovery;
use campanile::protocol::dialect::Encoding;
use campanile::protocol::run::Run;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

const ROOM: &str = "kept:a";
const SPACES: &str = "kept: history_size=100";
const PROMISE: Promise =
    Promise { history_size: 100, recovery: true, is_ample: true, recovery_bytes_max: 1 << 16 };

/// One shard, room for many, writes of three members each.
fn building() -> People {
    let limits = Limits {
        connections_per_shard_max: 50,
        handshakes_max: 50,
        topics_per_shard_max: 50,
        outbox_bytes_max: 1 << 16,
        history_bytes_max: 1 << 20,
        recovery_bytes_max: 1 << 16,
        downlink_backlog_bytes_max: 1 << 20,
        send_batch_max: 3,
        downlink_items_max: 32,
        ..Limits::TINY
    };
    People::new(1, 1, limits, SPACES)
}

/// Somebody who is here, and their connection.
fn arrive(people: &mut People, user: &str) -> usize {
    let person = people.person(user);
    people.come(person, 0, None);
    people.world.run();
    let who = people.here(person).expect("there is room");
    texts(people, who);
    who
}

fn arrive_in(people: &mut People, user: &str) -> usize {
    let who = arrive(people, user);
    people.join(who, ROOM, None);
    people.world.run();
    assert_eq!(texts(people, who), [format!("ok {ROOM}")]);
    who
}

fn texts(people: &mut People, who: usize) -> Vec<String> {
    people.world.heard_texts(who)
}

/// What everybody says and hears while the backplane does nothing.
fn asleep(people: &mut People, act: impl FnOnce(&mut People)) {
    people.world.backplane_sleeps = true;
    act(people);
    people.world.run();
    people.world.backplane_sleeps = false;
}

fn topics(people: &mut People) -> u64 {
    let shard = &mut people.world.towers[0].shard;
    shard.measure();
    shard.counters.topics
}

/// Everything was as promised. Whoever is asked last says where the room ended.
fn check(people: &mut People) {
    let witness = people.person("witness");
    people.come(witness, 0, None);
    let who = people.here(witness).expect("there is room");
    people.join(who, ROOM, None);
    people.world.run();
    people.collect_all();
    let day = Day {
        tapes: people.tapes.clone(),
        rooms: BTreeMap::from([(ROOM.to_owned(), Some(PROMISE))]),
        finals: people.people[witness].memory.clone(),
    };
    if let Err(why) = day.check() {
        panic!("{why}");
    }
}

/// Where somebody's memory of the room is.
fn memory(people: &mut People, who: usize) -> At {
    people.collect(who);
    let person = people.people.iter().find(|person| person.at == Some(who));
    person.expect("who is here is somebody").memory[ROOM].clone()
}

#[test]
fn a_join_that_is_left_before_its_answer_is_answered_and_lets_nobody_in() {
    let mut people = building();
    let (ann, bob) = (arrive(&mut people, "ann"), arrive_in(&mut people, "bob"));
    asleep(&mut people, |people| {
        people.join(ann, ROOM, None);
        people.leave(ann, ROOM);
    });
    assert_eq!(texts(&mut people, ann), ["error not_joined", "ok kept:a"]);
    people.publish(bob, ROOM, How::default());
    people.world.run();
    assert_eq!(texts(&mut people, ann), [""; 0]);
    check(&mut people);
}

#[test]
fn a_room_left_before_its_join_was_answered_does_not_stay() {
    let mut people = building();
    let ann = arrive(&mut people, "ann");
    asleep(&mut people, |people| {
        people.join(ann, ROOM, None);
        people.leave(ann, ROOM);
    });
    assert_eq!(topics(&mut people), 2, "the answer is on its way, so the room is here");
    people.world.run();
    assert_eq!(topics(&mut people), 1);
    let node = people.world.node.as_ref().expect("it is real here");
    assert_eq!(node.local.interest.count(), 2, "everybody, and ann");
}

#[test]
fn a_join_whose_connection_dies_before_its_answer_leaves_nothing_behind() {
    let mut people = building();
    let ann = arrive(&mut people, "ann");
    asleep(&mut people, |people| {
        people.join(ann, ROOM, None);
        people.world.run();
        people.goodbye(ann);
        people.world.vanish(ann);
    });
    assert!(people.world.clients[ann].gone);
    people.world.run();
    assert_eq!(topics(&mut people), 0);
    let node = people.world.node.as_ref().expect("it is real here");
    assert_eq!(node.local.interest.count(), 1);
    check(&mut people);
}

#[test]
fn a_join_is_answered_though_the_deadline_of_who_had_its_place_before_passes() {
    let mut people = building();
    let ann = arrive(&mut people, "ann");
    people.goodbye(ann);
    people.world.send_close(ann);
    people.world.run();
    assert!(people.world.clients[ann].gone);
    let bob = arrive(&mut people, "bob");
    let deadline_ms = people.world.limits.close_timeout_ms;
    asleep(&mut people, |people| {
        people.join(bob, ROOM, None);
        people.world.pass(deadline_ms + 100);
    });
    people.world.run();
    assert_eq!(texts(&mut people, bob), ["ok kept:a"]);
    check(&mut people);
}

#[test]
fn a_member_who_joins_again_with_since_has_left_and_come_back() {
    let mut people = building();
    let (ann, bob) = (arrive_in(&mut people, "ann"), arrive_in(&mut people, "bob"));
    let came = memory(&mut people, bob);
    for _ in 0..3 {
        people.publish(ann, ROOM, How::default());
        people.world.run();
    }
    assert_eq!(people.world.heard_numbers(bob), [2, 3, 4]);
    people.join(bob, ROOM, Some(came));
    people.publish(ann, ROOM, How::default());
    people.world.run();
    assert_eq!(people.world.heard_numbers(bob), [2, 3, 4, 5]);
    let counters = &people.world.towers[0].shard.counters;
    assert_eq!((counters.joins, counters.leaves), (3, 1));
    check(&mut people);
}

#[test]
fn a_member_who_joins_again_without_since_learns_where_the_history_is_and_nothing_else_happens() {
    let mut people = building();
    let (ann, bob) = (arrive_in(&mut people, "ann"), arrive_in(&mut people, "bob"));
    asleep(&mut people, |people| {
        people.publish(ann, ROOM, How::default());
        people.world.run();
        people.join(bob, ROOM, None);
    });
    people.world.run();
    assert_eq!(texts(&mut people, bob), ["message kept:a", "ok kept:a"]);
    let counters = &people.world.towers[0].shard.counters;
    assert_eq!((counters.joins, counters.leaves), (2, 0));
    check(&mut people);
}

#[test]
fn a_second_join_while_the_first_waits_is_refused_and_the_first_is_answered() {
    let mut people = building();
    let ann = arrive(&mut people, "ann");
    asleep(&mut people, |people| {
        people.join(ann, ROOM, None);
        people.join(ann, ROOM, None);
    });
    assert_eq!(texts(&mut people, ann), ["error overloaded"]);
    people.world.run();
    assert_eq!(texts(&mut people, ann), ["ok kept:a"]);
    check(&mut people);
}

/// TINY lets a connection be in three rooms.
#[test]
fn who_asks_where_a_history_is_may_still_be_in_as_many_rooms_as_others() {
    let mut people = building();
    let ann = arrive_in(&mut people, "ann");
    people.join(ann, "kept:b", None);
    people.world.run();
    texts(&mut people, ann);
    asleep(&mut people, |people| {
        people.join(ann, ROOM, None);
        people.join(ann, "kept:c", None);
        people.join(ann, "kept:d", None);
    });
    assert_eq!(texts(&mut people, ann), ["error too_many_rooms"], "the fourth");
    people.world.run();
    assert_eq!(texts(&mut people, ann), ["ok kept:a", "ok kept:c"]);
    check(&mut people);
}

#[test]
fn a_publish_behind_a_join_that_waits_is_accepted_and_heard_by_who_said_it() {
    let mut people = building();
    let ann = arrive(&mut people, "ann");
    asleep(&mut people, |people| {
        people.join(ann, ROOM, None);
        people.publish(ann, ROOM, How::default());
    });
    assert_eq!(texts(&mut people, ann), [""; 0]);
    people.world.run();
    // How it ended is an answer, which may overtake.
    let mut heard = texts(&mut people, ann);
    heard.sort();
    assert_eq!(heard, ["message kept:a", "ok", "ok kept:a"]);
    assert_eq!(memory(&mut people, ann).offset, 1);
    check(&mut people);
}

#[test]
fn the_room_stays_when_its_last_member_leaves_while_somebody_waits_for_it() {
    let mut people = building();
    let (ann, bob) = (arrive_in(&mut people, "ann"), arrive(&mut people, "bob"));
    asleep(&mut people, |people| {
        people.publish(ann, ROOM, How::default());
        people.world.run();
        people.join(bob, ROOM, None);
        people.world.run();
        people.leave(ann, ROOM);
    });
    assert_eq!(topics(&mut people), 3, "ann, bob and the room");
    people.world.run();
    assert_eq!(texts(&mut people, bob), ["ok kept:a"], "what was said before is not for him");
    people.publish(bob, ROOM, How::default());
    people.world.run();
    assert_eq!(people.world.heard_numbers(bob).len(), 1);
    check(&mut people);
    people.leave(bob, ROOM);
    people.world.run();
    assert_eq!(topics(&mut people), 4, "ann, bob, and the witness in the room");
}

/// Forty members in writes of three, and more is said while they are being written to.
#[test]
fn a_newcomer_to_a_long_room_hears_nothing_that_waited_before_them() {
    let mut people = building();
    let ann = arrive_in(&mut people, "ann");
    for n in 0..39 {
        let who = arrive(&mut people, &format!("user{n}"));
        people.join(who, ROOM, None);
    }
    people.world.run();
    let eve = arrive(&mut people, "eve");
    people.world.backplane_sleeps = true;
    for _ in 0..2 {
        people.publish(ann, ROOM, How::default());
    }
    people.world.run();
    turn(&mut people);
    while people.world.take_downlink(0) {} // each visit makes one write of three
    people.publish(ann, ROOM, How::default());
    people.join(eve, ROOM, None);
    people.publish(ann, ROOM, How::default());
    while people.world.read(ann, 1000) {}
    while people.world.read(eve, 1000) {}
    turn(&mut people);
    while people.world.take_downlink(0) {}
    assert!(people.world.towers[0].shard.has_sends(), "not all of it is written");
    people.world.backplane_sleeps = false;
    people.world.run();
    let heard = people.world.heard_numbers(eve);
    assert!(heard.len() <= 1, "only what was said last may be for her: {heard:?}");
    check(&mut people);
}

fn turn(people: &mut People) {
    let now_ms = people.world.now_ms;
    let node = people.world.node.as_mut().expect("it is real here");
    while node.take(0, usize::MAX, now_ms) | node.poll(now_ms) {}
}

/// A storm of those who come back: what they missed is put together once and never copied.
#[test]
fn a_thousand_newcomers_who_missed_the_same_share_one_buffer() {
    let spaces = Arc::new(Namespaces::read(SPACES).expect("it is well written"));
    let mut bare = Bare::with(limits(), spaces);
    let keep = Retention { messages_max: 100, age_max: Duration::from_secs(60) };
    let (mut log, now) = (MessageLog::new(7, 0), Instant::now());
    let (from, info, except, conflate_key, key) = (None, None, None, None, None);
    let message =
        Message { topic: "r:kept:a", from, info, payload: b"1", except, conflate_key, key };
    let body = envelope::to_bytes(&message);
    let topic = TopicName::room(ROOM);
    let reader = RunRequest { topic: &topic, encoding: Encoding::NATIVE, bytes_max: 1 << 20 };
    let mut runs = RecentRuns::new(1 << 20);
    for _ in 0..100 {
        log.push(body.clone(), keep, now);
    }
    let since = Position { epoch: 7, offset: 10 };
    for n in 0..1000 {
        let socket_key = bare.open(&format!("user{n}"), &[]);
        let join =
            format!(r#"{{"type":"join","room_id":"{ROOM}","since":{{"epoch":"7","offset":10}}}}"#);
        bare.read(socket_key, 1, join.as_bytes());
    }
    let mut asked = Vec::new();
    while let Some(item) = bare.shard.poll_uplink() {
        match item {
            Uplink::Join { at, .. } => bare.shard.handle_downlink(Downlink::Joined { at }, 0),
            Uplink::Recover(ask) => asked.push(ask),
            other => panic!("nobody said {other:?}"),
        }
    }
    assert_eq!(asked.len(), 1000);
    while bare.write(|_, _| ()) > 0 {}
    for ask in asked {
        assert_eq!(ask.since, Some(since));
        let missed = log.since(since, reader, &mut runs).expect("all of it is stored");
        let recovery = Recovery::Recovered { messages: missed.messages };
        let (at, conn, ticket) = (ask.at, ask.conn, ask.ticket);
        let position = log.position();
        let answer = RecoveryReply { at, conn, ticket, position, recovery, missed };
        bare.shard.handle_downlink(Downlink::Recovered(Box::new(answer)), 0);
    }
    let mut buffers: HashMap<*const u8, usize> = HashMap::new();
    let wanted = log.since(since, reader, &mut runs).expect("all of it is stored").bytes;
    bare_writes(&mut bare, |buf| {
        if buf.len() == wanted.len() {
            *buffers.entry(buf.as_ptr()).or_default() += 1;
        }
    });
    assert_eq!(buffers, HashMap::from([(wanted.as_ptr(), 1000)]));
}

/// Every buffer that is written until nothing waits.
fn bare_writes(bare: &mut Bare, mut told: impl FnMut(&bytes::Bytes)) {
    while bare.write(|_, buf| told(buf)) > 0 {}
}

/// Answers all that is asked of histories, and what `wire` hears then.
fn answered(bare: &mut Bare, wire: usize, at: Option<Position>) -> String {
    let mut heard = String::new();
    loop {
        while let Some(item) = bare.shard.poll_uplink() {
            match item {
                Uplink::Join { at, .. } => bare.shard.handle_downlink(Downlink::Joined { at }, 0),
                Uplink::Recover(ask) => {
                    let (conn, ticket, missed) = (ask.conn, ask.ticket, Run::default());
                    let recovery = Recovery::NotAsked;
                    let answer = |position| {
                        let at = ask.at;
                        let told = RecoveryReply { at, conn, ticket, position, recovery, missed };
                        Downlink::Recovered(Box::new(told))
                    };
                    let no =
                        Unrecoverable { at: ask.at, conn, ticket, why: HistoryError::Unreadable };
                    let no = Downlink::Unrecoverable(no);
                    bare.shard.handle_downlink(at.map_or(no, answer), 0);
                }
                _ => {}
            }
        }
        let hear = |to, buf: &bytes::Bytes| {
            if to == wire {
                heard.push_str(&String::from_utf8_lossy(buf));
            }
        };
        if bare.write(hear) == 0 {
            bare.shard.check();
            return heard;
        }
    }
}

/// Something else stands where a history was, and nobody can say where it is.
#[test]
fn nobody_is_let_into_a_room_whose_history_cannot_be_read_and_nobody_is_put_out() {
    const NO: &str = r#""code":"backplane_unavailable""#;
    let spaces = Arc::new(Namespaces::read(SPACES).expect("it is well written"));
    let mut bare = Bare::with(limits(), spaces);
    let [ann, bob] = ["ann", "bob"].map(|user| bare.open(user, &[]));
    let join = format!(r#"{{"type":"join","room_id":"{ROOM}","id":1}}"#);
    let since = join.replace("\"id\":1", r#""id":1,"since":{"epoch":"7","offset":1}"#);
    let leave = join.replace("join", "leave");
    let mut does = |wire: usize, what: &str, at| {
        bare.read(wire, 1, what.as_bytes());
        answered(&mut bare, wire, at)
    };
    let here = Some(Position { epoch: 7, offset: 2 });
    assert!(does(ann, &join, here).contains(r#""offset":2"#));
    let refused = does(bob, &join, None);
    assert!(refused.contains(NO) && refused.contains(r#""id":1"#), "{refused}");
    assert!(does(bob, &leave, None).contains("not_joined"));
    assert!(does(ann, &join, None).contains(NO), "she only asks");
    assert!(does(ann, &leave, None).contains(r#""type":"ok""#), "and was in it all the time");
    assert!(does(bob, &join, here).contains(r#""offset":2"#), "mended");
    assert!(does(bob, &since, None).contains(NO), "as if he had left and came back");
    assert!(does(bob, &leave, None).contains("not_joined"));
    bare.cut(bob);
    bare.cut(ann);
    bare.shard.check();
}
