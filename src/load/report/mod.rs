//! What a run counts and reports.

pub mod latency;
pub mod progress;
mod results;
mod table;
pub mod tally;

pub use latency::LatencySummary;
pub use results::{
    BroadcastReport, ConnectReport, FanoutReport, HoldReport, IngestReport, LoadReport,
    MemoryReport, ProcessMemory, StormReport,
};
