//! One shard: connections, topics and what flows between them, as a state machine.
//!
//! It names no runtime, no socket, no clock and no thread. What happened comes in by `handle_*`,
//! what must be done goes out by `take_batch` and `poll_*`, and time is an argument, in milliseconds
//! since any fixed moment. So the whole behaviour of a shard, and of several with a backplane
//! between them, runs in a test on virtual time (`tests/sim`).
//!
//! After any `handle_*` the caller drains, in this order:
//! 1. [`Shard::poll_uplink`] into the window, until it is empty or the window is full
//!    ([`Shard::return_uplink`]); while it is full the caller reads from no client.
//! 2. [`Shard::take_batch`] until [`Shard::has_sends`] is false, others taking turns in between;
//!    while [`Shard::frames_waiting`] is at its limit the caller takes from the backplane no more,
//!    and reads from no client.
//! 3. [`Shard::poll_closed`]: sockets whose time has come.
//! 4. [`Shard::poll_resumed`]: connections to be read again, which go behind the others that wait.
//!
//! | file | what |
//! |---|---|
//! | `conn.rs` | one connection; why connections end |
//! | `hub.rs` | topics and members, both ways |
//! | `commands.rs` | what clients ask for: the match on `Command` lives there and only there |
//! | `recovery.rs` | rooms with a history: joins that wait for their position |
//! | `presence.rs` | rooms of which it is known who is there |
//! | `user_queue.rs` | what is kept for users |
//! | `questions.rs` | questions with long answers, one at a time |
//! | `pause.rs` | connections that are not read for a while |
//! | `acks.rs` | members who acknowledge what they hear |
//! | `delivery/` | replies and rounds, joined into batches (`batch.rs`) |
//! | `lifecycle.rs` | open, close, sweep, drain |
//! | `disconnect.rs` | connections closed because an operator disconnects their user |
//! | `inspect.rs` | answers to operators' questions |
//! | `expiry.rs` | connections whose token expires |
//! | `named_peers.rs` | addresses of clients, where a proxy has named them |
//! | `session/` | one connection as a value: taken out here, put in there |
//! | `slow_consumer/outbox/` | what a slow peer still has to hear, and what of it gives way |
//! | `slow_consumer/` | from a write that was not taken whole to an outbox |
//!
//! Invariant: everything is owned by [`Shard`] and reached by `&mut`; nothing here is shared.

mod acks;
mod commands;
pub mod conn;
pub mod delivery;
mod disconnect;
mod expiry;
mod hub;
mod inspect;
mod lifecycle;
mod losses;
mod named_peers;
mod pause;
mod presence;
mod questions;
mod recovery;
mod session;
mod slow_consumer;
mod user_queue;

pub use lifecycle::{ClosedSocket, Opening};
pub use pause::ReadOutcome;
pub use session::{NotNow, Session};

use crate::framing;
use crate::ids::{ConnId, NodeId, Position, ShardId, TopicId, TopicName};
use crate::link::{Delivery, Downlink, Origin, PublishOutcome, Uplink};
use crate::metrics::ShardCounters;
use crate::policy::limits::Limits;
use crate::policy::namespaces::Namespaces;
use crate::protocol::dialect::Encoding;
use crate::protocol::{ErrorCode, Event, Recovery, RequestId};
use crate::slab::Slab;
use crate::ws::decoder::Decoder;
use acks::AckTracker;
use bytes::{Bytes, BytesMut};
use conn::Conn;
use delivery::{Deliveries, Follows, RoundFrame};
use disconnect::PendingDisconnects;
use expiry::Expiries;
use hub::Hub;
use lifecycle::Lifecycle;
use named_peers::NamedPeers;
use pause::PausedReads;
use presence::PresenceInfos;
use questions::Questions;
use recovery::PendingJoins;
use session::Moves;
use slow_consumer::FrameKind;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use user_queue::PendingUserQueues;

/// What a shard is told once.
#[derive(Clone, Debug)]
pub struct ShardConfig {
    /// Which shard.
    pub id: ShardId,
    /// This node.
    pub node: NodeId,
    /// This node, for people.
    pub node_name: String,
    /// Every limit.
    pub limits: Limits,
    /// What holds for which rooms.
    pub namespaces: Arc<Namespaces>,
}

/// Somebody who waits until the backplane listens for a topic.
struct JoinWaiter {
    conn: ConnId,
    id: Option<RequestId>,
    /// It asked for what it missed, where nothing is kept.
    since: bool,
    /// It was in the topic already when it asked.
    again: bool,
}

/// One shard. See the module's documentation for how it is driven.
pub struct Shard {
    config: ShardConfig,
    limits: Limits,
    conns: Slab<Conn>,
    hub: Hub,
    /// Joins that wait for the backplane, by the topic's index.
    waiting: HashMap<u32, Vec<JoinWaiter>>,
    /// Joins that wait for a position.
    pendings: PendingJoins,
    /// Connections that wait for what is kept for their users.
    queues: PendingUserQueues,
    questions: Questions,
    pauses: PausedReads,
    moves: Moves,
    /// Where the histories of topics are, as far as their members were brought; by the topic's index.
    positions: HashMap<u32, Position>,
    infos: PresenceInfos,
    acks: AckTracker,
    deliveries: Deliveries,
    uplink: VecDeque<Uplink>,
    life: Lifecycle,
    disconnects: PendingDisconnects,
    expiries: Expiries,
    named_peers: NamedPeers,
    /// Whether any room has presence: the others pay nothing for it.
    has_presence: bool,
    everybody: TopicName,
    /// Open connections by [`Encoding::place`].
    broadcast_receivers: [u32; Encoding::COUNT],
    /// What is counted. The caller may add what only it can see.
    pub counters: ShardCounters,
    spare_decoder: Option<Box<Decoder>>,
    scratch: Vec<u8>,
    scratch_frames: Vec<RoundFrame>,
    /// Small frames are cut from here: one allocation for many.
    arena: BytesMut,
}

const ARENA_BYTES: usize = 16 * 1024;

/// Frames above this are allocated for themselves instead of being cut from the arena.
const ARENA_FRAME_BYTES_MAX: usize = 4 * 1024;

impl Shard {
    /// A shard without connections.
    pub fn new(config: ShardConfig) -> Shard {
        let limits = config.limits;
        let everybody = TopicName::all();
        let has_presence = config.namespaces.have_presence();
        Shard {
            config,
            limits,
            conns: Slab::with_max(limits.connections_per_shard_max),
            hub: Hub::with_max(limits.topics_per_shard_max),
            waiting: HashMap::new(),
            pendings: PendingJoins::default(),
            queues: PendingUserQueues::default(),
            questions: Questions::default(),
            pauses: PausedReads::default(),
            moves: Moves::default(),
            positions: HashMap::new(),
            infos: PresenceInfos::default(),
            acks: AckTracker::default(),
            deliveries: Deliveries::default(),
            uplink: VecDeque::new(),
            life: Lifecycle::default(),
            disconnects: PendingDisconnects::default(),
            expiries: Expiries::default(),
            named_peers: NamedPeers::default(),
            has_presence,
            everybody,
            broadcast_receivers: [0; Encoding::COUNT],
            counters: ShardCounters::default(),
            spare_decoder: None,
            scratch: Vec::new(),
            scratch_frames: Vec::new(),
            arena: BytesMut::with_capacity(ARENA_BYTES),
        }
    }

    /// What the backplane or an operator says.
    pub fn handle_downlink(&mut self, item: Downlink, now_ms: u64) {
        match item {
            Downlink::Deliver { to, frame: bytes, except } => {
                self.counters.frames_in += 1;
                let kind = FrameKind::Message(None);
                self.queue_frame(to, RoundFrame { bytes, except, kind });
            }
            Downlink::DeliverWith(delivery) => self.on_delivery(*delivery),
            Downlink::Joined { at } => self.on_joined(at),
            Downlink::Lost { to, count } => self.on_lost(to, count),
            Downlink::Ack { conn, id, outcome } => self.on_ack(conn, id, outcome),
            Downlink::Settled => self.moves.on_settled(),
            Downlink::Recovered(recovered) => self.on_recovered(recovered),
            Downlink::Unrecoverable(unrecoverable) => self.on_unrecoverable(unrecoverable),
            Downlink::History(told) => self.on_told(*told),
            Downlink::Presence(told) => self.on_told_presence(&told),
            Downlink::HttpReply(reply) => self.on_http_reply(*reply),
            Downlink::Inspect(question) => self.inspect(question, |_| None),
            Downlink::Disconnect { at, close } => self.on_disconnect(at, close),
            Downlink::Drain { over_ms } => self.begin_drain(over_ms, now_ms),
        }
    }

    /// The next thing to say to the backplane.
    pub fn poll_uplink(&mut self) -> Option<Uplink> {
        if self.uplink.is_empty() {
            self.ask_on();
        }
        self.uplink.pop_front()
    }

    /// The window was full: the item stays the next one. Until it is gone, no client may be read.
    pub fn return_uplink(&mut self, item: Uplink) {
        self.uplink.push_front(item);
    }

    /// Items that wait for room in the window.
    pub fn uplink_waiting(&self) -> usize {
        self.uplink.len()
    }

    /// Connections, whatever their state.
    pub fn connections(&self) -> usize {
        self.conns.len()
    }

    /// The caller's number for a connection's socket; `None` when the connection has gone.
    pub fn socket_key_of(&self, conn: ConnId) -> Option<u32> {
        Some(self.conns.get(conn.0)?.socket_key)
    }

    /// A connection of this shard, named for everybody.
    pub fn origin(&self, conn: ConnId) -> Origin {
        Origin { node: self.config.node, shard: self.config.id, conn }
    }

    /// Whether the connection still waits for its HTTP request.
    pub fn is_handshaking(&self, conn: ConnId) -> bool {
        self.conns.get(conn.0).is_some_and(|conn| conn.state == conn::ConnState::Handshaking)
    }

    /// Brings the gauges up to date. On the caller's tick.
    pub fn measure(&mut self) {
        self.counters.topics = self.hub.topics_len() as u64;
        self.counters.members = self.hub.members_len() as u64;
        self.counters.uplink_waiting = self.uplink.len() as u64;
        self.counters.questions_waiting = self.questions.waiting() as u64;
        self.counters.connections_paused = self.pauses.len() as u64;
        self.counters.input_paused_bytes = self.pauses.rest_bytes() as u64;
        self.counters.acks_members = self.acks.members() as u64;
        self.counters.acks_lagging = self.acks.lagging() as u64;
    }

    /// Walks every list and asserts that they agree; for tests.
    #[cfg(any(test, debug_assertions))]
    pub fn check(&self) {
        self.hub.check(&self.conns);
        for (_, conn) in self.conns.iter() {
            if !conn.is_open() {
                assert!(conn.joined.is_empty(), "only open connections are in topics");
            }
        }
    }

    fn on_delivery(&mut self, delivery: Delivery) {
        self.counters.frames_in += 1;
        let Delivery { to, frame: bytes, except, position, conflate_key } = delivery;
        if let (Some(position), Some(topic)) = (position, self.hub.get(to)) {
            self.positions.insert(to.0.index, position);
            if topic.has_acks {
                self.acks.note(to.0.index, position, self.life.now_ms);
            }
        }
        let kind = FrameKind::Message(conflate_key);
        self.queue_frame(to, RoundFrame { bytes, except, kind });
    }

    /// A topic has deliveries coming: whoever waited for that hears it.
    fn on_joined(&mut self, at: TopicId) {
        let Some(topic) = self.hub.get_mut(at) else { return };
        topic.ready = true;
        let name = topic.name().clone();
        self.answer_waiters(at, &name);
    }

    fn on_ack(&mut self, conn: ConnId, id: Option<RequestId>, outcome: PublishOutcome) {
        let (code, message) = match outcome {
            PublishOutcome::Accepted(position) => {
                if id.is_some() {
                    let (id, room, recovery, missed) =
                        (id.as_ref(), None, Recovery::NotAsked, None);
                    self.say(conn, &Event::Ok { id, room, position, recovery, missed });
                }
                return;
            }
            PublishOutcome::Unavailable => {
                (ErrorCode::BackplaneUnavailable, "the backplane is away, the message was not sent")
            }
            PublishOutcome::Unknown => (
                ErrorCode::OutcomeUnknown,
                "the backplane broke while it had the message: it may or may not have been sent",
            ),
        };
        self.counters.requests_rejected += 1;
        self.say(conn, &Event::Error { id: id.as_ref(), code, message });
    }

    /// Open connections in an encoding of a dialect with topics: who a broadcast is for.
    pub fn broadcast_receivers(&self, encoding: Encoding) -> u32 {
        self.broadcast_receivers[encoding.place()]
    }

    /// A connection was opened, or is open no longer.
    fn count_open(&mut self, encoding: Encoding, is_open: bool) {
        let difference: i32 = if is_open { 1 } else { -1 };
        let connections = &mut self.counters.connections;
        *connections = connections.wrapping_add_signed(difference.into());
        if encoding.dialect().has_topics() {
            let open = &mut self.broadcast_receivers[encoding.place()];
            *open = open.wrapping_add_signed(difference);
        }
    }

    /// Sends an event to one connection, unless it is closing: nothing may follow a close frame
    /// (RFC 6455 §5.5.1), an answer that was still on its way included.
    fn say(&mut self, conn: ConnId, event: &Event<'_>) {
        self.send(conn, event, Follows::More);
    }

    /// Answers the question of a connection that is under way.
    fn answer(&mut self, conn: ConnId, event: &Event<'_>) {
        self.send(conn, event, Follows::Question);
    }

    fn send(&mut self, conn: ConnId, event: &Event<'_>, follows: Follows) {
        let Some(c) = self.conns.get(conn.0).filter(|c| c.is_open()) else { return };
        let frame = self.frame(event, c.encoding);
        self.queue_reply(conn, frame, follows);
    }

    /// An event as a frame for one connection, cut from the arena.
    fn frame(&mut self, event: &Event<'_>, encoding: Encoding) -> Bytes {
        if framing::frame_len(event, encoding) > ARENA_FRAME_BYTES_MAX {
            return framing::frame(event, encoding);
        }
        self.scratch.clear();
        framing::write(event, encoding, &mut self.scratch);
        self.arena.extend_from_slice(&self.scratch);
        self.arena.split().freeze()
    }
}
