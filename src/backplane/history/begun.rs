//! What clients of this node leave behind in Redis: histories that they have begun, and idempotency
//! keys.
//!
//! Redis is shared by everybody, and has one bound for all. So each node gives its clients the shares
//! that a node without Redis gives them ([`OwnerShares`]): who has its share publishes on where
//! histories exist, and is refused where its message would begin one, or be stored under a new key.
//! The script that stores a message finds out which of both it is ([`Allowance`] goes with each
//! publish), so this costs no round trip. What others have is never taken for it.
//!
//! A history counts until its position is forgotten, as far as this node knows: each publish through
//! it prolongs that. What was begun before the node started, or through other nodes, does not count.
//! What is in flight has not been counted yet, so a share may be exceeded by as much. Services of the
//! operator's have no share.
//!
//! Invariant: what the shares count is what the queues have.

use crate::backplane::history::owners::{Owner, OwnerId, OwnerShares};
use crate::backplane::message::IDEMPOTENCY_TTL;
use crate::backplane::topic_table::{HashedTopic, TopicTable};
use crate::ids::TopicName;
use crate::link::Publish;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Histories, and keys, that are looked at on one tick. Those beyond count until the next one.
const FORGOTTEN_PER_TICK: usize = 16 * 1024;
/// A history that was begun: its places in table and queue.
const HISTORY_BYTES: usize = 128;
/// A key: its place in the queue.
const KEY_BYTES: usize = size_of::<(Instant, OwnerId)>();

/// What a publish may leave behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// Whether it may begin a history.
    pub history: bool,
    /// Whether it may be stored under a key that is new.
    pub key: bool,
}

impl Allowance {
    /// What services may.
    pub const ALL: Allowance = Allowance { history: true, key: true };

    /// As the script reads it: 1, no history; 2, no key.
    pub fn forbidden(self) -> u8 {
        u8::from(!self.history) | u8::from(!self.key) << 1
    }
}

/// A history that a client of this node has begun.
#[derive(Clone, Copy, Debug)]
struct BegunHistory {
    owner: OwnerId,
    until: Instant,
}

/// What clients of this node have left behind. Owned by the backplane's thread.
pub struct BegunHistories {
    histories: TopicTable<BegunHistory>,
    /// When to look at each of them again.
    by_end: VecDeque<(Instant, TopicName)>,
    of_histories: OwnerShares,
    /// Of their names.
    name_bytes: usize,
    keys: VecDeque<(Instant, OwnerId)>,
    of_keys: OwnerShares,
}

impl BegunHistories {
    /// None yet, and room for so many of both.
    pub fn new(histories_max: usize, keys_max: usize) -> BegunHistories {
        BegunHistories {
            histories: TopicTable::default(),
            by_end: VecDeque::new(),
            of_histories: OwnerShares::new(histories_max, 1),
            name_bytes: 0,
            keys: VecDeque::new(),
            of_keys: OwnerShares::new(keys_max, 1),
        }
    }

    /// What a publish may leave behind now.
    pub fn allow(&self, publish: &Publish) -> Allowance {
        match Owner::of(publish.from.as_ref()) {
            Owner::Service => Allowance::ALL,
            owner => Allowance {
                history: self.of_histories.room(owner) > 0,
                key: publish.key.is_none() || self.of_keys.room(owner) > 0,
            },
        }
    }

    /// A publish was stored, in a history whose position is remembered for `ttl` from now on. Whether
    /// it is its first message: `is_first`.
    pub fn note_stored(&mut self, publish: &Publish, is_first: bool, ttl: Duration, now: Instant) {
        let owner = Owner::of(publish.from.as_ref());
        self.note_history(&publish.topic, owner, is_first, now + ttl);
        if publish.key.is_some() && owner != Owner::Service {
            let owner = self.of_keys.begin(owner, 1);
            self.keys.push_back((now + IDEMPOTENCY_TTL, owner));
        }
    }

    fn note_history(
        &mut self,
        topic: &TopicName,
        owner: Owner<'_>,
        is_first: bool,
        until: Instant,
    ) {
        let hashed = HashedTopic::from(topic);
        if let Some(begun) = self.histories.get_mut(hashed) {
            begun.until = until;
        } else if is_first && owner != Owner::Service {
            let owner = self.of_histories.begin(owner, 1);
            let begun = || BegunHistory { owner, until };
            self.histories.get_or_insert_with(topic, hashed.hash(), begun);
            self.by_end.push_back((until, topic.clone()));
            self.name_bytes += topic.as_str().len();
        }
    }

    /// Forgets some of what is over: all at once, everybody would wait for it.
    pub fn tick(&mut self, now: Instant) {
        let is_over = |until: &Instant| *until <= now;
        for _ in 0..FORGOTTEN_PER_TICK {
            if !self.keys.front().is_some_and(|(until, _)| is_over(until)) {
                break;
            }
            let (_, owner) = self.keys.pop_front().expect("it was just looked at");
            self.of_keys.shrink(owner, 1);
        }
        // Namespaces differ in how long they store: one that ends early may wait for one before it.
        for _ in 0..FORGOTTEN_PER_TICK {
            if !self.by_end.front().is_some_and(|(until, _)| is_over(until)) {
                break;
            }
            let (_, topic) = self.by_end.pop_front().expect("it was just looked at");
            let begun = *self.histories.get(&topic).expect("the queue has what the table has");
            if begun.until > now {
                self.by_end.push_back((begun.until, topic));
                continue;
            }
            self.histories.remove(&topic);
            self.name_bytes -= topic.as_str().len();
            self.of_histories.shrink(begun.owner, 1);
        }
    }

    /// Histories that count now.
    pub fn histories(&self) -> usize {
        self.histories.len()
    }

    /// Keys that count now.
    pub fn keys(&self) -> usize {
        self.keys.len()
    }

    /// Bytes that it holds.
    pub fn held_bytes(&self) -> usize {
        self.histories.len() * HISTORY_BYTES + self.name_bytes + self.keys.len() * KEY_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ANONYMOUS_PREFIX;
    use crate::link::ReplyTo;
    use bytes::Bytes;

    const TTL: Duration = Duration::from_secs(60);
    const OVER_HISTORY: Allowance = Allowance { history: false, key: true };

    fn publish(room: &str, from: Option<&str>, key: Option<&str>) -> Publish {
        Publish {
            topic: TopicName::room(room),
            payload: Bytes::new(),
            from: from.map(TopicName::user),
            info: None,
            except: None,
            key: key.map(Into::into),
            conflate_key: None,
            done: ReplyTo::Nobody,
        }
    }

    /// Begins histories as this user until no more may be begun.
    fn fill(begun: &mut BegunHistories, user: &str, now: Instant) -> usize {
        let mut count = 0;
        loop {
            let publish = publish(&format!("{user}{count}"), Some(user), None);
            if !begun.allow(&publish).history {
                return count;
            }
            begun.note_stored(&publish, true, TTL, now);
            count += 1;
        }
    }

    #[test]
    fn each_client_begins_its_share_and_no_more_until_some_are_over() {
        let (mut begun, now) = (BegunHistories::new(640, 64), Instant::now());
        let anonymous = format!("{ANONYMOUS_PREFIX}1");
        assert_eq!(fill(&mut begun, &anonymous, now), 10);
        assert_eq!(fill(&mut begun, "ann", now), 80);
        assert_eq!(begun.allow(&publish("x", None, Some("k"))), Allowance::ALL, "a service");
        let other = publish("x", Some("ann"), None);
        assert_eq!(begun.allow(&other), OVER_HISTORY);
        // A message in a history that exists begins none, and prolongs it.
        let old = publish("ann0", Some("bob"), None);
        begun.note_stored(&old, false, 2 * TTL, now);
        begun.tick(now + TTL);
        assert_eq!((begun.histories(), begun.allow(&other)), (1, Allowance::ALL));
        begun.tick(now + 2 * TTL);
        assert_eq!((begun.histories(), begun.held_bytes()), (0, 0));
    }

    #[test]
    fn all_without_a_token_together_have_a_half_and_everybody_three_quarters() {
        let (mut begun, now) = (BegunHistories::new(640, 64), Instant::now());
        let anonymous = (0..100).map(|n| format!("{ANONYMOUS_PREFIX}{n}"));
        assert_eq!(anonymous.map(|name| fill(&mut begun, &name, now)).sum::<usize>(), 320);
        let users = (0..10).map(|n| format!("user-{n}"));
        assert_eq!(users.map(|name| fill(&mut begun, &name, now)).sum::<usize>(), 160);
    }

    #[test]
    fn keys_have_shares_of_their_own() {
        let (mut begun, now) = (BegunHistories::new(640, 64), Instant::now());
        let with_key = publish("r", Some("ann"), Some("k"));
        (0..8).for_each(|_| begun.note_stored(&with_key, false, TTL, now));
        assert_eq!(begun.allow(&with_key), Allowance { history: true, key: false });
        assert_eq!(begun.allow(&publish("r", Some("ann"), None)), Allowance::ALL);
        begun.tick(now + IDEMPOTENCY_TTL);
        assert_eq!((begun.allow(&with_key), begun.keys()), (Allowance::ALL, 0));
    }
}
