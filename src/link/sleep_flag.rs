//! Whether a consumer sleeps and has to be woken: one flag, two fences, no system call.
//!
//! The consumer raises the flag, fences, looks once more, and only then sleeps. The producer
//! publishes, fences, and looks at the flag. Whichever fence comes first in the one order that all
//! `SeqCst` fences have, the other side sees what stood before it: either the consumer finds the
//! item, or the producer finds the sleeper.
//!
//! Invariant: no item waits while its consumer sleeps and nobody is about to wake it. Loom tries
//! every interleaving: `tests/loom.rs` includes this very file beside atomics of loom's.

use super::atomics::{AtomicBool, Ordering, fence};

/// The flag and its fences, without the system calls.
#[derive(Debug, Default)]
pub struct SleepFlag {
    asleep: AtomicBool,
}

impl SleepFlag {
    /// Awake.
    pub fn new() -> SleepFlag {
        SleepFlag { asleep: AtomicBool::new(false) }
    }

    /// Producer, after it has published: whether the consumer sleeps and it is on us to wake it.
    #[must_use]
    pub fn must_wake(&self) -> bool {
        // Orders our publication before the look at the flag; pairs with the fence in `may_sleep`.
        fence(Ordering::SeqCst);
        self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::AcqRel)
    }

    /// Consumer, before it sleeps: `false` when there is something after all.
    #[must_use]
    pub fn may_sleep(&self, is_empty: impl FnOnce() -> bool) -> bool {
        // A swap, where a store would do by the rules of C++: it orders this sleep after a late wake
        // of an earlier one, which loom cannot see otherwise (it keeps no modification order).
        self.asleep.swap(true, Ordering::AcqRel);
        // Orders the flag before the last look; pairs with the fence in `must_wake`.
        fence(Ordering::SeqCst);
        if is_empty() {
            return true;
        }
        self.asleep.store(false, Ordering::Relaxed);
        false
    }
}
