//! `GET /v1/rooms/{id}/presence`: the users in a room, on all nodes.
//!
//! The request goes to the backplane, which has the answer or reads it from Redis. The answer is the
//! event that a client receives, written by the same code.

use super::Ops;
use super::error::ApiError;
use super::extract::NameInPath;
use super::rooms::may_read;
use crate::ids::{TopicName, is_name};
use crate::link::{PresenceRequest, ReplyTo, Uplink};
use crate::policy::rights::Action;
use crate::protocol::dialect::Dialect;
use crate::protocol::{Event, Roster};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// How long the backplane may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// `GET /v1/rooms/{id}/presence`: 404 where presence is off; an empty room is an empty list.
pub(super) async fn presence(
    State(ops): State<Arc<Ops>>,
    NameInPath(room): NameInPath,
) -> Result<Response, ApiError> {
    if !is_name(&room) {
        let message = "a room is 1 to 255 bytes without invisible characters or blanks around it";
        return Err(ApiError::bad_request(message));
    }
    may_read(&ops.plan(), Action::ReadPresence, &room)?;
    let here = ask(&ops, TopicName::room(&room)).await?;
    let mut body = Vec::new();
    Dialect::Native.write(&Event::Presence { id: None, room: &room, here: &here }, &mut body);
    Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
}

async fn ask(ops: &Ops, topic: TopicName) -> Result<Arc<Roster>, ApiError> {
    let (answer_to, answer) = oneshot::channel();
    let to = ReplyTo::Call(Box::new(move |here| {
        // The caller may have disconnected.
        let _ = answer_to.send(here);
    }));
    let question = Uplink::Presence(Box::new(PresenceRequest { topic, to }));
    ops.end.try_publish(question).map_err(|_full| ApiError::overloaded())?;
    match timeout(ANSWER_MAX, answer).await {
        Ok(Ok(Some(here))) => Ok(here),
        _ => {
            let message = "the backplane is away or does not answer in time";
            let status = StatusCode::SERVICE_UNAVAILABLE;
            Err(ApiError::new(status, "backplane_unavailable", message))
        }
    }
}
