//! The RESP parser and the read buffer around it, for `tests/fuzz`: what they answer, as plain values.

use crate::backplane::redis::connection::buffers::ReadBuffer;
use crate::backplane::redis::connection::resp::{
    ParseProgress, RespItems, RespValue, parse_within,
};

/// What the beginning of some bytes is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ParsedResp {
    /// A value, written out with all its parts.
    Value {
        /// The text of it.
        text: String,
        /// Its length.
        bytes: usize,
    },
    /// A part of a value that has at least so many bytes.
    NeedsBytes(usize),
    /// A string in it is too long.
    TooLong {
        /// Where its type byte is.
        header: usize,
        /// Where its bytes begin.
        body: usize,
        /// How many they are, with the end of their line.
        bytes: usize,
    },
}

/// Parses the value at the beginning of `bytes`.
///
/// # Errors
/// Why they are malformed.
pub fn parse(bytes: &[u8], string_bytes_max: usize) -> Result<ParsedResp, &'static str> {
    Ok(match parse_within(bytes, string_bytes_max).map_err(|malformed| malformed.0)? {
        ParseProgress::Value(value, bytes) => ParsedResp::Value { text: text(value), bytes },
        ParseProgress::NeedsBytes(bytes) => ParsedResp::NeedsBytes(bytes),
        ParseProgress::TooLong(long) => {
            ParsedResp::TooLong { header: long.header, body: long.body, bytes: long.len }
        }
    })
}

/// A subscriber's connection between its socket and its messages.
pub struct RespStream(ReadBuffer);

impl RespStream {
    /// Nothing has come. Of a longer string than this nothing is stored, and a null is in its place.
    pub fn new(string_bytes_max: usize) -> RespStream {
        RespStream(ReadBuffer::new(string_bytes_max))
    }

    /// So many bytes have come in one read. Answers the values that are whole with them.
    ///
    /// # Errors
    /// Why what has come is malformed.
    pub fn read(&mut self, mut bytes: &[u8]) -> Result<Vec<String>, &'static str> {
        let mut values = Vec::new();
        while !bytes.is_empty() {
            bytes = &bytes[self.0.fill_from(bytes)..];
            loop {
                if let Some(value) = self.0.next().map_err(|malformed| malformed.0)? {
                    values.push(text(value));
                } else if !self.0.take_out_too_long() {
                    break;
                }
            }
        }
        Ok(values)
    }

    /// Bytes that it occupies.
    pub fn heap_bytes(&self) -> usize {
        self.0.heap_bytes()
    }
}

/// All parts are walked over, so none of them can be malformed unnoticed.
fn text(value: RespValue<'_>) -> String {
    match value {
        RespValue::Array(items) => texts("array", items),
        RespValue::Set(items) => texts("set", items),
        RespValue::Map(items) => texts("map", items),
        RespValue::Push(items) => texts("push", items),
        leaf => format!("{leaf:?}"),
    }
}

fn texts(kind: &str, items: RespItems<'_>) -> String {
    let (count, texts) = (items.len(), items.map(text).collect::<Vec<_>>());
    assert_eq!(texts.len(), count, "an aggregate has as many parts as it announced");
    format!("{kind}({})", texts.join(" "))
}
