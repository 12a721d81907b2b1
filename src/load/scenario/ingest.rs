//! `campanile load ingest`: what does an incoming message cost?
//!
//! Each connection is alone in its room, and sends bursts of messages with a question at the end.
//! The answer shows that the server has taken the messages in; then the next burst follows.
//!
//! Invariant: a message counts when the answer to its burst has come.

use super::args::IngestArgs;
use super::phases::{self, run_for};
use super::plan::FleetLayout;
use crate::load::client::burst::BurstTemplate;
use crate::load::client::rooms::RoomAssignment;
use crate::load::client::template::Template;
use crate::load::error::LoadError;
use crate::load::report::progress::ProgressLine;
use crate::load::report::{IngestReport, LoadReport};
use crate::load::run::fleet::Fleet;
use crate::load::run::measure::{CpuSample, MemoryBaseline};
use crate::load::run::worker::WorkerCommand;
use std::time::{Duration, Instant};

/// Runs the scenario.
pub(crate) fn run(args: &IngestArgs) -> Result<LoadReport, LoadError> {
    args.check()?;
    let deadline = args.common.deadline();
    let rooms = RoomAssignment::of_size(args.conns, 1);
    let layout = FleetLayout {
        write_bytes_max: args.cut_bytes.map_or(usize::MAX, |bytes| bytes as usize),
        burst: Some(BurstTemplate {
            message: Template::parse(&args.message),
            payload_bytes: args.payload_bytes as usize,
            messages: args.burst,
            question: args.question.clone(),
            answer: args.answered_by.clone(),
        }),
        ..FleetLayout::new(&args.common, rooms, &args.message, args.payload_bytes)
    };
    let mut fleet = Fleet::start(args.common.run_plan(layout)?)?;
    let mut progress = ProgressLine::new();
    let mut report = LoadReport { scenario: "ingest", ..LoadReport::default() };
    let memory = MemoryBaseline::take(&args.common.pid);
    report.connect = phases::connect(&mut fleet, &args.common, deadline, &mut progress)?;
    let (joined, conns) = (report.connect.joined, report.connect.conns);
    report.require(joined == conns, || format!("{joined} of {conns} connections joined"));
    if report.ok {
        fleet.send_all(|| WorkerCommand::StartBursts);
        run_for(&mut fleet, args.warmup_s, deadline, &mut progress)?;
        report.ingest = Some(measure(&mut fleet, args, deadline, &mut progress)?);
        fleet.send_all(|| WorkerCommand::StopPublishing);
        let until = deadline.min(Instant::now() + Duration::from_secs(5));
        let all = fleet.wait_until(until, |now| now.questions_answered >= now.questions_sent)?;
        report.require(all, || "some questions were not answered".into());
        report.memory = memory.and_then(|before| before.compare(&args.common.pid, joined));
    }
    phases::finish(fleet, &mut report)?;
    Ok(report)
}

fn measure(
    fleet: &mut Fleet,
    args: &IngestArgs,
    deadline: Instant,
    progress: &mut ProgressLine,
) -> Result<IngestReport, LoadError> {
    let (before, _) = fleet.snapshot()?;
    let (begun, cpu_before) = (Instant::now(), CpuSample::take(&args.common.pid));
    run_for(fleet, args.duration_s, deadline, progress)?;
    let (after, _) = fleet.snapshot()?;
    let (seconds, cpu) = (begun.elapsed().as_secs_f64(), CpuSample::take(&args.common.pid));
    let answers = after.questions_answered - before.questions_answered;
    let messages = answers * u64::from(args.burst);
    let server_us = cpu.server_us.zip(cpu_before.server_us).map(|(a, b)| (a - b) as f64);
    let generator_us = cpu.generator_us.saturating_sub(cpu_before.generator_us) as f64;
    Ok(IngestReport {
        burst: args.burst,
        payload_bytes: args.payload_bytes,
        cut_bytes: args.cut_bytes,
        seconds,
        messages,
        messages_per_second: messages as f64 / seconds,
        server_cpu_us_per_message: server_us
            .filter(|_| messages > 0)
            .map(|us| us / messages as f64),
        server_cores: server_us.map(|us| us / 1e6 / seconds),
        generator_cores: generator_us / 1e6 / seconds,
    })
}
