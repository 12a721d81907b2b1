//! Masking: every byte of a client's payload XOR the byte of a four-byte key below it (RFC 6455 §5.3).
//!
//! The work is bounded by memory, not by arithmetic, so all that is asked for is wide steps: the
//! bytes are taken in blocks that the compiler turns into vector instructions, the rest in fours and
//! ones. Masking and unmasking are the same.
//!
//! A payload that arrives in pieces needs no phase: between two pieces the key is turned instead
//! ([`turned`]), so that each piece starts with the key's first byte.
//!
//! Invariant: applying the same key twice changes nothing.

/// Bytes of a block: two SSE2 registers. Any multiple of 4 would be correct.
const BLOCK: usize = 32;
const _: () = assert!(BLOCK.is_multiple_of(4));

/// Masks or unmasks `bytes`, whose first byte lies under the first byte of `key`.
#[inline]
pub fn apply(key: [u8; 4], bytes: &mut [u8]) {
    let (blocks, rest) = bytes.as_chunks_mut::<BLOCK>();
    if !blocks.is_empty() {
        let wide: [u8; BLOCK] = std::array::from_fn(|at| key[at % 4]);
        for block in blocks {
            for (byte, key) in block.iter_mut().zip(wide) {
                *byte ^= key;
            }
        }
    }
    let (words, rest) = rest.as_chunks_mut::<4>();
    for word in words {
        *word = (u32::from_ne_bytes(*word) ^ u32::from_ne_bytes(key)).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip(key) {
        *byte ^= key;
    }
}

/// The key for what follows `bytes` bytes of payload.
#[inline]
pub fn turned(mut key: [u8; 4], bytes: usize) -> [u8; 4] {
    key.rotate_left(bytes % 4);
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    fn naive(key: [u8; 4], bytes: &[u8]) -> Vec<u8> {
        bytes.iter().enumerate().map(|(at, byte)| byte ^ key[at % 4]).collect()
    }

    #[test]
    fn every_length_at_every_alignment_agrees_with_the_rfc_formula() {
        let source: Vec<u8> = (0..200u8).map(|n| n.wrapping_mul(37)).collect();
        let key = [0x37, 0xfa, 0x21, 0x3d];
        for start in 0..8 {
            for end in start..source.len() {
                let mut bytes = source.clone();
                apply(key, &mut bytes[start..end]);
                assert_eq!(bytes[..start], source[..start]);
                assert_eq!(bytes[start..end], naive(key, &source[start..end]));
                assert_eq!(bytes[end..], source[end..]);
            }
        }
    }

    #[test]
    fn two_pieces_give_what_one_gives() {
        let source: Vec<u8> = (0..100).collect();
        let key = [1, 2, 4, 8];
        for cut in 0..=source.len() {
            let mut bytes = source.clone();
            let (head, tail) = bytes.split_at_mut(cut);
            apply(key, head);
            apply(turned(key, cut), tail);
            assert_eq!(bytes, naive(key, &source), "cut at {cut}");
        }
    }
}
