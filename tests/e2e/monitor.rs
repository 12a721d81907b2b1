//! What a node says of its Redis: the numbers that Redis itself reports, what is unsafe about its
//! settings, and nothing where Redis may not be asked; and that none of it ever costs readiness.

use crate::node::Node;
use crate::redis::{Redis, wait_until};
use serde_json::Value;

/// A ready node that asks ten times a second.
fn watching(redis: &Redis, url: &str, more: &[&str]) -> Node {
    assert!(url.contains(&redis.port.to_string()));
    let usual = ["--shards", "1", "--redis-monitor-interval-ms", "100", "--backplane", url];
    Node::start_ready(&[&usual, more].concat())
}

fn stats(node: &Node) -> Value {
    node.get("/v1/stats").json()["redis"].take()
}

/// What `INFO` says, on a connection of the test's own.
fn info(redis: &Redis, section: &str, key: &str) -> u64 {
    let text = redis.command(&["INFO", section]);
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    value.expect("it says so").trim().parse().expect("a number")
}

fn abouts(stats: &Value, which: &str) -> Vec<String> {
    let list = stats[which].as_array().unwrap_or_else(|| panic!("no {which}: {stats}"));
    list.iter().map(|told| told["about"].as_str().expect("a name").to_owned()).collect()
}

/// Waits until a number has this value. Meanwhile there may be none of its name.
fn wait_for(node: &Node, name: &str, value: u64) {
    wait_until(&format!("{name} is {value}"), || {
        node.samples(name).first().is_some_and(|(_, now)| *now == value)
    });
}

/// Waits until there is a number of this name, or none any more.
fn wait_for_number(node: &Node, name: &str, there: bool) {
    let state = format!("{name} is {}", if there { "there" } else { "gone" });
    wait_until(&state, || node.samples(name).is_empty() != there);
}

#[test]
fn metrics_show_the_memory_that_redis_reports() {
    let redis = Redis::start();
    let node = watching(&redis, &redis.url(), &[]);
    redis.command(&["SET", "ballast", &"x".repeat(40_000_000)]);
    wait_for_number(&node, "campanile_redis_own_memory_bytes", true);
    let is_near = |ours: u64, theirs: u64| ours.abs_diff(theirs) < 2_000_000;
    wait_until("the ballast shows", || {
        node.samples("campanile_redis_memory_used_bytes").first().is_some_and(|(_, ours)| {
            *ours > 40_000_000 && is_near(*ours, info(&redis, "memory", "used_memory"))
        })
    });
    assert_eq!(node.metric("campanile_redis_monitor_up"), 1);
    assert_eq!(node.metric("campanile_redis_master"), 1);
    assert_eq!(node.metric("campanile_redis_clients_max"), info(&redis, "clients", "maxclients"));
    assert_eq!(node.metric_where("campanile_redis_errors_total", "kind=\"OOM\""), 0);
    assert!(node.metric_where("campanile_redis_calls_total", "command=\"publish\"") > 0);
    assert!(node.metric("campanile_redis_own_memory_bytes") > 0, "our connection was found");
    let stats = stats(&node);
    assert_eq!(stats["monitor_up"], true);
    assert_eq!(stats["replication"]["role"], "master");
    assert!(stats["version"].as_str().expect("it says so").contains('.'), "{stats}");
    assert_eq!(stats["replication"]["lag_bytes"], Value::Null, "there is no replica");
}

#[test]
fn an_unsafe_server_is_warned_of_once_in_the_log_and_for_as_long_as_it_is_in_the_stats() {
    let redis = Redis::start_with(&["--maxmemory-policy", "allkeys-lru"]);
    let node = watching(&redis, &redis.url(), &[]);
    wait_until("the warning is there", || {
        abouts(&stats(&node), "warnings").contains(&"maxmemory-policy".to_owned())
    });
    let told = stats(&node);
    assert_eq!(abouts(&told, "warnings"), ["client-output-buffer-limit", "maxmemory-policy"]);
    assert_eq!(abouts(&told, "notes"), ["maxmemory"]);
    assert!(told["warnings"][1]["write"].to_string().contains("CONFIG SET maxmemory-policy"));
    wait_for(&node, "campanile_redis_warnings", 2);
    redis.command(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
    wait_for(&node, "campanile_redis_warnings", 1);
    assert_eq!(abouts(&stats(&node), "warnings"), ["client-output-buffer-limit"]);
    let log = node.logged();
    let lines = |text: &str| log.lines().filter(|line| line.contains(text)).count();
    assert_eq!(lines("CONFIG SET maxmemory-policy noeviction"), 1, "{log}");
    assert_eq!(lines("CONFIG SET client-output-buffer-limit"), 1, "{log}");
    assert_eq!(lines("CONFIG SET maxmemory "), 1, "{log}");
}

#[test]
fn a_master_that_would_go_on_without_its_replicas_is_warned_of_and_their_lag_shows() {
    let redis = Redis::start();
    let node = watching(&redis, &redis.url(), &[]);
    wait_for(&node, "campanile_redis_replicas", 0);
    let replica = Redis::start();
    replica.command(&["REPLICAOF", "127.0.0.1", &redis.port.to_string()]);
    wait_for(&node, "campanile_redis_replicas_online", 1);
    let lag = |node: &Node| Some(node.samples("campanile_redis_replica_lag_bytes").first()?.1);
    let told = stats(&node);
    assert!(abouts(&told, "warnings").contains(&"min-replicas-to-write".to_owned()), "{told}");
    // One that stands still falls behind, by whatever is written meanwhile.
    replica.freeze();
    redis.command(&["SET", "ballast", &"x".repeat(3_000_000)]);
    wait_until("the lag shows", || lag(&node).is_some_and(|bytes| bytes >= 3_000_000));
    assert!(node.is_ready());
    replica.thaw();
    wait_until("it has caught up", || lag(&node).is_some_and(|bytes| bytes < 3_000_000));
}

#[test]
fn a_server_that_refuses_the_questions_loses_only_the_numbers() {
    let redis = Redis::start();
    let may = ["+@all", "-info", "-config", "-client|list"];
    let rules = [&["ACL", "SETUSER", "shy", "on", ">secret", "~*", "&*"][..], &may].concat();
    assert_eq!(redis.command(&rules), "OK");
    let url = format!("redis://shy:secret@127.0.0.1:{}", redis.port);
    let node = watching(&redis, &url, &[]);
    let refusals = |log: &str| log.matches("does not answer all questions").count();
    wait_until("all three refusals are logged", || refusals(&node.logged()) == 3);
    wait_for(&node, "campanile_redis_monitor_up", 0);
    assert!(node.samples("campanile_redis_memory_used_bytes").is_empty(), "it is not known");
    let told = stats(&node);
    assert_eq!((&told["monitor_up"], &told["memory"]["used_bytes"]), (&false.into(), &Value::Null));
    assert!(abouts(&told, "warnings").is_empty(), "nothing is known, so nothing is judged");
    // Readiness is the canary's business, and the canary flies.
    let flown = info(&redis, "stats", "total_commands_processed");
    wait_until("more canaries have flown", || {
        info(&redis, "stats", "total_commands_processed") > flown + 10
    });
    assert!(node.is_ready());
    assert_eq!(node.metric("campanile_redis_reconnects_total"), 0);
    assert_eq!(refusals(&node.logged()), 3, "each is said once");
}

#[test]
fn a_server_that_stands_still_for_a_while_loses_its_numbers_and_not_the_node() {
    let redis = Redis::start();
    let patient = ["--redis-timeout-ms", "60000", "--redis-canary-timeout-ms", "60000"];
    let node = watching(&redis, &redis.url(), &patient);
    wait_for(&node, "campanile_redis_monitor_up", 1);
    redis.command(&["CLIENT", "PAUSE", "6000", "ALL"]);
    wait_for(&node, "campanile_redis_monitor_up", 0);
    assert!(node.is_ready());
    assert!(node.samples("campanile_redis_memory_used_bytes").is_empty(), "old numbers are none");
    wait_for(&node, "campanile_redis_monitor_up", 1);
    assert!(node.is_ready());
    assert_eq!(node.metric("campanile_redis_reconnects_total"), 0);
    assert!(node.metric("campanile_redis_memory_used_bytes") > 0);
}

#[test]
fn a_lost_server_has_no_numbers_and_a_node_that_asks_nothing_shows_none() {
    let mut redis = Redis::start();
    let node = watching(&redis, &redis.url(), &[]);
    let url = redis.url();
    let deaf = ["--shards", "1", "--redis-monitor-interval-ms", "0", "--backplane", &url];
    let deaf = Node::start_ready(&deaf);
    wait_for(&node, "campanile_redis_monitor_up", 1);
    redis.kill();
    wait_for(&node, "campanile_redis_monitor_up", 0);
    assert!(node.samples("campanile_redis_memory_used_bytes").is_empty());
    redis.restart();
    wait_for(&node, "campanile_redis_monitor_up", 1);
    wait_until("the other node is ready again", || deaf.is_ready());
    assert!(deaf.samples("campanile_redis_monitor_up").is_empty());
    assert_eq!(stats(&deaf)["monitor_up"], Value::Null);
    let alone = Node::start_ready(&["--shards", "1"]);
    assert_eq!(alone.get("/v1/stats").json()["redis"], Value::Null);
    assert!(alone.samples("campanile_redis_monitor_up").is_empty());
    assert_eq!(alone.metric("campanile_ready"), 1);
}
