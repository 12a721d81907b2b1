//! Who is in which topic, both ways, and when a topic gets its first member here or loses its last.
//!
//! A topic's members are a plain list, walked once per delivery; each entry names the connection
//! and the slot of the connection's own list that points back here, so joining and leaving cost a
//! constant however large the room is. Names are hashed on join and publish, never on delivery: the
//! backplane hands back the [`TopicId`] it was given.
//!
//! A delivery to many members is written in several batches, and members come and go between them.
//! So a topic that is being walked has three zones, *written*, *to write* and *joined later*, and a
//! member that leaves is replaced zone by zone ([`Hub::leave`]): no member is skipped, none receives
//! a frame twice.
//!
//! Invariant: every entry of a member list and of a connection's list point at each other. This
//! module never sees a frame.

use crate::ids::{SlotId, TopicId, TopicName};
use crate::policy::namespaces::SlowConsumer;
use crate::protocol::dialect::Encoding;
use crate::shard::conn::{Conn, Membership};
use crate::slab::Slab;
use hashbrown::{DefaultHashBuilder, HashTable};
use std::hash::BuildHasher;

/// One member, from the topic's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Member {
    /// The connection's index.
    pub conn: u32,
    /// Which of the connection's memberships this is.
    pub slot: u32,
}

/// The members of one topic. One member needs no allocation: most topics are users.
#[derive(Debug)]
enum Members {
    One(Option<Member>),
    Many(Vec<Member>),
}

/// One topic with members on this shard.
#[derive(Debug)]
pub(super) struct Topic {
    name: TopicName,
    members: Members,
    /// In which encoding its members receive it: a room with two encodings is two topics here.
    encoding: Encoding,
    /// Whether the backplane has confirmed its subscription.
    pub ready: bool,
    /// What becomes of its messages for a slow member.
    pub slow: SlowConsumer,
    /// Whether some members acknowledge what they receive (see `acks.rs`).
    pub has_acks: bool,
    /// The round that collects frames for it, if any (see `delivery/`).
    pub round: Option<RoundId>,
}

/// A round's number in the shard's pool; never 0, so that `Option` costs nothing.
pub(super) type RoundId = std::num::NonZeroU32;

const _: () = assert!(size_of::<Option<Topic>>() + 8 == 56, "see the ledger in tests/budget.rs");
const _: () = assert!(size_of::<Member>() == 8, "one for each connection of a room");

/// How far a walk over a topic's members has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Walk {
    /// Members below this place have been written to.
    pub at: usize,
    /// Members from here on joined after the walk began.
    pub end: usize,
}

/// All topics of one shard.
pub(super) struct Hub {
    topics: Slab<Topic>,
    /// Index and hash of each topic by name. The hash is stored with the index, so that growing the
    /// table does not touch a million topics.
    by_name: HashTable<(u32, u32)>,
    hasher: DefaultHashBuilder,
    members: usize,
}

impl Members {
    fn as_slice(&self) -> &[Member] {
        match self {
            Members::One(one) => one.as_slice(),
            Members::Many(many) => many,
        }
    }

    fn as_mut_slice(&mut self) -> &mut [Member] {
        match self {
            Members::One(one) => one.as_mut_slice(),
            Members::Many(many) => many,
        }
    }

    fn push(&mut self, member: Member) {
        match self {
            Members::One(one @ None) => *one = Some(member),
            Members::One(Some(first)) => *self = Members::Many(vec![*first, member]),
            Members::Many(many) => many.push(member),
        }
    }

    fn pop(&mut self) -> Option<Member> {
        match self {
            Members::One(one) => one.take(),
            Members::Many(many) => {
                let last = many.pop();
                // A room that has emptied keeps no memory for the crowd it once held.
                if many.len() * 4 < many.capacity() {
                    many.shrink_to(many.len() * 2);
                }
                last
            }
        }
    }
}

impl Topic {
    /// Its name.
    pub(super) fn name(&self) -> &TopicName {
        &self.name
    }

    /// In which encoding its members receive it.
    pub(super) fn encoding(&self) -> Encoding {
        self.encoding
    }

    /// Everyone in it, in an order that only leaving changes.
    pub(super) fn members(&self) -> &[Member] {
        self.members.as_slice()
    }
}

impl Hub {
    /// No topics, and room for `topics_max`.
    pub(super) fn with_max(topics_max: usize) -> Hub {
        Hub {
            topics: Slab::with_max(topics_max),
            by_name: HashTable::new(),
            hasher: DefaultHashBuilder::default(),
            members: 0,
        }
    }

    /// How many topics.
    pub(super) fn topics_len(&self) -> usize {
        self.topics.len()
    }

    /// How many memberships.
    pub(super) fn members_len(&self) -> usize {
        self.members
    }

    /// The topic of that name, if it has members here in that encoding.
    pub(super) fn find(&self, name: &TopicName, encoding: Encoding) -> Option<TopicId> {
        let (prefix, rest) = name.as_str().split_at(name.as_str().len().min(2));
        self.find_parts(prefix, rest, encoding)
    }

    /// The topic of that room, if it has members here in that encoding. Makes no name to look for.
    pub(super) fn find_room(&self, room: &str, encoding: Encoding) -> Option<TopicId> {
        self.find_parts("r:", room, encoding)
    }

    fn find_parts(&self, prefix: &str, rest: &str, encoding: Encoding) -> Option<TopicId> {
        let hash = self.hash(prefix, rest, encoding);
        let is_it = |entry: &(u32, u32)| {
            entry.1 == hash
                && self.topics.at(entry.0).is_some_and(|topic| {
                    topic.encoding == encoding
                        && topic.name.as_str().strip_prefix(prefix).is_some_and(|name| name == rest)
                })
        };
        let (index, _) = self.by_name.find(spread(hash), is_it)?;
        self.topics.id_at(*index).map(TopicId)
    }

    /// The topic; `None`: the key is stale.
    pub(super) fn get(&self, id: TopicId) -> Option<&Topic> {
        self.topics.get(id.0)
    }

    /// The topic; `None`: the key is stale.
    pub(super) fn get_mut(&mut self, id: TopicId) -> Option<&mut Topic> {
        self.topics.get_mut(id.0)
    }

    /// The topic at `index`: for connections' own lists, which are exact.
    pub(super) fn at(&self, index: u32) -> &Topic {
        self.topics.at(index).expect("a membership names a topic that exists")
    }

    /// The key of the topic at `index`.
    pub(super) fn id_at(&self, index: u32) -> TopicId {
        TopicId(self.topics.id_at(index).expect("a membership names a topic that exists"))
    }

    /// One past the highest place of a topic: for walks by part.
    pub(super) fn places(&self) -> u32 {
        self.topics.capacity_used() as u32
    }

    /// The topic at a place, if there is one.
    pub(super) fn at_place(&self, place: u32) -> Option<&Topic> {
        self.topics.at(place)
    }

    /// Makes sure that the topic exists. `None`: there are as many topics as there may be.
    /// A topic that is made here has no member yet: a [`Hub::join`] must follow.
    pub(super) fn open(
        &mut self,
        name: &TopicName,
        encoding: Encoding,
        slow: SlowConsumer,
    ) -> Option<TopicId> {
        if let Some(id) = self.find(name, encoding) {
            return Some(id);
        }
        let topic = Topic {
            name: name.clone(),
            members: Members::One(None),
            encoding,
            ready: false,
            slow,
            has_acks: false,
            round: None,
        };
        let hash = self.hash_of(&topic);
        let SlotId { index, generation } = self.topics.insert(topic).ok()?;
        self.by_name.insert_unique(spread(hash), (index, hash), |entry| spread(entry.1));
        Some(TopicId(SlotId { index, generation }))
    }

    /// `conn` becomes a member. It must not be one yet.
    pub(super) fn join(&mut self, id: TopicId, index: u32, conn: &mut Conn) {
        let topic = self.topics.get_mut(id.0).expect("opened just before");
        debug_assert!(conn.joined.find(id.0.index).is_none());
        let place = topic.members().len();
        let slot = conn.joined.push(Membership { topic: id.0.index, place: place as u32 });
        topic.members.push(Member { conn: index, slot: slot as u32 });
        self.members += 1;
    }

    /// The connection at `index` gives up its membership at `slot`. `walk` is how far the topic is
    /// being walked, if it is: members that were written to are not written to again, and none of the
    /// others is skipped. Whether the topic has no member left.
    pub(super) fn leave(
        &mut self,
        conns: &mut Slab<Conn>,
        index: u32,
        slot: usize,
        walk: Option<&mut Walk>,
    ) -> bool {
        let conn = conns.at_mut(index).expect("a member is a connection");
        let membership = conn.joined.get(slot).expect("a slot that was just looked up");
        let moved = conn.joined.swap_remove(slot);
        if let Some(Membership { topic, place }) = moved {
            let topic = self.topics.at_mut(topic).expect("a membership names a topic that exists");
            topic.members.as_mut_slice()[place as usize].slot = slot as u32;
        }
        let topic = self.topics.at_mut(membership.topic).expect("a membership names a topic");
        take_out(topic, conns, membership.place as usize, walk);
        self.members -= 1;
        topic.members().is_empty()
    }

    /// The connection's last membership becomes its first one.
    pub(super) fn bring_first(&mut self, conns: &mut Slab<Conn>, index: u32) {
        let conn = conns.at_mut(index).expect("a connection that has just joined is open");
        let last = conn.joined.len() - 1;
        conn.joined.swap(0, last);
        for slot in [0, last] {
            let Membership { topic, place } = conn.joined.get(slot).expect("it was just put there");
            let topic = self.topics.at_mut(topic).expect("a membership names a topic that exists");
            topic.members.as_mut_slice()[place as usize].slot = slot as u32;
        }
    }

    /// Removes a topic whose last member has left.
    pub(super) fn close(&mut self, id: TopicId) -> Option<Topic> {
        let topic = self.topics.remove(id.0)?;
        debug_assert!(topic.members().is_empty());
        let hash = self.hash_of(&topic);
        if let Ok(entry) = self.by_name.find_entry(spread(hash), |e| e.0 == id.0.index) {
            entry.remove();
        }
        Some(topic)
    }

    /// Walks everything; for tests.
    #[cfg(any(test, debug_assertions))]
    pub(super) fn check(&self, conns: &Slab<Conn>) {
        let mut members = 0;
        for (id, topic) in self.topics.iter() {
            assert_eq!(self.find(&topic.name, topic.encoding), Some(TopicId(id)));
            for (place, member) in topic.members().iter().enumerate() {
                let conn = conns.at(member.conn).expect("a member is a connection");
                let back = conn.joined.get(member.slot as usize).expect("a member points back");
                assert_eq!(back, Membership { topic: id.index, place: place as u32 });
                members += 1;
            }
        }
        assert_eq!(members, self.members);
        let joined: usize = conns.iter().map(|(_, conn)| conn.joined.len()).sum();
        assert_eq!(joined, self.members);
        assert_eq!(self.by_name.len(), self.topics.len());
    }

    fn hash_of(&self, topic: &Topic) -> u32 {
        let name = topic.name.as_str();
        let (prefix, rest) = name.split_at(name.len().min(2));
        self.hash(prefix, rest, topic.encoding)
    }

    fn hash(&self, prefix: &str, rest: &str, encoding: Encoding) -> u32 {
        (self.hasher.hash_one((prefix, rest, encoding)) >> 16) as u32
    }
}

/// The table takes its place from the low bits and its control byte from the top ones: 32 bits are
/// spread over 64.
fn spread(hash: u32) -> u64 {
    u64::from(hash).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

/// Removes the member at `place`, closing the gap from the zone it is in, then that gap from the
/// next zone, and the last one from the end.
fn take_out(topic: &mut Topic, conns: &mut Slab<Conn>, place: usize, walk: Option<&mut Walk>) {
    let mut gap = place;
    if let Some(walk) = walk {
        if gap < walk.at {
            walk.at -= 1;
            shift(topic, conns, walk.at, &mut gap);
        }
        if gap < walk.end {
            walk.end -= 1;
            shift(topic, conns, walk.end, &mut gap);
        }
    }
    let last = topic.members().len() - 1;
    shift(topic, conns, last, &mut gap);
    topic.members.pop();
}

/// The member at `from` fills the gap and leaves one behind.
fn shift(topic: &mut Topic, conns: &mut Slab<Conn>, from: usize, gap: &mut usize) {
    if from == *gap {
        return;
    }
    let members = topic.members.as_mut_slice();
    let Member { conn, slot } = members[from];
    members[*gap] = Member { conn, slot };
    let conn = conns.at_mut(conn).expect("a member is a connection");
    conn.joined.set_place(slot as usize, *gap as u32);
    *gap = from;
}

#[cfg(test)]
mod tests;
