//! What liveness and cleanup need to know of the rest of presence.

use crate::backplane::redis::names::Names;
use crate::backplane::redis::partition_set::PartitionSet;
use crate::backplane::redis::presence::keys::Keys;
use crate::backplane::redis::topology::routes::ServerRoutes;
use crate::policy::namespaces::Namespaces;
use std::sync::Arc;

/// Settings that presence needs of the rest.
#[derive(Clone)]
pub(super) struct PresenceRules {
    /// Names of channels.
    pub names: Names,
    /// Settings of namespaces, among them the room size up to which events are published.
    pub namespaces: Arc<Namespaces>,
}

/// What liveness and cleanup are given for one turn.
pub(super) struct LivenessContext<'a> {
    /// The connections to all servers.
    pub route: &'a ServerRoutes,
    /// Partitions in which entries may be removed and events published now.
    pub settled: PartitionSet,
    /// Names of keys.
    pub keys: &'a Keys,
    /// Settings.
    pub rules: &'a PresenceRules,
}
