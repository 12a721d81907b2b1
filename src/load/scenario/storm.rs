//! `campanile load storm`: how long does a reconnect of all clients take, and what do others
//! notice?
//!
//! Two fleets, each with threads of its own: one is cut and connects again, the other, the
//! bystanders, publishes in a room of its own and measures latency there. The first retries without
//! limit; like a good client it honours `Retry-After` and waits a random time.
//!
//! Invariant: time is measured from the command to cut to the last join.

use super::args::{MessageArgs, StormArgs};
use super::phases;
use super::plan::FleetLayout;
use crate::load::client::rooms::RoomAssignment;
use crate::load::error::LoadError;
use crate::load::report::progress::ProgressLine;
use crate::load::report::tally::{self, Tally};
use crate::load::report::{ConnectReport, LatencySummary, LoadReport, StormReport};
use crate::load::run::fleet::Fleet;
use crate::load::run::publish::PublishPace;
use crate::load::run::worker::WorkerCommand;
use std::time::{Duration, Instant};

/// Bystanders are on the same machine as the storm, and their latency is about the server: they do not
/// wait until the storm's own threads, or a service on the same core, leave them the processor.
const BYSTANDER_PRIORITY: u8 = 15;

/// Runs the scenario.
pub(crate) fn run(args: &StormArgs) -> Result<LoadReport, LoadError> {
    args.check()?;
    let deadline = args.common.deadline();
    let (mut fleet, mut bystanders) = start(args)?;
    let mut progress = ProgressLine::new();
    let mut report = LoadReport { scenario: "storm", ..LoadReport::default() };

    let bystanders_connect =
        phases::connect(&mut bystanders, &args.common, deadline, &mut progress)?;
    report.require(bystanders_connect.joined == bystanders_connect.conns, || {
        format!("{} of {} bystanders joined", bystanders_connect.joined, bystanders_connect.conns)
    });
    if !report.ok {
        report.connect = bystanders_connect;
        phases::finish(bystanders, &mut report)?;
        fleet.finish()?;
        return Ok(report);
    }
    report.connect = phases::connect(&mut fleet, &args.common, deadline, &mut progress)?;
    let ConnectReport { joined, conns, .. } = report.connect;
    report.require(joined == conns, || format!("{joined} of {conns} connections joined"));
    let storm = if report.ok {
        Some(cut(&mut fleet, &mut bystanders, args, deadline, &mut progress)?)
    } else {
        None
    };
    let bystanders_tally = phases::finish(bystanders, &mut report)?;
    let fleet_tally = fleet.finish()?;
    check(report, storm, &bystanders_tally, fleet_tally)
}

/// The fleet that is cut, and the bystanders.
fn start(args: &StormArgs) -> Result<(Fleet, Fleet), LoadError> {
    let MessageArgs { message, payload_bytes } = &args.message;
    let layout = |rooms| FleetLayout::new(&args.common, rooms, message, *payload_bytes);
    let bystanders = FleetLayout {
        room_prefix: format!("{}bystanders-", args.common.room_prefix),
        ..layout(RoomAssignment::of_size(args.bystanders, args.bystanders))
    };
    let mut bystanders = args.common.run_plan(bystanders)?;
    bystanders.priority = BYSTANDER_PRIORITY;
    let bystanders = Fleet::start(bystanders)?;
    let fleet = FleetLayout {
        retries: None,
        ..layout(RoomAssignment::of_size(args.conns, args.room_size))
    };
    Ok((Fleet::start(args.common.run_plan(fleet)?)?, bystanders))
}

fn cut(
    fleet: &mut Fleet,
    bystanders: &mut Fleet,
    args: &StormArgs,
    deadline: Instant,
    progress: &mut ProgressLine,
) -> Result<StormReport, LoadError> {
    let start_ns = bystanders.plan().now_ns();
    bystanders.send_all(|| WorkerCommand::Publish { pace: PublishPace::Rate(args.rate), start_ns });
    let until = deadline.min(Instant::now() + Duration::from_secs_f64(args.before_s));
    bystanders.wait_until(until, |now| {
        progress.show(|| format!("before the cut: {} messages to the bystanders", now.published));
        false
    })?;
    let (_, before) = bystanders.snapshot()?;
    let all = u64::from(fleet.plan().rooms().conns());
    let retried_before = fleet.tally().retried;
    let cut_ns = fleet.plan().now_ns();
    fleet.send_all(|| WorkerCommand::Reconnect { reset: !args.plain_close });
    // These reports are later than the cut, so no connection of before is counted as joined.
    fleet.snapshot()?;
    fleet.wait_until(deadline, |now| {
        progress.show(|| format!("{} of {all} joined again", now.joined));
        now.joined >= all
    })?;
    let (now, _) = fleet.snapshot()?;
    let (_, during) = bystanders.snapshot()?;
    bystanders.send_all(|| WorkerCommand::StopPublishing);
    phases::wait_for_deliveries(bystanders, deadline)?;
    let tally = bystanders.tally();
    let mut retried = now.retried;
    retried.iter_mut().zip(&retried_before).for_each(|(now, before)| *now -= before);
    let seconds = now.last_joined_ns.saturating_sub(cut_ns) as f64 / 1e9;
    Ok(StormReport {
        cut: all,
        rejoined: now.joined,
        seconds,
        per_second: if seconds > 0.0 { now.joined as f64 / seconds } else { 0.0 },
        retried: tally::by_name(&retried),
        bystanders_before: LatencySummary::of(&before),
        bystanders_during: LatencySummary::of(&during),
        bystanders_lost: tally.expected.saturating_sub(tally.received),
    })
}

fn check(
    mut report: LoadReport,
    storm: Option<StormReport>,
    bystanders: &Tally,
    fleet: Tally,
) -> Result<LoadReport, LoadError> {
    report.errors += fleet.errors;
    report.first_failure = report.first_failure.or(fleet.first_failure);
    if let Some(storm) = &storm {
        let (rejoined, all) = (storm.rejoined, storm.cut);
        report.require(rejoined == all, || format!("{rejoined} of {all} joined again"));
        let lost = storm.bystanders_lost;
        report.require(lost == 0, || format!("bystanders lost {lost} deliveries"));
        report.require(bystanders.unsent == 0, || {
            format!("{} messages could not be published", bystanders.unsent)
        });
    }
    report.storm = storm;
    Ok(report)
}
