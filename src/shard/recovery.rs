//! Rooms that have a history: joins that are answered with a position, and what was missed.
//!
//! Only the backplane has the position of a history. So a connection that joins such a room asks for
//! it ([`Uplink::Recover`]) and is *pending* until the answer. The answer takes its place among the
//! room's frames: those before it are not for the joiner, those after it are. There the joiner is
//! *admitted*: `ok` with the position, then what was missed, then everything else, so that no message
//! arrives twice and none is left out between the two.
//!
//! A pending connection is no member yet. It *pins* the topic, so that the topic stays while the
//! answer is on its way, even if the last member leaves.
//!
//! Invariant: every question is answered once, and its pin is taken out with the answer, whatever has
//! become of who asked.

use crate::ids::{ConnId, TopicId, TopicKind, TopicName};
use crate::link::{
    HistoryError, HistoryPage, HistoryReply, HistoryRequest, RecoveryReply, RecoveryRequest,
    ReplyTo, Unrecoverable, Uplink,
};
use crate::policy::rights::Action;
use crate::protocol::dialect::Encoding;
use crate::protocol::run::{Run, RunKind, RunStyle};
use crate::protocol::{ErrorCode, Event, Page, RequestId};
use crate::shard::command_error::CommandError;
use crate::shard::conn::Conn;
use crate::shard::room_limits::ROOM_FULL;
use crate::shard::state::Shard;
use crate::shard::state::deliveries::Follows;
use crate::shard::state::pending_joins::JoinOptions;

impl Shard {
    /// Joins a room that has a history, or asks again what was missed there.
    ///
    /// 1. Not in it: pending, then admitted.
    /// 2. In it, with `since`: as if it had left and came back at once.
    /// 3. In it, without: only asks where the history is.
    pub(super) fn on_join_with_history(
        &mut self,
        conn: ConnId,
        name: &TopicName,
        options: JoinOptions<'_>,
        id: Option<RequestId>,
    ) -> Result<(), CommandError> {
        let encoding = self.encoding_of(conn);
        let found = self.hub.find(name, encoding);
        if found.is_some_and(|at| self.pendings.is_pending(conn, at)) {
            return Err(CommandError(
                ErrorCode::Overloaded,
                "this room is being joined already, wait for it",
            ));
        }
        if options.since.is_some() {
            self.may_ask(conn)?;
        }
        let Some(at) = self.open_topic(name, encoding) else {
            return Err(CommandError(
                ErrorCode::Overloaded,
                "this server has as many rooms as it may have",
            ));
        };
        self.ask_position(conn, at, name, options, id);
        Ok(())
    }

    /// Finds or makes a topic. It may have no member: the caller joins it or pins it. `None`: there
    /// are as many topics as there may be.
    pub(super) fn open_topic(&mut self, name: &TopicName, encoding: Encoding) -> Option<TopicId> {
        let before = self.hub.topics_len();
        let slow = self.config.namespaces.policy(name.kind()).slow_consumer;
        let at = self.hub.open(name, encoding, slow)?;
        if self.hub.topics_len() > before {
            self.uplink.push_back(Uplink::Join { topic: name.clone(), at, encoding });
        }
        Some(at)
    }

    /// Asks for the position of a topic's history, for a connection that joins it.
    pub(super) fn ask_position(
        &mut self,
        conn: ConnId,
        at: TopicId,
        name: &TopicName,
        options: JoinOptions<'_>,
        id: Option<RequestId>,
    ) {
        let since = options.since;
        let slot = self.conns.get(conn.0).and_then(|c| c.joined.find(at.0.index));
        let stays = slot.is_some() && since.is_none();
        let ticket = self.pendings.add(conn, at, id, options, stays);
        if let Some(slot) = slot.filter(|_| since.is_some()) {
            self.leave_at(conn, slot); // pinned: the topic stays
            self.counters.leaves += 1;
        }
        let topic = name.clone();
        let encoding = self.encoding_of(conn);
        let ask = RecoveryRequest { topic, at, conn, ticket, encoding, since };
        let ask = Uplink::Recover(Box::new(ask));
        // Without `since` it is answered with a position, but for a user's own topic.
        if since.is_some() || matches!(name.kind(), TopicKind::User(_)) {
            self.ask(conn, ask);
        } else {
            self.uplink.push_back(ask);
        }
    }

    /// The backplane answers with the position of a history. Frames that wait for the room came before
    /// it, and so did those being written: a member who only asks must receive them first.
    pub(super) fn on_recovered(&mut self, recovered: Box<RecoveryReply>) {
        let round = self.hub.get(recovered.at).and_then(|topic| topic.round);
        if self.hub.get(recovered.at).is_some() {
            // The position as of now. The joiner may be admitted when it is already a later one.
            self.positions.insert(recovered.at.0.index, recovered.position);
        }
        let waits = !cfg!(feature = "break-admission");
        match round {
            Some(round) if waits && self.is_busy(round) => self.queue_joiner(round, recovered),
            _ => self.admit(*recovered),
        }
    }

    /// The connection that asked is a member from here on, unless it was closed or has left since.
    pub(super) fn admit(&mut self, recovered: RecoveryReply) {
        let RecoveryReply { at, conn, ticket, position, recovery, .. } = recovered;
        let is_question = self.is_question(conn, ticket);
        let Some(pending) = self.pendings.take(conn, |pending| pending.ticket == ticket) else {
            self.unpin(at);
            if is_question {
                self.end_question(conn);
            }
            return;
        };
        self.pendings.unpin(at.0.index);
        let name = self.hub.at(at.0.index).name().clone();
        if let TopicKind::User(user) = name.kind() {
            return self.admit_user(user, recovered, is_question);
        }
        let TopicKind::Room(room) = name.kind() else { return };
        let c = self.conns.get(conn.0).expect("who has gone is no longer pending");
        let is_new = c.joined.find(at.0.index).is_none();
        if is_new && self.is_room_full(room) {
            return self.refuse_full(conn, at, pending.id.as_ref(), is_question);
        }
        let c = self.conns.get_mut(conn.0).expect("it was just looked at");
        if is_new {
            self.hub.join(at, conn.0.index, c);
            self.counters.joins += 1;
        }
        if self.config.namespaces.policy_of_room(room).presence {
            self.attend(conn, &name, pending.info, is_new);
        }
        if pending.ack {
            self.begin_acks(conn, at, position, pending.since, recovery);
        }
        let (id, room, position) = (pending.id.as_ref(), Some(room), Some(position));
        let missed = &recovered.missed;
        self.answer_recovery(conn, missed, is_question, |missed| Event::Ok {
            id,
            room,
            position,
            recovery,
            missed,
        });
    }

    /// Others have taken the last places while the position was asked for.
    fn refuse_full(
        &mut self,
        conn: ConnId,
        at: TopicId,
        id: Option<&RequestId>,
        is_question: bool,
    ) {
        self.room_tokens.remove(conn, at.0.index);
        self.close_topic_if_empty(at.0.index);
        self.counters.requests_rejected += 1;
        let CommandError(code, message) = ROOM_FULL;
        let follows = if is_question { Follows::Question } else { Follows::More };
        self.send(conn, &Event::Error { id, code, message }, follows);
    }

    /// Answers a join with what was missed: inside the answer or after it, depending on the dialect.
    pub(super) fn answer_recovery<'a>(
        &mut self,
        conn: ConnId,
        missed: &'a Run,
        is_question: bool,
        event: impl FnOnce(Option<&'a Run>) -> Event<'a>,
    ) {
        let follows = if is_question { Follows::Question } else { Follows::More };
        match self.encoding_of(conn).dialect().run_style(RunKind::Missed) {
            RunStyle::Elements { .. } => self.send(conn, &event(Some(missed)), follows),
            RunStyle::Frames if missed.bytes.is_empty() => self.send(conn, &event(None), follows),
            RunStyle::Frames => {
                self.say(conn, &event(None));
                self.queue_reply(conn, missed.bytes.clone(), follows);
            }
        }
    }

    /// A topic need not stay any longer for the answer to a join.
    pub(super) fn unpin(&mut self, at: TopicId) {
        self.pendings.unpin(at.0.index);
        self.close_topic_if_empty(at.0.index);
    }

    /// The position of the history is not known. A connection that wants to be in the room is
    /// refused; one that was in it stays only if it asked for the position alone. A user's own topic
    /// takes its connection in all the same: what is sent to the user later is delivered.
    pub(super) fn on_unrecoverable(&mut self, unrecoverable: Unrecoverable) {
        let Unrecoverable { at, conn, ticket, why } = unrecoverable;
        let is_question = self.is_question(conn, ticket);
        let Some(pending) = self.pendings.take(conn, |pending| pending.ticket == ticket) else {
            self.unpin(at);
            if is_question {
                self.end_question(conn);
            }
            return;
        };
        self.counters.requests_rejected += 1;
        let is_user = matches!(self.hub.at(at.0.index).name().kind(), TopicKind::User(_));
        if is_user {
            self.enter_user(conn, at);
        }
        self.forget_room_token_outside(conn, at);
        let code = match why {
            HistoryError::Overloaded => ErrorCode::Overloaded,
            _ => ErrorCode::BackplaneUnavailable,
        };
        let message = refusal_text(why, is_user, pending.stays);
        self.unpin(at);
        let id = pending.id.as_ref();
        let follows = if is_question { Follows::Question } else { Follows::More };
        self.send(conn, &Event::Error { id, code, message }, follows);
    }

    /// `conn` gives up a join that was not answered yet. Whether there was one.
    pub(super) fn leave_pending(&mut self, conn: ConnId, at: TopicId) -> bool {
        let Some(pending) = self.pendings.take(conn, |pending| pending.topic == at.0.index) else {
            return false;
        };
        self.forget_room_token_outside(conn, at);
        let (code, message) = (ErrorCode::NotJoined, "the room was left before it was joined");
        self.say(conn, &Event::Error { id: pending.id.as_ref(), code, message });
        true
    }

    /// A join with a token for the room has come to nothing, unless it is a member already.
    fn forget_room_token_outside(&mut self, conn: ConnId, at: TopicId) {
        if !self.is_in(conn, at) {
            self.room_tokens.remove(conn, at.0.index);
        }
    }

    /// A member asks for the messages of a room's history.
    pub(super) fn on_history(
        &mut self,
        conn: ConnId,
        room: &str,
        page: Page,
        id: Option<RequestId>,
    ) -> Result<(), CommandError> {
        let at = self.may(conn, Action::ReadHistory, TopicKind::Room(room))?;
        let at = at.expect("a member is in a topic");
        self.may_ask(conn)?;
        let topic = self.hub.at(at.0.index).name().clone();
        let to = ReplyTo::Conn { shard: self.config.id, conn, id, turn: false };
        let encoding = self.encoding_of(conn);
        let ask = HistoryRequest { topic, page, encoding, to };
        self.ask(conn, Uplink::History(Box::new(ask)));
        Ok(())
    }

    /// Whether a connection is in a topic, or about to be.
    pub(super) fn is_in(&self, conn: ConnId, at: TopicId) -> bool {
        let is_member = |c: &Conn| c.joined.find(at.0.index).is_some();
        self.conns.get(conn.0).is_some_and(is_member) || self.pendings.is_pending(conn, at)
    }

    /// Passes a page of a history on to the connection that asked for it.
    pub(super) fn on_history_reply(&mut self, reply: HistoryReply) {
        let HistoryReply { conn, id, topic, page } = reply;
        let TopicKind::Room(room) = topic.kind() else { return };
        let id = id.as_ref();
        match page {
            Ok(HistoryPage { position, messages }) => {
                let messages = &messages;
                self.answer(conn, &Event::History { id, room, position, messages });
            }
            Err(why) => {
                let (code, message) = match why {
                    HistoryError::Unrecovered(_) => {
                        (ErrorCode::BadRequest, "since is of another history of this room")
                    }
                    HistoryError::Unavailable => (
                        ErrorCode::BackplaneUnavailable,
                        "the backplane is away, ask again when it is back",
                    ),
                    HistoryError::Overloaded => {
                        (ErrorCode::Overloaded, "too many requests wait for Redis: ask again later")
                    }
                    HistoryError::Unreadable => (
                        ErrorCode::BackplaneUnavailable,
                        "the history of this room cannot be read: ask again later",
                    ),
                };
                self.counters.requests_rejected += 1;
                self.answer(conn, &Event::Error { id, code, message });
            }
        }
    }
}

/// Why a join is refused, for people.
fn refusal_text(why: HistoryError, is_user: bool, stays: bool) -> &'static str {
    match (why, is_user, stays) {
        (HistoryError::Unavailable, true, _) => {
            "Redis did not answer in time, and nothing that is stored follows: connect again later"
        }
        (HistoryError::Unavailable, false, true) => "Redis did not answer in time: ask again later",
        (HistoryError::Unavailable, false, false) => {
            "Redis did not answer in time, and the room was not joined: try again later"
        }
        (HistoryError::Overloaded, true, _) => {
            "too many requests wait for Redis, and nothing that is stored follows: connect again later"
        }
        (HistoryError::Overloaded, false, true) => {
            "too many requests wait for Redis: ask again later"
        }
        (HistoryError::Overloaded, false, false) => {
            "too many requests wait for Redis, and the room was not joined: try again later"
        }
        (HistoryError::Unreadable | HistoryError::Unrecovered(_), true, _) => {
            "what is stored for this user cannot be read: connect again later"
        }
        (HistoryError::Unreadable | HistoryError::Unrecovered(_), false, true) => {
            "the history of this room cannot be read: ask again later"
        }
        (HistoryError::Unreadable | HistoryError::Unrecovered(_), false, false) => {
            "the history of this room cannot be read, and it was not joined: try again later"
        }
    }
}
