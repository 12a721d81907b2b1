//! This node's side of the backplane: who listens here, and the way to them.
//!
//! A [`super::Transport`] knows other nodes and nothing of shards; it tells this side what happened
//! (a message came, a topic is confirmed, a publish ended), and this side finds the shards.
//!
//! Invariant: nothing here waits. A message costs one hash, one frame set, and one `try_send` for
//! each shard with members.

use crate::backplane::interest::{Interest, JoinOutcome, ShardMember, TopicKey};
use crate::backplane::log_throttle::LogThrottle;
use crate::backplane::message::Message;
use crate::backplane::pending_publishes::PendingPublishes;
use crate::backplane::presence::PresenceEvent;
use crate::backplane::shard_queue::ShardQueue;
use crate::framing;
use crate::ids::{ConflateKey, NodeId, Position, ShardId, TopicId, TopicKind, TopicName};
use crate::link::channel::{BackplaneEnd, ShardPort};
use crate::link::connections::everybody;
use crate::link::health::Health;
use crate::link::{
    Delivery, Done, Downlink, HistoryError, HistoryPage, HistoryReply, HistoryTo, Origin,
    PresenceReply, PresenceRequest, PresenceTo, Publish, PublishOutcome, RecoveryReply,
    Unrecoverable,
};
use crate::metrics::BackplaneCounters;
use crate::protocol::dialect::Encoding;
use crate::protocol::{Event, Recovery, Roster};
use bytes::Bytes;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What is handed out to the members of a topic.
enum RoomEvent<'a> {
    /// A message, and where it stands in the topic's history.
    Message(&'a Message<'a>, Option<Position>),
    /// A user came or left.
    PresenceEvent(&'a PresenceEvent<'a>),
    /// The message at a position of the history cannot be read.
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

    /// As one shard receives it. Another node's numbers mean nothing here.
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

/// Who a broadcast is for: those of one encoding together.
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

/// See the module.
pub struct Local {
    /// This node.
    pub node: NodeId,
    /// The window's end.
    pub end: BackplaneEnd,
    /// Which topics this node listens for.
    pub interest: Interest,
    /// What is counted.
    pub counters: BackplaneCounters,
    queues: Vec<ShardQueue>,
    publishes: Vec<PendingPublishes>,
    /// Who the last broadcast was for; its memory is used again.
    everybody: Vec<ShardMember>,
    health: Arc<Health>,
    since: Instant,
    failure_log: LogThrottle,
}

impl Local {
    /// Nobody listens yet, and nothing is up.
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
        }
    }

    /// A message came. Hands it to each shard with members; [`Local::flush`] rings them.
    pub fn message(&mut self, message: &Message<'_>) {
        self.counters.received += 1;
        if !self.deliver(message.topic, &RoomEvent::Message(message, None)) {
            self.counters.unwanted += 1; // nobody listens any more, or the topic lingers
        }
    }

    /// A message of a topic that has a history came, or was found there.
    pub fn message_at(&mut self, message: &Message<'_>, at: Position) {
        self.counters.received += 1;
        self.deliver(message.topic, &RoomEvent::Message(message, Some(at)));
    }

    /// A message of a history cannot be read: one is lost in its place.
    pub fn unreadable_at(&mut self, topic: &TopicName, at: Position) {
        self.counters.received += 1;
        self.deliver(topic.as_str(), &RoomEvent::Unreadable(at));
    }

    /// Everybody in a topic hears that something was missed, behind what was delivered before.
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

    /// Hands an event to each shard with members, written once for each encoding that they have.
    /// Whether there are any.
    fn deliver(&mut self, topic: &str, what: &RoomEvent<'_>) -> bool {
        let (kind, members) = if topic == TopicName::ALL {
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

    /// Listens for what is said to everybody, from the start to the end. Answers under which key to
    /// subscribe.
    pub fn listen_for_everybody(&mut self) -> TopicKey {
        self.interest.pin(TopicName::all())
    }

    /// A shard has its first member of a topic in an encoding. Answers under which key to
    /// subscribe, if so.
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

    /// A server of the transport listens for a topic now: whoever waits for that is told. Whether the
    /// topic is still wanted from it.
    pub fn confirm_subscription(&mut self, key: TopicKey, server: usize) -> bool {
        let (queues, ports) = (&mut self.queues, &self.end.shards);
        self.interest.confirm(key, server, |shard, at| {
            let index = usize::from(shard.0);
            queues[index].answer(&ports[index], Downlink::Joined { at });
        })
    }

    /// Whoever wants to be in a topic with a history hears where it is, behind all deliveries that
    /// were made before.
    pub fn reply_recovery(&mut self, shard: ShardId, recovered: RecoveryReply) {
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

    /// Whoever wants to be in a topic with a history hears that nothing can be said of it.
    pub fn refuse_recovery(&mut self, shard: ShardId, unrecoverable: Unrecoverable) {
        self.counters.unrecovered += 1;
        self.answer(shard, Downlink::Unrecoverable(unrecoverable));
    }

    /// Messages of a history, for whoever asked.
    pub fn reply_history(
        &mut self,
        topic: TopicName,
        to: HistoryTo,
        said: Result<HistoryPage, HistoryError>,
    ) {
        match to {
            HistoryTo::Call(call) => call(said),
            HistoryTo::Conn { shard, conn, id } => {
                let told = HistoryReply { conn, id, topic, said };
                self.answer(shard, Downlink::History(Box::new(told)));
            }
        }
    }

    /// Somebody came into a room, or left it. Nothing to count as a message, and nobody's loss.
    pub fn presence_event(&mut self, topic: &str, news: &PresenceEvent<'_>) {
        match news {
            PresenceEvent::Joined { .. } => self.counters.presence_joined += 1,
            PresenceEvent::Left { .. } => self.counters.presence_left += 1,
        }
        self.deliver(topic, &RoomEvent::PresenceEvent(news));
    }

    /// Who is in a room, for whoever asked. `None`: the backplane is away.
    pub fn reply_presence(&mut self, ask: PresenceRequest, here: Option<Arc<Roster>>) {
        let PresenceRequest { topic, to } = ask;
        match to {
            PresenceTo::Call(call) => call(here),
            PresenceTo::Conn { shard, conn, id } => {
                let told = PresenceReply { conn, id, topic, here };
                self.answer(shard, Downlink::Presence(Box::new(told)));
            }
        }
    }

    /// A publish was taken from a shard: it ends with one [`Local::end_publish`].
    pub fn begin_publish(&mut self, publish: &mut Publish) {
        self.counters.publishes += 1;
        if let Done::Conn { shard, turn, .. } = &mut publish.done {
            *turn = self.publishes[usize::from(shard.0)].begin();
        }
    }

    /// A shard wants to know when its publishes up to here have ended.
    pub fn settle(&mut self, shard: ShardId) {
        if self.publishes[usize::from(shard.0)].ask() {
            self.answer(shard, Downlink::Settled);
        }
    }

    /// A publish ended. Failures are always told; success only to those who asked.
    pub fn end_publish(&mut self, done: Done, outcome: PublishOutcome, now: Instant) {
        let turn = match done {
            Done::Conn { shard, turn, .. } => Some((shard, turn)),
            Done::Call(_) | Done::Nobody => None,
        };
        self.answer_done(done, outcome, now);
        if let Some((shard, turn)) = turn
            && self.publishes[usize::from(shard.0)].end(turn)
        {
            self.answer(shard, Downlink::Settled);
        }
    }

    fn answer_done(&mut self, done: Done, outcome: PublishOutcome, now: Instant) {
        match outcome {
            PublishOutcome::Accepted(_) => {}
            PublishOutcome::Unavailable => self.counters.publishes_failed += 1,
            PublishOutcome::Unknown => self.counters.publishes_unknown += 1,
        }
        match done {
            Done::Conn { id: None, .. } if matches!(outcome, PublishOutcome::Accepted(_)) => {}
            Done::Conn { shard, conn, id, .. } => {
                self.answer(shard, Downlink::Ack { conn, id, outcome });
            }
            Done::Call(call) => call(outcome),
            Done::Nobody if matches!(outcome, PublishOutcome::Accepted(_)) => {}
            Done::Nobody => {
                if let Some(suppressed) = self.failure_log.is_due(now) {
                    tracing::warn!(?outcome, suppressed, "a publish that nobody waits for failed");
                }
            }
        }
    }

    /// The transport delivers from now on, or does not. Written to health at once.
    pub fn set_up(&mut self, up: bool, reason: &str, now: Instant) {
        if up == (self.counters.up == 1) {
            return;
        }
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

    /// Whether the transport delivers.
    pub fn is_up(&self) -> bool {
        self.counters.up == 1
    }

    /// Whether items of a shard are taken now: not while an answer waits for room in its channel.
    pub fn accepts_from(&self, shard: ShardId) -> bool {
        !self.queues[usize::from(shard.0)].is_held()
    }

    /// Bytes of deliveries that wait for shards whose channels are full.
    pub fn backlog_bytes(&self) -> u64 {
        self.queues.iter().map(|queue| queue.backlog_bytes() as u64).sum()
    }

    /// Whether something waits for room in a shard's channel, so that this thread must look again
    /// by itself.
    pub fn is_waiting(&self) -> bool {
        self.queues.iter().any(ShardQueue::is_waiting)
    }

    /// Ends a turn: what waited is tried again, and each shard that was sent something is rung once.
    pub fn flush(&mut self) {
        for (queue, port) in self.queues.iter_mut().zip(&self.end.shards) {
            queue.retry(port);
            queue.ring(port);
        }
    }

    /// Whether every shard has ended and left nothing behind.
    pub fn are_shards_gone(&self) -> bool {
        let left_nothing = |port: &ShardPort| port.is_gone() && port.waiting() == 0;
        self.end.shards.iter().all(left_nothing)
    }

    fn answer(&mut self, shard: ShardId, item: Downlink) {
        let index = usize::from(shard.0);
        self.queues[index].answer(&self.end.shards[index], item);
    }
}
