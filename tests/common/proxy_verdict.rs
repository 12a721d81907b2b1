//! What must hold for the verdict on any bytes in front of a connection's HTTP.

use campanile::net::upgrade::proxy_header::{HEADER_BYTES_MAX, ProxyHeader, is_header, parse};

/// Whatever has come: the verdict is incomplete up to some byte, and from there on always the same.
/// It needs no more bytes than the longest header has, and a whole header lies within what came.
pub fn check_verdict_stays(stream: &[u8]) {
    let mut verdict = None;
    for cut in 0..=stream.len() {
        let now = parse(&stream[..cut]);
        match verdict {
            Some(verdict) => assert_eq!(now, verdict, "{cut} of {stream:02x?}"),
            None if now == Ok(ProxyHeader::Incomplete) => {
                assert!(cut < HEADER_BYTES_MAX, "undecided after {cut} bytes");
            }
            None => verdict = Some(now),
        }
        if let Ok(ProxyHeader::Whole { bytes, .. }) = now {
            assert!(bytes <= cut && bytes <= HEADER_BYTES_MAX);
            assert!(is_header(stream));
        }
    }
}
