//! What is kept for users: brought on return, in order, until it was acknowledged.

use crate::peer::Frame;
use crate::rng::Rng;
use crate::world::World;
use campanile::policy::limits::Limits;
use campanile::policy::namespaces::Namespaces;
use std::sync::Arc;

const SPACES: &str = "@users: history_size=1000; kept: history_size=10, presence=true";

fn world(seed: u64, shards: usize, spaces: &str) -> World {
    let limits = Limits {
        connections_per_shard_max: 100,
        handshakes_max: 100,
        accepts_burst_max: 1000,
        topics_per_shard_max: 100,
        uplink_items_max: 64,
        downlink_items_max: 64,
        outbox_bytes_max: 1 << 18,
        history_bytes_max: 1 << 20,
        recovery_bytes_max: 1 << 17,
        downlink_backlog_bytes_max: 1 << 20,
        ping_interval_ms: 600_000,
        ..Limits::TINY
    };
    let mut world = World::kept(seed, shards, limits, Arc::new(Namespaces::read(spaces).unwrap()));
    world.run();
    world
}

/// `ok 5 true`, `message 4`, `joined`…: what matters here of what somebody hears.
fn brief(frame: &Frame) -> String {
    let Frame::Text(json) = frame else { return format!("{frame:?}") };
    let of_user = json["target_user_id"].is_string();
    match json["type"].as_str() {
        Some("ok") if of_user => {
            let reason = json["reason"].as_str().unwrap_or("");
            let recovered = json["recovered"].as_bool().map_or(String::new(), |is| is.to_string());
            format!("ok {} {recovered} {reason}", json["offset"]).trim_end().to_owned()
        }
        Some("message") if of_user => format!("message {}", json["offset"]),
        Some("error") => json["code"].as_str().unwrap_or("?").to_owned(),
        other => other.unwrap_or("?").to_owned(),
    }
}

fn hears(world: &mut World, who: usize) -> Vec<String> {
    world.heard(who).iter().map(brief).collect()
}

/// The epoch of the user's queue.
fn epoch_of(heard: &[Frame]) -> u64 {
    let of_user = heard.iter().find_map(|frame| match frame {
        Frame::Text(json) if json["target_user_id"].is_string() => json["epoch"].as_str(),
        _ => None,
    });
    of_user.expect("a position").parse().expect("a number")
}

fn messages(range: std::ops::RangeInclusive<u64>) -> Vec<String> {
    range.map(|offset| format!("message {offset}")).collect()
}

fn sends(world: &mut World, who: usize, user: &str, number: u64) {
    let text = format!(r#"{{"target_user_id":"{user}","payload":{{"by":{who},"n":{number}}}}}"#);
    world.send_text(who, &text);
}

fn acks(world: &mut World, who: usize, offset: u64) {
    world.send_text(who, &format!(r#"{{"type":"ack","offset":{offset}}}"#));
}

#[test]
fn who_was_away_hears_what_was_sent_and_only_what_is_not_acknowledged_comes_again() {
    let mut world = world(1, 2, SPACES);
    let bob = world.connect_to(0, "bob", &[]);
    assert_eq!(hears(&mut world, bob), ["welcome", "ok 0"], "there was nothing to recover");
    world.send_close(bob);
    world.run();
    let ann = world.connect_to(0, "ann", &[]);
    (1..=5).for_each(|number| sends(&mut world, ann, "bob", number));
    world.run();
    let bob = world.connect_to(1, "bob", &[]);
    let all = [vec!["welcome".into(), "ok 5 true".into()], messages(1..=5)].concat();
    assert_eq!(hears(&mut world, bob), all);
    acks(&mut world, bob, 3);
    world.run();
    assert_eq!(hears(&mut world, bob), [""; 0], "without an id nobody is answered");
    let other = world.connect_to(0, "bob", &[]);
    let rest = [vec!["welcome".into(), "ok 5 true".into()], messages(4..=5)].concat();
    assert_eq!(hears(&mut world, other), rest, "shared by all connections of the user");
    sends(&mut world, ann, "bob", 6);
    world.run();
    assert_eq!(hears(&mut world, bob), messages(6..=6));
    assert_eq!(hears(&mut world, other), messages(6..=6));
    acks(&mut world, other, 6);
    acks(&mut world, other, 2);
    acks(&mut world, other, 7);
    world.run();
    let third = world.connect_to(1, "bob", &[]);
    assert_eq!(hears(&mut world, third), ["welcome", "ok 6 true"]);
    assert_eq!(world.node.as_mut().unwrap().counters(world.now_ms).acks_ignored, 1);
}

#[test]
fn what_is_gone_is_said() {
    let mut world = world(1, 1, "@users: history_size=3");
    let bob = world.connect_to(0, "bob", &[]);
    let ann = world.connect_to(0, "ann", &[]);
    (1..=5).for_each(|number| sends(&mut world, ann, "bob", number));
    world.run();
    acks(&mut world, bob, 1);
    world.run();
    let again = world.connect_to(0, "bob", &[]);
    let wanted = [vec!["welcome".into(), "ok 5 false trimmed".into()], messages(3..=5)].concat();
    let heard = world.heard(again);
    let before = epoch_of(&heard);
    assert_eq!(heard.iter().map(brief).collect::<Vec<_>>(), wanted);
    // A restart without its memory: another history, and nothing is known of anybody.
    let spaces = Arc::new(Namespaces::read("@users: history_size=3").unwrap());
    world.restart(spaces);
    world.run();
    let ann = world.connect_to(0, "ann", &[]);
    sends(&mut world, ann, "bob", 6);
    world.run();
    for told in ["ok 1", "ok 1 true"] {
        let bob = world.connect_to(0, "bob", &[]);
        let heard = world.heard(bob);
        let epoch = epoch_of(&heard);
        assert!(epoch > before, "{epoch} shows that the queue is another one");
        assert_eq!(heard.iter().map(brief).collect::<Vec<_>>(), ["welcome", told, "message 1"]);
    }
}

#[test]
fn a_user_whose_queue_was_dropped_with_messages_in_it_is_notified_once() {
    // What waits for bob expires while he is away, and then ann has no more room for new queues.
    let mut world = world(1, 1, "@users: history_size=1000, history_ttl_s=1");
    let ann = world.connect_to(0, "ann", &[]);
    let large = "x".repeat(100);
    sends(&mut world, ann, "bob", 1);
    world.run();
    world.pass(1_500);
    for number in 0..10_000 {
        let text = format!(r#"{{"target_user_id":"other-{number}","payload":"{large}"}}"#);
        world.send_text(ann, &text);
        world.run();
    }
    world.heard(ann);
    for told in ["ok 0 false epoch", "ok 0 true"] {
        let bob = world.connect_to(0, "bob", &[]);
        assert_eq!(hears(&mut world, bob), ["welcome", told]);
    }
    let eve = world.connect_to(0, "eve", &[]);
    assert_eq!(hears(&mut world, eve), ["welcome", "ok 0"], "she was never here");
}

#[test]
fn what_is_wrong_is_said_and_who_has_no_name_has_no_queue() {
    let mut world = world(1, 1, SPACES);
    let nobody = world.connect_to(0, "", &[]);
    let bob = world.connect_to(0, "bob", &[]);
    assert_eq!(hears(&mut world, nobody), ["welcome"]);
    world.heard(bob);
    for (who, request, answer) in [
        (nobody, r#"{"type":"ack","offset":0,"id":1}"#, "not_enabled"),
        (bob, r#"{"type":"ack","offset":0,"id":1}"#, "ok"),
        (bob, r#"{"type":"ack","offset":0,"target_user_id":"bob","id":1}"#, "ok"),
        (bob, r#"{"type":"ack","offset":0,"target_user_id":"ann","id":1}"#, "forbidden"),
        (bob, r#"{"target_user_id":"anon-1","payload":1,"key":"k","id":1}"#, "not_enabled"),
        (bob, r#"{"type":"broadcast","payload":1,"key":"k","id":1}"#, "not_enabled"),
        (bob, r#"{"target_user_id":"ann","payload":{"by":0,"n":1},"key":"k","id":1}"#, "ok"),
        (bob, r#"{"target_user_id":"ann","payload":{"by":0,"n":2},"key":"k","id":1}"#, "ok"),
    ] {
        world.send_text(who, request);
        world.run();
        assert_eq!(hears(&mut world, who), [answer], "{request}");
    }
    let ann = world.connect_to(0, "ann", &[]);
    assert_eq!(hears(&mut world, ann), ["welcome", "ok 1", "message 1"], "said once");
}

#[test]
fn who_waits_for_its_queue_is_somebody_all_the_same() {
    let mut world = world(1, 1, SPACES);
    let ann = world.connect_to(0, "ann", &["kept:a"]);
    world.heard(ann);
    world.backplane_sleeps = true;
    let bob = world.connect_to(0, "bob", &["lobby", "kept:a"]);
    world.send_text(bob, r#"{"type":"join","room_id":"third"}"#);
    world.send_text(bob, r#"{"type":"join","room_id":"fourth","id":1}"#);
    world.run();
    assert_eq!(hears(&mut world, bob), ["welcome", "too_many_rooms"]);
    let in_lobby = r#"{"room_id":"lobby","payload":{"by":1,"n":1}}"#;
    world.send_text(bob, in_lobby);
    sends(&mut world, bob, "ann", 2);
    sends(&mut world, bob, "bob", 3);
    world.run();
    world.backplane_sleeps = false;
    world.run();
    let heard = world.heard(ann);
    let from = heard.iter().filter_map(|frame| match frame {
        Frame::Text(json) => json["from"].as_str().or(json["user_id"].as_str()),
        _ => None,
    });
    assert_eq!(from.collect::<Vec<_>>(), ["bob"; 2], "joined, and its message: {heard:?}");
    let heard = hears(&mut world, bob);
    let place = |text: &str| heard.iter().position(|heard| heard == text);
    assert!(place("ok 0") < place("message 1"), "{heard:?}");
    assert!(place("message 1").is_some() && place("message").is_some(), "{heard:?}");
    // And its user's topic is the last one that it leaves.
    world.send_close(bob);
    world.run();
    let counters = &world.towers[0].shard.counters;
    assert_eq!((counters.joins, counters.leaves), (4, 3), "{counters:?}");
    // One that goes before it was admitted leaves nothing behind.
    world.backplane_sleeps = true;
    let zoe = world.connect_to(0, "zoe", &["lobby"]);
    world.vanish(zoe);
    world.run();
    world.backplane_sleeps = false;
    world.run();
    let shard = &mut world.towers[0].shard;
    shard.measure();
    assert_eq!((shard.counters.topics, shard.counters.leaves), (2, 4), "ann and her room");
}

/// One connection of a user, and what it must hear.
struct Device {
    who: usize,
    user: usize,
    /// What was surely acknowledged when it came, and what may have been.
    acked: (u64, u64),
    heard: Vec<u64>,
    told: Option<(u64, bool)>,
}

/// Some users with many devices, and what was sent to them.
struct Life {
    world: World,
    rng: Rng,
    devices: Vec<Device>,
    sent: [u64; 3],
    /// Acknowledged: surely, and as far as anybody has tried.
    acked: [(u64, u64); 3],
    sender: usize,
}

const USERS: [&str; 3] = ["ann", "bob", "cid"];

impl Life {
    fn new(seed: u64) -> Life {
        let mut world = world(seed, 2, SPACES);
        let sender = world.connect_to(0, "sender", &[]);
        for (number, user) in USERS.iter().enumerate() {
            let first = world.connect_to(number % 2, user, &[]);
            world.send_close(first);
        }
        world.run();
        let (sent, acked) = ([0; 3], [(0, 0); 3]);
        Life { world, rng: Rng::new(seed), devices: Vec::new(), sent, acked, sender }
    }

    fn step(&mut self) {
        let user = self.rng.below(3);
        match self.rng.below(10) {
            0 | 1 if self.devices.len() < 20 => {
                let shard = self.rng.below(2);
                let acked = self.acked[user];
                let who = self.world.connect_to(shard, USERS[user], &[]);
                self.devices.push(Device { who, user, acked, heard: Vec::new(), told: None });
            }
            2..=5 => {
                self.sent[user] += 1;
                sends(&mut self.world, self.sender, USERS[user], self.sent[user]);
            }
            6 | 7 if !self.devices.is_empty() => self.acknowledge(),
            8 if !self.devices.is_empty() => {
                let gone = self.rng.below(self.devices.len());
                let device = self.devices.swap_remove(gone);
                self.world.vanish(device.who);
            }
            _ => {
                self.world.backplane_sleeps = !self.world.backplane_sleeps;
                self.settle();
            }
        }
        self.world.run();
        self.listen();
    }

    fn acknowledge(&mut self) {
        let chosen = self.rng.below(self.devices.len());
        let Device { who, user, heard, .. } = &self.devices[chosen];
        let Some(offset) = heard.last().copied() else { return };
        acks(&mut self.world, *who, offset);
        let user = *user;
        self.acked[user].1 = self.acked[user].1.max(offset);
        for device in self.devices.iter_mut().filter(|d| d.user == user && d.told.is_none()) {
            device.acked.1 = device.acked.1.max(offset);
        }
    }

    fn settle(&mut self) {
        self.world.run();
        if !self.world.backplane_sleeps {
            self.acked.iter_mut().for_each(|acked| acked.0 = acked.1);
        }
    }

    fn listen(&mut self) {
        for device in &mut self.devices {
            for frame in self.world.heard(device.who) {
                let Frame::Text(json) = &frame else { continue };
                match json["type"].as_str() {
                    Some("ok") => {
                        let offset = json["offset"].as_u64().expect("it says where");
                        let is_whole = json["recovered"] == true;
                        assert!(device.told.replace((offset, is_whole)).is_none(), "told once");
                    }
                    Some("message") => {
                        assert!(device.told.is_some(), "the position comes first");
                        let offset = json["offset"].as_u64().expect("it has a place");
                        assert_eq!(json["payload"]["n"], offset, "in the order of sending");
                        let last = device.heard.last();
                        assert!(last.is_none_or(|last| last + 1 == offset), "{last:?}, {offset}");
                        device.heard.push(offset);
                    }
                    _ => {}
                }
            }
        }
    }

    fn check(&mut self) {
        self.world.backplane_sleeps = false;
        self.settle();
        self.listen();
        for Device { user, acked, heard, told, .. } in &self.devices {
            let sent = self.sent[*user];
            assert!(matches!(told, Some((_, true))), "{told:?}");
            let first = heard.first().copied().unwrap_or(sent + 1);
            assert!((acked.0 + 1..=acked.1 + 1).contains(&first), "{acked:?}, {heard:?}, {sent}");
            assert_eq!(heard.last().copied().unwrap_or(sent), sent, "{acked:?}");
        }
    }
}

#[test]
fn on_random_days_every_device_hears_everything_unacknowledged_once_and_in_order() {
    for seed in 0..200 {
        let mut life = Life::new(seed);
        (0..200).for_each(|_| life.step());
        life.check();
    }
}
