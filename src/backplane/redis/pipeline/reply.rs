//! Sending commands and taking their replies without waiting.

use redis::aio::MultiplexedConnection;
use redis::{Pipeline, RedisResult, Value};
use std::pin::Pin;
use std::task::{Context, Poll};

/// A reply in flight.
pub(crate) type PendingReply<T> =
    futures_util::future::MaybeDone<Pin<Box<dyn Future<Output = RedisResult<T>>>>>;

/// The replies to a batch, which have not arrived yet.
pub(crate) trait BatchReply {
    /// Takes them out, if they have arrived: one for each command, errors included. `Err`: there
    /// are none, because the connection broke or the server did not answer in time.
    fn poll_batch(&mut self, cx: &mut Context<'_>) -> Poll<RedisResult<Vec<Value>>>;
}

impl BatchReply for PendingReply<Vec<Value>> {
    fn poll_batch(&mut self, cx: &mut Context<'_>) -> Poll<RedisResult<Vec<Value>>> {
        poll_reply(self, cx)
    }
}

/// Sends a command: the future is polled once, which hands the command to the connection's driver.
pub(crate) fn send<T>(
    cx: &mut Context<'_>,
    reply: impl Future<Output = RedisResult<T>> + 'static,
) -> PendingReply<T> {
    let boxed: Pin<Box<dyn Future<Output = RedisResult<T>>>> = Box::pin(reply);
    let mut reply = futures_util::future::maybe_done(boxed);
    let _ = Pin::new(&mut reply).poll(cx);
    reply
}

/// Takes a reply out, if it has arrived.
pub(crate) fn poll_reply<T>(
    reply: &mut PendingReply<T>,
    cx: &mut Context<'_>,
) -> Poll<RedisResult<T>> {
    Pin::new(&mut *reply)
        .poll(cx)
        .map(|()| Pin::new(reply).take_output().expect("a reply is taken out once"))
}

/// Sends all commands of a pipeline. The replies include the server's errors, each in its place.
pub(crate) async fn execute(
    cmd: impl Into<MultiplexedConnection>,
    pipeline: Pipeline,
) -> RedisResult<Vec<Value>> {
    execute_on(&mut cmd.into(), &pipeline).await
}

/// The same as [`execute`] on a borrowed connection.
pub(crate) async fn execute_on(
    cmd: &mut MultiplexedConnection,
    pipeline: &Pipeline,
) -> RedisResult<Vec<Value>> {
    cmd.send_packed_commands(pipeline, 0, pipeline.len()).await
}
