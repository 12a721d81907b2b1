//! Settings that change while connections are here: limits and rules for what comes next, and a walk
//! over the connections of which some may no longer be admitted.
//!
//! The walk looks at a bounded number of places in each tick and closes a bounded number: a removed
//! key makes all clients come back, and not all in one moment.
//!
//! Invariant: a connection that was opened after a change is judged by it only where the rule holds
//! for all: its token was checked with the new key.

use crate::ids::ConnId;
use crate::policy::limits::Limits;
use crate::policy::namespaces::Namespaces;
use crate::policy::rights::Rights;
use crate::shard::conn::{CloseReason, OPENED_UNIT_MS};
use crate::shard::state::Shard;
use crate::shard::state::lifecycle::Recheck;
use std::sync::Arc;

/// Places looked at in one tick of the shard.
const VISITED_PER_TICK: usize = 16 * 1024;
/// Connections closed in one tick of the shard, at most.
const CLOSED_PER_TICK: usize = 1024;

/// What a shard takes over of a configuration that was reloaded.
#[derive(Clone, Debug)]
pub struct SettingsChange {
    /// All limits; those that need a restart are unchanged.
    pub limits: Limits,
    /// All namespaces; likewise.
    pub namespaces: Arc<Namespaces>,
    /// Who is admitted, if that has changed: all connections are looked at.
    pub admission: Option<AdmissionChange>,
}

/// A change of who is admitted.
#[derive(Clone, Copy, Debug)]
pub struct AdmissionChange {
    /// What a client without a token may do; `None`: it is not admitted.
    pub anonymous: Option<Rights>,
    /// Whether the key with which tokens were checked until now is still the one.
    pub tokens_hold: bool,
}

impl Shard {
    /// Settings have changed. `now_ms` is the time of the tick that follows.
    pub fn handle_settings(&mut self, change: SettingsChange, now_ms: u64) {
        let SettingsChange { limits, namespaces, admission } = change;
        (self.limits, self.config.limits) = (limits, limits);
        self.config.namespaces = namespaces;
        let Some(AdmissionChange { anonymous, tokens_hold }) = admission else { return };
        let before = self.life.recheck.map_or(0, |recheck| recheck.tokens_hold_since);
        let now = (now_ms / OPENED_UNIT_MS) as u32;
        let tokens_hold_since = if tokens_hold { before } else { now };
        self.life.recheck = Some(Recheck { at: 0, anonymous, tokens_hold_since });
    }

    /// Goes on with the walk over connections, if there is one.
    pub(super) fn close_not_admitted(&mut self) {
        let Some(recheck) = self.life.recheck else { return };
        let end = self.conns.capacity_used();
        let mut closed = 0;
        let mut at = recheck.at;
        while at < end && at < recheck.at + VISITED_PER_TICK && closed < CLOSED_PER_TICK {
            closed += usize::from(self.recheck(at as u32, recheck));
            at += 1;
        }
        self.life.recheck = (at < end).then_some(Recheck { at, ..recheck });
    }

    /// Whether the connection at a place is closed.
    fn recheck(&mut self, index: u32, recheck: Recheck) -> bool {
        let Some((id, conn)) = self.conns.with_id_mut(index).filter(|(_, conn)| conn.is_open())
        else {
            return false;
        };
        let is_admitted = match (conn.has_token, recheck.anonymous) {
            (true, _) => conn.since >= recheck.tokens_hold_since,
            (false, Some(rights)) => {
                conn.rights = rights.into();
                true
            }
            (false, None) => false,
        };
        if !is_admitted {
            self.begin_close(ConnId(id), CloseReason::NotAdmitted);
        }
        !is_admitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::crowd::{is_open, open, shard_for};

    const MANY: usize = 3 * CLOSED_PER_TICK;

    fn change(shard: &mut Shard, anonymous: Option<Rights>, tokens_hold: bool, now_ms: u64) {
        let (limits, namespaces) = (shard.limits, shard.config.namespaces.clone());
        let admission = Some(AdmissionChange { anonymous, tokens_hold });
        let change = SettingsChange { limits, namespaces, admission };
        shard.handle_settings(change, now_ms);
        shard.handle_timeout(now_ms);
    }

    #[test]
    fn connections_whose_key_was_removed_are_closed_over_several_ticks_and_newer_ones_stay() {
        let mut shard = shard_for(2 * MANY);
        (0..MANY).for_each(|n| _ = open(&mut shard, Some(&n.to_string()), None));
        let unnamed = open(&mut shard, None, None);
        change(&mut shard, Some(Rights::NONE), false, 100);
        assert_eq!(shard.counters.closed_not_admitted, 0, "counted when they have gone");
        assert_eq!(shard.counters.connections as usize, MANY + 1 - CLOSED_PER_TICK);
        let newer = open(&mut shard, Some("newer"), None);
        // Another reload before the walk is over, which changes nothing about keys.
        change(&mut shard, Some(Rights::NONE), true, 200);
        (3..9).for_each(|tick| shard.handle_timeout(100 * tick));
        assert_eq!(shard.counters.connections, 2);
        assert!(is_open(&shard, newer) && is_open(&shard, unnamed));
    }

    #[test]
    fn a_client_without_a_token_gets_the_new_rights_or_is_closed() {
        let mut shard = shard_for(2 * MANY);
        let (user, unnamed) = (open(&mut shard, Some("1"), None), open(&mut shard, None, None));
        let rights = Rights { publish: true, ..Rights::NONE };
        change(&mut shard, Some(rights), true, 100);
        assert_eq!(shard.conns.get(unnamed.0).unwrap().rights, rights.into());
        let of_token = shard.conns.get(user.0).unwrap().rights;
        assert_eq!(of_token, Rights::NONE.into(), "as its token says");
        change(&mut shard, None, true, 200);
        assert!(is_open(&shard, user) && !is_open(&shard, unnamed));
    }
}
