//! What does the codec cost beyond touching the bytes once?
//!
//! `decode` takes one whole masked text frame, as most reads hold it: header, unmasking in place,
//! UTF-8. Its floor is what no decoder can avoid, the XOR of the same bytes in place, written here
//! without the codec; `memcpy` beside it is what a decoder that copies would pay on top. `cut` is
//! the slow road: the same frame in two reads. `encode` writes a frame, its floor is the memcpy.

use campanile::ws::decoder::{Decoder, DecoderLimits, Item};
use campanile::ws::encode::{self, Opcode};
use campanile::ws::mask;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;

const PAYLOAD_BYTES: [usize; 5] = [16, 120, 1024, 16_384, 65_536];
const LIMITS: DecoderLimits = DecoderLimits { message_bytes_max: 1 << 20 };

/// Every byte of it is below 0x10, so masking turns ASCII into ASCII: decoding a frame in place
/// leaves a frame that can be decoded again, and no copy has to be measured along.
const KEY: [u8; 4] = [0x01, 0x0A, 0x05, 0x0F];

fn masked_frame(payload_bytes: usize) -> Vec<u8> {
    let text = br#"{"type":"publish","room_id":"lobby","payload":"for whom the bell tolls"} "#;
    let payload: Vec<u8> = text.iter().copied().cycle().take(payload_bytes).collect();
    let mut frame = Vec::new();
    encode::frame(Opcode::Text, &payload, &mut frame);
    let header_bytes = frame.len() - payload_bytes;
    frame[1] |= 0x80;
    frame.splice(header_bytes..header_bytes, KEY);
    frame
}

/// The bytes of the text in `input`, if one became whole.
fn text_bytes(decoder: &mut Decoder, mut input: &mut [u8]) -> usize {
    let mut bytes = 0;
    while let Some(item) = decoder.next(&mut input, LIMITS) {
        match item {
            Ok(Item::Text(text)) => bytes += black_box(text).len(),
            other => panic!("{other:?}"),
        }
    }
    bytes
}

fn decode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decode");
    for size in PAYLOAD_BYTES {
        group.throughput(Throughput::Bytes(size as u64));
        let mut frame = masked_frame(size);
        group.bench_function(BenchmarkId::new("text", size), |bencher| {
            bencher.iter(|| {
                let bytes = text_bytes(&mut Decoder::new(), black_box(&mut frame));
                assert_eq!(bytes, size);
            });
        });
        group.bench_function(BenchmarkId::new("text_cut", size), |bencher| {
            let half = frame.len() / 2;
            bencher.iter(|| {
                let mut decoder = Decoder::new();
                let (head, tail) = black_box(&mut frame).split_at_mut(half);
                let bytes = text_bytes(&mut decoder, head) + text_bytes(&mut decoder, tail);
                assert_eq!(bytes, size);
            });
        });
        floors(&mut group, size);
    }
    group.finish();
}

fn floors(
    group: &mut criterion::BenchmarkGroup<'_, criterion::measurement::WallTime>,
    size: usize,
) {
    let mut bytes = vec![b'x'; size];
    group.bench_function(BenchmarkId::new("floor_xor", size), |bencher| {
        bencher.iter(|| black_box(&mut bytes).iter_mut().for_each(|byte| *byte ^= 0x0A));
    });
    let mut copy = vec![0; size];
    group.bench_function(BenchmarkId::new("floor_memcpy", size), |bencher| {
        bencher.iter(|| black_box(&mut copy).copy_from_slice(black_box(&bytes)));
    });
}

fn mask_by_size(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("mask");
    for size in PAYLOAD_BYTES {
        group.throughput(Throughput::Bytes(size as u64));
        // Off by two, as behind a header: nothing is aligned in a read buffer.
        let mut bytes = vec![b'x'; size + 2];
        group.bench_function(BenchmarkId::from_parameter(size), |bencher| {
            bencher.iter(|| mask::apply(black_box(KEY), black_box(&mut bytes[2..])));
        });
    }
    group.finish();
}

fn encode_by_size(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("encode");
    for size in PAYLOAD_BYTES {
        group.throughput(Throughput::Bytes(size as u64));
        let payload = vec![b'x'; size];
        let mut out = Vec::with_capacity(encode::frame_len(size));
        group.bench_function(BenchmarkId::new("text", size), |bencher| {
            bencher.iter(|| {
                out.clear();
                encode::frame(Opcode::Text, black_box(&payload), &mut out);
                black_box(&out);
            });
        });
        group.bench_function(BenchmarkId::new("floor_memcpy", size), |bencher| {
            bencher.iter(|| {
                out.clear();
                out.extend_from_slice(black_box(&payload));
                black_box(&out);
            });
        });
    }
    group.finish();
}

criterion_group!(benches, decode, mask_by_size, encode_by_size);
criterion_main!(benches);
