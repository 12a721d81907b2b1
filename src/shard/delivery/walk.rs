//! Handing the frames of a round out to its members, a portion at a time.
//!
//! Per member: one look at the connection, one entry in the batch. A connection that still has bytes
//! waiting gets the frames into its outbox instead.

use crate::ids::{ConnId, TopicId};
use crate::link::connections::encoding_of_everybody;
use crate::metrics::ShardCounters;
use crate::policy::limits::Limits;
use crate::policy::namespaces::{Namespaces, SlowConsumer};
use crate::protocol::dialect::Encoding;
use crate::shard::conn::Conn;
use crate::shard::delivery::batch::SendBatch;
use crate::shard::hub::{Hub, RoundId, Walk};
use crate::shard::slow_consumer::OutboxWriter;
use crate::shard::slow_consumer::outbox::Pushed;
use crate::shard::state::Shard;
use crate::shard::state::deliveries::{JoinedFrames, PORTIONS_MAX, RoundWrite};
use crate::slab::Slab;

/// Slots looked at in one batch of a message to everybody: a slab that once held a million is long
/// when few are left in it.
const EMPTY_SLOTS_MAX: usize = 64 * 1024;

impl Shard {
    /// The round whose turn it is, out of the queue, with what of it is to be written. `None`:
    /// nothing is waiting.
    pub(super) fn next_round(&mut self) -> Option<(RoundId, RoundWrite)> {
        loop {
            let id = self.deliveries.queue.pop_front()?;
            let round = self.deliveries.round(id);
            let to = round.to;
            if let Some(current) = round.current.take().or_else(|| self.begin_walk(id, to)) {
                return Some((id, current));
            }
            if self.deliveries.has_items(id) {
                self.deliveries.queue.push_front(id);
                return None; // A joiner or a loss is first.
            }
            self.end_round(id, to);
        }
    }

    /// Joins what may be joined of a round. `None`: there is nobody to receive it, or no more of it.
    fn begin_walk(&mut self, id: RoundId, to: TopicId) -> Option<RoundWrite> {
        let is_everybody = encoding_of_everybody(to).is_some();
        let end = match is_everybody {
            true => self.conns.capacity_used(),
            false => self.hub.get(to).map_or(0, |topic| topic.members().len()),
        };
        let at = self.droppable(to);
        while self.deliveries.has_frame_first(id) {
            if end == 0 {
                self.deliveries.drop_first(id);
                continue;
            }
            let mut current = match is_everybody {
                true => self.deliveries.join_for_everybody(id),
                false => self.deliveries.join_frames(id, at, &mut self.scratch_frames),
            };
            if !current.is_empty() {
                current.walk = Walk { at: 0, end };
                return Some(current);
            }
            self.deliveries.end_walk(&current);
        }
        None
    }

    /// The topic, if its messages may be dropped for slow members.
    pub(super) fn droppable(&self, to: TopicId) -> Option<TopicId> {
        let topic = self.hub.get(to)?;
        (topic.slow != SlowConsumer::Close).then_some(to)
    }

    /// Puts as much of a round into the batch as fits. The rest is queued after all other rounds.
    /// `false`: the batch must end.
    pub(super) fn take_round(
        &mut self,
        id: RoundId,
        mut current: RoundWrite,
        batch: &mut SendBatch,
    ) -> bool {
        let to = self.deliveries.round(id).to;
        if batch.waiting() >= writes_max(&self.limits, current.walk) {
            // It is the next to have room.
            self.deliveries.round(id).current = Some(current);
            self.deliveries.queue.push_front(id);
            return false;
        }
        // A room that is longer than a portion lets others follow; a shorter one keeps its place, so
        // that a member of many receives them in the order in which they came.
        let is_long = current.walk.end - current.walk.at > self.limits.send_batch_max;
        let goes_on = match encoding_of_everybody(to) {
            Some(_) => self.write_to_everybody(&mut current, batch),
            None => self.write_to_members(to, &mut current, batch),
        };
        let d = &mut self.deliveries;
        if current.walk.at < current.walk.end {
            d.round(id).current = Some(current);
            match is_long {
                true => d.queue.push_back(id),
                false => d.queue.push_front(id),
            }
            return goes_on;
        }
        d.end_walk(&current);
        if d.has_items(id) {
            d.queue.push_back(id);
        } else {
            self.end_round(id, to);
        }
        goes_on
    }

    fn write_to_members(
        &mut self,
        to: TopicId,
        current: &mut RoundWrite,
        batch: &mut SendBatch,
    ) -> bool {
        let buf = add_join(batch, &mut current.join);
        let goes_on = self.walk_members(to, current, buf, batch);
        if current.walk.at < current.walk.end {
            current.join.bytes = batch.buf(buf).clone(); // for the next batch
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
        let mut special = places_of(&self.conns, to, current);
        let writes_max = writes_max(&self.limits, current.walk);
        let mut writer = self.member_writer(batch);
        let topic = writer.hub.get(to).expect("a topic that goes stops its walk");
        while current.walk.at < current.walk.end {
            let room = writes_max.saturating_sub(writer.batch.waiting());
            if room == 0 {
                return false;
            }
            let next_special = special.last().map_or(current.walk.end, |(place, _)| *place);
            let stop = next_special.min(current.walk.at + room);
            let span = &topic.members()[current.walk.at..stop];
            let members = span.iter().map(|member| member.conn);
            let written = writer.offer_all(members, buf, current.join.frames);
            current.walk.at += written;
            if written < span.len() {
                return false;
            }
            if special.last().is_some_and(|(place, _)| *place == current.walk.at) {
                let (_, own) = special.pop().expect("looked at above");
                let member = topic.members()[current.walk.at].conn;
                let (_, own) = &current.own[own];
                if !writer.offer_own(member, own) {
                    return false;
                }
                current.walk.at += 1;
            }
        }
        true
    }

    fn write_to_everybody(&mut self, current: &mut RoundWrite, batch: &mut SendBatch) -> bool {
        let joins = current.by_encoding.iter_mut();
        let bufs: Vec<(Encoding, u32, u64)> =
            joins.map(|(encoding, join)| (*encoding, add_join(batch, join), join.frames)).collect();
        let goes_on = self.walk_everybody(current, &bufs, batch);
        if current.walk.at < current.walk.end {
            for ((_, join), (_, buf, _)) in current.by_encoding.iter_mut().zip(&bufs) {
                join.bytes = batch.buf(*buf).clone(); // for the next batch
            }
        }
        goes_on
    }

    /// One walk over all connections; each gets the frame of its encoding, if there is one.
    fn walk_everybody(
        &mut self,
        current: &mut RoundWrite,
        bufs: &[(Encoding, u32, u64)],
        batch: &mut SendBatch,
    ) -> bool {
        let stop = current.walk.end.min(current.walk.at + EMPTY_SLOTS_MAX);
        let writes_max = writes_max(&self.limits, current.walk);
        let mut writer = self.member_writer(batch);
        while current.walk.at < stop {
            if writer.batch.waiting() >= writes_max {
                return false;
            }
            let index = current.walk.at as u32;
            let encoding = writer.conns.at(index).filter(|c| c.is_open()).map(|c| c.encoding);
            let buf = bufs.iter().find(|(known, ..)| Some(*known) == encoding);
            if let Some((_, buf, frames)) = buf {
                let id = writer.conns.id_at(index).map(ConnId);
                let own = current.own.iter().find(|(conn, _)| Some(*conn) == id);
                let is_written = match own {
                    Some((_, own)) => writer.offer_own(index, own),
                    None => writer.offer_all([index], *buf, *frames) == 1,
                };
                if !is_written {
                    return false;
                }
            }
            current.walk.at += 1;
        }
        current.walk.at == current.walk.end
    }

    fn member_writer<'a>(&'a mut self, batch: &'a mut SendBatch) -> MemberWriter<'a> {
        MemberWriter {
            batch,
            conns: &mut self.conns,
            counters: &mut self.counters,
            slow: &mut self.deliveries.slow,
            losers: &mut self.deliveries.losers,
            outbox_bytes_max: self.limits.outbox_bytes_max,
            hub: &self.hub,
            namespaces: &self.config.namespaces,
        }
    }
}

/// Where a walk over members writes to.
struct MemberWriter<'a> {
    batch: &'a mut SendBatch,
    conns: &'a mut Slab<Conn>,
    counters: &'a mut ShardCounters,
    slow: &'a mut Vec<u32>,
    losers: &'a mut Vec<(u32, TopicId)>,
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
        let mut served = 0;
        for index in members {
            let (id, conn) = self.conns.with_id_mut(index).expect("a member is a connection");
            if conn.outbox.is_some() {
                self.wait(index, buf);
            } else if !add_write(self.batch, conn, ConnId(id), buf) {
                break;
            }
            served += 1;
        }
        self.counters.deliveries += served as u64 * frames;
        self.counters.bytes_out += served as u64 * bytes;
        served
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
            losers: self.losers,
            index,
        };
        if waiting.keep(self.batch.buf(buf), self.batch.source(buf), 0) == Pushed::Full {
            self.slow.push(index);
        }
    }
}

/// Adds a buffer to what is written to a connection next. `false`: its write is full.
#[inline]
pub(super) fn add_write(batch: &mut SendBatch, conn: &mut Conn, id: ConnId, buf: u32) -> bool {
    if batch.is_at(conn.place, id.0.index) {
        return batch.chain(conn.place, buf);
    }
    conn.place = batch.push(conn.socket_key, id, buf);
    true
}

/// Moves the bytes of a join into the batch.
fn add_join(batch: &mut SendBatch, join: &mut JoinedFrames) -> u32 {
    let bytes = std::mem::take(&mut join.bytes);
    batch.add_sourced(bytes, join.source.clone())
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
