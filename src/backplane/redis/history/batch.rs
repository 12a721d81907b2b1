//! A pipeline of history commands in flight.

use crate::backplane::redis::history::request::TopicRef;
use crate::backplane::redis::pipeline::PendingReply;
use redis::Value;

/// Topics in one read batch.
pub(super) const READS_PER_BATCH: usize = 64;

pub(super) struct FetchBatch {
    pub(super) topics: Vec<TopicRef>,
    pub(super) reply: PendingReply<Vec<Value>>,
    pub(super) what: BatchKind,
}

/// The command that a batch sends for each of its topics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BatchKind {
    /// Reads the position and messages.
    Read,
    /// Creates the history if there is none.
    Create,
    /// Appends what the server has lost.
    Repair,
}
