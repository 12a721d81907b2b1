//! `campanile load idle`: what does an idle connection cost?
//!
//! Connects all, sends one message to all if asked, holds them if asked, and compares the server's
//! memory with that before the first connect.
//!
//! Invariant: memory is divided by the connections that have joined, not by those wanted.

use super::args::IdleArgs;
use super::phases::{connect, finish};
use super::plan::FleetLayout;
use crate::load::client::rooms::RoomAssignment;
use crate::load::error::LoadError;
use crate::load::report::progress::ProgressLine;
use crate::load::report::{BroadcastReport, ConnectReport, HoldReport, LatencySummary, LoadReport};
use crate::load::run::fleet::Fleet;
use crate::load::run::measure::{CpuSample, MemoryBaseline};
use crate::load::run::worker::WorkerCommand;
use std::time::{Duration, Instant};

/// Runs the scenario.
pub(crate) fn run(args: &IdleArgs) -> Result<LoadReport, LoadError> {
    let rooms = if args.room_mix {
        RoomAssignment::mixed(args.conns)
    } else {
        RoomAssignment::of_size(args.conns, args.room_size)
    };
    let layout = FleetLayout::new(&args.common, rooms, &args.broadcast_message, 120);
    let deadline = args.common.deadline();
    let plan = args.common.run_plan(layout)?;
    let mut fleet = Fleet::start(plan)?;
    let mut progress = ProgressLine::new();
    let mut report = LoadReport { scenario: "idle", ..LoadReport::default() };

    let memory = MemoryBaseline::take(&args.common.pid);
    report.connect = connect(&mut fleet, &args.common, deadline, &mut progress)?;
    let ConnectReport { conns, joined, .. } = report.connect;
    report.require(joined == conns, || format!("{joined} of {conns} connections joined"));
    if args.broadcast && joined > 0 {
        broadcast(&mut fleet, args, deadline, &mut report)?;
    }
    if args.hold_s > 0 {
        report.hold = Some(hold(&mut fleet, args, deadline, &mut progress)?);
    }
    report.memory = memory.and_then(|before| before.compare(&args.common.pid, joined));
    finish(fleet, &mut report)?;
    Ok(report)
}

/// Holds all connections, and measures what that costs.
fn hold(
    fleet: &mut Fleet,
    args: &IdleArgs,
    deadline: Instant,
    progress: &mut ProgressLine,
) -> Result<HoldReport, LoadError> {
    let (before, _) = fleet.snapshot()?;
    let (begun, cpu_before) = (Instant::now(), CpuSample::take(&args.common.pid));
    fleet.wait_until(deadline.min(begun + Duration::from_secs(args.hold_s)), |now| {
        progress.show(|| format!("holding {} connections", now.joined));
        now.joined == 0
    })?;
    let (after, _) = fleet.snapshot()?;
    let (seconds, cpu) = (begun.elapsed().as_secs_f64(), CpuSample::take(&args.common.pid));
    let server_us = cpu.server_us.zip(cpu_before.server_us).map(|(a, b)| (a - b) as f64);
    let pings = after.pings - before.pings;
    Ok(HoldReport {
        seconds,
        pings,
        server_cores: server_us.map(|us| us / 1e6 / seconds),
        server_cpu_us_per_ping: server_us.filter(|_| pings > 0).map(|us| us / pings as f64),
        generator_cores: cpu.generator_us.saturating_sub(cpu_before.generator_us) as f64
            / 1e6
            / seconds,
    })
}

fn broadcast(
    fleet: &mut Fleet,
    args: &IdleArgs,
    deadline: Instant,
    report: &mut LoadReport,
) -> Result<(), LoadError> {
    let (before, _) = fleet.snapshot()?;
    let expected = before.joined - u64::from(!fleet.plan().echo);
    fleet.send_to_one_joined(WorkerCommand::Broadcast);
    let until = deadline.min(Instant::now() + Duration::from_secs(args.broadcast_timeout_s));
    fleet.wait_until(until, |now| now.received - before.received >= expected)?;
    let (after, latencies) = fleet.snapshot()?;
    let received = after.received - before.received;
    report.require(received == expected, || {
        format!("the message to all reached {received} of {expected}")
    });
    report.broadcast =
        Some(BroadcastReport { expected, received, latency: LatencySummary::of(&latencies) });
    Ok(())
}
