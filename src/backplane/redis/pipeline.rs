//! Sending commands and taking their replies without waiting. Every sender of this room keeps its
//! pending replies and polls them in its turn of the backplane loop.

use crate::backplane::redis::names::Names;
use redis::aio::MultiplexedConnection;
use redis::{Pipeline, RedisResult, Value};
use std::pin::Pin;
use std::task::{Context, Poll};

/// A reply in flight.
pub(super) type PendingReply<T> =
    futures_util::future::MaybeDone<Pin<Box<dyn Future<Output = RedisResult<T>>>>>;

/// Sends a command: the future is polled once, which hands the command to the connection's driver.
pub(super) fn send<T>(
    cx: &mut Context<'_>,
    reply: impl Future<Output = RedisResult<T>> + 'static,
) -> PendingReply<T> {
    let boxed: Pin<Box<dyn Future<Output = RedisResult<T>>>> = Box::pin(reply);
    let mut reply = futures_util::future::maybe_done(boxed);
    let _ = Pin::new(&mut reply).poll(cx);
    reply
}

/// Sends all commands of a pipeline. The replies include the server's errors, each in its place.
pub(super) async fn execute(
    mut cmd: MultiplexedConnection,
    pipeline: Pipeline,
) -> RedisResult<Vec<Value>> {
    let commands = pipeline.len();
    cmd.send_packed_commands(&pipeline, 0, commands).await
}

/// Takes a reply out, if it has arrived.
pub(super) fn poll_reply<T>(
    reply: &mut PendingReply<T>,
    cx: &mut Context<'_>,
) -> Poll<RedisResult<T>> {
    Pin::new(&mut *reply)
        .poll(cx)
        .map(|()| Pin::new(reply).take_output().expect("a reply is taken out once"))
}

/// What is needed to send commands to a server that is up.
pub(super) struct CommandContext<'a> {
    /// The connection for commands.
    pub cmd: &'a MultiplexedConnection,
    /// The connection for publishes that wait for a replica; `None`: no namespace wants that.
    pub replicated: Option<&'a MultiplexedConnection>,
    /// Names of channels and keys.
    pub names: &'a Names,
    /// [`crate::backplane::redis::connection::ServerLink::generation`].
    pub generation: &'a str,
    /// The publish command: `PUBLISH`, or in a Cluster `SPUBLISH`.
    pub publish: &'static str,
}

impl CommandContext<'_> {
    /// Whether the server is one of a Cluster, where topics move.
    pub(super) fn is_sharded(&self) -> bool {
        self.publish == "SPUBLISH"
    }
}

/// The same as [`execute`] on a borrowed connection.
pub(super) async fn execute_on(
    cmd: &mut MultiplexedConnection,
    pipeline: &Pipeline,
) -> RedisResult<Vec<Value>> {
    cmd.send_packed_commands(pipeline, 0, pipeline.len()).await
}
