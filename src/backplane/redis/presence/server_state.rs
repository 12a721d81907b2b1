//! The servers as presence sees them: the partitions of each, whether it is up, and its batch in
//! flight.
//!
//! Rooms belong to partitions and partitions to servers; only the latter changes. So nothing of a
//! room is kept here but what is in flight; when partitions move, that is returned, and the caller
//! queues it for the new owner.
//!
//! Indices of servers have a meaning only between two changes of owners. After such a change a
//! server counts as up if the route has a connection to it: better written a moment too early, and
//! again when [`ServerStates::go_up`] follows, than not at all.
//!
//! Invariant: every partition has one owner here as soon as there was a route.

use crate::backplane::partition::PARTITIONS;
use crate::backplane::redis::pipeline::PendingReply;
use crate::backplane::redis::presence::partition_set::{PartitionDelays, PartitionSet};
use crate::backplane::redis::presence::write_queue::PendingWrite;
use crate::backplane::redis::topology::routes::ServerRoutes;
use crate::ids::TopicName;
use redis::Value;
use std::time::{Duration, Instant};

/// Time after a server came up again in which its rooms have no events and no graces end: as long
/// as other nodes may take to reconnect.
const SETTLING: Duration = Duration::from_millis(3_000);
/// Pause after a server refused something.
const PAUSE: Duration = Duration::from_millis(500);

/// A batch to one server.
pub(super) struct WriteBatch {
    /// Number of replies before those of the calls.
    pub replies_before: usize,
    /// One script call for each; the replies are in this order.
    pub room_writes: Vec<RoomWrite>,
    /// All replies.
    pub reply: PendingReply<Vec<Value>>,
}

/// The writes of one room.
pub(super) struct RoomWrite {
    /// The room's topic.
    pub topic: TopicName,
    /// The users to write.
    pub users: Vec<(TopicName, PendingWrite)>,
}

/// One server.
#[derive(Default)]
pub(super) struct PresenceServer {
    owns: PartitionSet,
    is_up: bool,
    /// At most one.
    pub batch: Option<WriteBatch>,
    /// Whether the server is believed to know the script.
    pub is_script_loaded: bool,
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
            let is_lost = |at: &usize| self.all[*at].is_up && route.cmd(*at).is_none();
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
            PresenceServer { owns, is_up, ..PresenceServer::default() }
        };
        self.all = owns.into_iter().enumerate().map(server).collect();
        self.served = self.served.or(self.up(route));
        RouteChanges { room_writes, rewrites }
    }

    /// A server is up. Returns its partitions. They settle only if they were up before: at the
    /// start no leave could be published too early.
    pub(super) fn go_up(&mut self, at: usize, now: Instant) -> PartitionSet {
        let server = self.all.get_mut(at).expect("a server is in the route before it is up");
        server.is_up = true;
        let owns = server.owns;
        self.settling.begin(&owns.and(self.served), now + SETTLING);
        self.served = self.served.or(owns);
        owns
    }

    /// A server is down. Returns the writes in flight, which may have arrived.
    pub(super) fn lose_link(&mut self, at: usize) -> Vec<RoomWrite> {
        let Some(server) = self.all.get_mut(at) else { return Vec::new() };
        server.is_up = false;
        server.is_script_loaded = false;
        server.batch.take().map_or_else(Vec::new, |batch| batch.room_writes)
    }

    /// Time passes: partitions that have waited long enough may be written.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        self.settling.handle_timeout(now);
        self.refused.handle_timeout(now);
    }

    /// A server refused these partitions: they wait.
    pub(super) fn refuse(&mut self, parts: &PartitionSet, now: Instant) {
        self.refused.begin(parts, now + PAUSE);
    }

    /// Number of servers.
    pub(super) fn count(&self) -> usize {
        self.all.len()
    }

    /// One server.
    pub(super) fn at(&mut self, at: usize) -> &mut PresenceServer {
        &mut self.all[at]
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
        if !self.is_up(at, route) || server.batch.is_some() {
            return None;
        }
        let write = server.owns.without(self.refused.parts());
        Some(Writable { write, notify: write.without(self.settling.parts()) })
    }

    fn is_up(&self, at: usize, route: &ServerRoutes) -> bool {
        self.all[at].is_up && route.cmd(at).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backplane::redis::pipeline::send;
    use std::sync::Arc;
    use std::task::{Context, Waker};

    /// Routes without connections; partitions alternate between servers.
    fn route(servers: u16) -> ServerRoutes {
        let owners = std::array::from_fn(|part| part as u16 % servers);
        let connections = (0..servers).map(|_| None).collect();
        ServerRoutes::new(Arc::new(owners), connections, "PUBLISH")
    }

    /// Puts a batch for a room in flight.
    fn execute(servers: &mut ServerStates, at: usize, room: &str) {
        let reply = send(&mut Context::from_waker(Waker::noop()), std::future::pending());
        let room_writes = vec![RoomWrite { topic: TopicName::room(room), users: Vec::new() }];
        servers.at(at).batch = Some(WriteBatch { replies_before: 0, room_writes, reply });
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
        execute(&mut servers, 0, "a");
        execute(&mut servers, 1, "b");
        let retries = servers.set_route(&route(2), now);
        assert!(retries.room_writes.is_empty() && retries.rewrites.is_empty());
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
