//! How connections begin and end, and the one sweep that finds the silent.
//!
//! Closing: `begin_close` leaves all topics at once and queues the close frame, nothing more. The
//! connection ends when both sides have sent their close frame, or its deadline passes, or the socket
//! fails; it is freed in one place, [`Shard::poll_closed`], never while a caller still uses it.
//!
//! Deadlines of one kind all have the same length, so a queue in the order of their arrival is
//! sorted: no timer per connection. The sweep walks a slice of the slab on each tick, so that every
//! connection is visited once per ping interval and no moment carries more than its share.

use crate::framing;
use crate::ids::{ConnId, TopicName};
use crate::link::HttpReply;
use crate::protocol::Event;
use crate::shard::conn::{CloseReason, Conn, ConnState, OPENED_UNIT_MS, ReadState};
use crate::shard::memory::half_bytes;
use crate::shard::state::Shard;
use crate::shard::state::deliveries::Follows;
use crate::shard::state::lifecycle::{ClosedSocket, DEADLINES_SPARE, Drain, Opening};
use crate::ws::close::CloseCode;
use crate::ws::encode;
use bytes::Bytes;
use std::collections::VecDeque;
use std::net::SocketAddr;

/// Longest time over which clients are asked to spread their return after a drain.
const RECONNECT_SPREAD_MS: u64 = 5_000;

/// The sweep goes by slices of the slab: each takes one place of every block of 256. When a place is
/// visited depends on its number alone, so a crowd that connects at once shortens no interval.
/// Slices follow each other in bit-reversed order, which spreads a small slab evenly too. Which place
/// of a block a slice takes differs from block to block ([`tilt`]): those who leave may follow a
/// pattern, such as every other one, and the rest must not all be of the same slices.
const SLICES: u64 = 256;

impl Shard {
    /// A socket was accepted. `None`: there are as many connections as there may be, or this node
    /// is ending; the caller refuses it.
    pub fn handle_accept(&mut self, socket_key: u32, now_ms: u64) -> Option<ConnId> {
        let handshaking = self.counters.handshaking as usize;
        if self.life.drain.is_some() || handshaking >= self.limits.handshakes_max {
            return None;
        }
        let accepted = Conn { since: now_ms as u32, ..Conn::new(socket_key) };
        let conn = ConnId(self.conns.insert(accepted).ok()?);
        self.counters.accepted += 1;
        self.counters.handshaking += 1;
        // Past its handshake, a connection's deadline for it means nothing.
        forget_settled(&mut self.life.handshakes, handshaking, |conn| {
            self.conns.get(conn.0).is_some_and(|c| c.state == ConnState::Handshaking)
        });
        self.look_at(conn, now_ms + self.limits.handshake_timeout_ms);
        Some(conn)
    }

    /// The handshake succeeded: the connection is a WebSocket from here on.
    pub fn handle_open(&mut self, conn: ConnId, opening: Opening) {
        let Some(c) = self.conns.get_mut(conn.0) else { return };
        assert_eq!(c.state, ConnState::Handshaking);
        c.state = ConnState::Open;
        c.since = (self.life.now_ms / OPENED_UNIT_MS) as u32;
        c.encoding = opening.encoding;
        let user = opening.identity.user.clone();
        self.take_identity(conn, opening.identity);
        self.counters.handshaking -= 1;
        self.count_open(opening.encoding, true);
        self.counters.opened += 1;
        self.queue_reply(conn, opening.response, Follows::More);
        if opening.encoding.dialect().has_topics() {
            self.welcome(conn, user.as_deref(), &opening.rooms);
        }
    }

    /// How long ago a connection was accepted that is still handshaking, in milliseconds.
    pub fn handshake_ms(&self, conn: ConnId, now_ms: u64) -> u64 {
        let accepted_ms = self.conns.get(conn.0).map_or(now_ms as u32, |c| c.since);
        u64::from((now_ms as u32).wrapping_sub(accepted_ms))
    }

    /// A proxy has named the client of a connection.
    pub fn handle_named_peer(&mut self, conn: ConnId, peer: SocketAddr) {
        if self.conns.get(conn.0).is_some() {
            self.named_peers.insert(conn.0.index, peer);
        }
    }

    /// The client's address where a proxy has named it. `None`: the socket's peer is the client.
    pub fn named_peer(&self, conn: ConnId) -> Option<SocketAddr> {
        self.conns.get(conn.0)?;
        self.named_peers.get(conn.0.index)
    }

    /// The handshake failed: `response` is a complete HTTP answer, then the connection ends.
    pub fn handle_http(&mut self, conn: ConnId, response: Bytes, now_ms: u64) {
        let Some(c) = self.conns.get_mut(conn.0) else { return };
        assert_eq!(c.state, ConnState::Handshaking);
        c.state =
            ConnState::Closing { peer_closed: false, ignore_input: true, close_queued: false };
        c.reason = Some(CloseReason::Http);
        self.counters.handshaking -= 1;
        self.counters.closing += 1;
        self.expect_end(conn, now_ms);
        self.queue_reply(conn, response, Follows::Nothing);
    }

    /// Part of an HTTP exchange that goes on: the connection stays in its handshake.
    pub fn handle_interim(&mut self, conn: ConnId, response: Bytes) {
        if self.is_handshaking(conn) {
            self.queue_reply(conn, response, Follows::More);
        }
    }

    /// A connection that [`Shard::poll_timed_out`] named is not late after all: it is named again
    /// at `deadline_ms`; `None`: after another `handshake_timeout_ms`.
    pub fn handle_not_late(&mut self, conn: ConnId, deadline_ms: Option<u64>, now_ms: u64) {
        if self.is_handshaking(conn) {
            let usual_ms = now_ms + self.limits.handshake_timeout_ms;
            self.look_at(conn, deadline_ms.unwrap_or(usual_ms));
        }
    }

    /// Sees at `deadline_ms` whether a connection is still in its handshake. Nearly all deadlines
    /// come in order; only bodies have longer ones.
    fn look_at(&mut self, conn: ConnId, deadline_ms: u64) {
        let queue = &mut self.life.handshakes;
        let longer = queue.iter().rev().take_while(|(later_ms, _)| *later_ms > deadline_ms).count();
        queue.insert(queue.len() - longer, (deadline_ms, conn));
    }

    /// The ops thread has answered a request.
    pub(super) fn on_http_reply(&mut self, reply: HttpReply) {
        let HttpReply { conn, response, is_last } = reply;
        if !self.is_handshaking(conn) {
            return;
        }
        if !is_last && self.life.drain.is_none() {
            return self.queue_reply(conn, response, Follows::Question);
        }
        self.handle_http(conn, response, self.life.now_ms);
        self.forget_questions(conn);
        self.resume(conn); // The peer's end is waited for.
    }

    /// A socket has something to read, or its end. A sign of life, whenever it will be read.
    /// Answers whether the caller must queue the connection: it stands in its queue at most once.
    #[must_use]
    pub fn handle_readable(&mut self, conn: ConnId, to_the_end: bool) -> bool {
        let Some(c) = self.conns.get_mut(conn.0) else { return false };
        c.is_active = true;
        if c.unread == ReadState::Paused {
            return false; // Resumed, it is read to the end.
        }
        let is_new = c.unread == ReadState::Idle;
        c.unread = if is_new && !to_the_end { ReadState::Queued } else { ReadState::ToTheEnd };
        is_new
    }

    /// The caller has taken the connection from its queue and reads it now. Answers its socket, and
    /// whether it must be read until nothing is left. `None`: it has gone.
    pub fn begin_reading(&mut self, conn: ConnId) -> Option<(u32, bool)> {
        let c = self.conns.get_mut(conn.0)?;
        let unread = std::mem::replace(&mut c.unread, ReadState::Idle);
        Some((c.socket_key, unread == ReadState::ToTheEnd))
    }

    /// The peer has closed its sending half and may still read. What it has sent was carried out; what
    /// waits for it is written, within `close_timeout_ms`, and then the socket ends.
    ///
    /// 1. It has sent its close frame, or answers ours no more: the connection ends when our last byte
    ///    has left, the answer to a close frame included (RFC 6455 §5.5.1).
    /// 2. It is open, or its HTTP answer is on its way: likewise, without a close frame.
    /// 3. Its request is not whole: nothing can be answered.
    pub fn handle_eof(&mut self, conn: ConnId) {
        let has_replies = self.has_sends();
        let Some(c) = self.conns.get_mut(conn.0) else { return };
        match &mut c.state {
            ConnState::Closing { peer_closed, .. } => {
                *peer_closed = true;
                self.consider_leaving(conn);
            }
            ConnState::Open if has_replies || c.outbox.is_some() => self.end_behind_replies(conn),
            ConnState::Open | ConnState::Handshaking => {
                self.handle_peer_gone(conn, CloseReason::Gone)
            }
        }
    }

    /// Ends a connection whose peer has closed its half, behind what waits for it.
    fn end_behind_replies(&mut self, conn: ConnId) {
        let c = self.conns.get_mut(conn.0).expect("its end was just read");
        c.state = ConnState::Closing { peer_closed: true, ignore_input: true, close_queued: false };
        c.reason = Some(CloseReason::Gone);
        self.half_bytes -= half_bytes(c.decoder.take().as_deref());
        let encoding = c.encoding;
        self.count_open(encoding, false);
        self.counters.closing += 1;
        self.leave_all(conn);
        self.expect_end(conn, self.life.now_ms);
        self.queue_reply(conn, Bytes::new(), Follows::Nothing);
    }

    /// The socket failed, or its peer has reset it.
    pub fn handle_peer_gone(&mut self, conn: ConnId, reason: CloseReason) {
        let Some(c) = self.conns.get_mut(conn.0) else { return };
        c.reason.get_or_insert(reason);
        if c.is_open() {
            // The same visit may still bring bytes of it: they are ignored.
            c.state =
                ConnState::Closing { peer_closed: true, ignore_input: true, close_queued: false };
            let encoding = c.encoding;
            self.count_open(encoding, false);
            self.counters.closing += 1;
        }
        self.leave_all(conn);
        self.life.ended.push_back(conn);
    }

    /// A write failed: the connection's socket is dead.
    pub fn handle_write_error(&mut self, conn: ConnId) {
        self.handle_peer_gone(conn, CloseReason::Io);
    }

    /// Time passes. On a tick of any length; the shorter, the more evenly pings are spread.
    pub fn handle_timeout(&mut self, now_ms: u64) {
        self.life.now_ms = now_ms;
        let mut later = Vec::new();
        while let Some(conn) = due(&mut self.life.handshakes, now_ms) {
            let Some(c) = self.conns.get(conn.0) else { continue };
            if c.state != ConnState::Handshaking {
                continue;
            }
            match c.unread {
                ReadState::Idle => {
                    self.life.timed_out.push_back(conn);
                    continue;
                }
                // Its answer is on its way to it, and it takes nothing of that.
                ReadState::Paused if !self.waits_for_us(conn) && !c.is_active => {
                    self.life.ended.push_back(conn);
                    continue;
                }
                // It has sent bytes that are not read yet, or a question that is not answered: that
                // is not its fault.
                ReadState::Queued | ReadState::ToTheEnd | ReadState::Paused => {}
            }
            self.conns.get_mut(conn.0).expect("it was looked at").is_active = false;
            later.push(conn);
        }
        later.into_iter().for_each(|conn| {
            self.look_at(conn, now_ms + self.limits.handshake_timeout_ms);
        });
        while let Some(conn) = due(&mut self.life.closings, now_ms) {
            self.life.ended.push_back(conn);
        }
        self.look_at_rates();
        self.look_at_room_rates();
        self.close_expired(now_ms);
        self.notify_expiring(now_ms);
        self.end_room_tokens(now_ms);
        self.close_not_admitted();
        self.close_revoked();
        self.close_disconnected();
        self.sweep(now_ms);
        self.drain(now_ms);
        self.acks.look(now_ms);
    }

    /// A connection whose HTTP request did not come in time: the caller counts and answers it
    /// ([`Shard::handle_http`]).
    pub fn poll_timed_out(&mut self) -> Option<ConnId> {
        self.life.timed_out.pop_front()
    }

    /// The next socket whose time has come. The only place where connections are freed.
    pub fn poll_closed(&mut self) -> Option<ClosedSocket> {
        while let Some(conn) = self.life.ended.pop_front() {
            if let Some(closed) = self.free(conn) {
                return Some(closed);
            }
        }
        while let Some(conn) = self.life.leaving.pop_front() {
            let Some(c) = self.conns.get_mut(conn.0) else { continue };
            if c.outbox.is_some() {
                continue; // It comes again when the outbox is empty.
            }
            let socket_key = c.socket_key;
            match c.state {
                ConnState::Closing { peer_closed: true, .. } => {
                    return self.free(conn);
                }
                ConnState::Closing { ignore_input: true, .. } => {
                    return Some(ClosedSocket::Half { socket_key });
                }
                _ => {}
            }
        }
        None
    }

    /// Whether this shard has ended: drained, without connections, and with an empty uplink.
    pub fn is_drained(&self) -> bool {
        self.life.drain.is_some() && self.conns.is_empty() && self.uplink.is_empty()
    }

    /// Begins the end of an open connection, from our side or as an answer. It is out of every
    /// topic at once; its close frame is the last thing it receives.
    pub(super) fn begin_close(&mut self, conn: ConnId, reason: CloseReason) {
        let Some(c) = self.conns.get(conn.0) else { return };
        let (code, text) = reason.close(c.encoding.dialect()).unzip();
        self.begin_close_with(conn, reason, code, text.unwrap_or(""));
    }

    pub(super) fn begin_close_with(
        &mut self,
        conn: ConnId,
        reason: CloseReason,
        code: Option<CloseCode>,
        text: &str,
    ) {
        let Some(c) = self.conns.get_mut(conn.0) else { return };
        if !c.is_open() {
            return;
        }
        let peer_closed = reason == CloseReason::Client;
        let ignore_input = matches!(reason, CloseReason::Protocol(_));
        c.state = ConnState::Closing { peer_closed, ignore_input, close_queued: false };
        c.reason = Some(reason);
        if peer_closed || ignore_input {
            // Otherwise the peer's close frame is waited for, and it may stand in the middle of a
            // message.
            self.half_bytes -= half_bytes(c.decoder.take().as_deref());
        }
        if let Some(outbox) = c.outbox.as_mut().filter(|_| reason.is_of_a_slow_peer()) {
            let before = outbox.bytes();
            outbox.keep_first();
            self.counters.outbox_bytes -= (before - outbox.bytes()) as u64;
        }
        let encoding = self.encoding_of(conn);
        self.count_open(encoding, false);
        self.counters.closing += 1;
        self.leave_all(conn);
        self.resume(conn); // The peer's close frame is waited for.
        self.expect_end(conn, self.life.now_ms);
        self.queue_reply(conn, encode::close(code, text), Follows::Nothing);
    }

    /// A closing connection ends by itself or at its deadline.
    fn expect_end(&mut self, conn: ConnId, now_ms: u64) {
        let closing = self.counters.closing as usize;
        forget_settled(&mut self.life.closings, closing, |conn| self.conns.get(conn.0).is_some());
        self.life.closings.push_back((now_ms + self.limits.close_timeout_ms, conn));
    }

    /// The peer sent a close frame.
    ///
    /// 1. It was first: it gets ours with its own code, or with none if it gave none (RFC 6455
    ///    §5.5.1, §7.1.5), then the connection ends.
    /// 2. We were first: when our last byte has left, the connection ends.
    pub(super) fn on_peer_close(&mut self, conn: ConnId, code: Option<CloseCode>) {
        let Some(c) = self.conns.get_mut(conn.0) else { return };
        if let ConnState::Closing { peer_closed, .. } = &mut c.state {
            *peer_closed = true;
            self.consider_leaving(conn);
        } else {
            self.begin_close_with(conn, CloseReason::Client, code, "");
        }
    }

    /// If our last byte has left and nothing more is expected, the connection may go.
    pub(super) fn consider_leaving(&mut self, conn: ConnId) {
        let Some(c) = self.conns.get(conn.0) else { return };
        if let ConnState::Closing { peer_closed, ignore_input, close_queued: true } = c.state
            && (peer_closed || ignore_input)
            && c.outbox.is_none()
        {
            self.life.leaving.push_back(conn);
        }
    }

    fn welcome(&mut self, conn: ConnId, user: Option<&str>, rooms: &[String]) {
        let connection_id = self.origin(conn).to_string();
        let anonymous;
        let user_id = match user {
            Some(user) => user,
            None => {
                anonymous = self.config.anonymous_secret.name(&connection_id);
                &anonymous
            }
        };
        let node = std::mem::take(&mut self.config.node_name);
        let ping_interval_s = self.limits.ping_interval_ms.div_ceil(1000);
        let (connection_id, node_name) = (&connection_id[..], &node[..]);
        let welcome = Event::Welcome { connection_id, user_id, node: node_name, ping_interval_s };
        self.say(conn, &welcome);
        self.config.node_name = node;
        let topic = TopicName::user(user_id);
        let has_queue = user.is_some() && self.config.namespaces.policy(topic.kind()).has_history();
        let is_in = match has_queue {
            true => self.open_queue(conn, topic),
            false => self.enter(conn, &topic).is_some(),
        };
        if !is_in {
            return self.begin_close(conn, CloseReason::Overloaded);
        }
        for room in rooms {
            self.on_join_room(conn, room);
        }
    }

    fn leave_all(&mut self, conn: ConnId) {
        self.pendings.forget(conn);
        self.forget_questions(conn);
        while let Some(slots) = self.conns.get(conn.0).map(|c| c.joined.len()).filter(|n| *n > 0) {
            if slots > 1 || self.queues.user_of(conn).is_some() {
                self.counters.leaves += 1;
            }
            self.leave_at(conn, slots - 1);
        }
        self.queues.forget(conn);
        self.room_tokens.forget(conn);
        self.token_checks.take(conn);
    }

    /// Frees a connection, counts why it ended, and answers its socket.
    fn free(&mut self, conn: ConnId) -> Option<ClosedSocket> {
        self.leave_all(conn);
        self.forget_pause(conn);
        self.forget_usage(conn);
        let c = self.conns.remove(conn.0)?;
        self.expiries.remove(conn.0.index);
        self.half_bytes -= half_bytes(c.decoder.as_deref());
        self.memory_paused.remove(&conn);
        if let Some(outbox) = &c.outbox {
            self.counters.outbox_bytes -= outbox.bytes() as u64;
        }
        match c.state {
            ConnState::Handshaking => self.counters.handshaking -= 1,
            ConnState::Open => self.count_open(c.encoding, false),
            ConnState::Closing { .. } => self.counters.closing -= 1,
        }
        self.named_peers.remove(conn.0.index);
        self.grants.remove(conn.0.index);
        self.user_infos.remove(&conn.0.index);
        self.token_marks.remove(conn.0.index);
        let reason = match c.state {
            ConnState::Handshaking => None,
            _ => Some(c.reason.unwrap_or(CloseReason::Gone)),
        };
        if let Some(reason) = reason {
            self.count_close(reason);
        }
        Some(ClosedSocket::Whole { socket_key: c.socket_key, conn, reason })
    }

    fn count_close(&mut self, reason: CloseReason) {
        let counters = &mut self.counters;
        *match reason {
            CloseReason::Client => &mut counters.closed_normal,
            CloseReason::Gone => &mut counters.closed_gone,
            CloseReason::Io => &mut counters.closed_error,
            CloseReason::Protocol(error) => {
                if error.close_code() == crate::ws::close::CloseCode::TOO_BIG {
                    &mut counters.closed_too_big
                } else {
                    &mut counters.closed_protocol
                }
            }
            CloseReason::Unsupported => &mut counters.closed_unsupported,
            CloseReason::Slow => &mut counters.closed_slow,
            CloseReason::Stalled => &mut counters.closed_stalled,
            CloseReason::Silent => &mut counters.closed_silent,
            CloseReason::Drain => &mut counters.closed_drain,
            CloseReason::TokenExpired => &mut counters.closed_token_expired,
            CloseReason::TokenRevoked => &mut counters.closed_token_revoked,
            CloseReason::NotAdmitted => &mut counters.closed_not_admitted,
            CloseReason::Lost => &mut counters.closed_lost,
            CloseReason::Disconnected => &mut counters.closed_disconnected,
            CloseReason::Overloaded => &mut counters.closed_overloaded,
            CloseReason::Memory => &mut counters.closed_memory,
            CloseReason::RateLimited => &mut counters.closed_rate_limited,
            CloseReason::Http => return,
        } += 1;
    }

    /// Visits the slices that are due: a connection that has sent nothing since the last visit ends,
    /// all others are pinged.
    fn sweep(&mut self, now_ms: u64) {
        let interval_ms = self.limits.ping_interval_ms.max(1);
        let sweep = &mut self.life.sweep;
        let due_ms = sweep.began_ms + sweep.at * interval_ms / SLICES;
        // A machine that was suspended must not be asked twice before it could answer once: what
        // exceeds a quarter of an interval did not pass.
        sweep.began_ms += now_ms.saturating_sub(due_ms + interval_ms / 4);
        let due = now_ms.saturating_sub(sweep.began_ms) * SLICES / interval_ms;
        let slices = sweep.at..due + 1;
        sweep.at = sweep.at.max(due + 1);
        for slice in slices {
            let place = (slice as u8).reverse_bits();
            for block in 0..self.conns.capacity_used().div_ceil(SLICES as usize) as u32 {
                self.visit(block * SLICES as u32 + u32::from(place ^ tilt(block)));
            }
        }
    }

    fn visit(&mut self, index: u32) {
        let Some(id) = self.conns.id_at(index).map(ConnId) else { return };
        let conn = self.conns.at_mut(index).expect("it has an id");
        if !conn.is_open() {
            return;
        }
        let (is_active, encoding) = (std::mem::take(&mut conn.is_active), conn.encoding);
        // What waits to be read may be the answer, or stand before it: that is not its fault.
        let may_be_unread = match conn.unread {
            ReadState::Idle => false,
            ReadState::Queued | ReadState::ToTheEnd => true,
            ReadState::Paused => {
                self.waits_for_us(id) || self.is_rate_limited(id) || self.is_paused_for_memory(id)
            }
        };
        if !is_active && !may_be_unread {
            return self.begin_close(id, CloseReason::Silent);
        }
        if self.is_stalled(index) {
            return self.begin_close(id, CloseReason::Stalled);
        }
        self.counters.pings += 1;
        self.queue_reply(id, framing::heartbeat(encoding), Follows::More);
    }

    /// Whether its peer takes nothing, even if it answers pings: what waits for it is memory.
    fn is_stalled(&mut self, index: u32) -> bool {
        let now_ms = self.life.now_ms;
        let outbox = self.conns.at_mut(index).and_then(|conn| conn.outbox.as_mut());
        outbox.is_some_and(|outbox| outbox.stalled_ms(now_ms) >= self.limits.stall_timeout_ms)
    }

    pub(super) fn begin_drain(&mut self, over_ms: u64, now_ms: u64) {
        if self.life.drain.is_none() {
            self.life.drain = Some(Drain { began_ms: now_ms, over_ms, at: 0 });
            self.drain(now_ms);
        }
    }

    /// Closes the share of connections that is due; each close frame says when to reconnect.
    fn drain(&mut self, now_ms: u64) {
        let high = self.conns.capacity_used();
        let Some(drain) = &mut self.life.drain else { return };
        let passed_ms = now_ms.saturating_sub(drain.began_ms);
        let share = (high as u64 * passed_ms).checked_div(drain.over_ms).unwrap_or(high as u64);
        let from = drain.at;
        let to = share.min(high as u64) as usize;
        drain.at = drain.at.max(to);
        for index in from..to {
            if let Some(id) = self.conns.id_at(index as u32) {
                self.send_away(ConnId(id));
            }
        }
    }

    fn send_away(&mut self, conn: ConnId) {
        let Some(c) = self.conns.get(conn.0) else { return };
        match c.state {
            // Its request was carried out, perhaps: it ends with the answer.
            ConnState::Handshaking if c.unread == ReadState::Paused => {}
            ConnState::Handshaking => self.life.ended.push_back(conn),
            ConnState::Closing { .. } => {}
            ConnState::Open => {
                if c.encoding.dialect().has_topics() {
                    // Spread by the connection's place: neighbours do not come back together.
                    let after_ms =
                        u64::from(conn.0.index).wrapping_mul(2_654_435_761) % RECONNECT_SPREAD_MS;
                    self.say(conn, &Event::Reconnect { after_ms });
                }
                self.begin_close(conn, CloseReason::Drain);
            }
        }
    }
}

/// By how much the places of a block are exchanged: 0 for the first, spread evenly over the rest
/// (multiples of the golden ratio). Exchanged by exclusive or, so that the first places of a block,
/// which are the ones taken when it is not full, stay spread evenly over the slices.
fn tilt(block: u32) -> u8 {
    (block.wrapping_mul(0x9E37_79B1) >> 24) as u8
}

fn due(queue: &mut VecDeque<(u64, ConnId)>, now_ms: u64) -> Option<ConnId> {
    let (deadline_ms, conn) = *queue.front()?;
    if deadline_ms > now_ms {
        return None;
    }
    queue.pop_front();
    Some(conn)
}

/// Drops the deadlines of what has happened already, once they are more than half: a queue grows
/// with those who wait, not with how fast they come and go.
fn forget_settled(
    queue: &mut VecDeque<(u64, ConnId)>,
    live: usize,
    is_live: impl Fn(ConnId) -> bool,
) {
    if queue.len() > 2 * live + DEADLINES_SPARE {
        queue.retain(|(_, conn)| is_live(*conn));
    }
}

#[cfg(test)]
mod tests {
    use super::super::ShardConfig;
    use super::*;
    use crate::auth::{AnonymousSecret, Identity};
    use crate::ids::{NodeId, ShardId};
    use crate::policy::limits::Limits;
    use crate::protocol::dialect::Encoding;

    fn shard() -> Shard {
        let (id, node) = (ShardId(0), NodeId(1));
        Shard::new(ShardConfig {
            id,
            node,
            node_name: "n".into(),
            limits: Limits::TINY,
            namespaces: Default::default(),
            anonymous_secret: AnonymousSecret::new([0; 16]),
        })
    }

    #[test]
    fn who_waits_to_be_read_stands_in_the_line_once_and_loses_no_edge() {
        let mut shard = shard();
        let conn = shard.handle_accept(7, 0).unwrap();
        assert!(shard.handle_readable(conn, false), "the first edge queues");
        assert_eq!(shard.begin_reading(conn), Some((7, false)));
        assert!(shard.handle_readable(conn, false));
        assert!(!shard.handle_readable(conn, false), "the second does not queue again");
        assert_eq!(shard.begin_reading(conn), Some((7, true)), "but is not forgotten");
        assert!(shard.handle_readable(conn, true), "a hang-up has no second edge");
        assert_eq!(shard.begin_reading(conn), Some((7, true)));
        shard.handle_peer_gone(conn, CloseReason::Gone);
        assert!(shard.poll_closed().is_some());
        assert_eq!(shard.begin_reading(conn), None);
        assert!(!shard.handle_readable(conn, true));
    }

    /// Its pong waits in the socket behind its earlier bytes, while no socket is read.
    #[test]
    fn who_waits_to_be_read_is_not_silent() {
        let mut shard = shard();
        let conn = shard.handle_accept(7, 0).unwrap();
        let identity = Identity {
            user: Some("ann".into()),
            rights: crate::policy::rights::Rights::NONE,
            expires_unix_s: None,
            grants: None,
            info: None,
            mark: None,
        };
        let response = Bytes::from_static(b"101");
        shard.handle_open(
            conn,
            Opening { identity, response, rooms: Vec::new(), encoding: Encoding::NATIVE },
        );
        assert!(shard.handle_readable(conn, false));
        let interval_ms = Limits::TINY.ping_interval_ms;
        let pass = |shard: &mut Shard, from: u64| {
            (from * interval_ms..(from + 4) * interval_ms)
                .step_by(100)
                .for_each(|now_ms| shard.handle_timeout(now_ms));
            shard.counters.connections
        };
        assert_eq!(pass(&mut shard, 0), 1);
        assert!(shard.begin_reading(conn).is_some());
        assert_eq!(pass(&mut shard, 4), 0, "and nothing was received any more");
    }

    #[test]
    fn a_head_that_came_in_time_and_waits_to_be_read_is_not_late() {
        let mut shard = shard();
        let (prompt, late) =
            (shard.handle_accept(1, 0).unwrap(), shard.handle_accept(2, 0).unwrap());
        assert!(shard.handle_readable(prompt, false));
        shard.handle_timeout(Limits::TINY.handshake_timeout_ms);
        assert_eq!(shard.poll_timed_out(), Some(late));
        assert_eq!(shard.poll_timed_out(), None);
        assert_eq!(shard.begin_reading(prompt), Some((1, false)));
        shard.handle_timeout(2 * Limits::TINY.handshake_timeout_ms);
        assert_eq!(shard.poll_timed_out(), Some(prompt), "read, and it was not a whole head");
    }

    #[test]
    fn a_connection_whose_stage_has_more_time_is_looked_at_when_that_is_over() {
        let mut shard = shard();
        let timeout_ms = Limits::TINY.handshake_timeout_ms;
        let slow = shard.handle_accept(1, 0).unwrap();
        shard.handle_timeout(timeout_ms);
        assert_eq!(shard.poll_timed_out(), Some(slow));
        let deadline_ms = 3 * timeout_ms + 7;
        shard.handle_not_late(slow, Some(deadline_ms), timeout_ms);
        let quick = shard.handle_accept(2, timeout_ms).unwrap();
        shard.handle_timeout(2 * timeout_ms);
        assert_eq!(shard.poll_timed_out(), Some(quick), "deadlines stay in order");
        shard.handle_timeout(deadline_ms - 1);
        assert_eq!(shard.poll_timed_out(), None);
        shard.handle_timeout(deadline_ms);
        assert_eq!(shard.poll_timed_out(), Some(slow));
        shard.handle_not_late(slow, None, deadline_ms);
        shard.handle_timeout(deadline_ms + timeout_ms);
        assert_eq!(shard.poll_timed_out(), Some(slow));
    }
}
