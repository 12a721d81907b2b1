//! A queue of topics in which each has its turn, as for audits and evictions.
//!
//! Invariant: forgotten topics take no more room than followed ones, and no turns.

use crate::backplane::redis::history::follower::FollowedTopic;
use crate::backplane::redis::history::request::TopicRef;
use crate::backplane::topic_table::{HashedTopic, TopicHash, TopicTable};
use std::collections::VecDeque;

/// Forgotten topics that may stay, beside as many as are followed.
const FORGOTTEN_MAX: usize = 64;

/// Topics, each at most once.
#[derive(Default)]
pub(super) struct Rotation {
    queue: VecDeque<(TopicHash, TopicRef)>,
}

impl Rotation {
    /// Number of topics, with forgotten ones.
    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    /// Puts a topic to the back, where it must not be yet.
    pub(super) fn push(&mut self, hash: TopicHash, topic_ref: TopicRef) {
        self.queue.push_back((hash, topic_ref));
    }

    /// Drops forgotten topics if there are too many.
    pub(super) fn compact(&mut self, topics: &TopicTable<FollowedTopic>) {
        if self.queue.len() > 2 * topics.len() + FORGOTTEN_MAX {
            self.queue.retain(|(hash, topic_ref)| is_followed(topics, *hash, topic_ref));
        }
    }

    /// Takes the first topic out that is still followed.
    pub(super) fn pop(
        &mut self,
        topics: &TopicTable<FollowedTopic>,
    ) -> Option<(TopicHash, TopicRef)> {
        loop {
            let (hash, topic_ref) = self.queue.pop_front()?;
            if is_followed(topics, hash, &topic_ref) {
                return Some((hash, topic_ref));
            }
        }
    }
}

fn is_followed(
    topics: &TopicTable<FollowedTopic>,
    hash: TopicHash,
    (name, incarnation): &TopicRef,
) -> bool {
    let topic = topics.get(HashedTopic::known(name.as_str(), hash));
    topic.is_some_and(|topic| topic.incarnation == *incarnation)
}
