//! What does it cost to cross from a shard to the backplane and back, awake and asleep?
//!
//! Two threads and the real window: the shard's end here, an echo at the other end. *Awake*: both
//! ends look into their channels without pause, as under load. *Asleep*: both sleep in poll(2) on
//! their bells, so each crossing pays a ring, a wake-up and a hush on either side; that is the price
//! of one lonely message (unless the last look before the sleep finds the other's answer, which
//! counts as it comes). *Nobody asleep* is what a batch pays to find out that it need not ring.
#![allow(unsafe_code)] // poll(2), which a benchmark calls as the runtimes do

use campanile::ids::{SlotId, TopicId, TopicName};
use campanile::link::bell::Bell;
use campanile::link::channel::{BackplaneEnd, ShardEnd, window};
use campanile::link::{Downlink, Uplink};
use campanile::protocol::dialect::Encoding;
use criterion::{Criterion, criterion_group, criterion_main};
use std::hint::black_box;
use std::thread::JoinHandle;

const AT: TopicId = TopicId(SlotId { index: 0, generation: 0 });

fn wait(bell: &Bell) {
    let mut poll = libc::pollfd { fd: bell.fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid pollfd, and no timeout.
    unsafe { libc::poll(&mut poll, 1, -1) };
    bell.clear();
}

/// Looks again soon, but lets the other end run where cores are few.
fn spin() {
    for _ in 0..64 {
        std::hint::spin_loop();
    }
    std::thread::yield_now();
}

/// Answers each join, and sleeps between them if it should. Ends with [`OpsEnd::stop_backplane`].
///
/// [`OpsEnd::stop_backplane`]: campanile::link::channel::OpsEnd::stop_backplane
fn echo(end: BackplaneEnd, sleeps: bool) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let port = &end.shards[0];
        while !end.is_stopped() {
            while let Some(Uplink::Join { at, .. }) = port.try_recv() {
                assert!(port.try_send(Downlink::Joined { at }).is_ok());
                port.ring();
            }
            match sleeps {
                true if end.may_sleep(|_| true, true) => wait(end.bell()),
                true => {}
                false => spin(),
            }
        }
    })
}

fn cross_and_return(shard: &ShardEnd, topic: &TopicName, sleeps: bool) {
    assert!(
        shard
            .try_send(Uplink::Join { topic: topic.clone(), at: AT, encoding: Encoding::NATIVE })
            .is_ok()
    );
    shard.ring();
    while shard.try_recv().is_none() {
        match sleeps {
            true if shard.may_sleep() => wait(shard.bell()),
            true => {}
            false => spin(),
        }
    }
}

fn crossing(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("there and back");
    let topic = TopicName::room("room");
    for (name, sleeps) in [("awake", false), ("asleep", true)] {
        let (shards, end, ops) = window(1, 64, 64).expect("two bells");
        let echo = echo(end, sleeps);
        group.bench_function(name, |b| {
            b.iter(|| cross_and_return(&shards[0], &topic, sleeps));
        });
        ops.stop_backplane();
        echo.join().expect("the echo does not panic");
    }
    group.finish();
}

fn ringing_nobody(criterion: &mut Criterion) {
    let bell = Bell::new().expect("an eventfd");
    criterion.bench_function("nobody asleep", |b| b.iter(|| black_box(bell.ring())));
}

criterion_group!(benches, crossing, ringing_nobody);
criterion_main!(benches);
