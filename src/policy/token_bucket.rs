//! A bucket of tokens: so many a second, and so many at once.
//!
//! It is one number: the moment at which it would be full again, which every token that is taken moves
//! on by one interval. So an idle owner does nothing for its bucket.
//!
//! Invariant: pure; time is an argument, in nanoseconds since any fixed moment.

const SECOND_NS: u64 = 1_000_000_000;

/// Permits that refill with time. Owned by the thread that asks.
#[derive(Debug)]
pub struct TokenBucket {
    interval_ns: u64,
    /// How far ahead of now `full_ns` may be for another token to be there.
    ahead_ns_max: u64,
    /// When it will be full, if nothing more is taken.
    full_ns: u64,
}

impl TokenBucket {
    /// A full one: so many tokens a second, so many at once.
    pub fn new(per_s: u64, burst: u64) -> TokenBucket {
        let interval_ns = SECOND_NS / per_s.clamp(1, SECOND_NS);
        TokenBucket { interval_ns, ahead_ns_max: interval_ns * (burst.max(1) - 1), full_ns: 0 }
    }

    /// How long a token takes to come, in nanoseconds.
    pub fn interval_ns(&self) -> u64 {
        self.interval_ns
    }

    /// Takes a token, if one is there.
    #[must_use]
    pub fn take(&mut self, now_ns: u64) -> bool {
        let full_ns = self.full_ns.max(now_ns);
        if full_ns - now_ns > self.ahead_ns_max {
            return false;
        }
        self.full_ns = full_ns + self.interval_ns;
        true
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
}
