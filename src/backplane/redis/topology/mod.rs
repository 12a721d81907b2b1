//! Topology: where the servers are, and which of them has which topics.
//!
//! There are three sources: the configuration, which never changes; sentinels, which know where
//! each master is; or a Cluster, which knows the master of each slot. Each returns the whole state
//! at any time, and the caller compares it with what it has.
//!
//! Invariant: a [`PartitionMap`] gives each partition to a server that it names.

pub(super) mod cluster;
pub(super) mod error;
pub(super) mod map;
pub(super) mod routes;
pub(super) mod sentinel;

use crate::backplane::redis::topology::cluster::Cluster;
use crate::backplane::redis::topology::map::PartitionMap;
use crate::backplane::redis::topology::sentinel::Sentinels;
use crate::metrics::servers::RedisSnapshot;
use crate::plan::{Deployment, RedisPlan};
use std::task::Context;
use std::time::Instant;

/// A change of the topology.
#[derive(Debug)]
pub(super) enum TopologyChange {
    /// The map is this.
    Map(PartitionMap),
    /// A server of the map is at this address now.
    Master {
        /// Its index in the map.
        server: usize,
        /// `host:port`
        address: String,
    },
}

/// The source of the topology. Owned by [`crate::backplane::redis::RedisTransport`].
pub(super) enum Topology {
    /// From the configuration: the map, once.
    Fixed(Option<PartitionMap>),
    /// The map from the configuration, once; then the addresses of its masters.
    Sentinel(Option<PartitionMap>, Sentinels),
    /// The map of a Cluster, each time it changes.
    Cluster(Cluster),
}

impl Topology {
    /// Not asked yet.
    pub(super) fn new(plan: &RedisPlan) -> Topology {
        match &plan.servers.deployment {
            Deployment::Fixed(addresses) => {
                Topology::Fixed(Some(PartitionMap::shared(addresses.clone())))
            }
            Deployment::Sentinel { sentinels, masters, login } => {
                let map = PartitionMap::shared(masters.clone());
                let sentinels = Sentinels::new(sentinels, login, masters.clone(), plan);
                Topology::Sentinel(Some(map), sentinels)
            }
            Deployment::Cluster(seeds) => Topology::Cluster(Cluster::new(seeds.clone(), plan)),
        }
    }

    /// Whether a server's name is its address.
    pub(super) fn names_addresses(&self) -> bool {
        !matches!(self, Topology::Sentinel(..))
    }

    /// A redirection or a lost link: asks again soon.
    pub(super) fn hurry(&mut self) {
        if let Topology::Cluster(cluster) = self {
            cluster.hurry();
        }
    }

    /// Adds the state of the sources to the snapshot.
    pub(super) fn describe(&self, now: Instant, picture: &mut RedisSnapshot) {
        match self {
            Topology::Fixed(_) => {}
            Topology::Sentinel(_, sentinels) => sentinels.describe(now, picture),
            Topology::Cluster(cluster) => cluster.describe(picture),
        }
    }

    /// The next change. `None`: `cx` is woken when there is one.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, now: Instant) -> Option<TopologyChange> {
        match self {
            Topology::Fixed(map) => map.take().map(TopologyChange::Map),
            Topology::Sentinel(map, sentinels) => {
                map.take().map(TopologyChange::Map).or_else(|| {
                    let (server, address) = sentinels.poll(cx, now)?;
                    Some(TopologyChange::Master { server, address })
                })
            }
            Topology::Cluster(cluster) => cluster.poll(cx, now).map(TopologyChange::Map),
        }
    }
}
