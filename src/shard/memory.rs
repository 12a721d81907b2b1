//! What this shard keeps alive, and what it does when the node comes near its memory bound.
//!
//! The sum is made of gauges that are maintained anyway, so it costs a few additions a visit. The
//! steps of [`Pressure`], each with those before it:
//!
//! | step | here |
//! |---|---|
//! | pause the largest | a connection that holds more than its part is not read |
//! | refuse requests | joins, `history` and `presence` are answered with `overloaded` |
//! | close the largest | those that hold most are closed (1013), and publishes refused |
//! | refuse connections | the caller refuses what it accepts |
//!
//! Connections are looked through only on ticks at the third step: what holds most is found by looking
//! at each, and no list has to be maintained before that.

use crate::ids::ConnId;
use crate::link::Uplink;
use crate::link::ledger::Pressure;
use crate::protocol::{Command, ErrorCode};
use crate::shard::command_error::CommandError;
use crate::shard::conn::{CloseReason, Conn, ConnState, ReadState};
use crate::shard::state::Shard;
use std::cmp::Reverse;

/// What a connection may hold when memory is short, before it is read no more: its part of
/// [`LARGE_PART`] of the bound, within these.
const LARGE_BYTES_MAX: usize = 16 * 1024;
const LARGE_BYTES_MIN: usize = 512;
/// All connections of a shard may hold this part of the bound.
const LARGE_PART: usize = 64;

/// A connection in its slab, with the tables that name it.
const CONN_BYTES: usize = 160;
/// A topic: its name, its places in tables, its list of members.
const TOPIC_BYTES: usize = 384;
/// A membership: its place in the topic's list, and in the connection's.
const MEMBER_BYTES: usize = 24;
/// A question that waits.
const QUESTION_BYTES: usize = 320;
/// A membership by a token for its room, with its entry and its part of the connection's.
const ROOM_TOKEN_BYTES: usize = 96;
/// A member that acknowledges: its places in the list and the table of its room.
const ACK_BYTES: usize = 112;
/// A room whose rate is used, with a name of some length.
const ROOM_RATE_BYTES: usize = 160;
/// A reply or an item of a round, beside its bytes.
const ITEM_BYTES: usize = 72;

/// A connection that holds something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Which.
    pub conn: ConnId,
    /// Bytes that it alone keeps alive: its outbox, its half message, what of it is stored unread.
    pub bytes: usize,
}

impl Shard {
    /// Bytes that this shard keeps alive, as far as it can tell; two connections that share a buffer
    /// count it twice.
    pub fn held_bytes(&self) -> usize {
        let d = &self.deliveries;
        self.conns.len() * CONN_BYTES
            + self.hub.topics_len() * TOPIC_BYTES
            + self.hub.members_len() * MEMBER_BYTES
            + self.counters.outbox_bytes as usize
            + self.half_bytes
            + self.pauses.rest_bytes()
            + self.hooked.held_bytes()
            + self.questions.waiting() * QUESTION_BYTES
            + self.room_tokens.len() * ROOM_TOKEN_BYTES
            + self.pendings.bytes()
            + self.infos.bytes()
            + self.user_infos.bytes()
            + self.grants.bytes()
            + self.acks.members() * ACK_BYTES
            + self.room_rates.len() * ROOM_RATE_BYTES
            + self.uplink.len() * size_of::<Uplink>()
            + d.bytes_waiting
            + d.own_bytes
            + self.frames_waiting() * ITEM_BYTES
    }

    /// Bytes of replies and frames that are not written to everyone yet.
    pub fn frames_waiting_bytes(&self) -> usize {
        self.deliveries.bytes_waiting
    }

    /// How near the node is to its bound, as of now.
    pub fn set_pressure(&mut self, pressure: Pressure) {
        let was = std::mem::replace(&mut self.pressure, pressure);
        if pressure == Pressure::None && was > Pressure::None {
            self.resume_for_memory();
        }
    }

    /// Whether memory allows a command. A publish frees what it holds as soon as it is delivered; what
    /// takes nothing is never refused.
    pub(super) fn has_memory_for(&self, command: &Command<'_>) -> Result<(), CommandError> {
        let refused_from = match command {
            Command::Join { .. } | Command::Presence { .. } | Command::History { .. } => {
                Pressure::RefuseRequests
            }
            Command::Publish { .. } | Command::Send { .. } | Command::Broadcast { .. } => {
                Pressure::CloseLargest
            }
            Command::Leave { .. } | Command::Ack { .. } | Command::Auth { .. } | Command::Ping => {
                return Ok(());
            }
        };
        if self.pressure < refused_from {
            return Ok(());
        }
        Err(CommandError(ErrorCode::Overloaded, "this server is short of memory: try again later"))
    }

    /// Reads a connection no more that holds much while memory is short. Called while it is read.
    pub(super) fn pause_if_large(&mut self, conn: ConnId) {
        if self.pressure == Pressure::None || self.is_paused(conn) {
            return;
        }
        let large_bytes = self.large_bytes();
        let is_large = |c: &Conn| c.is_open() && held(c) > large_bytes;
        if self.conns.get(conn.0).is_some_and(is_large) {
            self.pause(conn);
            self.memory_paused.insert(conn);
            self.counters.memory_pauses += 1;
        }
    }

    /// Whether a connection is not read because memory is short.
    pub(super) fn is_paused_for_memory(&self, conn: ConnId) -> bool {
        !self.memory_paused.is_empty() && self.memory_paused.contains(&conn)
    }

    /// From how many bytes on a connection holds more than its part.
    fn large_bytes(&self) -> usize {
        let part = self.limits.memory_bytes_max / LARGE_PART / self.conns.len().max(1);
        part.clamp(LARGE_BYTES_MIN, LARGE_BYTES_MAX)
    }

    fn resume_for_memory(&mut self) {
        for conn in std::mem::take(&mut self.memory_paused) {
            self.resume(conn);
        }
    }

    /// What each connection holds that holds more than a little, the largest first.
    pub fn holders(&self) -> Vec<Holder> {
        let large_bytes = self.large_bytes();
        let large = |(id, c): (_, &Conn)| {
            let conn = ConnId(id);
            let bytes = held(c) + self.pauses.rest_bytes_of(conn);
            (bytes > large_bytes).then_some(Holder { conn, bytes })
        };
        let mut holders: Vec<Holder> = self.conns.iter().filter_map(large).collect();
        holders.sort_unstable_by_key(|holder| Reverse(holder.bytes));
        holders
    }

    /// Closes the connections that hold most, until so much is given up. Answers how many.
    pub fn close_largest(&mut self, holders: &[Holder], bytes: usize) -> usize {
        let (mut given_up, mut closed) = (0, 0);
        for holder in holders {
            if given_up >= bytes {
                break;
            }
            let before = self.held_bytes();
            self.give_up(holder.conn);
            given_up += before.saturating_sub(self.held_bytes());
            closed += 1;
        }
        closed
    }

    /// Closes a connection for what it holds. One that is closing already, and takes nothing, ends.
    fn give_up(&mut self, conn: ConnId) {
        match self.conns.get(conn.0).map(|c| c.state) {
            Some(ConnState::Open) => {
                self.begin_close(conn, CloseReason::Memory);
                self.forget_input(conn);
            }
            Some(ConnState::Closing { .. } | ConnState::Handshaking) => {
                self.handle_peer_gone(conn, CloseReason::Memory);
            }
            None => {}
        }
    }

    /// What a connection has sent and is not used yet is dropped: it is being closed.
    fn forget_input(&mut self, conn: ConnId) {
        self.forget_pause(conn);
        let Some(c) = self.conns.get_mut(conn.0) else { return };
        if let ConnState::Closing { ignore_input, .. } = &mut c.state {
            *ignore_input = true; // Half of a message is gone.
        }
        self.half_bytes -= half_bytes(c.decoder.take().as_deref());
        let is_paused = c.unread == ReadState::Paused;
        self.memory_paused.remove(&conn);
        if is_paused {
            self.resume(conn); // Its end is waited for.
        }
    }
}

/// Bytes that a connection keeps alive beside its slot.
fn held(c: &Conn) -> usize {
    let outbox = c.outbox.as_ref().map_or(0, |outbox| outbox.bytes());
    outbox + half_bytes(c.decoder.as_deref())
}

/// Bytes of half a message.
pub(super) fn half_bytes(decoder: Option<&crate::ws::decoder::Decoder>) -> usize {
    decoder.map_or(0, |decoder| size_of_val(decoder) + decoder.heap_bytes())
}
