//! Histograms of durations, for the thread that measures and for the thread that reads.
//!
//! Like every other number, a histogram is plain `u64` fields of one owner, copied into atomics on
//! the owner's tick. All histograms have the same bounds ([`BOUNDS_US`]), so that they can be
//! compared and added up. Recording is a search among twenty numbers, two additions, and no
//! allocation.
//!
//! Invariant: the number of recorded durations is the sum of the buckets, so that a copy taken in
//! the middle of a tick never shows more in a bucket than in total.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The upper bounds of the buckets in microseconds, each included in its bucket. Longer durations
/// are in one more bucket without a bound.
pub const BOUNDS_US: [u64; 19] = [
    10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000,
    500_000, 1_000_000, 2_500_000, 5_000_000, 10_000_000,
];

const BUCKETS: usize = BOUNDS_US.len() + 1;

/// How often which duration was measured. Owned by the thread that measures.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    /// Not cumulative; the last one is for what is longer than every bound.
    buckets: [u64; BUCKETS],
    /// All durations together, in nanoseconds.
    sum_ns: u64,
}

impl Histogram {
    /// Counts one duration.
    #[inline]
    pub fn record(&mut self, duration: Duration) {
        // Half a millennium fits.
        let ns = duration.as_nanos() as u64;
        let bucket = BOUNDS_US.partition_point(|bound_us| bound_us * 1000 < ns);
        self.buckets[bucket] += 1;
        self.sum_ns += ns;
    }

    /// How many durations were recorded.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// All recorded durations together, in nanoseconds.
    pub fn sum_ns(&self) -> u64 {
        self.sum_ns
    }

    /// Each bound in microseconds with the number of durations up to it, as Prometheus counts them.
    pub fn cumulative(&self) -> impl Iterator<Item = (u64, u64)> {
        let mut up_to = 0;
        BOUNDS_US.iter().zip(&self.buckets).map(move |(bound_us, here)| {
            up_to += here;
            (*bound_us, up_to)
        })
    }
}

/// The same numbers for the thread that reads, at most one tick old.
#[derive(Debug, Default)]
pub struct HistogramMirror {
    buckets: [AtomicU64; BUCKETS],
    sum_ns: AtomicU64,
}

impl HistogramMirror {
    /// Copies the owner's numbers out. Called on the owner's tick.
    pub fn publish(&self, from: &Histogram) {
        for (to, from) in self.buckets.iter().zip(&from.buckets) {
            to.store(*from, Ordering::Relaxed);
        }
        self.sum_ns.store(from.sum_ns, Ordering::Relaxed);
    }

    /// The numbers as they were at the last tick.
    pub fn read(&self) -> Histogram {
        let mut buckets = [0; BUCKETS];
        for (to, from) in buckets.iter_mut().zip(&self.buckets) {
            *to = from.load(Ordering::Relaxed);
        }
        Histogram { buckets, sum_ns: self.sum_ns.load(Ordering::Relaxed) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_counted_up_to_the_first_bound_that_it_does_not_exceed() {
        let mut histogram = Histogram::default();
        for us in [0, 10, 11, 1_000, 10_000_000, 10_000_001] {
            histogram.record(Duration::from_micros(us));
        }
        histogram.record(Duration::from_nanos(1_000_001));
        let up_to: Vec<(u64, u64)> = histogram.cumulative().collect();
        let at = |bound_us| up_to.iter().find(|(bound, _)| *bound == bound_us).unwrap().1;
        assert_eq!([at(10), at(25), at(500), at(1_000)], [2, 3, 3, 4]);
        assert_eq!([at(2_500), at(5_000_000), at(10_000_000)], [5, 5, 6]);
        assert_eq!(histogram.count(), 7, "the longest is past every bound");
        assert_eq!(histogram.sum_ns(), 20_002_022_001);
    }

    #[test]
    fn a_copy_says_what_the_owner_has_recorded() {
        let mut histogram = Histogram::default();
        histogram.record(Duration::from_millis(3));
        histogram.record(Duration::from_secs(60));
        let mirror = HistogramMirror::default();
        mirror.publish(&histogram);
        assert_eq!(mirror.read(), histogram);
    }

    #[test]
    fn bounds_grow() {
        assert!(BOUNDS_US.is_sorted_by(|one, next| one < next));
    }
}
