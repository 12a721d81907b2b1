//! The two buffers of the subscriber connection.
//!
//! Invariant: the read buffer never holds more of a string than is allowed for one, and nothing of
//! it is zeroed or allocated for a length alone.

use crate::backplane::redis::connection::resp::{
    LongString, MalformedResp, ParseProgress, RespValue, parse_within,
};
use crate::dial::DialedStream;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What each of the two buffers keeps when it is empty.
pub const BUFFER_BYTES: usize = 128 * 1024;
/// With less room than this behind what is there, it is moved to the front before the next read.
const ROOM_BYTES_MIN: usize = 16 * 1024;
/// The least that may be allowed for a string: its length has four digits then.
const STRING_BYTES_MIN: usize = 1024;

/// Bytes that arrived and were not parsed yet.
pub(super) struct ReadBuffer {
    /// All of it may be written to: nothing is zeroed before a read.
    bytes: Vec<u8>,
    /// Unparsed bytes are between these two.
    begin: usize,
    end: usize,
    /// The number of bytes that must be there before parsing is tried again.
    needs: usize,
    /// The longest string.
    string_bytes_max: usize,
    /// A longer one in the value that is next.
    too_long: Option<LongString>,
    /// Bytes of a longer one that are still to come, and are dropped.
    to_drop: usize,
}

impl ReadBuffer {
    /// Bytes that it occupies.
    pub(super) fn heap_bytes(&self) -> usize {
        self.bytes.capacity()
    }

    pub(super) fn new(string_bytes_max: usize) -> ReadBuffer {
        ReadBuffer {
            bytes: vec![0; BUFFER_BYTES],
            begin: 0,
            end: 0,
            needs: 0,
            string_bytes_max: string_bytes_max.max(STRING_BYTES_MIN),
            too_long: None,
            to_drop: 0,
        }
    }

    /// Parses the next value, if it is there in whole.
    pub(super) fn next(&mut self) -> Result<Option<RespValue<'_>>, MalformedResp> {
        if self.end - self.begin < self.needs {
            return Ok(None);
        }
        match parse_within(&self.bytes[self.begin..self.end], self.string_bytes_max)? {
            ParseProgress::Value(item, len) => {
                self.begin += len;
                self.needs = 0;
                Ok(Some(item))
            }
            ParseProgress::NeedsBytes(len) => {
                self.needs = len;
                Ok(None)
            }
            ParseProgress::TooLong(long) => {
                (self.too_long, self.needs) = (Some(long), 0);
                Ok(None)
            }
        }
    }

    /// Takes the string out because of which [`ReadBuffer::next`] returned nothing. `false`: there
    /// is none.
    pub(super) fn take_out_too_long(&mut self) -> bool {
        let too_long = self.too_long.take();
        too_long.inspect(|long| self.take_out(*long)).is_some()
    }

    /// Puts a null in the place of a string. What is not there yet is dropped when it comes.
    fn take_out(&mut self, long: LongString) {
        const NULL: &[u8] = b"$-1\r\n";
        let (begin, body) = (self.begin, self.begin + long.body);
        // The line with its length is no shorter: it has at least four digits.
        let null = body - NULL.len();
        self.begin = null - long.header;
        self.bytes.copy_within(begin..begin + long.header, self.begin);
        self.bytes[null..body].copy_from_slice(NULL);
        let there = long.len.min(self.end - body);
        self.bytes.copy_within(body + there..self.end, body);
        self.end -= there;
        self.to_drop = long.len - there;
    }

    /// Reads once: at least one byte, or an error.
    pub(super) fn poll_fill(
        &mut self,
        stream: &mut DialedStream,
        cx: &mut Context<'_>,
        bytes_max: usize,
    ) -> Poll<io::Result<usize>> {
        self.make_room();
        let room = &mut self.bytes[self.end..];
        let room_max = room.len().min(bytes_max);
        let mut into = ReadBuf::new(&mut room[..room_max]);
        ready!(Pin::new(stream).poll_read(cx, &mut into))?;
        let len = into.filled().len();
        if len == 0 {
            return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
        }
        self.take_in(len);
        Poll::Ready(Ok(len))
    }

    /// So many bytes were read behind those that are there.
    fn take_in(&mut self, len: usize) {
        let dropped = len.min(self.to_drop);
        if dropped > 0 {
            self.bytes.copy_within(self.end + dropped..self.end + len, self.end);
            self.to_drop -= dropped;
        }
        self.end += len - dropped;
    }

    /// One read of a stream that has these bytes. Answers how many it took.
    #[cfg(feature = "fuzzing")]
    pub(super) fn fill_from(&mut self, stream: &[u8]) -> usize {
        self.make_room();
        let room = &mut self.bytes[self.end..];
        let len = room.len().min(stream.len());
        room[..len].copy_from_slice(&stream[..len]);
        self.take_in(len);
        len
    }

    /// Moved at most once for each value: then it stays in front until it is whole.
    fn make_room(&mut self) {
        if self.begin == self.end {
            (self.begin, self.end) = (0, 0);
            if self.bytes.len() > BUFFER_BYTES {
                self.bytes.truncate(BUFFER_BYTES);
                self.bytes.shrink_to_fit();
            }
        }
        if self.bytes.len() - self.end < ROOM_BYTES_MIN && self.begin > 0 {
            self.bytes.copy_within(self.begin..self.end, 0);
            self.end -= self.begin;
            self.begin = 0;
        }
        if self.end == self.bytes.len() {
            // No more than was filled: a length alone, right or wrong, costs no memory.
            let len = self.needs.max(self.end + ROOM_BYTES_MIN).min(2 * self.end);
            self.bytes.reserve_exact(len - self.end);
            self.bytes.resize(len, 0);
        }
    }
}

/// Commands that are not written yet.
#[derive(Default)]
pub(super) struct WriteBuffer {
    bytes: Vec<u8>,
    /// Everything before this was written.
    begin: usize,
    /// TLS may keep a part of what it took.
    is_unflushed: bool,
}

impl WriteBuffer {
    /// Bytes that it occupies.
    pub(super) fn heap_bytes(&self) -> usize {
        self.bytes.capacity()
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len() - self.begin
    }

    pub(super) fn push<'a>(&mut self, words: impl ExactSizeIterator<Item = &'a [u8]>) {
        if self.begin > self.bytes.len() / 2 {
            self.bytes.drain(..self.begin);
            self.begin = 0;
        }
        self.push_length(b'*', words.len());
        for word in words {
            self.push_length(b'$', word.len());
            self.bytes.extend_from_slice(word);
            self.bytes.extend_from_slice(b"\r\n");
        }
    }

    fn push_length(&mut self, kind: u8, length: usize) {
        self.bytes.push(kind);
        self.bytes.extend_from_slice(itoa::Buffer::new().format(length).as_bytes());
        self.bytes.extend_from_slice(b"\r\n");
    }

    /// Writes until all is written, or the waker is registered.
    pub(super) fn poll_flush(
        &mut self,
        stream: &mut DialedStream,
        cx: &mut Context<'_>,
    ) -> io::Result<()> {
        while self.begin < self.bytes.len() {
            match Pin::new(&mut *stream).poll_write(cx, &self.bytes[self.begin..]) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(written) => self.begin += written?,
            }
            self.is_unflushed = true;
        }
        self.bytes.clear();
        self.begin = 0;
        self.bytes.shrink_to(BUFFER_BYTES);
        if self.is_unflushed
            && let Poll::Ready(flushed) = Pin::new(stream).poll_flush(cx)
        {
            flushed?;
            self.is_unflushed = false;
        }
        Ok(())
    }
}
