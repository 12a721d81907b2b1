//! What connections tell of their users, room by room.

use crate::ids::ConnId;
use crate::protocol::Info;
use std::collections::HashMap;

/// An entry of the table, beside its info.
const ENTRY_BYTES: usize = 64;

/// The info of connections about their users, where they sent one. The backplane has the same bytes.
#[derive(Debug, Default)]
pub(in crate::shard) struct PresenceInfos {
    of: HashMap<(ConnId, u32), Info>,
    /// What all of them keep alive.
    bytes: usize,
}

impl PresenceInfos {
    /// The info that a connection sent with its join of a topic that stands here.
    pub(in crate::shard) fn get(&self, conn: ConnId, topic: u32) -> Option<Info> {
        self.of.get(&(conn, topic)).cloned()
    }

    pub(in crate::shard) fn set(&mut self, conn: ConnId, topic: u32, info: Info) {
        self.bytes += ENTRY_BYTES + info.len();
        let before = self.of.insert((conn, topic), info);
        self.bytes -= before.map_or(0, |info| ENTRY_BYTES + info.len());
    }

    pub(in crate::shard) fn forget(&mut self, conn: ConnId, topic: u32) {
        let before = self.of.remove(&(conn, topic));
        self.bytes -= before.map_or(0, |info| ENTRY_BYTES + info.len());
    }

    /// Bytes that all of them keep alive.
    pub(in crate::shard) fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::SlotId;

    #[test]
    fn infos_count_while_they_are_there() {
        let (mut infos, conn) =
            (PresenceInfos::default(), ConnId(SlotId { index: 1, generation: 0 }));
        infos.set(conn, 1, "12345".into());
        infos.set(conn, 2, "1".into());
        infos.set(conn, 1, "1".into());
        assert_eq!(infos.bytes(), 2 * (ENTRY_BYTES + 1));
        infos.forget(conn, 3);
        (1..=2).for_each(|topic| infos.forget(conn, topic));
        assert_eq!(infos.bytes(), 0);
    }
}
