//! A client's message in the native dialect, beside serde_json, which shares no code with it: the same
//! texts are JSON, names and payloads are the same, and a payload is the client's bytes.

use campanile::ids::is_name;
use campanile::protocol::INFO_BYTES_MAX;
use campanile::protocol::json::DEPTH_MAX;
use campanile::protocol::native::{KEY_BYTES_MAX, LIMIT_MAX, parse};
use campanile::protocol::{AckOf, Command, ErrorCode, Rejected, RequestId};
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use std::collections::HashMap;

/// Two limits on nesting: one that is met by chance, and the default.
const DEPTHS: [usize; 2] = [3, 64];

/// First byte: which limit on nesting; the rest is the message.
pub fn check(input: &[u8]) {
    let [setting, bytes @ ..] = input else { return };
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let depth_max = DEPTHS[usize::from(setting % 2)];
    check_grammar(text, depth_max);
    let mut message = bytes.to_vec();
    match parse(&mut message, depth_max) {
        Ok(request) => {
            assert!(request.id.is_none_or(|id| is_short(&id)), "a long id");
            check_command(&request.command, text);
        }
        Err(Rejected { message, id, .. }) => {
            assert!(!message.is_empty() && message.len() < 1000, "{message}");
            assert!(id.is_none_or(|id| is_short(&id)), "a long id");
        }
    }
}

fn is_short(id: &RequestId) -> bool {
    match id {
        RequestId::Number(_) => true,
        RequestId::Text(text) => text.as_str().len() <= RequestId::BYTES_MAX,
    }
}

/// A text is refused as JSON exactly if serde_json refuses it, or it is nested too deep.
fn check_grammar(text: &str, depth_max: usize) {
    let is_json = |depth_max: usize| {
        let mut message = text.as_bytes().to_vec();
        let parsed = parse(&mut message, depth_max);
        !matches!(parsed, Err(Rejected { code: ErrorCode::BadJson, .. }))
    };
    let is_object = text.trim_start_matches([' ', '\t', '\n', '\r']).starts_with('{');
    let is_valid = is_object && serde_json::from_str::<IgnoredAny>(text).is_ok();
    // Brackets in strings count as well, so this is an upper bound.
    let levels = text.bytes().filter(|byte| matches!(byte, b'{' | b'[')).count();
    assert!(is_valid || !is_json(depth_max), "accepted: {text:?}");
    assert!(!is_valid || levels > DEPTH_MAX || is_json(DEPTH_MAX), "refused: {text:?}");
    assert!(!is_valid || levels > depth_max || is_json(depth_max), "too deep: {text:?}");
}

fn check_command(command: &Command<'_>, text: &str) {
    // Half of a surrogate pair in a foreign key is JSON for the server, and no text for serde_json.
    let Ok(members) = serde_json::from_str::<HashMap<String, &RawValue>>(text) else { return };
    let raw = |key: &str| members.get(key).map(|value| value.get());
    let string = |key: &str| raw(key).and_then(|raw| serde_json::from_str::<String>(raw).ok());
    let check_name = |key: &str, name: &str| {
        assert!(is_name(name), "{name:?} is no name");
        assert_eq!(string(key).as_deref(), Some(name), "{key}");
    };
    let check_payload =
        |payload: &[u8]| assert_eq!(raw("payload").map(str::as_bytes), Some(payload));
    let check_key = |key: &Option<Box<str>>| {
        assert_eq!(key.as_deref(), string("key").as_deref());
        assert!(key.as_ref().is_none_or(|key| (1..=KEY_BYTES_MAX).contains(&key.len())));
    };
    match command {
        Command::Join { room, info, token, .. } => {
            assert_eq!(*token, string("token").as_deref());
            check_name("room_id", room);
            assert_eq!(*info, raw("info"));
            assert!(info.is_none_or(|info| info.len() <= INFO_BYTES_MAX));
        }
        Command::Leave { room } | Command::Presence { room } => check_name("room_id", room),
        Command::Publish { room, payload, echo, key, .. } => {
            check_name("room_id", room);
            check_payload(payload);
            check_key(key);
            assert_eq!(*echo, raw("echo") != Some("false"));
        }
        Command::Send { user, payload, key } => {
            check_name("target_user_id", user);
            check_payload(payload);
            check_key(key);
        }
        Command::Broadcast { payload, key } => {
            check_payload(payload);
            check_key(key);
        }
        Command::History { room, page } => {
            check_name("room_id", room);
            assert!(page.limit <= LIMIT_MAX);
        }
        Command::Auth { token } => assert_eq!(string("token").as_deref(), Some(*token)),
        Command::Ack { of: AckOf::Room(room), .. } => check_name("room_id", room),
        Command::Ack { of: AckOf::User(Some(user)), .. } => check_name("target_user_id", user),
        Command::Ack { of: AckOf::User(None), .. } | Command::Ping => {}
    }
}
