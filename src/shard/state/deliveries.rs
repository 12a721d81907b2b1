//! Rounds: what waits for the members of one topic, and their pool.
//!
//! Everything the backplane handed over for a topic since its last round began is joined into one
//! buffer, up to [`JOIN_BYTES_MAX`]. A member that must not receive one of the frames gets a join of
//! its own. The round of everybody has a join for each encoding that its frames are in, and still one
//! walk over all connections.

use crate::ids::{ConnId, TopicId};
use crate::link::RecoveryReply;
use crate::protocol::dialect::Encoding;
use crate::shard::hub::{RoundId, Walk};
use crate::shard::slow_consumer::frames::{BatchSource, FrameKind, FramePart};
use bytes::{Bytes, BytesMut};
use std::collections::VecDeque;

/// A batch holds so many portions: a member of many small rooms receives all of them in one write,
/// and whatever comes next waits for no more than these.
pub(in crate::shard) const PORTIONS_MAX: usize = 4;

/// Frames are joined up to this size; what is beyond forms the next round. A member who keeps up takes
/// a join whole: less than `limits.socket_unsent_bytes_max` by default, which the kernel takes of a
/// socket that has sent everything, however little of it may be in flight.
pub(in crate::shard) const JOIN_BYTES_MAX: usize = 48 * 1024;

/// What the joins of excepted members may add up to in one round. They are quadratic: a thousand
/// members who each publish with `"echo":false` need a thousand joins.
pub(in crate::shard) const OWN_JOINS_BYTES_MAX: usize = 1024 * 1024;

/// A frame for all members that the topic has when its turn comes, except one.
#[derive(Debug)]
pub(in crate::shard) struct RoundFrame {
    pub(in crate::shard) bytes: Bytes,
    pub(in crate::shard) except: Option<ConnId>,
    pub(in crate::shard) kind: FrameKind,
}

/// What waits in a round.
#[derive(Debug)]
pub(in crate::shard) enum RoundItem {
    Frame(RoundFrame),
    /// A frame for those of everybody whose encoding it is in.
    ForEverybody(RoundFrame, Encoding),
    /// A member that receives what comes after it, and nothing before (`recovery.rs`).
    Joiner(Box<RecoveryReply>),
    /// Messages were lost here, and the dialect does not let the members stay (`losses.rs`).
    Loss,
}

impl RoundItem {
    /// Bytes that it keeps alive.
    fn bytes(&self) -> usize {
        match self {
            RoundItem::Frame(frame) | RoundItem::ForEverybody(frame, _) => frame.bytes.len(),
            RoundItem::Joiner(joiner) => joiner.missed.bytes.len(),
            RoundItem::Loss => 0,
        }
    }
}

/// Frames of one topic that wait for their turn, and those that are being written.
#[derive(Debug)]
pub(in crate::shard) struct Round {
    pub(in crate::shard) to: TopicId,
    pub(in crate::shard) items: VecDeque<RoundItem>,
    pub(in crate::shard) current: Option<RoundWrite>,
}

/// What of a round is being written, and how far it has come.
#[derive(Debug)]
pub(in crate::shard) struct RoundWrite {
    pub(in crate::shard) walk: Walk,
    /// For the members of a topic.
    pub(in crate::shard) join: JoinedFrames,
    /// For everybody: one for each encoding. Empty otherwise.
    pub(in crate::shard) by_encoding: Vec<(Encoding, JoinedFrames)>,
    /// How many frames were taken out of the round for it. They wait until all of it is written.
    pub(in crate::shard) taken: usize,
    /// Their bytes.
    pub(in crate::shard) taken_bytes: usize,
    /// Members that must not receive all of it, and what they receive instead.
    pub(in crate::shard) own: Vec<(ConnId, JoinedFrames)>,
    /// The bytes of those.
    pub(in crate::shard) own_bytes: usize,
}

/// What was taken out of a round at once.
#[derive(Clone, Copy, Debug)]
pub(in crate::shard) struct Taken {
    frames: usize,
    bytes: usize,
}

impl Taken {
    fn of<'a>(frames: impl Iterator<Item = &'a RoundFrame>) -> Taken {
        frames.fold(Taken { frames: 0, bytes: 0 }, |sum, frame| Taken {
            frames: sum.frames + 1,
            bytes: sum.bytes + frame.bytes.len(),
        })
    }
}

/// So many frames in one buffer; and what they are, where they may be dropped one by one.
#[derive(Debug, Default)]
pub(in crate::shard) struct JoinedFrames {
    pub(in crate::shard) bytes: Bytes,
    pub(in crate::shard) frames: u64,
    pub(in crate::shard) source: Option<BatchSource>,
}

/// What stands first in a round and is no frame.
#[derive(Debug)]
pub(in crate::shard) enum Special {
    Joiner(Box<RecoveryReply>),
    Loss,
}

/// A frame for one connection only.
#[derive(Debug)]
pub(in crate::shard) struct QueuedReply {
    pub(in crate::shard) conn: ConnId,
    pub(in crate::shard) bytes: Bytes,
    pub(in crate::shard) follows: Follows,
}

/// What may follow a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::shard) enum Follows {
    /// Anything.
    More,
    /// The answer to the connection's next question, which may be asked now (`questions.rs`).
    Question,
    /// Nothing: the connection may end when it has left.
    Nothing,
}

/// Everything that waits to be written, and the rounds' pool.
#[derive(Debug, Default)]
pub(in crate::shard) struct Deliveries {
    pub(in crate::shard) replies: VecDeque<QueuedReply>,
    pub(in crate::shard) rounds: Vec<Round>,
    pub(in crate::shard) free: Vec<RoundId>,
    pub(in crate::shard) queue: VecDeque<RoundId>,
    pub(in crate::shard) everybody: Option<RoundId>,
    /// What the joins of excepted members add up to now.
    pub(in crate::shard) own_bytes: usize,
    /// Connections found too slow while a list was being walked: closed after it.
    pub(in crate::shard) slow: Vec<u32>,
    /// Members that must leave a topic because something of it was dropped for them: after the walk.
    pub(in crate::shard) losers: Vec<(u32, TopicId)>,
    pub(in crate::shard) items_waiting: usize,
    /// Bytes of replies, and of frames in rounds.
    pub(in crate::shard) bytes_waiting: usize,
    /// Writes of the batch that are in no portion yet.
    pub(in crate::shard) writes_waiting: usize,
}

impl Deliveries {
    pub(in crate::shard) fn round(&mut self, id: RoundId) -> &mut Round {
        &mut self.rounds[id.get() as usize - 1]
    }

    /// A round from the pool, at the end of the queue.
    pub(in crate::shard) fn begin(&mut self, to: TopicId) -> RoundId {
        let id = self.free.pop().unwrap_or_else(|| {
            self.rounds.push(Round { to, items: VecDeque::new(), current: None });
            RoundId::new(self.rounds.len() as u32).expect("one was just pushed")
        });
        self.round(id).to = to;
        self.queue.push_back(id);
        id
    }

    pub(in crate::shard) fn push(&mut self, id: RoundId, item: RoundItem) {
        self.items_waiting += 1;
        self.bytes_waiting += item.bytes();
        self.round(id).items.push_back(item);
    }

    /// A joiner or a loss, if it stands first in a round of which nothing is being written. A loss
    /// stays until all members have left.
    pub(in crate::shard) fn pop_special(&mut self, id: RoundId) -> Option<Special> {
        let round = self.round(id);
        if round.current.is_some() {
            return None;
        }
        match round.items.pop_front()? {
            RoundItem::Joiner(joiner) => {
                self.items_waiting -= 1;
                self.bytes_waiting -= joiner.missed.bytes.len();
                Some(Special::Joiner(joiner))
            }
            RoundItem::Loss => {
                round.items.push_front(RoundItem::Loss);
                Some(Special::Loss)
            }
            frame => {
                round.items.push_front(frame);
                None
            }
        }
    }

    /// The members have left because of a loss.
    pub(in crate::shard) fn end_loss(&mut self, id: RoundId) {
        let first = self.round(id).items.pop_front();
        debug_assert!(matches!(first, Some(RoundItem::Loss)), "it was just looked at");
        self.items_waiting -= 1;
    }

    /// Whether the members of a round's topic have to leave it for a loss.
    pub(in crate::shard) fn has_loss(&mut self, id: RoundId) -> bool {
        self.round(id).items.iter().any(|item| matches!(item, RoundItem::Loss))
    }

    /// Whether a round's next item is a frame.
    pub(in crate::shard) fn has_frame_first(&mut self, id: RoundId) -> bool {
        let first = self.round(id).items.front();
        matches!(first, Some(RoundItem::Frame(_) | RoundItem::ForEverybody(..)))
    }

    /// Drops a round's first frame, which has no receiver.
    pub(in crate::shard) fn drop_first(&mut self, id: RoundId) {
        let first = self.round(id).items.pop_front();
        self.items_waiting -= 1;
        self.bytes_waiting -= first.map_or(0, |item| item.bytes());
    }

    /// Whether items of a round wait that are not being written yet.
    pub(in crate::shard) fn has_items(&mut self, id: RoundId) -> bool {
        !self.round(id).items.is_empty()
    }

    /// How far the topic of a round is being walked, if it is.
    pub(in crate::shard) fn walk_of(&mut self, round: RoundId) -> Option<&mut Walk> {
        self.round(round).current.as_mut().map(|current| &mut current.walk)
    }

    /// What was being written is done, or has no receiver left.
    pub(in crate::shard) fn end_walk(&mut self, current: &RoundWrite) {
        self.items_waiting -= current.taken;
        self.bytes_waiting -= current.taken_bytes;
        self.own_bytes -= current.own_bytes;
    }

    /// Takes frames out of a topic's round, up to [`JOIN_BYTES_MAX`] but at least one, and joins them.
    /// `at`: the topic, if its messages may be dropped for slow members. `scratch` is empty.
    pub(in crate::shard) fn join_frames(
        &mut self,
        id: RoundId,
        at: Option<TopicId>,
        scratch: &mut Vec<RoundFrame>,
    ) -> RoundWrite {
        let own_bytes_max = OWN_JOINS_BYTES_MAX.saturating_sub(self.own_bytes);
        let items = &mut self.round(id).items;
        let (mut bytes, mut excepted) = (0, 0);
        while let Some(RoundItem::Frame(next)) = items.front() {
            bytes += next.bytes.len();
            excepted += usize::from(next.except.is_some());
            let is_too_much = bytes > JOIN_BYTES_MAX || excepted * bytes > own_bytes_max;
            if is_too_much && !scratch.is_empty() {
                break;
            }
            if let Some(RoundItem::Frame(frame)) = items.pop_front() {
                scratch.push(frame);
            }
        }
        let taken = Taken::of(scratch.iter());
        let own = own_joins(scratch, at);
        let join = join_all(scratch, at);
        self.begin_write(join, Vec::new(), taken, own)
    }

    /// The same for everybody: frames of all encodings, a join for each.
    pub(in crate::shard) fn join_for_everybody(&mut self, id: RoundId) -> RoundWrite {
        let own_bytes_max = OWN_JOINS_BYTES_MAX.saturating_sub(self.own_bytes);
        let items = &mut self.round(id).items;
        let mut by_encoding: Vec<(Encoding, Vec<RoundFrame>, usize)> = Vec::new();
        let (mut taken, mut excepted) = (0, 0);
        while let Some(RoundItem::ForEverybody(next, encoding)) = items.front() {
            let place = by_encoding.iter().position(|(known, ..)| known == encoding);
            let bytes = place.map_or(0, |place| by_encoding[place].2) + next.bytes.len();
            excepted += usize::from(next.except.is_some());
            let is_too_much = bytes > JOIN_BYTES_MAX || excepted * bytes > own_bytes_max;
            if is_too_much && taken > 0 {
                break;
            }
            let Some(RoundItem::ForEverybody(frame, encoding)) = items.pop_front() else { break };
            taken += 1;
            match place {
                Some(place) => {
                    by_encoding[place].1.push(frame);
                    by_encoding[place].2 = bytes;
                }
                None => by_encoding.push((encoding, vec![frame], bytes)),
            }
        }
        let taken = Taken::of(by_encoding.iter().flat_map(|(_, frames, _)| frames));
        let own = by_encoding.iter().flat_map(|(_, frames, _)| own_joins(frames, None)).collect();
        let joins = by_encoding.into_iter();
        let joins = joins.map(|(encoding, mut frames, _)| (encoding, join_all(&mut frames, None)));
        let joins = joins.collect();
        self.begin_write(JoinedFrames::default(), joins, taken, own)
    }

    pub(in crate::shard) fn begin_write(
        &mut self,
        join: JoinedFrames,
        by_encoding: Vec<(Encoding, JoinedFrames)>,
        taken: Taken,
        own: Vec<(ConnId, JoinedFrames)>,
    ) -> RoundWrite {
        let Taken { frames: taken, bytes: taken_bytes } = taken;
        let own_bytes = own.iter().map(|(_, join)| join.bytes.len()).sum();
        self.own_bytes += own_bytes;
        RoundWrite { walk: Walk::default(), join, by_encoding, taken, taken_bytes, own, own_bytes }
    }
}

impl RoundWrite {
    /// Whether there is nothing to write in it.
    pub(in crate::shard) fn is_empty(&self) -> bool {
        self.join.bytes.is_empty() && self.by_encoding.is_empty()
    }
}

/// What excepted members receive instead of all frames.
pub(in crate::shard) fn own_joins(
    frames: &[RoundFrame],
    at: Option<TopicId>,
) -> Vec<(ConnId, JoinedFrames)> {
    let mut own: Vec<(ConnId, JoinedFrames)> = Vec::new();
    for except in frames.iter().filter_map(|frame| frame.except) {
        if own.iter().all(|(conn, _)| *conn != except) {
            own.push((except, join(frames, at, |other| other != Some(except))));
        }
    }
    own
}

/// All frames in one buffer. One alone is moved, not cloned: see the module `delivery`.
pub(in crate::shard) fn join_all(
    frames: &mut Vec<RoundFrame>,
    at: Option<TopicId>,
) -> JoinedFrames {
    let joined = match &mut frames[..] {
        [_] if at.is_none() => {
            let alone = frames.pop().expect("there is one");
            JoinedFrames { bytes: alone.bytes, frames: 1, source: None }
        }
        _ => join(frames, at, |_| true),
    };
    frames.clear();
    joined
}

/// The frames that `wanted` lets through, in one buffer. One frame alone is not copied. `at`: their
/// topic, if its messages may be dropped for slow members.
pub(in crate::shard) fn join(
    frames: &[RoundFrame],
    at: Option<TopicId>,
    wanted: impl Fn(Option<ConnId>) -> bool,
) -> JoinedFrames {
    let chosen = || frames.iter().filter(|frame| wanted(frame.except));
    let (mut count, mut bytes) = (0, 0);
    for frame in chosen() {
        (count, bytes) = (count + 1, bytes + frame.bytes.len());
    }
    let joined = match count {
        0 | 1 => chosen().next().map_or_else(Bytes::new, |frame| frame.bytes.clone()),
        _ => {
            let mut joined = BytesMut::with_capacity(bytes);
            chosen().for_each(|frame| joined.extend_from_slice(&frame.bytes));
            joined.freeze()
        }
    };
    let part = |frame: &RoundFrame| FramePart { bytes: frame.bytes.clone(), kind: frame.kind };
    let source = at.map(|at| BatchSource { at, pieces: chosen().map(part).collect() });
    JoinedFrames { bytes: joined, frames: count, source }
}
