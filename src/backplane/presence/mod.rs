//! Presence: the users in each room, as far as this node's own connections are concerned.
//!
//! A user is in a room from their first connection until the last one has left and a *grace* has
//! passed without another. So a page reload causes no event, and members receive events of users,
//! not of connections. A user in their grace is still listed, with no connection, until the leave
//! event. So a roster and the events after it always add up.
//!
//! Pure: time is an argument, and transitions are taken with [`Presence::poll_event`]. The embedded
//! backplane delivers them to members; the Redis backplane writes them to Redis first, because the
//! user may be on other nodes, too.
//!
//! Invariant: a user's `Joined` and `Left` alternate, `Joined` first; between them the user is
//! listed.

use crate::ids::{TopicKind, TopicName};
use crate::link::{Origin, PresenceChange, PresenceUpdate};
use crate::protocol::{Event, Info, Roster, RosterEntry};
use hashbrown::HashMap;
use hashbrown::hash_map::Entry;
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

/// Users in their grace, at most; beyond, the earliest leaves at once. At 5 s of grace it takes
/// 50,000 last connections leaving each second to get here.
const LEAVING_MAX: usize = 256 * 1024;

/// A grace: its place in the tree, and both names.
const GRACE_BYTES: usize = 96;

/// An event for the members of a room, and for other nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PresenceEvent<'a> {
    /// The user's first connection joined.
    Joined {
        /// The user's name.
        user: &'a str,
        /// The JSON that the client gave with its join.
        info: Option<&'a str>,
        /// The joining connection, which does not receive the event.
        by: Option<Origin>,
    },
    /// The user has left: the last connection has, and the grace is over.
    Left {
        /// The user's name.
        user: &'a str,
    },
}

impl<'a> PresenceEvent<'a> {
    /// The event that members receive.
    pub fn event(&self, room: &'a str) -> Event<'a> {
        match *self {
            PresenceEvent::Joined { user, info, .. } => Event::Joined { room, user, info },
            PresenceEvent::Left { user } => Event::Left { room, user },
        }
    }

    /// The name of the user who joined or left.
    pub fn user(&self) -> &str {
        match self {
            PresenceEvent::Joined { user, .. } | PresenceEvent::Left { user } => user,
        }
    }

    /// The connection that does not receive the event.
    pub fn except(&self) -> Option<Origin> {
        match self {
            PresenceEvent::Joined { by, .. } => *by,
            PresenceEvent::Left { .. } => None,
        }
    }
}

/// A change of a user in a room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct UserTransition {
    /// The room's topic.
    pub topic: TopicName,
    /// The user's topic (`u:<name>`).
    pub user: TopicName,
    /// Whether the user joined, left, or has a new `info`.
    pub change: Transition,
    /// Number of users in the room, this one included.
    pub users: usize,
}

/// How a user in a room has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Transition {
    /// The first connection joined: this one.
    Joined(Origin),
    /// The number of connections or the info has changed.
    Updated,
    /// The last connection left, and the grace is over.
    Left,
}

impl UserTransition {
    /// The event of this change, if there is one: none in a room of more than `users_max` users.
    /// `member`: the user's current state.
    pub(super) fn event<'a>(
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
pub(super) struct PresentUser {
    /// Number of their connections on this node.
    pub connections: u32,
    /// The info given last.
    pub info: Option<Info>,
    /// The number of their grace among `graces`; 0: none.
    grace: u64,
}

type Room = HashMap<TopicName, PresentUser>;

/// All users of this node's connections, by room.
#[derive(Default)]
pub(super) struct Presence {
    rooms: HashMap<TopicName, Room>,
    /// Deadlines of graces. An entry whose number is not the user's own is out of date.
    graces: BTreeMap<(Instant, u64), (TopicName, TopicName)>,
    graces_begun: u64,
    users: usize,
    /// Bytes of what they tell of themselves.
    info_bytes: usize,
    events: VecDeque<UserTransition>,
}

impl Presence {
    /// A connection joined, left, or changed its info.
    ///
    /// 1. The user's first one joined: `Joined`, unless the user is in their grace.
    /// 2. One of several joined or left, or the info changed: `Updated`.
    /// 3. The last one left: `Left` when the grace is over ([`Presence::handle_timeout`]).
    pub(super) fn handle(&mut self, attend: PresenceUpdate, grace: Duration, now: Instant) {
        let PresenceUpdate { topic, user, deed } = attend;
        match deed {
            PresenceChange::Joined { by, info } => self.on_joined(topic, user, by, info),
            PresenceChange::InfoChanged(info) => {
                self.info_bytes += info.len();
                let member = self.member_mut(&topic, &user);
                let before = member.info.replace(info);
                self.info_bytes -= before.map_or(0, |info| info.len());
                self.push_transition(topic, user, Transition::Updated);
            }
            PresenceChange::Left => {
                self.graces_begun += 1;
                let number = self.graces_begun;
                let member = self.member_mut(&topic, &user);
                assert!(member.connections > 0, "a user who leaves has joined");
                member.connections -= 1;
                if member.connections == 0 {
                    member.grace = number;
                    self.graces.insert((now + grace, number), (topic.clone(), user.clone()));
                }
                self.push_transition(topic, user, Transition::Updated);
            }
        }
    }

    /// Ends the graces that are due.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        self.handle_timeout_unless(now, |_| None);
    }

    /// The same, but `held_until` may hold a room: then its graces last until the time that it
    /// returns.
    pub(super) fn handle_timeout_unless(
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

    /// Ends the earliest graces while there are too many. For callers that may not call
    /// [`Presence::handle_timeout`] for a while.
    pub(super) fn make_room(&mut self) {
        while self.graces.len() > LEAVING_MAX
            && let Some(((_, number), (topic, user))) = self.graces.pop_first()
        {
            self.end_grace(topic, user, number);
        }
    }

    /// The next change, in order.
    pub(super) fn poll_event(&mut self) -> Option<UserTransition> {
        self.events.pop_front()
    }

    /// The state of a user in a room, if they are there.
    pub(super) fn member(&self, topic: &TopicName, user: &TopicName) -> Option<&PresentUser> {
        self.rooms.get(topic)?.get(user)
    }

    /// All users in a room.
    pub(super) fn members(
        &self,
        topic: &TopicName,
    ) -> impl Iterator<Item = (&TopicName, &PresentUser)> {
        self.rooms.get(topic).into_iter().flatten()
    }

    /// Number of users in a room.
    pub(super) fn count(&self, topic: &TopicName) -> usize {
        self.rooms.get(topic).map_or(0, HashMap::len)
    }

    /// All rooms with users.
    pub(super) fn rooms(&self) -> impl Iterator<Item = &TopicName> {
        self.rooms.keys()
    }

    /// Number of users, each counted once for each of their rooms.
    pub(super) fn users(&self) -> usize {
        self.users
    }

    /// Bytes that it holds beside an entry for each user.
    pub(super) fn bytes_beside_users(&self) -> usize {
        self.info_bytes
            + self.graces.len() * GRACE_BYTES
            + self.events.capacity() * size_of::<UserTransition>()
    }

    /// The users in a room: at most [`Roster::USERS_MAX`] listed, all counted.
    pub(super) fn roster(&self, topic: &TopicName) -> Roster {
        let roster_entry =
            |(user, member): (&TopicName, &PresentUser)| member.roster_entry(user.clone());
        let users = self.members(topic).take(Roster::USERS_MAX).map(roster_entry).collect();
        Roster::new(users, self.count(topic) as u64)
    }

    fn on_joined(&mut self, topic: TopicName, user: TopicName, by: Origin, info: Option<Info>) {
        let room = self.rooms.entry(topic.clone()).or_default();
        self.info_bytes += info.as_ref().map_or(0, |info| info.len());
        let change = match room.entry(user.clone()) {
            Entry::Occupied(known) => {
                let member = known.into_mut();
                member.connections += 1;
                member.grace = 0;
                if let Some(info) = info {
                    let before = member.info.replace(info);
                    self.info_bytes -= before.map_or(0, |info| info.len());
                }
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
        // Joined again since, and perhaps left again: then a later entry has the deadline.
        if room.get(&user).is_none_or(|member| member.grace != number) {
            return;
        }
        self.push_transition(topic.clone(), user.clone(), Transition::Left);
        let room = self.rooms.get_mut(&topic).expect("it was there a moment ago");
        let gone = room.remove(&user).and_then(|member| member.info);
        self.info_bytes -= gone.map_or(0, |info| info.len());
        self.users -= 1;
        match room.len() {
            0 => _ = self.rooms.remove(&topic),
            // A room that has emptied does not keep its memory.
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
        member.expect("a shard reports a join before anything else of a user")
    }
}

impl PresentUser {
    /// This user as listed in a roster.
    pub(super) fn roster_entry(&self, user: TopicName) -> RosterEntry {
        let connections = u64::from(self.connections);
        RosterEntry { user, connections, info: self.info.clone() }
    }
}

/// The user's name, without the topic's prefix.
pub(super) fn user_name(user: &TopicName) -> &str {
    match user.kind() {
        TopicKind::User(name) => name,
        TopicKind::Room(_) | TopicKind::All => unreachable!("only users attend"),
    }
}

#[cfg(test)]
mod tests;
