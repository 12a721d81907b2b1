//! What is asked of the server for histories, and how its answers are taken: reads, and where they
//! show that there is no history or too little of it, what begins one or puts it back.
//!
//! A pipeline asks the same of many topics, a few pipelines are under way, and none of them is asked
//! more often than the operator allows. What a server refuses is asked again later, and costs no
//! other topic anything.
//!
//! What a server has of a topic and we did not write makes that topic *unreadable*: whoever waits for
//! it is refused at once, and so is who asks until a later read finds it mended. Reads of it become
//! rarer each time, so that many such topics leave room for the others.
//!
//! Invariant: a topic that is being read stands once in the line, or waits to be asked again, or is
//! under way.

use crate::backplane::local::Local;
use crate::backplane::redis::connection::{Reply, Way, fly, poll_reply, send};
use crate::backplane::redis::error_reply::Refusal;
use crate::backplane::redis::history::answer::refuse;
use crate::backplane::redis::history::follower::Found;
use crate::backplane::redis::history::reply::{FIELDS, Read, position_of, read_of};
use crate::backplane::redis::history::{HELD_MAX, Histories, META_TTL_S, Place};
use crate::backplane::redis::names::Names;
use crate::backplane::redis::scripts::{self, REPAIR_MS, Which};
use crate::backplane::redis::unreadable::Unreadable;
use crate::ids::TopicName;
use redis::{Pipeline, RedisResult, Value};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// Topics read in one pipeline.
pub(super) const READS_PER_FLIGHT: usize = 64;
/// Pipelines under way.
const FLIGHTS_MAX: usize = 4;
/// A stream may be longer than was asked for by so much: Redis trims it by whole nodes.
const STREAM_SLACK: usize = 256;
/// After how long a server that would not say is asked again.
const READ_PAUSE: Duration = Duration::from_millis(20);
/// The same for one that will not say before somebody has given it room, or rights. Once it has, it
/// waits for longer before anything new is said.
const REFUSED_PAUSE: Duration = Duration::from_millis(REPAIR_MS / 2);

/// After how long a topic is read again that was unreadable: the first time, and at most. Half a
/// million of them take less than a fifth of the reads that are allowed by default.
const UNREADABLE_PAUSE_MIN: Duration = Duration::from_millis(250);
const UNREADABLE_PAUSE_MAX: Duration = Duration::from_secs(30);

pub(super) struct Flight {
    pub(super) topics: Vec<Place>,
    pub(super) reply: Reply<Vec<Value>>,
    pub(super) what: Asked,
}

/// What a pipeline asks of each of its topics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// Position and messages.
    Read,
    /// To begin where there is no history.
    Open,
    /// To take back what it has lost.
    Repair,
}

impl Histories {
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
            let next = self.land(&flight, answers?, (way.names, way.generation), now, local)?;
            for (what, topics) in next {
                let pipeline = match what {
                    Asked::Repair => self.repairing(&topics, way.names, way.generation),
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

    pub(super) fn load(&mut self, names: &Names, now: Instant) -> (Pipeline, Vec<Place>) {
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
            topic.held_before = topic.held.len();
            let keys = names.history_keys(name.as_str());
            // Both of one moment: an offset means nothing without its epoch.
            pipeline.cmd("MULTI");
            pipeline.cmd("HMGET").arg(&keys.meta).arg(&FIELDS);
            let range = pipeline.cmd("XREVRANGE").arg(&keys.stream).arg("+").arg(topic.asked_from);
            range.arg("COUNT").arg(topic.keep.messages_max + STREAM_SLACK);
            pipeline.cmd("EXEC");
            topics.push(place);
        }
        (pipeline, topics)
    }

    /// Takes what a pipeline answered. Answers what has to be asked next.
    pub(super) fn land(
        &mut self,
        flight: &Flight,
        answers: Vec<Value>,
        (names, generation): (&Names, &str),
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
            if let Value::ServerError(_) = answer {
                self.on_refused(name, flight.what, answers, names, now, local)?;
                continue;
            }
            if let (Asked::Open, Value::Int(_)) = (flight.what, answer) {
                // The server is another one than before, and waits for what others may have heard.
                self.read_later(name, flight.what, Refusal::NotNow, now);
                continue;
            }
            let read = match flight.what {
                Asked::Read => read_of(answer),
                // One that was just begun is there.
                Asked::Open => position_of(answer)
                    .and_then(|read| read.ok_or_else(|| Unreadable::new("e", &Value::Nil)))
                    .map(Some),
                Asked::Repair => {
                    self.read_again(name);
                    continue;
                }
            };
            match read {
                Ok(read) if self.offers(name, read.as_ref()) => unrepaired.push(place.clone()),
                Ok(Some(read)) => self.handle_read(name, read, generation, now, local),
                Ok(None) => {
                    self.open(name);
                    unopened.push(place.clone());
                }
                Err(why) => self.on_unreadable(name, &why, names, now, local),
            }
        }
        let next = [(Asked::Open, unopened), (Asked::Repair, unrepaired)];
        Ok(next.into_iter().filter(|(_, topics)| !topics.is_empty()).collect())
    }

    /// A server has refused what was asked of a topic. `Err`: another link is needed, which leads to a
    /// master.
    fn on_refused(
        &mut self,
        name: &TopicName,
        what: Asked,
        answers: &[Value],
        names: &Names,
        now: Instant,
        local: &mut Local,
    ) -> RedisResult<()> {
        // Why a transaction was not carried out stands in the answers before.
        let refused = answers.iter().find_map(|answer| match answer {
            Value::ServerError(error) => Some((Refusal::of(answer)?, error)),
            _ => None,
        });
        let Some((refusal, error)) = refused else { return Ok(()) };
        let error = redis::RedisError::from(error.clone());
        match refusal {
            Refusal::Demoted => return Err(error),
            Refusal::Unreadable => self.on_unreadable(name, &error, names, now, local),
            Refusal::Unloaded | Refusal::Elsewhere | Refusal::NotNow | Refusal::ForGood => {
                self.is_unloaded |= refusal == Refusal::Unloaded;
                local.counters.astray += u64::from(refusal == Refusal::Elsewhere);
                self.warn_of(name, &error, refusal, now);
                self.read_later(name, what, refusal, now);
            }
        }
        Ok(())
    }

    /// What the server has of a topic is nothing that we wrote: nobody is told a place in it. What
    /// this node knows of it is kept, in case it is mended.
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
        let Some(topic) = self.topics.get_mut(name) else { return };
        topic.is_synced = false;
        topic.is_entered_blind |= topic.is_user();
        for waiting in std::mem::take(&mut topic.waiting) {
            refuse(waiting.question, local);
        }
        if local.interest.members(name.as_str()).is_none() {
            return self.forget(name);
        }
        let pause = UNREADABLE_PAUSE_MIN * (1 << topic.unreadable.min(7));
        topic.unreadable = topic.unreadable.saturating_add(1);
        let line = topic.line;
        self.ask_later((name.clone(), line), now + pause.min(UNREADABLE_PAUSE_MAX));
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
            self.ask_later(place, now + if is_for_good { REFUSED_PAUSE } else { READ_PAUSE });
        }
    }

    fn ask_later(&mut self, place: Place, until: Instant) {
        let behind = self.later.partition_point(|(earlier, _)| *earlier <= until);
        self.later.insert(behind, (until, place));
    }

    /// One topic is refused: all others have their histories, and this one may have it again.
    fn warn_of(
        &mut self,
        topic: &TopicName,
        error: &redis::RedisError,
        refusal: Refusal,
        now: Instant,
    ) {
        if refusal == Refusal::ForGood
            && let Some(suppressed) = self.refusals.is_due(now)
        {
            tracing::warn!(?topic, %error, suppressed, "Redis refused to say where a history is");
        }
    }

    fn read_again(&mut self, name: &TopicName) {
        if let Some(topic) = self.topics.get_mut(name) {
            topic.is_reading = false;
        }
        self.want(name);
    }

    fn handle_read(
        &mut self,
        name: &TopicName,
        mut read: Read,
        generation: &str,
        now: Instant,
        local: &mut Local,
    ) {
        let Some(topic) = self.topics.get_mut(name) else { return };
        (topic.is_reading, topic.unreadable) = (false, 0);
        if std::mem::take(&mut topic.is_early) {
            return self.want(name);
        }
        self.drop_lies(name, &read, now, local);
        let Some(topic) = self.topics.get_mut(name) else { return };
        if topic.has_overtaken(&mut read, now) {
            topic.is_reading = true;
            self.read_later(name, Asked::Read, Refusal::NotNow, now);
            return self.answer_all(name, local);
        }
        let before = topic.bytes();
        let found = topic.take_read(read, generation, now, local);
        self.bytes = self.bytes + topic.bytes() - before;
        self.numbers.repaired += u64::from(found == Found::Repaired);
        self.numbers.lost += u64::from(matches!(found, Found::Lost | Found::Fork));
        if found == Found::Fork {
            return self.want(name);
        }
        self.release_held(name, now, local);
        self.answer_all(name, local);
        self.make_room();
    }

    /// A message is told after it has its place, so what came before a read was asked for is in what
    /// was read. What is not was never said in this history: it would be waited for without end.
    fn drop_lies(&mut self, name: &TopicName, read: &Read, now: Instant, local: &mut Local) {
        let Some(topic) = self.topics.get_mut(name) else { return };
        let (before, held) = (std::mem::take(&mut topic.held_before), topic.held.len());
        let mut place = 0;
        topic.held.retain(|(at, _)| {
            place += 1;
            place > before || read.has(*at)
        });
        let lies = (held - topic.held.len()) as u64;
        local.counters.publishes_malformed += lies;
        if lies > 0
            && let Some(suppressed) = self.lies.is_due(now)
        {
            let why = "messages came for places that the history does not have, and were dropped";
            tracing::warn!(topic = ?name, messages = lies, suppressed, "{why}");
        }
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
