//! Heads and frames, with as little looking as will do.
//!
//! Invariant: nothing here allocates but what is appended to the caller's buffer.

use super::rooms::EVERYBODY;
use base64::Engine;
use sha1::{Digest, Sha1};

const ACCEPT_VALUE_BYTES: usize = 28;
const REPLY_HEAD: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
    Connection: Upgrade\r\nSec-WebSocket-Accept: ";
const REPLY_END: &[u8] = b"\r\n\r\n";
/// Tells `campanile load` that the connection is in one more room.
const JOINED: &[u8] = b"\x81\x0d{\"type\":\"ok\"}";
/// So many rooms a connection are told of.
const ROOMS_TOLD_MAX: usize = 16;
const REPLY_BYTES_MAX: usize =
    REPLY_HEAD.len() + ACCEPT_VALUE_BYTES + REPLY_END.len() + ROOMS_TOLD_MAX * JOINED.len();

/// The answer to a message with `"type":"ping"`.
pub const PONG: &[u8] = b"\x81\x0f{\"type\":\"pong\"}";
/// An empty ping (RFC 6455 §5.5.2).
pub const PING: &[u8] = b"\x89\x00";

/// The answer to a request.
pub struct Reply {
    bytes: [u8; REPLY_BYTES_MAX],
    length: usize,
}

impl Reply {
    /// The 101 to a request head, if that has a key (RFC 6455 §4.2.2), and one word a room.
    pub fn to(head: &[u8], rooms: usize) -> Option<Reply> {
        const NAME: &[u8] = b"sec-websocket-key:";
        let at = head.windows(NAME.len()).position(|window| window.eq_ignore_ascii_case(NAME))?;
        let key = head[at + NAME.len()..].split(|&byte| byte == b'\r').next()?.trim_ascii();
        let digest = Sha1::new()
            .chain_update(key)
            .chain_update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11")
            .finalize();
        let mut value = [0; ACCEPT_VALUE_BYTES];
        base64::engine::general_purpose::STANDARD.encode_slice(digest, &mut value).ok()?;
        let mut reply = Reply { bytes: [0; REPLY_BYTES_MAX], length: 0 };
        reply.put(REPLY_HEAD);
        reply.put(&value);
        reply.put(REPLY_END);
        (0..rooms.clamp(1, ROOMS_TOLD_MAX)).for_each(|_| reply.put(JOINED));
        Some(reply)
    }

    fn put(&mut self, bytes: &[u8]) {
        self.bytes[self.length..self.length + bytes.len()].copy_from_slice(bytes);
        self.length += bytes.len();
    }

    /// What goes on the wire.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// The rooms of a request: the number behind each `room_id=`.
pub fn rooms_of(head: &[u8]) -> impl Iterator<Item = usize> {
    const NAME: &[u8] = b"room_id=";
    let line = head.split(|&byte| byte == b'\r').next().unwrap_or_default();
    let starts = (0..line.len()).filter(|&at| line[at..].starts_with(NAME));
    starts.filter_map(|at| {
        let name = line[at + NAME.len()..].split(|&byte| matches!(byte, b'&' | b' ')).next()?;
        trailing_number(name).map(|number| number + 1)
    })
}

/// Where a message goes, and its payload: what stands behind `"payload":` without the last brace, or
/// the whole message where there is no such key.
pub fn address(message: &[u8]) -> (usize, &[u8]) {
    const KEY: &[u8] = b"\"payload\":";
    let Some(at) = message.windows(KEY.len()).position(|window| window == KEY) else {
        return (EVERYBODY, message);
    };
    // The room's name is the last string before the payload: `…"load-17","payload":`.
    let before = &message[..at];
    let named = before.strip_suffix(b"\",").and_then(trailing_number);
    (named.map_or(EVERYBODY, |number| number + 1), &message[at + KEY.len()..message.len() - 1])
}

fn trailing_number(name: &[u8]) -> Option<usize> {
    let digits = name.iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
    std::str::from_utf8(&name[name.len() - digits..]).ok()?.parse().ok()
}

/// Appends one text frame of three parts (RFC 6455 §5.2).
pub fn put_text(into: &mut Vec<u8>, parts: [&[u8]; 3]) {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    into.push(0x81);
    match length {
        0..=125 => into.push(length as u8),
        126..=65_535 => {
            into.push(126);
            into.extend_from_slice(&(length as u16).to_be_bytes());
        }
        _ => {
            into.push(127);
            into.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    parts.iter().for_each(|part| into.extend_from_slice(part));
}

/// Opcode, mask, and where the payload starts and ends, if a whole masked frame is there.
pub fn client_frame(bytes: &[u8]) -> Option<(u8, [u8; 4], usize, usize)> {
    let (length, header) = match bytes.get(1)? & 0x7f {
        126 => (u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?) as usize, 4),
        127 => (u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?) as usize, 10),
        short => (short as usize, 2),
    };
    let mask = bytes.get(header..header + 4)?.try_into().ok()?;
    let start = header + 4;
    let end = start.checked_add(length)?;
    (bytes.len() >= end).then_some((bytes[0] & 15, mask, start, end))
}

/// Undoes the mask, eight bytes at a time.
pub fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    let [a, b, c, d] = mask;
    let eight = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let mut chunks = payload.chunks_exact_mut(8);
    for chunk in &mut chunks {
        let word = u64::from_ne_bytes(chunk.try_into().expect("eight bytes")) ^ eight;
        chunk.copy_from_slice(&word.to_ne_bytes());
    }
    let rest = chunks.into_remainder().iter_mut();
    rest.zip(mask.iter().cycle()).for_each(|(byte, key)| *byte ^= key);
}
