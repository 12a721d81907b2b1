//! What is known of revoked tokens, and how far the walk over connections is that compares them with
//! it.

use crate::policy::revocations::Revocations;
use std::sync::Arc;

/// See the module.
#[derive(Debug, Default)]
pub(in crate::shard) struct Revoked {
    pub(in crate::shard) table: Arc<Revocations>,
    /// The next place of the walk.
    pub(in crate::shard) at: usize,
    /// Places that are still to be visited. 0: there is no walk.
    pub(in crate::shard) left: usize,
}
