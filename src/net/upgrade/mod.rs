//! What happens on a connection before it is a WebSocket: one stage after another.
//!
//! ```text
//!   ProxyHeader ──► Head ──► (a WebSocket, or an answer and the end)
//! ```
//!
//! | stage | begins | bytes | deadline |
//! |---|---|---|---|
//! | `ProxyHeader` | with the connection, unless `proxy_protocol = off` | 536 | `handshake_timeout_ms` |
//! | `Head` | with the connection, or behind the PROXY header | `head_bytes_max` | the same, over both |
//!
//! The deadline is the shard's, over all reads together, so that dripping bytes buys no time; and the
//! number of connections that are in a stage is bounded by `handshakes_max`.
//!
//! Invariant: what a connection holds here is at most its stage's bytes, rounded up to what the
//! allocator's doubling gives; one that has become a WebSocket holds nothing. No byte of a connection
//! reaches the HTTP parser before its PROXY header is judged.

pub mod forwarded;
pub mod http_head;
pub mod proxy_header;
pub mod reject;
pub mod routes;

use crate::plan::ProxyProtocol;
use crate::policy::networks::any_contains;
use crate::shard::Opening;
use bytes::{Buf, Bytes, BytesMut};
use http_head::HeadRead;
use proxy_header::ProxyHeader;
use reject::RejectReason;
use routes::{RouteOutcome, Routes};
use std::collections::HashMap;
use std::net::SocketAddr;

/// Connections that have begun a stage, by the index of their connection.
#[derive(Default)]
pub struct Upgrades {
    begun: HashMap<u32, Begun>,
    /// Memory of all [`Begun::bytes`].
    held_bytes: usize,
}

/// One of them.
struct Begun {
    stage: Stage,
    /// What has come of it.
    bytes: BytesMut,
    /// Who the client is, as a PROXY header has named it.
    named: Option<SocketAddr>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    ProxyHeader,
    Head,
}

/// What has become of a connection.
pub enum Progress {
    /// More bytes are needed.
    More,
    /// It is a WebSocket now.
    Open {
        /// For the shard.
        opening: Opening,
        /// The client's address where a proxy has named it; otherwise the socket's peer is the client.
        named: Option<SocketAddr>,
        /// What came behind the head, for the decoder; may be empty.
        rest: BytesMut,
    },
    /// It has got a page: a complete HTTP answer, then the end.
    Page(Bytes),
    /// It is refused.
    Reject(RejectReason),
    /// Its socket has failed.
    Gone,
}

/// What has come of the first stage.
enum ProxyVerdict {
    /// What follows is HTTP.
    Next,
    More,
    Gone,
    Reject(RejectReason),
}

/// How far a connection had come that has gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeftAt {
    /// It had asked nothing: a health check.
    Nothing,
    /// In the middle of a header or a head.
    Halfway,
}

impl Upgrades {
    /// More bytes of the connection at `index`. `direct` answers the address of the socket's peer; it
    /// is asked only where a proxy may be trusted.
    pub fn handle_read(
        &mut self,
        index: u32,
        input: &[u8],
        routes: &Routes,
        direct: impl Fn() -> Option<SocketAddr>,
        now_unix_s: u64,
    ) -> Progress {
        let mut begun = self.take(index).unwrap_or_else(|| Begun::new(routes));
        let before = begun.bytes.len();
        begun.bytes.extend_from_slice(input);
        let progress = begun.step(before, routes, &direct, now_unix_s);
        if matches!(progress, Progress::More) {
            self.held_bytes += begun.bytes.capacity();
            self.begun.insert(index, begun);
        }
        progress
    }

    /// Why a connection is refused whose time is over.
    pub fn timed_out(&self, index: u32, routes: &Routes) -> RejectReason {
        let is_in_head = match self.begun.get(&index) {
            Some(begun) => begun.stage == Stage::Head,
            None => routes.plan().proxy_protocol == ProxyProtocol::Off,
        };
        let is_required = routes.plan().proxy_protocol == ProxyProtocol::Required;
        // A balancer that only connects, to see whether the node lives, is not answered.
        if is_in_head || !is_required {
            RejectReason::HeadTimeout
        } else {
            RejectReason::ProxyTimeout
        }
    }

    /// The client's address where a proxy has named it, of a connection that is in a stage.
    pub fn named(&self, index: u32) -> Option<SocketAddr> {
        self.begun.get(&index)?.named
    }

    /// The connection at `index` has gone.
    pub fn forget(&mut self, index: u32) -> LeftAt {
        match self.take(index) {
            Some(begun) if !begun.bytes.is_empty() => LeftAt::Halfway,
            _ => LeftAt::Nothing,
        }
    }

    /// Memory that headers and heads hold which are not whole.
    pub fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    fn take(&mut self, index: u32) -> Option<Begun> {
        let begun = self.begun.remove(&index)?;
        self.held_bytes -= begun.bytes.capacity();
        Some(begun)
    }
}

impl Begun {
    fn new(routes: &Routes) -> Begun {
        let stage = match routes.plan().proxy_protocol {
            ProxyProtocol::Off => Stage::Head,
            ProxyProtocol::Optional | ProxyProtocol::Required => Stage::ProxyHeader,
        };
        Begun { stage, bytes: BytesMut::new(), named: None }
    }

    /// Goes on as far as the bytes allow; the first `before` of them were seen already.
    fn step(
        &mut self,
        mut before: usize,
        routes: &Routes,
        direct: &impl Fn() -> Option<SocketAddr>,
        now_unix_s: u64,
    ) -> Progress {
        if self.stage == Stage::ProxyHeader {
            match self.read_proxy_header(routes, direct) {
                ProxyVerdict::Next => before = 0,
                ProxyVerdict::More => return Progress::More,
                ProxyVerdict::Gone => return Progress::Gone,
                ProxyVerdict::Reject(reason) => return Progress::Reject(reason),
            }
        }
        if self.bytes.is_empty() {
            return Progress::More;
        }
        let parts = match http_head::read(&mut self.bytes, before, routes.head_bytes_max()) {
            Ok(HeadRead::More) => return Progress::More,
            Ok(HeadRead::Whole(parts)) => *parts,
            Err(reason) => return Progress::Reject(reason),
        };
        match routes.answer(&parts, now_unix_s) {
            RouteOutcome::Open(opening) => Progress::Open {
                named: self.client(&parts.headers, routes, direct),
                opening,
                rest: std::mem::take(&mut self.bytes),
            },
            RouteOutcome::Page(response) => Progress::Page(response),
            RouteOutcome::Reject(reason) => Progress::Reject(reason),
        }
    }

    /// Reads the PROXY header, if there is one.
    fn read_proxy_header(
        &mut self,
        routes: &Routes,
        direct: &impl Fn() -> Option<SocketAddr>,
    ) -> ProxyVerdict {
        let plan = routes.plan();
        match proxy_header::parse(&self.bytes) {
            Err(_) => return ProxyVerdict::Reject(RejectReason::ProxyMalformed),
            Ok(ProxyHeader::Incomplete) => return ProxyVerdict::More,
            Ok(ProxyHeader::Absent) if plan.proxy_protocol == ProxyProtocol::Required => {
                return ProxyVerdict::Reject(RejectReason::ProxyMissing);
            }
            Ok(ProxyHeader::Absent) => {}
            Ok(ProxyHeader::Whole { bytes, source }) => {
                // A health check may have reset its connection before this is read.
                let Some(proxy) = direct() else { return ProxyVerdict::Gone };
                if !any_contains(&plan.trusted_proxies, proxy.ip()) {
                    return ProxyVerdict::Reject(RejectReason::ProxyUntrusted);
                }
                self.bytes.advance(bytes);
                self.named = source;
            }
        }
        self.stage = Stage::Head;
        ProxyVerdict::Next
    }

    /// Who asks, if not the socket's peer: as HTTP proxies say or else as the PROXY header said.
    fn client(
        &self,
        headers: &http::HeaderMap,
        routes: &Routes,
        direct: &impl Fn() -> Option<SocketAddr>,
    ) -> Option<SocketAddr> {
        let trusted = &routes.plan().trusted_proxies;
        if trusted.is_empty() || !forwarded::is_forwarded(headers) {
            return self.named;
        }
        let nearest = self.named.or_else(direct)?;
        forwarded::client(headers, nearest.ip(), trusted).or(self.named)
    }
}
