//! What all servers share, and what each of them is assigned.

use crate::backplane::redis::names::Names;
use crate::plan::RedisPlan;
use crate::policy::limits::Limits;
use crate::policy::namespaces::Namespaces;
use std::sync::Arc;

/// What holds for all servers.
pub struct SharedContext {
    /// How to deal with them.
    pub plan: RedisPlan,
    /// Every limit.
    pub limits: Limits,
    /// What channels and keys are called.
    pub names: Names,
    /// What holds for which rooms.
    pub namespaces: Arc<Namespaces>,
    /// What seeds the pauses between attempts, so that nodes spread.
    pub seed: u64,
}

/// A server's place among all.
#[derive(Clone, Copy, Debug)]
pub struct ServerAssignment {
    /// Its number.
    pub number: usize,
    /// The first partition that it has; `None`: it has none.
    pub first: Option<u16>,
    /// Whether what other services publish is heard from here.
    pub hears_ingest: bool,
}
