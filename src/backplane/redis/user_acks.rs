//! What users have acknowledged, on its way to Redis.
//!
//! Only the newest of each user counts, so acknowledgements of one user are one until they are sent,
//! and while a pipeline is under way the next one gathers: however fast clients acknowledge, a server
//! is asked once a round trip for at most [`ACKS_PER_FLIGHT`] users.
//!
//! What was under way when a connection broke, or was refused, is sent again: to hear the same one
//! twice changes nothing (`lua/ack.lua`). One that has waited for [`WAIT_MAX`], or has no room
//! ([`WAITING_MAX`]), or whose history is nothing that we wrote ([`crate::backplane::redis::unreadable`]), is given up:
//! then its messages are brought once more.
//!
//! Invariant: a user stands in a line once, and while it does, in `newest`.

use crate::backplane::redis::connection::{Reply, fly, poll_reply, send};
use crate::backplane::redis::error_reply::Refusal;
use crate::backplane::redis::history::meta_ttl_s;
use crate::backplane::redis::names::Names;
use crate::backplane::redis::scripts::{self, Which};
use crate::backplane::redis::topology::routes::Route;
use crate::backplane::redis::unreadable::Warnings;
use crate::ids::{Position, TopicName};
use crate::metrics::BackplaneCounters;
use crate::policy::namespaces::Namespaces;
use hashbrown::HashMap;
use redis::{Pipeline, Value};
use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// Users in one pipeline.
pub const ACKS_PER_FLIGHT: usize = 256;
/// Users that wait, at most.
const WAITING_MAX: usize = 64 * 1024;
/// How long one may wait.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// After how long a server that refused is asked again.
const PAUSE: Duration = Duration::from_millis(100);

/// See the module. It outlives links.
pub struct Acks {
    namespaces: Arc<Namespaces>,
    names: Names,
    route: Route,
    newest: HashMap<TopicName, Waiting>,
    /// One for each server of the route.
    lines: Vec<Line>,
    numbers: Numbers,
    unreadable: Warnings,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    at: Position,
    since: Instant,
}

/// What one server is to be told.
#[derive(Default)]
struct Line {
    users: VecDeque<TopicName>,
    flight: Option<Flight>,
    /// Not before.
    again_at: Option<Instant>,
    /// The server does not know the script.
    is_unloaded: bool,
}

struct Flight {
    load: Load,
    reply: Reply<Vec<Value>>,
}

/// What one pipeline says.
struct Load {
    sent: Vec<(TopicName, Waiting)>,
    /// Whether it teaches the server the script first.
    has_script: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Numbers {
    stored: u64,
    ignored: u64,
    given_up: u64,
    /// Answers about histories that we did not write, until they are told.
    unreadable: u64,
}

impl Acks {
    /// Nothing waits.
    pub fn new(namespaces: Arc<Namespaces>, names: Names, route: Route) -> Acks {
        let lines = (0..route.servers()).map(|_| Line::default()).collect();
        let (newest, numbers) = (HashMap::new(), Numbers::default());
        let unreadable = Warnings::default();
        Acks { namespaces, names, route, newest, lines, numbers, unreadable }
    }

    /// Servers have come up or gone down, or topics have moved. What is under way ends by itself.
    pub fn set_route(&mut self, route: &Route) {
        self.route = route.clone();
        let before = std::mem::take(&mut self.lines);
        self.lines.resize_with(route.servers(), Line::default);
        for line in before {
            let flying = line.flight.into_iter().flat_map(|flight| flight.load.sent);
            for (user, waiting) in flying {
                self.put(user, waiting);
            }
            for user in line.users {
                self.lines[self.route.server_of(user.as_str())].users.push_back(user);
            }
        }
    }

    /// A user has dealt with everything up to `at`.
    pub fn push(&mut self, user: TopicName, at: Position, now: Instant) {
        self.put(user, Waiting { at, since: now });
    }

    /// Whether nothing is under way or about to be. What was refused is not worth waiting for.
    pub fn is_idle(&self) -> bool {
        let is_idle = |line: &Line| {
            line.flight.is_none() && (line.users.is_empty() || line.again_at.is_some())
        };
        self.lines.iter().all(is_idle)
    }

    /// Sends what waits, takes what was answered. Whether there was anything to do.
    pub fn poll(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let mut is_busy = false;
        for number in 0..self.lines.len() {
            is_busy |= self.poll_flight(number, cx, now);
            let line = &self.lines[number];
            let may_send = line.flight.is_none() && line.again_at.is_none_or(|at| at <= now);
            if !may_send || line.users.is_empty() {
                continue;
            }
            let Some(cmd) = self.route.cmd(number).cloned() else {
                self.expire(number, now);
                continue;
            };
            if let Some((pipeline, load)) = self.load(number, now) {
                let reply = send(cx, fly(cmd, pipeline));
                let line = &mut self.lines[number];
                (line.flight, line.again_at) = (Some(Flight { load, reply }), None);
                is_busy = true;
            }
        }
        is_busy
    }

    /// Copies its numbers out.
    pub fn measure(&mut self, counters: &mut BackplaneCounters) {
        counters.histories_unreadable += std::mem::take(&mut self.numbers.unreadable);
        counters.acks_waiting = self.newest.len() as u64;
        counters.acks_stored = self.numbers.stored;
        counters.acks_ignored = self.numbers.ignored;
        counters.acks_given_up = self.numbers.given_up;
    }

    /// An older one of the same user, if it still waits, is no longer needed.
    fn put(&mut self, user: TopicName, waiting: Waiting) {
        if let Some(known) = self.newest.get_mut(&user) {
            let key = |it: &Waiting| (it.at.epoch, it.at.offset);
            if key(&waiting) > key(known) {
                *known = waiting;
            }
            return;
        }
        let line = &mut self.lines[self.route.server_of(user.as_str())];
        if self.newest.len() >= WAITING_MAX {
            self.numbers.given_up += 1;
            return;
        }
        line.users.push_back(user.clone());
        self.newest.insert(user, waiting);
    }

    fn expire(&mut self, number: usize, now: Instant) {
        while let Some(user) = self.lines[number].users.front()
            && self.newest.get(user).is_none_or(|it| now.duration_since(it.since) >= WAIT_MAX)
        {
            let user = self.lines[number].users.pop_front().expect("it was just looked at");
            self.numbers.given_up += u64::from(self.newest.remove(&user).is_some());
        }
    }

    /// The next pipeline, and what it says.
    fn load(&mut self, number: usize, now: Instant) -> Option<(Pipeline, Load)> {
        self.expire(number, now);
        let mut pipeline = Pipeline::new();
        let has_script = std::mem::take(&mut self.lines[number].is_unloaded);
        if has_script {
            pipeline.cmd("SCRIPT").arg("LOAD").arg(scripts::ACK);
        }
        let mut sent = Vec::new();
        while sent.len() < ACKS_PER_FLIGHT
            && let Some(user) = self.lines[number].users.pop_front()
        {
            let Some(waiting) = self.newest.remove(&user) else { continue };
            let keys = self.names.history_keys(user.as_str());
            let mut ack = scripts::call(Which::Ack, &[&keys.meta]);
            ack.arg(waiting.at.epoch).arg(waiting.at.offset);
            ack.arg(meta_ttl_s(self.namespaces.policy(user.kind())));
            pipeline.add_command(ack);
            sent.push((user, waiting));
        }
        (!sent.is_empty()).then_some((pipeline, Load { sent, has_script }))
    }

    fn poll_flight(&mut self, number: usize, cx: &mut Context<'_>, now: Instant) -> bool {
        let Some(flight) = &mut self.lines[number].flight else { return false };
        let Poll::Ready(answers) = poll_reply(&mut flight.reply, cx) else { return false };
        let flight = self.lines[number].flight.take().expect("it was just looked at");
        let answers = answers.unwrap_or_default();
        // Of a connection that broke nothing is known: all of it is sent again.
        let mut answers = answers.into_iter().skip(usize::from(flight.load.has_script));
        for (user, waiting) in flight.load.sent {
            match answers.next() {
                Some(Value::Int(1)) => self.numbers.stored += 1,
                Some(Value::Int(_)) => self.numbers.ignored += 1,
                Some(Value::ServerError(error)) if is_unreadable(&error) => {
                    self.numbers.given_up += 1;
                    self.numbers.unreadable += 1;
                    let error = redis::RedisError::from(error);
                    self.unreadable.warn(user.as_str(), &error, &self.names, now);
                }
                other => {
                    let line = &mut self.lines[number];
                    line.is_unloaded |=
                        other.as_ref().and_then(Refusal::of) == Some(Refusal::Unloaded);
                    let may_hurry = line.is_unloaded && !flight.load.has_script;
                    line.again_at = (!may_hurry).then_some(now + PAUSE);
                    self.put(user, waiting);
                }
            }
        }
        true
    }
}

fn is_unreadable(error: &redis::ServerError) -> bool {
    Refusal::by_words(error.code(), error.details()) == Refusal::Unreadable
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backplane::partition::PARTITIONS;
    use crate::ids::NodeId;

    fn acks(servers: usize) -> Acks {
        let owners: Vec<u16> = (0..PARTITIONS).map(|at| (at % servers) as u16).collect();
        let owners: [u16; PARTITIONS] = owners.try_into().unwrap();
        let route = Route::new(Arc::new(owners), vec![None; servers], "PUBLISH");
        Acks::new(Arc::default(), Names::new("t", NodeId(1)), route)
    }

    fn at(epoch: u64, offset: u64) -> Position {
        Position { epoch, offset }
    }

    fn user(number: usize) -> TopicName {
        TopicName::user(&number.to_string())
    }

    fn waiting(acks: &Acks) -> usize {
        let in_line: usize = acks.lines.iter().map(|line| line.users.len()).sum();
        assert_eq!(in_line, acks.newest.len());
        in_line
    }

    #[test]
    fn only_the_newest_of_a_user_is_sent() {
        let (mut acks, now) = (acks(1), Instant::now());
        for position in [at(1, 5), at(1, 9), at(1, 7), at(2, 1), at(1, 99)] {
            acks.push(user(1), position, now);
        }
        acks.push(user(2), at(1, 1), now);
        assert_eq!(waiting(&acks), 2);
        let (pipeline, Load { sent, has_script }) = acks.load(0, now).unwrap();
        assert_eq!((pipeline.len(), has_script), (2, false));
        assert_eq!(sent.iter().map(|(_, it)| it.at).collect::<Vec<_>>(), [at(2, 1), at(1, 1)]);
        assert!(acks.is_idle() && acks.load(0, now).is_none());
    }

    #[test]
    fn what_waits_too_long_or_is_too_much_is_given_up() {
        let (mut acks, now) = (acks(1), Instant::now());
        for number in 0..WAITING_MAX + 3 {
            acks.push(user(number), at(1, 1), now);
        }
        assert_eq!((waiting(&acks), acks.numbers.given_up), (WAITING_MAX, 3));
        acks.push(user(1), at(1, 2), now);
        assert_eq!(acks.numbers.given_up, 3, "one that stands there has room");
        let mut cx = Context::from_waker(std::task::Waker::noop());
        assert!(!acks.poll(&mut cx, now + WAIT_MAX / 2));
        assert_eq!(waiting(&acks), WAITING_MAX);
        assert!(!acks.poll(&mut cx, now + WAIT_MAX));
        assert_eq!((waiting(&acks), acks.is_idle()), (0, true));
    }

    #[test]
    fn a_pipeline_holds_so_many_and_a_server_only_its_own() {
        let (mut acks, now) = (acks(3), Instant::now());
        (0..3000).for_each(|number| acks.push(user(number), at(1, 1), now));
        acks.lines[1].is_unloaded = true;
        let (pipeline, Load { sent, has_script }) = acks.load(1, now).unwrap();
        assert_eq!((pipeline.len(), sent.len(), has_script), (257, 256, true));
        assert!(sent.iter().all(|(user, _)| acks.route.server_of(user.as_str()) == 1));
        // A server goes: its users stand in other lines.
        let owners: [u16; PARTITIONS] = std::array::from_fn(|at| (at % 2) as u16);
        acks.set_route(&Route::new(Arc::new(owners), vec![None; 2], "PUBLISH"));
        assert_eq!(waiting(&acks), 3000 - 256);
        for (number, line) in acks.lines.iter().enumerate() {
            assert!(!line.users.is_empty());
            assert!(line.users.iter().all(|user| acks.route.server_of(user.as_str()) == number));
        }
    }
}
