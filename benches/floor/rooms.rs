//! Who is where: rooms as lists of slots, and back.
//!
//! Invariant: a slot stands in a room's list exactly where its own note says.

/// The room of everybody.
pub const EVERYBODY: usize = 0;

/// All rooms; room `n` of the clients is at `n + 1`.
#[derive(Default)]
pub struct Rooms {
    members: Vec<Vec<u32>>,
    /// By slot: rooms, and where it is in each.
    places: Vec<Vec<(u32, u32)>>,
}

impl Rooms {
    /// The slots in a room.
    pub fn members(&self, room: usize) -> &[u32] {
        self.members.get(room).map_or(&[], |members| members)
    }

    /// Adds a slot to a room.
    pub fn join(&mut self, slot: u32, room: usize) {
        if self.members.len() <= room {
            self.members.resize_with(room + 1, Vec::new);
        }
        if self.places.len() <= slot as usize {
            self.places.resize_with(slot as usize + 1, Vec::new);
        }
        self.places[slot as usize].push((room as u32, self.members[room].len() as u32));
        self.members[room].push(slot);
    }

    /// Takes a slot out of all its rooms.
    pub fn leave_all(&mut self, slot: u32) {
        let Some(places) = self.places.get_mut(slot as usize) else { return };
        for (room, place) in std::mem::take(places) {
            let members = &mut self.members[room as usize];
            members.swap_remove(place as usize);
            if let Some(&moved) = members.get(place as usize) {
                let note = self.places[moved as usize].iter_mut().find(|note| note.0 == room);
                note.expect("a member has a note of it").1 = place;
            }
        }
    }
}
