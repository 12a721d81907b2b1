//! When which connections have to go: in coarse seconds of the shard's clock, sorted.

use crate::ids::ConnId;
use std::collections::{BTreeMap, HashMap};

/// Entries that are stored at most beyond twice the number of live ones.
pub(in crate::shard) const ENTRIES_SPARE: usize = 1024;

/// Who has to go when. Seconds since the shard's clock began.
#[derive(Debug, Default)]
pub(in crate::shard) struct Expiries {
    pub(in crate::shard) by_second: BTreeMap<u64, Vec<ConnId>>,
    pub(in crate::shard) entries: usize,
    /// The same by connection, made for [`Expiries::second_of`].
    pub(in crate::shard) of_conn: Option<HashMap<ConnId, u64>>,
    /// Connections that are here and will have to go.
    pub(in crate::shard) live: usize,
}

impl Expiries {
    pub(in crate::shard) fn add(&mut self, conn: ConnId, second: u64) {
        self.of_conn = None;
        self.by_second.entry(second).or_default().push(conn);
        self.entries += 1;
        self.live += 1;
    }

    /// The second in which a connection has to go. Looks through all of them, once for as many
    /// connections as are asked for before another one is added.
    pub(in crate::shard) fn second_of(&mut self, conn: ConnId) -> Option<u64> {
        let of_conn = self.of_conn.get_or_insert_with(|| {
            let seconds = self.by_second.iter();
            seconds.flat_map(|(at, conns)| conns.iter().map(|conn| (*conn, *at))).collect()
        });
        of_conn.get(&conn).copied()
    }

    /// One whose time is over.
    pub(in crate::shard) fn pop_due(&mut self, now_s: u64) -> Option<ConnId> {
        let mut first = self.by_second.first_entry().filter(|first| *first.key() <= now_s)?;
        let conn = first.get_mut().pop().expect("no second is empty");
        if first.get().is_empty() {
            first.remove();
        }
        self.entries -= 1;
        Some(conn)
    }

    /// Drops the entries of those who have gone, if they are too many.
    pub(in crate::shard) fn tidy(&mut self, is_here: impl Fn(ConnId) -> bool) {
        if self.entries <= 2 * self.live + ENTRIES_SPARE {
            return;
        }
        self.by_second.retain(|_, conns| {
            conns.retain(|conn| is_here(*conn));
            !conns.is_empty()
        });
        self.entries = self.by_second.values().map(Vec::len).sum();
    }
}
