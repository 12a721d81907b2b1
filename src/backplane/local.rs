//! This node's side of the backplane: who listens here, and the way to them.
//!
//! A [`super::Transport`] knows other nodes and nothing of shards; it tells this side what happened
//! (a message came, a topic is confirmed, a publish ended), and this side finds the shards.
//!
//! Invariant: nothing here waits. A message costs one hash, one frame set, and one `try_send` for
//! each shard with members.

use super::fanout::{self, Lane};
use super::interest::{Interest, Joined, TopicKey};
use super::presence::News;
use super::seldom::LogThrottle;
use crate::ids::{ConflateKey, NodeId, Position, ShardId, TopicId, TopicKind, TopicName};
use crate::link::channel::{BackplaneEnd, ShardPort};
use crate::link::health::Health;
use crate::link::{
    Done, Downlink, FrameSet, HistoryError, HistoryReply, HistoryTo, Origin, PresenceReply,
    PresenceRequest, PresenceTo, PublishOutcome, Recovered, Said,
};
use crate::metrics::BackplaneCounters;
use crate::protocol::{Event, Recovery, Roster};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A message that came from the backplane, still in the bytes it came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// The topic's whole name.
    pub topic: &'a str,
    /// The authenticated user who sent it, if one did.
    pub from: Option<&'a str>,
    /// The payload, byte for byte.
    pub payload: &'a [u8],
    /// A connection that must not hear it.
    pub except: Option<Origin>,
    /// What it is about, in a room that conflates for slow members.
    pub conflate_key: Option<ConflateKey>,
    /// What makes a retry of it harmless, where it is kept.
    pub key: Option<&'a str>,
}

impl<'a> Message<'a> {
    /// As those hear it who are in the topic.
    fn event<'b>(&self, topic: TopicKind<'b>, position: Option<Position>) -> Event<'b>
    where
        'a: 'b,
    {
        Event::Message { topic, from: self.from, payload: self.payload, position }
    }
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
    lanes: Vec<Lane>,
    health: Arc<Health>,
    since: Instant,
    failures: LogThrottle,
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
        let lanes = end.shards.iter().map(|_| Lane::new(backlog_bytes_max)).collect();
        Local {
            node,
            end,
            interest: Interest::new(linger),
            counters: BackplaneCounters::default(),
            lanes,
            health,
            since: Instant::now(),
            failures: LogThrottle::default(),
        }
    }

    /// A message came. Hands it to each shard with members; [`Local::flush`] rings them.
    pub fn message(&mut self, message: &Message<'_>) {
        self.counters.received += 1;
        let Some((name, members)) = self.interest.members(message.topic) else {
            self.counters.unwanted += 1;
            return;
        };
        if members.is_empty() {
            self.counters.unwanted += 1; // it lingers
            return;
        }
        let frames = fanout::frames(&message.event(name.kind(), None));
        self.deliver(message.topic, message.except, message.conflate_key, frames);
    }

    /// The frames of a message that stands in a history.
    pub fn frames(&self, message: &Message<'_>, topic: &TopicName, at: Position) -> FrameSet {
        fanout::frames(&message.event(topic.kind(), Some(at)))
    }

    /// A message of a topic that has a history came, or was found there.
    pub fn message_at(&mut self, message: &Message<'_>, frames: FrameSet) {
        self.counters.received += 1;
        self.deliver(message.topic, message.except, message.conflate_key, frames);
    }

    /// What stands in the place of messages that cannot be brought back.
    pub fn lost_frames(&self, topic: &TopicName, count: u64) -> FrameSet {
        fanout::frames(&Event::Lost { topic: topic.kind(), count })
    }

    /// Everybody in a topic hears that something was missed, behind what was delivered before.
    pub fn lost(&mut self, topic: &TopicName, count: u64) {
        let members = self.interest.members(topic.as_str()).map_or(&[][..], |(_, members)| members);
        for member in members {
            let index = usize::from(member.shard.0);
            let item = Downlink::Lost { to: member.at, count };
            self.lanes[index].answer_behind(&self.end.shards[index], item);
        }
    }

    fn deliver(
        &mut self,
        topic: &str,
        except: Option<Origin>,
        key: Option<ConflateKey>,
        frames: FrameSet,
    ) {
        let members = self.interest.members(topic).map_or(&[][..], |(_, members)| members);
        let Some((last, others)) = members.split_last() else { return };
        // Another node's numbers mean nothing here.
        let except = except.filter(|origin| origin.node == self.node);
        let mut deliver = |shard: ShardId, to: TopicId, frames: FrameSet| {
            let except = except.filter(|origin| origin.shard == shard).map(|origin| origin.conn);
            let index = usize::from(shard.0);
            let delivered =
                self.lanes[index].deliver(&self.end.shards[index], to, frames, except, key);
            self.counters.delivered += u64::from(delivered);
            self.counters.dropped += u64::from(!delivered);
        };
        for member in others {
            deliver(member.shard, member.at, frames.clone());
        }
        deliver(last.shard, last.at, frames);
    }

    /// A shard has its first member of a topic. Answers under which key to subscribe, if so.
    pub fn join(&mut self, topic: TopicName, shard: ShardId, at: TopicId) -> Option<TopicKey> {
        match self.interest.join(topic, shard, at) {
            Joined::Now => {
                self.answer(shard, Downlink::Joined { at });
                None
            }
            Joined::Later => None,
            Joined::Subscribe(key) => Some(key),
        }
    }

    /// The last member of a topic left a shard.
    pub fn leave(&mut self, topic: &TopicName, shard: ShardId, at: TopicId, now: Instant) {
        self.lanes[usize::from(shard.0)].forget(at);
        self.interest.leave(topic, shard, at, now);
    }

    /// A server of the transport listens for a topic now: whoever waits for that is told. Whether the
    /// topic is still wanted from it.
    pub fn subscribed(&mut self, key: TopicKey, server: usize) -> bool {
        let (lanes, ports) = (&mut self.lanes, &self.end.shards);
        self.interest.confirm(key, server, |shard, at| {
            let index = usize::from(shard.0);
            lanes[index].answer(&ports[index], Downlink::Joined { at });
        })
    }

    /// Whoever wants to be in a topic with a history hears where it is, behind all deliveries that
    /// were made before.
    pub fn recovered(&mut self, shard: ShardId, recovered: Recovered) {
        match recovered.recovery {
            Recovery::NotAsked => {}
            Recovery::Recovered { .. } => self.counters.recovered += 1,
            Recovery::NotRecovered(_) | Recovery::Replaced { .. } => {
                self.counters.unrecovered += 1;
            }
        }
        let index = usize::from(shard.0);
        self.lanes[index]
            .answer_behind(&self.end.shards[index], Downlink::Recovered(Box::new(recovered)));
    }

    /// Messages of a history, for whoever asked.
    pub fn said(&mut self, topic: TopicName, to: HistoryTo, said: Result<Said, HistoryError>) {
        match to {
            HistoryTo::Call(call) => call(said),
            HistoryTo::Conn { shard, conn, id } => {
                let told = HistoryReply { conn, id, topic, said };
                self.answer(shard, Downlink::History(Box::new(told)));
            }
        }
    }

    /// Somebody came into a room, or left it. Nothing to count as a message, and nobody's loss.
    pub fn news(&mut self, topic: &str, news: &News<'_>) {
        match news {
            News::Joined { .. } => self.counters.presence_joined += 1,
            News::Left { .. } => self.counters.presence_left += 1,
        }
        let Some((name, members)) = self.interest.members(topic) else { return };
        let TopicKind::Room(room) = name.kind() else { return };
        if !members.is_empty() {
            let frames = fanout::frames(&news.event(room));
            let key = ConflateKey::of_news(news.user());
            self.deliver(topic, news.except(), Some(key), frames);
        }
    }

    /// Who is in a room, for whoever asked. `None`: the backplane is away.
    pub fn here(&mut self, ask: PresenceRequest, here: Option<Arc<Roster>>) {
        let PresenceRequest { topic, to } = ask;
        match to {
            PresenceTo::Call(call) => call(here),
            PresenceTo::Conn { shard, conn, id } => {
                let told = PresenceReply { conn, id, topic, here };
                self.answer(shard, Downlink::Presence(Box::new(told)));
            }
        }
    }

    /// A publish ended. Failures are always told; success only to those who asked.
    pub fn done(&mut self, done: Done, outcome: PublishOutcome, now: Instant) {
        match outcome {
            PublishOutcome::Accepted(_) => {}
            PublishOutcome::Unavailable => self.counters.publishes_failed += 1,
            PublishOutcome::Unknown => self.counters.publishes_unknown += 1,
        }
        match done {
            Done::Conn { id: None, .. } if matches!(outcome, PublishOutcome::Accepted(_)) => {}
            Done::Conn { shard, conn, id } => {
                self.answer(shard, Downlink::Ack { conn, id, outcome });
            }
            Done::Call(call) => call(outcome),
            Done::Nobody if matches!(outcome, PublishOutcome::Accepted(_)) => {}
            Done::Nobody => {
                if let Some(suppressed) = self.failures.is_due(now) {
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
    pub fn takes(&self, shard: ShardId) -> bool {
        !self.lanes[usize::from(shard.0)].is_held()
    }

    /// Bytes of deliveries that wait for shards whose channels are full.
    pub fn backlog_bytes(&self) -> u64 {
        self.lanes.iter().map(|lane| lane.backlog_bytes() as u64).sum()
    }

    /// Whether something waits for room in a shard's channel, so that this thread must look again
    /// by itself.
    pub fn is_waiting(&self) -> bool {
        self.lanes.iter().any(Lane::is_waiting)
    }

    /// Ends a turn: what waited is tried again, and each shard that was sent something is rung once.
    pub fn flush(&mut self) {
        for (lane, port) in self.lanes.iter_mut().zip(&self.end.shards) {
            lane.retry(port);
            lane.ring(port);
        }
    }

    /// Whether every shard has ended and left nothing behind.
    pub fn is_deserted(&self) -> bool {
        let left_nothing = |port: &ShardPort| port.is_gone() && port.waiting() == 0;
        self.end.shards.iter().all(left_nothing)
    }

    fn answer(&mut self, shard: ShardId, item: Downlink) {
        let index = usize::from(shard.0);
        self.lanes[index].answer(&self.end.shards[index], item);
    }
}
