//! One request head from the bytes of a connection.
//!
//! monoio-http parses the head, behind a cap of our own: it gets bytes only when the empty line is
//! there and all of it is within `head_bytes_max`. Without that, a long header name would make it
//! panic and an endless head would fill the memory.

use crate::net::upgrade::proxy_header;
use crate::net::upgrade::reject::RejectReason;
use bytes::BytesMut;
use http::request::Parts;
use monoio_codec::{Decoded, Decoder};
use monoio_http::h1::codec::decoder::RequestHeadDecoder;

/// What has come of a head.
pub enum HeadRead {
    /// More bytes are needed.
    More,
    /// All of it; what follows it is left in the bytes.
    Whole(Box<Parts>),
}

/// Reads a head from the beginning of `bytes`, which are not empty and of which the first `before`
/// were looked at in vain. It may have `bytes_max` bytes.
pub fn read(
    bytes: &mut BytesMut,
    before: usize,
    bytes_max: usize,
) -> Result<HeadRead, RejectReason> {
    if !bytes[0].is_ascii_uppercase() {
        return Err(not_http(bytes));
    }
    // Only the last three old bytes can be part of an empty line that ends in the new ones.
    let from = before.saturating_sub(3);
    let end = bytes[from..].windows(4).position(|four| four == b"\r\n\r\n");
    match end.map(|at| from + at + 4) {
        Some(end) if end <= bytes_max => {}
        None if bytes.len() < bytes_max => return Ok(HeadRead::More),
        _ => return Err(RejectReason::HeadTooLarge),
    }
    if proxy_header::is_header(bytes) {
        return Err(RejectReason::ProxyUnexpected);
    }
    match RequestHeadDecoder.decode(bytes) {
        Ok(Decoded::Some(parts)) => Ok(HeadRead::Whole(Box::new(parts))),
        Ok(_) | Err(_) => Err(RejectReason::HeadMalformed),
    }
}

fn not_http(bytes: &[u8]) -> RejectReason {
    match proxy_header::is_header(bytes) {
        true => RejectReason::ProxyUnexpected,
        false => RejectReason::NotHttp,
    }
}
