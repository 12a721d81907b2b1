//! Bytes on their way through a channel, counted by its two ends.
//!
//! A channel is bounded in items, and items differ by four orders of magnitude: a leave has fifty
//! bytes, an answer most of a megabyte. So each end counts what it has sent or taken, and the
//! difference is what the channel keeps alive. Each number has one writer; the sender looks at the
//! receiver's only when what it knows of it leaves no room, so that the line of cache crosses seldom.

use crossbeam_utils::CachePadded;
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The sender's count.
#[derive(Debug)]
pub(super) struct SentBytes {
    sent: Cell<u64>,
    /// What the receiver had taken when it was last looked at.
    taken_seen: Cell<u64>,
    taken: Arc<CachePadded<AtomicU64>>,
    max: u64,
}

/// The receiver's count.
#[derive(Debug)]
pub(super) struct TakenBytes {
    own: Cell<u64>,
    taken: Arc<CachePadded<AtomicU64>>,
}

/// Both counts of a channel in which at most `max` bytes wait, and one item more.
pub(super) fn byte_counts(max: u64) -> (SentBytes, TakenBytes) {
    let taken = Arc::new(CachePadded::new(AtomicU64::new(0)));
    let (sent, taken_seen) = (Cell::new(0), Cell::new(0));
    let counts = TakenBytes { own: Cell::new(0), taken: taken.clone() };
    (SentBytes { sent, taken_seen, taken, max }, counts)
}

impl SentBytes {
    /// Whether another item may be sent.
    #[inline]
    pub(super) fn has_room(&self) -> bool {
        self.sent.get() - self.taken_seen.get() < self.max || self.waiting() < self.max
    }

    /// An item of so many bytes was sent.
    #[inline]
    pub(super) fn add(&self, bytes: u64) {
        self.sent.set(self.sent.get() + bytes);
    }

    /// Bytes that the receiver has not taken, or took since it was last looked at.
    #[inline]
    pub(super) fn waiting_at_most(&self) -> u64 {
        self.sent.get() - self.taken_seen.get()
    }

    /// Bytes that the receiver has not taken.
    pub(super) fn waiting(&self) -> u64 {
        // A number that is read late only makes the channel look fuller.
        self.taken_seen.set(self.taken.load(Ordering::Acquire));
        self.sent.get() - self.taken_seen.get()
    }
}

impl TakenBytes {
    /// An item of so many bytes was taken.
    #[inline]
    pub(super) fn add(&self, bytes: u64) {
        self.own.set(self.own.get() + bytes);
        self.taken.store(self.own.get(), Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_until_as_many_bytes_wait_as_may_and_again_when_some_were_taken() {
        let (sent, taken) = byte_counts(100);
        sent.add(99);
        assert!(sent.has_room(), "one item more than fits");
        sent.add(1000);
        assert!(!sent.has_room());
        taken.add(99);
        assert!(!sent.has_room());
        assert_eq!(sent.waiting(), 1000);
        taken.add(1000);
        assert!(sent.has_room());
        assert_eq!(sent.waiting(), 0);
    }
}
