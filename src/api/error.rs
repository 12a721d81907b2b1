//! How the API says no: always `{"error":{"code":…,"message":…}}`, code for programs, message for
//! people.

use crate::policy::rights::Denied;
use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use std::borrow::Cow;

/// A request that was not carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) status: StatusCode,
    pub(super) code: &'static str,
    pub(super) message: Cow<'static, str>,
}

impl Refused {
    pub(super) fn new(
        status: StatusCode,
        code: &'static str,
        message: impl Into<Cow<'static, str>>,
    ) -> Refused {
        Refused { status, code, message: message.into() }
    }

    /// There is no such path.
    pub(super) fn not_found() -> Refused {
        Refused::new(StatusCode::NOT_FOUND, "not_found", "there is nothing at this path")
    }

    /// The caller's fault.
    pub(super) fn bad_request(message: impl Into<Cow<'static, str>>) -> Refused {
        Refused::new(StatusCode::BAD_REQUEST, "bad_request", message)
    }

    /// A channel is full: this node has more to do than it can.
    pub(super) fn overloaded() -> Refused {
        let message = "this node has too much to do; try again later";
        Refused::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", message)
    }

    /// What [`crate::policy::rights::may`] says; `not_enabled`: the status where the topic has no
    /// such thing.
    pub(super) fn denied(denied: Denied, not_enabled: StatusCode) -> Refused {
        match denied {
            Denied::NotEnabled(message) => Refused::new(not_enabled, "not_enabled", message),
            Denied::Forbidden(message) | Denied::NotJoined(message) => {
                Refused::new(StatusCode::FORBIDDEN, "forbidden", message)
            }
        }
    }

    /// The body, also as one item of a batch.
    pub(super) fn body(&self) -> Value {
        json!({"error": {"code": self.code, "message": self.message}})
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.status, Json(self.body())).into_response()
    }
}
