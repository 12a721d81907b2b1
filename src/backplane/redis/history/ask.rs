//! Requests for histories: joins that want a position and the messages missed, and pages.
//!
//! A request that the copy cannot answer waits for a read. No more wait than
//! `limits.history_requests_waiting_max` allows, and none for longer than [`PENDING_TIME_MAX`].
//!
//! Invariant: each request is answered once. A join is answered with a position that was read, or
//! refused with the reason.

use crate::backplane::local::Local;
use crate::backplane::redis::history::answer::{refuse, reply_overload};
use crate::backplane::redis::history::follower::{EvictionMark, FollowedTopic};
use crate::backplane::redis::history::histories::Histories;
use crate::backplane::redis::history::request::{PendingRequest, TopicRequest};
use crate::backplane::redis::history::state::{FollowState, HistoryEvent, ReadPurpose};
use crate::ids::{ShardId, TopicName};
use crate::link::{HistoryError, HistoryRequest, RecoveryRequest};
use std::time::{Duration, Instant};

/// How long a request may wait.
pub(super) const PENDING_TIME_MAX: Duration = Duration::from_secs(10);

impl Histories {
    /// Answers a join: the position, and the messages missed.
    pub(crate) fn recover(
        &mut self,
        shard: ShardId,
        ask: Box<RecoveryRequest>,
        now: Instant,
        local: &mut Local,
    ) {
        let name = ask.topic.clone();
        self.ask(&name, TopicRequest::Recover(shard, ask), now, local);
    }

    /// Answers a request for a page of history.
    pub(crate) fn history(&mut self, ask: Box<HistoryRequest>, now: Instant, local: &mut Local) {
        let name = ask.topic.clone();
        self.ask(&name, TopicRequest::History(ask), now, local);
    }

    fn ask(&mut self, name: &TopicName, request: TopicRequest, now: Instant, local: &mut Local) {
        let bytes_max = self.recovery_bytes_max;
        let (waiting, waiting_max) = (self.waiting, self.waiting_max);
        // A topic without members here is followed for this request only.
        let topic = self.follow(name);
        if topic.eviction == EvictionMark::Queued {
            topic.eviction = EvictionMark::Used;
        }
        if let FollowState::Unreadable { .. } = topic.state() {
            return topic.refuse(request, HistoryError::Unreadable, local);
        }
        // The read in flight may be older than the request.
        let after = topic.reads + 1 + u64::from(topic.is_being_read());
        // Only this request: thousands may be pending, and nothing has changed for them.
        if let Some(request) = topic.answer(request, after, bytes_max, local) {
            // One topic may take half of the places.
            if waiting >= waiting_max || topic.pending.len() >= waiting_max.div_ceil(2) {
                local.counters.history_requests_refused += 1;
                topic.refuse(request, HistoryError::Overloaded, local);
            } else {
                let is_recovery = matches!(request, TopicRequest::Recover(..));
                topic.pending.push(PendingRequest { since: now, request, after });
                self.waiting += 1;
                self.numbers.waited += u64::from(is_recovery);
                self.await_deadline(name);
            }
        }
        self.read_or_forget(name, local);
    }

    /// Answers the pending requests that the copy can answer.
    pub(super) fn answer_all(&mut self, name: &TopicName, local: &mut Local) {
        let bytes_max = self.recovery_bytes_max;
        let Some(topic) = self.topics.get_mut(name) else { return };
        if topic.pending.is_empty() {
            return;
        }
        let pending = std::mem::take(&mut topic.pending);
        let before = pending.len();
        for PendingRequest { since, request, after } in pending {
            if let Some(request) = topic.answer(request, after, bytes_max, local) {
                topic.pending.push(PendingRequest { since, request, after });
            }
        }
        self.waiting -= before - topic.pending.len();
        self.read_or_forget(name, local);
    }

    /// Refuses all pending requests for a topic.
    pub(super) fn refuse_all(&mut self, name: &TopicName, why: HistoryError, local: &mut Local) {
        let Some(topic) = self.topics.get_mut(name) else { return };
        let pending = std::mem::take(&mut topic.pending);
        self.waiting -= pending.len();
        pending.into_iter().for_each(|pending| topic.refuse(pending.request, why, local));
    }

    /// Refuses the requests for a topic without members, and forgets it: Redis is unavailable.
    pub(super) fn abandon(&mut self, name: &TopicName, local: &mut Local) {
        self.refuse_all(name, HistoryError::Unavailable, local);
        self.forget(name);
    }

    /// Reads a topic whose requests wait for a read; forgets one without requests and members.
    pub(super) fn read_or_forget(&mut self, name: &TopicName, local: &Local) {
        let Some(topic) = self.topics.get(name) else { return };
        if topic.is_being_read() {
            return;
        }
        // A join waits for the subscription first.
        let may_read = |pending: &PendingRequest| match pending.request {
            TopicRequest::Recover(..) => topic.state().is_subscribed(),
            TopicRequest::History(_) => true,
        };
        if topic.pending.iter().any(may_read) {
            self.apply(name, HistoryEvent::ReadWanted(ReadPurpose::Answer));
        } else if topic.pending.is_empty() && local.interest.members(name.as_str()).is_none() {
            self.forget(name);
        }
    }

    /// The oldest request of a topic is looked at when it has waited for too long.
    pub(super) fn await_deadline(&mut self, name: &TopicName) {
        let Some(topic) = self.topics.get_mut(name) else { return };
        if let Some(oldest) = topic.pending.first()
            && !topic.has_deadline
        {
            topic.has_deadline = true;
            let due = oldest.since + PENDING_TIME_MAX;
            self.deadlines.push(due, (name.clone(), topic.incarnation));
        }
    }

    /// Answers requests that have waited for too long.
    pub(super) fn expire_requests(&mut self, now: Instant, local: &mut Local) {
        while let Some((name, incarnation)) = self.deadlines.pop_due(now) {
            let topic = self.topics.get_mut(&name).filter(|it| it.incarnation == incarnation);
            let Some(topic) = topic else { continue };
            topic.has_deadline = false;
            self.waiting -= topic.expire_requests(now, local);
            let has_ended = topic.pending.is_empty();
            self.await_deadline(&name);
            if has_ended && local.interest.members(name.as_str()).is_none() {
                // It was followed for those requests only.
                self.forget(&name);
            }
        }
    }
}

impl FollowedTopic {
    /// Refuses a request. A user's connection is a member all the same.
    pub(super) fn refuse(&mut self, request: TopicRequest, why: HistoryError, local: &mut Local) {
        if self.is_user() && matches!(request, TopicRequest::Recover(..)) {
            self.join_blindly();
        }
        refuse(request, why, local);
    }

    /// Answers requests that have waited for too long. Returns how many.
    fn expire_requests(&mut self, now: Instant, local: &mut Local) -> usize {
        let is_late = |pending: &PendingRequest| {
            now.saturating_duration_since(pending.since) >= PENDING_TIME_MAX
        };
        let late = self.pending.partition_point(is_late);
        let position = self.synced_position();
        let late: Vec<_> = self.pending.drain(..late).collect();
        let count = late.len();
        for pending in late {
            match (pending.request, position) {
                (TopicRequest::Recover(shard, ask), Some(position)) => {
                    reply_overload(shard, *ask, position, local);
                }
                (request, _) => self.refuse(request, HistoryError::Unavailable, local),
            }
        }
        count
    }
}
