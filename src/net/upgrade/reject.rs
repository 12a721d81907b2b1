//! Why a connection did not become a WebSocket: status, counter and text of each reason, once.

use crate::auth::AuthError;
use crate::metrics::ShardCounters;
use crate::ws::handshake::{self, write_refusal};
use bytes::Bytes;

/// What comes of a [`RejectReason`].
pub struct Rejection {
    /// The HTTP status. 0: no answer, the connection just ends.
    pub status: u16,
    /// The counter, and with it the metric's label.
    pub counter: fn(&mut ShardCounters) -> &mut u64,
    /// The body: one line for the author of the client.
    pub text: &'static str,
}

macro_rules! reject_reasons {
    ( $( $(#[$doc:meta])* $name:ident: $status:literal $counter:ident $text:literal; )+ ) => {
        /// Why a connection is refused.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum RejectReason {
            $( $(#[$doc])* $name, )+
            /// The request for a WebSocket breaks RFC 6455.
            Handshake(handshake::HandshakeError),
            /// The token.
            Token(AuthError),
        }

        impl RejectReason {
            /// Status, counter and text.
            pub fn rejection(self) -> Rejection {
                let (status, counter, text): (u16, fn(&mut ShardCounters) -> &mut u64, _) =
                    match self {
                        $( RejectReason::$name => ($status, |c| &mut c.$counter, $text), )+
                        RejectReason::Handshake(refusal) => {
                            (refusal.status, |c| &mut c.refused_http, refusal.reason)
                        }
                        RejectReason::Token(AuthError::UnknownKey) => {
                            (503, |c| &mut c.refused_auth, denied_text(AuthError::UnknownKey))
                        }
                        RejectReason::Token(denied) => {
                            (401, |c| &mut c.refused_auth, denied_text(denied))
                        }
                    };
                Rejection { status, counter, text }
            }
        }
    };
}

reject_reasons! {
    /// There are as many connections as there may be, or the node is ending.
    ConnectionsFull: 503 refused_limit
        "this server has as many connections as it may have";
    /// As many as may be are in their handshake.
    HandshakesFull: 503 refused_handshakes
        "too many come at the same time";
    /// This node is near its memory bound.
    Memory: 503 refused_memory
        "this server is short of memory; try again later";
    /// More connections come in a second than `limits.accepts_per_s_max`.
    TooFast: 503 refused_pace
        "too many come at the same time";
    /// Its address has as many connections as `limits.connections_per_address_max`.
    AddressFull: 429 refused_address
        "this address has as many connections as it may have";
    /// `limits.handshakes_per_address_max` connections of its address are in their handshake.
    AddressHandshakes: 429 refused_address_handshakes
        "too many come from this address at the same time";
    /// Connections of its address come faster than `limits.connects_per_address_per_s_max`.
    AddressTooFast: 429 refused_address_rate
        "too many come from this address in a second";
    /// Its user has as many connections as `limits.connections_per_user_max`.
    UserFull: 429 refused_user
        "this user has as many connections as it may have";
    /// `proxy_protocol = required`, and it does not begin with a PROXY header.
    ProxyMissing: 400 refused_proxy_missing
        "a PROXY header is needed here (proxy_protocol = required)";
    /// It begins with a PROXY header, and `proxy_protocol = off`.
    ProxyUnexpected: 400 refused_proxy_unexpected
        "this is a PROXY header, and the server takes none (proxy_protocol = off)";
    /// A PROXY header from an address that is none of `trusted_proxies`.
    ProxyUntrusted: 403 refused_proxy_untrusted
        "a PROXY header from an address that is not in trusted_proxies";
    /// `proxy_protocol = required`, and its address is none of `trusted_proxies`.
    NoProxy: 403 refused_proxy_untrusted
        "connections come through a load balancer here, and this address is not in trusted_proxies";
    /// A PROXY header that breaks its specification or is too long.
    ProxyMalformed: 400 refused_proxy_malformed
        "the PROXY header is malformed";
    /// `proxy_protocol = required`, and no whole PROXY header came in time.
    ProxyTimeout: 0 refused_timeout
        "";
    /// It does not begin as an HTTP request does.
    NotHttp: 400 refused_http
        "this is not HTTP; the port speaks HTTP/1.1 and WebSocket, without TLS";
    /// A request head that is not HTTP/1.1.
    HeadMalformed: 400 refused_http
        "the request head is not HTTP/1.1";
    /// More header lines than are read.
    TooManyHeaders: 431 refused_http
        "the request has too many headers";
    /// The request head is larger than `limits.head_bytes_max`.
    HeadTooLarge: 431 refused_http
        "the request head is too large";
    /// The request head was not whole in time.
    HeadTimeout: 408 refused_timeout
        "the request head did not come in time";
    /// The body of a request comes without its length in front.
    BodyLength: 411 refused_http
        "send the body's length as Content-Length";
    /// The body is larger than `limits.http_body_bytes_max`.
    BodyTooLarge: 413 refused_body
        "the body is too large (limits.http_body_bytes_max)";
    /// The body was not whole in time.
    BodyTimeout: 408 refused_body_timeout
        "the body did not come in time";
    /// `limits.http_calls_max` requests are under way.
    CallsFull: 503 refused_calls
        "too many requests are under way; try again later";
    /// The connect hook does not admit it. Answered with the hook's reason.
    HookDenied: 403 refused_hook
        "this client may not connect here";
    /// The connect hook has not answered, and `hooks.on_failure = deny`.
    HookFailed: 503 refused_hook_failed
        "whether this client may connect is not known now; try again later";
    /// `hooks.waiting_max` questions wait.
    HooksFull: 503 refused_hooks_full
        "too many come at the same time; try again later";
    /// Nothing is at this path.
    NotFound: 404 http_requests
        "nothing is here; the WebSocket endpoint is /ws";
    /// The page takes another method.
    PageMethod: 405 refused_http
        "this page can only be read";
    /// The page that asks is of an origin that is none of `origins`.
    Origin: 403 refused_auth
        "this origin may not connect here";
    /// Without `origins`, and without tokens: the page that asks is of another host.
    OtherOrigin: 403 refused_auth
        "pages of other hosts may not connect here without a token; name their origins in `origins`";
    /// Two `Origin` headers.
    TwoOrigins: 400 refused_http
        "there may be one Origin header";
    /// Two `Authorization` headers.
    TwoAuthorizations: 400 refused_http
        "there may be one Authorization header";
    /// Two tokens that differ.
    TwoTokens: 400 refused_auth
        "two different tokens; send one: Authorization: Bearer …, ?token=… or the subprotocol campanile.token.…";
    /// The first message of a client without a token is no token.
    NotAuth: 401 refused_auth
        "the first message must be {\"type\":\"auth\",\"token\":\"…\"}";
    /// It did not come in time.
    AuthTimeout: 401 refused_auth_timeout
        "no {\"type\":\"auth\",\"token\":\"…\"} came in time (auth.first_message_timeout_ms)";
    /// Bytes in the query that are not UTF-8.
    QueryNotUtf8: 400 refused_http
        "the query is not UTF-8";
    /// More rooms in the URL than a connection may be in.
    TooManyRooms: 400 refused_http
        "too many rooms in room_id";
    /// A room in the URL that cannot be one.
    BadRoomName: 400 refused_http
        "room_id must be 1 to 255 bytes, without invisible characters or blanks around it";
}

impl RejectReason {
    /// A complete answer; empty where there is none.
    pub fn response(self) -> Bytes {
        let more: &[(&str, &str)] = match self {
            RejectReason::PageMethod => &[("Allow", "GET, HEAD")],
            RejectReason::CallsFull
            | RejectReason::Memory
            | RejectReason::HookFailed
            | RejectReason::HooksFull => &[("Retry-After", "1")],
            RejectReason::Token(AuthError::UnknownKey) => &[("Retry-After", "1")],
            RejectReason::AddressHandshakes | RejectReason::AddressTooFast => {
                &[("Retry-After", "5")]
            }
            RejectReason::AddressFull | RejectReason::UserFull => &[("Retry-After", "30")],
            _ => &[],
        };
        self.response_with(more)
    }

    /// The answer with `Retry-After`, in seconds.
    pub fn response_after(self, after_s: usize) -> Bytes {
        self.response_with(&[("Retry-After", &after_s.to_string())])
    }

    /// The answer with another text, without line breaks.
    pub fn response_because(self, text: &str) -> Bytes {
        let mut response = Vec::new();
        write_refusal(self.rejection().status, text, &[], &mut response);
        Bytes::from(response)
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

/// Why a token is not good, for people.
pub fn denied_text(denied: AuthError) -> &'static str {
    match denied {
        AuthError::Missing => "a token is needed: ?token=… or Authorization: Bearer …",
        AuthError::Invalid => "this token is not valid here",
        AuthError::UnknownKey => {
            "this token names a key (kid) that is not known here yet; the keys are read again: try again"
        }
        AuthError::WrongIssuer => "this token is of another issuer (iss, auth.issuer)",
        AuthError::WrongAudience => "this token is for another audience (aud, auth.audience)",
        AuthError::TooManyGrants => {
            "this token has too many patterns in rooms and send: at most 64, and 4096 bytes"
        }
        AuthError::InfoTooLong => "info of this token is too long: at most 512 bytes of JSON",
        AuthError::OnlyForRoom => "this token is for one room: send it as the token of a join",
        AuthError::NotForRoom => "this token is for no room: its claim room must name one",
        AuthError::Expired => "this token has expired",
        AuthError::LacksClaim => "this token lacks a claim that is required (auth.required_claims)",
        AuthError::Revoked => "this token was revoked",
        AuthError::ExpInMilliseconds => {
            "exp of this token is in milliseconds; it must be in seconds (RFC 7519 §4.1.4)"
        }
    }
}
