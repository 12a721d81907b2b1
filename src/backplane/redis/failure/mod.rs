//! Why there is no connection to a Redis server: typed by who has to act, with what to do.
//!
//! [`SetupError`]: it cannot work until an operator changes something, and the text says what.
//! [`Outage`]: the server or the network is at fault, and attempts go on until it is over. Both have
//! a [`FailureReason`], which is the name of the failure in `/readyz`, in the log and in `/metrics`.
//!
//! Invariant: no text has a password in it.

pub(super) mod classify;
mod link_error;
mod reason;

pub use link_error::{LinkError, Outage, SetupError};
pub use reason::FailureReason;
