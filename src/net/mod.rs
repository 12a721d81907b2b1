//! The shard's thread: moves bytes between sockets and the [`Shard`], decides nothing.
//!
//! One monoio runtime a shard, built on its own thread, and a few tasks in it, however many
//! connections there are:
//!
//! * the acceptor waits for the listener,
//! * the event loop waits for the shard's epoll set, of which every connection is a member: an idle
//!   connection costs no task, no future and no buffer, only its slot,
//! * the bell waits for the eventfd that the backplane rings,
//! * the clock ticks; and three more tasks read on, write on and ring the backplane when a visit
//!   leaves an unread socket, more to write than fits one batch, or the bell to be rung later.
//!
//! They all reach the shard through [`reactor`], whose every visit ends with a drain. Writes leave in
//! batches through a second ring ([`io::send`]): one system call for up to `send_batch_max` sockets.
//!
//! Invariant: only `reactor.rs` holds a `Shard`; only this room says `monoio`.

mod accept;
mod io;
mod key_waits;
mod memory;
mod reactor;
mod read_queue;
mod tasks;
pub mod upgrade;

use crate::auth::{AnonymousSecret, Authenticator, FetchedKeys};
use crate::link::calls::CallSender;
use crate::link::channel::ShardEnd;
use crate::link::exchange::ExchangeReader;
use crate::link::health::Health;
use crate::link::hooks::HookSender;
use crate::link::key_requests::KeyRequests;
use crate::link::ledger::Account;
use crate::link::load_table::LoadTable;
use crate::link::shares::{ShareLimits, Shares};
use crate::metrics::ShardMirror;
use crate::plan::{Plan, ShardPlan};
use crate::policy::revocations::Revocations;
use crate::shard::{Shard, ShardConfig};
use accept::steering::Steering;

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Instant;

/// What a shard's thread is given.
pub struct ShardSetup {
    /// What the configuration means.
    pub plan: Arc<Plan>,
    /// The number of this shard, and the core of its thread.
    pub shard: ShardPlan,
    /// Its ends of the channels to and from the backplane, with its bell.
    pub end: ShardEnd,
    /// The way to the ops thread, for HTTP requests.
    pub calls: CallSender,
    /// The way to the thread that asks hooks.
    pub hooks: HookSender,
    /// Which clients are admitted.
    pub authenticator: Arc<Authenticator>,
    /// Where the plan of a configuration that was reloaded comes from.
    pub reloads: ExchangeReader<Plan>,
    /// Which tokens are revoked.
    pub revocations: ExchangeReader<Revocations>,
    /// Keys that were read from `auth.jwks_url`, and whom to ask for others.
    pub keys: (ExchangeReader<FetchedKeys>, Arc<KeyRequests>),
    /// What the names of clients without a token are made with.
    pub anonymous_secret: AnonymousSecret,
    /// Where its counters go.
    pub mirror: Arc<ShardMirror>,
    /// Where it reports that it listens.
    pub health: Arc<Health>,
    /// What it keeps alive, against the node's memory bound.
    pub account: Account,
    /// How many connections each shard has.
    pub load_table: Arc<LoadTable>,
    /// How much one client address and one user have.
    pub shares: Arc<Shares>,
}

/// Runs one shard on the calling thread, until it has been drained. The thread is pinned and has its
/// own file table by now, if the plan says so: that must be before anything is opened here.
///
/// # Errors
/// What keeps it from starting: a kernel without io_uring, a port that
/// cannot be bound. The message names the likely cause.
pub fn run_shard(setup: ShardSetup) -> std::io::Result<()> {
    accept::steering::check_core(&setup.plan, &setup.shard)?;
    let mut runtime = io::runtime::build()?;
    // A shard's place in the kernel's group of listeners has to be its number.
    setup.load_table.wait_for_bind_order(setup.shard.id);
    let listener = accept::listen(&setup.plan)?;
    let load_table = setup.load_table.clone();
    let steering =
        Steering::begin(&setup.plan, setup.shard.id, load_table.clone(), listener.as_raw_fd());
    load_table.pass_bind_turn(setup.shard.id);
    let lingering = accept::LingeringSockets::new(&setup.plan, Instant::now());
    let (bell, health) = (setup.end.bell().clone(), setup.health.clone());
    let shard = new_shard(&setup);
    let reactor = reactor::Reactor::new(setup, shard, steering)?;
    runtime.block_on(async move {
        io::runtime::self_test().await?;
        tasks::run(reactor, lingering, listener, bell, &health).await
    })
}

/// The tables of what one client address and one user have, for all shards of a node.
pub fn shares(plan: &Plan) -> Shares {
    let limits = &plan.limits;
    let limits = ShareLimits {
        connections_per_address_max: limits.connections_per_address_max,
        handshakes_per_address_max: limits.handshakes_per_address_max,
        connects_per_address_per_s_max: limits.connects_per_address_per_s_max,
        connects_per_address_burst_max: limits.connects_per_address_burst_max,
        connections_per_user_max: limits.connections_per_user_max,
    };
    Shares::new(limits, plan.listen_direct || !plan.trusted_proxies.is_empty())
}

fn new_shard(setup: &ShardSetup) -> Shard {
    let mut shard = Shard::new(ShardConfig {
        id: setup.shard.id,
        node: setup.plan.node,
        node_name: setup.plan.node_name.clone(),
        limits: setup.plan.limits,
        namespaces: setup.plan.namespaces.clone(),
        anonymous_secret: setup.anonymous_secret,
    });
    shard.handle_expiry_notice(setup.plan.auth.expiry_notice_s);
    shard
}
