//! stub
use super::close::CloseCode;
use bytes::Bytes;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opcode {
    /// More of a fragmented message.
    Continuation = 0,
    /// UTF-8.
    Text = 1,
    /// Bytes.
    Binary = 2,
    /// Goodbye.
    Close = 8,
    /// Are you there?
    Ping = 9,
    /// Yes.
    Pong = 10,
}

/// Appends a whole, final, unmasked frame's header for a payload of `len` bytes (2, 4 or 10 bytes).
pub fn header(_opcode: Opcode, _len: usize, _out: &mut Vec<u8>) {
    todo!()
}

/// The bytes of a whole frame with a payload of `len` bytes.
pub fn frame_len(_len: usize) -> usize {
    todo!()
}

/// Appends a whole frame.
pub fn frame(_opcode: Opcode, _payload: &[u8], _out: &mut Vec<u8>) {
    todo!()
}

/// A whole close frame. `reason` is cut at a character so that the payload stays within 125 bytes.
pub fn close(_code: CloseCode, _reason: &str) -> Bytes {
    todo!()
}
