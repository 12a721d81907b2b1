//! Users whose queues were dropped with messages that they had not acknowledged.
//!
//! Such a user is notified when it comes back: of a queue that is gone nothing else is known, and
//! without this a user who has lost messages would look like one who was never here.
//!
//! Invariant: at most [`LOST_MAX`] hashes, 4 bytes each. Beyond, every user without a queue is taken
//! for one that has lost it: a notification too many is harmless, a silent loss is not.

use crate::backplane::history::log::{AckedUpTo, MessageLog};
use crate::backplane::topic_table::TopicHash;
use crate::ids::{TopicKind, TopicName};
use std::collections::HashSet;

/// Users that are remembered.
const LOST_MAX: usize = 256 * 1024;

/// See the module. A restart of the process forgets them together with the queues.
#[derive(Default)]
pub struct LostQueues {
    /// Two users with one hash are both notified.
    hashes: HashSet<u64>,
    is_overrun: bool,
}

impl LostQueues {
    /// A history is dropped. Remembered if it is a user's, with messages not acknowledged.
    pub fn note(&mut self, topic: &TopicName, hash: TopicHash, log: &MessageLog, acked: AckedUpTo) {
        let is_lost = match acked {
            AckedUpTo::Offset(offset) => offset < log.position().offset,
            AckedUpTo::NewUser => log.position().offset > 0,
            AckedUpTo::QueueLost => true,
        };
        if !is_lost || !matches!(topic.kind(), TopicKind::User(_)) {
            return;
        }
        match self.hashes.len() < LOST_MAX {
            true => _ = self.hashes.insert(hash.spread()),
            false => self.is_overrun = true,
        }
    }

    /// What is known of a user who has no queue.
    pub fn acked_before(&self, hash: TopicHash) -> AckedUpTo {
        match self.is_overrun || self.hashes.contains(&hash.spread()) {
            true => AckedUpTo::QueueLost,
            false => AckedUpTo::NewUser,
        }
    }

    /// The same, of a user whose queue begins again and remembers it from here on.
    pub fn take(&mut self, hash: TopicHash) -> AckedUpTo {
        let acked = self.acked_before(hash);
        self.hashes.remove(&hash.spread());
        acked
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backplane::topic_table::HashedTopic;

    fn note(lost: &mut LostQueues, name: &TopicName, acked: AckedUpTo) -> AckedUpTo {
        let hash = HashedTopic::from(name).hash();
        lost.note(name, hash, &MessageLog::new(7, 5), acked);
        lost.acked_before(hash)
    }

    #[test]
    fn only_users_with_something_unacknowledged_are_remembered() {
        let mut lost = LostQueues::default();
        let ann = TopicName::user("ann");
        assert_eq!(note(&mut lost, &ann, AckedUpTo::Offset(5)), AckedUpTo::NewUser);
        assert_eq!(
            note(&mut lost, &TopicName::room("ann"), AckedUpTo::NewUser),
            AckedUpTo::NewUser
        );
        assert_eq!(note(&mut lost, &ann, AckedUpTo::Offset(4)), AckedUpTo::QueueLost);
        let hash = HashedTopic::from(&ann).hash();
        assert_eq!(lost.take(hash), AckedUpTo::QueueLost);
        assert_eq!(lost.take(hash), AckedUpTo::NewUser, "its queue remembers it now");
    }

    #[test]
    fn beyond_the_bound_every_user_without_a_queue_is_notified() {
        let mut lost = LostQueues::default();
        let ann = TopicName::user("ann");
        let hash = HashedTopic::from(&ann).hash();
        lost.hashes = (0..LOST_MAX as u64).filter(|it| *it != hash.spread()).collect();
        while lost.hashes.len() < LOST_MAX {
            lost.hashes.insert(hash.spread().wrapping_add(1));
        }
        assert_eq!(lost.acked_before(hash), AckedUpTo::NewUser);
        note(&mut lost, &TopicName::user("bob"), AckedUpTo::NewUser);
        assert_eq!(lost.acked_before(hash), AckedUpTo::QueueLost);
        assert_eq!(lost.hashes.len(), LOST_MAX);
    }
}
