//! The histories of a node that is alone: all of them, within one bound.
//!
//! Here the logs are the history itself, so the bound is told: beyond `limits.history_bytes_max` the
//! topic that has been silent longest loses its messages first, and whoever was there before hears
//! `trimmed`, or `epoch` once nothing of it is left. Nothing is forgotten in between.
//!
//! Keys of publishes that may come again are remembered for [`KEYS_TIME`], so that a retry finds the
//! message that it has made already.
//!
//! Invariant: an epoch is never given twice, neither to a topic that comes back nor after a restart
//! of this process: it is a time, and every one is later than the one before.

use crate::backplane::history::log::{Keep, Log};
use crate::ids::{Position, TopicName, UpTo};
use bytes::Bytes;
use hashbrown::HashMap;
use std::collections::VecDeque;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How long the key of a publish is remembered.
pub const KEYS_TIME: Duration = Duration::from_secs(300);
/// Keys that are remembered, at most: the oldest goes early.
const KEYS_MAX: usize = 256 * 1024;
/// A topic without messages is remembered so long: who comes back hears that they missed nothing.
const EMPTY_TIME: Duration = Duration::from_secs(24 * 60 * 60);
/// What a log takes beside its frames: itself, its name, its place in the tables.
const LOG_BYTES: usize = 256;

/// Topics looked at in one tick.
const SWEPT_PER_TICK: usize = 256;

/// See the module.
pub struct MemoryHistories {
    logs: HashMap<TopicName, Kept>,
    /// Every topic once. Whoever stands in front is looked at next, by the sweep and when room is
    /// wanted: then who has spoken since goes behind the others once more.
    round: VecDeque<TopicName>,
    bytes: usize,
    bytes_max: usize,
    last_epoch: u64,
    keys: HashMap<Key, Position>,
    keys_by_age: VecDeque<(Instant, Key)>,
    /// Histories that were given up for want of room.
    pub given_up: u64,
}

/// A publish's key, within its topic.
type Key = (TopicName, Box<str>);

struct Kept {
    log: Log,
    keep: Keep,
    /// What its user has acknowledged; `None`: nobody was told of it yet.
    acked: Option<u64>,
    /// When it last had something to say, or was asked for.
    used: Instant,
    /// Whether that was since it last stood in front.
    is_used: bool,
}

impl MemoryHistories {
    /// No histories, and room for so many bytes of them.
    pub fn new(bytes_max: usize) -> MemoryHistories {
        MemoryHistories {
            logs: HashMap::new(),
            round: VecDeque::new(),
            bytes: 0,
            bytes_max,
            last_epoch: 0,
            keys: HashMap::new(),
            keys_by_age: VecDeque::new(),
            given_up: 0,
        }
    }

    /// What all of them take.
    pub fn bytes(&self) -> usize {
        self.bytes + self.logs.len() * LOG_BYTES
    }

    /// How many topics.
    pub fn topics(&self) -> usize {
        self.logs.len()
    }

    /// The history of a topic; it begins now, if it has none.
    pub fn log(&mut self, topic: &TopicName, keep: Keep, now: Instant) -> &mut Log {
        self.change(topic, keep, now, |log| log.trim(keep, now));
        self.make_room(topic); // one that begins takes some, whether anything is ever said in it
        &mut self.logs.get_mut(topic).expect("it was just used").log
    }

    /// What the user has acknowledged whose topic this is.
    pub fn acked(&self, topic: &TopicName) -> Option<u64> {
        self.logs.get(topic)?.acked
    }

    /// A user has dealt with messages. `false`: they are not of this history.
    pub fn acknowledge(&mut self, topic: &TopicName, up_to: UpTo) -> bool {
        let Some(kept) = self.logs.get_mut(topic) else { return false };
        let Position { epoch, offset } = kept.log.position();
        let is_good = up_to.epoch.is_none_or(|of| of == epoch) && up_to.offset <= offset;
        if is_good {
            kept.acked = kept.acked.max(Some(up_to.offset));
        }
        is_good
    }

    /// Stores the message at [`Log::next`].
    pub fn push(&mut self, topic: &TopicName, body: Bytes, keep: Keep, now: Instant) {
        self.change(topic, keep, now, |log| log.push(body, keep, now));
        self.make_room(topic);
    }

    /// Where the message stands that came with this key, if one did.
    pub fn find_key(&self, topic: &TopicName, key: &str) -> Option<Position> {
        self.keys.get(&(topic.clone(), key.into())).copied()
    }

    /// Remembers where the message stands that came with this key.
    pub fn keep_key(&mut self, topic: &TopicName, key: Box<str>, at: Position, now: Instant) {
        let key = (topic.clone(), key);
        self.keys.insert(key.clone(), at);
        self.keys_by_age.push_back((now, key));
    }

    /// Lets go of what is too old, a little at a time.
    pub fn tick(&mut self, now: Instant) {
        while let Some((since, _)) = self.keys_by_age.front()
            && (now.saturating_duration_since(*since) >= KEYS_TIME
                || self.keys_by_age.len() > KEYS_MAX)
        {
            let (_, key) = self.keys_by_age.pop_front().expect("there is a front");
            self.keys.remove(&key);
        }
        for _ in 0..self.round.len().min(SWEPT_PER_TICK) {
            self.sweep_next(now);
        }
    }

    fn change(
        &mut self,
        topic: &TopicName,
        keep: Keep,
        now: Instant,
        change: impl FnOnce(&mut Log),
    ) {
        if !self.logs.contains_key(topic) {
            let log = Log::new(self.next_epoch(), 0);
            self.logs
                .insert(topic.clone(), Kept { log, keep, acked: None, used: now, is_used: true });
            self.round.push_back(topic.clone());
        }
        let kept = self.logs.get_mut(topic).expect("it is there by now");
        (kept.keep, kept.used, kept.is_used) = (keep, now, true);
        let before = kept.log.bytes();
        change(&mut kept.log);
        self.bytes = self.bytes + kept.log.bytes() - before;
    }

    fn sweep_next(&mut self, now: Instant) {
        let Some(topic) = self.round.pop_front() else { return };
        let kept = self.logs.get_mut(&topic).expect("who stands in the round is there");
        let before = kept.log.bytes();
        kept.log.trim(kept.keep, now);
        self.bytes -= before - kept.log.bytes();
        let silent = now.saturating_duration_since(kept.used);
        if kept.log.is_empty() && silent >= EMPTY_TIME {
            self.logs.remove(&topic);
        } else {
            self.round.push_back(topic);
        }
    }

    /// Gives histories up until all fits, the one that just spoke last of all.
    fn make_room(&mut self, speaker: &TopicName) {
        while self.bytes() > self.bytes_max {
            let Some(topic) = self.round.pop_front() else { return };
            let kept = self.logs.get_mut(&topic).expect("who stands in the round is there");
            let is_alone = self.round.is_empty();
            if std::mem::take(&mut kept.is_used) || (topic == *speaker && !is_alone) {
                self.round.push_back(topic);
                continue;
            }
            if is_alone {
                // One topic fills all there is: its oldest messages go.
                self.bytes -= kept.log.drop_oldest();
                let is_empty = kept.log.is_empty();
                self.round.push_back(topic);
                if is_empty {
                    return;
                }
                continue;
            }
            let kept = self.logs.remove(&topic).expect("it was just looked at");
            self.bytes -= kept.log.bytes();
            self.given_up += 1;
        }
    }

    /// In microseconds: a million rooms that begin in one second must not run ahead of the time, or a
    /// process that starts soon after gives the same epochs again.
    fn next_epoch(&mut self) -> u64 {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.last_epoch = (since_1970.as_micros() as u64).max(self.last_epoch + 1);
        self.last_epoch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEEP: Keep = Keep { messages: 100, time: Duration::from_secs(60) };

    fn body() -> Bytes {
        Bytes::from(vec![b'x'; 1000])
    }

    fn room(number: usize) -> TopicName {
        TopicName::room(&number.to_string())
    }

    #[test]
    fn whoever_has_been_silent_longest_gives_way_and_is_another_history_when_it_returns() {
        let now = Instant::now();
        let mut logs = MemoryHistories::new(10 * (1000 + LOG_BYTES));
        (0..10).for_each(|number| logs.push(&room(number), body(), KEEP, now));
        let epochs: Vec<_> =
            (0..10).map(|n| logs.log(&room(n), KEEP, now).position().epoch).collect();
        assert!(epochs.is_sorted_by(|a, b| a < b), "no epoch is given twice");
        // All were just asked for; the next ones take everybody's mark and then the first place.
        logs.push(&room(10), body(), KEEP, now);
        assert_eq!((logs.topics(), logs.given_up), (10, 1));
        assert!(!logs.logs.contains_key(&room(0)));
        logs.push(&room(1), body(), KEEP, now);
        assert!(logs.logs.contains_key(&room(1)), "it has just spoken");
        assert!(logs.bytes() <= logs.bytes_max);
        let again = logs.log(&room(0), KEEP, now).position();
        assert!(again.epoch > epochs[9] && again.offset == 0);
    }

    #[test]
    fn one_topic_may_fill_all_there_is_and_then_loses_its_oldest_messages() {
        let now = Instant::now();
        let mut logs = MemoryHistories::new(LOG_BYTES + 3500);
        (0..10).for_each(|_| logs.push(&room(0), body(), KEEP, now));
        let log = logs.log(&room(0), KEEP, now);
        assert_eq!((log.first(), log.position().offset), (8, 10));
        assert_eq!(logs.given_up, 0);
        let mut none = MemoryHistories::new(10);
        none.push(&room(0), body(), KEEP, now);
        assert_eq!(none.log(&room(0), KEEP, now).first(), 2, "nothing fits, and nothing hangs");
    }

    #[test]
    fn rooms_in_which_nothing_is_ever_said_give_way_too() {
        let now = Instant::now();
        let mut logs = MemoryHistories::new(10 * LOG_BYTES);
        for number in 0..100 {
            assert_eq!(logs.log(&room(number), KEEP, now).position().offset, 0);
            assert!(logs.bytes() <= logs.bytes_max);
        }
        assert_eq!((logs.topics(), logs.given_up), (10, 90));
    }

    #[test]
    fn time_takes_messages_first_and_a_day_later_the_history() {
        let began = Instant::now();
        let mut logs = MemoryHistories::new(1 << 20);
        logs.push(&room(0), body(), KEEP, began);
        let before = logs.log(&room(0), KEEP, began).position();
        logs.tick(began + Duration::from_secs(61));
        assert_eq!((logs.bytes(), logs.topics()), (LOG_BYTES, 1));
        assert_eq!(logs.log(&room(0), KEEP, began + Duration::from_secs(61)).position(), before);
        logs.tick(began + EMPTY_TIME + Duration::from_secs(62));
        assert_eq!((logs.bytes(), logs.topics()), (0, 0));
    }

    #[test]
    fn what_is_acknowledged_only_rises_and_ends_with_its_history() {
        let now = Instant::now();
        let mut logs = MemoryHistories::new(1 << 20);
        let ann = TopicName::user("ann");
        let up_to = |epoch, offset| UpTo { epoch, offset };
        assert!(!logs.acknowledge(&ann, up_to(None, 0)), "there is none");
        (0..3).for_each(|_| logs.push(&ann, body(), KEEP, now));
        let epoch = logs.log(&ann, KEEP, now).position().epoch;
        assert_eq!(logs.acked(&ann), None);
        for (up_to, is_good, acked) in [
            (up_to(None, 2), true, 2),
            (up_to(Some(epoch), 1), true, 2),
            (up_to(Some(epoch - 1), 3), false, 2),
            (up_to(None, 4), false, 2),
            (up_to(Some(epoch), 3), true, 3),
        ] {
            assert_eq!((logs.acknowledge(&ann, up_to), logs.acked(&ann)), (is_good, Some(acked)));
        }
        logs.tick(now + EMPTY_TIME + KEEP.time);
        assert_eq!(logs.acked(&ann), None);
    }

    #[test]
    fn a_key_is_remembered_for_its_time_and_in_its_topic() {
        let began = Instant::now();
        let mut logs = MemoryHistories::new(1 << 20);
        let at = Position { epoch: 1, offset: 2 };
        logs.keep_key(&room(0), "k".into(), at, began);
        assert_eq!(logs.find_key(&room(0), "k"), Some(at));
        assert_eq!(logs.find_key(&room(1), "k"), None);
        logs.tick(began + KEYS_TIME);
        assert_eq!(logs.find_key(&room(0), "k"), None);
        assert!(logs.keys.is_empty() && logs.keys_by_age.is_empty());
    }
}
