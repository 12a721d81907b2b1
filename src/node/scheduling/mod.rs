//! `scheduling = "auto"`: looks once a second at how much each thread ran and waited, and puts shards
//! and the backplane into the class that fits ([`choice`]).
//!
//! A thread of its own, because a class may be set for any thread of the process, and what decides is
//! what all of them used of a core. It reads one file a thread. Where the kernel counts no times,
//! nothing is ever changed, and all stay in the kernel's default class.
//!
//! Invariant: nothing waits for this thread.

mod choice;

use crate::metrics::{SchedulingCounters, SchedulingMirror};
use crate::sys::{self, OwnThread, ThreadTimes};
use choice::{CoreUse, SchedulingChoice, SchedulingClass};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// From one look to the next.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Threads and their cores are listed again at every so many looks.
const LOOKS_PER_LIST: u64 = 10;

/// Looks until the process ends.
pub(super) fn watch(mirror: &SchedulingMirror) -> ! {
    let mut watch = ThreadWatch::default();
    let mut before = Instant::now();
    for look in 0_u64.. {
        if look < 2 || look.is_multiple_of(LOOKS_PER_LIST) {
            watch.list(sys::own_threads().unwrap_or_default());
        }
        let now = Instant::now();
        watch.look(now.duration_since(before), sys::thread_times, set_class);
        before = now;
        mirror.publish(&watch.counters);
        sleep(LOOK_INTERVAL);
    }
    unreachable!("a second each, for longer than there are seconds")
}

/// A mirror to be given to [`watch`] and to those who read it.
pub(super) fn mirror() -> Arc<SchedulingMirror> {
    Arc::default()
}

/// Whether it was carried out.
fn set_class(thread: &OwnThread, class: SchedulingClass) -> bool {
    let set = sys::schedule_in_batches(thread.id, class == SchedulingClass::Batch);
    if let Err(error) = &set {
        tracing::debug!(thread = thread.name, %error, "a thread's scheduling could not be changed");
    } else {
        tracing::debug!(thread = thread.name, ?class, "a thread's scheduling was changed");
    }
    set.is_ok()
}

/// Whether a thread is one whose class is chosen: the others have little to do.
fn is_chosen(name: &str) -> bool {
    name.starts_with("shard-") || name == "backplane"
}

/// All threads of the process, as of the last look.
#[derive(Default)]
struct ThreadWatch {
    threads: Vec<WatchedThread>,
    counters: SchedulingCounters,
}

struct WatchedThread {
    thread: OwnThread,
    /// At the last look.
    times: Option<ThreadTimes>,
    /// Since the look before.
    passed: ThreadTimes,
    choice: SchedulingChoice,
}

impl ThreadWatch {
    /// These are the threads now. What is known of those that were there before stays.
    fn list(&mut self, threads: Vec<OwnThread>) {
        let mut before = std::mem::take(&mut self.threads);
        for thread in threads {
            let known = before.iter().position(|known| known.thread.id == thread.id);
            self.threads.push(match known {
                Some(at) => WatchedThread { thread, ..before.swap_remove(at) },
                None => WatchedThread {
                    thread,
                    times: None,
                    passed: ThreadTimes::default(),
                    choice: SchedulingChoice::default(),
                },
            });
        }
    }

    /// One look after `passed`.
    fn look(
        &mut self,
        passed: Duration,
        times_of: impl Fn(i32) -> Option<ThreadTimes>,
        mut set: impl FnMut(&OwnThread, SchedulingClass) -> bool,
    ) {
        for watched in &mut self.threads {
            watched.read(times_of(watched.thread.id));
        }
        for at in 0..self.threads.len() {
            if !is_chosen(&self.threads[at].thread.name) {
                continue;
            }
            let seen = self.core_use(at, passed);
            let watched = &mut self.threads[at];
            let before = watched.choice;
            if let Some(class) = watched.choice.look(seen) {
                match set(&watched.thread, class) {
                    true => self.counters.changes += 1,
                    false => watched.choice = before,
                }
            }
        }
        let in_batches =
            |watched: &&WatchedThread| watched.choice.class() == SchedulingClass::Batch;
        self.counters.in_batches = self.threads.iter().filter(in_batches).count() as u64;
    }

    /// What the thread at this place had of its core.
    fn core_use(&self, at: usize, passed: Duration) -> CoreUse {
        let own = &self.threads[at];
        let others = self.threads.iter().enumerate().filter(|(other, _)| *other != at);
        let others_ran_ns = others.map(|(_, other)| other.ran_on(&own.thread.cores)).sum();
        let part = |ns: u64| (u128::from(ns) * 1000 / passed.as_nanos().max(1)) as u32;
        CoreUse {
            ran: part(own.passed.ran_ns),
            waited: part(own.passed.waited_ns),
            others_ran: part(others_ran_ns),
        }
    }
}

impl WatchedThread {
    fn read(&mut self, times: Option<ThreadTimes>) {
        let before = std::mem::replace(&mut self.times, times);
        self.passed = match (before, times) {
            (Some(before), Some(now)) => ThreadTimes {
                ran_ns: now.ran_ns.saturating_sub(before.ran_ns),
                waited_ns: now.waited_ns.saturating_sub(before.waited_ns),
            },
            _ => ThreadTimes::default(),
        };
    }

    /// How long it ran on each of these cores on average, in nanoseconds, if it was on each of its own
    /// for as long.
    fn ran_on(&self, cores: &[usize]) -> u64 {
        let own = &self.thread.cores;
        let shared = cores.iter().filter(|core| own.contains(core)).count() as u64;
        self.passed.ran_ns * shared / (own.len() * cores.len()).max(1) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;
    use std::sync::mpsc::channel;

    const SECOND: Duration = Duration::from_secs(1);
    const MS: u64 = 1_000_000;

    fn thread(id: i32, name: &str, cores: &[usize]) -> OwnThread {
        OwnThread { id, name: name.to_owned(), cores: cores.to_vec() }
    }

    /// What a thread did in each second, in milliseconds.
    #[derive(Clone, Copy)]
    struct InASecond(i32, u64, u64);

    /// Looks at these threads once a second; answers which are in batches after each look.
    fn looks(watch: &mut ThreadWatch, seconds: &[&[InASecond]]) -> Vec<Vec<i32>> {
        let mut times: HashMap<i32, ThreadTimes> = HashMap::new();
        let mut batched = Vec::new();
        let mut all = Vec::new();
        for second in seconds {
            for InASecond(id, ran_ms, waited_ms) in *second {
                let times = times.entry(*id).or_default();
                times.ran_ns += ran_ms * MS;
                times.waited_ns += waited_ms * MS;
            }
            let times_of = |id| Some(times.get(&id).copied().unwrap_or_default());
            watch.look(SECOND, times_of, |thread, class| {
                batched.retain(|id| *id != thread.id);
                if class == SchedulingClass::Batch {
                    batched.push(thread.id);
                }
                true
            });
            batched.sort_unstable();
            all.push(batched.clone());
        }
        all
    }

    #[test]
    fn a_shard_and_the_backplane_that_fill_one_core_are_both_scheduled_in_batches_while_they_do() {
        let mut watch = ThreadWatch::default();
        let threads = [thread(1, "campanile", &[0, 1]), thread(2, "shard-0", &[0])];
        watch
            .list([&threads[..], &[thread(3, "backplane", &[0]), thread(4, "ops", &[0])]].concat());
        let full = &[InASecond(2, 600, 390), InASecond(3, 380, 600), InASecond(4, 10, 50)][..];
        let quiet = &[InASecond(2, 50, 1), InASecond(3, 30, 1)][..];
        let seen = looks(&mut watch, &[quiet, full, full, full, quiet, quiet]);
        assert_eq!(seen, [vec![], vec![], vec![], vec![2, 3], vec![2, 3], vec![]]);
        assert_eq!((watch.counters.in_batches, watch.counters.changes), (0, 4));
    }

    #[test]
    fn a_thread_that_waits_for_another_process_is_not() {
        let mut watch = ThreadWatch::default();
        watch.list(vec![thread(2, "shard-0", &[0]), thread(3, "shard-1", &[1])]);
        // The other shard is as busy, but on a core of its own.
        let seconds = [&[InASecond(2, 480, 500), InASecond(3, 990, 0)][..]; 5];
        assert_eq!(looks(&mut watch, &seconds).pop(), Some(vec![3]));
    }

    #[test]
    fn a_thread_that_is_not_pinned_counts_for_each_core_in_part() {
        let floating = WatchedThread {
            thread: thread(9, "backplane", &[0, 1, 2, 3]),
            times: None,
            passed: ThreadTimes { ran_ns: 400 * MS, waited_ns: 0 },
            choice: SchedulingChoice::default(),
        };
        assert_eq!(floating.ran_on(&[1]), 100 * MS);
        assert_eq!(floating.ran_on(&[0, 1, 2, 3]), 100 * MS);
        assert_eq!(floating.ran_on(&[7]), 0);
        assert_eq!(floating.ran_on(&[]), 0, "a thread with no core known");
    }

    #[test]
    fn where_the_kernel_counts_no_times_nothing_changes() {
        let mut watch = ThreadWatch::default();
        watch.list(vec![thread(2, "shard-0", &[0])]);
        (0..10).for_each(|_| watch.look(SECOND, |_| None, |_, _| panic!("nothing is known")));
    }

    #[test]
    fn a_thread_of_this_process_is_found_and_put_into_both_classes() {
        let (let_go, may_end) = channel::<()>();
        let wait = move || _ = may_end.recv();
        let builder = std::thread::Builder::new().name("shard-77".to_owned());
        let running = builder.spawn(wait).expect("a thread");
        let find = || {
            let all = sys::own_threads().expect("Linux");
            all.into_iter().find(|thread| thread.name == "shard-77")
        };
        // A thread has its name a moment after it was made.
        let found = std::iter::repeat_with(find).take(1_000_000).flatten().next();
        let found = found.expect("it runs");
        let mut watch = ThreadWatch::default();
        watch.list(vec![found.clone()]);
        let is_in_batches = || sys::is_scheduled_in_batches(found.id).expect("it runs");
        let mut seen = vec![is_in_batches()];
        let ran = |looks: u64| ThreadTimes { ran_ns: looks * 950 * MS, waited_ns: 0 };
        for look in 1..=4 {
            watch.look(SECOND, |_| Some(ran(look)), set_class);
        }
        seen.push(is_in_batches());
        for _ in 0..2 {
            watch.look(SECOND, |_| Some(ran(4)), set_class);
        }
        seen.push(is_in_batches());
        assert_eq!(seen, [false, true, false]);
        assert!(sys::thread_times(found.id).is_some(), "this kernel counts");
        drop(let_go);
        running.join().expect("it ends");
    }
}
