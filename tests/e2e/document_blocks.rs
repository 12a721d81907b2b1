//! What the documents show works as it stands there: every block of commands, code, configuration
//! and conversation is run against real nodes.
//!
//! The ports of a document stand for free ones. A node is started for the blocks that need one, with
//! the configuration that stands before them. In a conversation names and numbers that differ from
//! run to run stand for those of this run: the same one must come wherever the document has the same
//! one. `"…"` stands for any value.

use crate::client::Client;
use crate::documents::{Block, Check, Document, documents, root};
use crate::guarded;
use crate::http;
use crate::node::{Node, binary};
use crate::other_clients::installed;
use crate::redis::{Redis, free_port, wait_until};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// Blocks that are not run: the document and how the block begins.
const NOT_RUN: &[(&str, &str)] = &[
    ("CONTRIBUTING.md", "CARGO_INCREMENTAL=1 cargo check --all-targets"),
    ("CONTRIBUTING.md", "CAMPANILE_WRITE_DOCS=1 cargo test --test documents"),
    ("README.md", "cargo run --release -- serve        # run it"),
    ("README.md", "  clients ──TCP──►"),
    ("docs/authentication.md", "<?php"),
    ("docs/authentication.md", "package main"),
    ("docs/authentication.md", "   exports.onExecutePostLogin"),
    ("docs/authentication.md", "   [auth]\n   jwks_url"),
    ("docs/getting-started.md", "cargo install --locked --path ."),
    ("docs/limits.md", "campanile doctor --connections 1000000"),
    ("docs/operations.md", "campanile doctor --connections 1000000"),
    ("docs/protocol.md", "[auth]\nkeys_file"),
];

/// Ports that documents name.
const PORTS: [u16; 7] = [8080, 8081, 8082, 8090, 9091, 9092, 6379];

/// Keys whose values differ from run to run.
const BOUND: [&str; 8] = [
    "epoch",
    "connection_id",
    "node",
    "user_id",
    "from",
    "target_user_id",
    "issued_before",
    "until",
];

/// How long a block may take before it is ended.
const BLOCK_SECONDS_MAX: &str = "60";

/// What stands for a token of this user.
const TOKEN_OF: &str = "TOKEN-OF-";

#[test]
fn every_block_of_the_documents_works_as_it_stands_there() {
    let mut counts = BTreeMap::<String, usize>::new();
    let mut complaints = Vec::new();
    for document in documents() {
        let blocks = document.blocks().unwrap_or_else(|why| panic!("{why}"));
        for block in &blocks {
            let kind = format!("{:?}", block.check);
            let kind = kind.split([' ', '{']).next().expect("a name").to_owned();
            *counts.entry(kind).or_default() += 1;
        }
        complaints.extend(run(&document).err());
    }
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
    println!("blocks by how they are checked: {counts:?}");
    assert!(counts["Exchange"] >= 8 && counts["Shell"] >= 8, "{counts:?}");
}

#[test]
fn blocks_that_are_not_run_are_those_that_are_listed() {
    let mut found = Vec::new();
    for document in documents() {
        for block in document.blocks().unwrap_or_else(|why| panic!("{why}")) {
            if let Check::NotRun { reason } = block.check {
                println!("{}:{} is not run: {reason}", document.path, block.line);
                found.push((document.path.clone(), block.text));
            }
        }
    }
    for (path, text) in &found {
        let is_listed =
            NOT_RUN.iter().any(|(listed, head)| listed == path && text.starts_with(head));
        assert!(is_listed, "a block of {path} is not run and not listed in NOT_RUN: {text}");
    }
    assert_eq!(found.len(), NOT_RUN.len(), "strike from NOT_RUN what is run now: {found:?}");
}

#[test]
fn a_block_that_is_not_true_is_found() {
    let untrue = [
        ("```sh\nfalse\n```", "exit"),
        ("```sh\necho one\n```\n```text output\ntwo\n```", "one"),
        ("```js\nprocess.exit(3);\n```", "exit"),
        ("```toml\nlisten = true\n```", "listen"),
        ("```json\n{\"a\":…}\n```", "JSON"),
        (
            "```text exchange\nann > {\"type\":\"ping\"}\nann < {\"type\":\"pong\",\"id\":1}\n```",
            "pong",
        ),
        ("```text exchange\nann says hello\n```", "says"),
        (
            "```sh\ncurl -s http://127.0.0.1:8090/readyz\n```\n```json output\n{\"ready\":false}\n```",
            "ready",
        ),
        ("```text output\nnothing\n```", "before"),
        ("```\ncode\n```", "checked"),
        ("```sh no-run=\"no\"\ncode\n```", "why"),
        ("```perl\ncode\n```", "checked"),
        ("```sh\ncode\n", "end"),
        ("text\n\n    code\n", "begins with"),
    ];
    for (text, why) in untrue {
        let found = run(&Document::of(text)).expect_err(text);
        assert!(found.starts_with("made up:") && found.contains(why), "{text}: {found}");
    }
    let bound = "```text exchange\nann > {\"room_id\":\"a\",\"type\":\"join\"}\n\
                 ann < {\"type\":\"ok\",\"room_id\":\"a\"}\n\
                 ann > {\"room_id\":\"a\",\"payload\":1}\n\
                 ann < {\"type\":\"message\",\"room_id\":\"a\",\"from\":\"bob\",\"payload\":1}\n```";
    assert_eq!(run(&Document::of(&bound.replace("bob", "ann"))), Ok(()));
    assert!(run(&Document::of(bound)).is_ok(), "an anonymous user has any name");
    let twice = bound.replace(
        "```text exchange\n",
        "```text exchange\nbob > {\"type\":\"ping\"}\n\
                              bob < {\"type\":\"pong\"}\n",
    );
    assert!(run(&Document::of(&twice)).is_err(), "but not that of another one");
}

#[test]
fn every_metric_of_a_running_node_is_in_the_documents() {
    let redis = Redis::start();
    let node = Node::start_ready(&["--shards", "1", "--backplane", &redis.url()]);
    node.wait_for("campanile_redis_monitor_up", 1);
    let text = std::fs::read_to_string(root().join("docs/metrics.md")).expect("a document");
    let metrics = node.get("/metrics").body;
    let names: BTreeSet<&str> = metrics
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.split(['{', ' ']).next().expect("a name"))
        .map(|name| name.strip_prefix("campanile_").expect("ours begin so"))
        .collect();
    assert!(names.len() > 100, "{names:?}");
    let is_there = |name: &str| text.contains(&format!("| `{name}` |"));
    let is_part = |name: &str| {
        let parts = ["_bucket", "_sum", "_count"].iter();
        parts.filter_map(|part| name.strip_suffix(part)).any(is_there)
    };
    let missing: Vec<&&str> =
        names.iter().filter(|name| !is_there(name) && !is_part(name)).collect();
    assert!(missing.is_empty(), "not in docs/metrics.md: {missing:?}");
}

#[test]
fn the_rights_of_the_user_in_the_documents_are_those_that_suffice_in_tests() {
    let text = std::fs::read_to_string(root().join("docs/redis.md")).expect("a document");
    let words = |text: &str| -> Vec<String> {
        text.split_whitespace().map(|word| word.replace('\'', "")).collect()
    };
    let (_, behind) =
        text.split_once("ACL SETUSER bell on '>s3cret'").expect("there is such a user");
    let (shown, _) = behind.split_once("```").expect("the block ends");
    let shown: Vec<String> = words(shown).into_iter().filter(|word| word != "\\").collect();
    assert_eq!(shown, words(guarded::RIGHTS));
}

/// Runs the blocks of one document. `Err`: which one does not do what it should, and why.
fn run(document: &Document) -> Result<(), String> {
    let mut stage = Stage::new();
    for block in document.blocks()? {
        let step = stage.check(&block);
        step.map_err(|why| format!("{}:{}: {why}", document.path, block.line))?;
    }
    stage.end_program().map_err(|why| format!("{}: {why}", document.path))
}

/// What runs for a document.
struct Stage {
    folder: PathBuf,
    /// The ports that stand for those of the document.
    ports: BTreeMap<u16, u16>,
    /// The configuration that stood last.
    config: String,
    node: Option<Node>,
    redis: Option<Redis>,
    services: Vec<Service>,
    clients: BTreeMap<String, Client>,
    /// Values of the document, and of this run.
    bound: HashMap<String, String>,
    /// What the block before this one has printed.
    printed: Option<String>,
    /// A program that runs beside the next one.
    program: Option<Running>,
}

/// A program that has printed its first line.
struct Running {
    child: Child,
    stdout: BufReader<ChildStdout>,
    printed: String,
    /// What it is to print.
    expected: Option<String>,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A process group that a block has left running.
struct Service(Child);

impl Drop for Service {
    fn drop(&mut self) {
        let group = format!("-{}", self.0.id());
        let _ = Command::new("kill").args(["-KILL", "--", &group]).stderr(Stdio::null()).status();
        let _ = self.0.wait();
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.program = None;
        self.services.clear();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Stage {
    fn new() -> Stage {
        static STAGES: AtomicU32 = AtomicU32::new(0);
        let number = STAGES.fetch_add(1, Ordering::Relaxed);
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("documents-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a temporary folder");
        // `campanile`, and `cargo run --release --`, are the binary that is tested.
        let binary = binary().display().to_string();
        program(&folder, "campanile", &format!("exec {binary} \"$@\""));
        program(&folder, "cargo", &format!("shift 3\nexec {binary} \"$@\""));
        Stage {
            folder,
            ports: BTreeMap::new(),
            config: String::new(),
            node: None,
            redis: None,
            services: Vec::new(),
            clients: BTreeMap::new(),
            bound: HashMap::new(),
            printed: None,
            program: None,
        }
    }

    fn check(&mut self, block: &Block) -> Result<(), String> {
        let printed = self.printed.take();
        match &block.check {
            Check::NotRun { .. } => Ok(()),
            Check::Json => json(&block.text).map(drop),
            Check::Config => self.configure(&block.text),
            Check::Serve => self.serve(&block.text),
            Check::Shell => {
                self.need_node();
                let mut command = self.command("timeout");
                command.args([BLOCK_SECONDS_MAX, "bash", "-euo", "pipefail", "-c"]);
                let output = command.arg(self.here(&block.text)).output().expect("bash starts");
                self.printed = Some(ended_well(output)?);
                Ok(())
            }
            Check::Program { with_next } => self.run_program(block, *with_next),
            Check::Output => self.expect(block, printed),
            Check::Exchange => self.exchange(&block.text),
        }
    }

    /// A configuration must be good, and holds for what follows.
    fn configure(&mut self, text: &str) -> Result<(), String> {
        self.clients.clear();
        self.services.clear();
        (self.node, self.redis) = (None, None);
        self.ports.clear();
        self.bound.clear();
        self.config = text.to_owned();
        let file = self.write_config();
        let mut command = Command::new(binary());
        let output = command.args(["config", "--check", &file]).output().expect("our own binary");
        ended_well(output).map(drop)
    }

    fn write_config(&mut self) -> String {
        let file = self.folder.join("campanile.toml");
        std::fs::write(&file, self.here(&self.config.clone())).expect("a file in our own folder");
        file.display().to_string()
    }

    /// Starts a node, unless the document has started some itself.
    fn need_node(&mut self) {
        if self.node.is_some() || !self.services.is_empty() {
            return;
        }
        if self.config.contains("redis://127.0.0.1:6379") {
            self.redis = Some(Redis::start_on(self.port(6379), &[]));
        }
        let file = self.write_config();
        let node = Node::start_ready(&["--shards", "2", "--config", &file]);
        self.ports.insert(8080, node.addr.port());
        self.ports.insert(8090, node.ops.port());
        self.node = Some(node);
    }

    /// Starts what goes on running, and waits until each node in it is ready.
    fn serve(&mut self, text: &str) -> Result<(), String> {
        let log = File::create(self.folder.join("service.log")).expect("a file in our own folder");
        let script = self.here(text);
        let [listen, ops] = [8080, 8090].map(|port| format!("127.0.0.1:{}", self.port(port)));
        let mut command = self.command("bash");
        command.env("CAMPANILE_LISTEN", listen).env("CAMPANILE_OPS_LISTEN", ops);
        command.args(["-c", &script]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let child = command.process_group(0).spawn().expect("bash starts");
        self.services.push(Service(child));
        let nodes = script.matches(" serve").count();
        let named = script.split("--ops-listen 127.0.0.1:").skip(1);
        let mut ports: Vec<u16> = named
            .map(|rest| rest.split(' ').next().expect("a port").parse().expect("a port"))
            .collect();
        if ports.is_empty() {
            ports.push(self.port(8090));
        }
        if ports.len() != nodes {
            return Err(format!("{nodes} nodes are started, with {} ports", ports.len()));
        }
        for port in ports {
            let ops = SocketAddr::from(([127, 0, 0, 1], port));
            wait_until("the node of the document is ready", || {
                TcpStream::connect(ops).is_ok()
                    && http::request(ops, "GET", "/readyz", &[], "").status == 200
            });
        }
        Ok(())
    }

    fn run_program(&mut self, block: &Block, with_next: bool) -> Result<(), String> {
        self.need_node();
        let (text, mut command) = (self.here(&block.text), self.command("timeout"));
        command.arg(BLOCK_SECONDS_MAX);
        match block.language.as_str() {
            "js" => command.args(["node", "-e"]).env("NODE_PATH", installed("node/node_modules")),
            _ => command.arg(installed("venv/bin/python")).arg("-c"),
        };
        command.arg(text);
        if with_next {
            let log = File::create(self.folder.join("program.log")).expect("a file of our own");
            let mut child =
                command.stdout(Stdio::piped()).stderr(log).spawn().expect("the program starts");
            let mut stdout = BufReader::new(child.stdout.take().expect("it is piped"));
            let mut printed = String::new();
            stdout.read_line(&mut printed).expect("UTF-8");
            self.program = Some(Running { child, stdout, printed, expected: None });
            return Ok(());
        }
        let output = command.output().expect("the program starts");
        self.printed = Some(ended_well(output)?);
        self.end_program()
    }

    /// Waits for the program that has run at the same time.
    fn end_program(&mut self) -> Result<(), String> {
        let Some(mut program) = self.program.take() else { return Ok(()) };
        program.stdout.read_to_string(&mut program.printed).expect("UTF-8");
        let (status, printed) = (program.child.wait().expect("our own child"), &program.printed);
        if !status.success() {
            let log = std::fs::read_to_string(self.folder.join("program.log"));
            return Err(format!("{status}: {printed}{}", log.unwrap_or_default()));
        }
        program.expected.as_ref().map_or(Ok(()), |expected| is_printed(printed, expected))
    }

    fn expect(&mut self, block: &Block, printed: Option<String>) -> Result<(), String> {
        if let Some(program) = self.program.as_mut().filter(|it| it.expected.is_none()) {
            program.expected = Some(block.text.clone());
            return Ok(());
        }
        let printed = printed.ok_or("the block before this one prints nothing")?;
        match block.language.as_str() {
            "json" => {
                let (shown, real) = (json(&block.text)?, json(&printed)?);
                matches(&shown, &real, &mut self.bound)
                    .then_some(())
                    .ok_or_else(|| format!("it printed {printed}"))
            }
            _ => is_printed(&printed, &block.text),
        }
    }

    /// A conversation, line by line.
    fn exchange(&mut self, text: &str) -> Result<(), String> {
        self.need_node();
        let mut named = BTreeSet::new();
        for line in text.lines() {
            let (name, rest) = line.split_once(' ').ok_or_else(|| format!("{line:?}: who?"))?;
            named.insert(name);
            match rest.split_once(' ').unwrap_or((rest, "")) {
                ("connects", path) => self.connect(name, path),
                ("closes", "") => {
                    if let Some(client) = self.clients.remove(name) {
                        client.close();
                    }
                }
                (">", text) => {
                    let said = said_here(json(&self.with_tokens(text))?, &self.bound);
                    self.client(name).say(said.to_string());
                }
                ("<", text) => {
                    let shown = json(text)?;
                    let kind = shown["type"].as_str().ok_or("a message has a type")?.to_owned();
                    let heard = self.client(name).hear_type(&kind);
                    if !matches(&shown, &heard, &mut self.bound) {
                        return Err(format!("{line}\nbut it was {heard}"));
                    }
                }
                _ => return Err(format!("{line:?}: write `connects`, `closes`, `>` or `<`")),
            }
        }
        for name in named {
            if let Some(client) = self.clients.get_mut(name) {
                client.nothing_more();
            }
        }
        Ok(())
    }

    /// A client that is there, or that comes now.
    fn client(&mut self, name: &str) -> &mut Client {
        if !self.clients.contains_key(name) {
            let has_tokens = self.secret().is_some();
            let token = if has_tokens { format!("?token={TOKEN_OF}{name}") } else { String::new() };
            self.connect(name, &format!("/ws{token}"));
            let client = self.clients.get_mut(name).expect("it has just come");
            let user = client.hear_type("welcome")["user_id"].as_str().expect("a name").to_owned();
            self.bound.insert(name.to_owned(), user);
        }
        self.clients.get_mut(name).expect("it is there")
    }

    /// A message with the tokens that stand for some: `TOKEN-OF-ann`, `ROOM-TOKEN-OF-ann-FOR-room`.
    fn with_tokens(&self, text: &str) -> String {
        let (Some(secret), Some(from)) = (self.secret(), text.find(TOKEN_OF)) else {
            return text.to_owned();
        };
        let (before, named) = (&text[..from], &text[from + TOKEN_OF.len()..]);
        let (named, after) = named.split_once('"').expect("a token is a string");
        let (before, token) = match (before.strip_suffix("ROOM-"), named.split_once("-FOR-")) {
            (Some(before), Some((user, room))) => {
                (before, mint_for(user, &secret, &["--room", room]))
            }
            _ => (before, mint(named, &secret)),
        };
        format!("{before}{token}\"{after}")
    }

    fn connect(&mut self, name: &str, path: &str) {
        let token = format!("{TOKEN_OF}{name}");
        let path = match self.secret() {
            Some(secret) => path.replace(&token, &mint(name, &secret)),
            None => path.to_owned(),
        };
        let addr = SocketAddr::from(([127, 0, 0, 1], self.port(8080)));
        self.clients.insert(name.to_owned(), Client::open(addr, &path));
    }

    /// The secret of the configuration that stood last.
    fn secret(&self) -> Option<String> {
        let config: toml::Table = self.config.parse().expect("it was checked");
        Some(config.get("auth")?.get("hmac_secret")?.as_str()?.to_owned())
    }

    /// The port that stands for one of the document.
    fn port(&mut self, port: u16) -> u16 {
        *self.ports.entry(port).or_insert_with(free_port)
    }

    /// A text of the document with the ports of this run.
    fn here(&mut self, text: &str) -> String {
        // Number by number, so that a port of this run is not taken for one of the document.
        let is_digit = |c: char| c.is_ascii_digit();
        let (mut here, mut rest) = (String::new(), text);
        while let Some(at) = rest.find(is_digit) {
            let (before, from) = rest.split_at(at);
            let end = from.find(|c| !is_digit(c)).unwrap_or(from.len());
            let number: Option<u16> = from[..end].parse().ok();
            here += before;
            match number.filter(|number| PORTS.contains(number)) {
                Some(port) => here += &self.port(port).to_string(),
                None => here += &from[..end],
            }
            rest = &from[end..];
        }
        here + rest
    }

    /// A command in the folder of the document, where `campanile` and `cargo` are found.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let path = std::env::var("PATH").expect("there is a path");
        command.env("PATH", format!("{}:{path}", self.folder.display()));
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("CAMPANILE_")) {
            command.env_remove(name);
        }
        command.current_dir(&self.folder);
        command
    }
}

/// A script that a document finds under this name.
fn program(folder: &std::path::Path, name: &str, text: &str) {
    let path = folder.join(name);
    std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("a file in our own folder");
    let mode = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(&path, mode).expect("our own file");
}

fn mint(user: &str, secret: &str) -> String {
    mint_for(user, secret, &[])
}

fn mint_for(user: &str, secret: &str, more: &[&str]) -> String {
    let args = ["token", "--user", user, "--secret", secret];
    let output = Command::new(binary()).args(args).args(more).output().expect("our own binary");
    String::from_utf8(output.stdout).expect("ASCII").trim().to_owned()
}

fn ended_well(output: Output) -> Result<String, String> {
    let (printed, complained) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    match output.status.success() {
        true => Ok(printed.into_owned()),
        false => Err(format!("{}: {printed}{complained}", output.status)),
    }
}

fn is_printed(printed: &str, shown: &str) -> Result<(), String> {
    match printed.trim_end() == shown.trim_end() {
        true => Ok(()),
        false => Err(format!("it printed {printed:?}, not {shown:?}")),
    }
}

fn json(text: &str) -> Result<Value, String> {
    serde_json::from_str(text).map_err(|error| format!("no JSON ({error}): {text}"))
}

/// A request with the names and numbers of this run.
fn said_here(value: Value, bound: &HashMap<String, String>) -> Value {
    match value {
        Value::Object(fields) => Value::Object(
            fields
                .into_iter()
                .map(|(key, value)| match value {
                    Value::String(text) if BOUND.contains(&key.as_str()) => {
                        let text = bound.get(&text).cloned().unwrap_or(text);
                        (key, Value::String(text))
                    }
                    value => (key, said_here(value, bound)),
                })
                .collect(),
        ),
        value => value,
    }
}

/// Whether what came is what the document shows.
fn matches(shown: &Value, real: &Value, bound: &mut HashMap<String, String>) -> bool {
    match (shown, real) {
        (Value::String(shown), _) if shown == "…" => true,
        (Value::Object(shown), Value::Object(real)) => {
            shown.len() == real.len()
                && shown.iter().all(|(key, shown)| {
                    real.get(key).is_some_and(|real| field_matches(key, shown, real, bound))
                })
        }
        // Users are listed by their names, which differ from run to run.
        (Value::Array(shown), Value::Array(real)) if shown.iter().all(is_user) => {
            let is_there = |shown| real.iter().any(|real| matches(shown, real, &mut bound.clone()));
            shown.len() == real.len() && shown.iter().all(is_there)
        }
        (Value::Array(shown), Value::Array(real)) => {
            let mut both = shown.iter().zip(real);
            shown.len() == real.len() && both.all(|(shown, real)| matches(shown, real, bound))
        }
        _ => shown == real,
    }
}

fn is_user(value: &Value) -> bool {
    value["user_id"].is_string()
}

fn field_matches(
    key: &str,
    shown: &Value,
    real: &Value,
    bound: &mut HashMap<String, String>,
) -> bool {
    match (shown, real) {
        (Value::String(shown), Value::String(real)) if BOUND.contains(&key) && shown != "…" => {
            bound.entry(shown.clone()).or_insert_with(|| real.clone()) == real
        }
        (Value::Number(shown), Value::Number(real)) if BOUND.contains(&key) => {
            let real = real.to_string();
            *bound.entry(shown.to_string()).or_insert_with(|| real.clone()) == real
        }
        _ => matches(shown, real, bound),
    }
}
