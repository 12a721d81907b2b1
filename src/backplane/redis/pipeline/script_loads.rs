//! Which scripts the server of a connection knows, and when they are loaded.
//!
//! Scripts are called by their SHA-1. A server that does not know one (it restarted, or an operator
//! called `SCRIPT FLUSH`) answers NOSCRIPT and does nothing. Then the next batch on that connection
//! that calls scripts begins with `SCRIPT LOAD` of the whole set, whichever user sends it. Redis
//! executes the commands of one connection in order, so everything sent after that finds the
//! scripts, and nothing has to wait for the reply.
//!
//! Invariant: a batch sent before the last load wants no other one: many users that all meet
//! NOSCRIPT at once load once.

use std::cell::Cell;
use std::fmt;

/// Who calls the scripts of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ScriptOwner {
    /// Histories and acknowledgements.
    History,
    /// Presence.
    Presence,
}

/// Scripts that are loaded together.
#[derive(Clone, Copy)]
pub(crate) struct ScriptSet {
    /// Who calls them.
    pub owner: ScriptOwner,
    /// Their texts.
    pub texts: &'static [&'static str],
}

impl fmt::Debug for ScriptSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}({} scripts)", self.owner, self.texts.len())
    }
}

/// The state of all sets on one connection, shared by its users.
#[derive(Debug, Default)]
pub(crate) struct ScriptLoads {
    /// Number of loads of each set; 0: none, so the first batch loads.
    loads: [Cell<u32>; 2],
    /// Whether the server did not know a script after the last load.
    is_missing: [Cell<bool>; 2],
}

impl ScriptLoads {
    /// Whether the next batch has to load the set.
    pub(crate) fn is_wanted(&self, owner: ScriptOwner) -> bool {
        self.loads(owner) == 0 || self.is_missing[owner as usize].get()
    }

    /// Number of times the set was loaded.
    pub(crate) fn loads(&self, owner: ScriptOwner) -> u32 {
        self.loads[owner as usize].get()
    }

    /// The set is being loaded: the command was sent.
    pub(crate) fn note_load(&self, owner: ScriptOwner) {
        self.loads[owner as usize].update(|loads| loads.wrapping_add(1).max(1));
        self.is_missing[owner as usize].set(false);
    }

    /// The server did not know a script that a batch called, which was sent after `loads` loads.
    pub(crate) fn note_missing(&self, owner: ScriptOwner, loads: u32) {
        if self.loads(owner) == loads {
            self.is_missing[owner as usize].set(true);
        }
    }
}
