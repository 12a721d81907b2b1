//! A shard's side of the memory bound: when to look, and how much to give up.
//!
//! After closing some, a shard waits for what that frees: pages return to the machine later than
//! buffers to the allocator, and one that looks too soon closes everybody.

use crate::link::ledger::{Account, AddressShare, Pressure};
use crate::shard::Holder;
use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::net::IpAddr;

/// From one closing of the largest to the next.
const PAUSE_MS: u64 = 300;
/// How long any pressure lasts before the largest are closed, whatever the step: those who are paused
/// and those who are refused wait for it to end, and what a hostile client holds does not end by
/// itself.
const LASTS_MS: u64 = 3_000;
/// Connections whose addresses are looked at, the largest ones: each is a system call.
const ADDRESSES_MAX: usize = 2048;

/// What a shard does about the node's memory.
pub(super) struct ShardMemory {
    account: Account,
    pressure: Pressure,
    /// When it last closed some, in milliseconds of the shard's clock.
    closed_ms: Option<u64>,
    /// Since when there is pressure.
    since_ms: Option<u64>,
}

impl ShardMemory {
    pub(super) fn new(account: Account) -> ShardMemory {
        ShardMemory { account, pressure: Pressure::None, closed_ms: None, since_ms: None }
    }

    /// How near the node is to its bound, as this shard last saw it.
    #[inline]
    pub(super) fn pressure(&self) -> Pressure {
        self.pressure
    }

    /// What the shard keeps alive now.
    #[inline]
    pub(super) fn post(&mut self, held: u64) -> Pressure {
        self.pressure = self.account.post(held);
        self.pressure
    }

    /// The same on the tick. `Some`: so many bytes have to be given up now.
    pub(super) fn tick(&mut self, held: u64, now_ms: u64) -> Option<u64> {
        self.pressure = self.account.tick(held);
        let is_soon = self.closed_ms.is_some_and(|at_ms| now_ms < at_ms + PAUSE_MS);
        if !self.must_close(now_ms) || is_soon {
            return None;
        }
        self.pressure = self.account.give_back();
        if !self.must_close(now_ms) {
            return None;
        }
        self.closed_ms = Some(now_ms);
        let reading = self.account.ledger().reading();
        let goal = Pressure::PauseLargest.is_over_at(reading.bytes_max);
        Some(self.account.part_of(reading.estimate.saturating_sub(goal)))
    }

    fn must_close(&mut self, now_ms: u64) -> bool {
        if self.pressure == Pressure::None {
            self.since_ms = None;
            return false;
        }
        let since_ms = *self.since_ms.get_or_insert(now_ms);
        self.pressure >= Pressure::CloseLargest || now_ms >= since_ms + LASTS_MS
    }

    /// How much the shard's connections hold, and which address most of it.
    pub(super) fn post_share(&mut self, share: AddressShare) {
        self.account.post_share(share);
    }
}

/// Which address holds most among the largest holders.
pub(super) fn address_share(
    holders: &[Holder],
    address_of: impl Fn(crate::ids::ConnId) -> Option<IpAddr>,
) -> AddressShare {
    let mut by_address: HashMap<u64, u64> = HashMap::new();
    for holder in holders.iter().take(ADDRESSES_MAX) {
        if let Some(address) = address_of(holder.conn) {
            *by_address.entry(number_of(address)).or_default() += holder.bytes as u64;
        }
    }
    let all = holders.iter().map(|holder| holder.bytes as u64).sum();
    let largest = by_address.into_iter().max_by_key(|(_, bytes)| *bytes).unwrap_or_default();
    AddressShare { all, largest: largest.0, of_largest: largest.1 }
}

/// An address as a number: of an IPv6 address its first 64 bits, which one subscriber has.
fn number_of(address: IpAddr) -> u64 {
    let mut hasher = DefaultHasher::new(); // the same on each thread
    match address.to_canonical() {
        IpAddr::V4(address) => address.hash(&mut hasher),
        IpAddr::V6(address) => (address.to_bits() >> 64).hash(&mut hasher),
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{ConnId, SlotId};

    #[test]
    fn the_address_that_holds_most_is_found_by_its_network() {
        let addresses = ["2001:db8::1", "2001:db8::2", "192.0.2.1", "::ffff:192.0.2.1"];
        let holder =
            |(index, bytes)| Holder { conn: ConnId(SlotId { index, generation: 0 }), bytes };
        let holders: Vec<Holder> = [(0, 30), (1, 40), (2, 60), (3, 5)].map(holder).into();
        let address_of = |conn: ConnId| addresses[conn.0.index as usize].parse().ok();
        let share = address_share(&holders, address_of);
        assert_eq!((share.all, share.of_largest), (135, 70));
        assert_eq!(share.largest, number_of("2001:db8::9".parse().unwrap()));
        assert_eq!(address_share(&[], address_of), AddressShare::default());
    }
}
