//! The envelope: the form of a message in a Redis channel, in a stream, and in a stored history.
//!
//! ```text
//! version 1 │ flags │ [node u64, shard u16, conn u32 + u32] │ [length u8, user] │ [conflate key u64]
//!           │ [length u8, key] │ …
//! ```
//!
//! Numbers are little-endian. Flag 1: the publisher is excepted (the first bracket). Flag 2: a user
//! published it (the second). Flag 4: it has a conflate key (the third). Flag 8: it is stored and
//! has an idempotency key (the fourth), which a repair of the history restores, too. The topic is
//! not in it: it is the channel's name. The payload is the rest.
//!
//! Invariant: [`read`] returns for any bytes. Nodes of two versions may share a Redis during a
//! deploy, so an unknown version or flag is refused as a whole, never read in part.

use crate::backplane::message::Message;
use crate::ids::{ConflateKey, ConnId, NodeId, Position, ShardId, TopicName, is_name};
use crate::link::Origin;
use crate::protocol::Event;
use bytes::Bytes;

const VERSION: u8 = 1;
const EXCEPT: u8 = 1;
const FROM: u8 = 2;
const CONFLATE: u8 = 4;
const KEY: u8 = 8;

/// Why bytes are not an envelope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EnvelopeError {
    /// An unknown version or flag.
    UnknownVersion,
    /// Version 1, but truncated, not UTF-8, or with an invalid name or key.
    Malformed,
}

/// Appends the envelope of a message.
pub fn write(message: &Message<'_>, out: &mut Vec<u8>) {
    let from = message.from.unwrap_or("");
    let flags = message.except.map_or(0, |_| EXCEPT)
        | message.from.map_or(0, |_| FROM)
        | message.conflate_key.map_or(0, |_| CONFLATE)
        | message.key.map_or(0, |_| KEY);
    let key = message.key.unwrap_or("");
    out.reserve(2 + 18 + 1 + 8 + 1 + from.len() + key.len() + message.payload.len());
    out.extend_from_slice(&[VERSION, flags]);
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
    out.extend_from_slice(message.payload);
}

/// The envelope of a message, as it is stored.
pub fn to_bytes(message: &Message<'_>) -> Bytes {
    let mut envelope = Vec::new();
    write(message, &mut envelope);
    Bytes::from(envelope)
}

/// Reads an envelope that arrived on the channel of `topic`.
pub fn read<'a>(topic: &'a str, bytes: &'a [u8]) -> Result<Message<'a>, EnvelopeError> {
    match bytes {
        [VERSION, flags, rest @ ..] if flags & !(EXCEPT | FROM | CONFLATE | KEY) == 0 => {
            read_rest(topic, *flags, rest).ok_or(EnvelopeError::Malformed)
        }
        _ => Err(EnvelopeError::UnknownVersion),
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
    // A frame that is not UTF-8 would make every client close (RFC 6455 §8.1). The JSON was checked
    // by the node that published it.
    simdutf8::basic::from_utf8(rest).ok().filter(|payload| !payload.is_empty())?;
    Some(Message { topic, from, payload: rest, except, conflate_key, key })
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

    fn written(message: &Message<'_>) -> Vec<u8> {
        let mut bytes = Vec::new();
        write(message, &mut bytes);
        bytes
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
        ) {
            let conflate_key = key.and_then(ConflateKey::from_bits);
            let except = except.map(|(node, shard, conn)| origin(node, shard, conn));
            let from = from.as_deref();
            let payload = payload.as_bytes();
            let key = retry.as_deref();
            let message = Message { topic: "r:x", from, payload, except, conflate_key, key };
            let bytes = written(&message);
            prop_assert_eq!(read("r:x", &bytes), Ok(message));
        }

        #[test]
        fn any_bytes_are_read_or_refused(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..64),
            flags in 0u8..16,
        ) {
            let _ = read("r:x", &bytes);
            // With a valid beginning, too: most random bytes fail at the version.
            bytes.splice(0..0, [VERSION, flags]);
            let _ = read("r:x", &bytes);
        }
    }

    #[test]
    fn an_envelope_truncated_before_its_payload_is_refused() {
        let message = Message {
            topic: "r:x",
            from: Some("ann"),
            payload: b"1",
            except: Some(origin(1, 2, 3)),
            conflate_key: ConflateKey::of("AAPL"),
            key: Some("retry"),
        };
        let whole = written(&message);
        for bytes in 2..whole.len() {
            assert_eq!(
                read("r:x", &whole[..bytes]),
                Err(EnvelopeError::Malformed),
                "{bytes} bytes"
            );
        }
        assert_eq!(read("r:x", &[]), Err(EnvelopeError::UnknownVersion));
        assert_eq!(read("r:x", &[2, 0, b'1']), Err(EnvelopeError::UnknownVersion));
        assert_eq!(
            read("r:x", &[1, 16, b'1']),
            Err(EnvelopeError::UnknownVersion),
            "a flag of the future"
        );
        assert_eq!(read("r:x", &[1, 0, 0xFF]), Err(EnvelopeError::Malformed), "not UTF-8");
        assert_eq!(
            read("r:x", &[1, 2, 0, b'1']),
            Err(EnvelopeError::Malformed),
            "a user without name"
        );
        let zero = [1, CONFLATE, 0, 0, 0, 0, 0, 0, 0, 0, b'1'];
        assert_eq!(read("r:x", &zero), Err(EnvelopeError::Malformed), "no key");
    }
}
