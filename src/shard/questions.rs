//! Questions whose answers may be long: one answer at a time for a connection.
//!
//! `history`, `presence` and a join with `since` are questions of fifty bytes, and each answer may be
//! most of a megabyte. So the backplane is asked one of a connection's at a time, and the next one
//! when the answer to the last has left for the socket: what a connection can have made for it is one
//! answer and its outbox, however much it asks. The other questions wait in their order. A connection
//! of which `questions_waiting_max` wait is paused (`pause.rs`) until half of them are asked; what
//! more the same message asks is refused.
//!
//! A question is *under way* from here to the backplane and back, then *answered* as soon as its
//! answer was handed to the writes; what of it the socket did not take is in the outbox.
//!
//! Invariant: a connection has an entry exactly while a question of it is under way, waits, or has an
//! answer that was not taken yet. One that is closing asks nothing more.

use crate::ids::ConnId;
use crate::link::Uplink;
use crate::protocol::ErrorCode;
use crate::shard::command_error::CommandError;
use crate::shard::state::Shard;
use crate::shard::state::questions::{Asked, QuestionStep};
use std::collections::VecDeque;

/// What an answer that was taken may leave in the outbox: this part of `outbox_bytes_max`. Room
/// enough stays for the next one.
const LEFT_OF_ANSWER: usize = 4;

impl Shard {
    /// Whether a connection may ask one more.
    pub(super) fn may_ask(&self, conn: ConnId) -> Result<(), CommandError> {
        let waiting = self.questions.of.get(&conn).map_or(0, |asked| asked.waiting.len());
        if waiting < self.limits.questions_waiting_max {
            return Ok(());
        }
        Err(CommandError(
            ErrorCode::Overloaded,
            "one message asks more than may wait: wait for the answers",
        ))
    }

    /// Asks the backplane something, now or when the questions before it are answered.
    pub(super) fn ask(&mut self, conn: ConnId, question: Uplink) {
        let asked = self.questions.of.entry(conn).or_insert_with(|| Asked {
            step: QuestionStep::Answered, // nothing was, and nothing is waited for
            waiting: VecDeque::new(),
            is_enough: false,
        });
        asked.waiting.push_back(question);
        self.questions.waiting += 1;
        self.ask_next(conn);
        let waiting = self.questions.of.get(&conn).map_or(0, |asked| asked.waiting.len());
        if waiting >= self.limits.questions_waiting_max {
            self.questions.of.get_mut(&conn).expect("its questions wait").is_enough = true;
            self.pause(conn);
        }
    }

    /// Whether a connection is paused because it has asked enough.
    pub(super) fn has_questions_enough(&self, conn: ConnId) -> bool {
        self.questions.of.get(&conn).is_some_and(|asked| asked.is_enough)
    }

    /// A connection in its handshake has asked the ops thread something over HTTP. It is not read
    /// until the answer has left for its socket.
    pub fn begin_call(&mut self, conn: ConnId) {
        if self.is_handshaking(conn) {
            let step = QuestionStep::UnderWay { ticket: None };
            self.questions
                .of
                .insert(conn, Asked { step, waiting: VecDeque::new(), is_enough: true });
            self.pause(conn);
        }
    }

    /// What a connection in its handshake has asked is decided: it is read like any other.
    pub fn end_call(&mut self, conn: ConnId) {
        self.forget_questions(conn);
        self.resume(conn);
    }

    /// A join that was under way is answered. Whether an answer follows that is long.
    pub(super) fn is_question(&self, conn: ConnId, ticket: u64) -> bool {
        self.questions.is_under_way(conn, ticket)
    }

    /// The question that was under way ends without an answer to the client.
    pub(super) fn end_question(&mut self, conn: ConnId) {
        if let Some(asked) = self.questions.of.get_mut(&conn) {
            asked.step = QuestionStep::Answered;
            self.ask_next(conn);
        }
    }

    /// Goes on with those whose answers were handed to the writes. Comes after these were made.
    pub(super) fn ask_on(&mut self) {
        while let Some(conn) = self.questions.answered.pop() {
            self.end_question(conn);
        }
    }

    /// Asks the next question of a connection, if nothing of it is under way or waits for the socket.
    pub(super) fn ask_next(&mut self, conn: ConnId) {
        if !self.questions.of.contains_key(&conn) || !self.has_room_for_answer(conn) {
            return;
        }
        loop {
            let Some(asked) = self.questions.of.get_mut(&conn) else { return };
            if asked.step != QuestionStep::Answered {
                return;
            }
            let Some(question) = asked.waiting.pop_front() else {
                self.questions.of.remove(&conn);
                return self.resume(conn);
            };
            self.questions.waiting -= 1;
            let is_half_asked = asked.waiting.len() <= self.limits.questions_waiting_max / 2;
            let ticket = match &question {
                Uplink::Recover(ask) => Some((ask.ticket, ask.at)),
                _ => None,
            };
            if let Some((ticket, at)) = ticket
                && !self.pendings.has(conn, ticket)
            {
                self.unpin(at); // It was left before its turn came.
                continue;
            }
            let ticket = ticket.map(|(ticket, _)| ticket);
            asked.step = QuestionStep::UnderWay { ticket };
            if is_half_asked {
                asked.is_enough = false;
            }
            self.uplink.push_back(question);
            if is_half_asked {
                self.resume(conn);
            }
            return;
        }
    }

    /// Whether something that a connection asked is not answered, joins not counted.
    pub(super) fn has_open_question(&self, conn: ConnId) -> bool {
        if self.hooked.has(conn) {
            return true;
        }
        let Some(asked) = self.questions.of.get(&conn) else { return false };
        let is_join = |question: &Uplink| matches!(question, Uplink::Recover(_));
        let is_under_way = matches!(asked.step, QuestionStep::UnderWay { ticket: None });
        !asked.waiting.iter().all(is_join) || is_under_way && !self.has_answer_waiting(conn)
    }

    /// Whether a paused connection waits for an answer that is made here, and not for its own socket.
    pub(super) fn waits_for_us(&self, conn: ConnId) -> bool {
        let step = self.questions.of.get(&conn).map(|asked| asked.step);
        matches!(step, Some(QuestionStep::UnderWay { .. })) || self.hooked.has(conn)
    }

    /// Whether the last answer has left, as far as it matters. Messages that may be dropped do not
    /// count: a member of a busy room may always have some.
    fn has_room_for_answer(&self, conn: ConnId) -> bool {
        let outbox = self.conns.get(conn.0).and_then(|c| c.outbox.as_deref());
        let fixed_bytes = outbox.map_or(0, |outbox| outbox.fixed_bytes());
        fixed_bytes <= self.limits.outbox_bytes_max / LEFT_OF_ANSWER
    }

    /// A connection asks nothing more.
    pub(super) fn forget_questions(&mut self, conn: ConnId) {
        self.hooked.forget(conn);
        for at in self.questions.forget(conn) {
            self.unpin(at);
        }
    }
}
