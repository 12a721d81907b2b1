//! System calls of the load generator that the standard library and socket2 do not offer.
//!
//! Each function is one call, owns or borrows its descriptors by type, and turns `-1` into an
//! `io::Error`. Everything else in the load generator is safe code over `std::net::TcpStream`.
//!
//! Invariant: no policy here, and nothing that the server uses.

#![allow(unsafe_code)] // libc calls; each block is one call on memory that outlives it

use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// Raises the priority of the calling thread by so much, as `nice` counts. Needs CAP_SYS_NICE.
pub(super) fn go_first(by: u8) -> io::Result<()> {
    // SAFETY: takes no pointers. On Linux 0 means the calling thread, not its process.
    match unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -i32::from(by)) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// An epoll set, owned by one worker. Edge-triggered: a socket is registered once.
pub(super) struct ClientEpoll {
    fd: OwnedFd,
}

/// An event of one descriptor.
#[derive(Clone, Copy)]
pub(super) struct ReadySocket {
    /// The key that the descriptor was added with.
    pub key: u64,
    /// The socket can be read, or the peer has closed.
    pub readable: bool,
    /// It can be written, or a connect has ended.
    pub writable: bool,
    /// The peer has closed, or the socket has an error: read until the end.
    pub hung_up: bool,
}

/// The events of one wait.
pub(super) struct ReadySockets {
    raw: Vec<libc::epoll_event>,
}

impl ReadySockets {
    /// Space for `n` events.
    pub(super) fn with_capacity(n: usize) -> ReadySockets {
        ReadySockets { raw: Vec::with_capacity(n) }
    }

    /// Number of events of the last wait.
    pub(super) fn len(&self) -> usize {
        self.raw.len()
    }

    /// Event number `i`.
    pub(super) fn get(&self, i: usize) -> ReadySocket {
        let event = self.raw[i];
        let has = |flag: i32| event.events & flag as u32 != 0;
        let hung_up = has(libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR);
        ReadySocket {
            key: event.u64,
            readable: hung_up || has(libc::EPOLLIN),
            writable: has(libc::EPOLLOUT),
            hung_up,
        }
    }
}

impl ClientEpoll {
    /// An empty set.
    pub(super) fn new() -> io::Result<ClientEpoll> {
        // SAFETY: no pointers; the descriptor is checked and then owned.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just created, so this is its only owner.
        Ok(ClientEpoll { fd: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    /// Watches `fd` for reading and writing until it is closed.
    pub(super) fn add(&self, fd: &impl AsRawFd, key: u64) -> io::Result<()> {
        let flags = libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLET;
        let mut event = libc::epoll_event { events: flags as u32, u64: key };
        // SAFETY: `event` outlives the call; both descriptors are open while borrowed.
        let done = unsafe {
            libc::epoll_ctl(self.fd.as_raw_fd(), libc::EPOLL_CTL_ADD, fd.as_raw_fd(), &mut event)
        };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Waits until something is ready or `timeout` has passed, to the nanosecond where the kernel
    /// can (5.11 and later) and to the millisecond, rounded down, where it cannot.
    pub(super) fn wait(&self, events: &mut ReadySockets, timeout: Duration) -> io::Result<()> {
        events.raw.clear();
        let timespec = libc::timespec {
            tv_sec: timeout.as_secs().min(3600) as i64,
            tv_nsec: i64::from(timeout.subsec_nanos()),
        };
        let (fd, space) = (self.fd.as_raw_fd(), events.raw.capacity().min(4096) as i32);
        // SAFETY: `raw` has space for `space` events, `timespec` outlives the call, no signal mask.
        let mut n = unsafe {
            let no_mask = std::ptr::null::<libc::sigset_t>();
            let raw = events.raw.as_mut_ptr();
            libc::syscall(libc::SYS_epoll_pwait2, fd, raw, space, &timespec, no_mask, 8usize) as i32
        };
        if n < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::ENOSYS) {
            let timeout_ms = timeout.as_millis().min(3_600_000) as i32;
            // SAFETY: as above.
            n = unsafe { libc::epoll_wait(fd, events.raw.as_mut_ptr(), space, timeout_ms) };
        }
        if n < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(error) };
        }
        // SAFETY: the kernel has written exactly `n` events, and `n` is at most the capacity.
        unsafe { events.raw.set_len(n as usize) };
        Ok(())
    }
}

/// An eventfd: writing eight bytes to it wakes the epoll set that watches it.
pub(super) fn eventfd() -> io::Result<File> {
    // SAFETY: no pointers; the descriptor is checked and then owned.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just created, so this is its only owner.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// Gives the calling thread a file table of its own, so that the limit of open files counts per
/// thread. Descriptors that exist already stay valid under their numbers.
pub(super) fn unshare_file_table() -> io::Result<()> {
    // SAFETY: no pointers; descriptors are copied, so every owner keeps what it owns.
    let done = unsafe { libc::unshare(libc::CLONE_FILES) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Pins the calling thread to one core.
pub(super) fn pin_to_core(core: usize) -> io::Result<()> {
    if core >= libc::CPU_SETSIZE as usize {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: an all-zero cpu_set_t is the empty set; `core` is inside it; the set outlives the
    // call.
    let done = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(core, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set)
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Raises the soft limit of open files to the hard one, and returns it.
pub(super) fn raise_open_file_limit() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` outlives both calls.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) < 0 {
            return Err(io::Error::last_os_error());
        }
        let before = limit.rlim_cur;
        limit.rlim_cur = limit.rlim_max;
        if libc::setrlimit(libc::RLIMIT_NOFILE, &limit) < 0 {
            limit.rlim_cur = before;
        }
    }
    Ok(limit.rlim_cur)
}

/// Clock ticks a second in `/proc/PID/stat`.
pub(super) fn ticks_per_second() -> u64 {
    // SAFETY: no pointers.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    u64::try_from(ticks).unwrap_or(100).max(1)
}

/// Begins a connect; it has ended when the socket is writable. With `from`, the kernel chooses the
/// port at the connect, so one source address has as many connections to each destination as there
/// are ports (IP_BIND_ADDRESS_NO_PORT).
pub(super) fn begin_connect(to: SocketAddr, from: Option<IpAddr>) -> io::Result<TcpStream> {
    use socket2::{Domain, Protocol, Socket, Type};
    let socket =
        Socket::new(Domain::for_address(to), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    if let Some(from) = from {
        let yes: libc::c_int = 1;
        // SAFETY: `yes` outlives the call and has the length given.
        let done = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::IPPROTO_IP,
                libc::IP_BIND_ADDRESS_NO_PORT,
                (&raw const yes).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        if done < 0 {
            return Err(io::Error::last_os_error());
        }
        socket.bind(&SocketAddr::new(from, 0).into())?;
    }
    match socket.connect(&to.into()) {
        Ok(()) => {}
        Err(e) if e.raw_os_error() == Some(libc::EINPROGRESS) => {}
        Err(e) => return Err(e),
    }
    Ok(socket.into())
}
