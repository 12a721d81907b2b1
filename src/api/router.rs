//! Every path of the operators' port, with the bound on its body.

use super::error::ApiError;
use super::{Ops, connections, guard, history, metrics, presence, publish};
use super::{revocations, rooms, stats, users};
use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use std::sync::Arc;

pub(super) fn router(ops: Arc<Ops>) -> Router {
    // What stands around a payload is small; escapes in names may take six bytes for one.
    let one =
        DefaultBodyLimit::max(ops.plan().limits.message_bytes_max + publish::AROUND_BYTES_MAX);
    let many = DefaultBodyLimit::max(publish::BATCH_BYTES_MAX);
    let short = DefaultBodyLimit::max(users::BODY_BYTES_MAX);
    let order = DefaultBodyLimit::max(revocations::BODY_BYTES_MAX);
    let guarded = Router::new()
        .route("/v1/publish", post(publish::one).layer(one))
        .route("/v1/publish/batch", post(publish::batch).layer(many))
        .route("/v1/stats", get(stats::stats))
        .route("/v1/rooms", get(rooms::list))
        .route("/v1/rooms/{id}", get(rooms::room))
        .route("/v1/rooms/{id}/history", get(history::history))
        .route("/v1/rooms/{id}/presence", get(presence::presence))
        .route("/v1/users/{id}", get(users::user))
        .route("/v1/users/{id}/disconnect", post(users::disconnect).layer(short))
        .route("/v1/revocations", post(revocations::revoke).layer(order))
        .route("/v1/connections", get(connections::list))
        .route_layer(from_fn_with_state(ops.clone(), guard::guard));
    Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/readyz", get(stats::readyz))
        .route("/metrics", get(metrics::metrics))
        .merge(guarded)
        .fallback(|| async { ApiError::not_found() })
        .method_not_allowed_fallback(|| async {
            let status = StatusCode::METHOD_NOT_ALLOWED;
            ApiError::new(status, "method_not_allowed", "this path takes another method")
        })
        .with_state(ops)
}
