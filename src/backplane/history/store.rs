//! All histories of a single node, within one bound.
//!
//! Here the logs are the history itself, so reaching the bound is visible: beyond
//! `limits.history_bytes_max` the least recently used topic loses its messages first, and a client
//! that returns to it receives `trimmed`, or `epoch` once the history is gone.
//!
//! A client that only asks, by a join or for a page, begins an empty history where there is none. It
//! takes the place of another empty one, so many of them push out hardly any that has messages.
//!
//! Invariant: an epoch is never given twice, neither to a topic that returns nor after a restart of
//! this process: it is a time, and each is later than the one before.

use crate::backplane::history::log::{AckedUpTo, MessageLog, Retention};
use crate::backplane::history::lost_queues::LostQueues;
use crate::backplane::topic_table::{HashedTopic, TopicHash, TopicTable};
use crate::ids::{Position, TopicName, UpTo};
use bytes::Bytes;
use std::collections::VecDeque;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How long a history without messages stays: a client that returns to it has missed nothing.
const EMPTY_TTL: Duration = Duration::from_secs(24 * 60 * 60);
/// Bytes of a history beside its messages and its name: itself, and its entries in tables.
const LOG_BYTES: usize = 384;

/// Histories that are looked at for an empty one.
const EMPTY_LOOKS: usize = 64;

/// Topics swept in one tick.
const SWEPT_PER_TICK: usize = 256;

/// The histories of the embedded backplane, which owns it.
pub struct MemoryHistories {
    histories: TopicTable<StoredHistory>,
    /// Every topic once. The front is next, both for the sweep and for eviction; a topic used since
    /// its last turn goes to the back once more.
    eviction_queue: VecDeque<(TopicHash, TopicName)>,
    bytes: usize,
    bytes_max: usize,
    last_epoch: u64,
    lost_queues: LostQueues,
    /// Histories evicted to stay within the bound, since the start.
    pub evicted: u64,
}

struct StoredHistory {
    log: MessageLog,
    retention: Retention,
    /// What its user has acknowledged.
    acknowledged: AckedUpTo,
    /// When it was last published to or asked for.
    last_used: Instant,
    /// Whether it was used since its last turn at the front.
    was_used: bool,
}

impl MemoryHistories {
    /// No histories, and room for `bytes_max` bytes of them.
    pub fn new(bytes_max: usize) -> MemoryHistories {
        MemoryHistories {
            histories: TopicTable::default(),
            eviction_queue: VecDeque::new(),
            bytes: 0,
            bytes_max,
            last_epoch: 0,
            lost_queues: LostQueues::default(),
            evicted: 0,
        }
    }

    /// Bytes of all histories.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Number of topics with a history.
    pub fn topics(&self) -> usize {
        self.histories.len()
    }

    /// The log of a topic, which begins now if it has none.
    pub fn log(
        &mut self,
        topic: &TopicName,
        retention: Retention,
        now: Instant,
    ) -> &mut MessageLog {
        let hash = HashedTopic::from(topic).hash();
        self.update(topic, hash, retention, now, |log| log.trim(retention, now));
        self.make_room(topic); // a new history takes room even without messages
        let topic = HashedTopic::known(topic.as_str(), hash);
        &mut self.histories.get_mut(topic).expect("it was just used").log
    }

    /// The log of a topic for a client that only asks. A new one takes the place of an older one that
    /// is empty as well; only if none is found, that of the least recently used.
    pub fn log_to_ask(
        &mut self,
        topic: &TopicName,
        retention: Retention,
        now: Instant,
    ) -> &mut MessageLog {
        if self.histories.get(topic).is_none() {
            self.make_room_for_empty(topic);
        }
        self.log(topic, retention, now)
    }

    /// What the user of this topic has acknowledged.
    pub fn acknowledged(&self, topic: &TopicName) -> AckedUpTo {
        let before = || self.lost_queues.acked_before(HashedTopic::from(topic).hash());
        self.histories.get(topic).map_or_else(before, |history| history.acknowledged)
    }

    /// Records an acknowledgement. `false`: it is not of this history.
    pub fn acknowledge(&mut self, topic: &TopicName, up_to: UpTo) -> bool {
        let Some(history) = self.histories.get_mut(topic) else { return false };
        let Position { epoch, offset } = history.log.position();
        let is_good = up_to.epoch.is_none_or(|of| of == epoch) && up_to.offset <= offset;
        if is_good {
            let before = match history.acknowledged {
                AckedUpTo::Offset(offset) => offset,
                AckedUpTo::NewUser | AckedUpTo::QueueLost => 0,
            };
            history.acknowledged = AckedUpTo::Offset(before.max(up_to.offset));
        }
        is_good
    }

    /// Stores a message at [`MessageLog::next`], which is returned. `hash`: that of `topic`.
    pub fn append(
        &mut self,
        topic: &TopicName,
        hash: TopicHash,
        body: Bytes,
        retention: Retention,
        now: Instant,
    ) -> Position {
        let at = self.update(topic, hash, retention, now, |log| {
            let at = log.next();
            log.push(body, retention, now);
            at
        });
        self.make_room(topic);
        at
    }

    /// Drops expired messages and histories, a bounded number at a time.
    pub fn tick(&mut self, now: Instant) {
        for _ in 0..self.eviction_queue.len().min(SWEPT_PER_TICK) {
            self.sweep_next(now);
        }
    }

    fn update<T>(
        &mut self,
        topic: &TopicName,
        hash: TopicHash,
        retention: Retention,
        now: Instant,
        update: impl FnOnce(&mut MessageLog) -> T,
    ) -> T {
        let (eviction_queue, last_epoch) = (&mut self.eviction_queue, &mut self.last_epoch);
        let (bytes, lost_queues) = (&mut self.bytes, &mut self.lost_queues);
        let history = self.histories.get_or_insert_with(topic, hash, || {
            eviction_queue.push_back((hash, topic.clone()));
            *bytes += empty_bytes(topic);
            let log = MessageLog::new(next_epoch(last_epoch), 0);
            let (acknowledged, last_used, was_used) = (lost_queues.take(hash), now, true);
            StoredHistory { log, retention, acknowledged, last_used, was_used }
        });
        (history.retention, history.last_used, history.was_used) = (retention, now, true);
        let before = history.log.bytes();
        let result = update(&mut history.log);
        self.bytes = self.bytes + history.log.bytes() - before;
        result
    }

    fn sweep_next(&mut self, now: Instant) {
        let Some((hash, name)) = self.eviction_queue.pop_front() else { return };
        let topic = HashedTopic::known(name.as_str(), hash);
        let history =
            self.histories.get_mut(topic).expect("every topic of the queue has a history");
        let before = history.log.bytes();
        history.log.trim(history.retention, now);
        self.bytes -= before - history.log.bytes();
        let unused_for = now.saturating_duration_since(history.last_used);
        if history.log.is_empty() && unused_for >= EMPTY_TTL {
            let expired = self.histories.remove(topic).expect("it was just looked at");
            self.bytes -= empty_bytes(&name);
            self.lost_queues.note(&name, hash, &expired.log, expired.acknowledged);
        } else {
            self.eviction_queue.push_back((hash, name));
        }
    }

    /// Evicts histories in which nothing was ever stored until another one fits, if some are found.
    fn make_room_for_empty(&mut self, topic: &TopicName) {
        let bytes = empty_bytes(topic);
        for _ in 0..self.eviction_queue.len().min(EMPTY_LOOKS) {
            if self.bytes() + bytes <= self.bytes_max {
                return;
            }
            let (hash, name) = self.eviction_queue.pop_front().expect("it is not empty");
            let topic = HashedTopic::known(name.as_str(), hash);
            let history = self.histories.get_mut(topic).expect("every topic there has a history");
            match history.log.is_empty() && history.log.position().offset == 0 {
                true => {
                    self.histories.remove(topic);
                    self.bytes -= empty_bytes(&name);
                    self.evicted += 1;
                }
                false => self.eviction_queue.push_back((hash, name)),
            }
        }
    }

    /// Evicts histories until all fit; `spared`, which has just been used, last.
    fn make_room(&mut self, spared: &TopicName) {
        while self.bytes() > self.bytes_max {
            let Some((hash, name)) = self.eviction_queue.pop_front() else { return };
            let topic = HashedTopic::known(name.as_str(), hash);
            let history =
                self.histories.get_mut(topic).expect("every topic of the queue has a history");
            let is_alone = self.eviction_queue.is_empty();
            if std::mem::take(&mut history.was_used) || (name == *spared && !is_alone) {
                self.eviction_queue.push_back((hash, name));
                continue;
            }
            if is_alone {
                // One topic fills all the room: its oldest messages are dropped.
                self.bytes -= history.log.drop_oldest();
                let is_empty = history.log.is_empty();
                self.eviction_queue.push_back((hash, name));
                if is_empty {
                    return;
                }
                continue;
            }
            let history = self.histories.remove(topic).expect("it was just looked at");
            self.bytes -= history.log.bytes() + empty_bytes(&name);
            self.lost_queues.note(&name, hash, &history.log, history.acknowledged);
            self.evicted += 1;
        }
    }
}

/// Bytes of a history without messages.
fn empty_bytes(topic: &TopicName) -> usize {
    LOG_BYTES + topic.as_str().len()
}

/// In microseconds: a million topics that begin in one second must not run ahead of the clock, or a
/// process started soon after would give the same epochs again.
fn next_epoch(last_epoch: &mut u64) -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    *last_epoch = (since_1970.as_micros() as u64).max(*last_epoch + 1);
    *last_epoch
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backplane::history::log::STORED_BYTES;

    const RETENTION: Retention = Retention { messages_max: 100, age_max: Duration::from_secs(60) };

    /// A history without messages, of a room with two digits.
    const EMPTY_BYTES: usize = LOG_BYTES + "r:00".len();

    fn body() -> Bytes {
        Bytes::from(vec![b'x'; 1000])
    }

    impl MemoryHistories {
        fn push(&mut self, topic: &TopicName, body: Bytes, retention: Retention, now: Instant) {
            self.append(topic, HashedTopic::from(topic).hash(), body, retention, now);
        }
    }

    fn room(number: usize) -> TopicName {
        TopicName::room(&format!("{number:02}"))
    }

    #[test]
    fn the_least_recently_used_history_is_evicted_and_returns_under_another_epoch() {
        let now = Instant::now();
        let mut histories = MemoryHistories::new(10 * (1000 + STORED_BYTES + EMPTY_BYTES));
        (0..10).for_each(|number| histories.push(&room(number), body(), RETENTION, now));
        let epochs: Vec<_> =
            (0..10).map(|n| histories.log(&room(n), RETENTION, now).position().epoch).collect();
        assert!(epochs.is_sorted_by(|a, b| a < b), "no epoch is given twice");
        // All were just used; the next push clears every mark and then evicts the front.
        histories.push(&room(10), body(), RETENTION, now);
        assert_eq!((histories.topics(), histories.evicted), (10, 1));
        assert!(histories.histories.get(&room(0)).is_none());
        histories.push(&room(1), body(), RETENTION, now);
        assert!(histories.histories.get(&room(1)).is_some(), "it was just used");
        assert!(histories.bytes() <= histories.bytes_max);
        let again = histories.log(&room(0), RETENTION, now).position();
        assert!(again.epoch > epochs[9] && again.offset == 0);
    }

    #[test]
    fn one_topic_may_fill_all_the_room_and_then_loses_its_oldest_messages() {
        let now = Instant::now();
        let mut histories = MemoryHistories::new(EMPTY_BYTES + 3500 + 3 * STORED_BYTES);
        (0..10).for_each(|_| histories.push(&room(0), body(), RETENTION, now));
        let log = histories.log(&room(0), RETENTION, now);
        assert_eq!((log.first(), log.position().offset), (8, 10));
        assert_eq!(histories.evicted, 0);
        let mut none = MemoryHistories::new(10);
        none.push(&room(0), body(), RETENTION, now);
        assert_eq!(
            none.log(&room(0), RETENTION, now).first(),
            2,
            "nothing fits, and nothing hangs"
        );
    }

    #[test]
    fn histories_without_messages_are_evicted_too() {
        let now = Instant::now();
        let mut histories = MemoryHistories::new(10 * EMPTY_BYTES);
        for number in 0..100 {
            assert_eq!(histories.log(&room(number), RETENTION, now).position().offset, 0);
            assert!(histories.bytes() <= histories.bytes_max);
        }
        assert_eq!((histories.topics(), histories.evicted), (10, 90));
    }

    #[test]
    fn messages_expire_first_and_a_day_later_the_history() {
        let began = Instant::now();
        let mut histories = MemoryHistories::new(1 << 20);
        histories.push(&room(0), body(), RETENTION, began);
        let before = histories.log(&room(0), RETENTION, began).position();
        histories.tick(began + Duration::from_secs(61));
        assert_eq!((histories.bytes(), histories.topics()), (EMPTY_BYTES, 1));
        assert_eq!(
            histories.log(&room(0), RETENTION, began + Duration::from_secs(61)).position(),
            before
        );
        histories.tick(began + EMPTY_TTL + Duration::from_secs(62));
        assert_eq!((histories.bytes(), histories.topics()), (0, 0));
    }

    #[test]
    fn an_acknowledgement_only_rises_and_ends_with_its_history() {
        let now = Instant::now();
        let mut histories = MemoryHistories::new(1 << 20);
        let ann = TopicName::user("ann");
        let up_to = |epoch, offset| UpTo { epoch, offset };
        assert!(!histories.acknowledge(&ann, up_to(None, 0)), "there is none");
        (0..3).for_each(|_| histories.push(&ann, body(), RETENTION, now));
        let epoch = histories.log(&ann, RETENTION, now).position().epoch;
        assert_eq!(histories.acknowledged(&ann), AckedUpTo::NewUser);
        for (up_to, is_good, acknowledged) in [
            (up_to(None, 2), true, 2),
            (up_to(Some(epoch), 1), true, 2),
            (up_to(Some(epoch - 1), 3), false, 2),
            (up_to(None, 4), false, 2),
            (up_to(Some(epoch), 3), true, 3),
        ] {
            assert_eq!(
                (histories.acknowledge(&ann, up_to), histories.acknowledged(&ann)),
                (is_good, AckedUpTo::Offset(acknowledged))
            );
        }
        histories.tick(now + EMPTY_TTL + RETENTION.age_max);
        assert_eq!(histories.acknowledged(&ann), AckedUpTo::NewUser, "it had received all of it");
    }

    #[test]
    fn a_queue_that_expired_or_was_evicted_with_unacknowledged_messages_is_remembered_as_lost() {
        let now = Instant::now();
        let [ann, bob] = ["ann", "bob"].map(TopicName::user);
        let mut expiring = MemoryHistories::new(1 << 20);
        expiring.push(&ann, body(), RETENTION, now);
        let later = now + EMPTY_TTL + RETENTION.age_max;
        expiring.tick(later);
        assert_eq!(expiring.acknowledged(&ann), AckedUpTo::QueueLost);
        assert_eq!(expiring.acknowledged(&bob), AckedUpTo::NewUser);
        expiring.log(&ann, RETENTION, later);
        assert_eq!(expiring.acknowledged(&ann), AckedUpTo::QueueLost, "not reported yet");
        assert!(expiring.acknowledge(&ann, UpTo { epoch: None, offset: 0 }));
        assert_eq!(expiring.acknowledged(&ann), AckedUpTo::Offset(0), "reported once");

        let mut crowded = MemoryHistories::new(LOG_BYTES + 1500);
        [&ann, &bob, &bob].iter().for_each(|user| crowded.push(user, body(), RETENTION, now));
        assert_eq!((crowded.evicted, crowded.acknowledged(&ann)), (1, AckedUpTo::QueueLost));
    }

    #[test]
    fn who_only_asks_takes_the_place_of_empty_histories_first() {
        let now = Instant::now();
        let mut histories = MemoryHistories::new(4 * (1000 + STORED_BYTES + EMPTY_BYTES));
        (0..3).for_each(|number| histories.push(&room(number), body(), RETENTION, now));
        let asks = |histories: &mut MemoryHistories, from: usize| {
            (from..from + 500).for_each(|n| _ = histories.log_to_ask(&room(n), RETENTION, now));
        };
        asks(&mut histories, 1000);
        assert!(histories.bytes() <= histories.bytes_max);
        for number in 0..3 {
            assert!(!histories.log_to_ask(&room(number), RETENTION, now).is_empty(), "{number}");
        }
        let mut full = MemoryHistories::new(4 * (1000 + STORED_BYTES + EMPTY_BYTES));
        (0..4).for_each(|number| full.push(&room(number), body(), RETENTION, now));
        asks(&mut full, 1000);
        let left = (0..4).filter(|n| full.histories.get(&room(*n)).is_some()).count();
        assert_eq!(left, 3, "the first of them takes one place, and the others that one");
    }
}
