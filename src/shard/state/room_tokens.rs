//! Memberships that a token for the room allows: what it allows, and when it expires.
//!
//! A connection without such a token costs nothing. One with some has 16 bytes for each, and an entry
//! in a table; there are at most as many as a connection may be in rooms. An entry of a membership
//! that has ended, or whose token was replaced, disagrees with the table and means nothing.

use crate::ids::ConnId;
use crate::shard::room_token::RoomToken;
use std::collections::{BTreeMap, HashMap};

/// Entries that are stored at most beyond twice the number of live ones.
const ENTRIES_SPARE: usize = 1024;

/// The tables.
#[derive(Debug, Default)]
pub(in crate::shard) struct RoomTokens {
    /// With the index of the topic.
    of: HashMap<ConnId, Vec<(u32, RoomToken)>>,
    by_second: BTreeMap<u32, Vec<(ConnId, u32)>>,
    entries: usize,
    live: usize,
}

impl RoomTokens {
    /// The token with which a connection is in a room, or about to be.
    pub(in crate::shard) fn get(&self, conn: ConnId, topic: u32) -> Option<RoomToken> {
        if self.of.is_empty() {
            return None;
        }
        let of = self.of.get(&conn)?;
        of.iter().find(|(index, _)| *index == topic).map(|(_, token)| *token)
    }

    /// A connection is in a room by this token, or about to be.
    pub(in crate::shard) fn set(&mut self, conn: ConnId, topic: u32, token: RoomToken) {
        if self.get(conn, topic) == Some(token) {
            return;
        }
        self.remove(conn, topic);
        self.of.entry(conn).or_default().push((topic, token));
        self.live += 1;
        if let Some(second) = token.expires_s {
            self.by_second.entry(second).or_default().push((conn, topic));
            self.entries += 1;
            self.tidy();
        }
    }

    /// A connection has left a room.
    pub(in crate::shard) fn remove(&mut self, conn: ConnId, topic: u32) {
        if self.of.is_empty() {
            return;
        }
        let Some(of) = self.of.get_mut(&conn) else { return };
        let Some(place) = of.iter().position(|(index, _)| *index == topic) else { return };
        of.swap_remove(place);
        self.live -= 1;
        if of.is_empty() {
            self.of.remove(&conn);
        }
        self.drop_if_unused();
    }

    /// A connection has gone.
    pub(in crate::shard) fn forget(&mut self, conn: ConnId) {
        if self.of.is_empty() {
            return;
        }
        self.live -= self.of.remove(&conn).map_or(0, |of| of.len());
        self.drop_if_unused();
    }

    /// Removes and returns a membership whose token has expired.
    pub(in crate::shard) fn pop_due(&mut self, now_s: u64) -> Option<(ConnId, u32)> {
        loop {
            let mut first =
                self.by_second.first_entry().filter(|first| u64::from(*first.key()) <= now_s)?;
            let second = *first.key();
            let (conn, topic) = first.get_mut().pop().expect("no second is empty");
            if first.get().is_empty() {
                first.remove();
            }
            self.entries -= 1;
            if self.get(conn, topic).is_some_and(|token| token.expires_s == Some(second)) {
                self.remove(conn, topic);
                return Some((conn, topic));
            }
        }
    }

    /// Memberships that a token allows.
    pub(in crate::shard) fn len(&self) -> usize {
        self.live
    }

    fn drop_if_unused(&mut self) {
        if self.live == 0 {
            *self = RoomTokens::default();
        }
    }

    /// Drops entries that mean nothing, if they are too many.
    fn tidy(&mut self) {
        if self.entries <= 2 * self.live + ENTRIES_SPARE {
            return;
        }
        let mut by_second = std::mem::take(&mut self.by_second);
        by_second.retain(|second, all| {
            let is_current = |(conn, topic): &(ConnId, u32)| {
                self.get(*conn, *topic).is_some_and(|token| token.expires_s == Some(*second))
            };
            all.retain(is_current);
            all.sort_unstable_by_key(|(conn, topic)| (conn.0.index, *topic));
            all.dedup();
            !all.is_empty()
        });
        self.entries = by_second.values().map(Vec::len).sum();
        self.by_second = by_second;
    }
}
