//! What every backplane must do. Each story gets a world of one kind.
//!
//! That a shard receives nothing is proved by what it receives next: a marker published afterwards
//! on the same path. Rooms of one partition have the same path, whatever the servers.

use crate::world::{EVERYBODY, Received, World, join, payload};
use bytes::Bytes;
use campanile::backplane::partition::partition;
use campanile::ids::{ConflateKey, TopicName};
use campanile::link::{Disconnect, DisconnectRequest, Publish, PublishOutcome, ReplyTo, Uplink};
use std::sync::mpsc;
use std::time::Duration;

/// Two rooms of one partition.
fn neighbours() -> (TopicName, TopicName) {
    let room = TopicName::room("room");
    let others = (0..).map(|n: u32| TopicName::room(&format!("other-{n}")));
    let is_near = |other: &TopicName| partition(other.as_str()) == partition(room.as_str());
    let other = others.into_iter().find(is_near).expect("one in a thousand");
    (room, other)
}

pub fn every_shard_with_members_on_every_node_receives_and_no_other(world: World) {
    let (room, other) = neighbours();
    let silent = world.nodes[0].shards.len() - 1;
    for (index, shard) in world.shards().enumerate() {
        shard.join_and_receive(&other, 1);
        if index != silent {
            shard.join_and_receive(&room, 2);
        }
    }
    let publisher = world.shards().next().unwrap();
    publisher.publish(&room, r#"{"n":1.0}"#);
    publisher.publish(&other, r#""marker""#);
    for (index, shard) in world.shards().enumerate() {
        if index != silent {
            let Received::Frame { to: 2, json, except: None } = shard.receive() else { panic!() };
            assert_eq!(
                json,
                r#"{"type":"message","room_id":"room","from":"ann","payload":{"n":1.0}}"#
            );
        }
        assert_eq!(payload(shard.receive(), 1), r#""marker""#, "and nothing else before");
    }
}

pub fn the_order_of_a_publisher_is_kept_in_its_topic(world: World) {
    let room = TopicName::room("room");
    for shard in world.shards() {
        shard.join_and_receive(&room, 1);
    }
    let publishers: Vec<_> = world.nodes.iter().map(|node| &node.shards[0]).collect();
    let each = 2000;
    for n in 0..each {
        for (who, publisher) in publishers.iter().enumerate() {
            publisher.publish(&room, &format!("[{who},{n}]"));
        }
    }
    for shard in world.shards() {
        let mut next = vec![0; publishers.len()];
        for said in shard.receive_payloads(1, each * publishers.len()) {
            let [who, n]: [usize; 2] = serde_json::from_str(&said).unwrap();
            assert_eq!(n, next[who], "from node {who}");
            next[who] += 1;
        }
    }
}

pub fn a_sender_is_excepted_on_its_own_shard_only(world: World) {
    let room = TopicName::room("room");
    for shard in world.shards() {
        shard.join_and_receive(&room, 1);
    }
    let publisher = world.shards().next().unwrap();
    publisher.publish_as(&room, "1", None, Some(42));
    for shard in world.shards() {
        let Received::Frame { except, .. } = shard.receive() else { panic!() };
        let is_origin = shard.node == publisher.node && shard.end.id == publisher.end.id;
        assert_eq!(except, is_origin.then_some(42));
    }
}

pub fn users_and_everybody_are_topics_too(world: World) {
    let (user, all) = (TopicName::user("bob"), TopicName::all());
    for shard in world.shards() {
        shard.join_and_receive(&user, 1);
        shard.has_connections();
    }
    let publisher = world.shards().last().unwrap();
    publisher.publish(&user, "1");
    for shard in world.shards() {
        let Received::Frame { to: 1, json, .. } = shard.receive() else { panic!() };
        let expected = r#"{"type":"message","target_user_id":"bob","from":"ann","payload":1}"#;
        assert_eq!(json, expected);
    }
    publisher.publish(&all, "2");
    for shard in world.shards() {
        assert_eq!(payload(shard.receive(), EVERYBODY), "2");
    }
}

pub fn a_shard_without_members_receives_nothing_more(world: World) {
    let (room, other) = neighbours();
    for shard in world.shards() {
        shard.join_and_receive(&room, 1);
        shard.join_and_receive(&other, 2);
    }
    let publisher = world.shards().next().unwrap();
    publisher.leave(&room, 1);
    publisher.publish(&room, r#""left""#);
    publisher.publish(&other, r#""marker""#);
    assert_eq!(payload(publisher.receive(), 2), r#""marker""#);
    for shard in world.shards().skip(1) {
        assert_eq!(payload(shard.receive(), 1), r#""left""#);
        assert_eq!(payload(shard.receive(), 2), r#""marker""#);
    }
}

pub fn a_shard_that_joins_again_receives_under_its_new_key(world: World) {
    let room = TopicName::room("room");
    let shard = world.shards().next().unwrap();
    shard.join_and_receive(&room, 1);
    for at in 2..50 {
        shard.leave(&room, at - 1);
        shard.join_and_receive(&room, at);
        // A late leave of an earlier join must not end this one.
        shard.leave(&room, at - 1);
        shard.publish(&room, &at.to_string());
        assert_eq!(payload(shard.receive(), at), at.to_string());
    }
}

pub fn a_join_and_leave_at_once_leaves_nothing_behind(world: World) {
    let (room, marker) = (TopicName::room("room"), TopicName::room("marker"));
    let shard = world.shards().next().unwrap();
    for at in 0..100 {
        shard.join(&room, at);
        shard.leave(&room, at);
    }
    shard.join(&marker, 1000);
    loop {
        match shard.receive() {
            Received::Joined(1000) => break,
            Received::Joined(at) => assert!(at < 100, "an answer to a join that has left"),
            other => panic!("{other:?}"),
        }
    }
    shard.publish(&room, "1");
    shard.publish(&marker, "2");
    assert_eq!(payload(shard.receive(), 1000), "2");
}

/// The world has channels of eight items.
pub fn a_full_shard_is_told_how_much_it_lost_and_then_receives_again(world: World) {
    let (room, other) = neighbours();
    let (slow, quick) = (&world.nodes[0].shards[0], &world.nodes[0].shards[1]);
    slow.join_and_receive(&room, 1);
    quick.join_and_receive(&other, 2);
    let sent = 100;
    for n in 0..sent {
        quick.publish(&room, &n.to_string());
    }
    // The fast shard is not delayed by the slow one, and now everything has been delivered to it.
    quick.publish(&other, "0");
    assert_eq!(payload(quick.receive(), 2), "0");
    let kept = slow.end.waiting();
    assert_eq!(kept, 8);
    let expected: Vec<String> = (0..kept).map(|n| n.to_string()).collect();
    assert_eq!(slow.receive_payloads(1, kept), expected);
    assert_eq!(slow.receive(), Received::Lost { to: 1, count: sent - kept as u64 });
    quick.publish(&room, r#""later""#);
    assert_eq!(payload(slow.receive(), 1), r#""later""#);
}

/// The world has channels of eight items, and the usual backlog behind them.
pub fn a_burst_that_fits_the_backlog_arrives_whole_and_in_order(world: World) {
    let (room, other) = neighbours();
    let (slow, quick) = (&world.nodes[0].shards[0], &world.nodes[0].shards[1]);
    slow.join_and_receive(&room, 1);
    quick.join_and_receive(&other, 2);
    for n in 0..1000 {
        quick.publish(&room, &n.to_string());
    }
    quick.publish(&other, "0");
    assert_eq!(payload(quick.receive(), 2), "0", "the quick shard waits for nobody");
    let expected: Vec<String> = (0..1000).map(|n| n.to_string()).collect();
    assert_eq!(slow.receive_payloads(1, 1000), expected);
}

/// The world has channels of eight items.
pub fn replies_wait_for_a_full_shard_instead_of_being_dropped(world: World) {
    let shard = &world.nodes[0].shards[0];
    let joins = 300;
    let mut answers = 0;
    for at in 0..joins {
        let mut item = join(&TopicName::room(&at.to_string()), at);
        // The uplink fills up as soon as a reply waits; then this shard is emptied first.
        while let Err(back) = shard.end.try_send(item) {
            item = back;
            shard.end.ring();
            if let Some(received) = shard.try_receive() {
                assert!(matches!(received, Received::Joined(_)), "{received:?}");
                answers += 1;
            }
        }
        shard.end.ring();
    }
    for _ in answers..joins {
        assert!(matches!(shard.receive(), Received::Joined(_)));
    }
}

pub fn a_shard_learns_when_all_that_it_published_has_ended(world: World) {
    let shard = world.shards().next().unwrap();
    for turn in 0..3u64 {
        for n in 0..20 {
            let id = (n % 3 == 0).then_some(100 * turn + n);
            let room = TopicName::room(&format!("room-{n}"));
            shard.publish_as(&room, "1", id, None);
        }
        shard.send(Uplink::Settle);
        let mut asked: Vec<u64> = (0..20).step_by(3).map(|n| 100 * turn + n).collect();
        loop {
            match shard.receive() {
                Received::Ack { id, outcome: PublishOutcome::Accepted(_), .. } => {
                    asked.retain(|asked| Some(*asked) != id);
                }
                Received::Settled => break assert!(asked.is_empty(), "{asked:?} are not answered"),
                other => panic!("{other:?}"),
            }
        }
    }
}

pub fn a_conflate_key_comes_with_its_message_and_with_no_other(world: World) {
    let room = TopicName::room("room");
    for shard in world.shards() {
        shard.join_and_receive(&room, 1);
    }
    let publisher = world.shards().next().unwrap();
    let (apple, other) = (ConflateKey::of("AAPL").unwrap(), ConflateKey::of("MSFT").unwrap());
    publisher.publish(&room, "0");
    publisher.publish_conflated(&room, "1", apple);
    publisher.publish_conflated(&room, "2", other);
    for shard in world.shards() {
        assert_eq!(payload(shard.receive(), 1), "0");
        for (json, about) in [("1", apple), ("2", other)] {
            let Received::Keyed { to: 1, json: received, key, .. } = shard.receive() else {
                panic!()
            };
            let frame = Received::Frame { to: 1, json: received, except: None };
            assert_eq!((&payload(frame, 1)[..], key), (json, about));
        }
    }
}

pub fn success_is_reported_to_publishers_that_asked_and_only_to_them(world: World) {
    let room = TopicName::room("room");
    let shard = world.shards().next().unwrap();
    shard.publish_as(&room, "1", None, None);
    shard.publish_as(&room, "2", Some(5), None);
    shard.publish_as(&room, "3", Some(6), None);
    for id in [5, 6] {
        assert_eq!(
            shard.receive(),
            Received::Ack { conn: 7, id: Some(id), outcome: PublishOutcome::Accepted(None) }
        );
    }
}

pub fn the_ops_thread_publishes_and_is_called_back(world: World) {
    let room = TopicName::room("room");
    for shard in world.shards() {
        shard.join_and_receive(&room, 1);
    }
    let (tell, told) = mpsc::channel();
    let publish = Publish {
        topic: room,
        payload: Bytes::from_static(b"[true]"),
        from: None,
        info: None,
        except: None,
        key: None,
        conflate_key: None,
        done: ReplyTo::Call(Box::new(move |outcome| tell.send(outcome).unwrap())),
    };
    assert!(world.nodes[0].ops.try_publish(Uplink::Publish(publish)).is_ok());
    assert_eq!(told.recv_timeout(Duration::from_secs(20)), Ok(PublishOutcome::Accepted(None)));
    for shard in world.shards() {
        let Received::Frame { json, .. } = shard.receive() else { panic!() };
        assert_eq!(json, r#"{"type":"message","room_id":"room","payload":[true]}"#);
    }
}

pub fn a_disconnected_user_is_closed_behind_its_messages_on_every_shard_and_nobody_else(
    world: World,
) {
    let (user, other) = (TopicName::user("bob"), TopicName::user("ann"));
    for shard in world.shards() {
        shard.join_and_receive(&user, 1);
        shard.join_and_receive(&other, 2);
    }
    world.shards().next().unwrap().publish_as(&user, "1", Some(5), None);
    let close = Disconnect { code: 4001, reason: "come back tomorrow".into() };
    for (index, shard) in world.shards().enumerate() {
        if index == 0 {
            // In either order: the answer to a publish does not wait for its message.
            let received = [shard.receive(), shard.receive()];
            assert!(received.iter().any(|it| matches!(it, Received::Ack { id: Some(5), .. })));
            assert!(received.iter().any(|it| matches!(it, Received::Frame { to: 1, .. })));
        } else {
            assert_eq!(payload(shard.receive(), 1), "1");
        }
    }
    let (tell, told) = mpsc::channel();
    let reply = ReplyTo::Call(Box::new(move |outcome| tell.send(outcome).unwrap()));
    let ask = DisconnectRequest { topic: user, close: close.clone(), reply };
    assert!(world.nodes[0].ops.try_publish(Uplink::Disconnect(Box::new(ask))).is_ok());
    assert_eq!(told.recv_timeout(Duration::from_secs(20)), Ok(PublishOutcome::Accepted(None)));
    for shard in world.shards() {
        assert_eq!(shard.receive(), Received::Disconnect { at: 1, close: close.clone() });
    }
    world.shards().next().unwrap().publish(&other, "2");
    for shard in world.shards() {
        assert_eq!(payload(shard.receive(), 2), "2", "and nothing else before");
    }
}

pub fn payloads_travel_byte_for_byte(world: World) {
    let room = TopicName::room("room");
    let shard = world.shards().last().unwrap();
    shard.join_and_receive(&room, 1);
    let long = format!("\"{}\"", "é".repeat(40_000));
    let payloads = [
        "1.0",
        "1e400",
        "123456789012345678901234567890",
        r#""\u00e9é""#,
        r#"{"a":1,"a":2}"#,
        &long,
    ];
    for said in payloads {
        world.shards().next().unwrap().publish(&room, said);
        let Received::Frame { json, .. } = shard.receive() else { panic!() };
        let head = r#"{"type":"message","room_id":"room","from":"ann","payload":"#;
        assert_eq!(json, format!("{head}{said}}}"));
    }
}

pub fn the_thread_ends_when_its_last_shard_has_ended(world: World) {
    let mut world = world;
    for node in &mut world.nodes {
        node.shards.clear();
        node.join_thread();
    }
}
