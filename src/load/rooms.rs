//! Which connection is in which room.
//!
//! Connections are numbered, rooms are runs of neighbouring numbers, so one boundary per room says
//! everything and a connection needs no memory of its own for it.
//!
//! Invariant: every connection is in exactly one room, and no room is empty.

/// Rooms as runs of connection numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rooms {
    /// Room `r` holds connections `starts[r]..starts[r + 1]`.
    starts: Vec<u32>,
}

impl Rooms {
    /// Rooms of `size` members; the last one may be smaller.
    pub fn of_size(conns: u32, size: u32) -> Rooms {
        assert!(size > 0);
        let mut starts: Vec<u32> = (0..conns).step_by(size as usize).collect();
        starts.push(conns);
        Rooms { starts }
    }

    /// A tenth alone, eight tenths in rooms of 10, 30, 100, 300 and 1000, a tenth in one huge room.
    pub fn mixed(conns: u32) -> Rooms {
        let (alone, huge) = (conns / 10, conns / 10);
        let mut starts: Vec<u32> = (0..alone).collect();
        let (mut at, mut sizes) = (alone, [10, 30, 100, 300, 1000].iter().cycle());
        while at < conns - huge {
            starts.push(at);
            at += sizes.next().expect("a cycle has no end");
        }
        if huge > 0 {
            starts.push(conns - huge);
        }
        starts.push(conns);
        Rooms { starts }
    }

    /// How many rooms there are.
    pub fn count(&self) -> u32 {
        self.starts.len() as u32 - 1
    }

    /// How many connections there are.
    pub fn conns(&self) -> u32 {
        *self.starts.last().expect("the end is always there")
    }

    /// The room of a connection.
    pub fn room_of(&self, conn: u32) -> u32 {
        assert!(conn < self.conns());
        self.starts.partition_point(|&start| start <= conn) as u32 - 1
    }

    /// The first connection of a room.
    pub fn first(&self, room: u32) -> u32 {
        self.starts[room as usize]
    }

    /// How many are in a room.
    pub fn members(&self, room: u32) -> u32 {
        self.starts[room as usize + 1] - self.starts[room as usize]
    }

    /// The rooms whose first connection is in `lo..hi`.
    pub fn beginning_in(&self, lo: u32, hi: u32) -> std::ops::Range<u32> {
        let rooms = &self.starts[..self.starts.len() - 1];
        let from = rooms.partition_point(|&start| start < lo);
        let to = rooms.partition_point(|&start| start < hi);
        from as u32..to as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_connection_is_in_exactly_one_room() {
        for rooms in [Rooms::of_size(250, 100), Rooms::mixed(5_003), Rooms::mixed(7)] {
            let members: u32 = (0..rooms.count()).map(|room| rooms.members(room)).sum();
            assert_eq!(members, rooms.conns());
            for conn in 0..rooms.conns() {
                let room = rooms.room_of(conn);
                let first = rooms.first(room);
                assert!((first..first + rooms.members(room)).contains(&conn));
            }
        }
    }

    #[test]
    fn the_mix_is_a_tenth_alone_and_a_tenth_together() {
        let rooms = Rooms::mixed(10_000);
        assert!((0..1000).all(|room| rooms.members(room) == 1));
        assert_eq!(rooms.members(rooms.count() - 1), 1000);
        assert_eq!(rooms.members(1000), 10);
    }

    #[test]
    fn rooms_are_owned_where_they_begin() {
        let rooms = Rooms::of_size(250, 100);
        assert_eq!(rooms.beginning_in(0, 100), 0..1);
        assert_eq!(rooms.beginning_in(100, 101), 1..2);
        assert_eq!(rooms.beginning_in(101, 250), 2..3);
    }
}
