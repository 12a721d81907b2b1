//! The walk over the partitions of one server that removes the entries of a dead node.
//!
//! Some partitions at a time: their rooms are read, some of each, and removed, until there are none.
//! A partition that refuses is left, and the walk goes on with the others.

use crate::backplane::partition::partition;
use crate::backplane::redis::partition_set::PartitionSet;
use crate::backplane::redis::pipeline::{
    AnsweredBatch, BatchPipeline, CommandConnection, OutgoingBatch, RetryOrder,
};
use crate::backplane::redis::presence::context::PresenceRules;
use crate::backplane::redis::presence::failures::value_of;
use crate::backplane::redis::presence::keys::{Keys, topic_in};
use crate::backplane::redis::presence::scripts::{self, PRESENCE_SCRIPTS};
use crate::backplane::redis::topology::routes::ServerRoutes;
use crate::ids::TopicName;
use redis::{FromRedisValue, RedisError, RedisResult, Value};
use std::collections::VecDeque;
use std::task::{Context, Poll};
use std::time::Instant;

/// Partitions in one step.
const PARTS_PER_STEP: usize = 64;
/// Rooms of a partition that one reply lists.
const ROOMS_PER_LOOK: usize = 64;
/// Rooms removed in one step.
const ROOMS_PER_STEP: usize = 64;

/// What all walks of a cleanup share.
pub(super) struct WalkContext {
    /// The connections to all servers.
    pub route: ServerRoutes,
    /// Names of keys.
    pub keys: Keys,
    /// Settings.
    pub rules: PresenceRules,
    /// The dead node.
    pub node: String,
}

/// The walk over one server.
pub(super) struct ServerWalk {
    /// `None`: it is down.
    connection: Option<CommandConnection>,
    /// Partitions of later steps.
    later: VecDeque<u16>,
    /// Partitions of this step that may have more rooms.
    left: PartitionSet,
    /// Rooms to be removed.
    rooms: VecDeque<String>,
    /// Members of an index that are no room of its partition. They are not removed with a room, and
    /// would be listed for ever.
    foreign: VecDeque<(u16, Vec<u8>)>,
    batch: BatchPipeline<WalkItem>,
    /// The last error of a partition or a room.
    refusal: Option<RedisError>,
    is_done: bool,
}

/// One command in flight.
enum WalkItem {
    /// Rooms of a partition are read.
    Rooms(u16),
    /// The users of a room are removed.
    Remove(String),
    /// A member of an index is removed.
    Foreign,
}

impl ServerWalk {
    /// A walk over those of `parts` that are on this server.
    pub(super) fn new(server: usize, parts: PartitionSet, context: &WalkContext) -> ServerWalk {
        let is_here = |part: &u16| context.route.server_at(*part) == server;
        ServerWalk {
            connection: context.route.commands(server).cloned(),
            later: parts.iter().filter(is_here).collect(),
            left: PartitionSet::default(),
            rooms: VecDeque::new(),
            foreign: VecDeque::new(),
            // What is refused is left for the next walk.
            batch: BatchPipeline::new(1, RetryOrder::Each),
            refusal: None,
            is_done: false,
        }
    }

    /// Makes progress; ready when it has ended.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        context: &WalkContext,
    ) -> Poll<()> {
        let Some(connection) = self.connection.clone() else { return Poll::Ready(()) };
        while !self.is_done {
            match self.batch.poll_answered(cx) {
                Ok(Some(answered)) => self.handle(answered),
                Ok(None) if !self.batch.has_none_in_flight() => return Poll::Pending,
                Ok(None) => match self.next_batch(&connection, context) {
                    Some(batch) => self.batch.send(cx, now, &connection, batch),
                    None => self.is_done = true,
                },
                Err(error) => {
                    self.batch.lose_link();
                    self.refusal = Some(error);
                    self.is_done = true;
                }
            }
        }
        Poll::Ready(())
    }

    /// Whether nothing is left on the server.
    pub(super) fn result(self) -> RedisResult<bool> {
        let is_whole = self.connection.is_some() || self.later.is_empty();
        self.refusal.map_or(Ok(is_whole), Err)
    }

    fn next_batch(
        &mut self,
        connection: &CommandConnection,
        context: &WalkContext,
    ) -> Option<OutgoingBatch<WalkItem>> {
        if !self.rooms.is_empty() {
            return Some(self.remove_rooms(connection, context));
        }
        if !self.foreign.is_empty() {
            return Some(self.remove_foreign(context));
        }
        if self.left.is_empty() {
            let some = self.later.len().min(PARTS_PER_STEP);
            self.left = self.later.drain(..some).collect();
        }
        if self.left.is_empty() {
            return None;
        }
        let mut batch = OutgoingBatch::new(PARTS_PER_STEP);
        for part in std::mem::take(&mut self.left).iter() {
            let index = context.keys.index(part, &context.node);
            batch.commands.cmd("SRANDMEMBER").arg(index).arg(ROOMS_PER_LOOK);
            batch.items.push(WalkItem::Rooms(part));
        }
        Some(batch)
    }

    fn remove_rooms(
        &mut self,
        connection: &CommandConnection,
        context: &WalkContext,
    ) -> OutgoingBatch<WalkItem> {
        let some = self.rooms.len().min(ROOMS_PER_STEP);
        let mut batch = OutgoingBatch::with_scripts(some, connection, &PRESENCE_SCRIPTS);
        let WalkContext { route, keys, rules, node } = context;
        for topic in self.rooms.drain(..some) {
            let name = TopicName::parse(&topic);
            let policy = name.as_ref().map(|name| rules.namespaces.policy(name.kind()));
            let users_max = policy.map_or(0, |policy| policy.presence_events_users_max);
            let publish = route.publish();
            let room = scripts::RoomArgs { topic: &topic, users_max, dead: &[], publish };
            scripts::remove_node(&mut batch.commands, keys, &rules.names, room, node);
            batch.items.push(WalkItem::Remove(topic));
        }
        batch
    }

    fn remove_foreign(&mut self, context: &WalkContext) -> OutgoingBatch<WalkItem> {
        let mut batch = OutgoingBatch::new(self.foreign.len());
        for (part, member) in self.foreign.drain(..) {
            let index = context.keys.index(part, &context.node);
            batch.commands.cmd("SREM").arg(index).arg(member);
            batch.items.push(WalkItem::Foreign);
        }
        batch
    }

    fn handle(&mut self, answered: AnsweredBatch<WalkItem>) {
        for (item, reply) in answered {
            match (item, value_of(reply)) {
                (WalkItem::Rooms(part), Ok(reply)) => self.handle_rooms(part, reply),
                (WalkItem::Remove(_) | WalkItem::Foreign, Ok(_)) => {}
                (item, Err(error)) => {
                    if let WalkItem::Remove(topic) = item {
                        self.left.remove(partition(&topic));
                    }
                    self.refusal = Some(error);
                }
            }
        }
    }

    fn handle_rooms(&mut self, part: u16, reply: Value) {
        let members = match Vec::<Vec<u8>>::from_redis_value(reply) {
            Ok(members) => members,
            Err(error) => return self.refusal = Some(error.into()),
        };
        if members.len() >= ROOMS_PER_LOOK {
            self.left.insert(part);
        }
        for member in members {
            match topic_in(part, &member) {
                Some(topic) => self.rooms.push_back(topic),
                None => self.foreign.push_back((part, member)),
            }
        }
    }
}
