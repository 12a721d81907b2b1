//! How many connections each shard has in each encoding: who a broadcast is for.
//!
//! A broadcast has no member list. The backplane writes it once for each encoding that has
//! connections on this node, and sends it to the shards that have them. A shard counts its
//! connections up before it greets one of them, so a client that was greeted misses no broadcast that
//! was published after that.
//!
//! A shard writes its own numbers, on its own line of cache, when connections open and close; the
//! backplane reads them for each broadcast. Nothing here is on the way of a delivery to a member.

use crate::ids::{SlotId, TopicId};
use crate::protocol::dialect::Encoding;
use crossbeam_utils::CachePadded;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// The counts of one shard, shared by the shard and the backplane.
#[derive(Clone, Debug, Default)]
pub struct ConnectionCounts {
    counts: Arc<CachePadded<[AtomicU32; Encoding::COUNT]>>,
}

impl ConnectionCounts {
    /// Sets how many open connections the shard has in an encoding. Only the shard does.
    pub fn set(&self, encoding: Encoding, connections: u32) {
        self.counts[encoding.place()].store(connections, Ordering::Release);
    }

    /// Whether a shard has open connections in an encoding.
    pub fn has(&self, encoding: Encoding) -> bool {
        self.counts[encoding.place()].load(Ordering::Acquire) > 0
    }

    /// The encodings in which a shard has open connections.
    pub fn encodings(&self) -> impl Iterator<Item = Encoding> + '_ {
        Encoding::ALL.into_iter().filter(|encoding| self.has(*encoding))
    }
}

/// The shard's key for everybody with an open connection in an encoding: a topic without a member
/// list, without joins and leaves.
pub const fn everybody(encoding: Encoding) -> TopicId {
    TopicId(SlotId { index: u32::MAX, generation: encoding.place() as u32 })
}

/// In which encoding a key is everybody's, if it is.
pub fn encoding_of_everybody(topic: TopicId) -> Option<Encoding> {
    let place = topic.0.generation as usize;
    (topic.0.index == u32::MAX).then(|| Encoding::ALL.get(place).copied()).flatten()
}
