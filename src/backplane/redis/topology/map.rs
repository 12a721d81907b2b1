//! Which server has which partition.
//!
//! Invariant: a [`PartitionMap`] gives each partition to a server that it names.

use crate::backplane::partition::PARTITIONS;
use std::sync::Arc;

/// The assignment of partitions to servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PartitionMap {
    /// Names of the servers: addresses, or with sentinels the names of masters.
    pub servers: Vec<String>,
    /// For each partition the index of its server.
    pub owners: Arc<[u16; PARTITIONS]>,
}

impl PartitionMap {
    /// Distributes all partitions over the servers by jump consistent hashing: if another is
    /// appended, only its own share moves.
    pub(crate) fn shared(servers: Vec<String>) -> PartitionMap {
        let count = servers.len();
        let owners = std::array::from_fn(|partition| jump_hash(partition as u64, count));
        PartitionMap { servers, owners: Arc::new(owners) }
    }
}

/// Jump consistent hash (Lamping and Veach 2014), of a partition's number spread over 64 bits.
fn jump_hash(partition: u64, servers: usize) -> u16 {
    let mut key = (partition + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let (mut bucket, mut next) = (0, 0);
    while next < servers as i64 {
        bucket = next;
        key = key.wrapping_mul(2_862_933_555_777_941_757).wrapping_add(1);
        next = ((bucket + 1) as f64 * ((1u64 << 31) as f64 / ((key >> 33) + 1) as f64)) as i64;
    }
    u16::try_from(bucket).expect("a configuration names less servers than that")
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
    fn an_appended_server_takes_its_share_and_moves_nothing_else() {
        for servers in 1..16 {
            let moved = shares(servers).into_iter().zip(shares(servers + 1));
            let moved: Vec<_> = moved.filter(|(before, after)| before != after).collect();
            assert!(moved.iter().all(|(_, after)| usize::from(*after) == servers));
            assert!(moved.len() < PARTITIONS * 2 / (servers + 1));
        }
    }
}
