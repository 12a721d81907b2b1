//! What connections tell of their users, room by room.

use crate::ids::ConnId;
use crate::protocol::Info;
use std::collections::HashMap;

/// The info of connections about their users, where they sent one. The backplane has the same bytes.
#[derive(Debug, Default)]
pub(in crate::shard) struct PresenceInfos {
    pub(in crate::shard) of: HashMap<(ConnId, u32), Info>,
}

impl PresenceInfos {
    /// The info that a connection sent with its join of a topic that stands here.
    pub(in crate::shard) fn get(&self, conn: ConnId, topic: u32) -> Option<Info> {
        self.of.get(&(conn, topic)).cloned()
    }

    pub(in crate::shard) fn set(&mut self, conn: ConnId, topic: u32, info: Info) {
        self.of.insert((conn, topic), info);
    }

    pub(in crate::shard) fn forget(&mut self, conn: ConnId, topic: u32) {
        self.of.remove(&(conn, topic));
    }
}
