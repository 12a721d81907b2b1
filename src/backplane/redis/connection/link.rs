//! Opens all connections to a server, and checks what they are good for.

use crate::backplane::redis::connection::client::{Driver, connection_info, open};
use crate::backplane::redis::connection::generation::common_generation;
use crate::backplane::redis::connection::reply::is_master;
use crate::backplane::redis::connection::reply_limits::ReplyLimits;
use crate::backplane::redis::connection::subscriber::Subscriber;
use crate::backplane::redis::failure::classify::LinkUser;
use crate::backplane::redis::failure::{LinkError, Outage};
use crate::backplane::redis::names::Names;
use crate::backplane::redis::partition_set::PartitionSet;
use crate::backplane::redis::permissions::probe::PermissionProbe;
use crate::backplane::redis::permissions::table::Feature;
use crate::backplane::redis::scripts::{self, RepairStage, WindowReply, WindowReport};
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Pipeline, Value};
use std::time::Duration;

/// Pipelines that the crate queues. More than are ever in flight, so that queueing never waits, and
/// the order of queueing is the order on the wire.
const PIPELINES_MAX: usize = 64;

/// All connections to one server.
pub struct ServerLink {
    /// The connection for subscriptions.
    pub sub: Subscriber,
    /// The id of `sub` in `CLIENT LIST`; `Err`: this user may not ask for it.
    pub sub_id: Result<i64, LinkError>,
    /// The connection for commands.
    pub cmd: MultiplexedConnection,
    /// The connection for publishes with `WAIT`, if a namespace wants them.
    pub replicated: Option<MultiplexedConnection>,
    /// The server's run and replication ids (32 characters). Changes when it restarts, when it has
    /// been a replica in between, and, on a link that goes on, when it chooses another replication id
    /// for the same data. Empty where there is no history.
    pub generation: String,
    /// What the server has answered to the report that this node is connected: for each of its
    /// partitions whose repair window is not over.
    pub(in crate::backplane::redis) windows: Vec<(u16, WindowReply)>,
    /// The user, for errors of commands.
    pub(crate) user: LinkUser,
    /// What drives `cmd` and `replicated`.
    _drivers: Vec<Driver>,
}

/// What a link has to be good for.
#[derive(Clone, Debug, Default)]
pub struct LinkOptions {
    /// What the configuration needs.
    pub features: Vec<Feature>,
    /// A partition of the server.
    pub partition: u16,
    /// The server's partitions.
    pub(in crate::backplane::redis) owns: PartitionSet,
    /// The other nodes that lived when that was last known, as [`WindowReport`] names them.
    pub(in crate::backplane::redis) others: String,
    /// How large replies may be.
    pub replies: ReplyLimits,
}

impl LinkOptions {
    fn needs(&self, feature: Feature) -> bool {
        self.features.contains(&feature)
    }
}

/// Opens all connections and checks that they reach the same master, and that the user may do what
/// is needed, within twice `timeout`. `tls_ca_file`: the authorities that may have signed the
/// server's certificate; read at each connection, so that it can be replaced while the node runs.
pub async fn connect(
    url: String,
    tls_ca_file: Option<String>,
    names: Names,
    timeout: Duration,
    options: LinkOptions,
) -> Result<ServerLink, LinkError> {
    let info = connection_info(&url)?;
    let user = LinkUser::new(info.redis_settings().username(), "commanding");
    let tls_ca_file = tls_ca_file.as_deref();
    let config = AsyncConnectionConfig::new()
        .set_response_timeout(Some(timeout))
        .set_pipeline_buffer_size(PIPELINES_MAX);
    let sub_name = format!("{}-sub", names.client);
    let longest = options.replies.string_bytes_max;
    let sub = Subscriber::connect(&info, tls_ca_file, &sub_name, timeout, longest);
    let open_in_time = async || {
        let opened = open(&info, tls_ca_file, config.clone(), options.replies, &user);
        tokio::time::timeout(timeout, opened).await.map_err(|_| Outage::Timeout(""))?
    };
    let cmd = open_in_time();
    let replicated = async {
        match options.needs(Feature::Replicated) {
            true => open_in_time().await.map(Some),
            false => Ok(None),
        }
    };
    let linked = async {
        // Together they take at most as long as one. Our own connection knows best why it failed.
        let (sub, cmd, replicated) = tokio::join!(sub, cmd, replicated);
        let (sub, (cmd, driver), replicated) = (sub?, cmd?, replicated?);
        let (replicated, second) = replicated.unzip();
        let drivers = [Some(driver), second].into_iter().flatten().collect();
        let opened = OpenedConnections { sub, cmd, replicated, drivers };
        check(opened, &names, &options, user.clone()).await
    };
    tokio::time::timeout(timeout * 2, linked).await.map_err(|_| Outage::Timeout(""))?
}

/// Connections that are not checked yet.
struct OpenedConnections {
    sub: Subscriber,
    cmd: MultiplexedConnection,
    replicated: Option<MultiplexedConnection>,
    drivers: Vec<Driver>,
}

/// Checks connections before they are used.
async fn check(
    opened: OpenedConnections,
    names: &Names,
    options: &LinkOptions,
    user: LinkUser,
) -> Result<ServerLink, LinkError> {
    let OpenedConnections { mut sub, mut cmd, mut replicated, drivers } = opened;
    let (features, partition) = (&options.features[..], options.partition);
    let probe = PermissionProbe { features, names, partition, user: &user };
    probe.run(&mut cmd, &mut sub, &format!("{}-cmd", names.client)).await?;
    if let Some(replicated) = &mut replicated {
        check_role(replicated, format!("{}-sure", names.client), &user).await?;
    }
    let (generation, windows) = match options.needs(Feature::History) {
        true => {
            let commanding = std::iter::once(cmd.clone()).chain(replicated.clone());
            let generation = common_generation(&mut sub, commanding, &user).await?;
            let failure = |error: redis::RedisError| user.failure(&error);
            scripts::load(cmd.clone()).await.map_err(failure)?;
            let report =
                WindowReport::Stage { stage: RepairStage::Linked, others: &options.others };
            let (cmd, owns) = (cmd.clone(), &options.owns);
            let begun = scripts::report_window(cmd, names, owns, &generation, report);
            let mut windows = begun.await.map_err(failure)?;
            windows.retain(|(_, reply)| *reply != WindowReply::Over);
            (generation, windows)
        }
        false => (String::new(), Vec::new()),
    };
    let sub_id = sub.ask(&[b"CLIENT", b"ID"]).await;
    let no_id = |_| Outage::Protocol("CLIENT ID is no number".to_owned()).into();
    let sub_id = sub_id.and_then(|id| id.parse().map_err(no_id));
    let _drivers = drivers;
    Ok(ServerLink { sub, sub_id, cmd, replicated, generation, windows, user, _drivers })
}

/// Names a connection, and checks that it reaches a master.
async fn check_role(
    connection: &mut MultiplexedConnection,
    name: String,
    user: &LinkUser,
) -> Result<(), LinkError> {
    let mut pipeline = Pipeline::new();
    pipeline.cmd("CLIENT").arg("SETNAME").arg(name).ignore().cmd("ROLE");
    let role: Result<(Value,), _> = pipeline.query_async(connection).await;
    let (role,) = role.map_err(|error| user.failure(&error))?;
    if is_master(&role) { Ok(()) } else { Err(Outage::NotMaster.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::NodeId;

    #[test]
    fn a_url_with_tls_finds_its_cryptography() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("rediss://{}", listener.local_addr().unwrap());
        let names = Names::new("test", NodeId(1));
        let usual = Duration::from_millis(200);
        // Nobody answers; but without a provider the crate panics before it waits.
        let refused = runtime.block_on(connect(url, None, names, usual, LinkOptions::default()));
        assert!(refused.is_err());
    }
}
