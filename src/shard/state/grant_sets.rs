//! What tokens allow, by the index of their connection. Equal sets are stored once.
//!
//! A connection without grants costs nothing while none has any, and 4 bytes once one has.

use crate::policy::grants::Grants;
use crate::shard::state::tables::SegmentTable;
use std::collections::HashMap;
use std::sync::Arc;

/// The set of no connection.
const NONE: u32 = 0;

/// The table.
#[derive(Debug, Default)]
pub(in crate::shard) struct GrantSets {
    /// One more than the place of the connection's set, by the connection's index.
    of: SegmentTable<u32>,
    /// Connections that have a set.
    live: usize,
    sets: Vec<Option<SharedSet>>,
    free: Vec<u32>,
    places: HashMap<Arc<Grants>, u32>,
    /// What all sets keep alive.
    bytes: usize,
}

/// A set beside what it has itself: its places in both tables.
const SET_BYTES: usize = 96;

#[derive(Debug)]
struct SharedSet {
    grants: Arc<Grants>,
    connections: usize,
}

impl GrantSets {
    /// A connection has shown a token with grants.
    pub(in crate::shard) fn insert(&mut self, index: u32, grants: Arc<Grants>) {
        self.remove(index);
        let place = match self.places.get(&grants) {
            Some(place) => *place,
            None => self.add(grants),
        };
        self.sets[place as usize].as_mut().expect("it has a place").connections += 1;
        self.of.set(index, place + 1, NONE);
        self.live += 1;
    }

    fn add(&mut self, grants: Arc<Grants>) -> u32 {
        self.bytes += SET_BYTES + grants.held_bytes();
        let set = Some(SharedSet { grants: grants.clone(), connections: 0 });
        let place = match self.free.pop() {
            Some(place) => {
                self.sets[place as usize] = set;
                place
            }
            None => {
                self.sets.push(set);
                self.sets.len() as u32 - 1
            }
        };
        self.places.insert(grants, place);
        place
    }

    /// What the token of a connection allows, if it says so.
    pub(in crate::shard) fn get(&self, index: u32) -> Option<&Arc<Grants>> {
        let place = self.of.get(index)?.checked_sub(1)?;
        self.sets[place as usize].as_ref().map(|set| &set.grants)
    }

    /// Bytes that all sets keep alive.
    pub(in crate::shard) fn bytes(&self) -> usize {
        self.bytes
    }

    /// A connection has gone.
    pub(in crate::shard) fn remove(&mut self, index: u32) -> Option<Arc<Grants>> {
        let place = std::mem::take(self.of.get_mut(index)?).checked_sub(1)?;
        let slot = &mut self.sets[place as usize];
        let set = slot.as_mut().expect("a connection has it");
        set.connections -= 1;
        let grants = set.grants.clone();
        if set.connections == 0 {
            *slot = None;
            self.free.push(place);
            self.places.remove(&grants);
            self.bytes -= SET_BYTES + grants.held_bytes();
        }
        self.live -= 1;
        if self.live == 0 {
            *self = GrantSets::default();
        }
        Some(grants)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::grants::{GrantTexts, RoomTexts};

    fn grants(pattern: &str) -> Arc<Grants> {
        let rooms = Some(RoomTexts::for_all(vec![pattern.to_owned()]));
        Arc::new(Grants::new(&GrantTexts { rooms, send: Vec::new() }).expect("one pattern"))
    }

    #[test]
    fn equal_sets_are_stored_once_and_go_with_the_last_connection() {
        let mut sets = GrantSets::default();
        for index in [5, 0, 7] {
            sets.insert(index, grants("a:*"));
        }
        sets.insert(1, grants("b:*"));
        assert_eq!((sets.sets.len(), sets.places.len()), (2, 2));
        assert_eq!(sets.bytes(), 2 * (SET_BYTES + grants("a:*").held_bytes()));
        assert!(Arc::ptr_eq(sets.get(5).unwrap(), sets.get(7).unwrap()));
        assert_eq!(sets.get(1), Some(&grants("b:*")));
        assert_eq!([2, 6, 8, 1000].map(|index| sets.get(index).is_some()), [false; 4]);
        assert_eq!(sets.remove(1), Some(grants("b:*")));
        assert_eq!(sets.remove(1), None);
        sets.insert(2, grants("c:*"));
        assert_eq!((sets.sets.len(), sets.places.len()), (2, 2), "its place is used again");
        sets.insert(5, grants("c:*"));
        assert_eq!(sets.get(5), sets.get(2), "another token of the same connection");
        for index in [0, 2, 5, 7] {
            assert!(sets.remove(index).is_some());
        }
        assert!(sets.of.is_empty() && sets.sets.capacity() == 0, "nothing is left");
        assert_eq!(sets.bytes(), 0);
    }
}
