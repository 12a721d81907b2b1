//! Rate limit for log lines that a fault could repeat without end.

use std::time::{Duration, Instant};

/// Lets one line through every five seconds, and counts those it suppressed.
#[derive(Debug, Default)]
pub(super) struct LogThrottle {
    last: Option<Instant>,
    suppressed: u64,
}

impl LogThrottle {
    const EVERY: Duration = Duration::from_secs(5);

    /// `Some`: log now, with the number of lines suppressed since the last one.
    pub(super) fn is_due(&mut self, now: Instant) -> Option<u64> {
        if self.last.is_some_and(|last| now.duration_since(last) < Self::EVERY) {
            self.suppressed += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_in_five_seconds_has_the_number_of_those_suppressed() {
        let mut seldom = LogThrottle::default();
        let now = Instant::now();
        assert_eq!(seldom.is_due(now), Some(0));
        assert_eq!(seldom.is_due(now), None);
        assert_eq!(seldom.is_due(now + Duration::from_secs(4)), None);
        assert_eq!(seldom.is_due(now + Duration::from_secs(5)), Some(2));
    }
}
