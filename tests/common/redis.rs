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
    /// What it is started with beside the usual.
    settings: Vec<String>,
    child: Option<Child>,
}

impl Redis {
    /// Starts a server and waits until it answers.
    pub fn start() -> Redis {
        Redis::start_with(&[])
    }

    /// The same with settings, such as `--maxmemory-policy allkeys-lru`.
    pub fn start_with(settings: &[&str]) -> Redis {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let name = format!("campanile-redis-{}-{number}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&folder).expect("a temporary folder");
        let settings = settings.iter().map(|word| (*word).to_owned()).collect();
        let mut redis = Redis { port: free_port(), folder, settings, child: None };
        redis.restart();
        redis
    }

    /// Starts it again after [`Redis::kill`], on the same port, empty.
    pub fn restart(&mut self) {
        assert!(self.child.is_none(), "it still runs");
        let port = self.port.to_string();
        let started = Command::new("redis-server")
            .args(["--port", &port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .arg("--dir")
            .arg(&self.folder)
            .args(&self.settings)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        self.child = Some(started.unwrap_or_else(|error| {
            panic!(
                "redis-server does not start ({error}). Install it: apt-get install redis-server"
            )
        }));
        wait_until("redis-server answers", || self.try_command(&["PING"]).is_some());
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

    fn try_command(&self, words: &[&str]) -> Option<String> {
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

/// Polls for a state until it is there. Panics after 20 seconds.
pub fn wait_until(state: &str, mut is_there: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_there() {
        assert!(Instant::now() < deadline, "waited in vain until {state}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A port that nobody listens on now.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("it is bound").port()
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
