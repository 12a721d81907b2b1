//! Tokens that are refused before they expire: those of a user, one token by its id (`jti`), or all
//! that were issued before a moment (`iat`).
//!
//! [`RevocationTable`] is what a node has learned, on its backplane's thread. From it an immutable
//! [`Revocations`] is made for the shards, which ask it at each handshake and once for the
//! connections that are open when it changes.
//!
//! A token without `iat` counts as issued before any moment: what is not known is refused.
//!
//! Invariant: pure; time is an argument. The table holds at most [`ENTRIES_MAX`] entries, each with
//! a name of at most 255 bytes.

use crate::ids::is_name;
use sha2::{Digest as _, Sha256};
use std::collections::{HashMap, HashSet};

/// Entries of one table, whatever is configured: Redis may hold what a node with another
/// configuration wrote.
pub const ENTRIES_MAX: usize = 100_000;
/// About what an entry takes beside its name, in the table and in what the shards have of it.
const ENTRY_BYTES: usize = 200;
/// A later moment is none: it would be in the year 5138, or is in milliseconds.
pub const MOMENT_MAX_S: u64 = 100_000_000_000;

/// What is remembered of the token of a connection that has `jti` or `iat`: what revocations are
/// compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenMark {
    /// The first 8 bytes of the SHA-256 of `jti`; 0: it has none.
    pub id_hash: u64,
    /// `iat`, in seconds since 1970, rounded down; 0: it has none.
    pub issued_s: u32,
}

impl TokenMark {
    /// `None`: the token has neither.
    pub fn new(id: Option<&str>, issued_s: Option<f64>) -> Option<TokenMark> {
        if id.is_none() && issued_s.is_none() {
            return None;
        }
        let id_hash = id.map_or(0, id_hash);
        Some(TokenMark { id_hash, issued_s: issued_s.unwrap_or(0.0) as u32 })
    }

    /// When a token was issued; one without a mark is as old as can be.
    pub fn issued(mark: Option<TokenMark>) -> u64 {
        mark.map_or(0, |mark| u64::from(mark.issued_s))
    }
}

fn id_hash(id: &str) -> u64 {
    let digest = Sha256::digest(id.as_bytes());
    let first = digest.first_chunk::<8>().expect("a digest has 32 bytes");
    u64::from_le_bytes(*first).max(1)
}

/// Whose tokens are revoked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RevokedSubject {
    /// Those of a user (`sub`) that were issued before a moment.
    User(Box<str>),
    /// The one with this id (`jti`).
    Token(Box<str>),
    /// All that were issued before a moment.
    Everybody,
}

impl RevokedSubject {
    /// As it is stored: `u:<user>`, `t:<token id>` or `*`.
    pub fn key(&self) -> String {
        match self {
            RevokedSubject::User(user) => format!("u:{user}"),
            RevokedSubject::Token(id) => format!("t:{id}"),
            RevokedSubject::Everybody => "*".to_owned(),
        }
    }

    /// Reads what [`RevokedSubject::key`] wrote.
    pub fn parse(key: &str) -> Option<RevokedSubject> {
        match key.split_at_checked(2) {
            Some(("u:", user)) if is_name(user) => Some(RevokedSubject::User(user.into())),
            Some(("t:", id)) if is_token_id(id) => Some(RevokedSubject::Token(id.into())),
            _ => (key == "*").then_some(RevokedSubject::Everybody),
        }
    }
}

/// Whether this may be the id of a token that is revoked: 1 to 255 bytes.
pub fn is_token_id(id: &str) -> bool {
    (1..=255).contains(&id.len())
}

/// One order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revocation {
    /// Whose tokens.
    pub subject: RevokedSubject,
    /// Tokens issued before this moment are refused, in seconds since 1970. Not for a token's id.
    pub issued_before_s: u64,
    /// From this moment on nobody remembers it, in seconds since 1970: no token that it is about may
    /// live longer.
    pub until_s: u64,
}

/// What has come of an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inserted {
    /// It is new, or says more than was known.
    Changed,
    /// It was known.
    Known,
    /// There is no room for it.
    Full,
}

/// What a node knows. Later moments win, whatever the order in which they come.
#[derive(Debug)]
pub struct RevocationTable {
    entries: HashMap<Box<str>, TableEntry>,
    name_bytes: usize,
    /// The number of the last change.
    changes: u64,
    /// No entry is over before.
    earliest_s: u64,
}

#[derive(Clone, Copy, Debug)]
struct TableEntry {
    issued_before_s: u64,
    until_s: u64,
    /// The number of its last change.
    change: u64,
}

impl Default for RevocationTable {
    fn default() -> RevocationTable {
        RevocationTable { entries: HashMap::new(), name_bytes: 0, changes: 0, earliest_s: u64::MAX }
    }
}

impl RevocationTable {
    /// Takes an order in; `entries_max`: how many there may be.
    pub fn insert(&mut self, order: &Revocation, entries_max: usize) -> Inserted {
        let key = order.subject.key();
        let Revocation { issued_before_s, until_s, .. } = *order;
        let (number, change) = (self.entries.len(), self.changes + 1);
        self.earliest_s = self.earliest_s.min(until_s);
        let Some(known) = self.entries.get_mut(key.as_str()) else {
            if number >= entries_max.min(ENTRIES_MAX) {
                return Inserted::Full;
            }
            self.changes = change;
            self.name_bytes += key.len();
            self.entries.insert(key.into(), TableEntry { issued_before_s, until_s, change });
            return Inserted::Changed;
        };
        if known.issued_before_s >= issued_before_s && known.until_s >= until_s {
            return Inserted::Known;
        }
        known.issued_before_s = known.issued_before_s.max(issued_before_s);
        known.until_s = known.until_s.max(until_s);
        known.change = change;
        self.changes = change;
        Inserted::Changed
    }

    /// Forgets what is over. Whether there was any.
    pub fn remove_expired(&mut self, now_s: u64) -> bool {
        let before = self.entries.len();
        if now_s < self.earliest_s {
            return false;
        }
        self.entries.retain(|_, entry| entry.until_s > now_s);
        self.name_bytes = self.entries.keys().map(|key| key.len()).sum();
        let ends = self.entries.values().map(|entry| entry.until_s);
        self.earliest_s = ends.min().unwrap_or(u64::MAX);
        self.entries.len() != before
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = Revocation> + '_ {
        self.entries.iter().filter_map(|(key, entry)| {
            let subject = RevokedSubject::parse(key)?;
            let TableEntry { issued_before_s, until_s, .. } = *entry;
            Some(Revocation { subject, issued_before_s, until_s })
        })
    }

    /// About what they hold, here and in what the shards have.
    pub fn held_bytes(&self) -> usize {
        self.entries.len() * ENTRY_BYTES + 3 * self.name_bytes
    }

    /// What the shards ask.
    pub fn snapshot(&self) -> Revocations {
        let mut all = Revocations { latest: self.changes, ..Revocations::default() };
        for (key, entry) in &self.entries {
            let issued_before_s = entry.issued_before_s;
            match RevokedSubject::parse(key) {
                Some(RevokedSubject::User(user)) => {
                    all.user_changes.push((entry.change, user.clone()));
                    all.users.insert(user, issued_before_s);
                }
                Some(RevokedSubject::Token(id)) => {
                    all.tokens.insert(id_hash(&id));
                    all.marks_changed = all.marks_changed.max(entry.change);
                }
                Some(RevokedSubject::Everybody) => {
                    all.everybody_before_s = issued_before_s;
                    all.marks_changed = all.marks_changed.max(entry.change);
                }
                None => {}
            }
        }
        all.user_changes.sort_unstable();
        all
    }
}

/// What a node knows, for those who ask. Immutable.
#[derive(Debug, Default)]
pub struct Revocations {
    users: HashMap<Box<str>, u64>,
    /// By the number of their last change.
    user_changes: Vec<(u64, Box<str>)>,
    tokens: HashSet<u64>,
    /// 0: it is nobody's.
    everybody_before_s: u64,
    /// The number of the last change, and of the last one that was not about a user.
    latest: u64,
    marks_changed: u64,
}

impl Revocations {
    /// Whether the token of a connection is refused. A client without one has no user.
    pub fn refuse(&self, user: Option<&str>, mark: Option<TokenMark>) -> bool {
        let Some(user) = user else { return false };
        self.refuse_mark(mark) || self.refuse_user(user, mark)
    }

    /// Whether the token is refused for its id or its age, as that of any user.
    pub fn refuse_mark(&self, mark: Option<TokenMark>) -> bool {
        let is_known = mark.is_some_and(|mark| self.tokens.contains(&mark.id_hash));
        is_known || TokenMark::issued(mark) < self.everybody_before_s
    }

    /// Whether tokens of this user that are as old as this one are refused.
    pub fn refuse_user(&self, user: &str, mark: Option<TokenMark>) -> bool {
        self.users.get(user).is_some_and(|before_s| TokenMark::issued(mark) < *before_s)
    }

    /// Whether a token that has neither `jti` nor `iat` may be refused as that of any
    /// user.
    pub fn concern_unmarked(&self) -> bool {
        self.everybody_before_s > 0
    }

    /// The number of the last change.
    pub fn latest(&self) -> u64 {
        self.latest
    }

    /// Users about whom something is new since a change, with the moment.
    pub fn users_since(&self, change: u64) -> impl Iterator<Item = (&str, u64)> {
        let from = self.user_changes.partition_point(|(at, _)| *at <= change);
        let users = self.user_changes[from..].iter();
        users.map(|(_, user)| (&**user, self.users[user]))
    }

    /// Whether something else is new since a change.
    pub fn marks_changed_since(&self, change: u64) -> bool {
        self.marks_changed > change
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use RevokedSubject::{Everybody, Token, User};

    fn order(subject: RevokedSubject, issued_before_s: u64, until_s: u64) -> Revocation {
        Revocation { subject, issued_before_s, until_s }
    }

    fn mark(id: &str, issued_s: u64) -> Option<TokenMark> {
        TokenMark::new(Some(id), Some(issued_s as f64))
    }

    #[test]
    fn a_token_is_refused_by_its_user_its_id_or_its_age() {
        let mut table = RevocationTable::default();
        let none = table.snapshot();
        assert!(!none.refuse(Some("ann"), None) && !none.concern_unmarked());
        for order in [order(User("ann".into()), 100, 900), order(Token("x".into()), 0, 900)] {
            assert_eq!(table.insert(&order, 10), Inserted::Changed);
            assert_eq!(table.insert(&order, 10), Inserted::Known);
        }
        let some = table.snapshot();
        for (user, mark, is_refused) in [
            ("ann", mark("a", 99), true),
            ("ann", mark("a", 100), false),
            ("ann", None, true),
            ("bob", mark("a", 1), false),
            ("bob", mark("x", 1000), true),
            ("bob", None, false),
        ] {
            assert_eq!(some.refuse(Some(user), mark), is_refused, "{user} {mark:?}");
        }
        assert!(!some.refuse(None, None), "who shows no token has none that is revoked");
        table.insert(&order(Everybody, 500, 900), 10);
        let all = table.snapshot();
        let is_refused = |at| all.refuse(Some("bob"), mark("b", at));
        assert_eq!([499, 500].map(is_refused), [true, false]);
        assert!(all.refuse(Some("bob"), None) && !all.refuse(None, None));
    }

    #[test]
    fn later_moments_win_in_either_order_and_what_is_over_is_forgotten() {
        let (early, late) = (order(Everybody, 10, 50), order(Everybody, 20, 40));
        for both in [[&early, &late], [&late, &early]] {
            let mut table = RevocationTable::default();
            both.iter().for_each(|order| assert_eq!(table.insert(order, 1), Inserted::Changed));
            assert_eq!(table.iter().collect::<Vec<_>>(), [order(Everybody, 20, 50)]);
            assert!(!table.remove_expired(49) && table.remove_expired(50) && table.is_empty());
        }
    }

    #[test]
    fn a_full_table_takes_no_other_subject_and_holds_a_bounded_number_of_bytes() {
        let mut table = RevocationTable::default();
        let named = |n: usize| order(User(format!("{n:0>255}").into()), 1, 2);
        for n in 0..10 {
            assert_eq!(table.insert(&named(n), 10), Inserted::Changed);
        }
        assert_eq!(table.insert(&named(10), 10), Inserted::Full);
        assert_eq!(table.insert(&order(named(3).subject, 2, 2), 10), Inserted::Changed);
        assert_eq!((table.len(), table.held_bytes()), (10, 10 * (ENTRY_BYTES + 3 * 257)));
        table.remove_expired(2);
        assert_eq!(table.held_bytes(), 0);
    }

    #[test]
    fn a_reader_learns_what_is_new_since_it_last_looked() {
        let mut table = RevocationTable::default();
        let add = |table: &mut RevocationTable, subject, before| {
            table.insert(&order(subject, before, 900), 10);
            table.snapshot()
        };
        let first = add(&mut table, User("ann".into()), 5);
        let users = |all: &Revocations, since| -> Vec<(String, u64)> {
            all.users_since(since).map(|(user, before)| (user.to_owned(), before)).collect()
        };
        assert_eq!(users(&first, 0), [("ann".to_owned(), 5)]);
        assert!(!first.marks_changed_since(0));
        add(&mut table, User("bob".into()), 6);
        let third = add(&mut table, User("ann".into()), 7);
        assert_eq!(users(&third, first.latest()), [("bob".to_owned(), 6), ("ann".to_owned(), 7)]);
        let fourth = add(&mut table, Token("x".into()), 0);
        assert!(users(&fourth, third.latest()).is_empty());
        assert!(fourth.marks_changed_since(third.latest()));
        assert!(!fourth.marks_changed_since(fourth.latest()));
    }

    #[test]
    fn a_subject_is_read_as_it_is_written_and_nothing_else_is() {
        for subject in [User("u:*".into()), Token("t: 1".into()), Everybody] {
            assert_eq!(RevokedSubject::parse(&subject.key()), Some(subject));
        }
        for wrong in ["", "u", "u:", "t:", "**", "x:1", "ü", &format!("t:{}", "x".repeat(256))] {
            assert_eq!(RevokedSubject::parse(wrong), None, "{wrong}");
        }
    }
}
