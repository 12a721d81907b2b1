//! A circuit breaker: a service that fails again and again is not asked for a while.
//!
//! ```text
//!   closed ── failures_max in a row ──► open ── open_for ──► half open
//!     ▲                                  ▲                       │ one question
//!     └────────── it is answered ────────┼───────────────────────┤
//!                                        └────── it fails ───────┘
//! ```
//!
//! Invariant: time is an argument. In the half-open state one question is under way.

use std::time::{Duration, Instant};

/// The breaker of one service.
#[derive(Debug)]
pub(super) struct Circuit {
    failures_max: u64,
    open_for: Duration,
    state: CircuitState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CircuitState {
    Closed { failures: u64 },
    Open { until: Instant },
    HalfOpen,
}

/// Leave to ask. Its outcome is to be reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AskPass {
    is_probe: bool,
}

/// A change that operators want to know of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CircuitChange {
    Opened,
    Closed,
}

impl Circuit {
    pub(super) fn new(failures_max: u64, open_for: Duration) -> Circuit {
        Circuit { failures_max, open_for, state: CircuitState::Closed { failures: 0 } }
    }

    /// Whether a question now would not be asked.
    pub(super) fn refuses(&self, now: Instant) -> bool {
        match self.state {
            CircuitState::Closed { .. } => false,
            CircuitState::Open { until } => now < until,
            CircuitState::HalfOpen => true,
        }
    }

    /// Whether the last questions have failed.
    pub(super) fn is_open(&self) -> bool {
        !matches!(self.state, CircuitState::Closed { .. })
    }

    /// Leave to ask now.
    pub(super) fn pass(&mut self, now: Instant) -> Option<AskPass> {
        if self.refuses(now) {
            return None;
        }
        let is_probe = self.is_open();
        if is_probe {
            self.state = CircuitState::HalfOpen;
        }
        Some(AskPass { is_probe })
    }

    /// A question was answered. Those that were asked before the circuit opened change nothing.
    pub(super) fn succeeded(&mut self, pass: AskPass) -> Option<CircuitChange> {
        if self.is_open() && !pass.is_probe {
            return None;
        }
        self.state = CircuitState::Closed { failures: 0 };
        pass.is_probe.then_some(CircuitChange::Closed)
    }

    /// A question was not answered.
    pub(super) fn failed(&mut self, pass: AskPass, now: Instant) -> Option<CircuitChange> {
        let until = now + self.open_for;
        match self.state {
            CircuitState::Closed { failures } if failures + 1 < self.failures_max => {
                self.state = CircuitState::Closed { failures: failures + 1 };
                None
            }
            CircuitState::Closed { .. } => {
                self.state = CircuitState::Open { until };
                Some(CircuitChange::Opened)
            }
            _ if pass.is_probe => {
                self.state = CircuitState::Open { until };
                None
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_opens_after_failures_in_a_row_lets_one_through_and_closes_with_its_answer() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut circuit = Circuit::new(3, Duration::from_millis(100));
        let first = [(); 4].map(|()| circuit.pass(start).expect("it is closed"));
        assert_eq!(circuit.failed(first[0], start), None);
        assert_eq!(circuit.succeeded(first[1]), None);
        let more = [(); 3].map(|()| circuit.pass(start).expect("it is closed"));
        assert_eq!(circuit.failed(more[0], start), None);
        assert_eq!(circuit.failed(more[1], start), None, "the success came between");
        assert_eq!(circuit.failed(more[2], start), Some(CircuitChange::Opened));
        // What was asked before says nothing any more.
        assert_eq!(circuit.failed(first[2], at(50)), None);
        assert_eq!(circuit.succeeded(first[3]), None);
        assert!(circuit.refuses(at(99)) && circuit.pass(at(99)).is_none());
        let probe = circuit.pass(at(100)).expect("one may ask");
        assert!(circuit.pass(at(100)).is_none(), "and only one");
        assert_eq!(circuit.failed(probe, at(110)), None, "it was open before");
        assert!(circuit.refuses(at(209)));
        let probe = circuit.pass(at(210)).expect("one may ask");
        assert_eq!(circuit.succeeded(probe), Some(CircuitChange::Closed));
        assert!(!circuit.is_open() && circuit.pass(at(211)).is_some());
    }
}
