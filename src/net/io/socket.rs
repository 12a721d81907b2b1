//! The system calls on sockets that the shard makes itself, each in a safe wrapper.
//!
//! A socket is a plain descriptor number here: its owner is the connection's slot, and it is closed
//! in one place (`reactor.rs`), when the shard says that the connection is gone.
#![allow(unsafe_code)] // recv, sendmsg, accept4, getpeername, setsockopt, shutdown, close, dup: one call a function

use std::io;
use std::os::fd::{FromRawFd, RawFd};

/// Something that can be waited for: readable through monoio, whatever kind of descriptor it is.
/// Owns a duplicate; the original stays with its owner.
pub(crate) fn watch(fd: RawFd) -> io::Result<monoio::net::TcpStream> {
    // SAFETY: fcntl takes no pointers; a non-negative answer is a new descriptor that nobody else
    // owns. monoio never looks at what kind it is: it only polls it.
    let stream = unsafe {
        let duplicate = libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0);
        if duplicate < 0 {
            return Err(io::Error::last_os_error());
        }
        std::net::TcpStream::from_raw_fd(duplicate)
    };
    monoio::net::TcpStream::from_std(stream)
}

/// Reads what is there. `Ok(0)`: the peer has closed its half. `WouldBlock`: nothing is there.
pub(crate) fn recv(fd: RawFd, into: &mut [u8]) -> io::Result<usize> {
    loop {
        // SAFETY: `into` is writable for its whole length; the kernel writes no further.
        let n = unsafe { libc::recv(fd, into.as_mut_ptr().cast(), into.len(), libc::MSG_DONTWAIT) };
        match result(n) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

/// Writes some of the slices, in order; answers how many bytes the kernel took.
pub(crate) fn send_slices<'a>(
    fd: RawFd,
    slices: impl Iterator<Item = &'a [u8]>,
) -> io::Result<usize> {
    const SLICES_MAX: usize = 64;
    let mut iov = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; SLICES_MAX];
    let mut len = 0;
    for (place, slice) in iov.iter_mut().zip(slices) {
        *place = libc::iovec { iov_base: slice.as_ptr().cast_mut().cast(), iov_len: slice.len() };
        len += 1;
    }
    // SAFETY: a zeroed msghdr is a valid empty one.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = iov.as_mut_ptr();
    message.msg_iovlen = len;
    // SAFETY: the first `len` entries point to slices that outlive this call; the kernel only reads.
    let n = unsafe { libc::sendmsg(fd, &message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
    result(n)
}

/// Takes one connection from a listener's backlog; non-blocking and closed on exec.
pub(crate) fn accept(listener: RawFd) -> io::Result<RawFd> {
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no address is asked for, so there is no pointer.
    let fd = unsafe { libc::accept4(listener, std::ptr::null_mut(), std::ptr::null_mut(), flags) };
    if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(fd) }
}

/// The address of a socket's peer, if it is connected and that is an IP address.
pub(crate) fn peer(socket: RawFd) -> Option<std::net::SocketAddr> {
    // SAFETY: the descriptor is open: its owner is a connection that has not been closed. The borrow
    // ends with this call and closes nothing.
    let socket = unsafe { std::os::fd::BorrowedFd::borrow_raw(socket) };
    let address = socket2::SockRef::from(&socket).peer_addr().ok()?.as_socket()?;
    Some(std::net::SocketAddr::new(address.ip().to_canonical(), address.port()))
}

/// The core that received the last packet of a connection, if that is known.
pub(crate) fn received_on(socket: RawFd) -> Option<usize> {
    let mut cpu: libc::c_int = -1;
    let mut bytes = size_of::<libc::c_int>() as libc::socklen_t;
    let into: *mut libc::c_int = &mut cpu;
    let (level, name) = (libc::SOL_SOCKET, libc::SO_INCOMING_CPU);
    // SAFETY: an int that outlives the call, and its size; the kernel writes no more than that.
    let answer = unsafe { libc::getsockopt(socket, level, name, into.cast(), &mut bytes) };
    if answer < 0 { None } else { usize::try_from(cpu).ok() }
}

/// Gives the kernel a classic BPF program that chooses among the listeners of this one's port,
/// instead of the one it had.
pub(crate) fn attach(listener: RawFd, program: &[libc::sock_filter]) -> io::Result<()> {
    let len = u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // The type in C has no const; the kernel copies the program and writes nothing.
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    let value: *const libc::sock_fprog = &program;
    let bytes = size_of::<libc::sock_fprog>() as libc::socklen_t;
    let (level, name) = (libc::SOL_SOCKET, libc::SO_ATTACH_REUSEPORT_CBPF);
    // SAFETY: a whole sock_fprog that outlives the call, and so does the slice it points to.
    let answer = unsafe { libc::setsockopt(listener, level, name, value.cast(), bytes) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Says that nothing more will be written.
pub(crate) fn shutdown_write(fd: RawFd) {
    // SAFETY: no pointers. Failing means that the peer is gone already.
    unsafe { libc::shutdown(fd, libc::SHUT_WR) };
}

/// Stops a listener: tasks that wait for it are woken, and the kernel gives it no more connections.
pub(crate) fn stop_listening(fd: RawFd) {
    // SAFETY: no pointers.
    unsafe { libc::shutdown(fd, libc::SHUT_RDWR) };
}

/// Gives the descriptor back. It must not be used again.
pub(crate) fn close(fd: RawFd) {
    // SAFETY: no pointers; callers own `fd` and forget it. No operation on it is in flight: writes
    // complete inside their submission, reads are made when there is something to read.
    unsafe { libc::close(fd) };
}

fn result(n: isize) -> io::Result<usize> {
    if n < 0 { Err(io::Error::last_os_error()) } else { Ok(n as usize) }
}
