//! What an operator may set: the text that a setting takes, and how text becomes a value.
//!
//! A setting is declared once, with its type, default, range, unit and meaning: a limit in
//! `limits.rs`, what holds for a namespace in `namespaces.rs`, everything else in `config`. The
//! struct, its documentation, the parser, `--help`, the sample file and the tables of the documents
//! all come from that row.
//!
//! Invariant: a range says exactly what is taken. What [`SettingRange::takes`] refuses has no value.

/// The text that a setting takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SettingRange {
    /// `true` or `false`.
    Bool,
    /// A whole number.
    Number {
        /// The smallest value.
        min: u64,
        /// The largest value.
        max: u64,
        /// The unit, in the plural.
        unit: &'static str,
    },
    /// One of these words.
    Choice(&'static [&'static str]),
}

/// A number of things.
pub const fn count(min: u64, max: u64, unit: &'static str) -> SettingRange {
    SettingRange::Number { min, max, unit }
}

/// A number of bytes.
pub const fn bytes(min: u64, max: u64) -> SettingRange {
    count(min, max, "bytes")
}

/// A time in milliseconds.
pub const fn ms(min: u64, max: u64) -> SettingRange {
    count(min, max, "milliseconds")
}

impl SettingRange {
    /// What would be right, for the operator.
    pub fn wanted(&self) -> String {
        match self {
            SettingRange::Bool => "true or false".to_owned(),
            SettingRange::Number { min, max, unit } => {
                format!("a whole number of {unit} from {min} to {max}")
            }
            SettingRange::Choice(words) => format!("one of {}", words.join(", ")),
        }
    }

    /// Whether a text may be the value.
    pub fn takes(&self, text: &str) -> bool {
        match self {
            SettingRange::Bool => bool::read(text).is_some(),
            SettingRange::Number { min, max, .. } => {
                u64::read(text).is_some_and(|number| (*min..=*max).contains(&number))
            }
            SettingRange::Choice(words) => words.contains(&text),
        }
    }
}

/// A type that is read from and written to text.
pub trait SettingValue: Sized {
    /// The value; `None`: the text is none of this type.
    fn read(text: &str) -> Option<Self>;
    /// What `read` would read.
    fn write(&self) -> String;
}

macro_rules! parsed {
    ($($type:ty),+) => { $(
        impl SettingValue for $type {
            fn read(text: &str) -> Option<$type> {
                text.trim().parse().ok()
            }
            fn write(&self) -> String {
                self.to_string()
            }
        }
    )+ };
}

parsed!(usize, u64, bool);

/// An enum whose variants are words.
macro_rules! words {
    (
        $(#[$doc:meta])* $name:ident { $( $(#[$variant_doc:meta])* $variant:ident = $word:literal, )+ }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name {
            $( $(#[$variant_doc])* $variant, )+
        }

        impl $name {
            /// Its words, in the order of the variants.
            pub const WORDS: &[&str] = &[ $( $word ),+ ];
        }

        impl $crate::policy::setting::SettingValue for $name {
            fn read(text: &str) -> Option<$name> {
                match text {
                    $( $word => Some($name::$variant), )+
                    _ => None,
                }
            }
            fn write(&self) -> String {
                match self {
                    $( $name::$variant => $word.to_owned(), )+
                }
            }
        }
    };
}

pub(crate) use words;

#[cfg(test)]
#[allow(unreachable_pub)] // the macro makes what others see
mod tests {
    use super::*;

    words! {
        /// For this test.
        Colour {
            /// Of the sky.
            Blue = "blue",
            /// Of grass.
            Green = "green",
        }
    }

    #[test]
    fn a_range_takes_what_it_says_and_nothing_else() {
        let number = count(2, 7, "sheep");
        assert_eq!(number.wanted(), "a whole number of sheep from 2 to 7");
        for (text, is_taken) in [("2", true), ("7", true), ("1", false), ("8", false), ("x", false)]
        {
            assert_eq!(number.takes(text), is_taken, "{text}");
        }
        let word = SettingRange::Choice(Colour::WORDS);
        assert_eq!(word.wanted(), "one of blue, green");
        assert!(word.takes("blue") && !word.takes("Blue") && !word.takes(""));
        assert!(SettingRange::Bool.takes("true") && !SettingRange::Bool.takes("yes"));
    }

    #[test]
    fn words_are_read_as_they_are_written() {
        for colour in [Colour::Blue, Colour::Green] {
            assert_eq!(Colour::read(&colour.write()), Some(colour));
        }
        assert_eq!(Colour::read("red"), None);
    }
}
