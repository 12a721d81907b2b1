//! A smoke fuzz with fixed seeds: good streams, spoiled a little, in random pieces, for long.
//!
//! Nothing is compared here (`ws_properties.rs` does that); it is about what must never happen: a
//! panic, memory beyond what arrived, an item beyond the limits, a decoder that cannot make up its
//! mind. A failure names its seed, and the seed is the bug report.

use campanile::ws::decoder::{Decoder, DecoderLimits, Item};
use campanile::ws::{mask, utf8};

/// A small limit is hit often, a big one lets messages grow.
const MESSAGE_BYTES_MAX: [usize; 4] = [0, 125, 5_000, 1 << 20];
/// What a decoder may hold beyond the message itself.
const SLACK_BYTES: usize = 64 * 1024;

/// SplitMix64.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, end: usize) -> usize {
        (self.roll() % end as u64) as usize
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.roll() as u8).collect()
    }
}

fn push_frame(dice: &mut Dice, first: u8, mut payload: Vec<u8>, out: &mut Vec<u8>) {
    let key = [dice.roll() as u8, dice.roll() as u8, dice.roll() as u8, dice.roll() as u8];
    mask::apply(key, &mut payload);
    out.push(first);
    match payload.len() {
        len @ 0..=125 => out.push(0x80 | len as u8),
        len @ 126..=0xFFFF => {
            out.push(0xFE);
            out.extend((len as u16).to_be_bytes());
        }
        len => {
            out.push(0xFF);
            out.extend((len as u64).to_be_bytes());
        }
    }
    out.extend(key);
    out.extend(payload);
}

/// Mostly what a client may say: messages in one to four fragments with pings between them.
fn good_stream(dice: &mut Dice) -> Vec<u8> {
    let mut out = Vec::new();
    for _ in 0..1 + dice.below(12) {
        let text = dice.below(2) == 0;
        let mut opcode = if text { 1 } else { 2 };
        let fragments = 1 + dice.below(4);
        for fragment in 0..fragments {
            let len = match dice.below(20) {
                0 => dice.below(70_000),
                1..4 => dice.below(2_000),
                _ => dice.below(130),
            };
            let payload = if text { vec![b'a'; len] } else { dice.bytes(len) };
            let fin = if fragment + 1 == fragments { 0x80 } else { 0 };
            push_frame(dice, fin | opcode, payload, &mut out);
            opcode = 0;
            if dice.below(3) == 0 {
                let len = dice.below(126);
                let payload = dice.bytes(len);
                push_frame(dice, 0x89, payload, &mut out);
            }
        }
    }
    out
}

/// A few bytes changed, a piece gone or there twice.
fn spoil(dice: &mut Dice, stream: &mut Vec<u8>) {
    for _ in 0..dice.below(4) {
        let at = dice.below(stream.len());
        match dice.below(4) {
            0 => stream[at] = dice.roll() as u8,
            1 => stream[at] ^= 1 << dice.below(8),
            2 => drop(stream.drain(at..(at + dice.below(9)).min(stream.len()))),
            _ => stream.extend_from_within(at..(at + 40).min(stream.len())),
        }
        if stream.is_empty() {
            stream.push(0x81);
        }
    }
}

/// Feeds it all and checks what must hold after every item and every read.
fn feed(seed: u64, dice: &mut Dice, stream: &[u8], limits: DecoderLimits) {
    let mut decoder = Decoder::new();
    let mut failed = None;
    let mut closed = false;
    let mut rest = stream;
    let mut arrived = 0;
    while !rest.is_empty() {
        let wish = if dice.below(2) == 0 { dice.below(20) } else { dice.below(9_000) };
        let (read, later) = rest.split_at(wish.min(rest.len()));
        rest = later;
        arrived += read.len();
        let mut read = read.to_vec();
        let mut input = read.as_mut_slice();
        while let Some(item) = decoder.next(&mut input, limits) {
            assert!(!closed, "seed {seed}: something after a close");
            match item {
                Ok(item) => {
                    assert_eq!(failed, None, "seed {seed}: an item after an error");
                    closed = matches!(item, Item::Close { .. });
                    check_item(seed, &item, limits);
                }
                Err(error) => {
                    assert_eq!(failed.unwrap_or(error), error, "seed {seed}: a second error");
                    failed = Some(error);
                    break;
                }
            }
        }
        assert!(failed.is_some() || input.is_empty(), "seed {seed}: input left over");
        assert!(!(decoder.is_at_rest() && (closed || failed.is_some())), "seed {seed}: at rest");
        let held = decoder.heap_bytes();
        assert!(held <= limits.message_bytes_max + SLACK_BYTES, "seed {seed}: holds {held} bytes");
        assert!(held <= 2 * arrived, "seed {seed}: holds {held} bytes, {arrived} have arrived");
    }
}

fn check_item(seed: u64, item: &Item<'_>, limits: DecoderLimits) {
    match item {
        Item::Text(bytes) => {
            assert!(utf8::is_valid(bytes), "seed {seed}: text that is not text");
            assert!(bytes.len() <= limits.message_bytes_max, "seed {seed}: too big");
        }
        Item::Binary(bytes) => {
            assert!(bytes.len() <= limits.message_bytes_max, "seed {seed}: too big");
        }
        Item::Ping(bytes) | Item::Pong(bytes) => assert!(bytes.len() <= 125, "seed {seed}"),
        Item::Close { reason, .. } => assert!(reason.len() <= 123, "seed {seed}"),
    }
}

#[test]
fn streams_that_were_spoiled_a_little_break_nothing() {
    for seed in 0..3_000 {
        let mut dice = Dice(seed);
        let mut stream = good_stream(&mut dice);
        spoil(&mut dice, &mut stream);
        let message_bytes_max = MESSAGE_BYTES_MAX[dice.below(MESSAGE_BYTES_MAX.len())];
        feed(seed, &mut dice, &stream, DecoderLimits { message_bytes_max });
    }
}

#[test]
fn pure_garbage_breaks_nothing() {
    for seed in 0..20_000 {
        let mut dice = Dice(seed);
        let len = 1 + dice.below(300);
        let mut stream = dice.bytes(len);
        // A plausible start now and then, or nearly all of it would end at the first byte.
        if dice.below(2) == 0 {
            stream[0] = [0x01, 0x02, 0x81, 0x82, 0x88, 0x89][dice.below(6)];
            stream.iter_mut().skip(1).take(1).for_each(|byte| *byte |= 0x80);
        }
        let message_bytes_max = MESSAGE_BYTES_MAX[dice.below(MESSAGE_BYTES_MAX.len())];
        feed(seed, &mut dice, &stream, DecoderLimits { message_bytes_max });
    }
}

#[test]
fn streams_that_were_not_spoiled_are_never_refused() {
    for seed in 0..300 {
        let mut dice = Dice(seed);
        let stream = good_stream(&mut dice);
        let mut decoder = Decoder::new();
        for read in stream.chunks(1 + dice.below(5_000)) {
            let mut read = read.to_vec();
            let mut input = read.as_mut_slice();
            let limits = DecoderLimits { message_bytes_max: 4 * 70_000 };
            while let Some(item) = decoder.next(&mut input, limits) {
                assert!(item.is_ok(), "seed {seed}: {item:?}");
            }
        }
        assert!(decoder.is_at_rest(), "seed {seed}");
    }
}
