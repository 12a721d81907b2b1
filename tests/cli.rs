//! The real binary, as far as it goes without a client: help, sample, refusals and exit codes.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The binary, in an environment that says nothing to it.
fn bare() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_campanile"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("CAMPANILE_")) {
        command.env_remove(name);
    }
    command
}

fn campanile(args: &[&str], env: &[(&str, &str)]) -> Output {
    bare().args(args).envs(env.iter().copied()).output().unwrap()
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

/// A file of this test's own, gone with it.
struct Scratch(std::path::PathBuf);

impl Scratch {
    fn new(name: &str, text: &str) -> Scratch {
        let file = format!("campanile-cli-{}-{name}.toml", std::process::id());
        let path = std::env::temp_dir().join(file);
        std::fs::write(&path, text).unwrap();
        Scratch(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn every_subcommand_has_help() {
    for name in ["serve", "load", "doctor", "token", "config"] {
        let output = campanile(&[name, "--help"], &[]);
        assert_eq!(output.status.code(), Some(0), "{name}");
        assert!(stdout(&output).contains("Usage:"), "{name}");
    }
    let output = campanile(&["--help"], &[]);
    for name in ["serve", "load", "doctor", "token", "config"] {
        assert!(stdout(&output).contains(name), "{name}");
    }
    assert_eq!(campanile(&["--version"], &[]).status.code(), Some(0));
}

#[test]
fn the_help_of_serve_names_every_setting_with_its_default() {
    let output = campanile(&["serve", "--help"], &[]);
    let help = stdout(&output).split_whitespace().collect::<Vec<_>>().join(" ");
    for setting in campanile::config::SETTINGS {
        let (flag, default) = (setting.flag(), setting.default_text());
        assert!(help.contains(&format!("--{flag} ")), "--{flag}");
        let default = if default.is_empty() { "none" } else { &default };
        assert!(help.contains(&format!("[default: {default}]")), "{flag}: {default}");
    }
}

#[test]
fn the_help_of_load_shows_the_holes_of_a_template_as_they_are_written() {
    let output = campanile(&["load", "idle", "--help"], &[]);
    let help = stdout(&output).split_whitespace().collect::<Vec<_>>().join(" ");
    for told in [
        "Request path, with {room}, {room_ids}, {token} and {n}; by default",
        "Message sent once a connection is open, with {room} and {n}; repeatable",
    ] {
        assert!(help.contains(told), "{told}: {help}");
    }
}

#[test]
fn config_plan_prints_what_a_start_would_do_without_secrets() {
    let secret = "hunter2-hunter2-hunter2";
    let file = Scratch::new("plan", "shards = 1\n[limits]\nhead_bytes_max = 4096\n");
    let args = ["config", "--plan", "--config", file.path(), "--page", "false"];
    let backplane = format!("redis://:{secret}@192.0.2.1");
    let env = [("CAMPANILE_AUTH_HMAC_SECRET", secret), ("CAMPANILE_BACKPLANE", &backplane)];
    let output = campanile(&args, &env);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let text = stdout(&output);
    let has = |words: &[&str]| {
        text.lines().any(|line| line.split_whitespace().collect::<Vec<_>>().starts_with(words))
    };
    assert!(has(&["limits.head_bytes_max", "4096"]), "{text}");
    assert!(has(&["page", "none"]), "{text}");
    assert!(has(&["shards", "1,"]), "{text}");
    assert!(has(&["together", "at", "most"]), "{text}");
    assert!(!text.contains(secret) && stderr(&output).is_empty(), "{text}");

    let wrong = campanile(&["config", "--plan", "--shards", "many"], &[]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(stderr(&wrong).contains("shards = \"many\""), "{}", stderr(&wrong));
    assert_eq!(campanile(&["config", "--shards", "1"], &[]).status.code(), Some(2), "no plan");
}

#[test]
fn what_config_prints_is_a_good_file() {
    let sample = campanile(&["config"], &[]);
    assert_eq!(sample.status.code(), Some(0));
    let file = Scratch::new("sample", stdout(&sample));
    let checked = campanile(&["config", "--check", file.path()], &[]);
    assert_eq!(checked.status.code(), Some(0), "{}", stderr(&checked));
    let table = campanile(&["config", "--markdown"], &[]);
    assert!(stdout(&table).starts_with("| key | default | meaning |"));
}

#[test]
fn what_is_wrong_is_refused_with_exit_code_2_and_where_it_stands() {
    let typo = Scratch::new("typo", "page = true\n[limits]\nmesage_bytes_max = 1\n");
    let typo_at = format!("{}:3", typo.path());
    let missing = "/nonexistent/campanile.toml";
    for (args, env, told) in [
        (
            vec!["serve", "--shards", "many"],
            vec![],
            vec!["shards", "\"many\"", "--shards", "0 to 1024"],
        ),
        (vec!["serve", "--shard", "1"], vec![], vec!["--shards"]),
        (vec!["serve"], vec![("CAMPANILE_SHARDS", "-1")], vec!["CAMPANILE_SHARDS", "\"-1\""]),
        (vec!["serve"], vec![("CAMPANILE_SHARD", "1")], vec!["Did you mean CAMPANILE_SHARDS?"]),
        (vec!["serve"], vec![("CAMPANILE_CONFIG", missing)], vec![missing, "cannot be read"]),
        (vec!["serve", "--config", missing], vec![], vec![missing, "cannot be read"]),
        (vec!["config", "--check", missing], vec![], vec![missing, "cannot be read"]),
        (
            vec!["config", "--check", typo.path()],
            vec![],
            vec![&typo_at, "limits.message_bytes_max"],
        ),
        (vec!["serve", "--config", typo.path()], vec![], vec![&typo_at]),
        (vec!["serve", "--backplane", "redis+sentinel://h"], vec![], vec!["names no master"]),
        (vec!["serve", "--cores", "4000"], vec![], vec!["core 4000"]),
        (vec!["sing"], vec![], vec!["sing"]),
        (vec![], vec![], vec!["Usage"]),
        (vec!["token", "--user", "ann"], vec![], vec!["--secret", "auth.hmac_secret"]),
        (vec!["token", "--secret", "s"], vec![], vec!["--user"]),
        (vec!["token", "--user", "anon-1", "--secret", "s"], vec![], vec!["anon-"]),
        (
            vec!["token", "--user", "a", "--secret", "s", "--rights", "fly"],
            vec![],
            vec!["fly", "broadcast"],
        ),
    ] {
        let output = campanile(&args, &env);
        assert_eq!(output.status.code(), Some(2), "{args:?} {env:?}: {}", stderr(&output));
        for part in told {
            assert!(stderr(&output).contains(part), "{args:?}: {part}: {}", stderr(&output));
        }
    }
}

#[test]
fn a_port_that_is_taken_is_named_with_its_key_before_anything_starts() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    for (key, listen, ops) in
        [("listen", addr.as_str(), "127.0.0.1:0"), ("ops.listen", "127.0.0.1:0", addr.as_str())]
    {
        let output = campanile(&["serve", "--listen", listen, "--ops-listen", ops], &[]);
        assert_eq!(output.status.code(), Some(1));
        let told = format!("{key} = {addr}: another process listens there");
        assert!(stderr(&output).contains(&told), "{}", stderr(&output));
        assert_eq!(stdout(&output), "", "it does not claim to listen");
    }
    let output = campanile(&["serve", "--listen", "192.0.2.1:1"], &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("does not have that address"), "{}", stderr(&output));
}

#[test]
fn a_token_is_signed_with_the_secret_of_the_flag_the_environment_or_the_file() {
    let file = Scratch::new("secret", "[auth]\nhmac_secret = \"a secret from the file\"\n");
    for (args, env, secret) in [
        (vec!["--secret", "a secret from the flag"], vec![], "a secret from the flag"),
        (
            vec!["--auth-hmac-secret", "a secret from the setting"],
            vec![],
            "a secret from the setting",
        ),
        (
            vec![],
            vec![("CAMPANILE_AUTH_HMAC_SECRET", "a secret from the env")],
            "a secret from the env",
        ),
        (vec!["--config", file.path()], vec![], "a secret from the file"),
    ] {
        let mut all = vec!["token", "--user", "ann", "--ttl", "60", "--rights", "send,broadcast"];
        all.extend(args);
        let output = campanile(&all, &env);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let authenticator = campanile::auth::Authenticator::new(&campanile::auth::AuthPlan {
            anonymous: false,
            hmac_secret: Some(secret.to_owned()),
            keys: Default::default(),
            issuer: None,
            audience: None,
            claims: Default::default(),
            jwks: None,
            leeway_s: 2,
            first_message_timeout_ms: 0,
            expiry_notice_s: 0,
            anonymous_rights: campanile::policy::rights::Rights::NONE,
            user_rights: campanile::policy::rights::Rights::NONE,
        });
        // Judged long before it expires: when it expires is not what is asked here.
        let identity = authenticator.admit(Some(stdout(&output).trim()), 0).unwrap();
        assert_eq!(identity.user.as_deref(), Some("ann"));
        assert_eq!(identity.rights.names(), ["send", "broadcast"]);
    }
}

#[test]
fn the_doctor_fails_when_something_is_missing_and_says_what_would_fix_it() {
    // More memory than any machine has, so that at least one thing is missing everywhere.
    let output = campanile(&["doctor", "--connections", "100000000"], &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stdout(&output).contains("MISSING"), "{}", stdout(&output));
    assert!(stdout(&output).contains("LimitNOFILE=100000"), "{}", stdout(&output));

    let closed = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = closed.local_addr().unwrap();
    drop(closed);
    let url = format!("redis://{addr}");
    let output = campanile(&["doctor", "--connections", "1", "--backplane", &url], &[]);
    assert_eq!(output.status.code(), Some(1));
    let told = format!("an answer from {addr}");
    assert!(stdout(&output).contains(&told), "{}", stdout(&output));
}

#[test]
fn no_secret_is_printed_however_the_start_fails() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let env = [
        ("CAMPANILE_AUTH_HMAC_SECRET", "hunter2-hunter2-hunter2"),
        ("CAMPANILE_OPS_API_KEY", "hunter2-hunter2-hunter2"),
        ("CAMPANILE_BACKPLANE", "redis://:hunter2-hunter2-hunter2@127.0.0.1:1"),
        ("CAMPANILE_LOG_LEVEL", "trace"),
    ];
    let output = campanile(&["serve", "--listen", &addr], &env);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("redis://***@127.0.0.1:1"), "{}", stderr(&output));
    assert!(!stderr(&output).contains("hunter2"), "{}", stderr(&output));
}

/// Standard output or error of which nobody has the other end.
fn unheard() -> std::io::PipeWriter {
    std::io::pipe().unwrap().1
}

/// `… | head -1`, and worse: the reader of `campanile` has gone before the first word.
#[test]
fn a_reader_who_has_had_enough_is_no_error() {
    for (args, code) in [
        (vec!["--help"], 0),
        (vec!["serve", "--help"], 0),
        (vec!["--version"], 0),
        (vec!["config"], 0),
        (vec!["config", "--markdown"], 0),
        (vec!["token", "--user", "ann", "--secret", "0123456789"], 0),
        (vec!["doctor", "--connections", "100000000"], 1),
    ] {
        let output = bare().args(&args).stdout(unheard()).output().unwrap();
        assert_eq!((output.status.code(), stderr(&output)), (Some(code), ""), "{args:?}");
    }
}

#[test]
fn what_is_asked_for_and_cannot_be_written_is_an_error() {
    for args in [vec!["--help"], vec!["config"], vec!["doctor", "--connections", "1"]] {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let output = bare().args(&args).stdout(full).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert!(stderr(&output).contains("cannot write to standard output"), "{}", stderr(&output));
    }
}

#[test]
fn an_error_that_nobody_hears_keeps_its_exit_code() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let idle = ["load", "idle", "--conns", "1", "--retries", "0", "--url", "ws://127.0.0.1:1/ws"];
    for (args, code) in [
        (vec!["serve", "--shards", "many"], 2),
        (vec!["serve", "--no-such-flag"], 2),
        (vec!["serve", "--cores", "4000"], 2),
        (vec!["serve", "--listen", &addr], 1),
        (vec!["config", "--check", "/nonexistent"], 2),
        (vec!["token", "--user", "ann"], 2),
        (vec!["load", "idle", "--url", "nowhere"], 2),
        (idle.to_vec(), 1),
    ] {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        for stderr in [Stdio::from(unheard()), Stdio::from(full)] {
            let status = bare().args(&args).stdout(unheard()).stderr(stderr).status().unwrap();
            assert_eq!(status.code(), Some(code), "{args:?}: {status}");
        }
    }
}

/// A running node; killed with the test that started it.
struct Node {
    child: Child,
    ops: String,
}

impl Node {
    fn start(args: &[&str]) -> Node {
        let mut child = bare()
            .args(["serve", "--listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0"])
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let rest = line.trim().strip_prefix("campanile: listening on ws://127.0.0.1:");
        let (listen, ops) =
            rest.and_then(|rest| rest.split_once("/ws, ops on http://")).expect("the ready line");
        assert_ne!(listen, "0", "a port has been found");
        Node { child, ops: ops.to_owned() }
    }

    fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(&self.ops).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.ops)
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_bare_node_gets_ready_and_ends_well_when_it_is_told_to() {
    for (signal, args) in [
        ("TERM", vec!["--shards", "1"]),
        ("INT", vec!["--shards", "5", "--private-fd-tables", "true"]),
    ] {
        let mut node = Node::start(&args);
        let deadline = Instant::now() + Duration::from_secs(30);
        while !node.get("/readyz").starts_with("HTTP/1.1 200") {
            assert!(Instant::now() < deadline, "never ready: {}", node.get("/readyz"));
            std::thread::yield_now();
        }
        let stats = node.get("/v1/stats");
        assert!(stats.contains(&format!("\"shards\":{}", args[1])), "{stats}");
        node.signal(signal);
        assert_eq!(node.child.wait().unwrap().code(), Some(0), "{signal}");
    }
}
