//! Publishes of other services, which need nothing but Redis: `PUBLISH campanile:publish
//! '{"room_id":"r","payload":…}'`.
//!
//! Every node receives such a message and delivers it to its own members, so no node forwards it.
//!
//! Invariant: the payload stays byte for byte, and was checked to be JSON.

use crate::ids::{ConflateKey, TopicName, is_name};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;

/// A publish of another service.
#[derive(Debug)]
pub(super) struct Ingest<'a> {
    /// The topic it goes to.
    pub topic: TopicName,
    /// The payload, byte for byte.
    pub payload: &'a [u8],
    /// Its conflate key, if it has one.
    pub conflate_key: Option<ConflateKey>,
}

/// What is wrong with one.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum IngestError {
    /// It is longer than a message may be.
    TooLong {
        /// Its bytes.
        bytes: usize,
        /// Bytes of a message, at most.
        bytes_max: usize,
    },
    /// It is not the JSON that is expected.
    Json(String),
    /// The payload is nested deeper than this.
    TooDeep(usize),
    /// It has no target, or several.
    Target,
    /// The name of its room or user is not possible.
    Name,
    /// Its conflate key is not possible.
    ConflateKey,
}

impl fmt::Display for IngestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            IngestError::TooLong { bytes, bytes_max } => {
                write!(f, "{bytes} bytes; at most {bytes_max} are allowed")
            }
            IngestError::Json(error) => f.write_str(error),
            IngestError::TooDeep(depth_max) => {
                write!(f, "the payload is nested deeper than {depth_max}")
            }
            IngestError::Target => {
                f.write_str("wants one of room_id, target_user_id and \"broadcast\":true")
            }
            IngestError::Name => f.write_str("a name has 1 to 255 bytes"),
            IngestError::ConflateKey => f.write_str("a conflate_key has 1 to 128 bytes"),
        }
    }
}

#[derive(Deserialize)]
struct IngestJson<'a> {
    #[serde(borrow)]
    room_id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    target_user_id: Option<Cow<'a, str>>,
    broadcast: Option<bool>,
    #[serde(borrow)]
    conflate_key: Option<Cow<'a, str>>,
    #[serde(borrow)]
    payload: &'a RawValue,
}

/// Parses one of at most `bytes_max` bytes, whose payload is nested at most `depth_max` deep.
pub(super) fn read(
    json: &[u8],
    bytes_max: usize,
    depth_max: usize,
) -> Result<Ingest<'_>, IngestError> {
    if json.len() > bytes_max {
        return Err(IngestError::TooLong { bytes: json.len(), bytes_max });
    }
    let json_fields: IngestJson<'_> =
        serde_json::from_slice(json).map_err(|error| IngestError::Json(error.to_string()))?;
    let payload = json_fields.payload.get().as_bytes();
    if depth(payload) > depth_max {
        return Err(IngestError::TooDeep(depth_max));
    }
    let topic = match (json_fields.room_id, json_fields.target_user_id, json_fields.broadcast) {
        (Some(room), None, None | Some(false)) => TopicName::room(checked(&room)?),
        (None, Some(user), None | Some(false)) => TopicName::user(checked(&user)?),
        (None, None, Some(true)) => TopicName::all(),
        _ => return Err(IngestError::Target),
    };
    let conflate_key = match json_fields.conflate_key {
        None => None,
        Some(key) => Some(ConflateKey::of(&key).ok_or(IngestError::ConflateKey)?),
    };
    Ok(Ingest { topic, payload, conflate_key })
}

fn checked(name: &str) -> Result<&str, IngestError> {
    is_name(name).then_some(name).ok_or(IngestError::Name)
}

/// Nesting depth of valid JSON.
fn depth(json: &[u8]) -> usize {
    let (mut depth, mut deepest) = (0usize, 0);
    let mut bytes = json.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'{' | b'[' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' => depth -= 1,
            b'"' => skip_string(&mut bytes),
            _ => {}
        }
    }
    deepest
}

fn skip_string(bytes: &mut std::slice::Iter<'_, u8>) {
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => return,
            b'\\' => _ = bytes.next(),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_usual(json: &str) -> Result<(String, String), IngestError> {
        let ingest = read(json.as_bytes(), 1000, 3)?;
        let payload = String::from_utf8(ingest.payload.to_vec()).unwrap();
        Ok((ingest.topic.as_str().to_owned(), payload))
    }

    #[test]
    fn each_target_is_understood_and_the_payload_passed_on_byte_for_byte() {
        for (json, topic, payload) in [
            (r#"{"room_id":"r","payload":1.0}"#, "r:r", "1.0"),
            (r#"{"payload": {"a" : [1e400]} ,"target_user_id":"u"}"#, "u:u", r#"{"a" : [1e400]}"#),
            (r#"{"broadcast":true,"payload":null,"more":[]}"#, "*", "null"),
            (r#"{"room_id":"\u00e9","broadcast":false,"payload":"\"[[[["}"#, "r:é", r#""\"[[[[""#),
        ] {
            assert_eq!(read_usual(json), Ok((topic.into(), payload.into())), "{json}");
        }
    }

    #[test]
    fn a_conflate_key_is_understood() {
        let json = br#"{"room_id":"r","payload":1,"conflate_key":"\u0041APL"}"#;
        assert_eq!(read(json, 1000, 3).unwrap().conflate_key, ConflateKey::of("AAPL"));
    }

    #[test]
    fn anything_but_one_target_and_one_payload_is_refused() {
        for json in [
            "",
            "nonsense",
            "[]",
            r#"{"room_id":"r"}"#,
            r#"{"payload":1}"#,
            r#"{"broadcast":false,"payload":1}"#,
            r#"{"room_id":"r","target_user_id":"u","payload":1}"#,
            r#"{"room_id":"r","broadcast":true,"payload":1}"#,
            r#"{"room_id":"","payload":1}"#,
            r#"{"room_id":"a\nb","payload":1}"#,
            r#"{"room_id":7,"payload":1}"#,
            r#"{"room_id":"r","room_id":"s","payload":1}"#,
            r#"{"room_id":"r","payload":[[[[1]]]]}"#,
            r#"{"room_id":"r","payload":{1}}"#,
            r#"{"room_id":"r","payload":1,"conflate_key":""}"#,
            r#"{"room_id":"r","payload":1,"conflate_key":3}"#,
            r#"{"room_id":"r","payload":1} x"#,
        ] {
            assert!(read_usual(json).is_err(), "{json}");
        }
        assert!(read(b"{\"room_id\":\"r\",\"payload\":\"\xFF\"}", 1000, 3).is_err());
        assert!(
            read_usual(&format!(r#"{{"room_id":"r","payload":"{}"}}"#, "x".repeat(1000))).is_err()
        );
        let deep = format!(r#"{{"room_id":"r","payload":{}}}"#, "[".repeat(900));
        assert!(read_usual(&deep).is_err());
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_parsed_or_refused(
            text in "[\\[\\]{}\":,a-z0-9_\\\\ ]{0,80}",
            any in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200),
        ) {
            let _ = read(&any, 100, 3).is_ok();
            let json = format!(r#"{{"room_id":"r","payload":{text}}}"#);
            let _ = read(json.as_bytes(), 1000, 3).is_ok();
        }
    }
}
