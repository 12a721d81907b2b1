//! What a Redis server says, read where it lies: RESP2 and RESP3, nothing copied, nothing kept.
//!
//! [`parse`] looks at the beginning of a buffer. Either a whole item is there, and its parts point
//! into the buffer; or it says how long the buffer must be at least before it is worth asking
//! again. The length of a big body stands before it, so a body that comes in a thousand reads is
//! looked at twice. Everything else of an item (its lines and lengths) is at most
//! [`OVERHEAD_BYTES_MAX`], which is also the most that one more look at an unfinished item can
//! cost.
//!
//! An item is walked over to its end, with a counter for each level that is open, and only then
//! handed out; so the parts of what was handed out are whole. Attributes (`|`), which may stand
//! before anything, are walked over. Streamed strings and aggregates (`$?`, `*?`), which no server
//! sends, are malformed.
//!
//! Invariant: whatever the bytes are, there is no panic, no allocation, and no recursion.

use std::fmt;

/// Aggregates within aggregates.
pub(super) const DEPTH_MAX: usize = 8;
/// One string. A server allows itself 512 MiB (`proto-max-bulk-len`).
pub(super) const BULK_BYTES_MAX: usize = 1 << 30;
/// All of one item but the contents of its strings. Bounds the number of its parts as well.
pub(super) const OVERHEAD_BYTES_MAX: usize = 64 * 1024;
/// The smallest item: `_\r\n`.
const ITEM_BYTES_MIN: usize = 3;
/// How an item may begin.
const KINDS: &[u8] = b">$+:-*%_#,~=!(|";

/// One item; what it says lies in the buffer.
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
    /// `%`: keys and values in turn.
    Map(RespItems<'a>),
    /// `>`: what nobody asked for at this moment.
    Push(RespItems<'a>),
}

/// The items in an item.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct RespItems<'a> {
    left: usize,
    /// They, and nothing before.
    bytes: &'a [u8],
}

impl<'a> Iterator for RespItems<'a> {
    type Item = RespValue<'a>;

    fn next(&mut self) -> Option<RespValue<'a>> {
        self.left = self.left.checked_sub(1)?;
        let (item, len) = first(self.bytes).ok().expect("the whole value was walked over");
        self.bytes = &self.bytes[len..];
        Some(item)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for RespItems<'_> {}

/// What stands at the beginning of a buffer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum ParseProgress<'a> {
    /// An item, and the number of its bytes.
    Value(RespValue<'a>, usize),
    /// A part of one. It has at least as many bytes as this, which is more than there are.
    LinkOptions(usize),
}

/// This is no Redis server, or we are out of step with it. There is no way to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MalformedResp(pub &'static str);

impl fmt::Display for MalformedResp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "what came is not RESP: {}", self.0)
    }
}

/// Reads the item at the beginning of `bytes`.
pub(super) fn parse(bytes: &[u8]) -> Result<ParseProgress<'_>, MalformedResp> {
    match first(bytes) {
        Ok((item, len)) => Ok(ParseProgress::Value(item, len)),
        Err(Stop::LinkOptions(len)) => Ok(ParseProgress::LinkOptions(len)),
        Err(Stop::Malformed(why)) => Err(MalformedResp(why)),
    }
}

/// The item at the beginning of `bytes`, and its length.
fn first(bytes: &[u8]) -> Result<(RespValue<'_>, usize), Stop> {
    let mut reader = Reader { bytes, at: 0, overhead: 0 };
    loop {
        let (kind, parts) = match reader.token()? {
            Token::Leaf(item) => return Ok((item, reader.at)),
            // The last part is what the attribute is about: the item that is read next.
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

/// Why there is no item.
enum Stop {
    LinkOptions(usize),
    Malformed(&'static str),
}

/// A leaf, or the beginning of an aggregate.
enum Token<'a> {
    Leaf(RespValue<'a>),
    /// With so many items in it.
    Open(Kind<'a>, usize),
}

enum Kind<'a> {
    Of(fn(RespItems<'a>) -> RespValue<'a>),
    /// Not an item: names and values in turn, and then the item that they are about.
    Attribute,
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    /// What of [`OVERHEAD_BYTES_MAX`] is behind us.
    overhead: usize,
}

impl<'a> Reader<'a> {
    /// Walks over so many items and all that is in them.
    fn skip(&mut self, items: usize) -> Result<(), Stop> {
        if items == 0 {
            return Ok(());
        }
        // How many items each level still lacks. The first level is that of `items`.
        let mut lacking = [0; DEPTH_MAX];
        lacking[0] = items;
        let mut level = 0;
        loop {
            if let Token::Open(_, parts @ 1..) = self.token()? {
                level += 1;
                *lacking.get_mut(level).ok_or(Stop::Malformed("too many levels"))? = parts;
                continue;
            }
            // An item ends here, and maybe those around it as well.
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
        let kind = *self.bytes.get(self.at).ok_or(Stop::LinkOptions(self.at + ITEM_BYTES_MIN))?;
        if !KINDS.contains(&kind) {
            // At once: it may never end a line.
            return Err(Stop::Malformed("no value begins like that"));
        }
        let line = self.line()?;
        Ok(Token::Leaf(match kind {
            b'+' => RespValue::Simple(line),
            b'-' => RespValue::Error(line),
            b':' => RespValue::Int(number(line)?),
            b'$' | b'*' if line == b"-1" => RespValue::Null,
            b'$' => RespValue::Bulk(self.body(line)?),
            b'!' => RespValue::Error(self.body(line)?),
            b'=' => match self.body(line)? {
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
                false => Stop::LinkOptions(self.bytes.len() + 2),
            });
        };
        match rest[len..] {
            [b'\r', b'\n', ..] => {}
            [b'\r'] => return Err(Stop::LinkOptions(self.bytes.len() + 1)),
            _ => return Err(Stop::Malformed("a line ends with half of its end")),
        }
        self.at = begin + len + 2;
        self.overhead = (self.overhead + 1 + len + 2).min(OVERHEAD_BYTES_MAX);
        Ok(&rest[..len])
    }

    /// So many bytes and the end of their line.
    fn body(&mut self, len: &[u8]) -> Result<&'a [u8], Stop> {
        let len = length(len)?;
        if len > BULK_BYTES_MAX {
            return Err(Stop::Malformed("a string is too long"));
        }
        let end = self.at + len;
        let body = self.bytes.get(self.at..end).ok_or(Stop::LinkOptions(end + 2))?;
        match self.bytes[end..] {
            [b'\r', b'\n', ..] => {}
            [] | [b'\r'] => return Err(Stop::LinkOptions(end + 2)),
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
mod tests;
