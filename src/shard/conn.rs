//! One connection as its shard stores it, and the reasons for which one ends.
//!
//! ```text
//!   Handshaking ──► Open ──► Closing ──► (freed)
//!        └──────────────────────▲
//! ```
//!
//! Everything that an idle connection costs is in [`Conn`]: what only busy or slow connections
//! need is behind a pointer that is null for the others. A connection does not hold its
//! socket: `socket_key` is the caller's number for it, handed back with each send.
//!
//! Invariant: a connection that is `Closing` is in no topic.

use crate::policy::rights::{PackedRights, Rights};
use crate::protocol::dialect::{Dialect, Encoding, Farewell};
use crate::shard::slow_consumer::outbox::Outbox;
use crate::shard::state::rates::UNUSED;
use crate::ws::close::CloseCode;
use crate::ws::decoder::{Decoder, ProtocolError};

/// Where a connection is between accept and close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnState {
    /// The HTTP request has not been answered yet.
    Handshaking,
    /// A WebSocket.
    Open,
    /// A last answer or close frame is on its way; all input is ignored but the peer's close frame.
    Closing {
        /// The peer sends nothing more: the connection ends when our last byte has left.
        peer_closed: bool,
        /// Nothing the peer says matters any more, because it never was a WebSocket or has broken the
        /// protocol: our half is closed after the last byte, and the peer's end is waited for.
        ignore_input: bool,
        /// Our last byte has been queued: nothing follows what is in the outbox.
        close_queued: bool,
    },
}

/// Whether a socket waits to be read, until it has its turn and the window has room, or is paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadState {
    /// It does not.
    Idle,
    /// It does; bytes that arrive after a short read cause an edge of their own.
    Queued,
    /// It does, and edges came since it was queued: it must be read until nothing is left.
    ToTheEnd,
    /// It is not to be read, whatever arrives (see `pause.rs`). Resumed, it is read until nothing is
    /// left.
    Paused,
}

/// A membership, from the connection's side: which topic, and where in its list of members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Membership {
    /// The topic's index in the hub.
    pub topic: u32,
    /// The place in the topic's members.
    pub place: u32,
}

/// The topics of one connection. The first two (a user and a room) stand inline.
#[derive(Debug)]
pub struct Memberships {
    first: [Membership; 2],
    #[allow(clippy::box_collection)] // 8 bytes for everyone instead of 24
    more: Option<Box<Vec<Membership>>>,
}

/// Fills an inline place that is not used.
const NOWHERE: Membership = Membership { topic: u32::MAX, place: 0 };

impl Default for Memberships {
    fn default() -> Memberships {
        Memberships { first: [NOWHERE; 2], more: None }
    }
}

impl Memberships {
    /// How many topics.
    pub fn len(&self) -> usize {
        let inline = self.first.iter().take_while(|membership| **membership != NOWHERE).count();
        inline + self.more.as_ref().map_or(0, |more| more.len())
    }

    /// Whether it is in none.
    pub fn is_empty(&self) -> bool {
        self.first[0] == NOWHERE
    }

    /// The membership at `slot`.
    pub fn get(&self, slot: usize) -> Option<Membership> {
        match self.first.get(slot) {
            Some(membership) => (*membership != NOWHERE).then_some(*membership),
            None => self.more.as_ref()?.get(slot - self.first.len()).copied(),
        }
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = Membership> + '_ {
        self.first
            .iter()
            .take_while(|m| **m != NOWHERE)
            .chain(self.more.iter().flat_map(|m| m.iter()))
            .copied()
    }

    /// The slot of `topic`, if the connection is in it.
    pub fn find(&self, topic: u32) -> Option<usize> {
        self.iter().position(|membership| membership.topic == topic)
    }

    /// Adds one at the end; answers its slot.
    pub fn push(&mut self, membership: Membership) -> usize {
        let slot = self.len();
        self.put(slot, membership);
        slot
    }

    /// The members of a topic moved: the membership at `slot` has another place now.
    pub fn set_place(&mut self, slot: usize, place: u32) {
        let topic = self.get(slot).expect("a member's slot names its membership").topic;
        self.put(slot, Membership { topic, place });
    }

    /// Two memberships exchange their slots.
    pub fn swap(&mut self, one: usize, other: usize) {
        let [first, second] = [one, other].map(|slot| self.get(slot).expect("both are there"));
        self.put(one, second);
        self.put(other, first);
    }

    /// Takes the membership at `slot` out. The last one moves there and is returned, so that the
    /// caller can correct the slot in its topic's member list.
    pub fn swap_remove(&mut self, slot: usize) -> Option<Membership> {
        let end = self.len() - 1;
        let last = self.get(end).expect("there is one to take out");
        match &mut self.more {
            Some(more) if more.len() > 1 => more.truncate(more.len() - 1),
            Some(_) => self.more = None,
            None => self.first[end] = NOWHERE,
        }
        if slot == end {
            return None;
        }
        self.put(slot, last);
        Some(last)
    }

    fn put(&mut self, slot: usize, membership: Membership) {
        if let Some(place) = self.first.get_mut(slot) {
            *place = membership;
            return;
        }
        let more = self.more.get_or_insert_default();
        let at = slot - self.first.len();
        if at == more.len() { more.push(membership) } else { more[at] = membership }
    }
}

/// The unit of [`Conn::since`], the time at which a connection was opened: enough for 13 years.
pub const OPENED_UNIT_MS: u64 = 100;

/// One connection.
#[derive(Debug)]
pub struct Conn {
    /// The caller's number for the socket.
    pub socket_key: u32,
    /// Where its write stood in the last batch that had one: one write per batch, so nothing
    /// overtakes a partial one. A hint, worth what `SendBatch::is_at` says.
    pub place: u32,
    /// In its handshake, open, or closing.
    pub state: ConnState,
    /// Whether bytes came from it since the last sweep; while it is paused, whether it took some.
    pub is_active: bool,
    /// The protocol of its client, and the form in which it receives events.
    pub encoding: Encoding,
    /// Whether its user has shown a token.
    pub has_token: bool,
    /// Whether its socket waits to be read.
    pub unread: ReadState,
    /// Which question to the backplane comes after the last publish or presence of it (`session/`).
    pub settled_by: u32,
    /// While `Handshaking`, when it was accepted, in milliseconds of the shard's clock (modulo 2³²);
    /// from then on when it was opened, in units of [`OPENED_UNIT_MS`].
    pub since: u32,
    /// Why it ends, once it does.
    pub reason: Option<CloseReason>,
    /// The rights of its user.
    pub rights: PackedRights,
    /// The index of what it has used of its rates (`rates.rs`), or `UNUSED`.
    pub usage: u32,
    /// Its topics; the first one is its user's (see `user_queue.rs` for when not yet).
    pub joined: Memberships,
    /// Half a message, if there is one.
    pub decoder: Option<Box<Decoder>>,
    /// Bytes that the socket did not take at once.
    pub outbox: Option<Box<Outbox>>,
}

// What an idle connection costs in its slab, the generation beside it included.
const _: () = assert!(size_of::<Option<Conn>>() + 8 <= 80);
// Of it: both memberships, and one pointer for a connection that is in more topics.
const _: () = assert!(size_of::<Memberships>() == 24);

impl Conn {
    /// A connection that was just accepted.
    pub fn new(socket_key: u32) -> Conn {
        let none =
            Rights { publish: false, publish_unjoined: false, send: false, broadcast: false };
        Conn {
            socket_key,
            place: u32::MAX,
            state: ConnState::Handshaking,
            is_active: true,
            encoding: Encoding::NATIVE,
            has_token: false,
            unread: ReadState::Idle,
            settled_by: 0,
            since: 0,
            reason: None,
            rights: none.into(),
            usage: UNUSED,
            joined: Memberships::default(),
            decoder: None,
            outbox: None,
        }
    }

    /// Whether it is a WebSocket that is not being closed.
    #[inline]
    pub fn is_open(&self) -> bool {
        self.state == ConnState::Open
    }
}

/// Why a connection ends. The only way one does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// The peer sent a close frame.
    Client,
    /// The peer vanished.
    Gone,
    /// The socket failed.
    Io,
    /// The peer broke RFC 6455.
    Protocol(ProtocolError),
    /// A binary message where only text is spoken.
    Unsupported,
    /// More than `outbox_bytes_max` waits for it.
    Slow,
    /// It has taken nothing of what waits for it for `stall_timeout_ms`.
    Stalled,
    /// Nothing was received for a whole sweep, the answer to our ping included.
    Silent,
    /// This node is shutting down.
    Drain,
    /// Its token has expired.
    TokenExpired,
    /// Its token was revoked.
    TokenRevoked,
    /// The configuration no longer admits it.
    NotAdmitted,
    /// Messages of a topic were lost, and the dialect asks its clients to come back for them.
    Lost,
    /// An operator has disconnected its user, with a close code of their own.
    Disconnected,
    /// The HTTP exchange is over; it never became a WebSocket.
    Http,
    /// This node has as many topics as it may have, and the user's own would be one more.
    Overloaded,
    /// This node is short of memory, and it holds more than others.
    Memory,
    /// It has sent faster than its rates allow for `rate_limited_timeout_ms`.
    RateLimited,
}

impl CloseReason {
    /// What our close frame says: the code of RFC 6455 where the peer broke it, and otherwise what the
    /// dialect says. `None` where it has no code (the peer's own is the answer to a peer that closes)
    /// or none is sent.
    pub fn close(self, dialect: Dialect) -> Option<(CloseCode, &'static str)> {
        let farewell = match self {
            CloseReason::Protocol(error) => return Some((error.close_code(), error.reason())),
            CloseReason::Client | CloseReason::Gone | CloseReason::Io | CloseReason::Http => {
                return None;
            }
            CloseReason::Disconnected => return None, // The operator says it.
            CloseReason::Unsupported => Farewell::Unsupported,
            CloseReason::Slow | CloseReason::Stalled => Farewell::Slow,
            CloseReason::Overloaded | CloseReason::Memory => Farewell::Overloaded,
            CloseReason::RateLimited => Farewell::RateLimited,
            CloseReason::Silent => Farewell::Silent,
            CloseReason::Drain => Farewell::Drain,
            CloseReason::TokenExpired => Farewell::TokenExpired,
            CloseReason::TokenRevoked => Farewell::TokenRevoked,
            CloseReason::NotAdmitted => Farewell::NotAdmitted,
            CloseReason::Lost => Farewell::Lost,
        };
        let (code, text) = dialect.close(farewell);
        Some((CloseCode::new(code).expect("a dialect closes with codes that may be sent"), text))
    }

    /// Whether what waits for it is given up, all but the frame that has begun.
    pub fn is_of_a_slow_peer(self) -> bool {
        matches!(self, CloseReason::Slow | CloseReason::Stalled | CloseReason::Memory)
    }

    /// The reason as it stands in the metrics and the log.
    pub fn label(self) -> &'static str {
        match self {
            CloseReason::Client => "client",
            CloseReason::Gone => "connection_lost",
            CloseReason::Io => "io_error",
            CloseReason::Protocol(error) if error.close_code() == CloseCode::TOO_BIG => "too_big",
            CloseReason::Protocol(_) => "protocol",
            CloseReason::Unsupported => "unsupported",
            CloseReason::Slow => "slow_consumer",
            CloseReason::Stalled => "stalled",
            CloseReason::Silent => "ping_timeout",
            CloseReason::Overloaded => "overloaded",
            CloseReason::Memory => "memory",
            CloseReason::RateLimited => "rate_limited",
            CloseReason::Drain => "drain",
            CloseReason::TokenExpired => "token_expired",
            CloseReason::TokenRevoked => "token_revoked",
            CloseReason::NotAdmitted => "not_admitted",
            CloseReason::Lost => "messages_lost",
            CloseReason::Disconnected => "disconnected",
            CloseReason::Http => "http",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_of_a_connection_agree_with_a_plain_list() {
        let mut joined = Memberships::default();
        let mut model: Vec<u32> = Vec::new();
        let mut seed = 3u64;
        for step in 0..20_000u32 {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            if model.len() > 1 && (seed >> 60) == 0 {
                let slots = [7, 33].map(|shift| (seed >> shift) as usize % model.len());
                joined.swap(slots[0], slots[1]);
                model.swap(slots[0], slots[1]);
            } else if model.len() < 9 && (seed >> 62) != 0 {
                joined.push(Membership { topic: step, place: step + 1 });
                model.push(step);
            } else if !model.is_empty() {
                let slot = (seed >> 33) as usize % model.len();
                let moved = joined.swap_remove(slot);
                model.swap_remove(slot);
                assert_eq!(moved.map(|m| m.topic), model.get(slot).copied());
            }
            let topics: Vec<u32> = joined.iter().map(|m| m.topic).collect();
            assert_eq!(topics, model);
            assert!(model.iter().enumerate().all(|(at, topic)| joined.find(*topic) == Some(at)));
            assert!(joined.iter().all(|m| m.place == m.topic + 1));
        }
    }
}
