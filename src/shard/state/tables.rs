//! Tables with an entry for each connection: they grow in steps of an eighth, because doubling would
//! leave half of them empty, and a connection's bytes are counted.

/// Makes a table at least so long.
pub(in crate::shard) fn grow<T: Clone>(table: &mut Vec<T>, length: usize, fill: T) {
    if table.capacity() < length {
        table.reserve_exact(length - table.len() + length / 8);
    }
    table.resize(length, fill);
}

/// Adds one at the end.
pub(in crate::shard) fn push<T>(table: &mut Vec<T>, entry: T) {
    if table.len() == table.capacity() {
        table.reserve_exact(1 + table.len() / 8);
    }
    table.push(entry);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_eighth_is_spare_at_most_and_growing_copies_little() {
        let (mut grown, mut pushed, mut moves) = (Vec::new(), Vec::new(), 0);
        for n in 1..100_000 {
            let before = pushed.capacity();
            push(&mut pushed, n);
            moves += if pushed.capacity() == before { 0 } else { pushed.len() };
            grow(&mut grown, n, 0);
            for table in [&grown, &pushed] {
                assert!(table.len() == n && table.capacity() <= n + n / 8 + 1);
            }
        }
        assert!(moves < 10 * pushed.len(), "{moves} moves");
    }
}
