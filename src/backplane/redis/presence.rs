//! Who is in which room, on all nodes that share a Redis.
//!
//! A node owns what it writes: a hash of each room's users on this node, and no other node changes
//! it while this one lives. So a join costs Redis one short script, and nothing is refreshed client by
//! client: the node's sign of life stands for all of them ([`watch`]). Redis decides who is told
//! ([`scripts`]), because a user may be on two nodes.
//!
//! [`Presence`] has the truth of this node; [`dirt`] says what of it Redis does not know yet. One
//! batch at a time is under way. When a link comes up everything is written anew, without a word: a
//! Redis that restarted empty is filled again, and who was there was told of before.
//!
//! While there is no link, and for a moment after, nobody is told and nobody's grace ends: the others
//! have to listen again first, and to write theirs, or somebody would be told as new or gone who is
//! on another node all the time.
//!
//! Errors here never give a link up: that is the canary's business. What failed is tried again.
//!
//! Invariant: what is written is what is true at that time. Nothing but the change of a user's
//! first and last connection is told.

mod dirt;
mod keys;
mod news;
mod read;
mod scripts;
mod watch;

use super::link::{Reply, poll_reply, send};
use super::names::Names;
use crate::backplane::local::Local;
use crate::backplane::presence::{Change, News, Presence, name_of};
use crate::backplane::seldom::Seldom;
use crate::ids::{NodeId, TopicName};
use crate::link::{AskPresence, Attend};
use crate::metrics::BackplaneCounters;
use crate::namespaces::Namespaces;
use dirt::{Dirt, Dirty, Tell};
use hashbrown::HashSet;
use keys::Keys;
use read::Reads;
use redis::aio::MultiplexedConnection;
use redis::{Pipeline, RedisResult, ServerErrorKind, Value};
use scripts::Script;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use watch::{Rules, Watch, Watched};

pub use news::is_news;

/// Users in one call of the script.
const USERS_PER_CALL: usize = 256;
/// Calls in one batch.
const CALLS_PER_FLIGHT: usize = 128;
/// Users after which a batch is closed.
const USERS_PER_FLIGHT: usize = 2048;
/// How long to wait after Redis refused something.
const PAUSE: Duration = Duration::from_millis(500);
/// After a link came up again, for how long nobody's grace ends: as long as others may take to come
/// up, too.
const SETTLING: Duration = Duration::from_millis(3_000);
/// How often everything is written anew, in case somebody else removed it.
const ANEW: Duration = Duration::from_secs(600);

/// See the module. It outlives links.
pub struct Presences {
    rules: Rules,
    keys: Keys,
    is_on: bool,
    members: Presence,
    /// What changed. Waits until a link has settled: nobody is told while others cannot hear it.
    dirt: Dirt,
    /// What was written before, and is written anew.
    anew: Dirt,
    /// Rooms that stand in this node's index.
    indexed: HashSet<TopicName>,
    flight: Option<Flight>,
    is_script_loaded: bool,
    reads: Reads,
    up: Option<Up>,
    was_up: bool,
    paused_until: Option<Instant>,
    failures: Seldom,
}

/// What belongs to a link.
struct Up {
    watch: Watch,
    settled_at: Instant,
    written_at: Instant,
}

struct Flight {
    /// Replies before those of the calls.
    replies_before: usize,
    calls: Vec<Call>,
    reply: Reply<Vec<Value>>,
}

/// Some users of a room, and how many replies there are to what was sent for them.
struct Call {
    topic: TopicName,
    users: Vec<(TopicName, Dirty)>,
    replies: usize,
}

impl Presences {
    /// Nobody is anywhere.
    pub fn new(namespaces: Arc<Namespaces>, prefix: &str, names: Names, node: NodeId) -> Presences {
        Presences {
            is_on: namespaces.have_presence(),
            rules: Rules { names, namespaces },
            keys: Keys::new(prefix, node),
            members: Presence::default(),
            dirt: Dirt::default(),
            anew: Dirt::default(),
            indexed: HashSet::new(),
            flight: None,
            is_script_loaded: false,
            reads: Reads::default(),
            up: None,
            was_up: false,
            paused_until: None,
            failures: Seldom::default(),
        }
    }

    /// A connection came into a room, or left it.
    pub fn handle(&mut self, attend: Attend, now: Instant) {
        let policy = self.rules.namespaces.policy(attend.topic.kind());
        let grace = Duration::from_millis(policy.presence_grace_ms);
        self.members.handle(attend, grace, now);
        self.members.make_room();
        self.note_changes();
    }

    /// Somebody asks who is there.
    pub fn ask(&mut self, ask: AskPresence) {
        self.reads.ask(ask);
    }

    /// News came on a room's channel.
    pub fn hear(
        &mut self,
        topic: &str,
        body: &[u8],
        local: &mut Local,
    ) -> Result<(), &'static str> {
        let news = news::read(body).ok_or("not the news of this version")?;
        self.reads.hear(topic, &news);
        local.news(topic, &news);
        Ok(())
    }

    /// Messages flow: everything is written anew.
    pub fn go_up(&mut self, now: Instant) {
        // At the start there is nobody whose leaving could be told too early.
        let settling = if self.was_up { SETTLING } else { Duration::ZERO };
        let watch = Watch::new(now);
        self.up = Some(Up { watch, settled_at: now + settling, written_at: now });
        self.was_up = true;
        self.write_all(Tell::Not);
    }

    /// The link is lost: what was under way may or may not have arrived.
    pub fn lose_link(&mut self) {
        self.up = None;
        self.is_script_loaded = false;
        self.indexed.clear();
        let Some(flight) = self.flight.take() else { return };
        for Call { topic, users, .. } in flight.calls {
            for (user, dirty) in users {
                // Who left may be gone from there already, and was told or not: told twice is better.
                let is_gone = self.members.member(&topic, &user).is_none();
                let is_told = dirty.tell > Tell::Not;
                let tell = if is_gone && is_told { Tell::Always } else { dirty.tell };
                self.dirt.add(&topic, user, Dirty { tell, ..dirty });
            }
        }
    }

    /// Nobody can say who else is there.
    pub fn refuse(&mut self, local: &mut Local) {
        self.reads.take_all().into_iter().for_each(|ask| local.here(ask, None));
    }

    /// Goes on with everything. Whether there was anything to do.
    pub fn poll(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        cmd: &MultiplexedConnection,
        local: &mut Local,
    ) -> bool {
        let Some(up) = self.up.as_mut().filter(|_| self.is_on) else { return false };
        if now >= up.settled_at {
            self.members.handle_timeout(now);
        }
        if now.duration_since(up.written_at) >= ANEW {
            up.written_at = now;
            self.indexed.clear();
            self.write_all(Tell::Not);
        }
        self.note_changes();
        let mut is_busy = self.poll_watch(cx, now, cmd, local);
        is_busy |= self.poll_flight(cx, now, cmd);
        let up = self.up.as_ref().expect("looked at above");
        is_busy |= self.reads.begin(cx, cmd, &self.keys, up.watch.dead(), &self.members);
        while let Some(read::Answer { asks, here }) = self.reads.poll(cx, &self.members) {
            is_busy = true;
            let here = here.inspect_err(|error| self.failures.warn(error, now)).ok();
            asks.into_iter().for_each(|ask| local.here(ask, here.clone()));
        }
        is_busy
    }

    /// Copies the gauges out.
    pub fn measure(&self, counters: &mut BackplaneCounters) {
        counters.presences = self.members.users() as u64;
    }

    fn poll_watch(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        cmd: &MultiplexedConnection,
        local: &mut Local,
    ) -> bool {
        let Some(up) = &mut self.up else { return false };
        match up.watch.poll(cx, now, cmd, &self.keys, &self.rules) {
            Ok(Watched { was_reaped, reaped, is_busy }) => {
                local.counters.presence_reaped += reaped;
                if was_reaped {
                    tracing::warn!(
                        "other nodes took this one for dead; its users are written anew"
                    );
                    self.indexed.clear();
                    self.write_all(Tell::Always);
                }
                is_busy
            }
            Err(error) => {
                self.failures.warn(&error, now);
                true
            }
        }
    }

    /// Users whose place in Redis is no longer the truth.
    fn note_changes(&mut self) {
        while let Some(changed) = self.members.poll_event() {
            let (tell, by) = match changed.change {
                Change::Joined(by) => (Tell::IfNew, Some(by)),
                Change::Differs => (Tell::Not, None),
                Change::Left => (Tell::IfNew, None),
            };
            self.dirt.add(&changed.topic, changed.user, Dirty { tell, by });
        }
    }

    fn write_all(&mut self, tell: Tell) {
        self.members.rooms().for_each(|topic| self.anew.add_whole(topic, tell));
    }

    fn poll_flight(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        cmd: &MultiplexedConnection,
    ) -> bool {
        let mut is_busy = false;
        if let Some(flight) = &mut self.flight
            && let Poll::Ready(answers) = poll_reply(&mut flight.reply, cx)
        {
            let flight = self.flight.take().expect("it was just looked at");
            self.land(flight, answers, now);
            is_busy = true;
        }
        let is_paused = self.paused_until.is_some_and(|until| now < until);
        let is_settled = self.up.as_ref().is_some_and(|up| now >= up.settled_at);
        let is_dirty = !self.anew.is_empty() || (is_settled && !self.dirt.is_empty());
        if self.flight.is_none() && is_dirty && !is_paused {
            let (pipeline, replies_before, calls) = self.load(is_settled);
            let reply = send(cx, fly(cmd.clone(), pipeline));
            self.flight = Some(Flight { replies_before, calls, reply });
            is_busy = true;
        }
        is_busy
    }

    fn load(&mut self, is_settled: bool) -> (Pipeline, usize, Vec<Call>) {
        let (mut pipeline, mut calls, mut users) = (Pipeline::new(), Vec::new(), 0);
        if !std::mem::replace(&mut self.is_script_loaded, true) {
            pipeline.cmd("SCRIPT").arg("LOAD").arg(Script::Put.text());
        }
        let replies_before = pipeline.len();
        while calls.len() < CALLS_PER_FLIGHT && users < USERS_PER_FLIGHT {
            let Some((topic, some)) = self.take_dirt(is_settled) else { break };
            if some.is_empty() {
                continue;
            }
            users += some.len();
            let replies = self.call(&mut pipeline, &topic, &some);
            calls.push(Call { topic, users: some, replies });
        }
        (pipeline, replies_before, calls)
    }

    /// Some users of a room, those first who are only written anew.
    fn take_dirt(&mut self, is_settled: bool) -> Option<(TopicName, Vec<(TopicName, Dirty)>)> {
        let members = &self.members;
        let everybody =
            |topic: &TopicName| members.members(topic).map(|(user, _)| user.clone()).collect();
        if let Some((topic, mut some)) = self.anew.take(USERS_PER_CALL, everybody) {
            // Who came or left is not written without a word.
            some.retain(|(user, _)| !self.dirt.tells(&topic, user));
            return Some((topic, some));
        }
        if is_settled { self.dirt.take(USERS_PER_CALL, |_| Vec::new()) } else { None }
    }

    /// Adds the commands for some users of a room: so many.
    fn call(
        &mut self,
        pipeline: &mut Pipeline,
        topic: &TopicName,
        some: &[(TopicName, Dirty)],
    ) -> usize {
        let before = pipeline.len();
        let is_empty = self.members.count(topic) == 0;
        // In the index before in the room: whoever cleans up behind us finds at least what is there.
        if !is_empty && self.indexed.insert(topic.clone()) {
            pipeline.cmd("SADD").arg(self.keys.index(&self.keys.me)).arg(topic.as_str());
        }
        let users: Vec<_> =
            some.iter().map(|(user, dirty)| self.user(topic, user, *dirty)).collect();
        let users_max = self.rules.namespaces.policy(topic.kind()).presence_events_users_max;
        let dead = self.up.as_ref().map_or(&[][..], |up| up.watch.dead());
        let room = scripts::Room { topic: topic.as_str(), users_max, dead };
        scripts::put(pipeline, &self.keys, &self.rules.names, room, &users);
        if is_empty {
            self.indexed.remove(topic);
            pipeline.cmd("SREM").arg(self.keys.index(&self.keys.me)).arg(topic.as_str());
        }
        pipeline.len() - before
    }

    /// A user as they are now.
    fn user<'a>(&self, topic: &TopicName, user: &'a TopicName, dirty: Dirty) -> scripts::User<'a> {
        let (name, tell) = (name_of(user), dirty.tell as u8);
        match self.members.member(topic, user) {
            Some(member) => {
                let info = member.info.as_deref();
                let value = read::value_written(member.connections, info);
                let news = news::write(&News::Joined { user: name, info, by: dirty.by });
                scripts::User { name, value, tell, news }
            }
            None => {
                let (value, news) = (String::new(), news::write(&News::Left { user: name }));
                scripts::User { name, value, tell, news }
            }
        }
    }

    /// A batch is answered: what Redis refused is put back.
    fn land(&mut self, flight: Flight, answers: RedisResult<Vec<Value>>, now: Instant) {
        let mut answers = answers
            .inspect_err(|error| self.failures.warn(error, now))
            .unwrap_or_default()
            .into_iter()
            .skip(flight.replies_before);
        for Call { topic, users, replies } in flight.calls {
            let (mut taken, mut is_refused) = (0, false);
            for answer in answers.by_ref().take(replies) {
                taken += 1;
                let Value::ServerError(error) = answer else { continue };
                is_refused = true;
                self.is_script_loaded &= error.kind() != Some(ServerErrorKind::NoScript);
                self.failures.warn(&error, now);
            }
            if is_refused || taken < replies {
                self.paused_until = Some(now + PAUSE);
                self.indexed.remove(&topic);
                users.into_iter().for_each(|(user, dirty)| self.dirt.add(&topic, user, dirty));
            }
        }
    }
}

async fn fly(mut cmd: MultiplexedConnection, pipeline: Pipeline) -> RedisResult<Vec<Value>> {
    cmd.send_packed_commands(&pipeline, 0, pipeline.len()).await
}

impl Seldom {
    /// Says that Redis refused something of presence, if it is time to.
    fn warn(&mut self, error: &dyn std::fmt::Display, now: Instant) {
        if let Some(unsaid) = self.is_due(now) {
            tracing::warn!(%error, unsaid, "presence could not be written to Redis or read from it");
        }
    }
}
