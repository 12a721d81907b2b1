//! The client behind HTTP proxies: the last untrusted hop of `X-Forwarded-For` or `Forwarded`
//! (RFC 7239).
//!
//! Each proxy appends the address of its peer, so an entry is as trustworthy as the proxy that wrote
//! it. The list is read from the right, as long as the addresses are of trusted proxies; the first
//! that is not is the client. What stands left of it was written by the client and means nothing.
//!
//! Where both headers are there, only `X-Forwarded-For` is read: nearly every balancer writes that
//! one, and passes a `Forwarded` that its client made up.
//!
//! Invariant: nothing is read unless the connection itself comes from a trusted proxy.

use crate::policy::networks::{Network, any_contains};
use http::HeaderMap;
use http::header::{FORWARDED, HeaderName};
use std::net::{IpAddr, SocketAddr};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Whether a request has a header of a proxy.
pub fn is_forwarded(headers: &HeaderMap) -> bool {
    headers.contains_key(X_FORWARDED_FOR) || headers.contains_key(FORWARDED)
}

/// The client of a request that came from `nearest`. `None`: `nearest` itself. A port that no header
/// names is 0.
pub fn client(headers: &HeaderMap, nearest: IpAddr, trusted: &[Network]) -> Option<SocketAddr> {
    if !any_contains(trusted, nearest) {
        return None;
    }
    if headers.contains_key(X_FORWARDED_FOR) {
        return last_untrusted(headers, &X_FORWARDED_FOR, trusted, hop);
    }
    last_untrusted(headers, &FORWARDED, trusted, forwarded_for)
}

/// Reads a list over all of its lines from its end. A hop without an address ends it: what stands left
/// of that one cannot be attributed.
fn last_untrusted(
    headers: &HeaderMap,
    name: &HeaderName,
    trusted: &[Network],
    read: fn(&str) -> Option<SocketAddr>,
) -> Option<SocketAddr> {
    let mut client = None;
    for line in headers.get_all(name).iter().rev() {
        // Element by element: a client's bytes that are no text must not hide what a proxy appended.
        let elements = line.as_bytes().rsplit(|byte| *byte == b',').map(<[u8]>::trim_ascii);
        for element in elements.filter(|element| !element.is_empty()) {
            let element = std::str::from_utf8(element).unwrap_or("?");
            let Some(hop) = read(element) else { return client };
            client = Some(hop);
            if !any_contains(trusted, hop.ip()) {
                return client;
            }
        }
    }
    client
}

/// `for=` of one element: `for=192.0.2.7;proto=https`, `for="[2001:db8::1]:4711"`. A quoted text with
/// a comma in it comes here in parts and is no address.
fn forwarded_for(element: &str) -> Option<SocketAddr> {
    let pairs = element.split(';').filter_map(|pair| pair.trim().split_once('='));
    let mut nodes = pairs.filter(|(name, _)| name.eq_ignore_ascii_case("for"));
    let (_, node) = nodes.next()?;
    if nodes.next().is_some() {
        return None;
    }
    match node.strip_prefix('"') {
        Some(quoted) => hop(quoted.strip_suffix('"')?),
        // RFC 7239 §4: an address with a colon must be quoted. Proxies forget it.
        None => hop(node),
    }
}

/// An address as proxies write it: alone, in brackets, or with a port.
fn hop(text: &str) -> Option<SocketAddr> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(SocketAddr::new(address.to_canonical(), 0));
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Some(SocketAddr::new(address.ip().to_canonical(), address.port()));
    }
    let bare = text.strip_prefix('[')?.strip_suffix(']')?;
    let address: std::net::Ipv6Addr = bare.parse().ok()?;
    Some(SocketAddr::new(address.to_canonical(), 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(headers: &[(&'static str, &str)], nearest: &str) -> Option<String> {
        let trusted = ["10.0.0.0/8", "2001:db8:aa::/48"].map(|network| network.parse().unwrap());
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        client(&map, nearest.parse().unwrap(), &trusted).map(|client| client.to_string())
    }

    fn through(value: &str) -> Option<String> {
        found(&[("x-forwarded-for", value)], "10.0.0.1")
    }

    fn forwarded(value: &str) -> Option<String> {
        found(&[("forwarded", value)], "10.0.0.1")
    }

    #[test]
    fn the_client_is_the_last_hop_that_is_not_trusted() {
        assert_eq!(through("192.0.2.7").as_deref(), Some("192.0.2.7:0"));
        assert_eq!(through("6.6.6.6, 192.0.2.7").as_deref(), Some("192.0.2.7:0"));
        assert_eq!(through("6.6.6.6, 192.0.2.7, 10.1.1.1").as_deref(), Some("192.0.2.7:0"));
        assert_eq!(through("10.3.3.3,10.2.2.2").as_deref(), Some("10.3.3.3:0"), "all are trusted");
        assert_eq!(through("192.0.2.7:4711").as_deref(), Some("192.0.2.7:4711"));
        assert_eq!(through("2001:db8::7").as_deref(), Some("[2001:db8::7]:0"));
        assert_eq!(through("[2001:db8::7]").as_deref(), Some("[2001:db8::7]:0"));
        assert_eq!(through("[2001:db8::7]:1").as_deref(), Some("[2001:db8::7]:1"));
        assert_eq!(through("::ffff:192.0.2.7").as_deref(), Some("192.0.2.7:0"));
    }

    #[test]
    fn several_lines_are_one_list() {
        let lines = [("x-forwarded-for", "6.6.6.6"), ("x-forwarded-for", "192.0.2.7, 10.1.1.1")];
        assert_eq!(found(&lines, "10.0.0.1").as_deref(), Some("192.0.2.7:0"));
    }

    #[test]
    fn nobody_else_is_believed() {
        assert_eq!(found(&[("x-forwarded-for", "6.6.6.6")], "192.0.2.1"), None);
        assert_eq!(found(&[("forwarded", "for=6.6.6.6")], "192.0.2.1"), None);
        assert_eq!(found(&[], "10.0.0.1"), None);
    }

    #[test]
    fn a_hop_that_is_no_address_ends_the_list() {
        assert_eq!(through("é, 192.0.2.7, 10.1.1.1").as_deref(), Some("192.0.2.7:0"));
        for junk in ["unknown", "x", "1.2.3.4.5", "[::1", "é", "_hidden", "1.2.3.4:x"] {
            assert_eq!(through(&format!("6.6.6.6, {junk}")), None, "{junk}");
            let behind = through(&format!("6.6.6.6, {junk}, 10.1.1.1"));
            assert_eq!(behind.as_deref(), Some("10.1.1.1:0"), "{junk}");
        }
    }

    #[test]
    fn forwarded_is_read_as_rfc_7239_writes_it() {
        assert_eq!(forwarded("for=192.0.2.7").as_deref(), Some("192.0.2.7:0"));
        assert_eq!(
            forwarded("for=6.6.6.6, For=\"[2001:db8::7]:1\";proto=https;by=10.0.0.1").as_deref(),
            Some("[2001:db8::7]:1")
        );
        assert_eq!(forwarded("proto=https; for=192.0.2.7").as_deref(), Some("192.0.2.7:0"));
        assert_eq!(forwarded("for=6.6.6.6, proto=https"), None, "one hop does not say for whom");
        assert_eq!(forwarded("for=\"6.6.6.6, for=7.7.7.7"), Some("7.7.7.7:0".into()));
        assert_eq!(forwarded("for=_secret"), None);
        assert_eq!(forwarded("for=1.1.1.1;for=2.2.2.2"), None);
    }

    #[test]
    fn a_forwarded_beside_an_x_forwarded_for_is_the_clients_own() {
        let both = [("forwarded", "for=6.6.6.6"), ("x-forwarded-for", "192.0.2.7")];
        assert_eq!(found(&both, "10.0.0.1").as_deref(), Some("192.0.2.7:0"));
    }
}
