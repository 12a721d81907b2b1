//! Who may use `/v1/*`.
//!
//! With `ops.api_key`: requests that carry it. Without: this machine only; and not a browser on this
//! machine that some web page has talked into it. A page can send a form or a plain text anywhere,
//! so bodies must say that they are JSON (which a page may not send unasked); and it can give its
//! own name the address 127.0.0.1, so the request must be addressed to an IP or to localhost. A
//! forwarded request is not of this machine, whatever its peer address says.

use super::Ops;
use super::calls::FromPublicPort;
use super::error::ApiError;
use super::listener::Peer;
use crate::policy::api_key;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::net::IpAddr;
use std::sync::Arc;

/// Requests of `/v1` that are carried out at a time. Some wait for Redis; the other connections are
/// left to those who ask how the node is.
pub(super) const AT_A_TIME_MAX: usize = 48;

/// In front of every route of `/v1`.
pub(super) async fn guard(
    State(ops): State<Arc<Ops>>,
    ConnectInfo(Peer(peer)): ConnectInfo<Peer>,
    request: Request,
    next: Next,
) -> Response {
    let key = ops.plan.ops_api_key.as_deref();
    let headers = request.headers();
    let is_public = request.extensions().get::<FromPublicPort>().is_some();
    let verdict = may_come_from(is_public, key)
        .and_then(|()| may_enter(key, peer.ip(), headers))
        .and_then(|()| is_json_where_it_must_be(request.method(), headers));
    let turn = verdict.and_then(|()| {
        ops.turns.try_acquire().map_err(|_| {
            tracing::debug!(%peer, "a request is refused: {AT_A_TIME_MAX} are being carried out");
            ApiError::overloaded()
        })
    });
    match turn {
        Ok(_turn) => next.run(request).await,
        Err(refused) => refused.into_response(),
    }
}

/// Where the key is not set, being on this machine is enough; a client of the public port never is.
fn may_come_from(is_public: bool, key: Option<&str>) -> Result<(), ApiError> {
    match (is_public, key) {
        (true, None) => Err(ApiError::not_found()),
        _ => Ok(()),
    }
}

fn may_enter(key: Option<&str>, peer: IpAddr, headers: &HeaderMap) -> Result<(), ApiError> {
    let text = |name: header::HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(key) = key {
        return match api_key::is_shown(text(header::AUTHORIZATION), key) {
            true => Ok(()),
            false => Err(ApiError::new(
                StatusCode::UNAUTHORIZED,
                "unauthorized",
                "send `Authorization: Bearer KEY` with the key of ops.api_key",
            )),
        };
    }
    let forwarded =
        headers.contains_key(header::FORWARDED) || headers.contains_key("x-forwarded-for");
    let is_local = peer.to_canonical().is_loopback() && !forwarded;
    if is_local && text(header::HOST).is_none_or(is_address_or_localhost) {
        return Ok(());
    }
    Err(ApiError::new(
        StatusCode::FORBIDDEN,
        "forbidden",
        "without ops.api_key this API answers programs on this machine only",
    ))
}

fn is_json_where_it_must_be(method: &Method, headers: &HeaderMap) -> Result<(), ApiError> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = kind.and_then(|kind| kind.split(';').next()).map(str::trim);
    if method != Method::POST || essence.is_some_and(|e| e.eq_ignore_ascii_case("application/json"))
    {
        return Ok(());
    }
    Err(ApiError::new(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "unsupported_media_type",
        "send `Content-Type: application/json`",
    ))
}

/// Whether a `Host` header names this machine by address or as `localhost`, which no foreign DNS
/// record can fake (DNS rebinding).
fn is_address_or_localhost(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    bare.parse::<IpAddr>().is_ok() || bare.eq_ignore_ascii_case("localhost")
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: &str = "127.0.0.1";
    const THERE: &str = "192.0.2.7";

    fn enter(key: Option<&str>, peer: &str, headers: &[(&'static str, &str)]) -> Option<u16> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, value.parse().unwrap());
        }
        may_enter(key, peer.parse().unwrap(), &map).err().map(|refused| refused.status.as_u16())
    }

    #[test]
    fn without_a_key_only_programs_on_this_machine_may_enter() {
        for peer in [HERE, "127.8.8.8", "::1", "::ffff:127.0.0.1"] {
            assert_eq!(enter(None, peer, &[("host", "localhost:9090")]), None, "{peer}");
        }
        for host in ["127.0.0.1:9090", "[::1]:9090", "LOCALHOST", "10.0.0.1"] {
            assert_eq!(enter(None, HERE, &[("host", host)]), None, "{host}");
        }
        assert_eq!(enter(None, THERE, &[("host", "localhost")]), Some(403));
        assert_eq!(enter(None, HERE, &[("host", "evil.example:9090")]), Some(403));
        assert_eq!(enter(None, HERE, &[("x-forwarded-for", "192.0.2.7")]), Some(403));
        assert_eq!(enter(None, HERE, &[("forwarded", "for=192.0.2.7")]), Some(403));
    }

    #[test]
    fn without_a_key_nobody_may_come_from_the_public_port() {
        let status = |is_public, key| {
            may_come_from(is_public, key).err().map(|refused| refused.status.as_u16())
        };
        assert_eq!(status(true, None), Some(404), "whatever its address");
        assert_eq!(status(true, Some("0123456789")), None);
        assert_eq!(status(false, None), None);
    }

    #[test]
    fn with_a_key_only_requests_that_have_it_are_admitted() {
        let key = Some("0123456789");
        assert_eq!(enter(key, THERE, &[("authorization", "Bearer 0123456789")]), None);
        assert_eq!(enter(key, THERE, &[("authorization", "bearer  0123456789")]), None);
        assert_eq!(enter(key, HERE, &[]), Some(401), "being here is not enough");
        for wrong in ["Bearer 012345678", "Bearer 01234567890", "Bearer ", "Basic 0123456789", "x"]
        {
            assert_eq!(enter(key, HERE, &[("authorization", wrong)]), Some(401), "{wrong}");
        }
    }

    #[test]
    fn a_body_that_a_web_page_could_send_unasked_is_refused() {
        let judge = |method: Method, kind: Option<&str>| {
            let mut headers = HeaderMap::new();
            if let Some(kind) = kind {
                headers.insert(header::CONTENT_TYPE, kind.parse().unwrap());
            }
            is_json_where_it_must_be(&method, &headers).is_ok()
        };
        assert!(judge(Method::POST, Some("application/json")));
        assert!(judge(Method::POST, Some("Application/JSON; charset=utf-8")));
        assert!(judge(Method::GET, None));
        assert!(!judge(Method::POST, None));
        assert!(!judge(Method::POST, Some("text/plain")));
        assert!(!judge(Method::POST, Some("text/plain; application/json")));
    }
}
