//! What does a delivery cost, and how far is that from what the kernel asks for the same bytes?
//!
//! The released binary serves on core 0, the generator drives it from core 1; then the floor stands
//! in its place. One room, 1000 members, 120-byte payloads, with 1 and with 64 messages
//! outstanding. Contestants take turns, round after round, each in a fresh process; a ratio is of
//! neighbours in one round, and the median of the rounds is what counts.
//!
//! With `--test` or `CAMPANILE_BENCH_SMOKE=1` everything is tiny, takes seconds, and only checks
//! that every delivery arrives.

#[path = "floor/floor.rs"]
mod floor;

use campanile::load::{self, LoadArgs, report::Fanout};
use clap::Parser;
use std::env;
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Command, ExitCode, Stdio};

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
    let smoke = env::args().any(|arg| arg == "--test")
        || env::var_os(SMOKE).is_some_and(|value| value == "1");
    let size = if smoke { Size::smoke() } else { Size::full() };
    match size.and_then(|size| bench(&size)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("end_to_end: {why}");
            ExitCode::FAILURE
        }
    }
}

/// How much is measured.
struct Size {
    members: u32,
    windows: [u32; 2],
    seconds: f64,
    warmup_s: f64,
    rounds: usize,
    /// Cores of server and generator, where there are two.
    cores: Option<(usize, usize)>,
}

impl Size {
    fn full() -> Result<Size, String> {
        let rounds = match env::var(ROUNDS) {
            Ok(text) => {
                text.parse().map_err(|_| format!("{ROUNDS}={text} is not a number of rounds"))?
            }
            Err(_) => 5,
        };
        if rounds == 0 {
            return Err(format!("{ROUNDS} must be above zero"));
        }
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        if cores < 2 {
            return Err("server and generator need a core each; this machine has one".into());
        }
        let cores = Some((0, 1));
        Ok(Size { members: 1000, windows: [1, 64], seconds: 3.0, warmup_s: 1.0, rounds, cores })
    }

    fn smoke() -> Result<Size, String> {
        let (seconds, warmup_s) = (0.2, 0.05);
        Ok(Size { members: 20, windows: [1, 8], seconds, warmup_s, rounds: 1, cores: None })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Contestant {
    Campanile,
    Each,
    Joined,
}

impl Contestant {
    fn name(self) -> &'static str {
        match self {
            Contestant::Campanile => "campanile",
            Contestant::Each => "floor",
            Contestant::Joined => "joined floor",
        }
    }
}

fn bench(size: &Size) -> Result<(), String> {
    let envelope = Envelope::learn(size)?;
    for window in size.windows {
        // With one message outstanding there is nothing to join.
        let contestants: &[Contestant] = if window == 1 {
            &[Contestant::Campanile, Contestant::Each]
        } else {
            &[Contestant::Campanile, Contestant::Joined, Contestant::Each]
        };
        let mut rounds: Vec<Vec<Fanout>> = Vec::new();
        for round in 0..size.rounds {
            // Every other round the other way round: what drifts hits all alike.
            let mut order: Vec<Contestant> = contestants.to_vec();
            if round % 2 == 1 {
                order.reverse();
            }
            let mut results = Vec::new();
            for contestant in order {
                results.push(measure(contestant, window, size, &envelope)?);
            }
            if round % 2 == 1 {
                results.reverse();
            }
            rounds.push(results);
        }
        print(window, contestants, &rounds);
    }
    Ok(())
}

/// What stands around the payload in Campanile's deliveries; the floor sends the same.
struct Envelope {
    prefix: String,
    suffix: String,
}

impl Envelope {
    fn learn(size: &Size) -> Result<Envelope, String> {
        let none = Envelope { prefix: String::new(), suffix: String::new() };
        let short = Size { seconds: 0.2, warmup_s: 0.0, ..*size };
        let fanout = measure(Contestant::Campanile, 1, &short, &none)?;
        let sample = fanout.sample.ok_or("nothing was delivered")?;
        let key = "\"payload\":";
        let start = sample.find(key).ok_or("a delivery without a payload")? + key.len();
        let (prefix, rest) = sample.split_at(start);
        // The payload is a string without escapes: it ends at its second quote.
        let end = rest.match_indices('"').nth(1).ok_or("a payload without an end")?.0 + 1;
        Ok(Envelope { prefix: prefix.into(), suffix: rest[end..].into() })
    }
}

/// A server process, ended when dropped.
struct Server {
    child: Child,
    /// Held open: a server that says something more must not meet a closed pipe.
    said: Option<BufReader<ChildStdout>>,
    url: String,
}

impl Server {
    fn start(contestant: Contestant, size: &Size, envelope: &Envelope) -> Result<Server, String> {
        let mut command = match contestant {
            Contestant::Campanile => {
                let mut command = Command::new(env!("CARGO_BIN_EXE_campanile"));
                command.args(["serve", "--listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0"]);
                command.args(["--shards", "1", "--log-level", "error"]);
                if let Some((core, _)) = size.cores {
                    command.args(["--cores", &core.to_string()]);
                }
                command
            }
            Contestant::Each | Contestant::Joined => {
                let mode = if contestant == Contestant::Each { "each" } else { "joined" };
                let own = env::current_exe().map_err(|e| format!("this program's path: {e}"))?;
                let mut command = Command::new(own);
                command.args(["floor", "--listen", "127.0.0.1:0", "--mode", mode]);
                command.args(["--prefix", &envelope.prefix, "--suffix", &envelope.suffix]);
                if let Some((core, _)) = size.cores {
                    command.args(["--core", &core.to_string()]);
                }
                command
            }
        };
        // The server takes CAMPANILE_… for its own configuration, and refuses what it does not know.
        command.env_remove(SMOKE).env_remove(ROUNDS);
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| format!("{}: {e}", contestant.name()))?;
        let mut server = Server { child, said: None, url: String::new() };
        server.url = server.listening_url(contestant)?;
        Ok(server)
    }

    /// Reads the line `… listening on [ws://]host:port[/ws][, …]`.
    fn listening_url(&mut self, contestant: Contestant) -> Result<String, String> {
        let stdout = self.child.stdout.take().expect("it was asked for");
        let said = self.said.insert(BufReader::new(stdout));
        for line in said.by_ref().lines().take(LINES_BEFORE_LISTENING_MAX) {
            let line = line.map_err(|e| format!("{}: {e}", contestant.name()))?;
            let Some((_, after)) = line.split_once("listening on ") else { continue };
            let word = after.split([',', ' ']).next().unwrap_or_default();
            let host = word.trim_start_matches("ws://").split('/').next().unwrap_or_default();
            return Ok(format!("ws://{host}/ws"));
        }
        Err(format!("{} ended without listening", contestant.name()))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Either may say that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    load: LoadArgs,
}

fn measure(
    contestant: Contestant,
    window: u32,
    size: &Size,
    envelope: &Envelope,
) -> Result<Fanout, String> {
    let server = Server::start(contestant, size, envelope)?;
    let mut line = format!(
        "load fanout --url {} --pid {} --members {} --window {window} --duration-s {} --warmup-s {}",
        server.url,
        server.child.id(),
        size.members,
        size.seconds,
        size.warmup_s
    );
    if let Some((_, core)) = size.cores {
        line.push_str(&format!(" --cores {core}"));
    }
    let words = line.split(' ').map(OsString::from);
    let args = Cli::try_parse_from(words).map_err(|error| error.to_string())?.load;
    let report = load::measure(args).map_err(|error| error.to_string())?;
    if !report.ok {
        let trouble = report.first_trouble.unwrap_or_default();
        let why = report.shortfalls.join("; ");
        return Err(format!("{}, window {window}: {why}. {trouble}", contestant.name()));
    }
    report.fanout.ok_or_else(|| "a fanout without a result".into())
}

fn print(window: u32, contestants: &[Contestant], rounds: &[Vec<Fanout>]) {
    println!("window {window}, {} rounds: median (least to most)", rounds.len());
    for (i, contestant) in contestants.iter().enumerate() {
        let of = |value: &dyn Fn(&Fanout) -> f64| {
            Spread::of(rounds.iter().map(|round| value(&round[i])).collect())
        };
        let cost = of(&|fanout| fanout.server_cpu_us_per_delivery.unwrap_or(f64::NAN));
        let rate = of(&|fanout| fanout.deliveries_per_second);
        let cores = of(&|fanout| fanout.generator_cores);
        let bytes = of(&|fanout| fanout.bytes_per_delivery);
        println!(
            "  {:12}  {cost:.3} µs a delivery, {:.0} deliveries/s, {:.0} B each, generator {:.2} cores",
            contestant.name(),
            rate.median,
            bytes.median,
            cores.median
        );
    }
    for i in 1..contestants.len() {
        let ratio = |round: &Vec<Fanout>| {
            let cost = |fanout: &Fanout| fanout.server_cpu_us_per_delivery.unwrap_or(f64::NAN);
            cost(&round[0]) / cost(&round[i])
        };
        let ratios = Spread::of(rounds.iter().map(ratio).collect());
        println!("  campanile / {:12}  {ratios:.3}", contestants[i].name());
    }
}

struct Spread {
    least: f64,
    median: f64,
    most: f64,
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Spread {
        values.sort_by(f64::total_cmp);
        let (first, last) = (values[0], values[values.len() - 1]);
        let half = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            values[half]
        } else {
            (values[half - 1] + values[half]) / 2.0
        };
        Spread { least: first, median, most: last }
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let digits = f.precision().unwrap_or(2);
        let Spread { least, median, most } = self;
        write!(f, "{median:.digits$} ({least:.digits$} to {most:.digits$})")
    }
}
