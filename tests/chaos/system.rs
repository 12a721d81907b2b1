//! What a run plays on: a deployment of Redis, nodes of ours before it, and all that can be done to
//! them.
//!
//! A fault has a beginning and an end (`begin`, `end`); between them it lasts, and another one may
//! begin. After its end everything is as it was, or becomes so by itself (`is_whole`).

use crate::cluster::Cluster;
use crate::node::Node;
use crate::proxy::{Proxy, Wire};
use crate::redis::Redis;
use crate::rng::Rng;
use crate::run_state::RunState;
use crate::sentinel::{Care, Sentinel};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

pub const NODES: usize = 3;
/// Messages that a room keeps.
pub const HISTORY: u64 = 5000;
/// How often a slot that does not move is tried again.
const MOVES_MAX: usize = 20;
/// The limit that Redis starts with.
const USUAL_BUFFERS: &str = "pubsub 33554432 8388608 60";
/// How long Redis may take to choose another master.
const FAILOVER_MAX: Duration = Duration::from_secs(40);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Standalone,
    Several,
    Sentinel,
    Cluster,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Standalone => "standalone",
            Kind::Several => "several",
            Kind::Sentinel => "sentinel",
            Kind::Cluster => "cluster",
        }
    }
}

/// What can be done to a system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// A server is killed. Alone it comes back with its data; among others one of them takes over.
    Kill,
    /// A server is killed and is back at once, with nothing.
    Empty,
    /// A server stands still for a while.
    Freeze,
    /// `SENTINEL FAILOVER`, `CLUSTER FAILOVER`.
    Failover,
    /// Slots with keys move to another master.
    Migrate,
    /// `CLIENT KILL TYPE pubsub`.
    KillPubsub,
    /// `CLIENT KILL TYPE normal`.
    KillNormal,
    Pause,
    /// `SCRIPT FLUSH`.
    Scripts,
    /// `maxmemory` is reached.
    Memory,
    /// `client-output-buffer-limit pubsub 1mb`, and more than that at once.
    Buffers,
    /// A node of ours is killed.
    Node,
    BlackholeUp,
    BlackholeDown,
    Blackhole,
    Delay,
    Reset,
    Refuse,
}

impl Fault {
    pub const ALL: [Fault; 18] = [
        Fault::Kill,
        Fault::Empty,
        Fault::Freeze,
        Fault::Failover,
        Fault::Migrate,
        Fault::KillPubsub,
        Fault::KillNormal,
        Fault::Pause,
        Fault::Scripts,
        Fault::Memory,
        Fault::Buffers,
        Fault::Node,
        Fault::BlackholeUp,
        Fault::BlackholeDown,
        Fault::Blackhole,
        Fault::Delay,
        Fault::Reset,
        Fault::Refuse,
    ];

    /// As it is written in `CHAOS_FAULTS`.
    pub fn name(self) -> String {
        let mut name = String::new();
        for c in format!("{self:?}").chars() {
            if c.is_uppercase() && !name.is_empty() {
                name.push('_');
            }
            name.extend(c.to_lowercase());
        }
        name
    }

    /// Those that need a wire of ours.
    fn is_of_the_wire(self) -> bool {
        use Fault::*;
        matches!(self, BlackholeUp | BlackholeDown | Blackhole | Delay | Reset | Refuse)
    }

    /// Those after which somebody else leads, or nobody: one at a time.
    fn is_heavy(self) -> bool {
        use Fault::*;
        matches!(self, Kill | Empty | Freeze | Failover | Migrate | Pause | Memory)
    }

    /// Whether it may begin while `other` lasts.
    pub fn goes_with(self, other: Fault) -> bool {
        self != other
            && !(self.is_heavy() && other.is_heavy())
            && !(self.is_of_the_wire() && other.is_of_the_wire())
    }
}

enum Servers {
    /// Servers that know nothing of each other.
    Alone(Vec<Redis>),
    Sentinel(Sentinel),
    Cluster(Cluster),
}

pub struct System {
    pub kind: Kind,
    servers: Servers,
    /// By node; the one of all nodes where there are several servers. Each has one for each server.
    wires: Vec<Vec<Proxy>>,
    nodes: Vec<Option<Node>>,
    run_state: Arc<RunState>,
    linger_ms: u64,
}

/// A fault that lasts.
pub struct OpenFault {
    pub fault: Fault,
    /// Of the servers, or of the nodes.
    target: usize,
    /// Whether it waits for another master.
    until_failover: bool,
    began: Instant,
}

impl System {
    /// With nodes that let go of a room so long after the last one there has left it.
    pub fn new(kind: Kind, run_state: Arc<RunState>, linger_ms: u64) -> System {
        let mut system = System { linger_ms, ..System::without_nodes(kind, run_state) };
        (0..NODES).for_each(|node| system.start_node(node));
        system
    }

    /// The servers and the wires alone.
    pub fn without_nodes(kind: Kind, run_state: Arc<RunState>) -> System {
        // What is written survives a kill: it is with the kernel before it is answered.
        let keeps = ["--appendonly", "yes", "--appendfsync", "no"];
        let alone = |count: usize| (0..count).map(|_| Redis::start_with(&keeps)).collect();
        let min_replicas = match std::env::var("CHAOS_MIN_REPLICAS") {
            Ok(number) => number.parse().expect("CHAOS_MIN_REPLICAS is a number"),
            Err(_) => 1,
        };
        let is_hasty = std::env::var_os("CHAOS_HASTY").is_some();
        let care = Care { min_replicas, is_hasty, ..Care::default() };
        let servers = match kind {
            Kind::Standalone => Servers::Alone(alone(1)),
            Kind::Several => Servers::Alone(alone(3)),
            Kind::Sentinel => Servers::Sentinel(Sentinel::start(care)),
            Kind::Cluster => Servers::Cluster(Cluster::start(min_replicas)),
        };
        let wires = wires(kind, &servers);
        let nodes = (0..NODES).map(|_| None).collect();
        System { kind, servers, wires, nodes, run_state, linger_ms: 0 }
    }

    fn url(&self, node: usize) -> String {
        match &self.servers {
            Servers::Sentinel(all) => all.url(),
            Servers::Cluster(all) => all.url(),
            Servers::Alone(_) => {
                let wires = &self.wires[node % self.wires.len()];
                let hosts: Vec<_> = wires
                    .iter()
                    .map(|socket_key| format!("127.0.0.1:{}", socket_key.port))
                    .collect();
                format!("redis://{}", hosts.join(","))
            }
        }
    }

    fn start_node(&mut self, at: usize) {
        let url = self.url(at);
        // `replicated`: what is acknowledged has outlived the master already.
        let durability = std::env::var("CHAOS_DURABILITY").unwrap_or("async".to_owned());
        let kept =
            format!("kept: history_size={HISTORY}, history_ttl_s=600, durability={durability}");
        let node = Node::start(&[
            "--shards",
            "2",
            "--backplane",
            &url,
            "--redis-linger-ms",
            &self.linger_ms.to_string(),
            "--namespaces",
            &kept,
            "--auth-anonymous-rights",
            "publish,publish_unjoined,send,broadcast",
        ]);
        let progress = &self.run_state.progress[at];
        progress.ops.store(node.ops.port(), SeqCst);
        progress.port.store(node.addr.port(), SeqCst);
        self.nodes[at] = Some(node);
    }

    fn kill_node(&mut self, at: usize) {
        let progress = &self.run_state.progress[at];
        progress.port.store(0, SeqCst);
        progress.ops.store(0, SeqCst);
        progress.is_ready.store(false, SeqCst);
        if let Some(mut node) = self.nodes[at].take() {
            node.kill();
        }
    }

    /// A node of ours that has ended by itself.
    pub fn dead_node(&mut self) -> Option<usize> {
        self.nodes.iter_mut().position(|node| node.as_mut().is_some_and(Node::has_ended))
    }

    /// What can be done here.
    pub fn faults(&self) -> Vec<Fault> {
        let is_possible = |fault: &Fault| match fault {
            Fault::Failover => matches!(self.kind, Kind::Sentinel | Kind::Cluster),
            Fault::Migrate => self.kind == Kind::Cluster,
            fault => !fault.is_of_the_wire() || !self.wires.is_empty(),
        };
        Fault::ALL.into_iter().filter(is_possible).collect()
    }

    /// Whether a server may have less of a history afterwards than was acknowledged.
    pub fn may_lose(&self, fault: Fault) -> bool {
        let leads_another = matches!(self.kind, Kind::Sentinel | Kind::Cluster);
        let ends_a_master = matches!(fault, Fault::Kill | Fault::Freeze | Fault::Failover);
        fault == Fault::Empty || (leads_another && ends_a_master)
    }

    /// All is as it was: every server answers, leads or follows.
    pub fn is_whole(&self) -> bool {
        match &self.servers {
            Servers::Alone(all) => all.iter().all(|one| one.try_command(&["PING"]).is_some()),
            Servers::Sentinel(all) => all.is_whole(),
            Servers::Cluster(all) => all.is_whole(),
        }
    }

    /// What an operator does when a Cluster does not become whole by itself. Answers how many slots.
    pub fn repair(&self) -> usize {
        match &self.servers {
            Servers::Cluster(all) => all.mend(),
            Servers::Alone(_) | Servers::Sentinel(_) => 0,
        }
    }

    /// How the servers are, for whoever wonders why they are not whole.
    pub fn described(&self) -> String {
        match &self.servers {
            Servers::Alone(_) | Servers::Sentinel(_) => String::new(),
            Servers::Cluster(all) => all.described(),
        }
    }

    /// A server that leads.
    fn leader(&self, rng: &mut Rng) -> Option<usize> {
        match &self.servers {
            Servers::Alone(all) => Some(rng.below(all.len())),
            Servers::Sentinel(all) => all.master(),
            Servers::Cluster(all) => {
                let masters = all.masters();
                (!masters.is_empty()).then(|| masters[rng.below(masters.len())])
            }
        }
    }

    fn server(&mut self, at: usize) -> &mut Redis {
        match &mut self.servers {
            Servers::Alone(all) => &mut all[at],
            Servers::Sentinel(all) => &mut all.servers[at],
            Servers::Cluster(all) => &mut all.servers[at],
        }
    }

    /// For how long a fault lasts, at least.
    pub fn lasts(&self, fault: Fault, rng: &mut Rng) -> Duration {
        let ms = match fault {
            Fault::Kill | Fault::Freeze | Fault::Node => 100 + rng.below(3500),
            Fault::Blackhole | Fault::BlackholeUp | Fault::BlackholeDown => 300 + rng.below(5000),
            Fault::Memory | Fault::Delay | Fault::Refuse => 300 + rng.below(2500),
            _ => 0,
        };
        Duration::from_millis(ms as u64)
    }

    /// Does it. `None`: it could not be done now.
    pub fn begin(&mut self, fault: Fault, rng: &mut Rng) -> Option<OpenFault> {
        let target = match fault {
            Fault::Node => rng.below(NODES),
            fault if fault.is_of_the_wire() => rng.below(self.wires.len()),
            _ => self.leader(rng)?,
        };
        let is_alone = matches!(self.servers, Servers::Alone(_));
        let until_failover = match fault {
            Fault::Kill | Fault::Failover => !is_alone,
            // Some stand still for a moment only.
            Fault::Freeze => !is_alone && rng.chance(70),
            _ => false,
        };
        if fault == Fault::Node {
            self.kill_node(target);
        } else if fault.is_of_the_wire() {
            self.spoil_wire(fault, target, rng);
        } else if !self.spoil_server(fault, target, rng) {
            return None;
        }
        Some(OpenFault { fault, target, until_failover, began: Instant::now() })
    }

    fn spoil_wire(&mut self, fault: Fault, target: usize, rng: &mut Rng) {
        let wires = &self.wires[target];
        let socket_key = &wires[rng.below(wires.len())];
        match fault {
            Fault::BlackholeUp => socket_key.set(Wire::DeadUp),
            Fault::BlackholeDown => socket_key.set(Wire::DeadDown),
            Fault::Blackhole => socket_key.set(Wire::Dead),
            Fault::Delay => socket_key.delay(20 + rng.below(400) as u64),
            Fault::Reset => socket_key.reset(),
            _ => {
                socket_key.set(Wire::Refusing);
                socket_key.reset();
            }
        }
    }

    /// `false`: it could not be done now.
    fn spoil_server(&mut self, fault: Fault, target: usize, rng: &mut Rng) -> bool {
        match fault {
            Fault::Failover => {
                return match &self.servers {
                    Servers::Sentinel(all) => all.failover(),
                    Servers::Cluster(all) => all.failover(target),
                    Servers::Alone(_) => false,
                };
            }
            Fault::Migrate => return self.migrate(target, rng),
            _ => {}
        }
        let server = self.server(target);
        match fault {
            Fault::Kill => server.kill(),
            Fault::Empty => {
                server.kill();
                server.wipe();
                server.restart();
            }
            Fault::Freeze => server.freeze(),
            Fault::KillPubsub => drop(server.try_command(&["CLIENT", "KILL", "TYPE", "pubsub"])),
            Fault::KillNormal => drop(server.try_command(&["CLIENT", "KILL", "TYPE", "normal"])),
            Fault::Pause => {
                let ms = (200 + rng.below(4000)).to_string();
                let what = if rng.chance(50) { "ALL" } else { "WRITE" };
                let _ = server.try_command(&["CLIENT", "PAUSE", &ms, what]);
            }
            Fault::Scripts => drop(server.try_command(&["SCRIPT", "FLUSH"])),
            Fault::Memory => drop(server.try_command(&["CONFIG", "SET", "maxmemory", "1000000"])),
            Fault::Buffers => return overrun(server),
            _ => unreachable!("done above: {fault:?}"),
        }
        true
    }

    fn migrate(&mut self, from: usize, rng: &mut Rng) -> bool {
        let Servers::Cluster(all) = &self.servers else { return false };
        let others: Vec<usize> = all.masters().into_iter().filter(|&at| at != from).collect();
        if others.is_empty() {
            return false;
        }
        let to = *rng.pick(&others);
        let slots = all.slots_with_keys(from, 6);
        // Half a move is not left behind: what was moved already is moved, and it goes on from there.
        let moves = |slot: &u16| {
            (0..MOVES_MAX).any(|_| {
                let moved = all.migrate(*slot, from, to);
                if let Err(why) = &moved {
                    println!("    slot {slot} from {from} to {to}: {why}");
                    std::thread::sleep(Duration::from_millis(50));
                }
                moved.is_ok()
            })
        };
        !slots.is_empty() && slots.iter().all(moves)
    }

    /// Whether a fault that has lasted long enough may end: another server leads, where it should.
    pub fn may_end(&self, open: &OpenFault) -> bool {
        if !open.until_failover || open.began.elapsed() > FAILOVER_MAX {
            return true;
        }
        match &self.servers {
            Servers::Alone(_) => true,
            Servers::Sentinel(all) => all.master().is_some_and(|master| master != open.target),
            Servers::Cluster(all) => {
                let masters = all.masters();
                masters.len() == crate::cluster::MASTERS && !masters.contains(&open.target)
            }
        }
    }

    /// Ends it.
    pub fn end(&mut self, open: &OpenFault) {
        let target = open.target;
        match open.fault {
            Fault::Node => self.start_node(target),
            Fault::Kill => match &mut self.servers {
                Servers::Sentinel(all) => all.restart_as_replica(target),
                _ => self.server(target).restart(),
            },
            Fault::Freeze => self.server(target).thaw(),
            Fault::Memory => {
                let _ = self.server(target).try_command(&["CONFIG", "SET", "maxmemory", "0"]);
            }
            Fault::Buffers => {
                let words = ["CONFIG", "SET", "client-output-buffer-limit", USUAL_BUFFERS];
                let _ = self.server(target).try_command(&words);
            }
            fault if fault.is_of_the_wire() => self.wires[target].iter().for_each(Proxy::heal),
            _ => {}
        }
    }
}

/// One wire for each node and server, so that a node can be cut off alone. Several servers are told
/// apart by their addresses, so there all nodes have the same wires.
fn wires(kind: Kind, servers: &Servers) -> Vec<Vec<Proxy>> {
    let Servers::Alone(all) = servers else { return Vec::new() };
    let rows = if kind == Kind::Several { 1 } else { NODES };
    let row = |_| all.iter().map(|server| Proxy::start(server.port)).collect();
    (0..rows).map(row).collect()
}

/// Says more at once than the output buffer of a subscriber may hold. It is valid, and about a room
/// nobody is in. `false`: nobody was cut off for it.
fn overrun(server: &Redis) -> bool {
    let ask = |words: &[&str]| server.try_command(words).unwrap_or_default();
    let subscribers = || -> Vec<String> {
        let list = ask(&["CLIENT", "LIST", "TYPE", "pubsub"]);
        list.lines().filter_map(|line| line.split(' ').next().map(str::to_owned)).collect()
    };
    ask(&["CONFIG", "SET", "client-output-buffer-limit", "pubsub 1048576 0 0"]);
    let before = subscribers();
    let (channel, command) = match ask(&["PUBSUB", "NUMSUB", "campanile:publish"]).ends_with(" 0") {
        false => ("campanile:publish".to_owned(), "PUBLISH"),
        // In a Cluster: into any channel of a probe.
        true => match ask(&["PUBSUB", "SHARDCHANNELS", "*probe-*"]).split(' ').next() {
            Some(channel) if !channel.is_empty() => (channel.to_owned(), "SPUBLISH"),
            _ => return false,
        },
    };
    ask(&["EVAL", OVERRUN, "1", &channel, command]);
    let until = Instant::now() + Duration::from_secs(2);
    while Instant::now() < until {
        let after = subscribers();
        if before.iter().any(|id| !after.contains(id)) {
            return true;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    false
}

/// 3 MB in one step.
const OVERRUN: &str = "
    local text = '{\"room_id\":\"nobody\",\"payload\":\"' .. string.rep('x', 16000) .. '\"}'
    for i = 1, 200 do redis.call(ARGV[1], KEYS[1], text) end";
