//! How long the body of a request is, and whether its client waits before it sends it.
//!
//! A body without its length in front (`Transfer-Encoding`) is refused: RFC 9110 §15.5.12 allows it,
//! and what is bounded by a number alone needs no parser.

use crate::net::upgrade::reject::RejectReason;
use http::header::{CONTENT_LENGTH, EXPECT, TRANSFER_ENCODING};
use http::request::Parts;

/// The interim answer that a client may wait for (RFC 9110 §10.1.1).
pub(super) const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// What is to come behind a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BodyPlan {
    /// So many bytes.
    pub bytes: usize,
    /// [`CONTINUE`] has to be sent before them.
    pub waits_for_continue: bool,
}

/// Judges what a head says of its body, which may have `bytes_max` bytes.
pub(super) fn plan(parts: &Parts, bytes_max: usize) -> Result<BodyPlan, RejectReason> {
    let headers = &parts.headers;
    if headers.contains_key(TRANSFER_ENCODING) {
        return Err(RejectReason::BodyLength);
    }
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let bytes = match (lengths.next(), lengths.next()) {
        (None, _) => 0,
        (Some(length), None) => number(length.as_bytes()).ok_or(RejectReason::HeadMalformed)?,
        // RFC 9112 §6.3: two lengths are how requests are smuggled.
        (Some(_), Some(_)) => return Err(RejectReason::HeadMalformed),
    };
    if bytes > bytes_max as u64 {
        return Err(RejectReason::BodyTooLarge);
    }
    let expects = headers.get(EXPECT).map(|value| value.as_bytes());
    let waits_for_continue =
        expects.is_some_and(|value| value.eq_ignore_ascii_case(b"100-continue"));
    Ok(BodyPlan { bytes: bytes as usize, waits_for_continue })
}

/// Digits alone (RFC 9110 §8.6); a number beyond all limits is the largest one.
fn number(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let add =
        |number: u64, digit: &u8| number.saturating_mul(10).saturating_add(u64::from(digit - b'0'));
    Some(text.iter().fold(0, add))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(headers: &[(&'static str, &str)]) -> Result<BodyPlan, RejectReason> {
        let (mut parts, ()) = http::Request::new(()).into_parts();
        for (name, value) in headers {
            parts.headers.append(*name, value.parse().unwrap());
        }
        plan(&parts, 100)
    }

    #[test]
    fn a_body_has_the_length_that_its_head_says_once_in_digits() {
        let good = |bytes, waits_for_continue| Ok(BodyPlan { bytes, waits_for_continue });
        assert_eq!(judge(&[]), good(0, false));
        assert_eq!(judge(&[("content-length", "100")]), good(100, false));
        let waits = [("content-length", "7"), ("expect", "100-Continue")];
        assert_eq!(judge(&waits), good(7, true));
        assert_eq!(judge(&[("content-length", "101")]), Err(RejectReason::BodyTooLarge));
        let endless = "9".repeat(40);
        assert_eq!(judge(&[("content-length", &endless)]), Err(RejectReason::BodyTooLarge));
        for text in ["", "+1", "-1", "1 2", "0x1", "1,1"] {
            assert_eq!(
                judge(&[("content-length", text)]),
                Err(RejectReason::HeadMalformed),
                "{text}"
            );
        }
        let twice = [("content-length", "1"), ("content-length", "1")];
        assert_eq!(judge(&twice), Err(RejectReason::HeadMalformed));
        let chunked = [("transfer-encoding", "chunked"), ("content-length", "1")];
        assert_eq!(judge(&chunked), Err(RejectReason::BodyLength));
    }
}
