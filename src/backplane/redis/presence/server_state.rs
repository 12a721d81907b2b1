//! The servers as presence sees them: the partitions of each, whether it is up, and its batch in
//! flight.
//!
//! Rooms belong to partitions and partitions to servers; only the latter changes. So nothing of a
//! room is held here but what is in flight; when partitions move, that is returned, and the caller
//! queues it for the new owner.
//!
//! Indices of servers have a meaning only between two changes of owners. After such a change a
//! server counts as up if the route has a connection to it: better written a moment too early, and
//! again when [`ServerStates::go_up`] follows, than not at all.
//!
//! Invariant: every partition has one owner here as soon as there was a route.

use crate::backplane::partition::PARTITIONS;
use crate::backplane::redis::partition_set::{PartitionDelays, PartitionSet};
use crate::backplane::redis::pipeline::{
    AnsweredBatch, BatchPipeline, CommandConnection, OutgoingBatch, RetryOrder,
};
use crate::backplane::redis::presence::write_queue::PendingWrite;
use crate::backplane::redis::topology::routes::ServerRoutes;
use crate::ids::TopicName;
use redis::RedisError;
use std::task::Context;
use std::time::{Duration, Instant};

/// Time after a server came up again in which its rooms have no events and no graces end: as long
/// as other nodes may take to reconnect.
const SETTLING: Duration = Duration::from_millis(3_000);

/// The writes of one room.
pub(super) struct RoomWrite {
    /// The room's topic.
    pub topic: TopicName,
    /// The users to write.
    pub users: Vec<(TopicName, PendingWrite)>,
    /// Whether all entries of the room are written again: what is there is not known.
    pub is_rewrite: bool,
}

/// A batch with its replies. `Err`: its writes, and why there are none.
pub(super) type AnsweredWrites = Result<AnsweredBatch<RoomWrite>, (Vec<RoomWrite>, RedisError)>;

/// One server.
struct PresenceServer {
    owns: PartitionSet,
    state: ServerState,
    /// The batch in flight.
    writes: BatchPipeline<RoomWrite>,
    /// The rooms in it.
    in_flight: Vec<TopicName>,
}

/// The state of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ServerState {
    /// Nothing is sent.
    Down,
    /// A batch may be sent.
    Idle,
    /// A batch is in flight.
    Writing,
}

/// What happens to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ServerEvent {
    /// Its link is up.
    WentUp,
    /// Its link is lost, or its partitions move: what is in flight is given back.
    WentDown,
    /// A batch is sent.
    Sent,
    /// The batch in flight is answered, or has failed.
    Answered,
}

impl ServerState {
    /// The state after an event. `None`: it cannot happen in this state.
    pub(super) fn after(self, event: ServerEvent) -> Option<ServerState> {
        Some(match (self, event) {
            (_, ServerEvent::WentDown) => ServerState::Down,
            (ServerState::Down | ServerState::Idle, ServerEvent::WentUp) => ServerState::Idle,
            (ServerState::Writing, ServerEvent::WentUp) => ServerState::Writing,
            (ServerState::Idle, ServerEvent::Sent) => ServerState::Writing,
            (ServerState::Writing, ServerEvent::Answered) => ServerState::Idle,
            (ServerState::Down | ServerState::Writing, ServerEvent::Sent) => return None,
            (ServerState::Down | ServerState::Idle, ServerEvent::Answered) => return None,
        })
    }
}

impl PresenceServer {
    fn new(owns: PartitionSet, state: ServerState) -> PresenceServer {
        // What is refused goes back to the queue, where it is written as it is then.
        let writes = BatchPipeline::new(1, RetryOrder::Each);
        PresenceServer { owns, state, writes, in_flight: Vec::new() }
    }

    fn change(&mut self, event: ServerEvent) {
        self.state = self.state.after(event).expect("the event suits the state");
        if self.state != ServerState::Writing {
            self.in_flight.clear();
        }
        self.invariants();
    }

    /// Holds after each step.
    fn invariants(&self) {
        let is_writing = self.state == ServerState::Writing;
        debug_assert_eq!(is_writing, !self.writes.has_none_in_flight());
        debug_assert_eq!(self.in_flight.len(), self.writes.in_flight());
        debug_assert_eq!(self.writes.refused(), 0, "they go back to the queue");
    }
}

/// What a new route changes.
#[derive(Default)]
pub(super) struct RouteChanges {
    /// Writes that were in flight and may not have arrived.
    pub room_writes: Vec<RoomWrite>,
    /// Partitions whose entries are written again.
    pub rewrites: PartitionSet,
}

/// The partitions of a server that may be written now.
#[derive(Clone, Copy)]
pub(super) struct Writable {
    /// Without events.
    pub write: PartitionSet,
    /// With events.
    pub notify: PartitionSet,
}

/// All servers.
#[derive(Default)]
pub(super) struct ServerStates {
    all: Vec<PresenceServer>,
    /// Partitions that have been on a server that was up.
    served: PartitionSet,
    settling: PartitionDelays,
    refused: PartitionDelays,
}

impl ServerStates {
    /// Takes new routes.
    ///
    /// 1. The same owners: a server without a connection is down; one with a new one comes up
    ///    later.
    /// 2. Partitions moved: what is in flight is returned, and they settle at their new owner.
    /// 3. The number of servers differs, too: indices may have shifted unseen, so nothing counts as
    ///    unmoved.
    pub(super) fn set_route(&mut self, route: &ServerRoutes, now: Instant) -> RouteChanges {
        let mut owns = vec![PartitionSet::default(); route.servers()];
        (0..PARTITIONS as u16).for_each(|part| owns[route.server_at(part)].insert(part));
        if self.all.iter().map(|server| &server.owns).eq(&owns) {
            let is_lost =
                |at: &usize| self.all[*at].state != ServerState::Down && route.cmd(*at).is_none();
            let lost: Vec<usize> = (0..owns.len()).filter(is_lost).collect();
            let room_writes = lost.into_iter().flat_map(|at| self.lose_link(at)).collect();
            return RouteChanges { room_writes, ..RouteChanges::default() };
        }
        let is_first = self.all.is_empty();
        let room_writes = (0..self.all.len()).flat_map(|at| self.lose_link(at)).collect();
        let unmoved = self.all.iter().zip(&owns).map(|(before, owns)| before.owns.and(*owns));
        let moved =
            PartitionSet::ALL.without(unmoved.fold(PartitionSet::default(), PartitionSet::or));
        self.settling.begin(&moved.and(self.served), now + SETTLING);
        self.refused = PartitionDelays::default();
        let rewrites = if self.all.len() == owns.len() { moved } else { PartitionSet::ALL };
        let server = |(at, owns)| {
            let is_up = !is_first && route.cmd(at).is_some();
            let state = if is_up { ServerState::Idle } else { ServerState::Down };
            PresenceServer::new(owns, state)
        };
        self.all = owns.into_iter().enumerate().map(server).collect();
        self.served = self.served.or(self.up(route));
        RouteChanges { room_writes, rewrites }
    }

    /// A server is up. Returns its partitions. They settle only if they were up before: at the
    /// start no leave could be published too early.
    pub(super) fn go_up(&mut self, at: usize, now: Instant) -> PartitionSet {
        let server = self.all.get_mut(at).expect("a server is in the route before it is up");
        server.change(ServerEvent::WentUp);
        let owns = server.owns;
        self.settling.begin(&owns.and(self.served), now + SETTLING);
        self.served = self.served.or(owns);
        owns
    }

    /// A server is down. Returns the writes in flight, which may have arrived.
    pub(super) fn lose_link(&mut self, at: usize) -> Vec<RoomWrite> {
        let Some(server) = self.all.get_mut(at) else { return Vec::new() };
        let room_writes = server.writes.lose_link();
        server.change(ServerEvent::WentDown);
        room_writes
    }

    /// A server is up and has lost data: its partitions are written again, and settle as after an
    /// outage, because other nodes have to notice it, too.
    pub(super) fn settle_again(&mut self, parts: PartitionSet, now: Instant) {
        self.settling.begin(&parts, now + SETTLING);
    }

    /// Time passes: partitions that have waited long enough may be written.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        self.settling.handle_timeout(now);
        self.refused.handle_timeout(now);
    }

    /// A server refused these partitions: they wait until then.
    pub(super) fn refuse(&mut self, parts: &PartitionSet, until: Instant) {
        self.refused.begin(parts, until);
    }

    /// Number of servers.
    pub(super) fn count(&self) -> usize {
        self.all.len()
    }

    /// Sends a batch to a server that is [writable](ServerStates::writable).
    pub(super) fn send(
        &mut self,
        at: usize,
        cx: &mut Context<'_>,
        now: Instant,
        connection: &CommandConnection,
        batch: OutgoingBatch<RoomWrite>,
    ) {
        let server = &mut self.all[at];
        server.in_flight.extend(batch.items.iter().map(|room| room.topic.clone()));
        server.writes.send(cx, now, connection, batch);
        server.change(ServerEvent::Sent);
    }

    /// The batch to a server that is answered. `Err`: it may have been executed or not, or a script
    /// cannot be loaded.
    pub(super) fn poll_batch(&mut self, at: usize, cx: &mut Context<'_>) -> Option<AnsweredWrites> {
        let server = &mut self.all[at];
        let was_writing = server.state == ServerState::Writing;
        let answered = match server.writes.poll_answered(cx) {
            Ok(answered) => Ok(answered?),
            Err(error) => Err((server.writes.lose_link(), error)),
        };
        if was_writing {
            server.change(ServerEvent::Answered);
        }
        Some(answered)
    }

    /// Whether a room is in the batch in flight to its server.
    pub(super) fn is_in_flight(&self, at: usize, topic: &TopicName) -> bool {
        self.all[at].in_flight.contains(topic)
    }

    /// The partitions of a server.
    pub(super) fn owns(&self, at: usize) -> PartitionSet {
        self.all.get(at).map_or_else(PartitionSet::default, |server| server.owns)
    }

    /// All partitions whose server is up.
    pub(super) fn up(&self, route: &ServerRoutes) -> PartitionSet {
        let up = self.all.iter().enumerate().filter(|(at, _)| self.is_up(*at, route));
        up.fold(PartitionSet::default(), |parts, (_, server)| parts.or(server.owns))
    }

    /// All partitions that are up and have events.
    pub(super) fn settled(&self, route: &ServerRoutes) -> PartitionSet {
        self.up(route).without(self.settling.parts())
    }

    /// When a partition will have settled, if it is settling.
    pub(super) fn settles_at(&self, part: u16) -> Option<Instant> {
        self.settling.until(part)
    }

    /// What may be written to a server; `None`: it is down, or has a batch in flight.
    pub(super) fn writable(&self, at: usize, route: &ServerRoutes) -> Option<Writable> {
        let server = &self.all[at];
        if server.state != ServerState::Idle || route.cmd(at).is_none() {
            return None;
        }
        let write = server.owns.without(self.refused.parts());
        Some(Writable { write, notify: write.without(self.settling.parts()) })
    }

    fn is_up(&self, at: usize, route: &ServerRoutes) -> bool {
        self.all[at].state != ServerState::Down && route.cmd(at).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backplane::redis::pipeline::{BatchSender, PendingReply, ScriptLoads, send};
    use redis::{Pipeline, Value};
    use std::sync::Arc;
    use std::task::Waker;

    /// Routes without connections; partitions alternate between servers.
    fn route(servers: u16) -> ServerRoutes {
        let owners = std::array::from_fn(|part| part as u16 % servers);
        let connections = (0..servers).map(|_| None).collect();
        ServerRoutes::new(Arc::new(owners), connections, "PUBLISH")
    }

    /// A connection to a server that never answers.
    #[derive(Default)]
    struct Silence(std::rc::Rc<ScriptLoads>);

    impl BatchSender for Silence {
        type Reply = PendingReply<Vec<Value>>;

        fn send_batch(&self, cx: &mut Context<'_>, _: Pipeline) -> Self::Reply {
            send(cx, std::future::pending())
        }

        fn scripts(&self) -> &std::rc::Rc<ScriptLoads> {
            &self.0
        }
    }

    /// Puts a batch for a room in flight.
    fn execute(servers: &mut ServerStates, at: usize, room: &str) {
        let mut batch = OutgoingBatch::new(1);
        batch.commands.cmd("PING");
        let topic = TopicName::room(room);
        batch.items.push(RoomWrite { topic: topic.clone(), users: Vec::new(), is_rewrite: false });
        let server = &mut servers.all[at];
        server.in_flight.push(topic);
        let cx = &mut Context::from_waker(Waker::noop());
        server.writes.send(cx, Instant::now(), &Silence::default(), batch);
        server.state = ServerState::Writing;
        server.invariants();
    }

    fn topics(room_writes: &[RoomWrite]) -> Vec<&str> {
        room_writes.iter().map(|write_room| write_room.topic.as_str()).collect()
    }

    #[test]
    fn writes_in_flight_are_returned_whatever_moved() {
        let (mut servers, now) = (ServerStates::default(), Instant::now());
        assert_eq!(servers.set_route(&route(2), now).rewrites, PartitionSet::ALL);
        let evens: PartitionSet = (0..1024).step_by(2).collect();
        assert_eq!([servers.owns(0), servers.owns(1)], [evens, PartitionSet::ALL.without(evens)]);
        let retries = servers.set_route(&route(2), now);
        assert!(retries.room_writes.is_empty() && retries.rewrites.is_empty());
        execute(&mut servers, 0, "a");
        execute(&mut servers, 1, "b");
        let changes = servers.set_route(&route(3), now);
        assert_eq!(topics(&changes.room_writes), ["r:a", "r:b"]);
        assert_eq!(changes.rewrites, PartitionSet::ALL, "numbers may have shifted");
        assert_eq!(servers.count(), 3);
    }

    #[test]
    fn only_partitions_that_move_are_rewritten_while_the_servers_stay() {
        let (mut servers, now) = (ServerStates::default(), Instant::now());
        let mut owners = [0; PARTITIONS];
        let all = |owners| ServerRoutes::new(Arc::new(owners), vec![None, None], "SPUBLISH");
        servers.set_route(&all(owners), now);
        owners[7] = 1;
        assert!(servers.set_route(&all(owners), now).rewrites.iter().eq([7]));
        assert_eq!(servers.settles_at(7), None, "it was never up");
        servers.go_up(1, now);
        owners[7] = 0;
        owners[8] = 1;
        assert!(servers.set_route(&all(owners), now).rewrites.iter().eq([7, 8]));
        assert_eq!(servers.settles_at(7), Some(now + SETTLING), "others have to listen again");
        assert_eq!(servers.settles_at(8), None);
    }

    #[test]
    fn a_server_without_a_connection_is_down_whatever_was_reported() {
        let (mut servers, now) = (ServerStates::default(), Instant::now());
        servers.set_route(&route(2), now);
        let owns = servers.go_up(0, now);
        assert_eq!(servers.settles_at(0), None, "the first time");
        assert!(servers.up(&route(2)).is_empty() && servers.writable(0, &route(2)).is_none());
        execute(&mut servers, 0, "a");
        assert_eq!(topics(&servers.set_route(&route(2), now).room_writes), ["r:a"]);
        assert_eq!(servers.go_up(0, now), owns);
        assert_eq!(servers.settles_at(0), Some(now + SETTLING));
        servers.handle_timeout(now + SETTLING);
        assert_eq!(servers.settles_at(0), None);
    }
}
