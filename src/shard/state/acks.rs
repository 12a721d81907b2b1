//! Members who acknowledge what they receive, and which of them lag behind.
//!
//! A side table: a room has an entry while it has such members. Other rooms cost only a bit in their
//! topic ([`crate::shard::hub::Topic::has_acks`]), read once for each frame, not for each member. The
//! position of a message comes with it.
//!
//! A member is *lagging* when a message was handed out to it longer than `ack_timeout_ms` ago and it
//! has not acknowledged it. When each message came is not stored: a room marks, a few times in one
//! timeout, how far it had come by then ([`AgeMarks`]), so what a member lags behind is known a little
//! late and never early. Nothing has a timer: lagging members are counted when an operator asks, and
//! a share of all members at each tick of the shard, for the gauge.
//!
//! Positions are compared by epoch, then offset. Epochs grow; where offsets go on under another epoch
//! (after a failover) what was acknowledged under the earlier one counts, and where they begin again
//! it does not.
//!
//! Invariant: each entry is a member of the topic, admitted with a position.

use crate::ids::{ConnId, Position, UpTo};
use crate::link::AckReport;
use std::collections::{BTreeMap, HashMap, VecDeque};

/// Marks in one timeout.
pub(in crate::shard) const MARKS_PER_TIMEOUT: u64 = 16;
/// Members that are looked at in one tick, for the gauge. A million are looked through in a few
/// seconds. Never measured.
pub(in crate::shard) const LOOKS_PER_TICK: usize = 16 * 1024;

/// All rooms with members who acknowledge.
#[derive(Debug, Default)]
pub(in crate::shard) struct AckTracker {
    /// By the topic's index, in an order in which a walk can be taken up again.
    pub(in crate::shard) rooms: BTreeMap<u32, AckedRoom>,
    pub(in crate::shard) members: usize,
    /// Members that lagged when each room was last looked through.
    pub(in crate::shard) lagging: usize,
    pub(in crate::shard) look: AckScan,
}

/// How far the walk over all members has come.
#[derive(Debug, Default)]
pub(in crate::shard) struct AckScan {
    pub(in crate::shard) room: u32,
    pub(in crate::shard) place: usize,
    pub(in crate::shard) found: usize,
}

#[derive(Debug)]
pub(in crate::shard) struct AckedRoom {
    pub(in crate::shard) timeout_ms: u64,
    /// The first epoch of those whose offsets go on.
    pub(in crate::shard) began: u64,
    /// The newest message that was handed out, or where the history was before any.
    pub(in crate::shard) top: Position,
    pub(in crate::shard) marks: AgeMarks,
    pub(in crate::shard) members: Vec<AckMember>,
    /// Where each stands in `members`.
    pub(in crate::shard) places: HashMap<ConnId, u32>,
    /// How many lagged when it was last looked through.
    pub(in crate::shard) lagging: usize,
}

#[derive(Debug)]
pub(in crate::shard) struct AckMember {
    pub(in crate::shard) conn: ConnId,
    /// The last message that it has acknowledged, and all before it.
    pub(in crate::shard) offset: u64,
    /// The epoch of the first message that it had to: what was brought back may be of an earlier one
    /// than all that was handed out here.
    pub(in crate::shard) began: u64,
    /// Since when it is asked to.
    pub(in crate::shard) since_ms: u64,
}

/// How far a member has come, wherever it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AckMark {
    /// The last message that it has acknowledged, and all before it; with the epoch of the first one
    /// that it had to.
    pub acked: Position,
    /// For how long it has been asked to.
    pub age_ms: u64,
}

/// How far a room had come by when.
#[derive(Debug, Default)]
pub(in crate::shard) struct AgeMarks {
    /// Everything up to this offset is older than the timeout.
    pub(in crate::shard) due: u64,
    /// By this time, up to this offset; oldest first.
    pub(in crate::shard) recent: VecDeque<(u64, u64)>,
}

/// Why an acknowledgement is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::shard) enum AckError {
    /// It joined without `"ack":true`.
    NotAsked,
    /// Nothing was handed out there yet.
    Beyond,
}

impl AgeMarks {
    /// Messages up to `offset` are there now.
    pub(in crate::shard) fn note(&mut self, offset: u64, now_ms: u64, timeout_ms: u64) {
        let step_ms = timeout_ms.div_ceil(MARKS_PER_TIMEOUT).max(1);
        let by_ms = (now_ms / step_ms + 1) * step_ms;
        match self.recent.back_mut() {
            Some((at_ms, top)) if *at_ms == by_ms => *top = offset,
            _ => self.recent.push_back((by_ms, offset)),
        }
        self.due(now_ms, timeout_ms);
    }

    /// What is older than the timeout.
    pub(in crate::shard) fn due(&mut self, now_ms: u64, timeout_ms: u64) -> u64 {
        let is_due = |mark: &&(u64, u64)| mark.0.saturating_add(timeout_ms) <= now_ms;
        while let Some((_, offset)) = self.recent.front().filter(is_due) {
            self.due = *offset;
            self.recent.pop_front();
        }
        self.due
    }
}

impl AckedRoom {
    pub(in crate::shard) fn new(timeout_ms: u64, at: Position) -> AckedRoom {
        AckedRoom {
            timeout_ms,
            began: at.epoch,
            top: at,
            marks: AgeMarks::default(),
            members: Vec::new(),
            places: HashMap::new(),
            lagging: 0,
        }
    }

    /// The history has come to `at`; before that it was at `before` of the same epoch.
    pub(in crate::shard) fn advance(&mut self, at: Position, before: u64, now_ms: u64) {
        let is_newer = (at.epoch, at.offset) > (self.top.epoch, self.top.offset);
        if !is_newer {
            return; // a newer one has arrived before
        }
        let was_unknown = self.top.epoch == 0;
        if was_unknown || (at.epoch != self.top.epoch && before < self.top.offset) {
            self.began = at.epoch;
            self.marks = AgeMarks::default();
            for member in &mut self.members {
                // Admitted before the position was known: nothing earlier is to be acknowledged.
                member.offset = if was_unknown { before } else { member.offset.min(before) };
                member.began = at.epoch;
            }
        }
        self.top = at;
        self.marks.note(at.offset, now_ms, self.timeout_ms);
    }

    pub(in crate::shard) fn acknowledge(
        &mut self,
        conn: ConnId,
        up_to: UpTo,
    ) -> Result<(), AckError> {
        let place = *self.places.get(&conn).ok_or(AckError::NotAsked)? as usize;
        let epoch = up_to.epoch.unwrap_or(self.top.epoch);
        if epoch < self.began.min(self.members[place].began) {
            return Ok(()); // of a history that is over
        }
        if epoch > self.top.epoch || up_to.offset > self.top.offset {
            return Err(AckError::Beyond);
        }
        let member = &mut self.members[place];
        member.offset = member.offset.max(up_to.offset);
        Ok(())
    }

    /// Members from `place` on that lag, at most `most` of them looked at.
    pub(in crate::shard) fn lagging(&mut self, place: usize, most: usize, now_ms: u64) -> usize {
        let (due, timeout_ms) = (self.marks.due(now_ms, self.timeout_ms), self.timeout_ms);
        let is_lagging = |member: &&AckMember| {
            member.offset < due && member.since_ms.saturating_add(timeout_ms) <= now_ms
        };
        self.members.iter().skip(place).take(most).filter(is_lagging).count()
    }
}

impl AckTracker {
    /// How many members acknowledge.
    pub(in crate::shard) fn members(&self) -> usize {
        self.members
    }

    /// How many of them lagged when they were last looked at.
    pub(in crate::shard) fn lagging(&self) -> usize {
        self.lagging
    }

    /// The message at a position is handed out, in a topic that has an entry here.
    pub(in crate::shard) fn note(&mut self, topic: u32, at: Position, now_ms: u64) {
        if let Some(room) = self.rooms.get_mut(&topic) {
            room.advance(at, at.offset.saturating_sub(1), now_ms);
        }
    }

    /// A member acknowledges from here on. `at` is the position of the history, epoch 0 if it is
    /// unknown; `received` the last position that the client has.
    pub(in crate::shard) fn admit(
        &mut self,
        topic: u32,
        conn: ConnId,
        timeout_ms: u64,
        at: Position,
        received: Position,
        now_ms: u64,
    ) {
        let room = self.rooms.entry(topic).or_insert_with(|| AckedRoom::new(timeout_ms, at));
        room.advance(at, at.offset, now_ms);
        // Without a position it has nothing to acknowledge of earlier messages.
        let received = if at.epoch == 0 { room.top } else { received };
        if room.members.is_empty() && received.offset < at.offset {
            room.marks.note(at.offset, now_ms, timeout_ms);
        }
        if !room.places.contains_key(&conn) {
            room.places.insert(conn, room.members.len() as u32);
            let Position { epoch: began, offset } = received;
            room.members.push(AckMember { conn, offset, began, since_ms: now_ms });
            self.members += 1;
        }
    }

    /// How far a member of a topic has come, if it acknowledges.
    pub(in crate::shard) fn mark_of(
        &self,
        topic: u32,
        conn: ConnId,
        now_ms: u64,
    ) -> Option<AckMark> {
        let room = self.rooms.get(&topic)?;
        let member = &room.members[*room.places.get(&conn)? as usize];
        let AckMember { offset, began, since_ms, .. } = *member;
        Some(AckMark { acked: Position { epoch: began, offset }, age_ms: now_ms - since_ms })
    }

    /// A member is moved here with its mark. `at`: the position of the history, if it is known.
    pub(in crate::shard) fn put(
        &mut self,
        topic: u32,
        conn: ConnId,
        timeout_ms: u64,
        (at, mark): (Position, AckMark),
        now_ms: u64,
    ) {
        self.admit(topic, conn, timeout_ms, at, mark.acked, now_ms);
        let room = self.rooms.get_mut(&topic).expect("it was just admitted");
        let member = &mut room.members[room.places[&conn] as usize];
        (member.offset, member.began) = (mark.acked.offset, mark.acked.epoch);
        member.since_ms = now_ms.saturating_sub(mark.age_ms);
    }

    pub(in crate::shard) fn acknowledge(
        &mut self,
        topic: u32,
        conn: ConnId,
        up_to: UpTo,
    ) -> Result<(), AckError> {
        let room = self.rooms.get_mut(&topic).ok_or(AckError::NotAsked)?;
        room.acknowledge(conn, up_to)
    }

    /// A member leaves, or has never stood here. Whether the room has none left.
    pub(in crate::shard) fn forget(&mut self, topic: u32, conn: ConnId) -> bool {
        let Some(room) = self.rooms.get_mut(&topic) else { return true };
        let Some(place) = room.places.remove(&conn) else { return false };
        room.members.swap_remove(place as usize);
        if let Some(moved) = room.members.get(place as usize) {
            room.places.insert(moved.conn, place);
        }
        self.members -= 1;
        let is_last = room.members.is_empty();
        if is_last {
            self.lagging -= room.lagging;
            self.rooms.remove(&topic);
        }
        is_last
    }

    pub(in crate::shard) fn report(&mut self, topic: u32, now_ms: u64) -> AckReport {
        let Some(room) = self.rooms.get_mut(&topic) else { return AckReport::default() };
        AckReport {
            members: room.members.len(),
            lagging: room.lagging(0, usize::MAX, now_ms),
            lowest_offset: room.members.iter().map(|member| member.offset).min(),
        }
    }

    /// Looks at a share of all members. A leave between two shares may hide another member until the
    /// next walk: a gauge may be wrong by that.
    pub(in crate::shard) fn look(&mut self, now_ms: u64) {
        let mut left = LOOKS_PER_TICK;
        let mut rooms_left = self.rooms.len();
        while left > 0 && rooms_left > 0 {
            let Some((&index, room)) = self.rooms.range_mut(self.look.room..).next() else {
                self.look = AckScan::default();
                continue;
            };
            if index != self.look.room {
                self.look = AckScan { room: index, ..AckScan::default() };
            }
            self.look.found += room.lagging(self.look.place, left, now_ms);
            self.look.place += left;
            // A room costs a look of its own, so that a million small ones are shared out too.
            left = left.saturating_sub(1 + room.members.len().min(left));
            if self.look.place >= room.members.len() {
                let found = self.look.found.min(room.members.len());
                self.lagging = self.lagging + found - room.lagging;
                room.lagging = found;
                self.look = AckScan { room: index.wrapping_add(1), ..AckScan::default() };
                rooms_left -= 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::SlotId;

    const TIMEOUT_MS: u64 = 1600;

    fn conn(index: u32) -> ConnId {
        ConnId(SlotId { index, generation: 0 })
    }

    fn at(epoch: u64, offset: u64) -> Position {
        Position { epoch, offset }
    }

    fn up_to(offset: u64) -> UpTo {
        UpTo { epoch: None, offset }
    }

    /// Room 3, and one member who has received everything up to offset 10.
    fn acks() -> AckTracker {
        let mut acks = AckTracker::default();
        acks.admit(3, conn(1), TIMEOUT_MS, at(7, 10), at(7, 10), 0);
        acks
    }

    fn report(acks: &mut AckTracker, now_ms: u64) -> (usize, usize, Option<u64>) {
        let AckReport { members, lagging, lowest_offset } = acks.report(3, now_ms);
        acks.look(now_ms);
        assert_eq!((acks.members(), acks.lagging()), (members, lagging), "at {now_ms}");
        (members, lagging, lowest_offset)
    }

    #[test]
    fn who_has_not_acknowledged_a_message_in_time_is_lagging() {
        let mut acks = acks();
        assert_eq!(report(&mut acks, 1_000_000), (1, 0, Some(10)), "nothing was published");
        acks.note(3, at(7, 11), 1_000_050);
        assert_eq!(report(&mut acks, 1_001_650), (1, 0, Some(10)), "never early");
        assert_eq!(report(&mut acks, 1_001_700), (1, 1, Some(10)), "at most a step late");
        assert_eq!(acks.acknowledge(3, conn(1), up_to(11)), Ok(()));
        assert_eq!(report(&mut acks, 1_001_700), (1, 0, Some(11)));
    }

    #[test]
    fn who_follows_at_a_distance_is_not_lagging() {
        let mut acks = acks();
        for offset in 11..1000 {
            let now_ms = offset * 100;
            acks.note(3, at(7, offset), now_ms);
            acks.acknowledge(3, conn(1), up_to(offset - 1)).unwrap();
            assert_eq!(report(&mut acks, now_ms), (1, 0, Some(offset - 1)));
        }
        assert!(acks.rooms[&3].marks.recent.len() <= MARKS_PER_TIMEOUT as usize + 2);
        assert_eq!(report(&mut acks, 102_000), (1, 1, Some(998)), "and then it stopped");
    }

    #[test]
    fn what_was_brought_back_is_to_be_acknowledged_too() {
        let mut acks = acks();
        acks.note(3, at(7, 20), 100);
        acks.acknowledge(3, conn(1), up_to(20)).unwrap();
        acks.admit(3, conn(2), TIMEOUT_MS, at(7, 20), at(7, 5), 100_000);
        assert_eq!(report(&mut acks, 100_100), (2, 0, Some(5)), "it has just come");
        assert_eq!(report(&mut acks, 101_600), (2, 1, Some(5)));
        let mut first = AckTracker::default();
        first.admit(3, conn(2), TIMEOUT_MS, at(7, 20), at(7, 5), 100_000);
        assert_eq!(report(&mut first, 101_700), (1, 1, Some(5)), "also without a further publish");
    }

    #[test]
    fn only_what_was_handed_out_can_be_acknowledged() {
        let mut acks = acks();
        let of = |epoch, offset| UpTo { epoch: Some(epoch), offset };
        assert_eq!(acks.acknowledge(3, conn(1), up_to(11)), Err(AckError::Beyond));
        assert_eq!(acks.acknowledge(3, conn(1), of(8, 1)), Err(AckError::Beyond));
        assert_eq!(acks.acknowledge(3, conn(2), up_to(1)), Err(AckError::NotAsked));
        assert_eq!(acks.acknowledge(4, conn(1), up_to(1)), Err(AckError::NotAsked));
        acks.note(3, at(7, 11), 0);
        for (up_to, lowest) in [(of(7, 11), 11), (up_to(3), 11), (of(6, 99), 11), (of(0, 1), 11)] {
            assert_eq!(acks.acknowledge(3, conn(1), up_to), Ok(()), "{up_to:?}");
            assert_eq!(report(&mut acks, 0), (1, 0, Some(lowest)));
        }
    }

    #[test]
    fn an_epoch_that_goes_on_is_the_same_history_and_one_that_begins_is_another() {
        let of = |epoch, offset| UpTo { epoch: Some(epoch), offset };
        let mut acks = acks();
        acks.note(3, at(8, 11), 0);
        acks.acknowledge(3, conn(1), of(7, 10)).unwrap();
        acks.admit(3, conn(2), TIMEOUT_MS, at(9, 11), at(9, 11), 0);
        acks.acknowledge(3, conn(1), of(8, 11)).unwrap();
        assert_eq!(report(&mut acks, 0), (2, 0, Some(11)));
        acks.note(3, at(10, 1), 0);
        assert_eq!(report(&mut acks, 0), (2, 0, Some(0)), "offsets have begun again");
        acks.acknowledge(3, conn(1), of(9, 11)).unwrap();
        assert_eq!(report(&mut acks, 5_000), (2, 2, Some(0)), "that was the other one");
        acks.acknowledge(3, conn(1), of(10, 1)).unwrap();
        assert_eq!(report(&mut acks, 5_000), (2, 1, Some(0)));
        acks.note(3, at(9, 12), 0);
        assert_eq!(acks.rooms[&3].top, at(10, 1), "late news change nothing");
    }

    #[test]
    fn who_leaves_leaves_nothing_behind() {
        let mut acks = acks();
        for index in 2..100 {
            acks.admit(3, conn(index), TIMEOUT_MS, at(7, 10), at(7, 10), 0);
            acks.admit(index + 10, conn(index), TIMEOUT_MS, at(7, 10), at(7, 0), 0);
        }
        acks.admit(3, conn(2), TIMEOUT_MS, at(7, 10), at(7, 10), 0);
        assert_eq!(acks.members(), 99 + 98, "nobody stands twice");
        acks.look(10_000);
        assert_eq!(acks.lagging(), 98);
        for index in 1..100 {
            assert_eq!(acks.forget(3, conn(index)), index == 99);
            assert!(acks.forget(index + 10, conn(index)));
        }
        assert_eq!((acks.members(), acks.lagging(), acks.rooms.len()), (0, 0, 0));
        assert!(acks.forget(3, conn(1)));
    }

    #[test]
    fn a_million_members_are_looked_at_a_share_at_a_time() {
        let mut acks = AckTracker::default();
        let all = 3 * LOOKS_PER_TICK as u32;
        (0..all).for_each(|index| acks.admit(3, conn(index), TIMEOUT_MS, at(7, 10), at(7, 0), 0));
        acks.look(10_000);
        assert_eq!(acks.lagging(), 0, "not all of them yet");
        (0..4).for_each(|_| acks.look(10_000));
        assert_eq!(acks.lagging(), all as usize);
    }
}
