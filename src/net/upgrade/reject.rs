//! Why a connection did not become a WebSocket: status, counter and text of each reason, once.

use crate::auth::Denied;
use crate::metrics::ShardCounters;
use crate::ws::handshake::{self, write_refusal};
use bytes::Bytes;

/// Why a connection is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RejectReason {
    /// There are as many connections as there may be, or the node is ending.
    ConnectionsFull,
    /// As many as may be are in their handshake.
    HandshakesFull,
    /// More come than may come in a second.
    TooFast,
    /// `proxy_protocol = required`, and it does not begin with a PROXY header.
    ProxyMissing,
    /// It begins with a PROXY header, and `proxy_protocol = off`.
    ProxyUnexpected,
    /// A PROXY header from an address that is none of `trusted_proxies`.
    ProxyUntrusted,
    /// A PROXY header that breaks its specification or is too long.
    ProxyMalformed,
    /// `proxy_protocol = required`, and no whole PROXY header came in time.
    ProxyTimeout,
    /// It does not begin as an HTTP request does.
    NotHttp,
    /// A request head that is not HTTP/1.1.
    HeadMalformed,
    /// The request head is larger than `limits.head_bytes_max`.
    HeadTooLarge,
    /// The request head was not whole in time.
    HeadTimeout,
    /// The body of a request comes without its length in front.
    BodyLength,
    /// The body is larger than `limits.http_body_bytes_max`.
    BodyTooLarge,
    /// The body was not whole in time.
    BodyTimeout,
    /// `limits.http_calls_max` requests are under way.
    CallsFull,
    /// Nothing is at this path.
    NotFound,
    /// The page takes another method.
    PageMethod,
    /// The request for a WebSocket breaks RFC 6455.
    Handshake(handshake::Refusal),
    /// The page that asks is of another origin.
    Origin,
    /// The token.
    Token(Denied),
    /// More rooms in the URL than a connection may be in.
    TooManyRooms,
    /// A room in the URL that cannot be one.
    BadRoomName,
}

/// What comes of a [`RejectReason`].
pub struct Rejection {
    /// The HTTP status. 0: no answer, the connection just ends.
    pub status: u16,
    /// One line for whoever made the request.
    pub text: &'static str,
    /// The counter, and with it the metric's label.
    pub counter: fn(&mut ShardCounters) -> &mut u64,
}

impl RejectReason {
    /// Status, text and counter.
    pub fn rejection(self) -> Rejection {
        use RejectReason as R;
        let (status, counter, text): (u16, fn(&mut ShardCounters) -> &mut u64, &'static str) =
            match self {
                R::ConnectionsFull => (
                    503,
                    |c| &mut c.refused_limit,
                    "this server has as many connections as it may have",
                ),
                R::HandshakesFull => {
                    (503, |c| &mut c.refused_handshakes, "too many come at the same time")
                }
                R::TooFast => (503, |c| &mut c.refused_pace, "too many come at the same time"),
                R::ProxyMissing => (
                    400,
                    |c| &mut c.refused_proxy_missing,
                    "a PROXY header is needed here (proxy_protocol = required)",
                ),
                R::ProxyUnexpected => (
                    400,
                    |c| &mut c.refused_proxy_unexpected,
                    "this is a PROXY header, and the server takes none (proxy_protocol = off)",
                ),
                R::ProxyUntrusted => (
                    403,
                    |c| &mut c.refused_proxy_untrusted,
                    "a PROXY header from an address that is not in trusted_proxies",
                ),
                R::ProxyMalformed => {
                    (400, |c| &mut c.refused_proxy_malformed, "the PROXY header is malformed")
                }
                R::ProxyTimeout => (0, |c| &mut c.refused_timeout, ""),
                R::NotHttp => (
                    400,
                    |c| &mut c.refused_http,
                    "this is not HTTP; the port speaks HTTP/1.1 and WebSocket, without TLS",
                ),
                R::HeadMalformed => {
                    (400, |c| &mut c.refused_http, "the request head is not HTTP/1.1")
                }
                R::HeadTooLarge => (431, |c| &mut c.refused_http, "the request head is too large"),
                R::HeadTimeout => {
                    (408, |c| &mut c.refused_timeout, "the request head did not come in time")
                }
                R::BodyLength => {
                    (411, |c| &mut c.refused_http, "send the body's length as Content-Length")
                }
                R::BodyTooLarge => (
                    413,
                    |c| &mut c.refused_body,
                    "the body is too large (limits.http_body_bytes_max)",
                ),
                R::BodyTimeout => {
                    (408, |c| &mut c.refused_body_timeout, "the body did not come in time")
                }
                R::CallsFull => (
                    503,
                    |c| &mut c.refused_calls,
                    "too many requests are under way; try again later",
                ),
                R::NotFound => (
                    404,
                    |c| &mut c.http_requests,
                    "nothing is here; the WebSocket endpoint is /ws",
                ),
                R::PageMethod => (405, |c| &mut c.refused_http, "this page can only be read"),
                R::Handshake(refusal) => (refusal.status, |c| &mut c.refused_http, refusal.reason),
                R::Origin => (403, |c| &mut c.refused_auth, "this origin may not connect here"),
                R::Token(denied) => (401, |c| &mut c.refused_auth, denied_text(denied)),
                R::TooManyRooms => (400, |c| &mut c.refused_http, "too many rooms in room_id"),
                R::BadRoomName => (
                    400,
                    |c| &mut c.refused_http,
                    "room_id must be 1 to 255 bytes without control characters",
                ),
            };
        Rejection { status, text, counter }
    }

    /// A complete answer; empty where there is none.
    pub fn response(self) -> Bytes {
        let more: &[(&str, &str)] = match self {
            RejectReason::PageMethod => &[("Allow", "GET, HEAD")],
            RejectReason::CallsFull => &[("Retry-After", "1")],
            _ => &[],
        };
        self.response_with(more)
    }

    /// The answer to a client who may come back after so many seconds.
    pub fn response_after(self, after_s: usize) -> Bytes {
        self.response_with(&[("Retry-After", &after_s.to_string())])
    }

    fn response_with(self, headers: &[(&str, &str)]) -> Bytes {
        let Rejection { status, text, .. } = self.rejection();
        let mut response = Vec::new();
        if status > 0 {
            write_refusal(status, text, headers, &mut response);
        }
        Bytes::from(response)
    }
}

fn denied_text(denied: Denied) -> &'static str {
    match denied {
        Denied::Missing => "a token is needed: ?token=… or Authorization: Bearer …",
        Denied::Invalid => "this token is not valid here",
        Denied::Expired => "this token has expired",
        Denied::ExpInMilliseconds => {
            "exp of this token is in milliseconds; it must be in seconds (RFC 7519 §4.1.4)"
        }
    }
}
