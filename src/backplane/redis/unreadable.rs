//! Values in Redis that this server cannot have written, detected where they are read.
//!
//! Other programs, operators and faults can write under our prefix. So a number or position from
//! Redis is made only by [`number`] or [`position`], and what they refuse is an
//! [`UnreadableValue`]: the topic is unavailable until an operator has corrected it, and no
//! position in it is invented. The scripts check the same before they write (`lua/number.lua`) and
//! answer `-UNREADABLE`.
//!
//! Invariant: any bytes are accepted or refused, and what is shown of them is short.

use crate::backplane::log_throttle::LogThrottle;
use crate::backplane::redis::names::Names;
use crate::ids::Position;
use redis::Value;
use std::fmt;
use std::time::Instant;

/// Bytes of a value that are shown.
const SHOWN_BYTES_MAX: usize = 48;

/// A value that this server cannot have written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct UnreadableValue {
    /// Which value it is.
    what: &'static str,
    /// What was found, cut to [`SHOWN_BYTES_MAX`].
    found: String,
}

impl UnreadableValue {
    /// Describes the value `what` for people.
    pub(super) fn new(what: &'static str, found: &Value) -> UnreadableValue {
        let found = match found {
            Value::Nil => "nothing".to_owned(),
            Value::Int(number) => number.to_string(),
            Value::BulkString(bytes) => shown(bytes),
            Value::SimpleString(text) => shown(text.as_bytes()),
            Value::ServerError(error) => shown(format!("{error:?}").as_bytes()),
            _ => "something else".to_owned(),
        };
        UnreadableValue { what, found }
    }
}

impl fmt::Display for UnreadableValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {}", self.what, self.found)
    }
}

fn shown(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(SHOWN_BYTES_MAX)]);
    match bytes.len() {
        0..=SHOWN_BYTES_MAX => format!("{text:?}"),
        all => format!("{text:?}… ({all} bytes)"),
    }
}

/// Parses a whole number from 0 to [`Position::NUMBER_MAX`] in canonical digits: no sign, no blank,
/// no leading zero.
pub(super) fn number(text: &[u8]) -> Option<u64> {
    let is_written = matches!(text, [b'0'] | [b'1'..=b'9', ..]) && text.len() <= 16;
    if !is_written || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = text.iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0'));
    (number <= Position::NUMBER_MAX).then_some(number)
}

/// The same from a reply.
pub(super) fn number_of(value: &Value) -> Option<u64> {
    match value {
        Value::Int(number) => u64::try_from(*number).ok().filter(|it| *it <= Position::NUMBER_MAX),
        Value::BulkString(bytes) => number(bytes),
        Value::SimpleString(text) => number(text.as_bytes()),
        _ => None,
    }
}

/// A position from its two numbers.
pub(super) fn position(epoch: &[u8], offset: &[u8]) -> Option<Position> {
    Position::checked(number(epoch)?, number(offset)?)
}

/// Logs which topics are unavailable and how to correct them, rate limited.
#[derive(Default)]
pub(super) struct UnreadableWarnings(LogThrottle);

impl UnreadableWarnings {
    /// Logs that `topic` is unavailable because of `why`.
    pub(super) fn warn(
        &mut self,
        topic: &str,
        why: &dyn fmt::Display,
        names: &Names,
        now: Instant,
    ) {
        let Some(suppressed) = self.0.is_due(now) else { return };
        let keys = names.history_keys(topic);
        let (meta, stream, partition) = (&keys.meta, &keys.stream, &keys.partition);
        tracing::warn!(
            topic,
            %why,
            suppressed,
            "the history of {topic} in Redis is not as this server writes it: it cannot be joined, \
             read or published to; all others can. Correct the value (HGETALL {meta}), or begin a \
             new history: DEL {meta} {stream}, and DEL {partition} if that is no hash. It is read \
             again by itself"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backplane::redis::hostile;
    use proptest::prelude::*;

    #[test]
    fn only_canonical_digits_are_a_number() {
        for good in [0, 1, 9, 10, 1 << 32, Position::NUMBER_MAX] {
            assert_eq!(number(good.to_string().as_bytes()), Some(good));
            assert_eq!(number_of(&Value::Int(good as i64)), Some(good));
        }
        for wrong in hostile::TEXTS {
            let is_good = [&b"0"[..], b"9007199254740991"].contains(wrong);
            assert_eq!(number(wrong).is_some(), is_good, "{:?}", String::from_utf8_lossy(wrong));
        }
        for wrong in [-1, i64::MIN, i64::MAX, 1 << 53] {
            assert_eq!(number_of(&Value::Int(wrong)), None, "{wrong}");
        }
    }

    #[test]
    fn what_is_shown_is_short_and_says_what_it_is() {
        let long = Value::BulkString(vec![b'7'; 100_000]);
        let text = UnreadableValue::new("s", &long).to_string();
        assert!(text.starts_with("s is \"777") && text.ends_with("(100000 bytes)"), "{text}");
        assert!(text.len() < 100, "{text}");
        assert_eq!(UnreadableValue::new("s", &Value::Nil).to_string(), "s is nothing");
    }

    proptest! {
        #[test]
        fn any_value_is_accepted_or_refused(value in hostile::value()) {
            let _ = number_of(&value);
            prop_assert!(UnreadableValue::new("x", &value).to_string().len() < 1000);
        }

        #[test]
        fn a_number_is_written_as_it_was_read(text in hostile::text()) {
            if let Some(number) = number(&text) {
                prop_assert_eq!(number.to_string().into_bytes(), text);
            }
        }

        #[test]
        fn a_position_can_be_counted_from(epoch in hostile::text(), offset in hostile::text()) {
            if let Some(at) = position(&epoch, &offset) {
                prop_assert!(at.epoch > 0 && at.epoch.max(at.offset) <= Position::NUMBER_MAX);
            }
        }
    }
}
