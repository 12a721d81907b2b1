//! What can be measured: one file for each scenario, and the arguments of all.

pub mod args;
pub mod fanout;
pub mod idle;
pub mod ingest;
mod phases;
pub mod plan;
pub mod storm;
