//! Histories in memory: one topic's messages with their positions ([`log`]), and all of a node that
//! is alone ([`store`], [`lost_queues`]). What clients of a node begin in Redis is counted by
//! [`begun`].

pub mod begun;
pub mod keys;
pub mod log;
pub mod lost_queues;
pub mod owners;
pub mod recent_runs;
pub mod store;
