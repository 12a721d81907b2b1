//! Python `websockets` on one instance, Node `ws` on the other: clients that others have written.

use crate::acks::{SECRET, token};
use crate::instances::nodes;
use crate::node::Node;
use crate::redis::{Redis, wait_until};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// Where `tests/clients/install.sh` puts what the clients need.
pub fn installed(what: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-clients").join(what);
    assert!(path.exists(), "{} is missing: run tests/clients/install.sh", path.display());
    path
}

/// Node, so that it finds what was installed for it.
pub fn node_js(script: &str) -> Command {
    let mut command = Command::new("node");
    command.env("NODE_PATH", installed("node/node_modules"));
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(script));
    command
}

/// Python, with what was installed for it.
pub fn python(script: &str) -> Command {
    let mut command = Command::new(installed("venv/bin/python"));
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(script));
    command
}

/// A client program: lines in are messages it sends, lines out are messages it heard.
pub struct Piped {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Piped {
    pub fn start(mut command: Command, node: &Node, query: &str) -> Piped {
        command.arg(format!("ws://{}/ws{query}", node.addr));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().expect("it is piped"));
        Piped { child, stdin, stdout }
    }

    pub fn say(&mut self, text: &str) {
        let stdin = self.stdin.as_mut().expect("it has not been closed");
        writeln!(stdin, "{text}").expect("the client reads");
    }

    pub fn hear(&mut self) -> Value {
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("the client speaks or ends");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }

    /// Lets it close; answers the close code that it heard.
    fn close(mut self) -> Value {
        self.stdin = None;
        let closed = self.hear();
        assert!(self.child.wait().expect("our own child").success());
        closed["closed"].clone()
    }
}

impl Drop for Piped {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn python_and_node_exchange_room_user_and_broadcast_messages_over_two_instances() {
    let redis = Redis::start();
    let [a, b] = nodes(&redis, &[]);
    let mut py = Piped::start(python("clients/pipe.py"), &a, "?room_id=tower");
    let mut js = Piped::start(node_js("clients/pipe.js"), &b, "");
    let welcomes = [py.hear(), js.hear()];
    let [py_user, js_user] = welcomes.map(|welcome| {
        assert_eq!((&welcome["type"], &welcome["ping_interval"]), (&json!("welcome"), &json!(25)));
        welcome["user_id"].as_str().expect("a name").to_owned()
    });
    assert_eq!(py.hear(), json!({"type":"ok","room_id":"tower"}));
    js.say(r#"{"type":"join","room_id":"tower","id":"j"}"#);
    assert_eq!(js.hear(), json!({"type":"ok","id":"j","room_id":"tower"}));

    // A room, in full and in short.
    let to_room = |from: &str, payload: Value| json!({"type":"message","room_id":"tower","from":from,"payload":payload});
    py.say(r#"{"type":"publish","room_id":"tower","payload":{"full":"é €😀"}}"#);
    let expected = to_room(&py_user, json!({"full":"é €😀"}));
    assert_eq!((py.hear(), js.hear()), (expected.clone(), expected));
    js.say(r#"{"room_id":"tower","payload":["short"]}"#);
    let expected = to_room(&js_user, json!(["short"]));
    assert_eq!((py.hear(), js.hear()), (expected.clone(), expected));

    // A user, in full and in short.
    let to_user = |user: &str, from: &str, payload: Value| json!({"type":"message","target_user_id":user,"from":from,"payload":payload});
    py.say(&json!({"type":"send","target_user_id":js_user,"payload":1}).to_string());
    assert_eq!(js.hear(), to_user(&js_user, &py_user, json!(1)));
    js.say(&json!({"target_user_id":py_user,"payload":2}).to_string());
    assert_eq!(py.hear(), to_user(&py_user, &js_user, json!(2)));

    // Everybody.
    for (n, from) in [&py_user, &js_user].into_iter().enumerate() {
        let speaker = if n == 0 { &mut py } else { &mut js };
        speaker.say(&json!({"type":"broadcast","payload":n}).to_string());
        let expected = json!({"type":"message","broadcast":true,"from":from,"payload":n});
        assert_eq!((py.hear(), js.hear()), (expected.clone(), expected));
    }

    // Requests are answered, and errors close nothing.
    for client in [&mut py, &mut js] {
        client.say("nonsense");
        assert_eq!(client.hear()["code"], "bad_json");
        client.say(r#"{"type":"ping","id":9}"#);
        assert_eq!(client.hear(), json!({"type":"pong","id":9}));
    }
    assert_eq!((py.close(), js.close()), (json!(1000), json!(1000)));
    a.wait_until_empty();
    b.wait_until_empty();
}

/// The next one of a type; whatever comes before it is left out.
fn hear_type(client: &mut Piped, wanted: &str) -> Value {
    loop {
        let said = client.hear();
        if said["type"] == wanted {
            return said;
        }
    }
}

#[test]
fn python_and_the_http_api_use_all_that_is_kept_over_two_instances() {
    let redis = Redis::start();
    let spaces = "chat: history_size=100, acks=true, presence=true, presence_grace_ms=0; \
                  @users: history_size=10, history_ttl_s=600";
    let [a, b] = nodes(&redis, &["--namespaces", spaces, "--auth-hmac-secret", SECRET]);
    let enter = |node: &Node, user: &str| {
        Piped::start(python("clients/pipe.py"), node, &format!("?token={}", token(user)))
    };
    // What was said, read by both; who is there; how far a member has come.
    let mut ann = enter(&a, "ann");
    ann.say(r#"{"type":"join","room_id":"chat:a","ack":true,"info":{"name":"Ann"},"id":1}"#);
    while hear_type(&mut ann, "ok")["id"] != 1 {}
    for number in 1..=3 {
        let body = json!({"room_id":"chat:a","payload":number,"key":number.to_string()});
        assert_eq!(b.post("/v1/publish", &body.to_string()).json()["offset"], number);
        assert_eq!(hear_type(&mut ann, "message")["payload"], number);
    }
    ann.say(r#"{"type":"history","room_id":"chat:a","limit":2,"reverse":true,"id":2}"#);
    let said = hear_type(&mut ann, "history");
    let http = b.get("/v1/rooms/chat:a/history?limit=2&reverse=true").json();
    assert_eq!(
        (&said["messages"], &said["messages"][0]["payload"]),
        (&http["messages"], &json!(3))
    );
    ann.say(r#"{"type":"ack","room_id":"chat:a","offset":2,"id":3}"#);
    while hear_type(&mut ann, "ok")["id"] != 3 {}
    assert_eq!(a.get("/v1/rooms/chat:a").json()["acks"]["lowest_offset"], 2);
    ann.say(r#"{"type":"presence","room_id":"chat:a","id":4}"#);
    let here = hear_type(&mut ann, "presence");
    assert_eq!((&here["count"], &here["users"][0]["info"]["name"]), (&json!(1), &json!("Ann")));
    assert_eq!(b.get("/v1/rooms/chat:a/presence").json()["users"], here["users"]);
    // What is sent to somebody who is away waits for them, on whichever instance they come back.
    for number in 1..=2 {
        let body = json!({"target_user_id":"bob","payload":number});
        assert_eq!(a.post("/v1/publish", &body.to_string()).status, 200);
    }
    let mut bob = enter(&b, "bob");
    let payloads = [(); 2].map(|()| hear_type(&mut bob, "message")["payload"].clone());
    assert_eq!(payloads, [1, 2]);
    bob.say(r#"{"type":"ack","offset":1,"id":5}"#);
    while hear_type(&mut bob, "ok")["id"] != 5 {}
    wait_until("Redis knows it", || b.metric_where("campanile_user_acks_total", "stored") >= 1);
    assert_eq!(bob.close(), 1000);
    let mut bob = enter(&a, "bob");
    assert_eq!(hear_type(&mut bob, "message")["payload"], 2, "and not 1 once more");
}
