//! All histories of one server that this node follows: what happens to them on the link, and the
//! messages that arrive. Requests are in `ask`, reads in `fetch`, repairs in `repair`, and what is
//! done for topics in which nothing happens in `quiet`.

use crate::backplane::local::Local;
use crate::backplane::log_throttle::LogThrottle;
use crate::backplane::redis::history::batch::{
    BATCHES_WITH_FOLLOW_UPS_MAX, FetchPipeline, READS_PER_BATCH,
};
use crate::backplane::redis::history::deadlines::DeadlineQueue;
use crate::backplane::redis::history::follower::FollowedTopic;
use crate::backplane::redis::history::request::TopicRef;
use crate::backplane::redis::history::rotation::Rotation;
use crate::backplane::redis::history::state::{HistoryEvent, ReadPurpose};
use crate::backplane::redis::pipeline::RetryOrder;
use crate::backplane::redis::unreadable::UnreadableWarnings;
use crate::backplane::topic_table::{HashedTopic, TopicTable};
use crate::ids::{Position, TopicName, UpTo};
use crate::policy::limits::Limits;
use crate::policy::namespaces::{Namespaces, Policy};
use crate::policy::token_bucket::TokenBucket;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// From the first message that arrives at a quiet topic to its audit: see `quiet`.
const ACTIVE_AUDIT_AFTER: Duration = Duration::from_secs(60);

/// The histories of one server that this node follows. Owned by the server.
pub(crate) struct Histories {
    pub(super) namespaces: Arc<Namespaces>,
    pub(super) is_enabled: bool,
    /// No reads are sent: topics are about to move.
    pub(super) is_paused: bool,
    /// The server has redirected a topic.
    pub(super) is_redirected: bool,
    pub(super) topics: TopicTable<FollowedTopic>,
    /// Topics whose read is sent again later.
    pub(super) to_retry: DeadlineQueue<TopicRef>,
    /// Topics to be read, each once. Forgotten ones stay until they reach the front.
    pub(super) to_read: VecDeque<TopicRef>,
    /// What is in flight.
    pub(super) pipeline: FetchPipeline,
    /// For each topic with requests, when the oldest of them has waited for too long.
    pub(super) deadlines: DeadlineQueue<TopicRef>,
    /// Requests that wait for an answer, of all topics.
    pub(super) waiting: usize,
    pub(super) waiting_max: usize,
    /// All topics, in the order in which they are audited.
    pub(super) audits: Rotation,
    /// Topics to which messages have arrived since their last audit, and when they are audited.
    pub(super) active: DeadlineQueue<TopicRef>,
    /// Topics whose copies have messages, in the order in which copies are dropped.
    pub(super) evictions: Rotation,
    /// Followed topics of which the server may lack messages that this node has.
    pub(super) repairs_owed: usize,
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
            namespaces,
            topics: TopicTable::default(),
            to_retry: DeadlineQueue::new(),
            to_read: VecDeque::new(),
            pipeline: FetchPipeline::new(BATCHES_WITH_FOLLOW_UPS_MAX, RetryOrder::Each),
            deadlines: DeadlineQueue::new(),
            waiting: 0,
            waiting_max: limits.history_requests_waiting_max,
            audits: Rotation::default(),
            active: DeadlineQueue::new(),
            evictions: Rotation::default(),
            repairs_owed: 0,
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

    /// Number of requests that wait for an answer.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Bytes of the copies.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// A topic is subscribed on this link: its position is read.
    pub(crate) fn on_subscribed(&mut self, topic: &TopicName) {
        if self.policy(topic).has_history() {
            self.follow(topic);
            self.apply(topic, HistoryEvent::Subscribed);
        }
    }

    /// The server has revoked a topic's subscription: it is read again when it is subscribed.
    pub(crate) fn on_unsubscribed(&mut self, topic: &str) {
        let name = self.topics.get(topic).map(|topic| topic.name.clone());
        name.iter().for_each(|name| self.apply(name, HistoryEvent::Unsubscribed));
    }

    /// The last member left. A topic with pending requests is forgotten when they are answered.
    pub(crate) fn leave(&mut self, name: &TopicName) {
        let Some(topic) = self.topics.get(name) else { return };
        if topic.pending.is_empty() {
            return self.forget(name);
        }
        self.apply(name, HistoryEvent::Unsubscribed);
        self.apply(name, HistoryEvent::ReadWanted(ReadPurpose::Answer));
    }

    /// Takes a topic to its next state, and puts it into the queue of reads if it has to be read.
    pub(super) fn apply(&mut self, name: &TopicName, event: HistoryEvent) {
        if let Some(topic) = self.topics.get_mut(name)
            && topic.apply(event)
        {
            self.to_read.push_back((name.clone(), topic.incarnation));
        }
    }

    /// The same; it is read no sooner than at `due`.
    pub(super) fn apply_and_read_at(
        &mut self,
        name: &TopicName,
        event: HistoryEvent,
        due: Instant,
    ) {
        if let Some(topic) = self.topics.get_mut(name)
            && topic.apply(event)
        {
            self.to_retry.push(due, (name.clone(), topic.incarnation));
        }
    }

    pub(super) fn forget(&mut self, topic: &TopicName) {
        if let Some(gone) = self.topics.remove(topic) {
            self.bytes -= gone.bytes();
            self.waiting -= gone.pending.len();
            self.repairs_owed -= usize::from(gone.owes_repair);
        }
    }

    pub(super) fn follow(&mut self, name: &TopicName) -> &mut FollowedTopic {
        let hash = HashedTopic::from(name).hash();
        let topic = HashedTopic::known(name.as_str(), hash);
        if self.topics.get(topic).is_none() {
            self.incarnations += 1;
            let policy = self.namespaces.policy(name.kind());
            let new = FollowedTopic::new(name, hash, policy, self.incarnations);
            self.add(new);
        }
        self.topics.get_mut(topic).expect("it is followed")
    }

    /// Adds a topic that is not followed.
    fn add(&mut self, mut topic: FollowedTopic) {
        let (name, hash) = (topic.name.clone(), topic.hash);
        self.bytes += topic.bytes();
        self.waiting += topic.pending.len();
        self.repairs_owed += usize::from(topic.owes_repair);
        self.audits.push(hash, (name.clone(), topic.incarnation));
        topic.become_evictable().into_iter().for_each(|it| self.evictions.push(hash, it));
        self.topics.get_or_insert_with(&name, hash, || topic);
    }

    /// Follows a topic as after a read: everything up to `at` was delivered here.
    #[cfg(test)]
    pub(crate) fn follow_from(&mut self, name: &TopicName, at: Position) {
        use crate::backplane::history::log::MessageLog;
        use crate::backplane::redis::history::follower::LocalCopy;
        let topic = self.follow(name);
        topic.copy = LocalCopy::Known(MessageLog::new(at.epoch, at.offset));
        let sent = topic.question();
        for event in [HistoryEvent::Subscribed, HistoryEvent::ReadSent(sent), HistoryEvent::Taken] {
            let _ = topic.apply(event);
        }
    }

    /// A message with a position arrived. Returns `false` if the topic is not followed.
    pub(crate) fn handle_message(
        &mut self,
        name: HashedTopic<'_>,
        at: Position,
        body: &[u8],
        now: Instant,
        local: &mut Local,
    ) -> bool {
        let Some(topic) = self.topics.get_mut(name) else { return false };
        let event = match topic.synced_position() {
            Some(known) if at.epoch == known.epoch && at.offset <= known.offset => return true,
            // Of an epoch that is over, as after a repair a moment ago: what of it belongs to this
            // history is known. An unknown epoch shows that the history may be another one.
            Some(known) if at.epoch < known.epoch => {
                if topic.lineage.end_of(at.epoch).is_some() {
                    return true;
                }
                HistoryEvent::ReadWanted(ReadPurpose::Audit)
            }
            Some(known)
                if known.offset.checked_add(1) == Some(at.offset) && at.epoch == known.epoch =>
            {
                let before = topic.bytes();
                topic.deliver(body, now, local);
                self.bytes = self.bytes + topic.bytes() - before;
                let hash = topic.hash;
                topic
                    .become_active()
                    .into_iter()
                    .for_each(|it| self.active.push(now + ACTIVE_AUDIT_AFTER, it));
                topic.become_evictable().into_iter().for_each(|it| self.evictions.push(hash, it));
                self.make_room();
                return true;
            }
            _ => {
                topic.held.push(at, body);
                HistoryEvent::GapSeen
            }
        };
        if topic.apply(event) {
            self.to_read.push_back((topic.name.clone(), topic.incarnation));
        }
        true
    }

    /// A user has acknowledged messages. Returns the position; `None`: nothing is known of the
    /// history.
    pub(crate) fn acknowledge(&mut self, name: &TopicName, up_to: UpTo) -> Option<Position> {
        let topic = self.topics.get_mut(name);
        let known = topic.as_ref().and_then(|topic| topic.log()).map(|log| log.position());
        let epoch = up_to.epoch.or(known.map(|known| known.epoch))?;
        if let (Some(topic), Some(known)) = (topic, known)
            && epoch == known.epoch
            && up_to.offset <= known.offset
        {
            topic.acked = topic.acked.max(Some(up_to.offset));
        }
        Some(Position { epoch, offset: up_to.offset })
    }

    /// The link is lost: all positions are read again on the next one.
    pub(crate) fn lose_link(&mut self, local: &mut Local) {
        self.to_read.clear();
        self.to_retry.clear();
        // All topics are read again: nothing of it is needed.
        drop(self.pipeline.lose_link());
        let mut without_members = Vec::new();
        self.repairs_owed = 0;
        for (name, topic) in self.topics.iter_mut() {
            topic.lose_link();
            self.repairs_owed += usize::from(topic.owes_repair);
            if local.interest.members(name.as_str()).is_none() {
                without_members.push(name.clone());
            }
        }
        without_members.iter().for_each(|name| self.abandon(name, local));
    }

    /// Whether the server may still lack messages that this node has.
    pub(crate) fn owes_repairs(&self) -> bool {
        self.repairs_owed > 0
    }

    /// A read has shown that the server has what this node has of a topic, or cannot take it.
    pub(super) fn note_repaired(&mut self, name: &TopicName) {
        if let Some(topic) = self.topics.get_mut(name) {
            self.repairs_owed -= usize::from(std::mem::take(&mut topic.owes_repair));
        }
    }

    /// Whether no batch is in flight.
    pub(crate) fn has_none_in_flight(&self) -> bool {
        self.pipeline.has_none_in_flight()
    }

    /// Stops or resumes sending reads.
    pub(crate) fn set_paused(&mut self, is_paused: bool) {
        self.is_paused = is_paused;
    }

    /// Sets the bounds: this server's share of those of the node.
    pub(crate) fn set_share(&mut self, limits: &Limits, servers: usize) {
        self.bytes_max = limits.history_bytes_max / servers;
        self.waiting_max = (limits.history_requests_waiting_max / servers).max(1);
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
        assert!(self.pipeline.has_none_in_flight(), "topics move while nothing is in flight");
        let moved = self.topics.take_if(has_moved);
        self.bytes -= moved.iter().map(FollowedTopic::bytes).sum::<usize>();
        self.waiting -= moved.iter().map(|topic| topic.pending.len()).sum::<usize>();
        self.repairs_owed -= moved.iter().filter(|topic| topic.owes_repair).count();
        self.to_read.retain(|(name, _)| self.topics.get(name).is_some());
        self.to_retry.retain(|(name, _)| self.topics.get(name).is_some());
        moved
    }

    /// Takes in a topic that another server had.
    pub(crate) fn adopt(&mut self, mut topic: FollowedTopic, local: &Local) {
        topic.lose_link();
        self.incarnations += 1;
        topic.move_to(self.incarnations);
        let name = topic.name.clone();
        self.forget(&name);
        self.add(topic);
        self.await_deadline(&name);
        self.read_or_forget(&name, local);
    }
}
