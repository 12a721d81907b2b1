//! What is done for topics in which nothing happens: deadlines, audits and evictions.
//!
//! A message that was lost without a trace at the end of a topic is found by an *audit*: its
//! position is read again. A topic is audited a minute after messages have begun to arrive, and
//! then in its turn: each once a minute as long as there are few, and at most
//! [`QUIET_AUDITS_PER_S`] in a second however many there are.
//!
//! Invariant: no work here grows with the number of topics in which nothing happens.

use crate::backplane::local::Local;
use crate::backplane::redis::history::follower::{AuditMark, EvictionMark, FollowedTopic};
use crate::backplane::redis::history::histories::Histories;
use crate::backplane::redis::history::request::TopicRef;
use crate::backplane::redis::history::state::{HistoryEvent, ReadPurpose};
use crate::backplane::topic_table::HashedTopic;
use std::time::{Duration, Instant};

/// Each topic is audited once in so many seconds, unless there are too many.
const SECONDS_PER_AUDIT_LAP: usize = 60;
/// Audits in a second for which no message is the reason.
const QUIET_AUDITS_PER_S: usize = 100;

impl Histories {
    /// Answers requests that have waited for too long, and audits topics; at most once a second.
    pub(crate) fn expire(&mut self, now: Instant, local: &mut Local) {
        let is_due = |at: Instant| now.saturating_duration_since(at) >= Duration::from_secs(1);
        if !self.is_enabled || !self.last_expiry.is_none_or(is_due) {
            return;
        }
        self.last_expiry = Some(now);
        self.audits.compact(&self.topics);
        self.evictions.compact(&self.topics);
        self.audit_active(now);
        self.audit_quiet();
        self.expire_requests(now, local);
    }

    /// Topics to which messages have arrived.
    fn audit_active(&mut self, now: Instant) {
        while let Some((name, incarnation)) = self.active.pop_due(now) {
            let topic = self.topics.get_mut(&name).filter(|it| it.incarnation == incarnation);
            let Some(topic) = topic else { continue };
            topic.audit = AuditMark::Quiet;
            if topic.state().is_synced() {
                self.apply(&name, HistoryEvent::ReadWanted(ReadPurpose::Audit));
            }
        }
    }

    /// Some topics in their turn.
    fn audit_quiet(&mut self) {
        let share = self.audits.len().div_ceil(SECONDS_PER_AUDIT_LAP);
        for _ in 0..share.min(QUIET_AUDITS_PER_S) {
            let Some((hash, topic_ref)) = self.audits.pop(&self.topics) else { return };
            let topic = self.topics.get(HashedTopic::known(topic_ref.0.as_str(), hash));
            if topic.is_some_and(|topic| topic.state().is_synced()) {
                self.apply(&topic_ref.0, HistoryEvent::ReadWanted(ReadPurpose::Audit));
            }
            self.audits.push(hash, topic_ref);
        }
    }

    /// Drops copies until they fit: they can be read again.
    pub(super) fn make_room(&mut self) {
        while self.bytes > self.bytes_max {
            let Some((hash, topic_ref)) = self.evictions.pop(&self.topics) else { return };
            let topic = HashedTopic::known(topic_ref.0.as_str(), hash);
            let topic = self.topics.get_mut(topic).expect("it is followed");
            if topic.eviction == EvictionMark::Used {
                topic.eviction = EvictionMark::Queued;
                self.evictions.push(hash, topic_ref);
                continue;
            }
            topic.eviction = EvictionMark::Outside;
            self.bytes -= topic.log_mut().map_or(0, |log| log.forget_messages());
        }
    }
}

impl FollowedTopic {
    /// A message was delivered: the topic, if it has to be put into the queue of active ones.
    pub(super) fn become_active(&mut self) -> Option<TopicRef> {
        let was = std::mem::replace(&mut self.audit, AuditMark::Active);
        (was == AuditMark::Quiet).then(|| (self.name.clone(), self.incarnation))
    }

    /// The copy has grown: the topic, if it has to be put into the queue of evictions.
    pub(super) fn become_evictable(&mut self) -> Option<TopicRef> {
        if self.eviction != EvictionMark::Outside || self.bytes() == 0 {
            return None;
        }
        self.eviction = EvictionMark::Used;
        Some((self.name.clone(), self.incarnation))
    }
}
