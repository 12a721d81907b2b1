//! The order of one client's publishes, through refusals that begin and end while many are in
//! flight.

use crate::redis::{Redis, wait_until};
use crate::world::{Build, Received, Shard, World, payload_of};
use campanile::backplane::redis::names::Names;
use campanile::ids::{NodeId, Position, TopicName};
use campanile::link::PublishOutcome;
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;

const PUBLISHES: u64 = 20_000;
/// Publishes between two changes of what the server accepts, in turn.
const ACCEPTED: u64 = 150;
const REFUSED: u64 = 15;

/// Everything is stored, and no link breaks because the host is slow.
fn world(nodes: u64) -> World {
    let namespaces = "all: history_size=100000";
    let (canary_timeout_ms, timeout_ms) = (60_000, 30_000);
    World::redis(Build { nodes, namespaces, canary_timeout_ms, timeout_ms, ..Build::usual() })
}

fn redis(world: &World) -> &Redis {
    world.redis.as_ref().expect("a world with Redis")
}

/// Publishes of one client and their outcomes.
struct Client<'a> {
    shard: &'a Shard,
    topic: TopicName,
    accepted: Vec<(u64, Position)>,
    /// Refused, in the order in which they ended.
    failed: Vec<u64>,
}

impl Client<'_> {
    fn new(shard: &Shard, topic: TopicName) -> Client<'_> {
        Client { shard, topic, accepted: Vec::new(), failed: Vec::new() }
    }

    fn send(&mut self, number: u64) {
        let payload = format!("[{},{number}]", self.shard.node.0);
        self.shard.publish_as(&self.topic, &payload, Some(number), None);
        self.take_outcomes();
    }

    fn take_outcomes(&mut self) {
        while let Some(received) = self.shard.try_receive() {
            match received {
                Received::Ack {
                    id: Some(id), outcome: PublishOutcome::Accepted(Some(at)), ..
                } => {
                    self.accepted.push((id, at));
                }
                Received::Ack { id: Some(id), outcome: PublishOutcome::Unavailable, .. } => {
                    self.failed.push(id);
                }
                Received::Settled => {}
                other => panic!("neither accepted nor refused: {other:?}"),
            }
        }
    }

    fn wait_until_all_ended(&mut self, count: u64) {
        wait_until("every publish has ended", || {
            self.take_outcomes();
            (self.accepted.len() + self.failed.len()) as u64 == count
        });
    }
}

/// The numbers in a stream, oldest first.
fn stored(redis: &Redis, topic: &TopicName) -> Vec<u64> {
    let key = Names::new("test", NodeId(1)).history_keys(topic.as_str()).stream;
    let code = "local all = {} for _, entry in ipairs(redis.call('XRANGE', KEYS[1], '-', '+')) do \
                all[#all + 1] = string.match(entry[2][2], '(%d+)]$') end \
                return table.concat(all, ' ')";
    let mut text = None;
    wait_until("the stream is read", || {
        text = redis.try_command(&["EVAL", code, "1", &key]);
        text.is_some()
    });
    let text = text.expect("just read");
    text.split_whitespace().map(|word| word.parse().expect("a number")).collect()
}

/// The server accepts and refuses in turn, as a master does whose replica comes and goes. Replies to
/// the changes wait in the socket.
struct Refusals {
    stream: TcpStream,
    changes: usize,
}

impl Refusals {
    fn new(redis: &Redis) -> Refusals {
        let stream = TcpStream::connect(("127.0.0.1", redis.port)).expect("it accepts");
        stream.set_nodelay(true).expect("a socket");
        Refusals { stream, changes: 0 }
    }

    fn set(&mut self, is_refusing: bool) {
        let line = format!("CONFIG SET min-replicas-to-write {}\r\n", u8::from(is_refusing));
        self.stream.write_all(line.as_bytes()).expect("it takes a line");
        self.changes += 1;
    }

    fn end(mut self) {
        let mut replies = vec![0; self.changes * b"+OK\r\n".len()];
        self.stream.read_exact(&mut replies).expect("a reply to each change");
        assert!(replies.chunks(5).all(|reply| reply == b"+OK\r\n"), "every change was made");
    }
}

fn is_rising<T: PartialOrd>(all: &[T]) -> bool {
    all.windows(2).all(|pair| pair[0] < pair[1])
}

#[test]
fn publishes_of_a_client_are_stored_in_their_order_or_refused_while_a_server_refuses_at_times() {
    let world = world(1);
    let (speaker, receiver) = world.two_shards();
    let topic = TopicName::room("all:order");
    receiver.join_and_receive(&topic, 5);
    receiver.recover_and_receive(&topic, 5, None);
    let mut client = Client::new(speaker, topic.clone());
    let mut refusals = Refusals::new(redis(&world));
    let mut delivered = Vec::new();
    for number in 1..=PUBLISHES {
        match number % (ACCEPTED + REFUSED) {
            ACCEPTED => refusals.set(true),
            0 => refusals.set(false),
            _ => {}
        }
        client.send(number);
        delivered.extend(receiver.try_receive().map(number_of));
    }
    refusals.set(false);
    refusals.end();
    client.wait_until_all_ended(PUBLISHES);
    let errors = redis(&world).command(&["INFO", "errorstats"]);
    assert!(errors.contains("NOREPLICAS"), "the server has refused: {errors}");

    let stored = stored(redis(&world), &topic);
    assert!(is_rising(&stored), "stored in another order");
    client.accepted.sort_unstable_by_key(|(number, _)| *number);
    let (accepted, places): (Vec<u64>, Vec<u64>) =
        client.accepted.iter().map(|(number, at)| (*number, at.offset)).unzip();
    assert_eq!(stored, accepted, "what is stored is what was accepted");
    assert!(is_rising(&places));
    assert!(stored.len() as u64 > PUBLISHES / 2, "few are too late: {}", stored.len());
    let failed = client.failed.len() as u64;
    wait_until("those that failed are counted", || {
        world.nodes[0].counters().publishes_overtaken >= failed
    });
    delivered.extend((delivered.len()..stored.len()).map(|_| number_of(receiver.receive())));
    assert_eq!(delivered, stored, "and so is what members receive");
}

/// The node of a message's client, and its number.
fn read_message(received: &Received) -> (u64, u64) {
    match received {
        Received::Frame { to: 5, json, .. } => {
            serde_json::from_str(&payload_of(json)).expect("two numbers")
        }
        other => panic!("no message: {other:?}"),
    }
}

fn number_of(received: Received) -> u64 {
    read_message(&received).1
}

/// Keys vanish while two nodes publish to one room without waiting for replies. What is accepted
/// reaches the members of both in the order of its client, or they receive `lost` in its place.
#[test]
fn publishes_of_two_nodes_are_delivered_in_order_or_reported_as_lost_when_everything_is_flushed() {
    let world = world(2);
    let topic = TopicName::room("all:flushed");
    let members = [0, 1].map(|node: usize| &world.nodes[node].shards[1]);
    for member in members {
        member.join_and_receive(&topic, 5);
        member.recover_and_receive(&topic, 5, None);
    }
    let mut clients =
        [0, 1].map(|at: usize| Client::new(&world.nodes[at].shards[0], topic.clone()));
    let mut received = [Vec::new(), Vec::new()];
    for number in 1..=FLUSHED_PUBLISHES {
        for client in &mut clients {
            client.send(number);
        }
        if number % FLUSHED_EVERY == 0 {
            wait_until("Redis is empty", || redis(&world).try_command(&["FLUSHALL"]).is_some());
        }
        take_received(&members, &mut received);
    }
    let mut failed = BTreeSet::new();
    for (client, node) in clients.iter_mut().zip(&world.nodes) {
        client.wait_until_all_ended(FLUSHED_PUBLISHES);
        // A host that is slow for longer than a repair window may let some be overtaken.
        let failed_count = client.failed.len() as u64;
        wait_until("those that failed are counted", || {
            node.counters().publishes_overtaken >= failed_count
        });
        // After these, a member has received everything, or its loss.
        client.send(FLUSHED_PUBLISHES + 1);
        client.wait_until_all_ended(FLUSHED_PUBLISHES + 1);
        client.failed.iter().for_each(|number| _ = failed.insert((client.shard.node.0, *number)));
    }
    let is_last =
        |item: &Item| matches!(item, Item::Message(_, number) if *number > FLUSHED_PUBLISHES);
    wait_until("the last messages arrive", || {
        take_received(&members, &mut received);
        received.iter().all(|all| all.iter().filter(|item| is_last(item)).count() == 2)
    });
    for all in &received {
        check_complete(all, &failed);
    }
}

const FLUSHED_PUBLISHES: u64 = 6_000;
const FLUSHED_EVERY: u64 = 1_100;

/// What a member receives.
#[derive(Clone, Copy, Debug)]
enum Item {
    /// The node of its client, and its number.
    Message(u64, u64),
    Lost,
}

fn take_received(members: &[&Shard; 2], received: &mut [Vec<Item>; 2]) {
    for (member, received) in members.iter().zip(received) {
        while let Some(item) = member.try_receive() {
            received.push(match item {
                Received::Lost { to: 5, .. } => Item::Lost,
                message => {
                    let (node, number) = read_message(&message);
                    Item::Message(node, number)
                }
            });
        }
    }
}

/// Every client's numbers rise by one, except where something has failed or was reported as lost.
fn check_complete(all: &[Item], failed: &BTreeSet<(u64, u64)>) {
    let (mut last, mut may_miss) = ([0; 2], [false; 2]);
    for item in all {
        match *item {
            Item::Lost => may_miss = [true; 2],
            Item::Message(node, number) => {
                let at = node as usize - 1;
                let has_failed = |number| failed.contains(&(node, number));
                let is_next =
                    number > last[at] && (may_miss[at] || (last[at] + 1..number).all(has_failed));
                assert!(is_next, "{number} of node {node} after {}", last[at]);
                (last[at], may_miss[at]) = (number, false);
            }
        }
    }
}
