//! The subscriptions of one link: changes in batches, and a resubscription of everything at its
//! start.
//!
//! Changes are sent in order, neighbours of one kind together, at most 512 in a batch and a few
//! batches in flight. Each batch is followed by a PING with its number: its answer proves that all
//! replies to the batch came before. In a Cluster some channels may have been refused or revoked:
//! those are subscribed again a moment later, unless they are known to be on another server by
//! then. The others of the batch are subscribed: a slot without a master delays no other.
//!
//! A new link subscribes everything wanted by a walk over all topics, while changes go on. A change
//! is always sent before the walk's next batch, so that no early unsubscription can follow a later
//! subscription of the same topic by the walk.
//!
//! Invariant: a topic is reported as subscribed only after the server has confirmed it on this
//! link.

use crate::backplane::interest::{Interest, TopicKey};
use crate::backplane::redis::connection::subscriber::Subscriber;
use crate::backplane::redis::names::Names;
use crate::ids::TopicName;
use hashbrown::HashMap;
use std::collections::VecDeque;
use std::ops::Range;
use std::time::{Duration, Instant};

/// Channels in one batch.
pub const CHANNELS_PER_BATCH: usize = 512;
/// Batches in flight.
pub const BATCHES_MAX: usize = 4;
/// Pause before channels are subscribed again that the server refused or revoked.
const STALLED: Duration = Duration::from_millis(200);

enum SubscriptionChange {
    Add(TopicKey, TopicName),
    Remove(TopicName),
    /// A channel that is no topic's.
    AddFixed(String),
    RemoveFixed(String),
}

impl SubscriptionChange {
    fn is_addition(&self) -> bool {
        matches!(self, SubscriptionChange::Add(..) | SubscriptionChange::AddFixed(_))
    }
}

/// A batch in flight.
struct Batch {
    number: u64,
    is_addition: bool,
    is_of_walk: bool,
    /// Of a subscription: the topic of each channel; `None`: not a topic's, or refused.
    keys: Vec<Option<TopicKey>>,
    /// Number of its channels that the server has answered, in order.
    answered: usize,
    /// Topics that the server refused or revoked.
    refused: Vec<TopicKey>,
}

/// The result of a batch.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct BatchOutcome {
    /// Topics that are subscribed by it.
    pub confirmed: Vec<TopicKey>,
    /// Topics that an earlier link may have received and this one does not yet: when it does,
    /// messages may be missing.
    pub missed: Vec<TopicKey>,
}

/// A batch to send.
pub struct SubscribeBatch {
    /// Whether the channels are subscribed or unsubscribed.
    pub is_addition: bool,
    /// Names of the channels.
    pub channels: Vec<String>,
    /// The text of the PING behind it.
    number: u64,
}

/// The content of the next batch.
#[derive(Default)]
struct BatchContent {
    is_addition: bool,
    is_of_walk: bool,
    /// As in [`Batch`].
    keys: Vec<Option<TopicKey>>,
    channels: Vec<String>,
}

/// Wanted and confirmed subscriptions of one link, which owns it.
pub struct Subscriptions {
    /// The server's index in [`Interest`].
    server: usize,
    changes: VecDeque<SubscriptionChange>,
    /// In the order in which they were sent, which is that of their replies.
    in_flight: VecDeque<Batch>,
    batches: u64,
    /// Our own channels, subscribed first; `None` once they are sent.
    fixed: Option<Vec<String>>,
    /// Slab indices that the walk has not reached. Topics added later come as changes.
    walk: Range<u32>,
    walk_under_way: usize,
    /// Topics to be subscribed again, and when.
    stalled: Vec<TopicKey>,
    stalled_until: Option<Instant>,
    /// Topics that the server refused or revoked, since when.
    unsubscribed: HashMap<TopicKey, Instant>,
    /// The same in the order of time, with entries that are over.
    unsubscribed_order: VecDeque<(TopicKey, Instant)>,
}

impl Subscriptions {
    /// For a new link: nothing is subscribed. `fixed`: channels that are no topic's; `places`: the
    /// end of the slab indices of existing topics (`Interest::slots_end`).
    pub fn new(server: usize, fixed: Vec<String>, places: u32) -> Subscriptions {
        Subscriptions {
            server,
            changes: VecDeque::new(),
            in_flight: VecDeque::new(),
            batches: 0,
            fixed: Some(fixed),
            walk: 0..places,
            walk_under_way: 0,
            stalled: Vec::new(),
            stalled_until: None,
            unsubscribed: HashMap::new(),
            unsubscribed_order: VecDeque::new(),
        }
    }

    /// Servers have other numbers.
    pub fn set_server(&mut self, server: usize) {
        self.server = server;
    }

    /// Subscribes a topic.
    pub fn add(&mut self, key: TopicKey, topic: &TopicName) {
        self.changes.push_back(SubscriptionChange::Add(key, topic.clone()));
    }

    /// Unsubscribes a topic.
    pub fn remove(&mut self, topic: TopicName) {
        self.changes.push_back(SubscriptionChange::Remove(topic));
    }

    /// Subscribes a channel that is no topic's.
    pub fn add_fixed(&mut self, channel: String) {
        self.changes.push_back(SubscriptionChange::AddFixed(channel));
    }

    /// Unsubscribes a channel that is no topic's.
    pub fn remove_fixed(&mut self, channel: String) {
        self.changes.push_back(SubscriptionChange::RemoveFixed(channel));
    }

    /// Whether everything that was wanted when the link began is confirmed.
    pub fn is_complete(&self) -> bool {
        self.fixed.is_none() && self.walk.is_empty() && self.walk_under_way == 0
    }

    /// Whether the server owes an answer.
    pub fn is_waiting(&self) -> bool {
        !self.in_flight.is_empty()
    }

    /// The number of the batch that the server answers next.
    pub fn oldest(&self) -> Option<u64> {
        self.in_flight.front().map(|batch| batch.number)
    }

    /// The server has revoked or refused a topic: it is subscribed again in a moment.
    pub fn stall(&mut self, key: TopicKey, now: Instant) {
        self.stalled.push(key);
        self.stalled_until.get_or_insert(now + STALLED);
        if self.unsubscribed.try_insert(key, now).is_ok() {
            self.unsubscribed_order.push_back((key, now));
        }
    }

    /// Since when there is a topic that the server should have and does not.
    pub fn unsubscribed_since(&mut self) -> Option<Instant> {
        while let Some((key, since)) = self.unsubscribed_order.front() {
            if self.unsubscribed.get(key) == Some(since) {
                return Some(*since);
            }
            self.unsubscribed_order.pop_front();
        }
        None
    }

    /// Sends batches up to the limit. Returns whether there were any.
    pub fn poll(
        &mut self,
        now: Instant,
        sub: &mut Subscriber,
        names: &Names,
        interest: &Interest,
    ) -> bool {
        self.retry_stalled(now, interest);
        let mut is_busy = false;
        while let Some(command) = self.next_command(names, interest) {
            write(&command, sub, names);
            is_busy = true;
        }
        is_busy
    }

    /// The next batch to send; it is in flight from now on. `None`: the limit is reached, or there
    /// is nothing to change.
    pub fn next_command(&mut self, names: &Names, interest: &Interest) -> Option<SubscribeBatch> {
        if self.in_flight.len() >= BATCHES_MAX {
            return None;
        }
        let BatchContent { is_addition, is_of_walk, keys, channels } =
            self.next_batch(names, interest)?;
        self.walk_under_way += usize::from(is_of_walk);
        self.batches += 1;
        let number = self.batches;
        let (answered, refused) = (0, Vec::new());
        let batch = Batch { number, is_addition, is_of_walk, keys, answered, refused };
        self.in_flight.push_back(batch);
        Some(SubscribeBatch { is_addition, channels, number })
    }

    /// The server has answered a PING. Returns the result of the oldest batch; `None`: that was not
    /// its number.
    pub fn handle_ping(&mut self, text: &[u8], now: Instant) -> Option<BatchOutcome> {
        let number: u64 = std::str::from_utf8(text).ok()?.parse().ok()?;
        if self.in_flight.front()?.number != number {
            return None;
        }
        let batch = self.take_oldest();
        let confirmed: Vec<TopicKey> = batch.keys.into_iter().flatten().collect();
        if !self.unsubscribed.is_empty() {
            confirmed.iter().for_each(|key| _ = self.unsubscribed.remove(key));
        }
        batch.refused.iter().for_each(|key| self.stall(*key, now));
        let missed = if batch.is_of_walk { batch.refused } else { Vec::new() };
        Some(BatchOutcome { confirmed, missed })
    }

    /// Ends the oldest batch, of which nothing was refused. Returns the topics that are subscribed
    /// by it.
    pub fn confirmed(&mut self) -> Vec<TopicKey> {
        self.take_oldest().keys.into_iter().flatten().collect()
    }

    /// The server has subscribed the next channel.
    pub fn handle_subscribed(&mut self) {
        if let Some(front) = self.in_flight.front_mut().filter(|front| front.is_addition) {
            front.answered += 1;
        }
    }

    /// The server has refused the next channel.
    pub fn handle_rejected(&mut self) {
        if let Some(front) = self.in_flight.front_mut().filter(|front| front.is_addition) {
            let refused = front.keys.get_mut(front.answered).and_then(Option::take);
            front.refused.extend(refused);
            front.answered += 1;
        }
    }

    /// The server has revoked a subscription of the oldest batch before it has answered all of it.
    /// Returns whether the key is of that batch.
    pub fn revoke(&mut self, key: TopicKey) -> bool {
        let Some(front) = self.in_flight.front_mut() else { return false };
        let place = front.keys.iter_mut().find(|place| **place == Some(key));
        let Some(key) = place.and_then(Option::take) else { return false };
        front.refused.push(key);
        true
    }

    fn take_oldest(&mut self) -> Batch {
        let batch = self.in_flight.pop_front().expect("only what was sent is answered");
        self.walk_under_way -= usize::from(batch.is_of_walk);
        batch
    }

    fn retry_stalled(&mut self, now: Instant, interest: &Interest) {
        if self.stalled_until.is_none_or(|until| now < until) {
            return;
        }
        self.stalled_until = None;
        for key in std::mem::take(&mut self.stalled) {
            let topic = interest.name_at(key.index).filter(|(there, _)| *there == key);
            match topic {
                Some((_, topic)) => {
                    self.changes.push_back(SubscriptionChange::Add(key, topic.clone()))
                }
                None => _ = self.unsubscribed.remove(&key),
            }
        }
    }

    fn next_batch(&mut self, names: &Names, interest: &Interest) -> Option<BatchContent> {
        if let Some(channels) = self.fixed.take() {
            let keys = vec![None; channels.len()];
            return Some(BatchContent { is_addition: true, is_of_walk: true, keys, channels });
        }
        self.next_changes(names, interest).or_else(|| self.next_of_walk(names, interest))
    }

    /// Neighbours of one kind, which keeps the order. Topics that have moved belong to another
    /// server.
    fn next_changes(&mut self, names: &Names, interest: &Interest) -> Option<BatchContent> {
        let mut next_batch = BatchContent::default();
        while next_batch.channels.len() < CHANNELS_PER_BATCH
            && let Some(is_addition) = self.changes.front().map(SubscriptionChange::is_addition)
        {
            if next_batch.channels.is_empty() {
                next_batch.is_addition = is_addition;
            } else if next_batch.is_addition != is_addition {
                break;
            }
            match self.changes.pop_front().expect("it was just looked at") {
                SubscriptionChange::Add(key, topic) => {
                    if interest.server_of(topic.as_str()) == self.server {
                        next_batch.keys.push(Some(key));
                        next_batch.channels.push(names.channel(topic.as_str()));
                    } else {
                        self.unsubscribed.remove(&key);
                    }
                }
                SubscriptionChange::Remove(topic) => {
                    if interest.server_of(topic.as_str()) == self.server {
                        next_batch.channels.push(names.channel(topic.as_str()));
                    }
                }
                SubscriptionChange::AddFixed(channel) => {
                    next_batch.keys.push(None);
                    next_batch.channels.push(channel);
                }
                SubscriptionChange::RemoveFixed(channel) => next_batch.channels.push(channel),
            }
        }
        (!next_batch.channels.is_empty()).then_some(next_batch)
    }

    fn next_of_walk(&mut self, names: &Names, interest: &Interest) -> Option<BatchContent> {
        let mut next_batch =
            BatchContent { is_addition: true, is_of_walk: true, ..BatchContent::default() };
        while next_batch.channels.len() < CHANNELS_PER_BATCH {
            let Some(place) = self.walk.next() else { break };
            if let Some((key, topic)) = interest.name_at(place)
                && interest.server_of(topic.as_str()) == self.server
            {
                next_batch.keys.push(Some(key));
                next_batch.channels.push(names.channel(topic.as_str()));
            }
        }
        (!next_batch.channels.is_empty()).then_some(next_batch)
    }
}

/// One command for all channels; in a Cluster, where a command may name channels of one slot only,
/// one for each.
fn write(command: &SubscribeBatch, sub: &mut Subscriber, names: &Names) {
    let SubscribeBatch { is_addition, channels, number } = command;
    if names.is_sharded() {
        for channel in channels {
            let verb: &[u8] = match (names.is_of_a_slot(channel), is_addition) {
                (true, true) => b"SSUBSCRIBE",
                (true, false) => b"SUNSUBSCRIBE",
                (false, true) => b"SUBSCRIBE",
                (false, false) => b"UNSUBSCRIBE",
            };
            sub.write([verb, channel.as_bytes()].into_iter());
        }
    } else {
        let verb = if *is_addition { &b"SUBSCRIBE"[..] } else { b"UNSUBSCRIBE" };
        let words: Vec<&[u8]> =
            std::iter::once(verb).chain(channels.iter().map(|name| name.as_bytes())).collect();
        sub.write(words.into_iter());
    }
    let mut digits = itoa::Buffer::new();
    let number = digits.format(*number).as_bytes();
    sub.write([&b"PING"[..], number].into_iter());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backplane::interest::JoinOutcome;
    use crate::backplane::partition::PARTITIONS;
    use crate::ids::{NodeId, ShardId, SlotId, TopicId};
    use crate::protocol::dialect::Encoding;
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    fn names() -> Names {
        Names::new("t", NodeId(1))
    }

    fn wanted(interest: &mut Interest, room: &str) -> TopicKey {
        let at = TopicId(SlotId { index: 0, generation: 0 });
        match interest.join(TopicName::room(room), ShardId(0), Encoding::NATIVE, at) {
            JoinOutcome::Subscribe(key) => key,
            other => panic!("{other:?}"),
        }
    }

    fn rooms(next_batch: &BatchContent) -> Vec<&str> {
        next_batch.channels.iter().map(|channel| channel.split_once(":r:").unwrap().1).collect()
    }

    #[test]
    fn changes_keep_their_order_and_neighbours_of_a_kind_share_a_batch() {
        let mut interest = Interest::new(Duration::ZERO);
        let mut subscriptions = Subscriptions::new(0, vec!["fixed".into()], 0);
        assert_eq!(subscriptions.next_batch(&names(), &interest).unwrap().channels, ["fixed"]);
        let room = TopicName::room;
        let (a, b) = (wanted(&mut interest, "a"), wanted(&mut interest, "b"));
        subscriptions.add(a, &room("a"));
        subscriptions.add(b, &room("b"));
        subscriptions.remove(room("a"));
        subscriptions.add(a, &room("a"));
        let mut cuts = Vec::new();
        while let Some(next_batch) =
            subscriptions.next_batch(&names(), &Interest::new(Duration::ZERO))
        {
            cuts.push((next_batch.is_addition, rooms(&next_batch).join(",")));
        }
        assert_eq!(cuts, [(true, "a,b".into()), (false, "a".into()), (true, "a".into())]);
    }

    #[test]
    fn a_walk_finds_every_topic_once_and_lets_changes_go_first() {
        let mut interest = Interest::new(Duration::ZERO);
        let keys: Vec<_> = (0..1300).map(|n| wanted(&mut interest, &n.to_string())).collect();
        let now = Instant::now();
        interest.leave(&TopicName::room("7"), ShardId(0), TopicId(keys[0]), now);
        let at = TopicId(SlotId { index: 0, generation: 0 });
        interest.leave(&TopicName::room("7"), ShardId(0), at, now);
        assert!(interest.take_expired(now).is_some());
        let mut subscriptions = Subscriptions::new(0, Vec::new(), interest.slots_end());
        let _fixed = subscriptions.next_batch(&names(), &interest);
        let first = subscriptions.next_batch(&names(), &interest).unwrap();
        let _late = wanted(&mut interest, "late");
        subscriptions.remove(TopicName::room("7"));
        let change = subscriptions.next_batch(&names(), &interest).unwrap();
        assert_eq!((change.is_addition, rooms(&change)), (false, vec!["7"]));
        let second = subscriptions.next_batch(&names(), &interest).unwrap();
        let third = subscriptions.next_batch(&names(), &interest).unwrap();
        assert!(subscriptions.next_batch(&names(), &interest).is_none());
        let cuts = [&first, &second, &third];
        assert_eq!(cuts.map(|next_batch| next_batch.keys.len()), [512, 512, 1299 - 1024]);
        let mut found: Vec<u32> = cuts
            .iter()
            .flat_map(|next_batch| rooms(next_batch))
            .map(|room| room.parse().unwrap())
            .collect();
        found.sort_unstable();
        assert!(found.into_iter().eq((0..1300).filter(|n| *n != 7)));
    }
    /// A link whose first batch, of its own channels, is answered.
    fn begun(interest: &Interest) -> Subscriptions {
        let mut subscriptions = Subscriptions::new(0, vec!["fixed".into()], 0);
        assert!(subscriptions.next_command(&names(), interest).is_some());
        subscriptions.handle_subscribed();
        assert_eq!(subscriptions.handle_ping(b"1", Instant::now()), Some(BatchOutcome::default()));
        subscriptions
    }

    #[test]
    fn a_refused_channel_is_subscribed_again_and_delays_no_other() {
        let mut interest = Interest::new(Duration::ZERO);
        let (start, mut subscriptions) = (Instant::now(), begun(&interest));
        let keys = ["a", "b", "c"].map(|room| wanted(&mut interest, room));
        let rooms = ["a", "b", "c"].map(TopicName::room);
        keys.iter().zip(&rooms).for_each(|(key, room)| subscriptions.add(*key, room));
        assert!(subscriptions.next_command(&names(), &interest).is_some());
        subscriptions.handle_subscribed();
        subscriptions.handle_rejected();
        subscriptions.handle_subscribed();
        let answered = subscriptions.handle_ping(b"2", start).unwrap();
        assert_eq!(answered.confirmed, [keys[0], keys[2]]);
        assert_eq!(subscriptions.unsubscribed_since(), Some(start));
        subscriptions.retry_stalled(start + STALLED, &interest);
        let again = subscriptions.next_command(&names(), &interest).unwrap();
        assert_eq!(again.channels, [names().channel("r:b")]);
        subscriptions.handle_subscribed();
        let answered = subscriptions.handle_ping(b"3", start).unwrap();
        assert_eq!((answered.confirmed, answered.missed), (vec![keys[1]], vec![]));
        assert_eq!(subscriptions.unsubscribed_since(), None);
    }

    #[test]
    fn a_channel_revoked_before_its_batch_is_answered_is_not_subscribed() {
        let mut interest = Interest::new(Duration::ZERO);
        let mut subscriptions = begun(&interest);
        let (key, room) = (wanted(&mut interest, "a"), TopicName::room("a"));
        assert!(!subscriptions.revoke(key), "it was not asked yet");
        subscriptions.add(key, &room);
        assert!(subscriptions.next_command(&names(), &interest).is_some());
        subscriptions.handle_subscribed();
        assert!(subscriptions.revoke(key));
        let now = Instant::now();
        assert_eq!(subscriptions.handle_ping(b"2", now), Some(BatchOutcome::default()));
        subscriptions.retry_stalled(now + STALLED, &interest);
        assert!(subscriptions.next_command(&names(), &interest).is_some());
        // A channel that we have unsubscribed ourselves is no loss.
        subscriptions.handle_subscribed();
        assert_eq!(subscriptions.handle_ping(b"3", now).unwrap().confirmed, [key]);
        subscriptions.remove(room.clone());
        subscriptions.add(key, &room);
        assert!(subscriptions.next_command(&names(), &interest).is_some());
        assert!(subscriptions.next_command(&names(), &interest).is_some());
        assert!(!subscriptions.revoke(key));
        assert_eq!(subscriptions.handle_ping(b"4", now), Some(BatchOutcome::default()));
        subscriptions.handle_subscribed();
        assert_eq!(subscriptions.handle_ping(b"5", now).unwrap().confirmed, [key]);
    }

    #[test]
    fn changes_of_topics_that_have_moved_are_skipped_however_many_they_are() {
        let mut interest = Interest::new(Duration::ZERO);
        let (key, room) = (wanted(&mut interest, "a"), TopicName::room("a"));
        let mut subscriptions = begun(&interest);
        for _ in 0..200_000 {
            subscriptions.add(key, &room);
            subscriptions.remove(room.clone());
        }
        interest.set_servers(Arc::new([1; PARTITIONS]), &[Some(0), None]);
        assert!(subscriptions.next_command(&names(), &interest).is_none());
    }
}
