//! How long a publish takes to reach the shards of its own node, measured on one publish at a time.
//!
//! A publish says nothing about itself when it comes back from Redis, so the sampled one is
//! recognised by its topic and the hash of its payload. One sample is under way at most: while there
//! is one, each message costs a comparison of lengths, and only messages of the same topic and
//! length are hashed. A new sample costs a reference count, one look-up of the topic and one hash of
//! the payload; its end costs one reading of the clock. Nothing is allocated.
//!
//! Invariant: a sample that does not come back (its publish failed, was a retry, or its topic lost
//! its last member) is dropped after [`WAIT_MAX`] and never recorded.

use crate::ids::TopicName;
use crate::link::Publish;
use hashbrown::DefaultHashBuilder;
use std::hash::BuildHasher;
use std::time::{Duration, Instant};

/// A sample that has not come back for so long is given up: longer than every bound of the
/// histogram.
const WAIT_MAX: Duration = Duration::from_secs(15);

/// See the module. One for each node, owned by the backplane's thread.
#[derive(Debug, Default)]
pub(super) struct DeliverySample {
    waiting: Option<Waiting>,
    hasher: DefaultHashBuilder,
    /// When the publish was taken whose message has been handed out in this turn.
    handed_out: Option<Instant>,
}

#[derive(Debug)]
struct Waiting {
    topic: TopicName,
    payload_bytes: usize,
    payload_hash: u64,
    taken: Instant,
}

impl DeliverySample {
    /// Whether the next publish should be sampled.
    #[inline]
    pub(super) fn is_due(&self, now: Instant) -> bool {
        let is_late = |it: &Waiting| now.saturating_duration_since(it.taken) > WAIT_MAX;
        self.handed_out.is_none() && self.waiting.as_ref().is_none_or(is_late)
    }

    /// Samples a publish that was taken at `now` and has members on this node.
    pub(super) fn begin(&mut self, publish: &Publish, now: Instant) {
        self.waiting = Some(Waiting {
            topic: publish.topic.clone(),
            payload_bytes: publish.payload.len(),
            payload_hash: self.hasher.hash_one(&publish.payload[..]),
            taken: now,
        });
    }

    /// A message is handed to shards.
    #[inline]
    pub(super) fn hand_out(&mut self, topic: &str, payload: &[u8]) {
        if let Some(waiting) = &self.waiting
            && waiting.payload_bytes == payload.len()
            && waiting.topic.as_str() == topic
            && waiting.payload_hash == self.hasher.hash_one(payload)
        {
            self.handed_out = self.waiting.take().map(|waiting| waiting.taken);
        }
    }

    /// The shards have been rung: how long the sampled publish took, if its message was among what
    /// they were handed.
    #[inline]
    pub(super) fn flushed(&mut self) -> Option<Duration> {
        self.handed_out.take().map(|taken| taken.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::ReplyTo;
    use bytes::Bytes;

    fn publish(payload: &'static [u8]) -> Publish {
        Publish {
            topic: TopicName::room("r"),
            payload: Bytes::from_static(payload),
            from: None,
            info: None,
            except: None,
            key: None,
            conflate_key: None,
            done: ReplyTo::Nobody,
        }
    }

    #[test]
    fn a_sample_ends_with_its_own_message_and_when_the_shards_are_rung() {
        let (mut sample, now) = (DeliverySample::default(), Instant::now());
        assert!(sample.is_due(now));
        sample.begin(&publish(b"12"), now);
        assert!(!sample.is_due(now), "one at a time");
        for (topic, payload) in [("r:x", &b"12"[..]), ("r:r", b"13"), ("r:r", b"1")] {
            sample.hand_out(topic, payload);
            assert_eq!(sample.flushed(), None, "{topic}");
        }
        sample.hand_out("r:r", b"12");
        assert!(!sample.is_due(now), "it has not been flushed");
        assert!(sample.flushed().is_some());
        assert!(sample.is_due(now));
        assert_eq!(sample.flushed(), None, "once");
    }

    #[test]
    fn a_sample_that_does_not_come_back_makes_way_for_another() {
        let (mut sample, now) = (DeliverySample::default(), Instant::now());
        sample.begin(&publish(b"12"), now);
        assert!(!sample.is_due(now + WAIT_MAX));
        assert!(sample.is_due(now + 2 * WAIT_MAX));
        sample.begin(&publish(b"13"), now + 2 * WAIT_MAX);
        sample.hand_out("r:r", b"12");
        assert_eq!(sample.flushed(), None);
    }
}
