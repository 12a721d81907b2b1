//! Tokens that come after a connection is open: another one of its user, or one for a room.
//!
//! A signature takes up to a hundred microseconds to verify, and the keys are the caller's. So a token
//! is handed out ([`Shard::poll_token_check`]) and the connection is not read (`pause.rs`) until the
//! verdict is there ([`Shard::handle_token`]); what it sent behind the token comes behind the verdict.
//! How many a connection may send is limited (`rates.rs`), and each has one under way.
//!
//! A token of the connection's user replaces the one before it: rights, grants and expiry hold at
//! once, and rooms that it no longer allows are left, with an event. A token of another user, or one
//! that is not good, changes nothing. A token for a room is part of the membership: what it allows
//! holds in that room, until the membership or the token ends.
//!
//! Invariant: a connection that waits for a verdict is open and paused.

use crate::auth::{Identity, RoomAdmission};
use crate::ids::{ConnId, TopicKind};
use crate::policy::grants::RoomAction;
use crate::policy::rights::Action;
use crate::protocol::{ErrorCode, Event, RemovalReason, RequestId};
use crate::shard::command_error::CommandError;
use crate::shard::room_token::RoomToken;
use crate::shard::state::Shard;
use crate::shard::state::pending_joins::JoinOptions;
use crate::shard::state::rates::RateRule;
use crate::shard::state::token_checks::{JoinRequest, TokenCheck, WaitingRequest};

/// Memberships that are ended in one tick of the shard, at most.
const ENDED_PER_TICK: usize = 1024;

/// What has come of a [`TokenCheck`].
#[derive(Clone, Debug)]
pub enum TokenVerdict {
    /// It is a good token of a user.
    User {
        /// Who that is, and what it may do.
        identity: Identity,
        /// When the token expires, in milliseconds of the shard's clock; `None`: never.
        expires_at_ms: Option<u64>,
    },
    /// It is a good token for a room.
    Room {
        /// Which room, for whom, and what it allows.
        admission: RoomAdmission,
        /// When the token expires, in milliseconds of the shard's clock; `None`: never.
        expires_at_ms: Option<u64>,
    },
    /// It is not good; why, for people.
    Refused(&'static str),
}

impl Shard {
    /// A token that is to be checked. The connection is not read until [`Shard::handle_token`].
    pub fn poll_token_check(&mut self) -> Option<TokenCheck> {
        while let Some(check) = self.token_checks.queue.pop_front() {
            if self.token_checks.is_waiting(check.conn) {
                return Some(check);
            }
        }
        None
    }

    /// The token of a connection was checked. The verdict is of the kind that the check asked for.
    pub fn handle_token(&mut self, conn: ConnId, verdict: TokenVerdict) {
        let Some(WaitingRequest { id, join }) = self.token_checks.take(conn) else { return };
        let done = match (verdict, join) {
            (TokenVerdict::Refused(why), _) => Err(CommandError(ErrorCode::Unauthorized, why)),
            (TokenVerdict::User { identity, expires_at_ms }, None) => {
                self.renew(conn, identity, expires_at_ms, id.as_ref())
            }
            (TokenVerdict::Room { admission, expires_at_ms }, Some(join)) => {
                self.join_by_token(conn, join, &admission, expires_at_ms, id.clone())
            }
            _ => unreachable!("the verdict is of the kind that was asked for"),
        };
        let counters = &mut self.counters;
        *match done.is_ok() {
            true => &mut counters.tokens_accepted,
            false => &mut counters.tokens_refused,
        } += 1;
        if let Err(refusal) = done {
            self.refuse(conn, id.as_ref(), refusal);
        }
        self.resume(conn);
    }

    /// A connection was opened by the token of its first message, which has this number.
    pub fn handle_first_request(&mut self, conn: ConnId, id: &RequestId) {
        if self.conns.get(conn.0).is_some_and(|c| c.is_open()) {
            self.say(conn, &Event::done(Some(id), None));
        }
    }

    /// A client sends another token of its user.
    pub(super) fn on_auth(
        &mut self,
        conn: ConnId,
        token: &str,
        id: Option<RequestId>,
    ) -> Result<(), CommandError> {
        if !self.conns.get(conn.0).is_some_and(|c| c.has_token) {
            return Err(CommandError(
                ErrorCode::Forbidden,
                "this connection came without a token, and stays without: connect with one",
            ));
        }
        self.check_token(conn, token, WaitingRequest { id, join: None })
    }

    /// A client joins a room with a token for it.
    pub(super) fn on_join_with_token(
        &mut self,
        conn: ConnId,
        join: JoinRequest,
        token: &str,
        id: Option<RequestId>,
    ) -> Result<(), CommandError> {
        self.check_token(conn, token, WaitingRequest { id, join: Some(join) })
    }

    fn check_token(
        &mut self,
        conn: ConnId,
        token: &str,
        request: WaitingRequest,
    ) -> Result<(), CommandError> {
        if self.token_checks.is_waiting(conn) {
            return Err(CommandError(
                ErrorCode::Overloaded,
                "one message has several tokens: send the next one when this is answered",
            ));
        }
        self.take_token(conn, RateRule::Tokens)?;
        let is_for_room = request.join.is_some();
        self.token_checks.add(TokenCheck { conn, is_for_room, token: token.into() }, request);
        self.pause(conn);
        Ok(())
    }

    /// A good token replaces the one before it.
    fn renew(
        &mut self,
        conn: ConnId,
        identity: Identity,
        expires_at_ms: Option<u64>,
        id: Option<&RequestId>,
    ) -> Result<(), CommandError> {
        if !self.is_user(conn, identity.user.as_deref()) {
            return Err(CommandError(
                ErrorCode::Forbidden,
                "this token is of another user: connect with it",
            ));
        }
        self.take_identity(conn, identity);
        self.expiries.set(conn.0.index, expires_at_ms.map(|at_ms| at_ms.div_ceil(1000)));
        self.say(conn, &Event::done(id, None));
        self.leave_forbidden_rooms(conn);
        Ok(())
    }

    /// What a good token says of its user holds from now on.
    pub(super) fn take_identity(&mut self, conn: ConnId, identity: Identity) {
        let Some(c) = self.conns.get_mut(conn.0) else { return };
        c.rights = identity.rights.into();
        c.has_token = identity.user.is_some();
        match identity.grants {
            Some(grants) => self.grants.insert(conn.0.index, grants),
            None => _ = self.grants.remove(conn.0.index),
        }
        match identity.info {
            Some(info) => self.user_infos.set(conn.0.index, info),
            None => _ = self.user_infos.remove(&conn.0.index),
        }
        self.token_marks.set(conn.0.index, identity.mark);
    }

    fn join_by_token(
        &mut self,
        conn: ConnId,
        join: JoinRequest,
        admission: &RoomAdmission,
        expires_at_ms: Option<u64>,
        id: Option<RequestId>,
    ) -> Result<(), CommandError> {
        let forbidden = |why| Err(CommandError(ErrorCode::Forbidden, why));
        if admission.room != join.room {
            return forbidden("this token is for another room");
        }
        if !self.is_user(conn, Some(&admission.user)) {
            return forbidden("this token is for another user");
        }
        if !admission.actions.allow(RoomAction::Join) {
            return forbidden("this token does not allow to join the room");
        }
        let second = |at_ms: u64| u32::try_from(at_ms.div_ceil(1000)).unwrap_or(u32::MAX);
        let room_token =
            RoomToken { actions: admission.actions, expires_s: expires_at_ms.map(second) };
        let options = JoinOptions {
            since: join.since,
            info: join.info.as_deref(),
            ack: join.ack,
            room_token: Some(room_token),
        };
        self.on_join(conn, &join.room, options, id, crate::policy::rights::HookWord::NotAsked)
    }

    fn is_user(&self, conn: ConnId, user: Option<&str>) -> bool {
        matches!(self.user_of(conn).kind(), TopicKind::User(name) if Some(name) == user)
    }

    /// Leaves the rooms that a new token does not allow, also those that are being joined.
    fn leave_forbidden_rooms(&mut self, conn: ConnId) {
        let Some(c) = self.conns.get(conn.0) else { return };
        let mut topics: Vec<u32> = c.joined.iter().map(|membership| membership.topic).collect();
        topics.extend(self.pendings.topics_of(conn));
        for index in topics {
            if self.is_forbidden(conn, index) {
                self.remove_from(conn, index, RemovalReason::Forbidden);
            }
        }
    }

    /// Whether a connection may not join a room that it is in. A user's own topic is no room.
    fn is_forbidden(&self, conn: ConnId, index: u32) -> bool {
        let name = self.hub.at(index).name().clone();
        let action = Action::Join { acks: false };
        matches!(name.kind(), TopicKind::Room(_)) && self.may(conn, action, name.kind()).is_err()
    }

    /// Ends memberships whose token has expired, where nothing else allows them.
    pub(super) fn end_room_tokens(&mut self, now_ms: u64) {
        for _ in 0..ENDED_PER_TICK {
            let Some((conn, index)) = self.room_tokens.pop_due(now_ms / 1000) else { return };
            if self.is_forbidden(conn, index) {
                self.remove_from(conn, index, RemovalReason::TokenExpired);
            }
        }
    }

    fn remove_from(&mut self, conn: ConnId, index: u32, why: RemovalReason) {
        let name = self.hub.at(index).name().clone();
        let TopicKind::Room(room) = name.kind() else { return };
        self.leave_pending(conn, self.hub.id_at(index));
        let slot = self.conns.get(conn.0).and_then(|c| c.joined.find(index));
        if let Some(slot) = slot {
            self.leave_at(conn, slot);
            self.counters.leaves += 1;
        }
        *match why {
            RemovalReason::TokenExpired => &mut self.counters.removed_expired,
            RemovalReason::Forbidden => &mut self.counters.removed_forbidden,
        } += 1;
        self.say(conn, &Event::Removed { room, why });
    }
}

#[cfg(test)]
mod tests;
