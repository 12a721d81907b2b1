//! The one classification of a reply: what it means for the item that asked.

use crate::backplane::redis::error_reply::ErrorReply;
use redis::{ServerError, Value};
use std::time::Duration;

/// Pause before an item is sent again whose script the server did not know just after it was
/// loaded: something else removes it.
const SCRIPT_LOST_PAUSE: Duration = Duration::from_millis(100);

/// What a reply means for an item.
#[derive(Debug)]
pub(crate) enum ItemReply {
    /// It was executed. The user reads the value.
    Ended(Value),
    /// The server refuses it for the moment, and has not executed it.
    Again(Refusal),
    /// Its key was not written by this server ([`crate::backplane::redis::unreadable`]).
    Unreadable(ServerError),
    /// It was refused, and will be if it is sent again: no memory, no permission, or an error that
    /// this version does not know.
    Permanent(ServerError),
}

/// A transient refusal.
#[derive(Debug)]
pub(crate) struct Refusal {
    /// Its meaning.
    pub kind: ErrorReply,
    /// The server's words.
    pub error: ServerError,
    /// How long to wait before the item is sent again.
    pub pause: Duration,
}

impl ItemReply {
    /// Classifies one reply.
    pub(crate) fn of(reply: Value) -> ItemReply {
        let Value::ServerError(error) = reply else { return ItemReply::Ended(reply) };
        match ErrorReply::from_words(error.code(), error.details()) {
            ErrorReply::Unreadable => ItemReply::Unreadable(error),
            ErrorReply::Permanent => ItemReply::Permanent(error),
            kind @ (ErrorReply::ScriptMissing
            | ErrorReply::Moved
            | ErrorReply::Demoted
            | ErrorReply::NotYet) => {
                ItemReply::Again(Refusal { kind, error, pause: kind.retry_after() })
            }
        }
    }

    /// Classifies the replies to several commands of one item: the first error counts, because it is
    /// the reason for an aborted transaction; without one, the last reply.
    pub(crate) fn of_all(replies: impl Iterator<Item = Value>) -> ItemReply {
        let mut last = Value::Nil;
        for reply in replies {
            if !matches!(last, Value::ServerError(_)) {
                last = reply;
            }
        }
        ItemReply::of(last)
    }

    /// The server did not know a script although the batch has loaded it.
    pub(crate) fn note_script_lost(&mut self) {
        if let ItemReply::Again(refusal) = self {
            refusal.pause = refusal.pause.max(SCRIPT_LOST_PAUSE);
        }
    }

    /// Whether the server did not know the script.
    pub(crate) fn is_script_missing(&self) -> bool {
        matches!(self, ItemReply::Again(refusal) if refusal.kind == ErrorReply::ScriptMissing)
    }
}
