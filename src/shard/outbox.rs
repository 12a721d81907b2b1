//! What one slow peer still has to hear.
//!
//! Exists only while a socket has not taken everything: frames wait here as slices of the buffers
//! that were to be sent, shared with everyone else who had to hear them. One limit guards it, in
//! bytes. A peer over the limit is not a reason to wait; it is a reason to close, because memory
//! spent on one slow phone is taken from thousands of quick ones.
//!
//! Invariant: this module never sees a socket; `bytes` is the sum of the slices' lengths.

use bytes::{Buf, Bytes};
use std::collections::VecDeque;

/// Slices in the order in which they must leave.
#[derive(Debug, Default)]
pub struct Outbox {
    queue: VecDeque<Bytes>,
    bytes: usize,
}

/// Whether there was room.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// It waits now.
    Queued,
    /// It does not: the peer is too slow.
    Full,
}

impl Outbox {
    /// Bytes that wait.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether everything has left.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Queues, unless more than `bytes_max` would wait. What is already here is always kept whole.
    pub fn push(&mut self, bytes: Bytes, bytes_max: usize) -> Pushed {
        if self.bytes + bytes.len() > bytes_max {
            return Pushed::Full;
        }
        self.push_always(bytes);
        Pushed::Queued
    }

    /// Queues whatever the limit says: for the rest of a frame whose beginning has left, and for a
    /// close frame.
    pub fn push_always(&mut self, bytes: Bytes) {
        self.bytes += bytes.len();
        self.queue.push_back(bytes);
    }

    /// Forgets all but the first slice, of which a part may have left already: cutting it off would
    /// break the framing for whatever comes after it.
    pub fn keep_first(&mut self) {
        self.queue.truncate(1);
        self.bytes = self.queue.front().map_or(0, Bytes::len);
    }

    /// What to write next, in order: at most `max` slices.
    pub fn slices(&self, max: usize) -> impl Iterator<Item = &[u8]> {
        self.queue.iter().take(max).map(|bytes| &bytes[..])
    }

    /// The socket took the first `taken` bytes.
    pub fn advance(&mut self, taken: usize) {
        assert!(taken <= self.bytes);
        self.bytes -= taken;
        let mut left = taken;
        while left > 0 {
            let first = self.queue.front_mut().expect("bytes is the sum of the slices");
            if first.len() > left {
                first.advance(left);
                return;
            }
            left -= first.len();
            self.queue.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_leaves_is_what_was_queued_in_whatever_pieces() {
        let mut outbox = Outbox::default();
        let mut left = Vec::new();
        for piece in [&b"hello"[..], b" ", b"world"] {
            assert_eq!(outbox.push(Bytes::copy_from_slice(piece), 11), Pushed::Queued);
        }
        assert_eq!(outbox.push(Bytes::from_static(b"!"), 11), Pushed::Full);
        while !outbox.is_empty() {
            let next: Vec<u8> = outbox.slices(64).flatten().copied().take(3).collect();
            outbox.advance(next.len());
            left.extend(next);
        }
        assert_eq!(left, b"hello world");
        assert_eq!(outbox.bytes(), 0);
    }

    #[test]
    fn a_frame_that_has_begun_is_never_cut_off() {
        let mut outbox = Outbox::default();
        outbox.push_always(Bytes::from_static(b"begun"));
        outbox.push_always(Bytes::from_static(b"later"));
        outbox.advance(2);
        outbox.keep_first();
        assert_eq!(outbox.slices(9).collect::<Vec<_>>(), [b"gun"]);
        assert_eq!(outbox.bytes(), 3);
    }
}
