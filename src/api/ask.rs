//! Asking shards: each through its channel, answered between two turns of its loop.
//!
//! An answer that does not come in time fails the request: half a sum would look like a whole one.

use super::Ops;
use super::error::ApiError;
use crate::ids::ShardId;
use crate::link::{Downlink, Inspect, ReplyTo};
use axum::http::StatusCode;
use futures_util::future::join_all;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// How long a shard may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// Asks every shard concurrently; the answers are in the order of the shards.
pub(super) async fn ask_all<T: Send + 'static>(
    ops: &Ops,
    question: impl Fn(ReplyTo<T>) -> Inspect,
) -> Result<Vec<T>, ApiError> {
    let shards = (0..ops.end.shards() as u16).map(ShardId);
    let answers: Vec<_> =
        shards.map(|shard| send(ops, shard, &question)).collect::<Result<_, _>>()?;
    let all = timeout(ANSWER_MAX, join_all(answers)).await.map_err(|_| silent())?;
    all.into_iter().map(|answer| answer.map_err(|_| silent())).collect()
}

/// Asks one shard; fails after [`ANSWER_MAX`], or at once if the shard's channel is full.
pub(super) async fn ask_one<T: Send + 'static>(
    ops: &Ops,
    shard: ShardId,
    question: impl Fn(ReplyTo<T>) -> Inspect,
) -> Result<T, ApiError> {
    let answer = send(ops, shard, &question)?;
    timeout(ANSWER_MAX, answer).await.map_err(|_| silent())?.map_err(|_| silent())
}

fn send<T: Send + 'static>(
    ops: &Ops,
    shard: ShardId,
    question: &impl Fn(ReplyTo<T>) -> Inspect,
) -> Result<oneshot::Receiver<T>, ApiError> {
    let (answer_to, answer) = oneshot::channel();
    let reply = ReplyTo::Call(Box::new(move |report| {
        // The caller may have disconnected.
        let _ = answer_to.send(report);
    }));
    let question = Downlink::Inspect(Box::new(question(reply)));
    ops.end.try_send(shard, question).map_err(|_full| ApiError::overloaded())?;
    Ok(answer)
}

fn silent() -> ApiError {
    let message = "a shard did not answer in time";
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "timeout", message)
}
