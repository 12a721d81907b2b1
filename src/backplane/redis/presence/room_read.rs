//! One read of a room: its nodes, the names of all their users, and the entries of at most as many as
//! are listed.
//!
//! ```text
//! Nodes ──► Names of each node ──► Entries of each node ──► done
//!   └── no other node: done └── no users: done
//! ```
//!
//! Each step is one batch, with one item for each node. An error ends the read; the room is read
//! again from the beginning, or its requests are refused.

use crate::backplane::presence::Presence;
use crate::backplane::redis::pipeline::{
    BatchPipeline, CommandConnection, OutgoingBatch, RetryOrder,
};
use crate::backplane::redis::presence::event;
use crate::backplane::redis::presence::failures::value_of;
use crate::backplane::redis::presence::keys::{Keys, node_name};
use crate::backplane::redis::presence::skipped::Skipped;
use crate::backplane::redis::unreadable::number;
use crate::ids::{TopicName, is_name};
use crate::protocol::{Info, Roster, RosterEntry};
use hashbrown::{HashMap, HashSet};
use redis::{FromRedisValue, RedisResult, Value};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

/// A read of a room, in flight.
pub(super) struct RoomRead {
    connection: CommandConnection,
    keys: Keys,
    topic: TopicName,
    /// Nodes that are ignored.
    dead: Arc<[String]>,
    /// Users whose entries are read: first those that this node has itself.
    wanted: Vec<TopicName>,
    step: ReadStep,
    /// An item is a node; of the first step this one.
    batch: BatchPipeline<String>,
    found: RemoteUsers,
}

/// What is being read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ReadStep {
    /// The nodes of the room.
    Nodes,
    /// The names of the users of each node.
    Names,
    /// The entries of the users that may be listed, on each node.
    Entries,
}

/// The users of other nodes in a room.
#[derive(Default)]
pub(super) struct RemoteUsers {
    /// Those nodes.
    pub nodes: Vec<String>,
    /// All their users.
    pub users: HashSet<TopicName>,
    /// Number of connections and info of those that may be listed.
    pub known: HashMap<TopicName, (u64, Option<Info>)>,
    /// What no node has written.
    pub skipped: Skipped,
}

impl RoomRead {
    /// Sends the first step. `wanted`: users of this node, whose entries elsewhere are wanted.
    pub(super) fn begin(
        cx: &mut Context<'_>,
        now: Instant,
        (connection, keys): (&CommandConnection, &Keys),
        topic: TopicName,
        dead: Arc<[String]>,
        wanted: Vec<TopicName>,
    ) -> RoomRead {
        let mut read = RoomRead {
            connection: connection.clone(),
            keys: keys.clone(),
            topic,
            dead,
            wanted,
            step: ReadStep::Nodes,
            batch: BatchPipeline::new(1, RetryOrder::Each),
            found: RemoteUsers::default(),
        };
        read.send(cx, now);
        read
    }

    /// Makes progress; ready when the read is done.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
    ) -> Poll<RedisResult<RemoteUsers>> {
        loop {
            let answered = match self.batch.poll_answered(cx) {
                Ok(Some(answered)) => answered,
                Ok(None) => return Poll::Pending,
                Err(error) => {
                    self.batch.lose_link();
                    return Poll::Ready(Err(error));
                }
            };
            match self.handle(answered.map(|(_, reply)| value_of(reply))) {
                Ok(true) => return Poll::Ready(Ok(std::mem::take(&mut self.found))),
                Ok(false) => self.send(cx, now),
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Sends the commands of the step.
    fn send(&mut self, cx: &mut Context<'_>, now: Instant) {
        let topic = self.topic.as_str();
        let mut batch = OutgoingBatch::new(self.found.nodes.len().max(1));
        match self.step {
            ReadStep::Nodes => {
                batch.commands.cmd("SMEMBERS").arg(self.keys.nodes_of(topic));
                batch.items.push(self.keys.me.clone());
            }
            ReadStep::Names => {
                for node in &self.found.nodes {
                    batch.commands.cmd("HKEYS").arg(self.keys.users(topic, node));
                    batch.items.push(node.clone());
                }
            }
            ReadStep::Entries => {
                for node in &self.found.nodes {
                    let entries = batch.commands.cmd("HMGET").arg(self.keys.users(topic, node));
                    self.wanted.iter().for_each(|user| _ = entries.arg(&user.as_str()[2..]));
                    batch.items.push(node.clone());
                }
            }
        }
        self.batch.send(cx, now, &self.connection, batch);
    }

    /// Takes the replies of a step. Returns whether the read is done; if not, the next step is to be
    /// sent.
    fn handle(&mut self, replies: impl Iterator<Item = RedisResult<Value>>) -> RedisResult<bool> {
        for reply in replies {
            let reply = reply?;
            match self.step {
                ReadStep::Nodes => self.handle_nodes(FromRedisValue::from_redis_value(reply)?),
                ReadStep::Names => self.handle_names(FromRedisValue::from_redis_value(reply)?),
                ReadStep::Entries => self.handle_entries(FromRedisValue::from_redis_value(reply)?),
            }
        }
        Ok(match self.step {
            ReadStep::Nodes => {
                self.step = ReadStep::Names;
                self.found.nodes.is_empty()
            }
            ReadStep::Names => {
                self.step = ReadStep::Entries;
                let mine: HashSet<TopicName> = self.wanted.iter().cloned().collect();
                let more = Roster::USERS_MAX - self.wanted.len();
                self.wanted.extend(self.found.users.difference(&mine).take(more).cloned());
                self.found.users.is_empty()
            }
            ReadStep::Entries => true,
        })
    }

    fn handle_nodes(&mut self, names: Vec<Vec<u8>>) {
        let RoomRead { found, keys, dead, .. } = self;
        for name in names {
            let node = node_name(&name);
            let node = found.skipped.or_skip(node, "a name among the nodes of a room", &name);
            found.nodes.extend(node.filter(|node| *node != keys.me && !dead.contains(node)));
        }
    }

    fn handle_names(&mut self, names: Vec<Vec<u8>>) {
        for name in names {
            let user = self.found.skipped.or_skip(user_topic(&name), "the name of a user", &name);
            self.found.users.extend(user);
        }
    }

    /// The entries of a node, in the order of `wanted`.
    fn handle_entries(&mut self, values: Vec<Option<Vec<u8>>>) {
        for (user, value) in self.wanted.iter().zip(values) {
            let value = value.as_deref();
            let Some(here) = value.and_then(|value| entry(value, &mut self.found.skipped)) else {
                continue;
            };
            let place = self.found.known.entry(user.clone()).or_insert((0, None));
            *place = merge_connections(std::mem::take(place), here);
        }
    }
}

impl RemoteUsers {
    /// Applies an event that arrived after the read was sent. This node's own users are known
    /// better.
    pub(super) fn change(
        &mut self,
        user: TopicName,
        is: Option<Option<Info>>,
        topic: &TopicName,
        members: &Presence,
    ) {
        match is {
            _ if members.member(topic, &user).is_some() => {}
            Some(info) => {
                self.known.entry(user.clone()).or_insert((1, info));
                self.users.insert(user);
            }
            None => {
                self.users.remove(&user);
                self.known.remove(&user);
            }
        }
    }

    /// The roster, this node's users included.
    pub(super) fn with(mut self, topic: &TopicName, members: &Presence) -> Roster {
        let both = self.users.iter().filter(|user| members.member(topic, user).is_some()).count();
        let count = members.count(topic) + self.users.len() - both;
        let mut listed = Vec::new();
        for (user, member) in members.members(topic).take(Roster::USERS_MAX) {
            let (there, their_info) = self.known.remove(user).unwrap_or_default();
            let here = (u64::from(member.connections), member.info.clone());
            let (connections, info) = merge_connections(here, (there, their_info));
            listed.push(RosterEntry { user: user.clone(), connections, info });
        }
        for (user, (connections, info)) in self.known {
            if members.member(topic, &user).is_none() {
                listed.push(RosterEntry { user, connections, info });
            }
        }
        Roster::new(listed, count as u64)
    }
}

/// The user of a name in a room's hash, if it is one.
pub(super) fn user_topic(name: &[u8]) -> Option<TopicName> {
    std::str::from_utf8(name).ok().filter(|name| is_name(name)).map(TopicName::user)
}

/// Parses an entry, and counts what no node has written in it.
fn entry(value: &[u8], skipped: &mut Skipped) -> Option<(u64, Option<Info>)> {
    let (connections, info) = skipped.or_skip(value_read(value), "the entry of a user", value)?;
    if info.is_none() && value.contains(&b'|') {
        skipped.note("the info of a user", value);
    }
    Some((connections, info))
}

/// A user on two nodes. The info of the node with connections counts, if it is only one.
fn merge_connections(one: (u64, Option<Info>), other: (u64, Option<Info>)) -> (u64, Option<Info>) {
    let connections = one.0.saturating_add(other.0);
    let info = if one.0 == 0 { other.1.or(one.1) } else { one.1.or(other.1) };
    (connections, info)
}

/// The entry of a user: `connections` or `connections|info`.
pub(super) fn value_written(connections: u32, info: Option<&str>) -> String {
    match info {
        Some(info) => format!("{connections}|{info}"),
        None => connections.to_string(),
    }
}

/// Parses an entry. `None`: no node has written it. An info that no client may give is dropped.
fn value_read(value: &[u8]) -> Option<(u64, Option<Info>)> {
    let bar = value.iter().position(|byte| *byte == b'|');
    let (connections, info) = value.split_at(bar.unwrap_or(value.len()));
    let connections = number(connections).filter(|it| *it <= u64::from(u32::MAX))?;
    let info = info.split_first().and_then(|(_bar, info)| event::info(info));
    Some((connections, info.map(Into::into)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backplane::redis::hostile;

    #[test]
    fn an_entry_is_read_back_as_it_was_written() {
        for info in [None, Some(r#""a|b""#)] {
            let value = value_written(3, info);
            let read = value_read(value.as_bytes());
            assert_eq!(read, Some((3, info.map(Into::into))), "{value}");
        }
    }

    #[test]
    fn an_entry_that_no_node_has_written_is_ignored_and_an_impossible_info_dropped() {
        for wrong in ["", "|", "x", "-1", "+1", "1.5", "4294967296", "18446744073709551615", "1 "] {
            assert_eq!(value_read(wrong.as_bytes()), None, "{wrong:?}");
        }
        for silent in ["3|", "3|{", "3|1 2", &format!("3|{}", "7".repeat(100_000))] {
            assert_eq!(value_read(silent.as_bytes()), Some((3, None)), "{silent:.9}");
        }
        assert_eq!(merge_connections((u64::MAX, None), (7, None)), (u64::MAX, None));
    }

    proptest::proptest! {
        #[test]
        fn any_entry_is_parsed_or_refused(value in hostile::text()) {
            let _ = value_read(&value);
            let _ = value_read(&[b"3|", &value[..]].concat());
            let _ = (node_name(&value), event::info(&value));
        }
    }
}
