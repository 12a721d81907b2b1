//! The steps that several scenarios share: connect, run_for, wait for the last copies, conclude.
//!
//! Invariant: connections are counted when the server has said that they joined.

use super::args::CommonArgs;
use crate::load::error::LoadError;
use crate::load::report::progress::ProgressLine;
use crate::load::report::tally::{self, Tally};
use crate::load::report::{ConnectReport, LoadReport};
use crate::load::run::fleet::Fleet;
use crate::load::run::worker::WorkerCommand;
use std::time::{Duration, Instant};

/// How long nothing must have come before the missing copies are called lost.
const QUIET_PERIOD: Duration = Duration::from_secs(5);

/// Connects a fleet and waits until everybody has joined or failed.
pub fn connect(
    fleet: &mut Fleet,
    common: &CommonArgs,
    deadline: Instant,
    progress: &mut ProgressLine,
) -> Result<ConnectReport, LoadError> {
    let conns = u64::from(fleet.plan().rooms().conns());
    let begun_ns = fleet.plan().now_ns();
    let begun = Instant::now();
    // Where nobody ever gets in, waiting for the others is of no use.
    let hopeless_after = Duration::from_secs(common.handshake_timeout_s + 5);
    fleet.send_all(|| WorkerCommand::Connect);
    fleet.wait_until(deadline, |now| {
        progress.show(|| format!("{} of {conns} joined, {} failed", now.joined, now.failures()));
        let nobody = now.joined == 0;
        now.joined + now.failures() + now.lost >= conns
            || nobody && (now.failures() >= 64 || begun.elapsed() >= hopeless_after)
    })?;
    let now = fleet.tally();
    let seconds = now.last_joined_ns.saturating_sub(begun_ns) as f64 / 1e9;
    Ok(ConnectReport {
        conns,
        joined: now.joined,
        failed: tally::by_name(&now.failed),
        retried: tally::by_name(&now.retried),
        seconds,
        per_second: if seconds > 0.0 { now.joined as f64 / seconds } else { 0.0 },
        threads: fleet.plan().workers(),
    })
}

/// Listens for so long, or until a connection is lost: a room that is not whole measures nothing.
pub fn run_for(
    fleet: &mut Fleet,
    seconds: f64,
    deadline: Instant,
    progress: &mut ProgressLine,
) -> Result<(), LoadError> {
    let until = deadline.min(Instant::now() + Duration::from_secs_f64(seconds));
    fleet.wait_until(until, |now| {
        progress.show(|| format!("{} messages, {} deliveries", now.published, now.received));
        now.lost > 0
    })?;
    Ok(())
}

/// Waits until every copy is there, or none has come for a while.
pub fn wait_for_deliveries(fleet: &mut Fleet, deadline: Instant) -> Result<(), LoadError> {
    let (mut seen, mut quiet_since) = (fleet.snapshot()?.0.received, Instant::now());
    fleet.wait_until(deadline, |now| {
        if now.received != seen {
            (seen, quiet_since) = (now.received, Instant::now());
        }
        now.received >= now.expected || quiet_since.elapsed() >= QUIET_PERIOD
    })?;
    Ok(())
}

/// Ends the fleet and notes what it lost on the way.
pub fn finish(fleet: Fleet, report: &mut LoadReport) -> Result<Tally, LoadError> {
    let last = fleet.finish()?;
    report.lost_connections = last.lost;
    report.errors = last.errors;
    report.first_failure = last.first_failure.clone();
    report.require(last.lost == 0, || format!("{} joined connections were lost", last.lost));
    report.require(last.errors == 0, || format!("the server sent {} error frames", last.errors));
    Ok(last)
}
