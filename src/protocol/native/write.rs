//! [`Event`] to bytes.
//!
//! The form of an event is written once, in [`emit`]; writing it and measuring it are two [`Sink`]s
//! for the same pieces, so that a frame's header never disagrees with its body.
//!
//! Invariant: no formatter and no allocation but the growth of `out`; payloads and ids are copied as
//! they came, everything else that is text is escaped as RFC 8259 §7 asks and no further.

use crate::ids::{Position, TopicKind};
use crate::protocol::json::plain_len;
use crate::protocol::run::Run;
use crate::protocol::{Event, Recovery, RequestId, Roster, RosterEntry, Unrecovered};

/// The exact number of bytes [`write()`] appends.
pub fn encoded_len(event: &Event<'_>) -> usize {
    let mut length = Length(0);
    emit(event, &mut length);
    length.0
}

/// Appends the event as one JSON object.
pub fn write(event: &Event<'_>, out: &mut Vec<u8>) {
    emit(event, out);
}

/// Where the pieces of an event go.
trait Sink {
    /// Finished JSON.
    fn raw(&mut self, json: &[u8]);
    /// A number's digits.
    fn number(&mut self, value: u64);

    /// The inside of a string.
    #[inline]
    fn text(&mut self, text: &str) {
        let mut rest = text.as_bytes();
        loop {
            let (plain, special) = rest.split_at(plain_len(rest));
            self.raw(plain);
            let Some((&byte, after)) = special.split_first() else { return };
            self.escape(byte);
            rest = after;
        }
    }

    /// A quote, a backslash or a control character.
    fn escape(&mut self, byte: u8) {
        match byte {
            b'"' => self.raw(br#"\""#),
            b'\\' => self.raw(br"\\"),
            b'\n' => self.raw(br"\n"),
            b'\r' => self.raw(br"\r"),
            b'\t' => self.raw(br"\t"),
            _ => {
                const DIGITS: &[u8; 16] = b"0123456789abcdef";
                let (high, low) = (DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]);
                self.raw(&[b'\\', b'u', b'0', b'0', high, low]);
            }
        }
    }
}

impl Sink for Vec<u8> {
    #[inline]
    fn raw(&mut self, json: &[u8]) {
        self.extend_from_slice(json);
    }

    #[inline]
    fn number(&mut self, value: u64) {
        self.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
    }
}

/// Counts bytes.
struct Length(usize);

impl Sink for Length {
    #[inline]
    fn raw(&mut self, json: &[u8]) {
        self.0 += json.len();
    }

    #[inline]
    fn number(&mut self, value: u64) {
        self.0 += value.checked_ilog10().unwrap_or(0) as usize + 1;
    }
}

fn emit(event: &Event<'_>, out: &mut impl Sink) {
    match event {
        Event::Message { topic, from, info, payload, position } => {
            message(*topic, *from, *info, payload, *position, out);
        }
        Event::Ok { id, room, position, recovery, .. } => {
            ok(*id, room.map(TopicKind::Room), *position, *recovery, out);
        }
        Event::Queue { user, position, recovery, .. } => {
            ok(None, Some(TopicKind::User(user)), Some(*position), *recovery, out);
        }
        Event::History { id, room, position, messages } => {
            history(*id, room, *position, messages, out);
        }
        Event::Presence { id, room, here } => presence(*id, room, here, out),
        Event::Joined { room, user, info } => {
            text_member(br#"{"type":"joined","room_id":""#, room, out);
            text_member(br#","user_id":""#, user, out);
            info_member(*info, out);
        }
        Event::Left { room, user } => {
            text_member(br#"{"type":"left","room_id":""#, room, out);
            text_member(br#","user_id":""#, user, out);
        }
        Event::Error { id, code, message } => {
            out.raw(br#"{"type":"error""#);
            id_member(*id, out);
            text_member(br#","code":""#, code.as_str(), out);
            text_member(br#","message":""#, message, out);
        }
        Event::Welcome { connection_id, user_id, node, ping_interval_s } => {
            text_member(br#"{"type":"welcome","connection_id":""#, connection_id, out);
            text_member(br#","user_id":""#, user_id, out);
            text_member(br#","node":""#, node, out);
            out.raw(br#","ping_interval":"#);
            out.number(*ping_interval_s);
        }
        Event::Lost { topic, count } => {
            out.raw(br#"{"type":"lost""#);
            topic_member(*topic, out);
            out.raw(br#","count":"#);
            out.number(*count);
        }
        Event::Unsubscribed { topic } => {
            out.raw(br#"{"type":"unsubscribed""#);
            topic_member(*topic, out);
        }
        Event::Removed { room, why } => {
            text_member(br#"{"type":"removed","room_id":""#, room, out);
            text_member(br#","reason":""#, why.as_str(), out);
        }
        Event::TokenExpires { in_ms } => {
            out.raw(br#"{"type":"token_expires","in_ms":"#);
            out.number(*in_ms);
        }
        Event::Reconnect { after_ms } => {
            out.raw(br#"{"type":"reconnect","after_ms":"#);
            out.number(*after_ms);
        }
        Event::Pong { id } => {
            out.raw(br#"{"type":"pong""#);
            id_member(*id, out);
        }
    }
    out.raw(b"}");
}

#[inline]
fn message(
    topic: TopicKind<'_>,
    from: Option<&str>,
    info: Option<&str>,
    payload: &[u8],
    position: Option<Position>,
    out: &mut impl Sink,
) {
    out.raw(br#"{"type":"message""#);
    topic_member(topic, out);
    if let Some(from) = from {
        text_member(br#","from":""#, from, out);
    }
    info_member(info, out);
    out.raw(br#","payload":"#);
    out.raw(payload);
    if let Some(position) = position {
        position_members(position, out);
    }
}

fn ok(
    id: Option<&RequestId>,
    topic: Option<TopicKind<'_>>,
    position: Option<Position>,
    recovery: Recovery,
    out: &mut impl Sink,
) {
    out.raw(br#"{"type":"ok""#);
    id_member(id, out);
    if let Some(topic) = topic {
        topic_member(topic, out);
    }
    if let Some(position) = position {
        position_members(position, out);
    }
    match recovery {
        Recovery::NotAsked => {}
        Recovery::Recovered { messages } => {
            out.raw(br#","recovered":true,"messages":"#);
            out.number(messages);
        }
        Recovery::NotRecovered(why) => {
            text_member(br#","recovered":false,"reason":""#, why.as_str(), out);
        }
        Recovery::Replaced { messages } => {
            let why = Unrecovered::TailLost.as_str();
            text_member(br#","recovered":false,"reason":""#, why, out);
            out.raw(br#","messages":"#);
            out.number(messages);
        }
    }
}

fn history(
    id: Option<&RequestId>,
    room: &str,
    position: Position,
    messages: &Run,
    out: &mut impl Sink,
) {
    out.raw(br#"{"type":"history""#);
    id_member(id, out);
    text_member(br#","room_id":""#, room, out);
    position_members(position, out);
    out.raw(br#","messages":["#);
    out.raw(&messages.bytes);
    out.raw(b"]");
}

fn presence(id: Option<&RequestId>, room: &str, here: &Roster, out: &mut impl Sink) {
    out.raw(br#"{"type":"presence""#);
    id_member(id, out);
    text_member(br#","room_id":""#, room, out);
    out.raw(br#","users":["#);
    for (number, RosterEntry { user, connections, info }) in here.users.iter().enumerate() {
        if number > 0 {
            out.raw(b",");
        }
        let (TopicKind::User(user) | TopicKind::Room(user)) = user.kind() else { continue };
        text_member(br#"{"user_id":""#, user, out);
        out.raw(br#","connections":"#);
        out.number(*connections);
        info_member(info.as_deref(), out);
        out.raw(b"}");
    }
    out.raw(br#"],"count":"#);
    out.number(here.count);
    if here.is_truncated() {
        out.raw(br#","truncated":true"#);
    }
}

fn info_member(info: Option<&str>, out: &mut impl Sink) {
    let Some(info) = info else { return };
    out.raw(br#","info":"#);
    out.raw(info.as_bytes());
}

/// An epoch is a string: a client compares it and does nothing else with it.
#[inline]
fn position_members(position: Position, out: &mut impl Sink) {
    out.raw(br#","epoch":""#);
    out.number(position.epoch);
    out.raw(br#"","offset":"#);
    out.number(position.offset);
}

/// `opening` is everything up to and with the value's first quote.
#[inline]
fn text_member(opening: &[u8], text: &str, out: &mut impl Sink) {
    out.raw(opening);
    out.text(text);
    out.raw(b"\"");
}

#[inline]
fn topic_member(topic: TopicKind<'_>, out: &mut impl Sink) {
    match topic {
        TopicKind::Room(room) => text_member(br#","room_id":""#, room, out),
        TopicKind::User(user) => text_member(br#","target_user_id":""#, user, out),
        TopicKind::All => out.raw(br#","broadcast":true"#),
    }
}

fn id_member(id: Option<&RequestId>, out: &mut impl Sink) {
    let Some(id) = id else { return };
    out.raw(br#","id":"#);
    match id {
        RequestId::Number(number) => out.number(*number),
        RequestId::Text(json) => out.raw(json.as_str().as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{ErrorCode, RemovalReason};

    /// Every event, with and without what it may leave out.
    #[test]
    fn every_event_is_written_as_the_protocol_says() {
        let number = RequestId::Number(7);
        let text = RequestId::from(r#""a\u0062""#);
        let (room, user, all) = (TopicKind::Room("r"), TopicKind::User("u"), TopicKind::All);
        let payload = br#"{"a": 1.0}"#.as_slice();
        let ok =
            |id, room, position, recovery| Event::Ok { id, room, position, recovery, missed: None };
        let message =
            |topic, from, info| Event::Message { topic, from, info, payload, position: None };
        let (none, asked_not) = (None, Recovery::NotAsked);
        let not_enabled = Recovery::NotRecovered(Unrecovered::NotEnabled);
        let cases: Vec<(Event<'_>, &str)> = vec![
            (
                Event::Welcome {
                    connection_id: "c1",
                    user_id: "u",
                    node: "n",
                    ping_interval_s: 25,
                },
                r#"{"type":"welcome","connection_id":"c1","user_id":"u","node":"n","ping_interval":25}"#,
            ),
            (ok(None, None, none, asked_not), r#"{"type":"ok"}"#),
            (ok(Some(&number), None, none, asked_not), r#"{"type":"ok","id":7}"#),
            (
                ok(Some(&text), Some("r"), none, asked_not),
                r#"{"type":"ok","id":"a\u0062","room_id":"r"}"#,
            ),
            (
                ok(Some(&number), Some("r"), none, not_enabled),
                r#"{"type":"ok","id":7,"room_id":"r","recovered":false,"reason":"not_enabled"}"#,
            ),
            (
                Event::Error {
                    id: Some(&number),
                    code: ErrorCode::NotJoined,
                    message: "say \"join\"",
                },
                r#"{"type":"error","id":7,"code":"not_joined","message":"say \"join\""}"#,
            ),
            (
                Event::Error { id: None, code: ErrorCode::BadJson, message: "" },
                r#"{"type":"error","code":"bad_json","message":""}"#,
            ),
            (
                message(room, Some("u"), None),
                r#"{"type":"message","room_id":"r","from":"u","payload":{"a": 1.0}}"#,
            ),
            (
                message(user, None, None),
                r#"{"type":"message","target_user_id":"u","payload":{"a": 1.0}}"#,
            ),
            (
                message(all, Some("u"), Some("[1]")),
                r#"{"type":"message","broadcast":true,"from":"u","info":[1],"payload":{"a": 1.0}}"#,
            ),
            (Event::Lost { topic: room, count: 0 }, r#"{"type":"lost","room_id":"r","count":0}"#),
            (
                Event::Lost { topic: user, count: u64::MAX },
                r#"{"type":"lost","target_user_id":"u","count":18446744073709551615}"#,
            ),
            (
                Event::Lost { topic: all, count: 10 },
                r#"{"type":"lost","broadcast":true,"count":10}"#,
            ),
            (Event::Reconnect { after_ms: 1500 }, r#"{"type":"reconnect","after_ms":1500}"#),
            (Event::Pong { id: None }, r#"{"type":"pong"}"#),
            (Event::Pong { id: Some(&text) }, r#"{"type":"pong","id":"a\u0062"}"#),
        ];
        are_written(cases);
    }

    #[test]
    fn what_becomes_of_tokens_is_written_as_the_protocol_says() {
        are_written(vec![
            (
                Event::Removed { room: "r", why: RemovalReason::TokenExpired },
                r#"{"type":"removed","room_id":"r","reason":"token_expired"}"#,
            ),
            (
                Event::Removed { room: "r", why: RemovalReason::Forbidden },
                r#"{"type":"removed","room_id":"r","reason":"forbidden"}"#,
            ),
            (Event::TokenExpires { in_ms: 60000 }, r#"{"type":"token_expires","in_ms":60000}"#),
        ]);
    }

    #[test]
    fn what_stands_in_a_history_says_where() {
        let number = RequestId::Number(7);
        let (room, payload) = (TopicKind::Room("r"), br#"{"a": 1.0}"#.as_slice());
        let ok =
            |id, room, position, recovery| Event::Ok { id, room, position, recovery, missed: None };
        let asked_not = Recovery::NotAsked;
        let position = Some(Position { epoch: 1, offset: 2 });
        are_written(vec![
            (
                ok(Some(&number), None, position, asked_not),
                r#"{"type":"ok","id":7,"epoch":"1","offset":2}"#,
            ),
            (
                ok(None, Some("r"), position, Recovery::Recovered { messages: 3 }),
                r#"{"type":"ok","room_id":"r","epoch":"1","offset":2,"recovered":true,"messages":3}"#,
            ),
            (
                ok(None, Some("r"), position, Recovery::Replaced { messages: 3 }),
                r#"{"type":"ok","room_id":"r","epoch":"1","offset":2,"recovered":false,"reason":"tail_lost","messages":3}"#,
            ),
            (
                Event::Queue {
                    user: "u",
                    position: Position { epoch: 1, offset: 2 },
                    recovery: Recovery::NotRecovered(Unrecovered::Trimmed),
                    missed: None,
                },
                r#"{"type":"ok","target_user_id":"u","epoch":"1","offset":2,"recovered":false,"reason":"trimmed"}"#,
            ),
            (
                Event::History {
                    id: Some(&number),
                    room: "r",
                    position: Position { epoch: 1, offset: 2 },
                    messages: &Run { bytes: (&br#"{"a":1},{"a":2}"#[..]).into(), messages: 2 },
                },
                r#"{"type":"history","id":7,"room_id":"r","epoch":"1","offset":2,"messages":[{"a":1},{"a":2}]}"#,
            ),
            (
                Event::Message { topic: room, from: None, info: None, payload, position },
                r#"{"type":"message","room_id":"r","payload":{"a": 1.0},"epoch":"1","offset":2}"#,
            ),
        ]);
    }

    #[test]
    fn who_is_there_and_who_comes_and_goes_is_written_as_the_protocol_says() {
        let number = RequestId::Number(7);
        let entry = |user: &str, connections, info: Option<&str>| {
            let user = crate::ids::TopicName::user(user);
            RosterEntry { user, connections, info: info.map(Into::into) }
        };
        let (bob, ann) = (entry("bob", 1, None), entry("a\"n", 2, Some(r#"{"a": 1.0}"#)));
        let all = Roster::new(vec![bob.clone(), ann.clone()], 2);
        let some = Roster::new(vec![bob], 3);
        are_written(vec![
            (
                Event::Presence { id: Some(&number), room: "r", here: &all },
                r#"{"type":"presence","id":7,"room_id":"r","users":[{"user_id":"a\"n","connections":2,"info":{"a": 1.0}},{"user_id":"bob","connections":1}],"count":2}"#,
            ),
            (
                Event::Presence { id: None, room: "r", here: &some },
                r#"{"type":"presence","room_id":"r","users":[{"user_id":"bob","connections":1}],"count":3,"truncated":true}"#,
            ),
            (
                Event::Presence { id: None, room: "r", here: &Roster::default() },
                r#"{"type":"presence","room_id":"r","users":[],"count":0}"#,
            ),
            (
                Event::Joined { room: "r", user: "u", info: Some("[1]") },
                r#"{"type":"joined","room_id":"r","user_id":"u","info":[1]}"#,
            ),
            (
                Event::Joined { room: "r", user: "u", info: None },
                r#"{"type":"joined","room_id":"r","user_id":"u"}"#,
            ),
            (
                Event::Left { room: "r", user: "u" },
                r#"{"type":"left","room_id":"r","user_id":"u"}"#,
            ),
        ]);
    }

    #[test]
    fn who_is_there_is_listed_as_far_as_it_may_be_sent() {
        let entry = |number: usize| RosterEntry {
            user: crate::ids::TopicName::user(&format!("{number:0>200}")),
            connections: 1,
            info: Some(format!("{number:?}").into()),
        };
        let many = Roster::new((0..2000).map(entry).collect(), 2000);
        assert!(many.is_truncated() && many.count == 2000);
        let mut out = Vec::new();
        write(&Event::Presence { id: None, room: "r", here: &many }, &mut out);
        assert!(many.users.len() > 400 && out.len() < Roster::BYTES_MAX, "{}", many.users.len());
        let short = |number: usize| RosterEntry {
            user: crate::ids::TopicName::user(&number.to_string()),
            ..entry(number)
        };
        assert_eq!(
            Roster::new((0..2000).map(short).collect(), 2000).users.len(),
            Roster::USERS_MAX
        );
    }

    fn are_written(cases: Vec<(Event<'_>, &str)>) {
        for (event, expected) in cases {
            let mut out = b"before ".to_vec();
            write(&event, &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), format!("before {expected}"));
            assert_eq!(encoded_len(&event), expected.len(), "{expected}");
        }
    }

    #[test]
    fn texts_are_escaped_where_they_must_be_and_nowhere_else() {
        let cases = [
            ("", ""),
            ("a/b é€😀 \u{7f}\u{2028}", "a/b é€😀 \u{7f}\u{2028}"),
            ("\"", r#"\""#),
            ("a long text \\ with one in it", r"a long text \\ with one in it"),
            ("\n\r\t", r"\n\r\t"),
            ("\0\u{1}\u{8}\u{c}\u{1f}", r"\u0000\u0001\u0008\u000c\u001f"),
            ("end\"", r#"end\""#),
        ];
        for (text, expected) in cases {
            let mut out = Vec::new();
            out.text(text);
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }

    #[test]
    fn numbers_are_measured_exactly_around_every_power_of_ten() {
        for power in 0..20 {
            for value in [10u64.pow(power) - 1, 10u64.pow(power)] {
                let event = Event::Reconnect { after_ms: value };
                let mut out = Vec::new();
                write(&event, &mut out);
                assert_eq!(encoded_len(&event), out.len(), "{value}");
            }
        }
    }
}
