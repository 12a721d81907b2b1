//! What Redis does not know yet: users whose place in it may differ from what is true here.
//!
//! Not a log of what happened. What is written is what is true when it is written; here stands only
//! whom to write, and whether anybody is to be told. So whatever fails is simply put back.
//!
//! Rooms wait in a line for each partition: which server has it is asked when they are taken, so
//! nothing here moves when a partition does. Partitions are taken from in turns.
//!
//! Invariant: a room stands in its line exactly while something of it is to be written, and there are
//! no empty lines.

use crate::backplane::partition::partition;
use crate::backplane::redis::presence::partition_set::Parts;
use crate::ids::TopicName;
use crate::link::Origin;
use hashbrown::HashMap;
use std::collections::VecDeque;

/// Whether a change is told to the room's members, once it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tell {
    /// No: they know.
    Not = 0,
    /// If it is one: nobody had said so to Redis before.
    IfNew = 1,
    /// In any case if the user is still here, whatever Redis remembers; if not, as above.
    IfHere = 2,
    /// In any case: what Redis had before is not known.
    Always = 3,
}

/// One user to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dirty {
    /// Whom to tell.
    pub tell: Tell,
    /// The connection that came, which is not told.
    pub by: Option<Origin>,
}

#[derive(Debug, Default)]
struct Room {
    /// Users in the order in which they became dirty, each once.
    order: VecDeque<TopicName>,
    users: HashMap<TopicName, Dirty>,
    /// All others are to be written, too.
    whole: Option<Tell>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Dirt {
    rooms: HashMap<TopicName, Room>,
    lines: HashMap<u16, VecDeque<TopicName>>,
    /// The partitions that have a line.
    parts: Parts,
    /// The one whose turn it is.
    next: u16,
}

impl Dirt {
    /// A user is to be written.
    pub fn add(&mut self, topic: &TopicName, user: TopicName, dirty: Dirty) {
        let room = self.room(topic);
        room.add(user, dirty);
    }

    /// All users of a room are to be written.
    pub fn add_whole(&mut self, topic: &TopicName, tell: Tell) {
        let room = self.room(topic);
        room.whole = room.whole.max(Some(tell));
    }

    /// What a server has is not known any more: who is gone is told of in any case.
    pub fn doubt(&mut self, parts: Parts, is_gone: impl Fn(&TopicName, &TopicName) -> bool) {
        for (topic, room) in &mut self.rooms {
            if !parts.has(partition(topic.as_str())) {
                continue;
            }
            for (user, dirty) in &mut room.users {
                if dirty.tell == Tell::IfNew && is_gone(topic, user) {
                    dirty.tell = Tell::Always;
                }
            }
        }
    }

    /// Whether a user is to be written, and told of.
    pub fn tells(&self, topic: &TopicName, user: &TopicName) -> bool {
        let dirty = self.rooms.get(topic).and_then(|room| room.users.get(user));
        dirty.is_some_and(|dirty| dirty.tell > Tell::Not)
    }

    /// The partitions of which anything is to be written.
    pub fn parts(&self) -> Parts {
        self.parts
    }

    /// Whether anything of these partitions is to be written.
    pub fn is_any_of(&self, parts: Parts) -> bool {
        !self.parts.and(parts).is_empty()
    }

    /// Takes some users of the next room of these partitions out, at most `users_max`. `everybody`
    /// answers all of a room.
    pub fn take(
        &mut self,
        parts: Parts,
        users_max: usize,
        everybody: impl FnOnce(&TopicName) -> Vec<TopicName>,
    ) -> Option<(TopicName, Vec<(TopicName, Dirty)>)> {
        let part = self.parts.and(parts).next_from(self.next)?;
        self.next = part + 1;
        let line = self.lines.get_mut(&part).expect("a partition of the set has a line");
        let topic = line.pop_front().expect("no line is empty");
        let room = self.rooms.get_mut(&topic).expect("a room in the line is dirty");
        if let Some(tell) = room.whole.take() {
            for user in everybody(&topic) {
                room.add(user, Dirty { tell, by: None });
            }
        }
        let some = room.order.len().min(users_max);
        let mut taken = Vec::with_capacity(some);
        for user in room.order.drain(..some) {
            let dirty = room.users.remove(&user).expect("whoever stands in the order is dirty");
            taken.push((user, dirty));
        }
        match room.order.is_empty() {
            true => _ = self.rooms.remove(&topic),
            false => line.push_back(topic.clone()),
        }
        if line.is_empty() {
            self.lines.remove(&part);
            self.parts.remove(part);
        }
        Some((topic, taken))
    }

    fn room(&mut self, topic: &TopicName) -> &mut Room {
        if !self.rooms.contains_key(topic) {
            let part = partition(topic.as_str());
            self.lines.entry(part).or_default().push_back(topic.clone());
            self.parts.insert(part);
        }
        self.rooms.entry(topic.clone()).or_default()
    }
}

impl Room {
    fn add(&mut self, user: TopicName, dirty: Dirty) {
        match self.users.get_mut(&user) {
            Some(known) => {
                known.tell = known.tell.max(dirty.tell);
                known.by = dirty.by.or(known.by);
            }
            None => {
                self.users.insert(user.clone(), dirty);
                self.order.push_back(user);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(taken: &[(TopicName, Dirty)]) -> Vec<(&str, Tell)> {
        taken.iter().map(|(user, dirty)| (&user.as_str()[2..], dirty.tell)).collect()
    }

    #[test]
    fn whoever_is_dirty_is_taken_once_in_order_and_with_the_loudest_wish() {
        let (mut dirt, a, b) = (Dirt::default(), TopicName::room("a"), TopicName::room("b"));
        let user = TopicName::user;
        for (name, tell) in
            [("x", Tell::IfNew), ("y", Tell::Not), ("x", Tell::Not), ("y", Tell::IfNew)]
        {
            dirt.add(&a, user(name), Dirty { tell, by: None });
        }
        dirt.add_whole(&b, Tell::Not);
        dirt.add(&b, user("gone"), Dirty { tell: Tell::Always, by: None });
        let everybody = |topic: &TopicName| {
            assert_eq!(topic, &TopicName::room("b"));
            vec![user("p"), user("gone"), user("q")]
        };
        let (topic, taken) = dirt.take(Parts::of(&a), 1, everybody).unwrap();
        assert_eq!((topic, names(&taken)), (a.clone(), vec![("x", Tell::IfNew)]));
        let (topic, taken) = dirt.take(Parts::of(&b), 10, everybody).unwrap();
        let all = vec![("gone", Tell::Always), ("p", Tell::Not), ("q", Tell::Not)];
        assert_eq!((topic, names(&taken)), (b.clone(), all));
        assert!(dirt.is_any_of(Parts::of(&a)) && !dirt.is_any_of(Parts::of(&b)));
        assert!(dirt.take(Parts::of(&b), 10, everybody).is_none());
        let (topic, taken) = dirt.take(Parts::ALL, 10, everybody).unwrap();
        assert_eq!((topic, names(&taken)), (a.clone(), vec![("y", Tell::IfNew)]));
        dirt.add(&a, user("z"), Dirty { tell: Tell::IfNew, by: None });
        assert!(dirt.tells(&a, &user("z")) && !dirt.tells(&a, &user("y")));
        assert!(dirt.take(Parts::ALL, 10, everybody).is_some());
        assert!(!dirt.is_any_of(Parts::ALL) && dirt.take(Parts::ALL, 10, everybody).is_none());
    }

    #[test]
    fn a_partition_with_much_to_write_lets_the_others_have_their_turns() {
        let (mut dirt, crowd, small) =
            (Dirt::default(), TopicName::room("a"), TopicName::room("b"));
        for number in 0..100 {
            let dirty = Dirty { tell: Tell::IfNew, by: None };
            dirt.add(&crowd, TopicName::user(&number.to_string()), dirty);
        }
        dirt.add(&small, TopicName::user("x"), Dirty { tell: Tell::IfNew, by: None });
        let mut next = || dirt.take(Parts::ALL, 10, |_| Vec::new()).unwrap().0;
        assert!([next(), next()].contains(&small));
    }
}
