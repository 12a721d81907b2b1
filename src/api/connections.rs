//! `GET /v1/connections`: the open connections of this node, page by page.
//!
//! Shards are asked one after another, and each for a few connections at a time, so that no list
//! holds up deliveries however many connections there are. A page says where the next one begins:
//! connections that stay open from the first page to the last are listed exactly once.
//!
//! With `sort` it lists those that have most of something instead: at most [`CONNECTIONS_MAX`] of the
//! node, and of one part of a shard's table at most `PAGE_CONNECTIONS_MAX`.

use super::Ops;
use super::ask::ask_one;
use super::error::ApiError;
use super::extract::QueryOf;
use crate::ids::{ShardId, TopicKind, TopicName};
use crate::link::inspect::PAGE_CONNECTIONS_MAX;
use crate::link::{ConnectionOrder, ConnectionReport, Inspect};
use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;

const CONNECTIONS_DEFAULT: usize = 100;
const CONNECTIONS_MAX: usize = 1000;
/// Questions to shards for one page. A shard's table that has emptied is mostly holes, and one that
/// is searched without finding a connection ends the page early, with a cursor.
const QUESTIONS_MAX: usize = 64;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PageQuery {
    limit: Option<usize>,
    cursor: Option<String>,
    sort: Option<String>,
}

/// Where a page begins: a shard and a place of its table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cursor {
    shard: u16,
    place: u32,
}

impl Cursor {
    fn parse(text: &str) -> Option<Cursor> {
        let (shard, place) = text.split_once('.')?;
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        if !is_number(shard) || !is_number(place) {
            return None;
        }
        Some(Cursor { shard: shard.parse().ok()?, place: place.parse().ok()? })
    }

    fn text(self) -> String {
        format!("{}.{}", self.shard, self.place)
    }
}

/// `GET /v1/connections?limit=&cursor=&sort=`
pub(super) async fn list(
    State(ops): State<Arc<Ops>>,
    QueryOf(query): QueryOf<PageQuery>,
) -> Result<Json<Value>, ApiError> {
    let limit = query.limit.unwrap_or(CONNECTIONS_DEFAULT);
    if !(1..=CONNECTIONS_MAX).contains(&limit) {
        return Err(ApiError::bad_request(format!("limit must be from 1 to {CONNECTIONS_MAX}")));
    }
    if let Some(by) = &query.sort {
        let connections = top(&ops, order(by, query.cursor.is_some())?, limit).await?;
        let connections: Vec<Value> = connections.iter().map(described).collect();
        return Ok(Json(json!({"connections": connections, "next_cursor": null})));
    }
    let shards = ops.end.shards() as u16;
    let start = match &query.cursor {
        None => Cursor { shard: 0, place: 0 },
        Some(text) => {
            Cursor::parse(text).filter(|cursor| cursor.shard < shards).ok_or_else(|| {
                ApiError::bad_request("cursor must be the next_cursor of a page of this node")
            })?
        }
    };
    let (connections, next) = page(&ops, start, limit).await?;
    let connections: Vec<Value> = connections.iter().map(described).collect();
    Ok(Json(json!({"connections": connections, "next_cursor": next.map(Cursor::text)})))
}

async fn page(
    ops: &Ops,
    start: Cursor,
    limit: usize,
) -> Result<(Vec<ConnectionReport>, Option<Cursor>), ApiError> {
    let (shards, mut found, mut at) = (ops.end.shards() as u16, Vec::new(), start);
    for _ in 0..QUESTIONS_MAX {
        let max = (limit - found.len()).min(PAGE_CONNECTIONS_MAX);
        let question = |reply| Inspect::Connections { from: at.place, max, reply };
        let mut page = ask_one(ops, ShardId(at.shard), question).await?;
        found.append(&mut page.connections);
        at = match page.next {
            Some(place) => Cursor { place, ..at },
            None if at.shard + 1 < shards => Cursor { shard: at.shard + 1, place: 0 },
            None => return Ok((found, None)),
        };
        if found.len() == limit {
            break;
        }
    }
    Ok((found, Some(at)))
}

fn order(name: &str, has_cursor: bool) -> Result<ConnectionOrder, ApiError> {
    if has_cursor {
        return Err(ApiError::bad_request("sort has no pages: leave cursor out"));
    }
    let found = ConnectionOrder::ALL.iter().find(|(known, _)| *known == name);
    found.map(|(_, by)| *by).ok_or_else(|| {
        let known: Vec<&str> = ConnectionOrder::ALL.iter().map(|(known, _)| *known).collect();
        ApiError::bad_request(format!("sort must be one of {}", known.join(", ")))
    })
}

/// The connections of the node that have most. Each shard is asked for one part of its table after
/// another, and of what was found only as many are stored as are wanted.
async fn top(
    ops: &Ops,
    by: ConnectionOrder,
    limit: usize,
) -> Result<Vec<ConnectionReport>, ApiError> {
    let mut found: Vec<ConnectionReport> = Vec::new();
    for shard in 0..ops.end.shards() as u16 {
        let mut next = Some(0);
        while let Some(from) = next {
            let question = |reply| Inspect::TopConnections { from, by, reply };
            let page = ask_one(ops, ShardId(shard), question).await?;
            found.extend(page.connections);
            found.sort_by_key(|connection| std::cmp::Reverse(amount(connection, by)));
            found.truncate(limit);
            next = page.next;
        }
    }
    Ok(found)
}

fn amount(connection: &ConnectionReport, by: ConnectionOrder) -> u64 {
    match by {
        ConnectionOrder::QueuedBytes => connection.queued_bytes as u64,
        ConnectionOrder::Messages => connection.usage.messages,
        ConnectionOrder::ReceivedBytes => connection.usage.bytes,
        ConnectionOrder::LimitedMs => connection.usage.limited_ms,
        ConnectionOrder::Rooms => connection.rooms as u64,
    }
}

fn described(connection: &ConnectionReport) -> Value {
    json!({
        "connection_id": connection.id.to_string(),
        "user_id": connection.user.as_ref().and_then(user_of),
        "address": connection.address.map(|address| address.to_string()),
        "age_ms": connection.age_ms,
        "rooms": names(&connection.listed_rooms),
        "rooms_count": connection.rooms,
        "queued_bytes": connection.queued_bytes,
        "protocol": connection.dialect,
        "messages": connection.usage.messages,
        "received_bytes": connection.usage.bytes,
        "limited_ms": connection.usage.limited_ms,
    })
}

fn user_of(topic: &TopicName) -> Option<&str> {
    match topic.kind() {
        TopicKind::User(user) => Some(user),
        TopicKind::Room(_) | TopicKind::All => None,
    }
}

/// The names of rooms, as clients write them.
pub(super) fn names(rooms: &[TopicName]) -> Vec<&str> {
    rooms.iter().filter_map(room_of).collect()
}

fn room_of(topic: &TopicName) -> Option<&str> {
    match topic.kind() {
        TopicKind::Room(room) => Some(room),
        TopicKind::User(_) | TopicKind::All => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_as_it_was_written_and_nothing_else_is_one() {
        let cursor = Cursor { shard: 3, place: 70_000 };
        assert_eq!(Cursor::parse(&cursor.text()), Some(cursor));
        let wrong = ["", "3", ".", "3.", ".7", "+3.7", "3.-7", "3.7.1", "a.b", "65536.0", " 3.7"];
        for text in wrong {
            assert_eq!(Cursor::parse(text), None, "{text}");
        }
    }
}
