//! What a worker stores of its connections.
//!
//! Invariant: `tally.joined` is the number of connections in [`ClientState::Joined`].

use super::conn::{ClientConn, ClientState};
use super::schedule::ConnectSchedule;
use crate::load::client::plan::ClientPlan;
use crate::load::client::random::XorShift;
use crate::load::client::stamp::{Stamp, StampFinder};
use crate::load::client::template::TemplateValues;
use crate::load::report::tally::Tally;
use crate::load::sys::ClientEpoll;
use std::sync::Arc;

/// Bytes of the shared receive buffer.
const RECEIVE_BYTES: usize = 256 << 10;

/// A delivery of one of the run's messages has arrived.
pub(crate) struct ReceivedDelivery {
    /// Which message.
    pub stamp: Stamp,
    /// When, in nanoseconds since the run began.
    pub at_ns: u64,
}

/// All connections of one worker, owned by it. A *slot* is a connection's place here; its number in
/// the run is `first + slot`.
pub(crate) struct ClientConnections {
    pub(super) plan: Arc<ClientPlan>,
    /// Number of the connection in slot 0.
    pub(super) first: u32,
    pub(super) conns: Vec<ClientConn>,
    pub(super) schedule: ConnectSchedule,
    pub(super) epoll: ClientEpoll,
    /// Every read goes here first.
    pub(super) buffer: Box<[u8]>,
    pub(super) finder: StampFinder,
    pub(super) random: XorShift,
    /// The message that is being written.
    pub(super) scratch: Vec<u8>,
    /// Slots with something to send at the end of this turn.
    pub(super) to_flush: Vec<u32>,
    /// The burst of each slot; empty before the first.
    pub(super) bursts: Vec<Box<[u8]>>,
    /// Whether an answered burst is followed by another.
    pub(super) is_bursting: bool,
    /// What has been counted.
    pub tally: Tally,
    /// Deliveries that the worker has not counted yet.
    pub arrivals: Vec<ReceivedDelivery>,
}

impl ClientConnections {
    /// Connections `first..end`, none of them begun, watched by `epoll`.
    pub(crate) fn new(
        plan: Arc<ClientPlan>,
        first: u32,
        end: u32,
        epoll: ClientEpoll,
        seed: u64,
    ) -> ClientConnections {
        ClientConnections {
            first,
            conns: (first..end).map(|_| ClientConn::new()).collect(),
            schedule: ConnectSchedule::new(plan.connect_concurrency, plan.connect_rate),
            epoll,
            buffer: vec![0; RECEIVE_BYTES].into_boxed_slice(),
            finder: StampFinder::default(),
            random: XorShift::new(seed),
            scratch: Vec::new(),
            to_flush: Vec::new(),
            bursts: Vec::new(),
            is_bursting: false,
            tally: Tally::default(),
            arrivals: Vec::new(),
            plan,
        }
    }

    /// The set that watches them.
    pub(crate) fn epoll(&self) -> &ClientEpoll {
        &self.epoll
    }

    /// The first connection that has joined.
    pub(crate) fn any_joined(&self) -> Option<u32> {
        let slot = self.conns.iter().position(|conn| conn.state == ClientState::Joined)?;
        Some(self.first + slot as u32)
    }

    pub(super) fn conn(&self, slot: u32) -> &ClientConn {
        &self.conns[slot as usize]
    }

    pub(super) fn conn_mut(&mut self, slot: u32) -> &mut ClientConn {
        &mut self.conns[slot as usize]
    }

    /// Whether what arrives for a connection stays unread. The server may close such a connection.
    pub(super) fn is_non_reading(&self, slot: u32) -> bool {
        self.conn(slot).state == ClientState::Joined && self.plan.is_non_reading(self.first + slot)
    }

    /// What fills the templates of a connection.
    pub(super) fn values<'a>(&self, plan: &'a ClientPlan, slot: u32) -> TemplateValues<'a> {
        let number = self.first + slot;
        TemplateValues {
            context: &plan.context,
            room: plan.rooms().room_of(number),
            number,
            message: None,
            received: &[],
            signer: plan.signer.as_ref(),
        }
    }
}
