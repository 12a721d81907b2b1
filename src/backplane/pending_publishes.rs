//! Which of a shard's publishes have ended: so that it may know when all those before some moment
//! have.
//!
//! A connection that moves must not miss the answer to a publish of its own. The shard asks
//! ([`crate::link::Uplink::Settle`]) and is answered when all that it had published before has
//! ended and been answered. Publishes belong to one of two turns; a question ends the turn, and is
//! answered when that turn has none left. What is published meanwhile belongs to the other turn and
//! delays nothing.
//!
//! Invariant: one question of a shard is under way at a time, so the turn that begins has none left.

/// Publishes of one shard that have not ended.
#[derive(Debug, Default)]
pub(super) struct PendingPublishes {
    of_turn: [u64; 2],
    turn: bool,
    is_asked: bool,
}

impl PendingPublishes {
    /// A publish was taken from the shard. Answers the turn, to be named at its end.
    pub(super) fn begin(&mut self) -> bool {
        self.of_turn[usize::from(self.turn)] += 1;
        self.turn
    }

    /// A publish of that turn has ended. Whether the shard's question is answered by that.
    pub(super) fn end(&mut self, turn: bool) -> bool {
        let left = &mut self.of_turn[usize::from(turn)];
        debug_assert!(*left > 0, "a publish ends once");
        *left = left.saturating_sub(1);
        self.is_settled()
    }

    /// The shard asks. Whether it is answered at once.
    pub(super) fn ask(&mut self) -> bool {
        debug_assert!(!self.is_asked, "one question at a time");
        (self.is_asked, self.turn) = (true, !self.turn);
        self.is_settled()
    }

    fn is_settled(&mut self) -> bool {
        let is_settled = self.is_asked && self.of_turn[usize::from(!self.turn)] == 0;
        self.is_asked &= !is_settled;
        is_settled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_answered_when_all_that_was_published_before_it_has_ended() {
        let mut publishes = PendingPublishes::default();
        assert!(publishes.ask(), "nothing was");
        let before = [publishes.begin(), publishes.begin()];
        assert!(!publishes.ask());
        let after = publishes.begin();
        assert!(!publishes.end(before[0]));
        assert!(!publishes.end(after), "one that came later does not count");
        let later = publishes.begin();
        assert!(publishes.end(before[1]));
        assert!(!publishes.ask());
        assert!(publishes.end(later));
    }
}
