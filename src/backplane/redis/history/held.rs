//! Messages that have arrived and cannot be delivered yet: a gap before them is being read.
//!
//! Invariant: at most [`MESSAGES_MAX`]; whether more have arrived is known.

use crate::ids::Position;
use std::collections::VecDeque;

/// Messages that are held for a topic. More are read again.
pub(super) const MESSAGES_MAX: usize = 256;

/// The held messages of one topic, in the order in which they arrived.
#[derive(Default)]
pub(super) struct HeldMessages {
    messages: VecDeque<(Position, Vec<u8>)>,
}

impl HeldMessages {
    /// Holds a message, if there is room.
    pub(super) fn push(&mut self, at: Position, body: &[u8]) {
        if !self.is_full() {
            self.messages.push_back((at, body.to_vec()));
        }
    }

    /// Whether later messages were not held.
    pub(super) fn is_full(&self) -> bool {
        self.messages.len() >= MESSAGES_MAX
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
        let mut index = 0;
        self.messages.retain(|(at, _)| {
            index += 1;
            index > count || has(*at)
        });
        before - self.messages.len()
    }

    /// Takes all of them out.
    pub(super) fn take(&mut self) -> VecDeque<(Position, Vec<u8>)> {
        std::mem::take(&mut self.messages)
    }
}
