//! Services that are asked who may connect: real ones, and such as are slow, dead or lie.

use crate::client::Client;
use crate::http::Reply;
use crate::node::Node;
use crate::redis::{free_port, wait_until};
use campanile::auth::{TokenRequest, mint};
use campanile::policy::rights::Rights;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

/// What a service does with a question.
enum Act {
    /// It answers 200 with this.
    Json(Value),
    /// It sends these bytes.
    Raw(Vec<u8>),
    /// It answers nothing until the [`Gate`] opens, and then this.
    Hold(Value),
}

/// Holds answers back until its other end is dropped.
type Gate = crossbeam_channel::Receiver<()>;

/// A question as a service received it.
struct Question {
    signature: Option<String>,
    body: Value,
    text: String,
}

/// A service on a port of this machine.
struct Service {
    port: u16,
    questions: Receiver<Question>,
    gate: crossbeam_channel::Sender<()>,
}

impl Service {
    fn start(answer: impl Fn(&Value) -> Act + Send + Sync + 'static) -> Service {
        let port = free_port();
        let listener = TcpListener::bind(("127.0.0.1", port)).expect("a free port");
        let (sender, questions) = channel();
        let (gate, held) = crossbeam_channel::unbounded();
        let answer = Arc::new(answer);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (sender, held) = (sender.clone(), held.clone());
                let (stream, answer) = (stream.expect("a client"), answer.clone());
                std::thread::spawn(move || {
                    let mut reader = BufReader::new(stream.try_clone().expect("a live socket"));
                    while let Some(question) = read_question(&mut reader) {
                        let act = answer(&question.body);
                        let _ = sender.send(question);
                        if !carry_out(&stream, act, &held) {
                            return;
                        }
                    }
                });
            }
        });
        Service { port, questions, gate }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}/hook", self.port)
    }

    fn next(&self) -> Question {
        self.questions.recv_timeout(Duration::from_secs(30)).expect("it is asked")
    }
}

fn read_question(reader: &mut BufReader<TcpStream>) -> Option<Question> {
    let (mut bytes, mut signature) = (0, None);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        if line == "\r\n" {
            break;
        }
        if let Some((name, value)) = line.trim().split_once(':') {
            match name.to_lowercase().as_str() {
                "content-length" => bytes = value.trim().parse().expect("a number"),
                "campanile-signature" => signature = Some(value.trim().to_owned()),
                _ => {}
            }
        }
    }
    let mut body = vec![0; bytes];
    reader.read_exact(&mut body).ok()?;
    let text = String::from_utf8(body).expect("JSON");
    Some(Question { signature, body: serde_json::from_str(&text).expect("JSON"), text })
}

/// Whether the connection goes on.
fn carry_out(mut stream: &TcpStream, act: Act, gate: &Gate) -> bool {
    let json = |value: Value| {
        let body = value.to_string();
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
    };
    let (bytes, goes_on) = match act {
        Act::Json(value) => (json(value), true),
        Act::Hold(value) => {
            gate.recv().expect_err("nothing is sent, and the gate opens");
            (json(value), true)
        }
        Act::Raw(bytes) => (bytes, false),
    };
    let is_sent = stream.write_all(&bytes).is_ok();
    if !goes_on {
        // Half a body, and then nothing: until the asker gives up.
        let _ = stream.read(&mut [0; 1]);
    }
    is_sent && goes_on
}

fn node(service: &Service, more: &[&str]) -> Node {
    let url = service.url();
    let args = [&["--shards", "1", "--hooks-connect-url", &url], more].concat();
    Node::start_ready(&args)
}

fn refused(node: &Node) -> Reply {
    match Client::try_open(node.addr, "/ws", "") {
        Err(reply) => reply,
        Ok(_) => panic!("it is not admitted"),
    }
}

fn token_of(user: &str, rights: Option<Rights>, secret: &str) -> String {
    let request = TokenRequest {
        user: user.to_owned(),
        rights,
        rooms: Vec::new(),
        send: Vec::new(),
        info: None,
        issued_unix_s: 1,
        expires_unix_s: 4_000_000_000,
    };
    mint(&request, secret).expect("a good name")
}

#[test]
fn a_service_is_asked_who_a_client_is_and_what_it_may() {
    let service = Service::start(|_| {
        Act::Json(json!({"allow": true, "user": "ann", "rights": [], "join": ["hall"],
            "rooms": {"join": ["hall", "chat:*"], "publish": []}}))
    });
    let secret = "0123456789abcdef0123456789abcdef";
    let node = node(&service, &["--hooks-headers", "X-Tenant", "--hooks-secret", secret]);
    let path = "/ws?tenant=7&room_id=chat:a&token=undefined";
    let opened = Client::try_open(node.addr, path, "X-Tenant: seven\r\nCookie: secret\r\n");
    let mut client = opened.expect("it is admitted");
    let welcome = client.hear_type("welcome");
    assert_eq!(welcome["user_id"], "ann", "{welcome}");
    let rooms = [client.hear_type("ok"), client.hear_type("ok")].map(|ok| ok["room_id"].clone());
    assert!(rooms.contains(&json!("hall")) && rooms.contains(&json!("chat:a")), "{rooms:?}");
    client.say(r#"{"type":"join","room_id":"cellar","id":"1"}"#);
    assert_eq!(client.hear_type("error")["code"], "forbidden");
    client.say(r#"{"room_id":"hall","payload":1,"id":"2"}"#);
    assert_eq!(client.hear_type("error")["code"], "forbidden");
    let Question { signature, body, text } = service.next();
    let wanted = json!({"hook": "connect", "user": null, "address": "127.0.0.1",
        "query": "tenant=7&room_id=chat:a", "headers": {"x-tenant": "seven"}, "rooms": ["chat:a"]});
    assert_eq!(body, wanted);
    let signature = signature.expect("there is a secret");
    let (time, code) = signature.split_once(",v1=").expect("two parts");
    let signed = format!("{}.{text}", time.trim_start_matches("t="));
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret.as_bytes());
    let tag = ring::hmac::sign(&key, signed.as_bytes());
    let hex: String = tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(code, hex);
}

#[test]
fn a_token_does_not_bring_back_what_the_service_has_taken() {
    let service = Service::start(|_| Act::Json(json!({"allow": true, "rights": []})));
    let secret = "a-secret-of-thirty-two-characters";
    let node = node(&service, &["--auth-hmac-secret", secret]);
    let rights = Rights { publish: true, broadcast: true, ..Rights::NONE };
    let token = token_of("ann", Some(rights), secret);
    let (mut ann, _) = Client::greeted(node.addr, &["hall"], &token);
    for (request, code) in [
        (json!({"type": "broadcast", "payload": 1, "id": 1}), "forbidden"),
        (json!({"type": "auth", "token": token, "id": 2}), "unauthorized"),
        (json!({"type": "broadcast", "payload": 1, "id": 3}), "forbidden"),
    ] {
        ann.say(request.to_string());
        let error = ann.hear_type("error");
        assert_eq!((&error["code"], &error["id"]), (&json!(code), &request["id"]), "{error}");
    }
}

#[test]
fn a_client_that_the_service_does_not_admit_learns_why() {
    let deny = |_: &Value| Act::Json(json!({"allow": false, "reason": "not before noon"}));
    let service = Service::start(deny);
    let by_status = node(&service, &[]);
    let reply = refused(&by_status);
    assert_eq!((reply.status, reply.body.trim()), (403, "not before noon"));
    wait_until("it is counted", || {
        by_status.metric_where("campanile_connections_rejected_total", "hook_denied") == 1
    });
    let by_close = node(&service, &["--rejected-handshakes", "close"]);
    let mut client = Client::open(by_close.addr, "/ws");
    assert_eq!(client.hear_type("error")["message"], "not before noon");
    assert_eq!(client.closed_with(), (4403, "not before noon".to_owned()));
}

#[test]
fn who_is_refused_already_is_not_asked_about() {
    let service = Service::start(|question| Act::Json(json!({"allow": question["user"] == "ann"})));
    let secret = "0123456789abcdef0123456789abcdef";
    let node = node(&service, &["--auth-hmac-secret", secret]);
    assert_eq!(refused(&node).status, 401);
    let bearer = |user: &str| format!("Authorization: Bearer {}\r\n", token_of(user, None, secret));
    assert!(Client::try_open(node.addr, "/ws", &bearer("ann")).is_ok());
    let reply = Client::try_open(node.addr, "/ws", &bearer("bob")).err().expect("not he");
    assert_eq!(reply.status, 403);
    assert_eq!([service.next(), service.next()].map(|it| it.body["user"].clone()), ["ann", "bob"]);
    assert!(service.questions.try_recv().is_err());
}

#[test]
fn a_service_that_lies_admits_nobody_unless_that_is_configured() {
    let broken: [&[u8]; 6] = [
        b"HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n{\"allow\":\"true\"}",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n{\"allow\":true",
        b"220 smtp.example ESMTP\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n{\"allow\":true, ",
    ];
    for bytes in broken {
        let service = Service::start(move |_| Act::Raw(bytes.to_vec()));
        let args = ["--hooks-timeout-ms", "300", "--hooks-answer-bytes-max", "1000"];
        let node = node(&service, &args);
        let reply = refused(&node);
        let shown = String::from_utf8_lossy(bytes);
        assert_eq!((reply.status, reply.header("Retry-After")), (503, Some("1")), "{shown}");
        wait_until("it is counted", || {
            node.metric_where("campanile_hook_answers_total", "failed") == 1
        });
    }
    let service = Service::start(|_| Act::Raw(b"HTTP/1.1 500 Oh\r\n\r\n".to_vec()));
    let node = node(&service, &["--hooks-on-failure", "allow"]);
    assert!(Client::try_open(node.addr, "/ws", "").is_ok());
}

#[test]
fn a_service_that_is_dead_is_soon_not_asked_and_asked_again_when_it_may_live() {
    let service = Service::start(|_| Act::Json(json!({"allow": true})));
    let dead = Service { port: free_port(), ..service };
    let args = ["--hooks-circuit-failures", "3", "--hooks-circuit-open-ms", "60000"];
    let node = node(&dead, &args);
    (0..20).for_each(|_| assert_eq!(refused(&node).status, 503));
    wait_until("the circuit is open", || node.metric("campanile_hook_circuits_open") == 1);
    assert_eq!(node.metric("campanile_hook_requests_total"), 3, "and then nobody is asked");
    wait_until("all are counted", || {
        node.metric_where("campanile_hook_not_asked_total", "circuit_open") == 17
    });
    assert!(node.is_ready(), "who is open stays open");
    let stats = node.get("/v1/stats").json();
    assert_eq!(
        (&stats["hooks"]["failed"], &stats["hooks"]["circuits_open"]),
        (&json!(3), &json!(1))
    );
    drop(node);
    // With a short time it is asked again, and comes back.
    let args = ["--hooks-circuit-failures", "1", "--hooks-circuit-open-ms", "10"];
    let node = self::node(&dead, &args);
    assert_eq!(refused(&node).status, 503);
    let listener = TcpListener::bind(("127.0.0.1", dead.port)).expect("it is free");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.expect("a client");
            let mut reader = BufReader::new(stream.try_clone().expect("a live socket"));
            while read_question(&mut reader).is_some() {
                carry_out(&stream, Act::Json(json!({"allow": true})), &crossbeam_channel::never());
            }
        }
    });
    wait_until("it is asked again", || Client::try_open(node.addr, "/ws", "").is_ok());
    wait_until("the circuit is closed", || node.metric("campanile_hook_circuits_open") == 0);
}

#[test]
fn questions_wait_within_their_bound_and_those_who_are_open_notice_nothing() {
    let is_held = |question: &Value| question["query"] == "held";
    let service = Service::start(move |question| match is_held(question) {
        true => Act::Hold(json!({"allow": true})),
        false => Act::Json(json!({"allow": true})),
    });
    let args = ["--hooks-waiting-max", "3", "--hooks-concurrency-max", "2"];
    let long = ["--hooks-timeout-ms", "60000", "--hooks-waiting-timeout-ms", "60000"];
    let node = node(&service, &[&args[..], &long].concat());
    let mut ann = Client::join(node.addr, &["room"]);
    let come = |_| {
        let addr = node.addr;
        std::thread::spawn(move || Client::try_open(addr, "/ws?held", "").err())
    };
    let held: Vec<_> = (0..3).map(come).collect();
    wait_until("they wait", || node.metric("campanile_connections_waiting_for_hook") == 3);
    let reply = refused(&node);
    assert_eq!((reply.status, reply.header("Retry-After")), (503, Some("1")));
    ann.say(r#"{"room_id":"room","payload":"still here"}"#);
    assert_eq!(ann.hear_payload(), "still here");
    drop(service.gate);
    for waiting in held {
        assert_eq!(waiting.join().expect("no panic"), None, "it is admitted in the end");
    }
    wait_until("nothing waits", || node.metric("campanile_hook_questions") == 0);
    wait_until("it is counted", || {
        node.metric_where("campanile_connections_rejected_total", "hooks_busy") == 1
    });
}

#[test]
fn an_answer_with_a_ttl_is_remembered_and_one_without_is_not() {
    let service = Service::start(|question| match question["query"].as_str() {
        Some("short") => Act::Json(json!({"allow": true})),
        _ => Act::Json(json!({"allow": true, "ttl_s": 3600})),
    });
    let node = node(&service, &[]);
    for path in ["/ws?long", "/ws?long", "/ws?long", "/ws?short", "/ws?short"] {
        Client::open(node.addr, path).hear_type("welcome");
    }
    wait_until("two are remembered", || node.metric("campanile_hook_cached_total") == 2);
    assert_eq!(node.metric("campanile_hook_requests_total"), 3);
}

#[test]
fn joins_and_messages_are_asked_about_where_the_namespace_says_so() {
    let service = Service::start(|question| {
        let is_good = question["room"] != "chat:closed" && question["payload"] != "a bad word";
        Act::Json(json!({"allow": is_good, "reason": "house rules"}))
    });
    let url = service.url();
    let spaces = "chat: hook_join=true, hook_publish=true";
    let urls = ["--hooks-join-url", &url, "--hooks-publish-url", &url, "--namespaces", spaces];
    let node = Node::start_ready(&[&["--shards", "1"], &urls[..]].concat());
    let mut ann = Client::join(node.addr, &["chat:a"]);
    ann.say(r#"{"room_id":"chat:a","payload":"a bad word","id":1}"#);
    ann.say(r#"{"room_id":"chat:a","payload":"good day","id":2}"#);
    ann.say(r#"{"type":"join","room_id":"chat:closed","id":3}"#);
    ann.say(r#"{"type":"join","room_id":"plain","id":4}"#);
    let error = ann.hear_type("error");
    assert_eq!((&error["id"], &error["message"]), (&json!(1), &json!("house rules")));
    assert_eq!(ann.hear_payload(), "good day");
    assert_eq!(ann.hear_type("error")["id"], 3);
    loop {
        if ann.hear_type("ok")["id"] == 4 {
            break;
        }
    }
    let asked = [(); 4].map(|()| service.next().body);
    let user = asked[0]["user"].clone();
    let room = |hook: &str, room: &str| json!({"hook": hook, "user": user, "anonymous": true, "room": room});
    assert_eq!(asked[0], room("join", "chat:a"));
    let mut publish = room("publish", "chat:a");
    publish["payload"] = json!("a bad word");
    assert_eq!(asked[1], publish);
    assert_eq!(asked[3], room("join", "chat:closed"));
    assert!(service.questions.try_recv().is_err(), "nobody asks about other rooms");
}

#[test]
fn a_message_gets_the_payload_that_the_service_gives_it_and_none_where_that_is_none() {
    let service = Service::start(|question| match question["payload"].as_str() {
        Some("too long") => Act::Json(json!({"allow": true, "payload": "x".repeat(2000)})),
        Some("for ever") => Act::Json(json!({"allow": true, "payload": 1, "ttl_s": 60})),
        Some("broken") => {
            let body = r#"{"allow":true,"payload":{"a":}}"#;
            let head = format!(
                "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
                body.len()
            );
            Act::Raw([head.as_bytes(), body.as_bytes()].concat())
        }
        _ => Act::Json(json!({"allow": true, "payload": {"was": question["payload"]}})),
    });
    let url = service.url();
    let more = ["--hooks-publish-url", &url, "--namespaces", "chat: hook_publish=true"];
    let limits = ["--shards", "1", "--limits-message-bytes-max", "1024"];
    let node = Node::start_ready(&[&limits[..], &more].concat());
    let mut ann = Client::join(node.addr, &["chat:a"]);
    let mut bob = Client::join(node.addr, &["chat:a"]);
    for (id, payload) in ["too long", "for ever", "broken"].iter().enumerate() {
        ann.say(json!({"room_id": "chat:a", "payload": payload, "id": id}).to_string());
        let error = ann.hear_type("error");
        assert_eq!((&error["id"], &error["code"]), (&json!(id), &json!("overloaded")), "{payload}");
    }
    ann.say(r#"{"room_id":"chat:a","payload":"good day"}"#);
    assert_eq!(bob.hear_payload(), json!({"was": "good day"}), "nothing else came before");
    assert_eq!(ann.hear_payload(), json!({"was": "good day"}), "its own copy is the same");
    let failed = r#"campanile_hook_answers_total{outcome="failed"}"#;
    wait_until("three answers are none", || node.metric(failed) == 3);
}
