//! The client's opening handshake: the HTTP request, and the check of the response (RFC 6455 §4.1).
//!
//! All handshakes of a run share one random key, so `Sec-WebSocket-Accept` is computed once and a
//! million handshakes cost no hash.
//!
//! Invariant: only a 101 with the right `Sec-WebSocket-Accept` opens a connection.

use base64::Engine;
use sha1::{Digest, Sha1};

/// A longer response head is refused.
pub(crate) const HEAD_BYTES_MAX: usize = 16 << 10;

/// The parts of the handshake that are the same for all connections to one server.
#[derive(Debug)]
pub struct ClientHandshake {
    /// The request after the path.
    tail: String,
    /// The value of `Sec-WebSocket-Accept` that answers our key.
    accept: String,
}

/// What the response bytes so far mean.
#[derive(Debug, PartialEq, Eq)]
pub enum HandshakeOutcome {
    /// The head is not complete.
    Incomplete,
    /// The connection is open; frames begin after `bytes`.
    Open {
        /// Length of the head.
        bytes: usize,
    },
    /// The server refused, or is no WebSocket server.
    Refused {
        /// The HTTP status; 0 if the response is not HTTP or has no end.
        status: u16,
        /// The status line, or what is wrong with the response.
        line: String,
        /// `Retry-After`, in seconds.
        retry_after_s: Option<u64>,
    },
}

impl ClientHandshake {
    /// For the server `host`, with these additional `Name: value` headers.
    pub fn new(host: &str, headers: &[String], key: [u8; 16]) -> ClientHandshake {
        let key = base64::engine::general_purpose::STANDARD.encode(key);
        let digest = Sha1::new()
            .chain_update(key.as_bytes())
            .chain_update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11")
            .finalize();
        let accept = base64::engine::general_purpose::STANDARD.encode(digest);
        let mut tail = format!(
            " HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"
        );
        for header in headers {
            tail.push_str(header);
            tail.push_str("\r\n");
        }
        tail.push_str("\r\n");
        ClientHandshake { tail, accept }
    }

    /// Appends the request for `path`.
    pub fn write_request(&self, path: &str, out: &mut Vec<u8>) {
        out.extend_from_slice(b"GET ");
        out.extend_from_slice(path.as_bytes());
        out.extend_from_slice(self.tail.as_bytes());
    }

    /// Reads the response, as far as it has arrived.
    pub fn read_response(&self, bytes: &[u8]) -> HandshakeOutcome {
        let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
            if bytes.len() > HEAD_BYTES_MAX {
                return refused(0, "an endless response head", None);
            }
            return HandshakeOutcome::Incomplete;
        };
        let head = String::from_utf8_lossy(&bytes[..end]);
        let mut lines = head.split("\r\n");
        let line = lines.next().unwrap_or_default();
        let header = |name: &str| {
            head.split("\r\n").skip(1).find_map(|line| {
                let (key, value) = line.split_once(':')?;
                key.trim().eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
            })
        };
        let status = line
            .strip_prefix("HTTP/1.")
            .and_then(|rest| rest.split(' ').nth(1))
            .and_then(|status| status.parse::<u16>().ok())
            .unwrap_or(0);
        if status != 101 {
            let retry_after_s = header("retry-after").and_then(|value| value.parse().ok());
            return refused(status, line, retry_after_s);
        }
        if header("sec-websocket-accept").as_deref() != Some(self.accept.as_str()) {
            return refused(101, "101 with a wrong Sec-WebSocket-Accept", None);
        }
        HandshakeOutcome::Open { bytes: end + 4 }
    }
}

fn refused(status: u16, line: &str, retry_after_s: Option<u64>) -> HandshakeOutcome {
    let line = line.chars().filter(|c| !c.is_control()).take(120).collect();
    HandshakeOutcome::Refused { status, line, retry_after_s }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 6455 §1.3's own example.
    fn rfc_handshake() -> ClientHandshake {
        ClientHandshake::new("example.com", &["X-A: b".into()], *b"the sample nonce")
    }

    #[test]
    fn the_accept_value_is_the_one_of_the_rfc() {
        assert_eq!(rfc_handshake().accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn a_request_carries_the_path_and_the_headers() {
        let mut out = Vec::new();
        rfc_handshake().write_request("/ws?room_id=a", &mut out);
        let text = String::from_utf8(out).expect("ASCII");
        assert!(text.starts_with("GET /ws?room_id=a HTTP/1.1\r\nHost: example.com\r\n"));
        assert!(text.contains("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nX-A: b\r\n\r\n"));
    }

    #[test]
    fn only_a_101_with_the_right_accept_opens() {
        let handshake = rfc_handshake();
        let good = b"HTTP/1.1 101 Switching Protocols\r\n\
            sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n\x81\x00";
        assert_eq!(handshake.read_response(good), HandshakeOutcome::Open { bytes: good.len() - 2 });
        for cut in 0..good.len() - 2 {
            assert_eq!(handshake.read_response(&good[..cut]), HandshakeOutcome::Incomplete);
        }
        let wrong = b"HTTP/1.1 101 OK\r\nSec-WebSocket-Accept: no\r\n\r\n";
        assert!(matches!(
            handshake.read_response(wrong),
            HandshakeOutcome::Refused { status: 101, .. }
        ));
    }

    #[test]
    fn a_refusal_shows_the_status_line_and_when_to_come_back() {
        let handshake = rfc_handshake();
        let answer = handshake.read_response(b"HTTP/1.1 503 Busy\r\nRetry-After: 7\r\n\r\n");
        let expected = HandshakeOutcome::Refused {
            status: 503,
            line: "HTTP/1.1 503 Busy".into(),
            retry_after_s: Some(7),
        };
        assert_eq!(answer, expected);
        assert!(matches!(
            handshake.read_response(b"SSH-2.0-x\r\n\r\n"),
            HandshakeOutcome::Refused { status: 0, .. }
        ));
    }
}
