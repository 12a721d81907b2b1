//! The error that ends `campanile load` before it has a report.

use std::fmt;

/// Why a run could not be carried out. The text names the cause and what to change.
#[derive(Debug)]
pub enum LoadError {
    /// An argument is wrong, or two of them contradict each other.
    Usage(String),
    /// This host lacks what the run needs, or a worker thread failed.
    Host(String),
}

impl LoadError {
    /// A wrong argument; `why` includes what to write instead.
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
