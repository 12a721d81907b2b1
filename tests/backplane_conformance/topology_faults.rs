//! Topics whose server changes: a master that is replaced, by a fault or on purpose; a slot that
//! moves under live subscriptions; one of several servers that dies.
//!
//! Each story publishes under keys until every publish is accepted, and then expects every message
//! once and in order, or a report of its loss.

use crate::cluster::Cluster;
use crate::proxy::Proxy;
use crate::redis::{Redis, free_port, wait_until, wait_within};
use crate::sentinel::{Care, NAME, Sentinel};
use crate::world::{Build, Received, Shard, World, payload_of};
use campanile::backplane::partition::partition;
use campanile::backplane::redis::connection::subscriptions::BATCHES_MAX;
use campanile::ids::TopicName;
use campanile::link::PublishOutcome;
use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

const ROOMS: u32 = 12;

fn kept(number: u32) -> TopicName {
    TopicName::room(&format!("kept:{number}"))
}

fn plain(number: u32) -> TopicName {
    TopicName::room(&format!("plain-{number}"))
}

fn build() -> Build {
    Build { nodes: 2, shards: 1, linger_ms: 100, ..Build::usual() }
}

/// Everything that the shards of two nodes do and receive.
struct Talk<'a> {
    speaker: &'a Shard,
    receiver: &'a Shard,
    next: u64,
    accepted: HashMap<u32, u64>,
    received: HashMap<u32, Vec<u64>>,
    lost: HashMap<u32, u64>,
}

impl<'a> Talk<'a> {
    /// The receiver is in all rooms.
    fn begin(world: &'a World) -> Talk<'a> {
        let (speaker, receiver) = world.two_shards();
        for number in 0..ROOMS {
            receiver.join_and_receive(&kept(number), number);
            receiver.recover_and_receive(&kept(number), number, None);
            receiver.join_and_receive(&plain(number), 100 + number);
        }
        let [accepted, lost] = [HashMap::new(), HashMap::new()];
        Talk { speaker, receiver, next: 0, accepted, received: HashMap::new(), lost }
    }

    /// One message to each room with a history, each until it is accepted.
    fn round(&mut self) {
        for room in 0..ROOMS {
            self.next += 1;
            let (id, key) = (self.next, self.next.to_string());
            while !self.is_accepted(room, id, &key) {}
            *self.accepted.entry(room).or_default() += 1;
        }
        self.listen();
    }

    fn is_accepted(&mut self, room: u32, id: u64, key: &str) -> bool {
        let count = self.accepted.get(&room).copied().unwrap_or(0) + 1;
        self.speaker.publish_keyed(&kept(room), &count.to_string(), id, Some(key));
        match self.speaker.receive() {
            Received::Ack { id: Some(of), outcome, .. } if of == id => {
                matches!(outcome, PublishOutcome::Accepted(Some(_)))
            }
            other => panic!("not the answer: {other:?}"),
        }
    }

    fn listen(&mut self) {
        while let Some(received) = self.receiver.try_receive() {
            match received {
                Received::Frame { to, json, .. } => {
                    let number = payload_of(&json).parse().expect("a number");
                    self.received.entry(to).or_default().push(number);
                }
                Received::Lost { to, .. } => *self.lost.entry(to).or_default() += 1,
                other => panic!("nobody asked for this: {other:?}"),
            }
        }
    }

    /// Every message of every room with a history was delivered once and in order, without a
    /// reported loss.
    fn all_heard(mut self) {
        let accepted = self.accepted.clone();
        wait_until("everything is heard", || {
            self.listen();
            let count =
                |room: &u32| self.received.get(room).map_or(0, |received| received.len() as u64);
            accepted.iter().all(|(room, wanted)| count(room) >= *wanted)
        });
        for (room, wanted) in accepted {
            assert_eq!(self.received[&room], (1..=wanted).collect::<Vec<_>>(), "room {room}");
            assert_eq!(self.lost.get(&room), None, "room {room}");
        }
    }

    /// Every room without a history delivers again: within 20 seconds.
    fn plain_rooms_deliver(&mut self) {
        for room in 0..ROOMS {
            let to = 100 + room;
            let before = self.received.get(&to).map_or(0, Vec::len);
            let mut published_at = None::<Instant>;
            wait_until("a room without a history delivers", || {
                // What is published while the server is down may be lost; this is about what comes
                // after.
                if published_at.is_none_or(|at| at.elapsed() > Duration::from_millis(300)) {
                    self.speaker.publish(&plain(room), "0");
                    published_at = Some(Instant::now());
                }
                while let Some(received) = self.speaker.try_receive() {
                    assert!(matches!(received, Received::Ack { .. }), "{received:?}");
                }
                self.listen();
                self.received.get(&to).map_or(0, Vec::len) > before
            });
        }
    }

    /// Every member of a room without a history was told that messages may be missing.
    fn all_told(&mut self) {
        wait_until("whoever may have missed something is told", || {
            self.listen();
            (0..ROOMS).all(|room| self.lost.contains_key(&(100 + room)))
        });
    }
}

/// Messages while something happens.
fn talk_while(talk: &mut Talk<'_>, until: &str, mut is_over: impl FnMut() -> bool) {
    wait_until(until, || {
        talk.round();
        is_over()
    });
}

#[test]
fn a_master_that_is_killed_is_replaced_and_nothing_is_lost() {
    let mut redis = Sentinel::start(Care::default());
    let world = World::over(build(), &redis.url(), "test");
    let mut talk = Talk::begin(&world);
    talk.round();
    let master = redis.master().expect("there is a master");
    redis.servers[master].kill();
    talk_while(&mut talk, "another one is master", || {
        redis.master().is_some_and(|now| now != master)
    });
    world.wait_until_up(true);
    talk.round();
    talk.all_told();
    talk.plain_rooms_deliver();
    talk.all_heard();
}

#[test]
fn a_failover_on_purpose_is_followed_and_nothing_is_lost() {
    let redis = Sentinel::start(Care::default());
    let world = World::over(build(), &redis.url(), "test");
    let mut talk = Talk::begin(&world);
    let master = redis.master();
    wait_until("a failover begins", || redis.failover());
    talk_while(&mut talk, "another one is master", || {
        redis.master().is_some_and(|now| Some(now) != master)
    });
    talk.round();
    world.wait_until_up(true);
    talk.all_told();
    talk.plain_rooms_deliver();
    talk.all_heard();
}

#[test]
fn a_replica_that_missed_the_tail_is_repaired_when_it_is_promoted() {
    // The master may be alone here: what it stores last is lost with it.
    let mut redis = Sentinel::start(Care { min_replicas: 0, ..Care::default() });
    let world = World::over(build(), &redis.url(), "test");
    let mut talk = Talk::begin(&world);
    talk.round();
    let master = redis.master().expect("there is a master");
    let replicas: Vec<usize> = (0..3).filter(|server| *server != master).collect();
    for replica in &replicas {
        redis.servers[*replica].freeze();
    }
    talk.round(); // only the master has this
    redis.servers[master].kill();
    for replica in &replicas {
        redis.servers[*replica].thaw();
    }
    talk_while(&mut talk, "another one is master", || {
        redis.master().is_some_and(|now| now != master)
    });
    talk.round();
    talk.all_heard();
}

/// Whether a node has a connection to it.
fn has_nodes(server: &Redis) -> bool {
    server.try_command(&["CLIENT", "LIST"]).is_some_and(|list| list.contains("name=campanile-"))
}

#[test]
fn a_failover_that_waits_for_a_replica_is_followed_all_the_same() {
    let redis = Sentinel::start(Care::default());
    // The leader of a failover is the last to report it: here it is the only one that is asked.
    let url = format!("redis+sentinel://127.0.0.1:{}/{NAME}", redis.sentinels[0].port);
    let world = World::over(build(), &url, "test");
    let master = redis.master().expect("there is a master");
    let [heir, other] = [1, 2].map(|step| &redis.servers[(master + step) % 3]);
    // One replica goes on following the old master, and is waited for.
    other.command(&["CONFIG", "SET", "replica-priority", "0"]);
    other.command(&["ACL", "SETUSER", "default", "-replicaof", "-slaveof"]);
    for sentinel in &redis.sentinels {
        sentinel.command(&["SENTINEL", "SET", NAME, "failover-timeout", "60000"]);
        let knows = || sentinel.command(&["SENTINEL", "replicas", NAME]).contains("priority 0 ");
        wait_until("every sentinel knows whom it may promote", knows);
    }
    wait_until("a failover begins", || redis.failover());
    wait_until("the other replica is master", || {
        // Sentinels cut its connections meanwhile.
        heir.try_command(&["ROLE"]).is_some_and(|role| role.starts_with("master"))
    });
    wait_within(Duration::from_secs(4), "all nodes have gone over to it", || {
        has_nodes(heir) && !has_nodes(&redis.servers[master])
    });
    world.wait_until_up(true);
}

#[test]
fn a_master_that_sentinels_do_not_know_hides_no_other() {
    let redis = Sentinel::start(Care::default());
    let url = redis.url().replace(NAME, &format!("nobody,{NAME}"));
    let world = World::begin(Build { nodes: 1, ..build() }, &url, "test");
    wait_within(Duration::from_secs(5), "the other one is found", || has_nodes(&redis.servers[0]));
    assert!(world.nodes[0].health.ready(0).is_err(), "not all of them are");
}

#[test]
fn a_master_of_a_cluster_that_is_killed_is_replaced_and_nothing_is_lost() {
    let mut redis = Cluster::start(0);
    let world = World::over(build(), &redis.url(), "test");
    let mut talk = Talk::begin(&world);
    talk.round();
    let masters = redis.masters();
    redis.servers[masters[0]].kill();
    talk_while(&mut talk, "its replica is master", || {
        let now = redis.masters();
        now.len() == 3 && !now.contains(&masters[0])
    });
    talk.round();
    world.wait_until_up(true);
    talk.plain_rooms_deliver();
    talk.all_heard();
}

#[test]
fn a_failover_of_a_cluster_on_purpose_is_followed_and_nothing_is_lost() {
    let redis = Cluster::start(0);
    let world = World::over(build(), &redis.url(), "test");
    let mut talk = Talk::begin(&world);
    for master in redis.masters() {
        wait_until("a failover begins", || redis.failover(master));
        talk_while(&mut talk, "its replica is master", || {
            let now = redis.masters();
            now.len() == 3 && !now.contains(&master)
        });
    }
    talk.round();
    world.wait_until_up(true);
    talk.plain_rooms_deliver();
    talk.all_heard();
}

#[test]
fn slots_that_move_take_their_rooms_along_under_live_subscriptions() {
    let redis = Cluster::start(0);
    let world = World::over(build(), &redis.url(), "test");
    let mut talk = Talk::begin(&world);
    talk.round();
    let masters = redis.masters();
    let mut moved = 0;
    for (from, to) in [(0, 1), (1, 2), (2, 0)] {
        for slot in redis.slots_with_keys(masters[from], 8) {
            redis.migrate(slot, masters[from], masters[to]).expect("a slot that can be moved");
            talk.round();
            moved += 1;
        }
    }
    assert!(moved >= 8, "{moved} slots");
    talk.plain_rooms_deliver();
    world.wait_until_up(true);
    talk.all_heard();
}

/// The channel of a room in a Cluster, its slot and its master.
fn place_of(redis: &Cluster, room: &TopicName) -> (String, usize) {
    let channel = format!("test:{{p{}}}:m:{}", partition(room.as_str()), room.as_str());
    let slot = redis.servers[0].command(&["CLUSTER", "KEYSLOT", &channel]);
    let has = |at: &usize| {
        redis.servers[*at].command(&["PUBSUB", "SHARDNUMSUB", &channel]).ends_with(" 1")
    };
    let owner = redis.masters().into_iter().find(has).expect("somebody has it");
    (slot, owner)
}

/// Takes a slot from every master.
fn orphan(redis: &Cluster, slot: &str, owner: usize) {
    let first = std::iter::once(&redis.servers[owner]);
    let all: Vec<&Redis> = first.chain(&redis.servers).collect();
    wait_until("nobody has the slot", || {
        all.iter().for_each(|server| _ = server.command(&["CLUSTER", "DELSLOTS", slot]));
        let is_gone = |server: &&Redis| {
            server.command(&["CLUSTER", "INFO"]).contains("cluster_slots_assigned:16383")
        };
        all.iter().all(is_gone)
    });
}

#[test]
fn a_slot_without_a_master_makes_a_node_unready_and_delays_no_other_room() {
    let redis = Cluster::start(0);
    for server in &redis.servers {
        server.command(&["CONFIG", "SET", "cluster-require-full-coverage", "no"]);
    }
    let world = World::over(Build { nodes: 1, ..build() }, &redis.url(), "test");
    let (node, shard) = (&world.nodes[0], &world.nodes[0].shards[0]);
    shard.join_and_receive(&plain(0), 0);
    let (slot, owner) = place_of(&redis, &plain(0));
    orphan(&redis, &slot, owner);
    // While it is frozen joins are gathered: one batch, with a room of that slot.
    let is_beside = |n: &u32| partition(plain(*n).as_str()) == partition(plain(0).as_str());
    let beside = (1..).find(is_beside).expect("there are only 1024 partitions");
    redis.servers[owner].freeze();
    (1..200).for_each(|n| shard.join(&plain(n), n));
    shard.join(&plain(beside), beside);
    (200..300).for_each(|n| shard.join(&plain(n), n));
    redis.servers[owner].thaw();
    let mut joined = HashSet::new();
    let mut told = HashSet::new();
    let listen = |joined: &mut HashSet<u32>, told: &mut HashSet<u32>| {
        while let Some(received) = shard.try_receive() {
            match received {
                Received::Joined(at) => assert!(joined.insert(at)),
                Received::Lost { to, .. } => _ = told.insert(to),
                other => panic!("nobody asked for this: {other:?}"),
            }
        }
    };
    let others: HashSet<u32> = (1..300).filter(|n| !is_beside(n)).collect();
    wait_within(Duration::from_secs(5), "all others are in their rooms", || {
        listen(&mut joined, &mut told);
        joined.is_superset(&others)
    });
    assert!(!joined.contains(&beside), "nobody can deliver that");
    wait_within(Duration::from_secs(4), "it says so", || node.health.ready(0).is_err());
    // A link that begins meanwhile cannot know what will be missed.
    let before = node.counters().reconnects;
    redis.servers[owner].command(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    wait_until("it is noticed", || node.counters().reconnects > before);
    let other = TopicName::room("new");
    wait_until("the others of that server are told", || {
        listen(&mut joined, &mut told);
        told.len() > 20
    });
    shard.join(&other, 1000);
    wait_until("everything is quiet", || {
        listen(&mut joined, &mut told);
        joined.contains(&1000)
    });
    std::thread::sleep(Duration::from_millis(200));
    listen(&mut joined, &mut told);
    told.clear();
    redis.servers[owner].command(&["CLUSTER", "ADDSLOTS", &slot]);
    wait_until("its rooms are heard again, and told", || {
        listen(&mut joined, &mut told);
        joined.contains(&beside) && told.contains(&0)
    });
    world.wait_until_up(true);
}

#[test]
fn a_master_that_only_we_still_reach_is_left_for_its_successor_within_three_seconds() {
    // It accepts publishes and subscriptions as if nothing had happened: the rest of its Cluster
    // has given it up, and its successor has its slots under a higher epoch. Here they never met at
    // all.
    let [old, heir] = ["1", "2"].map(|epoch| {
        let bus = free_port().to_string();
        let settings = ["--cluster-enabled", "yes", "--cluster-port", &bus];
        let redis = Redis::start_with(&settings);
        redis.command(&["CLUSTER", "SET-CONFIG-EPOCH", epoch]);
        redis
    });
    let take_all = |redis: &Redis| {
        redis.command(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]);
        let is_ok = || redis.command(&["CLUSTER", "INFO"]).contains("cluster_state:ok");
        wait_until("it serves", is_ok);
    };
    take_all(&old);
    let url = format!("redis+cluster://127.0.0.1:{},127.0.0.1:{}", old.port, heir.port);
    let world = World::over(Build { nodes: 1, ..build() }, &url, "test");
    let shard = &world.nodes[0].shards[0];
    shard.join_and_receive(&plain(0), 0);
    let channel = format!("test:{{p{}}}:m:r:plain-0", partition(plain(0).as_str()));
    take_all(&heir);
    wait_within(Duration::from_secs(3), "the room is heard there", || {
        heir.command(&["PUBSUB", "SHARDNUMSUB", &channel]).ends_with(" 1")
    });
    assert_eq!(shard.receive(), Received::Lost { to: 0, count: 0 });
}

#[test]
fn a_slot_that_leaves_and_returns_behind_its_subscription_is_subscribed() {
    // A Cluster of one behind a slow connection: a batch of subscriptions arrives in parts.
    let port = free_port();
    let proxy = Proxy::start(port);
    let announced = proxy.port.to_string();
    let settings = [
        ["--cluster-enabled", "yes"],
        ["--cluster-config-file", "nodes.conf"],
        ["--cluster-port", &free_port().to_string()],
        ["--cluster-announce-ip", "127.0.0.1"],
        ["--cluster-announce-port", &announced],
        ["--cluster-require-full-coverage", "no"],
    ];
    let redis = Redis::start_on(port, &settings.concat());
    redis.command(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]);
    wait_until("it serves", || redis.command(&["CLUSTER", "INFO"]).contains("cluster_state:ok"));
    let url = format!("redis+cluster://127.0.0.1:{}", proxy.port);
    let world = World::over(Build { nodes: 1, shards: 1, ..build() }, &url, "test");
    let (node, shard) = (&world.nodes[0], &world.nodes[0].shards[0]);
    let room = |n: u32| TopicName::room(&format!("{n}-{}", "x".repeat(240)));
    let channel = |n| format!("test:{{p{}}}:m:{}", partition(room(n).as_str()), room(n).as_str());
    let is_there = |n| redis.command(&["PUBSUB", "SHARDNUMSUB", &channel(n)]).ends_with(" 1");
    proxy.delay(200);
    let count = 500;
    // As many batches as may be in flight, of one room each; what comes then is gathered.
    for n in 0..BATCHES_MAX as u32 {
        shard.join(&room(n), n);
        std::thread::sleep(Duration::from_millis(20));
    }
    (BATCHES_MAX as u32..count).for_each(|n| shard.join(&room(n), n));
    let one = 50;
    wait_until("a part of the batch has arrived", || is_there(one));
    assert!(!is_there(count - 1), "and not all of it");
    let slot = redis.command(&["CLUSTER", "KEYSLOT", &channel(one)]);
    redis.command(&["CLUSTER", "DELSLOTS", &slot]);
    redis.command(&["CLUSTER", "ADDSLOTS", &slot]);
    assert!(!is_there(one), "it was taken back");
    let mut joined = HashSet::new();
    wait_until("everybody is in", || {
        while let Some(received) = shard.try_receive() {
            if let Received::Joined(at) = received {
                joined.insert(at);
            }
        }
        joined.len() == count as usize
    });
    proxy.delay(0);
    assert!(is_there(one), "who was told so is in");
    assert_eq!(node.counters().reconnects, 0);
}

#[test]
fn members_who_may_have_missed_publishes_of_other_services_are_told_wherever_the_room_is() {
    let redis = Cluster::start(0);
    let world = World::over(Build { nodes: 1, ..build() }, &redis.url(), "test");
    let (node, shard) = (&world.nodes[0], &world.nodes[0].shards[0]);
    (0..ROOMS).for_each(|n| shard.join_and_receive(&plain(n), n));
    let hears = |at: &usize| {
        redis.servers[*at].command(&["PUBSUB", "CHANNELS", "test:publish"]) == "test:publish"
    };
    let receiver = redis.masters().into_iter().find(hears).expect("it is heard from one of them");
    // Where no other service ever published, a lost connection concerns its own rooms alone.
    redis.servers[receiver].command(&[
        "PUBLISH",
        "test:publish",
        r#"{"room_id":"plain-0","payload":1}"#,
    ]);
    assert!(matches!(shard.receive(), Received::Frame { to: 0, .. }));
    redis.servers[receiver].command(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    wait_until("it is noticed", || node.counters().reconnects == 1);
    let mut told: Vec<u32> = (0..ROOMS)
        .map(|_| match shard.receive() {
            Received::Lost { to, count: 0 } => to,
            other => panic!("{other:?}"),
        })
        .collect();
    told.sort_unstable();
    assert_eq!(told, (0..ROOMS).collect::<Vec<_>>());
}

#[test]
fn one_of_several_servers_that_dies_affects_only_its_own_rooms() {
    let mut all: Vec<Redis> = (0..3).map(|_| Redis::start()).collect();
    let hosts: Vec<_> = all.iter().map(|redis| format!("127.0.0.1:{}", redis.port)).collect();
    let world = World::over(build(), &format!("redis://{}", hosts.join(",")), "test");
    let (speaker, receiver) = world.two_shards();
    for room in 0..ROOMS {
        receiver.join_and_receive(&plain(room), 100 + room);
    }
    let is_on = |redis: &Redis, room: u32| {
        let channel = format!("test:{{p{}}}:m:r:plain-{room}", partition(plain(room).as_str()));
        redis.command(&["PUBSUB", "NUMSUB", &channel]).ends_with(" 1")
    };
    let rooms = |redis: &Redis| (0..ROOMS).filter(|room| is_on(redis, *room)).collect::<Vec<_>>();
    let shares: Vec<Vec<u32>> = all.iter().map(rooms).collect();
    assert!(shares.iter().all(|share| !share.is_empty()), "{shares:?}");
    assert_eq!(shares.iter().map(Vec::len).sum::<usize>(), ROOMS as usize, "{shares:?}");
    all[0].kill();
    world.wait_until_up(false);
    for room in shares[1].iter().chain(&shares[2]) {
        speaker.publish(&plain(*room), "1");
        let received = receiver.receive();
        assert!(matches!(received, Received::Frame { to, .. } if to == 100 + room), "{received:?}");
    }
    all[0].restart();
    world.wait_until_up(true);
    let mut told: Vec<u32> = shares[0]
        .iter()
        .map(|_| match receiver.receive() {
            Received::Lost { to, count: 0 } => to - 100,
            other => panic!("{other:?}"),
        })
        .collect();
    told.sort_unstable();
    assert_eq!(told, shares[0], "nobody else");
}

#[test]
fn a_replicated_publish_is_acknowledged_when_a_replica_has_it_and_delays_no_other() {
    let master = Redis::start();
    let world = World::over(Build { nodes: 1, shards: 2, ..build() }, &master.url(), "test");
    let (speaker, receiver) = world.two_shards();
    let sure = TopicName::room("sure:a");
    receiver.join_and_receive(&sure, 1);
    receiver.recover_and_receive(&sure, 1, None);
    let outcome = |id: u64, key: &str| {
        speaker.publish_keyed(&sure, &id.to_string(), id, Some(key));
        loop {
            match speaker.receive() {
                Received::Ack { id: Some(of), outcome, .. } if of == id => return outcome,
                Received::Ack { .. } => {}
                other => panic!("not the answer: {other:?}"),
            }
        }
    };
    // There is no replica: the message is delivered, and whether it will survive is unknown.
    assert_eq!(outcome(1, "a"), PublishOutcome::Unknown);
    assert_eq!(receiver.receive_payloads(1, 1), ["1"]);
    wait_until("it is counted", || world.nodes[0].counters().publishes_unreplicated == 1);
    // Meanwhile others are answered as always.
    speaker.publish_keyed(&sure, "2", 2, Some("b"));
    speaker.publish_keyed(&kept(0), "3", 3, None);
    let Received::Ack { id, outcome: of_the_other, .. } = speaker.receive() else { panic!() };
    assert_eq!((id, matches!(of_the_other, PublishOutcome::Accepted(Some(_)))), (Some(3), true));
    let Received::Ack { id: Some(2), outcome: PublishOutcome::Unknown, .. } = speaker.receive()
    else {
        panic!()
    };
    let replica = Redis::start_with(&["--replicaof", &format!("127.0.0.1 {}", master.port)]);
    // A replica that has just connected, or is slow, costs another try under the same key: nothing
    // more.
    let mut id = 3;
    let mut place_of = |key: &str| {
        let mut place = None;
        wait_until("the replica has it", || {
            id += 1;
            if let PublishOutcome::Accepted(at) = outcome(id, key) {
                place = at;
            }
            place.is_some()
        });
        place.expect("waited for").offset
    };
    assert_eq!(place_of("a"), 1, "the first one, which the replica has by now");
    assert_eq!(place_of("c"), 3);
    drop(replica);
    let received = receiver.receive_payloads(1, 2);
    assert_eq!(received[0], "2");
    assert!(
        receiver.receives_nothing_for(Duration::from_millis(50)),
        "once, however often it was tried"
    );
}
