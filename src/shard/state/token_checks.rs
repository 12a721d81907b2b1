//! Tokens that clients have sent, until the caller has checked them; see `shard/tokens/`.

use crate::ids::{ConnId, Position};
use crate::protocol::RequestId;
use std::collections::{HashMap, VecDeque};

/// A token to be checked by the caller, who has the keys.
#[derive(Clone, PartialEq, Eq)]
pub struct TokenCheck {
    /// Who has sent it. Not read until [`crate::shard::Shard::handle_token`].
    pub conn: ConnId,
    /// Whether it is for one room; otherwise it is another one of the connection's user.
    pub is_for_room: bool,
    /// The token.
    pub token: Box<str>,
}

impl std::fmt::Debug for TokenCheck {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let TokenCheck { conn, is_for_room, .. } = self;
        write!(f, "TokenCheck({conn:?}, for a room: {is_for_room}, token not shown)")
    }
}

/// Requests that wait for the verdict over their token, at most one of a connection.
#[derive(Debug, Default)]
pub(in crate::shard) struct TokenChecks {
    pub(in crate::shard) queue: VecDeque<TokenCheck>,
    waiting: HashMap<ConnId, WaitingRequest>,
}

/// A request that waits.
#[derive(Debug)]
pub(in crate::shard) struct WaitingRequest {
    pub(in crate::shard) id: Option<RequestId>,
    /// The join that the token came with; `None`: it is the connection's own.
    pub(in crate::shard) join: Option<JoinRequest>,
}

/// A join, until it may be carried out.
#[derive(Debug)]
pub(in crate::shard) struct JoinRequest {
    pub(in crate::shard) room: Box<str>,
    pub(in crate::shard) since: Option<Position>,
    pub(in crate::shard) info: Option<Box<str>>,
    pub(in crate::shard) ack: bool,
}

impl TokenChecks {
    /// Whether a connection waits.
    pub(in crate::shard) fn is_waiting(&self, conn: ConnId) -> bool {
        !self.waiting.is_empty() && self.waiting.contains_key(&conn)
    }

    pub(in crate::shard) fn add(&mut self, check: TokenCheck, request: WaitingRequest) {
        self.waiting.insert(check.conn, request);
        self.queue.push_back(check);
    }

    /// Removes the request of a connection.
    pub(in crate::shard) fn take(&mut self, conn: ConnId) -> Option<WaitingRequest> {
        if self.waiting.is_empty() { None } else { self.waiting.remove(&conn) }
    }
}
