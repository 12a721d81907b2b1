//! Configuration errors, with what would be right, so that nobody has to open a manual.

use crate::config::settings::{SETTINGS, Setting};
use std::fmt;

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ValueSource {
    /// A flag, with its dashes.
    Flag(String),
    /// An environment variable.
    Env(String),
    /// A line of a file, counted from 1.
    File {
        /// The file as the operator named it.
        path: String,
        /// The line, from 1.
        line: usize,
    },
}

impl fmt::Display for ValueSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ValueSource::Flag(flag) => write!(f, "flag {flag}"),
            ValueSource::Env(name) => write!(f, "environment {name}"),
            ValueSource::File { path, line } => write!(f, "{path}:{line}"),
        }
    }
}

/// One value that is refused, with its key and where it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigError {
    /// A value out of its range.
    BadValue {
        /// The setting's key.
        key: &'static str,
        /// The value as given; secrets are already replaced.
        shown: String,
        /// Where the value stands.
        source: ValueSource,
        /// An additional sentence, ending in a space; or nothing.
        reason: String,
    },
    /// A key that is not a setting.
    UnknownKey {
        /// The key as given.
        key: String,
        /// Where the key stands.
        source: ValueSource,
        /// The nearest known key, if one is near.
        nearest: Option<String>,
    },
    /// The file could not be read or is not TOML.
    File {
        /// The file as the operator named it.
        path: String,
        /// Why, with the line where it is known.
        reason: String,
    },
    /// Two values that cannot both be meant.
    Contradiction {
        /// Which, and what to do.
        message: String,
    },
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConfigError::BadValue { key, shown, source, reason } => {
                let setting =
                    crate::config::settings::setting(key).expect("only settings have values");
                write!(f, "{key} = {shown:?} ({source}): {reason}Write {}.", setting.kind.wanted())
            }
            ConfigError::UnknownKey { key, source, nearest } => {
                write!(f, "unknown key {key} ({source}). ")?;
                match nearest {
                    Some(nearest) => write!(f, "Did you mean {nearest}?"),
                    None => write!(f, "`campanile config` prints every key."),
                }
            }
            ConfigError::File { path, reason } => write!(f, "{path}: {reason}"),
            ConfigError::Contradiction { message } => write!(f, "{message}."),
        }
    }
}

/// All errors, so that they can be corrected in one go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for error in &self.0 {
            writeln!(f, "campanile: {error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// The known spelling nearest to `given`, if any is near. `spell` is how a setting is spelled there.
pub(super) fn nearest(given: &str, spell: impl Fn(&Setting) -> String) -> Option<String> {
    let given_last = given.rsplit('.').next().unwrap_or(given);
    let near = |setting: &Setting| {
        let whole = spell(setting);
        // `message_bytes_max` at the top level lacks only its section.
        let last = whole.rsplit('.').next().unwrap_or(&whole);
        let edits = edits(given, &whole).min(1 + edits(given_last, last));
        (edits, whole)
    };
    let (edits, best) = SETTINGS.iter().map(near).min()?;
    (edits <= 1 + given.len() / 5).then_some(best)
}

/// Levenshtein's distance in bytes.
fn edits(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
