//! Failure detector: signs of life of this node and of the others, and the removal of dead nodes.
//!
//! Every second this node renews its sign of life, and reads which nodes have none. A node that is
//! missing twice in a row is *dead*: queries ignore it, and one of the other nodes (the first to
//! claim it) publishes the leaves of its users and removes its keys ([`cleanup`]). A node is dead
//! at most [`LIFE_SIGN_TTL`] + 2 × [`LIFE_SIGN_INTERVAL`] after its last sign, which is the grace
//! of its users: who has joined elsewhere meanwhile has not left.
//!
//! All signs are on one server. While that is down, nobody is dead.
//!
//! A node may have been dead for the others and live: frozen, or partitioned. It learns so from a
//! notice that was left for it, and writes all its entries again. Notices are rising numbers and
//! are not removed when they are read: the reply may be lost. The node waits for some reads before:
//! for the others it is dead until they have read again, and a member who receives a join must find
//! the user in the roster.
//!
//! A node may also be in rooms and not in the list of nodes: the server of the list has lost its
//! data, or the node continued to write after it was removed. A node that finds such an *unknown
//! node* in a room adds it to the list; then it renews its sign, or is removed.
//!
//! Other programs may write anything into these keys. A malformed name is no node, and a notice may
//! have any value: it only has to differ from the last one.
//!
//! Invariant: nobody is dead while this node has just reconnected to that server: after an outage
//! the others need a moment, too.

use crate::backplane::redis::pipeline::{PendingReply, execute_on, poll_reply, send};
use crate::backplane::redis::presence::cleanup;
use crate::backplane::redis::presence::context::LivenessContext;
use crate::backplane::redis::presence::keys::{CONTROL, Keys, node_name};
use hashbrown::{HashMap, HashSet};
use redis::aio::MultiplexedConnection;
use redis::{FromRedisValue, RedisResult, Value, pipe};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// How long a sign of life lasts.
const LIFE_SIGN_TTL: Duration = Duration::from_millis(5_000);
/// Interval of signs and reads.
const LIFE_SIGN_INTERVAL: Duration = Duration::from_millis(1_000);
/// Time after a reconnection in which nobody is dead.
const SETTLING: Duration = Duration::from_millis(5_000);
/// Number of reads in a row that must find a notice.
const NOTICE_READS: u32 = 3;
/// Number of reads in a row in which a node must be missing.
const MISSING_READS: u32 = 2;

/// The result of one read.
struct NodesSeen {
    /// The notice that this node was removed.
    notice: Option<Vec<u8>>,
    /// All other nodes.
    nodes: Vec<String>,
    /// Those of them without a sign of life.
    missing: Vec<String>,
}

/// The last notice found, and in how many reads in a row. Outlives a [`Liveness`].
#[derive(Default)]
pub(super) struct RemovalNotice {
    notice: Option<Vec<u8>>,
    times: u32,
}

/// The result of a turn.
#[derive(Default)]
pub(super) struct LivenessOutcome {
    /// Other nodes have removed this one's entries.
    pub was_removed: bool,
    /// Number of nodes that this one has removed.
    pub removed: u64,
    /// Whether there was work.
    pub is_busy: bool,
}

/// The failure detector while the server of the signs is up.
pub(super) struct Liveness {
    began: Instant,
    last_read: Option<Instant>,
    read_nodes: Option<PendingReply<NodesSeen>>,
    /// All other nodes, as last read.
    nodes: HashSet<String>,
    /// Nodes found in rooms that are not among those.
    unknown_nodes: HashSet<String>,
    /// In how many reads in a row each node was missing.
    missing: HashMap<String, u32>,
    dead: Arc<[String]>,
    /// Rotates over dead nodes, so that none waits for one that takes long.
    turn: usize,
    cleanup_of: Option<PendingReply<bool>>,
}

impl Liveness {
    /// For a link that has just come up.
    pub(super) fn new(now: Instant) -> Liveness {
        Liveness {
            began: now,
            last_read: None,
            read_nodes: None,
            nodes: HashSet::new(),
            unknown_nodes: HashSet::new(),
            missing: HashMap::new(),
            dead: Arc::default(),
            turn: 0,
            cleanup_of: None,
        }
    }

    /// The dead nodes.
    pub(super) fn dead(&self) -> &Arc<[String]> {
        &self.dead
    }

    /// These nodes have users in a room.
    pub(super) fn observe(&mut self, nodes: impl IntoIterator<Item = String>, me: &str) {
        let is_unknown = |node: &String| node != me && !self.nodes.contains(node);
        self.unknown_nodes.extend(nodes.into_iter().filter(is_unknown));
    }

    /// Reads when it is due, and removes a dead node. An error is for the log: the next read tries
    /// again.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        context: &LivenessContext<'_>,
        removal_notice: &mut RemovalNotice,
    ) -> RedisResult<LivenessOutcome> {
        let mut watched = LivenessOutcome::default();
        if self.read_nodes.is_none()
            && self.last_read.is_none_or(|at| now.duration_since(at) >= LIFE_SIGN_INTERVAL)
            && let Some(cmd) = context.route.cmd(context.route.server_of(CONTROL))
        {
            self.last_read = Some(now);
            let unknown_nodes = self.unknown_nodes.drain().collect();
            self.read_nodes =
                Some(send(cx, read_nodes(cmd.clone(), context.keys.clone(), unknown_nodes)));
            watched.is_busy = true;
        }
        if let Some(reply) = &mut self.read_nodes
            && let Poll::Ready(seen) = poll_reply(reply, cx)
        {
            self.read_nodes = None;
            watched.is_busy = true;
            let NodesSeen { notice, nodes, missing } = seen?;
            watched.was_removed = removal_notice.is_due(notice);
            self.nodes = nodes.into_iter().collect();
            self.note_missing(missing, now);
            if self.cleanup_of.is_none() {
                self.cleanup_of =
                    self.next_dead().map(|node| send(cx, cleanup::begin(context, node)));
            }
        }
        if let Some(reply) = &mut self.cleanup_of
            && let Poll::Ready(removed) = poll_reply(reply, cx)
        {
            self.cleanup_of = None;
            watched.is_busy = true;
            watched.removed = u64::from(removed?);
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
        let dead = self.missing.iter().filter(|(_, times)| **times >= MISSING_READS);
        self.dead = dead.map(|(node, _)| node.clone()).collect();
    }
}

impl RemovalNotice {
    /// Takes the notice of a read. Returns whether it has to be acted on now.
    fn is_due(&mut self, notice: Option<Vec<u8>>) -> bool {
        let times = if notice == self.notice { self.times.saturating_add(1) } else { 1 };
        *self = RemovalNotice { notice, times };
        self.notice.is_some() && times == NOTICE_READS
    }
}

async fn read_nodes(
    mut cmd: MultiplexedConnection,
    keys: Keys,
    unknown_nodes: Vec<String>,
) -> RedisResult<NodesSeen> {
    let mut first = pipe();
    let life_ms = LIFE_SIGN_TTL.as_millis() as u64;
    first.cmd("SET").arg(keys.life(&keys.me)).arg(1).arg("PX").arg(life_ms);
    first.cmd("GET").arg(keys.removed(&keys.me));
    first.cmd("SADD").arg(keys.nodes()).arg(&keys.me).arg(unknown_nodes);
    first.cmd("SMEMBERS").arg(keys.nodes());
    let answers = execute_on(&mut cmd, &first).await?;
    let [life, notice, listed, nodes] = <[Value; 4]>::try_from(answers).unwrap_or_default();
    life.extract_error()?;
    listed.extract_error()?;
    let notice = match notice {
        Value::BulkString(notice) => Some(notice),
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
    Ok(NodesSeen { notice, nodes, missing })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_missing_twice_in_a_row_is_dead_but_not_right_after_an_outage() {
        let start = Instant::now();
        let mut liveness = Liveness::new(start);
        let mut dead = |ms: u64, missing: &[&str]| {
            let missing = missing.iter().map(|node| node.to_string()).collect();
            liveness.note_missing(missing, start + Duration::from_millis(ms));
            liveness.dead().to_vec()
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
    fn each_notice_is_acted_on_once_and_not_at_once() {
        let mut removal_notice = RemovalNotice::default();
        let mut due = |notice: Option<u8>, looks| {
            let notice = notice.map(|notice| vec![notice]);
            (0..looks).map(|_| removal_notice.is_due(notice.clone())).collect::<Vec<_>>()
        };
        assert_eq!(due(None, 4), [false; 4]);
        assert_eq!(due(Some(1), 5), [false, false, true, false, false]);
        assert_eq!(due(Some(2), 2), [false; 2]);
        assert_eq!(due(Some(3), 4), [false, false, true, false]);
        assert_eq!(due(None, 1), [false]);
        assert_eq!(due(Some(3), 3), [false, false, true]);
    }

    #[test]
    fn dead_nodes_are_removed_in_turns() {
        let mut liveness = Liveness::new(Instant::now());
        assert_eq!(liveness.next_dead(), None);
        liveness.dead = Arc::new(["a".to_owned(), "b".to_owned()]);
        let turns =
            [liveness.next_dead(), liveness.next_dead(), liveness.next_dead()].map(Option::unwrap);
        assert!(turns == ["a", "b", "a"] || turns == ["b", "a", "b"], "{turns:?}");
    }

    #[test]
    fn a_node_found_in_a_room_and_not_in_the_list_is_unknown() {
        let mut liveness = Liveness::new(Instant::now());
        liveness.nodes.insert("known".to_owned());
        liveness.observe(["known", "me", "new", "new"].map(str::to_owned), "me");
        assert!(liveness.unknown_nodes.iter().eq(["new"]), "{:?}", liveness.unknown_nodes);
    }
}
