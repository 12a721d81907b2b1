//! Values that other programs may write into the keys of presence: they affect one room at most.

use crate::presences::{joined, left, news, room, user, wait_for_list};
use crate::redis::{Redis, wait_until};
use crate::world::{Build, World};
use campanile::backplane::partition::partition;

/// Another node, which is alive.
const OTHER: &str = "00000000000000ff";

fn redis(world: &World) -> &Redis {
    world.redis.as_ref().expect("a world with Redis")
}

/// A key of a room.
fn key(kind: &str, room: &str) -> String {
    format!("test:{{p{}}}:{kind}:r:{room}", partition(&format!("r:{room}")))
}

fn key_of_node(room: &str, node: &str) -> String {
    format!("{}:{node}", key("pr", room))
}

/// Live nodes with users in a room, as other programs write them.
fn others_have(redis: &Redis, room: &str, users: &[(&str, &[u8])]) {
    for node in [OTHER, "00000000000000fe"] {
        redis.command(&["SET", &format!("test:{{p637}}:node:{node}"), "1"]);
        redis.command(&["SADD", &key("prn", room), node]);
        for (name, value) in users {
            let of_node = key_of_node(room, node);
            redis.command_bytes(&[b"HSET", of_node.as_bytes(), name.as_bytes(), value]);
        }
    }
}

#[test]
fn impossible_connections_and_malformed_info_are_left_out() {
    let world = World::redis(Build { nodes: 1, ..Build::usual() });
    let topic = room("here:a");
    let long = [b"1|", &[b'7'; 100_000][..]].concat();
    let users: [(&str, &[u8]); 9] = [
        ("ann", b"18446744073709551615"),
        ("bob", b"9223372036854775808"),
        ("cid", b"-1"),
        ("dan", b"1|{"),
        ("eve", b"\xFF\xFE"),
        ("fay", b""),
        ("gus", b"1|\xFF"),
        ("hal", &long),
        ("ida", b"2|7"),
    ];
    others_have(redis(&world), "here:a", &users);
    redis(&world).command_bytes(&[
        b"HSET",
        key_of_node("here:a", OTHER).as_bytes(),
        b"\xFF\xFE",
        b"1",
        &[b'x'; 300],
        b"1",
    ]);
    let shard = &world.nodes[0].shards[0];
    shard.join_and_receive(&topic, 5);
    let (list, count) = shard.roster(&topic).expect("the room can be read");
    assert_eq!(count, 9, "who stands there is there");
    let seven = ("ida".to_owned(), 4, Some("7".to_owned()));
    assert_eq!(list, [user("dan", 2), user("gus", 2), user("hal", 2), seven]);
}

#[test]
fn malformed_nodes_and_rooms_are_ignored() {
    let world = World::redis(Build::usual());
    let (topic, (near, far)) = (room("here:a"), world.two_shards());
    let index = |part: u16, node: &str| format!("test:{{p{part}}}:npx:{node}");
    let part = partition("r:here:a");
    for garbage in [&b"x"[..], b"", b"\xFF\xFE", &[b'f'; 17], &[0xFF; 16], &[b'7'; 100_000]] {
        redis(&world).command_bytes(&[b"SADD", key("prn", "here:a").as_bytes(), garbage]);
        redis(&world).command_bytes(&[b"SADD", b"test:{p637}:nodes", garbage]);
        for node in ["0000000000000001", "0000000000000002"] {
            redis(&world).command_bytes(&[b"SADD", index(part, node).as_bytes(), garbage]);
        }
    }
    far.join_and_receive(&topic, 5);
    near.join_presence(&topic, "ann", 1, None);
    assert_eq!(news(far), joined("here:a", "ann"));
    wait_for_list(far, &topic, &[user("ann", 1)]);
    near.leave_presence(&topic, "ann");
    assert_eq!(news(far), left("here:a", "ann"));
}

#[test]
fn a_room_whose_users_are_no_hash_waits_until_it_is_corrected_and_others_do_not() {
    let world = World::redis(Build::usual());
    let (topic, other, (near, far)) = (room("here:a"), room("here:b"), world.two_shards());
    let own = key_of_node("here:a", "0000000000000001");
    redis(&world).command(&["SET", &own, "1"]);
    far.join_and_receive(&topic, 5);
    far.join_and_receive(&other, 5);
    near.join_presence(&topic, "ann", 1, None);
    let is_counted = || world.nodes.iter().any(|node| node.counters().presence_unreadable > 0);
    wait_until("it is counted", is_counted);
    for number in 0..20 {
        let name = number.to_string();
        near.join_presence(&other, &name, number + 10, None);
        assert_eq!(news(far), joined("here:b", &name));
    }
    redis(&world).command(&["DEL", &own]);
    assert_eq!(news(far), joined("here:a", "ann"), "by itself");
    // And where it cannot be read, the request fails.
    redis(&world).command(&["RENAME", &key("prn", "here:a"), "aside"]);
    redis(&world).command(&["SET", &key("prn", "here:a"), "1"]);
    assert_eq!(far.roster(&topic), None);
    assert_eq!(far.roster(&other).expect("the backplane is up").1, 20);
    redis(&world).command(&["RENAME", "aside", &key("prn", "here:a")]);
    wait_for_list(far, &topic, &[user("ann", 1)]);
}

#[test]
fn a_dead_node_is_removed_whatever_is_written_under_its_name() {
    let mut world = World::redis(Build::usual());
    let topic = room("long:a");
    let (dead, part) = ("0000000000000001", partition("r:long:a"));
    {
        let (near, far) = world.two_shards();
        far.join_and_receive(&topic, 5);
        near.join_presence(&topic, "ann", 1, None);
        assert_eq!(news(far), joined("long:a", "ann"));
    }
    // More rooms of other partitions than one reply lists, and users with impossible names.
    let index = format!("test:{{p{part}}}:npx:{dead}");
    for number in 0..200 {
        let stray = room(&format!("here:{number}"));
        if partition(stray.as_str()) != part {
            redis(&world).command(&["SADD", &index, stray.as_str()]);
        }
    }
    redis(&world).command_bytes(&[b"SADD", index.as_bytes(), b"\xFF\xFE"]);
    let users = key_of_node("long:a", dead);
    redis(&world).command_bytes(&[b"HSET", users.as_bytes(), &[b'x'; 300], b"1"]);
    redis(&world).command(&["SET", &format!("test:{{p637}}:reaped:{dead}"), "9223372036854775807"]);
    drop(world.nodes.remove(0));
    let far = &world.nodes[0].shards[1];
    assert_eq!(news(far), left("long:a", "ann"));
    wait_until("nothing of it is left", || {
        redis(&world).command(&["SCARD", "test:{p637}:nodes"]) == "1"
            && redis(&world).command(&["EXISTS", &index, &users]) == "0"
    });
    wait_until("it is counted", || world.nodes[0].counters().presence_reaped == 1);
}

#[test]
fn any_value_of_a_notice_is_a_notice_and_does_not_end_liveness() {
    let world = World::redis(Build::usual());
    let (topic, (near, far)) = (room("here:a"), world.two_shards());
    far.join_and_receive(&topic, 5);
    near.join_presence(&topic, "ann", 1, None);
    assert_eq!(news(far), joined("here:a", "ann"));
    let [users, note] = [
        key_of_node("here:a", "0000000000000001"),
        "test:{p637}:reaped:0000000000000001".to_owned(),
    ];
    for text in ["abc", "18446744073709551615", "-1"] {
        // As a node removes it that takes it for dead.
        redis(&world).command(&["DEL", &users]);
        redis(&world).command(&["SET", &note, text]);
        assert_eq!(news(far), joined("here:a", "ann"), "it writes its users again: {text}");
    }
}

/// What no node writes, of each kind.
fn garbage() -> Vec<Vec<u8>> {
    vec![b"\xFF\xFE".to_vec(), b"a\0b".to_vec(), b"{".to_vec(), vec![b'7'; 100_000]]
}

/// A command, and the one that undoes it.
type Case = (&'static str, Vec<Vec<u8>>, Vec<Vec<u8>>);

/// Commands that write garbage into each kind of key of node 1 and of [`OTHER`].
fn cases(garbage: &[u8]) -> [Case; 8] {
    let own = "0000000000000001";
    let (users, nodes) = (key_of_node("here:a", OTHER), key("prn", "here:a"));
    let own_users = key_of_node("here:a", own);
    let index = format!("test:{{p{}}}:npx:{own}", partition("r:here:a"));
    let (list, record) = ("test:{p637}:nodes", format!("test:{{p637}}:node:{OTHER}"));
    let notice = format!("test:{{p637}}:reaped:{own}");
    let info = [b"1|", garbage].concat();
    let words = |words: &[&[u8]]| words.iter().map(|word| word.to_vec()).collect::<Vec<_>>();
    let in_set = |what, key: &str| {
        let key = key.as_bytes();
        (what, words(&[b"SADD", key, garbage]), words(&[b"SREM", key, garbage]))
    };
    let in_hash = |what, key: &str, field: &[u8], value: &[u8]| {
        let key = key.as_bytes();
        (what, words(&[b"HSET", key, field, value]), words(&[b"HDEL", key, field]))
    };
    [
        in_set("a name in the list of nodes", list),
        in_set("a name among the nodes of a room", &nodes),
        in_set("a room in the index of this node, beside a user that it does not have", &index),
        (
            "a record",
            words(&[b"SET", record.as_bytes(), garbage]),
            words(&[b"SET", record.as_bytes(), b"1"]),
        ),
        (
            "a notice of another type",
            words(&[b"RPUSH", notice.as_bytes(), garbage]),
            words(&[b"DEL", notice.as_bytes()]),
        ),
        in_hash("an entry", &users, b"joe", garbage),
        in_hash("an info", &users, b"joe", &info),
        in_hash("a user of this node, beside another", &own_users, garbage, b"1"),
    ]
}

#[test]
fn whatever_stands_in_a_key_of_presence_is_skipped_and_counted_and_the_room_goes_on() {
    let world = World::redis(Build { nodes: 1, ..Build::usual() });
    let topic = room("here:a");
    others_have(redis(&world), "here:a", &[("ida", b"2|7")]);
    redis(&world).command(&["SADD", "test:{p637}:nodes", OTHER]);
    let (shard, own) = (&world.nodes[0].shards[0], "0000000000000001");
    shard.join_and_receive(&topic, 5);
    shard.join_presence(&topic, "ann", 1, None);
    let own_users = key_of_node("here:a", own);
    let count = || world.nodes[0].counters().presence_unreadable;
    let send = |command: &[Vec<u8>]| {
        let words: Vec<&[u8]> = command.iter().map(Vec::as_slice).collect();
        redis(&world).command_bytes(&words);
    };
    let wanted = [user("ann", 1), ("ida".to_owned(), 4, Some("7".to_owned()))];
    for garbage in garbage() {
        for (what, write, remove) in cases(&garbage) {
            // These are found by a count that comes every five seconds: two kinds will do.
            let is_seldom = what.starts_with("a room in the") || what.starts_with("a user of");
            if is_seldom && garbage[0] != 0xFF && garbage.len() < 100 {
                continue;
            }
            let before = count();
            send(&write);
            if what.starts_with("a room in the index") {
                redis(&world).command(&["HSET", &own_users, "ghost", "1"]);
            }
            wait_until(&format!("{what} is counted"), || {
                shard.roster(&topic).expect("the room can be read");
                count() > before
            });
            send(&remove);
            wait_for_list(shard, &topic, &wanted);
        }
    }
}

/// Longer than any value may be that a node writes: it is not even stored on its way.
#[test]
fn a_value_of_ten_megabytes_is_as_if_it_were_not_there() {
    let world = World::redis(Build { nodes: 1, ..Build::usual() });
    let topic = room("here:a");
    others_have(redis(&world), "here:a", &[("ida", b"2|7")]);
    redis(&world).command(&["SADD", "test:{p637}:nodes", OTHER]);
    let shard = &world.nodes[0].shards[0];
    shard.join_and_receive(&topic, 5);
    shard.join_presence(&topic, "ann", 1, None);
    let wanted = [user("ann", 1), ("ida".to_owned(), 4, Some("7".to_owned()))];
    for (_, write, remove) in cases(&vec![b'7'; 10 << 20]) {
        for command in [write, remove] {
            let words: Vec<&[u8]> = command.iter().map(Vec::as_slice).collect();
            redis(&world).command_bytes(&words);
            shard.roster(&topic).expect("the room can be read");
        }
        wait_for_list(shard, &topic, &wanted);
    }
    assert_eq!(world.nodes[0].counters().reconnects, 0);
}
