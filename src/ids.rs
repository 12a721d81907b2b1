//! Numbers and names: who a shard, a connection and a topic are.
//!
//! Everything here is small, `Copy` where it can be, and without behaviour. Ids into slabs carry a
//! generation, so that a message which was under way while its target left finds nothing instead of
//! another connection (the ABA guard of `slab.rs`).

use sha2::{Digest, Sha256};
use std::fmt;
use std::num::NonZeroU64;
use std::sync::Arc;

/// One shard of this node, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShardId(pub u16);

/// A place in a slab and how often that place had been used before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SlotId {
    /// Which place.
    pub index: u32,
    /// How often the place had been used before, so that a stale key is recognised.
    pub generation: u32,
}

/// A connection of one shard. Never compared across shards without a [`ShardId`] beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnId(pub SlotId);

/// A topic as one shard numbers it. The backplane stores it and hands it back with each delivery,
/// so that a delivery indexes and never hashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TopicId(pub SlotId);

/// A place in a topic's history. Offsets count from 1 within an epoch; an epoch begins when a history
/// does, and a position of another epoch cannot be compared with this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Position {
    /// Which history: the millisecond (over Redis) or microsecond since 1970 in which it began. 0: it
    /// is not known where the history is.
    pub epoch: u64,
    /// How many messages it has had; 0: none yet.
    pub offset: u64,
}

impl Position {
    /// The largest epoch and the largest offset. Up to here each whole number is one of its own for
    /// Lua (the scripts in Redis) and JavaScript (clients), too; beyond, two offsets would be one. A
    /// million messages a second reach it after 285 years. `backplane/redis/lua/number.lua` has the
    /// same limit.
    pub const NUMBER_MAX: u64 = (1 << 53) - 1;

    /// A place that another program names. `None`: no history has such a place.
    ///
    /// Whatever has come through here can be counted from: `offset + 1` and `epoch + 1` are numbers.
    pub fn checked(epoch: u64, offset: u64) -> Option<Position> {
        let is_place =
            (1..=Position::NUMBER_MAX).contains(&epoch) && offset <= Position::NUMBER_MAX;
        is_place.then_some(Position { epoch, offset })
    }
}

/// How far a client has acknowledged the messages of one topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UpTo {
    /// In which history. `None`: in the one that it is in.
    pub epoch: Option<u64>,
    /// The last message that it has dealt with, and all before it.
    pub offset: u64,
}

impl ConnId {
    /// The key that travels through the kernel (epoll data) and back.
    pub fn to_bits(self) -> u64 {
        u64::from(self.0.generation) << 32 | u64::from(self.0.index)
    }

    /// The inverse of [`ConnId::to_bits`].
    pub fn from_bits(bits: u64) -> ConnId {
        ConnId(SlotId { index: bits as u32, generation: (bits >> 32) as u32 })
    }
}

/// This process among all nodes: random for each start, so a restarted node inherits nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NodeId(pub u64);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// The longest `conflate_key`, in bytes of text.
pub const CONFLATE_KEY_BYTES_MAX: usize = 128;

/// What a message is about, where only the newest one about the same thing matters to a slow member:
/// a digest of its `conflate_key`, the same on every node of every version.
///
/// Eight bytes instead of the text, so that it costs nothing to carry. Of ten thousand keys of one
/// room two are alike once in 10¹¹; and who wanted to make two alike could as well write the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConflateKey(NonZeroU64);

impl ConflateKey {
    /// The key that clients write as `text`. `None`: it is empty, or too long.
    pub fn of(text: &str) -> Option<ConflateKey> {
        if !(1..=CONFLATE_KEY_BYTES_MAX).contains(&text.len()) {
            return None;
        }
        Some(ConflateKey::digest(Sha256::new().chain_update(text)))
    }

    /// The key of a user's presence events: only the newest of them waits, and it never replaces a
    /// message. No client can write it, because it is no UTF-8.
    pub fn of_news(user: &str) -> ConflateKey {
        ConflateKey::digest(Sha256::new().chain_update([0xFF]).chain_update(user))
    }

    fn digest(digest: Sha256) -> ConflateKey {
        let digest = digest.finalize();
        let (first, _) = digest.split_first_chunk().expect("a digest has 32 bytes");
        ConflateKey(NonZeroU64::new(u64::from_le_bytes(*first)).unwrap_or(NonZeroU64::MAX))
    }

    /// As it travels between nodes.
    pub fn to_bits(self) -> u64 {
        self.0.get()
    }

    /// The inverse of [`ConflateKey::to_bits`]. 0 is no key.
    pub fn from_bits(bits: u64) -> Option<ConflateKey> {
        NonZeroU64::new(bits).map(ConflateKey)
    }
}

/// The longest room or user name, in bytes.
pub const NAME_BYTES_MAX: usize = 255;

/// What the names of users without a token begin with, and no others: who they are is known until
/// they disconnect.
pub const ANONYMOUS_PREFIX: &str = "anon-";

/// What frames are addressed to: a room (`r:<room>`), a user (`u:<user>`) or everybody (`*`).
///
/// One allocation, shared between the shard that has members and the backplane that has interest.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicName(Arc<str>);

/// A topic's name taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TopicKind<'a> {
    /// A room and its name.
    Room(&'a str),
    /// A user and their id.
    User(&'a str),
    /// Everybody.
    All,
}

impl TopicName {
    /// The topic of a room.
    pub fn room(room: &str) -> TopicName {
        TopicName::with_prefix("r:", room)
    }

    /// The topic of a user: all connections of that user, on any node.
    pub fn user(user: &str) -> TopicName {
        TopicName::with_prefix("u:", user)
    }

    /// The whole name of the topic of everybody.
    pub const ALL: &str = "*";

    /// The topic of everybody.
    pub fn all() -> TopicName {
        TopicName(Arc::from(TopicName::ALL))
    }

    /// Reads a name as it stands in a Redis channel; `None` when it is not a topic.
    pub fn parse(text: &str) -> Option<TopicName> {
        let name = text.get(2..).unwrap_or("");
        let known =
            text == "*" || ((text.starts_with("r:") || text.starts_with("u:")) && is_name(name));
        known.then(|| TopicName(Arc::from(text)))
    }

    /// The whole name with its prefix: what is hashed, compared and put into channel names.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name taken apart.
    pub fn kind(&self) -> TopicKind<'_> {
        match self.0.split_once(':') {
            Some(("r", room)) => TopicKind::Room(room),
            Some((_, user)) => TopicKind::User(user),
            None => TopicKind::All,
        }
    }

    fn with_prefix(prefix: &str, name: &str) -> TopicName {
        debug_assert!(is_name(name), "names are checked where they enter");
        // Most names are short: build on the stack, allocate once.
        let mut whole = [0u8; 2 + NAME_BYTES_MAX];
        let bytes = 2 + name.len().min(NAME_BYTES_MAX);
        whole[..2].copy_from_slice(prefix.as_bytes());
        whole[2..bytes].copy_from_slice(&name.as_bytes()[..bytes - 2]);
        TopicName(Arc::from(std::str::from_utf8(&whole[..bytes]).expect("two whole strings")))
    }
}

impl std::borrow::Borrow<str> for TopicName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for TopicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether this may name a room or a user: 1 to [`NAME_BYTES_MAX`] bytes, nothing that is not seen
/// (control and format characters, line separators, fillers, variation selectors) and no blanks around
/// it, so that two names which look the same to a person or in a log are the same.
pub fn is_name(name: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&name.len())
        && !name.chars().any(is_invisible)
        && !name.starts_with(char::is_whitespace)
        && !name.ends_with(char::is_whitespace)
}

/// Unicode's general categories Cc, Cf, Zl and Zp, what is shown as nothing by default (fillers,
/// variation selectors, tags), and the Braille pattern without a dot: a blank by another name.
fn is_invisible(c: char) -> bool {
    use icu_properties::props::{DefaultIgnorableCodePoint, GeneralCategory as Category};
    use icu_properties::{CodePointMapData, CodePointSetData};
    const BRAILLE_BLANK: char = '\u{2800}';
    if c.is_ascii() {
        return c.is_ascii_control();
    }
    if c == BRAILLE_BLANK || CodePointSetData::new::<DefaultIgnorableCodePoint>().contains(c) {
        return true;
    }
    matches!(
        CodePointMapData::<Category>::new().get(c),
        Category::Control
            | Category::Format
            | Category::LineSeparator
            | Category::ParagraphSeparator
    )
}

/// Whether a user may come with this name in a token: no user is to be mistaken for an anonymous one.
pub fn is_user_name(name: &str) -> bool {
    let prefix = name.get(..ANONYMOUS_PREFIX.len());
    is_name(name) && !prefix.is_some_and(|prefix| prefix.eq_ignore_ascii_case(ANONYMOUS_PREFIX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_name_comes_apart_as_it_was_put_together() {
        assert_eq!(TopicName::room("a:b").kind(), TopicKind::Room("a:b"));
        assert_eq!(TopicName::user("ann").kind(), TopicKind::User("ann"));
        assert_eq!(TopicName::all().kind(), TopicKind::All);
        for name in [TopicName::room("x"), TopicName::user("y"), TopicName::all()] {
            assert_eq!(TopicName::parse(name.as_str()), Some(name));
        }
        for wrong in ["", "r", "r:", "x:y", "**", "u:", "r:\n"] {
            assert_eq!(TopicName::parse(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_name_is_what_it_looks_like() {
        for good in ["a", "a b", "chat:é", "\u{1F469}", "日本", "x".repeat(255).as_str()] {
            assert!(is_name(good), "{good:?}");
        }
        let invisible = ["\0", "\n", "\u{7f}", "\u{85}", "\u{ad}", "\u{200b}", "\u{200d}"];
        let more = ["\u{202e}", "\u{2028}", "\u{2029}", "\u{2066}", "\u{feff}", "\u{e0041}"];
        let fillers = ["\u{115f}", "\u{1160}", "\u{3164}", "\u{ffa0}", "\u{17b4}", "\u{2800}"];
        let selectors = ["\u{34f}", "\u{180b}", "\u{fe00}", "\u{fe0f}", "\u{e0100}", "\u{e01ef}"];
        for c in invisible.into_iter().chain(more).chain(fillers).chain(selectors) {
            assert!(!is_name(&format!("a{c}b")), "{c:?}");
        }
        for blank in [" a", "a ", "\u{a0}a", "a\u{3000}", " ", ""] {
            assert!(!is_name(blank), "{blank:?}");
        }
        for taken in ["anon-1", "ANON-1", "Anon-"] {
            assert!(is_name(taken) && !is_user_name(taken), "{taken}");
        }
        assert!(is_user_name("anonymous") && is_user_name("é-anon-"));
    }

    #[test]
    fn a_conflate_key_is_the_same_everywhere_and_not_like_others() {
        let bits = |text: &str| ConflateKey::of(text).map(ConflateKey::to_bits);
        // The first eight bytes of SHA-256("abc"), FIPS 180-2 B.1.
        assert_eq!(bits("abc"), Some(u64::from_le_bytes(*b"\xba\x78\x16\xbf\x8f\x01\xcf\xea")));
        assert_ne!(bits("AAPL"), bits("MSFT"));
        let [ann, bob] = ["ann", "bob"].map(ConflateKey::of_news);
        assert!(ann != bob && Some(ann) != ConflateKey::of("ann"));
        assert_eq!(bits("AAPL").and_then(ConflateKey::from_bits), ConflateKey::of("AAPL"));
        assert_eq!((bits(""), ConflateKey::from_bits(0)), (None, None));
        assert!(bits(&"k".repeat(128)).is_some() && bits(&"k".repeat(129)).is_none());
    }

    #[test]
    fn only_what_can_be_counted_from_is_a_position() {
        const MAX: u64 = Position::NUMBER_MAX;
        assert_eq!(MAX as f64 as u64, MAX, "a number of Lua and JavaScript");
        assert_eq!((MAX + 2) as f64 as u64, MAX + 1, "the first that is not");
        for (epoch, offset) in [(1, 0), (1, 1), (MAX, MAX), (1, MAX), (MAX, 0)] {
            assert_eq!(Position::checked(epoch, offset), Some(Position { epoch, offset }));
        }
        for wrong in [0, MAX + 1, 1 << 63, u64::MAX] {
            assert_eq!(Position::checked(wrong, 1), None, "epoch {wrong}");
        }
        for wrong in [MAX + 1, (1 << 63) - 1, 1 << 63, u64::MAX] {
            assert_eq!(Position::checked(1, wrong), None, "offset {wrong}");
        }
    }

    #[test]
    fn a_connection_survives_its_way_through_the_kernel() {
        let conn = ConnId(SlotId { index: 7, generation: u32::MAX });
        assert_eq!(ConnId::from_bits(conn.to_bits()), conn);
    }
}
