//! Delivery: replies to one connection (`replies.rs`), and rounds of a topic's frames (`round.rs`)
//! that are handed out to its members (`walk.rs`), joined into batches of writes (`batch.rs`).
//!
//! A *round* is everything the backplane handed over for one topic since the last round began. When
//! its turn comes, all its frames are joined into **one** buffer, shared by all members: a member
//! costs one write however many messages the round holds. A member who must not receive one of them
//! (`"echo":false`) gets a join of its own, at no cost for the others.
//!
//! Writes leave in portions of `send_batch_max`, out of a batch that holds a few of them; a round
//! of a large room takes several. Between them replies have their turn first, then the other
//! rounds: a round of a large room goes behind all others that wait, so a small room behind large
//! ones waits for one portion of each. A connection stands at most once in what waits: what a
//! second topic has for it is chained to the same write, so a connection in five rooms still costs
//! one system call's entry.
//!
//! Per delivery to one member: one look at the connection, one entry in the batch. No hash, no
//! atomic, no allocation, no copy. `tests/budget.rs` and `tests/layout.rs` hold exactly this sentence
//! as assertions.
//!
//! A frame comes to several shards as one buffer with one count of its owners, which is the one line
//! of cache that they all write to. So it is moved, from the window to the queue to the round to the
//! batch, and the count is touched once: when the batch lets go of it.

pub mod batch;
mod replies;
mod round;
pub(in crate::shard) mod unsent;
mod walk;

use crate::ids::ConnId;
use crate::shard::conn::{CloseReason, ReadState};
use crate::shard::delivery::batch::{SendBatch, SendOp};
use crate::shard::slow_consumer::OutboxWriter;
use crate::shard::slow_consumer::outbox::Pushed;
use crate::shard::state::Shard;
use crate::shard::state::deliveries::{PORTIONS_MAX, Special};

/// A batch that holds so much begins no further round: what it holds stays in memory until it is
/// written.
const BATCH_BYTES_MAX: usize = 1024 * 1024;

impl Shard {
    /// Whether [`Shard::take_batch`] has something to give.
    pub fn has_sends(&self) -> bool {
        let d = &self.deliveries;
        d.writes_waiting > 0 || !d.replies.is_empty() || !d.queue.is_empty()
    }

    /// Frames that are not written to everyone yet, in rounds and as replies: while there are many,
    /// the caller takes nothing more, neither from the backplane nor from clients.
    pub fn frames_waiting(&self) -> usize {
        self.deliveries.items_waiting + self.deliveries.replies.len()
    }

    /// Fills `batch` with what is to be written next. The caller makes all the writes, reports the
    /// short ones ([`Shard::handle_short_write`]) and only then enters the shard again.
    pub fn take_batch(&mut self, batch: &mut SendBatch) {
        batch.finish();
        batch.begin_front();
        if self.take_replies(batch) {
            while self.may_go_on(batch)
                && !self.take_specials()
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

    /// Puts as many writes into the portion as may be made at once. A connection that has gone since
    /// a write was put together receives nothing more.
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
            losers: &mut self.deliveries.losers,
            index: op.conn.0.index,
        };
        let mut left = sent;
        for (buf, source) in batch.sourced_bufs(op) {
            let taken = left.min(buf.len());
            left -= taken;
            if taken < buf.len() && waiting.keep(buf, source, taken) == Pushed::Full {
                self.deliveries.slow.push(op.conn.0.index);
                break;
            }
        }
        self.close_slow();
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
        // A paused connection is not read: that it takes bytes shows that its peer is there.
        c.is_active |= c.unread == ReadState::Paused;
        if outbox.is_empty() {
            c.outbox = None;
            self.consider_leaving(conn);
        }
        self.ask_next(conn);
    }

    /// Deals with joiners and losses that stand first in the round whose turn it is. What they cause
    /// goes before what the round has next, so the batch must end: `true`.
    fn take_specials(&mut self) -> bool {
        let Some(id) = self.deliveries.queue.front().copied() else { return false };
        let mut any = false;
        while let Some(special) = self.deliveries.pop_special(id) {
            any = true;
            match special {
                Special::Joiner(joiner) => self.admit(*joiner),
                Special::Loss => {
                    let to = self.deliveries.round(id).to;
                    if !self.lose_members(to) {
                        break;
                    }
                    self.deliveries.end_loss(id);
                }
            }
        }
        any
    }

    /// Closes those that were found too slow, and lets those leave who lost something.
    pub(super) fn close_slow(&mut self) {
        while let Some(index) = self.deliveries.slow.pop() {
            if let Some(id) = self.conns.id_at(index) {
                self.begin_close(ConnId(id), CloseReason::Slow);
            }
        }
        while let Some((index, topic)) = self.deliveries.losers.pop() {
            if let Some(id) = self.conns.id_at(index) {
                self.lose_member(ConnId(id), topic);
            }
        }
    }

    pub(super) fn outbox_bytes_max(&self, conn: ConnId) -> usize {
        let dialect = self.conns.get(conn.0).map(|conn| conn.encoding.dialect());
        match dialect.is_none_or(|dialect| dialect.has_topics()) {
            true => self.limits.outbox_bytes_max,
            false => self.limits.echo_outbox_bytes_max(),
        }
    }
}
