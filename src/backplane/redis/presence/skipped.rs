//! Values in the keys of presence that no node can have written: each is skipped, counted, and one
//! of them is shown in the log.

use crate::backplane::redis::unreadable::UnreadableValue;
use redis::Value;

/// What one read has skipped.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Skipped {
    /// Number of values.
    pub count: u64,
    /// The first of them.
    pub first: Option<UnreadableValue>,
}

impl Skipped {
    /// Skips a value. `what` it is, for people.
    pub(super) fn note(&mut self, what: &'static str, found: &[u8]) {
        self.count += 1;
        if self.first.is_none() {
            // What is shown is short, and the value may have megabytes.
            let shown = &found[..found.len().min(4096)];
            self.first = Some(UnreadableValue::new(what, &Value::BulkString(shown.to_vec())));
        }
    }

    /// Returns what is read from a value, or skips it.
    pub(super) fn or_skip<T>(
        &mut self,
        read: Option<T>,
        what: &'static str,
        found: &[u8],
    ) -> Option<T> {
        if read.is_none() {
            self.note(what, found);
        }
        read
    }
}
