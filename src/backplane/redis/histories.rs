//! Histories that Redis keeps, as far as this node follows them.
//!
//! For each topic with a history that this node listens for there is a copy of its end (a [`Log`])
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
//! one by now, everybody in the topic hears `lost`.
//!
//! Of a user's topic what the user has acknowledged is read anew for each connection that comes: it
//! may have said so on another node.
//!
//! Invariant: what was delivered of a topic since somebody was told a position has every offset
//! behind it, in order, once; or `lost` stands between.

use super::link::{Reply, Way, fly, poll_reply, send};
use super::names::Names;
use super::refusal::Refusal;
use super::scripts::{self, REPAIR_MS, Which, integer};
use crate::backplane::envelope;
use crate::backplane::history::{Keep, Log, Missed};
use crate::backplane::local::{Local, Message};
use crate::backplane::logs::KEYS_TIME;
use crate::backplane::seldom::Seldom;
use crate::bucket::Bucket;
use crate::ids::{Position, ShardId, TopicKind, TopicName, UpTo};
use crate::limits::Limits;
use crate::link::{AskHistory, FrameSet, NoHistory, Recover, Recovered, Said};
use crate::namespaces::{Namespaces, Policy};
use crate::protocol::{Page, Recovery, Unrecovered};
use crate::ws::encode;
use bytes::Bytes;
use hashbrown::HashMap;
use redis::{Pipeline, RedisResult, Value};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// Topics read in one pipeline.
const READS_PER_FLIGHT: usize = 64;
/// Pipelines under way.
const FLIGHTS_MAX: usize = 4;
/// A stream may be longer than was asked for by so much: Redis trims it by whole nodes.
const STREAM_SLACK: usize = 256;
/// Messages that are kept of a topic while a hole before them is being read. More are read again.
const HELD_MAX: usize = 256;
/// Every topic is looked at again once in so many seconds.
const LOOKS_PER_LAP: usize = 60;
/// How long somebody waits for what they missed. Then: `overload`.
const WAIT_MAX: Duration = Duration::from_secs(10);
/// After how long a server that would not say is asked again.
const READ_PAUSE: Duration = Duration::from_millis(20);
/// The same for one that will not say before somebody has given it room, or rights. Once it has, it
/// waits for longer before anything new is said.
const REFUSED_PAUSE: Duration = Duration::from_millis(REPAIR_MS / 2);
/// For how long nothing may come of messages that a read has overtaken. Then they are lost.
const OVERTAKEN_MAX: Duration = Duration::from_secs(1);
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
    bucket: Bucket,
    /// What the bucket's time counts from.
    born: Instant,
    expired: Option<Instant>,
    refusals: Seldom,
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

/// A topic with a history, as this node follows it.
pub struct Topic {
    name: TopicName,
    /// Its place in the round, as long as it lives.
    line: u64,
    keep: Keep,
    recovery: bool,
    log: Option<Log>,
    /// Epochs that came before, and how far they went; newest first.
    chain: Vec<(u64, u64)>,
    /// Nothing before this offset is in Redis either.
    floor: u64,
    /// What its user has acknowledged, as far as is known here; `None`: nobody was told of it yet.
    acked: Option<u64>,
    /// Reads that have told something.
    reads: u64,
    /// What is being read begins here. Whoever asks meanwhile may want more.
    asked_from: u64,
    /// What came next when it was asked for.
    asked_next: u64,
    /// What is being read is to show what was lost without a trace, too.
    is_look: bool,
    /// Whether its channel is subscribed on this link.
    is_subscribed: bool,
    /// Whether the position was read on this link.
    is_synced: bool,
    is_reading: bool,
    /// Whether this node has offered to put back what the server lacks, on this link.
    is_offered: bool,
    /// What it offers begins here: the server has what is before.
    offered_from: u64,
    /// Since when, and behind which message, reads have shown that others are on their way here.
    overtaken: Option<(Instant, u64)>,
    /// What is being read was asked for before the channel was subscribed: it proves nothing.
    is_early: bool,
    held: VecDeque<(Position, Vec<u8>)>,
    waiting: Vec<Waiting>,
    is_used: bool,
}

struct Waiting {
    since: Instant,
    question: Question,
    /// It is not answered before so many reads of its topic.
    after: u64,
}

enum Question {
    Recover(ShardId, Box<Recover>),
    History(Box<AskHistory>),
}

struct Flight {
    topics: Vec<Place>,
    reply: Reply<Vec<Value>>,
    what: Asked,
}

/// What a pipeline asks of each of its topics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    /// Position and messages.
    Read,
    /// To begin where there is no history.
    Open,
    /// To take back what it has lost.
    Repair,
}

/// What was read of a topic.
#[derive(Debug, Default, PartialEq, Eq)]
struct Read {
    epoch: u64,
    top: u64,
    chain: Vec<(u64, u64)>,
    acked: Option<u64>,
    entries: Vec<(u64, Vec<u8>)>,
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
            bucket: Bucket::new(
                limits.history_reads_per_s_max,
                (limits.history_reads_per_s_max / 10).max(READS_PER_FLIGHT as u64),
            ),
            born: Instant::now(),
            expired: None,
            refusals: Seldom::default(),
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
        let known = topic.log.as_ref().map(Log::position).filter(|_| topic.is_synced);
        match known {
            Some(known) if at.epoch == known.epoch && at.offset <= known.offset => {}
            // Said in an epoch that is over, as when somebody put it back a moment ago: what of it
            // belongs to this history is known, and nothing that is read would ever explain it.
            Some(known) if at.epoch < known.epoch => {}
            Some(known) if at.epoch == known.epoch && at.offset == known.offset + 1 => {
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
    pub fn recover(&mut self, shard: ShardId, ask: Box<Recover>, now: Instant, local: &mut Local) {
        let name = ask.topic.clone();
        self.ask(&name, Question::Recover(shard, ask), now, local);
    }

    /// Somebody asks what was said.
    pub fn history(&mut self, ask: Box<AskHistory>, now: Instant, local: &mut Local) {
        let name = ask.topic.clone();
        self.ask(&name, Question::History(ask), now, local);
    }

    fn ask(&mut self, name: &TopicName, question: Question, now: Instant, local: &mut Local) {
        let bytes_max = self.recovery_bytes_max;
        // If nobody here listens for it, it is followed for this one question.
        let topic = self.follow(name);
        topic.is_used = true;
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
        let known = topic.as_ref().and_then(|topic| topic.log.as_ref()).map(Log::position);
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
                    local.said(ask.topic, ask.to, Err(NoHistory::Unavailable))
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
            let position = topic.log.as_ref().map(Log::position).filter(|_| topic.is_synced);
            let is_late =
                |waiting: &mut Waiting| now.saturating_duration_since(waiting.since) >= WAIT_MAX;
            for Waiting { question, .. } in topic.waiting.extract_if(.., is_late) {
                match question {
                    Question::History(ask) => {
                        local.said(ask.topic, ask.to, Err(NoHistory::Unavailable));
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

    /// Sends reads, takes what was read. Whether there was anything to do.
    pub fn poll(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        way: &Way<'_>,
        local: &mut Local,
    ) -> RedisResult<bool> {
        let mut is_busy = self.poll_loading(cx, way)?;
        while let Some((at, _)) = self.later.front()
            && *at <= now
        {
            let (_, place) = self.later.pop_front().expect("it was just looked at");
            self.wanted.push_back(place);
        }
        while !self.is_held && self.flights.len() < FLIGHTS_MAX && !self.wanted.is_empty() {
            let (pipeline, topics) = self.load(way.names, now);
            if topics.is_empty() {
                break; // the next tick brings more
            }
            self.numbers.reads += topics.len() as u64;
            let reply = send(cx, fly(way.cmd.clone(), pipeline));
            self.flights.push_back(Flight { topics, reply, what: Asked::Read });
            is_busy = true;
        }
        while let Some(front) = self.flights.front_mut() {
            let Poll::Ready(answers) = poll_reply(&mut front.reply, cx) else { break };
            let flight = self.flights.pop_front().expect("it was just looked at");
            is_busy = true;
            let next = self.land(&flight, answers?, now, local)?;
            for (what, topics) in next {
                let pipeline = match what {
                    Asked::Repair => self.repairing(&topics, way),
                    _ => opening(&topics, way),
                };
                let reply = send(cx, fly(way.cmd.clone(), pipeline));
                self.flights.push_back(Flight { topics, reply, what });
            }
        }
        Ok(is_busy)
    }

    /// A server that has forgotten the scripts is taught them again.
    fn poll_loading(&mut self, cx: &mut Context<'_>, way: &Way<'_>) -> RedisResult<bool> {
        if std::mem::take(&mut self.is_unloaded) && self.loading.is_none() {
            self.loading = Some(send(cx, scripts::load(way.cmd.clone())));
        }
        let Some(loading) = &mut self.loading else { return Ok(false) };
        let Poll::Ready(loaded) = poll_reply(loading, cx) else { return Ok(false) };
        self.loading = None;
        loaded.map(|()| true)
    }

    fn load(&mut self, names: &Names, now: Instant) -> (Pipeline, Vec<Place>) {
        let now_ns = now.saturating_duration_since(self.born).as_nanos() as u64;
        let mut pipeline = Pipeline::new();
        let mut topics = Vec::new();
        while topics.len() < READS_PER_FLIGHT
            && let Some(place) = self.wanted.pop_front()
        {
            let (name, line) = &place;
            let topic = self.topics.get_mut(name).filter(|topic| topic.line == *line);
            let Some(topic) = topic else { continue };
            if !self.bucket.take(now_ns) {
                self.wanted.push_front(place);
                break;
            }
            (topic.asked_from, topic.asked_next) = (topic.read_from(), topic.next_offset());
            let keys = names.history_keys(name.as_str());
            // Both of one moment: an offset means nothing without its epoch.
            pipeline.cmd("MULTI");
            pipeline.cmd("HMGET").arg(&keys.meta).arg(&["e", "s", "l", "a"]);
            let range = pipeline.cmd("XREVRANGE").arg(&keys.stream).arg("+").arg(topic.asked_from);
            range.arg("COUNT").arg(topic.keep.messages + STREAM_SLACK);
            pipeline.cmd("EXEC");
            topics.push(place);
        }
        (pipeline, topics)
    }

    /// Takes what a pipeline answered. Answers what has to be asked next.
    fn land(
        &mut self,
        flight: &Flight,
        answers: Vec<Value>,
        now: Instant,
        local: &mut Local,
    ) -> RedisResult<Vec<(Asked, Vec<Place>)>> {
        let (mut unopened, mut unrepaired) = (Vec::new(), Vec::new());
        let each = if flight.what == Asked::Read { 4 } else { 1 };
        if answers.len() != each * flight.topics.len() {
            return Err((redis::ErrorKind::Client, "replies are out of step").into());
        }
        for (place, answers) in flight.topics.iter().zip(answers.chunks_exact(each)) {
            let (name, line) = place;
            if self.topics.get(name).is_none_or(|topic| topic.line != *line) {
                continue; // forgotten, and perhaps followed anew
            }
            let answer = answers.last().expect("a chunk is not empty");
            if let Value::ServerError(error) = answer {
                // Why a transaction was not carried out stands in the answers before.
                let refused = answers.iter().find(|answer| Refusal::of(answer).is_some());
                match refused.and_then(Refusal::of) {
                    // Another link leads to a master.
                    None | Some(Refusal::Demoted) => return Err(error.clone().into()),
                    Some(refusal) => {
                        self.is_unloaded |= refusal == Refusal::Unloaded;
                        local.counters.astray += u64::from(refusal == Refusal::Elsewhere);
                        self.warn_of(refused, refusal, now);
                        self.read_later(name, flight.what, refusal, now);
                    }
                }
                continue;
            }
            if let (Asked::Open, Value::Int(_)) = (flight.what, answer) {
                // The server is another one than before, and waits for what others may have heard.
                self.read_later(name, flight.what, Refusal::NotNow, now);
                continue;
            }
            let read = match flight.what {
                Asked::Read => read_of(answer),
                Asked::Open => position_of(answer),
                Asked::Repair => {
                    self.read_again(name);
                    continue;
                }
            };
            let is_offer = self.offers(name, read.as_ref());
            match read {
                _ if is_offer => unrepaired.push(place.clone()),
                Some(read) => self.handle_read(name, read, now, local),
                None => {
                    self.open(name);
                    unopened.push(place.clone());
                }
            }
        }
        let next = [(Asked::Open, unopened), (Asked::Repair, unrepaired)];
        Ok(next.into_iter().filter(|(_, topics)| !topics.is_empty()).collect())
    }

    /// A history is to begin, unless another node begins it first: then nothing was read of it.
    fn open(&mut self, name: &TopicName) {
        if let Some(topic) = self.topics.get_mut(name) {
            topic.asked_from = u64::MAX;
        }
    }

    /// The server would not say; it is asked again, unless the topic has moved by then.
    fn read_later(&mut self, name: &TopicName, what: Asked, refusal: Refusal, now: Instant) {
        self.is_astray |= refusal == Refusal::Elsewhere;
        if let Some(topic) = self.topics.get_mut(name) {
            // A master that was just made waits for its replicas, and takes nothing back until then.
            topic.is_offered &= what != Asked::Repair;
            let place = (name.clone(), topic.line);
            let is_for_good = refusal == Refusal::ForGood;
            let until = now + if is_for_good { REFUSED_PAUSE } else { READ_PAUSE };
            let behind = self.later.partition_point(|(earlier, _)| *earlier <= until);
            self.later.insert(behind, (until, place));
        }
    }

    /// One topic is refused: all others have their histories, and this one may have it again.
    fn warn_of(&mut self, answer: Option<&Value>, refusal: Refusal, now: Instant) {
        if let Some(Value::ServerError(error)) = answer
            && refusal == Refusal::ForGood
            && let Some(unsaid) = self.refusals.is_due(now)
        {
            tracing::warn!(%error, unsaid, "Redis refused to say where a history is");
        }
    }

    fn read_again(&mut self, name: &TopicName) {
        if let Some(topic) = self.topics.get_mut(name) {
            topic.is_reading = false;
        }
        self.want(name);
    }

    /// Whether this node has heard more of a topic than the server knows, and may put it back. Once
    /// on each link: if that does not help, it is not to be helped.
    fn offers(&mut self, name: &TopicName, read: Option<&Read>) -> bool {
        let Some(topic) = self.topics.get_mut(name) else { return false };
        let Some(log) = topic.log.as_ref().filter(|log| !log.is_empty()) else { return false };
        let known = log.position();
        let is_behind = match read {
            None => true,
            // What came after it was asked for, the server has: it said it.
            Some(read) if read.epoch == known.epoch => {
                read.top < known.offset && read.top.saturating_add(1) < topic.asked_next
            }
            // Or it has only what this history came from.
            Some(read) => cut_of(&topic.chain, read.epoch).is_some_and(|cut| read.top <= cut),
        };
        let next = read.map_or(0, |read| read.top + 1);
        topic.offered_from = next.max(log.first());
        is_behind && !std::mem::replace(&mut topic.is_offered, true)
    }

    fn repairing(&self, topics: &[Place], way: &Way<'_>) -> Pipeline {
        let mut pipeline = Pipeline::new();
        for (name, _) in topics {
            let topic = self.topics.get(name).expect("it was just looked at");
            let log = topic.log.as_ref().expect("whoever offers has something");
            let keys = way.names.history_keys(name.as_str());
            let of_retry = |key: &str| format!("{}:{key}", keys.retry);
            let first = topic.offered_from.max(log.first());
            let offered = || log.keyed_frames().skip((first - log.first()) as usize);
            let retries: Vec<String> = offered().filter_map(|(_, key)| key.map(of_retry)).collect();
            let mut all = vec![&keys.meta[..], &keys.stream];
            all.extend(retries.iter().map(|key| &key[..]));
            let mut repair = scripts::call(Which::Repair, &all);
            repair.arg(log.position().epoch).arg(first).arg(way.generation);
            repair.arg(way.names.channel(name.as_str())).arg(way.publish);
            let ttl_s = self.policy(name).history_ttl_s;
            repair.arg(ttl_s).arg(meta_ttl_s(self.policy(name))).arg(KEYS_TIME.as_secs());
            repair.arg(chain_text(&topic.chain));
            repair.arg(topic.acked.map_or(String::new(), |acked| acked.to_string()));
            let mut number = 2;
            for (frame, key) in offered() {
                number += usize::from(key.is_some());
                repair.arg(body_of(frame, key)).arg(key.map_or(0, |_| number));
            }
            pipeline.add_command(repair);
        }
        pipeline
    }

    fn handle_read(&mut self, name: &TopicName, read: Read, now: Instant, local: &mut Local) {
        let Some(topic) = self.topics.get_mut(name) else { return };
        topic.is_reading = false;
        if std::mem::take(&mut topic.is_early) {
            return self.want(name);
        }
        if topic.has_overtaken(&read, now) {
            topic.is_reading = true;
            self.read_later(name, Asked::Read, Refusal::NotNow, now);
            return self.answer_all(name, local);
        }
        let before = topic.bytes();
        let found = topic.take_read(read, now, local);
        self.bytes = self.bytes + topic.bytes() - before;
        self.numbers.repaired += u64::from(found == Found::Repaired);
        self.numbers.lost += u64::from(found == Found::Lost);
        self.release_held(name, now, local);
        self.answer_all(name, local);
        self.make_room();
    }

    /// What came while the topic was being read: in order, or it is read once more.
    fn release_held(&mut self, name: &TopicName, now: Instant, local: &mut Local) {
        let Some(topic) = self.topics.get_mut(name) else { return };
        let held = std::mem::take(&mut topic.held);
        let is_full = held.len() >= HELD_MAX;
        // What was not kept may have been the last for long: nothing else would tell of it soon.
        topic.is_look |= is_full;
        for (at, body) in held {
            self.handle_message(name.as_str(), at, &body, now, local);
        }
        if is_full {
            self.want(name);
        }
    }

    /// Lets go of copies until they fit: they can be read again.
    fn make_room(&mut self) {
        for _ in 0..2 * self.round.len() {
            if self.bytes <= self.bytes_max {
                return;
            }
            let Some(topic) = self.next_in_round() else { return };
            if !std::mem::take(&mut topic.is_used) {
                let forgotten = topic.log.as_mut().map_or(0, Log::forget_messages);
                self.bytes -= forgotten;
            }
        }
    }
}

/// What a read led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    /// Nothing was missing.
    Nothing,
    /// What was missing was delivered.
    Repaired,
    /// Something was missed for good, and told.
    Lost,
}

impl Topic {
    /// Which one.
    pub fn name(&self) -> &TopicName {
        &self.name
    }

    fn new(name: &TopicName, policy: &Policy, line: u64) -> Topic {
        Topic {
            name: name.clone(),
            line,
            keep: Keep { messages: policy.history_size, time: Duration::MAX },
            recovery: policy.recovery,
            log: None,
            chain: Vec::new(),
            floor: 1,
            acked: None,
            reads: 0,
            asked_from: u64::MAX,
            asked_next: u64::MAX,
            is_look: false,
            is_subscribed: false,
            is_synced: false,
            is_reading: false,
            is_offered: false,
            offered_from: 1,
            overtaken: None,
            is_early: false,
            held: VecDeque::new(),
            waiting: Vec::new(),
            is_used: true,
        }
    }

    /// Whether it is a user's, and what is in it is acknowledged.
    fn is_user(&self) -> bool {
        matches!(self.name.kind(), TopicKind::User(_))
    }

    /// The first message that its user has not acknowledged, if it may be in Redis and is not here.
    fn unheard(&self) -> Option<u64> {
        let log = self.log.as_ref().filter(|log| self.is_user() && log.first() > self.floor)?;
        let first = self.acked.map_or(1, |acked| acked.saturating_add(1));
        (first < log.first()).then_some(first)
    }

    fn bytes(&self) -> usize {
        self.log.as_ref().map_or(0, Log::bytes)
    }

    /// Nothing that holds for one link holds for the next.
    fn lose_link(&mut self) {
        self.is_subscribed = false;
        self.is_synced = false;
        self.is_reading = false;
        self.is_offered = false;
        self.is_early = false;
        self.overtaken = None;
        self.held.clear();
    }

    /// Adds a message at the next place and hands it out.
    fn deliver(&mut self, body: &[u8], now: Instant, local: &mut Local) {
        let log = self.log.as_mut().expect("what is delivered has a place");
        let (message, frames) = framed(&self.name, body, log.next(), local);
        log.push_keyed(frames.clone(), message.key.map(Into::into), self.keep, now);
        local.message_at(&message, frames);
    }

    /// The lowest offset that is wanted from the stream.
    fn read_from(&self) -> u64 {
        let next = self.log.as_ref().map_or(u64::MAX, |log| log.next().offset);
        let wanted = |waiting: &Waiting| match &waiting.question {
            Question::Recover(..) if self.is_user() => self.unheard().unwrap_or(u64::MAX),
            Question::Recover(_, ask) => {
                ask.since.map_or(u64::MAX, |since| since.offset.saturating_add(1))
            }
            Question::History(_) => 1,
        };
        self.waiting.iter().map(wanted).fold(next, u64::min).max(1)
    }

    /// What Redis has: holes are closed or told, the copy grows at both ends.
    fn take_read(&mut self, mut read: Read, now: Instant, local: &mut Local) -> Found {
        let from = self.asked_from;
        let behind = self.asked_next.max(read.top.saturating_add(1));
        self.leave_what_comes(&mut read);
        self.is_synced = true;
        self.chain = read.chain;
        let known = self.log.as_ref().map(Log::position);
        let goes_on = known.is_none_or(|known| {
            known.epoch == read.epoch
                || cut_of(&self.chain, known.epoch).is_some_and(|cut| known.offset <= cut)
        });
        let mut found = Found::Nothing;
        if !goes_on {
            local.lost(&self.name, 0);
            // Nothing that was known of the one holds for the other.
            (self.log, self.floor, found) = (None, 1, Found::Lost);
            self.acked = None;
        }
        self.acked = self.acked.max(read.acked);
        self.reads += 1;
        let log = self.log.get_or_insert_with(|| Log::new(read.epoch, read.top));
        log.adopt(read.epoch);
        let known = log.position().offset;
        let first_new = read.entries.iter().map(|(offset, _)| *offset).find(|at| *at > known);
        let goes_on_at = first_new.unwrap_or(read.top.max(known) + 1);
        if goes_on_at > known + 1 {
            local.lost(&self.name, goes_on_at - known - 1);
            (*log, found) = (Log::new(read.epoch, goes_on_at - 1), Found::Lost);
        }
        if let Some((lowest, _)) = read.entries.first().filter(|(lowest, _)| *lowest > from) {
            self.floor = self.floor.max(*lowest);
        }
        let is_joined = self.first_offset() <= behind;
        for (offset, body) in read.entries.iter().rev() {
            self.push_front_if_next(*offset, body, now, local);
        }
        for (offset, body) in &read.entries {
            if *offset > known && *offset == self.next_offset() {
                self.deliver(body, now, local);
                found = if found == Found::Lost { found } else { Found::Repaired };
            }
        }
        // Whatever was asked for and is not here now does not exist, unless messages came and were
        // let go of meanwhile: then the copy begins behind all that was read. If as many came as are
        // kept, whatever was before them is let go of in Redis too.
        if (is_joined || self.is_full()) && from < self.first_offset() {
            self.floor = self.floor.max(self.first_offset());
        }
        found
    }

    /// Whether the stream begins behind what comes next here. Of a topic that is followed what is
    /// between comes on another connection, and may be on its way: it is, as long as anything comes.
    fn has_overtaken(&mut self, read: &Read, now: Instant) -> bool {
        // A user's topic takes nothing new from most reads: see `leave_what_comes`.
        let is_followed = self.is_subscribed && self.is_synced && (!self.is_user() || self.is_look);
        let known = self.log.as_ref().map(Log::position).filter(|_| is_followed);
        let known = known.filter(|known| known.epoch == read.epoch).map(|known| known.offset);
        let mut offsets = read.entries.iter().map(|(offset, _)| *offset);
        let next = offsets.find(|at| Some(*at) > known).unwrap_or(read.top.saturating_add(1));
        let Some(known) = known.filter(|known| next > known + 1) else {
            self.overtaken = None;
            return false;
        };
        // Whoever asks for something older need not wait.
        self.floor = self.floor.max(next);
        let (since, at) = *self.overtaken.get_or_insert((now, known));
        if at != known {
            self.overtaken = Some((now, known));
            return true;
        }
        now.saturating_duration_since(since) < OVERTAKEN_MAX
    }

    /// A user's topic that is followed was read for what was acknowledged. Messages that are new in
    /// it are on their way here, and may be more than the stream still has: they are not missing.
    fn leave_what_comes(&mut self, read: &mut Read) {
        let is_look = std::mem::take(&mut self.is_look);
        let Some(known) = self.log.as_ref().map(Log::position) else { return };
        if self.is_user() && self.is_synced && !is_look && read.epoch == known.epoch {
            read.entries.retain(|(offset, _)| *offset <= known.offset);
            read.top = read.top.min(known.offset);
        }
    }

    /// Whether all that is kept of the topic is here.
    fn is_full(&self) -> bool {
        let messages = self.keep.messages as u64;
        self.log.as_ref().is_some_and(|log| log.position().offset + 1 >= log.first() + messages)
    }

    fn first_offset(&self) -> u64 {
        self.log.as_ref().map_or(u64::MAX, Log::first)
    }

    fn next_offset(&self) -> u64 {
        self.log.as_ref().map_or(u64::MAX, |log| log.next().offset)
    }

    fn push_front_if_next(&mut self, offset: u64, body: &[u8], now: Instant, local: &Local) {
        let Some(log) = self.log.as_mut().filter(|log| log.first() == offset + 1) else { return };
        let at = Position { epoch: log.position().epoch, offset };
        let (message, frames) = framed(&self.name, body, at, local);
        log.push_front(frames, message.key.map(Into::into), now);
    }

    /// Answers from the copy, or gives the question back.
    fn answer(
        &mut self,
        question: Question,
        after: u64,
        bytes_max: usize,
        local: &mut Local,
    ) -> Option<Question> {
        let is_recover = matches!(question, Question::Recover(..));
        let must_hear = is_recover && !self.is_subscribed;
        let is_fresh = self.reads >= after;
        // What a user has acknowledged may have been said on another node, and is read anew.
        let must_read = is_recover && self.is_user() && !is_fresh;
        let is_known = self.is_synced && !must_hear && !must_read;
        let is_short = self.unheard().is_some();
        let Some(log) = self.log.as_mut().filter(|_| is_known) else { return Some(question) };
        let is_complete = log.first() <= self.floor;
        match question {
            Question::Recover(shard, ask) if matches!(self.name.kind(), TopicKind::User(_)) => {
                if is_short {
                    return Some(Question::Recover(shard, ask));
                }
                let (recovery, missed) = log.unacknowledged(self.acked, bytes_max);
                bring(shard, *ask, log.position(), recovery, missed, local);
            }
            Question::Recover(shard, ask) => {
                let found = match ask.since {
                    None => Ok(None),
                    Some(_) if !self.recovery => Err(Unrecovered::NotEnabled),
                    Some(since) => translate(since, log, &self.chain)
                        .and_then(|since| log.since(since, bytes_max))
                        .map(Some),
                };
                if found == Err(Unrecovered::Trimmed) && !is_complete {
                    return Some(Question::Recover(shard, ask));
                }
                // Who has heard more than this node knows makes it look again before it denies it:
                // its wire may be dead, and nobody has noticed yet.
                if found == Err(Unrecovered::TailLost) && !is_fresh {
                    return Some(Question::Recover(shard, ask));
                }
                recovered(shard, *ask, log.position(), found, local);
            }
            // Whoever was just told where their message stands finds it there: the copy may not have
            // it yet, because that comes on another connection.
            Question::History(ask) if !is_complete || !is_fresh => {
                return Some(Question::History(ask));
            }
            Question::History(ask) => {
                let said = said(&ask.page, log, &self.chain, bytes_max);
                local.said(ask.topic, ask.to, said);
            }
        }
        None
    }
}

/// A message as it is delivered at a place. One that this version of us cannot read is told as lost.
fn framed<'a>(
    name: &'a TopicName,
    body: &'a [u8],
    at: Position,
    local: &Local,
) -> (Message<'a>, FrameSet) {
    match envelope::read(name.as_str(), body) {
        Ok(message) => {
            let frames = local.frames(&message, name, at);
            (message, frames)
        }
        Err(_) => (nothing(name.as_str()), local.lost_frames(name, 1)),
    }
}

/// A position of an earlier epoch as one of this one.
fn translate(since: Position, log: &Log, chain: &[(u64, u64)]) -> Result<Position, Unrecovered> {
    let epoch = log.position().epoch;
    if since.epoch == epoch {
        return Ok(since);
    }
    match cut_of(chain, since.epoch) {
        None => Err(Unrecovered::Epoch),
        Some(cut) if since.offset > cut => Err(Unrecovered::TailLost),
        Some(_) => Ok(Position { epoch, offset: since.offset }),
    }
}

/// How far an earlier epoch went, as far as all later ones knew it.
fn cut_of(chain: &[(u64, u64)], epoch: u64) -> Option<u64> {
    let place = chain.iter().position(|(earlier, _)| *earlier == epoch)?;
    chain[..=place].iter().map(|(_, cut)| *cut).min()
}

fn recovered(
    shard: ShardId,
    ask: Recover,
    position: Position,
    found: Result<Option<Missed>, Unrecovered>,
    local: &mut Local,
) {
    let (recovery, missed) = match found {
        Ok(None) => (Recovery::NotAsked, Bytes::new()),
        Ok(Some(Missed { frames, messages })) => (Recovery::Recovered { messages }, frames),
        Err(why) => (Recovery::NotRecovered(why), Bytes::new()),
    };
    bring(shard, ask, position, recovery, missed, local);
}

fn bring(
    shard: ShardId,
    ask: Recover,
    position: Position,
    recovery: Recovery,
    missed: Bytes,
    local: &mut Local,
) {
    let Recover { at, conn, ticket, .. } = ask;
    local.recovered(shard, Recovered { at, conn, ticket, position, recovery, missed });
}

/// Too many ask, or Redis does not answer: better to be in the room without what was missed. Where
/// even the position is not known, there is nothing to come back to from here.
fn overload(shard: ShardId, ask: Recover, position: Option<Position>, local: &mut Local) {
    let position = position.unwrap_or(Position { epoch: 0, offset: 0 });
    recovered(shard, ask, position, Err(Unrecovered::Overload), local);
}

fn said(page: &Page, log: &Log, chain: &[(u64, u64)], bytes_max: usize) -> Result<Said, NoHistory> {
    let since = page.since.map(|since| translate(since, log, chain)).transpose();
    let frames = since.and_then(|since| log.page(Page { since, ..*page }, bytes_max));
    match frames {
        Ok(frames) => Ok(Said { position: log.position(), frames }),
        Err(why) => Err(NoHistory::Unrecovered(why)),
    }
}

fn opening(topics: &[Place], way: &Way<'_>) -> Pipeline {
    let mut pipeline = Pipeline::new();
    for (topic, _) in topics {
        let keys = way.names.history_keys(topic.as_str());
        let mut open = scripts::call(Which::Open, &[&keys.meta, &keys.stream, &keys.partition]);
        open.arg(way.generation).arg(META_TTL_S).arg(REPAIR_MS);
        pipeline.add_command(open);
    }
    pipeline
}

fn nothing(topic: &str) -> Message<'_> {
    Message { topic, from: None, payload: b"", except: None, conflate_key: None, key: None }
}

/// A message as it stood in the stream, from what was made of it: its JSON has all of it but whom it
/// excepted, who has not missed it either, and under which key it gives way to newer ones.
fn body_of(frame: &[u8], key: Option<&str>) -> Vec<u8> {
    #[derive(serde::Deserialize)]
    struct Said<'a> {
        #[serde(borrow)]
        from: Option<Cow<'a, str>>,
        #[serde(borrow)]
        payload: Option<&'a RawValue>,
    }
    let mut body = Vec::new();
    let said: Result<Said<'_>, _> = serde_json::from_slice(encode::payload_of(frame));
    if let Ok(Said { from, payload: Some(payload) }) = said {
        let payload = payload.get().as_bytes();
        let message = Message { from: from.as_deref(), payload, key, ..nothing("") };
        envelope::write(&message, &mut body);
    }
    body
}

/// The answer to `EXEC`. `None`: there is no history yet.
fn read_of(answer: &Value) -> Option<Read> {
    let Value::Array(parts) = answer else { return None };
    let [meta, entries] = &parts[..] else { return None };
    let read = position_of(meta)?;
    let Value::Array(entries) = entries else { return Some(read) };
    let mut entries: Vec<_> = entries.iter().filter_map(entry_of).collect();
    entries.reverse();
    Some(Read { entries, ..read })
}

/// Epoch, last offset and chain, as `HMGET` and `lua/open.lua` answer them.
fn position_of(meta: &Value) -> Option<Read> {
    let Value::Array(fields) = meta else { return None };
    let epoch = integer(fields.first()?)?;
    let top = fields.get(1).and_then(integer).unwrap_or(0);
    let chain = match fields.get(2) {
        Some(Value::BulkString(text)) => chain_of(std::str::from_utf8(text).unwrap_or("")),
        _ => Vec::new(),
    };
    let acked = fields.get(3).and_then(integer);
    Some(Read { epoch, top, chain, acked, entries: Vec::new() })
}

/// As [`chain_of`] reads it.
fn chain_text(chain: &[(u64, u64)]) -> String {
    let links = chain.iter().map(|(epoch, cut)| format!("{epoch}:{cut} "));
    links.collect()
}

fn chain_of(text: &str) -> Vec<(u64, u64)> {
    let links = text.split_whitespace().filter_map(|link| link.split_once(':'));
    links.filter_map(|(epoch, cut)| Some((epoch.parse().ok()?, cut.parse().ok()?))).collect()
}

/// `["<offset>-0", ["d", message]]`
fn entry_of(entry: &Value) -> Option<(u64, Vec<u8>)> {
    let Value::Array(parts) = entry else { return None };
    let [Value::BulkString(id), Value::Array(fields)] = &parts[..] else { return None };
    let [_, Value::BulkString(body)] = &fields[..] else { return None };
    let offset = std::str::from_utf8(id).ok()?.strip_suffix("-0")?.parse().ok()?;
    Some((offset, body.clone()))
}
