//! A WebSocket whose client came without a token, and sends one in its first message: a browser's
//! script can set no header, and what stands in a URL is logged by proxies.
//!
//! It is a handshake still: it is counted as one, has a deadline, and is no connection of the shard.
//! Nothing but `{"type":"auth","token":"…"}` is read of it, of at most [`MESSAGE_BYTES_MAX`], and pings
//! are answered, of which it may send [`PINGS_MAX`]. Everything else ends it.
//!
//! Invariant: one token is checked, and then it is open or ends.

use crate::net::upgrade::reject::RejectReason;
use crate::net::upgrade::routes::{AwaitedOpening, HandshakeRefusal, UNKNOWN_KEY};
use crate::protocol::dialect::{AuthRequest, Encoding, Incoming};
use crate::shard::{write_overloaded, write_rejection};
use crate::ws::decoder::{Decoder, DecoderLimits, Item};
use crate::ws::encode::{self, Opcode};
use bytes::{Bytes, BytesMut};

/// The longest first message, in bytes.
pub(super) const MESSAGE_BYTES_MAX: usize = 16 * 1024;
/// Levels of arrays and objects in it.
const JSON_DEPTH_MAX: usize = 8;
/// Pings that are answered.
const PINGS_MAX: usize = 8;

/// One that waits for the message.
pub(super) struct FirstMessage {
    pub(super) opening: AwaitedOpening,
    decoder: Box<Decoder>,
    pings: usize,
}

/// What has come of its bytes.
pub(super) enum FirstRead {
    /// More are needed. These leave now, perhaps none.
    More(Bytes),
    /// It is a token.
    Token(AuthRequest),
    /// It ends: why, and the close frame where that does not follow from it.
    End(RejectReason, Option<Bytes>),
}

impl FirstMessage {
    pub(super) fn new(opening: AwaitedOpening) -> FirstMessage {
        FirstMessage { opening, decoder: Box::default(), pings: 0 }
    }

    /// Memory of what has come of the message.
    pub(super) fn held_bytes(&self) -> usize {
        self.decoder.heap_bytes()
    }

    /// Uses `bytes` up to the end of the first message.
    pub(super) fn read(&mut self, bytes: &mut BytesMut) -> FirstRead {
        let mut input = std::mem::take(bytes);
        let mut rest = &mut input[..];
        let limits = DecoderLimits { message_bytes_max: MESSAGE_BYTES_MAX };
        // What was due when it began, and the answers to pings.
        let mut out = Vec::from(std::mem::take(&mut self.opening.response));
        let encoding = self.opening.encoding;
        let found = loop {
            let Some(item) = self.decoder.next(&mut rest, limits) else {
                return FirstRead::More(Bytes::from(out));
            };
            match item {
                Ok(Item::Text(text)) => break token_of(text, encoding),
                Ok(Item::Ping(payload)) if self.pings < PINGS_MAX => {
                    self.pings += 1;
                    encode::frame(Opcode::Pong, payload, &mut out);
                }
                Ok(Item::Pong(_)) => {}
                Ok(Item::Close { code, .. }) => {
                    break FirstRead::End(RejectReason::NotAuth, Some(encode::close(code, "")));
                }
                Ok(Item::Binary(_) | Item::Ping(_)) => {
                    break FirstRead::End(RejectReason::NotAuth, None);
                }
                Err(error) => {
                    let (code, why) = (error.close_code(), error.reason());
                    let close = encode::close(Some(code), why);
                    break FirstRead::End(RejectReason::NotAuth, Some(close));
                }
            }
        };
        *bytes = BytesMut::from(&*rest);
        self.opening.response = Bytes::from(out);
        found
    }
}

fn token_of(text: &mut [u8], encoding: Encoding) -> FirstRead {
    let request = encoding.dialect().auth_request(Incoming::Text(text), JSON_DEPTH_MAX);
    request.map_or(FirstRead::End(RejectReason::NotAuth, None), FirstRead::Token)
}

/// The refusal of one that is a WebSocket already: behind `before`, the reason and a close frame with
/// it, or just `close`.
pub fn refuse(
    encoding: Encoding,
    reason: RejectReason,
    before: Bytes,
    close: Option<Bytes>,
) -> HandshakeRefusal {
    let mut response = Vec::from(before);
    let text = reason.rejection().text;
    match (close, reason) {
        (Some(close), _) => response.extend_from_slice(&close),
        (None, RejectReason::UserFull | UNKNOWN_KEY) => {
            write_overloaded(encoding, text, &mut response);
        }
        (None, _) => write_rejection(encoding, false, text, &mut response),
    }
    HandshakeRefusal { reason, response: Bytes::from(response), user: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ws::mask;

    fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
        let key = [1, 2, 3, 4];
        let mut frame = vec![first];
        match payload.len() {
            len @ 0..=125 => frame.push(0x80 | len as u8),
            len => {
                frame.push(0x80 | 126);
                frame.extend_from_slice(&(len as u16).to_be_bytes());
            }
        }
        frame.extend_from_slice(&key);
        let start = frame.len();
        frame.extend_from_slice(payload);
        mask::apply(key, &mut frame[start..]);
        frame
    }

    fn awaiting() -> FirstMessage {
        let (response, encoding) = (Bytes::from_static(b"101"), Encoding::NATIVE);
        FirstMessage::new(AwaitedOpening { response, rooms: Vec::new(), encoding })
    }

    const AUTH: &[u8] = br#"{"type":"auth","token":"a.b.c","id":7}"#;

    #[test]
    fn a_token_is_found_however_the_message_is_cut_and_what_follows_is_left() {
        let stream = [masked(0x89, b"hi"), masked(0x81, AUTH), masked(0x81, b"more")].concat();
        for cut in 1..stream.len() {
            let mut first = awaiting();
            let (mut sent, mut found) = (Vec::new(), None);
            for part in [&stream[..cut], &stream[cut..]] {
                let mut bytes = BytesMut::from(part);
                match first.read(&mut bytes) {
                    FirstRead::More(out) => sent.extend_from_slice(&out),
                    FirstRead::Token(request) => found = Some((request, bytes)),
                    FirstRead::End(reason, _) => panic!("{reason:?}"),
                }
                if found.is_some() {
                    break;
                }
            }
            let (request, rest) = found.expect("a token");
            assert_eq!(&*request.token, "a.b.c", "{cut}");
            assert!(request.id.is_some() && !format!("{request:?}").contains("a.b.c"));
            sent.extend_from_slice(&first.opening.response);
            assert_eq!(sent, b"101\x8a\x02hi", "{cut}: once, and in this order");
            assert!(masked(0x81, b"more").starts_with(&rest), "{cut}");
        }
    }

    #[test]
    fn whatever_is_no_token_ends_it() {
        let long = [b"\"".as_slice(), &vec![b'x'; MESSAGE_BYTES_MAX], b"\""].concat();
        for frame in [
            masked(0x81, br#"{"type":"join","room_id":"a"}"#),
            masked(0x81, br#"{"type":"auth"}"#),
            masked(0x81, br#"{"type":"auth","token":7}"#),
            masked(0x81, b"nonsense"),
            masked(0x81, &long),
            masked(0x82, AUTH),
            masked(0x88, b""),
            masked(0x89, b"").repeat(PINGS_MAX + 1),
            b"\x81\x00".to_vec(),
        ] {
            let mut first = awaiting();
            let read = first.read(&mut BytesMut::from(&frame[..]));
            assert!(matches!(read, FirstRead::End(RejectReason::NotAuth, _)), "{frame:?}");
            assert!(first.held_bytes() <= 2 * MESSAGE_BYTES_MAX);
        }
    }
}
