//! Parses the replies to a read of a history.
//!
//! If the position is not as this server writes it, nothing is read ([`UnreadableValue`]): an
//! invented position would be sent to clients, and counted from. Messages and earlier epochs that
//! are not as written are skipped, and their messages are reported as lost.
//!
//! Invariant: each message has `1 <= offset <= top`.

use crate::backplane::redis::history::lineage::Lineage;
use crate::backplane::redis::unreadable::{UnreadableValue, number, number_of};
use crate::ids::Position;
use redis::Value;

/// The fields that are read from the hash, in this order.
pub(super) const FIELDS: [&str; 5] = ["e", "s", "l", "a", "g"];

/// A topic's history as it was read.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct FetchedHistory {
    pub(super) epoch: u64,
    pub(super) top: u64,
    pub(super) lineage: Lineage,
    pub(super) acked: Option<u64>,
    /// The generation of the server that stored the last message.
    pub(super) generation: Vec<u8>,
    pub(super) entries: Vec<(u64, Vec<u8>)>,
}

impl FetchedHistory {
    /// Drops everything after an offset.
    pub(super) fn leave_behind(&mut self, known: u64) {
        self.entries.retain(|(offset, _)| *offset <= known);
        self.top = self.top.min(known);
    }

    /// Whether the history has reached a position.
    pub(super) fn has(&self, at: Position) -> bool {
        at.epoch < self.epoch || (at.epoch == self.epoch && at.offset <= self.top)
    }
}

/// Parses the reply to `EXEC`. `None`: there is no history yet.
pub(super) fn parse_history(answer: &Value) -> Result<Option<FetchedHistory>, UnreadableValue> {
    let Value::Array(parts) = answer else {
        return Err(UnreadableValue::new("the answer", answer));
    };
    let [meta, entries] = &parts[..] else {
        return Err(UnreadableValue::new("the answer", answer));
    };
    let Some(read) = parse_meta(meta)? else { return Ok(None) };
    let entries = entries_of(entries, read.top)?;
    Ok(Some(FetchedHistory { entries, ..read }))
}

/// Parses the fields [`FIELDS`] as `HMGET` and `lua/create.lua` return them.
pub(super) fn parse_meta(meta: &Value) -> Result<Option<FetchedHistory>, UnreadableValue> {
    let fields = match meta {
        Value::Array(fields) => fields.as_slice(),
        _ => &[],
    };
    let [e, s, l, a, g] = fields else { return Err(UnreadableValue::new("the hash", meta)) };
    if *e == Value::Nil {
        return Ok(None);
    }
    let epoch = number_of(e).ok_or_else(|| UnreadableValue::new("e", e))?;
    let top = number_of(s).ok_or_else(|| UnreadableValue::new("s", s))?;
    let Position { epoch, offset: top } =
        Position::checked(epoch, top).ok_or_else(|| UnreadableValue::new("e", e))?;
    let lineage = match l {
        Value::Nil => Lineage::default(),
        Value::BulkString(text) => Lineage::parse(text, Position { epoch, offset: top }),
        _ => return Err(UnreadableValue::new("l", l)),
    };
    let acked = match number_of(a) {
        None if *a == Value::Nil => None,
        Some(acked) if acked <= top => Some(acked),
        _ => return Err(UnreadableValue::new("a", a)),
    };
    let generation = match g {
        Value::BulkString(text) => text.clone(),
        _ => Vec::new(),
    };
    Ok(Some(FetchedHistory { epoch, top, lineage, acked, generation, entries: Vec::new() }))
}

/// Parses the reply to `XREVRANGE`; the result is oldest first.
fn entries_of(answer: &Value, top: u64) -> Result<Vec<(u64, Vec<u8>)>, UnreadableValue> {
    let wrong = || UnreadableValue::new("the stream", answer);
    let entries = match answer {
        Value::Array(entries) => entries,
        Value::Nil => return Ok(Vec::new()),
        _ => return Err(wrong()),
    };
    let mut read = Vec::with_capacity(entries.len());
    for entry in entries.iter().rev() {
        let Value::Array(parts) = entry else { return Err(wrong()) };
        let [Value::BulkString(id), body] = &parts[..] else { return Err(wrong()) };
        match offset_of(id) {
            Some(offset) if offset <= top => read.push((offset, body_of(body))),
            // No entry may be beyond the last message: the next one could not be stored.
            _ if is_behind(id, top) => {
                return Err(UnreadableValue::new("the last message", &parts[0]));
            }
            _ => {}
        }
    }
    Ok(read)
}

/// `<offset>-0`
fn offset_of(id: &[u8]) -> Option<u64> {
    number(id.strip_suffix(b"-0")?).filter(|offset| *offset > 0)
}

/// Whether an id is higher than all of a history that ends at `top`. One whose first number is
/// malformed is.
fn is_behind(id: &[u8], top: u64) -> bool {
    let first = id.split(|byte| *byte == b'-').next().and_then(number);
    first.is_none_or(|first| first > top)
}

/// `["d", message]`. Anything else is no message, and is reported as one that is lost.
fn body_of(fields: &Value) -> Vec<u8> {
    match fields {
        Value::Array(fields) => match &fields[..] {
            [_, Value::BulkString(body)] => body.clone(),
            _ => Vec::new(),
        },
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backplane::redis::hostile;
    use proptest::prelude::*;

    fn text(text: &str) -> Value {
        Value::BulkString(text.into())
    }

    fn meta(fields: [&str; 5]) -> Value {
        let field = |field: &&str| if field.is_empty() { Value::Nil } else { text(field) };
        Value::Array(fields.iter().map(field).collect())
    }

    fn entry(id: &str, body: &str) -> Value {
        Value::Array(vec![text(id), Value::Array(vec![text("d"), text(body)])])
    }

    fn answer(fields: [&str; 5], entries: Vec<Value>) -> Value {
        Value::Array(vec![meta(fields), Value::Array(entries)])
    }

    #[test]
    fn a_history_is_read_from_its_oldest_message_on() {
        let fields = ["7", "12", "5:9 3:4 ", "11", "g"];
        let entries = vec![entry("12-0", "b"), entry("11-0", "a")];
        let read = parse_history(&answer(fields, entries)).unwrap();
        let entries = vec![(11, b"a".to_vec()), (12, b"b".to_vec())];
        let (lineage, generation) = ([(5, 9), (3, 4)].into(), b"g".to_vec());
        let (epoch, top, acked) = (7, 12, Some(11));
        assert_eq!(read, Some(FetchedHistory { epoch, top, lineage, acked, generation, entries }));
    }

    #[test]
    fn where_there_is_no_history_nothing_is_read() {
        assert_eq!(parse_history(&answer([""; 5], vec![])), Ok(None));
        assert_eq!(
            parse_history(&answer(["", "18446744073709551615", "x", "y", "z"], vec![])),
            Ok(None)
        );
    }

    #[test]
    fn a_malformed_message_is_skipped_or_lost_in_its_place() {
        let odd = Value::Array(vec![text("11-0"), Value::Array(vec![text("d")])]);
        let entries = vec![entry("12-0", "c"), odd, entry("10-1", "b"), entry("9-0", "a")];
        let read = parse_history(&answer(["7", "12", "", "", ""], entries)).unwrap().unwrap();
        assert_eq!(read.entries, [(9, b"a".to_vec()), (11, vec![]), (12, b"c".to_vec())]);
    }

    #[test]
    fn a_history_with_a_malformed_position_is_not_read() {
        let what = |fields: [&str; 5], entries| {
            parse_history(&answer(fields, entries)).map_err(|why| why.to_string())
        };
        for wrong in hostile::TEXTS {
            let wrong = String::from_utf8_lossy(wrong).into_owned();
            // An empty text stands for no field here.
            if wrong.is_empty() || number(wrong.as_bytes()).is_some() {
                continue;
            }
            let refused = |field: &str| Err(format!("{field} is {wrong:?}"));
            assert_eq!(what([&wrong, "12", "", "", ""], vec![]), refused("e"));
            assert_eq!(what(["7", &wrong, "", "", ""], vec![]), refused("s"));
            assert_eq!(what(["7", "12", "", &wrong, ""], vec![]), refused("a"));
        }
        assert_eq!(what(["0", "12", "", "", ""], vec![]), Err("e is \"0\"".into()));
        assert_eq!(what(["7", "", "", "", ""], vec![]), Err("s is nothing".into()));
        assert_eq!(what(["7", "12", "", "13", ""], vec![]), Err("a is \"13\"".into()));
        for id in ["13-0", "12-1-0", "18446744073709551615-0", "18446744073709551615-1", "x"] {
            let refused = what(["7", "12", "", "", ""], vec![entry(id, "b")]);
            match id {
                "12-1-0" => assert!(refused.is_ok(), "{refused:?}"),
                _ => assert_eq!(refused, Err(format!("the last message is {id:?}"))),
            }
        }
        let error = redis::parse_redis_value(b"-WRONGTYPE Operation\r\n").unwrap();
        let of = |meta: Value, stream: Value| parse_history(&Value::Array(vec![meta, stream]));
        assert!(of(error.clone(), Value::Array(vec![])).is_err(), "no hash");
        assert!(of(meta(["7", "12", "", "", ""]), error).is_err(), "no stream");
        assert!(of(meta(["7", "12", "", "", ""]), Value::Nil).is_ok());
    }

    fn fields() -> impl Strategy<Value = Value> {
        let field = prop_oneof![Just(Value::Nil), hostile::text().prop_map(Value::BulkString)];
        prop::collection::vec(field, 5).prop_map(Value::Array)
    }

    proptest! {
        #[test]
        fn any_reply_is_parsed_or_refused(answer in hostile::value()) {
            let _ = (parse_history(&answer), parse_meta(&answer), entries_of(&answer, 7));
        }

        #[test]
        fn what_is_read_can_be_counted_from(
            meta in fields(),
            ids in prop::collection::vec(hostile::edge(), 0..5),
        ) {
            let entries = ids.iter().map(|id| entry(&format!("{id}-0"), "b")).collect();
            let answer = Value::Array(vec![meta, Value::Array(entries)]);
            if let Ok(Some(read)) = parse_history(&answer) {
                prop_assert!(Position::checked(read.epoch, read.top).is_some());
                prop_assert!(read.acked <= Some(read.top));
                prop_assert!(read.entries.iter().all(|(at, _)| (1..=read.top).contains(at)));
                let is_possible = |(of, end): (u64, u64)| of < read.epoch && end <= read.top;
                prop_assert!(read.lineage.entries().all(is_possible));
            }
        }
    }
}
