//! The keys of presence in Redis.
//!
//! | key | what |
//! |---|---|
//! | `<prefix>:{p…}:pr:<topic>:<node>` | a room's users on one node: a hash, see `room_read.rs` |
//! | `<prefix>:{p…}:prn:<topic>` | the nodes that have such a hash: a set |
//! | `<prefix>:{p…}:npx:<node>` | the topics of a node's hashes in this partition: a set |
//! | `<prefix>:{p637}:node:<node>` | a node's record: the versions that it reads; it expires |
//! | `<prefix>:{p637}:nodes` | all nodes, with presence or without: a set |
//! | `<prefix>:{p637}:reap:<node>` | the claim of the node that removes a dead one; it expires |
//! | `<prefix>:{p637}:reaped:<node>` | a number that rises when a node was removed; it expires |
//!
//! The keys of one script are in one slot: a room's keys, its channel, and the index of its
//! partition, from which a dead node's entries are removed. Keys of nodes are in the partition of
//! the topic `*`, on one server.

use crate::backplane::partition::partition;
use crate::ids::{NodeId, TopicName};

/// The topic whose partition has the keys of nodes.
pub(super) const CONTROL: &str = "*";

/// Names of the keys, for one node.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    prefix: String,
    /// This node's name in keys: 16 hexadecimal digits, like every node's.
    pub me: String,
}

impl Keys {
    /// Keys with this prefix.
    pub(super) fn new(prefix: &str, node: NodeId) -> Keys {
        Keys { prefix: prefix.to_owned(), me: node.to_string() }
    }

    /// The users of a room on a node.
    pub(super) fn users(&self, topic: &str, node: &str) -> String {
        format!("{}:{{p{}}}:pr:{topic}:{node}", self.prefix, partition(topic))
    }

    /// The nodes of a room.
    pub(super) fn nodes_of(&self, topic: &str) -> String {
        format!("{}:{{p{}}}:prn:{topic}", self.prefix, partition(topic))
    }

    /// The topics of a node in a partition.
    pub(super) fn index(&self, part: u16, node: &str) -> String {
        format!("{}:{{p{part}}}:npx:{node}", self.prefix)
    }

    /// All nodes.
    pub(super) fn nodes(&self) -> String {
        self.control("nodes")
    }

    /// A node's record.
    pub(super) fn record(&self, node: &str) -> String {
        self.control(&format!("node:{node}"))
    }

    /// The claim to remove a dead node.
    pub(super) fn cleanup_of(&self, node: &str) -> String {
        self.control(&format!("reap:{node}"))
    }

    /// The notice that a node was removed.
    pub(super) fn removed(&self, node: &str) -> String {
        self.control(&format!("reaped:{node}"))
    }

    fn control(&self, name: &str) -> String {
        format!("{}:{{p{}}}:{name}", self.prefix, partition(CONTROL))
    }
}

/// A node's name, if it is one: 16 lower-case hexadecimal digits. Other programs may write anything
/// into a set of nodes.
pub(super) fn node_name(text: &[u8]) -> Option<String> {
    let is_name = text.len() == 16 && text.iter().all(|it| matches!(it, b'0'..=b'9' | b'a'..=b'f'));
    is_name.then(|| String::from_utf8_lossy(text).into_owned())
}

/// The topic of a member of a partition's index, if it is one of that partition.
pub(super) fn topic_in(part: u16, member: &[u8]) -> Option<String> {
    let topic = TopicName::parse(std::str::from_utf8(member).ok()?)?;
    (partition(topic.as_str()) == part).then(|| topic.as_str().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keys_of_a_room_share_its_slot_and_end_in_a_name_of_sixteen_digits() {
        let keys = Keys::new("c", NodeId(10));
        assert_eq!(keys.users("r:room", &keys.me), "c:{p34}:pr:r:room:000000000000000a");
        assert_eq!(keys.nodes_of("r:room"), "c:{p34}:prn:r:room");
        assert_eq!(keys.index(34, &keys.me), "c:{p34}:npx:000000000000000a");
        assert_eq!(keys.me.len(), 16, "the script cuts so much off");
    }

    #[test]
    fn only_sixteen_lower_case_digits_are_the_name_of_a_node() {
        let me = Keys::new("c", NodeId(0xABCD_EF01)).me;
        assert_eq!(node_name(me.as_bytes()), Some(me));
        for wrong in [&b""[..], b"node", b"00000000ABCDEF01", b"00000000abcdef011", &[0xFF; 16]] {
            assert_eq!(node_name(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn the_keys_of_nodes_share_a_slot() {
        let keys = Keys::new("c", NodeId(10));
        assert_eq!(keys.nodes(), "c:{p637}:nodes");
        for key in [keys.record("n"), keys.cleanup_of("n"), keys.removed("n")] {
            assert!(key.starts_with("c:{p637}:"), "{key}");
        }
    }
}
