//! Errors of Redis and values that no node can have written: counted, and logged within a rate limit.

use crate::backplane::log_throttle::LogThrottle;
use crate::backplane::partition::partition;
use crate::backplane::redis::error_reply::ErrorReply;
use crate::backplane::redis::pipeline::ItemReply;
use crate::backplane::redis::presence::skipped::Skipped;
use redis::{RedisError, RedisResult, Value};
use std::time::Instant;

/// Errors of Redis, for the log and the counters.
#[derive(Default)]
pub(super) struct Failures {
    warnings: LogThrottle,
    /// Values that no node can have written.
    pub unreadable: u64,
    /// Partitions whose entries vanished.
    pub vanished: u64,
}

/// The meaning of an error. What broke the connection is [`ErrorReply::Permanent`]: the next link
/// tries again.
pub(super) fn meaning(error: &RedisError) -> ErrorReply {
    // Before version 7 the server reports an error of a script only in the text, and the crate that
    // of a command in a pipeline.
    ErrorReply::from_words(error.code().unwrap_or("ERR"), Some(&error.to_string()))
}

/// The value of a reply. A read that is refused for the moment is an error, too: it is begun again by
/// its user.
pub(super) fn value_of(reply: ItemReply) -> RedisResult<Value> {
    match reply {
        ItemReply::Ended(value) => Ok(value),
        ItemReply::Again(refusal) => Err(RedisError::from(refusal.error)),
        ItemReply::Unreadable(error) | ItemReply::Permanent(error) => Err(RedisError::from(error)),
    }
}

impl Failures {
    /// Counts values that no node can have written, and logs one of them, rate limited. `of`: the
    /// room, or what else they concern.
    pub(super) fn skip(&mut self, of: &str, skipped: &Skipped, now: Instant) {
        let Some(first) = &skipped.first else { return };
        self.unreadable += skipped.count;
        let Some(suppressed) = self.warnings.is_due(now) else { return };
        tracing::warn!(
            of,
            skipped = skipped.count,
            %first,
            suppressed,
            "values in Redis that no node can have written are skipped"
        );
    }

    /// Logs an error of presence, rate limited. `of`: the room, or what else it concerns.
    pub(super) fn warn(&mut self, of: &str, error: &RedisError, now: Instant) {
        let is_unreadable = meaning(error) == ErrorReply::Unreadable;
        self.unreadable += u64::from(is_unreadable);
        let Some(suppressed) = self.warnings.is_due(now) else { return };
        let what = "presence could not be written to Redis or read from it";
        if is_unreadable {
            let part = partition(of);
            tracing::warn!(
                of,
                %error,
                suppressed,
                "{what}: a key was not written by this server. Of a room \
                 …:{{p{part}}}:prn:{of} must be a set, and …:{{p{part}}}:pr:{of}:<node> a hash. DEL \
                 the key of another type; presence then continues by itself"
            );
        } else {
            tracing::warn!(of, %error, suppressed, "{what}");
        }
    }
}
