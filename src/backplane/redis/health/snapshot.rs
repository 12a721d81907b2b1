//! What is known of all servers, put together for whoever asks this node how it is.
//!
//! On each tick everybody is looked at; only if something is new is there a new picture, and what
//! is as it was is in it as it was, not copied.
//!
//! Invariant: a server that nobody can name is not in the picture.

use crate::backplane::interest::Interest;
use crate::backplane::redis::server::Server;
use crate::backplane::redis::topology::Topology;
use crate::metrics::servers::{Picture, ServerNumbers};
use std::ops::AddAssign;
use std::sync::Arc;
use std::time::Instant;

/// What servers count, and the node tells as sums over all that ever were: a sum does not become
/// smaller because a server leaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServerTotals {
    /// Reads of histories.
    pub history_reads: u64,
    /// Joins that had to wait for one.
    pub recoveries_waited: u64,
    /// Holes in histories that were closed.
    pub holes_repaired: u64,
    /// Holes in histories that were told.
    pub holes_lost: u64,
    /// Canaries that were not back in time.
    pub canaries_missed: u64,
}

impl AddAssign for ServerTotals {
    fn add_assign(&mut self, more: ServerTotals) {
        // Field by field, so that none is forgotten.
        *self = ServerTotals {
            history_reads: self.history_reads + more.history_reads,
            recoveries_waited: self.recoveries_waited + more.recoveries_waited,
            holes_repaired: self.holes_repaired + more.holes_repaired,
            holes_lost: self.holes_lost + more.holes_lost,
            canaries_missed: self.canaries_missed + more.canaries_missed,
        };
    }
}

/// See the module.
#[derive(Default)]
pub struct SnapshotBuilder {
    picture: Arc<Picture>,
    is_new: bool,
}

impl SnapshotBuilder {
    /// Looks at everybody.
    pub fn update(
        &mut self,
        servers: &[Server],
        topology: &Topology,
        interest: &Interest,
        now: Instant,
    ) {
        // Before anything is known there is a server without a name.
        let known = servers.iter().enumerate().filter(|(_, server)| !server.name.is_empty());
        let mut picture = Picture::default();
        topology.describe(now, &mut picture);
        let numbers = known.map(|(at, server)| server.state(interest.confirmed_by(at)));
        self.take(picture, numbers);
    }

    fn take(&mut self, mut picture: Picture, servers: impl Iterator<Item = ServerNumbers>) {
        let before = &self.picture.servers;
        let each = servers.enumerate().map(|(at, now)| match before.get(at) {
            Some(before) if **before == now => before.clone(),
            _ => Arc::new(now),
        });
        picture.servers = each.collect();
        if picture != *self.picture {
            self.picture = Arc::new(picture);
            self.is_new = true;
        }
    }

    /// The picture, if it is another one than was taken last.
    pub fn take_snapshot(&mut self) -> Option<Arc<Picture>> {
        std::mem::take(&mut self.is_new).then(|| self.picture.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::servers::OwnNumbers;

    fn server(server: &str, up: u64) -> ServerNumbers {
        ServerNumbers {
            server: server.into(),
            name: None,
            reason: String::new(),
            counted: OwnNumbers { up: Some(up), ..OwnNumbers::default() },
            canary_back_at: None,
            said: Arc::default(),
        }
    }

    #[test]
    fn a_picture_is_new_only_if_something_in_it_is() {
        let mut snapshot = SnapshotBuilder::default();
        assert!(snapshot.take_snapshot().is_none(), "of nothing there is none");
        snapshot.take(Picture::default(), [server("a:1", 1), server("b:2", 1)].into_iter());
        let first = snapshot.take_snapshot().expect("two servers");
        snapshot.take(Picture::default(), [server("a:1", 1), server("b:2", 1)].into_iter());
        assert!(snapshot.take_snapshot().is_none(), "all is as it was");
        snapshot.take(Picture::default(), [server("a:1", 1), server("b:2", 0)].into_iter());
        let second = snapshot.take_snapshot().expect("one is down");
        assert!(Arc::ptr_eq(&first.servers[0], &second.servers[0]), "the other is as it was");
        assert!(!second.servers[1].is_up());
        let silent = vec![("s:1".to_owned(), None)];
        let alone = Picture { silent_sentinels: silent, ..Picture::default() };
        snapshot.take(alone, second.servers.iter().map(|server| (**server).clone()));
        assert!(snapshot.take_snapshot().is_some(), "a sentinel is silent");
        snapshot.take(Picture::default(), [server("b:2", 0)].into_iter());
        assert_eq!(snapshot.take_snapshot().expect("one has left").servers.len(), 1);
    }

    #[test]
    fn what_the_departed_counted_stays_in_the_sum() {
        let some = ServerTotals {
            history_reads: 1,
            recoveries_waited: 2,
            holes_repaired: 3,
            holes_lost: 4,
            canaries_missed: 5,
        };
        let mut departed = ServerTotals::default();
        departed += some;
        departed += some;
        let twice = ServerTotals {
            history_reads: 2,
            recoveries_waited: 4,
            holes_repaired: 6,
            holes_lost: 8,
            canaries_missed: 10,
        };
        assert_eq!(departed, twice);
    }
}
