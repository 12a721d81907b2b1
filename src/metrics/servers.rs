//! The state of the Redis servers: this node's own numbers of each, what each reports in `INFO`, and
//! how they belong together.
//!
//! Servers come and go, so this is no row of atomics: the backplane makes a [`RedisSnapshot`] when
//! something has changed, and the API and `/metrics` read the newest one. What changes with time
//! alone, the age of a canary, is not in it as a number but as the instant it counts from, so time
//! alone makes no new snapshot.
//!
//! Invariant: a snapshot never changes, and no password is in it.

use crate::metrics::metric::Metric;
use crate::metrics::redis::RedisNumbers;
use std::sync::Arc;
use std::time::Instant;

numbers! {
    /// What this node itself counts of one server.
    OwnNumbers of Option<u64> {
        up: Gauge "redis_up" "1 while messages flow through this server",
        subscriptions: Gauge "redis_subscriptions" "Topics whose subscription this server has confirmed",
        publish_queue_bytes: Gauge "redis_publish_queue_bytes" "Bytes of publishes that wait for this server",
        in_flight: Gauge "redis_publishes_in_flight" "Publishes sent to this server and not answered yet",
        canary_rtt_us: Gauge / 1_000_000 "redis_canary_rtt_seconds" "Round trip of the last canary through this server",
        canary_age_ms: Gauge / 1000 "redis_canary_age_seconds" "Time since a canary last came back from this server",
        canaries_missed: Counter "redis_canaries_missed_total" "Canaries that did not come back from this server in time",
        reconnects: Counter "redis_reconnects_total" "Connections to this server that were lost or given up",
    }
}

numbers! {
    /// Where the addresses of the servers come from.
    DeploymentNumbers of Option<u64> {
        sentinels_configured: Gauge "redis_sentinels_configured" "Sentinels that are configured",
        sentinels_answering: Gauge "redis_sentinels_answering" "Sentinels that have answered who is master within 5 seconds",
        cluster_masters: Gauge "redis_cluster_masters" "Masters of the Cluster that have topics",
        cluster_map_failed: Gauge "redis_cluster_map_failed" "1 if the last CLUSTER NODES gave no complete map of the slots",
    }
}

/// One server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerNumbers {
    /// `host:port`; its name, before Sentinel has named an address.
    pub server: String,
    /// The master's name in Sentinel; `None` without Sentinel.
    pub name: Option<String>,
    /// The name of the failure that keeps it from being ready, if there is one.
    pub reason: Option<&'static str>,
    /// Why it is ready or not, for people.
    pub detail: String,
    /// What this node counts. The age of the canary is not in it: [`ServerNumbers::own`].
    pub counted: OwnNumbers,
    /// When a canary last came back; `None`: none is expected, for the server has no topics.
    pub canary_back_at: Option<Instant>,
    /// What the server reports in `INFO` and `CONFIG GET`.
    pub reported: Arc<RedisNumbers>,
}

impl ServerNumbers {
    /// Whether messages flow through it.
    pub fn is_up(&self) -> bool {
        self.counted.up == Some(1)
    }

    /// This node's own numbers of the server, with the age of the canary at `now`.
    pub fn own(&self, now: Instant) -> OwnNumbers {
        let age = self.canary_back_at.map(|at| now.saturating_duration_since(at));
        OwnNumbers { canary_age_ms: age.map(|age| age.as_millis() as u64), ..self.counted.clone() }
    }

    /// Every number that is known, with its name and meaning.
    pub fn describe(&self, now: Instant) -> Vec<Metric> {
        let mut all = self.own(now).describe();
        all.append(&mut self.reported.describe());
        all
    }
}

/// The Redis servers at one moment. Made by the backplane, read by the ops thread.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RedisSnapshot {
    /// Every server, in the order of the map.
    pub servers: Vec<Arc<ServerNumbers>>,
    /// Sentinels, or the Cluster.
    pub deployment: DeploymentNumbers,
    /// Sentinels that do not report a master, each with its error if it sent one.
    pub unreachable_sentinels: Vec<(String, Option<String>)>,
    /// Why the Cluster's slot map could not be read the last time.
    pub cluster_error: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::MetricValue;
    use std::time::Duration;

    #[test]
    fn the_age_of_a_canary_grows_by_itself_and_a_server_without_one_has_none() {
        let start = Instant::now();
        let mut server = ServerNumbers {
            server: "h:1".into(),
            name: None,
            reason: None,
            detail: String::new(),
            counted: OwnNumbers { up: Some(1), ..OwnNumbers::default() },
            canary_back_at: Some(start),
            reported: Arc::default(),
        };
        let age = |server: &ServerNumbers, ms| {
            let all = server.describe(start + Duration::from_millis(ms));
            all.into_iter().find(|it| it.name == "redis_canary_age_seconds").map(|it| it.value)
        };
        let ms = |count| Some(MetricValue::Number { count, per: 1000 });
        assert_eq!((age(&server, 7), age(&server, 4000)), (ms(7), ms(4000)));
        server.canary_back_at = None;
        assert_eq!(age(&server, 7), None);
        assert!(server.is_up());
    }
}
