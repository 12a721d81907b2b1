//! Connections that are closed because an operator has disconnected their user, or revoked its tokens.
//!
//! A user may have any number of connections here, and closing one costs what leaving all its rooms
//! costs. So at most [`CLOSES_MAX`] are closed at once, and the others on the next ticks.
//!
//! Invariant: as many connections are closed as the user had when the request came; one that comes
//! afterwards is closed only in the place of one that has gone by itself.

use crate::ids::{ConnId, TopicId, TopicName};
use crate::link::Disconnect;
use crate::policy::revocations::TokenMark;
use crate::shard::conn::CloseReason;
use crate::shard::state::Shard;
use crate::shard::state::disconnects::{CloseOrder, Waiting};
use crate::ws::close::CloseCode;
use std::sync::Arc;

/// Connections closed in one visit.
const CLOSES_MAX: usize = 256;

impl Shard {
    /// An operator has disconnected the user whose topic this is.
    pub(super) fn on_disconnect(&mut self, at: TopicId, close: Arc<Disconnect>) {
        let Some(topic) = self.hub.get(at) else { return };
        let (name, left) = (topic.name().clone(), topic.members().len());
        self.close_queued(&name, &close);
        let order = CloseOrder::Operator(close);
        self.disconnects.waiting.push_back(Waiting { at, order, left });
        self.close_disconnected();
    }

    /// Closes some of those that wait for it. On each tick.
    pub(super) fn close_disconnected(&mut self) {
        for _ in 0..CLOSES_MAX {
            let Some(Waiting { at, order, left }) = self.disconnects.waiting.front_mut() else {
                return;
            };
            // Later members stand at the end: from the last of those to be closed to the first.
            let members = self.hub.get(*at).map_or(&[][..], |topic| topic.members());
            *left = (*left).min(members.len());
            let Some(member) = left.checked_sub(1).map(|last| members[last]) else {
                self.disconnects.waiting.pop_front();
                continue;
            };
            *left -= 1;
            let order = order.clone();
            let id = self.conns.id_at(member.conn).expect("a member is a connection");
            self.carry_out(ConnId(id), &order);
        }
    }

    /// Closes those that are not in their user's topic yet: they wait for its stored messages.
    fn close_queued(&mut self, user: &TopicName, close: &Disconnect) {
        let waiting: Vec<ConnId> = self.queues.waiting_of(user).collect();
        waiting.into_iter().for_each(|conn| self.close_for(conn, close));
    }

    fn carry_out(&mut self, conn: ConnId, order: &CloseOrder) {
        match order {
            CloseOrder::Operator(close) => self.close_for(conn, close),
            CloseOrder::Revoked { issued_before_s } => {
                let mark = self.token_marks.get(conn.0.index);
                let has_token = self.conns.get(conn.0).is_some_and(|c| c.has_token);
                if has_token && TokenMark::issued(mark) < *issued_before_s {
                    self.begin_close(conn, CloseReason::TokenRevoked);
                }
            }
        }
    }

    fn close_for(&mut self, conn: ConnId, close: &Disconnect) {
        // What comes from another node was checked there; a code that may not be sent is none.
        let code = CloseCode::new(close.code).unwrap_or(CloseCode::POLICY);
        self.begin_close_with(conn, CloseReason::Disconnected, Some(code), &close.reason);
    }
}
