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
//! Invariant: a user waits in one queue at most, once, and while it does, is in `pending`.

use crate::backplane::redis::error_reply::ErrorReply;
use crate::backplane::redis::names::Names;
use crate::backplane::redis::pipeline::{
    AnsweredBatch, BatchPipeline, BatchSender, ItemReply, OutgoingBatch, RetryOrder,
};
use crate::backplane::redis::scripts::{self, HISTORY_SCRIPTS, HistoryScript};
use crate::backplane::redis::topology::routes::ServerRoutes;
use crate::backplane::redis::unreadable::UnreadableWarnings;
use crate::ids::{Position, TopicName};
use crate::metrics::BackplaneCounters;
use crate::policy::namespaces::Namespaces;
use hashbrown::HashMap;
use redis::Value;
use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Context;
use std::time::{Duration, Instant};

/// Users in one batch.
pub(super) const ACKS_PER_BATCH: usize = 256;
/// Users that wait, at most.
const PENDING_MAX: usize = 64 * 1024;
/// One that waits: its places in queue and table, and the name of a user who may be gone.
const PENDING_BYTES: usize = 256;
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
struct AckQueue {
    users: VecDeque<TopicName>,
    pipeline: BatchPipeline<SentAck>,
}

type SentAck = (TopicName, PendingAck);

impl AckQueue {
    fn new() -> AckQueue {
        AckQueue { users: VecDeque::new(), pipeline: BatchPipeline::new(1, RetryOrder::InOrder) }
    }

    /// Whether nothing is in flight or about to be.
    fn is_idle(&self) -> bool {
        let is_refusing = self.pipeline.refused() > 0;
        self.pipeline.has_none_in_flight() && (self.users.is_empty() || is_refusing)
    }
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
        let queues = (0..route.servers()).map(|_| AckQueue::new()).collect();
        let (pending, numbers) = (HashMap::new(), AckCounters::default());
        let unreadable = UnreadableWarnings::default();
        UserAcks { namespaces, names, route, pending, queues, numbers, unreadable }
    }

    /// Servers went up or down, or topics moved. Batches in flight are put back.
    pub(super) fn set_route(&mut self, route: &ServerRoutes) {
        self.route = route.clone();
        let before = std::mem::take(&mut self.queues);
        self.queues.resize_with(route.servers(), AckQueue::new);
        for AckQueue { users, mut pipeline } in before {
            let in_flight = pipeline.lose_link();
            for (user, ack) in pipeline.extract_refused(|_| true).into_iter().chain(in_flight) {
                self.put(user, ack);
            }
            for user in users {
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
        self.queues.iter().all(AckQueue::is_idle)
    }

    /// Sends pending acknowledgements and handles replies. Returns whether there was work.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let mut is_busy = false;
        for number in 0..self.queues.len() {
            is_busy |= self.poll_replies(number, cx, now);
            let due: Vec<SentAck> = self.queues[number].pipeline.take_due(now).collect();
            due.into_iter().for_each(|(user, ack)| self.put(user, ack));
            let queue = &self.queues[number];
            if queue.users.is_empty() || !queue.pipeline.may_send() {
                continue;
            }
            self.expire(number, now);
            let Some(cmd) = self.route.commands(number).cloned() else { continue };
            let batch = self.build_batch(number, &cmd);
            if !batch.is_empty() {
                self.queues[number].pipeline.send(cx, now, &cmd, batch);
                is_busy = true;
            }
        }
        is_busy
    }

    /// Bytes that it holds.
    pub(super) fn held_bytes(&self) -> usize {
        self.pending.len() * PENDING_BYTES
    }

    /// Writes its counters and gauges.
    pub(super) fn measure(&mut self, counters: &mut BackplaneCounters) {
        counters.histories_unreadable += std::mem::take(&mut self.numbers.unreadable);
        let refused: usize = self.queues.iter().map(|queue| queue.pipeline.refused()).sum();
        counters.acks_waiting = (self.pending.len() + refused) as u64;
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

    fn build_batch(
        &mut self,
        number: usize,
        connection: &impl BatchSender,
    ) -> OutgoingBatch<SentAck> {
        let users = &mut self.queues[number].users;
        let capacity = users.len().min(ACKS_PER_BATCH);
        let mut batch = OutgoingBatch::with_scripts(capacity, connection, &HISTORY_SCRIPTS);
        while batch.items.len() < ACKS_PER_BATCH
            && let Some(user) = users.pop_front()
        {
            let Some(ack) = self.pending.remove(&user) else { continue };
            let keys = self.names.history_keys(user.as_str());
            let mut command = scripts::call(HistoryScript::Ack, &[&keys.meta]);
            command.arg(ack.at.epoch).arg(ack.at.offset);
            command.arg(scripts::meta_ttl_s(self.namespaces.policy(user.kind())));
            batch.commands.add_command(command);
            batch.items.push((user, ack));
        }
        batch
    }

    fn poll_replies(&mut self, number: usize, cx: &mut Context<'_>, now: Instant) -> bool {
        let pipeline = &mut self.queues[number].pipeline;
        match pipeline.poll_answered(cx) {
            Ok(None) => return false,
            Ok(Some(batch)) => self.handle_replies(number, batch, now),
            // The server decides whether its link is up. All of it is sent again.
            Err(_) => {
                for ack in pipeline.lose_link() {
                    pipeline.send_at(ack, now + RETRY_PAUSE, now);
                }
            }
        }
        true
    }

    fn handle_replies(&mut self, number: usize, batch: AnsweredBatch<SentAck>, now: Instant) {
        let pipeline = &mut self.queues[number].pipeline;
        for (ack, reply) in batch {
            match reply {
                ItemReply::Ended(Value::Int(1)) => self.numbers.stored += 1,
                ItemReply::Ended(Value::Int(_)) => self.numbers.ignored += 1,
                ItemReply::Unreadable(error) => {
                    self.numbers.given_up += 1;
                    self.numbers.unreadable += 1;
                    let error = redis::RedisError::from(error);
                    self.unreadable.warn(ack.0.as_str(), &error, &self.names, now);
                }
                ItemReply::Again(refusal) if refusal.kind == ErrorReply::ScriptMissing => {
                    pipeline.send_again(ack, refusal, now);
                }
                ItemReply::Again(_) | ItemReply::Ended(_) | ItemReply::Permanent(_) => {
                    pipeline.send_at(ack, now + RETRY_PAUSE, now);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backplane::partition::PARTITIONS;
    use crate::backplane::redis::pipeline::FakeConnection;
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
        let connection = FakeConnection::default();
        connection.scripts().note_load(HISTORY_SCRIPTS.owner);
        let OutgoingBatch { commands, items, .. } = acks.build_batch(0, &connection);
        assert_eq!(commands.len(), 2);
        assert_eq!(items.iter().map(|(_, it)| it.at).collect::<Vec<_>>(), [at(2, 1), at(1, 1)]);
        assert!(acks.is_idle() && acks.build_batch(0, &connection).is_empty());
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
        // Nothing is loaded on this connection.
        let OutgoingBatch { commands, items, .. } = acks.build_batch(1, &FakeConnection::default());
        let loads = HISTORY_SCRIPTS.texts.len();
        assert_eq!((commands.len(), items.len()), (loads + 256, 256));
        assert!(items.iter().all(|(user, _)| acks.route.server_of(user.as_str()) == 1));
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
