//! Messages to everybody, of which a node knows whether it has missed any.
//!
//! Rooms without a history cannot know that, so their members receive `lost` after each outage. There
//! are many of those and few messages to everybody: these are numbered in Redis
//! (`lua/broadcast.lua`), and each carries the number of the one before it. After an outage the node
//! reads the last number ([`check`]) and compares it with what it received ([`chain`]); only if one
//! is missing do all connections receive `lost`.
//!
//! A promoted replica may lack the last numbers. Nodes that know them put them back within the time
//! that histories have for the same ([`crate::backplane::redis::scripts::REPAIR_MS`]), and nobody
//! judges before that is over.
//!
//! A node of a version that does not number its messages may take part. After a message without a
//! number the next outage counts as a loss.

pub(super) mod chain;
pub(super) mod check;
pub(super) mod scripts;
