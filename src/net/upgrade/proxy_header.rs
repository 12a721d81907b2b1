//! The PROXY header: what a TCP load balancer sends, in front of everything else, about the connection
//! that it carries. Versions 1 (a line of text) and 2 (binary) of
//! <https://www.haproxy.org/download/2.6/doc/proxy-protocol.txt>.
//!
//! [`parse`] looks at all bytes that have come so far and keeps nothing. It needs no more than
//! [`HEADER_BYTES_MAX`] of them, and is called at most once a read.
//!
//! Invariant: the verdict on a stream does not depend on how it was cut into reads.
//!
//! TLVs (version 2) are skipped, checksums included. Addresses of other families than IPv4 and IPv6
//! say nothing here, so the connection's own address stands, as for a balancer's health checks
//! (`LOCAL`, `UNKNOWN`). UDP is refused: nothing comes here by UDP.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The longest line of version 1, its end included (§2.1).
pub const V1_BYTES_MAX: usize = 107;

/// The bytes in front of addresses and TLVs in version 2 (§2.2).
pub const V2_FIXED_BYTES: usize = 16;

/// The most that may follow it: a whole header fits the smallest segment that TCP must be able to
/// receive (§2.2; RFC 9293 §3.7.1).
pub const V2_REST_BYTES_MAX: usize = 520;

/// The longest header.
pub const HEADER_BYTES_MAX: usize = V2_FIXED_BYTES + V2_REST_BYTES_MAX;

const V1_START: &[u8] = b"PROXY ";
const V2_SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// What the first bytes of a connection are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyHeader {
    /// The beginning of a header, or of what may be one.
    Incomplete,
    /// Something else.
    Absent,
    /// A header of `bytes` bytes.
    Whole {
        /// Its length; what follows is the client's.
        bytes: usize,
        /// The peer of the proxy. `None`: the connection is the proxy's own, or no address is given.
        source: Option<SocketAddr>,
    },
}

/// A header that breaks the specification, or is too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// Judges the bytes that a connection has sent up to now.
///
/// # Errors
/// [`Malformed`]: it began as a header, and no byte that follows can make it one.
pub fn parse(input: &[u8]) -> Result<ProxyHeader, Malformed> {
    if input.starts_with(V2_SIGNATURE) {
        return parse_v2(input);
    }
    if input.starts_with(V1_START) {
        return parse_v1(input);
    }
    let may_become = [V1_START, V2_SIGNATURE].iter().any(|start| start.starts_with(input));
    Ok(if may_become { ProxyHeader::Incomplete } else { ProxyHeader::Absent })
}

/// Whether these bytes begin a header for certain.
pub fn is_header(input: &[u8]) -> bool {
    input.starts_with(V1_START) || input.starts_with(V2_SIGNATURE)
}

/// §2.1: `PROXY TCP4 source destination port port\r\n`, one blank between two words.
fn parse_v1(input: &[u8]) -> Result<ProxyHeader, Malformed> {
    let window = &input[..input.len().min(V1_BYTES_MAX)];
    let Some(end) = window.windows(2).position(|two| two == b"\r\n") else {
        return if input.len() < V1_BYTES_MAX {
            Ok(ProxyHeader::Incomplete)
        } else {
            Err(Malformed)
        };
    };
    let line = std::str::from_utf8(&window[V1_START.len()..end]).map_err(|_| Malformed)?;
    let mut words = line.split(' ');
    let source = match words.next() {
        // Whatever follows is to be ignored.
        Some("UNKNOWN") => None,
        Some("TCP4") => Some(v1_source::<Ipv4Addr>(words)?),
        Some("TCP6") => Some(v1_source::<Ipv6Addr>(words)?),
        _ => return Err(Malformed),
    };
    Ok(ProxyHeader::Whole { bytes: end + 2, source })
}

fn v1_source<'a, A: std::str::FromStr + Into<IpAddr>>(
    mut words: impl Iterator<Item = &'a str>,
) -> Result<SocketAddr, Malformed> {
    let mut next = || words.next().ok_or(Malformed);
    let mut address = || next()?.parse::<A>().map_err(|_| Malformed);
    let (source, _destination) = (address()?, address()?);
    let (source_port, _destination_port) = (v1_port(next()?)?, v1_port(next()?)?);
    match words.next() {
        None => Ok(SocketAddr::new(source.into(), source_port)),
        Some(_) => Err(Malformed),
    }
}

/// A number of at most five digits, without sign and without leading zeros.
fn v1_port(word: &str) -> Result<u16, Malformed> {
    let is_plain = word.bytes().all(|byte| byte.is_ascii_digit());
    let is_shortest = word == "0" || !word.starts_with('0');
    word.parse().ok().filter(|_| is_plain && is_shortest).ok_or(Malformed)
}

/// §2.2: signature, version and command, family and protocol, length; addresses; TLVs.
fn parse_v2(input: &[u8]) -> Result<ProxyHeader, Malformed> {
    let Some((fixed, rest)) = input.split_first_chunk::<V2_FIXED_BYTES>() else {
        return v2_start(&input[V2_SIGNATURE.len()..]).map(|()| ProxyHeader::Incomplete);
    };
    v2_start(&fixed[V2_SIGNATURE.len()..])?;
    let length = usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    if length > V2_REST_BYTES_MAX {
        return Err(Malformed);
    }
    let (is_local, family) = (fixed[12] & 0x0f == 0, fixed[13]);
    let addresses_bytes = match family {
        0x11 => 12,
        0x21 => 36,
        0x31 => 216,
        _ => 0,
    };
    if !is_local && length < addresses_bytes {
        return Err(Malformed);
    }
    let Some(rest) = rest.get(..length) else { return Ok(ProxyHeader::Incomplete) };
    let source = if is_local { None } else { v2_source(family, rest) };
    Ok(ProxyHeader::Whole { bytes: V2_FIXED_BYTES + length, source })
}

/// Judges what has come of version, command, family and protocol: a wrong one is refused at once.
fn v2_start(bytes: &[u8]) -> Result<(), Malformed> {
    let is_command = bytes.first().is_none_or(|byte| matches!(byte, 0x20 | 0x21));
    // Without an address; TCP over IPv4, over IPv6; a stream of AF_UNIX.
    let is_family = bytes.get(1).is_none_or(|byte| matches!(byte, 0x00 | 0x11 | 0x21 | 0x31));
    // A health check may name any family, and none of it counts.
    let is_local = bytes.first() == Some(&0x20);
    if is_command && (is_family || is_local) { Ok(()) } else { Err(Malformed) }
}

/// The source among the addresses: source, destination, source port, destination port. `rest` is
/// long enough for the family.
fn v2_source(family: u8, rest: &[u8]) -> Option<SocketAddr> {
    let port = |at: usize| u16::from_be_bytes([rest[at], rest[at + 1]]);
    match family {
        0x11 => {
            let source: [u8; 4] = *rest.first_chunk()?;
            Some(SocketAddr::new(Ipv4Addr::from(source).into(), port(8)))
        }
        0x21 => {
            let source: [u8; 16] = *rest.first_chunk()?;
            Some(SocketAddr::new(Ipv6Addr::from(source).into(), port(32)))
        }
        _ => None,
    }
}
