//! Long random days: people who come, go, die, read slowly, say things twice and come back with
//! `since`, in rooms whose histories are too short, on channels that are too small. In the evening
//! all that is owed arrives and the checker looks at the tapes; at night nothing stays behind.

use super::checker::{Day, Promise};
use super::people::{How, People};
use super::tape::{At, Event, Heard, Recovery};
use crate::rng::Rng;
use campanile::link::Downlink;
use campanile::policy::limits::Limits;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

const DAYS: u64 = 400;
const STEPS: usize = 3_000;
const USERS: [&str; 5] = ["ann", "bob", "cat", "dan", "eve"];
const KEPT: [&str; 4] = ["kept:a", "kept:b", "few:a", "deaf:a"];
const PLAIN: [&str; 2] = ["a", "b"];

#[test]
fn in_rooms_that_remember_everybody_hears_everything_or_learns_that_they_did_not() {
    let number = |name: &str| std::env::var(name).ok().map(|n| n.parse::<u64>().expect("a number"));
    if let Some(seed) = number("SIM_SEED") {
        live(seed);
        return;
    }
    let (mut seen, days) = (Seen::new(), number("SIM_DAYS").unwrap_or(DAYS));
    for seed in 0..days {
        match catch_unwind(AssertUnwindSafe(|| live(seed))) {
            Ok(day) => {
                day.into_iter().for_each(|(what, times)| *seen.entry(what).or_default() += times)
            }
            Err(why) => {
                eprintln!("this day failed: SIM_SEED={seed} cargo test --test sim kept::days");
                std::panic::resume_unwind(why);
            }
        }
    }
    println!("{days} days: {seen:?}");
    let dull: Vec<_> =
        WORTH_SEEING.iter().filter(|what| seen.get(**what).is_none_or(|n| *n < 20)).collect();
    assert!(days < DAYS || dull.is_empty(), "the days are dull, there is hardly any {dull:?}");
}

/// How often what happened, as the tapes tell.
type Seen = BTreeMap<String, u64>;

/// What a day's worth of tapes must show, or it proves little.
const WORTH_SEEING: &[&str] = &[
    "recovered none",
    "recovered some",
    "not recovered: epoch",
    "not recovered: trimmed",
    "not recovered: tail_lost",
    "not recovered: too_much",
    "not recovered: not_enabled",
    "lost",
    "lost in a room with history",
    "page",
    "retry of what was said",
    "error overloaded",
    "error not_joined",
    "error too_many_rooms",
    "another epoch while in",
    "alive",
    "dead",
    "moved",
    "not moved: NotSettled",
    "not moved: QuestionUnderWay",
    "not moved: NotHeld",
];

struct Today {
    people: People,
    rng: Rng,
    is_ample: bool,
    restarts: bool,
    /// Connections that moved, and that did not.
    moved: Seen,
}

fn live(seed: u64) -> Seen {
    let mut today = Today::new(seed);
    for _ in 0..STEPS {
        today.step();
    }
    let day = today.evening();
    let judged = day.check();
    if let Err(why) = judged {
        panic!("{why}");
    }
    today.night();
    let mut seen = seen(&day);
    seen.append(&mut today.moved);
    seen
}

impl Today {
    fn new(seed: u64) -> Today {
        let mut rng = Rng::new(!seed);
        let is_ample = rng.chance(50);
        let backlog = *rng.pick(&[0, 600, 2_000, 1 << 20]);
        let limits = Limits {
            connections_per_shard_max: 64,
            handshakes_max: 64,
            topics_per_shard_max: 16,
            rooms_per_connection_max: KEPT.len(),
            outbox_bytes_max: *rng.pick(&[2_048, 16_384]),
            uplink_items_max: 1 + rng.below(6),
            downlink_items_max: 1 + rng.below(6),
            downlink_backlog_bytes_max: backlog,
            send_batch_max: 1 + rng.below(4),
            history_bytes_max: if is_ample { 1 << 20 } else { 1_000 + rng.below(6_000) },
            recovery_bytes_max: *rng.pick(&[600, 1 << 16]),
            ping_interval_ms: 20_000,
            ..Limits::TINY
        };
        let ttl = if is_ample { 300 } else { 1 + rng.below(3) };
        let spaces = format!(
            "kept: history_size=40, history_ttl_s={ttl}; few: history_size=3, history_ttl_s={ttl}; \
             deaf: history_size=5, history_ttl_s={ttl}, recovery=false"
        );
        let shards = 1 + rng.below(3);
        let mut people = People::new(seed, shards, limits, &spaces);
        for n in 0..3 + rng.below(6) {
            people.person(USERS[n % USERS.len()]);
        }
        let restarts = rng.chance(30);
        Today { people, rng, is_ample, restarts, moved: Seen::new() }
    }

    fn step(&mut self) {
        let at = self.rng.below(self.people.world.towers.len());
        let piece = if self.rng.chance(20) { 1 + self.rng.below(4) } else { 512 };
        let who = self.anybody();
        let world = &mut self.people.world;
        match self.rng.below(1000) {
            0..180 => self.somebody_acts(),
            180..350 => drop(who.map(|who| world.read(who, piece))),
            350..500 => drop(who.map(|who| world.client_turn(who))),
            500..560 => drop(who.map(|who| world.flush(who))),
            560..690 => drop(world.take_downlink(at)),
            690..800 => drop(world.write_on(at)),
            800..970 => self.backplane_moves(at),
            970..973 => world.run(), // a quiet moment
            973..978 => drop(who.map(|who| self.moves(who, at))),
            978..998 => {
                world.now_ms += self.rng.below(60) as u64;
                world.tick();
            }
            998 if self.restarts && self.rng.chance(20) => self.people.restart(),
            _ => {
                world.now_ms += 1_000;
                world.tick();
            }
        }
    }

    fn anybody(&mut self) -> Option<usize> {
        let clients = self.people.world.clients.iter().enumerate();
        let here: Vec<usize> = clients.filter(|(_, c)| c.is_here()).map(|(who, _)| who).collect();
        (!here.is_empty()).then(|| *self.rng.pick(&here))
    }

    /// Into another slot, of its shard or of another one.
    fn moves(&mut self, who: usize, to: usize) {
        let world = &mut self.people.world;
        let what = match world.move_session(who, to) {
            Ok(()) => "moved".to_owned(),
            Err(why) => format!("not moved: {why:?}"),
        };
        *self.moved.entry(what).or_default() += 1;
    }

    fn backplane_moves(&mut self, at: usize) {
        let some = 1 + self.rng.below(4);
        let world = &mut self.people.world;
        let node = world.node.as_mut().expect("it is real here");
        if self.rng.chance(55) {
            let taken = node.take(at, some, world.now_ms);
            if taken && world.towers[at].shard.uplink_waiting() > 0 {
                world.visit(at, |_| ());
            }
        } else {
            node.poll(world.now_ms);
        }
    }

    fn somebody_acts(&mut self) {
        let person = self.rng.below(self.people.people.len());
        let Some(who) = self.people.here(person) else {
            return self.come_back(person);
        };
        self.people.collect(who);
        let room = self.room(person);
        let how = How {
            echo: self.rng.chance(75),
            wants_ack: self.rng.chance(70),
            has_key: self.rng.chance(20) && !PLAIN.contains(&room),
            bytes: if self.rng.chance(15) { 300 } else { self.rng.below(40) },
        };
        match self.rng.below(100) {
            0..24 => {
                let since = self.since(person, room);
                self.people.join(who, room, since);
            }
            24..34 => drop(self.people.leave(who, room)),
            34..76 => drop(self.people.publish(who, room, how)),
            76..81 => {
                let number = self.rng.below(100);
                self.people.try_again(who, number, how.echo);
            }
            81..86 => {
                let (since, limit) = (self.since(person, room), self.rng.below(12) as u64);
                let reverse = self.rng.chance(50);
                self.people.ask_history(who, room, since, limit, reverse);
            }
            86..88 => self.go(who),
            88..91 => self.people.world.clients[who].pace = self.rng.below(60),
            _ => self.pipeline(person, who, room),
        }
    }

    /// Much at once, as programs do that wait for nothing.
    fn pipeline(&mut self, person: usize, who: usize, room: &str) {
        for _ in 0..2 + self.rng.below(5) {
            match self.rng.below(5) {
                0..2 => {
                    let since = self.since(person, room);
                    self.people.join(who, room, since);
                }
                2 => drop(self.people.leave(who, room)),
                _ => drop(self.people.publish(who, room, How::default())),
            }
        }
    }

    /// Everybody has a room that they like best.
    fn room(&mut self, person: usize) -> &'static str {
        if self.rng.chance(50) {
            return KEPT[person % KEPT.len()];
        }
        if self.rng.chance(20) { PLAIN[self.rng.below(2)] } else { KEPT[self.rng.below(4)] }
    }

    fn come_back(&mut self, person: usize) {
        let tower = self.rng.below(self.people.world.towers.len());
        let room = self.room(person);
        let url_room = self.rng.chance(20).then_some(room);
        self.people.come(person, tower, url_room);
        let who = self.people.here(person).expect("there is room for everybody");
        let client = &mut self.people.world.clients[who];
        if self.rng.chance(25) {
            client.down_max = 200 + self.rng.below(1_500);
            client.pace = 1 + self.rng.below(200);
        }
        let rooms: Vec<String> = self.people.people[person].memory.keys().cloned().collect();
        for room in rooms {
            if self.rng.chance(60) && url_room != Some(&room[..]) {
                let since = self.since(person, &room);
                self.people.join(who, &room, since);
            }
        }
    }

    /// Mostly what they remember; sometimes what they should not say.
    fn since(&mut self, person: usize, room: &str) -> Option<At> {
        let known = self.people.people[person].memory.get(room).cloned();
        let At { epoch, offset } = known?;
        let some = self.rng.below(8) as u64;
        Some(match self.rng.below(20) {
            0..13 => At { epoch, offset },
            13..16 => At { epoch, offset: offset.saturating_sub(some) },
            16 => At { epoch, offset: offset + 1 + some },
            17 => At { epoch: "17".to_owned(), offset },
            _ => return None,
        })
    }

    fn go(&mut self, who: usize) {
        self.people.goodbye(who);
        let world = &mut self.people.world;
        match self.rng.below(3) {
            0 => world.send_close(who),
            1 => world.end_up(who),
            _ => world.vanish(who),
        }
    }

    /// Everybody reads again and all that is owed arrives. Then somebody asks where every history is.
    fn evening(&mut self) -> Day {
        for client in &mut self.people.world.clients {
            client.pace = usize::MAX;
        }
        self.people.world.run();
        let witness = self.people.person("witness");
        self.people.come(witness, 0, None);
        let who = self.people.here(witness).expect("there is room for everybody");
        for room in KEPT {
            self.people.join(who, room, None);
        }
        self.people.world.run();
        self.people.collect_all();
        let people = &self.people;
        let torn = people.world.clients.iter().zip(&people.tapes);
        assert!(!torn.into_iter().any(|(client, tape)| tape.is_alive && client.is_torn()));
        let finals = people.people[witness].memory.clone();
        assert_eq!(finals.len(), KEPT.len(), "the witness is in every room");
        let plain = PLAIN.map(|room| (room.to_owned(), None));
        let kept = KEPT.map(|room| (room.to_owned(), Some(self.promise(room))));
        Day { tapes: people.tapes.clone(), rooms: kept.into_iter().chain(plain).collect(), finals }
    }

    fn promise(&self, room: &str) -> Promise {
        Promise {
            history_size: match &room[..4] {
                "kept" => 40,
                "few:" => 3,
                _ => 5,
            },
            recovery: !room.starts_with("deaf"),
            is_ample: self.is_ample,
            recovery_bytes_max: self.people.world.limits.recovery_bytes_max,
        }
    }

    /// Everybody leaves, some without a word, and nothing stays behind.
    fn night(&mut self) {
        let world = &mut self.people.world;
        for who in 0..world.clients.len() {
            world.clients[who].answers_pings = false;
            match self.rng.below(4) {
                0 => world.send_close(who),
                1 => world.end_up(who),
                2 => world.vanish(who),
                _ => {}
            }
        }
        for at in 0..world.towers.len() {
            world.visit(at, |shard| shard.handle_downlink(Downlink::Drain { over_ms: 700 }, 0));
            // Nobody who could not move then moves now.
            world.visit(at, |shard| shard.release_held());
        }
        world.pass(3_000);
        let (mut joins, mut leaves) = (0, 0);
        for tower in &mut world.towers {
            tower.shard.measure();
            let counters = &tower.shard.counters;
            assert_eq!((counters.connections, counters.closing, counters.handshaking), (0, 0, 0));
            assert_eq!((counters.topics, counters.members, counters.outbox_bytes), (0, 0, 0));
            assert_eq!(tower.shard.frames_waiting(), 0);
            (joins, leaves) = (joins + counters.joins, leaves + counters.leaves);
        }
        assert_eq!(joins, leaves, "who came in went out");
        let node = world.node.as_mut().expect("it is real here");
        assert_eq!(node.local.interest.count(), 1, "only everybody is listened for");
        assert_eq!(node.local.backlog_bytes(), 0);
        let counters = node.counters(world.now_ms);
        let bytes_max = world.limits.history_bytes_max as u64;
        assert!(
            counters.histories_bytes <= bytes_max,
            "{} bytes of histories",
            counters.histories_bytes
        );
    }
}

fn seen(day: &Day) -> Seen {
    let mut seen = Seen::new();
    let mut saw = |what: String| *seen.entry(what).or_default() += 1;
    for tape in &day.tapes {
        saw(if tape.is_alive { "alive" } else { "dead" }.to_owned());
        let mut names = std::collections::HashSet::new();
        let mut epochs: BTreeMap<&str, &str> = BTreeMap::new();
        for (_, event) in &tape.events {
            match event {
                Event::Publish { name, .. } if !names.insert(*name) => {
                    saw("retry of what was said".to_owned());
                }
                Event::Heard(Heard::Ok { recovery: Some(recovery), .. }) => saw(match recovery {
                    Recovery::Recovered { messages: 0 } => "recovered none".to_owned(),
                    Recovery::Recovered { .. } => "recovered some".to_owned(),
                    Recovery::NotRecovered { why } => format!("not recovered: {why}"),
                }),
                Event::Heard(Heard::Error { code, .. }) => saw(format!("error {code}")),
                Event::Heard(Heard::Lost { room, .. }) if room.contains(':') => {
                    saw("lost in a room with history".to_owned());
                }
                Event::Heard(Heard::Lost { .. }) => saw("lost".to_owned()),
                Event::Heard(Heard::History { .. }) => saw("page".to_owned()),
                Event::Heard(Heard::Message { room, message }) => {
                    let Some(at) = &message.at else { continue };
                    let before = epochs.insert(room, &at.epoch);
                    if before.is_some_and(|before| before != at.epoch) {
                        saw("another epoch while in".to_owned());
                    }
                }
                _ => {}
            }
        }
    }
    seen
}
