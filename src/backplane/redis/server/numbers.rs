//! What a server counts, for the metrics, `/v1/stats` and `/readyz`.

use crate::backplane::redis::health::canary::Canary;
use crate::backplane::redis::health::totals::ServerTotals;
use crate::backplane::redis::server::supervisor::{Server, Task};
use crate::metrics::BackplaneCounters;
use crate::metrics::servers::{OwnNumbers, ServerNumbers};
use std::time::Instant;

impl Server {
    /// Why it is ready or not, for people.
    pub(in crate::backplane::redis) fn detail(&self) -> String {
        match self.life.failure() {
            Some(error) => error.to_string(),
            None if self.is_ready() => "the canary came back".to_owned(),
            None => "not connected yet".to_owned(),
        }
    }

    /// Bytes that it keeps alive beside what its gauges count.
    pub(in crate::backplane::redis) fn bytes_beside_gauges(&self) -> usize {
        self.publishes.bytes_beside_queue()
    }

    /// Adds its gauges to those of the other servers.
    pub(in crate::backplane::redis) fn measure(
        &self,
        now: Instant,
        counters: &mut BackplaneCounters,
    ) {
        counters.publish_queue_bytes += self.publishes.waiting_bytes() as u64;
        counters.histories += self.histories.topics() as u64;
        counters.histories_bytes += self.histories.bytes() as u64;
        counters.history_reads_waiting += self.histories.to_read() as u64;
        counters.history_requests_waiting += self.histories.waiting() as u64;
        counters.in_flight += self.publishes.in_flight() as u64;
        let age_ms = now.duration_since(self.canary_back_at).as_millis() as u64;
        counters.canary_age_ms = counters.canary_age_ms.max(age_ms);
        let rtt_us = self.canary().map_or(0, |canary| canary.rtt.as_micros() as u64);
        counters.canary_rtt_us = counters.canary_rtt_us.max(rtt_us);
    }

    /// Its totals since it was created.
    pub(in crate::backplane::redis) fn totals(&self) -> ServerTotals {
        let state = self.histories.numbers;
        ServerTotals {
            history_reads: state.reads,
            recoveries_waited: state.waited,
            holes_repaired: state.repaired,
            holes_lost: state.lost,
            canaries_missed: self.canaries_missed(),
        }
    }

    /// Its state for the snapshot. `subscriptions`: topics confirmed on it.
    pub(in crate::backplane::redis) fn state(&self, subscriptions: usize) -> ServerNumbers {
        let has_topics = self.assignment.first.is_some();
        ServerNumbers {
            server: self.display_name().to_owned(),
            name: (self.life.address() != Some(&self.name)).then(|| self.name.clone()),
            reason: self.life.failure().map(|error| error.reason().name()),
            detail: self.detail(),
            counted: OwnNumbers {
                up: Some(u64::from(self.is_ready())),
                subscriptions: Some(subscriptions as u64),
                publish_queue_bytes: Some(self.publishes.waiting_bytes() as u64),
                in_flight: Some(self.publishes.in_flight() as u64),
                canary_rtt_us: self
                    .canary()
                    .filter(|canary| canary.has_come_back())
                    .map(|canary| canary.rtt.as_micros() as u64),
                canary_age_ms: None, // the reader computes it
                canaries_missed: Some(self.canaries_missed()),
                reconnects: Some(self.reconnects),
            },
            canary_back_at: has_topics.then_some(self.canary_back_at),
            reported: self.monitor.numbers().clone(),
        }
    }

    fn canary(&self) -> Option<&Canary> {
        match &self.task {
            Task::Live(live) => live.canary.as_ref(),
            Task::Pausing(_) | Task::Connecting(_) => None,
        }
    }

    fn canaries_missed(&self) -> u64 {
        self.canaries_missed_before + self.canary().map_or(0, |canary| canary.missed)
    }
}
