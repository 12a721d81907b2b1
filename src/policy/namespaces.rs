//! Namespaces: history, recovery, permissions, slow consumers, presence and acknowledgements by room.
//!
//! A room's name up to its first colon is its *namespace*: `chat:lobby` is in `chat`. The settings
//! of `[namespaces.chat]` hold for all such rooms; a room without a namespace, or of one that is not
//! configured, is in `default`. Broadcasts are not rooms and are never stored.
//!
//! Messages to users are stored where `[namespaces."@users"]` is configured, which no room can be
//! in. Clients without a token have a user id only while they are connected: nothing is stored for
//! them.
//!
//! Flags and the environment write it as text: `chat: history_size=100, recovery=false; default:
//! history_size=10`.
//!
//! Invariant: a room's namespace follows from its name alone, on every node and in every shard alike.

use crate::ids::{ANONYMOUS_PREFIX, TopicKind};
use crate::policy::setting::{SettingRange, SettingValue, bytes, count, ms, words};
use std::fmt::Write;

words! {
    /// Which clients may do something, if their rights allow it.
    Who {
        /// Every client that may connect.
        Anyone = "anyone",
        /// Clients that have shown a token.
        Users = "users",
        /// Clients whose token names the room.
        Token = "token",
        /// No client: only the HTTP API and other services.
        Nobody = "nobody",
    }
}

words! {
    /// What becomes of messages for a member whose socket does not take more.
    SlowConsumer {
        /// They wait; beyond `limits.outbox_bytes_max` the connection is closed.
        Close = "close",
        /// The oldest messages of the room are dropped, and the member receives `lost`.
        DropOldest = "drop_oldest",
        /// Only the newest of the room waits, or the newest for each `conflate_key`.
        Conflate = "conflate",
    }
}

words! {
    /// Which servers must have a message before its publish is acknowledged.
    Durability {
        /// The master.
        Async = "async",
        /// The master and a replica.
        Replicated = "replicated",
    }
}

/// A setting that a namespace may have: its name, range, default and text.
pub struct NamespaceSetting {
    /// Its name in the configuration.
    pub key: &'static str,
    /// The values that it takes.
    pub range: SettingRange,
    /// Its effect, in one sentence, for the sample and `docs/configuration.md`.
    pub doc: &'static str,
    set: fn(&mut Policy, &str) -> Option<()>,
    /// Its value in a policy, as text.
    pub get: fn(&Policy) -> String,
}

macro_rules! namespace_settings {
    ($( $name:ident: $type:ty = $default:expr, $range:expr, $doc:literal; )+) => {
        /// What holds for the rooms of one namespace.
        // Settings are described for a terminal.
        #[allow(rustdoc::bare_urls, rustdoc::broken_intra_doc_links)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct Policy {
            $( #[doc = $doc] pub $name: $type, )+
        }

        impl Policy {
            /// Where nothing is configured.
            pub const DEFAULT: Policy = Policy { $( $name: $default, )+ };
        }

        /// All of them, in the order in which they are printed.
        pub static NAMESPACE_SETTINGS: &[NamespaceSetting] = &[
            $( NamespaceSetting {
                key: stringify!($name),
                range: $range,
                doc: $doc,
                set: |policy, text| {
                    policy.$name = SettingValue::read(text)?;
                    Some(())
                },
                get: |policy| policy.$name.write(),
            }, )+
        ];
    };
}

namespace_settings! {
    history_size: usize = 0, count(0, 100_000, "messages"),
        "Messages stored for each room. 0: none, and its messages have no position.";
    history_ttl_s: u64 = 300, count(1, 30 * 24 * 60 * 60, "seconds"),
        "How long messages are stored.";
    durability: Durability = Durability::Async, SettingRange::Choice(Durability::WORDS),
        "When a publish is acknowledged. async: when Redis has it. replicated: when one of its replicas has it too; if none says so within 500 ms, the outcome is unknown.";
    recovery: bool = true, SettingRange::Bool,
        "Whether a join with `since` is answered with the missed messages. Needs a history.";
    join: Who = Who::Anyone, SettingRange::Choice(Who::WORDS),
        "Which clients may join. users: those with a token. token: those whose token names the room in its claim `rooms`, or who join with a token for it.";
    publish: Who = Who::Anyone, SettingRange::Choice(Who::WORDS),
        "Which clients may publish, if their rights allow it. token: those whose token names the room. nobody: only the HTTP API and Redis.";
    hook_join: bool = false, SettingRange::Bool,
        "Whether hooks.join_url is asked about each join that everything else allows.";
    hook_publish: bool = false, SettingRange::Bool,
        "Whether hooks.publish_url is asked about each message of a client that everything else allows.";
    slow_consumer: SlowConsumer = SlowConsumer::Close, SettingRange::Choice(SlowConsumer::WORDS),
        "What happens to messages for a member that reads too slowly. close: they wait, up to limits.outbox_bytes_max. drop_oldest: the oldest are dropped, and the member receives `lost`. conflate: only the newest waits, or the newest for each `conflate_key`.";
    slow_bytes_max: usize = 256 * 1024, bytes(256, 1024 * 1024 * 1024),
        "Bytes of one room that may wait for one slow member, with drop_oldest or conflate. Beyond: the oldest are dropped. All rooms of a connection together stay within limits.outbox_bytes_max.";
    members_per_shard_max: usize = 0, count(0, 16_000_000, "connections"),
        "Members that one room may have in each shard of a node; 0: no limit. Beyond: error room_full.";
    publishes_per_s_max: u64 = 0, count(0, 1_000_000, "messages"),
        "Messages that clients may publish to one room through each shard in a second, and at once; 0: no limit. Beyond: error rate_limited, the message is not sent. The HTTP API and Redis are not limited.";
    message_bytes_max: usize = 0, bytes(0, 16 * 1024 * 1024),
        "Bytes of the payload of a message; 0: what limits.message_bytes_max allows. Beyond: error too_big, over the HTTP API 413.";
    presence: bool = false, SettingRange::Bool,
        "Presence: requests for the users in a room are answered, and members receive `joined` and `left`.";
    presence_grace_ms: u64 = 5_000, ms(0, 600_000),
        "How long after a user's last connection has left its `left` is sent. A user that comes back before, such as by reloading a page, causes no event.";
    presence_events_users_max: usize = 200, count(0, 100_000, "users"),
        "Above so many users members receive no `joined` and `left`; requests for `presence` are still answered. 0: never sent.";
    message_info: bool = false, SettingRange::Bool,
        "Whether messages of clients show `info` of their tokens, for the others in the room.";
    acks: bool = false, SettingRange::Bool,
        "Whether members may acknowledge messages (a join with `\"ack\":true`). Needs a history.";
    ack_timeout_ms: u64 = 30_000, ms(100, 24 * 60 * 60 * 1000),
        "A member that has not acknowledged a message for so long counts as lagging. Nothing else happens to it.";
}

/// The settings of all namespaces, as configured. Immutable after the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespaces {
    /// Configured namespaces, in their order.
    named: Vec<(String, Policy)>,
    /// Settings of users' own topics.
    users: Option<Policy>,
}

/// The name under which users' own topics are configured. No namespace can have it.
const USERS: &str = "@users";
/// The settings that they have.
const USERS_KEYS: [&str; 2] = ["history_size", "history_ttl_s"];

/// The name of the namespace of all rooms that are of no other.
const DEFAULT: &str = "default";
/// More configured namespaces than this are an error.
const NAMESPACES_MAX: usize = 255;

impl Who {
    /// Whether it includes a client who has shown a token, or none. `granted`: whether that names the
    /// room; `None`: it says nothing of rooms.
    pub fn includes(self, has_token: bool, granted: Option<bool>) -> bool {
        match self {
            Who::Nobody => false,
            Who::Anyone | Who::Users | Who::Token if granted.is_some() => granted == Some(true),
            Who::Anyone => true,
            Who::Users => has_token,
            Who::Token => false,
        }
    }
}

impl Policy {
    /// Whether messages are stored.
    pub fn has_history(&self) -> bool {
        self.history_size > 0
    }

    /// Whether a replica must have a message, too.
    pub fn is_replicated(&self) -> bool {
        self.has_history() && self.durability == Durability::Replicated
    }

    /// Whether members may acknowledge messages.
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

    /// The size of the longest history.
    pub fn history_size_max(&self) -> usize {
        let policies = self.named.iter().map(|(_, policy)| policy).chain(self.users.as_ref());
        policies.map(|policy| policy.history_size).max().unwrap_or(0)
    }

    /// Whether messages to users are stored for them.
    pub fn keep_for_users(&self) -> bool {
        self.users.as_ref().is_some_and(Policy::has_history)
    }

    /// Whether anything must be on a replica.
    pub fn want_replicas(&self) -> bool {
        self.named.iter().any(|(_, policy)| policy.is_replicated())
    }

    /// Whether any room has presence.
    pub fn have_presence(&self) -> bool {
        self.named.iter().any(|(_, policy)| policy.presence)
    }

    /// Whether a hook is asked about joins of any room, and about messages to any room.
    pub fn have_hooks(&self) -> (bool, bool) {
        let any = |has: fn(&Policy) -> bool| self.named.iter().any(|(_, policy)| has(policy));
        (any(|policy| policy.hook_join), any(|policy| policy.hook_publish))
    }

    /// Whether members of any room may acknowledge messages.
    pub fn have_acks(&self) -> bool {
        self.named.iter().any(|(_, policy)| policy.has_acks())
    }

    /// What cannot be seen one setting at a time, and what to write instead. `has_tokens`: whether
    /// users have names.
    pub fn contradictions(&self, has_tokens: bool) -> Vec<String> {
        let without = |(_, policy): &&(String, Policy)| policy.acks && !policy.has_history();
        let without_history = |(name, _): &(String, Policy)| {
            format!(
                "namespaces: {name} has acks = true and history_size = 0: messages without a \
                 position cannot be acknowledged. Write a history_size, or leave acks out"
            )
        };
        let without_users = (self.keep_for_users() && !has_tokens).then(|| {
            format!(
                "namespaces: {USERS} keeps what is sent to users, and without auth.hmac_secret there \
                 are none: every client has a name of its own until it disconnects. Set \
                 auth.hmac_secret, or leave {USERS} out"
            )
        });
        self.named.iter().filter(without).map(without_history).chain(without_users).collect()
    }

    /// These namespaces with `join` and `publish` of others: what a running node takes over. All else
    /// stays what it is for each room.
    pub fn reloaded(&self, wanted: &Namespaces) -> Namespaces {
        let names = wanted.named().chain(self.named()).map(|(name, _)| name);
        let mut all = Namespaces { named: Vec::new(), users: self.users };
        for name in names {
            if all.named.iter().any(|(known, _)| known == name) {
                continue;
            }
            let room = format!("{name}:");
            let (before, after) = (self.policy_of_room(&room), wanted.policy_of_room(&room));
            let policy = Policy { join: after.join, publish: after.publish, ..*before };
            all.named.push((name.to_owned(), policy));
        }
        // One that is gone, and says nothing that its rooms would not have anyway, is forgotten.
        let default = *all.policy_of_room(DEFAULT);
        all.named.retain(|(name, policy)| {
            let otherwise = if name == DEFAULT { Policy::DEFAULT } else { default };
            *policy != otherwise || wanted.named.iter().any(|(wanted, _)| wanted == name)
        });
        all
    }

    /// Configured namespaces, in their order.
    pub fn named(&self) -> impl Iterator<Item = (&str, &Policy)> {
        self.named.iter().map(|(name, policy)| (&name[..], policy))
    }

    /// Sets one setting of one namespace. The error names what would be right.
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
        let (set, range) = (setting.set, setting.range);
        let policy = self.of(space)?;
        let is_set = range.takes(value) && set(policy, value).is_some();
        let wrong = || format!("{space}.{key} = {value:?} is not {}. ", range.wanted());
        is_set.then_some(()).ok_or_else(wrong)
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
        for space in text.split(';').map(str::trim).filter(|space| !space.is_empty()) {
            let (space, settings) =
                space.split_once(':').ok_or_else(|| format!("{space:?} has no colon. "))?;
            for setting in settings.split(',').map(str::trim).filter(|it| !it.is_empty()) {
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
    fn an_error_names_what_is_wrong_and_what_would_be_right() {
        for (text, wanted) in [
            ("chat", "has no colon"),
            ("chat: history", "has no ="),
            ("chat: history_size=-1", "from 0 to 100000"),
            ("chat: history_ttl_s=0", "from 1 to 2592000"),
            ("chat: durability=sure", "async, replicated"),
            ("chat: recovery=maybe", "true or false"),
            ("chat: join=me", "anyone, users, token, nobody"),
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
    fn messages_to_users_are_stored_for_those_who_have_a_name() {
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
        let [message] = &all.contradictions(false)[..] else { panic!("of one namespace") };
        assert!(message.starts_with("namespaces: a has acks"), "{message}");
        let acks = |room| all.policy_of_room(room).has_acks();
        assert_eq!(["a:x", "b:x", "x"].map(acks), [false, true, false]);
        assert!(all.have_acks());
    }

    #[test]
    fn who_may_includes_whom_it_says() {
        let all = [Who::Anyone, Who::Users, Who::Token, Who::Nobody];
        let without_token = all.map(|who| who.includes(false, None));
        assert_eq!(without_token, [true, false, false, false]);
        let with_token = |granted| all.map(|who| who.includes(true, granted));
        assert_eq!(with_token(None), [true, true, false, false]);
        assert_eq!(with_token(Some(true)), [true, true, true, false]);
        assert_eq!(with_token(Some(false)), [false; 4]);
    }
}
