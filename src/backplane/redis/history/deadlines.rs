//! A queue ordered by time: what is due is at the front, and nothing else is looked at.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::time::Instant;

/// Items with the time at which each is due. Items of the same time leave in the order in which
/// they came.
pub(super) struct DeadlineQueue<T> {
    heap: BinaryHeap<Entry<T>>,
    pushed: u64,
}

struct Entry<T> {
    due: Instant,
    number: u64,
    item: T,
}

impl<T> DeadlineQueue<T> {
    /// An empty one.
    pub(super) fn new() -> DeadlineQueue<T> {
        DeadlineQueue { heap: BinaryHeap::new(), pushed: 0 }
    }

    /// Number of items.
    pub(super) fn len(&self) -> usize {
        self.heap.len()
    }

    /// Adds an item.
    pub(super) fn push(&mut self, due: Instant, item: T) {
        self.pushed += 1;
        self.heap.push(Entry { due, number: self.pushed, item });
    }

    /// Takes the first item out, if it is due.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<T> {
        self.heap.peek().filter(|first| first.due <= now)?;
        self.heap.pop().map(|first| first.item)
    }

    /// Drops all items.
    pub(super) fn clear(&mut self) {
        self.heap.clear();
    }

    /// Drops the items that are not wanted.
    pub(super) fn retain(&mut self, is_wanted: impl Fn(&T) -> bool) {
        self.heap.retain(|entry| is_wanted(&entry.item));
    }
}

/// The heap has the greatest in front, so earlier is greater.
impl<T> Ord for Entry<T> {
    fn cmp(&self, other: &Entry<T>) -> Ordering {
        (other.due, other.number).cmp(&(self.due, self.number))
    }
}

impl<T> PartialOrd for Entry<T> {
    fn partial_cmp(&self, other: &Entry<T>) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> PartialEq for Entry<T> {
    fn eq(&self, other: &Entry<T>) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<T> Eq for Entry<T> {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    proptest! {
        #[test]
        fn items_leave_by_time_and_then_in_their_order(
            delays in prop::collection::vec(0..5u64, 0..30),
            at in 0..6u64,
        ) {
            let (mut queue, start) = (DeadlineQueue::new(), Instant::now());
            let seconds = |delay| start + Duration::from_secs(delay);
            for (number, delay) in delays.iter().enumerate() {
                queue.push(seconds(*delay), (*delay, number));
            }
            let left: Vec<_> = std::iter::from_fn(|| queue.pop_due(seconds(at))).collect();
            prop_assert!(left.is_sorted());
            let due = delays.iter().filter(|delay| **delay <= at).count();
            prop_assert_eq!((left.len(), queue.len()), (due, delays.len() - due));
        }
    }
}
