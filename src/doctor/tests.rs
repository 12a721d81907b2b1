use super::facts::{Tried, try_redis};
use super::*;
use crate::config::Config;
use std::io::{Read, Write};
use std::path::PathBuf;

/// A host laid out in a folder; gone with its test.
struct FakeHost(PathBuf);

/// A host that is good for a million connections, file by file.
const GOOD: &[(&str, &str)] = &[
    (
        "proc/self/limits",
        "Limit                     Soft Limit           Hard Limit           Units     \n\
         Max open files            1024                 2000000              files     \n\
         Max locked memory         8388608              8388608              bytes     \n",
    ),
    ("proc/self/status", "Name:\tcampanile\nSeccomp:\t0\nSeccomp_filters:\t0\n"),
    ("proc/self/cgroup", "0::/campanile\n"),
    ("proc/meminfo", "MemTotal:       67108864 kB\nMemAvailable:   60000000 kB\n"),
    ("proc/sys/fs/nr_open", "2000000\n"),
    ("proc/sys/fs/file-max", "10000000\n"),
    ("proc/sys/fs/file-nr", "1000\t0\t10000000\n"),
    ("proc/sys/kernel/io_uring_disabled", "0\n"),
    ("proc/sys/kernel/osrelease", "6.18.44-vm\n"),
    ("proc/sys/net/core/somaxconn", "65535\n"),
    ("proc/sys/net/ipv4/tcp_max_syn_backlog", "2048\n"),
    ("proc/sys/net/ipv4/tcp_syncookies", "1\n"),
    ("proc/sys/net/ipv4/tcp_mem", "1000000\t2000000\t4000000\n"),
    ("proc/sys/net/ipv4/tcp_rmem", "4096\t131072\t6291456\n"),
    ("proc/sys/net/ipv4/tcp_wmem", "4096\t16384\t4194304\n"),
    ("proc/sys/net/ipv4/ip_local_port_range", "1024\t65535\n"),
    ("proc/sys/net/netfilter/nf_conntrack_max", "2000000\n"),
    ("proc/sys/net/netfilter/nf_conntrack_count", "7\n"),
    ("sys/fs/cgroup/campanile/memory.max", "max\n"),
    ("sys/fs/cgroup/campanile/pids.max", "1000\n"),
    ("sys/fs/cgroup/campanile/pids.current", "3\n"),
    ("sys/fs/cgroup/campanile/cpu.max", "max 100000\n"),
];

impl FakeHost {
    fn good(name: &str) -> FakeHost {
        let folder = format!("campanile-doctor-{}-{name}", std::process::id());
        let host = FakeHost(std::env::temp_dir().join(folder));
        GOOD.iter().for_each(|(path, text)| host.write(path, text));
        host
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.0.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn remove(&self, path: &str) {
        std::fs::remove_file(self.0.join(path)).unwrap();
    }

    /// Makes it good again.
    fn conflict(&self, path: &str) {
        match GOOD.iter().find(|(good, _)| *good == path) {
            Some((_, text)) => self.write(path, text),
            None => self.remove(path),
        }
    }

    fn findings(&self, asked: &Asked) -> Vec<Finding> {
        let config = Config {
            shards: asked.shards,
            private_fd_tables: asked.private_fd_tables,
            ..Config::default()
        };
        let question = DoctorRequest { connections: asked.connections, config };
        judge(&Host::below(&self.0).facts(asked.tried.clone()), &question)
    }

    fn with(&self, asked: &Asked, verdict: Verdict) -> Vec<&'static str> {
        let findings = self.findings(asked);
        let such = findings.iter().filter(|finding| finding.verdict == verdict);
        such.map(|finding| finding.what).collect()
    }
}

impl Drop for FakeHost {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What is asked about the host, and what was tried on it.
#[derive(Clone)]
struct Asked {
    connections: u64,
    shards: usize,
    private_fd_tables: bool,
    tried: Tried,
}

impl Asked {
    fn million() -> Asked {
        let redis = Some(("127.0.0.1:6379".to_owned(), None));
        let tried = Tried { cores: 4, io_uring: None, redis };
        Asked { connections: 1_000_000, shards: 0, private_fd_tables: false, tried }
    }
}

#[test]
fn a_good_host_lacks_nothing() {
    let host = FakeHost::good("good");
    assert_eq!(host.with(&Asked::million(), Verdict::Missing), [] as [&str; 0]);
    assert_eq!(
        host.with(&Asked::million(), Verdict::Advice),
        ["net.ipv4.ip_local_port_range"],
        "a million ports are nowhere"
    );
    let few = Asked { connections: 10_000, ..Asked::million() };
    assert_eq!(host.with(&few, Verdict::Advice), [] as [&str; 0]);
}

#[test]
fn each_lack_is_found_alone_and_comes_with_its_line() {
    let host = FakeHost::good("lacks");
    for (path, text, what, fix) in [
        (
            "proc/self/limits",
            "Max open files            1024                 20000                files\n",
            "open files (ulimit -Hn)",
            "LimitNOFILE=1000192",
        ),
        ("proc/sys/fs/nr_open", "1000000", "fs.nr_open", "sysctl -w fs.nr_open=1000192"),
        ("proc/sys/fs/file-max", "1001000", "fs.file-max", "sysctl -w fs.file-max=2002384"),
        ("proc/sys/net/core/somaxconn", "4096", "net.core.somaxconn", "net.core.somaxconn=65535"),
        (
            "proc/sys/net/ipv4/tcp_mem",
            "287898 383867 575796",
            "net.ipv4.tcp_mem",
            "sysctl -w net.ipv4.tcp_mem='500000 1000000 2000000'",
        ),
        (
            "proc/sys/net/ipv4/tcp_rmem",
            "2048 131072 6291456",
            "net.ipv4.tcp_rmem",
            "sysctl -w net.ipv4.tcp_rmem='4096 131072 6291456'",
        ),
        (
            "proc/sys/net/ipv4/tcp_wmem",
            "1024 16384 4194304",
            "net.ipv4.tcp_wmem",
            "sysctl -w net.ipv4.tcp_wmem='4096 16384 4194304'",
        ),
        (
            "proc/sys/net/netfilter/nf_conntrack_max",
            "262144",
            "net.netfilter.nf_conntrack_max",
            "nf_conntrack_max=1000007",
        ),
        (
            "proc/meminfo",
            "MemTotal: 1048576 kB\nMemAvailable: 1048576 kB\n",
            "memory",
            "MemoryMax=",
        ),
        ("sys/fs/cgroup/campanile/memory.max", "1073741824", "memory", "MemoryMax=5254217728"),
        (
            "sys/fs/cgroup/campanile/pids.max",
            "20",
            "threads (pids.max less pids.current)",
            "TasksMax=20",
        ),
        (
            "proc/sys/kernel/io_uring_disabled",
            "2",
            "kernel.io_uring_disabled",
            "sysctl -w kernel.io_uring_disabled=0",
        ),
    ] {
        host.write(path, text);
        assert_eq!(host.with(&Asked::million(), Verdict::Missing), [what], "{path}: {text}");
        let findings = host.findings(&Asked::million());
        let text = report(&findings, 1_000_000);
        assert_eq!(missing(&findings), 1);
        assert!(text.contains(fix), "{fix}: {text}");
        assert!(text.contains("MISSING") && text.contains("Missing: 1."), "{text}");
        host.conflict(path);
    }
    let text = report(&host.findings(&Asked::million()), 1_000_000);
    assert!(text.ends_with("Nothing is missing."), "all findings were resolved: {text}");
}

#[test]
fn a_cgroup_of_version_1_bounds_as_well() {
    let host = FakeHost::good("v1");
    host.write("proc/self/cgroup", "8:pids:/a/b\n4:memory:/a\n1:cpu,cpuacct:/a\n0::/campanile\n");
    assert_eq!(host.with(&Asked::million(), Verdict::Missing), [] as [&str; 0]);
    for (path, text, what) in [
        ("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "1073741824", "memory"),
        ("sys/fs/cgroup/pids/a/pids.max", "10", "threads (pids.max less pids.current)"),
    ] {
        host.write(path, text);
        assert_eq!(host.with(&Asked::million(), Verdict::Missing), [what], "{path}");
        host.conflict(path);
    }
    host.write("sys/fs/cgroup/cpu/a/cpu.cfs_period_us", "100000");
    for (quota, is_advised) in [("-1", false), ("400000", false), ("150000", true)] {
        host.write("sys/fs/cgroup/cpu/a/cpu.cfs_quota_us", quota);
        let advised = host.with(&Asked::million(), Verdict::Advice);
        assert_eq!(advised.contains(&"processor time (cpu.max)"), is_advised, "{quota}");
    }
}

#[test]
fn a_quota_below_the_shards_cores_is_worth_a_thought() {
    let host = FakeHost::good("quota");
    host.write("sys/fs/cgroup/campanile/cpu.max", "150000 100000\n");
    let advised = host.with(&Asked::million(), Verdict::Advice);
    assert!(advised.contains(&"processor time (cpu.max)"), "{advised:?}");
    let text = report(&host.findings(&Asked::million()), 1_000_000);
    assert!(text.contains("1.500 cores") && text.contains("CPUQuota=400%"), "{text}");
    let one = Asked { shards: 1, ..Asked::million() };
    assert!(!host.with(&one, Verdict::Advice).contains(&"processor time (cpu.max)"));
}

#[test]
fn a_ring_that_does_not_work_is_reported_with_what_forbids_it() {
    let host = FakeHost::good("ring");
    let mut asked = Asked::million();
    asked.tried.io_uring = Some("EPERM".to_owned());
    assert_eq!(host.with(&asked, Verdict::Missing), ["io_uring"]);
    host.write("proc/self/status", "Seccomp:\t2\n");
    assert_eq!(host.with(&asked, Verdict::Missing), ["io_uring", "seccomp"]);
    assert_eq!(host.with(&Asked::million(), Verdict::Missing), [] as [&str; 0], "it lets rings by");
    host.write("proc/sys/kernel/io_uring_disabled", "1");
    let all = ["io_uring", "kernel.io_uring_disabled", "seccomp"];
    assert_eq!(host.with(&asked, Verdict::Missing), all);
    let advised = host.with(&Asked::million(), Verdict::Advice);
    assert!(advised.contains(&"kernel.io_uring_disabled"), "we may, the service may not");
}

#[test]
fn locked_memory_counts_only_where_rings_are_locked_memory() {
    let host = FakeHost::good("memlock");
    host.write("proc/sys/kernel/osrelease", "5.11.0");
    let what = "locked memory (ulimit -l), bytes";
    assert_eq!(host.with(&Asked::million(), Verdict::Missing), [what]);
    let text = report(&host.findings(&Asked::million()), 1_000_000);
    assert!(text.contains("LimitMEMLOCK=20971520"), "{text}");
    host.write(
        "proc/self/limits",
        "Max open files  1024  2000000  files\nMax locked memory  unlimited  unlimited  bytes\n",
    );
    assert_eq!(host.with(&Asked::million(), Verdict::Missing), [] as [&str; 0]);
}

#[test]
fn the_queue_of_half_open_connections_matters_without_cookies() {
    let host = FakeHost::good("cookies");
    host.write("proc/sys/net/ipv4/tcp_syncookies", "0");
    let what = "net.ipv4.tcp_max_syn_backlog";
    assert_eq!(host.with(&Asked::million(), Verdict::Missing), [what]);
    host.write("proc/sys/net/ipv4/tcp_max_syn_backlog", "131072");
    assert_eq!(host.with(&Asked::million(), Verdict::Missing), [] as [&str; 0]);
}

#[test]
fn tracking_that_nobody_asked_for_is_only_advice() {
    let host = FakeHost::good("conntrack");
    let what = "net.netfilter.nf_conntrack_max";
    host.write("proc/sys/net/netfilter/nf_conntrack_max", "262144");
    host.write("proc/sys/net/netfilter/nf_conntrack_count", "0");
    assert_eq!(host.with(&Asked::million(), Verdict::Missing), [] as [&str; 0]);
    assert!(host.with(&Asked::million(), Verdict::Advice).contains(&what));
    host.remove("proc/sys/net/netfilter/nf_conntrack_max");
    assert!(host.findings(&Asked::million()).iter().all(|finding| finding.what != what));
}

#[test]
fn with_a_table_for_each_shard_the_limit_counts_for_each() {
    let host = FakeHost::good("tables");
    host.write("proc/self/limits", "Max open files  20000  20000  files\n");
    let shared =
        Asked { connections: 200_000, shards: 60, private_fd_tables: false, ..Asked::million() };
    assert_eq!(host.with(&shared, Verdict::Missing), ["open files (ulimit -Hn)"]);
    let own = Asked { private_fd_tables: true, ..shared.clone() };
    assert_eq!(host.with(&own, Verdict::Missing), [] as [&str; 0]);
    let too_few = Asked { shards: 10, ..own };
    assert_eq!(host.with(&too_few, Verdict::Missing), ["open files (ulimit -Hn)"]);
    let text = report(&host.findings(&too_few), 200_000);
    assert!(text.contains("--shards 11 --private-fd-tables true"), "{text}");
    assert!(text.contains("soft limit 20000"), "{text}");
}

#[test]
fn chance_is_reckoned_with_where_the_kernel_spreads_connections() {
    let host = FakeHost::good("chance");
    // 100 shards of 10,000 on average; the fullest may have 400 more, and 1728 files are not its own.
    let asked = Asked { shards: 100, private_fd_tables: true, ..Asked::million() };
    for (limit, lacks) in [(12_127, 1), (12_128, 0)] {
        host.write("proc/self/limits", &format!("Max open files  1  {limit}  files\n"));
        assert_eq!(host.with(&asked, Verdict::Missing).len(), lacks, "{limit}");
    }
}

#[test]
fn a_limit_of_our_own_below_what_is_asked_is_a_lack() {
    let host = FakeHost::good("own-limit");
    let asked = Asked { shards: 1, connections: 1_500_000, ..Asked::million() };
    assert_eq!(host.with(&asked, Verdict::Missing), ["limits.connections_per_shard_max"]);
}

#[test]
fn more_shards_than_cores_are_advised_against_unless_they_bring_tables() {
    let host = FakeHost::good("shards");
    let asked = Asked { shards: 8, ..Asked::million() };
    assert!(host.with(&asked, Verdict::Advice).contains(&"shards"));
    let own = Asked { private_fd_tables: true, ..asked };
    assert!(!host.with(&own, Verdict::Advice).contains(&"shards"));
}

#[test]
fn a_host_that_shows_nothing_lacks_nothing_that_is_known() {
    let host = FakeHost(std::env::temp_dir().join("campanile-doctor-no-such-folder"));
    assert_eq!(host.with(&Asked::million(), Verdict::Missing), [] as [&str; 0]);
    assert!(host.with(&Asked::million(), Verdict::Advice).contains(&"memory"));
}

#[test]
fn no_answer_from_redis_is_a_lack() {
    let host = FakeHost::good("redis");
    let mut asked = Asked::million();
    asked.tried.redis = Some(("h:1".to_owned(), Some("refused".to_owned())));
    assert_eq!(host.with(&asked, Verdict::Missing), ["redis"]);
}

#[test]
fn a_server_that_answers_and_is_not_redis_is_recognised() {
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

#[test]
fn redis_is_also_found_behind_a_unix_socket() {
    let folder = std::env::temp_dir().join(format!("campanile-doctor-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("redis.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut asked = [0u8; 6];
        stream.read_exact(&mut asked).unwrap();
        stream.write_all(b"+PONG\r\n").unwrap();
    });
    assert_eq!(try_redis(path.to_str().unwrap(), true), Ok(()));
    server.join().unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    assert!(try_redis(path.to_str().unwrap(), true).is_err(), "there is no socket any more");
}
