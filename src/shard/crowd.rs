//! A shard with room for a crowd, for tests of what walks over connections.

use crate::auth::{AnonymousSecret, Identity};
use crate::ids::{ConnId, NodeId, ShardId};
use crate::policy::limits::Limits;
use crate::policy::revocations::TokenMark;
use crate::policy::rights::Rights;
use crate::protocol::dialect::Encoding;
use crate::shard::{Opening, Shard, ShardConfig};
use bytes::Bytes;

/// A shard for so many connections, which it does not ping.
pub(in crate::shard) fn shard_for(connections: usize) -> Shard {
    let limits = Limits {
        connections_per_shard_max: connections,
        handshakes_max: connections,
        topics_per_shard_max: connections,
        ping_interval_ms: 3_600_000,
        ..Limits::TINY
    };
    Shard::new(ShardConfig {
        id: ShardId(0),
        node: NodeId(1),
        node_name: "n".into(),
        limits,
        namespaces: Default::default(),
        anonymous_secret: AnonymousSecret::new([0; 16]),
    })
}

/// Opens a connection in no room; without a user it has shown no token.
pub(in crate::shard) fn open(
    shard: &mut Shard,
    user: Option<&str>,
    mark: Option<TokenMark>,
) -> ConnId {
    let conn = shard.handle_accept(0, 0).expect("there is room");
    let identity = Identity {
        user: user.map(Into::into),
        rights: Rights::NONE,
        expires_unix_s: None,
        grants: None,
        info: None,
        mark,
    };
    let (response, rooms) = (Bytes::from_static(b"101"), Vec::new());
    let encoding = Encoding::NATIVE;
    shard.handle_open(conn, Opening { identity, response, rooms, encoding });
    conn
}

/// Whether a connection is open.
pub(in crate::shard) fn is_open(shard: &Shard, conn: ConnId) -> bool {
    shard.conns.get(conn.0).is_some_and(|conn| conn.is_open())
}
