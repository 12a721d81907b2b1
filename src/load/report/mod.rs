//! What a run counts, and the report it makes of the counts.
//!
//! `tally` and `latency` are filled by workers, `results` by scenarios; `table` and JSON print it.

pub(super) mod latency;
pub(super) mod progress;
mod results;
mod table;
pub(super) mod tally;

pub use latency::LatencySummary;
pub use results::{
    BroadcastReport, ConnectReport, FanoutReport, HoldReport, IngestReport, LoadReport,
    MemoryReport, ProcessMemory, StormReport,
};
