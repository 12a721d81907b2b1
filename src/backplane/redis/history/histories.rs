//! All histories of one server that this node follows: what is asked of them, and their bounds.
//! Reads and repairs are in `fetch` and `repair`.

use crate::backplane::history::log::MessageLog;
use crate::backplane::local::Local;
use crate::backplane::log_throttle::LogThrottle;
use crate::backplane::redis::history::answer::{reply_overload, reply_unreadable};
use crate::backplane::redis::history::batch::{FetchBatch, READS_PER_BATCH};
use crate::backplane::redis::history::follower::FollowedTopic;
use crate::backplane::redis::history::request::{PendingRequest, TopicRef, TopicRequest};
use crate::backplane::redis::pipeline::PendingReply;
use crate::backplane::redis::unreadable::UnreadableWarnings;
use crate::backplane::topic_table::{HashedTopic, TopicHash, TopicTable};
use crate::ids::{Position, ShardId, TopicName, UpTo};
use crate::link::{HistoryError, HistoryRequest, RecoveryRequest};
use crate::policy::limits::Limits;
use crate::policy::namespaces::{Namespaces, Policy};
use crate::policy::token_bucket::TokenBucket;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Messages that are held for a topic while a gap before them is read. More are read again.
pub(super) const HELD_MAX: usize = 256;
/// Each topic is audited once in so many seconds.
const SECONDS_PER_AUDIT_LAP: usize = 60;
/// How long a request may wait; then the join is answered without the missed messages (`overload`).
pub(super) const PENDING_TIME_MAX: Duration = Duration::from_secs(10);
/// The histories of one server that this node follows. Owned by the server.
pub(crate) struct Histories {
    pub(super) namespaces: Arc<Namespaces>,
    pub(super) is_enabled: bool,
    /// No reads are sent: topics are about to move.
    pub(super) is_paused: bool,
    /// The server has redirected a topic.
    pub(super) is_redirected: bool,
    pub(super) topics: TopicTable<FollowedTopic>,
    /// Topics whose read was refused, and when it is sent again.
    pub(super) to_retry: VecDeque<(Instant, TopicRef)>,
    /// Topics to be read, each once. Forgotten ones stay until they reach the front.
    pub(super) to_read: VecDeque<TopicRef>,
    pub(super) batches: VecDeque<FetchBatch>,
    /// Each topic once, in the order in which copies are dropped and audited. Forgotten ones stay
    /// until they reach the front.
    pub(super) eviction_queue: VecDeque<(TopicHash, TopicRef)>,
    pub(super) incarnations: u64,
    pub(super) bytes: usize,
    pub(super) bytes_max: usize,
    pub(super) recovery_bytes_max: usize,
    pub(super) bucket: TokenBucket,
    /// Time zero of the bucket.
    pub(super) started: Instant,
    pub(super) last_expiry: Option<Instant>,
    pub(super) refusal_log: LogThrottle,
    pub(super) impossible: LogThrottle,
    pub(super) unreadable: UnreadableWarnings,
    /// The server does not know the scripts.
    pub(super) is_script_missing: bool,
    /// The scripts are being loaded.
    pub(super) script_load: Option<PendingReply<()>>,
    /// Counters of reads and gaps.
    pub numbers: HistoryCounters,
}

/// Counters of one server's histories.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct HistoryCounters {
    /// Reads of a topic's history.
    pub reads: u64,
    /// Joins that had to wait for a read.
    pub waited: u64,
    /// Gaps that were closed.
    pub repaired: u64,
    /// Gaps that were reported as lost.
    pub lost: u64,
}

impl Histories {
    /// Nothing is followed.
    pub(crate) fn new(namespaces: Arc<Namespaces>, limits: &Limits) -> Histories {
        Histories {
            is_enabled: namespaces.have_history(),
            is_paused: false,
            is_redirected: false,
            to_retry: VecDeque::new(),
            namespaces,
            topics: TopicTable::default(),
            to_read: VecDeque::new(),
            batches: VecDeque::new(),
            eviction_queue: VecDeque::new(),
            incarnations: 0,
            bytes: 0,
            bytes_max: limits.history_bytes_max,
            recovery_bytes_max: limits.recovery_bytes_max,
            // A tenth of a second's reads at once: no more than a server does in one turn.
            bucket: TokenBucket::new(
                limits.history_reads_per_s_max,
                (limits.history_reads_per_s_max / 10).max(READS_PER_BATCH as u64),
            ),
            started: Instant::now(),
            last_expiry: None,
            refusal_log: LogThrottle::default(),
            impossible: LogThrottle::default(),
            unreadable: UnreadableWarnings::default(),
            is_script_missing: false,
            script_load: None,
            numbers: HistoryCounters::default(),
        }
    }

    /// Whether any namespace has a history.
    pub(crate) fn is_enabled(&self) -> bool {
        self.is_enabled
    }

    /// The settings of a topic.
    pub(crate) fn policy(&self, topic: &TopicName) -> &Policy {
        self.namespaces.policy(topic.kind())
    }

    /// Number of followed topics.
    pub(crate) fn topics(&self) -> usize {
        self.topics.len()
    }

    /// Number of topics to be read.
    pub(crate) fn to_read(&self) -> usize {
        self.to_read.len() + self.to_retry.len()
    }

    /// Bytes of the copies.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The server has revoked a topic's subscription: it is read again when it is subscribed.
    pub(crate) fn on_unsubscribed(&mut self, topic: &str) {
        if let Some(topic) = self.topics.get_mut(topic) {
            (topic.is_subscribed, topic.is_synced) = (false, false);
        }
    }

    /// A topic is subscribed on this link: its position is read.
    pub(crate) fn on_subscribed(&mut self, topic: &TopicName) {
        if !self.policy(topic).has_history() {
            return;
        }
        let state = self.follow(topic);
        (state.is_subscribed, state.is_synced) = (true, false);
        state.is_read_before_subscribe = state.is_reading;
        self.schedule_read(topic);
    }

    /// The last member left. A topic with pending requests is forgotten when they are answered.
    pub(crate) fn leave(&mut self, name: &TopicName) {
        let Some(topic) = self.topics.get_mut(name) else { return };
        if topic.pending.is_empty() {
            return self.forget(name);
        }
        (topic.is_subscribed, topic.is_synced) = (false, false);
        self.schedule_read(name);
    }

    pub(super) fn forget(&mut self, topic: &TopicName) {
        if let Some(gone) = self.topics.remove(topic) {
            self.bytes -= gone.bytes();
        }
    }

    fn follow(&mut self, name: &TopicName) -> &mut FollowedTopic {
        let policy = self.namespaces.policy(name.kind());
        let (incarnations, eviction_queue) = (&mut self.incarnations, &mut self.eviction_queue);
        let hash = HashedTopic::from(name).hash();
        self.topics.get_or_insert_with(name, hash, || {
            *incarnations += 1;
            eviction_queue.push_back((hash, (name.clone(), *incarnations)));
            FollowedTopic::new(name, hash, policy, *incarnations)
        })
    }

    /// Follows a topic as after a read: everything up to `at` was delivered here.
    #[cfg(test)]
    pub(crate) fn follow_from(&mut self, name: &TopicName, at: Position) {
        let topic = self.follow(name);
        topic.log = Some(MessageLog::new(at.epoch, at.offset));
        (topic.is_subscribed, topic.is_synced) = (true, true);
    }

    /// The next topic of the eviction queue, which goes to its back.
    fn next_for_eviction(&mut self) -> Option<&mut FollowedTopic> {
        loop {
            let (hash, (name, incarnation)) = self.eviction_queue.pop_front()?;
            let topic = HashedTopic::known(name.as_str(), hash);
            if self.topics.get(topic).is_some_and(|topic| topic.incarnation == incarnation) {
                self.eviction_queue.push_back((hash, (name.clone(), incarnation)));
                return self.topics.get_mut(HashedTopic::known(name.as_str(), hash));
            }
        }
    }

    /// A message with a position arrived. Returns `false` if the topic is not followed.
    pub(crate) fn handle_message(
        &mut self,
        topic: HashedTopic<'_>,
        at: Position,
        body: &[u8],
        now: Instant,
        local: &mut Local,
    ) -> bool {
        let Some(topic) = self.topics.get_mut(topic) else { return false };
        let known = topic.log.as_ref().map(MessageLog::position).filter(|_| topic.is_synced);
        match known {
            Some(known) if at.epoch == known.epoch && at.offset <= known.offset => {}
            // Of an epoch that is over, as after a repair a moment ago: what of it belongs to this
            // history is known, and no read would ever explain it.
            Some(known) if at.epoch < known.epoch => {}
            Some(known)
                if at.epoch == known.epoch && at.offset == known.offset.saturating_add(1) =>
            {
                let before = topic.bytes();
                topic.deliver(body, now, local);
                self.bytes = self.bytes + topic.bytes() - before;
                self.make_room();
            }
            _ => {
                if topic.held_messages.len() < HELD_MAX {
                    topic.held_messages.push_back((at, body.to_vec()));
                }
                if topic.is_synced {
                    topic.is_synced = false;
                    let name = topic.name.clone();
                    self.schedule_read(&name);
                }
            }
        }
        true
    }

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
        // A topic without members here is followed for this request only.
        let topic = self.follow(name);
        topic.was_used = true;
        if topic.unreadable > 0 {
            return reply_unreadable(request, local);
        }
        // The read in flight may be older than the request.
        let after = topic.reads + 1 + u64::from(topic.is_reading);
        // Only this request: thousands may be pending, and nothing has changed for them.
        if let Some(request) = topic.answer(request, after, bytes_max, local) {
            let is_recovery = matches!(request, TopicRequest::Recover(..));
            topic.pending.push(PendingRequest { since: now, request, after });
            self.numbers.waited += u64::from(is_recovery);
        }
        self.read_or_forget(name, local);
    }

    /// A user has acknowledged messages. Returns the position; `None`: nothing is known of the
    /// history.
    pub(crate) fn acknowledge(&mut self, name: &TopicName, up_to: UpTo) -> Option<Position> {
        let topic = self.topics.get_mut(name);
        let known = topic.as_ref().and_then(|topic| topic.log.as_ref()).map(MessageLog::position);
        let epoch = up_to.epoch.or(known.map(|known| known.epoch))?;
        if let (Some(topic), Some(known)) = (topic, known)
            && epoch == known.epoch
            && up_to.offset <= known.offset
        {
            topic.acked = topic.acked.max(Some(up_to.offset));
        }
        Some(Position { epoch, offset: up_to.offset })
    }

    /// Answers the pending requests that the copy can answer.
    pub(super) fn answer_all(&mut self, name: &TopicName, local: &mut Local) {
        let bytes_max = self.recovery_bytes_max;
        let Some(topic) = self.topics.get_mut(name) else { return };
        if topic.pending.is_empty() {
            return;
        }
        let pending = std::mem::take(&mut topic.pending);
        for PendingRequest { since, request, after } in pending {
            if let Some(request) = topic.answer(request, after, bytes_max, local) {
                topic.pending.push(PendingRequest { since, request, after });
            }
        }
        self.read_or_forget(name, local);
    }

    /// Reads a topic whose requests wait for a read; forgets one without requests and members.
    fn read_or_forget(&mut self, name: &TopicName, local: &Local) {
        let Some(topic) = self.topics.get(name) else { return };
        // A join waits for the subscription first.
        let may_read = |pending: &PendingRequest| match pending.request {
            TopicRequest::Recover(..) => topic.is_subscribed,
            TopicRequest::History(_) => true,
        };
        if topic.is_reading {
            return;
        }
        if topic.pending.iter().any(may_read) {
            self.schedule_read(name);
        } else if topic.pending.is_empty() && local.interest.members(name.as_str()).is_none() {
            self.forget(name);
        }
    }

    /// Queues a read, unless one is queued or in flight.
    pub(super) fn schedule_read(&mut self, name: &TopicName) {
        let Some(topic) = self.topics.get_mut(name) else { return };
        if !std::mem::replace(&mut topic.is_reading, true) {
            self.to_read.push_back((name.clone(), topic.incarnation));
        }
    }

    /// The link is lost: all positions are read again on the next one.
    pub(crate) fn lose_link(&mut self, local: &mut Local) {
        self.to_read.clear();
        self.to_retry.clear();
        self.batches.clear();
        (self.is_script_missing, self.script_load) = (false, None);
        let mut first_missing_unacknowledged = Vec::new();
        for (name, topic) in self.topics.iter_mut() {
            topic.lose_link();
            if local.interest.members(name.as_str()).is_none() {
                first_missing_unacknowledged.push(name.clone());
            }
        }
        for name in first_missing_unacknowledged {
            self.abandon(&name, local);
        }
    }

    /// Answers the requests for a topic without members: Redis is unavailable.
    fn abandon(&mut self, name: &TopicName, local: &mut Local) {
        let pending = self.topics.get_mut(name).map(|topic| std::mem::take(&mut topic.pending));
        for PendingRequest { request, .. } in pending.into_iter().flatten() {
            match request {
                TopicRequest::History(ask) => {
                    local.reply_history(ask.topic, ask.to, Err(HistoryError::Unavailable))
                }
                TopicRequest::Recover(shard, ask) => reply_overload(shard, *ask, None, local),
            }
        }
        self.forget(name);
    }

    /// Answers requests that have waited too long; at most once a second.
    pub(crate) fn expire(&mut self, now: Instant, local: &mut Local) {
        let is_due = |at: Instant| now.saturating_duration_since(at) >= Duration::from_secs(1);
        if !self.is_enabled || !self.last_expiry.is_none_or(is_due) {
            return;
        }
        self.last_expiry = Some(now);
        self.schedule_audits();
        let mut first_missing_unacknowledged = Vec::new();
        for topic in
            self.topics.iter_mut().map(|(_, topic)| topic).filter(|topic| !topic.pending.is_empty())
        {
            let position = topic.log.as_ref().map(MessageLog::position).filter(|_| topic.is_synced);
            topic.is_joined_without_position |= position.is_none();
            let is_late = |pending: &mut PendingRequest| {
                now.saturating_duration_since(pending.since) >= PENDING_TIME_MAX
            };
            for PendingRequest { request, .. } in topic.pending.extract_if(.., is_late) {
                match request {
                    TopicRequest::History(ask) => {
                        local.reply_history(ask.topic, ask.to, Err(HistoryError::Unavailable));
                    }
                    TopicRequest::Recover(shard, ask) => {
                        reply_overload(shard, *ask, position, local)
                    }
                }
            }
            let is_heard = local.interest.members(topic.name.as_str()).is_some();
            if topic.pending.is_empty() && !is_heard {
                first_missing_unacknowledged.push(topic.name.clone());
            }
        }
        // They were followed for those requests only.
        first_missing_unacknowledged.iter().for_each(|name| self.forget(name));
    }

    /// Reads a share of all positions again. A message that was lost without a trace at the end of
    /// an idle topic is found in no other way.
    fn schedule_audits(&mut self) {
        for _ in 0..self.eviction_queue.len().div_ceil(SECONDS_PER_AUDIT_LAP) {
            let Some(topic) = self.next_for_eviction() else { return };
            if topic.is_synced {
                topic.is_audit = true;
                let name = topic.name.clone();
                self.schedule_read(&name);
            }
        }
    }

    /// Whether no batch is in flight.
    pub(crate) fn has_none_in_flight(&self) -> bool {
        self.batches.is_empty()
    }

    /// Stops or resumes sending reads.
    pub(crate) fn set_paused(&mut self, is_paused: bool) {
        self.is_paused = is_paused;
    }

    /// Sets the bytes that copies may take: this server's share of the node's bound.
    pub(crate) fn set_bytes_max(&mut self, bytes_max: usize) {
        self.bytes_max = bytes_max;
    }

    /// Whether the server has redirected a topic since the last call.
    pub(crate) fn take_redirected(&mut self) -> bool {
        std::mem::take(&mut self.is_redirected)
    }

    /// Takes out the topics that have moved to another server, with their pending requests.
    pub(crate) fn take_moved(
        &mut self,
        has_moved: impl Fn(&TopicName) -> bool,
    ) -> Vec<FollowedTopic> {
        assert!(self.batches.is_empty(), "topics move while nothing is in flight");
        let moved = self.topics.take_if(has_moved);
        self.bytes -= moved.iter().map(FollowedTopic::bytes).sum::<usize>();
        self.to_read.retain(|(name, _)| self.topics.get(name).is_some());
        self.to_retry.retain(|(_, (name, _))| self.topics.get(name).is_some());
        moved
    }

    /// Takes in a topic that another server had.
    pub(crate) fn adopt(&mut self, mut topic: FollowedTopic, local: &Local) {
        topic.lose_link();
        self.incarnations += 1;
        topic.incarnation = self.incarnations;
        self.bytes += topic.bytes();
        let (name, hash) = (topic.name.clone(), topic.hash);
        self.eviction_queue.push_back((hash, (name.clone(), topic.incarnation)));
        self.topics.remove(HashedTopic::known(name.as_str(), hash));
        self.topics.get_or_insert_with(&name, hash, || topic);
        self.read_or_forget(&name, local);
    }

    /// Drops copies until they fit: they can be read again.
    pub(super) fn make_room(&mut self) {
        for _ in 0..2 * self.eviction_queue.len() {
            if self.bytes <= self.bytes_max {
                return;
            }
            let Some(topic) = self.next_for_eviction() else { return };
            if !std::mem::take(&mut topic.was_used) {
                let forgotten = topic.log.as_mut().map_or(0, MessageLog::forget_messages);
                self.bytes -= forgotten;
            }
        }
    }
}
