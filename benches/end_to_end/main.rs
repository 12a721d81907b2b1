//! What does the server's work cost, and how far is that from what the kernel asks for the same
//! bytes?
//!
//! The released binary serves on core 0, the generator drives it from core 1; then the floor stands
//! in its place. `cases.rs` lists what is asked: deliveries in several shapes, receiving, heartbeats,
//! and latency at a third of the load. Contestants take turns, round after round, each in a fresh
//! process; a ratio is of neighbours in one round, and the median of the rounds is what counts.
//!
//! `cargo bench --bench end_to_end -- window-1 users` runs only those cases. With `--test` or
//! `CAMPANILE_BENCH_SMOKE=1` everything is tiny, takes seconds, and only checks that nothing is
//! lost; so it is too when `cargo test` runs it, which does not say `--bench`.

mod cases;
#[path = "../floor/floor.rs"]
mod floor;
mod measure;
mod server;
mod table;

use cases::{CASES, Case};
use measure::{Envelope, Figure, Measure};
use server::Contestant;
use std::env;
use std::process::ExitCode;

/// Environment: `1` makes everything tiny.
const SMOKE: &str = "CAMPANILE_BENCH_SMOKE";
/// Environment: how many rounds.
const ROUNDS: &str = "CAMPANILE_BENCH_ROUNDS";

fn main() -> ExitCode {
    // The floor needs a process of its own, and this is the one program that is surely built.
    if env::args().nth(1).as_deref() == Some("floor") {
        return floor::main(env::args_os().skip(1));
    }
    let smoke = env::args().any(|arg| arg == "--test")
        || !env::args().any(|arg| arg == "--bench")
        || env::var_os(SMOKE).is_some_and(|value| value == "1");
    let size = if smoke { Size::smoke() } else { Size::full() };
    match size.and_then(|size| bench(&size, &chosen()?)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("end_to_end: {why}");
            ExitCode::FAILURE
        }
    }
}

/// How much is measured.
pub struct Size {
    /// Everything is tiny.
    smoke: bool,
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
            Err(_) => 3,
        };
        if rounds == 0 {
            return Err(format!("{ROUNDS} must be above zero"));
        }
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        if cores < 2 {
            return Err("server and generator need a core each; this machine has one".into());
        }
        Ok(Size { smoke: false, seconds: 3.0, warmup_s: 1.0, rounds, cores: Some((0, 1)) })
    }

    fn smoke() -> Result<Size, String> {
        Ok(Size { smoke: true, seconds: 0.2, warmup_s: 0.05, rounds: 1, cores: None })
    }
}

/// The cases that were named, or all.
fn chosen() -> Result<Vec<&'static Case>, String> {
    let names: Vec<String> = env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    if names.is_empty() {
        return Ok(CASES.iter().collect());
    }
    let find = |name: &String| {
        CASES.iter().find(|case| case.name == name).ok_or_else(|| {
            let known: Vec<&str> = CASES.iter().map(|case| case.name).collect();
            format!("there is no case {name:?}. Write {}", known.join(", "))
        })
    };
    names.iter().map(find).collect()
}

fn bench(size: &Size, cases: &[&Case]) -> Result<(), String> {
    println!("server: campanile serve {}", server::NO_RATES.join(" "));
    let mut rows = Vec::new();
    for case in cases {
        let rounds = run(case, size).map_err(|why| format!("{}: {why}", case.name))?;
        table::print(case, &rounds);
        rows.push((*case, rounds));
    }
    table::summary(&rows);
    Ok(())
}

/// All rounds of one case: for each, the figures in the order of its contestants.
fn run(case: &Case, size: &Size) -> Result<Vec<Vec<Figure>>, String> {
    let measure = Measure { case, size, envelope: Envelope::learn(case, size)?, rate: None };
    let measure = measure.with_rate()?;
    let mut rounds = Vec::new();
    for round in 0..size.rounds {
        // Every other round the other way round: what drifts hits all alike.
        let mut order: Vec<Contestant> = case.contestants.to_vec();
        if round % 2 == 1 {
            order.reverse();
        }
        let figures: Result<Vec<Figure>, String> = order
            .into_iter()
            .map(|contestant| {
                measure.take(contestant).map_err(|why| format!("{}: {why}", contestant.name()))
            })
            .collect();
        let mut figures = figures?;
        if round % 2 == 1 {
            figures.reverse();
        }
        rounds.push(figures);
    }
    Ok(rounds)
}
