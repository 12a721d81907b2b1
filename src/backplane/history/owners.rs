//! Who has how much of what clients share: bytes of histories, idempotency keys.
//!
//! What is shared is never taken from one owner for another one: who has its share is refused. Of the
//! whole,
//!
//! * one client without a token has a 64th, which ends with its connection's name;
//! * all of them, who may be anybody, have a half;
//! * one user with a token has an eighth;
//! * all clients have three quarters;
//! * the operator's own services have all that is left.
//!
//! Where the whole is small, one owner has the floor instead, if that is more.
//!
//! Invariant: the sums are those of all owners, and an owner without anything takes no place.

use crate::ids::{ANONYMOUS_PREFIX, TopicKind, TopicName};
use std::collections::HashMap;

/// Who publishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner<'a> {
    /// A service of the operator's, over the HTTP API or Redis.
    Service,
    /// A user with a token.
    User(&'a TopicName),
    /// A connection without a token, by the name that it was given.
    Anonymous(&'a TopicName),
}

impl<'a> Owner<'a> {
    /// The owner of what `from` publishes.
    pub fn of(from: Option<&'a TopicName>) -> Owner<'a> {
        match from.map(|from| (from, from.kind())) {
            None => Owner::Service,
            Some((from, TopicKind::User(user))) if user.starts_with(ANONYMOUS_PREFIX) => {
                Owner::Anonymous(from)
            }
            Some((from, _)) => Owner::User(from),
        }
    }

    fn name(self) -> Option<&'a TopicName> {
        match self {
            Owner::Service => None,
            Owner::User(name) | Owner::Anonymous(name) => Some(name),
        }
    }
}

/// An owner that has something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnerId(u32);

impl OwnerId {
    /// All services of the operator's.
    pub const SERVICE: OwnerId = OwnerId(0);
}

#[derive(Debug)]
struct OwnerUse {
    /// `None`: the services.
    name: Option<TopicName>,
    is_anonymous: bool,
    amount: usize,
}

/// The shares of all owners.
#[derive(Debug)]
pub struct OwnerShares {
    max: usize,
    floor: usize,
    owners: Vec<OwnerUse>,
    free: Vec<u32>,
    by_name: HashMap<TopicName, u32>,
    of_anonymous: usize,
    of_clients: usize,
    of_all: usize,
}

impl OwnerShares {
    /// `max`: the whole. `floor`: what one owner has at least.
    pub fn new(max: usize, floor: usize) -> OwnerShares {
        let services = OwnerUse { name: None, is_anonymous: false, amount: 0 };
        OwnerShares {
            max,
            floor,
            owners: vec![services],
            free: Vec::new(),
            by_name: HashMap::new(),
            of_anonymous: 0,
            of_clients: 0,
            of_all: 0,
        }
    }

    /// How much more an owner may have now.
    pub fn room(&self, owner: Owner<'_>) -> usize {
        let known = match owner {
            Owner::Service => Some(0),
            Owner::User(name) | Owner::Anonymous(name) => self.by_name.get(name).copied(),
        };
        match known {
            Some(known) => self.room_of(OwnerId(known)),
            None => self.room_within(0, matches!(owner, Owner::Anonymous(_))),
        }
    }

    /// The same of one that has something.
    pub fn room_of(&self, id: OwnerId) -> usize {
        if id == OwnerId::SERVICE {
            return self.max.saturating_sub(self.of_all);
        }
        let OwnerUse { amount, is_anonymous, .. } = self.owners[id.0 as usize];
        self.room_within(amount, is_anonymous)
    }

    fn room_within(&self, amount: usize, is_anonymous: bool) -> usize {
        let all = self.max.saturating_sub(self.of_all);
        let clients = (self.max - self.max / 4).saturating_sub(self.of_clients);
        let own = if is_anonymous { self.max.div_ceil(64) } else { self.max.div_ceil(8) };
        let room = all.min(clients).min(own.max(self.floor).saturating_sub(amount));
        match is_anonymous {
            true => room.min(self.max.div_ceil(2).saturating_sub(self.of_anonymous)),
            false => room,
        }
    }

    /// An owner has so much more, which is not 0.
    pub fn begin(&mut self, owner: Owner<'_>, amount: usize) -> OwnerId {
        let Some(name) = owner.name() else {
            self.grow(OwnerId::SERVICE, amount);
            return OwnerId::SERVICE;
        };
        let id = match self.by_name.get(name) {
            Some(known) => OwnerId(*known),
            None => self.insert(name, matches!(owner, Owner::Anonymous(_))),
        };
        self.grow(id, amount);
        id
    }

    /// Likewise of one that has something.
    pub fn grow(&mut self, id: OwnerId, amount: usize) {
        let owner = &mut self.owners[id.0 as usize];
        owner.amount += amount;
        self.of_all += amount;
        self.of_clients += if id == OwnerId::SERVICE { 0 } else { amount };
        self.of_anonymous += if owner.is_anonymous { amount } else { 0 };
    }

    /// An owner has so much less.
    pub fn shrink(&mut self, id: OwnerId, amount: usize) {
        let owner = &mut self.owners[id.0 as usize];
        owner.amount -= amount;
        self.of_all -= amount;
        self.of_anonymous -= if owner.is_anonymous { amount } else { 0 };
        if id == OwnerId::SERVICE {
            return;
        }
        self.of_clients -= amount;
        if owner.amount == 0 {
            let name = owner.name.take().expect("it has something until now");
            self.by_name.remove(&name);
            self.free.push(id.0);
        }
    }

    /// What all owners have.
    pub fn all(&self) -> usize {
        self.of_all
    }

    fn insert(&mut self, name: &TopicName, is_anonymous: bool) -> OwnerId {
        let owner = OwnerUse { name: Some(name.clone()), is_anonymous, amount: 0 };
        let id = match self.free.pop() {
            Some(id) => {
                self.owners[id as usize] = owner;
                id
            }
            None => {
                self.owners.push(owner);
                self.owners.len() as u32 - 1
            }
        };
        self.by_name.insert(name.clone(), id);
        OwnerId(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn anonymous(number: usize) -> TopicName {
        TopicName::user(&format!("{ANONYMOUS_PREFIX}{number}"))
    }

    /// Takes all that it may have; answers how much.
    fn fill(shares: &mut OwnerShares, owner: Owner<'_>) -> usize {
        let room = shares.room(owner);
        if room > 0 {
            shares.begin(owner, room);
        }
        room
    }

    #[test]
    fn who_has_its_share_is_refused_and_the_others_have_theirs() {
        let mut shares = OwnerShares::new(640, 0);
        let of_strangers = [0; 100].iter().enumerate().map(|(number, _)| anonymous(number));
        let taken: Vec<usize> =
            of_strangers.map(|name| fill(&mut shares, Owner::of(Some(&name)))).collect();
        assert_eq!((taken[0], taken[31], taken[32]), (10, 10, 0), "a 64th each, a half all");
        let [ann, bob, cid] = ["ann", "bob", "cid"].map(TopicName::user);
        let users = [&ann, &bob, &cid].map(|user| fill(&mut shares, Owner::of(Some(user))));
        assert_eq!(users, [80, 80, 0], "an eighth each, three quarters with the strangers");
        assert_eq!(fill(&mut shares, Owner::of(None)), 160, "what is left");
        assert_eq!(shares.all(), 640);
    }

    #[test]
    fn where_the_whole_is_small_one_owner_has_the_floor() {
        let mut shares = OwnerShares::new(640, 200);
        let names = [0, 1, 2].map(anonymous);
        let taken = names.each_ref().map(|name| fill(&mut shares, Owner::of(Some(name))));
        assert_eq!(taken, [200, 120, 0]);
    }

    #[test]
    fn an_owner_that_has_nothing_more_takes_no_place() {
        let mut shares = OwnerShares::new(640, 0);
        for number in 0..1000 {
            let name = anonymous(number);
            let id = shares.begin(Owner::of(Some(&name)), 3);
            shares.grow(id, 4);
            assert_eq!(shares.room_of(id), 3);
            shares.shrink(id, 2);
            shares.shrink(id, 5);
        }
        assert_eq!((shares.owners.len(), shares.by_name.len(), shares.all()), (2, 0, 0));
        let OwnerShares { of_anonymous, of_clients, .. } = shares;
        assert_eq!((of_anonymous, of_clients), (0, 0));
    }
}
