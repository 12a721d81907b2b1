//! Rooms with presence: the shard only reports who joined and who left.
//!
//! What it adds up to is the backplane's business, because a user may have connections on several
//! shards and nodes. So the roster is not stored here: a connection is in it exactly while it is a
//! member. A connection's `info` is, because it belongs to the connection's session.
//!
//! Invariant: each coming is followed by one leaving, in the order of the window. For a room without
//! presence nothing is reported.

use crate::ids::{ConnId, TopicKind, TopicName};
use crate::link::{
    PresenceChange, PresenceReply, PresenceRequest, PresenceUpdate, ReplyTo, Uplink,
};
use crate::policy::rights::Action;
use crate::protocol::{ErrorCode, Event, Info, RequestId};
use crate::shard::command_error::CommandError;
use crate::shard::state::Shard;

impl Shard {
    /// A connection came into a room with presence, or joins it once more.
    pub(super) fn attend(
        &mut self,
        conn: ConnId,
        topic: &TopicName,
        info: Option<Info>,
        is_new: bool,
    ) {
        let of_token = || self.user_infos.get(&conn.0.index).cloned();
        let info = if is_new { of_token().or(info) } else { info };
        if let Some(info) = &info
            && let Some(at) = self.hub.find(topic, self.encoding_of(conn))
        {
            self.infos.set((conn, at.0.index), info.clone());
        }
        let deed = match (is_new, info) {
            (true, info) => PresenceChange::Joined { by: self.origin(conn), info },
            (false, Some(info)) => PresenceChange::InfoChanged(info),
            (false, None) => return,
        };
        self.report(conn, topic.clone(), deed);
    }

    /// Whom a token describes does not describe itself: others could not tell which of the two it is.
    pub(super) fn may_describe_itself(&self, conn: ConnId) -> Result<(), CommandError> {
        match self.user_infos.get(&conn.0.index) {
            None => Ok(()),
            Some(_) => Err(CommandError(
                ErrorCode::Forbidden,
                "info: the token of this user has one, join without",
            )),
        }
    }

    fn report(&mut self, conn: ConnId, topic: TopicName, deed: PresenceChange) {
        self.unsettle(conn);
        let user = self.user_of(conn);
        let update = PresenceUpdate { topic, user, deed };
        self.uplink.push_back(Uplink::PresenceUpdate(Box::new(update)));
    }

    /// A connection is about to leave a topic; it is still in its user's, which is the last one that
    /// it leaves.
    pub(super) fn unattend(&mut self, conn: ConnId, index: u32) {
        if !self.has_presence {
            return;
        }
        self.infos.remove(&(conn, index));
        let topic = self.hub.at(index).name();
        if self.config.namespaces.policy(topic.kind()).presence {
            self.report(conn, topic.clone(), PresenceChange::Left);
        }
    }

    /// Who is in a room that this connection is in.
    pub(super) fn on_presence(
        &mut self,
        conn: ConnId,
        room: &str,
        id: Option<RequestId>,
    ) -> Result<(), CommandError> {
        let at = self.may(conn, Action::ReadPresence, TopicKind::Room(room))?;
        let at = at.expect("a member is in a topic");
        self.may_ask(conn)?;
        let topic = self.hub.at(at.0.index).name().clone();
        let to = ReplyTo::Conn { shard: self.config.id, conn, id, turn: false };
        self.ask(conn, Uplink::Presence(Box::new(PresenceRequest { topic, to })));
        Ok(())
    }

    /// Passes a roster on to the connection that asked for it.
    pub(super) fn on_presence_reply(&mut self, reply: &PresenceReply) {
        let PresenceReply { conn, id, topic, here } = reply;
        let (conn, id) = (*conn, id.as_ref());
        let TopicKind::Room(room) = topic.kind() else { return };
        if let Some(here) = here {
            return self.answer(conn, &Event::Presence { id, room, here });
        }
        self.counters.requests_rejected += 1;
        let code = ErrorCode::BackplaneUnavailable;
        let message = "the backplane is away, ask again when it is back";
        self.answer(conn, &Event::Error { id, code, message });
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Shard, ShardConfig};
    use super::*;
    use crate::auth::{AnonymousSecret, Identity};
    use crate::ids::{NodeId, ShardId};
    use crate::link::{Downlink, RecoveryReply};
    use crate::policy::limits::Limits;
    use crate::policy::namespaces::Namespaces;
    use crate::policy::rights::Rights;
    use crate::protocol::Recovery;
    use crate::protocol::dialect::Encoding;
    use crate::protocol::run::Run;
    use crate::shard::Opening;
    use crate::shard::conn::CloseReason;
    use std::sync::Arc;

    fn shard() -> Shard {
        let namespaces =
            "here: presence=true, message_info=true; log: presence=true, history_size=9";
        Shard::new(ShardConfig {
            id: ShardId(0),
            node: NodeId(1),
            node_name: "n".into(),
            limits: Limits::TINY,
            namespaces: Arc::new(Namespaces::read(namespaces).unwrap()),
            anonymous_secret: AnonymousSecret::new([0; 16]),
        })
    }

    fn open(shard: &mut Shard, rooms: &[&str]) -> ConnId {
        open_with_info(shard, rooms, None)
    }

    fn open_with_info(shard: &mut Shard, rooms: &[&str], info: Option<&str>) -> ConnId {
        let conn = shard.handle_accept(0, 0).unwrap();
        let identity = Identity {
            user: Some("ann".into()),
            rights: Rights { publish: true, ..Rights::NONE },
            expires_unix_s: None,
            grants: None,
            info: info.map(Into::into),
            mark: None,
        };
        let rooms = rooms.iter().map(|room| room.to_string()).collect();
        let response = bytes::Bytes::from_static(b"101");
        shard.handle_open(conn, Opening { identity, response, rooms, encoding: Encoding::NATIVE });
        conn
    }

    fn say(shard: &mut Shard, conn: ConnId, json: &str) {
        let mut frame = vec![0x81, 0x80 | json.len() as u8, 0, 0, 0, 0];
        frame.extend_from_slice(json.as_bytes());
        shard.handle_read(conn, &mut frame);
    }

    /// What the shard reports; questions of rooms with a history are answered.
    fn reported(shard: &mut Shard) -> Vec<String> {
        let mut reported = Vec::new();
        while let Some(item) = shard.poll_uplink() {
            match item {
                Uplink::Join { topic, .. } => reported.push(format!("join {topic:?}")),
                Uplink::Leave { topic, .. } => reported.push(format!("leave {topic:?}")),
                Uplink::Recover(ask) => {
                    let position = crate::ids::Position { epoch: 1, offset: 0 };
                    let (at, conn, ticket) = (ask.at, ask.conn, ask.ticket);
                    let (recovery, missed) = (Recovery::NotAsked, Run::default());
                    let recovered = RecoveryReply { at, conn, ticket, position, recovery, missed };
                    shard.handle_downlink(Downlink::Recovered(Box::new(recovered)), 0);
                }
                Uplink::PresenceUpdate(attend) => {
                    let deed = match attend.deed {
                        PresenceChange::Joined { info, .. } => format!("came {info:?}"),
                        PresenceChange::InfoChanged(info) => format!("info {info:?}"),
                        PresenceChange::Left => "left".into(),
                    };
                    reported.push(format!("{:?} {:?} {deed}", attend.topic, attend.user));
                }
                other => panic!("{other:?}"),
            }
        }
        reported
    }

    #[test]
    fn each_coming_is_reported_once_and_so_is_each_leaving() {
        let mut shard = shard();
        let conn = open(&mut shard, &["here:a"]);
        let opened = ["join u:ann", "join r:here:a", "r:here:a u:ann came None"];
        assert_eq!(reported(&mut shard), opened);
        say(&mut shard, conn, r#"{"type":"join","room_id":"here:a"}"#);
        assert_eq!(reported(&mut shard), [""; 0], "it is there already, and says nothing new");
        say(&mut shard, conn, r#"{"type":"join","room_id":"here:a","info":7}"#);
        assert_eq!(reported(&mut shard), [r#"r:here:a u:ann info "7""#]);
        say(&mut shard, conn, r#"{"type":"join","room_id":"log:a","info":8}"#);
        let joined = ["join r:log:a", r#"r:log:a u:ann came Some("8")"#];
        assert_eq!(reported(&mut shard), joined);
        say(&mut shard, conn, r#"{"type":"leave","room_id":"here:a"}"#);
        assert_eq!(reported(&mut shard), ["r:here:a u:ann left", "leave r:here:a"]);
        shard.handle_peer_gone(conn, CloseReason::Gone);
        let ended = ["r:log:a u:ann left", "leave r:log:a", "leave u:ann"];
        assert_eq!(reported(&mut shard), ended);
    }

    #[test]
    fn whom_a_token_describes_is_described_by_it_alone() {
        let mut shard = shard();
        let conn = open_with_info(&mut shard, &["here:a"], Some("[1]"));
        let came = r#"r:here:a u:ann came Some("[1]")"#;
        assert_eq!(reported(&mut shard)[2], came);
        let rejected = shard.counters.requests_rejected;
        for room in ["here:a", "log:a"] {
            let join = format!(r#"{{"type":"join","room_id":"{room}","info":7}}"#);
            say(&mut shard, conn, &join);
        }
        assert_eq!(shard.counters.requests_rejected, rejected + 2, "it describes itself");
        assert_eq!(reported(&mut shard), [""; 0]);
        say(&mut shard, conn, r#"{"type":"join","room_id":"log:a"}"#);
        assert_eq!(reported(&mut shard)[1], r#"r:log:a u:ann came Some("[1]")"#);
    }

    #[test]
    fn a_message_shows_what_its_token_says_where_the_room_shows_it() {
        let mut shard = shard();
        let conn = open_with_info(&mut shard, &["here:a", "log:a"], Some("[1]"));
        let silent = open(&mut shard, &["here:a"]);
        reported(&mut shard);
        let mut info_of = |conn, room| {
            say(&mut shard, conn, &format!(r#"{{"room_id":"{room}","payload":1}}"#));
            match shard.poll_uplink() {
                Some(Uplink::Publish(publish)) => publish.info,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(info_of(conn, "here:a").as_deref(), Some("[1]"));
        assert_eq!(info_of(conn, "log:a"), None);
        assert_eq!(info_of(silent, "here:a"), None);
        shard.handle_write_error(conn);
        while shard.poll_closed().is_some() {}
        assert_eq!(shard.user_infos.get(&conn.0.index), None);
    }

    #[test]
    fn who_leaves_before_they_were_admitted_was_never_there() {
        let mut shard = shard();
        let conn = open(&mut shard, &[]);
        say(&mut shard, conn, r#"{"type":"join","room_id":"log:a"}"#);
        say(&mut shard, conn, r#"{"type":"leave","room_id":"log:a"}"#);
        let all = ["join u:ann", "join r:log:a", "leave r:log:a"];
        assert_eq!(reported(&mut shard), all);
    }

    #[test]
    fn a_join_that_is_refused_says_nothing_of_its_user() {
        let mut shard = shard();
        let conn = open(&mut shard, &["here:a"]);
        reported(&mut shard);
        let mut reports = 0;
        for _ in 0..100 {
            say(&mut shard, conn, r#"{"type":"join","room_id":"here:a","info":7}"#);
            reports += reported(&mut shard).len() as u64;
        }
        assert!(shard.counters.requests_rejected > 0, "so often before the first answer");
        assert_eq!(reports, 100 - shard.counters.requests_rejected);
    }

    #[test]
    fn rooms_without_presence_report_nothing() {
        let mut shard = shard();
        let conn = open(&mut shard, &["plain", "there:a"]);
        say(&mut shard, conn, r#"{"type":"join","room_id":"plain","info":1}"#);
        shard.handle_peer_gone(conn, CloseReason::Gone);
        assert!(reported(&mut shard).iter().all(|item| item.starts_with(['j', 'l'])));
    }
}
