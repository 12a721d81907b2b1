//! How large the replies of a server may be.
//!
//! They follow from what this node is configured to accept. A server, or something that took its
//! place, may send a length of a gigabyte; nothing of a longer string is stored.

use crate::policy::limits::Limits;

/// Bytes of a message beside its payload: position, names, keys.
const BESIDE_PAYLOAD_BYTES: usize = 16 * 1024;
/// The least for one string: sections of `INFO`.
const STRING_BYTES_MIN: usize = 128 * 1024;
/// The least for one reply: all users of a large room.
const REPLY_BYTES_MIN: usize = 64 * 1024 * 1024;
/// Entries that are read of a history beyond its size.
const ENTRIES_BEYOND: usize = 1024;

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplyLimits {
    /// Bytes of one string.
    pub string_bytes_max: usize,
    /// Bytes of all strings of one reply.
    pub reply_bytes_max: usize,
}

impl ReplyLimits {
    /// For a node with these limits, whose longest history has so many messages.
    pub fn of(limits: &Limits, history_size_max: usize) -> ReplyLimits {
        let message = limits.message_bytes_max.saturating_add(BESIDE_PAYLOAD_BYTES);
        let history = history_size_max.saturating_add(ENTRIES_BEYOND).saturating_mul(message);
        ReplyLimits {
            string_bytes_max: message.max(STRING_BYTES_MIN),
            reply_bytes_max: if history_size_max == 0 { 0 } else { history }.max(REPLY_BYTES_MIN),
        }
    }
}

/// For sentinels, and for the map of a Cluster, which is one string of many lines.
impl Default for ReplyLimits {
    fn default() -> ReplyLimits {
        ReplyLimits { string_bytes_max: 4 * 1024 * 1024, reply_bytes_max: 4 * 1024 * 1024 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_configured_always_fits() {
        let usual = ReplyLimits::of(&Limits::PRODUCTION, 0);
        assert_eq!(usual.string_bytes_max, STRING_BYTES_MIN);
        assert_eq!(usual.reply_bytes_max, REPLY_BYTES_MIN);
        let large = Limits { message_bytes_max: 16 << 20, ..Limits::PRODUCTION };
        let large = ReplyLimits::of(&large, 100_000);
        assert!(large.string_bytes_max > 16 << 20);
        assert!(large.reply_bytes_max > 100_000 * (16 << 20));
        let endless = Limits { message_bytes_max: usize::MAX, ..Limits::PRODUCTION };
        assert_eq!(ReplyLimits::of(&endless, usize::MAX).reply_bytes_max, usize::MAX);
    }
}
