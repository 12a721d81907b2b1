//! What every connection of a fleet must know, resolved once.
//!
//! Invariant: nothing here changes after the first connect.

use super::burst::BurstTemplate;
use super::handshake::ClientHandshake;
use super::reply_rules::ReplyRules;
use super::rooms::RoomAssignment;
use super::template::{ReplySigner, Template, TemplateContext};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

/// One server to connect to.
#[derive(Debug)]
pub struct LoadTarget {
    /// Where it listens.
    pub addr: SocketAddr,
    /// What is said to it first.
    pub handshake: ClientHandshake,
}

/// Where connections come from. One source address carries only as many connections to one
/// destination as there are local ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceAddresses {
    /// The kernel chooses.
    KernelChoice,
    /// Taken in turn.
    Listed(Vec<IpAddr>),
}

/// What all connections of a fleet do.
#[derive(Debug)]
pub struct ClientPlan {
    /// Servers; connection `n` goes to target `n mod targets`.
    pub targets: Vec<LoadTarget>,
    /// The path of the request.
    pub path: Template,
    /// Messages sent as soon as a connection is open.
    pub init: Vec<Template>,
    /// What is said back to frames.
    pub reply_rules: ReplyRules,
    /// Who signs answers.
    pub signer: Option<ReplySigner>,
    /// What is published.
    pub message: Template,
    /// How rooms are called, and who is where.
    pub context: TemplateContext,
    /// Members of each room, the last ones, that read nothing once they have joined.
    pub non_reading: u32,
    /// Text in the frame that says that a connection has joined; `None`: open is joined.
    pub ready: Option<String>,
    /// Whether a room has one publisher and a connection one room, so that the numbers of the
    /// messages that a connection receives only ever grow.
    pub is_ordered: bool,
    /// Characters of a payload.
    pub payload_bytes: usize,
    /// Random per run.
    pub run_id: u32,
    /// Time zero.
    pub epoch: Instant,
    /// Source addresses.
    pub sources: SourceAddresses,
    /// Handshakes outstanding per worker.
    pub connect_concurrency: u32,
    /// Connects a second per worker, if limited.
    pub connect_rate: Option<f64>,
    /// From connect until joined.
    pub handshake_timeout: Duration,
    /// Attempts after the first one; `None`: until it works.
    pub retries: Option<u8>,
    /// Bytes of one write.
    pub write_bytes_max: usize,
    /// What each connection says, where connections talk.
    pub burst: Option<BurstTemplate>,
}

impl ClientPlan {
    /// Who is where.
    pub fn rooms(&self) -> &RoomAssignment {
        &self.context.rooms
    }

    /// Members of a room that read what comes.
    pub fn reading_members(&self, room: u32) -> u32 {
        self.rooms().members(room).saturating_sub(self.non_reading)
    }

    /// Whether a connection reads nothing once it has joined.
    pub fn is_non_reading(&self, conn: u32) -> bool {
        self.non_reading > 0 && {
            let room = self.rooms().room_of(conn);
            conn - self.rooms().member(room, 0) >= self.reading_members(room)
        }
    }

    /// Nanoseconds since time zero.
    pub fn now_ns(&self) -> u64 {
        self.epoch.elapsed().as_nanos() as u64
    }

    /// Where a connection goes.
    pub fn target(&self, conn: u32) -> &LoadTarget {
        &self.targets[conn as usize % self.targets.len()]
    }

    /// Where a connection comes from.
    pub fn source(&self, conn: u32) -> Option<IpAddr> {
        match &self.sources {
            SourceAddresses::KernelChoice => None,
            SourceAddresses::Listed(all) => {
                Some(all[conn as usize / self.targets.len() % all.len()])
            }
        }
    }
}

impl SourceAddresses {
    /// So many loopback addresses that no pair of addresses uses more than a tenth of its ports:
    /// there is no lack of addresses, and the kernel looks at half of all ports before it tries
    /// the other half, one by one (measured: 4,200 connects a second at two thirds of the ports,
    /// nearly all of it in that search). `salt` moves the block, so runs after each other do not
    /// meet each other's closing sockets.
    pub fn loopback(conns: u32, targets: u32, local_ports: u32, salt: u32) -> SourceAddresses {
        let per_address = (local_ports / 10).max(1) * targets.max(1);
        let base = 0x7f00_0000 | (1 + salt % 250) << 16 | (salt >> 8 & 0x7f) << 8;
        let count = conns.div_ceil(per_address).max(1);
        SourceAddresses::Listed(
            (0..count).map(|i| IpAddr::V4(Ipv4Addr::from_bits(base + 1 + i))).collect(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_sources_are_enough_and_distinct() {
        let SourceAddresses::Listed(all) = SourceAddresses::loopback(2_000_000, 1, 28_231, 77)
        else {
            unreachable!("loopback always names addresses")
        };
        assert!(all.len() * 28_231 / 10 >= 2_000_000);
        let mut distinct = all.clone();
        distinct.dedup();
        assert_eq!(distinct.len(), all.len());
        assert!(all.iter().all(IpAddr::is_loopback));
    }
}
