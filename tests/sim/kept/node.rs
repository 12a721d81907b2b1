//! The backplane of a node that is alone: all of it real but the loop, which `backplane/mod.rs` turns
//! and here the world.

use campanile::backplane::embedded::Embedded;
use campanile::backplane::local::Local;
use campanile::backplane::transport::Transport;
use campanile::ids::{NodeId, TopicName};
use campanile::link::Uplink;
use campanile::link::channel::{OpsEnd, ShardEnd, window};
use campanile::link::health::Health;
use campanile::metrics::BackplaneCounters;
use campanile::policy::limits::Limits;
use campanile::policy::namespaces::Namespaces;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

pub struct Node {
    pub ends: Vec<ShardEnd>,
    pub local: Local,
    embedded: Embedded,
    /// Virtual time counts from here.
    born: Instant,
    _ops: OpsEnd,
}

impl Node {
    pub fn new(shards: usize, limits: Limits, spaces: Arc<Namespaces>) -> Node {
        let (up, down) = (limits.uplink_items_max, limits.downlink_items_max);
        let (ends, end, ops) = window(shards as u16, up, down).expect("a few descriptors");
        let backlog = limits.downlink_backlog_bytes_max;
        let health = Arc::new(Health::default());
        let born = Instant::now();
        // A process takes longer to start than the histories of its predecessor ran ahead of time.
        while born.elapsed() < Duration::from_millis(1) {
            std::hint::spin_loop();
        }
        let mut local = Local::new(NodeId(0), end, health, Duration::ZERO, backlog);
        let mut embedded = Embedded::new(spaces, &limits);
        embedded.subscribe(local.listen_for_everybody(), &TopicName::all());
        Node { ends, local, embedded, born, _ops: ops }
    }

    fn now(&self, now_ms: u64) -> Instant {
        self.born + Duration::from_millis(now_ms)
    }

    /// Takes at most so many items of one shard. Answers whether there was one.
    pub fn take(&mut self, at: usize, items_max: usize, now_ms: u64) -> bool {
        let (now, shard) = (self.now(now_ms), self.local.end.shards[at].id);
        let mut taken = 0;
        while taken < items_max && self.local.accepts_from(shard) {
            let Some(item) = self.local.end.shards[at].try_recv() else { break };
            taken += 1;
            match item {
                Uplink::Join { topic, at, encoding } => {
                    if let Some(key) = self.local.join(topic.clone(), shard, encoding, at) {
                        self.embedded.subscribe(key, &topic);
                    }
                }
                Uplink::Leave { topic, at } => self.local.leave(&topic, shard, at, now),
                Uplink::Publish(mut publish) => {
                    self.local.begin_publish(&mut publish);
                    self.embedded.publish(publish, now, &mut self.local);
                }
                Uplink::Settle => self.local.settle(shard),
                Uplink::Recover(ask) => self.embedded.recover(shard, ask, now, &mut self.local),
                Uplink::History(ask) => self.embedded.history(ask, now, &mut self.local),
                Uplink::PresenceUpdate(attend) => self.embedded.update_presence(*attend, now),
                Uplink::Presence(ask) => self.embedded.presence(ask, now),
                Uplink::Revoke(order) => self.embedded.revoke(order, now, &mut self.local),
                Uplink::Disconnect(ask) => self.embedded.disconnect(ask, now, &mut self.local),
                Uplink::Acknowledge { topic, up_to } => {
                    self.embedded.acknowledge(topic, up_to, now, &mut self.local);
                }
            }
        }
        self.local.end.shards[at].made_room();
        taken > 0
    }

    /// The rest of a turn: what was asked happens. Answers whether there was anything.
    pub fn poll(&mut self, now_ms: u64) -> bool {
        let now = self.now(now_ms);
        while let Some(topic) = self.local.interest.take_expired(now) {
            self.embedded.unsubscribe(topic);
        }
        let mut cx = Context::from_waker(Waker::noop());
        let is_busy = self.embedded.poll(&mut cx, now, &mut self.local);
        self.local.flush();
        is_busy
    }

    /// The counters, with those of the histories.
    pub fn counters(&mut self, now_ms: u64) -> BackplaneCounters {
        self.embedded.measure(self.now(now_ms), &mut self.local);
        self.local.counters.clone()
    }
}
