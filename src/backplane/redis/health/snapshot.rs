//! The snapshot of all servers for `/v1/stats` and `/metrics`.
//!
//! Servers are compared on each tick; only a change makes a new snapshot, which shares the parts
//! that have not changed.
//!
//! Invariant: a server without a name is not in the snapshot.

use crate::metrics::servers::{RedisSnapshot, ServerNumbers};
use std::sync::Arc;

/// Builds snapshots. Owned by [`crate::backplane::redis::RedisTransport`].
#[derive(Default)]
pub(crate) struct SnapshotBuilder {
    picture: Arc<RedisSnapshot>,
    is_new: bool,
}

impl SnapshotBuilder {
    /// Compares the state of all servers with the last snapshot. `picture` has the state of the
    /// topology.
    pub(crate) fn update(
        &mut self,
        mut picture: RedisSnapshot,
        servers: impl Iterator<Item = ServerNumbers>,
    ) {
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

    /// The snapshot, if it has changed since the last call.
    pub(crate) fn take_snapshot(&mut self) -> Option<Arc<RedisSnapshot>> {
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
            reason: None,
            detail: String::new(),
            counted: OwnNumbers { up: Some(up), ..OwnNumbers::default() },
            canary_back_at: None,
            reported: Arc::default(),
        }
    }

    #[test]
    fn a_snapshot_is_new_only_if_something_in_it_has_changed() {
        let mut snapshot = SnapshotBuilder::default();
        assert!(snapshot.take_snapshot().is_none(), "of nothing there is none");
        snapshot.update(RedisSnapshot::default(), [server("a:1", 1), server("b:2", 1)].into_iter());
        let first = snapshot.take_snapshot().expect("two servers");
        snapshot.update(RedisSnapshot::default(), [server("a:1", 1), server("b:2", 1)].into_iter());
        assert!(snapshot.take_snapshot().is_none(), "all is as it was");
        snapshot.update(RedisSnapshot::default(), [server("a:1", 1), server("b:2", 0)].into_iter());
        let second = snapshot.take_snapshot().expect("one is down");
        assert!(Arc::ptr_eq(&first.servers[0], &second.servers[0]), "the other is as it was");
        assert!(!second.servers[1].is_up());
        let silent = vec![("s:1".to_owned(), None)];
        let alone = RedisSnapshot { unreachable_sentinels: silent, ..RedisSnapshot::default() };
        snapshot.update(alone, second.servers.iter().map(|server| (**server).clone()));
        assert!(snapshot.take_snapshot().is_some(), "a sentinel is silent");
        snapshot.update(RedisSnapshot::default(), [server("b:2", 0)].into_iter());
        assert_eq!(snapshot.take_snapshot().expect("one has left").servers.len(), 1);
    }
}
