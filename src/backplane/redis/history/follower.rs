//! A topic that this node follows: a copy of the end of its history, and what a read changes.
//!
//! Invariant: the copy has no gap, and each of its messages was delivered here or was there before
//! this node had members.

use crate::backplane::envelope;
use crate::backplane::history::log::{MessageLog, Retention};
use crate::backplane::local::Local;
use crate::backplane::redis::history::lineage::fork_offset_of;
use crate::backplane::redis::history::reply::FetchedHistory;
use crate::backplane::redis::history::request::{PendingRequest, TopicRequest};
use crate::backplane::topic_table::{HashedTopic, TopicHash};
use crate::ids::{Position, TopicKind, TopicName};
use crate::policy::namespaces::Policy;
use bytes::Bytes;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How long a gap may stay that a read has shown ahead of delivery. Then its messages are lost.
const OVERTAKEN_MAX: Duration = Duration::from_secs(1);

/// A topic with a history, as this node follows it.
pub(crate) struct FollowedTopic {
    pub(super) name: TopicName,
    /// The hash of the name.
    pub(super) hash: TopicHash,
    /// Tells it from a topic of the same name that was forgotten.
    pub(super) incarnation: u64,
    pub(super) keep: Retention,
    pub(super) recovery: bool,
    pub(super) log: Option<MessageLog>,
    /// Earlier epochs and the offsets at which they ended, newest first: see `lineage.rs`.
    pub(super) lineage: Vec<(u64, u64)>,
    /// No message before this offset is in Redis either.
    pub(super) oldest_available: u64,
    /// The acknowledged offset as far as is known here; `None`: the user was given no position yet.
    pub(super) acked: Option<u64>,
    /// Reads that had a result.
    pub(super) reads: u64,
    /// The lowest offset that the read in flight asks for. A later request may need lower ones.
    pub(super) asked_from: u64,
    /// The next offset when the read was sent.
    pub(super) asked_next: u64,
    /// The read in flight is also to find messages that were lost without a trace.
    pub(super) is_audit: bool,
    /// Whether its channel is subscribed on this link.
    pub(super) is_subscribed: bool,
    /// Whether the position was read on this link.
    pub(super) is_synced: bool,
    pub(super) is_reading: bool,
    /// Whether this node has tried to repair the history on this link.
    pub(super) is_repair_attempted: bool,
    /// The first offset of the repair: the server has what is before.
    pub(super) repair_from: u64,
    /// Messages that a read has shown before they were delivered.
    pub(super) read_ahead_gap: Option<ReadAheadGap>,
    /// The read in flight was sent before the channel was subscribed: it proves nothing.
    pub(super) is_read_before_subscribe: bool,
    pub(super) held_messages: VecDeque<(Position, Vec<u8>)>,
    /// How many messages were held when the read was sent.
    pub(super) held_when_asked: usize,
    /// How often in a row the stored history was unreadable.
    pub(super) unreadable: u32,
    /// Members may have joined without a position: for them everything before the first read is
    /// new.
    pub(super) is_joined_without_position: bool,
    pub(super) pending: Vec<PendingRequest>,
    pub(super) was_used: bool,
}

/// A gap between what was delivered and what a read has shown.
pub(super) struct ReadAheadGap {
    /// Since when no message of it has arrived.
    since: Instant,
    /// The offset that was delivered last.
    known: u64,
    /// The last offset of the gap.
    top: u64,
}

/// The result of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FetchOutcome {
    /// Nothing was missing.
    Unchanged,
    /// Missing messages were delivered.
    Repaired,
    /// Messages are missing for good, and were reported as lost.
    Lost,
    /// Delivered messages are no longer part of the history, which was reported. What replaced them
    /// has to be read.
    Fork,
}

impl FollowedTopic {
    /// Its name.
    pub(crate) fn name(&self) -> &TopicName {
        &self.name
    }

    pub(super) fn new(
        name: &TopicName,
        hash: TopicHash,
        policy: &Policy,
        incarnation: u64,
    ) -> FollowedTopic {
        FollowedTopic {
            name: name.clone(),
            hash,
            incarnation,
            keep: Retention { messages_max: policy.history_size, age_max: Duration::MAX },
            recovery: policy.recovery,
            log: None,
            lineage: Vec::new(),
            oldest_available: 1,
            acked: None,
            reads: 0,
            asked_from: u64::MAX,
            asked_next: u64::MAX,
            is_audit: false,
            is_subscribed: false,
            is_synced: false,
            is_reading: false,
            is_repair_attempted: false,
            repair_from: 1,
            read_ahead_gap: None,
            is_read_before_subscribe: false,
            held_messages: VecDeque::new(),
            held_when_asked: 0,
            unreadable: 0,
            is_joined_without_position: false,
            pending: Vec::new(),
            was_used: true,
        }
    }

    /// Whether it is a user's topic, which has acknowledgements.
    pub(super) fn is_user(&self) -> bool {
        matches!(self.name.kind(), TopicKind::User(_))
    }

    /// The first unacknowledged message, if it may be in Redis and is not in the copy.
    pub(super) fn first_missing_unacknowledged(&self) -> Option<u64> {
        let log = self
            .log
            .as_ref()
            .filter(|log| self.is_user() && log.first() > self.oldest_available)?;
        let first = self.acked.map_or(1, |acked| acked.saturating_add(1));
        (first < log.first()).then_some(first)
    }

    pub(super) fn bytes(&self) -> usize {
        self.log.as_ref().map_or(0, MessageLog::bytes)
    }

    /// Forgets everything that holds for one link only.
    pub(super) fn lose_link(&mut self) {
        self.is_subscribed = false;
        self.is_synced = false;
        self.is_reading = false;
        self.is_repair_attempted = false;
        self.is_read_before_subscribe = false;
        self.read_ahead_gap = None;
        self.held_messages.clear();
        (self.held_when_asked, self.unreadable) = (0, 0);
    }

    /// Appends a message at the next offset and delivers it.
    pub(super) fn deliver(&mut self, body: &[u8], now: Instant, local: &mut Local) {
        let log = self.log.as_mut().expect("a delivered message has an offset");
        let at = log.next();
        log.push(Bytes::copy_from_slice(body), self.keep, now);
        let topic = HashedTopic::known(self.name.as_str(), self.hash);
        match envelope::read(topic.name(), body) {
            Ok(message) => local.message_at(topic, &message, at),
            Err(_) => local.unreadable_at(topic, at),
        }
    }

    /// The lowest offset that is wanted from the stream.
    pub(super) fn read_from(&self) -> u64 {
        let held_messages = || self.first_without_position().map_or(u64::MAX, |at| at.offset);
        let next = self.log.as_ref().map_or_else(held_messages, |log| log.next().offset);
        let to_read = |pending: &PendingRequest| match &pending.request {
            TopicRequest::Recover(..) if self.is_user() => {
                self.first_missing_unacknowledged().unwrap_or(u64::MAX)
            }
            TopicRequest::Recover(_, ask) => {
                ask.since.map_or(u64::MAX, |since| self.place_of(since).saturating_add(1))
            }
            TopicRequest::History(_) => 1,
        };
        self.pending.iter().map(to_read).fold(next, u64::min).max(1)
    }

    /// The first held message, if members have joined without a position.
    fn first_without_position(&self) -> Option<Position> {
        let (at, _) = self.held_messages.front().filter(|_| self.is_joined_without_position)?;
        Some(*at)
    }

    /// The offset up to which a client with a position of an earlier epoch has received this
    /// history.
    fn place_of(&self, since: Position) -> u64 {
        fork_offset_of(&self.lineage, since.epoch)
            .map_or(since.offset, |fork_offset| fork_offset.min(since.offset))
    }

    /// Takes what was read: gaps are closed or reported, the copy grows at both ends. `generation`:
    /// that of the server.
    pub(super) fn take_read(
        &mut self,
        mut read: FetchedHistory,
        generation: &str,
        now: Instant,
        local: &mut Local,
    ) -> FetchOutcome {
        let from = self.asked_from;
        let behind = self.asked_next.max(read.top.saturating_add(1));
        let is_reset = self.is_reset(&read, generation);
        self.ignore_undelivered(&mut read);
        self.is_synced = true;
        self.lineage = read.lineage;
        let known = self.log.as_ref().map(MessageLog::position);
        let goes_on = !is_reset
            && known.is_none_or(|known| {
                known.epoch == read.epoch
                    || fork_offset_of(&self.lineage, known.epoch)
                        .is_some_and(|fork_offset| known.offset <= fork_offset)
            });
        let mut found = FetchOutcome::Unchanged;
        let fork = known.and_then(|known| fork_offset_of(&self.lineage, known.epoch));
        if let (false, Some(fork_offset)) = (goes_on, fork) {
            self.rewind(Position { epoch: read.epoch, offset: fork_offset }, local);
            return FetchOutcome::Fork;
        }
        if !goes_on {
            local.notify_lost(&self.name, 0);
            // Nothing of the old history holds for the new one.
            (self.log, self.oldest_available, found) = (None, 1, FetchOutcome::Lost);
            self.acked = None;
        }
        self.acked = self.acked.max(read.acked);
        self.reads += 1;
        let blind = self.first_without_position().filter(|at| at.epoch == read.epoch);
        let delivered = blind.map_or(read.top, |at| read.top.min(at.offset.saturating_sub(1)));
        self.is_joined_without_position = false;
        let log = self.log.get_or_insert_with(|| MessageLog::new(read.epoch, delivered));
        log.adopt(read.epoch);
        let known = log.position().offset;
        let first_new = read.entries.iter().map(|(offset, _)| *offset).find(|at| *at > known);
        let last_before = first_new.map_or(read.top.max(known), |first| first.saturating_sub(1));
        if last_before > known {
            local.notify_lost(&self.name, last_before - known);
            (*log, found) = (MessageLog::new(read.epoch, last_before), FetchOutcome::Lost);
        }
        if let Some((lowest, _)) = read.entries.first().filter(|(lowest, _)| *lowest > from) {
            self.oldest_available = self.oldest_available.max(*lowest);
        }
        let is_joined = self.first_offset() <= behind;
        for (offset, body) in read.entries.iter().rev() {
            self.push_front_if_next(*offset, body, now);
        }
        for (offset, body) in &read.entries {
            if *offset > known && *offset == self.next_offset() {
                self.deliver(body, now, local);
                found = if found == FetchOutcome::Lost { found } else { FetchOutcome::Repaired };
            }
        }
        // What was asked for and is not here does not exist, unless messages arrived and were
        // trimmed meanwhile: then the copy begins after everything that was read. If it is full,
        // Redis trims what is before it, too.
        if (is_joined || self.is_full()) && from < self.first_offset() {
            self.oldest_available = self.oldest_available.max(self.first_offset());
        }
        found
    }

    /// Whether the history is shorter than it was when the read was sent, without a fault as the
    /// reason: the server has stored its last message itself, in its current generation. Somebody
    /// has reset it, or replaced its end.
    fn is_reset(&self, read: &FetchedHistory, generation: &str) -> bool {
        let is_same = self.log.as_ref().is_some_and(|log| log.position().epoch == read.epoch);
        let is_settled = read.generation == generation.as_bytes();
        is_same && is_settled && read.top.saturating_add(1) < self.asked_next
    }

    /// The history has forked before the last message that was delivered here, as when a replaced
    /// master stored one more message. That is reported as lost; what replaced it is read from the
    /// fork and delivered.
    fn rewind(&mut self, to: Position, local: &mut Local) {
        local.notify_lost(&self.name, 0);
        (self.log, self.oldest_available) = (Some(MessageLog::new(to.epoch, to.offset)), 1);
        self.acked = self.acked.map(|acked| acked.min(to.offset));
        self.is_synced = false;
    }

    /// Whether the stream has messages beyond the next one here. For a followed topic the messages
    /// between arrive on another connection, and are not missing as long as any arrive. When all up
    /// to the end of the first such read have arrived, nothing is missing; later ones are on their
    /// way again: in a busy room some always are.
    pub(super) fn is_ahead_of_delivery(&mut self, read: &mut FetchedHistory, now: Instant) -> bool {
        let read_ahead_gap = self.read_ahead_gap.take();
        // Most reads of a user's topic take nothing new: see `ignore_undelivered`.
        let is_followed =
            self.is_subscribed && self.is_synced && (!self.is_user() || self.is_audit);
        let known = self.log.as_ref().map(MessageLog::position).filter(|_| is_followed);
        let known = known.filter(|known| known.epoch == read.epoch).map(|known| known.offset);
        let mut offsets = read.entries.iter().map(|(offset, _)| *offset);
        let next = offsets.find(|at| Some(*at) > known).unwrap_or(read.top.saturating_add(1));
        let Some(known) = known.filter(|known| next > known.saturating_add(1)) else {
            return false;
        };
        // A request for something older need not wait.
        self.oldest_available = self.oldest_available.max(next);
        let before = read_ahead_gap.unwrap_or(ReadAheadGap { since: now, known, top: read.top });
        if known >= before.top {
            read.leave_behind(known);
            return false;
        }
        let since = if known == before.known { before.since } else { now };
        if now.saturating_duration_since(since) >= OVERTAKEN_MAX {
            return false;
        }
        self.read_ahead_gap = Some(ReadAheadGap { since, known, top: before.top });
        true
    }

    /// A user's topic that is followed was read for its acknowledgement. New messages in the reply
    /// are on their way here, and may be more than the stream still has: they are not missing.
    pub(super) fn ignore_undelivered(&mut self, read: &mut FetchedHistory) {
        let is_audit = std::mem::take(&mut self.is_audit);
        let Some(known) = self.log.as_ref().map(MessageLog::position) else { return };
        if self.is_user() && self.is_synced && !is_audit && read.epoch == known.epoch {
            read.leave_behind(known.offset);
        }
    }

    /// Whether the copy has as many messages as are stored.
    pub(super) fn is_full(&self) -> bool {
        let messages = self.keep.messages_max as u64;
        let is_full = |log: &MessageLog| log.next().offset >= log.first().saturating_add(messages);
        self.log.as_ref().is_some_and(is_full)
    }

    pub(super) fn first_offset(&self) -> u64 {
        self.log.as_ref().map_or(u64::MAX, MessageLog::first)
    }

    pub(super) fn next_offset(&self) -> u64 {
        self.log.as_ref().map_or(u64::MAX, |log| log.next().offset)
    }

    pub(super) fn push_front_if_next(&mut self, offset: u64, body: &[u8], now: Instant) {
        let next = offset.checked_add(1);
        let Some(log) = self.log.as_mut().filter(|log| next == Some(log.first())) else { return };
        log.push_front(Bytes::copy_from_slice(body), now);
    }
}
