//! Signs of life: ours, and those of the other nodes; and cleaning up behind one that has died.
//!
//! Every second this node says that it lives, and looks whose sign is missing. Who is missing twice in
//! a row is *dead*: readers leave it out, and one of the others (whoever is first to say so) tells the
//! members of its rooms who has left, and removes its keys. A node is dead at most
//! [`LIFE`] + 2 × [`EVERY`] after its last sign, which is the grace of its users: who has
//! come back elsewhere meanwhile has not left.
//!
//! A node may have been dead for the others and live: frozen, or cut off. It learns so from a note
//! that was left for it, and writes everything anew.
//!
//! Invariant: nobody is dead while this node has just come back to Redis: after an outage the others
//! need a moment, too.

use super::keys::Keys;
use super::scripts::{self, Script};
use crate::backplane::redis::link::{Reply, poll_reply, send};
use crate::backplane::redis::names::Names;
use crate::ids::TopicName;
use crate::namespaces::Namespaces;
use hashbrown::HashMap;
use redis::aio::MultiplexedConnection;
use redis::{RedisResult, pipe};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// How long a sign of life lasts.
const LIFE: Duration = Duration::from_millis(5_000);
/// How often one is given.
const EVERY: Duration = Duration::from_millis(1_000);
/// After a link came up, for how long nobody is dead.
const SETTLING: Duration = Duration::from_millis(5_000);
/// How often somebody must be missing.
const MISSING_MAX: u32 = 2;
/// For how long a dead node finds the note that it was cleaned up behind.
const NOTE_S: u64 = 24 * 60 * 60;
/// How long somebody who began to clean up goes before somebody else may.
const REAPING_MS: u64 = 30_000;
/// Rooms cleaned up in one step.
const ROOMS_PER_STEP: usize = 64;

/// What one look brought.
struct Seen {
    /// Others took this node for dead and cleaned up behind it.
    was_reaped: bool,
    /// Nodes without a sign of life.
    missing: Vec<String>,
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

/// See the module. One for each link.
pub struct Watch {
    began: Instant,
    looked: Option<Instant>,
    look: Option<Reply<Seen>>,
    /// How often in a row each was missing.
    missing: HashMap<String, u32>,
    dead: Arc<[String]>,
    reap: Option<Reply<bool>>,
}

impl Watch {
    /// For a link that has just come up.
    pub fn new(now: Instant) -> Watch {
        Watch {
            began: now,
            looked: None,
            look: None,
            missing: HashMap::new(),
            dead: Arc::default(),
            reap: None,
        }
    }

    /// Who is dead.
    pub fn dead(&self) -> &Arc<[String]> {
        &self.dead
    }

    /// Looks when it is time, and cleans up where it must. An error is for the log: the next look
    /// tries again.
    pub fn poll(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        cmd: &MultiplexedConnection,
        keys: &Keys,
        rules: &Rules,
    ) -> RedisResult<Watched> {
        let mut watched = Watched::default();
        if self.look.is_none() && self.looked.is_none_or(|at| now.duration_since(at) >= EVERY) {
            self.looked = Some(now);
            self.look = Some(send(cx, look(cmd.clone(), keys.clone())));
            watched.is_busy = true;
        }
        if let Some(reply) = &mut self.look
            && let Poll::Ready(seen) = poll_reply(reply, cx)
        {
            self.look = None;
            let Seen { was_reaped, missing } = seen?;
            watched.was_reaped = was_reaped;
            self.note_missing(missing, now);
            if let (None, Some(node)) = (&self.reap, self.dead.first()) {
                let reaping = reap(cmd.clone(), keys.clone(), rules.clone(), node.clone());
                self.reap = Some(send(cx, reaping));
            }
            watched.is_busy = true;
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

    fn note_missing(&mut self, missing: Vec<String>, now: Instant) {
        if now.duration_since(self.began) < SETTLING {
            return;
        }
        let before = std::mem::take(&mut self.missing);
        for node in missing {
            let times = before.get(&node).copied().unwrap_or(0) + 1;
            self.missing.insert(node, times);
        }
        let dead = self.missing.iter().filter(|(_, times)| **times >= MISSING_MAX);
        self.dead = dead.map(|(node, _)| node.clone()).collect();
    }
}

/// What the members of rooms are told.
#[derive(Clone)]
pub struct Rules {
    /// How channels are called.
    pub names: Names,
    /// How many users a room may have that is told of them.
    pub namespaces: Arc<Namespaces>,
}

async fn look(mut cmd: MultiplexedConnection, keys: Keys) -> RedisResult<Seen> {
    let mut first = pipe();
    let life_ms = LIFE.as_millis() as u64;
    first.cmd("SET").arg(keys.life(&keys.me)).arg(1).arg("PX").arg(life_ms).ignore();
    first.cmd("DEL").arg(keys.reaped(&keys.me));
    first.cmd("SADD").arg(keys.nodes()).arg(&keys.me).ignore();
    first.cmd("SMEMBERS").arg(keys.nodes());
    let (notes, mut nodes): (u64, Vec<String>) = first.query_async(&mut cmd).await?;
    nodes.retain(|node| *node != keys.me);
    let mut signs = pipe();
    for node in &nodes {
        signs.cmd("EXISTS").arg(keys.life(node));
    }
    let alive: Vec<bool> = match nodes.is_empty() {
        true => Vec::new(),
        false => signs.query_async(&mut cmd).await?,
    };
    let missing = nodes.into_iter().zip(alive).filter(|(_, alive)| !alive);
    Ok(Seen { was_reaped: notes > 0, missing: missing.map(|(node, _)| node).collect() })
}

/// Cleans up behind a dead node. Answers whether it was us who did.
///
/// The note goes first: should the node live and write while we remove, it finds the note afterwards
/// and writes once more.
async fn reap(
    mut cmd: MultiplexedConnection,
    keys: Keys,
    rules: Rules,
    node: String,
) -> RedisResult<bool> {
    let mut claim = redis::cmd("SET");
    claim.arg(keys.reap(&node)).arg(&keys.me).arg("NX").arg("PX").arg(REAPING_MS);
    let claimed: Option<String> = claim.query_async(&mut cmd).await?;
    if claimed.is_none() {
        return Ok(false);
    }
    let mut note = redis::cmd("SET");
    note.arg(keys.reaped(&node)).arg(1).arg("EX").arg(NOTE_S).exec_async(&mut cmd).await?;
    redis::cmd("SCRIPT").arg("LOAD").arg(Script::Reap.text()).exec_async(&mut cmd).await?;
    loop {
        let mut some = redis::cmd("SRANDMEMBER");
        some.arg(keys.index(&node)).arg(ROOMS_PER_STEP);
        let topics: Vec<String> = some.query_async(&mut cmd).await?;
        if topics.is_empty() {
            break;
        }
        let mut step = pipe();
        for topic in &topics {
            let name = TopicName::parse(topic);
            let users_max = name
                .map_or(0, |name| rules.namespaces.policy(name.kind()).presence_events_users_max);
            let room = scripts::Room { topic, users_max, dead: &[] };
            scripts::reap(&mut step, &keys, &rules.names, room, &node);
        }
        step.cmd("SREM").arg(keys.index(&node)).arg(&topics[..]);
        step.cmd("PEXPIRE").arg(keys.reap(&node)).arg(REAPING_MS);
        step.exec_async(&mut cmd).await?;
    }
    let mut end = pipe();
    end.cmd("SREM").arg(keys.nodes()).arg(&node);
    end.cmd("DEL").arg(keys.reap(&node));
    end.exec_async(&mut cmd).await?;
    Ok(true)
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
}
