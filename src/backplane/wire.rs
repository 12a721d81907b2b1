//! Versions of what nodes write for each other, so that nodes of two versions live in one system.
//!
//! A node reads a range of versions and names it in its record, beside its sign of life. It writes
//! the newest version that every living node reads, and none newer than [`WRITES_MAX`].
//!
//! A version is read at least one release before it is written. Version 2 is an exception: no release
//! was without it, and only messages that have an addition are written in it. So a release can be
//! installed node by node, and taken back node by node: a node of the release before reads everything
//! that this one has written, in channels and in stored histories.
//!
//! | version | what is new |
//! |---|---|
//! | 1 | envelopes, presence events, disconnects, and entries of presence as they are today |
//! | 2 | an envelope may have additions that its reader does not know; `info` is the first of them |
//!
//! A key whose layout changes gets a new name, and a version says which nodes read that name.
//!
//! Invariant: the version to write is one that this node reads, too.

use std::fmt;

/// The versions that this node reads.
pub const READS: WireRange = WireRange { min: 1, max: 2 };
/// The newest version that this node writes.
pub const WRITES_MAX: u8 = 2;

const _: () = assert!(READS.min <= WRITES_MAX && WRITES_MAX <= READS.max);

/// The versions that a node reads, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WireRange {
    /// The oldest.
    pub min: u8,
    /// The newest.
    pub max: u8,
}

impl WireRange {
    /// A node whose record has no range: it is older than ranges are.
    pub const FIRST: WireRange = WireRange { min: 1, max: 1 };

    /// Parses a record: `1-2`, or `1` from a node older than ranges. What follows a blank is for
    /// later versions. `None`: no node has written it.
    pub fn read(record: &[u8]) -> Option<WireRange> {
        let range = record.split(|byte| *byte == b' ').next()?;
        let mut ends = range.split(|byte| *byte == b'-');
        let min = version(ends.next()?)?;
        let max = ends.next().map_or(Some(min), version)?;
        (ends.next().is_none() && min <= max).then_some(WireRange { min, max })
    }
}

impl fmt::Display for WireRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.min, self.max)
    }
}

/// The newest version that all these nodes read, at most `writes_max`, and never older than this
/// node reads itself.
pub fn common(others: impl IntoIterator<Item = WireRange>, reads: WireRange, writes_max: u8) -> u8 {
    let newest = others.into_iter().map(|node| node.max).fold(writes_max, u8::min);
    newest.max(reads.min)
}

/// A version: 1 to 255 in canonical digits.
fn version(text: &[u8]) -> Option<u8> {
    let is_written = matches!(text, [b'1'..=b'9', ..]) && text.len() <= 3;
    let digits = std::str::from_utf8(text).ok().filter(|_| is_written)?;
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written_and_one_of_the_first_version_too() {
        for range in [READS, WireRange::FIRST, WireRange { min: 3, max: 255 }] {
            assert_eq!(WireRange::read(range.to_string().as_bytes()), Some(range));
        }
        assert_eq!(WireRange::read(b"1"), Some(WireRange::FIRST), "a node without ranges");
        assert_eq!(WireRange::read(b"1-7 more of the future"), Some(WireRange { min: 1, max: 7 }));
    }

    #[test]
    fn what_no_node_has_written_is_no_record() {
        for wrong in ["", "0", "-", "1-", "-1", "2-1", "1-2-3", "01", "1-256", "+1", "x", "1-2x"] {
            assert_eq!(WireRange::read(wrong.as_bytes()), None, "{wrong:?}");
        }
        assert_eq!(WireRange::read(b"1-\xFF"), None);
    }

    #[test]
    fn the_oldest_living_node_decides_what_is_written() {
        let to = |max| WireRange { min: 1, max };
        let reads = to(5);
        assert_eq!(common([], reads, 4), 4, "alone, what this node may write");
        assert_eq!(common([to(9), to(7)], reads, 4), 4, "and no newer one among newer nodes");
        assert_eq!(common([to(9), to(1), to(3)], reads, 4), 1);
        assert_eq!(
            common([to(1)], WireRange { min: 2, max: 3 }, 3),
            2,
            "none that it does not read"
        );
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_a_record_or_none(bytes in proptest::collection::vec(0u8.., 0..12)) {
            if let Some(WireRange { min, max }) = WireRange::read(&bytes) {
                proptest::prop_assert!(1 <= min && min <= max);
            }
        }
    }
}
