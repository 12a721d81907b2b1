//! How a stream is cut into reads: decided by a byte of the input, so that the engine can change it.

/// The ends of reads that cut `bytes` bytes.
pub(super) fn cuts(seed: u8, bytes: usize) -> Vec<usize> {
    let longest = [1, 3, 17, 130, 1000][usize::from(seed) % 5];
    let (mut state, mut at, mut cuts) = (u64::from(seed), 0, Vec::new());
    while at < bytes {
        // The constants of Knuth's MMIX.
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        at += 1 + (state >> 33) as usize % longest;
        cuts.push(at.min(bytes));
    }
    cuts
}

/// The reads themselves.
pub(super) fn pieces(seed: u8, stream: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut from = 0;
    cuts(seed, stream.len()).into_iter().map(move |to| {
        let piece = &stream[from..to];
        from = to;
        piece
    })
}
