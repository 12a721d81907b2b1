//! All connections of one worker: opening, joined, lost, retried.
//!
//! Built so that two million fit: a connection is 24 bytes and a socket. All connections of a
//! worker share one receive buffer; only an incomplete frame or a full socket gives one connection
//! memory of its own, and it is freed afterwards.
//!
//! The files build on each other in this order: `conn` (one connection), `schedule` (when to
//! connect), `state` (the fields), `send`, `opening`, `receive`. This file is the top: it
//! takes events, and acts on all connections at once.
//!
//! Invariant: an event reaches only the connection whose socket it belongs to.

mod conn;
mod opening;
mod receive;
mod schedule;
mod send;
mod state;

pub(crate) use state::ClientConnections;

use crate::load::sys::ReadySocket;
use conn::ClientState;

impl ClientConnections {
    /// Begins to connect all connections, each in its turn.
    pub(crate) fn connect_all(&mut self) {
        self.schedule.restart(self.conns.len() as u32, self.plan.now_ns());
    }

    /// Takes an event of epoll.
    pub(crate) fn handle_ready(&mut self, ready: ReadySocket) {
        let (slot, generation) = (ready.key as u32, (ready.key >> 32) as u16);
        let Some(conn) = self.conns.get(slot as usize) else { return };
        if conn.generation != generation || conn.stream.is_none() {
            return;
        }
        if conn.state == ClientState::Connecting {
            self.handle_connected(slot);
        } else if ready.writable && conn.unsent_bytes() > 0 {
            self.flush(slot);
        }
        if ready.readable {
            self.read(slot, ready.hung_up);
        }
    }

    /// Closes every connection, with a reset or plainly, and connects it again.
    pub(crate) fn reconnect_all(&mut self, reset: bool) {
        for conn in &mut self.conns {
            conn.close(reset);
            conn.generation = conn.generation.wrapping_add(1);
            conn.state = ClientState::Waiting;
            conn.tries = 0;
        }
        self.tally.joined = 0;
        self.connect_all();
    }

    /// Closes every connection with a reset, which leaves no sockets in TIME_WAIT on this machine.
    pub(crate) fn close_all(&mut self) {
        for conn in &mut self.conns {
            conn.close(true);
        }
    }
}
