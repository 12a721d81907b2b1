//! Where the servers are, and which of them has which topics.
//!
//! Three ways to know it: the configuration says so and nothing ever changes; sentinels say where
//! each master is; or a Cluster says which master has which slots. Each is a picture that may be
//! made anew at any time, and whoever uses it compares it with what it has.
//!
//! Invariant: a [`PartitionMap`] gives every partition to a server that it names.

pub mod cluster;
pub mod map;
pub mod routes;
pub mod sentinel;

use crate::backplane::redis::topology::cluster::Cluster;
use crate::backplane::redis::topology::map::PartitionMap;
use crate::backplane::redis::topology::sentinel::Sentinels;
use crate::metrics::servers::Picture;
use crate::plan::{Deployment, RedisPlan};
use std::task::Context;
use std::time::Instant;

/// What became known.
#[derive(Debug)]
pub enum TopologyChange {
    /// Partitions are where this says.
    Map(PartitionMap),
    /// A server of the map is at this address now.
    Master {
        /// Which server of the map.
        server: usize,
        /// `host:port`
        address: String,
    },
}

/// See the module.
pub enum Topology {
    /// As configured: the map, once.
    Fixed(Option<PartitionMap>),
    /// The map once, and then where its masters are.
    Sentinel(Option<PartitionMap>, Sentinels),
    /// The map, as often as it changes.
    Cluster(Cluster),
}

impl Topology {
    /// Nothing is asked yet.
    pub fn new(plan: &RedisPlan) -> Topology {
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
    pub fn names_addresses(&self) -> bool {
        !matches!(self, Topology::Sentinel(..))
    }

    /// Something is not where it was: the sooner it is known where it is, the better.
    pub fn hurry(&mut self) {
        if let Topology::Cluster(cluster) = self {
            cluster.hurry();
        }
    }

    /// How well it is known where the servers are.
    pub fn describe(&self, now: Instant, picture: &mut Picture) {
        match self {
            Topology::Fixed(_) => {}
            Topology::Sentinel(_, sentinels) => sentinels.describe(now, picture),
            Topology::Cluster(cluster) => cluster.describe(picture),
        }
    }

    /// The next thing that became known; `None`: `cx` is woken when there is something.
    pub fn poll(&mut self, cx: &mut Context<'_>, now: Instant) -> Option<TopologyChange> {
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
