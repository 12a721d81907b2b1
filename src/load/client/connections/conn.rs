//! One connection: its socket, its state, and its buffers while it needs any.
//!
//! Invariant: a connection without a socket has no buffers.

use std::io::{ErrorKind, Write};
use std::net::TcpStream;
use std::time::Duration;

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClientState {
    /// Not connected; its slot is in the schedule.
    Waiting,
    /// The TCP connect is under way.
    Connecting,
    /// The HTTP request is sent or queued.
    Requested,
    /// The server has answered 101.
    Open,
    /// The server has confirmed that the connection is in all its rooms.
    Joined,
    /// No further attempt is made.
    Failed,
}

/// One connection.
pub(super) struct ClientConn {
    /// The socket, from the beginning of a connect until the connection ends.
    pub stream: Option<TcpStream>,
    /// From not connected to joined.
    pub state: ClientState,
    /// Attempts that have failed since it last joined.
    pub tries: u8,
    /// Rooms whose join the server has not confirmed yet.
    pub rooms_missing: u8,
    /// Tells late events of an earlier socket in this slot from those of the current one.
    pub generation: u16,
    /// Highest sequence number received, where messages are ordered.
    pub last_seq: u32,
    buffers: Option<Box<ConnBuffers>>,
}

const _: () = assert!(size_of::<ClientConn>() <= 24);

/// What only few connections have at a time.
#[derive(Default)]
struct ConnBuffers {
    /// The beginning of a frame, or of the response head.
    unread: Vec<u8>,
    /// What the socket has not taken yet.
    unsent: Vec<u8>,
}

impl ClientConn {
    /// A connection that waits for its first attempt.
    pub(super) fn new() -> ClientConn {
        ClientConn {
            stream: None,
            state: ClientState::Waiting,
            tries: 0,
            rooms_missing: 0,
            generation: 0,
            last_seq: 0,
            buffers: None,
        }
    }

    /// Whether a handshake is under way, the join included.
    pub(super) fn is_opening(&self) -> bool {
        matches!(self.state, ClientState::Connecting | ClientState::Requested | ClientState::Open)
    }

    /// Bytes that the socket has not taken yet.
    pub(super) fn unsent_bytes(&self) -> usize {
        self.buffers.as_ref().map_or(0, |buffers| buffers.unsent.len())
    }

    /// Where bytes to be sent are appended.
    pub(super) fn unsent(&mut self) -> &mut Vec<u8> {
        &mut self.buffers.get_or_insert_default().unsent
    }

    /// Takes the bytes of the incomplete frame out; empty if there are none.
    pub(super) fn take_unread(&mut self) -> Vec<u8> {
        self.buffers.as_mut().map(|buffers| std::mem::take(&mut buffers.unread)).unwrap_or_default()
    }

    /// Keeps `rest`, an incomplete frame, for the next read. Frees the buffers if both are empty.
    pub(super) fn keep_unread(&mut self, rest: &[u8]) {
        if self.stream.is_none() {
            return;
        }
        if rest.is_empty() {
            self.buffers.take_if(|buffers| buffers.unsent.is_empty());
        } else {
            self.buffers.get_or_insert_default().unread.extend_from_slice(rest);
        }
    }

    /// Writes what is unsent, at most `write_bytes_max` at a time, until the socket is full. Bytes
    /// for a broken socket are dropped: the reader gets the same error, after what arrived before.
    pub(super) fn flush(&mut self, write_bytes_max: usize) {
        let (Some(stream), Some(buffers)) = (self.stream.as_ref(), self.buffers.as_mut()) else {
            return;
        };
        let mut sent = 0;
        while sent < buffers.unsent.len() {
            let end = buffers.unsent.len().min(sent.saturating_add(write_bytes_max));
            match (&mut &*stream).write(&buffers.unsent[sent..end]) {
                Ok(n) => sent += n,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => sent = buffers.unsent.len(),
            }
        }
        buffers.unsent.drain(..sent);
        if buffers.unsent.is_empty() && buffers.unread.is_empty() {
            self.buffers = None;
        }
    }

    /// Closes the socket, with a reset or plainly, and frees the buffers.
    pub(super) fn close(&mut self, reset: bool) {
        self.buffers = None;
        if let Some(stream) = self.stream.take()
            && reset
        {
            // The reset of a socket that is broken already may fail; the close is enough then.
            let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
        }
    }
}
