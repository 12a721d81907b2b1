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

/// Keys that are forgotten on one tick; as many more as are remembered are forgotten on the way.
const FORGOTTEN_PER_TICK: usize = 4096;
/// Keys whose time is over that are forgotten for each new one: there are never more than before.
const FORGOTTEN_PER_KEY: usize = 2;

/// A key within its topic.
struct RememberedKey {
    hash: u64,
    topic: TopicName,
    key: Box<str>,
    at: Position,
    since: Instant,
    owner: OwnerId,
}

/// Where a key is. Small, and with its hash: a table that grows moves all of its entries at once while
/// everybody waits, and would otherwise have to read each key again.
struct KeyPlace {
    hash: u64,
    /// Counted from the first key that ever was.
    number: u64,
}

/// The keys. Owned by the embedded backplane.
pub struct IdempotencyKeys {
    places: HashTable<KeyPlace>,
    by_age: VecDeque<Box<RememberedKey>>,
    /// The number of the oldest.
    first: u64,
    shares: OwnerShares,
    /// Of the keys themselves and of their topics' names.
    bytes: usize,
}

/// A key, beside its bytes: what is remembered of it, and its places in both tables, each with room to
/// grow.
const KEY_BYTES: usize = 176;

impl IdempotencyKeys {
    /// No keys, and room for `keys_max`.
    pub fn new(keys_max: usize) -> IdempotencyKeys {
        IdempotencyKeys {
            places: HashTable::new(),
            by_age: VecDeque::new(),
            first: 0,
            shares: OwnerShares::new(keys_max, 1),
            bytes: 0,
        }
    }

    /// Position of the message that was stored with this key, if any.
    pub fn find(&self, topic: HashedTopic<'_>, key: &str) -> Option<Position> {
        let hash = topic.hash().with(key);
        let remembered = |number: u64| &self.by_age[(number - self.first) as usize];
        let is_it =
            |place: &KeyPlace| place.hash == hash && remembered(place.number).is(topic.name(), key);
        self.places.find(hash, is_it).map(|place| remembered(place.number).at)
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
        let (hash, owner) = (hash.with(&key), self.shares.begin(owner, 1));
        let number = self.first + self.by_age.len() as u64;
        let topic = topic.clone();
        let known = RememberedKey { hash, topic, key, at, since: now, owner };
        self.bytes += known.bytes();
        self.by_age.push_back(Box::new(known));
        self.places.insert_unique(hash, KeyPlace { hash, number }, |place| place.hash);
        self.forget(FORGOTTEN_PER_KEY, now);
    }

    /// Forgets some of those whose time is over.
    pub fn tick(&mut self, now: Instant) {
        self.forget(FORGOTTEN_PER_TICK, now);
    }

    fn forget(&mut self, keys: usize, now: Instant) {
        let is_over =
            |known: &RememberedKey| now.saturating_duration_since(known.since) >= IDEMPOTENCY_TTL;
        for _ in 0..keys {
            if !self.by_age.front().is_some_and(|known| is_over(known)) {
                return;
            }
            let known = self.by_age.pop_front().expect("there is a front");
            let number = self.first;
            let found = self.places.find_entry(known.hash, |place| place.number == number);
            found.ok().expect("a key that is remembered has a place").remove();
            self.first += 1;
            self.bytes -= known.bytes();
            self.shares.shrink(known.owner, 1);
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

impl RememberedKey {
    fn bytes(&self) -> usize {
        self.key.len() + self.topic.as_str().len()
    }

    fn is(&self, topic: &str, key: &str) -> bool {
        self.topic.as_str() == topic && *self.key == *key
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
        assert!(keys.is_empty() && keys.places.is_empty());
    }

    #[test]
    fn many_keys_whose_time_is_over_are_forgotten_in_portions_and_others_are_found() {
        let began = Instant::now();
        let mut keys = IdempotencyKeys::new(100_000);
        let number_of = |n: usize| format!("key {n}");
        (0..10_000).for_each(|n| remember(&mut keys, &number_of(n), Owner::Service, began));
        let later = began + IDEMPOTENCY_TTL;
        remember(&mut keys, "new", Owner::Service, later);
        assert_eq!(keys.len(), 10_001 - FORGOTTEN_PER_KEY, "two old ones for each new one");
        keys.tick(later);
        assert_eq!(keys.len(), 10_001 - FORGOTTEN_PER_KEY - FORGOTTEN_PER_TICK);
        for n in 0..10_000 {
            let is_known = n >= FORGOTTEN_PER_KEY + FORGOTTEN_PER_TICK;
            assert_eq!(keys.find((&room(0)).into(), &number_of(n)).is_some(), is_known, "{n}");
        }
        (0..2).for_each(|_| keys.tick(later));
        assert_eq!((keys.len(), keys.places.len(), keys.shares.all()), (1, 1, 1));
        assert_eq!(keys.find((&room(0)).into(), "new"), Some(AT));
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
