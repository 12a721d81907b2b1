//! What members who acknowledge ask for, and what operators ask about them. Who they are stands in
//! `state/acks.rs`.

use crate::ids::{ConnId, Position, TopicId, TopicKind, UpTo};
use crate::link::AckReport;
use crate::policy::rights::Action;
use crate::protocol::{ErrorCode, Event, Recovery, RequestId};
use crate::shard::command_error::CommandError;
use crate::shard::state::Shard;
use crate::shard::state::acks::AckError;

impl Shard {
    /// A member who was just admitted acknowledges what it receives.
    pub(super) fn begin_acks(
        &mut self,
        conn: ConnId,
        at: TopicId,
        position: Position,
        since: Option<Position>,
        recovery: Recovery,
    ) {
        let now_ms = self.life.now_ms;
        let topic = self.hub.get_mut(at).expect("it was just admitted to it");
        topic.has_acks = true;
        let timeout_ms = self.config.namespaces.policy(topic.name().kind()).ack_timeout_ms;
        let received = match (recovery, since) {
            (Recovery::Recovered { messages }, Some(since)) => {
                let offset = position.offset.saturating_sub(messages);
                Position { epoch: since.epoch, offset }
            }
            // What follows was published in this very epoch.
            (Recovery::Replaced { messages }, _) => {
                Position { offset: position.offset.saturating_sub(messages), ..position }
            }
            _ => position,
        };
        self.acks.admit(at.0.index, conn, timeout_ms, position, received, now_ms);
    }

    /// A connection is about to leave a topic.
    pub(super) fn end_acks(&mut self, conn: ConnId, index: u32) {
        if self.hub.at(index).has_acks && self.acks.forget(index, conn) {
            let at = self.hub.id_at(index);
            self.hub.get_mut(at).expect("it was just looked at").has_acks = false;
        }
    }

    /// A member acknowledges messages.
    pub(super) fn on_ack_room(
        &mut self,
        conn: ConnId,
        room: &str,
        up_to: UpTo,
        id: Option<&RequestId>,
    ) -> Result<(), CommandError> {
        let acknowledged = match self.may(conn, Action::Acknowledge, TopicKind::Room(room))? {
            Some(at) => self.acks.acknowledge(at.0.index, conn, up_to),
            None => Err(AckError::NotAsked),
        };
        match acknowledged {
            Ok(()) => self.counters.acks += 1,
            Err(AckError::NotAsked) => {
                let message = "join the room with \"ack\":true before you acknowledge";
                return Err(CommandError(ErrorCode::NotJoined, message));
            }
            Err(AckError::Beyond) => {
                let message = "offset: nothing was sent to this room so far on";
                return Err(CommandError(ErrorCode::BadRequest, message));
            }
        }
        if id.is_some() {
            self.say(conn, &Event::done(id, Some(room)));
        }
        Ok(())
    }

    /// Who acknowledges in a room, and who lags.
    pub(super) fn ack_report(&mut self, at: TopicId) -> AckReport {
        self.acks.report(at.0.index, self.life.now_ms)
    }
}
