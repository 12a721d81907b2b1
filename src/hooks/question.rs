//! What is sent to a service: the JSON text of a question, and its signature.

use crate::link::hooks::{HookQuestion, HookedAction, RoomQuestion};
use hmac::{Hmac, Mac};
use hyper::body::Bytes;
use hyper::header::{HeaderName, HeaderValue};
use serde::Serialize;
use serde_json::value::RawValue;
use sha2::Sha256;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::IpAddr;

/// The header line of the signature.
pub(super) const SIGNATURE: HeaderName = HeaderName::from_static("campanile-signature");

/// A question as a service receives it.
pub(super) struct Written {
    /// The JSON text.
    pub body: Bytes,
    /// What an answer may be remembered by: the question without the payload.
    pub key: Bytes,
}

#[derive(Serialize)]
struct ConnectText<'a> {
    hook: &'a str,
    user: Option<&'a str>,
    address: Option<IpAddr>,
    query: &'a str,
    headers: BTreeMap<&'a str, &'a str>,
    rooms: &'a [String],
}

#[derive(Serialize)]
struct RoomText<'a> {
    hook: &'a str,
    user: &'a str,
    anonymous: bool,
    room: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<&'a RawValue>,
}

/// Writes a question. `None`: its payload is no JSON text.
pub(super) fn write(question: &HookQuestion) -> Option<Written> {
    match question {
        HookQuestion::Connect(question) => {
            let headers = question.headers.iter().map(|(name, value)| (&**name, &**value));
            let text = ConnectText {
                hook: "connect",
                user: question.user.as_deref(),
                address: question.address,
                query: &question.query,
                headers: headers.collect(),
                rooms: &question.rooms,
            };
            let body = Bytes::from(serde_json::to_vec(&text).ok()?);
            Some(Written { key: body.clone(), body })
        }
        HookQuestion::Room(question) => {
            let key = room_text(question, None)?;
            let body = match question.action {
                HookedAction::Join => key.clone(),
                HookedAction::Publish => {
                    let payload = std::str::from_utf8(&question.payload).ok()?;
                    room_text(question, Some(serde_json::from_str(payload).ok()?))?
                }
            };
            Some(Written { body, key })
        }
    }
}

fn room_text(question: &RoomQuestion, payload: Option<&RawValue>) -> Option<Bytes> {
    let hook = match question.action {
        HookedAction::Join => "join",
        HookedAction::Publish => "publish",
    };
    let text = RoomText {
        hook,
        user: &question.user,
        anonymous: !question.has_token,
        room: &question.room,
        payload,
    };
    serde_json::to_vec(&text).ok().map(Bytes::from)
}

/// `t=<seconds since 1970>,v1=<HMAC-SHA256 of "<t>.<body>" in hex>`.
pub(super) fn signature(secret: &str, body: &[u8], now_unix_s: u64) -> HeaderValue {
    let key = Hmac::<Sha256>::new_from_slice(secret.as_bytes());
    let mut mac = key.expect("a key may have any length");
    mac.update(format!("{now_unix_s}.").as_bytes());
    mac.update(body);
    let mut text = format!("t={now_unix_s},v1=");
    for byte in mac.finalize().into_bytes() {
        write!(text, "{byte:02x}").expect("a String takes all that is written to it");
    }
    HeaderValue::from_str(&text).expect("digits and letters")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::hooks::ConnectQuestion;

    fn text(question: &HookQuestion) -> (String, String) {
        let Written { body, key } = write(question).expect("it is good");
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        (text(&body), text(&key))
    }

    #[test]
    fn questions_are_written_as_documented_and_a_payload_is_no_part_of_the_key() {
        let question = ConnectQuestion {
            user: Some("ann".into()),
            address: Some([192, 0, 2, 1].into()),
            query: "a=b".into(),
            headers: vec![("cookie".into(), "x=\"1\"".into())],
            rooms: vec!["chat:a".to_owned()],
        };
        let (body, key) = text(&HookQuestion::Connect(Box::new(question)));
        let wanted = concat!(
            r#"{"hook":"connect","user":"ann","address":"192.0.2.1","query":"a=b","#,
            r#""headers":{"cookie":"x=\"1\""},"rooms":["chat:a"]}"#
        );
        assert_eq!((&*body, &*key), (wanted, wanted));
        let mut question = RoomQuestion {
            action: HookedAction::Publish,
            user: "ann".into(),
            has_token: true,
            room: "chat:a".into(),
            payload: Bytes::from_static(br#"{"n": 1.50}"#),
        };
        let (body, key) = text(&HookQuestion::Room(Box::new(question)));
        let start = r#"{"hook":"publish","user":"ann","anonymous":false,"room":"chat:a""#;
        assert_eq!(body, format!("{start},\"payload\":{{\"n\": 1.50}}}}"), "byte for byte");
        assert_eq!(key, format!("{start}}}"));
        question = RoomQuestion {
            action: HookedAction::Publish,
            user: "ann".into(),
            has_token: true,
            room: "chat:a".into(),
            payload: Bytes::from_static(b"\"a\",\"room\":\"b\""),
        };
        assert!(write(&HookQuestion::Room(Box::new(question))).is_none(), "that is no JSON value");
    }

    #[test]
    fn the_signature_is_over_the_time_and_the_body() {
        // echo -n '1700000000.{"hook":"connect"}' | openssl dgst -sha256 -hmac a-secret
        let found = signature("a-secret", b"{\"hook\":\"connect\"}", 1_700_000_000);
        let wanted =
            "t=1700000000,v1=a33ca24b6fc9b710db3dc6f45c525343df6a524f7675c14c939ee40cba75661e";
        assert_eq!(found.to_str().unwrap(), wanted);
    }
}
