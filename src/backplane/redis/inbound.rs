//! Handles everything that arrives on a server's subscriber connection.
//!
//! Messages, presence events, our own canary, publishes of other services; and what the server
//! reports of subscriptions: made, refused, or revoked because the topic has moved to another
//! server of the Cluster.
//!
//! Invariant: nothing is dropped silently: what is malformed is counted and logged.

use crate::backplane::disconnect;
use crate::backplane::envelope::{self, EnvelopeError};
use crate::backplane::interest::TopicKey;
use crate::backplane::local::Local;
use crate::backplane::log_throttle::LogThrottle;
use crate::backplane::message::Message;
use crate::backplane::redis::broadcasts::check::Broadcasts;
use crate::backplane::redis::connection::subscriber::{CommandReply, SubscriberEvent};
use crate::backplane::redis::connection::subscriptions::Subscriptions;
use crate::backplane::redis::error_reply::ErrorReply;
use crate::backplane::redis::failure::classify::LinkUser;
use crate::backplane::redis::failure::{LinkError, Outage};
use crate::backplane::redis::health::canary::Canary;
use crate::backplane::redis::history::Histories;
use crate::backplane::redis::ingest;
use crate::backplane::redis::presence::{self, RedisPresence};
use crate::backplane::redis::shared::SharedContext;
use crate::backplane::redis::unreadable::position;
use crate::backplane::topic_table::HashedTopic;
use crate::ids::{Position, TopicName};
use hashbrown::HashSet;
use std::time::Instant;

/// Everything that one event may touch, borrowed for one turn of a server.
pub(super) struct InboundHandler<'a> {
    /// The time of the turn.
    pub now: Instant,
    /// The server's index in the map.
    pub server: usize,
    /// What is the same for all servers.
    pub shared: &'a SharedContext,
    /// The user of the link, for errors.
    pub user: &'a LinkUser,
    /// The link's subscriptions.
    pub subscriptions: &'a mut Subscriptions,
    /// The link's canary, once everything is subscribed.
    pub canary: Option<&'a mut Canary>,
    /// The canary's channel.
    pub canary_channel: Option<&'a str>,
    /// The server's histories.
    pub histories: &'a mut Histories,
    /// Presence of all rooms.
    pub presence: &'a mut RedisPresence,
    /// Messages to everybody.
    pub broadcasts: &'a mut Broadcasts,
    /// This node's members.
    pub local: &'a mut Local,
    /// Rate limit of log lines about malformed messages.
    pub malformed: &'a mut LogThrottle,
    /// Topics taken over from another server: members are notified of a possible loss when they are
    /// subscribed.
    pub moved: &'a mut HashSet<TopicKey>,
    /// When a canary last came back.
    pub canary_back_at: &'a mut Instant,
    /// Set when the server redirects a topic.
    pub is_redirected: &'a mut bool,
    /// Why the link has to be given up; set once.
    pub failure: Option<LinkError>,
}

impl InboundHandler<'_> {
    /// Handles one event.
    pub(super) fn handle_event(&mut self, event: SubscriberEvent<'_>) {
        match event {
            SubscriberEvent::Message { channel, body } => self.on_message(channel, body),
            SubscriberEvent::TooLong { channel } => {
                let channel = String::from_utf8_lossy(channel);
                self.on_malformed("longer than limits.message_bytes_max allows", &channel);
            }
            // Believed when the PING behind its batch is answered.
            SubscriberEvent::Subscribed { .. } => self.subscriptions.handle_subscribed(),
            SubscriberEvent::Unsubscribed { channel } => self.on_unsubscribed(channel),
            SubscriberEvent::Reply(CommandReply::Text(text)) => self.on_ping(text),
            SubscriberEvent::Reply(CommandReply::Error(error)) => self.on_error(error),
            SubscriberEvent::Reply(CommandReply::Number(_) | CommandReply::Other) => {
                self.fail("a reply to no command")
            }
        }
    }

    fn fail(&mut self, why: &str) {
        self.failure.get_or_insert_with(|| Outage::Protocol(why.to_owned()).into());
    }

    fn on_ping(&mut self, text: &[u8]) {
        let Some(answered) = self.subscriptions.handle_ping(text, self.now) else {
            return self.fail("replies are out of step");
        };
        self.moved.extend(answered.missed);
        for key in answered.confirmed {
            if !self.local.confirm_subscription(key, self.server) {
                continue;
            }
            let has_moved = self.moved.remove(&key);
            if self.broadcasts.has_key(key) {
                self.broadcasts.on_subscribed(self.now);
                continue;
            }
            if !self.histories.is_enabled() && !has_moved {
                continue;
            }
            let Some((_, topic)) = self.local.interest.name_at(key.index) else { continue };
            if self.histories.policy(topic).has_history() {
                self.histories.on_subscribed(topic);
            } else if has_moved {
                let topic = topic.clone();
                self.local.notify_lost(&topic, 0);
            }
        }
    }

    fn on_error(&mut self, error: &[u8]) {
        let text = String::from_utf8_lossy(error);
        match ErrorReply::from_code(text.split_whitespace().next().unwrap_or("")) {
            ErrorReply::Moved => {
                *self.is_redirected = true;
                self.local.counters.redirects += 1;
                self.subscriptions.handle_rejected();
            }
            _ => {
                let refused = self.user.rejected(&text);
                self.failure.get_or_insert(refused);
            }
        }
    }

    /// 1. We unsubscribed it: the topic is not wanted here, or subscribed again behind that.
    /// 2. We did not: the topic has moved, or is about to; even before it was confirmed.
    fn on_unsubscribed(&mut self, channel: &[u8]) {
        if Some(channel) == self.canary_channel.map(str::as_bytes) {
            *self.is_redirected = true;
        }
        let Some(topic) = self.shared.names.topic(channel) else { return };
        let interest = &mut self.local.interest;
        let Some(key) = interest.revoke(topic, self.server) else {
            let key = interest.key_of(topic);
            *self.is_redirected |= key.is_some_and(|key| self.subscriptions.revoke(key));
            return;
        };
        *self.is_redirected = true;
        self.moved.insert(key);
        self.histories.on_unsubscribed(topic);
        self.subscriptions.stall(key, self.now);
    }

    fn on_message(&mut self, channel: &[u8], body: &[u8]) {
        if let Some(topic) = self.shared.names.topic(channel) {
            self.on_topic(topic, body);
        } else if channel == self.shared.names.ingest.as_bytes() {
            self.on_ingest(body);
        } else if !Canary::is_one(body) {
            self.on_malformed("no canary", &String::from_utf8_lossy(channel));
        } else if let Some(canary) = &mut self.canary
            && canary.handle_message(body, self.now)
        {
            *self.canary_back_at = self.now;
        }
    }

    fn on_topic(&mut self, topic: &str, body: &[u8]) {
        if presence::is_presence_event(body) {
            if let Err(why) = self.presence.handle_event(topic, body, self.local) {
                self.on_malformed(&why.to_string(), topic);
            }
            return;
        }
        if disconnect::is_disconnect(body) {
            match disconnect::read(body) {
                Some(close) => self.local.disconnect(HashedTopic::of(topic), close),
                None => self.on_malformed("a disconnect that cannot be read", topic),
            }
            return;
        }
        if topic == TopicName::ALL {
            return self.on_broadcast(body);
        }
        let topic = HashedTopic::of(topic);
        let (histories, now) = (&mut *self.histories, self.now);
        match split_position(body) {
            Some((at, body)) if histories.handle_message(topic, at, body, now, self.local) => {}
            Some((_, body)) => self.deliver(topic, body),
            None => self.deliver(topic, body),
        }
    }

    fn on_broadcast(&mut self, body: &[u8]) {
        let (numbers, body) = match split_position(body) {
            Some((numbers, body)) => (Some(numbers), body),
            None => (None, body),
        };
        self.broadcasts.receive(numbers, self.local);
        self.deliver(HashedTopic::of(TopicName::ALL), body);
    }

    fn on_ingest(&mut self, body: &[u8]) {
        let limits = &self.shared.limits;
        self.local.counters.publishes_ingested += 1;
        match ingest::read(body, limits.message_bytes_max, limits.json_depth_max) {
            // Every node receives it, and only one may give it a position.
            Ok(publish) if self.histories.policy(&publish.topic).has_history() => {
                let why = "the room keeps a history: publish by HTTP, which gives it its place";
                self.on_malformed(why, publish.topic.as_str());
            }
            Ok(publish) => self.local.message(&Message {
                topic: publish.topic.as_str(),
                from: None,
                info: None,
                payload: publish.payload,
                except: None,
                conflate_key: publish.conflate_key,
                key: None,
            }),
            Err(why) => self.on_malformed(&why.to_string(), "publish"),
        }
    }

    fn deliver(&mut self, topic: HashedTopic<'_>, body: &[u8]) {
        match envelope::read(topic.name(), body) {
            Ok(message) => self.local.message_to(topic, &message),
            Err(EnvelopeError::UnknownVersion) => self.on_unknown_version(topic.name()),
            Err(EnvelopeError::Malformed) => self.on_malformed("no envelope", topic.name()),
        }
    }

    /// A newer node has sent a message that this one cannot read: its members have missed it.
    fn on_unknown_version(&mut self, topic: &str) {
        self.local.counters.unknown_versions += 1;
        if let Some(name) = TopicName::parse(topic) {
            self.local.notify_lost(&name, 1);
        }
        if let Some(suppressed) = self.malformed.is_due(self.now) {
            tracing::warn!(
                topic,
                suppressed,
                "a message of a node with a newer version than this one reads is lost here"
            );
        }
    }

    fn on_malformed(&mut self, why: &str, channel: &str) {
        self.local.counters.publishes_malformed += 1;
        if let Some(suppressed) = self.malformed.is_due(self.now) {
            tracing::warn!(why, channel, suppressed, "malformed message from Redis");
        }
    }
}

/// Splits `<epoch>:<offset>:<envelope>`, the form of a message with a position; an envelope never
/// begins with a digit. `None`: no position, or an impossible one.
fn split_position(body: &[u8]) -> Option<(Position, &[u8])> {
    if !body.first()?.is_ascii_digit() {
        return None;
    }
    let mut parts = body.splitn(3, |byte| *byte == b':');
    let at = position(parts.next()?, parts.next()?)?;
    Some((at, parts.next()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backplane::redis::hostile;
    use crate::backplane::redis::names::Names;
    use crate::backplane::topic_table::counting::hashes_of;
    use crate::ids::{NodeId, ShardId, SlotId, TopicId};
    use crate::link::Downlink;
    use crate::link::channel::{OpsEnd, ShardEnd, window};
    use crate::link::health::Health;
    use crate::plan::{RedisPlan, RedisServers};
    use crate::policy::limits::Limits;
    use crate::policy::namespaces::Namespaces;
    use crate::protocol::dialect::Encoding;
    use proptest::prelude::*;
    use std::sync::Arc;
    use std::time::Duration;

    /// What a handler borrows, with one member in each of these rooms.
    struct Node {
        shared: SharedContext,
        subscriptions: Subscriptions,
        histories: Histories,
        presence: RedisPresence,
        local: Local,
        shard: ShardEnd,
        _ops: OpsEnd,
    }

    impl Node {
        fn with_members_in(rooms: &[&str]) -> Node {
            let (mut shards, end, ops) = window(1, 64, 4096).unwrap();
            let (node, limits) = (NodeId(1), Limits::PRODUCTION);
            let namespaces = Arc::new(Namespaces::read("stored: history_size=5").unwrap());
            let names = Names::new("t", node);
            let mut local = Local::new(node, end, Arc::new(Health::default()), Duration::ZERO, 0);
            for (index, room) in (0..).zip(rooms) {
                let at = TopicId(SlotId { index, generation: 0 });
                let key = local.join(TopicName::room(room), ShardId(0), Encoding::NATIVE, at);
                assert!(local.confirm_subscription(key.expect("the first join"), 0));
            }
            let shard = shards.remove(0);
            while shard.try_recv().is_some() {}
            Node {
                subscriptions: Subscriptions::new(0, Vec::new(), 0),
                histories: Histories::new(namespaces.clone(), &limits),
                presence: RedisPresence::new(namespaces.clone(), "t", names.clone(), node),
                shared: SharedContext {
                    plan: plan(),
                    limits,
                    names,
                    namespaces,
                    features: Vec::new(),
                    seed: 1,
                },
                local,
                shard,
                _ops: ops,
            }
        }

        /// Handles a message on a channel. Returns how many names were hashed for it.
        fn receive(&mut self, channel: &str, body: &[u8]) -> u64 {
            let mut handler = InboundHandler {
                now: Instant::now(),
                server: 0,
                shared: &self.shared,
                subscriptions: &mut self.subscriptions,
                user: &LinkUser::new(None, "subscribing"),
                canary: None,
                canary_channel: None,
                broadcasts: &mut Broadcasts::new(),
                histories: &mut self.histories,
                presence: &mut self.presence,
                local: &mut self.local,
                malformed: &mut LogThrottle::default(),
                moved: &mut HashSet::new(),
                canary_back_at: &mut Instant::now(),
                is_redirected: &mut false,
                failure: None,
            };
            let event = SubscriberEvent::Message { channel: channel.as_bytes(), body };
            hashes_of(|| handler.handle_event(event))
        }

        fn deliveries(&mut self) -> usize {
            self.local.flush();
            let items = std::iter::from_fn(|| self.shard.try_recv());
            let is_delivery =
                |it: &Downlink| matches!(it, Downlink::Deliver { .. } | Downlink::DeliverWith(_));
            items.filter(is_delivery).count()
        }
    }

    fn plan() -> RedisPlan {
        RedisPlan {
            servers: Box::new(RedisServers::read("redis://127.0.0.1:1").unwrap()),
            prefix: "t".into(),
            linger_ms: 0,
            canary_interval_ms: 500,
            canary_timeout_ms: 2_000,
            timeout_ms: 1_000,
            backoff_ms_max: 500,
            tls_ca_file: None,
            monitor_interval_ms: 0,
            keeps_history: true,
        }
    }

    fn envelope_of(topic: &TopicName) -> Vec<u8> {
        let mut envelope = Vec::new();
        let (topic, payload) = (topic.as_str(), &b"1"[..]);
        let (from, info, except, conflate_key, key) = (None, None, None, None, None);
        let message = Message { topic, from, info, payload, except, conflate_key, key };
        envelope::write(&message, 1, &mut envelope);
        envelope
    }

    #[test]
    fn a_message_from_redis_costs_one_hash() {
        let mut node = Node::with_members_in(&["a", "b"]);
        for room in ["a", "b", "a", "nobody"].map(TopicName::room) {
            let channel = node.shared.names.channel(room.as_str());
            assert_eq!(node.receive(&channel, &envelope_of(&room)), 1, "{room:?}");
        }
        assert_eq!(node.deliveries(), 3);
    }

    #[test]
    fn a_message_with_a_position_costs_one_hash_whether_its_topic_is_followed_or_not() {
        let mut node = Node::with_members_in(&["stored:a", "stored:b"]);
        let [followed, other] = ["stored:a", "stored:b"].map(TopicName::room);
        node.histories.follow_from(&followed, Position { epoch: 7, offset: 0 });
        for offset in 1..=20 {
            for room in [&followed, &other] {
                let channel = node.shared.names.channel(room.as_str());
                let body = [format!("7:{offset}:").as_bytes(), &envelope_of(room)].concat();
                assert_eq!(node.receive(&channel, &body), 1, "{room:?} {offset}");
            }
        }
        assert_eq!(node.deliveries(), 40);
    }

    #[test]
    fn a_message_costs_one_hash_while_other_topics_are_evicted_for_it() {
        let rooms = ["stored:a", "stored:b", "stored:c"];
        let mut node = Node::with_members_in(&rooms);
        let limits = Limits { history_bytes_max: 3, ..Limits::PRODUCTION };
        node.histories.set_share(&limits, 1);
        for room in rooms.map(TopicName::room) {
            node.histories.follow_from(&room, Position { epoch: 7, offset: 0 });
        }
        for offset in 1..=20 {
            for room in rooms.map(TopicName::room) {
                let channel = node.shared.names.channel(room.as_str());
                let body = [format!("7:{offset}:").as_bytes(), &envelope_of(&room)].concat();
                assert_eq!(node.receive(&channel, &body), 1);
                assert!(node.histories.bytes() <= 3);
            }
        }
        assert_eq!(node.deliveries(), 60);
    }

    #[test]
    fn a_message_of_an_unknown_version_is_lost_in_its_room_and_garbage_is_only_counted() {
        let mut node = Node::with_members_in(&["a", "b"]);
        let channel = node.shared.names.channel("r:a");
        let lost = |node: &mut Node| {
            node.local.flush();
            let items = std::iter::from_fn(|| node.shard.try_recv());
            items.filter(|it| matches!(it, Downlink::Lost { count: 1, .. })).count()
        };
        for (body, losses) in
            [(&b"\x03\x00[1]"[..], 1), (b"\x02\x80[1]", 1), (b"\x01\x10[1]", 1), (b"hello", 0)]
        {
            node.receive(&channel, body);
            assert_eq!(lost(&mut node), losses, "{body:?}");
        }
        let counters = &node.local.counters;
        assert_eq!((counters.unknown_versions, counters.publishes_malformed), (3, 1));
        // An unknown addition is no unknown version.
        node.receive(&channel, b"\x02\x10\x05\x00\x07\x02\x00ab[1]");
        assert_eq!(node.deliveries(), 1);
    }

    #[test]
    fn a_publish_of_another_service_costs_one_hash() {
        let mut node = Node::with_members_in(&["a"]);
        let body = br#"{"room_id":"a","payload":1}"#;
        assert_eq!(node.receive("t:publish", body), 1);
        assert_eq!(node.deliveries(), 1);
    }

    #[test]
    fn a_message_with_an_impossible_position_has_none() {
        let at = Position { epoch: 7, offset: 3 };
        assert_eq!(split_position(b"7:3:\x01\x001"), Some((at, &b"\x01\x001"[..])));
        assert_eq!(split_position(b"7:3:"), Some((at, &b""[..])));
        for wrong in
            ["", "7", "7:3", "0:3:x", "07:3:x", "7:-3:x", "7:18446744073709551615:x", ":3:x"]
        {
            assert_eq!(split_position(wrong.as_bytes()), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_have_a_possible_position_or_none(
            epoch in hostile::text(),
            offset in hostile::text(),
        ) {
            let body = [&epoch[..], b":", &offset, b":x"].concat();
            if let Some((at, _)) = split_position(&body) {
                prop_assert_eq!(Position::checked(at.epoch, at.offset), Some(at));
            }
        }
    }
}
