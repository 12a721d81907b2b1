//! What a service answers: 200 with a JSON object, and nothing else.
//!
//! A field that is not known is refused: an answer that was misread must not allow more than was
//! meant.

use crate::auth::grants::{self, RoomsClaim};
use crate::hooks::client::{HttpAnswer, HttpError};
use crate::ids::{is_name, is_user_name};
use crate::link::hooks::{HookAdmission, HookVerdict};
use crate::policy::rights::Rights;
use crate::protocol::INFO_BYTES_MAX;
use hyper::StatusCode;
use hyper::body::Bytes;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use std::fmt;
use std::time::Duration;

/// The longest reason for a client: a close frame has room for 123 bytes.
const REASON_BYTES_MAX: usize = 120;
/// For longer no answer is remembered.
const TTL_S_MAX: u64 = 24 * 60 * 60;

/// What was asked, as far as it decides what may be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AskedAbout {
    /// A client.
    Connect,
    /// A join.
    Join,
    /// A message.
    Publish {
        /// The longest payload that may take the place of its own.
        payload_bytes_max: usize,
    },
}

/// Why a question has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum HookError {
    /// It could not be asked.
    Http(HttpError),
    /// The answer has another status than 200.
    Status(u16),
    /// The answer is not what is documented.
    Malformed(String),
}

impl fmt::Display for HookError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HookError::Http(error) => error.fmt(f),
            HookError::Status(status) => write!(f, "the status is {status} instead of 200"),
            HookError::Malformed(why) => {
                write!(f, "the answer is not what docs/hooks.md says: {why}")
            }
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AnswerText {
    allow: bool,
    reason: Option<String>,
    ttl_s: Option<u64>,
    user: Option<String>,
    info: Option<Box<RawValue>>,
    rights: Option<Vec<String>>,
    rooms: Option<RoomsClaim>,
    send: Option<Vec<String>>,
    #[serde(default)]
    join: Vec<String>,
    expires_in_s: Option<u64>,
    #[serde(default, deserialize_with = "value")]
    payload: Option<Box<RawValue>>,
}

/// A JSON value that is there, `null` included.
fn value<'de, D: Deserializer<'de>>(input: D) -> Result<Option<Box<RawValue>>, D::Error> {
    Box::<RawValue>::deserialize(input).map(Some)
}

/// The verdict, and for how long it holds for the same question.
pub(super) fn read(
    answer: Result<HttpAnswer, HttpError>,
    about: AskedAbout,
) -> Result<(HookVerdict, Option<Duration>), HookError> {
    let answer = answer.map_err(HookError::Http)?;
    if answer.status != StatusCode::OK {
        return Err(HookError::Status(answer.status.as_u16()));
    }
    let malformed = |why: String| HookError::Malformed(why);
    let text: AnswerText =
        serde_json::from_slice(&answer.body).map_err(|error| malformed(error.to_string()))?;
    let ttl_s = text.ttl_s.map(|ttl_s| ttl_s.min(TTL_S_MAX)).filter(|ttl_s| *ttl_s > 0);
    let ttl = ttl_s.map(Duration::from_secs);
    if !text.allow {
        let reason = shown(text.reason.as_deref().unwrap_or("this is not allowed here"));
        return Ok((HookVerdict::Deny { reason }, ttl));
    }
    let replaced = text.payload.as_deref().map(|payload| replaced(payload, about, ttl));
    let replaced = replaced.transpose().map_err(malformed)?;
    let admission = admission(text).map_err(malformed)?;
    if admission == HookAdmission::default() {
        let allowed = HookVerdict::Allow(None);
        return Ok((replaced.map_or(allowed, |payload| HookVerdict::Replace { payload }), ttl));
    }
    if about != AskedAbout::Connect {
        let why = "user, info, rights, rooms, send, join and expires_in_s belong to a connect";
        return Err(malformed(why.to_owned()));
    }
    Ok((HookVerdict::Allow(Some(Box::new(admission))), ttl))
}

/// The payload that takes the place of a message's.
fn replaced(payload: &RawValue, about: AskedAbout, ttl: Option<Duration>) -> Result<Bytes, String> {
    let AskedAbout::Publish { payload_bytes_max } = about else {
        return Err("payload belongs to a publish".to_owned());
    };
    if ttl.is_some() {
        return Err("payload is for one message, and ttl_s for more".to_owned());
    }
    if payload.get().len() > payload_bytes_max {
        return Err(format!("payload has more than {payload_bytes_max} bytes"));
    }
    Ok(Bytes::copy_from_slice(payload.get().as_bytes()))
}

fn admission(text: AnswerText) -> Result<HookAdmission, String> {
    if let Some(user) = text.user.as_deref().filter(|user| !is_user_name(user)) {
        return Err(format!("user {user:?} is no name of a user"));
    }
    if let Some(room) = text.join.iter().find(|room| !is_name(room)) {
        return Err(format!("join: {room:?} is no name of a room"));
    }
    let info = text.info.as_deref().map(RawValue::get);
    if info.is_some_and(|info| info.len() > INFO_BYTES_MAX) {
        return Err(format!("info has more than {INFO_BYTES_MAX} bytes"));
    }
    let mut rights = text.rights.is_some().then_some(Rights::NONE);
    for name in text.rights.iter().flatten() {
        rights = match rights.and_then(|rights| rights.with(name)) {
            Some(more) => Some(more),
            None => return Err(format!("rights: {name:?} is none of {:?}", Rights::NAMES)),
        };
    }
    let grants = grants::granted(text.rooms, text.send);
    let grants = grants.map_err(|_| "rooms and send have more patterns than may be".to_owned())?;
    Ok(HookAdmission {
        info: info.map(Into::into),
        user: text.user.map(Into::into),
        rights,
        grants,
        join: text.join,
        expires_in_s: text.expires_in_s,
    })
}

/// A reason as a client may see it.
fn shown(reason: &str) -> Box<str> {
    let mut text: String = reason.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let end = (0..=REASON_BYTES_MAX.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    text.truncate(end.unwrap_or(0));
    text.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderMap;

    fn answered(status: u16, body: &str) -> Result<HttpAnswer, HttpError> {
        let status = StatusCode::from_u16(status).unwrap();
        let body = Bytes::copy_from_slice(body.as_bytes());
        Ok(HttpAnswer { status, headers: HeaderMap::new(), body })
    }

    const CONNECT: AskedAbout = AskedAbout::Connect;
    const JOIN: AskedAbout = AskedAbout::Join;
    const PUBLISH: AskedAbout = AskedAbout::Publish { payload_bytes_max: 16 };

    #[test]
    fn a_publish_may_be_given_another_payload_byte_for_byte() {
        for payload in [r#"{"n": 1.50}"#, "null", "[1,\n2]", r#""sixteen bytes.""#] {
            let body = format!(r#"{{"allow":true,"payload":{payload}}}"#);
            let wanted = HookVerdict::Replace { payload: Bytes::from(payload.to_owned()) };
            assert_eq!(read(answered(200, &body), PUBLISH), Ok((wanted, None)), "{payload}");
            for about in [CONNECT, JOIN] {
                assert!(read(answered(200, &body), about).is_err(), "{about:?}");
            }
        }
        for body in [
            r#"{"allow":true,"payload":"seventeen bytes."}"#,
            r#"{"allow":true,"payload":{"a":}}"#,
            r#"{"allow":true,"payload":}"#,
            r#"{"allow":true,"payload":1,"payload":2}"#,
            r#"{"allow":true,"payload":1,"user":"ann"}"#,
            r#"{"allow":true,"payload":1,"ttl_s":1}"#,
        ] {
            let found = read(answered(200, body), PUBLISH);
            assert!(matches!(found, Err(HookError::Malformed(_))), "{body}: {found:?}");
        }
    }

    #[test]
    fn yes_and_no_are_read_with_how_long_they_hold() {
        let second = Some(Duration::from_secs(1));
        let yes = HookVerdict::Allow(None);
        assert_eq!(read(answered(200, r#"{"allow":true}"#), JOIN), Ok((yes.clone(), None)));
        let with_ttl = r#"{"allow":true,"ttl_s":1}"#;
        assert_eq!(read(answered(200, with_ttl), CONNECT), Ok((yes, second)));
        let reason = format!(r#"{{"allow":false,"reason":"a\n{}"}}"#, "ü".repeat(100));
        let Ok((HookVerdict::Deny { reason }, None)) = read(answered(200, &reason), CONNECT) else {
            panic!("it denies")
        };
        assert!(reason.starts_with("a ü") && reason.len() <= REASON_BYTES_MAX, "{reason}");
    }

    #[test]
    fn a_connect_may_say_who_it_is_and_what_it_may() {
        let body = r#"{"allow":true,"user":"ann","info":{"n":1},"rights":["publish"],
            "rooms":["chat:*"],"join":["chat:a"],"expires_in_s":60}"#;
        let Ok((HookVerdict::Allow(Some(found)), None)) = read(answered(200, body), CONNECT) else {
            panic!("it allows")
        };
        assert_eq!(found.user.as_deref(), Some("ann"));
        assert_eq!(found.rights, Rights::NONE.with("publish"));
        assert!(found.grants.is_some() && found.info.as_deref() == Some("{\"n\":1}"));
        assert_eq!((found.join, found.expires_in_s), (vec!["chat:a".to_owned()], Some(60)));
        assert!(read(answered(200, body), JOIN).is_err(), "a join names no user");
    }

    #[test]
    fn whatever_is_not_documented_is_no_answer() {
        for status in [201, 204, 302, 401, 403, 404, 500, 503] {
            let found = read(answered(status, r#"{"allow":true}"#), CONNECT);
            assert_eq!(found, Err(HookError::Status(status)));
        }
        for body in [
            "",
            "true",
            "{}",
            "<html>",
            r#"{"allow":"yes"}"#,
            r#"{"allow":1}"#,
            r#"{"allow":true"#,
            r#"{"allow":true,"allow":true}"#,
            r#"{"allow":true,"right":["publish"]}"#,
            r#"{"allow":true,"rights":["everything"]}"#,
            r#"{"allow":true,"user":""}"#,
            r#"{"allow":true,"user":"anon-1"}"#,
            r#"{"allow":true,"join":[" "]}"#,
            r#"{"allow":true,"rooms":"chat:*"}"#,
            r#"{"allow":true,"ttl_s":-1}"#,
        ] {
            let found = read(answered(200, body), CONNECT);
            assert!(matches!(found, Err(HookError::Malformed(_))), "{body}: {found:?}");
        }
    }
}
