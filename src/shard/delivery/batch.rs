//! A batch of writes that the shard has for sockets, in a form that costs twenty-four bytes a member.
//!
//! A buffer stands once in a batch, however many members it is for; each write names the socket,
//! the connection and the buffer. A connection that receives several topics in one batch gets them
//! in one write: further buffers are chained to it.
//!
//! A batch is made in *portions*, as many writes as may be made at once. What is not in the portion
//! yet waits in the batch for the next one, and frames that arrive before that for the same
//! connections are chained to it: publishes to a thousand small rooms at once cost each member one
//! write, and none is delayed by that. The caller makes all writes of a portion before it enters the
//! shard again and reports only those that the socket did not take whole
//! ([`crate::shard::Shard::handle_short_write`]).
//!
//! Invariant: a connection stands at most once in what is not written yet. Otherwise a second write
//! could follow the first half of another one.

use crate::ids::ConnId;
use crate::shard::slow_consumer::frames::BatchSource;
use bytes::Bytes;

/// Buffers of one write, at most: the kernel takes no more than 1024 at once, and a chain of this
/// length has saved nearly all there is to save.
const BUFS_MAX: u32 = 64;

/// One write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendOp {
    /// The caller's number for the socket.
    pub socket_key: u32,
    /// The connection.
    pub conn: ConnId,
    /// The first of its buffers.
    buf: u32,
    /// How many buffers.
    bufs: u32,
    /// The last link of the chain, whose `next` is the first one; nothing while there is one buffer.
    last: u32,
}

const _: () = assert!(size_of::<SendOp>() == 24, "one for each member of a round");

/// A further buffer of a write.
#[derive(Clone, Copy, Debug)]
struct ChainLink {
    buf: u32,
    next: u32,
}

/// Writes and the buffers they are made from. Owned by the caller, who reuses it for each portion.
#[derive(Debug, Default)]
pub struct SendBatch {
    ops: Vec<SendOp>,
    bufs: Vec<Bytes>,
    /// The frames of those buffers whose rooms let messages be dropped; by the buffer, ascending.
    sources: Vec<(u32, BatchSource)>,
    links: Vec<ChainLink>,
    /// The buffers' lengths added up.
    held_bytes: usize,
    /// The portion; what lies before it is done.
    begin: usize,
    end: usize,
    /// What waits for the next one begins here. Between: writes that came to nothing.
    rest: usize,
    /// What waits up to here goes first.
    front: usize,
}

impl SendOp {
    /// The number of buffers in its chain.
    pub fn bufs_len(&self) -> usize {
        self.bufs as usize
    }
}

impl SendBatch {
    /// The writes of this portion, in the order in which they must be made.
    pub fn ops(&self) -> &[SendOp] {
        &self.ops[self.begin..self.end]
    }

    /// The buffers of a write, in the order in which they must leave.
    pub fn bufs(&self, op: &SendOp) -> impl Iterator<Item = &Bytes> {
        self.numbers(op).map(|buf| &self.bufs[buf as usize])
    }

    /// The same, each with what it is made from, if that matters.
    pub(super) fn sourced_bufs(
        &self,
        op: &SendOp,
    ) -> impl Iterator<Item = (&Bytes, Option<&BatchSource>)> {
        self.numbers(op).map(|buf| (&self.bufs[buf as usize], self.source(buf)))
    }

    fn numbers(&self, op: &SendOp) -> impl Iterator<Item = u32> {
        let mut next = if op.bufs > 1 { self.links[op.last as usize].next } else { 0 };
        let chained = (1..op.bufs).map(move |_| {
            let link = self.links[next as usize];
            next = link.next;
            link.buf
        });
        std::iter::once(op.buf).chain(chained)
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

    /// Whether there is nothing to write in this portion.
    pub fn is_empty(&self) -> bool {
        self.begin == self.end
    }

    /// The portion's writes have been made. Lets go of the buffers once nothing waits for another
    /// portion; keeps the memory.
    pub fn finish(&mut self) {
        (self.begin, self.end) = (self.rest, self.rest);
        if self.waiting() == 0 {
            self.ops.clear();
            self.bufs.clear();
            self.sources.clear();
            self.links.clear();
            (self.begin, self.end, self.rest, self.front) = (0, 0, 0, 0);
            self.held_bytes = 0;
        }
    }

    /// Writes that it has held since it was last empty, those that are made already included.
    pub(super) fn len(&self) -> usize {
        self.ops.len()
    }

    /// Writes that are in no portion yet.
    pub(super) fn waiting(&self) -> usize {
        self.ops.len() - self.rest
    }

    /// The next write, out of those that wait.
    pub(super) fn pop_waiting(&mut self) -> Option<SendOp> {
        let op = self.ops.get(self.rest).copied()?;
        self.rest += 1;
        Some(op)
    }

    /// Puts a write into the portion.
    pub(super) fn put(&mut self, op: SendOp) {
        debug_assert!(self.end < self.rest, "it was one of those that waited");
        self.ops[self.end] = op;
        self.end += 1;
    }

    /// Writes chosen from here on go before those chosen earlier.
    pub(super) fn begin_front(&mut self) {
        self.front = self.rest;
    }

    /// How many go first.
    pub(super) fn in_front(&self) -> usize {
        self.front - self.rest
    }

    /// Lets a waiting write go first. Answers where it is then, and who had that place and is where
    /// it was.
    pub(super) fn bring_forward(&mut self, place: u32) -> (u32, ConnId) {
        let at = place as usize;
        if at < self.front {
            return (place, self.ops[at].conn);
        }
        self.ops.swap(at, self.front);
        self.front += 1;
        (self.front as u32 - 1, self.ops[at].conn)
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

    /// The same for a buffer whose frames may be dropped.
    pub(super) fn add_sourced(&mut self, bytes: Bytes, source: Option<BatchSource>) -> u32 {
        let buf = self.add_buf(bytes);
        self.sources.extend(source.map(|source| (buf, source)));
        buf
    }

    /// The frames of a buffer, if they may be dropped.
    pub(super) fn source(&self, buf: u32) -> Option<&BatchSource> {
        let place = self.sources.binary_search_by_key(&buf, |(buf, _)| *buf).ok()?;
        Some(&self.sources[place].1)
    }

    /// The buffer that [`SendBatch::add_buf`] numbered.
    #[inline]
    pub(super) fn buf(&self, buf: u32) -> &Bytes {
        &self.bufs[buf as usize]
    }

    /// A write of one buffer; answers its place, by which the connection finds it again.
    #[inline]
    pub(super) fn push(&mut self, socket_key: u32, conn: ConnId, buf: u32) -> u32 {
        self.ops.push(SendOp { socket_key, conn, buf, bufs: 1, last: 0 });
        self.ops.len() as u32 - 1
    }

    /// Whether the write at `place` is one of `conn` that waits. `place` may be from any earlier
    /// batch.
    #[inline]
    pub(super) fn is_at(&self, place: u32, conn: u32) -> bool {
        let op = self.ops.get(place as usize);
        op.is_some_and(|op| op.conn.0.index == conn) && place as usize >= self.rest
    }

    /// The write at a place of which [`SendBatch::is_at`] was true.
    pub(super) fn at(&self, place: u32) -> &SendOp {
        &self.ops[place as usize]
    }

    /// Appends a buffer to the write at `place`. `false`: it has as many as it may have.
    #[must_use]
    pub(super) fn chain(&mut self, place: u32, buf: u32) -> bool {
        let op = &mut self.ops[place as usize];
        if op.bufs == BUFS_MAX {
            return false;
        }
        let new = self.links.len() as u32;
        // A ring: the last link names the first, so both ends are found.
        let next = if op.bufs == 1 {
            new
        } else {
            std::mem::replace(&mut self.links[op.last as usize].next, new)
        };
        self.links.push(ChainLink { buf, next });
        op.last = new;
        op.bufs += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::SlotId;

    fn conn(index: u32) -> ConnId {
        ConnId(SlotId { index, generation: 0 })
    }

    /// All that waits as one portion.
    fn portion(batch: &mut SendBatch) {
        while let Some(op) = batch.pop_waiting() {
            batch.put(op);
        }
    }

    #[test]
    fn chained_buffers_leave_in_the_order_in_which_they_came() {
        let mut batch = SendBatch::default();
        let bufs: Vec<u32> =
            (0..70u8).map(|n| batch.add_buf(Bytes::copy_from_slice(&[n]))).collect();
        let (ann, bob) = (batch.push(1, conn(10), bufs[0]), batch.push(2, conn(20), bufs[1]));
        assert!(batch.is_at(ann, 10) && batch.is_at(bob, 20) && !batch.is_at(ann, 20));
        for (n, buf) in bufs.iter().enumerate().skip(2) {
            let fits = batch.chain(if n % 2 == 0 { ann } else { bob }, *buf);
            assert!(fits);
        }
        portion(&mut batch);
        let received = |batch: &SendBatch, place: u32| -> Vec<u8> {
            batch.bufs(&batch.ops()[place as usize]).map(|buf| buf[0]).collect()
        };
        assert_eq!(received(&batch, ann), (0..70).step_by(2).collect::<Vec<_>>());
        assert_eq!(received(&batch, bob), (1..70).step_by(2).collect::<Vec<_>>());
    }

    #[test]
    fn a_chain_has_an_end() {
        let mut batch = SendBatch::default();
        let buf = batch.add_buf(Bytes::from_static(b"x"));
        let place = batch.push(1, conn(1), buf);
        let links = (0..1000).take_while(|_| batch.chain(place, buf)).count();
        assert_eq!(links as u32, BUFS_MAX - 1);
        portion(&mut batch);
        assert_eq!(batch.bufs(&batch.ops()[0]).count() as u32, BUFS_MAX);
    }

    #[test]
    fn what_is_not_in_the_portion_waits_and_is_chained_to() {
        let mut batch = SendBatch::default();
        let buf = batch.add_buf(Bytes::from_static(b"x"));
        let places: Vec<u32> = (0..4).map(|n| batch.push(n, conn(n), buf)).collect();
        batch.begin_front();
        assert_eq!(batch.bring_forward(places[3]), (0, conn(0)));
        assert_eq!(batch.bring_forward(0), (0, conn(3)), "it goes first already");
        for _ in 0..2 {
            let op = batch.pop_waiting().expect("four wait");
            batch.put(op);
        }
        let wires: Vec<u32> = batch.ops().iter().map(|op| op.socket_key).collect();
        assert_eq!(wires, [3, 1]);
        assert!(!batch.is_at(0, 3), "what is being written is not added to");
        assert!(batch.is_at(3, 0) && batch.is_at(2, 2));
        batch.finish();
        assert!(batch.is_empty() && batch.waiting() == 2);
        assert!(batch.chain(3, buf));
        portion(&mut batch);
        assert_eq!(batch.ops().iter().map(SendOp::bufs_len).collect::<Vec<_>>(), [1, 2]);
        batch.finish();
        assert_eq!((batch.len(), batch.held_bytes()), (0, 0));
    }
}
