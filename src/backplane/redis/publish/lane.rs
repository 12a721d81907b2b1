//! One lane of publishes: what waits, how it is written, and what its replies mean.

use crate::backplane::envelope;
use crate::backplane::history::begun::BegunHistories;
use crate::backplane::local::Local;
use crate::backplane::message::{IDEMPOTENCY_TTL, Message};
use crate::backplane::redis::broadcasts::chain::SentBroadcasts;
use crate::backplane::redis::broadcasts::scripts::broadcast;
use crate::backplane::redis::error_reply::ErrorReply;
use crate::backplane::redis::pipeline::{
    AnsweredBatch, BatchPipeline, CommandConnection, CommandContext, ItemReply, OutgoingBatch,
    RetryOrder,
};
use crate::backplane::redis::publish::item::{QueuedPublish, SentPublish};
use crate::backplane::redis::publish::order::{LaneOrder, Publisher};
use crate::backplane::redis::publish::refusal_log::RefusalLog;
use crate::backplane::redis::publish::unconfirmed::UnconfirmedLog;
use crate::backplane::redis::scripts::{
    self, HISTORY_SCRIPTS, HistoryScript, PublishReply, REPAIR_MS, StoredAt,
};
use crate::backplane::redis::unreadable::number_of;
use crate::ids::TopicName;
use crate::link::{Publish, PublishOutcome, ReplyTo};
use crate::policy::namespaces::{Namespaces, Policy};
use redis::{Cmd, Value};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Publishes in one batch.
pub(super) const COMMANDS_PER_BATCH: usize = 256;
/// Bytes after which a batch is closed. One message may be longer.
pub(super) const BATCH_BYTES: usize = 256 * 1024;
/// Batches in flight in one lane.
pub(super) const BATCHES_MAX: usize = 8;
/// Milliseconds after which a publish is sent again that the server refused because it has another
/// generation than this node believes. The canary finds out which.
const GENERATION_MS: u64 = 20;
/// Milliseconds a replica has to confirm a message. Beyond, its survival is unknown.
const REPLICA_MS_MAX: u64 = 500;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LaneKind {
    /// `PUBLISH`, not stored.
    Transient,
    /// Stored in a history.
    Stored,
    /// Stored, also on a replica.
    Replicated,
}

pub(super) struct Lane {
    kind: LaneKind,
    pub(super) waiting: VecDeque<QueuedPublish>,
    pub(super) pipeline: BatchPipeline<SentPublish>,
    order: LaneOrder,
}

/// What the replies to a batch change beside their lane.
pub(super) struct ReplyContext<'a> {
    pub(super) now: Instant,
    pub(super) commands: &'a CommandContext<'a>,
    pub(super) namespaces: &'a Namespaces,
    pub(super) local: &'a mut Local,
    pub(super) unconfirmed: &'a mut UnconfirmedLog,
    pub(super) broadcasts: &'a mut SentBroadcasts,
    pub(super) log: &'a mut RefusalLog,
    /// Set if the server has another generation than this node believes.
    pub(super) is_wrong_generation: &'a mut bool,
}

impl Lane {
    pub(super) fn new(kind: LaneKind) -> Lane {
        let pipeline = BatchPipeline::new(BATCHES_MAX, RetryOrder::InOrder);
        Lane { kind, waiting: VecDeque::new(), pipeline, order: LaneOrder::default() }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.pipeline.is_idle()
    }

    pub(super) fn may_send(&self) -> bool {
        !self.waiting.is_empty() && self.pipeline.may_send()
    }

    /// Puts refused publishes in front again when it is time. Returns their bytes.
    pub(super) fn take_due(&mut self, now: Instant) -> usize {
        let mut bytes = 0;
        for sent in self.pipeline.take_due(now).rev() {
            let queued = sent.into_queued();
            bytes += queued.bytes();
            self.waiting.push_front(queued);
        }
        bytes
    }

    /// Takes out the next publish that has waited too long. Only what was waiting counts in bytes.
    pub(super) fn pop_expired(
        &mut self,
        now: Instant,
        time_max: Duration,
    ) -> Option<(QueuedPublish, usize)> {
        let is_expired = |queued: &QueuedPublish| queued.is_expired(now, time_max);
        let is_sent_expired = |sent: &SentPublish| sent.queued().is_some_and(is_expired);
        if let Some(refused) = self.pipeline.pop_refused_if(is_sent_expired) {
            return Some((refused.into_queued(), 0));
        }
        self.waiting.front().filter(|queued| is_expired(queued))?;
        let expired = self.waiting.pop_front()?;
        let bytes = expired.bytes();
        Some((expired, bytes))
    }

    /// Takes out the publishes of topics that have moved, in order, and their bytes in the queue.
    pub(super) fn take_moved(
        &mut self,
        has_moved: impl Fn(&TopicName) -> bool,
    ) -> (Vec<QueuedPublish>, usize) {
        assert!(self.pipeline.has_none_in_flight(), "topics move while nothing is in flight");
        let is_moved = |queued: &QueuedPublish| has_moved(queued.topic());
        let refused = self.pipeline.extract_refused(|sent| sent.queued().is_some_and(is_moved));
        let all = std::mem::take(&mut self.waiting);
        let (waiting, stay): (Vec<_>, Vec<_>) = all.into_iter().partition(is_moved);
        self.waiting = stay.into();
        let bytes = waiting.iter().map(QueuedPublish::bytes).sum();
        let refused = refused.into_iter().map(SentPublish::into_queued);
        (refused.chain(waiting).collect(), bytes)
    }

    /// Takes out the next publish that may be sent. Those before it that may not are added to `held`,
    /// up to the size of a batch.
    fn pop_sendable(&mut self, held: &mut Vec<QueuedPublish>) -> Option<QueuedPublish> {
        while held.len() < COMMANDS_PER_BATCH {
            let queued = self.waiting.pop_front()?;
            if self.kind == LaneKind::Transient || self.order.try_send(queued.topic()) {
                return Some(queued);
            }
            held.push(queued);
        }
        None
    }

    /// Writes the next batch. Returns it, and the bytes that wait no longer; `None`: what waits may
    /// not be sent before something else has its reply.
    pub(super) fn build_batch(
        &mut self,
        context: &CommandContext<'_>,
        connection: &CommandConnection,
        namespaces: &Namespaces,
        envelope: &mut Vec<u8>,
        begun: &BegunHistories,
    ) -> Option<(OutgoingBatch<SentPublish>, usize)> {
        let capacity = self.waiting.len().min(COMMANDS_PER_BATCH);
        let mut batch = match self.kind {
            LaneKind::Transient => OutgoingBatch::new(capacity),
            _ => OutgoingBatch::with_scripts(capacity, connection, &HISTORY_SCRIPTS),
        };
        // Where topics do not move, a plain PUBLISH either succeeds or fails for good.
        let is_final = self.kind == LaneKind::Transient && !context.is_sharded();
        let (mut bytes, mut queue_bytes, mut held) = (0, 0, Vec::new());
        while batch.items.len() < capacity && bytes < BATCH_BYTES {
            let Some(queued) = self.pop_sendable(&mut held) else { break };
            queue_bytes += queued.bytes();
            envelope.clear();
            envelope::write(&Message::of(&queued.publish), context.version, envelope);
            bytes += envelope.len();
            if self.kind == LaneKind::Transient {
                let command = transient_command(&queued.publish, envelope, context);
                batch.commands.add_command(command);
            } else {
                let policy = namespaces.policy(queued.topic().kind());
                let forbidden = begun.allow(&queued.publish).forbidden();
                let command =
                    publish_command(&queued.publish, envelope, policy, forbidden, context);
                batch.commands.add_command(command);
            }
            batch.items.push(match is_final && !queued.is_broadcast() {
                true => SentPublish::DoneOnly(queued.publish.done),
                false => SentPublish::Retriable(Box::new(queued)),
            });
        }
        held.into_iter().rev().for_each(|queued| self.waiting.push_front(queued));
        if batch.is_empty() {
            return None;
        }
        if self.kind == LaneKind::Replicated {
            let mut wait = redis::cmd("WAIT");
            wait.arg(1).arg(REPLICA_MS_MAX);
            batch.end_with(wait);
        }
        Some((batch, queue_bytes))
    }

    /// Handles the replies to a batch.
    pub(super) fn handle_replies(
        &mut self,
        mut batch: AnsweredBatch<SentPublish>,
        context: &mut ReplyContext<'_>,
    ) {
        let now = context.now;
        let is_replicated = self.kind != LaneKind::Replicated || has_replica(batch.take_last());
        for (sent, reply) in batch {
            context.log.note(sent.queued(), &reply, context.commands.names, now, context.local);
            match (reply, sent) {
                (ItemReply::Ended(_), SentPublish::DoneOnly(done)) => {
                    context.local.end_publish(done, PublishOutcome::Accepted(None), now);
                }
                (ItemReply::Ended(value), SentPublish::Retriable(queued)) => {
                    self.handle_result(queued, &value, is_replicated, context);
                }
                (ItemReply::Again(refusal), SentPublish::Retriable(queued)) => {
                    let is_moved = refusal.kind == ErrorReply::Moved;
                    context.local.counters.redirects += u64::from(is_moved);
                    self.order.note_refused(queued.topic());
                    self.pipeline.send_again(SentPublish::Retriable(queued), refusal, now);
                }
                (_, sent) => {
                    sent.queued().inspect(|queued| self.order.note_ended(queued.topic()));
                    let failure = sent.failure();
                    context.local.end_publish(sent.into_done(), failure, now);
                }
            }
        }
    }

    /// Handles a reply that is no error.
    fn handle_result(
        &mut self,
        queued: Box<QueuedPublish>,
        value: &Value,
        is_replicated: bool,
        context: &mut ReplyContext<'_>,
    ) {
        let now = context.now;
        if self.kind == LaneKind::Transient {
            self.end_overtaken(&queued, now, context.local);
            let local = &mut *context.local;
            if queued.is_broadcast() {
                context.broadcasts.note_acknowledged(number_of(value).unwrap_or(0));
            }
            return local.end_publish(queued.publish.done, PublishOutcome::Accepted(None), now);
        }
        let parsed = scripts::parse_publish_reply(value);
        let retry_after_ms = match parsed {
            Some(PublishReply::RetryAfterMs(after_ms)) => Some(after_ms),
            Some(PublishReply::WrongGeneration) => {
                *context.is_wrong_generation = true;
                Some(GENERATION_MS)
            }
            _ => None,
        };
        if let Some(after_ms) = retry_after_ms {
            let at = now + Duration::from_millis(after_ms);
            self.order.note_refused(queued.topic());
            return self.pipeline.send_at(SentPublish::Retriable(queued), at, now);
        }
        match &parsed {
            Some(PublishReply::Stored(_)) => self.order.note_stored(queued.topic()),
            _ => self.order.note_ended(queued.topic()),
        }
        self.end_overtaken(&queued, now, context.local);
        let local = &mut *context.local;
        let mut publish = queued.publish;
        let done = std::mem::replace(&mut publish.done, ReplyTo::Nobody);
        let stored = match parsed {
            Some(PublishReply::Stored(stored)) => {
                note_stored(context.namespaces, &publish, stored, now, local);
                stored
            }
            Some(PublishReply::StoredBefore(at)) => StoredAt { at, parent: None },
            Some(PublishReply::Full(share)) => {
                return local.end_publish(done, PublishOutcome::Full(share), now);
            }
            // A reply that the script does not give leaves the outcome unknown.
            _ => return local.end_publish(done, PublishOutcome::Unknown, now),
        };
        let at = stored.at;
        context.unconfirmed.record(publish, stored, now);
        if is_replicated {
            local.end_publish(done, PublishOutcome::Accepted(Some(at)), now);
        } else {
            local.counters.publishes_unreplicated += 1;
            local.end_publish(done, PublishOutcome::Unknown, now);
        }
    }

    /// A publish is stored that was sent after those that are refused now: the ones of the same
    /// publisher to the same topic are too late.
    fn end_overtaken(&mut self, by: &QueuedPublish, now: Instant, local: &mut Local) {
        if self.pipeline.refused() == 0 {
            return;
        }
        let publisher = Publisher::of(by);
        let is_overtaken = |queued: &QueuedPublish| {
            Publisher::of(queued) == publisher && queued.topic() == by.topic()
        };
        let overtaken =
            self.pipeline.extract_refused(|sent| sent.queued().is_some_and(is_overtaken));
        for sent in overtaken {
            local.counters.publishes_overtaken += 1;
            let failure = sent.failure();
            local.end_publish(sent.into_done(), failure, now);
        }
    }

    /// The link is lost: the outcome of what was in flight is unknown. Publishes with an idempotency
    /// key are sent again. Returns whether a broadcast was in flight.
    pub(super) fn lose_link(&mut self, now: Instant, local: &mut Local) -> bool {
        let mut had_broadcast = false;
        self.order.lose_link();
        for sent in self.pipeline.lose_link() {
            had_broadcast |= sent.queued().is_some_and(QueuedPublish::is_broadcast);
            match sent {
                SentPublish::Retriable(mut queued)
                    if self.kind != LaneKind::Transient && queued.publish.key.is_some() =>
                {
                    queued.may_have_arrived = true;
                    self.pipeline.put_back(SentPublish::Retriable(queued));
                }
                sent => local.end_publish(sent.into_done(), PublishOutcome::Unknown, now),
            }
        }
        had_broadcast
    }
}

/// A message is stored that was not there before: what its publisher leaves behind counts.
fn note_stored(
    namespaces: &Namespaces,
    publish: &Publish,
    stored: StoredAt,
    now: Instant,
    local: &mut Local,
) {
    let ttl = Duration::from_secs(scripts::meta_ttl_s(namespaces.policy(publish.topic.kind())));
    local.begun.note_stored(publish, stored.at.offset == 1, ttl, now);
}

/// Whether `WAIT` reports a replica.
fn has_replica(answer: Option<Value>) -> bool {
    answer.as_ref().and_then(number_of).is_some_and(|replicas| replicas > 0)
}

/// The command that publishes a message without storing it; one to everybody is numbered.
fn transient_command(publish: &Publish, envelope: &[u8], context: &CommandContext<'_>) -> Cmd {
    let topic = publish.topic.as_str();
    let channel = context.names.channel(topic);
    if topic == TopicName::ALL {
        return broadcast(context.names, channel, envelope, context.publish);
    }
    let mut command = redis::cmd(context.publish);
    command.arg(channel).arg(envelope);
    command
}

/// The command that stores a message and publishes it (`lua/publish.lua`).
fn publish_command(
    publish: &Publish,
    envelope: &[u8],
    policy: &Policy,
    forbidden: u8,
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
    command.arg(forbidden);
    command
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn lane(kind: LaneKind, rooms: &[&str]) -> Lane {
        let mut lane = Lane::new(kind);
        for (number, room) in rooms.iter().enumerate() {
            let publish = Publish {
                topic: TopicName::room(room),
                payload: Bytes::from(number.to_string()),
                from: None,
                info: None,
                except: None,
                key: None,
                conflate_key: None,
                done: ReplyTo::Nobody,
            };
            let queued = QueuedPublish { publish, since: Instant::now(), may_have_arrived: false };
            lane.waiting.push_back(queued);
        }
        lane
    }

    /// The payloads of the next batch.
    fn sendable(lane: &mut Lane) -> Vec<Bytes> {
        let mut held = Vec::new();
        let all = std::iter::from_fn(|| lane.pop_sendable(&mut held));
        let payloads = all.map(|queued| queued.publish.payload).collect();
        held.into_iter().rev().for_each(|queued| lane.waiting.push_front(queued));
        payloads
    }

    #[test]
    fn one_publish_of_a_room_is_in_flight_until_the_server_has_stored_one() {
        let mut lane = lane(LaneKind::Stored, &["a", "a", "b", "a", "b"]);
        assert_eq!(sendable(&mut lane), ["0", "2"]);
        assert!(sendable(&mut lane).is_empty(), "each has one in flight");
        lane.order.note_stored(&TopicName::room("b"));
        assert_eq!(sendable(&mut lane), ["4"]);
        lane.order.note_stored(&TopicName::room("a"));
        assert_eq!(sendable(&mut lane), ["1", "3"]);
    }

    #[test]
    fn publishes_that_are_not_stored_do_not_wait_for_each_other() {
        let mut lane = lane(LaneKind::Transient, &["a", "a", "a"]);
        assert_eq!(sendable(&mut lane), ["0", "1", "2"]);
    }
}
