//! The two Lua scripts of presence.
//!
//! What concerns a room is decided in Redis, atomically: whether a user is new, or was the last, or
//! is on another node too. The event is published in the same step, so that events have the order
//! of the changes.
//!
//! A script touches the keys of one room and the index of its partition, which share a slot. So the
//! index is always right about where a node has users. Cost of [`PresenceScript::Write`]: a few
//! microseconds for each user, up to hundreds of users of a room in one call.

use crate::backplane::partition::partition;
use crate::backplane::redis::names::Names;
use crate::backplane::redis::pipeline::{ScriptOwner, ScriptSet};
use crate::backplane::redis::presence::event;
use crate::backplane::redis::presence::keys::Keys;
use redis::Pipeline;
use std::sync::LazyLock;

/// One of the scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PresenceScript {
    /// Writes entries of this node; returns the other nodes with users in the room.
    Write,
    /// Removes all entries of a dead node in a room.
    RemoveNode,
}

const WRITE: &str = concat!(include_str!("room.lua"), include_str!("write.lua"));
const REMOVE_NODE: &str = concat!(include_str!("room.lua"), include_str!("remove_node.lua"));

/// Both of them.
pub(super) const PRESENCE_SCRIPTS: ScriptSet =
    ScriptSet { owner: ScriptOwner::Presence, texts: &[WRITE, REMOVE_NODE] };

impl PresenceScript {
    /// The text for SCRIPT LOAD.
    pub(super) fn text(self) -> &'static str {
        match self {
            PresenceScript::Write => WRITE,
            PresenceScript::RemoveNode => REMOVE_NODE,
        }
    }

    /// Its SHA-1 for EVALSHA.
    fn hash(self) -> &'static str {
        static WRITE: LazyLock<redis::Script> =
            LazyLock::new(|| redis::Script::new(PresenceScript::Write.text()));
        static REMOVE_NODE: LazyLock<redis::Script> =
            LazyLock::new(|| redis::Script::new(PresenceScript::RemoveNode.text()));
        match self {
            PresenceScript::Write => WRITE.get_hash(),
            PresenceScript::RemoveNode => REMOVE_NODE.get_hash(),
        }
    }
}

/// Arguments that concern the room.
#[derive(Clone, Copy)]
pub(super) struct RoomArgs<'a> {
    /// Its topic.
    pub topic: &'a str,
    /// Number of users beyond which no events are published.
    pub users_max: usize,
    /// Nodes that are ignored.
    pub dead: &'a [String],
    /// The publish command ([`ServerRoutes::publish`]).
    ///
    /// [`ServerRoutes::publish`]: crate::backplane::redis::topology::routes::ServerRoutes::publish
    pub publish: &'static str,
}

/// Arguments that concern a user.
pub(super) struct UserArgs<'a> {
    /// The user's name.
    pub name: &'a str,
    /// The entry; empty: the user has left.
    pub value: String,
    /// Whether the event is published: 0, no; 1, if something changes; 2, in any case.
    pub notify: u8,
    /// The event.
    pub event: Vec<u8>,
}

/// Adds a call that writes entries of this node.
pub(super) fn write(
    pipeline: &mut Pipeline,
    keys: &Keys,
    names: &Names,
    room: RoomArgs<'_>,
    users: &[UserArgs<'_>],
) {
    begin(pipeline, PresenceScript::Write, keys, names, room, &keys.me);
    for UserArgs { name, value, notify, event } in users {
        pipeline.arg(name).arg(value).arg(notify).arg(&event[..]);
    }
}

/// Adds a call that removes all entries of a dead node in a room.
pub(super) fn remove_node(
    pipeline: &mut Pipeline,
    keys: &Keys,
    names: &Names,
    room: RoomArgs<'_>,
    node: &str,
) {
    begin(pipeline, PresenceScript::RemoveNode, keys, names, room, node);
    pipeline.arg(&event::LEFT[..]);
}

fn begin(
    pipeline: &mut Pipeline,
    script: PresenceScript,
    keys: &Keys,
    names: &Names,
    room: RoomArgs<'_>,
    node: &str,
) {
    let RoomArgs { topic, users_max, dead, publish } = room;
    pipeline.cmd("EVALSHA").arg(script.hash()).arg(3);
    pipeline.arg(keys.users(topic, node)).arg(keys.nodes_of(topic));
    pipeline.arg(keys.index(partition(topic), node));
    pipeline.arg(node).arg(names.channel(topic)).arg(users_max).arg(publish).arg(topic);
    pipeline.arg(dead.len()).arg(dead);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::NodeId;

    #[test]
    fn the_keys_of_a_call_are_in_one_slot_and_its_arguments_in_order() {
        let keys = Keys::new("c", NodeId(10));
        let names = Names::new("c", NodeId(10));
        let dead = ["d1".to_owned(), "d2".to_owned()];
        let room = RoomArgs { topic: "r:room", users_max: 7, dead: &dead, publish: "SPUBLISH" };
        let mut pipeline = Pipeline::new();
        let ann = UserArgs { name: "ann", value: "1".into(), notify: 1, event: vec![b'P'] };
        write(&mut pipeline, &keys, &names, room, &[ann]);
        let write_room = pipeline.cmd_iter().next().unwrap();
        let args: Vec<&str> = write_room
            .args_iter()
            .map(|arg| match arg {
                redis::Arg::Simple(bytes) => std::str::from_utf8(bytes).unwrap(),
                _ => panic!("no cursor"),
            })
            .collect();
        assert_eq!(args[..3], ["EVALSHA", PresenceScript::Write.hash(), "3"]);
        let (in_slot, rest) = args[3..].split_at(3);
        assert!(in_slot.iter().all(|key| key.starts_with("c:{p34}:")), "{in_slot:?}");
        assert!(rest[1].starts_with("c:{p34}:m:"), "{}", rest[1]);
        assert_eq!(rest[2..8], ["7", "SPUBLISH", "r:room", "2", "d1", "d2"]);
        assert_eq!(rest[8..], ["ann", "1", "1", "P"]);
        for script in [PresenceScript::Write, PresenceScript::RemoveNode] {
            assert!(!script.text().contains("'PUBLISH'"), "the route names the command");
        }
    }
}
