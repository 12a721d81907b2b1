//! HTTP requests of the public port, which a shard has read: the same router answers them.
//!
//! A shard sends only requests with `ops.api_key` for a path of `ops.public_paths`. Both are checked
//! once more here and in `guard.rs`: paths outside of `/v1` require no key and must not be public.
//!
//! Invariant: each call is answered, because its connection is not read until then.

use super::Ops;
use super::error::ApiError;
use super::listener::{Peer, SILENCE_MAX};
use crate::link::calls::{Call, CallReceiver};
use crate::link::{Downlink, HttpReply};
use crate::policy::api_key::is_public;
use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{ConnectInfo, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, Method, StatusCode, Version, header};
use axum::response::{IntoResponse, Response};
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};

/// A longer answer is refused: it would wait in the memory of a shard.
const RESPONSE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The pause after a shard's channel was full.
const RETRY: Duration = Duration::from_millis(5);

/// Marks a request of the public port, for handlers.
#[derive(Clone, Copy, Debug)]
pub(super) struct FromPublicPort;

/// Takes calls until the process ends. Needs a [`tokio::task::LocalSet`] around it.
pub(super) async fn serve(calls: CallReceiver, router: Router, ops: Arc<Ops>) {
    let bell = listen(&calls);
    loop {
        // At most `limits.http_calls_max` are under way.
        while let Some(call) = calls.try_recv() {
            spawn_local(carry_out(call, router.clone(), ops.clone()));
        }
        if calls.may_sleep() {
            let ready = bell.readable().await;
            calls.clear();
            ready.expect("the event loop lives as long as this task").clear_ready();
        }
    }
}

/// The bell as tokio waits for it: a descriptor of its own for the same eventfd.
#[allow(deprecated)] // its danger is a descriptor that closes too early; this one is owned
fn listen(calls: &CallReceiver) -> AsyncFd<OwnedFd> {
    let own = calls.as_fd().try_clone_to_owned();
    let own = own.expect("a thread that has just started gets a descriptor");
    AsyncFd::with_interest(own, tokio::io::Interest::READABLE).expect("an eventfd can be polled")
}

async fn carry_out(call: Call, router: Router, ops: Arc<Ops>) {
    let Call { parts, body, shard, conn, peer, mut place } = call;
    let is_last = !keeps_alive(&parts);
    let is_head = parts.method == Method::HEAD;
    let response = if is_public(parts.uri.path(), &ops.plan().ops_public_paths) {
        answer(parts, body, peer, router).await
    } else {
        ApiError::not_found().into_response()
    };
    let response = written(response, is_head, is_last).await;
    place.hold(response.len());
    let mut item = Downlink::HttpReply(Box::new(HttpReply { conn, response, is_last }));
    // Until the shard takes it, or has ended with the process.
    while let Err(back) = ops.end.try_send(shard, item) {
        item = back;
        sleep(RETRY).await;
    }
    drop(place);
}

async fn answer(parts: Parts, body: Bytes, peer: Option<SocketAddr>, router: Router) -> Response {
    let mut request = Request::from_parts(parts, Body::from(body));
    let unknown = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    request.extensions_mut().insert(ConnectInfo(Peer(peer.unwrap_or(unknown))));
    request.extensions_mut().insert(FromPublicPort);
    match timeout(SILENCE_MAX, TowerToHyperService::new(router).call(request)).await {
        Ok(Ok(response)) => response,
        Ok(Err(never)) => match never {},
        Err(_) => ApiError::overloaded().into_response(),
    }
}

/// RFC 9112 §9.3: a connection persists in HTTP/1.1 unless one side sends `Connection: close`.
fn keeps_alive(parts: &Parts) -> bool {
    let says_close = |value: &axum::http::HeaderValue| {
        let mut options = value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
        options.any(|option| option.eq_ignore_ascii_case(b"close"))
    };
    let closes = parts.headers.get_all(header::CONNECTION).iter().any(says_close);
    parts.version == Version::HTTP_11 && !closes
}

/// The answer as bytes.
async fn written(response: Response, is_head: bool, is_last: bool) -> Bytes {
    let (head, body) = response.into_parts();
    let Ok(body) = to_bytes(body, RESPONSE_BYTES_MAX).await else {
        let message = format!("the answer has more than {RESPONSE_BYTES_MAX} bytes");
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        let refused = ApiError::new(status, "too_large", message).into_response();
        return Box::pin(written(refused, is_head, is_last)).await;
    };
    let mut out = head_of(head.status, &head.headers, body.len(), is_last);
    if !is_head {
        out.extend_from_slice(&body);
    }
    Bytes::from(out)
}

fn head_of(status: StatusCode, headers: &HeaderMap, body_bytes: usize, is_last: bool) -> Vec<u8> {
    let ours: [HeaderName; 3] =
        [header::CONTENT_LENGTH, header::CONNECTION, header::TRANSFER_ENCODING];
    let phrase = status.canonical_reason().unwrap_or("");
    let mut out = format!("HTTP/1.1 {} {phrase}\r\n", status.as_str()).into_bytes();
    for (name, value) in headers.iter().filter(|(name, _)| !ours.contains(name)) {
        out.extend_from_slice(name.as_str().as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    let connection = if is_last { "close" } else { "keep-alive" };
    let end = format!("content-length: {body_bytes}\r\nconnection: {connection}\r\n\r\n");
    out.extend_from_slice(end.as_bytes());
    out
}
