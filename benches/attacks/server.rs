//! One server, and what it says about itself.

use std::error::Error;
use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The key for its API, which one of the attackers has.
pub(super) const KEY: &str = "0123456789abcdef";

/// How long it may take until it is ready.
const START_MAX: Duration = Duration::from_secs(10);

/// Ends with the value.
pub(super) struct Server {
    child: Child,
    ops: SocketAddr,
    pub(super) address: SocketAddr,
}

impl Server {
    /// Starts one on core 0. `is_idle`: it runs only when nobody else wants that core.
    pub(super) fn start(
        campanile: &Path,
        flags: &[OsString],
        is_idle: bool,
    ) -> Result<Server, Box<dyn Error>> {
        let address = super::free_address()?;
        // Held for a moment, so that the next look finds another one.
        let held = std::net::TcpListener::bind(address)?;
        let ops = super::free_address()?;
        drop(held);
        let mut command = Command::new("taskset");
        command.args(["-c", "0"]);
        if is_idle {
            command.args(["chrt", "-i", "0"]);
        }
        let child = command
            .arg(campanile)
            .args(["serve", "--shards", "1", "--log-level", "error", "--echo-path", "/echo"])
            .args(["--auth-user-rights", "publish,send,broadcast"])
            .args(["--listen", &address.to_string(), "--ops-listen", &ops.to_string()])
            .args(["--namespaces", "default: history_size=100; watched: presence=true"])
            .args(["--ops-api-key", KEY, "--ops-public-paths", "/v1/publish"])
            .args(flags)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()?;
        let mut server = Server { child, ops, address };
        let deadline = Instant::now() + START_MAX;
        while !server.get("/readyz").is_ok_and(|answer| answer.starts_with("HTTP/1.1 200")) {
            if let Some(status) = server.child.try_wait()? {
                return Err(format!("the server ended: {status}").into());
            }
            if Instant::now() > deadline {
                return Err("the server is not ready".into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    /// Whether it runs and answers.
    pub(super) fn is_alive(&self) -> bool {
        self.get("/readyz").is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
    }

    /// Its resident memory.
    pub(super) fn rss_mib(&self) -> u64 {
        self.status("VmRSS:")
    }

    /// The most that it ever was.
    pub(super) fn rss_peak_mib(&self) -> u64 {
        self.status("VmHWM:")
    }

    fn status(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let status = status.unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse().ok());
        kib.unwrap_or(0u64) / 1024
    }

    /// The visits to its shard until now.
    pub(super) fn visits(&self) -> Visits {
        let metrics = self.get("/metrics").unwrap_or_default();
        let mut buckets = Vec::new();
        for line in metrics.lines() {
            let Some(rest) = line.strip_prefix("campanile_shard_visit_seconds_bucket{") else {
                continue;
            };
            let Some((labels, count)) = rest.split_once("} ") else { continue };
            let bound = labels.split("le=\"").nth(1).and_then(|text| text.split('"').next());
            let bound = bound.and_then(|text| text.parse().ok()).unwrap_or(f64::INFINITY);
            buckets.push((bound, count.trim().parse().unwrap_or(0)));
        }
        Visits(buckets)
    }

    fn get(&self, path: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&self.ops, Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let host = self.ops;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself, and that is in the row.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Visits by the upper bound of their time in seconds, each with those that took less.
#[derive(Default)]
pub(super) struct Visits(Vec<(f64, u64)>);

impl Visits {
    /// Those that `before` does not have.
    pub(super) fn since(self, before: &Visits) -> Visits {
        let was = |at: usize| before.0.get(at).map_or(0, |(_, count)| *count);
        let new = self.0.into_iter().enumerate();
        Visits(new.map(|(at, (bound, count))| (bound, count.saturating_sub(was(at)))).collect())
    }

    /// The bound below which this share of them is, in microseconds.
    pub(super) fn quantile_us(&self, share: f64) -> f64 {
        let all = self.0.last().map_or(0, |(_, count)| *count);
        let wanted = (all as f64 * share).ceil() as u64;
        let found = self.0.iter().find(|(_, count)| *count >= wanted);
        found.map_or(0.0, |(bound, _)| bound * 1e6)
    }
}
