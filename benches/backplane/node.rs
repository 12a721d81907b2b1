//! A node without sockets: the real backplane thread, and minimal shards at the other ends of its
//! window.
#![allow(unsafe_code)] // poll(2), which the minimal shard sleeps in

use bytes::Bytes;
use campanile::backplane;
use campanile::config::Config;
use campanile::ids::{ConnId, NodeId, ShardId, SlotId, TopicId, TopicName};
use campanile::link::channel::{OpsEnd, ShardEnd, window};
use campanile::link::exchange::Exchange;
use campanile::link::health::Health;
use campanile::link::ledger::Account;
use campanile::link::{Downlink, Publish, ReplyTo, Uplink};
use campanile::metrics::BackplaneMirror;
use campanile::plan::{BackplanePlan, Machine, Plan, resolve};
use campanile::policy::limits::Limits;
use campanile::protocol::dialect::Encoding;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

/// A backplane thread whose cost can be read.
pub struct Backplane {
    pub ops: OpsEnd,
    health: Arc<Health>,
    thread: JoinHandle<()>,
    meter: Meter,
}

impl Backplane {
    /// Starts one; returns the shards' ends of its window, too.
    pub fn start(shards: u16, transport: BackplanePlan, node: u64) -> (Vec<ShardEnd>, Backplane) {
        let limits = Limits::PRODUCTION;
        let (ends, end, ops) =
            window(shards, limits.uplink_items_max, limits.downlink_items_max).expect("bells");
        let plan = Arc::new(plan(transport, node));
        let (mirror, health) = (Arc::new(BackplaneMirror::default()), Arc::new(Health::default()));
        let (meter_out, meter) = mpsc::channel();
        let thread = {
            let health = health.clone();
            std::thread::spawn(move || {
                meter_out.send(Meter::of_this_thread()).expect("somebody waits for it");
                let revocations = Arc::new(Exchange::new(Arc::default()));
                backplane::run(plan, end, mirror, health, Account::unbounded(), revocations);
            })
        };
        let meter = meter.recv().expect("the thread begins with it");
        (ends, Backplane { ops, health, thread, meter })
    }

    /// Waits until it delivers.
    pub fn await_up(&self) {
        crate::redis_server::wait_until("the backplane is up", || self.health.ready(0).is_ok());
    }

    /// Its processor time so far.
    pub fn cpu_ns(&self) -> u64 {
        self.meter.cpu_ns()
    }

    /// Ends the shards and then the thread.
    pub fn stop(self, shards: u16) {
        for shard in (0..shards).map(ShardId) {
            crate::redis_server::wait_until("a shard can be told to end", || {
                self.ops.try_send(shard, Downlink::Drain { over_ms: 0 }).is_ok()
            });
        }
        self.ops.stop_backplane();
        self.thread.join().expect("the backplane did not panic");
    }
}

/// The cost of a thread as its scheduler counts it: to the nanosecond, at most a tick old.
pub struct Meter {
    file: PathBuf,
}

impl Meter {
    pub fn of_this_thread() -> Meter {
        let own = std::fs::read_link("/proc/thread-self").expect("/proc is there");
        Meter { file: PathBuf::from("/proc").join(own).join("schedstat") }
    }

    pub fn cpu_ns(&self) -> u64 {
        let text = std::fs::read_to_string(&self.file).expect("the thread lives");
        let first = text.split(' ').next().expect("split gives at least one");
        first.parse().expect("nanoseconds come first")
    }
}

fn plan(transport: BackplanePlan, node: u64) -> Plan {
    let node = NodeId(node);
    let machine = Machine { node, cores: vec![0], nofile: 20_000, memory_bytes: None };
    let plan = resolve(&Config::default(), &machine).expect("the defaults are valid").plan;
    Plan { backplane: transport, ..plan }
}

/// The least that is a shard.
pub struct MinimalShard {
    pub end: ShardEnd,
    topics: Vec<TopicName>,
    user: TopicName,
    next: usize,
}

impl MinimalShard {
    /// In these topics; waits until all of them are confirmed.
    pub fn join(end: ShardEnd, topics: Vec<TopicName>) -> MinimalShard {
        let user = TopicName::user(&format!("user{:08}", end.id.0));
        let shard = MinimalShard { end, topics, user, next: 0 };
        let mut joined = 0;
        for (index, topic) in shard.topics.iter().enumerate() {
            let mut item = Uplink::Join {
                topic: topic.clone(),
                at: topic_id(index),
                encoding: Encoding::NATIVE,
            };
            while let Err(back) = shard.end.try_send(item) {
                item = back;
                joined += shard.take_joined();
            }
            shard.end.ring();
        }
        while joined < shard.topics.len() {
            joined += shard.take_joined();
        }
        shard
    }

    fn take_joined(&self) -> usize {
        self.sleep_unless_something_came();
        std::iter::from_fn(|| self.end.try_recv())
            .inspect(|item| assert!(matches!(item, Downlink::Joined { .. })))
            .count()
    }

    /// Sleeps until its bell rings, if nothing waits.
    pub fn sleep_unless_something_came(&self) {
        if !self.end.may_sleep() {
            return;
        }
        let mut poll = libc::pollfd { fd: self.end.bell().fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid pollfd, and no timeout.
        unsafe { libc::poll(&mut poll, 1, -1) };
        self.end.bell().clear();
    }

    /// Publishes to its topics in turn: `payload` is copied as a shard copies it out of its scratch
    /// buffer. `false`: the window is full.
    pub fn publish(&mut self, payload: &[u8]) -> bool {
        let topic = self.topics[self.next].clone();
        self.next = (self.next + 1) % self.topics.len();
        self.publish_to(topic, payload)
    }

    /// The same to any topic.
    pub fn publish_to(&self, topic: TopicName, payload: &[u8]) -> bool {
        let conn = ConnId(SlotId { index: 0, generation: 0 });
        let publish = Publish {
            topic,
            payload: Bytes::copy_from_slice(payload),
            from: Some(self.user.clone()),
            info: None,
            except: None,
            key: None,
            conflate_key: None,
            done: ReplyTo::Conn { shard: self.end.id, conn, id: None, turn: false },
        };
        self.end.try_send(Uplink::Publish(publish)).is_ok()
    }

    /// Takes all that has arrived. `None`: it is time to end.
    pub fn drain(&self, mut hear: impl FnMut(&Bytes)) -> Option<u64> {
        let mut heard = 0;
        while let Some(item) = self.end.try_recv() {
            match item {
                Downlink::Deliver { frame, .. } => {
                    heard += 1;
                    hear(&frame);
                }
                Downlink::Drain { .. } => return None,
                Downlink::Lost { count, .. } => panic!("{count} messages were lost"),
                Downlink::Joined { .. } => {} // again, after a link was lost
                _ => panic!("nobody asked for that"),
            }
        }
        Some(heard)
    }
}

fn topic_id(index: usize) -> TopicId {
    TopicId(SlotId { index: index as u32, generation: 0 })
}

/// The payload of all measurements: 120 characters.
pub fn payload() -> String {
    format!("\"{}\"", "x".repeat(120))
}

/// Lets the warm-up pass, then the measured time; returns what `read` returned at its two ends.
pub fn measure<T>(size: &crate::Size, read: impl Fn() -> T) -> (T, T, Duration) {
    std::thread::sleep(size.warm_up);
    let (before, begun) = (read(), std::time::Instant::now());
    std::thread::sleep(size.run);
    (before, read(), begun.elapsed())
}
