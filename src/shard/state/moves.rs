//! What a shard remembers for the sake of sessions that move; see `shard/session/`.

use crate::ids::TopicId;

/// What a shard remembers for the sake of sessions that move.
#[derive(Debug, Default)]
pub(in crate::shard) struct Moves {
    /// Questions about publishes that were asked, and how many of them were answered.
    pub(in crate::shard) asked: u32,
    pub(in crate::shard) answered: u32,
    /// Topics that stay, also without members.
    pub(in crate::shard) held: Vec<TopicId>,
}

impl Moves {
    pub(in crate::shard) fn on_settled(&mut self) {
        self.answered = self.asked;
    }

    /// Whether all has ended that this question covers; 0: there is nothing.
    pub(in crate::shard) fn is_settled(&self, settled_by: u32) -> bool {
        settled_by == 0 || self.answered.wrapping_sub(settled_by) < u32::MAX / 2
    }
}
