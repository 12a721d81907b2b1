//! The `redis` part of `/v1/stats`: the state of each server and its unsafe settings; and the servers
//! that keep a node from being ready.
//!
//! Numbers that a server did not report are `null`; with `redis.monitor_interval_ms = 0` all are.

use crate::metrics::BackplaneCounters;
use crate::metrics::redis::{Advice, RedisNumbers, advice, version_text};
use crate::metrics::servers::{RedisSnapshot, ServerNumbers};
use crate::plan::{Deployment, RedisPlan};
use serde_json::{Value, json};
use std::time::Instant;

/// The answer of `/readyz` while the backplane is down: each server that is down, and why.
pub(super) fn not_ready(snapshot: &RedisSnapshot) -> Value {
    let down = snapshot.servers.iter().filter(|server| !server.is_up());
    let down = down.map(
        |server| json!({"server": server.server, "reason": server.reason, "detail": server.detail}),
    );
    let mut answer = json!({
        "ready": false,
        "reason": "backplane",
        "detail": "Redis is unavailable, or its canary does not come back",
        "down": down.collect::<Vec<_>>(),
    });
    if let Some(error) = &snapshot.cluster_error {
        answer["cluster"] = json!(error);
    }
    if !snapshot.unreachable_sentinels.is_empty() {
        answer["unreachable_sentinels"] = unreachable(snapshot);
    }
    answer
}

/// All of it, for people. `/metrics` has every number.
pub(super) fn summary(
    plan: &RedisPlan,
    counters: &BackplaneCounters,
    snapshot: &RedisSnapshot,
) -> Value {
    let (numbers, now) = (&snapshot.deployment, Instant::now());
    let sentinels = numbers.sentinels_configured.map(|configured| {
        json!({
            "configured": configured,
            "answering": numbers.sentinels_answering,
            "unreachable": unreachable(snapshot),
            "failovers": counters.switches,
        })
    });
    let cluster = numbers.cluster_map_failed.map(|failed| {
        json!({
            "masters": numbers.cluster_masters,
            "map_failed": failed == 1,
            "last_error": snapshot.cluster_error,
        })
    });
    let servers = snapshot.servers.iter().map(|server| one(server, plan.keeps_history, now));
    json!({
        "deployment": match plan.servers.deployment {
            Deployment::Fixed(_) => "fixed",
            Deployment::Sentinel { .. } => "sentinel",
            Deployment::Cluster(_) => "cluster",
        },
        "reassignments": {
            "count": counters.moves,
            "partitions": counters.partitions_moved,
            "waiting_ms": counters.move_waiting_ms,
            "redirects": counters.redirects,
        },
        "sentinels": sentinels,
        "cluster": cluster,
        "servers": servers.collect::<Vec<_>>(),
    })
}

fn unreachable(snapshot: &RedisSnapshot) -> Value {
    let sentinels = snapshot.unreachable_sentinels.iter();
    sentinels.map(|(sentinel, why)| json!({"sentinel": sentinel, "reason": why})).collect()
}

/// One server: what this node counts, then what the server reports.
fn one(server: &ServerNumbers, keeps_history: bool, now: Instant) -> Value {
    let own = server.own(now);
    let mut all = json!({
        "server": server.server,
        "name": server.name,
        "up": server.is_up(),
        "reason": server.reason,
        "detail": server.detail,
        "topics": own.subscriptions,
        "publish_queue_bytes": own.publish_queue_bytes,
        "publishes_in_flight": own.in_flight,
        "canary_rtt_us": own.canary_rtt_us,
        "canary_age_ms": own.canary_age_ms,
        "canaries_missed": own.canaries_missed,
        "reconnects": own.reconnects,
    });
    if let (Value::Object(all), Value::Object(reported)) =
        (&mut all, reported(&server.reported, keeps_history))
    {
        all.extend(reported);
    }
    all
}

fn reported(numbers: &RedisNumbers, keeps_history: bool) -> Value {
    let is = |number: Option<u64>| number.map(|number| number == 1);
    let (warnings, notes): (Vec<_>, Vec<_>) =
        advice(numbers, keeps_history).into_iter().partition(|advice| advice.is_warning);
    json!({
        "monitor_up": is(numbers.monitor_up),
        "version": numbers.version.map(version_text),
        "memory": {
            "used_bytes": numbers.memory_used_bytes,
            "rss_bytes": numbers.memory_rss_bytes,
            "max_bytes": numbers.memory_max_bytes,
            "system_bytes": numbers.memory_system_bytes,
            "evicted_keys": numbers.evicted_keys,
        },
        "clients": { "rejected": numbers.rejected },
        "output_buffers": {
            "own_bytes": numbers.own_output_bytes,
            "limit_bytes": numbers.output_limit_bytes,
        },
        "replication": {
            "replicas": numbers.replicas,
            "replicas_online": numbers.replicas_online,
            "lag_bytes": numbers.replica_lag_bytes,
            "lag_s": numbers.replica_lag_s,
            "min_replicas_to_write": numbers.replicas_to_write,
        },
        "persistence": {
            "rdb_ok": is(numbers.is_rdb_ok),
            "aof_enabled": is(numbers.is_aof_on),
            "aof_ok": is(numbers.is_aof_ok),
            "last_fork_us": numbers.fork_us,
        },
        "errors": {
            "oom": numbers.errors_oom,
            "noreplicas": numbers.errors_noreplicas,
            "readonly": numbers.errors_readonly,
        },
        "warnings": warnings.iter().map(write).collect::<Vec<_>>(),
        "notes": notes.iter().map(write).collect::<Vec<_>>(),
    })
}

fn write(advice: &Advice) -> Value {
    json!({"about": advice.about, "text": advice.text, "write": advice.write})
}
