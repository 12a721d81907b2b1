//! WebSocket frames of a client: the decoder and its model answer the same, however the stream is cut,
//! and what the decoder holds is bounded by what has come.

#[path = "../../common/ws_model.rs"]
mod ws_model;

use super::pieces::{cuts, pieces};
use campanile::ws::decoder::{Decoder, DecoderLimits};

/// A small limit is reached often, a large one lets messages grow.
const MESSAGE_BYTES_MAX: [usize; 4] = [0, 125, 300, 1 << 20];

/// First byte: limit and whether a decoder at rest is dropped; second: how the stream is cut.
pub fn check(input: &[u8]) {
    let [setting, seed, stream @ ..] = input else { return };
    let limits = DecoderLimits { message_bytes_max: MESSAGE_BYTES_MAX[usize::from(setting % 4)] };
    let is_dropped_at_rest = setting & 4 != 0;
    let wanted = ws_model::model(stream, limits);
    let mut from = 0;
    let lengths =
        cuts(*seed, stream.len()).into_iter().map(|to| to - std::mem::replace(&mut from, to));
    let lengths: Vec<usize> = lengths.collect();
    assert_eq!(ws_model::decode(stream, &lengths, is_dropped_at_rest, limits), wanted);
    assert_eq!(ws_model::decode(stream, &[], is_dropped_at_rest, limits), wanted);
    check_memory(stream, *seed, limits);
}

fn check_memory(stream: &[u8], seed: u8, limits: DecoderLimits) {
    let (mut decoder, mut arrived) = (Decoder::new(), 0);
    for read in pieces(seed, stream) {
        arrived += read.len();
        let mut read = read.to_vec();
        let mut input = read.as_mut_slice();
        while let Some(Ok(_)) = decoder.next(&mut input, limits) {}
        let held = decoder.heap_bytes();
        // Behind the message under way, one control frame.
        assert!(held <= limits.message_bytes_max + 125, "{held} bytes are held");
        assert!(held <= 2 * arrived, "{held} bytes are held of {arrived}");
    }
}
