//! Batched writes: one system call for a whole batch of sockets.
//!
//! Each write is a SEND (a SENDMSG where it has several buffers) with `MSG_DONTWAIT`, so it finishes
//! while it is being submitted: no buffer outlives the call, there is no future and no state per
//! connection. `MSG_WAITALL` makes a partial write count as a failure, and `CQE_SKIP_SUCCESS` lets
//! the kernel report only failures: a socket that took nothing, a part, or is broken. A kernel that
//! cannot skip (before 5.17) gets one `sendmsg(2)` per socket, with the same answers.
//!
//! Invariant: when [`Sender::send`] returns, no write is in flight.
#![allow(unsafe_code)] // pushing entries whose buffers the batch owns

use crate::shard::delivery::batch::{SendBatch, SendOp};
use io_uring::squeue::{Entry, Flags};
use io_uring::{IoUring, opcode, types::Fd};
use std::io;
use std::os::fd::RawFd;

const FLAGS: i32 = libc::MSG_DONTWAIT | libc::MSG_WAITALL | libc::MSG_NOSIGNAL;

/// A write that was not taken whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ShortWrite {
    /// Which of the batch's writes.
    pub op: usize,
    /// Bytes taken (0: the socket is full), or the error number.
    pub taken: Result<usize, i32>,
}

/// Writes batches.
pub(crate) enum Sender {
    /// Through a ring of its own.
    Ring(RingSender),
    /// One system call each.
    Plain,
}

/// A ring, and room to describe the writes that have several buffers.
pub(crate) struct RingSender {
    ring: Box<IoUring>,
    chains: Chains,
}

impl Sender {
    /// A sender for batches of any size; `entries` of them per system call.
    pub(crate) fn new(entries: usize) -> io::Result<Sender> {
        let ring = super::runtime::bare_ring(entries.next_power_of_two() as u32)?;
        if !ring.params().is_feature_skip_cqe_on_success() {
            return Ok(Sender::Plain);
        }
        Ok(Sender::Ring(RingSender { ring: Box::new(ring), chains: Chains::default() }))
    }

    /// Makes all writes of a batch, in order; appends those that were not taken whole to
    /// `short_writes`.
    pub(crate) fn send(
        &mut self,
        batch: &SendBatch,
        short_writes: &mut Vec<ShortWrite>,
    ) -> io::Result<()> {
        match self {
            Sender::Ring(ring) => ring.send(batch, short_writes),
            Sender::Plain => {
                send_plain(batch, short_writes);
                Ok(())
            }
        }
    }
}

impl RingSender {
    fn send(&mut self, batch: &SendBatch, short_writes: &mut Vec<ShortWrite>) -> io::Result<()> {
        let room = self.ring.params().sq_entries() as usize;
        self.chains.clear_for(batch);
        let mut rest = batch.ops();
        let mut first = 0;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(room));
            let mut queue = self.ring.submission();
            for (at, op) in now.iter().enumerate() {
                let entry = entry(batch, op, &mut self.chains).user_data((first + at) as u64);
                // SAFETY: the entry points to buffers of the batch, which is borrowed until this
                // function returns, and to descriptions in `chains` that do not move until then;
                // with MSG_DONTWAIT the write has finished when the submission below returns.
                let pushed = unsafe { queue.push(&entry) };
                pushed.expect("the queue was empty and no more than its size are pushed");
            }
            drop(queue);
            submit(&mut self.ring, now.len(), short_writes)?;
            first += now.len();
            rest = later;
        }
        Ok(())
    }
}

/// Descriptions of the writes that have several buffers. They stay where they are until the next
/// batch, because the ring holds pointers to them.
#[derive(Default)]
struct Chains {
    messages: Vec<libc::msghdr>,
    slices: Vec<libc::iovec>,
}

impl Chains {
    fn clear_for(&mut self, batch: &SendBatch) {
        let (slices, messages) = batch.chained();
        self.slices.clear();
        self.slices.reserve(slices);
        self.messages.clear();
        self.messages.reserve(messages);
    }

    fn describe(&mut self, batch: &SendBatch, op: &SendOp) -> *const libc::msghdr {
        let from = self.slices.len();
        assert!(from + op.bufs_len() <= self.slices.capacity(), "or the others would move");
        assert!(self.messages.len() < self.messages.capacity(), "or the others would move");
        self.slices.extend(batch.bufs(op).map(|buf| libc::iovec {
            iov_base: buf.as_ptr().cast_mut().cast(),
            iov_len: buf.len(),
        }));
        // SAFETY: a zeroed msghdr is a valid empty one.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = self.slices[from..].as_mut_ptr();
        message.msg_iovlen = op.bufs_len();
        self.messages.push(message);
        self.messages.last().expect("just pushed")
    }
}

fn entry(batch: &SendBatch, op: &SendOp, chains: &mut Chains) -> Entry {
    let socket = Fd(op.socket_key as RawFd);
    let entry = match batch.only_buf(op) {
        Some(buf) => opcode::Send::new(socket, buf.as_ptr(), buf.len() as u32).flags(FLAGS).build(),
        None => {
            let message = chains.describe(batch, op);
            opcode::SendMsg::new(socket, message).flags(FLAGS as u32).build()
        }
    };
    entry.flags(Flags::SKIP_SUCCESS)
}

fn submit(
    ring: &mut IoUring,
    entries: usize,
    short_writes: &mut Vec<ShortWrite>,
) -> io::Result<()> {
    let mut left = entries;
    while left > 0 {
        match ring.submit() {
            Ok(submitted) => left -= submitted.min(left),
            Err(error) => match error.raw_os_error() {
                Some(libc::EINTR | libc::EAGAIN | libc::EBUSY) => {}
                _ => return Err(error),
            },
        }
        short_writes.extend(ring.completion().map(|completion| ShortWrite {
            op: completion.user_data() as usize,
            taken: taken(completion.result()),
        }));
    }
    Ok(())
}

fn taken(result: i32) -> Result<usize, i32> {
    match -result {
        libc::EAGAIN | libc::EINTR => Ok(0),
        error if error > 0 => Err(error),
        _ => Ok(result as usize),
    }
}

fn send_plain(batch: &SendBatch, short_writes: &mut Vec<ShortWrite>) {
    for (number, op) in batch.ops().iter().enumerate() {
        let bytes: usize = batch.bufs(op).map(|buf| buf.len()).sum();
        let slices = batch.bufs(op).map(|buf| &buf[..]);
        let taken = match super::socket::send_slices(op.socket_key as RawFd, slices) {
            Ok(taken) if taken == bytes => continue,
            Ok(taken) => Ok(taken),
            Err(error) => taken(-error.raw_os_error().unwrap_or(libc::EIO)),
        };
        short_writes.push(ShortWrite { op: number, taken });
    }
}
