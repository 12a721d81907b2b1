//! Keys of the tables: hashes with a random key per process, so nobody can choose a neighbour.

/// A key of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyHash(pub u64);
