//! What every connection of a fleet does: arguments resolved once, before the first connect.
//!
//! Invariant: nothing here changes while a run lasts.

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
    /// Address of the listener.
    pub addr: SocketAddr,
    /// The request that opens a connection, with this server's `Host`.
    pub handshake: ClientHandshake,
}

/// Source addresses of connections. One source address has only as many connections to one
/// destination as there are local ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceAddresses {
    /// The kernel chooses the address.
    KernelChoice,
    /// Connection `n` takes entry `n`, modulo their number.
    Listed(Vec<IpAddr>),
}

/// What every connection of a fleet does. The scenario makes it; connections only read it.
#[derive(Debug)]
pub struct ClientPlan {
    /// Servers; connection `n` goes to target `n mod targets`.
    pub targets: Vec<LoadTarget>,
    /// Path and query of the request.
    pub path: Template,
    /// Messages sent as soon as a connection is open.
    pub init: Vec<Template>,
    /// Replies to frames of a server that sends the first message.
    pub reply_rules: ReplyRules,
    /// Fills `{signature}` in replies.
    pub signer: Option<ReplySigner>,
    /// A publish.
    pub message: Template,
    /// Room names, and which connection is in which room.
    pub context: TemplateContext,
    /// The last so many members of each room read nothing after they have joined.
    pub non_reading: u32,
    /// Text in the frame that confirms a join; `None`: a 101 is a join.
    pub ready: Option<String>,
    /// Whether a room has one publisher and a connection one room: then the sequence numbers that a
    /// connection receives must grow.
    pub is_ordered: bool,
    /// Length of a published payload, in bytes.
    pub payload_bytes: usize,
    /// Random; tells this run's messages from those of others.
    pub run_id: u32,
    /// When the run began: zero of all times in nanoseconds.
    pub epoch: Instant,
    /// Where connections come from.
    pub sources: SourceAddresses,
    /// Handshakes that one worker has outstanding at most.
    pub connect_concurrency: u32,
    /// Connects a second of one worker, if limited.
    pub connect_rate: Option<f64>,
    /// Longest time from a connect to the join.
    pub handshake_timeout: Duration,
    /// Attempts after the first; `None`: no limit, and a lost connection is retried too.
    pub retries: Option<u8>,
    /// Longest write, in bytes.
    pub write_bytes_max: usize,
    /// The burst of each connection, where the scenario sends bursts.
    pub burst: Option<BurstTemplate>,
}

impl ClientPlan {
    /// Which connection is in which rooms.
    pub fn rooms(&self) -> &RoomAssignment {
        &self.context.rooms
    }

    /// Members of a room that read what they receive.
    pub fn reading_members(&self, room: u32) -> u32 {
        self.rooms().members(room).saturating_sub(self.non_reading)
    }

    /// Whether a connection reads nothing after it has joined.
    pub fn is_non_reading(&self, conn: u32) -> bool {
        self.non_reading > 0 && {
            let room = self.rooms().room_of(conn);
            conn - self.rooms().member(room, 0) >= self.reading_members(room)
        }
    }

    /// Nanoseconds since the run began.
    pub fn now_ns(&self) -> u64 {
        self.epoch.elapsed().as_nanos() as u64
    }

    /// The server of a connection.
    pub fn target(&self, conn: u32) -> &LoadTarget {
        &self.targets[conn as usize % self.targets.len()]
    }

    /// The source address of a connection; `None` if the kernel chooses it.
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
    /// As many loopback addresses as keep each pair of addresses below a tenth of its ports. The
    /// kernel searches half of all ports, one by one, before it tries the other half: at two thirds
    /// of the ports 4,200 connects a second were measured, nearly all of the time in that search.
    /// `salt` moves the block of addresses, so a run does not collide with sockets in TIME_WAIT of
    /// the run before.
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
