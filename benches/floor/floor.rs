//! The floor: what the kernel asks for the same bytes.
//!
//! A bare io_uring loop, one thread, no users, no JSON, no limits; a room is a list of sockets. It
//! answers the WebSocket handshake, takes the payload out of every message that anybody sends, wraps
//! it in a fixed envelope, and sends that to all members of the room. It shares no code with the
//! server: it is the yardstick, and a yardstick must not bend with what it measures.
//!
//! How it is fast: sockets exist only in the ring's own file table (multishot accept into direct
//! descriptors); receives are multishot into a ring of buffers and parsed where they lie; sends are
//! submitted in batches, finish inside the submit (MSG_DONTWAIT) and report only failures
//! (CQE_SKIP_SUCCESS). With one message outstanding a turn is one system call for the last batch of
//! sends and the wait.
//!
//! `work.rs` is the loop, `rooms.rs` knows who is where, `wire.rs` reads and writes frames, and
//! `buffers.rs` is the ring of receive buffers.
//!
//! Invariant: a frame is sent to a socket only after all earlier frames were taken by it whole.

#![allow(unsafe_code)] // the ring and its buffer ring; each block says why it holds

mod buffers;
mod rooms;
mod wire;
mod work;

use clap::{Parser, ValueEnum};
use std::ffi::OsString;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::ExitCode;

/// What the floor does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// One send per frame and member
    Each,
    /// All frames of one turn of the loop that go to the same room as one buffer, and all buffers
    /// of one member as one send
    Joined,
    /// Receive and unmask only; a message with `"type":"ping"` is answered
    Receive,
    /// An empty ping to every connection once an interval, and its pong
    Heartbeat,
    /// Answer handshakes, notice closes, and count both
    Accept,
    /// Answer handshakes and then only hold: nothing is armed on the socket any more
    Idle,
}

/// A bare io_uring broadcast server to compare with.
#[derive(Clone, Debug, Parser)]
pub struct Args {
    /// Where to listen; port 0 takes a free one and says which
    #[arg(long, default_value = "127.0.0.1:8090")]
    pub listen: SocketAddr,
    /// What to do
    #[arg(long, value_enum, default_value = "each")]
    pub mode: Mode,
    /// Connections per thread, at most the limit of open files
    #[arg(long, default_value_t = 16_000)]
    pub members: u32,
    /// Core to pin to
    #[arg(long)]
    pub core: Option<usize>,
    /// Threads, each with a ring and a listener of its own (accept and idle only)
    #[arg(long, default_value_t = 1)]
    pub threads: u32,
    /// What stands before the payload in a delivery, with {room} for the room's name
    #[arg(
        long,
        default_value = r#"{"type":"message","room_id":"{room}","from":"floor","payload":"#
    )]
    pub prefix: String,
    /// What stands behind it
    #[arg(long, default_value = "}")]
    pub suffix: String,
    /// Sends per submit
    #[arg(long, default_value_t = 1024)]
    pub batch: u32,
    /// Milliseconds between two pings to a connection
    #[arg(long, default_value_t = 25_000, value_parser = clap::value_parser!(u32).range(10..))]
    pub ping_interval_ms: u32,
}

/// Runs the floor as its command line says.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let args = Args::parse_from(args);
    if args.threads > 1 && !matches!(args.mode, Mode::Accept | Mode::Idle) {
        eprintln!("floor: a room has one thread; several would be several rooms");
        return ExitCode::from(2);
    }
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("floor: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> io::Result<()> {
    let mut args = args.clone();
    let mut listeners = Vec::new();
    for _ in 0..args.threads.max(1) {
        let listener = listen(args.listen)?;
        args.listen = listener.local_addr()?;
        listeners.push(listener);
    }
    println!("listening on {}", args.listen);
    io::stdout().flush()?;
    let others: Vec<_> = listeners
        .drain(1..)
        .map(|listener| {
            let args = args.clone();
            std::thread::spawn(move || serve(&args, listener))
        })
        .collect();
    serve(&args, listeners.remove(0))?;
    others.into_iter().try_for_each(|other| other.join().expect("a floor thread panicked"))
}

/// What the kernel takes for a connection before it has sent it: as in the server's default.
const UNSENT_BYTES_MAX: u32 = 64 * 1024;

/// A listener whose connections have the options of the server's: Nagle's algorithm off, and
/// little unsent in the kernel.
pub fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    use socket2::{Domain, Protocol, Socket, Type};
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_notsent_lowat(UNSENT_BYTES_MAX)?;
    socket.bind(&addr.into())?;
    socket.listen(4096)?;
    Ok(socket.into())
}

/// Serves one listener on the calling thread until the ring breaks.
pub fn serve(args: &Args, listener: TcpListener) -> io::Result<()> {
    if let Some(core) = args.core {
        pin_to(core)?;
    }
    work::Floor::new(args, listener)?.work()
}

fn pin_to(core: usize) -> io::Result<()> {
    // SAFETY: an all-zero cpu_set_t is the empty set, CPU_SET checks its bound, the set outlives
    // the call.
    let done = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(core.min(libc::CPU_SETSIZE as usize - 1), &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set)
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
