//! Sets of partitions: those that a server owns, that have writes, that have to wait.
//!
//! There may be millions of rooms, and always 1024 partitions. So whatever depends on servers is
//! decided for partitions, 64 in a word, and a partition that moves takes its rooms with it.
//!
//! Invariant: a set has no member beyond [`PARTITIONS`].

use crate::backplane::partition::{PARTITIONS, partition};
use crate::ids::TopicName;
use hashbrown::HashMap;
use std::time::Instant;

const WORDS: usize = PARTITIONS / 64;
const _: () = assert!(PARTITIONS.is_multiple_of(64));

/// A set of partitions: one bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct PartitionSet([u64; WORDS]);

impl PartitionSet {
    /// All partitions.
    pub(super) const ALL: PartitionSet = PartitionSet([u64::MAX; WORDS]);

    /// The partition of a topic.
    pub(super) fn of(topic: &TopicName) -> PartitionSet {
        [partition(topic.as_str())].into_iter().collect()
    }

    /// Adds a partition.
    pub(super) fn insert(&mut self, part: u16) {
        self.0[usize::from(part) / 64] |= 1 << (part % 64);
    }

    /// Removes a partition.
    pub(super) fn remove(&mut self, part: u16) {
        self.0[usize::from(part) / 64] &= !(1 << (part % 64));
    }

    /// Whether a partition is in the set.
    pub(super) fn has(&self, part: u16) -> bool {
        self.0[usize::from(part) / 64] & (1 << (part % 64)) != 0
    }

    /// Whether the set is empty.
    pub(super) fn is_empty(&self) -> bool {
        self.0 == [0; WORDS]
    }

    /// The intersection.
    pub(super) fn and(self, other: PartitionSet) -> PartitionSet {
        self.by_words(other, |a, b| a & b)
    }

    /// The union.
    pub(super) fn or(self, other: PartitionSet) -> PartitionSet {
        self.by_words(other, |a, b| a | b)
    }

    /// The difference.
    pub(super) fn without(self, other: PartitionSet) -> PartitionSet {
        self.by_words(other, |a, b| a & !b)
    }

    /// All partitions of the set, ascending.
    pub(super) fn iter(&self) -> impl Iterator<Item = u16> {
        (0..PARTITIONS as u16).filter(|part| self.has(*part))
    }

    /// The first partition of the set from `start` on, cyclically.
    pub(super) fn next_from(&self, start: u16) -> Option<u16> {
        let start = usize::from(start) % PARTITIONS;
        // The word of `start` comes twice: its upper bits first, and its lower bits last.
        (0..=WORDS).find_map(|step| {
            let at = (start / 64 + step) % WORDS;
            let upper = u64::MAX << (start % 64);
            let word = match step {
                0 => self.0[at] & upper,
                WORDS => self.0[at] & !upper,
                _ => self.0[at],
            };
            (word != 0).then(|| (at * 64) as u16 + word.trailing_zeros() as u16)
        })
    }

    fn by_words(mut self, other: PartitionSet, join: impl Fn(u64, u64) -> u64) -> PartitionSet {
        for (word, others) in self.0.iter_mut().zip(other.0) {
            *word = join(*word, others);
        }
        self
    }
}

impl FromIterator<u16> for PartitionSet {
    fn from_iter<I: IntoIterator<Item = u16>>(parts: I) -> PartitionSet {
        let mut set = PartitionSet::default();
        parts.into_iter().for_each(|part| set.insert(part));
        set
    }
}

/// Partitions that wait, each until its own time.
#[derive(Debug, Default)]
pub(super) struct PartitionDelays {
    until: HashMap<u16, Instant>,
    parts: PartitionSet,
}

impl PartitionDelays {
    /// These wait until then, unless they wait longer already.
    pub(super) fn begin(&mut self, parts: &PartitionSet, until: Instant) {
        for part in parts.iter() {
            let known = self.until.entry(part).or_insert(until);
            *known = until.max(*known);
            self.parts.insert(part);
        }
    }

    /// Time passes: partitions whose time has come are released.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        let parts = &mut self.parts;
        self.until.retain(|part, until| {
            let waits = *until > now;
            if !waits {
                parts.remove(*part);
            }
            waits
        });
    }

    /// Until when a partition waits, if it does.
    pub(super) fn until(&self, part: u16) -> Option<Instant> {
        self.until.get(&part).copied()
    }

    /// The partitions that wait.
    pub(super) fn parts(&self) -> PartitionSet {
        self.parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use std::time::Duration;

    proptest! {
        #[test]
        fn a_set_behaves_like_a_set(
            a in proptest::collection::btree_set(0..PARTITIONS as u16, 0..40),
            b in proptest::collection::btree_set(0..PARTITIONS as u16, 0..40),
            start in 0..=PARTITIONS as u16,
        ) {
            let [x, y]: [PartitionSet; 2] = [&a, &b].map(|set| set.iter().copied().collect());
            let same = |parts: PartitionSet, set: BTreeSet<u16>| parts.iter().eq(set);
            prop_assert!(same(x, a.clone()));
            prop_assert!(same(x.and(y), &a & &b));
            prop_assert!(same(x.or(y), &a | &b));
            prop_assert!(same(x.without(y), &a - &b));
            prop_assert!(same(PartitionSet::ALL.without(x).and(x), BTreeSet::new()));
            prop_assert_eq!(x.is_empty(), a.is_empty());
            let start_there = start % PARTITIONS as u16;
            let next = a.range(start_there..).chain(a.range(..start_there)).next().copied();
            prop_assert_eq!(x.next_from(start), next);
            let mut less = x;
            b.iter().for_each(|part| less.remove(*part));
            prop_assert_eq!(less, x.without(y));
        }
    }

    #[test]
    fn each_partition_waits_until_the_latest_time_given() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let [one, two]: [PartitionSet; 2] = [[1].into_iter().collect(), [2].into_iter().collect()];
        let mut waits = PartitionDelays::default();
        waits.begin(&one.or(two), at(3));
        waits.begin(&one, at(5));
        waits.begin(&two, at(1));
        waits.handle_timeout(at(2));
        assert_eq!(waits.parts(), one.or(two));
        assert_eq!([1, 2, 3].map(|part| waits.until(part)), [Some(at(5)), Some(at(3)), None]);
        waits.handle_timeout(at(3));
        assert_eq!(waits.parts(), one);
        waits.handle_timeout(at(5));
        assert_eq!(waits.parts(), PartitionSet::default());
    }
}
