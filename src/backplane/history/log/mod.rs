//! What was published in one topic, as far as it is stored: messages with their positions.
//!
//! A [`MessageLog`] is the history itself where a node is alone, and a copy of its end where Redis has the
//! history. It keeps messages in one form, that in which they travel between nodes, and not what any
//! dialect makes of them.
//!
//! A client that comes back gives its position; [`MessageLog::since`] answers with everything after it, as
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
pub struct MessageLog {
    epoch: u64,
    top: u64,
    messages: VecDeque<StoredMessage>,
    bytes: usize,
    shared_runs: Vec<SharedRun>,
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
pub struct RunRequest<'a> {
    /// The topic whose log it is.
    pub topic: &'a TopicName,
    /// The encoding in which the run is wanted.
    pub encoding: Encoding,
    /// At most so many bytes of it.
    pub bytes_max: usize,
}

/// How much is stored.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// Messages, at most.
    pub messages_max: usize,
    /// For how long.
    pub age_max: Duration,
}

impl MessageLog {
    /// A history that begins now, or one whose beginning was not seen: its last offset was `top`.
    pub fn new(epoch: u64, top: u64) -> MessageLog {
        MessageLog { epoch, top, messages: VecDeque::new(), bytes: 0, shared_runs: Vec::new() }
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
        self.next_offset().saturating_sub(self.messages.len() as u64)
    }

    /// One after the last offset.
    fn next_offset(&self) -> u64 {
        self.top.saturating_add(1)
    }

    /// Bytes of messages that it stores.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether it stores no message.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Stores the message at [`MessageLog::next`].
    pub fn push(&mut self, body: Bytes, retention: Retention, now: Instant) {
        self.top = self.next_offset();
        self.bytes += body.len();
        self.messages.push_back(StoredMessage { body, at: now });
        self.shared_runs.clear();
        self.trim(retention, now);
    }

    /// Stores the message before [`MessageLog::first`], which was found later.
    pub fn push_front(&mut self, body: Bytes, now: Instant) {
        self.bytes += body.len();
        self.messages.push_front(StoredMessage { body, at: now });
        self.shared_runs.clear();
    }

    /// The same history goes on under another epoch.
    pub fn adopt(&mut self, epoch: u64) {
        if self.epoch != epoch {
            self.epoch = epoch;
            self.shared_runs.clear(); // They name the epoch.
        }
    }

    /// Drops all messages, and stays where it is. Answers the bytes that were freed.
    pub fn forget_messages(&mut self) -> usize {
        self.messages.clear();
        self.shared_runs.clear();
        std::mem::take(&mut self.bytes)
    }

    /// All stored messages, as they travel between nodes.
    pub fn bodies(&self) -> impl Iterator<Item = &Bytes> {
        self.messages.iter().map(|entry| &entry.body)
    }

    /// Drops what is too much or too old.
    pub fn trim(&mut self, retention: Retention, now: Instant) {
        while let Some(oldest) = self.messages.front() {
            let is_old = now.saturating_duration_since(oldest.at) >= retention.age_max;
            if self.messages.len() <= retention.messages_max && !is_old {
                return;
            }
            self.drop_oldest();
        }
    }

    /// Drops the oldest message. Answers the bytes that were freed.
    pub fn drop_oldest(&mut self) -> usize {
        let Some(oldest) = self.messages.pop_front() else { return 0 };
        self.bytes -= oldest.body.len();
        // What is shared may reach further back than what is stored, and then it must not be given.
        self.shared_runs.clear();
        oldest.body.len()
    }

    /// Everything after `since`.
    pub fn since(&mut self, since: Position, request: RunRequest<'_>) -> Result<Run, Unrecovered> {
        if since.epoch != self.epoch {
            return Err(Unrecovered::Epoch);
        }
        if since.offset > self.top {
            return Err(Unrecovered::TailLost);
        }
        if since.offset.saturating_add(1) < self.first() {
            return Err(Unrecovered::Trimmed);
        }
        let is_it = |shared_runs: &&SharedRun| {
            shared_runs.offset == since.offset && shared_runs.encoding == request.encoding
        };
        if let Some(shared_runs) = self.shared_runs.iter().find(is_it) {
            return Ok(shared_runs.run.clone());
        }
        let run = self.run_after(since.offset, request).ok_or(Unrecovered::TooMuch)?;
        self.shared_runs.retain(|shared_runs| shared_runs.encoding != request.encoding);
        let (offset, encoding) = (since.offset, request.encoding);
        self.shared_runs.push(SharedRun { offset, encoding, run: run.clone() });
        Ok(run)
    }

    /// The run after an offset, if it fits.
    fn run_after(&self, offset: u64, request: RunRequest<'_>) -> Option<Run> {
        let indices = self.indices(offset.saturating_add(1)..self.next_offset());
        let all = indices.len() as u64;
        let dropped = usize::from(cfg!(feature = "break-dropped-tail")).min(indices.len());
        let indices = indices.start..indices.end - dropped;
        let (kind, encoding) = (RunKind::Missed, request.encoding);
        let bytes = framing::run_len(self.events(indices.clone(), request.topic), kind, encoding);
        if bytes > request.bytes_max {
            return None;
        }
        let run = framing::run(self.events(indices, request.topic), kind, encoding, bytes);
        Some(Run { messages: all, ..run })
    }

    /// What a user has not acknowledged, as far as it is stored and may be sent at once: the newest
    /// of it. `acked` is `None` where nobody was told of this history yet: what was before it is not
    /// known.
    pub fn unacknowledged(
        &mut self,
        acked: Option<u64>,
        request: RunRequest<'_>,
    ) -> (Recovery, Run) {
        let wanted = acked.unwrap_or(0).min(self.top);
        let offset = wanted.max(self.first().saturating_sub(1));
        let whole = self.since(Position { epoch: self.epoch, offset }, request);
        let recovery = match (acked, &whole) {
            (None, _) => Recovery::NotRecovered(Unrecovered::Epoch),
            _ if offset > wanted => Recovery::NotRecovered(Unrecovered::Trimmed),
            (_, Ok(run_after)) => Recovery::Recovered { messages: run_after.messages },
            (_, Err(why)) => Recovery::NotRecovered(*why),
        };
        (recovery, whole.unwrap_or_else(|_| self.newest(request)))
    }

    /// The newest messages, as many as fit.
    fn newest(&self, request: RunRequest<'_>) -> Run {
        let mut bytes = 0;
        let newest_first = (0..self.messages.len()).rev();
        let fitting = newest_first.take_while(|index| {
            let event = self.event(*index, request.topic);
            bytes += framing::frame_len(&event, request.encoding);
            bytes <= request.bytes_max
        });
        let fitting = fitting.count() as u64;
        self.run_after(self.top.saturating_sub(fitting), request).unwrap_or_default()
    }

    /// A page of the history, in the order in which it was asked for; fewer messages than that when
    /// they would be too many bytes, but at least one.
    pub fn page(&self, page: Page, request: RunRequest<'_>) -> Result<Run, Unrecovered> {
        let (first, next_offset) = (self.first(), self.next_offset());
        let edge = match page.since {
            Some(since) if since.epoch != self.epoch => return Err(Unrecovered::Epoch),
            Some(since) => Some(since.offset),
            None => None,
        };
        let limit = u64::from(page.limit);
        let range = if page.reverse {
            let end = edge.unwrap_or(next_offset).clamp(first, next_offset);
            end.saturating_sub(limit).max(first)..end
        } else {
            let begin = edge.map_or(first, |edge| edge.saturating_add(1)).clamp(first, next_offset);
            begin..begin.saturating_add(limit).min(next_offset)
        };
        let mut indices: Vec<usize> = self.indices(range).collect();
        if page.reverse {
            indices.reverse();
        }
        let (kind, encoding) = (RunKind::Page, request.encoding);
        let mut bytes = 0;
        let fits = indices.iter().take_while(|index| {
            let event = std::iter::once(self.event(**index, request.topic));
            bytes += framing::run_len(event, kind, encoding) + 1;
            bytes <= request.bytes_max
        });
        let fits = fits.count().max(1).min(indices.len());
        let events = || indices[..fits].iter().map(|index| self.event(*index, request.topic));
        let bytes = framing::run_len(events(), kind, encoding);
        Ok(framing::run(events(), kind, encoding, bytes))
    }

    /// Where the messages of a range of offsets stand, as far as they are stored.
    fn indices(&self, offsets: Range<u64>) -> Range<usize> {
        let first = self.first();
        let index = |offset: u64| {
            let index = usize::try_from(offset.saturating_sub(first)).unwrap_or(usize::MAX);
            index.min(self.messages.len())
        };
        index(offsets.start)..index(offsets.end).max(index(offsets.start))
    }

    fn event<'a>(&'a self, index: usize, topic: &'a TopicName) -> Event<'a> {
        let offset = self.first().saturating_add(index as u64);
        stored_event(topic, &self.messages[index].body, Position { epoch: self.epoch, offset })
    }

    fn events<'a>(
        &'a self,
        indices: Range<usize>,
        topic: &'a TopicName,
    ) -> impl Iterator<Item = Event<'a>> {
        indices.map(move |index| self.event(index, topic))
    }
}

#[cfg(test)]
mod tests;
