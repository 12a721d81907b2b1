//! The only entrance to the shard.
//!
//! A visit is synchronous: the closure cannot await, so nobody holds the shard across a suspension.
//! A visit ends with a drain: the shard's items for the backplane go into the window, one batch of
//! writes goes to the sockets, and sockets whose deadline has passed are closed. What does not
//! fit one batch is left to the writer task (`tasks.rs`), so that a delivery to a hundred thousand
//! members holds nobody else up for longer than one batch.
//!
//! Invariant: if a visit panics the reactor is not put back, and the thread ends: a shard with a
//! broken invariant serves no client.

use crate::auth::FetchedKeys;
use crate::ids::ConnId;
use crate::link::calls::{Call, CallSender};
use crate::link::channel::ShardEnd;
use crate::link::exchange::ExchangeReader;
use crate::link::hooks::{HookAsk, HookQuestion, HookReply, HookSender};
use crate::link::ledger::Pressure;
use crate::link::load_table::ShardLoad;
use crate::link::{Downlink, Uplink};
use crate::metrics::ShardMirror;
use crate::net::ShardSetup;
use crate::net::accept::addresses::Addresses;
use crate::net::accept::steering::Steering;
use crate::net::io::epoll::{Epoll, Readiness};
use crate::net::io::send::{Sender, ShortWrite};
use crate::net::io::socket;
use crate::net::key_waits::{KeyWait, KeyWaits, TimedWait};
use crate::net::memory::{self, ShardMemory};
use crate::net::read_queue::{Line, ReadQueue, ReadTurn, Used};
use crate::net::upgrade::reject::RejectReason;
use crate::net::upgrade::routes::{Attempt, HandshakeRefusal, Routes, UNKNOWN_KEY};
use crate::net::upgrade::{LeftAt, Progress, StageContext, TimedOut, Upgrades, first_message};
use crate::plan::{Plan, ProxyProtocol};
use crate::policy::networks::any_contains;
use crate::policy::revocations::Revocations;
use crate::protocol::dialect::{AuthRequest, Encoding};
use crate::shard::conn::CloseReason;
use crate::shard::delivery::batch::SendBatch;
use crate::shard::{
    AdmissionChange, ClosedSocket, Opening, ReadOutcome, SettingsChange, Shard, TokenCheck,
    TokenVerdict,
};
use bytes::Bytes;
use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How often the shard's clock is advanced, at most.
pub(super) const TICK_MS: u64 = 100;

const SCRATCH_BYTES: usize = 64 * 1024;
const OUTBOX_SLICES_MAX: usize = 64;

/// Joins and leaves ring the backplane at once if it has not been rung for so long, else when it is
/// over: when thousands come in a second it is not woken for every few of them. Messages never wait.
pub(super) const RING_INTERVAL: Duration = Duration::from_millis(1);

/// How long the acceptor goes on before others have their turn, about: a message that arrives while
/// thousands connect or leave waits for a few of these.
pub(super) const TURN: Duration = Duration::from_micros(250);

/// The same for the reader. Longer: what is read together leaves together, and a portion of writes
/// takes longer still.
const READ_TURN: Duration = Duration::from_micros(500);

/// Connections read in one visit.
const READS_MAX: usize = 1024;
/// What is read of a connection as soon as it is accepted.
const FIRST_READ_BYTES: usize = 16 * 1024;

/// Lends the reactor out, one visit at a time.
pub(super) struct ReactorCell {
    inner: Cell<Option<Box<Reactor>>>,
}

impl ReactorCell {
    /// An entrance to this reactor.
    pub(super) fn new(reactor: Reactor) -> ReactorCell {
        ReactorCell { inner: Cell::new(Some(Box::new(reactor))) }
    }

    /// Calls the shard, then carries out everything that it has to be polled for.
    pub(super) fn visit<R>(&self, call: impl FnOnce(&mut Reactor) -> R) -> R {
        let mut reactor = self.inner.take().expect("nobody visits from inside a visit");
        let began = Instant::now();
        reactor.tick_if_due(began);
        let answer = call(&mut reactor);
        reactor.drain(began);
        reactor.post_memory();
        reactor.shard.counters.visit_time.record(began.elapsed());
        self.inner.set(Some(reactor));
        answer
    }

    /// Drops the reactor, and with it the shard's end of the window. No visit may follow.
    pub(super) fn close(&self) {
        drop(self.inner.take().expect("it is closed once, and from outside a visit"));
    }

    /// Reads something without changing the shard: no drain.
    pub(super) fn look<R>(&self, look: impl FnOnce(&mut Reactor) -> R) -> R {
        let mut reactor = self.inner.take().expect("nobody visits from inside a visit");
        let answer = look(&mut reactor);
        self.inner.set(Some(reactor));
        answer
    }
}

/// Everything one shard thread owns.
pub(super) struct Reactor {
    shard: Shard,
    end: ShardEnd,
    epoll: Epoll,
    sender: Sender,
    batch: SendBatch,
    short_writes: Vec<ShortWrite>,
    upgrades: Upgrades,
    routes: Routes,
    calls: CallSender,
    hooks: HookSender,
    steering: Steering,
    addresses: Addresses,
    mirror: Arc<ShardMirror>,
    reloads: ExchangeReader<Plan>,
    revocations: ExchangeReader<Revocations>,
    keys: ExchangeReader<FetchedKeys>,
    key_waits: KeyWaits,
    scratch: Box<[u8]>,
    unread: ReadQueue,
    handshakes_max: usize,
    read_turn_bytes_max: usize,
    uplink_items_max: usize,
    downlink_items_max: usize,
    downlink_bytes_max: usize,
    memory: ShardMemory,
    /// [`Shard::broadcast_receivers`] as the backplane has them.
    published_receivers: [u32; Encoding::COUNT],
    started: Instant,
    last_tick_ms: u64,
    must_ring: bool,
    /// When the backplane was last rung.
    rung: Instant,
    /// Wakes the task that rings the backplane, when a visit leaves the bell to it.
    pub ring_waker: Option<Waker>,
    /// Wakes the writer, when a visit leaves something to write.
    pub writer: Option<Waker>,
    /// Wakes the reader, when there is a socket to read and room for what its client asks.
    pub reader: Option<Waker>,
    draining: bool,
}

impl Reactor {
    /// The reactor of a shard that is about to start.
    pub(super) fn new(setup: ShardSetup, shard: Shard, steering: Steering) -> io::Result<Reactor> {
        let (limits, plan) = (setup.plan.limits, setup.plan);
        let (keys, requests) = setup.keys;
        let mut routes = Routes::new(plan.clone(), setup.authenticator);
        routes.set_key_requests(requests);
        Ok(Reactor {
            shard,
            end: setup.end,
            epoll: Epoll::new()?,
            sender: Sender::new(limits.send_batch_max)?,
            batch: SendBatch::default(),
            short_writes: Vec::new(),
            upgrades: Upgrades::default(),
            routes,
            calls: setup.calls,
            hooks: setup.hooks,
            steering,
            addresses: Addresses::new(setup.shares, &plan),
            mirror: setup.mirror,
            reloads: setup.reloads,
            revocations: setup.revocations,
            keys,
            key_waits: KeyWaits::default(),
            scratch: vec![0; SCRATCH_BYTES].into_boxed_slice(),
            unread: ReadQueue::default(),
            handshakes_max: limits.handshakes_max,
            read_turn_bytes_max: limits.read_turn_bytes_max,
            uplink_items_max: limits.uplink_items_max,
            downlink_items_max: limits.downlink_items_max,
            downlink_bytes_max: limits.downlink_bytes_max,
            memory: ShardMemory::new(setup.account),
            must_ring: false,
            rung: Instant::now(),
            ring_waker: None,
            published_receivers: [0; Encoding::COUNT],
            started: Instant::now(),
            last_tick_ms: 0,
            writer: None,
            reader: None,
            draining: false,
        })
    }

    /// The descriptor of the set of sockets, to wait for.
    pub(super) fn epoll_fd(&self) -> RawFd {
        self.epoll.fd()
    }

    /// Takes events from the kernel; answers whether there may be more.
    pub(super) fn take_events(&mut self, into: &mut Vec<Readiness>) -> bool {
        self.epoll.take(into)
    }

    /// Whether clients may be read: not while the window is full, and not while so much waits to be
    /// written that what they ask for could only make it more.
    pub(super) fn may_read(&self) -> bool {
        self.shard.uplink_waiting() == 0 && self.has_room_for_replies()
    }

    /// Whether a turn of reading may go on. What was read in the same visit may wait a little longer
    /// than [`Reactor::may_read`] allows at its start.
    fn may_read_on(&self) -> bool {
        self.shard.uplink_waiting() < self.uplink_items_max && self.has_room_for_replies()
    }

    fn has_room_for_replies(&self) -> bool {
        self.shard.frames_waiting() < self.downlink_items_max
            && self.shard.frames_waiting_bytes() < self.downlink_bytes_max
    }

    /// Whether a connection waits to be read.
    pub(super) fn has_unread(&self) -> bool {
        !self.unread.is_empty()
    }

    /// Whether there is more to write than the last visit wrote.
    pub(super) fn has_sends(&self) -> bool {
        self.shard.has_sends()
    }

    /// Whether this shard is ending.
    pub(super) fn is_draining(&self) -> bool {
        self.draining
    }

    /// Whether this shard has ended.
    pub(super) fn is_drained(&self) -> bool {
        self.shard.is_drained()
    }

    /// Whether the peer of a socket is none of the proxies through which every connection has to come.
    pub(super) fn bypasses_proxies(&self, socket: RawFd) -> bool {
        let plan = self.routes.plan();
        plan.proxy_protocol == ProxyProtocol::Required
            && socket::peer(socket)
                .is_some_and(|peer| !any_contains(&plan.trusted_proxies, peer.ip()))
    }

    /// A socket was accepted. What its client has sent already is read at once: mostly it is the
    /// whole request, and nothing more happens on the socket until it is answered.
    pub(super) fn accept(&mut self, socket: RawFd) -> Result<(), RejectReason> {
        if self.shard.counters.handshaking as usize >= self.handshakes_max {
            return Err(RejectReason::HandshakesFull);
        }
        if self.memory.pressure() >= Pressure::RefuseConnections {
            return Err(RejectReason::Memory);
        }
        let key = self.addresses.begin_direct(|| socket::peer(socket))?;
        let now_ms = self.now_ms();
        let Some(conn) = self.shard.handle_accept(socket as u32, now_ms) else {
            self.addresses.take_back(key);
            return Err(RejectReason::ConnectionsFull);
        };
        self.addresses.note(conn.0.index, key);
        self.shard.counters.accepted_elsewhere += u64::from(self.steering.is_off_core(socket));
        self.read_first(conn, socket);
        if let Err(error) = self.epoll.add(socket, conn) {
            tracing::warn!(%error, "a connection could not be watched");
            self.shard.handle_peer_gone(conn, CloseReason::Io);
        }
        Ok(())
    }

    fn read_first(&mut self, conn: ConnId, socket: RawFd) {
        if !self.may_read_on() || !self.shard.handle_readable(conn, false) {
            return;
        }
        let _ = self.shard.begin_reading(conn);
        match socket::recv(socket, &mut self.scratch[..FIRST_READ_BYTES]) {
            Ok(0) => self.shard.handle_eof(conn),
            Ok(n) => _ = self.handle_bytes(conn, n),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.shard.handle_peer_gone(conn, CloseReason::Io),
        }
        // If there is more, adding the socket to the epoll set causes an event for it.
    }

    /// A connection was refused.
    pub(super) fn count_rejected(&mut self, why: RejectReason) {
        *(why.rejection().counter)(&mut self.shard.counters) += 1;
    }

    /// The address of a connection's client: as a proxy named it, or else the socket's peer.
    /// `None`: the connection has gone, or its socket has failed.
    pub(super) fn peer_of(&self, conn: ConnId) -> Option<SocketAddr> {
        let socket_key = self.shard.socket_key_of(conn)?;
        let named = self.shard.named_peer(conn).or_else(|| self.upgrades.named(conn.0.index));
        named.or_else(|| socket::peer(socket_key as RawFd))
    }

    /// Connections were accepted: where the next ones go may have to change.
    pub(super) fn steer(&mut self, now: Instant) {
        self.publish_load();
        self.steering.look(now);
    }

    fn publish_load(&mut self) {
        let held = self.shard.connections() as u64;
        self.steering.publish(ShardLoad { held, taken: self.shard.counters.accepted });
    }

    /// A connection could not be accepted, because descriptors have run out.
    pub(super) fn count_no_files(&mut self) {
        self.shard.counters.refused_files += 1;
    }

    /// Something happened to a socket. Room to write is used at once, whatever else may wait; what
    /// there is to read waits for its turn.
    pub(super) fn handle_event(&mut self, event: Readiness) {
        if event.writable {
            self.flush(event.conn);
        }
        if event.failed && self.shard.is_paused(event.conn) {
            // The peer is gone: it waits for no answer and takes none.
            return self.shard.handle_peer_gone(event.conn, CloseReason::Gone);
        }
        if event.readable && self.shard.handle_readable(event.conn, event.hung_up) {
            // Who is not a client yet has no claim to be read before those who are.
            let is_client = !self.shard.is_handshaking(event.conn);
            self.queue_read(event.conn, if is_client { Line::First } else { Line::Behind });
        }
    }

    /// Reads from connections that wait for it, each one turn, while there is room for what they ask
    /// and the turn is not over. One that turns out to be closed is ended at once: when thousands
    /// close together, that takes most of the time.
    pub(super) fn read_waiting(&mut self) {
        let until = Instant::now() + READ_TURN;
        for _ in 0..self.unread.len().min(READS_MAX) {
            if !self.may_read_on() {
                return;
            }
            let Some(conn) = self.unread.pop() else { return };
            self.read(conn);
            self.check_tokens();
            self.close_all();
            if Instant::now() >= until {
                return;
            }
        }
    }

    /// Takes what the backplane and the operators have sent, unless much waits to be written already;
    /// answers whether there was anything.
    pub(super) fn take_downlink(&mut self) -> bool {
        let now_ms = self.now_ms();
        let mut any = false;
        while self.has_room_for_replies() {
            let Some(item) = self.end.try_recv() else { break };
            any = true;
            match item {
                Downlink::Inspect(question) => {
                    self.shard.inspect(*question, |socket_key| socket::peer(socket_key as RawFd))
                }
                Downlink::Hook(reply) => self.handle_hook(*reply),
                item => {
                    if matches!(item, Downlink::Drain { .. }) {
                        self.draining = true;
                        self.steering.end();
                    }
                    self.shard.handle_downlink(item, now_ms);
                }
            }
        }
        any
    }

    /// A hook has decided.
    fn handle_hook(&mut self, reply: HookReply) {
        let HookReply { conn, verdict } = reply;
        let index = conn.0.index;
        if !self.shard.is_handshaking(conn) || !self.upgrades.is_waiting(index) {
            return self.shard.handle_hook(HookReply { conn, verdict });
        }
        self.shard.end_call(conn);
        if self.draining {
            return self.reject(conn, RejectReason::ConnectionsFull);
        }
        self.in_stage(conn, 0, |upgrades, _, context| {
            upgrades.handle_verdict(index, verdict, context)
        });
    }

    /// Sends the questions of commands that wait for the word of a hook.
    fn send_hook_questions(&mut self) {
        while let Some((conn, question)) = self.shard.poll_hook() {
            let (shard, since) = (self.end.id, Instant::now());
            let place = self.hooks.try_place(question.held_bytes());
            let is_sent = place.is_some_and(|place| {
                self.hooks.send(HookAsk { question, shard, conn, since, place })
            });
            if !is_sent {
                self.shard.counters.hooks_busy += 1;
                self.shard.handle_hook_busy(conn);
            }
        }
    }

    /// Whether the shard may wait for its bell: nothing has come and nothing is left to write.
    pub(super) fn may_sleep(&self) -> bool {
        self.end.may_sleep()
    }

    /// Advances the shard's clock, if a tick has passed since the last time.
    pub(super) fn tick_if_due(&mut self, now: Instant) {
        let now_ms = now.duration_since(self.started).as_millis() as u64;
        if now_ms >= self.last_tick_ms + TICK_MS {
            self.steering.look_if_changed(now);
            self.tick(now_ms);
        }
    }

    fn tick(&mut self, now_ms: u64) {
        self.last_tick_ms = now_ms;
        if let Some(plan) = self.reloads.changed() {
            self.reload(plan, now_ms);
        }
        self.tick_keys(now_ms);
        self.take_revocations();
        self.shard.handle_timeout(now_ms);
        while let Some(conn) = self.shard.poll_timed_out() {
            match self.upgrades.timed_out(conn.0.index, &self.routes, now_ms) {
                TimedOut::NotYet { deadline_ms } => {
                    self.shard.handle_not_late(conn, deadline_ms, now_ms);
                }
                TimedOut::Reject(reason) => self.reject(conn, reason),
                TimedOut::Close(encoding, reason) => {
                    let refusal = first_message::refuse(encoding, reason, Bytes::new(), None);
                    self.refuse(conn, refusal);
                }
                TimedOut::End => self.end_served(conn),
            }
        }
        self.shard.measure();
        let (upgrade_bytes, calls) = (self.upgrades.held_bytes(), self.upgrades.calls());
        let hooked = self.upgrades.waiting() + self.shard.hooked();
        let key_waiting = self.upgrades.key_waits() + self.key_waits.tokens();
        let counters = &mut self.shard.counters;
        counters.handshake_bytes = upgrade_bytes as u64;
        counters.http_calls = calls as u64;
        counters.hook_waiting = hooked as u64;
        counters.key_waiting = key_waiting as u64;
        counters.address_uncounted = self.addresses.uncounted();
        counters.downlink_waiting = self.end.waiting() as u64;
        counters.uplink_waiting += self.end.sent_waiting() as u64;
        self.mirror.publish(counters);
        self.tick_memory(now_ms);
    }

    /// Takes over keys that were read; and judges those again that wait for them, or have waited for
    /// long enough. What was asked of the provider before a token came does not decide about it.
    fn tick_keys(&mut self, now_ms: u64) {
        let were_read = self.take_keys();
        for waiting in self.key_waits.take_due(were_read || self.draining, now_ms) {
            let attempt = match were_read {
                false => Attempt::InVain,
                true if waiting.readings < self.routes.reading() => Attempt::WithNewKeys,
                true => Attempt::First,
            };
            match waiting.wait {
                KeyWait::Handshake(conn) => self.judge_again(conn, attempt),
                KeyWait::Token(check) => self.check_token(check, attempt),
            }
        }
    }

    /// Takes over keys that were read; answers whether there were any.
    fn take_keys(&mut self) -> bool {
        let keys = self.keys.changed();
        let were_read = keys.is_some();
        keys.into_iter().for_each(|keys| self.routes.set_fetched(keys));
        were_read
    }

    fn judge_again(&mut self, conn: ConnId, attempt: Attempt) {
        let index = conn.0.index;
        if !self.shard.is_handshaking(conn) || !self.upgrades.is_awaiting_keys(index) {
            return;
        }
        self.shard.end_call(conn);
        if self.draining {
            return self.reject(conn, RejectReason::ConnectionsFull);
        }
        self.in_stage(conn, 0, |upgrades, _, context| {
            upgrades.handle_keys(index, attempt, context)
        });
    }

    /// Whether a connection may wait for keys beside the others of its address.
    fn may_await_keys(&self, conn: ConnId) -> bool {
        let address = self.addresses.number_of(conn.0.index);
        self.key_waits.may_handshake(address, |conn| self.is_awaiting_keys(conn))
    }

    /// Likewise a token of an open connection.
    fn may_await(&self, check: &TokenCheck) -> bool {
        self.key_waits.may_wait(check, self.addresses.number_of(check.conn.0.index))
    }

    fn is_awaiting_keys(&self, conn: ConnId) -> bool {
        self.shard.is_handshaking(conn) && self.upgrades.is_awaiting_keys(conn.0.index)
    }

    /// A client waits until the keys were read, and no longer than a handshake may take.
    fn await_keys(&mut self, wait: KeyWait) {
        let until_ms = self.now_ms() + self.routes.plan().limits.handshake_timeout_ms;
        let (KeyWait::Handshake(conn) | KeyWait::Token(TokenCheck { conn, .. })) = &wait;
        let address = self.addresses.number_of(conn.0.index);
        let readings = self.routes.readings_begun();
        let waiting = TimedWait { wait, until_ms, readings, address };
        let (shard, upgrades) = (&self.shard, &self.upgrades);
        self.key_waits.add(waiting, |conn| {
            shard.is_handshaking(conn) && upgrades.is_awaiting_keys(conn.0.index)
        });
    }

    /// Takes over which tokens are revoked, if that is news.
    fn take_revocations(&mut self) {
        if let Some(revocations) = self.revocations.changed() {
            self.routes.set_revocations(revocations.clone());
            self.shard.handle_revocations(revocations);
        }
    }

    /// Adds up what this shard keeps alive. After each visit.
    fn post_memory(&mut self) {
        let held = self.held_bytes(self.end.sent_waiting_bytes_at_most());
        let pressure = self.memory.post(held);
        self.shard.set_pressure(pressure);
    }

    fn held_bytes(&self, sent_bytes: u64) -> u64 {
        let waiting_bytes = self.upgrades.held_bytes() + self.key_waits.held_bytes();
        (self.shard.held_bytes() + waiting_bytes) as u64 + sent_bytes
    }

    /// The same on the tick; and closes those that hold most, where that is too much.
    fn tick_memory(&mut self, now_ms: u64) {
        let held = self.held_bytes(self.end.sent_waiting_bytes());
        let too_much = self.memory.tick(held, now_ms);
        self.shard.set_pressure(self.memory.pressure());
        let Some(too_much) = too_much else { return };
        let holders = self.shard.holders();
        let address_of = |conn| self.peer_of(conn).map(|peer| peer.ip());
        let share = memory::address_share(&holders, address_of);
        self.memory.post_share(share);
        let closed = self.shard.close_largest(&holders, too_much as usize);
        if closed > 0 && tracing::enabled!(tracing::Level::DEBUG) {
            tracing::debug!(closed, too_much, "memory is short: connections closed");
        }
    }

    /// Takes a configuration over that was reloaded.
    fn reload(&mut self, plan: Arc<Plan>, now_ms: u64) {
        let (before, after) = (&self.routes.plan().auth, &plan.auth);
        let tokens_hold = before.hmac_secret.is_none() || before.hmac_secret == after.hmac_secret;
        let [before, anonymous] =
            [before, after].map(|auth| auth.anonymous.then_some(auth.anonymous_rights));
        let admission = AdmissionChange { anonymous, tokens_hold };
        let change = SettingsChange {
            limits: plan.limits,
            namespaces: plan.namespaces.clone(),
            admission: Some(admission).filter(|_| !tokens_hold || before != anonymous),
        };
        self.shard.handle_settings(change, now_ms);
        self.shard.handle_expiry_notice(plan.auth.expiry_notice_s);
        self.handshakes_max = plan.limits.handshakes_max;
        self.addresses.reload(&plan);
        self.routes.reload(plan);
    }

    fn read(&mut self, conn: ConnId) {
        let Some((socket_key, to_the_end)) = self.shard.begin_reading(conn) else { return };
        // Alone, a connection has a long turn; among many, each has a short one.
        let mut turn = ReadTurn::new(!self.unread.is_empty(), self.read_turn_bytes_max);
        if self.go_on(conn).is_paused {
            return;
        }
        let (before, began) = (self.shard.counters.messages_in, Instant::now());
        while self.may_read_on() {
            let requests = self.shard.counters.messages_in - before;
            let used = Used { requests, time: began.elapsed() };
            let Some(at_once) = turn.next(used, self.scratch.len()) else { break };
            match socket::recv(socket_key as RawFd, &mut self.scratch[..at_once]) {
                Ok(0) => return self.handle_eof(conn),
                Ok(n) => {
                    turn.read(n);
                    if self.handle_bytes(conn, n).is_paused {
                        return;
                    }
                    if n < at_once && !to_the_end {
                        return; // What comes later has an edge of its own.
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => return self.shard.handle_peer_gone(conn, CloseReason::Io),
            }
        }
        // There may be more, and no edge comes for it.
        if self.shard.handle_readable(conn, true) {
            self.queue_read(conn, Line::Behind);
        }
    }

    /// A connection waits for its turn.
    fn queue_read(&mut self, conn: ConnId, line: Line) {
        self.unread.push(conn, self.addresses.number_of(conn.0.index), line);
    }

    /// What was read of a connection before it was paused comes first.
    fn go_on(&mut self, conn: ConnId) -> ReadOutcome {
        if !self.upgrades.is_answering(conn.0.index) || !self.shard.is_handshaking(conn) {
            return self.shard.handle_rest(conn);
        }
        self.in_stage(conn, 0, |upgrades, _, context| {
            upgrades.handle_answered(conn.0.index, context)
        })
    }

    fn handle_eof(&mut self, conn: ConnId) {
        if self.shard.is_handshaking(conn) && self.upgrades.is_served(conn.0.index) {
            // Its last answer may still be on its way.
            self.end_served(conn);
        }
        self.shard.handle_eof(conn);
    }

    /// An HTTP exchange is over: the connection ends behind what waits for it.
    fn end_served(&mut self, conn: ConnId) {
        self.upgrades.forget(conn.0.index);
        let now_ms = self.now_ms();
        self.shard.handle_http(conn, Bytes::new(), now_ms);
    }

    fn handle_bytes(&mut self, conn: ConnId, n: usize) -> ReadOutcome {
        if !self.shard.is_handshaking(conn) {
            return self.shard.handle_read(conn, &mut self.scratch[..n]);
        }
        self.in_stage(conn, n, |upgrades, input, context| {
            upgrades.handle_read(conn.0.index, input, context)
        })
    }

    /// Continues the stage of a connection, and carries out its result.
    fn in_stage(
        &mut self,
        conn: ConnId,
        n: usize,
        step: impl FnOnce(&mut Upgrades, &[u8], &StageContext<'_>) -> Progress,
    ) -> ReadOutcome {
        let outcome = ReadOutcome { used_bytes: n, is_paused: false };
        let Some(socket_key) = self.shard.socket_key_of(conn) else { return outcome };
        self.take_revocations();
        let (now_ms, now_unix_s) = (self.now_ms(), unix_s());
        let direct = || socket::peer(socket_key as RawFd);
        let (routes, calls, hooks) = (&self.routes, &self.calls, &self.hooks);
        let context = StageContext { routes, calls, hooks, direct: &direct, now_ms, now_unix_s };
        let progress = step(&mut self.upgrades, &self.scratch[..n], &context);
        let named = match &progress {
            Progress::Open { named, .. }
            | Progress::Call { named, .. }
            | Progress::Ask { named, .. }
            | Progress::AwaitKeys { named } => *named,
            _ => self.upgrades.named(conn.0.index),
        };
        let progress = match self.addresses.begin_named(conn.0.index, named) {
            Ok(()) => progress,
            Err(reason) => Progress::Reject(reason),
        };
        self.carry_out(conn, progress, outcome)
    }

    /// Carries out what has come of a stage.
    fn carry_out(
        &mut self,
        conn: ConnId,
        progress: Progress,
        mut outcome: ReadOutcome,
    ) -> ReadOutcome {
        let now_ms = self.now_ms();
        match progress {
            Progress::More => {}
            Progress::AwaitKeys { .. } => {
                if !self.may_await_keys(conn) {
                    // Refused with what is known: no reading of the keys is waited for.
                    let index = conn.0.index;
                    let ReadOutcome { is_paused, .. } = self.in_stage(conn, 0, |it, _, context| {
                        it.handle_keys(index, Attempt::InVain, context)
                    });
                    return ReadOutcome { is_paused, ..outcome };
                }
                self.await_keys(KeyWait::Handshake(conn));
                outcome.is_paused = true;
                self.shard.begin_call(conn);
            }
            Progress::Interim(response) => self.shard.handle_interim(conn, response),
            Progress::AwaitToken { response, deadline_ms } => {
                self.shard.handle_interim(conn, response);
                self.shard.handle_not_late(conn, Some(deadline_ms), now_ms);
            }
            Progress::Open { opening, named, mut rest, first } => {
                self.open(conn, opening, named, first);
                if !rest.is_empty() {
                    return self.shard.handle_read(conn, &mut rest);
                }
            }
            Progress::Page(response) => {
                self.shard.counters.http_requests += 1;
                self.shard.handle_http(conn, response, now_ms);
            }
            Progress::Call { parts, body, named, place } => {
                if self.memory.pressure() >= Pressure::RefuseRequests {
                    self.reject(conn, RejectReason::Memory);
                    return outcome;
                }
                let (parts, peer) = (*parts, named.or_else(|| self.peer_of(conn)));
                self.shard.counters.http_calls_total += 1;
                self.shard.counters.http_body_bytes += body.len() as u64;
                let call = Call { parts, body, shard: self.end.id, conn, peer, place };
                outcome.is_paused = self.calls.send(call);
                match outcome.is_paused {
                    true => self.shard.begin_call(conn),
                    false => self.reject(conn, RejectReason::CallsFull),
                }
            }
            Progress::Ask { question, place, .. } => {
                let question = HookQuestion::Connect(question);
                let (shard, since) = (self.end.id, Instant::now());
                let ask = HookAsk { question, shard, conn, since, place };
                outcome.is_paused = self.hooks.send(ask);
                match outcome.is_paused {
                    true => self.shard.begin_call(conn),
                    false => self.reject(conn, RejectReason::HooksFull),
                }
            }
            Progress::Reject(reason) => self.reject(conn, reason),
            Progress::Refuse(refusal) => self.refuse(conn, refusal),
            Progress::Gone => self.shard.handle_peer_gone(conn, CloseReason::Gone),
        }
        outcome
    }

    /// A connection has become a WebSocket.
    fn open(
        &mut self,
        conn: ConnId,
        opening: Opening,
        named: Option<SocketAddr>,
        first: Option<AuthRequest>,
    ) {
        let user = opening.identity.user.as_deref();
        let is_good = self.routes.check_revoked(&opening.identity).map_err(RejectReason::Token);
        if let Err(reason) = is_good.and_then(|()| self.addresses.begin_user(conn.0.index, user)) {
            return match first {
                None => self.reject(conn, reason),
                Some(_) => {
                    let (encoding, before) = (opening.encoding, opening.response);
                    self.refuse(conn, first_message::refuse(encoding, reason, before, None));
                }
            };
        }
        let expires_unix_s = opening.identity.expires_unix_s;
        if let Some(named) = named {
            self.shard.handle_named_peer(conn, named);
        }
        let took_ms = self.shard.handshake_ms(conn, self.now_ms());
        let handshake_time = &mut self.shard.counters.handshake_time;
        handshake_time.record(Duration::from_millis(took_ms));
        self.addresses.end_handshake(conn.0.index);
        self.shard.handle_open(conn, opening);
        if let Some(expires_unix_s) = expires_unix_s {
            let left_ms = 1000 * expires_unix_s.saturating_sub(unix_s());
            self.shard.handle_expiry(conn, self.now_ms() + left_ms);
        }
        if let Some(AuthRequest { id: Some(id), .. }) = first {
            self.shard.handle_first_request(conn, &id);
        }
        if tracing::enabled!(tracing::Level::DEBUG) {
            let (connection, peer) = (self.shard.origin(conn), self.peer_of(conn));
            let peer = peer.map_or_else(|| "gone".to_owned(), |peer| peer.to_string());
            tracing::debug!(%connection, peer, "connection opened");
        }
    }

    /// A connection does not become a WebSocket: it is answered with the reason, and ends.
    fn reject(&mut self, conn: ConnId, reason: RejectReason) {
        self.refuse(conn, HandshakeRefusal { reason, response: reason.response(), user: None });
    }

    fn refuse(&mut self, conn: ConnId, refusal: HandshakeRefusal) {
        let HandshakeRefusal { reason, response, user } = refusal;
        self.count_rejected(reason);
        if tracing::enabled!(tracing::Level::DEBUG) {
            let peer = self.peer_of(conn).map(|peer| peer.to_string());
            tracing::debug!(peer, user, ?reason, "connection refused");
        }
        self.upgrades.forget(conn.0.index);
        let now_ms = self.now_ms();
        self.shard.handle_http(conn, response, now_ms);
    }

    /// Writes what waits for a slow client, as far as its socket takes it.
    fn flush(&mut self, conn: ConnId) {
        let Some(socket_key) = self.shard.socket_key_of(conn) else { return };
        loop {
            let mut slices = self.shard.outbox_slices(conn, OUTBOX_SLICES_MAX).peekable();
            if slices.peek().is_none() {
                return;
            }
            match socket::send_slices(socket_key as RawFd, slices) {
                Ok(taken) => self.shard.handle_flushed(conn, taken),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => return self.shard.handle_peer_gone(conn, CloseReason::Io),
            }
        }
    }

    /// Carries out what the shard is polled for: see the order in `shard/mod.rs`.
    fn drain(&mut self, now: Instant) {
        self.check_tokens();
        self.send_hook_questions();
        self.drain_uplink(now);
        // Before a client is greeted: it must not miss a broadcast that was published after that.
        self.publish_receivers();
        // What has come by now leaves in the same writes.
        self.take_downlink();
        self.send_hook_questions();
        self.shard.take_batch(&mut self.batch);
        if !self.batch.is_empty() {
            self.write_batch();
        }
        self.close_all();
        self.publish_load();
        // A close found while writing may have emptied a topic.
        self.drain_uplink(now);
        self.queue_resumed();
        if self.must_ring
            && let Some(ring_waker) = self.ring_waker.take()
        {
            ring_waker.wake();
        }
        if self.shard.has_sends()
            && let Some(writer) = self.writer.take()
        {
            writer.wake();
        }
        if self.may_read()
            && self.has_unread()
            && let Some(reader) = self.reader.take()
        {
            reader.wake();
        }
    }

    /// Checks tokens that open connections have sent: of each connection one in its turn, and it has
    /// its next turn behind the others. Where a service has judged who a client is, its token alone
    /// changes nothing: it would bring back what the service has not allowed.
    fn check_tokens(&mut self) {
        while let Some(check) = self.shard.poll_token_check() {
            self.check_token(check, Attempt::First);
        }
    }

    fn check_token(&mut self, check: TokenCheck, attempt: Attempt) {
        let verdict = match self.token_verdict(&check, attempt) {
            Ok(verdict) => verdict,
            Err(UNKNOWN_KEY) if attempt == Attempt::First && self.may_await(&check) => {
                return self.await_keys(KeyWait::Token(check));
            }
            Err(why) => TokenVerdict::Refused(why.rejection().text),
        };
        self.shard.handle_token(check.conn, verdict);
    }

    /// What a token of an open connection is worth now.
    fn token_verdict(
        &self,
        check: &TokenCheck,
        attempt: Attempt,
    ) -> Result<TokenVerdict, RejectReason> {
        let TokenCheck { is_for_room, token, .. } = check;
        let (now_ms, now_s) = (self.now_ms(), unix_s());
        let at_ms =
            |expires: Option<u64>| expires.map(|at_s| now_ms + 1000 * at_s.saturating_sub(now_s));
        let is_judged = self.routes.plan().hooks.connect_url.is_some();
        Ok(match is_for_room {
            false if is_judged => TokenVerdict::Refused(
                "this server asks a service about each connection: connect with the new token",
            ),
            false => {
                let identity = self.routes.admit(Some(token), attempt, now_s)?;
                let expires_at_ms = at_ms(identity.expires_unix_s);
                TokenVerdict::User { identity, expires_at_ms }
            }
            true => {
                let admission = self.routes.admit_to_room(token, attempt, now_s)?;
                let expires_at_ms = at_ms(admission.expires_unix_s);
                TokenVerdict::Room { admission, expires_at_ms }
            }
        })
    }

    /// Queues connections that were paused and are to be read again.
    fn queue_resumed(&mut self) {
        while let Some(conn) = self.shard.poll_resumed() {
            self.queue_read(conn, Line::Behind);
        }
    }

    /// Publishes how many connections a broadcast is for, if that has changed.
    fn publish_receivers(&mut self) {
        for encoding in Encoding::ALL {
            let open = self.shard.broadcast_receivers(encoding);
            let published = &mut self.published_receivers[encoding.place()];
            if *published != open {
                *published = open;
                self.end.connections.set(encoding, open);
            }
        }
    }

    fn drain_uplink(&mut self, now: Instant) {
        let mut urgent = false;
        while let Some(item) = self.shard.poll_uplink() {
            urgent |= matches!(item, Uplink::Publish(_));
            if let Err(item) = self.end.try_send(item) {
                self.shard.return_uplink(item);
                urgent = true;
                break;
            }
            self.must_ring = true;
        }
        if self.must_ring && (urgent || now >= self.rung + RING_INTERVAL) {
            self.ring(now);
        }
    }

    /// Wakes the backplane, if it sleeps and there is something for it.
    pub(super) fn ring(&mut self, now: Instant) {
        if std::mem::take(&mut self.must_ring) {
            self.rung = now;
            self.end.ring();
        }
    }

    /// Whether the backplane's bell has yet to be rung for items in the window.
    pub(super) fn must_ring(&self) -> bool {
        self.must_ring
    }

    fn write_batch(&mut self) {
        let sent = self.sender.send(&self.batch, &mut self.short_writes);
        sent.expect("an open ring takes writes");
        let mut short_writes = std::mem::take(&mut self.short_writes);
        for short in short_writes.drain(..) {
            let op = self.batch.ops()[short.op];
            match short.taken {
                Ok(taken) => {
                    self.shard.handle_short_write(&self.batch, &op, taken);
                    self.watch_room(op.socket_key, op.conn);
                }
                Err(_) => self.shard.handle_write_error(op.conn),
            }
        }
        self.short_writes = short_writes;
        self.batch.finish();
    }

    /// From now on this socket's room to write is news. Of most it never is, so it is not asked for
    /// when they come: that would be an event for each.
    fn watch_room(&mut self, socket_key: u32, conn: ConnId) {
        if self.epoll.watch_room(socket_key as RawFd, conn).is_err() {
            self.shard.handle_peer_gone(conn, CloseReason::Io);
        }
    }

    fn close_all(&mut self) {
        while let Some(closed) = self.shard.poll_closed() {
            self.close(closed);
        }
    }

    fn close(&mut self, closed: ClosedSocket) {
        match closed {
            ClosedSocket::Half { socket_key } => socket::shutdown_write(socket_key as RawFd),
            ClosedSocket::Whole { socket_key, conn, reason } => {
                socket::close(socket_key as RawFd);
                self.addresses.end(conn.0.index);
                let left_at = self.upgrades.forget(conn.0.index);
                let connection = self.shard.origin(conn);
                match (reason, left_at) {
                    (Some(reason), _) => {
                        let reason = reason.label();
                        tracing::debug!(%connection, reason, "connection ended");
                    }
                    // A health check: a line for each would fill the log.
                    (None, LeftAt::Nothing) => self.shard.counters.probes += 1,
                    (None, LeftAt::Served) => {}
                    (None, LeftAt::Halfway) => {
                        self.shard.counters.refused_gone += 1;
                        tracing::debug!(%connection, reason = "gone", "connection ended");
                    }
                }
            }
        }
    }

    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }
}

fn unix_s() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.expect("the clock is past 1970").as_secs()
}
