//! Frames for one connection only: answers, pings, close frames.
//!
//! They go before the rounds, in their order, and take with them what waits for the same connection.

use crate::ids::ConnId;
use crate::shard::conn::ConnState;
use crate::shard::delivery::batch::SendBatch;
use crate::shard::delivery::walk::add_write;
use crate::shard::slow_consumer::OutboxWriter;
use crate::shard::slow_consumer::outbox::Pushed;
use crate::shard::state::Shard;
use crate::shard::state::deliveries::{
    Deliveries, Follows, JOIN_BYTES_MAX, PORTIONS_MAX, QueuedReply,
};
use bytes::{Bytes, BytesMut};

/// Replies up to this size are copied to join them with others; longer ones are chained.
const REPLY_COPIED_BYTES_MAX: usize = 4 * 1024;

impl Deliveries {
    /// The first reply, joined with those to the same connection right behind it: one read may hold
    /// ten thousand pings, and a write has few buffers. What comes last is not joined
    /// with what a slow peer may be refused.
    fn pop_replies(&mut self, is_slow: bool) -> Option<QueuedReply> {
        let first = self.replies.pop_front()?;
        self.bytes_waiting -= first.bytes.len();
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
        self.bytes_waiting -= joined.len() - first.bytes.len();
        Some(QueuedReply { conn: first.conn, bytes: joined.freeze(), follows })
    }
}

impl Shard {
    /// Queues a frame for one connection. Nothing follows the last one, which may be empty: then the
    /// connection ends behind what waits for it.
    pub(in crate::shard) fn queue_reply(&mut self, conn: ConnId, bytes: Bytes, follows: Follows) {
        self.deliveries.bytes_waiting += bytes.len();
        self.deliveries.replies.push_back(QueuedReply { conn, bytes, follows });
    }

    /// Puts replies into the batch. `false`: the batch is full, or must end early.
    pub(super) fn take_replies(&mut self, batch: &mut SendBatch) -> bool {
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
                self.deliveries.bytes_waiting += reply.bytes.len();
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
                let is_added = add_write(batch, conn, reply.conn, buf);
                // Replies go first, and take with them what waits for the same connection.
                let before = conn.place;
                let (place, displaced) = batch.bring_forward(before);
                conn.place = place;
                if displaced != reply.conn
                    && let Some(displaced) = self.conns.get_mut(displaced.0)
                {
                    displaced.place = before;
                }
                if !is_added {
                    return Some(reply);
                }
            }
            // Of HTTP answers there is one at a time.
            Some(outbox)
                if reply.follows == Follows::Nothing || conn.state == ConnState::Handshaking =>
            {
                self.counters.outbox_bytes += bytes;
                outbox.push_always(reply.bytes);
            }
            Some(outbox) => {
                let (hub, namespaces) = (&self.hub, &*self.config.namespaces);
                let (bytes_max, counters) = (outbox_bytes_max, &mut self.counters);
                let (losers, index) = (&mut self.deliveries.losers, reply.conn.0.index);
                let mut waiting =
                    OutboxWriter { outbox, bytes_max, hub, namespaces, counters, losers, index };
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
}
