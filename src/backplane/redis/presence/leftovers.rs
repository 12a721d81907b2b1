//! What a server says of this node and is true no more.
//!
//! A replica that was behind when it took over, or a file from before a restart, brings users back
//! that have left, and rooms that nobody is in. Writing anew who is here removes nobody. So all that
//! a server has of this node is read, too, some partitions at a time, and who is not here is written
//! as gone. Not a word is said of them: their leaving was told when they left.
//!
//! Whether somebody is here is asked when they are written, so what was read may be late.
//!
//! Invariant: a partition is left until it was read without an error.

use super::keys::Keys;
use super::parts::Parts;
use crate::backplane::redis::link::{Reply, poll_reply, send};
use crate::backplane::redis::route::Route;
use crate::ids::{TopicName, is_name};
use redis::aio::MultiplexedConnection;
use redis::{RedisResult, pipe};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// Partitions that are read in one step.
const PARTS_PER_STEP: usize = 16;
/// How long to wait after an error.
const PAUSE: Duration = Duration::from_millis(500);

/// Users that a server has of this node, by room.
pub type Found = Vec<(TopicName, Vec<TopicName>)>;

/// See the module.
#[derive(Default)]
pub struct Leftovers {
    /// What is to be read.
    left: Parts,
    under_way: Option<(Parts, Reply<Found>)>,
    /// The partition whose turn it is.
    next: u16,
    paused_until: Option<Instant>,
}

impl Leftovers {
    /// These may have something.
    pub fn look_for(&mut self, parts: Parts) {
        self.left = self.left.or(parts);
    }

    /// Partitions that may have something still.
    pub fn parts(&self) -> Parts {
        self.under_way.as_ref().map_or(self.left, |(parts, _)| self.left.or(*parts))
    }

    /// Goes on, with what is `up`. What was found, when it has come; an error is for the log.
    pub fn poll(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        (route, up): (&Route, Parts),
        keys: &Keys,
    ) -> Option<RedisResult<Found>> {
        if self.under_way.is_none() && self.paused_until.is_none_or(|until| until <= now) {
            self.begin(cx, (route, up), keys);
        }
        let (parts, reply) = self.under_way.as_mut()?;
        let Poll::Ready(found) = poll_reply(reply, cx) else { return None };
        if found.is_err() {
            self.left = self.left.or(*parts);
            self.paused_until = Some(now + PAUSE);
        }
        self.under_way = None;
        Some(found)
    }

    fn begin(&mut self, cx: &mut Context<'_>, (route, up): (&Route, Parts), keys: &Keys) {
        let Some(first) = self.left.and(up).next_from(self.next) else { return };
        let server = route.server_at(first);
        let Some(cmd) = route.cmd(server) else { return };
        let is_there = |part: &u16| *part >= first && route.server_at(*part) == server;
        let some: Vec<u16> = self.left.iter().filter(is_there).take(PARTS_PER_STEP).collect();
        self.next = some.last().expect("the first is one of them") + 1;
        let parts: Parts = some.iter().copied().collect();
        self.left = self.left.without(parts);
        self.under_way = Some((parts, send(cx, read(cmd.clone(), keys.clone(), some))));
    }
}

async fn read(mut cmd: MultiplexedConnection, keys: Keys, parts: Vec<u16>) -> RedisResult<Found> {
    let mut rooms = pipe();
    parts.iter().for_each(|part| _ = rooms.cmd("SMEMBERS").arg(keys.index(*part, &keys.me)));
    let rooms: Vec<Vec<String>> = rooms.query_async(&mut cmd).await?;
    let topics: Vec<TopicName> =
        rooms.iter().flatten().filter_map(|room| TopicName::parse(room)).collect();
    if topics.is_empty() {
        return Ok(Found::new());
    }
    let mut users = pipe();
    for topic in &topics {
        users.cmd("HKEYS").arg(keys.users(topic.as_str(), &keys.me));
    }
    let users: Vec<Vec<String>> = users.query_async(&mut cmd).await?;
    let named = |names: Vec<String>| {
        names.iter().filter(|name| is_name(name)).map(|name| TopicName::user(name)).collect()
    };
    Ok(topics.into_iter().zip(users.into_iter().map(named)).collect())
}
