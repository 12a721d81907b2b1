//! From a connect to the join, and how a connection ends.
//!
//! Invariant: each attempt ends in exactly one of these: joined, retried later, failed for good.

use super::conn::ClientState;
use super::schedule::{HandshakeDeadline, retry_delay_ns};
use super::state::ClientConnections;
use crate::load::client::frame::opcode;
use crate::load::report::tally::ConnectFailure;
use crate::load::sys;
use std::io;
use std::sync::Arc;

/// Connects that one turn begins at most, so that a turn stays short.
const CONNECTS_PER_TURN: u32 = 64;

impl ClientConnections {
    /// Begins as many connects as concurrency and rate allow, a bounded number in each turn.
    pub(crate) fn begin_connects(&mut self) {
        let now_ns = self.plan.now_ns();
        self.schedule.queue_due_retries(now_ns);
        for _ in 0..CONNECTS_PER_TURN {
            let Some(slot) = self.schedule.take_next(now_ns) else { return };
            self.begin_connect(slot);
        }
    }

    /// When the next connect can begin; `None` if that depends on an event.
    pub(crate) fn next_connect_ns(&self) -> Option<u64> {
        self.schedule.next_due_ns()
    }

    /// Ends handshakes that have taken too long.
    pub(crate) fn expire_handshakes(&mut self) {
        let now_ns = self.plan.now_ns();
        while let Some(deadline) = self.schedule.first_deadline() {
            let conn = self.conn(deadline.slot);
            let state = conn.state;
            // A connection that waits for its next attempt has ended this one already.
            let is_pending = conn.generation == deadline.generation && conn.is_opening();
            if is_pending && deadline.at_ns > now_ns {
                return;
            }
            self.schedule.drop_first_deadline();
            if is_pending {
                self.fail(deadline.slot, ConnectFailure::Timeout, None, || {
                    timeout_text(state).into()
                });
            }
        }
    }

    fn begin_connect(&mut self, slot: u32) {
        let number = self.first + slot;
        self.tally.attempts += 1;
        let timeout_ns = self.plan.handshake_timeout.as_nanos() as u64;
        let at_ns = self.plan.now_ns() + timeout_ns;
        let conn = &mut self.conns[slot as usize];
        conn.state = ClientState::Connecting;
        conn.generation = conn.generation.wrapping_add(1);
        let generation = conn.generation;
        self.schedule.handshake_begun(HandshakeDeadline { at_ns, slot, generation });
        let key = u64::from(generation) << 32 | u64::from(slot);
        let to = self.plan.target(number).addr;
        let begun = sys::begin_connect(to, self.plan.source(number))
            .and_then(|stream| self.epoll.add(&stream, key).map(|()| stream));
        match begun {
            Ok(stream) => conn.stream = Some(stream),
            Err(error) => self.fail_io(slot, &format!("connect to {to}"), &error),
        }
    }

    /// The TCP connect has ended: sends the request.
    pub(super) fn handle_connected(&mut self, slot: u32) {
        let plan = Arc::clone(&self.plan);
        let target = plan.target(self.first + slot);
        let conn = self.conn_mut(slot);
        let stream = conn.stream.as_ref().expect("a connecting connection has a socket");
        match stream.take_error() {
            Ok(None) => {}
            Ok(Some(error)) | Err(error) => {
                return self.fail_io(slot, &format!("connect to {}", target.addr), &error);
            }
        }
        conn.state = ClientState::Requested;
        let mut path = Vec::new();
        plan.path.fill(&self.values(&plan, slot), &mut path);
        let path = String::from_utf8_lossy(&path);
        target.handshake.write_request(&path, self.conn_mut(slot).unsent());
        self.flush(slot);
    }

    /// The server has answered 101: sends the first messages.
    pub(super) fn handle_open(&mut self, slot: u32) {
        self.schedule.handshake_ended();
        let plan = Arc::clone(&self.plan);
        let conn = self.conn_mut(slot);
        conn.state = ClientState::Open;
        conn.rooms_missing = plan.rooms().layers() as u8;
        for template in &plan.init {
            self.scratch.clear();
            let values = self.values(&plan, slot);
            template.fill(&values, &mut self.scratch);
            self.queue_scratch(slot, opcode::TEXT);
        }
        if plan.ready.is_none() {
            self.handle_joined(slot);
        }
    }

    /// The server has confirmed one of the connection's rooms.
    pub(super) fn handle_room_joined(&mut self, slot: u32) {
        let conn = self.conn_mut(slot);
        conn.rooms_missing -= 1;
        if conn.rooms_missing == 0 {
            self.handle_joined(slot);
        }
    }

    fn handle_joined(&mut self, slot: u32) {
        let conn = self.conn_mut(slot);
        conn.state = ClientState::Joined;
        conn.tries = 0;
        conn.last_seq = 0;
        self.tally.joined += 1;
        self.tally.last_joined_ns = self.plan.now_ns();
    }

    /// The peer has ended the connection, or violated the protocol.
    ///
    /// 1. Not joined: the attempt has failed.
    /// 2. Joined: the connection is lost, and retried only where retries have no end.
    pub(super) fn handle_ended(&mut self, slot: u32, error: Option<&io::Error>) {
        if self.is_non_reading(slot) {
            self.tally.non_reading_closed += 1;
            let conn = self.conn_mut(slot);
            conn.close(true);
            conn.state = ClientState::Failed;
            return;
        }
        if self.conn(slot).state == ClientState::Joined {
            return self.handle_lost(slot, error);
        }
        match error {
            Some(error) => self.fail_io(slot, "the connection was lost before it joined", error),
            None => self.fail(slot, ConnectFailure::ClosedEarly, None, || {
                "the server closed the connection before it had joined".into()
            }),
        }
    }

    fn handle_lost(&mut self, slot: u32, error: Option<&io::Error>) {
        self.tally.joined -= 1;
        self.tally.lost += 1;
        self.tally.note_failure(|| match error {
            Some(error) => format!("a joined connection was lost: {error}"),
            None => "a joined connection was closed by the server".into(),
        });
        self.conn_mut(slot).close(false);
        if self.plan.retries.is_some() {
            self.conn_mut(slot).state = ClientState::Failed;
        } else {
            self.retry(slot, None);
        }
    }

    fn fail_io(&mut self, slot: u32, what: &str, error: &io::Error) {
        self.fail(slot, ConnectFailure::of(error), None, || format!("{what}: {error}"));
    }

    /// An attempt has failed: it is retried, or was the last.
    pub(super) fn fail(
        &mut self,
        slot: u32,
        reason: ConnectFailure,
        retry_after_s: Option<u64>,
        what: impl FnOnce() -> String,
    ) {
        self.tally.note_failure(what);
        let retries = self.plan.retries;
        let conn = &mut self.conns[slot as usize];
        if matches!(conn.state, ClientState::Connecting | ClientState::Requested) {
            self.schedule.handshake_ended();
        }
        conn.close(false);
        // A wrong path stays wrong, and descriptors do not become more.
        let is_permanent = matches!(reason, ConnectFailure::Status | ConnectFailure::NoFile);
        let may_retry = retries.is_none_or(|retries| conn.tries < retries);
        if is_permanent || !may_retry {
            conn.state = ClientState::Failed;
            self.tally.failed[reason as usize] += 1;
            return;
        }
        conn.tries = conn.tries.saturating_add(1);
        self.tally.retried[reason as usize] += 1;
        self.retry(slot, retry_after_s);
    }

    /// Connects again after a delay.
    fn retry(&mut self, slot: u32, retry_after_s: Option<u64>) {
        let random = self.random.next_u48();
        let conn = &mut self.conns[slot as usize];
        conn.state = ClientState::Waiting;
        let delay_ns = retry_delay_ns(conn.tries, retry_after_s, random);
        self.schedule.retry(slot, self.plan.now_ns() + delay_ns);
    }
}

/// How far an attempt had come when its time was over.
fn timeout_text(state: ClientState) -> &'static str {
    match state {
        ClientState::Connecting => "no answer to the connect",
        ClientState::Requested => "no answer to the handshake",
        _ => "the connection is open, but the server did not confirm the join (see --ready)",
    }
}
