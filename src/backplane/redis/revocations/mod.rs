//! Revocations of tokens in Redis, where each node reads them.
//!
//! They are on the server that has the messages to everybody, in one slot: a hash, and the order of
//! the changes (`lua/revoke.lua`). Each node asks every [`READ_EVERY`] for what changed after the last
//! one that it has read, and at once when the server is back: an order that is missed does not exist,
//! and a node that was down reads all of them before it is ready. A node that finds its last one
//! missing reads all, and puts back what Redis lacks ([`reading`]).
//!
//! Invariant: one read is in flight, and at most [`WAITING_MAX`] orders; each order is answered once.
//! The node is not ready before it has read all of them once.

mod reading;
mod scripts;

use crate::backplane::local::Local;
use crate::backplane::log_throttle::LogThrottle;
use crate::backplane::redis::names::Names;
use crate::backplane::redis::pipeline::{PendingReply, execute, poll_reply, send};
use crate::backplane::redis::topology::routes::ServerRoutes;
use crate::ids::TopicName;
use crate::link::{RevokeOutcome, RevokeRequest};
use crate::policy::revocations::Revocation;
use reading::{ChangePage, ChangePageError, Reading};
use redis::aio::MultiplexedConnection;
use redis::{Pipeline, Value};
use std::collections::VecDeque;
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How often the changes are read.
const READ_EVERY: Duration = Duration::from_millis(250);
/// More than the API carries out at a time.
const WAITING_MAX: usize = 64;
/// What is put back in one command.
const RESTORED_AT_ONCE: usize = 64;

type Reply = PendingReply<Vec<Value>>;

/// Owned by [`crate::backplane::redis::RedisTransport`].
pub(super) struct RedisRevocations {
    entries_max: usize,
    /// Each with its reply, once it was sent.
    orders: VecDeque<(Box<RevokeRequest>, Option<Reply>)>,
    reading: Reading,
    reply: Option<Reply>,
    read_at: Instant,
    /// What Redis lacks.
    restore: Vec<Revocation>,
    restoring: Option<Reply>,
    /// Whether all of them were read once.
    is_loaded: bool,
    unreadable: u64,
    refused: u64,
    log: LogThrottle,
}

impl RedisRevocations {
    /// Nothing is known.
    pub(super) fn new(entries_max: usize) -> RedisRevocations {
        RedisRevocations {
            entries_max,
            orders: VecDeque::new(),
            reading: Reading::default(),
            reply: None,
            read_at: Instant::now(),
            restore: Vec::new(),
            restoring: None,
            is_loaded: false,
            unreadable: 0,
            refused: 0,
            log: LogThrottle::default(),
        }
    }

    /// Takes an order, unless too many wait.
    pub(super) fn push(&mut self, order: Box<RevokeRequest>) {
        match self.orders.len() < WAITING_MAX {
            true => self.orders.push_back((order, None)),
            false => order.reply.call(RevokeOutcome::Unavailable),
        }
    }

    /// Servers went up or down, or topics moved.
    pub(super) fn hurry(&mut self, now: Instant) {
        self.read_at = now;
    }

    /// Whether all of them were read once.
    pub(super) fn is_loaded(&self) -> bool {
        self.is_loaded
    }

    /// Whether every order has been answered.
    pub(super) fn is_idle(&self) -> bool {
        self.orders.is_empty()
    }

    /// Makes progress. Whether there was anything to do.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        route: &ServerRoutes,
        names: &Names,
        local: &mut Local,
    ) -> bool {
        let cmd = route.cmd(route.server_of(TopicName::ALL)).cloned();
        let mut is_busy = self.poll_orders(cx, cmd.as_ref(), names, local);
        is_busy |= self.poll_read(cx, now, cmd.as_ref(), names, local);
        is_busy | self.poll_restore(cx, now, cmd.as_ref(), names)
    }

    /// Writes its counters.
    pub(super) fn measure(&mut self, local: &mut Local) {
        local.counters.revocations_unreadable += std::mem::take(&mut self.unreadable);
        local.counters.revocations_refused += std::mem::take(&mut self.refused);
    }

    /// Sends what was asked, and answers.
    fn poll_orders(
        &mut self,
        cx: &mut Context<'_>,
        cmd: Option<&MultiplexedConnection>,
        names: &Names,
        local: &mut Local,
    ) -> bool {
        let mut is_busy = false;
        for _ in 0..self.orders.len() {
            let (order, reply) = self.orders.pop_front().expect("they were just counted");
            let mut reply = match (reply, cmd) {
                (Some(reply), _) => reply,
                (None, None) => {
                    is_busy = true;
                    order.reply.call(RevokeOutcome::Unavailable);
                    continue;
                }
                (None, Some(cmd)) => {
                    is_busy = true;
                    let one = std::slice::from_ref(&order.revocation);
                    ask(cx, cmd, scripts::revoke(names, self.entries_max, one))
                }
            };
            match poll_reply(&mut reply, cx) {
                Poll::Pending => self.orders.push_back((order, Some(reply))),
                Poll::Ready(answers) => {
                    is_busy = true;
                    let outcome = outcome_of(answers.as_deref());
                    self.end(*order, outcome, local);
                }
            }
        }
        is_busy
    }

    fn end(&mut self, order: RevokeRequest, outcome: RevokeOutcome, local: &mut Local) {
        match outcome {
            // Here it holds at once; the others read it.
            RevokeOutcome::Stored => _ = local.revoke(&order.revocation),
            RevokeOutcome::Full => self.refused += 1,
            RevokeOutcome::Unavailable | RevokeOutcome::Unknown => {}
        }
        order.reply.call(outcome);
    }

    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        cmd: Option<&MultiplexedConnection>,
        names: &Names,
        local: &mut Local,
    ) -> bool {
        let Some(reply) = &mut self.reply else {
            let Some(cmd) = cmd.filter(|_| now >= self.read_at) else { return false };
            let (number, subject) = self.reading.last();
            self.reply = Some(ask(cx, cmd, scripts::changes(names, number, subject)));
            return true;
        };
        let Poll::Ready(answers) = poll_reply(reply, cx) else { return false };
        self.reply = None;
        self.read_at = now + READ_EVERY;
        let page = match answers {
            Ok(mut answers) => answers.pop().map(ChangePage::read),
            // The server decides whether its link is up.
            Err(_) => return true,
        };
        match page {
            Some(Ok(page)) => self.take_page(page, now, local),
            Some(Err(ChangePageError::Foreign(why))) => self.warn(&why, names, now),
            Some(Err(ChangePageError::NotNow)) => {}
            None => {}
        }
        true
    }

    fn take_page(&mut self, page: ChangePage, now: Instant, local: &mut Local) {
        self.unreadable += page.unreadable;
        let now_s = now_unix_s();
        for (order, _) in page.entries.iter().filter(|(order, _)| order.until_s > now_s) {
            local.revoke(order);
        }
        if !self.reading.take(page) {
            self.read_at = now; // there are more
            return;
        }
        self.is_loaded = true;
        if let Some(seen) = self.reading.take_seen() {
            let known = local.revocations().filter(|order| order.until_s > now_s);
            self.restore = known.filter(|order| !seen.contains(&order.subject.key())).collect();
        }
    }

    /// Puts back what Redis lacks. What is lost on the way is missing at the next reading of all.
    fn poll_restore(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        cmd: Option<&MultiplexedConnection>,
        names: &Names,
    ) -> bool {
        if let Some(reply) = &mut self.restoring {
            let Poll::Ready(answers) = poll_reply(reply, cx) else { return false };
            self.restoring = None;
            if !matches!(answers.as_deref(), Ok([Value::Int(_)])) {
                self.restore.clear();
                self.reading = Reading::default();
                self.read_at = now + READ_EVERY;
            }
            return true;
        }
        let Some(cmd) = cmd.filter(|_| !self.restore.is_empty()) else { return false };
        let from = self.restore.len().saturating_sub(RESTORED_AT_ONCE);
        let some = self.restore.split_off(from);
        tracing::info!(revocations = some.len(), "Redis lacks revocations: they are put back");
        self.restoring = Some(ask(cx, cmd, scripts::revoke(names, self.entries_max, &some)));
        true
    }

    fn warn(&mut self, why: &str, names: &Names, now: Instant) {
        self.unreadable += 1;
        if let Some(suppressed) = self.log.is_due(now) {
            let keys = names.revocation_keys();
            let keys = keys.join(" ");
            tracing::warn!(
                why,
                suppressed,
                "revocations cannot be read from Redis: this node knows only those that it has read. \
                 If another program has written there, correct it with DEL {keys}"
            );
        }
    }
}

fn ask(cx: &mut Context<'_>, cmd: &MultiplexedConnection, command: redis::Cmd) -> Reply {
    let mut pipeline = Pipeline::new();
    pipeline.add_command(command);
    send(cx, execute(cmd.clone(), pipeline))
}

fn outcome_of(answers: Result<&[Value], &redis::RedisError>) -> RevokeOutcome {
    match answers {
        Ok([Value::Int(0)]) => RevokeOutcome::Stored,
        Ok([Value::Int(_)]) => RevokeOutcome::Full,
        Ok(_) => RevokeOutcome::Unavailable, // The server refused it.
        Err(_) => RevokeOutcome::Unknown,
    }
}

fn now_unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
