//! Messages that have arrived and cannot be delivered yet: a gap before them is being read.
//!
//! Invariant: at most [`MESSAGES_MAX`] and, but for the last one, [`BYTES_MAX`]; whether more have
//! arrived is known.

use crate::ids::Position;
use std::collections::VecDeque;

/// Messages that are held for a topic. More are read again.
pub(super) const MESSAGES_MAX: usize = 256;
/// Their bytes: after a failover thousands of topics may have a gap at once.
const BYTES_MAX: usize = 256 * 1024;

/// The held messages of one topic, in the order in which they arrived.
#[derive(Default)]
pub(super) struct HeldMessages {
    messages: VecDeque<(Position, Vec<u8>)>,
    bytes: usize,
    /// Whether some were not held.
    is_full: bool,
}

impl HeldMessages {
    /// Holds a message, if there is room.
    pub(super) fn push(&mut self, at: Position, body: &[u8]) {
        self.is_full |= self.messages.len() >= MESSAGES_MAX || self.bytes >= BYTES_MAX;
        if !self.is_full {
            self.bytes += body.len();
            self.messages.push_back((at, body.to_vec()));
        }
    }

    /// Whether later messages were not held.
    pub(super) fn is_full(&self) -> bool {
        self.is_full
    }

    /// Number of messages.
    pub(super) fn len(&self) -> usize {
        self.messages.len()
    }

    /// Whether none is held.
    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Position of the first one.
    pub(super) fn first(&self) -> Option<Position> {
        self.messages.front().map(|(at, _)| *at)
    }

    /// Offset of the first one of an epoch.
    pub(super) fn first_offset_of(&self, epoch: u64) -> Option<u64> {
        let mut positions = self.messages.iter().map(|(at, _)| *at);
        positions.find(|at| at.epoch == epoch).map(|at| at.offset)
    }

    /// Drops those of the first `count` that the history does not have. Returns how many.
    pub(super) fn drop_impossible(
        &mut self,
        count: usize,
        has: impl Fn(Position) -> bool,
    ) -> usize {
        let before = self.messages.len();
        let (mut index, bytes) = (0, &mut self.bytes);
        self.messages.retain(|(at, body)| {
            index += 1;
            let stays = index > count || has(*at);
            *bytes -= if stays { 0 } else { body.len() };
            stays
        });
        before - self.messages.len()
    }

    /// Takes all of them out.
    pub(super) fn take(&mut self) -> VecDeque<(Position, Vec<u8>)> {
        std::mem::take(self).messages
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(offset: u64) -> Position {
        Position { epoch: 1, offset }
    }

    #[test]
    fn as_many_messages_and_bytes_are_held_as_may_be_and_that_some_were_not_is_known() {
        for (body_bytes, most) in [(1, MESSAGES_MAX), (64 * 1024, 4), (BYTES_MAX + 1, 1)] {
            let mut held = HeldMessages::default();
            let body = vec![b'x'; body_bytes];
            (0..most as u64).for_each(|offset| held.push(at(offset), &body));
            assert!(!held.is_full(), "{most} fit");
            held.push(at(most as u64), &body);
            assert_eq!((held.len(), held.is_full()), (most, true));
            // What is dropped makes no room: the next one would follow a gap.
            assert_eq!(held.drop_impossible(1, |_| false), 1);
            held.push(at(most as u64 + 1), &body);
            assert_eq!((held.len(), held.is_full()), (most - 1, true));
            assert_eq!(held.take().len(), most - 1);
            held.push(at(0), &body);
            assert_eq!((held.len(), held.is_full()), (1, false));
        }
    }
}
