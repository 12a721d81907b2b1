//! What is said back to a server that speaks first.
//!
//! Many protocols begin with a word of the server's: an id that the client must sign, a session
//! that it must open, a ping in a text frame. One rule covers them: a frame that begins so is
//! answered so. A rule keeps no state, so a dialogue of several steps is several rules.
//!
//! Only frames that carry no stamp are looked at, so a delivery costs nothing more.
//!
//! Invariant: the first rule whose beginning fits answers, and no other.

use super::template::Template;

/// The rules of a run, in the order they were given.
#[derive(Debug, Default)]
pub struct ReplyRules {
    rules: Vec<ReplyRule>,
}

#[derive(Debug)]
struct ReplyRule {
    beginning: Vec<u8>,
    reply: Template,
}

impl ReplyRules {
    /// Adds `BEGINNING=MESSAGE`, cut at the first `=`; `false` where that makes no rule: a frame
    /// that begins with nothing is every frame.
    #[must_use]
    pub fn add(&mut self, text: &str) -> bool {
        let Some((beginning, reply)) = text.split_once('=').filter(|(begin, _)| !begin.is_empty())
        else {
            return false;
        };
        let (beginning, reply) = (beginning.into(), Template::parse(reply));
        self.rules.push(ReplyRule { beginning, reply });
        true
    }

    /// What is to be said to `frame`.
    pub fn reply_to(&self, frame: &[u8]) -> Option<&Template> {
        let rule = self.rules.iter().find(|rule| frame.starts_with(&rule.beginning))?;
        Some(&rule.reply)
    }

    /// All replies.
    pub fn replies(&self) -> impl Iterator<Item = &Template> {
        self.rules.iter().map(|rule| &rule.reply)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_rule_whose_beginning_fits_answers() {
        let mut rules = ReplyRules::default();
        assert!(rules.add("2=3"));
        assert!(rules.add(r#"40{=42["join","{room}"]"#));
        assert!(rules.add("40=never"));
        assert!(!rules.add("no equals sign"));
        assert!(!rules.add("=to everything"));
        assert_eq!(rules.reply_to(b"2"), Some(&Template::parse("3")));
        assert_eq!(
            rules.reply_to(br#"40{"sid"}"#),
            Some(&Template::parse(r#"42["join","{room}"]"#))
        );
        assert_eq!(rules.reply_to(b"4"), None);
    }
}
