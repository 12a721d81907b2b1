//! A message on its way down allocates its frame and nothing else. Counted, because a timing would
//! not notice.

#[path = "common/counting.rs"]
mod counting;

use bytes::Bytes;
use campanile::backplane::embedded::Embedded;
use campanile::backplane::local::Local;
use campanile::backplane::message::Message;
use campanile::backplane::transport::Transport;
use campanile::ids::{ConflateKey, ConnId, NodeId, ShardId, SlotId, TopicId, TopicName};
use campanile::link::channel::{ShardEnd, window};
use campanile::link::health::Health;
use campanile::link::{Downlink, Publish, ReplyTo};
use campanile::policy::limits::Limits;
use campanile::protocol::dialect::Encoding;
use counting::allocations_of;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

const MESSAGES: usize = 120;
const ROOMS: usize = 60;

/// Which shards have members of a room.
type Members = fn(room: usize, shard: u16, shards: u16) -> bool;

const ON_ONE: Members = |room, shard, shards| room % usize::from(shards) == usize::from(shard);
const ON_ALL: Members = |_, _, _| true;

fn room(number: usize) -> TopicName {
    TopicName::room(&format!("room{}", number % ROOMS))
}

/// A backplane whose shards have joined, and their ends.
fn node(shards: u16, members: Members) -> (Vec<ShardEnd>, Local) {
    let (ends, end, _ops) = window(shards, 4, 2 * MESSAGES + ROOMS).unwrap();
    let mut local = Local::new(NodeId(1), end, Arc::new(Health::default()), Duration::ZERO, 0);
    for number in 0..ROOMS {
        for shard in (0..shards).filter(|shard| members(number, *shard, shards)).map(ShardId) {
            let at = TopicId(SlotId { index: number as u32, generation: 0 });
            if let Some(key) = local.join(room(number), shard, Encoding::NATIVE, at) {
                local.confirm_subscription(key, 0);
            }
        }
    }
    ends.iter().for_each(|end| while end.try_recv().is_some() {});
    (ends, local)
}

fn take_frames(ends: &[ShardEnd]) -> usize {
    let items = ends.iter().flat_map(|end| std::iter::from_fn(|| end.try_recv()));
    let is_frame =
        |item: &Downlink| matches!(item, Downlink::Deliver { .. } | Downlink::DeliverWith(_));
    items.filter(is_frame).count()
}

/// What [`MESSAGES`] messages allocate between the envelope and the channels of `shards` shards.
fn allocations(shards: u16, members: Members, conflate_key: Option<ConflateKey>) -> usize {
    let (ends, mut local) = node(shards, members);
    let copies = MESSAGES * (0..shards).filter(|shard| members(0, *shard, shards)).count();
    let topics: Vec<TopicName> = (0..MESSAGES).map(room).collect();
    let mut deliver = || {
        for topic in &topics {
            let (topic, payload) = (topic.as_str(), br#"{"some":"payload"}"#);
            local.message(&Message {
                topic,
                from: Some("ann"),
                info: None,
                payload,
                except: None,
                conflate_key,
                key: None,
            });
        }
        local.flush();
    };
    deliver();
    assert_eq!(take_frames(&ends), copies, "the first round warms up");
    let (allocated, ()) = allocations_of(deliver);
    assert_eq!(take_frames(&ends), copies);
    allocated
}

#[test]
fn a_message_for_one_of_many_shards_allocates_its_frame_only() {
    for shards in [1, 2, 60] {
        assert_eq!(allocations(shards, ON_ONE, None), MESSAGES, "{shards} shards");
    }
}

/// `Bytes` needs a counter of its own from the second owner on; the frame itself is not copied.
#[test]
fn a_message_for_many_shards_allocates_one_frame_and_one_counter() {
    for shards in [2, 16, 60] {
        assert_eq!(allocations(shards, ON_ALL, None), 2 * MESSAGES, "{shards} shards");
    }
}

/// What only some deliveries need travels in one box for each shard.
#[test]
fn a_message_that_may_be_replaced_allocates_one_box_more_for_each_shard() {
    let about = ConflateKey::of("EURUSD");
    for shards in [2, 16, 60] {
        assert_eq!(allocations(shards, ON_ONE, about), 2 * MESSAGES, "{shards} shards");
        let all = (2 + usize::from(shards)) * MESSAGES;
        assert_eq!(allocations(shards, ON_ALL, about), all, "{shards} shards");
    }
}

/// The whole way of the embedded backplane: taken from a shard, ordered, handed on, acknowledged.
#[test]
fn a_publish_on_a_node_alone_allocates_its_frame_only() {
    for shards in [1, 2, 60] {
        let (ends, mut local) = node(shards, ON_ONE);
        let (mut embedded, now) =
            (Embedded::new(Default::default(), &Limits::PRODUCTION), Instant::now());
        let mut cx = Context::from_waker(Waker::noop());
        let mut turn = |publishes: Vec<Publish>| {
            let (allocated, ()) = allocations_of(|| {
                for mut publish in publishes {
                    local.begin_publish(&mut publish);
                    local.sample_publish(&publish, now);
                    embedded.publish(publish, now, &mut local);
                }
                while embedded.poll(&mut cx, now, &mut local) {}
                local.flush();
            });
            assert_eq!(take_frames(&ends), MESSAGES);
            allocated
        };
        turn((0..MESSAGES).map(publish).collect());
        let allocated = turn((0..MESSAGES).map(publish).collect());
        assert_eq!(allocated, MESSAGES, "{shards} shards");
    }
}

fn publish(number: usize) -> Publish {
    let conn = ConnId(SlotId { index: 0, generation: 0 });
    Publish {
        topic: room(number),
        payload: Bytes::from_static(br#"{"some":"payload"}"#),
        from: Some(TopicName::user("ann")),
        info: None,
        except: None,
        key: None,
        conflate_key: None,
        done: ReplyTo::Conn { shard: ShardId(0), conn, id: None, turn: false },
    }
}
