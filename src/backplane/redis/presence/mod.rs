//! Presence over Redis: the users in each room, on all nodes that share it.
//!
//! A node owns its entries: for each room a hash of its users on this node, which no other node
//! changes while this one lives. So a join costs Redis one short script, and nothing is refreshed
//! for each client: the node's record stands for all of them ([`liveness`]). The scripts
//! decide which events are published ([`scripts`]), because a user may be on two nodes.
//!
//! [`Presence`](crate::backplane::presence::Presence) has this node's users; [`write_queue`] has
//! those whose entry in Redis may differ. Each server has one batch in flight ([`server_state`]),
//! so that no server waits for another. When a link comes up all its entries are written again,
//! without events: a Redis that restarted empty is filled again, and the joins were published
//! before. Entries that move to another server
//! are written there. Entries that a server should not have any more are removed
//! ([`stale_entries`]).
//!
//! Entries may also vanish under a running system: evicted, deleted, flushed. That is noticed by a
//! list that lacks this node ([`liveness`]), by an entry that is missing when it is written
//! ([`writes`]), or by a count ([`audit`]). Then the partition is written again, as after an outage.
//!
//! While there is no link, and for a moment after, no events of that server's rooms are published
//! and no grace ends: other nodes have to subscribe and write their entries first, or a user who is
//! on another node would join or leave in appearance.
//!
//! Errors here give no link up: that is decided by the canary. What failed is tried again; a
//! Cluster refuses writes to a partition that is moving, and nothing else waits for that.
//!
//! Invariant: an entry is written as it is at that time. Only the change of a user's first and last
//! connection is an event.

mod audit;
mod cleanup;
mod cleanup_walk;
mod context;
mod event;
mod failures;
mod keys;
mod liveness;
mod node_life;
mod query;
mod records;
mod removal_notice;
mod repairers;
mod room_read;
mod scripts;
mod server_state;
mod skipped;
mod stale_entries;
mod state;
#[cfg(test)]
mod states;
#[cfg(test)]
mod tests;
mod watch;
mod write_queue;
mod writes;

use crate::backplane::local::Local;
use crate::backplane::partition::partition;
use crate::backplane::redis::partition_set::PartitionSet;
use crate::backplane::redis::topology::routes::ServerRoutes;
use crate::ids::TopicName;
use crate::link::{PresenceRequest, PresenceUpdate};
use crate::metrics::BackplaneCounters;
use context::LivenessContext;
use keys::CONTROL;
use liveness::LivenessOutcome;
use query::{QueryAnswer, QueryContext};
use stale_entries::StaleUsers;
use std::task::Context;
use std::time::{Duration, Instant};
use write_queue::{Notify, PendingWrite};

pub(super) use event::{EventError, is_presence_event};
pub(super) use state::RedisPresence;

/// How often all entries are written again, in case another program changed them.
const REWRITE_INTERVAL: Duration = Duration::from_secs(600);
/// Pause before it is checked again whether graces may end in rooms whose server is down. Shorter
/// than the time in which a server settles.
const GRACE_RETRY: Duration = Duration::from_millis(500);

impl RedisPresence {
    /// A connection joined or left a room, or changed its info.
    pub(super) fn handle(&mut self, attend: PresenceUpdate, now: Instant) {
        let policy = self.rules.namespaces.policy(attend.topic.kind());
        let grace = Duration::from_millis(policy.presence_grace_ms);
        self.members.handle(attend, grace, now);
        self.members.make_room();
        self.take_transitions();
    }

    /// The version to write for other nodes.
    pub(super) fn version(&self) -> u8 {
        self.liveness.version()
    }

    /// The other nodes that lived when that was last known, for the reports of repair windows
    /// ([`crate::backplane::redis::server`]).
    pub(super) fn repairers(&self) -> String {
        self.liveness.repairers().to_string()
    }

    /// Queues a request for a roster.
    pub(super) fn ask(&mut self, ask: PresenceRequest) {
        if let Err(ask) = self.queries.ask(ask) {
            self.rejected.push(ask);
        }
    }

    /// A presence event arrived on a room's channel. `Err`: it is malformed.
    pub(super) fn handle_event(
        &mut self,
        topic: &str,
        body: &[u8],
        local: &mut Local,
    ) -> Result<(), EventError> {
        let event = event::read(body)?;
        self.queries.handle_event(topic, &event);
        local.presence_event(topic, &event);
        Ok(())
    }

    /// Takes new routes: a server went up or down, was added or removed, or partitions moved. To be
    /// called before [`RedisPresence::go_up`] of a server that is new.
    ///
    /// Entries that moved are written on their new server, and batches in flight are put back.
    pub(super) fn set_route(&mut self, route: &ServerRoutes, now: Instant) {
        let changes = self.servers.set_route(route, now);
        self.reset_liveness(changes.rewrites);
        self.put_back(changes.room_writes);
        self.rewrite(changes.rewrites, Notify::Not);
    }

    /// A server is up: its entries are written again.
    pub(super) fn go_up(&mut self, server: usize, now: Instant) {
        let owns = self.servers.go_up(server, now);
        self.reset_liveness(owns);
        self.rewrite(owns, Notify::Not);
    }

    /// The link to a server is lost: what was in flight may have arrived. Leaves that waited for it
    /// are published even if the server comes back without the users.
    pub(super) fn lose_link(&mut self, server: usize) {
        let owns = self.servers.owns(server);
        self.reset_liveness(owns);
        self.stale_entries.look_for(owns);
        self.writes.notify_always(owns, |topic, user| self.members.member(topic, user).is_none());
        let room_writes = self.servers.lose_link(server);
        self.put_back(room_writes);
    }

    /// Answers requests for rooms whose server is down, and those beyond the limit: unavailable.
    pub(super) fn refuse(&mut self, route: &ServerRoutes, local: &mut Local) {
        local.counters.presence_rejected += self.rejected.len() as u64;
        self.rejected.drain(..).for_each(|ask| local.reply_presence(ask, None));
        let lost = self.queries.take_unavailable(self.servers.up(route));
        lost.into_iter().for_each(|ask| local.reply_presence(ask, None));
    }

    /// Makes progress, also while servers are down. `route` is that of the last
    /// [`RedisPresence::set_route`]. Returns whether there was work.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        route: &ServerRoutes,
        local: &mut Local,
    ) -> bool {
        self.refuse(route, local);
        self.servers.handle_timeout(now);
        // Nodes know of each other without presence, too.
        let mut is_busy = self.poll_liveness(cx, now, route, local);
        if !self.is_on {
            return is_busy;
        }
        self.end_graces(now, route);
        if now.duration_since(*self.written_at.get_or_insert(now)) >= REWRITE_INTERVAL {
            self.written_at = Some(now);
            self.rewrite(PartitionSet::ALL, Notify::Not);
        }
        self.take_transitions();
        self.make_up_for_dropped();
        is_busy |= self.poll_stale_entries(cx, now, route);
        self.poll_audit(cx, now, route);
        for server in 0..self.servers.count() {
            is_busy |= self.poll_batch(cx, now, server, route);
        }
        is_busy | self.poll_reads(cx, now, route, local)
    }

    /// Bytes that it holds beside an entry for each user.
    pub(super) fn bytes_beside_users(&self) -> usize {
        self.members.bytes_beside_users()
            + self.writes.held_bytes()
            + self.rewrites.held_bytes()
            + self.queries.held_bytes()
    }

    /// Writes its gauges.
    pub(super) fn measure(&self, counters: &mut BackplaneCounters) {
        counters.presences = self.members.users() as u64;
        counters.presence_unreadable = self.failures.unreadable;
        counters.presence_vanished = self.failures.vanished;
        counters.presence_writes_waiting = (self.writes.len() + self.rewrites.len()) as u64;
        counters.presence_writes_dropped = self.dropped.count;
        counters.wire_version = u64::from(self.version());
        counters.nodes = self.liveness.living() as u64 + u64::from(self.liveness.is_listed());
    }

    /// Graces end where a leave can be published, and are held elsewhere: until the room's server
    /// has settled, so that no user seems to leave and join; and until all entries
    /// are written again there: a user whose grace ended before would not be removed by it.
    fn end_graces(&mut self, now: Instant, route: &ServerRoutes) {
        let settled = self.servers.settled(route).without(self.rewrites.parts());
        self.members.handle_timeout_unless(now, |topic| {
            let part = partition(topic.as_str());
            let held_until = || self.servers.settles_at(part).unwrap_or(now + GRACE_RETRY);
            (!settled.has(part)).then(held_until)
        });
    }

    fn poll_liveness(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        route: &ServerRoutes,
        local: &mut Local,
    ) -> bool {
        if !self.servers.up(route).has(partition(CONTROL)) {
            self.liveness.go_down();
            return false;
        }
        self.liveness.go_up(now);
        let settled = self.servers.settled(route);
        let context = LivenessContext { route, settled, keys: &self.keys, rules: &self.rules };
        match self.liveness.poll(cx, now, &context) {
            Ok(outcome) => self.handle_liveness(outcome, now, route, local),
            Err(error) => {
                self.failures.warn("records of nodes", &error, now);
                true
            }
        }
    }

    fn handle_liveness(
        &mut self,
        outcome: LivenessOutcome,
        now: Instant,
        route: &ServerRoutes,
        local: &mut Local,
    ) -> bool {
        let LivenessOutcome { was_removed, has_lost_data, removed, skipped, is_busy } = outcome;
        local.counters.presence_reaped += removed;
        self.failures.skip("records of nodes", &skipped, now);
        if was_removed {
            tracing::warn!(
                "this node was declared dead by its peers; its presence is written again"
            );
            self.rewrite(PartitionSet::ALL, Notify::Always);
        }
        if has_lost_data {
            self.write_vanished(self.servers.owns(route.server_of(CONTROL)), now);
        }
        is_busy
    }

    /// Entries of these partitions have vanished under a running system. They are written again
    /// without events; those that are due wait until the other nodes have written theirs, too, or a
    /// user who is on another node would leave in appearance.
    fn write_vanished(&mut self, parts: PartitionSet, now: Instant) {
        if !self.is_on || parts.is_empty() {
            return;
        }
        let partitions = parts.iter().count();
        self.failures.vanished += partitions as u64;
        tracing::warn!(
            partitions,
            "presence of this node has vanished from Redis (evicted, deleted or flushed); it is \
             written again"
        );
        self.servers.settle_again(parts, now);
        self.writes.notify_always(parts, |topic, user| self.members.member(topic, user).is_none());
        self.rewrite(parts, Notify::Not);
    }

    fn poll_audit(&mut self, cx: &mut Context<'_>, now: Instant, route: &ServerRoutes) {
        if self.audit.is_round_due(now) {
            self.audit.begin_round(self.members.rooms().cloned(), now);
        }
        let unsettled = self.stale_entries.parts().or(self.rewrites.parts());
        let settled = self.servers.settled(route).without(unsettled);
        let expected = |topic: &TopicName| {
            let is_written = settled.has(partition(topic.as_str()))
                && !self.writes.has_room(topic)
                && !self.servers.is_in_flight(route.server_of(topic.as_str()), topic);
            is_written.then(|| self.members.count(topic)).filter(|users| *users > 0)
        };
        let Some(found) = self.audit.poll(cx, now, (route, &self.keys), expected) else { return };
        self.write_vanished(found.vanished, now);
        self.stale_entries.look_for(found.foreign);
    }

    fn poll_reads(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        route: &ServerRoutes,
        local: &mut Local,
    ) -> bool {
        let dead = self.liveness.dead();
        let from = QueryContext { route, keys: &self.keys, dead, interest: &local.interest };
        let mut is_busy = self.queries.begin(cx, now, &from, &self.members);
        while let Some(QueryAnswer { asks, here, nodes, skipped }) =
            self.queries.poll(cx, now, &self.members)
        {
            is_busy = true;
            self.observe(nodes);
            let room = asks.first().map_or("", |ask| ask.topic.as_str());
            self.failures.skip(room, &skipped, now);
            let here = here.inspect_err(|error| self.failures.warn(room, error, now)).ok();
            asks.into_iter().for_each(|ask| local.reply_presence(ask, here.clone()));
        }
        is_busy
    }

    /// Stale entries that were found: they are written as they are here, which removes them.
    fn poll_stale_entries(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        route: &ServerRoutes,
    ) -> bool {
        let up = self.servers.up(route);
        let Some(found) = self.stale_entries.poll(cx, now, (route, up), &self.keys) else {
            return false;
        };
        let what = "stale entries of this node";
        let found = found.inspect_err(|error| self.failures.warn(what, error, now));
        let StaleUsers { users: found, skipped } = found.unwrap_or_default();
        self.failures.skip(what, &skipped, now);
        for (topic, users) in found {
            let gone = users.into_iter().filter(|user| self.members.member(&topic, user).is_none());
            for user in gone {
                self.rewrites.add(&topic, user, PendingWrite::new(Notify::Not, None));
            }
        }
        true
    }

    fn reset_liveness(&mut self, parts: PartitionSet) {
        if parts.has(partition(CONTROL)) {
            self.liveness.go_down();
        }
    }

    fn observe(&mut self, nodes: impl IntoIterator<Item = String>) {
        self.liveness.observe(nodes, &self.keys.me);
    }
}
