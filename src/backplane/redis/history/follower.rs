//! A topic that this node follows: its state, and a copy of the end of its history.
//!
//! Invariant: the copy has no gap, and each of its messages was delivered here or was there before
//! this node had members. [`FollowedTopic::apply`] is the only way to another state.

use crate::backplane::envelope;
use crate::backplane::history::log::{AckedUpTo, MessageLog, Retention};
use crate::backplane::local::Local;
use crate::backplane::redis::history::held::HeldMessages;
use crate::backplane::redis::history::lineage::Lineage;
use crate::backplane::redis::history::request::{PendingRequest, TopicRequest};
use crate::backplane::redis::history::state::{
    FollowState, HistoryEvent, ReadPurpose, SentRead, StreamRead,
};
use crate::backplane::topic_table::{HashedTopic, TopicHash};
use crate::ids::{Position, TopicKind, TopicName};
use crate::policy::namespaces::Policy;
use bytes::Bytes;
use std::time::{Duration, Instant};

/// A topic with a history, as this node follows it.
pub(crate) struct FollowedTopic {
    pub(super) name: TopicName,
    /// The hash of the name.
    pub(super) hash: TopicHash,
    /// Tells it from a topic of the same name that was forgotten.
    pub(super) incarnation: u64,
    pub(super) keep: Retention,
    pub(super) recovery: bool,
    /// Changed by [`FollowedTopic::apply`] alone.
    state: FollowState,
    pub(super) copy: LocalCopy,
    /// Earlier epochs.
    pub(super) lineage: Lineage,
    /// The end of the copy when another history replaced it, which may come back by a repair.
    pub(super) replaced: Option<Position>,
    /// No message before this offset is in Redis either.
    pub(super) oldest_available: u64,
    /// The acknowledged offset as far as is known here; `None`: the user was given no position yet.
    pub(super) acked: Option<u64>,
    /// Reads that had a result.
    pub(super) reads: u64,
    pub(super) repair: Repair,
    /// It has messages, and has not been read on this link yet: the server may lack some.
    pub(super) owes_repair: bool,
    pub(super) held: HeldMessages,
    /// Requests that wait for an answer, oldest first.
    pub(super) pending: Vec<PendingRequest>,
    /// Whether the queue of deadlines has an entry for the oldest of them.
    pub(super) has_deadline: bool,
    pub(super) eviction: EvictionMark,
    pub(super) audit: AuditMark,
}

/// What this node has of a history.
pub(super) enum LocalCopy {
    /// Nothing, and no member has joined: where it ends is what the first read shows.
    Unknown,
    /// Nothing, but there are members, who are to receive everything that arrives.
    Blind,
    /// Its end.
    Known(MessageLog),
}

/// Whether this node has tried to repair the history since it last had everything of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Repair {
    /// Not yet.
    Untried,
    /// From this offset on: the server has what is before. Another attempt would not help.
    Tried(u64),
}

/// The place of a copy in the queue of evictions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EvictionMark {
    /// It is not in the queue: it has no messages.
    Outside,
    /// It is in the queue.
    Queued,
    /// It is in the queue, and was used since its last turn.
    Used,
}

/// Whether a topic is audited before its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AuditMark {
    /// No message has arrived since the last audit.
    Quiet,
    /// It is in the queue of those to which messages have arrived.
    Active,
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
            state: FollowState::NEW,
            copy: LocalCopy::Unknown,
            lineage: Lineage::default(),
            replaced: None,
            oldest_available: 1,
            acked: None,
            reads: 0,
            repair: Repair::Untried,
            owes_repair: false,
            held: HeldMessages::default(),
            pending: Vec::new(),
            has_deadline: false,
            eviction: EvictionMark::Outside,
            audit: AuditMark::Quiet,
        }
    }

    /// Its state.
    pub(super) fn state(&self) -> FollowState {
        self.state
    }

    /// Goes to the state after an event. Returns whether it has to be put into a queue of reads.
    ///
    /// # Panics
    /// If the event is impossible in this state.
    #[must_use]
    pub(super) fn apply(&mut self, event: HistoryEvent) -> bool {
        let before = self.state;
        let Some(next) = before.after(event) else {
            panic!("{event:?} is impossible in {before:?}");
        };
        self.state = next;
        if cfg!(debug_assertions) {
            self.invariants();
        }
        next.read().is_waiting() && !before.read().is_waiting()
    }

    /// Panics unless the state and the copy agree.
    pub(super) fn invariants(&self) {
        let state = self.state;
        assert!(state.is_possible(), "{state:?}");
        assert!(!state.is_synced() || self.log().is_some(), "{state:?} without a position");
        assert!(!state.is_synced() || self.held.is_empty(), "{state:?}, and messages are held");
        assert!(
            !matches!(state, FollowState::Unreadable { .. }) || self.pending.is_empty(),
            "requests wait for an unreadable history"
        );
        assert!(self.pending.is_empty() || self.has_deadline, "requests wait without end");
    }

    /// Forgets everything that holds for one link only.
    pub(super) fn lose_link(&mut self) {
        self.held.take();
        self.repair = Repair::Untried;
        self.owes_repair = self.log().is_some_and(|log| !log.is_empty());
        let is_queued = self.apply(HistoryEvent::LinkLost);
        debug_assert!(!is_queued, "nothing is read without a link");
    }

    /// Another server follows it now, under another incarnation. Its queues do not know it.
    pub(super) fn move_to(&mut self, incarnation: u64) {
        self.incarnation = incarnation;
        self.has_deadline = false;
        (self.eviction, self.audit) = (EvictionMark::Outside, AuditMark::Quiet);
    }

    /// Whether a read is queued or in flight.
    pub(super) fn is_being_read(&self) -> bool {
        self.state.read() != StreamRead::Idle
    }

    /// The copy, if there is one.
    pub(super) fn log(&self) -> Option<&MessageLog> {
        match &self.copy {
            LocalCopy::Known(log) => Some(log),
            LocalCopy::Unknown | LocalCopy::Blind => None,
        }
    }

    /// The same, to be changed.
    pub(super) fn log_mut(&mut self) -> Option<&mut MessageLog> {
        match &mut self.copy {
            LocalCopy::Known(log) => Some(log),
            LocalCopy::Unknown | LocalCopy::Blind => None,
        }
    }

    /// The end of the copy, if nothing is known to be missing after it.
    pub(super) fn synced_position(&self) -> Option<Position> {
        self.log().filter(|_| self.state.is_synced()).map(MessageLog::position)
    }

    /// Members join although no position is known.
    pub(super) fn join_blindly(&mut self) {
        if let LocalCopy::Unknown = self.copy {
            self.copy = LocalCopy::Blind;
        }
    }

    /// Whether it is a user's topic, which has acknowledgements.
    pub(super) fn is_user(&self) -> bool {
        matches!(self.name.kind(), TopicKind::User(_))
    }

    /// What its user has acknowledged. That there was another queue before shows in what this node
    /// had of it, and in the lineage.
    pub(super) fn acked_up_to(&self) -> AckedUpTo {
        let had_another = self.replaced.is_some() || !self.lineage.is_empty();
        match self.acked {
            Some(offset) => AckedUpTo::Offset(offset),
            None if had_another => AckedUpTo::QueueLost,
            None => AckedUpTo::NewUser,
        }
    }

    /// The first unacknowledged message, if it may be in Redis and is not in the copy.
    pub(super) fn first_missing_unacknowledged(&self) -> Option<u64> {
        let log = self.log().filter(|log| self.is_user() && log.first() > self.oldest_available)?;
        let first = self.acked.map_or(1, |acked| acked.saturating_add(1));
        (first < log.first()).then_some(first)
    }

    pub(super) fn bytes(&self) -> usize {
        self.log().map_or(0, MessageLog::bytes)
    }

    /// Appends a message at the next offset and delivers it.
    pub(super) fn deliver(&mut self, body: &[u8], now: Instant, local: &mut Local) {
        let keep = self.keep;
        let log = self.log_mut().expect("a delivered message has an offset");
        let at = log.next();
        log.push(Bytes::copy_from_slice(body), keep, now);
        let topic = HashedTopic::known(self.name.as_str(), self.hash);
        match envelope::read(topic.name(), body) {
            Ok(message) => local.message_at(topic, &message, at),
            Err(_) => local.unreadable_at(topic, at),
        }
    }

    /// What is known now, for a read that is sent.
    pub(super) fn question(&self) -> SentRead {
        let (from, next, held) = (self.read_from(), self.next_offset(), self.held.len());
        SentRead { from, next, held, purpose: ReadPurpose::Answer }
    }

    /// The lowest offset that is wanted from the stream.
    fn read_from(&self) -> u64 {
        let next = match &self.copy {
            LocalCopy::Unknown => u64::MAX,
            LocalCopy::Blind => self.held.first().map_or(u64::MAX, |at| at.offset),
            LocalCopy::Known(log) => log.next().offset,
        };
        let wanted = |pending: &PendingRequest| match &pending.request {
            TopicRequest::Recover(..) if self.is_user() => {
                self.first_missing_unacknowledged().unwrap_or(u64::MAX)
            }
            TopicRequest::Recover(_, ask) => ask
                .since
                .map_or(u64::MAX, |since| self.lineage.received_up_to(since).saturating_add(1)),
            TopicRequest::History(_) => 1,
        };
        self.pending.iter().map(wanted).fold(next, u64::min).max(1)
    }

    /// Whether the copy has as many messages as are stored.
    pub(super) fn is_full(&self) -> bool {
        let messages = self.keep.messages_max as u64;
        let is_full = |log: &MessageLog| log.next().offset >= log.first().saturating_add(messages);
        self.log().is_some_and(is_full)
    }

    pub(super) fn first_offset(&self) -> u64 {
        self.log().map_or(u64::MAX, MessageLog::first)
    }

    pub(super) fn next_offset(&self) -> u64 {
        self.log().map_or(u64::MAX, |log| log.next().offset)
    }

    pub(super) fn push_front_if_next(&mut self, offset: u64, body: &[u8], now: Instant) {
        let next = offset.checked_add(1);
        let Some(log) = self.log_mut().filter(|log| next == Some(log.first())) else { return };
        log.push_front(Bytes::copy_from_slice(body), now);
    }
}
