//! Does a delivery cost more when the same members are spread over more shards?
//!
//! The released binary serves with 1, 2 and 60 shards, all of them on core 0, so that what is measured
//! is the work and not how many cores did it; the generator drives it from core 1. The same members in
//! all: 6,000, once in a hundred rooms and once in one, where the floor serves them as well. All
//! processor time of the server counts. Contestants take turns, round after round, each in a fresh
//! process; a ratio is of neighbours in one round, and the median of the rounds is what counts.
//!
//! Beside the cost stands what explains it, for a thousand deliveries: how many frames the backplane
//! handed to shards, how many visits the shards made, how often the kernel switched between threads.
//!
//! With `--test` or `CAMPANILE_BENCH_SMOKE=1` everything is tiny and only checks that all arrives.

#[path = "floor/floor.rs"]
mod floor;

use campanile::load::{self, LoadArgs, report::FanoutReport};
use clap::Parser;
use std::env;
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, ChildStdout, Command, ExitCode, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

/// Environment: `1` makes everything tiny.
const SMOKE: &str = "CAMPANILE_BENCH_SMOKE";
/// Environment: how many rounds.
const ROUNDS: &str = "CAMPANILE_BENCH_ROUNDS";
/// Lines that a server may say before the one that says where it listens.
const LINES_BEFORE_LISTENING_MAX: usize = 200;

fn main() -> ExitCode {
    // The floor needs a process of its own, and this is the one program that is surely built.
    if env::args().nth(1).as_deref() == Some("floor") {
        return floor::main(env::args_os().skip(1));
    }
    // `cargo test --bench` passes nothing, `cargo bench` passes `--bench`.
    let smoke = env::args().any(|arg| arg == "--test")
        || !env::args().any(|arg| arg == "--bench")
        || env::var_os(SMOKE).is_some_and(|value| value == "1");
    let rounds = env::var(ROUNDS).ok().and_then(|text| text.parse().ok()).unwrap_or(5).max(1);
    let size = match smoke {
        true => Size { divisor: 100, seconds: 0.2, warmup_s: 0.05, rounds: 1, pinned: false },
        false => Size { divisor: 1, seconds: 3.0, warmup_s: 1.0, rounds, pinned: true },
    };
    match WORK.iter().try_for_each(|work| bench(work, &size)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("scale: {why}");
            ExitCode::FAILURE
        }
    }
}

/// How much is measured.
struct Size {
    /// Of the number of members.
    divisor: u32,
    seconds: f64,
    warmup_s: f64,
    rounds: usize,
    /// Server on core 0, generator on core 1.
    pinned: bool,
}

/// Who is in which room, and how many messages are outstanding in each.
struct Work {
    rooms: u32,
    members: u32,
    window: u32,
    /// What the floor does, where it can do the same: it knows one room only.
    floor: Option<&'static str>,
}

const WORK: [Work; 4] = [
    Work { rooms: 100, members: 60, window: 1, floor: None },
    Work { rooms: 100, members: 60, window: 64, floor: None },
    Work { rooms: 1, members: 6000, window: 1, floor: Some("each") },
    Work { rooms: 1, members: 6000, window: 64, floor: Some("joined") },
];

const SHARDS: [u32; 3] = [1, 2, 60];

#[derive(Clone, Copy)]
enum Contestant {
    Shards(u32),
    Floor(&'static str),
}

impl Contestant {
    fn name(self) -> String {
        match self {
            Contestant::Shards(1) => "1 shard".into(),
            Contestant::Shards(shards) => format!("{shards} shards"),
            Contestant::Floor("joined") => "joined floor".into(),
            Contestant::Floor(_) => "floor".into(),
        }
    }
}

/// What one run found.
struct Run {
    fanout: FanoutReport,
    /// What the server counted while messages flowed; the floor counts nothing.
    counted: Option<Counted>,
}

/// What a server has counted so far.
#[derive(Clone, Copy)]
struct Counted {
    deliveries: f64,
    /// Visits to shards.
    visits: f64,
    /// Batches of a topic's frames that the backplane handed to a shard.
    frames: f64,
    /// How often the kernel took a core from one of its threads, by the thread's wish or not.
    switches: f64,
}

impl Run {
    fn cost_us(&self) -> f64 {
        self.fanout.server_cpu_us_per_delivery.unwrap_or(f64::NAN)
    }

    /// For a thousand deliveries.
    fn each_thousand(&self, value: fn(&Counted) -> f64) -> f64 {
        self.counted.map_or(f64::NAN, |counted| value(&counted) / counted.deliveries * 1e3)
    }
}

fn bench(work: &Work, size: &Size) -> Result<(), String> {
    let mut contestants: Vec<Contestant> = SHARDS.map(Contestant::Shards).into();
    contestants.extend(work.floor.map(Contestant::Floor));
    let mut runs: Vec<Vec<Run>> = contestants.iter().map(|_| Vec::new()).collect();
    for round in 0..size.rounds {
        // Every other round the other way round: what drifts hits all alike.
        let mut order: Vec<usize> = (0..contestants.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for which in order {
            runs[which].push(measure(contestants[which], work, size)?);
        }
    }
    print(work, &contestants, &runs);
    Ok(())
}

fn print(work: &Work, contestants: &[Contestant], runs: &[Vec<Run>]) {
    let Work { rooms, members, window, .. } = work;
    let rooms = if *rooms == 1 { "1 room".into() } else { format!("{rooms} rooms") };
    println!("{rooms} of {members}, {window} outstanding each; median (least to most)");
    for (contestant, own) in contestants.iter().zip(runs) {
        let of = |value: fn(&Run) -> f64| Spread::of(own.iter().map(value).collect());
        let against = |other: &[Run]| {
            let pairs = own.iter().zip(other);
            Spread::of(pairs.map(|(own, other)| own.cost_us() / other.cost_us()).collect())
        };
        print!(
            "  {:12}  {:.3} µs a delivery, {:.2} × 1 shard; {:.0} deliveries/s",
            contestant.name(),
            of(Run::cost_us),
            against(&runs[0]),
            of(|run| run.fanout.deliveries_per_second).median,
        );
        match contestant {
            Contestant::Floor(_) => println!(),
            Contestant::Shards(_) => println!(
                "; for 1000 of them {:.1} frames to shards, {:.1} visits, {:.1} switches",
                of(|run| run.each_thousand(|counted| counted.frames)).median,
                of(|run| run.each_thousand(|counted| counted.visits)).median,
                of(|run| run.each_thousand(|counted| counted.switches)).median,
            ),
        }
    }
}

/// A server process, ended when dropped.
struct Server {
    child: Child,
    /// Held open: a server that says something more must not meet a closed pipe.
    said: Option<BufReader<ChildStdout>>,
    url: String,
    /// Host and port of its metrics.
    ops: Option<String>,
}

impl Server {
    fn start(contestant: Contestant, size: &Size) -> Result<Server, String> {
        let mut command = match contestant {
            Contestant::Shards(shards) => {
                let mut command = Command::new(env!("CARGO_BIN_EXE_campanile"));
                command.args(["serve", "--listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0"]);
                command.args(["--log-level", "error", "--shards", &shards.to_string()]);
                if size.pinned {
                    command.args(["--cores", "0"]);
                }
                command
            }
            Contestant::Floor(mode) => {
                let own = env::current_exe().map_err(|e| format!("this program's path: {e}"))?;
                let mut command = Command::new(own);
                command.args(["floor", "--listen", "127.0.0.1:0", "--mode", mode]);
                command.args(["--prefix", ENVELOPE.0, "--suffix", ENVELOPE.1]);
                if size.pinned {
                    command.args(["--core", "0"]);
                }
                command
            }
        };
        // The server takes CAMPANILE_… for its own configuration, and refuses what it does not know.
        command.env_remove(SMOKE).env_remove(ROUNDS);
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        let child = child.map_err(|e| format!("{}: {e}", contestant.name()))?;
        let mut server = Server { child, said: None, url: String::new(), ops: None };
        server.learn_ports(&contestant.name())?;
        Ok(server)
    }

    /// Reads the line `… listening on [ws://]host:port[/ws][, ops on http://host:port]`.
    fn learn_ports(&mut self, name: &str) -> Result<(), String> {
        let stdout = self.child.stdout.take().expect("it was asked for");
        let said = self.said.insert(BufReader::new(stdout));
        for line in said.by_ref().lines().take(LINES_BEFORE_LISTENING_MAX) {
            let line = line.map_err(|e| format!("{name}: {e}"))?;
            let Some((_, after)) = line.split_once("listening on ") else { continue };
            let word = after.split([',', ' ']).next().unwrap_or_default();
            let host = word.trim_start_matches("ws://").split('/').next().unwrap_or_default();
            self.url = format!("ws://{host}/ws");
            self.ops = after.split_once("http://").map(|(_, ops)| ops.trim().to_owned());
            return Ok(());
        }
        Err(format!("{name} ended without listening"))
    }

    fn meter(&self) -> Option<Meter> {
        Some(Meter { ops: self.ops.clone()?, pid: self.child.id() })
    }
}

/// Asks a server what it has counted.
struct Meter {
    /// Host and port.
    ops: String,
    pid: u32,
}

impl Meter {
    fn read(&self) -> Option<Counted> {
        let mut stream = TcpStream::connect(&self.ops).ok()?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        let sum = |name: &str| -> f64 {
            let lines = text.lines().filter(|line| line.starts_with(name));
            lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
        };
        Some(Counted {
            deliveries: sum("campanile_deliveries_total"),
            visits: sum("campanile_shard_visit_seconds_count"),
            frames: sum("campanile_downlink_frames_total"),
            switches: self.switches()?,
        })
    }

    fn switches(&self) -> Option<f64> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid)).ok()?;
        let statuses =
            tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("status")).ok());
        let count = |status: String| {
            let lines = status.lines().filter(|line| line.contains("ctxt_switches"));
            lines
                .filter_map(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok())
                .sum::<f64>()
        };
        Some(statuses.map(count).sum())
    }

    /// What is counted from the first delivery until `ended` is dropped.
    fn watch(&self, ended: &mpsc::Receiver<()>) -> Option<Counted> {
        let pause = || ended.recv_timeout(Duration::from_millis(100));
        let mut before = self.read()?;
        while before.deliveries == 0.0 && pause() == Err(RecvTimeoutError::Timeout) {
            before = self.read()?;
        }
        // An answer about numbers that are a tick old costs the server something: ask twice only.
        let _ = ended.recv();
        let after = self.read()?;
        Some(Counted {
            deliveries: after.deliveries - before.deliveries,
            visits: after.visits - before.visits,
            frames: after.frames - before.frames,
            switches: after.switches - before.switches,
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Either may say that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What stands around the payload in Campanile's deliveries of this run; the floor sends as much.
const ENVELOPE: (&str, &str) = (
    r#"{"type":"message","room_id":"load-0","from":"anon-0123456789abcdef-0-0-0","payload":"#,
    "}",
);

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    load: LoadArgs,
}

fn measure(contestant: Contestant, work: &Work, size: &Size) -> Result<Run, String> {
    let server = Server::start(contestant, size)?;
    let Work { rooms, members, window, .. } = work;
    // Small numbers still fill every room.
    let members = (members / size.divisor).max(3);
    let mut line = format!(
        "load fanout --url {} --pid {} --rooms {rooms} --members {members} --window {window} \
         --duration-s {} --warmup-s {}",
        server.url,
        server.child.id(),
        size.seconds,
        size.warmup_s
    );
    if size.pinned {
        line.push_str(" --cores 1");
    }
    let args = Cli::try_parse_from(line.split_whitespace().map(OsString::from));
    let args = args.map_err(|error| error.to_string())?.load;
    let (running, ended) = mpsc::channel();
    let (report, counted) = std::thread::scope(|scope| {
        let watching = server.meter().map(|meter| scope.spawn(move || meter.watch(&ended)));
        let report = load::measure(args);
        drop(running);
        (report, watching.and_then(|thread| thread.join().expect("it does not panic")))
    });
    let report = report.map_err(|error| error.to_string())?;
    if !report.ok {
        let trouble = report.first_failure.unwrap_or_default();
        let why = report.shortfalls.join("; ");
        return Err(format!("{}, window {window}: {why}. {trouble}", contestant.name()));
    }
    Ok(Run { fanout: report.fanout.ok_or("a fanout without a result")?, counted })
}

struct Spread {
    least: f64,
    median: f64,
    most: f64,
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Spread {
        values.sort_by(f64::total_cmp);
        let last = values.len() - 1;
        Spread { least: values[0], median: values[values.len() / 2], most: values[last] }
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let digits = f.precision().unwrap_or(2);
        let Spread { least, median, most } = self;
        write!(f, "{median:.digits$} ({least:.digits$} to {most:.digits$})")
    }
}
