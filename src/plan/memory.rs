//! The process's memory, divided among those that hold it.
//!
//! What can be given a share is given one: histories, what waits for Redis, the channels between
//! threads. Their limits are lowered to it. The rest is for connections, whose outboxes, half messages
//! and answers are bounded together, as they come, by the pressure of `link::ledger`.

use crate::plan::byte_size::ByteSize;
use crate::policy::limits::Limits;
use std::fmt;

/// The smallest bound that leaves room for a start.
pub(super) const MEMORY_BYTES_MIN: usize = 64 * 1024 * 1024;
/// Where the machine's memory is not known.
const UNKNOWN_MEMORY_BYTES: u64 = 1024 * 1024 * 1024;
/// A channel smaller than this would stop at each message.
const CHANNEL_BYTES_MIN: usize = 64 * 1024;
/// What an idempotency key takes, with names of usual lengths.
const KEY_BYTES: usize = 512;
/// What a node remembers of a history that a client has begun in Redis, and of a key.
const BEGUN_BYTES: usize = 160;
const BEGUN_KEY_BYTES: usize = 24;

/// How the memory of the process is divided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// The bound of all.
    pub bytes_max: u64,
    /// Who holds it, and how much at most; the sum is the bound.
    pub parts: Vec<MemoryPart>,
}

/// One holder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryPart {
    /// What holds the memory.
    pub name: &'static str,
    /// How much at most.
    pub bytes: u64,
}

/// The bound that is configured, or what the machine suggests.
pub(super) fn memory_bytes_max(configured: usize, machine_bytes: Option<u64>) -> u64 {
    match configured as u64 {
        0 => machine_bytes.unwrap_or(UNKNOWN_MEMORY_BYTES) / 4 * 3,
        bytes => bytes,
    }
}

/// Lowers what has a share to its share.
pub(super) fn within_memory(limits: Limits, bytes_max: u64, shards: usize) -> Limits {
    let part = |divisor: u64| usize::try_from(bytes_max / divisor).unwrap_or(usize::MAX);
    // Up, down, taken and not written yet, and the backlog.
    let channel = (part(8) / 4 / shards.max(1)).max(CHANNEL_BYTES_MIN);
    Limits {
        memory_bytes_max: part(1),
        history_bytes_max: limits.history_bytes_max.min(part(4)),
        idempotency_keys_max: limits.idempotency_keys_max.min(part(16) / KEY_BYTES),
        redis_histories_begun_max: limits.redis_histories_begun_max.min(part(8) / BEGUN_BYTES),
        redis_keys_begun_max: limits.redis_keys_begun_max.min(part(8) / BEGUN_KEY_BYTES),
        publish_queue_bytes_max: limits.publish_queue_bytes_max.min(part(16)),
        uplink_bytes_max: limits.uplink_bytes_max.min(channel),
        downlink_bytes_max: limits.downlink_bytes_max.min(channel),
        downlink_backlog_bytes_max: limits.downlink_backlog_bytes_max.min(channel),
        ..limits
    }
}

impl MemoryPlan {
    /// How limits that [`within_memory`] has lowered divide it.
    pub fn of(limits: &Limits, shards: usize, has_histories: bool, has_redis: bool) -> MemoryPlan {
        let bytes_max = limits.memory_bytes_max as u64;
        let channels = limits.uplink_bytes_max
            + 2 * limits.downlink_bytes_max
            + limits.downlink_backlog_bytes_max;
        let held = [
            ("the process itself", true, (bytes_max / 4).min(64 * 1024 * 1024)),
            ("histories", has_histories, limits.history_bytes_max as u64),
            (
                "idempotency keys",
                has_histories && !has_redis,
                (limits.idempotency_keys_max * KEY_BYTES) as u64,
            ),
            ("publishes that wait for Redis", has_redis, limits.publish_queue_bytes_max as u64),
            ("channels between threads", true, (channels * shards) as u64),
        ];
        let part = |(name, is_there, bytes): (_, bool, u64)| {
            is_there.then_some(MemoryPart { name, bytes })
        };
        let mut parts: Vec<MemoryPart> = held.into_iter().filter_map(part).collect();
        let divided: u64 = parts.iter().map(|part| part.bytes).sum();
        parts.push(MemoryPart { name: "connections", bytes: bytes_max.saturating_sub(divided) });
        MemoryPlan { bytes_max, parts }
    }
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "memory: at most {}:", ByteSize(self.bytes_max))?;
        for (i, MemoryPart { name, bytes }) in self.parts.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            write!(f, "{comma} {name} {}", ByteSize(*bytes))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    #[test]
    fn the_bound_is_three_quarters_of_the_machine_unless_it_is_configured() {
        assert_eq!(memory_bytes_max(0, Some(4096 * MIB)), 3072 * MIB);
        assert_eq!(memory_bytes_max(100, Some(4096 * MIB)), 100);
        assert_eq!(memory_bytes_max(0, None), 768 * MIB);
    }

    #[test]
    fn the_parts_are_the_whole_however_small_it_is_and_however_many_shards_there_are() {
        for bytes_max in [64, 192, 1024, 100_000].map(|mib| mib * MIB) {
            for shards in [1, 2, 64] {
                let limits = within_memory(Limits::PRODUCTION, bytes_max, shards);
                let plan = MemoryPlan::of(&limits, shards, true, true);
                let sum: u64 = plan.parts.iter().map(|part| part.bytes).sum();
                assert_eq!(sum, bytes_max, "{plan}");
                let connections = plan.parts.last().expect("they are the last").bytes;
                assert!(connections >= bytes_max / 8, "{plan}");
            }
        }
        let limits = within_memory(Limits::PRODUCTION, 1024 * MIB, 2);
        assert_eq!(
            MemoryPlan::of(&limits, 2, true, false).to_string(),
            "memory: at most 1 GiB: the process itself 64 MiB, histories 256 MiB, idempotency keys 64 MiB, \
             channels between threads 80 MiB, connections 560 MiB"
        );
    }

    #[test]
    fn a_limit_that_is_within_its_share_stays() {
        let limits = Limits { history_bytes_max: 5, ..Limits::PRODUCTION };
        assert_eq!(within_memory(limits, 1024 * MIB, 2).history_bytes_max, 5);
    }
}
