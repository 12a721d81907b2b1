//! Which publishes of a lane may be in flight together, so that those of one client to one topic are
//! stored in the order in which they were sent, or refused.
//!
//! A server that refuses publishes for the moment may stop between two commands: a repair window
//! ends, a replica is back, scripts are loaded. Then a publish is refused and waits, and the one
//! behind it in flight is stored.
//!
//! * Where refusals are expected, nothing is behind. A partition is *proven* once the server has
//!   stored a publish of it, since the link began and since it last refused one; an unproven
//!   partition has one publish in flight. So the repair window of a server that has come up ends
//!   while its partitions are unproven, and nothing is overtaken.
//! * Where a server refuses a publish of a proven partition and stores one that was sent later
//!   ([`Publisher`], the same topic), the refused one was *overtaken*: it ends as `Unavailable`
//!   instead of being stored in the wrong place ([`crate::backplane::redis::publish::lane`]).
//!
//! Invariant: an unproven partition has at most one publish in flight, or only such as were sent
//! when it was proven.

use crate::backplane::partition::partition;
use crate::backplane::redis::partition_set::PartitionSet;
use crate::backplane::redis::publish::item::QueuedPublish;
use crate::ids::{ConnId, ShardId, TopicName};
use crate::link::ReplyTo;

/// What is known of the partitions of one lane on one link.
#[derive(Debug, Default)]
pub(super) struct LaneOrder {
    proven: PartitionSet,
    /// Unproven partitions with a publish in flight.
    asked: PartitionSet,
}

/// Whose publishes have an order of their own. All callers on other threads are one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Publisher {
    Conn(ShardId, ConnId),
    Caller,
}

impl LaneOrder {
    /// Whether a publish to the topic may be sent; if so, it is in flight.
    pub(super) fn try_send(&mut self, topic: &TopicName) -> bool {
        let part = partition(topic.as_str());
        if self.proven.has(part) {
            return true;
        }
        let may_send = !self.asked.has(part);
        self.asked.insert(part);
        may_send
    }

    /// The server has stored a publish to the topic.
    pub(super) fn note_stored(&mut self, topic: &TopicName) {
        let part = partition(topic.as_str());
        self.proven.insert(part);
        self.asked.remove(part);
    }

    /// The server has refused a publish to the topic for the moment. Nothing is sent before all that
    /// is in flight has its reply, so every partition begins again.
    pub(super) fn note_refused(&mut self, topic: &TopicName) {
        self.proven = PartitionSet::default();
        self.asked.remove(partition(topic.as_str()));
    }

    /// A publish to the topic has ended in another way.
    pub(super) fn note_ended(&mut self, topic: &TopicName) {
        self.asked.remove(partition(topic.as_str()));
    }

    /// The link is lost: nothing is in flight, and nothing is known of the next server.
    pub(super) fn lose_link(&mut self) {
        *self = LaneOrder::default();
    }
}

impl Publisher {
    /// The one that a publish is from.
    pub(super) fn of(queued: &QueuedPublish) -> Publisher {
        match queued.publish.done {
            ReplyTo::Conn { shard, conn, .. } => Publisher::Conn(shard, conn),
            ReplyTo::Call(_) | ReplyTo::Nobody => Publisher::Caller,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_has_one_publish_in_flight_until_one_was_stored() {
        let mut order = LaneOrder::default();
        let (one, other) = (TopicName::room("one"), TopicName::room("other"));
        assert_ne!(partition(one.as_str()), partition(other.as_str()));
        assert_eq!([&one, &one, &other].map(|topic| order.try_send(topic)), [true, false, true]);
        order.note_stored(&one);
        assert_eq!([&one, &one, &other].map(|topic| order.try_send(topic)), [true, true, false]);
        order.note_ended(&other);
        assert_eq!([&other, &other].map(|topic| order.try_send(topic)), [true, false]);
    }

    #[test]
    fn after_a_refusal_or_on_another_link_every_partition_begins_again() {
        let (one, other) = (TopicName::room("one"), TopicName::room("other"));
        let forget: [fn(&mut LaneOrder); 2] =
            [|order| order.note_refused(&TopicName::room("other")), LaneOrder::lose_link];
        for forget in forget {
            let mut order = LaneOrder::default();
            [&one, &other].into_iter().for_each(|topic| order.note_stored(topic));
            forget(&mut order);
            for topic in [&one, &other] {
                assert_eq!([topic; 2].map(|topic| order.try_send(topic)), [true, false]);
            }
        }
    }
}
