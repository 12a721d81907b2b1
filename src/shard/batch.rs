//! A batch of writes: what the shard wants sent, in a form that costs twenty bytes a member.
//!
//! A buffer stands once in a batch, however many members it is for; each write names the socket,
//! the connection and the buffer. Whoever hears several topics in one batch gets them in one write:
//! further buffers are chained to it. The caller makes all writes before it enters the shard again
//! and reports only those that the socket did not take whole
//! ([`crate::shard::Shard::handle_short`]).
//!
//! Invariant: a connection stands at most once in a batch. Otherwise a second write could follow
//! the first half of another one.

use bytes::Bytes;

/// Buffers of one write, at most: the kernel takes no more than 1024 at once, and a chain of this
/// length has saved nearly all there is to save.
const BUFS_MAX: u32 = 64;

/// One write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendOp {
    /// The caller's number for the socket.
    pub wire: u32,
    /// The connection's index.
    pub conn: u32,
    /// The first of its buffers.
    buf: u32,
    /// How many buffers.
    bufs: u32,
    /// The last link of the chain, whose `next` is the first one; nothing while there is one buffer.
    last: u32,
}

const _: () = assert!(size_of::<SendOp>() == 20, "one for each member of a round");

/// A further buffer of a write.
#[derive(Clone, Copy, Debug)]
struct Link {
    buf: u32,
    next: u32,
}

/// Writes and the buffers they are made from. Kept by the caller and filled again and again.
#[derive(Debug, Default)]
pub struct SendBatch {
    ops: Vec<SendOp>,
    bufs: Vec<Bytes>,
    links: Vec<Link>,
    /// The buffers' lengths added up.
    held_bytes: usize,
}

impl SendOp {
    /// How many buffers it is made from.
    pub fn bufs_len(&self) -> usize {
        self.bufs as usize
    }
}

impl SendBatch {
    /// The writes, in the order in which they must be made.
    pub fn ops(&self) -> &[SendOp] {
        &self.ops
    }

    /// The buffers of a write, in the order in which they must leave.
    pub fn bufs(&self, op: &SendOp) -> impl Iterator<Item = &Bytes> {
        let mut next = if op.bufs > 1 { self.links[op.last as usize].next } else { 0 };
        let chained = (1..op.bufs).map(move |_| {
            let link = self.links[next as usize];
            next = link.next;
            &self.bufs[link.buf as usize]
        });
        std::iter::once(&self.bufs[op.buf as usize]).chain(chained)
    }

    /// The bytes of a write that has one buffer, as nearly all have.
    #[inline]
    pub fn only_buf(&self, op: &SendOp) -> Option<&Bytes> {
        (op.bufs == 1).then(|| &self.bufs[op.buf as usize])
    }

    /// How many buffers all chained writes have together, and how many such writes there are at most:
    /// room that the caller needs for their descriptions.
    pub fn chained(&self) -> (usize, usize) {
        (self.links.len() * 2, self.links.len())
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// Forgets everything; lets go of the buffers, keeps the memory.
    pub fn clear(&mut self) {
        self.ops.clear();
        self.bufs.clear();
        self.links.clear();
        self.held_bytes = 0;
    }

    pub(super) fn len(&self) -> usize {
        self.ops.len()
    }

    /// Bytes that the batch keeps in memory.
    pub(super) fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    pub(super) fn add_buf(&mut self, bytes: Bytes) -> u32 {
        self.held_bytes += bytes.len();
        self.bufs.push(bytes);
        self.bufs.len() as u32 - 1
    }

    /// The buffer that [`SendBatch::add_buf`] numbered.
    #[inline]
    pub(super) fn buf(&self, buf: u32) -> &Bytes {
        &self.bufs[buf as usize]
    }

    /// A write of one buffer; answers its place, by which the connection finds it again.
    #[inline]
    pub(super) fn push(&mut self, wire: u32, conn: u32, buf: u32) -> u32 {
        self.ops.push(SendOp { wire, conn, buf, bufs: 1, last: 0 });
        self.ops.len() as u32 - 1
    }

    /// Whether the write at `place` is the one of `conn`. `place` may be from any earlier batch.
    #[inline]
    pub(super) fn is_at(&self, place: u32, conn: u32) -> bool {
        self.ops.get(place as usize).is_some_and(|op| op.conn == conn)
    }

    /// Appends a buffer to the write at `place`. `false`: it has as many as it may have.
    #[must_use]
    pub(super) fn chain(&mut self, place: u32, buf: u32) -> bool {
        let op = &mut self.ops[place as usize];
        if op.bufs == BUFS_MAX {
            return false;
        }
        let new = self.links.len() as u32;
        // A ring: the last link knows the first, so both ends are at hand.
        let next = if op.bufs == 1 {
            new
        } else {
            std::mem::replace(&mut self.links[op.last as usize].next, new)
        };
        self.links.push(Link { buf, next });
        op.last = new;
        op.bufs += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chained_buffers_leave_in_the_order_in_which_they_came() {
        let mut batch = SendBatch::default();
        let bufs: Vec<u32> =
            (0..70u8).map(|n| batch.add_buf(Bytes::copy_from_slice(&[n]))).collect();
        let (ann, bob) = (batch.push(1, 10, bufs[0]), batch.push(2, 20, bufs[1]));
        assert!(batch.is_at(ann, 10) && batch.is_at(bob, 20) && !batch.is_at(ann, 20));
        for (n, buf) in bufs.iter().enumerate().skip(2) {
            let fits = batch.chain(if n % 2 == 0 { ann } else { bob }, *buf);
            assert!(fits);
        }
        let heard = |batch: &SendBatch, place: u32| -> Vec<u8> {
            batch.bufs(&batch.ops()[place as usize]).map(|buf| buf[0]).collect()
        };
        assert_eq!(heard(&batch, ann), (0..70).step_by(2).collect::<Vec<_>>());
        assert_eq!(heard(&batch, bob), (1..70).step_by(2).collect::<Vec<_>>());
    }

    #[test]
    fn a_chain_has_an_end() {
        let mut batch = SendBatch::default();
        let buf = batch.add_buf(Bytes::from_static(b"x"));
        let place = batch.push(1, 1, buf);
        let links = (0..1000).take_while(|_| batch.chain(place, buf)).count();
        assert_eq!(links as u32, BUFS_MAX - 1);
        assert_eq!(batch.bufs(&batch.ops()[0]).count() as u32, BUFS_MAX);
    }
}
