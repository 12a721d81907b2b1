//! Taking a connection out of its shard.

use crate::ids::{ConnId, TopicId};
use crate::shard::conn::{ConnState, OPENED_UNIT_MS, ReadState};
use crate::shard::delivery::batch::SendBatch;
use crate::shard::delivery::unsent::UnsentFrames;
use crate::shard::memory::half_bytes;
use crate::shard::session::{
    NotNow, Session, SessionFrames, SessionJoin, SessionRoomToken, SessionTopic, WaitingJoin,
};
use crate::shard::state::Shard;

impl Shard {
    /// Takes a connection out: from here on this shard has nothing of it. `batch` is the caller's,
    /// between two portions; what waits there for the connection goes with it.
    pub fn take_session(&mut self, conn: ConnId, batch: &SendBatch) -> Result<Session, NotNow> {
        self.may_take(conn)?;
        let has_topics = self.encoding_of(conn).dialect().has_topics();
        let user = has_topics.then(|| self.user_of(conn));
        let is_in_user_topic = self.queues.user_of(conn).is_none();
        self.answer_those_who_left(conn);
        let unsent = self.take_unsent(conn, batch);
        let joins = self.take_joins(conn);
        let topics = self.take_topics(conn);
        let unsent = unsent.into_iter().map(|unsent| self.portable(unsent, &topics)).collect();
        self.queues.forget(conn);
        self.forget_questions(conn);
        let now_ms = self.life.now_ms;
        let expires_s = self.expiries.second_of(conn.0.index);
        self.expiries.remove(conn.0.index);
        self.room_tokens.forget(conn);
        let input = self.pauses.take(conn).unwrap_or_default();
        self.forget_usage(conn);
        let c = self.conns.remove(conn.0).expect("it was looked at");
        self.count_open(c.encoding, false);
        self.half_bytes -= half_bytes(c.decoder.as_deref());
        self.memory_paused.remove(&conn);
        if let Some(outbox) = &c.outbox {
            self.counters.outbox_bytes -= outbox.bytes() as u64;
        }
        Ok(Session {
            user,
            is_in_user_topic,
            has_token: c.has_token,
            rights: c.rights.into(),
            age_ms: now_ms.saturating_sub(u64::from(c.since) * OPENED_UNIT_MS),
            grants: self.grants.remove(conn.0.index),
            info: self.user_infos.remove(&conn.0.index),
            mark: self.token_marks.remove(conn.0.index),
            peer: self.named_peers.remove(conn.0.index),
            expires_in_ms: expires_s.map(|at_s| (1000 * at_s).saturating_sub(now_ms)),
            encoding: c.encoding,
            topics,
            joins,
            decoder: c.decoder,
            is_unread: c.unread != ReadState::Idle || !input.is_empty(),
            input,
            outbox: c.outbox,
            unsent,
        })
    }

    fn may_take(&mut self, conn: ConnId) -> Result<(), NotNow> {
        let c = self.conns.get(conn.0).ok_or(NotNow::Gone)?;
        match c.state {
            ConnState::Handshaking => return Err(NotNow::Handshaking),
            ConnState::Closing { .. } => return Err(NotNow::Closing),
            ConnState::Open => {}
        }
        if self.life.drain.is_some() {
            return Err(NotNow::Draining);
        }
        if !self.moves.is_settled(c.settled_by) {
            return Err(NotNow::NotSettled);
        }
        if self.has_open_question(conn) || self.token_checks.is_waiting(conn) {
            return Err(NotNow::QuestionUnderWay);
        }
        let topics: Vec<TopicId> = c.joined.iter().map(|it| self.hub.id_at(it.topic)).collect();
        if self.has_loss_waiting(&topics) {
            return Err(NotNow::LossUnderWay);
        }
        Ok(())
    }

    fn take_joins(&mut self, conn: ConnId) -> Vec<SessionJoin> {
        let pending = self.pendings.take_all(conn).into_iter();
        let of = |pending: crate::shard::state::pending_joins::PendingJoin| SessionJoin {
            room_token: self.room_token_of(conn, pending.topic),
            name: self.hub.at(pending.topic).name().clone(),
            id: pending.id,
            since: pending.since,
            info: pending.info,
            ack: pending.ack,
        };
        pending.map(of).collect()
    }

    /// Removes the connection from its topics, without leaves to the backplane.
    fn take_topics(&mut self, conn: ConnId) -> Vec<SessionTopic> {
        let c = self.conns.get(conn.0).expect("it was looked at");
        let indices: Vec<u32> = c.joined.iter().map(|membership| membership.topic).collect();
        let topics = indices.iter().map(|index| self.take_topic(conn, *index)).collect();
        for index in indices.iter().rev() {
            self.leave_locally(conn, *index);
        }
        topics
    }

    fn take_topic(&mut self, conn: ConnId, index: u32) -> SessionTopic {
        let topic = self.hub.at(index);
        let waiting = self.waiting.get_mut(&index).map(|waiters| {
            let mine = waiters.extract_if(.., |waiter| waiter.conn == conn);
            let of = |waiter: crate::shard::state::JoinWaiter| WaitingJoin {
                id: waiter.id,
                has_since: waiter.since,
                is_again: waiter.again,
            };
            mine.map(of).collect()
        });
        SessionTopic {
            name: topic.name().clone(),
            is_ready: topic.ready,
            position: self.positions.get(&index).copied(),
            ack: self.acks.mark_of(index, conn, self.life.now_ms),
            info: self.infos.get(&(conn, index)).cloned(),
            room_token: self.room_token_of(conn, index),
            waiting: waiting.unwrap_or_default(),
        }
    }

    fn room_token_of(&self, conn: ConnId, index: u32) -> Option<SessionRoomToken> {
        let token = self.room_tokens.get(conn, index)?;
        let left_ms = |at_s: u32| (1000 * u64::from(at_s)).saturating_sub(self.life.now_ms);
        let expires_in_ms = token.expires_s.map(left_ms);
        Some(SessionRoomToken { actions: token.actions, expires_in_ms })
    }

    fn leave_locally(&mut self, conn: ConnId, index: u32) {
        self.infos.remove(&(conn, index));
        self.end_acks(conn, index);
        let c = self.conns.get(conn.0).expect("it was looked at");
        let slot = c.joined.find(index).expect("it is one of its topics");
        let round = self.hub.at(index).round;
        let walk = round.and_then(|round| self.deliveries.walk_of(round));
        self.hub.leave(&mut self.conns, conn.0.index, slot, walk);
        // Also where others are in it: they may go before the session is put somewhere.
        self.hold(self.hub.id_at(index));
    }

    fn portable(&self, unsent: UnsentFrames, topics: &[SessionTopic]) -> SessionFrames {
        let pieces = unsent.source.and_then(|source| {
            let name = self.hub.get(source.at)?.name();
            let place = topics.iter().position(|topic| topic.name == *name)?;
            Some((place, source.pieces))
        });
        SessionFrames { bytes: unsent.bytes, pieces }
    }
}
