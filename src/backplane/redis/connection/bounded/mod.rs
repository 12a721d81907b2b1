//! A stream of replies in which nothing is larger than allowed.
//!
//! The redis crate buffers a value until it is whole, whatever length it has, so `cmd` and all other
//! connections of the crate read through this. It follows the structure of what arrives and passes
//! it on byte for byte, with two exceptions:
//!
//! * A string that is longer than allowed is dropped as it comes, and a null is passed on instead.
//!   So a single value that another program has written costs its topic, and not the connection.
//! * What a server of ours never sends (a reply of too many parts, levels or bytes, a line without
//!   end, bytes that are not RESP) ends the connection.
//!
//! Invariant: at most [`READ_BYTES`] and one line are held here, and what was passed on of one value
//! is not more than [`ReplyLimits`] allows.

use crate::backplane::redis::connection::reply_limits::ReplyLimits;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes of one read.
const READ_BYTES: usize = 16 * 1024;
/// Bytes of one line.
const LINE_BYTES_MAX: usize = 64 * 1024;
/// Aggregates within aggregates: `EXEC` has four.
const LEVELS_MAX: usize = 8;
/// Values in one reply: a few for each user of a room, or for each message of a history.
const PARTS_MAX: usize = 2 * 1024 * 1024;

/// See the module.
pub(super) struct Bounded<S> {
    stream: S,
    raw: Box<[u8]>,
    /// Bytes that may be passed on, from `begin`.
    checked: Vec<u8>,
    begin: usize,
    scanner: Scanner,
    failure: Option<&'static str>,
}

impl<S> Bounded<S> {
    pub(super) fn new(stream: S, limits: ReplyLimits) -> Bounded<S> {
        Bounded {
            stream,
            raw: vec![0; READ_BYTES].into(),
            checked: Vec::new(),
            begin: 0,
            scanner: Scanner::new(limits),
            failure: None,
        }
    }

    /// Passes on what is checked. `false`: nothing is.
    fn pass_on(&mut self, into: &mut ReadBuf<'_>) -> bool {
        let rest = &self.checked[self.begin..];
        let len = rest.len().min(into.remaining());
        into.put_slice(&rest[..len]);
        self.begin += len;
        if self.begin == self.checked.len() {
            self.checked.clear();
            self.begin = 0;
            self.checked.shrink_to(READ_BYTES);
        }
        len > 0
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Bounded<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // Ends: tokio makes a socket that always has bytes pending after a while.
        loop {
            if this.pass_on(into) {
                return Poll::Ready(Ok(()));
            }
            if let Some(why) = this.failure {
                let why = format!("Redis sent what it never does: {why}");
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, why)));
            }
            let mut raw = ReadBuf::new(&mut this.raw);
            ready!(Pin::new(&mut this.stream).poll_read(cx, &mut raw))?;
            if raw.filled().is_empty() {
                return Poll::Ready(Ok(())); // the end
            }
            // What came before it is passed on.
            this.failure = this.scanner.scan(raw.filled(), &mut this.checked).err();
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Bounded<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

/// Follows the structure of a stream of values.
struct Scanner {
    limits: ReplyLimits,
    /// The unfinished line.
    line: Vec<u8>,
    /// Bytes of a string, with the end of its line, that are still to come.
    body: usize,
    /// Whether these are dropped.
    is_dropped: bool,
    /// How many values each open level still lacks.
    lacking: [usize; LEVELS_MAX],
    levels: usize,
    /// Strings and parts of the value so far.
    bytes: usize,
    parts: usize,
}

/// Why a stream cannot go on.
type Failure = &'static str;

impl Scanner {
    fn new(limits: ReplyLimits) -> Scanner {
        Scanner {
            limits,
            line: Vec::new(),
            body: 0,
            is_dropped: false,
            lacking: [0; LEVELS_MAX],
            levels: 0,
            bytes: 0,
            parts: 0,
        }
    }

    /// Takes the next bytes, and appends those that may be passed on.
    fn scan(&mut self, mut raw: &[u8], out: &mut Vec<u8>) -> Result<(), Failure> {
        while !raw.is_empty() {
            if self.body > 0 {
                let (now, later) = raw.split_at(self.body.min(raw.len()));
                if !self.is_dropped {
                    out.extend_from_slice(now);
                }
                self.body -= now.len();
                raw = later;
                if self.body == 0 {
                    self.end_value();
                }
                continue;
            }
            let end = raw.iter().position(|byte| *byte == b'\n');
            let (now, later) = raw.split_at(end.map_or(raw.len(), |end| end + 1));
            raw = later;
            if self.line.len() + now.len() > LINE_BYTES_MAX {
                return Err("a line without end");
            }
            self.line.extend_from_slice(now);
            if end.is_some() {
                let line = std::mem::take(&mut self.line);
                self.take_line(&line, out)?;
                self.line = line;
                self.line.clear();
                self.line.shrink_to(1024);
            }
        }
        Ok(())
    }

    fn take_line(&mut self, line: &[u8], out: &mut Vec<u8>) -> Result<(), Failure> {
        let [kind, text @ .., b'\r', b'\n'] = line else { return Err("a line that is no value") };
        let parts = match kind {
            b'+' | b'-' | b':' | b'_' | b'#' | b',' | b'(' => 0,
            b'$' | b'*' if text == b"-1" => 0,
            b'$' | b'!' | b'=' => return self.begin_string(number(text)?, line, out),
            b'*' | b'~' | b'>' => number(text)?,
            b'%' => number(text)?.saturating_mul(2),
            // The value that it is about comes behind it.
            b'|' => number(text)?.saturating_mul(2).saturating_add(1),
            _ => return Err("a value of no known type"),
        };
        self.parts = self.parts.saturating_add(parts);
        self.count_bytes(line.len())?;
        if self.parts > PARTS_MAX {
            return Err("a reply of too many parts");
        }
        out.extend_from_slice(line);
        if parts == 0 {
            self.end_value();
            return Ok(());
        }
        *self.lacking.get_mut(self.levels).ok_or("a reply of too many levels")? = parts;
        self.levels += 1;
        Ok(())
    }

    fn begin_string(&mut self, len: usize, line: &[u8], out: &mut Vec<u8>) -> Result<(), Failure> {
        self.is_dropped = len > self.limits.string_bytes_max;
        self.body = len.saturating_add(2);
        if self.is_dropped {
            out.extend_from_slice(b"$-1\r\n");
            return Ok(());
        }
        out.extend_from_slice(line);
        self.count_bytes(line.len().saturating_add(len))
    }

    fn count_bytes(&mut self, bytes: usize) -> Result<(), Failure> {
        self.bytes = self.bytes.saturating_add(bytes);
        match self.bytes <= self.limits.reply_bytes_max.saturating_add(LINE_BYTES_MAX) {
            true => Ok(()),
            false => Err("a reply that is too long"),
        }
    }

    /// A value ends here, and perhaps those around it as well.
    fn end_value(&mut self) {
        while let Some(level) = self.levels.checked_sub(1) {
            self.lacking[level] -= 1;
            if self.lacking[level] > 0 {
                return;
            }
            self.levels = level;
        }
        (self.bytes, self.parts) = (0, 0);
    }
}

fn number(text: &[u8]) -> Result<usize, Failure> {
    let text = std::str::from_utf8(text).ok();
    let digits = text.filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    digits.and_then(|text| text.parse().ok()).ok_or("a length that is no number")
}

#[cfg(test)]
mod tests;
