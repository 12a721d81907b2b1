//! Who may use `/v1/*`.
//!
//! With `ops.api_key`: requests that carry it. Without: programs on this machine only (`caller.rs`).
//! In both cases no web page: a page can send a form or a plain text anywhere, so bodies must say that
//! they are JSON (which a page may not send unasked).
//!
//! A wrong key is answered late, so that keys are not tried by the thousand, and without a turn, so
//! that this keeps nobody waiting.

use super::Ops;
use super::caller::{check_site, is_local};
use super::calls::FromPublicPort;
use super::error::ApiError;
use super::listener::Peer;
use super::publish::BATCH_BYTES_MAX;
use crate::link::ledger::LedgerHold;
use crate::policy::api_key;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// Requests of `/v1` that are carried out at a time. Some wait for Redis; the other connections are
/// left to those who ask how the node is.
pub(super) const AT_A_TIME_MAX: usize = 48;

/// How long a request without the key waits for its answer.
const WRONG_KEY_DELAY: Duration = Duration::from_millis(200);

/// In front of every route of `/v1`.
pub(super) async fn guard(
    State(ops): State<Arc<Ops>>,
    ConnectInfo(Peer(peer)): ConnectInfo<Peer>,
    request: Request,
    next: Next,
) -> Response {
    let plan = ops.plan();
    let key = plan.ops_api_key.as_deref();
    let headers = request.headers();
    let is_public = request.extensions().get::<FromPublicPort>().is_some();
    let body_bytes = body_bytes(headers);
    let verdict = may_come_from(is_public, key)
        .and_then(|()| check_site(headers))
        .and_then(|()| may_enter(key, peer.ip(), headers))
        .and_then(|()| is_json_where_it_must_be(request.method(), headers));
    let turn = verdict.and_then(|()| {
        ops.turns.try_acquire().map_err(|_| {
            tracing::debug!(%peer, "a request is refused: {AT_A_TIME_MAX} are being carried out");
            ops.count_refused(|counters| &mut counters.too_many);
            ApiError::overloaded()
        })
    });
    match turn {
        Ok(_turn) => {
            let _held = hold_body(&ops, if is_public { 0 } else { body_bytes });
            next.run(request).await
        }
        Err(refused) => {
            if refused.status == StatusCode::UNAUTHORIZED {
                note_wrong_key(&ops, peer.ip());
                tokio::time::sleep(WRONG_KEY_DELAY).await;
            }
            refused.into_response()
        }
    }
}

/// The body that a request says to have, as far as any is read. Without a length: as much as that.
fn body_bytes(headers: &HeaderMap) -> u64 {
    let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    let length = length.and_then(|length| length.parse().ok());
    let is_chunked = headers.contains_key(header::TRANSFER_ENCODING);
    let unknown = if is_chunked { BATCH_BYTES_MAX as u64 } else { 0 };
    length.unwrap_or(unknown).min(BATCH_BYTES_MAX as u64)
}

/// Counts the body while the request is carried out. One of the public port is counted by its place.
fn hold_body(ops: &Ops, bytes: u64) -> LedgerHold {
    let mut hold = LedgerHold::new(ops.ledger.clone());
    hold.set(bytes);
    hold
}

/// Counted each time, and logged once: a service with an old key would fill the log.
fn note_wrong_key(ops: &Ops, peer: IpAddr) {
    match ops.count_refused(|counters| &mut counters.wrong_key) {
        1 => tracing::warn!(
            %peer,
            "a request for the API had no key or a wrong one (ops.api_key); further ones are counted in \
             campanile_ops_requests_refused_total and logged at debug"
        ),
        _ => tracing::debug!(%peer, "a request for the API had no key or a wrong one"),
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
    if is_local(peer, headers) {
        return Ok(());
    }
    Err(ApiError::new(
        StatusCode::FORBIDDEN,
        "forbidden",
        "without ops.api_key this API answers programs on this machine only",
    ))
}

fn is_json_where_it_must_be(method: &Method, headers: &HeaderMap) -> Result<(), ApiError> {
    let coding = headers.get(header::CONTENT_ENCODING).map(|value| value.to_str().unwrap_or(""));
    if coding.is_some_and(|coding| !coding.eq_ignore_ascii_case("identity")) {
        return Err(ApiError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            "send the body as it is, without Content-Encoding",
        ));
    }
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
    fn without_a_key_nobody_may_come_from_the_public_port() {
        let status = |is_public, key| {
            may_come_from(is_public, key).err().map(|refused| refused.status.as_u16())
        };
        assert_eq!(status(true, None), Some(404), "whatever its address");
        assert_eq!(status(true, Some("0123456789abcdef")), None);
        assert_eq!(status(false, None), None);
    }

    #[test]
    fn with_a_key_only_requests_that_have_it_are_admitted() {
        let key = Some("0123456789abcdef");
        assert_eq!(enter(key, THERE, &[("authorization", "Bearer 0123456789abcdef")]), None);
        assert_eq!(enter(key, THERE, &[("authorization", "bearer  0123456789abcdef")]), None);
        assert_eq!(enter(key, HERE, &[]), Some(401), "being here is not enough");
        for wrong in [
            "Bearer 0123456789abcde",
            "Bearer 0123456789abcdef0",
            "Bearer ",
            "Basic 0123456789abcdef",
            "x",
        ] {
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
