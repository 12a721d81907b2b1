//! How many connections each shard has, for the shard that steers the next ones.
//!
//! A shard writes its own two numbers, and only when they change: at accepts and closes, never on
//! the way of a delivery. They lie on a cache line of its own, which other shards read only while
//! they steer, every few milliseconds while connections come.
//!
//! The right to steer is a note that exists once: the shard that takes it steers, and puts it back
//! with what the next one needs. It is never waited for.
//!
//! A shard's number is its listener's place in the kernel's group, which is the order of `listen`.
//! So shards listen in turn: [`LoadTable::wait_for_bind_order`].

use crate::ids::ShardId;
use crossbeam_channel::{Receiver, Sender, bounded};
use crossbeam_utils::CachePadded;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Shared by all shards of a node.
#[derive(Debug)]
pub struct LoadTable {
    places: Box<[CachePadded<ShardPlace>]>,
    turns: Box<[Slot<()>]>,
    note: Slot<Box<LoadNote>>,
}

#[derive(Debug, Default)]
struct ShardPlace {
    held: AtomicU64,
    taken: AtomicU64,
}

/// Holds one value on its way from thread to thread.
type Slot<T> = (Sender<T>, Receiver<T>);

/// The load of one shard, written by that shard only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShardLoad {
    /// Connections now, those in their handshake included.
    pub held: u64,
    /// Connections taken since the start.
    pub taken: u64,
}

/// What the shard that steered last left for the next one.
#[derive(Clone, Debug, PartialEq)]
pub struct LoadNote {
    /// When that was.
    pub at: Instant,
    /// What the counts were then, one a shard.
    pub counts: Vec<ShardLoad>,
    /// The share that each shard has been promised since; they need not add up to anything.
    pub shares: Vec<u64>,
    /// What each shard was promised and has not taken yet, as far as one can tell.
    pub in_flight: Vec<u64>,
}

impl LoadTable {
    /// For so many shards, none of which listens yet.
    pub fn new(shards: u16) -> LoadTable {
        let load_table = LoadTable {
            places: (0..shards).map(|_| CachePadded::default()).collect(),
            turns: (0..shards).map(|_| bounded(1)).collect(),
            note: bounded(1),
        };
        load_table.give_turn(0);
        load_table
    }

    /// How many shards there are.
    pub fn shards(&self) -> usize {
        self.places.len()
    }

    /// Waits until every shard before this one listens. Once for each shard.
    pub fn wait_for_bind_order(&self, shard: ShardId) {
        let (_, turn) = &self.turns[usize::from(shard.0)];
        turn.recv().expect("this value holds the other end");
    }

    /// This shard listens: it is the next one's turn.
    pub fn pass_bind_turn(&self, shard: ShardId) {
        self.give_turn(usize::from(shard.0) + 1);
    }

    fn give_turn(&self, shard: usize) {
        if let Some((turn, _)) = self.turns.get(shard) {
            turn.try_send(()).expect("each turn comes once");
        }
    }

    /// Writes a shard's numbers, which have changed. Only that shard does.
    pub fn publish(&self, shard: ShardId, count: ShardLoad) {
        let place = &self.places[usize::from(shard.0)];
        place.held.store(count.held, Ordering::Relaxed);
        place.taken.store(count.taken, Ordering::Relaxed);
    }

    /// The numbers of all shards, each as it was a moment ago.
    pub fn counts(&self) -> Vec<ShardLoad> {
        let count = |place: &CachePadded<ShardPlace>| ShardLoad {
            held: place.held.load(Ordering::Relaxed),
            taken: place.taken.load(Ordering::Relaxed),
        };
        self.places.iter().map(count).collect()
    }

    /// Takes the note, and with it the right to steer. `None`: another shard has it.
    pub fn take_note(&self) -> Option<Box<LoadNote>> {
        self.note.1.try_recv().ok()
    }

    /// Leaves a note for the next. Without one no shard steers.
    pub fn leave_note(&self, note: Box<LoadNote>) {
        self.note.0.try_send(note).expect("there is one note");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn shards_take_their_turns_in_the_order_of_their_numbers() {
        let load_table = Arc::new(LoadTable::new(8));
        let (turn, turns) = bounded(8);
        let threads: Vec<_> = (0..8)
            .rev()
            .map(|number| {
                let (load_table, turn) = (load_table.clone(), turn.clone());
                std::thread::spawn(move || {
                    load_table.wait_for_bind_order(ShardId(number));
                    turn.send(number).unwrap();
                    load_table.pass_bind_turn(ShardId(number));
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(turns.try_iter().collect::<Vec<_>>(), (0..8).collect::<Vec<_>>());
    }

    #[test]
    fn one_steers_at_a_time() {
        let load_table = LoadTable::new(2);
        assert!(load_table.take_note().is_none(), "before the first has left one, nobody");
        let count = ShardLoad { held: 3, taken: 9 };
        load_table.publish(ShardId(1), count);
        let counts = load_table.counts();
        assert_eq!(counts, [ShardLoad::default(), count]);
        let (shares, in_flight) = (vec![1, 1], vec![0, 0]);
        load_table.leave_note(Box::new(LoadNote { at: Instant::now(), counts, shares, in_flight }));
        let note = load_table.take_note().unwrap();
        assert!(load_table.take_note().is_none());
        load_table.leave_note(note);
        assert_eq!(load_table.take_note().unwrap().counts[1], count);
    }

    #[test]
    fn no_two_shards_write_to_one_cache_line() {
        let load_table = LoadTable::new(2);
        let at = |shard: usize| &raw const *load_table.places[shard] as usize;
        assert!(at(0).abs_diff(at(1)) >= 64);
    }
}
