//! When a thread of ours is scheduled in batches (`scheduling = "auto"`).
//!
//! A woken thread of `SCHED_BATCH` does not preempt a running one. Where only our own threads share a
//! core, and that core is saturated, more messages then leave in one write. Where a program of
//! another owner shares the core, each message waits for the end of that one's turn, which may take
//! milliseconds. So a thread is scheduled in batches only while our threads use nearly all of its core
//! and nobody else uses much of it.
//!
//! Both are found from what the kernel counts of our own threads: how long each ran, and how long it
//! was ready and had to wait. What a thread waited beyond the time in which others of ours ran on its
//! core, it waited for another process.
//!
//! ```text
//!             3 looks: ours ≥ 80 %, foreign ≤ 10 %
//!   Other ────────────────────────────────────────────► Batch
//!         ◄────────────────────────────────────────────
//!             2 looks: ours < 40 %, or foreign > 20 %
//! ```
//!
//! The gap between both is wide because the change itself moves the numbers: in batches the same work
//! takes down to half of the time.

/// How the kernel schedules a thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum SchedulingClass {
    /// `SCHED_OTHER`.
    #[default]
    Other,
    /// `SCHED_BATCH`.
    Batch,
}

/// What a thread had of its core between two looks, in thousandths of that time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct CoreUse {
    /// It ran.
    pub(super) ran: u32,
    /// It was ready and had to wait.
    pub(super) waited: u32,
    /// Other threads of this process ran on its core.
    pub(super) others_ran: u32,
}

/// Of a core that is saturated our threads use so much at least.
const OURS_SATURATED: u32 = 800;
/// Below this it is not saturated any more.
const OURS_RELAXED: u32 = 400;
/// A core of which foreign use so much at most is our own.
const FOREIGN_FEW: u32 = 100;
/// Above this it is shared.
const FOREIGN_MANY: u32 = 200;
/// So many looks in a row change [`SchedulingClass::Other`].
const LOOKS_TO_BATCH: u8 = 3;
/// So many looks in a row change [`SchedulingClass::Batch`].
const LOOKS_TO_OTHER: u8 = 2;

impl CoreUse {
    /// What our threads used of the core.
    fn ours(&self) -> u32 {
        self.ran + self.others_ran
    }

    /// What foreign used of it while the thread waited, at least.
    fn foreign(&self) -> u32 {
        self.waited.saturating_sub(self.others_ran)
    }
}

/// The choice for one thread.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SchedulingChoice {
    class: SchedulingClass,
    /// Looks in a row that were for the other class.
    looks: u8,
}

impl SchedulingChoice {
    /// How the thread is scheduled now.
    pub(super) fn class(&self) -> SchedulingClass {
        self.class
    }

    /// One look at the thread. `Some`: it is scheduled so from now on.
    pub(super) fn look(&mut self, seen: CoreUse) -> Option<SchedulingClass> {
        let (wants_change, looks, next) = match self.class {
            SchedulingClass::Other => {
                let is_own = seen.ours() >= OURS_SATURATED && seen.foreign() <= FOREIGN_FEW;
                (is_own, LOOKS_TO_BATCH, SchedulingClass::Batch)
            }
            SchedulingClass::Batch => {
                let is_over = seen.ours() < OURS_RELAXED || seen.foreign() > FOREIGN_MANY;
                (is_over, LOOKS_TO_OTHER, SchedulingClass::Other)
            }
        };
        self.looks = if wants_change { self.looks + 1 } else { 0 };
        if self.looks < looks {
            return None;
        }
        *self = SchedulingChoice { class: next, looks: 0 };
        Some(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use SchedulingClass::{Batch, Other};

    const fn core(ran: u32, waited: u32, others_ran: u32) -> CoreUse {
        CoreUse { ran, waited, others_ran }
    }

    const IDLE: CoreUse = core(10, 0, 5);
    /// A busy neighbour at low load, as `SCHED_OTHER` and as `SCHED_BATCH` see it.
    const NEIGHBOUR: CoreUse = core(50, 20, 50);
    const NEIGHBOUR_IN_BATCHES: CoreUse = core(50, 800, 50);
    /// A shard and the backplane on one core, saturated.
    const BOTH_OURS: CoreUse = core(600, 390, 390);
    /// The same with another process who wants all of it.
    const THREE: CoreUse = core(330, 660, 330);

    /// The class after each look.
    fn classes(looks: &[(CoreUse, usize)]) -> Vec<SchedulingClass> {
        let mut choice = SchedulingChoice::default();
        let mut all = Vec::new();
        for (seen, times) in looks {
            for _ in 0..*times {
                choice.look(*seen);
                all.push(choice.class());
            }
        }
        all
    }

    #[test]
    fn a_core_that_our_threads_saturate_is_scheduled_in_batches_from_the_third_look_on() {
        assert_eq!(classes(&[(BOTH_OURS, 4)]), [Other, Other, Batch, Batch]);
        let alone = core(990, 0, 5);
        assert_eq!(classes(&[(alone, 3)])[2], Batch);
        assert_eq!(classes(&[(BOTH_OURS, 2), (IDLE, 1), (BOTH_OURS, 2)]), [Other; 5]);
    }

    #[test]
    fn low_load_or_another_process_on_the_core_is_not() {
        for seen in [IDLE, NEIGHBOUR, THREE, core(400, 600, 0), core(790, 0, 0)] {
            assert_eq!(classes(&[(seen, 100)]), [Other; 100], "{seen:?}");
        }
    }

    #[test]
    fn it_ends_with_the_load_and_when_another_process_comes() {
        for seen in [IDLE, NEIGHBOUR_IN_BATCHES, THREE] {
            let all = classes(&[(BOTH_OURS, 3), (seen, 3)]);
            assert_eq!(all[2..], [Batch, Batch, Other, Other], "{seen:?}");
        }
    }

    #[test]
    fn what_the_change_itself_does_to_the_numbers_does_not_change_it_back() {
        // The same load in batches takes down to half of the time, and one look at another process
        // is no neighbour.
        let (less, one_foreign) = (core(250, 150, 160), core(500, 600, 300));
        let all = classes(&[(BOTH_OURS, 3), (less, 50), (one_foreign, 1), (BOTH_OURS, 5)]);
        assert_eq!(all[2..], [Batch; 57]);
    }
}
