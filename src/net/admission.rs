//! How fast connections may come in, and when those who may not should come back.
//!
//! A bucket of tokens, one an accept, that fills at `accepts_per_s_max` and holds
//! `accepts_burst_max`. It is one number: the moment at which the bucket would be full again, which
//! every accept moves on by one interval. So a shard that is quiet does nothing for its bucket.
//!
//! Whoever is refused is told a second to come back in, and the seconds go round: a herd that comes
//! at once does not come back at once. The more were refused, the longer the round, up to
//! [`RETRY_S_MAX`], so that about as many return in a second as may come in.
//!
//! Invariant: pure; time is an argument, in nanoseconds since any fixed moment.

/// The latest that anybody is asked to come back.
pub const RETRY_S_MAX: usize = 30;
/// The round when few were refused.
const ROUND_S_MIN: u64 = 4;
const SECOND_NS: u64 = 1_000_000_000;

/// One shard's gate.
#[derive(Debug)]
pub struct Admission {
    interval_ns: u64,
    /// How far ahead of now `full_ns` may be for another one to come in.
    ahead_ns_max: u64,
    /// When the bucket will be full, if nobody comes any more.
    full_ns: u64,
    /// When everybody who was refused could have come in, one an interval.
    served_ns: u64,
    refused: u64,
}

impl Admission {
    /// A full bucket: so many connections a second, so many at once.
    pub fn new(per_s_max: u64, burst_max: u64) -> Admission {
        let interval_ns = SECOND_NS / per_s_max.clamp(1, SECOND_NS);
        Admission {
            interval_ns,
            ahead_ns_max: interval_ns * (burst_max.max(1) - 1),
            full_ns: 0,
            served_ns: 0,
            refused: 0,
        }
    }

    /// Somebody has come: may they come in?
    #[must_use]
    pub fn admit(&mut self, now_ns: u64) -> bool {
        let full_ns = self.full_ns.max(now_ns);
        if full_ns - now_ns > self.ahead_ns_max {
            return false;
        }
        self.full_ns = full_ns + self.interval_ns;
        true
    }

    /// Somebody was refused, for whatever reason: in how many seconds should they come back?
    /// From 1 to [`RETRY_S_MAX`].
    #[must_use]
    pub fn retry_after_s(&mut self, now_ns: u64) -> usize {
        self.served_ns = self.served_ns.max(now_ns) + self.interval_ns;
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

    fn admitted(admission: &mut Admission, now_ns: u64, come: u64) -> u64 {
        (0..come).filter(|_| admission.admit(now_ns)).count() as u64
    }

    #[test]
    fn a_burst_comes_in_at_once_and_then_as_many_as_time_brings() {
        let mut admission = Admission::new(10, 5);
        assert_eq!(admitted(&mut admission, 0, 100), 5);
        assert_eq!(admitted(&mut admission, 99 * MS, 100), 0);
        assert_eq!(admitted(&mut admission, 100 * MS, 100), 1);
        assert_eq!(admitted(&mut admission, 350 * MS, 100), 2);
        assert_eq!(admitted(&mut admission, 400 * MS, 100), 1, "the half interval was not lost");
        assert_eq!(admitted(&mut admission, 3600 * SECOND_NS, 100), 5, "no more than the bucket");
    }

    #[test]
    fn over_any_time_no_more_come_in_than_rate_and_burst_allow() {
        for (per_s, burst) in [(1, 1), (10, 5), (100_000, 100_000), (20_000, 20), (7, 1000)] {
            let mut admission = Admission::new(per_s, burst);
            let came: u64 = (0..2000).map(|ms| admitted(&mut admission, ms * MS, 100)).sum();
            let most = burst + per_s * 1999 / 1000 + 1;
            assert!(came <= most, "{came} came in at {per_s} a second and {burst} at once");
            assert!(came >= (most - 2).min(200_000) * 99 / 100, "{came} of {most}: too few");
        }
    }

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
        // They have all had their chance: it begins anew.
        let later = 10_000 * SECOND_NS;
        assert!((0..1000).all(|n| admission.retry_after_s(later + n * 10 * MS) <= 5));
    }
}
