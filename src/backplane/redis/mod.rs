//! The Redis backplane: one channel for each topic, subscribed while a shard of this node has
//! members.
//!
//! One server (`server`) or several, each with its share of the topics. Where they are and which
//! has what is known by `topology`; [`RedisTransport`] moves topics between servers when that
//! changes. A move waits until no command of a topic is in flight. Then queued publishes, histories
//! and pending requests go to the new server in order, and nothing can overtake them.
//!
//! Why a server is not connected has a type (`failure`), and so has what its user must be allowed to
//! do (`permissions`), which is tried whenever a node connects. Messages to everybody are numbered
//! (`broadcasts`), so that an outage is reported only to members who may have missed something.
//!
//! The node is ready while every server with topics is up and has them all subscribed. Presence
//! (`presence`) spans all servers, because a node's sign of life is on one of them.
//!
//! Invariant: each topic has one server, and its publishes, subscription and history are on that
//! server.

mod backoff;
mod broadcasts;
pub mod connection;
mod disconnects;
mod error_reply;
pub mod failure;
mod health;
mod history;
#[cfg(test)]
mod hostile;
mod inbound;
mod ingest;
pub mod names;
mod partition_set;
pub mod permissions;
mod pipeline;
mod presence;
mod publish;
mod revocations;
mod scripts;
mod server;
mod shared;
mod topology;
mod unreadable;
mod user_acks;

use crate::backplane::interest::{Interest, TopicKey};
use crate::backplane::local::Local;
use crate::backplane::partition::{PARTITIONS, partition};
use crate::backplane::transport::Transport;
use crate::ids::{NodeId, ShardId, TopicName, UpTo};
use crate::link::{
    DisconnectRequest, HistoryError, HistoryRequest, PresenceRequest, PresenceUpdate, Publish,
    RecoveryRequest, RevokeRequest,
};
use crate::metrics::servers::RedisSnapshot;
use crate::plan::{Deployment, RedisPlan};
use crate::policy::limits::Limits;
use crate::policy::namespaces::Namespaces;
use broadcasts::check::Broadcasts;
use disconnects::Disconnects;
use failure::Outage;
use health::snapshot::SnapshotBuilder;
use health::totals::ServerTotals;
use names::Names;
use partition_set::PartitionSet;
use presence::RedisPresence;
use revocations::RedisRevocations;
use server::life::SWITCH_GRACE;
use server::supervisor::{Server, Turn};
use shared::{ServerAssignment, SharedContext};
use std::sync::Arc;
use std::task::Context;
use std::time::Instant;
use topology::map::PartitionMap;
use topology::routes::ServerRoutes;
use topology::{Topology, TopologyChange};
use user_acks::UserAcks;

/// The transport over one or several Redis servers. Owned by the backplane loop.
pub struct RedisTransport {
    shared: SharedContext,
    topology: Topology,
    /// In the order of the map; never empty. Before the topology is known, one server without a
    /// name.
    servers: Vec<Server>,
    map: PartitionMap,
    /// The map to change to, and since when it is known.
    next: Option<(PartitionMap, Instant)>,
    presence: RedisPresence,
    acks: UserAcks,
    disconnects: Disconnects,
    revocations: RedisRevocations,
    broadcasts: Broadcasts,
    route: ServerRoutes,
    /// Which servers were up when presence and acknowledgements last received their routes.
    were_up: Vec<bool>,
    snapshot: SnapshotBuilder,
    /// Totals of servers that are no longer in the map.
    departed: ServerTotals,
}

impl RedisTransport {
    /// Not connected; the first [`Transport::poll`] begins.
    pub fn new(
        plan: RedisPlan,
        limits: Limits,
        node: NodeId,
        namespaces: &Arc<Namespaces>,
    ) -> RedisTransport {
        let names = Names::in_database(&plan.prefix, plan.servers.login.db, node);
        let names = match plan.servers.deployment {
            Deployment::Cluster(_) => names.sharded(),
            Deployment::Fixed(_) | Deployment::Sentinel { .. } => names,
        };
        let presence = RedisPresence::new(namespaces.clone(), &plan.prefix, names.clone(), node);
        let topology = Topology::new(&plan);
        let map = PartitionMap { servers: vec![String::new()], owners: Arc::new([0; PARTITIONS]) };
        let route = ServerRoutes::new(map.owners.clone(), vec![None], names.publish());
        let acks = UserAcks::new(namespaces.clone(), names.clone(), route.clone());
        let namespaces = namespaces.clone();
        let features = shared::features(&plan, &namespaces);
        let seed = node.0;
        let shared = SharedContext { plan, limits, names, namespaces, features, seed };
        let servers = vec![Server::new(&shared, String::new(), None, false)];
        RedisTransport {
            shared,
            topology,
            servers,
            map,
            next: None,
            presence,
            acks,
            disconnects: Disconnects::default(),
            revocations: RedisRevocations::new(limits.revocations_max),
            broadcasts: Broadcasts::new(),
            route,
            were_up: vec![false],
            snapshot: SnapshotBuilder::default(),
            departed: ServerTotals::default(),
        }
    }

    fn server_of(&mut self, topic: &TopicName) -> &mut Server {
        let owner = self.map.owners[usize::from(partition(topic.as_str()))];
        &mut self.servers[usize::from(owner)]
    }

    /// Takes changes of the topology.
    fn poll_topology(&mut self, cx: &mut Context<'_>, now: Instant, local: &mut Local) -> bool {
        let mut is_busy = false;
        while let Some(known) = self.topology.poll(cx, now) {
            is_busy = true;
            match known {
                TopologyChange::Map(map) => {
                    let since = self.next.take().map_or(now, |(_, since)| since);
                    self.next = Some((map, since));
                    self.servers.iter_mut().for_each(|server| server.set_paused(true));
                }
                TopologyChange::Master { server, address } => {
                    let server = &mut self.servers[server];
                    local.counters.switches += u64::from(server.is_elsewhere(&address));
                    server.move_to(address, now, local);
                }
            }
            if self.next.is_some() {
                break; // further changes may be about servers of the new map
            }
        }
        is_busy
    }

    /// Moves topics when nothing is in flight. A server that has left the map is waited for no
    /// longer than [`SWITCH_GRACE`].
    fn poll_move(&mut self, now: Instant, local: &mut Local) -> bool {
        let Some((map, since)) = &self.next else { return false };
        let is_late = now.duration_since(*since) >= SWITCH_GRACE;
        for server in self.servers.iter_mut().filter(|server| !server.has_none_in_flight()) {
            let is_gone = !map.servers.contains(&server.name);
            if !is_gone || !is_late {
                return false;
            }
            server.fail(Outage::Departed.into(), now, local);
        }
        let (map, _) = self.next.take().expect("looked at above");
        self.apply(map, local);
        true
    }

    fn apply(&mut self, map: PartitionMap, local: &mut Local) {
        let before = std::mem::replace(&mut self.map, map);
        let is_first = before.servers == [""];
        let name = |map: &PartitionMap, partition: usize| -> String {
            map.servers[usize::from(map.owners[partition])].clone()
        };
        let moved: Vec<bool> =
            (0..PARTITIONS).map(|at| name(&before, at) != name(&self.map, at)).collect();
        let has_moved = |topic: &TopicName| moved[usize::from(partition(topic.as_str()))];
        let (mut publishes, mut acked, mut histories) = (Vec::new(), Vec::new(), Vec::new());
        for server in &mut self.servers {
            publishes.append(&mut server.publishes().take_moved(has_moved));
            acked.append(&mut server.publishes().unconfirmed().take_moved(has_moved));
            histories.append(&mut server.histories().take_moved(has_moved));
        }
        self.replace_servers(&before, is_first, local);
        for one in acked {
            self.server_of(&one.topic().clone()).publishes().unconfirmed().adopt(one);
        }
        for waiting in publishes {
            self.server_of(&waiting.topic().clone()).publishes().push_back(waiting);
        }
        for history in histories {
            self.server_of(&history.name().clone()).histories().adopt(history, local);
        }
        if !is_first {
            self.hand_over(has_moved, local);
            let partitions = moved.iter().filter(|has_moved| **has_moved).count();
            local.counters.moves += 1;
            local.counters.partitions_moved += partitions as u64;
            tracing::info!(servers = self.servers.len(), partitions, "partitions reassigned");
        }
    }

    /// The servers of the new map: known ones stay, new ones are made.
    fn replace_servers(&mut self, before: &PartitionMap, is_first: bool, local: &mut Local) {
        let place_before = |name: &String| before.servers.iter().position(|it| it == name);
        let from: Vec<Option<usize>> = self.map.servers.iter().map(place_before).collect();
        local.interest.set_servers(self.map.owners.clone(), &from);
        let mut old: Vec<Option<Server>> =
            std::mem::take(&mut self.servers).into_iter().map(Some).collect();
        let shares = self.map.servers.len();
        let control = self.map.owners[usize::from(partition("*"))];
        for (number, (name, from)) in self.map.servers.iter().zip(from).enumerate() {
            let known = from.and_then(|from| old[from].take());
            let address = self.topology.names_addresses().then(|| name.clone());
            let mut server = known
                .unwrap_or_else(|| Server::new(&self.shared, name.clone(), address, !is_first));
            let partitions = (0..).zip(self.map.owners.iter());
            let owned = partitions.filter(|(_, owner)| usize::from(**owner) == number);
            let owns: PartitionSet = owned.map(|(partition, _)| partition).collect();
            let first = owns.next_from(0);
            let has_broadcasts = usize::from(control) == number;
            // A message to the whole Cluster arrives on each of its servers: one of them counts.
            let takes_ingest = !self.shared.names.is_sharded() || has_broadcasts;
            server.set_assignment(
                ServerAssignment { number, first, owns, takes_ingest, has_broadcasts },
                &self.shared.names,
            );
            server.histories().set_share(&self.shared.limits, shares);
            server.set_paused(false);
            self.servers.push(server);
        }
        old.iter().flatten().for_each(|gone| self.departed += gone.totals());
    }

    /// Subscribes topics that have moved on their new servers.
    fn hand_over(&mut self, has_moved: impl Fn(&TopicName) -> bool, local: &Local) {
        for place in 0..local.interest.slots_end() {
            if let Some((key, topic)) = local.interest.name_at(place)
                && has_moved(topic)
            {
                self.server_of(topic).take_over(key, topic);
            }
        }
    }

    /// Tells presence, acknowledgements and readiness that servers went up or down, or topics
    /// moved.
    fn note_changes(&mut self, has_moved: bool, now: Instant, local: &mut Local) {
        let are_up = self.servers.iter().map(Server::is_up);
        if has_moved || !are_up.eq(self.were_up.iter().copied()) {
            self.on_changes(has_moved, now);
        }
        let down = self.servers.iter().find(|server| !server.is_ready());
        let is_up = down.is_none() && self.revocations.is_loaded();
        if is_up != local.is_up() {
            let server = down.unwrap_or(&self.servers[0]);
            let reason = format!("{}: {}", server.display_name(), server.detail());
            local.set_up(is_up, &reason, now);
        }
    }

    fn on_changes(&mut self, has_moved: bool, now: Instant) {
        let are_up: Vec<bool> = self.servers.iter().map(Server::is_up).collect();
        let servers = self.servers.iter().map(|server| server.cmd().cloned()).collect();
        let publish = self.shared.names.publish();
        self.route = ServerRoutes::new(self.map.owners.clone(), servers, publish);
        self.presence.set_route(&self.route, now);
        self.acks.set_route(&self.route);
        self.revocations.hurry(now);
        for (number, is_up) in are_up.iter().enumerate() {
            let was_up = !has_moved && self.were_up[number];
            match (was_up, is_up) {
                (false, true) => self.presence.go_up(number, now),
                (true, false) => self.presence.lose_link(number),
                _ => {}
            }
        }
        self.were_up = are_up;
    }

    fn update_snapshot(&mut self, interest: &Interest, now: Instant) {
        // Before the topology is known there is one server without a name.
        let known = self.servers.iter().enumerate().filter(|(_, server)| !server.name.is_empty());
        let mut picture = RedisSnapshot::default();
        self.topology.describe(now, &mut picture);
        let servers = known.map(|(at, server)| server.state(interest.confirmed_by(at)));
        self.snapshot.update(picture, servers);
    }
}

impl Transport for RedisTransport {
    fn subscribe(&mut self, key: TopicKey, topic: &TopicName) {
        self.broadcasts.subscribe(key, topic);
        self.server_of(topic).subscribe(key, topic);
    }

    fn unsubscribe(&mut self, topic: TopicName) {
        self.server_of(&topic).unsubscribe(topic);
    }

    fn publish(&mut self, publish: Publish, now: Instant, local: &mut Local) {
        self.server_of(&publish.topic).publish(publish, now, local);
    }

    fn recover(
        &mut self,
        shard: ShardId,
        ask: Box<RecoveryRequest>,
        now: Instant,
        local: &mut Local,
    ) {
        self.server_of(&ask.topic).histories().recover(shard, ask, now, local);
    }

    fn history(&mut self, ask: Box<HistoryRequest>, now: Instant, local: &mut Local) {
        let server = self.server_of(&ask.topic);
        if !server.is_up() {
            return local.reply_history(ask.topic, ask.to, Err(HistoryError::Unavailable));
        }
        server.histories().history(ask, now, local);
    }

    /// While down, every update is taken: presence is written when the server is back.
    fn update_presence(&mut self, attend: PresenceUpdate, now: Instant) {
        self.presence.handle(attend, now);
    }

    fn presence(&mut self, ask: Box<PresenceRequest>, _now: Instant) {
        self.presence.ask(*ask);
    }

    fn acknowledge(&mut self, topic: TopicName, up_to: UpTo, now: Instant, _: &mut Local) {
        if let Some(at) = self.server_of(&topic).histories().acknowledge(&topic, up_to) {
            self.acks.push(topic, at, now);
        }
    }

    fn disconnect(&mut self, ask: Box<DisconnectRequest>, _now: Instant, _local: &mut Local) {
        self.disconnects.push(*ask, &self.route);
    }

    fn revoke(&mut self, order: Box<RevokeRequest>, _now: Instant, _local: &mut Local) {
        self.revocations.push(order);
    }

    fn has_room(&self) -> bool {
        self.servers.iter().all(Server::has_room)
    }

    fn is_idle(&self) -> bool {
        let others = self.acks.is_idle() && self.disconnects.is_idle();
        let others = others && self.revocations.is_idle();
        self.servers.iter().all(Server::is_idle) && others
    }

    fn poll(&mut self, cx: &mut Context<'_>, now: Instant, local: &mut Local) -> bool {
        let mut is_busy = self.poll_topology(cx, now, local);
        for server in &mut self.servers {
            let (presence, broadcasts) = (&mut self.presence, &mut self.broadcasts);
            let shared = &self.shared;
            is_busy |= server.poll(&mut Turn { cx, now, shared, presence, broadcasts, local });
            if server.take_redirected() {
                self.topology.hurry();
            }
        }
        let has_moved = self.poll_move(now, local);
        is_busy |= has_moved;
        self.note_changes(has_moved, now, local);
        self.presence.refuse(&self.route, local);
        is_busy |= self.presence.poll(cx, now, &self.route, local);
        is_busy |= self.disconnects.poll(cx, &self.shared.names);
        is_busy |= self.revocations.poll(cx, now, &self.route, &self.shared.names, local);
        is_busy | self.acks.poll(cx, now)
    }

    fn measure(&mut self, now: Instant, local: &mut Local) {
        self.update_snapshot(&local.interest, now);
        let mut totals = self.departed;
        self.servers.iter().for_each(|server| totals += server.totals());
        let waiting = self.next.as_ref().map(|(_, since)| now.duration_since(*since));
        let counters = &mut local.counters;
        counters.publish_queue_bytes = 0;
        counters.histories = 0;
        counters.histories_bytes = 0;
        counters.history_reads_waiting = 0;
        counters.history_requests_waiting = 0;
        counters.in_flight = 0;
        counters.canary_age_ms = 0;
        counters.canary_rtt_us = 0;
        self.servers.iter().for_each(|server| server.measure(now, counters));
        counters.history_reads = totals.history_reads;
        counters.recoveries_waited = totals.recoveries_waited;
        counters.holes_repaired = totals.holes_repaired;
        counters.holes_lost = totals.holes_lost;
        counters.canaries_missed = totals.canaries_missed;
        counters.move_waiting_ms = waiting.map_or(0, |waiting| waiting.as_millis() as u64);
        self.presence.measure(counters);
        self.acks.measure(counters);
        self.revocations.measure(local);
        let of_servers: usize = self.servers.iter().map(Server::bytes_beside_gauges).sum();
        let bytes = of_servers + self.presence.bytes_beside_users() + self.acks.held_bytes();
        local.bytes_beside_gauges = bytes as u64;
    }

    fn take_snapshot(&mut self) -> Option<Arc<RedisSnapshot>> {
        self.snapshot.take_snapshot()
    }
}
