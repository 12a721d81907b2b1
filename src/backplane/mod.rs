//! The backplane: one thread between the shards of this node and all other nodes.
//!
//! One loop takes what the shards and the ops thread sent ([`crate::link::Uplink`]), keeps in
//! `interest` which shards have members of which topics, and hands publishes to a
//! [`transport::Transport`]: [`embedded`] for a single node, [`redis`] for several. Messages that
//! come back, this node's own included, are encoded once for each encoding and delivered to the
//! shards that have members ([`local`]). A turn takes all that is ready, within bounds, and then
//! rings the bell of each shard that was sent something.
//!
//! Back-pressure: a full channel to a shard costs deliveries (reported as `Lost`), never a reply;
//! while a reply waits, nothing more is taken from that shard. A transport with a full queue stops
//! the taking altogether, and the shards stop reading from their clients.
//!
//! Rooms below: `transport`, `interest`, `message`, `local`, `history` and `presence` are general
//! and name neither `embedded` nor `redis`, which implement the transport.
//!
//! Invariant: everything here runs on one thread, and a turn never waits. Only the sleep between
//! two turns does.

mod delivery_sample;
pub mod disconnect;
pub mod embedded;
pub mod envelope;
pub mod history;
mod interest;
pub mod local;
mod log_throttle;
mod memory;
pub mod message;
pub mod partition;
mod pending_publishes;
mod presence;
pub mod redis;
mod shard_queue;
mod topic_table;
pub mod transport;
pub mod wire;

use self::redis::RedisTransport;
use crate::backplane::history::begun::BegunHistories;
use crate::ids::{ShardId, TopicKind, TopicName};
use crate::link::channel::BackplaneEnd;
use crate::link::exchange::Exchange;
use crate::link::health::Health;
use crate::link::ledger::Account;
use crate::link::{Publish, Uplink};
use crate::metrics::BackplaneMirror;
use crate::plan::{BackplanePlan, Plan};
use crate::policy::revocations::Revocations;
use local::Local;
use std::future::poll_fn;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::unix::AsyncFd;
use tokio::time::{Interval, MissedTickBehavior, interval};
use transport::Transport;

/// Items taken from one shard before the next has its turn.
const ITEMS_PER_SHARD_AND_TURN: usize = 256;
/// Of these, requests whose answers may be long (`limits.recovery_bytes_max`): what they hold is seen
/// at the end of the turn.
const LONG_ANSWERS_PER_SHARD_AND_TURN: usize = 64;
/// Topics unsubscribed in one turn.
const EXPIRED_PER_TURN: usize = 1024;
/// Turns in a row without polling sockets and timers, while each of them was busy.
const TURNS_MAX: usize = 8;
/// How often gauges are published and deadlines checked.
const TICK: Duration = Duration::from_millis(100);
/// How soon a full channel is retried: its shard does not ring when it has made room.
const RETRY: Duration = Duration::from_millis(2);

/// Runs the backplane on this thread until it is stopped or every shard has ended.
///
/// # Panics
/// When the kernel refuses the descriptors an event loop needs: nothing could be delivered.
pub fn run(
    plan: Arc<Plan>,
    end: BackplaneEnd,
    mirror: Arc<BackplaneMirror>,
    health: Arc<Health>,
    account: Account,
    revocations: Arc<Exchange<Revocations>>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a thread that has just started gets its epoll descriptor");
    // Unconstrained: a turn has bounds of its own, and the order of sends must not depend on
    // tokio's budget.
    runtime.block_on(tokio::task::unconstrained(async {
        let backlog = plan.limits.downlink_backlog_bytes_max;
        match &plan.backplane {
            BackplanePlan::Memory => {
                let mut local = Local::new(plan.node, end, health, Duration::ZERO, backlog);
                local.watch_memory(account);
                local.show_revocations(revocations);
                let embedded = embedded::Embedded::new(plan.namespaces.clone(), &plan.limits);
                BackplaneLoop::new(local, embedded, mirror).run().await;
            }
            BackplanePlan::Redis(redis) => {
                let linger = Duration::from_millis(redis.linger_ms);
                let mut local = Local::new(plan.node, end, health, linger, backlog);
                local.begun = BegunHistories::new(
                    plan.limits.redis_histories_begun_max,
                    plan.limits.redis_keys_begun_max,
                );
                local.watch_memory(account);
                local.show_revocations(revocations);
                let transport =
                    RedisTransport::new(redis.clone(), plan.limits, plan.node, &plan.namespaces);
                BackplaneLoop::new(local, transport, mirror).run().await;
            }
        }
    }));
}

struct BackplaneLoop<T> {
    local: Local,
    transport: T,
    mirror: Arc<BackplaneMirror>,
    bell: AsyncFd<OwnedFd>,
    tick: Interval,
    retry: Interval,
    /// Index of the shard that is polled first in the next turn, so that none is favoured.
    first: usize,
}

/// Why the loop returns from [`BackplaneLoop::poll_turns`].
enum Pause {
    /// Other tasks of this thread (the drivers of connections) run next.
    Yield,
    /// Every shard has ended, or the window was stopped.
    End,
}

impl<T: Transport> BackplaneLoop<T> {
    fn new(local: Local, transport: T, mirror: Arc<BackplaneMirror>) -> BackplaneLoop<T> {
        let bell = listen(&local.end);
        let every = |period| {
            let mut interval = interval(period);
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
            interval
        };
        let (tick, retry) = (every(TICK), every(RETRY));
        BackplaneLoop { local, transport, mirror, bell, tick, retry, first: 0 }
    }

    async fn run(mut self) {
        let everybody = self.local.listen_for_everybody();
        self.transport.subscribe(everybody, &TopicName::all());
        while let Pause::Yield = poll_fn(|cx| self.poll_turns(cx)).await {
            tokio::task::yield_now().await;
        }
        self.publish_numbers(Instant::now());
    }

    /// Runs turns until there is nothing to do (`Pending`), or other tasks must run.
    fn poll_turns(&mut self, cx: &mut Context<'_>) -> Poll<Pause> {
        for _ in 0..TURNS_MAX {
            let now = Instant::now();
            // An interval that is ready registers no waker: it has to be polled once more.
            let has_ticked = self.tick.poll_tick(cx).is_ready();
            if has_ticked {
                self.publish_numbers(now);
                if self.local.are_shards_gone() && (self.transport.is_idle() || !self.local.is_up())
                {
                    return Poll::Ready(Pause::End);
                }
            }
            if self.local.end.is_stopped() {
                return Poll::Ready(Pause::End);
            }
            let is_busy = self.turn(cx, now) | has_ticked;
            if !is_busy && self.may_sleep() && self.poll_sleep(cx).is_pending() {
                return Poll::Pending;
            }
        }
        Poll::Ready(Pause::Yield)
    }

    /// Takes what is ready, polls the transport, rings the shards. Returns whether there was work.
    fn turn(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let mut is_busy = self.take_uplinks(now);
        for _ in 0..EXPIRED_PER_TURN {
            let Some(topic) = self.local.interest.take_expired(now) else { break };
            self.transport.unsubscribe(topic);
        }
        let was_up = self.local.is_up();
        is_busy |= self.transport.poll(cx, now, &mut self.local);
        self.local.flush();
        if self.local.is_up() != was_up {
            self.publish_numbers(now); // readiness and its reason change together
        }
        is_busy
    }

    fn take_uplinks(&mut self, now: Instant) -> bool {
        let shards = self.local.end.shards.len();
        let mut taken = 0;
        for step in 0..shards {
            taken += self.take_from_shard((self.first + step) % shards, now);
        }
        self.first = (self.first + 1) % shards.max(1);
        for _ in 0..ITEMS_PER_SHARD_AND_TURN {
            if !self.transport.has_room() {
                break;
            }
            let Some(item) = self.local.end.try_recv_ops() else { break };
            match item {
                Uplink::Publish(publish) => self.publish(publish, now),
                Uplink::History(ask) => self.transport.history(ask, now, &mut self.local),
                Uplink::Presence(ask) => self.transport.presence(ask, now),
                Uplink::Disconnect(ask) => self.transport.disconnect(ask, now, &mut self.local),
                Uplink::Revoke(order) => self.transport.revoke(order, now, &mut self.local),
                // Only shards have members.
                Uplink::Join { .. } | Uplink::Leave { .. } | Uplink::Settle => {}
                Uplink::Recover(_) | Uplink::PresenceUpdate(_) | Uplink::Acknowledge { .. } => {}
            }
            taken += 1;
        }
        taken > 0
    }

    fn take_from_shard(&mut self, index: usize, now: Instant) -> usize {
        let shard = self.local.end.shards[index].id;
        let (mut taken, mut long) = (0, 0);
        while taken < ITEMS_PER_SHARD_AND_TURN
            && long < LONG_ANSWERS_PER_SHARD_AND_TURN
            && self.takes(shard)
        {
            let Some(item) = self.local.end.shards[index].try_recv() else { break };
            long += usize::from(has_long_answer(&item));
            self.handle_uplink(shard, item, now);
            taken += 1;
        }
        if taken > 0 {
            self.local.end.shards[index].made_room();
        }
        taken
    }

    fn handle_uplink(&mut self, shard: ShardId, item: Uplink, now: Instant) {
        match item {
            Uplink::Join { topic, at, encoding } => {
                if let Some(key) = self.local.join(topic.clone(), shard, encoding, at) {
                    self.transport.subscribe(key, &topic);
                }
            }
            Uplink::Leave { topic, at } => self.local.leave(&topic, shard, at, now),
            Uplink::Publish(publish) => self.publish(publish, now),
            Uplink::Recover(ask) => self.transport.recover(shard, ask, now, &mut self.local),
            Uplink::History(ask) => self.transport.history(ask, now, &mut self.local),
            Uplink::PresenceUpdate(attend) => self.transport.update_presence(*attend, now),
            Uplink::Presence(ask) => self.transport.presence(ask, now),
            Uplink::Settle => self.local.settle(shard),
            Uplink::Disconnect(_) | Uplink::Revoke(_) => {} // Only the ops thread asks for it.
            Uplink::Acknowledge { topic, up_to } => {
                self.transport.acknowledge(topic, up_to, now, &mut self.local);
            }
        }
    }

    fn publish(&mut self, mut publish: Publish, now: Instant) {
        self.local.begin_publish(&mut publish);
        self.local.sample_publish(&publish, now);
        self.transport.publish(publish, now, &mut self.local);
    }

    fn takes(&self, shard: ShardId) -> bool {
        self.transport.has_room() && self.local.accepts_from(shard)
    }

    fn may_sleep(&self) -> bool {
        self.local.end.may_sleep(|shard| self.takes(shard), self.transport.has_room())
    }

    /// Waits for the bell and, while a shard's channel is full, for the retry interval.
    fn poll_sleep(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Poll::Ready(ready) = self.bell.poll_read_ready(cx) {
            self.local.end.bell().clear();
            ready.expect("the event loop lives as long as this loop").clear_ready();
            return Poll::Ready(());
        }
        if self.local.is_waiting() && self.retry.poll_tick(cx).is_ready() {
            return Poll::Ready(());
        }
        Poll::Pending
    }

    fn publish_numbers(&mut self, now: Instant) {
        let backlog_bytes = self.local.backlog_bytes();
        let counters = &mut self.local.counters;
        counters.backlog_bytes = backlog_bytes;
        counters.topics = self.local.interest.count() as u64;
        counters.subscriptions = self.local.interest.confirmed() as u64;
        self.transport.measure(now, &mut self.local);
        self.local.tick_memory(now);
        self.mirror.publish(&self.local.counters);
        if let Some(snapshot) = self.transport.take_snapshot() {
            self.mirror.show(snapshot);
        }
    }
}

fn has_long_answer(item: &Uplink) -> bool {
    match item {
        Uplink::Recover(ask) => {
            ask.since.is_some() || matches!(ask.topic.kind(), TopicKind::User(_))
        }
        Uplink::History(_) => true,
        _ => false,
    }
}

/// The bell as tokio waits for it: a duplicate descriptor of the same eventfd.
#[allow(deprecated)] // deprecated for descriptors that close too early; this one is owned
fn listen(end: &BackplaneEnd) -> AsyncFd<OwnedFd> {
    let own = end.bell().as_fd().try_clone_to_owned();
    let own = own.expect("a thread that has just started gets a descriptor");
    AsyncFd::with_interest(own, tokio::io::Interest::READABLE).expect("an eventfd can be polled")
}
