//! A publish in the queue, and what is remembered of it in flight.

use crate::ids::TopicName;
use crate::link::{Publish, PublishOutcome, ReplyTo};
use std::time::{Duration, Instant};

/// A publish that has not ended.
pub(crate) struct QueuedPublish {
    pub(super) publish: Publish,
    pub(super) since: Instant,
    /// It was in flight when a link broke, and may have been delivered.
    pub(super) may_have_arrived: bool,
}

/// What is remembered of a publish in flight.
pub(super) enum SentPublish {
    /// Only where its outcome goes: it is not sent again, whatever the reply.
    DoneOnly(ReplyTo<PublishOutcome>),
    /// All of it: it may have to be sent again.
    Retriable(Box<QueuedPublish>),
}

impl QueuedPublish {
    /// Its topic.
    pub(crate) fn topic(&self) -> &TopicName {
        &self.publish.topic
    }

    /// Whether it is for everybody.
    pub(super) fn is_broadcast(&self) -> bool {
        self.topic().as_str() == TopicName::ALL
    }

    /// The outcome if it is not sent, or not again.
    pub(super) fn failure(&self) -> PublishOutcome {
        if self.may_have_arrived { PublishOutcome::Unknown } else { PublishOutcome::Unavailable }
    }

    /// Whether it has waited too long.
    pub(super) fn is_expired(&self, now: Instant, time_max: Duration) -> bool {
        now.duration_since(self.since) >= time_max
    }

    /// Bytes for which it counts in the queue.
    pub(super) fn bytes(&self) -> usize {
        queue_bytes(&self.publish)
    }
}

impl SentPublish {
    /// As [`QueuedPublish::failure`].
    pub(super) fn failure(&self) -> PublishOutcome {
        self.queued().map_or(PublishOutcome::Unavailable, QueuedPublish::failure)
    }

    /// The publish, if it is remembered.
    pub(super) fn queued(&self) -> Option<&QueuedPublish> {
        match self {
            SentPublish::DoneOnly(_) => None,
            SentPublish::Retriable(queued) => Some(queued),
        }
    }

    /// The publish that is sent again.
    pub(super) fn into_queued(self) -> QueuedPublish {
        match self {
            SentPublish::DoneOnly(_) => unreachable!("only what is remembered is sent again"),
            SentPublish::Retriable(queued) => *queued,
        }
    }

    /// Where its outcome goes.
    pub(super) fn into_done(self) -> ReplyTo<PublishOutcome> {
        match self {
            SentPublish::DoneOnly(done) => done,
            SentPublish::Retriable(queued) => queued.publish.done,
        }
    }
}

/// Bytes for which a queued publish counts: its content and about what it takes to hold it.
pub(super) fn queue_bytes(publish: &Publish) -> usize {
    size_of::<QueuedPublish>() + publish.topic.as_str().len() + publish.content_bytes()
}
