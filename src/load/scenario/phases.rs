//! The steps that scenarios share: connect, run for a time, wait for the last deliveries, finish.
//!
//! Invariant: a connection counts as joined only after the server has confirmed it.

use super::args::CommonArgs;
use crate::load::error::LoadError;
use crate::load::report::progress::ProgressLine;
use crate::load::report::tally::{self, Tally};
use crate::load::report::{ConnectReport, LoadReport};
use crate::load::run::fleet::Fleet;
use crate::load::run::worker::WorkerCommand;
use std::time::{Duration, Instant};

/// Missing deliveries are lost if none has come for this time.
const QUIET_PERIOD: Duration = Duration::from_secs(5);

/// Connects a fleet and waits until every connection has joined or failed.
pub(super) fn connect(
    fleet: &mut Fleet,
    common: &CommonArgs,
    deadline: Instant,
    progress: &mut ProgressLine,
) -> Result<ConnectReport, LoadError> {
    let conns = u64::from(fleet.plan().rooms().conns());
    let begun_ns = fleet.plan().now_ns();
    let begun = Instant::now();
    // If none of many joins, the others will not either.
    let hopeless_after = Duration::from_secs(common.handshake_timeout_s + 5);
    fleet.send_all(|| WorkerCommand::Connect);
    fleet.wait_until(deadline, |now| {
        progress.show(|| format!("{} of {conns} joined, {} failed", now.joined, now.failures()));
        let none = now.joined == 0;
        now.joined + now.failures() + now.lost >= conns
            || none && (now.failures() >= 64 || begun.elapsed() >= hopeless_after)
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

/// Runs for so many seconds, or until a connection is lost: a room with a member less is another
/// measurement.
pub(super) fn run_for(
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

/// Waits until every delivery has come, or none has come for [`QUIET_PERIOD`].
pub(super) fn wait_for_deliveries(fleet: &mut Fleet, deadline: Instant) -> Result<(), LoadError> {
    let (mut seen, mut quiet_since) = (fleet.snapshot()?.0.received, Instant::now());
    fleet.wait_until(deadline, |now| {
        if now.received != seen {
            (seen, quiet_since) = (now.received, Instant::now());
        }
        now.received >= now.expected || quiet_since.elapsed() >= QUIET_PERIOD
    })?;
    Ok(())
}

/// Ends the fleet, and reports lost connections, error frames and the first failure.
pub(super) fn finish(fleet: Fleet, report: &mut LoadReport) -> Result<Tally, LoadError> {
    let last = fleet.finish()?;
    report.lost_connections = last.lost;
    report.errors = last.errors;
    report.first_failure = last.first_failure.clone();
    report.require(last.lost == 0, || format!("{} joined connections were lost", last.lost));
    report.require(last.errors == 0, || format!("the server sent {} error frames", last.errors));
    Ok(last)
}
