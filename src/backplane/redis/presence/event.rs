//! A presence event as it travels in a room's channel beside its messages.
//!
//! ```text
//! 'P' │ flags │ [node u64, shard u16, conn u32 + u32] │ length u8, user │ info …
//! ```
//!
//! Flag 1: joined; without it: left. Flag 2: the joining connection is named (the bracket). Numbers
//! are little-endian. The first byte is no version of an envelope.
//!
//! Invariant: [`read`] returns for any bytes.

use crate::backplane::presence::PresenceEvent;
use crate::ids::{ConnId, NodeId, ShardId, is_name};
use crate::link::Origin;
use crate::protocol::INFO_BYTES_MAX;
use serde::de::IgnoredAny;
use std::fmt;

/// The first byte.
const MARK: u8 = b'P';
const JOINED: u8 = 1;
const BY: u8 = 2;

/// The beginning of a leave event; the length of the name and the name follow.
pub(super) const LEFT: [u8; 2] = [MARK, 0];

/// Whether a message of a room's channel is a presence event.
pub(crate) fn is_presence_event(body: &[u8]) -> bool {
    body.first() == Some(&MARK)
}

/// An event as bytes.
pub(super) fn write(event: &PresenceEvent<'_>) -> Vec<u8> {
    let (flags, user, info, by) = match *event {
        PresenceEvent::Joined { user, info, by } => {
            (JOINED | by.map_or(0, |_| BY), user, info.unwrap_or(""), by)
        }
        PresenceEvent::Left { user } => (0, user, "", None),
    };
    let mut out = Vec::with_capacity(21 + user.len() + info.len());
    out.extend_from_slice(&[MARK, flags]);
    if let Some(origin) = by {
        out.extend_from_slice(&origin.node.0.to_le_bytes());
        out.extend_from_slice(&origin.shard.0.to_le_bytes());
        out.extend_from_slice(&origin.conn.to_bits().to_le_bytes());
    }
    out.push(u8::try_from(user.len()).expect("names have at most 255 bytes"));
    out.extend_from_slice(user.as_bytes());
    out.extend_from_slice(info.as_bytes());
    out
}

/// Checks a user's info: JSON within the limit. It goes into frames as it is, and no client could
/// read anything else.
pub(super) fn info(text: &[u8]) -> Option<&str> {
    let is_short = text.len() <= INFO_BYTES_MAX;
    let text = std::str::from_utf8(text).ok().filter(|_| is_short)?;
    serde_json::from_str::<IgnoredAny>(text).ok().map(|_| text)
}

/// Why bytes are no presence event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EventError {
    /// A flag that this version does not know.
    UnknownFlag,
    /// Truncated, or with a name or info that no user can have.
    Malformed,
}

impl fmt::Display for EventError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            EventError::UnknownFlag => "a presence event with an unknown flag",
            EventError::Malformed => "a malformed presence event",
        })
    }
}

/// Reads an event.
pub(super) fn read(body: &[u8]) -> Result<PresenceEvent<'_>, EventError> {
    match body {
        [MARK, flags, ..] if flags & !(JOINED | BY) != 0 => Err(EventError::UnknownFlag),
        [MARK, flags, rest @ ..] => read_rest(*flags, rest).ok_or(EventError::Malformed),
        _ => Err(EventError::Malformed),
    }
}

fn read_rest(flags: u8, mut rest: &[u8]) -> Option<PresenceEvent<'_>> {
    let mut by = None;
    if flags & BY != 0 {
        let node = NodeId(u64::from_le_bytes(take(&mut rest)?));
        let shard = ShardId(u16::from_le_bytes(take(&mut rest)?));
        let conn = ConnId::from_bits(u64::from_le_bytes(take(&mut rest)?));
        by = Some(Origin { node, shard, conn });
    }
    let [length] = take(&mut rest)?;
    let (user, text) = rest.split_at_checked(usize::from(length))?;
    let user = std::str::from_utf8(user).ok().filter(|user| is_name(user))?;
    if flags & JOINED == 0 {
        return text.is_empty().then_some(PresenceEvent::Left { user });
    }
    let info = if text.is_empty() { None } else { Some(self::info(text)?) };
    Some(PresenceEvent::Joined { user, info, by })
}

fn take<const BYTES: usize>(rest: &mut &[u8]) -> Option<[u8; BYTES]> {
    let (taken, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(*taken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(
            user in "[a-zé]{1,100}",
            info in proptest::option::of("[1-9][0-9]{0,300}"),
            by in proptest::option::of((any::<u64>(), any::<u16>(), any::<u64>())),
        ) {
            let by = by.map(|(node, shard, conn)| Origin {
                node: NodeId(node),
                shard: ShardId(shard),
                conn: ConnId::from_bits(conn),
            });
            for event in [
                PresenceEvent::Joined { user: &user, info: info.as_deref(), by },
                PresenceEvent::Left { user: &user },
            ] {
                let bytes = write(&event);
                prop_assert!(is_presence_event(&bytes));
                prop_assert_eq!(read(&bytes), Ok(event));
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..64),
            flags in 0u8..5,
        ) {
            let _ = read(&bytes);
            bytes.splice(0..0, [MARK, flags]);
            let _ = read(&bytes);
        }
    }

    #[test]
    fn truncated_and_unknown_events_are_refused() {
        let event = write(&PresenceEvent::Left { user: "ann" });
        assert_eq!(event, [&LEFT[..], &[3], b"ann"].concat(), "as the script puts it together");
        for bytes in 0..event.len() {
            assert_eq!(read(&event[..bytes]), Err(EventError::Malformed), "{bytes} bytes");
        }
        let [future, malformed] = [EventError::UnknownFlag, EventError::Malformed].map(Err);
        assert_eq!(read(&[MARK, 4, 1, b'a']), future, "a flag of the future");
        assert_eq!(read(&[MARK, 0, 1, b'a', b'1']), malformed, "who left says nothing");
        assert_eq!(read(&[MARK, 1, 1, b'a', 0xFF]), malformed, "not UTF-8");
        for wrong in ["{", "1 2", "nan", "\"", "[1,]", &"[".repeat(300), &"7".repeat(513)] {
            assert_eq!(info(wrong.as_bytes()), None, "{wrong}");
            let event = [&[MARK, 1, 1, b'a'], wrong.as_bytes()].concat();
            assert_eq!(read(&event), malformed, "{wrong}");
        }
        assert_eq!(info(br#"{"a" : 1e999}"#), Some(r#"{"a" : 1e999}"#));
        assert!(!is_presence_event(&[1, 0, b'1']));
    }
}
