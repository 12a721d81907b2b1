//! Interest: for each topic with a member on this node, the shards that have one.
//!
//! A node with a million users online has a million topics, so an entry is counted in bytes: 48 in
//! the slab ([`Slab`], with its generation) and 8 in a table of hash and slab index. The table
//! keeps the hash because growing it would otherwise read a million names from memory in one turn.
//! The name is shared with the shard. Nearly every topic has members on one shard; only the others
//! pay for a list.
//!
//! A topic whose last member left stays subscribed for a while (it *lingers*), so that a page
//! reload finds its subscription.
//!
//! With a backplane of several servers each topic is on one of them, by its partition.
//!
//! Invariant: a topic is *confirmed* only for the link on which it was confirmed. Links are
//! numbered, so a lost link revokes all its confirmations without a walk over a million entries; so
//! does a topic that moves to another server.

use crate::backplane::partition::{PARTITIONS, partition};
use crate::backplane::topic_table::{HashedTopic, TopicHash};
use crate::ids::{ShardId, SlotId, TopicId, TopicName};
use crate::protocol::dialect::Encoding;
use crate::slab::Slab;
use hashbrown::HashTable;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A topic as this thread numbers it: slab index and generation.
pub(super) type TopicKey = SlotId;

/// Topics that linger at most; beyond, the oldest expires early. At 15 s of linger it takes 17,000
/// last members leaving each second to get here.
const LINGERING_MAX: usize = 256 * 1024;

/// A shard with members of a topic in one encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardMember {
    /// The shard's own key of the topic.
    pub at: TopicId,
    /// The shard that has these members.
    pub shard: ShardId,
    /// The encoding in which these members receive the topic. A shard may have several.
    pub encoding: Encoding,
    /// Whether its `Join` has been answered.
    answered: bool,
}

impl ShardMember {
    /// A shard that receives a topic without having joined it (a broadcast).
    pub fn unjoined(shard: ShardId, encoding: Encoding, at: TopicId) -> ShardMember {
        ShardMember { at, shard, encoding, answered: true }
    }
}

#[derive(Debug)]
enum TopicMembers {
    AtMostOne(Option<ShardMember>),
    Many(Box<ManyMembers>),
}

/// Boxed, so that the many entries without a list stay small.
#[derive(Debug)]
struct ManyMembers {
    members: Vec<ShardMember>,
}

impl TopicMembers {
    fn as_slice(&self) -> &[ShardMember] {
        match self {
            TopicMembers::AtMostOne(member) => member.as_slice(),
            TopicMembers::Many(crowd) => &crowd.members,
        }
    }

    fn as_mut_slice(&mut self) -> &mut [ShardMember] {
        match self {
            TopicMembers::AtMostOne(member) => member.as_mut_slice(),
            TopicMembers::Many(crowd) => &mut crowd.members,
        }
    }

    /// A second `Join` of a shard in one encoding replaces its first, whose key the shard has dropped.
    /// Members are sorted by encoding, so that a message is encoded once for each.
    fn put(&mut self, member: ShardMember) {
        let key = |m: &ShardMember| (m.encoding, m.shard);
        let place = self.as_slice().binary_search_by_key(&key(&member), key);
        match (&mut *self, place) {
            (_, Ok(known)) => self.as_mut_slice()[known] = member,
            (TopicMembers::AtMostOne(few @ None), Err(_)) => *few = Some(member),
            (TopicMembers::AtMostOne(Some(first)), Err(place)) => {
                let mut members = vec![*first];
                members.insert(place, member);
                *self = TopicMembers::Many(Box::new(ManyMembers { members }));
            }
            (TopicMembers::Many(crowd), Err(place)) => crowd.members.insert(place, member),
        }
    }

    /// Returns whether there was such a member.
    fn remove(&mut self, shard: ShardId, at: TopicId) -> bool {
        let is_it = |m: &ShardMember| m.shard == shard && m.at == at;
        match self {
            TopicMembers::AtMostOne(place) => place.take_if(|m| is_it(m)).is_some(),
            TopicMembers::Many(crowd) => {
                let before = crowd.members.len();
                crowd.members.retain(|m| !is_it(m));
                let removed = crowd.members.len() < before;
                if let [last] = crowd.members[..] {
                    *self = TopicMembers::AtMostOne(Some(last));
                }
                removed
            }
        }
    }
}

#[derive(Debug)]
struct Entry {
    name: TopicName,
    members: TopicMembers,
    /// Number of the link that confirmed it; 0: not confirmed.
    link: u32,
    /// Number of its latest leave; tells a stale entry of `lingering` from a current one.
    last_leave: u32,
}

const _: () =
    assert!(size_of::<Option<Entry>>() == 40, "there may be a million of these: see the module");

/// What the table keeps of a topic.
#[derive(Clone, Copy, Debug)]
struct TableSlot {
    hash: TopicHash,
    index: u32,
}

/// The result of a `Join`.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JoinOutcome {
    /// The topic is confirmed: answer at once.
    Confirmed,
    /// The subscription is pending: the answer comes with its confirmation.
    Pending,
    /// The first join: subscribe under this key.
    Subscribe(TopicKey),
}

/// All topics with members on this node, and those that linger. Owned by
/// [`crate::backplane::local::Local`].
pub struct Interest {
    places: HashTable<TableSlot>,
    entries: Slab<Entry>,
    lingering: VecDeque<Lingering>,
    linger: Duration,
    servers: ServerTable,
    leaves: u32,
}

/// The server of each partition, and the current link to each server.
struct ServerTable {
    owners: Arc<[u16; PARTITIONS]>,
    links: Vec<LinkState>,
    /// The last link number given.
    numbers: u32,
}

#[derive(Clone, Copy)]
struct LinkState {
    number: u32,
    confirmed: usize,
}

impl ServerTable {
    /// A single server that has all partitions.
    fn one() -> ServerTable {
        let links = vec![LinkState { number: 1, confirmed: 0 }];
        ServerTable { owners: Arc::new([0; PARTITIONS]), links, numbers: 1 }
    }

    fn of(&self, topic: &str) -> usize {
        match &self.links[..] {
            [_] => 0,
            _ => usize::from(self.owners[usize::from(partition(topic))]),
        }
    }

    /// A link number that was never given before. 0 means none.
    fn next_number(&mut self) -> u32 {
        self.numbers = self.numbers.wrapping_add(1).max(1);
        self.numbers
    }
}

struct Lingering {
    key: TopicKey,
    last_leave: u32,
    until: Instant,
}

impl Interest {
    /// No topics. Topics without members linger for `linger`.
    pub fn new(linger: Duration) -> Interest {
        Interest {
            places: HashTable::new(),
            entries: Slab::with_max(u32::MAX as usize),
            lingering: VecDeque::new(),
            linger,
            servers: ServerTable::one(),
            leaves: 0,
        }
    }

    /// Number of topics, lingering ones included.
    pub fn count(&self) -> usize {
        self.entries.len()
    }

    /// Number of confirmed topics.
    pub fn confirmed(&self) -> usize {
        self.servers.links.iter().map(|link| link.confirmed).sum()
    }

    /// Number of topics confirmed on the link to one server.
    pub fn confirmed_by(&self, server: usize) -> usize {
        self.servers.links[server].confirmed
    }

    /// The server of a topic.
    pub fn server_of(&self, topic: &str) -> usize {
        self.servers.of(topic)
    }

    /// One past the highest slab index: the range for [`Interest::name_at`].
    pub fn slots_end(&self) -> u32 {
        u32::try_from(self.entries.capacity_used()).expect("the slab is bounded by u32")
    }

    /// Adds a topic without members that never expires. Returns the key to subscribe under.
    pub fn pin(&mut self, topic: TopicName) -> TopicKey {
        self.insert(HashedTopic::from(&topic).hash(), topic, TopicMembers::AtMostOne(None))
    }

    /// A shard has its first member of a topic in an encoding.
    pub fn join(
        &mut self,
        topic: TopicName,
        shard: ShardId,
        encoding: Encoding,
        at: TopicId,
    ) -> JoinOutcome {
        let hash = HashedTopic::from(&topic).hash();
        if let Some(index) = self.index_of(HashedTopic::known(topic.as_str(), hash)) {
            let link = self.servers.links[self.servers.of(topic.as_str())].number;
            let entry = self.entries.at_mut(index).expect("the table names living entries only");
            let confirmed = entry.link == link;
            entry.members.put(ShardMember { shard, at, encoding, answered: confirmed });
            return if confirmed { JoinOutcome::Confirmed } else { JoinOutcome::Pending };
        }
        let members =
            TopicMembers::AtMostOne(Some(ShardMember { shard, at, encoding, answered: false }));
        JoinOutcome::Subscribe(self.insert(hash, topic, members))
    }

    fn insert(&mut self, hash: TopicHash, name: TopicName, members: TopicMembers) -> TopicKey {
        let entry = Entry { name, members, link: 0, last_leave: 0 };
        let inserted = self.entries.insert(entry);
        let key = inserted.expect("shards × their limit of topics stays below u32::MAX");
        let place = TableSlot { hash, index: key.index };
        self.places.insert_unique(hash.spread(), place, |place| place.hash.spread());
        key
    }

    /// The last member of a topic left a shard. The topic lingers if this was the last shard.
    pub fn leave(&mut self, topic: &TopicName, shard: ShardId, at: TopicId, now: Instant) {
        let Some(index) = self.index_of(topic.into()) else { return };
        let key = self.entries.id_at(index).expect("the table names living entries only");
        let entry = self.entries.at_mut(index).expect("as above");
        if !entry.members.remove(shard, at) || !entry.members.as_slice().is_empty() {
            return;
        }
        self.leaves = self.leaves.wrapping_add(1);
        entry.last_leave = self.leaves;
        let until = now + self.linger;
        self.lingering.push_back(Lingering { key, last_leave: self.leaves, until });
    }

    /// Takes the next topic whose linger is over out of the table; the caller unsubscribes it.
    pub fn take_expired(&mut self, now: Instant) -> Option<TopicName> {
        loop {
            let front = self.lingering.front()?;
            if front.until > now && self.lingering.len() <= LINGERING_MAX {
                return None;
            }
            let gone = self.lingering.pop_front().expect("there is a front");
            let Some(entry) = self.entries.get(gone.key) else { continue };
            // Joined again since, and perhaps left again: then a later entry has its deadline.
            if entry.last_leave == gone.last_leave && entry.members.as_slice().is_empty() {
                return Some(self.forget(gone.key));
            }
        }
    }

    /// The shards with members of a topic, by its name.
    #[inline]
    pub fn members<'a>(
        &self,
        topic: impl Into<HashedTopic<'a>>,
    ) -> Option<(&TopicName, &[ShardMember])> {
        let index = self.index_of(topic.into())?;
        let entry = self.entries.at(index)?;
        Some((&entry.name, entry.members.as_slice()))
    }

    /// Whether a join of a topic has not been answered yet.
    pub fn has_unanswered_join(&self, topic: &str) -> bool {
        self.members(topic).is_some_and(|(_, members)| members.iter().any(|m| !m.answered))
    }

    /// The key of a topic, by its name.
    pub fn key_of(&self, topic: &str) -> Option<TopicKey> {
        self.entries.id_at(self.index_of(topic.into())?)
    }

    /// The key and name of the topic at a slab index, for walks over all topics.
    pub fn name_at(&self, index: u32) -> Option<(TopicKey, &TopicName)> {
        Some((self.entries.id_at(index)?, &self.entries.at(index)?.name))
    }

    /// A server has confirmed a topic. Calls `answer` for each `Join` that is unanswered. Returns
    /// `false`, and does nothing, if the topic has left since or has moved to another server.
    pub fn confirm(
        &mut self,
        key: TopicKey,
        server: usize,
        mut answer: impl FnMut(ShardId, TopicId),
    ) -> bool {
        let Some(entry) = self.entries.get_mut(key) else { return false };
        if self.servers.of(entry.name.as_str()) != server {
            return false;
        }
        let link = &mut self.servers.links[server];
        link.confirmed += usize::from(entry.link != link.number);
        entry.link = link.number;
        for member in entry.members.as_mut_slice().iter_mut().filter(|m| !m.answered) {
            member.answered = true;
            answer(member.shard, member.at);
        }
        true
    }

    /// A server has revoked a subscription that it had confirmed. Returns the key if it had, and
    /// the topic is still assigned to that server.
    pub fn revoke(&mut self, topic: &str, server: usize) -> Option<TopicKey> {
        let index = self.index_of(topic.into())?;
        let entry = self.entries.at_mut(index).expect("the table names living entries only");
        let is_there = self.servers.of(topic) == server;
        let link = &mut self.servers.links[server];
        if !is_there || entry.link != link.number {
            return None;
        }
        link.confirmed -= 1;
        entry.link = 0;
        self.entries.id_at(index)
    }

    /// The link to a server is lost, and with it every confirmation.
    pub fn lose_link(&mut self, server: usize) {
        let number = self.servers.next_number();
        self.servers.links[server] = LinkState { number, confirmed: 0 };
    }

    /// Assigns partitions to servers. `from`: for each server its previous number; `None`: new,
    /// without a link yet. Topics that move to another server are no longer confirmed.
    pub fn set_servers(&mut self, owners: Arc<[u16; PARTITIONS]>, from: &[Option<usize>]) {
        let mut links = Vec::with_capacity(from.len());
        for from in from {
            let number = match from {
                Some(before) => self.servers.links[*before].number,
                None => self.servers.next_number(),
            };
            links.push(LinkState { number, confirmed: 0 });
        }
        self.servers.links = links;
        self.servers.owners = owners;
        for index in 0..self.slots_end() {
            let Some(entry) = self.entries.at(index) else { continue };
            let server = self.servers.of(entry.name.as_str());
            let link = &mut self.servers.links[server];
            link.confirmed += usize::from(entry.link == link.number);
        }
    }

    fn forget(&mut self, key: TopicKey) -> TopicName {
        let entry = self.entries.remove(key).expect("only living entries are forgotten");
        let server = self.servers.of(entry.name.as_str());
        let link = &mut self.servers.links[server];
        link.confirmed -= usize::from(entry.link == link.number);
        let hash = HashedTopic::from(&entry.name).hash();
        self.places
            .find_entry(hash.spread(), |place| place.index == key.index)
            .expect("every entry has its place in the table")
            .remove();
        entry.name
    }

    #[inline]
    fn index_of(&self, topic: HashedTopic<'_>) -> Option<u32> {
        let is_it = |place: &TableSlot| {
            place.hash == topic.hash()
                && self
                    .entries
                    .at(place.index)
                    .is_some_and(|entry| entry.name.as_str() == topic.name())
        };
        Some(self.places.find(topic.hash().spread(), is_it)?.index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: ShardId = ShardId(1);
    const TWO: ShardId = ShardId(2);

    fn at(index: u32) -> TopicId {
        TopicId(SlotId { index, generation: 0 })
    }

    fn room(name: &str) -> TopicName {
        TopicName::room(name)
    }

    fn shards(interest: &Interest, topic: &str) -> Vec<(u16, u32)> {
        let members = interest.members(topic).map_or(&[][..], |(_, members)| members);
        members.iter().map(|m| (m.shard.0, m.at.0.index)).collect()
    }

    fn subscribe(interest: &mut Interest, name: &str, shard: ShardId, id: u32) -> TopicKey {
        match interest.join(room(name), shard, Encoding::NATIVE, at(id)) {
            JoinOutcome::Subscribe(key) => key,
            other => panic!("{name} was there already: {other:?}"),
        }
    }

    #[test]
    fn only_the_first_join_of_a_topic_subscribes_and_only_the_last_leave_ends_it() {
        let mut interest = Interest::new(Duration::ZERO);
        let now = Instant::now();
        let key = subscribe(&mut interest, "a", ONE, 10);
        assert_eq!(interest.join(room("a"), TWO, Encoding::NATIVE, at(20)), JoinOutcome::Pending);
        let mut answered = Vec::new();
        interest.confirm(key, 0, |shard, at| answered.push((shard.0, at.0.index)));
        assert_eq!(answered, [(1, 10), (2, 20)]);
        assert_eq!(
            interest.join(room("a"), ShardId(3), Encoding::NATIVE, at(30)),
            JoinOutcome::Confirmed
        );
        assert_eq!(shards(&interest, "r:a"), [(1, 10), (2, 20), (3, 30)]);
        for (shard, id) in [(TWO, 20), (ShardId(3), 30), (ONE, 11)] {
            interest.leave(&room("a"), shard, at(id), now);
        }
        assert_eq!(shards(&interest, "r:a"), [(1, 10)], "a key of an earlier join removes nothing");
        assert_eq!(interest.take_expired(now), None);
        interest.leave(&room("a"), ONE, at(10), now);
        assert_eq!(interest.take_expired(now), Some(room("a")));
        assert_eq!((interest.count(), interest.places.len()), (0, 0));
    }

    #[test]
    fn a_join_while_the_topic_lingers_finds_it_confirmed() {
        let mut interest = Interest::new(Duration::from_secs(15));
        let now = Instant::now();
        let key = subscribe(&mut interest, "a", ONE, 1);
        interest.confirm(key, 0, |_, _| {});
        interest.leave(&room("a"), ONE, at(1), now);
        assert_eq!(shards(&interest, "r:a"), []);
        assert_eq!(interest.join(room("a"), TWO, Encoding::NATIVE, at(2)), JoinOutcome::Confirmed);
        assert_eq!(interest.take_expired(now + Duration::from_secs(16)), None, "it came back");
        interest.leave(&room("a"), TWO, at(2), now + Duration::from_secs(10));
        assert_eq!(interest.take_expired(now + Duration::from_secs(24)), None);
        assert_eq!(interest.take_expired(now + Duration::from_secs(25)), Some(room("a")));
    }

    #[test]
    fn a_lost_link_revokes_all_confirmations_but_no_join_is_answered_twice() {
        let mut interest = Interest::new(Duration::ZERO);
        let key = subscribe(&mut interest, "a", ONE, 1);
        interest.confirm(key, 0, |_, _| {});
        interest.lose_link(0);
        assert_eq!(interest.join(room("a"), TWO, Encoding::NATIVE, at(2)), JoinOutcome::Pending);
        let mut answered = Vec::new();
        assert_eq!(interest.confirmed(), 0);
        interest.confirm(key, 0, |shard, _| answered.push(shard));
        assert_eq!(answered, [TWO]);
        interest.confirm(key, 0, |_, _| panic!("answered already"));
        assert_eq!(interest.confirmed(), 1);
    }

    #[test]
    fn a_topic_that_moves_is_confirmed_by_its_new_server_only() {
        let mut interest = Interest::new(Duration::ZERO);
        let keys: Vec<_> =
            (0..64).map(|n| subscribe(&mut interest, &n.to_string(), ONE, n)).collect();
        keys.iter().for_each(|key| _ = interest.confirm(*key, 0, |_, _| {}));
        let name = |n: u32| format!("r:{n}");
        let moved = partition(&name(7));
        let mut owners = [1; PARTITIONS];
        owners[usize::from(moved)] = 0;
        // The only server becomes the second.
        interest.set_servers(Arc::new(owners), &[None, Some(0)]);
        let stayed = (0..64).filter(|n| partition(&name(*n)) != moved).count();
        assert_eq!((interest.confirmed_by(0), interest.confirmed_by(1)), (0, stayed));
        assert!(!interest.confirm(keys[7], 1, |_, _| panic!("answered already")));
        assert_eq!(interest.join(room("7"), TWO, Encoding::NATIVE, at(99)), JoinOutcome::Pending);
        assert!(interest.confirm(keys[7], 0, |shard, _| assert_eq!(shard, TWO)));
        assert_eq!(interest.revoke(&name(7), 1), None, "it is not there");
        assert_eq!(interest.revoke(&name(7), 0), Some(keys[7]));
        assert_eq!(interest.revoke(&name(7), 0), None, "it was revoked already");
        interest.lose_link(1);
        assert_eq!(interest.confirmed(), 0);
    }

    #[test]
    fn a_confirmation_of_a_topic_that_left_answers_nobody() {
        let mut interest = Interest::new(Duration::ZERO);
        let now = Instant::now();
        let stale = subscribe(&mut interest, "a", ONE, 1);
        interest.leave(&room("a"), ONE, at(1), now);
        assert_eq!(interest.take_expired(now), Some(room("a")));
        let _fresh = subscribe(&mut interest, "a", ONE, 2);
        interest.confirm(stale, 0, |_, _| panic!("nobody asked under this key"));
        assert_eq!(interest.join(room("a"), TWO, Encoding::NATIVE, at(3)), JoinOutcome::Pending);
    }

    #[test]
    fn lingering_topics_are_bounded() {
        let mut interest = Interest::new(Duration::from_secs(3600));
        let now = Instant::now();
        for id in 0..=LINGERING_MAX as u32 {
            let _key = subscribe(&mut interest, &id.to_string(), ONE, id);
            interest.leave(&room(&id.to_string()), ONE, at(id), now);
        }
        assert_eq!(interest.take_expired(now), Some(room("0")), "the oldest expires early");
        assert_eq!(interest.take_expired(now), None);
    }

    #[test]
    fn a_topic_costs_at_most_seventy_bytes_beside_its_name() {
        let mut interest = Interest::new(Duration::ZERO);
        let topics = 200_000;
        for id in 0..topics as u32 {
            let _key = subscribe(&mut interest, &id.to_string(), ONE, id);
        }
        let slab = interest.entries.capacity_used().next_multiple_of(1024)
            * (size_of::<Option<Entry>>() + 8);
        let bytes = interest.places.allocation_size() + slab;
        assert!(bytes / topics <= 70, "{} bytes a topic", bytes / topics);
    }
}
