//! Requests for a topic's history that wait for an answer.

use crate::ids::{ShardId, TopicName};
use crate::link::{HistoryRequest, RecoveryRequest};
use std::time::Instant;

/// A topic by its line. If it is forgotten and followed anew it has another one, and what was asked
/// for the one says nothing of the other.
pub(super) type TopicRef = (TopicName, u64);

pub(super) struct PendingRequest {
    pub(super) since: Instant,
    pub(super) request: TopicRequest,
    /// It is not answered before so many reads of its topic.
    pub(super) after: u64,
}

pub(super) enum TopicRequest {
    Recover(ShardId, Box<RecoveryRequest>),
    History(Box<HistoryRequest>),
}
