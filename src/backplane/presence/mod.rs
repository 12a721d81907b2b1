//! Who is in which room, as far as this node's own connections say.
//!
//! A user is in a room from their first connection on until the last one has left and has not come
//! back for a while, the *grace*. So a page that is reloaded is no news, and whoever listens hears of
//! people, not of connections. Somebody whose grace runs is still there: they are listed, with no
//! connection, until their leaving is told. So a list and what is told behind it always add up.
//!
//! Pure: time is an argument, and what changed comes out by [`Presence::poll_event`]. The embedded
//! backplane tells it to the members; the one over Redis writes it there first, because the user may
//! be on other nodes too.
//!
//! Invariant: a user's `Joined` and `Left` come in turns, the first one first; between them stands
//! the truth.

use crate::ids::{TopicKind, TopicName};
use crate::link::{Origin, PresenceChange, PresenceUpdate};
use crate::protocol::{Event, Info, Roster, RosterEntry};
use hashbrown::HashMap;
use hashbrown::hash_map::Entry;
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

/// Users whose grace runs, at most; beyond, the first of them has left. At 5 s of grace it takes
/// 50,000 last connections leaving each second to get here.
const LEAVING_MAX: usize = 256 * 1024;

/// What is told to the members of a room, and to other nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PresenceEvent<'a> {
    /// A user's first connection came.
    Joined {
        /// The user.
        user: &'a str,
        /// What they say of themselves.
        info: Option<&'a str>,
        /// That connection, which is not told of itself.
        by: Option<Origin>,
    },
    /// A user has left.
    Left {
        /// The user.
        user: &'a str,
    },
}

impl<'a> PresenceEvent<'a> {
    /// As the members of a room hear it.
    pub fn event(&self, room: &'a str) -> Event<'a> {
        match *self {
            PresenceEvent::Joined { user, info, .. } => Event::Joined { room, user, info },
            PresenceEvent::Left { user } => Event::Left { room, user },
        }
    }

    /// Who came, or left.
    pub fn user(&self) -> &str {
        match self {
            PresenceEvent::Joined { user, .. } | PresenceEvent::Left { user } => user,
        }
    }

    /// The connection that does not hear it.
    pub fn except(&self) -> Option<Origin> {
        match self {
            PresenceEvent::Joined { by, .. } => *by,
            PresenceEvent::Left { .. } => None,
        }
    }
}

/// What became of a user in a room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserTransition {
    /// The room's topic.
    pub topic: TopicName,
    /// The user's topic.
    pub user: TopicName,
    /// What happened.
    pub change: Transition,
    /// How many users the room has, this one included.
    pub users: usize,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transition {
    /// The first connection came, and this was it.
    Joined(Origin),
    /// Another number of connections, or other words.
    Updated,
    /// The last connection left, and the grace is over.
    Left,
}

impl UserTransition {
    /// What there is to tell, in a room of at most `users_max` users. `member` is who the user is now.
    pub fn event<'a>(
        &'a self,
        member: Option<&'a PresentUser>,
        users_max: usize,
    ) -> Option<PresenceEvent<'a>> {
        let user = user_name(&self.user);
        match self.change {
            _ if self.users > users_max => None,
            Transition::Joined(by) => {
                let info = member.and_then(|member| member.info.as_deref());
                Some(PresenceEvent::Joined { user, info, by: Some(by) })
            }
            Transition::Updated => None,
            Transition::Left => Some(PresenceEvent::Left { user }),
        }
    }
}

/// A user in a room.
#[derive(Clone, Debug, Default)]
pub struct PresentUser {
    /// How many of their connections are there.
    pub connections: u32,
    /// What they last said of themselves.
    pub info: Option<Info>,
    /// Which line of `graces` tells when their grace is over; 0: none.
    grace: u64,
}

type Room = HashMap<TopicName, PresentUser>;

/// See the module.
#[derive(Default)]
pub struct Presence {
    rooms: HashMap<TopicName, Room>,
    /// When whose grace is over. A line whose number is not the member's is out of date.
    graces: BTreeMap<(Instant, u64), (TopicName, TopicName)>,
    graces_begun: u64,
    users: usize,
    events: VecDeque<UserTransition>,
}

impl Presence {
    /// Something happened to a connection.
    ///
    /// 1. The user's first one came: they have joined, unless their grace runs.
    /// 2. One of several came or left, or somebody says something new: the room's list differs.
    /// 3. The last one left: its user has left when the grace is over ([`Presence::handle_timeout`]).
    pub fn handle(&mut self, attend: PresenceUpdate, grace: Duration, now: Instant) {
        let PresenceUpdate { topic, user, deed } = attend;
        match deed {
            PresenceChange::Joined { by, info } => self.on_joined(topic, user, by, info),
            PresenceChange::InfoChanged(info) => {
                let member = self.member_mut(&topic, &user);
                member.info = Some(info);
                self.push_transition(topic, user, Transition::Updated);
            }
            PresenceChange::Left => {
                self.graces_begun += 1;
                let number = self.graces_begun;
                let member = self.member_mut(&topic, &user);
                assert!(member.connections > 0, "only who came leaves");
                member.connections -= 1;
                if member.connections == 0 {
                    member.grace = number;
                    self.graces.insert((now + grace, number), (topic.clone(), user.clone()));
                }
                self.push_transition(topic, user, Transition::Updated);
            }
        }
    }

    /// Time passes: whose grace is over has left.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.handle_timeout_unless(now, |_| None);
    }

    /// The same, but a room may hold everybody: then their graces last until the time it answers.
    pub fn handle_timeout_unless(
        &mut self,
        now: Instant,
        held_until: impl Fn(&TopicName) -> Option<Instant>,
    ) {
        while let Some(first) = self.graces.first_entry() {
            let &(due, number) = first.key();
            if due > now {
                return;
            }
            let (topic, user) = first.remove();
            match held_until(&topic) {
                None => self.end_grace(topic, user, number),
                Some(until) => {
                    assert!(until > now);
                    self.graces.insert((until, number), (topic, user));
                }
            }
        }
    }

    /// Lets the first ones go whose grace runs, while they are too many. For those who do not call
    /// [`Presence::handle_timeout`] for a while.
    pub fn make_room(&mut self) {
        while self.graces.len() > LEAVING_MAX
            && let Some(((_, number), (topic, user))) = self.graces.pop_first()
        {
            self.end_grace(topic, user, number);
        }
    }

    /// What changed, in its order.
    pub fn poll_event(&mut self) -> Option<UserTransition> {
        self.events.pop_front()
    }

    /// A user in a room, if they are there.
    pub fn member(&self, topic: &TopicName, user: &TopicName) -> Option<&PresentUser> {
        self.rooms.get(topic)?.get(user)
    }

    /// Everybody in a room.
    pub fn members(&self, topic: &TopicName) -> impl Iterator<Item = (&TopicName, &PresentUser)> {
        self.rooms.get(topic).into_iter().flatten()
    }

    /// How many users a room has.
    pub fn count(&self, topic: &TopicName) -> usize {
        self.rooms.get(topic).map_or(0, HashMap::len)
    }

    /// All rooms that have users.
    pub fn rooms(&self) -> impl Iterator<Item = &TopicName> {
        self.rooms.keys()
    }

    /// How many users there are, each counted in each of their rooms.
    pub fn users(&self) -> usize {
        self.users
    }

    /// Who is in a room.
    pub fn roster(&self, topic: &TopicName) -> Roster {
        let roster_entry =
            |(user, member): (&TopicName, &PresentUser)| member.roster_entry(user.clone());
        let users = self.members(topic).take(Roster::USERS_MAX).map(roster_entry).collect();
        Roster::new(users, self.count(topic) as u64)
    }

    fn on_joined(&mut self, topic: TopicName, user: TopicName, by: Origin, info: Option<Info>) {
        let room = self.rooms.entry(topic.clone()).or_default();
        let change = match room.entry(user.clone()) {
            Entry::Occupied(known) => {
                let member = known.into_mut();
                member.connections += 1;
                member.grace = 0;
                member.info = info.or_else(|| member.info.take());
                Transition::Updated
            }
            Entry::Vacant(place) => {
                place.insert(PresentUser { connections: 1, info, grace: 0 });
                self.users += 1;
                Transition::Joined(by)
            }
        };
        self.push_transition(topic, user, change);
    }

    fn end_grace(&mut self, topic: TopicName, user: TopicName, number: u64) {
        let Some(room) = self.rooms.get_mut(&topic) else { return };
        // Came back meanwhile, and perhaps left again: then another line tells when.
        if room.get(&user).is_none_or(|member| member.grace != number) {
            return;
        }
        self.push_transition(topic.clone(), user.clone(), Transition::Left);
        let room = self.rooms.get_mut(&topic).expect("it was there a moment ago");
        room.remove(&user);
        self.users -= 1;
        match room.len() {
            0 => _ = self.rooms.remove(&topic),
            // A room that has emptied keeps no memory for the crowd it once held.
            left if left * 4 < room.capacity() => room.shrink_to(left * 2),
            _ => {}
        }
    }

    fn push_transition(&mut self, topic: TopicName, user: TopicName, change: Transition) {
        let users = self.count(&topic);
        self.events.push_back(UserTransition { topic, user, change, users });
    }

    fn member_mut(&mut self, topic: &TopicName, user: &TopicName) -> &mut PresentUser {
        let member = self.rooms.get_mut(topic).and_then(|room| room.get_mut(user));
        member.expect("a shard tells who came before it tells more of them")
    }
}

impl PresentUser {
    /// As those see it who ask.
    pub fn roster_entry(&self, user: TopicName) -> RosterEntry {
        let connections = u64::from(self.connections);
        RosterEntry { user, connections, info: self.info.clone() }
    }
}

/// The user's name, without what makes it a topic.
pub fn user_name(user: &TopicName) -> &str {
    match user.kind() {
        TopicKind::User(name) => name,
        TopicKind::Room(_) | TopicKind::All => unreachable!("only users attend"),
    }
}

#[cfg(test)]
mod tests;
