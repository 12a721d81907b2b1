//! What a run found: one structure for machines, one table for people.
//!
//! Invariant: a run that did not reach its purpose says so in `ok`, and why in `shortfalls`.

use super::latency::LatencySummary;
use serde::Serialize;
use std::collections::BTreeMap;

/// Everything a run found. Times are in the unit that their name ends with.
#[derive(Clone, Debug, Default, Serialize)]
pub struct LoadReport {
    /// `idle`, `fanout`, `talk` or `storm`.
    pub scenario: &'static str,
    /// Whether the run reached its purpose.
    pub ok: bool,
    /// Why not.
    pub shortfalls: Vec<String>,
    /// The first thing that went wrong, in the server's or the kernel's words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_failure: Option<String>,
    /// Error frames of the server.
    pub errors: u64,
    /// Getting in.
    pub connect: ConnectReport,
    /// The server's memory, where its process is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryReport>,
    /// One message to everybody.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub broadcast: Option<BroadcastReport>,
    /// Holding them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hold: Option<HoldReport>,
    /// Joined connections lost while they were held.
    pub lost_connections: u64,
    /// Messages to rooms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fanout: Option<FanoutReport>,
    /// Messages to nobody.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ingest: Option<IngestReport>,
    /// Everybody at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storm: Option<StormReport>,
}

/// Getting in.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ConnectReport {
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
pub struct ProcessMemory {
    /// Resident: VmRSS.
    pub rss: u64,
    /// The anonymous part of it: heap and stacks, without the program's own pages.
    pub anon: u64,
}

/// The server's memory before the first and after the last connection, in bytes.
#[derive(Clone, Debug, Serialize)]
pub struct MemoryReport {
    /// Before.
    pub before: ProcessMemory,
    /// After everything else.
    pub after: ProcessMemory,
    /// Growth of RSS by connection.
    pub rss_per_conn: f64,
    /// Growth of its anonymous part by connection.
    pub anon_per_conn: f64,
    /// What the machine lost by connection: kernel, server and generator together.
    pub machine_per_conn: f64,
}

/// One message to everybody.
#[derive(Clone, Debug, Serialize)]
pub struct BroadcastReport {
    /// Connections that should hear it.
    pub expected: u64,
    /// Connections that heard it.
    pub received: u64,
    /// How late.
    pub latency: LatencySummary,
}

/// Doing nothing with many connections.
#[derive(Clone, Debug, Serialize)]
pub struct HoldReport {
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
pub struct FanoutReport {
    /// Members of each room.
    pub members: u32,
    /// Rooms.
    pub rooms: u32,
    /// Rooms that each member is in.
    pub rooms_per_member: u32,
    /// Further members of each room that read nothing.
    pub non_reading: u32,
    /// How many of those the server has ended, over all rooms.
    pub non_reading_closed: u64,
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
    pub latency: LatencySummary,
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
    pub out_of_order: u64,
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
pub struct IngestReport {
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
pub struct StormReport {
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
    pub bystanders_before: LatencySummary,
    /// The bystanders' latency from the cut until all were back.
    pub bystanders_during: LatencySummary,
    /// Copies that bystanders never got.
    pub bystanders_lost: u64,
}

impl LoadReport {
    /// Notes a shortfall if there is one.
    pub fn require(&mut self, holds: bool, otherwise: impl FnOnce() -> String) {
        if !holds {
            self.shortfalls.push(otherwise());
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
