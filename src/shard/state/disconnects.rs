//! Users whose connections are being closed, because an operator has disconnected them.

use crate::ids::TopicId;
use crate::link::Disconnect;
use std::collections::VecDeque;
use std::sync::Arc;

/// Users whose connections are being closed.
#[derive(Debug, Default)]
pub(in crate::shard) struct PendingDisconnects {
    pub(in crate::shard) waiting: VecDeque<Waiting>,
}

#[derive(Debug)]
pub(in crate::shard) struct Waiting {
    /// The user's topic, in one encoding.
    pub(in crate::shard) at: TopicId,
    pub(in crate::shard) close: Arc<Disconnect>,
    /// Connections that are still to be closed.
    pub(in crate::shard) left: usize,
}
