//! Publishes on their way to one server: what waits, what is under way, and how each one ends.
//!
//! Three lanes: what is only said (`PUBLISH`), what is kept in a history (`lua/publish.lua`), and
//! what is kept and must be on a replica before it is acknowledged (the same, with `WAIT`, on a
//! connection of its own, because `WAIT` holds up whatever comes behind it). A topic is of one
//! lane, so lanes need not wait for each other. Each is one connection and pipelines in order, so
//! that what one shard says to one topic keeps its order. A few pipelines are under way at once;
//! what comes meanwhile waits and makes the next one bigger.
//!
//! What a server refuses for now (it is another one than before, its topics are moving, it has lost
//! its replicas) goes first again. While there is any such thing nothing new is sent in its lane.
//!
//! While Redis is away publishes wait, bounded in bytes and time; what does not fit, or waits too
//! long, ends as `Unavailable`: it was not sent. What was under way when a link broke ends as
//! `Unknown`: it may have been delivered, so nobody but the publisher may decide to send it again.
//! What has a key is sent again by itself, and ends so only if that comes to nothing.
//!
//! Invariant: every publish ends exactly once.

use crate::backplane::envelope;
use crate::backplane::history::store::IDEMPOTENCY_TTL;
use crate::backplane::local::Local;
use crate::backplane::log_throttle::LogThrottle;
use crate::backplane::message::Message;
use crate::backplane::redis::connection::{Reply, Way, fly, poll_reply, send};
use crate::backplane::redis::error_reply::Refusal;
use crate::backplane::redis::history::meta_ttl_s;
use crate::backplane::redis::names::Names;
use crate::backplane::redis::publish::unconfirmed::Witness;
use crate::backplane::redis::scripts::{self, REPAIR_MS, Said, Which};
use crate::backplane::redis::unreadable::{Warnings, number_of};
use crate::ids::TopicName;
use crate::link::{Done, Publish, PublishOutcome};
use crate::policy::limits::Limits;
use crate::policy::namespaces::{Namespaces, Policy};
use redis::aio::MultiplexedConnection;
use redis::{Cmd, Pipeline, RedisResult, Value};
use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// Commands in one pipeline.
const COMMANDS_PER_FLIGHT: usize = 256;
/// Bytes after which a pipeline is closed. One message may be longer.
const FLIGHT_BYTES: usize = 256 * 1024;
/// Pipelines under way in one lane.
const FLIGHTS_MAX: usize = 8;
/// Beyond this, while the link is up, the shards are not asked for more. Twice what is under way
/// at most, so the link never idles for want of them.
const WAITING_MAX: usize = 2 * FLIGHTS_MAX * COMMANDS_PER_FLIGHT;
const WAITING_BYTES_MAX: usize = 2 * FLIGHTS_MAX * FLIGHT_BYTES;

/// When a server has refused something for so long, nobody is held up for it any more.
const STUCK: Duration = Duration::from_secs(1);

/// How long a replica has to say that it has a message. Then nobody knows whether it will survive.
const REPLICA_MS_MAX: u64 = 500;

/// A publish that has not ended.
pub struct Waiting {
    publish: Publish,
    since: Instant,
    /// It was under way when a link broke, and may have been delivered.
    is_doubtful: bool,
}

impl Waiting {
    /// Where it goes.
    pub fn topic(&self) -> &TopicName {
        &self.publish.topic
    }

    /// How it ends if it is not sent, or not again.
    fn failure(&self) -> PublishOutcome {
        if self.is_doubtful { PublishOutcome::Unknown } else { PublishOutcome::Unavailable }
    }
}

struct Flight {
    sent: Vec<Sent>,
    reply: Reply<Vec<Value>>,
}

/// What is remembered of a publish that is under way.
enum Sent {
    /// Nothing more than who is told: it is not sent again, whatever is answered.
    Once(Done),
    /// All of it: it may have to be sent again.
    Held(Box<Waiting>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Said, and forgotten.
    Plain,
    /// Kept in a history.
    Kept,
    /// Kept, also by a replica.
    Sure,
}

struct Lane {
    kind: Kind,
    waiting: VecDeque<Waiting>,
    flights: VecDeque<Flight>,
    under_way: usize,
    /// Refused for now.
    again: VecDeque<Waiting>,
    again_at: Option<Instant>,
    /// Since when there has always been any such thing.
    refused_since: Option<Instant>,
}

/// See the module. One for each server; it outlives links.
pub struct Outgoing {
    lanes: [Lane; 3],
    waiting_bytes: usize,
    bytes_max: usize,
    time_max: Duration,
    envelope: Vec<u8>,
    refusals: LogThrottle,
    unreadable: Warnings,
    namespaces: Arc<Namespaces>,
    /// Nothing is sent while topics are about to move.
    is_held: bool,
    /// Something has been refused for too long: what comes waits as if the link was down.
    is_stuck: bool,
    /// A server said that topics are elsewhere.
    is_astray: bool,
    /// The scripts are being loaded.
    loading: Option<Reply<()>>,
    witness: Witness,
}

impl Outgoing {
    /// Nothing waits.
    pub fn new(limits: &Limits, namespaces: Arc<Namespaces>) -> Outgoing {
        Outgoing {
            lanes: [Kind::Plain, Kind::Kept, Kind::Sure].map(Lane::new),
            waiting_bytes: 0,
            bytes_max: limits.publish_queue_bytes_max,
            time_max: Duration::from_millis(limits.publish_queue_ms_max),
            envelope: Vec::new(),
            refusals: LogThrottle::default(),
            unreadable: Warnings::default(),
            witness: Witness::new(namespaces.clone()),
            namespaces,
            is_held: false,
            is_stuck: false,
            is_astray: false,
            loading: None,
        }
    }

    /// Takes a publish; while the link is down or stuck only as far as there is room for it.
    pub fn push(&mut self, publish: Publish, is_up: bool, now: Instant, local: &mut Local) {
        let bytes = cost(&publish);
        if (!is_up || self.is_stuck) && self.waiting_bytes + bytes > self.bytes_max {
            local.end_publish(publish.done, PublishOutcome::Unavailable, now);
            return;
        }
        self.push_back(Waiting { publish, since: now, is_doubtful: false });
    }

    /// Takes what waited for another server.
    pub fn push_back(&mut self, waiting: Waiting) {
        self.waiting_bytes += cost(&waiting.publish);
        let policy = self.namespaces.policy(waiting.publish.topic.kind());
        let kind = match policy.has_history() {
            false => Kind::Plain,
            true if policy.is_replicated() => Kind::Sure,
            true => Kind::Kept,
        };
        self.lanes[kind as usize].waiting.push_back(waiting);
    }

    /// Whether there is room for more while the link is up. Always while it is stuck: shards that
    /// are held up for that are so for everybody, whatever server they want.
    pub fn has_room(&self) -> bool {
        if self.is_stuck {
            return true;
        }
        let bytes_max = WAITING_BYTES_MAX.min(self.bytes_max);
        let waiting: usize = self.lanes.iter().map(|lane| lane.waiting.len()).sum();
        waiting < WAITING_MAX && self.waiting_bytes < bytes_max
    }

    /// Whether nothing waits and nothing is under way.
    pub fn is_idle(&self) -> bool {
        self.lanes.iter().all(Lane::is_idle)
    }

    /// Whether nothing is under way.
    pub fn is_quiet(&self) -> bool {
        self.witness.is_quiet() && self.lanes.iter().all(|lane| lane.flights.is_empty())
    }

    /// Who remembers what was acknowledged.
    pub fn witness(&mut self) -> &mut Witness {
        &mut self.witness
    }

    /// From now on nothing is sent, or everything again.
    pub fn hold(&mut self, is_held: bool) {
        self.is_held = is_held;
    }

    /// Whether a server has said, since this was last asked, that topics are elsewhere.
    pub fn take_astray(&mut self) -> bool {
        std::mem::take(&mut self.is_astray)
    }

    /// Gives away what waits for topics that another server has now, in its order.
    pub fn take_moved(&mut self, has_moved: impl Fn(&TopicName) -> bool) -> Vec<Waiting> {
        let mut moved = Vec::new();
        for lane in &mut self.lanes {
            assert!(lane.flights.is_empty(), "topics move while nothing is under way");
            let is_gone = |waiting: &mut Waiting| has_moved(&waiting.publish.topic);
            let again = extract(&mut lane.again, is_gone);
            let waiting = extract(&mut lane.waiting, is_gone);
            let bytes: usize = waiting.iter().map(|waiting| cost(&waiting.publish)).sum();
            self.waiting_bytes -= bytes;
            moved.extend(again.into_iter().chain(waiting));
            if lane.again.is_empty() {
                (lane.again_at, lane.refused_since) = (None, None);
            }
        }
        moved
    }

    /// Bytes that wait.
    pub fn waiting_bytes(&self) -> usize {
        self.waiting_bytes
    }

    /// Publishes sent and not answered.
    pub fn under_way(&self) -> usize {
        self.lanes.iter().map(|lane| lane.under_way).sum()
    }

    /// Ends what has waited too long.
    pub fn expire(&mut self, now: Instant, local: &mut Local) {
        let time_max = self.time_max;
        for lane in &mut self.lanes {
            while let Some(late) = pop_late(&mut lane.again, now, time_max) {
                let failure = late.failure();
                local.end_publish(late.publish.done, failure, now);
            }
            while let Some(late) = pop_late(&mut lane.waiting, now, time_max) {
                self.waiting_bytes -= cost(&late.publish);
                let failure = late.failure();
                local.end_publish(late.publish.done, failure, now);
            }
            // Nothing is left of it, and perhaps nothing comes that would show that it is over.
            if lane.is_idle() {
                lane.refused_since = None;
            }
        }
        let is_stuck = |since: Instant| now.duration_since(since) >= STUCK;
        self.is_stuck = self.lanes.iter().any(|lane| lane.refused_since.is_some_and(is_stuck));
    }

    /// Sends what waits, and tells what was answered. Whether there was anything to do.
    pub fn poll(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        way: &Way<'_>,
        local: &mut Local,
    ) -> RedisResult<bool> {
        let mut is_busy = self.poll_loading(cx)?;
        is_busy |= self.witness.poll(cx, now, way, !self.is_held)?;
        if self.witness.take_unloaded() && self.loading.is_none() {
            self.loading = Some(send(cx, scripts::load(way.cmd.clone())));
        }
        for kind in [Kind::Plain, Kind::Kept, Kind::Sure] {
            let cmd = if kind == Kind::Sure { way.sure } else { Some(way.cmd) };
            let Some(cmd) = cmd else { continue };
            is_busy |= self.poll_lane(kind as usize, cx, now, way, cmd, local)?;
        }
        Ok(is_busy)
    }

    fn poll_lane(
        &mut self,
        lane: usize,
        cx: &mut Context<'_>,
        now: Instant,
        way: &Way<'_>,
        cmd: &MultiplexedConnection,
        local: &mut Local,
    ) -> RedisResult<bool> {
        let mut is_busy = false;
        if self.loading.is_none() {
            self.waiting_bytes += self.lanes[lane].send_again(now);
        }
        while !self.is_held && self.lanes[lane].may_send() {
            let (pipeline, sent) = self.load(lane, way);
            let lane = &mut self.lanes[lane];
            lane.under_way += sent.len();
            let reply = send(cx, fly(cmd.clone(), pipeline));
            lane.flights.push_back(Flight { sent, reply });
            is_busy = true;
        }
        while let Some(front) = self.lanes[lane].flights.front_mut() {
            let Poll::Ready(answers) = poll_reply(&mut front.reply, cx) else { break };
            let flight = self.lanes[lane].flights.pop_front().expect("it was just looked at");
            self.lanes[lane].under_way -= flight.sent.len();
            is_busy = true;
            let extra = usize::from(self.lanes[lane].kind == Kind::Sure);
            match answers {
                Ok(answers) if answers.len() == flight.sent.len() + extra => {
                    let is_unloaded =
                        self.land(lane, flight.sent, answers, way.names, now, local)?;
                    if is_unloaded && self.loading.is_none() {
                        self.loading = Some(send(cx, scripts::load(way.cmd.clone())));
                    }
                }
                other => {
                    self.lanes[lane].break_off(flight.sent, now, local);
                    other?;
                    return Err((redis::ErrorKind::Client, "replies are out of step").into());
                }
            }
        }
        Ok(is_busy)
    }

    fn poll_loading(&mut self, cx: &mut Context<'_>) -> RedisResult<bool> {
        let Some(loading) = &mut self.loading else { return Ok(false) };
        let Poll::Ready(loaded) = poll_reply(loading, cx) else { return Ok(false) };
        self.loading = None;
        loaded.map(|()| true)
    }

    /// The link is lost: what was under way may or may not have arrived. What has a key is sent again
    /// on the next one.
    pub fn lose_link(&mut self, now: Instant, local: &mut Local) {
        self.loading = None;
        self.witness.lose_link();
        for lane in &mut self.lanes {
            lane.under_way = 0;
            (lane.again_at, lane.refused_since) = (None, None);
            // What was refused already was sent before what is under way.
            for flight in std::mem::take(&mut lane.flights) {
                lane.break_off(flight.sent, now, local);
            }
        }
    }

    fn load(&mut self, lane: usize, way: &Way<'_>) -> (Pipeline, Vec<Sent>) {
        let lane = &mut self.lanes[lane];
        let commands = lane.waiting.len().min(COMMANDS_PER_FLIGHT);
        let mut pipeline = Pipeline::with_capacity(commands + 1);
        let mut sent = Vec::with_capacity(commands);
        let mut bytes = 0;
        while sent.len() < commands && bytes < FLIGHT_BYTES {
            let Some(waiting) = lane.waiting.pop_front() else { break };
            self.waiting_bytes -= cost(&waiting.publish);
            self.envelope.clear();
            envelope::write(&Message::of(&waiting.publish), &mut self.envelope);
            bytes += self.envelope.len();
            if lane.kind == Kind::Plain {
                let channel = way.names.channel(waiting.publish.topic.as_str());
                pipeline.cmd(way.publish).arg(channel).arg(&self.envelope[..]);
            } else {
                let policy = self.namespaces.policy(waiting.publish.topic.kind());
                pipeline.add_command(keep(&waiting.publish, &self.envelope, policy, way));
            }
            // Where topics do not move, a plain one is either said or not.
            sent.push(match lane.kind == Kind::Plain && !way.is_sharded() {
                true => Sent::Once(waiting.publish.done),
                false => Sent::Held(Box::new(waiting)),
            });
        }
        if lane.kind == Kind::Sure {
            pipeline.cmd("WAIT").arg(1).arg(REPLICA_MS_MAX);
        }
        (pipeline, sent)
    }

    /// Tells what was answered. Whether the server has forgotten the scripts. `Err`: it is no master
    /// any more.
    fn land(
        &mut self,
        lane: usize,
        sent: Vec<Sent>,
        mut answers: Vec<Value>,
        names: &Names,
        now: Instant,
        local: &mut Local,
    ) -> RedisResult<bool> {
        let (lane, witness) = (&mut self.lanes[lane], &mut self.witness);
        let is_sure = lane.kind != Kind::Sure || has_replica(answers.pop());
        let (mut is_unloaded, mut demoted) = (false, None);
        for (sent, answer) in sent.into_iter().zip(answers) {
            let refusal = Refusal::of(&answer);
            if let (Some(refusal), Value::ServerError(error)) = (refusal, &answer) {
                let topic = sent.topic();
                if let (Refusal::Unreadable, Some(topic)) = (refusal, topic) {
                    local.counters.histories_unreadable += 1;
                    let error = redis::RedisError::from(error.clone());
                    self.unreadable.warn(topic.as_str(), &error, names, now);
                } else if refusal != Refusal::Unloaded
                    && let Some(suppressed) = self.refusals.is_due(now)
                {
                    tracing::warn!(?topic, %error, suppressed, "Redis refused a publish");
                }
            }
            match (refusal, sent) {
                (None, Sent::Once(done)) => {
                    local.end_publish(done, PublishOutcome::Accepted(None), now)
                }
                (None, Sent::Held(waiting)) => {
                    lane.land(*waiting, &answer, is_sure, now, local, witness);
                }
                (Some(refusal), Sent::Held(waiting)) if refusal.is_for_now() => {
                    is_unloaded |= refusal == Refusal::Unloaded;
                    self.is_astray |= refusal == Refusal::Elsewhere;
                    local.counters.astray += u64::from(refusal == Refusal::Elsewhere);
                    lane.again.push_back(*waiting);
                    lane.wait(now + refusal.pause());
                    if refusal == Refusal::Demoted {
                        demoted = Some(answer);
                    }
                }
                (Some(_), sent) => {
                    let failure = sent.failure();
                    local.end_publish(sent.into_done(), failure, now);
                }
            }
        }
        lane.refused_since = match lane.again.is_empty() {
            true => None,
            false => lane.refused_since.or(Some(now)),
        };
        match demoted {
            Some(answer) => answer.extract_error().map(|_| is_unloaded),
            None => Ok(is_unloaded),
        }
    }
}

impl Lane {
    fn new(kind: Kind) -> Lane {
        Lane {
            kind,
            waiting: VecDeque::new(),
            flights: VecDeque::new(),
            under_way: 0,
            again: VecDeque::new(),
            again_at: None,
            refused_since: None,
        }
    }

    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.flights.is_empty() && self.again.is_empty()
    }

    fn may_send(&self) -> bool {
        self.flights.len() < FLIGHTS_MAX && !self.waiting.is_empty() && self.again.is_empty()
    }

    fn wait(&mut self, until: Instant) {
        self.again_at = Some(self.again_at.map_or(until, |other| other.max(until)));
    }

    /// What was refused goes first again, once nothing is under way that could overtake it. Answers
    /// its bytes.
    fn send_again(&mut self, now: Instant) -> usize {
        let is_time = self.again_at.is_none_or(|at| at <= now);
        if self.again.is_empty() || !self.flights.is_empty() || !is_time {
            return 0;
        }
        self.again_at = None;
        let mut bytes = 0;
        while let Some(waiting) = self.again.pop_back() {
            bytes += cost(&waiting.publish);
            self.waiting.push_front(waiting);
        }
        bytes
    }

    /// One was answered, and not by an error.
    fn land(
        &mut self,
        waiting: Waiting,
        answer: &Value,
        is_sure: bool,
        now: Instant,
        local: &mut Local,
        witness: &mut Witness,
    ) {
        let said = if self.kind == Kind::Plain { None } else { scripts::said(answer) };
        if let Some(Said::Later(after_ms)) = said {
            self.again.push_back(waiting);
            return self.wait(now + Duration::from_millis(after_ms));
        }
        let mut publish = waiting.publish;
        let done = std::mem::replace(&mut publish.done, Done::Nobody);
        let Some(Said::At(at)) = said else {
            // What is not answered as the script does says nothing of what has become of it.
            let is_said = self.kind == Kind::Plain;
            let outcome =
                if is_said { PublishOutcome::Accepted(None) } else { PublishOutcome::Unknown };
            return local.end_publish(done, outcome, now);
        };
        witness.note(publish, at, now);
        if is_sure {
            local.end_publish(done, PublishOutcome::Accepted(Some(at)), now);
        } else {
            local.counters.publishes_unreplicated += 1;
            local.end_publish(done, PublishOutcome::Unknown, now);
        }
    }

    /// Nobody knows what has become of these. Those with a key are sent again.
    fn break_off(&mut self, sent: Vec<Sent>, now: Instant, local: &mut Local) {
        for sent in sent {
            match sent {
                Sent::Held(mut waiting)
                    if self.kind != Kind::Plain && waiting.publish.key.is_some() =>
                {
                    waiting.is_doubtful = true;
                    self.again.push_back(*waiting);
                }
                sent => local.end_publish(sent.into_done(), PublishOutcome::Unknown, now),
            }
        }
    }
}

impl Sent {
    /// See [`Waiting::failure`].
    fn failure(&self) -> PublishOutcome {
        match self {
            Sent::Once(_) => PublishOutcome::Unavailable,
            Sent::Held(waiting) => waiting.failure(),
        }
    }

    /// Where it goes, if that is remembered.
    fn topic(&self) -> Option<&TopicName> {
        match self {
            Sent::Once(_) => None,
            Sent::Held(waiting) => Some(waiting.topic()),
        }
    }

    fn into_done(self) -> Done {
        match self {
            Sent::Once(done) => done,
            Sent::Held(waiting) => waiting.publish.done,
        }
    }
}

fn pop_late(row: &mut VecDeque<Waiting>, now: Instant, time_max: Duration) -> Option<Waiting> {
    let is_late = now.duration_since(row.front()?.since) >= time_max;
    if is_late { row.pop_front() } else { None }
}

/// Takes some out of a row; both keep their order.
fn extract(
    row: &mut VecDeque<Waiting>,
    mut is_wanted: impl FnMut(&mut Waiting) -> bool,
) -> Vec<Waiting> {
    let (mut taken, mut stay) = (Vec::new(), VecDeque::new());
    for mut waiting in std::mem::take(row) {
        match is_wanted(&mut waiting) {
            true => taken.push(waiting),
            false => stay.push_back(waiting),
        }
    }
    *row = stay;
    taken
}

/// What `WAIT` answered.
fn has_replica(answer: Option<Value>) -> bool {
    answer.as_ref().and_then(number_of).is_some_and(|replicas| replicas > 0)
}

/// The command that gives a message its place and says it (`lua/publish.lua`).
fn keep(publish: &Publish, envelope: &[u8], policy: &Policy, way: &Way<'_>) -> Cmd {
    let topic = publish.topic.as_str();
    let keys = way.names.history_keys(topic);
    let retry = publish.key.as_ref().map(|key| format!("{}:{key}", keys.retry));
    let key_ttl_s = retry.as_ref().map_or(0, |_| IDEMPOTENCY_TTL.as_secs());
    let mut names = vec![&keys.meta[..], &keys.stream, &keys.partition];
    names.extend(retry.as_deref());
    let mut command = scripts::call(Which::Publish, &names);
    command.arg(way.names.channel(topic)).arg(envelope).arg(policy.history_size);
    command.arg(policy.history_ttl_s).arg(meta_ttl_s(policy));
    command.arg(way.generation).arg(way.publish).arg(key_ttl_s).arg(REPAIR_MS);
    command
}

/// What a waiting publish is counted as: its bytes, and about what it takes to keep them.
fn cost(publish: &Publish) -> usize {
    size_of::<Waiting>() + publish.topic.as_str().len() + publish.payload.len()
}
