//! What was said in one topic, as far as it is kept: a row of finished frames with their positions.
//!
//! A [`Log`] is the history itself where a node is alone, and a copy of its end where Redis has the
//! history. It keeps frames, not messages: whoever was away gets the very bytes that the others got,
//! and a frame without its header is the message's JSON object.
//!
//! Who comes back says where they were; [`Log::since`] answers with everything behind it in one
//! buffer. In a storm thousands were at the same place, so the last buffer is kept and shared.
//!
//! Invariant: offsets of one epoch have no hole: what is kept is `first..=top`, and the frame at
//! offset `n` says `n`.

use crate::ids::Position;
use crate::link::FrameSet;
use crate::protocol::{Dialect, Page, Recovery, Unrecovered};
use bytes::{Bytes, BytesMut};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// See the module.
#[derive(Debug)]
pub struct Log {
    epoch: u64,
    top: u64,
    entries: VecDeque<Entry>,
    bytes: usize,
    shared: Option<Shared>,
}

#[derive(Debug)]
struct Entry {
    frames: FrameSet,
    at: Instant,
}

/// What was missed since `offset`, as it was last asked for.
#[derive(Debug)]
struct Shared {
    offset: u64,
    missed: Missed,
}

/// What somebody missed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missed {
    /// Whole frames, one behind the other.
    pub frames: Bytes,
    /// How many.
    pub messages: u64,
}

/// How much is kept.
#[derive(Clone, Copy, Debug)]
pub struct Keep {
    /// Messages, at most.
    pub messages: usize,
    /// For how long.
    pub time: Duration,
}

impl Log {
    /// A history that begins now, or one whose beginning was not seen: its last offset was `top`.
    pub fn new(epoch: u64, top: u64) -> Log {
        Log { epoch, top, entries: VecDeque::new(), bytes: 0, shared: None }
    }

    /// Where it is.
    pub fn position(&self) -> Position {
        Position { epoch: self.epoch, offset: self.top }
    }

    /// Where the next message will stand.
    pub fn next(&self) -> Position {
        let is_reused = cfg!(feature = "break-offset-reuse") && self.top % 8 == 7;
        Position { epoch: self.epoch, offset: self.top + u64::from(!is_reused) }
    }

    /// The offset of the oldest message that is kept; one behind the last if none is.
    pub fn first(&self) -> u64 {
        self.top + 1 - self.entries.len() as u64
    }

    /// Bytes of frames that it keeps.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether it keeps no message.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The frames of the message at [`Log::next`].
    pub fn push(&mut self, frames: FrameSet, keep: Keep, now: Instant) {
        self.top += 1;
        self.bytes += frames.bytes();
        self.entries.push_back(Entry { frames, at: now });
        self.shared = None;
        self.trim(keep, now);
    }

    /// The frames of the message before [`Log::first`], found later.
    pub fn push_front(&mut self, frames: FrameSet, now: Instant) {
        self.bytes += frames.bytes();
        self.entries.push_front(Entry { frames, at: now });
        self.shared = None;
    }

    /// The same history goes on under another epoch.
    pub fn adopt(&mut self, epoch: u64) {
        self.epoch = epoch;
    }

    /// Lets go of all messages, and stays where it is. Answers the bytes that gave.
    pub fn forget_messages(&mut self) -> usize {
        self.entries.clear();
        self.shared = None;
        std::mem::take(&mut self.bytes)
    }

    /// The kept messages from `first` on, in the native dialect.
    pub fn frames_from(&self, first: u64) -> impl Iterator<Item = &Bytes> {
        let skipped = first.saturating_sub(self.first()) as usize;
        self.entries.iter().skip(skipped).map(|entry| entry.frames.get(Dialect::Native))
    }

    /// Lets go of what is too much or too old.
    pub fn trim(&mut self, keep: Keep, now: Instant) {
        while let Some(oldest) = self.entries.front() {
            let is_old = now.saturating_duration_since(oldest.at) >= keep.time;
            if self.entries.len() <= keep.messages && !is_old {
                return;
            }
            self.drop_oldest();
        }
    }

    /// Lets go of the oldest message. Answers the bytes that gave.
    pub fn drop_oldest(&mut self) -> usize {
        let Some(oldest) = self.entries.pop_front() else { return 0 };
        let bytes = oldest.frames.bytes();
        self.bytes -= bytes;
        // What is shared may reach further back than what is kept, and then it must not be given.
        self.shared = None;
        bytes
    }

    /// Everything behind `since`, in one dialect; at most `bytes_max` of it.
    pub fn since(&mut self, since: Position, bytes_max: usize) -> Result<Missed, Unrecovered> {
        if since.epoch != self.epoch {
            return Err(Unrecovered::Epoch);
        }
        if since.offset > self.top {
            return Err(Unrecovered::TailLost);
        }
        if since.offset + 1 < self.first() {
            return Err(Unrecovered::Trimmed);
        }
        let known = self.shared.as_ref().filter(|shared| shared.offset == since.offset);
        if let Some(shared) = known {
            return Ok(shared.missed.clone());
        }
        let missed = self.join(since.offset, bytes_max).ok_or(Unrecovered::TooMuch)?;
        self.shared = Some(Shared { offset: since.offset, missed: missed.clone() });
        Ok(missed)
    }

    fn join(&self, offset: u64, bytes_max: usize) -> Option<Missed> {
        let skipped = (offset + 1 - self.first()) as usize;
        let messages = self.entries.len() - skipped;
        let sent = messages.saturating_sub(usize::from(cfg!(feature = "break-dropped-tail")));
        let behind = self.entries.range(skipped..skipped + sent);
        let frames = behind.map(|entry| entry.frames.get(Dialect::Native));
        let bytes = frames.clone().map(Bytes::len).sum();
        if bytes > bytes_max {
            return None;
        }
        let messages = messages as u64;
        let mut joined = BytesMut::with_capacity(bytes);
        frames.for_each(|frame| joined.extend_from_slice(frame));
        Some(Missed { frames: joined.freeze(), messages })
    }

    /// What a user has not acknowledged, as far as it is kept and may be sent at once: the newest of
    /// it. `acked` is `None` where nobody was told of this history yet: what was before it is not
    /// known.
    pub fn unacknowledged(&mut self, acked: Option<u64>, bytes_max: usize) -> (Recovery, Bytes) {
        let wanted = acked.unwrap_or(0).min(self.top);
        let offset = wanted.max(self.first() - 1);
        let whole = self.since(Position { epoch: self.epoch, offset }, bytes_max);
        let recovery = match (acked, &whole) {
            (None, _) => Recovery::NotRecovered(Unrecovered::Epoch),
            _ if offset > wanted => Recovery::NotRecovered(Unrecovered::Trimmed),
            (_, Ok(missed)) => Recovery::Recovered { messages: missed.messages },
            (_, Err(why)) => Recovery::NotRecovered(*why),
        };
        (recovery, whole.map_or_else(|_| self.newest(bytes_max), |missed| missed.frames))
    }

    /// The newest messages, as many as fit.
    fn newest(&self, bytes_max: usize) -> Bytes {
        let mut bytes = 0;
        let fits = |entry: &&Entry| {
            bytes += entry.frames.get(Dialect::Native).len();
            bytes <= bytes_max
        };
        let fitting = self.entries.iter().rev().take_while(fits).count() as u64;
        self.join(self.top - fitting, bytes_max).map_or_else(Bytes::new, |missed| missed.frames)
    }

    /// The frames of a page, in the order in which they were asked for; fewer than that when they
    /// would be more than `bytes_max`, but at least one.
    pub fn page(&self, page: Page, bytes_max: usize) -> Result<Vec<Bytes>, Unrecovered> {
        let (first, behind) = (self.first(), self.top + 1);
        let edge = match page.since {
            Some(since) if since.epoch != self.epoch => return Err(Unrecovered::Epoch),
            Some(since) => Some(since.offset),
            None => None,
        };
        let limit = u64::from(page.limit);
        let range = if page.reverse {
            let end = edge.unwrap_or(behind).clamp(first, behind);
            end.saturating_sub(limit).max(first)..end
        } else {
            let begin = edge.map_or(first, |edge| edge.saturating_add(1)).clamp(first, behind);
            begin..(begin + limit).min(behind)
        };
        let places = (range.start - first) as usize..(range.end - first) as usize;
        let entries = self.entries.range(places);
        let frames = entries.map(|entry| entry.frames.get(Dialect::Native).clone());
        let mut frames: Vec<_> = frames.collect();
        if page.reverse {
            frames.reverse();
        }
        let mut bytes = 0;
        let fits = frames.iter().take_while(|frame| {
            bytes += frame.len();
            bytes <= bytes_max
        });
        let fits = fits.count().max(1);
        frames.truncate(fits);
        Ok(frames)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEEP: Keep = Keep { messages: 5, time: Duration::from_secs(60) };

    fn frames(number: u64) -> FrameSet {
        FrameSet::new(Dialect::ALL.map(|_| Bytes::from(format!("<{number}>"))))
    }

    /// Messages `1..=top`, of which five are kept.
    fn log(top: u64) -> Log {
        let mut log = Log::new(7, 0);
        let now = Instant::now();
        (1..=top).for_each(|number| log.push(frames(number), KEEP, now));
        log
    }

    fn at(offset: u64) -> Position {
        Position { epoch: 7, offset }
    }

    fn text(missed: Missed) -> String {
        format!("{}: {}", missed.messages, std::str::from_utf8(&missed.frames).unwrap())
    }

    #[test]
    fn who_was_away_hears_what_was_said_meanwhile_and_no_more() {
        let mut log = log(8);
        let since = |log: &mut Log, offset| log.since(at(offset), 1000).map(text);
        assert_eq!(since(&mut log, 8), Ok("0: ".into()));
        assert_eq!(since(&mut log, 6), Ok("2: <7><8>".into()));
        assert_eq!(since(&mut log, 3), Ok("5: <4><5><6><7><8>".into()));
        assert_eq!(since(&mut log, 2), Err(Unrecovered::Trimmed));
        assert_eq!(since(&mut log, 9), Err(Unrecovered::TailLost));
        assert_eq!(log.since(Position { epoch: 8, offset: 8 }, 1000), Err(Unrecovered::Epoch));
        assert_eq!(log.since(at(6), 5), Err(Unrecovered::TooMuch));
    }

    #[test]
    fn a_user_is_brought_what_it_has_not_acknowledged_and_told_what_is_gone() {
        use Recovery::{NotRecovered, Recovered};
        let mut log = log(8);
        let mut brought = |acked, bytes_max| {
            let (recovery, frames) = log.unacknowledged(acked, bytes_max);
            (recovery, String::from_utf8(frames.to_vec()).unwrap())
        };
        assert_eq!(brought(Some(6), 1000), (Recovered { messages: 2 }, "<7><8>".into()));
        assert_eq!(brought(Some(8), 1000), (Recovered { messages: 0 }, "".into()));
        assert_eq!(brought(Some(99), 1000), (Recovered { messages: 0 }, "".into()));
        assert_eq!(brought(Some(3), 1000).0, Recovered { messages: 5 });
        let all = "<4><5><6><7><8>".to_owned();
        assert_eq!(brought(Some(2), 1000), (NotRecovered(Unrecovered::Trimmed), all.clone()));
        assert_eq!(brought(None, 1000), (NotRecovered(Unrecovered::Epoch), all));
        let newest = (NotRecovered(Unrecovered::TooMuch), "<7><8>".to_owned());
        assert_eq!(brought(Some(4), 8), newest);
        assert_eq!(brought(Some(4), 2).1, "", "not even one");
        let (recovery, frames) = Log::new(7, 0).unacknowledged(Some(0), 10);
        assert_eq!((recovery, frames.len()), (Recovered { messages: 0 }, 0));
    }

    #[test]
    fn thousands_at_the_same_place_share_one_buffer_until_something_is_said() {
        let mut log = log(8);
        let one = log.since(at(6), 1000).unwrap().frames;
        let two = log.since(at(6), 1000).unwrap().frames;
        assert_eq!(one.as_ptr(), two.as_ptr());
        log.push(frames(9), KEEP, Instant::now());
        assert_eq!(log.since(at(6), 1000).map(text), Ok("3: <7><8><9>".into()));
        log.since(at(4), 1000).unwrap();
        log.drop_oldest();
        assert_eq!(log.since(at(4), 1000).map(text), Err(Unrecovered::Trimmed));
    }

    #[test]
    fn what_is_too_much_or_too_old_goes() {
        let mut log = Log::new(7, 0);
        let began = Instant::now();
        for number in 1..=3 {
            log.push(frames(number), KEEP, began + Duration::from_secs(number * 20));
        }
        assert_eq!((log.first(), log.bytes()), (1, 9));
        log.trim(KEEP, began + Duration::from_secs(80));
        assert_eq!((log.first(), log.bytes()), (2, 6));
        log.trim(KEEP, began + Duration::from_secs(1000));
        assert!(log.is_empty());
        assert_eq!((log.position(), log.first(), log.bytes()), (at(3), 4, 0));
        assert_eq!(log.since(at(3), 0).map(text), Ok("0: ".into()));
    }

    #[test]
    fn pages_go_forward_from_the_oldest_and_backward_from_the_newest() {
        let log = log(8);
        let page = |since: Option<u64>, limit, reverse| {
            let since = since.map(at);
            let frames = log.page(Page { since, limit, reverse }, 1000).unwrap();
            let text = |frame: &Bytes| String::from_utf8(frame.to_vec()).unwrap();
            frames.iter().map(text).collect::<String>()
        };
        assert_eq!(page(None, 2, false), "<4><5>");
        assert_eq!(page(None, 2, true), "<8><7>");
        assert_eq!(page(None, 100, false), "<4><5><6><7><8>");
        assert_eq!(page(Some(5), 2, false), "<6><7>");
        assert_eq!(page(Some(7), 2, true), "<6><5>");
        assert_eq!(page(Some(1), 1, false), "<4>");
        assert_eq!(page(Some(u64::MAX), 1, false), "");
        assert_eq!(page(Some(4), 9, true), "");
        assert_eq!(page(None, 0, true), "");
        let all = Page { since: None, limit: 100, reverse: false };
        assert_eq!(log.page(all, 7).unwrap().len(), 2, "as many as fit");
        assert_eq!(log.page(all, 0).unwrap().len(), 1, "one always does");
        let foreign =
            Page { since: Some(Position { epoch: 1, offset: 1 }), limit: 1, reverse: false };
        assert_eq!(log.page(foreign, 1000), Err(Unrecovered::Epoch));
    }
}
