//! Replies of a Redis server: the parser asks for no byte too many, answers the same in every cut, and
//! the subscriber's buffer holds nothing of a string that is too long.

use super::pieces::pieces;
use campanile::backplane::redis::connection::fuzzing::{ParsedResp, RespStream, parse};

/// The least that a connection allows for a string.
const STRING_BYTES_MAX: usize = 1024;
/// An empty buffer; and the most that a value may have beside its strings.
const BUFFER_BYTES: usize = 128 * 1024;
const OVERHEAD_BYTES_MAX: usize = 64 * 1024;

/// First byte: how the stream is cut, and which limit the parser has.
pub fn check(input: &[u8]) {
    let [seed, stream @ ..] = input else { return };
    let string_bytes_max = if seed & 1 == 0 { 10 } else { STRING_BYTES_MAX };
    check_first(stream, string_bytes_max);
    let whole = feed([stream].into_iter());
    let cut = feed(pieces(*seed, stream));
    // What is malformed may be noticed later when it comes in pieces, but not sooner.
    assert!(whole.is_err() || cut == whole, "{cut:?} in pieces, {whole:?} as one");
}

/// The value at the beginning: its verdict, and that of each of its beginnings.
fn check_first(stream: &[u8], string_bytes_max: usize) {
    let verdict = parse(stream, string_bytes_max);
    match &verdict {
        Ok(ParsedResp::NeedsBytes(bytes)) => assert!(*bytes > stream.len(), "it is all there"),
        Ok(ParsedResp::TooLong { header, body, bytes }) => {
            assert!(header < body && *body <= stream.len() && *bytes > string_bytes_max);
        }
        Ok(ParsedResp::Value { bytes, .. }) => {
            check_beginnings(stream, *bytes, string_bytes_max);
            let longest = longest_string(&stream[..*bytes]);
            assert!(longest <= string_bytes_max, "a string of {longest} bytes");
        }
        Err(why) => assert!(!why.is_empty()),
    }
    if let Ok(ParsedResp::Value { bytes, .. }) = &verdict {
        let after = [&stream[..*bytes], b"\r\n$-1"].concat();
        assert_eq!(parse(&after, string_bytes_max), verdict, "what follows is another value");
    }
}

/// Of a value, token by token: an aggregate is its line, and then its parts.
fn longest_string(mut value: &[u8]) -> usize {
    let mut longest = 0;
    while let Some(end) = value.windows(2).position(|two| two == b"\r\n") {
        let (line, after) = (&value[..end], &value[end + 2..]);
        let length = std::str::from_utf8(&line[1..]).ok().and_then(|text| text.parse().ok());
        let string = match (line[0], length) {
            (b'$' | b'!' | b'=', Some(length)) => length,
            _ => {
                value = after;
                continue;
            }
        };
        longest = longest.max(string);
        value = &after[string + 2..];
    }
    longest
}

/// Of a value that is there in whole no beginning is anything, and none asks for more than the value.
fn check_beginnings(stream: &[u8], bytes: usize, string_bytes_max: usize) {
    // All of a short one; of a long one some.
    for end in (0..bytes).step_by(1 + bytes / 200) {
        match parse(&stream[..end], string_bytes_max) {
            Ok(ParsedResp::NeedsBytes(needed)) => {
                assert!(end < needed && needed <= bytes, "{needed} for {end} of {bytes}");
            }
            other => panic!("{other:?} of {end} bytes of {bytes}"),
        }
    }
}

fn feed<'a>(reads: impl Iterator<Item = &'a [u8]>) -> Result<Vec<String>, &'static str> {
    let (mut stream, mut values) = (RespStream::new(STRING_BYTES_MAX), Vec::new());
    for read in reads {
        values.extend(stream.read(read)?);
        let held = stream.heap_bytes();
        assert!(held <= 2 * (BUFFER_BYTES + OVERHEAD_BYTES_MAX), "{held} bytes are held");
    }
    Ok(values)
}
