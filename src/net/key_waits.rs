//! Who waits on a shard until the keys of `auth.jwks_url` were read, in the order in which they came.
//!
//! One client cannot take all places: of each kind a known address has at most [`ADDRESS_SHARE`].
//!
//! Invariant: at most [`KEY_WAITS_MAX`] handshakes that are still there and as many tokens of open
//! connections, each of at most [`TOKEN_BYTES_MAX`].

use crate::ids::ConnId;
use crate::net::upgrade::KEY_WAITS_MAX;
use crate::shard::TokenCheck;
use std::collections::VecDeque;

/// The longest token that waits.
const TOKEN_BYTES_MAX: usize = 16 * 1024;

/// Places of each kind that the connections of one address have. Clients whose addresses are not known
/// have all places together.
const ADDRESS_SHARE: usize = KEY_WAITS_MAX / 8;

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
    /// Under which number its client's address is counted; 0: that is not known.
    pub(super) address: u64,
}

/// All of a shard.
#[derive(Default)]
pub(super) struct KeyWaits {
    waits: VecDeque<TimedWait>,
    tokens: usize,
    token_bytes: usize,
}

impl KeyWaits {
    /// Whether there is a place for a token of an address.
    pub(super) fn may_wait(&self, check: &TokenCheck, address: u64) -> bool {
        let is_token = |wait: &KeyWait| matches!(wait, KeyWait::Token(_));
        self.tokens < KEY_WAITS_MAX
            && check.token.len() <= TOKEN_BYTES_MAX
            && self.is_within_share(address, is_token)
    }

    /// Whether an address may have one more handshake that waits. `is_there`: as for [`Self::add`].
    pub(super) fn may_handshake(&self, address: u64, is_there: impl Fn(ConnId) -> bool) -> bool {
        let is_handshake =
            |wait: &KeyWait| matches!(wait, KeyWait::Handshake(conn) if is_there(*conn));
        self.is_within_share(address, is_handshake)
    }

    /// At most three times [`KEY_WAITS_MAX`] entries are looked at, and only where a key is not known.
    fn is_within_share(&self, address: u64, is_of_kind: impl Fn(&KeyWait) -> bool) -> bool {
        let is_own = |it: &&TimedWait| it.address == address && is_of_kind(&it.wait);
        address == 0 || self.waits.iter().filter(is_own).count() < ADDRESS_SHARE
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
        TimedWait { wait, until_ms, readings: 0, address: 0 }
    }

    #[test]
    fn one_address_has_its_share_and_the_others_have_the_rest() {
        let mut waits = KeyWaits::default();
        let add = |waits: &mut KeyWaits, wait, address| {
            waits.add(TimedWait { wait, until_ms: 10, readings: 0, address }, |_| true);
        };
        for index in 0..ADDRESS_SHARE as u32 {
            assert!(waits.may_handshake(7, |_| true) && waits.may_wait(&token(index, 1), 7));
            add(&mut waits, KeyWait::Handshake(conn(index)), 7);
            add(&mut waits, KeyWait::Token(token(1000 + index, 1)), 7);
        }
        assert!(!waits.may_handshake(7, |_| true) && !waits.may_wait(&token(0, 1), 7));
        assert!(waits.may_handshake(7, |conn| conn.0.index > 0), "one has gone");
        for address in [8, 0] {
            assert!(
                waits.may_handshake(address, |_| true) && waits.may_wait(&token(0, 1), address)
            );
        }
        waits.take_due(true, 0);
        assert!(waits.may_handshake(7, |_| true) && waits.may_wait(&token(0, 1), 7));
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
        assert!(!waits.may_wait(&token(0, TOKEN_BYTES_MAX + 1), 0));
        for index in 0..KEY_WAITS_MAX as u32 {
            assert!(waits.may_wait(&token(index, 1), 0));
            waits.add(waiting(KeyWait::Token(token(index, 1)), 10), |_| true);
        }
        assert!(!waits.may_wait(&token(0, 1), 0));
        for index in 0..10_000 {
            waits.add(waiting(KeyWait::Handshake(conn(index)), 10), |conn| {
                conn.0.index + 100 > index
            });
        }
        assert!(waits.waits.len() <= 3 * KEY_WAITS_MAX + 1);
    }
}
