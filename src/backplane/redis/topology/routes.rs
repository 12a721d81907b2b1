//! Routes: the server of each topic, and the connection to it.
//!
//! Topics are in 1024 partitions ([`crate::backplane::partition::partition`]), and each partition
//! is on one server: the only one, or one of several by their order in the configuration, or in a
//! Cluster the master of the partition's slot. Routes are a snapshot: they are made again when a
//! server goes up or down, or a partition moves.
//!
//! Invariant: each partition has a server, whether that is up or not.

use crate::backplane::partition::{PARTITIONS, partition};
use crate::backplane::redis::pipeline::CommandConnection;
use redis::aio::MultiplexedConnection;
use std::sync::Arc;

/// A snapshot of all routes. Cheap to clone.
#[derive(Clone)]
pub(crate) struct ServerRoutes {
    owners: Arc<[u16; PARTITIONS]>,
    servers: Arc<[Option<CommandConnection>]>,
    publish: &'static str,
}

impl ServerRoutes {
    /// `owners`: for each partition the index of its server. `servers`: the connection to each
    /// server that is up.
    pub(crate) fn new(
        owners: Arc<[u16; PARTITIONS]>,
        servers: Vec<Option<CommandConnection>>,
        publish: &'static str,
    ) -> ServerRoutes {
        assert!(owners.iter().all(|owner| usize::from(*owner) < servers.len()));
        ServerRoutes { owners, servers: servers.into(), publish }
    }

    /// Number of servers, up or not.
    pub(crate) fn servers(&self) -> usize {
        self.servers.len()
    }

    /// The server of a topic.
    pub(crate) fn server_of(&self, topic: &str) -> usize {
        self.server_at(partition(topic))
    }

    /// The server of a partition.
    pub(crate) fn server_at(&self, partition: u16) -> usize {
        usize::from(self.owners[usize::from(partition)])
    }

    /// The connection to a server, if it is up.
    pub(crate) fn commands(&self, server: usize) -> Option<&CommandConnection> {
        self.servers.get(server)?.as_ref()
    }

    /// The same for commands that are no batch.
    pub(crate) fn cmd(&self, server: usize) -> Option<&MultiplexedConnection> {
        self.commands(server).map(CommandConnection::connection)
    }

    /// The command that publishes to a topic's channel: `PUBLISH`, or in a Cluster `SPUBLISH`.
    pub(crate) fn publish(&self) -> &'static str {
        self.publish
    }
}
