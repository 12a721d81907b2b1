//! stub
use super::close::CloseCode;

/// What a decoder accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecoderLimits {
    /// A message, its fragments added up.
    pub message_bytes_max: usize,
}

/// Bytes on the way to becoming messages: the state between two reads of one connection.
#[derive(Debug, Default)]
pub struct Decoder {}

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
    /// The peer wants to close. Nothing may follow it; the decoder ignores what does.
    Close {
        /// `None`: the frame was empty.
        code: Option<CloseCode>,
        /// Valid UTF-8, possibly empty.
        reason: &'a str,
    },
}

/// How the peer broke the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProtocolError {
    /// placeholder
    Unmasked,
}

impl Decoder {
    /// At rest.
    pub fn new() -> Decoder {
        Decoder::default()
    }

    /// Whether nothing is half done, so that the decoder may be thrown away between two reads.
    pub fn is_at_rest(&self) -> bool {
        todo!()
    }

    /// The next whole item; takes what it used off the front of `input`. `None`: all of `input` was
    /// taken and more is needed. An error is final: the same one is returned forever.
    pub fn next<'s, 'i: 's>(
        &'s mut self,
        _input: &'s mut &'i mut [u8],
        _limits: DecoderLimits,
    ) -> Option<Result<Item<'s>, ProtocolError>> {
        todo!()
    }
}

impl ProtocolError {
    /// What to close with.
    pub fn close_code(self) -> CloseCode {
        todo!()
    }

    /// One line for the close frame and the log, at most 123 bytes.
    pub fn reason(self) -> &'static str {
        todo!()
    }
}
