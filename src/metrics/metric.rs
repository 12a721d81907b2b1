//! One number or histogram, described: what `/metrics` renders.

use crate::metrics::histogram::Histogram;

/// What kind of number a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Durations, counted by length.
    Histogram,
}

/// The value of a metric.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetricValue {
    /// `count / per` of the unit in the metric's name.
    Number {
        /// What was counted.
        count: u64,
        /// A power of ten.
        per: u64,
    },
    /// Durations; exposed in seconds.
    Histogram(Box<Histogram>),
}

/// One number or histogram of one thread, described.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metric {
    /// Its name without `campanile_`.
    pub name: &'static str,
    /// `reason="…"`-style label, or none.
    pub label: Option<(&'static str, &'static str)>,
    /// The help text of the exposition, in one line.
    pub help: &'static str,
    /// Counter, gauge or histogram.
    pub kind: MetricKind,
    /// Its value now.
    pub value: MetricValue,
}
