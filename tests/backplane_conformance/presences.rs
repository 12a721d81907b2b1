//! Rooms with presence, in process and through Redis.
//!
//! `here:` rooms have a short grace, `long:` rooms one that no test outlives, and `few:` rooms
//! none, and events only up to two users.

use crate::redis::wait_until;
use crate::world::{Listed, Received, Shard, World};
use campanile::ids::{ConflateKey, TopicName};
use campanile::link::{PresenceRequest, ReplyTo, Uplink};

pub fn room(name: &str) -> TopicName {
    TopicName::room(name)
}

/// The next item is a presence event of the room under key 5.
pub fn news(shard: &Shard) -> String {
    loop {
        match shard.receive() {
            Received::Keyed { to: 5, json, .. } => return json,
            // After an outage members are told that messages may be missing.
            Received::Lost { count: 0, .. } => {}
            other => panic!("no news: {other:?}"),
        }
    }
}

pub fn joined(room: &str, user: &str) -> String {
    format!(r#"{{"type":"joined","room_id":"{room}","user_id":"{user}"}}"#)
}

pub fn left(room: &str, user: &str) -> String {
    format!(r#"{{"type":"left","room_id":"{room}","user_id":"{user}"}}"#)
}

pub fn user(name: &str, connections: u64) -> Listed {
    (name.into(), connections, None)
}

/// Asks until the roster is as wanted: another node's event may be on its way.
pub fn wait_for_list(shard: &Shard, topic: &TopicName, wanted: &[Listed]) {
    wait_until("the list is as wanted", || {
        let (list, count) = shard.roster(topic).expect("the backplane is up");
        list == wanted && count == wanted.len() as u64
    });
}

pub fn members_receive_joins_and_leaves(world: World) {
    let (near, far) = world.two_shards();
    let topic = room("here:a");
    far.join_and_receive(&topic, 5);
    near.join_presence(&topic, "ann", 1, Some(r#"{"a" : 1.0}"#));
    let with_info =
        r#"{"type":"joined","room_id":"here:a","user_id":"ann","info":{"a" : 1.0}}"#.to_owned();
    assert_eq!(news(far), with_info);
    near.join_presence(&topic, "bob", 2, None);
    assert_eq!(news(far), joined("here:a", "bob"));
    near.leave_presence(&topic, "bob");
    assert_eq!(news(far), left("here:a", "bob"));
    wait_for_list(far, &topic, &[("ann".into(), 1, Some(r#"{"a" : 1.0}"#.into()))]);
}

pub fn a_return_within_the_grace_causes_no_event(world: World) {
    let (near, far) = world.two_shards();
    let topic = room("long:a");
    far.join_and_receive(&topic, 5);
    near.join_presence(&topic, "ann", 1, None);
    assert_eq!(news(far), joined("long:a", "ann"));
    near.leave_presence(&topic, "ann");
    wait_for_list(far, &topic, &[user("ann", 0)]);
    near.join_presence(&topic, "ann", 2, None);
    near.join_presence(&topic, "bob", 3, None);
    assert_eq!(news(far), joined("long:a", "bob"), "and nothing of Ann before");
    wait_for_list(far, &topic, &[user("ann", 1), user("bob", 1)]);
}

pub fn a_user_in_two_places_is_one_user(world: World) {
    let (near, far) = world.two_shards();
    let topic = room("here:a");
    far.join_and_receive(&topic, 5);
    near.join_presence(&topic, "ann", 1, None);
    assert_eq!(news(far), joined("here:a", "ann"));
    far.join_presence(&topic, "ann", 2, None);
    far.join_presence(&topic, "ann", 3, None);
    wait_for_list(near, &topic, &[user("ann", 3)]);
    wait_for_list(far, &topic, &[user("ann", 3)]);
    near.leave_presence(&topic, "ann");
    wait_for_list(far, &topic, &[user("ann", 2)]);
    far.leave_presence(&topic, "ann");
    far.leave_presence(&topic, "ann");
    assert_eq!(news(far), left("here:a", "ann"), "once, and last");
    wait_for_list(near, &topic, &[]);
}

pub fn a_joining_connection_receives_no_event_of_itself(world: World) {
    let topic = room("here:a");
    let (near, far) = world.two_shards();
    near.join_and_receive(&topic, 5);
    far.join_and_receive(&topic, 5);
    near.join_presence(&topic, "ann", 9, None);
    for (shard, expected) in [(near, Some(9)), (far, None)] {
        let Received::Keyed { except, json, key, .. } = shard.receive() else { panic!("no news") };
        assert_eq!(key, ConflateKey::of_news("ann"), "it takes the place of no message");
        assert_eq!((json, except), (joined("here:a", "ann"), expected));
    }
}

pub fn a_room_beyond_the_limit_has_no_events_and_still_a_roster(world: World) {
    let (near, far) = world.two_shards();
    let topic = room("few:a");
    far.join_and_receive(&topic, 5);
    for (name, conn) in [("ann", 1), ("bob", 2), ("cid", 3)] {
        near.join_presence(&topic, name, conn, None);
    }
    wait_for_list(far, &topic, &[user("ann", 1), user("bob", 1), user("cid", 1)]);
    near.leave_presence(&topic, "cid");
    wait_for_list(far, &topic, &[user("ann", 1), user("bob", 1)]);
    near.leave_presence(&topic, "bob");
    let received = [news(far), news(far), news(far)];
    assert_eq!(received, [joined("few:a", "ann"), joined("few:a", "bob"), left("few:a", "bob")]);
}

pub fn the_info_of_a_user_is_listed(world: World) {
    let (near, far) = world.two_shards();
    let topic = room("here:a");
    near.join_presence(&topic, "ann", 1, Some("1"));
    wait_for_list(far, &topic, &[("ann".into(), 1, Some("1".into()))]);
    near.change_info(&topic, "ann", r#""away""#);
    wait_for_list(far, &topic, &[("ann".into(), 1, Some(r#""away""#.into()))]);
    wait_for_list(far, &room("here:b"), &[]);
}

pub fn the_info_of_the_node_where_the_user_still_is_counts(world: World) {
    let (near, far) = world.two_shards();
    let topic = room("long:a");
    near.join_presence(&topic, "ann", 1, Some("1"));
    wait_for_list(far, &topic, &[("ann".into(), 1, Some("1".into()))]);
    near.leave_presence(&topic, "ann");
    wait_for_list(far, &topic, &[("ann".into(), 0, Some("1".into()))]);
    far.join_presence(&topic, "ann", 2, Some("2"));
    for shard in [far, near] {
        wait_for_list(shard, &topic, &[("ann".into(), 1, Some("2".into()))]);
    }
}

pub fn an_operator_reads_a_roster(world: World) {
    let (near, _) = world.two_shards();
    let topic = room("here:a");
    near.join_presence(&topic, "ann", 1, None);
    let ops = &world.nodes.last().expect("a world has a node").ops;
    wait_until("the operator sees Ann", || {
        let (tell, told) = std::sync::mpsc::channel();
        let to = ReplyTo::Call(Box::new(move |here| tell.send(here).expect("it is awaited")));
        let ask = Uplink::Presence(Box::new(PresenceRequest { topic: topic.clone(), to }));
        ops.try_publish(ask).expect("there is room");
        let here = told.recv().expect("an answer").expect("the backplane is up");
        here.count == 1 && here.users[0].user == TopicName::user("ann")
    });
}
