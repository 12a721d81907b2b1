//! Deadlines, the sweep and the drain: what the living and dying of connections has to remember.

use crate::auth::Identity;
use crate::ids::ConnId;
use crate::policy::rights::Rights;
use crate::protocol::dialect::Encoding;
use crate::shard::conn::CloseReason;
use bytes::Bytes;
use std::collections::VecDeque;

/// A handshake that succeeded.
#[derive(Debug)]
pub struct Opening {
    /// Who the client is.
    pub identity: Identity,
    /// The complete 101 answer.
    pub response: Bytes,
    /// Rooms to join at once; valid names, at most `rooms_per_connection_max`.
    pub rooms: Vec<String>,
    /// The protocol of the client, and the form in which it receives events.
    pub encoding: Encoding,
}

/// Deadlines that are stored at most beyond twice the number of live ones.
pub(in crate::shard) const DEADLINES_SPARE: usize = 1024;

/// What is to be done with a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClosedSocket {
    /// Our half is to be closed; the peer is expected to close the other.
    Half {
        /// The caller's number for the socket.
        socket_key: u32,
    },
    /// The connection is gone from here; the socket is to be closed.
    Whole {
        /// The caller's number for the socket.
        socket_key: u32,
        /// The connection that it was.
        conn: ConnId,
        /// Why it ended; `None`: it vanished in its handshake, and the caller counts that.
        reason: Option<CloseReason>,
    },
}

/// Queues and deadlines of connections that open and close.
#[derive(Debug, Default)]
pub(in crate::shard) struct Lifecycle {
    pub(in crate::shard) handshakes: VecDeque<(u64, ConnId)>,
    pub(in crate::shard) closings: VecDeque<(u64, ConnId)>,
    /// Both sides have sent their last byte (or it is time to close our half).
    pub(in crate::shard) leaving: VecDeque<ConnId>,
    /// Gone: to be freed.
    pub(in crate::shard) ended: VecDeque<ConnId>,
    /// Their HTTP request did not come in time: to be answered.
    pub(in crate::shard) timed_out: VecDeque<ConnId>,
    pub(in crate::shard) sweep: Sweep,
    pub(in crate::shard) drain: Option<Drain>,
    pub(in crate::shard) recheck: Option<Recheck>,
    /// The shard's clock, as of the last call that carried the time.
    pub(in crate::shard) now_ms: u64,
}

/// The sweep's slices, counted on and on: slice `n` is due `n / SLICES` intervals after `began_ms`.
#[derive(Debug, Default)]
pub(in crate::shard) struct Sweep {
    pub(in crate::shard) began_ms: u64,
    pub(in crate::shard) at: u64,
}

/// A walk over all connections, because who is admitted has changed.
#[derive(Clone, Copy, Debug)]
pub(in crate::shard) struct Recheck {
    /// The next place to be looked at.
    pub(in crate::shard) at: usize,
    /// What a client without a token may do now; `None`: it may not be here.
    pub(in crate::shard) anonymous: Option<Rights>,
    /// Tokens of connections that were opened before this, in units of `OPENED_UNIT_MS`, were signed
    /// with a key that is no longer good. 0: all are good.
    pub(in crate::shard) tokens_hold_since: u32,
}

#[derive(Debug)]
pub(in crate::shard) struct Drain {
    pub(in crate::shard) began_ms: u64,
    pub(in crate::shard) over_ms: u64,
    pub(in crate::shard) at: usize,
}
