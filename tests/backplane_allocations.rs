//! A message on its way down allocates its frame and nothing else. Counted, because a timing would
//! not notice.

#[path = "common/counting.rs"]
mod counting;

use campanile::backplane::local::{Local, Message};
use campanile::ids::{NodeId, ShardId, SlotId, TopicId, TopicName};
use campanile::link::Downlink;
use campanile::link::channel::{ShardEnd, window};
use campanile::link::health::Health;
use counting::allocations_of;
use std::sync::Arc;
use std::time::Duration;

const MESSAGES: usize = 100;

/// What [`MESSAGES`] messages allocate between the envelope and the channels of `shards` shards.
fn allocations(shards: u16) -> usize {
    let (ends, end, _ops) = window(shards, 4, 2 * MESSAGES).unwrap();
    let mut local = Local::new(NodeId(1), end, Arc::new(Health::default()), Duration::ZERO, 0);
    for shard in (0..shards).map(ShardId) {
        let at = TopicId(SlotId { index: 0, generation: 0 });
        if let Some(key) = local.join(TopicName::room("room"), shard, at) {
            local.subscribed(key);
        }
    }
    deliver(&mut local);
    assert!(ends.iter().all(|end| take_frames(end) == MESSAGES), "the first round warms up");
    let (allocated, ()) = allocations_of(|| deliver(&mut local));
    assert!(ends.iter().all(|end| take_frames(end) == MESSAGES));
    allocated
}

fn deliver(local: &mut Local) {
    for _ in 0..MESSAGES {
        let payload = br#"{"some":"payload"}"#;
        local.message(&Message { topic: "r:room", from: Some("ann"), payload, except: None });
    }
    local.flush();
}

fn take_frames(end: &ShardEnd) -> usize {
    let items = std::iter::from_fn(|| end.try_recv());
    items.filter(|item| matches!(item, Downlink::Deliver { .. })).count()
}

#[test]
fn a_message_for_one_shard_allocates_its_frame_only() {
    assert_eq!(allocations(1), MESSAGES);
}

/// `Bytes` needs a counter of its own from the second owner on; the frame itself is not copied.
#[test]
fn a_message_for_many_shards_allocates_one_frame_and_one_counter() {
    assert_eq!(allocations(2), 2 * MESSAGES);
    assert_eq!(allocations(16), 2 * MESSAGES);
}
