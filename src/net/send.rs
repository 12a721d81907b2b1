//! Batched writes: one system call for a whole batch of sockets.
//!
//! Each write is a SEND with `MSG_DONTWAIT`, so it finishes while it is being submitted: no buffer
//! outlives the call, there is no future and no state per connection. `MSG_WAITALL` makes a partial
//! write count as a failure, and `CQE_SKIP_SUCCESS` lets the kernel speak only of failures: a
//! socket that took nothing, a part, or is dead. A kernel that cannot skip (before 5.17) gets one
//! `send(2)` per socket, with the same answers.
//!
//! Invariant: when [`Sender::send`] returns, no write is in flight.
#![allow(unsafe_code)] // pushing entries whose buffers the batch keeps alive

use crate::shard::batch::{SendBatch, SendOp};
use io_uring::{IoUring, opcode, squeue::Flags, types::Fd};
use std::io;
use std::os::fd::RawFd;

const FLAGS: i32 = libc::MSG_DONTWAIT | libc::MSG_WAITALL | libc::MSG_NOSIGNAL;

/// A write that was not taken whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Short {
    /// Which of the batch's writes.
    pub op: usize,
    /// Bytes taken (0: the socket is full), or the error number.
    pub taken: Result<usize, i32>,
}

/// Writes batches.
pub enum Sender {
    /// Through a ring of its own.
    Ring(Box<IoUring>),
    /// One system call each.
    Plain,
}

impl Sender {
    /// A sender for batches of any size; `entries` of them per system call.
    pub fn new(entries: usize) -> io::Result<Sender> {
        let ring = super::runtime::bare_ring(entries.next_power_of_two() as u32)?;
        if ring.params().is_feature_skip_cqe_on_success() {
            Ok(Sender::Ring(Box::new(ring)))
        } else {
            Ok(Sender::Plain)
        }
    }

    /// Makes all writes of a batch, in order; appends those that were not taken whole to `shorts`.
    pub fn send(&mut self, batch: &SendBatch, shorts: &mut Vec<Short>) -> io::Result<()> {
        match self {
            Sender::Ring(ring) => send_ring(ring, batch, shorts),
            Sender::Plain => {
                send_plain(batch, shorts);
                Ok(())
            }
        }
    }
}

fn send_ring(ring: &mut IoUring, batch: &SendBatch, shorts: &mut Vec<Short>) -> io::Result<()> {
    let mut rest = batch.ops();
    let mut first = 0;
    while !rest.is_empty() {
        let room = ring.params().sq_entries() as usize;
        let (now, later) = rest.split_at(rest.len().min(room));
        let mut queue = ring.submission();
        for (at, op) in now.iter().enumerate() {
            let entry = entry(batch, op, first + at);
            // SAFETY: the entry's buffer is one of the batch's, which is borrowed until this function
            // returns; with MSG_DONTWAIT the write has finished when the submission below returns.
            let pushed = unsafe { queue.push(&entry) };
            pushed.expect("the queue was empty and no more than its size are pushed");
        }
        drop(queue);
        submit(ring, now.len(), shorts)?;
        first += now.len();
        rest = later;
    }
    Ok(())
}

fn entry(batch: &SendBatch, op: &SendOp, number: usize) -> io_uring::squeue::Entry {
    let bytes = batch.bytes(op);
    opcode::Send::new(Fd(op.wire as RawFd), bytes.as_ptr(), bytes.len() as u32)
        .flags(FLAGS)
        .build()
        .flags(Flags::SKIP_SUCCESS)
        .user_data(number as u64)
}

fn submit(ring: &mut IoUring, entries: usize, shorts: &mut Vec<Short>) -> io::Result<()> {
    let mut left = entries;
    while left > 0 {
        match ring.submit() {
            Ok(submitted) => left -= submitted.min(left),
            Err(error) => match error.raw_os_error() {
                Some(libc::EINTR | libc::EAGAIN | libc::EBUSY) => {}
                _ => return Err(error),
            },
        }
        shorts.extend(ring.completion().map(|completion| Short {
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

fn send_plain(batch: &SendBatch, shorts: &mut Vec<Short>) {
    for (number, op) in batch.ops().iter().enumerate() {
        let bytes = batch.bytes(op);
        let result = super::socket::send_slices(op.wire as RawFd, [&bytes[..]].into_iter());
        let taken = match result {
            Ok(taken) if taken == bytes.len() => continue,
            Ok(taken) => Ok(taken),
            Err(error) => taken(-error.raw_os_error().unwrap_or(libc::EIO)),
        };
        shorts.push(Short { op: number, taken });
    }
}
