//! One shard: connections, topics and what flows between them, as a state machine.
//!
//! It names no runtime, no socket, no clock and no thread. What happened comes in by `handle_*`,
//! what must be done goes out by `take_batch` and `poll_*`, and time is an argument, in milliseconds
//! since any fixed moment. So the whole behaviour of a shard, and of several with a backplane
//! between them, runs in a test on virtual time (`tests/sim`).
//!
//! After any `handle_*` the caller drains, in this order:
//! 1. [`Shard::poll_token_check`], each answered with [`Shard::handle_token`]; then
//!    [`Shard::poll_uplink`] into the window, until it is empty or the window is full
//!    ([`Shard::return_uplink`]); while it is full the caller reads from no client.
//! 2. [`Shard::take_batch`] until [`Shard::has_sends`] is false, others taking turns in between;
//!    while [`Shard::frames_waiting`] is at its limit the caller takes from the backplane no more,
//!    and reads from no client.
//! 3. [`Shard::poll_closed`]: sockets whose time has come.
//! 4. [`Shard::poll_resumed`]: connections to be read again, which go behind the others that wait.
//!
//! | file | what |
//! |---|---|
//! | `conn.rs` | one connection; why connections end |
//! | `hub.rs` | topics and members, both ways |
//! | `commands.rs` | what clients ask for: the only match on `Command` |
//! | `recovery.rs` | rooms with a history: joins that wait for their position |
//! | `presence.rs` | rooms with presence: who joined and who left |
//! | `user_queue.rs` | user queues: messages that a user has not acknowledged |
//! | `questions.rs` | questions with long answers, one at a time |
//! | `hooked.rs` | joins and publishes that a hook is asked about |
//! | `memory.rs` | what is held in memory, and what happens when it is too much |
//! | `pause.rs` | connections that are not read for a while |
//! | `rates.rs` | how much one connection may ask for in a second |
//! | `room_limits.rs` | what the namespace of a room limits |
//! | `acks.rs` | members who acknowledge what they receive |
//! | `delivery/` | replies and rounds, joined into batches (`batch.rs`) |
//! | `lifecycle.rs` | open, close, sweep, drain |
//! | `disconnect.rs` | connections closed because an operator disconnects their user |
//! | `inspect.rs` | answers to operators' questions |
//! | `rejection.rs` | what a client receives that is not admitted |
//! | `recheck.rs` | settings that change while connections are here |
//! | `expiry.rs` | connections whose token expires |
//! | `tokens/` | tokens that come after a connection is open |
//! | `revoked.rs` | connections whose token is revoked |
//! | `named_peers.rs` | addresses of clients, where a proxy has named them |
//! | `session/` | one connection as a value: taken out here, put in there |
//! | `slow_consumer/outbox/` | frames that a slow peer has not taken, and which of them are dropped |
//! | `slow_consumer/` | from a write that was not taken whole to an outbox |
//!
//! Invariant: everything is owned by [`Shard`] and reached by `&mut`; nothing here is shared.

mod acks;
mod command_error;
mod commands;
pub mod conn;
#[cfg(test)]
mod crowd;
pub mod delivery;
mod disconnect;
mod expiry;
mod hooked;
mod hub;
mod inspect;
mod lifecycle;
mod losses;
mod memory;
mod pause;
mod presence;
mod questions;
mod rates;
mod recheck;
mod recovery;
mod rejection;
mod revoked;
mod room_limits;
mod room_token;
mod session;
mod slow_consumer;
mod state;
mod tokens;
mod user_queue;
mod window;

pub use memory::Holder;
pub use pause::ReadOutcome;
pub use recheck::{AdmissionChange, SettingsChange};
pub use rejection::{write_overloaded, write_rejection};
pub use session::{NotNow, Session};
pub use state::lifecycle::{ClosedSocket, Opening};
pub use state::token_checks::TokenCheck;
pub use state::{Shard, ShardConfig};
pub use tokens::TokenVerdict;
