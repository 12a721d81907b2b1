//! Whether messages really flow: what `/readyz` answers from.
//!
//! Each flag has one writer. Readiness is computed where it is asked for, so there is no state that
//! could disagree with the flags.

use crossbeam_utils::CachePadded;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};

/// Shared by all threads of a node.
#[derive(Debug, Default)]
pub struct Health {
    flags: CachePadded<Flags>,
}

/// Seldom written, so they may share a line; what else is on the heap may not share it with them.
#[derive(Debug, Default)]
struct Flags {
    shards_listening: AtomicU16,
    backplane_up: AtomicBool,
    memory_short: AtomicBool,
    keys_missing: AtomicBool,
    draining: AtomicBool,
}

/// Why a node is not ready, for the operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotReady {
    /// Some shards do not listen yet.
    Starting {
        /// How many do.
        listening: u16,
    },
    /// The backplane is away, or its canary has not come back.
    Backplane,
    /// The keys of the identity provider were not read yet.
    Keys,
    /// The node has been near its memory bound for a while.
    Memory,
    /// The node is about to end.
    Draining,
}

impl Health {
    /// A shard listens now. Each shard calls it once.
    pub fn shard_listens(&self) {
        self.flags.shards_listening.fetch_add(1, Ordering::Relaxed);
    }

    /// The backplane delivers, or does not. Written by the backplane thread only.
    pub fn set_backplane_up(&self, up: bool) {
        self.flags.backplane_up.store(up, Ordering::Relaxed);
    }

    /// The node has been near its memory bound for a while, or is no more. Written by the backplane
    /// thread only.
    pub fn set_memory_short(&self, is_short: bool) {
        self.flags.memory_short.store(is_short, Ordering::Relaxed);
    }

    /// The keys of the identity provider are not there yet, or are. Written at the start, and then by
    /// the ops thread.
    pub fn set_keys_missing(&self, are_missing: bool) {
        self.flags.keys_missing.store(are_missing, Ordering::Relaxed);
    }

    /// The node is about to end. Written by main only.
    pub fn set_draining(&self) {
        self.flags.draining.store(true, Ordering::Relaxed);
    }

    /// Whether new clients may be sent here, with `shards` expected.
    pub fn ready(&self, shards: u16) -> Result<(), NotReady> {
        let listening = self.flags.shards_listening.load(Ordering::Relaxed);
        if self.flags.draining.load(Ordering::Relaxed) {
            Err(NotReady::Draining)
        } else if listening < shards {
            Err(NotReady::Starting { listening })
        } else if !self.flags.backplane_up.load(Ordering::Relaxed) {
            Err(NotReady::Backplane)
        } else if self.flags.keys_missing.load(Ordering::Relaxed) {
            Err(NotReady::Keys)
        } else if self.flags.memory_short.load(Ordering::Relaxed) {
            Err(NotReady::Memory)
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_ready_when_all_of_it_is() {
        let health = Health::default();
        assert_eq!(health.ready(1), Err(NotReady::Starting { listening: 0 }));
        health.shard_listens();
        assert_eq!(health.ready(1), Err(NotReady::Backplane));
        health.set_backplane_up(true);
        assert_eq!(health.ready(1), Ok(()));
        health.set_keys_missing(true);
        assert_eq!(health.ready(1), Err(NotReady::Keys));
        health.set_keys_missing(false);
        health.set_memory_short(true);
        assert_eq!(health.ready(1), Err(NotReady::Memory));
        health.set_draining();
        assert_eq!(health.ready(1), Err(NotReady::Draining));
    }
}
