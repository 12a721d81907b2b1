//! Keys of presence that vanish under a running system (evicted, deleted, flushed): presence becomes
//! true again, and nobody who is still there leaves or joins.

use crate::presences::{joined, left, news, room, user, wait_for_list};
use crate::redis::{Redis, wait_until};
use crate::world::{Build, World};
use campanile::backplane::partition::partition;

const NEAR: &str = "0000000000000001";
const ROOM: &str = "here:a";

fn redis(world: &World) -> &Redis {
    world.redis.as_ref().expect("a world with Redis")
}

/// A key of the room.
fn key(kind: &str) -> String {
    format!("test:{{p{}}}:{kind}:r:{ROOM}", partition(&format!("r:{ROOM}")))
}

/// Ann is on the first node; the last one has received that, and knows the first.
fn ann_is_there() -> World {
    let world = World::redis(Build::usual());
    let (near, far) = world.two_shards();
    far.join_and_receive(&room(ROOM), 5);
    near.join_presence(&room(ROOM), "ann", 1, None);
    assert_eq!(news(far), joined(ROOM, "ann"));
    let know_each_other = || world.nodes.iter().all(|node| node.counters().nodes == 2);
    wait_until("the nodes know each other", know_each_other);
    world
}

/// Presence is true again, and the next event is the next change.
fn presence_goes_on(world: &World) {
    let (near, far) = world.two_shards();
    wait_for_list(far, &room(ROOM), &[user("ann", 1)]);
    near.join_presence(&room(ROOM), "bob", 2, None);
    assert_eq!(news(far), joined(ROOM, "bob"), "and nothing of Ann, who was there all the time");
    wait_for_list(far, &room(ROOM), &[user("ann", 1), user("bob", 1)]);
    near.leave_presence(&room(ROOM), "ann");
    assert_eq!(news(far), left(ROOM, "ann"));
    wait_for_list(far, &room(ROOM), &[user("bob", 1)]);
}

/// These keys are deleted, and presence becomes true again.
fn survives_the_loss_of(keys: &[String]) {
    let world = ann_is_there();
    let mut command = vec!["DEL"];
    command.extend(keys.iter().map(String::as_str));
    assert_eq!(redis(&world).command(&command), keys.len().to_string(), "{keys:?}");
    let exist = || {
        let exist = |key: &String| redis(&world).command(&["EXISTS", key]) == "1";
        keys.iter().all(exist)
    };
    wait_until("the keys are written again", exist);
    presence_goes_on(&world);
}

#[test]
fn the_users_of_a_room_come_back_after_their_hash_was_deleted() {
    survives_the_loss_of(&[format!("{}:{NEAR}", key("pr"))]);
}

#[test]
fn a_room_is_found_again_after_its_set_of_nodes_was_deleted() {
    survives_the_loss_of(&[key("prn")]);
}

#[test]
fn a_room_is_found_again_after_the_index_of_a_node_was_deleted() {
    let index = format!("test:{{p{}}}:npx:{NEAR}", partition(&format!("r:{ROOM}")));
    survives_the_loss_of(&[index]);
}

#[test]
fn a_node_whose_record_was_deleted_is_not_dead() {
    survives_the_loss_of(&[format!("test:{{p637}}:node:{NEAR}")]);
}

#[test]
fn a_list_of_nodes_that_was_deleted_is_made_again() {
    survives_the_loss_of(&["test:{p637}:nodes".to_owned()]);
}

#[test]
fn a_flushed_server_is_filled_again_without_events() {
    let world = ann_is_there();
    assert_eq!(redis(&world).command(&["FLUSHALL"]), "OK");
    presence_goes_on(&world);
    let is_counted = || world.nodes[0].counters().presence_vanished > 0;
    wait_until("it is counted", is_counted);
}

#[test]
fn a_user_who_leaves_a_flushed_server_has_left() {
    let world = ann_is_there();
    let (near, far) = world.two_shards();
    assert_eq!(redis(&world).command(&["FLUSHALL"]), "OK");
    near.leave_presence(&room(ROOM), "ann");
    assert_eq!(news(far), left(ROOM, "ann"));
    near.join_presence(&room(ROOM), "bob", 2, None);
    assert_eq!(news(far), joined(ROOM, "bob"), "and Ann left once");
    wait_for_list(far, &room(ROOM), &[user("bob", 1)]);
}

#[test]
fn a_user_who_leaves_a_deleted_hash_has_left() {
    let world = ann_is_there();
    let (near, far) = world.two_shards();
    assert_eq!(redis(&world).command(&["DEL", &format!("{}:{NEAR}", key("pr"))]), "1");
    near.leave_presence(&room(ROOM), "ann");
    assert_eq!(news(far), left(ROOM, "ann"));
    near.join_presence(&room(ROOM), "bob", 2, None);
    assert_eq!(news(far), joined(ROOM, "bob"), "and Ann left once");
}

#[test]
fn a_user_on_two_nodes_who_leaves_one_of_them_after_a_flush_has_not_left() {
    let world = ann_is_there();
    let (near, far) = world.two_shards();
    far.join_presence(&room(ROOM), "ann", 3, None);
    wait_for_list(far, &room(ROOM), &[user("ann", 2)]);
    assert_eq!(redis(&world).command(&["FLUSHALL"]), "OK");
    near.leave_presence(&room(ROOM), "ann");
    wait_for_list(near, &room(ROOM), &[user("ann", 1)]);
    near.join_presence(&room(ROOM), "bob", 2, None);
    assert_eq!(news(far), joined(ROOM, "bob"), "and nothing of Ann");
    wait_for_list(far, &room(ROOM), &[user("ann", 1), user("bob", 1)]);
    far.leave_presence(&room(ROOM), "ann");
    assert_eq!(news(far), left(ROOM, "ann"));
}
