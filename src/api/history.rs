//! `GET /v1/rooms/{id}/history`: the messages of a room with history.
//!
//! The question goes to the backplane, which has the history or reads it from Redis. Its messages come
//! back as the elements that clients receive, and are passed on as they are.

use super::Ops;
use super::error::ApiError;
use super::extract::{NameInPath, QueryOf};
use super::rooms::may_read;
use crate::ids::{Position, TopicName, is_name};
use crate::link::{HistoryError, HistoryPage, HistoryRequest, ReplyTo, Uplink};
use crate::policy::rights::Action;
use crate::protocol::dialect::Encoding;
use crate::protocol::native::{LIMIT_DEFAULT, LIMIT_MAX};
use crate::protocol::{Page, Unrecovered};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// How long the backplane may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(5);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HistoryQuery {
    limit: Option<u32>,
    epoch: Option<String>,
    offset: Option<u64>,
    #[serde(default)]
    reverse: bool,
}

/// `GET /v1/rooms/{id}/history?limit=&epoch=&offset=&reverse=`: messages after a position, or from
/// the oldest; with `reverse=true` before it, or from the newest. 404 where the room keeps none.
pub(super) async fn history(
    State(ops): State<Arc<Ops>>,
    NameInPath(room): NameInPath,
    QueryOf(wanted): QueryOf<HistoryQuery>,
) -> Result<Response, ApiError> {
    if !is_name(&room) {
        let message = "a room is 1 to 255 bytes without invisible characters or blanks around it";
        return Err(ApiError::bad_request(message));
    }
    may_read(&ops.plan(), Action::ReadHistory, &room)?;
    let page = page(&wanted)?;
    let HistoryPage { position, messages } = ask(&ops, TopicName::room(&room), page).await?;
    let Position { epoch, offset } = position;
    let room = serde_json::to_string(&room).expect("a text has a JSON form");
    // The elements of a page are JSON that we wrote around JSON that we checked: they are passed on
    // byte for byte, and not read again.
    let head = format!(r#"{{"room_id":{room},"epoch":"{epoch}","offset":{offset},"messages":["#);
    let body = [head.as_bytes(), &messages.bytes, b"]}"].concat();
    Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
}

fn page(wanted: &HistoryQuery) -> Result<Page, ApiError> {
    let limit = wanted.limit.unwrap_or(LIMIT_DEFAULT);
    if limit > LIMIT_MAX {
        return Err(ApiError::bad_request(format!("limit must be from 0 to {LIMIT_MAX}")));
    }
    let since = match (&wanted.epoch, wanted.offset) {
        (None, None) => None,
        (Some(epoch), Some(offset)) => Some(Position { epoch: epoch.parse().unwrap_or(0), offset }),
        _ => return Err(ApiError::bad_request("epoch and offset come together or not at all")),
    };
    Ok(Page { since, limit, reverse: wanted.reverse })
}

async fn ask(ops: &Ops, topic: TopicName, page: Page) -> Result<HistoryPage, ApiError> {
    let (answer_to, answer) = oneshot::channel();
    let to = ReplyTo::Call(Box::new(move |page| {
        // The caller may have disconnected.
        let _ = answer_to.send(page);
    }));
    let encoding = Encoding::NATIVE; // Its elements are the API's as well.
    let question = Uplink::History(Box::new(HistoryRequest { topic, page, encoding, to }));
    ops.end.try_publish(question).map_err(|_full| ApiError::overloaded())?;
    let unavailable =
        |message| ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "backplane_unavailable", message);
    match timeout(ANSWER_MAX, answer).await {
        Ok(Ok(Ok(page))) => Ok(page),
        Ok(Ok(Err(HistoryError::Unrecovered(why)))) => {
            let message = match why {
                Unrecovered::TailLost => "Redis lost the end of that history, and offset is in it",
                _ => "epoch is of another history",
            };
            Err(ApiError::new(StatusCode::GONE, why.as_str(), message))
        }
        Ok(Ok(Err(HistoryError::Overloaded))) => Err(ApiError::overloaded()),
        Ok(Ok(Err(HistoryError::Unreadable))) => Err(unavailable(
            "this history in Redis is not as this server writes it; the log says what to do",
        )),
        _ => Err(unavailable("the backplane is away or does not answer in time")),
    }
}
