//! The `redis` part of `/v1/stats`: how the server is, and what is unsafe about it.
//!
//! Numbers that the server did not say are `null`; where nothing is asked of it, all of them are.

use crate::metrics::redis::{Advice, RedisNumbers, advice, version_text};
use serde_json::{Value, json};

/// All of it, for people. `/metrics` has every number.
pub(super) fn summary(numbers: &RedisNumbers, keeps_history: bool) -> Value {
    let is = |number: Option<u64>| number.map(|number| number == 1);
    let (warnings, notes): (Vec<_>, Vec<_>) =
        advice(numbers, keeps_history).into_iter().partition(|advice| advice.is_warning);
    json!({
        "monitor_up": is(numbers.monitor_up),
        "version": numbers.version.map(version_text),
        "uptime_s": numbers.uptime_s,
        "loading": is(numbers.is_loading),
        "ops_per_s": numbers.ops_per_s,
        "memory": {
            "used_bytes": numbers.memory_used_bytes,
            "rss_bytes": numbers.memory_rss_bytes,
            "max_bytes": numbers.memory_max_bytes,
            "evicted_keys": numbers.evicted_keys,
            "expired_keys": numbers.expired_keys,
        },
        "traffic": {
            "input_bytes": numbers.input_bytes,
            "output_bytes": numbers.output_bytes,
            "input_bytes_per_s": numbers.input_bytes_per_s,
            "output_bytes_per_s": numbers.output_bytes_per_s,
        },
        "clients": {
            "connected": numbers.clients,
            "max": numbers.clients_max,
            "rejected": numbers.rejected,
        },
        "pubsub": {
            "channels": numbers.channels,
            "patterns": numbers.patterns,
            "shard_channels": numbers.shard_channels,
        },
        "output_buffers": {
            "own_bytes": numbers.own_output_bytes,
            "longest_bytes": numbers.output_buffer_max_bytes,
            "limit_bytes": numbers.output_limit_bytes,
        },
        "replication": {
            "role": numbers.is_master.map(|master| if master == 1 { "master" } else { "replica" }),
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
            "all": numbers.errors,
            "oom": numbers.errors_oom,
            "noreplicas": numbers.errors_noreplicas,
            "readonly": numbers.errors_readonly,
            "moved": numbers.errors_moved,
            "crossslot": numbers.errors_crossslot,
            "noscript": numbers.errors_noscript,
            "noperm": numbers.errors_noperm,
        },
        "warnings": warnings.iter().map(write).collect::<Vec<_>>(),
        "notes": notes.iter().map(write).collect::<Vec<_>>(),
    })
}

fn write(advice: &Advice) -> Value {
    json!({"about": advice.about, "text": advice.text, "write": advice.write})
}
