//! What a run counts and reports.

pub mod latency;
pub mod progress;
mod results;
mod table;
pub mod tally;

pub use latency::Latency;
pub use results::{Broadcast, Connect, Fanout, Hold, Memory, MemoryReport, Report, Storm, Talk};
