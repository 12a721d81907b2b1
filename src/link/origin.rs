//! Which connection, of which shard and node.

use crate::ids::{ConnId, NodeId, ShardId};

/// A connection, named so that any node can tell whether it is its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The node on which it is open.
    pub node: NodeId,
    /// The shard of that node.
    pub shard: ShardId,
    /// The shard's connection.
    pub conn: ConnId,
}

/// The connection's name: the `connection_id` of its `welcome` and in logs.
impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Origin { node, shard, conn: ConnId(slot) } = self;
        write!(f, "{node}-{:x}-{:x}-{:x}", shard.0, slot.index, slot.generation)
    }
}
