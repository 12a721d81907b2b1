//! Connections that are closed because their token was revoked.
//!
//! Those of a revoked user are found by the user's topic, as for a disconnect (`disconnect.rs`). The
//! others are found by a walk over all places, which looks at a bounded number in each tick and
//! closes a bounded number: a million connections are compared within a second.
//!
//! Invariant: when the walk has ended, no open connection has a token that the table refuses. One
//! that is opened during it was compared when it was opened.

use crate::ids::{ConnId, TopicKind, TopicName};
use crate::policy::revocations::Revocations;
use crate::protocol::dialect::Encoding;
use crate::shard::conn::CloseReason;
use crate::shard::state::Shard;
use crate::shard::state::disconnects::{CloseOrder, Waiting};
use std::sync::Arc;

/// Places looked at in one tick of the shard.
const VISITED_PER_TICK: usize = 128 * 1024;
/// Connections closed in one tick of the shard, at most.
const CLOSED_PER_TICK: usize = 1024;

impl Shard {
    /// Other tokens are revoked than until now: the connections that have one are closed.
    pub fn handle_revocations(&mut self, table: Arc<Revocations>) {
        let seen = self.revoked.table.latest();
        for (user, issued_before_s) in table.users_since(seen) {
            self.begin_revoking(&TopicName::user(user), issued_before_s);
        }
        if table.marks_changed_since(seen) {
            // On from where a walk is: it must end, however often this changes.
            self.revoked.left = self.conns.capacity_used();
        }
        self.revoked.table = table;
        self.close_revoked_in_queue();
        self.close_disconnected();
    }

    fn begin_revoking(&mut self, user: &TopicName, issued_before_s: u64) {
        for encoding in Encoding::ALL {
            let Some(at) = self.hub.find(user, encoding) else { continue };
            let left = self.hub.get(at).map_or(0, |topic| topic.members().len());
            let order = CloseOrder::Revoked { issued_before_s };
            self.disconnects.waiting.push_back(Waiting { at, order, left });
        }
    }

    /// Closes those that are not in their user's topic yet: they wait for its stored messages.
    fn close_revoked_in_queue(&mut self) {
        let is_revoked = |conn: ConnId, user: &TopicName| match user.kind() {
            TopicKind::User(user) => {
                let mark = self.token_marks.get(conn.0.index);
                self.revoked.table.refuse_user(user, mark)
            }
            _ => false,
        };
        let of_queue = self.queues.all().filter(|(conn, user)| is_revoked(*conn, user));
        let revoked: Vec<ConnId> = of_queue.map(|(conn, _)| conn).collect();
        for conn in revoked {
            if self.conns.get(conn.0).is_some_and(|c| c.has_token) {
                self.begin_close(conn, CloseReason::TokenRevoked);
            }
        }
    }

    /// Goes on with the walk over connections, if there is one. On each tick.
    pub(super) fn close_revoked(&mut self) {
        let end = self.conns.capacity_used();
        let (mut visited, mut closed) = (0, 0);
        while self.revoked.left > 0 && visited < VISITED_PER_TICK && closed < CLOSED_PER_TICK {
            let at = if self.revoked.at < end { self.revoked.at } else { 0 };
            closed += usize::from(self.close_if_revoked(at as u32));
            visited += 1;
            self.revoked.at = at + 1;
            self.revoked.left -= 1;
        }
    }

    /// Whether the connection at a place is closed because its token is revoked by id or age.
    fn close_if_revoked(&mut self, index: u32) -> bool {
        let mark = self.token_marks.get(index);
        let table = &self.revoked.table;
        if (mark.is_none() && !table.concern_unmarked()) || !table.refuse_mark(mark) {
            return false;
        }
        let Some((id, c)) = self.conns.with_id_mut(index) else { return false };
        let is_closed = c.is_open() && c.has_token;
        if is_closed {
            self.begin_close(ConnId(id), CloseReason::TokenRevoked);
        }
        is_closed
    }

    /// Closes a connection that has just been put here, if its token is revoked.
    pub(super) fn close_if_put_revoked(&mut self, conn: ConnId) {
        if self.close_if_revoked(conn.0.index) || self.revoked.table.latest() == 0 {
            return;
        }
        let Some(c) = self.conns.get(conn.0).filter(|c| c.is_open() && c.has_token) else { return };
        if !c.encoding.dialect().has_topics() {
            return;
        }
        let (user, mark) = (self.user_of(conn), self.token_marks.get(conn.0.index));
        if let TopicKind::User(user) = user.kind()
            && self.revoked.table.refuse_user(user, mark)
        {
            self.begin_close(conn, CloseReason::TokenRevoked);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::revocations::{Revocation, RevocationTable, RevokedSubject, TokenMark};
    use crate::shard::crowd::{is_open, open, shard_for};
    use proptest::prelude::*;

    const MANY: usize = 3 * CLOSED_PER_TICK;

    fn mark(id: &str, issued_s: u64) -> Option<TokenMark> {
        TokenMark::new(Some(id), Some(issued_s as f64))
    }

    fn revoke(table: &mut RevocationTable, shard: &mut Shard, what: &str, issued_before_s: u64) {
        let subject = RevokedSubject::parse(what).expect("a subject");
        table.insert(&Revocation { subject, issued_before_s, until_s: 1 << 30 }, 1000);
        shard.handle_revocations(Arc::new(table.snapshot()));
    }

    #[test]
    fn connections_with_a_revoked_token_are_closed_and_the_others_stay() {
        let (mut shard, mut table) = (shard_for(2 * MANY), RevocationTable::default());
        let old = open(&mut shard, Some("ann"), mark("1", 99));
        let new = open(&mut shard, Some("ann"), mark("2", 100));
        let unmarked = open(&mut shard, Some("ann"), None);
        let bob = open(&mut shard, Some("bob"), mark("3", 50));
        let nobody = open(&mut shard, None, None);
        let are_open =
            |shard: &Shard| [old, new, unmarked, bob, nobody].map(|conn| is_open(shard, conn));
        revoke(&mut table, &mut shard, "u:ann", 100);
        assert_eq!(are_open(&shard), [false, true, false, true, true]);
        revoke(&mut table, &mut shard, "t:3", 0);
        shard.handle_timeout(100);
        assert_eq!(are_open(&shard), [false, true, false, false, true]);
        revoke(&mut table, &mut shard, "*", 200);
        shard.handle_timeout(200);
        assert_eq!(are_open(&shard), [false, false, false, false, true]);
        while shard.poll_closed().is_some() {}
        assert_eq!(shard.counters.closed_token_revoked, 0, "they wait for their clients");
    }

    #[test]
    fn a_crowd_is_closed_over_several_ticks() {
        let (mut shard, mut table) = (shard_for(2 * MANY), RevocationTable::default());
        (0..MANY).for_each(|n| _ = open(&mut shard, Some(&n.to_string()), mark("x", 5)));
        revoke(&mut table, &mut shard, "*", 6);
        let mut here_at = |now_ms| {
            shard.handle_timeout(now_ms);
            shard.counters.connections as usize
        };
        assert_eq!(here_at(100), MANY - CLOSED_PER_TICK);
        assert_eq!([200, 300].map(&mut here_at), [MANY - 2 * CLOSED_PER_TICK, 0]);
    }

    proptest! {
        /// After a few ticks exactly those are open that the table does not refuse.
        #[test]
        fn what_is_open_is_what_the_table_does_not_refuse(
            clients in proptest::collection::vec((0u8..4, 0u8..6, 0u64..6), 1..30),
            orders in proptest::collection::vec((0u8..3, 0u8..5, 0u64..6), 0..8),
        ) {
            let (mut shard, mut table) = (shard_for(2 * MANY), RevocationTable::default());
            let opened: Vec<_> = clients.iter().map(|(user, id, issued_s)| {
                let user = (*user > 0).then(|| format!("user-{user}"));
                let mark = (*id > 0 && user.is_some())
                    .then(|| mark(&format!("id-{id}"), *issued_s)).flatten();
                (open(&mut shard, user.as_deref(), mark), user, mark)
            }).collect();
            for (kind, number, before_s) in orders {
                let what = match kind {
                    0 => format!("u:user-{number}"),
                    1 => format!("t:id-{number}"),
                    _ => "*".to_owned(),
                };
                revoke(&mut table, &mut shard, &what, before_s);
            }
            (1..4).for_each(|tick| shard.handle_timeout(100 * tick));
            let known = table.snapshot();
            for (conn, user, mark) in opened {
                prop_assert_eq!(is_open(&shard, conn), !known.refuse(user.as_deref(), mark));
            }
        }
    }
}
