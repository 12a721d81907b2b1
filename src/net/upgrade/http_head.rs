//! One request head from the bytes of a connection.
//!
//! monoio-http parses the head, behind a cap of our own: it gets bytes only when the empty line is
//! there and all of it is within `head_bytes_max`. Without that, a long header name would make it
//! panic and an endless head would fill the memory.

use crate::net::upgrade::proxy_header::{self, ProxyHeader};
use crate::net::upgrade::reject::RejectReason;
use bytes::{Buf as _, BytesMut};
use http::request::Parts;
use monoio_codec::{Decoded, Decoder};
use monoio_http::h1::codec::decoder::RequestHeadDecoder;

/// Header lines that monoio-http has places for.
const HEADERS_MAX: usize = 96;

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
    let skipped = match &bytes[..] {
        [b'\r'] | [b'\r', b'\n'] => return Ok(HeadRead::More),
        // RFC 9112 §2.2: one empty line in front, as some clients put behind a body.
        [b'\r', b'\n', ..] => 2,
        _ => 0,
    };
    if !bytes[skipped].is_ascii_uppercase() {
        return not_http(bytes);
    }
    // Only the last three old bytes can be part of an empty line that ends in the new ones.
    let from = before.saturating_sub(3).max(skipped);
    let end = bytes[from..].windows(4).position(|four| four == b"\r\n\r\n");
    let end = match end.map(|at| from + at + 4) {
        Some(end) if end <= bytes_max => end,
        // An empty line that ends in bare LF would be waited for in vain.
        _ if has_bare_lf(&bytes[..bytes.len().min(bytes_max)], before) => {
            return Err(RejectReason::HeadMalformed);
        }
        None if bytes.len() < bytes_max => return Ok(HeadRead::More),
        _ => return Err(RejectReason::HeadTooLarge),
    };
    if proxy_header::is_header(bytes) {
        return Err(RejectReason::ProxyUnexpected);
    }
    bytes.advance(skipped);
    check_lines(&bytes[..end - skipped])?;
    match RequestHeadDecoder.decode(bytes) {
        Ok(Decoded::Some(parts)) => Ok(HeadRead::Whole(Box::new(parts))),
        Ok(_) | Err(_) => Err(RejectReason::HeadMalformed),
    }
}

/// What the parser does not see, or takes where two programs may read it differently: a line that ends
/// in a bare LF or CR (RFC 9112 §2.2), a fragment, which is no part of a request (RFC 9110 §7.1), and
/// more headers than it reads.
fn check_lines(head: &[u8]) -> Result<(), RejectReason> {
    let is_bare = |(at, byte): (usize, &u8)| match byte {
        b'\n' => at == 0 || head[at - 1] != b'\r',
        b'\r' => head.get(at + 1) != Some(&b'\n'),
        _ => false,
    };
    let target_end = head.iter().position(|byte| *byte == b'\r').unwrap_or(head.len());
    if head.iter().enumerate().any(is_bare) || head[..target_end].contains(&b'#') {
        return Err(RejectReason::HeadMalformed);
    }
    // The request line and the empty one are no headers.
    let headers = head.iter().filter(|byte| **byte == b'\n').count().saturating_sub(2);
    if headers > HEADERS_MAX { Err(RejectReason::TooManyHeaders) } else { Ok(()) }
}

/// Whether a line ends in LF alone, in what comes after the first `before` bytes.
fn has_bare_lf(bytes: &[u8], before: usize) -> bool {
    let new = bytes.iter().enumerate().skip(before);
    new.filter(|(_, byte)| **byte == b'\n').any(|(at, _)| at == 0 || bytes[at - 1] != b'\r')
}

/// The reason must not depend on how a PROXY header was cut, so a beginning of one is waited for.
fn not_http(bytes: &[u8]) -> Result<HeadRead, RejectReason> {
    match proxy_header::parse(bytes) {
        _ if proxy_header::is_header(bytes) => Err(RejectReason::ProxyUnexpected),
        Ok(ProxyHeader::Incomplete) => Ok(HeadRead::More),
        _ => Err(RejectReason::NotHttp),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(text: &str) -> Result<String, RejectReason> {
        let mut bytes = BytesMut::from(text);
        match read(&mut bytes, 0, 8192)? {
            HeadRead::More => Ok("more".to_owned()),
            HeadRead::Whole(parts) => Ok(format!("{} {}", parts.uri, parts.headers.len())),
        }
    }

    const GET: &str = "GET /ws?a=1 HTTP/1.1\r\n";

    #[test]
    fn one_empty_line_in_front_is_skipped_however_it_is_cut() {
        let whole = format!("\r\n{GET}Host: a\r\n\r\n");
        assert_eq!(read_all(&whole), Ok("/ws?a=1 1".to_owned()));
        for end in 1..whole.len() {
            assert_eq!(read_all(&whole[..end]), Ok("more".to_owned()), "{end}");
        }
        assert_eq!(read_all(&format!("\r\n{whole}")), Err(RejectReason::NotHttp));
        let mut bytes = BytesMut::new();
        for (at, byte) in whole.bytes().enumerate() {
            bytes.extend_from_slice(&[byte]);
            let read = read(&mut bytes, at, 8192).unwrap();
            assert_eq!(matches!(read, HeadRead::Whole(_)), at + 1 == whole.len());
        }
    }

    #[test]
    fn a_proxy_header_that_is_not_expected_is_named_however_it_is_cut() {
        let header = "\r\n\r\n\0\r\nQUIT\n";
        for end in 1..header.len() {
            assert_eq!(read_all(&header[..end]), Ok("more".to_owned()), "{end}");
        }
        assert_eq!(read_all(header), Err(RejectReason::ProxyUnexpected));
        assert_eq!(read_all("\r\n\r\nX"), Err(RejectReason::NotHttp));
    }

    #[test]
    fn what_two_programs_may_read_differently_is_refused() {
        let malformed = Err(RejectReason::HeadMalformed);
        assert_eq!(read_all(&format!("{GET}A: 1\nB: 2\r\n\r\n")), malformed);
        assert_eq!(read_all(&format!("{GET}A: 1\rB: 2\r\n\r\n")), malformed);
        assert_eq!(read_all("GET /ws HTTP/1.1\nHost: a\r\n\r\n"), malformed);
        assert_eq!(read_all("GET /ws HTTP/1.1\nHost: a\n\n"), malformed, "at once");
        assert_eq!(read_all(&format!("{GET}A: 1\n\r\n")), malformed);
        assert_eq!(read_all("GET /ws#part HTTP/1.1\r\nHost: a\r\n\r\n"), malformed);
        assert_eq!(read_all(&format!("{GET}A: #\r\n\r\n")), Ok("/ws?a=1 1".to_owned()));
    }

    #[test]
    fn more_headers_than_are_read_are_refused_with_431() {
        let head = |lines: usize| format!("{GET}{}\r\n", "A: 1\r\n".repeat(lines));
        assert!(read_all(&head(HEADERS_MAX)).is_ok());
        assert_eq!(read_all(&head(HEADERS_MAX + 1)), Err(RejectReason::TooManyHeaders));
    }
}
