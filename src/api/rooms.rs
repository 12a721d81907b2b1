//! `GET /v1/rooms` and `/v1/rooms/{id}`: rooms and how many members they have on this node.

use super::Ops;
use super::ask::{ask_all, ask_one};
use super::error::ApiError;
use super::extract::{NameInPath, QueryOf};
use crate::ids::{ShardId, TopicKind, is_name};
use crate::link::{AckReport, Inspect, RoomPage, RoomReport};
use crate::plan::Plan;
use crate::policy::rights::{Action, Asker, may};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use futures_util::future::try_join_all;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// How long all shards together may take to list their rooms.
const LIST_MAX: Duration = Duration::from_secs(10);
const ROOMS_DEFAULT: usize = 100;
/// Small enough that a shard's answer does not hold up its deliveries.
const ROOMS_MAX: usize = 1000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RoomsQuery {
    #[serde(default)]
    prefix: String,
    limit: Option<usize>,
}

/// `GET /v1/rooms?prefix=&limit=`: rooms with members on this node, by name. With
/// `"truncated":true` there are more rooms than were asked for, and the numbers of members that
/// are listed may be too low.
pub(super) async fn list(
    State(ops): State<Arc<Ops>>,
    QueryOf(wanted): QueryOf<RoomsQuery>,
) -> Result<Json<Value>, ApiError> {
    let limit = wanted.limit.unwrap_or(ROOMS_DEFAULT);
    if !(1..=ROOMS_MAX).contains(&limit) {
        return Err(ApiError::bad_request(format!("limit must be from 1 to {ROOMS_MAX}")));
    }
    let shards = (0..ops.end.shards() as u16).map(ShardId);
    // One more than asked for, to find out whether there are more.
    let lists = shards.map(|shard| rooms_of(&ops, shard, &wanted.prefix, limit + 1));
    let answers: Vec<Vec<RoomReport>> =
        timeout(LIST_MAX, try_join_all(lists)).await.map_err(|_| ApiError::overloaded())??;
    let cut_short = answers.iter().any(|rooms| rooms.len() > limit);
    let mut members = BTreeMap::<String, usize>::new();
    for report in answers.into_iter().flatten() {
        *members.entry(report.room).or_default() += report.members;
    }
    let truncated = cut_short || members.len() > limit;
    let rooms: Vec<Value> = members
        .into_iter()
        .take(limit)
        .map(|(room, members)| json!({"room_id": room, "members": members}))
        .collect();
    Ok(Json(json!({"rooms": rooms, "truncated": truncated})))
}

/// At most `max` rooms of one shard. It is asked for a part of its table at a time, so that its
/// deliveries go on in between, however many rooms it has.
async fn rooms_of(
    ops: &Ops,
    shard: ShardId,
    prefix: &str,
    max: usize,
) -> Result<Vec<RoomReport>, ApiError> {
    let (mut rooms, mut from) = (Vec::new(), 0);
    loop {
        let left = max - rooms.len();
        let question = |reply| Inspect::Rooms { prefix: prefix.into(), from, max: left, reply };
        let mut page: RoomPage = ask_one(ops, shard, question).await?;
        rooms.append(&mut page.rooms);
        match page.next {
            // A page moves on, so this ends.
            Some(next) if next > from && rooms.len() < max => from = next,
            _ => return Ok(rooms),
        }
    }
}

/// `GET /v1/rooms/{id}`: 404 when it has no member on this node.
pub(super) async fn room(
    State(ops): State<Arc<Ops>>,
    NameInPath(room): NameInPath,
) -> Result<Json<Value>, ApiError> {
    if !is_name(&room) {
        let message = "a room is 1 to 255 bytes without invisible characters or blanks around it";
        return Err(ApiError::bad_request(message));
    }
    let answers = ask_all(&ops, |reply| Inspect::Room { room: room.clone(), reply });
    let reports: Vec<Option<RoomReport>> = answers.await?;
    let members: usize = reports.iter().flatten().map(|report| report.members).sum();
    if members == 0 {
        let message = "this room has no member on this node";
        return Err(ApiError::new(StatusCode::NOT_FOUND, "not_found", message));
    }
    let mut answer = json!({"room_id": room, "members": members});
    if ops.plan().namespaces.policy_of_room(&room).has_acks() {
        answer["acks"] = acks(reports.iter().flatten().map(|report| report.acks));
    }
    Ok(Json(answer))
}

/// Members that acknowledge, over all shards. Without any there is no lowest offset.
fn acks(reports: impl Iterator<Item = AckReport>) -> Value {
    let mut sum = AckReport::default();
    for AckReport { members, lagging, lowest_offset } in reports {
        (sum.members, sum.lagging) = (sum.members + members, sum.lagging + lagging);
        sum.lowest_offset = sum.lowest_offset.into_iter().chain(lowest_offset).min();
    }
    let AckReport { members, lagging, lowest_offset } = sum;
    json!({"members": members, "lagging": lagging, "lowest_offset": lowest_offset})
}

/// Whether a service may ask a room for what only some rooms have; 404 where this one has it not.
pub(super) fn may_read(plan: &Plan, action: Action, room: &str) -> Result<(), ApiError> {
    may(&plan.namespaces, Asker::Service, action, TopicKind::Room(room))
        .map_err(|denied| ApiError::denied(denied, StatusCode::NOT_FOUND))
}
