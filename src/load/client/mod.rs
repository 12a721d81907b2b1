//! One client of the measured server: its connections, its half of the protocols, its messages.

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
