//! What a node says of its Redis: the numbers that Redis itself reports, what is unsafe about its
//! settings, and nothing where Redis may not be asked; and that none of it ever costs readiness.
//! Of several servers each is told by itself, and who says where they are is watched too.

use crate::cluster::Cluster;
use crate::guarded::{Guarded, USER};
use crate::node::Node;
use crate::redis::{Redis, wait_until};
use crate::sentinel::{Care, Sentinel};
use serde_json::Value;

/// A ready node that asks ten times a second.
fn watching(redis: &Redis, url: &str, more: &[&str]) -> Node {
    assert!(url.contains(&redis.port.to_string()));
    let usual = ["--shards", "1", "--redis-monitor-interval-ms", "100", "--backplane", url];
    Node::start_ready(&[&usual, more].concat())
}

/// What there is of all of Redis.
fn all_stats(node: &Node) -> Value {
    node.get("/v1/stats").json()["redis"].take()
}

/// What there is of its only server.
fn stats(node: &Node) -> Value {
    let mut all = all_stats(node);
    assert_eq!(all["servers"].as_array().map(Vec::len), Some(1), "{all}");
    all["servers"][0].take()
}

/// A node that asks ten times a second, for any deployment.
fn watching_all(url: &str) -> Node {
    let interval = ["--redis-monitor-interval-ms", "100"];
    Node::start_ready(&[&["--shards", "1", "--backplane", url][..], &interval].concat())
}

/// A number of one server; `None`: there is none.
fn of_server(node: &Node, name: &str, port: u16) -> Option<u64> {
    let label = format!("server=\"127.0.0.1:{port}\"");
    let samples = node.samples(&format!("campanile_redis_{name}"));
    samples.iter().find(|(labels, _)| labels.contains(&label)).map(|(_, value)| *value)
}

fn wait_for_server(node: &Node, name: &str, port: u16, value: Option<u64>) {
    wait_until(&format!("{name} of {port} is {value:?}"), || of_server(node, name, port) == value);
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
    wait_for_number(&node, "campanile_redis_own_output_bytes", true);
    let is_near = |ours: u64, theirs: u64| ours.abs_diff(theirs) < 2_000_000;
    wait_until("the ballast shows", || {
        node.samples("campanile_redis_memory_used_bytes").first().is_some_and(|(_, ours)| {
            *ours > 40_000_000 && is_near(*ours, info(&redis, "memory", "used_memory"))
        })
    });
    assert_eq!(node.metric("campanile_redis_monitor_up"), 1);
    assert_eq!(node.metric("campanile_redis_replicas"), 0);
    assert_eq!(node.metric("campanile_redis_rejected_connections_total"), 0);
    assert_eq!(node.metric_where("campanile_redis_errors_total", "kind=\"OOM\""), 0);
    let calls = node.samples("campanile_redis_call_seconds_total");
    assert_eq!(calls.len(), 4, "{calls:?}");
    assert!(of_server(&node, "memory_used_bytes", redis.port).is_some(), "it says where");
    wait_for_server(&node, "up", redis.port, Some(1));
    wait_for_server(&node, "subscriptions", redis.port, Some(1)); // everybody
    assert!(of_server(&node, "canary_rtt_seconds", redis.port).is_some());
    assert!(of_server(&node, "canary_age_seconds", redis.port).is_some_and(|age| age < 3));
    assert_eq!(all_stats(&node)["deployment"], "fixed");
    assert_eq!(all_stats(&node)["sentinels"], Value::Null);
    let stats = stats(&node);
    assert_eq!(stats["monitor_up"], true);
    assert_eq!(stats["replication"]["replicas"], 0);
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
    assert_eq!(stats(&deaf)["up"], true, "what we count is known");
    let alone = Node::start_ready(&["--shards", "1"]);
    assert_eq!(alone.get("/v1/stats").json()["redis"], Value::Null);
    assert!(alone.samples("campanile_redis_monitor_up").is_empty());
    assert_eq!(alone.metric("campanile_ready"), 1);
}

#[test]
fn of_several_servers_each_has_its_numbers_and_the_one_that_is_down_is_named_without_a_password() {
    let guarded = Guarded::start("monitor");
    let mut other = Redis::start();
    let rules = "ACL SETUSER bell on >s3cret/pass ~* &* +@all";
    let words: Vec<&str> = rules.split(' ').collect();
    assert_eq!(other.command(&words), "OK");
    let (first, second) = (guarded.redis.port, other.port);
    let node = watching_all(&format!("redis://{USER}@127.0.0.1:{first},127.0.0.1:{second}"));
    for port in [first, second] {
        wait_for_server(&node, "monitor_up", port, Some(1));
        wait_for_server(&node, "up", port, Some(1));
        assert!(of_server(&node, "memory_used_bytes", port).is_some());
    }
    assert_eq!(all_stats(&node)["servers"].as_array().map(Vec::len), Some(2));
    other.kill();
    wait_for_server(&node, "up", second, Some(0));
    wait_for_server(&node, "memory_used_bytes", second, None);
    let not_ready = node.get("/readyz");
    assert_eq!(not_ready.status, 503);
    let down = not_ready.json()["down"].take();
    assert_eq!(down.as_array().map(Vec::len), Some(1), "{down}");
    assert_eq!(down[0]["server"], format!("127.0.0.1:{second}"));
    assert!(down[0]["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{down}");
    wait_until("the reason is that nothing listens there", || {
        node.get("/readyz").json()["down"][0]["reason"] == "refused"
    });
    let counted = "campanile_redis_connection_failures_total";
    wait_until("it is counted under the same name", || {
        node.metric_where(counted, "reason=\"refused\"") > 0
    });
    assert_eq!(of_server(&node, "up", first), Some(1), "the other one is as well as it was");
    assert!(of_server(&node, "memory_used_bytes", first).is_some());
    assert_eq!(of_server(&node, "reconnects_total", second), Some(1));
    assert_eq!(of_server(&node, "reconnects_total", first), Some(0));
    assert_eq!(node.metric("campanile_backplane_reconnects_total"), 1);
    let said = ["/readyz", "/metrics", "/v1/stats"].map(|path| node.get(path).body).concat();
    for shown in [said, node.logged()] {
        assert!(!shown.contains("s3cret"), "a password is shown: {shown}");
    }
    other.restart();
    assert_eq!(other.command(&words), "OK");
    wait_until("it is ready again", || node.is_ready());
    wait_for_server(&node, "up", second, Some(1));
}

#[test]
fn a_cluster_is_told_master_by_master_and_a_failover_is_counted() {
    let cluster = Cluster::start(0);
    let node = watching_all(&cluster.url());
    let masters = cluster.masters();
    let ports: Vec<u16> = masters.iter().map(|at| cluster.servers[*at].port).collect();
    for port in &ports {
        wait_for_server(&node, "monitor_up", *port, Some(1));
        wait_for_server(&node, "cluster_enabled", *port, Some(1));
    }
    assert_eq!(node.metric("campanile_redis_cluster_masters"), 3);
    assert_eq!(node.metric("campanile_redis_cluster_map_failed"), 0);
    assert_eq!(node.metric("campanile_backplane_reassignments_total"), 0);
    let told = all_stats(&node);
    assert_eq!((&told["deployment"], &told["cluster"]["masters"]), (&"cluster".into(), &3.into()));
    for server in told["servers"].as_array().expect("three masters") {
        assert!(abouts(server, "warnings").contains(&"min-replicas-to-write".into()), "{server}");
        let notes = abouts(server, "notes");
        assert!(notes.contains(&"cluster-allow-pubsubshard-when-down".into()), "{server}");
        assert!(notes.contains(&"cluster-require-full-coverage".into()), "{server}");
        let named = format!("server=\"{}\"", server["server"].as_str().expect("an address"));
        let log = node.logged();
        let is_named =
            |line: &str| line.contains("min-replicas-to-write 1") && line.contains(&named);
        assert_eq!(log.lines().filter(|line| is_named(line)).count(), 1, "{named}: {log}");
    }
    let replica = cluster.replica_of(masters[0]).expect("each master has one");
    wait_until("a replica takes over", || cluster.failover(masters[0]));
    let heir = cluster.servers[replica].port;
    wait_for_server(&node, "up", heir, Some(1));
    wait_until("it is ready", || node.is_ready());
    assert_eq!(of_server(&node, "up", ports[0]), None, "it is no master any more");
    assert!(node.metric("campanile_backplane_reassignments_total") >= 1);
    let moved = node.metric("campanile_backplane_partitions_reassigned_total");
    assert!((200..500).contains(&moved), "a third of 1024, not {moved}");
    assert_eq!(node.metric("campanile_backplane_reassignment_wait_seconds"), 0);
    assert_eq!(all_stats(&node)["reassignments"]["partitions"], moved);
}

#[test]
fn sentinels_that_answer_are_counted_and_a_switch_takes_the_numbers_to_the_new_master() {
    let mut all = Sentinel::start(Care::default());
    let node = watching_all(&all.url());
    let master = all.servers[all.master().expect("there is one")].port;
    wait_for_server(&node, "up", master, Some(1));
    wait_until("all three have answered", || {
        node.metric("campanile_redis_sentinels_answering") == 3
    });
    assert_eq!(node.metric("campanile_redis_sentinels_configured"), 3);
    let told = all_stats(&node);
    assert_eq!(told["sentinels"]["unreachable"], Value::Array(vec![]));
    assert_eq!(told["servers"][0]["name"], "mymaster");
    wait_until("a replica is made master", || all.failover());
    wait_until("it is followed", || {
        let now = all.master().map(|at| all.servers[at].port);
        now.is_some_and(|now| now != master && of_server(&node, "up", now) == Some(1))
    });
    assert_eq!(of_server(&node, "up", master), None, "it is somewhere else now");
    assert!(node.metric("campanile_backplane_failovers_total") >= 1);
    all.sentinels[2].kill();
    wait_until("one is missed", || node.metric("campanile_redis_sentinels_answering") == 2);
    let silent = all_stats(&node)["sentinels"]["unreachable"].take();
    assert_eq!(silent[0]["sentinel"], format!("127.0.0.1:{}", all.sentinels[2].port));
    assert!(node.is_ready(), "two are enough");
}
