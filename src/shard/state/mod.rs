//! The state of a shard, without its behaviour: each part in a file of its own, which uses none of the
//! others. The behaviour is in the files of `shard/`, which use these.

pub(in crate::shard) mod acks;
pub(in crate::shard) mod deliveries;
pub(in crate::shard) mod disconnects;
pub(in crate::shard) mod expiries;
pub(in crate::shard) mod grant_sets;
pub(in crate::shard) mod hooked;
pub(in crate::shard) mod info_table;
pub(super) mod lifecycle;
pub(in crate::shard) mod moves;
pub(in crate::shard) mod named_peers;
pub(in crate::shard) mod paused_reads;
pub(in crate::shard) mod pending_joins;
pub(in crate::shard) mod pending_user_queues;
pub(in crate::shard) mod questions;
pub(in crate::shard) mod rates;
pub(in crate::shard) mod revoked;
pub(in crate::shard) mod room_tokens;
pub(in crate::shard) mod tables;
pub(in crate::shard) mod token_checks;
pub(in crate::shard) mod token_marks;

use crate::auth::AnonymousSecret;
use crate::ids::ConnId;
use crate::ids::{NodeId, Position, ShardId, TopicName};
use crate::link::Uplink;
use crate::link::ledger::Pressure;
use crate::metrics::ShardCounters;
use crate::policy::limits::Limits;
use crate::policy::namespaces::Namespaces;
use crate::protocol::RequestId;
use crate::protocol::dialect::Encoding;
use crate::shard::conn::Conn;
use crate::shard::hub::Hub;
use crate::shard::state::acks::AckTracker;
use crate::shard::state::deliveries::{Deliveries, RoundFrame};
use crate::shard::state::disconnects::PendingDisconnects;
use crate::shard::state::expiries::Expiries;
use crate::shard::state::grant_sets::GrantSets;
use crate::shard::state::hooked::HookedCommands;
use crate::shard::state::info_table::InfoTable;
use crate::shard::state::lifecycle::Lifecycle;
use crate::shard::state::moves::Moves;
use crate::shard::state::named_peers::NamedPeers;
use crate::shard::state::paused_reads::PausedReads;
use crate::shard::state::pending_joins::PendingJoins;
use crate::shard::state::pending_user_queues::PendingUserQueues;
use crate::shard::state::questions::Questions;
use crate::shard::state::rates::Rates;
use crate::shard::state::revoked::Revoked;
use crate::shard::state::room_tokens::RoomTokens;
use crate::shard::state::token_checks::TokenChecks;
use crate::shard::state::token_marks::TokenMarks;
use crate::slab::Slab;
use crate::ws::decoder::Decoder;
use bytes::BytesMut;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

/// What a shard is made with.
#[derive(Clone, Debug)]
pub struct ShardConfig {
    /// The number of this shard on its node.
    pub id: ShardId,
    /// The number of this node, for [`crate::link::Origin`].
    pub node: NodeId,
    /// The name of this node in `welcome`.
    pub node_name: String,
    /// The limits, those of one shard among them.
    pub limits: Limits,
    /// The policies of rooms and users.
    pub namespaces: Arc<Namespaces>,
    /// What the names of clients without a token are made with.
    pub anonymous_secret: AnonymousSecret,
}

/// A join that waits until the backplane has subscribed to the topic.
pub(in crate::shard) struct JoinWaiter {
    pub(in crate::shard) conn: ConnId,
    pub(in crate::shard) id: Option<RequestId>,
    /// It asked for what it missed, where nothing is stored.
    pub(in crate::shard) since: bool,
    /// It was in the topic already when it asked.
    pub(in crate::shard) again: bool,
}

/// One shard. See the module's documentation for how it is driven.
pub struct Shard {
    pub(in crate::shard) config: ShardConfig,
    pub(in crate::shard) limits: Limits,
    pub(in crate::shard) conns: Slab<Conn>,
    pub(in crate::shard) hub: Hub,
    /// Joins that wait for the backplane, by the topic's index.
    pub(in crate::shard) waiting: HashMap<u32, Vec<JoinWaiter>>,
    /// Joins that wait for a position.
    pub(in crate::shard) pendings: PendingJoins,
    /// Connections that wait for what is stored for their users.
    pub(in crate::shard) queues: PendingUserQueues,
    pub(in crate::shard) questions: Questions,
    /// Commands that wait for the word of a hook.
    pub(in crate::shard) hooked: HookedCommands,
    pub(in crate::shard) pauses: PausedReads,
    pub(in crate::shard) rates: Rates,
    /// When the bucket of each room is full again; see `room_limits.rs`.
    pub(in crate::shard) room_rates: HashMap<Box<str>, u64>,
    pub(in crate::shard) moves: Moves,
    /// Where the histories of topics are, as far as their members were brought; by the topic's index.
    pub(in crate::shard) positions: HashMap<u32, Position>,
    pub(in crate::shard) infos: InfoTable<(ConnId, u32)>,
    pub(in crate::shard) acks: AckTracker,
    pub(in crate::shard) deliveries: Deliveries,
    pub(in crate::shard) uplink: VecDeque<Uplink>,
    pub(in crate::shard) life: Lifecycle,
    pub(in crate::shard) disconnects: PendingDisconnects,
    pub(in crate::shard) expiries: Expiries,
    /// How long before its token expires a client receives a notice; 0: it does not.
    pub(in crate::shard) expiry_notice_s: u64,
    /// Tokens that are to be checked.
    pub(in crate::shard) token_checks: TokenChecks,
    /// Memberships that a token for the room allows.
    pub(in crate::shard) room_tokens: RoomTokens,
    pub(in crate::shard) named_peers: NamedPeers,
    /// What tokens allow in rooms.
    pub(in crate::shard) grants: GrantSets,
    /// What tokens say about their users.
    pub(in crate::shard) user_infos: InfoTable<u32>,
    /// What revocations are compared with.
    pub(in crate::shard) token_marks: TokenMarks,
    pub(in crate::shard) revoked: Revoked,
    /// Whether any room has presence: the others pay nothing for it.
    pub(in crate::shard) has_presence: bool,
    pub(in crate::shard) everybody: TopicName,
    /// Open connections by [`Encoding::place`].
    pub(in crate::shard) broadcast_receivers: [u32; Encoding::COUNT],
    /// What is counted. The caller may add what only it can see.
    pub counters: ShardCounters,
    /// Bytes of half messages, those of all connections.
    pub(in crate::shard) half_bytes: usize,
    /// How near the node is to its memory bound.
    pub(in crate::shard) pressure: Pressure,
    /// Connections that are not read until memory is less short.
    pub(in crate::shard) memory_paused: HashSet<ConnId>,
    pub(in crate::shard) spare_decoder: Option<Box<Decoder>>,
    pub(in crate::shard) scratch: Vec<u8>,
    pub(in crate::shard) scratch_frames: Vec<RoundFrame>,
    /// Small frames are cut from here: one allocation for many.
    pub(in crate::shard) arena: BytesMut,
}

pub(in crate::shard) const ARENA_BYTES: usize = 16 * 1024;

/// Frames above this are allocated for themselves instead of being cut from the arena.
pub(in crate::shard) const ARENA_FRAME_BYTES_MAX: usize = 4 * 1024;

impl Shard {
    /// A shard without connections.
    pub fn new(config: ShardConfig) -> Shard {
        let limits = config.limits;
        let everybody = TopicName::all();
        let has_presence = config.namespaces.have_presence();
        Shard {
            config,
            limits,
            conns: Slab::with_max(limits.connections_per_shard_max),
            hub: Hub::with_max(limits.topics_per_shard_max),
            waiting: HashMap::new(),
            pendings: PendingJoins::default(),
            queues: PendingUserQueues::default(),
            questions: Questions::default(),
            hooked: HookedCommands::default(),
            pauses: PausedReads::default(),
            rates: Rates::new(&limits),
            room_rates: HashMap::new(),
            moves: Moves::default(),
            positions: HashMap::new(),
            infos: InfoTable::default(),
            acks: AckTracker::default(),
            deliveries: Deliveries::default(),
            uplink: VecDeque::new(),
            life: Lifecycle::default(),
            disconnects: PendingDisconnects::default(),
            expiries: Expiries::default(),
            expiry_notice_s: 0,
            token_checks: TokenChecks::default(),
            room_tokens: RoomTokens::default(),
            named_peers: NamedPeers::default(),
            grants: GrantSets::default(),
            user_infos: InfoTable::default(),
            token_marks: TokenMarks::default(),
            revoked: Revoked::default(),
            has_presence,
            everybody,
            broadcast_receivers: [0; Encoding::COUNT],
            counters: ShardCounters::default(),
            half_bytes: 0,
            pressure: Pressure::None,
            memory_paused: HashSet::new(),
            spare_decoder: None,
            scratch: Vec::new(),
            scratch_frames: Vec::new(),
            arena: BytesMut::with_capacity(ARENA_BYTES),
        }
    }
}
