//! HTTP questions to services of the operator.
//!
//! [`client`] asks: one request, one answer, both bounded in bytes and in time.
//!
//! Invariant: nothing here runs on a shard's thread.

pub mod client;
