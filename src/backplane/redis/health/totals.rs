//! Counters that are summed over all servers there ever were.

use std::ops::AddAssign;

/// What servers count. The node reports sums over all servers that it ever had: a sum does not fall
/// because a server leaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ServerTotals {
    /// Reads of histories.
    pub history_reads: u64,
    /// Joins that had to wait for a read.
    pub recoveries_waited: u64,
    /// Gaps in histories that were closed.
    pub holes_repaired: u64,
    /// Gaps in histories that were reported as lost.
    pub holes_lost: u64,
    /// Canaries that were not back in time.
    pub canaries_missed: u64,
}

impl AddAssign for ServerTotals {
    fn add_assign(&mut self, more: ServerTotals) {
        // Field by field, so that none is forgotten.
        *self = ServerTotals {
            history_reads: self.history_reads + more.history_reads,
            recoveries_waited: self.recoveries_waited + more.recoveries_waited,
            holes_repaired: self.holes_repaired + more.holes_repaired,
            holes_lost: self.holes_lost + more.holes_lost,
            canaries_missed: self.canaries_missed + more.canaries_missed,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_servers_that_left_have_counted_stays_in_the_sum() {
        let some = ServerTotals {
            history_reads: 1,
            recoveries_waited: 2,
            holes_repaired: 3,
            holes_lost: 4,
            canaries_missed: 5,
        };
        let mut departed = ServerTotals::default();
        departed += some;
        departed += some;
        let twice = ServerTotals {
            history_reads: 2,
            recoveries_waited: 4,
            holes_repaired: 6,
            holes_lost: 8,
            canaries_missed: 10,
        };
        assert_eq!(departed, twice);
    }
}
