//! What the facts mean for so many connections: a pure function from facts to findings.
//!
//! Every finding that is not good carries the line that fixes it, ready to be pasted. What keeps
//! connections out or drops them is missing; what only costs time or memory is advice.
//!
//! Invariant: nothing is read here, so each verdict can be had in a test by writing its facts down.

use crate::doctor::facts::Facts;
use crate::doctor::request::DoctorRequest;
use crate::plan::{ByteSize, FILES_OF_NODE, FILES_OF_SHARD};

/// What was found of one fact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Good,
    /// Worth a thought; does not fail the examination.
    Advice,
    Missing,
}

/// One line of the report.
#[derive(Clone, Debug)]
pub(super) struct Finding {
    pub what: &'static str,
    pub wanted: String,
    pub found: String,
    pub verdict: Verdict,
    /// The line that fixes it.
    pub fix: String,
}

/// Memory of a node before its first connection.
const NODE_BYTES: u64 = 128 * 1024 * 1024;
/// One connection, its kernel's socket included (7.5 KB for both ends were measured, rounded up to
/// be on the safe side for one).
const CONNECTION_BYTES: u64 = 5 * 1024;
/// A new Linux's own `net.core.somaxconn`; fewer is a host that was configured so.
const BACKLOG_MIN: u64 = 4096;
/// What each listener asks for, so more is of no use.
const BACKLOG_MAX: u64 = 65_535;
/// One page: below it not even one small frame is sure of its place when memory is short.
const BUFFER_BYTES_MIN: u64 = 4096;
/// Threads other than shards: main, backplane, ops, signals, and a margin.
const THREADS_OF_NODE: u64 = 16;
/// Rings of a shard, where rings count as locked memory.
const RING_BYTES: u64 = 1 << 20;
/// Its most shards, as `shards` in the configuration has it.
const SHARDS_MAX: u64 = 1024;

/// What so many connections take.
struct Need {
    connections: u64,
    shards: u64,
    /// Connections of the fullest shard.
    share: u64,
    /// Open files of the fullest table.
    per_table: u64,
    has_private_tables: bool,
}

impl Need {
    fn of(facts: &Facts, question: &DoctorRequest) -> Need {
        let config = &question.config;
        let candidates = [config.shards as u64, config.cores.len() as u64, facts.tried.cores];
        let shards = candidates.into_iter().find(|n| *n > 0).unwrap_or(1);
        let connections = question.connections;
        let has_private_tables = config.private_fd_tables;
        let tables = if has_private_tables { shards } else { 1 };
        Need {
            connections,
            shards,
            share: share(connections, shards),
            per_table: share(connections, tables) + files_of(shards),
            has_private_tables,
        }
    }

    /// The fewest shards with which tables of their own fit below `limit` files each.
    fn shards_that_fit(&self, limit: u64) -> Option<u64> {
        let fits = |shards: &u64| share(self.connections, *shards) + files_of(*shards) <= limit;
        (self.shards..=SHARDS_MAX).find(fits)
    }
}

/// The fullest of `parts` that connections fall into by chance. The kernel chooses by a hash: each
/// part gets its mean give or take the root of it, and hardly any of a thousand four roots more.
fn share(connections: u64, parts: u64) -> u64 {
    let mean = connections.div_ceil(parts);
    if parts == 1 { mean } else { connections.min(mean + 4 * mean.isqrt()) }
}

/// Open files other than connections.
fn files_of(shards: u64) -> u64 {
    FILES_OF_NODE + FILES_OF_SHARD * shards
}

/// Everything that matters for so many connections.
pub(super) fn judge(facts: &Facts, question: &DoctorRequest) -> Vec<Finding> {
    let need = Need::of(facts, question);
    let always = [
        open_files(facts, &need),
        nr_open(facts, &need),
        file_max(facts, &need),
        io_uring(facts),
        io_uring_disabled(facts),
        somaxconn(facts, &need),
        tcp_mem(facts, &need),
        buffers("net.ipv4.tcp_rmem", facts.tcp_rmem),
        buffers("net.ipv4.tcp_wmem", facts.tcp_wmem),
        memory(facts, &need),
        shards(facts, &need),
    ];
    let sometimes = [
        seccomp(facts),
        memlock(facts, &need),
        syn_backlog(facts, &need),
        conntrack(facts, &need),
        connections_per_shard(&need, question),
        threads(facts, &need),
        cpu(facts, &need),
        ports(facts, &need),
        redis(facts),
    ];
    always.into_iter().chain(sometimes.into_iter().flatten()).collect()
}

/// A number that must not be lower.
fn at_least(what: &'static str, wanted: u64, found: Option<u64>, fix: String) -> Finding {
    Finding {
        what,
        wanted: format!("at least {wanted}"),
        found: found
            .map_or_else(|| "nothing that can be read".to_owned(), |found| found.to_string()),
        verdict: match found {
            Some(found) if found < wanted => Verdict::Missing,
            Some(_) => Verdict::Good,
            None => Verdict::Advice,
        },
        fix,
    }
}

fn good_if(holds: bool, otherwise: Verdict) -> Verdict {
    if holds { Verdict::Good } else { otherwise }
}

fn open_files(facts: &Facts, need: &Need) -> Finding {
    let Need { per_table, .. } = *need;
    let hard = facts.nofile.map(|nofile| nofile.hard);
    let mut fix = format!("LimitNOFILE={per_table} in the systemd unit, or ulimit -Hn {per_table}");
    if let Some(shards) = hard.and_then(|hard| need.shards_that_fit(hard)) {
        fix += &format!(
            ". Where that cannot be raised: --shards {shards} --private-fd-tables true, for then \
             it counts for each shard"
        );
    }
    let finding = at_least("open files (ulimit -Hn)", per_table, hard, fix);
    let table = if need.has_private_tables { "each shard" } else { "the process" };
    let soft = facts.nofile.map_or(String::new(), |nofile| {
        format!(" (soft limit {}, which serve raises to it)", nofile.soft)
    });
    Finding {
        wanted: format!("{} for {table}", finding.wanted),
        found: finding.found + &soft,
        ..finding
    }
}

fn nr_open(facts: &Facts, need: &Need) -> Finding {
    let wanted = need.per_table;
    at_least("fs.nr_open", wanted, facts.nr_open, format!("sysctl -w fs.nr_open={wanted}"))
}

/// Of the whole machine, with what is open already. Tables that are copies share their files.
fn file_max(facts: &Facts, need: &Need) -> Finding {
    let open = facts.files_open.unwrap_or(0);
    let wanted = open + need.connections + files_of(need.shards);
    let fix = format!("sysctl -w fs.file-max={}", wanted * 2);
    let finding = at_least("fs.file-max", wanted, facts.file_max, fix);
    Finding { wanted: format!("{} ({open} are open now)", finding.wanted), ..finding }
}

fn io_uring(facts: &Facts) -> Finding {
    let fix = match facts.io_uring_disabled {
        Some(1 | 2) => "sysctl -w kernel.io_uring_disabled=0",
        _ => {
            "a kernel from 5.11 on, and a seccomp profile that allows io_uring_setup, _enter \
              and _register"
        }
    };
    let error = &facts.tried.io_uring;
    Finding {
        what: "io_uring",
        wanted: "a ring that takes a request and answers it".to_owned(),
        found: error.clone().unwrap_or_else(|| "it does".to_owned()),
        verdict: good_if(error.is_none(), Verdict::Missing),
        fix: fix.to_owned(),
    }
}

/// Where a ring could be made all the same (we are root, or in its group), the service's user may
/// still not be allowed to. A kernel without this key allows everybody.
fn io_uring_disabled(facts: &Facts) -> Finding {
    let disabled = facts.io_uring_disabled.unwrap_or(0);
    Finding {
        what: "kernel.io_uring_disabled",
        wanted: "0".to_owned(),
        found: facts.io_uring_disabled.map_or_else(|| "no such key".to_owned(), |n| n.to_string()),
        verdict: match disabled {
            0 => Verdict::Good,
            1 if facts.tried.io_uring.is_none() => Verdict::Advice,
            _ => Verdict::Missing,
        },
        fix: match disabled {
            1 => {
                "sysctl -w kernel.io_uring_disabled=0, or put the service's user into the group \
                  of kernel.io_uring_group"
            }
            _ => "sysctl -w kernel.io_uring_disabled=0",
        }
        .to_owned(),
    }
}

/// A filter that lets the try through is good for us, and worth knowing when something else fails.
fn seccomp(facts: &Facts) -> Option<Finding> {
    let mode = facts.seccomp.filter(|mode| *mode > 0)?;
    let works = facts.tried.io_uring.is_none();
    Some(Finding {
        what: "seccomp",
        wanted: "a profile that allows io_uring_setup, _enter and _register".to_owned(),
        found: match (mode, works) {
            (_, true) => "a profile, and a ring works under it",
            (1, false) => "strict mode",
            (_, false) => "a profile, and no ring works under it",
        }
        .to_owned(),
        verdict: good_if(works, Verdict::Missing),
        fix: "docker run --security-opt seccomp=FILE with a profile that allows the three, or \
              SystemCallFilter= as in tuning/campanile.service"
            .to_owned(),
    })
}

/// Rings counted as locked memory until Linux 5.12.
fn memlock(facts: &Facts, need: &Need) -> Option<Finding> {
    facts.kernel.filter(|kernel| *kernel < (5, 12))?;
    let wanted = (16 + need.shards) * RING_BYTES;
    let fix = format!("LimitMEMLOCK={wanted} in the systemd unit, or ulimit -l {}", wanted / 1024);
    Some(at_least("locked memory (ulimit -l), bytes", wanted, facts.memlock_bytes, fix))
}

/// Everybody of a shard at once, as after a restart, as far as one listener can ask for it.
fn backlog(need: &Need) -> u64 {
    need.share.clamp(BACKLOG_MIN, BACKLOG_MAX)
}

fn somaxconn(facts: &Facts, need: &Need) -> Finding {
    let wanted = backlog(need);
    let fix = format!("sysctl -w net.core.somaxconn={wanted}");
    at_least("net.core.somaxconn", wanted, facts.somaxconn, fix)
}

/// Linux looks at it only where it sends no SYN cookies: then a queue that is three quarters full
/// drops.
fn syn_backlog(facts: &Facts, need: &Need) -> Option<Finding> {
    facts.syncookies.filter(|syncookies| *syncookies == 0)?;
    let wanted = backlog(need) * 4 / 3;
    let fix = format!("sysctl -w net.ipv4.tcp_max_syn_backlog={wanted}");
    Some(at_least("net.ipv4.tcp_max_syn_backlog", wanted, facts.syn_backlog, fix))
}

/// A socket with anything in a buffer is charged at least one page, so one message to everybody is
/// a page for each connection until all have acknowledged it. Beyond the last number the kernel
/// drops.
fn tcp_mem(facts: &Facts, need: &Need) -> Finding {
    let pages = need.connections;
    let fix = format!("sysctl -w net.ipv4.tcp_mem='{} {} {}'", pages / 2, pages, pages * 2);
    let most = facts.tcp_mem.map(|[_, _, most]| most);
    let finding = at_least("net.ipv4.tcp_mem", pages, most, fix);
    Finding { wanted: format!("{} pages as the last number", finding.wanted), ..finding }
}

fn buffers(what: &'static str, found: Option<[u64; 3]>) -> Finding {
    let rest = found
        .map_or_else(|| "16384 1048576".to_owned(), |[_, first, most]| format!("{first} {most}"));
    let fix = format!("sysctl -w {what}='{BUFFER_BYTES_MIN} {rest}'");
    let least = found.map(|[least, ..]| least);
    let finding = at_least(what, BUFFER_BYTES_MIN, least, fix);
    Finding { wanted: format!("{} as the first number", finding.wanted), ..finding }
}

/// Tracking that nothing asks for drops nothing.
fn conntrack(facts: &Facts, need: &Need) -> Option<Finding> {
    let conntrack = facts.conntrack?;
    let wanted = need.connections + conntrack.count;
    let is_used = conntrack.count > 0;
    let lack = if is_used { Verdict::Missing } else { Verdict::Advice };
    let used = if is_used { "" } else { ", and tracks nothing now" };
    Some(Finding {
        what: "net.netfilter.nf_conntrack_max",
        wanted: format!("at least {wanted}, or the public port not tracked"),
        found: format!("{}{used}", conntrack.max),
        verdict: good_if(conntrack.max >= wanted, lack),
        fix: format!(
            "sysctl -w net.netfilter.nf_conntrack_max={wanted}, or better: a notrack rule \
             (tuning/README.md)"
        ),
    })
}

fn memory(facts: &Facts, need: &Need) -> Finding {
    let wanted = NODE_BYTES + need.connections * CONNECTION_BYTES;
    let size = |bytes: Option<u64>| bytes.map(|bytes| ByteSize(bytes).to_string());
    let available = facts.memory_available_bytes;
    Finding {
        what: "memory",
        wanted: format!("at least {}", ByteSize(wanted)),
        found: format!(
            "{}, of which {} are free now",
            size(facts.memory_bytes).unwrap_or_else(|| "an unknown amount".to_owned()),
            size(available).unwrap_or_else(|| "an unknown part".to_owned())
        ),
        verdict: match (facts.memory_bytes, available) {
            (Some(bytes), _) if bytes < wanted => Verdict::Missing,
            (Some(_), Some(available)) if available >= wanted => Verdict::Good,
            _ => Verdict::Advice,
        },
        fix: format!("more memory, MemoryMax={wanted} in the systemd unit, or fewer connections"),
    }
}

/// More shards than cores hold more connections where tables are their own, and help with nothing
/// else.
fn shards(facts: &Facts, need: &Need) -> Finding {
    let cores = facts.tried.cores;
    let fits = need.shards <= cores || need.has_private_tables;
    Finding {
        what: "shards",
        wanted: format!("at most one a core, {cores} here"),
        found: match need.shards > cores && fits {
            true => format!("{}, each with a table of files of its own", need.shards),
            false => need.shards.to_string(),
        },
        verdict: good_if(fits, Verdict::Advice),
        fix: format!("--shards {cores}"),
    }
}

/// Our own limit, where it is below what is asked.
fn connections_per_shard(need: &Need, question: &DoctorRequest) -> Option<Finding> {
    let (wanted, max) = (need.share, question.config.limits.connections_per_shard_max as u64);
    let fix = format!("--limits-connections-per-shard-max {wanted}, or more shards");
    (max < wanted).then(|| at_least("limits.connections_per_shard_max", wanted, Some(max), fix))
}

fn threads(facts: &Facts, need: &Need) -> Option<Finding> {
    let wanted = need.shards + THREADS_OF_NODE;
    let fix = format!("TasksMax={wanted} in the systemd unit, or docker run --pids-limit {wanted}");
    let free = facts.threads_free?;
    Some(at_least("threads (pids.max less pids.current)", wanted, Some(free), fix))
}

/// A quota below the shards' cores stops a shard, and everybody in it, for the rest of each period.
fn cpu(facts: &Facts, need: &Need) -> Option<Finding> {
    let millis = facts.cpu_millis?;
    let cores = need.shards.min(facts.tried.cores);
    Some(Finding {
        what: "processor time (cpu.max)",
        wanted: format!("no quota, or at least {cores} cores"),
        found: format!("{}.{:03} cores", millis / 1000, millis % 1000),
        verdict: good_if(millis >= cores * 1000, Verdict::Advice),
        fix: format!(
            "CPUQuota={}% in the systemd unit, or --shards {}",
            cores * 100,
            (millis / 1000).max(1)
        ),
    })
}

/// A server takes no local port for a client. A proxy in front of it on this host, or `campanile
/// load`, does: one for each connection and source address.
fn ports(facts: &Facts, need: &Need) -> Option<Finding> {
    let Need { connections, .. } = *need;
    let [first, last] = facts.port_range?;
    let ports = (last + 1).saturating_sub(first);
    Some(Finding {
        what: "net.ipv4.ip_local_port_range",
        wanted: format!("{connections} ports, for a proxy or load generator on this host"),
        found: format!("{first} to {last}: {ports}"),
        verdict: good_if(ports >= connections, Verdict::Advice),
        fix: "sysctl -w net.ipv4.ip_local_port_range='10240 65535', and several source addresses"
            .to_owned(),
    })
}

fn redis(facts: &Facts) -> Option<Finding> {
    let (place, error) = facts.tried.redis.as_ref()?;
    Some(Finding {
        what: "redis",
        wanted: format!("an answer from {place}"),
        found: error.clone().unwrap_or_else(|| "it answers".to_owned()),
        verdict: good_if(error.is_none(), Verdict::Missing),
        fix: "start it, open the way to it, or write another --backplane".to_owned(),
    })
}
