//! Messages of a history in one encoding: what a join brings back, and what a page of it holds.
//!
//! A run is written once and shared by all who ask for the same one. Whether it follows its reply as
//! frames of its own or stands inside it is for the dialect to say.

use bytes::Bytes;

/// Messages of one topic, in the order in which they were asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Run {
    /// As [`RunStyle`] says: finished frames, or elements with their separators between.
    pub bytes: Bytes,
    /// Messages in `bytes`; 0 where `bytes` is empty.
    pub messages: u64,
}

/// What a run is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunKind {
    /// What a member missed: a join with `since`, and a user's queue.
    Missed,
    /// A page of a history.
    Page,
}

/// What a run looks like in a dialect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunStyle {
    /// Finished frames, which follow the reply.
    Frames,
    /// Events without framing, with this between them. They stand inside the reply.
    Elements {
        /// What separates two of them.
        separator: u8,
    },
}
