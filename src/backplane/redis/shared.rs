//! What all servers share, and what each of them is assigned.

use crate::backplane::redis::names::Names;
use crate::backplane::redis::partition_set::PartitionSet;
use crate::backplane::redis::permissions::table::Feature;
use crate::plan::{Deployment, RedisPlan};
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
    /// What of the configuration needs permissions in Redis.
    pub features: Vec<Feature>,
    /// Seed of the pauses between connection attempts, so that nodes spread.
    pub seed: u64,
}

/// What a server is assigned by the map.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ServerAssignment {
    /// Its index in the map.
    pub number: usize,
    /// The first partition that it has; `None`: it has none.
    pub first: Option<u16>,
    /// All partitions that it has.
    pub owns: PartitionSet,
    /// Whether publishes of other services are taken from this server.
    pub takes_ingest: bool,
    /// Whether messages to everybody are on this server.
    pub has_broadcasts: bool,
}

/// What of a configuration needs permissions in Redis.
pub(super) fn features(plan: &RedisPlan, namespaces: &Namespaces) -> Vec<Feature> {
    let is_cluster = matches!(plan.servers.deployment, Deployment::Cluster(_));
    let all = [
        (Feature::OneServer, !is_cluster),
        (Feature::Cluster, is_cluster),
        (Feature::History, namespaces.have_history()),
        (Feature::Presence, namespaces.have_presence()),
        (Feature::Replicated, namespaces.want_replicas()),
    ];
    all.into_iter().filter(|(_, is_needed)| *is_needed).map(|(feature, _)| feature).collect()
}
