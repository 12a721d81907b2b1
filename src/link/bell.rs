//! The bell: how one thread wakes another that sleeps on a file descriptor, and only then.
//!
//! The consumer says it is going to sleep, fences, looks once more, sleeps. The producer publishes,
//! fences, and rings only a sleeper. Either the consumer sees the item or the producer sees the
//! sleeper; a left-over count is only a spurious wake. One system call per sleep, not per message.
//!
//! Both halves of the protocol stand in [`SleepFlag`], which names no system call; this file adds the
//! descriptor.
//!
//! Invariant: the eventfd is readable only after a ring, and a ring while the consumer is awake costs
//! no system call.
#![allow(unsafe_code)] // eventfd(2), read(2) and write(2) on a descriptor that this type owns

pub use crate::link::sleep_flag::SleepFlag;

use crossbeam_utils::CachePadded;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// A [`SleepFlag`] and the eventfd it sleeps on. The flag has a line of cache to itself: bells of
/// several shards are made one after the other, and must not wake each other's caches.
#[derive(Debug)]
pub struct Bell {
    sleeper: CachePadded<SleepFlag>,
    eventfd: OwnedFd,
}

impl Bell {
    /// A silent bell. Must exist before file tables are split, so that it is in each of them.
    pub fn new() -> io::Result<Bell> {
        // SAFETY: eventfd takes no pointers; a non-negative answer is a descriptor nobody else owns.
        let eventfd = unsafe {
            let fd = libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(fd)
        };
        Ok(Bell { sleeper: CachePadded::new(SleepFlag::new()), eventfd })
    }

    /// Wakes the consumer if it sleeps. To be called after publishing; once for a whole batch.
    /// Answers whether it had to ring.
    pub fn ring(&self) -> bool {
        let must = self.sleeper.must_wake();
        if must {
            let one = 1u64.to_ne_bytes();
            // SAFETY: eight readable bytes, and the descriptor is ours. The only failure, a full
            // counter (EAGAIN), means that it is already readable, which is enough.
            unsafe { libc::write(self.eventfd.as_raw_fd(), one.as_ptr().cast(), one.len()) };
        }
        must
    }

    /// Whether the consumer may now wait for [`Bell::fd`] to become readable.
    #[must_use]
    pub fn may_sleep(&self, is_empty: impl FnOnce() -> bool) -> bool {
        self.sleeper.may_sleep(is_empty)
    }

    /// After waking: takes the count, so the descriptor is silent again.
    pub fn clear(&self) {
        let mut count = [0u8; 8];
        // SAFETY: eight writable bytes, and the descriptor is ours. EAGAIN means already silent.
        unsafe { libc::read(self.eventfd.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
    }

    /// What to wait for, readable when rung. Not to be closed by the waiter.
    pub fn fd(&self) -> RawFd {
        self.eventfd.as_raw_fd()
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.eventfd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_readable(bell: &Bell) -> bool {
        let mut poll = libc::pollfd { fd: bell.fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid pollfd, and a timeout of zero.
        unsafe { libc::poll(&mut poll, 1, 0) == 1 }
    }

    #[test]
    fn only_a_sleeper_is_rung() {
        let bell = Bell::new().unwrap();
        assert!(!bell.ring(), "awake");
        assert!(!is_readable(&bell));
        assert!(bell.may_sleep(|| true));
        assert!(bell.ring());
        assert!(is_readable(&bell));
        assert!(!bell.ring(), "once is enough");
        bell.clear();
        assert!(!is_readable(&bell));
    }

    #[test]
    fn a_consumer_that_finds_something_at_the_last_look_stays_awake() {
        let bell = Bell::new().unwrap();
        assert!(!bell.may_sleep(|| false));
        assert!(!bell.ring());
    }
}
