//! Who waits on a shard until the keys of `auth.jwks_url` were read, in the order in which they came.
//!
//! Invariant: at most [`KEY_WAITS_MAX`] handshakes that are still there and as many tokens of open
//! connections, each of at most [`TOKEN_BYTES_MAX`].

use crate::ids::ConnId;
use crate::net::upgrade::KEY_WAITS_MAX;
use crate::shard::TokenCheck;
use std::collections::VecDeque;

/// The longest token that waits.
const TOKEN_BYTES_MAX: usize = 16 * 1024;

/// Who waits.
pub(super) enum KeyWait {
    /// A connection that is not open yet. What it has sent stays with its stage.
    Handshake(ConnId),
    /// A token that an open connection has sent.
    Token(TokenCheck),
}

/// A wait with its bounds.
pub(super) struct TimedWait {
    pub(super) wait: KeyWait,
    /// Until then, in milliseconds of the shard's clock.
    pub(super) until_ms: u64,
    /// How many readings had begun: what a later one finds decides.
    pub(super) readings: u64,
}

/// All of a shard.
#[derive(Default)]
pub(super) struct KeyWaits {
    waits: VecDeque<TimedWait>,
    tokens: usize,
    token_bytes: usize,
}

impl KeyWaits {
    /// Whether there is a place for a token.
    pub(super) fn may_wait(&self, check: &TokenCheck) -> bool {
        self.tokens < KEY_WAITS_MAX && check.token.len() <= TOKEN_BYTES_MAX
    }

    /// One more. `is_there` says whether a handshake still waits; those that have gone are forgotten
    /// here when they are many.
    pub(super) fn add(&mut self, waiting: TimedWait, is_there: impl Fn(ConnId) -> bool) {
        if self.waits.len() - self.tokens >= 2 * KEY_WAITS_MAX {
            self.waits.retain(|waiting| match &waiting.wait {
                KeyWait::Handshake(conn) => is_there(*conn),
                KeyWait::Token(_) => true,
            });
        }
        if let KeyWait::Token(check) = &waiting.wait {
            self.tokens += 1;
            self.token_bytes += check.token.len();
        }
        self.waits.push_back(waiting);
    }

    /// Removes those whose time is over, or all.
    pub(super) fn take_due(&mut self, all: bool, now_ms: u64) -> Vec<TimedWait> {
        let due = match all {
            true => self.waits.len(),
            false => self.waits.partition_point(|waiting| waiting.until_ms <= now_ms),
        };
        let due: Vec<TimedWait> = self.waits.drain(..due).collect();
        for TimedWait { wait, .. } in &due {
            if let KeyWait::Token(check) = wait {
                self.tokens -= 1;
                self.token_bytes -= check.token.len();
            }
        }
        due
    }

    /// Tokens of open connections that wait.
    pub(super) fn tokens(&self) -> usize {
        self.tokens
    }

    /// Memory that they keep alive.
    pub(super) fn held_bytes(&self) -> usize {
        self.token_bytes + self.waits.capacity() * size_of::<TimedWait>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::SlotId;

    fn conn(index: u32) -> ConnId {
        ConnId(SlotId { index, generation: 0 })
    }

    fn token(index: u32, bytes: usize) -> TokenCheck {
        TokenCheck { conn: conn(index), is_for_room: false, token: "t".repeat(bytes).into() }
    }

    fn waiting(wait: KeyWait, until_ms: u64) -> TimedWait {
        TimedWait { wait, until_ms, readings: 0 }
    }

    #[test]
    fn those_whose_time_is_over_are_taken_in_their_order_and_all_when_the_keys_were_read() {
        let mut waits = KeyWaits::default();
        waits.add(waiting(KeyWait::Handshake(conn(1)), 10), |_| true);
        waits.add(waiting(KeyWait::Token(token(2, 7)), 20), |_| true);
        waits.add(waiting(KeyWait::Handshake(conn(3)), 30), |_| true);
        assert!(waits.take_due(false, 9).is_empty());
        assert_eq!((waits.take_due(false, 25).len(), waits.tokens(), waits.token_bytes), (2, 0, 0));
        let left = waits.take_due(true, 0);
        let [TimedWait { wait: KeyWait::Handshake(left), .. }] = left[..] else { panic!("one") };
        assert_eq!(left, conn(3));
    }

    #[test]
    fn there_are_so_many_places_and_those_who_have_gone_take_none() {
        let mut waits = KeyWaits::default();
        assert!(!waits.may_wait(&token(0, TOKEN_BYTES_MAX + 1)));
        for index in 0..KEY_WAITS_MAX as u32 {
            assert!(waits.may_wait(&token(index, 1)));
            waits.add(waiting(KeyWait::Token(token(index, 1)), 10), |_| true);
        }
        assert!(!waits.may_wait(&token(0, 1)));
        for index in 0..10_000 {
            waits.add(waiting(KeyWait::Handshake(conn(index)), 10), |conn| {
                conn.0.index + 100 > index
            });
        }
        assert!(waits.waits.len() <= 3 * KEY_WAITS_MAX + 1);
    }
}
