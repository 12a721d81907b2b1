//! What holds for which rooms: history, recovery, who may come in, what becomes of slow members.
//!
//! A room's name up to its first colon is its *namespace*: `chat:lobby` is of `chat`. What is said
//! of `[namespaces.chat]` holds for all such rooms; a room of no namespace, or of one that nothing is
//! said of, is of `default`. Broadcasts are no rooms: nothing is kept of them.
//!
//! What is sent to a user is kept where something is said of `[namespaces."@users"]`, which no room
//! can be of. Clients without a token have a name for as long as they are connected: nothing is
//! kept for those.
//!
//! Flags and the environment write it as text: `chat: history_size=100, recovery=false; default:
//! history_size=10`.
//!
//! Invariant: a room's namespace follows from its name alone, on every node and in every shard alike.

use crate::ids::{ANONYMOUS_PREFIX, TopicKind};
use std::fmt::Write;

/// Who may do something, beside what their rights say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// Everybody who may connect.
    Anyone,
    /// Who has shown a token.
    Users,
    /// No client: only the HTTP API and other services.
    Nobody,
}

/// What becomes of messages for a member whose socket does not take more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlowConsumer {
    /// They wait; beyond `limits.outbox_bytes_max` the connection is closed.
    Close,
    /// The oldest of the room give way, and the member is told how many.
    DropOldest,
    /// Only the newest of the room waits, or the newest for each `conflate_key`.
    Conflate,
}

/// Who must have a message before its publisher is told that it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// The master.
    Async,
    /// The master and a replica.
    Replicated,
}

/// What holds for the rooms of one namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Messages of a room that are kept; 0: none, and messages have no position.
    pub history_size: usize,
    /// For how long they are kept.
    pub history_ttl_s: u64,
    /// Who must have a message before it is acknowledged.
    pub durability: Durability,
    /// Whether a join with `since` brings what was missed.
    pub recovery: bool,
    /// Who may join.
    pub join: Who,
    /// Who may publish, if their rights allow it.
    pub publish: Who,
    /// What becomes of messages for members who are too slow.
    pub slow_consumer: SlowConsumer,
    /// What may wait of one room for one such member, where messages give way.
    pub slow_bytes_max: usize,
    /// Whether it is known who is there.
    pub presence: bool,
    /// Who has left is told as gone when so much time has passed without a return.
    pub presence_grace_ms: u64,
    /// Rooms with more users are not told who comes and goes; they may ask.
    pub presence_events_users_max: usize,
    /// Whether members may acknowledge what they hear.
    pub acks: bool,
    /// A member that has not acknowledged a message for so long is lagging.
    pub ack_timeout_ms: u64,
}

/// All namespaces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespaces {
    /// What is said of those that are named, in their order.
    named: Vec<(String, Policy)>,
    /// What is said of users' own topics.
    users: Option<Policy>,
}

/// The name under which users' own topics are spoken of. No namespace can have it.
const USERS: &str = "@users";
/// What may be said of them.
const USERS_KEYS: [&str; 2] = ["history_size", "history_ttl_s"];

/// The name of the namespace of all rooms that are of no other.
const DEFAULT: &str = "default";
const HISTORY_SIZE_MAX: u64 = 100_000;
const HISTORY_TTL_S_MAX: u64 = 30 * 24 * 60 * 60;
const SLOW_BYTES_MIN: u64 = 256;
const SLOW_BYTES_MAX: u64 = 1024 * 1024 * 1024;
const PRESENCE_GRACE_MS_MAX: u64 = 600_000;
const PRESENCE_EVENTS_USERS_MAX: u64 = 100_000;
const ACK_TIMEOUT_MS_MIN: u64 = 100;
const ACK_TIMEOUT_MS_MAX: u64 = 24 * 60 * 60 * 1000;
/// Namespaces, at most.
const NAMESPACES_MAX: usize = 255;

/// One thing to say of a namespace.
pub struct NamespaceSetting {
    /// How it is written.
    pub key: &'static str,
    /// What it takes.
    pub wanted: &'static str,
    /// What it means.
    pub doc: &'static str,
    set: fn(&mut Policy, &str) -> Option<()>,
    /// What it is in a policy.
    pub get: fn(&Policy) -> String,
}

/// All of them, in the order in which they are printed.
pub static NAMESPACE_SETTINGS: &[NamespaceSetting] = &[
    NamespaceSetting {
        key: "history_size",
        wanted: "a whole number of messages from 0 to 100000",
        doc: "Messages of a room that are kept. 0: none, and its messages have no position.",
        set: |policy, text| {
            set(&mut policy.history_size, number(text, 0, HISTORY_SIZE_MAX)? as usize)
        },
        get: |policy| policy.history_size.to_string(),
    },
    NamespaceSetting {
        key: "history_ttl_s",
        wanted: "a whole number of seconds from 1 to 2592000",
        doc: "For how long they are kept.",
        set: |policy, text| set(&mut policy.history_ttl_s, number(text, 1, HISTORY_TTL_S_MAX)?),
        get: |policy| policy.history_ttl_s.to_string(),
    },
    NamespaceSetting {
        key: "durability",
        wanted: "one of async, replicated",
        doc: "When a publish is acknowledged. async: when Redis has it. replicated: when one of its \
              replicas has it too; if none says so within 500 ms, the outcome is unknown.",
        set: |policy, text| set(&mut policy.durability, Durability::read(text)?),
        get: |policy| policy.durability.name().to_owned(),
    },
    NamespaceSetting {
        key: "recovery",
        wanted: "true or false",
        doc: "Whether a join with `since` brings what was missed. Needs a history.",
        set: |policy, text| set(&mut policy.recovery, text.parse().ok()?),
        get: |policy| policy.recovery.to_string(),
    },
    NamespaceSetting {
        key: "join",
        wanted: "one of anyone, users, nobody",
        doc: "Who may join. users: who has shown a token.",
        set: |policy, text| set(&mut policy.join, Who::read(text)?),
        get: |policy| policy.join.name().to_owned(),
    },
    NamespaceSetting {
        key: "publish",
        wanted: "one of anyone, users, nobody",
        doc: "Who may publish, if their rights allow it. nobody: only the HTTP API and Redis.",
        set: |policy, text| set(&mut policy.publish, Who::read(text)?),
        get: |policy| policy.publish.name().to_owned(),
    },
    NamespaceSetting {
        key: "slow_consumer",
        wanted: "one of close, drop_oldest, conflate",
        doc: "What becomes of messages for a member who reads too slowly. close: they wait, up to \
              limits.outbox_bytes_max. drop_oldest: the oldest give way, and the member hears `lost`. \
              conflate: only the newest waits, or the newest for each `conflate_key`.",
        set: |policy, text| set(&mut policy.slow_consumer, SlowConsumer::read(text)?),
        get: |policy| policy.slow_consumer.name().to_owned(),
    },
    NamespaceSetting {
        key: "slow_bytes_max",
        wanted: "a whole number of bytes from 256 to 1073741824",
        doc: "What may wait of one room for one slow member, with drop_oldest or conflate. Beyond: \
              the oldest give way. All rooms of a connection together stay within \
              limits.outbox_bytes_max.",
        set: |policy, text| {
            set(&mut policy.slow_bytes_max, number(text, SLOW_BYTES_MIN, SLOW_BYTES_MAX)? as usize)
        },
        get: |policy| policy.slow_bytes_max.to_string(),
    },
    NamespaceSetting {
        key: "presence",
        wanted: "true or false",
        doc: "Whether it is known who is in a room: `presence` is answered, and the members are told \
              who comes (`joined`) and who goes (`left`).",
        set: |policy, text| set(&mut policy.presence, text.parse().ok()?),
        get: |policy| policy.presence.to_string(),
    },
    NamespaceSetting {
        key: "presence_grace_ms",
        wanted: "a whole number of milliseconds from 0 to 600000",
        doc: "How long after a user's last connection has left `left` is told. Who comes back before \
              has never been away: a page that is reloaded is no news.",
        set: |policy, text| {
            set(&mut policy.presence_grace_ms, number(text, 0, PRESENCE_GRACE_MS_MAX)?)
        },
        get: |policy| policy.presence_grace_ms.to_string(),
    },
    NamespaceSetting {
        key: "presence_events_users_max",
        wanted: "a whole number of users from 0 to 100000",
        doc: "A room with more users is not told who comes and goes: each would be told of each. \
              `presence` is answered all the same. 0: never told.",
        set: |policy, text| {
            let users = number(text, 0, PRESENCE_EVENTS_USERS_MAX)? as usize;
            set(&mut policy.presence_events_users_max, users)
        },
        get: |policy| policy.presence_events_users_max.to_string(),
    },
    NamespaceSetting {
        key: "acks",
        wanted: "true or false",
        doc: "Whether members may acknowledge what they hear (a join with `\"ack\":true`). Needs a \
              history.",
        set: |policy, text| set(&mut policy.acks, text.parse().ok()?),
        get: |policy| policy.acks.to_string(),
    },
    NamespaceSetting {
        key: "ack_timeout_ms",
        wanted: "a whole number of milliseconds from 100 to 86400000",
        doc: "A member that was sent a message so long ago and has not acknowledged it is lagging: \
              it is counted, and nothing is done to it.",
        set: |policy, text| {
            set(&mut policy.ack_timeout_ms, number(text, ACK_TIMEOUT_MS_MIN, ACK_TIMEOUT_MS_MAX)?)
        },
        get: |policy| policy.ack_timeout_ms.to_string(),
    },
];

fn set<T>(place: &mut T, value: T) -> Option<()> {
    *place = value;
    Some(())
}

fn number(text: &str, min: u64, max: u64) -> Option<u64> {
    text.parse().ok().filter(|number| (min..=max).contains(number))
}

impl Who {
    const ALL: [Who; 3] = [Who::Anyone, Who::Users, Who::Nobody];

    fn name(self) -> &'static str {
        match self {
            Who::Anyone => "anyone",
            Who::Users => "users",
            Who::Nobody => "nobody",
        }
    }

    fn read(text: &str) -> Option<Who> {
        Who::ALL.into_iter().find(|who| who.name() == text)
    }

    /// Whether it includes a client who has shown a token, or none.
    pub fn includes(self, has_token: bool) -> bool {
        match self {
            Who::Anyone => true,
            Who::Users => has_token,
            Who::Nobody => false,
        }
    }
}

impl SlowConsumer {
    const ALL: [SlowConsumer; 3] =
        [SlowConsumer::Close, SlowConsumer::DropOldest, SlowConsumer::Conflate];

    fn name(self) -> &'static str {
        match self {
            SlowConsumer::Close => "close",
            SlowConsumer::DropOldest => "drop_oldest",
            SlowConsumer::Conflate => "conflate",
        }
    }

    fn read(text: &str) -> Option<SlowConsumer> {
        SlowConsumer::ALL.into_iter().find(|slow| slow.name() == text)
    }
}

impl Durability {
    const ALL: [Durability; 2] = [Durability::Async, Durability::Replicated];

    fn name(self) -> &'static str {
        match self {
            Durability::Async => "async",
            Durability::Replicated => "replicated",
        }
    }

    fn read(text: &str) -> Option<Durability> {
        Durability::ALL.into_iter().find(|durability| durability.name() == text)
    }
}

impl Policy {
    /// Where nothing is said.
    pub const DEFAULT: Policy = Policy {
        history_size: 0,
        history_ttl_s: 300,
        durability: Durability::Async,
        recovery: true,
        join: Who::Anyone,
        publish: Who::Anyone,
        slow_consumer: SlowConsumer::Close,
        slow_bytes_max: 256 * 1024,
        presence: false,
        presence_grace_ms: 5_000,
        presence_events_users_max: 200,
        acks: false,
        ack_timeout_ms: 30_000,
    };

    /// Whether messages are kept.
    pub fn has_history(&self) -> bool {
        self.history_size > 0
    }

    /// Whether a replica must have a message, too.
    pub fn is_replicated(&self) -> bool {
        self.has_history() && self.durability == Durability::Replicated
    }

    /// Whether members may acknowledge what they hear.
    pub fn has_acks(&self) -> bool {
        self.acks && self.has_history()
    }

    /// Whether a `conflate_key` means anything.
    pub fn conflates(&self) -> bool {
        self.slow_consumer == SlowConsumer::Conflate
    }
}

impl Namespaces {
    /// What holds for a topic.
    pub fn policy(&self, topic: TopicKind<'_>) -> &Policy {
        match topic {
            TopicKind::Room(room) => self.policy_of_room(room),
            TopicKind::User(user) if !user.starts_with(ANONYMOUS_PREFIX) => {
                self.users.as_ref().unwrap_or(&Policy::DEFAULT)
            }
            TopicKind::User(_) | TopicKind::All => &Policy::DEFAULT,
        }
    }

    /// What holds for a room.
    pub fn policy_of_room(&self, room: &str) -> &Policy {
        let space = room.split_once(':').map_or("", |(space, _)| space);
        let find = |name: &str| self.named.iter().find(|(named, _)| named == name);
        let found = if space.is_empty() { None } else { find(space) };
        found.or_else(|| find(DEFAULT)).map_or(&Policy::DEFAULT, |(_, policy)| policy)
    }

    /// Whether any topic has a history.
    pub fn have_history(&self) -> bool {
        self.keep_for_users() || self.named.iter().any(|(_, policy)| policy.has_history())
    }

    /// Whether what is sent to users is kept for them.
    pub fn keep_for_users(&self) -> bool {
        self.users.as_ref().is_some_and(Policy::has_history)
    }

    /// Whether anything must be on a replica.
    pub fn want_replicas(&self) -> bool {
        self.named.iter().any(|(_, policy)| policy.is_replicated())
    }

    /// Whether it is known of any room who is there.
    pub fn have_presence(&self) -> bool {
        self.named.iter().any(|(_, policy)| policy.presence)
    }

    /// Whether members of any room may acknowledge what they hear.
    pub fn have_acks(&self) -> bool {
        self.named.iter().any(|(_, policy)| policy.has_acks())
    }

    /// What cannot be seen one setting at a time, and what to write instead. `has_tokens`: whether
    /// users have names.
    pub fn contradictions(&self, has_tokens: bool) -> Vec<String> {
        let without = |(_, policy): &&(String, Policy)| policy.acks && !policy.has_history();
        let told = |(name, _): &(String, Policy)| {
            format!(
                "namespaces: {name} has acks = true and history_size = 0: messages without a \
                 position cannot be acknowledged. Write a history_size, or leave acks out"
            )
        };
        let nobody = (self.keep_for_users() && !has_tokens).then(|| {
            format!(
                "namespaces: {USERS} keeps what is sent to users, and without auth.hmac_secret there \
                 are none: every client has a name of its own until it disconnects. Set \
                 auth.hmac_secret, or leave {USERS} out"
            )
        });
        self.named.iter().filter(without).map(told).chain(nobody).collect()
    }

    /// Those that something is said of.
    pub fn named(&self) -> impl Iterator<Item = (&str, &Policy)> {
        self.named.iter().map(|(name, policy)| (&name[..], policy))
    }

    /// Says one thing of one namespace. The error says what would be right.
    pub fn set(&mut self, space: &str, key: &str, value: &str) -> Result<(), String> {
        if space == USERS && !USERS_KEYS.contains(&key) {
            let known = USERS_KEYS.join(" and ");
            return Err(format!("{key:?} says nothing of {USERS}; {known} do. "));
        }
        if space != USERS && !is_space(space) {
            return Err(format!(
                "{space:?} cannot be a namespace: take 1 to 64 letters, digits, dots, dashes and \
                 underscores. "
            ));
        }
        let Some(setting) = NAMESPACE_SETTINGS.iter().find(|setting| setting.key == key) else {
            let known: Vec<_> = NAMESPACE_SETTINGS.iter().map(|setting| setting.key).collect();
            return Err(format!("{key:?} says nothing of a namespace; {} do. ", known.join(", ")));
        };
        let (set, wanted) = (setting.set, setting.wanted);
        let policy = self.of(space)?;
        set(policy, value).ok_or_else(|| format!("{space}.{key} = {value:?} is not {wanted}. "))
    }

    fn of(&mut self, space: &str) -> Result<&mut Policy, String> {
        if space == USERS {
            return Ok(self.users.get_or_insert(Policy::DEFAULT));
        }
        let place = match self.named.iter().position(|(name, _)| name == space) {
            Some(place) => place,
            None if self.named.len() == NAMESPACES_MAX => {
                return Err(format!("There are more than {NAMESPACES_MAX} namespaces. "));
            }
            None => {
                self.named.push((space.to_owned(), Policy::DEFAULT));
                self.named.len() - 1
            }
        };
        Ok(&mut self.named[place].1)
    }

    /// Reads the text form.
    pub fn read(text: &str) -> Result<Namespaces, String> {
        let mut all = Namespaces::default();
        for said in text.split(';').map(str::trim).filter(|said| !said.is_empty()) {
            let (space, settings) =
                said.split_once(':').ok_or_else(|| format!("{said:?} has no colon. "))?;
            for setting in settings.split(',').map(str::trim).filter(|said| !said.is_empty()) {
                let (key, value) =
                    setting.split_once('=').ok_or_else(|| format!("{setting:?} has no =. "))?;
                all.set(space.trim(), key.trim(), value.trim())?;
            }
        }
        Ok(all)
    }

    /// What [`Namespaces::read`] would read.
    pub fn write(&self) -> String {
        let mut out = String::new();
        for (space, policy) in &self.named {
            let opening = if out.is_empty() { "" } else { "; " };
            let settings =
                NAMESPACE_SETTINGS.iter().map(|setting| (setting.key, (setting.get)(policy)));
            let settings: Vec<_> = settings.map(|(key, value)| format!("{key}={value}")).collect();
            write!(out, "{opening}{space}: {}", settings.join(", "))
                .expect("a String takes everything");
        }
        if let Some(policy) = &self.users {
            let opening = if out.is_empty() { "" } else { "; " };
            let settings =
                NAMESPACE_SETTINGS.iter().filter(|setting| USERS_KEYS.contains(&setting.key));
            let settings = settings.map(|setting| (setting.key, (setting.get)(policy)));
            let settings: Vec<_> = settings.map(|(key, value)| format!("{key}={value}")).collect();
            write!(out, "{opening}{USERS}: {}", settings.join(", "))
                .expect("a String takes everything");
        }
        out
    }
}

fn is_space(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rooms_name_up_to_its_first_colon_is_its_namespace() {
        let all = Namespaces::read("chat: history_size=5; default: history_size=1").unwrap();
        let size = |room| all.policy_of_room(room).history_size;
        assert_eq!(["chat:a", "chat:a:b", "chat:"].map(size), [5, 5, 5]);
        assert_eq!(["chat", "chats:a", ":chat", "lobby", "default:x"].map(size), [1; 5]);
        let none = Namespaces::read("chat: history_size=5").unwrap();
        assert_eq!(none.policy_of_room("lobby"), &Policy::DEFAULT);
        assert_eq!(all.policy(TopicKind::User("chat:a")).history_size, 0);
    }

    #[test]
    fn what_is_written_is_read() {
        let text = "a: history_size=3, recovery=false, join=users, durability=replicated; \
                    b: publish=nobody, slow_consumer=conflate, slow_bytes_max=1000";
        let all = Namespaces::read(text).unwrap();
        assert_eq!(Namespaces::read(&all.write()), Ok(all.clone()));
        assert_eq!(all.named().map(|(name, _)| name).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(Namespaces::read(""), Ok(Namespaces::default()));
        assert!(all.have_history() && !Namespaces::default().have_history());
        assert!(all.want_replicas());
        assert!(!Namespaces::read("a: durability=replicated").unwrap().want_replicas());
        let here = Namespaces::read("a: presence=true, presence_grace_ms=0").unwrap();
        assert!(here.have_presence() && !all.have_presence() && !here.have_history());
        assert_eq!(Namespaces::read(&here.write()), Ok(here.clone()));
    }

    #[test]
    fn what_is_wrong_is_told_with_what_would_be_right() {
        for (text, wanted) in [
            ("chat", "has no colon"),
            ("chat: history", "has no ="),
            ("chat: history_size=-1", "from 0 to 100000"),
            ("chat: history_ttl_s=0", "from 1 to 2592000"),
            ("chat: durability=sure", "async, replicated"),
            ("chat: recovery=maybe", "true or false"),
            ("chat: join=me", "anyone, users, nobody"),
            ("chat: slow_consumer=drop", "close, drop_oldest, conflate"),
            ("chat: slow_bytes_max=255", "from 256 to 1073741824"),
            ("chat: presence=1", "true or false"),
            ("chat: presence_grace_ms=600001", "from 0 to 600000"),
            ("chat: presence_events_users_max=-1", "from 0 to 100000"),
            ("chat: acks=1", "true or false"),
            ("chat: ack_timeout_ms=99", "from 100 to 86400000"),
            ("chat: size=1", "history_size"),
            ("a b: history_size=1", "cannot be a namespace"),
        ] {
            let error = Namespaces::read(text).expect_err(text);
            assert!(error.contains(wanted), "{text}: {error}");
        }
    }

    #[test]
    fn what_is_sent_to_users_is_kept_for_those_who_have_a_name() {
        let text = "chat: history_size=5; @users: history_size=100, history_ttl_s=86400";
        let all = Namespaces::read(text).unwrap();
        let size = |topic| all.policy(topic).history_size;
        assert_eq!(size(TopicKind::User("ann")), 100);
        assert_eq!(size(TopicKind::User("anon-0123-0-1-2")), 0);
        assert_eq!([TopicKind::All, TopicKind::Room("@users:a")].map(size), [0, 0]);
        assert_eq!(Namespaces::read(&all.write()), Ok(all.clone()));
        let only = Namespaces::read("@users: history_size=1").unwrap();
        assert_eq!(Namespaces::read(&only.write()), Ok(only.clone()));
        assert!(only.have_history() && only.keep_for_users() && only.named().count() == 0);
        let off = Namespaces::read("@users: history_ttl_s=7").unwrap();
        assert!(!off.have_history() && !off.keep_for_users());
        for setting in
            NAMESPACE_SETTINGS.iter().filter(|setting| !USERS_KEYS.contains(&setting.key))
        {
            let text = format!("@users: {}={}", setting.key, (setting.get)(&Policy::DEFAULT));
            let error = Namespaces::read(&text).expect_err(&text);
            assert!(error.contains("history_size and history_ttl_s do"), "{error}");
        }
        assert!(Namespaces::read("@rooms: history_size=1").is_err());
    }

    #[test]
    fn acknowledgements_need_messages_that_have_a_place() {
        let all = Namespaces::read("a: acks=true; b: acks=true, history_size=1").unwrap();
        let [told] = &all.contradictions(false)[..] else { panic!("of one namespace") };
        assert!(told.starts_with("namespaces: a has acks"), "{told}");
        let acks = |room| all.policy_of_room(room).has_acks();
        assert_eq!(["a:x", "b:x", "x"].map(acks), [false, true, false]);
        assert!(all.have_acks());
    }

    #[test]
    fn who_may_includes_whom_it_says() {
        let both = |who: Who| [who.includes(false), who.includes(true)];
        assert_eq!(Who::ALL.map(both), [[true, true], [false, true], [false, false]]);
    }
}
