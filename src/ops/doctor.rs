//! `campanile doctor`: what this host lacks for so many connections, and the line that fixes it.
//!
//! First all facts are read, then judged by a pure function, then printed. A fact that cannot be
//! read is a finding too, but not a lack: nobody can fix what may be in order.

use crate::config::{BackplaneUrl, Config};
use crate::plan::{FILES_OF_NODE, FILES_OF_SHARD, Size};
use crate::sys;
use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

/// What is asked.
#[derive(Clone, Debug)]
pub struct Question {
    /// For how many connections of one node.
    pub connections: u64,
    /// With which configuration.
    pub config: Config,
}

/// What was read from the host. `None`: could not be.
#[derive(Clone, Debug, Default)]
struct Facts {
    shards: u64,
    nofile_hard: Option<u64>,
    nr_open: Option<u64>,
    file_max: Option<u64>,
    somaxconn: Option<u64>,
    port_range: Option<(u64, u64)>,
    memory_bytes: Option<u64>,
    /// The advice when it does not work.
    io_uring: Option<String>,
    io_uring_disabled: Option<u64>,
    /// `host:port`, and why it cannot be used.
    redis: Option<(String, Option<String>)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Good,
    /// Worth a thought; does not fail the examination.
    Advice,
    Missing,
}

#[derive(Clone, Debug)]
struct Finding {
    what: &'static str,
    wanted: String,
    found: String,
    verdict: Verdict,
    /// The line that fixes it.
    fix: String,
}

/// Memory of a node before its first connection.
const NODE_BYTES: u64 = 128 * 1024 * 1024;
/// One connection, its kernel's socket included (7.5 KB for both ends were measured, rounded up to
/// be on the safe side for one).
const CONNECTION_BYTES: u64 = 5 * 1024;

/// Examines the host and prints what it lacks. Exit code 1 when something is missing.
pub fn run(question: &Question) -> ExitCode {
    let findings = judge(&facts(&question.config), question);
    super::start::print(&report(&findings, question.connections));
    match findings.iter().any(|finding| finding.verdict == Verdict::Missing) {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    }
}

fn facts(config: &Config) -> Facts {
    let number = |path: &str| sys::read_number(Path::new(path));
    let cores = sys::available_cores().map_or(1, |cores| cores.len());
    let shards = [config.shards, config.cores.len(), cores].into_iter().find(|n| *n > 0);
    Facts {
        shards: shards.unwrap_or(1) as u64,
        nofile_hard: sys::nofile().ok().map(|nofile| nofile.hard),
        nr_open: number("/proc/sys/fs/nr_open"),
        file_max: number("/proc/sys/fs/file-max"),
        somaxconn: number("/proc/sys/net/core/somaxconn"),
        port_range: port_range(),
        memory_bytes: sys::memory_bytes().ok(),
        io_uring: sys::probe_io_uring().err().map(|error| error.to_string()),
        io_uring_disabled: number("/proc/sys/kernel/io_uring_disabled"),
        redis: redis(&config.backplane),
    }
}

fn port_range() -> Option<(u64, u64)> {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
    let mut numbers = text.split_whitespace().map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// Whether anything that speaks Redis answers there. A server that wants a password or TLS answers
/// differently; that it answers is what is asked here.
fn redis(backplane: &BackplaneUrl) -> Option<(String, Option<String>)> {
    let place = backplane.host_port()?;
    let speaks_plainly = matches!(backplane, BackplaneUrl::Redis(url) if url.starts_with("redis:"));
    let trouble = try_redis(&place, speaks_plainly).err();
    Some((place, trouble))
}

fn try_redis(place: &str, speaks_plainly: bool) -> Result<(), String> {
    const PATIENCE: Duration = Duration::from_secs(2);
    let text = |error: std::io::Error| error.to_string();
    let addr = place.to_socket_addrs().map_err(text)?.next().ok_or("the name has no address")?;
    let mut stream = TcpStream::connect_timeout(&addr, PATIENCE).map_err(text)?;
    if !speaks_plainly {
        return Ok(());
    }
    stream.set_read_timeout(Some(PATIENCE)).map_err(text)?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(text)?;
    stream.write_all(b"PING\r\n").map_err(text)?;
    let mut answer = [0u8; 64];
    let bytes = stream.read(&mut answer).map_err(text)?;
    match answer[..bytes].starts_with(b"+PONG") || answer[..bytes].starts_with(b"-NOAUTH") {
        true => Ok(()),
        false => Err("something answers, but it is not Redis".to_owned()),
    }
}

/// Everything that matters for so many connections.
fn judge(facts: &Facts, question: &Question) -> Vec<Finding> {
    let connections = question.connections;
    let tables = if question.config.private_fd_tables { facts.shards } else { 1 };
    let reserve = FILES_OF_NODE + FILES_OF_SHARD * facts.shards;
    let per_table = connections.div_ceil(tables) + reserve;
    let files = connections + reserve * tables;
    let at_least = |what, wanted: u64, found: Option<u64>, lack, fix: String| Finding {
        what,
        wanted: format!("at least {wanted}"),
        found: found.map_or_else(|| "cannot be read".to_owned(), |found| found.to_string()),
        verdict: match found {
            Some(found) if found < wanted => lack,
            Some(_) => Verdict::Good,
            None => Verdict::Advice,
        },
        fix,
    };
    let missing = Verdict::Missing;
    let mut findings = vec![
        at_least(
            "open files (ulimit -Hn)",
            per_table,
            facts.nofile_hard,
            missing,
            format!("LimitNOFILE={per_table} in the systemd unit, or ulimit -Hn {per_table}"),
        ),
        at_least(
            "fs.nr_open",
            per_table,
            facts.nr_open,
            missing,
            format!("sysctl -w fs.nr_open={per_table}"),
        ),
        at_least(
            "fs.file-max",
            files,
            facts.file_max,
            missing,
            format!("sysctl -w fs.file-max={}", files * 2),
        ),
        at_least(
            "net.core.somaxconn",
            4096,
            facts.somaxconn,
            missing,
            "sysctl -w net.core.somaxconn=4096".to_owned(),
        ),
    ];
    findings.push(io_uring(facts));
    findings.push(memory(facts, connections));
    findings.extend(ports(facts, connections));
    findings.extend(facts.redis.as_ref().map(|(place, trouble)| Finding {
        what: "redis",
        wanted: format!("an answer from {place}"),
        found: trouble.clone().unwrap_or_else(|| "it answers".to_owned()),
        verdict: if trouble.is_some() { missing } else { Verdict::Good },
        fix: "start it, open the way to it, or write another --backplane".to_owned(),
    }));
    findings
}

fn io_uring(facts: &Facts) -> Finding {
    let fix = match facts.io_uring_disabled {
        Some(1 | 2) => "sysctl -w kernel.io_uring_disabled=0",
        _ => {
            "a kernel from 5.11 on, and a seccomp profile that allows io_uring_setup, _enter \
              and _register"
        }
    };
    Finding {
        what: "io_uring",
        wanted: "a ring can be made".to_owned(),
        found: facts.io_uring.clone().unwrap_or_else(|| "it can".to_owned()),
        verdict: if facts.io_uring.is_some() { Verdict::Missing } else { Verdict::Good },
        fix: fix.to_owned(),
    }
}

fn memory(facts: &Facts, connections: u64) -> Finding {
    let wanted = NODE_BYTES + connections * CONNECTION_BYTES;
    let found = facts.memory_bytes;
    Finding {
        what: "memory",
        wanted: format!("at least {}", Size(wanted)),
        found: found.map_or_else(|| "cannot be read".to_owned(), |bytes| Size(bytes).to_string()),
        verdict: match found {
            Some(bytes) if bytes < wanted => Verdict::Missing,
            Some(_) => Verdict::Good,
            None => Verdict::Advice,
        },
        fix: format!("more memory, MemoryMax={wanted} in the systemd unit, or fewer connections"),
    }
}

/// A server takes no local port for a client. A proxy in front of it on this host, or `campanile
/// load`, does: one for each connection and source address.
fn ports(facts: &Facts, connections: u64) -> Option<Finding> {
    let (first, last) = facts.port_range?;
    let ports = (last + 1).saturating_sub(first);
    Some(Finding {
        what: "net.ipv4.ip_local_port_range",
        wanted: format!("{connections} ports, for a proxy or load generator on this host"),
        found: format!("{first} to {last}: {ports}"),
        verdict: if ports < connections { Verdict::Advice } else { Verdict::Good },
        fix: "sysctl -w net.ipv4.ip_local_port_range='1024 65535', and several source addresses"
            .to_owned(),
    })
}

fn report(findings: &[Finding], connections: u64) -> String {
    let mut out = format!("This host, for {connections} connections:\n");
    for finding in findings {
        let Finding { what, wanted, found, verdict, fix } = finding;
        let mark = match verdict {
            Verdict::Good => "good   ",
            Verdict::Advice => "advice ",
            Verdict::Missing => "MISSING",
        };
        writeln!(out, "  {mark}  {what}: wanted {wanted}; found {found}")
            .expect("a String takes everything");
        if *verdict != Verdict::Good {
            writeln!(out, "           -> {fix}").expect("a String takes everything");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good_host() -> Facts {
        Facts {
            shards: 4,
            nofile_hard: Some(2_000_000),
            nr_open: Some(2_000_000),
            file_max: Some(10_000_000),
            somaxconn: Some(4096),
            port_range: Some((1024, 65_535)),
            memory_bytes: Some(64 << 30),
            io_uring: None,
            io_uring_disabled: Some(0),
            redis: Some(("127.0.0.1:6379".to_owned(), None)),
        }
    }

    fn missing(facts: &Facts, connections: u64, private_fd_tables: bool) -> Vec<&'static str> {
        let config = Config { private_fd_tables, ..Config::default() };
        let findings = judge(facts, &Question { connections, config });
        let lacks = findings.iter().filter(|finding| finding.verdict == Verdict::Missing);
        lacks.map(|finding| finding.what).collect()
    }

    #[test]
    fn a_good_host_lacks_nothing() {
        assert_eq!(missing(&good_host(), 1_000_000, false), [] as [&str; 0]);
    }

    #[test]
    fn each_lack_is_found_and_comes_with_its_line() {
        let good = good_host();
        let cases = [
            ("open files (ulimit -Hn)", Facts { nofile_hard: Some(20_000), ..good.clone() }),
            ("fs.nr_open", Facts { nr_open: Some(20_000), ..good.clone() }),
            ("fs.file-max", Facts { file_max: Some(20_000), ..good.clone() }),
            ("net.core.somaxconn", Facts { somaxconn: Some(128), ..good.clone() }),
            ("memory", Facts { memory_bytes: Some(1 << 30), ..good.clone() }),
            ("io_uring", Facts { io_uring: Some("EPERM".into()), ..good.clone() }),
            ("redis", Facts { redis: Some(("h:1".into(), Some("refused".into()))), ..good }),
        ];
        for (what, facts) in cases {
            assert_eq!(missing(&facts, 1_000_000, false), [what]);
        }
    }

    #[test]
    fn with_a_table_for_each_shard_the_limit_counts_for_each() {
        let facts = Facts { shards: 60, nofile_hard: Some(20_000), ..good_host() };
        assert_eq!(missing(&facts, 200_000, false), ["open files (ulimit -Hn)"]);
        assert_eq!(missing(&facts, 200_000, true), [] as [&str; 0]);
    }

    #[test]
    fn something_that_answers_but_is_not_redis_is_told_from_one_that_is() {
        for (says, is_redis) in
            [("+PONG\r\n", true), ("-NOAUTH wanted\r\n", true), ("HTTP/1.1 400\r\n", false)]
        {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let place = listener.local_addr().unwrap().to_string();
            let server = std::thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                let mut asked = [0u8; 6];
                stream.read_exact(&mut asked).unwrap();
                stream.write_all(says.as_bytes()).unwrap();
            });
            assert_eq!(try_redis(&place, true).is_ok(), is_redis, "{says}");
            server.join().unwrap();
        }
    }
}
