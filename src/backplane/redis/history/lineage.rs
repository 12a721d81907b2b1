//! The lineage of a history: the epochs before its own, newest first, each with the offset at which
//! the next one forked from it.

/// The last offset of an earlier epoch that is part of this history; `None`: it is not of this
/// lineage.
pub(super) fn fork_offset_of(lineage: &[(u64, u64)], epoch: u64) -> Option<u64> {
    let topic_ref = lineage.iter().position(|(earlier, _)| *earlier == epoch)?;
    lineage[..=topic_ref].iter().map(|(_, fork_offset)| *fork_offset).min()
}
