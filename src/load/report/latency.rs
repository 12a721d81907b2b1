//! Latencies: recorded in a histogram, reported as quantiles.

use hdrhistogram::Histogram;
use serde::Serialize;
use std::fmt;

/// An empty histogram of latencies in nanoseconds: 0.1 µs to 1 h, to three digits.
pub(crate) fn new_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(100, 3_600_000_000_000, 3).expect("constant and valid bounds")
}

/// Records a latency. One outside the bounds counts at the nearer bound.
pub(crate) fn record(histogram: &mut Histogram<u64>, latency_ns: u64) {
    histogram.saturating_record(latency_ns);
}

/// Quantiles of latencies, in microseconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct LatencySummary {
    /// Number of latencies.
    pub count: u64,
    /// Median.
    pub p50_us: f64,
    /// 90 %.
    pub p90_us: f64,
    /// 99 %.
    pub p99_us: f64,
    /// 99.9 %.
    pub p999_us: f64,
    /// Maximum.
    pub max_us: f64,
}

impl LatencySummary {
    /// Quantiles of a histogram in nanoseconds; all zero if it is empty.
    pub fn of(histogram: &Histogram<u64>) -> LatencySummary {
        let us = |quantile: f64| histogram.value_at_quantile(quantile) as f64 / 1e3;
        if histogram.is_empty() {
            return LatencySummary::default();
        }
        LatencySummary {
            count: histogram.len(),
            p50_us: us(0.5),
            p90_us: us(0.9),
            p99_us: us(0.99),
            p999_us: us(0.999),
            max_us: histogram.max() as f64 / 1e3,
        }
    }
}

impl fmt::Display for LatencySummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.count == 0 {
            return f.write_str("none measured");
        }
        let LatencySummary { p50_us, p90_us, p99_us, p999_us, max_us, .. } = self;
        write!(
            f,
            "p50 {p50_us:.0}  p90 {p90_us:.0}  p99 {p99_us:.0}  p99.9 {p999_us:.0}  max {max_us:.0} µs"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_latency_outside_the_bounds_is_recorded_at_the_bound() {
        let mut histogram = new_histogram();
        for latency_ns in [0, 1_500, 2_000_000, u64::MAX] {
            record(&mut histogram, latency_ns);
        }
        assert_eq!(histogram.len(), 4);
        let median = histogram.value_at_quantile(0.5);
        assert!((1_436..=1_564).contains(&median), "{median}");
    }

    #[test]
    fn latencies_are_reported_in_microseconds() {
        let mut histogram = new_histogram();
        (1..=1000u64).for_each(|us| histogram.record(us * 1000).expect("within bounds"));
        let latency = LatencySummary::of(&histogram);
        assert_eq!(latency.count, 1000);
        assert!((latency.p50_us - 500.0).abs() < 2.0, "{latency}");
        assert!((latency.p99_us - 990.0).abs() < 2.0, "{latency}");
        assert_eq!(LatencySummary::of(&new_histogram()).count, 0);
    }
}
