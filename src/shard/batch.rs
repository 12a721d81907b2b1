//! A batch of writes: what the shard wants sent, in a form that costs twelve bytes a member.
//!
//! A buffer stands once in a batch, however many members it is for; each write names the socket,
//! the connection and the buffer. The caller makes all writes before it enters the shard again and
//! reports only those that the socket did not take whole ([`crate::shard::Shard::handle_short`]).
//!
//! Invariant: a connection stands at most once in a batch. Otherwise a second write could follow
//! the first half of another one.

use bytes::Bytes;

/// One write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendOp {
    /// The caller's number for the socket.
    pub wire: u32,
    /// The connection's index.
    pub conn: u32,
    /// Which of the batch's buffers.
    pub buf: u32,
}

/// Writes and the buffers they are made from. Kept by the caller and filled again and again.
#[derive(Debug, Default)]
pub struct SendBatch {
    ops: Vec<SendOp>,
    bufs: Vec<Bytes>,
}

impl SendBatch {
    /// The writes, in the order in which they must be made.
    pub fn ops(&self) -> &[SendOp] {
        &self.ops
    }

    /// The bytes of a write.
    pub fn bytes(&self, op: &SendOp) -> &Bytes {
        &self.bufs[op.buf as usize]
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// Forgets everything; lets go of the buffers, keeps the memory.
    pub fn clear(&mut self) {
        self.ops.clear();
        self.bufs.clear();
    }

    pub(super) fn len(&self) -> usize {
        self.ops.len()
    }

    pub(super) fn add_buf(&mut self, bytes: Bytes) -> u32 {
        self.bufs.push(bytes);
        self.bufs.len() as u32 - 1
    }

    #[inline]
    pub(super) fn push(&mut self, op: SendOp) {
        self.ops.push(op);
    }
}
