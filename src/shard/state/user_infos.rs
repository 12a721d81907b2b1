//! What tokens say about their users, by the index of their connection.
//!
//! A connection whose token has no `info` costs nothing.

use crate::protocol::Info;
use std::collections::HashMap;

/// The table.
#[derive(Debug, Default)]
pub(in crate::shard) struct UserInfos {
    of: HashMap<u32, Info>,
}

impl UserInfos {
    /// A connection has shown a token with `info`.
    pub(in crate::shard) fn insert(&mut self, index: u32, info: Info) {
        self.of.insert(index, info);
    }

    /// What the token of a connection says about its user.
    pub(in crate::shard) fn get(&self, index: u32) -> Option<&Info> {
        self.of.get(&index)
    }

    /// A connection has gone, or its new token says nothing. Gives memory back with the last one.
    pub(in crate::shard) fn remove(&mut self, index: u32) -> Option<Info> {
        let info = self.of.remove(&index)?;
        if self.of.is_empty() {
            self.of = HashMap::default();
        }
        Some(info)
    }
}
