//! The shard's thread: moves bytes between sockets and the [`Shard`], decides nothing.
//!
//! One monoio runtime a shard, built on its own thread, and a few tasks in it, however many
//! connections there are:
//!
//! * the acceptor waits for the listener,
//! * the event loop waits for the shard's epoll set, of which every connection is a member: an idle
//!   connection costs no task, no future and no buffer, only its slot,
//! * the bell waits for the eventfd that the backplane rings,
//! * the clock ticks; and two more tasks read on and write on when a visit leaves somebody unread, or
//!   more to write than fits one batch.
//!
//! They all reach the shard through [`door`], whose every visit ends with a drain. Writes leave in
//! batches through a second ring ([`send`]): one system call for up to `send_batch_max` sockets.
//!
//! Invariant: only `door.rs` holds a `Shard`; only this room says `monoio`.

mod accept;
mod door;
mod epoll;
mod handshake;
mod runtime;
mod send;
mod site;
mod socket;
mod tasks;

use crate::auth::Gate;
use crate::link::channel::ShardEnd;
use crate::link::health::Health;
use crate::metrics::ShardMirror;
use crate::plan::{Plan, ShardPlan};
use crate::shard::{Shard, ShardConfig};
use std::io;
use std::sync::Arc;

/// What a shard's thread is given.
pub struct ShardSetup {
    /// What the configuration means.
    pub plan: Arc<Plan>,
    /// This shard.
    pub shard: ShardPlan,
    /// Its ends of the window.
    pub end: ShardEnd,
    /// Who may come in.
    pub gate: Arc<Gate>,
    /// Where its counters go.
    pub mirror: Arc<ShardMirror>,
    /// Where it says that it listens.
    pub health: Arc<Health>,
}

/// Runs one shard on the calling thread, until it has been drained. The thread is pinned and has its
/// own file table by now, if the plan says so: that must be before anything is opened here.
///
/// # Errors
/// What keeps it from starting: a kernel without io_uring, a port that
/// cannot be bound. The message names the likely cause.
pub fn run_shard(setup: ShardSetup) -> io::Result<()> {
    let mut runtime = runtime::build()?;
    let listener = accept::listen(&setup.plan)?;
    let (bell, health) = (setup.end.bell().clone(), setup.health.clone());
    let shard = new_shard(&setup);
    let room = door::Room::new(setup, shard)?;
    runtime.block_on(async move {
        runtime::self_test().await?;
        tasks::run(room, listener, bell, &health).await
    })
}

fn new_shard(setup: &ShardSetup) -> Shard {
    Shard::new(ShardConfig {
        id: setup.shard.id,
        node: setup.plan.node,
        node_name: setup.plan.node_name.clone(),
        limits: setup.plan.limits,
    })
}
