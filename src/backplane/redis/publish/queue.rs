//! The queue of publishes to one server: waiting, in flight, and how each one ends.
//!
//! There are three lanes: transient messages (`PUBLISH`), messages with a history
//! (`lua/publish.lua`), and messages that must be on a replica before they are acknowledged (the
//! same with `WAIT`, on a connection of its own, because `WAIT` blocks the commands behind it). A
//! topic belongs to one lane, so lanes need not wait for each other. Each lane is one connection
//! and pipelines in order, so that publishes of one shard to one topic keep their order. A few
//! batches are in flight at once; what arrives meanwhile makes the next batch bigger.
//!
//! What a server refuses for a moment (a new generation, topics that are moving, too few replicas)
//! is sent again first. Until then nothing new is sent in its lane.
//!
//! While Redis is down publishes wait, bounded in bytes and time; what does not fit, or waits too
//! long, ends as `Unavailable`: it was not sent. What was in flight when a link broke ends as
//! `Unknown`: it may have been delivered, so only the publisher can decide to send it again.
//! Publishes with an idempotency key are sent again, and end as `Unknown` only if that fails.
//!
//! Invariant: each publish ends exactly once.

use crate::backplane::envelope;
use crate::backplane::local::Local;
use crate::backplane::log_throttle::LogThrottle;
use crate::backplane::message::IDEMPOTENCY_TTL;
use crate::backplane::message::Message;
use crate::backplane::redis::error_reply::ErrorReply;
use crate::backplane::redis::names::Names;
use crate::backplane::redis::pipeline::{CommandContext, PendingReply, execute, poll_reply, send};
use crate::backplane::redis::publish::unconfirmed::UnconfirmedLog;
use crate::backplane::redis::scripts::{self, HistoryScript, PublishReply, REPAIR_MS};
use crate::backplane::redis::unreadable::{UnreadableWarnings, number_of};
use crate::ids::TopicName;
use crate::link::{Publish, PublishOutcome, ReplyTo};
use crate::policy::limits::Limits;
use crate::policy::namespaces::{Namespaces, Policy};
use redis::aio::MultiplexedConnection;
use redis::{Cmd, Pipeline, RedisResult, Value};
use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// Publishes in one batch.
const COMMANDS_PER_BATCH: usize = 256;
/// Bytes after which a batch is closed. One message may be longer.
const BATCH_BYTES: usize = 256 * 1024;
/// Batches in flight in one lane.
const BATCHES_MAX: usize = 8;
/// Beyond this, while the link is up, nothing is taken from the shards. Twice what is in flight at
/// most, so the link is never idle for want of publishes.
const WAITING_MAX: usize = 2 * BATCHES_MAX * COMMANDS_PER_BATCH;
const WAITING_BYTES_MAX: usize = 2 * BATCHES_MAX * BATCH_BYTES;

/// After a server has refused something for so long, the shards are not held up for it any more.
const STUCK_AFTER: Duration = Duration::from_secs(1);

/// Milliseconds a replica has to confirm a message. Beyond, its survival is unknown.
const REPLICA_MS_MAX: u64 = 500;

/// A publish that has not ended.
pub(crate) struct QueuedPublish {
    publish: Publish,
    since: Instant,
    /// It was in flight when a link broke, and may have been delivered.
    may_have_arrived: bool,
}

impl QueuedPublish {
    /// Its topic.
    pub(crate) fn topic(&self) -> &TopicName {
        &self.publish.topic
    }

    /// The outcome if it is not sent, or not again.
    fn failure(&self) -> PublishOutcome {
        if self.may_have_arrived { PublishOutcome::Unknown } else { PublishOutcome::Unavailable }
    }
}

struct PublishBatch {
    sent: Vec<Sent>,
    reply: PendingReply<Vec<Value>>,
    sent_at: Instant,
}

/// What is kept of a publish in flight.
enum Sent {
    /// Only whom to tell: it is not sent again, whatever the reply.
    DoneOnly(ReplyTo<PublishOutcome>),
    /// All of it: it may have to be sent again.
    Retriable(Box<QueuedPublish>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LaneKind {
    /// `PUBLISH`, not stored.
    Transient,
    /// Stored in a history.
    Stored,
    /// Stored, also on a replica.
    Replicated,
}

struct Lane {
    kind: LaneKind,
    waiting: VecDeque<QueuedPublish>,
    batches: VecDeque<PublishBatch>,
    in_flight: usize,
    /// Refused, to be sent again.
    retries: VecDeque<QueuedPublish>,
    retry_at: Option<Instant>,
    /// Since when `retries` has never been empty.
    refused_since: Option<Instant>,
}

/// Publishes to one server, queued and in flight. Outlives links; owned by its server.
pub(crate) struct PublishQueue {
    lanes: [Lane; 3],
    waiting_bytes: usize,
    bytes_max: usize,
    time_max: Duration,
    envelope: Vec<u8>,
    refusal_log: LogThrottle,
    unreadable: UnreadableWarnings,
    namespaces: Arc<Namespaces>,
    /// Nothing is sent: topics are about to move.
    is_paused: bool,
    /// Something has been refused for longer than [`STUCK_AFTER`]: new publishes are bounded as if
    /// the link was down.
    is_stuck: bool,
    /// The server has redirected a topic.
    is_redirected: bool,
    /// The scripts are being loaded.
    script_load: Option<PendingReply<()>>,
    unconfirmed: UnconfirmedLog,
}

impl PublishQueue {
    /// Nothing is queued.
    pub(crate) fn new(limits: &Limits, namespaces: Arc<Namespaces>) -> PublishQueue {
        PublishQueue {
            lanes: [LaneKind::Transient, LaneKind::Stored, LaneKind::Replicated].map(Lane::new),
            waiting_bytes: 0,
            bytes_max: limits.publish_queue_bytes_max,
            time_max: Duration::from_millis(limits.publish_queue_ms_max),
            envelope: Vec::new(),
            refusal_log: LogThrottle::default(),
            unreadable: UnreadableWarnings::default(),
            unconfirmed: UnconfirmedLog::new(namespaces.clone()),
            namespaces,
            is_paused: false,
            is_stuck: false,
            is_redirected: false,
            script_load: None,
        }
    }

    /// Queues a publish. While the link is down or stuck, one that finds no room ends as
    /// `Unavailable`.
    pub(crate) fn push(&mut self, publish: Publish, is_up: bool, now: Instant, local: &mut Local) {
        let bytes = queue_bytes(&publish);
        if (!is_up || self.is_stuck) && self.waiting_bytes + bytes > self.bytes_max {
            local.end_publish(publish.done, PublishOutcome::Unavailable, now);
            return;
        }
        self.push_back(QueuedPublish { publish, since: now, may_have_arrived: false });
    }

    /// Queues a publish that waited for another server.
    pub(crate) fn push_back(&mut self, waiting: QueuedPublish) {
        self.waiting_bytes += queue_bytes(&waiting.publish);
        let policy = self.namespaces.policy(waiting.publish.topic.kind());
        let kind = match policy.has_history() {
            false => LaneKind::Transient,
            true if policy.is_replicated() => LaneKind::Replicated,
            true => LaneKind::Stored,
        };
        self.lanes[kind as usize].waiting.push_back(waiting);
    }

    /// Whether there is room for more while the link is up. Always while it is stuck: otherwise one
    /// server would hold up the publishes to all.
    pub(crate) fn has_room(&self) -> bool {
        if self.is_stuck {
            return true;
        }
        let bytes_max = WAITING_BYTES_MAX.min(self.bytes_max);
        let waiting: usize = self.lanes.iter().map(|lane| lane.waiting.len()).sum();
        waiting < WAITING_MAX && self.waiting_bytes < bytes_max
    }

    /// Whether nothing is queued or in flight.
    pub(crate) fn is_idle(&self) -> bool {
        self.lanes.iter().all(Lane::is_idle)
    }

    /// Whether nothing is in flight.
    pub(crate) fn has_none_in_flight(&self) -> bool {
        self.unconfirmed.has_none_in_flight()
            && self.lanes.iter().all(|lane| lane.batches.is_empty())
    }

    /// The acknowledged publishes that are not proven yet.
    pub(crate) fn unconfirmed(&mut self) -> &mut UnconfirmedLog {
        &mut self.unconfirmed
    }

    /// Stops or resumes sending.
    pub(crate) fn set_paused(&mut self, is_paused: bool) {
        self.is_paused = is_paused;
    }

    /// Whether the server has redirected a topic since the last call.
    pub(crate) fn take_redirected(&mut self) -> bool {
        std::mem::take(&mut self.is_redirected)
    }

    /// Takes out the publishes of topics that have moved to another server, in order.
    pub(crate) fn take_moved(
        &mut self,
        has_moved: impl Fn(&TopicName) -> bool,
    ) -> Vec<QueuedPublish> {
        let mut moved = Vec::new();
        for lane in &mut self.lanes {
            assert!(lane.batches.is_empty(), "topics move while nothing is in flight");
            let is_gone = |waiting: &mut QueuedPublish| has_moved(&waiting.publish.topic);
            let retries = extract(&mut lane.retries, is_gone);
            let waiting = extract(&mut lane.waiting, is_gone);
            let bytes: usize = waiting.iter().map(|waiting| queue_bytes(&waiting.publish)).sum();
            self.waiting_bytes -= bytes;
            moved.extend(retries.into_iter().chain(waiting));
            if lane.retries.is_empty() {
                (lane.retry_at, lane.refused_since) = (None, None);
            }
        }
        moved
    }

    /// Bytes that are queued.
    pub(crate) fn waiting_bytes(&self) -> usize {
        self.waiting_bytes
    }

    /// Publishes in flight.
    pub(crate) fn in_flight(&self) -> usize {
        self.lanes.iter().map(|lane| lane.in_flight).sum()
    }

    /// Ends publishes that have waited too long.
    pub(crate) fn expire(&mut self, now: Instant, local: &mut Local) {
        let time_max = self.time_max;
        for lane in &mut self.lanes {
            while let Some(expired) = pop_expired(&mut lane.retries, now, time_max) {
                let failure = expired.failure();
                local.end_publish(expired.publish.done, failure, now);
            }
            while let Some(expired) = pop_expired(&mut lane.waiting, now, time_max) {
                self.waiting_bytes -= queue_bytes(&expired.publish);
                let failure = expired.failure();
                local.end_publish(expired.publish.done, failure, now);
            }
            // Nothing is left of it, and no reply may come that would show that it is over.
            if lane.is_idle() {
                lane.refused_since = None;
            }
        }
        let is_stuck = |since: Instant| now.duration_since(since) >= STUCK_AFTER;
        self.is_stuck = self.lanes.iter().any(|lane| lane.refused_since.is_some_and(is_stuck));
    }

    /// Sends what is queued and handles replies. Returns whether there was work.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        context: &CommandContext<'_>,
        local: &mut Local,
    ) -> RedisResult<bool> {
        let mut is_busy = self.poll_script_load(cx)?;
        is_busy |= self.unconfirmed.poll(cx, now, context, !self.is_paused)?;
        if self.unconfirmed.take_script_missing() && self.script_load.is_none() {
            self.script_load = Some(send(cx, scripts::load(context.cmd.clone())));
        }
        for kind in [LaneKind::Transient, LaneKind::Stored, LaneKind::Replicated] {
            let cmd =
                if kind == LaneKind::Replicated { context.replicated } else { Some(context.cmd) };
            let Some(cmd) = cmd else { continue };
            is_busy |= self.poll_lane(kind as usize, cx, now, context, cmd, local)?;
        }
        Ok(is_busy)
    }

    fn poll_lane(
        &mut self,
        lane: usize,
        cx: &mut Context<'_>,
        now: Instant,
        context: &CommandContext<'_>,
        cmd: &MultiplexedConnection,
        local: &mut Local,
    ) -> RedisResult<bool> {
        let mut is_busy = false;
        if self.script_load.is_none() {
            self.waiting_bytes += self.lanes[lane].requeue_retries(now);
        }
        while !self.is_paused && self.lanes[lane].may_send() {
            let (pipeline, sent) = self.build_batch(lane, context);
            let lane = &mut self.lanes[lane];
            lane.in_flight += sent.len();
            let reply = send(cx, execute(cmd.clone(), pipeline));
            lane.batches.push_back(PublishBatch { sent, reply, sent_at: now });
            is_busy = true;
        }
        while let Some(front) = self.lanes[lane].batches.front_mut() {
            let Poll::Ready(answers) = poll_reply(&mut front.reply, cx) else { break };
            let batch = self.lanes[lane].batches.pop_front().expect("it was just looked at");
            self.lanes[lane].in_flight -= batch.sent.len();
            is_busy = true;
            let extra = usize::from(self.lanes[lane].kind == LaneKind::Replicated);
            match answers {
                Ok(answers) if answers.len() == batch.sent.len() + extra => {
                    let took = now.saturating_duration_since(batch.sent_at);
                    local.counters.publish_round_trip.record(took);
                    let is_script_missing =
                        self.handle_replies(lane, batch.sent, answers, context.names, now, local)?;
                    if is_script_missing && self.script_load.is_none() {
                        self.script_load = Some(send(cx, scripts::load(context.cmd.clone())));
                    }
                }
                other => {
                    self.lanes[lane].abandon(batch.sent, now, local);
                    other?;
                    return Err((redis::ErrorKind::Client, "replies are out of step").into());
                }
            }
        }
        Ok(is_busy)
    }

    fn poll_script_load(&mut self, cx: &mut Context<'_>) -> RedisResult<bool> {
        let Some(script_load) = &mut self.script_load else { return Ok(false) };
        let Poll::Ready(loaded) = poll_reply(script_load, cx) else { return Ok(false) };
        self.script_load = None;
        loaded.map(|()| true)
    }

    /// The link is lost: what was in flight may have arrived. Publishes with an idempotency key are
    /// sent again on the next link.
    pub(crate) fn lose_link(&mut self, now: Instant, local: &mut Local) {
        self.script_load = None;
        self.unconfirmed.lose_link();
        for lane in &mut self.lanes {
            lane.in_flight = 0;
            (lane.retry_at, lane.refused_since) = (None, None);
            // What was refused was sent before what is in flight.
            for batch in std::mem::take(&mut lane.batches) {
                lane.abandon(batch.sent, now, local);
            }
        }
    }

    fn build_batch(&mut self, lane: usize, context: &CommandContext<'_>) -> (Pipeline, Vec<Sent>) {
        let lane = &mut self.lanes[lane];
        let commands = lane.waiting.len().min(COMMANDS_PER_BATCH);
        let mut pipeline = Pipeline::with_capacity(commands + 1);
        let mut sent = Vec::with_capacity(commands);
        let mut bytes = 0;
        while sent.len() < commands && bytes < BATCH_BYTES {
            let Some(waiting) = lane.waiting.pop_front() else { break };
            self.waiting_bytes -= queue_bytes(&waiting.publish);
            self.envelope.clear();
            envelope::write(&Message::of(&waiting.publish), &mut self.envelope);
            bytes += self.envelope.len();
            if lane.kind == LaneKind::Transient {
                let channel = context.names.channel(waiting.publish.topic.as_str());
                pipeline.cmd(context.publish).arg(channel).arg(&self.envelope[..]);
            } else {
                let policy = self.namespaces.policy(waiting.publish.topic.kind());
                pipeline.add_command(publish_command(
                    &waiting.publish,
                    &self.envelope,
                    policy,
                    context,
                ));
            }
            // Where topics do not move, a plain PUBLISH either succeeds or fails for good.
            sent.push(match lane.kind == LaneKind::Transient && !context.is_sharded() {
                true => Sent::DoneOnly(waiting.publish.done),
                false => Sent::Retriable(Box::new(waiting)),
            });
        }
        if lane.kind == LaneKind::Replicated {
            pipeline.cmd("WAIT").arg(1).arg(REPLICA_MS_MAX);
        }
        (pipeline, sent)
    }

    /// Handles the replies to a batch. Returns whether the server does not know the scripts. `Err`:
    /// it is no longer a master.
    fn handle_replies(
        &mut self,
        lane: usize,
        sent: Vec<Sent>,
        mut answers: Vec<Value>,
        names: &Names,
        now: Instant,
        local: &mut Local,
    ) -> RedisResult<bool> {
        let (lane, unconfirmed) = (&mut self.lanes[lane], &mut self.unconfirmed);
        let is_replicated = lane.kind != LaneKind::Replicated || has_replica(answers.pop());
        let (mut is_script_missing, mut demoted) = (false, None);
        for (sent, answer) in sent.into_iter().zip(answers) {
            let refusal = ErrorReply::of(&answer);
            if let (Some(refusal), Value::ServerError(error)) = (refusal, &answer) {
                let topic = sent.topic();
                if let (ErrorReply::Unreadable, Some(topic)) = (refusal, topic) {
                    local.counters.histories_unreadable += 1;
                    let error = redis::RedisError::from(error.clone());
                    self.unreadable.warn(topic.as_str(), &error, names, now);
                } else if refusal != ErrorReply::ScriptMissing
                    && let Some(suppressed) = self.refusal_log.is_due(now)
                {
                    tracing::warn!(?topic, %error, suppressed, "Redis refused a publish");
                }
            }
            match (refusal, sent) {
                (None, Sent::DoneOnly(done)) => {
                    local.end_publish(done, PublishOutcome::Accepted(None), now)
                }
                (None, Sent::Retriable(waiting)) => {
                    lane.handle_reply(*waiting, &answer, is_replicated, now, local, unconfirmed);
                }
                (Some(refusal), Sent::Retriable(waiting)) if refusal.is_transient() => {
                    is_script_missing |= refusal == ErrorReply::ScriptMissing;
                    self.is_redirected |= refusal == ErrorReply::Moved;
                    local.counters.redirects += u64::from(refusal == ErrorReply::Moved);
                    lane.retries.push_back(*waiting);
                    lane.delay_until(now + refusal.retry_after());
                    if refusal == ErrorReply::Demoted {
                        demoted = Some(answer);
                    }
                }
                (Some(_), sent) => {
                    let failure = sent.failure();
                    local.end_publish(sent.into_done(), failure, now);
                }
            }
        }
        lane.refused_since = match lane.retries.is_empty() {
            true => None,
            false => lane.refused_since.or(Some(now)),
        };
        match demoted {
            Some(answer) => answer.extract_error().map(|_| is_script_missing),
            None => Ok(is_script_missing),
        }
    }
}

impl Lane {
    fn new(kind: LaneKind) -> Lane {
        Lane {
            kind,
            waiting: VecDeque::new(),
            batches: VecDeque::new(),
            in_flight: 0,
            retries: VecDeque::new(),
            retry_at: None,
            refused_since: None,
        }
    }

    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.batches.is_empty() && self.retries.is_empty()
    }

    fn may_send(&self) -> bool {
        self.batches.len() < BATCHES_MAX && !self.waiting.is_empty() && self.retries.is_empty()
    }

    fn delay_until(&mut self, until: Instant) {
        self.retry_at = Some(self.retry_at.map_or(until, |other| other.max(until)));
    }

    /// Puts refused publishes in front again, once nothing is in flight that could overtake them.
    /// Returns their bytes.
    fn requeue_retries(&mut self, now: Instant) -> usize {
        let is_time = self.retry_at.is_none_or(|at| at <= now);
        if self.retries.is_empty() || !self.batches.is_empty() || !is_time {
            return 0;
        }
        self.retry_at = None;
        let mut bytes = 0;
        while let Some(waiting) = self.retries.pop_back() {
            bytes += queue_bytes(&waiting.publish);
            self.waiting.push_front(waiting);
        }
        bytes
    }

    /// Handles a reply that is no error.
    fn handle_reply(
        &mut self,
        waiting: QueuedPublish,
        answer: &Value,
        is_replicated: bool,
        now: Instant,
        local: &mut Local,
        unconfirmed: &mut UnconfirmedLog,
    ) {
        let parsed = if self.kind == LaneKind::Transient {
            None
        } else {
            scripts::parse_publish_reply(answer)
        };
        if let Some(PublishReply::RetryAfterMs(after_ms)) = parsed {
            self.retries.push_back(waiting);
            return self.delay_until(now + Duration::from_millis(after_ms));
        }
        let mut publish = waiting.publish;
        let done = std::mem::replace(&mut publish.done, ReplyTo::Nobody);
        let Some(PublishReply::StoredAt(at)) = parsed else {
            // A reply that the script does not give leaves the outcome unknown.
            let is_transient = self.kind == LaneKind::Transient;
            let outcome =
                if is_transient { PublishOutcome::Accepted(None) } else { PublishOutcome::Unknown };
            return local.end_publish(done, outcome, now);
        };
        unconfirmed.record(publish, at, now);
        if is_replicated {
            local.end_publish(done, PublishOutcome::Accepted(Some(at)), now);
        } else {
            local.counters.publishes_unreplicated += 1;
            local.end_publish(done, PublishOutcome::Unknown, now);
        }
    }

    /// The outcome of these is unknown. Those with an idempotency key are sent again.
    fn abandon(&mut self, sent: Vec<Sent>, now: Instant, local: &mut Local) {
        for sent in sent {
            match sent {
                Sent::Retriable(mut waiting)
                    if self.kind != LaneKind::Transient && waiting.publish.key.is_some() =>
                {
                    waiting.may_have_arrived = true;
                    self.retries.push_back(*waiting);
                }
                sent => local.end_publish(sent.into_done(), PublishOutcome::Unknown, now),
            }
        }
    }
}

impl Sent {
    /// As [`QueuedPublish::failure`].
    fn failure(&self) -> PublishOutcome {
        match self {
            Sent::DoneOnly(_) => PublishOutcome::Unavailable,
            Sent::Retriable(waiting) => waiting.failure(),
        }
    }

    /// Its topic, if it is kept.
    fn topic(&self) -> Option<&TopicName> {
        match self {
            Sent::DoneOnly(_) => None,
            Sent::Retriable(waiting) => Some(waiting.topic()),
        }
    }

    fn into_done(self) -> ReplyTo<PublishOutcome> {
        match self {
            Sent::DoneOnly(done) => done,
            Sent::Retriable(waiting) => waiting.publish.done,
        }
    }
}

fn pop_expired(
    queue: &mut VecDeque<QueuedPublish>,
    now: Instant,
    time_max: Duration,
) -> Option<QueuedPublish> {
    let is_late = now.duration_since(queue.front()?.since) >= time_max;
    if is_late { queue.pop_front() } else { None }
}

/// Takes some out of a queue; both keep their order.
fn extract(
    queue: &mut VecDeque<QueuedPublish>,
    mut is_wanted: impl FnMut(&mut QueuedPublish) -> bool,
) -> Vec<QueuedPublish> {
    let (mut taken, mut stay) = (Vec::new(), VecDeque::new());
    for mut waiting in std::mem::take(queue) {
        match is_wanted(&mut waiting) {
            true => taken.push(waiting),
            false => stay.push_back(waiting),
        }
    }
    *queue = stay;
    taken
}

/// Whether `WAIT` reports a replica.
fn has_replica(answer: Option<Value>) -> bool {
    answer.as_ref().and_then(number_of).is_some_and(|replicas| replicas > 0)
}

/// The command that stores a message and publishes it (`lua/publish.lua`).
fn publish_command(
    publish: &Publish,
    envelope: &[u8],
    policy: &Policy,
    context: &CommandContext<'_>,
) -> Cmd {
    let topic = publish.topic.as_str();
    let keys = context.names.history_keys(topic);
    let retry = publish.key.as_ref().map(|key| format!("{}:{key}", keys.retry));
    let key_ttl_s = retry.as_ref().map_or(0, |_| IDEMPOTENCY_TTL.as_secs());
    let mut names = vec![&keys.meta[..], &keys.stream, &keys.partition];
    names.extend(retry.as_deref());
    let mut command = scripts::call(HistoryScript::Publish, &names);
    command.arg(context.names.channel(topic)).arg(envelope).arg(policy.history_size);
    command.arg(policy.history_ttl_s).arg(scripts::meta_ttl_s(policy));
    command.arg(context.generation).arg(context.publish).arg(key_ttl_s).arg(REPAIR_MS);
    command
}

/// Bytes for which a queued publish counts: its content and about what it takes to keep it.
fn queue_bytes(publish: &Publish) -> usize {
    size_of::<QueuedPublish>() + publish.topic.as_str().len() + publish.payload.len()
}
