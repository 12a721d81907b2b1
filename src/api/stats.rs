//! `/readyz` and `/v1/stats`: how the node is, for load balancers and for people.

use super::{Ops, redis_stats};
use crate::link::health::NotReady;
use crate::metrics::ShardCounters;
use crate::plan::BackplanePlan;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde_json::{Value, json};
use std::sync::Arc;

/// `GET /readyz`: 200 while new clients may be sent here, else 503 and why not.
pub(super) async fn readyz(State(ops): State<Arc<Ops>>) -> (StatusCode, Json<Value>) {
    match readiness(&ops) {
        ready if ready["ready"] == true => (StatusCode::OK, Json(ready)),
        not_ready => (StatusCode::SERVICE_UNAVAILABLE, Json(not_ready)),
    }
}

fn readiness(ops: &Ops) -> Value {
    let shards = ops.shards.len();
    let (reason, detail) = match ops.health.ready(shards as u16) {
        Ok(()) => return json!({"ready": true}),
        Err(NotReady::Starting { listening }) => {
            ("starting", format!("{listening} of {shards} shards listen"))
        }
        Err(NotReady::Backplane) => return redis_stats::not_ready(&ops.backplane.redis()),
        Err(NotReady::Memory) => ("memory", "this node is near limits.memory_bytes_max".to_owned()),
        Err(NotReady::Keys) => {
            ("keys", "the keys of auth.jwks_url were not read yet; the log says why".to_owned())
        }
        Err(NotReady::Draining) => ("draining", "this node is about to end".to_owned()),
    };
    json!({"ready": false, "reason": reason, "detail": detail})
}

/// `GET /v1/stats`
pub(super) async fn stats(State(ops): State<Arc<Ops>>) -> Json<Value> {
    let shards: Vec<ShardCounters> = ops.shards.iter().map(|mirror| mirror.read()).collect();
    let sum = |field: fn(&ShardCounters) -> u64| shards.iter().map(field).sum::<u64>();
    let backplane = ops.backplane.read();
    let (node_plan, reloads) = (ops.plan(), ops.reloads.read());
    let (kind, redis) = match &node_plan.backplane {
        BackplanePlan::Memory => ("memory", None),
        BackplanePlan::Redis(plan) => {
            ("redis", Some(redis_stats::summary(plan, &backplane, &ops.backplane.redis())))
        }
    };
    let hooks = node_plan.hooks.urls().next().map(|_| ops.hooks.read()).map(|hooks| {
        json!({
            "asked": hooks.asked,
            "allowed": hooks.allowed,
            "denied": hooks.denied,
            "failed": hooks.failed,
            "cached": hooks.cached,
            "not_asked": hooks.circuit_refused + hooks.overdue,
            "waiting": hooks.waiting,
            "circuits_open": hooks.circuits_open,
        })
    });
    Json(json!({
        "node": node_plan.node_name,
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_s": ops.started.elapsed().as_secs(),
        "readiness": readiness(&ops),
        "shards": shards.len(),
        "connections": sum(|shard| shard.connections),
        "members": sum(|shard| shard.members),
        "topics": backplane.topics,
        "messages_in": sum(|shard| shard.messages_in),
        "deliveries": sum(|shard| shard.deliveries),
        "outbox_bytes": sum(|shard| shard.outbox_bytes),
        "backplane": {
            "kind": kind,
            "up": backplane.up == 1,
            "publishes": backplane.publishes,
            "publishes_unreplicated": backplane.publishes_unreplicated,
            "received": backplane.received,
            "publish_queue_bytes": backplane.publish_queue_bytes,
            "reconnects": backplane.reconnects,
            "canary_rtt_us": backplane.canary_rtt_us,
        },
        "config": {
            "reloads_applied": reloads.applied,
            "reloads_refused": reloads.refused,
            "last_reload_unix_s": Some(reloads.last_unix_s).filter(|at| *at > 0),
        },
        "hooks": hooks,
        "redis": redis,
    }))
}
