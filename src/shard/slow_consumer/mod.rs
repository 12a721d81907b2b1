//! From a write that a socket did not take to what waits in its outbox.
//!
//! Quick members of a room share one buffer, whatever its policy is. The frames in that buffer, a
//! [`BatchSource`], are noted in the batch, once for each round, and only where the room's policy lets
//! messages be dropped: rooms of other policies carry only the buffer. A slow member's outbox takes
//! the frames one by one, as they came, so that each can be dropped by itself and none holds the
//! joined buffer in memory.
//!
//! Invariant: nothing here is reached for a member who keeps up.

pub(super) mod frames;
pub(super) mod outbox;

use crate::ids::TopicId;
use crate::metrics::ShardCounters;
use crate::policy::namespaces::Namespaces;
use crate::shard::hub::{Hub, Topic};
use crate::shard::slow_consumer::frames::BatchSource;
use crate::shard::slow_consumer::outbox::{Outbox, Pushed, rest_of};
use bytes::Bytes;

/// The outbox of one slow member, with what is needed to add to it.
pub(super) struct OutboxWriter<'a> {
    pub(super) outbox: &'a mut Outbox,
    pub(super) bytes_max: usize,
    pub(super) hub: &'a Hub,
    pub(super) namespaces: &'a Namespaces,
    pub(super) counters: &'a mut ShardCounters,
    /// Topics of which something was dropped, and whose members must leave for that.
    pub(super) losers: &'a mut Vec<(u32, TopicId)>,
    /// The connection's place.
    pub(super) index: u32,
}

impl OutboxWriter<'_> {
    /// A buffer of which the socket took the first `taken` bytes, not all.
    pub(super) fn keep(
        &mut self,
        buf: &Bytes,
        source: Option<&BatchSource>,
        taken: usize,
    ) -> Pushed {
        let before = self.outbox.bytes();
        let topic = source.and_then(|source| Some((source, self.hub.get(source.at)?)));
        let pushed = match topic {
            Some((source, topic)) => self.keep_pieces(source, topic, taken),
            // Also when the topic lost its last member since: the frame is older than the leave.
            None => self.keep_rest(rest_of(buf, taken)),
        };
        // What waits may have become less.
        let counters = &mut *self.counters;
        counters.outbox_bytes = counters.outbox_bytes + self.outbox.bytes() as u64 - before as u64;
        while let Some(topic) = self.outbox.take_loser() {
            self.losers.push((self.index, topic));
        }
        pushed
    }

    fn keep_rest(&mut self, rest: Bytes) -> Pushed {
        if self.outbox.is_empty() {
            // The rest of a frame that has begun is queued whatever its size; the limit is for more.
            self.outbox.push_always(rest);
            return Pushed::Queued;
        }
        self.outbox.push(rest, self.bytes_max, self.counters)
    }

    /// A frame that has begun is completed; the others may be dropped.
    fn keep_pieces(&mut self, source: &BatchSource, topic: &Topic, taken: usize) -> Pushed {
        let (mut left, mut whole) = (taken, &source.pieces[..]);
        while let Some((first, rest)) = whole.split_first().filter(|_| left > 0) {
            if left < first.bytes.len() {
                self.outbox.push_always(rest_of(&first.bytes, left));
            }
            left = left.saturating_sub(first.bytes.len());
            whole = rest;
        }
        let (name, encoding) = (topic.name(), topic.encoding());
        let policy = self.namespaces.policy(name.kind());
        let room = self.outbox.room(source.at, name, encoding, policy);
        self.outbox.push_droppable(room, whole, self.bytes_max, self.counters)
    }
}
