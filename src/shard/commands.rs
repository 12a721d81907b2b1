//! Requests of clients, from bytes to their answers.
//!
//! An error answers the request and never closes the connection, unless RFC 6455 itself was broken:
//! then the connection ends with the code that the RFC names. A publish is not delivered here: it
//! goes up to the backplane and comes back like everyone's, so every node sees one order per topic.

use crate::ids::{ConflateKey, ConnId, TopicId, TopicKind, TopicName};
use crate::link::{Publish, ReplyTo, Uplink};
use crate::policy::rights::{Action, Asker, Granted, HookWord, NotAllowed, may};
use crate::protocol::dialect::{Encoding, Incoming, Parsed};
use crate::protocol::{
    AckOf, Command, ErrorCode, Event, Recovery, Rejected, Request, RequestId, Unrecovered,
};
use crate::shard::command_error::CommandError;
use crate::shard::conn::{CloseReason, ConnState, ReadState};
use crate::shard::memory::half_bytes;
use crate::shard::pause::ReadOutcome;
use crate::shard::room_token::RoomToken;
use crate::shard::state::deliveries::Follows;
use crate::shard::state::pending_joins::JoinOptions;
use crate::shard::state::rates::RateRule;
use crate::shard::state::token_checks::JoinRequest;
use crate::shard::state::{ARENA_FRAME_BYTES_MAX, JoinWaiter, Shard};
use crate::ws::decoder::{DecoderLimits, Item, ProtocolError};
use crate::ws::encode::{self, Opcode};
use bytes::Bytes;
use std::collections::HashSet;

/// How often the members of a room may ask again to join it before the first answer is there: once
/// each, and so often beyond. Then: error `overloaded`.
const JOINS_AGAIN_MAX: usize = 16;

/// What a message may be known by.
#[derive(Default)]
pub(super) struct MessageKeys {
    /// A retry has the same.
    pub(super) key: Option<Box<str>>,
    /// A newer message about the same thing has the same.
    pub(super) conflate_key: Option<ConflateKey>,
}

/// What becomes of the rest of what was read.
enum Listening {
    /// The rest is used.
    On,
    /// It is stored until the connection is resumed.
    Paused,
    /// The rest is dropped: the connection closes.
    No,
}

impl Shard {
    /// Bytes came from a connection that is past its handshake. All of `input` is used, half a message
    /// waits in the connection's decoder; unless the connection is paused, then the rest is stored
    /// until it is resumed.
    ///
    /// 1. Open: messages are carried out, control frames answered.
    /// 2. Closing, and we were first: only the peer's close frame matters.
    /// 3. Freed since the read began: nothing.
    pub fn handle_read(&mut self, conn: ConnId, input: &mut [u8]) -> ReadOutcome {
        let bytes = input.len() as u64;
        self.counters.bytes_in += bytes;
        let outcome = self.use_bytes(conn, input);
        self.charge(conn, RateRule::Bytes, bytes);
        ReadOutcome { is_paused: self.is_paused(conn), ..outcome }
    }

    /// The same for bytes that were counted.
    pub(super) fn use_bytes(&mut self, conn: ConnId, input: &mut [u8]) -> ReadOutcome {
        let all = ReadOutcome { used_bytes: input.len(), is_paused: false };
        let Some(c) = self.conns.get_mut(conn.0) else { return all };
        c.is_active = true;
        if matches!(
            c.state,
            ConnState::Closing { ignore_input: true, .. }
                | ConnState::Closing { peer_closed: true, .. }
        ) {
            return all;
        }
        if c.unread == ReadState::Paused {
            self.keep_rest(conn, input); // Its rate was exceeded as it was opened.
            return ReadOutcome { used_bytes: 0, is_paused: true };
        }
        let message_bytes_max = match c.encoding.dialect().has_topics() {
            true => self.limits.message_bytes_max,
            false => self.limits.echo_message_bytes_max,
        };
        let limits = DecoderLimits { message_bytes_max };
        let own = c.decoder.take();
        self.half_bytes -= half_bytes(own.as_deref());
        let mut decoder = own.or_else(|| self.spare_decoder.take()).unwrap_or_default();
        let mut rest = input;
        while let Some(item) = decoder.next(&mut rest, limits) {
            match item {
                Ok(item) => {
                    self.charge(conn, RateRule::Messages, 1);
                    self.on_item(conn, item);
                }
                Err(error) => self.on_violation(conn, error),
            }
            match self.listening(conn) {
                Listening::On => {}
                Listening::Paused => break,
                Listening::No => {
                    // The rest of the input is dropped, and half a message is no longer needed.
                    *decoder = Default::default();
                    rest = &mut [];
                    break;
                }
            }
        }
        self.keep_decoder(conn, decoder);
        self.pause_if_large(conn);
        let is_paused = self.is_paused(conn);
        if is_paused {
            self.keep_rest(conn, rest);
        }
        ReadOutcome { used_bytes: all.used_bytes - rest.len(), is_paused }
    }

    /// 1. Open: closed with the code that RFC 6455 names.
    /// 2. Closing already: there is no sense in waiting for a close frame from this peer.
    fn on_violation(&mut self, conn: ConnId, error: ProtocolError) {
        self.begin_close(conn, CloseReason::Protocol(error));
        let Some(c) = self.conns.get_mut(conn.0) else { return };
        if let ConnState::Closing { ignore_input, .. } = &mut c.state {
            *ignore_input = true;
            self.consider_leaving(conn);
        }
    }

    /// Whether input of the peer is used: until its close frame, or until it breaks the protocol.
    fn listening(&self, conn: ConnId) -> Listening {
        match self.conns.get(conn.0).map(|c| (c.state, c.unread)) {
            Some((ConnState::Open, ReadState::Paused)) => Listening::Paused,
            Some((ConnState::Open, _)) => Listening::On,
            Some((ConnState::Closing { peer_closed: false, ignore_input: false, .. }, _)) => {
                Listening::On
            }
            _ => Listening::No,
        }
    }

    /// A decoder at rest belongs to no connection: the next read of any one uses it.
    fn keep_decoder(&mut self, conn: ConnId, decoder: Box<crate::ws::decoder::Decoder>) {
        if decoder.is_at_rest() {
            self.spare_decoder = Some(decoder);
        } else if let Some(c) = self.conns.get_mut(conn.0) {
            self.half_bytes += half_bytes(Some(&decoder));
            c.decoder = Some(decoder);
        }
    }

    fn on_item(&mut self, conn: ConnId, item: Item<'_>) {
        let open = self.conns.get(conn.0).is_some_and(|c| c.is_open());
        match item {
            Item::Close { code, .. } => self.on_peer_close(conn, code),
            _ if !open => {}
            Item::Text(text) => self.on_message(conn, Incoming::Text(text)),
            Item::Binary(bytes) => self.on_message(conn, Incoming::Binary(bytes)),
            Item::Ping(payload) => self.echo(conn, Opcode::Pong, payload),
            Item::Pong(_) => {}
        }
    }

    /// One message of a client: whatever its dialect makes of it, in its order.
    fn on_message(&mut self, conn: ConnId, message: Incoming<'_>) {
        self.counters.messages_in += 1;
        let dialect = self.encoding_of(conn).dialect();
        let mut requests = 0;
        dialect.parse(message, self.limits.json_depth_max, |parsed| {
            requests += 1;
            if self.conns.get(conn.0).is_some_and(|c| c.is_open()) {
                self.on_parsed(conn, parsed);
            }
        });
        if requests > 1 {
            // Each counts as a message; the first was charged with its frame.
            self.charge(conn, RateRule::Messages, requests - 1);
        }
    }

    fn on_parsed(&mut self, conn: ConnId, parsed: Parsed<'_>) {
        match parsed {
            Parsed::Request(request) => self.on_request(conn, request),
            Parsed::Rejected(Rejected { id, code, message }) => {
                self.counters.requests_rejected += 1;
                self.say(conn, &Event::Error { id: id.as_ref(), code, message: &message });
            }
            Parsed::Echo { is_text: true, payload } => self.echo(conn, Opcode::Text, payload),
            Parsed::Echo { is_text: false, payload } => self.echo(conn, Opcode::Binary, payload),
            Parsed::Unsupported => self.begin_close(conn, CloseReason::Unsupported),
        }
    }

    /// Sends a payload back as it came.
    fn echo(&mut self, conn: ConnId, opcode: Opcode, payload: &[u8]) {
        let frame = if payload.len() > ARENA_FRAME_BYTES_MAX {
            let mut frame = Vec::with_capacity(encode::frame_len(payload.len()));
            encode::frame(opcode, payload, &mut frame);
            Bytes::from(frame)
        } else {
            self.scratch.clear();
            encode::frame(opcode, payload, &mut self.scratch);
            self.arena.extend_from_slice(&self.scratch);
            self.arena.split().freeze()
        };
        self.queue_reply(conn, frame, Follows::More);
    }

    fn on_request(&mut self, conn: ConnId, request: Request<'_>) {
        let id = request.id;
        if let Err(refusal) = self.has_memory_for(&request.command) {
            return self.refuse(conn, id.as_ref(), refusal);
        }
        if self.hooked.has(conn) {
            let message = "one message asks more than may wait: wait for the answers";
            let refusal = CommandError(ErrorCode::Overloaded, message);
            return self.refuse(conn, id.as_ref(), refusal);
        }
        let done = match request.command {
            Command::Join { room, since, info, ack, token } => {
                self.take_token(conn, RateRule::Joins).and_then(|()| match token {
                    None => {
                        let options = JoinOptions { since, info, ack, room_token: None };
                        self.on_join(conn, room, options, id.clone(), HookWord::NotAsked)
                    }
                    Some(token) => {
                        let (room, info) = (room.into(), info.map(Into::into));
                        let join = JoinRequest { room, since, info, ack };
                        self.on_join_with_token(conn, join, token, id.clone())
                    }
                })
            }
            Command::Leave { room } => self.on_leave(conn, room, id.as_ref()),
            Command::Publish { room, payload, echo, key, conflate_key } => {
                let keys = MessageKeys { key, conflate_key };
                self.on_publish(conn, room, payload, echo, keys, id.clone(), HookWord::NotAsked)
            }
            Command::Send { user, payload, key } => {
                self.on_send(conn, user, payload, key, id.clone())
            }
            Command::Broadcast { payload, key } => {
                self.on_broadcast(conn, payload, key, id.clone())
            }
            Command::Presence { room } => self
                .take_token(conn, RateRule::Requests)
                .and_then(|()| self.on_presence(conn, room, id.clone())),
            Command::History { room, page } => self
                .take_token(conn, RateRule::Requests)
                .and_then(|()| self.on_history(conn, room, page, id.clone())),
            Command::Ack { of: AckOf::Room(room), up_to } => {
                self.on_ack_room(conn, room, up_to, id.as_ref())
            }
            Command::Ack { of: AckOf::User(named), up_to } => {
                self.on_ack_user(conn, named, up_to, id.as_ref())
            }
            Command::Auth { token } => self.on_auth(conn, token, id.clone()),
            Command::Ping => {
                self.say(conn, &Event::Pong { id: id.as_ref() });
                Ok(())
            }
        };
        if let Err(refusal) = done {
            self.refuse(conn, id.as_ref(), refusal);
        }
    }

    pub(super) fn refuse(&mut self, conn: ConnId, id: Option<&RequestId>, refusal: CommandError) {
        let CommandError(code, message) = refusal;
        self.counters.requests_rejected += 1;
        self.say(conn, &Event::Error { id, code, message });
    }

    /// The same with the words of a hook.
    pub(super) fn refuse_because(&mut self, conn: ConnId, id: Option<&RequestId>, message: &str) {
        self.counters.requests_rejected += 1;
        self.say(conn, &Event::Error { id, code: ErrorCode::Forbidden, message });
    }

    /// Whether a connection may do something with a topic. Answers a room's place here, if it has one.
    pub(super) fn may(
        &self,
        conn: ConnId,
        action: Action,
        topic: TopicKind<'_>,
    ) -> Result<Option<TopicId>, CommandError> {
        Ok(self.may_with(conn, action, topic, HookWord::NotAsked)?)
    }

    /// The same with what a hook has decided.
    fn may_with(
        &self,
        conn: ConnId,
        action: Action,
        topic: TopicKind<'_>,
        hook: HookWord,
    ) -> Result<Option<TopicId>, NotAllowed> {
        let found = match topic {
            TopicKind::Room(room) => self.find_room(conn, room),
            TopicKind::User(_) | TopicKind::All => None,
        };
        let room_token = found.and_then(|at| self.room_tokens.get(conn, at.0.index));
        self.may_by(conn, room_token, action, topic, found, hook)?;
        Ok(found)
    }

    /// The same with this token for the room, which stands where `found` says.
    fn may_by(
        &self,
        conn: ConnId,
        room_token: Option<RoomToken>,
        action: Action,
        topic: TopicKind<'_>,
        found: Option<TopicId>,
        hook: HookWord,
    ) -> Result<(), NotAllowed> {
        let c = self.conns.get(conn.0).expect("it just spoke");
        let (rights, has_token) = (c.rights.into(), c.has_token);
        let is_member = found.is_some_and(|at| self.is_in(conn, at));
        let user = self.grants.get(conn.0.index).map(|grants| (grants, self.user_of(conn)));
        let granted = user.as_ref().map(|(grants, user)| match user.kind() {
            TopicKind::User(user) => Granted { grants, user },
            TopicKind::Room(_) | TopicKind::All => unreachable!("it is a user's topic"),
        });
        let room_token = room_token.map(|token| token.actions);
        let asker = Asker::Client { rights, has_token, is_member, granted, room_token, hook };
        may(&self.config.namespaces, asker, action, topic)
    }

    /// Joins a room. Answered once deliveries are certain to arrive: at once when the shard is in
    /// the topic already, otherwise with the backplane's `Joined`.
    pub(super) fn on_join_room(&mut self, conn: ConnId, room: &str) {
        // A room in the URL is joined like any other, and a rejection is reported like any other.
        // It costs no token: a new connection has as many as it may have rooms.
        let options = JoinOptions::default();
        let command = Command::Join { room, since: None, info: None, ack: false, token: None };
        let joined = self.has_memory_for(&command);
        if let Err(refusal) =
            joined.and_then(|()| self.on_join(conn, room, options, None, HookWord::NotAsked))
        {
            self.refuse(conn, None, refusal);
        }
    }

    /// Joins a room, by its token or by the one with which the connection is there.
    pub(super) fn on_join(
        &mut self,
        conn: ConnId,
        room: &str,
        options: JoinOptions<'_>,
        id: Option<RequestId>,
        hook: HookWord,
    ) -> Result<(), CommandError> {
        let found = self.find_room(conn, room);
        let before = found.and_then(|at| self.room_tokens.get(conn, at.0.index));
        let room_token = options.room_token.or(before);
        let join = Action::Join { acks: options.ack };
        match self.may_by(conn, room_token, join, TopicKind::Room(room), found, hook) {
            Err(NotAllowed::AskHook) => {
                self.hook_join(conn, room, options, id);
                return Ok(());
            }
            other => other?,
        }
        self.join_allowed(conn, room, found, options, id)?;
        if let Some(room_token) = room_token
            && let Some(at) = self.find_room(conn, room).filter(|at| self.is_in(conn, *at))
        {
            self.room_tokens.set(conn, at.0.index, room_token);
        }
        Ok(())
    }

    fn join_allowed(
        &mut self,
        conn: ConnId,
        room: &str,
        found: Option<TopicId>,
        options: JoinOptions<'_>,
        id: Option<RequestId>,
    ) -> Result<(), CommandError> {
        let policy = *self.config.namespaces.policy_of_room(room);
        if policy.presence && options.info.is_some() {
            self.may_describe_itself(conn)?;
        }
        let c = self.conns.get(conn.0).expect("it just spoke");
        let is_member = found.is_some_and(|at| c.joined.find(at.0.index).is_some());
        if !is_member {
            self.check_members(room)?;
        }
        // One topic of a connection is its user's, or is about to be.
        let rooms = c.joined.len() + self.pendings.len(conn);
        if !is_member && rooms > self.limits.rooms_per_connection_max {
            return Err(CommandError(
                ErrorCode::TooManyRooms,
                "this connection is in as many rooms as it may be",
            ));
        }
        let name = match found {
            Some(at) => self.hub.at(at.0.index).name().clone(),
            None => TopicName::room(room),
        };
        if policy.has_history() {
            return self.on_join_with_history(conn, &name, options, id);
        }
        let since = options.since.is_some();
        let Some(topic) = self.enter(conn, &name) else {
            return Err(CommandError(
                ErrorCode::Overloaded,
                "this server has as many rooms as it may have",
            ));
        };
        if !is_member {
            self.counters.joins += 1;
        }
        if self.hub.get(topic).is_some_and(|topic| topic.ready) {
            self.say_joined(conn, id.as_ref(), &name, since);
        } else {
            self.wait(topic, JoinWaiter { conn, id, since, again: is_member })?;
        }
        if policy.presence {
            self.attend(conn, &name, options.info.map(Into::into), !is_member);
        }
        Ok(())
    }

    /// Notes a join that waits until the backplane has subscribed. Bounded by the members, however
    /// often they join and leave before that: who left is answered early, and a member may ask again
    /// only so often.
    fn wait(&mut self, at: TopicId, waiter: JoinWaiter) -> Result<(), CommandError> {
        let members = self.hub.at(at.0.index).members().len();
        let waiters = self.waiting.entry(at.0.index).or_default();
        if waiter.again && waiters.len() >= 2 * members + JOINS_AGAIN_MAX {
            return Err(CommandError(
                ErrorCode::Overloaded,
                "this room is being joined already, wait for it",
            ));
        }
        waiters.push(waiter);
        if waiters.len() > 4 * (members + JOINS_AGAIN_MAX) {
            let all = std::mem::take(waiters);
            let stay = self.say_left(at, all);
            self.waiting.insert(at.0.index, stay);
        }
        Ok(())
    }

    /// The backplane has subscribed, or the last member has left: no join waits any more.
    pub(super) fn answer_waiters(&mut self, at: TopicId, name: &TopicName) {
        let Some(waiters) = self.waiting.remove(&at.0.index) else { return };
        for waiter in self.say_left(at, waiters) {
            self.say_joined(waiter.conn, waiter.id.as_ref(), name, waiter.since);
        }
    }

    /// Answers joins of rooms that were left since, where a connection has some.
    pub(super) fn answer_those_who_left(&mut self, conn: ConnId) {
        let rooms: Vec<u32> = self.waiting.keys().copied().collect();
        for room in rooms {
            let of_room = self.waiting.get_mut(&room).expect("it was just listed");
            if of_room.iter().all(|waiter| waiter.conn != conn) {
                continue;
            }
            let all = std::mem::take(of_room);
            let stay = self.say_left(self.hub.id_at(room), all);
            self.waiting.insert(room, stay);
        }
    }

    /// Answers members that left before their join was done, and returns the other joins. An `ok`
    /// would come after that of the leave, and mean a membership that has ended.
    fn say_left(&mut self, at: TopicId, waiters: Vec<JoinWaiter>) -> Vec<JoinWaiter> {
        let is_member = |conn: ConnId| {
            self.conns.get(conn.0).is_some_and(|c| c.joined.find(at.0.index).is_some())
        };
        // Backwards: before the join that made a connection a member, all its joins were left.
        let mut begun = HashSet::new();
        let (mut stay, mut left) = (Vec::new(), Vec::new());
        for waiter in waiters.into_iter().rev() {
            let stays = is_member(waiter.conn) && !begun.contains(&waiter.conn);
            if !waiter.again {
                begun.insert(waiter.conn);
            }
            if stays { stay.push(waiter) } else { left.push(waiter) }
        }
        let (code, message) = (ErrorCode::NotJoined, "the room was left before it was joined");
        for JoinWaiter { conn, id, .. } in left.into_iter().rev() {
            self.say(conn, &Event::Error { id: id.as_ref(), code, message });
        }
        stay.reverse();
        stay
    }

    pub(super) fn say_joined(
        &mut self,
        conn: ConnId,
        id: Option<&RequestId>,
        name: &TopicName,
        since: bool,
    ) {
        let TopicKind::Room(room) = name.kind() else { return };
        let recovery = match since {
            true => Recovery::NotRecovered(Unrecovered::NotEnabled),
            false => Recovery::NotAsked,
        };
        let (room, position, missed) = (Some(room), None, None);
        self.say(conn, &Event::Ok { id, room, position, recovery, missed });
    }

    fn on_leave(
        &mut self,
        conn: ConnId,
        room: &str,
        id: Option<&RequestId>,
    ) -> Result<(), CommandError> {
        let found = self.find_room(conn, room);
        let was_pending = found.is_some_and(|at| self.leave_pending(conn, at));
        let c = self.conns.get(conn.0).expect("it just spoke");
        let slot = found.and_then(|at| c.joined.find(at.0.index));
        if slot.is_none() && !was_pending {
            return Err(CommandError(ErrorCode::NotJoined, "this connection is not in that room"));
        }
        if let Some(slot) = slot {
            self.leave_at(conn, slot);
            self.counters.leaves += 1;
        }
        self.say(conn, &Event::done(id, Some(room)));
        Ok(())
    }

    #[allow(clippy::too_many_arguments)] // a message and all that travels with it
    pub(super) fn on_publish(
        &mut self,
        conn: ConnId,
        room: &str,
        payload: &[u8],
        echo: bool,
        mut keys: MessageKeys,
        id: Option<RequestId>,
        hook: HookWord,
    ) -> Result<(), CommandError> {
        let action = Action::Publish { has_key: keys.key.is_some() };
        let found = match self.may_with(conn, action, TopicKind::Room(room), hook) {
            Err(NotAllowed::AskHook) => {
                self.hook_publish(conn, room, payload, echo, keys, id);
                return Ok(());
            }
            other => other?,
        };
        let policy = *self.config.namespaces.policy_of_room(room);
        self.check_publish(room, &policy, payload.len())?;
        if !policy.conflates() {
            keys.conflate_key = None; // It is no more than a hint.
        }
        let topic = match found {
            Some(at) => self.hub.at(at.0.index).name().clone(),
            None => TopicName::room(room),
        };
        self.publish(conn, topic, payload, echo, keys, id);
        Ok(())
    }

    fn on_send(
        &mut self,
        conn: ConnId,
        user: &str,
        payload: &[u8],
        key: Option<Box<str>>,
        id: Option<RequestId>,
    ) -> Result<(), CommandError> {
        self.may(conn, Action::Publish { has_key: key.is_some() }, TopicKind::User(user))?;
        let keys = MessageKeys { key, conflate_key: None };
        self.publish(conn, TopicName::user(user), payload, true, keys, id);
        Ok(())
    }

    fn on_broadcast(
        &mut self,
        conn: ConnId,
        payload: &[u8],
        key: Option<Box<str>>,
        id: Option<RequestId>,
    ) -> Result<(), CommandError> {
        self.may(conn, Action::Publish { has_key: key.is_some() }, TopicKind::All)?;
        self.publish(conn, self.everybody.clone(), payload, true, MessageKeys::default(), id);
        Ok(())
    }

    /// The way up: the one copy of the payload.
    fn publish(
        &mut self,
        conn: ConnId,
        topic: TopicName,
        payload: &[u8],
        echo: bool,
        keys: MessageKeys,
        id: Option<RequestId>,
    ) {
        let from = self.user_of(conn);
        let is_shown = self.config.namespaces.policy(topic.kind()).message_info;
        let info = if is_shown { self.user_infos.get(&conn.0.index).cloned() } else { None };
        let origin = self.origin(conn);
        self.counters.publishes += 1;
        self.unsettle(conn);
        self.uplink.push_back(Uplink::Publish(Publish {
            topic,
            payload: Bytes::copy_from_slice(payload),
            from: Some(from),
            info,
            except: (!echo).then_some(origin),
            key: keys.key,
            conflate_key: keys.conflate_key,
            done: ReplyTo::Conn { shard: self.config.id, conn, id, turn: false },
        }));
    }

    /// In which encoding a connection receives events.
    pub(super) fn encoding_of(&self, conn: ConnId) -> Encoding {
        self.conns.get(conn.0).expect("only those who are here have done something").encoding
    }

    /// The topic of a room as a connection receives it, if it has members here.
    pub(super) fn find_room(&self, conn: ConnId, room: &str) -> Option<TopicId> {
        self.hub.find_room(room, self.encoding_of(conn))
    }

    /// The topic of a connection's user.
    pub(super) fn user_of(&self, conn: ConnId) -> TopicName {
        if let Some(topic) = self.queues.user_of(conn) {
            return topic.clone();
        }
        let c = self.conns.get(conn.0).expect("only those who are here have done something");
        let user = c.joined.get(0).expect("an open connection is in its user's topic");
        self.hub.at(user.topic).name().clone()
    }

    /// Makes `conn` a member, if it is not one; the first one queues a join for the backplane. `None`:
    /// are as many topics as there may be.
    pub(super) fn enter(&mut self, conn: ConnId, name: &TopicName) -> Option<TopicId> {
        let at = self.open_topic(name, self.encoding_of(conn))?;
        let c = self.conns.get_mut(conn.0).expect("a connection that joins is open");
        if c.joined.find(at.0.index).is_none() {
            self.hub.join(at, conn.0.index, c);
        }
        Some(at)
    }

    /// `conn` gives up the membership at `slot`; the last one queues a leave for the backplane.
    pub(super) fn leave_at(&mut self, conn: ConnId, slot: usize) {
        let c = self.conns.get_mut(conn.0).expect("a member is a connection");
        let index = c.joined.get(slot).expect("a slot that was just looked up").topic;
        if let Some(outbox) = &mut c.outbox {
            outbox.leave(self.hub.id_at(index));
        }
        self.unattend(conn, index);
        self.end_acks(conn, index);
        self.room_tokens.remove(conn, index);
        let round = self.hub.at(index).round;
        let walk = round.and_then(|round| self.deliveries.walk_of(round));
        if self.hub.leave(&mut self.conns, conn.0.index, slot, walk) {
            self.close_topic_if_empty(index);
        }
    }

    /// Removes a topic without members and pins, and sends the backplane a leave.
    pub(super) fn close_topic_if_empty(&mut self, index: u32) {
        let topic = self.hub.at(index);
        if !topic.members().is_empty() || self.pendings.is_pinned(index) {
            return;
        }
        let round = topic.round;
        let at = self.hub.id_at(index);
        if let Some(round) = round {
            self.stop_walk(round);
        }
        let topic = self.hub.close(at).expect("it lived a moment ago");
        self.positions.remove(&index);
        self.answer_waiters(at, topic.name());
        self.uplink.push_back(Uplink::Leave { topic: topic.name().clone(), at });
    }
}
