//! The queue of publishes to one server: waiting, in flight, and how each one ends.
//!
//! There are three lanes ([`crate::backplane::redis::publish::lane`]): transient messages
//! (`PUBLISH`), messages with a history (`lua/publish.lua`), and messages that must be on a replica
//! before they are acknowledged (the same with `WAIT`, on a connection of its own, because `WAIT`
//! blocks the commands behind it). A topic belongs to one lane, so lanes need not wait for each
//! other. Each lane is one connection and pipelines in order
//! ([`crate::backplane::redis::pipeline`]), so that publishes of one shard to one topic hold their
//! order. A few batches are in flight at once; what arrives in that time makes the next one bigger.
//!
//! What a server refuses for a moment (a new generation, topics that are moving, too few replicas)
//! is sent again first. Until then nothing new is sent in its lane. Order holds through that, too
//! ([`crate::backplane::redis::publish::order`]).
//!
//! While Redis is down publishes wait, bounded in bytes and time; what does not fit, or waits too
//! long, ends as `Unavailable`: it was not sent. What was in flight when a link broke ends as
//! `Unknown`: it may have been delivered, so only the publisher can decide to send it again.
//! Publishes with an idempotency key are sent again, and end as `Unknown` only if that fails.
//!
//! Invariant: each publish ends exactly once.

use crate::backplane::local::Local;
use crate::backplane::redis::broadcasts::chain::SentBroadcasts;
use crate::backplane::redis::pipeline::{CommandConnection, CommandContext};
use crate::backplane::redis::publish::item::{QueuedPublish, queue_bytes};
use crate::backplane::redis::publish::lane::{
    BATCH_BYTES, BATCHES_MAX, COMMANDS_PER_BATCH, Lane, LaneKind, ReplyContext,
};
use crate::backplane::redis::publish::refusal_log::RefusalLog;
use crate::backplane::redis::publish::unconfirmed::UnconfirmedLog;
use crate::ids::TopicName;
use crate::link::{Publish, PublishOutcome};
use crate::policy::limits::Limits;
use crate::policy::namespaces::Namespaces;
use redis::RedisResult;
use std::sync::Arc;
use std::task::Context;
use std::time::{Duration, Instant};

/// Beyond this, while the link is up, nothing is taken from the shards. Twice what is in flight at
/// most, so the link is never idle for want of publishes.
const WAITING_MAX: usize = 2 * BATCHES_MAX * COMMANDS_PER_BATCH;
const WAITING_BYTES_MAX: usize = 2 * BATCHES_MAX * BATCH_BYTES;

/// After a server has refused something for so long, the shards are not held up for it any more.
const STUCK_AFTER: Duration = Duration::from_secs(1);

/// Publishes to one server, queued and in flight. Outlives links; owned by its server.
pub(crate) struct PublishQueue {
    lanes: [Lane; 3],
    waiting_bytes: usize,
    bytes_max: usize,
    time_max: Duration,
    envelope: Vec<u8>,
    log: RefusalLog,
    namespaces: Arc<Namespaces>,
    /// Something has been refused for longer than [`STUCK_AFTER`]: new publishes are bounded as if
    /// the link was down.
    is_stuck: bool,
    unconfirmed: UnconfirmedLog,
    /// What was sent to everybody.
    broadcasts: SentBroadcasts,
    /// The server has refused a publish since it has another generation.
    is_wrong_generation: bool,
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
            log: RefusalLog::default(),
            unconfirmed: UnconfirmedLog::new(namespaces.clone()),
            namespaces,
            is_stuck: false,
            broadcasts: SentBroadcasts::default(),
            is_wrong_generation: false,
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
        self.waiting_bytes += waiting.bytes();
        let policy = self.namespaces.policy(waiting.topic().kind());
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
            && self.lanes.iter().all(|lane| lane.pipeline.has_none_in_flight())
    }

    /// The acknowledged publishes that are not proven yet.
    pub(crate) fn unconfirmed(&mut self) -> &mut UnconfirmedLog {
        &mut self.unconfirmed
    }

    /// Stops or resumes sending.
    pub(crate) fn set_paused(&mut self, is_paused: bool) {
        self.unconfirmed.set_paused(is_paused);
        self.lanes.iter_mut().for_each(|lane| lane.pipeline.set_paused(is_paused));
    }

    /// Whether the server has redirected a topic since the last call.
    pub(crate) fn take_redirected(&mut self) -> bool {
        let take = |lane: &mut Lane| lane.pipeline.take_redirected();
        let lanes = self.lanes.iter_mut().map(take).fold(false, |one, other| one | other);
        self.unconfirmed.take_redirected() | lanes
    }

    /// Whether the server has another generation than was believed, since the last call.
    pub(crate) fn take_wrong_generation(&mut self) -> bool {
        std::mem::take(&mut self.is_wrong_generation)
    }

    /// What was sent to everybody since the last call.
    pub(crate) fn take_sent_broadcasts(&mut self) -> SentBroadcasts {
        std::mem::take(&mut self.broadcasts)
    }

    /// Takes out the publishes of topics that have moved to another server, in order.
    pub(crate) fn take_moved(
        &mut self,
        has_moved: impl Fn(&TopicName) -> bool,
    ) -> Vec<QueuedPublish> {
        let mut moved = Vec::new();
        for lane in &mut self.lanes {
            let (publishes, bytes) = lane.take_moved(&has_moved);
            self.waiting_bytes -= bytes;
            moved.extend(publishes);
        }
        moved
    }

    /// Bytes that are queued.
    pub(crate) fn waiting_bytes(&self) -> usize {
        self.waiting_bytes
    }

    /// Bytes that it holds beside what is queued.
    pub(crate) fn bytes_beside_queue(&self) -> usize {
        self.unconfirmed.held_bytes()
    }

    /// Publishes in flight.
    pub(crate) fn in_flight(&self) -> usize {
        self.lanes.iter().map(|lane| lane.pipeline.in_flight()).sum()
    }

    /// Ends publishes that have waited too long.
    pub(crate) fn expire(&mut self, now: Instant, local: &mut Local) {
        for lane in &mut self.lanes {
            while let Some((expired, bytes)) = lane.pop_expired(now, self.time_max) {
                self.waiting_bytes -= bytes;
                let failure = expired.failure();
                local.end_publish(expired.publish.done, failure, now);
            }
            if lane.waiting.is_empty() {
                lane.pipeline.note_nothing_waits();
            }
        }
        let is_stuck = |since: Instant| now.duration_since(since) >= STUCK_AFTER;
        self.is_stuck =
            self.lanes.iter().any(|lane| lane.pipeline.refused_since().is_some_and(is_stuck));
    }

    /// Sends what is queued and handles replies. Returns whether there was work.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        context: &CommandContext<'_>,
        local: &mut Local,
    ) -> RedisResult<bool> {
        let mut is_busy = self.unconfirmed.poll(cx, now, context)?;
        for kind in [LaneKind::Transient, LaneKind::Stored, LaneKind::Replicated] {
            let cmd =
                if kind == LaneKind::Replicated { context.replicated } else { Some(context.cmd) };
            let Some(cmd) = cmd else { continue };
            is_busy |= self.poll_lane(kind, cx, now, context, cmd, local)?;
        }
        Ok(is_busy)
    }

    fn poll_lane(
        &mut self,
        kind: LaneKind,
        cx: &mut Context<'_>,
        now: Instant,
        context: &CommandContext<'_>,
        cmd: &CommandConnection,
        local: &mut Local,
    ) -> RedisResult<bool> {
        let lane = &mut self.lanes[kind as usize];
        let mut is_busy = false;
        self.waiting_bytes += lane.take_due(now);
        while lane.may_send() {
            let (namespaces, envelope) = (&self.namespaces, &mut self.envelope);
            let batch = lane.build_batch(context, cmd, namespaces, envelope, &local.begun);
            let Some((batch, bytes)) = batch else { break };
            self.waiting_bytes -= bytes;
            lane.pipeline.send(cx, now, cmd, batch);
            is_busy = true;
        }
        Ok(is_busy | self.take_replies(kind, cx, now, context, local)?)
    }

    /// Handles what the server has answered before the link was lost.
    pub(crate) fn drain(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        context: &CommandContext<'_>,
        local: &mut Local,
    ) {
        for kind in [LaneKind::Transient, LaneKind::Stored, LaneKind::Replicated] {
            if !self.lanes[kind as usize].pipeline.has_failed() {
                let _ = self.take_replies(kind, cx, now, context, local);
            }
        }
    }

    fn take_replies(
        &mut self,
        kind: LaneKind,
        cx: &mut Context<'_>,
        now: Instant,
        context: &CommandContext<'_>,
        local: &mut Local,
    ) -> RedisResult<bool> {
        let lane = &mut self.lanes[kind as usize];
        let mut is_busy = false;
        while let Some(batch) = lane.pipeline.poll_answered(cx)? {
            let took = now.saturating_duration_since(batch.sent_at());
            local.counters.publish_round_trip.record(took);
            let (unconfirmed, log) = (&mut self.unconfirmed, &mut self.log);
            let (commands, broadcasts) = (context, &mut self.broadcasts);
            let is_wrong_generation = &mut self.is_wrong_generation;
            let mut context = ReplyContext {
                now,
                commands,
                namespaces: &self.namespaces,
                local,
                unconfirmed,
                broadcasts,
                log,
                is_wrong_generation,
            };
            lane.handle_replies(batch, &mut context);
            is_busy = true;
        }
        Ok(is_busy)
    }

    /// The link is lost: what was in flight may have arrived. Publishes with an idempotency key are
    /// sent again on the next link.
    pub(crate) fn lose_link(&mut self, now: Instant, local: &mut Local) {
        self.unconfirmed.lose_link();
        for lane in &mut self.lanes {
            self.broadcasts.is_unknown |= lane.lose_link(now, local);
        }
    }
}
