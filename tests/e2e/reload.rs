//! SIGHUP: what a running node takes over of a configuration that has changed, and what it refuses.

use crate::client::{CLOSE, Client, FIN};
use crate::http;
use crate::node::Node;
use crate::redis::wait_until;
use campanile::auth::{TokenRequest, mint};
use campanile::config::{ReloadClass, SETTINGS};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

const SECRET: &str = "the first secret of these tests";
const OTHER_SECRET: &str = "the second secret of these tests";
const KEY: &str = "the first key of these tests";
const OTHER_KEY: &str = "the second key of these tests";

/// A node with a configuration file that changes.
struct Reloading {
    node: Node,
    file: PathBuf,
}

impl Reloading {
    fn start(text: &str) -> Reloading {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let file = PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("reload-{}-{number}.toml", std::process::id()));
        std::fs::write(&file, text).expect("a file");
        let path = file.to_str().expect("UTF-8");
        let node = Node::start_ready(&["--config", path, "--shards", "2"]);
        Reloading { node, file }
    }

    fn count(&self, result: &str) -> u64 {
        let label = format!("result=\"{result}\"");
        self.node.metric_where("campanile_config_reloads_total", &label)
    }

    /// Writes the file, sends SIGHUP, and waits for this result.
    fn reload(&self, text: &str, result: &str) {
        std::fs::write(&self.file, text).expect("a file");
        let before = self.count(result);
        self.node.signal("-HUP");
        wait_until("the reload is over", || self.count(result) > before);
    }

    fn apply(&self, text: &str) {
        self.reload(text, "applied");
    }

    /// The last line that a reload has logged.
    fn last_line(&self) -> String {
        let log = self.node.logged();
        log.lines().rfind(|line| line.contains("SIGHUP")).expect("a reload is logged").to_owned()
    }

    /// What the last reload has logged.
    fn last_report(&self) -> String {
        let log = self.node.logged();
        let from = log.rfind("SIGHUP: the configuration was reloaded").expect("it is logged");
        log[from..].to_owned()
    }

    fn status(&self, path: &str, headers: &str) -> u16 {
        match Client::try_open(self.node.addr, path, headers) {
            Ok(_) => 101,
            Err(reply) => reply.status,
        }
    }

    /// Shards take a plan over on their next tick.
    fn wait_for_status(&self, path: &str, headers: &str, status: u16) {
        let what = format!("{path} {headers} is answered {status}");
        wait_until(&what, || self.status(path, headers) == status);
    }
}

impl Drop for Reloading {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.file);
    }
}

fn token_of(secret: &str, user: &str) -> String {
    let request = TokenRequest {
        user: user.to_owned(),
        rights: None,
        rooms: Vec::new(),
        send: Vec::new(),
        info: None,
        issued_unix_s: 1_000_000_000,
        expires_unix_s: 4_000_000_000,
    };
    mint(&request, secret).expect("a good request")
}

fn closed_with(client: &mut Client) -> (u16, String) {
    let frame = client.close_frame();
    client.send(FIN | CLOSE, &frame.0.to_be_bytes());
    frame
}

#[test]
fn connections_of_a_removed_key_are_closed_and_new_tokens_are_checked_with_the_new_one() {
    let with = |secret: &str| format!("[auth]\nhmac_secret = \"{secret}\"\nanonymous = true\n");
    let running = Reloading::start(&with(SECRET));
    let [old, new] = [SECRET, OTHER_SECRET].map(|secret| token_of(secret, "ann"));
    let mut ann = Client::greeted(running.node.addr, &[], &old).0;
    let mut guest = Client::join(running.node.addr, &["tower"]);
    running.apply(&with(OTHER_SECRET));
    assert_eq!(closed_with(&mut ann), (4401, "not_admitted".to_owned()));
    running.wait_for_status(&format!("/ws?token={old}"), "", 401);
    let mut again = Client::greeted(running.node.addr, &["tower"], &new).0;
    again.say(r#"{"room_id":"tower","payload":"here"}"#);
    assert_eq!((again.hear_payload(), guest.hear_payload()), (json!("here"), json!("here")));
    let log = running.node.logged();
    assert!(running.last_line().contains("auth.hmac_secret"), "{log}");
    assert!(!log.contains(SECRET) && !log.contains(OTHER_SECRET), "{log}");
    let closed = || {
        let label = r#"reason="not_admitted""#;
        running.node.metric_where("campanile_connections_closed_total", label)
    };
    wait_until("it is counted", || closed() == 1);
    // Nobody may be anonymous any more.
    running.apply(&with(OTHER_SECRET).replace("true", "false"));
    assert_eq!(closed_with(&mut guest).0, 4401);
    running.wait_for_status("/ws", "", 401);
    again.say(r#"{"room_id":"tower","payload":"still here"}"#);
    assert_eq!(again.hear_payload(), "still here");
}

#[test]
fn new_handshakes_follow_origins_paths_and_proxies() {
    let running = Reloading::start("origins = [\"https://a.example\"]\necho_path = \"/echo\"\n");
    let origin = |name: &str| format!("Origin: https://{name}.example\r\n");
    assert_eq!(running.status("/ws", &origin("a")), 101);
    assert_eq!(running.status("/ws", &origin("b")), 403);
    assert_eq!(running.status("/echo", &origin("a")), 101);
    let mut before =
        Client::try_open(running.node.addr, "/ws?room_id=tower", &origin("a")).unwrap();
    running.apply(
        "origins = [\"https://b.example\"]\npage = false\ntrusted_proxies = [\"127.0.0.1\"]\n",
    );
    running.wait_for_status("/ws", &origin("a"), 403);
    assert_eq!(running.status("/ws", &origin("b")), 101);
    assert_eq!(running.status("/echo", &origin("b")), 404);
    assert_eq!(http::request(running.node.addr, "GET", "/", &[], "").status, 404);
    // A page that is open stays open: its origin is not stored.
    before.hear_type("ok");
    before.say(r#"{"room_id":"tower","payload":"here"}"#);
    assert_eq!(before.hear_payload(), "here");
    let headers = format!("{}X-Forwarded-For: 192.0.2.7\r\n", origin("b"));
    let _named = Client::try_open(running.node.addr, "/ws", &headers).expect("it is admitted");
    wait_until("the proxy is believed", || {
        running.node.get("/v1/connections").body.contains("192.0.2.7")
    });
}

#[test]
fn requests_of_the_api_follow_the_key() {
    let with = |key: &str| format!("[ops]\napi_key = \"{key}\"\n");
    let running = Reloading::start(&with(KEY));
    let status = |key: &str| {
        let bearer = format!("Bearer {key}");
        let headers = [("Authorization", bearer.as_str())];
        http::request(running.node.ops, "GET", "/v1/stats", &headers, "").status
    };
    assert_eq!((status(KEY), status(OTHER_KEY)), (200, 401));
    running.apply(&with(OTHER_KEY));
    assert_eq!((status(KEY), status(OTHER_KEY)), (401, 200));
}

#[test]
fn limits_namespaces_and_the_log_level_hold_at_once() {
    let running =
        Reloading::start("[limits]\nrooms_per_connection_max = 1\nhead_bytes_max = 1024\n");
    let mut client = Client::join(running.node.addr, &["one"]);
    client.say(r#"{"type":"join","room_id":"two","id":1}"#);
    assert_eq!(client.hear_type("error")["code"], "too_many_rooms");
    assert!(!running.node.logged().contains("connection opened"));
    running.apply(
        "drain_ms = 0\n[limits]\nrooms_per_connection_max = 9\nhead_bytes_max = 8192\n\
         [log]\nlevel = \"debug\"\n[namespaces.news]\npublish = \"nobody\"\n",
    );
    // Its request's head is longer than the limit before.
    let long = format!("X-Long: {}\r\n", "x".repeat(2000));
    running.wait_for_status("/ws", &long, 101);
    // Its own shard may take the limits over a moment later.
    wait_until("it may join one more room", || {
        client.say(r#"{"type":"join","room_id":"news:1","id":2}"#);
        let answer = client.hear();
        assert!(answer["type"] == "ok" || answer["code"] == "too_many_rooms", "{answer}");
        answer["type"] == "ok"
    });
    client.say(r#"{"type":"publish","room_id":"news:1","payload":1,"id":3}"#);
    assert_eq!(client.hear_type("error")["code"], "forbidden");
    let log = || running.node.logged();
    wait_until("connections are logged", || log().contains("connection opened"));
    running.node.signal("-TERM");
    let is_logged = || running.node.logged().contains("drain_ms=0");
    wait_until("it drains at once", is_logged);
}

#[test]
fn a_pipe_or_a_file_without_end_in_its_place_is_refused_at_once() {
    let running = Reloading::start("");
    for target in ["/dev/zero", "/dev/null"] {
        std::fs::remove_file(&running.file).expect("it is there");
        std::os::unix::fs::symlink(target, &running.file).expect("a link");
        let before = running.count("refused");
        running.node.signal("-HUP");
        wait_until("the reload is over", || running.count("refused") > before);
        let line = running.last_line();
        assert!(line.contains("nothing is changed") && line.contains("regular file"), "{line}");
    }
}

#[test]
fn a_bad_file_changes_nothing_and_is_one_line_that_says_what_to_write() {
    let good = "origins = [\"https://a.example\"]\n";
    let running = Reloading::start(good);
    let is_unchanged = |line: &str| {
        assert!(line.contains("ERROR") && line.contains("nothing is changed"), "{line}");
        assert_eq!(running.status("/ws", "Origin: https://a.example\r\n"), 101);
        assert_eq!(running.status("/ws", "Origin: https://b.example\r\n"), 403);
    };
    running.reload("origins = [\"https://b.example\"]\ndrain_ms = \"soon\"\n", "refused");
    let line = running.last_line();
    assert!(
        line.contains("drain_ms = \"soon\"") && line.contains("Write a whole number"),
        "{line}"
    );
    is_unchanged(&line);
    running.reload("origins = \n", "refused");
    is_unchanged(&running.last_line());
    // Good by itself, and contradicts a setting that only a restart changes.
    let more = "[limits]\nmessage_bytes_max = 2048\noutbox_bytes_max = 2048\n";
    running.reload(&format!("origins = [\"https://b.example\"]\n{more}"), "refused");
    let line = running.last_line();
    assert!(line.contains("limits.outbox_bytes_max = 2048 is less than"), "{line}");
    is_unchanged(&line);
    let stats: Value = running.node.get("/v1/stats").json();
    let wanted = json!({"reloads_applied": 0, "reloads_refused": 3, "last_reload_unix_s": null});
    assert_eq!(stats["config"], wanted);
    running.apply(good);
    let stats = running.node.get("/v1/stats").json();
    assert!(stats["config"]["last_reload_unix_s"].as_u64().is_some_and(|at| at > 1_700_000_000));
}

/// A line of a file that sets a key.
fn line(key: &str, value: &str) -> String {
    match key.split_once('.') {
        Some((section, name)) => format!("[{section}]\n{name} = {value}\n"),
        None => format!("{key} = {value}\n"),
    }
}

/// A good value that is not the default, and what else it needs.
fn another(
    key: &str,
    kind_wanted: &str,
    default: &str,
    secret_file: &str,
) -> (String, &'static str) {
    let quoted = |text: &str| (format!("{text:?}"), "");
    match key {
        "backplane" => quoted("redis://127.0.0.1:1"),
        "cores" => quoted("0"),
        "echo_path" => quoted("/echo"),
        "log.level" => quoted("debug"),
        "redis.canary_interval_ms" => ("999".to_owned(), ""),
        "namespaces" => quoted("a: publish=nobody"),
        "origins" => quoted("https://a.example"),
        "proxy_protocol" => ("\"optional\"".to_owned(), "trusted_proxies = \"127.0.0.1\"\n"),
        "trusted_proxies" => quoted("10.0.0.0/8"),
        "node.name" | "redis.prefix" | "auth.issuer" | "auth.audience" | "auth.user_claim"
        | "auth.rooms_claim" | "auth.send_claim" | "auth.rights_claim" => quoted("other"),
        "auth.jwks_url" => quoted("http://127.0.0.1:1/"),
        "auth.jwks_tls_ca_file" => quoted("/etc/ca.pem"),
        "auth.required_claims" => quoted("azp=web"),
        "auth.keys_file" => quoted(&keys_file(secret_file)),
        "auth.anonymous" => ("true".to_owned(), ""),
        "auth.first_message_timeout_ms" => (format!("1\nhmac_secret = {SECRET:?}"), ""),
        "auth.anonymous_rights" | "auth.user_rights" => quoted("send"),
        "auth.hmac_secret" | "ops.api_key" | "hooks.secret" => quoted(SECRET),
        "auth.hmac_secret_file" | "ops.api_key_file" | "hooks.secret_file" => quoted(secret_file),
        "ops.public_paths" => ("\"/v1/publish\"\napi_key = \"0123456789abcdef\"".to_owned(), ""),
        "redis.tls_ca_file" | "hooks.tls_ca_file" => quoted("/etc/ca.pem"),
        "hooks.connect_url" => quoted("http://127.0.0.1:1/"),
        "hooks.join_url" => ("\"http://a/\"\n[namespaces.a]\nhook_join = true".to_owned(), ""),
        "hooks.publish_url" => {
            ("\"http://a/\"\n[namespaces.a]\nhook_publish = true".to_owned(), "")
        }
        "hooks.headers" => quoted("cookie"),
        _ if kind_wanted == "true or false" => ((default == "false").to_string(), ""),
        _ => match kind_wanted.strip_prefix("one of ") {
            Some(words) => {
                quoted(words.split(", ").find(|word| *word != default).expect("two words"))
            }
            None => (number_near(kind_wanted, default).to_string(), ""),
        },
    }
}

/// A set of keys beside the secret.
fn keys_file(secret_file: &str) -> String {
    let path = format!("{secret_file}.jwks");
    let set = r#"{"keys":[{"kty":"oct","k":"c2l4dGVlbiBieXRlcyBvciBtb3Jl"}]}"#;
    std::fs::write(&path, set).expect("a file");
    path
}

/// A number in the range that is not the default: `a whole number of bytes from 128 to 1024`.
fn number_near(wanted: &str, default: &str) -> u64 {
    let default: u64 = default.parse().unwrap_or_else(|error| panic!("{wanted}: {error}"));
    let (_, max) = wanted.rsplit_once(" to ").expect("a range");
    let max: u64 = max.parse().expect("a number");
    if default < max { default + 1 } else { default - 1 }
}

#[test]
fn every_key_of_the_table_is_reported_as_applied_or_as_needing_a_restart() {
    let base = "";
    let running = Reloading::start(base);
    let secret_file = running.file.with_extension("secret");
    std::fs::write(&secret_file, SECRET).expect("a file");
    for setting in SETTINGS {
        // Both are flags of this node, which win over the file.
        if matches!(setting.key, "listen" | "ops.listen" | "shards") {
            assert_eq!(setting.reload_class(), ReloadClass::Restart);
            continue;
        }
        let path = secret_file.to_str().expect("UTF-8");
        let wanted = setting.kind.wanted();
        let (value, more) = another(setting.key, &wanted, &setting.default_text(), path);
        running.apply(&format!("{more}{}", line(setting.key, &value)));
        let report = running.last_report();
        let line_of = |text: &str| report.lines().find(|line| line.contains(text)).unwrap_or("");
        let is_named = |line: &str| line.split([' ', '"', ',', '=']).any(|it| it == setting.key);
        let needs_restart = setting.reload_class() == ReloadClass::Restart;
        let key = setting.key;
        assert_eq!(is_named(line_of("was reloaded")), !needs_restart, "{key}: {report}");
        assert_eq!(is_named(line_of("hold after a restart")), needs_restart, "{key}: {report}");
        running.apply(base);
    }
    std::fs::remove_file(secret_file).expect("it is ours");
}
