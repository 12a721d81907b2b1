//! The table, as Markdown.

use super::bystander::Latencies;
use super::kinds::Attack;
use super::server::Visits;
use std::error::Error;

/// How many times the baseline a bystander may wait.
const RATIO_MAX: f64 = 3.0;

/// What the process may have beyond the bound on its memory.
pub(super) const BEYOND_MIB: u64 = 64;

/// What one attack did.
pub(super) struct Row {
    pub(super) attack: &'static Attack,
    pub(super) attacked: Latencies,
    pub(super) baseline: Latencies,
    pub(super) visits: Visits,
    /// Before, at most, and after it.
    pub(super) rss: [u64; 3],
    /// What the attackers counted: connects, refused, closed, bytes.
    pub(super) sent: [u64; 4],
    pub(super) is_alive: bool,
}

impl Row {
    /// Nothing is measured yet.
    pub(super) fn new(attack: &'static Attack) -> Row {
        Row {
            attack,
            attacked: Latencies::default(),
            baseline: Latencies::default(),
            visits: Visits::default(),
            rss: [0; 3],
            sent: [0; 4],
            is_alive: false,
        }
    }

    /// Adds what the process of the attackers has written.
    pub(super) fn add_sent(&mut self, output: &[u8]) -> Result<(), Box<dyn Error>> {
        let output = std::str::from_utf8(output)?;
        let mut words = output.split_whitespace();
        for number in &mut self.sent {
            *number += words.next().ok_or("the attackers have ended early")?.parse::<u64>()?;
        }
        Ok(())
    }

    fn ratio(&self) -> f64 {
        self.attacked.p99_us() / self.baseline.p99_us()
    }

    /// Whether the bystander hardly noticed, and the memory is bounded.
    pub(super) fn holds(&self, bound_mib: u64) -> bool {
        self.why_not(bound_mib).is_none()
    }

    fn why_not(&self, bound_mib: u64) -> Option<&'static str> {
        if !self.is_alive {
            return Some("**the server is gone**");
        }
        if self.attacked.lost > 0 {
            return Some("**messages lost**");
        }
        if self.rss[1] > bound_mib + BEYOND_MIB {
            return Some("**memory**");
        }
        // Not a number, too, is no proof.
        if self.ratio() <= RATIO_MAX { None } else { Some("**late**") }
    }
}

pub(super) fn write_quiet(quiet: &Latencies) {
    let p99 = millis(quiet.p99_us());
    println!("Without attackers the bystander's p99 is {p99} ms.\n");
}

pub(super) fn write_head() {
    println!(
        "| attack | bystander p99, ms | baseline, ms | ratio | of all: attacked, baseline, ms | lost | longest visit, ms | p99 of visits, ms \
         | RSS before, peak, after, MiB | connects, refused, closed, MB | verdict |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|");
}

pub(super) fn write_row(row: &Row, bound_mib: u64) {
    let p99 = |latencies: &Latencies| millis(latencies.p99_us());
    let of_all = |latencies: &Latencies| millis(latencies.p99_of_all_us());
    let visit = |share: f64| millis(row.visits.quantile_us(share));
    let [before, peak, after] = row.rss;
    println!(
        "| `{}`: {} | {} | {} | {:.1} | {}, {} | {} | {} | {} | {before}, {peak}, {after} | {} | {} |",
        row.attack.name,
        row.attack.what,
        p99(&row.attacked),
        p99(&row.baseline),
        row.ratio(),
        of_all(&row.attacked),
        of_all(&row.baseline),
        row.attacked.lost,
        visit(1.0),
        visit(0.99),
        totals(row.sent),
        row.why_not(bound_mib).unwrap_or("holds"),
    );
}

/// Bytes as megabytes, the rest as it is.
fn totals([connects, refused, closed, bytes]: [u64; 4]) -> String {
    format!("{connects}, {refused}, {closed}, {}", bytes / 1_000_000)
}

fn millis(us: f64) -> String {
    format!("{:.2}", us / 1000.0)
}
