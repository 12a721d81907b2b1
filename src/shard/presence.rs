//! Rooms of which it is known who is there: the shard only reports who came and who left.
//!
//! What it adds up to is the backplane's business, because a user may have connections on several
//! shards and nodes. So nothing is kept here: a connection is there exactly while it is a member.
//!
//! Invariant: each coming is followed by one leaving, in the order of the window. For a room without
//! presence nothing is reported.

use super::Shard;
use super::commands::No;
use crate::ids::{ConnId, TopicKind, TopicName};
use crate::link::{AskPresence, Attend, Deed, PresenceTo, ToldPresence, Uplink};
use crate::protocol::{ErrorCode, Event, Info, RequestId};

impl Shard {
    /// A connection came into a room with presence, or joins it once more.
    pub(super) fn attend(
        &mut self,
        conn: ConnId,
        topic: &TopicName,
        info: Option<Info>,
        is_new: bool,
    ) {
        let deed = match (is_new, info) {
            (true, info) => Deed::Came { by: self.origin(conn), info },
            (false, Some(info)) => Deed::Said(info),
            (false, None) => return,
        };
        let (topic, user) = (topic.clone(), self.user_of(conn));
        self.uplink.push_back(Uplink::Attend(Box::new(Attend { topic, user, deed })));
    }

    /// A connection is about to leave a topic; it is still in its user's, which is the last one that
    /// it leaves.
    pub(super) fn unattend(&mut self, conn: ConnId, index: u32) {
        if !self.has_presence {
            return;
        }
        let topic = self.hub.at(index).name();
        if self.config.namespaces.policy(topic.kind()).presence {
            let (topic, user) = (topic.clone(), self.user_of(conn));
            let deed = Deed::Left;
            self.uplink.push_back(Uplink::Attend(Box::new(Attend { topic, user, deed })));
        }
    }

    /// Who is in a room that this connection is in.
    pub(super) fn on_presence(
        &mut self,
        conn: ConnId,
        room: &str,
        id: Option<RequestId>,
    ) -> Result<(), No> {
        if !self.config.namespaces.policy_of_room(room).presence {
            return Err(No(ErrorCode::NotEnabled, "presence is not enabled for this room"));
        }
        let Some(at) = self.hub.find_room(room).filter(|at| self.is_in(conn, *at)) else {
            return Err(No(ErrorCode::NotJoined, "join the room before you ask who is there"));
        };
        let topic = self.hub.at(at.0.index).name().clone();
        let to = PresenceTo::Conn { shard: self.config.id, conn, id };
        self.uplink.push_back(Uplink::Presence(Box::new(AskPresence { topic, to })));
        Ok(())
    }

    /// Who is there, for whoever asked.
    pub(super) fn on_told_presence(&mut self, told: &ToldPresence) {
        let ToldPresence { conn, id, topic, here } = told;
        let (conn, id) = (*conn, id.as_ref());
        let TopicKind::Room(room) = topic.kind() else { return };
        if let Some(here) = here {
            return self.say(conn, &Event::Presence { id, room, here });
        }
        self.counters.requests_rejected += 1;
        let code = ErrorCode::BackplaneUnavailable;
        let message = "the backplane is away, ask again when it is back";
        self.say(conn, &Event::Error { id, code, message });
    }
}
