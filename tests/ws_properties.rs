//! The codec against models too simple to be wrong.
//!
//! Whatever a client sends, in whatever pieces it arrives, the decoder and its model must answer the
//! same items and the same error.

#[path = "common/ws_model.rs"]
mod ws_model;

use campanile::ws::decoder::{DecoderLimits, ProtocolError};
use campanile::ws::encode::{self, Opcode};
use campanile::ws::utf8::{self, Utf8};
use campanile::ws::{header, mask};
use proptest::prelude::*;
use ws_model::{decode, model};

const LIMITS: DecoderLimits = DecoderLimits { message_bytes_max: 300 };

/// A client's frame with any first byte, its length written in the shortest form or a wider one.
fn client_frame(first: u8, wider: usize, key: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let len = payload.len();
    let form = wider.max(match len {
        0..=125 => 0,
        126..=65535 => 1,
        _ => 2,
    });
    let mut out = vec![first];
    match form {
        0 => out.push(0x80 | len as u8),
        1 => out.extend([&[0xFE], &(len as u16).to_be_bytes()[..]].concat()),
        _ => out.extend([&[0xFF], &(len as u64).to_be_bytes()[..]].concat()),
    }
    out.extend(key);
    out.extend(payload.iter().enumerate().map(|(at, byte)| byte ^ key[at % 4]));
    out
}

/// What a client may say next.
#[derive(Clone, Debug)]
enum Said {
    /// A whole message, cut into fragments at these places, a control frame after each fragment.
    Message { text: bool, payload: Vec<u8>, cuts: Vec<usize>, control: Option<Vec<u8>> },
    /// A control frame.
    Control { opcode: u8, payload: Vec<u8> },
    /// Any frame at all, right or wrong.
    Frame { first: u8, wider: usize, payload: Vec<u8> },
    /// No frame at all.
    Garbage(Vec<u8>),
}

/// Lengths: any, and those next to a rule.
fn len() -> impl Strategy<Value = usize> {
    let borders = vec![0, 1, 2, 124, 125, 126, 127, 299, 300, 301];
    prop_oneof![2 => 0..200usize, 1 => prop::sample::select(borders)]
}

fn bytes(len: impl Strategy<Value = usize>) -> impl Strategy<Value = Vec<u8>> {
    len.prop_flat_map(|len| prop::collection::vec(any::<u8>(), len))
}

/// What a text message may carry: mostly text, sometimes cut inside of a character or spoiled.
fn nearly_text() -> impl Strategy<Value = Vec<u8>> {
    let place = any::<prop::sample::Index>;
    let text = || "\\PC{1,60}".prop_map(String::into_bytes);
    prop_oneof![
        10 => text(),
        4 => len().prop_map(|len| vec![b'a'; len]),
        1 => (text(), place()).prop_map(|(text, end)| text[..end.index(text.len())].to_vec()),
        1 => (text(), place(), any::<u8>()).prop_map(|(mut text, place, byte)| {
            let at = place.index(text.len());
            text[at] = byte;
            text
        }),
    ]
}

fn message() -> impl Strategy<Value = Said> {
    let payload = prop_oneof![
        nearly_text().prop_map(|payload| (true, payload)),
        bytes(len()).prop_map(|payload| (false, payload)),
    ];
    let cuts = prop::collection::vec(0..300usize, 0..4);
    let control = prop::option::of(bytes(0..126usize));
    (payload, cuts, control).prop_map(|((text, payload), cuts, control)| Said::Message {
        text,
        payload,
        cuts,
        control,
    })
}

fn close() -> impl Strategy<Value = Said> {
    let code = prop_oneof![Just(1000u16), 990..1020u16, 2990..5010u16];
    let whole = (code, nearly_text()).prop_map(|(code, reason)| {
        [&code.to_be_bytes(), &reason[..reason.len().min(123)]].concat()
    });
    prop_oneof![whole, bytes(0..3usize)].prop_map(|payload| Said::Control { opcode: 8, payload })
}

fn said() -> impl Strategy<Value = Said> {
    let fragment = (0..2u8, 0..3u8).prop_map(|(fin, opcode)| fin << 7 | opcode);
    let first = prop_oneof![8 => fragment, 1 => any::<u8>()];
    let wider = prop_oneof![9 => Just(0usize), 1 => 1..3usize];
    let promise = prop_oneof![any::<u64>(), 0..0x2_0000u64, Just(u64::MAX >> 1)];
    prop_oneof![
        20 => message(),
        6 => (9..11u8, bytes(0..126usize))
            .prop_map(|(opcode, payload)| Said::Control { opcode, payload }),
        1 => close(),
        3 => (first, wider, bytes(len()))
            .prop_map(|(first, wider, payload)| Said::Frame { first, wider, payload }),
        1 => promise.prop_map(|len| {
            Said::Garbage([&[0x82, 0xFF][..], &len.to_be_bytes(), &[0; 4]].concat())
        }),
        1 => bytes(0..20usize).prop_map(Said::Garbage),
    ]
}

fn write(said: &Said, key: [u8; 4], out: &mut Vec<u8>) {
    match said {
        Said::Message { text, payload, cuts, control } => {
            let mut cuts: Vec<_> = cuts.iter().map(|cut| (*cut).min(payload.len())).collect();
            cuts.sort_unstable();
            let mut start = 0;
            let mut opcode = if *text { 1 } else { 2 };
            for cut in cuts {
                out.extend(client_frame(opcode, 0, key, &payload[start..cut]));
                out.extend(control.iter().flat_map(|body| client_frame(0x89, 0, key, body)));
                (start, opcode) = (cut, 0);
            }
            out.extend(client_frame(0x80 | opcode, 0, key, &payload[start..]));
        }
        Said::Control { opcode, payload } => {
            out.extend(client_frame(0x80 | opcode, 0, key, payload));
        }
        Said::Frame { first, wider, payload } => {
            out.extend(client_frame(*first, *wider, key, payload));
        }
        Said::Garbage(bytes) => out.extend(bytes),
    }
}

fn stream() -> impl Strategy<Value = Vec<u8>> {
    (prop::collection::vec((said(), any::<[u8; 4]>()), 0..12), any::<prop::sample::Index>(), 0..8u8)
        .prop_map(|(everything, end, cut)| {
            let mut out = Vec::new();
            everything.iter().for_each(|(said, key)| write(said, *key, &mut out));
            // Now and then the connection is cut in the middle of something.
            if cut == 0 && !out.is_empty() {
                out.truncate(end.index(out.len()));
            }
            out
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_stream_in_any_pieces_is_heard_as_by_the_book(
        bytes in stream(),
        reads in prop::collection::vec(prop_oneof![3 => 0..16usize, 1 => 0..300usize], 0..60),
        thrifty in any::<bool>(),
    ) {
        prop_assert_eq!(decode(&bytes, &reads, thrifty, LIMITS), model(&bytes, LIMITS));
    }

    #[test]
    fn garbage_in_any_pieces_is_heard_as_by_the_book(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        reads in prop::collection::vec(0..20usize, 0..20),
    ) {
        prop_assert_eq!(decode(&bytes, &reads, false, LIMITS), model(&bytes, LIMITS));
    }

    #[test]
    fn bytes_in_any_pieces_are_text_exactly_when_the_standard_library_says_so(
        text in "\\PC{0,80}",
        spoil in prop::option::of((any::<prop::sample::Index>(), any::<u8>())),
        pieces in prop::collection::vec(0..9usize, 0..30),
    ) {
        let mut bytes = text.into_bytes();
        if let Some((at, byte)) = spoil && !bytes.is_empty() {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let wanted = std::str::from_utf8(&bytes).is_ok();
        prop_assert_eq!(utf8::is_valid(&bytes), wanted);
        let mut state = Utf8::default();
        let mut rest = bytes.as_slice();
        let mut valid = true;
        for size in pieces.into_iter().chain([usize::MAX]) {
            let (piece, later) = rest.split_at(size.min(rest.len()));
            valid = valid && state.push(piece).is_ok();
            rest = later;
        }
        prop_assert_eq!(valid && state.is_complete(), wanted);
    }

    #[test]
    fn a_mask_in_pieces_is_the_mask_of_the_rfc(
        bytes in prop::collection::vec(any::<u8>(), 0..500),
        key in any::<[u8; 4]>(),
        cut in any::<prop::sample::Index>(),
    ) {
        let cut = cut.index(bytes.len() + 1);
        let mut masked = bytes.clone();
        let (head, tail) = masked.split_at_mut(cut);
        mask::apply(key, head);
        mask::apply(mask::turned(key, cut), tail);
        let wanted: Vec<u8> = bytes.iter().enumerate().map(|(at, b)| b ^ key[at % 4]).collect();
        prop_assert_eq!(masked, wanted);
    }

    #[test]
    fn what_we_encode_is_read_back_once_it_is_masked(
        opcode in prop::sample::select(vec![Opcode::Text, Opcode::Binary, Opcode::Continuation]),
        len in prop_oneof![0..300usize, 65_500..65_600usize],
        key in any::<[u8; 4]>(),
    ) {
        let mut frame = Vec::new();
        encode::frame(opcode, &vec![b'x'; len], &mut frame);
        prop_assert_eq!(frame.len(), encode::frame_len(len));
        // A client's frame is ours with the mask bit and the key.
        let header_bytes = frame.len() - len;
        frame[1] |= 0x80;
        frame.splice(header_bytes..header_bytes, key);
        let wanted = header::Header {
            fin: true, opcode, key, payload_bytes: len as u64, header_bytes: header_bytes + 4,
        };
        prop_assert_eq!(header::parse(&frame), Ok(Some(wanted)));
    }
}

#[test]
fn every_cut_of_a_stream_with_everything_in_it_is_heard_alike() {
    let key = [9, 8, 7, 6];
    let stream: Vec<u8> = [
        client_frame(0x81, 0, key, "whole: 🔔 κόσμε".as_bytes()),
        client_frame(0x01, 0, key, "fragments: \u{1F514}".as_bytes().split_at(13).0),
        client_frame(0x89, 0, key, b"ping between"),
        client_frame(0x80, 0, key, "fragments: \u{1F514}".as_bytes().split_at(13).1),
        client_frame(0x82, 0, key, &[0xFE; 200]),
        client_frame(0x88, 0, key, "\u{3}\u{0}".as_bytes()),
    ]
    .concat();
    let wanted = model(&stream, LIMITS);
    assert_eq!(wanted.0.len(), 4);
    assert_eq!(wanted.1, Some(ProtocolError::CloseCodeInvalid));
    for first in 0..stream.len() {
        for second in 0..stream.len() - first {
            assert_eq!(decode(&stream, &[first, second], true, LIMITS), wanted, "{first} {second}");
        }
    }
}
