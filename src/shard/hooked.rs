//! Joins and publishes that a hook is asked about, in namespaces with `hook_join` and `hook_publish`.
//!
//! What everything else allows is stored, and the caller polls for the question
//! ([`Shard::poll_hook`]). Until the answer comes the connection is paused (`pause.rs`), so its
//! commands stay in their order; what more the same message asks is refused. With the answer the
//! command is judged once more, by the same check, and carried out or refused.
//!
//! Only the rooms of a URL are several: they are asked about one after the other.
//!
//! Invariant: a connection has an entry exactly while a command of it waits, and is paused then.

use crate::ids::{ConnId, TopicKind};
use crate::link::hooks::{HookQuestion, HookReply, HookVerdict, HookedAction, RoomQuestion};
use crate::policy::rights::HookWord;
use crate::protocol::ErrorCode;
use crate::shard::command_error::CommandError;
use crate::shard::commands::MessageKeys;
use crate::shard::state::Shard;
use crate::shard::state::hooked::{HookedCommand, HookedWhat};
use crate::shard::state::pending_joins::JoinOptions;
use bytes::Bytes;

impl Shard {
    /// The next question for a hook. Answered by [`Shard::handle_hook`], or, where it cannot be sent,
    /// by [`Shard::handle_hook_busy`].
    pub fn poll_hook(&mut self) -> Option<(ConnId, HookQuestion)> {
        self.hooked.to_ask.pop_front()
    }

    /// Connections of which a command waits for a hook.
    pub fn hooked(&self) -> usize {
        self.hooked.len()
    }

    /// A hook has decided about the command of a connection that waits.
    pub fn handle_hook(&mut self, reply: HookReply) {
        let HookReply { conn, verdict } = reply;
        let Some(command) = self.hooked.take(conn) else { return }; // It has closed since.
        let refused = match verdict {
            HookVerdict::Allow(_) => self.carry_out_hooked(conn, &command, HookWord::Allowed, None),
            HookVerdict::Replace { payload } => {
                self.carry_out_hooked(conn, &command, HookWord::Allowed, Some(&payload))
            }
            HookVerdict::Deny { reason } => {
                match self.carry_out_hooked(conn, &command, HookWord::Denied, None) {
                    Err(CommandError(ErrorCode::Forbidden, _)) => {
                        self.refuse_because(conn, command.id.as_ref(), &reason);
                        Ok(())
                    }
                    other => other,
                }
            }
            HookVerdict::Failed => Err(CommandError(
                ErrorCode::Overloaded,
                "whether this is allowed is not known now: try again later",
            )),
        };
        self.go_on_hooked(conn, &command, refused);
    }

    /// As many questions wait as may: the command is refused.
    pub fn handle_hook_busy(&mut self, conn: ConnId) {
        let Some(command) = self.hooked.take(conn) else { return };
        let busy = CommandError(
            ErrorCode::Overloaded,
            "too many ask what has to be asked about: try again later",
        );
        self.go_on_hooked(conn, &command, Err(busy));
    }

    fn go_on_hooked(
        &mut self,
        conn: ConnId,
        command: &HookedCommand,
        done: Result<(), CommandError>,
    ) {
        if let Err(refusal) = done {
            self.refuse(conn, command.id.as_ref(), refusal);
        }
        match self.hooked.next(conn) {
            Some(_) => self.ask_hook(conn),
            None => self.resume(conn),
        }
    }

    /// Carries a command out, or refuses it, now that the hook has decided. `instead`: the payload
    /// that takes the place of a message's.
    fn carry_out_hooked(
        &mut self,
        conn: ConnId,
        command: &HookedCommand,
        word: HookWord,
        instead: Option<&[u8]>,
    ) -> Result<(), CommandError> {
        let HookedCommand { room, id, what } = command;
        match what {
            HookedWhat::Join { since, info, ack, room_token } => {
                let (since, ack, room_token) = (*since, *ack, *room_token);
                let options = JoinOptions { since, info: info.as_deref(), ack, room_token };
                self.on_join(conn, room, options, id.clone(), word)
            }
            HookedWhat::Publish { payload, echo, key, conflate_key } => {
                let keys = MessageKeys { key: key.clone(), conflate_key: *conflate_key };
                let payload = instead.unwrap_or(payload);
                self.on_publish(conn, room, payload, *echo, keys, id.clone(), word)
            }
        }
    }

    /// Stores a join until the hook has decided.
    pub(super) fn hook_join(
        &mut self,
        conn: ConnId,
        room: &str,
        options: JoinOptions<'_>,
        id: Option<crate::protocol::RequestId>,
    ) {
        let JoinOptions { since, info, ack, room_token } = options;
        let info = info.map(Into::into);
        let what = HookedWhat::Join { since, info, ack, room_token };
        self.hook(conn, HookedCommand { room: room.into(), id, what });
    }

    /// Stores a publish until the hook has decided.
    pub(super) fn hook_publish(
        &mut self,
        conn: ConnId,
        room: &str,
        payload: &[u8],
        echo: bool,
        keys: MessageKeys,
        id: Option<crate::protocol::RequestId>,
    ) {
        let MessageKeys { key, conflate_key } = keys;
        let payload = Bytes::copy_from_slice(payload);
        let what = HookedWhat::Publish { payload, echo, key, conflate_key };
        self.hook(conn, HookedCommand { room: room.into(), id, what });
    }

    fn hook(&mut self, conn: ConnId, command: HookedCommand) {
        if self.hooked.push(conn, command) {
            self.pause(conn);
            self.ask_hook(conn);
        }
    }

    /// Asks about the first command of a connection that waits.
    fn ask_hook(&mut self, conn: ConnId) {
        let user = self.user_of(conn);
        let TopicKind::User(user) = user.kind() else { unreachable!("it is a user's topic") };
        let has_token = self.conns.get(conn.0).is_some_and(|c| c.has_token);
        let Some(command) = self.hooked.next(conn) else { return };
        let (action, payload) = match &command.what {
            HookedWhat::Join { .. } => (HookedAction::Join, Bytes::new()),
            HookedWhat::Publish { payload, .. } => (HookedAction::Publish, payload.clone()),
        };
        let room = command.room.clone();
        let question = RoomQuestion { action, user: user.into(), has_token, room, payload };
        self.hooked.to_ask.push_back((conn, HookQuestion::Room(Box::new(question))));
    }
}
