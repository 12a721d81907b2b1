//! One node: real shards, a real window, the real state of its backplane thread; the loop around it
//! is played, as `backplane/mod.rs` and `net/reactor.rs` make it.

use super::redis::Redis;
use super::world::Build;
use bytes::Bytes;
use campanile::auth::AnonymousSecret;
use campanile::backplane::local::Local;
use campanile::backplane::message::Message;
use campanile::backplane::redis::connection::subscriptions::{BATCHES_MAX, Subscriptions};
use campanile::backplane::redis::names::Names;
use campanile::backplane::{envelope, wire};
use campanile::ids::{NodeId, ShardId};
use campanile::link::channel::{ShardEnd, WindowLimits, window_within};
use campanile::link::health::Health;
use campanile::link::{Publish, PublishOutcome, ReplyTo, Uplink};
use campanile::shard::delivery::batch::SendBatch;
use campanile::shard::{Shard, ShardConfig};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What comes back on the connection that subscribes, in one order.
pub enum Push {
    Confirmed,
    Message { channel: Rc<str>, body: Bytes, number: usize },
}

/// A connection to Redis, and what is under way on it.
pub struct Link {
    subscriptions: Subscriptions,
    pub pushes: VecDeque<Push>,
    /// Publishes that Redis has carried out.
    pub done: VecDeque<ReplyTo<PublishOutcome>>,
    /// Confirmations under way now, and at most so far.
    under_way: usize,
}

pub struct Tower {
    pub shard: Shard,
    pub end: ShardEnd,
    pub batch: SendBatch,
}

pub struct Node {
    pub at: usize,
    pub towers: Vec<Tower>,
    pub local: Local,
    pub link: Option<Link>,
    names: Names,
    waiting: VecDeque<Publish>,
    /// Items taken from a shard, messages taken and publishes sent in one turn.
    per_turn: usize,
}

/// A publish on its way to Redis.
pub struct Sent {
    pub channel: String,
    pub topic: String,
    pub body: Bytes,
    pub done: ReplyTo<PublishOutcome>,
}

impl Node {
    pub fn new(at: usize, build: Build) -> Node {
        let Build { shards, limits, linger_ms, per_turn, .. } = build;
        let id = NodeId(at as u64 + 1);
        let window_limits = WindowLimits {
            ops_items_max: limits.uplink_items_max,
            uplink_items_max: limits.uplink_items_max,
            uplink_bytes_max: limits.uplink_bytes_max as u64,
            downlink_items_max: limits.downlink_items_max,
            downlink_bytes_max: limits.downlink_bytes_max as u64,
        };
        let (ends, end, _ops) =
            window_within(shards, window_limits).expect("a few hundred descriptors");
        let config = |id: ShardId| ShardConfig {
            id,
            node: NodeId(at as u64 + 1),
            node_name: format!("node-{at}"),
            limits,
            namespaces: Default::default(),
            anonymous_secret: AnonymousSecret::new([0; 16]),
        };
        let tower = |end: ShardEnd| {
            let shard = Shard::new(config(end.id));
            Tower { shard, end, batch: SendBatch::default() }
        };
        let linger = Duration::from_millis(linger_ms);
        let backlog = limits.downlink_backlog_bytes_max;
        let mut local = Local::new(id, end, Arc::new(Health::default()), linger, backlog);
        local.listen_for_everybody();
        Node {
            at,
            towers: ends.into_iter().map(tower).collect(),
            local,
            link: None,
            names: Names::new("campanile", id),
            waiting: VecDeque::new(),
            per_turn,
        }
    }

    pub fn is_up(&self) -> bool {
        self.local.is_up()
    }

    /// A connection is made: everything wanted is subscribed on it.
    pub fn connect(&mut self) {
        let fixed = vec![self.names.ingest.clone(), self.names.canary(0)];
        let subscriptions = Subscriptions::new(0, fixed, self.local.interest.slots_end());
        let (pushes, done) = (VecDeque::new(), VecDeque::new());
        self.link = Some(Link { subscriptions, pushes, done, under_way: 0 });
    }

    /// The connection is lost. Answers the messages that were on their way to this node.
    pub fn go_down(&mut self, now: Instant) -> Vec<usize> {
        let Some(link) = self.link.take() else { return Vec::new() };
        self.local.interest.lose_link(0);
        self.local.set_up(false, "played", now);
        for done in link.done {
            self.local.end_publish(done, PublishOutcome::Unknown, now);
        }
        let number = |push| match push {
            Push::Message { number, .. } => Some(number),
            Push::Confirmed => None,
        };
        link.pushes.into_iter().filter_map(number).collect()
    }

    /// One turn of the backplane thread. Answers whether anything moved, and publishes to carry out.
    pub fn turn(&mut self, now: Instant, redis: &mut Redis) -> (bool, Vec<Sent>) {
        let mut moved = self.take_uplinks(now);
        while let Some(topic) = self.local.interest.take_expired(now) {
            moved = true;
            if let Some(link) = &mut self.link {
                link.subscriptions.remove(topic);
            }
        }
        moved |= self.take_pushes(now);
        moved |= self.change_subscriptions(redis);
        let sent = self.send();
        moved |= !sent.is_empty();
        self.local.flush();
        (moved, sent)
    }

    fn take_uplinks(&mut self, now: Instant) -> bool {
        let mut moved = false;
        for index in 0..self.towers.len() {
            let shard = self.local.end.shards[index].id;
            for _ in 0..self.per_turn {
                if !self.local.accepts_from(shard) {
                    break;
                }
                let Some(item) = self.local.end.shards[index].try_recv() else { break };
                moved = true;
                self.handle_uplink(shard, item, now);
            }
            self.local.end.shards[index].made_room();
        }
        moved
    }

    fn handle_uplink(&mut self, shard: ShardId, item: Uplink, now: Instant) {
        match item {
            Uplink::Join { topic, at, encoding } => {
                let key = self.local.join(topic.clone(), shard, encoding, at);
                if let (Some(key), Some(link)) = (key, &mut self.link) {
                    link.subscriptions.add(key, &topic);
                }
            }
            Uplink::Leave { topic, at } => self.local.leave(&topic, shard, at, now),
            Uplink::Publish(mut publish) => {
                self.local.begin_publish(&mut publish);
                self.waiting.push_back(publish);
            }
            Uplink::Recover(_) | Uplink::History(_) => panic!("nothing is kept here"),
            Uplink::Settle => panic!("nobody moves here"),
            Uplink::Acknowledge { .. } => panic!("nothing is kept here"),
            Uplink::PresenceUpdate(_) | Uplink::Presence(_) => panic!("no room has presence here"),
            Uplink::Disconnect(_) | Uplink::Revoke(_) => panic!("only the ops thread asks for it"),
        }
    }

    fn take_pushes(&mut self, now: Instant) -> bool {
        let Some(link) = &mut self.link else { return false };
        let mut moved = false;
        for _ in 0..self.per_turn {
            let Some(push) = link.pushes.pop_front() else { break };
            moved = true;
            match push {
                Push::Confirmed => {
                    link.under_way -= 1;
                    let keys = link.subscriptions.confirmed();
                    keys.into_iter().for_each(|key| _ = self.local.confirm_subscription(key, 0));
                }
                Push::Message { channel, body, .. } => {
                    let Some(topic) = self.names.topic(channel.as_bytes()) else { continue };
                    let message = envelope::read(topic, &body).expect("written by a node");
                    self.local.message(&message);
                }
            }
        }
        while let Some(done) = link.done.pop_front() {
            moved = true;
            self.local.end_publish(done, PublishOutcome::Accepted(None), now);
        }
        if link.subscriptions.is_complete() {
            self.local.set_up(true, "played", now);
        }
        moved
    }

    fn change_subscriptions(&mut self, redis: &mut Redis) -> bool {
        let Some(link) = &mut self.link else { return false };
        let mut moved = false;
        while let Some(command) = link.subscriptions.next_command(&self.names, &self.local.interest)
        {
            moved = true;
            link.under_way += 1;
            assert!(link.under_way <= BATCHES_MAX, "commands under way are bounded");
            match command.is_addition {
                true => redis.subscribe(self.at, command.channels),
                false => redis.unsubscribe(self.at, command.channels),
            }
            link.pushes.push_back(Push::Confirmed);
        }
        moved
    }

    fn send(&mut self) -> Vec<Sent> {
        if !self.is_up() {
            return Vec::new();
        }
        let some = self.waiting.len().min(self.per_turn);
        let names = &self.names;
        let sent = self.waiting.drain(..some).map(|publish| {
            let mut body = Vec::new();
            envelope::write(&Message::of(&publish), wire::WRITES_MAX, &mut body);
            Sent {
                channel: names.channel(publish.topic.as_str()),
                topic: publish.topic.as_str().to_owned(),
                body: body.into(),
                done: publish.done,
            }
        });
        sent.collect()
    }
}
