//! Another node as this one sees it.
//!
//! Time does not enter: an event is one read of the list of nodes and their records, or the
//! beginning or end of a removal. `tests` prints every cell of the table in `states.txt`.

/// What this node knows of another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NodeLife {
    /// It has a record, or was listed while this node had just reconnected.
    Alive,
    /// It had no record in the last read.
    Missing,
    /// It had no record twice in a row. Queries ignore it, and its entries are to be removed.
    Dead,
    /// The same, and this node is removing its entries.
    Removing,
    /// It has a record again while this node removes its entries. It finds the notice, and writes
    /// its entries again.
    Returned,
    /// It is not in the list any more.
    Forgotten,
}

/// What happens to another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LifeEvent {
    /// A read found its record.
    Seen,
    /// A read found it in the list without a record.
    NotSeen,
    /// A read did not find it in the list.
    Unlisted,
    /// This node begins to remove its entries.
    RemovalBegan,
    /// Its entries are removed, and it is taken out of the list.
    RemovalDone,
    /// Entries may be left, or another node removes them.
    RemovalFailed,
}

impl NodeLife {
    /// The state after an event. `None`: it cannot happen in this state.
    pub(super) fn after(self, event: LifeEvent) -> Option<NodeLife> {
        use LifeEvent::{NotSeen, RemovalBegan, RemovalDone, RemovalFailed, Seen, Unlisted};
        use NodeLife::{Alive, Dead, Forgotten, Missing, Removing, Returned};
        Some(match (self, event) {
            (Alive | Missing | Dead, Seen) => Alive,
            (Alive, NotSeen) => Missing,
            (Missing | Dead, NotSeen) => Dead,
            (Alive | Missing | Dead, Unlisted) => Forgotten,
            (Dead, RemovalBegan) => Removing,
            (Removing, Seen) => Returned,
            (Removing, NotSeen | Unlisted) => Removing,
            (Removing, RemovalDone) => Forgotten,
            (Removing, RemovalFailed) => Dead,
            // Reads without a record count again when the removal has ended.
            (Returned, Seen | NotSeen | Unlisted) => Returned,
            (Returned, RemovalDone | RemovalFailed) => Alive,
            (Alive | Missing | Dead, RemovalDone | RemovalFailed) => return None,
            (Alive | Missing | Removing | Returned, RemovalBegan) => return None,
            (Forgotten, _) => return None,
        })
    }

    /// Whether its users count as gone.
    pub(super) fn is_dead(self) -> bool {
        matches!(self, NodeLife::Dead | NodeLife::Removing)
    }
}
