//! The backplane of a single node: the same path as with Redis, without other nodes at its end.
//!
//! A publish still goes up to this thread and comes down again, so that each topic has one order
//! and a client cannot tell the two backplanes apart. Requests of a turn are carried out in the
//! same turn, in their order.
//!
//! Presence (`presence`) is complete here, because all connections are this node's own. Histories
//! ([`MemoryHistories`]) and acknowledgements live as long as the process.
//!
//! Invariant: nothing waits here between turns, so only histories and idempotency keys need a
//! bound.

use crate::backplane::envelope;
use crate::backplane::history::keys::IdempotencyKeys;
use crate::backplane::history::log::{Retention, RunRequest};
use crate::backplane::history::owners::Owner;
use crate::backplane::history::store::MemoryHistories;
use crate::backplane::interest::TopicKey;
use crate::backplane::local::Local;
use crate::backplane::message::Message;
use crate::backplane::presence::Presence;
use crate::backplane::topic_table::HashedTopic;
use crate::backplane::transport::Transport;
use crate::ids::{Position, ShardId, TopicKind, TopicName, UpTo};
use crate::link::{
    DisconnectRequest, FullShare, HistoryError, HistoryPage, HistoryRequest, PresenceRequest,
    PresenceUpdate, Publish, PublishOutcome, RecoveryReply, RecoveryRequest, RevokeOutcome,
    RevokeRequest,
};
use crate::policy::limits::Limits;
use crate::policy::namespaces::{Namespaces, Policy};
use crate::policy::revocations::Inserted;
use crate::protocol::run::Run;
use crate::protocol::{Recovery, Unrecovered};
use std::sync::Arc;
use std::task::Context;
use std::time::{Duration, Instant};

/// How often expired messages are trimmed.
const TICK: Duration = Duration::from_millis(100);

/// The in-process transport. Owned by the backplane loop.
pub struct Embedded {
    requests: Vec<EmbeddedRequest>,
    is_up: bool,
    namespaces: Arc<Namespaces>,
    histories: MemoryHistories,
    keys: IdempotencyKeys,
    presence: Presence,
    recovery_bytes_max: usize,
    revocations_max: usize,
    last_tick: Option<Instant>,
}

enum EmbeddedRequest {
    Subscribe(TopicKey),
    Publish(Publish),
    Recover(ShardId, Box<RecoveryRequest>),
    History(Box<HistoryRequest>),
    PresenceUpdate(PresenceUpdate),
    Presence(Box<PresenceRequest>),
    Acknowledge(TopicName, UpTo),
    Disconnect(Box<DisconnectRequest>),
    Revoke(Box<RevokeRequest>),
}

impl Embedded {
    /// No histories and no users yet.
    pub fn new(namespaces: Arc<Namespaces>, limits: &Limits) -> Embedded {
        Embedded {
            requests: Vec::new(),
            is_up: false,
            namespaces,
            histories: MemoryHistories::new(limits.history_bytes_max),
            keys: IdempotencyKeys::new(limits.idempotency_keys_max),
            presence: Presence::default(),
            recovery_bytes_max: limits.recovery_bytes_max,
            revocations_max: limits.revocations_max,
            last_tick: None,
        }
    }

    fn policy(&self, topic: &TopicName) -> Policy {
        *self.namespaces.policy(topic.kind())
    }

    fn publish_now(&mut self, publish: Publish, now: Instant, local: &mut Local) {
        let policy = self.policy(&publish.topic);
        let topic = HashedTopic::from(&publish.topic);
        let outcome = match policy.has_history() {
            true => match self.store(topic, &publish, retention(&policy), now, local) {
                Ok(position) => PublishOutcome::Accepted(Some(position)),
                Err(full) => PublishOutcome::Full(full),
            },
            false => {
                local.message_to(topic, &Message::of(&publish));
                PublishOutcome::Accepted(None)
            }
        };
        local.end_publish(publish.done, outcome, now);
    }

    /// Stores and delivers a message, unless one with its idempotency key is stored already.
    fn store(
        &mut self,
        topic: HashedTopic<'_>,
        publish: &Publish,
        retention: Retention,
        now: Instant,
        local: &mut Local,
    ) -> Result<Position, FullShare> {
        let key = publish.key.as_deref();
        if let Some(known) = key.and_then(|key| self.keys.find(topic, key)) {
            return Ok(known);
        }
        let owner = Owner::of(publish.from.as_ref());
        if key.is_some() && !self.keys.has_room(owner) {
            return Err(FullShare::IdempotencyKeys);
        }
        let (name, message) = ((&publish.topic, topic.hash()), Message::of(publish));
        let body = envelope::to_bytes(&message);
        let at = self.histories.append(name, body, owner, retention, now);
        let at = at.ok_or(FullShare::Histories)?;
        if let Some(key) = &publish.key {
            self.keys.remember(name, key.clone(), owner, at, now);
        }
        local.message_at(topic, &message, at);
        Ok(at)
    }

    fn recover_now(
        &mut self,
        shard: ShardId,
        ask: RecoveryRequest,
        now: Instant,
        local: &mut Local,
    ) {
        let policy = self.policy(&ask.topic);
        let acked = self.histories.acknowledged(&ask.topic);
        let bytes_max = self.recovery_bytes_max;
        let log = self.histories.log_to_ask(&ask.topic, retention(&policy), now);
        let reader = RunRequest { topic: &ask.topic, encoding: ask.encoding, bytes_max };
        let (recovery, missed) = match (ask.topic.kind(), ask.since) {
            // A user's connection receives what the user has not acknowledged, whatever it asks
            // for.
            (TopicKind::User(_), _) => log.unacknowledged(acked, reader, &mut local.runs),
            (_, None) => (Recovery::NotAsked, Run::default()),
            (_, Some(_)) if !policy.recovery => {
                (Recovery::NotRecovered(Unrecovered::NotEnabled), Run::default())
            }
            (_, Some(since)) => match log.since(since, reader, &mut local.runs) {
                Ok(run) => (Recovery::Recovered { messages: run.messages }, run),
                Err(why) => (Recovery::NotRecovered(why), Run::default()),
            },
        };
        let RecoveryRequest { at, conn, ticket, .. } = ask;
        let position = log.position();
        local.reply_recovery(shard, RecoveryReply { at, conn, ticket, position, recovery, missed });
    }

    fn acknowledge_now(&mut self, topic: &TopicName, up_to: UpTo, local: &mut Local) {
        let is_good = self.histories.acknowledge(topic, up_to);
        local.counters.acks_stored += u64::from(is_good);
        local.counters.acks_ignored += u64::from(!is_good);
    }

    fn answer_history(&mut self, ask: HistoryRequest, now: Instant, local: &mut Local) {
        let policy = self.policy(&ask.topic);
        let log = self.histories.log_to_ask(&ask.topic, retention(&policy), now);
        let (encoding, bytes_max) = (ask.encoding, self.recovery_bytes_max);
        let page = match log.page(ask.page, RunRequest { topic: &ask.topic, encoding, bytes_max }) {
            Ok(messages) => Ok(HistoryPage { position: log.position(), messages }),
            Err(why) => Err(HistoryError::Unrecovered(why)),
        };
        local.reply_history(ask.topic, ask.to, page);
    }

    fn update_presence_now(&mut self, attend: PresenceUpdate, now: Instant) {
        let grace = Duration::from_millis(self.policy(&attend.topic).presence_grace_ms);
        self.presence.handle(attend, grace, now);
        self.presence.make_room();
    }

    /// Delivers joins and leaves to the members of their rooms.
    fn deliver_presence_events(&mut self, local: &mut Local) {
        while let Some(changed) = self.presence.poll_event() {
            let users_max = self.policy(&changed.topic).presence_events_users_max;
            let member = self.presence.member(&changed.topic, &changed.user);
            if let Some(event) = changed.event(member, users_max) {
                local.presence_event(changed.topic.as_str(), &event);
            }
        }
    }
}

fn retention(policy: &Policy) -> Retention {
    Retention {
        messages_max: policy.history_size,
        age_max: Duration::from_secs(policy.history_ttl_s),
    }
}

impl Transport for Embedded {
    fn subscribe(&mut self, key: TopicKey, _topic: &TopicName) {
        self.requests.push(EmbeddedRequest::Subscribe(key));
    }

    fn unsubscribe(&mut self, _topic: TopicName) {}

    fn publish(&mut self, publish: Publish, _now: Instant, _local: &mut Local) {
        self.requests.push(EmbeddedRequest::Publish(publish));
    }

    fn recover(
        &mut self,
        shard: ShardId,
        ask: Box<RecoveryRequest>,
        _now: Instant,
        _local: &mut Local,
    ) {
        self.requests.push(EmbeddedRequest::Recover(shard, ask));
    }

    fn history(&mut self, ask: Box<HistoryRequest>, _now: Instant, _local: &mut Local) {
        self.requests.push(EmbeddedRequest::History(ask));
    }

    fn update_presence(&mut self, attend: PresenceUpdate, _now: Instant) {
        self.requests.push(EmbeddedRequest::PresenceUpdate(attend));
    }

    fn presence(&mut self, ask: Box<PresenceRequest>, _now: Instant) {
        self.requests.push(EmbeddedRequest::Presence(ask));
    }

    fn acknowledge(&mut self, topic: TopicName, up_to: UpTo, _: Instant, _: &mut Local) {
        self.requests.push(EmbeddedRequest::Acknowledge(topic, up_to));
    }

    fn disconnect(&mut self, ask: Box<DisconnectRequest>, _now: Instant, _local: &mut Local) {
        self.requests.push(EmbeddedRequest::Disconnect(ask));
    }

    fn revoke(&mut self, order: Box<RevokeRequest>, _now: Instant, _local: &mut Local) {
        self.requests.push(EmbeddedRequest::Revoke(order));
    }

    fn has_room(&self) -> bool {
        true
    }

    fn is_idle(&self) -> bool {
        self.requests.is_empty()
    }

    fn poll(&mut self, _cx: &mut Context<'_>, now: Instant, local: &mut Local) -> bool {
        if !self.is_up {
            self.is_up = true;
            local.set_up(true, "nothing to connect to", now);
        }
        if self.last_tick.is_none_or(|last_tick| now.saturating_duration_since(last_tick) >= TICK) {
            self.last_tick = Some(now);
            self.histories.tick(now);
            self.keys.tick(now);
        }
        self.presence.handle_timeout(now);
        self.deliver_presence_events(local);
        let is_busy = !self.requests.is_empty();
        let mut requests = std::mem::take(&mut self.requests);
        for request in requests.drain(..) {
            match request {
                EmbeddedRequest::Subscribe(key) => _ = local.confirm_subscription(key, 0),
                EmbeddedRequest::Publish(publish) => self.publish_now(publish, now, local),
                EmbeddedRequest::Recover(shard, ask) => self.recover_now(shard, *ask, now, local),
                EmbeddedRequest::History(ask) => self.answer_history(*ask, now, local),
                EmbeddedRequest::PresenceUpdate(attend) => {
                    self.update_presence_now(attend, now);
                    self.deliver_presence_events(local);
                }
                EmbeddedRequest::Acknowledge(topic, up_to) => {
                    self.acknowledge_now(&topic, up_to, local)
                }
                EmbeddedRequest::Disconnect(ask) => {
                    let DisconnectRequest { topic, close, reply } = *ask;
                    local.disconnect(topic.as_str().into(), close);
                    reply.call(PublishOutcome::Accepted(None));
                }
                EmbeddedRequest::Revoke(order) => {
                    let outcome = match local.revoke_within(&order.revocation, self.revocations_max)
                    {
                        Inserted::Changed | Inserted::Known => RevokeOutcome::Stored,
                        Inserted::Full => RevokeOutcome::Full,
                    };
                    order.reply.call(outcome);
                }
                EmbeddedRequest::Presence(ask) => {
                    let here = self.presence.roster(&ask.topic);
                    local.reply_presence(*ask, Some(Arc::new(here)));
                }
            }
        }
        self.requests = requests; // keeps its allocation
        is_busy
    }

    fn measure(&mut self, _now: Instant, local: &mut Local) {
        let counters = &mut local.counters;
        counters.histories = self.histories.topics() as u64;
        counters.histories_bytes = self.histories.bytes() as u64;
        counters.histories_given_up = self.histories.evicted;
        counters.history_messages_dropped = self.histories.dropped;
        counters.presences = self.presence.users() as u64;
        let bytes = self.presence.bytes_beside_users() + self.keys.held_bytes();
        local.bytes_beside_gauges = bytes as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backplane::topic_table::counting::hashes_of;
    use crate::ids::{NodeId, SlotId, TopicId};
    use crate::link::ReplyTo;
    use crate::link::channel::window;
    use crate::link::health::Health;
    use crate::protocol::dialect::Encoding;
    use bytes::Bytes;
    use std::task::Waker;

    fn publish(topic: &TopicName, key: Option<&str>) -> Publish {
        Publish {
            topic: topic.clone(),
            payload: Bytes::from_static(b"1"),
            from: None,
            info: None,
            except: None,
            key: key.map(Into::into),
            conflate_key: None,
            done: ReplyTo::Nobody,
        }
    }

    /// How many names are hashed for each of three publishes, the first of which begins the
    /// history.
    fn hashes(room: &str, history_bytes_max: usize, key: Option<&str>) -> [u64; 3] {
        let (shards, end, _ops) = window(1, 4, 64).unwrap();
        let health = Arc::new(Health::default());
        let mut local = Local::new(NodeId(1), end, health, Duration::ZERO, 0);
        let namespaces = Arc::new(Namespaces::read("log: history_size=5").unwrap());
        let limits = Limits { history_bytes_max, ..Limits::PRODUCTION };
        let mut embedded = Embedded::new(namespaces, &limits);
        let (topic, now) = (TopicName::room(room), Instant::now());
        let at = TopicId(SlotId { index: 0, generation: 0 });
        let key_of_topic = local.join(topic.clone(), ShardId(0), Encoding::NATIVE, at);
        local.confirm_subscription(key_of_topic.expect("the first join"), 0);
        let other = TopicName::room("log:other");
        let mut cx = Context::from_waker(Waker::noop());
        embedded.publish(publish(&other, None), now, &mut local);
        embedded.poll(&mut cx, now, &mut local);
        while shards[0].try_recv().is_some() {}
        let costs = [0, 1, 2].map(|number| {
            let key = key.map(|key| format!("{key}{number}"));
            embedded.publish(publish(&topic, key.as_deref()), now, &mut local);
            hashes_of(|| _ = embedded.poll(&mut cx, now, &mut local))
        });
        local.flush();
        assert_eq!(std::iter::from_fn(|| shards[0].try_recv()).count(), 3, "all are delivered");
        costs
    }

    #[test]
    fn a_message_costs_one_hash_with_and_without_a_history() {
        let room_for_all = 1 << 20;
        assert_eq!(hashes("plain", room_for_all, None), [1; 3]);
        assert_eq!(hashes("log:a", room_for_all, None), [1; 3]);
        assert_eq!(hashes("log:a", room_for_all, Some("key")), [1; 3]);
        assert_eq!(hashes("log:a", 1800, None), [1; 3], "another history is evicted for it");
    }
}
