//! Long random days on a few nodes, with channels so small that they run over, links that break,
//! nodes that die, and topics that hardly linger. In the evening everybody must have heard everything
//! once and in order, or must have been told, or was cut off; at night nothing stays behind.

use super::world::{Build, Fleet};
use crate::rng::Rng;
use campanile::policy::limits::Limits;
use std::panic::{AssertUnwindSafe, catch_unwind};

const DAYS: u64 = 300;
const STEPS: usize = 3_000;
const ROOMS: usize = 5;

#[test]
fn random_days_of_a_fleet_end_well() {
    let number = |name: &str| std::env::var(name).ok().map(|n| n.parse::<u64>().expect("a number"));
    if let Some(seed) = number("FLEET_SEED") {
        live(seed);
        return;
    }
    let mut seen = Seen::default();
    for seed in 0..number("FLEET_DAYS").unwrap_or(DAYS) {
        match catch_unwind(AssertUnwindSafe(|| live(seed))) {
            Ok(day) => seen.add(day),
            Err(why) => {
                eprintln!(
                    "this day failed: FLEET_SEED={seed} cargo test --test sim random_days_of_a"
                );
                std::panic::resume_unwind(why);
            }
        }
    }
    println!("{seen:?}");
    let Seen { heard, lost, cut_off, unwanted } = seen;
    assert!(heard > 1000 && lost > 1000 && cut_off > 100 && unwanted > 100, "the days are dull");
}

#[derive(Debug, Default)]
struct Seen {
    heard: u64,
    lost: u64,
    cut_off: u64,
    unwanted: u64,
}

impl Seen {
    fn add(&mut self, other: Seen) {
        self.heard += other.heard;
        self.lost += other.lost;
        self.cut_off += other.cut_off;
        self.unwanted += other.unwanted;
    }
}

struct Day {
    fleet: Fleet,
    rng: Rng,
    breaks: bool,
}

fn live(seed: u64) -> Seen {
    let mut day = Day::new(seed);
    for _ in 0..STEPS {
        day.step();
    }
    day.evening();
    let seen = day.seen();
    day.night();
    seen
}

impl Day {
    fn new(seed: u64) -> Day {
        let mut rng = Rng::new(!seed);
        let roomy = rng.chance(30);
        let limits = Limits {
            ping_interval_ms: 24 * 3_600_000,
            connections_per_shard_max: 100,
            handshakes_max: 100,
            topics_per_shard_max: 100,
            send_batch_max: 3,
            uplink_items_max: 1 + rng.below(6),
            downlink_items_max: 1 + rng.below(6),
            downlink_backlog_bytes_max: if roomy { 1 << 20 } else { rng.below(3) * 300 },
            ..Limits::PRODUCTION
        };
        let build = Build {
            nodes: 2 + rng.below(4),
            shards: 1 + rng.below(3) as u16,
            limits,
            linger_ms: 200 * rng.below(3) as u64,
            per_turn: 1 + rng.below(4),
        };
        let mut fleet = Fleet::new(seed, build);
        for n in 0..16 {
            fleet.client(&format!("user{}", n % 12), &[]);
        }
        let breaks = rng.chance(70);
        Day { fleet, rng, breaks }
    }

    fn step(&mut self) {
        let fleet = &mut self.fleet;
        let who = self.rng.below(fleet.clients.len());
        let at = self.rng.below(fleet.nodes.len());
        let tower = self.rng.below(fleet.nodes[at].towers.len());
        match self.rng.below(100) {
            0..25 => self.client_acts(who),
            25..45 => drop(fleet.read()),
            45..65 => drop(fleet.alive[at] && fleet.turn(at)),
            65..90 => drop(fleet.alive[at] && fleet.visit(at, tower)),
            90..95 => fleet.now_ms += self.rng.below(100) as u64,
            95..97 if self.breaks => fleet.break_link(at),
            _ if fleet.alive[at] && fleet.nodes[at].link.is_none() => fleet.nodes[at].connect(),
            _ if self.breaks
                && self.rng.chance(1)
                && fleet.alive.iter().filter(|a| **a).count() > 1 =>
            {
                fleet.kill(at);
            }
            _ => {}
        }
    }

    fn client_acts(&mut self, who: usize) {
        let fleet = &mut self.fleet;
        if fleet.clients[who].conn.is_none() {
            return fleet.connect(who);
        }
        let room = format!("r{}", self.rng.below(ROOMS));
        let is_in = fleet.clients[who].rooms.iter().any(|(known, _)| *known == room);
        let echo = self.rng.chance(80);
        match self.rng.below(100) {
            0..20 => fleet.join(who, &room),
            20..32 if is_in => fleet.leave(who, &room),
            32..36 => fleet.cut(who),
            36..44 => {
                let user = format!("u:user{}", self.rng.below(12));
                fleet.publish(who, &user, true);
            }
            44..50 => fleet.publish(who, "*", true),
            _ if is_in => fleet.publish(who, &format!("r:{room}"), echo),
            _ => {}
        }
    }

    /// Redis is well, everything arrives.
    fn evening(&mut self) {
        let fleet = &mut self.fleet;
        for at in 0..fleet.nodes.len() {
            if fleet.alive[at] && fleet.nodes[at].link.is_none() {
                fleet.nodes[at].connect();
            }
        }
        fleet.run();
        fleet.judge();
    }

    fn seen(&self) -> Seen {
        let ears = self.fleet.clients.iter().flat_map(|client| &client.ears);
        ears.fold(Seen::default(), |mut seen, (_, ear)| {
            seen.add(Seen { heard: ear.heard, lost: ear.told, cut_off: ear.cut_off, unwanted: 0 });
            seen
        })
        .and_unwanted(self.fleet.nodes.iter().map(|n| n.local.counters.unwanted).sum())
    }

    /// Everybody leaves, and nobody listens for anything any more.
    fn night(&mut self) {
        let fleet = &mut self.fleet;
        (0..fleet.clients.len()).for_each(|who| fleet.cut(who));
        fleet.run();
        fleet.now_ms += 1000;
        fleet.run();
        for (node, alive) in fleet.nodes.iter_mut().zip(&fleet.alive) {
            if !alive {
                continue;
            }
            assert_eq!(fleet.redis.channels_of(node.at), 3, "canary, ingest and everybody");
            assert_eq!(node.local.interest.count(), 1);
            assert_eq!(node.local.backlog_bytes(), 0);
            for it in &mut node.towers {
                it.shard.measure();
                let counters = &it.shard.counters;
                assert_eq!((counters.topics, counters.members), (0, 0));
                assert_eq!(it.shard.frames_waiting(), 0);
            }
        }
    }
}

impl Seen {
    fn and_unwanted(mut self, unwanted: u64) -> Seen {
        self.unwanted = unwanted;
        self
    }
}
