//! Runs that were made for clients which returned, for others at the same position.
//!
//! After a mass disconnect thousands have the same position, so a run is made once and shared. What
//! is stored here is bounded in bytes, the oldest go first, and all of it goes when none was asked for
//! within [`IDLE`]: it can be made again at any time.

use crate::ids::{Position, TopicName};
use crate::protocol::dialect::Encoding;
use crate::protocol::run::Run;
use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

/// How long runs stay that nobody asks for.
const IDLE: Duration = Duration::from_secs(10);
/// A run beside its bytes: its key twice, its places in tables.
const RUN_BYTES: usize = 256;

/// Which run: all messages after a position, as of the history's last one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct RunKey {
    pub(super) topic: TopicName,
    pub(super) since: Position,
    pub(super) top: u64,
    pub(super) encoding: Encoding,
}

/// The runs of all histories of this node.
#[derive(Debug)]
pub struct RecentRuns {
    runs: HashMap<RunKey, Run>,
    by_age: VecDeque<RunKey>,
    bytes: usize,
    bytes_max: usize,
    was_used: bool,
    used: Option<Instant>,
}

impl RecentRuns {
    /// None yet, and room for so many bytes.
    pub fn new(bytes_max: usize) -> RecentRuns {
        let (runs, by_age) = (HashMap::new(), VecDeque::new());
        RecentRuns { runs, by_age, bytes: 0, bytes_max, was_used: false, used: None }
    }

    /// Bytes of all runs.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn find(&mut self, key: &RunKey) -> Option<Run> {
        self.was_used = true;
        self.runs.get(key).cloned()
    }

    pub(super) fn insert(&mut self, key: RunKey, run: &Run) {
        let bytes = RUN_BYTES + run.bytes.len();
        if bytes > self.bytes_max {
            return;
        }
        self.bytes += bytes;
        self.by_age.push_back(key.clone());
        self.runs.insert(key, run.clone());
        while self.bytes > self.bytes_max {
            let Some(oldest) = self.by_age.pop_front() else { return };
            let run = self.runs.remove(&oldest);
            self.bytes -= run.map_or(0, |run| RUN_BYTES + run.bytes.len());
        }
    }

    /// Drops all of them, if they are not used any more.
    pub fn tick(&mut self, now: Instant) {
        if std::mem::take(&mut self.was_used) {
            self.used = Some(now);
        }
        if self.used.is_some_and(|used| now.saturating_duration_since(used) >= IDLE) {
            *self = RecentRuns::new(self.bytes_max);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn key(offset: u64) -> RunKey {
        let since = Position { epoch: 7, offset };
        let (topic, encoding) = (TopicName::room("t"), Encoding::NATIVE);
        RunKey { topic, since, top: 9, encoding }
    }

    fn run(bytes: usize) -> Run {
        Run { bytes: Bytes::from(vec![b'x'; bytes]), messages: 1 }
    }

    #[test]
    fn runs_stay_within_their_bound_and_the_oldest_go() {
        let mut runs = RecentRuns::new(3 * (RUN_BYTES + 100));
        (0..10).for_each(|offset| runs.insert(key(offset), &run(100)));
        assert_eq!(runs.bytes(), 3 * (RUN_BYTES + 100));
        let there: Vec<u64> = (0..10).filter(|offset| runs.find(&key(*offset)).is_some()).collect();
        assert_eq!(there, [7, 8, 9]);
        runs.insert(key(0), &run(10_000));
        assert!(runs.find(&key(0)).is_none() && runs.find(&key(9)).is_some(), "it is too long");
    }

    #[test]
    fn runs_go_when_nobody_has_returned_for_a_while() {
        let (mut runs, began) = (RecentRuns::new(10_000), Instant::now());
        runs.insert(key(1), &run(100));
        assert!(runs.find(&key(1)).is_some());
        runs.tick(began);
        runs.tick(began + IDLE / 2);
        assert!(runs.find(&key(1)).is_some());
        runs.tick(began + IDLE);
        runs.tick(began + IDLE + IDLE / 2);
        assert_eq!(runs.bytes(), RUN_BYTES + 100, "it was used");
        runs.tick(began + 2 * IDLE);
        assert_eq!((runs.bytes(), runs.find(&key(1))), (0, None));
    }
}
