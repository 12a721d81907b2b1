//! Placeholder: the backplane's room brings its own file.

use crate::link::channel::BackplaneEnd;
use crate::link::health::Health;
use crate::metrics::BackplaneMirror;
use crate::plan::Plan;
use std::sync::Arc;

/// Runs the backplane until the process ends.
pub fn run(
    _plan: Arc<Plan>,
    _end: BackplaneEnd,
    _mirror: Arc<BackplaneMirror>,
    health: Arc<Health>,
) -> std::io::Result<()> {
    health.set_backplane_up(true);
    loop {
        std::thread::park();
    }
}
