//! A ring of receive buffers that the kernel takes from and we give back to.
//!
//! Invariant: a buffer is either the kernel's or ours, and ours only between a completion and
//! `give_back`.

use io_uring::IoUring;
use io_uring::types::BufRingEntry;
use std::io;
use std::sync::atomic::{AtomicU16, Ordering};

const BUFFERS: u16 = 256;
/// Bytes of one buffer.
pub const BUFFER_BYTES: usize = 16 << 10;

/// The ring, as group 0.
pub struct Buffers {
    entries: *mut BufRingEntry,
    memory: Vec<u8>,
    tail: u16,
}

const _: () = assert!(BUFFERS.is_power_of_two());

// SAFETY: the pointer is to memory that only this value uses.
unsafe impl Send for Buffers {}

impl Buffers {
    /// Registers the ring as group 0. Its entries are never freed: the kernel reads them as long
    /// as the io_uring lives.
    pub fn new(ring: &IoUring) -> io::Result<Buffers> {
        let bytes = BUFFERS as usize * size_of::<BufRingEntry>();
        let layout = std::alloc::Layout::from_size_align(bytes, 4096).expect("a page-aligned size");
        // SAFETY: the size is not zero, and null is refused below.
        let entries = unsafe { std::alloc::alloc_zeroed(layout) }.cast::<BufRingEntry>();
        if entries.is_null() {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        // SAFETY: page-aligned, of BUFFERS entries, and never freed.
        unsafe { ring.submitter().register_buf_ring(entries as u64, BUFFERS, 0)? };
        let memory = vec![0; BUFFERS as usize * BUFFER_BYTES];
        let mut buffers = Buffers { entries, memory, tail: 0 };
        (0..BUFFERS).for_each(|buffer| buffers.give_back(buffer));
        Ok(buffers)
    }

    /// What was received into one of them.
    pub fn bytes(&mut self, buffer: u16, length: usize) -> &mut [u8] {
        let at = buffer as usize * BUFFER_BYTES;
        &mut self.memory[at..at + length]
    }

    /// The kernel may take it again.
    pub fn give_back(&mut self, buffer: u16) {
        let place = (self.tail & (BUFFERS - 1)) as usize;
        let at = buffer as usize * BUFFER_BYTES;
        let addr = self.memory[at..at + BUFFER_BYTES].as_mut_ptr() as u64;
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: `place` is within the ring and not the kernel's until the tail below says so;
        // the tail is a u16 in the first entry that only this thread writes.
        unsafe {
            let entry = &mut *self.entries.add(place);
            entry.set_addr(addr);
            entry.set_len(BUFFER_BYTES as u32);
            entry.set_bid(buffer);
            let tail = BufRingEntry::tail(self.entries).cast::<AtomicU16>();
            (*tail).store(self.tail, Ordering::Release);
        }
    }
}
