//! Where the servers are, and which of them has which topics.
//!
//! Three ways to know it: the configuration says so and nothing ever changes; sentinels say where
//! each master is; or a Cluster says which master has which slots. Each is a picture that may be
//! made anew at any time, and whoever uses it compares it with what it has.
//!
//! Invariant: a [`PartitionMap`] gives every partition to a server that it names.

pub mod cluster;
pub mod routes;
pub mod sentinel;

use crate::backplane::partition::PARTITIONS;
use crate::backplane::redis::topology::cluster::Cluster;
use crate::backplane::redis::topology::sentinel::Sentinels;
use crate::metrics::servers::Picture;
use crate::plan::{Deployment, RedisPlan};
use std::sync::Arc;
use std::task::Context;
use std::time::Instant;

/// Which server has which partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionMap {
    /// The servers. What they are called depends on the deployment: an address, or the name under
    /// which sentinels know a master.
    pub servers: Vec<String>,
    /// The server of each partition.
    pub owners: Arc<[u16; PARTITIONS]>,
}

impl PartitionMap {
    /// Servers that share all partitions, by jump consistent hashing: if one more is written behind
    /// the others, only its own share moves.
    pub fn shared(servers: Vec<String>) -> PartitionMap {
        let count = servers.len();
        let owners = std::array::from_fn(|partition| jump(partition as u64, count));
        PartitionMap { servers, owners: Arc::new(owners) }
    }
}

/// Jump consistent hash (Lamping and Veach 2014), of a partition's number spread over 64 bits.
fn jump(partition: u64, servers: usize) -> u16 {
    let mut key = (partition + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let (mut bucket, mut next) = (0, 0);
    while next < servers as i64 {
        bucket = next;
        key = key.wrapping_mul(2_862_933_555_777_941_757).wrapping_add(1);
        next = ((bucket + 1) as f64 * ((1u64 << 31) as f64 / ((key >> 33) + 1) as f64)) as i64;
    }
    u16::try_from(bucket).expect("a configuration names less servers than that")
}

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

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(servers: usize) -> Vec<u16> {
        PartitionMap::shared(vec![String::new(); servers]).owners.to_vec()
    }

    #[test]
    fn every_server_has_about_the_same_share() {
        for servers in [1, 2, 3, 5, 16] {
            let owners = shares(servers);
            for server in 0..servers {
                let share = owners.iter().filter(|owner| usize::from(**owner) == server).count();
                let fair = PARTITIONS / servers;
                assert!((fair * 6 / 10..=fair * 14 / 10).contains(&share), "{share} of {fair}");
            }
        }
    }

    #[test]
    fn one_more_server_takes_its_share_and_moves_nothing_else() {
        for servers in 1..16 {
            let moved = shares(servers).into_iter().zip(shares(servers + 1));
            let moved: Vec<_> = moved.filter(|(before, after)| before != after).collect();
            assert!(moved.iter().all(|(_, after)| usize::from(*after) == servers));
            assert!(moved.len() < PARTITIONS * 2 / (servers + 1));
        }
    }
}
