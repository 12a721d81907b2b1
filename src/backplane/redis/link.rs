//! Two connections to one server: `sub` only subscribes, `cmd` does everything else.
//!
//! Two, because Redis treats a connection with subscriptions differently (it cuts a slow one at
//! 32 MB of waiting messages), and that must not take the publishes with it. Both are the redis
//! crate's plain multiplexed connection: it never reconnects by itself, so what it lost is known.
//!
//! Messages arrive in a closure on the crate's driver task, which must not wait. It puts them into
//! a queue bounded in items and bytes. When that is full this thread has fallen behind by tens of
//! thousands of messages; the link is then given up, because a loss that everyone sees (readiness,
//! log, counter) is better than one that nobody does.
//!
//! Invariant: a link that [`connect`] hands out speaks RESP3 to two masters.

use super::names::Names;
use super::scripts;
use redis::aio::{MultiplexedConnection, SendError};
use redis::io::tcp::TcpSettings;
use redis::{
    AsyncConnectionConfig, Client, IntoConnectionInfo, ProtocolVersion, PushInfo, PushKind,
    RedisResult, TlsCertificates, Value,
};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{Receiver, Sender, channel, error::TrySendError};

/// Messages that wait between the driver task and the loop.
const PUSHES_MAX: usize = 64 * 1024;
/// And their bytes.
const PUSHES_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Pipelines that the crate queues by itself. More than are ever in flight, so that handing one
/// over never waits, and the order of handing over is the order on the wire.
const PIPELINES_MAX: usize = 64;

/// A reply under way. All of them are polled by the loop itself.
pub type Reply<T> = futures_util::future::MaybeDone<Pin<Box<dyn Future<Output = RedisResult<T>>>>>;

/// Sends: the future is polled once, which hands its command to the driver. The reply comes later.
pub fn send<T>(
    cx: &mut Context<'_>,
    reply: impl Future<Output = RedisResult<T>> + 'static,
) -> Reply<T> {
    let boxed: Pin<Box<dyn Future<Output = RedisResult<T>>>> = Box::pin(reply);
    let mut reply = futures_util::future::maybe_done(boxed);
    let _ = Pin::new(&mut reply).poll(cx);
    reply
}

/// Takes the reply out, if it has come.
pub fn poll_reply<T>(reply: &mut Reply<T>, cx: &mut Context<'_>) -> Poll<RedisResult<T>> {
    Pin::new(&mut *reply)
        .poll(cx)
        .map(|()| Pin::new(reply).take_output().expect("a reply is taken out once"))
}

/// A message as it came.
pub struct Push {
    /// On which channel.
    pub channel: Vec<u8>,
    /// What.
    pub body: Vec<u8>,
}

/// What the driver handed over.
pub struct Pushes {
    queue: Receiver<Push>,
    budget: Arc<Semaphore>,
}

impl Pushes {
    /// The next message. `Err` when the connection is lost, or the queue ran over.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Push, &'static str>> {
        match self.queue.poll_recv(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(_) if self.budget.is_closed() => {
                Poll::Ready(Err("messages came faster than this node could hand them on"))
            }
            Poll::Ready(Some(push)) => {
                self.budget.add_permits(cost(&push));
                Poll::Ready(Ok(push))
            }
            Poll::Ready(None) => Poll::Ready(Err("the subscribing connection was lost")),
        }
    }
}

fn cost(push: &Push) -> usize {
    push.channel.len() + push.body.len()
}

/// The driver's end.
struct PushesIn {
    queue: Sender<Push>,
    budget: Arc<Semaphore>,
}

impl PushesIn {
    /// Never waits. Closing the budget is how the other end learns that the queue ran over.
    fn hand_over(&self, info: PushInfo) -> Result<(), SendError> {
        let Some(push) = message(info) else { return Ok(()) };
        let bytes = u32::try_from(cost(&push)).unwrap_or(u32::MAX);
        match self.budget.try_acquire_many(bytes) {
            Ok(permit) => permit.forget(),
            Err(_) => return self.run_over(),
        }
        match self.queue.try_send(push) {
            Ok(()) => Ok(()),
            Err(TrySendError::Closed(_)) => Err(SendError),
            Err(TrySendError::Full(_)) => self.run_over(),
        }
    }

    fn run_over(&self) -> Result<(), SendError> {
        self.budget.close();
        Err(SendError)
    }
}

fn message(info: PushInfo) -> Option<Push> {
    if info.kind != PushKind::Message {
        return None;
    }
    match <[Value; 2]>::try_from(info.data) {
        Ok([Value::BulkString(channel), Value::BulkString(body)]) => Some(Push { channel, body }),
        _ => None,
    }
}

fn pushes() -> (PushesIn, Pushes) {
    let (queue_in, queue) = channel(PUSHES_MAX);
    let budget = Arc::new(Semaphore::new(PUSHES_BYTES_MAX));
    (PushesIn { queue: queue_in, budget: budget.clone() }, Pushes { queue, budget })
}

/// See the module.
pub struct Link {
    /// Subscribes.
    pub sub: MultiplexedConnection,
    /// Everything else.
    pub cmd: MultiplexedConnection,
    /// What arrives on `sub`.
    pub pushes: Pushes,
    /// Which server this is, and which of its histories: changes when it restarts, and when it has
    /// been a replica in between. Empty where no history is kept.
    pub generation: String,
}

/// How long things may take.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// To connect, and for a reply on `cmd`.
    pub usual: Duration,
    /// For a reply on `sub`, where it queues behind messages.
    pub sub: Duration,
}

/// Connects both, and makes sure that they reach a master. `tls_ca_file`: who may have signed the
/// server's certificate. It is read each time, so that it can be exchanged while the node runs.
pub async fn connect(
    url: String,
    tls_ca_file: Option<String>,
    names: Names,
    timeouts: Timeouts,
    keeps_history: bool,
) -> Result<Link, String> {
    let (pushes_in, pushes) = pushes();
    let config = || {
        AsyncConnectionConfig::new()
            .set_connection_timeout(Some(timeouts.usual))
            .set_pipeline_buffer_size(PIPELINES_MAX)
    };
    let sub_config = config()
        .set_response_timeout(Some(timeouts.sub))
        .set_push_sender(move |info| pushes_in.hand_over(info));
    let cmd_config = config().set_response_timeout(Some(timeouts.usual));
    let client = client(&url, tls_ca_file.as_deref())?;
    let sub = open(&client, &sub_config, format!("{}-sub", names.client));
    let cmd = open(&client, &cmd_config, format!("{}-cmd", names.client));
    // Together at most as long as one: a fault is noticed and healed within seconds.
    let both = async { tokio::try_join!(sub, cmd) };
    let known = async {
        let (mut sub, mut cmd) = both.await?;
        let generation = match keeps_history {
            true => known_generation(&mut sub, &mut cmd).await?,
            false => String::new(),
        };
        Ok(Link { sub, cmd, pushes, generation })
    };
    tokio::time::timeout(timeouts.usual * 2, known)
        .await
        .map_err(|_| "the server does not answer".to_owned())?
}

/// What a history needs: to know whose it is, and the scripts.
async fn known_generation(
    sub: &mut MultiplexedConnection,
    cmd: &mut MultiplexedConnection,
) -> Result<String, String> {
    let [of_sub, generation] = [generation(sub).await?, generation(cmd).await?];
    if of_sub != generation {
        return Err("the two connections reach two servers".to_owned());
    }
    scripts::load(cmd.clone()).await.map_err(|error| format!("SCRIPT LOAD: {error}"))?;
    Ok(generation)
}

/// The run and the replication of a server, as `INFO` tells them.
async fn generation(connection: &mut MultiplexedConnection) -> Result<String, String> {
    let said = |error: redis::RedisError| format!("INFO, which histories need: {error}");
    let mut halves = String::new();
    for (section, field) in [("server", "run_id:"), ("replication", "master_replid:")] {
        let info: String =
            redis::cmd("INFO").arg(section).query_async(connection).await.map_err(said)?;
        let value = info.lines().find_map(|line| line.strip_prefix(field));
        let half = value.and_then(|value| value.trim().get(..16));
        halves.push_str(half.ok_or_else(|| format!("INFO {section} says no {field}"))?);
    }
    Ok(halves)
}

fn client(url: &str, tls_ca_file: Option<&str>) -> Result<Client, String> {
    let said = |error: redis::RedisError| error.to_string();
    let info = url.into_connection_info().map_err(said)?;
    let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
    let tcp = TcpSettings::default().set_nodelay(true);
    let info = info.set_redis_settings(settings).set_tcp_settings(tcp);
    let Some(path) = tls_ca_file else { return Client::open(info).map_err(said) };
    let trouble = |error: String| format!("redis.tls_ca_file = {path}: {error}");
    let root_cert = std::fs::read(path).map_err(|error| trouble(error.to_string()))?;
    let certificates = TlsCertificates { client_tls: None, root_cert: Some(root_cert) };
    Client::build_with_tls(info, certificates).map_err(|error| trouble(error.to_string()))
}

async fn open(
    client: &Client,
    config: &AsyncConnectionConfig,
    name: String,
) -> Result<MultiplexedConnection, String> {
    let said = |error: redis::RedisError| error.to_string();
    let mut connection =
        client.get_multiplexed_async_connection_with_config(config).await.map_err(said)?;
    redis::cmd("CLIENT")
        .arg("SETNAME")
        .arg(name)
        .exec_async(&mut connection)
        .await
        .map_err(said)?;
    let role: Value = redis::cmd("ROLE").query_async(&mut connection).await.map_err(said)?;
    match &role {
        Value::Array(parts) if is_text(parts.first(), b"master") => Ok(connection),
        // A replica takes subscriptions and publishes, but the rest of the system does not see them.
        _ => Err("the server is not a master".into()),
    }
}

fn is_text(value: Option<&Value>, text: &[u8]) -> bool {
    match value {
        Some(Value::BulkString(bytes)) => bytes == text,
        Some(Value::SimpleString(string)) => string.as_bytes() == text,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Waker;

    fn info(body: Vec<u8>) -> PushInfo {
        let data = vec![Value::BulkString(b"channel".to_vec()), Value::BulkString(body)];
        PushInfo { kind: PushKind::Message, data }
    }

    fn next(pushes: &mut Pushes) -> Poll<Result<Vec<u8>, &'static str>> {
        let mut cx = Context::from_waker(Waker::noop());
        pushes.poll_next(&mut cx).map(|next| next.map(|push| push.body))
    }

    #[test]
    fn a_queue_that_ran_over_in_items_or_bytes_breaks_the_link() {
        let (pushes_in, mut pushes) = super::pushes();
        for _ in 0..PUSHES_MAX {
            assert!(pushes_in.hand_over(info(vec![1])).is_ok());
        }
        assert!(pushes_in.hand_over(info(vec![1])).is_err());
        assert!(matches!(next(&mut pushes), Poll::Ready(Err(_))));

        let (pushes_in, mut pushes) = super::pushes();
        assert!(pushes_in.hand_over(info(vec![0; PUSHES_BYTES_MAX])).is_err());
        assert!(pushes_in.hand_over(info(vec![0; 1])).is_err(), "closed is closed");
        drop(pushes_in);
        assert!(matches!(next(&mut pushes), Poll::Ready(Err(_))));
    }

    #[test]
    fn what_was_taken_makes_room_again() {
        let (pushes_in, mut pushes) = super::pushes();
        for round in 0..100 {
            let body = vec![round; PUSHES_BYTES_MAX / 10];
            assert!(pushes_in.hand_over(info(body.clone())).is_ok(), "round {round}");
            assert_eq!(next(&mut pushes), Poll::Ready(Ok(body)));
        }
        assert_eq!(next(&mut pushes), Poll::Pending);
        drop(pushes_in);
        assert!(matches!(next(&mut pushes), Poll::Ready(Err(_))));
    }

    #[test]
    fn a_url_with_tls_finds_its_cryptography() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("rediss://{}", listener.local_addr().unwrap());
        let names = Names::new("test", crate::ids::NodeId(1));
        let usual = Duration::from_millis(200);
        let timeouts = Timeouts { usual, sub: usual };
        // Nobody answers; but without a provider the crate panics before it waits.
        let refused = runtime.block_on(connect(url, None, names, timeouts, false));
        assert!(refused.is_err());
    }
}
