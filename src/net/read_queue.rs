//! Which connection is read next.
//!
//! Connections that have something to read wait in turn. Those of one client address, where addresses
//! are known, have one place in the queue together, which goes from one of them to the next. However
//! many connections an address has, it has no more turns than any other. A connection whose client is
//! not known has a place of its own.
//!
//! There are two lines. A client that has just become readable stands in the first one and is served
//! before those whose last turn was too short for all that they had sent, and before those who are not
//! clients yet: who asks little does not wait for those who send as fast as they are read (the idea of
//! RFC 8290 §4.2, new and old flows). After [`FIRST_IN_A_ROW`] of the first line comes one of the
//! second, so nobody waits forever.
//!
//! ```text
//!   first:     [conn 7] [conn 9]            clients that have just become readable
//!   behind:    [address A] [conn 4]         they had a turn and have more, or are handshaking
//!   A:         12 → 15 → 18      one turn for 12, then A goes to the end with 15 in front
//! ```
//!
//! How long a turn is depends on what is read in it ([`ReadTurn`]): time, bytes and requests,
//! whichever ends first.
//!
//! Invariant: an address has a place exactly while connections of it wait.

use crate::ids::ConnId;
use hashbrown::HashTable;
use std::collections::VecDeque;
use std::time::Duration;

/// Empty queues that wait for the next address: one that comes and goes allocates nothing.
const SPARE_MAX: usize = 16;

/// So many of the first line have a turn before one of those behind.
const FIRST_IN_A_ROW: u8 = 8;

/// What has a place.
#[derive(Clone, Copy, Debug)]
enum Place {
    Connection(ConnId),
    Address(u64),
}

/// In which line a connection waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// A client that has just become readable.
    First,
    /// It had a turn, or was paused, and has more; or is no client yet.
    Behind,
}

/// An address of which connections wait.
#[derive(Debug)]
struct AddressQueue {
    address: u64,
    waiting: VecDeque<ConnId>,
}

/// The connections that wait to be read, each at most once: the shard keeps the mark.
#[derive(Default)]
pub(super) struct ReadQueue {
    first: VecDeque<Place>,
    behind: VecDeque<Place>,
    /// How many of the first line had a turn since the last one of those behind.
    in_a_row: u8,
    addresses: HashTable<AddressQueue>,
    spare: Vec<VecDeque<ConnId>>,
    len: usize,
}

impl ReadQueue {
    /// A connection waits from now on. `address`: under which number its client is counted, a hash; 0:
    /// its client is not known. Where connections of the address wait already, it waits with them.
    pub(super) fn push(&mut self, conn: ConnId, address: u64, line: Line) {
        self.len += 1;
        if address == 0 {
            return self.line(line).push_back(Place::Connection(conn));
        }
        match self.addresses.find_mut(address, |queue| queue.address == address) {
            Some(queue) => queue.waiting.push_back(conn),
            None => {
                let mut waiting = self.spare.pop().unwrap_or_default();
                waiting.push_back(conn);
                let queue = AddressQueue { address, waiting };
                self.addresses.insert_unique(address, queue, |queue| queue.address);
                self.line(line).push_back(Place::Address(address));
            }
        }
    }

    fn line(&mut self, line: Line) -> &mut VecDeque<Place> {
        match line {
            Line::First => &mut self.first,
            Line::Behind => &mut self.behind,
        }
    }

    /// The next connection, which waits no longer.
    pub(super) fn pop(&mut self) -> Option<ConnId> {
        let place = self.next_place()?;
        self.len -= 1;
        let address = match place {
            Place::Connection(conn) => return Some(conn),
            Place::Address(address) => address,
        };
        let found = self.addresses.find_entry(address, |queue| queue.address == address);
        let mut entry = found.expect("an address with a place has a queue");
        let conn = entry.get_mut().waiting.pop_front().expect("a connection of it waits");
        match entry.get().waiting.is_empty() {
            // It had a turn and has more, whichever of its connections did.
            false => self.behind.push_back(Place::Address(address)),
            true => {
                let (AddressQueue { waiting, .. }, _) = entry.remove();
                if self.spare.len() < SPARE_MAX {
                    self.spare.push(waiting);
                }
            }
        }
        Some(conn)
    }

    fn next_place(&mut self) -> Option<Place> {
        if (self.in_a_row < FIRST_IN_A_ROW || self.behind.is_empty())
            && let Some(place) = self.first.pop_front()
        {
            self.in_a_row = self.in_a_row.saturating_add(1);
            return Some(place);
        }
        self.in_a_row = 0;
        self.behind.pop_front()
    }

    /// Whether no connection waits.
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many connections wait.
    pub(super) fn len(&self) -> usize {
        self.len
    }
}

/// Bytes read from one connection in its turn while others wait for theirs.
const CROWDED_BYTES: usize = 16 * 1024;
/// The first bytes of a turn say how many requests there are to a byte, and what they cost.
const FIRST_BYTES: usize = 2 * 1024;
/// Requests after which a turn ends while others wait. What has been read is carried out, so there may
/// be as many more as the last bytes had.
const CROWDED_REQUESTS: u64 = 64;
/// How long a turn takes while others wait, about. What counts as no request takes time too: control
/// frames, fragments, what is refused.
const CROWDED_TIME: Duration = Duration::from_micros(100);
/// The same where nobody waits: others that come must not wait for longer than for a few.
const ALONE_REQUESTS: u64 = 1024;
const ALONE_TIME: Duration = Duration::from_millis(1);
/// The first bytes of a turn where nobody waits.
const ALONE_FIRST_BYTES: usize = 16 * 1024;

/// One turn of one connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReadTurn {
    is_crowded: bool,
    /// Bytes that may be read, in all.
    bytes_max: usize,
    bytes: usize,
}

/// What a turn has used.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Used {
    /// Messages that were carried out.
    pub(super) requests: u64,
    pub(super) time: Duration,
}

impl ReadTurn {
    /// A turn. `is_crowded`: others wait. `bytes_max`: where nobody does.
    pub(super) fn new(is_crowded: bool, bytes_max: usize) -> ReadTurn {
        let bytes_max = if is_crowded { CROWDED_BYTES } else { bytes_max };
        ReadTurn { is_crowded, bytes_max, bytes: 0 }
    }

    /// How many bytes are to be read next, of `room`. `None`: the turn is over. `used`: in it so far.
    pub(super) fn next(&self, used: Used, room: usize) -> Option<usize> {
        let (first, requests_max, time_max) = match self.is_crowded {
            true => (FIRST_BYTES, CROWDED_REQUESTS, CROWDED_TIME),
            false => (ALONE_FIRST_BYTES, ALONE_REQUESTS, ALONE_TIME),
        };
        let is_over = used.requests >= requests_max || used.time >= time_max;
        if self.bytes >= self.bytes_max || is_over {
            return None;
        }
        let at_once = if self.bytes == 0 {
            first
        } else {
            // As many as hold what is left of the requests and of the time, if they go on like that.
            let per_request = self.bytes as u64 / used.requests.max(1);
            let of_requests = per_request * (requests_max - used.requests);
            let left_ns = (time_max - used.time).as_nanos() as u64;
            let of_time = self.bytes as u64 * left_ns / (used.time.as_nanos() as u64).max(1);
            of_requests.min(of_time).max(FIRST_BYTES as u64) as usize
        };
        Some(at_once.min(room).min(self.bytes_max - self.bytes).max(1))
    }

    /// So many bytes were read.
    pub(super) fn read(&mut self, bytes: usize) {
        self.bytes += bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::SlotId;

    fn conn(index: u32) -> ConnId {
        ConnId(SlotId { index, generation: 0 })
    }

    /// Everybody who is read has more to read at once, for so many turns; how many each address had.
    fn turns(clients: &[(u32, u64)], turns: usize) -> Vec<(u32, usize)> {
        let mut queue = ReadQueue::default();
        clients
            .iter()
            .for_each(|(index, address)| queue.push(conn(*index), *address, Line::Behind));
        let mut counts: Vec<(u32, usize)> = clients.iter().map(|(index, _)| (*index, 0)).collect();
        for _ in 0..turns {
            let next = queue.pop().expect("all always wait");
            let at = clients.iter().position(|(index, _)| conn(*index) == next).expect("a client");
            counts[at].1 += 1;
            queue.push(next, clients[at].1, Line::Behind);
        }
        let places = queue.first.iter().chain(&queue.behind);
        assert_eq!(queue.addresses.len(), places.filter(is_address).count());
        counts
    }

    fn is_address(place: &&Place) -> bool {
        matches!(place, Place::Address(_))
    }

    #[test]
    fn fifty_connections_of_one_address_have_no_more_turns_than_one_of_another() {
        let hostile = (0..50).map(|index| (index, 0xA77A_C4E2));
        let honest = [(50, 0xB0B), (51, 0xA22), (52, 0)];
        let clients: Vec<(u32, u64)> = hostile.chain(honest).collect();
        let counts = turns(&clients, 4000);
        let of_hostile: usize = counts[..50].iter().map(|(_, turns)| turns).sum();
        assert_eq!(of_hostile, 1000, "a quarter, as the other address and who has none");
        assert!(counts[50..].iter().all(|(_, turns)| *turns == 1000), "{counts:?}");
        assert!(counts[..50].iter().all(|(_, turns)| *turns == 20), "and among them in turn");
    }

    #[test]
    fn connections_without_a_known_address_are_read_in_turn() {
        let clients: Vec<(u32, u64)> = (0..9).map(|index| (index, 0)).collect();
        assert!(turns(&clients, 900).iter().all(|(_, turns)| *turns == 100));
    }

    #[test]
    fn an_address_waits_once_and_leaves_nothing_behind() {
        let mut queue = ReadQueue::default();
        for round in 0..100 {
            (0..100).for_each(|index| {
                queue.push(conn(index), u64::from(index % 40 + round) + 1, Line::First);
            });
            assert_eq!((queue.len(), queue.first.len()), (100, 40));
            let all = std::iter::from_fn(|| queue.pop()).count();
            assert_eq!((all, queue.is_empty(), queue.addresses.len()), (100, true, 0));
        }
        assert_eq!(queue.spare.len(), SPARE_MAX);
    }

    /// Those in the first line in the order in which they are read, each at the turn of this number.
    fn turns_of_first(queue: &mut ReadQueue, behind: u32) -> Vec<(u32, usize)> {
        let mut read = Vec::new();
        let mut turn = 0;
        while !queue.first.is_empty() {
            let ConnId(SlotId { index, .. }) = queue.pop().expect("they wait");
            match index < behind {
                true => queue.push(conn(index), 0, Line::Behind),
                false => read.push((index, turn)),
            }
            turn += 1;
        }
        read
    }

    #[test]
    fn who_has_just_become_readable_is_read_before_those_who_always_have_more() {
        let mut queue = ReadQueue::default();
        (0..500).for_each(|index| queue.push(conn(index), 0, Line::Behind));
        (500..503).for_each(|index| queue.push(conn(index), 0, Line::First));
        assert_eq!(turns_of_first(&mut queue, 500), [(500, 0), (501, 1), (502, 2)]);
    }

    #[test]
    fn those_who_always_have_more_are_read_however_many_come_newly() {
        let mut queue = ReadQueue::default();
        (0..2).for_each(|index| queue.push(conn(index), 0, Line::Behind));
        (2..902).for_each(|index| queue.push(conn(index), 0, Line::First));
        let read = turns_of_first(&mut queue, 2);
        assert_eq!(read.len(), 900);
        let (_, last) = read[899];
        assert_eq!(last + 1 - 900, 900 / usize::from(FIRST_IN_A_ROW), "one turn after each eight");
    }

    #[test]
    fn an_address_that_has_more_waits_behind_with_all_its_connections() {
        let mut queue = ReadQueue::default();
        queue.push(conn(0), 0xA, Line::Behind);
        queue.push(conn(1), 0xA, Line::First);
        queue.push(conn(2), 0xB, Line::First);
        let order: Vec<u32> = std::iter::from_fn(|| queue.pop()).map(|conn| conn.0.index).collect();
        assert_eq!(order, [2, 0, 1]);
    }

    /// The bytes of each read of one turn in which messages have this size and take this long.
    fn timed_reads(is_crowded: bool, message_bytes: usize, message_time: Duration) -> Vec<usize> {
        let mut turn = ReadTurn::new(is_crowded, 256 * 1024);
        let mut all = Vec::new();
        let used = |turn: &ReadTurn| {
            let requests = (turn.bytes / message_bytes) as u64;
            Used { requests, time: message_time * requests as u32 }
        };
        while let Some(bytes) = turn.next(used(&turn), 64 * 1024) {
            turn.read(bytes);
            all.push(bytes);
        }
        all
    }

    fn reads(is_crowded: bool, message_bytes: usize) -> Vec<usize> {
        timed_reads(is_crowded, message_bytes, Duration::ZERO)
    }

    #[test]
    fn a_turn_ends_when_it_has_taken_its_time() {
        let slow = Duration::from_micros(50);
        assert_eq!(timed_reads(true, 1000, slow), [2048], "two, and the time is over");
        assert_eq!(timed_reads(false, 1000, slow).iter().sum::<usize>(), 20_480, "a millisecond");
        let quick = Duration::from_micros(10);
        let bytes: usize = timed_reads(true, 1000, quick).iter().sum();
        assert!((10_000..12_000).contains(&bytes), "{bytes}: what 100 µs are enough for");
    }

    #[test]
    fn a_turn_ends_by_bytes_or_by_requests() {
        assert_eq!(reads(true, 64 * 1024), [2048, 14 * 1024], "large messages: two reads");
        assert_eq!(reads(true, 200)[0], 2048);
        assert_eq!(reads(true, 8), [2048], "one read of tiny ones");
        assert_eq!(reads(false, 8), [16 * 1024]);
        assert_eq!(reads(false, 1 << 20).iter().sum::<usize>(), 256 * 1024);
        let of_requests = |message_bytes| {
            let bytes: usize = reads(true, message_bytes).iter().sum();
            bytes / message_bytes
        };
        assert!([20, 50, 100, 150, 250, 400].map(of_requests).iter().all(|all| *all <= 128));
    }

    #[test]
    fn a_small_bound_holds() {
        let turn = ReadTurn::new(false, 512);
        assert_eq!(turn.next(Used::default(), 64 * 1024), Some(512));
    }
}
