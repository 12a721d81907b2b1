//! The results of a run, as JSON prints them.
//!
//! Invariant: `ok` is false if and only if `shortfalls` has an entry.

use super::latency::LatencySummary;
use serde::Serialize;
use std::collections::BTreeMap;

/// The result of a run. A scenario fills its own part; a part that was not measured is absent.
#[derive(Clone, Debug, Default, Serialize)]
pub struct LoadReport {
    /// `idle`, `fanout`, `ingest` or `storm`.
    pub scenario: &'static str,
    /// Whether the run reached its purpose.
    pub ok: bool,
    /// What the run did not reach, in words.
    pub shortfalls: Vec<String>,
    /// The first failure, with the server's or the kernel's text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_failure: Option<String>,
    /// Error frames received.
    pub errors: u64,
    /// Connecting and joining.
    pub connect: ConnectReport,
    /// The server's memory, if `--pid` was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryReport>,
    /// `idle --broadcast`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub broadcast: Option<BroadcastReport>,
    /// `idle --hold-s`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hold: Option<HoldReport>,
    /// Joined connections that the server or the network ended.
    pub lost_connections: u64,
    /// The result of `fanout`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fanout: Option<FanoutReport>,
    /// The result of `ingest`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ingest: Option<IngestReport>,
    /// The result of `storm`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storm: Option<StormReport>,
}

/// Connecting and joining.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ConnectReport {
    /// Connections wanted.
    pub conns: u64,
    /// Connections that joined.
    pub joined: u64,
    /// Connections whose last attempt failed, by reason.
    pub failed: BTreeMap<&'static str, u64>,
    /// Attempts that failed and were retried, by reason.
    pub retried: BTreeMap<&'static str, u64>,
    /// From the first connect to the last join, in seconds.
    pub seconds: f64,
    /// Joins a second.
    pub per_second: f64,
    /// Worker threads of the generator.
    pub threads: usize,
}

/// Memory of a process, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ProcessMemory {
    /// Resident memory: VmRSS.
    pub rss: u64,
    /// Its anonymous part, RssAnon: heap and stacks, without the program's own pages.
    pub anon: u64,
}

/// The server's memory before the first and after the last connection, in bytes.
#[derive(Clone, Debug, Serialize)]
pub struct MemoryReport {
    /// Before the first connect.
    pub before: ProcessMemory,
    /// At the end of the run.
    pub after: ProcessMemory,
    /// Growth of RSS for each connection.
    pub rss_per_conn: f64,
    /// Growth of the anonymous part for each connection.
    pub anon_per_conn: f64,
    /// Loss of MemAvailable for each connection: kernel, server and generator together.
    pub machine_per_conn: f64,
}

/// One message to all connections.
#[derive(Clone, Debug, Serialize)]
pub struct BroadcastReport {
    /// Connections that must receive it.
    pub expected: u64,
    /// Connections that received it.
    pub received: u64,
    /// From the publish to each delivery.
    pub latency: LatencySummary,
}

/// Connections that do nothing but answer pings.
#[derive(Clone, Debug, Serialize)]
pub struct HoldReport {
    /// Length of the measured window.
    pub seconds: f64,
    /// Pings received and answered in it.
    pub pings: u64,
    /// Cores that the server used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_cores: Option<f64>,
    /// The server's CPU time for each ping and pong, if there were any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_cpu_us_per_ping: Option<f64>,
    /// Cores that the generator used.
    pub generator_cores: f64,
}

/// Publishes to rooms. The window is measured; `expected` and what follows count the whole run.
#[derive(Clone, Debug, Default, Serialize)]
pub struct FanoutReport {
    /// Members of each room.
    pub members: u32,
    /// Rooms of the run, over all connections.
    pub rooms: u32,
    /// Rooms that each member is in.
    pub rooms_per_member: u32,
    /// Additional members of each room that read nothing.
    pub non_reading: u32,
    /// Non-reading connections that the server closed, in all rooms.
    pub non_reading_closed: u64,
    /// Publishers of each room.
    pub publishers: u32,
    /// Length of a payload.
    pub payload_bytes: u32,
    /// Messages outstanding in each room, with `--window`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<u32>,
    /// Messages a second in all rooms, with `--rate`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<f64>,
    /// Length of the measured window.
    pub seconds: f64,
    /// Messages published in the window.
    pub messages: u64,
    /// Messages a second in the window.
    pub messages_per_second: f64,
    /// Deliveries received in the window.
    pub deliveries: u64,
    /// Deliveries a second in the window.
    pub deliveries_per_second: f64,
    /// Mean length of a delivered frame, header included.
    pub bytes_per_delivery: f64,
    /// From the time a message was due to each of its deliveries.
    pub latency: LatencySummary,
    /// The server's CPU time for each delivery.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_cpu_us_per_delivery: Option<f64>,
    /// Cores that the server used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_cores: Option<f64>,
    /// Cores that the generator used.
    pub generator_cores: f64,
    /// Deliveries that all messages of the run must cause, warm-up included.
    pub expected: u64,
    /// Deliveries received in the run.
    pub received: u64,
    /// Deliveries that did not come.
    pub lost: u64,
    /// Deliveries that came twice or after a later one (only with one publisher and one room a
    /// member).
    pub out_of_order: u64,
    /// Messages that could not be published.
    pub unsent: u64,
    /// Messages of a window whose last delivery did not come in time.
    pub given_up: u64,
    /// The beginning of the first delivery, as received.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sample: Option<String>,
}

/// Publishes that nobody receives.
#[derive(Clone, Debug, Serialize)]
pub struct IngestReport {
    /// Messages before each question.
    pub burst: u32,
    /// Length of a payload.
    pub payload_bytes: u32,
    /// Length of a write, with `--cut-bytes`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cut_bytes: Option<u32>,
    /// Length of the measured window.
    pub seconds: f64,
    /// Messages in the window, without the questions.
    pub messages: u64,
    /// Messages a second in the window.
    pub messages_per_second: f64,
    /// The server's CPU time for each message; the questions' time is included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_cpu_us_per_message: Option<f64>,
    /// Cores that the server used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_cores: Option<f64>,
    /// Cores that the generator used.
    pub generator_cores: f64,
}

/// All connections cut and connected again.
#[derive(Clone, Debug, Serialize)]
pub struct StormReport {
    /// Connections cut.
    pub cut: u64,
    /// Connections that have joined again.
    pub rejoined: u64,
    /// From the cut to the last join, in seconds.
    pub seconds: f64,
    /// Joins a second.
    pub per_second: f64,
    /// Attempts that failed and were retried, by reason.
    pub retried: BTreeMap<&'static str, u64>,
    /// Latency in the bystanders' room before the cut.
    pub bystanders_before: LatencySummary,
    /// Latency in the bystanders' room from the cut to the last join.
    pub bystanders_during: LatencySummary,
    /// Deliveries that bystanders did not receive.
    pub bystanders_lost: u64,
}

impl LoadReport {
    /// Adds a shortfall if `holds` is false, and sets `ok`.
    pub fn require(&mut self, holds: bool, shortfall: impl FnOnce() -> String) {
        if !holds {
            self.shortfalls.push(shortfall());
        }
        self.ok = self.shortfalls.is_empty();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shortfall_makes_a_report_not_ok_and_is_in_the_table() {
        let mut report = LoadReport { scenario: "idle", ..LoadReport::default() };
        report.require(true, || unreachable!("it holds"));
        assert!(report.ok);
        report.require(false, || "3 of 4 joined".into());
        report.require(true, || unreachable!("it holds"));
        assert!(!report.ok);
        assert!(report.table().contains("3 of 4 joined"));
    }
}
