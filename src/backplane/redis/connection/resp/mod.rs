//! Parses RESP2 and RESP3 in place: nothing is copied, nothing is stored.
//!
//! [`parse_within`] reads the value at the beginning of a buffer. If it is there in whole, its
//! parts point into the buffer; if not, the result is the length that the buffer must have before
//! another try is worth it. The length of a string comes before its bytes, so a string that arrives
//! in a thousand reads is parsed twice. Everything else of a value (its lines and lengths) is at most
//! [`OVERHEAD_BYTES_MAX`], which is also the most that one more try of an unfinished value can
//! cost.
//!
//! A value is walked to its end, with a counter for each open level, and only then returned, so its
//! parts are complete. Attributes (`|`), which may come before any value, are skipped. Streamed
//! strings and aggregates (`$?`, `*?`), which no server sends, are malformed.
//!
//! A string that is longer than the caller allows ([`parse_within`]) is reported as soon as its
//! length is there, with the place of its bytes, so that a caller need not store them.
//!
//! Invariant: for any bytes there is no panic, no allocation, and no recursion.

use std::fmt;

/// Aggregates within aggregates, at most.
pub(super) const DEPTH_MAX: usize = 8;
/// Bytes of one string, at most. A server allows itself 512 MiB (`proto-max-bulk-len`).
pub(super) const BULK_BYTES_MAX: usize = 1 << 30;
/// Bytes of one value without the contents of its strings, at most. Bounds the number of its parts
/// as well.
pub(super) const OVERHEAD_BYTES_MAX: usize = 64 * 1024;
/// Bytes of the smallest value: `_\r\n`.
const ITEM_BYTES_MIN: usize = 3;
/// The type bytes.
const KINDS: &[u8] = b">$+:-*%_#,~=!(|";

/// A value, borrowed from the buffer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum RespValue<'a> {
    /// `+OK`
    Simple(&'a [u8]),
    /// `-MOVED 1 host:port`, or `!` with a length.
    Error(&'a [u8]),
    /// `:1`
    Int(i64),
    /// `$` with a length.
    Bulk(&'a [u8]),
    /// `=` with a length; the text behind its format.
    Verbatim(&'a [u8]),
    /// `_`, and what RESP2 says for it.
    Null,
    /// `#t`
    Bool(bool),
    /// `,1.5`
    Double(f64),
    /// `(1`, as it was written.
    BigNumber(&'a [u8]),
    /// `*`
    Array(RespItems<'a>),
    /// `~`
    Set(RespItems<'a>),
    /// `%`: alternating keys and values.
    Map(RespItems<'a>),
    /// `>`: a message or confirmation that is no reply.
    Push(RespItems<'a>),
}

/// The values in an aggregate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct RespItems<'a> {
    left: usize,
    /// Their bytes, and nothing before.
    bytes: &'a [u8],
}

impl<'a> Iterator for RespItems<'a> {
    type Item = RespValue<'a>;

    fn next(&mut self) -> Option<RespValue<'a>> {
        self.left = self.left.checked_sub(1)?;
        let (value, len) =
            first(self.bytes, BULK_BYTES_MAX).ok().expect("the whole value was walked over");
        self.bytes = &self.bytes[len..];
        Some(value)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for RespItems<'_> {}

/// The result of parsing the beginning of a buffer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum ParseProgress<'a> {
    /// A value, and the number of its bytes.
    Value(RespValue<'a>, usize),
    /// A part of a value. It has at least so many bytes, which is more than the buffer.
    NeedsBytes(usize),
    /// A string in it is longer than allowed.
    TooLong(LongString),
}

/// The place of a string that is too long, counted from the beginning of the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LongString {
    /// Where its type byte is.
    pub header: usize,
    /// Where its bytes begin, behind the line with its length.
    pub body: usize,
    /// How many bytes it has, the end of the line behind them included.
    pub len: usize,
}

/// The user is no Redis server, or parsing is out of step with it: the connection is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MalformedResp(pub &'static str);

impl fmt::Display for MalformedResp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "what came is not RESP: {}", self.0)
    }
}

/// Parses the value at the beginning of `bytes`.
#[cfg(test)]
pub(super) fn parse(bytes: &[u8]) -> Result<ParseProgress<'_>, MalformedResp> {
    parse_within(bytes, BULK_BYTES_MAX)
}

/// Parses the value at the beginning of `bytes`, whose strings have at most `string_bytes_max`
/// bytes each, and together not much more.
pub(super) fn parse_within(
    bytes: &[u8],
    string_bytes_max: usize,
) -> Result<ParseProgress<'_>, MalformedResp> {
    match first(bytes, string_bytes_max) {
        Ok((value, len)) => Ok(ParseProgress::Value(value, len)),
        Err(Stop::NeedsBytes(len)) => Ok(ParseProgress::NeedsBytes(len)),
        Err(Stop::TooLong(long)) => Ok(ParseProgress::TooLong(long)),
        Err(Stop::Malformed(why)) => Err(MalformedResp(why)),
    }
}

/// The value at the beginning of `bytes`, and its length.
fn first(bytes: &[u8], string_bytes_max: usize) -> Result<(RespValue<'_>, usize), Stop> {
    let mut reader = Reader { bytes, at: 0, overhead: 0, contents: 0, string_bytes_max };
    loop {
        let (kind, parts) = match reader.token()? {
            Token::Leaf(value) => return Ok((value, reader.at)),
            // The last part is the value that the attribute is about.
            Token::Open(Kind::Attribute, parts) => {
                reader.skip(parts - 1)?;
                continue;
            }
            Token::Open(Kind::Of(kind), parts) => (kind, parts),
        };
        let inside = reader.at;
        reader.skip(parts)?;
        let parts = RespItems { left: parts, bytes: &bytes[inside..reader.at] };
        return Ok((kind(parts), reader.at));
    }
}

/// Why there is no value.
enum Stop {
    NeedsBytes(usize),
    TooLong(LongString),
    Malformed(&'static str),
}

/// A leaf, or the beginning of an aggregate.
enum Token<'a> {
    Leaf(RespValue<'a>),
    /// With so many values in it.
    Open(Kind<'a>, usize),
}

enum Kind<'a> {
    Of(fn(RespItems<'a>) -> RespValue<'a>),
    /// Not a value: alternating names and values, and then the value that they are about.
    Attribute,
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Bytes counted towards [`OVERHEAD_BYTES_MAX`].
    overhead: usize,
    /// Bytes of all strings so far.
    contents: usize,
    string_bytes_max: usize,
}

impl<'a> Reader<'a> {
    /// Walks over so many values and everything in them.
    fn skip(&mut self, values: usize) -> Result<(), Stop> {
        if values == 0 {
            return Ok(());
        }
        // How many values each level still lacks. The first level is that of `values`.
        let mut lacking = [0; DEPTH_MAX];
        lacking[0] = values;
        let mut level = 0;
        loop {
            if let Token::Open(_, parts @ 1..) = self.token()? {
                level += 1;
                *lacking.get_mut(level).ok_or(Stop::Malformed("too many levels"))? = parts;
                continue;
            }
            // A value ends here, and maybe those around it as well.
            lacking[level] -= 1;
            while lacking[level] == 0 {
                if level == 0 {
                    return Ok(());
                }
                level -= 1;
                lacking[level] -= 1;
            }
        }
    }

    fn token(&mut self) -> Result<Token<'a>, Stop> {
        let header = self.at;
        let kind = *self.bytes.get(self.at).ok_or(Stop::NeedsBytes(self.at + ITEM_BYTES_MIN))?;
        if !KINDS.contains(&kind) {
            // At once: a line that begins like this may never end.
            return Err(Stop::Malformed("no value begins like that"));
        }
        let line = self.line()?;
        Ok(Token::Leaf(match kind {
            b'+' => RespValue::Simple(line),
            b'-' => RespValue::Error(line),
            b':' => RespValue::Int(number(line)?),
            b'$' | b'*' if line == b"-1" => RespValue::Null,
            b'$' => RespValue::Bulk(self.body(header, line)?),
            b'!' => RespValue::Error(self.body(header, line)?),
            b'=' => match self.body(header, line)? {
                [_, _, _, b':', text @ ..] => RespValue::Verbatim(text),
                _ => return Err(Stop::Malformed("a verbatim string has no format")),
            },
            b'_' if line.is_empty() => RespValue::Null,
            b'#' if line == b"t" => RespValue::Bool(true),
            b'#' if line == b"f" => RespValue::Bool(false),
            b',' => RespValue::Double(number(line)?),
            b'(' => RespValue::BigNumber(line),
            b'*' => return Ok(Token::Open(Kind::Of(RespValue::Array), count(line)?)),
            b'~' => return Ok(Token::Open(Kind::Of(RespValue::Set), count(line)?)),
            b'>' => return Ok(Token::Open(Kind::Of(RespValue::Push), count(line)?)),
            b'%' => return Ok(Token::Open(Kind::Of(RespValue::Map), 2 * count(line)?)),
            b'|' => return Ok(Token::Open(Kind::Attribute, 2 * count(line)? + 1)),
            _ => return Err(Stop::Malformed("a value does not fit its type")),
        }))
    }

    /// What follows the kind up to the end of the line, which is then behind us.
    fn line(&mut self) -> Result<&'a [u8], Stop> {
        let begin = self.at + 1;
        let rest = &self.bytes[begin..];
        let allowed = &rest[..rest.len().min(OVERHEAD_BYTES_MAX - self.overhead)];
        let Some(len) = allowed.iter().position(|byte| matches!(byte, b'\r' | b'\n')) else {
            return Err(match allowed.len() < rest.len() {
                true => Stop::Malformed("too many parts, or a line without end"),
                false => Stop::NeedsBytes(self.bytes.len() + 2),
            });
        };
        match rest[len..] {
            [b'\r', b'\n', ..] => {}
            [b'\r'] => return Err(Stop::NeedsBytes(self.bytes.len() + 1)),
            _ => return Err(Stop::Malformed("a line ends with half of its end")),
        }
        self.at = begin + len + 2;
        self.overhead = (self.overhead + 1 + len + 2).min(OVERHEAD_BYTES_MAX);
        Ok(&rest[..len])
    }

    /// So many bytes and the end of their line.
    fn body(&mut self, header: usize, len: &[u8]) -> Result<&'a [u8], Stop> {
        let len = length(len)?;
        if len > BULK_BYTES_MAX {
            return Err(Stop::Malformed("a string is too long"));
        }
        if len > self.string_bytes_max {
            return Err(Stop::TooLong(LongString { header, body: self.at, len: len + 2 }));
        }
        self.contents = self.contents.saturating_add(len);
        if self.contents > self.string_bytes_max.saturating_add(OVERHEAD_BYTES_MAX) {
            return Err(Stop::Malformed("the strings of a value are too long together"));
        }
        let end = self.at + len;
        let body = self.bytes.get(self.at..end).ok_or(Stop::NeedsBytes(end + 2))?;
        match self.bytes[end..] {
            [b'\r', b'\n', ..] => {}
            [] | [b'\r'] => return Err(Stop::NeedsBytes(end + 2)),
            _ => return Err(Stop::Malformed("a string is longer than its length")),
        }
        self.at = end + 2;
        Ok(body)
    }
}

/// By hand, because a message has four of them. One that is too long for the machine is too long
/// for every limit.
fn length(line: &[u8]) -> Result<usize, Stop> {
    if line.is_empty() || !line.iter().all(u8::is_ascii_digit) {
        return Err(Stop::Malformed("that is no length"));
    }
    let digits = line.iter().map(|digit| usize::from(digit - b'0'));
    Ok(digits.fold(0, |length: usize, digit| length.saturating_mul(10).saturating_add(digit)))
}

fn number<T: std::str::FromStr>(line: &[u8]) -> Result<T, Stop> {
    let number = std::str::from_utf8(line).ok().and_then(|text| text.parse().ok());
    number.ok_or(Stop::Malformed("that is no number"))
}

/// Of parts, which have at least [`ITEM_BYTES_MIN`] bytes each.
fn count(line: &[u8]) -> Result<usize, Stop> {
    match length(line)? {
        count if count <= OVERHEAD_BYTES_MAX / ITEM_BYTES_MIN => Ok(count),
        _ => Err(Stop::Malformed("too many parts")),
    }
}

#[cfg(test)]
pub(super) mod tests;
