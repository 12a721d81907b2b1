//! `POST /v1/publish` and `/v1/publish/batch`: other services publish to rooms, to users and to all
//! connections.
//!
//! A message takes the same way as a client's: through the uplink channel to the backplane. The
//! answer comes when the backplane has it. `payload` travels byte for byte.

use super::Ops;
use super::error::ApiError;
use super::listener::SILENCE_MAX;
use crate::ids::{CONFLATE_KEY_BYTES_MAX, ConflateKey, Position, TopicName, is_name};
use crate::link::{FullShare, Publish, PublishOutcome, ReplyTo, Uplink};
use crate::plan::Plan;
use crate::policy::rights::{Action, Asker, may};
use crate::protocol::native::KEY_BYTES_MAX;
use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, Request, State};
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout, timeout_at};

/// What may stand around one payload.
pub(super) const AROUND_BYTES_MAX: usize = 4096;
/// The body of a batch.
pub(super) const BATCH_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Messages of one batch.
const BATCH_MESSAGES_MAX: usize = 1000;
/// How long a body may take. The largest one needs 9 Mbit/s.
const BODY_MAX: Duration = Duration::from_secs(15);
/// Beyond the time a publish may wait for Redis: for Redis's own answer, with room to spare.
const ANSWER_EXTRA: Duration = Duration::from_secs(5);

/// One message. Fields that are not known are refused: one that is misspelt, or that a newer
/// version has, would otherwise be lost silently.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Message<'a> {
    #[serde(borrow)]
    room_id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    target_user_id: Option<Cow<'a, str>>,
    broadcast: Option<bool>,
    #[serde(borrow)]
    payload: &'a RawValue,
    /// Makes a retry harmless, where messages are stored.
    key: Option<Box<str>>,
    /// What it is about, in a room that conflates for slow members; elsewhere it means nothing.
    #[serde(borrow)]
    conflate_key: Option<Cow<'a, str>>,
}

/// A message that may be sent.
struct ParsedMessage {
    topic: TopicName,
    payload: bytes::Bytes,
    key: Option<Box<str>>,
    conflate_key: Option<ConflateKey>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Batch<'a> {
    // Each is read by itself, so that one bad message does not refuse the others.
    #[serde(borrow)]
    messages: Vec<&'a RawValue>,
}

/// `POST /v1/publish`
pub(super) async fn one(
    State(ops): State<Arc<Ops>>,
    RequestBody(body): RequestBody,
) -> Result<Json<Value>, ApiError> {
    let outcome = send(&ops, understand(&body, &ops.plan())?)?;
    let position = position_of(outcome, deadline(&ops)).await?;
    Ok(Json(sent(position)))
}

/// `POST /v1/publish/batch`: `{"results":[…]}`, one for each message, in their order. The messages
/// are sent in their order too.
pub(super) async fn batch(
    State(ops): State<Arc<Ops>>,
    RequestBody(body): RequestBody,
) -> Result<Json<Value>, ApiError> {
    let Batch { messages } =
        serde_json::from_slice(&body).map_err(|error| ApiError::bad_request(error.to_string()))?;
    if messages.len() > BATCH_MESSAGES_MAX {
        let message = format!("{} messages; at most {BATCH_MESSAGES_MAX} at once", messages.len());
        return Err(ApiError::bad_request(message));
    }
    let outcomes: Vec<_> = messages
        .iter()
        .map(|message| send(&ops, understand(message.get().as_bytes(), &ops.plan())?))
        .collect();
    let deadline = deadline(&ops);
    let mut results = Vec::new();
    for outcome in outcomes {
        let answer = match outcome {
            Ok(outcome) => position_of(outcome, deadline).await,
            Err(refused) => Err(refused),
        };
        results.push(answer.map_or_else(|refused| refused.body(), sent));
    }
    Ok(Json(json!({"results": results})))
}

/// A whole body. Its deadline bounds how long a request holds its turn (`guard::AT_A_TIME_MAX`).
pub(super) struct RequestBody(pub(super) Bytes);

impl FromRequest<Arc<Ops>> for RequestBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, ops: &Arc<Ops>) -> Result<RequestBody, ApiError> {
        match timeout(BODY_MAX, Bytes::from_request(request, ops)).await {
            Ok(Ok(body)) => Ok(RequestBody(body)),
            Ok(Err(rejection)) => Err(unreadable(&rejection)),
            Err(_) => {
                ops.count_refused(|counters| &mut counters.slow_body);
                tracing::debug!("the body of a request did not come in time");
                let message = format!("the body did not come within {} s", BODY_MAX.as_secs());
                Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "timeout", message))
            }
        }
    }
}

fn unreadable(rejection: &BytesRejection) -> ApiError {
    match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "too_large",
            "the body is larger than this path takes; a message may have limits.message_bytes_max",
        ),
        _ => ApiError::bad_request("the body ended before it was whole"),
    }
}

/// Where the message stands, if its room keeps a history.
fn sent(position: Option<Position>) -> Value {
    match position {
        None => json!({"ok": true}),
        Some(Position { epoch, offset }) => {
            json!({"ok": true, "epoch": epoch.to_string(), "offset": offset})
        }
    }
}

/// Reads and judges one message.
fn understand(text: &[u8], plan: &Plan) -> Result<ParsedMessage, ApiError> {
    let limits = &plan.limits;
    let message: Message<'_> =
        serde_json::from_slice(text).map_err(|error| ApiError::bad_request(error.to_string()))?;
    let payload = message.payload.get().as_bytes();
    check_size(payload, limits.message_bytes_max)?;
    // As for clients, the object around the payload counts as a level.
    if 1 + depth(payload) > limits.json_depth_max {
        let max = limits.json_depth_max;
        let message =
            format!("nested too deeply: at most {max} levels, the message's own included");
        return Err(ApiError::new(StatusCode::BAD_REQUEST, "bad_json", message));
    }
    let topic = topic(&message)?;
    match plan.namespaces.policy(topic.kind()).message_bytes_max {
        0 => {}
        max => check_size(payload, max)?,
    }
    if let Some(key) = &message.key {
        check_key(key)?;
    }
    let action = Action::Publish { has_key: message.key.is_some() };
    may(&plan.namespaces, Asker::Service, action, topic.kind())
        .map_err(|denied| ApiError::denied(denied, StatusCode::BAD_REQUEST))?;
    let conflate_key = message.conflate_key.as_deref().map(conflate_key).transpose()?;
    let conflate_key = conflate_key.filter(|_| plan.namespaces.policy(topic.kind()).conflates());
    let payload = bytes::Bytes::copy_from_slice(payload);
    Ok(ParsedMessage { topic, payload, key: message.key, conflate_key })
}

fn check_size(payload: &[u8], bytes_max: usize) -> Result<(), ApiError> {
    if payload.len() <= bytes_max {
        return Ok(());
    }
    let message = format!("payload has {} bytes; at most {bytes_max} are taken", payload.len());
    Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message))
}

fn conflate_key(key: &str) -> Result<ConflateKey, ApiError> {
    ConflateKey::of(key).ok_or_else(|| {
        let max = CONFLATE_KEY_BYTES_MAX;
        ApiError::bad_request(format!("conflate_key must be a string of 1 to {max} bytes"))
    })
}

fn check_key(key: &str) -> Result<(), ApiError> {
    if !(1..=KEY_BYTES_MAX).contains(&key.len()) {
        let message = format!("key must be a string of 1 to {KEY_BYTES_MAX} bytes");
        return Err(ApiError::bad_request(message));
    }
    Ok(())
}

fn topic(message: &Message<'_>) -> Result<TopicName, ApiError> {
    let named = |key: &str, name: &str, topic: fn(&str) -> TopicName| match is_name(name) {
        true => Ok(topic(name)),
        false => Err(ApiError::bad_request(format!(
            "{key} must be 1 to 255 bytes without invisible characters or blanks around it"
        ))),
    };
    match (&message.room_id, &message.target_user_id, message.broadcast) {
        (Some(room), None, None | Some(false)) => named("room_id", room, TopicName::room),
        (None, Some(user), None | Some(false)) => named("target_user_id", user, TopicName::user),
        (None, None, Some(true)) => Ok(TopicName::all()),
        _ => Err(ApiError::bad_request(
            "write one of \"room_id\":\"…\", \"target_user_id\":\"…\", \"broadcast\":true",
        )),
    }
}

/// How deep arrays and objects nest in valid JSON, without recursion.
fn depth(json: &[u8]) -> usize {
    let (mut depth, mut deepest) = (0usize, 0usize);
    let (mut in_string, mut escaped) = (false, false);
    for byte in json {
        match (in_string, byte) {
            (true, _) if escaped => escaped = false,
            (true, b'\\') => escaped = true,
            (_, b'"') => in_string = !in_string,
            (false, b'[' | b'{') => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            (false, b']' | b'}') => depth -= 1,
            _ => {}
        }
    }
    deepest
}

/// Sends one message up. The outcome comes later.
fn send(ops: &Ops, message: ParsedMessage) -> Result<oneshot::Receiver<PublishOutcome>, ApiError> {
    let ParsedMessage { topic, payload, key, conflate_key } = message;
    let (outcome_to, outcome) = oneshot::channel();
    let done = ReplyTo::Call(Box::new(move |outcome| {
        // The caller may have disconnected.
        let _ = outcome_to.send(outcome);
    }));
    let (from, info, except) = (None, None, None);
    let publish = Publish { topic, payload, from, info, except, key, conflate_key, done };
    match ops.end.try_publish(Uplink::Publish(publish)) {
        Ok(()) => Ok(outcome),
        Err(_full) => Err(ApiError::overloaded()),
    }
}

fn deadline(ops: &Ops) -> Instant {
    Instant::now() + patience(ops.plan().limits.publish_queue_ms_max)
}

/// How long an outcome is waited for. A message may wait for Redis longer than a connection may be
/// idle; the caller is answered "outcome_unknown" before its connection is closed.
fn patience(publish_queue_ms_max: u64) -> Duration {
    (Duration::from_millis(publish_queue_ms_max) + ANSWER_EXTRA).min(SILENCE_MAX - ANSWER_EXTRA)
}

async fn position_of(
    outcome: oneshot::Receiver<PublishOutcome>,
    deadline: Instant,
) -> Result<Option<Position>, ApiError> {
    let unavailable = |code, message| ApiError::new(StatusCode::SERVICE_UNAVAILABLE, code, message);
    match timeout_at(deadline, outcome).await {
        Ok(Ok(PublishOutcome::Accepted(position))) => Ok(position),
        Ok(Ok(PublishOutcome::Unavailable)) => Err(unavailable(
            "backplane_unavailable",
            "Redis is unavailable or refused it; the message was not sent",
        )),
        Ok(Ok(PublishOutcome::Full(FullShare::Histories))) => Err(unavailable(
            "overloaded",
            "there is no room for its history; the message was not sent, raise limits.history_bytes_max",
        )),
        Ok(Ok(PublishOutcome::Full(FullShare::IdempotencyKeys))) => Err(unavailable(
            "overloaded",
            "too many keys are remembered; the message was not sent, try again in some minutes",
        )),
        // Without an answer, too, the outcome is unknown.
        Ok(Ok(PublishOutcome::Unknown) | Err(_)) | Err(_) => Err(unavailable(
            "outcome_unknown",
            "the backplane did not confirm it; the message may have been delivered",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_is_answered_before_its_connection_is_closed_as_idle() {
        let second = Duration::from_secs(1);
        assert_eq!(patience(10_000), 10 * second + ANSWER_EXTRA);
        assert!(patience(600_000) + second < SILENCE_MAX);
    }
}
