//! The opening handshake (RFC 6455 §4.2), judged and answered; and the other answers that a port
//! for WebSockets needs.
//!
//! A head is checked by one rule after another, and the answer is for the first that it breaks: one
//! status, one line. `Upgrade` comes before `Connection`, because a browser that opens the address
//! should show "this is a WebSocket endpoint" and not a remark on `Connection`.
//!
//! Extensions are declined by not mentioning them (§9.1), so what an offer says is not read.
//!
//! Invariant: a header that may stand once is never picked from two; the head is refused.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::header::{self, HeaderName};
use http::{HeaderMap, Method, StatusCode, Version};
use sha1::{Digest as _, Sha1};

/// What is hashed behind the client's key (RFC 6455 §1.3).
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// What the client asked for, if it asked properly.
#[derive(Debug, PartialEq, Eq)]
pub struct Upgrade<'a> {
    /// The answer to its key (RFC 6455 §4.2.2).
    pub accept: [u8; 28],
    /// The subprotocols it offers, in its order.
    pub protocols: Vec<&'a str>,
}

/// Why there will be no upgrade.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandshakeError {
    /// The HTTP status.
    pub status: u16,
    /// One line saying what is wrong.
    pub reason: &'static str,
}

/// Judges a request head that was routed to a WebSocket endpoint (RFC 6455 §4.2.1).
pub fn check<'a>(head: &'a http::request::Parts) -> Result<Upgrade<'a>, HandshakeError> {
    if head.method != Method::GET {
        return refuse(405, "a WebSocket is opened with GET");
    }
    if head.version != Version::HTTP_11 {
        return refuse(505, "a WebSocket is opened over HTTP/1.1");
    }
    let headers = &head.headers;
    match single(headers, &header::HOST) {
        None | Some([]) => return refuse(400, "exactly one Host header is needed"),
        Some(host) if !is_host(host) => {
            return refuse(
                400,
                "the Host header is not a host with a port, such as example.org:80",
            );
        }
        Some(_) => {}
    }
    check_upgrade(headers)?;
    if single(headers, &header::SEC_WEBSOCKET_VERSION) != Some(b"13") {
        return refuse(
            426,
            "exactly one Sec-WebSocket-Version header is needed, and it must be 13",
        );
    }
    let Some(accept) = single(headers, &header::SEC_WEBSOCKET_KEY).and_then(accept) else {
        return refuse(
            400,
            "exactly one Sec-WebSocket-Key header is needed, 16 bytes written in base64",
        );
    };
    check_no_body(headers)?;
    let Some(protocols) = protocols(headers) else {
        return refuse(400, "Sec-WebSocket-Protocol is not a list of tokens");
    };
    Ok(Upgrade { accept, protocols })
}

fn refuse<T>(status: u16, reason: &'static str) -> Result<T, HandshakeError> {
    Err(HandshakeError { status, reason })
}

fn check_upgrade(headers: &HeaderMap) -> Result<(), HandshakeError> {
    if !list(headers, &header::UPGRADE).any(|token| token.eq_ignore_ascii_case(b"websocket")) {
        return refuse(426, "this is a WebSocket endpoint: send Upgrade: websocket");
    }
    if !list(headers, &header::CONNECTION).any(|token| token.eq_ignore_ascii_case(b"upgrade")) {
        return refuse(400, "the Connection header must contain Upgrade");
    }
    Ok(())
}

/// What follows the head would be read as frames; so nothing else may be announced.
fn check_no_body(headers: &HeaderMap) -> Result<(), HandshakeError> {
    if headers.contains_key(header::TRANSFER_ENCODING) {
        return refuse(400, "a request for a WebSocket has no body, and so no Transfer-Encoding");
    }
    if headers.contains_key(header::CONTENT_LENGTH)
        && single(headers, &header::CONTENT_LENGTH) != Some(b"0")
    {
        return refuse(400, "a request for a WebSocket has no body, and so no Content-Length");
    }
    Ok(())
}

/// The answer to a client's key, if it is one.
fn accept(key: &[u8]) -> Option<[u8; 28]> {
    let mut nonce = [0u8; 18];
    // 24 characters are 16, 17 or 18 bytes; the padding decides.
    if key.len() != 24 || BASE64.decode_slice(key, &mut nonce).ok()? != 16 {
        return None;
    }
    let hash = Sha1::new().chain_update(key).chain_update(GUID).finalize();
    let mut accept = [0u8; 28];
    let written = BASE64.encode_slice(hash, &mut accept).expect("20 bytes make 28 characters");
    assert_eq!(written, accept.len());
    Some(accept)
}

/// The subprotocols offered, or `None` when one of them cannot be one (RFC 6455 §4.1, 10).
fn protocols(headers: &HeaderMap) -> Option<Vec<&str>> {
    list(headers, &header::SEC_WEBSOCKET_PROTOCOL)
        .map(|offer| {
            let is_token = offer.iter().all(|byte| is_token_byte(*byte));
            std::str::from_utf8(offer).ok().filter(|_| is_token)
        })
        .collect()
}

/// The value of a header that stands exactly once.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a [u8]> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    values.next().is_none().then(|| value.as_bytes().trim_ascii())
}

/// Whether this is `host[:port]` (RFC 9110 §7.2, RFC 3986 §3.2.2): what is none may be read as another
/// host by the next program.
fn is_host(value: &[u8]) -> bool {
    let is_in_brackets = |byte: &u8| byte.is_ascii_hexdigit() || b":.".contains(byte);
    let is_in_name = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=".contains(byte);
    let is_port = |port: &[u8]| {
        let text = std::str::from_utf8(port).unwrap_or("");
        port.iter().all(u8::is_ascii_digit) && (port.is_empty() || text.parse::<u16>().is_ok())
    };
    if let Some(rest) = value.strip_prefix(b"[") {
        let Some(end) = rest.iter().position(|byte| *byte == b']') else { return false };
        let (address, rest) = (&rest[..end], &rest[end + 1..]);
        return end > 0
            && address.iter().all(is_in_brackets)
            && (rest.is_empty() || rest.strip_prefix(b":").is_some_and(is_port));
    }
    let end = value.iter().position(|byte| *byte == b':').unwrap_or(value.len());
    let port = value[end..].strip_prefix(b":").unwrap_or(b"");
    end > 0 && value[..end].iter().all(is_in_name) && is_port(port)
}

/// The elements of a header that is a list, over all of its lines. Empty elements are skipped
/// (RFC 9110 §5.6.1.2).
fn list<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
    headers
        .get_all(name)
        .iter()
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|element| !element.is_empty())
}

/// RFC 9110 §5.6.2.
fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Appends the `101 Switching Protocols` answer. `protocol` is the one of `upgrade.protocols` that
/// the server supports.
pub fn write_accept(upgrade: &Upgrade<'_>, protocol: Option<&str>, out: &mut Vec<u8>) {
    out.extend_from_slice(
        b"HTTP/1.1 101 Switching Protocols\r\n\
          Upgrade: websocket\r\n\
          Connection: Upgrade\r\n\
          Sec-WebSocket-Accept: ",
    );
    out.extend_from_slice(&upgrade.accept);
    if let Some(protocol) = protocol {
        // RFC 6455 §4.1: a client fails the connection over a subprotocol it did not offer.
        debug_assert!(upgrade.protocols.contains(&protocol));
        out.extend_from_slice(b"\r\nSec-WebSocket-Protocol: ");
        out.extend_from_slice(protocol.as_bytes());
    }
    out.extend_from_slice(b"\r\n\r\n");
}

/// Appends a complete small answer: `status`, the line `reason` as its text, `extra_headers`, and
/// the headers that the status itself asks for (405: `Allow`; 426: `Upgrade` and the version).
/// The connection ends with it. `reason` and the headers are ours: they hold no line breaks.
pub fn write_refusal(status: u16, reason: &str, extra_headers: &[(&str, &str)], out: &mut Vec<u8>) {
    let phrase = StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
    let mut line = |parts: &[&str]| {
        debug_assert!(parts.iter().all(|part| !part.contains(['\r', '\n'])));
        parts.iter().for_each(|part| out.extend_from_slice(part.as_bytes()));
        out.extend_from_slice(b"\r\n");
    };
    let mut digits = itoa::Buffer::new();
    line(&["HTTP/1.1 ", digits.format(status), " ", phrase.unwrap_or("")]);
    line(&["Content-Type: text/plain; charset=utf-8"]);
    line(&["Content-Length: ", digits.format(reason.len() + 1)]);
    match status {
        405 => {
            line(&["Allow: GET"]);
            line(&["Connection: close"]);
        }
        // RFC 9110 §15.5.22 requires the protocol to upgrade to, RFC 6455 §4.4 its version.
        426 => {
            line(&["Upgrade: websocket"]);
            line(&["Sec-WebSocket-Version: 13"]);
            line(&["Connection: close, Upgrade"]);
        }
        _ => line(&["Connection: close"]),
    }
    for (name, value) in extra_headers {
        line(&[name, ": ", value]);
    }
    line(&[]);
    out.extend_from_slice(reason.as_bytes());
    out.push(b'\n');
}

#[cfg(test)]
mod tests;
