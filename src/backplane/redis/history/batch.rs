//! What is in flight for histories.

use crate::backplane::redis::history::request::TopicRef;
use crate::backplane::redis::pipeline::BatchPipeline;

/// Topics in one read batch.
pub(super) const READS_PER_BATCH: usize = 64;
/// Batches in flight beyond which no further reads are sent.
pub(super) const BATCHES_MAX: usize = 4;
/// Batches in flight, at most. What a read shows to be necessary is sent at once: it was written for
/// what the topics are now. A read leads to two batches at most, and those to one.
pub(super) const BATCHES_WITH_FOLLOW_UPS_MAX: usize = 4 * BATCHES_MAX;

/// The batches of one server.
pub(super) type FetchPipeline = BatchPipeline<FetchItem>;

/// A command for one topic, in flight.
pub(super) struct FetchItem {
    pub(super) topic: TopicRef,
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
