//! The table, as Markdown.

use super::bystander::Latencies;
use super::kinds::Attack;
use super::server::Visits;

/// How many times the baseline a bystander may wait.
const RATIO_MAX: f64 = 3.0;

/// What one attack did.
pub(super) struct Row {
    pub(super) attack: &'static Attack,
    pub(super) attacked: Latencies,
    pub(super) baseline: Latencies,
    pub(super) visits: Visits,
    /// Before, at most, and after it.
    pub(super) rss: [u64; 3],
    /// What the attackers counted.
    pub(super) sent: String,
    pub(super) is_alive: bool,
}

impl Row {
    fn ratio(&self) -> f64 {
        self.attacked.quantile_us(0.99) / self.baseline.quantile_us(0.99)
    }

    /// Whether the bystander hardly noticed, and the memory is bounded.
    pub(super) fn holds(&self, rss_max_mib: u64) -> bool {
        self.why_not(rss_max_mib).is_none()
    }

    fn why_not(&self, rss_max_mib: u64) -> Option<&'static str> {
        if !self.is_alive {
            return Some("**the server is gone**");
        }
        if self.attacked.lost > 0 {
            return Some("**messages lost**");
        }
        if self.rss[1] > rss_max_mib {
            return Some("**memory**");
        }
        // Not a number, too, is no proof.
        if self.ratio() <= RATIO_MAX { None } else { Some("**late**") }
    }
}

pub(super) fn write_quiet(quiet: &Latencies) {
    let p99 = millis(quiet.quantile_us(0.99));
    println!("Without attackers the bystander's p99 is {p99} ms.\n");
}

pub(super) fn write_head() {
    println!(
        "| attack | bystander p99, ms | baseline, ms | ratio | lost | longest visit, ms | p99 of visits, ms \
         | RSS before, peak, after, MiB | connects, refused, closed, MB | verdict |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
}

pub(super) fn write_row(row: &Row, rss_max_mib: u64) {
    let p99 = |latencies: &Latencies| millis(latencies.quantile_us(0.99));
    let visit = |share: f64| millis(row.visits.quantile_us(share));
    let [before, peak, after] = row.rss;
    println!(
        "| `{}`: {} | {} | {} | {:.1} | {} | {} | {} | {before}, {peak}, {after} | {} | {} |",
        row.attack.name,
        row.attack.what,
        p99(&row.attacked),
        p99(&row.baseline),
        row.ratio(),
        row.attacked.lost,
        visit(1.0),
        visit(0.99),
        totals(&row.sent),
        row.why_not(rss_max_mib).unwrap_or("holds"),
    );
}

/// Bytes as megabytes, the rest as it is.
fn totals(sent: &str) -> String {
    let mut numbers: Vec<String> = sent.split(' ').map(str::to_owned).collect();
    if let Some(last) = numbers.last_mut() {
        *last =
            last.parse().map_or_else(|_| "?".into(), |bytes: u64| (bytes / 1_000_000).to_string());
    }
    numbers.join(", ")
}

fn millis(us: f64) -> String {
    format!("{:.2}", us / 1000.0)
}
