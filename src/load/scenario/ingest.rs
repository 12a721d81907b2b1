//! `campanile load talk`: many talk, and nobody is told. What does receiving cost?
//!
//! Each connection, alone in its room, sends so many messages and a question behind them in one
//! write; when the question is answered, the server has taken the messages, and the next burst
//! goes. So nothing is counted that is still in a socket's buffer.
//!
//! Invariant: a message counts when the answer behind it has come.

use super::args::IngestArgs;
use super::phases::{self, watch};
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

/// Carries it out.
pub fn run(args: &IngestArgs) -> Result<LoadReport, LoadError> {
    args.check()?;
    let deadline = args.common.deadline();
    let rooms = RoomAssignment::of_size(args.conns, 1);
    let layout = FleetLayout {
        write_bytes_max: args.cut_bytes.map_or(usize::MAX, |bytes| bytes as usize),
        speech: Some(BurstTemplate {
            message: Template::parse(&args.message),
            payload_bytes: args.payload_bytes as usize,
            burst: args.burst,
            question: args.question.clone(),
            answer: args.answered_by.clone(),
        }),
        ..FleetLayout::new(&args.common, rooms, &args.message, args.payload_bytes)
    };
    let mut fleet = Fleet::begin(args.common.brief(layout)?)?;
    let mut progress = ProgressLine::new();
    let mut report = LoadReport { scenario: "talk", ..LoadReport::default() };
    let memory = MemoryBaseline::take(&args.common.pid);
    report.connect = phases::connect(&mut fleet, &args.common, deadline, &mut progress)?;
    let (joined, conns) = (report.connect.joined, report.connect.conns);
    report.must(joined == conns, || format!("{joined} of {conns} connections joined"));
    if report.ok {
        fleet.tell_all(|| WorkerCommand::Talk);
        watch(&mut fleet, args.warmup_s, deadline, &mut progress)?;
        report.talk = Some(measure(&mut fleet, args, deadline, &mut progress)?);
        fleet.tell_all(|| WorkerCommand::Hush);
        let until = deadline.min(Instant::now() + Duration::from_secs(5));
        let all = fleet.listen(until, |now| now.answered >= now.asked)?;
        report.must(all, || "some questions were never answered".into());
        report.memory = memory.and_then(|before| before.compare(&args.common.pid, joined));
    }
    phases::conclude(fleet, &mut report)?;
    Ok(report)
}

fn measure(
    fleet: &mut Fleet,
    args: &IngestArgs,
    deadline: Instant,
    progress: &mut ProgressLine,
) -> Result<IngestReport, LoadError> {
    let (before, _) = fleet.mark()?;
    let (begun, cpu_before) = (Instant::now(), CpuSample::now(&args.common.pid));
    watch(fleet, args.duration_s, deadline, progress)?;
    let (after, _) = fleet.mark()?;
    let (seconds, cpu) = (begun.elapsed().as_secs_f64(), CpuSample::now(&args.common.pid));
    let answers = after.answered - before.answered;
    let messages = answers * u64::from(args.burst);
    let server_us = cpu.server_us.zip(cpu_before.server_us).map(|(a, b)| (a - b) as f64);
    let generator_us = cpu.own_us.saturating_sub(cpu_before.own_us) as f64;
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
