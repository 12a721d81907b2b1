//! Campanile: a WebSocket server whose instances act as one.

pub mod api;
pub mod auth;
pub mod backplane;
pub mod cli;
pub mod config;
pub mod doctor;
pub mod framing;
pub mod ids;
pub mod link;
pub mod load;
pub mod metrics;
pub mod net;
pub mod node;
pub mod plan;
pub mod policy;
pub mod protocol;
pub mod shard;
pub mod slab;
pub mod sys;
pub mod terminal;
pub mod ws;
