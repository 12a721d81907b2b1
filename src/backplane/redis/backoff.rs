//! Pauses between attempts to connect.

use std::time::Duration;

/// The first pause between two attempts to connect; each further one is twice as long.
const BACKOFF_MIN: Duration = Duration::from_millis(50);

/// Exponential back-off with jitter: each pause is twice as long, up to a limit, and lies in the
/// upper half of that, so that a hundred nodes do not return in the same millisecond.
pub(super) struct Backoff {
    next: Duration,
    max: Duration,
    random: u64,
}

impl Backoff {
    pub(super) fn new(max: Duration, seed: u64) -> Backoff {
        Backoff { next: BACKOFF_MIN.min(max), max, random: seed | 1 }
    }

    pub(super) fn next(&mut self) -> Duration {
        let whole = self.next;
        self.next = (whole * 2).min(self.max);
        // xorshift64: enough to spread nodes over half a second.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        whole / 2 + (whole / 2).mul_f64((self.random >> 11) as f64 / (1u64 << 53) as f64)
    }

    pub(super) fn reset(&mut self) {
        self.next = BACKOFF_MIN.min(self.max);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_limit_and_spread_over_its_upper_half() {
        let mut backoff = Backoff::new(Duration::from_millis(1000), 7);
        let pauses: Vec<u128> = (0..10).map(|_| backoff.next().as_millis()).collect();
        for (pause, whole) in pauses.iter().zip([50, 100, 200, 400, 800, 1000, 1000, 1000]) {
            assert!((whole / 2..=whole).contains(pause), "{pause} of {whole}");
        }
        assert_ne!(pauses[6], pauses[7]);
        backoff.reset();
        assert!(backoff.next() <= BACKOFF_MIN);
    }
}
