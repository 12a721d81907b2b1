//! What a run counts and reports.

pub mod progress;
mod results;
pub mod tally;

pub use results::{
    Broadcast, Connect, Fanout, Hold, Latency, Memory, MemoryReport, Report, Storm, Talk,
};
