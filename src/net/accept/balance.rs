//! Which share of the next connections each shard should get, so that all hold equally many.
//!
//! Chance alone is not even: of 100,000 connections, each of 60 shards gets 1667, but the luckiest 7 %
//! more. So the shares follow the counts by water-filling: as many connections as came since the last
//! look are distributed over all shards up to one common level. What a shard gets of that is its share
//! of the next ones.
//!
//! What is counted lags behind what the kernel has given out, because arrived is not yet accepted.
//! So each shard is counted with what it was promised and has not taken ([`LoadNote::in_flight`]); as
//! a share only holds on average, that decays within some looks. And
//! a shard that takes nothing for long is promised no more than an even share: it is short of time,
//! not of connections.
//!
//! Invariant: pure; counts and times are arguments.

use crate::link::load_table::{LoadNote, ShardLoad};
use std::time::{Duration, Instant};

/// Shares are looked at no more often, however many connections come. The shorter, the less goes
/// wrong between a change and the answer to it; a new program for 60 shards takes
/// 24 µs, for two 6.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(3);

/// What is thought to be on its way loses an eighth with each look.
const FORGET: u64 = 8;
/// Off the mean by so much of it, or by so many, is even enough: the kernel gets no new program.
const TOLERANCE: (u64, u64) = (128, 4);
/// Fractions of a connection count, in what is thought to be on its way.
const PARTS: u64 = 16;
/// One in so many goes to all shards alike, also to those that are promised nothing else: they have to
/// notice when the one that is promised nearly all stands still.
const TRICKLE: u64 = 128;
/// What one shard can take in a millisecond, about.
const TAKES_PER_MS: u64 = 50;
/// So many expected, and none taken, is no chance any more.
const SILENCE: u64 = 16;
/// So many taken by the others are enough to tell from how many one should have taken.
const EVIDENCE: u64 = 64;

/// The result of a look: for the kernel, and for the next look.
#[derive(Debug)]
pub(super) struct BalanceStep {
    /// The shares from now on; `None`: as they are.
    pub shares: Option<Vec<u64>>,
    /// What is estimated to be on its way to each shard.
    pub in_flight: Vec<u64>,
}

/// Looks at what the shards hold now, `note` being of the last look.
pub(super) fn look(counts: &[ShardLoad], note: &LoadNote, now: Instant) -> BalanceStep {
    let shards = counts.len() as u64;
    let came = Arrivals::since(note, counts);
    let in_flight = came.in_flight(note);
    let held: Vec<u64> = counts
        .iter()
        .zip(&in_flight)
        .map(|(count, in_flight)| count.held + in_flight / PARTS)
        .collect();
    let mean = counts.iter().map(|count| count.held).sum::<u64>() / shards;
    let tolerance = (mean / TOLERANCE.0).max(TOLERANCE.1);
    if held.iter().all(|held| held.abs_diff(mean) <= tolerance) {
        let even = vec![1; counts.len()];
        return BalanceStep { shares: (note.shares != even).then_some(even), in_flight };
    }
    let ahead = came.all.max(shards / 2).max(4);
    let passed_ms = (now.saturating_duration_since(note.at).as_millis() as u64).max(1);
    let mosts: Vec<u64> = (0..counts.len())
        .map(|shard| {
            if came.is_stuck(shard, note) {
                return ahead / shards;
            }
            // At the pace at which connections come, what it would get until the next look.
            let can_take = (TAKES_PER_MS * passed_ms).max(2 * came.each[shard]);
            (ahead * can_take).checked_div(came.all).unwrap_or(u64::MAX)
        })
        .collect();
    let trickle = (ahead / shards).max(1);
    let poured = water_fill(&held, &mosts, ahead);
    let shares = poured.iter().map(|share| TRICKLE * share + trickle).collect();
    BalanceStep { shares: Some(shares), in_flight }
}

/// Distributes `ahead` connections over what the shards hold, no more to each than it may get: what
/// does not fit there raises the level of the others.
fn water_fill(held: &[u64], mosts: &[u64], ahead: u64) -> Vec<u64> {
    let mut poured = vec![0; held.len()];
    let mut open: Vec<usize> = (0..held.len()).collect();
    let mut left = ahead;
    loop {
        let level = water_level(open.iter().map(|shard| held[*shard]).collect(), left);
        let before = open.len();
        open.retain(|&shard| {
            let share = level.saturating_sub(held[shard]);
            poured[shard] = share.min(mosts[shard]);
            if share > mosts[shard] {
                left = left.saturating_sub(mosts[shard]);
            }
            share <= mosts[shard]
        });
        if open.len() == before {
            return poured;
        }
    }
}

/// The level of `ahead` connections distributed over these steps.
fn water_level(mut steps: Vec<u64>, ahead: u64) -> u64 {
    steps.sort_unstable();
    let (mut below, mut level) = (0, 0);
    for (lower, step) in (0..).zip(steps) {
        // Room up to this step, over all that are lower.
        if step * lower - below >= ahead {
            break;
        }
        below += step;
        level = (below + ahead).div_ceil(lower + 1);
    }
    level
}

/// Connections taken since the note was written.
struct Arrivals {
    each: Vec<u64>,
    all: u64,
    promised: u64,
}

impl Arrivals {
    fn since(note: &LoadNote, counts: &[ShardLoad]) -> Arrivals {
        let before = note.counts.iter();
        let each: Vec<u64> =
            counts.iter().zip(before).map(|(now, then)| now.taken - then.taken).collect();
        Arrivals { all: each.iter().sum(), each, promised: note.shares.iter().sum() }
    }

    /// What was promised and not taken yet, in `PARTS` of a connection.
    fn in_flight(&self, note: &LoadNote) -> Vec<u64> {
        let each = self.each.iter().zip(&note.shares).zip(&note.in_flight);
        each.map(|((took, share), in_flight)| {
            let promised = (PARTS * self.all * share).checked_div(self.promised).unwrap_or(0);
            (in_flight - in_flight / FORGET + promised).saturating_sub(PARTS * took)
        })
        .collect()
    }

    /// Whether a shard has taken much less than it should have, by the numbers of the others.
    fn is_stuck(&self, shard: usize, note: &LoadNote) -> bool {
        let took = self.each[shard];
        let others = self.all - took;
        let share = note.shares[shard];
        let expected = (share * others).checked_div(self.promised - share).unwrap_or(0);
        (took == 0 && expected >= SILENCE) || (others >= EVIDENCE && took < expected / 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::accept::bpf;

    /// Shards, a kernel that asks the program for every connection, and time.
    struct Group {
        counts: Vec<ShardLoad>,
        /// Given out and not accepted yet.
        backlogs: Vec<u64>,
        /// Connections that each shard accepts in a turn.
        pace: Vec<u64>,
        note: LoadNote,
        program: bpf::Program,
        now: Instant,
        ms: u64,
        /// How often each shard has its turn.
        cycle_ms: u64,
        random: u64,
    }

    impl Group {
        fn new(shards: usize) -> Group {
            let now = Instant::now();
            let counts = vec![ShardLoad::default(); shards];
            let note = LoadNote {
                at: now,
                counts: counts.clone(),
                shares: vec![1; shards],
                in_flight: vec![0; shards],
            };
            Group {
                backlogs: vec![0; shards],
                pace: vec![TAKES_PER_MS; shards],
                program: bpf::by_share(&note.shares),
                counts,
                note,
                now,
                ms: 0,
                cycle_ms: 1,
                random: 0x9e37_79b9_7f4a_7c15,
            }
        }

        fn chance(&mut self) -> u32 {
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            (self.random >> 32) as u32
        }

        /// So many come, at so many a millisecond; then the backlogs empty.
        fn come(&mut self, connections: u64, per_ms: u64) {
            let mut left = connections;
            while left > 0 || self.backlogs.iter().any(|backlog| *backlog > 0) {
                self.pass_ms(left.min(per_ms));
                left -= left.min(per_ms);
            }
        }

        /// A millisecond, in which so many come.
        fn pass_ms(&mut self, come: u64) {
            for _ in 0..come {
                let random = self.chance();
                self.backlogs[bpf::tests::run(&self.program, random, 0) as usize] += 1;
            }
            self.now += Duration::from_millis(1);
            self.ms += 1;
            let any = self.accept();
            if any && self.now - self.note.at >= LOOK_EVERY {
                self.look();
            }
        }

        fn accept(&mut self) -> bool {
            let mut any = false;
            for (shard, backlog) in self.backlogs.iter_mut().enumerate() {
                // Shards that share cores have their turns one after the other.
                let has_turn = (self.ms + 7 * shard as u64).is_multiple_of(self.cycle_ms);
                let taken = if has_turn { self.pace[shard].min(*backlog) } else { 0 };
                *backlog -= taken;
                self.counts[shard].held += taken;
                self.counts[shard].taken += taken;
                any |= taken > 0;
            }
            any
        }

        fn look(&mut self) {
            let BalanceStep { shares, in_flight } = look(&self.counts, &self.note, self.now);
            let shares = shares.unwrap_or_else(|| self.note.shares.clone());
            self.program = bpf::by_share(&shares);
            let counts = self.counts.clone();
            self.note = LoadNote { at: self.now, counts, shares, in_flight };
        }

        /// How far the worst is off the mean, in thousandths of it.
        fn imbalance(&self) -> u64 {
            let held = || self.counts.iter().map(|count| count.held);
            let mean = held().sum::<u64>() / self.counts.len() as u64;
            let worst = held().map(|held| held.abs_diff(mean)).max().unwrap();
            worst * 1000 / mean
        }
    }

    #[test]
    fn a_hundred_thousand_spread_evenly_over_any_number_of_shards() {
        for shards in [2, 3, 16, 60] {
            for per_ms in [5, 30, 50] {
                let mut world = Group::new(shards);
                world.come(100_000, per_ms);
                assert!(world.imbalance() <= 15, "{shards}, {per_ms}: {}", world.imbalance());
            }
        }
    }

    #[test]
    fn what_is_counted_late_does_not_make_it_swing() {
        for cycle_ms in [5, 15, 40] {
            let mut world = Group::new(60);
            world.cycle_ms = cycle_ms;
            world.pace = vec![1000; 60];
            world.come(100_000, 30);
            assert!(world.imbalance() <= 20, "{cycle_ms}: {}", world.imbalance());
        }
    }

    #[test]
    fn where_one_shards_clients_leave_as_many_new_ones_go_there() {
        for shards in [2, 4, 60] {
            let mut world = Group::new(shards);
            world.come(100_000, 30);
            let left = std::mem::take(&mut world.counts[1].held);
            world.now += LOOK_EVERY;
            world.look();
            world.come(left, 20);
            assert!(world.imbalance() <= 30, "{shards}: {}", world.imbalance());
        }
    }

    #[test]
    fn a_shard_that_stands_still_is_not_sent_everybody() {
        let mut world = Group::new(4);
        world.come(40_000, 30);
        // It has lost all its clients, and has no time for new ones.
        world.counts[2].held = 0;
        world.pace[2] = 0;
        (0..1000).for_each(|_| world.pass_ms(30));
        let waiting = world.backlogs[2];
        assert!(waiting < 15_000, "of 30000, {waiting} wait for a shard that takes none");
    }

    #[test]
    fn a_slow_shard_does_not_draw_those_whom_it_cannot_take() {
        let mut world = Group::new(4);
        world.pace[0] = 2;
        (0..2000).for_each(|_| world.pass_ms(40));
        let sent = world.counts[0].taken + world.backlogs[0];
        assert!(sent < 80_000 / 2, "{sent} of 80000 were sent to the slowest of four");
    }

    #[test]
    fn what_is_even_is_left_alone() {
        let now = Instant::now();
        let counts = vec![ShardLoad { held: 1000, taken: 1000 }; 4];
        let (shares, in_flight) = (vec![1; 4], vec![0; 4]);
        let even = LoadNote { at: now, counts: counts.clone(), shares, in_flight };
        assert_eq!(look(&counts, &even, now).shares, None);
        let uneven = LoadNote { shares: vec![1, 2, 1, 1], ..even };
        assert_eq!(look(&counts, &uneven, now).shares, Some(vec![1; 4]), "no more than before");
    }

    #[test]
    fn water_finds_its_level() {
        assert_eq!(water_level(vec![0, 0, 0], 30), 10);
        assert_eq!(water_level(vec![0, 100, 100], 30), 30);
        assert_eq!(water_level(vec![20, 0, 100], 30), 25);
        assert_eq!(water_level(vec![5, 5, 5], 3), 6);
        let all = u64::MAX;
        assert_eq!(water_fill(&[20, 0, 100], &[all; 3], 30), [5, 25, 0]);
        assert_eq!(water_fill(&[20, 0, 100], &[all, 10, all], 30), [20, 10, 0]);
        assert_eq!(water_fill(&[20, 0, 30], &[all, 10, all], 30), [15, 10, 5]);
        assert_eq!(water_fill(&[0, 0], &[1, 2], 30), [1, 2]);
    }
}
