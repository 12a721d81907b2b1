//! The floor: what the kernel asks for the same bytes.
//!
//! A bare io_uring loop, one thread, no rooms, no users, no JSON, no limits. It answers the
//! WebSocket handshake, takes the payload out of every message that anybody sends, wraps it in a
//! fixed envelope, and sends that to all connections. It shares no code with the server: it is the
//! yardstick, and a yardstick must not bend with what it measures.
//!
//! How it is fast: sockets exist only in the ring's own file table (multishot accept into direct
//! descriptors); receives are multishot into a ring of buffers; sends are submitted in batches,
//! finish inside the submit (MSG_DONTWAIT) and report only failures (CQE_SKIP_SUCCESS). With one
//! message outstanding a turn is one system call for the last batch of sends and the wait.
//!
//! Invariant: a frame is sent to a socket only after all earlier frames were taken by it whole.

#![allow(unsafe_code)] // the ring and its buffer ring; each block says why it holds

use base64::Engine;
use clap::{Parser, ValueEnum};
use io_uring::squeue::{Entry, Flags};
use io_uring::types::{BufRingEntry, Fixed};
use io_uring::{IoUring, cqueue, opcode, types};
use sha1::{Digest, Sha1};
use std::ffi::OsString;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Instant;

/// What the floor does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// One send per frame and member
    Each,
    /// All frames of one turn of the loop as one buffer, one send per member
    Joined,
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
    /// What stands before the payload in a delivery
    #[arg(
        long,
        default_value = r#"{"type":"message","room_id":"load-0","from":"floor","payload":"#
    )]
    pub prefix: String,
    /// What stands behind it
    #[arg(long, default_value = "}")]
    pub suffix: String,
    /// Sends per submit
    #[arg(long, default_value_t = 1024)]
    pub batch: u32,
}

/// Runs the floor as its command line says.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let args = Args::parse_from(args);
    if args.threads > 1 && matches!(args.mode, Mode::Each | Mode::Joined) {
        eprintln!("floor: a broadcast has one thread; several would be several rooms");
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

/// A listener whose connections have Nagle's algorithm off.
pub fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    use socket2::{Domain, Protocol, Socket, Type};
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_tcp_nodelay(true)?;
    socket.bind(&addr.into())?;
    socket.listen(4096)?;
    Ok(socket.into())
}

/// Serves one listener on the calling thread until the ring breaks.
pub fn serve(args: &Args, listener: TcpListener) -> io::Result<()> {
    if let Some(core) = args.core {
        pin_to(core)?;
    }
    Floor::new(args, listener)?.work()
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

/// Kind of a completion, in the high half of its user data; the slot is in the low half.
mod kind {
    pub const ACCEPT: u64 = 1 << 32;
    pub const RECEIVE: u64 = 2 << 32;
    pub const SEND: u64 = 3 << 32;
    pub const FINISH: u64 = 4 << 32;
    pub const REPLY: u64 = 5 << 32;
    pub const CLOSE: u64 = 6 << 32;
    pub const OF: u64 = !0 << 32;
}

const BUFFERS: u16 = 256;
const BUFFER_BYTES: usize = 16 << 10;
const ACCEPT_VALUE_BYTES: usize = 28;
const REPLY_HEAD: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
    Connection: Upgrade\r\nSec-WebSocket-Accept: ";
/// Also tells `campanile load` that the connection has joined.
const REPLY_TAIL: &[u8] = b"\r\n\r\n\x81\x0d{\"type\":\"ok\"}";
const REPLY_BYTES: usize = REPLY_HEAD.len() + ACCEPT_VALUE_BYTES + REPLY_TAIL.len();

/// One connection, by its slot in the ring's file table.
#[derive(Default)]
struct Slot {
    open: bool,
    greeted: bool,
    /// Where it is in `members`, while it is greeted.
    place: u32,
    /// The beginning of a frame or head that has not ended.
    unread: Vec<u8>,
}

struct Floor {
    ring: IoUring,
    listener: TcpListener,
    buffers: Buffers,
    mode: Mode,
    prefix: Vec<u8>,
    suffix: Vec<u8>,
    slots: Vec<Slot>,
    members: Vec<u32>,
    /// Completions that came while something else was waited for.
    inbox: Vec<cqueue::Entry>,
    /// Handshake answers that the ring has not taken yet.
    replies: Vec<[u8; REPLY_BYTES]>,
    /// This turn's frames, one behind the other, and where each ends.
    frames: Vec<u8>,
    ends: Vec<usize>,
    /// The part of `frames` that is on its way.
    sending: (usize, usize),
    /// Sends of it that fell short: slot, and how many bytes were taken.
    short: Vec<(u32, usize)>,
    /// What became of a send that was let wait.
    finished: Option<i32>,
    accepted: u64,
    counted_at: Instant,
    counted: u64,
}

impl Floor {
    fn new(args: &Args, listener: TcpListener) -> io::Result<Floor> {
        let ring = IoUring::builder()
            .setup_coop_taskrun()
            .setup_single_issuer()
            .setup_submit_all()
            .setup_cqsize(8192)
            .build(args.batch.clamp(16, 4096))?;
        ring.submitter().register_files_sparse(args.members)?;
        let buffers = Buffers::new(&ring)?;
        Ok(Floor {
            ring,
            listener,
            buffers,
            mode: args.mode,
            prefix: args.prefix.clone().into_bytes(),
            suffix: args.suffix.clone().into_bytes(),
            slots: (0..args.members).map(|_| Slot::default()).collect(),
            members: Vec::new(),
            inbox: Vec::new(),
            replies: Vec::with_capacity(1024),
            frames: Vec::new(),
            ends: Vec::new(),
            sending: (0, 0),
            short: Vec::new(),
            finished: None,
            accepted: 0,
            counted_at: Instant::now(),
            counted: 0,
        })
    }

    fn work(&mut self) -> io::Result<()> {
        self.arm_accept()?;
        loop {
            // What came while sends were finished is there already, and nothing else may come.
            self.submit(usize::from(self.inbox.is_empty()))?;
            self.replies.clear();
            self.frames.clear();
            self.ends.clear();
            let mut inbox = std::mem::take(&mut self.inbox);
            for completion in inbox.drain(..) {
                self.handle(&completion)?;
            }
            // Completions that came meanwhile are kept for the next turn.
            inbox.append(&mut self.inbox);
            self.inbox = inbox;
            self.broadcast()?;
            if self.mode == Mode::Accept {
                self.count();
            }
        }
    }

    fn handle(&mut self, completion: &cqueue::Entry) -> io::Result<()> {
        let slot = completion.user_data() as u32;
        match completion.user_data() & kind::OF {
            kind::ACCEPT => self.handle_accept(completion),
            kind::RECEIVE => self.handle_received(slot, completion),
            // The socket of a refused handshake answer is broken; its receive says so too.
            _ => Ok(()),
        }
    }

    fn arm_accept(&mut self) -> io::Result<()> {
        let listener = types::Fd(self.listener.as_raw_fd());
        let entry = opcode::AcceptMulti::new(listener).allocate_file_index(true).build();
        self.push(&entry.user_data(kind::ACCEPT))
    }

    fn handle_accept(&mut self, completion: &cqueue::Entry) -> io::Result<()> {
        let slot = completion.result();
        if slot == -libc::ENFILE {
            eprintln!("floor: no slot is left (--members); accepting no more");
            return Ok(());
        }
        if slot >= 0 {
            self.slots[slot as usize] = Slot { open: true, ..Slot::default() };
            self.accepted += 1;
            self.arm_receive(slot as u32)?;
        }
        if cqueue::more(completion.flags()) { Ok(()) } else { self.arm_accept() }
    }

    fn arm_receive(&mut self, slot: u32) -> io::Result<()> {
        let entry = if self.mode == Mode::Idle {
            opcode::Recv::new(Fixed(slot), std::ptr::null_mut(), BUFFER_BYTES as u32)
                .buf_group(0)
                .build()
                .flags(Flags::BUFFER_SELECT)
        } else {
            opcode::RecvMulti::new(Fixed(slot), 0).build()
        };
        self.push(&entry.user_data(kind::RECEIVE | u64::from(slot)))
    }

    fn handle_received(&mut self, slot: u32, completion: &cqueue::Entry) -> io::Result<()> {
        let more = cqueue::more(completion.flags());
        match completion.result() {
            n if n > 0 => {
                let buffer = cqueue::buffer_select(completion.flags())
                    .expect("every receive takes its buffer from the ring");
                let mut held = std::mem::take(&mut self.slots[slot as usize].unread);
                held.extend_from_slice(self.buffers.bytes(buffer, n as usize));
                self.buffers.give_back(buffer);
                let alive = self.parse(slot, &mut held)?;
                self.slots[slot as usize].unread = held;
                if !alive {
                    // Ends the armed receive, which then closes; a slot is never free before that.
                    let entry = opcode::Shutdown::new(Fixed(slot), libc::SHUT_RDWR).build();
                    self.push(&entry.user_data(kind::CLOSE))?;
                }
                let held_only = self.mode == Mode::Idle && self.slots[slot as usize].greeted;
                if more || held_only { Ok(()) } else { self.arm_receive(slot) }
            }
            n if n == -libc::ENOBUFS => self.arm_receive(slot),
            _ => self.close(slot),
        }
    }

    /// Takes whole heads and frames off the front of `held`; false when the connection has ended.
    fn parse(&mut self, slot: u32, held: &mut Vec<u8>) -> io::Result<bool> {
        let mut used = 0;
        if !self.slots[slot as usize].greeted {
            let Some(end) = held.windows(4).position(|four| four == b"\r\n\r\n") else {
                return Ok(held.len() < 8192);
            };
            used = end + 4;
            let Some(reply) = reply_to(&held[..end]) else { return Ok(false) };
            self.greet(slot, reply)?;
        }
        while let Some((code, mask, start, end)) = client_frame(&held[used..]) {
            let payload = &mut held[used + start..used + end];
            used += end;
            payload.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, key)| *byte ^= key);
            match code {
                1 | 2 => self.put_delivery(&held[used - (end - start)..used]),
                8 => return Ok(false),
                _ => {}
            }
        }
        held.drain(..used);
        Ok(true)
    }

    fn greet(&mut self, slot: u32, reply: [u8; REPLY_BYTES]) -> io::Result<()> {
        if self.replies.len() == self.replies.capacity() {
            self.submit(0)?;
            self.replies.clear();
        }
        self.replies.push(reply);
        let bytes = self.replies.last().expect("just pushed");
        let entry = send_entry(slot, bytes.as_ptr(), REPLY_BYTES);
        self.push(&entry.user_data(kind::REPLY | u64::from(slot)))?;
        let state = &mut self.slots[slot as usize];
        state.greeted = true;
        state.place = self.members.len() as u32;
        self.members.push(slot);
        Ok(())
    }

    fn close(&mut self, slot: u32) -> io::Result<()> {
        let state = std::mem::take(&mut self.slots[slot as usize]);
        if state.greeted {
            self.members.swap_remove(state.place as usize);
            if let Some(&moved) = self.members.get(state.place as usize) {
                self.slots[moved as usize].place = state.place;
            }
        }
        if state.open {
            let entry = opcode::Close::new(Fixed(slot)).build().flags(Flags::SKIP_SUCCESS);
            self.push(&entry.user_data(kind::CLOSE))?;
        }
        Ok(())
    }

    /// Wraps the payload of a publish, or a whole message that is none, and appends the frame.
    fn put_delivery(&mut self, message: &[u8]) {
        const KEY: &[u8] = b"\"payload\":";
        let payload = match message.windows(KEY.len()).position(|window| window == KEY) {
            Some(at) => &message[at + KEY.len()..message.len() - 1],
            None => message,
        };
        let length = self.prefix.len() + payload.len() + self.suffix.len();
        self.frames.push(0x81);
        match length {
            0..=125 => self.frames.push(length as u8),
            126..=65_535 => {
                self.frames.push(126);
                self.frames.extend_from_slice(&(length as u16).to_be_bytes());
            }
            _ => {
                self.frames.push(127);
                self.frames.extend_from_slice(&(length as u64).to_be_bytes());
            }
        }
        self.frames.extend_from_slice(&self.prefix);
        self.frames.extend_from_slice(payload);
        self.frames.extend_from_slice(&self.suffix);
        self.ends.push(self.frames.len());
    }

    /// Queues this turn's frames for everybody. What the ring holds at the end goes out with the
    /// next wait, so `frames` stays untouched until then.
    fn broadcast(&mut self) -> io::Result<()> {
        let mut start = 0;
        let joined = [self.frames.len()];
        let ends = std::mem::take(&mut self.ends);
        let cuts = if self.mode == Mode::Joined && !ends.is_empty() { &joined } else { &ends[..] };
        for &end in cuts {
            // Nothing of an earlier frame may be on its way when a socket gets the next one.
            self.submit(0)?;
            self.sending = (start, end);
            self.send_to_all()?;
            start = end;
        }
        self.ends = ends;
        Ok(())
    }

    fn send_to_all(&mut self) -> io::Result<()> {
        let (start, end) = self.sending;
        let (bytes, length) = (self.frames[start..end].as_ptr(), end - start);
        let mut next = 0;
        while next < self.members.len() {
            let mut queue = self.ring.submission();
            while next < self.members.len() && !queue.is_full() {
                let slot = self.members[next];
                let entry = send_entry(slot, bytes, length);
                // SAFETY: `frames` is not touched before the submit that takes this entry has
                // returned, and a send that may not wait ends within its submit.
                let pushed = unsafe { queue.push(&entry.user_data(kind::SEND | u64::from(slot))) };
                pushed.expect("the queue was not full");
                next += 1;
            }
            drop(queue);
            if next < self.members.len() {
                self.submit(0)?;
            }
        }
        Ok(())
    }

    /// Queues anything but a delivery.
    fn push(&mut self, entry: &Entry) -> io::Result<()> {
        if self.ring.submission().is_full() {
            self.submit(0)?;
        }
        // SAFETY: the only memory these entries point to is `replies`, which is cleared after a
        // submit only, and the buffer ring, which lives as long as the process.
        unsafe { self.ring.submission().push(entry) }.expect("the queue was just emptied");
        Ok(())
    }

    /// Submits all there is, waits for `want` completions, and finishes sends that fell short.
    fn submit(&mut self, want: usize) -> io::Result<()> {
        if want == 0 && self.ring.submission().is_empty() {
            return Ok(());
        }
        self.enter(want)?;
        while let Some((slot, sent)) = self.short.pop() {
            self.finish(slot, sent)?;
        }
        Ok(())
    }

    fn enter(&mut self, want: usize) -> io::Result<()> {
        loop {
            match self.ring.submit_and_wait(want) {
                Ok(_) => {}
                Err(e) if matches!(e.raw_os_error(), Some(libc::EINTR | libc::EBUSY)) => {}
                Err(e) if e.raw_os_error() == Some(libc::EAGAIN) => {}
                Err(error) => return Err(error),
            }
            for completion in self.ring.completion() {
                let slot = completion.user_data() as u32;
                match (completion.user_data() & kind::OF, completion.result()) {
                    (kind::SEND, sent) if sent >= 0 => self.short.push((slot, sent as usize)),
                    (kind::SEND, error) if error == -libc::EAGAIN => self.short.push((slot, 0)),
                    (kind::FINISH, sent) => self.finished = Some(sent),
                    _ => self.inbox.push(completion),
                }
            }
            if self.ring.submission().is_empty() {
                return Ok(());
            }
        }
    }

    /// Gives a slow socket the rest of the frame in flight, however long that takes.
    fn finish(&mut self, slot: u32, mut sent: usize) -> io::Result<()> {
        let (start, end) = self.sending;
        while start + sent < end {
            let rest = &self.frames[start + sent..end];
            let entry = opcode::Send::new(Fixed(slot), rest.as_ptr(), rest.len() as u32)
                .flags(libc::MSG_NOSIGNAL | libc::MSG_WAITALL)
                .build()
                .user_data(kind::FINISH);
            // SAFETY: `frames` is not touched before this send has finished, below.
            unsafe { self.ring.submission().push(&entry) }.expect("the queue is empty");
            self.finished = None;
            let taken = loop {
                self.enter(1)?;
                if let Some(taken) = self.finished.take() {
                    break taken;
                }
            };
            if taken <= 0 {
                return Ok(()); // The socket is broken; its receive says so too.
            }
            sent += taken as usize;
        }
        Ok(())
    }

    fn count(&mut self) {
        let seconds = self.counted_at.elapsed().as_secs_f64();
        if seconds >= 1.0 {
            let new = self.accepted - self.counted;
            println!("accepted {} ({:.0}/s)", self.accepted, new as f64 / seconds);
            (self.counted, self.counted_at) = (self.accepted, Instant::now());
        }
    }
}

/// A send that finishes within its submit and is heard of only if it falls short.
fn send_entry(slot: u32, bytes: *const u8, length: usize) -> Entry {
    opcode::Send::new(Fixed(slot), bytes, length as u32)
        .flags(libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL | libc::MSG_WAITALL)
        .build()
        .flags(Flags::SKIP_SUCCESS)
}

/// The 101 to a request head, if that has a key (RFC 6455 §4.2.2).
fn reply_to(head: &[u8]) -> Option<[u8; REPLY_BYTES]> {
    const NAME: &[u8] = b"sec-websocket-key:";
    let at = head.windows(NAME.len()).position(|window| window.eq_ignore_ascii_case(NAME))?;
    let key = head[at + NAME.len()..].split(|&byte| byte == b'\r').next()?.trim_ascii();
    let digest = Sha1::new()
        .chain_update(key)
        .chain_update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11")
        .finalize();
    let mut reply = [0; REPLY_BYTES];
    let (start, end) = (REPLY_HEAD.len(), REPLY_HEAD.len() + ACCEPT_VALUE_BYTES);
    reply[..start].copy_from_slice(REPLY_HEAD);
    base64::engine::general_purpose::STANDARD.encode_slice(digest, &mut reply[start..end]).ok()?;
    reply[end..].copy_from_slice(REPLY_TAIL);
    Some(reply)
}

/// Opcode, mask, and where the payload starts and ends, if a whole masked frame is there.
fn client_frame(bytes: &[u8]) -> Option<(u8, [u8; 4], usize, usize)> {
    let (length, header) = match bytes.get(1)? & 0x7f {
        126 => (u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?) as usize, 4),
        127 => (u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?) as usize, 10),
        short => (short as usize, 2),
    };
    let mask = bytes.get(header..header + 4)?.try_into().ok()?;
    let start = header + 4;
    let end = start.checked_add(length)?;
    (bytes.len() >= end).then_some((bytes[0] & 15, mask, start, end))
}

/// A ring of receive buffers that the kernel takes from and we give back to.
struct Buffers {
    entries: *mut BufRingEntry,
    memory: Vec<u8>,
    tail: u16,
}

const _: () = assert!(BUFFERS.is_power_of_two());

// SAFETY: the pointer is to memory that only this value uses.
unsafe impl Send for Buffers {}

impl Buffers {
    /// Registers the ring as group 0. Its entries are never freed: the kernel reads them as long
    /// as the io_uring lives.
    fn new(ring: &IoUring) -> io::Result<Buffers> {
        let bytes = BUFFERS as usize * size_of::<BufRingEntry>();
        let layout = std::alloc::Layout::from_size_align(bytes, 4096).expect("a page-aligned size");
        // SAFETY: the size is not zero, and null is refused below.
        let entries = unsafe { std::alloc::alloc_zeroed(layout) }.cast::<BufRingEntry>();
        if entries.is_null() {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        // SAFETY: page-aligned, of BUFFERS entries, and never freed.
        unsafe { ring.submitter().register_buf_ring(entries as u64, BUFFERS, 0)? };
        let memory = vec![0; BUFFERS as usize * BUFFER_BYTES];
        let mut buffers = Buffers { entries, memory, tail: 0 };
        (0..BUFFERS).for_each(|buffer| buffers.give_back(buffer));
        Ok(buffers)
    }

    fn bytes(&self, buffer: u16, length: usize) -> &[u8] {
        let at = buffer as usize * BUFFER_BYTES;
        &self.memory[at..at + length]
    }

    fn give_back(&mut self, buffer: u16) {
        let place = (self.tail & (BUFFERS - 1)) as usize;
        let at = buffer as usize * BUFFER_BYTES;
        let addr = self.memory[at..at + BUFFER_BYTES].as_mut_ptr() as u64;
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: `place` is within the ring and not the kernel's until the tail below says so;
        // the tail is a u16 in the first entry that only this thread writes.
        unsafe {
            let entry = &mut *self.entries.add(place);
            entry.set_addr(addr);
            entry.set_len(BUFFER_BYTES as u32);
            entry.set_bid(buffer);
            let tail = BufRingEntry::tail(self.entries).cast::<AtomicU16>();
            (*tail).store(self.tail, Ordering::Release);
        }
    }
}
