//! The queue for a shard whose channel is full.
//!
//! One full channel must not stop the other shards, so a delivery that finds no room waits in the
//! shard's [`ShardQueue`]; a burst is longer than any channel. While it waits, nothing more is
//! taken from that shard's clients. Beyond `downlink_backlog_bytes_max` a delivery is dropped,
//! counted under its topic, and reported as `Lost` as soon as there is room. What must not be
//! dropped (replies, and `Lost` itself) waits without that limit; it is bounded because a blocked
//! shard is not asked for more.
//!
//! Invariant: deliveries and `Lost` never overtake each other. While a loss is unreported, further
//! deliveries are dropped rather than sent past it.

use crate::ids::TopicId;
use crate::link::channel::ShardPort;
use crate::link::{Delivery, Downlink};
use hashbrown::HashMap;
use std::collections::VecDeque;

/// Capacity for waiting deliveries that stays allocated after a burst.
const BACKLOG_ITEMS_SPARE: usize = 256;

/// Bytes of a waiting delivery beside its frame.
const WAITING_BYTES: usize = size_of::<Downlink>();

/// What waits for one shard, and whether the shard has to be rung. One for each shard, owned by
/// [`crate::backplane::local::Local`].
pub(super) struct ShardQueue {
    answers: VecDeque<Downlink>,
    /// Deliveries in order, each with the bytes that it counts for.
    backlog: VecDeque<(Downlink, usize)>,
    backlog_bytes: usize,
    /// What all that waits keeps alive, replies included.
    held_bytes: u64,
    backlog_bytes_max: usize,
    /// Unreported drops by topic, and the order in which they began.
    lost: HashMap<TopicId, u64>,
    lost_order: VecDeque<TopicId>,
    is_touched: bool,
}

impl ShardQueue {
    /// An empty queue. `backlog_bytes_max` bounds the bytes of waiting deliveries.
    pub(super) fn new(backlog_bytes_max: usize) -> ShardQueue {
        ShardQueue {
            answers: VecDeque::new(),
            backlog: VecDeque::new(),
            backlog_bytes: 0,
            held_bytes: 0,
            backlog_bytes_max,
            lost: HashMap::new(),
            lost_order: VecDeque::new(),
            is_touched: false,
        }
    }

    /// Sends a reply, now or as soon as there is room. It is never dropped.
    pub(super) fn answer(&mut self, port: &ShardPort, item: Downlink) {
        self.held_bytes += item.held_bytes();
        self.answers.push_back(item);
        self.retry(port);
    }

    /// The same for a reply that must stay behind earlier deliveries.
    pub(super) fn answer_behind(&mut self, port: &ShardPort, mut item: Downlink) {
        self.retry(port);
        if !self.is_waiting() {
            match self.send(port, item) {
                Ok(()) => return,
                Err(back) => item = back,
            }
        }
        // Losses are reported after the backlog. This reply follows the deliveries before the loss,
        // as its position says, so the loss still covers everything up to it.
        self.held_bytes += item.held_bytes();
        self.backlog.push_back((item, 0));
        self.clear_if_gone(port);
    }

    /// Sends a delivery, now or when there is room. `false`: the backlog is full; the delivery is
    /// dropped, and will be reported as lost.
    #[must_use]
    pub(super) fn deliver(&mut self, port: &ShardPort, delivery: Delivery) -> bool {
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
            self.held_bytes += item.held_bytes();
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

    /// The topic has no members on this shard any more: its loss is not reported.
    pub(super) fn forget(&mut self, at: TopicId) {
        self.lost.remove(&at);
    }

    /// Sends what waits, as far as there is room: replies, then deliveries, then losses.
    pub(super) fn retry(&mut self, port: &ShardPort) {
        while let Some(item) = self.answers.pop_front() {
            let held_bytes = item.held_bytes();
            if let Err(item) = self.send(port, item) {
                self.answers.push_front(item);
                return self.clear_if_gone(port);
            }
            self.held_bytes -= held_bytes;
        }
        while let Some((item, bytes)) = self.backlog.pop_front() {
            let held_bytes = item.held_bytes();
            if let Err(item) = self.send(port, item) {
                self.backlog.push_front((item, bytes));
                return self.clear_if_gone(port);
            }
            self.backlog_bytes -= bytes;
            self.held_bytes -= held_bytes;
        }
        self.backlog.shrink_to(BACKLOG_ITEMS_SPARE);
        while let Some(to) = self.lost_order.pop_front() {
            let Some(count) = self.lost.remove(&to) else { continue }; // forgotten since
            if self.send(port, Downlink::Lost { to, count }).is_err() {
                self.lost.insert(to, count);
                self.lost_order.push_front(to);
                return self.clear_if_gone(port);
            }
        }
    }

    /// Whether replies or deliveries wait for room. While they do, nothing is taken from the shard:
    /// what its clients publish would only add to its deliveries.
    pub(super) fn is_held(&self) -> bool {
        !self.answers.is_empty() || !self.backlog.is_empty()
    }

    /// Whether anything waits for room. The shard does not ring when it has made some.
    pub(super) fn is_waiting(&self) -> bool {
        self.is_held() || !self.lost_order.is_empty()
    }

    /// Bytes of all that waits.
    pub(super) fn held_bytes(&self) -> u64 {
        self.held_bytes
    }

    /// Bytes of waiting deliveries.
    pub(super) fn backlog_bytes(&self) -> usize {
        self.backlog_bytes
    }

    /// Rings the shard if anything was sent since the last call.
    pub(super) fn ring(&mut self, port: &ShardPort) {
        if std::mem::take(&mut self.is_touched) {
            port.ring();
        }
    }

    /// A shard that has ended never makes room.
    fn clear_if_gone(&mut self, port: &ShardPort) {
        if port.is_gone() {
            *self = ShardQueue::new(self.backlog_bytes_max);
        }
    }

    #[allow(clippy::result_large_err)] // the item is put back
    fn send(&mut self, port: &ShardPort, item: Downlink) -> Result<(), Downlink> {
        port.try_send(item)?;
        self.is_touched = true;
        Ok(())
    }
}

/// A delivery as it crosses the channel, boxed only if it has to be, and the bytes that it counts
/// for.
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

    fn received(shard: &ShardEnd) -> Vec<String> {
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
    fn a_full_channel_drops_deliveries_and_reports_it_before_the_next_one() {
        let (shards, end, _ops) = window(1, 4, 2).unwrap();
        let (shard, port, mut queue) = (&shards[0], &end.shards[0], ShardQueue::new(0));
        let mut delivered = 0;
        for to in [1, 1, 1, 2, 1] {
            delivered += usize::from(queue.deliver(port, delivery(to)));
        }
        assert_eq!(delivered, 2);
        assert_eq!(received(shard), ["frame 1", "frame 1"]);
        assert!(!queue.deliver(port, delivery(3)), "both losses are reported first");
        assert_eq!(received(shard), ["lost 2 of 1", "lost 1 of 2"]);
        queue.retry(port);
        assert!(queue.deliver(port, delivery(1)));
        assert_eq!(received(shard), ["lost 1 of 3", "frame 1"]);
        assert!(!queue.is_waiting());
    }

    #[test]
    fn a_burst_waits_in_order_and_only_what_exceeds_the_bound_is_lost() {
        let (shards, end, _ops) = window(1, 4, 1).unwrap();
        let each = WAITING_BYTES + FRAME.len();
        let (shard, port, mut queue) = (&shards[0], &end.shards[0], ShardQueue::new(2 * each));
        for to in [1, 2, 3] {
            assert!(queue.deliver(port, delivery(to)));
        }
        assert!(queue.is_held(), "nothing more is taken from the shard");
        assert!(!queue.deliver(port, delivery(4)), "the backlog is full");
        let mut all = Vec::new();
        while queue.is_waiting() {
            all.extend(received(shard));
            queue.retry(port);
        }
        all.extend(received(shard));
        assert_eq!(all, ["frame 1", "frame 2", "frame 3", "lost 1 of 4"]);
        assert_eq!((queue.backlog_bytes, queue.held_bytes), (0, 0));
        assert!(queue.deliver(port, delivery(5)));
        assert_eq!(received(shard), ["frame 5"]);
    }

    #[test]
    fn a_reply_waits_for_room_and_nothing_overtakes_it() {
        let (shards, end, _ops) = window(1, 4, 1).unwrap();
        let (shard, port, mut queue) = (&shards[0], &end.shards[0], ShardQueue::new(0));
        queue.answer(port, Downlink::Joined { at: topic(1) });
        queue.answer(port, Downlink::Joined { at: topic(2) });
        assert!(queue.is_held());
        assert!(!queue.deliver(port, delivery(2)));
        assert_eq!(received(shard), ["joined 1"]);
        queue.retry(port);
        assert_eq!(received(shard), ["joined 2"]);
        assert!(!queue.is_held());
        queue.retry(port);
        assert_eq!(received(shard), ["lost 1 of 2"]);
    }

    #[test]
    fn a_topic_that_left_is_sent_no_loss() {
        let (shards, end, _ops) = window(1, 4, 1).unwrap();
        let (shard, port, mut queue) = (&shards[0], &end.shards[0], ShardQueue::new(0));
        let _sent = queue.deliver(port, delivery(1));
        let _dropped = queue.deliver(port, delivery(1));
        queue.forget(topic(1));
        assert_eq!(received(shard), ["frame 1"]);
        queue.retry(port);
        assert_eq!(received(shard), Vec::<String>::new());
        assert!(!queue.is_waiting());
    }

    #[test]
    fn nothing_waits_for_a_shard_that_has_ended() {
        let (shards, end, _ops) = window(1, 4, 1).unwrap();
        let (port, mut queue) = (&end.shards[0], ShardQueue::new(0));
        queue.answer(port, Downlink::Joined { at: topic(1) });
        queue.answer(port, Downlink::Joined { at: topic(2) });
        assert!(!queue.deliver(port, delivery(1)));
        assert!(queue.is_held() && queue.is_waiting());
        drop(shards);
        queue.retry(port);
        assert!(!queue.is_held() && !queue.is_waiting());
    }

    #[test]
    fn only_a_queue_that_sent_something_rings() {
        let (shards, end, _ops) = window(1, 4, 8).unwrap();
        let (shard, port, mut queue) = (&shards[0], &end.shards[0], ShardQueue::new(0));
        assert!(shard.may_sleep());
        queue.ring(port);
        assert!(shard.bell().ring(), "nothing was sent, so it still sleeps");
        assert!(shard.may_sleep());
        queue.answer(port, Downlink::Joined { at: topic(1) });
        queue.ring(port);
        assert!(!shard.bell().ring(), "it was woken");
    }
}
