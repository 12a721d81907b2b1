//! Finds and removes this node's stale presence entries.
//!
//! A replica that was behind when it was promoted, or a data file from before a restart, brings
//! back users that have left and rooms without users. Writing the current entries again removes
//! nobody. So everything that a server has of this node is read as well, some partitions at a time,
//! and entries of users who are not here are written as gone. No event is published: the leave was
//! published when they left.
//!
//! Whether a user is here is decided when the entry is written, so an old reading does no harm. A
//! room is read page by page: one with a million users would delay every delivery.
//!
//! Invariant: a partition is done only after it was read without an error.

use crate::backplane::partition::partition;
use crate::backplane::redis::partition_set::PartitionSet;
use crate::backplane::redis::pipeline::{
    AnsweredBatch, BatchPipeline, ItemReply, OutgoingBatch, RetryOrder,
};
use crate::backplane::redis::presence::failures::value_of;
use crate::backplane::redis::presence::keys::{Keys, topic_in};
use crate::backplane::redis::presence::room_read::user_topic;
use crate::backplane::redis::presence::skipped::Skipped;
use crate::backplane::redis::topology::routes::ServerRoutes;
use crate::ids::TopicName;
use redis::{FromRedisValue, RedisResult, Value};
use std::collections::VecDeque;
use std::task::Context;
use std::time::{Duration, Instant};

/// Partitions whose rooms are read in one step.
const PARTS_PER_STEP: usize = 16;
/// Rooms of which a page is read at once.
const ROOMS_PER_PAGE: usize = 32;
/// Users of a room in one page, approximately.
const USERS_PER_PAGE: usize = 256;
/// Pause after an error.
const PAUSE: Duration = Duration::from_millis(500);

/// Users that a server has of this node, by room, and what no node has written.
#[derive(Default)]
pub(super) struct StaleUsers {
    /// The users of each room.
    pub users: Vec<(TopicName, Vec<TopicName>)>,
    /// What no node has written.
    pub skipped: Skipped,
}

/// The search for stale entries. Owned by [`crate::backplane::redis::presence::RedisPresence`].
pub(super) struct StaleEntries {
    /// Partitions to be read.
    left: PartitionSet,
    /// Partitions being read.
    step: PartitionSet,
    /// The rooms of those, and the cursor of each.
    rooms: VecDeque<(TopicName, u64)>,
    reads: BatchPipeline<StaleRead>,
    /// The partition to go on with.
    next: u16,
    paused_until: Option<Instant>,
}

/// One command in flight.
enum StaleRead {
    /// The rooms of this node in a partition.
    Rooms(u16),
    /// A page of the users of a room.
    Users(TopicName),
}

impl Default for StaleEntries {
    fn default() -> StaleEntries {
        StaleEntries {
            left: PartitionSet::default(),
            step: PartitionSet::default(),
            rooms: VecDeque::new(),
            // What is refused is read again with its step.
            reads: BatchPipeline::new(1, RetryOrder::Each),
            next: 0,
            paused_until: None,
        }
    }
}

impl StaleEntries {
    /// These partitions may have stale entries.
    pub(super) fn look_for(&mut self, parts: PartitionSet) {
        self.left = self.left.or(parts);
    }

    /// Partitions that may still have stale entries.
    pub(super) fn parts(&self) -> PartitionSet {
        self.left.or(self.step)
    }

    /// Makes progress in partitions that are `up`. Returns the users found when a batch is answered;
    /// an error is for the log.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        (route, up): (&ServerRoutes, PartitionSet),
        keys: &Keys,
    ) -> Option<RedisResult<StaleUsers>> {
        if self.reads.may_send() && self.paused_until.is_none_or(|until| until <= now) {
            self.begin(cx, now, (route, up), keys);
        }
        let found = match self.reads.poll_answered(cx) {
            Ok(answered) => self.handle(answered?),
            Err(error) => {
                self.reads.lose_link();
                Err(error)
            }
        };
        if found.is_err() {
            self.give_up();
            self.paused_until = Some(now + PAUSE);
        } else if self.rooms.is_empty() {
            self.step = PartitionSet::default();
        }
        Some(found)
    }

    /// Takes the replies to a batch, and queues the next pages.
    fn handle(&mut self, answered: AnsweredBatch<StaleRead>) -> RedisResult<StaleUsers> {
        let mut found = StaleUsers::default();
        for (read, reply) in answered {
            match read {
                StaleRead::Rooms(part) => {
                    let rooms = rooms(part, value_of(reply)?, &mut found.skipped)?;
                    self.rooms.extend(rooms.into_iter().map(|room| (room, 0)));
                }
                StaleRead::Users(room) => {
                    let (next, users) = page(reply, &mut found.skipped)?;
                    if next != 0 {
                        self.rooms.push_back((room.clone(), next));
                    }
                    found.users.push((room, users));
                }
            }
        }
        Ok(found)
    }

    /// The step is begun again, another time.
    fn give_up(&mut self) {
        self.left = self.left.or(self.step);
        self.step = PartitionSet::default();
        self.rooms.clear();
    }

    fn begin(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        (route, up): (&ServerRoutes, PartitionSet),
        keys: &Keys,
    ) {
        let Some((room, _)) = self.rooms.front() else {
            return self.begin_step(cx, now, (route, up), keys);
        };
        let (is_up, server) = (up.has(partition(room.as_str())), route.server_of(room.as_str()));
        let Some(connection) = route.commands(server).filter(|_| is_up) else {
            return self.give_up();
        };
        let some = self.rooms.len().min(ROOMS_PER_PAGE);
        let mut batch = OutgoingBatch::new(some);
        for (room, from) in self.rooms.drain(..some) {
            let key = keys.users(room.as_str(), &keys.me);
            batch.commands.cmd("HSCAN").arg(key).arg(from).arg("COUNT").arg(USERS_PER_PAGE);
            batch.items.push(StaleRead::Users(room));
        }
        self.reads.send(cx, now, connection, batch);
    }

    fn begin_step(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        (route, up): (&ServerRoutes, PartitionSet),
        keys: &Keys,
    ) {
        let Some(first) = self.left.and(up).next_from(self.next) else { return };
        let server = route.server_at(first);
        let Some(connection) = route.commands(server) else { return };
        let is_there = |part: &u16| *part >= first && route.server_at(*part) == server;
        let some: Vec<u16> = self.left.iter().filter(is_there).take(PARTS_PER_STEP).collect();
        self.next = some.last().expect("the first is one of them") + 1;
        self.step = some.iter().copied().collect();
        self.left = self.left.without(self.step);
        let mut batch = OutgoingBatch::new(some.len());
        for part in some {
            batch.commands.cmd("SMEMBERS").arg(keys.index(part, &keys.me));
            batch.items.push(StaleRead::Rooms(part));
        }
        self.reads.send(cx, now, connection, batch);
    }
}

/// Parses the rooms of a partition.
fn rooms(part: u16, reply: Value, skipped: &mut Skipped) -> RedisResult<Vec<TopicName>> {
    let mut rooms = Vec::new();
    for member in Vec::<Vec<u8>>::from_redis_value(reply)? {
        let room = topic_in(part, &member).and_then(|topic| TopicName::parse(&topic));
        rooms.extend(skipped.or_skip(room, "a room in the index of this node", &member));
    }
    Ok(rooms)
}

/// Parses `HSCAN`: the next cursor, 0 with the last page, and users. Where there is no hash there
/// are no users.
fn page(reply: ItemReply, skipped: &mut Skipped) -> RedisResult<(u64, Vec<TopicName>)> {
    if let ItemReply::Unreadable(_) = reply {
        return Ok((0, Vec::new()));
    }
    let (next, names): (u64, Vec<Vec<u8>>) = FromRedisValue::from_redis_value(value_of(reply)?)?;
    let mut users = Vec::new();
    for name in names.iter().step_by(2) {
        users.extend(skipped.or_skip(user_topic(name), "the name of a user", name));
    }
    Ok((next, users))
}
