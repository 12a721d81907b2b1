//! From shards to the ops thread: a token names a key that is not known, so the keys of the identity
//! provider are to be read again. The keys come back by an [`crate::link::exchange::Exchange`].
//!
//! Invariant: any number of requests before the ops thread looks are one.

use crate::link::bell::Bell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Shared by all shards and the ops thread.
#[derive(Debug)]
pub struct KeyRequests {
    is_asked: AtomicBool,
    readings: AtomicU64,
    bell: Bell,
}

impl KeyRequests {
    /// Fails only when the kernel gives no descriptor. Must exist before file tables are split.
    pub fn new() -> io::Result<KeyRequests> {
        Ok(KeyRequests {
            is_asked: AtomicBool::new(false),
            readings: AtomicU64::new(0),
            bell: Bell::new()?,
        })
    }

    /// A shard wants the keys to be read again.
    pub fn ask(&self) {
        if !self.is_asked.swap(true, Ordering::Release) {
            self.bell.ring();
        }
    }

    /// Whether any shard has asked since the last call. Of the ops thread.
    pub fn take(&self) -> bool {
        self.is_asked.swap(false, Ordering::Acquire)
    }

    /// The keys are about to be read; answers which reading that is, from 1. Of the ops thread.
    pub fn begin_reading(&self) -> u64 {
        self.readings.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// How many readings have begun: a key that was made by now is in what a later one finds.
    pub fn readings(&self) -> u64 {
        self.readings.load(Ordering::SeqCst)
    }

    /// Whether the ops thread may now wait for the bell.
    #[must_use]
    pub fn may_sleep(&self) -> bool {
        self.bell.may_sleep(|| !self.is_asked.load(Ordering::Acquire))
    }

    /// After waking.
    pub fn clear(&self) {
        self.bell.clear();
    }
}

impl AsFd for KeyRequests {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_requests_are_one_and_a_request_keeps_the_reader_awake() {
        let requests = KeyRequests::new().unwrap();
        assert!(!requests.take() && requests.may_sleep());
        requests.ask();
        requests.ask();
        assert!(!requests.may_sleep());
        assert!(requests.take() && !requests.take());
    }
}
