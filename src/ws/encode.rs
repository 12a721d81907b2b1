//! Server frames: final, unmasked, complete.
//!
//! A frame is written once and then shared, so header and payload are one piece. Nothing here is
//! ever fragmented (a fragment saves nothing when the whole message is at hand) and nothing is
//! masked (RFC 6455 §5.1: a server must not).
//!
//! Invariant: a length is written in its shortest form, and `frame_len` says exactly what `frame`
//! appends.

use crate::ws::close::CloseCode;
use bytes::Bytes;

/// The longest payload of a control frame (RFC 6455 §5.5).
pub const CONTROL_BYTES_MAX: usize = 125;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opcode {
    /// More of a fragmented message.
    Continuation = 0,
    /// UTF-8.
    Text = 1,
    /// Bytes.
    Binary = 2,
    /// Code and reason.
    Close = 8,
    /// Payload to be returned.
    Ping = 9,
    /// The payload of a ping.
    Pong = 10,
}

impl Opcode {
    /// The opcode in the low four bits of a frame's first byte; `None` for a reserved one.
    #[inline]
    pub fn from_bits(bits: u8) -> Option<Opcode> {
        match bits {
            0 => Some(Opcode::Continuation),
            1 => Some(Opcode::Text),
            2 => Some(Opcode::Binary),
            8 => Some(Opcode::Close),
            9 => Some(Opcode::Ping),
            10 => Some(Opcode::Pong),
            _ => None,
        }
    }

    /// Whether it is a control frame: close, ping, pong (RFC 6455 §5.5).
    #[inline]
    pub fn is_control(self) -> bool {
        self as u8 & 0x8 != 0
    }
}

/// Appends a whole, final, unmasked frame's header for a payload of `len` bytes (2, 4 or 10 bytes).
pub fn header(opcode: Opcode, len: usize, out: &mut Vec<u8>) {
    assert!(!opcode.is_control() || len <= CONTROL_BYTES_MAX);
    let first = 0x80 | opcode as u8;
    match len {
        0..=125 => out.extend_from_slice(&[first, len as u8]),
        126..=0xFFFF => {
            out.extend_from_slice(&[first, 126]);
            out.extend_from_slice(&(len as u16).to_be_bytes());
        }
        _ => {
            out.extend_from_slice(&[first, 127]);
            out.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
}

/// The payload of a frame that [`header`] began.
pub fn payload_of(frame: &[u8]) -> &[u8] {
    let header_bytes = match frame.get(1) {
        None => 0,
        Some(126) => 4,
        Some(127) => 10,
        Some(_) => 2,
    };
    frame.get(header_bytes..).unwrap_or_default()
}

/// The bytes of a whole frame with a payload of `len` bytes.
pub fn frame_len(len: usize) -> usize {
    let header_bytes = match len {
        0..=125 => 2,
        126..=0xFFFF => 4,
        _ => 10,
    };
    header_bytes + len
}

/// Appends a whole frame.
pub fn frame(opcode: Opcode, payload: &[u8], out: &mut Vec<u8>) {
    out.reserve(frame_len(payload.len()));
    header(opcode, payload.len(), out);
    out.extend_from_slice(payload);
}

/// A whole close frame. Without a code its payload is empty (RFC 6455 §5.5.1: a reason follows a
/// code). `reason` is cut at a character so that the payload stays within 125 bytes.
pub fn close(code: Option<CloseCode>, reason: &str) -> Bytes {
    let Some(code) = code else {
        return Bytes::from_static(&[0x80 | Opcode::Close as u8, 0]);
    };
    let mut reason_bytes = reason.len().min(CONTROL_BYTES_MAX - 2);
    while !reason.is_char_boundary(reason_bytes) {
        reason_bytes -= 1;
    }
    let mut out = Vec::with_capacity(frame_len(2 + reason_bytes));
    header(Opcode::Close, 2 + reason_bytes, &mut out);
    out.extend_from_slice(&code.get().to_be_bytes());
    out.extend_from_slice(&reason.as_bytes()[..reason_bytes]);
    Bytes::from(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
        let mut out = b"before".to_vec();
        frame(opcode, payload, &mut out);
        assert_eq!(out.len(), 6 + frame_len(payload.len()));
        out.split_off(6)
    }

    #[test]
    fn the_examples_of_the_rfc_come_out_byte_for_byte() {
        // RFC 6455 §5.7.
        assert_eq!(framed(Opcode::Text, b"Hello"), b"\x81\x05Hello");
        assert_eq!(framed(Opcode::Ping, b"Hello"), b"\x89\x05Hello");
        assert_eq!(framed(Opcode::Pong, b"Hello"), b"\x8a\x05Hello");
        assert_eq!(framed(Opcode::Binary, &[7; 256])[..4], [0x82, 0x7E, 0x01, 0x00]);
        let long = framed(Opcode::Binary, &[7; 65536]);
        assert_eq!(long[..10], [0x82, 0x7F, 0, 0, 0, 0, 0, 1, 0, 0]);
    }

    #[test]
    fn a_length_is_written_in_its_shortest_form() {
        let table = [
            (0, [0x81, 0].as_slice()),
            (125, &[0x81, 125]),
            (126, &[0x81, 126, 0, 126]),
            (65535, &[0x81, 126, 0xFF, 0xFF]),
            (65536, &[0x81, 127, 0, 0, 0, 0, 0, 1, 0, 0]),
        ];
        for (len, wanted) in table {
            let mut out = Vec::new();
            header(Opcode::Text, len, &mut out);
            assert_eq!(out, wanted, "{len}");
            assert_eq!(frame_len(len), wanted.len() + len);
        }
    }

    #[test]
    fn every_opcode_is_read_back_and_the_others_are_nobody() {
        for bits in 0..=255u8 {
            let opcode = Opcode::from_bits(bits);
            assert_eq!(opcode.is_some(), [0, 1, 2, 8, 9, 10].contains(&bits));
            if let Some(opcode) = opcode {
                assert_eq!(opcode as u8, bits);
                assert_eq!(opcode.is_control(), bits >= 8);
            }
        }
    }

    #[test]
    fn a_close_frame_without_a_code_is_empty() {
        assert_eq!(close(None, "a reason follows a code")[..], *b"\x88\x00");
    }

    #[test]
    fn a_close_reason_is_cut_at_a_character() {
        let close = |code, reason: &str| close(Some(code), reason);
        assert_eq!(close(CloseCode::NORMAL, "")[..], *b"\x88\x02\x03\xe8");
        assert_eq!(close(CloseCode::TOO_BIG, "big")[..], *b"\x88\x05\x03\xf1big");
        // 123 bytes are allowed: 41 characters of three bytes fit exactly, a byte before them
        // leaves room for 40.
        let exact = close(CloseCode::NORMAL, &"€".repeat(50));
        assert_eq!((exact[1], exact.len()), (125, 127));
        let cut = close(CloseCode::NORMAL, &format!("a{}", "€".repeat(50)));
        assert_eq!((cut[1], cut.len()), (123, 125));
        assert!(std::str::from_utf8(&cut[4..]).is_ok());
    }
}
