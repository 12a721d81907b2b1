//! Acknowledged publishes of this node that no subscriber has confirmed yet; verified again after a
//! failover.
//!
//! A server that dies may have answered a publish and not yet sent it to any subscriber: one write
//! to a socket comes before the other. Then only the publishing node knows the message. So it
//! remembers acknowledged publishes until a canary has come back after them, which proves that they
//! were sent to subscribers; and when the next server has another generation, it asks for each
//! whether it is there, and appends it if it is the next one (`lua/verify.lua`). Other nodes may
//! first have to repair what comes before it ([`crate::backplane::redis::history`]), so it is asked
//! again for as long as the server is in its repair window. What no node has is announced as lost, and
//! the message is appended behind it ([`crate::backplane::redis::server`] has the protocol).
//!
//! Invariant: publishes of one topic are in the order of their positions.

use crate::backplane::envelope;
use crate::backplane::log_throttle::LogThrottle;
use crate::backplane::message::IDEMPOTENCY_TTL;
use crate::backplane::message::Message;
use crate::backplane::redis::pipeline::{
    AnsweredBatch, BatchPipeline, CommandContext, ItemReply, OutgoingBatch, RetryOrder,
};
use crate::backplane::redis::scripts::{
    self, HISTORY_SCRIPTS, HistoryScript, REPAIR_MS, REPAIR_MS_MAX, RepairStage, StoredAt,
};
use crate::ids::TopicName;
use crate::link::Publish;
use crate::policy::namespaces::Namespaces;
use redis::{Cmd, RedisResult, Value};
use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Context;
use std::time::{Duration, Instant};

/// Bytes that are remembered; beyond, the oldest is forgotten.
const BYTES_MAX: usize = 16 * 1024 * 1024;
/// Time by which an acknowledgement must precede a canary, so that the canary proves it.
const MARGIN: Duration = Duration::from_millis(500);
/// Publishes in one batch.
const VERIFIED_PER_BATCH: usize = 1024;
/// Bytes after which a batch is closed while the server refuses: it may for days, and everything
/// behind the batch, the canary as well, has to wait each time. One message may be longer.
const REFUSED_BATCH_BYTES: usize = 64 * 1024;
/// Pause before a publish that was not there is verified again.
const RETRY_PAUSE: Duration = Duration::from_millis(30);
/// The same while the server has no room for it: its repair window is longer than that.
const REFUSED_PAUSE: Duration = Duration::from_millis(REPAIR_MS / 2);
/// How long verification may take since the server accepts commands. Longer than any repair window.
const PATIENCE: Duration = Duration::from_millis(REPAIR_MS_MAX + 3_000);

/// A publish and the position at which it is stored.
pub(crate) struct AckedPublish {
    publish: Publish,
    stored: StoredAt,
    since: Instant,
    /// The server has answered on this link that messages before it are missing.
    is_behind_gap: bool,
}

impl AckedPublish {
    /// Its topic.
    pub(crate) fn topic(&self) -> &TopicName {
        &self.publish.topic
    }
}

/// Acknowledged publishes that may exist on no other node. One for each server; outlives links.
pub(crate) struct UnconfirmedLog {
    namespaces: Arc<Namespaces>,
    /// Known to be on the server of `generation`.
    acked: VecDeque<AckedPublish>,
    generation: String,
    /// Not known to be on the current server.
    to_verify: VecDeque<AckedPublish>,
    verify_until: Option<Instant>,
    /// One batch at a time: what is verified has to be in order.
    pipeline: BatchPipeline<AckedPublish>,
    /// Of those, how many are behind a gap.
    behind_gap: usize,
    /// Something was refused in the last batch.
    was_refused: bool,
    bytes: usize,
    envelope: Vec<u8>,
    loss_log: LogThrottle,
}

impl UnconfirmedLog {
    /// No publishes.
    pub(crate) fn new(namespaces: Arc<Namespaces>) -> UnconfirmedLog {
        UnconfirmedLog {
            namespaces,
            acked: VecDeque::new(),
            generation: String::new(),
            to_verify: VecDeque::new(),
            verify_until: None,
            pipeline: BatchPipeline::new(1, RetryOrder::InOrder),
            behind_gap: 0,
            was_refused: false,
            bytes: 0,
            envelope: Vec::new(),
            loss_log: LogThrottle::default(),
        }
    }

    /// A publisher is about to receive the position at which its message is stored.
    pub(crate) fn record(&mut self, publish: Publish, stored: StoredAt, now: Instant) {
        self.bytes += log_bytes(&publish);
        let is_behind_gap = false;
        self.acked.push_back(AckedPublish { publish, stored, since: now, is_behind_gap });
        while self.bytes > BYTES_MAX {
            let Some(oldest) = self.acked.pop_front() else { return };
            self.bytes -= log_bytes(&oldest.publish);
        }
    }

    /// A canary has come back from a server of this generation: publishes that it acknowledged well
    /// before are proven and forgotten. It proves nothing of those that another server acknowledged:
    /// they are verified.
    pub(crate) fn forget_before(&mut self, canary_back_at: Instant, generation: &str) {
        if generation != self.generation {
            return;
        }
        while let Some(oldest) = self.acked.front()
            && oldest.since + MARGIN < canary_back_at
        {
            let oldest = self.acked.pop_front().expect("it was just looked at");
            self.bytes -= log_bytes(&oldest.publish);
        }
    }

    /// Bytes that it holds.
    pub(crate) fn held_bytes(&self) -> usize {
        self.bytes
    }

    /// How far this node is with its publishes on the server of this generation.
    pub(crate) fn stage(&self, generation: &str) -> RepairStage {
        let is_known = generation == self.generation || self.acked.is_empty();
        match self.unverified() {
            0 if is_known => RepairStage::Done,
            some if is_known && some == self.behind_gap => RepairStage::Followed,
            _ => RepairStage::Linked,
        }
    }

    /// Number of publishes that are not known to be on the current server.
    fn unverified(&self) -> usize {
        self.to_verify.len() + self.pipeline.in_flight() + self.pipeline.refused()
    }

    /// Whether nothing is in flight.
    pub(crate) fn has_none_in_flight(&self) -> bool {
        self.pipeline.has_none_in_flight()
    }

    /// Whether the server has redirected a topic since the last call.
    pub(crate) fn take_redirected(&mut self) -> bool {
        self.pipeline.take_redirected()
    }

    /// Stops or resumes verification.
    pub(crate) fn set_paused(&mut self, is_paused: bool) {
        self.pipeline.set_paused(is_paused);
    }

    /// The link is lost: what was in flight is verified again on the next one.
    pub(crate) fn lose_link(&mut self) {
        for acked in self.pipeline.lose_link() {
            self.pipeline.put_back(acked);
        }
        self.verify_until = None;
        self.forget_gaps();
    }

    /// Nothing is known of the next server.
    fn forget_gaps(&mut self) {
        self.pipeline.refused_items().for_each(|acked| acked.is_behind_gap = false);
        self.to_verify.iter_mut().for_each(|acked| acked.is_behind_gap = false);
        self.behind_gap = 0;
    }

    /// Takes out the publishes of topics that have moved to another server.
    pub(crate) fn take_moved(
        &mut self,
        has_moved: impl Fn(&TopicName) -> bool,
    ) -> Vec<AckedPublish> {
        assert!(self.has_none_in_flight(), "topics move while nothing is in flight");
        self.forget_gaps();
        let refused = self.pipeline.extract_refused(|_| true).into_iter();
        let all = refused.chain(self.to_verify.drain(..)).chain(self.acked.drain(..));
        let (moved, stay): (Vec<AckedPublish>, Vec<AckedPublish>) =
            all.partition(|acked| has_moved(&acked.publish.topic));
        self.bytes -= moved.iter().map(|acked| log_bytes(&acked.publish)).sum::<usize>();
        self.to_verify = stay.into();
        self.verify_until = None;
        moved
    }

    /// Takes in a publish that another server acknowledged.
    pub(crate) fn adopt(&mut self, moved: AckedPublish) {
        self.bytes += log_bytes(&moved.publish);
        self.to_verify.push_back(moved);
        self.verify_until = None;
    }

    /// Verifies publishes on a server that is up, and handles replies. Returns whether there was
    /// work.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        context: &CommandContext<'_>,
    ) -> RedisResult<bool> {
        if context.generation != self.generation {
            context.generation.clone_into(&mut self.generation);
            self.to_verify.append(&mut self.acked);
        }
        let mut is_busy = false;
        while let Some(batch) = self.pipeline.poll_answered(cx)? {
            self.handle_replies(batch, now);
            is_busy = true;
        }
        self.take_due(now);
        if self.pipeline.may_send() && !self.to_verify.is_empty() {
            self.verify_until.get_or_insert(now + PATIENCE);
            let batch = self.build_batch(context);
            self.pipeline.send(cx, now, context.cmd, batch);
            is_busy = true;
        }
        Ok(is_busy)
    }

    /// Puts what was refused in front again when it is time.
    fn take_due(&mut self, now: Instant) {
        for acked in self.pipeline.take_due(now).rev() {
            self.to_verify.push_front(acked);
        }
    }

    /// The publishes of the next batch.
    fn take_batch(&mut self) -> Vec<AckedPublish> {
        let bytes_max = if self.was_refused { REFUSED_BATCH_BYTES } else { usize::MAX };
        let (mut some, mut bytes) = (Vec::new(), 0);
        while some.len() < VERIFIED_PER_BATCH && bytes < bytes_max {
            let Some(acked) = self.to_verify.pop_front() else { break };
            bytes += log_bytes(&acked.publish);
            some.push(acked);
        }
        some
    }

    fn build_batch(&mut self, context: &CommandContext<'_>) -> OutgoingBatch<AckedPublish> {
        let asked = self.take_batch();
        let mut batch = OutgoingBatch::with_scripts(asked.len(), context.cmd, &HISTORY_SCRIPTS);
        for acked in asked {
            self.envelope.clear();
            envelope::write(&Message::of(&acked.publish), context.version, &mut self.envelope);
            batch.commands.add_command(self.verify_command(&acked, context));
            batch.items.push(acked);
        }
        batch
    }

    fn verify_command(&self, acked: &AckedPublish, context: &CommandContext<'_>) -> Cmd {
        let AckedPublish { publish, stored: StoredAt { at, parent }, .. } = acked;
        let topic = publish.topic.as_str();
        let policy = self.namespaces.policy(publish.topic.kind());
        let keys = context.names.history_keys(topic);
        let retry = publish.key.as_ref().map(|key| format!("{}:{key}", keys.retry));
        let key_ttl_s = retry.as_ref().map_or(0, |_| IDEMPOTENCY_TTL.as_secs());
        let mut names = vec![&keys.meta[..], &keys.stream, &keys.partition];
        names.extend(retry.as_deref());
        let mut command = scripts::call(HistoryScript::Verify, &names);
        command.arg(at.epoch).arg(at.offset).arg(context.generation);
        command.arg(context.names.channel(topic)).arg(context.publish);
        command.arg(policy.history_ttl_s).arg(scripts::meta_ttl_s(policy)).arg(key_ttl_s);
        command.arg(&self.envelope[..]).arg(parent.unwrap_or(0)).arg(REPAIR_MS);
        command
    }

    /// 1: stored. 0, or refused: verified again, those of one topic in their order. Anything else:
    /// gone, also where the history is unreadable: no other node waits for that to be corrected.
    fn handle_replies(&mut self, batch: AnsweredBatch<AckedPublish>, now: Instant) {
        let is_late = self.verify_until.is_some_and(|until| until <= now);
        let mut gone = 0;
        self.was_refused = false;
        for (mut acked, reply) in batch {
            self.behind_gap -= usize::from(std::mem::take(&mut acked.is_behind_gap));
            match reply {
                ItemReply::Ended(Value::Int(1)) => {
                    self.acked.push_back(AckedPublish { since: now, ..acked });
                }
                ItemReply::Ended(Value::Int(0)) if !is_late => {
                    acked.is_behind_gap = true;
                    self.behind_gap += 1;
                    self.pipeline.send_at(acked, now + RETRY_PAUSE, now);
                }
                ItemReply::Again(refusal) => {
                    self.note_refusal();
                    self.pipeline.send_again(acked, refusal, now);
                }
                ItemReply::Permanent(_) => {
                    self.note_refusal();
                    self.pipeline.send_at(acked, now + REFUSED_PAUSE, now);
                }
                ItemReply::Ended(_) | ItemReply::Unreadable(_) => {
                    self.bytes -= log_bytes(&acked.publish);
                    gone += 1;
                }
            }
        }
        self.warn_of_losses(gone, now);
    }

    /// A server that accepts nothing yet, such as a master without its replicas or without memory,
    /// has not gone on either: the time limit starts again when it does.
    fn note_refusal(&mut self) {
        self.verify_until = None;
        self.was_refused = true;
    }

    fn warn_of_losses(&mut self, gone: usize, now: Instant) {
        if gone > 0
            && let Some(suppressed) = self.loss_log.is_due(now)
        {
            tracing::warn!(
                messages = gone,
                suppressed,
                "acknowledged messages were lost in a failover"
            );
        }
    }
}

/// Bytes for which a publish counts: its content and about what it takes to keep it.
fn log_bytes(publish: &Publish) -> usize {
    size_of::<AckedPublish>() + publish.topic.as_str().len() + publish.content_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Position;
    use crate::link::ReplyTo;
    use bytes::Bytes;

    fn publish(room: &str, bytes: usize) -> Publish {
        Publish {
            topic: TopicName::room(room),
            payload: Bytes::from(vec![b'1'; bytes]),
            from: None,
            info: None,
            except: None,
            key: None,
            conflate_key: None,
            done: ReplyTo::Nobody,
        }
    }

    fn at(offset: u64) -> StoredAt {
        StoredAt { at: Position { epoch: 7, offset }, parent: None }
    }

    #[test]
    fn publishes_that_a_canary_has_proved_are_forgotten_and_no_newer_ones() {
        let mut unconfirmed = UnconfirmedLog::new(Arc::default());
        let start = Instant::now();
        for ms in [0, 100, 1000] {
            unconfirmed.record(publish("a", 1), at(ms), start + Duration::from_millis(ms));
        }
        unconfirmed.forget_before(start + MARGIN, "");
        assert_eq!(unconfirmed.acked.len(), 3, "just not well before");
        unconfirmed.forget_before(start + Duration::from_millis(601), "");
        assert_eq!(
            unconfirmed.acked.iter().map(|acked| acked.stored.at.offset).collect::<Vec<_>>(),
            [1000]
        );
        unconfirmed.forget_before(start + Duration::from_secs(9), "");
        assert_eq!((unconfirmed.acked.len(), unconfirmed.bytes), (0, 0));
    }

    #[test]
    fn a_canary_of_another_server_proves_nothing() {
        let mut unconfirmed = UnconfirmedLog::new(Arc::default());
        let start = Instant::now();
        unconfirmed.record(publish("a", 1), at(1), start);
        unconfirmed.forget_before(start + Duration::from_secs(9), "the replica that was promoted");
        assert_eq!(unconfirmed.acked.len(), 1, "it is verified there first");
        unconfirmed.forget_before(start + Duration::from_secs(9), "");
        assert_eq!(unconfirmed.acked.len(), 0);
    }

    #[test]
    fn the_oldest_is_forgotten_when_there_is_too_much() {
        let mut unconfirmed = UnconfirmedLog::new(Arc::default());
        for offset in 0..40 {
            unconfirmed.record(publish("a", 1024 * 1024), at(offset), Instant::now());
        }
        assert!(unconfirmed.bytes <= BYTES_MAX);
        assert_eq!(unconfirmed.acked.back().map(|acked| acked.stored.at.offset), Some(39));
        assert_eq!(unconfirmed.acked.len(), 15);
    }

    #[test]
    fn batches_are_small_while_a_server_refuses() {
        let mut unconfirmed = UnconfirmedLog::new(Arc::default());
        for offset in 1..=1030 {
            let bytes = match offset {
                1..=2 => REFUSED_BATCH_BYTES,
                3..=6 => REFUSED_BATCH_BYTES / 4,
                _ => 1,
            };
            unconfirmed.record(publish("a", bytes), at(offset), Instant::now());
        }
        unconfirmed.to_verify.append(&mut unconfirmed.acked);
        let asked = unconfirmed.take_batch();
        assert_eq!(asked.len(), VERIFIED_PER_BATCH);
        let (oom, now) = (b"-OOM command not allowed\r\n", Instant::now());
        let oom = vec![redis::parse_redis_value(oom).unwrap(); VERIFIED_PER_BATCH];
        unconfirmed.handle_replies(AnsweredBatch::of(asked, oom), now);
        unconfirmed.take_due(now + REFUSED_PAUSE);
        assert_eq!([1, 2, 3].map(|_| unconfirmed.take_batch().len()), [1, 1, 4]);
        let asked = unconfirmed.take_batch();
        let one = vec![Value::Int(1); asked.len()];
        unconfirmed.handle_replies(AnsweredBatch::of(asked, one), now);
        unconfirmed.to_verify.append(&mut unconfirmed.acked);
        let rest = unconfirmed.to_verify.len();
        assert_eq!(unconfirmed.take_batch().len(), rest, "it takes them again");
    }

    #[test]
    fn publishes_of_topics_that_have_moved_are_verified_on_their_new_server() {
        let (mut one, mut other) =
            (UnconfirmedLog::new(Arc::default()), UnconfirmedLog::new(Arc::default()));
        for (room, offset) in [("a", 1), ("b", 1), ("a", 2)] {
            one.record(publish(room, 1), at(offset), Instant::now());
        }
        let moved = one.take_moved(|topic| *topic == TopicName::room("a"));
        moved.into_iter().for_each(|acked| other.adopt(acked));
        let offsets = |unconfirmed: &UnconfirmedLog| {
            unconfirmed.to_verify.iter().map(|acked| acked.stored.at.offset).collect::<Vec<_>>()
        };
        assert_eq!((offsets(&one), offsets(&other)), (vec![1], vec![1, 2]));
    }
}
