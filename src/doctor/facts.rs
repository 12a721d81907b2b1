//! What the host is, read from `/proc` and `/sys` and tried out, before anything is judged.
//!
//! All files are read below one root, so that a test can lay out a host of its own in a folder.
//! What is not in files (whether a ring works, who answers as Redis) comes as [`Tried`].
//!
//! Invariant: nothing here decides whether a fact is good.

use crate::config::{BackplaneUrl, Config};
use crate::sys::{self, Nofile};
use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a Redis server may take to connect and to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// What was read. `None`: could not be, or there is no such thing here.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    /// What had to be tried.
    pub tried: Tried,
    pub nofile: Option<Nofile>,
    /// Locked memory, soft limit; `u64::MAX` without limit.
    pub memlock_bytes: Option<u64>,
    pub nr_open: Option<u64>,
    pub file_max: Option<u64>,
    /// Files that the machine has open now.
    pub files_open: Option<u64>,
    pub io_uring_disabled: Option<u64>,
    /// 0: none, 1: strict, 2: a filter (proc(5), `Seccomp`).
    pub seccomp: Option<u64>,
    /// Major and minor.
    pub kernel: Option<(u64, u64)>,
    pub somaxconn: Option<u64>,
    pub syn_backlog: Option<u64>,
    pub syncookies: Option<u64>,
    /// Pages of all TCP buffers: relaxed, under pressure, refused.
    pub tcp_mem: Option<[u64; 3]>,
    /// Bytes of one socket: least, first, most.
    pub tcp_rmem: Option<[u64; 3]>,
    pub tcp_wmem: Option<[u64; 3]>,
    pub port_range: Option<[u64; 2]>,
    pub conntrack: Option<Conntrack>,
    /// What this process may use, cgroups considered.
    pub memory_bytes: Option<u64>,
    pub memory_available_bytes: Option<u64>,
    /// Threads that the tightest cgroup still allows; `None`: none bounds them.
    pub threads_free: Option<u64>,
    /// Thousandths of a core that the tightest cgroup allows; `None`: none bounds them.
    pub cpu_millis: Option<u64>,
}

/// Connection tracking, where the kernel has it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Conntrack {
    pub max: u64,
    /// What it tracks now; 0: most likely no rule asks it to.
    pub count: u64,
}

/// What cannot be read but has to be tried.
#[derive(Clone, Debug, Default)]
pub(super) struct Tried {
    /// Cores that this process may use.
    pub cores: u64,
    /// The advice when a ring does not work.
    pub io_uring: Option<String>,
    /// `host:port`, and why it cannot be used.
    pub redis: Option<(String, Option<String>)>,
}

impl Tried {
    /// Tries them on this host, with this configuration.
    pub(super) fn here(config: &Config) -> Tried {
        Tried {
            cores: sys::available_cores().map_or(1, |cores| cores.len()) as u64,
            io_uring: sys::probe_io_uring().err().map(|error| error.to_string()),
            redis: redis(&config.backplane),
        }
    }
}

/// A host's `/proc` and `/sys`.
pub(super) struct Host {
    root: PathBuf,
}

impl Host {
    /// `/`, but for tests.
    pub(super) fn below(root: impl Into<PathBuf>) -> Host {
        Host { root: root.into() }
    }

    /// Reads everything.
    pub(super) fn facts(&self, tried: Tried) -> Facts {
        let number = |path: &str| sys::read_number(&self.root.join(path));
        let limit = |name: &str| limit(&self.text("proc/self/limits")?, name);
        let files_open = self.text("proc/sys/fs/file-nr");
        Facts {
            tried,
            nofile: limit("Max open files"),
            memlock_bytes: limit("Max locked memory").map(|limit| limit.soft),
            nr_open: number("proc/sys/fs/nr_open"),
            file_max: number("proc/sys/fs/file-max"),
            files_open: files_open.and_then(|text| text.split_whitespace().next()?.parse().ok()),
            io_uring_disabled: number("proc/sys/kernel/io_uring_disabled"),
            seccomp: self.seccomp(),
            kernel: self.text("proc/sys/kernel/osrelease").as_deref().and_then(version),
            somaxconn: number("proc/sys/net/core/somaxconn"),
            syn_backlog: number("proc/sys/net/ipv4/tcp_max_syn_backlog"),
            syncookies: number("proc/sys/net/ipv4/tcp_syncookies"),
            tcp_mem: self.numbers("proc/sys/net/ipv4/tcp_mem"),
            tcp_rmem: self.numbers("proc/sys/net/ipv4/tcp_rmem"),
            tcp_wmem: self.numbers("proc/sys/net/ipv4/tcp_wmem"),
            port_range: self.numbers("proc/sys/net/ipv4/ip_local_port_range"),
            conntrack: number("proc/sys/net/netfilter/nf_conntrack_max").map(|max| Conntrack {
                max,
                count: number("proc/sys/net/netfilter/nf_conntrack_count").unwrap_or(0),
            }),
            memory_bytes: sys::memory_bytes_below(&self.root).ok(),
            memory_available_bytes: sys::meminfo_bytes(&self.root, "MemAvailable:"),
            threads_free: self.threads_free(),
            cpu_millis: self.cpu_millis(),
        }
    }

    fn text(&self, path: &str) -> Option<String> {
        std::fs::read_to_string(self.root.join(path)).ok()
    }

    fn numbers<const N: usize>(&self, path: &str) -> Option<[u64; N]> {
        numbers(&self.text(path)?)
    }

    fn seccomp(&self) -> Option<u64> {
        let status = self.text("proc/self/status")?;
        status.lines().find_map(|line| line.strip_prefix("Seccomp:"))?.trim().parse().ok()
    }

    /// The least of `pids.max` less `pids.current`.
    fn threads_free(&self) -> Option<u64> {
        let free = |folder: &Path| {
            let max = sys::read_number(&folder.join("pids.max"))?;
            Some(max.saturating_sub(sys::read_number(&folder.join("pids.current")).unwrap_or(0)))
        };
        let folders = sys::cgroup_folders(&self.root, "pids");
        folders.iter().filter_map(|folder| free(&folder.path)).min()
    }

    fn cpu_millis(&self) -> Option<u64> {
        let share = |folder: &sys::CgroupFolder| {
            let file = |name: &str| std::fs::read_to_string(folder.path.join(name)).ok();
            let [quota_us, period_us] = match folder.is_v2 {
                true => numbers(&file("cpu.max")?)?,
                // -1 without a quota, which is no number here.
                false => numbers(&format!(
                    "{} {}",
                    file("cpu.cfs_quota_us")?,
                    file("cpu.cfs_period_us")?
                ))?,
            };
            (quota_us * 1000).checked_div(period_us)
        };
        sys::cgroup_folders(&self.root, "cpu").iter().filter_map(share).min()
    }
}

/// `N` numbers with blanks between them, and nothing else.
fn numbers<const N: usize>(text: &str) -> Option<[u64; N]> {
    let all: Vec<u64> =
        text.split_whitespace().map(|word| word.parse().ok()).collect::<Option<_>>()?;
    all.try_into().ok()
}

/// A line of `/proc/self/limits`: name, soft limit, hard limit, unit.
fn limit(limits: &str, name: &str) -> Option<Nofile> {
    let rest = limits.lines().find_map(|line| line.strip_prefix(name))?;
    let mut values = rest.split_whitespace().map(|word| match word {
        "unlimited" => Some(u64::MAX),
        word => word.parse().ok(),
    });
    Some(Nofile { soft: values.next()??, hard: values.next()?? })
}

/// Major and minor of `6.18.44-fc`.
fn version(release: &str) -> Option<(u64, u64)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Whether a Redis server answers at that address. An error for want of a password or TLS is an
/// answer too.
fn redis(backplane: &BackplaneUrl) -> Option<(String, Option<String>)> {
    let BackplaneUrl::Redis(servers) = backplane else { return None };
    let places = servers.addresses();
    let errors = places.iter().filter_map(|place| {
        let error = try_redis(place, !servers.login.is_tls).err()?;
        Some(if places.len() == 1 { error } else { format!("{place}: {error}") })
    });
    let errors: Vec<String> = errors.collect();
    Some((places.join(", "), (!errors.is_empty()).then(|| errors.join("; "))))
}

pub(super) fn try_redis(place: &str, speaks_plainly: bool) -> Result<(), String> {
    let text = |error: std::io::Error| error.to_string();
    if place.starts_with('/') {
        let stream = UnixStream::connect(place).map_err(text)?;
        let limits =
            [stream.set_read_timeout(Some(PATIENCE)), stream.set_write_timeout(Some(PATIENCE))];
        limits.into_iter().collect::<std::io::Result<()>>().map_err(text)?;
        return ping(stream);
    }
    let addr = place.to_socket_addrs().map_err(text)?.next().ok_or("the name has no address")?;
    let stream = TcpStream::connect_timeout(&addr, PATIENCE).map_err(text)?;
    if !speaks_plainly {
        return Ok(());
    }
    let limits =
        [stream.set_read_timeout(Some(PATIENCE)), stream.set_write_timeout(Some(PATIENCE))];
    limits.into_iter().collect::<std::io::Result<()>>().map_err(text)?;
    ping(stream)
}

/// Whether what is at the other end answers as Redis does.
fn ping(mut stream: impl Read + Write) -> Result<(), String> {
    let text = |error: std::io::Error| error.to_string();
    stream.write_all(b"PING\r\n").map_err(text)?;
    let mut answer = [0u8; 64];
    let bytes = stream.read(&mut answer).map_err(text)?;
    match answer[..bytes].starts_with(b"+PONG") || answer[..bytes].starts_with(b"-NOAUTH") {
        true => Ok(()),
        false => Err("something answers, but it is not Redis".to_owned()),
    }
}
