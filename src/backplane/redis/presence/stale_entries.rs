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
use crate::backplane::redis::error_reply::ErrorReply;
use crate::backplane::redis::pipeline::{PendingReply, execute_on, poll_reply, send};
use crate::backplane::redis::presence::keys::{Keys, topic_in};
use crate::backplane::redis::presence::partition_set::PartitionSet;
use crate::backplane::redis::topology::routes::ServerRoutes;
use crate::ids::{TopicName, is_name};
use redis::aio::MultiplexedConnection;
use redis::{FromRedisValue, RedisResult, Value, pipe};
use std::collections::VecDeque;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// Partitions whose rooms are read in one step.
const PARTS_PER_STEP: usize = 16;
/// Rooms of which a page is read at once.
const ROOMS_PER_PAGE: usize = 32;
/// Users of a room in one page, approximately.
const USERS_PER_PAGE: usize = 256;
/// Pause after an error.
const PAUSE: Duration = Duration::from_millis(500);

/// Users that a server has of this node, by room.
pub(super) type StaleUsers = Vec<(TopicName, Vec<TopicName>)>;

/// The search for stale entries. Owned by [`crate::backplane::redis::presence::RedisPresence`].
#[derive(Default)]
pub(super) struct StaleEntries {
    /// Partitions to be read.
    left: PartitionSet,
    /// Partitions being read.
    step: PartitionSet,
    /// The rooms of those, and the cursor of each.
    rooms: VecDeque<(TopicName, u64)>,
    in_flight: Option<StaleRead>,
    /// The partition to go on with.
    next: u16,
    paused_until: Option<Instant>,
}

enum StaleRead {
    Rooms(PendingReply<Vec<TopicName>>),
    Users(PendingReply<Vec<Page>>),
}

/// Users of a room and the next cursor; 0: the last page.
type Page = (TopicName, u64, Vec<TopicName>);

impl StaleEntries {
    /// These partitions may have stale entries.
    pub(super) fn look_for(&mut self, parts: PartitionSet) {
        self.left = self.left.or(parts);
    }

    /// Partitions that may still have stale entries.
    pub(super) fn parts(&self) -> PartitionSet {
        self.left.or(self.step)
    }

    /// Makes progress in partitions that are `up`. Returns the users found when a reply has
    /// arrived; an error is for the log.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        (route, up): (&ServerRoutes, PartitionSet),
        keys: &Keys,
    ) -> Option<RedisResult<StaleUsers>> {
        if self.in_flight.is_none() && self.paused_until.is_none_or(|until| until <= now) {
            self.begin(cx, (route, up), keys);
        }
        let landed = match self.in_flight.as_mut()? {
            StaleRead::Rooms(reply) => {
                let Poll::Ready(rooms) = poll_reply(reply, cx) else { return None };
                rooms.map(|rooms| self.rooms.extend(rooms.into_iter().map(|room| (room, 0))))
            }
            .map(|()| StaleUsers::new()),
            StaleRead::Users(reply) => {
                let Poll::Ready(pages) = poll_reply(reply, cx) else { return None };
                pages.map(|pages| self.turn(pages))
            }
        };
        self.in_flight = None;
        if landed.is_err() {
            self.give_up();
            self.paused_until = Some(now + PAUSE);
        } else if self.rooms.is_empty() {
            self.step = PartitionSet::default();
        }
        Some(landed)
    }

    /// Queues the next pages.
    fn turn(&mut self, pages: Vec<Page>) -> StaleUsers {
        let mut found = StaleUsers::new();
        for (room, next, users) in pages {
            if next != 0 {
                self.rooms.push_back((room.clone(), next));
            }
            found.push((room, users));
        }
        found
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
        (route, up): (&ServerRoutes, PartitionSet),
        keys: &Keys,
    ) {
        let Some((room, _)) = self.rooms.front() else {
            return self.begin_step(cx, (route, up), keys);
        };
        let (is_up, server) = (up.has(partition(room.as_str())), route.server_of(room.as_str()));
        let Some(cmd) = route.cmd(server).filter(|_| is_up) else { return self.give_up() };
        let some = self.rooms.len().min(ROOMS_PER_PAGE);
        let some = self.rooms.drain(..some).collect();
        self.in_flight = Some(StaleRead::Users(send(cx, users(cmd.clone(), keys.clone(), some))));
    }

    fn begin_step(
        &mut self,
        cx: &mut Context<'_>,
        (route, up): (&ServerRoutes, PartitionSet),
        keys: &Keys,
    ) {
        let Some(first) = self.left.and(up).next_from(self.next) else { return };
        let server = route.server_at(first);
        let Some(cmd) = route.cmd(server) else { return };
        let is_there = |part: &u16| *part >= first && route.server_at(*part) == server;
        let some: Vec<u16> = self.left.iter().filter(is_there).take(PARTS_PER_STEP).collect();
        self.next = some.last().expect("the first is one of them") + 1;
        self.step = some.iter().copied().collect();
        self.left = self.left.without(self.step);
        self.in_flight = Some(StaleRead::Rooms(send(cx, rooms(cmd.clone(), keys.clone(), some))));
    }
}

async fn rooms(
    mut cmd: MultiplexedConnection,
    keys: Keys,
    parts: Vec<u16>,
) -> RedisResult<Vec<TopicName>> {
    let mut rooms = pipe();
    parts.iter().for_each(|part| _ = rooms.cmd("SMEMBERS").arg(keys.index(*part, &keys.me)));
    let rooms: Vec<Vec<Vec<u8>>> = rooms.query_async(&mut cmd).await?;
    let each = parts.iter().zip(&rooms);
    let rooms = each.flat_map(|(part, rooms)| rooms.iter().filter_map(|it| topic_in(*part, it)));
    Ok(rooms.filter_map(|room| TopicName::parse(&room)).collect())
}

async fn users(
    mut cmd: MultiplexedConnection,
    keys: Keys,
    rooms: Vec<(TopicName, u64)>,
) -> RedisResult<Vec<Page>> {
    let mut pages = pipe();
    for (room, from) in &rooms {
        let key = keys.users(room.as_str(), &keys.me);
        pages.cmd("HSCAN").arg(key).arg(from).arg("COUNT").arg(USERS_PER_PAGE);
    }
    let answers = execute_on(&mut cmd, &pages).await?;
    let pages: Vec<(u64, Vec<Vec<u8>>)> =
        answers.into_iter().map(page_of).collect::<RedisResult<_>>()?;
    let named = |name: &Vec<u8>| {
        let name = std::str::from_utf8(name).ok().filter(|name| is_name(name))?;
        Some(TopicName::user(name))
    };
    let page = |((room, _), (next, names)): (_, (u64, Vec<Vec<u8>>))| {
        (room, next, names.iter().step_by(2).filter_map(named).collect())
    };
    Ok(rooms.into_iter().zip(pages).map(page).collect())
}

/// Parses `HSCAN`. Where there is no hash there are no users.
fn page_of(answer: Value) -> RedisResult<(u64, Vec<Vec<u8>>)> {
    if ErrorReply::of(&answer) == Some(ErrorReply::Unreadable) {
        return Ok((0, Vec::new()));
    }
    Ok(FromRedisValue::from_redis_value(answer.extract_error()?)?)
}
