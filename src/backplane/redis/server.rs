//! One Redis server with its share of the topics.
//!
//! Its states: pause, connect, resubscribe, wait for the first canary, up; any failure leads back
//! to the pause. There is one way down ([`Server::go_down`]), whatever failed: all connections are
//! dropped, and nothing is repaired in place. The reconnecting wrappers of the redis crate are not
//! used, because they give up, or lose subscriptions silently.
//!
//! During an outage, messages that other nodes publish may be missed. Topics with a history recover
//! them ([`crate::backplane::redis::history`]); members of the others receive `lost`.
//!
//! The server's address and topics are decided by [`crate::backplane::redis::topology`]; a server
//! only reports redirections ([`Server::take_redirected`]).
//!
//! Invariant: up means that everything wanted is subscribed on this link, and that a message went
//! through both of its connections within the canary's timeout.

use crate::backplane::interest::TopicKey;
use crate::backplane::local::Local;
use crate::backplane::log_throttle::LogThrottle;
use crate::backplane::redis::backoff::Backoff;
use crate::backplane::redis::connection::reply_limits::ReplyLimits;
use crate::backplane::redis::connection::subscriptions::Subscriptions;
use crate::backplane::redis::connection::{self, LinkOptions, ServerLink};
use crate::backplane::redis::health::canary::Canary;
use crate::backplane::redis::health::monitor::Monitor;
use crate::backplane::redis::health::totals::ServerTotals;
use crate::backplane::redis::history::Histories;
use crate::backplane::redis::inbound::InboundHandler;
use crate::backplane::redis::names::Names;
use crate::backplane::redis::pipeline::{CommandConnection, CommandContext, ScriptOwner};
use crate::backplane::redis::presence::RedisPresence;
use crate::backplane::redis::publish::queue::PublishQueue;
use crate::backplane::redis::shared::{ServerAssignment, SharedContext};
use crate::ids::TopicName;
use crate::link::Publish;
use crate::metrics::BackplaneCounters;
use crate::metrics::servers::{OwnNumbers, ServerNumbers};
use hashbrown::HashSet;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::time::{Sleep, sleep};

/// Messages taken in one turn.
const PUSHES_PER_TURN: usize = 4096;
/// Topics whose members are notified of an outage in one turn.
const NOTIFIED_PER_TURN: usize = 1024;
/// How long commands in flight may take before the server is left for its successor.
pub(super) const SWITCH_GRACE: Duration = Duration::from_millis(300);

/// A server's connections, queues and histories. Owned by
/// [`crate::backplane::redis::RedisTransport`].
pub(super) struct Server {
    /// Its name in the map: an address, or a master's name for sentinels.
    pub name: String,
    assignment: ServerAssignment,
    /// `host:port`; `None`: not known yet.
    address: Option<String>,
    /// The address to switch to, and since when it is known.
    successor: Option<(String, Instant)>,
    state: State,
    publishes: PublishQueue,
    histories: Histories,
    monitor: Monitor,
    backoff: Backoff,
    malformed_log: LogThrottle,
    refusal_log: LogThrottle,
    /// Canaries missed on earlier links.
    canaries_missed_before: u64,
    /// Links lost or given up.
    reconnects: u64,
    /// When a canary last came back, on any link.
    canary_back_at: Instant,
    is_up: bool,
    /// Some of its topics have been subscribed on no server for longer than the canary's timeout.
    is_unsubscribed: bool,
    /// Members have been told that a topic is subscribed here, or on the server that had it before:
    /// losses have to be reported.
    had_members: bool,
    /// Why it is up or down, for people.
    reason: String,
    /// Slab indices of topics whose members are still to be notified of an outage.
    to_notify: Range<u32>,
    /// Topics taken over from another server: when they are subscribed here, members are told that
    /// messages may be missing.
    moved: HashSet<TopicKey>,
    is_redirected: bool,
}

enum State {
    Pausing(Pin<Box<Sleep>>),
    Connecting(Pin<Box<dyn Future<Output = Result<ServerLink, String>>>>),
    Live(Box<LiveLink>),
}

/// A link and the state that belongs to it alone.
struct LiveLink {
    link: ServerLink,
    /// `link.cmd` for all senders of batches.
    cmd: CommandConnection,
    /// `link.replicated` for batches.
    replicated: Option<CommandConnection>,
    subscriptions: Subscriptions,
    /// `None` until everything is subscribed.
    canary: Option<Canary>,
    /// `None`: the server has no topics.
    canary_channel: Option<String>,
    /// Whether the channel for publishes of other services is subscribed, or about to be.
    hears_ingest: bool,
    since: Instant,
    /// When the server last answered while an answer was pending.
    replied_at: Instant,
}

impl Server {
    /// Not connected; the first [`Server::poll`] begins if the address is known. `inherits_topics`:
    /// its topics were on another server before.
    pub(super) fn new(
        shared: &SharedContext,
        name: String,
        address: Option<String>,
        inherits_topics: bool,
    ) -> Server {
        let assignment = ServerAssignment { number: 0, first: None, hears_ingest: false };
        Server {
            assignment,
            address,
            successor: None,
            state: State::Pausing(Box::pin(sleep(Duration::ZERO))),
            publishes: PublishQueue::new(&shared.limits, shared.namespaces.clone()),
            histories: Histories::new(shared.namespaces.clone(), &shared.limits),
            monitor: Monitor::new(&shared.plan),
            backoff: Backoff::new(
                Duration::from_millis(shared.plan.backoff_ms_max),
                shared.seed ^ (name.len() as u64) << 32,
            ),
            name,
            malformed_log: LogThrottle::default(),
            refusal_log: LogThrottle::default(),
            canaries_missed_before: 0,
            reconnects: 0,
            canary_back_at: Instant::now(),
            is_up: false,
            is_unsubscribed: false,
            had_members: inherits_topics,
            reason: "not connected yet".to_owned(),
            to_notify: 0..0,
            moved: HashSet::new(),
            is_redirected: false,
        }
    }

    /// Whether messages flow.
    pub(super) fn is_up(&self) -> bool {
        self.is_up
    }

    /// Whether messages flow for all of its topics.
    pub(super) fn is_ready(&self) -> bool {
        self.is_up && !self.is_unsubscribed
    }

    /// Why it is ready or not, for people.
    pub(super) fn reason(&self) -> &str {
        if self.is_unsubscribed { "some of its topics are on no server" } else { &self.reason }
    }

    /// The connection for all commands but subscriptions, while messages flow.
    pub(super) fn cmd(&self) -> Option<&CommandConnection> {
        match &self.state {
            State::Live(live) if self.is_up => Some(&live.cmd),
            _ => None,
        }
    }

    /// The queue of publishes.
    pub(super) fn publishes(&mut self) -> &mut PublishQueue {
        &mut self.publishes
    }

    /// The histories on this server.
    pub(super) fn histories(&mut self) -> &mut Histories {
        &mut self.histories
    }

    /// Whether it takes more publishes.
    pub(super) fn has_room(&self) -> bool {
        !self.is_up || self.publishes.has_room()
    }

    /// Whether every publish has ended.
    pub(super) fn is_idle(&self) -> bool {
        self.publishes.is_idle()
    }

    /// Whether no command of a topic is in flight.
    pub(super) fn has_none_in_flight(&self) -> bool {
        self.publishes.has_none_in_flight() && self.histories.has_none_in_flight()
    }

    /// Stops or resumes sending commands of topics.
    pub(super) fn set_paused(&mut self, is_paused: bool) {
        self.publishes.set_paused(is_paused);
        self.histories.set_paused(is_paused);
    }

    /// Whether the server has redirected a topic (MOVED, ASK) since the last call.
    pub(super) fn take_redirected(&mut self) -> bool {
        let error_text = [self.publishes.take_redirected(), self.histories.take_redirected()];
        std::mem::take(&mut self.is_redirected) | error_text.contains(&true)
    }

    /// Sets its address. If it was elsewhere, that server is left when nothing is in flight any
    /// more.
    pub(super) fn move_to(&mut self, address: String, now: Instant) {
        if self.address.as_ref() == Some(&address) {
            self.successor = None;
            return self.set_paused(false);
        }
        match &self.state {
            State::Live(_) => {
                self.set_paused(true);
                self.successor = Some((address, now));
            }
            State::Pausing(_) | State::Connecting(_) => {
                self.address = Some(address);
                self.backoff.reset();
                self.state = State::Pausing(Box::pin(sleep(Duration::ZERO)));
            }
        }
    }

    /// The map has changed: servers may have other numbers and partitions.
    pub(super) fn set_assignment(&mut self, assignment: ServerAssignment, names: &Names) {
        self.assignment = assignment;
        let State::Live(live) = &mut self.state else { return };
        live.subscriptions.set_server(assignment.number);
        let channel = assignment.first.map(|partition| names.canary(partition));
        if live.canary_channel != channel {
            live.canary_channel
                .take()
                .into_iter()
                .for_each(|old| live.subscriptions.remove_fixed(old));
            channel.iter().for_each(|new| live.subscriptions.add_fixed(new.clone()));
            live.canary_channel = channel;
            // The next one counts from zero on the new channel.
            self.canaries_missed_before += live.canary.take().map_or(0, |canary| canary.missed);
        }
        if live.hears_ingest != assignment.hears_ingest {
            live.hears_ingest = assignment.hears_ingest;
            match assignment.hears_ingest {
                true => live.subscriptions.add_fixed(names.ingest.clone()),
                false => live.subscriptions.remove_fixed(names.ingest.clone()),
            }
        }
    }

    /// Takes over a topic that another server had.
    pub(super) fn take_over(&mut self, key: TopicKey, topic: &TopicName) {
        self.had_members = true;
        if let State::Live(live) = &mut self.state {
            live.subscriptions.add(key, topic);
            self.moved.insert(key);
        }
    }

    /// Subscribes a topic. Without a link nothing is sent: the next link subscribes everything
    /// wanted.
    pub(super) fn subscribe(&mut self, key: TopicKey, topic: &TopicName) {
        if let State::Live(live) = &mut self.state {
            live.subscriptions.add(key, topic);
        }
    }

    /// Unsubscribes a topic.
    pub(super) fn unsubscribe(&mut self, topic: TopicName) {
        self.histories.leave(&topic);
        if let State::Live(live) = &mut self.state {
            live.subscriptions.remove(topic);
        }
    }

    /// Queues a publish.
    pub(super) fn publish(&mut self, publish: Publish, now: Instant, local: &mut Local) {
        self.publishes.push(publish, self.is_up, now, local);
    }

    fn connect(&self, shared: &SharedContext) -> Option<State> {
        let address = self.address.as_ref()?;
        let plan = &shared.plan;
        let needs = LinkOptions {
            history: self.histories.is_enabled(),
            replicas: shared.namespaces.want_replicas(),
            replies: ReplyLimits::of(&shared.limits, shared.namespaces.history_size_max()),
        };
        Some(State::Connecting(Box::pin(connection::connect(
            plan.servers.login.url(address),
            plan.tls_ca_file.clone(),
            shared.names.clone(),
            Duration::from_millis(plan.timeout_ms),
            needs,
        ))))
    }

    fn go_live(&mut self, link: ServerLink, names: &Names, now: Instant, local: &Local) {
        let ServerAssignment { number, first, hears_ingest } = self.assignment;
        let canary_channel = first.map(|partition| names.canary(partition));
        let ingest = hears_ingest.then(|| names.ingest.clone());
        let fixed = canary_channel.iter().cloned().chain(ingest).collect();
        let is_skipped = cfg!(feature = "break-resubscribe") && self.had_members;
        let places = if is_skipped { 0 } else { local.interest.slots_end() };
        let subscriptions = Subscriptions::new(number, fixed, places);
        let (canary, since, replied_at) = (None, now, now);
        // A link for histories begins with their scripts.
        let loaded: &[_] = if self.histories.is_enabled() { &[ScriptOwner::History] } else { &[] };
        let cmd = CommandConnection::new(link.cmd.clone(), loaded);
        let replicated = link.replicated.clone().map(|it| CommandConnection::new(it, loaded));
        self.state = State::Live(Box::new(LiveLink {
            link,
            cmd,
            replicated,
            subscriptions,
            canary,
            canary_channel,
            hears_ingest,
            since,
            replied_at,
        }));
    }

    fn pause(&mut self) {
        self.state = State::Pausing(Box::pin(sleep(self.backoff.next())));
    }

    /// The only way down, whatever failed.
    pub(super) fn go_down(&mut self, reason: &str, now: Instant, local: &mut Local) {
        if let State::Live(live) = &self.state {
            // Joins are answered before the first canary is back.
            self.had_members |= local.interest.confirmed_by(self.assignment.number) > 0;
            self.canaries_missed_before += live.canary.as_ref().map_or(0, |canary| canary.missed);
            local.counters.reconnects += 1;
            self.reconnects += 1;
        }
        self.on_refused(reason, now);
        self.pause(); // drops all connections
        if let Some((address, _)) = self.successor.take() {
            self.address = Some(address);
            self.backoff.reset();
            self.state = State::Pausing(Box::pin(sleep(Duration::ZERO)));
            self.set_paused(false);
        }
        (self.is_up, self.is_unsubscribed) = (false, false);
        self.is_redirected = true;
        self.moved.clear();
        local.interest.lose_link(self.assignment.number);
        self.monitor.lose_link();
        self.publishes.lose_link(now, local);
        self.histories.lose_link(local);
    }

    fn on_refused(&mut self, reason: &str, now: Instant) {
        reason.clone_into(&mut self.reason);
        if self.is_up {
            tracing::info!(server = self.display_name(), reason, "Redis server down");
        } else if let Some(suppressed) = self.refusal_log.is_due(now) {
            tracing::warn!(
                server = self.display_name(),
                reason,
                suppressed,
                "cannot connect to Redis"
            );
        }
    }

    /// Its address, or else its name, for people.
    pub(super) fn display_name(&self) -> &str {
        display_name(self.address.as_deref(), &self.name)
    }

    /// Whether it is known to be at another address.
    pub(super) fn is_elsewhere(&self, address: &str) -> bool {
        let successor = self.successor.as_ref().map(|(successor, _)| successor);
        successor.or(self.address.as_ref()).is_some_and(|known| known != address)
    }

    /// Makes progress. Returns whether there was work.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        shared: &SharedContext,
        presence: &mut RedisPresence,
        local: &mut Local,
    ) -> bool {
        self.publishes.expire(now, local);
        self.histories.expire(now, local);
        match &mut self.state {
            State::Pausing(pause) => {
                if pause.as_mut().poll(cx).is_pending() {
                    return false;
                }
                match self.connect(shared) {
                    Some(connecting) => self.state = connecting,
                    None => {
                        self.on_refused("its address is not known yet", now);
                        self.pause();
                    }
                }
            }
            State::Connecting(connecting) => match connecting.as_mut().poll(cx) {
                Poll::Pending => return false,
                Poll::Ready(Ok(link)) => self.go_live(link, &shared.names, now, local),
                Poll::Ready(Err(reason)) => {
                    self.is_redirected = true;
                    self.on_refused(&reason, now);
                    self.pause();
                }
            },
            State::Live(_) => match self.poll_live(cx, now, shared, presence, local) {
                Ok(is_busy) => return is_busy,
                Err(reason) => self.go_down(&reason, now, local),
            },
        }
        true
    }

    /// Makes progress on the link. `Err`: the link has to be given up.
    fn poll_live(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        shared: &SharedContext,
        presence: &mut RedisPresence,
        local: &mut Local,
    ) -> Result<bool, String> {
        let error_text = |error: redis::RedisError| error.to_string();
        self.finish_switch(now)?;
        let mut is_busy = self.poll_sub(cx, now, shared, presence, local)?;
        self.poll_canary(cx, now, shared, local)?;
        let State::Live(live) = &mut self.state else { return Ok(is_busy) };
        let timeout = Duration::from_millis(shared.plan.canary_timeout_ms);
        let unsubscribed_since = live.subscriptions.unsubscribed_since();
        self.is_unsubscribed =
            unsubscribed_since.is_some_and(|since| now.duration_since(since) > timeout);
        let LiveLink { link: ServerLink { generation, .. }, cmd, replicated, .. } = &**live;
        let (names, publish) = (&shared.names, shared.names.publish());
        let context =
            CommandContext { cmd, replicated: replicated.as_ref(), names, generation, publish };
        is_busy |= self.histories.poll(cx, now, &context, local).map_err(error_text)?;
        if self.is_up {
            self.publishes.unconfirmed().forget_before(self.canary_back_at);
            is_busy |= self.publishes.poll(cx, now, &context, local).map_err(error_text)?;
            let server = display_name(self.address.as_deref(), &self.name);
            self.monitor.poll(cx, now, &live.link, server);
        }
        is_busy |= self.notify_outage(local);
        Ok(is_busy)
    }

    /// `Err` when the server is to be left for its successor: nothing is in flight, or the grace is
    /// over.
    fn finish_switch(&self, now: Instant) -> Result<(), String> {
        match &self.successor {
            Some((address, since))
                if self.has_none_in_flight() || now.duration_since(*since) >= SWITCH_GRACE =>
            {
                Err(format!("the master is at {address} now"))
            }
            _ => Ok(()),
        }
    }

    /// Sends subscriptions and handles what arrives on the subscriber connection.
    fn poll_sub(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        shared: &SharedContext,
        presence: &mut RedisPresence,
        local: &mut Local,
    ) -> Result<bool, String> {
        let State::Live(live) = &mut self.state else { return Ok(false) };
        let LiveLink { link, subscriptions, canary, canary_channel, replied_at, .. } = &mut **live;
        if !subscriptions.is_waiting() {
            *replied_at = now;
        }
        let oldest = subscriptions.oldest();
        let mut is_busy = subscriptions.poll(now, &mut link.sub, &shared.names, &local.interest);
        let mut handler = InboundHandler {
            now,
            server: self.assignment.number,
            shared,
            subscriptions,
            canary: canary.as_mut(),
            canary_channel: canary_channel.as_deref(),
            histories: &mut self.histories,
            presence,
            local,
            malformed: &mut self.malformed_log,
            moved: &mut self.moved,
            canary_back_at: &mut self.canary_back_at,
            is_redirected: &mut self.is_redirected,
            failure: None,
        };
        let has_received =
            link.sub.poll(cx, PUSHES_PER_TURN, |event| handler.handle_event(event))?;
        if let Some(failure) = handler.failure {
            return Err(failure);
        }
        // During a resubscription a reply may stand behind megabytes of messages. Later the canary
        // would, too: messages alone do not prove that the server reads from us.
        if has_received && (!self.is_up || subscriptions.oldest() != oldest) {
            *replied_at = now;
        }
        is_busy |= has_received;
        let timeout = shared.plan.timeout_ms.max(shared.plan.canary_timeout_ms);
        if now.duration_since(*replied_at) > Duration::from_millis(timeout) {
            return Err("the server does not answer on the subscribing connection".to_owned());
        }
        Ok(is_busy)
    }

    /// Sends canaries once everything is subscribed; the server is up when the first one comes
    /// back. One without topics has nothing to prove.
    fn poll_canary(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        shared: &SharedContext,
        local: &mut Local,
    ) -> Result<(), String> {
        let fresh = Canary::new(
            Duration::from_millis(shared.plan.canary_interval_ms),
            Duration::from_millis(shared.plan.canary_timeout_ms),
            now,
        );
        let State::Live(live) = &mut self.state else { return Ok(()) };
        if !live.subscriptions.is_complete() {
            return Ok(());
        }
        if let Some(channel) = &live.canary_channel {
            let canary = live.canary.get_or_insert(fresh);
            canary.poll(cx, now, &live.link.cmd, shared.names.publish(), channel)?;
            let is_redirected = canary.take_redirected();
            local.counters.redirects += u64::from(is_redirected);
            self.is_redirected |= is_redirected;
            if !canary.has_come_back() {
                return Ok(());
            }
        }
        if !self.is_up {
            let since = live.since;
            self.go_up(since, now, local);
        }
        Ok(())
    }

    fn go_up(&mut self, since: Instant, now: Instant, local: &mut Local) {
        self.is_up = true;
        self.backoff.reset();
        let topics = local.interest.confirmed_by(self.assignment.number);
        let took_ms = now.duration_since(since).as_millis() as u64;
        tracing::info!(
            server = self.display_name(),
            topics,
            took_ms,
            "Redis server up, all topics subscribed"
        );
        self.reason = "the canary came back".to_owned();
        if std::mem::replace(&mut self.had_members, true) {
            self.to_notify = 0..local.interest.slots_end();
        }
    }

    /// Reports the outage to members of topics without a history: what other nodes published
    /// meanwhile is gone. A part of the topics at a time, and none while shards have full channels.
    fn notify_outage(&mut self, local: &mut Local) -> bool {
        if self.to_notify.is_empty() || local.is_waiting() {
            return false;
        }
        // Publishes of other services go to any topic; if there ever were any, some may be missing.
        let hears_others = self.assignment.hears_ingest && local.counters.publishes_ingested > 0;
        for index in self.to_notify.by_ref().take(NOTIFIED_PER_TURN) {
            let Some((_, topic)) = local.interest.name_at(index) else { continue };
            let is_here =
                hears_others || local.interest.server_of(topic.as_str()) == self.assignment.number;
            if is_here && !self.histories.policy(topic).has_history() {
                let topic = topic.clone();
                local.notify_lost(&topic, 0);
            }
        }
        true
    }

    /// Adds its gauges to those of the other servers.
    pub(super) fn measure(&self, now: Instant, counters: &mut BackplaneCounters) {
        counters.publish_queue_bytes += self.publishes.waiting_bytes() as u64;
        counters.histories += self.histories.topics() as u64;
        counters.histories_bytes += self.histories.bytes() as u64;
        counters.history_reads_waiting += self.histories.to_read() as u64;
        counters.history_requests_waiting += self.histories.waiting() as u64;
        counters.in_flight += self.publishes.in_flight() as u64;
        let age_ms = now.duration_since(self.canary_back_at).as_millis() as u64;
        counters.canary_age_ms = counters.canary_age_ms.max(age_ms);
        let rtt_us = self.canary().map_or(0, |canary| canary.rtt.as_micros() as u64);
        counters.canary_rtt_us = counters.canary_rtt_us.max(rtt_us);
    }

    /// Its totals since it was created.
    pub(super) fn totals(&self) -> ServerTotals {
        let state = self.histories.numbers;
        ServerTotals {
            history_reads: state.reads,
            recoveries_waited: state.waited,
            holes_repaired: state.repaired,
            holes_lost: state.lost,
            canaries_missed: self.canaries_missed(),
        }
    }

    /// Its state for the snapshot. `subscriptions`: topics confirmed on it.
    pub(super) fn state(&self, subscriptions: usize) -> ServerNumbers {
        let has_topics = self.assignment.first.is_some();
        ServerNumbers {
            server: self.display_name().to_owned(),
            name: (self.address.as_ref() != Some(&self.name)).then(|| self.name.clone()),
            reason: self.reason().to_owned(),
            counted: OwnNumbers {
                up: Some(u64::from(self.is_ready())),
                subscriptions: Some(subscriptions as u64),
                publish_queue_bytes: Some(self.publishes.waiting_bytes() as u64),
                in_flight: Some(self.publishes.in_flight() as u64),
                canary_rtt_us: self
                    .canary()
                    .filter(|canary| canary.has_come_back())
                    .map(|canary| canary.rtt.as_micros() as u64),
                canary_age_ms: None, // the reader computes it
                canaries_missed: Some(self.canaries_missed()),
                reconnects: Some(self.reconnects),
            },
            canary_back_at: has_topics.then_some(self.canary_back_at),
            reported: self.monitor.numbers().clone(),
        }
    }

    fn canary(&self) -> Option<&Canary> {
        match &self.state {
            State::Live(live) => live.canary.as_ref(),
            State::Pausing(_) | State::Connecting(_) => None,
        }
    }

    fn canaries_missed(&self) -> u64 {
        self.canaries_missed_before + self.canary().map_or(0, |canary| canary.missed)
    }
}

fn display_name<'a>(address: Option<&'a str>, name: &'a str) -> &'a str {
    address.unwrap_or(name)
}
