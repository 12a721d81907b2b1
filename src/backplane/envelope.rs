//! The envelope: the form of a message in a Redis channel, in a stream, and in a stored history.
//!
//! ```text
//! version │ flags │ [node u64, shard u16, conn u32 + u32] │ [length u8, user] │ [conflate key u64]
//!         │ [length u8, key] │ [length u16, additions] │ …
//! ```
//!
//! Numbers are little-endian. Flag 1: the publisher is excepted (the first bracket). Flag 2: a user
//! published it (the second). Flag 4: it has a conflate key (the third). Flag 8: it is stored and
//! has an idempotency key (the fourth), which a repair of the history restores, too. Flag 16, from
//! version 2 on: it has additions (the fifth), which a node that does not know them skips: each is a
//! number, u8, a length, u16, and so many bytes. Addition 1 is what the publisher's token says about
//! its user, as JSON. A message without additions is written in the first version. The topic is not
//! in it: it is the channel's name. The payload is the rest.
//!
//! Nodes of two versions live in one system ([`crate::backplane::wire`]). What a later version adds
//! is an addition, and every node from version 2 on can read the message. What cannot be an addition
//! is a new version, and a node that does not read it announces the message as lost.
//!
//! Invariant: [`read`] returns for any bytes, and nothing is read in part.

use crate::backplane::message::Message;
use crate::backplane::wire::{READS, WRITES_MAX};
use crate::ids::{ConflateKey, ConnId, NodeId, Position, ShardId, TopicName, is_name};
use crate::link::Origin;
use crate::protocol::{Event, INFO_BYTES_MAX};
use bytes::Bytes;
use std::ops::RangeInclusive;

/// The first byte of an envelope of a version that this node does not read: 3 to 31. The other
/// values begin nothing that a node writes, or something else, as a digit or `P` do.
const UNKNOWN_VERSIONS: RangeInclusive<u8> = READS.max + 1..=31;
const READS_MAX: u8 = READS.max;
/// The first version with additions.
const ADDITIONS_SINCE: u8 = 2;
const EXCEPT: u8 = 1;
const FROM: u8 = 2;
const CONFLATE: u8 = 4;
const KEY: u8 = 8;
const ADDITIONS: u8 = 16;

/// The number of the addition that is a user's `info`.
const INFO: u8 = 1;

/// The flags of a version.
const fn flags_of(version: u8) -> u8 {
    let first = EXCEPT | FROM | CONFLATE | KEY;
    if version < ADDITIONS_SINCE { first } else { first | ADDITIONS }
}

/// Why bytes are not an envelope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EnvelopeError {
    /// A node has written it, in a version that this one does not read, or with an unknown flag: its
    /// message is lost here.
    UnknownVersion,
    /// No node has written it: no version, truncated, not UTF-8, or with an invalid name or key.
    Malformed,
}

/// Appends the envelope of a message in a version that all nodes read. What that version cannot say is
/// left out: nobody receives the `info` of a message while a node lives that reads no additions.
pub fn write(message: &Message<'_>, version: u8, out: &mut Vec<u8>) {
    debug_assert!((READS.min..=READS.max).contains(&version));
    let from = message.from.unwrap_or("");
    let info = message.info.filter(|_| version >= ADDITIONS_SINCE);
    let version = if info.is_some() { version } else { READS.min };
    let flags = message.except.map_or(0, |_| EXCEPT)
        | message.from.map_or(0, |_| FROM)
        | message.conflate_key.map_or(0, |_| CONFLATE)
        | message.key.map_or(0, |_| KEY)
        | info.map_or(0, |_| ADDITIONS);
    let key = message.key.unwrap_or("");
    let info_bytes = info.map_or(0, |info| 5 + info.len());
    out.reserve(2 + 18 + 1 + 8 + 1 + from.len() + key.len() + info_bytes + message.payload.len());
    out.extend_from_slice(&[version, flags]);
    if let Some(origin) = message.except {
        out.extend_from_slice(&origin.node.0.to_le_bytes());
        out.extend_from_slice(&origin.shard.0.to_le_bytes());
        out.extend_from_slice(&origin.conn.to_bits().to_le_bytes());
    }
    if message.from.is_some() {
        out.push(u8::try_from(from.len()).expect("names have at most 255 bytes"));
        out.extend_from_slice(from.as_bytes());
    }
    if let Some(key) = message.conflate_key {
        out.extend_from_slice(&key.to_bits().to_le_bytes());
    }
    if message.key.is_some() {
        out.push(u8::try_from(key.len()).expect("keys have at most 128 bytes"));
        out.extend_from_slice(key.as_bytes());
    }
    if let Some(info) = info {
        let length = u16::try_from(info.len()).expect("info has at most 512 bytes");
        out.extend_from_slice(&(3 + length).to_le_bytes());
        out.push(INFO);
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(info.as_bytes());
    }
    out.extend_from_slice(message.payload);
}

/// The envelope of a message, as it is stored in this process.
pub fn to_bytes(message: &Message<'_>) -> Bytes {
    let mut envelope = Vec::new();
    write(message, WRITES_MAX, &mut envelope);
    Bytes::from(envelope)
}

/// Reads an envelope that arrived on the channel of `topic`.
pub fn read<'a>(topic: &'a str, bytes: &'a [u8]) -> Result<Message<'a>, EnvelopeError> {
    match bytes {
        [version @ 1..=READS_MAX, flags, ..] if flags & !flags_of(*version) != 0 => {
            Err(EnvelopeError::UnknownVersion)
        }
        [1..=READS_MAX, flags, rest @ ..] => {
            read_rest(topic, *flags, rest).ok_or(EnvelopeError::Malformed)
        }
        [version, ..] if UNKNOWN_VERSIONS.contains(version) => Err(EnvelopeError::UnknownVersion),
        _ => Err(EnvelopeError::Malformed),
    }
}

/// The event of a stored message. An envelope that this version cannot read counts as one lost
/// message.
pub fn stored_event<'a>(topic: &'a TopicName, body: &'a [u8], at: Position) -> Event<'a> {
    match read(topic.as_str(), body) {
        Ok(message) => message.event(topic.kind(), Some(at)),
        Err(_) => Event::Lost { topic: topic.kind(), count: 1 },
    }
}

fn read_rest<'a>(topic: &'a str, flags: u8, mut rest: &'a [u8]) -> Option<Message<'a>> {
    let mut except = None;
    if flags & EXCEPT != 0 {
        let node = NodeId(u64::from_le_bytes(take(&mut rest)?));
        let shard = ShardId(u16::from_le_bytes(take(&mut rest)?));
        let conn = ConnId::from_bits(u64::from_le_bytes(take(&mut rest)?));
        except = Some(Origin { node, shard, conn });
    }
    let mut from = None;
    if flags & FROM != 0 {
        let [length] = take(&mut rest)?;
        let (user, after) = rest.split_at_checked(usize::from(length))?;
        from = Some(std::str::from_utf8(user).ok().filter(|user| is_name(user))?);
        rest = after;
    }
    let mut conflate_key = None;
    if flags & CONFLATE != 0 {
        conflate_key = Some(ConflateKey::from_bits(u64::from_le_bytes(take(&mut rest)?))?);
    }
    let mut key = None;
    if flags & KEY != 0 {
        let [length] = take(&mut rest)?;
        let (text, after) = rest.split_at_checked(usize::from(length))?;
        key = Some(std::str::from_utf8(text).ok().filter(|key| !key.is_empty())?);
        rest = after;
    }
    let mut info = None;
    if flags & ADDITIONS != 0 {
        let length = u16::from_le_bytes(take(&mut rest)?);
        let (additions, after) = rest.split_at_checked(usize::from(length))?;
        info = read_info(additions)?;
        rest = after;
    }
    // A frame that is not UTF-8 would make every client close (RFC 6455 §8.1). The JSON was checked
    // by the node that published it.
    simdutf8::basic::from_utf8(rest).ok().filter(|payload| !payload.is_empty())?;
    Some(Message { topic, from, info, payload: rest, except, conflate_key, key })
}

/// The `info` among additions; others are skipped. The outer `None`: these are no additions.
fn read_info(mut bytes: &[u8]) -> Option<Option<&str>> {
    let mut info = None;
    while let [number, low, high, rest @ ..] = bytes {
        let length = usize::from(u16::from_le_bytes([*low, *high]));
        let (addition, after) = rest.split_at_checked(length)?;
        if *number == INFO {
            let text = std::str::from_utf8(addition).ok();
            info = Some(text.filter(|text| is_info(text))?);
        }
        bytes = after;
    }
    bytes.is_empty().then_some(info)
}

/// The JSON was checked by the node whose client has shown the token.
fn is_info(text: &str) -> bool {
    (1..=INFO_BYTES_MAX).contains(&text.len())
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

    fn plain(payload: &[u8]) -> Message<'_> {
        let (topic, from, info, except) = ("r:x", None, None, None);
        Message { topic, from, info, payload, except, conflate_key: None, key: None }
    }

    fn origin(node: u64, shard: u16, conn: u64) -> Origin {
        Origin { node: NodeId(node), shard: ShardId(shard), conn: ConnId::from_bits(conn) }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            from in proptest::option::of("[a-zé]{1,100}"),
            payload in "[^\\x00]{1,300}",
            except in proptest::option::of((any::<u64>(), any::<u16>(), any::<u64>())),
            key in proptest::option::of(1..u64::MAX),
            retry in proptest::option::of("[a-zé]{1,60}"),
            info in proptest::option::of("[a-zé]{1,250}"),
        ) {
            let conflate_key = key.and_then(ConflateKey::from_bits);
            let except = except.map(|(node, shard, conn)| origin(node, shard, conn));
            let from = from.as_deref();
            let payload = payload.as_bytes();
            let key = retry.as_deref();
            let info = info.as_deref();
            let message = Message { topic: "r:x", from, info, payload, except, conflate_key, key };
            for version in READS.min..=READS.max {
                let mut bytes = Vec::new();
                write(&message, version, &mut bytes);
                let info = info.filter(|_| version >= ADDITIONS_SINCE);
                prop_assert_eq!(read("r:x", &bytes), Ok(Message { info, ..message }));
                prop_assert_eq!(bytes[0], if info.is_some() { version } else { 1 });
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..64),
            flags in 0u8..32,
            version in READS.min..=READS.max,
        ) {
            let _ = read("r:x", &bytes);
            // With a valid beginning, too: most random bytes fail at the version.
            bytes.splice(0..0, [version, flags]);
            let _ = read("r:x", &bytes);
        }

        #[test]
        fn a_message_with_additions_is_read_without_them(
            from in proptest::option::of("[a-zé]{1,100}"),
            additions in proptest::collection::vec(
                (INFO + 1..=255, proptest::collection::vec(any::<u8>(), 0..40)), 0..5),
        ) {
            let from = from.as_deref();
            let message = Message { from, ..plain(b"[1]") };
            let mut bytes = Vec::new();
            write(&Message { payload: b"", ..message }, 2, &mut bytes);
            (bytes[0], bytes[1]) = (2, bytes[1] | ADDITIONS);
            let additions: Vec<u8> = additions.iter().flat_map(|(number, text)| {
                let length = (text.len() as u16).to_le_bytes();
                [&[*number][..], &length, text].concat()
            }).collect();
            bytes.extend_from_slice(&(additions.len() as u16).to_le_bytes());
            bytes.extend_from_slice(&additions);
            bytes.extend_from_slice(b"[1]");
            prop_assert_eq!(read("r:x", &bytes), Ok(message));
            // A length too many, and the payload is cut.
            let at = bytes.len() - 3 - additions.len() - 2;
            bytes[at] = bytes[at].wrapping_add(1);
            prop_assert_ne!(read("r:x", &bytes), Ok(message));
        }
    }

    #[test]
    fn an_envelope_truncated_before_its_payload_is_refused() {
        let message = Message {
            topic: "r:x",
            from: Some("ann"),
            info: Some("{}"),
            payload: b"1",
            except: Some(origin(1, 2, 3)),
            conflate_key: ConflateKey::of("AAPL"),
            key: Some("retry"),
        };
        let mut whole = Vec::new();
        write(&message, WRITES_MAX, &mut whole);
        for bytes in 2..whole.len() {
            assert_eq!(
                read("r:x", &whole[..bytes]),
                Err(EnvelopeError::Malformed),
                "{bytes} bytes"
            );
        }
        for (bytes, what) in
            [(&[][..], "nothing"), (b"hello", "text"), (&[0, 0, b'1'], "version 0")]
        {
            assert_eq!(read("r:x", bytes), Err(EnvelopeError::Malformed), "{what}");
        }
        for (bytes, what) in [
            (&[READS.max + 1, 0, b'1'][..], "a version of the future"),
            (&[31, 0xFF], "the last of them"),
            (&[1, 16, b'1'], "additions in the first version"),
            (&[2, 32, b'1'], "a flag of the future"),
        ] {
            assert_eq!(read("r:x", bytes), Err(EnvelopeError::UnknownVersion), "{what}");
        }
        assert_eq!(read("r:x", &[1, 0, 0xFF]), Err(EnvelopeError::Malformed), "not UTF-8");
        assert_eq!(
            read("r:x", &[1, 2, 0, b'1']),
            Err(EnvelopeError::Malformed),
            "a user without name"
        );
        let info = |info: &[u8]| {
            let length = info.len() as u16;
            let (all, length) = ((length + 3).to_le_bytes(), length.to_le_bytes());
            [&[2, ADDITIONS][..], &all, &[INFO], &length, info, b"1"].concat()
        };
        assert!(read("r:x", &info(b"{}")).is_ok_and(|message| message.info == Some("{}")));
        for (bytes, what) in
            [(&b""[..], "empty"), (b"\"\xFF\"", "not UTF-8"), (&[b'1'; 513], "long")]
        {
            assert_eq!(read("r:x", &info(bytes)), Err(EnvelopeError::Malformed), "{what}");
        }
        let zero = [1, CONFLATE, 0, 0, 0, 0, 0, 0, 0, 0, b'1'];
        assert_eq!(read("r:x", &zero), Err(EnvelopeError::Malformed), "no key");
    }
}
