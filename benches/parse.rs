//! What does it cost to understand a client's message, and to write one for others, beside the parsers
//! one would otherwise take?
//!
//! All ways answer the same question: which room, and where the payload's bytes are. serde_json
//! finds them as we do (`RawValue`). simd-json makes a tape of every value and cannot hand the bytes
//! back: it is here as the cost of taking the payload apart, not as an alternative. It has its
//! buffers from the run before, and no message has escapes, so nothing is changed in place and each
//! run reads the same bytes.

use std::hint::black_box;

use campanile::ids::TopicKind;
use campanile::protocol::{Command, Event, native};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use serde_json::value::RawValue;
use simd_json::prelude::*;

const DEPTH_MAX: usize = 64;

#[derive(serde::Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    room_id: &'a str,
    #[serde(borrow)]
    payload: &'a RawValue,
}

/// A ticker's payload of about `bytes` bytes: short strings and numbers, little to skip at once.
fn ticker(bytes: usize) -> String {
    let quote = r#"{"symbol":"CAMP","bid":1043.25,"ask":1043.75,"open":true}"#;
    let quotes = (bytes / (quote.len() + 1)).max(1);
    format!("[{}]", vec![quote; quotes].join(","))
}

/// A chat's payload of exactly `bytes` bytes: one string, raw Unicode in it.
fn chat(bytes: usize) -> String {
    let mut text = "Grüße aus dem Turm, wer läutet heute? ".repeat(bytes / 32 + 1);
    let frame = r#"{"text":""}"#.len();
    let cut = (0..=bytes - frame).rev().find(|&at| text.is_char_boundary(at)).expect("0 is one");
    text.truncate(cut);
    text.push_str(&"!".repeat(bytes - frame - cut));
    format!(r#"{{"text":"{text}"}}"#)
}

fn ours(message: &mut [u8]) -> usize {
    match native::parse(message, DEPTH_MAX).expect("a request").command {
        Command::Publish { room, payload, .. } => room.len() + payload.len(),
        _ => 0,
    }
}

fn serde(message: &[u8]) -> usize {
    let envelope: Envelope<'_> = serde_json::from_slice(message).expect("a request");
    envelope.room_id.len() + envelope.payload.get().len()
}

fn tape(message: &mut [u8], buffers: &mut simd_json::Buffers) -> usize {
    let tape = simd_json::to_tape_with_buffers(message, buffers).expect("a request");
    tape.as_value().get_str("room_id").expect("a room").len()
}

fn parse_one(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, message: &str) {
    let mut bytes = message.as_bytes().to_vec();
    let mut buffers = simd_json::Buffers::new(bytes.len());
    assert_eq!(ours(&mut bytes), serde(&bytes), "both found the same");
    group.throughput(Throughput::Bytes(bytes.len() as u64));
    group.bench_function(format!("{name}/campanile"), |b| b.iter(|| ours(black_box(&mut bytes))));
    group.bench_function(format!("{name}/serde_json_raw"), |b| b.iter(|| serde(black_box(&bytes))));
    group.bench_function(format!("{name}/simd_json_tape"), |b| {
        b.iter(|| tape(black_box(&mut bytes), &mut buffers))
    });
    assert_eq!(bytes, message.as_bytes(), "nothing was changed in place");
}

fn parse(c: &mut Criterion) {
    let mut group = c.benchmark_group("parse");
    let publish = r#"{"type":"publish","room_id":"lobby","id":12345,"payload":"#;
    let payload = chat(120 - publish.len() - 1);
    let full = format!("{publish}{payload}}}");
    assert_eq!(full.len(), 120);
    parse_one(&mut group, "publish_120", &full);
    let of = |payload: &str| format!(r#"{{"room_id":"lobby","payload":{payload}}}"#);
    parse_one(&mut group, "short_form", &of(&payload));
    for (size, bytes) in [("1_kib", 1024), ("16_kib", 16 * 1024)] {
        parse_one(&mut group, &format!("chat_{size}"), &of(&chat(bytes)));
        parse_one(&mut group, &format!("ticker_{size}"), &of(&ticker(bytes)));
    }
    group.finish();
}

fn write(c: &mut Criterion) {
    let mut group = c.benchmark_group("write");
    for (name, bytes) in [("message_120", 64), ("message_1_kib", 1024), ("message_16_kib", 16384)] {
        let payload = chat(bytes);
        let event = Event::Message {
            topic: TopicKind::Room("lobby"),
            from: Some("ann"),
            info: None,
            payload: payload.as_bytes(),
            position: None,
        };
        let mut out = Vec::with_capacity(native::encoded_len(&event));
        group.throughput(Throughput::Bytes(out.capacity() as u64));
        // Measured, then written, as a frame needs it: the length stands before the body.
        group.bench_function(name, |b| {
            b.iter(|| {
                out.clear();
                out.reserve(native::encoded_len(black_box(&event)));
                native::write(black_box(&event), &mut out);
                out.len()
            });
        });
    }
    group.finish();
}

criterion_group!(benches, parse, write);
criterion_main!(benches);
