//! Joins that wait for a position of the backplane; see `shard/recovery.rs`.

use crate::ids::{ConnId, Position, TopicId};
use crate::protocol::{Info, RequestId};
use crate::shard::room_token::RoomToken;
use std::collections::HashMap;

/// A join that waits, beside its info: its place in a list that doubles, and in the table of pins.
const JOIN_BYTES: usize = 2 * size_of::<PendingJoin>() + 32;

/// Joins that wait for an answer. Empty nearly always.
#[derive(Debug, Default)]
pub(in crate::shard) struct PendingJoins {
    pub(in crate::shard) tickets: u64,
    /// By the connection, not by its place: that may be another's by the time the first one is
    /// forgotten.
    of: HashMap<ConnId, Vec<PendingJoin>>,
    /// What all of them keep alive.
    bytes: usize,
    /// Answers that are on their way, by the topic's index.
    pub(in crate::shard) pins: HashMap<u32, usize>,
}

#[derive(Debug)]
pub(in crate::shard) struct PendingJoin {
    pub(in crate::shard) ticket: u64,
    /// The topic's index.
    pub(in crate::shard) topic: u32,
    pub(in crate::shard) id: Option<RequestId>,
    /// The last position that the client has received.
    pub(in crate::shard) since: Option<Position>,
    /// The `info` of its user, where presence is on.
    pub(in crate::shard) info: Option<Info>,
    /// Whether the member will acknowledge what it receives.
    pub(in crate::shard) ack: bool,
    /// It is a member already and stays one: it only asks where the history is.
    pub(in crate::shard) stays: bool,
}

impl PendingJoin {
    fn held_bytes(&self) -> usize {
        JOIN_BYTES + self.info.as_ref().map_or(0, |info| info.len())
    }
}

impl PendingJoins {
    /// Bytes that all of them keep alive.
    pub(in crate::shard) fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many rooms a connection is about to be in, those that it is in already not counted.
    pub(in crate::shard) fn len(&self, conn: ConnId) -> usize {
        let of = self.of.get(&conn).into_iter().flatten();
        of.filter(|pending| !pending.stays).count()
    }

    /// Whether a connection is about to be in a topic.
    pub(in crate::shard) fn is_pending(&self, conn: ConnId, topic: TopicId) -> bool {
        let mut of = self.of.get(&conn).into_iter().flatten();
        of.any(|pending| pending.topic == topic.0.index)
    }

    /// The topics that a connection is about to be in, or asks about.
    pub(in crate::shard) fn topics_of(&self, conn: ConnId) -> impl Iterator<Item = u32> {
        self.of.get(&conn).into_iter().flatten().map(|pending| pending.topic)
    }

    /// Whether a topic must stay.
    pub(in crate::shard) fn is_pinned(&self, topic: u32) -> bool {
        self.pins.contains_key(&topic)
    }

    /// Whether a join waits for its answer. One that was left does not.
    pub(in crate::shard) fn has(&self, conn: ConnId, ticket: u64) -> bool {
        self.of.get(&conn).into_iter().flatten().any(|pending| pending.ticket == ticket)
    }

    /// A connection has closed: its joins are dropped.
    pub(in crate::shard) fn forget(&mut self, conn: ConnId) {
        self.take_all(conn);
    }

    pub(in crate::shard) fn add(
        &mut self,
        conn: ConnId,
        topic: TopicId,
        id: Option<RequestId>,
        options: JoinOptions<'_>,
        stays: bool,
    ) -> u64 {
        self.tickets += 1;
        let (ticket, topic_index) = (self.tickets, topic.0.index);
        let JoinOptions { since, info, ack, .. } = options;
        let info = info.map(Into::into);
        let pending = PendingJoin { ticket, topic: topic_index, id, since, info, ack, stays };
        self.bytes += pending.held_bytes();
        self.of.entry(conn).or_default().push(pending);
        self.pin(topic.0.index);
        self.tickets
    }

    pub(in crate::shard) fn take(
        &mut self,
        conn: ConnId,
        wanted: impl Fn(&PendingJoin) -> bool,
    ) -> Option<PendingJoin> {
        let of = self.of.get_mut(&conn)?;
        let place = of.iter().position(wanted)?;
        let pending = of.swap_remove(place);
        self.bytes -= pending.held_bytes();
        if of.is_empty() {
            self.of.remove(&conn);
        }
        Some(pending)
    }

    /// A topic has to stay, also without members, until [`crate::shard::Shard::unpin`].
    pub(in crate::shard) fn pin(&mut self, topic: u32) {
        *self.pins.entry(topic).or_default() += 1;
    }

    /// Takes the joins of a connection that wait, in the order in which they were asked. Their answers
    /// will be dropped.
    pub(in crate::shard) fn take_all(&mut self, conn: ConnId) -> Vec<PendingJoin> {
        let mut of = self.of.remove(&conn).unwrap_or_default();
        self.bytes -= of.iter().map(PendingJoin::held_bytes).sum::<usize>();
        of.sort_unstable_by_key(|pending| pending.ticket);
        of
    }

    pub(in crate::shard) fn unpin(&mut self, topic: u32) {
        if let Some(pins) = self.pins.get_mut(&topic) {
            *pins -= 1;
            if *pins == 0 {
                self.pins.remove(&topic);
            }
        }
    }
}

/// The options of a join.
#[derive(Clone, Copy, Default)]
pub(in crate::shard) struct JoinOptions<'a> {
    /// The last position that the client has received.
    pub(in crate::shard) since: Option<Position>,
    /// The `info` of its user.
    pub(in crate::shard) info: Option<&'a str>,
    /// Whether the member will acknowledge what it receives.
    pub(in crate::shard) ack: bool,
    /// The token for the room that it comes with.
    pub(in crate::shard) room_token: Option<RoomToken>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::SlotId;

    #[test]
    fn joins_that_wait_count_with_their_infos() {
        let mut joins = PendingJoins::default();
        let [conn, other] = [1, 2].map(|index| ConnId(SlotId { index, generation: 0 }));
        let options = JoinOptions { info: Some("12345"), ..JoinOptions::default() };
        let topic = TopicId(SlotId { index: 7, generation: 0 });
        let ticket = joins.add(conn, topic, None, options, false);
        joins.add(other, topic, None, JoinOptions::default(), false);
        assert_eq!(joins.bytes(), 2 * JOIN_BYTES + 5);
        assert!(joins.take(conn, |pending| pending.ticket == ticket).is_some());
        assert_eq!(joins.bytes(), JOIN_BYTES);
        joins.forget(other);
        assert_eq!(joins.bytes(), 0);
    }
}
