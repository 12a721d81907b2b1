//! This node's side of the backplane: which shards have members, and delivery to them.
//!
//! A [`crate::backplane::transport::Transport`] serves other nodes and not the shards. It reports
//! what happened (a message arrived, a subscription is confirmed, a publish ended), and [`Local`]
//! finds the shards.
//!
//! Invariant: nothing here waits. A message costs one hash of its topic, one frame for each
//! encoding, and one `try_send` for each shard with members.

use crate::backplane::delivery_sample::DeliverySample;
use crate::backplane::history::begun::BegunHistories;
use crate::backplane::history::recent_runs::RecentRuns;
use crate::backplane::interest::{Interest, JoinOutcome, ShardMember, TopicKey};
use crate::backplane::log_throttle::LogThrottle;
use crate::backplane::memory::{BackplaneMemory, held_bytes};
use crate::backplane::message::Message;
use crate::backplane::pending_publishes::PendingPublishes;
use crate::backplane::presence::PresenceEvent;
use crate::backplane::shard_queue::ShardQueue;
use crate::backplane::topic_table::HashedTopic;
use crate::framing;
use crate::ids::{ConflateKey, NodeId, Position, ShardId, TopicId, TopicKind, TopicName};
use crate::link::channel::{BackplaneEnd, ShardPort};
use crate::link::connections::everybody;
use crate::link::exchange::Exchange;
use crate::link::health::Health;
use crate::link::ledger::Account;
use crate::link::{
    Delivery, Disconnect, Downlink, FullShare, HistoryError, HistoryPage, HistoryReply, Origin,
    PresenceReply, PresenceRequest, Publish, PublishOutcome, RecoveryReply, ReplyTo, Unrecoverable,
};
use crate::metrics::BackplaneCounters;
use crate::policy::revocations::{ENTRIES_MAX, Inserted, Revocation, RevocationTable, Revocations};
use crate::protocol::dialect::Encoding;
use crate::protocol::run::Run;
use crate::protocol::{Event, Recovery, Roster, Unrecovered};
use bytes::Bytes;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Runs for clients that return: so many bytes, or this part of the node's memory.
const RUNS_BYTES_MAX: usize = 256 * 1024 * 1024;
const RUNS_PART: u64 = 32;

/// What is delivered to the members of a topic.
enum RoomEvent<'a> {
    /// A message, with its position if the topic has a history.
    Message(&'a Message<'a>, Option<Position>),
    /// A user joined or left the room.
    PresenceEvent(&'a PresenceEvent<'a>),
    /// The message at this position of the history is unreadable.
    Unreadable(Position),
}

impl RoomEvent<'_> {
    /// As the members of a topic receive it.
    fn event<'b>(&'b self, topic: TopicKind<'b>) -> Event<'b> {
        match (self, topic) {
            (RoomEvent::Message(message, position), _) => message.event(topic, *position),
            (RoomEvent::PresenceEvent(news), TopicKind::Room(room)) => news.event(room),
            (RoomEvent::PresenceEvent(_) | RoomEvent::Unreadable(_), _) => {
                Event::Lost { topic, count: 1 }
            }
        }
    }

    /// The delivery for one shard. `except` of another node is dropped: its numbers mean nothing
    /// here.
    fn delivery(&self, to: &ShardMember, frame: Bytes, node: NodeId) -> Delivery {
        let (except, position, conflate_key) = match self {
            RoomEvent::Message(message, position) => {
                (message.except, *position, message.conflate_key)
            }
            RoomEvent::PresenceEvent(news) => {
                (news.except(), None, Some(ConflateKey::of_news(news.user())))
            }
            RoomEvent::Unreadable(at) => (None, Some(*at), None),
        };
        let is_here = |origin: &Origin| origin.node == node && origin.shard == to.shard;
        let except = except.filter(is_here).map(|origin| origin.conn);
        Delivery { to: to.at, frame, except, position, conflate_key }
    }
}

/// The recipients of a broadcast, grouped by encoding.
fn gather_everybody<'a>(into: &'a mut Vec<ShardMember>, ports: &[ShardPort]) -> &'a [ShardMember] {
    into.clear();
    for encoding in Encoding::ALL {
        let ports = ports.iter().filter(|port| port.connections.has(encoding));
        into.extend(
            ports.map(|port| ShardMember::unjoined(port.id, encoding, everybody(encoding))),
        );
    }
    into
}

/// The shards' members and channels, as the backplane thread sees them. Owned by the backplane
/// loop.
pub struct Local {
    /// The number of this node, as in [`crate::link::Origin`].
    pub node: NodeId,
    /// The backplane's end of the window to all shards.
    pub end: BackplaneEnd,
    /// The topics that this node is subscribed to.
    pub interest: Interest,
    /// Counters and gauges of this thread.
    pub counters: BackplaneCounters,
    queues: Vec<ShardQueue>,
    publishes: Vec<PendingPublishes>,
    /// The recipients of the last broadcast; a field, so that its allocation is reused.
    everybody: Vec<ShardMember>,
    health: Arc<Health>,
    since: Instant,
    failure_log: LogThrottle,
    sample: DeliverySample,
    memory: BackplaneMemory,
    /// What the transport keeps alive beside what its gauges count, as of its last measurement.
    pub bytes_beside_gauges: u64,
    /// What clients leave behind in Redis.
    pub begun: BegunHistories,
    /// What was made for clients that returned.
    pub runs: RecentRuns,
    revocations: RevocationTable,
    /// For the shards; `None` until they are there.
    shown: Option<Arc<Exchange<Revocations>>>,
    /// Whether the table has changed since the shards were shown it.
    has_news: bool,
}

impl Local {
    /// No topic is subscribed, and the transport is down. `linger`: how long a topic stays
    /// subscribed after its last member left. `backlog_bytes_max`: bytes that may wait for one full
    /// shard channel.
    pub fn new(
        node: NodeId,
        end: BackplaneEnd,
        health: Arc<Health>,
        linger: Duration,
        backlog_bytes_max: usize,
    ) -> Local {
        let queues: Vec<ShardQueue> =
            end.shards.iter().map(|_| ShardQueue::new(backlog_bytes_max)).collect();
        let publishes = queues.iter().map(|_| PendingPublishes::default()).collect();
        Local {
            node,
            end,
            interest: Interest::new(linger),
            counters: BackplaneCounters::default(),
            queues,
            publishes,
            everybody: Vec::new(),
            health,
            since: Instant::now(),
            failure_log: LogThrottle::default(),
            sample: DeliverySample::default(),
            memory: BackplaneMemory::new(Account::unbounded()),
            bytes_beside_gauges: 0,
            begun: BegunHistories::new(usize::MAX, usize::MAX),
            runs: RecentRuns::new(RUNS_BYTES_MAX),
            revocations: RevocationTable::default(),
            shown: None,
            has_news: false,
        }
    }

    /// What this thread keeps alive counts against the node's bound from here on.
    pub fn watch_memory(&mut self, account: Account) {
        let bytes_max = account.ledger().bytes_max() / RUNS_PART;
        let bytes_max = usize::try_from(bytes_max).unwrap_or(usize::MAX);
        self.runs = RecentRuns::new(bytes_max.min(RUNS_BYTES_MAX));
        self.memory = BackplaneMemory::new(account);
    }

    /// Delivers a message to each shard with members; [`Local::flush`] rings them.
    pub fn message(&mut self, message: &Message<'_>) {
        self.message_to(HashedTopic::of(message.topic), message);
    }

    /// The same where the topic is hashed already.
    pub fn message_to(&mut self, topic: HashedTopic<'_>, message: &Message<'_>) {
        debug_assert_eq!(topic.name(), message.topic);
        self.counters.received += 1;
        self.sample.hand_out(message.topic, message.payload);
        if !self.deliver(topic, &RoomEvent::Message(message, None)) {
            self.counters.unwanted += 1; // the last member has left; the topic lingers
        }
    }

    /// The same for a message with a position in its topic's history.
    pub fn message_at(&mut self, topic: HashedTopic<'_>, message: &Message<'_>, at: Position) {
        debug_assert_eq!(topic.name(), message.topic);
        self.counters.received += 1;
        self.sample.hand_out(message.topic, message.payload);
        self.deliver(topic, &RoomEvent::Message(message, Some(at)));
    }

    /// The message at this position is unreadable: members receive a loss in its place.
    pub fn unreadable_at(&mut self, topic: HashedTopic<'_>, at: Position) {
        self.counters.received += 1;
        self.deliver(topic, &RoomEvent::Unreadable(at));
    }

    /// Reports a loss to all members of a topic, after earlier deliveries. `count` 0: number
    /// unknown.
    pub fn notify_lost(&mut self, topic: &TopicName, count: u64) {
        let members = if topic.kind() == TopicKind::All {
            gather_everybody(&mut self.everybody, &self.end.shards)
        } else {
            self.interest.members(topic.as_str()).map_or(&[][..], |(_, members)| members)
        };
        for member in members {
            let index = usize::from(member.shard.0);
            let item = Downlink::Lost { to: member.at, count };
            self.queues[index].answer_behind(&self.end.shards[index], item);
        }
    }

    /// Delivers an event to each shard with members, encoded once for each encoding among them.
    /// Returns whether there are any.
    fn deliver(&mut self, topic: HashedTopic<'_>, what: &RoomEvent<'_>) -> bool {
        let (kind, members) = if topic.name() == TopicName::ALL {
            (TopicKind::All, gather_everybody(&mut self.everybody, &self.end.shards))
        } else {
            let Some((name, members)) = self.interest.members(topic) else { return false };
            (name.kind(), members)
        };
        let mut hand_out = |to: &ShardMember, frame: Bytes| {
            let index = usize::from(to.shard.0);
            let delivery = what.delivery(to, frame, self.node);
            let is_delivered = self.queues[index].deliver(&self.end.shards[index], delivery);
            self.counters.delivered += u64::from(is_delivered);
            self.counters.dropped += u64::from(!is_delivered);
        };
        for group in members.chunk_by(|one, next| one.encoding == next.encoding) {
            let (last, others) = group.split_last().expect("no group is empty");
            let frame = framing::frame(&what.event(kind), last.encoding);
            self.counters.frames_made += 1;
            others.iter().for_each(|to| hand_out(to, frame.clone()));
            hand_out(last, frame);
        }
        !members.is_empty()
    }

    /// Subscribes the broadcast topic for the life of the node. Returns the key to subscribe under.
    pub fn listen_for_everybody(&mut self) -> TopicKey {
        self.interest.pin(TopicName::all())
    }

    /// A shard has its first member of a topic in an encoding. Returns the key if the topic has to
    /// be subscribed; the shard receives `Joined` once it is.
    pub fn join(
        &mut self,
        topic: TopicName,
        shard: ShardId,
        encoding: Encoding,
        at: TopicId,
    ) -> Option<TopicKey> {
        match self.interest.join(topic, shard, encoding, at) {
            JoinOutcome::Confirmed => {
                self.answer(shard, Downlink::Joined { at });
                None
            }
            JoinOutcome::Pending => None,
            JoinOutcome::Subscribe(key) => Some(key),
        }
    }

    /// The last member of a topic left a shard.
    pub fn leave(&mut self, topic: &TopicName, shard: ShardId, at: TopicId, now: Instant) {
        self.queues[usize::from(shard.0)].forget(at);
        self.interest.leave(topic, shard, at, now);
    }

    /// A server of the transport has subscribed a topic: pending joins are answered. Returns
    /// whether the topic is still wanted from that server.
    pub fn confirm_subscription(&mut self, key: TopicKey, server: usize) -> bool {
        let (queues, ports) = (&mut self.queues, &self.end.shards);
        self.interest.confirm(key, server, |shard, at| {
            let index = usize::from(shard.0);
            queues[index].answer(&ports[index], Downlink::Joined { at });
        })
    }

    /// Answers a join of a topic with a history: its position and the missed messages, after all
    /// earlier deliveries.
    pub fn reply_recovery(&mut self, shard: ShardId, mut recovered: RecoveryReply) {
        let bytes = recovered.missed.bytes.len();
        if bytes > 0 && !self.memory.may_answer(bytes) {
            self.counters.answers_refused += 1;
            (recovered.recovery, recovered.missed) =
                (Recovery::NotRecovered(Unrecovered::Overload), Run::default());
        }
        match recovered.recovery {
            Recovery::NotAsked => {}
            Recovery::Recovered { .. } => self.counters.recovered += 1,
            Recovery::NotRecovered(_) | Recovery::Replaced { .. } => {
                self.counters.unrecovered += 1;
            }
        }
        let index = usize::from(shard.0);
        self.queues[index]
            .answer_behind(&self.end.shards[index], Downlink::Recovered(Box::new(recovered)));
    }

    /// Refuses a join of a topic whose stored history is unreadable.
    pub fn refuse_recovery(&mut self, shard: ShardId, unrecoverable: Unrecoverable) {
        self.counters.unrecovered += 1;
        self.answer(shard, Downlink::Unrecoverable(unrecoverable));
    }

    /// Answers a request for a page of history.
    pub fn reply_history(
        &mut self,
        topic: TopicName,
        to: ReplyTo<Result<HistoryPage, HistoryError>>,
        mut page: Result<HistoryPage, HistoryError>,
    ) {
        let bytes = page.as_ref().map_or(0, |page| page.messages.bytes.len());
        if bytes > 0 && !self.memory.may_answer(bytes) {
            self.counters.answers_refused += 1;
            page = Err(HistoryError::Overloaded);
        }
        match to {
            ReplyTo::Nobody => {}
            ReplyTo::Call(call) => call(page),
            ReplyTo::Conn { shard, conn, id, .. } => {
                let reply = HistoryReply { conn, id, topic, page };
                self.answer(shard, Downlink::History(Box::new(reply)));
            }
        }
    }

    /// Closes all connections of a user on this node, after what was delivered to them before.
    pub fn disconnect(&mut self, topic: HashedTopic<'_>, close: Disconnect) {
        let Some((_, members)) = self.interest.members(topic) else { return };
        let close = Arc::new(close);
        for member in members {
            let index = usize::from(member.shard.0);
            let item = Downlink::Disconnect { at: member.at, close: close.clone() };
            self.queues[index].answer_behind(&self.end.shards[index], item);
        }
    }

    /// Delivers a presence event. It does not count as a message.
    pub fn presence_event(&mut self, topic: &str, news: &PresenceEvent<'_>) {
        match news {
            PresenceEvent::Joined { .. } => self.counters.presence_joined += 1,
            PresenceEvent::Left { .. } => self.counters.presence_left += 1,
        }
        self.deliver(topic.into(), &RoomEvent::PresenceEvent(news));
    }

    /// Answers a request for the users of a room. `None`: the backplane is unavailable.
    pub fn reply_presence(&mut self, ask: PresenceRequest, here: Option<Arc<Roster>>) {
        let PresenceRequest { topic, to } = ask;
        match to {
            ReplyTo::Nobody => {}
            ReplyTo::Call(call) => call(here),
            ReplyTo::Conn { shard, conn, id, .. } => {
                let reply = PresenceReply { conn, id, topic, here };
                self.answer(shard, Downlink::Presence(Box::new(reply)));
            }
        }
    }

    /// Registers a publish; it ends with exactly one [`Local::end_publish`].
    pub fn begin_publish(&mut self, publish: &mut Publish) {
        self.counters.publishes += 1;
        if let ReplyTo::Conn { shard, turn, .. } = &mut publish.done {
            *turn = self.publishes[usize::from(shard.0)].begin();
        }
    }

    /// Measures how long this publish takes to reach the shards here, unless another one is being
    /// measured. `now`: when it was taken.
    pub fn sample_publish(&mut self, publish: &Publish, now: Instant) {
        if self.sample.is_due(now) && self.has_members(&publish.topic) {
            self.sample.begin(publish, now);
        }
    }

    /// Whether a message of this topic would be delivered on this node.
    fn has_members(&self, topic: &TopicName) -> bool {
        let topic_name = HashedTopic::of(topic.as_str());
        let has_any = |(_, members): (&TopicName, &[ShardMember])| !members.is_empty();
        topic.kind() == TopicKind::All || self.interest.members(topic_name).is_some_and(has_any)
    }

    /// A shard asks for `Settled` when all its publishes up to now have ended.
    pub fn settle(&mut self, shard: ShardId) {
        if self.publishes[usize::from(shard.0)].ask() {
            self.answer(shard, Downlink::Settled);
        }
    }

    /// A publish has ended. Failures are always reported; success only if the publisher asked for
    /// it.
    pub fn end_publish(
        &mut self,
        done: ReplyTo<PublishOutcome>,
        outcome: PublishOutcome,
        now: Instant,
    ) {
        let turn = match done {
            ReplyTo::Conn { shard, turn, .. } => Some((shard, turn)),
            ReplyTo::Call(_) | ReplyTo::Nobody => None,
        };
        self.answer_done(done, outcome, now);
        if let Some((shard, turn)) = turn
            && self.publishes[usize::from(shard.0)].end(turn)
        {
            self.answer(shard, Downlink::Settled);
        }
    }

    fn answer_done(
        &mut self,
        done: ReplyTo<PublishOutcome>,
        outcome: PublishOutcome,
        now: Instant,
    ) {
        match outcome {
            PublishOutcome::Accepted(_) => {}
            PublishOutcome::Unavailable => self.counters.publishes_failed += 1,
            PublishOutcome::Unknown => self.counters.publishes_unknown += 1,
            PublishOutcome::Full(FullShare::IdempotencyKeys) => {
                self.counters.publishes_overloaded += 1;
            }
            PublishOutcome::Full(FullShare::Histories) => self.counters.publishes_without_room += 1,
        }
        match done {
            ReplyTo::Conn { id: None, .. } if matches!(outcome, PublishOutcome::Accepted(_)) => {}
            ReplyTo::Conn { shard, conn, id, .. } => {
                self.answer(shard, Downlink::Ack { conn, id, outcome });
            }
            ReplyTo::Call(call) => call(outcome),
            ReplyTo::Nobody if matches!(outcome, PublishOutcome::Accepted(_)) => {}
            ReplyTo::Nobody => {
                if let Some(suppressed) = self.failure_log.is_due(now) {
                    tracing::warn!(?outcome, suppressed, "publish without reply channel failed");
                }
            }
        }
    }

    /// The transport is up or down from now on. Written to readiness at once, and logged.
    pub fn set_up(&mut self, up: bool, reason: &str, now: Instant) {
        if up == (self.counters.up == 1) {
            return;
        }
        self.show_news(); // a node that is ready refuses what is revoked
        let for_ms = now.duration_since(self.since).as_millis() as u64;
        if up {
            tracing::info!(reason, down_for_ms = for_ms, "backplane up");
        } else {
            tracing::info!(reason, up_for_ms = for_ms, "backplane down");
        }
        self.since = now;
        self.counters.up = u64::from(up);
        self.health.set_backplane_up(up);
    }

    /// Whether the transport is up.
    pub fn is_up(&self) -> bool {
        self.counters.up == 1
    }

    /// Whether items are taken from a shard now: not while replies or deliveries wait for room in
    /// its channel.
    pub fn accepts_from(&self, shard: ShardId) -> bool {
        !self.queues[usize::from(shard.0)].is_held()
    }

    /// Bytes of deliveries that wait for room in shard channels.
    pub fn backlog_bytes(&self) -> u64 {
        self.queues.iter().map(|queue| queue.backlog_bytes() as u64).sum()
    }

    /// What this thread keeps alive. `sent`: how a channel to a shard is looked at.
    fn held_bytes(&self, sent: fn(&ShardPort) -> u64) -> u64 {
        let queued: u64 = self.queues.iter().map(ShardQueue::held_bytes).sum();
        let in_channels: u64 = self.end.shards.iter().map(sent).sum();
        let revocations = self.revocations.held_bytes() as u64;
        held_bytes(&self.counters, queued + in_channels)
            + self.bytes_beside_gauges
            + (self.runs.bytes() + self.begun.held_bytes()) as u64
            + revocations
    }

    /// Where the shards find the revocations.
    pub fn show_revocations(&mut self, shown: Arc<Exchange<Revocations>>) {
        self.shown = Some(shown);
    }

    /// Tokens are revoked, as another node or this one has stored it: the shards see it on their next
    /// tick. What does not fit is counted; nodes with the same limit do not store so many.
    pub fn revoke(&mut self, order: &Revocation) -> Inserted {
        self.revoke_within(order, ENTRIES_MAX)
    }

    /// The same, unless there are `entries_max` already.
    pub fn revoke_within(&mut self, order: &Revocation, entries_max: usize) -> Inserted {
        let inserted = self.revocations.insert(order, entries_max);
        self.has_news |= inserted == Inserted::Changed;
        self.counters.revocations_refused += u64::from(inserted == Inserted::Full);
        inserted
    }

    /// All revocations that this node knows of.
    pub fn revocations(&self) -> impl Iterator<Item = Revocation> + '_ {
        self.revocations.iter()
    }

    /// Forgets revocations that are over, and shows the shards what is new. On the tick.
    fn tick_revocations(&mut self) {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
        self.has_news |= self.revocations.remove_expired(since_1970.map_or(0, |it| it.as_secs()));
        self.counters.revocations = self.revocations.len() as u64;
        self.show_news();
    }

    fn show_news(&mut self) {
        if std::mem::take(&mut self.has_news)
            && let Some(shown) = &self.shown
        {
            shown.set(Arc::new(self.revocations.snapshot()));
        }
    }

    /// Adds up what this thread keeps alive, on its tick; and what comes of it for readiness.
    pub fn tick_memory(&mut self, now: Instant) {
        self.runs.tick(now);
        self.begun.tick(now);
        self.tick_revocations();
        let held = self.held_bytes(ShardPort::downlink_waiting_bytes);
        if let Some(is_short) = self.memory.tick(held, now) {
            tracing::warn!(is_short, "readiness follows memory");
            self.health.set_memory_short(is_short);
        }
        let reading = self.memory.reading();
        self.counters.memory_held_bytes = reading.held;
        self.counters.memory_bytes_max = reading.bytes_max;
        self.counters.memory_pressure = reading.pressure as u64;
    }

    /// Whether anything waits for room in a shard channel. Shards do not ring when they have made
    /// room, so this thread retries on a timer.
    pub fn is_waiting(&self) -> bool {
        self.queues.iter().any(ShardQueue::is_waiting)
    }

    /// Ends a turn: waiting items are retried, and each shard that was sent something is rung once.
    pub fn flush(&mut self) {
        for (queue, port) in self.queues.iter_mut().zip(&self.end.shards) {
            queue.retry(port);
            queue.ring(port);
        }
        // The lines of cache that shards write to are looked at on ticks.
        let held = self.held_bytes(ShardPort::downlink_waiting_bytes_at_most);
        self.memory.end_turn(held);
        if let Some(took) = self.sample.flushed() {
            self.counters.delivery_time.record(took);
        }
    }

    /// Whether every shard has ended and its channel is empty.
    pub fn are_shards_gone(&self) -> bool {
        let left_nothing = |port: &ShardPort| port.is_gone() && port.waiting() == 0;
        self.end.shards.iter().all(left_nothing)
    }

    fn answer(&mut self, shard: ShardId, item: Downlink) {
        let index = usize::from(shard.0);
        self.queues[index].answer(&self.end.shards[index], item);
    }
}
