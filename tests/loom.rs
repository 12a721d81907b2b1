//! Every interleaving of the bell's two halves, and proof that the model would notice a mistake.
//!
//! The file under test is included as it stands, but built from loom's atomics. A lost wake-up is a
//! consumer that waits for ever at its eventfd, which loom reports as a deadlock.

#[path = "../src/link/sleep_flag.rs"]
mod sleep_flag;

/// What the included file is built from.
mod atomics {
    pub use loom::sync::atomic::{AtomicBool, Ordering, fence};
}

use atomics::{AtomicBool, Ordering, fence};
use loom::sync::atomic::AtomicUsize;
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;
use sleep_flag::SleepFlag;

/// Both halves, so that broken ones can stand in for [`SleepFlag`].
trait Halves: Default + Send + Sync + 'static {
    fn must_wake(&self) -> bool;
    fn may_sleep(&self, is_empty: impl FnOnce() -> bool) -> bool;
}

impl Halves for SleepFlag {
    fn must_wake(&self) -> bool {
        SleepFlag::must_wake(self)
    }

    fn may_sleep(&self, is_empty: impl FnOnce() -> bool) -> bool {
        SleepFlag::may_sleep(self, is_empty)
    }
}

/// The same without the producer's fence.
#[derive(Default)]
struct WithoutFence(AtomicBool);

impl Halves for WithoutFence {
    fn must_wake(&self) -> bool {
        self.0.load(Ordering::Relaxed) && self.0.swap(false, Ordering::AcqRel)
    }

    fn may_sleep(&self, is_empty: impl FnOnce() -> bool) -> bool {
        self.0.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let may = is_empty();
        if !may {
            self.0.store(false, Ordering::Relaxed);
        }
        may
    }
}

/// The same without the consumer's last look.
#[derive(Default)]
struct WithoutLook(AtomicBool);

impl Halves for WithoutLook {
    fn must_wake(&self) -> bool {
        fence(Ordering::SeqCst);
        self.0.load(Ordering::Relaxed) && self.0.swap(false, Ordering::AcqRel)
    }

    fn may_sleep(&self, _is_empty: impl FnOnce() -> bool) -> bool {
        self.0.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        true
    }
}

/// An eventfd: a count, and a read that waits for it and takes all of it.
#[derive(Default)]
struct EventFd {
    count: Mutex<u64>,
    rung: Condvar,
}

impl EventFd {
    fn write(&self) {
        *self.count.lock().unwrap() += 1;
        self.rung.notify_one();
    }

    fn read(&self) {
        let mut count = self.count.lock().unwrap();
        while *count == 0 {
            count = self.rung.wait(count).unwrap();
        }
        *count = 0;
    }
}

/// One producer, one item, and a consumer that goes to sleep once. When both are through, either it
/// stayed awake, or it was woken, or there is nothing it does not know.
fn nobody_sleeps_over_an_item<T: Halves>() {
    let items = Arc::new(AtomicUsize::new(0));
    let halves = Arc::new(T::default());
    let producer = {
        let (items, halves) = (items.clone(), halves.clone());
        thread::spawn(move || {
            items.store(1, Ordering::Relaxed);
            halves.must_wake()
        })
    };
    let taken = items.load(Ordering::Relaxed);
    let sleeps = halves.may_sleep(|| items.load(Ordering::Relaxed) == taken);
    let is_woken = producer.join().unwrap();
    assert!(!sleeps || is_woken || taken == 1, "it sleeps over an item");
}

/// A consumer takes all that `producers` publish, one item each, and sleeps whenever there is none.
fn everything_arrives(producers: usize) {
    let items = Arc::new(AtomicUsize::new(0));
    let sleeper = Arc::new(SleepFlag::new());
    let eventfd = Arc::new(EventFd::default());
    let threads: Vec<_> = (0..producers)
        .map(|_| {
            let (items, sleeper, eventfd) = (items.clone(), sleeper.clone(), eventfd.clone());
            thread::spawn(move || {
                items.fetch_add(1, Ordering::Relaxed);
                if sleeper.must_wake() {
                    eventfd.write();
                }
            })
        })
        .collect();
    let mut taken = 0;
    while taken < producers {
        let published = items.load(Ordering::Relaxed);
        if published > taken {
            taken = published;
        } else if sleeper.may_sleep(|| items.load(Ordering::Relaxed) == taken) {
            eventfd.read();
        }
    }
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

/// All interleavings with at most three preemptions.
fn model(story: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(story);
}

#[test]
fn nobody_sleeps_over_an_item_that_one_producer_published() {
    model(nobody_sleeps_over_an_item::<SleepFlag>);
}

#[test]
fn what_one_producer_publishes_arrives() {
    model(|| everything_arrives(1));
}

#[test]
fn what_two_producers_publish_arrives() {
    model(|| everything_arrives(2));
}

#[test]
#[should_panic(expected = "it sleeps over an item")]
fn the_model_notices_a_missing_fence() {
    model(nobody_sleeps_over_an_item::<WithoutFence>);
}

#[test]
#[should_panic(expected = "it sleeps over an item")]
fn the_model_notices_a_missing_last_look() {
    model(nobody_sleeps_over_an_item::<WithoutLook>);
}
