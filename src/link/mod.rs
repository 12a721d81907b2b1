//! The window: everything that crosses a thread is declared here, and nowhere else.
//!
//! A shard talks to the backplane by [`Uplink`], the backplane to a shard by [`Downlink`]; both over
//! bounded crossbeam channels, one pair a shard, and one [`bell::Bell`] for each thread that sleeps.
//! The contract of both directions stands at the types: what keeps its order, what may be dropped.
//!
//! Invariant: nothing here decides anything. Atomics, eventfds and channels live in this room (and
//! in `metrics`), so what two threads share is found by reading this room only.

pub mod bell;
pub mod calls;
pub mod channel;
pub mod connections;
pub mod exchange;
pub mod health;
mod held_bytes;
pub mod hooks;
pub mod inspect;
pub mod key_requests;
pub mod ledger;
pub mod load_table;
pub mod log_queue;
mod origin;
mod reply_to;
pub mod shares;
pub mod sleep_flag;
mod taken_bytes;

/// What `sleeper` is built from here; `tests/loom.rs` builds it from loom's.
mod atomics {
    pub(super) use std::sync::atomic::{AtomicBool, Ordering, fence};
}

use crate::ids::{ConflateKey, ConnId, Position, TopicId, TopicName, UpTo};
use crate::policy::revocations::Revocation;
use crate::protocol::dialect::Encoding;
use crate::protocol::run::Run;
use crate::protocol::{Info, Page, Recovery, RequestId, Roster, Unrecovered};
use bytes::Bytes;
use std::sync::Arc;

pub use inspect::{
    AckReport, ConnectionOrder, ConnectionPage, ConnectionReport, Inspect, RoomPage, RoomReport,
    UsageReport, UserReport,
};
pub use origin::Origin;
pub use reply_to::ReplyTo;

/// From a shard (or from the ops thread, which only publishes).
///
/// Items of one shard stay in order and none is dropped: a full channel stops the shard's reads, so
/// pressure reaches the clients' TCP windows and nothing grows.
#[derive(Debug)]
pub enum Uplink {
    /// The first member of a topic came to this shard. Answered by [`Downlink::Joined`] once
    /// deliveries are certain to arrive.
    Join {
        /// The name of the topic.
        topic: TopicName,
        /// The shard's own key for it, to be handed back with each delivery.
        at: TopicId,
        /// In which encoding its members receive it.
        encoding: Encoding,
    },
    /// The last member of a topic left this shard.
    Leave {
        /// The name of the topic.
        topic: TopicName,
        /// The key given in `Join`; a later `Join` of the same topic has another one.
        at: TopicId,
    },
    /// A message for everyone in a topic, on any node.
    Publish(Publish),
    /// A connection joins a topic that has a history. The shard has asked for the topic
    /// ([`Uplink::Join`]); the answer, [`Downlink::Recovered`], comes in the order of deliveries.
    Recover(Box<RecoveryRequest>),
    /// A connection or a caller of the API asks for messages of a history.
    History(Box<HistoryRequest>),
    /// A connection came into a room with presence, or left it.
    PresenceUpdate(Box<PresenceUpdate>),
    /// A connection or a caller of the API asks who is in a room.
    Presence(Box<PresenceRequest>),
    /// An operator disconnects a user. Only the ops thread asks for it.
    Disconnect(Box<DisconnectRequest>),
    /// An operator revokes tokens. Only the ops thread asks for it.
    Revoke(Box<RevokeRequest>),
    /// The shard asks when all that it has published so far has ended, and has been delivered here if
    /// it is. One at a time; answered by [`Downlink::Settled`], after the answers to those publishes.
    Settle,
    /// A user acknowledges messages of its queue. There is no answer: where one is lost, its messages
    /// are delivered once more.
    Acknowledge {
        /// The user's topic.
        topic: TopicName,
        /// The last message that is acknowledged, with all before it.
        up_to: UpTo,
    },
}

/// A connection joined or left a room. Each [`PresenceChange::Joined`] of it is followed by one
/// [`PresenceChange::Left`].
#[derive(Debug)]
pub struct PresenceUpdate {
    /// The room's topic.
    pub topic: TopicName,
    /// The topic of the connection's user (`u:<user>`).
    pub user: TopicName,
    /// What happened.
    pub deed: PresenceChange,
}

/// What happened to a connection in a room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PresenceChange {
    /// It has become a member.
    Joined {
        /// The connection. It does not receive its own event.
        by: Origin,
        /// The new `info` of its user; `None`: it is unchanged.
        info: Option<Info>,
    },
    /// It is a member already, and this is the new `info` of its user.
    InfoChanged(Info),
    /// It is a member no more.
    Left,
}

/// Asks for the roster of a room.
#[derive(Debug)]
pub struct PresenceRequest {
    /// The room's topic.
    pub topic: TopicName,
    /// Who asks. `None`: the backplane is unavailable. A connection is answered by
    /// [`Downlink::Presence`].
    pub to: ReplyTo<Option<Arc<Roster>>>,
}

/// The roster of a room, for a connection that asked.
#[derive(Debug)]
pub struct PresenceReply {
    /// Who asked; it may have closed since.
    pub conn: ConnId,
    /// The client's number for its request.
    pub id: Option<RequestId>,
    /// The room's topic.
    pub topic: TopicName,
    /// The roster; shared by all who asked together. `None`: the backplane is unavailable.
    pub here: Option<Arc<Roster>>,
}

/// Asks for the position of a history and the messages after `since`.
#[derive(Debug)]
pub struct RecoveryRequest {
    /// The topic of the history.
    pub topic: TopicName,
    /// The shard's own key for it.
    pub at: TopicId,
    /// Who asks; it may leave before the answer.
    pub conn: ConnId,
    /// The shard's own number for the question.
    pub ticket: u64,
    /// In which encoding the answer is wanted.
    pub encoding: Encoding,
    /// The last position that the client has received. Not for a user's own topic: what the user has
    /// acknowledged is stored with its queue.
    pub since: Option<Position>,
}

/// The answer to [`RecoveryRequest`]: deliveries of the topic before it are up to `position`, those
/// after it follow.
#[derive(Debug)]
pub struct RecoveryReply {
    /// The shard's own key.
    pub at: TopicId,
    /// Who asked.
    pub conn: ConnId,
    /// The shard's own number for the question.
    pub ticket: u64,
    /// The history's last position.
    pub position: Position,
    /// Whether all messages after `since` are in `missed`.
    pub recovery: Recovery,
    /// The messages that were missed, in the encoding that was asked for.
    pub missed: Run,
}

/// The other answer to [`RecoveryRequest`]: the position of the history is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unrecoverable {
    /// The shard's own key.
    pub at: TopicId,
    /// Who asked.
    pub conn: ConnId,
    /// The shard's own number for the question.
    pub ticket: u64,
    /// Why it is not known.
    pub why: HistoryError,
}

/// Asks for a page of a history.
#[derive(Debug)]
pub struct HistoryRequest {
    /// The topic of the history.
    pub topic: TopicName,
    /// From where, how many, and in which order.
    pub page: Page,
    /// In which encoding the answer is wanted.
    pub encoding: Encoding,
    /// Who asks. A connection is answered by [`Downlink::History`].
    pub to: ReplyTo<Result<HistoryPage, HistoryError>>,
}

/// Messages of a history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryPage {
    /// The history's last position.
    pub position: Position,
    /// Its messages in the order in which they were asked for, in the encoding that was asked for.
    pub messages: Run,
}

/// A page of a history, for a connection that asked.
#[derive(Debug)]
pub struct HistoryReply {
    /// Who asked; it may have closed since.
    pub conn: ConnId,
    /// The client's number for its request.
    pub id: Option<RequestId>,
    /// The topic of the history.
    pub topic: TopicName,
    /// The page, or why there is none.
    pub page: Result<HistoryPage, HistoryError>,
}

/// Why a page of a history cannot be returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HistoryError {
    /// `since` is of another history, or the like.
    Unrecovered(Unrecovered),
    /// The backplane is away, or does not answer in time.
    Unavailable,
    /// As many requests wait as may: `limits.history_requests_waiting_max`.
    Overloaded,
    /// What is stored of the history is nothing that this server wrote.
    Unreadable,
}

/// A message on its way up.
#[derive(Debug)]
pub struct Publish {
    /// The topic whose members receive it.
    pub topic: TopicName,
    /// The payload: any JSON value, byte for byte as the client wrote it. The one copy on the way up.
    pub payload: Bytes,
    /// The topic of the authenticated user who sent it (`u:<user>`); `None` from the HTTP API.
    pub from: Option<TopicName>,
    /// What the token of that user says about it, where the topic shows it.
    pub info: Option<Info>,
    /// A connection that must not receive its own message (`"echo":false`).
    pub except: Option<Origin>,
    /// Makes a retry harmless, in a topic with a history.
    pub key: Option<Box<str>>,
    /// What it is about, in a room that conflates for slow members.
    pub conflate_key: Option<ConflateKey>,
    /// Who waits for the outcome. A failure is always reported, success only where it was asked for:
    /// to a connection with an `id` by [`Downlink::Ack`].
    pub done: ReplyTo<PublishOutcome>,
}

/// How a publish ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PublishOutcome {
    /// The backplane has it and sends it to every node with members. Its position, where the topic has
    /// a history (of a retry: the position of the first one).
    Accepted(Option<Position>),
    /// The backplane is unavailable and the queue is full, or the message waited too long. It was not
    /// sent.
    Unavailable,
    /// The connection to Redis broke with the command in flight: it may have been delivered.
    Unknown,
    /// Its publisher has its share of what publishes leave in the node. It was not sent.
    Full(FullShare),
}

/// What a publisher has its share of: more of it would have to be taken from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FullShare {
    /// Idempotency keys.
    IdempotencyKeys,
    /// Histories.
    Histories,
}

/// A frame for all members of a topic, with what else a shard uses of it.
#[derive(Debug)]
pub struct Delivery {
    /// The shard's own key.
    pub to: TopicId,
    /// The finished frame, in the encoding of the topic's members.
    pub frame: Bytes,
    /// One member of this shard who must not receive it.
    pub except: Option<ConnId>,
    /// Where the message stands in the topic's history, if it has one.
    pub position: Option<Position>,
    /// A newer frame of the topic with the same key makes this one worthless.
    pub conflate_key: Option<ConflateKey>,
}

/// To a shard. Items of one topic stay in order. Only `Deliver` and `DeliverWith` may be dropped, and
/// then `Lost` takes their place.
pub enum Downlink {
    /// The backplane has subscribed to this topic: from here on a loss is reported.
    Joined {
        /// The key of the `Join` this answers. May be stale: the members may have left since.
        at: TopicId,
    },
    /// A frame for all members of a topic: the whole message, where there is no history.
    Deliver {
        /// The shard's own key.
        to: TopicId,
        /// The finished frame, in the encoding of the topic's members.
        frame: Bytes,
        /// One member of this shard who must not receive it.
        except: Option<ConnId>,
    },
    /// The same with a position or a conflate key. Boxed, so that every other item stays within its
    /// line of cache: one allocation for a shard and message, none for a member.
    DeliverWith(Box<Delivery>),
    /// Deliveries to this topic were dropped. The dialect decides what its members receive.
    Lost {
        /// The shard's own key.
        to: TopicId,
        /// Deliveries that were dropped.
        count: u64,
    },
    /// How a connection's publish ended.
    Ack {
        /// Whose publish; it may have closed since.
        conn: ConnId,
        /// The client's number for it. `None`: the client receives only a failure.
        id: Option<RequestId>,
        /// Accepted, or why not.
        outcome: PublishOutcome,
    },
    /// The answer to [`Uplink::Settle`].
    Settled,
    /// The answer to [`Uplink::Recover`].
    Recovered(Box<RecoveryReply>),
    /// The other answer to [`Uplink::Recover`].
    Unrecoverable(Unrecoverable),
    /// The answer to a client's [`Uplink::History`].
    History(Box<HistoryReply>),
    /// The answer to a client's [`Uplink::Presence`].
    Presence(Box<PresenceReply>),
    /// The answer to an HTTP request of a connection ([`calls::Call`]).
    HttpReply(Box<HttpReply>),
    /// The answer to a question of a connection ([`hooks::HookAsk`]).
    Hook(Box<hooks::HookReply>),
    /// An operator's question. The reply must not block.
    Inspect(Box<Inspect>),
    /// An operator has disconnected a user. Comes behind the deliveries that were made before.
    Disconnect {
        /// The shard's own key for the user's topic.
        at: TopicId,
        /// Code and reason of the close frames.
        close: Arc<Disconnect>,
    },
    /// Stop accepting; close every connection with a code to reconnect later; end.
    Drain {
        /// Over how long the closes are spread.
        over_ms: u64,
    },
}

/// The answer to a [`calls::Call`].
#[derive(Debug)]
pub struct HttpReply {
    /// Who asked; it may have closed since.
    pub conn: ConnId,
    /// Head and body.
    pub response: Bytes,
    /// Whether the connection ends with it.
    pub is_last: bool,
}

/// Code and reason with which an operator closes the connections of a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disconnect {
    /// The close code (RFC 6455 §7.4).
    pub code: u16,
    /// The reason beside it: at most 123 bytes.
    pub reason: Box<str>,
}

/// From the ops thread: all connections of a user are to be closed, on every node.
#[derive(Debug)]
pub struct DisconnectRequest {
    /// The user's topic (`u:<user>`).
    pub topic: TopicName,
    /// Code and reason of the close frames.
    pub close: Disconnect,
    /// Called once: with `Accepted` when the request is on its way to every node with connections of
    /// the user. Must not block.
    pub reply: ReplyTo<PublishOutcome>,
}

/// From the ops thread: tokens are to be refused on every node.
#[derive(Debug)]
pub struct RevokeRequest {
    /// Which tokens, and until when.
    pub revocation: Revocation,
    /// Called once. Must not block.
    pub reply: ReplyTo<RevokeOutcome>,
}

/// How a [`RevokeRequest`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RevokeOutcome {
    /// It is stored, and holds on each node when that has read it.
    Stored,
    /// There are as many as there may be: it does not hold.
    Full,
    /// The backplane is unavailable: it does not hold.
    Unavailable,
    /// The connection to Redis broke with the command in flight: it may hold.
    Unknown,
}

const fn crosses<T: Send>() {}
const _: () = crosses::<Uplink>();
const _: () = crosses::<Downlink>();

// With eight bytes of the channel's own, a delivery fills one line of cache, and each shard has
// thousands of places for them.
const _: () = assert!(size_of::<Downlink>() <= 56);
