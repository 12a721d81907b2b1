//! User queues: connections that first receive what their user has not acknowledged.
//!
//! Such a connection enters its user's topic the way one enters a room with a history
//! (`recovery.rs`): it asks the backplane, and is admitted between what the answer holds and what
//! follows. Until then it is in no topic of its user, and what it receives of it later arrives once
//! and in order.
//!
//! What was acknowledged is stored with the messages, not here: it is the same for all connections of
//! the user, on any node. An acknowledgement only passes through.
//!
//! Invariant: a connection's first topic is its user's, but while it stands in
//! `state/pending_user_queues.rs`; then its user's name is there.

use crate::ids::{ConnId, Position, TopicId, TopicKind, TopicName, UpTo};
use crate::link::{RecoveryReply, Uplink};
use crate::policy::rights::Action;
use crate::protocol::{ErrorCode, Event, Recovery, RequestId, Unrecovered};
use crate::shard::command_error::CommandError;
use crate::shard::state::Shard;
use crate::shard::state::pending_joins::JoinOptions;

impl Shard {
    /// A connection has opened whose user has a queue. `false`: there are as many topics as there may
    /// be.
    pub(super) fn open_queue(&mut self, conn: ConnId, name: TopicName) -> bool {
        let Some(at) = self.open_topic(&name, self.encoding_of(conn)) else { return false };
        self.ask_position(conn, at, &name, JoinOptions::default(), None);
        self.queues.users.insert(conn, name);
        true
    }

    /// A connection is in its user's topic from here on, and receives what it has not acknowledged.
    pub(super) fn admit_user(&mut self, user: &str, recovered: RecoveryReply, is_question: bool) {
        let RecoveryReply { at, conn, position, recovery, missed, .. } = recovered;
        self.enter_user(conn, at);
        self.answer_recovery(conn, &missed, is_question, |missed| Event::Queue {
            user,
            position,
            recovery,
            missed,
        });
        let is_first =
            matches!(recovery, Recovery::NotAsked | Recovery::NotRecovered(Unrecovered::Epoch));
        if is_first {
            self.acknowledge_start(at, position);
        }
    }

    /// A connection is in its user's topic from here on, and that is its first one.
    pub(super) fn enter_user(&mut self, conn: ConnId, at: TopicId) {
        self.queues.forget(conn);
        let c = self.conns.get_mut(conn.0).expect("who has gone is no longer pending");
        self.hub.join(at, conn.0.index, c);
        self.hub.bring_first(&mut self.conns, conn.0.index);
    }

    /// A client has received a first position of this history. Acknowledges offset 0 of it,
    /// so that the next connection of the user is answered from there.
    fn acknowledge_start(&mut self, at: TopicId, position: Position) {
        let topic = self.hub.at(at.0.index).name().clone();
        let up_to = UpTo { epoch: Some(position.epoch), offset: 0 };
        self.uplink.push_back(Uplink::Acknowledge { topic, up_to });
    }

    /// A user has dealt with messages to it.
    pub(super) fn on_ack_user(
        &mut self,
        conn: ConnId,
        named: Option<&str>,
        up_to: UpTo,
        id: Option<&RequestId>,
    ) -> Result<(), CommandError> {
        let topic = self.user_of(conn);
        if named.is_some_and(|named| TopicKind::User(named) != topic.kind()) {
            let message = "only messages to oneself can be acknowledged";
            return Err(CommandError(ErrorCode::Forbidden, message));
        }
        self.may(conn, Action::Acknowledge, topic.kind())?;
        self.counters.acks_of_users += 1;
        self.uplink.push_back(Uplink::Acknowledge { topic, up_to });
        if id.is_some() {
            self.say(conn, &Event::done(id, None));
        }
        Ok(())
    }
}
