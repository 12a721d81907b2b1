//! The native dialect against serde_json, which shares no code with it: what is JSON, what a string
//! means, and that whatever goes in comes out.

use campanile::ids::{NAME_BYTES_MAX, Position, TopicKind, UpTo};
use campanile::protocol::json::{Fault, Members};
use campanile::protocol::{
    AckOf, Command, ErrorCode, Event, Recovery, Rejected, Request, RequestId, Unrecovered, native,
};
use proptest::prelude::*;
use proptest::sample::{Index, select};
use serde::de::IgnoredAny;
use serde_json::Value;
use serde_json::value::RawValue;

/// Far beyond what is generated here, so that only the grammar decides.
const DEPTH: usize = 1024;

// --- what is generated ---

/// The inside of a string, as it may be written.
fn string_inside() -> impl Strategy<Value = String> {
    let short = ["\\\"", "\\\\", "\\/", "\\b", "\\f", "\\n", "\\r", "\\t"];
    let piece = prop_oneof![
        4 => "[a-z {}\\[\\],:]{0,12}",
        2 => "[^\\x00-\\x1f\"\\\\]{0,6}",
        1 => select(short.to_vec()).prop_map(str::to_string),
        1 => any::<u16>().prop_map(|unit| format!("\\u{unit:04x}")),
        1 => any::<char>().prop_map(hex_escapes),
    ];
    prop::collection::vec(piece, 0..5).prop_map(|pieces| pieces.concat())
}

fn string() -> impl Strategy<Value = String> {
    string_inside().prop_map(|inside| format!("\"{inside}\""))
}

fn number() -> impl Strategy<Value = String> {
    "-?(0|[1-9][0-9]{0,30})(\\.[0-9]{1,12})?([eE][+-]?[0-9]{1,4})?"
}

fn space() -> impl Strategy<Value = &'static str> {
    select(vec!["", "", "", " ", "\t", "\n", "\r", " \r\n\t "])
}

/// Valid JSON of every kind, with white space wherever it may be.
fn value() -> impl Strategy<Value = String> {
    let literal = select(vec!["true", "false", "null"]).prop_map(str::to_string);
    let scalar = prop_oneof![literal, number(), string()];
    scalar.prop_recursive(6, 48, 6, |inner| {
        let item = (space(), inner.clone(), space()).prop_map(|(a, v, b)| format!("{a}{v}{b}"));
        let items = prop::collection::vec(item, 0..6).prop_map(|items| items.join(","));
        let member = (space(), string(), space(), space(), inner, space())
            .prop_map(|(a, k, b, c, v, d)| format!("{a}{k}{b}:{c}{v}{d}"));
        let members = prop::collection::vec(member, 0..6).prop_map(|members| members.join(","));
        prop_oneof![
            (space(), items).prop_map(|(a, items)| format!("[{a}{items}]")),
            (space(), members).prop_map(|(a, members)| format!("{{{a}{members}}}")),
        ]
    })
}

/// An object whose keys are often ours and whose values are anything.
fn object() -> impl Strategy<Value = String> {
    let keys = "type room_id target_user_id payload id echo key since ack epoch offset \
                room\\u005fid \\u0074ype";
    let ours = select(keys.split(' ').collect::<Vec<_>>()).prop_map(str::to_string);
    let key = prop_oneof![3 => ours, 1 => string_inside()];
    let types = "join leave publish send broadcast presence history ack ping p\\u0069ng";
    let types = select(types.split(' ').collect::<Vec<_>>());
    let val = prop_oneof![2 => value(), 1 => types.prop_map(|name| format!("\"{name}\""))];
    let member = (space(), key, space(), space(), val, space())
        .prop_map(|(a, k, b, c, v, d)| format!("{a}\"{k}\"{b}:{c}{v}{d}"));
    (space(), prop::collection::vec(member, 0..6), space())
        .prop_map(|(a, members, b)| format!("{a}{{{}}}{b}", members.join(",")))
}

/// What may happen to a text on its way.
#[derive(Clone, Debug)]
enum Harm {
    Cut(Index),
    Remove(Index),
    Insert(Index, char),
    Replace(Index, char),
    /// What lies between the first two is put in once more at the first.
    Double(Index, Index),
}

impl Harm {
    fn inflict(self, text: &mut Vec<char>) {
        let places = text.len() + 1;
        match self {
            Harm::Cut(at) => text.truncate(at.index(places)),
            Harm::Insert(at, c) => text.insert(at.index(places), c),
            Harm::Double(from, to) => {
                let (from, to) = (from.index(places), to.index(places));
                let piece = text[from.min(to)..from.max(to)].to_vec();
                text.splice(from..from, piece);
            }
            // Nothing is left to be removed or replaced.
            Harm::Remove(_) | Harm::Replace(..) if text.is_empty() => {}
            Harm::Remove(at) => drop(text.remove(at.index(places - 1))),
            Harm::Replace(at, c) => text[at.index(places - 1)] = c,
        }
    }
}

fn harm() -> impl Strategy<Value = Harm> {
    let structural = "{}[],:\"\\ \n\u{1}tfn0123456789-+.eEu/é\u{0}";
    let structural = select(structural.chars().collect::<Vec<_>>());
    let piece = prop_oneof![4 => structural, 1 => any::<char>()];
    let place = any::<Index>;
    prop_oneof![
        place().prop_map(Harm::Cut),
        place().prop_map(Harm::Remove),
        (place(), piece.clone()).prop_map(|(at, c)| Harm::Insert(at, c)),
        (place(), piece).prop_map(|(at, c)| Harm::Replace(at, c)),
        (place(), place()).prop_map(|(from, to)| Harm::Double(from, to)),
    ]
}

/// Nearly an object, or one.
fn harmed() -> impl Strategy<Value = String> {
    (object(), prop::collection::vec(harm(), 0..3)).prop_map(|(text, harms)| {
        let mut chars: Vec<char> = text.chars().collect();
        harms.into_iter().for_each(|harm| harm.inflict(&mut chars));
        chars.into_iter().collect()
    })
}

/// Names, some of them hard to write: quotes, backslashes, every plane of Unicode.
fn name() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z0-9:_-]{1,20}", "[\"\\\\/a-zé€😀\u{7ff}\u{ffff}]{1,40}", "\\PC{1,60}"]
        .prop_filter("names", |name: &String| campanile::ids::is_name(name))
}

fn request_id() -> impl Strategy<Value = Option<RequestId>> {
    let text = prop_oneof![
        string().prop_filter("short", |json| json.len() <= RequestId::BYTES_MAX),
        number().prop_filter("not plain", |json| json.parse::<u64>().is_err()),
    ];
    prop::option::of(prop_oneof![
        any::<u64>().prop_map(RequestId::Number),
        text.prop_map(|json| RequestId::from(&json[..])),
    ])
}

fn hex_escapes(c: char) -> String {
    c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04X}")).collect()
}

/// `text` as a JSON string in which the characters that `marks` names are written as `\uXXXX`.
fn written(text: &str, marks: &[bool]) -> String {
    let must = |c: char| c < ' ' || c == '"' || c == '\\';
    let marked = |index: usize| !marks.is_empty() && marks[index % marks.len()];
    let write = |(index, c)| if must(c) || marked(index) { hex_escapes(c) } else { c.to_string() };
    let inside: String = text.chars().enumerate().map(write).collect();
    format!("\"{inside}\"")
}

// --- the judges ---

/// The members as written, or why not.
fn scan(text: &str) -> Result<Vec<(&str, &str)>, Fault> {
    let mut members = Members::open(text.as_bytes(), DEPTH)?;
    let mut found = Vec::new();
    while let Some(member) = members.next_member()? {
        found.push((&text[member.key.range()], &text[member.value.range()]));
    }
    Ok(found)
}

/// serde_json's opinion. IgnoredAny has no limit on depth and makes no numbers.
fn is_json_object(text: &str) -> bool {
    text.trim_start_matches([' ', '\t', '\n', '\r']).starts_with('{')
        && serde_json::from_str::<IgnoredAny>(text).is_ok()
}

/// The members in their order, doubled ones too, as serde_json cuts them.
struct RawMembers<'a>(Vec<(String, &'a RawValue)>);

impl RawMembers<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, raw)| raw.get())
    }

    fn text(&self, name: &str) -> Option<String> {
        serde_json::from_str(self.get(name)?).ok()
    }
}

struct RawMembersVisitor;

impl<'de> serde::de::Visitor<'de> for RawMembersVisitor {
    type Value = RawMembers<'de>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = Vec::new();
        while let Some(member) = map.next_entry()? {
            members.push(member);
        }
        Ok(RawMembers(members))
    }
}

impl<'de> serde::Deserialize<'de> for RawMembers<'de> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(RawMembersVisitor)
    }
}

fn id_json(id: &RequestId) -> String {
    match id {
        RequestId::Number(number) => number.to_string(),
        RequestId::Text(json) => json.as_str().to_owned(),
    }
}

fn written_event(event: &Event<'_>) -> String {
    let mut out = Vec::new();
    native::write(event, &mut out);
    assert_eq!(out.len(), native::encoded_len(event), "{event:?}");
    String::from_utf8(out).expect("JSON is UTF-8")
}

fn topic_kind(which: u8, name: &str) -> TopicKind<'_> {
    match which % 3 {
        0 => TopicKind::Room(name),
        1 => TopicKind::User(name),
        _ => TopicKind::All,
    }
}

fn assert_topic(topic: TopicKind<'_>, read: &Value) {
    let expected = match topic {
        TopicKind::Room(room) => [Some(room), None],
        TopicKind::User(user) => [None, Some(user)],
        TopicKind::All => [None, None],
    };
    assert_eq!([read["room_id"].as_str(), read["target_user_id"].as_str()], expected);
    assert_eq!(read["broadcast"].as_bool().unwrap_or(false), topic == TopicKind::All);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    #[test]
    fn what_is_generated_as_valid_is_taken(text in object()) {
        prop_assert!(is_json_object(&text), "the generator is wrong: {text}");
        prop_assert!(scan(&text).is_ok(), "{text}");
    }

    #[test]
    fn the_scanner_and_serde_json_agree_on_what_is_json(text in harmed()) {
        prop_assert_eq!(scan(&text).is_ok(), is_json_object(&text), "{}: {:?}", text, scan(&text));
    }

    #[test]
    fn the_scanner_cuts_members_where_serde_json_cuts_them(text in harmed()) {
        // A key with half a surrogate pair is JSON, but serde_json makes no String of it.
        let Ok(RawMembers(expected)) = serde_json::from_str(&text) else { return Ok(()) };
        let found = scan(&text).expect("serde_json took it");
        prop_assert_eq!(found.len(), expected.len());
        for ((key, value), (key_text, raw)) in found.into_iter().zip(&expected) {
            let key: String = serde_json::from_str(&format!("\"{key}\"")).expect("a string");
            prop_assert_eq!(&key, key_text);
            prop_assert_eq!(value, raw.get());
        }
    }

    #[test]
    fn bad_json_is_said_of_exactly_what_is_not_a_json_object(text in harmed()) {
        let not_json = match native::parse(&mut text.clone().into_bytes(), DEPTH) {
            Err(Rejected { code, .. }) => code == ErrorCode::BadJson,
            Ok(_) => false,
        };
        prop_assert_eq!(not_json, !is_json_object(&text), "{}", text);
    }

    #[test]
    fn no_text_makes_it_panic(text in any::<String>(), depth_max in 0usize..300) {
        let _ = native::parse(&mut text.into_bytes(), depth_max);
    }

    #[test]
    fn no_bytes_in_an_object_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let string = [br#"{"room_id":""#, bytes.as_slice(), br#"","payload":1}"#].concat();
        for mut message in [bytes, string] {
            let _ = native::parse(&mut message, DEPTH);
        }
    }

    #[test]
    fn a_request_is_understood_however_it_is_written(
        id in request_id(),
        who in name(),
        marks in prop::collection::vec(any::<bool>(), 0..5),
        payload in value(),
        (short, to_user, echo) in any::<(bool, bool, bool)>(),
        idempotency_key in prop::option::of("[a-z\"é]{1,60}"),
        order in Just([0usize, 1, 2, 3, 4, 5, 6]).prop_shuffle(),
        (before, after) in (space(), space()),
    ) {
        let member = |key: &str, json: &str| {
            Some(format!("{after}{}{after}:{before}{json}{after}", written(key, &marks)))
        };
        let kind = if to_user { "send" } else { "publish" };
        let address = if to_user { "target_user_id" } else { "room_id" };
        let members = [
            if short { None } else { member("type", &written(kind, &marks)) },
            member(address, &written(&who, &marks)),
            member("payload", &payload),
            id.as_ref().and_then(|id| member("id", &id_json(id))),
            idempotency_key.as_ref().and_then(|key| member("key", &written(key, &marks))),
            if to_user { None } else { member("echo", if echo { "true" } else { "false" }) },
            member("unknown", &payload),
        ];
        let members: Vec<_> = order.iter().filter_map(|&at| members[at].clone()).collect();
        let mut message = format!("{before}{{{}}}{after}", members.join(",")).into_bytes();
        let (payload, key) = (payload.as_bytes(), idempotency_key.map(Into::into));
        let command = match to_user {
            true => Command::Send { user: &who, payload, key },
            false => {
                Command::Publish { room: &who, payload, echo, key, conflate_key: None }
            }
        };
        prop_assert_eq!(native::parse(&mut message, DEPTH), Ok(Request { id, command }));
    }

    #[test]
    fn an_acknowledgement_is_understood_however_it_is_written(
        (id, who) in (request_id(), name()),
        marks in prop::collection::vec(any::<bool>(), 0..5),
        (to_user, named) in any::<(bool, bool)>(),
        (epoch, offset) in any::<(Option<u64>, u64)>(),
        other in value(),
        order in Just([0usize, 1, 2, 3, 4, 5]).prop_shuffle(),
        (before, after) in (space(), space()),
    ) {
        let member = |key: &str, json: &str| {
            Some(format!("{after}{}{after}:{before}{json}{after}", written(key, &marks)))
        };
        let address = if to_user { "target_user_id" } else { "room_id" };
        let is_named = named || !to_user;
        let epoch_json = epoch.map(|epoch| written(&epoch.to_string(), &marks));
        let members = [
            member("type", &written("ack", &marks)),
            if is_named { member(address, &written(&who, &marks)) } else { None },
            member("offset", &offset.to_string()),
            epoch_json.and_then(|json| member("epoch", &json)),
            id.as_ref().and_then(|id| member("id", &id_json(id))),
            member("unknown", &other),
        ];
        let members: Vec<_> = order.iter().filter_map(|&at| members[at].clone()).collect();
        let mut message = format!("{before}{{{}}}{after}", members.join(",")).into_bytes();
        let of = match to_user {
            true => AckOf::User(is_named.then_some(&who[..])),
            false => AckOf::Room(&who),
        };
        let command = Command::Ack { of, up_to: UpTo { epoch, offset } };
        prop_assert_eq!(native::parse(&mut message, DEPTH), Ok(Request { id, command }));
    }

    #[test]
    fn a_name_is_what_serde_json_reads(json in string()) {
        let expected: Option<String> = serde_json::from_str(&json).ok();
        let expected = expected.filter(|name| campanile::ids::is_name(name));
        let mut message = format!("{{\"type\":\"leave\",\"room_id\":{json}}}").into_bytes();
        let room = match native::parse(&mut message, DEPTH) {
            Ok(Request { command: Command::Leave { room }, .. }) => Some(room.to_string()),
            Ok(other) => panic!("{other:?}"),
            Err(rejected) => {
                prop_assert_eq!(rejected.code, ErrorCode::BadRequest);
                None
            }
        };
        prop_assert_eq!(room, expected);
    }

    #[test]
    fn a_message_is_read_back_with_the_very_payload(
        which in any::<u8>(),
        who in name(),
        from in prop::option::of(name()),
        payload in value(),
        offset in any::<u64>(),
    ) {
        let (topic, from) = (topic_kind(which, &who), from.as_deref());
        let position = None;
        let text =
            written_event(&Event::Message { topic, from, info: None, payload: payload.as_bytes(), position });
        assert_eq!(scan(&text).expect("JSON").last(), Some(&("payload", payload.as_str())));
        let read: RawMembers<'_> = serde_json::from_str(&text).expect("JSON");
        prop_assert_eq!(read.get("payload"), Some(payload.as_str()));
        // The rest is looked at beside a payload that serde_json can make a value of.
        let position = Some(Position { epoch: 3, offset });
        let text = written_event(&Event::Message { topic, from, info: None, payload: b"null", position });
        let read: Value = serde_json::from_str(&text).expect("JSON");
        prop_assert_eq!(read["type"].as_str(), Some("message"));
        prop_assert_eq!(read["offset"].as_u64(), Some(offset));
        prop_assert_eq!(read.get("from").map(|from| from.as_str()), from.map(Some));
        assert_topic(topic, &read);
    }

    #[test]
    fn answers_are_read_back_as_they_were_meant(
        id in request_id(),
        text in any::<String>(),
        who in name(),
        not_recovered in any::<bool>(),
        offset in any::<u64>(),
    ) {
        let id = id.as_ref();
        let recovery = match not_recovered {
            true => Recovery::NotRecovered(Unrecovered::Trimmed),
            false => Recovery::NotAsked,
        };
        let position = Position { epoch: u64::MAX, offset };
        let answers = [
            (Event::Ok { id, room: Some(&who), position: None, recovery, missed: None }, "ok"),
            (Event::Error { id, code: ErrorCode::Forbidden, message: &text }, "error"),
            (Event::Queue { user: &who, position, recovery, missed: None }, "ok"),
            (Event::Pong { id }, "pong"),
        ];
        for (event, kind) in &answers {
            let json = written_event(event);
            let read: RawMembers<'_> = serde_json::from_str(&json).expect("JSON");
            assert_eq!(read.text("type").as_deref(), Some(*kind));
            let of_request = !matches!(event, Event::Queue { .. });
            let id = id.filter(|_| of_request);
            assert_eq!(read.get("id"), id.map(id_json).as_deref());
            match event {
                Event::Ok { .. } => {
                    assert_eq!(read.text("room_id").as_deref(), Some(who.as_str()));
                    prop_assert_eq!(read.get("recovered"), not_recovered.then_some("false"));
                }
                Event::Queue { .. } => {
                    assert_eq!(read.text("target_user_id").as_deref(), Some(who.as_str()));
                    let digits = offset.to_string();
                    prop_assert_eq!(read.get("offset"), Some(&digits[..]));
                    prop_assert_eq!(read.get("recovered"), not_recovered.then_some("false"));
                }
                Event::Error { .. } => {
                    assert_eq!(read.text("code").as_deref(), Some("forbidden"));
                    assert_eq!(read.text("message").as_deref(), Some(text.as_str()));
                }
                _ => prop_assert_eq!(read.0.len(), 1 + usize::from(id.is_some())),
            }
        }
    }

    #[test]
    fn notices_are_read_back_as_they_were_meant(
        text in any::<String>(),
        who in name(),
        which in any::<u8>(),
        count in any::<u64>(),
    ) {
        let topic = topic_kind(which, &who);
        let json = written_event(&Event::Lost { topic, count });
        let read: Value = serde_json::from_str(&json).expect("JSON");
        prop_assert_eq!(read["count"].as_u64(), Some(count));
        assert_topic(topic, &read);
        let json = written_event(&Event::Reconnect { after_ms: count });
        let read: Value = serde_json::from_str(&json).expect("JSON");
        prop_assert_eq!(read["after_ms"].as_u64(), Some(count));
        let json = written_event(&Event::Welcome {
            connection_id: &text,
            user_id: &who,
            node: "n",
            ping_interval_s: count,
        });
        let read: Value = serde_json::from_str(&json).expect("JSON");
        prop_assert_eq!(read["connection_id"].as_str(), Some(text.as_str()));
        prop_assert_eq!(read["user_id"].as_str(), Some(who.as_str()));
        prop_assert_eq!(read["node"].as_str(), Some("n"));
        prop_assert_eq!(read["ping_interval"].as_u64(), Some(count));
    }
}

#[test]
fn the_longest_name_written_with_nothing_but_escapes_is_read() {
    let name = "r".repeat(NAME_BYTES_MAX);
    let json = written(&name, &[true]);
    let mut message = format!("{{\"type\":\"join\",\"room_id\":{json}}}").into_bytes();
    let command = Command::Join { room: &name, since: None, info: None, ack: false, token: None };
    assert_eq!(native::parse(&mut message, DEPTH), Ok(Request { id: None, command }));
}
