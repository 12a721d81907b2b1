//! The stored messages of one topic, with their positions.
//!
//! A [`MessageLog`] is the history itself on a single node, and a copy of its end where Redis has
//! the history. It keeps messages as envelopes, independent of dialects.
//!
//! A client that returns names its position; [`MessageLog::since`] returns everything after it as
//! one run in the client's encoding. After a mass disconnect thousands have the same position, so
//! runs are shared ([`RecentRuns`]).
//!
//! Invariant: offsets of one epoch have no gap: the log stores `first..=top`. Offsets go up to
//! [`Position::NUMBER_MAX`], which is checked where a position comes from outside; no sum here
//! overflows, whatever a log is made with.

use crate::backplane::envelope::stored_event;
use crate::backplane::history::recent_runs::{RecentRuns, RunKey};
use crate::framing;
use crate::ids::{Position, TopicName};
use crate::protocol::dialect::Encoding;
use crate::protocol::run::{Run, RunKind};
use crate::protocol::{Event, Page, Recovery, Unrecovered};
use bytes::Bytes;
use std::collections::VecDeque;
use std::ops::Range;
use std::time::{Duration, Instant};

/// The end of one topic's history.
#[derive(Debug)]
pub struct MessageLog {
    epoch: u64,
    top: u64,
    messages: VecDeque<StoredMessage>,
    bytes: usize,
}

#[derive(Debug)]
struct StoredMessage {
    /// See `envelope.rs`.
    body: Bytes,
    at: Instant,
}

/// A stored message beside its envelope: its place here, and its allocation.
pub(in crate::backplane) const STORED_BYTES: usize = size_of::<StoredMessage>() + 16;

/// What a run is made for.
#[derive(Clone, Copy, Debug)]
pub struct RunRequest<'a> {
    /// The topic of the log.
    pub topic: &'a TopicName,
    /// The encoding of the run.
    pub encoding: Encoding,
    /// Bytes of the run, at most.
    pub bytes_max: usize,
}

/// How much is stored.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// Number of messages, at most.
    pub messages_max: usize,
    /// Age of a message, at most.
    pub age_max: Duration,
}

/// What is known of a user's acknowledgements when it connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AckedUpTo {
    /// The user has acknowledged up to here; 0: it was given a position of this history.
    Offset(u64),
    /// The user was given no position yet, and nothing shows that there was a queue before.
    NewUser,
    /// The user had a queue before this history, with messages that it had not acknowledged.
    QueueLost,
}

impl MessageLog {
    /// An empty log whose last offset was `top`: 0 for a history that begins now.
    pub fn new(epoch: u64, top: u64) -> MessageLog {
        MessageLog { epoch, top, messages: VecDeque::new(), bytes: 0 }
    }

    /// Position of the last message.
    pub fn position(&self) -> Position {
        Position { epoch: self.epoch, offset: self.top }
    }

    /// Position of the next message.
    pub fn next(&self) -> Position {
        let is_reused = cfg!(feature = "break-offset-reuse") && self.top % 8 == 7;
        Position { epoch: self.epoch, offset: self.top.saturating_add(u64::from(!is_reused)) }
    }

    /// Offset of the oldest stored message; one after the last offset if none is stored.
    pub fn first(&self) -> u64 {
        self.next_offset().saturating_sub(self.messages.len() as u64)
    }

    /// One after the last offset.
    fn next_offset(&self) -> u64 {
        self.top.saturating_add(1)
    }

    /// Bytes of the stored messages, with what each takes beside its envelope.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether no message is stored.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Stores a message at [`MessageLog::next`], and trims.
    pub fn push(&mut self, body: Bytes, retention: Retention, now: Instant) {
        self.top = self.next_offset();
        self.bytes += STORED_BYTES + body.len();
        self.messages.push_back(StoredMessage { body, at: now });
        self.trim(retention, now);
    }

    /// Stores the message before [`MessageLog::first`], which was read later.
    pub fn push_front(&mut self, body: Bytes, now: Instant) {
        self.bytes += STORED_BYTES + body.len();
        self.messages.push_front(StoredMessage { body, at: now });
    }

    /// The same history continues under another epoch.
    pub fn adopt(&mut self, epoch: u64) {
        self.epoch = epoch;
    }

    /// Drops all messages and keeps the position. Returns the bytes freed.
    pub fn forget_messages(&mut self) -> usize {
        self.messages = VecDeque::new();
        std::mem::take(&mut self.bytes)
    }

    /// The envelopes of all stored messages, oldest first.
    pub fn bodies(&self) -> impl Iterator<Item = &Bytes> {
        self.messages.iter().map(|entry| &entry.body)
    }

    /// Drops messages beyond the retention.
    pub fn trim(&mut self, retention: Retention, now: Instant) {
        while let Some(oldest) = self.messages.front() {
            let is_old = now.saturating_duration_since(oldest.at) >= retention.age_max;
            if self.messages.len() <= retention.messages_max && !is_old {
                return;
            }
            self.drop_oldest();
        }
    }

    /// Drops the oldest message. Returns the bytes freed.
    pub fn drop_oldest(&mut self) -> usize {
        let Some(oldest) = self.messages.pop_front() else { return 0 };
        let bytes = STORED_BYTES + oldest.body.len();
        self.bytes -= bytes;
        bytes
    }

    /// The run of all messages after `since`. Fails if `since` is of another epoch, beyond the end,
    /// before the oldest stored message, or if the run is larger than `bytes_max`.
    pub fn since(
        &self,
        since: Position,
        request: RunRequest<'_>,
        runs: &mut RecentRuns,
    ) -> Result<Run, Unrecovered> {
        if since.epoch != self.epoch {
            return Err(Unrecovered::Epoch);
        }
        if since.offset > self.top {
            return Err(Unrecovered::TailLost);
        }
        if since.offset.saturating_add(1) < self.first() {
            return Err(Unrecovered::Trimmed);
        }
        let (topic, encoding) = (request.topic.clone(), request.encoding);
        let key = RunKey { topic, since, top: self.top, encoding };
        if let Some(run) = runs.find(&key) {
            return Ok(run);
        }
        let run = self.run_after(since.offset, request).ok_or(Unrecovered::TooMuch)?;
        if run.messages > 0 {
            runs.insert(key, &run);
        }
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

    /// The run of a user's unacknowledged messages, or of the newest of them that fit.
    pub fn unacknowledged(
        &self,
        acked: AckedUpTo,
        request: RunRequest<'_>,
        runs: &mut RecentRuns,
    ) -> (Recovery, Run) {
        let known = match acked {
            AckedUpTo::Offset(offset) => offset,
            AckedUpTo::NewUser | AckedUpTo::QueueLost => 0,
        };
        let wanted = known.min(self.top);
        let offset = wanted.max(self.first().saturating_sub(1));
        let whole = self.since(Position { epoch: self.epoch, offset }, request, runs);
        let recovery = match (acked, &whole) {
            (AckedUpTo::QueueLost, _) => Recovery::NotRecovered(Unrecovered::Epoch),
            _ if offset > wanted => Recovery::NotRecovered(Unrecovered::Trimmed),
            (AckedUpTo::NewUser, Ok(_)) => Recovery::NotAsked,
            (_, Ok(run_after)) => Recovery::Recovered { messages: run_after.messages },
            (_, Err(why)) => Recovery::NotRecovered(*why),
        };
        (recovery, whole.unwrap_or_else(|_| self.newest(request)))
    }

    /// The newest messages that fit.
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

    /// A page of the history in the requested order; cut at `bytes_max`, but with at least one
    /// message.
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

    /// Indices of the stored messages in a range of offsets.
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
