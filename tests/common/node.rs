//! One running instance: the real binary with ports of its own, and an end.
//!
//! Invariant: the process is killed when the value is dropped, a failed test included; and a failed
//! test prints what the node logged.
#![allow(dead_code)] // each test binary uses its part

use super::http::{self, Reply};
use super::redis::{free_port, wait_until};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// How long a node may take to say that it listens.
const START_MAX: Duration = Duration::from_secs(60);

/// The end of a log that a failed test shows.
const LOG_LINES_SHOWN: usize = 60;

pub struct Node {
    /// The public port.
    pub addr: SocketAddr,
    /// The operators' port.
    pub ops: SocketAddr,
    child: Child,
    log: PathBuf,
}

impl Node {
    /// Starts an instance on free ports and waits until it listens.
    pub fn start(args: &[&str]) -> Node {
        Node::spawn(Command::new(binary()), args)
    }

    /// The same of another binary, such as one of another version.
    pub fn start_of(binary: &Path, args: &[&str]) -> Node {
        Node::spawn(Command::new(binary), args)
    }

    /// The same as [`Node::start`], ready, with another standard error than a file.
    pub fn start_with_stderr(stderr: impl Into<Stdio>, args: &[&str]) -> Node {
        let command = command(args, stderr);
        let node = Node::spawn_saying(command, log_file(), args);
        wait_until("the node is ready", || node.is_ready());
        node
    }

    /// The same, ready, with another standard output than a pipe that is read.
    pub fn start_with_stdout(stdout: impl Into<Stdio>, args: &[&str]) -> Node {
        let [addr, ops] = [(); 2].map(|()| SocketAddr::from(([127, 0, 0, 1], free_port())));
        let log = log_file();
        let mut command = command(args, File::create(&log).expect("a log file"));
        command.env("CAMPANILE_LISTEN", addr.to_string());
        command.env("CAMPANILE_OPS_LISTEN", ops.to_string());
        let child = command.stdout(stdout).spawn().expect("our own binary starts");
        let node = Node { addr, ops, child, log };
        wait_until("its operators' port is open", || TcpStream::connect(ops).is_ok());
        wait_until("the node is ready", || node.is_ready());
        node
    }

    /// The same, ready, with a limit on open files. The shell that sets it becomes the node.
    pub fn start_with_files(files: u32, args: &[&str]) -> Node {
        let mut shell = Command::new("sh");
        let script = format!(r#"ulimit -n {files} && exec "$0" "$@""#);
        shell.arg("-c").arg(&script).arg(binary());
        let node = Node::spawn(shell, args);
        wait_until("the node is ready", || node.is_ready());
        node
    }

    fn spawn(mut command: Command, args: &[&str]) -> Node {
        let log = log_file();
        prepare(&mut command, args, File::create(&log).expect("a log file"));
        Node::spawn_saying(command, log, args)
    }

    /// Starts it, and waits until it says on standard output where it listens.
    fn spawn_saying(mut command: Command, log: PathBuf, args: &[&str]) -> Node {
        command.args(["--listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0"]);
        let mut child = command.stdout(Stdio::piped()).spawn().expect("our own binary starts");
        // Ours of whatever the node writes to would keep it open.
        drop(command);
        let said = first_line(child.stdout.take().expect("it is piped"));
        let Some((addr, ops)) = addresses(&said) else {
            let _ = child.kill();
            let _ = child.wait();
            panic!("no node came of {args:?}: it said {said:?} and logged\n{}", tail(&log));
        };
        Node { addr, ops, child, log }
    }

    /// The same, and waits until messages flow.
    pub fn start_ready(args: &[&str]) -> Node {
        let node = Node::start(args);
        wait_until("the node is ready", || node.is_ready());
        node
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn is_ready(&self) -> bool {
        self.get("/readyz").status == 200
    }

    /// Asks the operators' port.
    pub fn get(&self, path: &str) -> Reply {
        http::request(self.ops, "GET", path, &[], "")
    }

    /// Posts JSON to the operators' port.
    pub fn post(&self, path: &str, body: &str) -> Reply {
        http::request(self.ops, "POST", path, &[("Content-Type", "application/json")], body)
    }

    /// A number of `/metrics`, added up over shards and labels.
    pub fn metric(&self, name: &str) -> u64 {
        self.metric_where(name, "")
    }

    /// The same over those samples whose labels contain `label`, such as `reason="slow"`.
    pub fn metric_where(&self, name: &str, label: &str) -> u64 {
        let samples = self.samples(name);
        assert!(!samples.is_empty(), "no metric is called {name}");
        samples.iter().filter(|(labels, _)| labels.contains(label)).map(|(_, value)| value).sum()
    }

    /// Every sample of one name with its labels.
    pub fn samples(&self, name: &str) -> Vec<(String, u64)> {
        let text = self.get("/metrics").body;
        let samples = text.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let (labels, value) = rest.rsplit_once(' ')?;
            (labels.is_empty() || labels.starts_with('{'))
                .then(|| (labels.to_owned(), value.parse::<f64>().expect("a number") as u64))
        });
        samples.collect()
    }

    /// Memory that the process holds, in bytes.
    pub fn resident_bytes(&self) -> u64 {
        self.status_bytes("VmRSS:")
    }

    /// The most that it has ever held.
    pub fn resident_peak_bytes(&self) -> u64 {
        self.status_bytes("VmHWM:")
    }

    fn status_bytes(&self, name: &str) -> u64 {
        let path = format!("/proc/{}/status", self.pid());
        let status = std::fs::read_to_string(path).expect("it runs");
        let line = status.lines().find(|line| line.starts_with(name)).expect("Linux says so");
        let kib: u64 = line.split_whitespace().nth(1).expect("a number").parse().expect("a number");
        kib * 1024
    }

    /// Waits until `/metrics` is newer than this call: shards copy their numbers out on a tick.
    pub fn wait_for_fresh_metrics(&self) {
        let before = self.samples("campanile_shard_visit_seconds_count");
        wait_until("every shard has copied its numbers out", || {
            let now = self.samples("campanile_shard_visit_seconds_count");
            now.iter().zip(&before).all(|(now, before)| now != before)
        });
    }

    /// Waits until nobody is left, and nothing that they left behind.
    pub fn wait_until_empty(&self) {
        self.wait_for_fresh_metrics();
        for gauge in ["connections", "connections_handshaking", "connections_closing"] {
            self.wait_for(&format!("campanile_{gauge}"), 0);
        }
        for gauge in ["topics", "members", "outbox_bytes"] {
            self.wait_for(&format!("campanile_{gauge}"), 0);
        }
    }

    /// Waits until a number of `/metrics` is `value`.
    pub fn wait_for(&self, name: &str, value: u64) {
        wait_until(&format!("{name} is {value}"), || self.metric(name) == value);
    }

    /// SIGKILL, and gone when this returns.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        self.child.wait().expect("our own child");
    }

    /// Sends a signal, such as `-TERM`.
    pub fn signal(&self, signal: &str) {
        let pid = self.pid().to_string();
        let status = Command::new("kill").args([signal, &pid]).status().expect("kill(1)");
        assert!(status.success());
    }

    /// Whether the process has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("our own child").is_some()
    }

    /// Waits until the process has ended by itself.
    pub fn ended(&mut self) -> ExitStatus {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            if let Some(status) = self.child.try_wait().expect("our own child") {
                return status;
            }
            assert!(Instant::now() < deadline, "the process does not end");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// How long the node took from the signal to its end, by its own clock: between the line that
    /// says that it drains and its last one, which is answered as well. For a node that has ended.
    pub fn drained_in_s(&self) -> (f64, String) {
        let log = self.logged();
        let line = |text: &str| log.lines().find(|line| line.contains(text));
        let began = line(" draining;").unwrap_or_else(|| panic!("it never drained:\n{log}"));
        let last = log.lines().last().expect("it has logged");
        let took_s = logged_at_s(last) - logged_at_s(began);
        (took_s.rem_euclid(24.0 * 3600.0), last.to_owned())
    }

    /// What it has logged so far.
    pub fn logged(&self) -> String {
        // A thread of its own writes the log. One that has ended has waited for it.
        if TcpStream::connect(self.ops).is_ok() {
            self.wait_for("campanile_log_queue_bytes", 0);
        }
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("--- log of the node at {} ---\n{}", self.addr, tail(&self.log));
        }
        let _ = std::fs::remove_file(&self.log);
    }
}

/// The binary that is tested: the one of this build, or the one that `TEST_BINARY` names
/// (`tests/run.sh` tells some of these stories of the release binary as well).
pub fn binary() -> PathBuf {
    std::env::var_os("TEST_BINARY")
        .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_campanile")), PathBuf::from)
}

/// The time of day at which a line was logged, in seconds.
fn logged_at_s(line: &str) -> f64 {
    let clock = line.split_once('T').expect("a line begins with its time").1;
    let mut parts = clock.split(['Z', ' ']).next().expect("a time").split(':');
    let mut next = || parts.next().expect("h:m:s").parse::<f64>().expect("a number");
    next() * 3600.0 + next() * 60.0 + next()
}

/// A file for what a node logs.
fn log_file() -> PathBuf {
    static STARTED: AtomicU32 = AtomicU32::new(0);
    let number = STARTED.fetch_add(1, Ordering::Relaxed);
    PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("node-{}-{number}.log", std::process::id()))
}

/// `campanile serve`, in an environment that says nothing to it.
fn command(args: &[&str], stderr: impl Into<Stdio>) -> Command {
    let mut command = Command::new(binary());
    prepare(&mut command, args, stderr);
    command
}

fn prepare(command: &mut Command, args: &[&str], stderr: impl Into<Stdio>) {
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("CAMPANILE_")) {
        command.env_remove(name);
    }
    command.arg("serve").args(args).env("RUST_BACKTRACE", "1");
    command.stdin(Stdio::null()).stderr(stderr);
}

/// The first line that comes; nothing if the process ends before, or takes too long.
fn first_line(stdout: ChildStdout) -> String {
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        let _ = BufReader::new(stdout).read_line(&mut line);
        let _ = tell.send(line);
    });
    told.recv_timeout(START_MAX).unwrap_or_default()
}

/// `campanile: listening on ws://ADDR/ws, ops on http://ADDR`
fn addresses(line: &str) -> Option<(SocketAddr, SocketAddr)> {
    let rest = line.trim_end().strip_prefix("campanile: listening on ws://")?;
    let (public, ops) = rest.split_once("/ws, ops on http://")?;
    Some((public.parse().ok()?, ops.parse().ok()?))
}

fn tail(log: &PathBuf) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..].join("\n")
}
