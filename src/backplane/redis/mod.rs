//! Redis between the nodes: one channel a topic, subscribed while somebody here listens.
//!
//! The supervisor's life is a circle: pause → connect → resubscribe → the canary comes back → up →
//! something fails → down → pause. There is one way down ([`RedisTransport::go_down`]), whatever
//! failed: both connections are dropped, and nothing is repaired in place. The redis crate's own
//! reconnecting wrappers are not used, because they give up or lose subscriptions without a word.
//!
//! After an outage, messages that other nodes published meanwhile may be missed. Topics with a history
//! get them back ([`histories`]); everybody in the others hears `lost`.
//!
//! Invariant: up means that everything wanted is subscribed on this link and that a message went
//! through both of its connections within the canary's timeout.

mod acks;
mod canary;
mod histories;
mod ingest;
mod link;
mod monitor;
pub mod names;
mod outgoing;
mod presence;
pub mod route;
mod scripts;
pub mod subscriptions;

use super::Transport;
use super::envelope;
use super::interest::TopicKey;
use super::local::{Local, Message};
use super::seldom::Seldom;
use crate::ids::{NodeId, Position, ShardId, TopicName, UpTo};
use crate::limits::Limits;
use crate::link::{AskHistory, AskPresence, Attend, NoHistory, Publish, Recover};
use crate::metrics::BackplaneCounters;
use crate::namespaces::Namespaces;
use crate::plan::RedisPlan;
use acks::Acks;
use canary::Canary;
use histories::Histories;
use link::{Link, Push, Timeouts};
use monitor::Monitor;
use names::{Names, PARTITIONS};
use outgoing::Outgoing;
use presence::Presences;
use route::Route;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use subscriptions::Subscriptions;
use tokio::time::{Sleep, sleep};

/// Messages taken in one turn.
const PUSHES_PER_TURN: usize = 4096;
/// Topics whose members are told of an outage in one turn.
const TOLD_PER_TURN: usize = 1024;
/// The first pause between two attempts to connect; each one is twice as long as the last.
const BACKOFF_MIN: Duration = Duration::from_millis(50);

/// See the module.
pub struct RedisTransport {
    plan: RedisPlan,
    limits: Limits,
    names: Names,
    state: State,
    outgoing: Outgoing,
    histories: Histories,
    acks: Acks,
    /// Topics whose subscription was just confirmed.
    confirmed: Vec<TopicKey>,
    monitor: Monitor,
    presences: Presences,
    backoff: Backoff,
    malformed: Seldom,
    refused: Seldom,
    /// Canaries missed on earlier links.
    missed: u64,
    /// When one last came back, on whichever link.
    canary_back_at: Instant,
    is_up: bool,
    has_been_up: bool,
    /// Places of topics whose members have not been told yet that something may be missing.
    untold: std::ops::Range<u32>,
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
    since: Instant,
}

impl RedisTransport {
    /// Not connected yet; the first [`Transport::poll`] begins.
    pub fn new(
        plan: RedisPlan,
        limits: Limits,
        node: NodeId,
        namespaces: &Arc<Namespaces>,
    ) -> RedisTransport {
        let names = Names::new(&plan.prefix, node);
        RedisTransport {
            presences: Presences::new(namespaces.clone(), &plan.prefix, names.clone(), node),
            acks: Acks::new(namespaces.clone(), names.clone(), route_to(None)),
            names,
            state: State::Pausing(Box::pin(sleep(Duration::ZERO))),
            outgoing: Outgoing::new(&limits, namespaces.clone()),
            histories: Histories::new(namespaces.clone(), &limits),
            confirmed: Vec::new(),
            monitor: Monitor::new(&plan),
            backoff: Backoff::new(Duration::from_millis(plan.backoff_ms_max), node.0),
            malformed: Seldom::default(),
            refused: Seldom::default(),
            missed: 0,
            canary_back_at: Instant::now(),
            is_up: false,
            has_been_up: false,
            untold: 0..0,
            plan,
            limits,
        }
    }

    fn connect(&self) -> State {
        let usual = Duration::from_millis(self.plan.timeout_ms);
        let canary = Duration::from_millis(self.plan.canary_timeout_ms);
        let timeouts = Timeouts { usual, sub: usual.max(canary) };
        State::Connecting(Box::pin(link::connect(
            self.plan.url.clone(),
            self.plan.tls_ca_file.clone(),
            self.names.clone(),
            timeouts,
            self.histories.is_any(),
        )))
    }

    fn go_live(&mut self, link: Link, now: Instant, local: &Local) {
        let fixed = vec![self.names.ingest.clone(), self.names.canary.clone()];
        let subscriptions = Subscriptions::new(fixed, local.interest.high());
        self.state = State::Live(Box::new(Live { link, subscriptions, canary: None, since: now }));
    }

    fn pause(&mut self) {
        self.state = State::Pausing(Box::pin(sleep(self.backoff.next())));
    }

    /// The only way down, whatever failed.
    fn go_down(&mut self, reason: &str, now: Instant, local: &mut Local) {
        if let State::Live(live) = &self.state {
            self.missed += live.canary.as_ref().map_or(0, |canary| canary.missed);
        }
        local.counters.reconnects += 1;
        if !self.is_up {
            self.on_refused(reason, now); // else `set_up` tells
        }
        self.pause(); // drops both connections
        self.is_up = false;
        local.interest.lose_link();
        self.monitor.lose_link();
        local.set_up(false, reason, now);
        self.outgoing.lose_link(now, local);
        self.histories.lose_link(local);
        self.presences.lose_link();
        self.acks.set_route(&route_to(None));
    }

    /// Goes on with the link. `Err`: it has to be given up.
    fn poll_live(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        local: &mut Local,
    ) -> Result<bool, String> {
        let said = |error: redis::RedisError| error.to_string();
        let mut is_busy = self.take_pushes(cx, now, local)?;
        let State::Live(live) = &mut self.state else { return Ok(is_busy) };
        let Live { link, subscriptions, canary, since } = &mut **live;
        let confirmed = &mut self.confirmed;
        is_busy |= subscriptions
            .poll(cx, &link.sub, &self.names, &local.interest, confirmed)
            .map_err(said)?;
        for key in confirmed.drain(..) {
            local.subscribed(key);
            if self.histories.is_any()
                && let Some((now_there, topic)) = local.interest.name_at(key.index)
                && now_there == key
            {
                self.histories.subscribed(topic);
            }
        }
        if subscriptions.is_complete() {
            let canary = canary.get_or_insert_with(|| {
                let [interval, timeout] =
                    [self.plan.canary_interval_ms, self.plan.canary_timeout_ms]
                        .map(Duration::from_millis);
                Canary::new(interval, timeout, now)
            });
            canary.poll(cx, now, &link.cmd, &self.names.canary)?;
            if canary.has_come_back() && !self.is_up {
                self.is_up = true;
                self.backoff.reset();
                let topics = local.interest.confirmed();
                let took_ms = now.duration_since(*since).as_millis() as u64;
                tracing::info!(topics, took_ms, "everything is subscribed");
                local.set_up(true, "the canary came back", now);
                if std::mem::replace(&mut self.has_been_up, true) {
                    self.untold = 0..local.interest.high();
                }
                self.presences.go_up(now);
                self.acks.set_route(&route_to(Some(&link.cmd)));
            }
        }
        let (cmd, names, generation) = (&link.cmd, &self.names, &link.generation[..]);
        is_busy |= self.histories.poll(cx, now, cmd, names, generation, local).map_err(said)?;
        if self.is_up {
            self.monitor.poll(cx, now, link);
            let sends_on = (cmd, generation);
            is_busy |= self.outgoing.poll(cx, now, sends_on, names, local).map_err(said)?;
            is_busy |= self.presences.poll(cx, now, &link.cmd, local);
            is_busy |= self.acks.poll(cx, now);
        }
        is_busy |= self.tell_of_outage(local);
        Ok(is_busy)
    }

    /// What other nodes said while this one was cut off is gone where no history is kept. A part of
    /// the topics at a time, and none while shards have too much to do already.
    fn tell_of_outage(&mut self, local: &mut Local) -> bool {
        if self.untold.is_empty() || local.is_waiting() {
            return false;
        }
        for place in self.untold.by_ref().take(TOLD_PER_TURN) {
            let Some((_, topic)) = local.interest.name_at(place) else { continue };
            if !self.histories.policy(topic).has_history() {
                let topic = topic.clone();
                local.lost(&topic, 0);
            }
        }
        true
    }

    fn take_pushes(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        local: &mut Local,
    ) -> Result<bool, &'static str> {
        for taken in 0..PUSHES_PER_TURN {
            let State::Live(live) = &mut self.state else { return Ok(taken > 0) };
            match live.link.pushes.poll_next(cx) {
                Poll::Ready(push) => self.handle_push(&push?, now, local),
                Poll::Pending => return Ok(taken > 0),
            }
        }
        Ok(true)
    }

    fn handle_push(&mut self, push: &Push, now: Instant, local: &mut Local) {
        if let Some(topic) = self.names.topic(&push.channel) {
            if presence::is_news(&push.body) {
                if let Err(why) = self.presences.hear(topic, &push.body, local) {
                    self.on_malformed(why, topic, now, local);
                }
                return;
            }
            match positioned(&push.body) {
                Some((at, body)) if self.histories.handle_message(topic, at, body, now, local) => {}
                Some((_, body)) => self.hand_out(topic, body, now, local),
                None => self.hand_out(topic, &push.body, now, local),
            }
        } else if push.channel == self.names.ingest.as_bytes() {
            let (bytes_max, depth_max) =
                (self.limits.message_bytes_max, self.limits.json_depth_max);
            match ingest::read(&push.body, bytes_max, depth_max) {
                // Every node hears it, and only one may give it its place.
                Ok(said) if self.histories.policy(&said.topic).has_history() => {
                    let why = "the room keeps a history: publish by HTTP, which gives it its place";
                    self.on_malformed(why, said.topic.as_str(), now, local);
                }
                Ok(said) => local.message(&Message {
                    topic: said.topic.as_str(),
                    from: None,
                    payload: said.payload,
                    except: None,
                    conflate_key: said.conflate_key,
                }),
                Err(why) => self.on_malformed(&why, "publish", now, local),
            }
        } else if let State::Live(live) = &mut self.state
            && let Some(canary) = &mut live.canary
            && canary.hear(&push.body, now)
        {
            self.canary_back_at = now;
        }
    }

    fn hand_out(&mut self, topic: &str, body: &[u8], now: Instant, local: &mut Local) {
        match envelope::read(topic, body) {
            Ok(message) => local.message(&message),
            Err(why) => self.on_malformed(&format!("{why:?}"), topic, now, local),
        }
    }

    fn on_refused(&mut self, reason: &str, now: Instant) {
        if let Some(unsaid) = self.refused.is_due(now) {
            tracing::warn!(reason, unsaid, "no connection to Redis");
        }
    }

    fn on_malformed(&mut self, why: &str, channel: &str, now: Instant, local: &mut Local) {
        local.counters.publishes_malformed += 1;
        if let Some(unsaid) = self.malformed.is_due(now) {
            tracing::warn!(why, channel, unsaid, "a message from Redis was not understood");
        }
    }
}

impl Transport for RedisTransport {
    /// While there is no link nothing is sent: the next link subscribes everything wanted.
    fn subscribe(&mut self, key: TopicKey, topic: &TopicName) {
        if let State::Live(live) = &mut self.state {
            live.subscriptions.add(key, topic);
        }
    }

    fn unsubscribe(&mut self, topic: TopicName) {
        self.histories.forget(&topic);
        if let State::Live(live) = &mut self.state {
            live.subscriptions.remove(topic);
        }
    }

    fn publish(&mut self, publish: Publish, now: Instant, local: &mut Local) {
        self.outgoing.push(publish, now, local);
    }

    fn recover(&mut self, shard: ShardId, ask: Box<Recover>, now: Instant, local: &mut Local) {
        self.histories.recover(shard, ask, now, local);
    }

    fn history(&mut self, ask: Box<AskHistory>, now: Instant, local: &mut Local) {
        if !self.is_up {
            return local.said(ask.topic, ask.to, Err(NoHistory::Unavailable));
        }
        self.histories.history(ask, now, local);
    }

    /// While down, everything is taken: what does not fit is answered, and the shards go on.
    fn attend(&mut self, attend: Attend, now: Instant) {
        self.presences.handle(attend, now);
    }

    fn presence(&mut self, ask: Box<AskPresence>, _now: Instant) {
        self.presences.ask(*ask);
    }

    fn acknowledge(&mut self, topic: TopicName, up_to: UpTo, now: Instant, _: &mut Local) {
        if let Some(at) = self.histories.acknowledge(&topic, up_to) {
            self.acks.push(topic, at, now);
        }
    }

    fn has_room(&self) -> bool {
        !self.is_up || self.outgoing.has_room()
    }

    fn is_idle(&self) -> bool {
        self.outgoing.is_idle() && self.acks.is_idle()
    }

    fn poll(&mut self, cx: &mut Context<'_>, now: Instant, local: &mut Local) -> bool {
        self.outgoing.expire(now, local);
        self.histories.expire(now, local);
        if !self.is_up {
            self.presences.refuse(local);
        }
        match &mut self.state {
            State::Pausing(pause) => {
                if pause.as_mut().poll(cx).is_pending() {
                    return false;
                }
                self.state = self.connect();
            }
            State::Connecting(connecting) => match connecting.as_mut().poll(cx) {
                Poll::Pending => return false,
                Poll::Ready(Ok(link)) => self.go_live(link, now, local),
                Poll::Ready(Err(reason)) => {
                    self.on_refused(&reason, now);
                    self.pause();
                }
            },
            State::Live(_) => match self.poll_live(cx, now, local) {
                Ok(is_busy) => return is_busy,
                Err(reason) => self.go_down(&reason, now, local),
            },
        }
        true
    }

    fn measure(&self, now: Instant, counters: &mut BackplaneCounters) {
        counters.publish_queue_bytes = self.outgoing.waiting_bytes() as u64;
        counters.histories = self.histories.topics() as u64;
        counters.histories_bytes = self.histories.bytes() as u64;
        let numbers = self.histories.numbers;
        counters.history_reads = numbers.reads;
        counters.holes_repaired = numbers.repaired;
        counters.holes_lost = numbers.lost;
        counters.in_flight = self.outgoing.under_way() as u64;
        counters.canaries_missed = self.missed;
        counters.canary_age_ms = now.duration_since(self.canary_back_at).as_millis() as u64;
        counters.redis = self.monitor.numbers().clone();
        self.presences.measure(counters);
        self.acks.measure(counters);
        let State::Live(live) = &self.state else { return };
        let Some(canary) = &live.canary else { return };
        counters.canary_rtt_us = canary.rtt.as_micros() as u64;
        counters.canaries_missed += canary.missed;
    }
}

/// The way to the one server there is, while it is up.
fn route_to(cmd: Option<&redis::aio::MultiplexedConnection>) -> Route {
    Route::new(Arc::new([0; PARTITIONS]), vec![cmd.cloned()], "PUBLISH")
}

/// A message of a topic that has a history: `<epoch>:<offset>:` stands before its envelope, which
/// never begins with a digit.
fn positioned(body: &[u8]) -> Option<(Position, &[u8])> {
    if !body.first()?.is_ascii_digit() {
        return None;
    }
    let mut parts = body.splitn(3, |byte| *byte == b':');
    let mut number = || std::str::from_utf8(parts.next()?).ok()?.parse().ok();
    let (epoch, offset) = (number()?, number()?);
    Some((Position { epoch, offset }, parts.next()?))
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
