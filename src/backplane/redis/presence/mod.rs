//! Presence over Redis: the users in each room, on all nodes that share it.
//!
//! A node owns its entries: for each room a hash of its users on this node, which no other node
//! changes while this one lives. So a join costs Redis one short script, and nothing is refreshed
//! for each client: the node's sign of life stands for all of them ([`liveness`]). The scripts
//! decide which events are published ([`scripts`]), because a user may be on two nodes.
//!
//! [`Presence`] has this node's users; [`write_queue`] has those whose entry in Redis may differ.
//! Each server has one batch in flight ([`server_state`]), so that no server waits for another.
//! When a link comes up all its entries are written again, without events: a Redis that restarted
//! empty is filled again, and the joins were published before. Entries that move to another server
//! are written there. Entries that a server should not have any more are removed
//! ([`stale_entries`]).
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

mod cleanup;
mod context;
mod event;
mod keys;
mod liveness;
mod partition_set;
mod query;
mod scripts;
mod server_state;
mod stale_entries;
#[cfg(test)]
mod tests;
mod write_queue;

use crate::backplane::local::Local;
use crate::backplane::log_throttle::LogThrottle;
use crate::backplane::partition::partition;
use crate::backplane::presence::{Presence, PresenceEvent, Transition, user_name};
use crate::backplane::redis::names::Names;
use crate::backplane::redis::pipeline::{execute, poll_reply, send};
use crate::backplane::redis::topology::routes::ServerRoutes;
use crate::ids::{NodeId, TopicName};
use crate::link::{PresenceRequest, PresenceUpdate};
use crate::metrics::BackplaneCounters;
use crate::policy::namespaces::Namespaces;
use context::{LivenessContext, PresenceRules};
use keys::{CONTROL, Keys, node_name};
use liveness::{Liveness, LivenessOutcome, RemovalNotice};
use partition_set::PartitionSet;
use query::{MemberQueries, QueryAnswer, QueryContext};
use redis::{ErrorKind, FromRedisValue, Pipeline, RedisError, RedisResult, ServerErrorKind, Value};
use scripts::PresenceScript;
use server_state::{RoomWrite, ServerStates, Writable, WriteBatch};
use stale_entries::StaleEntries;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use write_queue::{Notify, PendingWrite, WriteQueue};

pub(super) use event::is_presence_event;

/// Users in one script call.
const USERS_PER_CALL: usize = 256;
/// Script calls in one batch.
const ROOMS_PER_BATCH: usize = 128;
/// Users after which a batch is closed.
const USERS_PER_BATCH: usize = 2048;
/// How often all entries are written again, in case another program changed them.
const REWRITE_INTERVAL: Duration = Duration::from_secs(600);
/// Pause before it is checked again whether graces may end in rooms whose server is down. Shorter
/// than the time in which a server settles.
const GRACE_RETRY: Duration = Duration::from_millis(500);

/// Presence of all servers. Outlives links; owned by [`crate::backplane::redis::RedisTransport`].
pub(super) struct RedisPresence {
    rules: PresenceRules,
    keys: Keys,
    is_on: bool,
    members: Presence,
    /// Changes. They wait until their server has settled, because events may be published.
    writes: WriteQueue,
    /// Entries that were written before and are written again, without events.
    rewrites: WriteQueue,
    stale_entries: StaleEntries,
    servers: ServerStates,
    /// `None` while the server of the signs of life is down.
    liveness: Option<Liveness>,
    /// The last notice that this node was removed.
    removal_notice: RemovalNotice,
    queries: MemberQueries,
    written_at: Option<Instant>,
    failures: Failures,
}

/// Errors of Redis, for the log and the counters.
#[derive(Default)]
struct Failures {
    warnings: LogThrottle,
    unreadable: u64,
}

impl RedisPresence {
    /// No users.
    pub(super) fn new(
        namespaces: Arc<Namespaces>,
        prefix: &str,
        names: Names,
        node: NodeId,
    ) -> RedisPresence {
        RedisPresence {
            is_on: namespaces.have_presence(),
            rules: PresenceRules { names, namespaces },
            keys: Keys::new(prefix, node),
            members: Presence::default(),
            writes: WriteQueue::default(),
            rewrites: WriteQueue::default(),
            stale_entries: StaleEntries::default(),
            servers: ServerStates::default(),
            liveness: None,
            removal_notice: RemovalNotice::default(),
            queries: MemberQueries::default(),
            written_at: None,
            failures: Failures::default(),
        }
    }

    /// A connection joined or left a room, or changed its info.
    pub(super) fn handle(&mut self, attend: PresenceUpdate, now: Instant) {
        let policy = self.rules.namespaces.policy(attend.topic.kind());
        let grace = Duration::from_millis(policy.presence_grace_ms);
        self.members.handle(attend, grace, now);
        self.members.make_room();
        self.take_transitions();
    }

    /// Queues a request for a roster.
    pub(super) fn ask(&mut self, ask: PresenceRequest) {
        self.queries.ask(ask);
    }

    /// A presence event arrived on a room's channel. `Err`: it is malformed.
    pub(super) fn handle_event(
        &mut self,
        topic: &str,
        body: &[u8],
        local: &mut Local,
    ) -> Result<(), &'static str> {
        let event = event::read(body).ok_or("no presence event of this version")?;
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

    /// Answers requests for rooms whose server is down: unavailable.
    pub(super) fn refuse(&mut self, route: &ServerRoutes, local: &mut Local) {
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
        if !self.is_on {
            return false;
        }
        self.refuse(route, local);
        self.servers.handle_timeout(now);
        self.end_graces(now, route);
        if now.duration_since(*self.written_at.get_or_insert(now)) >= REWRITE_INTERVAL {
            self.written_at = Some(now);
            self.rewrite(PartitionSet::ALL, Notify::Not);
        }
        self.take_transitions();
        let mut is_busy = self.poll_liveness(cx, now, route, local);
        is_busy |= self.poll_stale_entries(cx, now, route);
        for server in 0..self.servers.count() {
            is_busy |= self.poll_batch(cx, now, server, route);
        }
        is_busy | self.poll_reads(cx, now, route, local)
    }

    /// Writes its gauges.
    pub(super) fn measure(&self, counters: &mut BackplaneCounters) {
        counters.presences = self.members.users() as u64;
        counters.presence_unreadable = self.failures.unreadable;
    }

    /// Graces end where a leave can be published, and are held elsewhere: until the room's server
    /// has settled, so that no user leaves and joins meanwhile in appearance; and until all entries
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
            self.liveness = None;
            return false;
        }
        let settled = self.servers.settled(route);
        let context = LivenessContext { route, settled, keys: &self.keys, rules: &self.rules };
        let liveness = self.liveness.get_or_insert_with(|| Liveness::new(now));
        match liveness.poll(cx, now, &context, &mut self.removal_notice) {
            Ok(LivenessOutcome { was_removed, removed, is_busy }) => {
                local.counters.presence_reaped += removed;
                if was_removed {
                    tracing::warn!(
                        "this node was declared dead by its peers; its presence is written again"
                    );
                    self.rewrite(PartitionSet::ALL, Notify::Always);
                }
                is_busy
            }
            Err(error) => {
                self.failures.warn("signs of life of nodes", &error, now);
                true
            }
        }
    }

    fn poll_reads(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        route: &ServerRoutes,
        local: &mut Local,
    ) -> bool {
        let nobody = Arc::default();
        let dead = self.liveness.as_ref().map_or(&nobody, Liveness::dead);
        let from = QueryContext { route, keys: &self.keys, dead, interest: &local.interest };
        let mut is_busy = self.queries.begin(cx, now, &from, &self.members);
        while let Some(QueryAnswer { asks, here, nodes }) =
            self.queries.poll(cx, now, &self.members)
        {
            is_busy = true;
            self.observe(nodes);
            let room = asks.first().map_or("", |ask| ask.topic.as_str());
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
        for (topic, users) in found.unwrap_or_default() {
            let gone = users.into_iter().filter(|user| self.members.member(&topic, user).is_none());
            for user in gone {
                self.rewrites.add(&topic, user, PendingWrite { notify: Notify::Not, by: None });
            }
        }
        true
    }

    /// Takes the users whose entries have changed. A server that may have stale entries does not
    /// know who is new.
    fn take_transitions(&mut self) {
        while let Some(changed) = self.members.poll_event() {
            let unknown = || self.stale_entries.parts().or(self.rewrites.parts());
            let (notify, by) = match changed.change {
                Transition::Joined(by) if unknown().has(partition(changed.topic.as_str())) => {
                    (Notify::IfHere, Some(by))
                }
                Transition::Joined(by) => (Notify::IfNew, Some(by)),
                Transition::Updated => (Notify::Not, None),
                Transition::Left => (Notify::IfNew, None),
            };
            self.writes.add(&changed.topic, changed.user, PendingWrite { notify, by });
        }
    }

    fn rewrite(&mut self, parts: PartitionSet, notify: Notify) {
        if parts.is_empty() {
            return;
        }
        self.stale_entries.look_for(parts);
        let rooms = self.members.rooms().filter(|topic| parts.has(partition(topic.as_str())));
        rooms.for_each(|topic| self.rewrites.add_whole(topic, notify));
    }

    /// Puts back writes that may have arrived.
    fn put_back(&mut self, room_writes: Vec<RoomWrite>) {
        for RoomWrite { topic, users } in room_writes {
            for (user, write) in users {
                // A user who left may be removed already, with or without the event: an event twice
                // is better than none.
                let is_gone = self.members.member(&topic, &user).is_none();
                let is_told = write.notify > Notify::Not;
                let notify = if is_gone && is_told { Notify::Always } else { write.notify };
                self.writes.add(&topic, user, PendingWrite { notify, ..write });
            }
        }
    }

    fn reset_liveness(&mut self, parts: PartitionSet) {
        if parts.has(partition(CONTROL)) {
            self.liveness = None;
        }
    }

    fn observe(&mut self, nodes: impl IntoIterator<Item = String>) {
        if let Some(liveness) = &mut self.liveness {
            liveness.observe(nodes, &self.keys.me);
        }
    }

    fn poll_batch(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        server: usize,
        route: &ServerRoutes,
    ) -> bool {
        let mut is_busy = false;
        let batch = &mut self.servers.at(server).batch;
        if let Some(in_flight) = batch
            && let Poll::Ready(answers) = poll_reply(&mut in_flight.reply, cx)
            && let Some(batch) = batch.take()
        {
            self.handle_replies(server, batch, answers, now);
            is_busy = true;
        }
        if let Some(writable) = self.servers.writable(server, route)
            && (self.rewrites.has_any_of(writable.write) || self.writes.has_any_of(writable.notify))
            && let Some(cmd) = route.cmd(server)
        {
            let (pipeline, replies_before, room_writes) =
                self.build_batch(server, writable, route.publish());
            let reply = send(cx, execute(cmd.clone(), pipeline));
            self.servers.at(server).batch = Some(WriteBatch { replies_before, room_writes, reply });
            is_busy = true;
        }
        is_busy
    }

    fn build_batch(
        &mut self,
        server: usize,
        writable: Writable,
        publish: &'static str,
    ) -> (Pipeline, usize, Vec<RoomWrite>) {
        let (mut pipeline, mut room_writes, mut users) = (Pipeline::new(), Vec::new(), 0);
        if !std::mem::replace(&mut self.servers.at(server).is_script_loaded, true) {
            pipeline.cmd("SCRIPT").arg("LOAD").arg(PresenceScript::Write.text());
        }
        let replies_before = pipeline.len();
        while room_writes.len() < ROOMS_PER_BATCH && users < USERS_PER_BATCH {
            let Some((topic, some)) = self.take_writes(writable) else { break };
            if some.is_empty() {
                continue;
            }
            users += some.len();
            self.write_room(&mut pipeline, &topic, &some, publish);
            room_writes.push(RoomWrite { topic, users: some });
        }
        (pipeline, replies_before, room_writes)
    }

    /// Some users of a room; rewrites first.
    fn take_writes(
        &mut self,
        writable: Writable,
    ) -> Option<(TopicName, Vec<(TopicName, PendingWrite)>)> {
        let members = &self.members;
        let everybody =
            |topic: &TopicName| members.members(topic).map(|(user, _)| user.clone()).collect();
        if let Some((topic, mut some)) =
            self.rewrites.take(writable.write, USERS_PER_CALL, everybody)
        {
            // Users with an event are not written without it.
            some.retain(|(user, _)| !self.writes.notifies(&topic, user));
            return Some((topic, some));
        }
        self.writes.take(writable.notify, USERS_PER_CALL, |_| Vec::new())
    }

    fn write_room(
        &self,
        pipeline: &mut Pipeline,
        topic: &TopicName,
        some: &[(TopicName, PendingWrite)],
        publish: &'static str,
    ) {
        let users: Vec<_> =
            some.iter().map(|(user, write)| self.user(topic, user, *write)).collect();
        let users_max = self.rules.namespaces.policy(topic.kind()).presence_events_users_max;
        let dead = self.liveness.as_ref().map_or(&[][..], |liveness| liveness.dead());
        let room = scripts::RoomArgs { topic: topic.as_str(), users_max, dead, publish };
        scripts::write(pipeline, &self.keys, &self.rules.names, room, &users);
    }

    /// A user's current entry.
    fn user<'a>(
        &self,
        topic: &TopicName,
        user: &'a TopicName,
        write: PendingWrite,
    ) -> scripts::UserArgs<'a> {
        let (name, member) = (user_name(user), self.members.member(topic, user));
        let notify = match write.notify {
            Notify::Not => 0,
            Notify::IfHere if member.is_some() => 2,
            Notify::IfNew | Notify::IfHere => 1,
            Notify::Always => 2,
        };
        match member {
            Some(member) => {
                let info = member.info.as_deref();
                let value = query::value_written(member.connections, info);
                let event = event::write(&PresenceEvent::Joined { user: name, info, by: write.by });
                scripts::UserArgs { name, value, notify, event }
            }
            None => {
                let (value, event) =
                    (String::new(), event::write(&PresenceEvent::Left { user: name }));
                scripts::UserArgs { name, value, notify, event }
            }
        }
    }

    /// Handles the replies to a batch: writes that were refused are put back.
    ///
    /// 1. The room is moving to another server, or its keys are unreadable: its partition gets a
    ///    pause.
    /// 2. Any other error, or no reply: the whole server gets a pause.
    fn handle_replies(
        &mut self,
        server: usize,
        batch: WriteBatch,
        answers: RedisResult<Vec<Value>>,
        now: Instant,
    ) {
        let owns = self.servers.owns(server);
        let answers = answers.inspect_err(|error| self.failures.warn("rooms", error, now));
        let mut answers = answers.unwrap_or_default().into_iter().skip(batch.replies_before);
        for RoomWrite { topic, users } in batch.room_writes {
            let refused = match answers.next().map(Value::extract_error) {
                Some(Ok(others)) => {
                    let others = Vec::<Vec<u8>>::from_redis_value(others).unwrap_or_default();
                    self.observe(others.iter().filter_map(|name| node_name(name)));
                    continue;
                }
                Some(Err(error)) => {
                    self.failures.warn(topic.as_str(), &error, now);
                    self.servers.at(server).is_script_loaded &= !is_of(&error, NO_SCRIPT);
                    let is_of_room = is_of(&error, MOVING) || is_unreadable(&error);
                    if is_of_room { PartitionSet::of(&topic) } else { owns }
                }
                None => owns,
            };
            self.servers.refuse(&refused, now);
            for (user, write) in users {
                // Until they are written again no grace ends there.
                let row =
                    if write.notify == Notify::Not { &mut self.rewrites } else { &mut self.writes };
                row.add(&topic, user, write);
            }
        }
    }
}

/// NOSCRIPT: the server does not know the script.
const NO_SCRIPT: &[ServerErrorKind] = &[ServerErrorKind::NoScript];
/// The partition is moving to another server, or has moved.
const MOVING: &[ServerErrorKind] =
    &[ServerErrorKind::Moved, ServerErrorKind::Ask, ServerErrorKind::TryAgain];

fn is_of(error: &RedisError, kinds: &[ServerErrorKind]) -> bool {
    matches!(error.kind(), ErrorKind::Server(kind) if kinds.contains(&kind))
}

/// Another program has written there. In a pipeline only the text says so.
fn is_unreadable(error: &RedisError) -> bool {
    error.to_string().contains("WRONGTYPE")
}

impl Failures {
    /// Logs an error of presence, rate limited. `of`: the room, or what else it concerns.
    fn warn(&mut self, of: &str, error: &RedisError, now: Instant) {
        let is_unreadable = is_unreadable(error);
        self.unreadable += u64::from(is_unreadable);
        let Some(suppressed) = self.warnings.is_due(now) else { return };
        let what = "presence could not be written to Redis or read from it";
        if is_unreadable {
            let part = partition(of);
            tracing::warn!(
                of,
                %error,
                suppressed,
                "{what}: a key was not written by this server. Of a room \
                 …:{{p{part}}}:prn:{of} must be a set, and …:{{p{part}}}:pr:{of}:<node> a hash. DEL \
                 the key of another type; presence then continues by itself"
            );
        } else {
            tracing::warn!(of, %error, suppressed, "{what}");
        }
    }
}
