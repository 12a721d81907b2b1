//! How far a node has read the revocations in Redis, page by page.
//!
//! What is in Redis may have been written by anybody: an entry that no node can have written is
//! skipped and counted, and a reply of another shape is no page.

use crate::backplane::redis::error_reply::ErrorReply;
use crate::policy::revocations::{MOMENT_MAX_S, Revocation, RevokedSubject};
use redis::Value;
use std::collections::HashSet;

/// Entries of one page.
pub(super) const PAGE: usize = 256;

/// A page, and what comes before it.
#[derive(Debug)]
pub(super) struct ChangePage {
    /// Whether it begins after the entry that was read last. Otherwise it begins with the first one.
    goes_on: bool,
    /// Each with the number of its change.
    pub(super) entries: Vec<(Revocation, u64)>,
    /// The last one that it has, whether or not it could be read.
    last: Option<(u64, String)>,
    is_full: bool,
    /// Entries that no node can have written.
    pub(super) unreadable: u64,
}

/// Why there is no page.
#[derive(Debug)]
pub(super) enum ChangePageError {
    /// The server is about to be another one, or starts: it is asked again.
    NotNow,
    /// It is nothing that a node has written.
    Foreign(String),
}

impl ChangePage {
    /// Reads the reply of `lua/revocations.lua`; or says what it is instead.
    pub(super) fn read(reply: Value) -> Result<ChangePage, ChangePageError> {
        if let Some(refusal) = ErrorReply::of(&reply)
            && !matches!(refusal, ErrorReply::Unreadable | ErrorReply::Permanent)
        {
            return Err(ChangePageError::NotNow);
        }
        let mut values = match reply {
            Value::Array(values) => values.into_iter(),
            Value::ServerError(error) => {
                let details = error.details().unwrap_or_default();
                return Err(ChangePageError::Foreign(format!("{} {details}", error.code())));
            }
            _ => return Err(foreign("a reply of another kind")),
        };
        let goes_on = match values.next() {
            Some(Value::Int(flag)) => flag == 1,
            _ => return Err(foreign("a reply of another kind")),
        };
        let values: Vec<Value> = values.collect();
        let is_full = values.len() >= 3 * PAGE;
        let mut page =
            ChangePage { goes_on, entries: Vec::new(), last: None, is_full, unreadable: 0 };
        for entry in values.chunks(3) {
            let [Value::BulkString(subject), value, number] = entry else {
                return Err(foreign("an entry without a name"));
            };
            let subject = String::from_utf8_lossy(subject).into_owned();
            let number = number_of(number).ok_or_else(|| foreign("an entry without a number"))?;
            match entry_of(&subject, value) {
                Some(order) => page.entries.push((order, number)),
                None => page.unreadable += 1,
            }
            page.last = Some((number, subject));
        }
        Ok(page)
    }
}

fn foreign(what: &str) -> ChangePageError {
    ChangePageError::Foreign(what.to_owned())
}

fn number_of(value: &Value) -> Option<u64> {
    let Value::BulkString(digits) = value else { return None };
    std::str::from_utf8(digits).ok()?.parse().ok()
}

fn entry_of(subject: &str, value: &Value) -> Option<Revocation> {
    let Value::BulkString(value) = value else { return None };
    let subject = RevokedSubject::parse(subject)?;
    let (before, until) = std::str::from_utf8(value).ok()?.split_once(' ')?;
    let moment = |digits: &str| digits.parse().ok().filter(|at: &u64| *at <= MOMENT_MAX_S);
    let (issued_before_s, until_s) = (moment(before)?, moment(until)?);
    Some(Revocation { subject, issued_before_s, until_s })
}

/// How far a node has read.
#[derive(Debug, Default)]
pub(super) struct Reading {
    /// The number and subject of the last entry.
    last: Option<(u64, String)>,
    /// The subjects that were read, while all are read from the first one.
    seen: Option<HashSet<String>>,
}

impl Reading {
    /// Number and subject of the last entry that was read; 0 if none was.
    pub(super) fn last(&self) -> (u64, &str) {
        self.last.as_ref().map_or((0, ""), |(number, subject)| (*number, subject))
    }

    /// Takes a page. Whether it is the last one for now.
    pub(super) fn take(&mut self, page: ChangePage) -> bool {
        if !page.goes_on {
            (self.last, self.seen) = (None, Some(HashSet::new()));
        }
        if let Some(seen) = &mut self.seen {
            seen.extend(page.entries.iter().map(|(order, _)| order.subject.key()));
        }
        if page.last.is_some() {
            self.last = page.last;
        }
        !page.is_full
    }

    /// The subjects in Redis, if all of them were just read.
    pub(super) fn take_seen(&mut self) -> Option<HashSet<String>> {
        self.seen.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backplane::redis::hostile;
    use proptest::prelude::*;

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    fn reply(goes_on: bool, entries: &[(&str, &str, &str)]) -> Value {
        let entries = entries
            .iter()
            .flat_map(|(subject, value, number)| [bulk(subject), bulk(value), bulk(number)]);
        Value::Array([Value::Int(goes_on.into())].into_iter().chain(entries).collect())
    }

    #[test]
    fn entries_are_read_one_after_the_other_and_all_again_when_the_last_one_is_gone() {
        let mut reading = Reading::default();
        let page =
            ChangePage::read(reply(false, &[("u:ann", "5 9", "100"), ("t:x", "0 9", "101")]));
        let page = page.unwrap();
        assert_eq!(page.entries[0].0.subject, RevokedSubject::User("ann".into()));
        assert_eq!((page.entries[0].0.issued_before_s, page.entries[0].0.until_s), (5, 9));
        assert!(reading.take(page));
        assert_eq!(reading.take_seen().map(|seen| seen.len()), Some(2));
        assert_eq!(reading.last(), (101, "t:x"));
        assert!(reading.take(ChangePage::read(reply(true, &[])).unwrap()));
        assert_eq!(reading.last(), (101, "t:x"));
        assert_eq!(reading.take_seen(), None);
        assert!(reading.take(ChangePage::read(reply(true, &[("*", "7 9", "150")])).unwrap()));
        assert_eq!(reading.last(), (150, "*"));
        assert_eq!(reading.take_seen(), None);
        assert!(
            reading.take(ChangePage::read(reply(false, &[])).unwrap()),
            "the keys have vanished"
        );
        assert_eq!(reading.last(), (0, ""));
        assert_eq!(reading.take_seen(), Some(HashSet::new()));
    }

    #[test]
    fn a_full_page_is_followed_by_another() {
        let names: Vec<String> = (0..PAGE).map(|n| format!("u:{n}")).collect();
        let numbers: Vec<String> = (1..=PAGE).map(|n| n.to_string()).collect();
        let entries: Vec<_> = names
            .iter()
            .zip(&numbers)
            .map(|(name, number)| (&name[..], "1 2", &number[..]))
            .collect();
        let mut reading = Reading::default();
        assert!(!reading.take(ChangePage::read(reply(false, &entries)).unwrap()));
        assert!(reading.take(ChangePage::read(reply(true, &[("*", "1 2", "999")])).unwrap()));
        assert_eq!(reading.take_seen().map(|seen| seen.len()), Some(PAGE + 1));
    }

    #[test]
    fn what_no_node_has_written_is_skipped_and_a_reply_of_another_kind_is_none() {
        let strange =
            [("u:ann", "5", "1"), ("x", "5 9", "2"), ("u:", "5 9", "3"), ("*", "-1 9", "4")];
        let page = ChangePage::read(reply(false, &strange)).unwrap();
        assert_eq!((page.entries.len(), page.unreadable), (0, 4));
        assert_eq!(page.last, Some((4, "*".to_owned())), "they are not read again and again");
        for wrong in [Value::Nil, Value::Array(Vec::new()), reply(false, &[("u:a", "1 2", "x")])] {
            assert!(ChangePage::read(wrong).is_err());
        }
    }

    proptest! {
        #[test]
        fn any_values_are_read_or_refused(
            subject in hostile::text(),
            value in hostile::text(),
            number in hostile::text(),
        ) {
            let bulk = |bytes: Vec<u8>| Value::BulkString(bytes);
            let values = vec![Value::Int(1), bulk(subject), bulk(value), bulk(number)];
            if let Ok(page) = ChangePage::read(Value::Array(values)) {
                prop_assert_eq!(page.entries.len() as u64 + page.unreadable, 1);
            }
        }
    }
}
