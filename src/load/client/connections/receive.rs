//! Receiving: bytes to frames, frames to what they mean.
//!
//! Edge-triggered: a read continues until it comes back short or, where the peer has closed, until
//! the end.
//!
//! Invariant: bytes that do not make a whole frame are stored for the next read of that connection.

use super::conn::ClientState;
use super::state::{ClientConnections, ReceivedDelivery};
use crate::load::client::frame::{self, NextFrame, opcode};
use crate::load::client::handshake::HandshakeOutcome;
use crate::load::client::stamp::Stamp;
use crate::load::client::template::TemplateValues;
use crate::load::report::tally::ConnectFailure;
use std::io::{ErrorKind, Read};
use std::sync::Arc;

/// How much of the first delivery the report shows.
const SAMPLE_BYTES_MAX: usize = 1024;
/// How much of an error frame the report shows.
const ERROR_BYTES_MAX: usize = 300;
/// How far into a frame the texts of `--ready` and `--answered-by` are searched for.
const SEARCH_BYTES: usize = 512;

/// One data message as it arrived.
struct IncomingMessage<'a> {
    payload: &'a [u8],
    /// Bytes of its frame, header included.
    frame_bytes: usize,
    /// When its bytes were read, in nanoseconds since the run began.
    at_ns: u64,
}

impl ClientConnections {
    /// Reads all that a connection's socket has.
    pub(super) fn read(&mut self, slot: u32, hung_up: bool) {
        if self.is_non_reading(slot) {
            if hung_up {
                self.handle_ended(slot, None);
            }
            return;
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        while let Some(stream) = self.conn(slot).stream.as_ref() {
            match (&mut &*stream).read(&mut buffer) {
                Ok(0) => self.handle_ended(slot, None),
                Ok(n) => {
                    self.handle_bytes(slot, &buffer[..n]);
                    if n < buffer.len() && !hung_up {
                        break;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => self.handle_ended(slot, Some(&error)),
            }
        }
        self.buffer = buffer;
    }

    fn handle_bytes(&mut self, slot: u32, bytes: &[u8]) {
        let mut unread = self.conn_mut(slot).take_unread();
        if unread.is_empty() {
            let used = self.parse(slot, bytes);
            self.conn_mut(slot).keep_unread(&bytes[used..]);
        } else {
            unread.extend_from_slice(bytes);
            let used = self.parse(slot, &unread);
            self.conn_mut(slot).keep_unread(&unread[used..]);
        }
    }

    /// Handles the response head and the whole frames at the front of `bytes`; returns their
    /// length.
    fn parse(&mut self, slot: u32, bytes: &[u8]) -> usize {
        let mut used = 0;
        if self.conn(slot).state == ClientState::Requested {
            match self.parse_head(slot, bytes) {
                Some(head_bytes) => used = head_bytes,
                None => return 0,
            }
        }
        let at_ns = self.plan.now_ns();
        self.tally.bytes_in += (bytes.len() - used) as u64;
        while self.conn(slot).stream.is_some() {
            match frame::next_frame(&bytes[used..]) {
                NextFrame::Incomplete => break,
                NextFrame::Invalid(why) => {
                    self.tally.note_failure(|| format!("the server sent {why}"));
                    self.handle_ended(slot, None);
                }
                NextFrame::Whole { opcode, payload, bytes } => {
                    used += bytes;
                    let incoming = IncomingMessage { payload, frame_bytes: bytes, at_ns };
                    self.handle_frame(slot, opcode, &incoming);
                }
            }
        }
        used
    }

    /// The length of the response head, if it is complete and a 101.
    fn parse_head(&mut self, slot: u32, bytes: &[u8]) -> Option<usize> {
        match self.plan.target(self.first + slot).handshake.read_response(bytes) {
            HandshakeOutcome::Incomplete => None,
            HandshakeOutcome::Open { bytes } => {
                self.handle_open(slot);
                Some(bytes)
            }
            HandshakeOutcome::Refused { status, line, retry_after_s } => {
                let reason = match status {
                    503 => ConnectFailure::Busy,
                    408 | 429 | 500..=599 => ConnectFailure::Overloaded,
                    _ => ConnectFailure::Status,
                };
                self.fail(slot, reason, retry_after_s, || format!("the server answered: {line}"));
                None
            }
        }
    }

    fn handle_frame(&mut self, slot: u32, code: u8, incoming: &IncomingMessage<'_>) {
        let payload = incoming.payload;
        match code {
            opcode::TEXT | opcode::BINARY | opcode::CONTINUATION => {
                self.handle_message(slot, incoming);
            }
            opcode::PING => {
                self.tally.pings += 1;
                self.scratch.clear();
                self.scratch.extend_from_slice(payload);
                self.queue_scratch(slot, opcode::PONG);
            }
            opcode::CLOSE => {
                let code = payload.get(..2).map_or(1005, |b| u16::from_be_bytes([b[0], b[1]]));
                let text = String::from_utf8_lossy(payload.get(2..).unwrap_or_default());
                self.tally.note_failure(|| format!("the server closed: {code} {text}"));
                self.handle_ended(slot, None);
            }
            _ => {}
        }
    }

    /// A data message is the first of these that fits: a delivery, the answer to a burst, an error,
    /// the confirmation of a join. What is neither of the first two may be replied to by a rule.
    fn handle_message(&mut self, slot: u32, incoming: &IncomingMessage<'_>) {
        let payload = incoming.payload;
        if let Some(stamp) = self.finder.find(payload) {
            if stamp.run_id == self.plan.run_id {
                self.handle_delivery(slot, stamp, incoming);
            }
            return;
        }
        if self.take_burst_answer(slot, payload) {
            return;
        }
        self.reply_by_rule(slot, payload);
        if payload.starts_with(br#"{"type":"error""#) {
            self.tally.errors += 1;
            self.tally.note_failure(|| {
                let text = String::from_utf8_lossy(&payload[..payload.len().min(ERROR_BYTES_MAX)]);
                format!("the server answered: {text}")
            });
        } else if self.conn(slot).state == ClientState::Open {
            let ready = self.plan.ready.as_ref().expect("open without --ready is joined at once");
            if has_text(payload, ready) {
                self.handle_room_joined(slot);
            }
        }
    }

    /// Whether this is the answer to the question at the end of a burst.
    fn take_burst_answer(&mut self, slot: u32, payload: &[u8]) -> bool {
        let Some(burst) = &self.plan.burst else { return false };
        if self.bursts.is_empty() || !has_text(payload, &burst.answer) {
            return false;
        }
        self.tally.questions_answered += 1;
        if self.is_bursting {
            self.send_burst(slot);
        }
        true
    }

    /// Sends the reply that a rule has for this message, if one has.
    fn reply_by_rule(&mut self, slot: u32, received: &[u8]) {
        let plan = Arc::clone(&self.plan);
        let Some(reply) = plan.reply_rules.reply_to(received) else { return };
        self.scratch.clear();
        let values = TemplateValues { received, ..self.values(&plan, slot) };
        reply.fill(&values, &mut self.scratch);
        self.queue_scratch(slot, opcode::TEXT);
    }

    fn handle_delivery(&mut self, slot: u32, stamp: Stamp, incoming: &IncomingMessage<'_>) {
        let &IncomingMessage { payload, frame_bytes, at_ns } = incoming;
        if self.plan.is_ordered {
            let conn = &mut self.conns[slot as usize];
            if stamp.seq <= conn.last_seq {
                self.tally.out_of_order += 1;
            }
            conn.last_seq = stamp.seq;
        }
        self.tally.received += 1;
        self.tally.received_bytes += frame_bytes as u64;
        self.tally.last_received_ns = at_ns;
        if self.tally.sample.is_none() {
            let head = &payload[..payload.len().min(SAMPLE_BYTES_MAX)];
            self.tally.sample = Some(String::from_utf8_lossy(head).into_owned());
        }
        self.arrivals.push(ReceivedDelivery { stamp, at_ns });
    }
}

/// Whether `text` stands near the beginning of `payload`.
fn has_text(payload: &[u8], text: &str) -> bool {
    let head = &payload[..payload.len().min(SEARCH_BYTES)];
    head.windows(text.len()).any(|window| window == text.as_bytes())
}
