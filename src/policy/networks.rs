//! Networks of addresses, written `10.0.0.0/8`, and whether an address is in one.
//!
//! An IPv4 address and the same one mapped into IPv6 (`::ffff:10.0.0.1`, RFC 4291 §2.5.5.2) are one
//! address: a socket that takes both families shows the latter.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// An address and how many of its bits matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    /// Its first address; the bits that do not matter are 0.
    first: IpAddr,
    /// How many bits matter: at most 32 of IPv4, 128 of IPv6.
    prefix_bits: u8,
}

/// Text that is no network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadNetwork {
    /// Neither `address/bits` nor an address.
    Syntax,
    /// The address has bits set that do not matter: one of the two is a mistake.
    HostBits,
}

impl Network {
    /// Whether an address is in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.first.is_ipv4() && masked(address, self.prefix_bits) == self.first
    }
}

/// Whether an address is in one of `networks`.
pub fn any_contains(networks: &[Network], address: IpAddr) -> bool {
    networks.iter().any(|network| network.contains(address))
}

/// The address with all but its first `bits` set to 0.
fn masked(address: IpAddr, bits: u8) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            IpAddr::V4((address.to_bits() & mask).into())
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            IpAddr::V6((address.to_bits() & mask).into())
        }
    }
}

impl FromStr for Network {
    type Err = BadNetwork;

    /// `address/bits`, or one address.
    fn from_str(text: &str) -> Result<Network, BadNetwork> {
        let (address, bits) = text.split_once('/').map_or((text, None), |(a, b)| (a, Some(b)));
        let first: IpAddr = address.parse().map_err(|_| BadNetwork::Syntax)?;
        let bits_max = if first.is_ipv4() { 32 } else { 128 };
        let prefix_bits = match bits {
            None => bits_max,
            Some(bits) if bits.bytes().all(|byte| byte.is_ascii_digit()) => {
                bits.parse().map_err(|_| BadNetwork::Syntax)?
            }
            Some(_) => return Err(BadNetwork::Syntax),
        };
        // A mapped IPv4 address has no bits of IPv6 that could matter.
        if prefix_bits > bits_max || first.to_canonical().is_ipv4() != first.is_ipv4() {
            return Err(BadNetwork::Syntax);
        }
        if masked(first, prefix_bits) != first {
            return Err(BadNetwork::HostBits);
        }
        Ok(Network { first, prefix_bits })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.prefix_bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn has(network: &str, address: &str) -> bool {
        network.parse::<Network>().unwrap().contains(address.parse().unwrap())
    }

    #[test]
    fn a_network_contains_the_addresses_that_share_its_prefix() {
        assert!(has("10.0.0.0/8", "10.255.0.1"));
        assert!(!has("10.0.0.0/8", "11.0.0.1"));
        assert!(has("192.0.2.7", "192.0.2.7"));
        assert!(!has("192.0.2.7", "192.0.2.6"));
        assert!(has("0.0.0.0/0", "203.0.113.9"));
        assert!(has("2001:db8::/32", "2001:db8:ffff::1"));
        assert!(!has("2001:db8::/32", "2001:db9::1"));
        assert!(has("::/0", "::1"));
    }

    #[test]
    fn a_mapped_address_is_the_ipv4_address() {
        assert!(has("10.0.0.0/8", "::ffff:10.1.2.3"));
        assert!(!has("::/0", "::ffff:10.1.2.3"));
        assert!(!has("0.0.0.0/0", "::1"));
    }

    #[test]
    fn what_is_no_network_is_refused() {
        for text in ["", "x", "10.0.0.0/33", "::/129", "10.0.0.0/", "10.0.0.0/-1", "10.0.0.0/+8"] {
            assert_eq!(text.parse::<Network>(), Err(BadNetwork::Syntax), "{text}");
        }
        assert_eq!("::ffff:10.0.0.0/104".parse::<Network>(), Err(BadNetwork::Syntax));
        assert_eq!("10.0.0.1/8".parse::<Network>(), Err(BadNetwork::HostBits));
        for text in ["10.0.0.0/8", "2001:db8::/32", "192.0.2.7/32"] {
            assert_eq!(text.parse::<Network>().unwrap().to_string(), text);
        }
    }
}
