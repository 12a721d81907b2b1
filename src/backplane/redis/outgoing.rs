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

use super::link::{Reply, poll_reply, send};
use super::names::Names;
use crate::backplane::embedded::message;
use crate::backplane::envelope;
use crate::backplane::local::Local;
use crate::backplane::seldom::Seldom;
use crate::limits::Limits;
use crate::link::{Done, Outcome, Publish};
use redis::aio::MultiplexedConnection;
use redis::{Pipeline, RedisResult, Value};
use std::collections::VecDeque;
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

struct Waiting {
    publish: Publish,
    since: Instant,
}

struct Flight {
    dones: Vec<Done>,
    reply: Reply<Vec<Value>>,
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
}

impl Outgoing {
    /// Nothing waits.
    pub fn new(limits: &Limits) -> Outgoing {
        Outgoing {
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            flights: VecDeque::new(),
            under_way: 0,
            bytes_max: limits.publish_queue_bytes_max,
            time_max: Duration::from_millis(limits.publish_queue_ms_max),
            envelope: Vec::new(),
            refusals: Seldom::default(),
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
        self.waiting.is_empty() && self.flights.is_empty()
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
        cmd: &MultiplexedConnection,
        names: &Names,
        local: &mut Local,
    ) -> RedisResult<bool> {
        let mut is_busy = false;
        while self.flights.len() < FLIGHTS_MAX && !self.waiting.is_empty() {
            let (pipeline, dones) = self.load(names);
            self.under_way += dones.len();
            let reply = send(cx, fly(cmd.clone(), pipeline, dones.len()));
            self.flights.push_back(Flight { dones, reply });
            is_busy = true;
        }
        while let Some(front) = self.flights.front_mut() {
            let Poll::Ready(answers) = poll_reply(&mut front.reply, cx) else { break };
            let flight = self.flights.pop_front().expect("it was just looked at");
            self.under_way -= flight.dones.len();
            is_busy = true;
            match answers {
                Ok(answers) if answers.len() == flight.dones.len() => {
                    self.land(flight.dones, answers, now, local);
                }
                other => {
                    end_all(flight.dones, Outcome::Unknown, now, local);
                    other?;
                    return Err((redis::ErrorKind::Client, "replies are out of step").into());
                }
            }
        }
        Ok(is_busy)
    }

    /// The link is lost: what was under way may or may not have arrived.
    pub fn lose_link(&mut self, now: Instant, local: &mut Local) {
        self.under_way = 0;
        for flight in std::mem::take(&mut self.flights) {
            end_all(flight.dones, Outcome::Unknown, now, local);
        }
    }

    fn load(&mut self, names: &Names) -> (Pipeline, Vec<Done>) {
        let commands = self.waiting.len().min(COMMANDS_PER_FLIGHT);
        let mut pipeline = Pipeline::with_capacity(commands);
        let mut dones = Vec::with_capacity(commands);
        let mut bytes = 0;
        while dones.len() < commands && bytes < FLIGHT_BYTES {
            let Some(Waiting { publish, .. }) = self.waiting.pop_front() else { break };
            self.waiting_bytes -= cost(&publish);
            self.envelope.clear();
            envelope::write(&message(&publish), &mut self.envelope);
            let channel = names.channel(publish.topic.as_str());
            pipeline.cmd("PUBLISH").arg(channel).arg(&self.envelope[..]);
            bytes += self.envelope.len();
            dones.push(publish.done);
        }
        (pipeline, dones)
    }

    fn land(&mut self, dones: Vec<Done>, answers: Vec<Value>, now: Instant, local: &mut Local) {
        for (done, answer) in dones.into_iter().zip(answers) {
            let outcome = match answer {
                Value::ServerError(error) => {
                    if let Some(unsaid) = self.refusals.is_due(now) {
                        tracing::warn!(%error, unsaid, "Redis refused a publish");
                    }
                    Outcome::Unavailable
                }
                _ => Outcome::Accepted(None),
            };
            local.done(done, outcome, now);
        }
    }
}

fn end_all(dones: Vec<Done>, outcome: Outcome, now: Instant, local: &mut Local) {
    dones.into_iter().for_each(|done| local.done(done, outcome, now));
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
