//! `campanile load storm`: everybody is cut at once and comes back.
//!
//! Two fleets: a crowd that is cut, and a few bystanders on a thread of their own whose messages
//! tell what the others notice. The crowd tries until it is in: it honours `Retry-After` and
//! spreads itself by chance, as good clients do.
//!
//! Invariant: the clock runs from the order to cut until the last join.

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

/// Carries it out.
pub fn run(args: &StormArgs) -> Result<LoadReport, LoadError> {
    args.check()?;
    let deadline = args.common.deadline();
    let (mut crowd, mut bystanders) = begin(args)?;
    let mut progress = ProgressLine::new();
    let mut report = LoadReport { scenario: "storm", ..LoadReport::default() };

    let few = phases::connect(&mut bystanders, &args.common, deadline, &mut progress)?;
    report.require(few.joined == few.conns, || {
        format!("{} of {} bystanders joined", few.joined, few.conns)
    });
    if !report.ok {
        report.connect = few;
        phases::finish(bystanders, &mut report)?;
        crowd.finish()?;
        return Ok(report);
    }
    report.connect = phases::connect(&mut crowd, &args.common, deadline, &mut progress)?;
    let ConnectReport { joined, conns, .. } = report.connect;
    report.require(joined == conns, || format!("{joined} of {conns} connections joined"));
    let storm = if report.ok {
        Some(cut(&mut crowd, &mut bystanders, args, deadline, &mut progress)?)
    } else {
        None
    };
    let few = phases::finish(bystanders, &mut report)?;
    let many = crowd.finish()?;
    check(report, storm, &few, many)
}

fn begin(args: &StormArgs) -> Result<(Fleet, Fleet), LoadError> {
    let MessageArgs { message, payload_bytes } = &args.message;
    let layout = |rooms| FleetLayout::new(&args.common, rooms, message, *payload_bytes);
    let few = FleetLayout {
        room_prefix: format!("{}bystanders-", args.common.room_prefix),
        ..layout(RoomAssignment::of_size(args.bystanders, args.bystanders))
    };
    let bystanders = Fleet::start(args.common.run_plan(few)?)?;
    let many = FleetLayout {
        retries: None,
        ..layout(RoomAssignment::of_size(args.conns, args.room_size))
    };
    Ok((Fleet::start(args.common.run_plan(many)?)?, bystanders))
}

fn cut(
    crowd: &mut Fleet,
    bystanders: &mut Fleet,
    args: &StormArgs,
    deadline: Instant,
    progress: &mut ProgressLine,
) -> Result<StormReport, LoadError> {
    let start_ns = bystanders.plan().now_ns();
    bystanders.send_all(|| WorkerCommand::Publish { pace: PublishPace::Rate(args.rate), start_ns });
    let until = deadline.min(Instant::now() + Duration::from_secs_f64(args.before_s));
    bystanders.wait_until(until, |now| {
        progress.show(|| format!("calm: {} messages to the bystanders", now.published));
        false
    })?;
    let (_, before) = bystanders.snapshot()?;
    let all = u64::from(crowd.plan().rooms().conns());
    let retried_before = crowd.tally().retried;
    let cut_ns = crowd.plan().now_ns();
    crowd.send_all(|| WorkerCommand::Reconnect { reset: !args.plain_close });
    // The answers come behind the cut, so nobody is counted who has not come back.
    crowd.snapshot()?;
    crowd.wait_until(deadline, |now| {
        progress.show(|| format!("{} of {all} are back", now.joined));
        now.joined >= all
    })?;
    let (now, _) = crowd.snapshot()?;
    let (_, during) = bystanders.snapshot()?;
    bystanders.send_all(|| WorkerCommand::StopPublishing);
    phases::wait_for_deliveries(bystanders, deadline)?;
    let few = bystanders.tally();
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
        bystanders_lost: few.expected.saturating_sub(few.received),
    })
}

fn check(
    mut report: LoadReport,
    storm: Option<StormReport>,
    few: &Tally,
    many: Tally,
) -> Result<LoadReport, LoadError> {
    report.errors += many.errors;
    report.first_failure = report.first_failure.or(many.first_failure);
    if let Some(storm) = &storm {
        let (rejoined, all) = (storm.rejoined, storm.cut);
        report.require(rejoined == all, || format!("{rejoined} of {all} came back"));
        let lost = storm.bystanders_lost;
        report.require(lost == 0, || format!("bystanders lost {lost} copies"));
        report
            .require(few.unsent == 0, || format!("{} messages could not be published", few.unsent));
    }
    report.storm = storm;
    Ok(report)
}
