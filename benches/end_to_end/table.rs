//! What is printed: each case as it ends, and one table of all at the end.
//!
//! Invariant: a ratio is of two runs of one round.

use crate::cases::{Case, Kind};
use crate::measure::Figure;

/// One case, all figures.
pub fn print(case: &Case, rounds: &[Vec<Figure>]) {
    let unit = unit(case.figure);
    println!("{}: {}, {} rounds, median (least to most)", case.name, case.title, rounds.len());
    for (i, contestant) in case.contestants.iter().enumerate() {
        let of = |value: &dyn Fn(&Figure) -> f64| {
            LoadTable::of(rounds.iter().map(|round| value(&round[i])).collect())
        };
        let us = of(&|figure| figure.us);
        let rate = of(&|figure| figure.per_second).median;
        let cores = of(&|figure| figure.server_cores).median;
        let generator = of(&|figure| figure.generator_cores).median;
        print!("  {:15}  {us:.3} {unit}, {rate:.0}/s", contestant.name());
        print!(", server {cores:.2} cores, generator {generator:.2}");
        if matches!(case.figure, Kind::Delivery | Kind::Latency) {
            let bytes = of(&|figure| figure.bytes).median;
            let p50 = of(&|figure| figure.p50_us).median;
            let p99 = of(&|figure| figure.p99_us).median;
            print!(", {bytes:.0} B each, p50 {p50:.0} p99 {p99:.0} µs");
        }
        println!();
    }
    for i in 1..case.contestants.len() {
        println!("  campanile / {:15}  {:.3}", case.contestants[i].name(), ratio(rounds, i));
    }
}

/// All cases in Markdown.
pub fn summary(rows: &[(&Case, Vec<Vec<Figure>>)]) {
    println!("\n| case | campanile | floor | ratio | target |\n|---|---|---|---|---|");
    for (case, rounds) in rows {
        let of = |i: usize| LoadTable::of(rounds.iter().map(|round| round[i].us).collect()).median;
        let unit = unit(case.figure);
        for i in 1..case.contestants.len() {
            let contestant = case.contestants[i];
            let target = match case.target {
                Some((most, of)) if of == contestant => format!("{most:.2}"),
                _ => String::new(),
            };
            println!(
                "| `{}` {} | {:.3} {unit} | {:.3} ({}) | {:.2} | {target} |",
                case.name,
                case.title,
                of(0),
                of(i),
                contestant.name(),
                ratio(rounds, i)
            );
        }
    }
}

fn ratio(rounds: &[Vec<Figure>], to: usize) -> LoadTable {
    LoadTable::of(rounds.iter().map(|round| round[0].us / round[to].us).collect())
}

fn unit(kind: Kind) -> &'static str {
    match kind {
        Kind::Delivery => "µs a delivery",
        Kind::Latency => "µs p99",
        Kind::Receive => "µs a message",
        Kind::Heartbeat => "µs a ping and pong",
    }
}

struct LoadTable {
    least: f64,
    median: f64,
    most: f64,
}

impl LoadTable {
    fn of(mut values: Vec<f64>) -> LoadTable {
        values.sort_by(f64::total_cmp);
        let (first, last) = (values[0], values[values.len() - 1]);
        let half = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            values[half]
        } else {
            (values[half - 1] + values[half]) / 2.0
        };
        LoadTable { least: first, median, most: last }
    }
}

impl std::fmt::Display for LoadTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let digits = f.precision().unwrap_or(2);
        let LoadTable { least, median, most } = self;
        write!(f, "{median:.digits$} ({least:.digits$} to {most:.digits$})")
    }
}
