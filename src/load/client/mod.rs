//! The clients: connections, their half of HTTP and WebSocket, and what they send.
//!
//! `connections` is the top and uses all others; `plan` is what a connection does. Nothing here uses
//! threads.

pub(super) mod burst;
pub(super) mod connections;
pub(super) mod frame;
pub(super) mod handshake;
pub(super) mod plan;
mod random;
pub(super) mod reply_rules;
pub(super) mod rooms;
pub(super) mod stamp;
pub(super) mod template;
pub(super) mod token;
