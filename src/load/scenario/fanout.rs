//! `campanile load fanout`: what does a delivery cost, and how late is it?
//!
//! Publishes to rooms and counts every delivery. A message is complete when every member of its
//! room has it, the publisher included. After the last publish the run waits until all deliveries
//! have come, or none has come for a while; what is missing then is lost.
//!
//! Invariant: rates, latencies and costs are of the measured window; loss is of the whole run.

use super::args::{FanoutArgs, MessageArgs};
use super::phases::{self, run_for};
use super::plan::FleetLayout;
use crate::load::error::LoadError;
use crate::load::report::progress::ProgressLine;
use crate::load::report::tally::Tally;
use crate::load::report::{FanoutReport, LatencySummary, LoadReport};
use crate::load::run::fleet::Fleet;
use crate::load::run::measure::{CpuSample, MemoryBaseline};
use crate::load::run::worker::WorkerCommand;
use std::time::Instant;

/// Runs the scenario.
pub(crate) fn run(args: &FanoutArgs) -> Result<LoadReport, LoadError> {
    let pace = args.pace()?;
    let MessageArgs { message, payload_bytes } = &args.message;
    let layout = FleetLayout {
        publishers: args.publishers,
        non_reading: args.non_reading,
        ..FleetLayout::new(&args.common, args.rooms(), message, *payload_bytes)
    };
    let deadline = args.common.deadline();
    let plan = args.common.run_plan(layout)?;
    let mut fleet = Fleet::start(plan)?;
    let mut progress = ProgressLine::new();
    let mut report = LoadReport { scenario: "fanout", ..LoadReport::default() };

    let memory = MemoryBaseline::take(&args.common.pid);
    report.connect = phases::connect(&mut fleet, &args.common, deadline, &mut progress)?;
    let (joined, conns) = (report.connect.joined, report.connect.conns);
    report.require(joined == conns, || format!("{joined} of {conns} connections joined"));
    if !report.ok {
        phases::finish(fleet, &mut report)?;
        return Ok(report);
    }
    let start_ns = fleet.plan().now_ns() + 1_000_000;
    fleet.send_all(|| WorkerCommand::Publish { pace, start_ns });
    run_for(&mut fleet, args.warmup_s, deadline, &mut progress)?;
    let mut fanout = measure(&mut fleet, args, deadline, &mut progress)?;
    fleet.send_all(|| WorkerCommand::StopPublishing);
    phases::wait_for_deliveries(&mut fleet, deadline)?;
    report.memory = memory.and_then(|before| before.compare(&args.common.pid, joined));
    let last = phases::finish(fleet, &mut report)?;
    check(&mut fanout, &last, &mut report);
    report.fanout = Some(fanout);
    Ok(report)
}

fn measure(
    fleet: &mut Fleet,
    args: &FanoutArgs,
    deadline: Instant,
    progress: &mut ProgressLine,
) -> Result<FanoutReport, LoadError> {
    let (before, _) = fleet.snapshot()?;
    let (begun, cpu_before) = (Instant::now(), CpuSample::take(&args.common.pid));
    run_for(fleet, args.duration_s, deadline, progress)?;
    let (after, latencies) = fleet.snapshot()?;
    let (seconds, cpu_after) = (begun.elapsed().as_secs_f64(), CpuSample::take(&args.common.pid));

    let messages = after.published - before.published;
    let deliveries = after.received - before.received;
    let bytes = after.received_bytes - before.received_bytes;
    let server_us = cpu_after.server_us.zip(cpu_before.server_us).map(|(a, b)| (a - b) as f64);
    let generator_us = cpu_after.generator_us.saturating_sub(cpu_before.generator_us) as f64;
    let each = deliveries.max(1) as f64;
    Ok(FanoutReport {
        members: args.members,
        rooms: args.rooms,
        rooms_per_member: args.rooms_per_member,
        non_reading: args.non_reading,
        publishers: args.publishers,
        payload_bytes: args.message.payload_bytes,
        window: args.rate.is_none().then_some(args.window),
        rate: args.rate,
        seconds,
        messages,
        messages_per_second: messages as f64 / seconds,
        deliveries,
        deliveries_per_second: deliveries as f64 / seconds,
        bytes_per_delivery: bytes as f64 / each,
        latency: LatencySummary::of(&latencies),
        server_cpu_us_per_delivery: server_us.filter(|_| deliveries > 0).map(|us| us / each),
        server_cores: server_us.map(|us| us / 1e6 / seconds),
        generator_cores: generator_us / 1e6 / seconds,
        ..FanoutReport::default()
    })
}

/// Fills in the counts of the whole run, and reports what they must not be.
fn check(fanout: &mut FanoutReport, last: &Tally, report: &mut LoadReport) {
    fanout.expected = last.expected;
    fanout.received = last.received;
    fanout.lost = last.expected.saturating_sub(last.received);
    fanout.out_of_order = last.out_of_order;
    fanout.unsent = last.unsent;
    fanout.given_up = last.given_up;
    fanout.non_reading_closed = last.non_reading_closed;
    fanout.sample = last.sample.clone();
    let FanoutReport { lost, expected, out_of_order, unsent, deliveries, received, .. } = *fanout;
    report.require(deliveries > 0, || "nothing was delivered in the measured window".into());
    report.require(lost == 0, || format!("{lost} of {expected} deliveries were lost"));
    report.require(received <= expected, || format!("{} deliveries too many", received - expected));
    report.require(out_of_order == 0, || format!("{out_of_order} deliveries out of order"));
    report.require(unsent == 0, || format!("{unsent} messages could not be published"));
}
