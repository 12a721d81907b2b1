//! Connections that wait for what is stored for their users; see `shard/user_queue.rs`.

use crate::ids::{ConnId, TopicName};
use std::collections::HashMap;

/// Connections that wait to be in their user's topic. Empty nearly always.
#[derive(Debug, Default)]
pub(in crate::shard) struct PendingUserQueues {
    pub(in crate::shard) users: HashMap<ConnId, TopicName>,
}

impl PendingUserQueues {
    /// The user's topic of a connection that waits for it.
    pub(in crate::shard) fn user_of(&self, conn: ConnId) -> Option<&TopicName> {
        self.users.get(&conn)
    }

    /// Connections of a user that wait to be in its topic.
    pub(in crate::shard) fn waiting_of(&self, user: &TopicName) -> impl Iterator<Item = ConnId> {
        self.users.iter().filter(move |(_, name)| *name == user).map(|(conn, _)| *conn)
    }

    /// All connections that wait to be in their user's topic.
    pub(in crate::shard) fn all(&self) -> impl Iterator<Item = (ConnId, &TopicName)> {
        self.users.iter().map(|(conn, name)| (*conn, name))
    }

    /// A connection has gone.
    pub(in crate::shard) fn forget(&mut self, conn: ConnId) {
        self.users.remove(&conn);
    }
}
