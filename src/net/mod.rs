//! Placeholder: the shard's room brings its own file.

use crate::auth::Gate;
use crate::link::channel::ShardEnd;
use crate::link::health::Health;
use crate::metrics::ShardMirror;
use crate::plan::{Plan, ShardPlan};
use std::sync::Arc;

/// What a shard thread is given.
pub struct ShardSetup {
    /// The plan of the node.
    pub plan: Arc<Plan>,
    /// This shard's part of it.
    pub shard: ShardPlan,
    /// Its end of the window.
    pub end: ShardEnd,
    /// Who may come in.
    pub gate: Arc<Gate>,
    /// Where it copies its numbers to.
    pub mirror: Arc<ShardMirror>,
    /// Where it says that it listens.
    pub health: Arc<Health>,
}

/// Runs a shard until it is drained.
pub fn run_shard(setup: ShardSetup) -> std::io::Result<()> {
    setup.health.shard_listens();
    loop {
        if let Some(crate::link::Downlink::Drain { .. }) = setup.end.try_recv() {
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}
