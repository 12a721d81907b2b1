//! Why a run of the load generator could not be carried out at all.

use std::fmt;

/// Why a run could not be carried out at all.
#[derive(Debug)]
pub enum LoadError {
    /// The arguments make no sense together.
    Usage(String),
    /// This host does not give what is needed.
    Host(String),
}

impl LoadError {
    /// A wrong argument, with what to write instead.
    pub fn usage<T>(why: &str) -> Result<T, LoadError> {
        Err(LoadError::Usage(why.to_owned()))
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LoadError::Usage(why) | LoadError::Host(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for LoadError {}
