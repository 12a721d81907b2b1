//! What the ops thread asks a shard, and what a shard answers.
//!
//! A question travels as [`crate::link::Downlink::Inspect`] and is answered within the visit that
//! takes it, through a callback that must not block.
//!
//! Invariant: the work of one answer is bounded. What has no bound of its own (all connections or all
//! rooms of a shard) is asked for in pages.

use crate::ids::TopicName;
use crate::link::origin::Origin;
use crate::link::reply_to::ReplyTo;
use std::net::SocketAddr;

/// Connections in one [`ConnectionPage`], at most: what a shard describes in one visit.
pub const PAGE_CONNECTIONS_MAX: usize = 64;
/// Places that one page looks at, at most: those of closed connections and rooms are empty.
pub const PAGE_PLACES_MAX: u32 = 4096;
/// Rooms that are listed by name for one connection, at most.
pub const LISTED_ROOMS_MAX: usize = 16;
/// Memberships that are looked at to list the rooms of one user, at most.
pub const USER_MEMBERSHIPS_MAX: usize = 1024;

/// What an operator may ask a shard.
pub enum Inspect {
    /// The rooms with members here from one place of the shard's table on, in no order: those whose
    /// name starts with `prefix`.
    Rooms {
        /// What their names start with.
        prefix: Box<str>,
        /// The first place that is looked at.
        from: u32,
        /// At most so many rooms.
        max: usize,
        /// Where the answer goes.
        reply: ReplyTo<RoomPage>,
    },
    /// One room; `None` when it has no member here.
    Room {
        /// Its name.
        room: String,
        /// Where the answer goes.
        reply: ReplyTo<Option<RoomReport>>,
    },
    /// The connections and rooms of one user.
    User {
        /// The user's topic (`u:<user>`).
        topic: TopicName,
        /// Where the answer goes.
        reply: ReplyTo<UserReport>,
    },
    /// The open connections from one place of the shard's table on.
    Connections {
        /// The first place that is looked at.
        from: u32,
        /// At most so many connections, and at most [`PAGE_CONNECTIONS_MAX`].
        max: usize,
        /// Where the answer goes.
        reply: ReplyTo<ConnectionPage>,
    },
    /// Of the open connections at [`PAGE_PLACES_MAX`] places of the shard's table those that have
    /// most of something, at most [`PAGE_CONNECTIONS_MAX`]; none that has nothing of it.
    TopConnections {
        /// The first place that is looked at.
        from: u32,
        /// Of what.
        by: ConnectionOrder,
        /// Where the answer goes.
        reply: ReplyTo<ConnectionPage>,
    },
}

/// By what connections are put in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionOrder {
    /// Bytes that wait for it.
    QueuedBytes,
    /// Messages that it has sent since it was idle.
    Messages,
    /// Bytes that it has sent since it was idle.
    ReceivedBytes,
    /// For how long it has sent faster than its rates.
    LimitedMs,
    /// Rooms that it is in.
    Rooms,
}

impl ConnectionOrder {
    /// All of them, with their names in the API.
    pub const ALL: [(&str, ConnectionOrder); 5] = [
        ("queued_bytes", ConnectionOrder::QueuedBytes),
        ("messages", ConnectionOrder::Messages),
        ("received_bytes", ConnectionOrder::ReceivedBytes),
        ("limited_ms", ConnectionOrder::LimitedMs),
        ("rooms", ConnectionOrder::Rooms),
    ];
}

/// What a connection uses of its rates. A connection that is idle has used nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UsageReport {
    /// Messages that it has sent since it was idle.
    pub messages: u64,
    /// Bytes that it has sent since it was idle.
    pub bytes: u64,
    /// For how long it has sent faster than its rates, in milliseconds.
    pub limited_ms: u64,
}

/// Some of a shard's rooms.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoomPage {
    /// In the order of their places.
    pub rooms: Vec<RoomReport>,
    /// The place from which to go on; `None`: there are no more.
    pub next: Option<u32>,
}

/// A room as one shard sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoomReport {
    /// Its name.
    pub room: String,
    /// Connections of this shard in it.
    pub members: usize,
    /// Those of them that acknowledge; filled in when one room is asked for.
    pub acks: AckReport,
}

impl RoomReport {
    /// The same room as others see it as well.
    #[must_use]
    pub fn with(self, other: &RoomReport) -> RoomReport {
        let (one, other_acks) = (self.acks, other.acks);
        let lowest = [one.lowest_offset, other_acks.lowest_offset];
        let acks = AckReport {
            members: one.members + other_acks.members,
            lagging: one.lagging + other_acks.lagging,
            lowest_offset: lowest.into_iter().flatten().min(),
        };
        RoomReport { members: self.members + other.members, acks, ..self }
    }
}

/// Members of a room that acknowledge what they receive, as one shard sees them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AckReport {
    /// Members that acknowledge.
    pub members: usize,
    /// Those that have not acknowledged a message within `ack_timeout_ms`.
    pub lagging: usize,
    /// The lowest offset that they have acknowledged; `None`: there are none.
    pub lowest_offset: Option<u64>,
}

/// A user as one shard sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserReport {
    /// Open connections of the user on this shard.
    pub connections: usize,
    /// The rooms that they are in, each once, in no order.
    pub rooms: Vec<TopicName>,
    /// There are more memberships than [`USER_MEMBERSHIPS_MAX`], so rooms may be missing.
    pub is_truncated: bool,
}

/// Some of a shard's connections.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConnectionPage {
    /// In the order of their places.
    pub connections: Vec<ConnectionReport>,
    /// The place from which to go on; `None`: there are no more.
    pub next: Option<u32>,
}

/// One open connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionReport {
    /// Its name: the `connection_id` of its `welcome`.
    pub id: Origin,
    /// The peer's address; `None`: the socket has failed.
    pub address: Option<SocketAddr>,
    /// Its user's topic (`u:<user>`); `None` in a dialect without users.
    pub user: Option<TopicName>,
    /// For how long it has been open, in milliseconds, exact to 100.
    pub age_ms: u64,
    /// Rooms of which it is a member.
    pub rooms: usize,
    /// The first [`LISTED_ROOMS_MAX`] of them.
    pub listed_rooms: Vec<TopicName>,
    /// Bytes that its socket has not taken yet.
    pub queued_bytes: usize,
    /// Its protocol.
    pub dialect: &'static str,
    /// What it uses of its rates.
    pub usage: UsageReport,
}
