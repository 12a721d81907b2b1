//! How what was said reaches those it was for: replies to one connection, and rounds.
//!
//! A *round* is everything the backplane handed over for one topic since the last round began. When
//! its turn comes, all its frames are joined into **one** buffer, shared by all members: a member
//! costs one write however many messages the round holds. A member who must not hear one of them
//! (`"echo":false`) gets a join of its own, and nobody else pays for it.
//!
//! Writes leave in portions of `send_batch_max`, out of a batch that holds a few of them; a round
//! of a large room takes several. Between them replies have their turn first, then the other
//! rounds: a round of a large room goes behind all others that wait, so a small room behind large
//! ones waits for one portion of each. A connection stands at most once in what waits: what a
//! second topic has for it is chained to the same write, so somebody in five rooms still costs one
//! system call's entry.
//!
//! Per delivery to one member: one look at the connection, one entry in the batch. No hash, no
//! atomic, no allocation, no copy. `tests/budget.rs` and `tests/layout.rs` hold exactly this sentence
//! as assertions.
//!
//! A frame comes to several shards as one buffer with one count of its owners, which is the one line
//! of cache that they all write to. So it is moved, from the window to the queue to the round to the
//! batch, and the count is touched once: when the batch lets go of it.

pub mod batch;

use crate::ids::{ConnId, SlotId, TopicId};
use crate::link::Recovered;
use crate::metrics::ShardCounters;
use crate::policy::limits::Limits;
use crate::policy::namespaces::{Namespaces, SlowConsumer};
use crate::shard::Shard;
use crate::shard::conn::{CloseReason, Conn, ConnState};
use crate::shard::delivery::batch::{SendBatch, SendOp};
use crate::shard::hub::{Hub, RoundId, Topic, Walk};
use crate::shard::slow_consumer::outbox::Pushed;
use crate::shard::slow_consumer::{BatchSource, FrameKind, FramePart, OutboxWriter};
use crate::slab::Slab;
use bytes::{Bytes, BytesMut};
use std::collections::VecDeque;

/// Frames are joined up to this size; what is beyond forms the next round. Half of what a socket
/// buffers by default, so that a member who keeps up takes a join whole. Never measured.
const JOIN_BYTES_MAX: usize = 128 * 1024;

/// Replies up to this size are copied to join them with others; longer ones are chained.
const REPLY_COPIED_BYTES_MAX: usize = 4 * 1024;

/// What the joins of excepted members may add up to in one round. They are quadratic: a thousand
/// members who each say something they do not want to hear need a thousand joins.
const OWN_JOINS_BYTES_MAX: usize = 1024 * 1024;

/// A batch that holds so much begins no further round: what it holds stays in memory until it is
/// written.
const BATCH_BYTES_MAX: usize = 1024 * 1024;

/// A batch holds so many portions: somebody who is in many small rooms hears all of them in one
/// write, and whatever comes next waits for no more than these.
const PORTIONS_MAX: usize = 4;

/// Slots looked at in one batch of a message to everybody: a slab that once held a million is long
/// when few are left in it.
const EMPTY_SLOTS_MAX: usize = 64 * 1024;

/// The topic of everybody: it has no member list, its members are all open connections.
pub const EVERYBODY: TopicId = TopicId(SlotId { index: u32::MAX, generation: 0 });

/// A frame for one connection only.
#[derive(Debug)]
struct QueuedReply {
    conn: ConnId,
    bytes: Bytes,
    follows: Follows,
}

/// What may follow a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Follows {
    /// Anything.
    More,
    /// The answer to the connection's next question, which may be asked now (`questions.rs`).
    Question,
    /// Nothing: the connection may end when it has left.
    Nothing,
}

/// A frame for everybody who is in the topic by then, but for one.
#[derive(Debug)]
pub(super) struct RoundFrame {
    pub(super) bytes: Bytes,
    pub(super) except: Option<ConnId>,
    pub(super) says: FrameKind,
}

/// What waits in a round.
#[derive(Debug)]
enum RoundItem {
    RoundFrame(RoundFrame),
    /// Somebody who hears what comes behind, and nothing before (`recovery.rs`).
    Joiner(Box<Recovered>),
}

/// Frames of one topic that wait for their turn, and those that are being written.
#[derive(Debug)]
struct Round {
    to: TopicId,
    frames: VecDeque<RoundItem>,
    current: Option<RoundWrite>,
}

/// What of a round is being written, and how far it has come.
#[derive(Debug)]
struct RoundWrite {
    walk: Walk,
    join: JoinedFrames,
    /// How many frames were taken out of the round for it. They wait until all of it is written.
    taken: usize,
    /// Members who must not hear all of it, and what they hear instead.
    own: Vec<(ConnId, JoinedFrames)>,
    /// The bytes of those.
    own_bytes: usize,
}

/// So many frames in one buffer; and what they are, where they may have to give way.
#[derive(Debug)]
struct JoinedFrames {
    bytes: Bytes,
    frames: u64,
    source: Option<BatchSource>,
}

/// Everything that waits to be written, and the rounds' pool.
#[derive(Debug, Default)]
pub(super) struct Deliveries {
    replies: VecDeque<QueuedReply>,
    rounds: Vec<Round>,
    free: Vec<RoundId>,
    queue: VecDeque<RoundId>,
    everybody: Option<RoundId>,
    /// What the joins of excepted members add up to now.
    own_bytes: usize,
    /// Connections found too slow while a list was being walked: closed after it.
    slow: Vec<u32>,
    frames_waiting: usize,
    /// Writes of the batch that are in no portion yet.
    writes_waiting: usize,
}

impl Deliveries {
    fn round(&mut self, id: RoundId) -> &mut Round {
        &mut self.rounds[id.get() as usize - 1]
    }

    /// A round from the pool, at the end of the queue.
    fn begin(&mut self, to: TopicId) -> RoundId {
        let id = self.free.pop().unwrap_or_else(|| {
            self.rounds.push(Round { to, frames: VecDeque::new(), current: None });
            RoundId::new(self.rounds.len() as u32).expect("one was just pushed")
        });
        self.round(id).to = to;
        self.queue.push_back(id);
        id
    }

    /// The first reply, joined with those to the same connection right behind it: one read may hold
    /// ten thousand pings, and a write has few buffers. What comes last is not joined
    /// with what a slow peer may be refused.
    fn pop_replies(&mut self, is_slow: bool) -> Option<QueuedReply> {
        let first = self.replies.pop_front()?;
        if first.bytes.len() > REPLY_COPIED_BYTES_MAX {
            return Some(first);
        }
        let (mut bytes, mut follows, mut more) = (first.bytes.len(), first.follows, 0);
        for next in self.replies.iter().take_while(|next| next.conn == first.conn) {
            let is_long = next.bytes.len() > REPLY_COPIED_BYTES_MAX
                || bytes + next.bytes.len() > JOIN_BYTES_MAX;
            let is_last = next.follows == Follows::Nothing;
            if follows == Follows::Nothing || is_long || (is_last && is_slow) {
                break;
            }
            (bytes, follows, more) =
                (bytes + next.bytes.len(), follows.max(next.follows), more + 1);
        }
        if more == 0 {
            return Some(first);
        }
        let mut joined = BytesMut::with_capacity(bytes);
        joined.extend_from_slice(&first.bytes);
        for next in self.replies.drain(..more) {
            joined.extend_from_slice(&next.bytes);
        }
        Some(QueuedReply { conn: first.conn, bytes: joined.freeze(), follows })
    }

    /// Somebody who stands first in a round of which nothing is being written.
    fn pop_newcomer(&mut self, id: RoundId) -> Option<Box<Recovered>> {
        let round = self.round(id);
        if round.current.is_some() || !matches!(round.frames.front(), Some(RoundItem::Joiner(_))) {
            return None;
        }
        let Some(RoundItem::Joiner(newcomer)) = round.frames.pop_front() else { return None };
        self.frames_waiting -= 1;
        Some(newcomer)
    }

    /// How far the topic of a round is being walked, if it is.
    pub(super) fn walk_of(&mut self, round: RoundId) -> Option<&mut Walk> {
        self.round(round).current.as_mut().map(|current| &mut current.walk)
    }

    /// What was being written is done, or nobody is left to hear it.
    fn end_walk(&mut self, current: &RoundWrite) {
        self.frames_waiting -= current.taken;
        self.own_bytes -= current.own_bytes;
    }
}

impl Shard {
    /// Whether [`Shard::take_batch`] has something to give.
    pub fn has_sends(&self) -> bool {
        let d = &self.deliveries;
        d.writes_waiting > 0 || !d.replies.is_empty() || !d.queue.is_empty()
    }

    /// Frames that are not written to everyone yet, in rounds and as replies: while there are many,
    /// the caller takes nothing more, neither from the backplane nor from clients.
    pub fn frames_waiting(&self) -> usize {
        self.deliveries.frames_waiting + self.deliveries.replies.len()
    }

    /// Fills `batch` with what is to be written next. The caller makes all the writes, reports the
    /// short ones ([`Shard::handle_short_write`]) and only then enters the shard again.
    pub fn take_batch(&mut self, batch: &mut SendBatch) {
        batch.finish();
        batch.begin_front();
        if self.take_replies(batch) {
            while self.may_go_on(batch)
                && !self.admit_newcomers()
                && let Some((id, current)) = self.next_round()
                && self.take_round(id, current, batch)
            {}
        }
        self.cut_portion(batch);
        self.counters.sends += batch.ops().len() as u64;
        self.deliveries.writes_waiting = batch.waiting();
        self.close_slow();
    }

    /// Whether another round may be begun. A batch is emptied before it grows further.
    fn may_go_on(&self, batch: &SendBatch) -> bool {
        batch.len() < PORTIONS_MAX * self.limits.send_batch_max
            && batch.held_bytes() < BATCH_BYTES_MAX
    }

    /// Puts as many writes into the portion as may be made at once. Whoever has gone since a write
    /// was put together hears nothing more.
    fn cut_portion(&mut self, batch: &mut SendBatch) {
        while batch.ops().len() < self.limits.send_batch_max {
            let Some(op) = batch.pop_waiting() else { return };
            if let Some(conn) = self.conns.get(op.conn.0) {
                // Only a write makes an outbox, and this is the only one that it has.
                debug_assert!(conn.outbox.is_none(), "what waits would be overtaken");
                batch.put(op);
            }
        }
    }

    /// The socket took `sent` bytes of a write, not all. The rest waits in the outbox.
    pub fn handle_short_write(&mut self, batch: &SendBatch, op: &SendOp, sent: usize) {
        self.counters.sends_short += 1;
        let bytes_max = self.outbox_bytes_max(op.conn);
        let Some(conn) = self.conns.get_mut(op.conn.0) else { return };
        let mut waiting = OutboxWriter {
            outbox: conn.outbox.get_or_insert_default(),
            bytes_max,
            hub: &self.hub,
            namespaces: &self.config.namespaces,
            counters: &mut self.counters,
        };
        let mut left = sent;
        let mut verdict = Pushed::Queued;
        for (buf, source) in batch.sourced_bufs(op) {
            let taken = left.min(buf.len());
            left -= taken;
            if taken < buf.len() && waiting.keep(buf, source, taken) == Pushed::Full {
                verdict = Pushed::Full;
                break;
            }
        }
        if verdict == Pushed::Full {
            self.deliveries.slow.push(op.conn.0.index);
            self.close_slow();
        }
    }

    /// The next slices of a connection's outbox, at most `max`; empty when nothing waits.
    pub fn outbox_slices(&self, conn: ConnId, max: usize) -> impl Iterator<Item = &[u8]> {
        let outbox = self.conns.get(conn.0).and_then(|conn| conn.outbox.as_deref());
        outbox.into_iter().flat_map(move |outbox| outbox.slices(max))
    }

    /// The socket took the first `taken` bytes of the outbox.
    pub fn handle_flushed(&mut self, conn: ConnId, taken: usize) {
        let Some(c) = self.conns.get_mut(conn.0) else { return };
        let Some(outbox) = &mut c.outbox else { return };
        outbox.advance(taken);
        self.counters.outbox_bytes -= taken as u64;
        if outbox.is_empty() {
            c.outbox = None;
            self.consider_leaving(conn);
        }
        self.ask_next(conn);
    }

    /// Queues a frame of a topic for its next round.
    pub(super) fn queue_frame(&mut self, to: TopicId, frame: RoundFrame) {
        let d = &mut self.deliveries;
        let round = if to == EVERYBODY {
            &mut d.everybody
        } else if let Some(topic) = self.hub.get_mut(to) {
            if topic.has_acks {
                self.acks.note(to.0.index, &frame.bytes, self.life.now_ms);
            }
            &mut topic.round
        } else {
            self.counters.dropped_stale += 1;
            return;
        };
        let id = match *round {
            Some(id) => id,
            None => {
                // `begin` cannot borrow while `round` points into `d`: note it, then set it.
                let id = d.begin(to);
                if to == EVERYBODY {
                    d.everybody = Some(id);
                } else if let Some(topic) = self.hub.get_mut(to) {
                    topic.round = Some(id);
                }
                id
            }
        };
        d.frames_waiting += 1;
        d.round(id).frames.push_back(RoundItem::RoundFrame(frame));
    }

    /// Whether frames of a round wait that are not being written yet.
    fn has_frames(&mut self, round: RoundId) -> bool {
        !self.deliveries.round(round).frames.is_empty()
    }

    /// Whether frames of a round wait or are being written.
    pub(super) fn is_busy(&mut self, round: RoundId) -> bool {
        let round = self.deliveries.round(round);
        round.current.is_some() || !round.frames.is_empty()
    }

    /// Admits somebody behind the frames that wait.
    pub(super) fn queue_newcomer(&mut self, round: RoundId, newcomer: Box<Recovered>) {
        self.deliveries.frames_waiting += 1;
        self.deliveries.round(round).frames.push_back(RoundItem::Joiner(newcomer));
    }

    /// Admits those who stand first in the round whose turn it is. What they are told goes before
    /// what the round has for them, so the batch must end: `true`.
    fn admit_newcomers(&mut self) -> bool {
        let d = &mut self.deliveries;
        let Some(id) = d.queue.front().copied() else { return false };
        let mut any = false;
        while let Some(newcomer) = self.deliveries.pop_newcomer(id) {
            any = true;
            self.admit(*newcomer);
        }
        any
    }

    /// Queues a frame for one connection. Nothing follows the last one, which may be empty: then the
    /// connection ends behind what waits for it.
    pub(super) fn queue_reply(&mut self, conn: ConnId, bytes: Bytes, follows: Follows) {
        self.deliveries.replies.push_back(QueuedReply { conn, bytes, follows });
    }

    /// Puts replies into the batch. `false`: the batch is full, or must end early.
    fn take_replies(&mut self, batch: &mut SendBatch) -> bool {
        while let Some(reply) = self.deliveries.replies.front() {
            let conn = reply.conn;
            let most = self.limits.send_batch_max;
            if batch.in_front() >= most || batch.len() >= 2 * PORTIONS_MAX * most {
                return false;
            }
            let c = self.conns.get(conn.0);
            let is_slow = c.is_some_and(|c| c.outbox.is_some());
            let reply = self.deliveries.pop_replies(is_slow).expect("looked at above");
            if let Some(reply) = self.take_reply(reply, batch) {
                self.deliveries.replies.push_front(reply);
                return false;
            }
        }
        true
    }

    /// Puts one reply where it belongs, or gives it back: the connection's write is full.
    fn take_reply(&mut self, reply: QueuedReply, batch: &mut SendBatch) -> Option<QueuedReply> {
        let outbox_bytes_max = self.outbox_bytes_max(reply.conn);
        let conn = self.conns.get_mut(reply.conn.0)?;
        let bytes = reply.bytes.len() as u64;
        match &mut conn.outbox {
            _ if reply.bytes.is_empty() => {} // Only the end of what waits.
            None => {
                let buf = batch.add_buf(reply.bytes.clone());
                let told = add_write(batch, conn, reply.conn, buf);
                // Replies go first, and take with them what waits for the same connection.
                let before = conn.place;
                let (place, displaced) = batch.bring_forward(before);
                conn.place = place;
                if displaced != reply.conn
                    && let Some(displaced) = self.conns.get_mut(displaced.0)
                {
                    displaced.place = before;
                }
                if !told {
                    return Some(reply);
                }
            }
            Some(outbox) if reply.follows == Follows::Nothing => {
                self.counters.outbox_bytes += bytes;
                outbox.push_always(reply.bytes);
            }
            Some(outbox) => {
                let (hub, namespaces) = (&self.hub, &*self.config.namespaces);
                let (bytes_max, counters) = (outbox_bytes_max, &mut self.counters);
                let mut waiting = OutboxWriter { outbox, bytes_max, hub, namespaces, counters };
                if waiting.keep(&reply.bytes, None, 0) == Pushed::Full {
                    self.deliveries.slow.push(reply.conn.0.index);
                }
            }
        }
        self.counters.bytes_out += bytes;
        let conn = self.conns.get_mut(reply.conn.0)?;
        match reply.follows {
            Follows::More => {}
            Follows::Question => self.questions.note_answered(reply.conn),
            Follows::Nothing => {
                if let ConnState::Closing { close_queued, .. } = &mut conn.state {
                    *close_queued = true;
                }
                self.consider_leaving(reply.conn);
            }
        }
        None
    }

    /// The round whose turn it is, out of the queue, with what of it is to be written. `None`:
    /// nothing is waiting.
    fn next_round(&mut self) -> Option<(RoundId, RoundWrite)> {
        loop {
            let id = self.deliveries.queue.pop_front()?;
            let round = self.deliveries.round(id);
            let to = round.to;
            if let Some(current) = round.current.take().or_else(|| self.begin_walk(id, to)) {
                return Some((id, current));
            }
            if self.has_frames(id) {
                self.deliveries.queue.push_front(id);
                return None; // a newcomer stands first
            }
            self.end_round(id, to);
        }
    }

    /// Joins what may be joined of a round. `None`: there is nobody to hear it, or no more of it.
    fn begin_walk(&mut self, id: RoundId, to: TopicId) -> Option<RoundWrite> {
        let (end, slow) = if to == EVERYBODY {
            (self.conns.high(), SlowConsumer::Close)
        } else {
            let of = |topic: &Topic| (topic.members().len(), topic.slow);
            self.hub.get(to).map_or((0, SlowConsumer::Close), of)
        };
        let at = (slow != SlowConsumer::Close).then_some(to);
        while matches!(self.deliveries.round(id).frames.front(), Some(RoundItem::RoundFrame(_))) {
            if end == 0 {
                self.deliveries.round(id).frames.pop_front();
                self.deliveries.frames_waiting -= 1;
                continue;
            }
            let mut current = self.join_frames(id, at);
            if !current.join.bytes.is_empty() {
                current.walk = Walk { at: 0, end };
                return Some(current);
            }
            self.deliveries.end_walk(&current);
        }
        None
    }

    fn end_round(&mut self, id: RoundId, to: TopicId) {
        self.deliveries.free.push(id);
        if to == EVERYBODY {
            self.deliveries.everybody = None;
        } else if let Some(topic) = self.hub.get_mut(to) {
            topic.round = None;
        }
    }

    /// Takes frames out of a round, up to [`JOIN_BYTES_MAX`] but at least one, and joins them. `at`:
    /// its topic, if that lets messages give way.
    fn join_frames(&mut self, id: RoundId, at: Option<TopicId>) -> RoundWrite {
        let mut taken = std::mem::take(&mut self.scratch_frames);
        let own_bytes_max = OWN_JOINS_BYTES_MAX.saturating_sub(self.deliveries.own_bytes);
        let frames = &mut self.deliveries.round(id).frames;
        let (mut bytes, mut excepted) = (0, 0);
        while let Some(RoundItem::RoundFrame(next)) = frames.front() {
            bytes += next.bytes.len();
            excepted += usize::from(next.except.is_some());
            let is_too_much = bytes > JOIN_BYTES_MAX || excepted * bytes > own_bytes_max;
            if is_too_much && !taken.is_empty() {
                break;
            }
            if let Some(RoundItem::RoundFrame(frame)) = frames.pop_front() {
                taken.push(frame);
            }
        }
        let mut own: Vec<(ConnId, JoinedFrames)> = Vec::new();
        for except in taken.iter().filter_map(|frame| frame.except) {
            if own.iter().all(|(conn, _)| *conn != except) {
                own.push((except, join(&taken, at, |other| other != Some(except))));
            }
        }
        let own_bytes = own.iter().map(|(_, join)| join.bytes.len()).sum();
        self.deliveries.own_bytes += own_bytes;
        let count = taken.len();
        let join = match &mut taken[..] {
            // Moved, not cloned: see the module.
            [_] if at.is_none() => {
                let alone = taken.pop().expect("there is one");
                JoinedFrames { bytes: alone.bytes, frames: 1, source: None }
            }
            _ => join(&taken, at, |_| true),
        };
        taken.clear();
        self.scratch_frames = taken;
        RoundWrite { walk: Walk::default(), join, taken: count, own, own_bytes }
    }

    /// Puts as much of a round into the batch as fits. What is left goes behind all other rounds.
    /// `false`: the batch must end.
    fn take_round(&mut self, id: RoundId, mut current: RoundWrite, batch: &mut SendBatch) -> bool {
        let to = self.deliveries.round(id).to;
        if batch.waiting() >= writes_max(&self.limits, current.walk) {
            // It is the next to have room.
            self.deliveries.round(id).current = Some(current);
            self.deliveries.queue.push_front(id);
            return false;
        }
        // A room that is longer than a portion lets others follow; a shorter one keeps its place, so
        // that who is in many hears them in the order in which they spoke.
        let is_long = current.walk.end - current.walk.at > self.limits.send_batch_max;
        let bytes = std::mem::take(&mut current.join.bytes);
        let buf = batch.add_sourced(bytes, current.join.source.clone());
        let goes_on = if to == EVERYBODY {
            self.walk_everybody(&mut current, buf, batch)
        } else {
            self.walk_members(to, &mut current, buf, batch)
        };
        let d = &mut self.deliveries;
        if current.walk.at < current.walk.end {
            current.join.bytes = batch.buf(buf).clone(); // for the next batch
            d.round(id).current = Some(current);
            match is_long {
                true => d.queue.push_back(id),
                false => d.queue.push_front(id),
            }
            return goes_on;
        }
        d.end_walk(&current);
        if d.round(id).frames.is_empty() {
            self.end_round(id, to);
        } else {
            d.queue.push_back(id);
        }
        goes_on
    }

    fn walk_members(
        &mut self,
        to: TopicId,
        current: &mut RoundWrite,
        buf: u32,
        batch: &mut SendBatch,
    ) -> bool {
        let topic = self.hub.get(to).expect("a topic that goes stops its walk");
        let mut special = places_of(&self.conns, to, current);
        let mut sink = MemberWriter {
            batch,
            conns: &mut self.conns,
            counters: &mut self.counters,
            slow: &mut self.deliveries.slow,
            outbox_bytes_max: self.limits.outbox_bytes_max,
            hub: &self.hub,
            namespaces: &self.config.namespaces,
        };
        let writes_max = writes_max(&self.limits, current.walk);
        while current.walk.at < current.walk.end {
            let room = writes_max.saturating_sub(sink.batch.waiting());
            if room == 0 {
                return false;
            }
            let next_special = special.last().map_or(current.walk.end, |(place, _)| *place);
            let stop = next_special.min(current.walk.at + room);
            let span = &topic.members()[current.walk.at..stop];
            let members = span.iter().map(|member| member.conn);
            let told = sink.offer_all(members, buf, current.join.frames);
            current.walk.at += told;
            if told < span.len() {
                return false;
            }
            if special.last().is_some_and(|(place, _)| *place == current.walk.at) {
                let (_, own) = special.pop().expect("looked at above");
                let member = topic.members()[current.walk.at].conn;
                let (_, own) = &current.own[own];
                if !sink.offer_own(member, own) {
                    return false;
                }
                current.walk.at += 1;
            }
        }
        true
    }

    fn walk_everybody(
        &mut self,
        current: &mut RoundWrite,
        buf: u32,
        batch: &mut SendBatch,
    ) -> bool {
        let stop = current.walk.end.min(current.walk.at + EMPTY_SLOTS_MAX);
        let mut sink = MemberWriter {
            batch,
            conns: &mut self.conns,
            counters: &mut self.counters,
            slow: &mut self.deliveries.slow,
            outbox_bytes_max: self.limits.outbox_bytes_max,
            hub: &self.hub,
            namespaces: &self.config.namespaces,
        };
        let writes_max = writes_max(&self.limits, current.walk);
        while current.walk.at < stop {
            if sink.batch.waiting() >= writes_max {
                return false;
            }
            let index = current.walk.at as u32;
            let is_member = |conn: &Conn| conn.is_open() && !conn.echo;
            if sink.conns.at(index).is_some_and(is_member) {
                let id = sink.conns.id_at(index).map(ConnId);
                let own = current.own.iter().find(|(conn, _)| Some(*conn) == id);
                let told = match own {
                    Some((_, own)) => sink.offer_own(index, own),
                    None => sink.offer_all([index], buf, current.join.frames) == 1,
                };
                if !told {
                    return false;
                }
            }
            current.walk.at += 1;
        }
        current.walk.at == current.walk.end
    }

    fn close_slow(&mut self) {
        while let Some(index) = self.deliveries.slow.pop() {
            if let Some(id) = self.conns.id_at(index) {
                self.begin_close(ConnId(id), CloseReason::Slow);
            }
        }
    }

    /// The topic of a round has gone: nobody is left to be told what was being written.
    pub(super) fn stop_walk(&mut self, round: RoundId) {
        if let Some(current) = self.deliveries.round(round).current.take() {
            self.deliveries.end_walk(&current);
        }
    }

    fn outbox_bytes_max(&self, conn: ConnId) -> usize {
        let echo = self.conns.get(conn.0).is_some_and(|conn| conn.echo);
        if echo { self.limits.echo_outbox_bytes_max() } else { self.limits.outbox_bytes_max }
    }
}

/// Where a walk over members writes to.
struct MemberWriter<'a> {
    batch: &'a mut SendBatch,
    conns: &'a mut Slab<Conn>,
    counters: &'a mut ShardCounters,
    slow: &'a mut Vec<u32>,
    outbox_bytes_max: usize,
    hub: &'a Hub,
    namespaces: &'a Namespaces,
}

impl MemberWriter<'_> {
    /// Offers one buffer of so many frames to connections in order; answers how many were served.
    /// Fewer than all: the next one's write is full.
    fn offer_all(
        &mut self,
        members: impl IntoIterator<Item = u32>,
        buf: u32,
        frames: u64,
    ) -> usize {
        let bytes = self.batch.buf(buf).len() as u64;
        let mut told = 0;
        for index in members {
            let (id, conn) = self.conns.with_id_mut(index).expect("a member is a connection");
            if conn.outbox.is_some() {
                self.wait(index, buf);
            } else if !add_write(self.batch, conn, ConnId(id), buf) {
                break;
            }
            told += 1;
        }
        self.counters.deliveries += told as u64 * frames;
        self.counters.bytes_out += told as u64 * bytes;
        told
    }

    /// Offers a member the join of its own, which may be empty. `false`: its write is full.
    fn offer_own(&mut self, member: u32, own: &JoinedFrames) -> bool {
        if own.bytes.is_empty() {
            return true;
        }
        let buf = self.batch.add_sourced(own.bytes.clone(), own.source.clone());
        self.offer_all([member], buf, own.frames) == 1
    }

    #[cold]
    fn wait(&mut self, index: u32, buf: u32) {
        let conn = self.conns.at_mut(index).expect("a member is a connection");
        let mut waiting = OutboxWriter {
            outbox: conn.outbox.get_or_insert_default(),
            bytes_max: self.outbox_bytes_max,
            hub: self.hub,
            namespaces: self.namespaces,
            counters: self.counters,
        };
        if waiting.keep(self.batch.buf(buf), self.batch.source(buf), 0) == Pushed::Full {
            self.slow.push(index);
        }
    }
}

/// Adds a buffer to what is written to a connection next. `false`: its write is full.
#[inline]
fn add_write(batch: &mut SendBatch, conn: &mut Conn, id: ConnId, buf: u32) -> bool {
    if batch.is_at(conn.place, id.0.index) {
        return batch.chain(conn.place, buf);
    }
    conn.place = batch.push(conn.socket_key, id, buf);
    true
}

/// How many writes may wait while a round is being walked. One that is longer than a portion leaves
/// room for others after each.
fn writes_max(limits: &Limits, walk: Walk) -> usize {
    let portions = if walk.end - walk.at > limits.send_batch_max { 1 } else { PORTIONS_MAX };
    portions * limits.send_batch_max
}

/// Where the members with a join of their own stand, last one first.
fn places_of(conns: &Slab<Conn>, to: TopicId, current: &RoundWrite) -> Vec<(usize, usize)> {
    let mut places = Vec::new();
    for (own, (conn, _)) in current.own.iter().enumerate() {
        let Some(conn) = conns.get(conn.0) else { continue };
        let Some(slot) = conn.joined.find(to.0.index) else { continue };
        let place = conn.joined.get(slot).expect("just found").place as usize;
        if (current.walk.at..current.walk.end).contains(&place) {
            places.push((place, own));
        }
    }
    places.sort_unstable_by(|a, b| b.cmp(a));
    places
}

/// The frames that `wanted` lets through, in one buffer. One frame alone is not copied. `at`: their
/// topic, if that lets messages give way.
fn join(
    frames: &[RoundFrame],
    at: Option<TopicId>,
    wanted: impl Fn(Option<ConnId>) -> bool,
) -> JoinedFrames {
    let chosen = || frames.iter().filter(|frame| wanted(frame.except));
    let (mut count, mut bytes) = (0, 0);
    for frame in chosen() {
        (count, bytes) = (count + 1, bytes + frame.bytes.len());
    }
    let joined = match count {
        0 | 1 => chosen().next().map_or_else(Bytes::new, |frame| frame.bytes.clone()),
        _ => {
            let mut joined = BytesMut::with_capacity(bytes);
            chosen().for_each(|frame| joined.extend_from_slice(&frame.bytes));
            joined.freeze()
        }
    };
    let piece = |frame: &RoundFrame| FramePart { bytes: frame.bytes.clone(), says: frame.says };
    let source = at.map(|at| BatchSource { at, pieces: chosen().map(piece).collect() });
    JoinedFrames { bytes: joined, frames: count, source }
}
