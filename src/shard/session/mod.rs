//! One connection as a value: everything that it is, taken out of one slot and put into another, of
//! this shard or of another one.
//!
//! A [`Session`] is plain data. It names topics by their names and instants by how far they are away,
//! so it means the same wherever it is put. Its socket is the caller's, who keeps it open until the
//! session is put, reads nothing of it and writes nothing to it.
//!
//! ```text
//!   source                              target
//!   settle() ──► Settled      hold_topic() for each topic ──► is_topic_ready()
//!   both have handled all that the backplane has sent
//!   take_session() ────────────────────► put_session()
//!   release_held()                      release_held()
//! ```
//!
//! 1. Its publishes must have ended, or their answers would be lost, and its `info` in rooms with
//!    presence must have arrived, or it would be overtaken ([`Shard::settle`]).
//! 2. The target is subscribed to its topics before the source drops it ([`Shard::hold_topic`]).
//! 3. Both must be at the same place of every topic's stream: the caller takes all that the backplane
//!    has sent, on both sides, and then moves the session before more of it is handled.
//!
//! The backplane receives neither a leave nor a join for it. A topic that has no member left stays
//! until it is released.
//!
//! Joins that were not answered travel as questions and are asked again. A client that asked something
//! else stays where it is until it is answered: [`NotNow`].
//!
//! Invariant: nothing is changed where the answer is [`NotNow`].

mod put;
mod take;

use crate::ids::{Position, TopicId, TopicName};
use crate::policy::grants::{Grants, RoomActions};
use crate::policy::revocations::TokenMark;
use crate::policy::rights::Rights;
use crate::protocol::dialect::Encoding;
use crate::protocol::{Info, RequestId};
use crate::shard::slow_consumer::frames::FramePart;
use crate::shard::slow_consumer::outbox::Outbox;
use crate::shard::state::Shard;
use crate::shard::state::acks::AckMark;
use crate::ws::decoder::Decoder;
use bytes::Bytes;
use std::net::SocketAddr;
use std::sync::Arc;

/// Everything that one open connection is.
#[derive(Debug)]
pub struct Session {
    /// Its user's topic (`u:<user>`), also that of an anonymous one. `None` in a dialect without
    /// topics.
    pub user: Option<TopicName>,
    /// Whether it is in that topic. Otherwise it waits for what is stored for its user.
    pub is_in_user_topic: bool,
    /// Whether its user has shown a token.
    pub has_token: bool,
    /// The rights of its user.
    pub rights: Rights,
    /// What its token allows in rooms.
    pub grants: Option<Arc<Grants>>,
    /// What its token says about its user.
    pub info: Option<Info>,
    /// What revocations are compared with.
    pub mark: Option<TokenMark>,
    /// For how many milliseconds it has been open.
    pub age_ms: u64,
    /// Its client's address where a proxy has named it; otherwise the socket's peer is the client.
    pub peer: Option<SocketAddr>,
    /// After how many milliseconds its token expires.
    pub expires_in_ms: Option<u64>,
    /// The protocol of its client, and the form in which it receives events.
    pub encoding: Encoding,
    /// The topics that it is in, in their order; its user's is the first of them.
    pub topics: Vec<SessionTopic>,
    /// Joins that were not answered, in the order in which they were asked.
    pub joins: Vec<SessionJoin>,
    /// Half a message.
    pub decoder: Option<Box<Decoder>>,
    /// What was read after that and not used; at most one read turn.
    pub input: Vec<u8>,
    /// Whether its socket may have something to read of which no edge will tell.
    pub is_unread: bool,
    /// What its socket has not taken. It may begin in the middle of a frame.
    pub outbox: Option<Box<Outbox>>,
    /// What comes behind that, in its order.
    pub unsent: Vec<SessionFrames>,
}

/// One membership.
#[derive(Debug)]
pub struct SessionTopic {
    /// The topic.
    pub name: TopicName,
    /// Whether the shard was certain to receive its deliveries.
    pub is_ready: bool,
    /// Where its history is, as far as it was brought; `None` where it has none or that is not known.
    pub position: Option<Position>,
    /// The last position that it has acknowledged, if it acknowledges.
    pub ack: Option<AckMark>,
    /// The `info` of its user there.
    pub info: Option<Info>,
    /// The token with which it is in that room.
    pub room_token: Option<SessionRoomToken>,
    /// Its joins of this topic that are answered when deliveries are certain.
    pub waiting: Vec<WaitingJoin>,
}

/// A join of a topic without a history that was not answered.
#[derive(Debug)]
pub struct WaitingJoin {
    /// The client's number for it.
    pub id: Option<RequestId>,
    /// It asked for what it missed, where nothing is stored.
    pub has_since: bool,
    /// It was in the topic already when it asked.
    pub is_again: bool,
}

/// A join of a topic with a history that was not answered.
#[derive(Debug)]
pub struct SessionJoin {
    /// The topic.
    pub name: TopicName,
    /// The client's number for it.
    pub id: Option<RequestId>,
    /// The last position that the client has received.
    pub since: Option<Position>,
    /// The `info` of its user.
    pub info: Option<Info>,
    /// Whether it acknowledges.
    pub ack: bool,
    /// The token for the room that it came with.
    pub room_token: Option<SessionRoomToken>,
}

/// A token for one room.
#[derive(Clone, Copy, Debug)]
pub struct SessionRoomToken {
    /// What it allows there.
    pub actions: RoomActions,
    /// After how many milliseconds it expires.
    pub expires_in_ms: Option<u64>,
}

/// Bytes that have to leave.
#[derive(Debug)]
pub struct SessionFrames {
    /// Whole frames.
    pub bytes: Bytes,
    /// Those frames one by one and their topic's place among the session's, where they may be dropped.
    pub pieces: Option<(usize, Arc<[FramePart]>)>,
}

/// Why a connection cannot be taken, or a session cannot be put, as things are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NotNow {
    /// It is closed.
    Gone,
    /// It is not a WebSocket yet, so it has no session.
    Handshaking,
    /// Its close has begun.
    Closing,
    /// This shard is draining.
    Draining,
    /// A publish of it may not have ended, or its presence may not have arrived: [`Shard::settle`],
    /// and wait.
    NotSettled,
    /// Something else that it asked was not answered.
    QuestionUnderWay,
    /// It is about to leave a topic because something of that was lost.
    LossUnderWay,
    /// As many connections or topics are here as may be.
    Full,
    /// A topic of it is not listened for here: [`Shard::hold_topic`], and wait.
    NotHeld,
    /// Deliveries of a topic are being written here: write on.
    RoundUnderWay,
    /// This shard is at another place of a topic's history.
    OtherPosition,
}

impl Shard {
    /// Notes that a request to the backplane is on its way for a connection, which has to end before
    /// the connection moves.
    pub(super) fn unsettle(&mut self, conn: crate::ids::ConnId) {
        let settled_by = self.moves.asked.wrapping_add(1);
        if let Some(c) = self.conns.get_mut(conn.0) {
            c.settled_by = settled_by;
        }
    }

    /// Asks the backplane to report when all requests that this shard has sent so far have ended.
    pub fn settle(&mut self) {
        if self.moves.asked == self.moves.answered {
            self.moves.asked = self.moves.asked.wrapping_add(1);
            self.uplink.push_back(crate::link::Uplink::Settle);
        }
    }

    /// The topics in which a connection is, or is about to be.
    pub fn session_topics(&self, conn: crate::ids::ConnId) -> Vec<TopicName> {
        let Some(c) = self.conns.get(conn.0) else { return Vec::new() };
        c.joined.iter().map(|membership| self.hub.at(membership.topic).name().clone()).collect()
    }

    /// Stays subscribed to a topic in an encoding until [`Shard::release_held`], also without members.
    /// `None`: there are as many topics as there may be.
    pub fn hold_topic(&mut self, name: &TopicName, encoding: Encoding) -> Option<TopicId> {
        let at = self.open_topic(name, encoding)?;
        self.hold(at);
        Some(at)
    }

    /// Whether deliveries of a held topic are certain to arrive.
    pub fn is_topic_ready(&self, at: TopicId) -> bool {
        self.hub.get(at).is_some_and(|topic| topic.ready)
    }

    /// Held topics that have no member are forgotten, and the backplane learns of it.
    pub fn release_held(&mut self) {
        for at in std::mem::take(&mut self.moves.held) {
            self.unpin(at);
        }
    }

    fn hold(&mut self, at: TopicId) {
        self.pendings.pin(at.0.index);
        self.moves.held.push(at);
    }
}
