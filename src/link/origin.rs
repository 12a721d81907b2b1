//! Which connection, of which shard and node.

use crate::ids::{ConnId, NodeId, ShardId};

/// A connection, named so that any node can tell whether it is its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The node.
    pub node: NodeId,
    /// Its shard.
    pub shard: ShardId,
    /// The shard's connection.
    pub conn: ConnId,
}
