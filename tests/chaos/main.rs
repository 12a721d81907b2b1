//! Chaos: real Redis processes, real nodes, people who come and go, and faults out of a hat. A checker
//! that knows nothing of the server says whether anything was lost without a word (`checker.rs`).
//!
//! `cargo test --test chaos` plays a short run on each deployment. `tests/run.sh chaos` plays a
//! long one. The environment chooses: `CHAOS_SEED`, `CHAOS_SECONDS`, `CHAOS_ON=sentinel`,
//! `CHAOS_FAULTS=kill,freeze`, `CHAOS_COUNT=100` (so many faults, one after the other),
//! `CHAOS_DURABILITY=replicated`, `CHAOS_MIN_REPLICAS=0`, `CHAOS_HASTY=1` (Sentinels that demote an
//! old master at once, for many failovers), and `CHAOS_STRICT=1` (what was acknowledged and told as
//! lost is a violation, too).
//!
//! A seed says which faults come and who does what next, and whether nodes let go at once of rooms
//! that nobody on them is in (even ones); when it happens is the machine's affair, so the same seed
//! is not the same run. Nothing here waits by sleeping for a state, and the one limit in time is
//! the contract of `/readyz`, to which the machine's own delays are added.

#[path = "../common/client.rs"]
mod client;
#[path = "../common/cluster.rs"]
mod cluster;
#[path = "../common/http.rs"]
mod http;
#[path = "../common/node.rs"]
mod node;
#[path = "../common/proxy.rs"]
mod proxy;
#[path = "../common/redis.rs"]
mod redis;
#[path = "../sim/rng.rs"]
mod rng;
#[path = "../common/sentinel.rs"]
mod sentinel;

mod checker;
mod clients;
mod deployments;
mod reachability;
mod run;
mod run_state;
mod system;
mod ws_client;

#[path = "checker_tests.rs"]
mod checker_tests;

use run::RunOptions;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;
use system::Kind;

/// The deployments that the server can use. Those that are missing here suffer without nodes of ours:
/// each fault begins, ends, and Redis is whole again (`deployments.rs`).
const READY: &[&str] = &["standalone", "several", "sentinel", "cluster"];

/// How long a run for everybody is.
const SHORT: Duration = Duration::from_secs(20);

/// One run at a time: two of them would measure each other.
struct Turn;

static TAKEN: AtomicBool = AtomicBool::new(false);

impl Turn {
    fn wait() -> Turn {
        while TAKEN.swap(true, SeqCst) {
            std::thread::sleep(Duration::from_millis(50));
        }
        Turn
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        TAKEN.store(false, SeqCst);
    }
}

fn run(kind: Kind) {
    let chosen = std::env::var("CHAOS_ON").ok();
    let is_chosen = chosen.as_ref().is_none_or(|names| names.split(',').any(|n| n == kind.name()));
    if !is_chosen {
        return;
    }
    let _turn = Turn::wait();
    if READY.contains(&kind.name()) {
        run::run(&RunOptions::from_env(kind, SHORT));
    } else {
        assert!(chosen.is_none(), "the server cannot use {} yet (READY)", kind.name());
        deployments::run_each_fault(kind);
    }
}

#[test]
fn nothing_is_lost_silently_on_one_server() {
    run(Kind::Standalone);
}

#[test]
fn nothing_is_lost_silently_on_several_servers() {
    run(Kind::Several);
}

#[test]
fn nothing_is_lost_silently_behind_sentinels() {
    run(Kind::Sentinel);
}

#[test]
fn nothing_is_lost_silently_on_a_cluster() {
    run(Kind::Cluster);
}
