//! The clients: connections, their half of HTTP and WebSocket, and what they send.
//!
//! `connections` is the top and uses all others; `plan` is what a connection does. Nothing here
//! knows threads.

pub mod burst;
pub mod connections;
pub mod frame;
pub mod handshake;
pub mod plan;
mod random;
pub mod reply_rules;
pub mod rooms;
pub mod stamp;
pub mod template;
pub mod token;
