//! The backplane's side of the memory bound: what this thread keeps alive, when answers that would
//! hold more are refused, and when the node is no longer ready.
//!
//! Readiness goes last and comes back late: only after [`SHORT_AFTER`] at the last step of pressure,
//! and back [`LONG_ENOUGH`] after all pressure has ended. A balancer that takes a node out sends its
//! clients to the others. So readiness stays where one address holds most of the memory: that one
//! would come after them.

use crate::backplane::log_throttle::LogThrottle;
use crate::link::ledger::{Account, MemoryReading, Pressure};
use crate::metrics::BackplaneCounters;
use std::time::{Duration, Instant};

/// How long new connections are refused before the node says that it is not ready.
const SHORT_AFTER: Duration = Duration::from_secs(5);
/// How long there is no pressure before it says that it is.
const LONG_ENOUGH: Duration = Duration::from_secs(10);

/// From one time at which free memory is given back to the next: that takes longer than a turn.
const GIVE_BACK_PAUSE: Duration = Duration::from_millis(300);

/// A topic: its name and its places in tables.
const TOPIC_BYTES: u64 = 384;
/// A user in a room with presence.
const PRESENCE_BYTES: u64 = 384;
/// A history beside its messages, in the tables of a node with Redis.
const HISTORY_BYTES: u64 = 256;
/// A request that waits for Redis.
const REQUEST_BYTES: u64 = 256;

/// What this thread knows of the node's memory.
pub(super) struct BackplaneMemory {
    account: Account,
    /// As of the end of the last turn.
    held: u64,
    /// What answers have added since.
    added: u64,
    pressure: Pressure,
    /// When it last gave free memory back.
    gave_back_at: Option<Instant>,
    readiness: MemoryReadiness,
    log: LogThrottle,
}

impl BackplaneMemory {
    pub(super) fn new(account: Account) -> BackplaneMemory {
        let readiness = MemoryReadiness::default();
        let (pressure, log) = (Pressure::None, LogThrottle::default());
        let (held, added, gave_back_at) = (0, 0, None);
        BackplaneMemory { account, held, added, pressure, gave_back_at, readiness, log }
    }

    /// Whether an answer of so many bytes may be handed to a shard. It counts from here on.
    pub(super) fn may_answer(&mut self, bytes: usize) -> bool {
        self.added += bytes as u64;
        self.pressure = self.account.post(self.held + self.added);
        self.pressure < Pressure::RefuseRequests
    }

    /// What this thread keeps alive at the end of a turn.
    pub(super) fn end_turn(&mut self, held: u64) {
        (self.held, self.added) = (held, 0);
        self.pressure = self.account.post(held);
    }

    /// On the tick. `Some`: whether the node is short of memory, if that has changed.
    pub(super) fn tick(&mut self, held: u64, now: Instant) -> Option<bool> {
        (self.held, self.added) = (held, 0);
        let before = self.pressure;
        self.pressure = self.account.tick(held);
        let is_soon = self.gave_back_at.is_some_and(|at| now < at + GIVE_BACK_PAUSE);
        if self.pressure >= Pressure::CloseLargest && !is_soon {
            self.gave_back_at = Some(now);
            self.pressure = self.account.give_back();
        }
        self.report(before, now);
        let is_from_one_address = self.account.ledger().is_from_one_address();
        self.readiness.update(self.pressure, is_from_one_address, now)
    }

    /// All numbers, as they were last looked at.
    pub(super) fn reading(&self) -> MemoryReading {
        self.account.ledger().reading()
    }

    fn report(&mut self, before: Pressure, now: Instant) {
        if self.pressure == before || self.pressure.max(before) < Pressure::RefuseRequests {
            return;
        }
        let Some(suppressed) = self.log.is_due(now) else { return };
        let MemoryReading { estimate, bytes_max, held, .. } = self.reading();
        let (step, mib) = (self.pressure.label(), 1024 * 1024);
        let (used_mib, max_mib, held_mib) = (estimate / mib, bytes_max / mib, held / mib);
        tracing::warn!(step, used_mib, max_mib, held_mib, suppressed, "memory is short");
    }
}

/// What this thread keeps alive, from its gauges. `in_channels`: what waits for shards.
pub(super) fn held_bytes(counters: &BackplaneCounters, in_channels: u64) -> u64 {
    counters.topics * TOPIC_BYTES
        + counters.presences * PRESENCE_BYTES
        + counters.histories_bytes
        + counters.histories * HISTORY_BYTES
        + counters.history_requests_waiting * REQUEST_BYTES
        + counters.publish_queue_bytes
        + in_channels
}

/// Whether the node sends clients away for want of memory.
#[derive(Debug, Default)]
struct MemoryReadiness {
    is_short: bool,
    /// Since when the pressure is such that this would change.
    since: Option<Instant>,
}

impl MemoryReadiness {
    fn update(
        &mut self,
        pressure: Pressure,
        is_from_one_address: bool,
        now: Instant,
    ) -> Option<bool> {
        let (would_change, after) = match self.is_short {
            false => (pressure == Pressure::RefuseConnections && !is_from_one_address, SHORT_AFTER),
            true => (pressure == Pressure::None, LONG_ENOUGH),
        };
        if !would_change {
            self.since = None;
            return None;
        }
        let since = *self.since.get_or_insert(now);
        if now.duration_since(since) < after {
            return None;
        }
        (self.is_short, self.since) = (!self.is_short, None);
        Some(self.is_short)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::ledger::{Ledger, MemoryCalls};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// How readiness changes when the pressure is so for so many seconds.
    fn changes(of: &[(Pressure, bool, u64)]) -> Vec<(u64, bool)> {
        let (mut readiness, began) = (MemoryReadiness::default(), Instant::now());
        let seconds = of
            .iter()
            .flat_map(|(pressure, is_one, for_s)| (0..*for_s).map(move |_| (*pressure, *is_one)));
        let mut changes = Vec::new();
        for (second, (pressure, is_one)) in (0_u64..).zip(seconds) {
            let now = began + Duration::from_secs(second);
            changes.extend(readiness.update(pressure, is_one, now).map(|is| (second, is)));
        }
        changes
    }

    #[test]
    fn free_memory_is_given_back_with_pauses() {
        static TIMES: AtomicU32 = AtomicU32::new(0);
        const MIB: u64 = 1024 * 1024;
        let calls = MemoryCalls {
            resident: Box::new(|| Some(200 * MIB)),
            give_back: || _ = TIMES.fetch_add(1, Ordering::Relaxed),
        };
        let account = Account::new(Arc::new(Ledger::new(100 * MIB, 1)), 0, calls);
        let (mut memory, began) = (BackplaneMemory::new(account), Instant::now());
        for tick in 0..10 {
            memory.tick(200 * MIB, began + Duration::from_millis(100 * tick));
            assert!(memory.pressure >= Pressure::CloseLargest, "at all times");
        }
        assert_eq!(TIMES.load(Ordering::Relaxed), 4, "at 0, 300, 600 and 900 ms");
    }

    #[test]
    fn a_node_is_unready_late_and_ready_later() {
        use Pressure::{CloseLargest, None, PauseLargest, RefuseConnections};
        let short = (RefuseConnections, false, 4);
        assert_eq!(changes(&[short, (CloseLargest, false, 1), short]), [], "not long enough");
        let all = [(RefuseConnections, false, 8), (PauseLargest, false, 20), (None, false, 12)];
        assert_eq!(changes(&all), [(5, true), (38, false)]);
        let flapping = [(RefuseConnections, false, 6), (None, false, 9), (PauseLargest, false, 1)];
        assert_eq!(changes(&[&flapping[..], &flapping[1..]].concat()), [(5, true)]);
    }

    #[test]
    fn one_address_does_not_make_a_node_unready() {
        assert_eq!(changes(&[(Pressure::RefuseConnections, true, 100)]), []);
    }
}
