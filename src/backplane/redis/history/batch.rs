//! One pipeline of history commands in flight.

use crate::backplane::redis::history::request::TopicRef;
use crate::backplane::redis::pipeline::PendingReply;
use redis::Value;

/// Topics read in one pipeline.
pub(super) const READS_PER_BATCH: usize = 64;

pub(super) struct FetchBatch {
    pub(super) topics: Vec<TopicRef>,
    pub(super) reply: PendingReply<Vec<Value>>,
    pub(super) what: BatchKind,
}

/// What a pipeline asks of each of its topics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BatchKind {
    /// Position and messages.
    Read,
    /// To begin where there is no history.
    Create,
    /// To take back what it has lost.
    Repair,
}
