//! Templates for paths, first messages, publishes and replies, in any server's protocol.
//!
//! | placeholder | value |
//! |---|---|
//! | `{room}` | name of the room |
//! | `{room_ids}` | all rooms of the connection, as a query: `room_id=a&room_id=b` |
//! | `{n}` | number of the connection |
//! | `{token}` | token with the claims of `--token-claims` |
//! | `{payload}` | filler and stamp |
//! | `{seq}` | sequence number of the message in its room |
//! | `{field:NAME}` | in replies: value of NAME in the frame that is replied to |
//! | `{signature}` | in replies: signature made with `--sign` |
//!
//! Other braces stay as they are, so JSON needs no escaping.
//!
//! Invariant: a placeholder that a template cannot fill is refused before the first connect.

use super::rooms::RoomAssignment;
use super::stamp::Stamp;
use super::token;
use hmac::{Hmac, Mac};
use sha2::Sha256;

/// A text, split at its placeholders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    parts: Vec<TemplatePart>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum TemplatePart {
    Text(String),
    Room,
    RoomIds,
    Number,
    Token,
    Payload,
    Seq,
    Field(String),
    Signature,
}

const PLACEHOLDERS: [(&str, TemplatePart); 7] = [
    ("{room}", TemplatePart::Room),
    ("{room_ids}", TemplatePart::RoomIds),
    ("{token}", TemplatePart::Token),
    ("{n}", TemplatePart::Number),
    ("{payload}", TemplatePart::Payload),
    ("{seq}", TemplatePart::Seq),
    ("{signature}", TemplatePart::Signature),
];
/// The second is deprecated.
const FIELD_STARTS: [&str; 2] = ["{field:", "{said:"];

/// What fills placeholders and is the same for a whole run.
#[derive(Clone, Debug)]
pub struct TemplateContext {
    /// Beginning of a room name; the room's index follows.
    pub room_prefix: String,
    /// Which connection is in which rooms.
    pub rooms: RoomAssignment,
    /// Signs tokens; without it no template has a `{token}`.
    pub token_secret: Option<String>,
    /// The claims of tokens. Has no `{token}` itself.
    pub token_claims: Template,
}

/// The values of one message.
#[derive(Clone, Copy, Debug)]
pub struct TemplateValues<'a> {
    /// The values of the run.
    pub context: &'a TemplateContext,
    /// The room's index.
    pub room: u32,
    /// The connection's index.
    pub number: u32,
    /// Stamp and payload length, in publishes.
    pub message: Option<(Stamp, usize)>,
    /// The frame that is replied to; empty elsewhere.
    pub received: &'a [u8],
    /// Makes `{signature}`.
    pub signer: Option<&'a ReplySigner>,
}

impl Template {
    /// Splits `text` at its placeholders. Every text is a template.
    pub fn parse(text: &str) -> Template {
        let mut parts = Vec::new();
        let mut rest = text;
        let fixed = |rest: &str| {
            let found = |(name, part): &(&str, TemplatePart)| {
                rest.find(name).map(|at| (at, name.len(), part.clone()))
            };
            PLACEHOLDERS.iter().filter_map(found).min_by_key(|(at, ..)| *at)
        };
        while let Some((at, length, part)) =
            fixed(rest).into_iter().chain(find_field(rest)).min_by_key(|(at, ..)| *at)
        {
            parts.push(TemplatePart::Text(rest[..at].to_owned()));
            parts.push(part);
            rest = &rest[at + length..];
        }
        parts.push(TemplatePart::Text(rest.to_owned()));
        parts.retain(|part| !matches!(part, TemplatePart::Text(text) if text.is_empty()));
        Template { parts }
    }

    /// Whether it has a `{payload}`.
    pub fn has_payload(&self) -> bool {
        self.parts.contains(&TemplatePart::Payload)
    }

    /// Whether it has `{room_ids}`.
    pub fn has_room_ids(&self) -> bool {
        self.parts.contains(&TemplatePart::RoomIds)
    }

    /// Whether it has a `{token}`.
    pub fn has_token(&self) -> bool {
        self.parts.contains(&TemplatePart::Token)
    }

    /// Whether it has a `{signature}`.
    pub fn has_signature(&self) -> bool {
        self.parts.contains(&TemplatePart::Signature)
    }

    /// Whether it has placeholders that only a reply can fill.
    pub fn needs_received_frame(&self) -> bool {
        self.parts
            .iter()
            .any(|part| matches!(part, TemplatePart::Field(_) | TemplatePart::Signature))
    }

    /// Appends the filled text.
    pub fn fill(&self, values: &TemplateValues<'_>, out: &mut Vec<u8>) {
        for part in &self.parts {
            match part {
                TemplatePart::Text(text) => out.extend_from_slice(text.as_bytes()),
                TemplatePart::Room => put_room(out, values.context, values.room),
                TemplatePart::RoomIds => {
                    for (i, room) in values.context.rooms.rooms_of(values.number).enumerate() {
                        out.extend_from_slice(if i == 0 { b"room_id=" } else { b"&room_id=" });
                        put_room(out, values.context, room);
                    }
                }
                TemplatePart::Token => {
                    let mut claims = Vec::new();
                    values.context.token_claims.fill(values, &mut claims);
                    let secret = values.context.token_secret.as_deref().unwrap_or_default();
                    out.extend_from_slice(token::sign(&claims, secret).as_bytes());
                }
                TemplatePart::Number => put_decimal(out, values.number),
                TemplatePart::Payload => {
                    if let Some((stamp, payload_bytes)) = values.message {
                        stamp.write(payload_bytes, out);
                    }
                }
                TemplatePart::Seq => {
                    put_decimal(out, values.message.map_or(0, |(stamp, _)| stamp.seq))
                }
                TemplatePart::Field(name) => {
                    out.extend_from_slice(json_value(values.received, name))
                }
                TemplatePart::Signature => {
                    if let Some(signer) = values.signer {
                        signer.sign(values, out);
                    }
                }
            }
        }
    }
}

fn put_room(out: &mut Vec<u8>, context: &TemplateContext, room: u32) {
    out.extend_from_slice(context.room_prefix.as_bytes());
    put_decimal(out, room);
}

/// Position and length of the first `{field:NAME}`; NAME is not empty.
fn find_field(text: &str) -> Option<(usize, usize, TemplatePart)> {
    FIELD_STARTS.iter().filter_map(|start| find_field_named(text, start)).min_by_key(|(at, ..)| *at)
}

fn find_field_named(text: &str, start: &str) -> Option<(usize, usize, TemplatePart)> {
    let mut from = 0;
    while let Some(at) = text[from..].find(start).map(|at| from + at) {
        let name = text[at + start.len()..].split('}').next().unwrap_or_default();
        let end = at + start.len() + name.len() + 1;
        if !name.is_empty() && end <= text.len() {
            return Some((at, end - at, TemplatePart::Field(name.to_owned())));
        }
        from = at + start.len();
    }
    None
}

fn put_decimal(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

/// Makes `{signature}`: HMAC-SHA256 in hex, as Pusher's private channels require it.
#[derive(Debug)]
pub struct ReplySigner {
    key: Vec<u8>,
    text: Template,
}

impl ReplySigner {
    /// From `KEY=TEXT`, split at the first `=`. `None` without a `=`, and if TEXT has a
    /// `{signature}`.
    pub fn parse(text: &str) -> Option<ReplySigner> {
        let (key, text) = text.split_once('=')?;
        let text = Template::parse(text);
        (!text.has_signature()).then(|| ReplySigner { key: key.into(), text })
    }

    /// Appends the signature of the filled text.
    pub fn sign(&self, values: &TemplateValues<'_>, out: &mut Vec<u8>) {
        let mut text = Vec::new();
        self.text.fill(values, &mut text);
        let mac = Hmac::<Sha256>::new_from_slice(&self.key).expect("HMAC takes keys of any length");
        for byte in mac.chain_update(&text).finalize().into_bytes() {
            out.extend([byte >> 4, byte & 15].map(|digit| b"0123456789abcdef"[digit as usize]));
        }
    }
}

/// The string or number after `name` in a JSON text, also if that text is a string in another one
/// (`\"name\":\"value\"`); empty if there is none. A string ends at its first escape.
pub(crate) fn json_value<'a>(frame: &'a [u8], name: &str) -> &'a [u8] {
    let Some(at) = frame.windows(name.len()).position(|window| window == name.as_bytes()) else {
        return &[];
    };
    let rest = &frame[at + name.len()..];
    let start = rest.iter().position(|byte| !b"\\\": ".contains(byte)).unwrap_or(rest.len());
    let word = rest[start..].split(|byte| b"\\\",}]".contains(byte));
    word.into_iter().next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(text: &str) -> String {
        let stamp = Stamp { run_id: 1, room: 3, seq: 9, intended_ns: 0 };
        let context = TemplateContext {
            room_prefix: "load-".into(),
            rooms: RoomAssignment::of_size(100, 10),
            token_secret: None,
            token_claims: Template::parse(r#"{"sub":"{room}-{n}"}"#),
        };
        let values = TemplateValues {
            context: &context,
            room: 3,
            number: 41,
            message: Some((stamp, super::super::stamp::STAMP_BYTES)),
            received: br#"{"socket_id":"1.2"}"#,
            signer: None,
        };
        let mut out = Vec::new();
        Template::parse(text).fill(&values, &mut out);
        String::from_utf8(out).expect("ASCII")
    }

    #[test]
    fn placeholders_are_filled_and_other_braces_stay() {
        assert_eq!(filled(r#"{"join":"{room}","n":{n}}"#), r#"{"join":"load-3","n":41}"#);
        assert_eq!(filled("{room}{seq}"), "load-39");
        assert_eq!(filled("/ws?{room_ids}"), "/ws?room_id=load-4");
        assert_eq!(filled("{}{ room }"), "{}{ room }");
        assert_eq!(filled(""), "");
    }

    #[test]
    fn a_field_of_the_received_frame_fills_its_placeholder() {
        assert_eq!(filled("{room}:{field:socket_id}:{n}"), "load-3:1.2:41");
        assert_eq!(filled("{field:sid}{field:}{field:"), "{field:}{field:");
        let both = "{said:a}{field:b}";
        assert_eq!(Template::parse(both), Template::parse("{field:a}{field:b}"));
        assert!(Template::parse("a{field:b}").needs_received_frame());
        assert!(Template::parse("{signature}").needs_received_frame());
        assert!(!Template::parse("{field:}{payload}").needs_received_frame());
    }

    #[test]
    fn a_template_without_a_payload_is_recognized() {
        assert!(filled("[{payload}]").starts_with("[~CL~00000001"));
        assert!(Template::parse("a{payload}b").has_payload());
        assert!(!Template::parse("{room}{seq}{n}").has_payload());
    }

    fn context() -> TemplateContext {
        TemplateContext {
            room_prefix: "foo".into(),
            rooms: RoomAssignment::of_size(10, 1),
            token_secret: None,
            token_claims: Template::parse(r#"{"sub":"{room}-{n}"}"#),
        }
    }

    fn values<'a>(
        context: &'a TemplateContext,
        received: &'a [u8],
        signer: Option<&'a ReplySigner>,
    ) -> TemplateValues<'a> {
        TemplateValues { context, room: 7, number: 0, message: None, received, signer }
    }

    #[test]
    fn a_value_is_found_in_json_and_in_json_within_json() {
        let inner =
            br#"{"event":"e","data":"{\"socket_id\":\"123.456\",\"activity_timeout\":120}"}"#;
        assert_eq!(json_value(inner, "socket_id"), b"123.456");
        assert_eq!(json_value(inner, "activity_timeout"), b"120");
        assert_eq!(json_value(br#"0{"sid": "ab-c" }"#, "sid"), b"ab-c");
        assert_eq!(json_value(b"{\"sid\":", "sid"), b"");
        assert_eq!(json_value(b"{}", "sid"), b"");
    }

    #[test]
    fn a_pusher_channel_is_signed_as_its_documentation_shows() {
        let signer = ReplySigner::parse("7ad3773142a6692b25b8={field:socket_id}:private-{room}bar")
            .expect("a signer");
        let received = br#"{"socket_id":"1234.1234"}"#;
        let mut out = Vec::new();
        let template = Template::parse("278d425bdf160c739803:{signature}");
        // The documented channel is private-foobar, so the room must have no number.
        let nameless = ReplySigner::parse("7ad3773142a6692b25b8={field:socket_id}:private-foobar")
            .expect("a signer");
        template.fill(&values(&context(), received, Some(&nameless)), &mut out);
        assert_eq!(
            String::from_utf8(out).expect("ASCII"),
            "278d425bdf160c739803:\
             58df8b0c36d6982b82c3ecf6b4662e34fe8c25bba48f5369f135bf843651c3a4"
        );
        let (mut one, mut other) = (Vec::new(), Vec::new());
        template.fill(&values(&context(), received, Some(&signer)), &mut one);
        template
            .fill(&values(&context(), br#"{"socket_id":"1234.1235"}"#, Some(&signer)), &mut other);
        assert_ne!(one, other, "the signature depends on the received frame");
    }

    #[test]
    fn a_signature_in_the_text_that_is_signed_is_refused() {
        assert!(ReplySigner::parse("key=a{signature}").is_none());
        assert!(ReplySigner::parse("no equals sign").is_none());
    }
}
