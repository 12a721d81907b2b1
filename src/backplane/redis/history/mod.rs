//! Histories that Redis keeps, as far as this node follows them.
//!
//! For each topic with a history that this node listens for there is a copy of its end (a [`MessageLog`])
//! and the position up to which everything was delivered here. A message that comes with the next
//! offset is delivered; one that is known is dropped; one that comes too early shows a hole, and
//! the hole is read from the stream before anything else is delivered. On every new link the
//! position is read again for every topic: what was missed at the end of a topic shows in no other
//! way.
//!
//! Whoever comes back is answered from the copy. What it does not have is read once, whoever else may
//! ask for it meanwhile: a topic has one read under way.
//!
//! A server that has lost the end of a history (a replica that was promoted too early, a restart
//! without its data) gets it back from whichever node has heard it, before anything new is said
//! there.
//!
//! Where a hole cannot be closed, because the stream is shorter than that or the history is another
//! one by now, everybody in the topic hears `lost`. If the history has only gone on from before what
//! was heard last, they hear what was said instead.
//!
//! Of a user's topic what the user has acknowledged is read anew for each connection that comes: it
//! may have said so on another node.
//!
//! What Redis has of a history and we did not write ([`crate::backplane::redis::unreadable`]) is not made up for:
//! nobody is let into such a topic or told anything of it until it is mended, and all others go on.
//!
//! Invariant: what was delivered of a topic since somebody was told a position has every offset
//! behind it, in order, once; or `lost` stands between.

mod answer;
mod fetch;
mod follower;
mod repair;
mod reply;
#[cfg(test)]
mod tests;

pub use follower::Topic;

use crate::backplane::history::log::MessageLog;
use crate::backplane::local::Local;
use crate::backplane::log_throttle::LogThrottle;
use crate::backplane::redis::connection::Reply;
use crate::backplane::redis::unreadable::Warnings;
use crate::ids::{Position, ShardId, TopicName, UpTo};
use crate::link::{HistoryError, HistoryRequest, RecoveryRequest};
use crate::policy::limits::Limits;
use crate::policy::namespaces::{Namespaces, Policy};
use crate::policy::token_bucket::TokenBucket;
use answer::{Question, Waiting, overload, refuse};
use fetch::{Flight, READS_PER_FLIGHT};
use hashbrown::HashMap;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Messages that are kept of a topic while a hole before them is being read. More are read again.
const HELD_MAX: usize = 256;
/// Every topic is looked at again once in so many seconds.
const LOOKS_PER_LAP: usize = 60;
/// How long somebody waits for what they missed. Then: `overload`.
const WAIT_MAX: Duration = Duration::from_secs(10);
/// For how long the position of a topic outlives its messages.
pub const META_TTL_S: u64 = 24 * 60 * 60;

/// For how long what is known of a history is kept without a message or an acknowledgement.
pub fn meta_ttl_s(policy: &Policy) -> u64 {
    policy.history_ttl_s + META_TTL_S
}

/// See the module.
pub struct Histories {
    namespaces: Arc<Namespaces>,
    is_any: bool,
    /// Nothing is asked while topics are about to move.
    is_held: bool,
    /// The server said that topics are elsewhere.
    is_astray: bool,
    topics: HashMap<TopicName, Topic>,
    /// Topics that the server would not say anything of, and when to ask again.
    later: VecDeque<(Instant, Place)>,
    /// Topics that want a read, each once. Those that were forgotten stand here until they come to
    /// the front.
    wanted: VecDeque<Place>,
    flights: VecDeque<Flight>,
    /// Every topic once, by its line, for whoever looks for messages to let go of. Those of topics
    /// that were forgotten stand here until they come to the front.
    round: VecDeque<Place>,
    lines: u64,
    bytes: usize,
    bytes_max: usize,
    recovery_bytes_max: usize,
    bucket: TokenBucket,
    /// What the bucket's time counts from.
    born: Instant,
    expired: Option<Instant>,
    refusals: LogThrottle,
    lies: LogThrottle,
    unreadable: Warnings,
    /// The server does not know the scripts.
    is_unloaded: bool,
    /// They are being loaded.
    loading: Option<Reply<()>>,
    /// Reads of streams, holes found, and what became of them.
    pub numbers: Numbers,
}

/// A topic by its line. If it is forgotten and followed anew it has another one, and what was asked
/// for the one says nothing of the other.
type Place = (TopicName, u64);

/// What is counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    /// Reads of a topic's history.
    pub reads: u64,
    /// Joins that had to wait for one.
    pub waited: u64,
    /// Holes that were closed.
    pub repaired: u64,
    /// Holes that were told.
    pub lost: u64,
}

impl Histories {
    /// Nothing is followed yet.
    pub fn new(namespaces: Arc<Namespaces>, limits: &Limits) -> Histories {
        Histories {
            is_any: namespaces.have_history(),
            is_held: false,
            is_astray: false,
            later: VecDeque::new(),
            namespaces,
            topics: HashMap::new(),
            wanted: VecDeque::new(),
            flights: VecDeque::new(),
            round: VecDeque::new(),
            lines: 0,
            bytes: 0,
            bytes_max: limits.history_bytes_max,
            recovery_bytes_max: limits.recovery_bytes_max,
            // A tenth of a second's reads at once: no more than a server does in one breath.
            bucket: TokenBucket::new(
                limits.history_reads_per_s_max,
                (limits.history_reads_per_s_max / 10).max(READS_PER_FLIGHT as u64),
            ),
            born: Instant::now(),
            expired: None,
            refusals: LogThrottle::default(),
            lies: LogThrottle::default(),
            unreadable: Warnings::default(),
            is_unloaded: false,
            loading: None,
            numbers: Numbers::default(),
        }
    }

    /// Whether any topic has a history.
    pub fn is_any(&self) -> bool {
        self.is_any
    }

    /// What holds for a topic.
    pub fn policy(&self, topic: &TopicName) -> &Policy {
        self.namespaces.policy(topic.kind())
    }

    /// Topics that are followed.
    pub fn topics(&self) -> usize {
        self.topics.len()
    }

    /// Topics that wait to be read.
    pub fn wanted(&self) -> usize {
        self.wanted.len() + self.later.len()
    }

    /// Bytes of messages that are kept here.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The server has taken a topic's subscription away: nothing is certain until it is subscribed
    /// again.
    pub fn unsubscribed(&mut self, topic: &str) {
        if let Some(topic) = self.topics.get_mut(topic) {
            (topic.is_subscribed, topic.is_synced) = (false, false);
        }
    }

    /// A topic's channel is subscribed on this link: where is its history?
    pub fn subscribed(&mut self, topic: &TopicName) {
        if !self.policy(topic).has_history() {
            return;
        }
        let state = self.follow(topic);
        (state.is_subscribed, state.is_synced) = (true, false);
        state.is_early = state.is_reading;
        self.want(topic);
    }

    /// Nobody here listens for a topic any more. Whoever has asked what was said is answered before
    /// it is forgotten.
    pub fn leave(&mut self, name: &TopicName) {
        let Some(topic) = self.topics.get_mut(name) else { return };
        if topic.waiting.is_empty() {
            return self.forget(name);
        }
        (topic.is_subscribed, topic.is_synced) = (false, false);
        self.want(name);
    }

    fn forget(&mut self, topic: &TopicName) {
        if let Some(gone) = self.topics.remove(topic) {
            self.bytes -= gone.bytes();
        }
    }

    fn follow(&mut self, name: &TopicName) -> &mut Topic {
        if !self.topics.contains_key(name) {
            self.lines += 1;
            let topic = Topic::new(name, self.policy(name), self.lines);
            self.topics.insert(name.clone(), topic);
            self.round.push_back((name.clone(), self.lines));
        }
        self.topics.get_mut(name).expect("it is there by now")
    }

    /// The next topic of the round, which goes behind all others.
    fn next_in_round(&mut self) -> Option<&mut Topic> {
        loop {
            let (name, line) = self.round.pop_front()?;
            if self.topics.get(&name).is_some_and(|topic| topic.line == line) {
                self.round.push_back((name.clone(), line));
                return self.topics.get_mut(&name);
            }
        }
    }

    /// A message came, with the position that its channel names. `false`: nobody here follows it.
    pub fn handle_message(
        &mut self,
        name: &str,
        at: Position,
        body: &[u8],
        now: Instant,
        local: &mut Local,
    ) -> bool {
        let Some(topic) = self.topics.get_mut(name) else { return false };
        let known = topic.log.as_ref().map(MessageLog::position).filter(|_| topic.is_synced);
        match known {
            Some(known) if at.epoch == known.epoch && at.offset <= known.offset => {}
            // Said in an epoch that is over, as when somebody put it back a moment ago: what of it
            // belongs to this history is known, and nothing that is read would ever explain it.
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
                if topic.held.len() < HELD_MAX {
                    topic.held.push_back((at, body.to_vec()));
                }
                if topic.is_synced {
                    topic.is_synced = false;
                    let name = topic.name.clone();
                    self.want(&name);
                }
            }
        }
        true
    }

    /// Somebody asks where a history is, and what they missed.
    pub fn recover(
        &mut self,
        shard: ShardId,
        ask: Box<RecoveryRequest>,
        now: Instant,
        local: &mut Local,
    ) {
        let name = ask.topic.clone();
        self.ask(&name, Question::Recover(shard, ask), now, local);
    }

    /// Somebody asks what was said.
    pub fn history(&mut self, ask: Box<HistoryRequest>, now: Instant, local: &mut Local) {
        let name = ask.topic.clone();
        self.ask(&name, Question::History(ask), now, local);
    }

    fn ask(&mut self, name: &TopicName, question: Question, now: Instant, local: &mut Local) {
        let bytes_max = self.recovery_bytes_max;
        // If nobody here listens for it, it is followed for this one question.
        let topic = self.follow(name);
        topic.is_used = true;
        if topic.unreadable > 0 {
            return refuse(question, local);
        }
        // What is being read already may be older than what is asked for.
        let after = topic.reads + 1 + u64::from(topic.is_reading);
        // Only this one: thousands may wait already, and nothing has changed for them.
        if let Some(question) = topic.answer(question, after, bytes_max, local) {
            let is_recovery = matches!(question, Question::Recover(..));
            topic.waiting.push(Waiting { since: now, question, after });
            self.numbers.waited += u64::from(is_recovery);
        }
        self.read_or_forget(name, local);
    }

    /// A user has dealt with messages. Answers which; `None`: nothing is known of them here.
    pub fn acknowledge(&mut self, name: &TopicName, up_to: UpTo) -> Option<Position> {
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

    /// Answers whoever can be answered from the copy now.
    fn answer_all(&mut self, name: &TopicName, local: &mut Local) {
        let bytes_max = self.recovery_bytes_max;
        let Some(topic) = self.topics.get_mut(name) else { return };
        if topic.waiting.is_empty() {
            return;
        }
        let waiting = std::mem::take(&mut topic.waiting);
        for Waiting { since, question, after } in waiting {
            if let Some(question) = topic.answer(question, after, bytes_max, local) {
                topic.waiting.push(Waiting { since, question, after });
            }
        }
        self.read_or_forget(name, local);
    }

    /// Whoever waits, waits for a read; where nobody does and nobody listens, nothing is followed.
    fn read_or_forget(&mut self, name: &TopicName, local: &Local) {
        let Some(topic) = self.topics.get(name) else { return };
        // Who wants to be in a topic waits for its channel first, and is answered then.
        let may_read = |waiting: &Waiting| match waiting.question {
            Question::Recover(..) => topic.is_subscribed,
            Question::History(_) => true,
        };
        if topic.is_reading {
            return;
        }
        if topic.waiting.iter().any(may_read) {
            self.want(name);
        } else if topic.waiting.is_empty() && local.interest.members(name.as_str()).is_none() {
            self.forget(name);
        }
    }

    /// The topic is to be read, unless that is under way already.
    fn want(&mut self, name: &TopicName) {
        let Some(topic) = self.topics.get_mut(name) else { return };
        if !std::mem::replace(&mut topic.is_reading, true) {
            self.wanted.push_back((name.clone(), topic.line));
        }
    }

    /// The link is lost: positions have to be read again on the next one.
    pub fn lose_link(&mut self, local: &mut Local) {
        self.wanted.clear();
        self.later.clear();
        self.flights.clear();
        (self.is_unloaded, self.loading) = (false, None);
        let mut unheard = Vec::new();
        for (name, topic) in &mut self.topics {
            topic.lose_link();
            if local.interest.members(name.as_str()).is_none() {
                unheard.push(name.clone());
            }
        }
        for name in unheard {
            self.give_up(&name, local);
        }
    }

    /// Whoever waits for a topic that nobody here listens for is told that Redis is away.
    fn give_up(&mut self, name: &TopicName, local: &mut Local) {
        let waiting = self.topics.get_mut(name).map(|topic| std::mem::take(&mut topic.waiting));
        for Waiting { question, .. } in waiting.into_iter().flatten() {
            match question {
                Question::History(ask) => {
                    local.reply_history(ask.topic, ask.to, Err(HistoryError::Unavailable))
                }
                Question::Recover(shard, ask) => overload(shard, *ask, None, local),
            }
        }
        self.forget(name);
    }

    /// Those who have waited too long are told so; at most every second.
    pub fn expire(&mut self, now: Instant, local: &mut Local) {
        let is_due = |at: Instant| now.saturating_duration_since(at) >= Duration::from_secs(1);
        if !self.is_any || !self.expired.is_none_or(is_due) {
            return;
        }
        self.expired = Some(now);
        self.look_again();
        let mut unheard = Vec::new();
        for topic in self.topics.values_mut().filter(|topic| !topic.waiting.is_empty()) {
            let position = topic.log.as_ref().map(MessageLog::position).filter(|_| topic.is_synced);
            topic.is_entered_blind |= position.is_none();
            let is_late =
                |waiting: &mut Waiting| now.saturating_duration_since(waiting.since) >= WAIT_MAX;
            for Waiting { question, .. } in topic.waiting.extract_if(.., is_late) {
                match question {
                    Question::History(ask) => {
                        local.reply_history(ask.topic, ask.to, Err(HistoryError::Unavailable));
                    }
                    Question::Recover(shard, ask) => overload(shard, *ask, position, local),
                }
            }
            let is_heard = local.interest.members(topic.name.as_str()).is_some();
            if topic.waiting.is_empty() && !is_heard {
                unheard.push(topic.name.clone());
            }
        }
        // They were followed for those questions only.
        unheard.iter().for_each(|name| self.forget(name));
    }

    /// Reads a share of all positions again. A message that was lost without a trace at the end of a
    /// topic that has fallen silent shows in no other way.
    fn look_again(&mut self) {
        for _ in 0..self.round.len().div_ceil(LOOKS_PER_LAP) {
            let Some(topic) = self.next_in_round() else { return };
            if topic.is_synced {
                topic.is_look = true;
                let name = topic.name.clone();
                self.want(&name);
            }
        }
    }

    /// Whether nothing is under way.
    pub fn is_quiet(&self) -> bool {
        self.flights.is_empty()
    }

    /// From now on nothing is asked, or everything again.
    pub fn hold(&mut self, is_held: bool) {
        self.is_held = is_held;
    }

    /// How many bytes of messages may be kept here: a share of what the node may keep.
    pub fn set_bytes_max(&mut self, bytes_max: usize) {
        self.bytes_max = bytes_max;
    }

    /// Whether the server has said, since this was last asked, that topics are elsewhere.
    pub fn take_astray(&mut self) -> bool {
        std::mem::take(&mut self.is_astray)
    }

    /// Gives away the topics that another server has now, with all who wait for something.
    pub fn take_moved(&mut self, has_moved: impl Fn(&TopicName) -> bool) -> Vec<Topic> {
        assert!(self.flights.is_empty(), "topics move while nothing is under way");
        let moved: Vec<Topic> =
            self.topics.extract_if(|name, _| has_moved(name)).map(|(_, topic)| topic).collect();
        self.bytes -= moved.iter().map(Topic::bytes).sum::<usize>();
        self.wanted.retain(|(name, _)| self.topics.contains_key(name));
        self.later.retain(|(_, (name, _))| self.topics.contains_key(name));
        moved
    }

    /// Takes a topic that another server had. Whoever asked, without listening, is answered from
    /// here.
    pub fn adopt(&mut self, mut topic: Topic, local: &Local) {
        topic.lose_link();
        self.lines += 1;
        topic.line = self.lines;
        self.bytes += topic.bytes();
        let name = topic.name.clone();
        self.round.push_back((name.clone(), topic.line));
        self.topics.insert(name.clone(), topic);
        self.read_or_forget(&name, local);
    }

    /// Lets go of copies until they fit: they can be read again.
    fn make_room(&mut self) {
        for _ in 0..2 * self.round.len() {
            if self.bytes <= self.bytes_max {
                return;
            }
            let Some(topic) = self.next_in_round() else { return };
            if !std::mem::take(&mut topic.is_used) {
                let forgotten = topic.log.as_mut().map_or(0, MessageLog::forget_messages);
                self.bytes -= forgotten;
            }
        }
    }
}
