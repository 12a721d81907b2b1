//! What the configuration means on this machine.
//!
//! [`resolve`] is a pure function of configuration and machine. It settles what was left open (how
//! many shards, on which cores, who may come in without a token), lowers what the machine cannot
//! give, with notices for the caller to log. What it cannot settle is an error of the
//! configuration.
//!
//! Invariant: nothing is opened, started or asked here, and no `Debug` output holds a secret.

mod byte_size;
mod hooks;
mod memory;
pub mod print;
mod urls;

use crate::auth::{AuthPlan, ClaimNames, JwksPlan, VerifyingKeys};
use crate::config::{BackplaneUrl, Config, ConfigError, ConfigErrors};
pub use crate::config::{
    Deployment, Login, ProxyProtocol, RedisServers, RejectedHandshakes, Scheduling, SteeringMode,
};
use crate::ids::{NodeId, ShardId};
use crate::policy::limits::Limits;
use crate::policy::namespaces::Namespaces;
use crate::policy::networks::Network;
pub use byte_size::ByteSize;
pub use hooks::HooksPlan;
use memory::{MEMORY_BYTES_MIN, memory_bytes_max, within_memory};
pub use memory::{MemoryPart, MemoryPlan};
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// What the configuration means on this machine: everything resolved, nothing opened yet.
#[derive(Clone)]
pub struct Plan {
    /// Random, and another one after each start: the name of this node to other nodes.
    pub node: NodeId,
    /// Shown to clients and in logs. From `node.name`, or made up from `node`.
    pub node_name: String,
    /// Address of the public port; port 0 is replaced by the one that was bound.
    pub listen: SocketAddr,
    /// Address of the ops port; replaced likewise.
    pub ops_listen: SocketAddr,
    /// Key that the ops API requires in `Authorization: Bearer`; `None`: loopback only.
    pub ops_api_key: Option<String>,
    /// Paths of that API that the public port serves as well.
    pub ops_public_paths: Vec<String>,
    /// At least one; the place of a shard is its id.
    pub shards: Vec<ShardPlan>,
    /// Cores of the backplane and ops threads; empty: not pinned.
    pub other_cores: Vec<usize>,
    /// Whether each shard has a table of open files of its own (`unshare(CLONE_FILES)`).
    pub private_fd_tables: bool,
    /// How the kernel schedules our threads.
    pub scheduling: Scheduling,
    /// Steps of nice(2) by which the backplane's thread is above the shards; 0 to 20.
    pub backplane_priority: u8,
    /// Which shard gets a new connection.
    pub steering: SteeringMode,
    /// Settings by namespace; shared by shards, backplane and API.
    pub namespaces: Arc<Namespaces>,
    /// Path of the plain echo, if any.
    pub echo_path: Option<String>,
    /// Whether `GET /` serves the page.
    pub page: bool,
    /// Origins that may connect; empty: all.
    pub origins: Vec<String>,
    /// How a WebSocket is refused that may not connect.
    pub rejected_handshakes: RejectedHandshakes,
    /// Whether connections begin with a PROXY header.
    pub proxy_protocol: ProxyProtocol,
    /// Networks whose word on a client's address is believed.
    pub trusted_proxies: Vec<Network>,
    /// Whether the peers of sockets are clients, except for `trusted_proxies`.
    pub listen_direct: bool,
    /// As configured, but `connections_per_shard_max`, which is lowered to what the limit on open
    /// files allows.
    pub limits: Limits,
    /// Which clients are admitted, and with which rights.
    pub auth: AuthPlan,
    /// How nodes reach each other.
    pub backplane: BackplanePlan,
    /// Services that are asked over HTTP.
    pub hooks: HooksPlan,
    /// Over how long a drain spreads its closes.
    pub drain_ms: u64,
}

/// What one shard's thread is started with.
#[derive(Clone, Copy, Debug)]
pub struct ShardPlan {
    /// Its number, from 0.
    pub id: ShardId,
    /// The core it is pinned to, if any.
    pub core: Option<usize>,
}

/// How nodes reach each other.
#[derive(Clone, Debug)]
pub enum BackplanePlan {
    /// Not at all: this node is alone, and the backplane is in process.
    Memory,
    /// Through Redis.
    Redis(RedisPlan),
}

/// Redis, and how to deal with it.
#[derive(Clone)]
pub struct RedisPlan {
    /// Addresses, deployment, user and password.
    pub servers: Box<RedisServers>,
    /// What every channel and key starts with. Default `campanile`.
    pub prefix: String,
    /// How long a topic without members stays subscribed, so that a reload costs nothing.
    pub linger_ms: u64,
    /// The interval of canaries: messages that this node publishes to itself.
    pub canary_interval_ms: u64,
    /// How long without a canary until the connection is closed.
    pub canary_timeout_ms: u64,
    /// How long connecting may take, and how long a reply.
    pub timeout_ms: u64,
    /// The longest pause between two attempts to connect.
    pub backoff_ms_max: u64,
    /// The authorities that may have signed a `rediss://` server's certificate; `None`: public ones.
    pub tls_ca_file: Option<String>,
    /// The interval of `INFO` and the like, for metrics; 0: never.
    pub monitor_interval_ms: u64,
    /// Whether some namespace has a history, so that Redis keeps something.
    pub keeps_history: bool,
}

/// What a plan depends on of the machine.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Random; the node's id for this start.
    pub node: NodeId,
    /// Cores that this process may use, in order.
    pub cores: Vec<usize>,
    /// Open files that one table may hold.
    pub nofile: u64,
    /// Memory that this process may use, in bytes, where it could be found out.
    pub memory_bytes: Option<u64>,
}

/// A plan, and what is logged about it at start.
#[derive(Debug)]
pub struct Planned {
    /// Everything resolved.
    pub plan: Plan,
    /// To be logged at start, in this order.
    pub notices: Vec<StartupNotice>,
}

/// A line for the log at start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartupNotice {
    /// Who should read it.
    pub level: NoticeLevel,
    /// The line.
    pub text: String,
}

/// At which level of the log a [`StartupNotice`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoticeLevel {
    /// An operator should act on it.
    Warning,
    /// What was configured is carried out in another way than one might think.
    Info,
    /// The plan and its bounds: to be read when they are looked for, as `campanile config --plan`
    /// shows them.
    Debug,
}

/// Descriptors that are not connections: standard streams, the backplane's and the operators'
/// sockets, and a margin for what the libraries open. Counted in every table, because a table of a
/// shard's own begins as a copy of the shared one.
pub(crate) const FILES_OF_NODE: u64 = 128;

/// Descriptors of one shard that are not connections: bell, listener, rings, epoll, a spare one to
/// refuse with, and some room.
pub(crate) const FILES_OF_SHARD: u64 = 16;

/// A secret shorter than its digest is easier to guess than it need be (RFC 7518 §3.2).
const SECRET_BYTES_GOOD: usize = 32;

/// Settles everything, or reports what is wrong with the configuration.
pub fn resolve(config: &Config, machine: &Machine) -> Result<Planned, ConfigErrors> {
    let cores = shard_cores(config, machine)?;
    let shards = if config.shards == 0 { cores.len() } else { config.shards };
    let connections_max = connections_that_fit(config, machine, shards)?;
    let bytes_max = memory_bytes_max(config.limits.memory_bytes_max, machine.memory_bytes);
    check_memory(bytes_max)?;
    let limits = Limits { connections_per_shard_max: connections_max, ..config.limits };
    let limits = within_memory(limits, bytes_max, shards);
    let plan = Plan {
        node: machine.node,
        node_name: config.node_name.clone().unwrap_or_else(|| made_up_name(machine.node)),
        listen: config.listen,
        ops_listen: config.ops_listen,
        ops_api_key: config.ops_api_key.clone(),
        ops_public_paths: config.ops_public_paths.clone(),
        shards: shard_plans(shards, &cores),
        other_cores: other_cores(shards, &cores, machine),
        private_fd_tables: config.private_fd_tables,
        scheduling: config.scheduling,
        backplane_priority: config.backplane_priority as u8,
        steering: config.steering,
        namespaces: Arc::new(config.namespaces.clone()),
        echo_path: config.echo_path.clone(),
        page: config.page,
        origins: config.origins.0.clone(),
        rejected_handshakes: config.rejected_handshakes,
        proxy_protocol: config.proxy_protocol,
        trusted_proxies: config.trusted_proxies.clone(),
        listen_direct: config.listen_direct,
        limits,
        auth: auth_plan(config)?,
        backplane: backplane_plan(config),
        hooks: HooksPlan::of(config),
        drain_ms: config.drain_ms,
    };
    check_steering(&plan)?;
    let notices = notices(config, machine, &plan);
    Ok(Planned { plan, notices })
}

/// Less memory than this is not worth a start.
fn check_memory(bytes_max: u64) -> Result<(), ConfigErrors> {
    if bytes_max >= MEMORY_BYTES_MIN as u64 {
        return Ok(());
    }
    Err(conflict(format!(
        "limits.memory_bytes_max is {bytes_max}, and a node needs {MEMORY_BYTES_MIN} at least. Write \
         more, or 0 for three quarters of what the machine or the cgroup has"
    )))
}

fn conflict(message: String) -> ConfigErrors {
    ConfigErrors(vec![ConfigError::Contradiction { message }])
}

/// The cores that shards go to, in turn.
fn shard_cores(config: &Config, machine: &Machine) -> Result<Vec<usize>, ConfigErrors> {
    if config.cores.is_empty() {
        return Ok(machine.cores.clone());
    }
    match config.cores.iter().find(|core| !machine.cores.contains(core)) {
        None => Ok(config.cores.clone()),
        Some(core) => Err(conflict(format!(
            "cores = {:?}: this process may not use core {core}. Write cores out of {:?}",
            config.cores, machine.cores
        ))),
    }
}

/// Shards go to the cores in turn, so that more shards than cores are spread evenly.
fn shard_plans(shards: usize, cores: &[usize]) -> Vec<ShardPlan> {
    let in_turn = cores.iter().copied().cycle();
    // Without any core known nothing is pinned, and there is still a shard.
    let in_turn = in_turn.map(Some).chain(std::iter::repeat(None));
    let ids = (0..shards.max(1) as u16).map(ShardId);
    ids.zip(in_turn).map(|(id, core)| ShardPlan { id, core }).collect()
}

/// SteeringMode by core needs shards that stay on theirs.
fn check_steering(plan: &Plan) -> Result<(), ConfigErrors> {
    if plan.steering != SteeringMode::Cpu || plan.shards.iter().all(|shard| shard.core.is_some()) {
        return Ok(());
    }
    Err(conflict(
        "steering = cpu steers a connection to the shard that is pinned to the core which received \
         it, and shards are not pinned here: no core is known. Name some (cores = 0-3), or write \
         steering = even"
            .to_owned(),
    ))
}

/// The cores that no shard has. None left: the other threads go wherever the kernel puts them.
fn other_cores(shards: usize, cores: &[usize], machine: &Machine) -> Vec<usize> {
    let taken = &cores[..shards.min(cores.len())];
    machine.cores.iter().copied().filter(|core| !taken.contains(core)).collect()
}

fn cores_without_shard(machine: &Machine, plan: &Plan) -> Vec<usize> {
    let has_shard = |core: &usize| plan.shards.iter().any(|shard| shard.core == Some(*core));
    machine.cores.iter().copied().filter(|core| !has_shard(core)).collect()
}

/// Connections of one shard, as configured or as many as it can have descriptors for.
fn connections_that_fit(
    config: &Config,
    machine: &Machine,
    shards: usize,
) -> Result<usize, ConfigErrors> {
    let shards = shards.max(1) as u64;
    let reserve = FILES_OF_NODE + FILES_OF_SHARD * shards;
    let tables_share = if config.private_fd_tables { 1 } else { shards };
    let fit = machine.nofile.saturating_sub(reserve) / tables_share;
    if fit == 0 {
        return Err(conflict(format!(
            "the limit on open files is {}, and {shards} shards need more than {reserve} before \
             the first connection. Raise it (ulimit -n, LimitNOFILE= of systemd), or write fewer \
             shards",
            machine.nofile
        )));
    }
    Ok(config.limits.connections_per_shard_max.min(usize::try_from(fit).unwrap_or(usize::MAX)))
}

/// Not the host's name, which clients should not see; and different for two nodes of one host.
fn made_up_name(node: NodeId) -> String {
    format!("node-{:08x}", node.0 as u32)
}

fn auth_plan(config: &Config) -> Result<AuthPlan, ConfigErrors> {
    let has_tokens = config.has_tokens();
    let keys = match &config.auth_keys_text {
        Some(text) => VerifyingKeys::read(text).map_err(|why| {
            let path = config.auth_keys_file.as_deref().unwrap_or_default();
            conflict(format!("auth.keys_file = {path}: {why}"))
        })?,
        None => VerifyingKeys::default(),
    };
    Ok(AuthPlan {
        anonymous: config.auth_anonymous.unwrap_or(!has_tokens),
        hmac_secret: config.auth_hmac_secret.clone(),
        keys,
        jwks: jwks_plan(config),
        issuer: config.auth_issuer.clone(),
        audience: config.auth_audience.clone(),
        claims: claim_names(config)?,
        leeway_s: config.auth_leeway_s,
        first_message_timeout_ms: config.auth_first_message_timeout_ms,
        expiry_notice_s: config.auth_expiry_notice_s,
        anonymous_rights: config.auth_anonymous_rights.unwrap_or(config.auth_user_rights),
        user_rights: config.auth_user_rights,
    })
}

/// Where keys are read from.
fn jwks_plan(config: &Config) -> Option<JwksPlan> {
    let url = config.auth_jwks_url.as_ref()?;
    Some(JwksPlan {
        url: url.clone(),
        tls_ca_file: config.auth_jwks_tls_ca_file.clone(),
        timeout: Duration::from_millis(config.auth_jwks_timeout_ms),
        refresh_min: Duration::from_secs(config.auth_jwks_refresh_min_s),
        refresh_max: Duration::from_secs(config.auth_jwks_refresh_max_s),
    })
}

/// Where in a token the claims stand.
fn claim_names(config: &Config) -> Result<ClaimNames, ConfigErrors> {
    let names = ClaimNames::default()
        .with("sub", config.auth_user_claim.as_deref())
        .with("rooms", config.auth_rooms_claim.as_deref())
        .with("send", config.auth_send_claim.as_deref())
        .with("rights", config.auth_rights_claim.as_deref());
    let required = config.auth_required_claims.as_deref().unwrap_or_default();
    names.requiring(required).map_err(|why| conflict(format!("auth.required_claims: {why}")))
}

fn backplane_plan(config: &Config) -> BackplanePlan {
    match &config.backplane {
        BackplaneUrl::Memory => BackplanePlan::Memory,
        BackplaneUrl::Redis(servers) => BackplanePlan::Redis(RedisPlan {
            servers: servers.clone(),
            prefix: config.redis_prefix.clone(),
            linger_ms: config.redis_linger_ms,
            canary_interval_ms: config.redis_canary_interval_ms,
            canary_timeout_ms: config.redis_canary_timeout_ms,
            timeout_ms: config.redis_timeout_ms,
            backoff_ms_max: config.redis_backoff_ms_max,
            tls_ca_file: config.redis_tls_ca_file.clone(),
            monitor_interval_ms: config.redis_monitor_interval_ms,
            keeps_history: config.namespaces.have_history(),
        }),
    }
}

fn notices(config: &Config, machine: &Machine, plan: &Plan) -> Vec<StartupNotice> {
    let debug = |text| StartupNotice { level: NoticeLevel::Debug, text };
    let info = |text| StartupNotice { level: NoticeLevel::Info, text };
    let warning = |text| StartupNotice { level: NoticeLevel::Warning, text };
    let mut notices = vec![debug(format!("{plan:?}"))];
    let wanted = config.limits.connections_per_shard_max;
    let had = plan.limits.connections_per_shard_max;
    if had < wanted {
        let text = format!(
            "limits.connections_per_shard_max is {had} instead of {wanted}: the limit on open \
             files is {} for {}. Raise it (ulimit -n, LimitNOFILE= of systemd){}",
            machine.nofile,
            if config.private_fd_tables { "each shard" } else { "all shards together" },
            if config.private_fd_tables { "" } else { ", or set private_fd_tables = true" },
        );
        // A number that was configured and is not reached is worth a warning; a default is a bound.
        let asked = wanted != Limits::PRODUCTION.connections_per_shard_max;
        notices.push(if asked { warning(text) } else { debug(text) });
    }
    if !plan.auth.has_tokens() {
        notices.push(warning(
            "auth.hmac_secret is not set, nor auth.keys_file and auth.jwks_url: EVERY CLIENT THAT REACHES THE PORT MAY CONNECT, WITHOUT A \
             NAME, and may do what auth.anonymous_rights says. Set it before others can reach this"
                .to_owned(),
        ));
    }
    if plan.auth.hmac_secret.as_ref().is_some_and(|secret| secret.len() < SECRET_BYTES_GOOD) {
        notices.push(warning(format!(
            "auth.hmac_secret is shorter than {SECRET_BYTES_GOOD} bytes and easier to guess than \
             it need be. Take for example `openssl rand -base64 33`"
        )));
    }
    for key in &config.secrets_trimmed {
        notices.push(info(format!("{key} ended in a line break, which is not part of it")));
    }
    if plan.namespaces.want_replicas() && matches!(plan.backplane, BackplanePlan::Memory) {
        notices.push(warning(
            "durability = replicated means nothing with backplane = memory: there is no replica, and \
             stored messages are gone when this process ends"
                .to_owned(),
        ));
    }
    let unmanned = cores_without_shard(machine, plan);
    if plan.steering == SteeringMode::Cpu && !unmanned.is_empty() {
        notices.push(info(format!(
            "steering = cpu: no shard is pinned to core {unmanned:?}; what they receive goes to any \
             shard. Keep the network card's interrupts off them"
        )));
    }
    notices.push(debug(plan.memory().to_string()));
    notices.push(debug(MemoryBudget::of(plan).to_string()));
    if let Some(memory) =
        machine.memory_bytes.filter(|memory| MemoryBudget::of(plan).total() > *memory)
    {
        notices.push(debug(format!(
            "these limits allow more than the {} of memory here: all clients slow, or all sending \
             their largest message, at the same time would not fit. Lower limits.outbox_bytes_max, \
             limits.message_bytes_max or limits.connections_per_shard_max where that may happen",
            ByteSize(memory)
        )));
    }
    notices
}

/// What all limits together allow to be held in memory, line by line (without the kernel's own
/// memory for sockets). An upper bound that no real load comes near.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryBudget(pub Vec<BudgetLine>);

/// One line of a [`MemoryBudget`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BudgetLine {
    /// What holds the memory, in the plural.
    pub name: &'static str,
    /// The number of them at most.
    pub count: u64,
    /// What each may hold, in bytes.
    pub bytes_each: u64,
}

/// An idle connection: its own state, its future, its places in topics.
const CONNECTION_BYTES: u64 = 512;
/// A topic without members: its names in the shard and in the backplane, and its places in tables.
const TOPIC_BYTES: u64 = 512;
/// A user in a room with presence: names, places in tables, and the longest `info`.
const PRESENCE_BYTES: u64 = 1024;
/// A member who acknowledges: what it has acknowledged, and its places in tables.
const ACK_BYTES: u64 = 64;
/// An item in a channel, without its payload.
const ITEM_BYTES: u64 = 128;

impl MemoryBudget {
    /// What a plan allows.
    pub fn of(plan: &Plan) -> MemoryBudget {
        let limits = &plan.limits;
        let shards = plan.shards.len() as u64;
        let connections = shards * limits.connections_per_shard_max as u64;
        let message = limits.message_bytes_max as u64;
        // Any connection may ask for the echo path, where there is one.
        let (echo, echo_outbox) = match &plan.echo_path {
            Some(_) => (limits.echo_message_bytes_max, limits.echo_outbox_bytes_max()),
            None => (0, 0),
        };
        let line = |name, count: u64, bytes_each: u64| BudgetLine { name, count, bytes_each };
        let waiting = match &plan.backplane {
            BackplanePlan::Memory => 0,
            BackplanePlan::Redis(_) => limits.publish_queue_bytes_max as u64,
        };
        let is_alone = matches!(plan.backplane, BackplanePlan::Memory);
        let has_histories = is_alone && plan.namespaces.have_history();
        let present = match plan.namespaces.have_presence() {
            true => connections * limits.rooms_per_connection_max as u64,
            false => 0,
        };
        let acknowledging = match plan.namespaces.have_acks() {
            true => connections * limits.rooms_per_connection_max as u64,
            false => 0,
        };
        let bodies = match plan.ops_public_paths.is_empty() {
            true => 0,
            false => limits.http_calls_max as u64,
        };
        MemoryBudget(vec![
            line("connections", connections, CONNECTION_BYTES),
            line("outboxes", connections, limits.outbox_bytes_max.max(echo_outbox) as u64),
            line("half messages", connections, message.max(echo as u64)),
            line("heads", shards * limits.handshakes_max as u64, limits.head_bytes_max as u64),
            line("request bodies", bodies, limits.http_body_bytes_max as u64),
            line("topics", shards * limits.topics_per_shard_max as u64, TOPIC_BYTES),
            // One more channel than shards: the operators' own.
            line(
                "uplink items",
                shards * limits.uplink_items_max as u64 + limits.ops_items_max() as u64,
                ITEM_BYTES + message,
            ),
            line("downlink items", shards * limits.downlink_items_max as u64, ITEM_BYTES + message),
            line("downlink backlogs", shards, limits.downlink_backlog_bytes_max as u64),
            line("read buffers", shards, limits.read_turn_bytes_max as u64),
            line("publish queue", 1, waiting),
            line("histories", u64::from(has_histories), limits.history_bytes_max as u64),
            line("presences", present, PRESENCE_BYTES),
            line("acknowledging members", acknowledging, ACK_BYTES),
        ])
    }

    /// The sum, in bytes.
    pub fn total(&self) -> u64 {
        let held = self.0.iter().map(|line| line.count.saturating_mul(line.bytes_each));
        held.fold(0, u64::saturating_add)
    }
}

impl fmt::Display for MemoryBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("all limits together: ")?;
        for (i, BudgetLine { name, count, bytes_each }) in self.0.iter().enumerate() {
            let plus = if i == 0 { "" } else { " + " };
            write!(f, "{plus}{name} {count} × {}", ByteSize(*bytes_each))?;
        }
        write!(f, " = at most {} ({} bytes)", ByteSize(self.total()), self.total())
    }
}

impl Plan {
    /// How the memory of the process is divided.
    pub fn memory(&self) -> MemoryPlan {
        let has_redis = matches!(self.backplane, BackplanePlan::Redis(_));
        let has_histories = self.namespaces.have_history();
        MemoryPlan::of(&self.limits, self.shards.len(), has_histories, has_redis)
    }
}

/// Without secrets: a plan is logged at debug.
impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plan")
            .field("node", &self.node_name)
            .field("listen", &self.listen)
            .field("ops_listen", &self.ops_listen)
            .field("ops_api_key", &self.ops_api_key.is_some())
            .field("ops_public_paths", &self.ops_public_paths)
            .field("shards", &self.shards.len())
            .field("cores", &self.shards.iter().filter_map(|shard| shard.core).collect::<Vec<_>>())
            .field("other_cores", &self.other_cores)
            .field("private_fd_tables", &self.private_fd_tables)
            .field("scheduling", &self.scheduling)
            .field("backplane_priority", &self.backplane_priority)
            .field("steering", &self.steering)
            .field("namespaces", &self.namespaces.write())
            .field("echo_path", &self.echo_path)
            .field("page", &self.page)
            .field("origins", &self.origins)
            .field("rejected_handshakes", &self.rejected_handshakes)
            .field("proxy_protocol", &self.proxy_protocol)
            .field("trusted_proxies", &written(&self.trusted_proxies))
            .field("listen_direct", &self.listen_direct)
            .field("auth", &self.auth)
            .field("backplane", &self.backplane)
            .field("hooks", &self.hooks)
            .field("drain_ms", &self.drain_ms)
            .field("limits", &self.limits)
            .finish()
    }
}

/// Networks as an operator writes them.
fn written(networks: &[Network]) -> Vec<String> {
    networks.iter().map(Network::to_string).collect()
}

impl fmt::Debug for RedisPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisPlan")
            .field("servers", &self.servers)
            .field("prefix", &self.prefix)
            .field("linger_ms", &self.linger_ms)
            .field("canary_interval_ms", &self.canary_interval_ms)
            .field("canary_timeout_ms", &self.canary_timeout_ms)
            .field("timeout_ms", &self.timeout_ms)
            .field("backoff_ms_max", &self.backoff_ms_max)
            .field("tls_ca_file", &self.tls_ca_file)
            .field("monitor_interval_ms", &self.monitor_interval_ms)
            .finish()
    }
}

#[cfg(test)]
mod tests;
