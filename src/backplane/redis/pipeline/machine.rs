//! The machine itself: what is in flight and what is refused, on one connection for one user.

use crate::backplane::redis::error_reply::ErrorReply;
use crate::backplane::redis::pipeline::batch::{AnsweredBatch, OutgoingBatch, SentBatch};
use crate::backplane::redis::pipeline::connection::BatchSender;
use crate::backplane::redis::pipeline::item_reply::Refusal;
use crate::backplane::redis::pipeline::reply::{BatchReply, PendingReply};
use redis::{RedisError, RedisResult, Value};
use std::collections::VecDeque;
use std::task::{Context, Poll};
use std::time::Instant;

/// The order in which refused items are sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RetryOrder {
    /// All together, in their order and before anything new, once nothing is in flight that could
    /// overtake them and the last of their pauses is over.
    InOrder,
    /// Each when its own pause is over. They delay nothing else.
    Each,
}

/// Batches of one user on one connection. `I` is what the user has to remember of an item in
/// flight. Outlives connections.
pub(crate) struct BatchPipeline<I, R = PendingReply<Vec<Value>>> {
    batches_max: usize,
    order: RetryOrder,
    /// Oldest first.
    batches: VecDeque<SentBatch<I, R>>,
    /// Items in `batches`.
    in_flight: usize,
    /// Items to be sent again, and not before when. [`RetryOrder::Each`]: by that time.
    refused: VecDeque<(Option<Instant>, I)>,
    /// The latest of those times, in [`RetryOrder::InOrder`].
    retry_at: Option<Instant>,
    /// Since when each answered batch had a refused item.
    refused_since: Option<Instant>,
    /// The batch that was taken last is with its user, who may still call `send_again`.
    is_answer_open: bool,
    is_paused: bool,
    is_redirected: bool,
    /// Why the connection has to be given up, once the user has handled the batch that shows it.
    link_error: Option<RedisError>,
    /// Items of a batch without replies, until [`BatchPipeline::lose_link`].
    unanswered: Vec<I>,
}

impl<I, R: BatchReply> BatchPipeline<I, R> {
    /// Nothing is in flight. At most `batches_max` batches ever are.
    pub(crate) fn new(batches_max: usize, order: RetryOrder) -> BatchPipeline<I, R> {
        BatchPipeline {
            batches_max,
            order,
            batches: VecDeque::new(),
            in_flight: 0,
            refused: VecDeque::new(),
            retry_at: None,
            refused_since: None,
            is_answer_open: false,
            is_paused: false,
            is_redirected: false,
            link_error: None,
            unanswered: Vec::new(),
        }
    }

    // --- what is in it ---

    /// Number of batches in flight.
    pub(crate) fn batches(&self) -> usize {
        self.batches.len()
    }

    /// Number of items in flight.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Whether nothing is in flight.
    pub(crate) fn has_none_in_flight(&self) -> bool {
        self.batches.is_empty() && self.unanswered.is_empty()
    }

    /// Whether the connection has failed to answer a batch.
    pub(crate) fn has_failed(&self) -> bool {
        !self.unanswered.is_empty()
    }

    /// Number of items that are refused and have not been taken to be sent again.
    pub(crate) fn refused(&self) -> usize {
        self.refused.len()
    }

    /// Whether nothing is in flight or refused.
    pub(crate) fn is_idle(&self) -> bool {
        self.has_none_in_flight() && self.refused.is_empty()
    }

    /// Since when each answered batch had a refused item; `None`: the last one had none.
    pub(crate) fn refused_since(&self) -> Option<Instant> {
        self.refused_since
    }

    /// Whether the server has redirected an item (MOVED, ASK) since the last call.
    pub(crate) fn take_redirected(&mut self) -> bool {
        std::mem::take(&mut self.is_redirected)
    }

    // --- sending ---

    /// Stops or resumes sending. Replies are still taken.
    pub(crate) fn set_paused(&mut self, is_paused: bool) {
        self.is_paused = is_paused;
    }

    /// Takes out the refused items that may be sent again, in order. They go in front of what the
    /// user has waiting.
    pub(crate) fn take_due(
        &mut self,
        now: Instant,
    ) -> impl DoubleEndedIterator<Item = I> + ExactSizeIterator {
        let due = match self.order {
            RetryOrder::InOrder => {
                let is_time = self.retry_at.is_none_or(|at| at <= now);
                if is_time && self.batches.is_empty() { self.refused.len() } else { 0 }
            }
            RetryOrder::Each => {
                self.refused.partition_point(|(at, _)| at.is_none_or(|at| at <= now))
            }
        };
        if due == self.refused.len() {
            self.retry_at = None;
        }
        self.refused.drain(..due).map(|(_, item)| item)
    }

    /// Whether a batch may be sent.
    pub(crate) fn may_send(&self) -> bool {
        let is_held_up = self.order == RetryOrder::InOrder && !self.refused.is_empty();
        !self.is_paused && !is_held_up && self.batches.len() < self.batches_max
    }

    /// Sends a batch.
    pub(crate) fn send(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        connection: &impl BatchSender<Reply = R>,
        batch: OutgoingBatch<I>,
    ) {
        assert!(self.batches.len() < self.batches_max, "a user asks before it sends");
        assert!(self.unanswered.is_empty(), "nothing is sent on a lost connection");
        self.in_flight += batch.items.len();
        self.batches.push_back(SentBatch::send(cx, now, connection, batch));
    }

    // --- replies ---

    /// The oldest batch, if its replies have arrived. `Err`: the connection has to be given up.
    pub(crate) fn poll_answered(
        &mut self,
        cx: &mut Context<'_>,
    ) -> RedisResult<Option<AnsweredBatch<I>>> {
        self.close_answer()?;
        let Some(oldest) = self.batches.front_mut() else { return Ok(None) };
        let Poll::Ready(replies) = oldest.reply.poll_batch(cx) else { return Ok(None) };
        let batch = self.batches.pop_front().expect("it was just looked at");
        self.in_flight -= batch.items.len();
        match batch.answer(replies) {
            Ok((answered, link_error)) => {
                self.link_error = link_error;
                self.is_answer_open = true;
                Ok(Some(answered))
            }
            Err((items, error)) => {
                self.unanswered = items;
                Err(error)
            }
        }
    }

    /// The server has refused an item for the moment; it is sent again after the refusal's pause.
    pub(crate) fn send_again(&mut self, item: I, refusal: Refusal, now: Instant) {
        self.send_at(item, now + refusal.pause, now);
        self.is_redirected |= refusal.kind == ErrorReply::Moved;
        if refusal.kind == ErrorReply::Demoted {
            self.link_error = Some(refusal.error.into());
        }
    }

    /// An item is sent again, not before `at`.
    pub(crate) fn send_at(&mut self, item: I, at: Instant, now: Instant) {
        self.refused_since.get_or_insert(now);
        match self.order {
            RetryOrder::InOrder => {
                self.retry_at = self.retry_at.max(Some(at));
                self.refused.push_back((Some(at), item));
            }
            RetryOrder::Each => {
                let index = self.refused.partition_point(|(earlier, _)| *earlier <= Some(at));
                self.refused.insert(index, (Some(at), item));
            }
        }
    }

    /// The user has handled the batch that was taken last.
    fn close_answer(&mut self) -> RedisResult<()> {
        if std::mem::take(&mut self.is_answer_open) && self.refused.is_empty() {
            self.refused_since = None;
        }
        self.link_error.take().map_or(Ok(()), Err)
    }

    // --- what leaves it without a reply ---

    /// The connection is lost. Returns what was in flight, in order: each of these may have been
    /// executed, and its user decides whether it ends or is sent again
    /// ([`BatchPipeline::put_back`]). What was refused was not executed, and stays.
    pub(crate) fn lose_link(&mut self) -> Vec<I> {
        let mut lost = std::mem::take(&mut self.unanswered);
        self.batches.drain(..).for_each(|batch| lost.extend(batch.items));
        self.in_flight = 0;
        (self.retry_at, self.refused_since) = (None, None);
        (self.is_answer_open, self.link_error) = (false, None);
        self.refused.iter_mut().for_each(|(at, _)| *at = None);
        lost
    }

    /// An item of a lost connection is sent again on the next one, after what was refused before.
    pub(crate) fn put_back(&mut self, item: I) {
        let index = self.refused.partition_point(|(at, _)| at.is_none());
        self.refused.insert(index, (None, item));
    }

    /// The refused items, in order.
    pub(crate) fn refused_items(&mut self) -> impl Iterator<Item = &mut I> {
        self.refused.iter_mut().map(|(_, item)| item)
    }

    /// Takes out the first refused item if it is wanted.
    pub(crate) fn pop_refused_if(&mut self, is_wanted: impl FnOnce(&I) -> bool) -> Option<I> {
        let (_, item) = self.refused.front()?;
        if is_wanted(item) { self.refused.pop_front().map(|(_, item)| item) } else { None }
    }

    /// Takes out the refused items that are wanted; both parts keep their order.
    pub(crate) fn extract_refused(&mut self, mut is_wanted: impl FnMut(&I) -> bool) -> Vec<I> {
        if !self.refused.iter().any(|(_, item)| is_wanted(item)) {
            return Vec::new();
        }
        let all = std::mem::take(&mut self.refused);
        let (taken, stay): (Vec<_>, Vec<_>) = all.into_iter().partition(|(_, it)| is_wanted(it));
        self.refused = stay.into();
        if self.refused.is_empty() {
            (self.retry_at, self.refused_since) = (None, None);
        }
        taken.into_iter().map(|(_, item)| item).collect()
    }

    /// The user has nothing waiting. If nothing is in flight or refused either, no reply would show
    /// that the server has stopped refusing.
    pub(crate) fn note_nothing_waits(&mut self) {
        if self.is_idle() {
            self.refused_since = None;
        }
    }
}
