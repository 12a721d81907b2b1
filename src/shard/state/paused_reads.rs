//! Connections that are not read for a while, and what was read of them and not used.

use crate::ids::ConnId;
use std::collections::{HashMap, VecDeque};

/// Paused connections. Empty nearly always.
#[derive(Debug, Default)]
pub(in crate::shard) struct PausedReads {
    /// What was read of each and not used.
    pub(in crate::shard) rests: HashMap<ConnId, Vec<u8>>,
    pub(in crate::shard) rest_bytes: usize,
    pub(in crate::shard) resumed: VecDeque<ConnId>,
}

impl PausedReads {
    /// Connections that are paused, or have stored bytes.
    pub(in crate::shard) fn len(&self) -> usize {
        self.rests.len()
    }

    /// Bytes that are stored for all of them.
    pub(in crate::shard) fn rest_bytes(&self) -> usize {
        self.rest_bytes
    }

    /// Bytes that are stored for one.
    pub(in crate::shard) fn rest_bytes_of(&self, conn: ConnId) -> usize {
        self.rests.get(&conn).map_or(0, Vec::len)
    }

    /// Keeps what was not used.
    pub(in crate::shard) fn keep(&mut self, conn: ConnId, rest: &[u8]) {
        self.rest_bytes += rest.len();
        self.rests.entry(conn).or_default().extend_from_slice(rest);
    }

    /// Removes a connection's entry and returns its bytes.
    pub(in crate::shard) fn take(&mut self, conn: ConnId) -> Option<Vec<u8>> {
        let rest = self.rests.remove(&conn)?;
        self.rest_bytes -= rest.len();
        Some(rest)
    }
}
