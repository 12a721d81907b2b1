//! Percent-encoding (RFC 3986 §2.1), strictly: a `%` that begins no escape is an error.

/// Why a text cannot be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BadEncoding {
    /// A `%` is not followed by two hexadecimal digits.
    Escape,
    /// The decoded bytes are not UTF-8.
    Utf8,
}

impl BadEncoding {
    /// For people, as the end of a sentence about the text.
    pub(super) fn reason(self) -> &'static str {
        match self {
            BadEncoding::Escape => {
                "has a % without two hexadecimal digits behind it (% itself is written %25)"
            }
            BadEncoding::Utf8 => "is not UTF-8 after percent-decoding",
        }
    }
}

/// The text without its escapes.
pub(super) fn decode(text: &str) -> Result<String, BadEncoding> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, others @ ..] = rest {
        rest = others;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let [high, low, others @ ..] = rest else { return Err(BadEncoding::Escape) };
        let digits = hex(*high).zip(hex(*low)).ok_or(BadEncoding::Escape)?;
        bytes.push(digits.0 << 4 | digits.1);
        rest = others;
    }
    String::from_utf8(bytes).map_err(|_| BadEncoding::Utf8)
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|digit| digit as u8)
}

/// The text with everything escaped that is not unreserved (RFC 3986 §2.3).
pub(super) fn encode(text: &str) -> String {
    encode_but(text, b"-._~")
}

/// The same for a path, whose slashes stay.
pub(super) fn encode_path(path: &str) -> String {
    encode_but(path, b"-._~/")
}

fn encode_but(text: &str, plain: &[u8]) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte.is_ascii_alphanumeric() || plain.contains(&byte) {
            true => encoded.push(char::from(byte)),
            false => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}
