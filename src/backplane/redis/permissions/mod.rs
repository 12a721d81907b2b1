//! What the user of a Redis server must be allowed to do, and the proof that it is.
//!
//! [`table`] lists every command with what it is needed for; `docs/redis.md` has the same list. When
//! a node connects, [`probe`] does all that its configuration needs, in one pipeline: `ACL DRYRUN`
//! exists only since Redis 7, and a managed server may refuse more than its ACL says. What is
//! refused is reported together, as the `ACL SETUSER` line that allows it.
//!
//! Invariant: a probe leaves nothing behind. What it stores is under the prefix, and is deleted in
//! the transaction that stores it, or expires within a millisecond.

pub(super) mod probe;
pub mod table;
