//! Replies to a server that sends the first message.
//!
//! Many protocols begin with a frame of the server: an id that the client must sign, a session that
//! it must open, a ping in a text frame. A rule maps the beginning of a frame to a reply. Rules
//! have no state: an exchange of several steps takes several rules.
//!
//! Deliveries are recognized by their stamp before any rule is tried, so rules cost them nothing.
//!
//! Invariant: of all rules whose beginning fits, only the first one replies.

use super::template::Template;

/// The rules of a run, in the order of the command line.
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
    /// Adds `BEGINNING=MESSAGE`, split at the first `=`. Returns `false`, and adds nothing, if
    /// there is no `=` or if BEGINNING is empty, which would fit every frame.
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

    /// The reply to `frame`, if a rule fits.
    pub fn reply_to(&self, frame: &[u8]) -> Option<&Template> {
        let rule = self.rules.iter().find(|rule| frame.starts_with(&rule.beginning))?;
        Some(&rule.reply)
    }

    /// All replies, for checks.
    pub fn replies(&self) -> impl Iterator<Item = &Template> {
        self.rules.iter().map(|rule| &rule.reply)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_rule_whose_beginning_fits_replies() {
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
