//! Signs of life: ours, and those of the other nodes; and who is to be cleaned up behind.
//!
//! Every second this node says that it lives, and looks whose sign is missing. Who is missing twice in
//! a row is *dead*: readers leave it out, and one of the others (whoever is first to say so) tells the
//! members of its rooms who has left, and removes its keys ([`cleanup`]). A node is dead at most
//! [`LIFE`] + 2 × [`EVERY`] after its last sign, which is the grace of its users: who has
//! come back elsewhere meanwhile has not left.
//!
//! All signs are on one server. While that is not up, there is no watch, and nobody is dead.
//!
//! A node may have been dead for the others and live: frozen, or cut off. It learns so from a note
//! that was left for it, and writes everything anew. Notes are numbers that rise, and stay: what
//! was removed as it was read would be gone with an answer that is lost. It waits for some looks
//! before: for the others it is dead until they have looked again, and whoever is told that its
//! users have come must find them when asking.
//!
//! A node may also stand in rooms and not among the nodes: that server has lost its data and others
//! have not, or the node wrote on after it was cleaned up behind. Whoever meets such a *stranger* in a
//! room writes it down among the nodes; then it gives a sign of life, or is cleaned up behind.
//!
//! Others may write what they like into these keys. What is no node's name is no node, and a note may
//! say anything: it only has to be another one than before.
//!
//! Invariant: nobody is dead while this node has just come back to that server: after an outage the
//! others need a moment, too.

use crate::backplane::redis::connection::{Reply, poll_reply, send};
use crate::backplane::redis::presence::cleanup::{self, Rules};
use crate::backplane::redis::presence::keys::{CONTROL, Keys, node_name};
use crate::backplane::redis::presence::partition_set::Parts;
use crate::backplane::redis::topology::routes::Route;
use hashbrown::{HashMap, HashSet};
use redis::aio::MultiplexedConnection;
use redis::{FromRedisValue, RedisResult, Value, pipe};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// How long a sign of life lasts.
const LIFE: Duration = Duration::from_millis(5_000);
/// How often one is given.
const EVERY: Duration = Duration::from_millis(1_000);
/// After a link came up, for how long nobody is dead.
const SETTLING: Duration = Duration::from_millis(5_000);
/// In how many looks a note is seen before anything is done.
const NOTED: u32 = 3;
/// How often somebody must be missing.
const MISSING_MAX: u32 = 2;

/// What one look brought.
struct Seen {
    /// The note of those who took this node for dead and cleaned up behind it.
    note: Option<Vec<u8>>,
    /// All other nodes.
    nodes: Vec<String>,
    /// Those of them without a sign of life.
    missing: Vec<String>,
}

/// The last note that was found, and how often in a row. It outlives a watch.
#[derive(Default)]
pub struct Noted {
    note: Option<Vec<u8>>,
    times: u32,
}

/// What came of a turn.
#[derive(Default)]
pub struct Watched {
    /// Others took this node for dead and cleaned up behind it.
    pub was_reaped: bool,
    /// Nodes that this one has cleaned up behind.
    pub reaped: u64,
    /// Whether anything happened.
    pub is_busy: bool,
}

/// What it needs to know of the rest.
pub struct Around<'a> {
    /// The ways to all servers.
    pub route: &'a Route,
    /// Partitions in which it may be cleaned up and told now.
    pub settled: Parts,
    /// How keys are called.
    pub keys: &'a Keys,
    /// What members are told.
    pub rules: &'a Rules,
}

/// See the module. One for each time that the server of the signs is up.
pub struct Watch {
    began: Instant,
    looked: Option<Instant>,
    look: Option<Reply<Seen>>,
    /// All other nodes, as last seen.
    nodes: HashSet<String>,
    /// Nodes that were met in rooms, and are not among those.
    strangers: HashSet<String>,
    /// How often in a row each was missing.
    missing: HashMap<String, u32>,
    dead: Arc<[String]>,
    /// Whose turn it is to be cleaned up behind: nobody waits for one that takes long.
    turn: usize,
    reap: Option<Reply<bool>>,
}

impl Watch {
    /// For a link that has just come up.
    pub fn new(now: Instant) -> Watch {
        Watch {
            began: now,
            looked: None,
            look: None,
            nodes: HashSet::new(),
            strangers: HashSet::new(),
            missing: HashMap::new(),
            dead: Arc::default(),
            turn: 0,
            reap: None,
        }
    }

    /// Who is dead.
    pub fn dead(&self) -> &Arc<[String]> {
        &self.dead
    }

    /// These nodes have users in a room.
    pub fn meet(&mut self, nodes: impl IntoIterator<Item = String>, me: &str) {
        let is_strange = |node: &String| node != me && !self.nodes.contains(node);
        self.strangers.extend(nodes.into_iter().filter(is_strange));
    }

    /// Looks when it is time, and cleans up where it must. An error is for the log: the next look
    /// tries again.
    pub fn poll(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        around: &Around<'_>,
        noted: &mut Noted,
    ) -> RedisResult<Watched> {
        let mut watched = Watched::default();
        if self.look.is_none()
            && self.looked.is_none_or(|at| now.duration_since(at) >= EVERY)
            && let Some(cmd) = around.route.cmd(around.route.server_of(CONTROL))
        {
            self.looked = Some(now);
            let strangers = self.strangers.drain().collect();
            self.look = Some(send(cx, look(cmd.clone(), around.keys.clone(), strangers)));
            watched.is_busy = true;
        }
        if let Some(reply) = &mut self.look
            && let Poll::Ready(seen) = poll_reply(reply, cx)
        {
            self.look = None;
            watched.is_busy = true;
            let Seen { note, nodes, missing } = seen?;
            watched.was_reaped = noted.is_due(note);
            self.nodes = nodes.into_iter().collect();
            self.note_missing(missing, now);
            if self.reap.is_none() {
                self.reap = self.next_dead().map(|node| send(cx, cleanup::begin(around, node)));
            }
        }
        if let Some(reply) = &mut self.reap
            && let Poll::Ready(reaped) = poll_reply(reply, cx)
        {
            self.reap = None;
            watched.is_busy = true;
            watched.reaped = u64::from(reaped?);
        }
        Ok(watched)
    }

    fn next_dead(&mut self) -> Option<String> {
        self.turn += 1;
        self.dead.get(self.turn.checked_rem(self.dead.len())?).cloned()
    }

    fn note_missing(&mut self, missing: Vec<String>, now: Instant) {
        if now.duration_since(self.began) < SETTLING {
            return;
        }
        let mut before = std::mem::take(&mut self.missing);
        for node in missing {
            let times = before.remove(&node).unwrap_or(0) + 1;
            self.missing.insert(node, times);
        }
        let dead = self.missing.iter().filter(|(_, times)| **times >= MISSING_MAX);
        self.dead = dead.map(|(node, _)| node.clone()).collect();
    }
}

impl Noted {
    /// What a look found. Whether it is time to deal with it.
    fn is_due(&mut self, note: Option<Vec<u8>>) -> bool {
        let times = if note == self.note { self.times.saturating_add(1) } else { 1 };
        *self = Noted { note, times };
        self.note.is_some() && times == NOTED
    }
}

async fn look(
    mut cmd: MultiplexedConnection,
    keys: Keys,
    strangers: Vec<String>,
) -> RedisResult<Seen> {
    let mut first = pipe();
    let life_ms = LIFE.as_millis() as u64;
    first.cmd("SET").arg(keys.life(&keys.me)).arg(1).arg("PX").arg(life_ms);
    first.cmd("GET").arg(keys.reaped(&keys.me));
    first.cmd("SADD").arg(keys.nodes()).arg(&keys.me).arg(strangers);
    first.cmd("SMEMBERS").arg(keys.nodes());
    let answers = cleanup::all(&mut cmd, &first).await?;
    let [life, note, listed, nodes] = <[Value; 4]>::try_from(answers).unwrap_or_default();
    life.extract_error()?;
    listed.extract_error()?;
    let note = match note {
        Value::BulkString(note) => Some(note),
        _ => None,
    };
    let nodes = Vec::<Vec<u8>>::from_redis_value(nodes.extract_error()?)?;
    let mut nodes: Vec<String> = nodes.iter().filter_map(|name| node_name(name)).collect();
    nodes.retain(|node| *node != keys.me);
    let mut signs = pipe();
    for node in &nodes {
        signs.cmd("EXISTS").arg(keys.life(node));
    }
    let alive: Vec<bool> = match nodes.is_empty() {
        true => Vec::new(),
        false => signs.query_async(&mut cmd).await?,
    };
    let missing = nodes.iter().zip(alive).filter(|(_, alive)| !alive);
    let missing = missing.map(|(node, _)| node.clone()).collect();
    Ok(Seen { note, nodes, missing })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_missing_twice_in_a_row_is_dead_but_not_right_after_an_outage() {
        let start = Instant::now();
        let mut watch = Watch::new(start);
        let mut dead = |ms: u64, missing: &[&str]| {
            let missing = missing.iter().map(|node| node.to_string()).collect();
            watch.note_missing(missing, start + Duration::from_millis(ms));
            watch.dead().to_vec()
        };
        for ms in [0, 1000, 2000, 3000, 4000] {
            assert_eq!(dead(ms, &["a"]), [""; 0], "after {ms} ms");
        }
        assert_eq!(dead(5000, &["a"]), [""; 0]);
        assert_eq!(dead(6000, &["a", "b"]), ["a"]);
        assert_eq!(dead(7000, &["b"]), ["b"], "a gave a sign");
        assert_eq!(dead(8000, &["a"]), [""; 0]);
    }
    #[test]
    fn each_note_is_dealt_with_once_and_not_at_once() {
        let mut noted = Noted::default();
        let mut due = |note: Option<u8>, looks| {
            let note = note.map(|note| vec![note]);
            (0..looks).map(|_| noted.is_due(note.clone())).collect::<Vec<_>>()
        };
        assert_eq!(due(None, 4), [false; 4]);
        assert_eq!(due(Some(1), 5), [false, false, true, false, false]);
        assert_eq!(due(Some(2), 2), [false; 2]);
        assert_eq!(due(Some(3), 4), [false, false, true, false]);
        assert_eq!(due(None, 1), [false]);
        assert_eq!(due(Some(3), 3), [false, false, true]);
    }

    #[test]
    fn who_is_dead_is_cleaned_up_behind_in_turns() {
        let mut watch = Watch::new(Instant::now());
        assert_eq!(watch.next_dead(), None);
        watch.dead = Arc::new(["a".to_owned(), "b".to_owned()]);
        let turns = [watch.next_dead(), watch.next_dead(), watch.next_dead()].map(Option::unwrap);
        assert!(turns == ["a", "b", "a"] || turns == ["b", "a", "b"], "{turns:?}");
    }

    #[test]
    fn whoever_is_met_and_not_known_is_a_stranger() {
        let mut watch = Watch::new(Instant::now());
        watch.nodes.insert("known".to_owned());
        watch.meet(["known", "me", "new", "new"].map(str::to_owned), "me");
        assert!(watch.strangers.iter().eq(["new"]), "{:?}", watch.strangers);
    }
}
