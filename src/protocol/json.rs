//! Where the members of one JSON object lie, and that all of it is JSON.
//!
//! A payload has to travel as it was written: `1.0`, `1e400`, thirty digits, a key twice. A parser
//! that makes values of them changes or refuses them, so this scanner makes none. It walks the text
//! once, checks it against the whole grammar of RFC 8259, and says where each member of the
//! outermost object begins and ends. What the members mean is for the dialect to find out.
//!
//! It takes what the grammar takes, no more and no less. So `"\ud800"`, half of a surrogate pair, is
//! accepted here (RFC 8259 §8.2 leaves it to the reader) and refused only by those who need the text.
//!
//! The cost: each byte is looked at once, plain string bytes eight at a time.
//!
//! Invariant: no recursion and no allocation, whatever the input. Nesting is one bit a level in an
//! array on the stack, so the depth of a text decides about nothing but its refusal.

use std::ops::Range;

/// The deepest nesting that can be followed; a greater limit than this means this.
pub const DEPTH_MAX: usize = 1024;

/// A piece of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Its first byte.
    pub start: usize,
    /// One past its last byte.
    pub end: usize,
    /// Whether it is a string with a backslash in it, so that its text is not its bytes.
    pub escaped: bool,
}

impl Span {
    /// The bytes it covers, counted from the beginning of the text.
    pub fn range(self) -> Range<usize> {
        self.start..self.end
    }
}

/// One member of the outermost object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JsonMember {
    /// The key as written, without its quotes.
    pub key: Span,
    /// The value as written: a string with its quotes, and no white space around it.
    pub value: Span,
}

/// Why a text is not one JSON object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The byte that cannot stand where it stands; the text's length when it ends too early.
    pub at: usize,
    /// The rule that is broken there.
    pub what: &'static str,
}

/// The members of one object, in their order. Nothing is known of the text until
/// [`Members::next_member`] has answered `Ok(None)`: only then was all of it seen.
pub struct Members<'a> {
    cursor: Cursor<'a>,
    depth_max: usize,
    place: Place,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Behind the `{`.
    Opened,
    /// Behind a value.
    Between,
    /// Behind the text.
    Done,
}

impl<'a> Members<'a> {
    /// Begins with the object that is the whole text. `depth_max` counts levels of arrays and
    /// objects; the object itself is the first.
    pub fn open(text: &'a [u8], depth_max: usize) -> Result<Members<'a>, Fault> {
        let mut cursor = Cursor { text, at: 0 };
        cursor.skip_space();
        if cursor.peek() != Some(b'{') {
            return Err(cursor.fault("a JSON object was expected"));
        }
        if depth_max == 0 {
            return Err(cursor.fault(TOO_DEEP));
        }
        cursor.at += 1;
        Ok(Members { cursor, depth_max: depth_max.min(DEPTH_MAX), place: Place::Opened })
    }

    /// The next member; `None` when the object has ended and nothing but white space follows it.
    #[inline]
    pub fn next_member(&mut self) -> Result<Option<JsonMember>, Fault> {
        if self.place == Place::Done {
            return Ok(None);
        }
        self.cursor.skip_space();
        match (self.cursor.peek(), self.place) {
            (Some(b'}'), _) => return self.close().map(|()| None),
            (Some(b','), Place::Between) => {
                self.cursor.at += 1;
                self.cursor.skip_space();
            }
            (_, Place::Opened) => {}
            _ => return Err(self.cursor.fault("a comma or } was expected")),
        }
        let key = self.cursor.key()?;
        let value = self.cursor.value(self.depth_max - 1)?;
        self.place = Place::Between;
        Ok(Some(JsonMember { key, value }))
    }

    fn close(&mut self) -> Result<(), Fault> {
        self.cursor.at += 1;
        self.cursor.skip_space();
        if self.cursor.peek().is_some() {
            return Err(self.cursor.fault("nothing may follow the object, but something does"));
        }
        self.place = Place::Done;
        Ok(())
    }
}

const TOO_DEEP: &str = "nested deeper than the limit";

/// The text and how far it has been read. Each method begins where the one before it ended.
struct Cursor<'a> {
    text: &'a [u8],
    at: usize,
}

impl Cursor<'_> {
    #[inline]
    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    /// Blames the byte ahead, or the end of the text if there is none.
    #[cold]
    fn fault(&self, what: &'static str) -> Fault {
        let what = if self.at < self.text.len() { what } else { "the text ends too early" };
        Fault { at: self.at, what }
    }

    #[inline]
    fn skip_space(&mut self) {
        // RFC 8259 §2: these four and no other.
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.peek() {
            self.at += 1;
        }
    }

    /// A key, the colon, and the space up to the value.
    #[inline]
    fn key(&mut self) -> Result<Span, Fault> {
        if self.peek() != Some(b'"') {
            return Err(self.fault("a key in quotes was expected"));
        }
        let start = self.at + 1;
        let escaped = self.string()?;
        let key = Span { start, end: self.at - 1, escaped };
        self.skip_space();
        if self.peek() != Some(b':') {
            return Err(self.fault("a colon was expected"));
        }
        self.at += 1;
        self.skip_space();
        Ok(key)
    }

    /// Any value; below it `depth_max` levels are left.
    #[inline]
    fn value(&mut self, depth_max: usize) -> Result<Span, Fault> {
        let start = self.at;
        let escaped = match self.peek() {
            Some(b'{' | b'[') => {
                self.container(depth_max)?;
                false
            }
            _ => self.scalar()?,
        };
        Ok(Span { start, end: self.at, escaped })
    }

    /// An array or an object with all that is in it.
    fn container(&mut self, depth_max: usize) -> Result<(), Fault> {
        let mut open = Open { objects: [0; DEPTH_MAX / 64], depth: 0, depth_max };
        loop {
            let complete = match self.peek() {
                Some(b'{' | b'[') => self.enter(&mut open)?,
                _ => {
                    self.scalar()?;
                    true
                }
            };
            if complete && self.leave(&mut open)? {
                return Ok(());
            }
        }
    }

    /// Into the array or object ahead, up to its first value. True if it has none and is over.
    #[inline]
    fn enter(&mut self, open: &mut Open) -> Result<bool, Fault> {
        let is_object = self.peek() == Some(b'{');
        if !open.push(is_object) {
            return Err(self.fault(TOO_DEEP));
        }
        self.at += 1;
        self.skip_space();
        if self.peek() == Some(if is_object { b'}' } else { b']' }) {
            self.at += 1;
            open.depth -= 1;
            return Ok(true);
        }
        if is_object {
            self.key()?;
        }
        Ok(false)
    }

    /// From the end of a value to the next one. True if everything that was open is closed.
    #[inline]
    fn leave(&mut self, open: &mut Open) -> Result<bool, Fault> {
        while open.depth > 0 {
            self.skip_space();
            match (self.peek(), open.in_object()) {
                (Some(b','), in_object) => {
                    self.at += 1;
                    self.skip_space();
                    if in_object {
                        self.key()?;
                    }
                    return Ok(false);
                }
                (Some(b'}'), true) | (Some(b']'), false) => {
                    self.at += 1;
                    open.depth -= 1;
                }
                (_, true) => return Err(self.fault("a comma or } was expected")),
                (_, false) => return Err(self.fault("a comma or ] was expected")),
            }
        }
        Ok(true)
    }

    /// A string, a number or a literal. True for a string with a backslash in it.
    #[inline]
    fn scalar(&mut self) -> Result<bool, Fault> {
        match self.peek() {
            Some(b'"') => return self.string(),
            Some(b'-' | b'0'..=b'9') => self.number()?,
            Some(b't') => self.literal(b"true")?,
            Some(b'f') => self.literal(b"false")?,
            Some(b'n') => self.literal(b"null")?,
            _ => return Err(self.fault("a value was expected")),
        }
        Ok(false)
    }

    fn literal(&mut self, word: &[u8]) -> Result<(), Fault> {
        for &letter in word {
            if self.peek() != Some(letter) {
                return Err(self.fault("true, false or null was expected"));
            }
            self.at += 1;
        }
        Ok(())
    }

    /// RFC 8259 §6. Neither range nor precision is checked.
    fn number(&mut self) -> Result<(), Fault> {
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        match self.peek() {
            // No digit may follow a leading zero; the caller fails at one as at any unexpected byte.
            Some(b'0') => self.at += 1,
            _ => self.digits()?,
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.at += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(())
    }

    /// At least one.
    fn digits(&mut self) -> Result<(), Fault> {
        let start = self.at;
        while let Some(b'0'..=b'9') = self.peek() {
            self.at += 1;
        }
        if self.at == start { Err(self.fault("a digit was expected")) } else { Ok(()) }
    }

    /// RFC 8259 §7, from quote to quote. True if there is a backslash in it.
    #[inline]
    fn string(&mut self) -> Result<bool, Fault> {
        let mut escaped = false;
        self.at += 1;
        loop {
            self.at += plain_len(&self.text[self.at..]);
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(escaped);
                }
                Some(b'\\') => {
                    escaped = true;
                    self.escape()?;
                }
                _ => return Err(self.fault("a control character must be escaped")),
            }
        }
    }

    fn escape(&mut self) -> Result<(), Fault> {
        self.at += 1;
        match self.peek() {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => self.at += 1,
            Some(b'u') => {
                self.at += 1;
                for _ in 0..4 {
                    if !self.peek().is_some_and(|digit| digit.is_ascii_hexdigit()) {
                        return Err(self.fault("four hexadecimal digits were expected"));
                    }
                    self.at += 1;
                }
            }
            _ => return Err(self.fault("this is not an escape")),
        }
        Ok(())
    }
}

/// Which of the open arrays and objects are objects, the outermost first.
struct Open {
    objects: [u64; DEPTH_MAX / 64],
    depth: usize,
    depth_max: usize,
}

impl Open {
    /// False if that would be one level too many.
    #[must_use]
    fn push(&mut self, is_object: bool) -> bool {
        if self.depth == self.depth_max {
            return false;
        }
        let bit = 1 << (self.depth % 64);
        let word = &mut self.objects[self.depth / 64];
        *word = if is_object { *word | bit } else { *word & !bit };
        self.depth += 1;
        true
    }

    /// Whether the innermost one is an object.
    fn in_object(&self) -> bool {
        let level = self.depth - 1;
        self.objects[level / 64] >> (level % 64) & 1 == 1
    }
}

/// How many bytes from the beginning are neither a quote, a backslash nor a control character: what
/// may stand in a JSON string as it is, and needs no escape when one is written.
#[inline]
pub fn plain_len(bytes: &[u8]) -> usize {
    let (words, rest) = bytes.as_chunks::<8>();
    for (index, word) in words.iter().enumerate() {
        let marks = special_marks(u64::from_le_bytes(*word));
        if marks != 0 {
            return index * 8 + marks.trailing_zeros() as usize / 8;
        }
    }
    let plain = rest.iter().take_while(|byte| !matches!(byte, b'"' | b'\\' | 0..=0x1f)).count();
    bytes.len() - rest.len() + plain
}

/// Marks the top bit of bytes that are a quote, a backslash or below 0x20. Exact up to the lowest
/// mark, which is the one that counts: a borrow can only make false marks above a true one.
#[inline]
fn special_marks(word: u64) -> u64 {
    const ONES: u64 = u64::MAX / 0xff;
    let quote = word ^ (ONES * b'"' as u64);
    let backslash = word ^ (ONES * b'\\' as u64);
    let below = word.wrapping_sub(ONES * 0x20) & !word;
    let quote = quote.wrapping_sub(ONES) & !quote;
    let backslash = backslash.wrapping_sub(ONES) & !backslash;
    (below | quote | backslash) & (ONES * 0x80)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(text: &[u8], depth_max: usize) -> Result<Vec<JsonMember>, Fault> {
        let mut members = Members::open(text, depth_max)?;
        let mut found = Vec::new();
        while let Some(member) = members.next_member()? {
            found.push(member);
        }
        assert_eq!(members.next_member(), Ok(None), "the end stays the end");
        Ok(found)
    }

    /// Keys and values as written.
    fn pieces(text: &str) -> Vec<(&str, &str)> {
        let members = scan(text.as_bytes(), 64).unwrap();
        members.iter().map(|m| (&text[m.key.range()], &text[m.value.range()])).collect()
    }

    fn takes(value: &str) -> bool {
        let text = format!("{{\"k\":{value}}}");
        let found = scan(text.as_bytes(), 64);
        assert!(found.is_err() || pieces(&text) == [("k", value)], "{text}");
        found.is_ok()
    }

    #[test]
    fn members_are_found_as_they_were_written() {
        assert_eq!(pieces("{}"), []);
        assert_eq!(pieces(" \t\r\n{ \n} "), []);
        assert_eq!(
            pieces("\n{ \"a\" :\t1.0 , \"b\\u0062\":[ {\"a\":\"}\"} , [ ] ] , \"\":\"x\" } "),
            [("a", "1.0"), ("b\\u0062", "[ {\"a\":\"}\"} , [ ] ]"), ("", "\"x\"")],
        );
    }

    #[test]
    fn only_strings_with_a_backslash_are_called_escaped() {
        let found = scan(br#"{"a":"b","\u0061":"\n","c":["\n"]}"#, 64).unwrap();
        let escaped: Vec<_> = found.iter().map(|m| (m.key.escaped, m.value.escaped)).collect();
        assert_eq!(escaped, [(false, false), (true, true), (false, false)]);
    }

    #[test]
    fn every_value_of_the_grammar_is_taken() {
        let values = [
            "0",
            "-0",
            "-0.0",
            "10",
            "1.0",
            "1e400",
            "1E+2",
            "1e-2",
            "0e0",
            "-12.50e007",
            "true",
            "false",
            "null",
            "\"\"",
            "\"\u{7f}é€😀\"",
            r#""\"\\\/\b\f\n\r\t\u00e9""#,
            r#""\ud83d\ude00""#,
            r#""\ud800""#,
            r#""\udc00x\uD800\uD800""#,
            "[]",
            "{}",
            "[[],{}]",
            "{\"a\":[],\"a\":{}}",
            "[1,-2,\"3\",null]",
            "123456789012345678901234567890",
        ];
        for value in values {
            assert!(takes(value), "{value}");
        }
    }

    #[test]
    fn nothing_beside_the_grammar_is_taken() {
        let values = [
            "",
            "00",
            "01",
            "-",
            "-a",
            "+1",
            ".5",
            "1.",
            "1.e1",
            "1e",
            "1e+",
            "0x1",
            "NaN",
            "tru",
            "trux",
            "truee",
            "nul",
            "falze",
            "'a'",
            "\"",
            "\"\\\"",
            r#""\x""#,
            r#""\u12""#,
            r#""\u12g4""#,
            "\"\n\"",
            "\"\0\"",
            "\"\u{1f}\"",
            "\"12345678\u{1}\"",
            "[",
            "]",
            "[1,]",
            "[,1]",
            "[1 2]",
            "[1}",
            "{",
            "{]",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\":1,}",
            "{a:1}",
            "{\"a\" 1}",
            "{1:1}",
            "{\"a\":1]",
            "1,",
            "1 1",
            "1}",
            "\u{a0}1",
            "/**/1",
        ];
        for value in values {
            assert!(!takes(value), "{value}");
        }
        for text in ["", " ", "1", "[]", "\"a\"", "null", "{", "{,}", "{\"a\":1,,}", "{}{}", "{} x"]
        {
            assert!(scan(text.as_bytes(), 64).is_err(), "{text}");
        }
    }

    #[test]
    fn a_fault_names_the_byte() {
        let cases: [(&str, usize, &str); 14] = [
            ("", 0, "too early"),
            ("  hello", 2, "a JSON object"),
            ("[1]", 0, "a JSON object"),
            ("{\"a\"=1}", 4, "a colon"),
            ("{a:1}", 1, "a key"),
            ("{\"a\":1,}", 7, "a key"),
            ("{\"a\":1 2}", 7, "a comma or }"),
            ("{\"a\":[1}", 7, "a comma or ]"),
            ("{\"a\":01}", 6, "a comma or }"),
            ("{\"a\":nil}", 6, "true, false or null"),
            ("{\"a\":\"\t\"}", 6, "a control character"),
            ("{\"a\":\"\\q\"}", 7, "not an escape"),
            ("{\"a\":1}}", 7, "nothing may follow"),
            ("{\"a\":\"b", 7, "too early"),
        ];
        for (text, at, what) in cases {
            let fault = scan(text.as_bytes(), 64).unwrap_err();
            assert_eq!(fault.at, at, "{text}");
            assert!(fault.what.contains(what), "{text}: {}", fault.what);
        }
    }

    /// `depth` levels, the outermost object among them, arrays and objects mixed.
    fn nested(depth: usize) -> String {
        let openers = |level: &usize| if level.is_multiple_of(3) { "{\"k\":" } else { "[" };
        let closers = |level: usize| if level.is_multiple_of(3) { "}" } else { "]" };
        let levels: Vec<usize> = (0..depth).collect();
        let open: String = levels.iter().map(openers).collect();
        let close: String = levels.iter().rev().copied().map(closers).collect();
        format!("{open}0{close}")
    }

    #[test]
    fn the_depth_limit_is_exact() {
        for depth_max in [1, 2, 8, 63, 64, 65, 66, 128, 129, 300, DEPTH_MAX] {
            assert!(scan(nested(depth_max).as_bytes(), depth_max).is_ok(), "{depth_max}");
            let fault = scan(nested(depth_max + 1).as_bytes(), depth_max).unwrap_err();
            assert_eq!(fault.what, TOO_DEEP, "{depth_max}");
        }
        assert_eq!(scan(b"{}", 0).unwrap_err().what, TOO_DEEP);
        assert!(scan(nested(DEPTH_MAX).as_bytes(), usize::MAX).is_ok());
        assert_eq!(scan(nested(DEPTH_MAX + 1).as_bytes(), usize::MAX).unwrap_err().what, TOO_DEEP);
    }

    #[test]
    fn siblings_do_not_add_to_the_depth() {
        let text = format!("{{\"a\":[{}[]]}}", "[],{},".repeat(1000));
        assert!(scan(text.as_bytes(), 3).is_ok());
        assert!(scan(text.as_bytes(), 2).is_err());
    }

    #[test]
    fn plain_len_agrees_with_looking_at_each_byte() {
        let plain = |byte: &u8| *byte >= 0x20 && *byte != b'"' && *byte != b'\\';
        for special in 0..=255u8 {
            for at in 0..24 {
                for before in [b'!', b'#', 0x7f, 0x80, 0xff, b'[', b']', b' '] {
                    let mut bytes = [before; 24];
                    bytes[at] = special;
                    let expected = bytes.iter().take_while(|byte| plain(byte)).count();
                    assert_eq!(plain_len(&bytes), expected, "{special} at {at} after {before}");
                }
            }
        }
    }
}
