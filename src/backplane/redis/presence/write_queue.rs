//! Presence entries not yet written to Redis: users whose entry may differ from their state here.
//!
//! It is no log of changes. What is written is the state at that time; the queue has only whom to
//! write, and whether an event is published. So a write that fails is simply put back.
//!
//! Rooms are queued by partition: the server is looked up when they are taken, so nothing here
//! moves when a partition does. Partitions are taken in turns.
//!
//! Invariant: a room is in its partition's queue exactly while it has users to write, and no queue
//! is empty.

use crate::backplane::partition::partition;
use crate::backplane::redis::partition_set::PartitionSet;
use crate::ids::TopicName;
use crate::link::Origin;
use hashbrown::HashMap;
use std::collections::VecDeque;

/// A user who is queued: its places in the order and in the table, and the name of one who is gone.
const USER_BYTES: usize = 192;
/// A room that has some.
const ROOM_BYTES: usize = 256;

/// Whether the script publishes an event for a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Notify {
    /// No: members know.
    Not = 0,
    /// If the write changes something: Redis did not know it before.
    IfNew = 1,
    /// In any case if the user is still here, whatever Redis has; if not, as [`Notify::IfNew`].
    IfHere = 2,
    /// In any case: what Redis had before is unknown.
    Always = 3,
}

/// One user to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PendingWrite {
    /// Whether an event is published.
    pub notify: Notify,
    /// The joining connection, which does not receive the event.
    pub by: Option<Origin>,
    /// Whether the link was lost while it was being written: Redis may have it, and others its event.
    pub may_be_written: bool,
}

impl PendingWrite {
    /// A write that was not sent.
    pub(super) fn new(notify: Notify, by: Option<Origin>) -> PendingWrite {
        PendingWrite { notify, by, may_be_written: false }
    }
}

#[derive(Debug, Default)]
struct RoomArgs {
    /// Users in the order in which they were added, each once.
    order: VecDeque<TopicName>,
    users: HashMap<TopicName, PendingWrite>,
    /// All other users of the room are to be written, too.
    whole: Option<Notify>,
}

/// Writes by room and partition.
#[derive(Debug, Default)]
pub(super) struct WriteQueue {
    rooms: HashMap<TopicName, RoomArgs>,
    queues: HashMap<u16, VecDeque<TopicName>>,
    /// Users of all rooms.
    users: usize,
    /// The partitions with a queue.
    parts: PartitionSet,
    /// The partition to go on with.
    next: u16,
}

impl WriteQueue {
    /// Queues a user.
    pub(super) fn add(&mut self, topic: &TopicName, user: TopicName, write: PendingWrite) {
        let room = self.room(topic);
        let is_new = room.add(user, write);
        self.users += usize::from(is_new);
    }

    /// How many users are queued.
    pub(super) fn len(&self) -> usize {
        self.users
    }

    /// Bytes that it holds.
    pub(super) fn held_bytes(&self) -> usize {
        self.users * USER_BYTES + self.rooms.len() * ROOM_BYTES
    }

    /// Queues all users of a room.
    pub(super) fn add_whole(&mut self, topic: &TopicName, notify: Notify) {
        let room = self.room(topic);
        room.whole = room.whole.max(Some(notify));
    }

    /// What a server has is unknown: leaves are published in any case.
    pub(super) fn notify_always(
        &mut self,
        parts: PartitionSet,
        is_gone: impl Fn(&TopicName, &TopicName) -> bool,
    ) {
        for (topic, room) in &mut self.rooms {
            if !parts.has(partition(topic.as_str())) {
                continue;
            }
            for (user, write) in &mut room.users {
                if write.notify == Notify::IfNew && is_gone(topic, user) {
                    write.notify = Notify::Always;
                }
            }
        }
    }

    /// Whether a user is queued with an event.
    pub(super) fn notifies(&self, topic: &TopicName, user: &TopicName) -> bool {
        let write = self.rooms.get(topic).and_then(|room| room.users.get(user));
        write.is_some_and(|write| write.notify > Notify::Not)
    }

    /// Whether a room has writes.
    pub(super) fn has_room(&self, topic: &TopicName) -> bool {
        self.rooms.contains_key(topic)
    }

    /// The partitions with writes.
    pub(super) fn parts(&self) -> PartitionSet {
        self.parts
    }

    /// Whether any of these partitions has writes.
    pub(super) fn has_any_of(&self, parts: PartitionSet) -> bool {
        !self.parts.and(parts).is_empty()
    }

    /// Takes at most `users_max` users of the next room of these partitions out. `everybody` lists
    /// all users of a room.
    pub(super) fn take(
        &mut self,
        parts: PartitionSet,
        users_max: usize,
        everybody: impl FnOnce(&TopicName) -> Vec<TopicName>,
    ) -> Option<(TopicName, Vec<(TopicName, PendingWrite)>)> {
        let part = self.parts.and(parts).next_from(self.next)?;
        self.next = part + 1;
        let queue = self.queues.get_mut(&part).expect("a partition of the set has a queue");
        let topic = queue.pop_front().expect("no queue is empty");
        let room = self.rooms.get_mut(&topic).expect("a queued room has writes");
        if let Some(notify) = room.whole.take() {
            for user in everybody(&topic) {
                let is_new = room.add(user, PendingWrite::new(notify, None));
                self.users += usize::from(is_new);
            }
        }
        let some = room.order.len().min(users_max);
        let mut taken = Vec::with_capacity(some);
        for user in room.order.drain(..some) {
            let write = room.users.remove(&user).expect("each user of the order is queued");
            taken.push((user, write));
        }
        self.users -= some;
        match room.order.is_empty() {
            true => _ = self.rooms.remove(&topic),
            false => queue.push_back(topic.clone()),
        }
        if queue.is_empty() {
            self.queues.remove(&part);
            self.parts.remove(part);
        }
        Some((topic, taken))
    }

    fn room(&mut self, topic: &TopicName) -> &mut RoomArgs {
        if !self.rooms.contains_key(topic) {
            let part = partition(topic.as_str());
            self.queues.entry(part).or_default().push_back(topic.clone());
            self.parts.insert(part);
        }
        self.rooms.entry(topic.clone()).or_default()
    }
}

impl RoomArgs {
    /// Returns whether the user was not queued yet.
    fn add(&mut self, user: TopicName, write: PendingWrite) -> bool {
        match self.users.get_mut(&user) {
            Some(known) => {
                known.notify = known.notify.max(write.notify);
                known.by = write.by.or(known.by);
                known.may_be_written |= write.may_be_written;
                false
            }
            None => {
                self.users.insert(user.clone(), write);
                self.order.push_back(user);
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(taken: &[(TopicName, PendingWrite)]) -> Vec<(&str, Notify)> {
        taken.iter().map(|(user, write)| (&user.as_str()[2..], write.notify)).collect()
    }

    #[test]
    fn a_user_is_taken_once_in_order_with_the_strongest_notification() {
        let (mut writes, a, b) =
            (WriteQueue::default(), TopicName::room("a"), TopicName::room("b"));
        let user = TopicName::user;
        for (name, notify) in
            [("x", Notify::IfNew), ("y", Notify::Not), ("x", Notify::Not), ("y", Notify::IfNew)]
        {
            writes.add(&a, user(name), PendingWrite::new(notify, None));
        }
        writes.add_whole(&b, Notify::Not);
        writes.add(&b, user("gone"), PendingWrite::new(Notify::Always, None));
        let everybody = |topic: &TopicName| {
            assert_eq!(topic, &TopicName::room("b"));
            vec![user("p"), user("gone"), user("q")]
        };
        let (topic, taken) = writes.take(PartitionSet::of(&a), 1, everybody).unwrap();
        assert_eq!((topic, names(&taken)), (a.clone(), vec![("x", Notify::IfNew)]));
        let (topic, taken) = writes.take(PartitionSet::of(&b), 10, everybody).unwrap();
        let all = vec![("gone", Notify::Always), ("p", Notify::Not), ("q", Notify::Not)];
        assert_eq!((topic, names(&taken)), (b.clone(), all));
        assert!(
            writes.has_any_of(PartitionSet::of(&a)) && !writes.has_any_of(PartitionSet::of(&b))
        );
        assert!(writes.take(PartitionSet::of(&b), 10, everybody).is_none());
        let (topic, taken) = writes.take(PartitionSet::ALL, 10, everybody).unwrap();
        assert_eq!((topic, names(&taken)), (a.clone(), vec![("y", Notify::IfNew)]));
        writes.add(&a, user("z"), PendingWrite::new(Notify::IfNew, None));
        assert!(writes.notifies(&a, &user("z")) && !writes.notifies(&a, &user("y")));
        assert!(writes.take(PartitionSet::ALL, 10, everybody).is_some());
        assert!(
            !writes.has_any_of(PartitionSet::ALL)
                && writes.take(PartitionSet::ALL, 10, everybody).is_none()
        );
    }

    #[test]
    fn a_partition_with_many_writes_leaves_turns_to_the_others() {
        let (mut writes, crowd, small) =
            (WriteQueue::default(), TopicName::room("a"), TopicName::room("b"));
        for number in 0..100 {
            let write = PendingWrite::new(Notify::IfNew, None);
            writes.add(&crowd, TopicName::user(&number.to_string()), write);
        }
        writes.add(&small, TopicName::user("x"), PendingWrite::new(Notify::IfNew, None));
        let mut next = || writes.take(PartitionSet::ALL, 10, |_| Vec::new()).unwrap().0;
        assert!([next(), next()].contains(&small));
    }
}
