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

const ENTRIES: u32 = 1024;
const COMPLETIONS: u32 = 8192;

/// Each rung asks less of the kernel: all flags (6.0), without `SINGLE_ISSUER` (5.19), none (5.11).
const LADDER: [fn(&mut io_uring::Builder); 3] = [
    |b| {
        b.setup_coop_taskrun().setup_single_issuer().setup_submit_all();
        b.setup_cqsize(COMPLETIONS).setup_clamp();
    },
    |b| {
        b.setup_coop_taskrun().setup_submit_all().setup_cqsize(COMPLETIONS).setup_clamp();
    },
    |b| {
        b.setup_cqsize(COMPLETIONS).setup_clamp();
    },
];

/// Builds the runtime on the highest rung that this kernel takes.
pub fn build() -> io::Result<Runtime<TimeDriver<IoUringDriver>>> {
    let mut last = None;
    for rung in LADDER {
        let mut builder = IoUring::builder();
        rung(&mut builder);
        let built = RuntimeBuilder::<IoUringDriver>::new()
            .with_entries(ENTRIES)
            .uring_builder(builder)
            .enable_timer()
            .build();
        match built {
            Ok(runtime) => return Ok(runtime),
            Err(error) => last = Some(error),
        }
    }
    Err(explain(last.expect("the ladder has rungs")))
}

/// Builds a bare ring for batched writes on the highest rung that this kernel takes.
pub fn bare_ring(entries: u32) -> io::Result<IoUring> {
    let mut last = None;
    for rung in LADDER {
        let mut builder = IoUring::builder();
        rung(&mut builder);
        match builder.build(entries) {
            Ok(ring) => return Ok(ring),
            Err(error) => last = Some(error),
        }
    }
    Err(explain(last.expect("the ladder has rungs")))
}

/// A timer and a poll through the ring. monoio discards the ring's errors, so a ring that does not
/// work would otherwise spin or sleep in silence.
pub async fn self_test() -> io::Result<()> {
    let bell = crate::link::bell::Bell::new()?;
    let waits = super::socket::watch(bell.fd())?;
    assert!(bell.may_sleep(|| true));
    bell.ring();
    let answer = monoio::time::timeout(Duration::from_secs(2), waits.readable(false)).await;
    match answer {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(explain(error)),
        Err(_) => Err(io::Error::other(
            "io_uring accepts requests but completes none. Likely cause: a sandbox that emulates it. \
             See tuning/README.md",
        )),
    }
}

fn explain(error: io::Error) -> io::Error {
    let cause = match error.raw_os_error() {
        Some(libc::EPERM) => "kernel.io_uring_disabled is not 0, or a container's seccomp profile",
        Some(libc::ENOSYS) => "a kernel before 5.11, or a container's seccomp profile",
        Some(libc::ENOMEM) => "the limit of locked memory (ulimit -l) on a kernel before 5.12",
        Some(libc::EMFILE | libc::ENFILE) => "the limit of open files (ulimit -n)",
        _ => "unknown",
    };
    io::Error::new(
        error.kind(),
        format!("io_uring is not available ({error}). Likely cause: {cause}. See tuning/README.md"),
    )
}
