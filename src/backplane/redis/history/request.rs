//! Requests for a topic's history that wait for an answer.

use crate::ids::{ShardId, TopicName};
use crate::link::{HistoryRequest, RecoveryRequest};
use std::time::Instant;

/// A topic and its incarnation: one that was forgotten and is followed again has another, so a
/// reply for the one changes nothing of the other.
pub(super) type TopicRef = (TopicName, u64);

pub(super) struct PendingRequest {
    pub(super) since: Instant,
    pub(super) request: TopicRequest,
    /// It is answered only after so many reads of its topic.
    pub(super) after: u64,
}

pub(super) enum TopicRequest {
    Recover(ShardId, Box<RecoveryRequest>),
    History(Box<HistoryRequest>),
}
