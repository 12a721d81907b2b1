//! Revoked tokens: what one node is told, all know, those that were down too, until it is over.

use crate::redis::{Redis, wait_until};
use crate::world::{Build, Node, World};
use campanile::link::{ReplyTo, RevokeOutcome, RevokeRequest, Uplink};
use campanile::policy::limits::Limits;
use campanile::policy::revocations::{Revocation, RevokedSubject, TokenMark};
use std::sync::mpsc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("it is past 1970").as_secs()
}

fn revoke_until(node: &Node, subject: &str, issued_before_s: u64, until_s: u64) -> RevokeOutcome {
    let subject = RevokedSubject::parse(subject).expect("a subject");
    let (tell, told) = mpsc::channel();
    let reply = ReplyTo::Call(Box::new(move |outcome| tell.send(outcome).expect("it waits")));
    let revocation = Revocation { subject, issued_before_s, until_s };
    let order = Uplink::Revoke(Box::new(RevokeRequest { revocation, reply }));
    assert!(node.ops.try_publish(order).is_ok());
    told.recv_timeout(Duration::from_secs(20)).expect("every order is answered")
}

fn revoke(node: &Node, subject: &str, issued_before_s: u64) -> RevokeOutcome {
    revoke_until(node, subject, issued_before_s, now_s() + 3600)
}

fn refuses(node: &Node, user: &str, id: &str, issued_s: u64) -> bool {
    let mark = TokenMark::new(Some(id), Some(issued_s as f64));
    node.revocations.get().refuse(Some(user), mark)
}

/// Waits until a token is refused on each of these nodes.
fn wait_for_all(nodes: &[Node], user: &str, id: &str, issued_s: u64) {
    wait_until("each node refuses it", || {
        nodes.iter().all(|node| refuses(node, user, id, issued_s))
    });
}

/// The first and the last node; without Redis there is only one.
fn ends(world: &World) -> (&Node, &Node) {
    (&world.nodes[0], world.nodes.last().expect("a world has a node"))
}

pub fn a_token_that_is_revoked_on_one_node_is_refused_on_all(world: World) {
    let (one, two) = ends(&world);
    assert_eq!(revoke(one, "u:ann", 100), RevokeOutcome::Stored);
    assert_eq!(revoke(two, "t:lost", 0), RevokeOutcome::Stored);
    wait_for_all(&world.nodes, "ann", "a", 99);
    wait_for_all(&world.nodes, "bob", "lost", 5000);
    for node in &world.nodes {
        assert!(!refuses(node, "ann", "a", 100) && !refuses(node, "bob", "b", 0));
    }
    // A later moment wins, whoever says an earlier one afterwards.
    for (node, before_s) in [(one, 300), (two, 200)] {
        assert_eq!(revoke(node, "*", before_s), RevokeOutcome::Stored);
    }
    wait_for_all(&world.nodes, "bob", "b", 299);
    wait_until("all is counted", || world.nodes.iter().all(|it| it.counters().revocations == 3));
    assert!(world.nodes.iter().all(|node| !refuses(node, "bob", "b", 300)));
}

pub fn beyond_the_limit_nothing_is_revoked_until_another_is_over(world: World) {
    let (one, two) = ends(&world);
    assert_eq!(revoke_until(one, "t:short", 0, now_s() + 2), RevokeOutcome::Stored);
    assert_eq!(revoke(two, "u:ann", 1), RevokeOutcome::Stored);
    wait_for_all(&world.nodes[..1], "ann", "a", 0);
    assert_eq!(revoke(one, "u:bob", 1), RevokeOutcome::Full);
    wait_until("it is counted", || one.counters().revocations_refused == 1);
    assert_eq!(revoke(one, "u:ann", 2), RevokeOutcome::Stored, "what is known may change");
    wait_until("another is over", || revoke(one, "u:bob", 1) == RevokeOutcome::Stored);
    wait_for_all(&world.nodes[..1], "bob", "b", 0);
    assert!(!refuses(one, "eve", "short", 5));
}

/// So many revocations, more than one page of them.
const MANY: usize = 700;

#[test]
fn a_node_that_starts_later_knows_all_before_it_is_ready() {
    let redis = Redis::start();
    let world = World::over(Build { nodes: 1, ..Build::usual() }, &redis.url(), "test");
    for number in 0..MANY {
        assert_eq!(revoke(&world.nodes[0], &format!("t:{number}"), 0), RevokeOutcome::Stored);
    }
    let later = World::over(Build { nodes: 1, ..Build::usual() }, &redis.url(), "test");
    wait_until("its shards are shown them", || refuses(&later.nodes[0], "ann", "0", 9));
    let all = (0..MANY).all(|number| refuses(&later.nodes[0], "ann", &number.to_string(), 9));
    assert!(all, "ready is who has read the last page too");
}

#[test]
fn what_is_revoked_while_a_node_has_no_redis_is_known_when_it_is_back_and_keys_that_vanish_are_put_back()
 {
    let mut redis = Redis::start();
    let build = Build { nodes: 2, canary_timeout_ms: 60_000, timeout_ms: 30_000, ..Build::usual() };
    let world = World::over(build, &redis.url(), "test");
    let [one, two] = &world.nodes[..] else { panic!("two nodes") };
    assert_eq!(revoke(one, "u:ann", 100), RevokeOutcome::Stored);
    wait_for_all(&world.nodes, "ann", "a", 99);
    redis.command(&["FLUSHALL"]);
    assert_eq!(revoke(two, "u:bob", 100), RevokeOutcome::Stored);
    wait_for_all(&world.nodes, "bob", "b", 99);
    let later = World::over(Build { nodes: 1, ..build }, &redis.url(), "test");
    wait_until("what was flushed is back", || {
        ["ann", "bob"].iter().all(|user| refuses(&later.nodes[0], user, "x", 99))
    });
    redis.kill();
    world.wait_until_up(false);
    assert_eq!(revoke(one, "u:eve", 100), RevokeOutcome::Unavailable);
    assert!(refuses(one, "ann", "a", 99), "what is known holds without Redis");
    // Empty: nothing is saved.
    redis.restart();
    world.wait_until_up(true);
    assert_eq!(revoke(two, "t:x", 0), RevokeOutcome::Stored);
    let last = World::over(Build { nodes: 1, ..build }, &redis.url(), "test");
    wait_until("nodes have put back what they know", || {
        refuses(&last.nodes[0], "ann", "a", 99) && refuses(&last.nodes[0], "zoe", "x", 99)
    });
}

#[test]
fn values_that_no_node_has_written_are_skipped_and_a_key_of_another_kind_is_named() {
    let redis = Redis::start();
    let names = campanile::backplane::redis::names::Names::new("test", campanile::ids::NodeId(1));
    let [hash, changes, _] = names.revocation_keys();
    redis.command(&["HSET", &hash, "u:ann", "soon", "?", "1 2"]);
    redis.command(&["ZADD", &changes, "5", "u:ann", "6", "?"]);
    let world = World::over(Build { nodes: 1, ..Build::usual() }, &redis.url(), "test");
    let node = &world.nodes[0];
    wait_until("both are counted", || node.counters().revocations_unreadable >= 2);
    assert_eq!(revoke(node, "u:ann", 100), RevokeOutcome::Stored);
    wait_for_all(&world.nodes, "ann", "a", 99);
    redis.command(&["DEL", &hash, &changes]);
    redis.command(&["SET", &changes, "x"]);
    assert_eq!(revoke(node, "u:bob", 100), RevokeOutcome::Unavailable);
    let before = node.counters().revocations_unreadable;
    wait_until("it is counted", || node.counters().revocations_unreadable > before);
    redis.command(&["DEL", &changes]);
    wait_until("it is corrected", || revoke(node, "u:bob", 100) == RevokeOutcome::Stored);
    assert!(refuses(node, "ann", "a", 99));
}

/// Two fit.
pub fn few() -> Build {
    Build { limits: Limits { revocations_max: 2, ..Limits::PRODUCTION }, ..Build::usual() }
}
