//! Users whose connections are being closed, because an operator has disconnected them or revoked
//! their tokens.

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
    pub(in crate::shard) order: CloseOrder,
    /// Connections that are still to be closed.
    pub(in crate::shard) left: usize,
}

/// Which of them are closed, and how.
#[derive(Clone, Debug)]
pub(in crate::shard) enum CloseOrder {
    /// All, with the operator's code.
    Operator(Arc<Disconnect>),
    /// Those whose token was issued before this moment, in seconds since 1970.
    Revoked { issued_before_s: u64 },
}
