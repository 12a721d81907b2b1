//! How a server and this node's way to it are: the canary, what the server says of itself, and what
//! of both is shown.

pub mod canary;
pub mod info;
pub mod monitor;
pub mod snapshot;
pub mod totals;
