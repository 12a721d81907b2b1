//! Acknowledgements of users on their way to Redis.
//!
//! Only the latest of each user counts, so they are merged until they are sent, and while a batch
//! is in flight the next one gathers: however fast clients acknowledge, a server is asked once a
//! round trip for at most [`ACKS_PER_BATCH`] users.
//!
//! What was in flight when a connection broke, or was refused, is sent again: the script is
//! idempotent (`lua/ack.lua`). An acknowledgement that has waited for [`PENDING_TIME_MAX`], finds
//! no room ([`PENDING_MAX`]), or whose history is unreadable, is dropped: its messages are
//! redelivered.
//!
//! Invariant: a user is in one queue at most, once, and while it is, in `pending`.

use crate::backplane::redis::error_reply::ErrorReply;
use crate::backplane::redis::names::Names;
use crate::backplane::redis::pipeline::{PendingReply, execute, poll_reply, send};
use crate::backplane::redis::scripts::{self, HistoryScript};
use crate::backplane::redis::topology::routes::ServerRoutes;
use crate::backplane::redis::unreadable::UnreadableWarnings;
use crate::ids::{Position, TopicName};
use crate::metrics::BackplaneCounters;
use crate::policy::namespaces::Namespaces;
use hashbrown::HashMap;
use redis::{Pipeline, Value};
use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// Users in one batch.
pub(super) const ACKS_PER_BATCH: usize = 256;
/// Users that wait, at most.
const PENDING_MAX: usize = 64 * 1024;
/// How long an acknowledgement may wait.
const PENDING_TIME_MAX: Duration = Duration::from_secs(60);
/// Pause before a server that refused is asked again.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// Pending acknowledgements by server. Outlives links; owned by
/// [`crate::backplane::redis::RedisTransport`].
pub(super) struct UserAcks {
    namespaces: Arc<Namespaces>,
    names: Names,
    route: ServerRoutes,
    pending: HashMap<TopicName, PendingAck>,
    /// One for each server of the route.
    queues: Vec<AckQueue>,
    numbers: AckCounters,
    unreadable: UnreadableWarnings,
}

#[derive(Clone, Copy, Debug)]
struct PendingAck {
    at: Position,
    since: Instant,
}

/// Users with an acknowledgement for one server.
#[derive(Default)]
struct AckQueue {
    users: VecDeque<TopicName>,
    batch: Option<AckBatch>,
    /// Not before this time.
    retry_at: Option<Instant>,
    /// The server does not know the script.
    is_script_missing: bool,
}

struct AckBatch {
    content: BatchContent,
    reply: PendingReply<Vec<Value>>,
}

/// What one batch sends.
struct BatchContent {
    sent: Vec<(TopicName, PendingAck)>,
    /// Whether it begins with SCRIPT LOAD.
    has_script: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct AckCounters {
    stored: u64,
    ignored: u64,
    given_up: u64,
    /// Unreadable histories met since the last `measure`.
    unreadable: u64,
}

impl UserAcks {
    /// Nothing waits.
    pub(super) fn new(namespaces: Arc<Namespaces>, names: Names, route: ServerRoutes) -> UserAcks {
        let queues = (0..route.servers()).map(|_| AckQueue::default()).collect();
        let (pending, numbers) = (HashMap::new(), AckCounters::default());
        let unreadable = UnreadableWarnings::default();
        UserAcks { namespaces, names, route, pending, queues, numbers, unreadable }
    }

    /// Servers went up or down, or topics moved. Batches in flight are put back.
    pub(super) fn set_route(&mut self, route: &ServerRoutes) {
        self.route = route.clone();
        let before = std::mem::take(&mut self.queues);
        self.queues.resize_with(route.servers(), AckQueue::default);
        for queue in before {
            let in_flight = queue.batch.into_iter().flat_map(|batch| batch.content.sent);
            for (user, ack) in in_flight {
                self.put(user, ack);
            }
            for user in queue.users {
                self.queues[self.route.server_of(user.as_str())].users.push_back(user);
            }
        }
    }

    /// A user has acknowledged everything up to `at`.
    pub(super) fn push(&mut self, user: TopicName, at: Position, now: Instant) {
        self.put(user, PendingAck { at, since: now });
    }

    /// Whether nothing is in flight or about to be. What a server refused is not waited for.
    pub(super) fn is_idle(&self) -> bool {
        let is_idle = |queue: &AckQueue| {
            queue.batch.is_none() && (queue.users.is_empty() || queue.retry_at.is_some())
        };
        self.queues.iter().all(is_idle)
    }

    /// Sends pending acknowledgements and handles replies. Returns whether there was work.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let mut is_busy = false;
        for number in 0..self.queues.len() {
            is_busy |= self.poll_batch(number, cx, now);
            let queue = &self.queues[number];
            let may_send = queue.batch.is_none() && queue.retry_at.is_none_or(|at| at <= now);
            if !may_send || queue.users.is_empty() {
                continue;
            }
            let Some(cmd) = self.route.cmd(number).cloned() else {
                self.expire(number, now);
                continue;
            };
            if let Some((pipeline, content)) = self.build_batch(number, now) {
                let reply = send(cx, execute(cmd, pipeline));
                let queue = &mut self.queues[number];
                (queue.batch, queue.retry_at) = (Some(AckBatch { content, reply }), None);
                is_busy = true;
            }
        }
        is_busy
    }

    /// Writes its counters and gauges.
    pub(super) fn measure(&mut self, counters: &mut BackplaneCounters) {
        counters.histories_unreadable += std::mem::take(&mut self.numbers.unreadable);
        counters.acks_waiting = self.pending.len() as u64;
        counters.acks_stored = self.numbers.stored;
        counters.acks_ignored = self.numbers.ignored;
        counters.acks_given_up = self.numbers.given_up;
    }

    /// Merges with an older one of the same user.
    fn put(&mut self, user: TopicName, ack: PendingAck) {
        if let Some(known) = self.pending.get_mut(&user) {
            let key = |it: &PendingAck| (it.at.epoch, it.at.offset);
            if key(&ack) > key(known) {
                *known = ack;
            }
            return;
        }
        let queue = &mut self.queues[self.route.server_of(user.as_str())];
        if self.pending.len() >= PENDING_MAX {
            self.numbers.given_up += 1;
            return;
        }
        queue.users.push_back(user.clone());
        self.pending.insert(user, ack);
    }

    fn expire(&mut self, number: usize, now: Instant) {
        while let Some(user) = self.queues[number].users.front()
            && self
                .pending
                .get(user)
                .is_none_or(|it| now.duration_since(it.since) >= PENDING_TIME_MAX)
        {
            let user = self.queues[number].users.pop_front().expect("it was just looked at");
            self.numbers.given_up += u64::from(self.pending.remove(&user).is_some());
        }
    }

    /// The next batch and its pipeline.
    fn build_batch(&mut self, number: usize, now: Instant) -> Option<(Pipeline, BatchContent)> {
        self.expire(number, now);
        let mut pipeline = Pipeline::new();
        let has_script = std::mem::take(&mut self.queues[number].is_script_missing);
        if has_script {
            pipeline.cmd("SCRIPT").arg("LOAD").arg(scripts::ACK);
        }
        let mut sent = Vec::new();
        while sent.len() < ACKS_PER_BATCH
            && let Some(user) = self.queues[number].users.pop_front()
        {
            let Some(ack) = self.pending.remove(&user) else { continue };
            let keys = self.names.history_keys(user.as_str());
            let mut command = scripts::call(HistoryScript::Ack, &[&keys.meta]);
            command.arg(ack.at.epoch).arg(ack.at.offset);
            command.arg(scripts::meta_ttl_s(self.namespaces.policy(user.kind())));
            pipeline.add_command(command);
            sent.push((user, ack));
        }
        (!sent.is_empty()).then_some((pipeline, BatchContent { sent, has_script }))
    }

    fn poll_batch(&mut self, number: usize, cx: &mut Context<'_>, now: Instant) -> bool {
        let Some(batch) = &mut self.queues[number].batch else { return false };
        let Poll::Ready(answers) = poll_reply(&mut batch.reply, cx) else { return false };
        let batch = self.queues[number].batch.take().expect("it was just looked at");
        let answers = answers.unwrap_or_default();
        // If the connection broke, there are no replies: all of it is sent again.
        let mut answers = answers.into_iter().skip(usize::from(batch.content.has_script));
        for (user, ack) in batch.content.sent {
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
                    let queue = &mut self.queues[number];
                    queue.is_script_missing |=
                        other.as_ref().and_then(ErrorReply::of) == Some(ErrorReply::ScriptMissing);
                    let may_hurry = queue.is_script_missing && !batch.content.has_script;
                    queue.retry_at = (!may_hurry).then_some(now + RETRY_PAUSE);
                    self.put(user, ack);
                }
            }
        }
        true
    }
}

fn is_unreadable(error: &redis::ServerError) -> bool {
    ErrorReply::from_words(error.code(), error.details()) == ErrorReply::Unreadable
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backplane::partition::PARTITIONS;
    use crate::ids::NodeId;

    fn acks(servers: usize) -> UserAcks {
        let owners: Vec<u16> = (0..PARTITIONS).map(|at| (at % servers) as u16).collect();
        let owners: [u16; PARTITIONS] = owners.try_into().unwrap();
        let route = ServerRoutes::new(Arc::new(owners), vec![None; servers], "PUBLISH");
        UserAcks::new(Arc::default(), Names::new("t", NodeId(1)), route)
    }

    fn at(epoch: u64, offset: u64) -> Position {
        Position { epoch, offset }
    }

    fn user(number: usize) -> TopicName {
        TopicName::user(&number.to_string())
    }

    fn ack(acks: &UserAcks) -> usize {
        let in_line: usize = acks.queues.iter().map(|queue| queue.users.len()).sum();
        assert_eq!(in_line, acks.pending.len());
        in_line
    }

    #[test]
    fn only_the_latest_acknowledgement_of_a_user_is_sent() {
        let (mut acks, now) = (acks(1), Instant::now());
        for position in [at(1, 5), at(1, 9), at(1, 7), at(2, 1), at(1, 99)] {
            acks.push(user(1), position, now);
        }
        acks.push(user(2), at(1, 1), now);
        assert_eq!(ack(&acks), 2);
        let (pipeline, BatchContent { sent, has_script }) = acks.build_batch(0, now).unwrap();
        assert_eq!((pipeline.len(), has_script), (2, false));
        assert_eq!(sent.iter().map(|(_, it)| it.at).collect::<Vec<_>>(), [at(2, 1), at(1, 1)]);
        assert!(acks.is_idle() && acks.build_batch(0, now).is_none());
    }

    #[test]
    fn acknowledgements_that_wait_too_long_or_are_too_many_are_dropped() {
        let (mut acks, now) = (acks(1), Instant::now());
        for number in 0..PENDING_MAX + 3 {
            acks.push(user(number), at(1, 1), now);
        }
        assert_eq!((ack(&acks), acks.numbers.given_up), (PENDING_MAX, 3));
        acks.push(user(1), at(1, 2), now);
        assert_eq!(acks.numbers.given_up, 3, "a user who waits already has room");
        let mut cx = Context::from_waker(std::task::Waker::noop());
        assert!(!acks.poll(&mut cx, now + PENDING_TIME_MAX / 2));
        assert_eq!(ack(&acks), PENDING_MAX);
        assert!(!acks.poll(&mut cx, now + PENDING_TIME_MAX));
        assert_eq!((ack(&acks), acks.is_idle()), (0, true));
    }

    #[test]
    fn a_batch_is_bounded_and_holds_users_of_its_server_only() {
        let (mut acks, now) = (acks(3), Instant::now());
        (0..3000).for_each(|number| acks.push(user(number), at(1, 1), now));
        acks.queues[1].is_script_missing = true;
        let (pipeline, BatchContent { sent, has_script }) = acks.build_batch(1, now).unwrap();
        assert_eq!((pipeline.len(), sent.len(), has_script), (257, 256, true));
        assert!(sent.iter().all(|(user, _)| acks.route.server_of(user.as_str()) == 1));
        // A server leaves: its users are in other queues.
        let owners: [u16; PARTITIONS] = std::array::from_fn(|at| (at % 2) as u16);
        acks.set_route(&ServerRoutes::new(Arc::new(owners), vec![None; 2], "PUBLISH"));
        assert_eq!(ack(&acks), 3000 - 256);
        for (number, queue) in acks.queues.iter().enumerate() {
            assert!(!queue.users.is_empty());
            assert!(queue.users.iter().all(|user| acks.route.server_of(user.as_str()) == number));
        }
    }
}
