//! The connections to one server: `sub` only subscribes, `cmd` does everything else.
//!
//! Two, because Redis treats a connection with subscriptions differently (it cuts a slow one at 32
//! MB of queued messages), and that must not affect publishes. `cmd` is the redis crate's plain
//! multiplexed connection, which never reconnects by itself, so it is known what it lost. `sub` is
//! our own ([`subscriber`]). Where a namespace wants messages on a replica before they are
//! acknowledged there is a third, `replicated`, because `WAIT` blocks the commands behind it.
//!
//! Both read through limits ([`reply_limits`]): `cmd` and every other connection of the crate by
//! [`bounded`], `sub` in its own parser.
//!
//! Invariant: a link that [`link::connect`] returns speaks RESP3 to one master, on all its
//! connections, and its user may do everything that the configuration needs.

mod bounded;
mod buffers;
pub mod client;
mod dial;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub(super) mod generation;
pub mod link;
pub mod reply;
pub mod reply_limits;
mod reply_text;
mod resp;
pub mod subscriber;
pub mod subscriptions;
