//! The lineage of a history: the epochs before its own, newest first, each with the offset at which the
//! next one forked from it.

/// How far an earlier epoch went, as far as all later ones knew it.
pub(super) fn fork_offset_of(lineage: &[(u64, u64)], epoch: u64) -> Option<u64> {
    let topic_ref = lineage.iter().position(|(earlier, _)| *earlier == epoch)?;
    lineage[..=topic_ref].iter().map(|(_, fork_offset)| *fork_offset).min()
}
