//! A bucket of tokens: so many a second, and so many at once.
//!
//! It is one number: the moment at which it would be full again, which every token that is taken moves
//! on. So an idle owner does nothing for its bucket, and one that is full again equals one that was
//! never there: it need not be stored.
//!
//! [`TokenRate`] is what many buckets have in common. [`TokenBucket`] is one bucket with its rate.
//!
//! Invariant: pure; time is an argument, in nanoseconds since any fixed moment.

const SECOND_NS: u64 = 1_000_000_000;

/// How fast a bucket fills, and how much it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenRate {
    /// Tokens a second; 0: as many as are asked for.
    per_s: u64,
    /// How long a token takes to come.
    token_ns: u64,
    /// How long an empty bucket takes to be full.
    whole_ns: u64,
}

impl TokenRate {
    /// So many tokens a second (0: no limit), and so many at once.
    pub fn new(per_s: u64, burst: u64) -> TokenRate {
        let mut rate = TokenRate { per_s, token_ns: 0, whole_ns: 0 };
        rate.token_ns = rate.time_ns(1);
        rate.whole_ns = rate.time_ns(burst.max(1));
        rate
    }

    /// Whether there is no limit.
    #[inline]
    pub fn is_unlimited(&self) -> bool {
        self.per_s == 0
    }

    /// How long so many tokens take to come, in nanoseconds.
    pub fn time_ns(&self, tokens: u64) -> u64 {
        let ns = u128::from(tokens) * u128::from(SECOND_NS);
        ns.checked_div(u128::from(self.per_s))
            .map_or(0, |ns| ns.min(u128::from(u64::MAX / 2)) as u64)
    }

    /// Whether a whole token is in the bucket that is full at `full_ns`.
    #[inline]
    pub fn has_token(&self, full_ns: u64, now_ns: u64) -> bool {
        full_ns.saturating_sub(now_ns).saturating_add(self.token_ns) <= self.whole_ns
    }

    /// Takes tokens, also more than are there: the bucket is in debt then. Answers when it is full.
    #[inline]
    #[must_use]
    pub fn charge(&self, full_ns: u64, now_ns: u64, tokens: u64) -> u64 {
        let time_ns = if tokens == 1 { self.token_ns } else { self.time_ns(tokens) };
        full_ns.max(now_ns).saturating_add(time_ns)
    }
}

/// Permits that refill with time. Owned by the thread that asks.
#[derive(Debug)]
pub struct TokenBucket {
    rate: TokenRate,
    /// When it will be full, if nothing more is taken.
    full_ns: u64,
}

impl TokenBucket {
    /// A full one: so many tokens a second, so many at once.
    pub fn new(per_s: u64, burst: u64) -> TokenBucket {
        TokenBucket { rate: TokenRate::new(per_s.clamp(1, SECOND_NS), burst), full_ns: 0 }
    }

    /// How long a token takes to come, in nanoseconds.
    pub fn interval_ns(&self) -> u64 {
        self.rate.token_ns
    }

    /// Takes a token, if one is there.
    #[must_use]
    pub fn take(&mut self, now_ns: u64) -> bool {
        let has_token = self.rate.has_token(self.full_ns, now_ns);
        if has_token {
            self.full_ns = self.rate.charge(self.full_ns, now_ns, 1);
        }
        has_token
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn taken(bucket: &mut TokenBucket, now_ns: u64, wanted: u64) -> u64 {
        (0..wanted).filter(|_| bucket.take(now_ns)).count() as u64
    }

    #[test]
    fn a_burst_is_there_at_once_and_then_as_many_as_time_brings() {
        let mut bucket = TokenBucket::new(10, 5);
        assert_eq!(taken(&mut bucket, 0, 100), 5);
        assert_eq!(taken(&mut bucket, 99 * MS, 100), 0);
        assert_eq!(taken(&mut bucket, 100 * MS, 100), 1);
        assert_eq!(taken(&mut bucket, 350 * MS, 100), 2);
        assert_eq!(taken(&mut bucket, 400 * MS, 100), 1, "the half interval was not lost");
        assert_eq!(taken(&mut bucket, 3600 * SECOND_NS, 100), 5, "no more than the bucket");
    }

    #[test]
    fn over_any_time_no_more_are_taken_than_rate_and_burst_allow() {
        for (per_s, burst) in [(1, 1), (10, 5), (100_000, 100_000), (20_000, 20), (7, 1000)] {
            let mut bucket = TokenBucket::new(per_s, burst);
            let came: u64 = (0..2000).map(|ms| taken(&mut bucket, ms * MS, 100)).sum();
            let most = burst + per_s * 1999 / 1000 + 1;
            assert!(came <= most, "{came} were taken at {per_s} a second and {burst} at once");
            assert!(came >= (most - 2).min(200_000) * 99 / 100, "{came} of {most}: too few");
        }
    }

    #[test]
    fn a_debt_is_paid_by_time_and_a_rate_of_zero_has_none() {
        let rate = TokenRate::new(1000, 500);
        let full_ns = rate.charge(0, 0, 2000);
        assert_eq!(full_ns, 2 * SECOND_NS);
        assert!(!rate.has_token(full_ns, 1500 * MS), "it is empty");
        assert!(rate.has_token(full_ns, 1501 * MS), "and this is the first token");
        assert_eq!(
            rate.charge(full_ns, 9 * SECOND_NS, 1),
            9 * SECOND_NS + MS,
            "never more than full"
        );
        let off = TokenRate::new(0, 500);
        assert_eq!(off.charge(7, 9, u64::MAX), 9);
        assert!(off.has_token(9, 9));
        let huge = TokenRate::new(1, u64::MAX);
        assert!(huge.has_token(huge.charge(0, 0, 1 << 30), 0), "and nothing overflows");
    }
}
