//! Reads of histories from the server, and the creation and repair of histories that a read shows
//! to be necessary.
//!
//! A batch sends the same command for many topics, a few batches are in flight, and reads stay
//! within the rate that the operator allows. What a server refuses is sent again later, and delays
//! no other topic.
//!
//! A topic whose stored values this server cannot have written is *unreadable*: pending requests
//! are refused at once, and so are later ones until a read finds it corrected. Reads of it become
//! rarer each time, so that many such topics leave room for the others.
//!
//! Invariant: a topic whose read waits is in `to_read` or `to_retry` once; one whose read is in
//! flight is in one batch.

use crate::backplane::local::Local;
use crate::backplane::redis::error_reply::ErrorReply;
use crate::backplane::redis::history::batch::{BATCHES_MAX, BatchKind, FetchItem, READS_PER_BATCH};
use crate::backplane::redis::history::follower::{FollowedTopic, Repair};
use crate::backplane::redis::history::histories::Histories;
use crate::backplane::redis::history::reply::{FIELDS, FetchedHistory, parse_history, parse_meta};
use crate::backplane::redis::history::request::TopicRef;
use crate::backplane::redis::history::state::{FollowState, HistoryEvent, ReadPurpose};
use crate::backplane::redis::history::sync::FetchOutcome;
use crate::backplane::redis::names::Names;
use crate::backplane::redis::pipeline::{AnsweredBatch, CommandContext, ItemReply, OutgoingBatch};
use crate::backplane::redis::scripts::{self, HISTORY_SCRIPTS, HistoryScript, REPAIR_MS};
use crate::backplane::redis::unreadable::UnreadableValue;
use crate::ids::TopicName;
use crate::link::HistoryError;
use redis::{Cmd, RedisError, RedisResult, Value};
use std::task::Context;
use std::time::{Duration, Instant};

/// `MULTI`, the two reads, `EXEC`.
const COMMANDS_PER_READ: usize = 4;
/// Messages by which a stream may exceed its limit: Redis trims it by whole nodes.
const STREAM_SLACK: usize = 256;
/// Pause before a read that was refused is sent again.
const READ_PAUSE: Duration = Duration::from_millis(20);
/// The same for what an operator has to correct (memory, permissions). The server's repair window
/// is longer.
const REFUSED_PAUSE: Duration = Duration::from_millis(REPAIR_MS / 2);

/// The generation that `lua/repair.lua` gives to a history that it has restored.
const RESTORED: &[u8] = b"restored";

/// Pause before an unreadable topic is read again: the first one, and the longest. Half a million
/// such topics take less than a fifth of the default read rate.
const UNREADABLE_PAUSE_MIN: Duration = Duration::from_millis(250);
const UNREADABLE_PAUSE_MAX: Duration = Duration::from_secs(30);

impl Histories {
    /// Sends reads and handles replies. Returns whether there was work.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        context: &CommandContext<'_>,
        local: &mut Local,
    ) -> RedisResult<bool> {
        let mut is_busy = false;
        self.queue_retries(now);
        while !self.is_paused && self.pipeline.batches() < BATCHES_MAX && !self.to_read.is_empty() {
            let batch = self.build_read_batch(context.names, now);
            if batch.is_empty() {
                break; // the rate allows more later
            }
            self.numbers.reads += batch.items.len() as u64;
            self.pipeline.send(cx, now, context.cmd, batch);
            is_busy = true;
        }
        while let Some(batch) = self.pipeline.poll_answered(cx)? {
            is_busy = true;
            let whose = (context.names, context.generation);
            for (what, topics) in self.handle_replies(batch, whose, now, local)? {
                let batch = self.build_follow_up(what, topics, context);
                self.pipeline.send(cx, now, context.cmd, batch);
            }
        }
        Ok(is_busy)
    }

    /// Writes a batch that a read has shown to be necessary.
    fn build_follow_up(
        &self,
        what: BatchKind,
        topics: Vec<TopicRef>,
        context: &CommandContext<'_>,
    ) -> OutgoingBatch<FetchItem> {
        let mut batch = OutgoingBatch::with_scripts(topics.len(), context.cmd, &HISTORY_SCRIPTS);
        for topic in topics {
            batch.commands.add_command(match what {
                BatchKind::Repair => {
                    self.repair_command(&topic.0, context.names, context.generation)
                }
                BatchKind::Create | BatchKind::Read => create_command(&topic.0, context),
            });
            batch.items.push(FetchItem { topic, what });
        }
        batch
    }

    /// Queues the reads whose pause is over.
    pub(super) fn queue_retries(&mut self, now: Instant) {
        while let Some(topic_ref) = self.to_retry.pop_due(now) {
            self.to_read.push_back(topic_ref);
        }
    }

    pub(super) fn build_read_batch(
        &mut self,
        names: &Names,
        now: Instant,
    ) -> OutgoingBatch<FetchItem> {
        let now_ns = now.saturating_duration_since(self.started).as_nanos() as u64;
        let reads = self.to_read.len().min(READS_PER_BATCH);
        let mut batch = OutgoingBatch::new(reads).commands_per_item(COMMANDS_PER_READ);
        while batch.items.len() < READS_PER_BATCH
            && let Some(topic_ref) = self.to_read.pop_front()
        {
            let (name, incarnation) = &topic_ref;
            let topic = self.topics.get_mut(name).filter(|topic| topic.incarnation == *incarnation);
            let Some(topic) = topic else { continue };
            if !self.bucket.take(now_ns) {
                self.to_read.push_front(topic_ref);
                break;
            }
            let sent = topic.question();
            let is_queued = topic.apply(HistoryEvent::ReadSent(sent));
            debug_assert!(!is_queued, "it left the queue");
            let keys = names.history_keys(name.as_str());
            // Both at one moment: an offset means nothing without its epoch.
            batch.commands.cmd("MULTI");
            batch.commands.cmd("HMGET").arg(&keys.meta).arg(&FIELDS);
            let range = batch.commands.cmd("XREVRANGE").arg(&keys.stream).arg("+").arg(sent.from);
            range.arg("COUNT").arg(topic.keep.messages_max + STREAM_SLACK);
            batch.commands.cmd("EXEC");
            batch.items.push(FetchItem { topic: topic_ref, what: BatchKind::Read });
        }
        batch
    }

    /// Handles the replies to a batch. Returns the batches that have to follow. `Err`: the server is
    /// no longer a master; the link has to be given up.
    pub(super) fn handle_replies(
        &mut self,
        batch: AnsweredBatch<FetchItem>,
        (names, generation): (&Names, &str),
        now: Instant,
        local: &mut Local,
    ) -> RedisResult<Vec<(BatchKind, Vec<TopicRef>)>> {
        let (mut to_create, mut to_repair) = (Vec::new(), Vec::new());
        for (FetchItem { topic, what }, reply) in batch {
            let (name, incarnation) = &topic;
            if self.topics.get(name).is_none_or(|topic| topic.incarnation != *incarnation) {
                continue; // forgotten, and perhaps followed again
            }
            let value = match reply {
                ItemReply::Ended(value) => value,
                ItemReply::Again(refusal) if refusal.kind == ErrorReply::Demoted => {
                    return Err(refusal.error.into());
                }
                ItemReply::Again(refusal) => {
                    local.counters.redirects += u64::from(refusal.kind == ErrorReply::Moved);
                    self.retry_read(name, what, refusal.kind, now);
                    continue;
                }
                ItemReply::Permanent(error) => {
                    self.warn_of(name, &error.into(), now);
                    self.retry_read(name, what, ErrorReply::Permanent, now);
                    continue;
                }
                ItemReply::Unreadable(error) => {
                    self.on_unreadable(name, &RedisError::from(error), names, now, local);
                    continue;
                }
            };
            match self.fetched(name, what, &value, now) {
                None => {}
                Some(Ok(read)) if self.may_repair(name, read.as_ref()) => to_repair.push(topic),
                Some(Ok(Some(read))) => self.handle_read(name, read, generation, now, local),
                Some(Ok(None)) => {
                    self.note_repaired(name);
                    self.apply(name, HistoryEvent::CreationSent);
                    to_create.push(topic);
                }
                Some(Err(why)) => self.on_unreadable(name, &why, names, now, local),
            }
        }
        let next = [(BatchKind::Create, to_create), (BatchKind::Repair, to_repair)];
        Ok(next.into_iter().filter(|(_, topics)| !topics.is_empty()).collect())
    }

    /// What a reply that is no error says of the stored history. `None`: it has to be read again.
    fn fetched(
        &mut self,
        name: &TopicName,
        what: BatchKind,
        value: &Value,
        now: Instant,
    ) -> Option<Result<Option<FetchedHistory>, UnreadableValue>> {
        match (what, value) {
            (BatchKind::Read, value) => Some(parse_history(value)),
            (BatchKind::Create, Value::Int(_)) => {
                // The server is in its repair window: other nodes may know the history.
                self.retry_read(name, what, ErrorReply::NotYet, now);
                None
            }
            // One that was just created exists.
            (BatchKind::Create, value) => {
                let nothing = || UnreadableValue::new("e", &Value::Nil);
                Some(parse_meta(value).and_then(|read| read.ok_or_else(nothing)).map(Some))
            }
            (BatchKind::Repair, _) => {
                self.apply(name, HistoryEvent::ReadAgain);
                None
            }
        }
    }

    /// The stored history is unreadable: no position of it is reported. The copy stays, in case it
    /// is corrected.
    fn on_unreadable(
        &mut self,
        name: &TopicName,
        why: &dyn std::fmt::Display,
        names: &Names,
        now: Instant,
        local: &mut Local,
    ) {
        local.counters.histories_unreadable += 1;
        self.unreadable.warn(name.as_str(), why, names, now);
        let times = match self.topics.get(name).map(FollowedTopic::state) {
            None => return,
            Some(FollowState::Unreadable { times, .. }) => times,
            Some(_) => 0,
        };
        self.note_repaired(name);
        self.refuse_all(name, HistoryError::Unreadable, local);
        let pause = UNREADABLE_PAUSE_MIN * (1 << times.min(7));
        self.apply_and_read_at(
            name,
            HistoryEvent::FoundUnreadable,
            now + pause.min(UNREADABLE_PAUSE_MAX),
        );
        if local.interest.members(name.as_str()).is_none() {
            self.forget(name);
        }
    }

    /// The command was refused; it is sent again, unless the topic has moved by then.
    fn retry_read(&mut self, name: &TopicName, what: BatchKind, refusal: ErrorReply, now: Instant) {
        self.is_redirected |= refusal == ErrorReply::Moved;
        if let Some(topic) = self.topics.get_mut(name)
            && what == BatchKind::Repair
        {
            // A master that was just promoted waits for its replicas, and takes no repair until
            // then.
            topic.repair = Repair::Untried;
        }
        let is_for_good = refusal == ErrorReply::Permanent;
        let due = now + if is_for_good { REFUSED_PAUSE } else { READ_PAUSE };
        self.apply_and_read_at(name, HistoryEvent::ReadAgain, due);
    }

    /// Logs a permanent refusal; it concerns one topic.
    fn warn_of(&mut self, topic: &TopicName, error: &RedisError, now: Instant) {
        if let Some(suppressed) = self.refusal_log.is_due(now) {
            tracing::warn!(?topic, %error, suppressed, "Redis refused to read a history");
        }
    }

    fn handle_read(
        &mut self,
        name: &TopicName,
        mut read: FetchedHistory,
        generation: &str,
        now: Instant,
        local: &mut Local,
    ) {
        let Some(topic) = self.topics.get(name) else { return };
        let sent = topic.state().read().in_flight().expect("what is answered was sent");
        if topic.state().read().is_outdated() {
            return self.apply(name, HistoryEvent::ReadAgain);
        }
        self.note_repaired(name);
        self.drop_impossible(name, &read, sent.held, now, local);
        let Some(topic) = self.topics.get_mut(name) else { return };
        if let Some(gap) = topic.gap_ahead(&mut read, &sent, now) {
            self.apply_and_read_at(name, HistoryEvent::FoundAhead(gap), now + READ_PAUSE);
            return self.answer_all(name, local);
        }
        let (before, hash) = (topic.bytes(), topic.hash);
        let found = topic.take_read(read, &sent, generation, now, local);
        self.bytes = self.bytes + topic.bytes() - before;
        topic.become_evictable().into_iter().for_each(|it| self.evictions.push(hash, it));
        self.numbers.repaired += u64::from(found == FetchOutcome::Repaired);
        self.numbers.lost += u64::from(matches!(found, FetchOutcome::Lost | FetchOutcome::Fork));
        if matches!(found, FetchOutcome::Fork | FetchOutcome::Incomplete) {
            return self.apply(name, HistoryEvent::FoundMore);
        }
        topic.repair = Repair::Untried;
        self.release_held(name, now, local);
        self.answer_all(name, local);
        self.make_room();
    }

    /// A message is published after it is stored, so a message that arrived before a read was sent
    /// is in what was read. If it is not, it was never part of this history, and would be waited
    /// for without end.
    fn drop_impossible(
        &mut self,
        name: &TopicName,
        read: &FetchedHistory,
        held_when_sent: usize,
        now: Instant,
        local: &mut Local,
    ) {
        let Some(topic) = self.topics.get_mut(name) else { return };
        let impossible = topic.held.drop_impossible(held_when_sent, |at| read.has(at)) as u64;
        topic.drop_vanished(read, local);
        // Unless a repair has just replaced their history by the one before.
        let is_restored = topic.repair != Repair::Untried || read.generation == RESTORED;
        if impossible > 0 && is_restored {
            local.notify_lost(name, 0);
        }
        local.counters.publishes_malformed += impossible;
        if impossible > 0
            && let Some(suppressed) = self.impossible.is_due(now)
        {
            let why = "messages at positions that the history does not have were dropped";
            tracing::warn!(topic = ?name, messages = impossible, suppressed, "{why}");
        }
    }

    /// Everything that was read is taken. Handles the messages that arrived during the read: in
    /// order, or after another read.
    fn release_held(&mut self, name: &TopicName, now: Instant, local: &mut Local) {
        let Some(topic) = self.topics.get_mut(name) else { return };
        let is_full = topic.held.is_full();
        let held = topic.held.take();
        self.apply(name, HistoryEvent::Taken);
        for (at, body) in held {
            self.handle_message(name.into(), at, &body, now, local);
        }
        if is_full {
            // What was not held may have been the last message for long: an audit finds it.
            self.apply(name, HistoryEvent::ReadWanted(ReadPurpose::Audit));
        }
    }
}

fn create_command(topic: &TopicName, context: &CommandContext<'_>) -> Cmd {
    let keys = context.names.history_keys(topic.as_str());
    let mut create =
        scripts::call(HistoryScript::Create, &[&keys.meta, &keys.stream, &keys.partition]);
    create.arg(context.generation).arg(scripts::META_TTL_S).arg(REPAIR_MS);
    create
}
