//! Finds entries of this node that have vanished from Redis under a running system: evicted, deleted
//! by an operator, or flushed.
//!
//! Nothing says so when it happens. So the rooms of this node are counted in Redis, some each
//! second, and a room that has fewer users there than here, or is missing from an index, is written
//! again with its partition. Rooms with writes that wait or are in flight are left out: they may
//! differ.
//!
//! One round takes five seconds on a node with few rooms, and as long as it takes on others: what a
//! node does in a second is bounded, whatever it has.

use crate::backplane::partition::partition;
use crate::backplane::redis::partition_set::PartitionSet;
use crate::backplane::redis::pipeline::{PendingReply, execute, poll_reply, send};
use crate::backplane::redis::presence::keys::Keys;
use crate::backplane::redis::topology::routes::ServerRoutes;
use crate::ids::TopicName;
use futures_util::future::join_all;
use redis::{Pipeline, Value};
use std::collections::VecDeque;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// Rooms that are counted in one step.
const ROOMS_PER_STEP: usize = 256;
/// Pause between two steps.
const STEP_PAUSE: Duration = Duration::from_millis(1_000);
/// From the beginning of a round to that of the next, at least.
const ROUND_TIME_MIN: Duration = Duration::from_millis(5_000);
/// Commands for each room.
const COMMANDS_PER_ROOM: usize = 3;

/// The rooms of this node that are still to be counted. Owned by
/// [`crate::backplane::redis::presence::RedisPresence`].
#[derive(Default)]
pub(super) struct Audit {
    round: VecDeque<TopicName>,
    round_at: Option<Instant>,
    step_at: Option<Instant>,
    in_flight: Option<PendingReply<Mismatches>>,
}

/// Partitions with rooms that differ in Redis.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Mismatches {
    /// With too few users, or missing from an index.
    pub vanished: PartitionSet,
    /// With users that this node does not have.
    pub foreign: PartitionSet,
}

/// A room, and the number of users that it has here.
type Expected = (TopicName, usize);

impl Audit {
    /// Whether a round begins with the next step: then [`Audit::begin_round`] is due.
    pub(super) fn is_round_due(&self, now: Instant) -> bool {
        let is_due = |at: Instant| now.duration_since(at) >= ROUND_TIME_MIN;
        self.round.is_empty() && self.in_flight.is_none() && self.round_at.is_none_or(is_due)
    }

    /// Begins a round over these rooms.
    pub(super) fn begin_round(&mut self, rooms: impl Iterator<Item = TopicName>, now: Instant) {
        self.round.extend(rooms);
        self.round_at = Some(now);
    }

    /// Sends a step when it is due, and returns what one has found. `expected`: the number of users
    /// that a room must have in Redis; `None`: it may differ now.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        (route, keys): (&ServerRoutes, &Keys),
        expected: impl Fn(&TopicName) -> Option<usize>,
    ) -> Option<Mismatches> {
        let is_due = |at: Instant| now.duration_since(at) >= STEP_PAUSE;
        if self.in_flight.is_none() && !self.round.is_empty() && self.step_at.is_none_or(is_due) {
            self.step_at = Some(now);
            let some = self.round.len().min(ROOMS_PER_STEP);
            let rooms = self.round.drain(..some);
            let rooms = rooms.filter_map(|topic| expected(&topic).map(|users| (topic, users)));
            let mut servers = vec![Vec::new(); route.servers()];
            rooms.for_each(|room| servers[route.server_of(room.0.as_str())].push(room));
            self.in_flight = Some(send(cx, count(route.clone(), keys.clone(), servers)));
        }
        let Poll::Ready(found) = poll_reply(self.in_flight.as_mut()?, cx) else { return None };
        self.in_flight = None;
        found.ok()
    }
}

/// Counts rooms on all servers at once. A server that does not answer has no mismatch: its link is
/// given up by others.
async fn count(
    route: ServerRoutes,
    keys: Keys,
    servers: Vec<Vec<Expected>>,
) -> redis::RedisResult<Mismatches> {
    let counts = servers.into_iter().enumerate().filter(|(_, rooms)| !rooms.is_empty());
    let counts = counts.filter_map(|(server, rooms)| {
        let cmd = route.cmd(server)?.clone();
        let commands = commands(&keys, &rooms);
        Some(async move { (rooms, execute(cmd, commands).await.unwrap_or_default()) })
    });
    let mut found = Mismatches::default();
    for (rooms, replies) in join_all(counts).await {
        for ((topic, users), replies) in rooms.iter().zip(replies.chunks_exact(COMMANDS_PER_ROOM)) {
            found.compare(topic, *users, replies);
        }
    }
    Ok(found)
}

fn commands(keys: &Keys, rooms: &[Expected]) -> Pipeline {
    let mut commands = Pipeline::with_capacity(rooms.len() * COMMANDS_PER_ROOM);
    for (topic, _) in rooms {
        let topic = topic.as_str();
        commands.cmd("HLEN").arg(keys.users(topic, &keys.me));
        commands.cmd("SISMEMBER").arg(keys.nodes_of(topic)).arg(&keys.me);
        commands.cmd("SISMEMBER").arg(keys.index(partition(topic), &keys.me)).arg(topic);
    }
    commands
}

impl Mismatches {
    /// Compares a room with the replies. An error says nothing: a key of another type is found when
    /// the room is written.
    fn compare(&mut self, topic: &TopicName, users: usize, replies: &[Value]) {
        let [Value::Int(there), listed @ ..] = replies else { return };
        let there = usize::try_from(*there).unwrap_or(0);
        let is_unlisted = listed.iter().any(|listed| *listed == Value::Int(0));
        if there < users || is_unlisted {
            self.vanished.insert(partition(topic.as_str()));
        } else if there > users {
            self.foreign.insert(partition(topic.as_str()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_room_differs_if_users_or_an_index_are_missing_or_users_are_too_many() {
        let topic = TopicName::room("r");
        let found = |replies: [i64; 3]| {
            let mut found = Mismatches::default();
            found.compare(&topic, 2, &replies.map(Value::Int));
            [found.vanished, found.foreign].map(|parts| !parts.is_empty())
        };
        assert_eq!(found([2, 1, 1]), [false, false]);
        assert_eq!(found([1, 1, 1]), [true, false]);
        assert_eq!(found([0, 0, 0]), [true, false]);
        assert_eq!(found([2, 0, 1]), [true, false]);
        assert_eq!(found([2, 1, 0]), [true, false]);
        assert_eq!(found([3, 1, 1]), [false, true]);
        let mut none = Mismatches::default();
        none.compare(&topic, 2, &[Value::Nil, Value::Int(0), Value::Int(0)]);
        none.compare(&topic, 2, &[]);
        assert_eq!(none, Mismatches::default());
    }

    #[test]
    fn a_round_begins_when_the_last_one_is_over_and_not_too_often() {
        let (mut audit, start) = (Audit::default(), Instant::now());
        assert!(audit.is_round_due(start));
        audit.begin_round([TopicName::room("r")].into_iter(), start);
        assert!(!audit.is_round_due(start + ROUND_TIME_MIN), "a room is left");
        audit.round.clear();
        assert!(!audit.is_round_due(start + ROUND_TIME_MIN / 2));
        assert!(audit.is_round_due(start + ROUND_TIME_MIN));
    }
}
