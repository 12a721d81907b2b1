//! Histories in memory: one topic's messages with their positions ([`log`]), and all of a node that
//! is alone ([`store`]).

pub mod log;
pub mod recent_runs;
pub mod store;
