//! How much of the node one client address and one user have.
//!
//! The one place where shards share counts of their clients: touched when a connection begins, has
//! ended its handshake and ends, never on the way of a delivery. Tables have a fixed size and forget
//! by themselves; see `count_table.rs` and `rate_table.rs`.
//!
//! An address counts only where it is known to be a client's: a trusted proxy has named it, or
//! clients connect to the listener themselves (`listen_direct`). Behind a balancer that hides its
//! clients all of them have one address, and its limit would be an outage. An IPv6 client has the
//! whole of its /64.
//!
//! Invariant: a full table refuses nobody, and an address that may be a proxy's is not counted.

pub mod count_table;
pub mod key;
pub mod rate_table;

use crate::link::shares::count_table::{CountTable, Counts};
use crate::link::shares::rate_table::RateTable;
pub use key::KeyHash;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Addresses that are counted at a time, about. Beyond, new ones are admitted uncounted.
const ADDRESSES: usize = 128 * 1024;
/// The same of users, where they have a limit.
const USERS: usize = 256 * 1024;

/// Why a client may not connect now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShareExceeded {
    /// Its address has as many connections as it may have.
    Connections,
    /// As many connections of its address as may be are in their handshake.
    Handshakes,
    /// Connections of its address come faster than they may.
    Rate,
}

/// How much one address and one user may have; 0: no limit.
#[derive(Clone, Copy, Debug)]
pub struct ShareLimits {
    /// Connections of one address.
    pub connections_per_address_max: u64,
    /// Its handshakes under way.
    pub handshakes_per_address_max: u64,
    /// Its connections in a second, on average.
    pub connects_per_address_per_s_max: u64,
    /// Its connections at once.
    pub connects_per_address_burst_max: u64,
    /// Connections of one user with a token.
    pub connections_per_user_max: u64,
}

/// The tables of a node.
#[derive(Debug)]
pub struct Shares {
    limits: ShareLimits,
    hasher: RandomState,
    began: Instant,
    addresses: CountTable,
    connects: RateTable,
    users: CountTable,
    has_warned: AtomicBool,
}

impl Shares {
    /// Empty tables; hardly any room, if no address is known to be a client's.
    pub fn new(limits: ShareLimits, knows_addresses: bool) -> Shares {
        let addresses = if knows_addresses { ADDRESSES } else { 1 };
        let users = if limits.connections_per_user_max > 0 { USERS } else { 1 };
        let (per_s, burst) =
            (limits.connects_per_address_per_s_max, limits.connects_per_address_burst_max);
        Shares {
            limits,
            hasher: RandomState::new(),
            began: Instant::now(),
            addresses: CountTable::new(addresses),
            connects: RateTable::new(addresses, per_s, burst),
            users: CountTable::new(users),
            has_warned: AtomicBool::new(false),
        }
    }

    /// The key of a client's address.
    pub fn address_key(&self, address: IpAddr) -> KeyHash {
        KeyHash(self.hasher.hash_one(network_of(address)))
    }

    /// The key of a user.
    pub fn user_key(&self, user: &str) -> KeyHash {
        KeyHash(self.hasher.hash_one(user))
    }

    /// A connection of an address begins its handshake, and is counted until
    /// [`Shares::end_handshake`] and [`Shares::end_connection`]. `false`: there is no room for it.
    ///
    /// # Errors
    /// It may not connect, and is not counted.
    pub fn begin(&self, key: KeyHash) -> Result<bool, ShareExceeded> {
        let Counts { connections, handshakes } = self.addresses.counts(key);
        if is_reached(connections, self.limits.connections_per_address_max) {
            return Err(ShareExceeded::Connections);
        }
        if is_reached(handshakes, self.limits.handshakes_per_address_max) {
            return Err(ShareExceeded::Handshakes);
        }
        if !self.connects.take(key, self.began.elapsed().as_millis() as u64) {
            return Err(ShareExceeded::Rate);
        }
        Ok(self.addresses.add(key, Counts { connections: 1, handshakes: 1 }))
    }

    /// A connection that was counted has ended its handshake.
    pub fn end_handshake(&self, key: KeyHash) {
        self.addresses.remove(key, Counts { connections: 0, handshakes: 1 });
    }

    /// A connection that was counted has ended, its handshake before.
    pub fn end_connection(&self, key: KeyHash) {
        self.addresses.remove(key, Counts { connections: 1, handshakes: 0 });
    }

    /// Whether users have a limit.
    pub fn limits_users(&self) -> bool {
        self.limits.connections_per_user_max > 0
    }

    /// A connection of a user is about to be open, and is counted until [`Shares::end_user`]. `false`:
    /// the user may have no more, and it is not counted.
    #[must_use]
    pub fn begin_user(&self, key: KeyHash) -> bool {
        let connections = self.users.counts(key).connections;
        if is_reached(connections, self.limits.connections_per_user_max) {
            return false;
        }
        // Without room for it the user has no limit.
        _ = self.users.add(key, Counts { connections: 1, handshakes: 0 });
        true
    }

    /// A connection of a user that was counted has ended.
    pub fn end_user(&self, key: KeyHash) {
        self.users.remove(key, Counts { connections: 1, handshakes: 0 });
    }

    /// Whether the operator has yet to be warned that all clients seem to have one address. Once.
    pub fn may_warn(&self) -> bool {
        !self.has_warned.swap(true, Ordering::Relaxed)
    }
}

/// Whether a count is at its limit; 0: there is none.
fn is_reached(count: u64, max: u64) -> bool {
    max > 0 && count >= max
}

/// What of an address its client has for itself: all of an IPv4 address, also where it is written as
/// an IPv6 one (RFC 4291 §2.5.5.2, RFC 6052 §2.1), and otherwise a /64.
fn network_of(address: IpAddr) -> u64 {
    const IPV4: u64 = 1 << 32; // No IPv6 network in use begins with so many zeros.
    let address = match address.to_canonical() {
        IpAddr::V4(address) => return IPV4 | u64::from(address.to_bits()),
        IpAddr::V6(address) => address,
    };
    let bits = address.to_bits();
    let translated = Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0).to_bits();
    if bits >> 32 == translated >> 32 {
        return IPV4 | (bits as u64 & 0xFFFF_FFFF);
    }
    (bits >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(limits: ShareLimits) -> Shares {
        Shares::new(limits, true)
    }

    fn key(shares: &Shares, address: &str) -> KeyHash {
        shares.address_key(address.parse().expect("an address"))
    }

    const LIMITS: ShareLimits = ShareLimits {
        connections_per_address_max: 3,
        handshakes_per_address_max: 0,
        connects_per_address_per_s_max: 0,
        connects_per_address_burst_max: 1,
        connections_per_user_max: 0,
    };

    #[test]
    fn an_address_has_so_many_connections_and_another_one_its_own() {
        let shares = shares(LIMITS);
        let [ann, bob] = ["192.0.2.1", "192.0.2.2"].map(|address| key(&shares, address));
        (0..3).for_each(|_| assert_eq!(shares.begin(ann), Ok(true)));
        assert_eq!(shares.begin(ann), Err(ShareExceeded::Connections));
        assert_eq!(shares.begin(bob), Ok(true));
        shares.end_handshake(ann);
        assert_eq!(shares.begin(ann), Err(ShareExceeded::Connections), "it is still there");
        shares.end_connection(ann);
        assert_eq!(shares.begin(ann), Ok(true));
    }

    #[test]
    fn handshakes_are_limited_for_themselves() {
        let limits = ShareLimits { connections_per_address_max: 0, ..LIMITS };
        let shares = shares(ShareLimits { handshakes_per_address_max: 2, ..limits });
        let ann = key(&shares, "192.0.2.1");
        (0..2).for_each(|_| assert_eq!(shares.begin(ann), Ok(true)));
        assert_eq!(shares.begin(ann), Err(ShareExceeded::Handshakes));
        shares.end_handshake(ann);
        assert_eq!(shares.begin(ann), Ok(true));
    }

    #[test]
    fn connections_that_come_too_fast_are_refused_and_not_counted() {
        let limits = ShareLimits { connects_per_address_per_s_max: 1, ..LIMITS };
        let shares = shares(ShareLimits { connects_per_address_burst_max: 2, ..limits });
        let ann = key(&shares, "192.0.2.1");
        (0..2).for_each(|_| assert_eq!(shares.begin(ann), Ok(true)));
        assert_eq!(shares.begin(ann), Err(ShareExceeded::Rate));
        assert_eq!(shares.addresses.counts(ann).connections, 2);
    }

    #[test]
    fn at_zero_nothing_is_limited() {
        let shares = shares(ShareLimits { connections_per_address_max: 0, ..LIMITS });
        let ann = key(&shares, "192.0.2.1");
        (0..4000).for_each(|_| assert_eq!(shares.begin(ann), Ok(true)));
    }

    #[test]
    fn an_ipv6_client_has_its_network_and_ipv4_is_ipv4_however_it_is_written() {
        let of = |address: &str| network_of(address.parse().expect("an address"));
        assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:2:ffff::9"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_eq!(of("192.0.2.1"), of("::ffff:192.0.2.1"));
        assert_eq!(of("192.0.2.1"), of("64:ff9b::192.0.2.1"));
        assert_ne!(of("64:ff9b::192.0.2.1"), of("64:ff9b::192.0.2.2"));
    }

    #[test]
    fn the_operator_is_warned_once() {
        let shares = shares(LIMITS);
        assert_eq!([(); 3].map(|()| shares.may_warn()), [true, false, false]);
    }
}
