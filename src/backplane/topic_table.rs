//! Tables by topic name, and the one hash that they share.
//!
//! A message is looked up in up to three tables of this thread: the history that stores or follows
//! its topic, the idempotency keys, and the shards with members. All of them take a
//! [`HashedTopic`], so the name is hashed once, where the message arrives.
//!
//! The hash is seeded at random for each process: clients choose room names.
//!
//! Invariant: the hash of a name never changes until the process ends.

use crate::ids::TopicName;
use hashbrown::hash_table::Entry;
use hashbrown::{DefaultHashBuilder, HashTable};
use std::hash::BuildHasher;
use std::sync::LazyLock;

static HASHER: LazyLock<DefaultHashBuilder> = LazyLock::new(DefaultHashBuilder::default);

/// The hash of a topic's name, cut to 32 bits: a table of a million topics keeps it in each row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopicHash(u32);

impl TopicHash {
    /// The table uses bits at both ends of 64; the hash has 32.
    pub fn spread(self) -> u64 {
        u64::from(self.0).wrapping_mul(0x9E37_79B9_7F4A_7C15)
    }

    /// The hash of a key within the topic.
    pub fn with(self, key: &str) -> u64 {
        self.spread() ^ HASHER.hash_one(key)
    }
}

/// A topic's name and its hash.
#[derive(Clone, Copy, Debug)]
pub struct HashedTopic<'a> {
    name: &'a str,
    hash: TopicHash,
}

impl<'a> HashedTopic<'a> {
    /// Hashes a name: `r:<room>`, `u:<user>` or `*`. For a message once.
    pub fn of(name: &'a str) -> HashedTopic<'a> {
        #[cfg(test)]
        counting::count();
        HashedTopic { name, hash: TopicHash(HASHER.hash_one(name) as u32) }
    }

    /// A name whose hash is known.
    pub fn known(name: &'a str, hash: TopicHash) -> HashedTopic<'a> {
        HashedTopic { name, hash }
    }

    /// The name of the topic, with its prefix.
    pub fn name(self) -> &'a str {
        self.name
    }

    /// Half of the hash of the name, the same in every table of this process.
    pub fn hash(self) -> TopicHash {
        self.hash
    }
}

impl<'a> From<&'a str> for HashedTopic<'a> {
    fn from(name: &'a str) -> HashedTopic<'a> {
        HashedTopic::of(name)
    }
}

impl<'a> From<&'a TopicName> for HashedTopic<'a> {
    fn from(name: &'a TopicName) -> HashedTopic<'a> {
        HashedTopic::of(name.as_str())
    }
}

/// Values by topic.
pub(super) struct TopicTable<T> {
    rows: HashTable<Row<T>>,
}

struct Row<T> {
    hash: TopicHash,
    name: TopicName,
    value: T,
}

impl<T> Default for TopicTable<T> {
    fn default() -> TopicTable<T> {
        TopicTable { rows: HashTable::new() }
    }
}

impl<T> TopicTable<T> {
    /// Number of topics.
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// The value of a topic.
    pub(super) fn get<'a>(&self, topic: impl Into<HashedTopic<'a>>) -> Option<&T> {
        let topic = topic.into();
        let row = self.rows.find(topic.hash.spread(), |row| row.is(topic))?;
        Some(&row.value)
    }

    /// The same, to be changed.
    pub(super) fn get_mut<'a>(&mut self, topic: impl Into<HashedTopic<'a>>) -> Option<&mut T> {
        let topic = topic.into();
        let row = self.rows.find_mut(topic.hash.spread(), |row| row.is(topic))?;
        Some(&mut row.value)
    }

    /// The value of a topic, made if there is none.
    pub(super) fn get_or_insert_with(
        &mut self,
        name: &TopicName,
        hash: TopicHash,
        make: impl FnOnce() -> T,
    ) -> &mut T {
        let topic = HashedTopic::known(name.as_str(), hash);
        let entry = self.rows.entry(hash.spread(), |row| row.is(topic), |row| row.hash.spread());
        match entry {
            Entry::Occupied(known) => &mut known.into_mut().value,
            Entry::Vacant(place) => {
                let row = Row { hash, name: name.clone(), value: make() };
                &mut place.insert(row).into_mut().value
            }
        }
    }

    /// Takes the value of a topic out.
    pub(super) fn remove<'a>(&mut self, topic: impl Into<HashedTopic<'a>>) -> Option<T> {
        let topic = topic.into();
        let found = self.rows.find_entry(topic.hash.spread(), |row| row.is(topic)).ok()?;
        Some(found.remove().0.value)
    }

    /// All topics and their values.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (&TopicName, &mut T)> {
        self.rows.iter_mut().map(|row| (&row.name, &mut row.value))
    }

    /// Takes the values of some topics out.
    pub(super) fn take_if(&mut self, is_wanted: impl Fn(&TopicName) -> bool) -> Vec<T> {
        self.rows.extract_if(|row| is_wanted(&row.name)).map(|row| row.value).collect()
    }
}

impl<T> Row<T> {
    fn is(&self, topic: HashedTopic<'_>) -> bool {
        self.hash == topic.hash && self.name.as_str() == topic.name
    }
}

/// How many names this thread has hashed, for tests of what a message costs.
#[cfg(test)]
pub(crate) mod counting {
    use std::cell::Cell;

    thread_local! {
        static HASHES: Cell<u64> = const { Cell::new(0) };
    }

    pub(super) fn count() {
        HASHES.set(HASHES.get() + 1);
    }

    /// What `work` hashes.
    pub(crate) fn hashes_of(work: impl FnOnce()) -> u64 {
        let before = HASHES.get();
        work();
        HASHES.get() - before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_holds_one_value_for_each_topic() {
        let mut table = TopicTable::default();
        let rooms: Vec<TopicName> =
            (0..1000).map(|number| TopicName::room(&format!("{number}"))).collect();
        for (number, room) in rooms.iter().enumerate() {
            let hash = HashedTopic::from(room).hash();
            assert_eq!(*table.get_or_insert_with(room, hash, || number), number);
            assert_eq!(*table.get_or_insert_with(room, hash, || 0), number, "it is there");
        }
        assert_eq!(table.len(), 1000);
        *table.get_mut(&rooms[7]).unwrap() = 70;
        assert_eq!((table.get("r:7"), table.get("r:1000")), (Some(&70), None));
        assert_eq!((table.remove(&rooms[7]), table.remove(&rooms[7])), (Some(70), None));
        let taken = table.take_if(|name| name.as_str().len() == 3);
        assert_eq!((taken.len(), table.len()), (9, 990));
        assert_eq!(table.iter_mut().count(), 990);
    }

    #[test]
    fn topics_with_equal_hashes_stay_two_topics() {
        let (mut table, hash) = (TopicTable::default(), TopicHash(7));
        for room in ["a", "b"] {
            table.get_or_insert_with(&TopicName::room(room), hash, || room);
        }
        for room in ["a", "b"] {
            let name = TopicName::room(room);
            assert_eq!(table.get(HashedTopic::known(name.as_str(), hash)), Some(&room));
        }
    }

    #[test]
    fn every_hash_of_a_name_is_counted() {
        assert_eq!(counting::hashes_of(|| _ = HashedTopic::of("r:a")), 1);
        let known = HashedTopic::of("r:a");
        let table = TopicTable::<u8>::default();
        assert_eq!(counting::hashes_of(|| _ = table.get(known)), 0);
        assert_eq!(counting::hashes_of(|| _ = table.get("r:a")), 1);
    }
}
