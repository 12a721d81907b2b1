//! The two scripts, and how they are called.
//!
//! What is decided about a room is decided in Redis, between the change and the next one: whether a
//! user is new, or was the last, or is on another node too. And it is told in the same step, so that
//! news come in the order of what they tell of.
//!
//! A script touches the keys of one room and the index of its partition, which share a slot. So the
//! index says at any time where a node has users. Costs of [`PresenceScript::Write`]: one call for up to
//! hundreds of users of a room, a few microseconds each.

use crate::backplane::partition::partition;
use crate::backplane::redis::names::Names;
use crate::backplane::redis::presence::event;
use crate::backplane::redis::presence::keys::Keys;
use redis::Pipeline;
use std::sync::LazyLock;

/// A script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PresenceScript {
    /// Writes users of this node, and answers who else has some there.
    Write,
    /// Removes all users of a node that died.
    RemoveNode,
}

impl PresenceScript {
    /// What is sent once.
    pub fn text(self) -> &'static str {
        match self {
            PresenceScript::Write => concat!(include_str!("room.lua"), include_str!("write.lua")),
            PresenceScript::RemoveNode => {
                concat!(include_str!("room.lua"), include_str!("remove_node.lua"))
            }
        }
    }

    /// What is sent from then on: its SHA-1.
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

/// What a script is told of a room.
#[derive(Clone, Copy)]
pub struct RoomArgs<'a> {
    /// Its topic.
    pub topic: &'a str,
    /// How many users it may have if it is told of them.
    pub users_max: usize,
    /// Nodes that do not count.
    pub dead: &'a [String],
    /// How it is told ([`ServerRoutes::publish`]).
    ///
    /// [`ServerRoutes::publish`]: crate::backplane::redis::topology::routes::Route::publish
    pub publish: &'static str,
}

/// A user to write.
pub struct UserArgs<'a> {
    /// The name.
    pub name: &'a str,
    /// What stands there; empty: the user has left.
    pub value: String,
    /// Whether it is told: 0, no; 1, if it changes anything; 2, in any case.
    pub notify: u8,
    /// What is told.
    pub event: Vec<u8>,
}

/// Adds a call that writes users of this node.
pub fn write(
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

/// Adds a call that removes all users of a dead node.
pub fn remove_node(
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
    fn a_call_stays_in_one_slot_and_its_numbers_are_right() {
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
