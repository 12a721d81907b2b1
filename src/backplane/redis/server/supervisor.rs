//! Carries out what the life of a server decides: timers, attempts, the link, and what they lead to
//! for publishes, histories and members.
//!
//! Invariant: [`Server::invariants`].

use crate::backplane::interest::TopicKey;
use crate::backplane::local::Local;
use crate::backplane::log_throttle::LogThrottle;
use crate::backplane::redis::backoff::Backoff;
use crate::backplane::redis::broadcasts::check::{Broadcasts, CheckContext};
use crate::backplane::redis::connection::link::{self, LinkOptions, ServerLink};
use crate::backplane::redis::connection::reply_limits::ReplyLimits;
use crate::backplane::redis::failure::LinkError;
use crate::backplane::redis::health::canary::Canary;
use crate::backplane::redis::health::monitor::Monitor;
use crate::backplane::redis::history::Histories;
use crate::backplane::redis::inbound::InboundHandler;
use crate::backplane::redis::names::Names;
use crate::backplane::redis::pipeline::{CommandConnection, CommandContext, ScriptOwner};
use crate::backplane::redis::presence::RedisPresence;
use crate::backplane::redis::publish::queue::PublishQueue;
use crate::backplane::redis::scripts::RepairStage;
use crate::backplane::redis::server::life::{Action, Life, LifeEvent, Stage};
use crate::backplane::redis::server::live_link::{LiveLink, receive};
use crate::backplane::redis::server::outage_notice::OutageNotice;
use crate::backplane::redis::server::window_reports::ReportContext;
use crate::backplane::redis::shared::{ServerAssignment, SharedContext};
use hashbrown::HashSet;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::time::{Sleep, sleep};

/// Turns in which what has arrived on a lost link is taken. What is left by then is read again.
const DRAIN_TURNS_MAX: u32 = 64;

/// A server's connections, queues and histories. Owned by
/// [`crate::backplane::redis::RedisTransport`].
pub(in crate::backplane::redis) struct Server {
    /// Its name in the map: an address, or a master's name for sentinels.
    pub name: String,
    pub(super) life: Life,
    /// What the stage of its life needs.
    pub(super) task: Task,
    pub(super) assignment: ServerAssignment,
    pub(super) publishes: PublishQueue,
    pub(super) histories: Histories,
    pub(super) monitor: Monitor,
    malformed_log: LogThrottle,
    refusal_log: LogThrottle,
    /// Canaries missed on earlier links.
    pub(super) canaries_missed_before: u64,
    /// Links lost or given up.
    pub(super) reconnects: u64,
    /// When a canary last came back, on any link.
    pub(super) canary_back_at: Instant,
    outage: OutageNotice,
    /// Topics taken over from another server: when they are subscribed here, members are notified
    /// that messages may be missing.
    pub(super) moved: HashSet<TopicKey>,
    pub(super) is_redirected: bool,
}

/// What a stage needs: a timer, an attempt, or a link.
pub(super) enum Task {
    /// The end of the pause.
    Pausing(Pin<Box<Sleep>>),
    /// The attempt.
    Connecting(Pin<Box<dyn Future<Output = Result<ServerLink, LinkError>>>>),
    /// The link.
    Live(Box<LiveLink>),
}

/// What a turn of a server may use.
pub(in crate::backplane::redis) struct Turn<'a, 'b, 'c> {
    /// The waker of the loop.
    pub cx: &'a mut Context<'b>,
    /// The time of the turn.
    pub now: Instant,
    /// What is the same for all servers.
    pub shared: &'c SharedContext,
    /// Presence of all rooms.
    pub presence: &'a mut RedisPresence,
    /// Messages to everybody.
    pub broadcasts: &'a mut Broadcasts,
    /// This node's members.
    pub local: &'a mut Local,
}

impl Server {
    /// Not connected; the first [`Server::poll`] begins if the address is known. `inherits_topics`:
    /// its topics were on another server before.
    pub(in crate::backplane::redis) fn new(
        shared: &SharedContext,
        name: String,
        address: Option<String>,
        inherits_topics: bool,
    ) -> Server {
        let backoff = Backoff::new(
            Duration::from_millis(shared.plan.backoff_ms_max),
            shared.seed ^ (name.len() as u64) << 32,
        );
        Server {
            life: Life::new(address, inherits_topics, backoff),
            task: Task::Pausing(Box::pin(sleep(Duration::ZERO))),
            assignment: ServerAssignment::default(),
            publishes: PublishQueue::new(&shared.limits, shared.namespaces.clone()),
            histories: Histories::new(shared.namespaces.clone(), &shared.limits),
            monitor: Monitor::new(&shared.plan),
            name,
            malformed_log: LogThrottle::default(),
            refusal_log: LogThrottle::default(),
            canaries_missed_before: 0,
            reconnects: 0,
            canary_back_at: Instant::now(),
            outage: OutageNotice::default(),
            moved: HashSet::new(),
            is_redirected: false,
        }
    }

    /// Whether messages flow.
    pub(in crate::backplane::redis) fn is_up(&self) -> bool {
        self.life.is_up()
    }

    /// Whether messages flow for all of its topics.
    pub(in crate::backplane::redis) fn is_ready(&self) -> bool {
        self.life.stage() == Stage::Up
    }

    /// The connection for all commands but subscriptions, while messages flow.
    pub(in crate::backplane::redis) fn cmd(&self) -> Option<&CommandConnection> {
        match &self.task {
            Task::Live(live) if self.is_up() => Some(&live.cmd),
            _ => None,
        }
    }

    /// Sets its address. If it was elsewhere, that server is left when nothing is in flight any
    /// more.
    pub(in crate::backplane::redis) fn move_to(
        &mut self,
        address: String,
        now: Instant,
        local: &mut Local,
    ) {
        self.handle(LifeEvent::Named(address), now, local);
    }

    /// Whether it is known to be at another address.
    pub(in crate::backplane::redis) fn is_elsewhere(&self, address: &str) -> bool {
        self.life.is_elsewhere(address)
    }

    /// The link, or the attempt, is to be given up.
    pub(in crate::backplane::redis) fn fail(
        &mut self,
        error: LinkError,
        now: Instant,
        local: &mut Local,
    ) {
        self.handle(LifeEvent::Failed(error), now, local);
    }

    /// Its address, or else its name, for people.
    pub(in crate::backplane::redis) fn display_name(&self) -> &str {
        display_name(&self.life, &self.name)
    }

    /// Makes progress. Returns whether there was work.
    pub(in crate::backplane::redis) fn poll(&mut self, turn: &mut Turn<'_, '_, '_>) -> bool {
        let now = turn.now;
        self.publishes.expire(now, turn.local);
        self.histories.expire(now, turn.local);
        match &mut self.task {
            Task::Pausing(pause) => {
                if pause.as_mut().poll(turn.cx).is_pending() {
                    return false;
                }
                if self.handle(LifeEvent::PauseOver, now, turn.local) == Action::Connect {
                    self.task = self.connect(turn.shared, turn.presence.repairers());
                }
            }
            Task::Connecting(attempt) => match attempt.as_mut().poll(turn.cx) {
                Poll::Pending => return false,
                Poll::Ready(Ok(link)) => self.go_live(link, &turn.shared.names, now, turn.local),
                Poll::Ready(Err(error)) => {
                    self.is_redirected = true;
                    self.fail(error, now, turn.local);
                }
            },
            Task::Live(_) => match self.poll_live(turn) {
                Ok(is_busy) => return is_busy,
                Err(error) => {
                    self.drain(turn);
                    self.fail(error, now, turn.local);
                }
            },
        }
        debug_assert!(self.invariants());
        true
    }

    /// Whether it has what the stage of its life needs.
    fn invariants(&self) -> bool {
        let has_task = match self.life.stage() {
            Stage::Pausing => matches!(self.task, Task::Pausing(_)),
            Stage::Connecting => matches!(self.task, Task::Connecting(_)),
            _ => matches!(self.task, Task::Live(_)),
        };
        has_task && self.life.invariants() == Ok(())
    }

    /// Takes an event and does what follows, except what needs more than is at hand here: to open
    /// the connections, and to subscribe.
    fn handle(&mut self, event: LifeEvent, now: Instant, local: &mut Local) -> Action {
        let was_up = self.life.is_up();
        let failed = self.life.failure().cloned();
        if let (LifeEvent::Failed(_) | LifeEvent::Drained, Task::Live(_)) = (&event, &self.task)
            && local.interest.confirmed_by(self.assignment.number) > 0
        {
            // Joins are answered before the first canary is back.
            self.life.note_members();
        }
        let may_fail = !matches!(event, LifeEvent::Named(_));
        let action = self.life.handle(event, now);
        let has_failed = matches!(action, Action::Pause(_) | Action::GiveUp(_));
        if may_fail && (has_failed || self.life.failure() != failed.as_ref()) {
            self.report_failure(was_up, now, local);
        }
        match &action {
            Action::Nothing | Action::Connect | Action::Subscribe => {}
            Action::Pause(pause) => {
                self.task = Task::Pausing(Box::pin(sleep(*pause)));
                self.is_redirected = true;
            }
            Action::GiveUp(pause) => self.give_up(*pause, now, local),
            Action::GoUp { notify } => self.go_up(*notify, now, local),
            Action::Hold => self.set_paused(true),
            Action::Resume => self.set_paused(false),
        }
        action
    }

    fn report_failure(&mut self, was_up: bool, now: Instant, local: &mut Local) {
        let Some(error) = self.life.failure() else { return };
        error.reason().count(&mut local.counters);
        let (server, reason) = (display_name(&self.life, &self.name), error.reason().name());
        if was_up {
            tracing::info!(server, reason, detail = %error, "Redis server down");
        } else if let Some(suppressed) = self.refusal_log.is_due(now) {
            let what = "cannot connect to Redis";
            tracing::warn!(server, reason, detail = %error, suppressed, "{what}");
        }
    }

    /// `others`: the other nodes that lived when that was last known.
    fn connect(&self, shared: &SharedContext, others: String) -> Task {
        let address = self.life.address().expect("only a known address is connected to");
        let plan = &shared.plan;
        let options = LinkOptions {
            features: shared.features.clone(),
            partition: self.assignment.first.unwrap_or_default(),
            owns: self.assignment.owns,
            others,
            replies: ReplyLimits::of(&shared.limits, shared.namespaces.history_size_max()),
        };
        Task::Connecting(Box::pin(link::connect(
            plan.servers.login.url(address),
            plan.tls_ca_file.clone(),
            shared.names.clone(),
            Duration::from_millis(plan.timeout_ms),
            options,
        )))
    }

    fn go_live(&mut self, link: ServerLink, names: &Names, now: Instant, local: &mut Local) {
        self.handle(LifeEvent::Linked, now, local);
        let is_skipped = cfg!(feature = "break-resubscribe") && self.life.has_had_members();
        let places = if is_skipped { 0 } else { local.interest.slots_end() };
        // A link for histories begins with their scripts.
        let loaded: &[_] = if self.histories.is_enabled() { &[ScriptOwner::History] } else { &[] };
        let live = LiveLink::new(link, loaded, self.assignment, names, places, now);
        self.task = Task::Live(Box::new(live));
    }

    /// Drops all connections.
    fn give_up(&mut self, pause: Duration, now: Instant, local: &mut Local) {
        if let Task::Live(live) = &self.task {
            self.canaries_missed_before += live.canary.as_ref().map_or(0, |canary| canary.missed);
        }
        local.counters.reconnects += 1;
        self.reconnects += 1;
        self.task = Task::Pausing(Box::pin(sleep(pause)));
        if pause.is_zero() {
            self.set_paused(false); // it goes on at its successor
        }
        self.is_redirected = true;
        self.moved.clear();
        local.interest.lose_link(self.assignment.number);
        self.monitor.lose_link();
        self.publishes.lose_link(now, local);
        self.histories.lose_link(local);
    }

    fn go_up(&mut self, notify: bool, now: Instant, local: &mut Local) {
        let Task::Live(live) = &self.task else { return };
        let topics = local.interest.confirmed_by(self.assignment.number);
        let took_ms = now.duration_since(live.since).as_millis() as u64;
        let server = self.display_name();
        tracing::info!(server, topics, took_ms, "Redis server up, all topics subscribed");
        if notify {
            self.outage.begin(local);
        }
    }

    /// Makes progress on the link. `Err`: the link has to be given up.
    fn poll_live(&mut self, turn: &mut Turn<'_, '_, '_>) -> Result<bool, LinkError> {
        let now = turn.now;
        if self.life.is_leaving() && (self.has_none_in_flight() || self.life.is_switch_late(now)) {
            self.handle(LifeEvent::Drained, now, turn.local);
            return Ok(true);
        }
        let mut is_busy = self.poll_sub(turn)?;
        self.poll_stage(turn)?;
        is_busy |= self.poll_commands(turn)?;
        is_busy |= self.poll_reports(turn);
        // Publishes of other services go to any topic; if there were any, some may be missing.
        let has_other_publishers =
            self.assignment.takes_ingest && turn.local.counters.publishes_ingested > 0;
        let server = (!has_other_publishers).then_some(self.assignment.number);
        Ok(is_busy | self.outage.poll(server, &turn.shared.namespaces, turn.local))
    }

    /// Takes what the server had sent before the link was lost: a message that it sent to nobody else
    /// is put back from here, and what it has acknowledged is known.
    fn drain(&mut self, turn: &mut Turn<'_, '_, '_>) {
        let mut turns = 0;
        while turns < DRAIN_TURNS_MAX && self.poll_sub(turn) == Ok(true) {
            turns += 1;
        }
        let (now, names) = (turn.now, &turn.shared.names);
        let Task::Live(live) = &mut self.task else { return };
        let LiveLink { link, cmd, replicated, .. } = &**live;
        let (generation, replicated) = (&link.generation[..], replicated.as_ref());
        let (publish, version) = (names.publish(), turn.presence.version());
        let context = CommandContext { cmd, replicated, names, generation, publish, version };
        self.publishes.drain(turn.cx, now, &context, turn.local);
    }

    /// Sends subscriptions and handles what arrives on the subscriber connection.
    fn poll_sub(&mut self, turn: &mut Turn<'_, '_, '_>) -> Result<bool, LinkError> {
        let (now, is_up) = (turn.now, self.life.is_up());
        let Task::Live(live) = &mut self.task else { return Ok(false) };
        let (is_busy, oldest) = live.send_subscriptions(now, turn.shared, turn.local);
        let LiveLink { link, subscriptions, canary, canary_channel, .. } = &mut **live;
        let user = link.user.clone();
        let handler = InboundHandler {
            now,
            user: &user,
            server: self.assignment.number,
            shared: turn.shared,
            subscriptions,
            canary: canary.as_mut(),
            canary_channel: canary_channel.as_deref(),
            histories: &mut self.histories,
            presence: turn.presence,
            broadcasts: turn.broadcasts,
            local: turn.local,
            malformed: &mut self.malformed_log,
            moved: &mut self.moved,
            canary_back_at: &mut self.canary_back_at,
            is_redirected: &mut self.is_redirected,
            failure: None,
        };
        let has_received = receive(link, turn.cx, handler)?;
        live.check_answers(has_received, oldest, is_up, now, turn.shared)?;
        Ok(is_busy | has_received)
    }

    /// Reports what of the link's stages is reached.
    fn poll_stage(&mut self, turn: &mut Turn<'_, '_, '_>) -> Result<(), LinkError> {
        let now = turn.now;
        let timeout = Duration::from_millis(turn.shared.plan.canary_timeout_ms);
        let Task::Live(live) = &mut self.task else { return Ok(()) };
        let is_complete = live.subscriptions.is_complete();
        let is_proved = is_complete && live.poll_canary(turn.cx, now, turn.shared)?;
        if let Some(canary) = &mut live.canary {
            let is_redirected = canary.take_redirected();
            turn.local.counters.redirects += u64::from(is_redirected);
            self.is_redirected |= is_redirected;
        }
        let is_incomplete = live.is_incomplete(now, timeout);
        if self.life.stage() == Stage::Subscribing && is_complete {
            self.handle(LifeEvent::Subscribed, now, turn.local);
        }
        if self.life.stage() == Stage::Proving && is_proved {
            self.handle(LifeEvent::Proved, now, turn.local);
        }
        match (self.life.stage(), is_incomplete) {
            (Stage::Up, true) => self.handle(LifeEvent::Incomplete, now, turn.local),
            (Stage::Partial, false) => self.handle(LifeEvent::Complete, now, turn.local),
            _ => Action::Nothing,
        };
        Ok(())
    }

    /// Sends commands of topics and handles their replies.
    fn poll_commands(&mut self, turn: &mut Turn<'_, '_, '_>) -> Result<bool, LinkError> {
        let (now, names) = (turn.now, &turn.shared.names);
        let Task::Live(live) = &mut self.task else { return Ok(false) };
        let LiveLink { link, cmd, replicated, .. } = &**live;
        let ServerLink { generation, user, .. } = link;
        let (replicated, publish) = (replicated.as_ref(), names.publish());
        let version = turn.presence.version();
        let context = CommandContext { cmd, replicated, names, generation, publish, version };
        let failure = |error: redis::RedisError| user.failure(&error);
        let mut is_busy =
            self.histories.poll(turn.cx, now, &context, turn.local).map_err(failure)?;
        if self.assignment.has_broadcasts {
            let proved_at = live.canary.as_ref().and_then(Canary::proved_at);
            let sent = self.publishes.take_sent_broadcasts();
            let context = CheckContext { cmd: &link.cmd, names, proved_at, sent };
            is_busy |= turn.broadcasts.poll(turn.cx, now, &context, turn.local);
        }
        if self.life.is_up() {
            self.publishes.unconfirmed().forget_before(self.canary_back_at, generation);
            is_busy |= self.publishes.poll(turn.cx, now, &context, turn.local).map_err(failure)?;
            self.monitor.poll(turn.cx, now, &live.link, display_name(&self.life, &self.name));
            if self.publishes.take_wrong_generation()
                && let Some(canary) = &mut live.canary
            {
                canary.hurry();
            }
        }
        Ok(is_busy)
    }

    /// Reports how far this node is with what it has to put back.
    fn poll_reports(&mut self, turn: &mut Turn<'_, '_, '_>) -> bool {
        let Task::Live(live) = &mut self.task else { return false };
        if live.reports.are_over() {
            return false;
        }
        let generation = &live.link.generation[..];
        let has_followed = !self.histories.owes_repairs();
        let reached = match self.publishes.unconfirmed().stage(generation) {
            stage if has_followed => stage,
            _ => RepairStage::Linked,
        };
        let others = turn.presence.repairers();
        let (cmd, names) = (&live.link.cmd, &turn.shared.names);
        let context = ReportContext { cmd, names, generation, others: &others };
        let is_busy = live.reports.poll(turn.cx, turn.now, reached, &context);
        if live.reports.take_wrong_generation()
            && let Some(canary) = &mut live.canary
        {
            canary.hurry();
        }
        is_busy
    }
}

pub(super) fn display_name<'a>(life: &'a Life, name: &'a str) -> &'a str {
    life.address().unwrap_or(name)
}
