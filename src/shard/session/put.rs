//! Putting a session into a shard.

use crate::ids::TopicKind;
use crate::ids::{ConnId, Position, TopicId};
use crate::shard::conn::{Conn, ConnState, OPENED_UNIT_MS, ReadState};
use crate::shard::memory::half_bytes;
use crate::shard::room_token::RoomToken;
use crate::shard::session::{
    NotNow, Session, SessionFrames, SessionJoin, SessionRoomToken, SessionTopic,
};
use crate::shard::slow_consumer::OutboxWriter;
use crate::shard::slow_consumer::frames::BatchSource;
use crate::shard::slow_consumer::outbox::Pushed;
use crate::shard::state::deliveries::Follows;
use crate::shard::state::pending_joins::JoinOptions;
use crate::shard::state::{JoinWaiter, Shard};

impl Shard {
    /// Puts a session in; its socket is the caller's number `socket_key`. The caller watches the
    /// socket, for room to write too if something waits for it ([`Shard::outbox_slices`]), and
    /// reads it when [`Shard::poll_resumed`] names it.
    pub fn put_session(
        &mut self,
        session: Box<Session>,
        socket_key: u32,
        now_ms: u64,
    ) -> Result<ConnId, (Box<Session>, NotNow)> {
        if let Err(why) = self.may_put(&session) {
            return Err((session, why));
        }
        let Session { encoding, .. } = *session;
        let mut conn = Conn::new(socket_key);
        (conn.state, conn.encoding) = (ConnState::Open, encoding);
        (conn.has_token, conn.rights) = (session.has_token, session.rights.into());
        conn.since = (now_ms.saturating_sub(session.age_ms) / OPENED_UNIT_MS) as u32;
        self.half_bytes += half_bytes(session.decoder.as_deref());
        conn.decoder = session.decoder;
        let conn = ConnId(self.conns.insert(conn).expect("there is room"));
        self.count_open(encoding, true);
        if let Some(grants) = session.grants {
            self.grants.insert(conn.0.index, grants);
        }
        if let Some(info) = session.info {
            self.user_infos.set(conn.0.index, info);
        }
        self.token_marks.set(conn.0.index, session.mark);
        if let Some(peer) = session.peer {
            self.named_peers.insert(conn.0.index, peer);
        }
        let keys: Vec<TopicId> =
            session.topics.into_iter().map(|topic| self.put_topic(conn, topic, now_ms)).collect();
        if let Some(left_ms) = session.expires_in_ms {
            self.handle_expiry(conn, now_ms + left_ms);
        }
        if let Some(mut outbox) = session.outbox {
            outbox.rebind(|name| self.hub.find(name, encoding));
            outbox.restart_stall();
            self.counters.outbox_bytes += outbox.bytes() as u64;
            self.conns.get_mut(conn.0).expect("it was just put").outbox = Some(outbox);
        }
        session.unsent.into_iter().for_each(|frames| self.put_unsent(conn, frames, &keys));
        if let Some(user) = session.user.filter(|_| !session.is_in_user_topic) {
            let is_open = self.open_queue(conn, user);
            debug_assert!(is_open, "there is room for every topic");
        }
        let joins = session.joins.into_iter();
        let of_rooms = joins.filter(|join| matches!(join.name.kind(), TopicKind::Room(_)));
        of_rooms.for_each(|join| self.put_join(conn, join, now_ms));
        if session.is_unread {
            self.conns.get_mut(conn.0).expect("it was just put").unread = ReadState::Paused;
            self.keep_rest(conn, &session.input);
            self.resume(conn);
        }
        self.close_slow();
        self.close_if_put_revoked(conn);
        Ok(conn)
    }

    fn may_put(&mut self, session: &Session) -> Result<(), NotNow> {
        if self.life.drain.is_some() {
            return Err(NotNow::Draining);
        }
        let topics = session.topics.iter().map(|topic| &topic.name);
        let joins = session.joins.iter().map(|join| &join.name);
        let is_new =
            |name: &&crate::ids::TopicName| self.hub.find(name, session.encoding).is_none();
        let new =
            topics.chain(joins).filter(is_new).count() + usize::from(!session.is_in_user_topic);
        let has_room = self.hub.topics_len() + new <= self.limits.topics_per_shard_max;
        if !has_room || self.conns.len() >= self.limits.connections_per_shard_max {
            return Err(NotNow::Full);
        }
        if self.is_everybody_busy() {
            return Err(NotNow::RoundUnderWay);
        }
        session.topics.iter().try_for_each(|topic| self.may_put_topic(session, topic))
    }

    fn may_put_topic(&mut self, session: &Session, topic: &SessionTopic) -> Result<(), NotNow> {
        let Some(at) = self.hub.find(&topic.name, session.encoding) else {
            return if topic.is_ready { Err(NotNow::NotHeld) } else { Ok(()) };
        };
        let here = self.hub.get(at).expect("it was just found");
        if topic.is_ready && !here.ready {
            return Err(NotNow::NotHeld);
        }
        if let Some(round) = here.round
            && self.is_busy(round)
        {
            return Err(NotNow::RoundUnderWay);
        }
        match (topic.position, self.positions.get(&at.0.index)) {
            (Some(there), Some(here)) if there != *here => Err(NotNow::OtherPosition),
            _ => Ok(()),
        }
    }

    fn put_topic(&mut self, conn: ConnId, topic: SessionTopic, now_ms: u64) -> TopicId {
        let at = self.enter(conn, &topic.name).expect("there is room for every topic");
        let index = at.0.index;
        if let Some(position) = topic.position {
            self.positions.insert(index, position);
        }
        if let Some(mark) = topic.ack {
            let policy = self.config.namespaces.policy(topic.name.kind());
            let position = topic.position.unwrap_or(Position { epoch: 0, offset: 0 });
            self.acks.put(index, conn, policy.ack_timeout_ms, (position, mark), now_ms);
            self.hub.get_mut(at).expect("it was just entered").has_acks = true;
        }
        if let Some(info) = topic.info {
            self.infos.set((conn, index), info);
        }
        self.put_room_token(conn, index, topic.room_token, now_ms);
        let is_ready = self.is_topic_ready(at);
        for waiting in topic.waiting {
            if is_ready {
                self.say_joined(conn, waiting.id.as_ref(), &topic.name, waiting.has_since);
            } else {
                let (id, since, again) = (waiting.id, waiting.has_since, waiting.is_again);
                self.waiting.entry(index).or_default().push(JoinWaiter { conn, id, since, again });
            }
        }
        at
    }

    /// Asks again for a join that was not answered.
    fn put_join(&mut self, conn: ConnId, join: SessionJoin, now_ms: u64) {
        let at = self.open_topic(&join.name, self.encoding_of(conn));
        let at = at.expect("there is room for every topic");
        let (since, info, ack) = (join.since, join.info.as_deref(), join.ack);
        let options = JoinOptions { since, info, ack, room_token: None };
        self.ask_position(conn, at, &join.name, options, join.id);
        self.put_room_token(conn, at.0.index, join.room_token, now_ms);
    }

    fn put_room_token(
        &mut self,
        conn: ConnId,
        index: u32,
        token: Option<SessionRoomToken>,
        now_ms: u64,
    ) {
        let Some(SessionRoomToken { actions, expires_in_ms }) = token else { return };
        let second = |left_ms: u64| (now_ms + left_ms).div_ceil(1000);
        let second = |left_ms| u32::try_from(second(left_ms)).unwrap_or(u32::MAX);
        let expires_s = expires_in_ms.map(second);
        self.room_tokens.set(conn, index, RoomToken { actions, expires_s });
    }

    /// Behind what waits already; or to be written next, if nothing does.
    fn put_unsent(&mut self, conn: ConnId, frames: SessionFrames, keys: &[TopicId]) {
        let bytes_max = self.outbox_bytes_max(conn);
        let c = self.conns.get_mut(conn.0).expect("it was just put");
        let Some(outbox) = &mut c.outbox else {
            return self.queue_reply(conn, frames.bytes, Follows::More);
        };
        let (hub, namespaces) = (&self.hub, &*self.config.namespaces);
        let (counters, losers) = (&mut self.counters, &mut self.deliveries.losers);
        let index = conn.0.index;
        let mut writer =
            OutboxWriter { outbox, bytes_max, hub, namespaces, counters, losers, index };
        let source = frames.pieces.map(|(place, pieces)| BatchSource { at: keys[place], pieces });
        if writer.keep(&frames.bytes, source.as_ref(), 0) == Pushed::Full {
            self.deliveries.slow.push(index);
        }
    }
}
