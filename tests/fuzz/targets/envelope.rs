//! What nodes send each other: the envelope of a message, the order to close a user's connections, and
//! the record of the versions that a node reads. Whatever is read can be written, and is then the same.

use campanile::backplane::envelope::{EnvelopeError, read, write};
use campanile::backplane::message::Message;
use campanile::backplane::wire::{READS, WireRange, common};
use campanile::backplane::{disconnect, envelope};
use campanile::ids::{Position, TopicName, is_name};
use campanile::protocol::Event;

const TOPIC: &str = "r:x";
/// The flag of additions. Those that are not known are not written again.
const ADDITIONS: u8 = 16;

/// First byte: which of the three; the rest as it comes.
pub fn check(input: &[u8]) {
    match input {
        [kind, bytes @ ..] if kind % 4 == 1 => check_disconnect(bytes),
        [kind, bytes @ ..] if kind % 4 == 2 => check_range(bytes),
        [_, bytes @ ..] => check_envelope(bytes),
        [] => {}
    }
}

fn check_envelope(bytes: &[u8]) {
    let topic = TopicName::room("x");
    let event = envelope::stored_event(&topic, bytes, Position { epoch: 1, offset: 1 });
    match read(TOPIC, bytes) {
        Ok(message) => {
            check_message(&message, bytes);
            assert!(matches!(event, Event::Message { payload, .. } if payload == message.payload));
        }
        Err(error) => {
            assert!(matches!(event, Event::Lost { count: 1, .. }), "{event:?}");
            // A node of another version has written it only if it begins as an envelope.
            let is_begun = bytes.first().is_some_and(|version| (1..=31).contains(version));
            assert!(error != EnvelopeError::UnknownVersion || is_begun, "{bytes:?}");
        }
    }
}

fn check_message(message: &Message<'_>, bytes: &[u8]) {
    assert!(message.from.is_none_or(is_name), "{:?} published it", message.from);
    assert!(message.key.is_none_or(|key| !key.is_empty()), "an empty key");
    assert!(!message.payload.is_empty() && bytes.ends_with(message.payload));
    assert!(std::str::from_utf8(message.payload).is_ok(), "a frame that is not UTF-8");
    for version in READS.min..=READS.max {
        let mut written = Vec::new();
        write(message, version, &mut written);
        let info = message.info.filter(|_| version > 1);
        assert_eq!(read(TOPIC, &written), Ok(Message { info, ..*message }), "version {version}");
        assert_eq!(written[0], if info.is_some() { version } else { 1 }, "without need");
        if bytes[0] == 1 && bytes[1] & ADDITIONS == 0 {
            assert_eq!(written, bytes, "there is one way to write a message");
        }
    }
}

fn check_disconnect(bytes: &[u8]) {
    let Some(close) = disconnect::read(bytes) else { return };
    assert!(disconnect::is_disconnect(bytes));
    assert!(read(TOPIC, bytes).is_err(), "an order that is a message, too");
    assert_eq!(disconnect::write(&close), bytes, "there is one way to write an order");
    assert!(close.reason.len() <= 123, "a reason of {} bytes", close.reason.len());
}

fn check_range(bytes: &[u8]) {
    let Some(range) = WireRange::read(bytes) else { return };
    assert!(1 <= range.min && range.min <= range.max);
    assert_eq!(WireRange::read(range.to_string().as_bytes()), Some(range));
    let version = common([range], READS, READS.max);
    assert!((READS.min..=READS.max).contains(&version), "version {version} is written");
}
