//! stub
use crate::auth::Rights;
use crate::ids::{NodeId, ShardId};
use crate::limits::Limits;
use std::net::SocketAddr;

/// What the configuration means on this machine: everything resolved, nothing opened yet.
#[derive(Clone, Debug)]
pub struct Plan {
    /// This start of this node.
    pub node: NodeId,
    /// The name shown to clients and in logs.
    pub node_name: String,
    /// The public port.
    pub listen: SocketAddr,
    /// The operators' port.
    pub ops_listen: SocketAddr,
    /// Key that the ops API wants in `Authorization: Bearer`; `None`: loopback only.
    pub ops_api_key: Option<String>,
    /// One entry a shard.
    pub shards: Vec<ShardPlan>,
    /// Cores of the backplane and ops threads; empty: not pinned.
    pub other_cores: Vec<usize>,
    /// One file table per shard (DESIGN §11).
    pub private_fd_tables: bool,
    /// Path of the plain echo, if any.
    pub echo_path: Option<String>,
    /// Whether `GET /` serves the page.
    pub page: bool,
    /// Origins that may connect; empty: all.
    pub origins: Vec<String>,
    /// Every limit.
    pub limits: Limits,
    /// Who may come in.
    pub auth: AuthPlan,
    /// How nodes reach each other.
    pub backplane: BackplanePlan,
    /// Over how long a drain spreads its closes.
    pub drain_ms: u64,
}

/// One shard.
#[derive(Clone, Copy, Debug)]
pub struct ShardPlan {
    /// Which.
    pub id: ShardId,
    /// The core it is pinned to, if any.
    pub core: Option<usize>,
}

/// Who may come in.
#[derive(Clone, Debug)]
pub struct AuthPlan {
    /// Whether clients without a token may.
    pub anonymous: bool,
    /// The HS256 secret, if tokens are accepted.
    pub hmac_secret: Option<String>,
    /// What an anonymous client may do.
    pub anonymous_rights: Rights,
    /// What a user may do whose token does not say.
    pub user_rights: Rights,
}

/// How nodes reach each other.
#[derive(Clone, Debug)]
pub enum BackplanePlan {
    /// They do not: one node, in process.
    Memory,
    /// One Redis server.
    Redis(RedisPlan),
}

/// One Redis server.
#[derive(Clone, Debug)]
pub struct RedisPlan {
    /// `redis://…` or `rediss://…`
    pub url: String,
    /// What every channel and key starts with. Default `campanile`.
    pub prefix: String,
    /// How long a topic without members stays subscribed.
    pub linger_ms: u64,
    /// How often the canary flies.
    pub canary_interval_ms: u64,
    /// After how long without a canary the link is given up.
    pub canary_timeout_ms: u64,
    /// Connect and response timeout.
    pub timeout_ms: u64,
    /// The longest pause between two attempts to connect.
    pub backoff_ms_max: u64,
}
