//! The floor's loop: one ring, one thread.
//!
//! A turn: wait, take all that has come, queue what it asks for. What is queued last goes out with
//! the next wait, so what is sent from stays untouched until that has returned.
//!
//! Invariant: one submit holds at most one send to a socket; so when one falls short, nothing
//! behind it is on its way yet.

use super::buffers::{BUFFER_BYTES, Buffers};
use super::rooms::{EVERYBODY, Rooms};
use super::wire::{self, Reply};
use super::{Args, Mode};
use io_uring::squeue::{Entry, Flags};
use io_uring::types::{Fixed, Timespec};
use io_uring::{IoUring, cqueue, opcode, types};
use std::io;
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

/// Kind of a completion, in the high half of its user data; the slot is in the low half.
mod kind {
    pub const ACCEPT: u64 = 1 << 32;
    pub const RECEIVE: u64 = 2 << 32;
    pub const SEND: u64 = 3 << 32;
    pub const FINISH: u64 = 4 << 32;
    pub const REPLY: u64 = 5 << 32;
    pub const CLOSE: u64 = 6 << 32;
    pub const TICK: u64 = 7 << 32;
    pub const OF: u64 = !0 << 32;
}

/// Between two handfuls of pings.
const TICK_MS: u32 = 10;
/// Replies that one turn may hold.
const REPLIES_MAX: usize = 1024;

/// One connection, by its slot in the ring's file table.
#[derive(Default)]
struct Slot {
    open: bool,
    greeted: bool,
    /// The beginning of a frame or head that has not ended.
    unread: Vec<u8>,
    /// The submit that holds the newest send to it.
    submit: u64,
    /// What that send, or the one being put together, is made of: pieces of this turn.
    pieces: Vec<u32>,
}

/// Bytes for one room.
#[derive(Clone, Copy)]
struct Piece {
    room: usize,
    start: *const u8,
    bytes: usize,
}

/// One message header of a send that has several pieces. Made once; the kernel reads it within
/// the submit.
struct Parcel {
    header: libc::msghdr,
    pieces: Vec<libc::iovec>,
}

pub struct Floor {
    ring: IoUring,
    listener: TcpListener,
    buffers: Buffers,
    mode: Mode,
    prefix: Vec<u8>,
    suffix: Vec<u8>,
    /// `prefix` with the room's name in it, by room.
    prefixes: Vec<Vec<u8>>,
    slots: Vec<Slot>,
    rooms: Rooms,
    /// Completions that came while something else was waited for.
    inbox: Vec<cqueue::Entry>,
    /// Handshake answers that the ring has not taken yet.
    replies: Vec<Reply>,
    /// This turn's frames, by room, and the rooms that have any.
    frames: Vec<Vec<u8>>,
    touched: Vec<usize>,
    /// Where each frame ends: room, end.
    ends: Vec<(usize, usize)>,
    pieces: Vec<Piece>,
    parcels: Vec<Parcel>,
    /// The number of the submit that is being filled.
    submit: u64,
    /// Sends that fell short: slot, and how many bytes were taken.
    short: Vec<(u32, usize)>,
    /// What became of a send that was let wait.
    finished: Option<i32>,
    tick: Timespec,
    ping_interval_ms: u32,
    /// The member that is pinged next, and pings owed, in thousandths.
    ping_next: usize,
    pings_owed: u64,
    accepted: u64,
    counted_at: Instant,
    counted: u64,
}

impl Floor {
    pub fn new(args: &Args, listener: TcpListener) -> io::Result<Floor> {
        let ring = IoUring::builder()
            .setup_coop_taskrun()
            .setup_single_issuer()
            .setup_submit_all()
            .setup_cqsize(8192)
            .build(args.batch.clamp(16, 4096))?;
        ring.submitter().register_files_sparse(args.members)?;
        let buffers = Buffers::new(&ring)?;
        let parcel = || Parcel {
            // SAFETY: an all-zero msghdr is a valid empty one.
            header: unsafe { std::mem::zeroed() },
            pieces: Vec::new(),
        };
        Ok(Floor {
            ring,
            listener,
            buffers,
            mode: args.mode,
            prefix: args.prefix.clone().into_bytes(),
            suffix: args.suffix.clone().into_bytes(),
            prefixes: Vec::new(),
            slots: (0..args.members).map(|_| Slot::default()).collect(),
            rooms: Rooms::default(),
            inbox: Vec::new(),
            replies: Vec::with_capacity(REPLIES_MAX),
            frames: Vec::new(),
            touched: Vec::new(),
            ends: Vec::new(),
            pieces: Vec::new(),
            parcels: (0..args.batch.clamp(16, 4096).next_power_of_two())
                .map(|_| parcel())
                .collect(),
            submit: 1,
            short: Vec::new(),
            finished: None,
            tick: Timespec::from(Duration::from_millis(u64::from(TICK_MS))),
            ping_interval_ms: args.ping_interval_ms,
            ping_next: 0,
            pings_owed: 0,
            accepted: 0,
            counted_at: Instant::now(),
            counted: 0,
        })
    }

    pub fn work(&mut self) -> io::Result<()> {
        self.arm_accept()?;
        if self.mode == Mode::Heartbeat {
            self.arm_tick()?;
        }
        loop {
            // What came while sends were finished is there already, and nothing else may come.
            self.submit(usize::from(self.inbox.is_empty()))?;
            self.forget_turn();
            let mut inbox = std::mem::take(&mut self.inbox);
            for completion in inbox.drain(..) {
                self.handle(&completion)?;
            }
            // Completions that came meanwhile are kept for the next turn.
            inbox.append(&mut self.inbox);
            self.inbox = inbox;
            self.deliver()?;
            if self.mode == Mode::Accept {
                self.count();
            }
        }
    }

    fn forget_turn(&mut self) {
        self.replies.clear();
        self.ends.clear();
        self.pieces.clear();
        for room in self.touched.drain(..) {
            self.frames[room].clear();
        }
    }

    fn handle(&mut self, completion: &cqueue::Entry) -> io::Result<()> {
        let slot = completion.user_data() as u32;
        match completion.user_data() & kind::OF {
            kind::ACCEPT => self.handle_accept(completion),
            kind::RECEIVE => self.handle_received(slot, completion),
            kind::TICK => self.ping(),
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
                let alive = self.take_bytes(slot, buffer, n as usize)?;
                self.buffers.give_back(buffer);
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

    /// Parses what has come where it lies, or behind what was left of before.
    fn take_bytes(&mut self, slot: u32, buffer: u16, length: usize) -> io::Result<bool> {
        let mut held = std::mem::take(&mut self.slots[slot as usize].unread);
        let bytes: *mut [u8] = self.buffers.bytes(buffer, length);
        // SAFETY: the buffer is ours until `give_back`, and `parse` touches no buffer of the ring.
        let bytes = unsafe { &mut *bytes };
        let (used, alive) = if held.is_empty() {
            let (used, alive) = self.parse(slot, bytes)?;
            held.extend_from_slice(&bytes[used..]);
            (0, alive)
        } else {
            held.extend_from_slice(bytes);
            self.parse(slot, &mut held)?
        };
        held.drain(..used);
        self.slots[slot as usize].unread = held;
        Ok(alive)
    }

    /// Takes whole heads and frames off the front; says how many bytes that was, and whether the
    /// connection goes on.
    fn parse(&mut self, slot: u32, held: &mut [u8]) -> io::Result<(usize, bool)> {
        let mut used = 0;
        if !self.slots[slot as usize].greeted {
            let Some(end) = held.windows(4).position(|four| four == b"\r\n\r\n") else {
                return Ok((0, held.len() < 8192));
            };
            used = end + 4;
            if !self.greet(slot, &held[..end])? {
                return Ok((used, false));
            }
        }
        while let Some((code, mask, start, end)) = wire::client_frame(&held[used..]) {
            let payload = &mut held[used + start..used + end];
            used += end;
            wire::unmask(payload, mask);
            match code {
                1 | 2 => self.handle_message(slot, payload)?,
                8 => return Ok((used, false)),
                _ => {}
            }
        }
        Ok((used, true))
    }

    fn greet(&mut self, slot: u32, head: &[u8]) -> io::Result<bool> {
        if self.replies.len() == REPLIES_MAX {
            self.submit(0)?;
            self.replies.clear();
        }
        let Some(reply) = Reply::to(head, wire::rooms_of(head).count()) else { return Ok(false) };
        self.replies.push(reply);
        let bytes = self.replies.last().expect("just pushed").bytes();
        let entry = send_entry(slot, bytes.as_ptr(), bytes.len());
        self.push(&entry.user_data(kind::REPLY | u64::from(slot)))?;
        self.slots[slot as usize].greeted = true;
        self.rooms.join(slot, EVERYBODY);
        wire::rooms_of(head).for_each(|room| self.rooms.join(slot, room));
        Ok(true)
    }

    fn close(&mut self, slot: u32) -> io::Result<()> {
        let state = std::mem::take(&mut self.slots[slot as usize]);
        self.rooms.leave_all(slot);
        if state.open {
            let entry = opcode::Close::new(Fixed(slot)).build().flags(Flags::SKIP_SUCCESS);
            self.push(&entry.user_data(kind::CLOSE))?;
        }
        Ok(())
    }

    fn handle_message(&mut self, slot: u32, message: &[u8]) -> io::Result<()> {
        match self.mode {
            Mode::Receive if message.starts_with(b"{\"type\":\"ping\"") => {
                let entry = send_entry(slot, wire::PONG.as_ptr(), wire::PONG.len());
                self.push(&entry.user_data(kind::REPLY | u64::from(slot)))
            }
            Mode::Each | Mode::Joined => {
                self.put_delivery(message);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Appends the frame of a message to its room's.
    fn put_delivery(&mut self, message: &[u8]) {
        let (room, payload) = wire::address(message);
        if self.frames.len() <= room {
            self.frames.resize_with(room + 1, Vec::new);
        }
        while self.prefixes.len() <= room {
            let name = format!("load-{}", self.prefixes.len().saturating_sub(1));
            let prefix = String::from_utf8_lossy(&self.prefix).replace("{room}", &name);
            self.prefixes.push(prefix.into_bytes());
        }
        let frames = &mut self.frames[room];
        if frames.is_empty() {
            self.touched.push(room);
        }
        wire::put_text(frames, [&self.prefixes[room], payload, &self.suffix]);
        self.ends.push((room, frames.len()));
    }

    // --- sending ---

    /// Queues this turn's frames.
    fn deliver(&mut self) -> io::Result<()> {
        if self.ends.is_empty() {
            return Ok(());
        }
        self.cut_pieces();
        if self.mode == Mode::Joined && self.pieces.len() > 1 {
            return self.send_joined();
        }
        for piece in 0..self.pieces.len() {
            let Piece { room, start, bytes } = self.pieces[piece];
            for at in 0..self.rooms.members(room).len() {
                let slot = self.rooms.members(room)[at];
                self.make_room_for(slot)?;
                let state = &mut self.slots[slot as usize];
                state.pieces.clear();
                state.pieces.push(piece as u32);
                self.push_send(slot, &send_entry(slot, start, bytes));
            }
        }
        Ok(())
    }

    /// What is sent as one: a frame, or all frames of a room.
    fn cut_pieces(&mut self) {
        if self.mode == Mode::Joined {
            for &room in &self.touched {
                let frames = &self.frames[room];
                self.pieces.push(Piece { room, start: frames.as_ptr(), bytes: frames.len() });
            }
            return;
        }
        let mut begun = vec![0; self.frames.len()];
        for &(room, end) in &self.ends {
            let start = std::mem::replace(&mut begun[room], end);
            let frame = &self.frames[room][start..end];
            self.pieces.push(Piece { room, start: frame.as_ptr(), bytes: frame.len() });
        }
    }

    /// Several rooms at once: everything that a member gets as one send.
    fn send_joined(&mut self) -> io::Result<()> {
        let mut due = Vec::new();
        // The last submit's sends are finished, so what they were made of may be forgotten.
        self.submit(0)?;
        for piece in 0..self.pieces.len() {
            for &slot in self.rooms.members(self.pieces[piece].room) {
                let state = &mut self.slots[slot as usize];
                if state.submit != self.submit {
                    state.submit = self.submit;
                    state.pieces.clear();
                    due.push(slot);
                }
                state.pieces.push(piece as u32);
            }
        }
        let mut parcel = 0;
        for slot in due {
            if self.ring.submission().is_full() {
                self.submit(0)?;
                parcel = 0;
            }
            let entry = match self.slots[slot as usize].pieces[..] {
                [piece] => {
                    let Piece { start, bytes, .. } = self.pieces[piece as usize];
                    send_entry(slot, start, bytes)
                }
                _ => {
                    parcel += 1;
                    self.pack(slot, parcel - 1)
                }
            };
            self.push_send(slot, &entry);
        }
        Ok(())
    }

    /// A send of all pieces of a slot.
    fn pack(&mut self, slot: u32, parcel: usize) -> Entry {
        let parcel = &mut self.parcels[parcel];
        parcel.pieces.clear();
        for &piece in &self.slots[slot as usize].pieces {
            let Piece { start, bytes, .. } = self.pieces[piece as usize];
            let iov_base = start.cast_mut().cast();
            parcel.pieces.push(libc::iovec { iov_base, iov_len: bytes });
        }
        parcel.header.msg_iov = parcel.pieces.as_mut_ptr();
        parcel.header.msg_iovlen = parcel.pieces.len();
        opcode::SendMsg::new(Fixed(slot), &parcel.header)
            .flags((libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL | libc::MSG_WAITALL) as u32)
            .build()
            .flags(Flags::SKIP_SUCCESS)
    }

    /// Submits if the submit that is being filled is full or has a send to this slot already.
    fn make_room_for(&mut self, slot: u32) -> io::Result<()> {
        if self.slots[slot as usize].submit == self.submit || self.ring.submission().is_full() {
            self.submit(0)?;
        }
        Ok(())
    }

    /// Queues a delivery; there must be room.
    fn push_send(&mut self, slot: u32, entry: &Entry) {
        self.slots[slot as usize].submit = self.submit;
        let entry = entry.clone().user_data(kind::SEND | u64::from(slot));
        // SAFETY: frames, pieces and parcels are not touched before the submit that takes this
        // entry has returned, and a send that may not wait ends within its submit.
        unsafe { self.ring.submission().push(&entry) }.expect("the queue was not full");
    }

    /// Queues anything but a delivery.
    fn push(&mut self, entry: &Entry) -> io::Result<()> {
        if self.ring.submission().is_full() {
            self.submit(0)?;
        }
        // SAFETY: the only memory these entries point to is constant, or `replies`, which is
        // cleared after a submit only, or the tick and the buffer ring, which live as long as we.
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
        self.submit += 1;
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

    /// Gives a slow socket the rest of what was on its way to it, however long that takes.
    fn finish(&mut self, slot: u32, sent: usize) -> io::Result<()> {
        let mut rest = Vec::new();
        for &piece in &self.slots[slot as usize].pieces {
            let Piece { start, bytes, .. } = self.pieces[piece as usize];
            // SAFETY: pieces point into this turn's frames, which are cleared after it only.
            rest.extend_from_slice(unsafe { std::slice::from_raw_parts(start, bytes) });
        }
        rest.drain(..sent);
        while !rest.is_empty() {
            let entry = opcode::Send::new(Fixed(slot), rest.as_ptr(), rest.len() as u32)
                .flags(libc::MSG_NOSIGNAL | libc::MSG_WAITALL)
                .build()
                .user_data(kind::FINISH);
            // SAFETY: `rest` is not touched before this send has finished, below.
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
            rest.drain(..taken as usize);
        }
        Ok(())
    }

    // --- heartbeats and counts ---

    fn arm_tick(&mut self) -> io::Result<()> {
        let entry = opcode::Timeout::new(&raw const self.tick).build();
        self.push(&entry.user_data(kind::TICK))
    }

    /// The tick's share of pings.
    fn ping(&mut self) -> io::Result<()> {
        self.arm_tick()?;
        let members = self.rooms.members(EVERYBODY).len();
        let interval_ms = u64::from(self.ping_interval_ms);
        self.pings_owed += members as u64 * 1000 * u64::from(TICK_MS) / interval_ms;
        while self.pings_owed >= 1000 {
            self.pings_owed -= 1000;
            self.ping_next = (self.ping_next + 1) % members.max(1);
            let Some(&slot) = self.rooms.members(EVERYBODY).get(self.ping_next) else { break };
            let entry = send_entry(slot, wire::PING.as_ptr(), wire::PING.len());
            self.push(&entry.user_data(kind::REPLY | u64::from(slot)))?;
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
