//! Refused publishes in the log, rate limited.

use crate::backplane::local::Local;
use crate::backplane::log_throttle::LogThrottle;
use crate::backplane::redis::error_reply::ErrorReply;
use crate::backplane::redis::names::Names;
use crate::backplane::redis::pipeline::{ItemReply, Refusal};
use crate::backplane::redis::publish::item::QueuedPublish;
use crate::backplane::redis::unreadable::UnreadableWarnings;
use crate::ids::TopicName;
use redis::{RedisError, ServerError};
use std::time::Instant;

/// What was logged lately.
#[derive(Default)]
pub(super) struct RefusalLog {
    refused: LogThrottle,
    unreadable: UnreadableWarnings,
}

impl RefusalLog {
    /// Logs the reply to a publish if it is a refusal, and counts it if the history is unreadable.
    /// Scripts that have to be loaded again are no news.
    pub(super) fn note(
        &mut self,
        queued: Option<&QueuedPublish>,
        reply: &ItemReply,
        names: &Names,
        now: Instant,
        local: &mut Local,
    ) {
        let topic = queued.map(QueuedPublish::topic);
        match (reply, topic) {
            (ItemReply::Ended(_), _) => {}
            (ItemReply::Again(Refusal { kind: ErrorReply::ScriptMissing, .. }), _) => {}
            (ItemReply::Unreadable(error), Some(topic)) => {
                local.counters.histories_unreadable += 1;
                let error = RedisError::from(error.clone());
                self.unreadable.warn(topic.as_str(), &error, names, now);
            }
            (ItemReply::Again(Refusal { error, .. }), topic)
            | (ItemReply::Unreadable(error) | ItemReply::Permanent(error), topic) => {
                self.warn(topic, error, now);
            }
        }
    }

    fn warn(&mut self, topic: Option<&TopicName>, error: &ServerError, now: Instant) {
        if let Some(suppressed) = self.refused.is_due(now) {
            tracing::warn!(?topic, %error, suppressed, "Redis refused a publish");
        }
    }
}
