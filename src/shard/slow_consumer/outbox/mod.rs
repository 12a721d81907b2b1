//! The bytes that one slow peer has not taken yet.
//!
//! Exists only while a socket has not taken everything: slices wait here of the buffers that were to
//! be sent, shared with all other receivers; small ones are copied, because a slice holds its whole
//! buffer in memory (`chunk.rs`). It has one limit, in bytes. A peer over the limit is closed, because
//! memory spent on one slow phone is taken from thousands of quick ones.
//!
//! Unless its room has another policy (`slow_consumer`): then the room's messages are *droppable*. The
//! oldest of a room are dropped for newer ones of the same room, whatever other rooms have here, and
//! for what may not be dropped (replies, control frames, messages of other policies). In the place of
//! dropped messages stands a *notice* with their number; it comes before whatever of the room does
//! arrive. Where a room conflates, a newer message replaces the older one with the same key, without a
//! notice. It is queued last, not in the older one's place: a room's messages arrive in order, so a
//! member that has received a position has missed nothing before it but what was conflated.
//!
//! A dropped message leaves an empty slice, so every slice keeps its number and is found without
//! a search. Empty slices go when they come to the front, or when they are more than the others.
//!
//! Invariants: this module never sees a socket; `bytes` is the sum of the slices' lengths; what has
//! begun to leave is not dropped; a notice stands where the last dropped message stood.

mod chunk;

use crate::ids::{ConflateKey, TopicId, TopicName};
use crate::metrics::ShardCounters;
use crate::policy::namespaces::{Policy, SlowConsumer};
use crate::protocol::dialect::{Encoding, LossVerdict};
use crate::shard::slow_consumer::frames::{
    FrameKind, FramePart, loss_marker, loss_marker_bytes_max,
};
use bytes::Bytes;
use chunk::Chunk;
use std::collections::{HashMap, VecDeque};

pub(in crate::shard) use chunk::rest_of;

/// Up to so many empty slices stay in the queue, however few the others are.
const EMPTY_SPARE: usize = 64;

/// Slices in the order in which they must leave.
#[derive(Debug, Default)]
pub struct Outbox {
    queue: VecDeque<Slice>,
    /// The number of the first slice. Later ones count on.
    first: u64,
    bytes: usize,
    /// Slices that hold nothing any more.
    empty: usize,
    rooms: Vec<RoomQueue>,
    /// Rooms of which something was dropped without a marker: the peer must leave them.
    losers: Vec<TopicId>,
    /// Since when the peer is known to have taken nothing, in milliseconds of the shard's clock.
    stalled_since_ms: Option<u64>,
}

#[derive(Debug)]
struct Slice {
    bytes: Chunk,
    kind: SliceKind,
}

/// What may become of a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SliceKind {
    /// It may not be dropped.
    Fixed,
    /// It may be dropped: a message of a room, by the room's place.
    Droppable(u32),
    /// A loss marker of that room, whose count may still grow.
    Notice(u32),
}

/// A room that has, or had, something droppable here.
#[derive(Debug)]
struct RoomQueue {
    /// `None`: the peer has left it. Another membership of the same room gets another entry.
    at: Option<TopicId>,
    name: TopicName,
    encoding: Encoding,
    /// Whether a marker in the place of dropped messages says how many; otherwise the peer leaves.
    has_markers: bool,
    slow: SlowConsumer,
    bytes_max: usize,
    notice_bytes_max: usize,
    /// Bytes of its droppable slices.
    bytes: usize,
    /// Its droppable slices, oldest first; conflated ones are still named.
    droppable: VecDeque<Droppable>,
    /// Where the newest message of each key stands.
    newest: HashMap<Option<ConflateKey>, u64>,
    /// The number of its notice's slice.
    notice: Option<u64>,
    /// Dropped messages that are in no notice which has begun to leave.
    lost: u64,
    /// The slice of the last one that was dropped, until the notice stands there.
    gap: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Droppable {
    number: u64,
    kind: FrameKind,
}

/// Whether there was room.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// It waits now, or was dropped with a notice.
    Queued,
    /// There was no room: the peer is too slow and has to be closed.
    Full,
}

impl Outbox {
    /// Bytes that wait.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes of them that may not be dropped: replies, control frames, messages of rooms that close
    /// for slow members.
    pub fn fixed_bytes(&self) -> usize {
        self.bytes - self.rooms.iter().map(|room| room.bytes).sum::<usize>()
    }

    /// For how many milliseconds the peer has taken nothing, as far as these calls have seen it.
    pub fn stalled_ms(&mut self, now_ms: u64) -> u64 {
        now_ms.saturating_sub(*self.stalled_since_ms.get_or_insert(now_ms))
    }

    /// It has another shard with another clock.
    pub fn restart_stall(&mut self) {
        self.stalled_since_ms = None;
    }

    /// Whether everything has left.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Queues what must not be given up, unless more than `bytes_max` would wait. What is loose gives
    /// way to it, the oldest of all rooms first.
    pub fn push(&mut self, bytes: Bytes, bytes_max: usize, counters: &mut ShardCounters) -> Pushed {
        if self.make_room(bytes.len(), bytes_max, counters) == Pushed::Full {
            return Pushed::Full;
        }
        self.push_always(bytes);
        Pushed::Queued
    }

    /// Queues whatever the limit says: for the rest of a frame whose beginning has left, and for a
    /// close frame.
    pub fn push_always(&mut self, bytes: Bytes) {
        if let Some(Slice { bytes: last, kind: SliceKind::Fixed }) = self.queue.back_mut()
            && last.append(&bytes)
        {
            self.bytes += bytes.len();
            return;
        }
        self.append(Chunk::new(bytes), SliceKind::Fixed);
    }

    /// The place of a room here, for [`Outbox::push_droppable`]. `name` and `policy` are used only
    /// when it has none yet.
    pub fn room(
        &mut self,
        at: TopicId,
        name: &TopicName,
        encoding: Encoding,
        policy: &Policy,
    ) -> usize {
        if let Some(place) = self.rooms.iter().position(|room| room.at == Some(at)) {
            return place;
        }
        let has_markers = encoding.dialect().on_loss(name.kind()) == LossVerdict::Event;
        let room = RoomQueue {
            at: Some(at),
            name: name.clone(),
            encoding,
            has_markers,
            slow: policy.slow_consumer,
            bytes_max: policy.slow_bytes_max,
            notice_bytes_max: if has_markers { loss_marker_bytes_max(name, encoding) } else { 0 },
            bytes: 0,
            droppable: VecDeque::new(),
            newest: HashMap::new(),
            notice: None,
            lost: 0,
            gap: None,
        };
        // Rooms that were joined and left while nothing is read leave no entry.
        match self.rooms.iter().position(RoomQueue::is_idle) {
            Some(place) => {
                self.rooms[place] = room;
                place
            }
            None => {
                self.rooms.push(room);
                self.rooms.len() - 1
            }
        }
    }

    /// The peer leaves a room. What is dropped of it from here on is counted in the notices from
    /// before the leave: a new membership of the room has not lost it.
    pub fn leave(&mut self, at: TopicId) {
        self.rooms.iter_mut().filter(|room| room.at == Some(at)).for_each(|room| room.at = None);
    }

    /// Its rooms get other keys: those of the shard into which it is put.
    pub fn rebind(&mut self, key_of: impl Fn(&TopicName) -> Option<TopicId>) {
        for room in self.rooms.iter_mut().filter(|room| room.at.is_some()) {
            room.at = key_of(&room.name);
        }
    }

    /// A room that the peer must leave, because something of it was dropped without a marker.
    pub fn take_loser(&mut self) -> Option<TopicId> {
        self.losers.pop()
    }

    /// Queues frames of a room. Beyond the limits older ones of the room are dropped, then they
    /// themselves. `Full`: there is not even room for the notice.
    pub fn push_droppable(
        &mut self,
        room: usize,
        pieces: &[FramePart],
        bytes_max: usize,
        counters: &mut ShardCounters,
    ) -> Pushed {
        for piece in pieces {
            self.conflate(room, piece.kind, counters);
            self.push_piece(room, piece, bytes_max, counters);
        }
        self.put_notice(room, counters);
        let pushed = self.make_room(0, bytes_max, counters);
        self.tidy();
        self.rooms[room].forget_left(self.first);
        pushed
    }

    /// Forgets all but the first slice, of which a part may have left already: cutting it off would
    /// break the framing for whatever comes after it.
    pub fn keep_first(&mut self) {
        self.queue.truncate(1);
        self.rooms.clear();
        self.empty = 0;
        self.bytes = 0;
        if let Some(first) = self.queue.front_mut() {
            first.kind = SliceKind::Fixed;
            self.bytes = first.bytes.len();
        }
    }

    /// What to write next, in order: at most `max` slices.
    pub fn slices(&self, max: usize) -> impl Iterator<Item = &[u8]> {
        self.queue.iter().map(|slice| &slice.bytes[..]).filter(|bytes| !bytes.is_empty()).take(max)
    }

    /// The socket took the first `taken` bytes.
    pub fn advance(&mut self, taken: usize) {
        assert!(taken <= self.bytes);
        self.stalled_since_ms = self.stalled_since_ms.filter(|_| taken == 0);
        self.bytes -= taken;
        let mut left = taken;
        while left > 0 {
            self.begin_first();
            let first = self.queue.front_mut().expect("bytes is the sum of the slices");
            if first.bytes.len() > left {
                first.bytes.advance(left);
                return;
            }
            left -= first.bytes.len();
            self.queue.pop_front();
            self.first += 1;
            self.pop_empty();
        }
    }

    /// Drops messages, oldest first, until `bytes` more may wait.
    fn make_room(
        &mut self,
        bytes: usize,
        bytes_max: usize,
        counters: &mut ShardCounters,
    ) -> Pushed {
        if self.bytes + bytes <= bytes_max {
            return Pushed::Queued;
        }
        while self.bytes + bytes > bytes_max {
            let oldest = |room: &RoomQueue| room.droppable.front().map(|slice| slice.number);
            let rooms = self.rooms.iter().enumerate();
            let next = rooms.filter_map(|(place, room)| Some((oldest(room)?, place))).min();
            let Some((_, room)) = next else {
                self.tidy();
                return Pushed::Full;
            };
            if self.drop_oldest(room, counters) {
                self.put_notice(room, counters);
            }
        }
        self.tidy();
        Pushed::Queued
    }

    /// A newer message replaces the older one with the same key.
    fn conflate(&mut self, place: usize, kind: FrameKind, counters: &mut ShardCounters) {
        let room = &mut self.rooms[place];
        let FrameKind::Message(key) = kind else { return };
        if room.slow != SlowConsumer::Conflate {
            return;
        }
        if let Some(older) = room.newest.remove(&key) {
            self.rooms[place].bytes -= self.take_out(older);
            counters.slow_conflated += 1;
            if !self.rooms[place].has_markers {
                self.rooms[place].gap = Some(older);
            }
        }
    }

    fn push_piece(
        &mut self,
        place: usize,
        piece: &FramePart,
        bytes_max: usize,
        counters: &mut ShardCounters,
    ) {
        let bytes = piece.bytes.len();
        // With room for the notice, should more have to be dropped.
        let all = bytes + self.rooms[place].notice_bytes_max;
        while self.bytes + all > bytes_max || !self.rooms[place].has_room(bytes) {
            if !self.drop_oldest(place, counters) {
                break;
            }
        }
        let number = self.first + self.queue.len() as u64;
        if self.bytes + all > bytes_max {
            self.append(Chunk::default(), SliceKind::Fixed);
            self.empty += 1;
            return self.rooms[place].note_lost(number, piece.kind, counters);
        }
        self.append(Chunk::Shared(piece.bytes.clone()), SliceKind::Droppable(place as u32));
        let room = &mut self.rooms[place];
        room.bytes += bytes;
        room.droppable.push_back(Droppable { number, kind: piece.kind });
        if let (SlowConsumer::Conflate, FrameKind::Message(key)) = (room.slow, piece.kind) {
            room.newest.insert(key, number);
        }
    }

    /// Drops the oldest message of a room. `false`: nothing of it may be dropped.
    fn drop_oldest(&mut self, place: usize, counters: &mut ShardCounters) -> bool {
        while let Some(Droppable { number, kind }) = self.rooms[place].droppable.pop_front() {
            let bytes = self.take_out(number);
            if bytes == 0 {
                continue; // It was conflated.
            }
            let room = &mut self.rooms[place];
            room.bytes -= bytes;
            room.forget_newest(number, kind);
            room.note_lost(number, kind, counters);
            return true;
        }
        false
    }

    /// Puts the room's notice where the last message was dropped.
    fn put_notice(&mut self, place: usize, counters: &mut ShardCounters) {
        let room = &mut self.rooms[place];
        let Some(gap) = room.gap.take() else { return };
        if !room.has_markers {
            return self.drop_room(place);
        }
        let bytes = loss_marker(&room.name, room.encoding, room.lost);
        match room.notice.replace(gap) {
            Some(older) => _ = self.take_out(older),
            None => counters.slow_notices += 1,
        }
        self.bytes += bytes.len();
        self.empty -= 1;
        *self.at(gap) =
            Slice { bytes: Chunk::Shared(bytes), kind: SliceKind::Notice(place as u32) };
    }

    /// Drops all of a room that waits, and makes the peer leave it: there is no room for a notice, so
    /// nothing that comes after the loss may arrive.
    fn drop_room(&mut self, place: usize) {
        while let Some(Droppable { number, .. }) = self.rooms[place].droppable.pop_front() {
            self.rooms[place].bytes -= self.take_out(number);
        }
        let room = &mut self.rooms[place];
        room.newest.clear();
        room.lost = 0;
        self.losers.extend(room.at.take());
    }

    /// The first slice begins to leave: nothing happens to it any more.
    fn begin_first(&mut self) {
        let Some(first) = self.queue.front_mut() else { return };
        match std::mem::replace(&mut first.kind, SliceKind::Fixed) {
            SliceKind::Fixed => {}
            SliceKind::Notice(place) => {
                let room = &mut self.rooms[place as usize];
                (room.notice, room.lost) = (None, 0);
            }
            SliceKind::Droppable(place) => {
                let room = &mut self.rooms[place as usize];
                room.bytes -= first.bytes.len();
                while let Some(Droppable { number, kind }) = room.droppable.pop_front() {
                    if number == self.first {
                        return room.forget_newest(number, kind);
                    }
                }
            }
        }
    }

    fn append(&mut self, bytes: Chunk, kind: SliceKind) {
        self.bytes += bytes.len();
        self.queue.push_back(Slice { bytes, kind });
    }

    fn at(&mut self, number: u64) -> &mut Slice {
        let index = (number - self.first) as usize;
        self.queue.get_mut(index).expect("a number is of a slice that waits")
    }

    /// Empties a slice; answers what it held. 0: it was empty, or is here no more.
    fn take_out(&mut self, number: u64) -> usize {
        if number < self.first {
            return 0;
        }
        let slice = self.at(number);
        let bytes = std::mem::take(&mut slice.bytes).len();
        slice.kind = SliceKind::Fixed;
        self.bytes -= bytes;
        self.empty += usize::from(bytes > 0);
        bytes
    }

    /// Lets go of empty slices.
    fn tidy(&mut self) {
        self.pop_empty();
        if self.empty > EMPTY_SPARE && self.empty * 2 > self.queue.len() {
            self.renumber();
        }
        #[cfg(any(test, debug_assertions))]
        self.check();
    }

    fn pop_empty(&mut self) {
        while self.queue.front().is_some_and(|slice| slice.bytes.is_empty()) {
            self.queue.pop_front();
            self.first += 1;
            self.empty -= 1;
        }
    }

    /// Takes the empty slices out; the others get new numbers.
    fn renumber(&mut self) {
        let mut number = self.first;
        let mut numbers = Vec::with_capacity(self.queue.len());
        for slice in &self.queue {
            let is_here = !slice.bytes.is_empty();
            numbers.push(is_here.then_some(number));
            number += u64::from(is_here);
        }
        let first = self.first;
        let new = |old: u64| numbers.get(old.checked_sub(first)? as usize).copied().flatten();
        for room in &mut self.rooms {
            room.renumber(new);
        }
        self.queue.retain(|slice| !slice.bytes.is_empty());
        self.empty = 0;
    }

    /// Walks everything; for tests.
    #[cfg(any(test, debug_assertions))]
    fn check(&self) {
        let lens = |kind: fn(SliceKind) -> bool| {
            let those = self.queue.iter().filter(move |slice| kind(slice.kind));
            those.map(|slice| slice.bytes.len()).sum::<usize>()
        };
        assert_eq!(self.bytes, lens(|_| true));
        let loose = self.rooms.iter().map(|room| room.bytes).sum::<usize>();
        assert_eq!(loose, lens(|kind| matches!(kind, SliceKind::Droppable(_))));
        assert_eq!(self.empty, self.queue.iter().filter(|slice| slice.bytes.is_empty()).count());
        for room in &self.rooms {
            assert!(room.gap.is_none(), "what was dropped has its notice");
            // Of what was lost before it came here it may not be known how much it was: 0.
            assert!(room.lost == 0 || room.notice.is_some());
        }
    }
}

impl RoomQueue {
    /// Nothing of it waits.
    fn is_idle(&self) -> bool {
        self.bytes == 0 && self.notice.is_none()
    }

    /// Whether so much more of it may wait; one message always may.
    fn has_room(&self, bytes: usize) -> bool {
        self.bytes == 0 || self.bytes + bytes <= self.bytes_max
    }

    /// Counts what stood at `number` as lost.
    fn note_lost(&mut self, number: u64, kind: FrameKind, counters: &mut ShardCounters) {
        let messages = match kind {
            FrameKind::Message(_) => 1,
            FrameKind::Lost(count) => count,
        };
        self.lost = self.lost.saturating_add(messages);
        self.gap = Some(number);
        if let FrameKind::Message(_) = kind {
            *match self.slow {
                SlowConsumer::Conflate => &mut counters.slow_conflate_dropped,
                SlowConsumer::Close | SlowConsumer::DropOldest => &mut counters.slow_dropped,
            } += 1;
        }
    }

    /// Removes what stood before `first`, which has left.
    fn forget_left(&mut self, first: u64) {
        while self.droppable.front().is_some_and(|slice| slice.number < first) {
            self.droppable.pop_front();
        }
    }

    fn forget_newest(&mut self, number: u64, kind: FrameKind) {
        if let FrameKind::Message(key) = kind
            && self.newest.get(&key) == Some(&number)
        {
            self.newest.remove(&key);
        }
    }

    fn renumber(&mut self, new: impl Fn(u64) -> Option<u64>) {
        let moved = |slice: Droppable| Some(Droppable { number: new(slice.number)?, ..slice });
        self.droppable = self.droppable.drain(..).filter_map(moved).collect();
        self.newest = self.newest.drain().filter_map(|(key, at)| Some((key, new(at)?))).collect();
        self.notice = self.notice.and_then(new);
    }
}

#[cfg(test)]
mod tests;
