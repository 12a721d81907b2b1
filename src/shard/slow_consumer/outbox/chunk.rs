//! The bytes of one slice of an outbox, and the buffer that they hold in memory.
//!
//! A slice of a shared buffer keeps all of that buffer: two bytes cut from an arena of 16 KiB would
//! hold 16 KiB for as long as a peer does not read, and be counted as two. So what is small is
//! copied, many of them into one chunk, and so is what is left of a much larger buffer. What stays
//! shared is at least half of the buffer that it holds.

use bytes::{Buf, Bytes, BytesMut};

/// Up to this size bytes are copied, and so much of them stands in one chunk.
pub(super) const CHUNK_BYTES_MAX: usize = 4 * 1024;

/// Bytes that wait.
#[derive(Debug)]
pub(super) enum Chunk {
    /// A part of a buffer that others may have as well; at least half of it.
    Shared(Bytes),
    /// Copied, one frame or many.
    Own(BytesMut),
}

impl Default for Chunk {
    fn default() -> Chunk {
        Chunk::Shared(Bytes::new())
    }
}

impl Chunk {
    /// Bytes for a slice of their own.
    pub(super) fn new(bytes: Bytes) -> Chunk {
        match bytes.len() {
            0 => Chunk::default(),
            1..=CHUNK_BYTES_MAX => Chunk::Own(BytesMut::from(&bytes[..])),
            _ => Chunk::Shared(bytes),
        }
    }

    /// Appends to a chunk. `false`: this is none, or has no room.
    #[must_use]
    pub(super) fn append(&mut self, bytes: &[u8]) -> bool {
        match self {
            Chunk::Own(chunk) if chunk.len() + bytes.len() <= CHUNK_BYTES_MAX => {
                chunk.extend_from_slice(bytes);
                true
            }
            Chunk::Own(_) | Chunk::Shared(_) => false,
        }
    }

    /// The first `taken` bytes have left.
    pub(super) fn advance(&mut self, taken: usize) {
        match self {
            Chunk::Shared(bytes) => bytes.advance(taken),
            Chunk::Own(chunk) => chunk.advance(taken),
        }
    }
}

impl std::ops::Deref for Chunk {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Chunk::Shared(bytes) => bytes,
            Chunk::Own(chunk) => chunk,
        }
    }
}

/// What is left of a buffer of which `taken` bytes have left: a part of it, or a copy where that
/// would hold much more in memory.
pub(in crate::shard) fn rest_of(buf: &Bytes, taken: usize) -> Bytes {
    let rest = buf.len() - taken;
    if rest > CHUNK_BYTES_MAX && rest < buf.len() / 2 {
        return Bytes::copy_from_slice(&buf[taken..]);
    }
    buf.slice(taken..) // What is small is copied into a chunk.
}
