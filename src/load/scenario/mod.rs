//! What can be measured: one file for each scenario.
//!
//! `args` has the flags, `plan` resolves them to the plan of a run, `phases` has the steps that
//! scenarios share.

pub(super) mod args;
pub(super) mod fanout;
pub(super) mod idle;
pub(super) mod ingest;
mod phases;
pub(super) mod plan;
pub(super) mod storm;
#[cfg(test)]
mod tests;
