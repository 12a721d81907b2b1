//! Where a request of `/v1` comes from: a program on this machine, another host, or a web page.
//!
//! Without `ops.api_key` being on this machine is enough, and two kinds of requests only look as if
//! they were: those that a proxy on this machine passes on, and those that a page makes a browser on
//! this machine send.

use super::error::ApiError;
use axum::http::{HeaderMap, StatusCode, header};
use std::net::IpAddr;

/// Headers by which proxies name the client behind them. `X-Forwarded-…` are found by their prefix.
const PROXY_HEADERS: &[&str] = &[
    "forwarded",
    "via",
    "x-real-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-original-forwarded-for",
    "x-envoy-external-address",
    "x-original-host",
    "true-client-ip",
    "client-ip",
    "cf-connecting-ip",
    "cdn-loop",
    "fastly-client-ip",
    "fly-client-ip",
    "forwarded-for",
    "x-appengine-user-ip",
    "x-azure-clientip",
];

/// Whether a program on this machine sends it to this machine by its address or as `localhost`.
pub(super) fn is_local(peer: IpAddr, headers: &HeaderMap) -> bool {
    let host = headers.get(header::HOST).map(|host| host.to_str().unwrap_or(""));
    peer.to_canonical().is_loopback()
        && !is_forwarded(headers)
        && host.is_none_or(is_address_or_localhost)
}

fn is_forwarded(headers: &HeaderMap) -> bool {
    let is_of_a_proxy =
        |name: &str| name.starts_with("x-forwarded") || PROXY_HEADERS.contains(&name);
    headers.keys().any(|name| is_of_a_proxy(name.as_str()))
}

/// Whether a `Host` header names this machine by address or as `localhost`, which no foreign DNS
/// record can fake (DNS rebinding).
fn is_address_or_localhost(host: &str) -> bool {
    let bare = without_port(host).trim_start_matches('[').trim_end_matches(']');
    bare.parse::<IpAddr>().is_ok() || bare.eq_ignore_ascii_case("localhost")
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    }
}

/// Refuses what a page of another site has made a browser send. Browsers say so themselves
/// (Fetch Metadata, and `Origin` on everything but plain reads); programs send neither header.
pub(super) fn check_site(headers: &HeaderMap) -> Result<(), ApiError> {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or(""));
    let site = text("sec-fetch-site");
    let is_of_a_site = site.is_some_and(|site| site != "same-origin" && site != "none");
    let page = text("origin").map(|origin| origin.split_once("://").map_or("", |(_, host)| host));
    let is_elsewhere = page.is_some_and(|page| page.is_empty() || text("host") != Some(page));
    match is_of_a_site || is_elsewhere {
        true => Err(ApiError::new(
            StatusCode::FORBIDDEN,
            "cross_site",
            "this API does not answer pages of other sites",
        )),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: &str = "127.0.0.1";

    fn map(headers: &[(&'static str, &str)]) -> HeaderMap {
        headers
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .collect()
    }

    fn local(peer: &str, headers: &[(&'static str, &str)]) -> bool {
        is_local(peer.parse().unwrap(), &map(headers))
    }

    #[test]
    fn only_programs_on_this_machine_are_local() {
        for peer in [HERE, "127.8.8.8", "::1", "::ffff:127.0.0.1"] {
            assert!(local(peer, &[("host", "localhost:8090")]), "{peer}");
        }
        for host in ["127.0.0.1:8090", "[::1]:8090", "LOCALHOST", "10.0.0.1"] {
            assert!(local(HERE, &[("host", host)]), "{host}");
        }
        assert!(!local("192.0.2.7", &[("host", "localhost")]));
        assert!(!local(HERE, &[("host", "evil.example:8090")]));
    }

    #[test]
    fn what_any_proxy_passes_on_is_not_local() {
        let forwarded = ["x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-forwarded"];
        for name in PROXY_HEADERS.iter().chain(&forwarded) {
            assert!(!local(HERE, &[(name, "192.0.2.7")]), "{name}");
            assert!(!local(HERE, &[(name, "")]), "{name}, whatever it says");
        }
    }

    #[test]
    fn pages_of_other_sites_are_refused() {
        let good = [
            vec![],
            vec![("sec-fetch-site", "none")],
            vec![("sec-fetch-site", "same-origin"), ("host", "h:1"), ("origin", "http://h:1")],
            vec![("host", "h:1"), ("origin", "https://h:1")],
        ];
        let bad = [
            vec![("sec-fetch-site", "cross-site")],
            vec![("sec-fetch-site", "same-site")],
            vec![("host", "h:1"), ("origin", "http://h:2")],
            vec![("host", "localhost"), ("origin", "https://evil.example")],
            vec![("host", "h"), ("origin", "null")],
            vec![("origin", "http://h")],
            vec![("host", "h"), ("origin", "http://h"), ("sec-fetch-site", "cross-site")],
        ];
        assert!(good.iter().all(|headers| check_site(&map(headers)).is_ok()));
        for headers in &bad {
            assert_eq!(check_site(&map(headers)).unwrap_err().status, 403, "{headers:?}");
        }
    }
}
