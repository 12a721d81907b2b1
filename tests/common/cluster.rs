//! A Redis Cluster of three masters with a replica each: real processes on free ports, and an end.
//!
//! Invariant: what is asked of them is asked over connections of its own, and every wait is bounded
//! (`wait_until`).
#![allow(dead_code)] // each test binary uses its part

use super::redis::{Redis, free_port, wait_until};
use std::collections::BTreeSet;

pub const MASTERS: usize = 3;
const SLOTS: usize = 16_384;

pub struct Cluster {
    pub servers: Vec<Redis>,
    ids: Vec<String>,
    buses: Vec<u16>,
}

/// How one server sees another (`CLUSTER NODES`).
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Seen {
    id: String,
    is_master: bool,
    /// Of a replica.
    follows: String,
    is_well: bool,
    slots: String,
}

impl Cluster {
    /// Starts all six, and waits until each sees all slots served.
    pub fn start(min_replicas: u32) -> Cluster {
        let mut all = Cluster { servers: Vec::new(), ids: Vec::new(), buses: Vec::new() };
        for _ in 0..2 * MASTERS {
            // The bus is by default 10,000 above the port; named, so that it need not be free there.
            let (port, bus) = (free_port(), free_port());
            let (bus_word, min_replicas) = (bus.to_string(), min_replicas.to_string());
            let settings = [
                ["--cluster-enabled", "yes"],
                ["--cluster-config-file", "nodes.conf"],
                ["--cluster-node-timeout", "1000"],
                ["--cluster-port", &bus_word],
                ["--cluster-allow-replica-migration", "no"],
                ["--repl-diskless-sync-delay", "0"],
                ["--repl-ping-replica-period", "1"],
                ["--min-replicas-to-write", &min_replicas],
                ["--min-replicas-max-lag", "2"],
            ];
            let server = Redis::start_on(port, &settings.concat());
            all.ids.push(server.command(&["CLUSTER", "MYID"]));
            all.servers.push(server);
            all.buses.push(bus);
        }
        all.form();
        wait_until("a cluster of three masters and three replicas is whole", || all.is_whole());
        all
    }

    fn form(&self) {
        for (at, server) in self.servers.iter().enumerate() {
            server.command(&["CLUSTER", "SET-CONFIG-EPOCH", &(at + 1).to_string()]);
            if at < MASTERS {
                let first = SLOTS * at / MASTERS;
                let last = SLOTS * (at + 1) / MASTERS - 1;
                let (first, last) = (first.to_string(), last.to_string());
                server.command(&["CLUSTER", "ADDSLOTSRANGE", &first, &last]);
            }
            let (port, bus) = (self.servers[0].port.to_string(), self.buses[0].to_string());
            server.command(&["CLUSTER", "MEET", "127.0.0.1", &port, &bus]);
        }
        let knows_all =
            |server: &Redis| server.command(&["CLUSTER", "INFO"]).contains("known_nodes:6");
        wait_until("all have met", || self.servers.iter().all(knows_all));
        for at in MASTERS..2 * MASTERS {
            let master = &self.ids[at - MASTERS];
            wait_until("a replica knows its master", || {
                self.servers[at].command(&["CLUSTER", "REPLICATE", master]) == "OK"
            });
        }
    }

    /// What `--backplane` takes.
    pub fn url(&self) -> String {
        let hosts: Vec<_> =
            self.servers[..3].iter().map(|server| format!("127.0.0.1:{}", server.port)).collect();
        format!("redis+cluster://{}", hosts.join(","))
    }

    /// Those that lead, as most of those who answer see it.
    pub fn masters(&self) -> Vec<usize> {
        let mut votes = vec![0; self.servers.len()];
        let mut voters = 0;
        for view in self.servers.iter().filter_map(view) {
            voters += 1;
            for seen in view.iter().filter(|seen| seen.is_master && seen.is_well) {
                let Some(at) = self.ids.iter().position(|id| *id == seen.id) else { continue };
                votes[at] += usize::from(!seen.slots.is_empty());
            }
        }
        (0..votes.len()).filter(|&at| 2 * votes[at] > voters).collect()
    }

    /// The replica of a master.
    pub fn replica_of(&self, master: usize) -> Option<usize> {
        let view = self.servers.iter().find_map(view)?;
        let seen = view.iter().find(|seen| !seen.is_master && seen.follows == self.ids[master])?;
        self.ids.iter().position(|id| *id == seen.id)
    }

    /// All six see the same, each slot is served, and every master has a replica that follows it.
    pub fn is_whole(&self) -> bool {
        let views: Option<Vec<BTreeSet<Seen>>> = self.servers.iter().map(view).collect();
        let Some(views) = views else { return false };
        let is_one = views.iter().all(|view| *view == views[0]);
        let is_well =
            views[0].len() == self.servers.len() && views[0].iter().all(|seen| seen.is_well);
        let leading = views[0].iter().filter(|seen| seen.is_master && !seen.slots.is_empty());
        let masters: Vec<&str> = leading.map(|seen| seen.id.as_str()).collect();
        let replicas: BTreeSet<&str> = views[0].iter().map(|seen| seen.follows.as_str()).collect();
        is_one
            && is_well
            && masters.len() == MASTERS
            && masters.iter().all(|master| replicas.contains(master))
            && self.servers.iter().all(is_served)
    }

    /// What `redis-cli --cluster fix` does for slots of which a master does not know that it has them,
    /// and all others do: a failover right after a move may leave one behind. Answers how many.
    pub fn mend(&self) -> usize {
        let owners = |server: &Redis| view(server).map(|view| owners(&view));
        let all: Vec<Option<Owners>> = self.servers.iter().map(owners).collect();
        let mut mended = 0;
        for slot in 0..SLOTS {
            let says = |of: &Option<Owners>, id: &str| {
                of.as_ref().is_some_and(|of| of[slot].as_deref() == Some(id))
            };
            for (at, id) in self.ids.iter().enumerate() {
                let votes = all.iter().filter(|of| says(of, id)).count();
                if 2 * votes > all.len() && all[at].is_some() && !says(&all[at], id) {
                    let words = ["CLUSTER", "SETSLOT", &slot.to_string(), "NODE", id];
                    let reply = self.servers[at].try_command(&words);
                    mended += usize::from(reply.is_some_and(|reply| reply == "OK"));
                }
            }
        }
        mended
    }

    /// What each of the six sees, for whoever wonders why it is not whole.
    pub fn described(&self) -> String {
        let one = |server: &Redis| {
            let ask = |words: &[&str]| server.try_command(words).unwrap_or("no answer".into());
            let (nodes, role) = (ask(&["CLUSTER", "NODES"]), ask(&["INFO", "replication"]));
            let state = ask(&["CLUSTER", "INFO"]);
            let state = state.lines().next().unwrap_or_default().to_owned();
            format!("\n--- at {}: {state}\n{nodes}{role}", server.port)
        };
        self.servers.iter().map(one).collect()
    }

    /// `CLUSTER FAILOVER` by a replica of this master. `false`: it is refused now.
    pub fn failover(&self, master: usize) -> bool {
        let Some(replica) = self.replica_of(master) else { return false };
        let reply = self.servers[replica].try_command(&["CLUSTER", "FAILOVER"]);
        reply.is_some_and(|reply| reply == "OK")
    }

    /// Some slots of a master in which there are keys.
    pub fn slots_with_keys(&self, master: usize, slots_max: usize) -> Vec<u16> {
        let server = &self.servers[master];
        let found = server.try_command(&["SCAN", "0", "COUNT", "1000"]).unwrap_or_default();
        let mut slots = BTreeSet::new();
        for key in found.split(' ').skip(1).filter(|key| !key.is_empty()) {
            let slot = server.try_command(&["CLUSTER", "KEYSLOT", key]);
            slots.extend(slot.and_then(|slot| slot.parse::<u16>().ok()));
            if slots.len() == slots_max {
                break;
            }
        }
        slots.into_iter().collect()
    }

    /// Moves a slot with its keys to another master while it is in use, as `redis-cli` does.
    pub fn migrate(&self, slot: u16, from: usize, to: usize) -> Result<usize, String> {
        let (source, target) = (&self.servers[from], &self.servers[to]);
        let slot = slot.to_string();
        let say = |server: &Redis, words: &[&str]| match server.try_command(words) {
            Some(reply) if reply == "OK" || reply == "NOKEY" => Ok(()),
            reply => Err(format!("{words:?}: {reply:?}")),
        };
        say(target, &["CLUSTER", "SETSLOT", &slot, "IMPORTING", &self.ids[from]])?;
        say(source, &["CLUSTER", "SETSLOT", &slot, "MIGRATING", &self.ids[to]])?;
        let mut moved = 0;
        // A room that is made meanwhile is asked for at the target, so this comes to an end.
        for _ in 0..1000 {
            let keys = source.try_command(&["CLUSTER", "GETKEYSINSLOT", &slot, "200"]);
            let keys = keys.ok_or("no answer to GETKEYSINSLOT")?;
            let keys: Vec<&str> = keys.split(' ').filter(|key| !key.is_empty()).collect();
            if keys.is_empty() {
                break;
            }
            let port = target.port.to_string();
            let words = ["MIGRATE", "127.0.0.1", &port, "", "0", "2000", "KEYS"];
            say(source, &[&words[..], &keys].concat())?;
            moved += keys.len();
        }
        for server in [target, source] {
            say(server, &["CLUSTER", "SETSLOT", &slot, "NODE", &self.ids[to]])?;
        }
        for other in self.masters().into_iter().filter(|&other| other != from && other != to) {
            say(&self.servers[other], &["CLUSTER", "SETSLOT", &slot, "NODE", &self.ids[to]])?;
        }
        Ok(moved)
    }
}

fn is_served(server: &Redis) -> bool {
    let info = server.try_command(&["CLUSTER", "INFO"]).unwrap_or_default();
    let replication = server.try_command(&["INFO", "replication"]).unwrap_or_default();
    info.contains("cluster_state:ok")
        && info.contains("cluster_slots_ok:16384")
        && (replication.contains("master_link_status:up") || replication.contains("state=online"))
}

fn view(server: &Redis) -> Option<BTreeSet<Seen>> {
    let told = server.try_command(&["CLUSTER", "NODES"])?;
    told.lines().map(seen).collect()
}

/// Who has each slot, as one server sees it.
type Owners = Vec<Option<String>>;

fn owners(view: &BTreeSet<Seen>) -> Owners {
    let mut owners = vec![None; SLOTS];
    for seen in view {
        for range in seen.slots.split(' ').filter(|range| !range.is_empty()) {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (Ok(first), Ok(last)) = (first.parse(), last.parse::<usize>()) else { continue };
            (first..=last).for_each(|slot: usize| owners[slot] = Some(seen.id.clone()));
        }
    }
    owners
}

/// `id ip:port@bus flags follows ping pong epoch link slots…`
fn seen(line: &str) -> Option<Seen> {
    let words: Vec<&str> = line.split(' ').collect();
    let flags: Vec<&str> = words.get(2)?.split(',').collect();
    let bad = ["fail", "fail?", "handshake", "noaddr"];
    // What is being moved is told only to the two it moves between.
    let slots = words.get(8..)?.iter().filter(|slots| !slots.starts_with('['));
    Some(Seen {
        id: (*words.first()?).to_owned(),
        is_master: flags.contains(&"master"),
        follows: (*words.get(3)?).trim_start_matches('-').to_owned(),
        is_well: !flags.iter().any(|flag| bad.contains(flag)) && words.get(7) == Some(&"connected"),
        slots: slots.copied().collect::<Vec<_>>().join(" "),
    })
}
