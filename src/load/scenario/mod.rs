//! What can be measured: one file for each scenario.
//!
//! `args` has the flags, `plan` resolves them to the plan of a run, `phases` has the steps that
//! scenarios share.

pub mod args;
pub mod fanout;
pub mod idle;
pub mod ingest;
mod phases;
pub mod plan;
pub mod storm;
#[cfg(test)]
mod tests;
