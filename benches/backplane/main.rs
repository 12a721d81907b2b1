//! How many messages does one backplane thread hand to its shards, and how long does a message take
//! from node to node through Redis?
//!
//! The real thread, the real window, real Redis; only the shards are minimal: they publish, drain and
//! count. With more threads than cores wall time measures the machine, so the number that counts is
//! messages by second of processor time of the backplane's own thread.
//!
//! `cargo bench --bench backplane` does all of it, `… -- embedded` and `… -- redis` a part. With
//! `--test` everything is tiny and only checks that every message arrives. Redis is started here, on
//! a free port.

mod alone;
mod embedded;
mod node;
#[path = "../../tests/common/redis.rs"]
mod redis_server;
mod through_redis;

use std::time::Duration;

/// How much is measured.
#[derive(Clone, Copy)]
pub struct Size {
    /// The measured time of one run.
    pub run: Duration,
    /// The warm-up before it.
    pub warm_up: Duration,
    /// How often each contestant has its turn.
    pub rounds: usize,
    /// Messages of one latency run.
    pub singles: usize,
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let has = |word: &str| words.iter().any(|given| given == word);
    // `cargo test --bench` passes nothing, `cargo bench` passes `--bench`.
    let size = if has("--test") || !has("--bench") {
        let run = Duration::from_millis(50);
        Size { run, warm_up: run, rounds: 1, singles: 200 }
    } else {
        let run = Duration::from_secs(2);
        Size { run, warm_up: Duration::from_millis(500), rounds: 5, singles: 20_000 }
    };
    let all = !has("embedded") && !has("redis");
    if all || has("embedded") {
        embedded::bench(&size);
    }
    if all || has("redis") {
        through_redis::bench(&size);
    }
}

/// The median of some numbers, and their extremes.
pub struct Statistics {
    least: f64,
    /// The median.
    pub median: f64,
    most: f64,
}

impl Statistics {
    /// Of at least one number.
    pub fn of(mut values: Vec<f64>) -> Statistics {
        values.sort_by(f64::total_cmp);
        let last = values.len() - 1;
        Statistics { least: values[0], median: values[values.len() / 2], most: values[last] }
    }
}

impl std::fmt::Display for Statistics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let digits = f.precision().unwrap_or(0);
        let Statistics { least, median, most } = self;
        write!(f, "{median:.digits$} ({least:.digits$} to {most:.digits$})")
    }
}
