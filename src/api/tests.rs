//! The API over real HTTP on loopback; shards and backplane are played by the tests.

use super::*;
use crate::config::{Config, ConfigSources};
use crate::ids::{NodeId, Position, ShardId};
use crate::link::Uplink;
use crate::link::channel::{BackplaneEnd, ShardEnd, window};
use crate::link::{
    Downlink, HistoryError, HistoryPage, Inspect, Publish, PublishOutcome, ReplyTo, RoomPage,
    RoomReport,
};
use crate::metrics::redis::RedisNumbers;
use crate::metrics::servers::{DeploymentNumbers, OwnNumbers, RedisSnapshot, ServerNumbers};
use crate::metrics::{BackplaneCounters, MetricKind, ShardCounters};
use crate::plan::{Machine, resolve};
use crate::protocol::Unrecovered;
use crate::protocol::run::Run;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

/// How long a test waits for what must come, before it fails.
const PATIENCE: Duration = Duration::from_secs(20);

/// A node of two shards whose only real thread is the ops thread.
struct Node {
    addr: SocketAddr,
    shards: Vec<ShardEnd>,
    backplane: BackplaneEnd,
    end: OpsEnd,
    shard_mirrors: Vec<Arc<ShardMirror>>,
    backplane_mirror: Arc<BackplaneMirror>,
    health: Arc<Health>,
    ledger: Arc<crate::link::ledger::Ledger>,
}

fn node(flags: &[(&'static str, &str)]) -> Node {
    let flags = flags.iter().map(|(key, value)| (*key, (*value).to_owned())).collect();
    let config = Config::load(&ConfigSources { flags, ..ConfigSources::default() }).unwrap();
    let machine =
        Machine { node: NodeId(1), cores: vec![0, 1], nofile: 10_000, memory_bytes: None };
    let mut plan = resolve(&config, &machine).unwrap().plan;
    plan.node_name = "node-1".into();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let (shards, backplane, end) = window(2, 4, 4).unwrap();
    let shard_mirrors: Vec<Arc<ShardMirror>> = vec![Arc::default(), Arc::default()];
    let backplane_mirror: Arc<BackplaneMirror> = Arc::default();
    let health: Arc<Health> = Arc::default();
    let ledger = Arc::new(crate::link::ledger::Ledger::new(u64::MAX, 0));
    let setup = OpsSetup {
        plan: Arc::new(crate::link::exchange::Exchange::new(Arc::new(plan))),
        reloads: Arc::default(),
        scheduled: Arc::default(),
        ledger: ledger.clone(),
        listener,
        end: end.clone(),
        calls: crate::link::calls::calls(1, ledger.clone()).unwrap().1,
        shards: shard_mirrors.clone(),
        backplane: backplane_mirror.clone(),
        hooks: Arc::default(),
        health: health.clone(),
        keys: (
            Arc::new(crate::link::exchange::Exchange::new(Arc::default())),
            Arc::new(crate::link::key_requests::KeyRequests::new().unwrap()),
        ),
    };
    std::thread::spawn(move || run(setup).unwrap());
    Node { addr, shards, backplane, end, shard_mirrors, backplane_mirror, health, ledger }
}

impl Node {
    /// One request; its status and its body.
    fn ask(&self, method: &str, path: &str, headers: &str, body: &str) -> (u16, String) {
        ask(self.addr, method, path, headers, body)
    }

    fn get(&self, path: &str) -> (u16, String) {
        self.ask("GET", path, "", "")
    }

    fn get_json(&self, path: &str) -> (u16, Value) {
        json_of(self.get(path))
    }

    fn post(&self, path: &str, body: &str) -> (u16, Value) {
        json_of(self.ask("POST", path, JSON, body))
    }

    /// Posts while `answer` plays the backplane for each of `count` messages.
    fn post_answered(
        &self,
        path: &str,
        body: &str,
        count: usize,
        mut answer: impl FnMut(Publish),
    ) -> (u16, Value) {
        std::thread::scope(|scope| {
            let addr = self.addr;
            let asking = scope.spawn(move || json_of(ask(addr, "POST", path, JSON, body)));
            for _ in 0..count {
                match until(|| self.backplane.try_recv_ops()) {
                    Uplink::Publish(publish) => answer(publish),
                    other => panic!("the ops thread only publishes, not {other:?}"),
                }
            }
            asking.join().unwrap()
        })
    }

    /// Gets while `answer` plays each of the shards.
    fn get_inspected(&self, path: &str, mut answer: impl FnMut(u16, Inspect)) -> (u16, Value) {
        std::thread::scope(|scope| {
            let addr = self.addr;
            let asking = scope.spawn(move || json_of(ask(addr, "GET", path, "", "")));
            for shard in &self.shards {
                match until(|| shard.try_recv()) {
                    Downlink::Inspect(question) => answer(shard.id.0, *question),
                    _ => panic!("the ops thread only inspects here"),
                }
            }
            asking.join().unwrap()
        })
    }

    /// Gets while the backplane answers with this page of the history.
    fn get_history(&self, path: &str, page: Result<HistoryPage, HistoryError>) -> (u16, String) {
        std::thread::scope(|scope| {
            let addr = self.addr;
            let asking = scope.spawn(move || ask(addr, "GET", path, "", ""));
            match until(|| self.backplane.try_recv_ops()) {
                Uplink::History(asked) => match asked.to {
                    ReplyTo::Call(answer) => answer(page),
                    other => panic!("the API waits for it: {other:?}"),
                },
                other => panic!("a history was asked for, not {other:?}"),
            }
            asking.join().unwrap()
        })
    }
}

const JSON: &str = "Content-Type: application/json\r\n";

fn ask(addr: SocketAddr, method: &str, path: &str, headers: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\
         Content-Length: {length}\r\n{headers}\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    // A body that is refused may not be taken whole.
    let _ = stream.write_all(body.as_bytes());
    let mut answer = Vec::new();
    if let Err(error) = stream.read_to_end(&mut answer) {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").expect("a whole head");
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

fn json_of((status, body): (u16, String)) -> (u16, Value) {
    (status, serde_json::from_str(&body).unwrap_or_else(|_| panic!("{status}: {body:?}")))
}

fn until<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "it never came");
        std::thread::yield_now();
    }
}

fn end(publish: Publish, outcome: PublishOutcome) {
    match publish.done {
        ReplyTo::Call(answer) => answer(outcome),
        other => panic!("the API waits for it: {other:?}"),
    }
}

fn code(body: &Value) -> &str {
    assert!(body["error"]["message"].as_str().is_some_and(|text| !text.is_empty()), "{body}");
    body["error"]["code"].as_str().unwrap()
}

#[test]
fn a_node_lives_before_it_is_ready_and_says_why_it_is_not() {
    let node = node(&[]);
    let ready = |reason: &str| {
        let (status, body) = node.get_json("/readyz");
        assert_eq!(status, if reason.is_empty() { 200 } else { 503 });
        assert_eq!(body["ready"], reason.is_empty());
        assert_eq!(body["reason"].as_str().unwrap_or(""), reason);
    };
    assert_eq!(node.get("/healthz"), (200, "ok".to_owned()));
    ready("starting");
    node.health.shard_listens();
    ready("starting");
    node.health.shard_listens();
    ready("backplane");
    node.health.set_backplane_up(true);
    ready("");
    node.health.set_draining();
    ready("draining");
    assert_eq!(node.get("/healthz"), (200, "ok".to_owned()));
}

#[test]
fn a_message_goes_up_byte_for_byte_and_the_answer_waits_for_the_outcome() {
    let node = node(&[]);
    for (body, topic, payload) in [
        (
            r#"{"room_id":"a b","payload": {"x" : 1.0,"x":1e400} }"#,
            "r:a b",
            r#"{"x" : 1.0,"x":1e400}"#,
        ),
        (
            r#"{"target_user_id":"\u0061nn","payload":"\ud83d\ude00é"}"#,
            "u:ann",
            r#""\ud83d\ude00é""#,
        ),
        (
            r#"{"broadcast":true,"payload":123456789012345678901234567890}"#,
            "*",
            "123456789012345678901234567890",
        ),
        (r#"{"room_id":"r","broadcast":false,"payload":null}"#, "r:r", "null"),
    ] {
        let answer = node.post_answered("/v1/publish", body, 1, |publish| {
            assert_eq!(publish.topic.as_str(), topic);
            assert_eq!(publish.payload, payload);
            assert_eq!(publish.from, None);
            assert_eq!(publish.except, None);
            end(publish, PublishOutcome::Accepted(None));
        });
        assert_eq!(answer, (200, json!({"ok": true})), "{body}");
    }
}

#[test]
fn a_publish_that_fails_is_answered_with_what_is_known() {
    let node = node(&[]);
    let body = r#"{"room_id":"r","payload":1}"#;
    for (outcome, expected) in [
        (Some(PublishOutcome::Unavailable), "backplane_unavailable"),
        (Some(PublishOutcome::Unknown), "outcome_unknown"),
        (None, "outcome_unknown"),
    ] {
        let (status, answer) = node.post_answered("/v1/publish", body, 1, |publish| {
            // None: the backplane drops the publish without an answer.
            if let Some(outcome) = outcome {
                end(publish, outcome);
            }
        });
        assert_eq!((status, code(&answer)), (503, expected));
    }
}

#[test]
fn a_full_window_is_answered_at_once() {
    let node = node(&[]);
    for _ in 0..4 {
        let publish = Publish {
            topic: crate::ids::TopicName::all(),
            payload: bytes::Bytes::new(),
            from: None,
            info: None,
            except: None,
            key: None,
            conflate_key: None,
            done: ReplyTo::Nobody,
        };
        node.end.try_publish(Uplink::Publish(publish)).unwrap();
    }
    let (status, body) = node.post("/v1/publish", r#"{"room_id":"r","payload":1}"#);
    assert_eq!((status, code(&body)), (503, "overloaded"));
    while node.end.try_send(ShardId(1), Downlink::Drain { over_ms: 0 }).is_ok() {}
    let (status, body) = node.get_json("/v1/rooms");
    assert_eq!((status, code(&body)), (503, "overloaded"));
}

#[test]
fn a_message_that_is_not_one_is_refused_before_it_goes_up() {
    let node = node(&[("limits.json_depth_max", "4"), ("limits.message_bytes_max", "128")]);
    let long = format!(r#"{{"room_id":"r","payload":"{}"}}"#, "x".repeat(127));
    let huge = format!(r#"{{"room_id":"r","payload":"{}"}}"#, "x".repeat(100_000));
    let deep = r#"{"room_id":"r","payload":[{"a":[1]},"]]"]}"#.replace("[1]", "[[1]]");
    for (body, expected) in [
        ("", (400, "bad_request")),
        ("{", (400, "bad_request")),
        ("[]", (400, "bad_request")),
        (r#"{"room_id":"r"}"#, (400, "bad_request")),
        (r#"{"payload":1}"#, (400, "bad_request")),
        (r#"{"broadcast":false,"payload":1}"#, (400, "bad_request")),
        (r#"{"room_id":"r","target_user_id":"u","payload":1}"#, (400, "bad_request")),
        (r#"{"room_id":"r","broadcast":true,"payload":1}"#, (400, "bad_request")),
        (r#"{"room_id":"","payload":1}"#, (400, "bad_request")),
        (r#"{"room_id":"r","payload":1,"conflate_key":""}"#, (400, "bad_request")),
        (r#"{"room_id":"a\nb","payload":1}"#, (400, "bad_request")),
        (r#"{"room_id":7,"payload":1}"#, (400, "bad_request")),
        (r#"{"room_id":"r","payload":1,"from":"ann"}"#, (400, "bad_request")),
        (r#"{"room_id":"r","payload":01}"#, (400, "bad_request")),
        (r#"{"room_id":"r","payload":1} x"#, (400, "bad_request")),
        (&deep, (400, "bad_json")),
        (&long, (413, "too_large")),
        (&huge, (413, "too_large")),
    ] {
        let (status, answer) = node.post("/v1/publish", body);
        assert_eq!((status, code(&answer)), expected, "{body}");
    }
    assert!(node.backplane.try_recv_ops().is_none());
    // Just within both limits.
    let within = r#"{"room_id":"r","payload":[{"a":[1]},"[[[[[\"[["]}"#;
    let (status, _) =
        node.post_answered("/v1/publish", within, 1, |p| end(p, PublishOutcome::Accepted(None)));
    assert_eq!(status, 200);
}

#[test]
fn a_batch_is_answered_one_by_one_in_its_order() {
    let node = node(&[]);
    let body =
        r#"{"messages":[{"room_id":"a","payload":1},{"payload":2},{"room_id":"c","payload":3}]}"#;
    let mut went_up = Vec::new();
    let (status, answer) = node.post_answered("/v1/publish/batch", body, 2, |publish| {
        went_up.push(publish.topic.as_str().to_owned());
        let is_first = went_up.len() == 1;
        end(
            publish,
            if is_first { PublishOutcome::Accepted(None) } else { PublishOutcome::Unavailable },
        );
    });
    assert_eq!(went_up, ["r:a", "r:c"]);
    assert_eq!(status, 200);
    let results = answer["results"].as_array().unwrap();
    assert_eq!(results.len(), 3);
    assert_eq!(results[0], json!({"ok": true}));
    assert_eq!(code(&results[1]), "bad_request");
    assert_eq!(code(&results[2]), "backplane_unavailable");

    let many = vec![r#"{"room_id":"r"}"#; 1001].join(",");
    let (status, answer) = node.post("/v1/publish/batch", &format!(r#"{{"messages":[{many}]}}"#));
    assert_eq!((status, code(&answer)), (400, "bad_request"));
    let (status, answer) = node.post("/v1/publish/batch", r#"{"message":[]}"#);
    assert_eq!((status, code(&answer)), (400, "bad_request"));
}

#[test]
fn rooms_are_merged_over_the_shards() {
    let node = node(&[]);
    let report = |room: &str, members| RoomReport {
        room: room.to_owned(),
        members,
        acks: Default::default(),
    };
    let rooms = |path: &str| {
        node.get_inspected(path, |shard, question| match question {
            Inspect::Rooms { prefix, max, reply, .. } => {
                let here = match shard {
                    0 => vec![report("a1", 2), report("a3", 1)],
                    _ => vec![report("b", 9), report("a1", 3), report("a2", 1)],
                };
                let here = here.into_iter().filter(|report| report.room.starts_with(&*prefix));
                reply.call(RoomPage { rooms: here.take(max).collect(), next: None });
            }
            _ => panic!("all rooms were asked for"),
        })
    };
    let listed = |pairs: &[(&str, usize)], truncated: bool| {
        let rooms: Vec<Value> = pairs
            .iter()
            .map(|(room, members)| json!({"room_id": room, "members": members}))
            .collect();
        (200, json!({"rooms": rooms, "truncated": truncated}))
    };
    let all = [("a1", 5), ("a2", 1), ("a3", 1), ("b", 9)];
    assert_eq!(rooms("/v1/rooms"), listed(&all, false));
    assert_eq!(rooms("/v1/rooms?prefix=a"), listed(&all[..3], false));
    assert_eq!(rooms("/v1/rooms?prefix=a&limit=3"), listed(&all[..3], false));
    assert_eq!(rooms("/v1/rooms?prefix=a&limit=2"), listed(&all[..2], true));
    for wrong in ["limit=0", "limit=1001", "limit=x", "prefx=a"] {
        let (status, body) = node.get_json(&format!("/v1/rooms?{wrong}"));
        assert_eq!((status, code(&body)), (400, "bad_request"), "{wrong}");
    }
}

#[test]
fn a_room_is_summed_up_and_one_without_members_is_not_found() {
    let node = node(&[]);
    let members = |there: [Option<usize>; 2]| {
        node.get_inspected("/v1/rooms/a%20b%2Fc", |shard, question| match question {
            Inspect::Room { room, reply } => {
                assert_eq!(room, "a b/c");
                let members = there[usize::from(shard)];
                reply.call(members.map(|members| RoomReport {
                    room,
                    members,
                    acks: Default::default(),
                }));
            }
            _ => panic!("one room was asked for"),
        })
    };
    assert_eq!(members([Some(2), Some(3)]), (200, json!({"room_id": "a b/c", "members": 5})));
    assert_eq!(members([None, Some(3)]).1["members"], 3);
    let (status, body) = members([None, None]);
    assert_eq!((status, code(&body)), (404, "not_found"));
    let (status, body) = node.get_json("/v1/rooms/%0A");
    assert_eq!((status, code(&body)), (400, "bad_request"));
    let (status, body) = node.get_json("/v1/rooms/%FF");
    assert_eq!((status, code(&body)), (400, "bad_request"));
}

#[test]
fn half_an_answer_is_none() {
    let node = node(&[]);
    let (status, body) = node.get_inspected("/v1/rooms/r", |shard, question| match question {
        Inspect::Room { reply, .. } if shard == 0 => reply.call(None),
        // This shard is gone with the question.
        question => drop(question),
    });
    assert_eq!((status, code(&body)), (503, "timeout"));
}

#[test]
fn stats_sum_up_the_shards() {
    let node = node(&[("backplane", "redis://h")]);
    for (mirror, connections) in node.shard_mirrors.iter().zip([2, 3]) {
        mirror.publish(&ShardCounters { connections, deliveries: 10, ..Default::default() });
    }
    let backplane = BackplaneCounters { up: 1, topics: 7, canary_rtt_us: 90, ..Default::default() };
    node.backplane_mirror.publish(&backplane);
    let (status, body) = node.get_json("/v1/stats");
    assert_eq!(status, 200);
    assert_eq!(body["node"], "node-1");
    assert_eq!(body["connections"], 5);
    assert_eq!(body["deliveries"], 20);
    assert_eq!(body["topics"], 7);
    assert_eq!(body["readiness"]["reason"], "starting");
    assert_eq!(body["backplane"]["kind"], "redis");
    assert_eq!(body["backplane"]["up"], true);
    assert_eq!(body["backplane"]["canary_rtt_us"], 90);
}

#[test]
fn every_number_is_in_the_metrics_once_for_each_thread() {
    let node = node(&[]);
    for (mirror, n) in node.shard_mirrors.iter().zip([3, 4]) {
        let counters = ShardCounters { connections: n, closed_slow: n, ..Default::default() };
        mirror.publish(&counters);
    }
    node.backplane_mirror.publish(&BackplaneCounters { dropped: 5, up: 1, ..Default::default() });
    let (status, text) = node.get("/metrics");
    assert_eq!(status, 200);
    let has = |line: &str| {
        assert_eq!(text.lines().filter(|l| *l == line).count(), 1, "{line}\n{text}");
    };
    has("# TYPE campanile_connections gauge");
    has("campanile_connections{shard=\"0\"} 3");
    has("campanile_connections{shard=\"1\"} 4");
    has("# TYPE campanile_connections_closed_total counter");
    has("campanile_connections_closed_total{shard=\"1\",reason=\"slow_consumer\"} 4");
    // Both kinds of thread drop; it is one family.
    has("# TYPE campanile_messages_dropped_total counter");
    has("campanile_messages_dropped_total{shard=\"0\",reason=\"channel_full\"} 0");
    has("campanile_messages_dropped_total{reason=\"shard_full\"} 5");
    has("campanile_backplane_up 1");
    has(&format!("campanile_build_info{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION")));
    has("# TYPE campanile_process_resident_memory_bytes gauge");
    has("# TYPE campanile_uptime_seconds gauge");
    assert!(!text.contains("total_total"), "{text}");
    let all = ShardCounters::default().describe();
    for metric in &all {
        let label = metric.label.map_or(String::new(), |(k, v)| format!(",{k}=\"{v}\""));
        let suffix = if metric.kind == MetricKind::Histogram { "_count" } else { "" };
        let line = format!("campanile_{}{suffix}{{shard=\"0\"{label}}} ", metric.name);
        assert_eq!(text.lines().filter(|l| l.starts_with(&line)).count(), 1, "{line}");
    }
}

/// A server that is up, or down and why.
fn redis_server(server: &str, reason: Option<&str>) -> Arc<ServerNumbers> {
    let reported = RedisNumbers { memory_used_bytes: Some(1000), ..RedisNumbers::default() };
    let up = Some(u64::from(reason.is_none()));
    Arc::new(ServerNumbers {
        server: server.into(),
        name: None,
        reason: reason.map(|_| "refused"),
        detail: reason.unwrap_or("the canary came back").into(),
        counted: OwnNumbers { up, reconnects: Some(2), ..OwnNumbers::default() },
        canary_back_at: Some(Instant::now()),
        reported: Arc::new(if reason.is_none() { reported } else { RedisNumbers::default() }),
    })
}

#[test]
fn each_redis_server_has_its_own_numbers_under_its_address() {
    let node = node(&[("backplane", "redis://h:1,h:2")]);
    let text = node.get("/metrics").1;
    assert!(!text.contains("server="), "nothing is known yet");
    let servers = vec![redis_server("h:1", None), redis_server("h:2", Some("it is away"))];
    let deployment =
        DeploymentNumbers { sentinels_configured: Some(3), ..DeploymentNumbers::default() };
    let snapshot = RedisSnapshot { servers, deployment, ..RedisSnapshot::default() };
    node.backplane_mirror.show(Arc::new(snapshot));
    let text = node.get("/metrics").1;
    let has = |line: &str| {
        assert_eq!(text.lines().filter(|l| *l == line).count(), 1, "{line}\n{text}");
    };
    has("# TYPE campanile_redis_up gauge");
    has("campanile_redis_up{server=\"h:1\"} 1");
    has("campanile_redis_up{server=\"h:2\"} 0");
    has("# TYPE campanile_redis_reconnects_total counter");
    has("campanile_redis_reconnects_total{server=\"h:2\"} 2");
    has("campanile_redis_memory_used_bytes{server=\"h:1\"} 1000");
    has("campanile_redis_sentinels_configured 3");
    assert!(!text.contains("campanile_redis_memory_used_bytes{server=\"h:2\"}"), "not known");
    assert!(!text.contains("campanile_redis_cluster_masters"), "there is no Cluster");
}

#[test]
fn a_node_that_is_not_ready_says_which_servers_are_down_and_why() {
    let node = node(&[("backplane", "redis://h:1,h:2")]);
    (0..2).for_each(|_| node.health.shard_listens());
    let (status, body) = node.get_json("/readyz");
    assert_eq!((status, &body["reason"]), (503, &json!("backplane")));
    assert_eq!(body["down"], json!([]), "it has not begun");
    let servers = vec![redis_server("h:1", None), redis_server("h:2", Some("it is away"))];
    let error = Some("no node answers".to_owned());
    let silent = vec![("s:1".to_owned(), None)];
    let snapshot = RedisSnapshot {
        servers,
        cluster_error: error,
        unreachable_sentinels: silent,
        ..RedisSnapshot::default()
    };
    node.backplane_mirror.show(Arc::new(snapshot));
    let body = node.get_json("/readyz").1;
    assert_eq!(
        body["down"],
        json!([{"server": "h:2", "reason": "refused", "detail": "it is away"}])
    );
    assert_eq!(body["cluster"], "no node answers");
    assert_eq!(body["unreachable_sentinels"], json!([{"sentinel": "s:1", "reason": null}]));
    node.health.set_backplane_up(true);
    assert_eq!(node.get_json("/readyz"), (200, json!({"ready": true})));
    let stats = node.get_json("/v1/stats").1;
    assert_eq!(stats["redis"]["deployment"], "fixed");
    assert_eq!(stats["redis"]["servers"][0]["memory"]["used_bytes"], 1000);
    assert_eq!(stats["redis"]["servers"][0]["reason"], Value::Null);
    assert_eq!(stats["redis"]["servers"][1]["reason"], "refused");
    assert_eq!(stats["redis"]["servers"][1]["detail"], "it is away");
    assert_eq!(stats["redis"]["servers"][1]["memory"]["used_bytes"], Value::Null);
}

#[test]
fn with_a_key_only_its_holder_uses_the_api_and_health_stays_open() {
    let node = node(&[("ops.api_key", "0123456789abcdef")]);
    let (status, body) = node.get_json("/v1/stats");
    assert_eq!((status, code(&body)), (401, "unauthorized"));
    let with = |key: &str| {
        let header = format!("Authorization: Bearer {key}\r\n");
        node.ask("GET", "/v1/stats", &header, "").0
    };
    assert_eq!(with("0123456789abcdef"), 200);
    assert_eq!(with("012345678x"), 401);
    assert_eq!(node.get("/healthz").0, 200);
    assert_eq!(node.get("/metrics").0, 200);
    assert_eq!(node.get("/readyz").0, 503);
}

#[test]
fn a_request_that_a_web_page_could_make_is_refused() {
    let node = node(&[]);
    let body = r#"{"broadcast":true,"payload":1}"#;
    let (status, answer) =
        json_of(node.ask("POST", "/v1/publish", "Content-Type: text/plain\r\n", body));
    assert_eq!((status, code(&answer)), (415, "unsupported_media_type"));
    let forwarded = "X-Forwarded-For: 192.0.2.7\r\n";
    let (status, answer) = json_of(node.ask("GET", "/v1/stats", forwarded, ""));
    assert_eq!((status, code(&answer)), (403, "forbidden"));
    assert!(node.backplane.try_recv_ops().is_none());
}

#[test]
fn a_path_that_does_not_exist_is_answered_in_json_too() {
    let node = node(&[]);
    for path in ["/", "/v1", "/v1/room", "/metricss"] {
        let (status, body) = node.get_json(path);
        assert_eq!((status, code(&body)), (404, "not_found"), "{path}");
    }
    let (status, body) = node.get_json("/v1/publish");
    assert_eq!((status, code(&body)), (405, "method_not_allowed"));
    let (status, body) = node.post("/healthz", "{}");
    assert_eq!((status, code(&body)), (405, "method_not_allowed"));
}

#[test]
fn who_comes_when_there_is_no_place_gets_that_of_the_one_who_has_waited_longest() {
    let node = node(&[]);
    let mut idle: Vec<_> =
        (0..listener::CONNECTIONS_MAX).map(|_| TcpStream::connect(node.addr).unwrap()).collect();
    assert_eq!(node.get("/healthz"), (200, "ok".to_owned()));
    let text = node.get("/metrics").1;
    let evicted = "\ncampanile_ops_connections_closed_total{reason=\"evicted\"} ";
    let (_, evicted) = text.split_once(evicted).expect("it is counted");
    let evicted: usize = evicted.lines().next().unwrap().parse().unwrap();
    assert!((1..=2).contains(&evicted), "{evicted}");
    idle[0].set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(idle[0].read(&mut [0; 1]).unwrap(), 0, "the first one has gone");
    idle[63].set_nonblocking(true).unwrap();
    let last = idle[63].read(&mut [0; 1]).unwrap_err();
    assert_eq!(last.kind(), std::io::ErrorKind::WouldBlock, "the last one is still there");
}

/// A payload may be JSON by its grammar and yet no number or text that all readers take.
#[test]
fn a_message_of_a_history_is_passed_on_byte_for_byte() {
    let node = node(&[("namespaces", "default: history_size=10")]);
    let deep = format!("{}1{}", "[".repeat(126), "]".repeat(126));
    for payload in [r#""\ud800""#, "1e999", "1.000", r#"{"b":1,"a":2,"b":3}"#, &deep] {
        let message = format!(r#"{{"type":"message","room_id":"r","payload":{payload}}}"#);
        let messages = Run { bytes: message.clone().into(), messages: 1 };
        let page = HistoryPage { position: Position { epoch: 7, offset: 9 }, messages };
        let (status, body) = node.get_history("/v1/rooms/r/history", Ok(page));
        let whole = format!(r#"{{"room_id":"r","epoch":"7","offset":9,"messages":[{message}]}}"#);
        assert_eq!((status, body), (200, whole));
    }
}

#[test]
fn a_refusal_says_nothing_that_need_not_be_so() {
    let node = node(&[("namespaces", "default: history_size=10")]);
    let body = r#"{"room_id":"r","payload":1}"#;
    let (_, answer) = node
        .post_answered("/v1/publish", body, 1, |publish| end(publish, PublishOutcome::Unavailable));
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(message.contains("refused it"), "Redis is there and has no memory: {message}");

    for (error, status, word) in [
        (HistoryError::Unavailable, 503, "does not answer in time"),
        (HistoryError::Unrecovered(Unrecovered::TailLost), 410, "lost the end"),
        (HistoryError::Unrecovered(Unrecovered::Epoch), 410, "another history"),
    ] {
        let (answered, answer) = node.get_history("/v1/rooms/r/history", Err(error));
        assert_eq!(answered, status);
        assert!(answer.contains(word), "{error:?}: {answer}");
    }
}

/// A whole request that leaves its connection open.
fn request(method: &str, path: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\n{JSON}Content-Length: {length}\r\n\r\n{body}"
    )
}

/// Or an outage of Redis, during which publishers wait, would look like the end of the process.
#[test]
fn publishers_who_wait_keep_nobody_from_asking_how_the_node_is() {
    let node = node(&[("limits.publish_queue_ms_max", "600000")]);
    let publish = request("POST", "/v1/publish", r#"{"room_id":"r","payload":1}"#);
    let (mut publishers, mut waiting) = (Vec::new(), Vec::new());
    for _ in 0..guard::AT_A_TIME_MAX {
        let mut publisher = TcpStream::connect(node.addr).unwrap();
        publisher.write_all(publish.as_bytes()).unwrap();
        publishers.push(publisher);
        waiting.push(until(|| node.backplane.try_recv_ops()));
    }
    let (status, body) = node.post("/v1/publish", r#"{"room_id":"r","payload":1}"#);
    assert_eq!((status, code(&body)), (503, "overloaded"));
    assert_eq!(node.get("/healthz").0, 200);
    drop((publishers, waiting));
    until(|| (node.get("/v1/stats").0 == 200).then_some(()));
}

#[test]
fn the_body_of_a_request_that_is_carried_out_is_in_the_ledger() {
    let node = node(&[("limits.publish_queue_ms_max", "600000")]);
    let body = format!(r#"{{"room_id":"r","payload":"{}"}}"#, "x".repeat(50_000));
    let mut publisher = TcpStream::connect(node.addr).unwrap();
    publisher.write_all(request("POST", "/v1/publish", &body).as_bytes()).unwrap();
    let uplink = until(|| node.backplane.try_recv_ops());
    assert_eq!(node.ledger.reading().held, body.len() as u64);
    match uplink {
        Uplink::Publish(publish) => end(publish, PublishOutcome::Accepted(None)),
        other => panic!("the ops thread only publishes, not {other:?}"),
    }
    until(|| (node.ledger.reading().held == 0).then_some(()));
}

#[test]
fn a_request_that_is_carried_out_keeps_its_place_however_many_come() {
    let node = node(&[("limits.publish_queue_ms_max", "600000")]);
    let publish = request("POST", "/v1/publish", r#"{"room_id":"r","payload":1}"#);
    let (mut publishers, mut waiting) = (Vec::new(), Vec::new());
    for _ in 0..guard::AT_A_TIME_MAX {
        let mut publisher = TcpStream::connect(node.addr).unwrap();
        publisher.write_all(publish.as_bytes()).unwrap();
        publishers.push(publisher);
        waiting.push(until(|| node.backplane.try_recv_ops()));
    }
    let crowd = |_| {
        let mut stream = TcpStream::connect(node.addr).unwrap();
        stream.write_all(b"GET /healthz HTTP/1.1\r\n").unwrap();
        stream
    };
    let crowd: Vec<_> = (0..4 * listener::CONNECTIONS_MAX).map(crowd).collect();
    assert_eq!(node.get("/healthz").0, 200);
    for uplink in waiting {
        match uplink {
            Uplink::Publish(publish) => end(publish, PublishOutcome::Accepted(None)),
            other => panic!("the ops thread only publishes, not {other:?}"),
        }
    }
    for publisher in &mut publishers {
        publisher.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut first = [0; 12];
        publisher.read_exact(&mut first).unwrap();
        assert_eq!(&first, b"HTTP/1.1 200");
    }
    drop(crowd);
}

#[test]
fn a_head_of_too_many_bytes_is_refused() {
    let node = node(&[]);
    let long = format!("X-Long: {}\r\n", "x".repeat(200_000));
    assert_eq!(node.ask("GET", "/healthz", &long, "").0, 431);
}

#[test]
fn connections_on_which_nobody_asks_give_way_when_there_are_too_many() {
    let node = node(&[]);
    let idle = |_| {
        let mut idle = TcpStream::connect(node.addr).unwrap();
        idle.write_all(request("GET", "/healthz", "").as_bytes()).unwrap();
        assert_ne!(idle.read(&mut [0; 4096]).unwrap(), 0);
        idle
    };
    let idle: Vec<_> = (0..listener::CONNECTIONS_MAX).map(idle).collect();
    assert_eq!(node.get("/healthz").0, 200);
    drop(idle);
}
