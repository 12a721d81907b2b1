//! The ops port: the HTTP API for operators and other services, metrics, health.
//!
//! One thread, one tokio runtime, axum. It reads mirrors and asks shards through their channels, so a
//! request costs a shard one item of its channel and never blocks it.
//!
//! Invariant: nothing here is on a delivery's way, and whatever a client of this port does, it
//! holds a bounded number of descriptors and bytes (`listener.rs`, the body limits below).

mod ask;
mod caller;
mod calls;
mod connections;
mod error;
mod extract;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod guard;
mod history;
mod kernel_memory;
mod listener;
mod metrics;
mod presence;
mod publish;
mod redis_stats;
mod revocations;
mod rooms;
mod router;
mod stats;
mod users;

use crate::auth::FetchedKeys;
use crate::hooks::jwks::{self, JwksSetup};
use crate::link::calls::CallReceiver;
use crate::link::channel::OpsEnd;
use crate::link::exchange::Exchange;
use crate::link::health::Health;
use crate::link::key_requests::KeyRequests;
use crate::link::ledger::Ledger;
use crate::metrics::{
    AccessCounters, AccessMirror, BackplaneMirror, HookMirror, JwksMirror, OpsMirror, ReloadMirror,
    SchedulingMirror, ShardMirror,
};
use crate::plan::Plan;
use socket2::SockRef;
use std::io;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::Semaphore;
use tokio::task::LocalSet;

/// What the ops thread is given.
pub struct OpsSetup {
    /// What holds: a reload of the configuration changes it.
    pub plan: Arc<Exchange<Plan>>,
    /// What is counted of reloads.
    pub reloads: Arc<ReloadMirror>,
    /// The ops port, bound and listening.
    pub listener: std::net::TcpListener,
    /// Channels to shards and backplane.
    pub end: OpsEnd,
    /// HTTP requests of the public port.
    pub calls: CallReceiver,
    /// The shards' numbers, in the order of their ids.
    pub shards: Vec<Arc<ShardMirror>>,
    /// The backplane's numbers, at most one tick old.
    pub backplane: Arc<BackplaneMirror>,
    /// What is counted of questions to hooks.
    pub hooks: Arc<HookMirror>,
    /// Readiness, written by shards, backplane and main.
    pub health: Arc<Health>,
    /// What is counted of how threads are scheduled.
    pub scheduled: Arc<SchedulingMirror>,
    /// Where bodies of requests are counted.
    pub ledger: Arc<Ledger>,
    /// Where keys of `auth.jwks_url` go, and who asks for them.
    pub keys: (Arc<Exchange<FetchedKeys>>, Arc<KeyRequests>),
}

/// State of all handlers; immutable but for the numbers that other threads write.
struct Ops {
    plan: Arc<Exchange<Plan>>,
    reloads: Arc<ReloadMirror>,
    end: OpsEnd,
    shards: Vec<Arc<ShardMirror>>,
    backplane: Arc<BackplaneMirror>,
    hooks: Arc<HookMirror>,
    health: Arc<Health>,
    scheduled: Arc<SchedulingMirror>,
    ledger: Arc<Ledger>,
    /// The numbers of this port.
    own: Arc<OpsMirror>,
    /// The numbers of the API's callers.
    access: AccessMirror,
    /// The numbers of `auth.jwks_url`.
    jwks: Arc<JwksMirror>,
    started: Instant,
    /// Permits for requests of `/v1` (`guard::AT_A_TIME_MAX`).
    turns: Semaphore,
}

impl Ops {
    /// The plan that holds now.
    fn plan(&self) -> Arc<Plan> {
        self.plan.get()
    }

    /// Counts a request that is refused; answers how many there were. Only the ops thread counts here.
    fn count_refused(&self, counter: impl FnOnce(&mut AccessCounters) -> &mut u64) -> u64 {
        let mut counters = self.access.read();
        let counter = counter(&mut counters);
        *counter += 1;
        let count = *counter;
        self.access.publish(&counters);
        count
    }
}

/// Serves the operators' port until the process ends.
pub fn run(setup: OpsSetup) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let OpsSetup { plan, reloads, listener, end, calls, shards, backplane, hooks, health, .. } =
        setup;
    let (scheduled, ledger, keys) = (setup.scheduled, setup.ledger, setup.keys);
    let started = Instant::now();
    let own = Arc::<OpsMirror>::default();
    let turns = Semaphore::new(guard::AT_A_TIME_MAX);
    let counted = own.clone();
    let access = AccessMirror::default();
    let jwks = Arc::<JwksMirror>::default();
    let jwks_setup = plan.get().auth.jwks.clone().map(|plan| JwksSetup {
        plan,
        keys: keys.0,
        requests: keys.1,
        health: health.clone(),
        mirror: jwks.clone(),
        ledger: ledger.clone(),
    });
    let ops = Ops {
        plan,
        reloads,
        end,
        shards,
        backplane,
        hooks,
        health,
        scheduled,
        ledger,
        own,
        access,
        jwks,
        started,
        turns,
    };
    let ops = Arc::new(ops);
    listener.set_nonblocking(true)?;
    SockRef::from(&listener).listen(listener::BACKLOG)?;
    runtime.block_on(LocalSet::new().run_until(async move {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let router = router::router(ops.clone());
        tokio::task::spawn_local(kernel_memory::watch());
        if let Some(setup) = jwks_setup {
            tokio::task::spawn_local(jwks::keep(setup));
        }
        tokio::task::spawn_local(calls::serve(calls, router.clone(), ops));
        listener::serve(listener, router, counted).await
    }))
}

#[cfg(test)]
mod tests;
