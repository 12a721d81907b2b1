//! Presence when a node or the server dies.

use crate::presences::{joined, left, news, room, user, wait_for_list};
use crate::proxy::{Proxy, Wire};
use crate::redis::{Redis, wait_until};
use crate::world::{Build, Received, World};
use campanile::backplane::partition::partition;
use campanile::link::{PresenceRequest, ReplyTo, Uplink};
use std::time::Duration;

/// Ann is on the first node, and the last node has received her join.
fn ann_is_there(world: &World, name: &str) {
    let (near, far) = world.two_shards();
    let topic = room(name);
    far.join_and_receive(&topic, 5);
    near.join_presence(&topic, "ann", 1, None);
    assert_eq!(news(far), joined(name, "ann"));
    wait_for_list(far, &topic, &[user("ann", 1)]);
}

#[test]
fn the_users_of_a_node_that_died_leave_and_those_who_are_elsewhere_stay() {
    let mut world = World::redis(Build::usual());
    let topic = room("long:a");
    ann_is_there(&world, "long:a");
    let (near, far) = world.two_shards();
    near.join_presence(&topic, "bob", 2, None);
    assert_eq!(news(far), joined("long:a", "bob"));
    far.join_presence(&topic, "bob", 3, None);
    wait_for_list(far, &topic, &[user("ann", 1), user("bob", 2)]);
    drop(world.nodes.remove(0)); // its thread ends without a goodbye, like a process that is killed
    let far = &world.nodes[0].shards[1];
    assert_eq!(news(far), left("long:a", "ann"));
    wait_for_list(far, &topic, &[user("bob", 1)]);
    wait_until("nothing of it is left", || {
        let redis = world.redis.as_ref().expect("a world with Redis");
        redis.command(&["KEYS", "test:*:npx:*"]).split_whitespace().count() == 1
            && redis.command(&["SCARD", "test:{p637}:nodes"]) == "1"
            && redis.command(&["KEYS", "test:*:pr:*"]).split_whitespace().count() == 1
    });
    wait_until("it is counted", || world.nodes[0].counters().presence_reaped == 1);
    far.leave_presence(&topic, "bob");
    far.join_presence(&topic, "cid", 4, None);
    assert_eq!(news(far), joined("long:a", "cid"), "and nothing of Bob before");
}

#[test]
fn a_server_that_restarts_empty_is_filled_again_without_events() {
    let mut world = World::redis(Build::usual());
    let topic = room("here:a");
    ann_is_there(&world, "here:a");
    world.server().kill();
    world.wait_until_up(false);
    let (near, far) = world.two_shards();
    assert_eq!(far.roster(&topic), None, "nobody knows");
    near.join_presence(&topic, "bob", 2, None);
    near.join_presence(&topic, "cid", 3, None);
    near.leave_presence(&topic, "cid");
    world.server().restart();
    world.wait_until_up(true);
    let (_, far) = world.two_shards();
    assert_eq!(news(far), joined("here:a", "bob"));
    wait_for_list(far, &topic, &[user("ann", 1), user("bob", 1)]);
    world.two_shards().0.join_presence(&topic, "dan", 4, None);
    let next = news(far);
    assert_eq!(
        next,
        joined("here:a", "dan"),
        "and nothing of Ann and Cid: one stayed, one never was"
    );
}

#[test]
fn a_leave_while_the_server_was_down_is_published_when_it_is_back() {
    let mut world = World::redis(Build::usual());
    let topic = room("here:a");
    ann_is_there(&world, "here:a");
    world.server().kill();
    world.wait_until_up(false);
    world.two_shards().0.leave_presence(&topic, "ann");
    world.server().restart();
    world.wait_until_up(true);
    let (_, far) = world.two_shards();
    assert_eq!(news(far), left("here:a", "ann"));
    wait_for_list(far, &topic, &[]);
}

#[test]
fn a_server_that_lost_the_scripts_loads_them_again() {
    let world = World::redis(Build::usual());
    ann_is_there(&world, "here:a");
    let redis = world.redis.as_ref().expect("a world with Redis");
    assert_eq!(redis.command(&["SCRIPT", "FLUSH"]), "OK");
    let (near, far) = world.two_shards();
    near.join_presence(&room("here:a"), "bob", 2, None);
    assert_eq!(news(far), joined("here:a", "bob"));
}

#[test]
fn a_node_that_was_taken_for_dead_returns_with_all_its_users() {
    let world = World::redis(Build::usual());
    ann_is_there(&world, "here:a");
    let redis = world.redis.as_ref().expect("a world with Redis");
    let node = world.nodes[0].shards[0].node;
    // As another node does that has not seen its sign of life.
    redis.command(&["SET", &format!("test:{{p637}}:reaped:{node}"), "1"]);
    let part = partition("r:here:a");
    redis.command(&["DEL", &format!("test:{{p{part}}}:pr:r:here:a:{node}")]);
    redis.command(&["DEL", &format!("test:{{p{part}}}:prn:r:here:a")]);
    let (_, far) = world.two_shards();
    assert_eq!(news(far), joined("here:a", "ann"));
    wait_for_list(far, &room("here:a"), &[user("ann", 1)]);
    world.two_shards().0.join_presence(&room("here:a"), "bob", 2, None);
    assert_eq!(news(far), joined("here:a", "bob"), "and Ann only once");
}

#[test]
fn a_large_room_is_counted_whole_on_every_node() {
    let world = World::redis(Build::usual());
    let topic = room("few:crowd");
    let (near, far) = world.two_shards();
    for number in 0..1500 {
        near.join_presence(&topic, &format!("a{number:04}"), 1, Some("[1]"));
    }
    for number in 1400..1900 {
        far.join_presence(&topic, &format!("a{number:04}"), 2, None);
    }
    for shard in [near, far] {
        wait_until("all are counted", || {
            let (list, count) = shard.roster(&topic).expect("the backplane is up");
            assert!(list.len() <= 1000);
            let both = list.iter().filter(|(name, ..)| name[1..] >= *"1400" && name[1..] < *"1500");
            count == 1900 && list.len() == 1000 && both.clone().all(|(_, there, _)| *there == 2)
        });
    }
}

#[test]
fn a_user_who_has_left_is_not_brought_back_by_a_server_with_a_stale_entry() {
    let mut world = World::redis(Build::usual());
    let (topic, emptied) = (room("here:a"), room("here:b"));
    ann_is_there(&world, "here:a");
    let (near, far) = world.two_shards();
    near.join_presence(&topic, "bob", 2, None);
    assert_eq!(news(far), joined("here:a", "bob"));
    near.join_presence(&emptied, "eve", 3, None);
    wait_for_list(far, &emptied, &[user("eve", 1)]);
    // The server's data ends here, as that of a replica does that is behind when it is promoted.
    assert_eq!(world.server().command(&["SAVE"]), "OK");
    let (near, far) = world.two_shards();
    near.leave_presence(&topic, "ann");
    near.leave_presence(&emptied, "eve");
    assert_eq!(news(far), left("here:a", "ann"));
    wait_for_list(far, &topic, &[user("bob", 1)]);
    wait_for_list(far, &emptied, &[]);
    world.server().kill();
    world.wait_until_up(false);
    world.server().restart();
    world.wait_until_up(true);
    let (near, far) = world.two_shards();
    wait_for_list(far, &topic, &[user("bob", 1)]);
    wait_for_list(far, &emptied, &[]);
    near.join_presence(&topic, "dan", 4, None);
    assert_eq!(news(far), joined("here:a", "dan"), "and nothing of Ann, who left long ago");
    let redis = world.redis.as_ref().expect("a world with Redis");
    wait_until("nothing of an empty room is left", || {
        redis.command(&["KEYS", "test:*r*:r:here:b*"]).is_empty()
    });
}

#[test]
fn a_leave_that_waited_for_a_server_that_then_lost_its_data_is_published() {
    let mut world = World::redis(Build::usual());
    let topic = room("here:a");
    ann_is_there(&world, "here:a");
    world.server().freeze();
    let (near, _) = world.two_shards();
    // A batch is in flight to the server and will not be answered; Ann's leave waits behind it.
    near.join_presence(&topic, "bob", 2, None);
    near.leave_presence(&topic, "ann");
    std::thread::sleep(Duration::from_millis(600));
    world.server().kill();
    world.wait_until_up(false);
    world.server().restart();
    world.wait_until_up(true);
    let (_, far) = world.two_shards();
    let mut received = [news(far), news(far)];
    received.sort();
    assert_eq!(received, [joined("here:a", "bob"), left("here:a", "ann")]);
    wait_for_list(far, &topic, &[user("bob", 1)]);
}

#[test]
fn a_node_that_was_taken_for_dead_learns_so_again_if_the_reply_was_lost() {
    let redis = Redis::start();
    let proxy = Proxy::start(redis.port);
    let url = format!("redis://127.0.0.1:{}", proxy.port);
    let world = World::over(Build::usual(), &url, "test");
    let topic = room("here:a");
    ann_is_there(&world, "here:a");
    let (node, part) = (world.nodes[0].shards[0].node, partition("r:here:a"));
    proxy.set(Wire::DeadDown);
    redis.command(&["SET", &format!("test:{{p637}}:reaped:{node}"), "1"]);
    redis.command(&["DEL", &format!("test:{{p{part}}}:pr:r:here:a:{node}")]);
    redis.command(&["DEL", &format!("test:{{p{part}}}:prn:r:here:a")]);
    world.wait_until_up(false);
    proxy.heal();
    world.wait_until_up(true);
    let (_, far) = world.two_shards();
    assert_eq!(news(far), joined("here:a", "ann"));
    wait_for_list(far, &topic, &[user("ann", 1)]);
    world.two_shards().0.join_presence(&topic, "bob", 2, None);
    assert_eq!(news(far), joined("here:a", "bob"), "and Ann only once");
}

#[test]
fn a_request_while_a_room_is_read_for_another_is_answered_from_the_next_read() {
    let redis = Redis::start();
    let proxy = Proxy::start(redis.port);
    let url = format!("redis://127.0.0.1:{}", proxy.port);
    let world = World::over(Build { nodes: 1, shards: 1, ..Build::usual() }, &url, "test");
    let (topic, part) = (room("here:a"), partition("r:here:a"));
    // Another node, which is alive and has Ann.
    let users = format!("test:{{p{part}}}:pr:r:here:a:00000000000000ff");
    redis.command(&["SET", "test:{p637}:node:00000000000000ff", "1"]);
    redis.command(&["HSET", &users, "ann", "1"]);
    redis.command(&["SADD", &format!("test:{{p{part}}}:prn:r:here:a"), "00000000000000ff"]);
    // One was to find out whether it is allowed.
    let lists_read = |calls: u32| {
        let line = format!("cmdstat_hkeys:calls={calls},");
        redis.command(&["INFO", "commandstats"]).contains(&line)
    };
    assert!(lists_read(1));
    proxy.delay(150);
    let (tell, told) = std::sync::mpsc::channel();
    let to = ReplyTo::Call(Box::new(move |here| tell.send(here).expect("it is awaited")));
    let ask = Uplink::Presence(Box::new(PresenceRequest { topic: topic.clone(), to }));
    world.nodes[0].ops.try_publish(ask).expect("there is room");
    wait_until("all names are read", || lists_read(2));
    // This node is not subscribed yet, so no event of Bob arrives.
    redis.command(&["HSET", &users, "bob", "1"]);
    let shard = &world.nodes[0].shards[0];
    shard.join_and_receive(&topic, 5);
    let (list, count) = shard.roster(&topic).expect("the backplane is up");
    assert_eq!((list, count), (vec![user("ann", 1), user("bob", 1)], 2));
    let here = told.recv().expect("an answer").expect("the backplane is up");
    assert_eq!(here.count, 1, "the operator asked before Bob came");
}

#[test]
fn a_request_before_this_node_is_subscribed_is_answered_when_it_is() {
    let redis = Redis::start();
    let proxy = Proxy::start(redis.port);
    let url = format!("redis://127.0.0.1:{}", proxy.port);
    let world = World::over(Build { shards: 1, ..Build::usual() }, &url, "test");
    let topic = room("here:a");
    let (near, far) = world.two_shards();
    proxy.delay(100);
    // So much to subscribe that the room's turn comes long after its roster could be read.
    let crowd = 6_000;
    for number in 0..crowd {
        far.join(&room(&format!("plain:{number}")), 6);
    }
    far.join(&topic, 5);
    far.roster(&topic).expect("the backplane is up");
    near.join_presence(&topic, "ann", 1, None);
    let mut received = (0..crowd + 2).map(|_| far.receive());
    let news = received.find(|received| !matches!(received, Received::Joined(_)));
    let Some(Received::Keyed { json, .. }) = news else { panic!("no news: {news:?}") };
    assert_eq!(json, joined("here:a", "ann"));
}
