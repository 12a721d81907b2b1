//! Health of the servers: the canary, the server's own numbers, and the snapshot for `/v1/stats`
//! and `/metrics`.

pub(super) mod canary;
pub(super) mod info;
pub(super) mod monitor;
pub(super) mod snapshot;
pub(super) mod totals;
