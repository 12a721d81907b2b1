//! Real redis-server processes for tests: free loopback ports, temporary folders, and an end.
//!
//! Invariant: whatever was started is killed and its folder removed when the value is dropped, a
//! failed test included.
#![allow(dead_code)] // each test binary uses its part

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// One server. Its port stays the same over kills and restarts.
pub struct Redis {
    pub port: u16,
    folder: PathBuf,
    program: Program,
    /// What it is started with beside the usual.
    settings: Vec<String>,
    child: Option<Child>,
}

/// What is started.
enum Program {
    Server,
    /// Its settings are the lines of a file that it writes into.
    Sentinel,
}

impl Redis {
    /// Starts a server and waits until it answers.
    pub fn start() -> Redis {
        Redis::start_with(&[])
    }

    /// The same with settings, such as `--maxmemory-policy allkeys-lru`.
    pub fn start_with(settings: &[&str]) -> Redis {
        Redis::start_on(free_port(), settings)
    }

    /// The same on a port that the caller has chosen.
    pub fn start_on(port: u16, settings: &[&str]) -> Redis {
        let settings = settings.iter().map(|word| (*word).to_owned()).collect();
        Redis::begin(port, Program::Server, settings)
    }

    /// Starts a Sentinel with these lines in its file.
    pub fn start_sentinel(lines: Vec<String>) -> Redis {
        Redis::begin(free_port(), Program::Sentinel, lines)
    }

    fn begin(port: u16, program: Program, settings: Vec<String>) -> Redis {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let name = format!("campanile-redis-{}-{number}", std::process::id());
        let folder = temporary().join(name);
        std::fs::create_dir_all(&folder).expect("a temporary folder");
        let mut redis = Redis { port, folder, program, settings, child: None };
        redis.restart();
        redis
    }

    /// Starts it again after [`Redis::kill`], on the same port: empty, unless its settings keep what
    /// it had (`--appendonly yes`).
    pub fn restart(&mut self) {
        self.restart_with(&[]);
    }

    /// The same with more settings for this time.
    pub fn restart_with(&mut self, more: &[&str]) {
        assert!(self.child.is_none(), "it still runs");
        let mut command = match self.program {
            Program::Server => self.server(),
            Program::Sentinel => self.sentinel(),
        };
        let started = command
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        self.child = Some(started.unwrap_or_else(|error| {
            panic!(
                "redis-server does not start ({error}). Install it: apt-get install redis-server"
            )
        }));
        wait_until("Redis answers", || self.try_command(&["PING"]).is_some());
    }

    fn server(&self) -> Command {
        let mut command = Command::new("redis-server");
        let port = self.port.to_string();
        command.args(["--port", &port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
        command.arg("--dir").arg(&self.folder).args(&self.settings);
        command
    }

    fn sentinel(&self) -> Command {
        let file = self.folder.join("sentinel.conf");
        if !file.exists() {
            let (port, folder) = (self.port, self.folder.display());
            let mut text = format!("port {port}\nbind 127.0.0.1\ndir {folder}\n");
            self.settings.iter().for_each(|line| text += &format!("{line}\n"));
            std::fs::write(&file, text).expect("a file in our own folder");
        }
        let mut command = Command::new("redis-server");
        command.arg(file).arg("--sentinel");
        command
    }

    /// Forgets what its settings kept. It must not run.
    pub fn wipe(&self) {
        assert!(self.child.is_none(), "it still runs");
        let _ = std::fs::remove_dir_all(self.folder.join("appendonlydir"));
        let _ = std::fs::remove_file(self.folder.join("dump.rdb"));
    }

    /// What `--backplane` takes.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// SIGKILL, and gone when this returns.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("our own child");
            child.wait().expect("our own child");
        }
    }

    /// SIGSTOP: the process stands still, its sockets stay open.
    pub fn freeze(&self) {
        self.signal("-STOP");
    }

    /// SIGCONT.
    pub fn thaw(&self) {
        self.signal("-CONT");
    }

    /// Sends a command over a connection of its own; the reply as text, arrays joined by blanks.
    pub fn command(&self, words: &[&str]) -> String {
        self.try_command(words).unwrap_or_else(|| panic!("no reply to {words:?}"))
    }

    /// The same; `None` when there is no server or no reply within two seconds.
    pub fn try_command(&self, words: &[&str]) -> Option<String> {
        let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
        self.command_bytes(&words)
    }

    /// The same with any bytes; `None` when there is no server or no reply within two seconds.
    pub fn command_bytes(&self, words: &[&[u8]]) -> Option<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
        let mut request = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            request.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            request.extend_from_slice(word);
            request.extend_from_slice(b"\r\n");
        }
        stream.write_all(&request).ok()?;
        read_reply(&mut BufReader::new(stream))
    }

    fn signal(&self, signal: &str) {
        let Some(child) = &self.child else { return };
        let id = child.id().to_string();
        let status = Command::new("kill").args([signal, &id]).status().expect("kill(1)");
        assert!(status.success());
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// In memory where there is such a place: a node of a Cluster waits for the disk whenever it notes
/// something, and a disk that is busy with a build has made one stand still for seconds.
fn temporary() -> PathBuf {
    let memory = PathBuf::from("/dev/shm");
    if memory.is_dir() { memory } else { std::env::temp_dir() }
}

/// Polls for a state until it is there. Panics after 20 seconds.
pub fn wait_until(state: &str, mut is_there: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_there() {
        assert!(Instant::now() < deadline, "waited in vain until {state}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A port that nobody listens on now, below those that the kernel gives to whoever connects: a server
/// that was killed finds it free when it comes back.
pub fn free_port() -> u16 {
    const FIRST: u32 = 12_000;
    const COUNT: u32 = 20_000;
    static TRIED: AtomicU32 = AtomicU32::new(0);
    // Test binaries that run at the same time begin at different places.
    let start = std::process::id().wrapping_mul(211);
    for _ in 0..COUNT {
        let step = TRIED.fetch_add(1, Ordering::Relaxed);
        let port = (FIRST + start.wrapping_add(step) % COUNT) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no port is free");
}

fn read_reply(reader: &mut BufReader<TcpStream>) -> Option<String> {
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let line = line.trim_end();
    let length = line.get(1..)?.parse::<i64>();
    match line.as_bytes().first()? {
        b'$' => {
            let length = usize::try_from(length.ok()?).ok()?;
            let mut text = vec![0; length + 2];
            reader.read_exact(&mut text).ok()?;
            Some(String::from_utf8_lossy(&text[..length]).into_owned())
        }
        b'*' => {
            let parts: Option<Vec<String>> =
                (0..length.ok()?).map(|_| read_reply(reader)).collect();
            Some(parts?.join(" "))
        }
        _ => Some(line[1..].to_owned()),
    }
}
