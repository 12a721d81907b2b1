//! Counts by key, in a table of atomics that all shards share.
//!
//! A key is a keyed hash. Its low bits choose a window of eight words, one cache line; its high half
//! is the tag by which its word is found there. A word has the tag and both counts, so a count
//! changes by one compare-and-swap, and a word whose counts fall to zero is free again with the same
//! step: nothing is ever cleared up.
//!
//! ```text
//!   word   63 … 32   31 … 20       19 … 0
//!          tag       handshakes    connections
//! ```
//!
//! Two shards that add the same new key at once, while another key leaves, may each take a word of
//! their own. What is compared with a limit is the sum of both, and each is emptied by those who
//! leave, so nothing is lost.
//!
//! Two keys with one tag in one window share a count, which only makes a limit stricter for both. The
//! hash has a random key per process, so nobody can choose a neighbour.
//!
//! Invariant: a key that finds no free word in its window is not counted, and the caller learns of it:
//! a full table refuses nobody.

use crate::link::shares::key::KeyHash;
use std::sync::atomic::{AtomicU64, Ordering};

/// Words of a window.
const WINDOW: usize = 8;
const CONNECTION: u64 = 1;
const CONNECTIONS_MASK: u64 = (1 << 20) - 1;
const HANDSHAKE: u64 = 1 << 20;
const HANDSHAKES_MASK: u64 = ((1 << 12) - 1) << 20;
const TAG_MASK: u64 = !0 << 32;

/// The most connections that a word can count.
pub const COUNTED_CONNECTIONS_MAX: u64 = CONNECTIONS_MASK;
/// The most handshakes that a word can count.
pub const COUNTED_HANDSHAKES_MAX: u64 = HANDSHAKES_MASK >> 20;

/// Both counts of a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Its connections, those in their handshake included.
    pub connections: u64,
    /// Its connections that are in their handshake.
    pub handshakes: u64,
}

/// One cache line of words.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Window([AtomicU64; WINDOW]);

/// The table. Its size is fixed.
#[derive(Debug)]
pub struct CountTable {
    windows: Box<[Window]>,
}

impl CountTable {
    /// A table for about so many keys at a time.
    pub fn new(keys: usize) -> CountTable {
        // Half full, hardly a window overflows.
        let windows = (2 * keys).div_ceil(WINDOW).next_power_of_two();
        CountTable { windows: (0..windows).map(|_| Window::default()).collect() }
    }

    /// What is counted of a key.
    pub fn counts(&self, key: KeyHash) -> Counts {
        let tag = tag(key);
        let words = self.window(key).0.iter().map(|word| word.load(Ordering::Relaxed));
        words.filter(|word| word & TAG_MASK == tag).fold(Counts::default(), |all, word| Counts {
            connections: all.connections + (word & CONNECTIONS_MASK),
            handshakes: all.handshakes + ((word & HANDSHAKES_MASK) >> 20),
        })
    }

    /// Adds to the counts of a key. `false`: there is no room for it, it is not counted.
    #[must_use]
    pub fn add(&self, key: KeyHash, more: Counts) -> bool {
        let window = self.window(key);
        let of_key = |word: u64| word & TAG_MASK == tag(key);
        let is_free = |word: u64| word == 0;
        // Its own word first; what other shards do to the window in between is found by looking again.
        for _ in 0..WINDOW {
            if update(window, of_key, |word| plus(word, more))
                || update(window, is_free, |_| plus(tag(key), more))
            {
                return true;
            }
            if !window.0.iter().any(|word| is_free(word.load(Ordering::Relaxed))) {
                return update(window, of_key, |word| plus(word, more));
            }
        }
        false
    }

    /// Takes from the counts of a key. What was not counted is not taken.
    pub fn remove(&self, key: KeyHash, less: Counts) {
        let window = self.window(key);
        let has = |word: u64| {
            word & TAG_MASK == tag(key)
                && word & CONNECTIONS_MASK >= less.connections
                && (word & HANDSHAKES_MASK) >> 20 >= less.handshakes
        };
        _ = update(window, has, |word| {
            let word = word - less.connections * CONNECTION - less.handshakes * HANDSHAKE;
            Some(if word & !TAG_MASK == 0 { 0 } else { word })
        });
    }

    fn window(&self, key: KeyHash) -> &Window {
        &self.windows[key.0 as usize & (self.windows.len() - 1)]
    }
}

/// The high half of a key; never zero, which is a free word.
fn tag(key: KeyHash) -> u64 {
    (key.0 & TAG_MASK).max(1 << 32)
}

/// A word with more counted; `None`: it is full.
fn plus(word: u64, more: Counts) -> Option<u64> {
    let connections = (word & CONNECTIONS_MASK) + more.connections;
    let handshakes = ((word & HANDSHAKES_MASK) >> 20) + more.handshakes;
    let fits = connections <= COUNTED_CONNECTIONS_MAX && handshakes <= COUNTED_HANDSHAKES_MAX;
    fits.then_some(word & TAG_MASK | handshakes << 20 | connections)
}

/// Changes the first word of a window that is meant. `false`: there is none, or it stays as it is.
fn update(
    window: &Window,
    is_meant: impl Fn(u64) -> bool,
    change: impl Fn(u64) -> Option<u64>,
) -> bool {
    let changed = |word: u64| if is_meant(word) { change(word) } else { None };
    window
        .0
        .iter()
        .any(|word| word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, changed).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    const ONE: Counts = Counts { connections: 1, handshakes: 0 };
    const BEGUN: Counts = Counts { connections: 1, handshakes: 1 };

    fn key(tag: u64, window: u64) -> KeyHash {
        KeyHash(tag << 32 | window)
    }

    #[test]
    fn it_agrees_with_a_map_over_many_operations() {
        let table = CountTable::new(1000);
        let mut model: HashMap<u64, Counts> = HashMap::new();
        let mut seed = 5u64;
        for _ in 0..100_000 {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let number = 1 + (seed >> 33) % 300;
            let key = KeyHash(number.wrapping_mul(0x9E37_79B9_7F4A_7C15));
            let counts = model.entry(number).or_default();
            let step = if seed >> 62 & 1 == 0 { ONE } else { BEGUN };
            if seed >> 63 == 0 {
                assert!(table.add(key, step));
                counts.connections += 1;
                counts.handshakes += step.handshakes;
            } else if counts.connections > 0 && counts.handshakes >= step.handshakes {
                // Who has begun leaves first: there are never more handshakes than connections.
                let step = if counts.handshakes == counts.connections { BEGUN } else { step };
                table.remove(key, step);
                counts.connections -= 1;
                counts.handshakes -= step.handshakes;
            }
            assert_eq!(table.counts(key), *counts);
        }
    }

    #[test]
    fn a_word_is_free_again_when_its_last_connection_has_left() {
        let table = CountTable::new(1);
        for tag in 1..10_000 {
            assert!(table.add(key(tag, 0), BEGUN));
            table.remove(key(tag, 0), BEGUN);
        }
        assert_eq!(table.counts(key(1, 0)), Counts::default());
    }

    #[test]
    fn a_full_window_counts_no_further_key_and_goes_on_with_those_it_has() {
        let table = CountTable::new(1);
        (1..=8).for_each(|tag| assert!(table.add(key(tag, 0), ONE)));
        assert!(!table.add(key(9, 0), ONE));
        assert_eq!(table.counts(key(9, 0)).connections, 0);
        table.remove(key(9, 0), ONE);
        assert!(table.add(key(3, 0), ONE));
        assert_eq!(table.counts(key(3, 0)).connections, 2);
        table.remove(key(5, 0), ONE);
        assert!(table.add(key(9, 0), ONE));
    }

    #[test]
    fn a_full_count_takes_no_more_and_what_was_not_counted_is_not_taken() {
        let table = CountTable::new(1);
        let most = Counts { connections: COUNTED_CONNECTIONS_MAX, handshakes: 0 };
        assert!(table.add(key(1, 0), most));
        assert!(table.add(key(1, 0), ONE), "a second word of the same key");
        assert_eq!(table.counts(key(1, 0)).connections, COUNTED_CONNECTIONS_MAX + 1);
        let table = CountTable::new(1);
        table.remove(key(1, 0), ONE);
        assert_eq!(table.counts(key(1, 0)), Counts::default());
    }

    #[test]
    fn several_threads_that_come_and_go_leave_nothing_behind() {
        let table = CountTable::new(16);
        std::thread::scope(|scope| {
            for thread in 0..4u64 {
                let table = &table;
                scope.spawn(move || {
                    for round in 0..20_000u64 {
                        let key = key(1 + (round * 7 + thread) % 6, 0);
                        if table.add(key, BEGUN) {
                            assert!(table.counts(key).connections > 0, "its own is counted");
                            table.remove(key, Counts { connections: 0, handshakes: 1 });
                            table.remove(key, ONE);
                        }
                    }
                });
            }
        });
        (1..=6).for_each(|tag| assert_eq!(table.counts(key(tag, 0)), Counts::default()));
    }
}
