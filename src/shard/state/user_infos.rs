//! What tokens say about their users, by the index of their connection.
//!
//! A connection whose token has no `info` costs nothing.

use crate::protocol::Info;
use std::collections::HashMap;

/// An entry of the table, beside its info.
const ENTRY_BYTES: usize = 64;

/// The table.
#[derive(Debug, Default)]
pub(in crate::shard) struct UserInfos {
    of: HashMap<u32, Info>,
    /// What all of them keep alive.
    bytes: usize,
}

impl UserInfos {
    /// A connection has shown a token with `info`.
    pub(in crate::shard) fn insert(&mut self, index: u32, info: Info) {
        self.bytes += ENTRY_BYTES + info.len();
        let before = self.of.insert(index, info);
        self.bytes -= before.map_or(0, |info| ENTRY_BYTES + info.len());
    }

    /// What the token of a connection says about its user.
    pub(in crate::shard) fn get(&self, index: u32) -> Option<&Info> {
        self.of.get(&index)
    }

    /// A connection has gone, or its new token says nothing. Gives memory back with the last one.
    pub(in crate::shard) fn remove(&mut self, index: u32) -> Option<Info> {
        let info = self.of.remove(&index)?;
        self.bytes -= ENTRY_BYTES + info.len();
        if self.of.is_empty() {
            self.of = HashMap::default();
        }
        Some(info)
    }

    /// Bytes that all of them keep alive.
    pub(in crate::shard) fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn infos_count_while_they_are_there() {
        let mut infos = UserInfos::default();
        infos.insert(1, "12345".into());
        infos.insert(2, "1".into());
        infos.insert(1, "1".into());
        assert_eq!(infos.bytes(), 2 * (ENTRY_BYTES + 1));
        (0..=2).for_each(|index| _ = infos.remove(index));
        assert_eq!(infos.bytes(), 0);
    }
}
