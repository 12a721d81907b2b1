//! What presence is called in Redis.
//!
//! | key | what |
//! |---|---|
//! | `<prefix>:{p…}:pr:<topic>:<node>` | a room's users on one node: a hash, see `read.rs` |
//! | `<prefix>:{p…}:prn:<topic>` | the nodes that have such a hash: a set |
//! | `<prefix>:{p…}:npx:<node>` | the topics of a node's hashes in this partition: a set |
//! | `<prefix>:{p637}:node:<node>` | a node's sign of life; it expires |
//! | `<prefix>:{p637}:nodes` | all nodes that may have users: a set |
//! | `<prefix>:{p637}:cleanup_of:<node>` | somebody is cleaning up; it expires |
//! | `<prefix>:{p637}:removed:<node>` | rises when somebody has, should the node live; it expires |
//!
//! What a script touches lies in one slot: a room's keys, its channel, and the index of its partition,
//! which is for whoever cleans up behind the node. What nodes say of themselves lies in the partition
//! of the topic `*`, on one server.

use crate::backplane::partition::partition;
use crate::ids::{NodeId, TopicName};

/// The topic whose partition has what nodes say of themselves.
pub const CONTROL: &str = "*";

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

    /// The topics of a node in a partition.
    pub fn index(&self, part: u16, node: &str) -> String {
        format!("{}:{{p{part}}}:npx:{node}", self.prefix)
    }

    /// All nodes.
    pub fn nodes(&self) -> String {
        self.control("nodes")
    }

    /// A node's sign of life.
    pub fn life(&self, node: &str) -> String {
        self.control(&format!("node:{node}"))
    }

    /// Who cleans up behind a node.
    pub fn cleanup_of(&self, node: &str) -> String {
        self.control(&format!("reap:{node}"))
    }

    /// That somebody did.
    pub fn removed(&self, node: &str) -> String {
        self.control(&format!("reaped:{node}"))
    }

    fn control(&self, name: &str) -> String {
        format!("{}:{{p{}}}:{name}", self.prefix, partition(CONTROL))
    }
}

/// A node's name, if it is one: sixteen digits as every node writes its own. Others may write what
/// they like into a set of nodes.
pub fn node_name(text: &[u8]) -> Option<String> {
    let is_name = text.len() == 16 && text.iter().all(|it| matches!(it, b'0'..=b'9' | b'a'..=b'f'));
    is_name.then(|| String::from_utf8_lossy(text).into_owned())
}

/// The topic that a member of a partition's index is, if it can be.
pub fn topic_in(part: u16, member: &[u8]) -> Option<String> {
    let topic = TopicName::parse(std::str::from_utf8(member).ok()?)?;
    (partition(topic.as_str()) == part).then(|| topic.as_str().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keys_of_a_room_share_its_slot_and_end_in_a_name_of_sixteen() {
        let keys = Keys::new("c", NodeId(10));
        assert_eq!(keys.users("r:room", &keys.me), "c:{p34}:pr:r:room:000000000000000a");
        assert_eq!(keys.nodes_of("r:room"), "c:{p34}:prn:r:room");
        assert_eq!(keys.index(34, &keys.me), "c:{p34}:npx:000000000000000a");
        assert_eq!(keys.me.len(), 16, "the script cuts so much off");
    }

    #[test]
    fn only_what_a_node_is_called_is_the_name_of_one() {
        let me = Keys::new("c", NodeId(0xABCD_EF01)).me;
        assert_eq!(node_name(me.as_bytes()), Some(me));
        for wrong in [&b""[..], b"node", b"00000000ABCDEF01", b"00000000abcdef011", &[0xFF; 16]] {
            assert_eq!(node_name(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn what_nodes_say_of_themselves_shares_a_slot() {
        let keys = Keys::new("c", NodeId(10));
        assert_eq!(keys.nodes(), "c:{p637}:nodes");
        for key in [keys.life("n"), keys.cleanup_of("n"), keys.removed("n")] {
            assert!(key.starts_with("c:{p637}:"), "{key}");
        }
    }
}
