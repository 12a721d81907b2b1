//! How fast connections are accepted, and after how many seconds a refused client should retry.
//!
//! A [`TokenBucket`] of tokens, one an accept, that fills at `accepts_per_s_max` and holds
//! `accepts_burst_max`.
//!
//! Each refused client gets a `Retry-After`, and its values go round: clients that come all at once
//! do not come back all at once. The more were refused, the longer the round, up to [`RETRY_S_MAX`],
//! so that about as many retry in a second as can be accepted.
//!
//! Invariant: pure; time is an argument, in nanoseconds since any fixed moment.

use crate::policy::token_bucket::TokenBucket;

/// The largest `Retry-After`, in seconds.
pub(super) const RETRY_S_MAX: usize = 30;
/// The round when few were refused.
const ROUND_S_MIN: u64 = 4;
const SECOND_NS: u64 = 1_000_000_000;

/// The accept rate of one shard.
#[derive(Debug)]
pub(super) struct Admission {
    bucket: TokenBucket,
    /// When all refused clients could have been accepted, one an interval.
    served_ns: u64,
    refused: u64,
}

impl Admission {
    /// A full bucket: so many connections a second, so many at once.
    pub(super) fn new(per_s_max: u64, burst_max: u64) -> Admission {
        Admission { bucket: TokenBucket::new(per_s_max, burst_max), served_ns: 0, refused: 0 }
    }

    /// Takes a token for a new connection. `false`: there is none, refuse it.
    #[must_use]
    pub(super) fn admit(&mut self, now_ns: u64) -> bool {
        self.bucket.take(now_ns)
    }

    /// Counts a refusal, for whatever reason. In how many seconds the client should retry: from 1 to
    /// [`RETRY_S_MAX`].
    #[must_use]
    pub(super) fn retry_after_s(&mut self, now_ns: u64) -> usize {
        self.served_ns = self.served_ns.max(now_ns) + self.bucket.interval_ns();
        let queue_s = (self.served_ns - now_ns) / SECOND_NS;
        let round_s = (ROUND_S_MIN + queue_s).min(RETRY_S_MAX as u64);
        self.refused += 1;
        1 + (self.refused % round_s) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn a_herd_is_not_asked_back_in_one_second() {
        let mut admission = Admission::new(100_000, 1);
        let mut back = [0; RETRY_S_MAX + 1];
        (0..1000).for_each(|_| back[admission.retry_after_s(0)] += 1);
        assert_eq!(back[0], 0);
        assert_eq!(back[1..=4], [250; 4]);
    }

    #[test]
    fn the_more_are_refused_the_longer_they_are_spread_and_never_beyond_the_most() {
        let mut admission = Admission::new(100, 1);
        let mut back = [0_u64; RETRY_S_MAX + 1];
        (0..2000).for_each(|_| back[admission.retry_after_s(0)] += 1);
        assert!(back.iter().all(|come| *come <= 400), "{back:?}");
        assert!(back[20] > 0);
        (0..100_000).for_each(|_| assert!(admission.retry_after_s(0) <= RETRY_S_MAX));
        // All of them have retried by then: the round is short again.
        let later = 10_000 * SECOND_NS;
        assert!((0..1000).all(|n| admission.retry_after_s(later + n * 10 * MS) <= 5));
    }
}
