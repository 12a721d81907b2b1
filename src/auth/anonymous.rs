//! Names of clients without a token.
//!
//! Such a name is an address: a client that has it may send to it, if its rights allow. So it cannot
//! be guessed from a connection's id, which counts up: it is a keyed hash of it.

use crate::ids::ANONYMOUS_PREFIX;
use sha2::{Digest as _, Sha256};
use std::fmt;

/// Hex digits of a name, each four bits: no two connections of a system have the same one.
const DIGITS: usize = 20;

/// What a node's anonymous names are made with. Each node has its own, made at its start.
#[derive(Clone, Copy)]
pub struct AnonymousSecret([u8; 16]);

impl AnonymousSecret {
    /// From random bytes.
    pub const fn new(bytes: [u8; 16]) -> AnonymousSecret {
        AnonymousSecret(bytes)
    }

    /// The name of the client behind this connection, by the connection's id.
    pub fn name(&self, connection_id: &str) -> String {
        // Both have fixed ends: the secret its length, the id is all the rest. SHA-256 of a secret in
        // front can be extended, but only from a whole digest; this is a third of it.
        let digest = Sha256::new().chain_update(self.0).chain_update(connection_id).finalize();
        let digits = digest.iter().take(DIGITS / 2).map(|byte| format!("{byte:02x}"));
        std::iter::once(ANONYMOUS_PREFIX.to_owned()).chain(digits).collect()
    }
}

impl fmt::Debug for AnonymousSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AnonymousSecret(not shown)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::is_name;

    #[test]
    fn a_name_says_nothing_of_its_connection_and_is_its_own() {
        let secret = AnonymousSecret::new([7; 16]);
        let names: Vec<_> = (0..100).map(|n| secret.name(&format!("0a-0-{n}-1"))).collect();
        assert!(names.iter().all(|name| is_name(name) && name.len() == 25), "{names:?}");
        let distinct: std::collections::HashSet<_> = names.iter().collect();
        assert_eq!(distinct.len(), names.len());
        assert_eq!(names[3], secret.name("0a-0-3-1"));
        assert_ne!(names[3], AnonymousSecret::new([8; 16]).name("0a-0-3-1"));
        assert_eq!(format!("{secret:?}"), "AnonymousSecret(not shown)");
    }
}
