//! The connections of one worker: begun, greeted, open, joined, lost, tried again.
//!
//! Built so that two million fit: a connection is 24 bytes and a socket. All of a worker's
//! connections share one receive buffer; only a frame that was cut or a write that was refused
//! gives one memory of its own, and gives it back.
//!
//! Invariant: a slot is in exactly one of `Life`'s states, and `tally.joined` counts those in
//! `Life::Joined`.

use super::frame::{self, Next, opcode};
use super::handshake::Answer;
use super::plan::ClientPlan;
use super::stamp::{EVERYBODY, Finder, Stamp};
use super::template::Filling;
use crate::load::report::tally::{Reason, Tally};
use crate::load::sys::{self, Epoll, Ready};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

/// Bytes of the shared receive buffer.
const RECEIVE_BYTES: usize = 256 << 10;
/// A socket with more than this unsent takes no more messages.
const UNSENT_BYTES_MAX: usize = 64 << 20;
/// So much of the first delivery is kept for the report.
const SAMPLE_BYTES_MAX: usize = 1024;
/// How far into a frame the text is looked for that says that a connection has joined.
const READY_WITHIN_BYTES: usize = 512;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    /// Not connected, and waiting for its turn.
    Waiting,
    /// The kernel connects.
    Connecting,
    /// The request is out.
    Greeted,
    /// The server agreed.
    Open,
    /// The server said that it is in its room.
    Joined,
    /// Given up.
    Failed,
}

struct Conn {
    stream: Option<TcpStream>,
    life: Life,
    tries: u8,
    /// Rooms that the server has not said yet that it is in.
    rooms_missing: u8,
    /// Told apart from the descriptor's former owners in late events.
    generation: u16,
    last_seq: u32,
    extra: Option<Box<Extra>>,
}

const _: () = assert!(size_of::<Conn>() <= 24);

/// What only few connections have at a time.
#[derive(Default)]
struct Extra {
    /// The beginning of a frame, or of the response head.
    unread: Vec<u8>,
    /// What the socket has not taken yet.
    unsent: Vec<u8>,
}

/// A copy of one of our messages has arrived.
pub struct Arrival {
    /// Which message.
    pub stamp: Stamp,
    /// When, since time zero.
    pub at_ns: u64,
}

/// All connections of one worker.
pub struct Conns {
    plan: Arc<ClientPlan>,
    /// Number of the first one.
    lo: u32,
    conns: Vec<Conn>,
    epoll: Epoll,
    buffer: Box<[u8]>,
    finder: Finder,
    random: u64,
    scratch: Vec<u8>,
    /// Slots to connect, in order.
    queue: VecDeque<u32>,
    /// Slots to connect again, by time.
    again: BinaryHeap<Reverse<(u64, u32)>>,
    /// Handshakes by deadline; a stale generation has ended otherwise.
    deadlines: VecDeque<(u64, u32, u16)>,
    handshaking: u32,
    connects_begun: u64,
    connecting_since_ns: u64,
    /// Slots with something to send at the end of this turn.
    to_flush: Vec<u32>,
    /// What each connection says over and over, while they talk.
    bursts: Vec<Box<[u8]>>,
    talking: bool,
    /// What has been counted.
    pub tally: Tally,
    /// What has arrived and nobody has looked at.
    pub arrivals: Vec<Arrival>,
}

impl Conns {
    /// Connections `lo..hi`, none of them begun, watched by `epoll`.
    pub fn new(plan: Arc<ClientPlan>, lo: u32, hi: u32, epoll: Epoll, seed: u64) -> Conns {
        let fresh = || Conn {
            stream: None,
            life: Life::Waiting,
            tries: 0,
            rooms_missing: 0,
            generation: 0,
            last_seq: 0,
            extra: None,
        };
        Conns {
            plan,
            lo,
            conns: (lo..hi).map(|_| fresh()).collect(),
            epoll,
            buffer: vec![0; RECEIVE_BYTES].into_boxed_slice(),
            finder: Finder::default(),
            random: seed | 1,
            scratch: Vec::new(),
            queue: VecDeque::new(),
            again: BinaryHeap::new(),
            deadlines: VecDeque::new(),
            handshaking: 0,
            connects_begun: 0,
            connecting_since_ns: 0,
            to_flush: Vec::new(),
            bursts: Vec::new(),
            talking: false,
            tally: Tally::default(),
            arrivals: Vec::new(),
        }
    }

    /// The set that watches them.
    pub fn epoll(&self) -> &Epoll {
        &self.epoll
    }

    /// Begins to connect all that wait.
    pub fn connect_all(&mut self) {
        self.connecting_since_ns = self.plan.now_ns();
        self.connects_begun = 0;
        self.queue = (0..self.conns.len() as u32).collect();
    }

    /// Begins as many connects as concurrency and rate allow, a bounded number at a time.
    pub fn begin_connects(&mut self) {
        let now_ns = self.plan.now_ns();
        while let Some(&Reverse((due_ns, slot))) = self.again.peek() {
            if due_ns > now_ns {
                break;
            }
            self.again.pop();
            self.queue.push_back(slot);
        }
        for _ in 0..64 {
            if self.handshaking >= self.plan.connect_concurrency || self.rate_due_ns() > now_ns {
                return;
            }
            let Some(slot) = self.queue.pop_front() else { return };
            self.connects_begun += 1;
            self.begin_connect(slot);
        }
    }

    /// When the next connect can begin, `None` while nothing can but by an event.
    pub fn next_connect_ns(&self) -> Option<u64> {
        if self.handshaking >= self.plan.connect_concurrency {
            return None;
        }
        if self.queue.is_empty() {
            return self.again.peek().map(|Reverse((due_ns, _))| *due_ns);
        }
        Some(self.rate_due_ns())
    }

    /// Gives up handshakes that have taken too long.
    pub fn expire_handshakes(&mut self) {
        let now_ns = self.plan.now_ns();
        while let Some(&(deadline_ns, slot, generation)) = self.deadlines.front() {
            let conn = &self.conns[slot as usize];
            // One that waits for its next try has ended already: it must not be tried twice at once.
            let pending = conn.generation == generation
                && matches!(conn.life, Life::Connecting | Life::Greeted | Life::Open);
            if pending && deadline_ns > now_ns {
                return;
            }
            self.deadlines.pop_front();
            if pending {
                let what = match conn.life {
                    Life::Connecting => "no answer to the connect",
                    Life::Greeted => "no answer to the handshake",
                    _ => {
                        "the connection is open, but the server never said that it has joined \
                          (see --ready)"
                    }
                };
                self.fail(slot, Reason::Timeout, None, || what.into());
            }
        }
    }

    /// Something happened to a connection.
    pub fn handle_ready(&mut self, ready: Ready) {
        let (slot, generation) = (ready.key as u32, (ready.key >> 32) as u16);
        let Some(conn) = self.conns.get_mut(slot as usize) else { return };
        if conn.generation != generation || conn.stream.is_none() {
            return;
        }
        if conn.life == Life::Connecting {
            self.handle_connected(slot);
        } else if ready.writable && conn.extra.as_ref().is_some_and(|e| !e.unsent.is_empty()) {
            self.flush(slot);
        }
        if ready.readable {
            self.read(slot, ready.hung_up);
        }
    }

    /// Queues one message on a connection, to leave at the end of the turn. Refused, and `false`,
    /// if the connection is not joined or its socket takes nothing any more.
    #[must_use]
    pub fn publish(&mut self, conn: u32, stamp: Stamp) -> bool {
        let slot = conn - self.lo;
        let state = &self.conns[slot as usize];
        let unsent = state.extra.as_ref().map_or(0, |extra| extra.unsent.len());
        if state.life != Life::Joined || unsent > UNSENT_BYTES_MAX {
            return false;
        }
        let plan = Arc::clone(&self.plan);
        let message = Some((stamp, plan.payload_bytes));
        let room = if stamp.room == EVERYBODY { plan.rooms().room_of(conn) } else { stamp.room };
        let filling = Filling { room, message, ..self.filling(&plan, conn) };
        self.scratch.clear();
        plan.message.fill(&filling, &mut self.scratch);
        self.queue_scratch(slot, opcode::TEXT);
        true
    }

    /// Every connection begins to talk.
    pub fn start_talking(&mut self) {
        let plan = Arc::clone(&self.plan);
        let Some(speech) = &plan.speech else { return };
        self.bursts = (0..self.conns.len() as u32)
            .map(|slot| {
                let filling = self.filling(&plan, self.lo + slot);
                speech.burst(filling, || self.next_random() as u32)
            })
            .collect();
        self.talking = true;
        for slot in 0..self.conns.len() as u32 {
            if self.conns[slot as usize].life == Life::Joined {
                self.say(slot);
            }
        }
    }

    /// Nobody begins another burst.
    pub fn stop_talking(&mut self) {
        self.talking = false;
    }

    /// One burst, to leave at the end of the turn.
    fn say(&mut self, slot: u32) {
        self.tally.asked += 1;
        let burst = std::mem::take(&mut self.bursts[slot as usize]);
        let extra = self.extra(slot);
        if extra.unsent.is_empty() {
            extra.unsent.extend_from_slice(&burst);
            self.to_flush.push(slot);
        } else {
            extra.unsent.extend_from_slice(&burst);
        }
        self.bursts[slot as usize] = burst;
    }

    /// Whether this is the answer to the question behind a burst.
    fn take_answer(&mut self, slot: u32, payload: &[u8]) -> bool {
        let Some(speech) = &self.plan.speech else { return false };
        let answer = speech.answer.as_bytes();
        let head = &payload[..payload.len().min(READY_WITHIN_BYTES)];
        if self.bursts.is_empty() || !head.windows(answer.len()).any(|window| window == answer) {
            return false;
        }
        self.tally.answered += 1;
        if self.talking {
            self.say(slot);
        }
        true
    }

    /// The first connection that has joined.
    pub fn any_joined(&self) -> Option<u32> {
        let slot = self.conns.iter().position(|conn| conn.life == Life::Joined)?;
        Some(self.lo + slot as u32)
    }

    /// Sends everything that was queued in this turn: one write a connection.
    pub fn flush_all(&mut self) {
        while let Some(slot) = self.to_flush.pop() {
            self.flush(slot);
        }
    }

    /// Cuts every connection, with a reset or with a plain close, and begins anew.
    pub fn cut_all(&mut self, reset: bool) {
        for conn in &mut self.conns {
            close(&mut conn.stream, reset);
            conn.generation = conn.generation.wrapping_add(1);
            conn.life = Life::Waiting;
            conn.tries = 0;
            conn.extra = None;
        }
        self.deadlines.clear();
        self.again.clear();
        self.handshaking = 0;
        self.tally.joined = 0;
        self.connect_all();
    }

    /// Ends every connection with a reset, which leaves no closing sockets behind on this machine.
    pub fn end_all(&mut self) {
        for conn in &mut self.conns {
            close(&mut conn.stream, true);
        }
    }

    // --- one connection's life ---

    fn begin_connect(&mut self, slot: u32) {
        let number = self.lo + slot;
        self.tally.attempts += 1;
        self.handshaking += 1;
        let conn = &mut self.conns[slot as usize];
        conn.life = Life::Connecting;
        conn.generation = conn.generation.wrapping_add(1);
        let timeout_ns = self.plan.handshake_timeout.as_nanos() as u64;
        self.deadlines.push_back((self.plan.now_ns() + timeout_ns, slot, conn.generation));
        let key = u64::from(conn.generation) << 32 | u64::from(slot);
        let to = self.plan.target(number).addr;
        let begun = sys::begin_connect(to, self.plan.source(number))
            .and_then(|stream| self.epoll.add(&stream, key).map(|()| stream));
        match begun {
            Ok(stream) => conn.stream = Some(stream),
            Err(error) => self.fail_io(slot, &format!("connect to {to}"), &error),
        }
    }

    fn handle_connected(&mut self, slot: u32) {
        let number = self.lo + slot;
        let to = self.plan.target(number).addr;
        let conn = &mut self.conns[slot as usize];
        let stream = conn.stream.as_ref().expect("a connecting connection has a socket");
        match stream.take_error() {
            Ok(None) => {}
            Ok(Some(error)) | Err(error) => {
                return self.fail_io(slot, &format!("connect to {to}"), &error);
            }
        }
        conn.life = Life::Greeted;
        let plan = Arc::clone(&self.plan);
        self.scratch.clear();
        let mut path = Vec::new();
        plan.path.fill(&self.filling(&plan, number), &mut path);
        let path = String::from_utf8_lossy(&path);
        plan.target(number).greeting.write(&path, &mut self.scratch);
        let request = std::mem::take(&mut self.scratch);
        self.extra(slot).unsent.extend_from_slice(&request);
        self.scratch = request;
        self.flush(slot);
    }

    fn filling<'a>(&self, plan: &'a ClientPlan, number: u32) -> Filling<'a> {
        let room = plan.rooms().room_of(number);
        Filling {
            names: &plan.names,
            room,
            number,
            message: None,
            said: &[],
            signer: plan.signer.as_ref(),
        }
    }

    /// Reads what there is. Edge-triggered: until a read comes back short, or, where the peer has
    /// hung up, until the end.
    fn read(&mut self, slot: u32, hung_up: bool) {
        if self.is_silent(slot) {
            if hung_up {
                self.handle_ended(slot, None);
            }
            return;
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        while let Some(stream) = self.conns[slot as usize].stream.as_ref() {
            match (&mut &*stream).read(&mut buffer) {
                Ok(0) => self.handle_ended(slot, None),
                Ok(n) => {
                    self.handle_bytes(slot, &buffer[..n]);
                    if n < buffer.len() && !hung_up {
                        break;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => self.handle_ended(slot, Some(&error)),
            }
        }
        self.buffer = buffer;
    }

    /// Whether what comes for a connection stays where it is. Such a one may lose its connection:
    /// that is what servers do with it.
    fn is_silent(&self, slot: u32) -> bool {
        self.conns[slot as usize].life == Life::Joined && self.plan.is_silent(self.lo + slot)
    }

    /// Bytes have come: alone, or behind the beginning of a frame that came before.
    fn handle_bytes(&mut self, slot: u32, bytes: &[u8]) {
        let conn = &mut self.conns[slot as usize];
        let held = conn.extra.as_mut().map(|extra| std::mem::take(&mut extra.unread));
        match held.filter(|held| !held.is_empty()) {
            None => {
                let used = self.parse(slot, bytes);
                self.keep_unread(slot, &bytes[used..]);
            }
            Some(mut held) => {
                held.extend_from_slice(bytes);
                let used = self.parse(slot, &held);
                self.keep_unread(slot, &held[used..]);
            }
        }
    }

    fn keep_unread(&mut self, slot: u32, rest: &[u8]) {
        let conn = &mut self.conns[slot as usize];
        if conn.stream.is_none() {
            return;
        }
        if rest.is_empty() {
            conn.extra.take_if(|extra| extra.unsent.is_empty());
        } else {
            self.extra(slot).unread.extend_from_slice(rest);
        }
    }

    /// Takes whole things off the front of `bytes` and says how many bytes that was.
    fn parse(&mut self, slot: u32, bytes: &[u8]) -> usize {
        let mut used = 0;
        if self.conns[slot as usize].life == Life::Greeted {
            let plan = Arc::clone(&self.plan);
            match plan.target(self.lo + slot).greeting.judge(bytes) {
                Answer::More => return 0,
                Answer::Open { bytes } => {
                    used = bytes;
                    self.handle_open(slot);
                }
                Answer::Refused { status, line, retry_after_s } => {
                    let reason = match status {
                        503 => Reason::Busy,
                        408 | 429 | 500..=599 => Reason::Overloaded,
                        _ => Reason::Status,
                    };
                    self.fail(slot, reason, retry_after_s, || format!("the server said: {line}"));
                    return 0;
                }
            }
        }
        let at_ns = self.plan.now_ns();
        self.tally.bytes_in += (bytes.len() - used) as u64;
        while self.conns[slot as usize].stream.is_some() {
            match frame::next_frame(&bytes[used..]) {
                Next::More => break,
                Next::Bad(why) => {
                    self.tally.trouble(|| format!("the server sent {why}"));
                    self.handle_ended(slot, None);
                }
                Next::Frame { opcode, payload, bytes } => {
                    used += bytes;
                    self.handle_frame(slot, opcode, payload, bytes, at_ns);
                }
            }
        }
        used
    }

    fn handle_open(&mut self, slot: u32) {
        self.handshaking -= 1;
        let plan = Arc::clone(&self.plan);
        let conn = &mut self.conns[slot as usize];
        conn.life = Life::Open;
        conn.rooms_missing = plan.rooms().layers() as u8;
        for template in &plan.init {
            self.scratch.clear();
            let filling = self.filling(&plan, self.lo + slot);
            template.fill(&filling, &mut self.scratch);
            self.queue_scratch(slot, opcode::TEXT);
        }
        if plan.ready.is_none() {
            self.handle_joined(slot);
        }
    }

    fn handle_joined(&mut self, slot: u32) {
        let conn = &mut self.conns[slot as usize];
        conn.life = Life::Joined;
        conn.tries = 0;
        conn.last_seq = 0;
        self.tally.joined += 1;
        self.tally.last_joined_ns = self.plan.now_ns();
    }

    fn handle_frame(&mut self, slot: u32, code: u8, payload: &[u8], bytes: usize, at_ns: u64) {
        match code {
            opcode::TEXT | opcode::BINARY | opcode::CONTINUATION => {
                self.handle_message(slot, payload, bytes, at_ns);
            }
            opcode::PING => {
                self.tally.pings += 1;
                self.scratch.clear();
                self.scratch.extend_from_slice(payload);
                self.queue_scratch(slot, opcode::PONG);
            }
            opcode::CLOSE => {
                let code = payload.get(..2).map_or(1005, |b| u16::from_be_bytes([b[0], b[1]]));
                let text = String::from_utf8_lossy(payload.get(2..).unwrap_or_default());
                self.tally.trouble(|| format!("the server closed: {code} {text}"));
                self.handle_ended(slot, None);
            }
            _ => {}
        }
    }

    fn handle_message(&mut self, slot: u32, payload: &[u8], bytes: usize, at_ns: u64) {
        if let Some(stamp) = self.finder.find(payload) {
            if stamp.run == self.plan.run {
                self.handle_arrival(slot, stamp, payload, bytes, at_ns);
            }
            return;
        }
        if self.take_answer(slot, payload) {
            return;
        }
        self.answer(slot, payload);
        if payload.starts_with(br#"{"type":"error""#) {
            self.tally.errors += 1;
            self.tally.trouble(|| {
                let text = String::from_utf8_lossy(&payload[..payload.len().min(300)]);
                format!("the server answered: {text}")
            });
        } else if self.conns[slot as usize].life == Life::Open {
            let plan = Arc::clone(&self.plan);
            let ready = plan.ready.as_ref().expect("open without --ready is joined at once");
            let head = &payload[..payload.len().min(READY_WITHIN_BYTES)];
            if head.windows(ready.len()).any(|window| window == ready.as_bytes()) {
                let conn = &mut self.conns[slot as usize];
                conn.rooms_missing -= 1;
                if conn.rooms_missing == 0 {
                    self.handle_joined(slot);
                }
            }
        }
    }

    /// Says what the rules have to say to a frame of the server's.
    fn answer(&mut self, slot: u32, said: &[u8]) {
        let plan = Arc::clone(&self.plan);
        let Some(reply) = plan.answers.to(said) else { return };
        self.scratch.clear();
        let filling = Filling { said, ..self.filling(&plan, self.lo + slot) };
        reply.fill(&filling, &mut self.scratch);
        self.queue_scratch(slot, opcode::TEXT);
    }

    fn handle_arrival(
        &mut self,
        slot: u32,
        stamp: Stamp,
        payload: &[u8],
        bytes: usize,
        at_ns: u64,
    ) {
        let conn = &mut self.conns[slot as usize];
        if self.plan.is_ordered {
            if stamp.seq <= conn.last_seq {
                self.tally.disordered += 1;
            }
            conn.last_seq = stamp.seq;
        }
        self.tally.received += 1;
        self.tally.received_bytes += bytes as u64;
        self.tally.last_received_ns = at_ns;
        if self.tally.sample.is_none() {
            let head = &payload[..payload.len().min(SAMPLE_BYTES_MAX)];
            self.tally.sample = Some(String::from_utf8_lossy(head).into_owned());
        }
        self.arrivals.push(Arrival { stamp, at_ns });
    }

    /// The peer has ended the connection, or broken the protocol.
    ///
    /// 1. Before it had joined: the attempt has failed.
    /// 2. Joined: it is lost, and connected again only where retries have no end.
    fn handle_ended(&mut self, slot: u32, error: Option<&io::Error>) {
        if self.is_silent(slot) {
            self.tally.silent_ended += 1;
            let conn = &mut self.conns[slot as usize];
            close(&mut conn.stream, true);
            (conn.extra, conn.life) = (None, Life::Failed);
            return;
        }
        if self.conns[slot as usize].life == Life::Joined {
            self.tally.joined -= 1;
            self.tally.lost += 1;
            self.tally.trouble(|| match error {
                Some(error) => format!("a joined connection was lost: {error}"),
                None => "a joined connection was closed by the server".into(),
            });
            let retries = self.plan.retries;
            let conn = &mut self.conns[slot as usize];
            conn.stream = None;
            conn.extra = None;
            conn.life = Life::Failed;
            if retries.is_none() {
                conn.life = Life::Waiting;
                let due_ns = self.backoff_ns(slot, None);
                self.again.push(Reverse((due_ns, slot)));
            }
            return;
        }
        match error {
            Some(error) => self.fail_io(slot, "the connection was lost before it joined", error),
            None => self.fail(slot, Reason::ClosedEarly, None, || {
                "the server closed the connection before it had joined".into()
            }),
        }
    }

    fn fail_io(&mut self, slot: u32, what: &str, error: &io::Error) {
        self.fail(slot, Reason::of(error), None, || format!("{what}: {error}"));
    }

    /// An attempt has failed: to be tried again, or for good.
    fn fail(
        &mut self,
        slot: u32,
        reason: Reason,
        retry_after_s: Option<u64>,
        what: impl FnOnce() -> String,
    ) {
        self.tally.trouble(what);
        let conn = &mut self.conns[slot as usize];
        if matches!(conn.life, Life::Connecting | Life::Greeted) {
            self.handshaking -= 1;
        }
        conn.stream = None;
        conn.extra = None;
        // A page that is not there will not be there in a second either.
        let hopeless = matches!(reason, Reason::Status | Reason::NoFile);
        let may_retry = self.plan.retries.is_none_or(|retries| conn.tries < retries);
        if hopeless || !may_retry {
            conn.life = Life::Failed;
            self.tally.failed[reason as usize] += 1;
            return;
        }
        conn.life = Life::Waiting;
        conn.tries = conn.tries.saturating_add(1);
        self.tally.retried[reason as usize] += 1;
        let due_ns = self.backoff_ns(slot, retry_after_s);
        self.again.push(Reverse((due_ns, slot)));
    }

    /// When to try again: what the server asked for plus up to as much again, or 0.1 s doubled with
    /// every try up to 5 s, half of it by chance.
    fn backoff_ns(&mut self, slot: u32, retry_after_s: Option<u64>) -> u64 {
        let tries = u32::from(self.conns[slot as usize].tries).min(6);
        let (least, spread) = match retry_after_s {
            Some(s) => (Duration::from_secs(s.min(300)), Duration::from_secs(s.clamp(1, 300))),
            None => {
                let half = Duration::from_millis(50 << tries).min(Duration::from_millis(2500));
                (half, half)
            }
        };
        let chance = self.next_random() % (spread.as_nanos() as u64).max(1);
        self.plan.now_ns() + least.as_nanos() as u64 + chance
    }

    fn rate_due_ns(&self) -> u64 {
        match self.plan.connect_rate {
            None => 0,
            Some(rate) => {
                self.connecting_since_ns + (self.connects_begun as f64 * 1e9 / rate) as u64
            }
        }
    }

    // --- writing ---

    /// Frames `scratch` for a connection, to leave at the end of the turn.
    fn queue_scratch(&mut self, slot: u32, code: u8) {
        let mask = self.next_random() as u32;
        let message = std::mem::take(&mut self.scratch);
        let extra = self.extra(slot);
        let idle = extra.unsent.is_empty();
        frame::put_frame(&mut extra.unsent, code, &message, mask);
        self.scratch = message;
        if idle {
            self.to_flush.push(slot);
        }
    }

    fn flush(&mut self, slot: u32) {
        let conn = &mut self.conns[slot as usize];
        let (Some(stream), Some(extra)) = (conn.stream.as_ref(), conn.extra.as_mut()) else {
            return;
        };
        let mut sent = 0;
        while sent < extra.unsent.len() {
            let end = extra.unsent.len().min(sent.saturating_add(self.plan.write_bytes_max));
            match (&mut &*stream).write(&extra.unsent[sent..end]) {
                Ok(n) => sent += n,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // The reader meets the same end, with all that came before it.
                Err(_) => sent = extra.unsent.len(),
            }
        }
        extra.unsent.drain(..sent);
        if extra.unsent.is_empty() && extra.unread.is_empty() {
            conn.extra = None;
        }
    }

    fn extra(&mut self, slot: u32) -> &mut Extra {
        self.conns[slot as usize].extra.get_or_insert_default()
    }

    /// xorshift64*: masks and jitter need no more.
    fn next_random(&mut self) -> u64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }
}

fn close(stream: &mut Option<TcpStream>, reset: bool) {
    if let Some(stream) = stream.take()
        && reset
    {
        // A socket that is gone already needs no reset; closing it is all that is left.
        let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
    }
}
