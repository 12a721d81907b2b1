//! What presence is called in Redis.
//!
//! | key | what |
//! |---|---|
//! | `<prefix>:{p…}:pr:<topic>:<node>` | a room's users on one node: a hash, see `read.rs` |
//! | `<prefix>:{p…}:prn:<topic>` | the nodes that have such a hash: a set |
//! | `<prefix>:node:<node>` | a node's sign of life; it expires |
//! | `<prefix>:nodes` | all nodes that may have users: a set |
//! | `<prefix>:npx:<node>` | the topics of a node's hashes: a set, for whoever cleans up behind it |
//! | `<prefix>:reap:<node>` | somebody is cleaning up; it expires |
//! | `<prefix>:reaped:<node>` | somebody has, in case the node lives after all; it expires |

use crate::backplane::redis::names::partition;
use crate::ids::NodeId;

/// See the module.
#[derive(Clone, Debug)]
pub struct Keys {
    prefix: String,
    /// This node's own name in keys: sixteen digits, as of every node.
    pub me: String,
}

impl Keys {
    /// All keys with this prefix.
    pub fn new(prefix: &str, node: NodeId) -> Keys {
        Keys { prefix: prefix.to_owned(), me: node.to_string() }
    }

    /// The users of a room on a node.
    pub fn users(&self, topic: &str, node: &str) -> String {
        format!("{}:{{p{}}}:pr:{topic}:{node}", self.prefix, partition(topic))
    }

    /// The nodes of a room.
    pub fn nodes_of(&self, topic: &str) -> String {
        format!("{}:{{p{}}}:prn:{topic}", self.prefix, partition(topic))
    }

    /// All nodes.
    pub fn nodes(&self) -> String {
        format!("{}:nodes", self.prefix)
    }

    /// A node's sign of life.
    pub fn life(&self, node: &str) -> String {
        format!("{}:node:{node}", self.prefix)
    }

    /// The topics of a node.
    pub fn index(&self, node: &str) -> String {
        format!("{}:npx:{node}", self.prefix)
    }

    /// Who cleans up behind a node.
    pub fn reap(&self, node: &str) -> String {
        format!("{}:reap:{node}", self.prefix)
    }

    /// That somebody did.
    pub fn reaped(&self, node: &str) -> String {
        format!("{}:reaped:{node}", self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keys_of_a_room_share_its_slot_and_end_in_a_name_of_sixteen() {
        let keys = Keys::new("c", NodeId(10));
        assert_eq!(keys.users("r:room", &keys.me), "c:{p34}:pr:r:room:000000000000000a");
        assert_eq!(keys.nodes_of("r:room"), "c:{p34}:prn:r:room");
        assert_eq!(keys.me.len(), 16, "the script cuts so much off");
    }
}
