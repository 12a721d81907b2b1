//! One real shard with nothing around it: no wires, no backplane, only what it wants written.
//!
//! For questions about a million connections, or about the order of a hundred thousand writes, where
//! clients that keep what they heard would be most of the work. Every write is taken whole.

use crate::peer::HEAD;
use crate::world::ALL_RIGHTS;
use bytes::Bytes;
use campanile::auth::{AnonymousSecret, Identity};
use campanile::ids::{ConnId, NodeId, ShardId, TopicId};
use campanile::link::{Downlink, Uplink};
use campanile::policy::limits::Limits;
use campanile::policy::namespaces::Namespaces;
use campanile::protocol::dialect::Encoding;
use campanile::shard::conn::CloseReason;
use campanile::shard::delivery::batch::SendBatch;
use campanile::shard::{Opening, Shard, ShardConfig};
use std::collections::HashMap;
use std::sync::Arc;

/// The limits of production, but everybody may come at once.
pub fn limits() -> Limits {
    Limits { handshakes_max: 2_000_000, connections_per_shard_max: 2_000_000, ..Limits::PRODUCTION }
}

pub struct Bare {
    pub shard: Shard,
    pub now_ms: u64,
    /// Connections by the number of their wire.
    pub conns: Vec<ConnId>,
    /// The key under which the shard asked for each topic.
    pub topics: HashMap<String, TopicId>,
    batch: SendBatch,
}

impl Bare {
    pub fn new(limits: Limits) -> Bare {
        Bare::with(limits, Arc::default())
    }

    pub fn with(limits: Limits, namespaces: Arc<Namespaces>) -> Bare {
        let (id, node) = (ShardId(0), NodeId(1));
        let shard = Shard::new(ShardConfig {
            id,
            node,
            node_name: "n".into(),
            limits,
            namespaces,
            anonymous_secret: AnonymousSecret::new([0; 16]),
        });
        let (conns, topics) = (Vec::new(), HashMap::new());
        let mut bare = Bare { shard, now_ms: 0, conns, topics, batch: SendBatch::default() };
        bare.settle();
        bare
    }

    /// A client comes in. Nothing is written yet.
    pub fn open(&mut self, user: &str, rooms: &[&str]) -> usize {
        let socket_key = self.conns.len();
        let conn =
            self.shard.handle_accept(socket_key as u32, self.now_ms).expect("far from a limit");
        let opening = Opening {
            identity: Identity {
                user: Some(user.into()),
                rights: ALL_RIGHTS,
                expires_unix_s: None,
                grants: None,
                info: None,
                mark: None,
            },
            response: Bytes::from_static(HEAD),
            rooms: rooms.iter().map(|room| room.to_string()).collect(),
            encoding: Encoding::NATIVE,
        };
        self.shard.handle_open(conn, opening);
        self.conns.push(conn);
        socket_key
    }

    /// Its socket is gone.
    pub fn cut(&mut self, socket_key: usize) {
        self.shard.handle_peer_gone(self.conns[socket_key], CloseReason::Gone);
        while self.shard.poll_closed().is_some() {}
    }

    /// A whole masked frame of a client.
    pub fn read(&mut self, socket_key: usize, opcode: u8, payload: &[u8]) {
        let mut frame = crate::peer::client_frame(true, opcode, payload, [0; 4]);
        self.shard.handle_read(self.conns[socket_key], &mut frame);
    }

    /// Every join is confirmed at once, and everything is written.
    pub fn settle(&mut self) {
        loop {
            self.confirm();
            if self.write(|_, _| ()) == 0 {
                return;
            }
        }
    }

    /// Joins are confirmed; nothing is written.
    pub fn confirm(&mut self) {
        while let Some(item) = self.shard.poll_uplink() {
            if let Uplink::Join { topic, at, .. } = item {
                self.topics.insert(topic.as_str().to_owned(), at);
                self.shard.handle_downlink(Downlink::Joined { at }, self.now_ms);
            }
        }
    }

    /// One batch. Tells each write: the wire, and its first buffer. Answers how many there were.
    pub fn write(&mut self, mut told: impl FnMut(usize, &Bytes)) -> usize {
        self.shard.take_batch(&mut self.batch);
        let writes = self.batch.ops().len();
        for op in self.batch.ops() {
            for buf in self.batch.bufs(op) {
                told(op.socket_key as usize, buf);
            }
        }
        self.batch.finish();
        while self.shard.poll_closed().is_some() {}
        writes
    }
}
