//! When connections expire: in coarse seconds of the shard's clock, sorted.

use crate::ids::ConnId;
use std::collections::{BTreeMap, HashMap};

/// Entries that are stored at most beyond twice the number of live ones.
pub(in crate::shard) const ENTRIES_SPARE: usize = 1024;

/// Connections that expire, by the second. Seconds since the shard's clock began.
#[derive(Debug, Default)]
pub(in crate::shard) struct Expiries {
    pub(in crate::shard) by_second: BTreeMap<u64, Vec<ConnId>>,
    pub(in crate::shard) entries: usize,
    /// The same by connection, made for [`Expiries::second_of`].
    pub(in crate::shard) of_conn: Option<HashMap<ConnId, u64>>,
    /// Open connections that have an expiry.
    pub(in crate::shard) live: usize,
}

impl Expiries {
    pub(in crate::shard) fn add(&mut self, conn: ConnId, second: u64) {
        self.of_conn = None;
        self.by_second.entry(second).or_default().push(conn);
        self.entries += 1;
        self.live += 1;
    }

    /// The second in which a connection expires. The first call after an `add` walks all entries; the
    /// next ones look it up.
    pub(in crate::shard) fn second_of(&mut self, conn: ConnId) -> Option<u64> {
        let of_conn = self.of_conn.get_or_insert_with(|| {
            let seconds = self.by_second.iter();
            seconds.flat_map(|(at, conns)| conns.iter().map(|conn| (*conn, *at))).collect()
        });
        of_conn.get(&conn).copied()
    }

    /// Removes and returns one that has expired.
    pub(in crate::shard) fn pop_due(&mut self, now_s: u64) -> Option<ConnId> {
        let mut first = self.by_second.first_entry().filter(|first| *first.key() <= now_s)?;
        let conn = first.get_mut().pop().expect("no second is empty");
        if first.get().is_empty() {
            first.remove();
        }
        self.entries -= 1;
        Some(conn)
    }

    /// Drops the entries of closed connections, if they are too many.
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
