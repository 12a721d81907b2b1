//! The monoio runtime of a shard: which ring flags, and a test that the ring really works.
//!
//! `COOP_TASKRUN | SINGLE_ISSUER` saves an interrupt per completion, `SUBMIT_ALL` keeps one bad
//! entry from holding back a batch, and a large completion queue keeps bursts from overflowing. A
//! kernel that refuses a flag gets the next rung of the ladder. `DEFER_TASKRUN` is not used: under
//! monoio it harvests at most twenty completions per system call; `SQPOLL` makes monoio panic.
//!
//! Invariant: the runtime is built on the thread that runs it (`SINGLE_ISSUER` binds the ring to it).

use io_uring::IoUring;
use monoio::{IoUringDriver, Runtime, RuntimeBuilder, time::TimeDriver};
use std::io;
use std::time::Duration;

/// Pending polls of a handful of tasks, and timers: the many sockets are not in this ring.
const ENTRIES: u32 = 1024;
/// Room for completions of a burst; beyond it the kernel allocates for each.
const COMPLETIONS: u32 = 8192;

/// What is asked of the kernel for a ring with so many completions.
type FlagSet = fn(&mut io_uring::Builder, u32);

/// Each rung asks less of the kernel: all flags (6.0), without `SINGLE_ISSUER` (5.19), none (5.11).
const LADDER: [FlagSet; 3] = [
    |b, completions| {
        b.setup_coop_taskrun().setup_single_issuer().setup_submit_all();
        b.setup_cqsize(completions).setup_clamp();
    },
    |b, completions| {
        b.setup_coop_taskrun().setup_submit_all();
        b.setup_cqsize(completions).setup_clamp();
    },
    |b, completions| {
        b.setup_cqsize(completions).setup_clamp();
    },
];

/// Builds the runtime on the highest rung that this kernel takes.
pub(crate) fn build() -> io::Result<Runtime<TimeDriver<IoUringDriver>>> {
    climb_down(&LADDER, COMPLETIONS, |builder| {
        RuntimeBuilder::<IoUringDriver>::new()
            .with_entries(ENTRIES)
            .uring_builder(builder)
            .enable_timer()
            .build()
    })
}

/// Builds a bare ring for batched writes on the highest rung that this kernel takes.
pub(crate) fn bare_ring(entries: u32) -> io::Result<IoUring> {
    // Every write may fail, so every entry needs room for its completion.
    climb_down(&LADDER, 2 * entries, |builder| builder.build(entries))
}

/// Tries each rung of flags in order. Fails with the error of the last one.
fn climb_down<R>(
    ladder: &[FlagSet],
    completions: u32,
    build: impl Fn(io_uring::Builder) -> io::Result<R>,
) -> io::Result<R> {
    let mut refused = None;
    for rung in ladder {
        let mut builder = IoUring::builder();
        rung(&mut builder, completions);
        match build(builder) {
            Ok(built) => return Ok(built),
            Err(error) => refused = Some(error),
        }
    }
    Err(explain(&refused.expect("the ladder has rungs")))
}

/// A timer and a poll through the ring. monoio discards the ring's errors, so a ring that does not
/// work would otherwise spin or sleep in silence. (A ring that cannot be entered at all is found
/// before any shard starts, by `sys::probe_io_uring`: this test itself needs a ring that can.)
pub(crate) async fn self_test() -> io::Result<()> {
    let bell = crate::link::bell::Bell::new()?;
    let waits = super::socket::watch(bell.fd())?;
    assert!(bell.may_sleep(|| true));
    bell.ring();
    let answer = monoio::time::timeout(Duration::from_secs(2), waits.readable(false)).await;
    match answer {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(explain(&error)),
        Err(_) => Err(io::Error::other(
            "io_uring accepts requests but completes none. Likely cause: a sandbox that emulates it. \
             See tuning/README.md",
        )),
    }
}

fn explain(error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), crate::sys::io_uring_advice(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_refuses_a_flag_gets_the_next_rung() {
        let impossible: FlagSet = |b, _| {
            b.setup_sqpoll_cpu(1 << 30); // a core that no machine has
            b.setup_sqpoll(1);
        };
        let refused = climb_down(&[impossible], 64, |builder| builder.build(8));
        assert!(refused.is_err(), "the flag is not refused, so this shows nothing");
        let mut ladder = vec![impossible];
        ladder.extend(LADDER);
        assert!(climb_down(&ladder, 64, |builder| builder.build(8)).is_ok());
    }

    #[test]
    fn each_rung_by_itself_makes_a_ring() {
        for rung in LADDER {
            assert!(climb_down(&[rung], 64, |builder| builder.build(8)).is_ok());
        }
    }

    #[test]
    fn the_largest_batch_that_may_be_configured_has_a_ring() {
        bare_ring(32_768).unwrap();
    }

    #[test]
    fn the_runtime_passes_its_own_test() {
        let mut runtime = build().unwrap();
        runtime.block_on(self_test()).unwrap();
    }
}
