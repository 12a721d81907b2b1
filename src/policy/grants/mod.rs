//! Grants: what a token allows in which rooms, and towards which users.
//!
//! A token may have a claim `rooms`, with patterns ([`pattern`]) for each action or one list for all
//! four, and a claim `send` with patterns of users:
//!
//! ```json
//! {"sub":"ann","rooms":{"join":["chat:*","dm:{user}:*"],"publish":["chat:*"]},"send":["support-*"]}
//! {"sub":"bob","rooms":["news:**"]}
//! ```
//!
//! With the claim nothing is allowed in rooms that no pattern names, whatever the namespace says;
//! without it the namespace's settings hold. A set is bounded ([`PATTERNS_MAX`], [`BYTES_MAX`]), and
//! the same for every user who has the same claims.
//!
//! Invariant: immutable; who is asked is an argument.

mod pattern;
mod room_actions;

pub use pattern::Pattern;
pub use room_actions::{RoomAction, RoomActions};

/// Patterns of one token, at most.
pub const PATTERNS_MAX: usize = 64;
/// Their bytes, at most.
pub const BYTES_MAX: usize = 4096;

/// What a token allows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Grants {
    /// Rooms, by action; `None`: the token says nothing of rooms.
    rooms: Option<RoomGrants>,
    /// Users to whom it may send, beside the right to send to all.
    send: Vec<Pattern>,
}

/// Patterns of rooms for each action.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct RoomGrants {
    join: Vec<Pattern>,
    publish: Vec<Pattern>,
    history: Vec<Pattern>,
    presence: Vec<Pattern>,
}

/// What a token says, as text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GrantTexts {
    /// Rooms; `None`: nothing.
    pub rooms: Option<RoomTexts>,
    /// Users to whom it may send.
    pub send: Vec<String>,
}

/// Patterns of rooms for each action, as text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoomTexts {
    /// To be joined.
    pub join: Vec<String>,
    /// To be published to.
    pub publish: Vec<String>,
    /// Whose history may be read.
    pub history: Vec<String>,
    /// Whose presence may be read.
    pub presence: Vec<String>,
}

impl RoomTexts {
    /// One list for all actions.
    pub fn for_all(list: Vec<String>) -> RoomTexts {
        let (publish, history, presence) = (list.clone(), list.clone(), list.clone());
        RoomTexts { join: list, publish, history, presence }
    }
}

impl Grants {
    /// Takes the patterns apart. `None`: there are more of them than may be. A list for all actions
    /// counts once.
    pub fn new(texts: &GrantTexts) -> Option<Grants> {
        let rooms = texts.rooms.as_ref();
        let of_rooms = rooms.map(|rooms| {
            let lists = [&rooms.join, &rooms.publish, &rooms.history, &rooms.presence];
            match lists.iter().all(|list| *list == lists[0]) {
                true => lists[..1].to_vec(),
                false => lists.to_vec(),
            }
        });
        let lists = of_rooms.unwrap_or_default().into_iter().chain([&texts.send]);
        let all = lists
            .flatten()
            .fold((0, 0), |(patterns, bytes), text| (patterns + 1, bytes + text.len()));
        if all.0 > PATTERNS_MAX || all.1 > BYTES_MAX {
            return None;
        }
        let patterns = |texts: &[String]| texts.iter().map(|text| Pattern::new(text)).collect();
        let rooms = rooms.map(|rooms| RoomGrants {
            join: patterns(&rooms.join),
            publish: patterns(&rooms.publish),
            history: patterns(&rooms.history),
            presence: patterns(&rooms.presence),
        });
        Some(Grants { rooms, send: patterns(&texts.send) })
    }

    /// Whether it allows an action in a room. `None`: it says nothing of rooms.
    pub fn allow(&self, action: RoomAction, room: &str, user: &str) -> Option<bool> {
        let rooms = self.rooms.as_ref()?;
        let patterns = match action {
            RoomAction::Join => &rooms.join,
            RoomAction::Publish => &rooms.publish,
            RoomAction::History => &rooms.history,
            RoomAction::Presence => &rooms.presence,
        };
        Some(patterns.iter().any(|pattern| pattern.matches(room, user)))
    }

    /// Bytes that it keeps alive.
    pub fn held_bytes(&self) -> usize {
        let rooms = self.rooms.iter();
        let of_rooms = rooms.flat_map(|of| [&of.join, &of.publish, &of.history, &of.presence]);
        let patterns = of_rooms.chain([&self.send]).flatten();
        size_of::<Grants>() + patterns.map(Pattern::held_bytes).sum::<usize>()
    }

    /// Whether it allows to send to another user.
    pub fn allow_send(&self, to: &str, user: &str) -> bool {
        self.send.iter().any(|pattern| pattern.matches(to, user))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(list: &[&str]) -> Vec<String> {
        list.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn each_action_has_its_rooms_and_one_list_is_for_all() {
        use RoomAction::{History, Join, Presence, Publish};
        let rooms = RoomTexts {
            join: texts(&["chat:*", "dm:{user}:*"]),
            publish: texts(&["chat:*"]),
            ..RoomTexts::default()
        };
        let grants = Grants::new(&GrantTexts { rooms: Some(rooms), send: texts(&["bob"]) });
        let grants = grants.expect("few patterns");
        let allowed = |room| {
            [Join, Publish, History, Presence].map(|action| grants.allow(action, room, "ann"))
        };
        assert_eq!(allowed("chat:a"), [Some(true), Some(true), Some(false), Some(false)]);
        assert_eq!(allowed("dm:ann:b"), [Some(true), Some(false), Some(false), Some(false)]);
        assert_eq!(allowed("dm:bob:b"), [Some(false); 4]);
        assert!(grants.allow_send("bob", "ann") && !grants.allow_send("bobby", "ann"));
        let all = GrantTexts { rooms: Some(RoomTexts::for_all(texts(&["a"]))), send: Vec::new() };
        let all = Grants::new(&all).expect("one pattern");
        assert!(
            [Join, Publish, History, Presence]
                .iter()
                .all(|action| all.allow(*action, "a", "ann") == Some(true))
        );
        assert_eq!(Grants::default().allow(Join, "a", "ann"), None);
    }

    #[test]
    fn more_patterns_than_may_be_are_no_grants() {
        let of = |patterns: usize, bytes: usize| {
            let list = vec!["x".repeat(bytes); patterns];
            let rooms = Some(RoomTexts::for_all(list));
            Grants::new(&GrantTexts { rooms, send: Vec::new() }).is_some()
        };
        assert!(of(PATTERNS_MAX, 1) && !of(PATTERNS_MAX + 1, 1));
        assert!(of(16, BYTES_MAX / 16) && !of(17, BYTES_MAX / 16));
        let rooms = RoomTexts {
            join: texts(&["a"; 33]),
            publish: texts(&["b"; 32]),
            ..RoomTexts::default()
        };
        assert!(Grants::new(&GrantTexts { rooms: Some(rooms), send: Vec::new() }).is_none());
    }
}
