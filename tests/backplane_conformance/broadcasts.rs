//! After an outage only those receive `lost` who can have missed something: of messages to everybody
//! a node knows.
//!
//! The receiving node has an ACL user of its own, which the test switches off: so it is cut off for
//! as long as the story needs, while another node publishes.

use crate::cluster::Cluster;
use crate::permissions::minimal_user;
use crate::redis::{Redis, wait_until, wait_within};
use crate::sentinel::{Care, Sentinel};
use crate::world::{Build, EVERYBODY, Node, Received, World, payload};
use campanile::backplane::redis::permissions::table::Feature;
use campanile::ids::TopicName;
use campanile::link::PublishOutcome;
use std::time::Duration;

const PREFIX: &str = "test";

fn build() -> Build {
    Build { nodes: 1, shards: 1, namespaces: "", ..Build::usual() }
}

/// A node that is cut off, and one that publishes.
struct Story<'a> {
    servers: Vec<&'a Redis>,
    receiving: World,
    publishing: World,
}

impl<'a> Story<'a> {
    fn begin(servers: Vec<&'a Redis>, url: &str, features: &[Feature]) -> Story<'a> {
        servers.iter().for_each(|server| minimal_user(server, features, PREFIX));
        let theirs = url.replace("://", "://bell:s3cret@");
        let receiving = World::over(build(), &theirs, PREFIX);
        let publishing = World::over(build(), url, PREFIX);
        let story = Story { servers, receiving, publishing };
        story.receiver().shards[0].has_connections();
        wait_until("the first check is over", || story.checks() == (1, 0));
        story
    }

    fn receiver(&self) -> &Node {
        &self.receiving.nodes[0]
    }

    /// Checks that found nothing missing, and losses.
    fn checks(&self) -> (u64, u64) {
        let counters = self.receiver().counters();
        (counters.broadcasts_complete, counters.broadcasts_missed)
    }

    fn cut_off(&self) {
        for server in &self.servers {
            assert_eq!(server.command(&["ACL", "SETUSER", "bell", "off"]), "OK");
            server.command(&["CLIENT", "KILL", "USER", "bell"]);
        }
        self.receiving.wait_until_up(false);
    }

    fn let_in(&self) {
        for server in &self.servers {
            server.try_command(&["ACL", "SETUSER", "bell", "on"]);
        }
        self.receiving.wait_until_up(true);
    }

    /// Publishes to everybody until it is accepted.
    fn broadcast(&self, json: &str) {
        let shard = &self.publishing.nodes[0].shards[0];
        wait_until("a message to everybody is accepted", || {
            shard.publish_as(&TopicName::all(), json, Some(1), None);
            let accepted = PublishOutcome::Accepted(None);
            shard.receive() == Received::Ack { conn: 7, id: Some(1), outcome: accepted }
        });
    }

    /// The receiver receives this and nothing before it.
    fn receives(&self, json: &str) {
        assert_eq!(payload(self.receiver().shards[0].receive(), EVERYBODY), json);
    }

    /// `outage` is what happens to the servers while the receiver is cut off.
    fn tell(self, mut outage: impl FnMut()) {
        self.broadcast("1");
        self.receives("1");
        self.cut_off();
        outage();
        self.let_in();
        wait_until("it was checked", || self.checks() == (2, 0));
        self.broadcast("2");
        self.receives("2");
        self.cut_off();
        outage();
        self.broadcast("3");
        self.let_in();
        wait_until("it was checked", || self.checks() == (2, 1));
        self.broadcast("4");
        let lost = Received::Lost { to: EVERYBODY, count: 0 };
        assert_eq!(self.receiver().shards[0].receive(), lost);
        self.receives("4");
        assert_eq!(self.checks(), (2, 1));
    }
}

#[test]
fn one_server() {
    let redis = Redis::start();
    Story::begin(vec![&redis], &redis.url(), &[Feature::OneServer]).tell(|| {});
}

#[test]
fn several_servers() {
    let servers: Vec<Redis> = (0..3).map(|_| Redis::start()).collect();
    let hosts: Vec<String> =
        servers.iter().map(|redis| format!("127.0.0.1:{}", redis.port)).collect();
    let url = format!("redis://{}", hosts.join(","));
    Story::begin(servers.iter().collect(), &url, &[Feature::OneServer]).tell(|| {});
}

#[test]
fn a_master_that_sentinels_replace() {
    let sentinel = Sentinel::start(Care::default());
    let servers = sentinel.servers.iter().collect();
    let story = Story::begin(servers, &sentinel.url(), &[Feature::OneServer]);
    story.tell(|| {
        let before = sentinel.master();
        let limit = Duration::from_secs(60);
        wait_within(limit, "a failover begins", || sentinel.failover());
        wait_within(limit, "it is over", || sentinel.master() != before && sentinel.is_whole());
    });
}

#[test]
fn a_master_of_a_cluster_that_its_replica_replaces() {
    let cluster = Cluster::start(0);
    let servers = cluster.servers.iter().collect();
    Story::begin(servers, &cluster.url(), &[Feature::Cluster]).tell(|| {
        let before = cluster.masters();
        let limit = Duration::from_secs(60);
        for master in &before {
            wait_within(limit, "a failover begins", || cluster.failover(*master));
            wait_within(limit, "it is over", || {
                cluster.is_whole() && !cluster.masters().contains(master)
            });
        }
    });
}

#[test]
fn a_server_that_comes_back_empty_is_given_the_number_by_those_who_know_it() {
    let mut redis = Redis::start();
    let world = World::over(Build { nodes: 2, shards: 1, ..build() }, &redis.url(), PREFIX);
    let (publisher, receiver) = world.two_shards();
    receiver.has_connections();
    publisher.publish(&TopicName::all(), "1");
    assert_eq!(payload(receiver.receive(), EVERYBODY), "1");
    let complete =
        || world.nodes.iter().map(|node| node.counters().broadcasts_complete).sum::<u64>();
    wait_until("both have checked", || complete() == 2);
    let number = redis.command(&["GET", "test:{p637}:b"]);
    redis.kill();
    world.wait_until_up(false);
    redis.restart();
    world.wait_until_up(true);
    wait_until("both have checked again", || complete() == 4);
    assert_eq!(redis.command(&["GET", "test:{p637}:b"]), number);
    publisher.publish(&TopicName::all(), "2");
    assert_eq!(payload(receiver.receive(), EVERYBODY), "2", "and nothing was lost");
}

#[test]
fn a_message_of_a_node_that_does_not_number_them_makes_the_next_outage_a_loss() {
    let redis = Redis::start();
    let world = World::over(build(), &redis.url(), PREFIX);
    let shard = &world.nodes[0].shards[0];
    shard.has_connections();
    shard.publish(&TopicName::all(), "1");
    assert_eq!(payload(shard.receive(), EVERYBODY), "1");
    // What it is does not matter: it has no number.
    redis.command(&["PUBLISH", "test:{p637}:m:*", "x"]);
    wait_until("it has arrived", || world.nodes[0].counters().publishes_malformed == 1);
    redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    assert_eq!(shard.receive(), Received::Lost { to: EVERYBODY, count: 0 });
}
