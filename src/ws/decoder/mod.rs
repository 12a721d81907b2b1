//! A client's bytes, turned into messages where they lie.
//!
//! A connection reads into a buffer that is not its own (the shard has one for all), and most reads
//! hold whole frames. Such a frame costs a header, one pass to unmask it in place, for text one pass
//! to validate it, and is lent to the caller out of that very buffer. Only what a read leaves
//! unfinished, a frame cut anywhere or a message in fragments, is collected in a buffer of the
//! decoder, unmasked and validated as it arrives.
//!
//! That buffer grows with what has arrived, never with what was announced: a peer that promises a
//! megabyte and sends nothing has cost us its header. It holds the message under way, and behind it
//! the payload of a control frame that was cut inside of that message:
//!
//! ```text
//!   buffer  ┃ message under way ┃ control payload ┃
//!           0       message_bytes               len
//! ```
//!
//! Invariant: a decoder that `is_at_rest` holds no state. The shard drops it between two reads and an
//! idle connection has none; the items that come out are the same.

use crate::ws::close::CloseCode;
use crate::ws::encode::Opcode;
pub use crate::ws::error::ProtocolError;
use crate::ws::header::{self, HEADER_BYTES_MAX, Header};
use crate::ws::mask;
use crate::ws::utf8::{self, Utf8};

/// What a decoder accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecoderLimits {
    /// A message, its fragments added up.
    pub message_bytes_max: usize,
}

/// Bytes on the way to becoming messages: the state between two reads of one connection.
#[derive(Debug, Default)]
pub struct Decoder {
    /// The message under way, then the control payload under way (see above). What lies behind
    /// `message_bytes` while a header is awaited was lent by the last call and is dropped by the next.
    buffer: Vec<u8>,
    /// Bytes of `buffer` that belong to the message under way.
    message_bytes: usize,
    step: Step,
    /// What kind of message is under way.
    open: Option<Kind>,
    /// The UTF-8 state of the text under way.
    utf8: Utf8,
}

const _: () = assert!(size_of::<Decoder>() <= 64, "one cache line, when one is needed at all");

/// Something whole. Borrows from the input, or from the decoder where it had to be put together.
#[derive(Debug, PartialEq, Eq)]
pub enum Item<'a> {
    /// A text message; valid UTF-8. Mutable, so that it can be parsed in place.
    Text(&'a mut [u8]),
    /// A binary message.
    Binary(&'a mut [u8]),
    /// A ping; the answer carries the same bytes.
    Ping(&'a [u8]),
    /// A pong, asked for or not.
    Pong(&'a [u8]),
    /// The peer begins or answers the close. Nothing may follow it; the decoder ignores what does.
    Close {
        /// `None`: the frame was empty.
        code: Option<CloseCode>,
        /// Valid UTF-8, possibly empty.
        reason: &'a str,
    },
}

/// What is awaited.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// A header, of which this much is here.
    Header { bytes: [u8; HEADER_BYTES_MAX], len: u8 },
    /// The rest of a payload.
    Payload(Frame),
    /// Nothing: the peer has sent its close frame.
    Closed,
    /// Nothing: the peer has broken the protocol.
    Failed(ProtocolError),
}

/// A frame whose header was accepted.
#[derive(Clone, Copy, Debug)]
struct Frame {
    /// Payload bytes still to come.
    missing: usize,
    /// The mask for the next of them.
    key: [u8; 4],
    opcode: Opcode,
    fin: bool,
}

/// What a message is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Text,
    Binary,
}

/// Where a whole item lies.
enum Whole<'i> {
    /// In the input, already unmasked.
    InPlace(Opcode, &'i mut [u8]),
    /// In the buffer, behind `message_bytes`.
    Collected(Opcode),
}

impl Decoder {
    /// At rest.
    pub fn new() -> Decoder {
        Decoder::default()
    }

    /// Whether nothing is half done, so that the decoder may be thrown away between two reads.
    ///
    /// After an error or a close it never is: both are to be remembered.
    pub fn is_at_rest(&self) -> bool {
        matches!(self.step, Step::Header { len: 0, .. }) && self.open.is_none()
    }

    /// The bytes it holds beside itself: at most twice what has arrived of the message under way.
    pub fn heap_bytes(&self) -> usize {
        self.buffer.capacity()
    }

    /// The next whole item; takes what it used off the front of `input`. `None`: all of `input` was
    /// taken and more is needed. An error is final: the same one is returned forever.
    ///
    /// 1. The item lies whole in `input`: it is unmasked there and lent from there.
    /// 2. It began in an earlier read or in an earlier fragment: it is lent from the decoder, which
    ///    drops it with the next call.
    pub fn next<'s, 'i: 's>(
        &'s mut self,
        input: &'s mut &'i mut [u8],
        limits: DecoderLimits,
    ) -> Option<Result<Item<'s>, ProtocolError>> {
        self.forget_lent();
        let (opcode, payload) = match self.advance(input, limits) {
            Ok(Some(Whole::InPlace(opcode, payload))) => (opcode, payload),
            Ok(Some(Whole::Collected(opcode))) => (opcode, &mut self.buffer[self.message_bytes..]),
            Ok(None) => {
                self.release();
                return None;
            }
            Err(error) => {
                self.step = Step::Failed(error);
                self.buffer = Vec::new();
                return Some(Err(error));
            }
        };
        let item = item(opcode, payload);
        match &item {
            Ok(Item::Close { .. }) => self.step = Step::Closed,
            Ok(_) => {}
            Err(error) => self.step = Step::Failed(*error),
        }
        Some(item)
    }

    /// Decodes until an item is whole or the input is used up.
    #[inline]
    fn advance<'i>(
        &mut self,
        input: &mut &'i mut [u8],
        limits: DecoderLimits,
    ) -> Result<Option<Whole<'i>>, ProtocolError> {
        loop {
            match self.step {
                Step::Header { .. } => {
                    let Some(header) = self.read_header(input)? else { return Ok(None) };
                    let frame = self.admit(header, limits)?;
                    if frame.is_an_item() && frame.missing <= input.len() {
                        self.step = Step::default();
                        return in_place(frame, input).map(Some);
                    }
                    self.begin(frame);
                }
                Step::Payload(frame) => {
                    if frame.missing > 0 && input.is_empty() {
                        return Ok(None);
                    }
                    if let Some(opcode) = self.collect(frame, input, limits)? {
                        return Ok(Some(Whole::Collected(opcode)));
                    }
                }
                Step::Closed => {
                    *input = &mut [];
                    return Ok(None);
                }
                Step::Failed(error) => return Err(error),
            }
        }
    }

    /// Takes a header off `input`, or what there is of one.
    #[inline]
    fn read_header(&mut self, input: &mut &mut [u8]) -> Result<Option<Header>, ProtocolError> {
        let Step::Header { bytes, len } = &mut self.step else {
            unreachable!("called where a header is awaited")
        };
        if *len == 0
            && let Some(header) = header::parse(input)?
        {
            take_front(input, header.header_bytes);
            return Ok(Some(header));
        }
        // Cut by the end of a read, now or before: byte by byte, there are 14 at most.
        while !input.is_empty() {
            bytes[usize::from(*len)] = take_front(input, 1)[0];
            *len += 1;
            if let Some(header) = header::parse(&bytes[..usize::from(*len)])? {
                return Ok(Some(header));
            }
        }
        Ok(None)
    }

    /// The rules that depend on earlier frames.
    #[inline]
    fn admit(&self, header: Header, limits: DecoderLimits) -> Result<Frame, ProtocolError> {
        // RFC 6455 §5.4: fragments of one message are not interleaved with those of another.
        match (header.opcode, self.open) {
            (Opcode::Continuation, None) => return Err(ProtocolError::ContinuationUnexpected),
            (Opcode::Text | Opcode::Binary, Some(_)) => {
                return Err(ProtocolError::MessageInterrupted);
            }
            _ => {}
        }
        let room = limits.message_bytes_max.saturating_sub(self.message_bytes);
        if !header.opcode.is_control() && header.payload_bytes > room as u64 {
            return Err(ProtocolError::MessageTooBig);
        }
        // Fits: a control frame has 125 bytes at most, a data frame has `room`.
        let missing = header.payload_bytes as usize;
        Ok(Frame { missing, key: header.key, opcode: header.opcode, fin: header.fin })
    }

    /// The frame cannot be lent from the input: it will be collected.
    fn begin(&mut self, frame: Frame) {
        match frame.opcode {
            Opcode::Text => self.open = Some(Kind::Text),
            Opcode::Binary => self.open = Some(Kind::Binary),
            _ => {}
        }
        self.step = Step::Payload(frame);
    }

    /// Adds what has arrived of `frame` to the buffer. `Some`: with it an item is whole, and lies
    /// behind `message_bytes`.
    fn collect(
        &mut self,
        mut frame: Frame,
        input: &mut &mut [u8],
        limits: DecoderLimits,
    ) -> Result<Option<Opcode>, ProtocolError> {
        let piece = take_front(input, frame.missing.min(input.len()));
        let start = self.buffer.len();
        self.make_room(piece.len(), &frame, limits);
        self.buffer.extend_from_slice(piece);
        mask::apply(frame.key, &mut self.buffer[start..]);
        frame.key = mask::turned(frame.key, piece.len());
        frame.missing -= piece.len();
        let ended = frame.missing == 0;
        self.step = if ended { Step::default() } else { Step::Payload(frame) };

        if frame.opcode.is_control() {
            return Ok(ended.then_some(frame.opcode));
        }
        self.message_bytes = self.buffer.len();
        if self.open == Some(Kind::Text) {
            self.utf8.push(&self.buffer[start..]).map_err(|_| ProtocolError::InvalidUtf8)?;
        }
        if ended && frame.fin { self.finish_message().map(Some) } else { Ok(None) }
    }

    /// The last byte of a collected message is here.
    fn finish_message(&mut self) -> Result<Opcode, ProtocolError> {
        if !self.utf8.is_complete() {
            return Err(ProtocolError::InvalidUtf8);
        }
        self.message_bytes = 0;
        match self.open.take().expect("data is collected only inside of a message") {
            Kind::Text => Ok(Opcode::Text),
            Kind::Binary => Ok(Opcode::Binary),
        }
    }

    /// Room for what has arrived; and as much again, so that a message in many pieces is not moved
    /// for each of them, but never more than the message can still need.
    fn make_room(&mut self, piece_bytes: usize, frame: &Frame, limits: DecoderLimits) {
        let needed = self.buffer.len() + piece_bytes;
        if needed <= self.buffer.capacity() {
            return;
        }
        let possible =
            if frame.fin { self.buffer.len() + frame.missing } else { limits.message_bytes_max };
        let wanted = needed.max((2 * self.buffer.capacity()).min(possible));
        self.buffer.reserve_exact(wanted - self.buffer.len());
    }

    /// The last item is no longer borrowed.
    #[inline]
    fn forget_lent(&mut self) {
        match self.step {
            Step::Header { .. } => self.buffer.truncate(self.message_bytes),
            Step::Payload(_) => {}
            Step::Closed | Step::Failed(_) => self.buffer = Vec::new(),
        }
    }

    /// Nothing collected, no memory held.
    #[inline]
    fn release(&mut self) {
        if self.buffer.is_empty() && self.buffer.capacity() > 0 {
            self.buffer = Vec::new();
        }
    }
}

impl Default for Step {
    fn default() -> Step {
        Step::Header { bytes: [0; HEADER_BYTES_MAX], len: 0 }
    }
}

impl Frame {
    /// Whether it makes an item by itself.
    #[inline]
    fn is_an_item(&self) -> bool {
        self.fin && self.opcode != Opcode::Continuation
    }
}

/// The usual case: the whole item lies in the input.
#[inline]
fn in_place<'i>(frame: Frame, input: &mut &'i mut [u8]) -> Result<Whole<'i>, ProtocolError> {
    let payload = take_front(input, frame.missing);
    mask::apply(frame.key, payload);
    if frame.opcode == Opcode::Text && !utf8::is_valid(payload) {
        return Err(ProtocolError::InvalidUtf8);
    }
    Ok(Whole::InPlace(frame.opcode, payload))
}

/// Takes `bytes` bytes off the front of `input`.
#[inline]
fn take_front<'i>(input: &mut &'i mut [u8], bytes: usize) -> &'i mut [u8] {
    let (front, rest) = std::mem::take(input).split_at_mut(bytes);
    *input = rest;
    front
}

#[inline]
fn item(opcode: Opcode, payload: &mut [u8]) -> Result<Item<'_>, ProtocolError> {
    match opcode {
        Opcode::Text => Ok(Item::Text(payload)),
        Opcode::Binary => Ok(Item::Binary(payload)),
        Opcode::Ping => Ok(Item::Ping(payload)),
        Opcode::Pong => Ok(Item::Pong(payload)),
        Opcode::Close => parse_close(payload),
        Opcode::Continuation => unreachable!("a message is named after its first frame"),
    }
}

/// RFC 6455 §5.5.1: nothing, or a code and a reason.
fn parse_close(payload: &[u8]) -> Result<Item<'_>, ProtocolError> {
    if payload.is_empty() {
        return Ok(Item::Close { code: None, reason: "" });
    }
    let (code, reason) = payload.split_first_chunk::<2>().ok_or(ProtocolError::CloseTruncated)?;
    let code = CloseCode::new(u16::from_be_bytes(*code)).ok_or(ProtocolError::CloseCodeInvalid)?;
    let reason = std::str::from_utf8(reason).map_err(|_| ProtocolError::CloseReasonInvalid)?;
    Ok(Item::Close { code: Some(code), reason })
}

#[cfg(test)]
mod tests;
