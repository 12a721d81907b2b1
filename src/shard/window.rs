//! Items from the backplane and to it, and events to one connection.

use crate::framing;
use crate::ids::{ConnId, TopicId};
use crate::link::{Delivery, Downlink, FullShare, Origin, PublishOutcome, Uplink};
use crate::protocol::dialect::Encoding;
use crate::protocol::{ErrorCode, Event, Recovery, RequestId};
use crate::shard::conn::ConnState;
use crate::shard::slow_consumer::frames::FrameKind;
use crate::shard::state::deliveries::{Follows, RoundFrame};
use crate::shard::state::{ARENA_FRAME_BYTES_MAX, Shard};
use bytes::Bytes;

impl Shard {
    /// An item from the backplane or an operator.
    pub fn handle_downlink(&mut self, item: Downlink, now_ms: u64) {
        match item {
            Downlink::Deliver { to, frame: bytes, except } => {
                self.counters.frames_in += 1;
                let kind = FrameKind::Message(None);
                self.queue_frame(to, RoundFrame { bytes, except, kind });
            }
            Downlink::DeliverWith(delivery) => self.on_delivery(*delivery),
            Downlink::Joined { at } => self.on_joined(at),
            Downlink::Lost { to, count } => self.on_lost(to, count),
            Downlink::Ack { conn, id, outcome } => self.on_ack(conn, id, outcome),
            Downlink::Settled => self.moves.on_settled(),
            Downlink::Recovered(recovered) => self.on_recovered(recovered),
            Downlink::Unrecoverable(unrecoverable) => self.on_unrecoverable(unrecoverable),
            Downlink::History(reply) => self.on_history_reply(*reply),
            Downlink::Presence(reply) => self.on_presence_reply(&reply),
            Downlink::HttpReply(reply) => self.on_http_reply(*reply),
            Downlink::Hook(reply) => self.handle_hook(*reply),
            Downlink::Inspect(question) => self.inspect(*question, |_| None),
            Downlink::Disconnect { at, close } => self.on_disconnect(at, close),
            Downlink::Drain { over_ms } => self.begin_drain(over_ms, now_ms),
        }
    }

    /// The next item for the backplane.
    pub fn poll_uplink(&mut self) -> Option<Uplink> {
        if self.uplink.is_empty() {
            self.ask_on();
        }
        self.uplink.pop_front()
    }

    /// The window was full: the item stays the next one. Until it is gone, no client may be read.
    pub fn return_uplink(&mut self, item: Uplink) {
        self.uplink.push_front(item);
    }

    /// Items that wait for room in the window.
    pub fn uplink_waiting(&self) -> usize {
        self.uplink.len()
    }

    /// Connections, whatever their state.
    pub fn connections(&self) -> usize {
        self.conns.len()
    }

    /// The caller's number for a connection's socket; `None`: the connection is closed.
    pub fn socket_key_of(&self, conn: ConnId) -> Option<u32> {
        Some(self.conns.get(conn.0)?.socket_key)
    }

    /// A connection of this shard, named for everybody.
    pub fn origin(&self, conn: ConnId) -> Origin {
        Origin { node: self.config.node, shard: self.config.id, conn }
    }

    /// Whether the connection still waits for its HTTP request.
    pub fn is_handshaking(&self, conn: ConnId) -> bool {
        self.conns.get(conn.0).is_some_and(|conn| conn.state == ConnState::Handshaking)
    }

    /// Brings the gauges up to date. On the caller's tick.
    pub fn measure(&mut self) {
        self.counters.topics = self.hub.topics_len() as u64;
        self.counters.members = self.hub.members_len() as u64;
        self.counters.uplink_waiting = self.uplink.len() as u64;
        self.counters.questions_waiting = self.questions.waiting() as u64;
        self.counters.connections_paused = self.pauses.len() as u64;
        self.counters.half_message_bytes = self.half_bytes as u64;
        self.counters.input_paused_bytes = self.pauses.rest_bytes() as u64;
        self.counters.acks_members = self.acks.members() as u64;
        self.counters.acks_lagging = self.acks.lagging() as u64;
    }

    /// Walks every list and asserts that they agree; for tests.
    #[cfg(any(test, debug_assertions))]
    pub fn check(&self) {
        self.hub.check(&self.conns);
        self.check_rates();
        for (_, conn) in self.conns.iter() {
            if !conn.is_open() {
                assert!(conn.joined.is_empty(), "only open connections are in topics");
            }
        }
    }

    pub(in crate::shard) fn on_delivery(&mut self, delivery: Delivery) {
        self.counters.frames_in += 1;
        let Delivery { to, frame: bytes, except, position, conflate_key } = delivery;
        if let (Some(position), Some(topic)) = (position, self.hub.get(to)) {
            self.positions.insert(to.0.index, position);
            if topic.has_acks {
                self.acks.note(to.0.index, position, self.life.now_ms);
            }
        }
        let kind = FrameKind::Message(conflate_key);
        self.queue_frame(to, RoundFrame { bytes, except, kind });
    }

    /// The backplane has subscribed to a topic: joins that waited for that are answered.
    pub(in crate::shard) fn on_joined(&mut self, at: TopicId) {
        let Some(topic) = self.hub.get_mut(at) else { return };
        topic.ready = true;
        let name = topic.name().clone();
        self.answer_waiters(at, &name);
    }

    pub(in crate::shard) fn on_ack(
        &mut self,
        conn: ConnId,
        id: Option<RequestId>,
        outcome: PublishOutcome,
    ) {
        let (code, message) = match outcome {
            PublishOutcome::Accepted(position) => {
                if id.is_some() {
                    let (id, room, recovery, missed) =
                        (id.as_ref(), None, Recovery::NotAsked, None);
                    self.say(conn, &Event::Ok { id, room, position, recovery, missed });
                }
                return;
            }
            PublishOutcome::Unavailable => {
                (ErrorCode::BackplaneUnavailable, "the backplane is away, the message was not sent")
            }
            PublishOutcome::Full(FullShare::Histories) => (
                ErrorCode::Overloaded,
                "your share of the histories is full: the message was not sent, publish to a room that \
                 has one or try again when messages have expired",
            ),
            PublishOutcome::Full(FullShare::IdempotencyKeys) => (
                ErrorCode::Overloaded,
                "too many keys are remembered: the message was not sent, try again in some minutes",
            ),
            PublishOutcome::Unknown => (
                ErrorCode::OutcomeUnknown,
                "the backplane broke while it had the message: it may or may not have been sent",
            ),
        };
        self.counters.requests_rejected += 1;
        self.say(conn, &Event::Error { id: id.as_ref(), code, message });
    }

    /// Open connections in an encoding of a dialect with topics: who a broadcast is for.
    pub fn broadcast_receivers(&self, encoding: Encoding) -> u32 {
        self.broadcast_receivers[encoding.place()]
    }

    /// A connection was opened, or is open no longer.
    pub(in crate::shard) fn count_open(&mut self, encoding: Encoding, is_open: bool) {
        let difference: i32 = if is_open { 1 } else { -1 };
        let connections = &mut self.counters.connections;
        *connections = connections.wrapping_add_signed(difference.into());
        if encoding.dialect().has_topics() {
            let open = &mut self.broadcast_receivers[encoding.place()];
            *open = open.wrapping_add_signed(difference);
        }
    }

    /// Sends an event to one connection, unless it is closing: nothing may follow a close frame
    /// (RFC 6455 §5.5.1), an answer that was still on its way included.
    pub(in crate::shard) fn say(&mut self, conn: ConnId, event: &Event<'_>) {
        self.send(conn, event, Follows::More);
    }

    /// Answers the question of a connection that is under way.
    pub(in crate::shard) fn answer(&mut self, conn: ConnId, event: &Event<'_>) {
        self.send(conn, event, Follows::Question);
    }

    pub(in crate::shard) fn send(&mut self, conn: ConnId, event: &Event<'_>, follows: Follows) {
        let Some(c) = self.conns.get(conn.0).filter(|c| c.is_open()) else { return };
        let frame = self.frame(event, c.encoding);
        self.queue_reply(conn, frame, follows);
    }

    /// An event as a frame for one connection, cut from the arena.
    pub(in crate::shard) fn frame(&mut self, event: &Event<'_>, encoding: Encoding) -> Bytes {
        if framing::frame_len(event, encoding) > ARENA_FRAME_BYTES_MAX {
            return framing::frame(event, encoding);
        }
        self.scratch.clear();
        framing::write(event, encoding, &mut self.scratch);
        self.arena.extend_from_slice(&self.scratch);
        self.arena.split().freeze()
    }
}
