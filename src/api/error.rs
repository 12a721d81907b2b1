//! Errors of the API: always `{"error":{"code":…,"message":…}}`, code for programs, message for
//! people.

use crate::policy::rights::NotAllowed;
use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use std::borrow::Cow;

/// Why a request was not carried out: status and body of its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ApiError {
    pub(super) status: StatusCode,
    pub(super) code: &'static str,
    pub(super) message: Cow<'static, str>,
}

impl ApiError {
    pub(super) fn new(
        status: StatusCode,
        code: &'static str,
        message: impl Into<Cow<'static, str>>,
    ) -> ApiError {
        ApiError { status, code, message: message.into() }
    }

    /// There is no such path.
    pub(super) fn not_found() -> ApiError {
        ApiError::new(StatusCode::NOT_FOUND, "not_found", "there is nothing at this path")
    }

    /// 400: the request is wrong.
    pub(super) fn bad_request(message: impl Into<Cow<'static, str>>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, "bad_request", message)
    }

    /// 503: a channel is full, so this node is overloaded.
    pub(super) fn overloaded() -> ApiError {
        let message = "this node is overloaded; try again later";
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", message)
    }

    /// What [`crate::policy::rights::may`] says; `not_enabled`: the status where the topic has no
    /// such thing.
    pub(super) fn denied(denied: NotAllowed, not_enabled: StatusCode) -> ApiError {
        match denied {
            NotAllowed::NotEnabled(message) => ApiError::new(not_enabled, "not_enabled", message),
            NotAllowed::AskHook => unreachable!("hooks are asked about clients"),
            NotAllowed::Forbidden(message) | NotAllowed::NotJoined(message) => {
                ApiError::new(StatusCode::FORBIDDEN, "forbidden", message)
            }
        }
    }

    /// The body, also as one item of a batch.
    pub(super) fn body(&self) -> Value {
        json!({"error": {"code": self.code, "message": self.message}})
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status, Json(self.body())).into_response()
    }
}
