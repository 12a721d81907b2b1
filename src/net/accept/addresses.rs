//! Which connections count for which client address, and for which user.
//!
//! A connection counts from the moment at which the address of its client is known: at accept where
//! clients connect themselves, or when a trusted proxy has named it. It holds eight bytes here from
//! then on until its end; one whose client is not known holds nothing. So does one of a user with a
//! token, where users have a limit.
//!
//! Where no address is known to be a client's, nothing is limited; but if most connections seem to
//! come from one address, a balancer hides its clients, and the operator is warned once.
//!
//! Invariant: what is counted in `link::shares` for a connection is taken from it exactly once.

use crate::link::shares::{KeyHash, ShareExceeded, Shares};
use crate::net::accept::counted::CountedWords;
use crate::net::upgrade::reject::RejectReason;
use crate::plan::Plan;
use crate::policy::networks::{Network, any_contains};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// The lowest bit of a note: the handshake is under way.
const HANDSHAKE: u64 = 1;
/// Every so many connections the peer's address is looked at, where none is known to be a client's.
const SAMPLE: u64 = 16;
/// Addresses that were looked at before anything is concluded from them.
const SAMPLES_MIN: u64 = 64;

/// What this shard has counted, by the index of the connection.
pub(in crate::net) struct Addresses {
    shares: Arc<Shares>,
    /// Whether the peers of sockets are clients.
    is_direct: bool,
    trusted_proxies: Vec<Network>,
    /// What each is counted under, and whether its handshake is under way.
    of_addresses: CountedWords,
    of_users: CountedWords,
    uncounted: u64,
    hidden: HiddenClients,
}

/// Which address most connections come from: the candidate of a majority vote.
#[derive(Debug, Default)]
struct HiddenClients {
    accepted: u64,
    samples: u64,
    candidate: Option<IpAddr>,
    lead: u64,
    votes: u64,
}

impl Addresses {
    /// Nothing is counted yet.
    pub(in crate::net) fn new(shares: Arc<Shares>, plan: &Plan) -> Addresses {
        Addresses {
            shares,
            is_direct: plan.listen_direct,
            trusted_proxies: plan.trusted_proxies.clone(),
            of_addresses: CountedWords::default(),
            of_users: CountedWords::default(),
            uncounted: 0,
            hidden: HiddenClients::default(),
        }
    }

    /// The configuration was reloaded: it holds for connections that come from now on.
    pub(in crate::net) fn reload(&mut self, plan: &Plan) {
        self.is_direct = plan.listen_direct;
        self.trusted_proxies = plan.trusted_proxies.clone();
    }

    /// A connection was accepted. Answers what it is counted under, if its peer is a client.
    ///
    /// # Errors
    /// Its address may have no more.
    pub(in crate::net) fn begin_direct(
        &mut self,
        peer: impl FnOnce() -> Option<SocketAddr>,
    ) -> Result<Option<KeyHash>, RejectReason> {
        if !self.is_direct {
            self.look_for_hidden_clients(peer);
            return Ok(None);
        }
        let Some(peer) = peer().map(|peer| peer.ip().to_canonical()) else { return Ok(None) };
        if peer.is_loopback() || any_contains(&self.trusted_proxies, peer) {
            return Ok(None);
        }
        self.begin(peer).map(Some)
    }

    /// The connection that was to be counted is refused for another reason.
    pub(in crate::net) fn take_back(&mut self, key: Option<KeyHash>) {
        if let Some(key) = key {
            self.shares.end_handshake(key);
            self.shares.end_connection(key);
        }
    }

    /// The connection at `index` is counted under `key`.
    pub(in crate::net) fn note(&mut self, index: u32, key: Option<KeyHash>) {
        if let Some(key) = key {
            let before = self.of_addresses.set(index, key.0 | HANDSHAKE);
            debug_assert_eq!(before, 0, "it is counted once");
        }
    }

    /// A proxy may have named the client of the connection at `index`. It is counted if it was not.
    ///
    /// # Errors
    /// Its address may have no more.
    pub(in crate::net) fn begin_named(
        &mut self,
        index: u32,
        named: Option<SocketAddr>,
    ) -> Result<(), RejectReason> {
        let Some(named) = named else { return Ok(()) };
        if self.of_addresses.get(index) != 0 {
            return Ok(());
        }
        let key = self.begin(named.ip().to_canonical())?;
        self.note(index, Some(key));
        Ok(())
    }

    /// Under which number the client of the connection at `index` is counted: a hash of its address.
    /// 0: its address is not known.
    pub(in crate::net) fn number_of(&self, index: u32) -> u64 {
        self.of_addresses.get(index) & !HANDSHAKE
    }

    /// The connection at `index` has become a WebSocket.
    pub(in crate::net) fn end_handshake(&mut self, index: u32) {
        let word = self.of_addresses.get(index);
        if word & HANDSHAKE != 0 {
            self.of_addresses.set(index, word & !HANDSHAKE);
            self.shares.end_handshake(KeyHash(word & !HANDSHAKE));
        }
    }

    /// The connection at `index` is about to be open for a user with a token.
    ///
    /// # Errors
    /// Its user may have no more.
    pub(in crate::net) fn begin_user(
        &mut self,
        index: u32,
        user: Option<&str>,
    ) -> Result<(), RejectReason> {
        let Some(user) = user.filter(|_| self.shares.limits_users()) else { return Ok(()) };
        let key = KeyHash(self.shares.user_key(user).0 | 1);
        if !self.shares.begin_user(key) {
            return Err(RejectReason::UserFull);
        }
        self.of_users.set(index, key.0);
        Ok(())
    }

    /// The connection at `index` has ended.
    pub(in crate::net) fn end(&mut self, index: u32) {
        self.end_handshake(index);
        match self.of_addresses.set(index, 0) {
            0 => {}
            word => self.shares.end_connection(KeyHash(word)),
        }
        match self.of_users.set(index, 0) {
            0 => {}
            word => self.shares.end_user(KeyHash(word)),
        }
    }

    /// Connections of this shard that were admitted without being counted.
    pub(in crate::net) fn uncounted(&self) -> u64 {
        self.uncounted
    }

    fn begin(&mut self, address: IpAddr) -> Result<KeyHash, RejectReason> {
        // Two keys that differ in the handshake's bit only are one.
        let key = KeyHash(self.shares.address_key(address).0 & !HANDSHAKE | 2);
        match self.shares.begin(key) {
            Ok(is_counted) => {
                self.uncounted += u64::from(!is_counted);
                Ok(key)
            }
            Err(ShareExceeded::Connections) => Err(RejectReason::AddressFull),
            Err(ShareExceeded::Handshakes) => Err(RejectReason::AddressHandshakes),
            Err(ShareExceeded::Rate) => Err(RejectReason::AddressTooFast),
        }
    }

    fn look_for_hidden_clients(&mut self, peer: impl FnOnce() -> Option<SocketAddr>) {
        if !self.trusted_proxies.is_empty() || !self.hidden.is_due() {
            return;
        }
        let Some(peer) = peer().map(|peer| peer.ip().to_canonical()) else { return };
        if !peer.is_loopback()
            && let Some(address) = self.hidden.vote(peer)
            && self.shares.may_warn()
        {
            tracing::warn!(
                %address,
                "most connections come from one address: if it is a load balancer, set \
                 trusted_proxies (and proxy_protocol for a TCP balancer), so that limits hold for \
                 clients; if clients connect directly, set listen_direct = true"
            );
        }
    }
}

impl HiddenClients {
    /// Whether the next connection's address is looked at.
    fn is_due(&mut self) -> bool {
        self.accepted += 1;
        self.accepted.is_multiple_of(SAMPLE)
    }

    /// Counts one address (Boyer and Moore's vote, with the votes for the candidate counted). Answers
    /// the address that most connections have, once enough were looked at.
    fn vote(&mut self, address: IpAddr) -> Option<IpAddr> {
        self.samples += 1;
        if self.candidate == Some(address) {
            self.lead += 1;
            self.votes += 1;
        } else if self.lead > 0 {
            self.lead -= 1;
        } else {
            (self.candidate, self.lead, self.votes) = (Some(address), 1, 1);
        }
        let has_most = self.samples >= SAMPLES_MIN && 2 * self.votes > self.samples;
        self.candidate.filter(|_| has_most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::shares::ShareLimits;

    fn addresses(limits: ShareLimits, is_direct: bool, trusted: &[&str]) -> Addresses {
        let trusted = trusted.iter().map(|text| text.parse().expect("a network")).collect();
        Addresses {
            shares: Arc::new(Shares::new(limits, true)),
            is_direct,
            trusted_proxies: trusted,
            of_addresses: CountedWords::default(),
            of_users: CountedWords::default(),
            uncounted: 0,
            hidden: HiddenClients::default(),
        }
    }

    fn peer(text: &str) -> Option<SocketAddr> {
        Some(SocketAddr::new(text.parse().expect("an address"), 4711))
    }

    const TWO: ShareLimits = ShareLimits {
        connections_per_address_max: 2,
        handshakes_per_address_max: 0,
        connects_per_address_per_s_max: 0,
        connects_per_address_burst_max: 1,
        connections_per_user_max: 0,
    };

    #[test]
    fn a_direct_client_has_its_share_and_a_connection_that_ends_gives_it_back() {
        let mut all = addresses(TWO, true, &[]);
        for index in [0, 5000] {
            let key = all.begin_direct(|| peer("192.0.2.1")).expect("there is room");
            all.note(index, key);
        }
        all.end_handshake(0);
        let refused = all.begin_direct(|| peer("192.0.2.1"));
        assert_eq!(refused, Err(RejectReason::AddressFull));
        assert!(all.begin_direct(|| peer("192.0.2.2")).is_ok());
        all.end(5000);
        all.end(5000);
        let key = all.begin_direct(|| peer("192.0.2.1")).expect("one has gone");
        all.take_back(key);
        assert!(all.begin_direct(|| peer("192.0.2.1")).is_ok());
        assert!(all.begin_direct(|| peer("192.0.2.1")).is_err(), "the first is still there");
    }

    #[test]
    fn loopback_and_proxies_do_not_count_unless_a_proxy_names_them() {
        let mut all = addresses(TWO, true, &["192.0.2.0/24"]);
        for address in ["127.0.0.1", "::1", "::ffff:127.0.0.1", "192.0.2.9"] {
            (0..5).for_each(|_| assert_eq!(all.begin_direct(|| peer(address)), Ok(None)));
        }
        for index in 0..2 {
            assert_eq!(all.begin_named(index, peer("127.0.0.1")), Ok(()));
            assert_eq!(all.begin_named(index, peer("127.0.0.1")), Ok(()), "it is counted once");
        }
        assert_eq!(all.begin_named(2, peer("127.0.0.1")), Err(RejectReason::AddressFull));
        assert_eq!(all.begin_named(3, None), Ok(()));
    }

    #[test]
    fn a_user_with_a_token_has_its_share_wherever_it_comes_from() {
        let mut all = addresses(ShareLimits { connections_per_user_max: 2, ..TWO }, false, &[]);
        (0..2).for_each(|index| assert_eq!(all.begin_user(index, Some("ann")), Ok(())));
        assert_eq!(all.begin_user(2, Some("ann")), Err(RejectReason::UserFull));
        assert_eq!(all.begin_user(3, Some("bob")), Ok(()));
        (4..9).for_each(|index| assert_eq!(all.begin_user(index, None), Ok(()), "anonymous"));
        all.end(2);
        assert!(all.begin_user(2, Some("ann")).is_err(), "it was never counted");
        all.end(0);
        assert_eq!(all.begin_user(2, Some("ann")), Ok(()));
        let mut free = addresses(ShareLimits { connections_per_user_max: 0, ..TWO }, false, &[]);
        (0..50).for_each(|index| assert_eq!(free.begin_user(index, Some("ann")), Ok(())));
    }

    #[test]
    fn behind_an_unknown_hop_nothing_is_limited() {
        let mut all = addresses(TWO, false, &[]);
        (0..5000).for_each(|_| assert_eq!(all.begin_direct(|| peer("192.0.2.1")), Ok(None)));
        assert!(!all.shares.may_warn(), "but the operator was warned");
    }

    #[test]
    fn many_addresses_or_few_connections_cause_no_warning() {
        let mut all = addresses(TWO, false, &[]);
        for n in 0..5000u32 {
            let peer = SocketAddr::new(IpAddr::V4((0x0A00_0000 + n / 64).into()), 1);
            assert_eq!(all.begin_direct(|| Some(peer)), Ok(None));
        }
        (0..500).for_each(|_| assert_eq!(all.begin_direct(|| peer("127.0.0.1")), Ok(None)));
        assert!(all.shares.may_warn());
        let mut few = addresses(TWO, false, &[]);
        (0..1000).for_each(|_| assert_eq!(few.begin_direct(|| peer("192.0.2.1")), Ok(None)));
        assert!(few.shares.may_warn());
    }
}
