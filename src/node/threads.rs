//! How threads of the process start and what happens when one fails.
//!
//! Invariant: a thread that ends or panics outside of a drain ends the process. A node that has lost a
//! shard must not pass health checks.

use super::error::StartError;
use crate::link::health::{Health, NotReady};
use crate::plan::{Plan, Scheduling, ShardPlan};
use crate::{sys, terminal};
use std::backtrace::{Backtrace, BacktraceStatus};
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

/// A panic anywhere ends the process, in every build, after the message and with a core dump. std's
/// own hook would block for ever on a standard error that is a full pipe; this one waits a second.
pub fn abort_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("without a name");
        let trace = Backtrace::capture();
        let trace = match trace.status() {
            BacktraceStatus::Captured => trace.to_string(),
            _ => "RUST_BACKTRACE=1 shows the call stack\n".to_owned(),
        };
        terminal::print_error(&format!(
            "\nthread '{name}' {panic}\n{trace}campanile: this is a bug; the process ends, so that no \
             half of it looks alive\n"
        ));
        std::process::abort();
    }));
}

/// What a shard's thread does first: its core, and its table of open files.
pub fn settle_shard(plan: &Plan, shard: &ShardPlan) -> io::Result<()> {
    settle(plan.scheduling, shard.core.as_slice());
    if plan.private_fd_tables {
        sys::unshare_files()?;
    }
    Ok(())
}

/// Pins the calling thread and sets its scheduling policy. Where that is not permitted, it costs
/// speed, not correctness.
pub fn settle(scheduling: Scheduling, cores: &[usize]) {
    if let Err(error) = sys::pin_to_cores(cores) {
        tracing::warn!(?cores, %error, "a thread could not be pinned");
    }
    // `Auto` begins with the kernel's default; see `scheduling`.
    if scheduling == Scheduling::Batch
        && let Err(error) = sys::schedule_in_batches(0, true)
    {
        tracing::warn!(%error, "a thread could not be scheduled in batches");
    }
}

/// What the backplane's thread does first: the same, with a higher priority than the shards: with
/// fewer cores than threads the one that all shards wait for must not wait for them.
pub fn settle_backplane(plan: &Plan) {
    settle(plan.scheduling, &plan.other_cores);
    if plan.backplane_priority > 0
        && let Err(error) = sys::go_first(plan.backplane_priority)
    {
        tracing::debug!(%error, "backplane_priority could not be set: the backplane's thread has the shards' priority");
    }
}

/// Starts a thread whose end, unless the node drains, is the end of the process.
pub fn thread(
    name: String,
    health: &Arc<Health>,
    run: impl FnOnce() -> io::Result<()> + Send + 'static,
) -> Result<JoinHandle<()>, StartError> {
    let health = health.clone();
    let builder = std::thread::Builder::new().name(name.clone());
    let spawned = builder.spawn({
        let name = name.clone();
        move || match run() {
            Ok(()) if health.ready(0) == Err(NotReady::Draining) => {}
            Ok(()) => end_loudly(&name, "it ended although the node was not draining"),
            Err(error) => end_loudly(&name, &error.to_string()),
        }
    });
    spawned.map_err(|error| StartError::Machine(format!("thread {name} did not start: {error}")))
}

fn end_loudly(thread: &str, why: &str) {
    tracing::error!(thread, why, "a thread has failed; the process ends");
    terminal::print_error(&format!("campanile: {thread}: {why}\n"));
    std::process::exit(1);
}
