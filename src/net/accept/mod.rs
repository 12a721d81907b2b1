//! Taking connections, and turning them away cheaply when there is no room.
//!
//! Every shard has its own listener (`SO_REUSEPORT`); which of them gets a connection is decided in
//! `steering.rs`. A connection for which there is no room, or no time (`rate.rs`), gets `503`
//! with `Retry-After`, one of a few answers that are made at the start. Nothing of its request is
//! looked at, but it has to be read: closing a socket with unread bytes makes the kernel throw our
//! answer away. So one whose request has not come yet *lingers* for a moment.
//!
//! Where every connection comes through a proxy (`proxy_protocol = required`), one of another address
//! is refused here as well: it takes no place of a handshake, and no token of the accept rate.
//!
//! Where clients connect themselves (`listen_direct`), the limits of their addresses are looked at
//! here too (`addresses.rs`), before anything of a connection is read.
//!
//! When descriptors run out, a spare one is given up to take the next connection and refuse it:
//! otherwise the backlog would fill with clients that get no answer, and the loop would spin.
//!
//! Invariant: lingering sockets are bounded in number and time, and a refused connection never
//! reaches the shard.

pub(super) mod addresses;
mod balance;
mod bpf;
mod counted;
mod rate;
pub(super) mod steering;

use crate::net::accept::rate::{Admission, RETRY_S_MAX};
use crate::net::io::socket;
use crate::net::upgrade::reject::RejectReason;
use crate::plan::Plan;
use bytes::Bytes;
use socket2::{Domain, Protocol, Socket, Type};
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

const BACKLOG: i32 = 65_535; // The kernel cuts it to net.core.somaxconn.
const LINGERING_MAX: usize = 256;
const LINGER_TIME: Duration = Duration::from_secs(1);

/// A listener of one shard's own on the public address.
///
/// # Errors
/// The address, and the kernel's error.
pub(super) fn listen(plan: &Plan) -> io::Result<std::net::TcpListener> {
    let explain = |error: io::Error| {
        io::Error::new(error.kind(), format!("cannot listen on {}: {error}", plan.listen))
    };
    let socket = Socket::new(Domain::for_address(plan.listen), Type::STREAM, Some(Protocol::TCP))
        .map_err(explain)?;
    socket.set_reuse_address(true).map_err(explain)?;
    socket.set_reuse_port(true).map_err(explain)?;
    socket.set_nonblocking(true).map_err(explain)?;
    // Accepted sockets inherit these: no system call per connection. Not SO_SNDBUF, which would switch
    // the kernel's own tuning off.
    socket.set_tcp_nodelay(true).map_err(explain)?;
    socket.set_tcp_notsent_lowat(plan.limits.socket_unsent_bytes_max as u32).map_err(explain)?;
    let stall_timeout = Duration::from_millis(plan.limits.stall_timeout_ms);
    socket.set_tcp_user_timeout(Some(stall_timeout)).map_err(explain)?;
    socket.bind(&plan.listen.into()).map_err(explain)?;
    socket.listen(BACKLOG).map_err(explain)?;
    Ok(socket.into())
}

/// What `accept` gave.
pub(super) enum Accepted {
    /// A connection.
    Socket(RawFd),
    /// The backlog is empty.
    Empty,
    /// No descriptor or no memory for another one.
    Exhausted,
}

/// Takes one connection from the backlog.
pub(super) fn accept(listener: RawFd) -> Accepted {
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
            // The connection failed in the backlog (accept(2) lists a dozen codes for it): the next.
            _ => {}
        }
    }
}

/// All forms of one refusal: one for each value of `Retry-After`.
struct Answers(Vec<Bytes>);

impl Answers {
    fn new(reason: RejectReason) -> Answers {
        Answers((1..=RETRY_S_MAX).map(|after_s| reason.response_after(after_s)).collect())
    }

    fn after(&self, seconds: usize) -> &Bytes {
        &self.0[seconds - 1]
    }
}

/// Decides which connections are accepted, and holds the refused ones until they can be closed.
pub(super) struct LingeringSockets {
    admission: Admission,
    started: Instant,
    /// Refused sockets and when to close them, oldest first; at most [`LINGERING_MAX`].
    lingering: VecDeque<(Instant, RawFd)>,
    full: Answers,
    busy: Answers,
    memory: Answers,
    no_proxy: Bytes,
    address_full: Bytes,
    address_handshakes: Bytes,
    address_too_fast: Bytes,
    spare: Option<File>,
}

impl LingeringSockets {
    /// Empty, with a descriptor to spare.
    pub(super) fn new(plan: &Plan, now: Instant) -> LingeringSockets {
        let limits = &plan.limits;
        LingeringSockets {
            admission: Admission::new(limits.accepts_per_s_max, limits.accepts_burst_max),
            started: now,
            lingering: VecDeque::new(),
            full: Answers::new(RejectReason::ConnectionsFull),
            busy: Answers::new(RejectReason::TooFast),
            memory: Answers::new(RejectReason::Memory),
            no_proxy: RejectReason::NoProxy.response(),
            address_full: RejectReason::AddressFull.response(),
            address_handshakes: RejectReason::AddressHandshakes.response(),
            address_too_fast: RejectReason::AddressTooFast.response(),
            spare: open_spare(),
        }
    }

    /// Whether the accept rate allows one more connection now.
    #[must_use]
    pub(super) fn admit(&mut self, now: Instant) -> bool {
        self.admission.admit(self.ns(now))
    }

    /// Answers a connection with the reason of its refusal and a time to retry, and closes it: at
    /// once, or after it has lingered.
    pub(super) fn refuse(&mut self, socket: RawFd, why: RejectReason, now: Instant) {
        let has_asked = drop_unread(socket);
        self.answer(socket, why, now);
        if has_asked {
            // Nothing more can be on its way: the answer is safe.
            return socket::close(socket);
        }
        socket::shutdown_write(socket);
        if self.lingering.len() == LINGERING_MAX {
            self.close_oldest();
        }
        self.lingering.push_back((now + LINGER_TIME, socket));
    }

    /// Takes and refuses one connection although descriptors have run out; answers whether it could.
    pub(super) fn refuse_one_for_want_of_files(&mut self, listener: RawFd, now: Instant) -> bool {
        self.close_oldest();
        self.spare = None;
        let Accepted::Socket(socket) = accept(listener) else { return false };
        self.answer(socket, RejectReason::ConnectionsFull, now);
        socket::shutdown_write(socket);
        drop_unread(socket);
        socket::close(socket);
        self.spare = open_spare();
        true
    }

    fn answer(&mut self, socket: RawFd, why: RejectReason, now: Instant) {
        let after_s = self.admission.retry_after_s(self.ns(now));
        let answer = match why {
            RejectReason::NoProxy => &self.no_proxy,
            RejectReason::AddressFull => &self.address_full,
            RejectReason::AddressHandshakes => &self.address_handshakes,
            RejectReason::AddressTooFast => &self.address_too_fast,
            RejectReason::ConnectionsFull => self.full.after(after_s),
            RejectReason::Memory => self.memory.after(after_s),
            _ => self.busy.after(after_s),
        };
        // Best effort: a socket that cannot take two hundred bytes is in no state to be helped.
        let _ = socket::send_slices(socket, [&answer[..]].into_iter());
    }

    fn ns(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.started).as_nanos() as u64
    }

    /// Closes the sockets whose time is over.
    pub(super) fn tick(&mut self, now: Instant) {
        while self.lingering.front().is_some_and(|(until, _)| *until <= now) {
            self.close_oldest();
        }
        if self.spare.is_none() {
            self.spare = open_spare();
        }
    }

    fn close_oldest(&mut self) {
        if let Some((_, socket)) = self.lingering.pop_front() {
            drop_unread(socket);
            socket::close(socket);
        }
    }
}

/// Reads what has come, so that closing does not reset the connection under our answer. Answers
/// whether that was, by its last bytes, a whole request head.
fn drop_unread(socket: RawFd) -> bool {
    let mut bytes = [0; 4096];
    let mut is_whole = false;
    for _ in 0..4 {
        match socket::recv(socket, &mut bytes) {
            Ok(n) if n > 0 => is_whole = bytes[..n].ends_with(b"\r\n\r\n"),
            _ => break,
        }
        if is_whole {
            break;
        }
    }
    is_whole
}

fn open_spare() -> Option<File> {
    File::open("/dev/null").ok()
}
