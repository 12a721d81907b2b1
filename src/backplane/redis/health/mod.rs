//! Health of the servers: the canary, the server's own numbers, and the snapshot for `/v1/stats`
//! and `/metrics`.

pub mod canary;
pub mod info;
pub mod monitor;
pub mod snapshot;
pub mod totals;
