//! Which pages may connect.
//!
//! Only browsers send an origin (RFC 6454), and only browsers need protection from other sites: a page
//! opens a WebSocket to any host, with the network position of the person who looks at it. Where a
//! token is needed a strange page has none. Where anonymous clients are allowed it would be let in, so
//! without `origins` only pages of this host and of the visitor's own machine are.

use crate::net::upgrade::reject::RejectReason;
use http::HeaderMap;
use http::header;

/// Judges the origin of a request. `allowed`: as configured, normalised; `*` is any.
pub(super) fn check(
    headers: &HeaderMap,
    allowed: &[String],
    allows_anonymous: bool,
) -> Result<(), RejectReason> {
    let mut origins = headers.get_all(header::ORIGIN).iter();
    let Some(origin) = origins.next() else { return Ok(()) };
    if origins.next().is_some() {
        return Err(RejectReason::TwoOrigins);
    }
    let is_allowed = match allowed.is_empty() {
        true => !allows_anonymous || is_near(origin.as_bytes(), host_of(headers)),
        false => allowed.iter().any(|one| one == "*" || one.as_bytes() == origin.as_bytes()),
    };
    match (is_allowed, allowed.is_empty()) {
        (true, _) => Ok(()),
        (false, true) => Err(RejectReason::OtherOrigin),
        (false, false) => Err(RejectReason::Origin),
    }
}

fn host_of(headers: &HeaderMap) -> &[u8] {
    headers.get(header::HOST).map_or(&[], |host| without_port(host.as_bytes()))
}

/// Whether it is a page of this host, on any port, or of the machine that the browser runs on.
fn is_near(origin: &[u8], host: &[u8]) -> bool {
    let Some(at) = origin.windows(3).position(|three| three == b"://") else { return false };
    let page_host = without_port(&origin[at + 3..]);
    let is_this_host = !host.is_empty() && page_host.eq_ignore_ascii_case(host);
    is_this_host || is_loopback(page_host)
}

fn is_loopback(host: &[u8]) -> bool {
    let Ok(host) = std::str::from_utf8(host) else { return false };
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    let is_local_name = host == "localhost" || host.ends_with(".localhost"); // RFC 6761 §6.3
    is_local_name || address.is_ok_and(|address| address.is_loopback())
}

/// `host:port` without the port; an IPv6 address keeps its brackets.
fn without_port(authority: &[u8]) -> &[u8] {
    let colon = authority.iter().rposition(|byte| *byte == b':');
    match colon {
        Some(at) if authority[at + 1..].iter().all(u8::is_ascii_digit) => &authority[..at],
        _ => authority,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(
        origins: &[&str],
        host: &str,
        allowed: &[&str],
        allows_anonymous: bool,
    ) -> Result<(), RejectReason> {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, host.parse().unwrap());
        for origin in origins {
            headers.append(header::ORIGIN, origin.parse().unwrap());
        }
        let allowed: Vec<String> = allowed.iter().map(|&one| one.to_owned()).collect();
        check(&headers, &allowed, allows_anonymous)
    }

    #[test]
    fn without_a_list_a_strange_page_is_refused_where_no_token_is_needed() {
        let open = |origin: &str| judge(&[origin], "chat.example:8080", &[], true);
        for near in [
            "https://chat.example",
            "http://CHAT.example:3000",
            "http://localhost:5173",
            "http://127.0.0.1",
            "http://[::1]:3000",
            "http://app.localhost",
        ] {
            assert_eq!(open(near), Ok(()), "{near}");
        }
        for strange in [
            "https://evil.example",
            "https://chat.example.evil",
            "https://evilchat.example",
            "null",
            "",
            "https://localhost.evil",
            "https://127.0.0.1.evil",
        ] {
            assert_eq!(open(strange), Err(RejectReason::OtherOrigin), "{strange:?}");
            assert_eq!(judge(&[strange], "chat.example", &[], false), Ok(()), "needs a token");
        }
        assert_eq!(judge(&[], "chat.example", &[], true), Ok(()), "no browser");
        assert_eq!(judge(&["http://[2001:db8::1]:1"], "[2001:db8::1]:8080", &[], true), Ok(()));
        assert!(judge(&["https://"], "", &[], true).is_err(), "nothing is not the same host");
    }

    #[test]
    fn a_list_is_the_whole_list() {
        let listed = |origin: &str| judge(&[origin], "h", &["https://a.example"], true);
        assert_eq!(listed("https://a.example"), Ok(()));
        for other in ["https://h", "http://a.example", "http://localhost", "null"] {
            assert_eq!(listed(other), Err(RejectReason::Origin), "{other}");
        }
        assert_eq!(judge(&["https://x"], "h", &["*"], true), Ok(()));
        assert_eq!(judge(&["null"], "h", &["null"], true), Ok(()));
    }

    #[test]
    fn two_origins_are_none() {
        let twice = ["https://a.example", "https://a.example"];
        for allowed in [&["https://a.example"][..], &["*"], &[]] {
            assert_eq!(judge(&twice, "a.example", allowed, true), Err(RejectReason::TwoOrigins));
        }
    }
}
