//! What is said back to a server that speaks first.
//!
//! Many protocols begin with a word of the server's: an id that the client must sign, a session
//! that it must open, a ping in a text frame. One rule covers them: a frame that begins so is
//! answered so. A rule keeps no state, so a dialogue of several steps is several rules.
//!
//! Only frames that carry no stamp are looked at, so a delivery costs nothing more.
//!
//! Invariant: the first rule whose beginning fits answers, and no other.

use super::template::{Filling, Template};
use hmac::{Hmac, Mac};
use sha2::Sha256;

/// The rules of a run, in the order they were given.
#[derive(Debug, Default)]
pub struct Answers {
    rules: Vec<Rule>,
}

#[derive(Debug)]
struct Rule {
    beginning: Vec<u8>,
    reply: Template,
}

impl Answers {
    /// Adds `BEGINNING=MESSAGE`, cut at the first `=`; `false` where that makes no rule: a frame
    /// that begins with nothing is every frame.
    #[must_use]
    pub fn add(&mut self, text: &str) -> bool {
        let Some((beginning, reply)) = text.split_once('=').filter(|(begin, _)| !begin.is_empty())
        else {
            return false;
        };
        let (beginning, reply) = (beginning.into(), Template::parse(reply));
        self.rules.push(Rule { beginning, reply });
        true
    }

    /// What is to be said to `frame`.
    pub fn to(&self, frame: &[u8]) -> Option<&Template> {
        let rule = self.rules.iter().find(|rule| frame.starts_with(&rule.beginning))?;
        Some(&rule.reply)
    }

    /// All replies.
    pub fn replies(&self) -> impl Iterator<Item = &Template> {
        self.rules.iter().map(|rule| &rule.reply)
    }
}

/// Fills `{signature}`: HMAC-SHA256 in hex, what Pusher's private channels ask for.
#[derive(Debug)]
pub struct Signer {
    key: Vec<u8>,
    text: Template,
}

impl Signer {
    /// From `KEY=TEXT`, cut at the first `=`. A text that would sign itself makes none.
    pub fn parse(text: &str) -> Option<Signer> {
        let (key, text) = text.split_once('=')?;
        let text = Template::parse(text);
        (!text.has_signature()).then(|| Signer { key: key.into(), text })
    }

    /// Appends the signature of the filled text.
    pub fn sign(&self, with: &Filling<'_>, out: &mut Vec<u8>) {
        let mut text = Vec::new();
        self.text.fill(with, &mut text);
        let mac = Hmac::<Sha256>::new_from_slice(&self.key).expect("HMAC takes keys of any length");
        for byte in mac.chain_update(&text).finalize().into_bytes() {
            out.extend([byte >> 4, byte & 15].map(|digit| b"0123456789abcdef"[digit as usize]));
        }
    }
}

/// The word or number that stands behind `name` in a JSON text, also where that text is a string in
/// another one (`\"name\":\"word\"`); empty where there is none. Escapes within a word are not
/// undone: the word ends there.
pub fn word_behind<'a>(frame: &'a [u8], name: &str) -> &'a [u8] {
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
    use super::super::rooms::Rooms;
    use super::super::template::Names;
    use super::*;

    fn names() -> Names {
        Names { room_prefix: "foo".into(), rooms: Rooms::of_size(10, 1), token_secret: None }
    }

    fn filling<'a>(names: &'a Names, said: &'a [u8], signer: Option<&'a Signer>) -> Filling<'a> {
        Filling { names, room: 7, number: 0, message: None, said, signer }
    }

    #[test]
    fn the_first_rule_whose_beginning_fits_answers() {
        let mut answers = Answers::default();
        assert!(answers.add("2=3"));
        assert!(answers.add(r#"40{=42["join","{room}"]"#));
        assert!(answers.add("40=never"));
        assert!(!answers.add("no equals sign"));
        assert!(!answers.add("=to everything"));
        assert_eq!(answers.to(b"2"), Some(&Template::parse("3")));
        assert_eq!(answers.to(br#"40{"sid"}"#), Some(&Template::parse(r#"42["join","{room}"]"#)));
        assert_eq!(answers.to(b"4"), None);
    }

    #[test]
    fn a_word_is_found_in_json_and_in_json_within_json() {
        let inner =
            br#"{"event":"e","data":"{\"socket_id\":\"123.456\",\"activity_timeout\":120}"}"#;
        assert_eq!(word_behind(inner, "socket_id"), b"123.456");
        assert_eq!(word_behind(inner, "activity_timeout"), b"120");
        assert_eq!(word_behind(br#"0{"sid": "ab-c" }"#, "sid"), b"ab-c");
        assert_eq!(word_behind(b"{\"sid\":", "sid"), b"");
        assert_eq!(word_behind(b"{}", "sid"), b"");
    }

    #[test]
    fn a_pusher_channel_is_signed_as_its_documentation_shows() {
        let signer = Signer::parse("7ad3773142a6692b25b8={said:socket_id}:private-{room}bar")
            .expect("a signer");
        let said = br#"{"socket_id":"1234.1234"}"#;
        let mut out = Vec::new();
        let template = Template::parse("278d425bdf160c739803:{signature}");
        // The documented channel is private-foobar, so the room must have no number.
        let nameless = Signer::parse("7ad3773142a6692b25b8={said:socket_id}:private-foobar")
            .expect("a signer");
        template.fill(&filling(&names(), said, Some(&nameless)), &mut out);
        assert_eq!(
            String::from_utf8(out).expect("ASCII"),
            "278d425bdf160c739803:\
             58df8b0c36d6982b82c3ecf6b4662e34fe8c25bba48f5369f135bf843651c3a4"
        );
        let (mut one, mut other) = (Vec::new(), Vec::new());
        template.fill(&filling(&names(), said, Some(&signer)), &mut one);
        template
            .fill(&filling(&names(), br#"{"socket_id":"1234.1235"}"#, Some(&signer)), &mut other);
        assert_ne!(one, other, "the signature depends on what the server said");
    }

    #[test]
    fn a_signature_that_signs_itself_is_refused() {
        assert!(Signer::parse("key=a{signature}").is_none());
        assert!(Signer::parse("no equals sign").is_none());
    }
}
