//! What busy connections have used of their rates; see `shard/rates.rs`.

use crate::ids::ConnId;
use crate::policy::limits::Limits;
use crate::policy::token_bucket::TokenRate;

/// In [`crate::shard::conn::Conn::usage`]: the connection has used nothing.
pub(in crate::shard) const UNUSED: u32 = u32::MAX;

/// A bucket holds at least what comes in a fifth of a second: the shard's clock goes by steps of a
/// tenth, and what does not fit into a bucket between two of them is lost.
const BURSTS_PER_S_MAX: u64 = 5;

/// So much room for further entries stays when entries are dropped.
const SPARE_ENTRIES: usize = 4096;

/// What is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::shard) enum RateRule {
    /// Messages, control frames included.
    Messages,
    /// Bytes as they are read.
    Bytes,
    /// Joins of rooms.
    Joins,
    /// Requests for history and presence.
    Requests,
    /// Tokens to be checked.
    Tokens,
}

impl RateRule {
    pub(in crate::shard) const ALL: [RateRule; 5] = [
        RateRule::Messages,
        RateRule::Bytes,
        RateRule::Joins,
        RateRule::Requests,
        RateRule::Tokens,
    ];
}

/// The buckets of one connection.
#[derive(Debug)]
pub(in crate::shard) struct RateUsage {
    pub(in crate::shard) conn: ConnId,
    /// When the bucket of each rule is full again.
    pub(in crate::shard) full_ns: [u64; RateRule::ALL.len()],
    /// Messages and bytes of it since it was idle.
    pub(in crate::shard) messages: u64,
    pub(in crate::shard) bytes: u64,
    /// Whether the connection is not read until its buckets have tokens.
    pub(in crate::shard) is_paused: bool,
    /// Since when it has been paused again and again.
    pub(in crate::shard) limited_since_ms: u64,
    /// When it was paused last, or looked at while it was.
    pub(in crate::shard) limited_ms: Option<u64>,
    /// When it last received an error for that.
    pub(in crate::shard) notified_ms: Option<u64>,
}

/// The rates of one connection, and what those connections have used that are not idle.
#[derive(Debug)]
pub(in crate::shard) struct Rates {
    rates: [TokenRate; RateRule::ALL.len()],
    usages: Vec<RateUsage>,
    /// Those that are paused.
    pub(in crate::shard) paused: Vec<ConnId>,
    /// Which entry is looked at next.
    pub(in crate::shard) next: usize,
}

impl Rates {
    /// The rates of every connection.
    pub(in crate::shard) fn new(limits: &Limits) -> Rates {
        let rate = |per_s: u64, burst: u64| {
            TokenRate::new(per_s, burst.max(per_s.div_ceil(BURSTS_PER_S_MAX)))
        };
        let rates = RateRule::ALL.map(|rule| match rule {
            RateRule::Messages => rate(limits.messages_per_s_max, limits.messages_burst_max),
            RateRule::Bytes => {
                rate(limits.received_bytes_per_s_max, limits.received_bytes_burst_max)
            }
            RateRule::Joins => rate(limits.joins_per_s_max, limits.joins_burst_max),
            RateRule::Requests => rate(limits.requests_per_s_max, limits.requests_burst_max),
            RateRule::Tokens => rate(limits.token_checks_per_s_max, limits.token_checks_burst_max),
        });
        Rates { rates, usages: Vec::new(), paused: Vec::new(), next: 0 }
    }

    /// The rate of a rule.
    #[inline]
    pub(in crate::shard) fn rate(&self, rule: RateRule) -> TokenRate {
        self.rates[rule as usize]
    }

    /// Connections that have an entry.
    pub(in crate::shard) fn len(&self) -> usize {
        self.usages.len()
    }

    /// The entry at `index`.
    pub(in crate::shard) fn get(&self, index: u32) -> Option<&RateUsage> {
        self.usages.get(index as usize)
    }

    /// The entry at `index`.
    #[inline]
    pub(in crate::shard) fn get_mut(&mut self, index: u32) -> Option<&mut RateUsage> {
        self.usages.get_mut(index as usize)
    }

    /// Adds an entry with full buckets, and answers its index.
    pub(in crate::shard) fn add(&mut self, conn: ConnId) -> u32 {
        self.usages.push(RateUsage {
            conn,
            full_ns: [0; RateRule::ALL.len()],
            messages: 0,
            bytes: 0,
            is_paused: false,
            limited_since_ms: 0,
            limited_ms: None,
            notified_ms: None,
        });
        (self.usages.len() - 1) as u32
    }

    /// Removes an entry. Answers which connection has its index from now on.
    #[must_use]
    pub(in crate::shard) fn remove(&mut self, index: u32) -> Option<ConnId> {
        self.usages.swap_remove(index as usize);
        self.usages.get(index as usize).map(|moved| moved.conn)
    }

    /// Whether all buckets of an entry have a token.
    pub(in crate::shard) fn has_tokens(&self, usage: &RateUsage, now_ns: u64) -> bool {
        self.rates.iter().zip(usage.full_ns).all(|(rate, full_ns)| rate.has_token(full_ns, now_ns))
    }

    /// Gives memory back that a crowd has needed.
    pub(in crate::shard) fn shrink(&mut self) {
        if self.usages.capacity() > 8 * self.usages.len().max(SPARE_ENTRIES) {
            self.usages.shrink_to(2 * self.usages.len().max(SPARE_ENTRIES));
        }
    }
}
