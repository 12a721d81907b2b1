//! Sending commands and taking their replies without waiting: every sender of this room keeps its
//! pending replies and polls them in its turn.

use crate::backplane::redis::names::Names;
use redis::aio::MultiplexedConnection;
use redis::{Pipeline, RedisResult, Value};
use std::pin::Pin;
use std::task::{Context, Poll};

/// A reply under way. All of them are polled by the loop itself.
pub type PendingReply<T> =
    futures_util::future::MaybeDone<Pin<Box<dyn Future<Output = RedisResult<T>>>>>;

/// Sends: the future is polled once, which hands its command to the driver. The reply comes later.
pub fn send<T>(
    cx: &mut Context<'_>,
    reply: impl Future<Output = RedisResult<T>> + 'static,
) -> PendingReply<T> {
    let boxed: Pin<Box<dyn Future<Output = RedisResult<T>>>> = Box::pin(reply);
    let mut reply = futures_util::future::maybe_done(boxed);
    let _ = Pin::new(&mut reply).poll(cx);
    reply
}

/// All commands of a pipeline, and what was answered to each, errors of the server included.
pub async fn execute(
    mut cmd: MultiplexedConnection,
    pipeline: Pipeline,
) -> RedisResult<Vec<Value>> {
    let commands = pipeline.len();
    cmd.send_packed_commands(&pipeline, 0, commands).await
}

/// Takes the reply out, if it has come.
pub fn poll_reply<T>(reply: &mut PendingReply<T>, cx: &mut Context<'_>) -> Poll<RedisResult<T>> {
    Pin::new(&mut *reply)
        .poll(cx)
        .map(|()| Pin::new(reply).take_output().expect("a reply is taken out once"))
}

/// The way to a server that is up, as those who send something see it.
pub struct CommandContext<'a> {
    /// For everything.
    pub cmd: &'a MultiplexedConnection,
    /// For what must be on a replica.
    pub replicated: Option<&'a MultiplexedConnection>,
    /// What channels and keys are called.
    pub names: &'a Names,
    /// See [`crate::backplane::redis::connection::ServerLink::generation`].
    pub generation: &'a str,
    /// How a message is said: `PUBLISH`, or in a Cluster `SPUBLISH`.
    pub publish: &'static str,
}

impl CommandContext<'_> {
    /// Whether the server is one of a Cluster, where topics move.
    pub fn is_sharded(&self) -> bool {
        self.publish == "SPUBLISH"
    }
}

/// The answers to a pipeline one by one: that one of them is an error says nothing of the others.
pub async fn execute_on(
    cmd: &mut MultiplexedConnection,
    pipeline: &Pipeline,
) -> RedisResult<Vec<Value>> {
    cmd.send_packed_commands(pipeline, 0, pipeline.len()).await
}
