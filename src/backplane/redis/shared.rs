//! What all servers share, and what each of them is assigned.

use crate::backplane::redis::names::Names;
use crate::plan::RedisPlan;
use crate::policy::limits::Limits;
use crate::policy::namespaces::Namespaces;
use std::sync::Arc;

/// What is the same for all servers of a node.
pub(super) struct SharedContext {
    /// The configuration of this backplane.
    pub plan: RedisPlan,
    /// All limits of the node.
    pub limits: Limits,
    /// Names of channels and keys.
    pub names: Names,
    /// Settings of namespaces.
    pub namespaces: Arc<Namespaces>,
    /// Seed of the pauses between connection attempts, so that nodes spread.
    pub seed: u64,
}

/// What a server is assigned by the map.
#[derive(Clone, Copy, Debug)]
pub(super) struct ServerAssignment {
    /// Its index in the map.
    pub number: usize,
    /// The first partition that it has; `None`: it has none.
    pub first: Option<u16>,
    /// Whether publishes of other services are taken from this server.
    pub hears_ingest: bool,
}
