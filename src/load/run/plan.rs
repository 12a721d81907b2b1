//! The plan of a run: its connections, threads and publishers.
//!
//! Invariant: nothing here changes after the workers have started.

use crate::load::client::plan::ClientPlan;
use crate::load::client::rooms::RoomAssignment;
use std::sync::Arc;
use std::time::Duration;

/// The plan of a run. The scenario makes it; the fleet and its workers read it.
#[derive(Debug)]
pub struct RunPlan {
    /// What each connection does.
    pub client: Arc<ClientPlan>,
    /// Whether a publisher receives its own messages.
    pub echo: bool,
    /// The first so many members of each room publish, in turn.
    pub publishers: u32,
    /// Worker `w` has connections `bounds[w]..bounds[w + 1]`.
    pub bounds: Vec<u32>,
    /// Worker `w` is pinned to core `cores[w mod cores]`, if there are any.
    pub cores: Vec<usize>,
    /// How much higher its workers' priority is than the default, as `nice` counts. Where that is not
    /// permitted, they have the default one.
    pub priority: u8,
    /// Whether each worker must have a file table of its own.
    pub needs_own_file_table: bool,
    /// A message of a window whose last delivery has not come by then is given up.
    pub delivery_timeout: Duration,
}

impl RunPlan {
    /// Number of workers.
    pub fn workers(&self) -> usize {
        self.bounds.len() - 1
    }

    /// Which connection is in which rooms.
    pub fn rooms(&self) -> &RoomAssignment {
        self.client.rooms()
    }

    /// Nanoseconds since the run began.
    pub fn now_ns(&self) -> u64 {
        self.client.now_ns()
    }

    /// The worker that publishes to a room: the one that has its first member.
    pub fn publishing_worker(&self, room: u32) -> usize {
        let first = self.rooms().member(room, 0);
        self.bounds.partition_point(|&bound| bound <= first) - 1
    }

    /// Members of a room that receive what one of them publishes.
    pub fn receivers(&self, room: u32) -> u32 {
        self.client.reading_members(room) - u32::from(!self.echo)
    }
}

/// Splits `conns` connections into a range for each worker, as equal as possible, and never between
/// the first `publishers` members of a room: one worker has all publishers of a room. Returns the
/// bounds; there may be fewer ranges than `workers`.
pub(crate) fn split_connections(
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
        let bound = if inside > 0 && inside < publishers { first + publishers } else { even };
        bounds.push(bound.min(conns));
    }
    bounds.push(conns);
    bounds.dedup();
    bounds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_even_and_keep_the_publishers_of_a_room_together() {
        let rooms = RoomAssignment::of_size(1000, 100);
        assert_eq!(split_connections(1000, 4, &rooms, 1), [0, 250, 500, 750, 1000]);
        assert_eq!(split_connections(1000, 4, &rooms, 60), [0, 260, 500, 760, 1000]);
        assert_eq!(split_connections(3, 3, &RoomAssignment::of_size(3, 3), 3), [0, 3]);
    }
}
