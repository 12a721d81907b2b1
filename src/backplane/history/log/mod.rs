//! What was published in one topic, as far as it is stored: messages with their positions.
//!
//! A [`Log`] is the history itself where a node is alone, and a copy of its end where Redis has the
//! history. It keeps messages in one form, that in which they travel between nodes, and not what any
//! dialect makes of them.
//!
//! A client that comes back gives its position; [`Log::since`] answers with everything after it, as
//! one run in the client's encoding. In a storm thousands were at the same position, so the last run
//! of each encoding is kept and shared.
//!
//! Invariant: offsets of one epoch have no hole: what is stored is `first..=top`. Offsets go up to
//! [`Position::NUMBER_MAX`], which is checked where one comes from outside; and no sum here overflows,
//! whatever a log is made with.

use crate::backplane::message::stored_event;
use crate::framing;
use crate::ids::{Position, TopicName};
use crate::protocol::dialect::Encoding;
use crate::protocol::run::{Run, RunKind};
use crate::protocol::{Event, Page, Recovery, Unrecovered};
use bytes::Bytes;
use std::collections::VecDeque;
use std::ops::Range;
use std::time::{Duration, Instant};

/// The stored end of one topic's history.
#[derive(Debug)]
pub struct Log {
    epoch: u64,
    top: u64,
    entries: VecDeque<StoredMessage>,
    bytes: usize,
    shared: Vec<SharedRun>,
}

#[derive(Debug)]
struct StoredMessage {
    /// See `envelope.rs`.
    body: Bytes,
    at: Instant,
}

/// The run after `offset`, as it was last asked for in one encoding.
#[derive(Debug)]
struct SharedRun {
    offset: u64,
    encoding: Encoding,
    run: Run,
}

/// For whom a run is made.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    /// The topic whose log it is.
    pub topic: &'a TopicName,
    /// The encoding in which the run is wanted.
    pub encoding: Encoding,
    /// At most so many bytes of it.
    pub bytes_max: usize,
}

/// How much is stored.
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
        Log { epoch, top, entries: VecDeque::new(), bytes: 0, shared: Vec::new() }
    }

    /// Where its end is.
    pub fn position(&self) -> Position {
        Position { epoch: self.epoch, offset: self.top }
    }

    /// Where the next message will stand.
    pub fn next(&self) -> Position {
        let is_reused = cfg!(feature = "break-offset-reuse") && self.top % 8 == 7;
        Position { epoch: self.epoch, offset: self.top.saturating_add(u64::from(!is_reused)) }
    }

    /// The offset of the oldest message that is stored; one after the last if none is.
    pub fn first(&self) -> u64 {
        self.behind().saturating_sub(self.entries.len() as u64)
    }

    /// One after the last offset.
    fn behind(&self) -> u64 {
        self.top.saturating_add(1)
    }

    /// Bytes of messages that it stores.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether it stores no message.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Stores the message at [`Log::next`].
    pub fn push(&mut self, body: Bytes, keep: Keep, now: Instant) {
        self.top = self.behind();
        self.bytes += body.len();
        self.entries.push_back(StoredMessage { body, at: now });
        self.shared.clear();
        self.trim(keep, now);
    }

    /// Stores the message before [`Log::first`], which was found later.
    pub fn push_front(&mut self, body: Bytes, now: Instant) {
        self.bytes += body.len();
        self.entries.push_front(StoredMessage { body, at: now });
        self.shared.clear();
    }

    /// The same history goes on under another epoch.
    pub fn adopt(&mut self, epoch: u64) {
        if self.epoch != epoch {
            self.epoch = epoch;
            self.shared.clear(); // They name the epoch.
        }
    }

    /// Drops all messages, and stays where it is. Answers the bytes that were freed.
    pub fn forget_messages(&mut self) -> usize {
        self.entries.clear();
        self.shared.clear();
        std::mem::take(&mut self.bytes)
    }

    /// All stored messages, as they travel between nodes.
    pub fn bodies(&self) -> impl Iterator<Item = &Bytes> {
        self.entries.iter().map(|entry| &entry.body)
    }

    /// Drops what is too much or too old.
    pub fn trim(&mut self, keep: Keep, now: Instant) {
        while let Some(oldest) = self.entries.front() {
            let is_old = now.saturating_duration_since(oldest.at) >= keep.time;
            if self.entries.len() <= keep.messages && !is_old {
                return;
            }
            self.drop_oldest();
        }
    }

    /// Drops the oldest message. Answers the bytes that were freed.
    pub fn drop_oldest(&mut self) -> usize {
        let Some(oldest) = self.entries.pop_front() else { return 0 };
        self.bytes -= oldest.body.len();
        // What is shared may reach further back than what is stored, and then it must not be given.
        self.shared.clear();
        oldest.body.len()
    }

    /// Everything after `since`.
    pub fn since(&mut self, since: Position, reader: Reader<'_>) -> Result<Run, Unrecovered> {
        if since.epoch != self.epoch {
            return Err(Unrecovered::Epoch);
        }
        if since.offset > self.top {
            return Err(Unrecovered::TailLost);
        }
        if since.offset.saturating_add(1) < self.first() {
            return Err(Unrecovered::Trimmed);
        }
        let is_it = |shared: &&SharedRun| {
            shared.offset == since.offset && shared.encoding == reader.encoding
        };
        if let Some(shared) = self.shared.iter().find(is_it) {
            return Ok(shared.run.clone());
        }
        let run = self.missed(since.offset, reader).ok_or(Unrecovered::TooMuch)?;
        self.shared.retain(|shared| shared.encoding != reader.encoding);
        let (offset, encoding) = (since.offset, reader.encoding);
        self.shared.push(SharedRun { offset, encoding, run: run.clone() });
        Ok(run)
    }

    /// The run after an offset, if it fits.
    fn missed(&self, offset: u64, reader: Reader<'_>) -> Option<Run> {
        let places = self.places(offset.saturating_add(1)..self.behind());
        let all = places.len() as u64;
        let dropped = usize::from(cfg!(feature = "break-dropped-tail")).min(places.len());
        let places = places.start..places.end - dropped;
        let (kind, encoding) = (RunKind::Missed, reader.encoding);
        let bytes = framing::run_len(self.events(places.clone(), reader.topic), kind, encoding);
        if bytes > reader.bytes_max {
            return None;
        }
        let run = framing::run(self.events(places, reader.topic), kind, encoding, bytes);
        Some(Run { messages: all, ..run })
    }

    /// What a user has not acknowledged, as far as it is stored and may be sent at once: the newest
    /// of it. `acked` is `None` where nobody was told of this history yet: what was before it is not
    /// known.
    pub fn unacknowledged(&mut self, acked: Option<u64>, reader: Reader<'_>) -> (Recovery, Run) {
        let wanted = acked.unwrap_or(0).min(self.top);
        let offset = wanted.max(self.first().saturating_sub(1));
        let whole = self.since(Position { epoch: self.epoch, offset }, reader);
        let recovery = match (acked, &whole) {
            (None, _) => Recovery::NotRecovered(Unrecovered::Epoch),
            _ if offset > wanted => Recovery::NotRecovered(Unrecovered::Trimmed),
            (_, Ok(missed)) => Recovery::Recovered { messages: missed.messages },
            (_, Err(why)) => Recovery::NotRecovered(*why),
        };
        (recovery, whole.unwrap_or_else(|_| self.newest(reader)))
    }

    /// The newest messages, as many as fit.
    fn newest(&self, reader: Reader<'_>) -> Run {
        let mut bytes = 0;
        let newest_first = (0..self.entries.len()).rev();
        let fitting = newest_first.take_while(|place| {
            let event = self.event(*place, reader.topic);
            bytes += framing::frame_len(&event, reader.encoding);
            bytes <= reader.bytes_max
        });
        let fitting = fitting.count() as u64;
        self.missed(self.top.saturating_sub(fitting), reader).unwrap_or_default()
    }

    /// A page of the history, in the order in which it was asked for; fewer messages than that when
    /// they would be too many bytes, but at least one.
    pub fn page(&self, page: Page, reader: Reader<'_>) -> Result<Run, Unrecovered> {
        let (first, behind) = (self.first(), self.behind());
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
            begin..begin.saturating_add(limit).min(behind)
        };
        let mut places: Vec<usize> = self.places(range).collect();
        if page.reverse {
            places.reverse();
        }
        let (kind, encoding) = (RunKind::Page, reader.encoding);
        let mut bytes = 0;
        let fits = places.iter().take_while(|place| {
            let event = std::iter::once(self.event(**place, reader.topic));
            bytes += framing::run_len(event, kind, encoding) + 1;
            bytes <= reader.bytes_max
        });
        let fits = fits.count().max(1).min(places.len());
        let events = || places[..fits].iter().map(|place| self.event(*place, reader.topic));
        let bytes = framing::run_len(events(), kind, encoding);
        Ok(framing::run(events(), kind, encoding, bytes))
    }

    /// Where the messages of a range of offsets stand, as far as they are stored.
    fn places(&self, offsets: Range<u64>) -> Range<usize> {
        let first = self.first();
        let place = |offset: u64| {
            let place = usize::try_from(offset.saturating_sub(first)).unwrap_or(usize::MAX);
            place.min(self.entries.len())
        };
        place(offsets.start)..place(offsets.end).max(place(offsets.start))
    }

    fn event<'a>(&'a self, place: usize, topic: &'a TopicName) -> Event<'a> {
        let offset = self.first().saturating_add(place as u64);
        stored_event(topic, &self.entries[place].body, Position { epoch: self.epoch, offset })
    }

    fn events<'a>(
        &'a self,
        places: Range<usize>,
        topic: &'a TopicName,
    ) -> impl Iterator<Item = Event<'a>> {
        places.map(move |place| self.event(place, topic))
    }
}

#[cfg(test)]
mod tests;
