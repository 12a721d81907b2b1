//! What Redis answers when it is asked for a history.
//!
//! Whatever is not as we wrote it is left out: what it stood for is told as lost.

use crate::backplane::redis::scripts::integer;
use redis::Value;

/// What was read of a topic.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Read {
    pub(super) epoch: u64,
    pub(super) top: u64,
    pub(super) chain: Vec<(u64, u64)>,
    pub(super) acked: Option<u64>,
    pub(super) entries: Vec<(u64, Vec<u8>)>,
}

impl Read {
    /// Without what is behind an offset.
    pub(super) fn leave_behind(&mut self, known: u64) {
        self.entries.retain(|(offset, _)| *offset <= known);
        self.top = self.top.min(known);
    }
}

/// The answer to `EXEC`. `None`: there is no history yet.
pub(super) fn read_of(answer: &Value) -> Option<Read> {
    let Value::Array(parts) = answer else { return None };
    let [meta, entries] = &parts[..] else { return None };
    let read = position_of(meta)?;
    let Value::Array(entries) = entries else { return Some(read) };
    let mut entries: Vec<_> = entries.iter().filter_map(entry_of).collect();
    entries.reverse();
    Some(Read { entries, ..read })
}

/// Epoch, last offset and chain, as `HMGET` and `lua/open.lua` answer them.
pub(super) fn position_of(meta: &Value) -> Option<Read> {
    let Value::Array(fields) = meta else { return None };
    let epoch = integer(fields.first()?)?;
    let top = fields.get(1).and_then(integer).unwrap_or(0);
    let chain = match fields.get(2) {
        Some(Value::BulkString(text)) => chain_of(std::str::from_utf8(text).unwrap_or("")),
        _ => Vec::new(),
    };
    let acked = fields.get(3).and_then(integer);
    Some(Read { epoch, top, chain, acked, entries: Vec::new() })
}

/// As [`chain_of`] reads it.
pub(super) fn chain_text(chain: &[(u64, u64)]) -> String {
    let links = chain.iter().map(|(epoch, cut)| format!("{epoch}:{cut} "));
    links.collect()
}

fn chain_of(text: &str) -> Vec<(u64, u64)> {
    let links = text.split_whitespace().filter_map(|link| link.split_once(':'));
    links.filter_map(|(epoch, cut)| Some((epoch.parse().ok()?, cut.parse().ok()?))).collect()
}

/// `["<offset>-0", ["d", message]]`
fn entry_of(entry: &Value) -> Option<(u64, Vec<u8>)> {
    let Value::Array(parts) = entry else { return None };
    let [Value::BulkString(id), Value::Array(fields)] = &parts[..] else { return None };
    let [_, Value::BulkString(body)] = &fields[..] else { return None };
    let offset = std::str::from_utf8(id).ok()?.strip_suffix("-0")?.parse().ok()?;
    Some((offset, body.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(text: &str) -> Value {
        Value::BulkString(text.into())
    }

    fn entry(id: &str, body: &str) -> Value {
        Value::Array(vec![text(id), Value::Array(vec![text("d"), text(body)])])
    }

    #[test]
    fn a_history_is_read_from_its_oldest_message_on() {
        let meta = ["7", "12", "5:9 3:4 ", "11"].map(text).to_vec();
        let entries = vec![entry("12-0", "b"), entry("11-0", "a")];
        let read = read_of(&Value::Array(vec![Value::Array(meta), Value::Array(entries)]));
        let entries = vec![(11, b"a".to_vec()), (12, b"b".to_vec())];
        let chain = vec![(5, 9), (3, 4)];
        assert_eq!(read, Some(Read { epoch: 7, top: 12, chain, acked: Some(11), entries }));
    }

    #[test]
    fn where_there_is_none_nothing_is_read() {
        let meta = Value::Array(vec![Value::Nil, Value::Nil, Value::Nil, Value::Nil]);
        assert_eq!(read_of(&Value::Array(vec![meta, Value::Array(vec![])])), None);
    }

    #[test]
    fn what_is_not_as_we_wrote_it_is_left_out() {
        let meta = ["7", "12", "x 5:9 6 :", "no"].map(text).to_vec();
        let entries = vec![entry("12-1", "b"), entry("x", "b"), text("11-0"), entry("10-0", "c")];
        let read = read_of(&Value::Array(vec![Value::Array(meta), Value::Array(entries)])).unwrap();
        assert_eq!((read.chain, read.acked), (vec![(5, 9)], None));
        assert_eq!(read.entries, [(10, b"c".to_vec())]);
    }

    fn anything() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Nil),
            any::<i64>().prop_map(Value::Int),
            "[0-9:. -]{0,24}".prop_map(|some| text(&some)),
            any::<Vec<u8>>().prop_map(Value::BulkString),
        ];
        leaf.prop_recursive(4, 64, 5, |inner| {
            prop::collection::vec(inner, 0..5).prop_map(Value::Array)
        })
    }

    proptest! {
        #[test]
        fn whatever_is_answered_is_read_or_not(answer in anything()) {
            let _ = (read_of(&answer), position_of(&answer), entry_of(&answer));
        }

        #[test]
        fn a_chain_comes_apart_as_it_was_put_together(chain: Vec<(u64, u64)>) {
            prop_assert_eq!(chain_of(&chain_text(&chain)), chain);
        }
    }
}
