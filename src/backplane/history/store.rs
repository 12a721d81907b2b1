//! All histories of a single node, within one bound.
//!
//! Here the logs are the history itself, so nobody may push out what belongs to others. The first
//! message of a history makes it that of its publisher, who has a share of `limits.history_bytes_max`
//! ([`OwnerShares`]). A client without room for a new history is refused; in one that exists the
//! oldest messages of the same topic are dropped, and a client that returns to it receives `trimmed`.
//! The operator's services are one owner: a new history of theirs takes the place of the least
//! recently used one of theirs, to which a client returns with `epoch`.
//!
//! A client that only asks, by a join or for a page, begins an empty history where there is none.
//! Those have a part of the bound for themselves and replace one another.
//!
//! A history whose messages have all expired holds only its position, for a day. It makes room earlier
//! where a client's new one is refused otherwise.
//!
//! Invariants: an epoch is never given twice, neither to a topic that returns nor after a restart of
//! this process: it is a time, and each is later than the one before. Every history stands in the
//! queue of its class; what stands there and is of another class by now is skipped.

use crate::backplane::history::log::{AckedUpTo, MessageLog, Retention, STORED_BYTES};
use crate::backplane::history::lost_queues::LostQueues;
use crate::backplane::history::owners::{Owner, OwnerId, OwnerShares};
use crate::backplane::topic_table::{HashedTopic, TopicHash, TopicTable};
use crate::ids::{Position, TopicName, UpTo};
use bytes::Bytes;
use std::collections::VecDeque;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How long a history without messages stays: a client that returns to it has missed nothing.
const EMPTY_TTL: Duration = Duration::from_secs(24 * 60 * 60);
/// Bytes of a history beside its messages and its name: itself, and its entries in tables.
const LOG_BYTES: usize = 384;

/// Histories that are looked at for an expired one before a client is refused.
const EXPIRED_LOOKS: usize = 64;

/// Topics of one class swept in one tick.
const SWEPT_PER_TICK: usize = 128;

/// Histories that were only asked for have a part of the bound: a sixteenth, but so much at least.
const ASKED_BYTES_MIN: usize = 4096;
/// One owner has so much at least, where the bound allows: a message of the largest size fits.
const OWNER_BYTES_MIN: usize = 128 * 1024;

/// The histories of the embedded backplane, which owns it.
pub struct MemoryHistories {
    histories: TopicTable<StoredHistory>,
    /// By [`HistoryClass`]. The front is next, both for the sweep and for eviction; a topic used since
    /// its last turn goes to the back once more.
    queues: [VecDeque<(TopicHash, TopicName)>; 3],
    asked_bytes: usize,
    asked_bytes_max: usize,
    shares: OwnerShares,
    last_epoch: u64,
    lost_queues: LostQueues,
    /// Histories evicted to make room for others of the same class, since the start.
    pub evicted: u64,
    /// Messages dropped because the owner of their history has no more room, since the start.
    pub dropped: u64,
}

/// Whose place a history may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HistoryClass {
    /// Without a message since it began.
    Asked,
    OfClients,
    OfServices,
}

struct StoredHistory {
    log: MessageLog,
    retention: Retention,
    /// What its user has acknowledged.
    acknowledged: AckedUpTo,
    /// Who has published its first message.
    owner: Option<OwnerId>,
    /// When it was last published to or asked for.
    last_used: Instant,
    /// Whether it was used since its last turn at the front.
    was_used: bool,
}

impl StoredHistory {
    fn class(&self) -> HistoryClass {
        match self.owner {
            None => HistoryClass::Asked,
            Some(OwnerId::SERVICE) => HistoryClass::OfServices,
            Some(_) => HistoryClass::OfClients,
        }
    }
}

impl MemoryHistories {
    /// No histories, and room for `bytes_max` bytes of them.
    pub fn new(bytes_max: usize) -> MemoryHistories {
        let asked_bytes_max = (bytes_max / 16).max(ASKED_BYTES_MIN.min(bytes_max / 2));
        MemoryHistories {
            histories: TopicTable::default(),
            queues: [const { VecDeque::new() }; 3],
            asked_bytes: 0,
            asked_bytes_max,
            shares: OwnerShares::new(bytes_max - asked_bytes_max, OWNER_BYTES_MIN),
            last_epoch: 0,
            lost_queues: LostQueues::default(),
            evicted: 0,
            dropped: 0,
        }
    }

    /// Bytes of all histories.
    pub fn bytes(&self) -> usize {
        self.asked_bytes + self.shares.all()
    }

    /// Number of topics with a history.
    pub fn topics(&self) -> usize {
        self.histories.len()
    }

    /// The log of a topic for a client that only asks. It begins now if there is none.
    pub fn log_to_ask(
        &mut self,
        topic: &TopicName,
        retention: Retention,
        now: Instant,
    ) -> &mut MessageLog {
        let hash = HashedTopic::from(topic).hash();
        let known = HashedTopic::known(topic.as_str(), hash);
        if self.histories.get(known).is_none() {
            self.make_room_for_asked(empty_bytes(topic));
            self.asked_bytes += empty_bytes(topic);
            self.insert((topic, hash), None, retention, now);
        }
        self.update(known, retention, now, |log| log.trim(retention, now));
        &mut self.histories.get_mut(known).expect("it was just used").log
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
    /// `None`: its publisher has no room for the history that it would begin, or the message is too
    /// large for one.
    pub fn append(
        &mut self,
        (topic, hash): (&TopicName, TopicHash),
        body: Bytes,
        owner: Owner<'_>,
        retention: Retention,
        now: Instant,
    ) -> Option<Position> {
        let bytes = STORED_BYTES + body.len();
        let known = HashedTopic::known(topic.as_str(), hash);
        self.update(known, retention, now, |log| log.trim(retention, now));
        let owned = self.histories.get(known).and_then(|history| history.owner);
        let has_room = match owned {
            Some(owner) => self.make_room_in((topic, hash), owner, bytes),
            None => self.begin((topic, hash), owner, bytes, retention, now),
        };
        if !has_room {
            return None;
        }
        self.update(known, retention, now, |log| {
            let at = log.next();
            log.push(body, retention, now);
            at
        })
    }

    /// Drops expired messages and histories, a bounded number at a time.
    pub fn tick(&mut self, now: Instant) {
        for class in [HistoryClass::Asked, HistoryClass::OfClients, HistoryClass::OfServices] {
            for _ in 0..self.queues[class as usize].len().min(SWEPT_PER_TICK) {
                self.sweep_next(class, now);
            }
        }
    }

    /// Changes the log of a topic, if it has one.
    fn update<T>(
        &mut self,
        topic: HashedTopic<'_>,
        retention: Retention,
        now: Instant,
        update: impl FnOnce(&mut MessageLog) -> T,
    ) -> Option<T> {
        let history = self.histories.get_mut(topic)?;
        (history.retention, history.last_used, history.was_used) = (retention, now, true);
        let before = history.log.bytes();
        let result = update(&mut history.log);
        let after = history.log.bytes();
        if let Some(owner) = history.owner {
            match after >= before {
                true => self.shares.grow(owner, after - before),
                false => self.shares.shrink(owner, before - after),
            }
        }
        Some(result)
    }

    fn insert(
        &mut self,
        (topic, hash): (&TopicName, TopicHash),
        owner: Option<OwnerId>,
        retention: Retention,
        now: Instant,
    ) {
        let log = MessageLog::new(next_epoch(&mut self.last_epoch), 0);
        let acknowledged = self.lost_queues.take(hash);
        let (last_used, was_used) = (now, true);
        let history = StoredHistory { log, retention, acknowledged, owner, last_used, was_used };
        self.queues[history.class() as usize].push_back((hash, topic.clone()));
        self.histories.get_or_insert_with(topic, hash, || history);
    }

    /// A publisher begins a history with a message of so many bytes. `false`: it has no room.
    fn begin(
        &mut self,
        (topic, hash): (&TopicName, TopicHash),
        owner: Owner<'_>,
        bytes: usize,
        retention: Retention,
        now: Instant,
    ) -> bool {
        let empty = empty_bytes(topic);
        if self.shares.room(owner) < empty + bytes {
            match owner {
                Owner::Service => self.evict_of_services(empty + bytes, topic),
                Owner::User(_) | Owner::Anonymous(_) => self.evict_expired(now),
            }
            if self.shares.room(owner) < empty + bytes {
                return false;
            }
        }
        let owner = self.shares.begin(owner, empty);
        match self.histories.get_mut(HashedTopic::known(topic.as_str(), hash)) {
            None => self.insert((topic, hash), Some(owner), retention, now),
            Some(asked) => {
                asked.owner = Some(owner);
                self.asked_bytes -= empty;
                self.queues[asked.class() as usize].push_back((hash, topic.clone()));
            }
        }
        true
    }

    /// Makes room for a message in a history that has an owner. `false`: it is larger than all that
    /// the owner may have.
    fn make_room_in(
        &mut self,
        (topic, hash): (&TopicName, TopicHash),
        owner: OwnerId,
        bytes: usize,
    ) -> bool {
        if self.shares.room_of(owner) >= bytes {
            return true;
        }
        if owner == OwnerId::SERVICE {
            self.evict_of_services(bytes, topic);
        }
        let history = self.histories.get_mut(HashedTopic::known(topic.as_str(), hash));
        let log = &mut history.expect("it has an owner").log;
        if self.shares.room_of(owner) + log.bytes() < bytes {
            return false;
        }
        while self.shares.room_of(owner) < bytes {
            self.shares.shrink(owner, log.drop_oldest());
            self.dropped += 1;
        }
        true
    }

    /// Takes the next of a class out of its queue, if it is still one of them.
    fn pop(&mut self, class: HistoryClass) -> Option<(TopicHash, TopicName)> {
        let (hash, name) = self.queues[class as usize].pop_front()?;
        let history = self.histories.get(HashedTopic::known(name.as_str(), hash));
        history.is_some_and(|history| history.class() == class).then_some((hash, name))
    }

    fn remove(&mut self, (hash, name): (TopicHash, TopicName)) {
        let removed = self.histories.remove(HashedTopic::known(name.as_str(), hash));
        let StoredHistory { log, acknowledged, owner, .. } = removed.expect("it was just found");
        match owner {
            None => self.asked_bytes -= empty_bytes(&name),
            Some(owner) => self.shares.shrink(owner, log.bytes() + empty_bytes(&name)),
        }
        self.lost_queues.note(&name, hash, &log, acknowledged);
    }

    fn sweep_next(&mut self, class: HistoryClass, now: Instant) {
        let Some((hash, name)) = self.pop(class) else { return };
        match self.has_expired((hash, &name), EMPTY_TTL, now) {
            true => self.remove((hash, name)),
            false => self.queues[class as usize].push_back((hash, name)),
        }
    }

    /// Drops the expired messages of a history. Whether none is left, and it was unused for so long.
    fn has_expired(
        &mut self,
        (hash, name): (TopicHash, &TopicName),
        unused: Duration,
        now: Instant,
    ) -> bool {
        let history = self.histories.get_mut(HashedTopic::known(name.as_str(), hash));
        let history = history.expect("it was just found");
        let before = history.log.bytes();
        history.log.trim(history.retention, now);
        if let Some(owner) = history.owner {
            self.shares.shrink(owner, before - history.log.bytes());
        }
        history.log.is_empty() && now.saturating_duration_since(history.last_used) >= unused
    }

    /// Evicts histories of clients of which all messages have expired, if some are found.
    fn evict_expired(&mut self, now: Instant) {
        let class = HistoryClass::OfClients;
        for _ in 0..self.queues[class as usize].len().min(EXPIRED_LOOKS) {
            let Some((hash, name)) = self.pop(class) else { continue };
            match self.has_expired((hash, &name), Duration::ZERO, now) {
                true => self.evict((hash, name)),
                false => self.queues[class as usize].push_back((hash, name)),
            }
        }
    }

    /// Evicts histories that were only asked for until another one fits.
    fn make_room_for_asked(&mut self, bytes: usize) {
        let asked = HistoryClass::Asked as usize;
        while self.asked_bytes + bytes > self.asked_bytes_max && !self.queues[asked].is_empty() {
            if let Some(oldest) = self.pop(HistoryClass::Asked) {
                self.evict(oldest);
            }
        }
    }

    /// Evicts histories of services, the least recently used ones first, until so many bytes fit.
    /// `spared` is not one of them.
    fn evict_of_services(&mut self, bytes: usize, spared: &TopicName) {
        let class = HistoryClass::OfServices;
        // Each is looked at twice at most: the first time its mark of use is taken from it.
        for _ in 0..2 * self.queues[class as usize].len() {
            if self.shares.room_of(OwnerId::SERVICE) >= bytes {
                return;
            }
            let Some((hash, name)) = self.pop(class) else { continue };
            let history = self.histories.get_mut(HashedTopic::known(name.as_str(), hash));
            let was_used = std::mem::take(&mut history.expect("it was just found").was_used);
            match was_used || name == *spared {
                true => self.queues[class as usize].push_back((hash, name)),
                false => self.evict((hash, name)),
            }
        }
    }

    fn evict(&mut self, topic: (TopicHash, TopicName)) {
        self.remove(topic);
        self.evicted += 1;
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
    use crate::ids::ANONYMOUS_PREFIX;

    const RETENTION: Retention = Retention { messages_max: 100, age_max: Duration::from_secs(60) };

    /// A history without messages, of a room with two digits.
    const EMPTY_BYTES: usize = LOG_BYTES + "r:00".len();

    fn body() -> Bytes {
        Bytes::from(vec![b'x'; 1000])
    }

    /// What a history with one message of [`body`] takes.
    const ONE_BYTES: usize = EMPTY_BYTES + STORED_BYTES + 1000;

    impl MemoryHistories {
        /// A service publishes.
        fn push(&mut self, topic: &TopicName, body: Bytes, retention: Retention, now: Instant) {
            _ = self.push_of(Owner::Service, topic, body, retention, now);
        }

        fn push_of(
            &mut self,
            owner: Owner<'_>,
            topic: &TopicName,
            body: Bytes,
            retention: Retention,
            now: Instant,
        ) -> bool {
            let hash = HashedTopic::from(topic).hash();
            self.append((topic, hash), body, owner, retention, now).is_some()
        }

        fn log(&mut self, topic: &TopicName, retention: Retention, now: Instant) -> &MessageLog {
            self.log_to_ask(topic, retention, now)
        }

        /// With so much room for those with messages.
        fn with_room(bytes: usize) -> MemoryHistories {
            let histories = MemoryHistories::new(bytes + ASKED_BYTES_MIN);
            assert_eq!(histories.asked_bytes_max, ASKED_BYTES_MIN, "a test with little room");
            histories
        }
    }

    fn room(number: usize) -> TopicName {
        TopicName::room(&format!("{number:02}"))
    }

    #[test]
    fn a_history_of_services_takes_the_place_of_the_least_recently_used_one_of_theirs() {
        let now = Instant::now();
        let mut histories = MemoryHistories::with_room(10 * ONE_BYTES);
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
        assert!(histories.bytes() <= 10 * ONE_BYTES);
        let again = histories.log(&room(0), RETENTION, now).position();
        assert!(again.epoch > epochs[9] && again.offset == 0);
    }

    #[test]
    fn one_topic_may_fill_all_the_room_and_then_loses_its_oldest_messages() {
        let now = Instant::now();
        for is_of_service in [true, false] {
            let ann = TopicName::user("ann");
            let owner = if is_of_service { Owner::Service } else { Owner::User(&ann) };
            let mut histories = MemoryHistories::with_room(2 * (ONE_BYTES + 3500));
            let push = |histories: &mut MemoryHistories, bytes: usize| {
                let body = Bytes::from(vec![b'x'; bytes]);
                histories.push_of(owner, &room(0), body, RETENTION, now)
            };
            (0..20).for_each(|_| assert!(push(&mut histories, 1000)));
            let log = histories.log(&room(0), RETENTION, now);
            let (first, end, stored) = (log.first(), log.position().offset, log.bodies().count());
            assert_eq!((end, first), (20, 21 - stored as u64));
            assert!((5..10).contains(&stored), "{stored}");
            assert!(!push(&mut histories, 10_000), "it never fits");
            assert_eq!(histories.log(&room(0), RETENTION, now).bodies().count(), stored);
            assert_eq!((histories.evicted, histories.dropped), (0, 20 - stored as u64));
        }
        let mut none = MemoryHistories::new(10);
        none.push(&room(0), body(), RETENTION, now);
        assert!(none.log(&room(0), RETENTION, now).is_empty(), "nothing fits, and nothing hangs");
    }

    #[test]
    fn histories_without_messages_replace_one_another() {
        let now = Instant::now();
        let mut histories = MemoryHistories::new(10 * ASKED_BYTES_MIN);
        for number in 0..100 {
            assert_eq!(histories.log(&room(number), RETENTION, now).position().offset, 0);
            assert!(histories.bytes() <= ASKED_BYTES_MIN);
        }
        let fit = ASKED_BYTES_MIN / EMPTY_BYTES;
        assert_eq!((histories.topics(), histories.evicted), (fit, (100 - fit) as u64));
    }

    #[test]
    fn thousands_of_new_rooms_of_strangers_evict_nobody_elses_history() {
        let now = Instant::now();
        let mut histories = MemoryHistories::new(16 << 20);
        let names = ["ann", "bob"].map(TopicName::user);
        let owners = [Owner::User(&names[0]), Owner::User(&names[1]), Owner::Service];
        for (at, owner) in owners.into_iter().enumerate() {
            (0..200).for_each(|n| {
                assert!(histories.push_of(owner, &room(1000 * at + n), body(), RETENTION, now));
            });
        }
        let mut refused = 0;
        for client in 0..100 {
            let name = TopicName::user(&format!("{ANONYMOUS_PREFIX}{client}"));
            for number in 0..300 {
                let room = room(10_000 + 1000 * client + number);
                let owner = Owner::Anonymous(&name);
                refused += usize::from(!histories.push_of(owner, &room, body(), RETENTION, now));
            }
        }
        let taken = 100 * 300 - refused;
        let half = (16 << 20) * 15 / 16 / 2;
        assert!((half / 100 * 99..=half).contains(&(taken * ONE_BYTES)), "{taken}");
        for (at, owner) in owners.into_iter().enumerate() {
            for n in 0..200 {
                let log = histories.log(&room(1000 * at + n), RETENTION, now);
                assert_eq!(log.bodies().count(), 1, "{owner:?} {n}");
            }
            let another = room(1000 * at + 999);
            assert!(histories.push_of(owner, &another, body(), RETENTION, now), "{owner:?}");
        }
        assert_eq!(histories.evicted, 0);
    }

    #[test]
    fn a_client_that_was_refused_has_room_again_when_messages_have_expired() {
        let began = Instant::now();
        let mut histories = MemoryHistories::with_room(20 * ONE_BYTES);
        let ann = TopicName::user("ann");
        let push = |histories: &mut MemoryHistories, number: usize, now: Instant| {
            histories.push_of(Owner::User(&ann), &room(number), body(), RETENTION, now)
        };
        let stored = (0..40).filter(|number| push(&mut histories, *number, began)).count();
        assert_eq!(stored, 15, "three quarters");
        let later = began + RETENTION.age_max;
        assert!(push(&mut histories, 50, later));
        assert!(histories.bytes() <= 20 * ONE_BYTES);
        assert!(histories.evicted > 0, "those that had nothing left");
    }

    #[test]
    fn an_empty_history_belongs_to_who_publishes_first() {
        let now = Instant::now();
        let mut histories = MemoryHistories::new(1 << 20);
        let epoch = histories.log(&room(0), RETENTION, now).position().epoch;
        let [ann, bob] = ["ann", "bob"].map(TopicName::user);
        for (name, stored) in [(&ann, 1), (&bob, 2)] {
            assert!(histories.push_of(Owner::User(name), &room(0), body(), RETENTION, now));
            let log = histories.log(&room(0), RETENTION, now);
            assert_eq!((log.position().epoch, log.bodies().count()), (epoch, stored));
        }
        let room_of = |name| histories.shares.room(Owner::User(name));
        let taken = ONE_BYTES + STORED_BYTES + 1000;
        assert_eq!((room_of(&bob) - room_of(&ann), histories.asked_bytes), (taken, 0));
        assert_eq!(histories.bytes(), taken);
        // Its place in the queue of its class before is skipped.
        (0..50).for_each(|number| _ = histories.log(&room(100 + number), RETENTION, now));
        histories.make_room_for_asked(histories.asked_bytes_max);
        assert_eq!((histories.topics(), histories.bytes()), (1, taken));
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

        let mut crowded = MemoryHistories::new(2 * (LOG_BYTES + 1500));
        [&ann, &bob, &bob].iter().for_each(|user| crowded.push(user, body(), RETENTION, now));
        assert_eq!((crowded.evicted, crowded.acknowledged(&ann)), (1, AckedUpTo::QueueLost));
    }

    #[test]
    fn who_only_asks_takes_the_place_of_empty_histories_only() {
        let now = Instant::now();
        let mut full = MemoryHistories::with_room(4 * ONE_BYTES);
        (0..4).for_each(|number| full.push(&room(number), body(), RETENTION, now));
        (1000..1500).for_each(|n| _ = full.log_to_ask(&room(n), RETENTION, now));
        assert!(full.bytes() <= 4 * ONE_BYTES + ASKED_BYTES_MIN);
        for number in 0..4 {
            assert!(!full.log_to_ask(&room(number), RETENTION, now).is_empty(), "{number}");
        }
    }
}
