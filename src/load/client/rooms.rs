//! Which connection is in which rooms.
//!
//! Connections are numbered, and a room is a range of numbers: one boundary for each room is
//! enough, and a connection needs no memory for its rooms. Where connections are in several rooms,
//! there are several *layers* of rooms of one size. In each further layer a room is a range too,
//! after the numbers were permuted by a multiplication modulo their count; the factor differs by
//! layer, so members of one room in one layer are in different rooms in the others.
//!
//! Invariant: every connection is in exactly one room of each layer, and no room is empty.

/// The rooms of a run, as ranges of connection numbers. The plan owns it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoomAssignment {
    /// Room `r` of the first layer holds connections `starts[r]..starts[r + 1]`.
    starts: Vec<u32>,
    /// One for each layer after the first.
    shuffles: Vec<LayerShuffle>,
}

/// A permutation: connection `c` is at place `c * by mod conns`, and `back` is the inverse of `by`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct LayerShuffle {
    by: u32,
    back: u32,
}

impl RoomAssignment {
    /// Rooms of `size` members, in one layer; the last room may be smaller.
    pub fn of_size(conns: u32, size: u32) -> RoomAssignment {
        assert!(size > 0);
        let mut starts: Vec<u32> = (0..conns).step_by(size as usize).collect();
        starts.push(conns);
        RoomAssignment { starts, shuffles: Vec::new() }
    }

    /// Rooms of `size` members, every connection in `layers` of them.
    pub fn layered(conns: u32, size: u32, layers: u32) -> RoomAssignment {
        let shuffles = factors(conns).take(layers.saturating_sub(1) as usize).collect();
        RoomAssignment { shuffles, ..RoomAssignment::of_size(conns, size) }
    }

    /// A tenth of the connections alone, eight tenths in rooms of 10, 30, 100, 300 and 1000
    /// members, a tenth in one room.
    pub fn mixed(conns: u32) -> RoomAssignment {
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
        RoomAssignment { starts, shuffles: Vec::new() }
    }

    /// Number of rooms, in all layers.
    pub fn count(&self) -> u32 {
        self.layer_rooms() * self.layers()
    }

    /// Number of rooms that each connection is in.
    pub fn layers(&self) -> u32 {
        1 + self.shuffles.len() as u32
    }

    /// Number of connections.
    pub fn conns(&self) -> u32 {
        *self.starts.last().expect("the end is always there")
    }

    /// The room of a connection, in the first layer.
    pub fn room_of(&self, conn: u32) -> u32 {
        assert!(conn < self.conns());
        self.starts.partition_point(|&start| start <= conn) as u32 - 1
    }

    /// All rooms of a connection.
    pub fn rooms_of(&self, conn: u32) -> impl Iterator<Item = u32> {
        let further = self.shuffles.iter().zip(1..).map(move |(shuffle, layer)| {
            layer * self.layer_rooms() + self.room_of(times(conn, shuffle.by, self.conns()))
        });
        std::iter::once(self.room_of(conn)).chain(further)
    }

    /// The connection that is member `number` of a room.
    pub fn member(&self, room: u32, number: u32) -> u32 {
        let place = self.starts[(room % self.layer_rooms()) as usize] + number;
        match (room / self.layer_rooms()).checked_sub(1) {
            None => place,
            Some(layer) => times(place, self.shuffles[layer as usize].back, self.conns()),
        }
    }

    /// Number of members of a room.
    pub fn members(&self, room: u32) -> u32 {
        let room = (room % self.layer_rooms()) as usize;
        self.starts[room + 1] - self.starts[room]
    }

    /// The rooms whose first connection is in `lo..hi`. With several layers, all rooms are those of
    /// the range that has connection 0.
    pub fn beginning_in(&self, lo: u32, hi: u32) -> std::ops::Range<u32> {
        if !self.shuffles.is_empty() {
            return if lo == 0 { 0..self.count() } else { 0..0 };
        }
        let rooms = &self.starts[..self.starts.len() - 1];
        let from = rooms.partition_point(|&start| start < lo);
        let to = rooms.partition_point(|&start| start < hi);
        from as u32..to as u32
    }

    fn layer_rooms(&self) -> u32 {
        self.starts.len() as u32 - 1
    }
}

/// Permutations that put neighbours far apart.
fn factors(conns: u32) -> impl Iterator<Item = LayerShuffle> {
    let modulus = u64::from(conns.max(1));
    let golden = (modulus as f64 * 0.618) as u64 | 1;
    let candidates = (0..).map(move |step: u64| (golden + step * 7919) % modulus.max(2));
    candidates.filter(move |&by| by > 1 || modulus <= 2).filter_map(move |by| {
        let back = inverse(by, modulus)?;
        Some(LayerShuffle { by: by as u32, back: back as u32 })
    })
}

/// The inverse of `number` modulo `modulus`, if there is one (extended Euclid).
fn inverse(number: u64, modulus: u64) -> Option<u64> {
    let (mut old, mut new) = ((number % modulus) as i64, modulus as i64);
    let (mut x, mut next) = (1i64, 0i64);
    while new != 0 {
        let quotient = old / new;
        (old, new) = (new, old - quotient * new);
        (x, next) = (next, x - quotient * next);
    }
    (old == 1 || modulus == 1).then(|| x.rem_euclid(modulus as i64) as u64)
}

fn times(number: u32, by: u32, modulus: u32) -> u32 {
    (u64::from(number) * u64::from(by) % u64::from(modulus)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_connection_is_in_exactly_one_room() {
        for rooms in [
            RoomAssignment::of_size(250, 100),
            RoomAssignment::mixed(5_003),
            RoomAssignment::mixed(7),
        ] {
            let members: u32 = (0..rooms.count()).map(|room| rooms.members(room)).sum();
            assert_eq!(members, rooms.conns());
            for conn in 0..rooms.conns() {
                let room = rooms.room_of(conn);
                let first = rooms.member(room, 0);
                assert!((first..first + rooms.members(room)).contains(&conn));
                assert_eq!(rooms.rooms_of(conn).collect::<Vec<_>>(), [room]);
            }
        }
    }

    #[test]
    fn the_mix_is_a_tenth_alone_and_a_tenth_together() {
        let rooms = RoomAssignment::mixed(10_000);
        assert!((0..1000).all(|room| rooms.members(room) == 1));
        assert_eq!(rooms.members(rooms.count() - 1), 1000);
        assert_eq!(rooms.members(1000), 10);
    }

    #[test]
    fn a_room_belongs_to_the_range_of_its_first_member() {
        let rooms = RoomAssignment::of_size(250, 100);
        assert_eq!(rooms.beginning_in(0, 100), 0..1);
        assert_eq!(rooms.beginning_in(100, 101), 1..2);
        assert_eq!(rooms.beginning_in(101, 250), 2..3);
    }

    #[test]
    fn a_connection_is_in_one_room_of_each_layer_with_different_members() {
        for (conns, size, layers) in [(2000, 10, 5), (24, 5, 3), (1, 1, 2), (2, 2, 2)] {
            let rooms = RoomAssignment::layered(conns, size, layers);
            assert_eq!(rooms.count(), layers * conns.div_ceil(size));
            let mut seen = vec![Vec::new(); conns as usize];
            for room in 0..rooms.count() {
                for number in 0..rooms.members(room) {
                    seen[rooms.member(room, number) as usize].push(room);
                }
            }
            for (conn, seen) in seen.into_iter().enumerate() {
                assert_eq!(seen, rooms.rooms_of(conn as u32).collect::<Vec<_>>());
                assert_eq!(seen.len() as u32, layers);
            }
        }
        let rooms = RoomAssignment::layered(2000, 10, 5);
        let room: Vec<u32> = (0..10).map(|number| rooms.member(3, number)).collect();
        let in_the_next_layer: std::collections::HashSet<u32> =
            room.iter().map(|&conn| rooms.rooms_of(conn).nth(1).expect("five layers")).collect();
        assert!(in_the_next_layer.len() > 5, "members of one room are apart in the next layer");
    }
}
