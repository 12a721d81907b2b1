//! Partitions: fixed groups of topics, by a hash of the name. A backplane of several servers gives
//! each partition to one of them.
//!
//! Invariant: [`partition`] never changes. Nodes of different versions share a Redis, and its keys
//! outlive them all.

/// Number of partitions.
pub const PARTITIONS: usize = 1024;

/// The partition of a topic, `0..1024`: FNV-1a, 64 bits, of its whole name, modulo 1024.
pub fn partition(topic: &str) -> u16 {
    let fold = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3);
    (topic.bytes().fold(0xCBF2_9CE4_8422_2325, fold) % PARTITIONS as u64) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_partition_of_a_topic_never_changes() {
        // FNV-1a's own test vectors: "" is the offset basis, "a" is af63dc4c8601ec8c.
        assert_eq!(partition(""), 0x325);
        assert_eq!(partition("a"), 0x08c);
        assert_eq!(partition("r:room"), 34);
        assert_eq!(partition("*"), 637);
    }
}
