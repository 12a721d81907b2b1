//! From the first bytes of a connection to one request head.
//!
//! monoio-http parses the head, behind a cap of our own: it gets bytes only when the empty line is
//! there and all of it is within `head_bytes_max`. Without that, a long header name would make it
//! panic and an endless head would fill the memory. The deadline is the shard's
//! (`handshake_timeout_ms`, over all reads together, so that dripping bytes buys no time).
//!
//! Invariant: a connection that has not finished its head costs at most `head_bytes_max`; one that
//! has costs nothing here.

use crate::net::upgrade::routes::{RouteOutcome, Routes};
use crate::shard::Opening;
use crate::ws::handshake::write_refusal;
use bytes::{Bytes, BytesMut};
use monoio_codec::{Decoded, Decoder};
use monoio_http::h1::codec::decoder::RequestHeadDecoder;
use std::collections::HashMap;

/// The heads that have begun, by the index of their connection.
#[derive(Default)]
pub struct RequestHeads {
    begun: HashMap<u32, BytesMut>,
}

/// What has become of a handshake.
pub enum Progress {
    /// More bytes are needed.
    More,
    /// It is a WebSocket now; `rest` came behind the head and is for the decoder.
    Open {
        /// For the shard.
        opening: Opening,
        /// May be empty.
        rest: BytesMut,
    },
    /// A complete HTTP answer, then the end.
    Http {
        /// The bytes.
        response: Bytes,
        /// Why, for the counters.
        cause: Cause,
    },
}

/// Why a connection did not become a WebSocket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// It asked for a page, and got it or was told that there is none.
    Page,
    /// It is no proper request.
    BadRequest,
    /// It may not come in.
    Auth,
}

impl RequestHeads {
    /// More bytes of the head of the connection at `index`.
    pub fn handle_read(
        &mut self,
        index: u32,
        input: &[u8],
        site: &Routes,
        now_unix_s: u64,
    ) -> Progress {
        let mut head = self.begun.remove(&index).unwrap_or_default();
        // Only the last three old bytes can be part of an empty line that ends in the new ones.
        let from = head.len().saturating_sub(3);
        head.extend_from_slice(input);
        if !head[0].is_ascii_uppercase() {
            return bad_request(
                400,
                "this is not HTTP; the port speaks HTTP/1.1 and WebSocket, without TLS",
            );
        }
        let end = head[from..].windows(4).position(|bytes| bytes == b"\r\n\r\n");
        match end.map(|at| from + at + 4) {
            Some(end) if end <= site.head_bytes_max() => answer(head, site, now_unix_s),
            None if head.len() < site.head_bytes_max() => {
                self.begun.insert(index, head);
                Progress::More
            }
            _ => bad_request(431, "the request head is too large"),
        }
    }

    /// The connection at `index` has gone.
    pub fn forget(&mut self, index: u32) {
        self.begun.remove(&index);
    }
}

/// The answer to a client whose head did not come in time.
pub fn timed_out() -> Bytes {
    refusal(408, "the request head did not come in time")
}

/// The answer to a client who has to come back later, and when.
pub fn come_back(reason: &str, after_s: usize) -> Bytes {
    let mut response = Vec::new();
    write_refusal(503, reason, &[("Retry-After", &after_s.to_string())], &mut response);
    Bytes::from(response)
}

fn answer(mut head: BytesMut, site: &Routes, now_unix_s: u64) -> Progress {
    let parts = match RequestHeadDecoder.decode(&mut head) {
        Ok(Decoded::Some(parts)) => parts,
        Ok(_) | Err(_) => return bad_request(400, "the request head is not HTTP/1.1"),
    };
    match site.answer(&parts, now_unix_s) {
        RouteOutcome::Open(opening) => Progress::Open { opening, rest: head },
        RouteOutcome::Http { response, cause } => Progress::Http { response, cause },
    }
}

fn bad_request(status: u16, reason: &'static str) -> Progress {
    Progress::Http { response: refusal(status, reason), cause: Cause::BadRequest }
}

/// A complete refusal.
pub fn refusal(status: u16, reason: &str) -> Bytes {
    let mut response = Vec::new();
    write_refusal(status, reason, &[], &mut response);
    Bytes::from(response)
}
