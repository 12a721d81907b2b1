//! The ends of the window: who holds which half of which channel.
//!
//! Each shard has its own pair of bounded channels, so one shard in a flood cannot fill another's
//! road. The backplane fills all channels of a batch first and then rings each touched shard once.
//!
//! Invariant: what one shard and the backplane both write lies in lines of cache that no other shard
//! touches. The channels' two ends are padded by crossbeam, the flags here; `tests/layout.rs` looks
//! at the addresses, and at every instruction of a delivery.

use crate::ids::ShardId;
use crate::link::bell::Bell;
use crate::link::connections::ConnectionCounts;
use crate::link::taken_bytes::{SentBytes, TakenBytes, byte_counts};
use crate::link::{Downlink, Uplink};
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use crossbeam_utils::CachePadded;
use std::cell::Cell;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

/// A flag that two threads touch, with a line of cache to itself.
type Flag = CachePadded<AtomicBool>;

/// What a shard holds.
pub struct ShardEnd {
    /// Which shard.
    pub id: ShardId,
    /// Where it publishes how many connections a broadcast is for.
    pub connections: ConnectionCounts,
    uplink: Sender<Uplink>,
    downlink: Receiver<Downlink>,
    bell: Arc<Bell>,
    backplane: Arc<Bell>,
    stalled: Arc<Flag>,
    sent_bytes: SentBytes,
    taken_bytes: TakenBytes,
    /// Whether the last send found no room.
    waits: Cell<bool>,
}

impl ShardEnd {
    /// Sends, or gives the item back when the channel is full. The shard's bell rings as soon as
    /// there is room again; until then it must not read from its clients.
    #[allow(clippy::result_large_err)] // the item is the point: the shard keeps it
    pub fn try_send(&self, item: Uplink) -> Result<(), Uplink> {
        let item = match self.send_if_room(item) {
            Ok(()) => {
                self.waits.set(false);
                return Ok(());
            }
            Err(item) => item,
        };
        // Set the flag, then try again: either this succeeds or the backplane, which looks at
        // the flag after it has taken something, sees it.
        self.stalled.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let sent = self.send_if_room(item);
        self.waits.set(sent.is_err());
        sent
    }

    #[allow(clippy::result_large_err)] // as above
    fn send_if_room(&self, item: Uplink) -> Result<(), Uplink> {
        if !self.sent_bytes.has_room() {
            return Err(item);
        }
        let bytes = item.held_bytes();
        self.uplink.try_send(item).map_err(|error| match error {
            TrySendError::Full(item) | TrySendError::Disconnected(item) => item,
        })?;
        self.sent_bytes.add(bytes);
        Ok(())
    }

    /// [`ShardEnd::sent_waiting_bytes`] as it was last looked at, and what was sent since.
    #[inline]
    pub fn sent_waiting_bytes_at_most(&self) -> u64 {
        self.sent_bytes.waiting_at_most()
    }

    /// Bytes that this shard has sent and the backplane has not taken.
    pub fn sent_waiting_bytes(&self) -> u64 {
        self.sent_bytes.waiting()
    }

    /// Wakes the backplane if it sleeps. Once after a batch of sends.
    pub fn ring(&self) {
        self.backplane.ring();
    }

    /// The next item from the backplane or the ops thread.
    pub fn try_recv(&self) -> Option<Downlink> {
        let item = self.downlink.try_recv().ok()?;
        self.taken_bytes.add(item.held_bytes());
        Some(item)
    }

    /// Items this shard has sent and the backplane has not taken.
    pub fn sent_waiting(&self) -> usize {
        self.uplink.len()
    }

    /// Items waiting for this shard.
    pub fn waiting(&self) -> usize {
        self.downlink.len()
    }

    /// The bell that wakes this shard, for other threads to ring.
    pub fn bell(&self) -> &Arc<Bell> {
        &self.bell
    }

    /// Whether the shard may now wait for its bell. Not when room was made for an item that it could
    /// not send: the bell was not rung if that happened before the shard set its sleep flag.
    #[must_use]
    pub fn may_sleep(&self) -> bool {
        let may_send = || self.waits.get() && !self.stalled.load(Ordering::Relaxed);
        self.bell.may_sleep(|| self.downlink.is_empty() && !may_send())
    }
}

/// What the backplane holds for one shard.
pub struct ShardPort {
    /// Which shard.
    pub id: ShardId,
    /// How many connections of the shard a broadcast is for, by encoding.
    pub connections: ConnectionCounts,
    uplink: Receiver<Uplink>,
    downlink: Sender<Downlink>,
    bell: Arc<Bell>,
    stalled: Arc<Flag>,
    sent_bytes: SentBytes,
    taken_bytes: TakenBytes,
}

impl ShardPort {
    /// The next item from this shard.
    pub fn try_recv(&self) -> Option<Uplink> {
        let item = self.uplink.try_recv().ok()?;
        self.taken_bytes.add(item.held_bytes());
        Some(item)
    }

    /// [`ShardPort::downlink_waiting_bytes`] as it was last looked at, and what was sent since.
    #[inline]
    pub fn downlink_waiting_bytes_at_most(&self) -> u64 {
        self.sent_bytes.waiting_at_most()
    }

    /// Bytes that wait for the shard.
    pub fn downlink_waiting_bytes(&self) -> u64 {
        self.sent_bytes.waiting()
    }

    /// Items waiting from this shard.
    pub fn waiting(&self) -> usize {
        self.uplink.len()
    }

    /// After taking items: wakes the shard if it had found the channel full.
    pub fn made_room(&self) {
        fence(Ordering::SeqCst);
        if self.stalled.load(Ordering::Relaxed) && self.stalled.swap(false, Ordering::AcqRel) {
            self.bell.ring();
        }
    }

    /// Sends to the shard, or gives the item back when its channel is full. Does not ring.
    /// A shard that has ended counts as full.
    #[allow(clippy::result_large_err)] // the item is the point: the caller keeps or counts it
    pub fn try_send(&self, item: Downlink) -> Result<(), Downlink> {
        if !self.sent_bytes.has_room() {
            return Err(item);
        }
        let bytes = item.held_bytes();
        self.downlink.try_send(item).map_err(|error| match error {
            TrySendError::Full(item) | TrySendError::Disconnected(item) => item,
        })?;
        self.sent_bytes.add(bytes);
        Ok(())
    }

    /// Whether the shard has dropped its end: it ended, and nothing more will come. What it sent
    /// before may still wait.
    pub fn is_gone(&self) -> bool {
        // The flag is shared with the shard's end alone.
        Arc::strong_count(&self.stalled) == 1
    }

    /// Items waiting for the shard.
    pub fn downlink_waiting(&self) -> usize {
        self.downlink.len()
    }

    /// Wakes the shard if it sleeps. Once per batch.
    pub fn ring(&self) {
        self.bell.ring();
    }
}

/// What the backplane thread holds.
pub struct BackplaneEnd {
    /// One port a shard, in the order of their ids.
    pub shards: Vec<ShardPort>,
    ops: Receiver<Uplink>,
    bell: Arc<Bell>,
    stop: Arc<Flag>,
}

impl BackplaneEnd {
    /// The next publish from the ops thread.
    pub fn try_recv_ops(&self) -> Option<Uplink> {
        self.ops.try_recv().ok()
    }

    /// Whether the end was asked for ([`OpsEnd::stop_backplane`]).
    pub fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// The backplane's own bell.
    pub fn bell(&self) -> &Arc<Bell> {
        &self.bell
    }

    /// Publishes waiting from the ops thread.
    pub fn ops_waiting(&self) -> usize {
        self.ops.len()
    }

    /// Whether the backplane may now wait for its bell. `takes` says whose items it would take now:
    /// it may sleep over those of a shard it holds back, because something else will wake it.
    #[must_use]
    pub fn may_sleep(&self, takes: impl Fn(ShardId) -> bool, takes_ops: bool) -> bool {
        let waits = |port: &ShardPort| !port.uplink.is_empty() && takes(port.id);
        self.bell.may_sleep(|| {
            let ops_wait = takes_ops && !self.ops.is_empty();
            !self.is_stopped() && !ops_wait && !self.shards.iter().any(waits)
        })
    }
}

/// What the ops thread (and main, which drains) holds.
#[derive(Clone)]
pub struct OpsEnd {
    backplane: Sender<Uplink>,
    backplane_bell: Arc<Bell>,
    shards: Vec<(Sender<Downlink>, Arc<Bell>)>,
    stop: Arc<Flag>,
}

impl OpsEnd {
    /// Publishes, or gives the item back when the backplane has too much to do.
    #[allow(clippy::result_large_err)] // as above: the caller answers for it
    pub fn try_publish(&self, item: Uplink) -> Result<(), Uplink> {
        self.backplane.try_send(item).map_err(|error| match error {
            TrySendError::Full(item) | TrySendError::Disconnected(item) => item,
        })?;
        self.backplane_bell.ring();
        Ok(())
    }

    /// Asks the backplane to end at once, whatever it still has.
    pub fn stop_backplane(&self) {
        self.stop.store(true, Ordering::Release);
        self.backplane_bell.ring();
    }

    /// How many shards there are.
    pub fn shards(&self) -> usize {
        self.shards.len()
    }

    /// Sends to one shard and rings it; gives the item back when its channel is full.
    #[allow(clippy::result_large_err)] // as in `ShardPort::try_send`
    pub fn try_send(&self, shard: ShardId, item: Downlink) -> Result<(), Downlink> {
        let (downlink, bell) = &self.shards[usize::from(shard.0)];
        downlink.try_send(item).map_err(|error| match error {
            TrySendError::Full(item) | TrySendError::Disconnected(item) => item,
        })?;
        bell.ring();
        Ok(())
    }
}

/// How much each channel takes, in items and in bytes. One item may exceed the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowLimits {
    /// Items of one shard for the backplane.
    pub uplink_items_max: usize,
    /// Their bytes.
    pub uplink_bytes_max: u64,
    /// Items for one shard.
    pub downlink_items_max: usize,
    /// Their bytes.
    pub downlink_bytes_max: u64,
    /// Items of the ops thread for the backplane.
    pub ops_items_max: usize,
}

/// Makes all ends for `shards` shards with channels that are bounded in items alone, for tests.
pub fn window(
    shards: u16,
    uplink_items_max: usize,
    downlink_items_max: usize,
) -> io::Result<(Vec<ShardEnd>, BackplaneEnd, OpsEnd)> {
    let (uplink_bytes_max, downlink_bytes_max) = (u64::MAX, u64::MAX);
    let ops_items_max = uplink_items_max;
    let limits = WindowLimits {
        uplink_items_max,
        uplink_bytes_max,
        downlink_items_max,
        downlink_bytes_max,
        ops_items_max,
    };
    window_within(shards, limits)
}

/// Makes all ends for `shards` shards. Fails only when the kernel gives no more descriptors.
pub fn window_within(
    shards: u16,
    limits: WindowLimits,
) -> io::Result<(Vec<ShardEnd>, BackplaneEnd, OpsEnd)> {
    let WindowLimits { uplink_items_max, downlink_items_max, ops_items_max, .. } = limits;
    let backplane = Arc::new(Bell::new()?);
    let stop = Arc::new(Flag::default());
    let (ops_tx, ops_rx) = bounded(ops_items_max);
    let mut ends = Vec::new();
    let mut ports = Vec::new();
    let mut ops = Vec::new();
    for id in (0..shards).map(ShardId) {
        let (up_tx, up_rx) = bounded(uplink_items_max);
        let (down_tx, down_rx) = bounded(downlink_items_max);
        let bell = Arc::new(Bell::new()?);
        let stalled = Arc::new(Flag::default());
        let connections = ConnectionCounts::default();
        let (up_sent, up_taken) = byte_counts(limits.uplink_bytes_max);
        let (down_sent, down_taken) = byte_counts(limits.downlink_bytes_max);
        ops.push((down_tx.clone(), bell.clone()));
        ends.push(ShardEnd {
            id,
            connections: connections.clone(),
            uplink: up_tx,
            downlink: down_rx,
            bell: bell.clone(),
            backplane: backplane.clone(),
            stalled: stalled.clone(),
            sent_bytes: up_sent,
            taken_bytes: down_taken,
            waits: Cell::new(false),
        });
        ports.push(ShardPort {
            id,
            connections,
            uplink: up_rx,
            downlink: down_tx,
            bell,
            stalled,
            sent_bytes: down_sent,
            taken_bytes: up_taken,
        });
    }
    let bell = backplane.clone();
    let end = BackplaneEnd { shards: ports, ops: ops_rx, bell, stop: stop.clone() };
    Ok((ends, end, OpsEnd { backplane: ops_tx, backplane_bell: backplane, shards: ops, stop }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{SlotId, TopicId, TopicName};

    fn some_item() -> Uplink {
        let at = TopicId(SlotId { index: 0, generation: 0 });
        Uplink::Leave { topic: TopicName::all(), at }
    }

    #[test]
    fn a_shard_that_found_no_room_is_rung_when_there_is_some() {
        let (shards, end, _ops) = window(1, 1, 1).unwrap();
        let (shard, port) = (&shards[0], &end.shards[0]);
        assert!(shard.try_send(some_item()).is_ok());
        assert!(shard.try_send(some_item()).is_err());
        assert!(shard.may_sleep());
        assert!(port.try_recv().is_some());
        port.made_room();
        assert!(!shard.bell().ring(), "it was rung already");
    }

    #[test]
    fn a_shard_does_not_sleep_when_room_was_made_before_it_lay_down() {
        let (shards, end, _ops) = window(1, 1, 1).unwrap();
        let (shard, port) = (&shards[0], &end.shards[0]);
        assert!(shard.try_send(some_item()).is_ok());
        assert!(shard.try_send(some_item()).is_err());
        assert!(port.try_recv().is_some());
        port.made_room();
        assert!(!shard.may_sleep(), "nobody would wake it");
        assert!(shard.try_send(some_item()).is_ok());
        assert!(shard.may_sleep());
    }

    #[test]
    fn a_channel_is_full_when_its_bytes_are_and_the_shard_is_rung_when_they_are_taken() {
        let each = some_item().held_bytes();
        let limits = WindowLimits {
            ops_items_max: 100,
            uplink_items_max: 100,
            uplink_bytes_max: 2 * each,
            downlink_items_max: 100,
            downlink_bytes_max: 1,
        };
        let (shards, end, _ops) = window_within(1, limits).unwrap();
        let (shard, port) = (&shards[0], &end.shards[0]);
        assert!(shard.try_send(some_item()).is_ok());
        assert!(shard.try_send(some_item()).is_ok());
        assert!(shard.try_send(some_item()).is_err());
        assert_eq!(shard.sent_waiting_bytes(), 2 * each);
        assert!(shard.may_sleep());
        assert!(port.try_recv().is_some());
        port.made_room();
        assert!(!shard.bell().ring(), "it was rung already");
        assert!(shard.try_send(some_item()).is_ok());
        let answer = || Downlink::Settled;
        assert!(port.try_send(answer()).is_ok(), "one item may exceed the bytes");
        assert!(port.try_send(answer()).is_err());
        assert!(shard.try_recv().is_some());
        assert!(port.try_send(answer()).is_ok());
    }

    #[test]
    fn the_backplane_sleeps_over_items_it_does_not_take_and_no_others() {
        let (shards, end, ops) = window(2, 1, 1).unwrap();
        assert!(shards[1].try_send(some_item()).is_ok());
        assert!(!end.may_sleep(|_| true, true));
        assert!(end.may_sleep(|shard| shard == ShardId(0), true));
        assert!(ops.try_publish(some_item()).is_ok());
        assert!(!end.may_sleep(|_| false, true));
        assert!(end.may_sleep(|_| false, false));
        ops.stop_backplane();
        assert!(!end.may_sleep(|_| false, false));
    }

    #[test]
    fn a_shard_is_gone_when_it_has_dropped_its_end() {
        let (mut shards, end, _ops) = window(2, 1, 1).unwrap();
        shards.remove(0);
        assert!(end.shards[0].is_gone());
        assert!(!end.shards[1].is_gone());
    }
}
