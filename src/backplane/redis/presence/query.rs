//! Rosters: the users that other nodes have in a room, merged with this node's own.
//!
//! This node's users are known here, so a room without other nodes costs one read of its set of
//! nodes. All requests for a room that wait for a read share it. A request that arrives while the
//! room is read waits for the next read: this one may have begun before the node was subscribed,
//! and would miss those who joined between.
//!
//! For the same reason a room is not read before its pending subscription is confirmed: its members
//! may have asked before they received the answer to their join.
//!
//! Events that arrive while a room is read are applied to the result: events and replies come over
//! different connections, and an event that came first must not be undone by the reply.
//!
//! In a Cluster a room may be moving between servers, and neither answers. Then it is read again
//! for some seconds, while routes are updated.
//!
//! Invariant: each request is answered once, at the latest when its server goes down.

use crate::backplane::interest::Interest;
use crate::backplane::partition::partition;
use crate::backplane::presence::{Presence, PresenceEvent};
use crate::backplane::redis::partition_set::PartitionSet;
use crate::backplane::redis::presence::keys::Keys;
use crate::backplane::redis::presence::room_read::{RemoteUsers, RoomRead};
use crate::backplane::redis::presence::skipped::Skipped;
use crate::backplane::redis::topology::routes::ServerRoutes;
use crate::ids::TopicName;
use crate::link::PresenceRequest;
use crate::protocol::{Info, Roster};
use hashbrown::HashMap;
use redis::{RedisError, RedisResult};
use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// Requests of a node that wait, of its connections and operators together; each connection has at
/// most one. Beyond, a request is refused at once.
pub(super) const REQUESTS_MAX: usize = 65_536;
/// Rooms that are read at the same time.
const READS_MAX: usize = 16;
/// Queued rooms that are examined in one turn.
const LOOKS_MAX: usize = 256;
/// Pause before a moving room is read again.
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// How long a read is repeated, or waits for the subscription.
const RETRY_TIME_MAX: Duration = Duration::from_millis(5_000);

/// Requests for rosters, queued and in flight. Owned by
/// [`crate::backplane::redis::presence::RedisPresence`].
#[derive(Default)]
pub(super) struct MemberQueries {
    queue: VecDeque<QueuedQuery>,
    /// Moving rooms, in the order in which they are read again.
    retries: VecDeque<(Instant, QueuedQuery)>,
    /// Requests for reads that have not begun.
    asks: HashMap<TopicName, Vec<PresenceRequest>>,
    in_flight: Vec<RunningQuery>,
    /// Requests that wait or are in flight.
    requests: usize,
}

/// A room to read: queued, or waiting to be read again; not in flight.
struct QueuedQuery {
    topic: TopicName,
    /// When it was first read, or had to wait.
    tried: Option<Instant>,
}

/// What a read needs.
pub(super) struct QueryContext<'a> {
    /// The connections to all servers.
    pub route: &'a ServerRoutes,
    /// Names of keys.
    pub keys: &'a Keys,
    /// Nodes that are ignored.
    pub dead: &'a Arc<[String]>,
    /// Subscriptions of this node.
    pub interest: &'a Interest,
}

struct RunningQuery {
    topic: TopicName,
    asks: Vec<PresenceRequest>,
    tried: Instant,
    read: RoomRead,
    since: Vec<Since>,
}

/// An event since a read began: the user, and with a join the info.
type Since = (TopicName, Option<Option<Info>>);

/// The answer to all requests for a room.
pub(super) struct QueryAnswer {
    /// The requests.
    pub asks: Vec<PresenceRequest>,
    /// The roster; `Err`: it could not be read.
    pub here: RedisResult<Arc<Roster>>,
    /// The other nodes with users in the room.
    pub nodes: Vec<String>,
    /// What no node has written.
    pub skipped: Skipped,
}

/// A request that waits, with the name of its room.
const REQUEST_BYTES: usize = 256;

impl MemberQueries {
    /// Bytes that requests keep alive.
    pub(super) fn held_bytes(&self) -> usize {
        self.requests * REQUEST_BYTES
    }

    /// Queues a request. `Err`: too many wait.
    pub(super) fn ask(&mut self, ask: PresenceRequest) -> Result<(), PresenceRequest> {
        if self.requests >= REQUESTS_MAX {
            return Err(ask);
        }
        self.requests += 1;
        let is_under_way = self.in_flight.iter().any(|read| read.topic == ask.topic);
        if !is_under_way && !self.asks.contains_key(&ask.topic) {
            self.queue.push_back(QueuedQuery { topic: ask.topic.clone(), tried: None });
        }
        self.asks.entry(ask.topic.clone()).or_default().push(ask);
        Ok(())
    }

    /// Applies an event to reads in flight.
    pub(super) fn handle_event(&mut self, topic: &str, event: &PresenceEvent<'_>) {
        for read in self.in_flight.iter_mut().filter(|read| read.topic.as_str() == topic) {
            read.since.push(match event {
                PresenceEvent::Joined { user, info, .. } => {
                    (TopicName::user(user), Some(info.map(Into::into)))
                }
                PresenceEvent::Left { user } => (TopicName::user(user), None),
            });
        }
    }

    /// Begins reads, within bounds. Returns whether any was begun.
    pub(super) fn begin(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        from: &QueryContext<'_>,
        members: &Presence,
    ) -> bool {
        while self.retries.front().is_some_and(|(at, _)| *at <= now) {
            self.queue.extend(self.retries.pop_front().map(|(_, waiting)| waiting));
        }
        let mut is_busy = false;
        for _ in 0..self.queue.len().min(LOOKS_MAX) {
            if self.in_flight.len() >= READS_MAX {
                break;
            }
            let Some(QueuedQuery { topic, tried }) = self.queue.pop_front() else { break };
            let tried = tried.unwrap_or(now);
            let is_patient = now.duration_since(tried) < RETRY_TIME_MAX;
            if is_patient && from.interest.has_unanswered_join(topic.as_str()) {
                self.queue.push_back(QueuedQuery { topic, tried: Some(tried) });
                continue;
            }
            let server = from.route.commands(from.route.server_of(topic.as_str()));
            let server = server.expect("rooms without a server are answered before");
            let wanted = members.members(&topic).take(Roster::USERS_MAX);
            let wanted: Vec<TopicName> = wanted.map(|(user, _)| user.clone()).collect();
            let (server, dead) = ((server, from.keys), from.dead.clone());
            let read = RoomRead::begin(cx, now, server, topic.clone(), dead, wanted);
            let asks = self.asks.remove(&topic).unwrap_or_default();
            self.in_flight.push(RunningQuery { topic, asks, tried, read, since: Vec::new() });
            is_busy = true;
        }
        is_busy
    }

    /// The next finished answer.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        members: &Presence,
    ) -> Option<QueryAnswer> {
        let mut at = 0;
        while at < self.in_flight.len() {
            let Poll::Ready(others) = self.in_flight[at].read.poll(cx, now) else {
                at += 1;
                continue;
            };
            let RunningQuery { topic, mut asks, tried, since, .. } = self.in_flight.swap_remove(at);
            match others {
                Err(error) if is_tried_again(&error, tried, now) => {
                    asks.append(self.asks.entry(topic.clone()).or_default());
                    self.asks.insert(topic.clone(), asks);
                    let waiting = QueuedQuery { topic, tried: Some(tried) };
                    self.retries.push_back((now + RETRY_PAUSE, waiting));
                }
                others => {
                    if self.asks.contains_key(&topic) {
                        self.queue.push_back(QueuedQuery { topic: topic.clone(), tried: None });
                    }
                    self.requests -= asks.len();
                    return Some(QueryAnswer::new(topic, asks, since, others, members));
                }
            }
        }
        None
    }

    /// Takes out all requests for rooms whose server is not `up`.
    pub(super) fn take_unavailable(&mut self, up: PartitionSet) -> Vec<PresenceRequest> {
        if up == PartitionSet::ALL {
            return Vec::new();
        }
        let is_up = |topic: &TopicName| up.has(partition(topic.as_str()));
        self.queue.retain(|waiting| is_up(&waiting.topic));
        self.retries.retain(|(_, waiting)| is_up(&waiting.topic));
        let begun = self.in_flight.extract_if(.., |read| !is_up(&read.topic));
        let begun = begun.flat_map(|read| read.asks);
        let waiting = self.asks.extract_if(|topic, _| !is_up(topic));
        let refused: Vec<PresenceRequest> =
            begun.chain(waiting.flat_map(|(_, asks)| asks)).collect();
        self.requests -= refused.len();
        refused
    }
}

impl QueryAnswer {
    fn new(
        topic: TopicName,
        asks: Vec<PresenceRequest>,
        since: Vec<Since>,
        others: RedisResult<RemoteUsers>,
        members: &Presence,
    ) -> QueryAnswer {
        let (mut nodes, mut skipped) = (Vec::new(), Skipped::default());
        let here = others.map(|mut others| {
            nodes = std::mem::take(&mut others.nodes);
            skipped = std::mem::take(&mut others.skipped);
            since.into_iter().for_each(|(user, is)| others.change(user, is, &topic, members));
            Arc::new(others.with(&topic, members))
        });
        QueryAnswer { asks, here, nodes, skipped }
    }
}

/// Whether a read is repeated: the room is moving, or its servers have to agree first.
fn is_tried_again(error: &RedisError, tried: Instant, now: Instant) -> bool {
    error.is_cluster_error() && now.duration_since(tried) < RETRY_TIME_MAX
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{ConnId, NodeId, ShardId, SlotId};
    use crate::link::{Origin, PresenceChange, PresenceUpdate, ReplyTo};
    use redis::ServerErrorKind::{Ask, ClusterDown, Moved, TryAgain};

    fn user(name: &str) -> TopicName {
        TopicName::user(name)
    }

    fn members(names: &[&str]) -> Presence {
        let mut members = Presence::default();
        let conn = ConnId(SlotId { index: 0, generation: 0 });
        let by = Origin { node: NodeId(1), shard: ShardId(0), conn };
        for name in names {
            let deed = PresenceChange::Joined { by, info: None };
            let attend = PresenceUpdate { topic: TopicName::room("r"), user: user(name), deed };
            members.handle(attend, Duration::ZERO, Instant::now());
        }
        members
    }

    #[test]
    fn users_of_all_nodes_are_merged_and_events_applied() {
        let (topic, members) = (TopicName::room("r"), members(&["ann", "bob"]));
        let mut others = RemoteUsers::default();
        for (name, connections) in [("bob", 2), ("cid", 1), ("eve", 1)] {
            others.users.insert(user(name));
            others.known.insert(user(name), (connections, None));
        }
        others.change(user("dan"), Some(Some("7".into())), &topic, &members);
        others.change(user("cid"), None, &topic, &members);
        others.change(user("bob"), None, &topic, &members); // is a user here, whatever the events
        let here = others.with(&topic, &members);
        let list: Vec<_> =
            here.users.iter().map(|a| (&a.user.as_str()[2..], a.connections)).collect();
        assert_eq!(list, [("ann", 1), ("bob", 3), ("dan", 1), ("eve", 1)]);
        assert_eq!(here.count, 4);
        assert_eq!(here.users[2].info.as_deref(), Some("7"));
    }

    #[test]
    fn a_moving_room_is_read_again_for_some_seconds() {
        let start = Instant::now();
        let is_again =
            |error: &RedisError, s| is_tried_again(error, start, start + Duration::from_secs(s));
        for kind in [Moved, Ask, TryAgain, ClusterDown] {
            let error = RedisError::from((redis::ErrorKind::Server(kind), "as it is"));
            assert!(is_again(&error, 0) && is_again(&error, 4) && !is_again(&error, 5), "{kind:?}");
        }
        let error = RedisError::from((redis::ErrorKind::Io, "no server"));
        assert!(!is_again(&error, 0));
    }

    #[test]
    fn requests_for_rooms_whose_server_is_down_are_answered_and_no_others() {
        let mut queries = MemberQueries::default();
        for name in ["a", "b", "a"] {
            let to = ReplyTo::Call(Box::new(|_| {}));
            assert!(queries.ask(PresenceRequest { topic: TopicName::room(name), to }).is_ok());
        }
        assert!(queries.take_unavailable(PartitionSet::ALL).is_empty());
        let up = [partition("r:b")].into_iter().collect();
        let lost = queries.take_unavailable(up);
        assert!(lost.iter().map(|ask| ask.topic.as_str()).eq(["r:a", "r:a"]));
        assert!(queries.queue.iter().map(|waiting| waiting.topic.as_str()).eq(["r:b"]));
        assert_eq!(queries.take_unavailable(PartitionSet::default()).len(), 1);
        assert!(queries.queue.is_empty() && queries.asks.is_empty());
        assert_eq!(queries.requests, 0);
    }

    #[test]
    fn requests_that_wait_are_bounded_whatever_their_rooms() {
        let mut queries = MemberQueries::default();
        let ask = |room: usize| PresenceRequest {
            topic: TopicName::room(&(room % 1000).to_string()),
            to: ReplyTo::Nobody,
        };
        for number in 0..REQUESTS_MAX {
            assert!(queries.ask(ask(number)).is_ok());
        }
        assert!(queries.ask(ask(1)).is_err(), "one too many, though the room is queued");
        assert_eq!(queries.take_unavailable(PartitionSet::default()).len(), REQUESTS_MAX);
        assert!(queries.ask(ask(1)).is_ok(), "there is room again");
    }
}
