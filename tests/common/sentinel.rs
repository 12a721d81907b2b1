//! A master, two replicas and three Sentinels: real processes on free ports, and an end.
//!
//! Invariant: what is asked of them is asked over connections of its own, and every wait is bounded
//! (`wait_until`).
#![allow(dead_code)] // each test binary uses its part

use super::redis::{Redis, wait_until};

/// What the Sentinels call the master.
pub const NAME: &str = "mymaster";

pub struct Sentinel {
    pub servers: Vec<Redis>,
    pub sentinels: Vec<Redis>,
}

/// How careful the deployment is.
#[derive(Clone, Copy)]
pub struct Care {
    /// `min-replicas-to-write`; with 0 a master that nobody follows takes writes that are lost.
    pub min_replicas: u32,
    pub down_after_ms: u32,
    /// Whether an old master that is well is demoted within a second or two. Usually that takes
    /// eleven, in which it goes on as if nothing had happened.
    pub is_hasty: bool,
}

impl Default for Care {
    fn default() -> Care {
        Care { min_replicas: 1, down_after_ms: 700, is_hasty: false }
    }
}

impl Sentinel {
    /// Starts all six, and waits until each knows the others.
    pub fn start(care: Care) -> Sentinel {
        let min_replicas = care.min_replicas.to_string();
        let settings = [
            ["--repl-diskless-sync-delay", "0"],
            ["--repl-ping-replica-period", "1"],
            ["--min-replicas-to-write", &min_replicas],
            ["--min-replicas-max-lag", "2"],
        ];
        let servers: Vec<Redis> = (0..3).map(|_| Redis::start_with(&settings.concat())).collect();
        let master = servers[0].port;
        for replica in &servers[1..] {
            replica.command(&["REPLICAOF", "127.0.0.1", &master.to_string()]);
        }
        let lines = [
            format!("sentinel monitor {NAME} 127.0.0.1 {master} 2"),
            format!("sentinel down-after-milliseconds {NAME} {}", care.down_after_ms),
            format!("sentinel failover-timeout {NAME} 3000"),
            format!("sentinel parallel-syncs {NAME} 2"),
        ];
        let sentinels: Vec<Redis> = (0..3).map(|_| Redis::start_sentinel(lines.to_vec())).collect();
        for sentinel in &sentinels {
            // They look at a server every ten seconds otherwise, and what is well again takes as long;
            // and one whose connection is cut is down when the last answer is older than down-after.
            sentinel.command(&["SENTINEL", "DEBUG", "INFO-PERIOD", "500", "PING-PERIOD", "150"]);
            if care.is_hasty {
                sentinel.command(&["SENTINEL", "DEBUG", "PUBLISH-PERIOD", "300"]);
            }
        }
        let all = Sentinel { servers, sentinels };
        wait_until("a master, two replicas and three Sentinels know each other", || all.is_whole());
        all
    }

    /// What `--backplane` takes.
    pub fn url(&self) -> String {
        let hosts: Vec<_> =
            self.sentinels.iter().map(|s| format!("127.0.0.1:{}", s.port)).collect();
        format!("redis+sentinel://{}/{NAME}", hosts.join(","))
    }

    /// Whom all Sentinels name; `None` while they do not agree.
    pub fn master(&self) -> Option<usize> {
        let ask = |sentinel: &Redis| {
            let told = sentinel.try_command(&["SENTINEL", "get-master-addr-by-name", NAME])?;
            let port: u16 = told.split(' ').nth(1)?.parse().ok()?;
            self.servers.iter().position(|server| server.port == port)
        };
        let first = ask(self.sentinels.first()?)?;
        let agree = self.sentinels.iter().all(|sentinel| ask(sentinel) == Some(first));
        agree.then_some(first)
    }

    /// One master that everybody names, two replicas that follow it, and nothing that anybody takes
    /// for down.
    pub fn is_whole(&self) -> bool {
        let Some(master) = self.master() else { return false };
        let info = |server: &Redis| server.try_command(&["INFO", "replication"]);
        let Some(of_master) = info(&self.servers[master]) else { return false };
        let leads =
            of_master.contains("role:master") && of_master.matches("state=online").count() == 2;
        let follow = self.servers.iter().enumerate().all(|(at, server)| {
            at == master || info(server).is_some_and(|text| text.contains("master_link_status:up"))
        });
        leads && follow && self.sentinels.iter().all(sees_all_well)
    }

    /// `SENTINEL FAILOVER`. `false`: it is refused now, such as while another is under way.
    pub fn failover(&self) -> bool {
        let reply = self.sentinels[0].try_command(&["SENTINEL", "FAILOVER", NAME]);
        reply.is_some_and(|reply| reply == "OK")
    }

    /// Starts a server that was killed as a replica of the master of now, if there is another.
    pub fn restart_as_replica(&mut self, at: usize) {
        match self.master().filter(|&master| master != at) {
            Some(master) => {
                let master = format!("127.0.0.1 {}", self.servers[master].port);
                self.servers[at].restart_with(&["--replicaof", &master]);
            }
            None => self.servers[at].restart(),
        }
    }
}

fn sees_all_well(sentinel: &Redis) -> bool {
    let ask = |what: &str| sentinel.try_command(&["SENTINEL", what, NAME]).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let mut words = text.split(' ').skip_while(|word| *word != name);
        words.nth(1).map(str::to_owned)
    };
    let master = ask("master");
    let replicas = ask("replicas");
    ask("ckquorum").starts_with("OK 3")
        && field(&master, "flags").as_deref() == Some("master")
        && field(&master, "num-slaves").as_deref() == Some("2")
        && replicas.matches(" flags slave ").count() == 2
}
