//! What a client may do: its rights, what holds for the topic, and whether it is a member, weighed in
//! one place.
//!
//! Four yes-or-no rights, named in configuration and tokens alike. [`may`] is the only check: every
//! dialect and the HTTP API ask it, so none of them can forget a part of it.

use crate::ids::TopicKind;
use crate::policy::grants::{Grants, RoomAction, RoomActions};
use crate::policy::namespaces::{Namespaces, Policy};

/// What a user may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rights {
    /// Publish to rooms.
    pub publish: bool,
    /// Publish to rooms this connection is not in.
    pub publish_unjoined: bool,
    /// Send to a user.
    pub send: bool,
    /// Broadcast to everyone.
    pub broadcast: bool,
}

/// [`Rights`] in one byte, for what is stored of every connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackedRights(u8);

impl From<Rights> for PackedRights {
    fn from(rights: Rights) -> PackedRights {
        let Rights { publish, publish_unjoined, send, broadcast } = rights;
        let bits = [publish, publish_unjoined, send, broadcast];
        PackedRights(bits.iter().rev().fold(0, |byte, bit| byte << 1 | u8::from(*bit)))
    }
}

impl From<PackedRights> for Rights {
    fn from(packed: PackedRights) -> Rights {
        let [publish, publish_unjoined, send, broadcast] =
            [0, 1, 2, 3].map(|bit| packed.0 >> bit & 1 == 1);
        Rights { publish, publish_unjoined, send, broadcast }
    }
}

impl Rights {
    /// Nothing but receiving.
    pub const NONE: Rights =
        Rights { publish: false, publish_unjoined: false, send: false, broadcast: false };

    /// How rights are called in configuration and tokens.
    pub const NAMES: [&'static str; 4] = ["publish", "publish_unjoined", "send", "broadcast"];

    /// These rights and one more; `None` when there is no right of that name.
    pub fn with(mut self, name: &str) -> Option<Rights> {
        match name {
            "publish" => self.publish = true,
            "publish_unjoined" => self.publish_unjoined = true,
            "send" => self.send = true,
            "broadcast" => self.broadcast = true,
            _ => return None,
        }
        Some(self)
    }

    /// The names of these rights.
    pub fn names(self) -> Vec<&'static str> {
        let held = [self.publish, self.publish_unjoined, self.send, self.broadcast];
        Rights::NAMES
            .into_iter()
            .zip(held)
            .filter_map(|(name, held)| held.then_some(name))
            .collect()
    }
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asker<'a> {
    /// A connection of a client.
    Client {
        /// The rights of its user, from the token or the configured default.
        rights: Rights,
        /// Whether its user has shown a token.
        has_token: bool,
        /// Whether it is in the topic, or about to be.
        is_member: bool,
        /// What its token allows beside that; `None`: it says nothing of it.
        granted: Option<Granted<'a>>,
        /// What a token for this very room allows, with which it joined or is about to.
        room_token: Option<RoomActions>,
        /// What a hook has decided about this join or publish.
        hook: HookWord,
    },
    /// A service that uses the HTTP API, for which the key of the API stands in.
    Service,
}

/// What a hook has decided about a join or a publish of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookWord {
    /// It was not asked yet.
    NotAsked,
    /// It allows it.
    Allowed,
    /// It does not.
    Denied,
}

/// What a token allows to its user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granted<'a> {
    /// Its patterns.
    pub grants: &'a Grants,
    /// The name of its user.
    pub user: &'a str,
}

impl Asker<'_> {
    /// Whether one of its tokens allows an action in a room. `None`: none says anything of the room.
    fn granted_in(&self, action: RoomAction, topic: TopicKind<'_>) -> Option<bool> {
        let (Asker::Client { granted, room_token, .. }, TopicKind::Room(room)) = (self, topic)
        else {
            return None;
        };
        let by_user = granted.and_then(|it| it.grants.allow(action, room, it.user));
        match (by_user, room_token.map(|actions| actions.allow(action))) {
            (Some(one), Some(other)) => Some(one || other),
            (one, other) => one.or(other),
        }
    }
}

/// What can be done with a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// To be a member.
    Join {
        /// The member will acknowledge what it receives.
        acks: bool,
    },
    /// To publish to it: to a room, to a user, or to everybody.
    Publish {
        /// The message has a key by which a retry is recognised.
        has_key: bool,
    },
    /// To ask for messages of its history.
    ReadHistory,
    /// To ask who is there.
    ReadPresence,
    /// To acknowledge what was received.
    Acknowledge,
}

/// Why an action is refused. Each has a text for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotAllowed {
    /// Its rights, or the topic's rules, do not allow it.
    Forbidden(&'static str),
    /// The topic has no such thing.
    NotEnabled(&'static str),
    /// Only members may.
    NotJoined(&'static str),
    /// Everything allows it but a hook, which is to be asked. Never of a service.
    AskHook,
}

/// Whether `asker` may do `action` with a topic: the one check for every dialect and the API.
pub fn may(
    namespaces: &Namespaces,
    asker: Asker<'_>,
    action: Action,
    topic: TopicKind<'_>,
) -> Result<(), NotAllowed> {
    let policy = namespaces.policy(topic);
    match action {
        Action::Join { acks } => may_join(policy, asker, acks, topic),
        Action::Publish { has_key } => may_publish(policy, asker, has_key, topic),
        Action::ReadHistory => {
            is_granted(
                asker.granted_in(RoomAction::History, topic),
                "this user may not read this room's history",
            )?;
            is_enabled(policy.has_history(), "this room keeps no history")?;
            is_member(asker, "join the room before you ask for its history")
        }
        Action::ReadPresence => {
            is_granted(
                asker.granted_in(RoomAction::Presence, topic),
                "this user may not see who is in this room",
            )?;
            is_enabled(policy.presence, "presence is not enabled for this room")?;
            is_member(asker, "join the room before you ask who is there")
        }
        Action::Acknowledge => may_acknowledge(policy, topic),
    }
}

fn may_join(
    policy: &Policy,
    asker: Asker<'_>,
    acks: bool,
    topic: TopicKind<'_>,
) -> Result<(), NotAllowed> {
    if let Asker::Client { has_token, .. } = asker
        && !policy.join.includes(has_token, asker.granted_in(RoomAction::Join, topic))
    {
        return Err(NotAllowed::Forbidden("this user may not join this room"));
    }
    is_enabled(!acks || policy.has_acks(), "this room takes no acknowledgements")?;
    match asker {
        // A member was asked about when it joined.
        Asker::Client { hook, is_member: false, .. } if policy.hook_join => hook_allows(hook),
        _ => Ok(()),
    }
}

/// Comes last: a hook is asked only about what everything else allows.
fn hook_allows(hook: HookWord) -> Result<(), NotAllowed> {
    match hook {
        HookWord::NotAsked => Err(NotAllowed::AskHook),
        HookWord::Allowed => Ok(()),
        HookWord::Denied => Err(NotAllowed::Forbidden("this is not allowed here")),
    }
}

fn may_publish(
    policy: &Policy,
    asker: Asker<'_>,
    has_key: bool,
    topic: TopicKind<'_>,
) -> Result<(), NotAllowed> {
    if let Asker::Client { rights, has_token, granted, .. } = asker {
        let in_room = asker.granted_in(RoomAction::Publish, topic);
        let (is_allowed, why) = match topic {
            TopicKind::Room(_) => (
                in_room.unwrap_or(rights.publish) && policy.publish.includes(has_token, in_room),
                "this user may not publish to this room",
            ),
            TopicKind::User(to) => (
                rights.send || granted.is_some_and(|it| it.grants.allow_send(to, it.user)),
                "this user may not send to this user",
            ),
            TopicKind::All => (rights.broadcast, "this user may not broadcast"),
        };
        if !is_allowed {
            return Err(NotAllowed::Forbidden(why));
        }
    }
    let without_key = match topic {
        TopicKind::Room(_) => "key: only rooms with a history take keys",
        TopicKind::User(_) => "key: messages to this user are not stored",
        TopicKind::All => "key: broadcasts are not stored",
    };
    is_enabled(!has_key || policy.has_history(), without_key)?;
    match (asker, topic) {
        (Asker::Client { rights, .. }, TopicKind::Room(_)) if !rights.publish_unjoined => {
            is_member(asker, "join the room before you publish to it")?;
        }
        _ => {}
    }
    match (asker, topic) {
        (Asker::Client { hook, .. }, TopicKind::Room(_)) if policy.hook_publish => {
            hook_allows(hook)
        }
        _ => Ok(()),
    }
}

fn may_acknowledge(policy: &Policy, topic: TopicKind<'_>) -> Result<(), NotAllowed> {
    match topic {
        TopicKind::User(_) => is_enabled(
            policy.has_history(),
            "messages to this user are not stored: there is nothing to acknowledge",
        ),
        TopicKind::Room(_) | TopicKind::All => {
            is_enabled(policy.has_acks(), "this room takes no acknowledgements")
        }
    }
}

fn is_granted(granted: Option<bool>, why: &'static str) -> Result<(), NotAllowed> {
    if granted == Some(false) { Err(NotAllowed::Forbidden(why)) } else { Ok(()) }
}

fn is_enabled(is_enabled: bool, why: &'static str) -> Result<(), NotAllowed> {
    if is_enabled { Ok(()) } else { Err(NotAllowed::NotEnabled(why)) }
}

fn is_member(asker: Asker<'_>, why: &'static str) -> Result<(), NotAllowed> {
    match asker {
        Asker::Client { is_member: false, .. } => Err(NotAllowed::NotJoined(why)),
        Asker::Client { .. } | Asker::Service => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::grants::{GrantTexts, RoomTexts};
    use proptest::prelude::*;

    const ALL: Rights =
        Rights { publish: true, publish_unjoined: true, send: true, broadcast: true };
    const ROOM: TopicKind<'_> = TopicKind::Room("log:a");
    const PLAIN: TopicKind<'_> = TopicKind::Room("plain");
    const SPACES: &str = "log: history_size=9, presence=true, acks=true; \
                          ours: join=nobody, publish=nobody; theirs: join=users, publish=users";

    #[test]
    fn packed_rights_are_the_same_rights() {
        for bits in 0..16 {
            let [publish, publish_unjoined, send, broadcast] =
                [0, 1, 2, 3].map(|bit| bits >> bit & 1 == 1);
            let rights = Rights { publish, publish_unjoined, send, broadcast };
            assert_eq!(Rights::from(PackedRights::from(rights)), rights);
        }
    }

    fn client(rights: Rights, has_token: bool, is_member: bool) -> Asker<'static> {
        let hook = HookWord::NotAsked;
        Asker::Client { rights, has_token, is_member, granted: None, room_token: None, hook }
    }

    /// `ok`, or the kind of the refusal.
    fn verdict(asker: Asker<'_>, action: Action, topic: TopicKind<'_>) -> &'static str {
        let namespaces = Namespaces::read(SPACES).expect("it is well written");
        match may(&namespaces, asker, action, topic) {
            Ok(()) => "ok",
            Err(NotAllowed::Forbidden(_)) => "forbidden",
            Err(NotAllowed::NotEnabled(_)) => "not_enabled",
            Err(NotAllowed::NotJoined(_)) => "not_joined",
            Err(NotAllowed::AskHook) => "ask",
        }
    }

    #[test]
    fn a_service_may_do_whatever_the_topic_has() {
        let publish = Action::Publish { has_key: false };
        for topic in [ROOM, PLAIN, TopicKind::Room("ours:a"), TopicKind::User("u"), TopicKind::All]
        {
            assert_eq!(verdict(Asker::Service, publish, topic), "ok", "{topic:?}");
        }
        for action in [Action::ReadHistory, Action::ReadPresence] {
            assert_eq!(verdict(Asker::Service, action, ROOM), "ok");
            assert_eq!(verdict(Asker::Service, action, PLAIN), "not_enabled");
        }
        let with_key = Action::Publish { has_key: true };
        assert_eq!(verdict(Asker::Service, with_key, ROOM), "ok");
        assert_eq!(verdict(Asker::Service, with_key, PLAIN), "not_enabled");
    }

    #[test]
    fn each_kind_of_topic_asks_for_its_own_right_to_publish() {
        let publish = Action::Publish { has_key: false };
        let topics = [PLAIN, TopicKind::User("u"), TopicKind::All];
        for (right, allowed) in [("publish", 0), ("send", 1), ("broadcast", 2)] {
            let rights = Rights::NONE.with(right).expect("a right");
            let verdicts = topics.map(|topic| verdict(client(rights, true, true), publish, topic));
            let mut wanted = ["forbidden"; 3];
            wanted[allowed] = "ok";
            assert_eq!(verdicts, wanted, "{right}");
        }
    }

    #[test]
    fn only_members_publish_read_and_ask_unless_their_rights_say_more() {
        let rights = Rights::NONE.with("publish").expect("a right");
        let (inside, outside) = (client(rights, true, true), client(rights, true, false));
        let asks = [Action::Publish { has_key: false }, Action::ReadHistory, Action::ReadPresence];
        for action in asks {
            assert_eq!(verdict(inside, action, ROOM), "ok", "{action:?}");
            assert_eq!(verdict(outside, action, ROOM), "not_joined", "{action:?}");
        }
        assert_eq!(verdict(client(ALL, true, false), asks[0], ROOM), "ok");
        assert_eq!(verdict(client(ALL, true, false), asks[1], ROOM), "not_joined");
    }

    #[test]
    fn a_namespace_says_who_may_join_and_publish_whatever_their_rights() {
        let actions = [Action::Join { acks: false }, Action::Publish { has_key: false }];
        for action in actions {
            let verdict_in = |room, has_token| {
                verdict(client(ALL, has_token, true), action, TopicKind::Room(room))
            };
            assert_eq!(verdict_in("ours:a", true), "forbidden");
            assert_eq!(verdict_in("theirs:a", false), "forbidden");
            assert_eq!(verdict_in("theirs:a", true), "ok");
            assert_eq!(verdict_in("plain", false), "ok");
        }
    }

    fn grants(texts: GrantTexts) -> Grants {
        Grants::new(&texts).expect("few patterns")
    }

    fn all_in(rooms: &[&str]) -> Grants {
        let rooms = rooms.iter().map(|room| (*room).to_owned()).collect();
        grants(GrantTexts { rooms: Some(RoomTexts::for_all(rooms)), send: Vec::new() })
    }

    fn with_grants(rights: Rights, grants: &Grants) -> Asker<'_> {
        let granted = Some(Granted { grants, user: "ann" });
        let (room_token, hook) = (None, HookWord::NotAsked);
        Asker::Client { rights, has_token: true, is_member: true, granted, room_token, hook }
    }

    #[test]
    fn a_token_that_names_rooms_allows_these_and_no_others() {
        let grants = all_in(&["log:a", "ours:**", "theirs:{user}"]);
        let asker = with_grants(Rights::NONE, &grants);
        let actions = [
            Action::Join { acks: false },
            Action::Publish { has_key: false },
            Action::ReadHistory,
            Action::ReadPresence,
        ];
        for action in actions {
            assert_eq!(verdict(asker, action, ROOM), "ok", "{action:?}");
            assert_eq!(verdict(asker, action, TopicKind::Room("log:b")), "forbidden", "{action:?}");
        }
        for action in &actions[..2] {
            let of = |room| verdict(asker, *action, TopicKind::Room(room));
            assert_eq!(of("ours:a"), "forbidden", "nobody is nobody");
            assert_eq!((of("theirs:ann"), of("theirs:bob")), ("ok", "forbidden"));
            assert_eq!(of("plain"), "forbidden", "though everybody else may");
        }
    }

    #[test]
    fn rooms_for_tokens_that_name_them_admit_nobody_else() {
        let namespaces = Namespaces::read("vip: join=token, publish=token").expect("it is good");
        let grants = all_in(&["vip:a"]);
        let ok =
            |asker, action, room| may(&namespaces, asker, action, TopicKind::Room(room)).is_ok();
        for action in [Action::Join { acks: false }, Action::Publish { has_key: false }] {
            assert!(!ok(client(ALL, true, true), action, "vip:a"));
            assert!(ok(with_grants(ALL, &grants), action, "vip:a"));
            assert!(!ok(with_grants(ALL, &grants), action, "vip:b"));
            assert!(ok(Asker::Service, action, "vip:a"));
        }
    }

    #[test]
    fn a_token_may_name_the_users_to_whom_it_sends() {
        let to = |user| TopicKind::User(user);
        let grants = grants(GrantTexts { rooms: None, send: vec!["team-*".to_owned()] });
        let publish = Action::Publish { has_key: false };
        let asker = with_grants(Rights::NONE, &grants);
        assert_eq!(verdict(asker, publish, to("team-a")), "ok");
        assert_eq!(verdict(asker, publish, to("bob")), "forbidden");
        assert_eq!(verdict(with_grants(ALL, &grants), publish, to("bob")), "ok");
        let join = Action::Join { acks: false };
        assert_eq!(verdict(asker, join, PLAIN), "ok", "it says nothing of rooms");
    }

    /// What two tokens say together of a room.
    fn either(one: Option<bool>, other: Option<bool>) -> Option<bool> {
        match (one, other) {
            (None, None) => None,
            _ => Some(one == Some(true) || other == Some(true)),
        }
    }

    /// What decides about an action in a room, as the documentation names it.
    struct Case<'a> {
        /// Whom the namespace lets join, and publish.
        who: [&'a str; 2],
        /// 0: join, 1: publish; the others read.
        action: usize,
        /// Whether the tokens name the room.
        named: Option<bool>,
        has_token: bool,
        is_member: bool,
        publish: bool,
        publish_unjoined: bool,
    }

    /// The verdict of the documentation.
    fn plainly(case: &Case<'_>) -> bool {
        let Case { who, action, named, has_token, is_member, publish, publish_unjoined } = *case;
        let admits = |who: &str| match (who, named) {
            ("nobody", _) | (_, Some(false)) | ("token", None) => false,
            (_, Some(true)) | ("anyone", None) => true,
            _ => has_token,
        };
        match action {
            0 => admits(who[0]),
            1 => {
                admits(who[1])
                    && (publish || named == Some(true))
                    && (is_member || publish_unjoined)
            }
            _ => named != Some(false) && is_member,
        }
    }

    proptest! {
        /// Written once more, from the documentation, without a shared line.
        #[test]
        fn it_agrees_with_a_check_that_is_written_plainly(
            who_joins in 0_usize..4,
            who_publishes in 0_usize..4,
            rights in proptest::array::uniform4(any::<bool>()),
            has_token in any::<bool>(),
            is_member in any::<bool>(),
            lists in proptest::option::of(proptest::array::uniform4(proptest::collection::vec("s:[ab*]", 0..3))),
            // A token for this room, and what it allows.
            of_room in proptest::option::of(proptest::array::uniform4(any::<bool>())),
            room in "s:[ab]",
            action in 0_usize..4,
            hooked in proptest::array::uniform2(any::<bool>()),
            word in 0_usize..3,
        ) {
            let words = ["anyone", "users", "token", "nobody"];
            let text = format!(
                "s: history_size=1, presence=true, join={}, publish={}, hook_join={}, hook_publish={}",
                words[who_joins], words[who_publishes], hooked[0], hooked[1]
            );
            let namespaces = Namespaces::read(&text).expect("it is good");
            let [publish, publish_unjoined, send, broadcast] = rights;
            let rights = Rights { publish, publish_unjoined, send, broadcast };
            let lists = lists.filter(|_| has_token);
            let grants = lists.clone().map(|[join, publish, history, presence]| {
                let rooms = RoomTexts { join, publish, history, presence };
                self::grants(GrantTexts { rooms: Some(rooms), send: Vec::new() })
            });
            let granted = grants.as_ref().map(|grants| Granted { grants, user: "ann" });
            let room_token = of_room.map(|allowed| {
                let named = RoomActions::NAMES.iter().zip(allowed).filter(|(_, allowed)| *allowed);
                named.fold(RoomActions::NONE, |all, (name, _)| all.with(name).expect("a name"))
            });
            let hook = [HookWord::NotAsked, HookWord::Allowed, HookWord::Denied][word];
            let asker =
                Asker::Client { rights, has_token, is_member, granted, room_token, hook };
            let asked = [
                Action::Join { acks: false },
                Action::Publish { has_key: false },
                Action::ReadHistory,
                Action::ReadPresence,
            ][action];
            let found = may(&namespaces, asker, asked, TopicKind::Room(&room));
            let named = lists.map(|lists| {
                lists[action].iter().any(|pattern| *pattern == room || pattern == "s:*")
            });
            let who = [words[who_joins], words[who_publishes]];
            let named = either(named, of_room.map(|allowed| allowed[action]));
            let case =
                Case { who, action, named, has_token, is_member, publish, publish_unjoined };
            let wanted = plainly(&case);
            let is_asked = match action {
                0 => hooked[0] && !is_member,
                1 => hooked[1],
                _ => false,
            };
            let found = match found {
                Ok(()) => "yes",
                Err(NotAllowed::AskHook) => "ask",
                Err(_) => "no",
            };
            let wanted = match (wanted, is_asked, word) {
                (false, ..) | (true, true, 2) => "no",
                (true, true, 0) => "ask",
                _ => "yes",
            };
            prop_assert_eq!(found, wanted);
        }
    }

    #[test]
    fn what_a_topic_does_not_have_is_refused_as_such() {
        let asker = client(ALL, true, true);
        assert_eq!(verdict(asker, Action::Join { acks: true }, ROOM), "ok");
        assert_eq!(verdict(asker, Action::Join { acks: true }, PLAIN), "not_enabled");
        assert_eq!(verdict(asker, Action::Acknowledge, ROOM), "ok");
        assert_eq!(verdict(asker, Action::Acknowledge, PLAIN), "not_enabled");
        assert_eq!(verdict(asker, Action::Acknowledge, TopicKind::User("u")), "not_enabled");
        let with_key = Action::Publish { has_key: true };
        for topic in [PLAIN, TopicKind::User("u"), TopicKind::All] {
            assert_eq!(verdict(asker, with_key, topic), "not_enabled");
        }
    }
}
