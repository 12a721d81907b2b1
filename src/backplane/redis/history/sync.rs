//! What a read shows of a followed history: what is missing is delivered or reported as lost, and
//! the copy grows at both ends.

use crate::backplane::history::log::MessageLog;
use crate::backplane::local::Local;
use crate::backplane::redis::history::follower::{FollowedTopic, LocalCopy};
use crate::backplane::redis::history::reply::FetchedHistory;
use crate::backplane::redis::history::state::{FollowState, ReadAheadGap, ReadPurpose, SentRead};
use crate::ids::Position;
use std::time::{Duration, Instant};

/// How long a gap may stay that a read has shown ahead of delivery. Then its messages are lost.
const OVERTAKEN_MAX: Duration = Duration::from_secs(1);

/// The result of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FetchOutcome {
    /// Nothing was missing.
    Unchanged,
    /// Missing messages were delivered.
    Repaired,
    /// Messages are missing for good, and were reported as lost.
    Lost,
    /// Delivered messages are no longer part of the history, which was reported. What replaced them
    /// has to be read.
    Fork,
    /// Lower offsets have to be read.
    Incomplete,
}

/// What the stored history is to the copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Relation {
    /// The copy is a part of it.
    Continued,
    /// The copy is a part of it up to this offset.
    ForkedAt(u64),
    /// It is another one, or it was reset.
    Replaced,
}

impl FollowedTopic {
    /// Takes the reply to a read. `generation`: that of the server.
    pub(super) fn take_read(
        &mut self,
        mut read: FetchedHistory,
        sent: &SentRead,
        generation: &str,
        now: Instant,
        local: &mut Local,
    ) -> FetchOutcome {
        let behind = sent.next.max(read.top.saturating_add(1));
        self.ignore_undelivered(&mut read, sent.purpose);
        let relation = self.relation(&read, sent, generation);
        self.lineage = std::mem::take(&mut read.lineage);
        match relation {
            Relation::ForkedAt(offset) => {
                self.rewind(Position { epoch: read.epoch, offset }, local);
                return FetchOutcome::Fork;
            }
            Relation::Replaced => self.begin_again(&read, local),
            Relation::Continued => self.begin_copy(&read),
        }
        let is_replaced = relation == Relation::Replaced;
        if self.next_offset() <= read.top && self.next_offset() < sent.from {
            return if is_replaced { FetchOutcome::Fork } else { FetchOutcome::Incomplete };
        }
        self.acked = self.acked.max(read.acked);
        self.reads += 1;
        let known = self.log().map_or(0, |log| log.position().offset);
        let is_lost = self.skip_lost(&read, known, local) || is_replaced;
        if let Some((lowest, _)) = read.entries.first().filter(|(lowest, _)| *lowest > sent.from) {
            self.oldest_available = self.oldest_available.max(*lowest);
        }
        let is_joined = self.first_offset() <= behind;
        for (offset, body) in read.entries.iter().rev() {
            self.push_front_if_next(*offset, body, now);
        }
        let is_repaired = self.deliver_missing(&read, known, now, local);
        // What was asked for and is not here does not exist, unless messages arrived and were
        // trimmed since: then the copy begins after everything that was read. If it is full,
        // Redis trims what is before it, too.
        if (is_joined || self.is_full()) && sent.from < self.first_offset() {
            self.oldest_available = self.oldest_available.max(self.first_offset());
        }
        match (is_lost, is_repaired) {
            (true, _) => FetchOutcome::Lost,
            (false, true) => FetchOutcome::Repaired,
            (false, false) => FetchOutcome::Unchanged,
        }
    }

    fn relation(&self, read: &FetchedHistory, sent: &SentRead, generation: &str) -> Relation {
        let Some(known) = self.log().map(MessageLog::position) else { return Relation::Continued };
        if known.epoch == read.epoch {
            // It is shorter than it was when the read was sent, without a fault as the reason: the
            // server has stored its last message itself, in its current generation. So it was
            // reset, or its end was replaced by hand.
            let is_settled = read.generation == generation.as_bytes();
            let is_reset = is_settled && read.top.saturating_add(1) < sent.next;
            return if is_reset { Relation::Replaced } else { Relation::Continued };
        }
        match read.lineage.end_of(known.epoch) {
            None => Relation::Replaced,
            Some(end) if known.offset > end => Relation::ForkedAt(end),
            Some(_) => Relation::Continued,
        }
    }

    /// The history has forked before the last message that was delivered here, as when a replaced
    /// master stored one more message. That is reported as lost; what replaced it is read from the
    /// fork and delivered.
    fn rewind(&mut self, to: Position, local: &mut Local) {
        local.notify_lost(&self.name, 0);
        self.copy = LocalCopy::Known(MessageLog::new(to.epoch, to.offset));
        self.oldest_available = 1;
        self.acked = self.acked.map(|acked| acked.min(to.offset));
    }

    /// Nothing of the copy holds for the history that has replaced it. What was published in that
    /// one before this node noticed is lost, except for messages that have arrived and are held.
    fn begin_again(&mut self, read: &FetchedHistory, local: &mut Local) {
        local.notify_lost(&self.name, 0);
        let delivered = self.delivered_before(read).unwrap_or_else(|| self.last_before_held(read));
        self.replaced = self.log().map(MessageLog::position);
        self.copy = LocalCopy::Known(MessageLog::new(read.epoch, delivered));
        (self.oldest_available, self.acked) = (1, None);
    }

    /// The last offset that was delivered of this history before another one replaced it, which a
    /// repair of another node has undone.
    fn delivered_before(&self, read: &FetchedHistory) -> Option<u64> {
        let before = self.replaced?;
        let end = match before.epoch == read.epoch {
            true => read.top,
            false => self.lineage.end_of(before.epoch)?,
        };
        Some(before.offset.min(end))
    }

    /// Drops held messages of a history that has vanished: they are newer than the copy, and are
    /// not part of what was read. Members receive `lost` in their place.
    pub(super) fn drop_vanished(&mut self, read: &FetchedHistory, local: &mut Local) {
        let known = match &self.copy {
            LocalCopy::Unknown => return,
            LocalCopy::Blind => Position { epoch: 0, offset: 0 },
            LocalCopy::Known(log) => log.position(),
        };
        let is_vanished = |at: Position| {
            let is_new = (at.epoch, at.offset) > (known.epoch, known.offset);
            let end = read.lineage.end_of(at.epoch);
            is_new && at.epoch < read.epoch && end.is_none_or(|end| at.offset > end)
        };
        if self.held.drop_impossible(usize::MAX, |at| !is_vanished(at)) > 0 {
            local.notify_lost(&self.name, 0);
        }
    }

    /// Makes the copy, if there is none, and gives it the current epoch.
    fn begin_copy(&mut self, read: &FetchedHistory) {
        let delivered = match self.copy {
            LocalCopy::Unknown => Some(read.top),
            LocalCopy::Blind => Some(self.last_before_held(read)),
            LocalCopy::Known(_) => None,
        };
        if let Some(delivered) = delivered {
            self.copy = LocalCopy::Known(MessageLog::new(read.epoch, delivered));
        }
        self.log_mut().expect("it was just made").adopt(read.epoch);
    }

    /// The last offset before the held messages; without any, that of the history.
    fn last_before_held(&self, read: &FetchedHistory) -> u64 {
        let first = self.held.first_offset_of(read.epoch);
        first.map_or(read.top, |offset| read.top.min(offset.saturating_sub(1)))
    }

    /// Reports messages between the copy and the first new one that are in Redis no more. Returns
    /// whether there are any.
    fn skip_lost(&mut self, read: &FetchedHistory, known: u64, local: &mut Local) -> bool {
        let first_new = read.entries.iter().map(|(offset, _)| *offset).find(|at| *at > known);
        let last_lost = first_new.map_or(read.top.max(known), |first| first.saturating_sub(1));
        let is_lost = last_lost > known;
        if is_lost {
            local.notify_lost(&self.name, last_lost - known);
            self.copy = LocalCopy::Known(MessageLog::new(read.epoch, last_lost));
        }
        is_lost
    }

    /// Returns whether there were any.
    fn deliver_missing(
        &mut self,
        read: &FetchedHistory,
        known: u64,
        now: Instant,
        local: &mut Local,
    ) -> bool {
        let mut is_repaired = false;
        for (offset, body) in &read.entries {
            if *offset > known && *offset == self.next_offset() {
                self.deliver(body, now, local);
                is_repaired = true;
            }
        }
        is_repaired
    }

    /// Whether the stream has messages beyond the next one here. For a followed topic the messages
    /// between arrive on another connection, and are not missing as long as any arrive. When all up
    /// to the end of the first such read have arrived, nothing is missing; later ones are on their
    /// way again: in a busy room some always are.
    pub(super) fn gap_ahead(
        &mut self,
        read: &mut FetchedHistory,
        sent: &SentRead,
        now: Instant,
    ) -> Option<ReadAheadGap> {
        // Most reads of a user's topic take nothing new: see `ignore_undelivered`.
        let takes_new = !self.is_user() || sent.purpose == ReadPurpose::Audit;
        let known = self.synced_position().filter(|_| takes_new);
        let known = known.filter(|known| known.epoch == read.epoch)?.offset;
        let mut offsets = read.entries.iter().map(|(offset, _)| *offset);
        let next = offsets.find(|at| *at > known).unwrap_or(read.top.saturating_add(1));
        if next <= known.saturating_add(1) {
            return None;
        }
        // A request for something older need not wait.
        self.oldest_available = self.oldest_available.max(next);
        let before = match self.state() {
            FollowState::Overtaken { gap, .. } => gap,
            _ => ReadAheadGap { since: now, known, top: read.top },
        };
        if known >= before.top {
            read.leave_behind(known);
            return None;
        }
        let since = if known == before.known { before.since } else { now };
        let may_arrive = now.saturating_duration_since(since) < OVERTAKEN_MAX;
        may_arrive.then_some(ReadAheadGap { since, known, top: before.top })
    }

    /// A user's topic that is followed was read for its acknowledgement. New messages in the reply
    /// are on their way here, and may be more than the stream still has: they are not missing.
    fn ignore_undelivered(&mut self, read: &mut FetchedHistory, purpose: ReadPurpose) {
        let Some(known) = self.synced_position() else { return };
        if self.is_user() && purpose == ReadPurpose::Answer && read.epoch == known.epoch {
            read.leave_behind(known.offset);
        }
    }
}
