//! What a Redis server reports (INFO, CONFIG GET, CLIENT LIST), and what is unsafe about it.
//!
//! These are the numbers that [`advice`], our alert rules and our documents use. Everything else
//! that a server reports of itself is the business of an exporter for Redis.
//!
//! Every number may be missing: servers of different ages and makers say different things, managed
//! ones refuse questions, and a server that does not answer says nothing. [`advice`] judges what is
//! there, and never what is not.
//!
//! Invariant: a number that is not in the server's last answer is `None`.

numbers! {
    /// What a Redis server reports in `INFO` and `CONFIG GET`.
    RedisNumbers of Option<u64> {
        monitor_up: Gauge "redis_monitor_up" "1 while Redis answers INFO; without it the numbers below are missing",
        warnings: Gauge "redis_warnings" "Settings of Redis that may lose messages; /v1/stats says which and what to write",
        version: Gauge "redis_version" "The server's version as a number: 7.0.15 is 70015",
        memory_used_bytes: Gauge "redis_memory_used_bytes" "Memory that Redis counts as used",
        memory_rss_bytes: Gauge "redis_memory_rss_bytes" "Memory that its process holds",
        memory_max_bytes: Gauge "redis_memory_max_bytes" "maxmemory; 0: no limit",
        memory_system_bytes: Gauge "redis_memory_system_bytes" "Memory of its machine",
        evicts_all: Gauge "redis_evicts"["keys" = "all"] "1 if maxmemory-policy evicts these keys when memory is full",
        evicts_volatile: Gauge "redis_evicts"["keys" = "volatile"] "1 if maxmemory-policy evicts these keys when memory is full",
        own_output_bytes: Gauge "redis_own_output_bytes" "Bytes that wait in Redis for this node's subscribing connection",
        output_limit_bytes: Gauge "redis_output_limit_bytes" "Bytes that may wait for a subscriber before Redis closes it; 0: no limit",
        evicted_keys: Counter "redis_evicted_keys_total" "Keys evicted because memory was full",
        rejected: Counter "redis_rejected_connections_total" "Connections refused because of maxclients",
        errors_oom: Counter "redis_errors_total"["kind" = "OOM"] "Error replies of some kinds, to any client",
        errors_noreplicas: Counter "redis_errors_total"["kind" = "NOREPLICAS"] "Error replies of some kinds, to any client",
        errors_readonly: Counter "redis_errors_total"["kind" = "READONLY"] "Error replies of some kinds, to any client",
        replicas: Gauge "redis_replicas" "Replicas that are connected",
        replicas_online: Gauge "redis_replicas_online" "Replicas that have caught up and follow",
        replica_lag_bytes: Gauge "redis_replica_lag_bytes" "Bytes that the replica furthest behind has not acknowledged",
        replica_lag_s: Gauge "redis_replica_lag_seconds" "Time since the last acknowledgement of the replica silent longest",
        replicas_to_write: Gauge "redis_min_replicas_to_write" "Replicas without which Redis refuses writes; 0: it never does",
        is_cluster: Gauge "redis_cluster_enabled" "1 on a server of a Cluster",
        says_when_down: Gauge "redis_cluster_pubsub_when_down" "1 if cluster-allow-pubsubshard-when-down is yes",
        is_all_or_nothing: Gauge "redis_cluster_full_coverage" "1 if cluster-require-full-coverage is yes",
        fork_us: Gauge / 1_000_000 "redis_last_fork_seconds" "How long the last fork took, during which Redis answers nothing",
        is_rdb_ok: Gauge "redis_rdb_ok" "1 if the last snapshot was written",
        is_aof_on: Gauge "redis_aof_enabled" "1 if there is an append-only file",
        is_aof_ok: Gauge "redis_aof_ok" "1 if the last write to the append-only file succeeded",
        is_saving: Gauge "redis_save_enabled" "1 if automatic snapshots are configured (save)",
        cpu_main_ms: Counter / 1000 "redis_cpu_seconds_total"["of" = "main_thread"] "Processor time of the thread that runs every command",
        publish_us: Counter / 1_000_000 "redis_call_seconds_total"["command" = "publish"] "Processor time of these calls",
        spublish_us: Counter / 1_000_000 "redis_call_seconds_total"["command" = "spublish"] "Processor time of these calls",
        subscribe_us: Counter / 1_000_000 "redis_call_seconds_total"["command" = "subscribe"] "Processor time of these calls",
        evalsha_us: Counter / 1_000_000 "redis_call_seconds_total"["command" = "evalsha"] "Processor time of these calls",
        stream_node_bytes: Gauge "redis_stream_node_max_bytes" "stream-node-max-bytes: the least memory that a history takes",
    }
}

/// A warning or a note about a server's settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advice {
    /// The setting, as Redis calls it.
    pub about: &'static str,
    /// Whether messages can be lost by it: then it is logged as a warning, otherwise as information.
    pub is_warning: bool,
    /// What is the case, and what will come of it.
    pub text: String,
    /// What to write: a command for now, and the line of `redis.conf` for the next start.
    pub write: &'static str,
}

/// Subscribers are cut at this or more without a warning: a second of 64,000 messages of 1 KiB.
const OUTPUT_LIMIT_BYTES_GOOD: u64 = 64 * 1024 * 1024;
/// Bytes of a stream's node at which a history of one message costs 1.3 KB instead of 4.3 KB.
const STREAM_NODE_BYTES_GOOD: u64 = 1024;
/// 6.2 is the oldest that has all that is asked for here. 6.0 has RESP3, without which there is no
/// connection at all.
const VERSION_GOOD: u64 = 60_200;

/// Judges a server. `keeps_history`: some namespace has a history, which Redis is to keep.
pub fn advice(numbers: &RedisNumbers, keeps_history: bool) -> Vec<Advice> {
    let mut found = vec![replicas_advice(numbers), output_advice(numbers), version_advice(numbers)];
    found.extend([eviction_advice(numbers), memory_advice(numbers)]);
    if numbers.is_cluster == Some(1) {
        found.extend([cut_off_advice(numbers), coverage_advice(numbers)]);
    }
    if keeps_history {
        found.extend([volatile_advice(numbers), stream_advice(numbers), saving_advice(numbers)]);
    }
    let mut found: Vec<Advice> = found.into_iter().flatten().collect();
    found.sort_by_key(|advice| !advice.is_warning);
    found
}

fn replicas_advice(numbers: &RedisNumbers) -> Option<Advice> {
    let replicas = numbers.replicas.filter(|replicas| *replicas > 0)?;
    (numbers.replicas_to_write == Some(0)).then(|| Advice {
        about: "min-replicas-to-write",
        is_warning: true,
        text: format!(
            "the Redis server has replicas ({replicas}) and min-replicas-to-write is 0: cut off from \
             them it goes on taking messages, which are lost when a replica takes its place"
        ),
        write: "CONFIG SET min-replicas-to-write 1 (redis.conf: min-replicas-to-write 1), best \
                with two replicas or more",
    })
}

fn output_advice(numbers: &RedisNumbers) -> Option<Advice> {
    let bytes = numbers.output_limit_bytes?;
    (bytes > 0 && bytes < OUTPUT_LIMIT_BYTES_GOOD).then(|| Advice {
        about: "client-output-buffer-limit",
        is_warning: true,
        text: format!(
            "Redis cuts a subscriber for whom {bytes} bytes wait: a burst that this node takes a \
             moment for ends its connection, and messages without history are lost"
        ),
        write: "CONFIG SET client-output-buffer-limit \"pubsub 256mb 128mb 60\" (redis.conf: \
                client-output-buffer-limit pubsub 256mb 128mb 60)",
    })
}

fn eviction_advice(numbers: &RedisNumbers) -> Option<Advice> {
    (numbers.evicts_all == Some(1)).then(|| Advice {
        about: "maxmemory-policy",
        is_warning: true,
        text: "maxmemory-policy is one of allkeys-*: when memory is full, Redis lets go of \
               any key, and no command returns an error"
            .to_owned(),
        write: "CONFIG SET maxmemory-policy noeviction (redis.conf: maxmemory-policy noeviction)",
    })
}

fn memory_advice(numbers: &RedisNumbers) -> Option<Advice> {
    (numbers.memory_max_bytes == Some(0)).then(|| Advice {
        about: "maxmemory",
        is_warning: false,
        text: "maxmemory is 0: Redis grows until the kernel ends it, or others on its machine"
            .to_owned(),
        write: "CONFIG SET maxmemory 4gb (redis.conf: maxmemory 4gb), or what the machine can \
                spare; half of it where snapshots are taken",
    })
}

fn volatile_advice(numbers: &RedisNumbers) -> Option<Advice> {
    (numbers.evicts_volatile == Some(1)).then(|| Advice {
        about: "maxmemory-policy",
        is_warning: false,
        text: "maxmemory-policy is one of volatile-*: when memory is full, histories are cut; who \
               joins with since then gets recovered:false"
            .to_owned(),
        write: "CONFIG SET maxmemory-policy noeviction (redis.conf: maxmemory-policy noeviction) \
                where publishes are to fail instead",
    })
}

fn stream_advice(numbers: &RedisNumbers) -> Option<Advice> {
    let bytes = numbers.stream_node_bytes?;
    // 0: no bound in bytes, so a node takes its hundred entries.
    (bytes == 0 || bytes > STREAM_NODE_BYTES_GOOD).then(|| Advice {
        about: "stream-node-max-bytes",
        is_warning: false,
        text: format!(
            "stream-node-max-bytes is {bytes}: a history of a single message takes as much as a \
             node. With 1024 a million quiet rooms take 1.3 GB instead of 4.3 GB"
        ),
        write: "CONFIG SET stream-node-max-bytes 1024 (redis.conf: stream-node-max-bytes 1024)",
    })
}

fn saving_advice(numbers: &RedisNumbers) -> Option<Advice> {
    (numbers.is_aof_on == Some(0) && numbers.is_saving == Some(0)).then(|| Advice {
        about: "appendonly",
        is_warning: false,
        text: "appendonly is no and save is empty: a restart of Redis loses every history; who \
               joins with since then gets recovered:false"
            .to_owned(),
        write: "CONFIG SET appendonly yes (redis.conf: appendonly yes)",
    })
}

fn cut_off_advice(numbers: &RedisNumbers) -> Option<Advice> {
    (numbers.says_when_down == Some(1)).then(|| Advice {
        about: "cluster-allow-pubsubshard-when-down",
        is_warning: false,
        text: "cluster-allow-pubsubshard-when-down is yes: a master that is cut off from the rest of \
               its Cluster goes on taking messages without history, and only who is cut off with it \
               receives them, until a node learns elsewhere that it was replaced"
            .to_owned(),
        write: "CONFIG SET cluster-allow-pubsubshard-when-down no (redis.conf: \
                cluster-allow-pubsubshard-when-down no)",
    })
}

fn coverage_advice(numbers: &RedisNumbers) -> Option<Advice> {
    (numbers.is_all_or_nothing == Some(1)).then(|| Advice {
        about: "cluster-require-full-coverage",
        is_warning: false,
        text: "cluster-require-full-coverage is yes: while one master is lost and none of its \
               replicas has taken its place, all others refuse commands, too"
            .to_owned(),
        write: "CONFIG SET cluster-require-full-coverage no (redis.conf: \
                cluster-require-full-coverage no) where the rooms of the others are to go on",
    })
}

fn version_advice(numbers: &RedisNumbers) -> Option<Advice> {
    let version = numbers.version.filter(|version| *version < VERSION_GOOD)?;
    Some(Advice {
        about: "version",
        is_warning: true,
        text: format!(
            "the server is Redis {}; 6.2 is the oldest that has what is asked of it here",
            version_text(version)
        ),
        write: "update the server",
    })
}

/// 70015 as people write it: 7.0.15.
pub fn version_text(version: u64) -> String {
    format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::MetricValue;

    /// A server with whose settings nothing is wrong.
    fn good() -> RedisNumbers {
        RedisNumbers {
            version: Some(70_015),
            replicas: Some(2),
            replicas_to_write: Some(1),
            output_limit_bytes: Some(256 * 1024 * 1024),
            evicts_all: Some(0),
            evicts_volatile: Some(0),
            memory_max_bytes: Some(1 << 30),
            stream_node_bytes: Some(1024),
            is_aof_on: Some(1),
            is_saving: Some(0),
            ..RedisNumbers::default()
        }
    }

    fn abouts(numbers: &RedisNumbers, keeps_history: bool) -> Vec<(&'static str, bool)> {
        let found = advice(numbers, keeps_history);
        found.into_iter().map(|advice| (advice.about, advice.is_warning)).collect()
    }

    #[test]
    fn each_unsafe_setting_is_reported_and_nothing_else() {
        type Spoil = fn(&mut RedisNumbers);
        type Row = (Spoil, Option<(&'static str, bool)>, bool);
        let table: [Row; 12] = [
            (|_| {}, None, true),
            (|n| n.replicas_to_write = Some(0), Some(("min-replicas-to-write", true)), false),
            (
                |n| n.output_limit_bytes = Some(32 << 20),
                Some(("client-output-buffer-limit", true)),
                false,
            ),
            (|n| n.output_limit_bytes = Some(0), None, true),
            (|n| n.output_limit_bytes = Some(64 << 20), None, true),
            (|n| n.evicts_all = Some(1), Some(("maxmemory-policy", true)), false),
            (|n| n.evicts_volatile = Some(1), Some(("maxmemory-policy", false)), true),
            (|n| n.memory_max_bytes = Some(0), Some(("maxmemory", false)), false),
            (|n| n.stream_node_bytes = Some(4096), Some(("stream-node-max-bytes", false)), true),
            (|n| n.stream_node_bytes = Some(0), Some(("stream-node-max-bytes", false)), true),
            (|n| n.is_aof_on = Some(0), Some(("appendonly", false)), true),
            (|n| n.version = Some(60_016), Some(("version", true)), false),
        ];
        for (at, (spoil, expected, only_with_history)) in table.into_iter().enumerate() {
            let mut numbers = good();
            spoil(&mut numbers);
            let expected: Vec<_> = expected.into_iter().collect();
            assert_eq!(abouts(&numbers, true), expected, "row {at}");
            let without = if only_with_history { vec![] } else { expected };
            assert_eq!(abouts(&numbers, false), without, "row {at}");
        }
    }

    #[test]
    fn no_replicas_need_no_replica_to_write_and_a_snapshot_is_enough() {
        let alone = RedisNumbers { replicas: Some(0), replicas_to_write: Some(0), ..good() };
        assert_eq!(abouts(&alone, true), []);
        let saving = RedisNumbers { is_aof_on: Some(0), is_saving: Some(1), ..good() };
        assert_eq!(abouts(&saving, true), []);
    }

    #[test]
    fn what_only_a_cluster_does_is_noted_of_a_cluster_only() {
        let alone = RedisNumbers {
            is_cluster: Some(0),
            says_when_down: Some(1),
            is_all_or_nothing: Some(1),
            ..good()
        };
        assert_eq!(abouts(&alone, true), []);
        let clustered = RedisNumbers { is_cluster: Some(1), ..alone };
        let [when_down, coverage] =
            ["cluster-allow-pubsubshard-when-down", "cluster-require-full-coverage"];
        assert_eq!(abouts(&clustered, false), [(when_down, false), (coverage, false)]);
        let older = RedisNumbers { says_when_down: None, ..clustered.clone() };
        assert_eq!(abouts(&older, false), [(coverage, false)]);
        let careful =
            RedisNumbers { says_when_down: Some(0), is_all_or_nothing: Some(0), ..clustered };
        assert_eq!(abouts(&careful, false), []);
        let bold = RedisNumbers { is_cluster: Some(1), replicas_to_write: Some(0), ..good() };
        assert_eq!(abouts(&bold, false), [("min-replicas-to-write", true)]);
    }

    #[test]
    fn what_is_not_known_is_not_judged_and_warnings_come_first() {
        assert_eq!(advice(&RedisNumbers::default(), true), []);
        let bad = RedisNumbers { evicts_all: Some(1), memory_max_bytes: Some(0), ..good() };
        assert_eq!(abouts(&bad, false), [("maxmemory-policy", true), ("maxmemory", false)]);
        let output = RedisNumbers { output_limit_bytes: Some(33_554_432), ..good() };
        let advice = &advice(&output, false)[0];
        assert!(advice.text.contains("33554432"), "{advice:?}");
        assert!(advice.write.contains("CONFIG SET client-output-buffer-limit"), "{advice:?}");
    }

    #[test]
    fn what_is_not_known_is_not_in_the_list_and_a_zero_is() {
        assert_eq!(RedisNumbers::default().describe().len(), 0, "nothing was measured yet");
        let numbers = RedisNumbers { evicted_keys: Some(0), ..RedisNumbers::default() };
        let described = numbers.describe();
        assert_eq!(described.len(), 1);
        assert_eq!(described[0].name, "redis_evicted_keys_total");
        assert_eq!(described[0].value, MetricValue::Number { count: 0, per: 1 });
    }
}
