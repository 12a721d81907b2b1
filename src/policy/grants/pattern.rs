//! Patterns of room and user names: `chat:*`, `dm:{user}:*`, `log:**`.
//!
//! `*` stands for any characters but `:`, none included; `**` for any at all; `{user}` for the name of
//! the user who asks. Everything else stands for itself. A pattern matches a whole name, never a part.
//!
//! `{user}` is put in when a name is compared, so that a set of patterns is the same for all users and
//! can be shared. What is put in is text: a user who is called `*` gains nothing.
//!
//! Invariant: comparing takes at most the product of both lengths in steps.

/// One pattern, taken apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pattern(Box<[Part]>);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Part {
    /// This text.
    Text(Box<str>),
    /// The name of the user who asks.
    User,
    /// Any characters but `:`.
    Within,
    /// Any characters.
    Across,
}

const USER: &str = "{user}";

impl Pattern {
    /// Takes a pattern apart. Every text is one.
    pub fn new(text: &str) -> Pattern {
        let (mut parts, mut literal, mut rest) = (Vec::new(), String::new(), text);
        while let Some(next) = rest.chars().next() {
            let (part, len) = match next {
                '*' if rest.starts_with("**") => {
                    (Some(Part::Across), rest.len() - rest.trim_start_matches('*').len())
                }
                '*' => (Some(Part::Within), 1),
                '{' if rest.starts_with(USER) => (Some(Part::User), USER.len()),
                other => (None, other.len_utf8()),
            };
            match part {
                Some(part) => {
                    push_text(&mut parts, &mut literal);
                    parts.push(part);
                }
                None => literal.push(next),
            }
            rest = &rest[len..];
        }
        push_text(&mut parts, &mut literal);
        Pattern(parts.into())
    }

    /// Bytes that it keeps alive.
    pub fn held_bytes(&self) -> usize {
        let of_part = |part: &Part| match part {
            Part::Text(text) => size_of::<Part>() + text.len(),
            Part::User | Part::Within | Part::Across => size_of::<Part>(),
        };
        size_of::<Pattern>() + self.0.iter().map(of_part).sum::<usize>()
    }

    /// Whether a name is of this pattern, for this user.
    pub fn matches(&self, name: &str, user: &str) -> bool {
        let name = name.as_bytes();
        let (mut part, mut at) = (0, 0);
        // Where to go on when what follows the last wildcard of each kind does not fit.
        let mut within: Option<(usize, usize)> = None;
        let mut across: Option<(usize, usize)> = None;
        loop {
            match self.0.get(part) {
                None if at == name.len() => return true,
                Some(Part::Within) => {
                    within = Some((part + 1, at));
                    part += 1;
                    continue;
                }
                Some(Part::Across) => {
                    // Whatever a wildcard before it took, this one can take as well.
                    (within, across) = (None, Some((part + 1, at)));
                    part += 1;
                    continue;
                }
                Some(Part::Text(text)) if name[at..].starts_with(text.as_bytes()) => {
                    (part, at) = (part + 1, at + text.len());
                    continue;
                }
                Some(Part::User) if name[at..].starts_with(user.as_bytes()) => {
                    (part, at) = (part + 1, at + user.len());
                    continue;
                }
                None | Some(Part::Text(_) | Part::User) => {}
            }
            // One more character for the nearest wildcard that can take it.
            if let Some((after, from)) = within
                && name.get(from).is_some_and(|byte| *byte != b':')
            {
                within = Some((after, from + 1));
                (part, at) = (after, from + 1);
            } else if let Some((after, from)) = across
                && from < name.len()
            {
                (within, across) = (None, Some((after, from + 1)));
                (part, at) = (after, from + 1);
            } else {
                return false;
            }
        }
    }
}

fn push_text(parts: &mut Vec<Part>, literal: &mut String) {
    if !literal.is_empty() {
        parts.push(Part::Text(std::mem::take(literal).into()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn is(pattern: &str, name: &str) -> bool {
        Pattern::new(pattern).matches(name, "ann")
    }

    #[test]
    fn a_star_stays_between_colons_and_two_do_not() {
        for (pattern, matching, others) in [
            (
                "chat:*",
                &["chat:", "chat:a", "chat:lobby"][..],
                &["chat", "chat:a:b", "xchat:a"][..],
            ),
            ("chat:**", &["chat:", "chat:a", "chat:a:b"], &["chat", "cha"]),
            ("*", &["", "a", "lobby"], &["a:b", ":"]),
            ("**", &["", "a", "a:b"], &[]),
            ("*:*", &[":", "a:", "a:b"], &["a", "a:b:c"]),
            ("a*b*c", &["abc", "aXbYc", "abbbc"], &["ac", "abcX", "a:bc"]),
            ("a**c:d", &["ac:d", "a:b:c:d", "ac:dc:d"], &["ac:dx"]),
            ("***", &["a:b"], &[]),
            ("dm:{user}:*", &["dm:ann:bob", "dm:ann:"], &["dm:bob:ann", "dm:anna:x", "dm:ann"]),
            ("{user}", &["ann"], &["bob", "{user}", "anna"]),
            ("{user", &["{user"], &["ann"]),
            ("", &[""], &["a"]),
            ("é*", &["é", "éa"], &["e"]),
        ] {
            for name in matching {
                assert!(is(pattern, name), "{pattern} and {name}");
            }
            for name in others {
                assert!(!is(pattern, name), "{pattern} and {name}");
            }
        }
    }

    #[test]
    fn a_user_named_like_a_wildcard_gains_nothing() {
        let dm = Pattern::new("dm:{user}:*");
        for user in ["*", "**", "{user}", "a:b"] {
            assert!(!dm.matches("dm:bob:x", user), "{user}");
            assert!(dm.matches(&format!("dm:{user}:x"), user), "{user}");
        }
    }

    /// By trying everything.
    fn naive(pattern: &str, name: &str, user: &str) -> bool {
        let Some(first) = pattern.chars().next() else { return name.is_empty() };
        let skips = |across: bool, rest: &str| {
            let ends = (0..=name.len()).filter(|end| name.is_char_boundary(*end));
            let mut ends = ends.take_while(|end| across || !name[..*end].contains(':'));
            ends.any(|end| naive(rest, &name[end..], user))
        };
        if let Some(rest) = pattern.strip_prefix("**") {
            return skips(true, rest.trim_start_matches('*'));
        }
        match first {
            '*' => skips(false, &pattern[1..]),
            '{' if pattern.starts_with(USER) => name
                .strip_prefix(user)
                .is_some_and(|rest| naive(&pattern[USER.len()..], rest, user)),
            first => name
                .strip_prefix(first)
                .is_some_and(|rest| naive(&pattern[first.len_utf8()..], rest, user)),
        }
    }

    proptest! {
        #[test]
        fn it_agrees_with_trying_everything(
            pattern in "([ab:]|\\*|\\*\\*|\\{user\\}){0,9}",
            name in "[ab:]{0,14}",
            user in "[ab:*]{1,3}",
        ) {
            let found = Pattern::new(&pattern).matches(&name, &user);
            prop_assert_eq!(found, naive(&pattern, &name, &user), "{} {} {}", pattern, name, user);
        }
    }
}
