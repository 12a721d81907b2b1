//! The messages of clients and to clients: [`Command`] in, [`Event`] out. One file a dialect.
//!
//! A command borrows from the bytes it was read from; an event is written once, however many receive
//! it. This room never sees a socket, a WebSocket frame or a shard, and does not check rights: it only
//! reads what is asked for.

use crate::ids::{ConflateKey, Position, TopicName, UpTo};
use run::Run;
use std::sync::Arc;

pub mod dialect;
pub mod exchange;
pub mod json;
#[cfg(feature = "test-dialect")]
pub mod lines;
pub mod native;
pub mod run;

/// The client's own number for a request: any JSON number or string of at most
/// [`RequestId::BYTES_MAX`] bytes as written, echoed byte for byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestId {
    /// A plain non-negative integer, which nearly all are.
    Number(u64),
    /// Anything else, as the JSON text it came in (a string with its quotes).
    Text(Box<TextId>),
}

/// A [`RequestId`] that is no plain integer. Behind a box of its own, so that every answer in the
/// window is eight bytes smaller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextId(Box<str>);

impl TextId {
    /// The JSON text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for RequestId {
    /// `json` is a JSON number or string.
    fn from(json: &str) -> RequestId {
        RequestId::Text(Box::new(TextId(json.into())))
    }
}

impl RequestId {
    /// The longest id, in bytes of JSON.
    pub const BYTES_MAX: usize = 64;
}

/// What a client asked for, and its number for it.
#[derive(Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// `id`, if it gave one.
    pub id: Option<RequestId>,
    /// What is to be done.
    pub command: Command<'a>,
}

/// What a client may ask for. Names are valid (see [`crate::ids::is_name`]), payloads are valid JSON.
#[derive(Debug, PartialEq, Eq)]
pub enum Command<'a> {
    /// `{"type":"join","room_id":"r"}`
    Join {
        /// Its `room_id`.
        room: &'a str,
        /// The last position that the client has received: it asks for the messages after that too.
        since: Option<Position>,
        /// What others in the room receive about the user, where presence is on: a JSON value's bytes.
        info: Option<&'a str>,
        /// Whether the member acknowledges what it receives.
        ack: bool,
        /// A token for this room.
        token: Option<&'a str>,
    },
    /// `{"type":"leave","room_id":"r"}`
    Leave {
        /// Its `room_id`.
        room: &'a str,
    },
    /// `{"type":"publish","room_id":"r","payload":…}` or, without type, `{"room_id":"r","payload":…}`
    Publish {
        /// Its `room_id`.
        room: &'a str,
        /// The bytes of the JSON value, as the client wrote them.
        payload: &'a [u8],
        /// Whether the sender receives it too. Default true.
        echo: bool,
        /// Its idempotency `key`, if it came with one.
        key: Option<Box<str>>,
        /// Its `conflate_key`: a newer message with the same key replaces it for slow members.
        conflate_key: Option<ConflateKey>,
    },
    /// `{"type":"send","target_user_id":"u","payload":…}`, or without type
    Send {
        /// Its `target_user_id`.
        user: &'a str,
        /// The bytes of the JSON value, as the client wrote them.
        payload: &'a [u8],
        /// Its idempotency `key`, if it came with one.
        key: Option<Box<str>>,
    },
    /// `{"type":"broadcast","payload":…}`
    Broadcast {
        /// The bytes of the JSON value, as the client wrote them.
        payload: &'a [u8],
        /// Its idempotency `key`, if it came with one.
        key: Option<Box<str>>,
    },
    /// `{"type":"presence","room_id":"r"}`
    Presence {
        /// Its `room_id`.
        room: &'a str,
    },
    /// `{"type":"history","room_id":"r","limit":10,"since":{…},"reverse":true}`
    History {
        /// Its `room_id`.
        room: &'a str,
        /// From where, how many, and in which order.
        page: Page,
    },
    /// `{"type":"ack","room_id":"r","offset":12}`, or without `room_id`
    Ack {
        /// The topic whose messages are acknowledged.
        of: AckOf<'a>,
        /// The last message that is acknowledged, with all before it.
        up_to: UpTo,
    },
    /// `{"type":"auth","token":"…"}`
    Auth {
        /// Another token of the same user.
        token: &'a str,
    },
    /// `{"type":"ping"}`
    Ping,
}

/// Whose messages are acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AckOf<'a> {
    /// A room's.
    Room(&'a str),
    /// Those to the user itself, who may be named.
    User(Option<&'a str>),
}

/// Which messages of a history are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// Messages behind this position; in front of it, when the newest come first. `None`: from the
    /// beginning, or from the end.
    pub since: Option<Position>,
    /// At most so many; 0: only the position.
    pub limit: u32,
    /// Whether the newest come first.
    pub reverse: bool,
}

/// What a member's client or its token says about its user, for the others in the room: any JSON
/// value of at most [`INFO_BYTES_MAX`].
pub type Info = Arc<str>;

/// The longest [`Info`], in bytes of JSON.
pub const INFO_BYTES_MAX: usize = 512;

/// Who is in a room.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roster {
    /// The users by name; not all of them, if that would be too much to send.
    pub users: Vec<RosterEntry>,
    /// Users in the room, those that are not listed included.
    pub count: u64,
}

/// A user who is in a room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RosterEntry {
    /// The user's own topic.
    pub user: TopicName,
    /// Connections of the user in the room. 0: the last one left, and its `left` event is pending.
    pub connections: u64,
    /// The `info` of their last join that had one.
    pub info: Option<Info>,
}

impl Roster {
    /// Users that are listed, at most.
    pub const USERS_MAX: usize = 1000;
    /// What they may take as JSON, in bytes: less than a connection's outbox holds.
    pub const BYTES_MAX: usize = 256 * 1024;

    /// Of so many users these are known; those that are too much to send are left out.
    pub fn new(mut users: Vec<RosterEntry>, count: u64) -> Roster {
        users.sort_unstable_by(|one, other| one.user.cmp(&other.user));
        users.truncate(Roster::USERS_MAX);
        let mut bytes = 0;
        let fits = |entry: &RosterEntry| {
            bytes += entry.bytes_max();
            bytes <= Roster::BYTES_MAX
        };
        let fitting = users.iter().map(fits).take_while(|fits| *fits).count();
        users.truncate(fitting);
        Roster { users, count }
    }

    /// Whether users were left out.
    pub fn is_truncated(&self) -> bool {
        (self.users.len() as u64) < self.count
    }
}

impl RosterEntry {
    /// What it takes as JSON, at most: names have no control characters, so an escape is two bytes.
    fn bytes_max(&self) -> usize {
        64 + 2 * self.user.as_str().len() + self.info.as_ref().map_or(0, |info| info.len())
    }
}

/// The result of a recovery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recovery {
    /// The join had no `since`; of a user's queue: nothing is known of the user from before.
    NotAsked,
    /// All of it follows.
    Recovered {
        /// So many messages.
        messages: u64,
    },
    /// What was missed cannot be sent, or not all of it.
    NotRecovered(Unrecovered),
    /// The last message that the client has received is no longer part of the history: see
    /// [`Unrecovered::TailLost`]. All messages that stand in the history instead follow.
    Replaced {
        /// So many messages, at least one.
        messages: u64,
    },
}

/// Why what was missed cannot be recovered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unrecovered {
    /// The room keeps no history, or recovery is off.
    NotEnabled,
    /// The history is another one by now: it was forgotten, or lost with its server.
    Epoch,
    /// Some of it is older than the oldest stored message.
    Trimmed,
    /// It is more than may be sent at once. `history` brings it page by page.
    TooMuch,
    /// The client has received messages that the history does not have: a Redis server was lost with
    /// its last messages.
    TailLost,
    /// Too many ask at the same time.
    Overload,
}

impl Unrecovered {
    /// The reason as it stands in the frame, the metrics and the documentation.
    pub fn as_str(self) -> &'static str {
        match self {
            Unrecovered::NotEnabled => "not_enabled",
            Unrecovered::Epoch => "epoch",
            Unrecovered::Trimmed => "trimmed",
            Unrecovered::TooMuch => "too_much",
            Unrecovered::TailLost => "tail_lost",
            Unrecovered::Overload => "overload",
        }
    }
}

/// A request that was not understood. It never closes the connection.
#[derive(Debug, PartialEq, Eq)]
pub struct Rejected {
    /// The request's `id`, when it could be read.
    pub id: Option<RequestId>,
    /// What is wrong, for programs.
    pub code: ErrorCode,
    /// What is wrong and what to write instead, for people.
    pub message: String,
}

/// Stable codes of `{"type":"error"}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// Not JSON, or nested too deeply.
    BadJson,
    /// JSON, but not a request: a missing or doubled key, a wrong type, a bad name.
    BadRequest,
    /// `type` is not one of ours.
    UnknownType,
    /// Publishing to, or leaving, a room that this connection is not in.
    NotJoined,
    /// A token is missing, wrong or expired.
    Unauthorized,
    /// The user may not do this.
    Forbidden,
    /// This connection is in as many rooms as it may be.
    TooManyRooms,
    /// This node has as many topics as it may have.
    Overloaded,
    /// This connection asks for more in a second than it may, or more is published to a room.
    RateLimited,
    /// The room has as many members as it may have.
    RoomFull,
    /// The message is larger than those of its room may be.
    TooBig,
    /// History, presence or idempotency, where they are off.
    NotEnabled,
    /// The backplane is away; the message was not sent.
    BackplaneUnavailable,
    /// The backplane broke while it had the message; it may have been delivered.
    OutcomeUnknown,
}

impl ErrorCode {
    /// The code as it stands in the frame, the metrics and the documentation.
    pub fn as_str(self) -> &'static str {
        match self {
            ErrorCode::BadJson => "bad_json",
            ErrorCode::BadRequest => "bad_request",
            ErrorCode::UnknownType => "unknown_type",
            ErrorCode::NotJoined => "not_joined",
            ErrorCode::Unauthorized => "unauthorized",
            ErrorCode::Forbidden => "forbidden",
            ErrorCode::TooManyRooms => "too_many_rooms",
            ErrorCode::Overloaded => "overloaded",
            ErrorCode::RateLimited => "rate_limited",
            ErrorCode::RoomFull => "room_full",
            ErrorCode::TooBig => "too_big",
            ErrorCode::NotEnabled => "not_enabled",
            ErrorCode::BackplaneUnavailable => "backplane_unavailable",
            ErrorCode::OutcomeUnknown => "outcome_unknown",
        }
    }
}

impl<'a> Event<'a> {
    /// A request was carried out, without position or recovery.
    pub fn done(id: Option<&'a RequestId>, room: Option<&'a str>) -> Event<'a> {
        Event::Ok { id, room, position: None, recovery: Recovery::NotAsked, missed: None }
    }
}

/// Why a connection is taken out of a room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemovalReason {
    /// The token for the room has expired.
    TokenExpired,
    /// Its user's new token does not allow the room.
    Forbidden,
}

impl RemovalReason {
    /// The reason as it stands in the frame, the metrics and the documentation.
    pub fn as_str(self) -> &'static str {
        match self {
            RemovalReason::TokenExpired => "token_expired",
            RemovalReason::Forbidden => "forbidden",
        }
    }
}

/// What clients receive.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// The first frame of a connection.
    Welcome {
        /// The name of the connection, unique over all nodes.
        connection_id: &'a str,
        /// The user of the token, or a name that was made up for an anonymous client.
        user_id: &'a str,
        /// The name of this node.
        node: &'a str,
        /// Seconds between pings.
        ping_interval_s: u64,
    },
    /// A request was carried out.
    Ok {
        /// The request's number, if it had one.
        id: Option<&'a RequestId>,
        /// The room, where the answer is about one.
        room: Option<&'a str>,
        /// The last position of the room's history, or that of the published message.
        position: Option<Position>,
        /// The result of a join's `since`.
        recovery: Recovery,
        /// What was missed, where the dialect carries it inside the reply.
        missed: Option<&'a Run>,
    },
    /// The position of a user's queue. The messages that the user has not acknowledged follow.
    Queue {
        /// The name of the user.
        user: &'a str,
        /// The position of the newest message.
        position: Position,
        /// Whether all of it follows.
        recovery: Recovery,
        /// What was missed, where the dialect carries it inside the reply.
        missed: Option<&'a Run>,
    },
    /// Messages of a room's history.
    History {
        /// The request's number, if it had one.
        id: Option<&'a RequestId>,
        /// The name of the room.
        room: &'a str,
        /// The last position of its history.
        position: Position,
        /// Its messages, as elements.
        messages: &'a Run,
    },
    /// Who is in a room.
    Presence {
        /// The request's number, if it had one.
        id: Option<&'a RequestId>,
        /// The name of the room.
        room: &'a str,
        /// The users in the room.
        here: &'a Roster,
    },
    /// A user's first connection joined a room.
    Joined {
        /// The name of the room.
        room: &'a str,
        /// The name of the user.
        user: &'a str,
        /// Their `info`, if they have one.
        info: Option<&'a str>,
    },
    /// A user's last connection left a room, and they did not come back.
    Left {
        /// The name of the room.
        room: &'a str,
        /// The name of the user.
        user: &'a str,
    },
    /// A request was not carried out.
    Error {
        /// The request's number, if it had one.
        id: Option<&'a RequestId>,
        /// Why, for programs.
        code: ErrorCode,
        /// Why, for people.
        message: &'a str,
    },
    /// A message to a room, to a user or to everybody.
    Message {
        /// Where it was sent: `room_id`, `target_user_id`, or `"broadcast":true`.
        topic: crate::ids::TopicKind<'a>,
        /// The authenticated user, unless it came from the HTTP API.
        from: Option<&'a str>,
        /// What the token of that user says about it, as JSON, where the topic shows it.
        info: Option<&'a str>,
        /// The payload, byte for byte.
        payload: &'a [u8],
        /// Its position in the topic's history, if there is one.
        position: Option<Position>,
    },
    /// Messages were lost and cannot be recovered.
    Lost {
        /// The topic of the lost messages.
        topic: crate::ids::TopicKind<'a>,
        /// How many; a lower bound, where the loss could not be counted.
        count: u64,
    },
    /// This connection was taken out of a topic because messages of it were lost.
    Unsubscribed {
        /// The topic that the connection has left.
        topic: crate::ids::TopicKind<'a>,
    },
    /// This connection was taken out of a room because its token allows it no longer.
    Removed {
        /// The name of the room.
        room: &'a str,
        /// Why.
        why: RemovalReason,
    },
    /// The token of this connection is about to expire, and the connection to be closed with it.
    TokenExpires {
        /// In how many milliseconds.
        in_ms: u64,
    },
    /// The server is about to close the connection.
    Reconnect {
        /// In how many milliseconds the client should connect again.
        after_ms: u64,
    },
    /// The answer to `{"type":"ping"}`.
    Pong {
        /// The request's number, if it had one.
        id: Option<&'a RequestId>,
    },
}
