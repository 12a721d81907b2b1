//! Messages of a topic were lost: what becomes of its members is for their dialect to say.
//!
//! 1. They receive an event in the place of what was lost, and stay.
//! 2. They leave the topic, and an event says so: the client joins again with its position.
//! 3. Their connections are closed.
//!
//! 2 and 3 are carried out after what the members had waiting before the loss, and outside of any walk
//! over them, a portion at a time.

use super::Shard;
use super::conn::CloseReason;
use crate::framing;
use crate::ids::{ConnId, TopicId, TopicKind};
use crate::link::connections::encoding_of_everybody;
use crate::protocol::Event;
use crate::protocol::dialect::LossVerdict;
use crate::shard::slow_consumer::frames::FrameKind;
use crate::shard::state::deliveries::RoundFrame;

impl Shard {
    /// Deliveries to a topic were lost on their way here.
    pub(super) fn on_lost(&mut self, to: TopicId, count: u64) {
        // Of a history that was set far ahead more is lost than was ever published.
        self.counters.lost = self.counters.lost.saturating_add(count);
        if let Some(position) = self.positions.get_mut(&to.0.index)
            && self.hub.get(to).is_some()
        {
            position.offset = position.offset.saturating_add(count);
        }
        let topic = self.hub.get(to).map(|topic| (topic.name().clone(), topic.encoding()));
        let known = topic.as_ref().map(|(name, encoding)| (name.kind(), *encoding));
        let everybody = encoding_of_everybody(to).map(|encoding| (TopicKind::All, encoding));
        let Some((topic, encoding)) = known.or(everybody) else { return };
        match encoding.dialect().on_loss(topic) {
            LossVerdict::Event => {
                let bytes = framing::frame(&Event::Lost { topic, count }, encoding);
                let kind = FrameKind::Lost(count);
                self.queue_frame(to, RoundFrame { bytes, except: None, kind });
            }
            LossVerdict::Leave | LossVerdict::Close => self.queue_loss(to),
        }
    }

    /// Lets some members of a topic leave, or closes them. `false`: there are more.
    pub(super) fn lose_members(&mut self, to: TopicId) -> bool {
        for _ in 0..self.limits.send_batch_max {
            let last = self.hub.get(to).and_then(|topic| topic.members().last().copied());
            let Some(member) = last else { return true };
            let conn = self.conns.id_at(member.conn).expect("a member is a connection");
            self.lose_member(ConnId(conn), to);
        }
        self.hub.get(to).is_none_or(|topic| topic.members().is_empty())
    }

    /// A member lost messages of a topic, and its dialect does not let it stay.
    pub(super) fn lose_member(&mut self, conn: ConnId, at: TopicId) {
        let Some(topic) = self.hub.get(at) else { return };
        let name = topic.name().clone();
        let verdict = topic.encoding().dialect().on_loss(name.kind());
        let slot = self.conns.get(conn.0).and_then(|c| c.joined.find(at.0.index));
        let Some(slot) = slot else { return };
        self.counters.removed_for_loss += 1;
        if verdict == LossVerdict::Close || matches!(name.kind(), TopicKind::User(_)) {
            return self.begin_close(conn, CloseReason::Lost);
        }
        self.leave_at(conn, slot);
        self.counters.leaves += 1;
        self.say(conn, &Event::Unsubscribed { topic: name.kind() });
    }
}
