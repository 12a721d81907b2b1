//! All that presence over Redis has: `mod.rs` and `writes.rs` change it.

use crate::backplane::presence::Presence;
use crate::backplane::redis::names::Names;
use crate::backplane::redis::partition_set::PartitionSet;
use crate::backplane::redis::presence::audit::Audit;
use crate::backplane::redis::presence::context::PresenceRules;
use crate::backplane::redis::presence::failures::Failures;
use crate::backplane::redis::presence::keys::Keys;
use crate::backplane::redis::presence::liveness::Liveness;
use crate::backplane::redis::presence::query::MemberQueries;
use crate::backplane::redis::presence::server_state::ServerStates;
use crate::backplane::redis::presence::stale_entries::StaleEntries;
use crate::backplane::redis::presence::write_queue::WriteQueue;
use crate::backplane::wire;
use crate::ids::NodeId;
use crate::link::PresenceRequest;
use crate::policy::namespaces::Namespaces;
use std::sync::Arc;
use std::time::Instant;

/// Presence of all servers. Outlives links; owned by [`crate::backplane::redis::RedisTransport`].
pub(crate) struct RedisPresence {
    pub(super) rules: PresenceRules,
    pub(super) keys: Keys,
    pub(super) is_on: bool,
    pub(super) members: Presence,
    /// Changes. They wait until their server has settled, because events may be published.
    pub(super) writes: WriteQueue,
    /// Entries that were written before and are written again, without events.
    pub(super) rewrites: WriteQueue,
    pub(super) stale_entries: StaleEntries,
    pub(super) servers: ServerStates,
    pub(super) liveness: Liveness,
    pub(super) audit: Audit,
    pub(super) queries: MemberQueries,
    /// Requests that found no place, to be answered in the next turn.
    pub(super) rejected: Vec<PresenceRequest>,
    pub(super) written_at: Option<Instant>,
    pub(super) failures: Failures,
    pub(super) dropped: DroppedWrites,
}

/// Changes that found no place among those that are to be written.
#[derive(Debug, Default)]
pub(super) struct DroppedWrites {
    /// The partitions of their rooms, which are written whole as soon as there is room.
    pub parts: PartitionSet,
    /// How many since the start.
    pub count: u64,
}

impl RedisPresence {
    /// No users.
    pub(crate) fn new(
        namespaces: Arc<Namespaces>,
        prefix: &str,
        names: Names,
        node: NodeId,
    ) -> RedisPresence {
        let liveness = Liveness::new(wire::READS, wire::WRITES_MAX, namespaces.have_history());
        RedisPresence {
            is_on: namespaces.have_presence(),
            rules: PresenceRules { names, namespaces },
            keys: Keys::new(prefix, node),
            members: Presence::default(),
            writes: WriteQueue::default(),
            rewrites: WriteQueue::default(),
            stale_entries: StaleEntries::default(),
            servers: ServerStates::default(),
            liveness,
            audit: Audit::default(),
            queries: MemberQueries::default(),
            rejected: Vec::new(),
            written_at: None,
            failures: Failures::default(),
            dropped: DroppedWrites::default(),
        }
    }
}
