//! One machine for batches in flight to Redis.
//!
//! A *user* (publishes of a lane, acknowledgements, reads of histories) has a queue of its own,
//! takes some of it out, writes one batch of commands and does not wait for the replies. The
//! machine knows what is in flight, limits it, takes replies in order, classifies the reply of each
//! item, has refused items sent again, loads scripts, and gives everything back when the connection
//! is lost. The life of an item:
//!
//! ```text
//!    ┌──────────────────── take_due ───────────────────────┐
//!    ▼                                                     │
//! waiting ── send ──► in flight ── poll_answered ──┬──► refused ◄── put_back ──┐
//! (queue of the           │                        └──► ended                  │
//!  user)                  │                                 ▲                  │
//!                         └─ link lost ── lose_link ────────┴── verdict of ────┘
//!                                                               the user
//! ```
//!
//! A user's turn is always the same:
//!
//! ```text
//! for item in pipeline.take_due(now)      { put it in front of the queue }
//! while pipeline.may_send()               { write an OutgoingBatch, pipeline.send(…) }
//! while let Some(batch) = pipeline.poll_answered(cx)? {
//!     for (item, reply) in batch          { match reply: ended, or pipeline.send_again(…) }
//! }
//! ```
//!
//! Refused items are sent again in one of two orders ([`RetryOrder`]). Scripts are loaded by the
//! first batch after a server did not know one ([`script_loads`]), so nothing waits for that.
//!
//! An error of [`BatchPipeline::poll_answered`] means that the connection cannot be used any more:
//! it broke, or the server is no longer a master. The user reports it, and calls
//! [`BatchPipeline::lose_link`], now or when its server goes down.
//!
//! Its users are publishes, their verification after a failover, acknowledgements, reads, creations
//! and repairs of histories, and presence: writes, rosters, what a dead node left, entries without
//! users. What asks one question at a time, and needs neither order nor a retry of its items, does
//! without ([`send`] and [`poll_reply`]):
//!
//! | what | at once | without a good reply |
//! |---|---|---|
//! | canary | 1 per link | the link is given up after `redis.canary_timeout_ms` |
//! | monitor | 1 per server | the numbers are those of the next interval |
//! | records of nodes | 1 per node | the next turn asks again; liveness has its own deadlines |
//! | claim of a dead node | 1 per node | another node, or the next turn, claims it |
//! | audit of presence | 1 per server | the next turn counts other rooms |
//! | check of broadcasts | 1 per node | a stage of its own state machine, which repeats it |
//! | reading of revocations | 1 per node | it is read again after 250 ms |
//! | orders to revoke | 64 per node | the caller is answered that the outcome is unknown |
//! | orders to disconnect | 64 per node | the caller is answered that the outcome is unknown |
//!
//! There is no clock, socket or runtime in the machine: time and the connection ([`BatchSender`]) are
//! arguments, so the tests deliver each reply by hand.
//!
//! Invariant: an item is in one place: with its user, in flight, or refused. It leaves each of them
//! once.

mod batch;
mod connection;
#[cfg(test)]
mod fake;
mod item_reply;
mod machine;
mod reply;
mod script_loads;
#[cfg(test)]
mod tests;

pub(super) use batch::{AnsweredBatch, OutgoingBatch};
pub(super) use connection::{BatchSender, CommandConnection, CommandContext};
#[cfg(test)]
pub(super) use fake::FakeConnection;
pub(super) use item_reply::{ItemReply, Refusal};
pub(super) use machine::{BatchPipeline, RetryOrder};
pub(super) use reply::{PendingReply, execute, execute_on, poll_reply, send};
#[cfg(test)]
pub(super) use script_loads::ScriptLoads;
pub(super) use script_loads::{ScriptOwner, ScriptSet};
