//! Histories in memory: one topic's messages with their positions ([`log`]), and all of a node that
//! is alone ([`store`], [`lost_queues`]).

pub mod keys;
pub mod log;
pub mod lost_queues;
pub mod owners;
pub mod recent_runs;
pub mod store;
