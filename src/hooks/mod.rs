//! HTTP questions to services of the operator: who may connect, join and publish.
//!
//! [`client`] asks: one request, one answer, both bounded in bytes and in time. [`dispatcher`] is the
//! thread that takes the shards' questions and answers them; it runs where a hook is configured.
//! [`jwks`] reads the keys of an identity provider, on the ops thread.
//! Questions and verdicts cross threads as [`crate::link::hooks`] declares them; `docs/hooks.md` says
//! what a service receives and answers.
//!
//! Invariant: nothing here runs on a shard's thread.

mod answer;
mod cache;
mod circuit;
pub mod client;
pub mod dispatcher;
pub mod jwks;
mod question;
