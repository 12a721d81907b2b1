//! What liveness and cleanup need to know of the rest of presence.

use crate::backplane::redis::names::Names;
use crate::backplane::redis::presence::keys::Keys;
use crate::backplane::redis::presence::partition_set::PartitionSet;
use crate::backplane::redis::topology::routes::ServerRoutes;
use crate::policy::namespaces::Namespaces;
use std::sync::Arc;

/// What the members of rooms are told.
#[derive(Clone)]
pub struct PresenceRules {
    /// How channels are called.
    pub names: Names,
    /// How many users a room may have that is told of them.
    pub namespaces: Arc<Namespaces>,
}

/// What it needs to know of the rest.
pub struct LivenessContext<'a> {
    /// The ways to all servers.
    pub route: &'a ServerRoutes,
    /// Partitions in which it may be cleaned up and told now.
    pub settled: PartitionSet,
    /// How keys are called.
    pub keys: &'a Keys,
    /// What members are told.
    pub rules: &'a PresenceRules,
}
