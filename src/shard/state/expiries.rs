//! When the tokens of connections expire: in coarse seconds of the shard's clock, sorted.
//!
//! Each connection that has an expiry has its second in a table, and an entry among those of that
//! second. A token may be replaced by another one: then the table says the new second, and the old
//! entry, which disagrees, means nothing. So does that of a connection that has gone.

use crate::shard::state::tables::{SegmentStack, SegmentTable};
use std::collections::BTreeMap;

/// Entries that are stored at most beyond twice the number of live ones.
pub(in crate::shard) const ENTRIES_SPARE: usize = 1024;

/// In the table: no expiry. Others are one more than the second.
const NONE: u32 = 0;

/// Indices of connections, by the second in which they expire.
type BySecond = BTreeMap<u32, SegmentStack<u32>>;

/// Connections that expire. Seconds since the shard's clock began; beyond 136 years: the last one.
#[derive(Debug, Default)]
pub(in crate::shard) struct Expiries {
    /// By the index of the connection.
    seconds: SegmentTable<u32>,
    /// Those whose clients have received no notice yet, and those that have.
    unnoticed: BySecond,
    noticed: BySecond,
    pub(in crate::shard) entries: usize,
    /// Connections that have an expiry.
    live: usize,
}

impl Expiries {
    /// A connection expires then, whatever was set before. `None`: never.
    pub(in crate::shard) fn set(&mut self, index: u32, second: Option<u64>) {
        let before = self.seconds.get(index).unwrap_or(NONE);
        let Some(second) = second else { return self.remove(index) };
        let second = u32::try_from(second).unwrap_or(u32::MAX).min(u32::MAX - 1);
        if before == second + 1 {
            return; // Its entry is there, and perhaps its client knows.
        }
        self.seconds.set(index, second + 1, NONE);
        self.live += usize::from(before == NONE);
        self.unnoticed.entry(second).or_default().push(index);
        self.entries += 1;
        self.tidy();
    }

    /// The second in which a connection expires.
    pub(in crate::shard) fn second_of(&self, index: u32) -> Option<u64> {
        Some(u64::from(self.seconds.get(index)?.checked_sub(1)?))
    }

    /// A connection has gone, or does not expire any more.
    pub(in crate::shard) fn remove(&mut self, index: u32) {
        let Some(slot) = self.seconds.get_mut(index) else { return };
        if std::mem::take(slot) == NONE {
            return;
        }
        self.live -= 1;
        if self.live == 0 {
            *self = Expiries::default();
        }
    }

    /// A connection that expires in this second or before and whose client has received no notice, and
    /// when. It counts as noticed from here on.
    pub(in crate::shard) fn pop_unnoticed(&mut self, until_s: u64) -> Option<(u32, u64)> {
        while let Some((second, index)) = pop_first(&mut self.unnoticed, until_s) {
            self.entries -= 1;
            if self.is_current(index, second) {
                self.noticed.entry(second).or_default().push(index);
                self.entries += 1;
                return Some((index, u64::from(second)));
            }
        }
        None
    }

    /// Removes and returns the index of one that has expired.
    pub(in crate::shard) fn pop_due(&mut self, now_s: u64) -> Option<u32> {
        loop {
            let noticed = pop_first(&mut self.noticed, now_s);
            let (second, index) = noticed.or_else(|| pop_first(&mut self.unnoticed, now_s))?;
            self.entries -= 1;
            if self.is_current(index, second) {
                self.remove(index);
                return Some(index);
            }
        }
    }

    fn is_current(&self, index: u32, second: u32) -> bool {
        self.seconds.get(index) == Some(second + 1)
    }

    /// Drops entries that mean nothing, if they are too many.
    fn tidy(&mut self) {
        if self.entries <= 2 * self.live + ENTRIES_SPARE {
            return;
        }
        let seconds = &self.seconds;
        for by_second in [&mut self.unnoticed, &mut self.noticed] {
            by_second.retain(|second, stack| {
                let mut all = stack.take_all();
                all.retain(|index| seconds.get(*index) == Some(second + 1));
                // A place that was used again, with the same second, stands here twice.
                all.sort_unstable();
                all.dedup();
                all.into_iter().for_each(|index| stack.push(index));
                !stack.is_empty()
            });
        }
        self.entries = [&self.unnoticed, &self.noticed]
            .into_iter()
            .flat_map(|by_second| by_second.values())
            .map(SegmentStack::len)
            .sum();
    }
}

fn pop_first(by_second: &mut BySecond, until_s: u64) -> Option<(u32, u32)> {
    let mut first = by_second.first_entry().filter(|first| u64::from(*first.key()) <= until_s)?;
    let second = *first.key();
    let index = first.get_mut().pop().expect("no second is empty");
    if first.get().is_empty() {
        first.remove();
    }
    Some((second, index))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_expiry_that_was_set_is_the_one_that_counts() {
        let mut expiries = Expiries::default();
        expiries.set(3, Some(10));
        expiries.set(3, Some(20));
        expiries.set(4, Some(15));
        expiries.set(5, Some(15));
        expiries.set(5, None);
        assert_eq!(expiries.pop_unnoticed(9), None);
        assert_eq!(expiries.pop_unnoticed(15), Some((4, 15)));
        assert_eq!(expiries.pop_unnoticed(15), None, "once");
        assert_eq!(expiries.pop_due(14), None);
        assert_eq!((expiries.pop_due(15), expiries.pop_due(15)), (Some(4), None));
        assert_eq!(expiries.second_of(3), Some(20));
        assert_eq!((expiries.pop_due(20), expiries.pop_due(99)), (Some(3), None));
        assert!(expiries.entries == 0 && expiries.seconds.is_empty(), "nothing is left");
    }

    #[test]
    fn a_token_that_expires_with_the_one_before_it_is_announced_once() {
        let mut expiries = Expiries::default();
        expiries.set(3, Some(10));
        assert_eq!(expiries.pop_unnoticed(10), Some((3, 10)));
        expiries.set(3, Some(10));
        assert_eq!(expiries.pop_unnoticed(10), None);
        assert_eq!(expiries.pop_due(10), Some(3));
    }

    #[test]
    fn entries_are_few_however_often_places_and_seconds_come_again() {
        let mut expiries = Expiries::default();
        expiries.set(1000, Some(u64::MAX));
        for round in 0..50_000 {
            let index = round % 3;
            expiries.set(index, Some(u64::from(round / 3 % 2) + 7));
            if round % 2 == 0 {
                expiries.remove(index);
            }
            assert!(expiries.entries <= 2 * 4 + ENTRIES_SPARE, "{}", expiries.entries);
        }
        assert!(expiries.second_of(1000) > Some(4_000_000_000));
    }
}
