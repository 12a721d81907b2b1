//! What the decoder returns, case by case. Random cases are in `tests/ws_properties.rs`.

use super::*;

const LIMITS: DecoderLimits = DecoderLimits { message_bytes_max: 1000 };
const KEY: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// A client's frame; `first` is FIN, the reserved bits and the opcode.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    match payload.len() {
        len @ 0..=125 => out.push(0x80 | len as u8),
        len @ 126..=0xFFFF => {
            out.push(0xFE);
            out.extend_from_slice(&(len as u16).to_be_bytes());
        }
        len => {
            out.push(0xFF);
            out.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&KEY);
    out.extend(payload.iter().enumerate().map(|(at, byte)| byte ^ KEY[at % 4]));
    out
}

/// The items of these reads in words: `text:Hello`, `close:1000:bye`, `!Unmasked`.
fn decode(decoder: &mut Decoder, reads: &[&[u8]]) -> Vec<String> {
    let mut items = Vec::new();
    for read in reads {
        let mut bytes = read.to_vec();
        let mut input = bytes.as_mut_slice();
        while let Some(item) = decoder.next(&mut input, LIMITS) {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            items.push(match item {
                Ok(Item::Text(bytes)) => format!("text:{}", text(bytes)),
                Ok(Item::Binary(bytes)) => format!("binary:{}", text(bytes)),
                Ok(Item::Ping(bytes)) => format!("ping:{}", text(bytes)),
                Ok(Item::Pong(bytes)) => format!("pong:{}", text(bytes)),
                Ok(Item::Close { code, reason }) => {
                    format!("close:{}:{reason}", code.map_or(0, CloseCode::get))
                }
                Err(error) => {
                    items.push(format!("!{error:?}"));
                    return items;
                }
            });
        }
        assert!(input.is_empty(), "None means that all of it was taken");
    }
    items
}

fn decode_whole(bytes: &[u8]) -> Vec<String> {
    decode(&mut Decoder::new(), &[bytes])
}

#[test]
fn the_examples_of_the_rfc_are_understood() {
    // RFC 6455 §5.7, those that a client may send.
    let hello = [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
    assert_eq!(decode_whole(&hello), ["text:Hello"]);
    let pong = [0x8a, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
    assert_eq!(decode_whole(&pong), ["pong:Hello"]);
}

#[test]
fn every_opcode_is_decoded() {
    let stream = [
        frame(0x81, b"Hello"),
        frame(0x82, b"\xFF\xFEx"),
        frame(0x89, b"are you"),
        frame(0x8A, b""),
        frame(0x01, b"in "),
        frame(0x80, b"two"),
        frame(0x02, b""),
        frame(0x80, b""),
        frame(0x88, b"\x03\xE8bye"),
    ]
    .concat();
    let wanted = [
        "text:Hello",
        "binary:\u{FFFD}\u{FFFD}x",
        "ping:are you",
        "pong:",
        "text:in two",
        "binary:",
        "close:1000:bye",
    ];
    assert_eq!(decode_whole(&stream), wanted);
    for cut in 0..=stream.len() {
        let (head, tail) = stream.split_at(cut);
        assert_eq!(decode(&mut Decoder::new(), &[head, tail]), wanted, "cut at {cut}");
    }
    let bytes: Vec<&[u8]> = stream.chunks(1).collect();
    assert_eq!(decode(&mut Decoder::new(), &bytes), wanted, "byte by byte");
}

#[test]
fn a_frame_that_arrives_whole_is_lent_from_the_input_and_costs_no_memory() {
    let mut bytes = [frame(0x81, &[b'a'; 500]), frame(0x89, b"ping"), frame(0x82, b"b")].concat();
    let place = bytes.as_ptr_range();
    let mut decoder = Decoder::new();
    let mut input = bytes.as_mut_slice();
    let mut items = 0;
    while let Some(item) = decoder.next(&mut input, LIMITS) {
        let lent = match item.unwrap() {
            Item::Text(bytes) | Item::Binary(bytes) => bytes.as_ptr(),
            Item::Ping(bytes) => bytes.as_ptr(),
            other => panic!("{other:?}"),
        };
        assert!(place.contains(&lent));
        items += 1;
    }
    assert_eq!(items, 3);
    assert_eq!(decoder.heap_bytes(), 0);
    assert!(decoder.is_at_rest());
}

#[test]
fn control_frames_pass_a_message_in_fragments_even_when_they_are_cut() {
    let stream = [
        frame(0x01, b"one "),
        frame(0x89, b"now"),
        frame(0x00, b"two "),
        frame(0x8A, b"then"),
        frame(0x80, b"three"),
    ]
    .concat();
    let wanted = ["ping:now", "pong:then", "text:one two three"];
    for first in 0..=stream.len() {
        for second in first..=stream.len() {
            let reads = [&stream[..first], &stream[first..second], &stream[second..]];
            assert_eq!(decode(&mut Decoder::new(), &reads), wanted, "cut at {first}, {second}");
        }
    }
}

#[test]
fn every_violation_is_named_whether_it_arrives_whole_or_byte_by_byte() {
    let unmasked = vec![0x81, 0x05, b'H', b'e', b'l', b'l', b'o'];
    let table: Vec<(Vec<u8>, ProtocolError)> = vec![
        (unmasked, ProtocolError::Unmasked),
        (frame(0xC1, b"x"), ProtocolError::ReservedBits),
        (frame(0xA1, b"x"), ProtocolError::ReservedBits),
        (frame(0x91, b"x"), ProtocolError::ReservedBits),
        (frame(0x83, b"x"), ProtocolError::ReservedOpcode),
        (frame(0x8B, b"x"), ProtocolError::ReservedOpcode),
        (frame(0x09, b"x"), ProtocolError::ControlFragmented),
        (frame(0x89, &[b'x'; 126]), ProtocolError::ControlTooLong),
        (frame(0x80, b"x"), ProtocolError::ContinuationUnexpected),
        (frame(0x00, b"x"), ProtocolError::ContinuationUnexpected),
        ([frame(0x01, b"x"), frame(0x81, b"y")].concat(), ProtocolError::MessageInterrupted),
        ([frame(0x02, b"x"), frame(0x02, b"y")].concat(), ProtocolError::MessageInterrupted),
        (vec![0x81, 0xFE, 0, 5], ProtocolError::LengthNotMinimal),
        (vec![0x82, 0xFF, 0x80, 0, 0, 0, 0, 0, 0, 0], ProtocolError::LengthTopBit),
        (frame(0x82, &[0; 1001])[..8].to_vec(), ProtocolError::MessageTooBig),
        (frame(0x81, b"\xFF"), ProtocolError::InvalidUtf8),
        (frame(0x81, b"ends in \xE2\x82"), ProtocolError::InvalidUtf8),
        ([frame(0x01, b"\xE2\x82"), frame(0x80, b"")].concat(), ProtocolError::InvalidUtf8),
        ([frame(0x01, b"\xE2"), frame(0x80, b"x")].concat(), ProtocolError::InvalidUtf8),
        (frame(0x88, b"\x03"), ProtocolError::CloseTruncated),
        (frame(0x88, b"\x03\xEE"), ProtocolError::CloseCodeInvalid),
        (frame(0x88, b"\x00\x00"), ProtocolError::CloseCodeInvalid),
        (frame(0x88, b"\x03\xE8\xFF"), ProtocolError::CloseReasonInvalid),
    ];
    for error in ProtocolError::ALL {
        assert!(table.iter().any(|(_, named)| *named == error), "{error:?} is not in the table");
    }
    for (bytes, error) in table {
        let wanted = [format!("!{error:?}")];
        assert_eq!(decode_whole(&bytes), wanted);
        let mut decoder = Decoder::new();
        let pieces: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(decode(&mut decoder, &pieces), wanted, "byte by byte");
        assert!(!decoder.is_at_rest());
        // Whatever follows.
        assert_eq!(decode(&mut decoder, &[&frame(0x81, b"sorry")]), wanted);
        assert_eq!(decode(&mut decoder, &[b""]), wanted);
        assert_eq!(decoder.heap_bytes(), 0);
    }
}

#[test]
fn what_came_before_a_violation_is_still_returned() {
    let stream = [frame(0x81, b"a"), frame(0x89, b"b"), frame(0xF1, b"c")].concat();
    assert_eq!(decode_whole(&stream), ["text:a", "ping:b", "!ReservedBits"]);
}

#[test]
fn text_fails_at_the_byte_that_spoils_it_and_not_at_its_end() {
    // A valid start, a byte that nothing can save, and much that never arrives.
    let whole = frame(0x81, &[b"good \xF4\x90".as_slice(), &[b'x'; 100]].concat());
    let spoiled_at = 6 + 7;
    let mut decoder = Decoder::new();
    assert_eq!(decode(&mut decoder, &[&whole[..spoiled_at - 1]]), [""; 0]);
    assert_eq!(decode(&mut decoder, &[&whole[spoiled_at - 1..spoiled_at]]), ["!InvalidUtf8"]);
}

#[test]
fn a_character_may_be_cut_between_fragments() {
    let bell = "🔔".as_bytes();
    let stream: Vec<u8> = [
        frame(0x01, &bell[..1]),
        frame(0x00, &bell[1..3]),
        frame(0x00, b""),
        frame(0x89, b"\xFF"),
        frame(0x80, &bell[3..]),
    ]
    .concat();
    assert_eq!(decode_whole(&stream), ["ping:\u{FFFD}", "text:🔔"]);
}

#[test]
fn the_limit_counts_the_whole_message_and_is_known_from_the_headers() {
    assert_eq!(decode_whole(&frame(0x82, &[b'x'; 1000])).len(), 1);
    let start = frame(0x02, &[b'x'; 600]);
    let fits = [start.clone(), frame(0x80, &[b'x'; 400])].concat();
    assert_eq!(decode_whole(&fits)[0].len(), "binary:".len() + 1000);
    let too_big = [start.as_slice(), &frame(0x80, &[b'x'; 401])[..8]].concat();
    assert_eq!(decode_whole(&too_big), ["!MessageTooBig"]);
    // The biggest length there is, on top of what was collected: no sum may overflow.
    let huge = [&[0x80, 0xFF, 0x7F][..], &[0xFF; 7], &KEY].concat();
    assert_eq!(decode_whole(&[start.as_slice(), &huge].concat()), ["!MessageTooBig"]);
    // Control frames do not count.
    let ping = frame(0x89, &[b'p'; 125]);
    let full = [frame(0x02, &[b'x'; 1000]), ping, frame(0x80, b"")].concat();
    assert_eq!(decode_whole(&full).len(), 2);
}

#[test]
fn a_promise_costs_nothing_and_memory_follows_what_arrives() {
    let limits = DecoderLimits { message_bytes_max: 1 << 20 };
    for first in [0x82, 0x02] {
        let whole = frame(first, &[b'x'; 1 << 20]);
        let mut decoder = Decoder::new();
        let mut header = whole[..14].to_vec();
        assert!(decoder.next(&mut header.as_mut_slice(), limits).is_none());
        assert_eq!(decoder.heap_bytes(), 0);
        let mut arrived = 0;
        for piece in whole[14..whole.len() - 1].chunks(1000) {
            assert!(decoder.next(&mut piece.to_vec().as_mut_slice(), limits).is_none());
            arrived += piece.len();
            assert!(decoder.heap_bytes() <= (2 * arrived).min(1 << 20));
        }
    }
}

#[test]
fn at_rest_is_exact_and_then_no_memory_is_held() {
    let mut decoder = Decoder::new();
    assert!(decoder.is_at_rest());
    for whole in [frame(0x81, b"text"), frame(0x8A, b"pong")] {
        for cut in 1..whole.len() {
            assert!(decode(&mut decoder, &[&whole[..cut]]).is_empty());
            assert!(!decoder.is_at_rest(), "cut at {cut}");
            assert_eq!(decode(&mut decoder, &[&whole[cut..]]).len(), 1);
            assert!(decoder.is_at_rest());
            assert_eq!(decoder.heap_bytes(), 0);
        }
    }
    decode(&mut decoder, &[&frame(0x01, b"")]);
    assert!(!decoder.is_at_rest(), "inside of a message, though nothing of it is here");
    decode(&mut decoder, &[&frame(0x89, b"ping")]);
    assert!(!decoder.is_at_rest());
    decode(&mut decoder, &[&frame(0x80, b"")]);
    assert!(decoder.is_at_rest());
}

#[test]
fn a_collected_item_does_not_disturb_being_at_rest_while_it_is_lent() {
    let whole = frame(0x81, b"put together");
    let mut decoder = Decoder::new();
    decode(&mut decoder, &[&whole[..9]]);
    let mut rest = whole[9..].to_vec();
    let mut input = rest.as_mut_slice();
    let item = decoder.next(&mut input, LIMITS);
    assert_eq!(item, Some(Ok(Item::Text(&mut b"put together".to_vec()))));
    assert!(decoder.is_at_rest());
}

#[test]
fn a_close_frame_is_the_last_item() {
    let after = [frame(0x88, b""), frame(0x81, b"late"), vec![0xFF; 40]].concat();
    let mut decoder = Decoder::new();
    assert_eq!(decode(&mut decoder, &[&after, &[0xFF; 9]]), ["close:0:"]);
    assert!(!decoder.is_at_rest(), "a fresh decoder would return items again");
    // It ends a message that was under way, too, and its memory is given back.
    let mut decoder = Decoder::new();
    let close = frame(0x88, b"\x0F\xA0done");
    let reads = [&frame(0x01, b"never fin"), &close[..8], &close[8..], &frame(0x80, b"ished")];
    assert_eq!(decode(&mut decoder, &reads), ["close:4000:done"]);
    assert_eq!(decoder.heap_bytes(), 0);
}
