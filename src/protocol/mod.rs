//! What clients say and hear: [`Command`] in, [`Event`] out. One file a dialect.
//!
//! A command borrows from the bytes it was read from; an event is written once, however many hear
//! it. This room never sees a socket, a WebSocket frame, a shard, or whether somebody may do what
//! they ask for: it only says what was asked.

pub mod json;
pub mod native;

/// A client protocol. One message is written once per dialect that has members.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// `campanile.v1`, DESIGN §7.
    Native = 0,
}

impl Dialect {
    /// How many there are.
    pub const COUNT: usize = 1;
    /// All of them.
    pub const ALL: [Dialect; Dialect::COUNT] = [Dialect::Native];
}

/// The client's own number for a request: any JSON number or string of at most
/// [`RequestId::BYTES_MAX`] bytes as written, echoed byte for byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestId {
    /// A plain non-negative integer, which nearly all are.
    Number(u64),
    /// Anything else, as the JSON text it came in (a string with its quotes).
    Text(Box<str>),
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
    /// What it wants.
    pub command: Command<'a>,
}

/// What a client may ask for. Names are valid (see [`crate::ids::is_name`]), payloads are valid JSON.
#[derive(Debug, PartialEq, Eq)]
pub enum Command<'a> {
    /// `{"type":"join","room_id":"r"}`
    Join {
        /// The room.
        room: &'a str,
        /// Whether it came with `since`: what was missed is wanted too.
        since: bool,
    },
    /// `{"type":"leave","room_id":"r"}`
    Leave {
        /// The room.
        room: &'a str,
    },
    /// `{"type":"publish","room_id":"r","payload":…}` or, without type, `{"room_id":"r","payload":…}`
    Publish {
        /// The room.
        room: &'a str,
        /// The payload's own bytes.
        payload: &'a [u8],
        /// Whether the sender hears it too. Default true.
        echo: bool,
        /// Whether it came with an idempotency `key`.
        keyed: bool,
    },
    /// `{"type":"send","target_user_id":"u","payload":…}`, or without type
    Send {
        /// The user.
        user: &'a str,
        /// The payload's own bytes.
        payload: &'a [u8],
        /// Whether it came with an idempotency `key`.
        keyed: bool,
    },
    /// `{"type":"broadcast","payload":…}`
    Broadcast {
        /// The payload's own bytes.
        payload: &'a [u8],
        /// Whether it came with an idempotency `key`.
        keyed: bool,
    },
    /// `{"type":"presence","room_id":"r"}`
    Presence {
        /// The room.
        room: &'a str,
    },
    /// `{"type":"history","room_id":"r"}`
    History {
        /// The room.
        room: &'a str,
    },
    /// `{"type":"ping"}`
    Ping,
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
    /// The user may not do this.
    Forbidden,
    /// This connection is in as many rooms as it may be.
    TooManyRooms,
    /// This node has as many topics as it may have.
    Overloaded,
    /// History, presence, recovery or idempotency, where they are off.
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
            ErrorCode::Forbidden => "forbidden",
            ErrorCode::TooManyRooms => "too_many_rooms",
            ErrorCode::Overloaded => "overloaded",
            ErrorCode::NotEnabled => "not_enabled",
            ErrorCode::BackplaneUnavailable => "backplane_unavailable",
            ErrorCode::OutcomeUnknown => "outcome_unknown",
        }
    }
}

/// What clients hear.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// The first frame of a connection.
    Welcome {
        /// This connection, unique over all nodes.
        connection_id: &'a str,
        /// Who the server takes the client for.
        user_id: &'a str,
        /// This node.
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
        /// A join with `since` in a room without history: `"recovered":false,"reason":"not_enabled"`.
        not_recovered: bool,
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
    /// Somebody's message.
    Message {
        /// Where it was sent: `room_id`, `target_user_id`, or `"broadcast":true`.
        topic: crate::ids::TopicKind<'a>,
        /// The authenticated user, unless it came from the HTTP API.
        from: Option<&'a str>,
        /// The payload, byte for byte.
        payload: &'a [u8],
    },
    /// Messages were missed and cannot be brought back.
    Lost {
        /// Where.
        topic: crate::ids::TopicKind<'a>,
        /// How many, as far as we know.
        count: u64,
    },
    /// The server is about to close the connection.
    Reconnect {
        /// When to come back.
        after_ms: u64,
    },
    /// The answer to `{"type":"ping"}`.
    Pong {
        /// The request's number, if it had one.
        id: Option<&'a RequestId>,
    },
}
