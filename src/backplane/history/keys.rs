//! Idempotency keys of a single node: by which a retry finds the message that it has stored already.
//!
//! A key is remembered for [`IDEMPOTENCY_TTL`] and never forgotten earlier: a publisher whose key was
//! forgotten would be delivered twice. So where there is no room for a new key its publish is refused.
//! And the room is shared ([`OwnerShares`]): what strangers leave behind keeps nobody else from
//! publishing.
//!
//! Invariant: what the shares count is the keys here.

use crate::backplane::history::owners::{Owner, OwnerId, OwnerShares};
use crate::backplane::message::IDEMPOTENCY_TTL;
use crate::backplane::topic_table::{HashedTopic, TopicHash};
use crate::ids::{Position, TopicName};
use hashbrown::HashTable;
use std::collections::VecDeque;
use std::time::Instant;

/// A key within its topic.
#[derive(Clone, PartialEq, Eq)]
struct IdempotencyKey {
    hash: TopicHash,
    topic: TopicName,
    key: Box<str>,
}

/// The keys. Owned by the embedded backplane.
pub struct IdempotencyKeys {
    keys: HashTable<(IdempotencyKey, Position)>,
    by_age: VecDeque<(Instant, IdempotencyKey, OwnerId)>,
    shares: OwnerShares,
    /// Of the keys themselves, each of which stands in both tables, and of their topics' names.
    bytes: usize,
}

/// A key, beside its bytes: its places in both tables, each with room to grow.
const KEY_BYTES: usize = 224;

impl IdempotencyKeys {
    /// No keys, and room for `keys_max`.
    pub fn new(keys_max: usize) -> IdempotencyKeys {
        IdempotencyKeys {
            keys: HashTable::new(),
            by_age: VecDeque::new(),
            shares: OwnerShares::new(keys_max, 1),
            bytes: 0,
        }
    }

    /// Position of the message that was stored with this key, if any.
    pub fn find(&self, topic: HashedTopic<'_>, key: &str) -> Option<Position> {
        let is_it = |(known, _): &(IdempotencyKey, Position)| known.is(topic, key);
        self.keys.find(topic.hash().with(key), is_it).map(|(_, at)| *at)
    }

    /// Whether a new key of this owner may be remembered.
    pub fn has_room(&self, owner: Owner<'_>) -> bool {
        self.shares.room(owner) > 0
    }

    /// Bytes that all keys keep alive.
    pub fn held_bytes(&self) -> usize {
        self.by_age.len() * KEY_BYTES + self.bytes
    }

    /// Remembers the position of the message that was stored with this key, which is new. There is
    /// room for it.
    pub fn remember(
        &mut self,
        (topic, hash): (&TopicName, TopicHash),
        key: Box<str>,
        owner: Owner<'_>,
        at: Position,
        now: Instant,
    ) {
        let owner = self.shares.begin(owner, 1);
        let key = IdempotencyKey { hash, topic: topic.clone(), key };
        self.bytes += key.bytes();
        self.by_age.push_back((now, key.clone(), owner));
        self.keys.insert_unique(key.hash(), (key, at), |(key, _)| key.hash());
    }

    /// Forgets those whose time is over.
    pub fn tick(&mut self, now: Instant) {
        while let Some((since, ..)) = self.by_age.front()
            && now.saturating_duration_since(*since) >= IDEMPOTENCY_TTL
        {
            let (_, key, owner) = self.by_age.pop_front().expect("there is a front");
            if let Ok(found) = self.keys.find_entry(key.hash(), |(known, _)| *known == key) {
                found.remove();
            }
            self.bytes -= key.bytes();
            self.shares.shrink(owner, 1);
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.by_age.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.by_age.is_empty()
    }
}

impl IdempotencyKey {
    fn bytes(&self) -> usize {
        2 * self.key.len() + self.topic.as_str().len()
    }

    fn hash(&self) -> u64 {
        self.hash.with(&self.key)
    }

    fn is(&self, topic: HashedTopic<'_>, key: &str) -> bool {
        self.hash == topic.hash() && self.topic.as_str() == topic.name() && *self.key == *key
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ANONYMOUS_PREFIX;

    const AT: Position = Position { epoch: 1, offset: 2 };

    fn room(number: usize) -> TopicName {
        TopicName::room(&number.to_string())
    }

    fn remember(keys: &mut IdempotencyKeys, key: &str, owner: Owner<'_>, now: Instant) {
        let topic = room(0);
        let hash = HashedTopic::from(&topic).hash();
        keys.remember((&topic, hash), key.into(), owner, AT, now);
    }

    /// Remembers as many keys as there is room for, at most 100.
    fn fill(keys: &mut IdempotencyKeys, owner: Owner<'_>, now: Instant) -> usize {
        let from = keys.len();
        for number in 0..100 {
            if keys.has_room(owner) {
                remember(keys, &format!("{owner:?}{number}"), owner, now);
            }
        }
        keys.len() - from
    }

    /// The same for so many clients without a token.
    fn fill_of_strangers(keys: &mut IdempotencyKeys, strangers: usize, now: Instant) -> usize {
        let name = |n: usize| TopicName::user(&format!("{ANONYMOUS_PREFIX}{n}"));
        (0..strangers).map(|n| fill(keys, Owner::of(Some(&name(n))), now)).sum()
    }

    #[test]
    fn a_key_is_remembered_for_its_time_and_in_its_topic() {
        let began = Instant::now();
        let mut keys = IdempotencyKeys::new(16);
        remember(&mut keys, "k", Owner::Service, began);
        assert_eq!(keys.find((&room(0)).into(), "k"), Some(AT));
        assert_eq!(keys.find((&room(1)).into(), "k"), None);
        keys.tick(began + IDEMPOTENCY_TTL);
        assert_eq!(keys.find((&room(0)).into(), "k"), None);
        assert!(keys.is_empty() && keys.keys.is_empty());
    }

    #[test]
    fn strangers_fill_their_share_and_a_publishers_keys_stay() {
        let now = Instant::now();
        let mut keys = IdempotencyKeys::new(16);
        let [ann, bob] = ["ann", "bob"].map(TopicName::user);
        let [ann, bob] = [&ann, &bob].map(|user| Owner::of(Some(user)));
        remember(&mut keys, "of ann", ann, now);
        assert_eq!(fill_of_strangers(&mut keys, 50, now), 8, "a half, however many they are");
        assert_eq!(keys.find((&room(0)).into(), "of ann"), Some(AT));
        assert_eq!((fill(&mut keys, ann, now), fill(&mut keys, bob, now)), (1, 2), "an eighth");
        assert_eq!(fill(&mut keys, Owner::Service, now), 4, "what is left");
        assert!(!keys.has_room(Owner::Service));
    }

    #[test]
    fn a_share_is_free_again_when_its_keys_are_over() {
        let began = Instant::now();
        let mut keys = IdempotencyKeys::new(16);
        let ann = TopicName::user("ann");
        for round in 0..5 {
            let now = began + round * IDEMPOTENCY_TTL;
            keys.tick(now);
            assert_eq!(fill(&mut keys, Owner::of(Some(&ann)), now), 2);
            assert_eq!(fill_of_strangers(&mut keys, 20, now), 8);
        }
        keys.tick(began + 5 * IDEMPOTENCY_TTL);
        assert!(keys.is_empty() && keys.shares.all() == 0);
    }
}
