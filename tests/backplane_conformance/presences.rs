//! Rooms with presence, in process and through Redis.
//!
//! `here:` rooms have a short grace, `long:` rooms one that no test outlives, and `few:` rooms
//! none, and events only up to two users.

use crate::redis::wait_until;
use crate::world::{Heard, Listed, Shard, World};
use campanile::ids::{ConflateKey, TopicName};
use campanile::link::{PresenceRequest, PresenceTo, Uplink};

pub fn room(name: &str) -> TopicName {
    TopicName::room(name)
}

/// The next item is a presence event of the room under key 5.
pub fn news(shard: &Shard) -> String {
    loop {
        match shard.hear() {
            Heard::Keyed { to: 5, json, .. } => return json,
            // After an outage members are told that messages may be missing.
            Heard::Lost { count: 0, .. } => {}
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
        let (list, count) = shard.who_is_there(topic).expect("the backplane is up");
        list == wanted && count == wanted.len() as u64
    });
}

pub fn members_receive_joins_and_leaves(world: World) {
    let (door, hall) = world.two_shards();
    let topic = room("here:a");
    hall.join_and_hear(&topic, 5);
    door.come(&topic, "ann", 1, Some(r#"{"a" : 1.0}"#));
    let with_info =
        r#"{"type":"joined","room_id":"here:a","user_id":"ann","info":{"a" : 1.0}}"#.to_owned();
    assert_eq!(news(hall), with_info);
    door.come(&topic, "bob", 2, None);
    assert_eq!(news(hall), joined("here:a", "bob"));
    door.go(&topic, "bob");
    assert_eq!(news(hall), left("here:a", "bob"));
    wait_for_list(hall, &topic, &[("ann".into(), 1, Some(r#"{"a" : 1.0}"#.into()))]);
}

pub fn a_return_within_the_grace_causes_no_event(world: World) {
    let (door, hall) = world.two_shards();
    let topic = room("long:a");
    hall.join_and_hear(&topic, 5);
    door.come(&topic, "ann", 1, None);
    assert_eq!(news(hall), joined("long:a", "ann"));
    door.go(&topic, "ann");
    wait_for_list(hall, &topic, &[user("ann", 0)]);
    door.come(&topic, "ann", 2, None);
    door.come(&topic, "bob", 3, None);
    assert_eq!(news(hall), joined("long:a", "bob"), "and nothing of Ann before");
    wait_for_list(hall, &topic, &[user("ann", 1), user("bob", 1)]);
}

pub fn a_user_in_two_places_is_one_user(world: World) {
    let (door, hall) = world.two_shards();
    let topic = room("here:a");
    hall.join_and_hear(&topic, 5);
    door.come(&topic, "ann", 1, None);
    assert_eq!(news(hall), joined("here:a", "ann"));
    hall.come(&topic, "ann", 2, None);
    hall.come(&topic, "ann", 3, None);
    wait_for_list(door, &topic, &[user("ann", 3)]);
    wait_for_list(hall, &topic, &[user("ann", 3)]);
    door.go(&topic, "ann");
    wait_for_list(hall, &topic, &[user("ann", 2)]);
    hall.go(&topic, "ann");
    hall.go(&topic, "ann");
    assert_eq!(news(hall), left("here:a", "ann"), "once, and last");
    wait_for_list(door, &topic, &[]);
}

pub fn a_joining_connection_receives_no_event_of_itself(world: World) {
    let topic = room("here:a");
    let (door, hall) = world.two_shards();
    door.join_and_hear(&topic, 5);
    hall.join_and_hear(&topic, 5);
    door.come(&topic, "ann", 9, None);
    for (shard, expected) in [(door, Some(9)), (hall, None)] {
        let Heard::Keyed { except, json, key, .. } = shard.hear() else { panic!("no news") };
        assert_eq!(key, ConflateKey::of_news("ann"), "it takes the place of no message");
        assert_eq!((json, except), (joined("here:a", "ann"), expected));
    }
}

pub fn a_room_beyond_the_limit_has_no_events_and_still_a_roster(world: World) {
    let (door, hall) = world.two_shards();
    let topic = room("few:a");
    hall.join_and_hear(&topic, 5);
    for (name, conn) in [("ann", 1), ("bob", 2), ("cid", 3)] {
        door.come(&topic, name, conn, None);
    }
    wait_for_list(hall, &topic, &[user("ann", 1), user("bob", 1), user("cid", 1)]);
    door.go(&topic, "cid");
    wait_for_list(hall, &topic, &[user("ann", 1), user("bob", 1)]);
    door.go(&topic, "bob");
    let heard = [news(hall), news(hall), news(hall)];
    assert_eq!(heard, [joined("few:a", "ann"), joined("few:a", "bob"), left("few:a", "bob")]);
}

pub fn the_info_of_a_user_is_listed(world: World) {
    let (door, hall) = world.two_shards();
    let topic = room("here:a");
    door.come(&topic, "ann", 1, Some("1"));
    wait_for_list(hall, &topic, &[("ann".into(), 1, Some("1".into()))]);
    door.say_of(&topic, "ann", r#""away""#);
    wait_for_list(hall, &topic, &[("ann".into(), 1, Some(r#""away""#.into()))]);
    wait_for_list(hall, &room("here:b"), &[]);
}

pub fn the_info_of_the_node_where_the_user_still_is_counts(world: World) {
    let (door, hall) = world.two_shards();
    let topic = room("long:a");
    door.come(&topic, "ann", 1, Some("1"));
    wait_for_list(hall, &topic, &[("ann".into(), 1, Some("1".into()))]);
    door.go(&topic, "ann");
    wait_for_list(hall, &topic, &[("ann".into(), 0, Some("1".into()))]);
    hall.come(&topic, "ann", 2, Some("2"));
    for shard in [hall, door] {
        wait_for_list(shard, &topic, &[("ann".into(), 1, Some("2".into()))]);
    }
}

pub fn an_operator_reads_a_roster(world: World) {
    let (door, _) = world.two_shards();
    let topic = room("here:a");
    door.come(&topic, "ann", 1, None);
    let ops = &world.nodes.last().expect("a world has a node").ops;
    wait_until("the operator sees Ann", || {
        let (tell, told) = std::sync::mpsc::channel();
        let to = PresenceTo::Call(Box::new(move |here| tell.send(here).expect("it is awaited")));
        let ask = Uplink::Presence(Box::new(PresenceRequest { topic: topic.clone(), to }));
        ops.try_publish(ask).expect("there is room");
        let here = told.recv().expect("an answer").expect("the backplane is up");
        here.count == 1 && here.users[0].user == TopicName::user("ann")
    });
}
