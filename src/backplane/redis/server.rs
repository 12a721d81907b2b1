//! One Redis server with its share of the topics.
//!
//! Its life is a circle: pause → connect → resubscribe → the canary comes back → up → something
//! fails → down → pause. There is one way down ([`Server::go_down`]), whatever failed: all
//! connections are dropped, and nothing is repaired in place. The redis crate's own reconnecting
//! wrappers are not used, because they give up or lose subscriptions without a word.
//!
//! After an outage, messages that other nodes published meanwhile may be missed. Topics with a
//! history get them back ([`crate::backplane::redis::history`]); everybody in the others hears `lost`.
//!
//! Where it is, and which topics it has, is decided by others ([`crate::backplane::redis::topology`]); it only says
//! when the server denies it ([`Server::take_astray`]).
//!
//! Invariant: up means that everything wanted is subscribed on this link and that a message went
//! through its connections within the canary's timeout.

use crate::backplane::interest::TopicKey;
use crate::backplane::local::Local;
use crate::backplane::log_throttle::LogThrottle;
use crate::backplane::redis::connection::subscriptions::Subscriptions;
use crate::backplane::redis::connection::{self, Link, Needs, Way};
use crate::backplane::redis::health::canary::Canary;
use crate::backplane::redis::health::monitor::Monitor;
use crate::backplane::redis::health::snapshot::Sums;
use crate::backplane::redis::history::Histories;
use crate::backplane::redis::inbound::Ear;
use crate::backplane::redis::names::Names;
use crate::backplane::redis::presence::Presences;
use crate::backplane::redis::publish::queue::Outgoing;
use crate::ids::TopicName;
use crate::link::Publish;
use crate::metrics::BackplaneCounters;
use crate::metrics::servers::{OwnNumbers, ServerNumbers};
use crate::plan::RedisPlan;
use crate::policy::limits::Limits;
use crate::policy::namespaces::Namespaces;
use hashbrown::HashSet;
use redis::aio::MultiplexedConnection;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::time::{Sleep, sleep};

/// Messages taken in one turn.
const PUSHES_PER_TURN: usize = 4096;
/// Topics whose members are told of an outage in one turn.
const TOLD_PER_TURN: usize = 1024;
/// The first pause between two attempts to connect; each one is twice as long as the last.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
/// How long what is under way may take when the server is about to be left for another one.
pub const PARTING: Duration = Duration::from_millis(300);

/// What holds for all servers.
pub struct Common {
    /// How to deal with them.
    pub plan: RedisPlan,
    /// Every limit.
    pub limits: Limits,
    /// What channels and keys are called.
    pub names: Names,
    /// What holds for which rooms.
    pub namespaces: Arc<Namespaces>,
    /// What seeds the pauses between attempts, so that nodes spread.
    pub seed: u64,
}

/// A server's place among all.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Its number.
    pub number: usize,
    /// The first partition that it has; `None`: it has none.
    pub first: Option<u16>,
    /// Whether what other services publish is heard from here.
    pub hears_ingest: bool,
}

/// See the module.
pub struct Server {
    /// What it is called in the map.
    pub name: String,
    place: Place,
    /// Where it is; `None`: nobody knows yet.
    address: Option<String>,
    /// Where it is instead, and since when that is known.
    successor: Option<(String, Instant)>,
    state: State,
    outgoing: Outgoing,
    histories: Histories,
    monitor: Monitor,
    backoff: Backoff,
    malformed: LogThrottle,
    refused: LogThrottle,
    /// Canaries missed on earlier links.
    missed: u64,
    /// Links that were lost or given up.
    reconnects: u64,
    /// When one last came back, on whichever link.
    canary_back_at: Instant,
    is_up: bool,
    /// It should have topics that it does not have, and neither has any other, for too long.
    is_deaf: bool,
    /// Somebody was told that a topic is heard from here, or from who had it before: what is missed
    /// has to be told.
    is_relied_on: bool,
    /// Why it is not up, or is.
    reason: String,
    /// Places of topics whose members have not been told yet that something may be missing.
    untold: Range<u32>,
    /// Topics that were on another server a moment ago: when they are subscribed here, their members
    /// hear that something may be missing.
    moved: HashSet<TopicKey>,
    is_astray: bool,
}

enum State {
    Pausing(Pin<Box<Sleep>>),
    Connecting(Pin<Box<dyn Future<Output = Result<Link, String>>>>),
    Live(Box<Live>),
}

/// A link and what belongs to it alone.
struct Live {
    link: Link,
    subscriptions: Subscriptions,
    /// Flies as soon as everything is subscribed.
    canary: Option<Canary>,
    /// Where it flies; `None`: the server has no topics.
    canary_channel: Option<String>,
    /// Channels of ours that are no topics and are subscribed, or about to be.
    hears_ingest: bool,
    since: Instant,
    /// When the server last answered while it was asked something.
    heard_at: Instant,
}

impl Server {
    /// Not connected yet; the first [`Server::poll`] begins, if it is known where it is. `is_heir`:
    /// its topics were on another server before.
    pub fn new(common: &Common, name: String, address: Option<String>, is_heir: bool) -> Server {
        let place = Place { number: 0, first: None, hears_ingest: false };
        Server {
            place,
            address,
            successor: None,
            state: State::Pausing(Box::pin(sleep(Duration::ZERO))),
            outgoing: Outgoing::new(&common.limits, common.namespaces.clone()),
            histories: Histories::new(common.namespaces.clone(), &common.limits),
            monitor: Monitor::new(&common.plan),
            backoff: Backoff::new(
                Duration::from_millis(common.plan.backoff_ms_max),
                common.seed ^ (name.len() as u64) << 32,
            ),
            name,
            malformed: LogThrottle::default(),
            refused: LogThrottle::default(),
            missed: 0,
            reconnects: 0,
            canary_back_at: Instant::now(),
            is_up: false,
            is_deaf: false,
            is_relied_on: is_heir,
            reason: "not connected yet".to_owned(),
            untold: 0..0,
            moved: HashSet::new(),
            is_astray: false,
        }
    }

    /// Whether messages flow.
    pub fn is_up(&self) -> bool {
        self.is_up
    }

    /// Whether they flow for each of its topics.
    pub fn is_whole(&self) -> bool {
        self.is_up && !self.is_deaf
    }

    /// Why, or why not.
    pub fn reason(&self) -> &str {
        if self.is_deaf { "some of its topics are on no server" } else { &self.reason }
    }

    /// The connection for everything but subscriptions, while messages flow.
    pub fn cmd(&self) -> Option<&MultiplexedConnection> {
        match &self.state {
            State::Live(live) if self.is_up => Some(&live.link.cmd),
            _ => None,
        }
    }

    /// What waits to be sent, and is under way.
    pub fn outgoing(&mut self) -> &mut Outgoing {
        &mut self.outgoing
    }

    /// The histories that it keeps.
    pub fn histories(&mut self) -> &mut Histories {
        &mut self.histories
    }

    /// Whether it takes more publishes.
    pub fn has_room(&self) -> bool {
        !self.is_up || self.outgoing.has_room()
    }

    /// Whether no publish waits for its end.
    pub fn is_idle(&self) -> bool {
        self.outgoing.is_idle()
    }

    /// Whether nothing is under way that belongs to a topic.
    pub fn is_quiet(&self) -> bool {
        self.outgoing.is_quiet() && self.histories.is_quiet()
    }

    /// From now on nothing new is sent, or everything again.
    pub fn hold(&mut self, is_held: bool) {
        self.outgoing.hold(is_held);
        self.histories.hold(is_held);
    }

    /// Whether the server has said, since this was last asked, that topics are elsewhere.
    pub fn take_astray(&mut self) -> bool {
        let said = [self.outgoing.take_astray(), self.histories.take_astray()];
        std::mem::take(&mut self.is_astray) | said.contains(&true)
    }

    /// Where it is. If it was elsewhere, that one is left when what is under way has come to an end.
    pub fn move_to(&mut self, address: String, now: Instant) {
        if self.address.as_ref() == Some(&address) {
            self.successor = None;
            return self.hold(false);
        }
        match &self.state {
            State::Live(_) => {
                self.hold(true);
                self.successor = Some((address, now));
            }
            State::Pausing(_) | State::Connecting(_) => {
                self.address = Some(address);
                self.backoff.reset();
                self.state = State::Pausing(Box::pin(sleep(Duration::ZERO)));
            }
        }
    }

    /// Servers were counted anew, partitions may have moved.
    pub fn set_place(&mut self, place: Place, names: &Names) {
        self.place = place;
        let State::Live(live) = &mut self.state else { return };
        live.subscriptions.set_server(place.number);
        let channel = place.first.map(|partition| names.canary(partition));
        if live.canary_channel != channel {
            live.canary_channel
                .take()
                .into_iter()
                .for_each(|old| live.subscriptions.remove_fixed(old));
            channel.iter().for_each(|new| live.subscriptions.add_fixed(new.clone()));
            live.canary_channel = channel;
            self.missed += live.canary.take().map_or(0, |canary| canary.missed); // anew, then
        }
        if live.hears_ingest != place.hears_ingest {
            live.hears_ingest = place.hears_ingest;
            match place.hears_ingest {
                true => live.subscriptions.add_fixed(names.ingest.clone()),
                false => live.subscriptions.remove_fixed(names.ingest.clone()),
            }
        }
    }

    /// A topic that another server had.
    pub fn take_over(&mut self, key: TopicKey, topic: &TopicName) {
        self.is_relied_on = true;
        if let State::Live(live) = &mut self.state {
            live.subscriptions.add(key, topic);
            self.moved.insert(key);
        }
    }

    /// Wants to hear a topic. While there is no link nothing is sent: the next link subscribes
    /// everything wanted.
    pub fn subscribe(&mut self, key: TopicKey, topic: &TopicName) {
        if let State::Live(live) = &mut self.state {
            live.subscriptions.add(key, topic);
        }
    }

    /// Wants to hear it no more.
    pub fn unsubscribe(&mut self, topic: TopicName) {
        self.histories.leave(&topic);
        if let State::Live(live) = &mut self.state {
            live.subscriptions.remove(topic);
        }
    }

    /// Takes a publish.
    pub fn publish(&mut self, publish: Publish, now: Instant, local: &mut Local) {
        self.outgoing.push(publish, self.is_up, now, local);
    }

    fn connect(&self, common: &Common) -> Option<State> {
        let address = self.address.as_ref()?;
        let plan = &common.plan;
        let needs =
            Needs { history: self.histories.is_any(), replicas: common.namespaces.want_replicas() };
        Some(State::Connecting(Box::pin(connection::connect(
            plan.servers.login.url(address),
            plan.tls_ca_file.clone(),
            common.names.clone(),
            Duration::from_millis(plan.timeout_ms),
            needs,
        ))))
    }

    fn go_live(&mut self, link: Link, names: &Names, now: Instant, local: &Local) {
        let Place { number, first, hears_ingest } = self.place;
        let canary_channel = first.map(|partition| names.canary(partition));
        let ingest = hears_ingest.then(|| names.ingest.clone());
        let fixed = canary_channel.iter().cloned().chain(ingest).collect();
        let is_skipped = cfg!(feature = "break-resubscribe") && self.is_relied_on;
        let places = if is_skipped { 0 } else { local.interest.slots_end() };
        let subscriptions = Subscriptions::new(number, fixed, places);
        let (canary, since, heard_at) = (None, now, now);
        self.state = State::Live(Box::new(Live {
            link,
            subscriptions,
            canary,
            canary_channel,
            hears_ingest,
            since,
            heard_at,
        }));
    }

    fn pause(&mut self) {
        self.state = State::Pausing(Box::pin(sleep(self.backoff.next())));
    }

    /// The only way down, whatever failed.
    pub fn go_down(&mut self, reason: &str, now: Instant, local: &mut Local) {
        if let State::Live(live) = &self.state {
            // Joins are answered before the first canary is back.
            self.is_relied_on |= local.interest.confirmed_by(self.place.number) > 0;
            self.missed += live.canary.as_ref().map_or(0, |canary| canary.missed);
            local.counters.reconnects += 1;
            self.reconnects += 1;
        }
        self.on_refused(reason, now);
        self.pause(); // drops all connections
        if let Some((address, _)) = self.successor.take() {
            self.address = Some(address);
            self.backoff.reset();
            self.state = State::Pausing(Box::pin(sleep(Duration::ZERO)));
            self.hold(false);
        }
        (self.is_up, self.is_deaf) = (false, false);
        self.is_astray = true;
        self.moved.clear();
        local.interest.lose_link(self.place.number);
        self.monitor.lose_link();
        self.outgoing.lose_link(now, local);
        self.histories.lose_link(local);
    }

    fn on_refused(&mut self, reason: &str, now: Instant) {
        reason.clone_into(&mut self.reason);
        if self.is_up {
            tracing::info!(server = self.shown(), reason, "a server is down");
        } else if let Some(suppressed) = self.refused.is_due(now) {
            tracing::warn!(server = self.shown(), reason, suppressed, "no connection to Redis");
        }
    }

    /// For people: where it is, or else what it is called.
    pub fn shown(&self) -> &str {
        shown(self.address.as_deref(), &self.name)
    }

    /// Whether it is known to be somewhere, and not there.
    pub fn is_elsewhere(&self, address: &str) -> bool {
        let successor = self.successor.as_ref().map(|(successor, _)| successor);
        successor.or(self.address.as_ref()).is_some_and(|known| known != address)
    }

    /// Goes on with everything. Whether there was anything to do.
    pub fn poll(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        common: &Common,
        presences: &mut Presences,
        local: &mut Local,
    ) -> bool {
        self.outgoing.expire(now, local);
        self.histories.expire(now, local);
        match &mut self.state {
            State::Pausing(pause) => {
                if pause.as_mut().poll(cx).is_pending() {
                    return false;
                }
                match self.connect(common) {
                    Some(connecting) => self.state = connecting,
                    None => {
                        self.on_refused("nobody knows yet where it is", now);
                        self.pause();
                    }
                }
            }
            State::Connecting(connecting) => match connecting.as_mut().poll(cx) {
                Poll::Pending => return false,
                Poll::Ready(Ok(link)) => self.go_live(link, &common.names, now, local),
                Poll::Ready(Err(reason)) => {
                    self.is_astray = true;
                    self.on_refused(&reason, now);
                    self.pause();
                }
            },
            State::Live(_) => match self.poll_live(cx, now, common, presences, local) {
                Ok(is_busy) => return is_busy,
                Err(reason) => self.go_down(&reason, now, local),
            },
        }
        true
    }

    /// Goes on with the link. `Err`: it has to be given up.
    fn poll_live(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        common: &Common,
        presences: &mut Presences,
        local: &mut Local,
    ) -> Result<bool, String> {
        let said = |error: redis::RedisError| error.to_string();
        self.part(now)?;
        let mut is_busy = self.poll_sub(cx, now, common, presences, local)?;
        self.poll_canary(cx, now, common, local)?;
        let State::Live(live) = &mut self.state else { return Ok(is_busy) };
        let patience = Duration::from_millis(common.plan.canary_timeout_ms);
        let unheard_since = live.subscriptions.unheard_since();
        self.is_deaf = unheard_since.is_some_and(|since| now.duration_since(since) > patience);
        let Link { cmd, sure, generation, .. } = &live.link;
        let (names, publish) = (&common.names, common.names.publish());
        let way = Way { cmd, sure: sure.as_ref(), names, generation, publish };
        is_busy |= self.histories.poll(cx, now, &way, local).map_err(said)?;
        if self.is_up {
            self.outgoing.witness().forget_before(self.canary_back_at);
            is_busy |= self.outgoing.poll(cx, now, &way, local).map_err(said)?;
            let server = shown(self.address.as_deref(), &self.name);
            self.monitor.poll(cx, now, &live.link, server);
        }
        is_busy |= self.tell_of_outage(local);
        Ok(is_busy)
    }

    /// Leaves for another address when nothing is under way any more, or it takes too long.
    fn part(&self, now: Instant) -> Result<(), String> {
        match &self.successor {
            Some((address, since)) if self.is_quiet() || now.duration_since(*since) >= PARTING => {
                Err(format!("the master is at {address} now"))
            }
            _ => Ok(()),
        }
    }

    /// Subscribes and hears.
    fn poll_sub(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        common: &Common,
        presences: &mut Presences,
        local: &mut Local,
    ) -> Result<bool, String> {
        let State::Live(live) = &mut self.state else { return Ok(false) };
        let Live { link, subscriptions, canary, canary_channel, heard_at, .. } = &mut **live;
        if !subscriptions.is_waiting() {
            *heard_at = now;
        }
        let oldest = subscriptions.oldest();
        let mut is_busy = subscriptions.poll(now, &mut link.sub, &common.names, &local.interest);
        let mut ear = Ear {
            now,
            server: self.place.number,
            common,
            subscriptions,
            canary: canary.as_mut(),
            canary_channel: canary_channel.as_deref(),
            histories: &mut self.histories,
            presences,
            local,
            malformed: &mut self.malformed,
            moved: &mut self.moved,
            canary_back_at: &mut self.canary_back_at,
            is_astray: &mut self.is_astray,
            failure: None,
        };
        let has_heard = link.sub.poll(cx, PUSHES_PER_TURN, |event| ear.hear(event))?;
        if let Some(failure) = ear.failure {
            return Err(failure);
        }
        // While everything is subscribed anew an answer may stand behind megabytes of messages. Later
        // the canary would, too: messages alone do not prove that the server hears us.
        if has_heard && (!self.is_up || subscriptions.oldest() != oldest) {
            *heard_at = now;
        }
        is_busy |= has_heard;
        let patience = common.plan.timeout_ms.max(common.plan.canary_timeout_ms);
        if now.duration_since(*heard_at) > Duration::from_millis(patience) {
            return Err("the server does not answer on the subscribing connection".to_owned());
        }
        Ok(is_busy)
    }

    /// Lets the canary fly as soon as everything is subscribed; with the first one that comes back
    /// the server is up. One without topics has nothing to prove.
    fn poll_canary(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        common: &Common,
        local: &mut Local,
    ) -> Result<(), String> {
        let fresh = Canary::new(
            Duration::from_millis(common.plan.canary_interval_ms),
            Duration::from_millis(common.plan.canary_timeout_ms),
            now,
        );
        let State::Live(live) = &mut self.state else { return Ok(()) };
        if !live.subscriptions.is_complete() {
            return Ok(());
        }
        if let Some(channel) = &live.canary_channel {
            let canary = live.canary.get_or_insert(fresh);
            canary.poll(cx, now, &live.link.cmd, common.names.publish(), channel)?;
            let is_astray = canary.take_astray();
            local.counters.astray += u64::from(is_astray);
            self.is_astray |= is_astray;
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
        let topics = local.interest.confirmed_by(self.place.number);
        let took_ms = now.duration_since(since).as_millis() as u64;
        tracing::info!(server = self.shown(), topics, took_ms, "everything is subscribed");
        self.reason = "the canary came back".to_owned();
        if std::mem::replace(&mut self.is_relied_on, true) {
            self.untold = 0..local.interest.slots_end();
        }
    }

    /// What other nodes said while this one was cut off is gone where no history is kept. A part of
    /// the topics at a time, and none while shards have too much to do already.
    fn tell_of_outage(&mut self, local: &mut Local) -> bool {
        if self.untold.is_empty() || local.is_waiting() {
            return false;
        }
        // What other services publish is for any topic; and if any ever did, it may have again.
        let hears_others = self.place.hears_ingest && local.counters.publishes_ingested > 0;
        for place in self.untold.by_ref().take(TOLD_PER_TURN) {
            let Some((_, topic)) = local.interest.name_at(place) else { continue };
            let is_here =
                hears_others || local.interest.server_of(topic.as_str()) == self.place.number;
            if is_here && !self.histories.policy(topic).has_history() {
                let topic = topic.clone();
                local.notify_lost(&topic, 0);
            }
        }
        true
    }

    /// Adds its own gauges to those of the others.
    pub fn measure(&self, now: Instant, counters: &mut BackplaneCounters) {
        counters.publish_queue_bytes += self.outgoing.waiting_bytes() as u64;
        counters.histories += self.histories.topics() as u64;
        counters.histories_bytes += self.histories.bytes() as u64;
        counters.history_reads_waiting += self.histories.wanted() as u64;
        counters.in_flight += self.outgoing.under_way() as u64;
        let age_ms = now.duration_since(self.canary_back_at).as_millis() as u64;
        counters.canary_age_ms = counters.canary_age_ms.max(age_ms);
        let rtt_us = self.canary().map_or(0, |canary| canary.rtt.as_micros() as u64);
        counters.canary_rtt_us = counters.canary_rtt_us.max(rtt_us);
    }

    /// What it has counted since it is there.
    pub fn sums(&self) -> Sums {
        let numbers = self.histories.numbers;
        Sums {
            history_reads: numbers.reads,
            recoveries_waited: numbers.waited,
            holes_repaired: numbers.repaired,
            holes_lost: numbers.lost,
            canaries_missed: self.canaries_missed(),
        }
    }

    /// What is known of it, with as many topics confirmed.
    pub fn numbers(&self, subscriptions: usize) -> ServerNumbers {
        let has_topics = self.place.first.is_some();
        ServerNumbers {
            server: self.shown().to_owned(),
            name: (self.address.as_ref() != Some(&self.name)).then(|| self.name.clone()),
            reason: self.reason().to_owned(),
            counted: OwnNumbers {
                up: Some(u64::from(self.is_whole())),
                subscriptions: Some(subscriptions as u64),
                publish_queue_bytes: Some(self.outgoing.waiting_bytes() as u64),
                in_flight: Some(self.outgoing.under_way() as u64),
                canary_rtt_us: self
                    .canary()
                    .filter(|canary| canary.has_come_back())
                    .map(|canary| canary.rtt.as_micros() as u64),
                canary_age_ms: None, // it grows by itself
                canaries_missed: Some(self.canaries_missed()),
                reconnects: Some(self.reconnects),
            },
            canary_back_at: has_topics.then_some(self.canary_back_at),
            said: self.monitor.numbers().clone(),
        }
    }

    fn canary(&self) -> Option<&Canary> {
        match &self.state {
            State::Live(live) => live.canary.as_ref(),
            State::Pausing(_) | State::Connecting(_) => None,
        }
    }

    fn canaries_missed(&self) -> u64 {
        self.missed + self.canary().map_or(0, |canary| canary.missed)
    }
}

fn shown<'a>(address: Option<&'a str>, name: &'a str) -> &'a str {
    address.unwrap_or(name)
}

/// How long to wait before the next attempt: twice as long each time, up to a limit, and somewhere
/// in the upper half of that, so that a hundred nodes do not come back in the same millisecond.
struct Backoff {
    next: Duration,
    max: Duration,
    random: u64,
}

impl Backoff {
    fn new(max: Duration, seed: u64) -> Backoff {
        Backoff { next: BACKOFF_MIN.min(max), max, random: seed | 1 }
    }

    fn next(&mut self) -> Duration {
        let whole = self.next;
        self.next = (whole * 2).min(self.max);
        // xorshift64: plenty for spreading nodes over half a second.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        whole / 2 + (whole / 2).mul_f64((self.random >> 11) as f64 / (1u64 << 53) as f64)
    }

    fn reset(&mut self) {
        self.next = BACKOFF_MIN.min(self.max);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_limit_and_spread_over_its_upper_half() {
        let mut backoff = Backoff::new(Duration::from_millis(1000), 7);
        let pauses: Vec<u128> = (0..10).map(|_| backoff.next().as_millis()).collect();
        for (pause, whole) in pauses.iter().zip([50, 100, 200, 400, 800, 1000, 1000, 1000]) {
            assert!((whole / 2..=whole).contains(pause), "{pause} of {whole}");
        }
        assert_ne!(pauses[6], pauses[7]);
        backoff.reset();
        assert!(backoff.next() <= BACKOFF_MIN);
    }
}
