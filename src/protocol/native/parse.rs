//! Bytes to [`Request`].
//!
//! Two steps. The scanner of `json.rs` walks the message once and says where the values of our
//! sixteen keys lie; then only those that the command needs are read, each where it lies: a string
//! without a backslash is borrowed as it is, one with escapes and `since` are parsed in place by
//! simd-json. The payload is never parsed, only cut out.
//!
//! Keys that are not ours are ignored, and so are ours in a command that has no use for them. A key
//! of ours that comes twice is refused: whichever we took, some client would expect the other one.
//!
//! Invariants: a plain request allocates nothing; the payload's bytes are never written to; no
//! input panics, and every refusal names the key that is wrong and what to write instead.

use crate::ids::{CONFLATE_KEY_BYTES_MAX, ConflateKey, NAME_BYTES_MAX, Position, UpTo, is_name};
use crate::protocol::json::{Fault, Members, Span};
use crate::protocol::{
    AckOf, Command, ErrorCode, INFO_BYTES_MAX, Page, Rejected, Request, RequestId,
};

/// The longest idempotency `key`, in bytes of text.
pub const KEY_BYTES_MAX: usize = 128;

/// The longest `token`, in bytes of text: more than a request head holds.
pub const TOKEN_BYTES_MAX: usize = 8192;

/// Messages of a history that are sent for a request without `limit`.
pub const LIMIT_DEFAULT: u32 = 100;
/// The most that may be asked for.
pub const LIMIT_MAX: u32 = 1000;

/// How much of an unknown `type` is repeated in the error, in characters.
const TYPE_SHOWN_CHARS_MAX: usize = 40;

/// Reads one client message, which must be valid UTF-8.
///
/// `json_depth_max` counts levels of arrays and objects, the message's own object being the first.
/// The message is changed only inside strings that were written with escapes, and no longer holds
/// what the client sent once this has answered.
///
/// # Errors
///
/// [`ErrorCode::BadJson`] with the byte, when the message is not one JSON object or too deep;
/// [`ErrorCode::UnknownType`]; [`ErrorCode::BadRequest`] with the key, for everything else.
pub fn parse(message: &mut [u8], json_depth_max: usize) -> Result<Request<'_>, Rejected> {
    let mut fields = Fields::default();
    let scanned = fields.scan(message, json_depth_max);
    let (id, outcome) = match (fields.id(message), scanned) {
        (id, Err(not_json)) => (id.unwrap_or(None), Err(not_json)),
        (Err(bad_id), Ok(())) => (None, Err(bad_id)),
        (Ok(id), Ok(())) => (id, fields.command(message)),
    };
    match outcome {
        Ok(command) => Ok(Request { id, command }),
        Err(Refusal { code, message }) => Err(Rejected { id, code, message }),
    }
}

/// A [`Rejected`] before its request's id is added.
struct Refusal {
    code: ErrorCode,
    message: String,
}

#[cold]
fn bad_request(message: String) -> Refusal {
    Refusal { code: ErrorCode::BadRequest, message }
}

/// The keys that mean something to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Type,
    RoomId,
    TargetUserId,
    Payload,
    Id,
    Echo,
    Key,
    ConflateKey,
    Since,
    Limit,
    Reverse,
    Info,
    Ack,
    Epoch,
    Offset,
    Token,
}

impl Field {
    const ALL: [Field; 16] = [
        Field::Type,
        Field::RoomId,
        Field::TargetUserId,
        Field::Payload,
        Field::Id,
        Field::Echo,
        Field::Key,
        Field::ConflateKey,
        Field::Since,
        Field::Limit,
        Field::Reverse,
        Field::Info,
        Field::Ack,
        Field::Epoch,
        Field::Offset,
        Field::Token,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Field::Type => "type",
            Field::RoomId => "room_id",
            Field::TargetUserId => "target_user_id",
            Field::Payload => "payload",
            Field::Id => "id",
            Field::Echo => "echo",
            Field::Key => "key",
            Field::ConflateKey => "conflate_key",
            Field::Since => "since",
            Field::Limit => "limit",
            Field::Reverse => "reverse",
            Field::Info => "info",
            Field::Ack => "ack",
            Field::Epoch => "epoch",
            Field::Offset => "offset",
            Field::Token => "token",
        }
    }

    #[inline]
    fn from_bytes(name: &[u8]) -> Option<Field> {
        Some(match name {
            b"type" => Field::Type,
            b"room_id" => Field::RoomId,
            b"target_user_id" => Field::TargetUserId,
            b"payload" => Field::Payload,
            b"id" => Field::Id,
            b"echo" => Field::Echo,
            b"key" => Field::Key,
            b"conflate_key" => Field::ConflateKey,
            b"since" => Field::Since,
            b"limit" => Field::Limit,
            b"reverse" => Field::Reverse,
            b"info" => Field::Info,
            b"ack" => Field::Ack,
            b"epoch" => Field::Epoch,
            b"offset" => Field::Offset,
            b"token" => Field::Token,
            _ => return None,
        })
    }

    /// A key written with escapes, which the scanner has found to be well-formed.
    ///
    /// Ours are short and plain ASCII, so `\u00XX` is the only escape that can be part of one.
    #[cold]
    fn from_escaped(written: &[u8]) -> Option<Field> {
        let mut name = [0u8; "target_user_id".len()];
        let mut bytes = 0;
        let mut rest = written;
        while let Some((&first, after)) = rest.split_first() {
            let (byte, after) = match (first, after) {
                (b'\\', [b'u', digits @ ..]) => (ascii_of_hex(digits.get(..4)?)?, digits.get(4..)?),
                (b'\\', _) => return None,
                _ => (first, after),
            };
            *name.get_mut(bytes)? = byte;
            bytes += 1;
            rest = after;
        }
        Field::from_bytes(&name[..bytes])
    }
}

fn ascii_of_hex(digits: &[u8]) -> Option<u8> {
    let digits = std::str::from_utf8(digits).ok()?;
    u8::try_from(u16::from_str_radix(digits, 16).ok()?).ok().filter(u8::is_ascii)
}

/// Which [`Command`] is asked for.
#[derive(Clone, Copy)]
enum Kind {
    Join,
    Leave,
    Publish,
    Send,
    Broadcast,
    Presence,
    History,
    Ack,
    Auth,
    Ping,
}

/// Texts of a join.
struct JoinValues<'a> {
    room: &'a str,
    info: Option<&'a str>,
    token: Option<&'a str>,
}

/// What `since` must look like.
#[derive(serde::Deserialize)]
struct Since<'a> {
    epoch: &'a str,
    offset: u64,
}

/// Where the values of our keys lie in the message.
#[derive(Default)]
struct Fields {
    values: [Option<Span>; Field::ALL.len()],
    /// One bit for each key that came more than once.
    doubled: u16,
}

impl Fields {
    /// Finds the values, and that all of the message is JSON. After a fault the fields before it
    /// are there, so that the answer can still carry the `id`.
    fn scan(&mut self, message: &[u8], json_depth_max: usize) -> Result<(), Refusal> {
        self.note_all(message, json_depth_max).map_err(|fault| Refusal {
            code: ErrorCode::BadJson,
            message: format!("{} (byte {})", fault.what, fault.at),
        })
    }

    fn note_all(&mut self, message: &[u8], json_depth_max: usize) -> Result<(), Fault> {
        let mut members = Members::open(message, json_depth_max)?;
        while let Some(member) = members.next_member()? {
            let written = &message[member.key.range()];
            let key = match member.key.escaped {
                false => Field::from_bytes(written),
                true => Field::from_escaped(written),
            };
            let Some(key) = key else { continue };
            if self.values[key as usize].replace(member.value).is_some() {
                self.doubled |= 1 << key as u16;
            }
        }
        Ok(())
    }

    #[inline]
    fn get(&self, key: Field) -> Option<Span> {
        self.values[key as usize]
    }

    fn has(&self, key: Field) -> bool {
        self.get(key).is_some()
    }

    fn is_doubled(&self, key: Field) -> bool {
        self.doubled & (1 << key as u16) != 0
    }

    fn need(&self, key: Field) -> Result<Span, Refusal> {
        self.get(key).ok_or_else(|| bad_request(format!("{} is missing", key.as_str())))
    }

    /// The request's number. None if there are two: an answer to the wrong one would be worse.
    fn id(&self, message: &[u8]) -> Result<Option<RequestId>, Refusal> {
        match self.get(Field::Id) {
            Some(span) if !self.is_doubled(Field::Id) => {
                request_id(&message[span.range()]).map(Some)
            }
            _ => Ok(None),
        }
    }

    fn command<'a>(&self, message: &'a mut [u8]) -> Result<Command<'a>, Refusal> {
        if let Some(key) = Field::ALL.into_iter().find(|key| self.is_doubled(*key)) {
            return Err(bad_request(format!("{} is there more than once", key.as_str())));
        }
        match self.kind(message)? {
            Kind::Publish => self.publish(message),
            Kind::Send => {
                let key = self.key(message)?;
                let (user, payload) = self.name_and_payload(Field::TargetUserId, message)?;
                Ok(Command::Send { user, payload, key })
            }
            Kind::Broadcast => {
                let key = self.key(message)?;
                let payload = self.need(Field::Payload)?;
                Ok(Command::Broadcast { payload: &message[payload.range()], key })
            }
            Kind::Join => {
                let since = self.since(message)?;
                let ack = self.truth(Field::Ack, message)?.unwrap_or(false);
                let JoinValues { room, info, token } = self.join_values(message)?;
                Ok(Command::Join { room, since, info, ack, token })
            }
            Kind::Leave => Ok(Command::Leave { room: self.room(message)? }),
            Kind::Presence => Ok(Command::Presence { room: self.room(message)? }),
            Kind::History => {
                let page = self.page(message)?;
                Ok(Command::History { room: self.room(message)?, page })
            }
            Kind::Ack => self.ack(message),
            Kind::Auth => {
                let span = self.need(Field::Token)?;
                Ok(Command::Auth { token: token(span, &mut message[span.range()])? })
            }
            Kind::Ping => Ok(Command::Ping),
        }
    }

    fn publish<'a>(&self, message: &'a mut [u8]) -> Result<Command<'a>, Refusal> {
        let echo = self.echo(message)?;
        let key = self.key(message)?;
        let conflate_key = self.conflate_key(message)?;
        let (room, payload) = self.name_and_payload(Field::RoomId, message)?;
        Ok(Command::Publish { room, payload, echo, key, conflate_key })
    }

    fn kind(&self, message: &mut [u8]) -> Result<Kind, Refusal> {
        let Some(span) = self.get(Field::Type) else { return self.kind_of_short_form() };
        let name = text(Field::Type, span, &mut message[span.range()])?;
        Ok(match name {
            "join" => Kind::Join,
            "leave" => Kind::Leave,
            "publish" => Kind::Publish,
            "send" => Kind::Send,
            "broadcast" => Kind::Broadcast,
            "presence" => Kind::Presence,
            "history" => Kind::History,
            "ack" => Kind::Ack,
            "auth" => Kind::Auth,
            "ping" => Kind::Ping,
            _ => return Err(unknown_type(name)),
        })
    }

    /// The kind of a request without `type` follows from its other fields.
    fn kind_of_short_form(&self) -> Result<Kind, Refusal> {
        let missing = match (self.has(Field::RoomId), self.has(Field::TargetUserId)) {
            (true, false) if self.has(Field::Payload) => return Ok(Kind::Publish),
            (false, true) if self.has(Field::Payload) => return Ok(Kind::Send),
            (true, true) => "type is missing, and room_id and target_user_id are both there",
            (false, false) => "type is missing, and so are room_id and target_user_id",
            _ => "payload is missing, and so is type",
        };
        Err(bad_request(format!(
            "{missing}; without type write {{\"room_id\":…,\"payload\":…}} or \
             {{\"target_user_id\":…,\"payload\":…}}"
        )))
    }

    fn room<'a>(&self, message: &'a mut [u8]) -> Result<&'a str, Refusal> {
        let span = self.need(Field::RoomId)?;
        name(Field::RoomId, span, &mut message[span.range()])
    }

    /// The name may be rewritten in place, the payload never: two values never share a byte.
    fn name_and_payload<'a>(
        &self,
        key: Field,
        message: &'a mut [u8],
    ) -> Result<(&'a str, &'a [u8]), Refusal> {
        let (who, payload) = (self.need(key)?, self.need(Field::Payload)?);
        let [who_json, payload] = message
            .get_disjoint_mut([who.range(), payload.range()])
            .expect("values of two members lie apart and inside the message");
        Ok((name(key, who, who_json)?, payload))
    }

    /// The same for a join: the bytes of `info` are cut out as they are.
    fn join_values<'a>(&self, message: &'a mut [u8]) -> Result<JoinValues<'a>, Refusal> {
        let room = self.need(Field::RoomId)?;
        let (info_span, token_span) = (self.get(Field::Info), self.get(Field::Token));
        // What is not there is nothing, at the beginning.
        let range = |span: Option<Span>| span.map_or(0..0, Span::range);
        let [room_json, info_json, token_json] = message
            .get_disjoint_mut([room.range(), range(info_span), range(token_span)])
            .expect("values of three members lie apart and inside the message");
        let info = info_span.map(|_| info(info_json)).transpose()?;
        let token = token_span.map(|span| token(span, token_json)).transpose()?;
        Ok(JoinValues { room: name(Field::RoomId, room, room_json)?, info, token })
    }

    fn echo(&self, message: &[u8]) -> Result<bool, Refusal> {
        self.truth(Field::Echo, message).map(|echo| echo.unwrap_or(true))
    }

    fn truth(&self, key: Field, message: &[u8]) -> Result<Option<bool>, Refusal> {
        match self.get(key).map(|span| &message[span.range()]) {
            None => Ok(None),
            Some(b"true") => Ok(Some(true)),
            Some(b"false") => Ok(Some(false)),
            Some(_) => Err(bad_request(format!("{} must be true or false", key.as_str()))),
        }
    }

    /// The idempotency key, if there is one.
    fn key(&self, message: &mut [u8]) -> Result<Option<Box<str>>, Refusal> {
        let Some(span) = self.get(Field::Key) else { return Ok(None) };
        let key = text(Field::Key, span, &mut message[span.range()])?;
        if (1..=KEY_BYTES_MAX).contains(&key.len()) {
            return Ok(Some(key.into()));
        }
        Err(bad_request(format!("key must be a string of 1 to {KEY_BYTES_MAX} bytes")))
    }

    /// The `conflate_key` of a message, if it has one.
    fn conflate_key(&self, message: &mut [u8]) -> Result<Option<ConflateKey>, Refusal> {
        let Some(span) = self.get(Field::ConflateKey) else { return Ok(None) };
        let key = text(Field::ConflateKey, span, &mut message[span.range()])?;
        match ConflateKey::of(key) {
            Some(key) => Ok(Some(key)),
            None => Err(bad_request(format!(
                "conflate_key must be a string of 1 to {CONFLATE_KEY_BYTES_MAX} bytes"
            ))),
        }
    }

    fn ack<'a>(&self, message: &'a mut [u8]) -> Result<Command<'a>, Refusal> {
        let up_to = self.up_to(message)?;
        let of = match (self.get(Field::RoomId), self.get(Field::TargetUserId)) {
            (None, None) => AckOf::User(None),
            (Some(_), None) => AckOf::Room(self.room(message)?),
            (None, Some(span)) => {
                AckOf::User(Some(name(Field::TargetUserId, span, &mut message[span.range()])?))
            }
            (Some(_), Some(_)) => {
                return Err(bad_request("room_id and target_user_id are both there".into()));
            }
        };
        Ok(Command::Ack { of, up_to })
    }

    /// How far a client has come. An epoch that is not one of ours is older than all of them.
    fn up_to(&self, message: &mut [u8]) -> Result<UpTo, Refusal> {
        let offset = plain_integer(&message[self.need(Field::Offset)?.range()]);
        let Some(offset) = offset else {
            return Err(bad_request("offset must be a non-negative integer".into()));
        };
        let epoch = match self.get(Field::Epoch) {
            None => None,
            Some(span) => {
                let epoch = text(Field::Epoch, span, &mut message[span.range()])?;
                Some(plain_integer(epoch.as_bytes()).unwrap_or(0))
            }
        };
        Ok(UpTo { epoch, offset })
    }

    fn page(&self, message: &mut [u8]) -> Result<Page, Refusal> {
        let limit = match self.get(Field::Limit) {
            None => Some(LIMIT_DEFAULT),
            Some(span) => plain_integer(&message[span.range()])
                .and_then(|limit| u32::try_from(limit).ok())
                .filter(|limit| *limit <= LIMIT_MAX),
        };
        let Some(limit) = limit else {
            return Err(bad_request(format!("limit must be a whole number from 0 to {LIMIT_MAX}")));
        };
        let reverse = self.truth(Field::Reverse, message)?.unwrap_or(false);
        Ok(Page { since: self.since(message)?, limit, reverse })
    }

    /// The last position that the client has received. An epoch in a form that this server does not
    /// write is one that no history has, and is answered like one.
    fn since(&self, message: &mut [u8]) -> Result<Option<Position>, Refusal> {
        let Some(span) = self.get(Field::Since) else { return Ok(None) };
        let since = &mut message[span.range()];
        // An object and nothing else: serde would also read a struct from an array.
        if since.first() == Some(&b'{')
            && let Ok(Since { epoch, offset }) = simd_json::from_slice::<Since<'_>>(since)
        {
            let epoch = plain_integer(epoch.as_bytes()).unwrap_or(0);
            return Ok(Some(Position { epoch, offset }));
        }
        Err(bad_request(
            "since must be an object like {\"epoch\":\"…\",\"offset\":12}, \
             with a string and a non-negative integer"
                .into(),
        ))
    }
}

/// `json` is a whole JSON value.
fn request_id(json: &[u8]) -> Result<RequestId, Refusal> {
    if let Some(number) = plain_integer(json) {
        return Ok(RequestId::Number(number));
    }
    match (json.first(), std::str::from_utf8(json)) {
        (Some(b'"' | b'-' | b'0'..=b'9'), Ok(text)) if json.len() <= RequestId::BYTES_MAX => {
            Ok(RequestId::from(text))
        }
        _ => Err(bad_request(format!(
            "id must be a number or a string of at most {} bytes",
            RequestId::BYTES_MAX
        ))),
    }
}

/// A number that is written back with the digits it came with. JSON has no leading zeros.
fn plain_integer(json: &[u8]) -> Option<u64> {
    if json.is_empty() || json.len() > "18446744073709551615".len() {
        return None;
    }
    json.iter().try_fold(0u64, |value, &byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        value.checked_mul(10)?.checked_add(digit)
    })
}

/// What a user says about itself, as it is.
fn info(json: &[u8]) -> Result<&str, Refusal> {
    let text = std::str::from_utf8(json).ok().filter(|text| text.len() <= INFO_BYTES_MAX);
    text.ok_or_else(|| {
        bad_request(format!("info must be a JSON value of at most {INFO_BYTES_MAX} bytes"))
    })
}

/// A JWT (RFC 7519), or what its client takes for one.
fn token(span: Span, json: &mut [u8]) -> Result<&str, Refusal> {
    let token = text(Field::Token, span, json)?;
    if (1..=TOKEN_BYTES_MAX).contains(&token.len()) {
        return Ok(token);
    }
    Err(bad_request(format!("token must be a string of 1 to {TOKEN_BYTES_MAX} bytes")))
}

/// The name of a room or a user.
fn name(key: Field, span: Span, json: &mut [u8]) -> Result<&str, Refusal> {
    let name = text(key, span, json)?;
    if is_name(name) {
        return Ok(name);
    }
    Err(bad_request(format!(
        "{} must be a string of 1 to {NAME_BYTES_MAX} bytes without invisible characters or blanks \
         around it",
        key.as_str()
    )))
}

/// The text of a string. `json` is what `span` covers; escapes are resolved in place.
#[inline]
fn text(key: Field, span: Span, json: &mut [u8]) -> Result<&str, Refusal> {
    let [b'"', inside @ .., b'"'] = &*json else {
        return Err(bad_request(format!("{} must be a string", key.as_str())));
    };
    if span.escaped {
        return simd_json::from_slice::<&str>(json).map_err(|_| not_text(key));
    }
    debug_assert!(!inside.contains(&b'\\'));
    let inside = 1..json.len() - 1;
    std::str::from_utf8(&json[inside]).map_err(|_| not_text(key))
}

/// The scanner has seen that the escapes are well-formed, so this one is left.
#[cold]
fn not_text(key: Field) -> Refusal {
    bad_request(format!("{} is not Unicode: half of a surrogate pair is missing", key.as_str()))
}

#[cold]
fn unknown_type(name: &str) -> Refusal {
    let shown: String = name.chars().take(TYPE_SHOWN_CHARS_MAX).collect();
    let cut = if shown.len() < name.len() { "…" } else { "" };
    Refusal {
        code: ErrorCode::UnknownType,
        message: format!(
            "type \"{shown}{cut}\" is unknown; known are join, leave, publish, send, broadcast, \
             presence, history, ack, auth and ping"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEPTH: usize = 64;

    /// Parses and hands what came out to `check`, because it borrows from the message.
    fn read<T>(message: &str, check: impl FnOnce(Result<Request<'_>, Rejected>) -> T) -> T {
        check(parse(&mut message.as_bytes().to_vec(), DEPTH))
    }

    fn understood(message: &str, command: Command<'_>) {
        let id = None;
        read(message, |request| assert_eq!(request, Ok(Request { id, command }), "{message}"));
    }

    fn refused(message: &str) -> Rejected {
        read(message, |request| request.expect_err(message))
    }

    fn publish<'a>(room: &'a str, payload: &'a str) -> Command<'a> {
        let payload = payload.as_bytes();
        Command::Publish { room, payload, echo: true, key: None, conflate_key: None }
    }

    #[test]
    fn tokens_are_read_alone_and_with_a_join() {
        understood(r#"{"type":"auth","token":"a.b.c"}"#, Command::Auth { token: "a.b.c" });
        let (room, info, token) = ("r", Some("7"), Some("a.b"));
        understood(
            r#"{"token":"\u0061.b","info":7,"type":"join","room_id":"r"}"#,
            Command::Join { room, since: None, info, ack: false, token },
        );
        let long = "x".repeat(TOKEN_BYTES_MAX + 1);
        for token in [r#""""#.to_owned(), "7".to_owned(), format!("\"{long}\"")] {
            let auth = format!(r#"{{"type":"auth","token":{token}}}"#);
            let join = format!(r#"{{"type":"join","room_id":"r","token":{token}}}"#);
            assert_eq!(refused(&auth).code, ErrorCode::BadRequest, "{token}");
            assert_eq!(refused(&join).code, ErrorCode::BadRequest, "{token}");
        }
        assert!(refused(r#"{"type":"auth"}"#).message.contains("token is missing"));
    }

    #[test]
    fn every_command_is_understood() {
        let (room, user, payload) = ("r", "u", b"1".as_slice());
        let join_with = |info, since| Command::Join { room, since, info, ack: false, token: None };
        let join = |since| join_with(None, since);
        let since = |epoch, offset| Some(Position { epoch, offset });
        let publish = |echo, key: Option<&str>| {
            let key = key.map(Into::into);
            Command::Publish { room, payload, echo, key, conflate_key: None }
        };
        let cases = [
            (r#"{"type":"join","room_id":"r"}"#, join(None)),
            (
                r#"{"type":"join","room_id":"r","since":{"epoch":"17","offset":12}}"#,
                join(since(17, 12)),
            ),
            (
                r#"{"type":"join","room_id":"r","since":{"offset":1,"x":[],"epoch":"\n"}}"#,
                join(since(0, 1)),
            ),
            (
                r#"{"info":{"a" : "\u00e9"},"type":"join","room_id":"\u0072"}"#,
                join_with(Some(r#"{"a" : "\u00e9"}"#), None),
            ),
            (r#"{"type":"leave","room_id":"r"}"#, Command::Leave { room }),
            (r#"{"type":"publish","room_id":"r","payload":1}"#, publish(true, None)),
            (r#"{"type":"publish","room_id":"r","payload":1,"echo":true}"#, publish(true, None)),
            (r#"{"type":"publish","room_id":"r","payload":1,"echo":false}"#, publish(false, None)),
            (r#"{"type":"publish","room_id":"r","payload":1,"key":"k"}"#, publish(true, Some("k"))),
            (r#"{"room_id":"r","payload":1}"#, publish(true, None)),
            (
                r#"{"payload":1,"key":"k\n","echo":false,"room_id":"r"}"#,
                publish(false, Some("k\n")),
            ),
            (
                r#"{"type":"send","target_user_id":"u","payload":1}"#,
                Command::Send { user, payload, key: None },
            ),
            (
                r#"{"target_user_id":"u","payload":1,"key":"k"}"#,
                Command::Send { user, payload, key: Some("k".into()) },
            ),
            (r#"{"type":"broadcast","payload":1}"#, Command::Broadcast { payload, key: None }),
            (
                r#"{"type":"broadcast","payload":1,"key":"k"}"#,
                Command::Broadcast { payload, key: Some("k".into()) },
            ),
            (r#"{"type":"presence","room_id":"r"}"#, Command::Presence { room }),
            (
                r#"{"type":"history","room_id":"r"}"#,
                Command::History {
                    room,
                    page: Page { since: None, limit: LIMIT_DEFAULT, reverse: false },
                },
            ),
            (
                r#"{"reverse":true,"limit":10,"since":{"epoch":"1","offset":2},"type":"history","room_id":"r"}"#,
                Command::History {
                    room,
                    page: Page { since: since(1, 2), limit: 10, reverse: true },
                },
            ),
            (r#"{"type":"ping"}"#, Command::Ping),
        ];
        for (message, command) in cases {
            understood(message, command);
        }
    }

    #[test]
    fn acknowledgements_are_understood() {
        let ack = |of, epoch, offset| Command::Ack { of, up_to: UpTo { epoch, offset } };
        let (room, own) = (AckOf::Room("r"), AckOf::User(None));
        let join = Command::Join { room: "r", since: None, info: None, ack: true, token: None };
        understood(r#"{"type":"join","room_id":"r","ack":true}"#, join);
        for (message, command) in [
            (r#"{"type":"ack","room_id":"r","offset":12}"#, ack(room, None, 12)),
            (
                r#"{"offset":0,"epoch":"1\u0037","room_id":"\u0072","type":"ack"}"#,
                ack(room, Some(17), 0),
            ),
            (r#"{"type":"ack","offset":1,"epoch":"another's"}"#, ack(own, Some(0), 1)),
            (
                r#"{"type":"ack","target_user_id":"u","offset":18446744073709551615}"#,
                ack(AckOf::User(Some("u")), None, u64::MAX),
            ),
        ] {
            understood(message, command);
        }
        for (message, says) in [
            (r#"{"type":"join","room_id":"r","ack":1}"#, "ack must be true or false"),
            (r#"{"type":"ack","room_id":"r"}"#, "offset is missing"),
            (r#"{"type":"ack","offset":-1}"#, "offset must be a non-negative integer"),
            (r#"{"type":"ack","offset":1.0}"#, "offset must be"),
            (r#"{"type":"ack","offset":"1"}"#, "offset must be"),
            (r#"{"type":"ack","offset":18446744073709551616}"#, "offset must be"),
            (r#"{"type":"ack","offset":1,"epoch":1}"#, "epoch must be a string"),
            (r#"{"type":"ack","offset":1,"epoch":"\ud800"}"#, "epoch is not Unicode"),
            (r#"{"type":"ack","offset":1,"room_id":""}"#, "room_id must be a string of 1 to"),
            (r#"{"type":"ack","offset":1,"target_user_id":7}"#, "target_user_id must be"),
            (r#"{"type":"ack","offset":1,"room_id":"r","target_user_id":"u"}"#, "both there"),
        ] {
            let Rejected { code, message: reason, .. } = refused(message);
            assert_eq!(code, ErrorCode::BadRequest, "{message}");
            assert!(reason.contains(says), "{message}: {reason}");
        }
    }

    #[test]
    fn what_a_message_is_about_is_understood() {
        for (message, about) in [
            (r#"{"room_id":"r","payload":1,"conflate_key":"AAPL"}"#, "AAPL"),
            (r#"{"conflate_key":"\u0041\"","room_id":"r","payload":1}"#, "A\""),
        ] {
            let (room, payload, conflate_key) = ("r", &b"1"[..], ConflateKey::of(about));
            let (echo, key) = (true, None);
            understood(message, Command::Publish { room, payload, echo, key, conflate_key });
        }
    }

    #[test]
    fn what_is_not_ours_or_not_needed_is_ignored() {
        understood(r#"{"x":{"type":"join"},"type":"ping","x":2,"":[1e999]}"#, Command::Ping);
        understood(r#"{"type":"ping","since":5,"echo":"no","key":1,"room_id":""}"#, Command::Ping);
        understood(r#"{"\u0074ype_":1,"\ud800":1,"\n":1,"type":"ping"}"#, Command::Ping);
        let long = format!("{{\"type\":\"ping\",\"\\u0074{}\":1}}", "x".repeat(100));
        understood(&long, Command::Ping);
    }

    #[test]
    fn escapes_mean_what_they_stand_for_in_keys_and_in_names() {
        understood(r#"{"room\u005fid":"r","payloa\u0064":1}"#, publish("r", "1"));
        understood(r#"{"\u0074\u0079\u0070\u0065":"\u0070in\u0067"}"#, Command::Ping);
        let name = "a \"é\" €/😀";
        let message = r#"{"room_id":"a \"\u00e9\" \u20AC\/\ud83d\ude00","payload":"\u00e9"}"#;
        understood(message, publish(name, r#""\u00e9""#));
        let message = r#"{"payload":"\u00e9","room_id":"a \"\u00e9\" \u20AC\/\ud83d\ude00"}"#;
        understood(message, publish(name, r#""\u00e9""#));
        let doubled = refused(r#"{"room_id":"r","room\u005Fid":"r","payload":1}"#);
        assert!(doubled.message.contains("room_id"), "{}", doubled.message);
    }

    #[test]
    fn a_payload_is_cut_out_byte_for_byte() {
        let deep = format!("{}{}", "[".repeat(DEPTH - 1), "]".repeat(DEPTH - 1));
        let payloads = [
            "1.0",
            "1e400",
            "-1E-400",
            "-0",
            "-0.0",
            "123456789012345678901234567890",
            "null",
            "0.1000000000000000055511151231257827021181583404541015625",
            "true",
            "false",
            "\"\"",
            r#""\u00e9\u20ac\ud83d\ude00""#,
            "\"é€😀\"",
            r#""\ud800""#,
            r#""\/\b\"\\""#,
            "[ ]",
            r#"{"a":1,"a":2,"type":"join","type":"join"}"#,
            "{ \"a\" :\t[ 1 ,\n2 ] }",
            "{}",
            "\"\u{7f}\u{2028}\"",
            r#"{"room_id":"other","payload":{"payload":1}}"#,
            &deep,
        ];
        for payload in payloads {
            understood(
                &format!("{{\"room_id\":\"r\",\"payload\":{payload}}}"),
                publish("r", payload),
            );
            let spaced = format!(" {{\r\n\"payload\" :\t{payload}\n ,\"room_id\":\"\\u0072\" }} ");
            understood(&spaced, publish("r", payload));
        }
    }

    #[test]
    fn ids_come_back_as_they_were_written() {
        let longest = format!("\"{}\"", "x".repeat(RequestId::BYTES_MAX - 2));
        let number = RequestId::Number;
        let text = |json: &str| RequestId::from(json);
        let cases = [
            ("0", number(0)),
            ("7", number(7)),
            ("18446744073709551615", number(u64::MAX)),
            ("18446744073709551616", text("18446744073709551616")),
            ("99999999999999999999", text("99999999999999999999")),
            ("100000000000000000000", text("100000000000000000000")),
            ("-1", text("-1")),
            ("-0", text("-0")),
            ("1.0", text("1.0")),
            ("1e400", text("1e400")),
            ("\"\"", text("\"\"")),
            ("\"7\"", text("\"7\"")),
            (r#""a\u0062\ud800""#, text(r#""a\u0062\ud800""#)),
            ("\"é\"", text("\"é\"")),
            (&longest, text(&longest)),
        ];
        for (json, id) in cases {
            let request = Request { id: Some(id), command: Command::Ping };
            read(&format!("{{\"id\": {json} ,\"type\":\"ping\"}}"), |got| {
                assert_eq!(got, Ok(request))
            });
        }
    }

    #[test]
    fn an_id_that_is_neither_number_nor_short_string_is_refused() {
        let too_long = format!("\"{}\"", "x".repeat(RequestId::BYTES_MAX - 1));
        let too_many_digits = "1".repeat(RequestId::BYTES_MAX + 1);
        for json in ["null", "true", "{}", "[1]", &too_long, &too_many_digits] {
            let rejected = refused(&format!("{{\"id\":{json},\"type\":\"ping\"}}"));
            assert_eq!((rejected.id, rejected.code), (None, ErrorCode::BadRequest), "{json}");
            assert!(rejected.message.contains("id must be a number or a string"), "{json}");
        }
    }

    /// Each request, the code of its error, and a part of the error's message.
    #[test]
    fn every_refusal_names_what_is_wrong() {
        let key = |bytes| {
            let key = "k".repeat(bytes);
            format!("{{\"type\":\"broadcast\",\"payload\":1,\"key\":\"{key}\"}}")
        };
        let room = |bytes| format!("{{\"type\":\"join\",\"room_id\":\"{}\"}}", "r".repeat(bytes));
        assert!(read(&key(KEY_BYTES_MAX), |request| request.is_ok()));
        assert!(read(&room(NAME_BYTES_MAX), |request| request.is_ok()));
        let conflate = |bytes| {
            let key = "k".repeat(bytes);
            format!("{{\"room_id\":\"r\",\"payload\":1,\"conflate_key\":\"{key}\"}}")
        };
        let info = |bytes: usize| {
            let text = "i".repeat(bytes - 2);
            format!("{{\"type\":\"join\",\"room_id\":\"r\",\"info\":\"{text}\"}}")
        };
        assert!(read(&conflate(CONFLATE_KEY_BYTES_MAX), |request| request.is_ok()));
        assert!(read(&info(INFO_BYTES_MAX), |request| request.is_ok()));
        let (long_conflate, long_info) =
            (conflate(CONFLATE_KEY_BYTES_MAX + 1), info(INFO_BYTES_MAX + 1));
        let (long_key, long_room) = (key(KEY_BYTES_MAX + 1), room(NAME_BYTES_MAX + 1));
        let cases = [
            ("{}", "room_id"),
            (r#"{"payload":1}"#, "target_user_id"),
            (r#"{"room_id":"r"}"#, "payload is missing"),
            (r#"{"target_user_id":"u"}"#, "payload is missing"),
            (r#"{"room_id":"r","target_user_id":"u","payload":1}"#, "both there"),
            (r#"{"type":"join"}"#, "room_id is missing"),
            (r#"{"type":"leave"}"#, "room_id is missing"),
            (r#"{"type":"presence"}"#, "room_id is missing"),
            (r#"{"type":"history"}"#, "room_id is missing"),
            (r#"{"type":"publish","payload":1}"#, "room_id is missing"),
            (r#"{"type":"publish","room_id":"r"}"#, "payload is missing"),
            (r#"{"type":"send","room_id":"r","payload":1}"#, "target_user_id is missing"),
            (r#"{"type":"send","target_user_id":"u"}"#, "payload is missing"),
            (r#"{"type":"broadcast"}"#, "payload is missing"),
            (r#"{"type":7}"#, "type must be a string"),
            (r#"{"type":null,"room_id":"r","payload":1}"#, "type must be a string"),
            (r#"{"type":"\ud800"}"#, "type is not Unicode"),
            (r#"{"type":"join","room_id":7}"#, "room_id must be a string"),
            (r#"{"type":"join","room_id":["r"]}"#, "room_id must be a string"),
            (r#"{"type":"join","room_id":""}"#, "room_id must be a string of 1 to 255 bytes"),
            (r#"{"type":"join","room_id":"a\nb"}"#, "without invisible characters"),
            ("{\"type\":\"join\",\"room_id\":\"a\u{85}b\"}", "without invisible characters"),
            (r#"{"type":"join","room_id":"\udc00"}"#, "room_id is not Unicode"),
            (&long_conflate, "conflate_key must be a string of 1 to 128 bytes"),
            (&long_info, "info must be a JSON value of at most 512 bytes"),
            (&long_room, "room_id must be a string of 1 to 255 bytes"),
            (r#"{"target_user_id":"","payload":1}"#, "target_user_id must be a string of 1 to"),
            (r#"{"room_id":"r","payload":1,"echo":0}"#, "echo must be true or false"),
            (r#"{"room_id":"r","payload":1,"echo":"true"}"#, "echo must be true or false"),
            (r#"{"room_id":"r","payload":1,"echo":null}"#, "echo must be true or false"),
            (r#"{"room_id":"r","payload":1,"key":1}"#, "key must be a string"),
            (r#"{"room_id":"r","payload":1,"conflate_key":[]}"#, "conflate_key must be a string"),
            (
                r#"{"room_id":"r","payload":1,"conflate_key":""}"#,
                "conflate_key must be a string of 1 to 128",
            ),
            (r#"{"target_user_id":"u","payload":1,"key":""}"#, "key must be a string of 1 to 128"),
            (r#"{"type":"broadcast","payload":1,"key":"\ud800"}"#, "key is not Unicode"),
            (&long_key, "key must be a string of 1 to 128 bytes"),
        ];
        for (message, says) in cases {
            let Rejected { id, code, message: reason } = refused(message);
            assert_eq!((id, code), (None, ErrorCode::BadRequest), "{message}");
            assert!(reason.contains(says), "{message}: {reason}");
        }
    }

    #[test]
    fn a_since_of_another_shape_is_refused() {
        let shapes = [
            "null",
            "12",
            "\"e\"",
            "[\"e\",12]",
            "{}",
            r#"{"epoch":"e"}"#,
            r#"{"offset":1}"#,
            r#"{"epoch":1,"offset":1}"#,
            r#"{"epoch":"e","offset":"1"}"#,
            r#"{"epoch":"e","offset":-1}"#,
            r#"{"epoch":"e","offset":1.0}"#,
            r#"{"epoch":"e","offset":1e2}"#,
            r#"{"epoch":"e","offset":null}"#,
            r#"{"epoch":"e","offset":18446744073709551616}"#,
            r#"{"epoch":"e","epoch":"e","offset":1}"#,
            r#"{"epoch":"\ud800","offset":1}"#,
        ];
        for since in shapes {
            let message =
                format!("{{\"type\":\"join\",\"room_id\":\"r\",\"id\":3,\"since\":{since}}}");
            let rejected = refused(&message);
            assert_eq!(rejected.id, Some(RequestId::Number(3)), "{since}");
            assert_eq!(rejected.code, ErrorCode::BadRequest, "{since}");
            assert!(rejected.message.contains("since must be an object"), "{since}");
        }
    }

    #[test]
    fn a_doubled_key_of_ours_is_refused_by_name() {
        for key in Field::ALL {
            let name = key.as_str();
            let rejected =
                refused(&format!("{{\"{name}\":1,\"x\":{{\"{name}\":2}},\"{name}\":1}}"));
            assert_eq!((rejected.id, rejected.code), (None, ErrorCode::BadRequest));
            assert_eq!(rejected.message, format!("{name} is there more than once"));
            assert_eq!(Field::from_bytes(name.as_bytes()), Some(key));
        }
    }

    #[test]
    fn an_unknown_type_is_named_but_not_at_any_length() {
        let rejected = refused(r#"{"type":"Join","room_id":"r","id":"x"}"#);
        assert_eq!(rejected.code, ErrorCode::UnknownType);
        assert_eq!(rejected.id, Some(RequestId::from("\"x\"")));
        assert!(rejected.message.starts_with("type \"Join\" is unknown; known are join, leave"));
        let rejected = refused(&format!("{{\"type\":\"{}\"}}", "é".repeat(30_000)));
        assert_eq!(rejected.code, ErrorCode::UnknownType);
        assert!(rejected.message.contains(&format!("\"{}…\"", "é".repeat(TYPE_SHOWN_CHARS_MAX))));
        assert!(rejected.message.len() < 256);
    }

    #[test]
    fn what_is_not_one_json_object_is_refused_with_the_byte() {
        let cases = [
            ("", 0),
            ("hello", 0),
            ("[]", 0),
            ("\"x\"", 0),
            ("{", 1),
            ("{}{}", 2),
            ("{\"a\":1,}", 7),
            ("{\"type\":\"ping\"", 14),
            ("{'type':'ping'}", 1),
            ("{\"x\":nul}", 8),
            ("{\"type\":\"ping\",\"x\":01}", 20),
            ("{\"type\":\"pi\nng\"}", 11),
        ];
        for (message, at) in cases {
            let rejected = refused(message);
            assert_eq!((rejected.id, rejected.code), (None, ErrorCode::BadJson), "{message}");
            assert!(
                rejected.message.contains(&format!("(byte {at})")),
                "{message}: {}",
                rejected.message
            );
        }
    }

    #[test]
    fn an_id_that_could_be_read_goes_with_every_refusal() {
        let seven = Some(RequestId::Number(7));
        for message in [
            r#"{"id":7}"#,
            r#"{"type":"x","id":7}"#,
            r#"{"type":"ping","type":"ping","id":7}"#,
            r#"{"id":7,"type":"ping",}"#,
            r#"{"type":"join","room_id":"","id":7}"#,
        ] {
            assert_eq!(refused(message).id, seven, "{message}");
        }
        assert_eq!(refused(r#"{"id":7,"id":7,"type":"ping"}"#).id, None, "which of the two?");
        assert_eq!(refused(r#"{"type":"ping",,"id":7}"#).id, None, "not reached");
    }

    #[test]
    fn nesting_is_refused_from_the_level_after_the_limit() {
        let of_depth = |depth: usize| {
            let inner = depth - 1;
            let payload = format!("{}{}", "[".repeat(inner), "]".repeat(inner));
            format!("{{\"id\":7,\"room_id\":\"r\",\"payload\":{payload}}}").into_bytes()
        };
        for depth_max in [2, 8, 64, 256] {
            assert!(parse(&mut of_depth(depth_max), depth_max).is_ok());
            let mut too_deep = of_depth(depth_max + 1);
            let rejected = parse(&mut too_deep, depth_max).expect_err("one level too many");
            assert_eq!(rejected.code, ErrorCode::BadJson);
            assert_eq!(rejected.id, Some(RequestId::Number(7)));
            assert!(rejected.message.contains("nested deeper than the limit"));
        }
    }

    #[test]
    fn a_megabyte_of_brackets_is_refused_like_a_handful() {
        for opener in ["[", "{\"a\":", "[{\"a\":"] {
            for limit in [DEPTH, usize::MAX] {
                let mut bomb = format!("{{\"payload\":{}", opener.repeat(1 << 20)).into_bytes();
                let rejected = parse(&mut bomb, limit).expect_err("too deep");
                assert_eq!(rejected.code, ErrorCode::BadJson);
                assert!(rejected.message.contains("nested deeper"), "{}", rejected.message);
            }
        }
        assert_eq!(refused(&"[".repeat(1 << 20)).code, ErrorCode::BadJson);
    }

    #[test]
    fn bytes_that_are_not_utf_8_are_refused_where_text_is_needed() {
        let mut message = b"{\"type\":\"join\",\"room_id\":\"\xff\"}".to_vec();
        let rejected = parse(&mut message, DEPTH).expect_err("not text");
        assert_eq!(rejected.code, ErrorCode::BadRequest);
    }
}
