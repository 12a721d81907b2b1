//! Names of channels and of history keys.
//!
//! A topic's channel is `<prefix>:{p<0..1023>}:m:<topic>`. The braces are a Cluster's hash tag: all
//! names of one partition are in one slot.
//!
//! Keys belong to a database, channels to the whole server. So where the database is another than 0
//! its number is in the name of each channel (`<prefix>:db=3:{p…}:m:<topic>`), and two systems with
//! one prefix in two databases receive nothing of each other. No prefix has a `=`, so no other prefix
//! makes the same names.

use crate::backplane::partition::partition;
use crate::backplane::redis::permissions::table::{channels_rule, keys_rule};
use crate::ids::{NodeId, TopicName};

/// The names that one node uses.
#[derive(Clone, Debug)]
pub struct Names {
    /// The beginning of all keys of topics.
    keys: String,
    /// The beginning of all channels of topics.
    topics: String,
    canaries: String,
    node: NodeId,
    is_sharded: bool,
    /// The channel for publishes of other services: `<prefix>:publish`, or `<prefix>:db=3:publish`.
    pub ingest: String,
    /// The name of our connections in `CLIENT LIST`, before `-sub` and `-cmd`.
    pub client: String,
}

/// The keys of a topic's history. All are in one slot of a Cluster, with the topic's channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryKeys {
    /// A hash: epoch (`e`), last offset (`s`), and the other fields of `lua/publish.lua`.
    pub meta: String,
    /// A stream: the message of an offset is at `<offset>-0`, in field `d`.
    pub stream: String,
    /// A hash for all topics of the partition: see `lua/fence.lua`.
    pub partition: String,
    /// Prefix of idempotency keys: `<retry>:<key>` has the position of the message with that key.
    pub retry: String,
}

impl Names {
    /// Names with this prefix, in database 0.
    pub fn new(prefix: &str, node: NodeId) -> Names {
        Names::in_database(prefix, 0, node)
    }

    /// Names with this prefix in this database.
    pub fn in_database(prefix: &str, db: u32, node: NodeId) -> Names {
        let channels = match db {
            0 => prefix.to_owned(),
            db => format!("{prefix}:db={db}"),
        };
        Names {
            keys: format!("{prefix}:{{p"),
            topics: format!("{channels}:{{p"),
            canaries: format!("{channels}:canary:{node}"),
            node,
            is_sharded: false,
            ingest: format!("{channels}:publish"),
            client: format!("campanile-{node}"),
        }
    }

    /// The same in a Cluster, where a channel belongs to a slot like a key.
    pub fn sharded(self) -> Names {
        Names { is_sharded: true, ..self }
    }

    /// The node whose names these are.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// Whether these are names of a Cluster.
    pub fn is_sharded(&self) -> bool {
        self.is_sharded
    }

    /// Whether a channel belongs to a slot, not to the whole Cluster.
    pub fn is_of_a_slot(&self, channel: &str) -> bool {
        self.is_sharded && channel.starts_with(&self.topics)
    }

    /// The command that publishes to a topic's channel.
    pub fn publish(&self) -> &'static str {
        if self.is_sharded { "SPUBLISH" } else { "PUBLISH" }
    }

    /// The canary's channel: `<prefix>:canary:<node>`, in a Cluster on the server of a partition
    /// (`<prefix>:{p7}:canary:<node>`).
    pub fn canary(&self, partition: u16) -> String {
        match self.is_sharded {
            true => format!("{}{partition}}}:canary:{}", self.topics, self.node),
            false => self.canaries.clone(),
        }
    }

    /// The channel of a topic.
    pub fn channel(&self, topic: &str) -> String {
        let mut channel = String::with_capacity(self.topics.len() + 8 + topic.len());
        channel.push_str(&self.topics);
        channel.push_str(itoa::Buffer::new().format(partition(topic)));
        channel.push_str("}:m:");
        channel.push_str(topic);
        channel
    }

    /// The keys of a topic's history.
    pub fn history_keys(&self, topic: &str) -> HistoryKeys {
        let number = partition(topic);
        let key = |kind: &str| format!("{}{number}}}:{kind}:{topic}", self.keys);
        let partition = self.partition_key(number);
        HistoryKeys { meta: key("h"), stream: key("s"), partition, retry: key("k") }
    }

    /// The key of a partition's fence.
    pub fn partition_key(&self, partition: u16) -> String {
        format!("{}{partition}}}:g", self.keys)
    }

    /// The key of the number of the last message to everybody.
    pub fn broadcast_key(&self) -> String {
        format!("{}{}}}:b", self.topics, partition(TopicName::ALL))
    }

    /// The keys of revocations: a hash, their order, and when they are over. In one slot with the
    /// messages to everybody.
    pub fn revocation_keys(&self) -> [String; 3] {
        let number = partition(TopicName::ALL);
        ["d", "c", "u"].map(|of| format!("{}{number}}}:revoked:{of}", self.keys))
    }

    /// A key or channel of a partition's slot, with which a new link is tried out.
    pub fn probe(&self, partition: u16, kind: &str) -> String {
        format!("{}{partition}}}:probe:{}:{kind}", self.topics, self.node)
    }

    /// The ACL rule for all keys.
    pub fn keys_rule(&self) -> String {
        keys_rule(self.prefix())
    }

    /// The ACL rule for all channels.
    pub fn channels_rule(&self) -> String {
        channels_rule(self.prefix())
    }

    fn prefix(&self) -> &str {
        self.topics.strip_suffix(":{p").expect("it was put together like that")
    }

    /// The topic of a channel, if it is a topic's.
    pub fn topic<'a>(&self, channel: &'a [u8]) -> Option<&'a str> {
        let rest = std::str::from_utf8(channel).ok()?.strip_prefix(&self.topics)?;
        let (number, topic) = rest.split_once("}:m:")?;
        (number.len() <= 4).then_some(topic)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_is_read_back_from_its_channel() {
        let names = Names::new("campanile", NodeId(1));
        assert_eq!(names.channel("r:room"), "campanile:{p34}:m:r:room");
        for topic in ["r:room", "u:ann", "*", "r:}:m:{"] {
            assert_eq!(names.topic(names.channel(topic).as_bytes()), Some(topic));
        }
        for wrong in ["campanile:publish", "other:{p1}:m:r:x", "campanile:{p12345}:m:r:x", ""] {
            assert_eq!(names.topic(wrong.as_bytes()), None, "{wrong}");
        }
    }

    #[test]
    fn a_database_changes_each_channel_and_no_key() {
        let zero = Names::in_database("a", 0, NodeId(1));
        let three = Names::in_database("a", 3, NodeId(1));
        assert_eq!(zero.ingest, Names::new("a", NodeId(1)).ingest);
        assert_eq!(zero.channel("r:x"), Names::new("a", NodeId(1)).channel("r:x"));
        let number = partition("r:x");
        assert_eq!(three.channel("r:x"), format!("a:db=3:{{p{number}}}:m:r:x"));
        assert_eq!(three.ingest, "a:db=3:publish");
        assert_eq!(three.canary(7), format!("a:db=3:canary:{}", NodeId(1)));
        assert_eq!(three.topic(three.channel("r:x").as_bytes()), Some("r:x"));
        assert_eq!(three.topic(zero.channel("r:x").as_bytes()), None);
        assert_eq!(zero.topic(three.channel("r:x").as_bytes()), None);
        assert_eq!(three.history_keys("r:x"), zero.history_keys("r:x"));
        assert_eq!(three.partition_key(7), zero.partition_key(7));
    }
}
