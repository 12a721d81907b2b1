//! Connections whose right to be here ends at a known time: that of their token (RFC 7519 §4.1.4).
//!
//! Expiries are stored in coarse seconds of the shard's clock, sorted, without a timer for each: eight
//! bytes a connection that has one, nothing for the others. A while before, the client receives a
//! notice, so that it can send another token (`tokens/`). Notices and closes of one second are spread
//! over several ticks, so that many with one expiry do not delay other connections.
//!
//! A connection that has gone leaves its entry behind, and so does a token that was replaced. Such
//! entries are dropped once they are more than half of all: how many there are follows how many are
//! here, not how fast they come and go.

use crate::ids::ConnId;
use crate::protocol::Event;
use crate::shard::conn::CloseReason;
use crate::shard::state::Shard;

/// Connections closed in one tick of the shard, at most.
const CLOSED_PER_TICK: usize = 1024;
/// Notices sent in one tick of the shard, at most.
const NOTICES_PER_TICK: usize = 1024;

impl Shard {
    /// The token of a connection that was just opened expires then, in milliseconds of the shard's
    /// clock: from the next full second on the connection is closed, with 4401.
    pub fn handle_expiry(&mut self, conn: ConnId, at_ms: u64) {
        if self.conns.get(conn.0).is_some_and(|c| c.is_open()) {
            self.expiries.set(conn.0.index, Some(at_ms.div_ceil(1000)));
        }
    }

    /// From now on clients receive a notice so many seconds before their token expires; 0: none.
    pub fn handle_expiry_notice(&mut self, notice_s: u64) {
        self.expiry_notice_s = notice_s;
    }

    /// Closes those whose time is over.
    pub(super) fn close_expired(&mut self, now_ms: u64) {
        for _ in 0..CLOSED_PER_TICK {
            let Some(index) = self.expiries.pop_due(now_ms / 1000) else { return };
            if let Some(id) = self.conns.id_at(index) {
                self.begin_close(ConnId(id), CloseReason::TokenExpired);
            }
        }
    }

    /// Notifies those whose time is nearly over.
    pub(super) fn notify_expiring(&mut self, now_ms: u64) {
        if self.expiry_notice_s == 0 {
            return;
        }
        let until_s = now_ms / 1000 + self.expiry_notice_s;
        for _ in 0..NOTICES_PER_TICK {
            let Some((index, second)) = self.expiries.pop_unnoticed(until_s) else { return };
            let Some(conn) = self.conns.id_at(index).map(ConnId) else { continue };
            let receives = self
                .conns
                .get(conn.0)
                .is_some_and(|c| c.is_open() && c.encoding.dialect().has_topics());
            if receives {
                let in_ms = (1000 * second).saturating_sub(now_ms);
                self.counters.tokens_expiring += 1;
                self.say(conn, &Event::TokenExpires { in_ms });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Opening, ShardConfig};
    use super::*;
    use crate::auth::{AnonymousSecret, Identity};
    use crate::ids::{NodeId, ShardId};
    use crate::policy::limits::Limits;
    use crate::policy::rights::Rights;
    use crate::protocol::dialect::Encoding;
    use crate::shard::state::expiries::ENTRIES_SPARE;
    use bytes::Bytes;

    fn shard() -> Shard {
        let limits = Limits {
            connections_per_shard_max: 10_000,
            handshakes_max: 10_000,
            topics_per_shard_max: 10_000,
            ping_interval_ms: 3_600_000,
            ..Limits::TINY
        };
        let (id, node) = (ShardId(0), NodeId(1));
        let (node_name, namespaces) = ("n".into(), Default::default());
        Shard::new(ShardConfig {
            id,
            node,
            node_name,
            limits,
            namespaces,
            anonymous_secret: AnonymousSecret::new([0; 16]),
        })
    }

    fn open(shard: &mut Shard, user: usize, expires_at_ms: Option<u64>) -> ConnId {
        let conn = shard.handle_accept(user as u32, 0).unwrap();
        let user = Some(user.to_string().into());
        let identity = Identity {
            user,
            rights: Rights::NONE,
            expires_unix_s: None,
            grants: None,
            info: None,
            mark: None,
        };
        let response = Bytes::from_static(b"101");
        shard.handle_open(
            conn,
            Opening { identity, response, rooms: Vec::new(), encoding: Encoding::NATIVE },
        );
        if let Some(at_ms) = expires_at_ms {
            shard.handle_expiry(conn, at_ms);
        }
        conn
    }

    #[test]
    fn a_connection_is_closed_when_its_token_expires_and_the_others_stay() {
        let mut shard = shard();
        open(&mut shard, 1, Some(5_500));
        open(&mut shard, 2, None);
        open(&mut shard, 3, Some(9_000));
        let mut here_at = |now_ms| {
            shard.handle_timeout(now_ms);
            shard.counters.connections
        };
        let table = [(5_900, 3), (6_000, 2), (8_999, 2), (9_000, 1), (100_000, 1)];
        table.iter().for_each(|(now_ms, here)| assert_eq!(here_at(*now_ms), *here, "{now_ms}"));
        assert_eq!(shard.expiries.entries, 0);
    }

    #[test]
    fn a_crowd_with_one_expiry_goes_over_several_ticks() {
        let mut shard = shard();
        (0..3000).for_each(|user| _ = open(&mut shard, user, Some(5_000)));
        let mut here_at = |now_ms| {
            shard.handle_timeout(now_ms);
            shard.counters.connections as usize
        };
        assert_eq!(here_at(5_000), 3000 - CLOSED_PER_TICK);
        assert_eq!(here_at(5_100), 3000 - 2 * CLOSED_PER_TICK);
        assert_eq!(here_at(5_200), 0);
    }

    #[test]
    fn those_who_come_and_go_leave_few_entries_behind() {
        let mut shard = shard();
        let stays = open(&mut shard, 0, Some(1_000_000));
        for user in 1..20_000 {
            let conn = open(&mut shard, user, Some(1_000_000 + user as u64 % 7000));
            shard.handle_write_error(conn);
            while shard.poll_closed().is_some() {}
            assert!(shard.expiries.entries <= ENTRIES_SPARE + 5);
        }
        shard.handle_timeout(999_900);
        assert!(shard.conns.get(stays.0).is_some_and(|c| c.is_open()));
        shard.handle_timeout(1_000_000);
        assert!(!shard.conns.get(stays.0).is_some_and(|c| c.is_open()), "it was not forgotten");
    }
}
