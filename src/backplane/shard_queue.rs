//! What waits for a shard whose channel is full.
//!
//! A full channel must not stop the others, so a delivery that finds no room waits in the shard's
//! [`ShardQueue`]: a burst is longer than any channel. While it waits, nothing more is taken from that
//! shard's clients. Beyond `downlink_backlog_bytes_max` a delivery is dropped, counted under its
//! topic, and told as `Lost` as soon as there is room again. What must not be dropped (answers, and
//! `Lost` itself) waits in the lane without that limit.
//!
//! Invariant: deliveries and `Lost` never overtake each other. While a loss has not been told, a
//! delivery is dropped rather than sent past it.

use crate::ids::TopicId;
use crate::link::channel::ShardPort;
use crate::link::{Delivery, Downlink};
use hashbrown::HashMap;
use std::collections::VecDeque;

/// Room for so many waiting deliveries is kept after a burst.
const BACKLOG_ITEMS_KEPT: usize = 256;

/// What a waiting delivery takes beside its bytes.
const WAITING_BYTES: usize = size_of::<Downlink>();

/// What waits for one shard, and whether it has to be rung.
pub struct ShardQueue {
    answers: VecDeque<Downlink>,
    /// Deliveries in their order, each with what it counts for.
    backlog: VecDeque<(Downlink, usize)>,
    backlog_bytes: usize,
    backlog_bytes_max: usize,
    /// Drops not told yet, by topic, and in which order they began.
    lost: HashMap<TopicId, u64>,
    lost_order: VecDeque<TopicId>,
    is_touched: bool,
}

impl ShardQueue {
    /// Nothing waits. At most `backlog_bytes_max` bytes of deliveries ever will.
    pub fn new(backlog_bytes_max: usize) -> ShardQueue {
        ShardQueue {
            answers: VecDeque::new(),
            backlog: VecDeque::new(),
            backlog_bytes: 0,
            backlog_bytes_max,
            lost: HashMap::new(),
            lost_order: VecDeque::new(),
            is_touched: false,
        }
    }

    /// Sends something that must arrive, now or as soon as there is room.
    pub fn answer(&mut self, port: &ShardPort, item: Downlink) {
        self.answers.push_back(item);
        self.retry(port);
    }

    /// The same for an answer that must stay behind the deliveries before it.
    pub fn answer_behind(&mut self, port: &ShardPort, mut item: Downlink) {
        self.retry(port);
        if !self.is_waiting() {
            match self.send(port, item) {
                Ok(()) => return,
                Err(back) => item = back,
            }
        }
        // Losses are told behind the backlog. This is behind what came before them, which is what its
        // position says, and so the loss still covers everything up to it.
        self.backlog.push_back((item, 0));
        self.clear_if_gone(port);
    }

    /// Sends a delivery, now or when there is room. `false`: too much waits already; it is dropped,
    /// and will be told as lost.
    #[must_use]
    pub fn deliver(&mut self, port: &ShardPort, delivery: Delivery) -> bool {
        self.retry(port);
        let to = delivery.to;
        let (mut item, bytes) = item_of(delivery);
        if !self.is_waiting() {
            match self.send(port, item) {
                Ok(()) => return true,
                Err(back) => item = back,
            }
        }
        if self.lost_order.is_empty() && self.backlog_bytes + bytes <= self.backlog_bytes_max {
            self.backlog_bytes += bytes;
            self.backlog.push_back((item, bytes));
            return true;
        }
        let count = self.lost.entry(to).or_insert_with(|| {
            self.lost_order.push_back(to);
            0
        });
        *count += 1;
        false
    }

    /// The topic has no members on this shard any more: nobody is left to be told.
    pub fn forget(&mut self, at: TopicId) {
        self.lost.remove(&at);
    }

    /// Sends what waits, as far as there is room: answers, then deliveries, then what was lost after
    /// them.
    pub fn retry(&mut self, port: &ShardPort) {
        while let Some(item) = self.answers.pop_front() {
            if let Err(item) = self.send(port, item) {
                self.answers.push_front(item);
                return self.clear_if_gone(port);
            }
        }
        while let Some((item, bytes)) = self.backlog.pop_front() {
            if let Err(item) = self.send(port, item) {
                self.backlog.push_front((item, bytes));
                return self.clear_if_gone(port);
            }
            self.backlog_bytes -= bytes;
        }
        self.backlog.shrink_to(BACKLOG_ITEMS_KEPT);
        while let Some(to) = self.lost_order.pop_front() {
            let Some(count) = self.lost.remove(&to) else { continue }; // forgotten meanwhile
            if self.send(port, Downlink::Lost { to, count }).is_err() {
                self.lost.insert(to, count);
                self.lost_order.push_front(to);
                return self.clear_if_gone(port);
            }
        }
    }

    /// Whether answers or deliveries wait for room. Until they have gone, the shard is not asked for
    /// more: what its clients say would only add to what they have to hear.
    pub fn is_held(&self) -> bool {
        !self.answers.is_empty() || !self.backlog.is_empty()
    }

    /// Whether anything waits for room. The shard does not ring when there is some.
    pub fn is_waiting(&self) -> bool {
        self.is_held() || !self.lost_order.is_empty()
    }

    /// Bytes of deliveries that wait.
    pub fn backlog_bytes(&self) -> usize {
        self.backlog_bytes
    }

    /// Rings the shard if anything was sent since the last time.
    pub fn ring(&mut self, port: &ShardPort) {
        if std::mem::take(&mut self.is_touched) {
            port.ring();
        }
    }

    /// A shard that has ended will never make room, and has nobody left to be told.
    fn clear_if_gone(&mut self, port: &ShardPort) {
        if port.is_gone() {
            *self = ShardQueue::new(self.backlog_bytes_max);
        }
    }

    #[allow(clippy::result_large_err)] // the item goes back to its place
    fn send(&mut self, port: &ShardPort, item: Downlink) -> Result<(), Downlink> {
        port.try_send(item)?;
        self.is_touched = true;
        Ok(())
    }
}

/// A delivery as it crosses, boxed only if it has to be, and what it counts for while it waits.
fn item_of(delivery: Delivery) -> (Downlink, usize) {
    let bytes = WAITING_BYTES + delivery.frame.len();
    match delivery {
        Delivery { to, frame, except, position: None, conflate_key: None } => {
            (Downlink::Deliver { to, frame, except }, bytes)
        }
        more => (Downlink::DeliverWith(Box::new(more)), bytes + size_of::<Delivery>()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::SlotId;
    use crate::link::channel::{ShardEnd, window};
    use bytes::Bytes;

    fn topic(index: u32) -> TopicId {
        TopicId(SlotId { index, generation: 0 })
    }

    const FRAME: &[u8] = b"frame";

    fn delivery(to: u32) -> Delivery {
        let (to, frame) = (topic(to), Bytes::from_static(FRAME));
        Delivery { to, frame, except: None, position: None, conflate_key: None }
    }

    fn heard(shard: &ShardEnd) -> Vec<String> {
        std::iter::from_fn(|| shard.try_recv())
            .map(|item| match item {
                Downlink::Joined { at } => format!("joined {}", at.0.index),
                Downlink::Deliver { to, .. } => format!("frame {}", to.0.index),
                Downlink::Lost { to, count } => format!("lost {} of {}", count, to.0.index),
                _ => unreachable!("nothing else was sent"),
            })
            .collect()
    }

    #[test]
    fn a_full_channel_drops_deliveries_and_says_so_before_the_next_one() {
        let (shards, end, _ops) = window(1, 4, 2).unwrap();
        let (shard, port, mut lane) = (&shards[0], &end.shards[0], ShardQueue::new(0));
        let mut delivered = 0;
        for to in [1, 1, 1, 2, 1] {
            delivered += usize::from(lane.deliver(port, delivery(to)));
        }
        assert_eq!(delivered, 2);
        assert_eq!(heard(shard), ["frame 1", "frame 1"]);
        assert!(!lane.deliver(port, delivery(3)), "both losses go first");
        assert_eq!(heard(shard), ["lost 2 of 1", "lost 1 of 2"]);
        lane.retry(port);
        assert!(lane.deliver(port, delivery(1)));
        assert_eq!(heard(shard), ["lost 1 of 3", "frame 1"]);
        assert!(!lane.is_waiting());
    }

    #[test]
    fn a_burst_waits_in_its_order_and_only_what_is_too_much_is_lost() {
        let (shards, end, _ops) = window(1, 4, 1).unwrap();
        let each = WAITING_BYTES + FRAME.len();
        let (shard, port, mut lane) = (&shards[0], &end.shards[0], ShardQueue::new(2 * each));
        for to in [1, 2, 3] {
            assert!(lane.deliver(port, delivery(to)));
        }
        assert!(lane.is_held(), "and so is the shard");
        assert!(!lane.deliver(port, delivery(4)), "one more than may wait");
        let mut all = Vec::new();
        while lane.is_waiting() {
            all.extend(heard(shard));
            lane.retry(port);
        }
        all.extend(heard(shard));
        assert_eq!(all, ["frame 1", "frame 2", "frame 3", "lost 1 of 4"]);
        assert_eq!(lane.backlog_bytes, 0);
        assert!(lane.deliver(port, delivery(5)));
        assert_eq!(heard(shard), ["frame 5"]);
    }

    #[test]
    fn an_answer_waits_for_room_and_nothing_overtakes_it() {
        let (shards, end, _ops) = window(1, 4, 1).unwrap();
        let (shard, port, mut lane) = (&shards[0], &end.shards[0], ShardQueue::new(0));
        lane.answer(port, Downlink::Joined { at: topic(1) });
        lane.answer(port, Downlink::Joined { at: topic(2) });
        assert!(lane.is_held());
        assert!(!lane.deliver(port, delivery(2)));
        assert_eq!(heard(shard), ["joined 1"]);
        lane.retry(port);
        assert_eq!(heard(shard), ["joined 2"]);
        assert!(!lane.is_held());
        lane.retry(port);
        assert_eq!(heard(shard), ["lost 1 of 2"]);
    }

    #[test]
    fn a_topic_that_left_is_told_of_no_loss() {
        let (shards, end, _ops) = window(1, 4, 1).unwrap();
        let (shard, port, mut lane) = (&shards[0], &end.shards[0], ShardQueue::new(0));
        let _sent = lane.deliver(port, delivery(1));
        let _dropped = lane.deliver(port, delivery(1));
        lane.forget(topic(1));
        assert_eq!(heard(shard), ["frame 1"]);
        lane.retry(port);
        assert_eq!(heard(shard), Vec::<String>::new());
        assert!(!lane.is_waiting());
    }

    #[test]
    fn nothing_waits_for_a_shard_that_has_ended() {
        let (shards, end, _ops) = window(1, 4, 1).unwrap();
        let (port, mut lane) = (&end.shards[0], ShardQueue::new(0));
        lane.answer(port, Downlink::Joined { at: topic(1) });
        lane.answer(port, Downlink::Joined { at: topic(2) });
        assert!(!lane.deliver(port, delivery(1)));
        assert!(lane.is_held() && lane.is_waiting());
        drop(shards);
        lane.retry(port);
        assert!(!lane.is_held() && !lane.is_waiting());
    }

    #[test]
    fn only_a_lane_that_sent_something_rings() {
        let (shards, end, _ops) = window(1, 4, 8).unwrap();
        let (shard, port, mut lane) = (&shards[0], &end.shards[0], ShardQueue::new(0));
        assert!(shard.may_sleep());
        lane.ring(port);
        assert!(shard.bell().ring(), "nothing was sent, so it still sleeps");
        assert!(shard.may_sleep());
        lane.answer(port, Downlink::Joined { at: topic(1) });
        lane.ring(port);
        assert!(!shard.bell().ring(), "it was woken");
    }
}
