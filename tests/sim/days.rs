//! Long random days, and the judge judged.

use crate::history::{Fate, Heard, History, Life, Said, Sent, Step};
use crate::rng::Rng;
use crate::world::{Say, World};
use campanile::link::Downlink;
use campanile::metrics::ShardCounters;
use campanile::policy::limits::Limits;
use campanile::protocol::dialect::{Dialect, Encoding};
use campanile::shard::NotNow;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

const DAYS: u64 = 400;
const STEPS: usize = 4_000;
const USERS: [&str; 4] = ["ann", "bob", "cat", ""];
const ROOMS: [&str; 5] = ["a", "b", "c", "d", "a room with \u{e9} and a long name"];

#[test]
fn random_days_end_well() {
    let number = |name: &str| std::env::var(name).ok().map(|n| n.parse::<u64>().expect("a number"));
    if let Some(seed) = number("SIM_SEED") {
        live(seed);
        return;
    }
    for seed in 0..number("SIM_DAYS").unwrap_or(DAYS) {
        if let Err(why) = catch_unwind(AssertUnwindSafe(|| drop(live(seed)))) {
            eprintln!("this day failed: SIM_SEED={seed} cargo test --test sim random_days");
            std::panic::resume_unwind(why);
        }
    }
}

#[test]
fn the_same_seed_is_the_same_day() {
    let day = |seed| {
        let mut day = Day::new(seed);
        day.work(1_000);
        format!("{:?}", day.world.history())
    };
    assert_eq!(day(7), day(7));
    assert_ne!(day(7), day(8));
}

fn live(seed: u64) -> Vec<ShardCounters> {
    let mut day = Day::new(seed);
    day.work(STEPS);
    day.evening();
    day.night();
    day.world.towers.iter().map(|tower| tower.shard.counters.clone()).collect()
}

#[test]
fn the_days_are_not_dull() {
    let counters: Vec<ShardCounters> = (0..100).flat_map(live).collect();
    let of = |field: fn(&ShardCounters) -> u64| counters.iter().map(field).sum::<u64>();
    let all = [
        ("opened", of(|c| c.opened)),
        ("joins", of(|c| c.joins)),
        ("publishes", of(|c| c.publishes)),
        ("deliveries", of(|c| c.deliveries)),
        ("rejected", of(|c| c.requests_rejected)),
        ("stale", of(|c| c.dropped_stale)),
        ("lost", of(|c| c.lost)),
        ("short writes", of(|c| c.sends_short)),
        ("pings", of(|c| c.pings)),
        ("timeouts", of(|c| c.refused_timeout)),
        ("said goodbye", of(|c| c.closed_normal)),
        ("gone", of(|c| c.closed_gone)),
        ("broken", of(|c| c.closed_error)),
        ("protocol", of(|c| c.closed_protocol)),
        ("binary", of(|c| c.closed_unsupported)),
        ("slow", of(|c| c.closed_slow)),
        ("silent", of(|c| c.closed_silent)),
        ("drained", of(|c| c.closed_drain)),
        ("overloaded", of(|c| c.closed_overloaded)),
    ];
    println!("{all:?}");
    for (what, times) in all {
        assert!(times >= 10, "{what} happened {times} times in a hundred days");
    }
}

struct Day {
    world: World,
    rng: Rng,
    nodes: usize,
    calm: bool,
    /// Connections that moved, and why others did not.
    moved: u64,
    not_moved: BTreeMap<NotNow, u64>,
}

impl Day {
    fn new(seed: u64) -> Day {
        let mut rng = Rng::new(!seed);
        let nodes = 1 + rng.below(2);
        let shards = 1 + rng.below(2);
        let calm = rng.chance(30);
        // Calm days reach other limits: nothing is dropped, and rooms are larger than a batch.
        let limits = if calm {
            let limits =
                Limits { connections_per_shard_max: 12, handshakes_max: 12, ..Limits::TINY };
            Limits { topics_per_shard_max: 40, downlink_items_max: 16, ..limits }
        } else {
            let cramped = rng.chance(30);
            Limits { topics_per_shard_max: if cramped { 5 } else { 12 }, ..Limits::TINY }
        };
        let world = World::new(seed, nodes, shards, limits);
        Day { world, rng, nodes, calm, moved: 0, not_moved: BTreeMap::new() }
    }

    fn work(&mut self, steps: usize) {
        for _ in 0..steps {
            self.step();
        }
    }

    fn step(&mut self) {
        let at = self.rng.below(self.world.towers.len());
        let who = self.anyone();
        match self.rng.below(100) {
            0..12 => self.client_acts(),
            12..14 => self.somebody_comes(at),
            14..35 => {
                let piece = if self.rng.chance(20) { 1 + self.rng.below(4) } else { 512 };
                self.with(who, |world, who| world.read(who, piece));
            }
            35..50 => self.with(who, |world, who| world.client_turn(who)),
            50..58 => self.with(who, |world, who| world.flush(who)),
            58..70 => drop(self.world.take_downlink(at)),
            70..80 => drop(self.world.write_on(at)),
            80..97 => self.backplane_moves(at),
            97 => self.somebody_moves(),
            _ => {
                self.world.now_ms += self.rng.below(40) as u64;
                self.world.tick();
            }
        }
    }

    /// Somebody whose socket still has two ends.
    fn anyone(&mut self) -> Option<usize> {
        let clients = self.world.clients.iter().enumerate();
        let here: Vec<usize> = clients.filter(|(_, c)| c.is_here()).map(|(who, _)| who).collect();
        (!here.is_empty()).then(|| *self.rng.pick(&here))
    }

    /// Into another slot of its shard: which shard dropped what is written down.
    fn somebody_moves(&mut self) {
        let Some(who) = self.anyone() else { return };
        let tower = self.world.clients[who].tower;
        match self.world.move_session(who, tower) {
            Ok(()) => self.moved += 1,
            Err(why) => *self.not_moved.entry(why).or_default() += 1,
        }
    }

    fn with(&mut self, who: Option<usize>, act: impl FnOnce(&mut World, usize) -> bool) {
        if let Some(who) = who {
            act(&mut self.world, who);
        }
    }

    fn somebody_comes(&mut self, at: usize) {
        let who = self.world.knock(at);
        if self.rng.chance(5) {
            return; // Never says a word.
        }
        let user = *self.rng.pick(&USERS);
        let rooms = if self.rng.chance(30) { vec![*self.rng.pick(&ROOMS)] } else { Vec::new() };
        let echo = self.rng.chance(5);
        self.world.open(
            who,
            (!user.is_empty()).then_some(user),
            &rooms,
            Encoding::of(if echo { Dialect::Echo } else { Dialect::Native }),
        );
        let client = &mut self.world.clients[who];
        if self.rng.chance(25) {
            client.down_max = 200 + self.rng.below(1500);
            client.pace = 1 + self.rng.below(200);
        }
        client.answers_pings = !self.rng.chance(10);
        client.answers_close = !self.rng.chance(20);
    }

    fn client_acts(&mut self) {
        let Some(who) = self.anyone() else { return };
        let client = &self.world.clients[who];
        let owes_nothing = !self.world.lives[who].is_alive();
        let is_open = !self.world.lives[who].heard.is_empty();
        if client.gone || owes_nothing || !is_open {
            return;
        }
        let world = &mut self.world;
        let room = *self.rng.pick(&ROOMS);
        let say = Say {
            echo: self.rng.chance(70),
            wants_ack: self.rng.chance(50),
            bytes: if self.rng.chance(15) { 600 } else { self.rng.below(40) },
        };
        match self.rng.below(100) {
            0..20 => drop(world.send_join(who, room)),
            20..30 => drop(world.send_leave(who, room)),
            30..65 => drop(world.send_message(who, &format!("r:{room}"), say)),
            65..75 => {
                let user = *self.rng.pick(&USERS[..3]);
                world.send_message(who, &format!("u:{user}"), Say { echo: true, ..say });
            }
            75..80 => drop(world.send_message(who, "*", Say { echo: true, ..say })),
            80..86 => drop(world.send_other(who, r#""type":"ping""#)),
            86..88 => drop(world.send_other(who, r#""type":"history","room_id":"a""#)),
            88..91 => world.send_frame(who, true, 9, b"still there?"),
            91..93 => world.send_text(who, "{not JSON"),
            93..95 => world.send_close(who),
            95..96 => world.end_up(who),
            96..97 => world.vanish(who),
            97..98 => {
                world.say_goodbye(who);
                world.send_frame(who, true, 2, b"binary");
            }
            98..99 => {
                world.say_goodbye(who);
                let garbage: Vec<u8> = (0..20).map(|_| self.rng.next() as u8).collect();
                world.send_bytes(who, &garbage);
            }
            _ => world.clients[who].pace = 0,
        }
    }

    fn backplane_moves(&mut self, at: usize) {
        let node = self.rng.below(self.nodes);
        let (luck, step) = (self.rng.next(), self.world.tick_step());
        let world = &mut self.world;
        let windows = &mut world.windows;
        match self.rng.below(100) {
            0..40 => drop(world.backplane.take(windows, at, luck, step)),
            40..60 => drop(world.backplane.confirm(windows, at)),
            60..85 => drop(world.backplane.deliver(windows, node, step)),
            85..95 => drop(windows[at].push_waiting()),
            95..96 if !self.calm => world.backplane.break_link(windows, node, step),
            _ => world.backplane.mend_link(node),
        }
    }

    /// Everybody reads again, the backplane is well, and all that is owed arrives.
    fn evening(&mut self) {
        for node in 0..self.nodes {
            self.world.backplane.mend_link(node);
        }
        for client in &mut self.world.clients {
            client.pace = usize::MAX;
        }
        self.world.run();
        if let Err(why) = self.world.history().judge() {
            panic!("{why}");
        }
        for (who, client) in self.world.clients.iter().enumerate() {
            assert!(
                !client.is_torn() || !self.world.lives[who].is_alive(),
                "{who} waits for a rest"
            );
        }
    }

    /// Everybody leaves, some without a word, and nothing stays behind.
    fn night(&mut self) {
        for who in 0..self.world.clients.len() {
            // Garbage may have announced a frame that swallows all that follows, a goodbye too.
            self.world.clients[who].answers_pings = false;
            match self.rng.below(4) {
                0 => self.world.send_close(who),
                1 => self.world.end_up(who),
                2 => self.world.vanish(who),
                _ => {}
            }
        }
        if self.rng.chance(30) {
            for at in 0..self.world.towers.len() {
                self.world.say_down(at, Downlink::Drain { over_ms: 700 });
            }
        }
        let limits = self.world.limits;
        self.world.pass(2 * limits.ping_interval_ms + limits.close_timeout_ms + 600);
        assert_eq!(self.world.listened_for(), [""; 0]);
        for tower in &mut self.world.towers {
            tower.shard.measure();
            assert_eq!(tower.shard.connections(), 0);
            let counters = &tower.shard.counters;
            let left = [counters.connections, counters.handshaking, counters.closing];
            assert_eq!(left, [0; 3]);
            let left = [counters.topics, counters.members, counters.outbox_bytes];
            assert_eq!(left, [0; 3]);
            assert_eq!(counters.joins, counters.leaves);
            assert_eq!(tower.shard.frames_waiting(), 0);
            let closed = counters.closed_normal
                + counters.closed_gone
                + counters.closed_protocol
                + counters.closed_too_big
                + counters.closed_unsupported
                + counters.closed_slow
                + counters.closed_stalled
                + counters.closed_silent
                + counters.closed_drain
                + counters.closed_overloaded
                + counters.closed_disconnected
                + counters.closed_error;
            assert_eq!(closed, counters.opened, "every end has one reason");
        }
    }
}

// --- the judge ---

/// Ann (0) and Bob (1) in room `r` on one shard; three messages of Ann's, the second without echo;
/// then one that was lost.
fn true_history() -> History {
    let ok = |id| Heard::Ok { id: Some(id), room: Some("r".into()) };
    let message =
        |number| Heard::Message { topic: "r:r".into(), from: "ann".into(), by: 0, number };
    let join = |id| Sent::Join { id, room: "r".into() };
    let publish = |number| Sent::Publish {
        id: (number == 2).then_some(number),
        topic: "r:r".into(),
        number,
        echo: number != 3,
    };
    let said = |step, number, fate| Said {
        step,
        topic: "r:r".into(),
        by: 0,
        number,
        echo: number != 3,
        fates: BTreeMap::from([(0, fate)]),
    };
    let lost = || Heard::Lost { topic: "r:r".into(), count: 1 };
    let ann = Life {
        user: "ann".into(),
        sent: vec![
            (2, join(1)),
            (11, publish(2)),
            (12, publish(3)),
            (13, publish(4)),
            (14, publish(5)),
        ],
        heard: vec![
            (1, Heard::Welcome),
            (4, ok(1)),
            (30, message(2)),
            (30, Heard::Ok { id: Some(2), room: None }),
            (31, message(4)),
            (32, lost()),
        ],
        ..Life::default()
    };
    let bob = Life {
        user: "bob".into(),
        sent: vec![(3, join(1)), (40, Sent::Leave { id: 2, room: "r".into() })],
        heard: vec![
            (1, Heard::Welcome),
            (5, ok(1)),
            (30, message(2)),
            (31, message(3)),
            (31, message(4)),
            (33, lost()),
            (41, ok(2)),
        ],
        ..Life::default()
    };
    let said = vec![
        said(15, 2, Fate::Written(20)),
        said(16, 3, Fate::Written(21)),
        said(17, 4, Fate::Written(22)),
        said(18, 5, Fate::Dropped(18)),
    ];
    History { lives: vec![ann, bob], said }
}

#[test]
fn the_judge_accepts_what_is_true() {
    true_history().judge().unwrap();
}

/// Corrupts a true history and answers the verdict.
fn refused(corrupt: impl FnOnce(&mut Vec<(Step, Heard)>, &mut Vec<(Step, Heard)>)) -> String {
    let mut history = true_history();
    let [ann, bob] = &mut history.lives[..] else { unreachable!("there are two") };
    corrupt(&mut ann.heard, &mut bob.heard);
    history.judge().expect_err("this is not what happened").lines().next().unwrap().to_owned()
}

#[test]
fn the_judge_refuses_a_message_that_is_moved_doubled_or_taken_away() {
    assert!(refused(|_, bob| bob.swap(2, 3)).contains("out of order"));
    assert!(refused(|_, bob| bob.insert(4, bob[3].clone())).contains("out of order, or twice"));
    for at in 2..5 {
        assert!(refused(|_, bob| drop(bob.remove(at))).contains("never heard"));
    }
}

#[test]
fn the_judge_refuses_what_somebody_must_not_hear() {
    assert!(refused(|ann, bob| ann.insert(3, bob[3].clone())).contains("in spite of echo"));
    assert!(refused(|_, bob| bob.swap(4, 6)).contains("without being in it"));
    assert!(refused(|_, bob| bob.insert(1, (2, bob[3].1.clone()))).contains("without being in it"));
    let forged = |heard: &mut Heard| match heard {
        Heard::Message { from, .. } => *from = "bob".into(),
        other => panic!("{other:?}"),
    };
    assert!(refused(|ann, _| forged(&mut ann[2].1)).contains("is not who sent"));
    assert!(refused(|ann, _| ann.push((50, Heard::Welcome))).contains("second welcome"));
}

#[test]
fn the_judge_refuses_a_loss_that_is_not_told_and_one_that_is_made_up() {
    assert!(refused(|ann, _| drop(ann.remove(5))).contains("1 were lost, it was told of 0"));
    assert!(refused(|_, bob| bob.insert(5, bob[5].clone())).contains("told of 2"));
}

#[test]
fn the_judge_refuses_answers_that_are_missing_doubled_or_untrue() {
    assert!(refused(|ann, _| drop(ann.remove(3))).contains("never answered"));
    assert!(refused(|ann, _| ann.push((50, ann[3].1.clone()))).contains("answered twice"));
    let code = "not_joined".to_owned();
    let untrue = Heard::Error { id: Some(2), code };
    assert!(refused(|ann, _| ann[3].1 = untrue).contains("was sent on"));
    let unasked = Heard::Ok { id: Some(77), room: None };
    assert!(refused(|ann, _| ann.push((50, unasked))).contains("nobody asked"));
}
