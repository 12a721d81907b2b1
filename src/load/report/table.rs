//! The report as a table for a terminal.

use super::results::{
    BroadcastReport, ConnectReport, FanoutReport, HoldReport, IngestReport, LoadReport,
    MemoryReport, StormReport,
};
use std::collections::BTreeMap;
use std::fmt::Write;

type Rows = Vec<(&'static str, String)>;

impl LoadReport {
    /// The report as an aligned table, one value on each line.
    pub fn table(&self) -> String {
        let mut rows = Vec::new();
        self.connect.rows(&mut rows);
        if let Some(broadcast) = &self.broadcast {
            let BroadcastReport { expected, received, latency } = broadcast;
            rows.push(("message to all", format!("{received} of {expected} received it")));
            rows.push(("  latency", latency.to_string()));
        }
        if let Some(hold) = &self.hold {
            hold.rows(&mut rows);
        }
        if let Some(fanout) = &self.fanout {
            fanout.rows(&mut rows);
        }
        if let Some(ingest) = &self.ingest {
            ingest.rows(&mut rows);
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
        if let Some(failure) = &self.first_failure {
            rows.push(("first failure", failure.clone()));
        }
        let verdict = if self.ok { "ok".into() } else { self.shortfalls.join("; ") };
        rows.push(("result", verdict));
        render(self.scenario, &rows)
    }
}

impl ConnectReport {
    fn rows(&self, rows: &mut Rows) {
        let ConnectReport { conns, joined, seconds, per_second, threads, .. } = self;
        rows.push(("connections", format!("{joined} of {conns} joined")));
        rows.push(("  time", format!("{seconds:.2} s, {per_second:.0}/s, {threads} threads")));
        rows.extend(counts("  failed", &self.failed));
        rows.extend(counts("  retried", &self.retried));
    }
}

impl MemoryReport {
    fn rows(&self, rows: &mut Rows) {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let (before, after) = (mib(self.before.rss), mib(self.after.rss));
        rows.push(("server memory", format!("{before:.1} MiB before, {after:.1} MiB after")));
        rows.push((
            "  per connection",
            format!(
                "{:.0} B resident, {:.0} B of it anonymous; {:.0} B of the machine, both ends",
                self.rss_per_conn, self.anon_per_conn, self.machine_per_conn
            ),
        ));
    }
}

impl FanoutReport {
    fn rows(&self, rows: &mut Rows) {
        let mode = match (self.window, self.rate) {
            (Some(window), _) => format!("{window} outstanding a room"),
            (None, rate) => format!("{} messages/s", rate.unwrap_or_default()),
        };
        let FanoutReport { members, rooms, publishers, .. } = self;
        rows.push((
            "rooms",
            format!("{rooms} of {members} members, {publishers} publishing; {mode}"),
        ));
        if self.rooms_per_member > 1 {
            rows.push(("  per member", format!("{} rooms", self.rooms_per_member)));
        }
        if self.non_reading > 0 {
            let FanoutReport { non_reading, non_reading_closed, .. } = self;
            let text =
                format!("{non_reading} more a room; the server closed {non_reading_closed} in all");
            rows.push(("  not reading", text));
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
        let FanoutReport { lost, expected, out_of_order, unsent, given_up, .. } = self;
        rows.push(("lost", format!("{lost} of {expected}")));
        if out_of_order + unsent + given_up > 0 {
            let text = format!("{out_of_order} out of order, {unsent} unsent, {given_up} given up");
            rows.push(("  also", text));
        }
    }
}

impl HoldReport {
    fn rows(&self, rows: &mut Rows) {
        let HoldReport { seconds, pings, generator_cores, .. } = self;
        rows.push(("held for", format!("{seconds:.1} s, {pings} pings")));
        if let Some(cores) = self.server_cores {
            let each = self.server_cpu_us_per_ping;
            let each = each.map(|us| format!(", {us:.2} µs a ping and pong")).unwrap_or_default();
            rows.push(("  server cpu", format!("{cores:.3} cores{each}")));
        }
        rows.push(("  generator cpu", format!("{generator_cores:.3} cores")));
    }
}

impl IngestReport {
    fn rows(&self, rows: &mut Rows) {
        let IngestReport { burst, payload_bytes, messages, seconds, messages_per_second, .. } =
            self;
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

impl StormReport {
    fn rows(&self, rows: &mut Rows) {
        let StormReport { cut, rejoined, seconds, per_second, .. } = self;
        rows.push(("joined again", format!("{rejoined} of {cut}")));
        rows.push(("  time", format!("{seconds:.2} s, {per_second:.0}/s")));
        rows.extend(counts("  retried", &self.retried));
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
