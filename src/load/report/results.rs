//! What a run found: one structure for machines, one table for people.
//!
//! Invariant: a run that did not reach its purpose says so in `ok`, and why in `shortfalls`.

use hdrhistogram::Histogram;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::{self, Write};

/// Everything a run found. Times are in the unit that their name ends with.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// `idle`, `fanout`, `talk` or `storm`.
    pub scenario: &'static str,
    /// Whether the run reached its purpose.
    pub ok: bool,
    /// Why not.
    pub shortfalls: Vec<String>,
    /// The first thing that went wrong, in the server's or the kernel's words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_trouble: Option<String>,
    /// Error frames of the server.
    pub errors: u64,
    /// Getting in.
    pub connect: Connect,
    /// The server's memory, where its process is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryReport>,
    /// One message to everybody.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub broadcast: Option<Broadcast>,
    /// Holding them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hold: Option<Hold>,
    /// Joined connections lost while they were held.
    pub lost_connections: u64,
    /// Messages to rooms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fanout: Option<Fanout>,
    /// Messages to nobody.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub talk: Option<Talk>,
    /// Everybody at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storm: Option<Storm>,
}

/// Getting in.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Connect {
    /// Connections wanted.
    pub conns: u64,
    /// Connections that joined.
    pub joined: u64,
    /// Given up, by reason.
    pub failed: BTreeMap<&'static str, u64>,
    /// Failed and tried again, by reason.
    pub retried: BTreeMap<&'static str, u64>,
    /// From the first connect to the last join.
    pub seconds: f64,
    /// Joins a second.
    pub per_second: f64,
    /// Threads of the generator.
    pub threads: usize,
}

/// Memory of a process, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Resident: VmRSS.
    pub rss: u64,
    /// The anonymous part of it: heap and stacks, without the program's own pages.
    pub anon: u64,
}

/// The server's memory before the first and after the last connection, in bytes.
#[derive(Clone, Debug, Serialize)]
pub struct MemoryReport {
    /// Before.
    pub before: Memory,
    /// After everything else.
    pub after: Memory,
    /// Growth of RSS by connection.
    pub rss_per_conn: f64,
    /// Growth of its anonymous part by connection.
    pub anon_per_conn: f64,
    /// What the machine lost by connection: kernel, server and generator together.
    pub machine_per_conn: f64,
}

/// One message to everybody.
#[derive(Clone, Debug, Serialize)]
pub struct Broadcast {
    /// Connections that should hear it.
    pub expected: u64,
    /// Connections that heard it.
    pub received: u64,
    /// How late.
    pub latency: Latency,
}

/// Doing nothing with many connections.
#[derive(Clone, Debug, Serialize)]
pub struct Hold {
    /// Measured time.
    pub seconds: f64,
    /// Pings that came in it, each of which was answered.
    pub pings: u64,
    /// Cores the server used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_cores: Option<f64>,
    /// The server's processor time by ping and pong, where nothing else was to be done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_cpu_us_per_ping: Option<f64>,
    /// Cores the generator used.
    pub generator_cores: f64,
}

/// Messages to rooms.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Fanout {
    /// Members of each room.
    pub members: u32,
    /// Rooms.
    pub rooms: u32,
    /// Rooms that each member is in.
    pub rooms_per_member: u32,
    /// Further members of each room that read nothing.
    pub silent: u32,
    /// How many of those the server has ended, over all rooms.
    pub silent_ended: u64,
    /// Publishers of each room.
    pub publishers: u32,
    /// Characters of a payload.
    pub payload_bytes: u32,
    /// Messages outstanding in each room, in a closed loop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<u32>,
    /// Messages a second, where they are paced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<f64>,
    /// Measured time.
    pub seconds: f64,
    /// Messages published in it.
    pub messages: u64,
    /// The same a second.
    pub messages_per_second: f64,
    /// Copies received in it.
    pub deliveries: u64,
    /// The same a second.
    pub deliveries_per_second: f64,
    /// Bytes of a delivered frame, header included.
    pub bytes_per_delivery: f64,
    /// From when a message was due to each copy's arrival.
    pub latency: Latency,
    /// The server's processor time by delivery.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_cpu_us_per_delivery: Option<f64>,
    /// Cores the server used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_cores: Option<f64>,
    /// Cores the generator used.
    pub generator_cores: f64,
    /// Copies that all messages of the run, warm-up included, should have made.
    pub expected: u64,
    /// Copies that came.
    pub received: u64,
    /// Copies that never came.
    pub lost: u64,
    /// Copies that came twice or too late (rooms with one publisher).
    pub disordered: u64,
    /// Messages that could not be published.
    pub unsent: u64,
    /// Messages given up by a closed loop.
    pub given_up: u64,
    /// The beginning of the first delivery, as it came.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sample: Option<String>,
}

/// Messages to nobody.
#[derive(Clone, Debug, Serialize)]
pub struct Talk {
    /// Messages before each question.
    pub burst: u32,
    /// Characters of a payload.
    pub payload_bytes: u32,
    /// Bytes of a write, where everything was cut.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cut_bytes: Option<u32>,
    /// Measured time.
    pub seconds: f64,
    /// Messages in it, the questions not counted.
    pub messages: u64,
    /// The same a second.
    pub messages_per_second: f64,
    /// The server's processor time by message, the questions' included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_cpu_us_per_message: Option<f64>,
    /// Cores the server used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_cores: Option<f64>,
    /// Cores the generator used.
    pub generator_cores: f64,
}

/// Everybody at once.
#[derive(Clone, Debug, Serialize)]
pub struct Storm {
    /// Connections cut.
    pub cut: u64,
    /// Connections back in.
    pub rejoined: u64,
    /// From the cut to the last join.
    pub seconds: f64,
    /// Joins a second.
    pub per_second: f64,
    /// Attempts that failed and were tried again, by reason.
    pub retried: BTreeMap<&'static str, u64>,
    /// The bystanders' latency before.
    pub bystanders_before: Latency,
    /// The bystanders' latency from the cut until all were back.
    pub bystanders_during: Latency,
    /// Copies that bystanders never got.
    pub bystanders_lost: u64,
}

/// Quantiles in microseconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Latency {
    /// How many were measured.
    pub count: u64,
    /// Median.
    pub p50_us: f64,
    /// 90 %.
    pub p90_us: f64,
    /// 99 %.
    pub p99_us: f64,
    /// 99.9 %.
    pub p999_us: f64,
    /// The worst.
    pub max_us: f64,
}

impl Latency {
    /// From nanoseconds.
    pub fn of(histogram: &Histogram<u64>) -> Latency {
        let us = |quantile: f64| histogram.value_at_quantile(quantile) as f64 / 1e3;
        if histogram.is_empty() {
            return Latency::default();
        }
        Latency {
            count: histogram.len(),
            p50_us: us(0.5),
            p90_us: us(0.9),
            p99_us: us(0.99),
            p999_us: us(0.999),
            max_us: histogram.max() as f64 / 1e3,
        }
    }
}

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.count == 0 {
            return f.write_str("none measured");
        }
        let Latency { p50_us, p90_us, p99_us, p999_us, max_us, .. } = self;
        write!(
            f,
            "p50 {p50_us:.0}  p90 {p90_us:.0}  p99 {p99_us:.0}  p99.9 {p999_us:.0}  max {max_us:.0} µs"
        )
    }
}

impl Report {
    /// Notes a shortfall if there is one.
    pub fn must(&mut self, holds: bool, otherwise: impl FnOnce() -> String) {
        if !holds {
            self.shortfalls.push(otherwise());
        }
        self.ok = self.shortfalls.is_empty();
    }

    /// For people.
    pub fn table(&self) -> String {
        let mut rows = Vec::new();
        self.connect.rows(&mut rows);
        if let Some(broadcast) = &self.broadcast {
            let Broadcast { expected, received, latency } = broadcast;
            rows.push(("one message to all", format!("{received} of {expected} received it")));
            rows.push(("  latency", latency.to_string()));
        }
        if let Some(hold) = &self.hold {
            hold.rows(&mut rows);
        }
        if let Some(fanout) = &self.fanout {
            fanout.rows(&mut rows);
        }
        if let Some(talk) = &self.talk {
            talk.rows(&mut rows);
        }
        if let Some(storm) = &self.storm {
            storm.rows(&mut rows);
        }
        if let Some(memory) = &self.memory {
            memory.rows(&mut rows);
        }
        if self.lost_connections > 0 {
            rows.push(("lost connections", self.lost_connections.to_string()));
        }
        if self.errors > 0 {
            rows.push(("error frames", self.errors.to_string()));
        }
        if let Some(trouble) = &self.first_trouble {
            rows.push(("first trouble", trouble.clone()));
        }
        let verdict = if self.ok { "ok".into() } else { self.shortfalls.join("; ") };
        rows.push(("result", verdict));
        render(self.scenario, &rows)
    }
}

type Rows = Vec<(&'static str, String)>;

impl Connect {
    fn rows(&self, rows: &mut Rows) {
        let Connect { conns, joined, seconds, per_second, threads, .. } = self;
        rows.push(("connections", format!("{joined} of {conns} joined")));
        rows.push(("  time", format!("{seconds:.2} s, {per_second:.0}/s, {threads} threads")));
        rows.extend(counts("  failed", &self.failed));
        rows.extend(counts("  tried again", &self.retried));
    }
}

impl MemoryReport {
    fn rows(&self, rows: &mut Rows) {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let (before, after) = (mib(self.before.rss), mib(self.after.rss));
        rows.push(("server memory", format!("{before:.1} MiB before, {after:.1} MiB after")));
        rows.push((
            "  by connection",
            format!(
                "{:.0} B resident, {:.0} B of it anonymous; {:.0} B of the machine, both ends",
                self.rss_per_conn, self.anon_per_conn, self.machine_per_conn
            ),
        ));
    }
}

impl Fanout {
    fn rows(&self, rows: &mut Rows) {
        let mode = match (self.window, self.rate) {
            (Some(window), _) => format!("{window} outstanding a room"),
            (None, rate) => format!("{} messages/s", rate.unwrap_or_default()),
        };
        let Fanout { members, rooms, publishers, .. } = self;
        rows.push((
            "rooms",
            format!("{rooms} of {members} members, {publishers} publishing; {mode}"),
        ));
        if self.rooms_per_member > 1 {
            rows.push(("  each member in", format!("{} rooms", self.rooms_per_member)));
        }
        if self.silent > 0 {
            let Fanout { silent, silent_ended, .. } = self;
            let text = format!("{silent} more a room; the server ended {silent_ended} in all");
            rows.push(("  reading nothing", text));
        }
        let per_second = |n: u64, rate: f64| format!("{n} in {:.2} s, {rate:.0}/s", self.seconds);
        rows.push(("messages", per_second(self.messages, self.messages_per_second)));
        rows.push(("deliveries", per_second(self.deliveries, self.deliveries_per_second)));
        rows.push(("  each", format!("{:.1} B on the wire", self.bytes_per_delivery)));
        rows.push(("  latency", self.latency.to_string()));
        if let (Some(us), Some(cores)) = (self.server_cpu_us_per_delivery, self.server_cores) {
            rows.push(("server cpu", format!("{us:.3} µs a delivery, {cores:.2} cores")));
        }
        rows.push(("generator cpu", format!("{:.2} cores", self.generator_cores)));
        let Fanout { lost, expected, disordered, unsent, given_up, .. } = self;
        rows.push(("lost", format!("{lost} of {expected}")));
        if disordered + unsent + given_up > 0 {
            let text = format!("{disordered} out of order, {unsent} unsent, {given_up} given up");
            rows.push(("  also", text));
        }
    }
}

impl Hold {
    fn rows(&self, rows: &mut Rows) {
        let Hold { seconds, pings, generator_cores, .. } = self;
        rows.push(("held for", format!("{seconds:.1} s, {pings} pings")));
        if let Some(cores) = self.server_cores {
            let each = self.server_cpu_us_per_ping;
            let each = each.map(|us| format!(", {us:.2} µs a ping and pong")).unwrap_or_default();
            rows.push(("  server cpu", format!("{cores:.3} cores{each}")));
        }
        rows.push(("  generator cpu", format!("{generator_cores:.3} cores")));
    }
}

impl Talk {
    fn rows(&self, rows: &mut Rows) {
        let Talk { burst, payload_bytes, messages, seconds, messages_per_second, .. } = self;
        rows.push(("bursts", format!("{burst} messages of {payload_bytes} characters")));
        if let Some(bytes) = self.cut_bytes {
            rows.push(("  cut into", format!("{bytes} B")));
        }
        let text = format!("{messages} in {seconds:.2} s, {messages_per_second:.0}/s");
        rows.push(("messages", text));
        if let (Some(us), Some(cores)) = (self.server_cpu_us_per_message, self.server_cores) {
            rows.push(("server cpu", format!("{us:.3} µs a message, {cores:.2} cores")));
        }
        rows.push(("generator cpu", format!("{:.2} cores", self.generator_cores)));
    }
}

impl Storm {
    fn rows(&self, rows: &mut Rows) {
        let Storm { cut, rejoined, seconds, per_second, .. } = self;
        rows.push(("back after the cut", format!("{rejoined} of {cut}")));
        rows.push(("  time", format!("{seconds:.2} s, {per_second:.0}/s")));
        rows.extend(counts("  tried again", &self.retried));
        rows.push(("bystanders before", self.bystanders_before.to_string()));
        rows.push(("bystanders during", self.bystanders_during.to_string()));
        rows.push(("  lost", self.bystanders_lost.to_string()));
    }
}

fn counts(
    label: &'static str,
    by_reason: &BTreeMap<&'static str, u64>,
) -> Option<(&'static str, String)> {
    let text: Vec<String> = by_reason.iter().map(|(name, n)| format!("{name} {n}")).collect();
    (!text.is_empty()).then(|| (label, text.join(", ")))
}

fn render(title: &str, rows: &Rows) -> String {
    let width = rows.iter().map(|(label, _)| label.len()).max().unwrap_or(0);
    let mut table = format!("campanile load {title}\n");
    for (label, value) in rows {
        writeln!(table, "  {label:width$}  {value}").expect("a String takes everything");
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shortfall_makes_a_report_not_ok_and_is_in_the_table() {
        let mut report = Report { scenario: "idle", ..Report::default() };
        report.must(true, || unreachable!("it holds"));
        assert!(report.ok);
        report.must(false, || "3 of 4 joined".into());
        report.must(true, || unreachable!("it holds"));
        assert!(!report.ok);
        assert!(report.table().contains("3 of 4 joined"));
    }

    #[test]
    fn latencies_are_told_in_microseconds() {
        let mut histogram = super::super::tally::new_histogram();
        (1..=1000u64).for_each(|us| histogram.record(us * 1000).expect("within bounds"));
        let latency = Latency::of(&histogram);
        assert_eq!(latency.count, 1000);
        assert!((latency.p50_us - 500.0).abs() < 2.0, "{latency}");
        assert!((latency.p99_us - 990.0).abs() < 2.0, "{latency}");
        assert_eq!(Latency::of(&super::super::tally::new_histogram()).count, 0);
    }
}
