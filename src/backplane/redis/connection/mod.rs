//! The connections to one server: `sub` only subscribes, `cmd` does everything else.
//!
//! Two, because Redis treats a connection with subscriptions differently (it cuts a slow one at 32
//! MB of queued messages), and that must not affect publishes. `cmd` is the redis crate's plain
//! multiplexed connection, which never reconnects by itself, so it is known what it lost. `sub` is
//! our own ([`subscriber`]). Where a namespace wants messages on a replica before they are
//! acknowledged there is a third, `replicated`, because `WAIT` blocks the commands behind it.
//!
//! Both read through limits ([`reply_limits`]): `cmd` and every other connection of the crate by
//! [`bounded`], `sub` in its own parser.
//!
//! Invariant: a link that [`connect`] returns speaks RESP3 to one master, on all its connections.

mod bounded;
mod buffers;
mod dial;
pub mod reply_limits;
mod resp;
pub mod subscriber;
pub mod subscriptions;

use crate::backplane::redis::connection::bounded::Bounded;
use crate::backplane::redis::connection::dial::dial;
use crate::backplane::redis::connection::reply_limits::ReplyLimits;
use crate::backplane::redis::connection::subscriber::Subscriber;
use crate::backplane::redis::names::Names;
use crate::backplane::redis::scripts;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, ConnectionInfo, IntoConnectionInfo, ProtocolVersion, Value};
use std::time::Duration;
use tokio::task::JoinHandle;

/// Pipelines that the crate queues. More than are ever in flight, so that queueing never waits, and
/// the order of queueing is the order on the wire.
const PIPELINES_MAX: usize = 64;

/// All connections to one server.
pub struct ServerLink {
    /// The connection for subscriptions.
    pub sub: Subscriber,
    /// The id of `sub` in `CLIENT LIST`; `Err`: this user may not ask for it.
    pub sub_id: Result<i64, String>,
    /// The connection for commands.
    pub cmd: MultiplexedConnection,
    /// The connection for publishes with `WAIT`, if a namespace wants them.
    pub replicated: Option<MultiplexedConnection>,
    /// The server's run and replication ids (32 characters). Changes when it restarts, and when it
    /// has been a replica in between. Empty where no history is stored.
    pub generation: String,
    /// What drives `cmd` and `replicated`.
    _drivers: Vec<Driver>,
}

/// The task that reads and writes for a connection of the redis crate. The connection ends with it.
pub struct Driver(JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What a link has to be good for, beside publishing and subscribing.
#[derive(Clone, Copy, Debug, Default)]
pub struct LinkOptions {
    /// Some namespace has a history.
    pub history: bool,
    /// Some namespace wants its messages on a replica.
    pub replicas: bool,
    /// How large replies may be.
    pub replies: ReplyLimits,
}

/// Opens all connections and checks that they reach the same master, within twice `timeout`.
/// `tls_ca_file`: the authorities that may have signed the server's certificate; read at each
/// connection, so that it can be replaced while the node runs. The error is for people.
pub async fn connect(
    url: String,
    tls_ca_file: Option<String>,
    names: Names,
    timeout: Duration,
    needs: LinkOptions,
) -> Result<ServerLink, String> {
    let info = connection_info(&url)?;
    let tls_ca_file = tls_ca_file.as_deref();
    let config = AsyncConnectionConfig::new()
        .set_response_timeout(Some(timeout))
        .set_pipeline_buffer_size(PIPELINES_MAX);
    let sub_name = format!("{}-sub", names.client);
    let longest = needs.replies.string_bytes_max;
    let sub = Subscriber::connect(&info, tls_ca_file, &sub_name, timeout, longest);
    let open = async |kind: &str| {
        let opened = open(&info, tls_ca_file, config.clone(), needs.replies);
        let opened = tokio::time::timeout(timeout, opened).await;
        let (mut connection, driver) = opened.map_err(|_| "the server does not answer")??;
        introduce(&mut connection, format!("{}-{kind}", names.client)).await?;
        Ok::<_, String>((connection, driver))
    };
    let cmd = open("cmd");
    let replicated = async {
        match needs.replicas {
            true => open("sure").await.map(Some),
            false => Ok(None),
        }
    };
    // Together they take at most as long as one.
    let all = async { tokio::try_join!(sub, cmd, replicated) };
    let known = async {
        let (mut sub, (mut cmd, driver), replicated) = all.await?;
        let (mut replicated, second) = replicated.unzip();
        let generation = match needs.history {
            true => known_generation(&mut sub, &mut cmd, replicated.as_mut(), &names).await?,
            false => String::new(),
        };
        let sub_id = sub.ask(&[b"CLIENT", b"ID"]).await;
        let sub_id = sub_id.and_then(|id| id.parse().map_err(|_| "no id".to_owned()));
        let drivers = [Some(driver), second].into_iter().flatten().collect();
        Ok(ServerLink { sub, sub_id, cmd, replicated, generation, _drivers: drivers })
    };
    tokio::time::timeout(timeout * 2, known)
        .await
        .map_err(|_| "the server does not answer".to_owned())?
}

/// What histories need: the server's generation, the same on all connections, and the scripts.
async fn known_generation(
    sub: &mut Subscriber,
    cmd: &mut MultiplexedConnection,
    replicated: Option<&mut MultiplexedConnection>,
    names: &Names,
) -> Result<String, String> {
    let mut all = vec![
        generation_of(async |section: &str| sub.ask(&[b"INFO", section.as_bytes()]).await).await?,
    ];
    for connection in
        std::iter::once(cmd.clone()).chain(replicated.map(|replicated| replicated.clone()))
    {
        let generation = generation_of(async |section: &str| {
            let info = redis::cmd("INFO").arg(section).query_async(&mut connection.clone()).await;
            info.map_err(|error: redis::RedisError| error.to_string())
        });
        all.push(generation.await?);
    }
    if all.windows(2).any(|pair| pair[0] != pair[1]) {
        return Err("the connections reach different servers".to_owned());
    }
    scripts::load(cmd.clone()).await.map_err(|error| format!("SCRIPT LOAD: {error}"))?;
    let generation = all.swap_remove(0);
    let begun = scripts::begin_fences(cmd.clone(), names, &generation).await;
    begun.map_err(|error| error.to_string())?;
    Ok(generation)
}

/// Run id and replication id of a server, from `INFO`.
async fn generation_of(
    mut info: impl AsyncFnMut(&str) -> Result<String, String>,
) -> Result<String, String> {
    let mut halves = String::new();
    for (section, field) in [("server", "run_id:"), ("replication", "master_replid:")] {
        let text = info(section).await;
        let text = text.map_err(|error| format!("INFO, which histories need: {error}"))?;
        let value = text.lines().find_map(|line| line.strip_prefix(field));
        let half = value.and_then(|value| value.trim().get(..16));
        halves.push_str(half.ok_or_else(|| format!("INFO {section} says no {field}"))?);
    }
    Ok(halves)
}

fn connection_info(url: &str) -> Result<ConnectionInfo, String> {
    let info = url.into_connection_info().map_err(|error| error.to_string())?;
    let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
    Ok(info.set_redis_settings(settings))
}

/// Opens a connection of the redis crate to a server that is no link, with the limits of those.
pub async fn open_url(
    url: &str,
    tls_ca_file: Option<&str>,
    config: AsyncConnectionConfig,
) -> Result<(MultiplexedConnection, Driver), String> {
    open(&connection_info(url)?, tls_ca_file, config, ReplyLimits::default()).await
}

/// Without a timeout of its own.
async fn open(
    info: &ConnectionInfo,
    tls_ca_file: Option<&str>,
    config: AsyncConnectionConfig,
    limits: ReplyLimits,
) -> Result<(MultiplexedConnection, Driver), String> {
    let stream = Bounded::new(dial(info.addr(), tls_ca_file).await?, limits);
    let opened = MultiplexedConnection::new_with_config(info.redis_settings(), stream, config);
    let (connection, driver) = opened.await.map_err(|error| error.to_string())?;
    Ok((connection, Driver(tokio::spawn(driver))))
}

/// Names the connection, and checks that the server is a master.
async fn introduce(connection: &mut MultiplexedConnection, name: String) -> Result<(), String> {
    let error_text = |error: redis::RedisError| error.to_string();
    let mut named = redis::cmd("CLIENT");
    named.arg("SETNAME").arg(name);
    named.exec_async(connection).await.map_err(error_text)?;
    let role: Value = redis::cmd("ROLE").query_async(connection).await.map_err(error_text)?;
    match &role {
        Value::Array(parts) if is_text(parts.first(), b"master") => Ok(()),
        // A replica accepts subscriptions and publishes, but the other nodes do not see them.
        _ => Err("the server is not a master".into()),
    }
}

/// Whether a reply is this text.
pub fn is_text(value: Option<&Value>, text: &[u8]) -> bool {
    match value {
        Some(Value::BulkString(bytes)) => bytes == text,
        Some(Value::SimpleString(string)) => string.as_bytes() == text,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_with_tls_finds_its_cryptography() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("rediss://{}", listener.local_addr().unwrap());
        let names = Names::new("test", crate::ids::NodeId(1));
        let usual = Duration::from_millis(200);
        // Nobody answers; but without a provider the crate panics before it waits.
        let refused = runtime.block_on(connect(url, None, names, usual, LinkOptions::default()));
        assert!(refused.is_err());
    }

    /// The configuration makes the URLs, the redis crate reads them.
    #[test]
    fn the_redis_crate_understands_the_url_of_each_server_as_it_is_meant() {
        use crate::config::RedisServers;
        for (text, user, password, db) in [
            ("redis://h", None, None, 0),
            ("redis://:p@h/3", None, Some("p"), 3),
            ("redis://%C3%A9:a%40%2F%3F%23%25:b@h", Some("\u{e9}"), Some("a@/?#%:b"), 0),
            ("rediss://u:p@[::1]:7/15", Some("u"), Some("p"), 15),
            ("redis+sentinel://u:p@s/m/2", Some("u"), Some("p"), 2),
            (
                "redis+unix:///run/a%20b.sock?db=4&user=u&password=%26%2B%20",
                Some("u"),
                Some("&+ "),
                4,
            ),
        ] {
            let servers = RedisServers::read(text).unwrap();
            let url = servers.login.url(&servers.addresses()[0]);
            let info = connection_info(&url).unwrap();
            let settings = info.redis_settings();
            let is = (settings.username(), settings.password(), settings.db());
            assert_eq!(is, (user, password, db), "{text}");
            let shown = info.addr().to_string();
            let at = shown.replace("::1", "[::1]").replace("[[", "[").replace("]]", "]");
            assert!(servers.addresses()[0] == shown || servers.addresses()[0] == at, "{shown}");
        }
    }
}
