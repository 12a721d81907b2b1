//! `POST /v1/revocations`: tokens that are refused from now on, on every node.
//!
//! The backplane stores the order and brings it to the nodes, each of which closes the connections
//! whose token it is about.

use super::Ops;
use super::error::ApiError;
use super::publish::RequestBody;
use crate::ids::is_name;
use crate::link::{ReplyTo, RevokeOutcome, RevokeRequest, Uplink};
use crate::policy::revocations::{MOMENT_MAX_S, Revocation, RevokedSubject, is_token_id};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::oneshot;
use tokio::time::timeout;

/// The body of an order.
pub(super) const BODY_BYTES_MAX: usize = 4096;
/// How long the backplane may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// How long an order is remembered that does not say until when.
const REMEMBERED_S: u64 = 30 * 24 * 3600;

/// Exactly one of the first three says whose tokens.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OrderBody {
    user_id: Option<String>,
    token_id: Option<String>,
    #[serde(default)]
    all: bool,
    issued_before: Option<u64>,
    until: Option<u64>,
}

/// `POST /v1/revocations`: answered when the order is stored.
pub(super) async fn revoke(
    State(ops): State<Arc<Ops>>,
    RequestBody(body): RequestBody,
) -> Result<Json<Value>, ApiError> {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
    let revocation = understand(&body, since_1970.map_or(0, |since| since.as_secs()))?;
    let mut answer = json!({"ok": true, "scope": "all_nodes", "until": revocation.until_s});
    if !matches!(revocation.subject, RevokedSubject::Token(_)) {
        answer["issued_before"] = json!(revocation.issued_before_s);
    }
    let (outcome_to, outcome) = oneshot::channel();
    let reply = ReplyTo::Call(Box::new(move |outcome| {
        // The caller may have disconnected.
        let _ = outcome_to.send(outcome);
    }));
    let order = Uplink::Revoke(Box::new(RevokeRequest { revocation, reply }));
    ops.end.try_publish(order).map_err(|_full| ApiError::overloaded())?;
    let refused = |status, code, message: &'static str| Err(ApiError::new(status, code, message));
    let unavailable = StatusCode::SERVICE_UNAVAILABLE;
    match timeout(ANSWER_MAX, outcome).await {
        Ok(Ok(RevokeOutcome::Stored)) => Ok(Json(answer)),
        Ok(Ok(RevokeOutcome::Full)) => refused(
            StatusCode::INSUFFICIENT_STORAGE,
            "revocations_full",
            "there are limits.revocations_max revocations that are not over: nothing was revoked. \
             Revoke with \"all\", or raise the limit",
        ),
        Ok(Ok(RevokeOutcome::Unavailable)) => refused(
            unavailable,
            "backplane_unavailable",
            "Redis is unavailable or refused the command: nothing was revoked",
        ),
        _ => refused(
            unavailable,
            "outcome_unknown",
            "the backplane did not answer in time: it may hold or not. Send it again",
        ),
    }
}

fn understand(body: &[u8], now_s: u64) -> Result<Revocation, ApiError> {
    let bad = |message: &'static str| Err(ApiError::bad_request(message));
    let OrderBody { user_id, token_id, all, issued_before, until } =
        serde_json::from_slice(body).map_err(|error| ApiError::bad_request(error.to_string()))?;
    let subject = match (user_id, token_id, all) {
        (Some(user), None, false) if is_name(&user) => RevokedSubject::User(user.into()),
        (Some(_), None, false) => {
            return bad(
                "a user is 1 to 255 bytes without invisible characters or blanks around it",
            );
        }
        (None, Some(id), false) if is_token_id(&id) => RevokedSubject::Token(id.into()),
        (None, Some(_), false) => return bad("token_id must be 1 to 255 bytes, as in jti"),
        (None, None, true) => RevokedSubject::Everybody,
        _ => return bad("send one of user_id, token_id and \"all\":true"),
    };
    let is_token = matches!(subject, RevokedSubject::Token(_));
    if is_token && issued_before.is_some() {
        return bad("issued_before is for user_id and all: a token_id is one token");
    }
    // A token that was issued in this very second may be one of those that are meant.
    let issued_before_s = if is_token { 0 } else { issued_before.unwrap_or(now_s + 1) };
    let until_s = until.unwrap_or(now_s + REMEMBERED_S);
    if issued_before_s > MOMENT_MAX_S || until_s > MOMENT_MAX_S {
        return bad("moments are in seconds since 1970, not in milliseconds");
    }
    if until_s <= now_s {
        return bad("until has passed: it must be when the last of these tokens expires");
    }
    Ok(Revocation { subject, issued_before_s, until_s })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_000_000;

    #[test]
    fn an_order_is_about_a_user_a_token_or_everybody() {
        let user = RevokedSubject::User("ann".into());
        let later = NOW + REMEMBERED_S;
        for (body, subject, issued_before_s, until_s) in [
            (r#"{"user_id":"ann"}"#, user.clone(), NOW + 1, later),
            (r#"{"user_id":"ann","issued_before":5,"until":1000001}"#, user, 5, NOW + 1),
            (r#"{"token_id":"x"}"#, RevokedSubject::Token("x".into()), 0, later),
            (r#"{"all":true}"#, RevokedSubject::Everybody, NOW + 1, later),
        ] {
            let wanted = Revocation { subject, issued_before_s, until_s };
            assert_eq!(understand(body.as_bytes(), NOW), Ok(wanted), "{body}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_what_to_send() {
        let long = format!(r#"{{"token_id":"{}"}}"#, "x".repeat(256));
        for (body, word) in [
            ("", "EOF"),
            ("{}", "send one of"),
            (r#"{"user_id":"ann","all":true}"#, "send one of"),
            (r#"{"user_id":"ann","token_id":"x"}"#, "send one of"),
            (r#"{"user_id":""}"#, "a user is"),
            (r#"{"token_id":"x","issued_before":5}"#, "one token"),
            (r#"{"all":true,"issued_before":1700000000000}"#, "milliseconds"),
            (r#"{"all":true,"until":1000000}"#, "has passed"),
            (r#"{"all":true,"reason":"x"}"#, "unknown field"),
            (&long, "255 bytes"),
        ] {
            let refused = understand(body.as_bytes(), NOW).unwrap_err();
            assert_eq!(refused.status, StatusCode::BAD_REQUEST);
            assert!(refused.message.contains(word), "{body}: {refused:?}");
        }
    }
}
