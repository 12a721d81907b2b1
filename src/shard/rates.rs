//! How much one connection may ask for in a second.
//!
//! Five rules, each a rate and a burst: messages, bytes, joins, requests for history and presence,
//! tokens to be checked.
//! What came is carried out and then charged, so nothing that was read is dropped for its rate. A
//! connection without tokens is paused (`pause.rs`): its socket is not read until all its buckets have
//! some, and the kernel lets the client wait. One message may ask several things; what it asks of
//! joins and requests beyond the last token is refused with `rate_limited`.
//!
//! ```text
//!   below its rates ──► paused, read on, paused … ──1 s──► error rate_limited, once a second
//!         ▲                        │                                  │
//!         └── not paused for 1 s ──┘         rate_limited_timeout_ms ─┴─► close 1008
//! ```
//!
//! Rooms in the URL cost nothing: how many a connection names is limited, and how many connect.
//!
//! A bucket that is full equals none: only connections that have sent something in the last moments
//! have an entry, and `Conn::usage` is its index, so a message costs no hash. Idle entries are dropped
//! by the tick. Time is the shard's clock, which goes by ticks.
//!
//! Invariant: `Conn::usage` is `UNUSED` or the index of an entry that names the connection.

use crate::ids::ConnId;
use crate::link::inspect::UsageReport;
use crate::protocol::{ErrorCode, Event};
use crate::shard::command_error::CommandError;
use crate::shard::conn::CloseReason;
use crate::shard::state::Shard;
use crate::shard::state::rates::{RateRule, UNUSED};

/// A connection that was not paused for so long keeps its rates.
const REST_MS: u64 = 1000;
/// From the first pause to the first error, and from one error to the next.
const NOTICE_INTERVAL_MS: u64 = 1000;
/// Entries looked at in a tick: so many, and an eighth of all.
const LOOKS_MIN: usize = 1024;

impl Shard {
    /// Takes tokens of a connection. Without tokens for more it is paused.
    #[inline]
    pub(super) fn charge(&mut self, conn: ConnId, rule: RateRule, tokens: u64) {
        let rate = self.rates.rate(rule);
        if rate.is_unlimited() {
            return;
        }
        let now_ns = self.rates_now_ns();
        let Some(c) = self.conns.get_mut(conn.0).filter(|c| c.is_open()) else { return };
        if c.usage == UNUSED {
            c.usage = self.rates.add(conn);
        }
        let usage = self.rates.get_mut(c.usage).expect("an index that a connection has");
        match rule {
            RateRule::Messages => usage.messages += tokens,
            RateRule::Bytes => usage.bytes += tokens,
            RateRule::Joins | RateRule::Requests | RateRule::Tokens => {}
        }
        let full_ns = &mut usage.full_ns[rule as usize];
        *full_ns = rate.charge(*full_ns, now_ns, tokens);
        if !rate.has_token(*full_ns, now_ns) {
            self.limit(conn, rule);
        }
    }

    /// Takes a token of a connection for one of the requests in a message.
    pub(super) fn take_token(&mut self, conn: ConnId, rule: RateRule) -> Result<(), CommandError> {
        let usage = self.conns.get(conn.0).and_then(|c| self.rates.get(c.usage));
        let full_ns = usage.map_or(0, |usage| usage.full_ns[rule as usize]);
        if self.rates.rate(rule).has_token(full_ns, self.rates_now_ns()) {
            self.charge(conn, rule, 1);
            return Ok(());
        }
        *self.limited_counter(rule) += 1;
        Err(CommandError(
            ErrorCode::RateLimited,
            "one message asks for more than may be asked at once",
        ))
    }

    /// Whether a connection is paused because of a rate.
    pub(super) fn is_rate_limited(&self, conn: ConnId) -> bool {
        let usage = self.conns.get(conn.0).and_then(|c| self.rates.get(c.usage));
        usage.is_some_and(|usage| usage.is_paused)
    }

    /// What a connection has sent since it was idle, and for how long it has been paused again and
    /// again.
    pub(super) fn usage_of(&self, usage: u32) -> UsageReport {
        let Some(usage) = self.rates.get(usage) else { return UsageReport::default() };
        let now_ms = self.life.now_ms;
        let is_limited = usage.limited_ms.is_some_and(|at_ms| now_ms <= at_ms + REST_MS);
        let limited_ms = now_ms.saturating_sub(usage.limited_since_ms);
        UsageReport {
            messages: usage.messages,
            bytes: usage.bytes,
            limited_ms: if is_limited { limited_ms } else { 0 },
        }
    }

    /// A connection uses nothing more.
    pub(super) fn forget_usage(&mut self, conn: ConnId) {
        let Some(c) = self.conns.get_mut(conn.0) else { return };
        let index = std::mem::replace(&mut c.usage, UNUSED);
        if index == UNUSED {
            return;
        }
        if let Some(moved) = self.rates.remove(index) {
            self.conns.get_mut(moved.0).expect("an entry names a connection").usage = index;
        }
    }

    /// Time has passed: paused connections are read again, notified or closed, and entries of idle
    /// ones are dropped.
    pub(super) fn look_at_rates(&mut self) {
        let mut paused = std::mem::take(&mut self.rates.paused);
        paused.retain(|conn| self.stays_limited(*conn));
        self.rates.paused = paused;
        for _ in 0..LOOKS_MIN.max(self.rates.len() / 8) {
            let next = self.rates.next as u32;
            let Some(usage) = self.rates.get(next) else {
                self.rates.next = 0;
                break;
            };
            let (now_ms, now_ns) = (self.life.now_ms, self.rates_now_ns());
            let is_full = usage.full_ns.iter().all(|full_ns| *full_ns <= now_ns);
            let has_rested = usage.limited_ms.is_none_or(|at_ms| now_ms > at_ms + REST_MS);
            match is_full && has_rested && !usage.is_paused {
                true => self.forget_usage(usage.conn),
                false => self.rates.next += 1,
            }
        }
        self.rates.shrink();
        self.counters.rated_connections = self.rates.len() as u64;
    }

    /// A connection has no token for more of this.
    #[cold]
    fn limit(&mut self, conn: ConnId, rule: RateRule) {
        let now_ms = self.life.now_ms;
        let c = self.conns.get_mut(conn.0).expect("it was just charged");
        let usage = self.rates.get_mut(c.usage).expect("an index that a connection has");
        if usage.is_paused {
            return;
        }
        usage.is_paused = true;
        if usage.limited_ms.is_none_or(|at_ms| now_ms > at_ms + REST_MS) {
            usage.limited_since_ms = now_ms;
        }
        usage.limited_ms = Some(now_ms);
        self.rates.paused.push(conn);
        *self.limited_counter(rule) += 1;
        self.pause(conn);
    }

    /// Looks at a paused connection; answers whether it stays paused.
    fn stays_limited(&mut self, conn: ConnId) -> bool {
        let (now_ms, now_ns) = (self.life.now_ms, self.rates_now_ns());
        let Some(c) = self.conns.get(conn.0).filter(|c| c.is_open()) else { return false };
        let Some(usage) = self.rates.get(c.usage).filter(|usage| usage.is_paused) else {
            return false;
        };
        let limited_ms = now_ms.saturating_sub(usage.limited_since_ms);
        let timeout_ms = self.limits.rate_limited_timeout_ms;
        if timeout_ms > 0 && limited_ms >= timeout_ms {
            self.begin_close(conn, CloseReason::RateLimited);
            return false;
        }
        let has_tokens = self.rates.has_tokens(usage, now_ns);
        let since_ms = usage.notified_ms.unwrap_or(0).max(usage.limited_since_ms);
        let usage = self.rates.get_mut(c.usage).expect("it was just looked at");
        usage.limited_ms = Some(now_ms);
        usage.is_paused = !has_tokens;
        if now_ms.saturating_sub(since_ms) >= NOTICE_INTERVAL_MS {
            usage.notified_ms = Some(now_ms);
            self.notify_limited(conn);
        }
        if has_tokens {
            self.resume(conn);
        }
        !has_tokens
    }

    fn notify_limited(&mut self, conn: ConnId) {
        if !self.encoding_of(conn).dialect().has_topics() {
            return; // It has no words for that.
        }
        let message = "this connection sends faster than it may, and is read more slowly";
        self.say(conn, &Event::Error { id: None, code: ErrorCode::RateLimited, message });
    }

    fn limited_counter(&mut self, rule: RateRule) -> &mut u64 {
        match rule {
            RateRule::Messages => &mut self.counters.limited_messages,
            RateRule::Bytes => &mut self.counters.limited_bytes,
            RateRule::Joins => &mut self.counters.limited_joins,
            RateRule::Requests => &mut self.counters.limited_requests,
            RateRule::Tokens => &mut self.counters.limited_tokens,
        }
    }

    fn rates_now_ns(&self) -> u64 {
        self.life.now_ms.saturating_mul(1_000_000)
    }

    /// Every entry and its connection name each other; for tests.
    #[cfg(any(test, debug_assertions))]
    pub(super) fn check_rates(&self) {
        let rated = self.conns.iter().filter(|(_, c)| c.usage != UNUSED);
        assert_eq!(rated.count(), self.rates.len(), "as many entries as indices");
        for index in 0..self.rates.len() as u32 {
            let usage = self.rates.get(index).expect("it is below the length");
            let c = self.conns.get(usage.conn.0).expect("an entry names a connection");
            assert_eq!(c.usage, index, "and the connection names the entry");
            let is_paused = self.is_paused(usage.conn);
            assert!(!usage.is_paused || !c.is_open() || is_paused, "it is not read");
            assert!(!usage.is_paused || !c.is_open() || self.rates.paused.contains(&usage.conn));
        }
    }
}
