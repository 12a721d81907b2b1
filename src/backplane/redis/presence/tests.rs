//! Rooms on several servers and in a Cluster, against real servers: nodes without clients, whose
//! routes the test changes.

use super::*;
use crate::backplane::partition::PARTITIONS;
use crate::backplane::presence::{PresenceEvent, user_name};
use crate::backplane::redis::names::Names;
use crate::backplane::redis::pipeline::CommandConnection;
use crate::backplane::redis::presence::liveness::Liveness;
use crate::backplane::wire;
use crate::ids::{ConnId, NodeId, ShardId, SlotId};
use crate::link::channel::{OpsEnd, ShardEnd, window};
use crate::link::health::Health;
use crate::link::{Origin, PresenceChange, ReplyTo};
use crate::policy::namespaces::Namespaces;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, PushInfo, Value};
use redis_server::Redis;
use std::sync::Arc;
use std::sync::mpsc;
use std::task::Poll;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

#[path = "../../../../tests/common/redis.rs"]
#[allow(missing_docs, unreachable_pub)]
mod redis_server;

/// The topic `*`, and so the signs of life, are in partition 637: on the second of two servers.
const SIGNS: usize = 1;

struct Node {
    id: NodeId,
    presence: RedisPresence,
    route: ServerRoutes,
    local: Local,
    _ends: (Vec<ShardEnd>, OpsEnd),
}

/// Nodes, servers, and a subscriber to all events.
struct World {
    servers: Vec<Redis>,
    nodes: Vec<Node>,
    owners: Arc<[u16; PARTITIONS]>,
    publish: &'static str,
    pushes: UnboundedReceiver<PushInfo>,
    notifies: UnboundedSender<PushInfo>,
    subscribers: Vec<MultiplexedConnection>,
}

/// Even partitions are on the first server, odd ones on the second.
fn even_and_odd() -> Arc<[u16; PARTITIONS]> {
    Arc::new(std::array::from_fn(|part| part as u16 % 2))
}

/// A room on that server of [`even_and_odd`].
fn room_on(server: usize) -> TopicName {
    let mut rooms = (0..).map(|number| TopicName::room(&format!("x:{number}")));
    let is_there = |topic: &TopicName| usize::from(partition(topic.as_str())) % 2 == server;
    rooms.find(is_there).expect("there are many")
}

async fn connect(server: &Redis, config: &AsyncConnectionConfig) -> MultiplexedConnection {
    let url = format!("{}/?protocol=resp3", server.url());
    let client = redis::Client::open(url).expect("a good address");
    client.get_multiplexed_async_connection_with_config(config).await.expect("it answers")
}

impl World {
    async fn new(servers: Vec<Redis>, owners: Arc<[u16; PARTITIONS]>) -> World {
        let (notifies, pushes) = unbounded_channel();
        let (nodes, subscribers) = (Vec::new(), Vec::new());
        let mut world =
            World { servers, nodes, owners, publish: "PUBLISH", pushes, notifies, subscribers };
        for server in 0..world.servers.len() {
            world.subscribe(server, "PSUBSCRIBE", "*").await;
        }
        world
    }

    async fn subscribe(&mut self, server: usize, how: &str, channel: &str) {
        let config = AsyncConnectionConfig::new().set_push_sender(self.notifies.clone());
        let mut subscriber = connect(&self.servers[server], &config).await;
        redis::cmd(how).arg(channel).exec_async(&mut subscriber).await.expect("it is subscribed");
        self.subscribers.push(subscriber);
    }

    /// Adds a node that knows all servers, which are up.
    async fn start(&mut self) {
        let id = NodeId(self.nodes.len() as u64 + 1);
        let (shards, end, ops) = window(1, 64, 64).expect("a window");
        let local = Local::new(id, end, Arc::new(Health::default()), REWRITE_INTERVAL, 0);
        let text = "x: presence=true, presence_grace_ms=0";
        let namespaces = Arc::new(Namespaces::read(text).expect("a good text"));
        let presence = RedisPresence::new(namespaces, "test", Names::new("test", id), id);
        let route = self.route(&[]).await;
        self.nodes.push(Node { id, presence, route, local, _ends: (shards, ops) });
        let last = self.nodes.len() - 1;
        let all: Vec<usize> = (0..self.servers.len()).collect();
        self.set_route(last, &all).await;
        all.into_iter().for_each(|server| self.go_up(last, server));
    }

    async fn route(&self, up: &[usize]) -> ServerRoutes {
        let mut connections = Vec::new();
        for (at, server) in self.servers.iter().enumerate() {
            connections.push(match up.contains(&at) {
                true => {
                    let cmd = connect(server, &AsyncConnectionConfig::new()).await;
                    Some(CommandConnection::new(cmd, &[]))
                }
                false => None,
            });
        }
        ServerRoutes::new(self.owners.clone(), connections, self.publish)
    }

    async fn set_route(&mut self, node: usize, up: &[usize]) {
        self.nodes[node].route = self.route(up).await;
        let Node { presence, route, .. } = &mut self.nodes[node];
        presence.set_route(route, Instant::now());
    }

    fn go_up(&mut self, node: usize, server: usize) {
        self.nodes[node].presence.go_up(server, Instant::now());
    }

    fn attend(&mut self, node: usize, topic: &TopicName, user: &str, deed: PresenceChange) {
        let (topic, user) = (topic.clone(), TopicName::user(user));
        self.nodes[node].presence.handle(PresenceUpdate { topic, user, deed }, Instant::now());
    }

    fn come(&mut self, node: usize, topic: &TopicName, user: &str) {
        let conn = ConnId(SlotId { index: 1, generation: 0 });
        let by = Origin { node: self.nodes[node].id, shard: ShardId(0), conn };
        self.attend(node, topic, user, PresenceChange::Joined { by, info: None });
    }

    fn go(&mut self, node: usize, topic: &TopicName, user: &str) {
        self.attend(node, topic, user, PresenceChange::Left);
    }

    /// Polls each node once.
    async fn poll(&mut self) {
        for Node { presence, route, local, .. } in &mut self.nodes {
            std::future::poll_fn(|cx| {
                presence.poll(cx, Instant::now(), route, local);
                Poll::Ready(())
            })
            .await;
        }
    }

    /// Polls until a state is reached; at most 20 seconds.
    async fn until<T>(&mut self, state: &str, mut is: impl FnMut(&mut World) -> Option<T>) -> T {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            self.poll().await;
            if let Some(is) = is(self) {
                return is;
            }
            assert!(Instant::now() < deadline, "waited in vain until {state}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// The next event on any server: `+user` or `-user`.
    async fn event(&mut self) -> String {
        self.until("there are news", |world| {
            let push = world.pushes.try_recv().ok()?;
            let Value::BulkString(body) = push.data.last()? else { return None };
            Some(match event::read(body).ok()? {
                PresenceEvent::Joined { user, .. } => format!("+{user}"),
                PresenceEvent::Left { user } => format!("-{user}"),
            })
        })
        .await
    }

    /// The users in a room; `None`: unavailable.
    async fn here(&mut self, node: usize, topic: &TopicName) -> Option<Vec<String>> {
        let (notify, reply) = mpsc::channel();
        let to = ReplyTo::Call(Box::new(move |here| notify.send(here).expect("it is awaited")));
        self.nodes[node].presence.ask(PresenceRequest { topic: topic.clone(), to });
        let here = self.until("there is an answer", |_| reply.try_recv().ok()).await?;
        Some(
            here.users
                .iter()
                .map(|roster_entry| user_name(&roster_entry.user).to_owned())
                .collect(),
        )
    }

    fn command(&self, server: usize, words: &[&str]) -> String {
        self.servers[server].command(words)
    }

    /// Number of keys of this form on a server.
    fn keys(&self, server: usize, form: &str) -> usize {
        self.command(server, &["KEYS", form]).split_whitespace().count()
    }

    async fn until_keys(&mut self, server: usize, form: &str, count: usize) {
        let state = format!("server {server} has {count} keys {form}");
        self.until(&state, |world| (world.keys(server, form) == count).then_some(())).await;
    }
}

fn run(story: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(story);
}

async fn two_nodes_and_two_servers() -> World {
    let mut world = World::new(vec![Redis::start(), Redis::start()], even_and_odd()).await;
    world.start().await;
    world.start().await;
    world
}

#[test]
fn a_server_that_is_down_delays_its_own_rooms_and_no_others() {
    run(async {
        let mut world = two_nodes_and_two_servers().await;
        let [first, second] = [0, 1].map(room_on);
        world.come(0, &first, "ann");
        assert_eq!(world.event().await, "+ann");
        world.servers[0].kill();
        for node in [0, 1] {
            world.nodes[node].presence.lose_link(0);
            world.set_route(node, &[1]).await;
        }
        world.come(0, &first, "bob");
        world.come(0, &first, "gus");
        world.go(0, &first, "gus");
        world.come(0, &second, "cid");
        assert_eq!(world.event().await, "+cid");
        world.go(0, &second, "cid");
        assert_eq!(world.event().await, "-cid");
        world.come(0, &second, "dan");
        assert_eq!(world.event().await, "+dan");
        assert_eq!(world.here(1, &first).await, None);
        assert_eq!(world.here(1, &second).await.unwrap(), ["dan"]);
        world.servers[0].restart();
        world.subscribe(0, "PSUBSCRIBE", "*").await;
        for node in [0, 1] {
            world.set_route(node, &[0, 1]).await;
            world.go_up(node, 0);
        }
        assert_eq!(world.event().await, "+bob", "and nothing of Ann and Gus");
        assert_eq!(world.here(1, &first).await.unwrap(), ["ann", "bob"]);
    });
}

#[test]
fn entries_that_move_are_written_on_their_new_server() {
    run(async {
        let servers = vec![Redis::start(), Redis::start()];
        let mut world = World::new(servers, Arc::new([0; PARTITIONS])).await;
        world.start().await;
        world.start().await;
        let [stays, moves] = [0, 1].map(room_on);
        world.come(0, &stays, "ann");
        world.come(0, &moves, "bob");
        let mut both = [world.event().await, world.event().await];
        both.sort();
        assert_eq!(both, ["+ann", "+bob"]);
        world.owners = even_and_odd();
        world.come(0, &moves, "cid");
        for node in [0, 1] {
            world.set_route(node, &[0, 1]).await;
        }
        assert_eq!(world.event().await, "+cid");
        assert_eq!(world.here(1, &moves).await.unwrap(), ["bob", "cid"]);
        assert_eq!(world.keys(1, "test:*:pr:*"), 1);
        assert_eq!(world.here(1, &stays).await.unwrap(), ["ann"]);
        let part = partition(moves.as_str());
        let index = format!("test:{{p{part}}}:npx:{}", world.nodes[0].id);
        assert_eq!(world.command(1, &["SMEMBERS", &index]), moves.as_str());
        world.go(0, &moves, "bob");
        world.go(0, &moves, "cid");
        world.until_keys(1, "test:*:pr*", 0).await;
        world.until_keys(1, "test:*:npx:*", 0).await;
    });
}

#[test]
fn a_dead_node_is_removed_where_a_server_was_down_too() {
    run(async {
        let mut world = two_nodes_and_two_servers().await;
        let [first, second] = [0, 1].map(room_on);
        world.come(0, &first, "ann");
        assert_eq!(world.event().await, "+ann");
        world.come(0, &second, "bob");
        assert_eq!(world.event().await, "+bob");
        world
            .until("both nodes are known", |world| {
                (world.command(SIGNS, &["SCARD", "test:{p637}:nodes"]) == "2").then_some(())
            })
            .await;
        world.nodes.remove(0);
        let died = Instant::now();
        world.nodes[0].presence.lose_link(0);
        world.set_route(0, &[1]).await;
        assert_eq!(world.event().await, "-bob");
        assert!(died.elapsed() < Duration::from_secs(10), "{:?}", died.elapsed());
        assert_eq!(world.here(0, &second).await.unwrap(), [""; 0]);
        assert_eq!(world.keys(0, "test:*:pr:*"), 1);
        assert_eq!(world.command(SIGNS, &["SCARD", "test:{p637}:nodes"]), "2", "not yet done");
        assert_eq!(world.nodes[0].local.counters.presence_reaped, 0);
        world.set_route(0, &[0, 1]).await;
        world.go_up(0, 0);
        assert_eq!(world.event().await, "-ann");
        world.until_keys(0, "test:*", 0).await;
        world
            .until("it is forgotten", |world| {
                (world.command(SIGNS, &["SCARD", "test:{p637}:nodes"]) == "1").then_some(())
            })
            .await;
        world.until_keys(SIGNS, "test:*:reap:*", 0).await;
        assert_eq!(world.nodes[0].local.counters.presence_reaped, 1);
    });
}

#[test]
fn a_dead_node_missing_from_the_list_is_found_in_its_rooms() {
    run(async {
        let mut world = two_nodes_and_two_servers().await;
        let first = room_on(0);
        world.come(0, &first, "ann");
        assert_eq!(world.event().await, "+ann");
        world.nodes.remove(0);
        // The server of the signs has restarted empty, and the other has not.
        world.command(SIGNS, &["FLUSHALL"]);
        world.come(0, &first, "bob");
        assert_eq!(world.event().await, "+bob");
        assert_eq!(world.event().await, "-ann");
        assert_eq!(world.here(0, &first).await.unwrap(), ["bob"]);
    });
}

/// CRC-16 of Redis Cluster (XMODEM), modulo the number of slots.
fn slot(tag: &str) -> u16 {
    let fold = |crc: u16, byte: u8| {
        (0..8).fold(crc ^ (u16::from(byte) << 8), |crc, _| {
            if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 }
        })
    };
    tag.bytes().fold(0, fold) % 16384
}

/// Two servers; the second has the upper half of the slots.
fn cluster() -> (Vec<Redis>, Arc<[u16; PARTITIONS]>) {
    let servers: Vec<Redis> = (0..2)
        .map(|_| {
            let bus = redis_server::free_port().to_string();
            Redis::start_with(&["--cluster-enabled", "yes", "--cluster-port", &bus])
        })
        .collect();
    let bus = servers[1].command(&["CONFIG", "GET", "cluster-port"]);
    let bus = bus.split_whitespace().last().expect("a number").to_owned();
    let ports = [servers[1].port.to_string(), bus];
    servers[0].command(&["CLUSTER", "ADDSLOTSRANGE", "0", "8191"]);
    servers[1].command(&["CLUSTER", "ADDSLOTSRANGE", "8192", "16383"]);
    servers[0].command(&["CLUSTER", "SET-CONFIG-EPOCH", "1"]);
    servers[1].command(&["CLUSTER", "SET-CONFIG-EPOCH", "2"]);
    servers[0].command(&["CLUSTER", "MEET", "127.0.0.1", &ports[0], &ports[1]]);
    for server in &servers {
        redis_server::wait_until("the Cluster is whole", || {
            server.command(&["CLUSTER", "INFO"]).contains("cluster_state:ok")
        });
    }
    let owner = |part: usize| u16::from(slot(&format!("p{part}")) >= 8192);
    (servers, Arc::new(std::array::from_fn(owner)))
}

#[test]
fn in_a_cluster_a_room_that_has_moved_unnoticed_waits_and_no_other() {
    run(async {
        let (servers, owners) = cluster();
        let mut world = World::new(servers, Arc::new([0; PARTITIONS])).await;
        world.publish = "SPUBLISH";
        let mut rooms = (0..).map(|number| TopicName::room(&format!("x:{number}")));
        let [stays, moved] = [0, 1].map(|owner| {
            let is_there =
                |topic: &TopicName| owners[usize::from(partition(topic.as_str()))] == owner;
            rooms.find(is_there).expect("there are many")
        });
        let names = Names::new("test", NodeId(1));
        world.subscribe(0, "SSUBSCRIBE", &names.channel(stays.as_str())).await;
        world.subscribe(1, "SSUBSCRIBE", &names.channel(moved.as_str())).await;
        world.start().await;
        world.start().await;
        // The nodes believe that the first server has everything.
        world.come(0, &moved, "ann");
        world.come(0, &stays, "bob");
        assert_eq!(world.event().await, "+bob");
        world.come(0, &stays, "cid");
        assert_eq!(world.event().await, "+cid");
        assert_eq!(world.here(1, &stays).await.unwrap(), ["bob", "cid"]);
        let asked = Instant::now();
        assert_eq!(world.here(1, &moved).await, None);
        assert!((4..9).contains(&asked.elapsed().as_secs()), "{:?}", asked.elapsed());
        world.owners = owners;
        for node in [0, 1] {
            world.set_route(node, &[0, 1]).await;
        }
        assert_eq!(world.event().await, "+ann");
        assert_eq!(world.here(1, &moved).await.unwrap(), ["ann"]);
        // Signs of life work, and a dead node is removed on both.
        world.nodes.remove(0);
        let mut gone = [world.event().await, world.event().await, world.event().await];
        gone.sort();
        assert_eq!(gone, ["-ann", "-bob", "-cid"]);
        for server in [0, 1] {
            world.until_keys(server, "test:*:pr*", 0).await;
            world.until_keys(server, "test:*:npx:*", 0).await;
        }
    });
}

/// Two nodes and one server, and a room that is among the last to be removed.
async fn two_nodes_and_a_late_room() -> (World, TopicName) {
    let mut world = World::new(vec![Redis::start()], Arc::new([0; PARTITIONS])).await;
    world.start().await;
    world.start().await;
    let mut rooms = (0..).map(|number| TopicName::room(&format!("x:{number}")));
    let is_late = |topic: &TopicName| partition(topic.as_str()) >= 1000;
    let late = rooms.find(is_late).expect("there are many");
    world.come(0, &late, "ann");
    assert_eq!(world.event().await, "+ann");
    world
        .until("both nodes are known", |world| {
            (world.command(0, &["SCARD", "test:{p637}:nodes"]) == "2").then_some(())
        })
        .await;
    (world, late)
}

#[test]
fn a_node_that_was_frozen_and_continues_joins_once() {
    run(async {
        let (mut world, topic) = two_nodes_and_a_late_room().await;
        let still = world.nodes.remove(0);
        assert_eq!(world.event().await, "-ann");
        world.until_keys(0, "test:*:reap:*", 0).await;
        world.nodes.push(still);
        assert_eq!(world.event().await, "+ann");
        assert_eq!(world.here(0, &topic).await.unwrap(), ["ann"]);
        world.come(1, &topic, "bob");
        assert_eq!(world.event().await, "+bob", "and nothing of Ann before");
    });
}

#[test]
fn a_node_that_continues_while_it_is_removed_loses_no_user() {
    run(async {
        let (mut world, topic) = two_nodes_and_a_late_room().await;
        let still = world.nodes.remove(0);
        let notice = format!("test:{{p637}}:reaped:{}", still.id);
        world
            .until("the other node cleans up", |world| {
                (world.command(0, &["EXISTS", &notice]) == "1").then_some(())
            })
            .await;
        let first: u64 = world.command(0, &["GET", &notice]).parse().expect("a number");
        world.nodes.push(still);
        while world.event().await != "-ann" {}
        world.until_keys(0, "test:*:reap:*", 0).await;
        let last = (first + 1).to_string();
        assert_eq!(world.command(0, &["GET", &notice]), last, "before the walk, and behind it");
        assert_eq!(world.event().await, "+ann");
        assert_eq!(world.here(0, &topic).await.unwrap(), ["ann"]);
    });
}

#[test]
fn leaves_while_a_server_is_down_are_published_however_much_there_is_to_rewrite() {
    run(async {
        let mut world = World::new(vec![Redis::start()], Arc::new([0; PARTITIONS])).await;
        world.start().await;
        let rooms: Vec<TopicName> =
            (0..12_000).map(|number| TopicName::room(&format!("x:{number}"))).collect();
        rooms.iter().for_each(|room| world.come(0, room, "ann"));
        for _ in &rooms {
            assert_eq!(world.event().await, "+ann");
        }
        world.nodes[0].presence.lose_link(0);
        world.set_route(0, &[]).await;
        world.command(0, &["FLUSHALL"]);
        rooms.iter().for_each(|room| world.go(0, room, "ann"));
        world.set_route(0, &[0]).await;
        world.go_up(0, 0);
        // A server with so much to rewrite that it is not done when the others are subscribed
        // again.
        let busy_until = Instant::now() + Duration::from_secs(4);
        world
            .until("it is less busy", |_| {
                std::thread::sleep(Duration::from_millis(50));
                (Instant::now() > busy_until).then_some(())
            })
            .await;
        for _ in &rooms {
            assert_eq!(world.event().await, "-ann");
        }
    });
}

#[test]
fn a_node_that_is_removed_again_learns_so_though_the_first_notice_is_lost() {
    run(async {
        let (mut world, _) = two_nodes_and_a_late_room().await;
        let notice = format!("test:{{p637}}:reaped:{}", world.nodes[0].id);
        for _ in 0..2 {
            let still = world.nodes.remove(0);
            // As with a server that has lost its latest writes.
            world.command(0, &["DEL", &notice]);
            assert_eq!(world.event().await, "-ann");
            world.until_keys(0, "test:*:reap:*", 0).await;
            world.nodes.insert(0, still);
            assert_eq!(world.event().await, "+ann");
        }
    });
}

/// A node with Ann in a room, whose server is down.
async fn ann_is_there_and_the_server_away() -> (World, TopicName) {
    let mut world = World::new(vec![Redis::start()], Arc::new([0; PARTITIONS])).await;
    world.start().await;
    let room = TopicName::room("x:1");
    world.come(0, &room, "ann");
    assert_eq!(world.event().await, "+ann");
    world.nodes[0].presence.lose_link(0);
    world.set_route(0, &[]).await;
    (world, room)
}

#[test]
fn leaves_while_a_server_is_down_are_published_though_it_accepts_nothing_at_first() {
    run(async {
        let (mut world, room) = ann_is_there_and_the_server_away().await;
        world.command(0, &["FLUSHALL"]);
        world.command(0, &["CONFIG", "SET", "min-replicas-to-write", "1"]);
        world.go(0, &room, "ann");
        world.set_route(0, &[0]).await;
        world.go_up(0, 0);
        // Longer than it takes until others are subscribed again.
        let refused_until = Instant::now() + Duration::from_secs(4);
        world.until("it took nothing", |_| (Instant::now() > refused_until).then_some(())).await;
        world.command(0, &["CONFIG", "SET", "min-replicas-to-write", "0"]);
        assert_eq!(world.event().await, "-ann");
    });
}

#[test]
fn who_leaves_after_a_join_whose_answer_was_lost_with_the_link_is_seen_to_leave() {
    run(async {
        let mut world = World::new(vec![Redis::start()], Arc::new([0; PARTITIONS])).await;
        world.start().await;
        let room = TopicName::room("x:1");
        world.come(0, &room, "ann");
        // Others have received it, and the node has not taken the answer.
        let mut is_received = false;
        while !is_received {
            world.poll().await;
            let wait = tokio::time::timeout(Duration::from_millis(50), world.pushes.recv()).await;
            is_received = wait.is_ok_and(|push| push.is_some_and(|push| is_event(&push)));
        }
        world.nodes[0].presence.lose_link(0);
        world.set_route(0, &[]).await;
        world.command(0, &["FLUSHALL"]);
        world.go(0, &room, "ann");
        world.set_route(0, &[0]).await;
        world.go_up(0, 0);
        assert_eq!(world.event().await, "-ann");
    });
}

/// Whether a push is an event of a room's presence.
fn is_event(push: &PushInfo) -> bool {
    let body = match push.data.last() {
        Some(Value::BulkString(body)) => body,
        _ => return false,
    };
    event::read(body).is_ok()
}

#[test]
fn a_join_is_published_though_a_server_has_a_stale_entry_of_the_user() {
    run(async {
        let (mut world, room) = ann_is_there_and_the_server_away().await;
        // It is another one, which has a stale entry of Bob.
        let (part, room_name) = (partition(room.as_str()), room.as_str());
        let users = format!("test:{{p{part}}}:pr:{room_name}:{}", world.nodes[0].id);
        assert_eq!(world.command(0, &["HSET", &users, "bob", "1"]), "1");
        assert_eq!(world.command(0, &["HLEN", &users]), "2");
        for user in ["bob", "cid", "dan"] {
            world.come(0, &room, user);
        }
        world.go(0, &room, "dan");
        world.set_route(0, &[0]).await;
        world.go_up(0, 0);
        assert_eq!(world.event().await, "+bob");
        assert_eq!(world.event().await, "+cid");
        world.come(0, &room, "eve");
        assert_eq!(world.event().await, "+eve", "and nothing of Dan, who never was");
    });
}

#[test]
fn a_room_full_of_stale_entries_is_cleared_page_by_page() {
    run(async {
        let (mut world, room) = ann_is_there_and_the_server_away().await;
        let (part, room_name) = (partition(room.as_str()), room.as_str());
        let users = format!("test:{{p{part}}}:pr:{room_name}:{}", world.nodes[0].id);
        let names: Vec<String> = (0..3000).map(|number| format!("gone-{number}")).collect();
        let mut command = vec!["HSET", &users];
        names.iter().for_each(|name| command.extend([&name[..], "1"]));
        assert_eq!(world.command(0, &command), "3000");
        world.set_route(0, &[0]).await;
        world.go_up(0, 0);
        world
            .until("only Ann is left", |world| {
                (world.command(0, &["HLEN", &users]) == "1").then_some(())
            })
            .await;
        assert_eq!(world.command(0, &["HKEYS", &users]), "ann");
    });
}

#[test]
fn what_is_written_follows_the_records_of_living_nodes() {
    run(async {
        let mut world = World::new(vec![Redis::start()], Arc::new([0; PARTITIONS])).await;
        world.start().await;
        // As a release that writes what the last one has only read.
        let reads = wire::WireRange { min: 1, max: 3 };
        world.nodes[0].presence.liveness = Liveness::new(reads, 3, true);
        assert_eq!(world.nodes[0].presence.version(), 1, "the oldest, while nobody is known");
        let is = |version: u8| {
            move |world: &mut World| (world.nodes[0].presence.version() == version).then_some(())
        };
        world.until("it is alone", is(3)).await;
        let [old, newer] = ["00000000000000fe", "00000000000000ff"];
        let record = |node: &str| format!("test:{{p637}}:node:{node}");
        world.command(0, &["SADD", "test:{p637}:nodes", old, newer]);
        world.command(0, &["SET", &record(newer), "2-7"]);
        world.command(0, &["SET", &record(old), "1-2 and more"]);
        world.until("the oldest reads version 2", is(2)).await;
        world.command(0, &["SET", &record(old), "1"]);
        world.until("the oldest has no range", is(1)).await;
        world.command(0, &["SET", &record(old), "\u{7}"]);
        let count = |world: &World| world.nodes[0].presence.failures.unreadable;
        let before = count(&world);
        let is_counted = |world: &mut World| (count(world) > before).then_some(());
        world.until("an unreadable record is counted", is_counted).await;
        assert_eq!(world.nodes[0].presence.version(), 1, "and counts as the first version");
        world.command(0, &["DEL", &record(old)]);
        world.until("the oldest is dead", is(3)).await;
    });
}

#[test]
fn requests_beyond_the_limit_are_refused_and_counted() {
    run(async {
        let mut world = World::new(vec![Redis::start()], Arc::new([0; PARTITIONS])).await;
        world.start().await;
        let topic = room_on(0);
        for _ in 0..query::REQUESTS_MAX {
            let ask = PresenceRequest { topic: topic.clone(), to: ReplyTo::Nobody };
            world.nodes[0].presence.ask(ask);
        }
        assert_eq!(world.here(0, &topic).await, None, "one too many");
        assert_eq!(world.nodes[0].local.counters.presence_rejected, 1);
        // The others wait for one read, which they share. Then there is room again.
        let mut tries = 0;
        while world.here(0, &topic).await.is_none() {
            tries += 1;
            assert!(tries < 100_000, "there is room again");
            tokio::task::yield_now().await; // the connection needs its turn
        }
    });
}

#[test]
fn changes_that_redis_does_not_take_are_bounded_and_made_up_for_when_it_does() {
    run(async {
        let mut world = World::new(vec![Redis::start()], Arc::new([0; PARTITIONS])).await;
        world.start().await;
        let topic = room_on(0);
        world.come(0, &topic, "goes");
        assert_eq!(world.event().await, "+goes");
        world.set_route(0, &[]).await; // it is down
        world.nodes[0].presence.lose_link(0);
        let presence = &mut world.nodes[0].presence;
        for n in presence.writes.len()..writes::WRITES_MAX {
            let by = PendingWrite::new(Notify::IfNew, None);
            presence.writes.add(
                &TopicName::room(&format!("x:full-{}", n / 1024)),
                TopicName::user(&n.to_string()),
                by,
            );
        }
        world.come(0, &topic, "came-late");
        let node = &mut world.nodes[0];
        node.presence.measure(&mut node.local.counters);
        let counters = &node.local.counters;
        assert_eq!(counters.presence_writes_dropped, 1);
        assert_eq!(counters.presence_writes_waiting as usize, writes::WRITES_MAX);
        assert!(node.presence.bytes_beside_users() > 100 * writes::WRITES_MAX, "they count");
        world.set_route(0, &[0]).await;
        world.go_up(0, 0);
        world
            .until("Redis has who came", |world| {
                let users = world.command(0, &["KEYS", "*"]);
                assert!(!users.is_empty());
                (world.nodes[0].presence.writes.len() == 0).then_some(())
            })
            .await;
        let both = Some(vec!["came-late".to_owned(), "goes".to_owned()]);
        let here = world.here(0, &topic).await.map(|mut users| {
            users.sort_unstable();
            users
        });
        assert_eq!(here, both);
        let _ = world
            .until("the room is written", |world| {
                let known = world.command(0, &["EVAL", HAS_FIELD, "0", "u:came-late"]);
                (known.trim() == "1").then_some(())
            })
            .await;
    });
}

/// Whether any hash has a field that ends so.
const HAS_FIELD: &str = "for _, key in ipairs(redis.call('KEYS', '*')) do \
    if redis.call('TYPE', key).ok == 'hash' then \
        for _, field in ipairs(redis.call('HKEYS', key)) do \
            if string.find(field, 'came-late', 1, true) then return 1 end \
        end \
    end \
end return 0";
