//! Histories that Redis keeps, as far as this node follows them.
//!
//! For each topic with a history that this node listens for there is a copy of its end (a [`MessageLog`])
//! and the position up to which everything was delivered here. A message that comes with the next
//! offset is delivered; one that is known is dropped; one that comes too early shows a hole, and
//! the hole is read from the stream before anything else is delivered. On every new link the
//! position is read again for every topic: what was missed at the end of a topic shows in no other
//! way.
//!
//! Whoever comes back is answered from the copy. What it does not have is read once, whoever else may
//! ask for it meanwhile: a topic has one read under way.
//!
//! A server that has lost the end of a history (a replica that was promoted too early, a restart
//! without its data) gets it back from whichever node has heard it, before anything new is said
//! there.
//!
//! Where a hole cannot be closed, because the stream is shorter than that or the history is another
//! one by now, everybody in the topic hears `lost`. If the history has only gone on from before what
//! was heard last, they hear what was said instead.
//!
//! Of a user's topic what the user has acknowledged is read anew for each connection that comes: it
//! may have said so on another node.
//!
//! What Redis has of a history and we did not write ([`crate::backplane::redis::unreadable`]) is not made up for:
//! nobody is let into such a topic or told anything of it until it is mended, and all others go on.
//!
//! Invariant: what was delivered of a topic since somebody was told a position has every offset
//! behind it, in order, once; or `lost` stands between.

mod answer;
mod batch;
mod fetch;
mod follower;
mod histories;
mod lineage;
mod repair;
mod reply;
mod request;
#[cfg(test)]
mod tests;

pub use histories::Histories;
