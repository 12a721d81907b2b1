//! From the first ready moment to the end: signals, the drain, the exit code.
//!
//! The first SIGTERM or SIGINT makes the node not ready and makes every shard close its
//! connections, spread over `drain_ms`; it ends when the shards have, and the backplane after them.
//! The second one ends the process on the spot. SIGHUP, until then, reloads the configuration.
//!
//! Invariant: runs on the main thread, which does nothing else; a few wakes a second are all.

use super::error::StartError;
use super::reload::Reloader;
use crate::ids::ShardId;
use crate::link::Downlink;
use crate::link::channel::OpsEnd;
use crate::link::health::{Health, NotReady};
use crate::plan::Plan;
use crate::terminal;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;
use socket2::Socket;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A running node, as main holds it.
pub struct RunningNode {
    /// The plan that holds, and how it changes.
    pub reloader: Reloader,
    /// Readiness, shared with all threads; set to draining here.
    pub health: Arc<Health>,
    /// The way to the shards.
    pub ops: OpsEnd,
    /// The shards' threads, in the order of their ids.
    pub shards: Vec<JoinHandle<()>>,
    /// The backplane's thread. It ends by itself after the last shard, when no publish waits.
    pub backplane: JoinHandle<()>,
    /// The public port's number, held until the process ends.
    pub held: Socket,
}

/// Poll interval of the main thread while it waits for something that has no signal.
const GLANCE: Duration = Duration::from_millis(5);

/// Catches SIGTERM, SIGINT and SIGHUP from here on. Before the first thread, so that none is missed.
/// SIGQUIT, SIGUSR1 and SIGUSR2, by which other servers print or rotate something, would kill this
/// one: they do nothing.
pub fn signals() -> Result<Signals, StartError> {
    Signals::new([SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2]).map_err(StartError::machine)
}

/// Whether a signal ends the node. One that does not is logged.
fn is_ending(signal: i32) -> bool {
    let is_ending = matches!(signal, SIGTERM | SIGINT);
    if !is_ending {
        tracing::info!(signal, "this signal does nothing now; SIGTERM ends the node");
    }
    is_ending
}

/// Carries a signal out that comes while the node runs. Whether it ends the node.
fn handle(signal: i32, reloader: &mut Reloader) -> bool {
    if signal == SIGHUP {
        reloader.reload();
        return false;
    }
    is_ending(signal)
}

/// Logs when the node listens, waits for a signal, drains; returns the exit code.
pub fn until_the_end(mut node: RunningNode, mut signals: Signals) -> ExitCode {
    let Ok(early_signal) = announce(&mut node, &mut signals) else {
        return ExitCode::FAILURE;
    };
    let reloader = &mut node.reloader;
    let mut later = || signals.forever().find(|signal| handle(*signal, reloader));
    let signal = early_signal.or_else(&mut later);
    let drain_ms = node.reloader.plan.get().drain_ms;
    tracing::info!(signal, drain_ms, "draining; a second signal ends at once");
    drain(node, &mut signals)
}

/// Some shard did not begin to listen.
struct Stuck;

/// How long shards may take to listen. They need milliseconds; a thousand of them a second or two.
const START_MAX: Duration = Duration::from_secs(30);

/// Waits until all shards listen and says so on stdout. Answers a signal that came first.
fn announce(node: &mut RunningNode, signals: &mut Signals) -> Result<Option<i32>, Stuck> {
    let plan = node.reloader.plan.get();
    let shards = plan.shards.len() as u16;
    let deadline = Instant::now() + START_MAX;
    while let Err(NotReady::Starting { listening }) = node.health.ready(shards) {
        let reloader = &mut node.reloader;
        if let Some(signal) = signals.pending().find(|signal| handle(*signal, reloader)) {
            return Ok(Some(signal));
        }
        if Instant::now() > deadline {
            tracing::error!(
                "{listening} of {shards} shards listen after {START_MAX:?}. Likely cause: io_uring \
                 takes requests and completes none. See tuning/README.md"
            );
            return Err(Stuck);
        }
        std::thread::sleep(GLANCE);
    }
    let (listen, ops) = (plan.listen, plan.ops_listen);
    tracing::info!(%listen, ops_listen = %ops, shards, "listening");
    terminal::announce(first_screen(&plan));
    Ok(None)
}

/// What is printed when the node listens. The first line is for programs, which read the ports from
/// it; the second one for people.
fn first_screen(plan: &Plan) -> String {
    let (listen, ops, api) = (plan.listen, plan.ops_listen, plan.api_url());
    let page = plan.page_url().map(|page| format!("page {page}, ")).unwrap_or_default();
    format!(
        "campanile: listening on ws://{listen}/ws, ops on http://{ops}\ncampanile: {page}API {api}"
    )
}

fn drain(node: RunningNode, signals: &mut Signals) -> ExitCode {
    let RunningNode { reloader, health, ops, shards, backplane, held: _held } = node;
    let plan = reloader.plan.get();
    health.set_draining();
    let over_ms = plan.drain_ms;
    let patience = Duration::from_millis(over_ms + 2 * plan.limits.close_timeout_ms);
    let deadline = Instant::now() + patience;
    let mut unnotified: Vec<ShardId> = plan.shards.iter().map(|shard| shard.id).collect();
    loop {
        unnotified.retain(|shard| ops.try_send(*shard, Downlink::Drain { over_ms }).is_err());
        let left = shards.iter().filter(|thread| !thread.is_finished()).count();
        let has_sent_all = backplane.is_finished();
        if left == 0 && has_sent_all {
            tracing::info!("drained");
            return ExitCode::SUCCESS;
        }
        if Instant::now() >= deadline {
            tracing::warn!(
                shards = left,
                has_sent_all,
                "the drain did not finish in time; ending anyway"
            );
            return ExitCode::SUCCESS;
        }
        if let Some(signal) = signals.pending().find(|signal| is_ending(*signal)) {
            tracing::warn!(signal, "a second signal; ending at once");
            return ExitCode::from(128 + signal as u8);
        }
        std::thread::sleep(GLANCE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, ConfigOrigin};
    use crate::ids::NodeId;
    use crate::link::channel::{ShardEnd, window};
    use crate::link::exchange::Exchange;
    use crate::node::log::LogLevel;
    use crate::plan::{Machine, resolve};
    use signal_hook::low_level::raise;
    use std::sync::atomic::{AtomicU8, Ordering};

    const PATIENCE: Duration = Duration::from_secs(20);

    /// A node of one shard, whose channel holds one item. Let go once, the shard ends; twice, and so
    /// does the backplane.
    fn running_node(let_go: &Arc<AtomicU8>, close_timeout_ms: u64) -> (RunningNode, ShardEnd) {
        let machine = Machine { node: NodeId(1), cores: vec![0], nofile: 9999, memory_bytes: None };
        let mut plan = resolve(&Config::default(), &machine).unwrap().plan;
        plan.drain_ms = 0;
        plan.limits.close_timeout_ms = close_timeout_ms;
        let (mut ends, _, ops) = window(1, 1, 1).unwrap();
        let thread = |number: u8| {
            let let_go = let_go.clone();
            std::thread::spawn(move || {
                while let_go.load(Ordering::Relaxed) < number {
                    std::thread::yield_now();
                }
            })
        };
        let (shard, backplane) = (thread(1), thread(2));
        let held = Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        let reloader = Reloader {
            origin: ConfigOrigin::default(),
            config: Config::default(),
            machine,
            plan: Arc::new(Exchange::new(Arc::new(plan))),
            log_level: LogLevel::none(),
            mirror: Arc::default(),
        };
        let (shards, health) = (vec![shard], Arc::new(Health::default()));
        let node = RunningNode { reloader, health, ops, shards, backplane, held };
        (node, ends.remove(0))
    }

    fn until(mut is_so: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_so() {
            assert!(Instant::now() < deadline, "it never came");
            std::thread::yield_now();
        }
    }

    /// One test, because signals are of the whole process.
    #[test]
    fn the_first_signal_drains_the_second_one_ends_at_once() {
        // A shard that drains: the process ends well when it has.
        let let_go = Arc::new(AtomicU8::new(0));
        let (node, end) = running_node(&let_go, 600_000);
        let (health, ops) = (node.health.clone(), node.ops.clone());
        health.shard_listens();
        let caught = signals().unwrap();
        // A full channel: the drain must be sent as soon as there is room.
        assert!(ops.try_send(ShardId(0), Downlink::Lost { to: no_topic(), count: 1 }).is_ok());
        let main = std::thread::spawn(move || until_the_end(node, caught));
        raise(SIGTERM).unwrap();
        until(|| health.ready(1) == Err(NotReady::Draining));
        assert!(matches!(end.try_recv(), Some(Downlink::Lost { .. })));
        until(|| matches!(end.try_recv(), Some(Downlink::Drain { over_ms: 0 })));
        let_go.store(1, Ordering::Relaxed);
        // The shard's last publishes may still be on their way out of the backplane.
        std::thread::sleep(10 * GLANCE);
        assert!(!main.is_finished());
        let_go.store(2, Ordering::Relaxed);
        assert_eq!(main.join().unwrap(), ExitCode::SUCCESS);

        // A shard that does not finish, and a second signal. The first one comes before the node
        // listens.
        let let_go = Arc::new(AtomicU8::new(0));
        let (node, end) = running_node(&let_go, 600_000);
        let caught = signals().unwrap();
        let main = std::thread::spawn(move || until_the_end(node, caught));
        raise(SIGTERM).unwrap();
        until(|| matches!(end.try_recv(), Some(Downlink::Drain { .. })));
        raise(SIGINT).unwrap();
        assert_eq!(main.join().unwrap(), ExitCode::from(130));
        let_go.store(2, Ordering::Relaxed);

        // A shard that does not finish: the drain has a deadline.
        let let_go = Arc::new(AtomicU8::new(0));
        let (node, _end) = running_node(&let_go, 1);
        let caught = signals().unwrap();
        let main = std::thread::spawn(move || until_the_end(node, caught));
        raise(SIGINT).unwrap();
        assert_eq!(main.join().unwrap(), ExitCode::SUCCESS);
        let_go.store(2, Ordering::Relaxed);
    }

    fn no_topic() -> crate::ids::TopicId {
        crate::ids::TopicId(crate::ids::SlotId { index: 0, generation: 0 })
    }
}
