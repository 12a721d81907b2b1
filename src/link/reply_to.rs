//! Where the answer goes to what one thread asks of another.

use crate::ids::{ConnId, ShardId};
use crate::protocol::RequestId;
use std::fmt;

/// Who is to be answered.
pub enum ReplyTo<T> {
    /// A connection of a shard, through that shard's channel.
    Conn {
        /// Whose shard.
        shard: ShardId,
        /// Which connection; it may leave before the answer comes.
        conn: ConnId,
        /// The client's number for its request.
        id: Option<RequestId>,
        /// The backplane's own note of when it took a publish; everybody else writes `false`.
        turn: bool,
    },
    /// A caller on another thread (the HTTP API). Must not block.
    Call(Box<dyn FnOnce(T) + Send>),
    /// Nobody. Failures are counted and logged.
    Nobody,
}

impl<T> ReplyTo<T> {
    /// Answers a caller, if it is one.
    pub fn call(self, answer: T) {
        if let ReplyTo::Call(call) = self {
            call(answer);
        }
    }
}

impl<T> fmt::Debug for ReplyTo<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReplyTo::Conn { shard, conn, id, .. } => write!(f, "Conn({shard:?}, {conn:?}, {id:?})"),
            ReplyTo::Call(_) => f.write_str("Call"),
            ReplyTo::Nobody => f.write_str("Nobody"),
        }
    }
}
