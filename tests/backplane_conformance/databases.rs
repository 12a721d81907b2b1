//! Two systems with one prefix, in different databases: keys belong to a database in Redis, channels
//! do not, and all the same nothing of one reaches the other.

use crate::presences::{joined, news};
use crate::redis::{Redis, wait_until};
use crate::sentinel::{Care, Sentinel};
use crate::world::{Build, Received, World, payload};
use campanile::ids::TopicName;
use campanile::link::{Disconnect, DisconnectRequest, ReplyTo, Uplink};
use std::time::{Duration, Instant};

const DATABASES: [u32; 3] = [0, 1, 11];

/// Nodes with the same ids and the same prefix in each database.
fn worlds(url: &str) -> Vec<World> {
    let build = Build { nodes: 2, shards: 1, ..Build::usual() };
    let of = |db: &u32| World::over(build, &format!("{url}/{db}"), "test");
    DATABASES.iter().map(of).collect()
}

fn ingest_channel(db: u32) -> String {
    match db {
        0 => "test:publish".to_owned(),
        db => format!("test:db={db}:publish"),
    }
}

/// In each world something of each kind happens, and each world receives its own. `servers`: those
/// on which other services may publish.
fn hear_only_their_own(worlds: &[World], servers: &[&Redis]) {
    let [room, here, kept] = ["room", "here:a", "kept:a"].map(TopicName::room);
    let user = TopicName::user("ann");
    for shard in worlds.iter().flat_map(World::shards) {
        shard.join_and_receive(&room, 1);
        shard.join_and_receive(&user, 2);
        shard.join_and_receive(&kept, 3);
        // Deliveries go on from the position that it learns.
        shard.recover_and_receive(&kept, 3, None);
        shard.join_and_receive(&here, 5);
    }
    for (world, db) in worlds.iter().zip(DATABASES) {
        let (near, far) = world.two_shards();
        near.publish(&room, &format!("\"{db}\""));
        near.publish(&kept, &format!("\"{db} is stored\""));
        near.join_presence(&here, &format!("ann-{db}"), 1, None);
        let close = Disconnect { code: 4001, reason: format!("{db}").into() };
        let reply = ReplyTo::Call(Box::new(|_| ()));
        let ask = DisconnectRequest { topic: user.clone(), close: close.clone(), reply };
        assert!(world.nodes[0].ops.try_publish(Uplink::Disconnect(Box::new(ask))).is_ok());
        let own = |received: &Received| match received {
            Received::Frame { to: 1, json, .. } => json.contains(&format!("\"payload\":\"{db}\"")),
            Received::Frame { to: 3, json, .. } => json.contains(&format!("\"{db} is stored\"")),
            Received::Disconnect { at: 2, close: received } => *received == close,
            Received::Keyed { to: 5, json, .. } => *json == joined("here:a", &format!("ann-{db}")),
            _ => false,
        };
        // From connections of several kinds, so in any order.
        let mut all = Vec::new();
        let deadline = Instant::now() + Duration::from_secs(20);
        while all.len() < 4 && Instant::now() < deadline {
            all.extend(far.try_receive());
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(all.len() == 4 && all.iter().all(own), "database {db} hears {all:?}");
        let (list, count) = far.roster(&here).expect("the room can be read");
        assert_eq!((list.len(), count), (1, 1), "{list:?}");
        assert_eq!(list[0].0, format!("ann-{db}"));
    }
    for (number, server) in servers.iter().enumerate() {
        for db in DATABASES {
            let json = format!(r#"{{"room_id":"room","payload":"{db} on {number}"}}"#);
            assert_eq!(server.command(&["PUBLISH", &ingest_channel(db), &json]), "2", "two nodes");
        }
    }
    for (world, db) in worlds.iter().zip(DATABASES) {
        let (near, far) = world.two_shards();
        let mut ingested: Vec<String> = far.receive_payloads(1, servers.len());
        ingested.sort();
        let expected: Vec<String> =
            (0..servers.len()).map(|number| format!("\"{db} on {number}\"")).collect();
        assert_eq!(ingested, expected);
        near.leave_presence(&here, &format!("ann-{db}"));
        assert!(news(far).contains(&format!("ann-{db}")), "and nothing else before");
        near.publish(&room, "\"last\"");
        assert_eq!(payload(far.receive(), 1), "\"last\"", "and nothing else before");
        for node in &world.nodes {
            assert_eq!(node.counters().publishes_malformed, 0);
        }
    }
}

#[test]
fn systems_in_three_databases_of_one_server_hear_nothing_of_each_other() {
    let redis = Redis::start();
    let worlds = worlds(&redis.url());
    hear_only_their_own(&worlds, &[&redis]);
}

#[test]
fn systems_in_three_databases_of_several_servers_hear_nothing_of_each_other() {
    let servers = [Redis::start(), Redis::start()];
    let url = format!("redis://127.0.0.1:{},127.0.0.1:{}", servers[0].port, servers[1].port);
    let worlds = worlds(&url);
    hear_only_their_own(&worlds, &[&servers[0], &servers[1]]);
}

#[test]
fn systems_in_three_databases_of_a_master_named_by_sentinels_hear_nothing_of_each_other() {
    let sentinel = Sentinel::start(Care::default());
    let worlds = worlds(&sentinel.url());
    let master = &sentinel.servers[sentinel.master().expect("there is one")];
    hear_only_their_own(&worlds, &[master]);
}

/// A password and a database, through a Unix socket.
#[test]
fn a_system_over_a_unix_socket_delivers_and_does_so_again_after_an_outage() {
    let name = format!("campanile-{}-redis.sock", std::process::id());
    let path = std::env::temp_dir().join(name);
    let path = path.to_str().expect("a path in UTF-8");
    let mut redis = Redis::start_with(&["--unixsocket", path]);
    let may = ["ACL", "SETUSER", "bell", "on", ">s3cret&?%", "~*", "&*", "+@all"];
    assert_eq!(redis.command(&may), "OK");
    let url = format!("redis+unix://{path}?db=3&user=bell&password=s3cret%26%3F%25");
    let world = World::over(Build { shards: 1, ..Build::usual() }, &url, "test");
    let room = TopicName::room("room");
    let (near, far) = world.two_shards();
    near.join_and_receive(&room, 1);
    far.join_and_receive(&room, 1);
    near.publish(&room, "1");
    assert_eq!(payload(far.receive(), 1), "1");
    assert!(redis.command(&["CLIENT", "LIST"]).contains("user=bell"), "it is that user");
    redis.kill();
    world.wait_until_up(false);
    redis.restart();
    assert_eq!(redis.command(&may), "OK");
    world.wait_until_up(true);
    assert_eq!(far.receive(), Received::Lost { to: 1, count: 0 });
    near.publish(&room, "2");
    wait_until("it is delivered", || far.end.waiting() > 0);
    assert_eq!(payload(far.receive(), 1), "2");
    drop(world);
    let _ = std::fs::remove_file(path);
}
