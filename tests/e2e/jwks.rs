//! Keys that are read from a URL, of a provider that rotates them, goes away, lies and is slow.
#![allow(clippy::disallowed_types)] // the law is about deliveries; this is a server of the test

use crate::client::{Client, request_head};
use crate::node::Node;
use crate::redis::wait_until;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

/// A key of the provider.
struct Key {
    id: &'static str,
    pair: EcdsaKeyPair,
}

impl Key {
    fn new(id: &'static str) -> Key {
        let kind = &ECDSA_P256_SHA256_FIXED_SIGNING;
        let random = SystemRandom::new();
        let der = EcdsaKeyPair::generate_pkcs8(kind, &random).expect("a key");
        let pair = EcdsaKeyPair::from_pkcs8(kind, der.as_ref(), &random).expect("the same");
        Key { id, pair }
    }

    fn jwk(&self) -> Value {
        let (x, y) = self.pair.public_key().as_ref()[1..].split_at(32);
        let [x, y] = [x, y].map(|half| BASE64.encode(half));
        json!({"kty": "EC", "crv": "P-256", "kid": self.id, "use": "sig", "x": x, "y": y})
    }

    fn token(&self, user: &str) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is past 1970").as_secs();
        let header = json!({"alg": "ES256", "kid": self.id});
        let claims = json!({"sub": user, "iss": "https://idp/", "exp": now + 600});
        let text = [header, claims].map(|part| BASE64.encode(part.to_string())).join(".");
        let signed = self.pair.sign(&SystemRandom::new(), text.as_bytes()).expect("it signs");
        format!("{text}.{}", BASE64.encode(signed.as_ref()))
    }
}

fn set(keys: &[&Key]) -> String {
    json!({"keys": keys.iter().map(|key| key.jwk()).collect::<Vec<_>>()}).to_string()
}

/// What the provider answers.
#[derive(Clone)]
enum Answer {
    Set(String),
    Raw(String),
    /// A head, half of a body, and silence until the client has gone.
    Hangs,
    /// Nothing: the connection ends.
    Gone,
}

struct Provider {
    port: u16,
    answer: Arc<Mutex<Answer>>,
    asked: Arc<AtomicUsize>,
}

impl Provider {
    fn start(answer: Answer) -> Provider {
        let listener = TcpListener::bind(("127.0.0.1", crate::redis::free_port())).expect("a port");
        let port = listener.local_addr().expect("it is bound").port();
        let (answer, asked) = (Arc::new(Mutex::new(answer)), Arc::new(AtomicUsize::new(0)));
        let (answers, counter) = (answer.clone(), asked.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                counter.fetch_add(1, Ordering::SeqCst);
                let answer = answers.lock().expect("nobody panics with it").clone();
                std::thread::spawn(move || serve(stream, answer));
            }
        });
        Provider { port, answer, asked }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}/jwks.json", self.port)
    }

    fn answers(&self, answer: Answer) {
        *self.answer.lock().expect("nobody panics with it") = answer;
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

fn serve(mut stream: TcpStream, answer: Answer) {
    let (mut head, mut buffer) = (Vec::new(), [0; 4096]);
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return,
            Ok(bytes) => head.extend_from_slice(&buffer[..bytes]),
        }
    }
    let text = match answer {
        Answer::Gone => return,
        Answer::Raw(text) => text,
        Answer::Hangs => "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{\"keys\":".to_owned(),
        Answer::Set(set) => format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{set}",
            set.len()
        ),
    };
    let _ = stream.write_all(text.as_bytes());
    // Until the client gives up.
    if !text.contains("Connection: close") {
        while stream.read(&mut buffer).is_ok_and(|bytes| bytes > 0) {}
    }
}

fn status(node: &Node, token: &str) -> u16 {
    match Client::try_open(node.addr, &format!("/ws?token={token}"), "") {
        Ok(_) => 101,
        Err(reply) => reply.status,
    }
}

fn start(url: &str, more: &[&str]) -> Node {
    let args = ["--shards", "2", "--auth-jwks-url", url, "--auth-issuer", "https://idp/"];
    Node::start(&[&args[..], &["--auth-jwks-refresh-min-s", "1"], more].concat())
}

const READS: &str = "campanile_jwks_reads_total";

#[test]
fn keys_are_rotated_under_a_running_node_and_what_was_read_last_holds_in_an_outage() {
    let [old, new] = ["old", "new"].map(Key::new);
    let provider = Provider::start(Answer::Set(set(&[&old])));
    let node = start(&provider.url(), &[]);
    wait_until("the keys were read", || node.is_ready());
    let (mut ann, welcome) = Client::greeted(node.addr, &["hall"], &old.token("ann"));
    assert_eq!(welcome["user_id"], "ann");
    assert_eq!(status(&node, &Key::new("old").token("eve")), 401, "another key of that name");
    provider.answers(Answer::Set(set(&[&new])));
    // The first one to come with the new key has the keys read again, and waits for them.
    assert_eq!(status(&node, &new.token("bob")), 101);
    assert_eq!(status(&node, &old.token("ann")), 401, "the old key is gone");
    ann.say(r#"{"room_id":"hall","payload":"still here"}"#);
    assert_eq!(ann.hear_payload(), "still here", "connections stay");
    provider.answers(Answer::Gone);
    let failed = || node.metric_where(READS, r#"result="failed""#);
    let stranger = Key::new("other");
    assert_eq!(status(&node, &stranger.token("eve")), 503, "it is not known whether it is one");
    wait_until("the outage is noticed", || failed() > 1);
    assert_eq!(status(&node, &new.token("bob")), 101);
    assert!(node.is_ready(), "it works as before");
    assert!(node.logged().contains("the keys of tokens cannot be read"));
    assert!(provider.asked() as u64 >= failed(), "each failure was a question");
}

#[test]
fn a_node_is_not_ready_before_the_first_set_and_takes_none_from_a_provider_that_lies() {
    let key = Key::new("1");
    let provider = Provider::start(Answer::Gone);
    let node =
        start(&provider.url(), &["--auth-anonymous", "true", "--auth-jwks-timeout-ms", "300"]);
    let why = || node.get("/readyz").json()["reason"].clone();
    wait_until("it says what is missing", || why() == "keys");
    assert_eq!(status(&node, &key.token("ann")), 503);
    Client::greeted(node.addr, &["hall"], "").1["user_id"]
        .as_str()
        .expect("anonymous clients come");
    let raw = |head: &str, body: String| {
        let length = body.len();
        Answer::Raw(format!(
            "HTTP/1.1 {head}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        ))
    };
    let good = set(&[&key]);
    let secret = json!({"keys": [{"kty": "oct", "k": "c2l4dGVlbiBieXRlcyBvciBtb3Jl"}]}).to_string();
    for answer in [
        raw("500 Internal Server Error", good.clone()),
        raw(&format!("302 Found\r\nLocation: {}", provider.url()), good.clone()),
        raw("200 OK", "<html>".to_owned()),
        raw("200 OK", "{\"keys\":[{}]}".to_owned()),
        raw("200 OK", secret),
        raw("200 OK", format!("{}{good}", " ".repeat(300 * 1024))),
        Answer::Raw("220 smtp.example ESMTP\r\n".to_owned()),
        Answer::Hangs,
    ] {
        let before = (provider.asked(), node.metric_where(READS, r#"result="failed""#));
        provider.answers(answer);
        wait_until("it was asked, and took nothing", || {
            let failed = node.metric_where(READS, r#"result="failed""#);
            provider.asked() >= before.0 + 2 && failed >= before.1 + 2
        });
        assert_eq!((why(), node.metric("campanile_jwks_keys")), (json!("keys"), 0));
    }
    provider.answers(Answer::Set(good));
    wait_until("a good set is taken", || node.is_ready());
    wait_until("on each shard", || (0..8).all(|_| status(&node, &key.token("ann")) == 101));
    assert_eq!(node.metric("campanile_jwks_keys"), 1);
}

#[test]
fn a_token_of_a_new_key_waits_for_it_wherever_it_stands() {
    let keys = ["1", "2", "3"].map(Key::new);
    let [first, second, third] = keys.each_ref();
    let provider = Provider::start(Answer::Set(set(&[first])));
    let node = start(&provider.url(), &["--auth-first-message-timeout-ms", "60000"]);
    wait_until("the keys were read", || node.is_ready());
    let auth = |token: &str, id| json!({"type": "auth", "token": token, "id": id}).to_string();
    provider.answers(Answer::Set(set(&[first, second])));
    let mut ann = Client::open(node.addr, "/ws");
    ann.say(auth(&second.token("ann"), 1));
    assert_eq!(ann.hear_type("welcome")["user_id"], "ann");
    assert_eq!(ann.hear_type("ok")["id"], 1);
    provider.answers(Answer::Set(set(&[first, second, third])));
    ann.say(auth(&third.token("ann"), 2));
    assert_eq!(ann.hear_type("ok")["id"], 2);
    ann.say(auth(&Key::new("4").token("ann"), 3));
    let refused = ann.hear_type("error");
    assert_eq!((&refused["code"], &refused["id"]), (&json!("unauthorized"), &json!(3)));
    ann.say(r#"{"type":"join","room_id":"hall","id":4}"#);
    assert_eq!(ann.hear_type("ok")["id"], 4, "it is read again");
    let mut eve = Client::open(node.addr, "/ws");
    eve.say(auth(&Key::new("4").token("eve"), 1));
    assert_eq!(eve.hear_type("error")["code"], "unauthorized");
    assert_eq!(eve.closed_with().0, 4401);
}

#[test]
fn so_many_wait_for_keys_and_whoever_comes_then_comes_again() {
    const PLACES: usize = 256;
    let [old, new] = ["old", "new"].map(Key::new);
    let provider = Provider::start(Answer::Set(set(&[&old])));
    let url = provider.url();
    let args = ["--shards", "1", "--auth-jwks-url", &url, "--auth-jwks-refresh-min-s", "1"];
    let times = ["--auth-jwks-timeout-ms", "300", "--limits-handshake-timeout-ms", "60000"];
    let node = Node::start(&[&args[..], &times].concat());
    wait_until("the keys were read", || node.is_ready());
    provider.answers(Answer::Hangs);
    let head = request_head(node.addr, &format!("/ws?token={}", new.token("ann")), "");
    let mut waiting: Vec<TcpStream> = (0..PLACES)
        .map(|_| {
            let mut stream = TcpStream::connect(node.addr).expect("it listens");
            stream.write_all(head.as_bytes()).expect("it reads");
            stream
        })
        .collect();
    node.wait_for("campanile_connections_waiting_for_keys", PLACES as u64);
    assert_eq!(status(&node, &new.token("ann")), 503, "there is no place");
    assert_eq!(status(&node, &old.token("bob")), 101, "a known key needs none");
    provider.answers(Answer::Set(set(&[&old, &new])));
    for stream in &mut waiting {
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).expect("an answer");
        assert_eq!(&answer, b"HTTP/1.1 101");
    }
    node.wait_for("campanile_connections_waiting_for_keys", 0);
}

#[test]
fn keys_in_a_file_hold_from_the_start_while_the_provider_is_away() {
    let key = Key::new("1");
    let path = std::path::PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("jwks-{}.json", std::process::id()));
    std::fs::write(&path, set(&[&key])).expect("a file");
    let nobody = format!("http://127.0.0.1:{}/", crate::redis::free_port());
    let node = start(&nobody, &["--auth-keys-file", path.to_str().expect("UTF-8")]);
    wait_until("it is ready", || node.is_ready());
    assert_eq!(status(&node, &key.token("ann")), 101);
    std::fs::remove_file(&path).expect("ours");
}

/// `openssl s_server`, which serves the files of its folder.
struct Tls(Child);

impl Drop for Tls {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_provider_over_tls_is_believed_only_with_the_certificate_of_a_known_authority() {
    let folder = std::path::PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("jwks-tls-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let key = Key::new("1");
    std::fs::write(folder.join("jwks.json"), set(&[&key])).expect("a file");
    let openssl = |args: &[&str]| {
        let mut command = Command::new("openssl");
        command.args(args).current_dir(&folder).stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    let made = openssl(&[
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
        "-addext",
        "subjectAltName=IP:127.0.0.1",
        "-addext",
        "basicConstraints=critical,CA:FALSE",
        "-keyout",
        "key.pem",
        "-out",
        "cert.pem",
    ])
    .status();
    assert!(made.expect("openssl(1)").success());
    let port = crate::redis::free_port().to_string();
    let server =
        openssl(&["s_server", "-WWW", "-accept", &port, "-cert", "cert.pem", "-key", "key.pem"])
            .spawn();
    let _server = Tls(server.expect("openssl(1)"));
    let url = format!("https://127.0.0.1:{port}/jwks.json");
    let stranger = start(&url, &[]);
    wait_until("the certificate is refused", || stranger.logged().contains("UnknownIssuer"));
    assert!(!stranger.is_ready());
    let authority = folder.join("cert.pem");
    let node = start(&url, &["--auth-jwks-tls-ca-file", authority.to_str().expect("UTF-8")]);
    wait_until("the keys were read", || node.is_ready());
    wait_until("they are known", || status(&node, &key.token("ann")) == 101);
    std::fs::remove_dir_all(&folder).expect("ours");
}
