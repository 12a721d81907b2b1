//! What connections or their tokens tell of users: infos by a key, and the bytes that they keep alive.
//!
//! A table without entries has no memory.

use crate::protocol::Info;
use std::collections::HashMap;
use std::hash::Hash;

/// An entry of the table, beside its info.
const ENTRY_BYTES: usize = 64;

/// Infos by their key.
#[derive(Debug)]
pub(in crate::shard) struct InfoTable<K> {
    of: HashMap<K, Info>,
    /// What all of them keep alive.
    bytes: usize,
}

impl<K> Default for InfoTable<K> {
    fn default() -> InfoTable<K> {
        InfoTable { of: HashMap::new(), bytes: 0 }
    }
}

impl<K: Eq + Hash> InfoTable<K> {
    /// Sets an info, in place of the one before.
    pub(in crate::shard) fn set(&mut self, key: K, info: Info) {
        self.bytes += ENTRY_BYTES + info.len();
        let before = self.of.insert(key, info);
        self.bytes -= before.map_or(0, |info| ENTRY_BYTES + info.len());
    }

    /// The info of this key.
    pub(in crate::shard) fn get(&self, key: &K) -> Option<&Info> {
        self.of.get(key)
    }

    /// Takes an info out. Gives memory back with the last one.
    pub(in crate::shard) fn remove(&mut self, key: &K) -> Option<Info> {
        let info = self.of.remove(key)?;
        self.bytes -= ENTRY_BYTES + info.len();
        if self.of.is_empty() {
            self.of = HashMap::new();
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
        let mut infos = InfoTable::default();
        infos.set(1, "12345".into());
        infos.set(2, "1".into());
        infos.set(1, "1".into());
        assert_eq!(infos.bytes(), 2 * (ENTRY_BYTES + 1));
        assert!(infos.get(&1).is_some() && infos.remove(&3).is_none());
        (1..=2).for_each(|key| assert!(infos.remove(&key).is_some()));
        assert_eq!((infos.bytes(), infos.of.capacity()), (0, 0));
    }
}
