//! Connections that are not read for a while.
//!
//! What one connection asks for may have to wait: for the answer to its last question, for its rate,
//! for an answer that its protocol sends in order. Then it is *paused*: its socket is not read, so the
//! kernel lets the client wait (RFC 9293 §3.8.6), and what was read already and not used, at most one
//! read turn, is stored here. Resumed, it is queued to be read like any other; what is stored is used
//! first, and then the socket is read until nothing is left, because epoll reports no second edge for
//! bytes that arrived during the pause.
//!
//! A paused connection is not silent: the answer to a heartbeat may stand in what is not read. But one
//! that neither waits for us nor takes what waits for it is. A socket that failed ends it at once.
//!
//! Invariant: a connection has an entry here from its pause until its stored bytes were used.

use crate::ids::ConnId;
use crate::shard::conn::{ConnState, ReadState};
use crate::shard::state::Shard;

/// What one call used of a connection's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadOutcome {
    /// Bytes used. The others, at most one read turn, are stored until the connection is resumed.
    pub used_bytes: usize,
    /// The connection is not to be read until [`Shard::poll_resumed`] names it.
    pub is_paused: bool,
}

impl Shard {
    /// A paused connection that is to be read again: the caller puts it into its queue.
    pub fn poll_resumed(&mut self) -> Option<ConnId> {
        while let Some(conn) = self.pauses.resumed.pop_front() {
            if self.conns.get(conn.0).is_some_and(|c| c.unread == ReadState::ToTheEnd) {
                return Some(conn);
            }
        }
        None
    }

    /// The caller's turn to read a connection begins: its stored bytes come before those of its
    /// socket.
    pub fn handle_rest(&mut self, conn: ConnId) -> ReadOutcome {
        match self.pauses.take(conn) {
            Some(mut rest) if !rest.is_empty() => self.use_bytes(conn, &mut rest),
            _ => ReadOutcome { used_bytes: 0, is_paused: false },
        }
    }

    /// Whether a connection is not to be read.
    pub fn is_paused(&self, conn: ConnId) -> bool {
        self.conns.get(conn.0).is_some_and(|c| c.unread == ReadState::Paused)
    }

    /// Reads a connection no more until it is resumed. Called while it is read.
    pub(super) fn pause(&mut self, conn: ConnId) {
        let Some(c) = self.conns.get_mut(conn.0) else { return };
        if matches!(c.state, ConnState::Closing { .. }) {
            return; // Its end is waited for.
        }
        if c.unread != ReadState::Paused {
            c.unread = ReadState::Paused;
            self.counters.reads_paused += 1;
            self.pauses.keep(conn, &[]);
        }
    }

    /// A reason for a connection's pause has ended. It is read again, unless there is another one;
    /// once it closes, its end is waited for whatever reason there is.
    pub(super) fn resume(&mut self, conn: ConnId) {
        if self.is_rate_limited(conn)
            || self.has_questions_enough(conn)
            || self.hooked.has(conn)
            || self.is_paused_for_memory(conn)
            || self.token_checks.is_waiting(conn)
        {
            let is_open = self.conns.get(conn.0).is_some_and(|c| c.is_open());
            if is_open {
                return;
            }
        }
        let Some(c) = self.conns.get_mut(conn.0) else { return };
        if c.unread == ReadState::Paused {
            c.unread = ReadState::ToTheEnd;
            self.pauses.resumed.push_back(conn);
        }
    }

    /// What was read of a connection and cannot be used yet.
    pub(super) fn keep_rest(&mut self, conn: ConnId, rest: &[u8]) {
        self.pauses.keep(conn, rest);
    }

    /// A connection is read no more.
    pub(super) fn forget_pause(&mut self, conn: ConnId) {
        self.pauses.take(conn);
    }
}
