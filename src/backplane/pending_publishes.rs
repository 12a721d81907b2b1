//! Publishes of one shard that have not ended, so that the shard can learn when all before a given
//! moment have.
//!
//! A connection that is handed over must not miss the reply to a publish of its own. The shard asks
//! ([`crate::link::Uplink::Settle`]) and is answered when all its earlier publishes have ended and
//! been answered. Each publish belongs to one of two turns; a question ends the turn, and is
//! answered when that turn has none left. Publishes made after it belong to the other turn and
//! delay nothing.
//!
//! Invariant: a shard has one question at a time, so the turn that begins has no publishes left.

/// Counts of unended publishes by turn. One for each shard.
#[derive(Debug, Default)]
pub(super) struct PendingPublishes {
    of_turn: [u64; 2],
    turn: bool,
    is_asked: bool,
}

impl PendingPublishes {
    /// A publish was taken from the shard. Returns its turn, which [`PendingPublishes::end`] takes.
    pub(super) fn begin(&mut self) -> bool {
        self.of_turn[usize::from(self.turn)] += 1;
        self.turn
    }

    /// A publish of that turn has ended. Returns whether this answers the shard's question.
    pub(super) fn end(&mut self, turn: bool) -> bool {
        let left = &mut self.of_turn[usize::from(turn)];
        debug_assert!(*left > 0, "a publish ends once");
        *left = left.saturating_sub(1);
        self.is_settled()
    }

    /// The shard asks. Returns whether it is answered at once.
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
    fn a_question_is_answered_when_all_publishes_before_it_have_ended() {
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
