//! Taking connections, and turning them away cheaply when there is no room.
//!
//! Every shard listens for itself (`SO_REUSEPORT`) and the kernel spreads new connections over
//! them. A connection for which there is no room gets `503` with `Retry-After`, and its socket waits
//! a moment in the *lounge*, because closing it while its request is unread would make the kernel
//! throw our answer away. When descriptors run out, a spare one is given up to take the next
//! connection and refuse it: otherwise the backlog would fill with clients who hear nothing, and the
//! loop would spin.
//!
//! Invariant: the lounge is bounded in number and time, and a refused connection never reaches the
//! shard.

use super::handshake::no_room;
use super::socket;
use crate::plan::Plan;
use bytes::Bytes;
use socket2::{Domain, Protocol, Socket, Type};
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

const BACKLOG: i32 = 65_535; // The kernel cuts it to net.core.somaxconn.
const LOUNGE_MAX: usize = 256;
const LOUNGE_TIME: Duration = Duration::from_secs(1);

/// A listener of one shard's own on the public address.
///
/// # Errors
/// The address, and what the kernel says about it.
pub fn listen(plan: &Plan) -> io::Result<std::net::TcpListener> {
    let explain = |error: io::Error| {
        io::Error::new(error.kind(), format!("cannot listen on {}: {error}", plan.listen))
    };
    let socket = Socket::new(Domain::for_address(plan.listen), Type::STREAM, Some(Protocol::TCP))
        .map_err(explain)?;
    socket.set_reuse_address(true).map_err(explain)?;
    socket.set_reuse_port(true).map_err(explain)?;
    socket.set_nonblocking(true).map_err(explain)?;
    // Accepted sockets inherit it: no system call per connection.
    socket.set_tcp_nodelay(true).map_err(explain)?;
    socket.bind(&plan.listen.into()).map_err(explain)?;
    socket.listen(BACKLOG).map_err(explain)?;
    Ok(socket.into())
}

/// What `accept` gave.
pub enum Accepted {
    /// A connection.
    Socket(RawFd),
    /// The backlog is empty.
    Empty,
    /// No descriptor or no memory for another one.
    Exhausted,
}

/// Takes one connection from the backlog.
pub fn accept(listener: RawFd) -> Accepted {
    loop {
        let error = match socket::accept(listener) {
            Ok(socket) => return Accepted::Socket(socket),
            Err(error) => error,
        };
        match error.raw_os_error() {
            Some(libc::EAGAIN) => return Accepted::Empty,
            Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => {
                return Accepted::Exhausted;
            }
            // The listener was shut down: the shard is ending.
            Some(libc::EINVAL) => return Accepted::Empty,
            // The connection died in the backlog (accept(2) lists a dozen codes for it): the next.
            _ => {}
        }
    }
}

/// Connections that were refused and have not read it yet.
pub struct Lounge {
    guests: VecDeque<(Instant, RawFd)>,
    answer: Bytes,
    spare: Option<File>,
}

impl Lounge {
    /// Empty, with a descriptor to spare.
    pub fn new() -> Lounge {
        Lounge { guests: VecDeque::new(), answer: no_room(), spare: open_spare() }
    }

    /// Tells a connection to come back later.
    pub fn refuse(&mut self, socket: RawFd, now: Instant) {
        // Best effort: a socket that cannot take two hundred bytes is in no state to be helped.
        let _ = socket::send_slices(socket, [&self.answer[..]].into_iter());
        socket::shutdown_write(socket);
        if self.guests.len() == LOUNGE_MAX {
            self.show_out();
        }
        self.guests.push_back((now + LOUNGE_TIME, socket));
    }

    /// Takes and refuses one connection although descriptors have run out; answers whether it could.
    pub fn refuse_one_for_want_of_files(&mut self, listener: RawFd) -> bool {
        self.show_out();
        self.spare = None;
        let Accepted::Socket(socket) = accept(listener) else { return false };
        let _ = socket::send_slices(socket, [&self.answer[..]].into_iter());
        socket::shutdown_write(socket);
        drop_unread(socket);
        socket::close(socket);
        self.spare = open_spare();
        true
    }

    /// Closes the sockets whose time is over.
    pub fn tick(&mut self, now: Instant) {
        while self.guests.front().is_some_and(|(until, _)| *until <= now) {
            self.show_out();
        }
        if self.spare.is_none() {
            self.spare = open_spare();
        }
    }

    fn show_out(&mut self) {
        if let Some((_, socket)) = self.guests.pop_front() {
            drop_unread(socket);
            socket::close(socket);
        }
    }
}

/// Reads what has come, so that closing does not reset the connection under our answer.
fn drop_unread(socket: RawFd) {
    let mut bytes = [0; 4096];
    for _ in 0..4 {
        match socket::recv(socket, &mut bytes) {
            Ok(n) if n > 0 => {}
            _ => return,
        }
    }
}

fn open_spare() -> Option<File> {
    File::open("/dev/null").ok()
}
