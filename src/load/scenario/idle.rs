//! `campanile load idle`: hold connections.
//!
//! Invariant: connections are counted when the server has said that they joined.

use super::args::{Common, IdleArgs, Layout};
use super::fanout::Cpu;
use crate::load::client::rooms::Rooms;
use crate::load::error::LoadError;
use crate::load::report::progress::Progress;
use crate::load::report::tally::{self, Tally};
use crate::load::report::{Broadcast, Connect, Hold, Latency, MemoryReport, Report};
use crate::load::run::fleet::Fleet;
use crate::load::run::procfs;
use crate::load::run::worker::Order;
use std::time::{Duration, Instant};

/// Carries it out.
pub fn run(args: &IdleArgs) -> Result<Report, LoadError> {
    let rooms = if args.room_mix {
        Rooms::mixed(args.conns)
    } else {
        Rooms::of_size(args.conns, args.room_size)
    };
    let layout = Layout {
        rooms,
        publishers: 1,
        message: args.broadcast_message.clone(),
        payload_bytes: 120,
        room_prefix: args.common.room_prefix.clone(),
        silent: 0,
        retries: Some(args.common.retries),
        threads: args.common.threads,
    };
    let deadline = args.common.deadline();
    let (brief, needs_own_files) = args.common.brief(layout)?;
    let mut fleet = Fleet::begin(brief, needs_own_files)?;
    let mut progress = Progress::new();
    let mut report = Report { scenario: "idle", ..Report::default() };

    let memory = MemoryBefore::take(&args.common);
    report.connect = connect(&mut fleet, &args.common, deadline, &mut progress)?;
    let Connect { conns, joined, .. } = report.connect;
    report.must(joined == conns, || format!("{joined} of {conns} connections joined"));
    if args.broadcast && joined > 0 {
        broadcast(&mut fleet, args, deadline, &mut report)?;
    }
    if args.hold_s > 0 {
        report.hold = Some(hold(&mut fleet, args, deadline, &mut progress)?);
    }
    report.memory = memory.and_then(|before| before.compare(&args.common, joined));
    conclude(fleet, &mut report)?;
    Ok(report)
}

/// Holds them, and counts what that costs.
fn hold(
    fleet: &mut Fleet,
    args: &IdleArgs,
    deadline: Instant,
    progress: &mut Progress,
) -> Result<Hold, LoadError> {
    let (before, _) = fleet.mark()?;
    let (begun, cpu_before) = (Instant::now(), Cpu::now(&args.common.pid));
    fleet.listen(deadline.min(begun + Duration::from_secs(args.hold_s)), |now| {
        progress.show(|| format!("holding {} connections", now.joined));
        now.joined == 0
    })?;
    let (after, _) = fleet.mark()?;
    let (seconds, cpu) = (begun.elapsed().as_secs_f64(), Cpu::now(&args.common.pid));
    let server_us = cpu.server_us.zip(cpu_before.server_us).map(|(a, b)| (a - b) as f64);
    let pings = after.pings - before.pings;
    Ok(Hold {
        seconds,
        pings,
        server_cores: server_us.map(|us| us / 1e6 / seconds),
        server_cpu_us_per_ping: server_us.filter(|_| pings > 0).map(|us| us / pings as f64),
        generator_cores: cpu.own_us.saturating_sub(cpu_before.own_us) as f64 / 1e6 / seconds,
    })
}

/// Connects a fleet and waits until everybody has joined or failed.
pub fn connect(
    fleet: &mut Fleet,
    common: &Common,
    deadline: Instant,
    progress: &mut Progress,
) -> Result<Connect, LoadError> {
    let conns = u64::from(fleet.brief().rooms().conns());
    let begun_ns = fleet.brief().now_ns();
    let begun = Instant::now();
    // Where nobody ever gets in, waiting for the others is of no use.
    let hopeless_after = Duration::from_secs(common.handshake_timeout_s + 5);
    fleet.tell_all(|| Order::Connect);
    fleet.listen(deadline, |now| {
        progress.show(|| format!("{} of {conns} joined, {} failed", now.joined, now.failures()));
        let nobody = now.joined == 0;
        now.joined + now.failures() + now.lost >= conns
            || nobody && (now.failures() >= 64 || begun.elapsed() >= hopeless_after)
    })?;
    let now = fleet.tally();
    let seconds = now.last_joined_ns.saturating_sub(begun_ns) as f64 / 1e9;
    Ok(Connect {
        conns,
        joined: now.joined,
        failed: tally::by_name(&now.failed),
        retried: tally::by_name(&now.retried),
        seconds,
        per_second: if seconds > 0.0 { now.joined as f64 / seconds } else { 0.0 },
        threads: fleet.brief().workers(),
    })
}

fn broadcast(
    fleet: &mut Fleet,
    args: &IdleArgs,
    deadline: Instant,
    report: &mut Report,
) -> Result<(), LoadError> {
    let (before, _) = fleet.mark()?;
    let expected = before.joined - u64::from(!fleet.brief().echo);
    fleet.tell_one_joined(Order::Shout);
    let until = deadline.min(Instant::now() + Duration::from_secs(args.broadcast_timeout_s));
    fleet.listen(until, |now| now.received - before.received >= expected)?;
    let (after, latencies) = fleet.mark()?;
    let received = after.received - before.received;
    report.must(received == expected, || {
        format!("the message to everybody reached {received} of {expected}")
    });
    report.broadcast = Some(Broadcast { expected, received, latency: Latency::of(&latencies) });
    Ok(())
}

/// Ends the fleet and notes what it lost on the way.
pub fn conclude(fleet: Fleet, report: &mut Report) -> Result<Tally, LoadError> {
    let last = fleet.finish()?;
    report.lost_connections = last.lost;
    report.errors = last.errors;
    report.first_trouble = last.first_trouble.clone();
    report.must(last.lost == 0, || format!("{} joined connections were lost", last.lost));
    report.must(last.errors == 0, || format!("the server sent {} error frames", last.errors));
    Ok(last)
}

/// Memory before the first connection.
pub struct MemoryBefore {
    server: procfs::Memory,
    available: Option<u64>,
}

impl MemoryBefore {
    /// If there is a process to look at.
    pub fn take(common: &Common) -> Option<MemoryBefore> {
        let server = procfs::memory(&common.pid)?;
        Some(MemoryBefore { server, available: procfs::memory_available() })
    }

    /// What has been added for each of `conns`.
    pub fn compare(&self, common: &Common, conns: u64) -> Option<MemoryReport> {
        let after = procfs::memory(&common.pid)?;
        let available = procfs::memory_available();
        let by_conn = |before: u64, after: u64| (after as f64 - before as f64) / conns as f64;
        if conns == 0 {
            return None;
        }
        Some(MemoryReport {
            before: self.server,
            after,
            rss_per_conn: by_conn(self.server.rss, after.rss),
            anon_per_conn: by_conn(self.server.anon, after.anon),
            machine_per_conn: by_conn(available?, self.available?),
        })
    }
}
