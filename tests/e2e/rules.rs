//! The alert rules in `tuning/` speak of numbers that there are, and say what to do.
//!
//! A rule on a metric that nobody prints never fires, and nobody notices.

use crate::node::Node;
use crate::redis::{Redis, free_port, wait_until};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::process::{Command, Stdio};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rules {
    groups: Vec<Group>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Group {
    name: String,
    rules: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    alert: String,
    expr: String,
    #[serde(default, rename = "for")]
    hold: Option<String>,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
}

/// A metric in an expression, and what its labels have to match.
#[derive(Debug, PartialEq, Eq)]
struct Named {
    metric: String,
    labels: Vec<(String, Vec<String>)>,
}

/// Every `campanile_…{key="value", key=~"this|that"}` of an expression.
fn named(expr: &str) -> Vec<Named> {
    let starts = expr.match_indices("campanile_").map(|(at, _)| &expr[at..]);
    starts
        .map(|rest| {
            let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            let labels = rest[end..].strip_prefix('{').and_then(|rest| rest.split_once('}'));
            let labels = labels.map_or("", |(labels, _)| labels);
            let labels = labels.split(',').filter(|matcher| !matcher.is_empty()).map(|matcher| {
                let (key, value) = matcher.split_once('=').expect("a matcher");
                let value = value.trim_start_matches('~').trim_matches('"');
                (key.to_owned(), value.split('|').map(str::to_owned).collect())
            });
            Named { metric: rest[..end].to_owned(), labels: labels.collect() }
        })
        .collect()
}

/// What is named and not printed.
fn missing(named: &Named, printed: &str) -> Vec<String> {
    let samples: Vec<&str> = printed
        .lines()
        .filter(|line| {
            let rest = line.strip_prefix(&named.metric);
            rest.is_some_and(|rest| rest.starts_with([' ', '{']))
        })
        .collect();
    if samples.is_empty() {
        return vec![named.metric.clone()];
    }
    let labels = named
        .labels
        .iter()
        .flat_map(|(key, values)| values.iter().map(move |value| format!("{key}=\"{value}\"")));
    let unknown = labels.filter(|label| !samples.iter().any(|sample| sample.contains(label)));
    unknown.map(|label| format!("{}{{{label}}}", named.metric)).collect()
}

/// Whether there is a number of this name for each Redis server.
fn one_server(metric: &str) -> bool {
    let of_all = ["sentinels_", "cluster_m"].map(|start| format!("campanile_redis_{start}"));
    metric.starts_with("campanile_redis_") && !of_all.iter().any(|of| metric.starts_with(of))
}

const RULES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tuning/prometheus-rules.yml");

fn rules() -> Rules {
    let text = std::fs::read_to_string(RULES).expect("there are rules");
    serde_yaml_ng::from_str(&text).unwrap_or_else(|error| panic!("{RULES}: {error}"))
}

/// What Prometheus itself has to say about its input: whether it is content, and its words.
fn promtool(args: &[&str], input: &str) -> (bool, String) {
    let piped = || Stdio::piped();
    let mut tool = Command::new("promtool")
        .args(args)
        .stdin(piped())
        .stdout(piped())
        .stderr(piped())
        .spawn()
        .expect("promtool (Debian: prometheus) is installed");
    let mut stdin = tool.stdin.take().expect("it is piped");
    stdin.write_all(input.as_bytes()).expect("it reads all of its input");
    drop(stdin);
    let output = tool.wait_with_output().expect("it ends");
    let words = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(words).expect("it writes text"))
}

#[test]
fn metrics_of_a_node_with_and_without_redis_please_promtool() {
    let alone = Node::start_ready(&["--shards", "2"]);
    let redis = Redis::start();
    let url = redis.url();
    let node = Node::start_ready(&["--backplane", &url, "--redis-monitor-interval-ms", "100"]);
    wait_until("Redis has been asked", || {
        node.get("/metrics").body.contains("\ncampanile_redis_cpu_seconds_total{")
    });
    for node in [&alone, &node] {
        let printed = node.get("/metrics").body;
        assert_eq!(promtool(&["check", "metrics"], &printed), (true, String::new()));
    }
    // It does complain when there is a reason.
    let wrong = "# HELP took_ms Time\n# TYPE took_ms counter\ntook_ms 1\n";
    let (is_content, words) = promtool(&["check", "metrics"], wrong);
    assert!(!is_content && words.contains("_total"), "{words}");
}

#[test]
fn prometheus_loads_every_rule() {
    let (is_content, words) = promtool(&["check", "rules", RULES], "");
    assert!(is_content, "{words}");
}

#[test]
fn every_rule_speaks_of_numbers_that_there_are() {
    let redis = Redis::start();
    let replica = Redis::start();
    replica.command(&["REPLICAOF", "127.0.0.1", &redis.port.to_string()]);
    let url = redis.url();
    let node = Node::start_ready(&["--backplane", &url, "--redis-monitor-interval-ms", "100"]);
    let mut printed = String::new();
    wait_until("the node knows all there is to know", || {
        printed = node.get("/metrics").body;
        ["replica_lag_bytes", "replica_lag_seconds", "own_output_bytes"]
            .iter()
            .all(|name| printed.contains(&format!("\ncampanile_redis_{name}{{")))
    });
    // What is said of sentinels and a Cluster is said also while nobody answers.
    let nowhere = format!("127.0.0.1:{}", free_port());
    for (url, number) in [
        (format!("redis+sentinel://{nowhere}/mymaster"), "redis_sentinels_answering 0"),
        (format!("redis+cluster://{nowhere}"), "redis_cluster_map_failed 1"),
    ] {
        let node = Node::start(&["--shards", "1", "--backplane", &url]);
        let number = format!("\ncampanile_{number}\n");
        wait_until(&number, || node.get("/metrics").body.contains(&number));
        printed += &node.get("/metrics").body;
    }
    for group in rules().groups {
        for rule in group.rules {
            let named = named(&rule.expr);
            assert!(!named.is_empty(), "{} is about nothing of ours", rule.alert);
            for named in named {
                let missing = missing(&named, &printed);
                assert!(missing.is_empty(), "{}: {missing:?} is nowhere in /metrics", rule.alert);
            }
        }
    }
    // What this test is made of can complain.
    let wrong = named(
        r#"rate(campanile_no_such_total[5m]) > campanile_messages_dropped_total{reason=~"shard_full|moon"}"#,
    );
    let complaints: Vec<String> = wrong.iter().flat_map(|named| missing(named, &printed)).collect();
    assert_eq!(
        complaints,
        ["campanile_no_such_total", r#"campanile_messages_dropped_total{reason="moon"}"#]
    );
}

#[test]
fn every_rule_has_a_name_of_its_own_and_says_what_to_do() {
    let mut names = BTreeSet::new();
    for group in rules().groups {
        assert!(!group.rules.is_empty(), "{} is empty", group.name);
        assert!(names.insert(group.name));
        for rule in group.rules {
            let Rule { alert, expr, hold, labels, annotations } = rule;
            assert!(alert.starts_with("Campanile"), "{alert}");
            assert!(["page", "ticket"].contains(&labels["severity"].as_str()), "{alert}");
            assert!(annotations["summary"].contains("$labels.instance"), "{alert}: which node?");
            let is_of_one = named(&expr).iter().any(|named| one_server(&named.metric));
            let says_which = annotations["summary"].contains("$labels.server");
            assert_eq!(is_of_one, says_which, "{alert}: which server?");
            let keeps = !expr.contains("sum by") || expr.contains("server,");
            assert!(!is_of_one || keeps, "{alert} sums over servers");
            assert!(annotations["description"].len() > 60, "{alert} does not say what to do");
            let is_time = |text: &str| text.ends_with(['s', 'm', 'h']) && text.len() < 5;
            assert!(hold.as_deref().is_none_or(is_time), "{alert}: for: {hold:?}");
            assert!(names.insert(alert.clone()), "{alert} twice");
        }
    }
    assert!(names.len() > 12, "that cannot be all of them");
}
