//! Publishes on their way to Redis: what waits, what is under way, and how each one ends.
//!
//! One connection and pipelines in order, so that what one shard says to one topic keeps its order.
//! A few pipelines are under way at once; what comes meanwhile waits and makes the next one bigger.
//!
//! While Redis is away publishes wait, bounded in bytes and time; what does not fit, or waits too
//! long, ends as `Unavailable`: it was not sent. What was under way when a link broke ends as
//! `Unknown`: it may have been delivered, so nobody but the publisher may decide to send it again.
//!
//! Invariant: every publish ends exactly once.

use super::histories::meta_ttl_s;
use super::link::{Reply, poll_reply, send};
use super::names::Names;
use super::scripts::{self, Which};
use crate::backplane::embedded::message;
use crate::backplane::envelope;
use crate::backplane::local::Local;
use crate::backplane::logs::KEYS_TIME;
use crate::backplane::seldom::Seldom;
use crate::ids::Position;
use crate::limits::Limits;
use crate::link::{Done, Outcome, Publish};
use crate::namespaces::{Namespaces, Policy};
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
/// Pipelines under way.
const FLIGHTS_MAX: usize = 8;
/// Beyond this, while the link is up, the shards are not asked for more. Twice what is under way
/// at most, so the link never idles for want of them.
const WAITING_MAX: usize = 2 * FLIGHTS_MAX * COMMANDS_PER_FLIGHT;
const WAITING_BYTES_MAX: usize = 2 * FLIGHTS_MAX * FLIGHT_BYTES;

/// How long a server that is another one than before waits for what nodes can put back.
const REPAIR_MS: u64 = 300;

struct Waiting {
    publish: Publish,
    since: Instant,
}

struct Flight {
    sent: Vec<Sent>,
    reply: Reply<Vec<Value>>,
}

/// What is remembered of a publish that is under way.
enum Sent {
    /// Said, and nothing more.
    Plain(Done),
    /// To be kept in a history: it may have to be sent again.
    Kept(Box<Waiting>),
}

/// What became of one that is to be kept.
enum Kept {
    At(Position),
    /// It was not said, and is to be sent again, not before so many milliseconds.
    Again(u64),
    /// The same, when the scripts are loaded.
    Unloaded,
    Refused,
}

/// See the module. It outlives links.
pub struct Outgoing {
    waiting: VecDeque<Waiting>,
    waiting_bytes: usize,
    flights: VecDeque<Flight>,
    under_way: usize,
    bytes_max: usize,
    time_max: Duration,
    envelope: Vec<u8>,
    refusals: Seldom,
    namespaces: Arc<Namespaces>,
    /// Refused for now. While there are any, nothing new is sent: they were first.
    again: VecDeque<Waiting>,
    again_at: Option<Instant>,
    /// The scripts are being loaded.
    loading: Option<Reply<()>>,
}

impl Outgoing {
    /// Nothing waits.
    pub fn new(limits: &Limits, namespaces: Arc<Namespaces>) -> Outgoing {
        Outgoing {
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            flights: VecDeque::new(),
            under_way: 0,
            bytes_max: limits.publish_queue_bytes_max,
            time_max: Duration::from_millis(limits.publish_queue_ms_max),
            envelope: Vec::new(),
            refusals: Seldom::default(),
            namespaces,
            again: VecDeque::new(),
            again_at: None,
            loading: None,
        }
    }

    /// Takes a publish; while the link is down only as far as there is room for it.
    pub fn push(&mut self, publish: Publish, now: Instant, local: &mut Local) {
        let bytes = cost(&publish);
        if !local.is_up() && self.waiting_bytes + bytes > self.bytes_max {
            local.done(publish.done, Outcome::Unavailable, now);
            return;
        }
        self.waiting_bytes += bytes;
        self.waiting.push_back(Waiting { publish, since: now });
    }

    /// Whether there is room for more while the link is up.
    pub fn has_room(&self) -> bool {
        let bytes_max = WAITING_BYTES_MAX.min(self.bytes_max);
        self.waiting.len() < WAITING_MAX && self.waiting_bytes < bytes_max
    }

    /// Whether nothing waits and nothing is under way.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.flights.is_empty() && self.again.is_empty()
    }

    /// Bytes that wait.
    pub fn waiting_bytes(&self) -> usize {
        self.waiting_bytes
    }

    /// Publishes sent and not answered.
    pub fn under_way(&self) -> usize {
        self.under_way
    }

    /// Ends what has waited too long.
    pub fn expire(&mut self, now: Instant, local: &mut Local) {
        while let Some(first) = self.again.front()
            && now.duration_since(first.since) >= self.time_max
        {
            let late = self.again.pop_front().expect("it was just looked at");
            local.done(late.publish.done, Outcome::Unavailable, now);
        }
        while let Some(front) = self.waiting.front() {
            if now.duration_since(front.since) < self.time_max {
                return;
            }
            let late = self.waiting.pop_front().expect("it was just looked at");
            self.waiting_bytes -= cost(&late.publish);
            local.done(late.publish.done, Outcome::Unavailable, now);
        }
    }

    /// Sends what waits, and tells what was answered. Whether there was anything to do.
    pub fn poll(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        link: (&MultiplexedConnection, &str),
        names: &Names,
        local: &mut Local,
    ) -> RedisResult<bool> {
        let (cmd, generation) = link;
        let mut is_busy = self.poll_loading(cx)?;
        self.send_again(now);
        while self.flights.len() < FLIGHTS_MAX && !self.waiting.is_empty() && self.again.is_empty()
        {
            let (pipeline, sent) = self.load(names, generation);
            self.under_way += sent.len();
            let reply = send(cx, fly(cmd.clone(), pipeline, sent.len()));
            self.flights.push_back(Flight { sent, reply });
            is_busy = true;
        }
        while let Some(front) = self.flights.front_mut() {
            let Poll::Ready(answers) = poll_reply(&mut front.reply, cx) else { break };
            let flight = self.flights.pop_front().expect("it was just looked at");
            self.under_way -= flight.sent.len();
            is_busy = true;
            match answers {
                Ok(answers) if answers.len() == flight.sent.len() => {
                    if self.land(flight.sent, answers, now, local) && self.loading.is_none() {
                        self.loading = Some(send(cx, scripts::load(cmd.clone())));
                    }
                }
                other => {
                    self.end_all(flight.sent, now, local);
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

    /// What was refused goes first again, once nothing is under way that could overtake it.
    fn send_again(&mut self, now: Instant) {
        let is_time = self.again_at.is_none_or(|at| at <= now);
        if self.again.is_empty() || !self.flights.is_empty() || self.loading.is_some() || !is_time {
            return;
        }
        self.again_at = None;
        while let Some(waiting) = self.again.pop_back() {
            self.waiting_bytes += cost(&waiting.publish);
            self.waiting.push_front(waiting);
        }
    }

    /// The link is lost: what was under way may or may not have arrived. What has a key is sent again
    /// on the next one.
    pub fn lose_link(&mut self, now: Instant, local: &mut Local) {
        self.under_way = 0;
        self.loading = None;
        self.again_at = None;
        let mut again = std::mem::take(&mut self.again);
        for flight in std::mem::take(&mut self.flights) {
            for sent in flight.sent {
                match sent {
                    Sent::Kept(waiting) if waiting.publish.key.is_some() => {
                        again.push_back(*waiting)
                    }
                    sent => local.done(sent.into_done(), Outcome::Unknown, now),
                }
            }
        }
        self.again = again;
    }

    fn load(&mut self, names: &Names, generation: &str) -> (Pipeline, Vec<Sent>) {
        let commands = self.waiting.len().min(COMMANDS_PER_FLIGHT);
        let mut pipeline = Pipeline::with_capacity(commands);
        let mut sent = Vec::with_capacity(commands);
        let mut bytes = 0;
        while sent.len() < commands && bytes < FLIGHT_BYTES {
            let Some(waiting) = self.waiting.pop_front() else { break };
            self.waiting_bytes -= cost(&waiting.publish);
            self.envelope.clear();
            envelope::write(&message(&waiting.publish), &mut self.envelope);
            bytes += self.envelope.len();
            let policy = self.namespaces.policy(waiting.publish.topic.kind());
            if policy.has_history() {
                let command = keep(&waiting.publish, &self.envelope, policy, names, generation);
                pipeline.add_command(command);
                sent.push(Sent::Kept(Box::new(waiting)));
            } else {
                let channel = names.channel(waiting.publish.topic.as_str());
                pipeline.cmd("PUBLISH").arg(channel).arg(&self.envelope[..]);
                sent.push(Sent::Plain(waiting.publish.done));
            }
        }
        (pipeline, sent)
    }

    /// Tells what was answered. Whether the server has forgotten the scripts.
    fn land(
        &mut self,
        sent: Vec<Sent>,
        answers: Vec<Value>,
        now: Instant,
        local: &mut Local,
    ) -> bool {
        let mut is_unloaded = false;
        for (sent, answer) in sent.into_iter().zip(answers) {
            if let Value::ServerError(error) = &answer
                && !scripts::is_unknown(&answer)
                && let Some(unsaid) = self.refusals.is_due(now)
            {
                tracing::warn!(%error, unsaid, "Redis refused a publish");
            }
            let is_error = matches!(answer, Value::ServerError(_));
            match sent {
                Sent::Plain(done) if is_error => local.done(done, Outcome::Unavailable, now),
                Sent::Plain(done) => local.done(done, Outcome::Accepted(None), now),
                Sent::Kept(waiting) => match kept(&answer) {
                    Kept::At(at) => {
                        local.done(waiting.publish.done, Outcome::Accepted(Some(at)), now);
                    }
                    Kept::Again(after_ms) => {
                        let at = now + Duration::from_millis(after_ms);
                        self.again_at = Some(self.again_at.map_or(at, |other| other.max(at)));
                        self.again.push_back(*waiting);
                    }
                    Kept::Unloaded => {
                        is_unloaded = true;
                        self.again.push_back(*waiting);
                    }
                    Kept::Refused => {
                        local.done(waiting.publish.done, Outcome::Unavailable, now);
                    }
                },
            }
        }
        is_unloaded
    }

    fn end_all(&mut self, sent: Vec<Sent>, now: Instant, local: &mut Local) {
        for sent in sent {
            match sent {
                Sent::Kept(waiting) if waiting.publish.key.is_some() => {
                    self.again.push_back(*waiting);
                }
                sent => local.done(sent.into_done(), Outcome::Unknown, now),
            }
        }
    }
}

impl Sent {
    fn into_done(self) -> Done {
        match self {
            Sent::Plain(done) => done,
            Sent::Kept(waiting) => waiting.publish.done,
        }
    }
}

/// The command that gives a message its place and says it (`lua/publish.lua`).
fn keep(
    publish: &Publish,
    envelope: &[u8],
    policy: &Policy,
    names: &Names,
    generation: &str,
) -> Cmd {
    let topic = publish.topic.as_str();
    let keys = names.history_keys(topic);
    let retry = match &publish.key {
        Some(key) => format!("{}:{key}", keys.retry),
        None => keys.retry,
    };
    let key_ttl_s = publish.key.as_ref().map_or(0, |_| KEYS_TIME.as_secs());
    let mut command = scripts::call(Which::Publish, &[&keys.meta, &keys.stream, &retry]);
    command.arg(names.channel(topic)).arg(envelope).arg(policy.history_size);
    command.arg(policy.history_ttl_s).arg(meta_ttl_s(policy));
    command.arg(generation).arg("PUBLISH").arg(key_ttl_s).arg(REPAIR_MS);
    command
}

fn kept(answer: &Value) -> Kept {
    if scripts::is_unknown(answer) {
        return Kept::Unloaded;
    }
    match scripts::status(answer) {
        Some((0, _, after_ms)) => Kept::Again(after_ms),
        Some((_, epoch, offset)) => Kept::At(Position { epoch, offset }),
        None => Kept::Refused,
    }
}

/// What a waiting publish is counted as: its bytes, and about what it takes to keep them.
fn cost(publish: &Publish) -> usize {
    size_of::<Waiting>() + publish.topic.as_str().len() + publish.payload.len()
}

async fn fly(
    mut cmd: MultiplexedConnection,
    pipeline: Pipeline,
    commands: usize,
) -> RedisResult<Vec<Value>> {
    cmd.send_packed_commands(&pipeline, 0, commands).await
}
