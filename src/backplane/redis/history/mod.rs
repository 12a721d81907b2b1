//! Histories in Redis, as far as this node follows them.
//!
//! For each topic with a history and members here there is a copy of its end (a
//! [`crate::backplane::history::log::MessageLog`]), up to the offset that was delivered here. A
//! message with the next offset is delivered; a known one is dropped; a later one shows a gap,
//! which is read from the stream before anything else is delivered. On each new link the position
//! of every topic is read: messages missed at the end of a topic are found in no other way.
//!
//! Recovery is served from the copy. What the copy lacks is read once for all requests: a topic has
//! one read in flight.
//!
//! A server that has lost the end of a history (a replica that was promoted too early, a restart
//! without its data) gets it back from any node that has it, before new messages are stored.
//!
//! Each followed history is in one of five states, and `state` draws the ways between them. Keys may
//! vanish while the system runs; then the next publish begins another history, and what arrived of
//! it is delivered after `lost`.
//!
//! Where a gap cannot be closed, because the stream is shorter or the history is another one, all
//! members receive `lost`. If the history has forked before the last delivered message, they also
//! receive what replaced it.
//!
//! The acknowledged offset of a user's topic is read for each new connection: the user may have
//! acknowledged on another node.
//!
//! A stored history that this server cannot have written ([`crate::backplane::redis::unreadable`])
//! is not guessed at: joins and requests are refused until it is corrected; all other topics work.
//!
//! Invariant: after a client has received a position, every later offset is delivered in order,
//! once; or `lost` comes between. No client receives a position that was not read from the server.

mod answer;
mod ask;
mod batch;
mod deadlines;
mod fetch;
mod follower;
mod held;
mod histories;
mod lineage;
mod quiet;
mod repair;
mod reply;
mod request;
mod rotation;
mod state;
mod sync;
#[cfg(test)]
mod tests;

pub(super) use histories::Histories;
