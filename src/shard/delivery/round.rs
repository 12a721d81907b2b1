//! What waits for the members of topics: frames, joiners and losses, queued for the next round.

use crate::ids::TopicId;
use crate::link::RecoveryReply;
use crate::link::connections::encoding_of_everybody;
use crate::shard::hub::RoundId;
use crate::shard::state::Shard;
use crate::shard::state::deliveries::{RoundFrame, RoundItem};

impl Shard {
    /// Queues a frame of a topic for its next round.
    pub(in crate::shard) fn queue_frame(&mut self, to: TopicId, frame: RoundFrame) {
        let item = match encoding_of_everybody(to) {
            Some(encoding) => RoundItem::ForEverybody(frame, encoding),
            None => RoundItem::Frame(frame),
        };
        self.queue_item(to, item);
    }

    /// The members of a topic have to leave it, after what waits for them.
    pub(in crate::shard) fn queue_loss(&mut self, to: TopicId) {
        self.queue_item(to, RoundItem::Loss);
    }

    fn queue_item(&mut self, to: TopicId, item: RoundItem) {
        let d = &mut self.deliveries;
        let is_everybody = matches!(item, RoundItem::ForEverybody(..));
        let known = match is_everybody {
            true => d.everybody,
            false => match self.hub.get(to) {
                Some(topic) => topic.round,
                None => {
                    self.counters.dropped_stale += 1;
                    return;
                }
            },
        };
        let id = known.unwrap_or_else(|| d.begin(to));
        match self.hub.get_mut(to) {
            _ if is_everybody => d.everybody = Some(id),
            Some(topic) => topic.round = Some(id),
            None => {}
        }
        d.push(id, item);
    }

    /// Whether something for everybody waits or is being written.
    pub(in crate::shard) fn is_everybody_busy(&self) -> bool {
        self.deliveries.everybody.is_some()
    }

    /// Whether items of a round wait or are being written.
    pub(in crate::shard) fn is_busy(&mut self, round: RoundId) -> bool {
        let round = self.deliveries.round(round);
        round.current.is_some() || !round.items.is_empty()
    }

    /// Admits a joiner after the frames that wait.
    pub(in crate::shard) fn queue_joiner(&mut self, round: RoundId, joiner: Box<RecoveryReply>) {
        self.deliveries.push(round, RoundItem::Joiner(joiner));
    }

    pub(super) fn end_round(&mut self, id: RoundId, to: TopicId) {
        self.deliveries.free.push(id);
        if encoding_of_everybody(to).is_some() {
            self.deliveries.everybody = None;
        } else if let Some(topic) = self.hub.get_mut(to) {
            topic.round = None;
        }
    }

    /// The topic of a round was removed: what was being written has no receiver left.
    pub(in crate::shard) fn stop_walk(&mut self, round: RoundId) {
        if let Some(current) = self.deliveries.round(round).current.take() {
            self.deliveries.end_walk(&current);
        }
    }
}
