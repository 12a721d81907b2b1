//! Which other nodes live and what they read, and the removal of dead ones.
//!
//! Every second this node renews its record, and reads the records of all others; also where no
//! namespace has presence, because the records decide what is written ([`crate::backplane::wire`]).
//! A node without a record twice in a row is *dead*: queries ignore it, and one of the other nodes
//! (the first to claim it) publishes the leaves of its users and removes its keys ([`Cleanup`]). A
//! node is dead at most 7 seconds after its last record, which is the grace of its users: a user who
//! has joined elsewhere by then has not left.
//!
//! A node may have been dead for the others and live: frozen, or partitioned. It finds a notice
//! that was left for it, and writes all its entries again ([`RemovalNotice`]).
//!
//! A node may be in rooms and not in the list of nodes: the server of the list has lost its data, or
//! the node continued to write after it was removed. A node that finds such an *unknown node* in a
//! room adds it to the list; then it renews its record, or is removed. And this node itself may be
//! missing from the list though it was in it, without a notice: then the server has lost data, and
//! the entries there are written again.
//!
//! Other programs may write anything into these keys. A malformed name is no node, and a notice may
//! have any value: it only has to differ from the last one.
//!
//! The states of the link, of each other node, and of the notice, with all their transitions:
//!
//! ```text
#![doc = include_str!("states.txt")]
//! ```
//!
//! Invariant: nobody is dead while this node has just reconnected to the server of the records.

use crate::backplane::redis::pipeline::{PendingReply, poll_reply, send};
use crate::backplane::redis::presence::cleanup::Cleanup;
use crate::backplane::redis::presence::context::LivenessContext;
use crate::backplane::redis::presence::keys::CONTROL;
use crate::backplane::redis::presence::node_life::{LifeEvent, NodeLife};
use crate::backplane::redis::presence::records::{NodeRecord, NodesRead, Repairs, renew_and_read};
use crate::backplane::redis::presence::removal_notice::RemovalNotice;
use crate::backplane::redis::presence::repairers::Repairers;
use crate::backplane::redis::presence::skipped::Skipped;
use crate::backplane::redis::presence::watch::{Watch, WatchEvent};
use crate::backplane::wire::{self, WireRange};
use hashbrown::{HashMap, HashSet};
use redis::RedisResult;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// Interval of renewals and reads.
const READ_INTERVAL: Duration = Duration::from_millis(1_000);

/// The result of a turn.
#[derive(Default)]
pub(super) struct LivenessOutcome {
    /// Other nodes have removed this one's entries.
    pub was_removed: bool,
    /// The server of the records has lost data.
    pub has_lost_data: bool,
    /// Number of nodes that this one has removed.
    pub removed: u64,
    /// What no node has written.
    pub skipped: Skipped,
    /// Whether there was work.
    pub is_busy: bool,
}

/// Another node.
struct KnownNode {
    life: NodeLife,
    reads: WireRange,
}

/// The removal of a dead node.
struct Removal {
    node: String,
    cleanup: Cleanup,
}

/// All other nodes. Outlives links; owned by
/// [`crate::backplane::redis::presence::RedisPresence`].
pub(super) struct Liveness {
    /// This node's record.
    own: NodeRecord,
    /// The newest version that this node may write.
    writes_max: u8,
    watch: Watch,
    read_at: Option<Instant>,
    read: Option<PendingReply<NodesRead>>,
    /// Whether a read has succeeded on this link, after which the list had this node.
    is_listed: bool,
    nodes: HashMap<String, KnownNode>,
    /// Those that lived when that was last known, also while the server is down.
    repairers: Repairers,
    /// Nodes found in rooms that are not among those.
    unknown_nodes: HashSet<String>,
    dead: Arc<[String]>,
    /// Rotates over dead nodes, so that none waits for one that takes long.
    turn: usize,
    removal: Option<Removal>,
    notice: RemovalNotice,
}

impl Liveness {
    /// The server of the records is down. `has_history`: this node may have what a server has lost.
    pub(super) fn new(reads: WireRange, writes_max: u8, has_history: bool) -> Liveness {
        let repairs = if has_history { Repairs::Reported } else { Repairs::Nothing };
        assert!((reads.min..=reads.max).contains(&writes_max), "a node reads what it writes");
        Liveness {
            own: NodeRecord { reads, repairs },
            writes_max,
            watch: Watch::Down,
            read_at: None,
            read: None,
            is_listed: false,
            nodes: HashMap::new(),
            repairers: Repairers::default(),
            unknown_nodes: HashSet::new(),
            dead: Arc::default(),
            turn: 0,
            removal: None,
            notice: RemovalNotice::default(),
        }
    }

    /// The server of the records is up.
    pub(super) fn go_up(&mut self, now: Instant) {
        self.watch = self.watch.after(Watch::up_at(now)).expect("a server may go up");
    }

    /// The server of the records is down, or another one: what is known of nodes is too old to act
    /// on.
    pub(super) fn go_down(&mut self) {
        self.watch = self.watch.after(WatchEvent::ServerDown).expect("a server may go down");
        (self.read_at, self.read, self.removal, self.is_listed) = (None, None, None, false);
        self.nodes.clear();
        self.unknown_nodes.clear();
        self.dead = Arc::default();
    }

    /// The dead nodes.
    pub(super) fn dead(&self) -> &Arc<[String]> {
        &self.dead
    }

    /// The nodes that may have what a server has lost.
    pub(super) fn repairers(&self) -> &Repairers {
        &self.repairers
    }

    /// The version to write: what the oldest living node reads, and the oldest of all while that is
    /// not known.
    pub(super) fn version(&self) -> u8 {
        if !self.is_listed {
            return self.own.reads.min;
        }
        let living = self.nodes.values().filter(|node| !node.life.is_dead());
        wire::common(living.map(|node| node.reads), self.own.reads, self.writes_max)
    }

    /// Whether this node is in the list, and knows the others.
    pub(super) fn is_listed(&self) -> bool {
        self.is_listed
    }

    /// Number of other nodes that live.
    pub(super) fn living(&self) -> usize {
        self.nodes.values().filter(|node| !node.life.is_dead()).count()
    }

    /// These nodes have users in a room.
    pub(super) fn observe(&mut self, nodes: impl IntoIterator<Item = String>, me: &str) {
        if self.watch.is_up() {
            let is_unknown = |node: &String| node != me && !self.nodes.contains_key(node);
            self.unknown_nodes.extend(nodes.into_iter().filter(is_unknown));
        }
    }

    /// Reads when it is due, and removes a dead node. An error is for the log: the next read tries
    /// again.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        context: &LivenessContext<'_>,
    ) -> RedisResult<LivenessOutcome> {
        self.watch.handle_timeout(now);
        let mut outcome = LivenessOutcome::default();
        outcome.is_busy |= self.begin_read(cx, now, context);
        let read = self.poll_read(cx, &mut outcome);
        if self.removal.is_none() && matches!(read, Ok(true)) {
            self.begin_removal(cx, context);
        }
        let ended = self.poll_removal(cx, now, &mut outcome);
        self.invariants();
        read.and(ended).map(|()| outcome)
    }

    fn begin_read(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        context: &LivenessContext<'_>,
    ) -> bool {
        let is_due = self.read_at.is_none_or(|at| now.duration_since(at) >= READ_INTERVAL);
        let Some(cmd) = context.route.cmd(context.route.server_of(CONTROL)) else { return false };
        if self.read.is_some() || !is_due || !self.watch.is_up() {
            return false;
        }
        self.read_at = Some(now);
        let unlisted = self.unknown_nodes.drain().collect();
        let read = renew_and_read(cmd.clone(), context.keys.clone(), self.own, unlisted);
        self.read = Some(send(cx, read));
        true
    }

    /// Returns whether a read has arrived.
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        outcome: &mut LivenessOutcome,
    ) -> RedisResult<bool> {
        let Some(reply) = &mut self.read else { return Ok(false) };
        let Poll::Ready(read) = poll_reply(reply, cx) else { return Ok(false) };
        self.read = None;
        outcome.is_busy = true;
        let NodesRead { notice, was_unlisted, nodes, skipped } = read?;
        outcome.was_removed = self.notice.take(notice);
        // A node that was removed is unlisted, too, and has a notice.
        let is_removed = outcome.was_removed || self.notice.is_pending();
        outcome.has_lost_data = was_unlisted && self.is_listed && !is_removed;
        outcome.skipped = skipped;
        self.is_listed = true;
        self.handle_nodes(nodes);
        Ok(true)
    }

    /// Takes what a read has found.
    fn handle_nodes(&mut self, nodes: Vec<(String, Option<NodeRecord>)>) {
        self.repairers.take_read(&nodes);
        let mut before = std::mem::take(&mut self.nodes);
        for (name, record) in nodes {
            let reads = record.map(|record| record.reads);
            // Nobody dies while the others may still be reconnecting.
            let is_seen = reads.is_some() || self.watch != Watch::Watching;
            let event = if is_seen { LifeEvent::Seen } else { LifeEvent::NotSeen };
            let known = before.remove(&name);
            let (life, known_reads) = known
                .map_or((NodeLife::Alive, WireRange::FIRST), |known| (known.life, known.reads));
            let life = life.after(event).expect("a listed node is not forgotten");
            self.nodes.insert(name, KnownNode { life, reads: reads.unwrap_or(known_reads) });
        }
        for (name, KnownNode { life, reads }) in before {
            let life = life.after(LifeEvent::Unlisted).expect("a known node is not forgotten");
            if life != NodeLife::Forgotten {
                self.nodes.insert(name, KnownNode { life, reads });
            }
        }
        self.list_dead();
    }

    fn list_dead(&mut self) {
        let dead = self.nodes.iter().filter(|(_, node)| node.life.is_dead());
        let mut dead: Vec<String> = dead.map(|(name, _)| name.clone()).collect();
        dead.sort_unstable();
        if *self.dead != *dead {
            self.dead = dead.into();
        }
    }

    fn begin_removal(&mut self, cx: &mut Context<'_>, context: &LivenessContext<'_>) {
        let Some(node) = self.next_dead() else { return };
        let Some(cleanup) = Cleanup::begin(cx, context, node.clone()) else { return };
        self.change(&node, LifeEvent::RemovalBegan);
        self.removal = Some(Removal { node, cleanup });
    }

    fn poll_removal(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        outcome: &mut LivenessOutcome,
    ) -> RedisResult<()> {
        let Some(removal) = &mut self.removal else { return Ok(()) };
        let Poll::Ready(ended) = removal.cleanup.poll(cx, now) else { return Ok(()) };
        let node = self.removal.take().expect("it was just polled").node;
        outcome.is_busy = true;
        let is_done = ended.as_ref().is_ok_and(|is_done| *is_done);
        outcome.removed = u64::from(is_done);
        self.change(&node, if is_done { LifeEvent::RemovalDone } else { LifeEvent::RemovalFailed });
        ended.map(|_| ())
    }

    /// The node to remove next: of the dead ones, in turns.
    fn next_dead(&mut self) -> Option<String> {
        self.turn += 1;
        self.dead.get(self.turn.checked_rem(self.dead.len())?).cloned()
    }

    fn change(&mut self, name: &str, event: LifeEvent) {
        let node = self.nodes.get_mut(name).expect("a node that is removed is known");
        node.life = node.life.after(event).expect("the event suits the state");
        if node.life == NodeLife::Forgotten {
            self.nodes.remove(name);
        }
        self.list_dead();
    }

    /// Holds after each step.
    fn invariants(&self) {
        if !cfg!(debug_assertions) {
            return;
        }
        let dead = self.nodes.values().filter(|node| node.life.is_dead()).count();
        assert_eq!(dead, self.dead.len(), "the list has all dead nodes");
        let is_removed =
            |node: &&KnownNode| matches!(node.life, NodeLife::Removing | NodeLife::Returned);
        let removed = self.nodes.values().filter(is_removed).count();
        assert_eq!(removed, usize::from(self.removal.is_some()), "one node is removed at a time");
        assert!(self.nodes.values().all(|node| node.life != NodeLife::Forgotten));
        assert!(self.watch.is_up() || self.nodes.is_empty(), "nobody is known while it is down");
        assert!(self.watch == Watch::Watching || self.dead.is_empty(), "nobody dies too early");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watching(start: Instant) -> Liveness {
        let mut liveness = Liveness::new(WireRange { min: 1, max: 9 }, 7, true);
        liveness.go_up(start);
        liveness.is_listed = true;
        liveness
    }

    /// A read that finds these nodes; without a range: no record.
    fn read(liveness: &mut Liveness, now: Instant, nodes: &[(&str, Option<u8>)]) {
        liveness.watch.handle_timeout(now);
        let range = |max: Option<u8>| {
            max.map(|max| NodeRecord {
                reads: WireRange { min: 1, max },
                repairs: Repairs::Reported,
            })
        };
        let nodes = nodes.iter().map(|(name, max)| ((*name).to_owned(), range(*max)));
        liveness.handle_nodes(nodes.collect());
        liveness.invariants();
    }

    #[test]
    fn a_node_missing_twice_in_a_row_is_dead_but_not_right_after_an_outage() {
        let start = Instant::now();
        let mut liveness = watching(start);
        let mut dead = |ms: u64, nodes: &[(&str, Option<u8>)]| {
            read(&mut liveness, start + Duration::from_millis(ms), nodes);
            liveness.dead().to_vec()
        };
        for ms in [0, 1000, 2000, 3000, 4000] {
            assert_eq!(dead(ms, &[("a", None)]), [""; 0], "after {ms} ms");
        }
        let (a, b, a_lives) = (("a", None), ("b", None), ("a", Some(1)));
        assert_eq!(dead(5000, &[a]), [""; 0]);
        assert_eq!(dead(6000, &[a, b]), ["a"]);
        assert_eq!(dead(7000, &[a_lives, b]), ["b"], "a has a record again");
        assert_eq!(dead(8000, &[a]), [""; 0]);
    }

    #[test]
    fn the_oldest_living_node_decides_what_is_written() {
        let start = Instant::now();
        let mut liveness = Liveness::new(WireRange { min: 2, max: 9 }, 7, true);
        assert_eq!(liveness.version(), 2, "the oldest, while the others are not known");
        liveness = watching(start);
        let mut version = |s, nodes: &[(&str, Option<u8>)]| {
            read(&mut liveness, start + Duration::from_secs(s), nodes);
            (liveness.version(), liveness.living())
        };
        assert_eq!(version(0, &[]), (7, 0));
        assert_eq!(version(6, &[("a", Some(8)), ("b", Some(4))]), (4, 2));
        assert_eq!(version(7, &[("a", Some(8)), ("b", None)]), (4, 2), "it may still live");
        assert_eq!(version(8, &[("a", Some(8)), ("b", None)]), (7, 1), "and now it does not");
        assert_eq!(version(9, &[("a", None), ("c", None)]), (1, 2), "unknown is the first version");
        liveness.go_down();
        assert_eq!(liveness.version(), 1);
    }

    #[test]
    fn dead_nodes_are_removed_in_turns() {
        let start = Instant::now();
        let mut liveness = watching(start);
        assert_eq!(liveness.next_dead(), None);
        for s in [6, 7] {
            read(&mut liveness, start + Duration::from_secs(s), &[("a", None), ("b", None)]);
        }
        let turns =
            [liveness.next_dead(), liveness.next_dead(), liveness.next_dead()].map(Option::unwrap);
        assert!(turns == ["a", "b", "a"] || turns == ["b", "a", "b"], "{turns:?}");
    }

    #[test]
    fn a_node_found_in_a_room_and_not_in_the_list_is_unknown() {
        let start = Instant::now();
        let mut liveness = watching(start);
        read(&mut liveness, start, &[("known", Some(1))]);
        liveness.observe(["known", "me", "new", "new"].map(str::to_owned), "me");
        assert!(liveness.unknown_nodes.iter().eq(["new"]), "{:?}", liveness.unknown_nodes);
    }
}
