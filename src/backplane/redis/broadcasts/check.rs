//! Checks after each subscription whether a message to everybody was missed.
//!
//! Invariant: one check at a time; a new subscription begins it again.

use crate::backplane::interest::TopicKey;
use crate::backplane::local::Local;
use crate::backplane::redis::broadcasts::chain::{BroadcastChain, SentBroadcasts};
use crate::backplane::redis::broadcasts::scripts;
use crate::backplane::redis::error_reply::ErrorReply;
use crate::backplane::redis::names::Names;
use crate::backplane::redis::pipeline::{PendingReply, execute, poll_reply, send};
use crate::backplane::redis::scripts::REPAIR_MS;
use crate::backplane::redis::unreadable::number_of;
use crate::ids::{Position, TopicName};
use redis::aio::MultiplexedConnection;
use redis::{Pipeline, Value};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// How long nodes have to put back what a server lacks.
const REPAIR: Duration = Duration::from_millis(REPAIR_MS);

/// Where a check is.
enum CheckStage {
    /// Nothing is to be checked.
    Idle,
    /// What this node knows is to be put back, not before this moment.
    Due(Instant),
    /// That is in flight.
    Restoring(PendingReply<Vec<Value>>),
    /// Other nodes may do the same, until this moment.
    Waiting(Instant),
    /// The number is being read.
    Reading(PendingReply<Vec<Value>>),
    /// It was read at this moment. A canary that is sent later arrives behind all messages that it
    /// counts.
    Arriving(u64, Instant),
}

/// See the module. Owned by [`crate::backplane::redis::RedisTransport`].
pub(in crate::backplane::redis) struct Broadcasts {
    chain: BroadcastChain,
    stage: CheckStage,
    /// Whether the last request takes a number.
    took_number: bool,
    /// The topic's key.
    key: Option<TopicKey>,
}

/// What a check needs of the server that has the topic.
pub(in crate::backplane::redis) struct CheckContext<'a> {
    /// The connection for commands.
    pub cmd: &'a MultiplexedConnection,
    /// Names of keys.
    pub names: &'a Names,
    /// When the last canary that came back was sent.
    pub proved_at: Option<Instant>,
    /// What this node has sent since the last turn.
    pub sent: SentBroadcasts,
}

impl Broadcasts {
    /// Nothing is known.
    pub(in crate::backplane::redis) fn new() -> Broadcasts {
        let (chain, stage) = (BroadcastChain::default(), CheckStage::Idle);
        Broadcasts { chain, stage, took_number: false, key: None }
    }

    /// The topic is wanted under this key.
    pub(in crate::backplane::redis) fn subscribe(&mut self, key: TopicKey, topic: &TopicName) {
        if topic.as_str() == TopicName::ALL {
            self.key = Some(key);
        }
    }

    /// Whether this is the topic's key.
    pub(in crate::backplane::redis) fn has_key(&self, key: TopicKey) -> bool {
        self.key == Some(key)
    }

    /// The topic is subscribed.
    pub(in crate::backplane::redis) fn on_subscribed(&mut self, now: Instant) {
        self.stage = CheckStage::Due(now);
    }

    /// A message has arrived, with its numbers.
    pub(in crate::backplane::redis) fn receive(
        &mut self,
        numbers: Option<Position>,
        local: &mut Local,
    ) {
        self.chain.receive(numbers);
        if self.chain.take_gap() {
            self.notify(local);
        }
    }

    /// Makes progress. Returns whether there was work.
    pub(in crate::backplane::redis) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        context: &CheckContext<'_>,
        local: &mut Local,
    ) -> bool {
        self.chain.note_sent(context.sent);
        let next = match &mut self.stage {
            CheckStage::Due(at) if now >= *at => CheckStage::Restoring(self.ask(cx, context)),
            CheckStage::Restoring(reply) => match poll_reply(reply, cx) {
                Poll::Pending => return false,
                Poll::Ready(answer) => self.on_restored(answer.ok(), now, local),
            },
            CheckStage::Waiting(until) if now >= *until => {
                CheckStage::Reading(self.ask(cx, context))
            }
            CheckStage::Reading(reply) => match poll_reply(reply, cx) {
                Poll::Pending => return false,
                Poll::Ready(answer) => match number_in(answer.ok()) {
                    Some(number) => CheckStage::Arriving(number, now),
                    None => self.retry(now),
                },
            },
            CheckStage::Arriving(number, since)
                if context.proved_at.is_some_and(|at| at > *since) =>
            {
                let number = *number;
                self.judge(number, local);
                CheckStage::Idle
            }
            // A message came to which the server has to count another.
            CheckStage::Idle if self.chain.has_fork() => CheckStage::Due(now),
            _ => return false,
        };
        self.stage = next;
        true
    }

    fn ask(
        &mut self,
        cx: &mut Context<'_>,
        context: &CheckContext<'_>,
    ) -> PendingReply<Vec<Value>> {
        // What it takes is missing here, too, and is reported here, too: too often is no harm.
        let takes_number = self.chain.take_fork();
        self.took_number = takes_number;
        let mut pipeline = Pipeline::new();
        pipeline.add_command(scripts::check(context.names, self.chain.to_restore(), takes_number));
        send(cx, execute(context.cmd.clone(), pipeline))
    }

    fn on_restored(
        &mut self,
        answer: Option<Vec<Value>>,
        now: Instant,
        local: &mut Local,
    ) -> CheckStage {
        match number_in(answer) {
            None => self.retry(now),
            // Nobody here has received anything yet.
            Some(number) if self.chain.is_new() => {
                self.judge(number, local);
                CheckStage::Idle
            }
            Some(_) => CheckStage::Waiting(now + REPAIR),
        }
    }

    fn retry(&mut self, now: Instant) -> CheckStage {
        if self.took_number {
            self.chain.suspect();
        }
        CheckStage::Due(now + ErrorReply::NotYet.retry_after())
    }

    fn judge(&mut self, number: u64, local: &mut Local) {
        match self.chain.is_missing_at(number) {
            true => self.notify(local),
            false => local.counters.broadcasts_complete += 1,
        }
    }

    fn notify(&mut self, local: &mut Local) {
        local.counters.broadcasts_missed += 1;
        local.notify_lost(&TopicName::all(), 0);
    }
}

/// The number in the reply; `None`: an error.
fn number_in(answer: Option<Vec<Value>>) -> Option<u64> {
    number_of(answer?.first()?)
}
