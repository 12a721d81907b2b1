//! Token buckets by key, in a table of atomics that all shards share.
//!
//! Windows and tags are those of `count_table.rs`. A word has the tag and the moment at which its
//! bucket is full again. A bucket that is full equals none, so its word may be used by another key:
//! nothing is ever cleared up.
//!
//! ```text
//!   word   63 … 40   39 … 0
//!          tag       full again, in units of 0.1 ms since the table was made: three years
//! ```
//!
//! Invariant: a key that finds no free word is admitted.

use crate::link::shares::key::KeyHash;
use std::sync::atomic::{AtomicU64, Ordering};

const WINDOW: usize = 8;
const TIME_MASK: u64 = (1 << 40) - 1;
const UNITS_PER_S: u64 = 10_000;
const UNITS_PER_MS: u64 = UNITS_PER_S / 1000;

#[derive(Debug, Default)]
#[repr(align(64))]
struct Window([AtomicU64; WINDOW]);

/// The table. Its size is fixed.
#[derive(Debug)]
pub struct RateTable {
    windows: Box<[Window]>,
    /// How long a token takes to come; 0: there is no limit.
    token_units: u64,
    /// How long an empty bucket takes to be full.
    whole_units: u64,
}

impl RateTable {
    /// A table for about so many keys at a time, each with so many tokens a second (at most 10,000; 0:
    /// no limit) and at once.
    pub fn new(keys: usize, per_s: u64, burst: u64) -> RateTable {
        let windows = (2 * keys).div_ceil(WINDOW).next_power_of_two();
        let token_units = UNITS_PER_S.checked_div(per_s).unwrap_or(0);
        RateTable {
            windows: (0..windows).map(|_| Window::default()).collect(),
            token_units,
            whole_units: token_units.saturating_mul(burst.max(1)),
        }
    }

    /// Takes a token of a key, if one is there; `now_ms` is the time since the table was made.
    #[must_use]
    pub fn take(&self, key: KeyHash, now_ms: u64) -> bool {
        if self.token_units == 0 {
            return true;
        }
        let now = now_ms * UNITS_PER_MS;
        let window = &self.windows[key.0 as usize & (self.windows.len() - 1)];
        let tag = key.0 & !TIME_MASK;
        let of_key = |word: u64| word & !TIME_MASK == tag;
        for word in &window.0 {
            let seen = word.load(Ordering::Relaxed);
            if of_key(seen) && !is_full(seen, now) {
                return self.take_from(word, of_key, tag, now);
            }
        }
        let is_free = |word: u64| is_full(word, now);
        for word in &window.0 {
            if is_free(word.load(Ordering::Relaxed)) {
                return self.take_from(word, is_free, tag, now);
            }
        }
        true
    }

    /// Takes a token from one word. Another shard may have changed it since it was read: then this
    /// one token is free.
    fn take_from(
        &self,
        word: &AtomicU64,
        is_meant: impl Fn(u64) -> bool,
        tag: u64,
        now: u64,
    ) -> bool {
        let mut has_token = true;
        let charged = word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |seen| {
            if !is_meant(seen) {
                has_token = true;
                return None;
            }
            let full = if seen & !TIME_MASK == tag { seen & TIME_MASK } else { 0 };
            let full = full.max(now) + self.token_units;
            has_token = full - now <= self.whole_units;
            has_token.then_some(tag | full.min(TIME_MASK))
        });
        charged.is_ok() || has_token
    }
}

fn is_full(word: u64, now: u64) -> bool {
    word & TIME_MASK <= now
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(tag: u64) -> KeyHash {
        KeyHash(tag << 40)
    }

    fn taken(table: &RateTable, key: KeyHash, now_ms: u64, wanted: u64) -> u64 {
        (0..wanted).filter(|_| table.take(key, now_ms)).count() as u64
    }

    #[test]
    fn each_key_has_a_burst_and_then_what_time_brings() {
        let table = RateTable::new(1, 10, 5);
        for tag in 1..=8 {
            assert_eq!(taken(&table, key(tag), 1, 100), 5, "{tag}");
        }
        assert_eq!(taken(&table, key(1), 102, 100), 1);
        assert_eq!(taken(&table, key(2), 402, 100), 4);
        assert_eq!(taken(&table, key(1), 10_000, 100), 5, "no more than the bucket");
    }

    #[test]
    fn a_full_bucket_makes_room_and_a_full_window_refuses_nobody() {
        let table = RateTable::new(1, 10, 5);
        (1..=8).for_each(|tag| assert!(table.take(key(tag), 1)));
        assert_eq!(taken(&table, key(9), 1, 100), 100, "there is no word for it");
        (1..=7).for_each(|tag| assert_eq!(taken(&table, key(tag), 50, 4), 4));
        assert_eq!(taken(&table, key(9), 150, 100), 5, "the eighth was full again");
    }

    #[test]
    fn a_rate_of_zero_limits_nobody() {
        let table = RateTable::new(1, 0, 1);
        assert_eq!(taken(&table, key(1), 1, 1000), 1000);
    }

    #[test]
    fn several_threads_take_no_more_than_the_burst_and_one_each() {
        let table = RateTable::new(1, 1, 1000);
        let all: u64 = std::thread::scope(|scope| {
            let threads = [(); 4].map(|()| scope.spawn(|| taken(&table, key(1), 1, 1000)));
            threads.map(|thread| thread.join().expect("it does not panic")).iter().sum()
        });
        assert!((1000..=1004).contains(&all), "{all}");
    }
}
