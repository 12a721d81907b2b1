//! Nodes without clients: backplane threads, and shards played by the test.
#![allow(clippy::disallowed_types)] // the law is about deliveries; these are tests sharing servers

use crate::cluster::Cluster;
use crate::permissions::minimal_user;
use crate::redis::{Redis, wait_until};
use crate::sentinel::{Care, Sentinel};
use bytes::Bytes;
use campanile::auth::AuthPlan;
use campanile::backplane;
use campanile::backplane::redis::permissions::table::Feature;
use campanile::ids::{
    ConflateKey, ConnId, NodeId, Position, ShardId, SlotId, TopicId, TopicName, UpTo,
};
use campanile::link::channel::{OpsEnd, ShardEnd, window};
use campanile::link::connections::everybody;
use campanile::link::exchange::Exchange;
use campanile::link::health::Health;
use campanile::link::ledger::Account;
use campanile::link::{
    Delivery, Disconnect, Downlink, HistoryError, HistoryPage, Origin, PresenceChange,
    PresenceRequest, PresenceUpdate, Publish, PublishOutcome, RecoveryReply, RecoveryRequest,
    ReplyTo, Uplink,
};
use campanile::metrics::servers::ServerNumbers;
use campanile::metrics::{BackplaneCounters, BackplaneMirror};
use campanile::plan::{
    BackplanePlan, HooksPlan, Plan, ProxyProtocol, RedisPlan, RedisServers, RejectedHandshakes,
    Scheduling, ShardPlan, SteeringMode,
};
use campanile::policy::limits::Limits;
use campanile::policy::namespaces::Namespaces;
use campanile::policy::revocations::Revocations;
use campanile::policy::rights::Rights;
use campanile::protocol::dialect::Encoding;
use campanile::protocol::{Recovery, RequestId, Roster};
use campanile::ws::encode;
use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The key of the broadcast topic on every shard.
pub const EVERYBODY: u32 = everybody(Encoding::NATIVE).0.index;

/// What a shard received, in a form that is easy to compare.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    Settled,
    Joined(u32),
    Disconnect { at: u32, close: Disconnect },
    Frame { to: u32, json: String, except: Option<u32> },
    Keyed { to: u32, json: String, key: ConflateKey, except: Option<u32> },
    Lost { to: u32, count: u64 },
    Ack { conn: u32, id: Option<u64>, outcome: PublishOutcome },
    Recovered { to: u32, ticket: u64, position: Position, recovery: Recovery, missed: Vec<String> },
    Unrecoverable { to: u32, ticket: u64 },
    History { id: Option<u64>, said: Result<(Position, Vec<String>), HistoryError> },
    Presence { id: Option<u64>, here: Option<(Vec<Listed>, u64)> },
}

/// A user of a roster, with connections and info.
pub type Listed = (String, u64, Option<String>);

pub struct Shard {
    pub node: NodeId,
    pub end: ShardEnd,
    /// What arrived while a reply was awaited.
    aside: Cell<VecDeque<Received>>,
}

pub struct Node {
    pub shards: Vec<Shard>,
    pub ops: OpsEnd,
    pub health: Arc<Health>,
    mirror: Arc<BackplaneMirror>,
    /// What the shards would be shown.
    pub revocations: Arc<Exchange<Revocations>>,
    thread: Option<JoinHandle<()>>,
}

/// Some nodes, and the servers between them.
pub struct World {
    pub nodes: Vec<Node>,
    pub redis: Option<Redis>,
    /// Servers that other worlds use at the same time, under other prefixes.
    _shared: Option<Arc<Shared>>,
}

/// Deployments that take seconds to start: one for all worlds that are alive together.
#[derive(Default)]
struct Shared {
    several: Vec<Redis>,
    sentinel: Option<Sentinel>,
    cluster: Option<Cluster>,
}

static SEVERAL: Mutex<Weak<Shared>> = Mutex::new(Weak::new());
static SENTINEL: Mutex<Weak<Shared>> = Mutex::new(Weak::new());
static CLUSTER: Mutex<Weak<Shared>> = Mutex::new(Weak::new());

/// Starts it, unless it is running.
fn share(place: &Mutex<Weak<Shared>>, start: impl FnOnce() -> Shared) -> Arc<Shared> {
    let mut place = place.lock().unwrap_or_else(PoisonError::into_inner);
    place.upgrade().unwrap_or_else(|| {
        let shared = Arc::new(start());
        *place = Arc::downgrade(&shared);
        shared
    })
}

/// How a world is built.
#[derive(Clone, Copy)]
pub struct Build {
    pub nodes: u64,
    pub shards: u16,
    pub uplink_items_max: usize,
    pub downlink_items_max: usize,
    pub linger_ms: u64,
    /// How often a node sends a canary.
    pub canary_interval_ms: u64,
    /// How long a node waits for a canary.
    pub canary_timeout_ms: u64,
    /// How long a node waits for a reply.
    pub timeout_ms: u64,
    pub limits: Limits,
    pub namespaces: &'static str,
}

impl Build {
    pub fn usual() -> Build {
        let limits = Limits::PRODUCTION;
        let (uplink_items_max, downlink_items_max) = (64, 16 * 1024);
        Build {
            nodes: 2,
            shards: 2,
            uplink_items_max,
            downlink_items_max,
            linger_ms: 15_000,
            canary_interval_ms: 500,
            canary_timeout_ms: 2_000,
            timeout_ms: 1_000,
            limits,
            namespaces: "kept: history_size=100; three: history_size=3; sure: history_size=9, durability=replicated; deaf: history_size=9, recovery=false; \
                         here: presence=true, presence_grace_ms=200; \
                         long: presence=true, presence_grace_ms=600000; \
                         few: presence=true, presence_grace_ms=0, presence_events_users_max=2",
        }
    }
}

impl Build {
    /// On a link no canary follows the first one: none finds anything out, and none proves that an
    /// acknowledged message was sent to subscribers, however slow the machine is.
    pub fn without_canaries(self) -> Build {
        Build { canary_interval_ms: 60_000, canary_timeout_ms: 120_000, ..self }
    }
}

impl World {
    /// A publisher and a receiver, as far from each other as there are.
    pub fn two_shards(&self) -> (&Shard, &Shard) {
        let last = self.nodes.last().expect("a world has a node");
        (&self.nodes[0].shards[0], last.shards.last().expect("a node has a shard"))
    }

    /// One node, in process.
    pub fn embedded(build: Build) -> World {
        let nodes = vec![Node::start(build, 1, BackplanePlan::Memory)];
        World { nodes, redis: None, _shared: None }
    }

    /// Nodes whose user may do what the table of permissions lists, and nothing else.
    pub fn minimal(build: Build) -> World {
        let redis = Redis::start();
        let namespaces = Namespaces::read(build.namespaces).expect("namespaces of a test");
        let all = [
            (Feature::OneServer, true),
            (Feature::History, namespaces.have_history()),
            (Feature::Presence, namespaces.have_presence()),
            (Feature::Replicated, namespaces.want_replicas()),
        ];
        let needed = all.into_iter().filter(|(_, is_needed)| *is_needed);
        let features: Vec<Feature> = needed.map(|(feature, _)| feature).collect();
        minimal_user(&redis, &features, "test");
        let world = World::over(build, &redis.url().replace("://", "://bell:s3cret@"), "test");
        World { redis: Some(redis), ..world }
    }

    /// Nodes over three servers, each with its share of the topics.
    pub fn several(build: Build) -> World {
        let shared = share(&SEVERAL, || Shared {
            several: (0..3).map(|_| Redis::start()).collect(),
            ..Shared::default()
        });
        let hosts: Vec<_> =
            shared.several.iter().map(|redis| format!("127.0.0.1:{}", redis.port)).collect();
        World::shared(build, &format!("redis://{}", hosts.join(",")), shared)
    }

    /// Nodes over a master named by sentinels.
    pub fn sentinel(build: Build) -> World {
        let shared = share(&SENTINEL, || Shared {
            sentinel: Some(Sentinel::start(Care::default())),
            ..Shared::default()
        });
        let url = shared.sentinel.as_ref().expect("just started").url();
        World::shared(build, &url, shared)
    }

    /// Nodes over a Cluster, whose user may do no more than is needed.
    pub fn cluster(build: Build) -> World {
        let shared =
            share(&CLUSTER, || Shared { cluster: Some(Cluster::start(0)), ..Shared::default() });
        let cluster = shared.cluster.as_ref().expect("just started");
        // The user may do what the table of permissions lists, and nothing else.
        let features = [Feature::Cluster, Feature::History, Feature::Presence, Feature::Replicated];
        cluster.servers.iter().for_each(|server| minimal_user(server, &features, "world-*"));
        let url = cluster.url().replace("://", "://bell:s3cret@");
        World::shared(build, &url, shared)
    }

    fn shared(build: Build, url: &str, shared: Arc<Shared>) -> World {
        static WORLDS: AtomicU32 = AtomicU32::new(0);
        let prefix = format!("world-{}", WORLDS.fetch_add(1, Ordering::Relaxed));
        let mut world = World::over(build, url, &prefix);
        world._shared = Some(shared);
        world
    }

    /// So many nodes with a server of their own between them; all of them are up.
    pub fn redis(build: Build) -> World {
        let redis = Redis::start();
        let world = World::over(build, &redis.url(), "test");
        World { redis: Some(redis), ..world }
    }

    /// So many nodes over servers that are running; all of them are up.
    pub fn over(build: Build, url: &str, prefix: &str) -> World {
        let world = World::begin(build, url, prefix);
        world.wait_until_up(true);
        world
    }

    /// The same, without waiting until they are up.
    pub fn begin(build: Build, url: &str, prefix: &str) -> World {
        let urls = vec![url; build.nodes as usize];
        World::begin_each(build, &urls, prefix)
    }

    /// The same with a URL for each node, such as that of a wire of its own.
    pub fn begin_each(build: Build, urls: &[&str], prefix: &str) -> World {
        let plan = |url: &&str| RedisPlan {
            servers: Box::new(RedisServers::read(url).unwrap()),
            prefix: prefix.into(),
            linger_ms: build.linger_ms,
            canary_interval_ms: build.canary_interval_ms,
            canary_timeout_ms: build.canary_timeout_ms,
            timeout_ms: build.timeout_ms,
            backoff_ms_max: 500,
            tls_ca_file: None,
            monitor_interval_ms: 1_000,
            keeps_history: false,
        };
        let node = |(id, url)| Node::start(build, id, BackplanePlan::Redis(plan(url)));
        World { nodes: (1..).zip(urls).map(node).collect(), redis: None, _shared: None }
    }

    /// Every shard of every node.
    pub fn shards(&self) -> impl Iterator<Item = &Shard> {
        self.nodes.iter().flat_map(|node| &node.shards)
    }

    pub fn server(&mut self) -> &mut Redis {
        self.redis.as_mut().expect("a world with Redis")
    }

    pub fn wait_until_up(&self, up: bool) {
        for node in &self.nodes {
            wait_until("the node's readiness changes", || node.health.ready(0).is_ok() == up);
        }
    }
}

impl Node {
    fn start(build: Build, id: u64, backplane: BackplanePlan) -> Node {
        let (ends, end, ops) =
            window(build.shards, build.uplink_items_max, build.downlink_items_max).unwrap();
        let plan = Arc::new(plan(build, NodeId(id), backplane));
        let (mirror, health) = (Arc::new(BackplaneMirror::default()), Arc::new(Health::default()));
        let revocations = Arc::new(Exchange::new(Arc::default()));
        let thread = {
            let (mirror, health) = (mirror.clone(), health.clone());
            let shown = revocations.clone();
            std::thread::spawn(move || {
                backplane::run(plan, end, mirror, health, Account::unbounded(), shown);
            })
        };
        let shards = ends
            .into_iter()
            .map(|end| Shard { node: NodeId(id), end, aside: Cell::default() })
            .collect();
        Node { shards, ops, health, mirror, revocations, thread: Some(thread) }
    }

    pub fn counters(&self) -> BackplaneCounters {
        self.mirror.read()
    }

    /// What the node shows of its servers.
    pub fn redis_servers(&self) -> Vec<Arc<ServerNumbers>> {
        self.mirror.redis().servers.clone()
    }

    /// Why the map of a Cluster cannot be read.
    pub fn cluster_error(&self) -> Option<String> {
        self.mirror.redis().cluster_error.clone()
    }
}

impl Node {
    /// Waits for the end of the backplane thread.
    pub fn join_thread(&mut self) {
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the backplane thread panicked");
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.ops.stop_backplane();
        self.join_thread();
    }
}

impl Shard {
    pub fn join(&self, topic: &TopicName, at: u32) {
        self.send(join(topic, at));
    }

    /// Joins and waits for the answer. The shard has a connection: broadcasts are delivered to it.
    pub fn has_connections(&self) {
        self.end.connections.set(Encoding::NATIVE, 1);
    }

    pub fn join_and_receive(&self, topic: &TopicName, at: u32) {
        self.join(topic, at);
        assert_eq!(self.receive(), Received::Joined(at));
    }

    pub fn leave(&self, topic: &TopicName, at: u32) {
        self.send(Uplink::Leave { topic: topic.clone(), at: topic_id(at) });
    }

    /// Publishes a JSON value without a reply.
    pub fn publish(&self, topic: &TopicName, json: &str) {
        self.publish_as(topic, json, None, None);
    }

    /// Publishes for connection `conn` with request `id`; it may ask not to receive its own
    /// message.
    pub fn publish_as(&self, topic: &TopicName, json: &str, id: Option<u64>, except: Option<u32>) {
        let origin = |conn| Origin { node: self.node, shard: self.end.id, conn: conn_id(conn) };
        let id = id.map(RequestId::Number);
        self.send(Uplink::Publish(Publish {
            topic: topic.clone(),
            payload: Bytes::copy_from_slice(json.as_bytes()),
            from: Some(TopicName::user("ann")),
            info: None,
            except: except.map(origin),
            key: None,
            conflate_key: None,
            done: ReplyTo::Conn { shard: self.end.id, conn: conn_id(7), id, turn: false },
        }));
    }

    /// Publishes for connection 7 under an idempotency key; the reply comes under `id`.
    pub fn publish_keyed(&self, topic: &TopicName, json: &str, id: u64, key: Option<&str>) {
        let id = Some(RequestId::Number(id));
        self.send(Uplink::Publish(Publish {
            topic: topic.clone(),
            payload: Bytes::copy_from_slice(json.as_bytes()),
            from: None,
            info: None,
            except: None,
            key: key.map(Into::into),
            conflate_key: None,
            done: ReplyTo::Conn { shard: self.end.id, conn: conn_id(7), id, turn: false },
        }));
    }

    /// Publishes with a conflate key, without a reply.
    pub fn publish_conflated(&self, topic: &TopicName, json: &str, key: ConflateKey) {
        self.send(Uplink::Publish(Publish {
            topic: topic.clone(),
            payload: Bytes::copy_from_slice(json.as_bytes()),
            from: None,
            info: None,
            except: None,
            key: None,
            conflate_key: Some(key),
            done: ReplyTo::Nobody,
        }));
    }

    /// Asks for the position of a history and the messages missed since.
    pub fn recover(&self, topic: &TopicName, at: u32, ticket: u64, since: Option<Position>) {
        let (topic, at, conn) = (topic.clone(), topic_id(at), conn_id(7));
        let encoding = Encoding::NATIVE;
        let ask = RecoveryRequest { topic, at, conn, ticket, encoding, since };
        self.send(Uplink::Recover(Box::new(ask)));
    }

    /// The same, with the reply.
    pub fn recover_and_receive(
        &self,
        topic: &TopicName,
        at: u32,
        since: Option<Position>,
    ) -> (Position, Recovery, Vec<String>) {
        self.recover(topic, at, 99, since);
        match self.receive() {
            Received::Recovered { to, ticket: 99, position, recovery, missed } if to == at => {
                (position, recovery, missed.iter().map(|json| payload_of(json)).collect())
            }
            other => panic!("not the answer: {other:?}"),
        }
    }

    /// A user acknowledges its queue.
    pub fn acknowledge(&self, topic: &TopicName, epoch: Option<u64>, offset: u64) {
        let (topic, up_to) = (topic.clone(), UpTo { epoch, offset });
        self.send(Uplink::Acknowledge { topic, up_to });
    }

    /// A user's connection joins a room with presence.
    pub fn join_presence(&self, topic: &TopicName, user: &str, conn: u32, info: Option<&str>) {
        let by = Origin { node: self.node, shard: self.end.id, conn: conn_id(conn) };
        self.update_presence(
            topic,
            user,
            PresenceChange::Joined { by, info: info.map(Into::into) },
        );
    }

    /// A user's connection leaves.
    pub fn leave_presence(&self, topic: &TopicName, user: &str) {
        self.update_presence(topic, user, PresenceChange::Left);
    }

    /// A user's info changes.
    pub fn change_info(&self, topic: &TopicName, user: &str, info: &str) {
        self.update_presence(topic, user, PresenceChange::InfoChanged(info.into()));
    }

    fn update_presence(&self, topic: &TopicName, user: &str, deed: PresenceChange) {
        let (topic, user) = (topic.clone(), TopicName::user(user));
        self.send(Uplink::PresenceUpdate(Box::new(PresenceUpdate { topic, user, deed })));
    }

    /// Asks for the roster of a room; the reply must come next.
    pub fn roster(&self, topic: &TopicName) -> Option<(Vec<Listed>, u64)> {
        let id = Some(RequestId::Number(4));
        let to = ReplyTo::Conn { shard: self.end.id, conn: conn_id(7), id, turn: false };
        self.send(Uplink::Presence(Box::new(PresenceRequest { topic: topic.clone(), to })));
        let mut aside = self.aside.take();
        let here = loop {
            match self.receive_new() {
                Received::Presence { id: Some(4), here } => break here,
                other => aside.push_back(other),
            }
        };
        self.aside.set(aside);
        here
    }

    pub fn send(&self, item: Uplink) {
        let mut item = Some(item);
        wait_until("the uplink has room", || {
            item = item.take().and_then(|item| self.end.try_send(item).err());
            item.is_none()
        });
        self.end.ring();
    }

    /// The next item that this shard receives, within 20 seconds.
    pub fn receive(&self) -> Received {
        let mut aside = self.aside.take();
        let received = aside.pop_front();
        self.aside.set(aside);
        received.unwrap_or_else(|| self.receive_new())
    }

    fn receive_new(&self) -> Received {
        let mut received = None;
        wait_until("the shard hears something", || {
            received = self.try_receive();
            received.is_some()
        });
        received.unwrap()
    }

    pub fn try_receive(&self) -> Option<Received> {
        Some(match self.end.try_recv()? {
            Downlink::Joined { at } => Received::Joined(at.0.index),
            Downlink::Deliver { to, frame, except } => Received::Frame {
                to: to.0.index,
                json: frame_text(&frame),
                except: except.map(|conn| conn.0.index),
            },
            Downlink::DeliverWith(delivery) => {
                let Delivery { to, frame, except, position, conflate_key } = *delivery;
                let (to, except) = (to.0.index, except.map(|conn| conn.0.index));
                let json = frame_text(&frame);
                if let Some(Position { epoch, offset }) = position {
                    let place = format!(r#","epoch":"{epoch}","offset":{offset}}}"#);
                    assert!(json.ends_with(&place), "{json} is not at {epoch}:{offset}");
                }
                match conflate_key {
                    Some(key) => Received::Keyed { to, json, key, except },
                    None => Received::Frame { to, json, except },
                }
            }
            Downlink::Lost { to, count } => Received::Lost { to: to.0.index, count },
            Downlink::Ack { conn, id, outcome } => {
                Received::Ack { conn: conn.0.index, id: number(id), outcome }
            }
            Downlink::Settled => Received::Settled,
            Downlink::Recovered(recovered) => {
                let RecoveryReply { at, ticket, position, recovery, missed, .. } = *recovered;
                let missed = frame_texts(&missed.bytes);
                Received::Recovered { to: at.0.index, ticket, position, recovery, missed }
            }
            Downlink::Unrecoverable(told) => {
                Received::Unrecoverable { to: told.at.0.index, ticket: told.ticket }
            }
            Downlink::History(told) => {
                let texts = |page: HistoryPage| {
                    let array = [b"[", &page.messages.bytes[..], b"]"].concat();
                    let array: Vec<&serde_json::value::RawValue> =
                        serde_json::from_slice(&array).expect("elements are JSON");
                    (page.position, array.iter().map(|json| json.get().to_owned()).collect())
                };
                Received::History { id: number(told.id), said: told.page.map(texts) }
            }
            Downlink::Presence(told) => {
                let listed = |here: &Roster| {
                    let users = here.users.iter().map(|attendee| {
                        let user = attendee.user.as_str().strip_prefix("u:").expect("a user");
                        let info = attendee.info.as_deref().map(str::to_owned);
                        (user.to_owned(), attendee.connections, info)
                    });
                    (users.collect(), here.count)
                };
                Received::Presence { id: number(told.id), here: told.here.as_deref().map(listed) }
            }
            Downlink::Disconnect { at, close } => {
                Received::Disconnect { at: at.0.index, close: (*close).clone() }
            }
            Downlink::Inspect(_) | Downlink::Drain { .. } => panic!("the backplane asks nothing"),
            Downlink::HttpReply(_) | Downlink::Hook(_) => panic!("the backplane answers no HTTP"),
        })
    }

    /// The payloads of the next frames, all for `to`.
    pub fn receive_payloads(&self, to: u32, count: usize) -> Vec<String> {
        (0..count).map(|_| payload(self.receive(), to)).collect()
    }

    /// Whether nothing arrives for a while. Only where no later message can prove it.
    pub fn receives_nothing_for(&self, time: Duration) -> bool {
        let deadline = Instant::now() + time;
        while Instant::now() < deadline {
            if self.end.waiting() > 0 {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        true
    }
}

/// The payload of a frame for `to`.
pub fn payload(received: Received, to: u32) -> String {
    let Received::Frame { to: heard_to, json, .. } = received else {
        panic!("no frame: {received:?}")
    };
    assert_eq!(heard_to, to);
    let value: serde_json::Value = serde_json::from_str(&json).expect("a frame is JSON");
    value["payload"].to_string()
}

/// The payload of a message's JSON.
pub fn payload_of(json: &str) -> String {
    let value: serde_json::Value = serde_json::from_str(json).expect("a message is JSON");
    value["payload"].to_string()
}

/// The texts of consecutive whole frames.
fn frame_texts(mut frames: &[u8]) -> Vec<String> {
    let mut texts = Vec::new();
    while !frames.is_empty() {
        let header = frames.len() - encode::payload_of(frames).len();
        let length = match header {
            2 => usize::from(frames[1]),
            _ => usize::from(u16::from_be_bytes([frames[2], frames[3]])),
        };
        let (frame, rest) = frames.split_at(header + length);
        texts.push(frame_text(frame));
        frames = rest;
    }
    texts
}

fn number(id: Option<RequestId>) -> Option<u64> {
    id.map(|id| match id {
        RequestId::Number(number) => number,
        RequestId::Text(text) => panic!("nobody asked under {}", text.as_str()),
    })
}

/// The text of one whole, final, unmasked WebSocket text frame (RFC 6455 §5.2).
fn frame_text(frame: &[u8]) -> String {
    assert_eq!(frame[0], 0x81, "final, text");
    let (start, length) = match frame[1] {
        126 => (4, usize::from(u16::from_be_bytes([frame[2], frame[3]]))),
        127 => (10, u64::from_be_bytes(frame[2..10].try_into().unwrap()) as usize),
        length => (2, usize::from(length)),
    };
    assert_eq!(frame.len(), start + length, "exactly one frame");
    String::from_utf8(frame[start..].to_vec()).expect("text is UTF-8")
}

pub fn join(topic: &TopicName, at: u32) -> Uplink {
    Uplink::Join { topic: topic.clone(), at: topic_id(at), encoding: Encoding::NATIVE }
}

fn topic_id(index: u32) -> TopicId {
    TopicId(SlotId { index, generation: 0 })
}

pub fn conn_id(index: u32) -> ConnId {
    ConnId(SlotId { index, generation: 3 })
}

fn plan(build: Build, node: NodeId, backplane: BackplanePlan) -> Plan {
    let rights = Rights { publish: true, publish_unjoined: true, send: true, broadcast: true };
    let shard = |id| ShardPlan { id: ShardId(id), core: None };
    Plan {
        node,
        node_name: node.to_string(),
        listen: "127.0.0.1:0".parse().unwrap(),
        ops_listen: "127.0.0.1:0".parse().unwrap(),
        ops_api_key: None,
        ops_public_paths: Vec::new(),
        shards: (0..build.shards).map(shard).collect(),
        other_cores: Vec::new(),
        private_fd_tables: false,
        scheduling: Scheduling::Other,
        backplane_priority: 0,
        steering: SteeringMode::Even,
        namespaces: Arc::new(Namespaces::read(build.namespaces).expect("a good text")),
        echo_path: None,
        page: false,
        origins: Vec::new(),
        rejected_handshakes: RejectedHandshakes::Http,
        proxy_protocol: ProxyProtocol::Off,
        trusted_proxies: Vec::new(),
        listen_direct: false,
        limits: build.limits,
        auth: AuthPlan {
            anonymous: true,
            hmac_secret: None,
            keys: Default::default(),
            issuer: None,
            audience: None,
            claims: Default::default(),
            jwks: None,
            leeway_s: 2,
            first_message_timeout_ms: 0,
            expiry_notice_s: 0,
            anonymous_rights: rights,
            user_rights: rights,
        },
        backplane,
        drain_ms: 0,
        hooks: HooksPlan::default(),
    }
}
