//! Sending: publishes, bursts and replies, each queued now and written at the end of the turn.
//!
//! Invariant: a connection with unsent bytes is in `to_flush`, or waits until its socket is
//! writable.

use super::conn::ClientState;
use super::state::ClientConnections;
use crate::load::client::frame::{self, opcode};
use crate::load::client::stamp::{BROADCAST_ROOM, Stamp};
use crate::load::client::template::TemplateValues;
use std::sync::Arc;

/// A socket with more than this unsent takes no more messages.
const UNSENT_BYTES_MAX: usize = 64 << 20;

impl ClientConnections {
    /// Queues one message on the connection with this number. Returns `false`, and queues nothing,
    /// if the connection is not joined or its socket takes nothing any more.
    #[must_use]
    pub(crate) fn publish(&mut self, number: u32, stamp: Stamp) -> bool {
        let slot = number - self.first;
        let conn = self.conn(slot);
        if conn.state != ClientState::Joined || conn.unsent_bytes() > UNSENT_BYTES_MAX {
            return false;
        }
        let plan = Arc::clone(&self.plan);
        let message = Some((stamp, plan.payload_bytes));
        let values = self.values(&plan, slot);
        let room = if stamp.room == BROADCAST_ROOM { values.room } else { stamp.room };
        let values = TemplateValues { room, message, ..values };
        self.scratch.clear();
        plan.message.fill(&values, &mut self.scratch);
        self.queue_scratch(slot, opcode::TEXT);
        true
    }

    /// Sends a burst on every joined connection, and another one whenever the last is answered.
    pub(crate) fn start_bursts(&mut self) {
        let plan = Arc::clone(&self.plan);
        let Some(burst) = &plan.burst else { return };
        self.bursts = (0..self.conns.len() as u32)
            .map(|slot| {
                let values = self.values(&plan, slot);
                burst.encode(values, || self.random.next_mask())
            })
            .collect();
        self.is_bursting = true;
        for slot in 0..self.conns.len() as u32 {
            if self.conn(slot).state == ClientState::Joined {
                self.send_burst(slot);
            }
        }
    }

    /// Begins no further burst.
    pub(crate) fn stop_bursts(&mut self) {
        self.is_bursting = false;
    }

    /// Queues the burst of a connection.
    pub(super) fn send_burst(&mut self, slot: u32) {
        self.tally.questions_sent += 1;
        self.mark_to_flush(slot);
        let burst = &self.bursts[slot as usize];
        self.conns[slot as usize].unsent().extend_from_slice(burst);
    }

    /// Queues the message in `scratch` as one frame.
    pub(super) fn queue_scratch(&mut self, slot: u32, opcode: u8) {
        self.mark_to_flush(slot);
        let mask = self.random.next_mask();
        frame::put_frame(self.conns[slot as usize].unsent(), opcode, &self.scratch, mask);
    }

    /// A connection with unsent bytes has been noted before.
    fn mark_to_flush(&mut self, slot: u32) {
        if self.conn(slot).unsent_bytes() == 0 {
            self.to_flush.push(slot);
        }
    }

    /// Writes what was queued in this turn: one write for each connection.
    pub(crate) fn flush_all(&mut self) {
        while let Some(slot) = self.to_flush.pop() {
            self.flush(slot);
        }
    }

    /// Writes what is queued on one connection.
    pub(super) fn flush(&mut self, slot: u32) {
        let write_bytes_max = self.plan.write_bytes_max;
        self.conn_mut(slot).flush(write_bytes_max);
    }
}
