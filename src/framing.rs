//! From an [`Event`] to finished bytes: the dialect writes the payload, the framing wraps it.
//!
//! Invariant: the length is computed, not guessed, so a frame is one allocation of the exact size.

use crate::protocol::Event;
use crate::protocol::dialect::{Encoding, Framing, Heartbeat};
use crate::protocol::run::{Run, RunKind, RunStyle};
use crate::ws::encode::{self, Opcode};
use bytes::Bytes;

/// The exact number of bytes that [`write()`] appends.
pub fn frame_len(event: &Event<'_>, encoding: Encoding) -> usize {
    payload_frame_len(encoding.dialect().encoded_len(event), encoding)
}

fn payload_frame_len(payload_bytes: usize, encoding: Encoding) -> usize {
    match encoding.framing() {
        Framing::WebSocketText => encode::frame_len(payload_bytes),
        #[cfg(feature = "test-dialect")]
        Framing::WebSocketBinary => encode::frame_len(payload_bytes),
    }
}

/// What stands before a payload of so many bytes.
fn header(payload_bytes: usize, encoding: Encoding, out: &mut Vec<u8>) {
    match encoding.framing() {
        Framing::WebSocketText => encode::header(Opcode::Text, payload_bytes, out),
        #[cfg(feature = "test-dialect")]
        Framing::WebSocketBinary => encode::header(Opcode::Binary, payload_bytes, out),
    }
}

/// The finished frame that probes an idle connection.
pub fn heartbeat(encoding: Encoding) -> Bytes {
    match encoding.dialect().heartbeat() {
        Heartbeat::WebSocketPing => Bytes::from_static(&[0x80 | Opcode::Ping as u8, 0]),
        #[cfg(feature = "test-dialect")]
        Heartbeat::Message(payload) => {
            let mut frame = Vec::with_capacity(payload_frame_len(payload.len(), encoding));
            header(payload.len(), encoding, &mut frame);
            frame.extend_from_slice(payload);
            Bytes::from(frame)
        }
    }
}

/// Appends an event, header and all.
pub fn write(event: &Event<'_>, encoding: Encoding, out: &mut Vec<u8>) {
    let dialect = encoding.dialect();
    let before = out.len();
    let payload_bytes = dialect.encoded_len(event);
    header(payload_bytes, encoding, out);
    dialect.write(event, out);
    debug_assert_eq!(out.len() - before, frame_len(event, encoding), "computed, not guessed");
}

/// An event as finished bytes of their own.
pub fn frame(event: &Event<'_>, encoding: Encoding) -> Bytes {
    let mut frame = Vec::with_capacity(frame_len(event, encoding));
    write(event, encoding, &mut frame);
    Bytes::from(frame)
}

/// How many bytes [`run`] makes of these events.
pub fn run_len<'a>(
    events: impl Iterator<Item = Event<'a>>,
    kind: RunKind,
    encoding: Encoding,
) -> usize {
    match encoding.dialect().run_style(kind) {
        RunStyle::Frames => events.map(|event| frame_len(&event, encoding)).sum(),
        RunStyle::Elements { .. } => {
            let lens = events.map(|event| encoding.dialect().encoded_len(&event) + 1);
            lens.sum::<usize>().saturating_sub(1)
        }
    }
}

/// Messages of a history, written for one encoding. `bytes`: what [`run_len`] says.
pub fn run<'a>(
    events: impl Iterator<Item = Event<'a>>,
    kind: RunKind,
    encoding: Encoding,
    bytes: usize,
) -> Run {
    let mut out = Vec::with_capacity(bytes);
    let mut messages = 0;
    let style = encoding.dialect().run_style(kind);
    for event in events {
        match style {
            RunStyle::Frames => write(&event, encoding, &mut out),
            RunStyle::Elements { separator } => {
                out.extend((messages > 0).then_some(separator));
                encoding.dialect().write(&event, &mut out);
            }
        }
        messages += 1;
    }
    debug_assert_eq!(out.len(), bytes, "computed, not guessed");
    Run { bytes: Bytes::from(out), messages }
}
