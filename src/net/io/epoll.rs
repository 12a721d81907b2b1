//! The set of a shard's sockets, one registration each for the whole life of a connection.
//!
//! Edge-triggered, so an idle connection is never touched again after it was added, and closing a
//! socket takes it out by itself. Room to write is asked for when a write has fallen short the first
//! time: asked for at once, it would be an event for every connection that comes. The set is one
//! descriptor that the shard's runtime polls; it costs the kernel about 200 bytes a connection, where
//! a posted read or poll on the ring costs 256 to 860 and a future of ours on top.
#![allow(unsafe_code)] // epoll_create1, epoll_ctl, epoll_wait

use crate::ids::ConnId;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// Events taken from the kernel at once.
const EVENTS_MAX: usize = 256;

/// What happened to a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Readiness {
    /// Whose socket. It may have been closed since the event.
    pub conn: ConnId,
    /// There is something to read, or the end of it.
    pub readable: bool,
    /// The peer has closed its half, or the socket failed: read to the end, there is no second edge.
    pub hung_up: bool,
    /// The socket failed, or both halves are closed: nothing can be written to it any more.
    pub failed: bool,
    /// There is room to write again.
    pub writable: bool,
}

/// The set.
pub(crate) struct Epoll {
    fd: OwnedFd,
    events: Vec<libc::epoll_event>,
}

impl Epoll {
    /// An empty set.
    pub(crate) fn new() -> io::Result<Epoll> {
        // SAFETY: no pointers; a non-negative answer is a descriptor that nobody else owns.
        let fd = unsafe {
            let fd = libc::epoll_create1(libc::EPOLL_CLOEXEC);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(fd)
        };
        Ok(Epoll { fd, events: Vec::with_capacity(EVENTS_MAX) })
    }

    /// The descriptor to wait for.
    pub(crate) fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Adds a socket, for events of input; it is removed when it is closed. What there is already
    /// is news too.
    pub(crate) fn add(&self, socket: RawFd, conn: ConnId) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, socket, conn, 0)
    }

    /// From now on room to write on this socket is news, and so is room that there is already.
    pub(crate) fn watch_room(&self, socket: RawFd, conn: ConnId) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, socket, conn, libc::EPOLLOUT)
    }

    fn control(&self, what: i32, socket: RawFd, conn: ConnId, more: i32) -> io::Result<()> {
        let wanted = libc::EPOLLIN | libc::EPOLLRDHUP | libc::EPOLLET | more;
        let mut event = libc::epoll_event { events: wanted as u32, u64: conn.to_bits() };
        // SAFETY: the event is read during the call only.
        let answer = unsafe { libc::epoll_ctl(self.fd(), what, socket, &mut event) };
        if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Takes what happened since, at most [`EVENTS_MAX`]; answers whether there may be more.
    pub(crate) fn take(&mut self, into: &mut Vec<Readiness>) -> bool {
        // SAFETY: the vector has room for EVENTS_MAX events, and the kernel says how many it wrote.
        let taken = unsafe {
            let events = self.events.as_mut_ptr();
            let taken = libc::epoll_wait(self.fd(), events, EVENTS_MAX as i32, 0).max(0) as usize;
            self.events.set_len(taken);
            taken
        };
        into.extend(self.events.iter().map(|event| {
            let is = |bits: i32| event.events & bits as u32 != 0;
            Readiness {
                conn: ConnId::from_bits(event.u64),
                readable: is(libc::EPOLLIN | libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR),
                failed: is(libc::EPOLLHUP | libc::EPOLLERR),
                hung_up: is(libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR),
                writable: is(libc::EPOLLOUT),
            }
        }));
        taken == EVENTS_MAX
    }
}
