//! Who watches: for each node somebody who asks `/readyz` all the time, and somebody who speaks on
//! it in rooms without history and listens to what is spoken on the others.
//!
//! A node is *deaf* towards another while nothing that is spoken there arrives. While both say that
//! they are ready, that may last three seconds, and what the machine kept us waiting meanwhile.

use crate::run_state::{ClientLog, RunState};
use crate::ws_client::{Disconnected, WsClient};
use serde_json::json;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

/// So many that each server and each shard has some.
pub const PROBES: usize = 8;
/// The contract of the issue.
const DEAF_AND_READY_MAX_US: u64 = 3_000_000;
const SPEAK: Duration = Duration::from_millis(100);
const ASK: Duration = Duration::from_millis(50);
const LOOK: Duration = Duration::from_millis(20);

/// By speaker, listener and room.
type Table = Vec<Vec<Vec<AtomicU64>>>;

pub struct Reachability {
    run_state: Arc<RunState>,
    /// When something arrived.
    heard_us: Table,
    /// When that was said.
    sent_us: Table,
    /// By node: when somebody spoke there last.
    spoke_us: Vec<AtomicU64>,
    worst_deaf_and_ready_us: AtomicU64,
    /// Since it was last set to 0: the longest time without a delivery between two nodes that are up.
    pub deaf_us: AtomicU64,
}

impl Reachability {
    pub fn new(run_state: Arc<RunState>) -> Reachability {
        let nodes = run_state.progress.len();
        let table = || -> Table {
            let row = || (0..PROBES).map(|_| AtomicU64::new(0)).collect();
            (0..nodes).map(|_| (0..nodes).map(|_| row()).collect()).collect()
        };
        let (heard_us, sent_us) = (table(), table());
        Reachability {
            run_state,
            heard_us,
            sent_us,
            spoke_us: (0..nodes).map(|_| AtomicU64::new(0)).collect(),
            worst_deaf_and_ready_us: AtomicU64::new(0),
            deaf_us: AtomicU64::new(0),
        }
    }

    pub fn worst_unreachable_while_ready(&self) -> Duration {
        Duration::from_micros(self.worst_deaf_and_ready_us.load(SeqCst))
    }

    /// Whether every node is ready, and has heard from every node in every room what was said after
    /// this.
    pub fn all_reachable_since(&self, us: u64) -> bool {
        let ready = self.run_state.progress.iter().all(|progress| progress.is_ready.load(SeqCst));
        ready && self.sent_us.iter().flatten().flatten().all(|sent| sent.load(SeqCst) > us)
    }

    /// Who has not heard what was said after this.
    pub fn unreachable_pairs(&self, us: u64) -> String {
        let mut reports = String::new();
        for (from, row) in self.sent_us.iter().enumerate() {
            for (to, rooms) in row.iter().enumerate() {
                let old = |room: &usize| rooms[*room].load(SeqCst) <= us;
                let deaf: Vec<usize> = (0..PROBES).filter(old).collect();
                if !deaf.is_empty() {
                    reports += &format!("{from}→{to}: rooms {deaf:?}; ");
                }
            }
        }
        reports
    }

    /// Asks one node whether it is ready, all the time.
    pub fn ask(&self, node: usize) {
        let progress = &self.run_state.progress[node];
        while !self.run_state.is_over() {
            let ops = progress.ops.load(SeqCst);
            let ready = ops != 0 && is_ready(ops);
            // It may have been killed while it answered.
            progress.is_ready.store(ready && progress.ops.load(SeqCst) == ops, SeqCst);
            std::thread::sleep(ASK);
        }
    }

    /// Speaks on one node, and listens there.
    pub fn probe(&self, node: usize) {
        while !self.run_state.is_over() {
            let port = self.run_state.progress[node].port.load(SeqCst);
            if port == 0 || self.talk(node, port).is_err() {
                std::thread::sleep(LOOK);
            }
        }
    }

    fn talk(&self, node: usize, port: u16) -> Result<(), Disconnected> {
        let rooms: Vec<String> = (0..PROBES).map(|room| format!("room_id=probe-{room}")).collect();
        let mut line = WsClient::open(port, &format!("/ws?{}", rooms.join("&")))?;
        let mut next = Instant::now();
        while !self.run_state.is_over() {
            if Instant::now() >= next {
                next = Instant::now() + SPEAK;
                for room in 0..PROBES {
                    let payload = json!([node, room, self.run_state.now_us()]);
                    let send = json!({"room_id": format!("probe-{room}"), "payload": payload});
                    line.send(&send.to_string())?;
                }
                self.spoke_us[node].store(self.run_state.now_us(), SeqCst);
            }
            let Some(value) = line.receive(LOOK)? else { continue };
            let number = |at: usize| value["payload"][at].as_u64();
            if let (Some(from), Some(room), Some(sent)) = (number(0), number(1), number(2)) {
                let (from, room) = (from as usize, room as usize);
                self.sent_us[from][node][room].fetch_max(sent, SeqCst);
                self.heard_us[from][node][room].store(self.run_state.now_us(), SeqCst);
            }
        }
        Ok(())
    }

    /// Measures how late this process is.
    pub fn stalls(&self) {
        const NAP: Duration = Duration::from_millis(5);
        while !self.run_state.is_over() {
            let began = Instant::now();
            std::thread::sleep(NAP);
            let late = began.elapsed().saturating_sub(NAP);
            if late > Duration::from_millis(15) {
                self.run_state.stalled_us.fetch_add(late.as_micros() as u64, SeqCst);
            }
        }
    }

    /// Looks at everybody, and complains of those who are deaf and ready.
    pub fn judge(&self, notes: &Sender<ClientLog>) {
        let nodes = self.run_state.progress.len();
        let mut up_since = vec![None; nodes];
        let mut ready_since = vec![None; nodes];
        // Since when, how late we were then, and whether it was told.
        let mut episodes = vec![(0, 0, false); nodes * nodes * PROBES];
        while !self.run_state.is_over() {
            let now = self.run_state.now_us();
            for (node, progress) in self.run_state.progress.iter().enumerate() {
                keep(&mut up_since[node], progress.port.load(SeqCst) != 0, now);
                keep(&mut ready_since[node], progress.is_ready.load(SeqCst), now);
            }
            for (at, episode) in episodes.iter_mut().enumerate() {
                let (from, to, room) = (at / PROBES / nodes, at / PROBES % nodes, at % PROBES);
                let heard = self.heard_us[from][to][room].load(SeqCst);
                if let (Some(one), Some(other)) = (up_since[from], up_since[to]) {
                    let since: u64 = heard.max(one).max(other);
                    self.deaf_us.fetch_max(now.saturating_sub(since), SeqCst);
                }
                let (Some(one), Some(other)) = (ready_since[from], ready_since[to]) else {
                    continue;
                };
                let since: u64 = heard.max(one).max(other);
                let stalled = self.run_state.stalled_us.load(SeqCst);
                if since != episode.0 {
                    *episode = (since, stalled, false);
                }
                let us = now.saturating_sub(since).saturating_sub(stalled - episode.1);
                self.worst_deaf_and_ready_us.fetch_max(us, SeqCst);
                if us > DEAF_AND_READY_MAX_US && !episode.2 {
                    episode.2 = true;
                    let ago = |node: usize| now.saturating_sub(self.spoke_us[node].load(SeqCst));
                    let _ = notes.send(ClientLog::Trouble(format!(
                        "at {now} µs: node {to} is deaf and ready: it has not heard node {from} in \
                         probe-{room} for {us} µs (spoken there {} µs ago, here {} µs ago)",
                        ago(from),
                        ago(to),
                    )));
                }
            }
            std::thread::sleep(LOOK);
        }
    }
}

fn keep(since: &mut Option<u64>, holds: bool, now: u64) {
    match holds {
        true => drop(since.get_or_insert(now)),
        false => *since = None,
    }
}

fn is_ready(ops: u16) -> bool {
    let patience = Duration::from_secs(1);
    let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, ops));
    let ask = || -> std::io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect_timeout(&addr, patience)?;
        stream.set_read_timeout(Some(patience))?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: ops\r\nConnection: close\r\n\r\n")?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.starts_with(b"HTTP/1.1 200 "))
}
