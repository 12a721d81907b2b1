//! What every worker of a fleet must know, resolved once.
//!
//! Invariant: nothing here changes after the workers have begun.

use crate::load::client::plan::ClientPlan;
use crate::load::client::rooms::RoomAssignment;
use std::sync::Arc;
use std::time::Duration;

/// A fleet's orders for its whole life.
#[derive(Debug)]
pub struct RunPlan {
    /// What each connection does.
    pub client: Arc<ClientPlan>,
    /// Whether a publisher hears its own message.
    pub echo: bool,
    /// Publishers a room: its first so many members, in turn.
    pub publishers: u32,
    /// Worker `w` has connections `bounds[w]..bounds[w + 1]`.
    pub bounds: Vec<u32>,
    /// Worker `w` is pinned to core `cores[w mod cores]`, if there are any.
    pub cores: Vec<usize>,
    /// Whether each worker must have a file table of its own.
    pub needs_own_file_table: bool,
    /// A message whose last copies have not come by then is given up.
    pub delivery_timeout: Duration,
}

impl RunPlan {
    /// How many workers.
    pub fn workers(&self) -> usize {
        self.bounds.len() - 1
    }

    /// Who is where.
    pub fn rooms(&self) -> &RoomAssignment {
        self.client.rooms()
    }

    /// Nanoseconds since time zero.
    pub fn now_ns(&self) -> u64 {
        self.client.now_ns()
    }

    /// The worker that publishes to a room: the one that has its first member.
    pub fn publishing_worker(&self, room: u32) -> usize {
        let first = self.rooms().member(room, 0);
        self.bounds.partition_point(|&bound| bound <= first) - 1
    }

    /// How many members of a room hear what one of them publishes.
    pub fn receivers(&self, room: u32) -> u32 {
        self.client.reading_members(room) - u32::from(!self.echo)
    }
}

/// Cuts `conns` connections into as many ranges as `workers`, as equal as can be, but never between
/// the first `publishers` members of a room: its publishers are all with one worker.
pub fn split_connections(
    conns: u32,
    workers: u32,
    rooms: &RoomAssignment,
    publishers: u32,
) -> Vec<u32> {
    let mut bounds = vec![0];
    for worker in 1..workers {
        let even = (u64::from(conns) * u64::from(worker) / u64::from(workers)) as u32;
        let first = rooms.member(rooms.room_of(even), 0);
        let inside = even - first;
        let cut = if inside > 0 && inside < publishers { first + publishers } else { even };
        bounds.push(cut.min(conns));
    }
    bounds.push(conns);
    bounds.dedup();
    bounds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_are_even_and_keep_a_rooms_publishers_together() {
        let rooms = RoomAssignment::of_size(1000, 100);
        assert_eq!(split_connections(1000, 4, &rooms, 1), [0, 250, 500, 750, 1000]);
        assert_eq!(split_connections(1000, 4, &rooms, 60), [0, 260, 500, 760, 1000]);
        assert_eq!(split_connections(3, 3, &RoomAssignment::of_size(3, 3), 3), [0, 3]);
    }
}
