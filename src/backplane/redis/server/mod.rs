//! One Redis server with its share of the topics.
//!
//! What follows from what is decided by [`life`], a state machine without sockets; [`supervisor`]
//! carries it out and reports what happened. There is one way down, whatever failed: all
//! connections are dropped, and nothing is repaired in place. The reconnecting wrappers of the
//! redis crate are not used, because they give up, or lose subscriptions silently.
//!
//! During an outage, messages that other nodes publish may be missed. Topics with a history
//! recover them ([`crate::backplane::redis::history`]); members of the others receive `lost`
//! ([`outage_notice`]).
//!
//! The server's address and topics are decided by [`crate::backplane::redis::topology`]; a server
//! only reports redirections.
//!
//! A server of a new generation may lack the last messages, or all. [`window_reports`] has the
//! protocol in which the nodes put them back before anything new is stored.
//!
//! Invariant: up means that everything wanted is subscribed on this link, and that a message went
//! through both of its connections within the canary's timeout.

pub(super) mod life;
mod live_link;
mod numbers;
mod outage_notice;
pub(super) mod supervisor;
mod topics;
mod window_reports;
