//! Why the file of the authorities (`redis.tls_ca_file`) cannot be used.

use std::fmt;

/// What is wrong with the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuthorityError {
    /// It cannot be read.
    Unreadable(String),
    /// It is no PEM file.
    NotPem(String),
    /// A certificate in it is refused.
    Refused(String),
    /// It has no certificate.
    Empty,
}

impl fmt::Display for AuthorityError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AuthorityError::Unreadable(error)
            | AuthorityError::NotPem(error)
            | AuthorityError::Refused(error) => f.write_str(error),
            AuthorityError::Empty => f.write_str("there is no certificate in it"),
        }
    }
}
