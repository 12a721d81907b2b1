//! `GET /v1/users/{id}` and `POST /v1/users/{id}/disconnect`.
//!
//! Where a user is connected is known to each node for itself, so the first answers for this node and
//! says so. The second is carried to every node by the backplane, on the channel on which the user's
//! messages travel.

use super::Ops;
use super::ask::ask_all;
use super::connections::names;
use super::error::ApiError;
use super::extract::NameInPath;
use super::publish::RequestBody;
use crate::ids::{TopicName, is_name};
use crate::link::{
    Disconnect, DisconnectRequest, Inspect, PublishOutcome, ReplyTo, Uplink, UserReport,
};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// The body of a disconnect.
pub(super) const BODY_BYTES_MAX: usize = 4096;
/// How long the backplane may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Policy violation (RFC 6455 §7.4.1): clients that follow the registry do not come back at once.
const CODE_DEFAULT: u16 = 1008;
const REASON_DEFAULT: &str = "disconnected by an operator";
/// Bytes of a reason that fit into a close frame after the code.
const REASON_BYTES_MAX: usize = 123;

/// `GET /v1/users/{id}`: a user that is not connected is no error.
pub(super) async fn user(
    State(ops): State<Arc<Ops>>,
    NameInPath(user): NameInPath,
) -> Result<Json<Value>, ApiError> {
    let user = checked(user)?;
    let topic = TopicName::user(&user);
    let question = |reply| Inspect::User { topic: topic.clone(), reply };
    let reports: Vec<UserReport> = ask_all(&ops, question).await?;
    let connections: usize = reports.iter().map(|report| report.connections).sum();
    let is_truncated = reports.iter().any(|report| report.is_truncated);
    let mut rooms: Vec<&str> = reports.iter().flat_map(|report| names(&report.rooms)).collect();
    rooms.sort_unstable();
    rooms.dedup();
    Ok(Json(json!({
        "user_id": user,
        "scope": "node",
        "online": connections > 0,
        "connections": connections,
        "rooms": rooms,
        "truncated": is_truncated,
    })))
}

/// Code and reason of the close frames. Both may be left out.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DisconnectBody {
    code: Option<u16>,
    reason: Option<String>,
}

/// `POST /v1/users/{id}/disconnect`: answered when the order to close them is on its way to
/// every node that has connections of the user.
pub(super) async fn disconnect(
    State(ops): State<Arc<Ops>>,
    NameInPath(user): NameInPath,
    RequestBody(body): RequestBody,
) -> Result<Json<Value>, ApiError> {
    let user = checked(user)?;
    let close = understand(&body)?;
    let code = close.code;
    let (outcome_to, outcome) = oneshot::channel();
    let reply = ReplyTo::Call(Box::new(move |outcome| {
        // The caller may have disconnected.
        let _ = outcome_to.send(outcome);
    }));
    let ask = DisconnectRequest { topic: TopicName::user(&user), close, reply };
    let ask = Uplink::Disconnect(Box::new(ask));
    ops.end.try_publish(ask).map_err(|_full| ApiError::overloaded())?;
    match timeout(ANSWER_MAX, outcome).await {
        Ok(Ok(PublishOutcome::Accepted(_))) => {
            Ok(Json(json!({"user_id": user, "scope": "all_nodes", "code": code})))
        }
        Ok(Ok(PublishOutcome::Unavailable)) => Err(unavailable(
            "backplane_unavailable",
            "Redis is unavailable or refused the command: no connection was closed",
        )),
        _ => Err(unavailable(
            "outcome_unknown",
            "the backplane did not answer in time: connections may or may not have been closed",
        )),
    }
}

fn unavailable(code: &'static str, message: &'static str) -> ApiError {
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, code, message)
}

fn checked(user: String) -> Result<String, ApiError> {
    if !is_name(&user) {
        let message = "a user is 1 to 255 bytes without invisible characters or blanks around it";
        return Err(ApiError::bad_request(message));
    }
    Ok(user)
}

/// Reads a body; an empty one means the defaults.
fn understand(body: &[u8]) -> Result<Disconnect, ApiError> {
    let body = if body.is_empty() { b"{}" } else { body };
    let DisconnectBody { code, reason } =
        serde_json::from_slice(body).map_err(|error| ApiError::bad_request(error.to_string()))?;
    let code = code.unwrap_or(CODE_DEFAULT);
    if !matches!(code, 1000 | 1008 | 3000..=4999) {
        return Err(ApiError::bad_request("code must be 1000, 1008 or from 3000 to 4999"));
    }
    let reason = reason.unwrap_or_else(|| REASON_DEFAULT.to_owned());
    if reason.len() > REASON_BYTES_MAX {
        let message = format!("reason must be at most {REASON_BYTES_MAX} bytes of UTF-8");
        return Err(ApiError::bad_request(message));
    }
    Ok(Disconnect { code, reason: reason.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disconnect_may_say_its_code_and_reason_within_what_a_close_frame_takes() {
        let good = [
            ("", 1008, REASON_DEFAULT),
            ("{}", 1008, REASON_DEFAULT),
            (r#"{"code":4001}"#, 4001, REASON_DEFAULT),
            (r#"{"code":1000,"reason":""}"#, 1000, ""),
        ];
        for (body, code, reason) in good {
            let close = Disconnect { code, reason: reason.into() };
            assert_eq!(understand(body.as_bytes()), Ok(close), "{body}");
        }
        let long = format!(r#"{{"reason":"{}"}}"#, "x".repeat(124));
        let bad = [
            (r#"{"code":1006}"#, "code must be"),
            (r#"{"code":5000}"#, "code must be"),
            (r#"{"code":70000}"#, "u16"),
            (r#"{"codes":4001}"#, "codes"),
            ("nonsense", "expected"),
            (&long[..], "123 bytes"),
        ];
        for (body, word) in bad {
            let refused = understand(body.as_bytes()).unwrap_err();
            assert_eq!(refused.status, StatusCode::BAD_REQUEST);
            assert!(refused.message.contains(word), "{body}: {refused:?}");
        }
    }
}
